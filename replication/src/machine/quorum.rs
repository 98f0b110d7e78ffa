//! The machine where the pool decides about roles (`quorum=majority`).
//!
//! Three things keep two primaries apart (PacificA, Lin et al. 2008; leases after Gray and
//! Cheriton 1989):
//!
//! * **What is agreed.** Term, primary and in-sync set change only by a compare-and-set of the
//!   pool ([`Output::Propose`]), and only a member of the set may become primary.
//! * **Promises.** A follower that answers its primary's [`Machine::promise`] will not ask for the
//!   role for as long as it says in the answer. After its own start it keeps the promise that it
//!   may have given before.
//! * **Leases.** A primary answers nothing ([`Machine::may_answer`]) unless a promise of each other
//!   member of the set holds. The argument stands in [`leases`].
//!
//! Confirming a write needs no lease: it waits for the acknowledgement of every member, in the
//! primary's own term.

mod leases;

use std::time::Duration;

use protocol::units::Term;
use protocol::volume::REPLICAS_MAX;
use serde::{Deserialize, Serialize};

use super::bugs::Bug;
use super::{Machine, Output, Phase, Standing};
use crate::state::{Disk, Mask, Role, RoleReason};

/// Pause before the pool is asked again when it could not decide.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// A primary that asks for no promises, as it has no clients, may be silent so many times longer.
const QUIET: u32 = 3;

/// Role and membership as the pool agreed on them, as far as this node knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreed {
    /// Rises by one with each change.
    pub version: u64,
    /// The primary's term.
    pub term: Term,
    /// The primary.
    pub primary: usize,
    /// The replicas of which one may become primary.
    pub in_sync: Mask,
}

/// The machine's share in it; absent where the bricks decide (`quorum=off`).
#[derive(Debug, Clone)]
pub(super) struct Quorum {
    agreed: Agreed,
    /// What the pool was asked for and has not answered yet.
    asked: Option<Agreed>,
    /// It could not decide: not before this.
    ask_after: Duration,
    /// The members of sets that it was asked for without an answer: they may be members while the
    /// pool is at this version.
    in_doubt: Mask,
    /// A claim to the role may still come true while the pool is at this version: no promise is
    /// given to anybody meanwhile.
    claimed: Option<u64>,
    /// Until then this replica asks for no role.
    promised_until: Duration,
    /// When the primary last asked for a promise: it does while it has clients.
    asked_at: Option<Duration>,
}

impl Quorum {
    pub(super) fn new(agreed: Agreed) -> Self {
        Self {
            agreed,
            asked: None,
            ask_after: Duration::ZERO,
            in_doubt: Mask::default(),
            claimed: None,
            promised_until: Duration::ZERO,
            asked_at: None,
        }
    }
}

/// What became of [`Output::Propose`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proposed {
    /// It is agreed.
    Agreed,
    /// The pool was at another version.
    Refused,
    /// Nobody could decide. It may still happen.
    Undecided,
}

impl Machine {
    /// What the pool agreed; `None` where the bricks decide.
    #[must_use]
    pub fn agreed(&self) -> Option<Agreed> {
        self.quorum.as_ref().map(|quorum| quorum.agreed)
    }

    /// Every replica that may be a member by now, as far as this primary can know: nobody else
    /// changes the set in its term.
    pub(super) fn possible_members(&self) -> Mask {
        match &self.quorum {
            Some(quorum) if quorum.agreed.term == self.state.term => {
                let asked = quorum
                    .asked
                    .map_or_else(Mask::default, |asked| asked.in_sync);
                Mask(quorum.agreed.in_sync.0 | asked.0 | quorum.in_doubt.0)
            }
            _ => Mask::default(),
        }
    }

    /// Whether the replica is a member as far as the pool is concerned.
    pub(super) fn is_agreed_member(&self, replica: usize) -> bool {
        self.quorum.as_ref().is_none_or(|quorum| {
            quorum.asked.is_none()
                && quorum.in_doubt == Mask::default()
                && quorum.agreed.term == self.state.term
                && quorum.agreed.in_sync.has(replica)
        })
    }

