//! The machine of one replica of one volume.
//!
//! # How to drive it
//!
//! Call a method for what happened, then take every [`Output`] with [`Machine::poll`] and carry
//! it out in order before the next event. `now` is any clock that never steps back, as a
//! duration. [`Machine::deadline`] says when [`Machine::tick`] wants to be called next.
//!
//! # Life of a replica
//!
//! ```text
//!                  start: it was primary
//!            ┌───────────────────────────────► Waiting ──► Pulling ──┐
//!            │   (members of the in-sync set      │  a member has    │
//! Following ─┤    report, or the wait is over)    │  a longer tail   │
//!   ▲   ▲    │                                    ▼                  │
//!   │   │    └─ hand-over received ─────► Activating ◄───────────────┘
//!   │   │                                     │ decision durable
//!   │   └── a later term is met ── Serving ◄──┘
//!   └────── decision durable ── HandingOver
//! ```
//!
//! A record is *confirmed* when it is applied here and every member of the in-sync set, as durably
//! decided, gives the evidence that the ack policy asks for ([`policy`]). While a change of the set
//! is being made durable, both the old and the new set are waited for.

mod bugs;
mod fencing;
mod flushes;
mod follow;
mod meet;
mod output;
mod places;
pub mod policy;
mod positions;
mod queue;
mod quorum;
mod splits;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use protocol::ids::GenerationId;
use protocol::units::{Sequence, Term};
use protocol::volume::REPLICAS_MAX;

use crate::line::Relation;
use crate::split::Split;
use crate::state::{Disk, DurableState, Mask, Membership, Report, Role, RoleReason};

pub use bugs::Bug;
#[cfg(any(test, debug_assertions))]
pub use bugs::make_mistake;
use fencing::Loss;
pub use fencing::{Fencing, Suspended};
use flushes::{Flush, Own};
pub use output::{Config, DropReason, FlushId, Output, Phase, Refusal, Standing};
use policy::Missing;
pub use policy::Position;
pub use positions::Stable;
pub use queue::Lag;
use queue::Queue;
use quorum::Quorum;
pub use quorum::{Agreed, Proposed};

#[derive(Debug, Clone)]
struct Link {
    report: Report,
    standing: Standing,
    received: Sequence,
    applied: Sequence,
    stable: Sequence,
    /// The version of the policy in force that it knows durably.
    policy: u64,
    /// It is beyond the bound of its queue: its connection is being closed.
    leaving: bool,
    heard: Duration,
    behind_since: Option<Duration>,
    /// It acknowledged something since it was taken on: it is what it told.
    acknowledged: bool,
    /// As primary: until then it promised to ask for no role.
    lease_until: Duration,
    /// As primary: a promise was asked for then, and none was given since.
    unpromised_since: Option<Duration>,
    /// Both went on as primary.
    split: Option<Split>,
}

impl Link {
    fn gets_records(&self) -> bool {
        matches!(
            self.standing,
            Standing::Sourcing(_) | Standing::Catching { .. } | Standing::InSync
        )
    }
}

