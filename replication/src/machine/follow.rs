//! The machine as a follower, and the planned passing of the role from one replica to another.

use std::time::Duration;

use protocol::units::{Sequence, Term};
use protocol::volume::REPLICAS_MAX;

use super::bugs::Bug;
use super::{Agreed, DropReason, FlushId, Machine, Output, Phase, Refusal, Standing};
use crate::state::{Disk, How, Mask, Membership, Role, RoleReason, Welcome};

impl Machine {
    // ---- following ---------------------------------------------------------------------------

    /// A primary takes this replica on.
    pub fn welcomed(
        &mut self,
        now: Duration,
        from: usize,
        welcome: &Welcome,
    ) -> Result<(), Refusal> {
        let earlier = welcome.term < self.state.term && !self.errs(Bug::FollowsEarlierTerms);
        let layout = welcome.layout != self.state.places.version;
        if earlier || layout || self.links[from].is_none() {
            return Err(Refusal::OutOfPlace);
        }
        if self.phase == Phase::Serving && welcome.term == self.state.term {
            return Err(Refusal::OutOfPlace);
        }
        let basis = welcome.how == How::Records && welcome.basis != self.last;
        let basis = basis && !self.errs(Bug::IgnoresTheBasis);
        let revision = welcome.revision != self.revision && !self.errs(Bug::IgnoresTheRevision);
        if basis || revision {
            return Err(Refusal::OutOfPlace); // they meet again, and decide on what is now
        }
        self.revision += 1;
        self.stop_serving(RoleReason::Followed);
        for link in self.links.iter_mut().flatten() {
            link.standing = Standing::Met;
        }
        let link = self.links[from].as_mut().ok_or(Refusal::NotConnected)?;
        link.standing = Standing::MyPrimary;
        link.heard = now;
        if self.state.role == Role::Primary {
            self.state.role_reason = RoleReason::Followed;
        }
        self.state.role = Role::Secondary;
        self.state.term = welcome.term;
        self.state.line = welcome.line.clone();
        self.state.in_sync = welcome.in_sync;
        self.state.since = welcome.since;
        self.state.handed_to = None;
        self.state.disk = match welcome.how {
            How::Records if self.state.disk == Disk::UpToDate && self.last == welcome.at => {
                Disk::UpToDate
            }
            How::Records => Disk::Consistent,
            How::Resync => Disk::Inconsistent,
        };
        self.phase = Phase::Following;
        self.joined = false;
        self.tail_fetched = false;
        if welcome.how == How::Resync {
            self.state.knows_after = welcome.at;
        }
        self.decide();
        if welcome.how == How::Resync {
            self.last = welcome.at;
            self.applied = welcome.at;
            self.stable = welcome.at;
            self.suspects = 0;
            self.outputs
                .push_back(Output::BeginResync { at: welcome.at });
        }
        Ok(())
    }

    /// A record arrived from the primary or, while pulling, from a member. It must be the next.
    /// The driver applies it, now or when it can, and then calls [`Machine::followed`].
    ///
    /// # Errors
    /// [`Refusal::OutOfPlace`] where it is not the next or comes from somebody else.
    pub fn received(&self, from: usize, sequence: Sequence, term: Term) -> Result<(), Refusal> {
        let expected = match self.phase {
            Phase::Pulling { from: source } => source == from,
            Phase::Following => self.standing(from) == Some(Standing::MyPrimary),
            _ => false,
        };
        if !expected || sequence != self.last.next() || term > self.state.term {
            return Err(Refusal::OutOfPlace);
        }
        Ok(())
    }

    /// The record that arrived is part of the brick now: only from here on it counts as here.
    pub fn followed(&mut self, sequence: Sequence) {
        assert_eq!(sequence, self.last.next(), "records follow one another");
        self.last = sequence;
    }

