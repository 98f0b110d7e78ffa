//! A mount without a kernel: a session that goes on over reconnects and asks again by number.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fuse_client::session::keep::{Keep, Lost, Welcome};
use fuse_client::session::leases::{Cache, EARLY_UNANSWERED_MAX};
use protocol::frame::{RawFrame, take_frame};
use protocol::fs::{
    Caller, FS_VERSION, Hello, HelloReply, LEASES_OF_SESSION_MAX, Operation, Outcome,
    Place as Ordered, Recalled, Reply, Request, SLOT_NONE, kind, offer,
};
use protocol::ids::{SessionId, VolumeId};
use protocol::preamble::Purpose;
use protocol::units::{ObjectId, Sequence, Term, Timestamp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::cluster::{CLIENTS_FROM, Directory, dial};
use super::network::{End, Network, Place, Reader, Writer};

/// How long a greeting may take.
const GREETING_WITHIN: Duration = Duration::from_secs(3);
/// A node that says nothing for so long is left.
const SILENCE: Duration = Duration::from_millis(600);
/// A sign of life is asked for when nothing came for so long.
const PING_AFTER: Duration = Duration::from_millis(150);
/// Before a node is greeted again, at first and in the end.
const PAUSE: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// Slots for what is answered early.
const EARLY_SLOTS: std::ops::Range<u16> = 64..128;
/// One recall of so many is not answered.
const STANDS_STILL: u64 = 16;

struct Pending {
    operation: Operation,
    frame: RawFrame,
    /// It may have reached a primary, and did more than once.
    sent: bool,
    again: bool,
    /// When it was asked, and what it may change, for the cache.
    at: Duration,
    changes: Vec<ObjectId>,
    answer: Option<oneshot::Sender<Outcome>>,
    early: Option<Early>,
}

/// An operation that was answered before it was asked.
struct Early {
    object: ObjectId,
    /// The lease under which it was lasted at least until then.
    until: Duration,
    ends: oneshot::Sender<EarlyEnd>,
}

/// What became of it.
pub(crate) struct EarlyEnd {
    pub(crate) outcome: Outcome,
    /// The lease may have ended before a primary had it: others may not have seen it.
    pub(crate) lapsed: bool,
}

/// A change, answered early or not.
pub(crate) type Changed = (Outcome, Option<oneshot::Receiver<EarlyEnd>>);

#[derive(Default)]
struct State {
    /// In the order of asking.
    pending: BTreeMap<u64, ((u16, u64), Pending)>,
    asked: u64,
    /// Asked, and not yet sent on this connection.
    unsent: Vec<RawFrame>,
    numbers: BTreeMap<u16, u64>,
    plain: u64,
    opens: Vec<ObjectId>,
    /// Whether the session was not known where it went, although a change was confirmed to it.
    forgotten: bool,
    /// A change was confirmed.
    confirmed: bool,
    leaves: bool,
    /// The highest record that an answer rested on, and the term of the primary that gave it.
    seen: (Term, Sequence),
    /// What was confirmed and may not be stable, as the shipped client keeps it.
    keep: Keep,
    /// What may be answered without asking, as the shipped client keeps it.
    cache: Cache,
    /// How often it was.
    kept_answers: u64,
    /// It is let in, and has said what it had to.
    sends: bool,
    /// Free slots for what is answered early: those who asked go on with their own.
    early_slots: Vec<u16>,
    /// Syncs that were answered before everything was that had been answered early before them: they
    /// are asked again.
    syncs: Vec<(u64, oneshot::Sender<Outcome>, Operation)>,
    /// When objects were changed, by the last answers.
    changed_at: BTreeMap<ObjectId, Timestamp>,
    /// How often something was answered early.
    early_answers: u64,
    /// What could not be put back.
    lost: Vec<String>,
    /// The node that let the session in last.
    likely: Place,
}

impl State {
    /// What is to be sent now; from here on it may have reached a primary.
    fn take_unsent(&mut self) -> Vec<RawFrame> {
        let unsent = std::mem::take(&mut self.unsent);
        if !unsent.is_empty() {
            for (_, pending) in self.pending.values_mut() {
                pending.again |= std::mem::replace(&mut pending.sent, true);
            }
        }
        unsent
    }

    /// The first change that was answered early and was not taken, by the order of asking.
    fn first_early(&self) -> Option<u64> {
        let mut early = self.pending.iter().filter(|(_, (_, p))| p.early.is_some());
        early.next().map(|(order, _)| *order)
    }

    /// Syncs whose earlier changes were all answered are asked again.
    fn ask_syncs_again(&mut self, now: Duration) {
        let first = self.first_early();
        for (order, answer, operation) in std::mem::take(&mut self.syncs) {
            if first.is_none_or(|first| order < first) {
                let order = self.put(SLOT_NONE, operation, Bytes::new(), now, None);
                if let Some((_, pending)) = self.pending.get_mut(&order) {
                    pending.answer = Some(answer);
                }
            } else {
                self.syncs.push((order, answer, operation));
            }
        }
    }

    /// What a change comes to that is answered now, and is on its way.
    fn answer_early(&mut self, operation: &Operation, payload: &Bytes, now: Duration) -> Changed {
        let (answer, wait) = oneshot::channel();
        let object = match operation {
            Operation::Write { object, .. } if self.sends => *object,
            _ => return (Outcome::Done, None),
        };
        let first = self
            .first_early()
            .and_then(|order| self.pending.get(&order));
        if first.is_some_and(|(_, first)| now >= first.at + EARLY_UNANSWERED_MAX) {
            return (Outcome::Done, None);
        }
        let free = self.early_slots.pop();
        let early = free.and_then(|_| self.cache.early(operation, payload.len(), now));
        let (Some(slot), Some((known, outcome))) = (free, early) else {
            self.early_slots.extend(free);
            return (Outcome::Done, None);
        };
        self.early_answers += 1;
        let until = self.cache.until();
        let early = Early {
            object,
            until,
            ends: answer,
        };
        self.put(
            slot,
            operation.clone(),
            payload.clone(),
            now,
            Some((known, early)),
        );
        (outcome, Some(wait))
    }

    /// Something is asked in a slot.
    fn put(
        &mut self,
        slot: u16,
        operation: Operation,
        payload: Bytes,
        now: Duration,
        early: Option<(Timestamp, Early)>,
    ) -> u64 {
        let key = if operation.changes() {
            let number = self.numbers.entry(slot).or_insert(0);
            *number += 1;
            (slot, *number)
        } else {
            self.plain += 1;
            (SLOT_NONE, self.plain)
        };
        let changes = self.cache.asks(&operation, early.is_some(), now);
        let (known, early) = early.unzip();
        let request = Request {
            slot: key.0,
            number: key.1,
            caller: Caller::default(),
            operation,
            early: known,
            payload,
        };
        let frame = request.encode();
        self.unsent.push(frame.clone());
        self.asked += 1;
        let pending = Pending {
            operation: request.operation,
            frame,
            sent: false,
            again: false,
            at: now,
            changes,
            answer: None,
            early,
        };
        self.pending.insert(self.asked, (key, pending));
        self.asked
    }

    fn note_losses(&mut self) {
        let lost = self.keep.take_lost();
        if lost != Lost::default() {
            self.lost.push(format!("{lost:?}"));
        }
    }
}

/// A connection on which the session was let in.
struct Welcomed {
    end: End,
    buffer: BytesMut,
    /// What was asked up to this number was sent behind the hello.
    mark: u64,
    /// What is kept, nothing, was presented behind the hello.
    presented: bool,
    known: bool,
    term: Term,
    ends: Vec<Ordered>,
    gathers: bool,
    in_doubt: bool,
    object_bytes_max: u64,
}

/// What a client takes for granted that has nothing to lose.
const NOTHING_LOST: Welcome<'_> = Welcome {
    term: Term(0),
    ends: &[],
    gathers: false,
    in_doubt: false,
    leases: &[],
    exclusive: &[],
    early: &[],
};

