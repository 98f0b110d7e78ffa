//! The machine as a follower, and the planned passing of the role from one replica to another.

use std::time::Duration;

use protocol::units::{Sequence, Term, is_within_reach};
use protocol::volume::REPLICAS_MAX;

use super::bugs::Bug;
use super::flushes::Own;
use super::{Agreed, DropReason, Machine, Output, Phase, Position, Refusal, Standing};
use crate::state::{Disk, How, Mask, Membership, Role, RoleReason, Welcome};

impl Machine {
    // ---- following ---------------------------------------------------------------------------

    /// Whether [`Machine::welcomed`] would take this on: what has to be prepared for it can be
    /// prepared now.
    ///
    /// # Errors
    /// As [`Machine::welcomed`].
    pub fn may_be_welcomed(&self, from: usize, welcome: &Welcome) -> Result<(), Refusal> {
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
        Ok(())
    }

    /// The whole picture that is here now is retained in the brick under this number, or none is:
    /// durable with the next decision, which a resync is.
    pub fn retained(&mut self, point: Option<u64>) {
        self.state.point = point;
    }

    /// A primary takes this replica on.
    ///
    /// # Errors
    /// [`Refusal::OutOfPlace`] where it decided on something that is not so any more.
    pub fn welcomed(
        &mut self,
        now: Duration,
        from: usize,
        welcome: &Welcome,
    ) -> Result<(), Refusal> {
        self.may_be_welcomed(from, welcome)?;
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
        self.forget_told();
        self.state.handed_to = None;
        self.state.taken_from = None;
        // From here on another primary brings them up to date, by marks that are not here.
        self.state.targets = Mask::default();
        self.state.disk = match welcome.how {
            How::Records if self.state.disk == Disk::UpToDate && self.last == welcome.at => {
                Disk::UpToDate
            }
            How::Records => Disk::Consistent,
            How::Resync => Disk::Inconsistent,
        };
        self.state.policy = welcome.policy;
        self.primary_fences = welcome.fences;
        self.phase = Phase::Following;
        self.joined = false;
        self.forced = false;
        self.tail_fetched = false;
        self.giving_up = Mask::default();
        self.losses.fill(None);
        self.forget_received();
        if welcome.how == How::Resync {
            self.state.knows_after = welcome.at;
        }
        self.decide();
        if welcome.how == How::Resync {
            self.last = welcome.at;
            self.received = welcome.at;
            self.applied = welcome.at;
            self.stable = welcome.at;
            self.suspects = 0;
            self.outputs
                .push_back(Output::BeginResync { at: welcome.at });
        }
        Ok(())
    }

    /// A record arrived from the primary or, while pulling, from a member. It must be the next.
    /// The driver keeps it in memory, applies it in its turn, also where the connection is gone by
    /// then, and calls [`Machine::followed`]; or drops all that it has not applied when
    /// [`Machine::asked`] or [`Machine::welcomed`] says so, and by [`Machine::forget_received`].
    ///
    /// # Errors
    /// [`Refusal::OutOfPlace`] where it is not the next or comes from somebody else.
    pub fn received(&mut self, from: usize, sequence: Sequence, term: Term) -> Result<(), Refusal> {
        let expected = match self.phase {
            Phase::Pulling { from: source } => source == from,
            Phase::Following => self.standing(from) == Some(Standing::MyPrimary),
            _ => false,
        };
        if !expected || sequence != self.received.next() || term > self.state.term {
            return Err(Refusal::OutOfPlace);
        }
        self.received = sequence;
        Ok(())
    }

    /// The record that arrived is part of the brick now: only from here on it counts as here.
    pub fn followed(&mut self, sequence: Sequence) {
        assert_eq!(sequence, self.last.next(), "records follow one another");
        assert!(sequence <= self.received, "it was received");
        self.last = sequence;
    }

    /// More extents are in doubt here: a record that was fetched from a member brings the data of
    /// large writes as a crash may have left it there. Said before that record is applied.
    pub fn doubts_more(&mut self, extents: u64) {
        self.suspects = self.suspects.saturating_add(extents);
    }

    /// What was received and not applied is dropped: nobody relies on it.
    pub fn forget_received(&mut self) {
        self.received = self.last;
    }

    /// What was received can never be applied, although it was acknowledged: as after a start of
    /// the process, others may have what was confirmed and is not here.
    pub fn lose_received(&mut self) {
        self.forget_received();
        self.joined = false;
    }

    /// Whether records wait in memory. Until they are applied this replica must not tell anybody
    /// anew where it stands, nor does it ask for the role: they may be confirmed (protocol B).
    #[must_use]
    pub fn has_received(&self) -> bool {
        self.received > self.last
    }