    /// The primary says that this replica is in sync, or how the set changed.
    pub fn membership_changed(
        &mut self,
        from: usize,
        membership: &Membership,
        joined: bool,
    ) -> Result<(), Refusal> {
        let layout = membership.layout != self.state.places.version;
        let other = self.standing(from) != Some(Standing::MyPrimary);
        if other || layout || membership.term != self.state.term {
            return Err(Refusal::OutOfPlace);
        }
        let left = Mask(self.state.in_sync.0 & !membership.in_sync.0);
        let left = Mask(left.0 & self.staying().0).without(self.config.me);
        for replica in left.iter() {
            let since = membership.since[replica];
            self.outputs
                .push_back(Output::MarkDirtySince { replica, since });
        }
        self.joined = membership.in_sync.has(self.config.me) && (joined || self.joined);
        self.state.line = membership.line.clone();
        self.state.in_sync = membership.in_sync;
        self.state.since = membership.since;
        if joined {
            self.state.disk = Disk::UpToDate;
            self.suspects = 0;
        }
        self.decide();
        Ok(())
    }

    /// A later term is there. Where the bricks decide, the role stays what it was until the other
    /// primary takes this replica on: what it confirmed alone must be found as a primary's.
    pub(super) fn step_down(&mut self) {
        self.stop_serving(RoleReason::Followed);
        self.phase = Phase::Following;
        if self.quorum.is_some() {
            self.state.role = Role::Secondary;
        }
        self.state.role_reason = RoleReason::Followed;
        self.decide();
    }

    /// An operator makes this replica primary although the last one is gone, and with it perhaps
    /// what only that one confirmed. Only where the bricks decide.
    ///
    /// # Errors
    /// A [`Refusal`] that says what stands against it.
    pub fn take_by_force(&mut self) -> Result<(), Refusal> {
        if self.quorum.is_some() {
            return Err(Refusal::PoolDecides);
        }
        match self.phase {
            Phase::Following | Phase::Waiting { .. } => {}
            _ => return Err(Refusal::AlreadyPrimary),
        }
        let serves =
            |link: &super::Link| link.report.serving || link.standing == Standing::MyPrimary;
        if self.links.iter().flatten().any(serves) {
            return Err(Refusal::PrimaryServes);
        }
        if !matches!(self.state.disk, Disk::UpToDate | Disk::Consistent) {
            return Err(Refusal::NotWhole);
        }
        self.state.disk = Disk::UpToDate;
        self.activate(RoleReason::Forced);
        Ok(())
    }

    /// An operator ends a split brain: this side stays, what any other side alone has is given up.
    ///
    /// # Errors
    /// A [`Refusal`] that says what stands against it.
    pub fn keep_this_side(&mut self) -> Result<(), Refusal> {
        if self.quorum.is_some() {
            return Err(Refusal::PoolDecides);
        }
        if !matches!(self.state.disk, Disk::UpToDate | Disk::Consistent) {
            return Err(Refusal::NotWhole);
        }
        let terms = self.links.iter().flatten().map(|link| link.report.term);
        let highest = terms.max().unwrap_or_default().max(self.state.term);
        self.stop_serving(RoleReason::Forced);
        self.state.disk = Disk::UpToDate;
        self.giving_up = self.staying().without(self.config.me);
        self.activate_in(Term(highest.0 + 1), RoleReason::Forced);
        // They meet again, and the others learn of the later term.
        for replica in 0..REPLICAS_MAX {
            if self.links[replica].is_some() {
                self.drop_link(replica, DropReason::RoleMoved);
            }
        }
        Ok(())
    }

    pub(super) fn stop_serving(&mut self, reason: RoleReason) {
        if matches!(self.phase, Phase::Serving | Phase::HandingOver { .. }) {
            self.flushes.clear();
            self.handover_flush = None;
            self.entering = Mask::default();
            self.joining = Mask::default();
            self.outputs.push_back(Output::StoppedServing { reason });
        }
    }

    // ---- hand-over ---------------------------------------------------------------------------

