//! The owner of one replica: joins the machine, the namespace and the brick.
//!
//! Everything of a volume runs on one thread. Tasks of that thread (a reader a connection, the
//! brick's completions, a ticker) call into the driver with what happened, one at a time, and end
//! each round with [`Driver::finish_turn`]: what was appended goes to the kernel in one write,
//! decisions are made durable, and replies, records and acknowledgements leave together.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use protocol::frame::RawFrame;
use protocol::fs::{Elsewhere, Outcome};
use protocol::ids::NodeId;
use protocol::mistakes::{Mistake, made};
use protocol::record::{Change, Record};
use protocol::replica::{Message, live_record_frame};
use protocol::units::{BLOCK_BYTES, ObjectId, Sequence, Term, Timestamp};
use protocol::volume::{Protocol, REPLICAS_MAX, VolumeSpec};
use replication::machine::{
    Config, DropReason, FlushId, Machine, Output, Phase, Position, Stable, Standing,
};
use replication::state::{DurableState, Mask, Places};
use replication::throttle::Throttle;
use storage::{Brick, BrickError, BrickEvent, DirtyItem, FlushWhat, Medium, Pace, RecoveryReport};
use tokio::sync::{Notify, Semaphore, oneshot};

use super::Host;
use super::held::{FlushWaiter, Held, PendingReply, Unconfirmed};
use super::leases::Leased;
use super::links::{Asker, LinkIo};
use super::repair::Repairs;
use super::replay::Replays;
use super::sessions::Sessions;
use super::settings::Settings;
use super::strangers::Seen;
use super::words;

/// The driver as its thread's tasks share it.
pub(super) type Shared<M> = Rc<RefCell<Driver<M>>>;

/// Reads that may be under way before clients are not read any more: enough for any disk's queue.
const READS_MAX: usize = 256;
/// Clients that may wait for flushes.
const FLUSH_WAITERS_MAX: usize = 16 << 10;
/// Bytes of records that may wait for a replica's acknowledgement before clients are not read.
const REPLICA_QUEUE_BYTES_MAX: usize = 64 << 20;

/// What a flush of the brick was started for.
pub(super) enum BrickFlush {
    /// The machine's flush.
    Volume(FlushId),
    /// The primary asked for it.
    ForPrimary { id: u64, asker: Asker },
    /// Resync batches received until then.
    Batches(Asker, Vec<u64>),
    /// Nobody waits: housekeeping.
    Background,
}

