//! The options of a volume that its driver goes by.

use std::time::Duration;

use protocol::options::Options;
use protocol::volume::{Protocol, VolumeSpec};

/// Options with their values in force.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// How long a returning primary waits for the other members of its set.
    pub(super) activation_wait: Duration,
    /// A replica that says or acknowledges nothing for so long leaves the set.
    pub(super) replica_deadline: Duration,
    /// Where the pool decides about roles: how long a follower's promise holds.
    pub(super) role_lease: Duration,
    /// A follower whose primary says nothing for so long asks for the role.
    pub(super) claim_after: Duration,
    /// With fewer replicas in sync writes wait.
    pub(super) min_in_sync: u32,
    /// On what evidence an operation is confirmed.
    pub(super) protocol: Protocol,
    /// Under A: bytes that a replica may lack before it is left behind.
    pub(super) queue_bytes_max: u64,
    /// A client that says nothing for so long has ended.
    pub(super) session_timeout: Duration,
    /// Upper bound of a resync; `None`: none.
    pub(super) resync_bytes_per_second_max: Option<u64>,
    /// Nobody writes.
    pub(super) read_only: bool,
}

/// How often a sign of life is sent, where the deadline leaves so much time.
const HEARTBEAT_MAX: Duration = Duration::from_millis(300);
impl Settings {
    /// How often a sign of life is sent. Whoever hears nothing for the replica deadline closes the
    /// connection, also where there is nothing else to say.
    pub(super) fn heartbeat(&self) -> Duration {
        heartbeat(self.replica_deadline)
    }

    /// Of a volume's configuration; values were checked when they were set.
    pub(super) fn of(spec: &VolumeSpec) -> Self {
        let options = Options::new(&spec.options);
        let rate = options.bytes("resync-max-rate");
        Self {
            activation_wait: Duration::from_secs(2),
            role_lease: Duration::from_millis(150),
            claim_after: Duration::from_millis(500),
            replica_deadline: options.duration("replica-deadline"),
            min_in_sync: u32::try_from(options.count("min-in-sync")).unwrap_or(1),
            protocol: spec.protocol,
            queue_bytes_max: options.bytes("async-queue-max"),
            session_timeout: options.duration("session-timeout"),
            resync_bytes_per_second_max: (rate > 0).then_some(rate),
            read_only: options.on("read-only"),
        }
    }
}

fn heartbeat(replica_deadline: Duration) -> Duration {
    // Within the deadline one may be late and another one be on its way.
    (replica_deadline * 3 / 8).min(HEARTBEAT_MAX)
}

#[cfg(test)]
mod tests {
    use super::super::thread::TICK;
    use super::*;
    use protocol::options::{OptionKind, rule};

    /// The simulation found it: with the shortest deadline that can be set, signs of life came less
    /// often than that. Idle replicas left each other again and again, and no resync that took
    /// longer than the deadline ever ended.
    #[test]
    fn signs_of_life_come_often_enough_for_every_deadline_that_can_be_set() {
        let OptionKind::Duration { ms_min, ms_max } = rule("replica-deadline").unwrap().kind else {
            panic!("a deadline is a duration");
        };
        for deadline in [ms_min, 300, 500, 800, 5000, ms_max].map(Duration::from_millis) {
            let every = heartbeat(deadline);
            assert!(every >= TICK, "no more often than anybody looks");
            assert!(
                every * 2 + TICK <= deadline,
                "one may be late: {deadline:?}"
            );
        }
    }
}