/// One mount. Clones are one mount.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) place: Place,
    session: SessionId,
    volume: VolumeId,
    /// As long as it has nothing to lose, asks behind its hello, before the node has let it in.
    impatient: bool,
    network: Network,
    directory: Directory,
    /// It asks this node and no other.
    only: Option<Place>,
    /// It answers changes early where it may.
    early: bool,
    state: Rc<RefCell<State>>,
    wake: Rc<Notify>,
    begun: Instant,
}

impl Client {
    pub(crate) fn new(
        place: Place,
        session: SessionId,
        volume: VolumeId,
        impatient: bool,
        network: Network,
        directory: Directory,
    ) -> Self {
        Self {
            place,
            session,
            volume,
            impatient,
            network,
            directory,
            only: None,
            early: true,
            state: Rc::new(RefCell::new(State {
                early_slots: EARLY_SLOTS.collect(),
                ..State::default()
            })),
            wake: Rc::default(),
            begun: Instant::now(),
        }
    }

    /// Asks this node and no other: what it mounts is there alone.
    pub(crate) fn at(self, node: Place) -> Self {
        Self {
            only: Some(node),
            ..self
        }
    }

    /// Waits for each answer.
    pub(crate) fn patient(self) -> Self {
        Self {
            early: false,
            ..self
        }
    }