/// See the module.
pub(super) struct Driver<M: Medium> {
    pub(super) spec: VolumeSpec,
    pub(super) me: usize,
    pub(super) settings: Settings,
    pub(super) host: Arc<dyn Host>,
    pub(super) machine: Machine,
    pub(super) brick: Brick<M>,
    pub(super) recovery: RecoveryReport,
    pub(super) incarnation: u64,
    started: Duration,
    last_time: Timestamp,
    last_at_tick: Sequence,
    pub(super) links: Vec<Option<LinkIo>>,
    pub(super) sessions: Sessions,
    pub(super) waiting: Unconfirmed,
    pub(super) sync_objects: Vec<ObjectId>,
    pub(super) sync_all: bool,
    pub(super) sync_waiters: Vec<FlushWaiter>,
    pub(super) flush_waiters: BTreeMap<FlushId, Vec<FlushWaiter>>,
    pub(super) brick_flushes: HashMap<storage::FlushId, BrickFlush>,
    pub(super) tokens: HashMap<u64, Token>,
    next_token: u64,
    appended: bool,
    /// What the primary was told last.
    pub(super) acked: Option<Position>,
    /// As primary: when the members were last asked for promises.
    pub(super) asked_promises: Option<Duration>,
    /// As primary: what the members were told last of each other.
    pub(super) told_stable: Option<(Term, u64, Stable)>,
    /// Answers to completed flushes, until the lease allows them.
    flushed: Vec<Held>,
    /// Records of a primary that is gone, acknowledged as received and still to be applied.
    pub(super) left_over: VecDeque<Record>,
    /// Replicas that were left behind as their queues were beyond the bound.
    pub(super) ahead_of: Mask,
    /// Confirmed operations that a take-over lost, as clients showed, since this replica serves.
    pub(super) lost_operations: u64,
    /// What clients kept.
    pub(super) replays: Replays,
    pub(super) repairs: Repairs,
    /// What is known of each replica's process.
    pub(super) seen: Vec<Seen>,
    /// Who waits for a lock.
    pub(super) locks: super::locks::Locks,
    /// What mounts may answer from their caches.
    pub(super) leasing: super::leases::Leasing,
    pub(super) failed: Option<String>,
    pub(super) throttled: bool,
    /// Clients were not read when the last round ended.
    blocked: bool,
    /// Wakes whoever waits for room, for a prepared extent, or for a change of role.
    pub(super) changed: Rc<Notify>,
    /// Wakes the ticker, as the machine has a nearer deadline.
    pub(super) hurry: Rc<Notify>,
    /// Wakes whoever looks after a medium that tells nobody when its work ends.
    pub(super) disk_work: Rc<Notify>,
    pub(super) stopping: bool,
    pub(super) handover_waiters: Vec<oneshot::Sender<bool>>,
    pub(super) paused: bool,
    pub(super) full_wanted: Mask,
    /// Of what these lack, the journal no longer leads to all, as their catch-up from it found.
    pub(super) overwritten: Mask,
    pub(super) resyncs: Vec<super::source::Resyncs>,
    /// How fast they may go beside applications.
    pub(super) throttle: Throttle,
    pub(super) object_bytes_max: u64,
    /// The version of the configuration of which a block volume's disk has the size, as far as this
    /// primary saw to it.
    pub(super) fitted: Option<u64>,
    /// When this replica last applied a record of a primary's.
    pub(super) followed_at: Option<Timestamp>,
    /// Why a resync does not begin: there is no room to keep what is here now.
    pub(super) needs_room: Option<String>,
    /// An operator said that it may begin without.
    pub(super) without_point: bool,
    /// Since when the preferred replica could have the role.
    pub(super) preferred_since: Option<Duration>,
    /// Why the last fence command failed.
    pub(super) fencing_failed: Option<String>,
    /// Who reads states of the brick beside this thread.
    pub(super) readers: Arc<Semaphore>,
    pub(super) mounted_points: super::kept::MountedPoints,
    own: Weak<RefCell<Self>>,
}

/// What a completion of the brick belongs to.
pub(super) enum Token {
    /// Bytes for whoever waits.
    Read(oneshot::Sender<Result<Bytes, storage::ReadError>>),
    /// An extent may be overwritten now.
    Prepared,
}

impl<M: Medium> Driver<M> {
    pub(super) fn new(
        spec: VolumeSpec,
        me: usize,
        host: Arc<dyn Host>,
        brick: Brick<M>,
        recovery: RecoveryReport,
        mut state: DurableState,
    ) -> Self {
        name_places(&mut state, &brick.identity().spec);
        let settings = Settings::of(&spec);
        let suspects = recovery.suspect.len() as u64;
        let config = config(&spec, me, &settings, &*host);
        let mut incarnation = [0; 8];
        incarnation.copy_from_slice(&config.entropy[..8]);
        let machine = Machine::new(config, state, brick.applied(), suspects);
        Self {
            me,
            settings,
            machine,
            recovery,
            incarnation: u64::from_le_bytes(incarnation),
            started: host.now(),
            last_time: Timestamp(0),
            last_at_tick: Sequence::ZERO,
            links: (0..REPLICAS_MAX).map(|_| None).collect(),
            sessions: Sessions::default(),
            waiting: Unconfirmed::default(),
            sync_objects: Vec::new(),
            sync_all: false,
            sync_waiters: Vec::new(),
            flush_waiters: BTreeMap::new(),
            brick_flushes: HashMap::new(),
            tokens: HashMap::new(),
            next_token: 1,
            appended: false,
            acked: None,
            asked_promises: None,
            told_stable: None,
            flushed: Vec::new(),
            left_over: VecDeque::new(),
            ahead_of: Mask::default(),
            lost_operations: 0,
            replays: Replays::default(),
            repairs: Repairs::default(),
            seen: (0..REPLICAS_MAX).map(|_| Seen::default()).collect(),
            locks: super::locks::Locks::default(),
            leasing: super::leases::Leasing::default(),
            failed: None,
            throttled: false,
            blocked: false,
            changed: Rc::default(),
            hurry: Rc::default(),
            disk_work: Rc::default(),
            stopping: false,
            handover_waiters: Vec::new(),
            paused: false,
            full_wanted: Mask::default(),
            overwritten: Mask::default(),
            resyncs: (0..REPLICAS_MAX)
                .map(|_| super::source::Resyncs::default())
                .collect(),
            throttle: Throttle::default(),
            object_bytes_max: brick.object_bytes_max(),
            fitted: None,
            followed_at: None,
            needs_room: None,
            without_point: false,
            preferred_since: None,
            fencing_failed: None,
            readers: Arc::new(Semaphore::new(super::kept::READERS_MAX as usize)),
            mounted_points: super::kept::MountedPoints::default(),
            host,
            own: Weak::new(),
            brick,
            spec,
        }
    }

