//! Fencing, where the bricks decide about roles and the volume has a command for it (ONE-2).
//!
//! * **The primary** that loses a member of its set goes on only when that one cannot take over any
//!   more: it was fenced, or it is known as outdated, as it follows this primary anew or said
//!   before that it goes. Until then the lost one stays in the set, so nothing is confirmed, and
//!   nothing is answered.
//! * **The secondary** that loses its primary takes over only when it has fenced it. It may do so
//!   only if it is in sync by the word of that very primary, since its own process started: so no
//!   replica that was fenced takes over when it is back. With more than two replicas none does.
//! * **Both at once.** The secondary waits for longer than the primary before it shoots. If both
//!   shoot all the same, both are down, and nothing is lost.
//! * **After a start** nobody shoots. A primary whose set has others waits until they reported, or
//!   for an operator's word: it may itself have been fenced, and another be primary.

use std::time::Duration;

use protocol::volume::REPLICAS_MAX;

use super::bugs::Bug;
use super::{DropReason, Machine, Output, Phase, Refusal, Standing};
use crate::state::{Disk, Mask, RoleReason};

/// How fencing is done in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fencing {
    /// How long a primary waits for a replica to come back before it shoots.
    pub grace: Duration,
    /// How much longer a secondary waits.
    pub delay: Duration,
    /// How long after a failure it is tried again.
    pub again: Duration,
}

/// A replica that is gone and has to be fenced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// At this time.
    Due(Duration),
    /// The command runs.
    Runs,
    /// As secondary: it was fenced, and the role is free.
    Fenced,
}

/// How fencing stands, for status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suspended {
    /// Whom it is about.
    pub replica: usize,
    /// The command runs just now.
    pub runs: bool,
}

impl Machine {
    /// Another way of fencing, or none any more. Members are told so; until they know that there
    /// is none any more, they are waited for as before. One that is gone is waited for no longer.
    pub fn set_fencing(&mut self, fencing: Option<Fencing>) {
        let before = std::mem::replace(&mut self.config.fencing, fencing);
        if before.is_some() == fencing.is_some() || !self.serves() || self.quorum.is_some() {
            return;
        }
        for replica in self.state.in_sync.without(self.config.me).iter() {
            if self.links[replica].is_none() {
                self.go_on_without(replica);
            } else if fencing.is_none() {
                self.losses[replica] = Some(Loss::Due(Duration::MAX));
                self.drop_link(replica, DropReason::RoleMoved);
            }
        }
        self.decide();
    }

    /// What members are told: this primary goes on without one of them only as the module says.
    pub(super) fn fences(&self) -> bool {
        self.fencing().is_some()
    }

    /// As primary that comes back: who may have been in sync by an earlier word is waited for until
    /// it follows anew.
    pub(super) fn keep_candidates(&mut self) -> Mask {
        let others = Mask(self.state.in_sync.0 & self.staying().0).without(self.config.me);
        let alone = Mask::of(self.config.me);
        if self.fencing().is_none() || self.belonging().count() != 2 {
            return alone;
        }
        others.iter().fold(alone, |set, replica| {
            self.losses[replica] = Some(Loss::Due(Duration::MAX));
            set.with(replica)
        })
    }

    fn fencing(&self) -> Option<Fencing> {
        self.config.fencing.filter(|_| self.quorum.is_none())
    }

    /// Whom this replica has to fence before it goes on as primary, or becomes primary.
    #[must_use]
    pub fn suspended(&self) -> Option<Suspended> {
        let found = self.losses.iter().position(Option::is_some)?;
        Some(Suspended {
            replica: found,
            runs: self.losses[found] == Some(Loss::Runs),
        })
    }

    /// Whether this primary answers nothing, as a member of its set is gone and not fenced.
    pub(super) fn is_suspended(&self) -> bool {
        self.leads() && self.losses.iter().any(Option::is_some)
    }

    /// The replica says that its process ends in order: until it is met again it neither serves
    /// nor asks for the role.
    pub fn parting(&mut self, replica: usize) {
        if self.links[replica].is_some() {
            self.parted = self.parted.with(replica);
        }
    }

    /// As primary: a member of the set is gone. True: it stays a member until it is fenced.
    pub(super) fn suspend_for(&mut self, now: Duration, replica: usize) -> bool {
        let unfenced = self.errs(Bug::GoesOnUnfenced);
        if self.parted.has(replica) || !self.staying().has(replica) || unfenced {
            self.losses[replica] = None;
            return false;
        }
        match (self.fencing(), self.losses[replica]) {
            (_, Some(Loss::Runs)) => {}
            (Some(fencing), _) => self.losses[replica] = Some(Loss::Due(now + fencing.grace)),
            // It may still rely on what it was told before.
            (None, Some(_)) => {}
            (None, None) => return false,
        }
        true
    }

    /// A replica is gone that did not get records: the primary, or one that was not taken on yet.
    pub(super) fn look_after_loss(&mut self, now: Duration, replica: usize) {
        let serves = matches!(
            self.phase,
            Phase::Serving | Phase::HandingOver { .. } | Phase::Activating
        );
        if !serves {
            self.look_to_succeed(now, replica);
        } else if self.losses[replica].is_some() && !self.suspend_for(now, replica) {
            self.leave_set(replica);
            self.decide();
        }
    }

