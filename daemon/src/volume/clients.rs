//! Connections of mounts and the execution of their requests.

use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use namespace::leases::{Given, touched};
use namespace::{Admission, ChangeSet, Context, ExecuteError, Executed};
use protocol::frame::{RawFrame, take_frame};
use protocol::fs::{
    Attributes, Author, Elsewhere, FS_VERSION, Hello, HelloReply, Operation, Outcome, Recalled,
    Replay, Reply, Request, SLOT_NONE, SLOTS_MAX, fallocate, kind, offered, refusal,
};
use protocol::ids::{NodeId, SessionId};
use protocol::mistakes::{Mistake, made};
use protocol::units::{ObjectId, Sequence, Timestamp};
use storage::{Medium, ReadError, ReadOutcome, SeekFor};
use tokio::io::AsyncReadExt;
use tokio::sync::oneshot;

use super::copying::{self, Piece};
use super::driver::{Driver, OrderError, Shared, Token};
use super::held::{FlushWaiter, Held, PendingReply};
use super::keys::Keys;
use super::leases::{Leased, directories_of, file_changed, files_told};
use super::outbox::Outbox;
use super::repair::finish_read;
use super::replay::Presented;
use super::sessions::Done;
use super::stream::{ReadHalf, Stream};

/// How long a client may take to greet.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the last word to a client may take.
const LAST_WORD_WITHIN: Duration = Duration::from_millis(500);
/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;
/// Bytes of answers that a client may leave unread before it is not heard any more.
pub(super) const UNREAD_BYTES_MAX: usize = 8 << 20;

pub(super) const EIO: i32 = 5;
const ENFILE: i32 = 23;
pub(super) const ENOSPC: i32 = 28;
pub(super) const EROFS: i32 = 30;

/// What an answer says of leases.
#[derive(Default)]
struct Told {
    leases: Vec<ObjectId>,
    exclusive: Option<ObjectId>,
    old: Vec<ObjectId>,
    times: Vec<(ObjectId, Timestamp)>,
    busy: Vec<ObjectId>,
    directories: Vec<Attributes>,
}

/// What has to be tried again when something changed.
#[derive(Default)]
struct Again {
    request: Option<Box<Request>>,
    replay: Option<Box<Replay>>,
}

/// Who is at the other end of a connection.
pub(super) struct Asks {
    /// Proven by TLS; `None`: a process of this machine, which the data socket's mode lets in.
    pub(super) peer: Option<NodeId>,
    pub(super) address: Option<String>,
}

/// What has to happen before more of a client's requests are taken.
enum Wait {
    /// More bytes come.
    Bytes,
    /// Something changes.
    Change,
    /// The client reads what it was answered.
    Unread(Rc<Outbox>),
}

/// Why a change is refused whatever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    Errno(i32),
    /// Only room is missing that is held back for early changes: it waits until that is given up.
    HeldBack,
}

/// What became of a request.
pub(super) enum Taken {
    /// It is under way or answered.
    Yes,
    /// It must be tried again when something changed.
    Later(Box<Request>),
}

/// Serves one connection of a mount to its end.
pub(super) async fn serve_client<M: Medium>(driver: Shared<M>, stream: Stream) {
    let asks = Asks {
        peer: stream.peer(),
        address: stream.address(),
    };
    let (mut reader, writer) = stream.split();
    let outbox = Outbox::new();
    let writing = tokio::task::spawn_local(outbox.clone().run(writer));
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    let greeted =
        tokio::time::timeout(GREETING_TIMEOUT, next_frame(&mut reader, &mut buffer)).await;
    let opened = match greeted {
        Ok(Some(frame)) => open(&driver, &frame, asks, &outbox),
        _ => None,
    };
    if let Some((session, connection)) = opened {
        read_requests(&driver, session, connection, &mut reader, &mut buffer).await;
        {
            let mut d = driver.borrow_mut();
            let now = d.now();
            if d.sessions.disconnected(session, connection, now) {
                d.leasing.table.disconnected(session, now);
                d.forget_waits(session);
                d.finish_turn();
            }
        }
        // A word about where to go instead may still be on its way.
        let _ = tokio::time::timeout(LAST_WORD_WITHIN, outbox.below(1)).await;
    } else {
        // A refusal is on its way: let the client read it.
        let _ = tokio::time::timeout(GREETING_TIMEOUT, reader.read_buf(&mut buffer)).await;
    }
    outbox.close();
    let _ = tokio::time::timeout(GREETING_TIMEOUT, writing).await;
}