    /// A machine for the brick as it is now, which knows of nobody.
    pub(super) fn fresh_machine(&self, state: DurableState) -> Machine {
        let config = config(&self.spec, self.me, &self.settings, &*self.host);
        let suspects = self.recovery.suspect.len() as u64;
        Machine::new(config, state, self.brick.applied(), suspects)
    }

    /// Lets the driver start tasks that come back to it.
    pub(super) fn set_self(&mut self, shared: &Shared<M>) {
        self.own = Rc::downgrade(shared);
    }

    /// The driver as tasks hold it.
    pub(super) fn shared(&self) -> Option<Shared<M>> {
        self.own.upgrade()
    }

    /// The machine's clock: it goes on while the machine sleeps, as leases do elsewhere.
    pub(super) fn now(&self) -> Duration {
        self.host.now().saturating_sub(self.started)
    }

    /// The time that the next operation gets: never before one that was given (COH-4).
    pub(super) fn timestamp(&mut self) -> Timestamp {
        self.last_time = self.last_time.max(self.wall_time());
        self.last_time
    }

    /// The time of day.
    pub(super) fn wall_time(&self) -> Timestamp {
        let clock = self.host.wall().duration_since(UNIX_EPOCH);
        let clock = clock.unwrap_or_default();
        Timestamp(i64::try_from(clock.as_nanos()).unwrap_or(i64::MAX))
    }

    pub(super) fn token(&mut self, token: Token) -> u64 {
        let id = self.next_token;
        self.next_token += 1;
        self.tokens.insert(id, token);
        id
    }

    /// The primary's node, if one is known to serve.
    pub(super) fn primary_node(&self) -> Option<NodeId> {
        if self.machine.serves() {
            return Some(self.spec.replicas[self.me].node);
        }
        let following =
            (0..self.links.len()).find(|r| self.machine.standing(*r) == Some(Standing::MyPrimary));
        let serving = (0..self.links.len()).find(|r| {
            self.machine
                .report_of(*r)
                .is_some_and(|report| report.serving)
        });
        following.or(serving).map(|r| self.spec.replicas[r].node)
    }

    /// Whether clients must not be read for now: too much is under way. Under A nobody waits for a
    /// replica's queue: the machine bounds it.
    pub(super) fn is_full(&self) -> bool {
        let long =
            |link: &LinkIo| link.feed_live && link.outbox.queued_bytes() >= REPLICA_QUEUE_BYTES_MAX;
        let bounded = self.settings.protocol == Protocol::A;
        let flushes = self.flush_waiters.values().map(Vec::len).sum::<usize>();
        self.throttled
            || self.waiting.is_full()
            || self.tokens.len() >= READS_MAX
            || flushes + self.sync_waiters.len() >= FLUSH_WAITERS_MAX
            || (!bounded && self.links.iter().flatten().any(long))
    }

    // ---- ordering ----------------------------------------------------------------------------