    /// As secondary: the primary is gone. It is fenced, unless it is back soon.
    pub(super) fn look_to_succeed(&mut self, now: Duration, primary: usize) {
        if self.parted.has(primary) && self.quorum.is_none() {
            self.joined = false; // it comes back as what it was
        }
        let Some(fencing) = self.fencing().filter(|_| self.may_succeed()) else {
            return;
        };
        if self.losses[primary].is_none() {
            self.losses[primary] = Some(Loss::Due(now + fencing.grace + fencing.delay));
        }
    }

    fn may_succeed(&self) -> bool {
        self.phase == Phase::Following
            && self.joined
            && self.primary_fences
            && self.state.disk == Disk::UpToDate
            && self.state.in_sync.has(self.config.me)
            && self.belonging().count() == 2
            && self.staying().has(self.config.me)
    }

    /// The replica is met: nobody is to be fenced for it, as far as a secondary is concerned. A
    /// primary takes it on first.
    pub(super) fn met_again(&mut self, replica: usize) {
        self.parted = self.parted.without(replica);
        let serves = self.leads();
        if !serves && self.losses[replica] != Some(Loss::Runs) {
            self.losses[replica] = None;
        }
    }

    /// As primary: the replica follows anew, and knows by that that it is not in sync.
    pub(super) fn is_outdated(&mut self, replica: usize) {
        let follows = self.links[replica].as_ref().is_some_and(|link| {
            matches!(
                link.standing,
                Standing::Sourcing(_) | Standing::Catching { .. }
            )
        });
        if follows && self.losses[replica].is_some() {
            self.go_on_without(replica);
        }
    }

    /// The command of [`Output::Fence`] ended.
    pub fn fenced(&mut self, now: Duration, replica: usize, done: bool) {
        if self.losses[replica] != Some(Loss::Runs) {
            return; // it was met again, or an operator spoke
        }
        let again = self.fencing().map_or(Duration::ZERO, |it| it.again);
        if !done && !self.errs(Bug::IgnoresTheFence) {
            self.losses[replica] = Some(Loss::Due(now + again));
            self.forget_losses();
        } else if self.leads() {
            self.go_on_without(replica);
        } else {
            self.losses[replica] = Some(Loss::Fenced);
            self.succeed();
        }
    }

    /// An operator says that whoever is gone is down: a suspended primary goes on.
    pub(super) fn go_on_by_force(&mut self) -> Result<(), Refusal> {
        if !self.is_suspended() {
            return Err(Refusal::AlreadyPrimary);
        }
        for replica in 0..REPLICAS_MAX {
            self.go_on_without(replica);
        }
        Ok(())
    }

    /// The replica leaves the set: it cannot take over.
    fn go_on_without(&mut self, replica: usize) {
        let lost = self.losses[replica].take();
        let serves = self.leads();
        if lost.is_none() || !serves || !self.state.in_sync.has(replica) {
            return;
        }
        if self.links[replica].is_some() && lost == Some(Loss::Runs) {
            self.drop_link(replica, DropReason::RoleMoved);
        }
        self.leave_set(replica);
        self.decide();
    }

    /// As secondary that fenced the primary: takes over.
    fn succeed(&mut self) {
        let fenced = self.losses.iter().position(|it| *it == Some(Loss::Fenced));
        if fenced.is_none() || self.has_received() {
            return; // what it received is applied first
        }
        self.losses.fill(None);
        if self.may_succeed() {
            self.state.taken_from = fenced;
            self.activate(RoleReason::Fenced);
        }
    }

    /// A secondary that is none any more, or not in sync, has nobody to fence.
    fn forget_losses(&mut self) {
        let serves = self.leads();
        if !serves && !self.may_succeed() {
            for loss in &mut self.losses {
                if matches!(loss, Some(Loss::Due(_))) {
                    *loss = None;
                }
            }
        }
    }

    /// Whoever is due is fenced.
    pub(super) fn shoot(&mut self, now: Duration) {
        self.forget_losses();
        self.succeed();
        for replica in 0..REPLICAS_MAX {
            let due = matches!(self.losses[replica], Some(Loss::Due(at)) if now >= at);
            if due && self.links[replica].is_none() {
                self.losses[replica] = Some(Loss::Runs);
                self.outputs.push_back(Output::Fence { replica });
            }
        }
    }

    /// When somebody is due.
    pub(super) fn fencing_deadline(&self) -> Option<Duration> {
        let due = self
            .losses
            .iter()
            .enumerate()
            .filter_map(|(replica, loss)| {
                let Some(Loss::Due(at)) = loss else {
                    return None;
                };
                self.links[replica].is_none().then_some(*at)
            });
        due.min()
    }

    /// After a start: whether this primary waits for the others of its set however long it takes.
    #[must_use]
    pub fn waits_for_the_others(&self) -> bool {
        self.fencing().is_some() && matches!(self.phase, Phase::Waiting { .. })
    }

    /// A place has another brick, or none: nobody is lost there.
    pub(super) fn forget_loss(&mut self, replica: usize) {
        self.losses[replica] = None;
        self.parted = self.parted.without(replica);
        self.state.taken_from = self.state.taken_from.filter(|from| *from != replica);
    }

    /// The set as decided loses the replica; the caller decides.
    pub(super) fn leave_set(&mut self, replica: usize) {
        self.state.in_sync = self.state.in_sync.without(replica);
        let generation = self.fresh_generation();
        let term = self.state.term;
        self.state.line.begin(generation, term, self.last);
    }
}