    /// Whether a claim of the replica to the role may still come true: while the pool counts it as
    /// a member, or was asked something that is not answered. It is taken on only when not, so
    /// that the role never falls to a replica that is between two pictures.
    pub(super) fn may_still_claim(&self, replica: usize) -> bool {
        !self.errs(Bug::TakesOnClaimants)
            && self.quorum.as_ref().is_some_and(|quorum| {
                let possible = Mask(quorum.agreed.in_sync.0 | quorum.in_doubt.0);
                quorum.asked.is_some() || possible.has(replica)
            })
    }

    /// The process starts: promises of before still hold, and what was agreed since is learned.
    pub(super) fn start_quorum(&mut self, now: Duration) {
        let me = self.config.me;
        let forgets = self.errs(Bug::ForgetsPromises);
        let longest = self.longest_promise();
        let Some(quorum) = &mut self.quorum else {
            return;
        };
        if !forgets {
            quorum.promised_until = now + longest;
        }
        // An older agreement than the role: this node has not heard the newer one yet.
        let outdated = quorum.agreed.term < self.state.term;
        if quorum.agreed.primary != me && self.state.role == Role::Primary && !outdated {
            self.depose();
        }
    }

    fn depose(&mut self) {
        self.state.role = Role::Secondary;
        self.state.role_reason = RoleReason::Deposed;
        self.decide();
    }

    /// An operator had the pool decide about roles from now on, beginning with what is agreed; or,
    /// with `None`, has the bricks decide again. All replicas are in sync and connected then.
    pub fn set_agreement(&mut self, now: Duration, agreed: Option<Agreed>) {
        if agreed.is_some() == self.quorum.is_some() {
            return;
        }
        self.joined = self.state.disk == Disk::UpToDate
            && self.state.in_sync.has(self.config.me)
            && self.phase == Phase::Following;
        self.quorum = agreed.map(Quorum::new);
        self.losses.fill(None);
        self.primary_fences = false;
        let longest = self.longest_promise();
        if let Some(quorum) = &mut self.quorum {
            quorum.promised_until = now + longest;
        }
    }

    // ---- what is agreed --------------------------------------------------------------------------

    /// The pool's agreement is this, as far as this node knows.
    pub fn agreement(&mut self, now: Duration, agreed: Agreed) {
        let Some(quorum) = &mut self.quorum else {
            return;
        };
        if agreed.version <= quorum.agreed.version {
            return;
        }
        quorum.agreed = agreed;
        quorum.in_doubt = Mask::default();
        if quorum
            .claimed
            .is_some_and(|version| version < agreed.version)
        {
            quorum.claimed = None;
        }
        if quorum
            .asked
            .is_some_and(|asked| asked.version <= agreed.version)
        {
            quorum.asked = None;
        }
        self.follow_agreement(now);
    }

    /// The pool answered [`Output::Propose`] of `asked`. What it agreed on must have been told by
    /// [`Machine::agreement`] before.
    pub fn proposed(&mut self, now: Duration, asked: Agreed, outcome: Proposed) {
        let forgets = self.errs(Bug::ForgetsWhatItAsked);
        let Some(quorum) = &mut self.quorum else {
            return;
        };
        if quorum.asked != Some(asked) {
            return; // the agreement went on without it
        }
        quorum.asked = None;
        let claim = asked.primary == self.config.me && quorum.claimed == Some(asked.version - 1);
        if outcome == Proposed::Refused && claim {
            quorum.claimed = None;
        }
        if outcome == Proposed::Undecided && !forgets {
            quorum.in_doubt = Mask(quorum.in_doubt.0 | asked.in_sync.0);
        }
        if outcome != Proposed::Agreed {
            quorum.ask_after = now + ASK_AGAIN;
        }
        self.follow_agreement(now);
    }