/// See the module.
#[derive(Debug)]
pub struct Machine {
    config: Config,
    /// What is wanted.
    state: DurableState,
    /// What the brick holds.
    durable: DurableState,
    phase: Phase,
    last: Sequence,
    /// As follower: in memory, the records after `last` not applied yet.
    received: Sequence,
    applied: Sequence,
    stable: Sequence,
    confirmed: Sequence,
    suspects: u64,
    journal_from: Sequence,
    links: Vec<Option<Link>>,
    flushes: BTreeMap<FlushId, Flush>,
    next_flush: u64,
    /// The flushes that the machine itself wants.
    own_flushes: Vec<(FlushId, Own)>,
    /// What was ordered and not applied by everybody who gets records.
    queue: Queue,
    /// Replicas outside the set, since this one serves.
    missing: Vec<Option<Missing>>,
    /// A stricter policy takes effect when everything up to here satisfies it.
    tightens: Option<Sequence>,
    /// Nothing is answered before what was taken over is on stable storage here.
    settling: bool,
    /// An operator makes this replica primary, whatever the others may have.
    forced: bool,
    /// Everything is in place for the hand-over that the pool is to agree on.
    handover_ready: bool,
    decisions_open: u32,
    /// About to enter the set: waited for, so that they catch up with what is confirmed.
    entering: Mask,
    /// In the set as decided, and told so once that is durable and agreed.
    joining: Mask,
    /// As member: what the primary told of the others, see [`Machine::stable_at`].
    told: Stable,
    generations_made: u32,
    /// Where the pool decides about roles.
    quorum: Option<Quorum>,
    /// In sync with the primary of this term, since this process started.
    joined: bool,
    /// See [`Report::revision`].
    revision: u64,
    /// Sides of a split brain that an operator gave up.
    giving_up: Mask,
    /// The latest term that anybody told when it was met.
    heard_of: Term,
    /// Whose role this replica is handed just now: the two are even.
    heir_of: Option<usize>,
    /// The longer tail that somebody had was asked for already.
    tail_fetched: bool,
    /// Replicas that are gone and have to be fenced.
    losses: Vec<Option<Loss>>,
    /// Replicas that said that they go.
    parted: Mask,
    /// As follower: the primary goes on without this replica only when it cannot take over.
    primary_fences: bool,
    outputs: VecDeque<Output>,
    #[cfg(any(test, debug_assertions))]
    bug: Option<Bug>,
}

impl Machine {
    /// A machine for a brick that recovered to `last`. Call [`Machine::start`] next.
    #[must_use]
    pub fn new(config: Config, durable: DurableState, last: Sequence, suspects: u64) -> Self {
        let count = config.count;
        assert!(
            config.me < count && count <= REPLICAS_MAX,
            "one of its volume's"
        );
        Self {
            links: (0..REPLICAS_MAX).map(|_| None).collect(),
            state: durable.clone(),
            durable,
            phase: Phase::Following,
            last,
            received: last,
            applied: last,
            stable: last,
            confirmed: Sequence::ZERO,
            suspects,
            journal_from: Sequence(1),
            flushes: BTreeMap::new(),
            next_flush: 1,
            own_flushes: Vec::new(),
            queue: Queue::default(),
            missing: vec![None; REPLICAS_MAX],
            tightens: None,
            settling: false,
            forced: false,
            handover_ready: false,
            decisions_open: 0,
            entering: Mask::default(),
            joining: Mask::default(),
            told: Stable::default(),
            generations_made: 0,
            quorum: config.agreed.map(Quorum::new),
            joined: false,
            revision: 0,
            giving_up: Mask::default(),
            heard_of: Term::default(),
            heir_of: None,
            tail_fetched: false,
            losses: vec![None; REPLICAS_MAX],
            parted: Mask::default(),
            primary_fences: false,
            outputs: VecDeque::new(),
            #[cfg(any(test, debug_assertions))]
            bug: bugs::chosen(),
            config,
        }
    }

    /// Takes the next thing to do.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The replica's process starts.
    pub fn start(&mut self, now: Duration) {
        self.start_quorum(now);
        let heir = self.state.role == Role::Primary && self.state.disk == Disk::UpToDate;
        if self.quorum.is_some() {
            self.wait_for_members(now);
        } else if heir {
            self.phase = Phase::Waiting {
                until: now + self.config.activation_wait,
            };
            self.try_activate(now);
        }
    }

    /// Where the pool decides: a member that follows nobody, and knows of nobody who serves, may
    /// have to take the role. It may learn that it is a member after it has started, or lose a
    /// primary before that one took it on.
    pub(super) fn wait_for_members(&mut self, now: Duration) {
        let follows =
            (0..REPLICAS_MAX).any(|replica| self.standing(replica) == Some(Standing::MyPrimary));
        let idle = self.phase == Phase::Following && !self.joined && !follows;
        if idle && self.may_claim() && !self.role_went_on() {
            self.phase = Phase::Waiting {
                until: now + self.config.activation_wait,
            };
            self.try_activate(now);
        }
    }

