//! A mount without a kernel: a session that goes on over reconnects and asks again by number.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fuse_client::session::keep::{Keep, Lost, Welcome};
use fuse_client::session::leases::Cache;
use protocol::frame::{RawFrame, take_frame};
use protocol::fs::{
    Caller, FS_VERSION, Hello, HelloReply, LEASES_OF_SESSION_MAX, Operation, Outcome,
    Place as Ordered, Recalled, Reply, Request, SLOT_NONE, kind, offer,
};
use protocol::ids::{SessionId, VolumeId};
use protocol::preamble::Purpose;
use protocol::units::{ObjectId, Sequence, Term};
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
}

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
}

/// What a client takes for granted that has nothing to lose.
const NOTHING_LOST: Welcome<'_> = Welcome {
    term: Term(0),
    ends: &[],
    gathers: false,
    in_doubt: false,
    leases: &[],
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
            state: Rc::default(),
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
            let key = if operation.changes() {
                let number = state.numbers.entry(slot).or_insert(0);
                *number += 1;
                (slot, *number)
            } else {
                state.plain += 1;
                (SLOT_NONE, state.plain)
            };
            let changes = state.cache.asks(&operation, now);
            let request = Request {
                slot: key.0,
                number: key.1,
                caller: Caller::default(),
                operation,
                payload,
            };
            let frame = request.encode();
            state.unsent.push(frame.clone());
            state.asked += 1;
            let order = state.asked;
            let pending = Pending {
                operation: request.operation,
                frame,
                sent: false,
                again: false,
                at: now,
                changes,
                answer: Some(answer),
            };
            state.pending.insert(order, (key, pending));
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
        let welcome = Welcome {
            term: welcomed.term,
            ends: &welcomed.ends,
            gathers: welcomed.gathers,
            in_doubt: welcomed.in_doubt,
            leases: &leases,
        };
        let State { keep, pending, .. } = &mut *state;
        let sent = pending.values().filter(|(_, p)| p.sent);
        let sent = sent.filter(|(key, _)| key.0 != SLOT_NONE);
        let mut frames = keep.welcomed(welcome, sent.map(|(_, p)| &p.frame));
        if welcomed.presented {
            frames.clear();
        }
        let after = welcomed.mark + 1;
        let again = pending.range(after..).map(|(_, (_, p))| &p.frame);
        frames.extend(again.cloned());
        state.unsent = frames;
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
                    let operation = &pending.operation;
                    state.cache.over(operation, &pending.changes);
                    let (at, again) = (pending.at, pending.again);
                    state.cache.answered(operation, &reply, at, again, now);
                    state
                        .keep
                        .confirmed(&pending.operation, &pending.frame, &reply);
                    if let Some(answer) = pending.answer {
                        let _ = answer.send(reply.outcome);
                    }
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
        state.plain += 1;
        state.asked += 1;
        let (key, order) = ((SLOT_NONE, state.plain), state.asked);
        let changes = state.cache.asks(&operation, now);
        let request = Request {
            slot: key.0,
            number: key.1,
            caller: Caller::default(),
            operation,
            payload: Bytes::new(),
        };
        let frame = request.encode();
        state.unsent.push(frame.clone());
        // As one that holds many: it gets it again.
        state.unsent.push(offer(&[object]));
        let pending = Pending {
            operation: request.operation,
            frame,
            sent: false,
            again: false,
            at: now,
            changes,
            answer: None,
        };
        state.pending.insert(order, (key, pending));
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
