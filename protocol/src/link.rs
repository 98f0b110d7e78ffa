//! What links between replicas are like, and how patient the replicas are therefore.
//!
//! Whoever waits too short takes a slow link for a dead peer; whoever waits too long keeps
//! applications waiting for a take-over. No time fits both a switch in a rack and a line between two
//! continents, so the volume's option `link-profile` chooses between two sets of them.

use std::time::Duration;

/// Bounds of the length of a promise between replicas, in milliseconds. Shorter ones end before
/// anybody has looked at them; longer ones would keep a volume without a primary for longer than its
/// clients are kept as sessions.
pub const LEASE_MS_MIN: u32 = 20;
/// See [`LEASE_MS_MIN`].
pub const LEASE_MS_MAX: u32 = 10_000;

/// The values of the option `link-profile`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LinkProfile {
    /// Round trips of a few milliseconds.
    Lan,
    /// Round trips of up to 300 ms.
    Wan,
}

/// Times of a profile. All of them run on clocks whose rates differ by at most 1 %.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkTimes {
    /// Where the pool decides about roles: for how long a primary asks its followers to promise
    /// that they ask for no role. It answers nobody unless each promise that it got is younger, so
    /// it must outlast a round trip and a pause between two questions.
    pub lease_ms: u32,
    /// Pause between two such questions.
    pub ask_every: Duration,
    /// A follower whose primary says nothing for so long asks for the role.
    pub claim_after: Duration,
    /// How long a returning primary waits for the other members of its set to report: they have to
    /// find each other first, which takes four round trips.
    pub activation_wait: Duration,
    /// Longest pause between two signs of life.
    pub heartbeat_max: Duration,
    /// After a take-over that may have lost something: how long clients that kept it are awaited.
    pub clients_awaited: Duration,
    /// The pool's group: a leader says that it is there so often, and no message of the group may
    /// take longer.
    pub pool_heartbeat: Duration,
    /// The pool's group: least and longest silence of a leader, after its lease, which is as long as
    /// the longest, before others stand for election.
    pub pool_election: (Duration, Duration),
    /// How long the pool may take to agree on a change of roles.
    pub role_within: Duration,
    /// By then whatever is alive answers a question on a new connection.
    pub answer_within: Duration,
}

impl LinkProfile {
    /// All, with the words of the option.
    pub const ALL: [(&'static str, Self); 2] = [("lan", Self::Lan), ("wan", Self::Wan)];

    /// The profile of that word; [`LinkProfile::Lan`] for any other.
    #[must_use]
    pub fn of(word: &str) -> Self {
        let found = Self::ALL.into_iter().find(|(name, _)| *name == word);
        found.map_or(Self::Lan, |(_, profile)| profile)
    }

    /// Its word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Wan => "wan",
        }
    }

    /// Its times.
    #[must_use]
    pub const fn times(self) -> LinkTimes {
        match self {
            Self::Lan => LinkTimes {
                lease_ms: 150,
                ask_every: Duration::from_millis(50),
                claim_after: Duration::from_millis(500),
                activation_wait: Duration::from_secs(2),
                heartbeat_max: Duration::from_millis(300),
                // A client that lives is back within a second.
                clients_awaited: Duration::from_secs(5),
                pool_heartbeat: Duration::from_millis(50),
                // Short, so that volumes whose primary died with the leader go on soon. On a busy
                // machine a leader may be replaced without need: that costs a few messages and
                // stops no I/O.
                pool_election: (Duration::from_millis(100), Duration::from_millis(200)),
                role_within: Duration::from_millis(700),
                answer_within: Duration::from_millis(250),
            },
            Self::Wan => LinkTimes {
                lease_ms: 1500,
                ask_every: Duration::from_millis(250),
                claim_after: Duration::from_secs(2),
                activation_wait: Duration::from_secs(5),
                heartbeat_max: Duration::from_secs(1),
                // It may have to ask each node, with a new connection for it, and more than once.
                clients_awaited: Duration::from_secs(15),
                pool_heartbeat: Duration::from_millis(600),
                pool_election: (Duration::from_millis(1200), Duration::from_millis(2400)),
                role_within: Duration::from_secs(3),
                answer_within: Duration::from_millis(1200),
            },
        }
    }
}

impl LinkTimes {
    /// See [`LinkTimes::lease_ms`].
    #[must_use]
    pub const fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The longest round trip that a profile is for.
    fn round_trip_max(profile: LinkProfile) -> Duration {
        Duration::from_millis(match profile {
            LinkProfile::Lan => 20,
            LinkProfile::Wan => 300,
        })
    }

    #[test]
    fn every_time_outlasts_the_round_trips_that_it_waits_for() {
        for (name, profile) in LinkProfile::ALL {
            let (times, trip) = (profile.times(), round_trip_max(profile));
            // One question or its answer may be late by as much as a pause.
            let renewed = trip + 2 * times.ask_every;
            assert!(times.lease() * 49 / 50 > renewed, "{name}: the lease ends");
            assert!(times.claim_after > times.lease() + trip, "{name}");
            assert!(
                times.pool_heartbeat > trip,
                "{name}: no append gets through"
            );
            let (least, most) = times.pool_election;
            assert!(least > times.pool_heartbeat && most > least, "{name}");
            // An election on a leader's own word: a question to the leader, and a majority's answer.
            assert!(times.role_within > 2 * times.pool_heartbeat, "{name}");
            assert!(
                times.answer_within > 3 * trip,
                "{name}: TCP, TLS and the answer"
            );
            assert!(times.activation_wait > 4 * trip + times.heartbeat_max);
            assert!((LEASE_MS_MIN..=LEASE_MS_MAX).contains(&times.lease_ms));
        }
    }

    #[test]
    fn each_profile_has_its_word() {
        for (name, profile) in LinkProfile::ALL {
            assert_eq!((LinkProfile::of(name), profile.name()), (profile, name));
        }
        assert_eq!(LinkProfile::of("moon"), LinkProfile::Lan);
    }
}