    /// Whether a connected replica told that somebody else has the role by now.
    fn role_went_on(&self) -> bool {
        // The pool's word counts for more than that of a primary that has not heard it yet.
        let mine = self
            .agreed()
            .filter(|agreed| agreed.primary == self.config.me)
            .map(|agreed| agreed.term);
        self.links.iter().flatten().any(|link| {
            let deposed = mine.is_some_and(|term| term > link.report.term);
            (link.report.term > self.state.term || link.report.serving) && !deposed
        })
    }

    // ---- what others may ask -------------------------------------------------------------

    /// Whether it follows a primary that counts it as a member of the in-sync set.
    #[must_use]
    pub fn is_joined(&self) -> bool {
        self.joined
    }
    /// Where it stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }
    /// Whether it orders and answers.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.phase == Phase::Serving
    }
    /// Whether this replica's order is the volume's: it serves, or is about to hand that over.
    fn leads(&self) -> bool {
        matches!(self.phase, Phase::Serving | Phase::HandingOver { .. })
    }
    /// What is on stable storage.
    #[must_use]
    pub fn durable(&self) -> &DurableState {
        &self.durable
    }
    /// The last record here.
    #[must_use]
    pub fn last(&self) -> Sequence {
        self.last
    }
    /// The last confirmed record.
    #[must_use]
    pub fn confirmed(&self) -> Sequence {
        self.confirmed
    }
    /// Up to here everything is on stable storage at every member of the in-sync set.
    #[must_use]
    pub fn stable_everywhere(&self) -> Sequence {
        self.members()
            .iter()
            .map(|r| self.position(r).1)
            .min()
            .unwrap_or(self.stable)
    }
    /// The replicas for which records must be marked dirty as they are appended.
    #[must_use]
    pub fn dirty_mask(&self) -> Mask {
        if self.errs(Bug::SkipsMarks) {
            return Mask::default();
        }
        if !matches!(
            self.phase,
            Phase::Serving | Phase::HandingOver { .. } | Phase::Activating
        ) {
            // A secondary keeps the maps of those outside the set, in case it becomes primary.
            return Mask(self.staying().0 & !self.state.in_sync.0).without(self.config.me);
        }
        self.staying()
            .iter()
            .filter(|r| *r != self.config.me)
            .fold(Mask::default(), |mask, r| {
                let fed = self.links[r].as_ref().is_some_and(Link::gets_records);
                if fed { mask } else { mask.with(r) }
            })
    }
    /// How the connected replica stands; `None`: not connected.
    #[must_use]
    pub fn standing(&self, replica: usize) -> Option<Standing> {
        self.links[replica].as_ref().map(|link| link.standing)
    }
    /// What the connected replica told when they met.
    #[must_use]
    pub fn report_of(&self, replica: usize) -> Option<&Report> {
        self.links[replica].as_ref().map(|link| &link.report)
    }
    /// What a replica has acknowledged: (applied, stable).
    #[must_use]
    pub fn position(&self, replica: usize) -> (Sequence, Sequence) {
        if replica == self.config.me {
            return (self.applied, self.stable);
        }
        match &self.links[replica] {
            Some(link) if link.gets_records() => (link.applied, link.stable),
            _ => (Sequence::ZERO, Sequence::ZERO),
        }
    }
    /// What this replica tells one that it meets.
    #[must_use]
    pub fn report(&self) -> Report {
        Report {
            term: self.state.term,
            role: self.state.role,
            serving: self.leads(),
            disk: self.state.disk,
            line: self.state.line.clone(),
            last: self.last,
            stable: self.stable,
            in_sync: self.state.in_sync,
            journal_from: self.journal_from,
            handed_to: self.state.handed_to,
            suspects: self.suspects,
            layout: self.state.places.version,
            revision: self.revision,
            policy: self.state.policy,
            split_policy: self.config.split_policy,
            role_term: self.state.role_term,
            primary_since: self.state.primary_since,
            taken_from: self.state.taken_from,
        }
    }
    /// The oldest record that the journal holds, for reports.
    pub fn set_journal_from(&mut self, from: Sequence) {
        self.journal_from = from;
    }
    /// New deadlines.
    pub fn set_replica_deadline(&mut self, deadline: Duration) {
        self.config.replica_deadline = deadline;
    }
    /// Another least number of replicas in sync.
    pub fn set_min_in_sync(&mut self, min: u32) {
        self.config.min_in_sync = min;
        self.advance();
    }
    /// Whether writes wait for replicas that are missing.
    #[must_use]
    pub fn lacks_replicas(&self) -> bool {
        self.serves() && self.state.in_sync.count() < self.config.min_in_sync
    }

    // ---- ordering and confirmation ---------------------------------------------------------

    /// Whether this replica is the primary, and not about to be none any more.
    ///
    /// # Errors
    /// [`Refusal::NotServing`], [`Refusal::HandingOver`].
    pub fn may_order(&self) -> Result<(), Refusal> {
        match self.phase {
            Phase::Serving => Ok(()),
            Phase::HandingOver { .. } => Err(Refusal::HandingOver),
            _ => Err(Refusal::NotServing),
        }
    }

    /// Gives the next record, of so many bytes, its place. The driver appends it and then calls
    /// [`Machine::local_applied`].
    ///
    /// # Errors
    /// [`Refusal::NotServing`], [`Refusal::HandingOver`].
    pub fn order(
        &mut self,
        now: Duration,
        bytes: u64,
    ) -> Result<(Sequence, Term, GenerationId), Refusal> {
        self.may_order()?;
        self.last = self.last.next();
        self.received = self.last;
        self.note_ordered(now, bytes);
        self.note_waiting(now);
        Ok((self.last, self.state.term, self.state.line.current()))
    }

    /// Notes for each member that is waited for since when it owes evidence.
    fn note_waiting(&mut self, now: Duration) {
        for replica in 0..REPLICAS_MAX {
            let owes = self.evidence(replica) < self.last;
            let Some(link) = &mut self.links[replica] else {
                continue;
            };
            let waited_for = link.standing == Standing::InSync || self.entering.has(replica);
            if !waited_for || !owes {
                link.behind_since = None;
            } else if link.behind_since.is_none() {
                link.behind_since = Some(now);
            }
        }
    }

    /// Everything up to `sequence` is applied here.
    pub fn local_applied(&mut self, sequence: Sequence) {
        self.applied = self.applied.max(sequence);
        assert!(self.applied <= self.last, "applied what was not ordered");
        self.advance();
    }

    /// Everything up to `sequence` is on stable storage here.
    pub fn local_stable(&mut self, sequence: Sequence) {
        self.stable = self.stable.max(sequence.min(self.last));
    }

    /// A replica acknowledged.
    pub fn acknowledged(&mut self, now: Duration, replica: usize, position: Position) {
        let last = self.last;
        let before = self.evidence(replica);
        let Some(link) = self.links[replica].as_mut().filter(|l| l.gets_records()) else {
            return; // an acknowledgement that crossed a refusal or a change of roles
        };
        link.heard = now;
        let begins = !std::mem::replace(&mut link.acknowledged, true);
        self.is_outdated(replica);
        let Some(link) = self.links[replica].as_mut() else {
            return;
        };
        if position.applied.max(position.received) > last {
            // It would be a lie, or a replica that took records from elsewhere.
            self.drop_link(replica, DropReason::StaleTerm);
            return;
        }
        link.applied = link.applied.max(position.applied);
        link.received = link.received.max(position.received).max(link.applied);
        link.stable = link.stable.max(position.stable.min(link.applied));
        link.policy = position.policy;
        let begun_at = link.stable;
        let evidence = self.evidence(replica);
        if let Some(link) = self.links[replica].as_mut().filter(|_| evidence > before) {
            link.behind_since = (evidence < last).then_some(now);
        }
        if begins && self.state.resyncing.has(replica) {
            // The replica is where the resync began. Marks go as it takes what they stand for, so
            // an older state of it is not covered from here on.
            self.state.since[replica] = self.state.since[replica].max(begun_at);
            self.decide();
        }
        self.trim_queue();
        self.try_join(replica);
        self.advance();
    }

    /// Something was heard of a replica.
    pub fn heard(&mut self, now: Duration, replica: usize) {
        if let Some(link) = &mut self.links[replica] {
            link.heard = now;
        }
    }

    /// The members that a confirmation waits for.
    fn members(&self) -> Mask {
        Mask(self.set().0 | self.entering.0)
    }

    /// The in-sync set: as decided here, as durable, and as it may be agreed.
    fn set(&self) -> Mask {
        let decided = self.state.in_sync.0 | self.durable.in_sync.0;
        Mask(decided | self.possible_members().0)
    }

    fn advance(&mut self) {
        if !self.leads() {
            return;
        }
        self.go_on_tightening();
        self.finish_flushes();
        let enough = self.state.in_sync.count() >= self.config.min_in_sync;
        let covered = self.covered();
        if enough && !self.settling && covered > self.confirmed {
            self.confirmed = covered;
            self.outputs.push_back(Output::Confirmed(covered));
        }
        self.advance_handover();
    }

    // ---- decisions ---------------------------------------------------------------------------

    fn decide(&mut self) {
        self.state.since[self.config.me] = self.stable;
        self.decisions_open += 1;
        self.outputs
            .push_back(Output::Decide(Box::new(self.state.clone())));
    }

    /// The oldest open [`Output::Decide`] is durable.
    pub fn decided(&mut self, now: Duration, state: DurableState) {
        assert!(
            self.decisions_open > 0,
            "a decision was made durable that nobody took"
        );
        self.decisions_open -= 1;
        if self.state.role_term == state.role_term {
            self.state.primary_since = state.primary_since;
        }
        self.durable = state;
        if self.decisions_open > 0 {
            return;
        }
        if self.phase == Phase::Activating {
            self.phase = Phase::Serving;
            // What it has is the volume's content from here on; what an earlier term confirmed
            // beyond it is not.
            self.confirmed = self.applied;
            self.outputs.push_back(Output::Serving {
                term: self.state.term,
                reason: self.state.role_reason,
            });
            for replica in 0..REPLICAS_MAX {
                self.assess(replica);
            }
        }
        if self.serves() {
            self.adjust_policy();
        }
        if self.leads() {
            self.after_membership_decision(now);
            self.ask_for_members(now);
        }
        if let (Phase::HandingOver { to }, Some(target)) = (self.phase, self.durable.handed_to) {
            assert_eq!(to, target, "the role goes to whom it was promised");
            self.phase = Phase::Following;
            self.outputs.push_back(Output::StoppedServing {
                reason: RoleReason::HandedOver,
            });
            let term = Term(self.state.term.0 + 1);
            self.outputs.push_back(Output::HandOver {
                to,
                term,
                agreed: None,
            });
            self.outputs.push_back(Output::HandedOver { done: true });
            for link in self.links.iter_mut().flatten() {
                link.standing = Standing::Met;
            }
        }
        self.advance();
    }

    fn after_membership_decision(&mut self, now: Duration) {
        let members = self.set();
        self.flush_without(members);
        let membership = self.membership();
        for replica in 0..REPLICAS_MAX {
            let agreed = self.is_agreed_member(replica);
            let Some(link) = &mut self.links[replica] else {
                continue;
            };
            let joins = self.joining.has(replica) && members.has(replica) && agreed;
            if joins && matches!(link.standing, Standing::Catching { .. }) {
                self.joining = self.joining.without(replica);
                link.standing = Standing::InSync;
                self.missing[replica] = None;
                self.outputs.push_back(Output::ClearDirty { replica });
                let membership = Box::new(membership.clone());
                self.outputs.push_back(Output::Joined {
                    replica,
                    membership,
                });
            } else if link.gets_records() {
                let membership = Box::new(membership.clone());
                self.outputs.push_back(Output::Membership {
                    replica,
                    membership,
                });
            }
        }
        self.note_waiting(now);
    }

    fn membership(&self) -> Membership {
        Membership {
            term: self.state.term,
            line: self.state.line.clone(),
            layout: self.state.places.version,
            in_sync: self.state.in_sync,
            since: self.state.since,
            policy: self.state.policy,
            fences: self.fences(),
        }
    }

    // ---- activation --------------------------------------------------------------------------

    fn try_activate(&mut self, now: Duration) {
        let Phase::Waiting { until } = self.phase else {
            return;
        };
        if self.has_received() {
            return; // first it is applied
        }
        let needs_all = self.needs_every_report();
        let mut others = self.state.in_sync.without(self.config.me);
        if let Some(agreed) = self.agreed().filter(|_| needs_all) {
            others = Mask(others.0 | agreed.in_sync.0).without(self.config.me);
        }
        // Bricks that were removed have nothing to say, and were let go of before.
        let others = Mask(others.0 & self.belonging().0);
        let met = |r: usize| self.links[r].is_some();
        if self.role_went_on() || (self.quorum.is_some() && !self.may_claim()) {
            self.phase = Phase::Following;
            return;
        }
        let not_yet = !others.iter().all(met) || self.last_primary_is_there();
        let fences = self.waits_for_the_others() && !others.iter().all(met);
        if not_yet && (now < until || needs_all || fences) {
            return;
        }
        let longest = others
            .iter()
            .filter_map(|r| self.links[r].as_ref().map(|link| (r, &link.report)))
            .filter(|(_, report)| report.disk == Disk::UpToDate && self.has_my_tail(report))
            .max_by_key(|(_, report)| report.last);
        if let Some((from, report)) = longest.filter(|(_, report)| report.last > self.last) {
            if !self.tail_fetched && report.journal_from <= self.last.next() {
                self.phase = Phase::Pulling { from };
                self.outputs.push_back(Output::Pull {
                    from,
                    after: self.last,
                });
                return;
            }
            if needs_all {
                return; // the other one, which has it, asks for the role
            }
        }
        self.resume(now);
    }

    /// Where the pool decides: whether the last primary is connected and can go on. It goes first.
    /// What fsync confirmed is whole with it, whatever the ack policy asked of the others; and in
    /// a new volume it is the first replica.
    fn last_primary_is_there(&self) -> bool {
        let Some(agreed) = self.agreed().filter(|_| !self.forced) else {
            return false;
        };
        agreed.in_sync.has(agreed.primary)
            && self.belonging().has(agreed.primary)
            && self.links[agreed.primary]
                .as_ref()
                .is_some_and(|link| link.report.disk == Disk::UpToDate)
    }

    fn resume(&mut self, now: Duration) {
        if self.quorum.is_some() {
            let reason = if self.forced {
                RoleReason::Forced
            } else {
                RoleReason::Resumed
            };
            self.claim(now, reason);
        } else {
            self.activate(RoleReason::Resumed);
        }
    }

    /// Whether a report continues exactly this replica's past.
    fn has_my_tail(&self, report: &Report) -> bool {
        matches!(
            self.state
                .line
                .relation(self.last, &report.line, report.last),
            Relation::Common {
                i_went_on: false,
                ..
            }
        )
    }

    /// The tail that [`Output::Pull`] asked `replica` for has arrived.
    pub fn pulled(&mut self, now: Duration, replica: usize) {
        if self.phase == (Phase::Pulling { from: replica }) {
            self.phase = Phase::Waiting { until: now };
            self.tail_fetched = true;
            self.resume(now);
        }
    }

    fn activate(&mut self, reason: RoleReason) {
        self.activate_in(self.next_term(self.state.term), reason);
    }

    /// A term after `above` that no other replica ever begins: where the bricks decide, nobody
    /// counts terms for all, and objects of two sides that parted must not get the same ids.
    fn next_term(&self, above: Term) -> Term {
        let count = REPLICAS_MAX as u64;
        let round = above.0 / count * count + self.config.me as u64;
        Term(if round > above.0 {
            round
        } else {
            round + count
        })
    }

    fn activate_in(&mut self, term: Term, reason: RoleReason) {
        self.state.term = term;
        self.joined = false;
        self.forced = false;
        self.losses.fill(None);
        self.received = self.last;
        self.begin_policy();
        let even = self.heir_of.take();
        if self.quorum.is_some() && reason != RoleReason::Resumed {
            // What the others told when they met is old.
            for replica in (0..REPLICAS_MAX).filter(|r| even != Some(*r)) {
                if self.links[replica].is_some() {
                    self.drop_link(replica, DropReason::RoleMoved);
                }
            }
        }
        if self.state.role != Role::Primary {
            self.state.role_term = Some(term);
            self.state.primary_since = None;
        }
        self.state.role = Role::Primary;
        self.state.role_reason = reason;
        self.state.handed_to = None;
        self.believe_positions();
        let generation = self.fresh_generation();
        self.state.line.begin(generation, term, self.last);
        for replica in self.staying().iter() {
            if replica == self.config.me {
                continue;
            }
            if self.suspects > 0 {
                // Extents in doubt here are marked in each map by the driver; no journal has them.
                self.state.resyncing = self.state.resyncing.with(replica);
            }
            let since = self.state.since[replica];
            self.outputs
                .push_back(Output::MarkDirtySince { replica, since });
        }
        // Members that are here join again by the rules, within milliseconds; until then they
        // must not be waited for.
        self.state.in_sync = if reason == RoleReason::Resumed {
            self.keep_candidates()
        } else {
            Mask::of(self.config.me)
        };
        self.phase = Phase::Activating;
        self.decide();
    }

    fn fresh_generation(&mut self) -> GenerationId {
        self.generations_made += 1;
        let mut id = self.config.entropy;
        for (byte, count) in id[12..].iter_mut().zip(self.generations_made.to_le_bytes()) {
            *byte ^= count;
        }
        GenerationId(id)
    }

    // ---- time --------------------------------------------------------------------------------

    /// When [`Machine::tick`] wants to be called at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let waiting = match self.phase {
            Phase::Waiting { until } => Some(until),
            _ => None,
        };
        let links = self.links.iter().flatten();
        let waits = [|l: &Link| l.behind_since, |l: &Link| l.unpromised_since];
        let silent =
            links.flat_map(|l| waits.map(|since| since(l).unwrap_or(l.heard).min(l.heard)));
        let silent = silent.min().map(|t| t + self.config.replica_deadline);
        let quorum = self.quorum_deadline();
        let fencing = self.fencing_deadline();
        let all = waiting.into_iter().chain(silent).chain(quorum);
        all.chain(fencing).min()
    }

    /// Time passed.
    pub fn tick(&mut self, now: Duration) {
        self.try_activate(now);
        self.look_after_primary(now);
        self.take_back_claim(now);
        self.wait_for_members(now);
        self.ask_for_members(now);
        self.ask_for_handover(now);
        self.note_waiting(now);
        self.shoot(now);
        let deadline = self.config.replica_deadline;
        let overdue = self.overdue(now);
        for replica in 0..REPLICAS_MAX {
            let Some(link) = &self.links[replica] else {
                continue;
            };
            // Who promises nothing, as a claim of his may still come true, holds answers up as well.
            let late = |since: Option<Duration>| since.is_some_and(|at| now >= at + deadline);
            let slow = late(link.behind_since) || late(link.unpromised_since);
            let waited_for = link.standing == Standing::InSync || self.entering.has(replica);
            if waited_for && (slow || overdue.has(replica)) {
                self.drop_link(replica, DropReason::Slow);
            } else if now >= link.heard + deadline {
                self.drop_link(replica, DropReason::Silent);
            }
        }
    }

    /// What must always hold; called by tests and by debug builds after each event.
    pub fn check_invariants(&self) {
        assert!(self.applied <= self.last && self.last <= self.received);
        assert!(self.stable <= self.last);
        assert!(self.confirmed <= self.last || !self.serves());
        assert!(self.state.in_sync.has(self.config.me) || self.state.role == Role::Secondary);
        for replica in 0..REPLICAS_MAX {
            if let Some(link) = &self.links[replica] {
                assert!(link.stable <= link.applied, "stable but not applied");
                assert!(link.applied <= link.received, "applied but not received");
                let in_sync = link.standing == Standing::InSync;
                assert!(
                    !in_sync || self.state.in_sync.has(replica),
                    "in sync but not in the set"
                );
            }
        }
    }
}