    /// How often it answered a change before it was asked.
    pub(crate) fn early_answers(&self) -> u64 {
        self.state.borrow().early_answers
    }

    /// Does a change, and tells of one that was answered early what became of it.
    pub(crate) async fn change(&self, slot: u16, operation: Operation, payload: Bytes) -> Changed {
        if self.early {
            let mut state = self.state.borrow_mut();
            let answered = state.answer_early(&operation, &payload, self.now());
            drop(state);
            if answered.1.is_some() {
                self.wake.notify_one();
                return answered;
            }
        }
        (self.call(slot, operation, payload).await, None)
    }

    /// Whether the session ended at the primary while the mount lived.
    pub(crate) fn was_forgotten(&self) -> bool {
        self.state.borrow().forgotten
    }

    /// What was confirmed and is lost for good, as an application would be told; since the last look.
    pub(crate) fn take_losses(&self) -> Vec<String> {
        std::mem::take(&mut self.state.borrow_mut().lost)
    }

    /// Does an operation; `slot` is the caller's own, and carries one operation at a time. Waits
    /// for as long as it takes.
    pub(crate) async fn call(&self, slot: u16, operation: Operation, payload: Bytes) -> Outcome {
        let now = self.now();
        let (answer, wait) = oneshot::channel();
        {
            let mut state = self.state.borrow_mut();
            if let Some((outcome, _)) = state.cache.look(&operation, now) {
                state.kept_answers += 1;
                return outcome;
            }
            let order = state.put(slot, operation, payload, now, None);
            if let Some((_, pending)) = state.pending.get_mut(&order) {
                pending.answer = Some(answer);
            }
        }
        self.wake.notify_one();
        wait.await.expect("the client outlives its callers")
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// How often it answered without asking.
    pub(crate) fn kept_answers(&self) -> u64 {
        self.state.borrow().kept_answers
    }

    /// The mount holds the object open from now on.
    pub(crate) fn holds(&self, object: ObjectId) {
        self.state.borrow_mut().opens.push(object);
    }

    /// The mount ends: its session is said goodbye to where that is possible.
    pub(crate) fn leave(&self) {
        self.state.borrow_mut().leaves = true;
        self.wake.notify_one();
    }

    /// Keeps a connection until the mount ends.
    pub(crate) async fn run(self) {
        while !self.state.borrow().leaves {
            let welcomed = self.find_primary().await;
            self.serve(welcomed).await;
            self.state.borrow_mut().sends = false;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Greets every node until one of them serves, as a mount does.
    async fn find_primary(&self) -> Welcomed {
        let mut asking = JoinSet::new();
        // A brick may be added where there is none yet, and get the role.
        let nodes = 0..CLIENTS_FROM;
        for node in nodes.filter(|node| self.only.is_none_or(|only| only == *node)) {
            asking.spawn_local(self.clone().ask(node));
        }
        loop {
            // Those that are not first are given up.
            if let Some(Ok(welcomed)) = asking.join_next().await {
                return welcomed;
            }
        }
    }

    /// Greets a node until it lets the session in.
    async fn ask(self, node: Place) -> Welcomed {
        let mut pause = PAUSE;
        loop {
            let dialled = dial(
                self.network.clone(),
                self.directory.clone(),
                self.place,
                node,
                Purpose::Client(self.volume),
            );
            if let Ok(end) = dialled.await
                && let Some(welcomed) = self.greet(node, end).await
            {
                self.state.borrow_mut().likely = node;
                return welcomed;
            }
            tokio::time::sleep(pause).await;
            pause = (pause + PAUSE).min(PAUSE_MAX);
        }
    }

    async fn greet(&self, node: Place, end: End) -> Option<Welcomed> {
        let End {
            mut reader,
            mut writer,
        } = end;
        let mut buffer = BytesMut::new();
        let (hello, frames, mark) = self.greeting(node);
        send(&mut writer, &hello).await?;
        for frame in &frames {
            send(&mut writer, frame).await?;
        }
        let greeted = tokio::time::timeout(GREETING_WITHIN, next_frame(&mut reader, &mut buffer));
        match HelloReply::decode(&greeted.await.ok()??).ok()? {
            HelloReply::Welcome {
                known,
                term,
                ends,
                gathers,
                in_doubt,
                object_bytes_max,
                ..
            } => Some(Welcomed {
                end: End { reader, writer },
                buffer,
                mark,
                presented: !frames.is_empty(),
                known,
                term,
                ends,
                gathers,
                in_doubt,
                object_bytes_max,
            }),
            HelloReply::Elsewhere(_) => None,
            HelloReply::Refused { message, .. } => panic!("a client was refused: {message}"),
        }
    }

    /// The hello, what is asked at once behind it, and how much had been asked by then.
    fn greeting(&self, node: Place) -> (RawFrame, Vec<RawFrame>, u64) {
        let mut state = self.state.borrow_mut();
        let hello = Hello {
            version: FS_VERSION,
            volume: self.volume,
            session: self.session,
            client_name: format!("client{}", self.place),
            mounted_at_ms: 0,
            read_only: false,
            opens: state.opens.clone(),
            confirmed: state.seen,
            kept_terms: state.keep.terms(),
            leases: u32::try_from(LEASES_OF_SESSION_MAX).expect("65,536"),
            early: self.early,
        };
        let begins = state.keep.terms().is_empty() && state.pending.values().all(|(_, p)| !p.sent);
        if !self.impatient || !begins || node != state.likely {
            return (hello.encode(), Vec::new(), 0);
        }
        // Whoever lets it in is told that nothing is held.
        state.cache.clear();
        let mut frames = Keep::new().welcomed(NOTHING_LOST, std::iter::empty());
        for (_, pending) in state.pending.values_mut() {
            // Whether it is let in or not: the node may carry it out.
            pending.again |= std::mem::replace(&mut pending.sent, true);
            frames.push(pending.frame.clone());
        }
        (hello.encode(), frames, state.asked)
    }

    /// What an answer to the hello says: what was kept is presented, and everything is asked again
    /// that was not behind the hello.
    fn let_in(&self, welcomed: &Welcomed) {
        let mut state = self.state.borrow_mut();
        state.cache.files_up_to(welcomed.object_bytes_max);
        let seen = state.seen;
        state.cache.let_in(&welcomed.ends, seen, self.now());
        if state.seen.0 != welcomed.term {
            state.seen = (welcomed.term, Sequence::ZERO);
        }
        state.forgotten |= state.confirmed && !welcomed.known;
        let leases = match welcomed.presented {
            true => Vec::new(),
            false => state.cache.present(self.now()),
        };
        let exclusive = match welcomed.presented {
            true => Vec::new(),
            false => state.cache.alone(),
        };
        let early = state.cache.early_under_way();
        let welcome = Welcome {
            term: welcomed.term,
            ends: &welcomed.ends,
            gathers: welcomed.gathers,
            in_doubt: welcomed.in_doubt,
            leases: &leases,
            exclusive: &exclusive,
            early: &early,
        };
        let State {
            keep,
            pending,
            changed_at,
            ..
        } = &mut *state;
        let sent = pending.values().filter(|(_, p)| p.sent);
        let sent = sent.filter(|(key, _)| key.0 != SLOT_NONE);
        let mut frames = keep.welcomed(welcome, sent.map(|(_, p)| &p.frame));
        if welcomed.presented {
            frames.clear();
        }
        let after = welcomed.mark + 1;
        for (_, (_, pending)) in pending.range_mut(after..) {
            let object = pending.early.as_ref().map(|early| early.object);
            if let Some(at) = object.and_then(|object| changed_at.get(&object)) {
                pending.frame = Request::known_later(&pending.frame, *at);
            }
            frames.push(pending.frame.clone());
        }
        state.unsent = frames;
        state.sends = true;
        state.note_losses();
    }

    /// One connection to its end.
    async fn serve(&self, welcomed: Welcomed) -> Option<()> {
        self.let_in(&welcomed);
        let Welcomed {
            end: End {
                mut reader,
                mut writer,
            },
            mut buffer,
            ..
        } = welcomed;
        let mut quiet = 0;
        loop {
            let unsent = self.state.borrow_mut().take_unsent();
            for frame in &unsent {
                send(&mut writer, frame).await?;
            }
            if self.state.borrow().leaves {
                send(&mut writer, &plain(kind::GOODBYE)).await?;
                return Some(());
            }
            tokio::select! {
                biased;
                frame = next_frame(&mut reader, &mut buffer) => {
                    quiet = 0;
                    self.take(&frame?)?;
                }
                () = self.wake.notified() => {}
                () = tokio::time::sleep(PING_AFTER) => {
                    quiet += 1;
                    if PING_AFTER * quiet > SILENCE {
                        return None;
                    }
                    send(&mut writer, &plain(kind::PING)).await?;
                    self.keep_leases();
                }
            }
        }
    }

    /// `None`: the node serves no more.
    fn take(&self, frame: &RawFrame) -> Option<()> {
        match frame.kind {
            kind::REPLY => {
                let reply = Reply::decode(frame).expect("a reply is well formed");
                let (now, mut state) = (self.now(), self.state.borrow_mut());
                state.seen.1 = state.seen.1.max(reply.sequence);
                state.keep.told(&reply);
                let key = (reply.slot, reply.number);
                let order = state.pending.iter().find(|(_, (k, _))| *k == key);
                if let Some(order) = order.map(|(order, _)| *order)
                    && let Some((_, pending)) = state.pending.remove(&order)
                {
                    state.confirmed |= reply.changed;
                    if let Outcome::Written { attributes: a, .. } | Outcome::Attributes(a) =
                        &reply.outcome
                    {
                        state.changed_at.insert(a.object, a.ctime);
                    }
                    state.changed_at.extend(reply.times.iter().copied());
                    let operation = &pending.operation;
                    let early = pending.early.is_some();
                    state.cache.over(operation, &pending.changes, early);
                    let (at, again) = (pending.at, pending.again);
                    state.cache.answered(operation, &reply, at, again, now);
                    state
                        .keep
                        .confirmed(&pending.operation, &pending.frame, &reply);
                    if let Some(early) = pending.early {
                        state.early_slots.push(reply.slot);
                        if let Outcome::Error(_) = reply.outcome {
                            state.cache.failed(early.object);
                        }
                        let _ = early.ends.send(EarlyEnd {
                            outcome: reply.outcome,
                            lapsed: now >= early.until,
                        });
                    } else if let Some(answer) = pending.answer {
                        let syncs = matches!(
                            pending.operation,
                            Operation::Sync { .. } | Operation::SyncAll
                        );
                        let overtook = state.first_early().is_some_and(|first| first < order);
                        if syncs && overtook {
                            state.syncs.push((order, answer, pending.operation));
                        } else {
                            let _ = answer.send(reply.outcome);
                        }
                    }
                    state.ask_syncs_again(now);
                } else {
                    state.cache.changed(&reply.old);
                    state.keep.replayed(&reply);
                    state.note_losses();
                }
                Some(())
            }
            kind::RECALL => {
                let recalled = Recalled::decode(frame).expect("a recall is well formed");
                let mut state = self.state.borrow_mut();
                let now = self.now();
                let forget = state.cache.recalled(recalled, now);
                // Now and then a mount stands still: its leases run out.
                if !forget.number.is_multiple_of(STANDS_STILL)
                    && let Some(given) = state.cache.gives_back(&forget, &[], now)
                {
                    state.unsent.push(given.give_back());
                }
                Some(())
            }
            kind::ELSEWHERE => None,
            _ => Some(()),
        }
    }
}

impl Client {
    /// Leases do not run out for want of a question.
    fn keep_leases(&self) {
        let (now, mut state) = (self.now(), self.state.borrow_mut());
        if !state.cache.wants_to_ask(now) {
            return;
        }
        let object = ObjectId::ROOT;
        let operation = Operation::GetAttributes { object };
        state.put(SLOT_NONE, operation, Bytes::new(), now, None);
        // As one that holds many: it gets it again.
        state.unsent.push(offer(&[object]));
    }
}

fn plain(kind: u8) -> RawFrame {
    RawFrame {
        kind,
        meta: Bytes::new(),
        payload: Bytes::new(),
    }
}

async fn send(writer: &mut Writer, frame: &RawFrame) -> Option<()> {
    let mut bytes = BytesMut::new();
    frame.write_to(&mut bytes);
    let sent = tokio::time::timeout(Duration::from_secs(1), writer.write_all(&bytes));
    sent.await.ok()?.ok()
}

async fn next_frame(reader: &mut Reader, buffer: &mut BytesMut) -> Option<RawFrame> {
    loop {
        if let Some(frame) = take_frame(buffer).expect("a primary sends frames") {
            return Some(frame);
        }
        if reader.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}