    fn follow_agreement(&mut self, now: Duration) {
        let Some(agreed) = self.agreed() else {
            return;
        };
        let serves = matches!(
            self.phase,
            Phase::Serving | Phase::HandingOver { .. } | Phase::Activating
        );
        if agreed.term > self.state.term && agreed.primary == self.config.me {
            // A claim leaves everybody else out, a hand-over nobody. Its answer may have been lost.
            let claimed = agreed.in_sync == Mask::of(self.config.me);
            let reason = match self.phase {
                Phase::Claiming { reason } => reason,
                _ if self.joined && claimed => RoleReason::TookOver,
                _ if self.joined => RoleReason::Promoted,
                _ => RoleReason::Resumed,
            };
            // It stopped between the claim and the first act in it: under A and B what it had
            // received may be gone, so it asks the others again.
            let idle = matches!(
                self.phase,
                Phase::Following | Phase::Waiting { .. } | Phase::Pulling { .. }
            );
            if idle && !self.joined && self.needs_every_report() {
                self.wait_for_members(now);
            } else if self.state.disk == Disk::UpToDate {
                // It may serve already, by an older claim whose answer was lost.
                self.stop_serving(reason);
                self.activate_in(agreed.term, reason);
            }
            return;
        }
        if serves && agreed.term > self.state.term {
            self.give_way(agreed);
            return;
        }
        let asked = self.quorum.as_ref().is_some_and(|q| q.asked.is_some());
        if let (Phase::Claiming { .. }, false) = (self.phase, asked) {
            self.phase = if self.joined {
                Phase::Following
            } else {
                Phase::Waiting { until: now }
            };
        }
        if self.leads() && self.decisions_open == 0 {
            self.after_membership_decision(now);
            for replica in 0..REPLICAS_MAX {
                self.assess(replica);
            }
        }
        self.wait_for_members(now);
        self.ask_for_members(now);
        self.ask_for_handover(now);
        self.advance();
    }

    /// Somebody else is primary.
    fn give_way(&mut self, agreed: Agreed) {
        if let Phase::HandingOver { to } = self.phase
            && agreed.primary == to
        {
            self.stop_serving(RoleReason::HandedOver);
            self.outputs.push_back(Output::HandOver {
                to,
                term: agreed.term,
                agreed: Some(agreed),
            });
            self.outputs.push_back(Output::HandedOver { done: true });
            for link in self.links.iter_mut().flatten() {
                link.standing = Standing::Met;
            }
            self.state.role_reason = RoleReason::HandedOver;
        } else {
            self.stop_serving(RoleReason::Deposed);
            self.state.role_reason = RoleReason::Deposed;
        }
        self.phase = Phase::Following;
        self.state.role = Role::Secondary;
        self.decide();
    }

    // ---- asking ----------------------------------------------------------------------------------

    fn ask(&mut self, next: Agreed) {
        let Some(quorum) = &mut self.quorum else {
            return;
        };
        quorum.asked = Some(next);
        self.outputs.push_back(Output::Propose(next));
    }

    /// Whether the pool was asked to pass the role on.
    pub(super) fn handover_asked(&self) -> bool {
        let me = self.config.me;
        let asked = self.quorum.as_ref().and_then(|quorum| quorum.asked);
        asked.is_some_and(|asked| asked.primary != me)
    }

    fn may_ask(&self, now: Duration) -> bool {
        self.quorum
            .as_ref()
            .is_some_and(|quorum| quorum.asked.is_none() && now >= quorum.ask_after)
    }

    /// As primary: has the pool agree on the in-sync set that this replica decided.
    pub(super) fn ask_for_members(&mut self, now: Duration) {
        let Some(agreed) = self.agreed() else {
            return;
        };
        let mine = agreed.primary == self.config.me && agreed.term == self.state.term;
        let orders = self.leads();
        // The next version ends every doubt about what was asked for in this one.
        let doubt = self.quorum.as_ref().is_some_and(|q| q.in_doubt.0 != 0);
        let differs = agreed.in_sync != self.state.in_sync || doubt;
        if orders && mine && differs && self.may_ask(now) {
            self.ask(Agreed {
                version: agreed.version + 1,
                in_sync: self.state.in_sync,
                ..agreed
            });
        }
    }

    /// Has the pool agree that the role goes to the heir, which has everything. The others of the
    /// set have it as well and stay members, in case that it dies just now.
    pub(super) fn ask_for_handover(&mut self, now: Duration) {
        let (Phase::HandingOver { to }, Some(agreed)) = (self.phase, self.agreed()) else {
            return;
        };
        let complete = agreed.in_sync == self.state.in_sync && agreed.in_sync.has(to);
        if self.handover_ready && complete && self.may_ask(now) {
            self.ask(Agreed {
                version: agreed.version + 1,
                term: Term(agreed.term.0.max(self.state.term.0) + 1),
                primary: to,
                in_sync: agreed.in_sync,
            });
        }
    }