/// The next frame; `None`: the connection ended, or what came is none.
pub(super) async fn next_frame(reader: &mut ReadHalf, buffer: &mut BytesMut) -> Option<RawFrame> {
    loop {
        match take_frame(buffer) {
            Ok(Some(frame)) => return Some(frame),
            Ok(None) => {}
            Err(error) => {
                tracing::info!(%error, "closing a client's connection");
                return None;
            }
        }
        if reader.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}

fn open<M: Medium>(
    driver: &Shared<M>,
    frame: &RawFrame,
    asks: Asks,
    outbox: &Rc<Outbox>,
) -> Option<(SessionId, u64)> {
    let hello = (frame.kind == kind::HELLO).then(|| Hello::decode(frame));
    let Some(Ok(hello)) = hello else {
        tracing::info!("closing a client's connection: it does not greet");
        return None;
    };
    let mut d = driver.borrow_mut();
    let refuse = |code, message: &str| {
        outbox.send(
            HelloReply::Refused {
                code,
                message: message.to_owned(),
            }
            .encode(),
        );
        None
    };
    let right = match d.admits(asks.peer, asks.address.as_deref()) {
        Ok(right) => right,
        Err(reason) => return refuse(refusal::FORBIDDEN, &reason),
    };
    // A node's mounts come by the socket or by its key; between machines a session does not move.
    if right.client.is_some() && d.sessions.belongs_to_another(hello.session, asks.peer) {
        return refuse(refusal::FORBIDDEN, "the session belongs to another machine");
    }
    if hello.volume != d.spec.id {
        return refuse(
            refusal::NO_VOLUME,
            "the connection was led to another volume than it names",
        );
    }
    if hello.version != FS_VERSION {
        let message = format!(
            "version {} is not spoken here, {FS_VERSION} is",
            hello.version
        );
        return refuse(refusal::VERSION, &message);
    }
    if !d.machine.serves() || d.failed.is_some() {
        let elsewhere = Elsewhere {
            primary: d.primary_node(),
            retry_ms: 50,
        };
        outbox.send(HelloReply::Elsewhere(elsewhere).encode());
        return None;
    }
    let connection = d.open_session(&hello, asks, right, outbox)?;
    Some((hello.session, connection))
}

async fn read_requests<M: Medium>(
    driver: &Shared<M>,
    session: SessionId,
    connection: u64,
    reader: &mut ReadHalf,
    buffer: &mut BytesMut,
) {
    let mut again = Again::default();
    loop {
        let wait = {
            let mut d = driver.borrow_mut();
            let current = d
                .sessions
                .by_id
                .get(&session)
                .and_then(|s| s.connection.as_ref());
            if current.is_none_or(|(id, outbox)| *id != connection || outbox.is_closed()) {
                return;
            }
            let wait = d.take_requests(driver, session, buffer, &mut again);
            d.finish_turn();
            wait
        };
        match wait {
            Err(()) => return,
            Ok(Wait::Unread(outbox)) => outbox.below(UNREAD_BYTES_MAX).await,
            Ok(Wait::Change) => {
                let changed = driver.borrow().changed.clone();
                // The notification may have come between the turn and here: look again soon.
                let _ = tokio::time::timeout(Duration::from_millis(5), changed.notified()).await;
            }
            Ok(Wait::Bytes) => {
                buffer.reserve(READ_BYTES);
                match reader.read_buf(buffer).await {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                }
            }
        }
    }
}

impl<M: Medium> Driver<M> {
    /// The client's connection, where it has not read what it was answered.
    pub(super) fn unread(&self, session: SessionId) -> Option<Rc<Outbox>> {
        let (_, outbox) = self.sessions.by_id.get(&session)?.connection.as_ref()?;
        (outbox.queued_bytes() >= UNREAD_BYTES_MAX).then(|| Rc::clone(outbox))
    }

    /// Takes requests from the buffer. `Err`: close.
    fn take_requests(
        &mut self,
        shared: &Shared<M>,
        session: SessionId,
        buffer: &mut BytesMut,
        again: &mut Again,
    ) -> Result<Wait, ()> {
        let now = self.now();
        if let Some(state) = self.sessions.by_id.get_mut(&session) {
            state.heard = now;
        }
        self.leasing.table.heard(session, now);
        loop {
            if let Some(outbox) = self.unread(session) {
                return Ok(Wait::Unread(outbox));
            }
            if self.is_full() || self.is_handing_over() {
                return Ok(Wait::Change);
            }
            if self.failed.is_some() || !self.machine.serves() {
                return Err(());
            }
            match self.take_presented(session, buffer, &mut again.replay) {
                Ok(Presented::Requests) => {}
                Ok(Presented::Bytes) => return Ok(Wait::Bytes),
                Ok(Presented::Later) => return Ok(Wait::Change),
                Err(reason) => {
                    tracing::info!(%reason, "closing a client's connection");
                    return Err(());
                }
            }
            let request = if let Some(request) = again.request.take() {
                request
            } else {
                match self.next_request(session, buffer) {
                    Ok(Some(request)) => request,
                    Ok(None) => return Ok(Wait::Bytes),
                    Err(reason) => {
                        tracing::info!(%reason, "closing a client's connection");
                        return Err(());
                    }
                }
            };
            match self.take(shared, session, request) {
                Ok(Taken::Yes) => {}
                Ok(Taken::Later(request)) => {
                    again.request = Some(request);
                    return Ok(Wait::Change);
                }
                Err(reason) => {
                    tracing::warn!(%reason, "closing a client's connection");
                    return Err(());
                }
            }
        }
    }

    /// The next request of the buffer; answers pings and ends the session on the way.
    fn next_request(
        &mut self,
        session: SessionId,
        buffer: &mut BytesMut,
    ) -> Result<Option<Box<Request>>, String> {
        while let Some(frame) = take_frame(buffer).map_err(|e| e.to_string())? {
            match frame.kind {
                kind::REQUEST => {
                    let request = Request::decode(&frame).map_err(|e| e.to_string())?;
                    let now = self.now();
                    self.leasing.table.renew(session, now);
                    return Ok(Some(Box::new(request)));
                }
                kind::GIVE_BACK => {
                    let given = Recalled::decode(&frame).map_err(|e| e.to_string())?;
                    self.leases_given_back(session, given);
                }
                kind::OFFER => {
                    let objects = offered(&frame).map_err(|e| e.to_string())?;
                    self.leases_offered(session, &objects);
                }
                kind::PING | kind::PONG => self.answer_ping(session, frame),
                kind::GOODBYE => {
                    self.end_session(session, true);
                    return Err("the client said goodbye".to_owned());
                }
                other => return Err(format!("frame kind {other} is not a client's")),
            }
        }
        Ok(None)
    }

    pub(super) fn answer_ping(&self, session: SessionId, frame: RawFrame) {
        let state = self.sessions.by_id.get(&session);
        if let Some((_, outbox)) = state.and_then(|s| s.connection.as_ref())
            && frame.kind == kind::PING
        {
            outbox.send(RawFrame {
                kind: kind::PONG,
                ..frame
            });
        }
    }

    pub(super) fn take(
        &mut self,
        shared: &Shared<M>,
        session: SessionId,
        mut request: Box<Request>,
    ) -> Result<Taken, String> {
        let changes = request.operation.changes();
        if changes {
            if request.slot >= SLOTS_MAX {
                return Err(format!("a change came in slot {}", request.slot));
            }
            if self.leasing.has_aside(session, request.slot) {
                return Err(format!("slot {} was used before its answer", request.slot));
            }
            if let Some(taken) = self.answer_again(session, &mut request)? {
                return Ok(taken);
            }
        } else if request.slot != SLOT_NONE {
            return Err(format!("a question came in slot {}", request.slot));
        }
        if self.leasing.has_early_aside(session) {
            return Ok(self.leasing.park(session, request));
        }
        if changes {
            match self.refuse_change(session, &request) {
                Some(Refusal::Errno(errno)) => {
                    let refusal = self.refuse_slot(session, &request, errno);
                    self.reply(refusal);
                    return Ok(Taken::Yes);
                }
                Some(Refusal::HeldBack) => {
                    self.give_up_early_room();
                    return Ok(self.leasing.park(session, request));
                }
                None => {}
            }
        }
        if let Some(errno) = self.refuse_lock(session, &request) {
            // Only who is still the primary knows who goes first.
            let refusal = self.refuse_slot(session, &request, errno);
            self.reply_when_confirmed(refusal);
            return Ok(Taken::Yes);
        }
        if self.take_wait(session, &request) {
            return Ok(Taken::Yes);
        }
        if changes && self.repairs.holds(&request.operation) {
            return Ok(Taken::Later(request));
        }
        if changes && !self.is_prepared(&request.operation, request.payload.len() as u64) {
            return Ok(Taken::Later(request));
        }
        if !self.execute(shared, session, &request)? {
            return Ok(self.leasing.park(session, request));
        }
        self.after_locking(session, &request.operation);
        Ok(Taken::Yes)
    }

    /// A request that was sent before is answered as it was, or is still under way.
    fn answer_again(
        &mut self,
        session: SessionId,
        request: &mut Request,
    ) -> Result<Option<Taken>, String> {
        let state = self
            .sessions
            .by_id
            .get(&session)
            .ok_or("the session is gone")?;
        if let Some(slot) = state.slots.get(&request.slot) {
            if request.number < slot.number {
                return Err(format!(
                    "slot {} went back to {}",
                    request.slot, request.number
                ));
            }
            if request.number > slot.number {
                if slot.done.is_none() {
                    return Err(format!("slot {} was used before its answer", request.slot));
                }
                return Ok(None);
            }
            if made(Mistake::ExecutesTwice) && slot.done.is_none() {
                return Ok(None);
            }
            let done = slot.done.clone();
            self.sessions.repeated(session, request.slot);
            if let Some(done) = done {
                self.leasing.note_early(session, request, &done.outcome);
                // It tells what was true when it was asked first.
                let again = (request.slot, request.number);
                self.answer(session, again, done, Told::default());
            }
            return Ok(Some(Taken::Yes));
        }
        if made(Mistake::ForgetsReplies) {
            return Ok(None);
        }
        let kept = namespace::kept_reply(&Keys(&self.brick), session, request.slot)
            .map_err(|e| e.to_string())?;
        match namespace::admit(kept, request.number) {
            Admission::Execute => Ok(None),
            Admission::Past { last } => Err(format!(
                "slot {} is at {last}, not {}",
                request.slot, request.number
            )),
            Admission::Kept(kept) if self.is_in_doubt(&request.operation, &kept.outcome) => {
                // Its record is here, its data may have gone with the power. It is not answered
                // yet, so it may take effect now, where it did first.
                if let (
                    Operation::Write { offset, append, .. },
                    Outcome::Written { offset: at, .. },
                ) = (&mut request.operation, kept.outcome)
                {
                    (*offset, *append) = (at, false);
                }
                Ok(None)
            }
            Admission::Kept(kept) => {
                let outcome = kept.outcome;
                self.leasing.note_early(session, request, &outcome);
                // It is applied here; what it rests on may still wait for the other replicas.
                self.note_slot(session, request);
                if let Some(object) = namespace::opened(&request.operation, &outcome) {
                    self.sessions.open_by_slot(session, request.slot, object);
                }
                let sequence = kept.sequence.unwrap_or_else(|| self.machine.last());
                let (slot, number) = (request.slot, request.number);
                let reply = PendingReply {
                    session,
                    slot,
                    number,
                    sequence,
                    changed: true,
                    since: None,
                    leased: Leased::default(),
                    outcome,
                };
                self.waiting.push(self.machine.last(), Held::Reply(reply));
                Ok(Some(Taken::Yes))
            }
        }
    }

    /// Whether a write went where this replica's crash left data in doubt.
    fn is_in_doubt(&self, operation: &Operation, outcome: &Outcome) -> bool {
        let (
            Operation::Write { object, .. } | Operation::CopyRange { object, .. },
            Outcome::Written { len, offset, .. },
        ) = (operation, outcome)
        else {
            return false;
        };
        let end = offset.saturating_add(u64::from(*len));
        self.doubts()
            .any(|(of, range)| of == *object && range.start < end && *offset < range.end)
    }

    fn note_slot(&mut self, session: SessionId, request: &Request) {
        self.sessions
            .take_slot(session, request.slot, request.number);
    }

    /// Why a change is refused, if it is whatever it is.
    pub(super) fn refuse_change(
        &mut self,
        session: SessionId,
        request: &Request,
    ) -> Option<Refusal> {
        if let Operation::Lock { .. } | Operation::Unlock { .. } = request.operation {
            return None; // who only reads locks as well; they are few, and the reserve carries them
        }
        // Whether its mount is read-only is for the kernel there, which may remount it.
        let known = self.sessions.by_id.get(&session);
        let only_reads = known.is_some_and(|session| session.only_reads);
        // What was answered early was asked before the option was set.
        let read_only = self.settings.read_only && !self.is_privileged(session, request);
        if read_only || only_reads {
            return Some(Refusal::Errno(EROFS));
        }
        let held_back = match self.has_room_held_back(session, request) {
            true => 0,
            false => self.early_room(),
        };
        self.refuse_for_room(request, held_back)
    }

    /// ENOSPC for a change that needs room which is not there, besides what is held back from it.
    pub(super) fn refuse_for_room(&mut self, request: &Request, held_back: u64) -> Option<Refusal> {
        let frees = matches!(
            request.operation,
            Operation::Unlink { .. }
                | Operation::RemoveDirectory { .. }
                | Operation::SetAttributes { .. }
                | Operation::RemoveXattr { .. }
        ) || matches!(request.operation, Operation::Allocate { mode, .. } if mode & fallocate::PUNCH_HOLE != 0);
        if frees {
            return None; // a full volume can be emptied: the reserve carries it
        }
        let bytes = 4096 + request.payload.len() as u64;
        if self.has_room(bytes + held_back) {
            return None;
        }
        Some(match held_back > 0 && self.has_room(bytes) {
            true => Refusal::HeldBack,
            false => Refusal::Errno(ENOSPC),
        })
    }

    fn refuse_slot(&mut self, session: SessionId, request: &Request, errno: i32) -> PendingReply {
        self.note_slot(session, request);
        PendingReply {
            session,
            slot: request.slot,
            number: request.number,
            sequence: self.machine.confirmed(),
            since: None,
            changed: false,
            leased: Leased::default(),
            outcome: Outcome::Error(errno),
        }
    }

    /// What a request comes to, as the volume is now, if a change becomes the next record.
    pub(super) fn decide_on(
        &self,
        session: SessionId,
        request: &Request,
        now: Timestamp,
        new_object: ObjectId,
    ) -> Result<Executed, ExecuteError<ReadError>> {
        let context = Context {
            now,
            new_object,
            session,
            sequence: self.machine.last().next(),
            is_open: &|object| self.sessions.holds(object),
            allocated_bytes: &|object| self.brick.allocated_bytes(object).unwrap_or(0),
            object_bytes_max: self.object_bytes_max,
        };
        let keys = Keys(&self.brick);
        // What was answered early was asked before the option was set.
        if !self.settings.root_squash || self.is_privileged(session, request) {
            return namespace::execute(&keys, &context, request);
        }
        match namespace::squash(&keys, request)? {
            Ok(squashed) => namespace::execute(&keys, &context, &squashed),
            Err(errno) => Ok(Executed::Answer(Outcome::Error(errno))),
        }
    }

    /// False: it waits for leases of others, and nothing came of it.
    fn execute(
        &mut self,
        shared: &Shared<M>,
        session: SessionId,
        request: &Request,
    ) -> Result<bool, String> {
        let now = self.timestamp();
        let term = self.machine.durable().term;
        let next = self.machine.last().next();
        let new_object = ObjectId::allocate(term, next).ok_or("the volume is out of object ids")?;
        if let Some(known) = request.early
            && !self.takes_early(session, request, known)?
        {
            tracing::info!(session = %session.short(), "what was answered early is lost: others changed the file since");
            let refusal = self.refuse_slot(session, request, EIO);
            self.reply(refusal);
            return Ok(true);
        }
        let mut executed = self.decide_on(session, request, now, new_object);
        if let Ok(Executed::Answer(outcome)) = &mut executed {
            self.hide_in_listing(session, outcome);
        }
        let mut old = Vec::new();
        if let Ok(executed) = &executed
            && !self.may_tell(session, &files_told(&request.operation, executed))
        {
            return Ok(false);
        }
        if let Ok(Executed::Change(set)) = &executed {
            match self.may_change(session, &touched(&set.changes)) {
                Some(known) => old = known,
                None => return Ok(false),
            }
        }
        if request.operation.changes() {
            self.note_slot(session, request);
        }
        self.carry_out_decided(shared, session, request, executed, old)?;
        Ok(true)
    }

    /// What nothing stands in the way of is answered, or begins.
    fn carry_out_decided(
        &mut self,
        shared: &Shared<M>,
        session: SessionId,
        request: &Request,
        executed: Result<Executed, ExecuteError<ReadError>>,
        old: Vec<ObjectId>,
    ) -> Result<(), String> {
        let (slot, number) = (request.slot, request.number);
        let (sequence, since) = (self.machine.last(), Some(self.now()));
        let pending = |outcome| PendingReply {
            session,
            slot,
            number,
            sequence,
            since,
            changed: false,
            leased: Leased::default(),
            outcome,
        };
        match executed {
            Ok(Executed::Answer(outcome)) => {
                let outcome = self.count_open(session, request, outcome);
                let grants = self.grants_of(session, &request.operation, &outcome);
                self.reply_when_confirmed(PendingReply {
                    leased: Leased {
                        grants,
                        old,
                        ..Leased::default()
                    },
                    ..pending(outcome)
                });
            }
            Ok(Executed::Change(set)) => {
                self.carry_out_change(session, request, set, old, pending(Outcome::Done))?;
            }
            Ok(Executed::Read {
                object,
                offset,
                len,
            }) => {
                self.read_for(shared, pending(Outcome::Done), object, offset, len);
            }
            Ok(Executed::Copy { from, offset, len }) => {
                let piece = Piece { from, offset, len };
                copying::copy(self, shared, session, request, piece);
            }
            Ok(Executed::Sync { object, .. }) => {
                match object {
                    Some(object) => self.sync_objects.push(object),
                    None => self.sync_all = true,
                }
                self.sync_waiters.push(FlushWaiter::Client {
                    session,
                    number,
                    slot,
                    since,
                });
            }
            Ok(Executed::Seek {
                object,
                offset,
                hole,
                size,
            }) => {
                let what = if hole { SeekFor::Hole } else { SeekFor::Data };
                let outcome = match self.brick.seek(object, offset, what, size) {
                    Ok(found) => namespace::seek_outcome(hole, size, found),
                    Err(error) => self.read_failed(&error),
                };
                self.reply_when_confirmed(pending(outcome));
            }
            Ok(Executed::Statistics { objects }) => {
                let outcome = Outcome::FileSystem(self.statistics(objects));
                self.reply_when_confirmed(pending(outcome));
            }
            Err(error) => {
                tracing::error!(volume = %self.spec.name, %error, "an operation could not be decided");
                let text = format!("an operation was answered with an error: {error}");
                self.host.event("metadata_damaged", &self.spec.name, &text);
                self.reply_when_confirmed(pending(Outcome::Error(EIO)));
            }
        }
        Ok(())
    }

    /// A change that nothing stands in the way of becomes the next record.
    fn carry_out_change(
        &mut self,
        session: SessionId,
        request: &Request,
        set: ChangeSet,
        old: Vec<ObjectId>,
        reply: PendingReply,
    ) -> Result<(), String> {
        let outcome = self.count_open(session, request, set.outcome);
        let objects = touched(&set.changes);
        match self.order(set.changes, set.payload) {
            Ok(sequence) => {
                self.note_author(session, request, sequence);
                self.replays.changers.note(session);
                let outcome = self.with_blocks(outcome);
                let grants = self.grants_of(session, &request.operation, &outcome);
                let alone = file_changed(&request.operation, &outcome);
                self.leasing.note_early(session, request, &outcome);
                let times = self.note_changed(session, &objects, &outcome);
                let directories = self.changed_directories(&request.operation);
                if request.early.is_some() {
                    self.look_after_early_room();
                }
                let reply = PendingReply {
                    sequence,
                    changed: true,
                    leased: Leased {
                        grants,
                        old,
                        alone,
                        times,
                        directories,
                    },
                    outcome,
                    ..reply
                };
                self.waiting.push(sequence, Held::Reply(reply));
            }
            Err(OrderError::Brick(error)) => self.fail(&error),
            Err(OrderError::Refused(refusal)) => return Err(refusal.to_string()),
        }
        Ok(())
    }

    /// Directories in which a change changed names, as they are after it: its mount would ask for
    /// them before it changes the next one.
    fn changed_directories(&self, operation: &Operation) -> Vec<Attributes> {
        let read = |directory| match namespace::attributes(&Keys(&self.brick), directory) {
            Ok(attributes) => attributes,
            Err(error) => {
                tracing::error!(%error, "a directory cannot be read");
                None
            }
        };
        let directories = directories_of(operation).into_iter();
        directories.filter_map(read).collect()
    }

    /// What an answer tells of a file's blocks was read before its change was ordered.
    pub(super) fn with_blocks(&self, mut outcome: Outcome) -> Outcome {
        if let Outcome::Attributes(a) | Outcome::Written { attributes: a, .. } = &mut outcome
            && let Ok(bytes) = self.brick.allocated_bytes(a.object)
        {
            a.blocks = namespace::blocks_of(bytes);
        }
        outcome
    }

    fn count_open(&mut self, session: SessionId, request: &Request, outcome: Outcome) -> Outcome {
        if let Some(object) = namespace::opened(&request.operation, &outcome)
            && !self.sessions.open_by_slot(session, request.slot, object)
        {
            return Outcome::Error(ENFILE);
        }
        if let (Operation::Release { object }, Outcome::Done) = (&request.operation, &outcome) {
            self.sessions.release(session, *object);
            self.release_orphans();
        }
        outcome
    }

    // ---- reads ---------------------------------------------------------------------------------

    fn read_failed(&mut self, error: &ReadError) -> Outcome {
        tracing::error!(volume = %self.spec.name, %error, "a read failed");
        let text = format!("a read was answered with an error: {error}");
        self.host.event("read_failed", &self.spec.name, &text);
        Outcome::Error(EIO)
    }

    fn read_for(
        &mut self,
        shared: &Shared<M>,
        reply: PendingReply,
        object: ObjectId,
        offset: u64,
        len: u32,
    ) {
        let (done, wait) = oneshot::channel();
        let token = self.token(Token::Read(done));
        match self.brick.read(object, offset, len, token) {
            Ok(ReadOutcome::Ready(data)) => {
                self.tokens.remove(&token);
                self.reply_when_confirmed(PendingReply {
                    outcome: Outcome::Data(data),
                    ..reply
                });
            }
            Ok(ReadOutcome::Pending) => {
                let shared = shared.clone();
                tokio::task::spawn_local(async move {
                    let result = wait.await;
                    finish_read(&shared, reply, (object, offset, len), result.ok()).await;
                });
            }
            Err(error) => {
                self.tokens.remove(&token);
                let shared = shared.clone();
                tokio::task::spawn_local(async move {
                    finish_read(&shared, reply, (object, offset, len), Some(Err(error))).await;
                });
            }
        }
    }

    // ---- replies -------------------------------------------------------------------------------

    /// Replies once everything that was ordered so far is confirmed: what the reply tells must
    /// not be lost by a failure of the primary.
    pub(super) fn reply_when_confirmed(&mut self, reply: PendingReply) {
        let until = reply.sequence;
        if until <= self.machine.confirmed() && self.machine.may_answer(self.now()) {
            self.reply(reply);
        } else {
            let what = Held::Reply(reply);
            self.waiting.push(until, what);
        }
    }

    /// Replies now.
    pub(super) fn reply(&mut self, reply: PendingReply) {
        let PendingReply {
            session,
            slot,
            number,
            sequence,
            since,
            changed,
            leased,
            outcome,
        } = reply;
        let done = Done {
            sequence,
            changed,
            outcome,
        };
        if slot != SLOT_NONE
            && let Some(state) = self.sessions.by_id.get_mut(&session)
            && let Some(kept) = state.slots.get_mut(&slot)
            && kept.number == number
        {
            kept.done = Some(done.clone());
        }
        let now = self.now();
        if let Some(since) = since {
            self.throttle.answered(now, now.saturating_sub(since));
        }
        // Until it has presented what it holds, nothing is added to that.
        let state = self.sessions.by_id.get(&session);
        let presents = state.is_some_and(|state| state.presents);
        let mut told = Told {
            old: leased.old,
            times: leased.times,
            ..Told::default()
        };
        for granted in leased.grants.into_iter().filter(|_| !presents) {
            match self.give(session, granted, leased.alone) {
                Given::Nothing => continue,
                Given::Exclusive => told.exclusive = Some(granted.0),
                Given::Shared => {}
            }
            if self.leasing.table.is_busy(granted.0, now)
                && !namespace::is_file(&Keys(&self.brick), granted.0).unwrap_or(true)
            {
                told.busy.push(granted.0);
            }
            told.leases.push(granted.0);
        }
        let mut directories = leased.directories;
        directories.retain(|directory| told.leases.contains(&directory.object));
        told.directories = directories;
        self.answer(session, (slot, number), done, told);
    }

    fn answer(&mut self, session: SessionId, (slot, number): (u16, u64), done: Done, told: Told) {
        // Who may have been replaced lengthens no lease: another primary may count already.
        let lease_ms = match self.machine.may_answer(self.now()) {
            true => self.leasing.table.time().as_millis(),
            false => 0,
        };
        let stable = self.machine.stable_everywhere();
        let alone = self.sessions.by_id.len() < 2;
        let Some(state) = self.sessions.by_id.get_mut(&session) else {
            return;
        };
        let Some((_, outbox)) = &state.connection else {
            return;
        };
        let mut authors = Vec::new();
        if !alone {
            let known = &self.replays.authors;
            authors = known.between(state.told, done.sequence, stable, session);
            state.told = state.told.max(done.sequence);
        }
        outbox.send(
            Reply {
                slot,
                number,
                sequence: done.sequence,
                stable,
                lease_ms: u16::try_from(lease_ms).expect("a few seconds"),
                changed: done.changed,
                authors,
                leases: told.leases,
                old: told.old,
                exclusive: told.exclusive,
                times: told.times,
                busy: told.busy,
                directories: told.directories,
                outcome: done.outcome,
            }
            .encode(),
        );
    }

    /// A record carries out a request.
    pub(super) fn note_author(
        &mut self,
        session: SessionId,
        request: &Request,
        sequence: Sequence,
    ) {
        let author = Author {
            at: (self.machine.durable().term, sequence),
            session,
            slot: request.slot,
            number: request.number,
        };
        let stable = self.machine.stable_everywhere();
        self.replays.authors.note(author, stable);
    }
}
