//! Promises and the leases that they make: why a primary that answers is the only one.
//!
//! # The argument
//!
//! Let a primary ask at `s` by its own clock, and a follower promise `L` at `p` by its own. The
//! question comes before the answer, so at the moment `p` the primary's clock shows `s` or more.
//!
//! * The follower asks for no role before its clock shows `p + L`. By the primary's clock, which
//!   gains or loses at most 1 % each way, that is not before `s + L × 98 %`.
//! * The primary answers until its clock shows `s + L × 98 %` ([`DRIFT`]), and not longer.
//!
//! Every other member of the set that is agreed, or may be, has to have promised, and only a member
//! may take over. So whoever takes over does so after the last answer of the one before.
//!
//! # Lengths change
//!
//! `L` is in the question and in the answer, so both count the same, whatever either believes to be
//! configured. A follower keeps the longest promise that still holds: asked for less, it has not
//! promised less before the longer one has run out.
//!
//! A process that ends forgets when it promised, but not how much: [`DurableState`] holds a bound of
//! it, which is on stable storage before a promise of that length is given, and falls only when no
//! longer promise holds any more. After its start a follower waits for that long. What it was asked
//! for beyond the bound it does not promise yet: it promises up to the bound.
//!
//! [`DurableState`]: crate::state::DurableState

use std::time::Duration;

use protocol::units::Term;

use super::super::bugs::Bug;
use super::super::{Machine, Phase, Standing};
use crate::state::Mask;

/// Inverse of the most by which the rates of two nodes' clocks may differ, and as much again for
/// rounding: 2 %.
const DRIFT: u32 = 50;

/// A bound in milliseconds, as it is stored.
fn ms(length: Duration) -> u32 {
    u32::try_from(length.as_millis()).unwrap_or(u32::MAX)
}

impl Machine {
    /// How patient the replica is from now on: a follower whose primary says nothing for
    /// `claim_after` asks for the role, a returning primary waits for the other members of its set
    /// for `activation_wait`. What was promised stays promised.
    pub fn set_patience(&mut self, claim_after: Duration, activation_wait: Duration) {
        self.config.claim_after = claim_after;
        self.config.activation_wait = activation_wait;
    }

    /// No promise that this replica gave, in this life or an earlier one, was longer.
    pub(super) fn longest_promise(&self) -> Duration {
        let longest = self.state.longest_promise_ms;
        Duration::from_millis(longest.max(self.durable.longest_promise_ms).into())
    }

    /// The primary of this replica asked for a promise of the length `asked`. `Some`: so much is
    /// given, no more than was asked, and the primary is told so with the time that it sent along.
    pub fn promise(
        &mut self,
        now: Duration,
        from: usize,
        term: Term,
        asked: Duration,
    ) -> Option<Duration> {
        let follows = self.phase == Phase::Following
            && self.standing(from) == Some(Standing::MyPrimary)
            && term == self.state.term;
        self.heard(now, from);
        let (breaks, in_doubt) = (
            self.errs(Bug::BreaksPromises),
            self.errs(Bug::PromisesInDoubt),
        );
        let quorum = self.quorum.as_mut()?;
        if follows {
            quorum.asked_at = Some(now);
        }
        if !follows || (quorum.claimed.is_some() && !in_doubt) {
            return None;
        }
        if breaks {
            return Some(asked);
        }
        let promised_until = quorum.promised_until;
        self.bound_promises(now, promised_until, asked);
        let bound = self
            .state
            .longest_promise_ms
            .min(self.durable.longest_promise_ms);
        let given = if self.errs(Bug::PromisesUnbounded) {
            asked
        } else {
            asked.min(Duration::from_millis(bound.into()))
        };
        let until = if self.errs(Bug::ShortensPromises) {
            now + given
        } else {
            promised_until.max(now + given)
        };
        self.quorum.as_mut()?.promised_until = until;
        Some(given)
    }

    /// Has the bound of what is promised follow what is asked for. It falls when no longer promise
    /// holds: from then on a start that keeps the shorter one keeps every one.
    fn bound_promises(&mut self, now: Duration, promised_until: Duration, asked: Duration) {
        let (bound, asked_ms) = (self.state.longest_promise_ms, ms(asked));
        let falls = asked_ms < bound && promised_until <= now + asked;
        if asked_ms > bound || falls {
            self.state.longest_promise_ms = asked_ms;
            self.decide();
        }
    }

    /// As primary: every replica is being asked for a promise. A member that gives none leaves the
    /// set as one that is slow (FO-5): without it nothing can be answered.
    pub fn asks_promises(&mut self, now: Duration) {
        for link in self.links.iter_mut().flatten() {
            if link.standing == Standing::InSync {
                link.unpromised_since.get_or_insert(now);
            }
        }
    }

    /// A replica gave the promise that was asked for at `sent`, by this replica's clock, and said
    /// that it is `given` long.
    pub fn promised(&mut self, replica: usize, sent: Duration, given: Duration) {
        let mut until = sent + given - given / DRIFT;
        if self.errs(Bug::OverstaysLeases) {
            until += given;
        }
        if let Some(link) = &mut self.links[replica] {
            link.lease_until = link.lease_until.max(until);
            link.unpromised_since = None;
        }
    }

    /// Until when this primary may answer; `None`: it may not. Where it alone is in the set, and
    /// where the bricks decide, there is no end.
    #[must_use]
    pub fn lease(&self) -> Option<Duration> {
        if !matches!(self.phase, Phase::Serving | Phase::HandingOver { .. }) || self.settling {
            return None;
        }
        let Some(quorum) = &self.quorum else {
            return (!self.is_suspended()).then_some(Duration::MAX);
        };
        if self.errs(Bug::AnswersWithoutLease) {
            return Some(Duration::MAX);
        }
        if quorum.agreed.term != self.state.term || quorum.agreed.primary != self.config.me {
            return None;
        }
        let asked = quorum
            .asked
            .map_or_else(Mask::default, |asked| asked.in_sync);
        let possible = quorum.agreed.in_sync.0 | asked.0 | quorum.in_doubt.0;
        let others = Mask(possible).without(self.config.me);
        others.iter().try_fold(Duration::MAX, |least, replica| {
            let link = self.links.get(replica)?.as_ref()?;
            Some(least.min(link.lease_until))
        })
    }

    /// Whether this primary may answer a question now: nobody else can have become primary.
    #[must_use]
    pub fn may_answer(&self, now: Duration) -> bool {
        self.lease().is_some_and(|until| now < until)
    }
}