    /// Hands the role to a member of the in-sync set: orders nothing more, waits until everything
    /// is confirmed and stable there, then gives the role away.
    pub fn hand_over(&mut self, to: usize) -> Result<(), Refusal> {
        match self.phase {
            Phase::Serving => {}
            Phase::HandingOver { .. } => return Err(Refusal::HandingOver),
            _ => return Err(Refusal::NotServing),
        }
        if to >= REPLICAS_MAX || self.links[to].is_none() {
            return Err(Refusal::NotConnected);
        }
        if self.standing(to) != Some(Standing::InSync) || !self.staying().has(to) {
            return Err(Refusal::NotInSync);
        }
        self.phase = Phase::HandingOver { to };
        self.handover_ready = false;
        self.advance_handover();
        Ok(())
    }

    /// The flush that a hand-over waits for, once, when everything is confirmed. The driver
    /// starts it like any other.
    pub fn handover_flush(&mut self) -> Option<FlushId> {
        let ready = matches!(self.phase, Phase::HandingOver { .. })
            && (self.confirmed == self.last || self.errs(Bug::HandsOverEarly))
            && self.handover_flush.is_none()
            && !self.handover_ready
            && self.state.handed_to.is_none();
        if !ready {
            return None;
        }
        let id = self.begin_flush().ok()?;
        self.handover_flush = Some(id);
        Some(id)
    }

    pub(super) fn advance_handover(&mut self) {
        if let Phase::HandingOver { to } = self.phase
            && self.standing(to) != Some(Standing::InSync)
        {
            self.cancel_handover();
        }
    }

    pub(super) fn decide_handover(&mut self) {
        let Phase::HandingOver { to } = self.phase else {
            return;
        };
        if self.quorum.is_some() {
            self.handover_ready = true;
            return; // the pool is asked next
        }
        self.state.role = Role::Secondary;
        self.state.role_reason = RoleReason::HandedOver;
        self.state.handed_to = Some(to);
        self.decide();
    }

    pub(super) fn cancel_handover(&mut self) {
        if self.state.handed_to.is_some() || self.handover_asked() {
            return; // the decision is on its way: it stands
        }
        self.handover_flush = None;
        self.handover_ready = false;
        self.phase = Phase::Serving;
        self.outputs.push_back(Output::HandedOver { done: false });
    }

    /// The primary handed its role to this replica; `agreed` by the pool, where it decides.
    pub fn handed_over(
        &mut self,
        now: Duration,
        from: usize,
        term: Term,
        agreed: Option<Agreed>,
    ) -> Result<(), Refusal> {
        if let Some(agreed) = agreed {
            let known = self.agreed().ok_or(Refusal::OutOfPlace)?;
            if agreed.version > known.version {
                self.is_even(from);
                self.heir_of = Some(from);
                self.agreement(now, agreed);
            }
            return Ok(());
        }
        let fits = self.phase == Phase::Following
            && self.quorum.is_none()
            && self.standing(from) == Some(Standing::MyPrimary)
            && self.state.disk == Disk::UpToDate
            && term.0 == self.state.term.0 + 1;
        if !fits {
            return Err(Refusal::OutOfPlace);
        }
        self.take_over(from);
        Ok(())
    }

    pub(super) fn take_over(&mut self, from: usize) {
        if self.state.disk != Disk::UpToDate || !self.state.in_sync.has(self.config.me) {
            return;
        }
        self.is_even(from);
        self.activate(RoleReason::Promoted);
    }

    /// The primary that hands its role over ordered nothing that this replica lacks.
    fn is_even(&mut self, from: usize) {
        let last = self.last;
        if let Some(link) = self.links[from].as_mut() {
            link.standing = Standing::Met;
            link.report.role = Role::Secondary;
            link.report.serving = false;
            link.report.last = link.report.last.max(last);
            link.report.line = self.state.line.clone();
            link.report.stable = link.report.last;
            link.report.disk = Disk::UpToDate;
            link.report.suspects = 0;
            link.report.handed_to = None;
        }
    }
}