    /// Whether what is agreed lets this replica ask for the role: it is in the set of the term
    /// that it follows, or was primary itself. Nobody was ever primary at version 1, so nothing
    /// can be missing here.
    pub(super) fn may_claim(&self) -> bool {
        let Some(quorum) = &self.quorum else {
            return false;
        };
        let agreed = quorum.agreed;
        let current = agreed.term == self.state.term
            || agreed.primary == self.config.me
            || (agreed.version == 1 && self.last.0 == 0);
        agreed.in_sync.has(self.config.me) && self.state.disk == Disk::UpToDate && current
    }

    /// Asks for the role, if promises allow it.
    pub(super) fn claim(&mut self, now: Duration, reason: RoleReason) {
        if !self.may_claim() || !self.may_ask(now) {
            return;
        }
        if self.has_received() && !self.errs(Bug::ClaimsUnapplied) {
            return; // it may be confirmed: first it is applied
        }
        let me = self.config.me;
        let term = self.state.term;
        let Some(quorum) = &mut self.quorum else {
            return;
        };
        if now < quorum.promised_until {
            return;
        }
        let agreed = quorum.agreed;
        quorum.claimed = Some(agreed.version);
        self.phase = Phase::Claiming { reason };
        self.ask(Agreed {
            version: agreed.version + 1,
            term: Term(agreed.term.0.max(term.0) + 1),
            primary: me,
            in_sync: Mask::of(me),
        });
    }

    /// As follower whose claim nobody answered, and whose primary is there after all: has the pool
    /// agree on the same once more. With that version the claim can come true no more, and promises
    /// are given again; the primary, which misses nobody, would ask for nothing.
    pub(super) fn take_back_claim(&mut self, now: Duration) {
        let Some(agreed) = self.agreed() else {
            return;
        };
        let claimed = self.quorum.as_ref().and_then(|quorum| quorum.claimed);
        let follows = self.standing(agreed.primary) == Some(Standing::MyPrimary);
        let idle = self.phase == Phase::Following && follows;
        if claimed == Some(agreed.version) && idle && self.may_ask(now) {
            self.ask(Agreed {
                version: agreed.version + 1,
                ..agreed
            });
        }
    }

    /// As follower: asks for the role when the primary is gone, or silent for too long (FO-1).
    pub(super) fn look_after_primary(&mut self, now: Duration) {
        let Some(agreed) = self.agreed() else {
            return;
        };
        if self.phase != Phase::Following || agreed.primary == self.config.me || !self.joined {
            return;
        }
        let gone = self.links[agreed.primary]
            .as_ref()
            .is_none_or(|link| now >= link.heard + self.silence(link));
        if gone {
            self.claim(now, RoleReason::TookOver);
        }
    }

    /// How long the primary may be silent before it is taken for gone. One without clients has
    /// less to say, and nobody waits for another.
    fn silence(&self, link: &super::Link) -> Duration {
        let claim_after = self.config.claim_after;
        let asked_at = self.quorum.as_ref().and_then(|quorum| quorum.asked_at);
        if asked_at.is_some_and(|at| link.heard <= at + claim_after) {
            claim_after
        } else {
            claim_after * QUIET
        }
    }

    /// When a follower that lost its primary wants to be looked at.
    pub(super) fn quorum_deadline(&self) -> Option<Duration> {
        let quorum = self.quorum.as_ref()?;
        match self.phase {
            Phase::Following if self.joined => {
                let primary = self.links[quorum.agreed.primary].as_ref();
                let silent = primary.map(|link| link.heard + self.silence(link));
                let free = quorum.promised_until.max(quorum.ask_after);
                Some(silent.map_or(free, |at| at.max(free)))
            }
            Phase::Waiting { .. } => Some(quorum.promised_until.max(quorum.ask_after)),
            Phase::Serving | Phase::HandingOver { .. } => Some(quorum.ask_after),
            _ => None,
        }
    }
}