    /// As follower: where it is, for its primary.
    #[must_use]
    pub fn position_here(&self) -> Position {
        Position {
            received: self.received,
            applied: self.last,
            stable: self.stable.min(self.last),
            policy: self.durable.policy.version,
        }
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
        self.state.policy = membership.policy;
        self.primary_fences = membership.fences;
        if joined {
            self.state.point = None;
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
    /// what only that one confirmed. Where the pool decides it still has to agree, and this replica
    /// must be one of those that may be primary: it does not wait for the others' reports any more.
    ///
    /// # Errors
    /// A [`Refusal`] that says what stands against it.
    pub fn take_by_force(&mut self, now: Duration) -> Result<(), Refusal> {
        match self.phase {
            Phase::Following | Phase::Waiting { .. } => {}
            Phase::Claiming { .. } => return Err(Refusal::PoolDecides),
            Phase::Serving => return self.go_on_by_force(),
            _ => return Err(Refusal::AlreadyPrimary),
        }
        let serves =
            |link: &super::Link| link.report.serving || link.standing == Standing::MyPrimary;
        if self.links.iter().flatten().any(serves) {
            return Err(Refusal::PrimaryServes);
        }
        if self.has_received() {
            return Err(Refusal::StillApplying);
        }
        let whole = matches!(self.state.disk, Disk::UpToDate | Disk::Consistent);
        if !whole && !self.errs(Bug::ServesTheMixture) {
            return Err(Refusal::NotWhole);
        }
        if self.quorum.is_some() {
            if !self.may_claim() {
                return Err(Refusal::PoolDecides);
            }
            self.forced = true;
            self.phase = Phase::Waiting { until: now };
            self.claim(now, RoleReason::Forced);
            return Ok(());
        }
        self.state.disk = Disk::UpToDate;
        // Whoever is connected and knows a later term would have it step down again.
        self.activate_in(self.next_term(self.highest_term()), RoleReason::Forced);
        Ok(())
    }

    /// What [`Machine::take_by_force`] began did not come about in time: the replica waits again.
    pub fn force_no_more(&mut self) {
        self.forced = false;
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
        self.giving_up = self.staying().without(self.config.me);
        // The role is given to it anew, and so later than to whoever it meets, however often that
        // one was started again since.
        self.state.role = Role::Secondary;
        self.keep(RoleReason::Forced);
        Ok(())
    }

    /// Whether an operator said so of this side, and has not met all that is given up since.
    #[must_use]
    pub fn is_this_side_kept(&self) -> bool {
        let others = self.staying().without(self.config.me);
        let all = others.iter().all(|other| self.giving_up.has(other));
        self.state.role_reason == RoleReason::Forced && all
    }

    /// The latest term that this replica knows of, also from whoever was connected before: what an
    /// operator decides about a side must not depend on whether its link is up at that moment.
    fn highest_term(&self) -> Term {
        let terms = self.links.iter().flatten().map(|link| link.report.term);
        let now = terms.max().unwrap_or_default();
        now.max(self.state.term).max(self.heard_of)
    }

    /// This side stays: it serves in a later term than anybody knows, and the others learn of that.
    pub(super) fn keep(&mut self, reason: RoleReason) {
        self.stop_serving(reason);
        self.state.disk = Disk::UpToDate;
        self.activate_in(self.next_term(self.highest_term()), reason);
        for replica in 0..REPLICAS_MAX {
            if self.links[replica].is_some() {
                self.drop_link(replica, DropReason::RoleMoved);
            }
        }
    }

    pub(super) fn stop_serving(&mut self, reason: RoleReason) {
        if self.leads() {
            self.flushes.clear();
            self.own_flushes.clear();
            self.tightens = None;
            self.settling = false;
            self.entering = Mask::default();
            self.joining = Mask::default();
            self.losses.fill(None);
            for link in self.links.iter_mut().flatten() {
                link.unpromised_since = None;
            }
            self.outputs.push_back(Output::StoppedServing { reason });
        }
    }

    // ---- hand-over ---------------------------------------------------------------------------

    /// Hands the role to a member of the in-sync set: orders nothing more, waits until everything
    /// is confirmed and stable there, then gives the role away.
    pub fn hand_over(&mut self, to: usize) -> Result<(), Refusal> {
        self.may_order()?;
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

    /// Whether everything is in place for a hand-over but for stable storage.
    pub(super) fn handover_wants_flush(&self) -> bool {
        let given = self.confirmed == self.last && self.covered() == self.last;
        matches!(self.phase, Phase::HandingOver { .. })
            && (given || self.errs(Bug::HandsOverEarly))
            && !self.handover_ready
            && self.state.handed_to.is_none()
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
        self.own_flushes.retain(|(_, own)| *own != Own::HandOver);
        self.handover_ready = false;
        self.phase = Phase::Serving;
        self.adjust_policy();
        self.outputs.push_back(Output::HandedOver { done: false });
        // Whoever was met meanwhile was neither judged nor followed.
        let met = |link: &super::Link| link.standing == Standing::Met;
        let term = self.state.term;
        let mut links = self.links.iter().flatten();
        if links.any(|link| met(link) && link.report.term > term) {
            return self.step_down();
        }
        for replica in 0..REPLICAS_MAX {
            self.assess(replica);
        }
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
                // It is about this replica, or no word from one replica to another.
                let me = self.config.me;
                let mine = agreed.primary == me && agreed.in_sync.has(me);
                let follows = is_within_reach(agreed.term, self.last);
                if !mine || !follows || agreed.term <= self.state.term {
                    return Err(Refusal::OutOfPlace);
                }
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