    /// Orders a change set and sends it on its way. The caller replies once the returned sequence
    /// is confirmed.
    pub(super) fn order(
        &mut self,
        changes: Vec<Change>,
        payload: Bytes,
    ) -> Result<Sequence, OrderError> {
        let now = self.now();
        let bytes = Record::bytes_about(&changes, &payload);
        let ordered = self.machine.order(now, bytes).inspect_err(words::not_done);
        let (sequence, term, generation) = ordered?;
        let record = Record {
            sequence,
            term,
            generation,
            changes,
            payload,
        };
        let mask = self.machine.dirty_mask();
        // It has its place already: a brick that does not take it is out of step for good.
        let pace = self
            .brick
            .append(&record, mask.0)
            .inspect_err(|error| self.fail(error))?;
        self.note_data(sequence, &record.changes);
        self.appended = true;
        self.throttled |= pace == Pace::Throttle;
        let mut frame = None;
        for link in self
            .links
            .iter_mut()
            .flatten()
            .filter(|link| link.feed_live)
        {
            if let Some(source) = &link.source {
                source.ordered(&record.changes);
            }
            let frame = frame.get_or_insert_with(|| {
                live_record_frame(record.encode_meta(), record.payload.clone())
            });
            link.outbox.send(frame.clone());
        }
        Ok(sequence)
    }

    /// Applies a record that came from the primary, or from a member while pulling. Only after
    /// that it counts as here.
    pub(super) fn follow(&mut self, record: &Record) -> Result<(), BrickError> {
        if matches!(self.machine.phase(), Phase::Pulling { .. }) {
            self.doubt_pulled(&record.changes)?;
        }
        let mask = self.machine.dirty_mask();
        let pace = self.brick.append(record, mask.0)?;
        self.machine.followed(record.sequence);
        self.note_data(record.sequence, &record.changes);
        self.appended = true;
        self.throttled |= pace == Pace::Throttle;
        Ok(())
    }

    /// Ends a round: see the module.
    pub(super) fn finish_turn(&mut self) {
        loop {
            if self.appended {
                self.appended = false;
                if let Err(error) = self.brick.push() {
                    self.fail(&error);
                    return;
                }
                self.machine.local_applied(self.machine.last());
            }
            self.start_flush();
            // A flush that had nothing to wait for is told at once, by no wake-up.
            self.brick_events();
            let mut quiet = true;
            while let Some(output) = self.machine.poll() {
                quiet = false;
                self.carry_out(output);
                if self.failed.is_some() {
                    return;
                }
            }
            self.release_replies();
            if quiet && !self.appended {
                break;
            }
        }
        self.acknowledge();
        self.disk_work.notify_one();
        // Only at the change: who waits ends a round as well, and two would wake each other for ever.
        let blocked = self.is_full() || self.is_handing_over();
        if std::mem::replace(&mut self.blocked, blocked) && !blocked {
            self.changed.notify_waiters();
        }
        #[cfg(debug_assertions)]
        self.machine.check_invariants();
    }

    fn start_flush(&mut self) {
        while let Some(id) = self.machine.own_flush() {
            self.flush_everywhere(id, None);
        }
        if self.sync_waiters.is_empty() {
            return;
        }
        let waiters = std::mem::take(&mut self.sync_waiters);
        let objects = std::mem::take(&mut self.sync_objects);
        let all = std::mem::take(&mut self.sync_all);
        match self.machine.begin_flush() {
            Ok(id) => {
                self.flush_waiters.insert(id, waiters);
                self.flush_everywhere(id, (!all).then_some(objects));
            }
            // The role is gone: clients ask the next primary.
            Err(refusal) => words::not_done(&refusal),
        }
    }

    fn flush_everywhere(&mut self, id: FlushId, objects: Option<Vec<ObjectId>>) {
        let request = Message::Flush {
            id: id.0,
            objects: objects.clone(),
        }
        .encode();
        for replica in self.machine.flush_waits_for(id).without(self.me).iter() {
            self.send_frame(replica, request.clone());
        }
        self.flush_brick(objects, BrickFlush::Volume(id));
    }

    /// Makes this brick's part stable; the purpose is met when the brick says so.
    pub(super) fn flush_brick(&mut self, objects: Option<Vec<ObjectId>>, purpose: BrickFlush) {
        let what = objects.map_or(FlushWhat::All, FlushWhat::Objects);
        match self.brick.flush(what) {
            Ok(id) => {
                self.brick_flushes.insert(id, purpose);
            }
            Err(error) => self.fail(&error),
        }
    }

    /// The brick can be written no more. The replica steps aside: it closes every connection, so
    /// that peers and clients go on without it, and says why in status (BAD-3).
    pub(super) fn fail(&mut self, error: &dyn std::fmt::Display) {
        if self.failed.is_some() {
            return;
        }
        tracing::error!(volume = %self.spec.name, %error, "the brick failed, the replica steps aside");
        self.host.event(
            "brick_failed",
            &self.spec.name,
            &format!("the brick failed, and its replica steps aside: {error}"),
        );
        self.failed = Some(error.to_string());
        for link in self.links.iter().flatten() {
            link.outbox.close();
        }
        self.sessions.close_connections();
        // Whoever waits for a hand-over learns that there will be none.
        self.handover_waiters.clear();
        self.changed.notify_waiters();
    }

    // ---- the machine's outputs ---------------------------------------------------------------

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Decide(state) => self.make_durable(*state),
            Output::Confirmed(_) => {} // replies are released at the end of the round
            Output::Flushed(id) => self.flush_complete(id),
            Output::MarkDirtySince { replica, since } => {
                if let Err(error) = self.mark_dirty_since(replica, since) {
                    self.fail(&error);
                }
            }
            Output::ClearDirty { replica } => {
                if let Err(error) = self.brick.clear_all_dirty(index(replica)) {
                    self.fail(&error);
                }
            }
            Output::Assess { replica, common } => self.assess(replica, common),
            Output::AskDoubts {
                replica,
                common,
                revision,
            } => {
                let term = self.machine.report().term;
                self.send(
                    replica,
                    &Message::Ask {
                        common,
                        term,
                        revision,
                    },
                );
            }
            Output::Source {
                replica,
                decision,
                welcome,
            } => {
                self.begin_source(replica, decision, &welcome);
            }
            Output::Joined {
                replica,
                membership,
            } => {
                self.joined(replica, &membership);
            }
            Output::Membership {
                replica,
                membership,
            } => {
                let json = super::links::to_json(&*membership);
                self.send(replica, &Message::Membership(json));
            }
            Output::Pull { from, after } => self.send(from, &Message::Pull { after }),
            Output::Refused { replica, rule } => self.refused(replica, rule),
            Output::Split { replica, split } => self.tell_split(replica, &split),
            Output::Fence { replica } => self.fence(replica),
            Output::Disconnect { replica, reason } => self.disconnect(replica, reason),
            Output::Serving { term, reason } => self.began_serving(term, reason),
            Output::StoppedServing { reason } => self.stopped_serving(reason),
            Output::BeginResync { at } => {
                let (term, generation) = {
                    let state = self.machine.durable();
                    (state.term, state.line.at(at))
                };
                if let Err(error) = self.brick.set_applied(at, term, generation) {
                    self.fail(&error);
                }
            }
            Output::HandOver { to, term, agreed } => {
                let agreed =
                    agreed.map_or_else(Bytes::new, |agreed| super::links::to_json(&agreed));
                self.send(to, &Message::HandOver { term, agreed });
            }
            Output::Propose(next) => self.propose(next),
            Output::HandedOver { done } => {
                for waiter in self.handover_waiters.drain(..) {
                    let _ = waiter.send(done);
                }
            }
        }
    }

    fn mark_dirty_since(&mut self, replica: usize, since: Sequence) -> Result<(), BrickError> {
        self.brick.push()?;
        // Older marks than the journal's stand in the map already.
        let oldest = Sequence(self.brick.oldest_kept().0.saturating_sub(1));
        self.brick
            .mark_dirty_since(index(replica), since.max(oldest))?;
        if self.machine.phase() != Phase::Activating || self.recovery.suspect.is_empty() {
            return Ok(());
        }
        if made(Mistake::IgnoresDoubts) {
            return Ok(());
        }
        // What a crash left in doubt here, every other replica takes from here (RS-2).
        let items: Vec<_> = self
            .recovery
            .suspect
            .iter()
            .map(|(object, range)| DirtyItem::Blocks {
                object: *object,
                start: range.start / BLOCK_BYTES,
                end: range.end.div_ceil(BLOCK_BYTES),
            })
            .collect();
        self.brick.mark_dirty(index(replica), &items)
    }

    fn make_durable(&mut self, mut state: DurableState) {
        self.note_primary_since(&mut state);
        let bytes = super::links::to_json(&state);
        // The brick makes durable before it whatever the decision rests on (records, marks).
        match self.brick.set_state(bytes) {
            Ok(()) => {
                let now = self.now();
                self.machine.decided(now, state);
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Answers whatever is confirmed. A primary that may have been replaced answers nothing: what
    /// it read may be old (ONE-1).
    fn release_replies(&mut self) {
        let idle = self.waiting.is_empty() && self.flushed.is_empty();
        if idle || !self.machine.may_answer(self.now()) {
            return;
        }
        for held in std::mem::take(&mut self.flushed) {
            self.release(held);
        }
        let confirmed = if made(Mistake::AnswersEarly) {
            self.machine.last()
        } else {
            self.machine.confirmed()
        };
        while let Some(held) = self.waiting.pop(confirmed) {
            self.release(held);
        }
    }

    fn release(&mut self, held: Held) {
        match held {
            Held::Reply(reply) => self.reply(reply),
            Held::Welcome(outbox, frame) => outbox.send(frame),
        }
    }

    fn flush_complete(&mut self, id: FlushId) {
        for waiter in self.flush_waiters.remove(&id).unwrap_or_default() {
            match waiter {
                FlushWaiter::Client {
                    session,
                    number,
                    slot,
                    since,
                } => {
                    let sequence = self.machine.confirmed();
                    let outcome = Outcome::Done;
                    self.flushed.push(Held::Reply(PendingReply {
                        session,
                        slot,
                        number,
                        sequence,
                        since,
                        changed: false,
                        leased: Leased::default(),
                        outcome,
                    }));
                }
                FlushWaiter::Welcome(outbox, frame) => {
                    self.flushed.push(Held::Welcome(outbox, frame));
                }
                FlushWaiter::Task(done) => {
                    let _ = done.send(());
                }
            }
        }
    }

    fn disconnect(&mut self, replica: usize, reason: DropReason) {
        let node = &self.spec.replicas[replica].node_name;
        let why = reason.name();
        tracing::debug!(volume = %self.spec.name, %node, dropped = why, "closing the link to a replica");
        let left = self.machine.standing(replica) == Some(Standing::InSync);
        let deadline = self.settings.replica_deadline;
        if reason == DropReason::Ahead {
            self.left_behind(replica);
        } else if let Some(text) = words::dropped(node, left, reason, deadline) {
            self.host.event("replica_dropped", &self.spec.name, &text);
        }
        if let Some(link) = &self.links[replica] {
            link.outbox.close();
        }
        self.link_lost(replica, None);
    }

    fn began_serving(
        &mut self,
        term: protocol::units::Term,
        reason: replication::state::RoleReason,
    ) {
        let node = &self.spec.replicas[self.me].node_name;
        self.host.event(
            "primary",
            &self.spec.name,
            &format!(
                "{node} is primary in term {term}: {}",
                words::role_reason(reason)
            ),
        );
        // Reads of an earlier term may have ended since this replica stopped.
        self.waiting.clear();
        self.flushed.clear();
        self.ahead_of = Mask::default();
        self.lost_operations = 0;
        self.fitted = None;
        self.take_up_namespace();
        self.begin_gathering(reason);
        self.changed.notify_waiters();
    }

    fn stopped_serving(&mut self, reason: replication::state::RoleReason) {
        let node = &self.spec.replicas[self.me].node_name;
        let text = format!("{node} is primary no more: {}", words::role_reason(reason));
        self.host.event("secondary", &self.spec.name, &text);
        let elsewhere = Elsewhere {
            primary: self.primary_node(),
            retry_ms: 20,
        };
        self.sessions.send_elsewhere(&elsewhere.encode());
        self.replays.stop();
        self.locks.stop();
        self.leasing.stop();
        self.waiting.clear();
        self.flushed.clear();
        self.flush_waiters.clear();
        self.sync_waiters.clear();
        self.sync_objects.clear();
        for (replica, link) in self.links.iter_mut().enumerate() {
            if let Some(link) = link {
                link.stop_source();
            }
            self.resyncs[replica].abandon();
        }
        self.forget_acknowledged();
        self.changed.notify_waiters();
    }

    // ---- the brick's completions ---------------------------------------------------------------

    /// Takes what the brick completed.
    pub(super) fn brick_events(&mut self) {
        let mut events = Vec::new();
        self.brick.poll(&mut events);
        for event in events {
            match event {
                BrickEvent::Flushed(id) => self.brick_flushed(id),
                BrickEvent::ReadDone { token, result } => {
                    if let Some(Token::Read(waiter)) = self.tokens.remove(&token) {
                        let _ = waiter.send(result);
                    }
                }
                BrickEvent::Prepared { token } => {
                    self.tokens.remove(&token);
                    self.changed.notify_waiters();
                }
                BrickEvent::Corrupt { object, block } => {
                    self.repairs.found_one();
                    let what = format!("block {block} of object {object} is damaged");
                    self.host.event("block_damaged", &self.spec.name, &what);
                    self.mend(object, block);
                }
                BrickEvent::Unthrottled => {
                    self.throttled = false;
                    self.changed.notify_waiters();
                }
                BrickEvent::Checkpointed(_) => {}
                BrickEvent::PointLost(id) => {
                    let node = &self.spec.replicas[self.me].node_name;
                    let text = words::point_lost(node, id.0);
                    self.host.event("point_lost", &self.spec.name, &text);
                }
                BrickEvent::Failed(error) => self.fail(&error),
            }
        }
        self.machine.local_stable(self.brick.stable());
    }

    fn brick_flushed(&mut self, id: storage::FlushId) {
        self.machine.local_stable(self.brick.stable());
        match self.brick_flushes.remove(&id) {
            Some(BrickFlush::Volume(flush)) => {
                let now = self.now();
                self.machine.flushed(now, self.me, flush);
            }
            Some(BrickFlush::ForPrimary { id, asker }) => {
                self.acknowledge();
                self.send_back(asker, &Message::Flushed { id });
            }
            Some(BrickFlush::Batches(asker, batches)) => {
                for batch in batches {
                    self.send_back(asker, &Message::Resynced { batch });
                }
                self.flush_batches();
            }
            Some(BrickFlush::Background) | None => {}
        }
    }

    // ---- time ----------------------------------------------------------------------------------

    /// Whether nobody uses the replica and nothing is on its way: a machine may have a thousand of
    /// those.
    pub(super) fn is_quiet(&self) -> bool {
        let resyncs = self.resyncs[self.me].running.is_some()
            || self
                .links
                .iter()
                .flatten()
                .any(|link| link.source.is_some());
        let used = !self.sessions.by_id.is_empty() || !self.waiting.is_empty();
        let moves = self.machine.last() != self.last_at_tick || self.brick.is_busy();
        !used && !resyncs && !moves
    }

    /// Whether this primary, which asks for no promises while nobody asks it, would get them.
    pub(super) fn would_answer(&self) -> bool {
        let set = self.machine.durable().in_sync.without(self.me);
        self.sessions.by_id.is_empty() && set.iter().all(|replica| self.links[replica].is_some())
    }

    /// Called some twenty times a second; a few times while [`Driver::is_quiet`].
    pub(super) fn tick(&mut self) {
        let now = self.now();
        self.last_at_tick = self.machine.last();
        self.apply_left_over();
        self.machine.tick(now);
        self.look_after_throttle(now);
        self.renew_promises(now);
        self.tell_stable();
        self.tend_gathering();
        self.expire_leases();
        self.look_after_journal();
        self.machine.set_journal_from(self.brick.oldest_kept());
        self.finish_turn();
    }

    /// Keeps what others still need of the journal, and forgets marks for what they got after all.
    fn look_after_journal(&mut self) {
        let owed: Vec<_> = self.machine.owed().collect();
        let by_index = owed
            .iter()
            .map(|(replica, after)| (index(*replica), *after));
        self.brick.owe(by_index);
        for (replica, after) in owed {
            let marked = self.brick.marked_late(index(replica));
            if self.machine.may_forget_marks(replica)
                && marked.is_some_and(|last| after >= last)
                && let Err(error) = self.brick.clear_all_dirty(index(replica))
            {
                self.fail(&error);
            }
        }
    }

    /// Called once a second.
    pub(super) fn every_second(&mut self) {
        if self.failed.is_some() {
            return;
        }
        if self.brick.stable() < self.brick.applied() || self.brick.has_unsynced_data() {
            if self.machine.serves() {
                self.sync_all = true;
                let (done, _) = oneshot::channel();
                self.sync_waiters.push(FlushWaiter::Task(done));
            } else {
                self.flush_brick(None, BrickFlush::Background);
            }
        }
        self.expire_sessions();
        self.fail_back();
        self.tell_of_the_future();
        self.brick.give_back();
        self.finish_turn();
    }

    /// Called every few seconds.
    pub(super) fn note_positions(&mut self) {
        if self.failed.is_none() {
            self.machine.note_positions();
            self.finish_turn();
        }
    }

    // ---- commands ------------------------------------------------------------------------------

    /// Whether an operation must wait for the end of a hand-over.
    pub(super) fn is_handing_over(&self) -> bool {
        matches!(self.machine.phase(), Phase::HandingOver { .. })
    }
}

/// A state that never met a change of the replicas means those of the brick's own copy of the
/// configuration.
pub(super) fn name_places(state: &mut DurableState, own: &VolumeSpec) {
    if state.places.members() == Mask::default() {
        state.places = Places::of(own);
    }
}

fn config(spec: &VolumeSpec, me: usize, settings: &Settings, host: &dyn Host) -> Config {
    Config {
        me,
        count: spec.replicas.len(),
        activation_wait: settings.link.activation_wait,
        replica_deadline: settings.replica_deadline,
        agreed: host.agreed(spec.id),
        claim_after: settings.link.claim_after,
        min_in_sync: settings.min_in_sync,
        protocol: settings.protocol,
        queue_bytes_max: settings.queue_bytes_max,
        split_policy: settings.split_policy,
        fencing: settings.fencing,
        // Another one each time: generations are made from it.
        entropy: host.entropy(),
    }
}

/// A replica's index as the brick counts it.
pub(super) fn index(replica: usize) -> u8 {
    u8::try_from(replica).expect("REPLICAS_MAX")
}

/// Why a change set was not ordered.
#[derive(Debug, thiserror::Error)]
pub(super) enum OrderError {
    /// This replica does not order.
    #[error(transparent)]
    Refused(#[from] replication::machine::Refusal),
    /// The brick failed.
    #[error(transparent)]
    Brick(#[from] BrickError),
}

/// Frames are queued by replica index.
impl<M: Medium> Driver<M> {
    pub(super) fn send(&self, replica: usize, message: &Message) {
        self.send_frame(replica, message.encode());
    }

    pub(super) fn send_frame(&self, replica: usize, frame: RawFrame) {
        if let Some(link) = &self.links[replica] {
            link.outbox.send(frame);
        }
    }

    /// The connection to a replica that asks something just now.
    pub(super) fn asker(&self, replica: usize) -> Asker {
        let epoch = self.links[replica].as_ref().map_or(0, |link| link.epoch);
        Asker { replica, epoch }
    }

    /// Answers on the connection on which it was asked; nowhere, if that is gone.
    pub(super) fn send_back(&self, asker: Asker, message: &Message) {
        if self.asker(asker.replica).epoch == asker.epoch {
            self.send(asker.replica, message);
        }
    }

    pub(super) fn send_to_primary(&self, message: &Message) {
        let primary =
            (0..self.links.len()).find(|r| self.machine.standing(*r) == Some(Standing::MyPrimary));
        if let Some(primary) = primary {
            self.send(primary, message);
        }
    }
}
