//! Sides that were given up, served read-only to mounts of their own (ONE-3).
//!
//! Such a mount names `VOLUME@NODE@POINT`. It speaks to that node as other mounts do to the
//! primary, under an id that names the brick and its point. Nothing is kept for it: each request
//! is answered from the brick's point, beside the volume's thread, which goes on with the volume.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use namespace::{Context, Executed, execute, seek_outcome};
use protocol::frame::RawFrame;
use protocol::fs::{
    FS_VERSION, FileSystemStatistics, Hello, HelloReply, Operation, Outcome, Reply, Request, kind,
    refusal,
};
use protocol::ids::{BrickId, SessionId, VolumeId};
use protocol::units::{ObjectId, Timestamp};
use protocol::volume::VolumeKind;
use storage::{Brick, Medium, PointId, PointKind, ReadError, SeekFor};
use tokio::io::AsyncReadExt;

use super::CommandError;
use super::clients::{EIO, EROFS, UNREAD_BYTES_MAX, next_frame};
use super::driver::Shared;
use super::keys::Keys;
use super::outbox::Outbox;
use super::stream::{ReadHalf, Stream};

/// Readings beside the volume's thread at one time.
pub(super) const READERS_MAX: u32 = 16;
/// How long a client may take to greet.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a checkpoint may take that shows what is there.
const CHECKPOINT_WITHIN: Duration = Duration::from_secs(60);
/// How often it is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;
/// A block that is moved aside at the moment in which it is read is looked for again.
const TRIES: usize = 4;

/// What ids of kept sides have in common.
const TAG: [u8; 8] = *b"given up";

/// The id under which a brick's point is mounted.
#[must_use]
pub fn kept_id(volume: VolumeId, brick: BrickId, point: u64) -> VolumeId {
    let mut id = mix(volume, brick);
    for (byte, more) in id.iter_mut().zip(TAG.iter().chain(&point.to_be_bytes())) {
        *byte ^= more;
    }
    VolumeId(id)
}

/// The point of that brick that the id names.
#[must_use]
pub(super) fn point_of(id: VolumeId, volume: VolumeId, brick: BrickId) -> Option<u64> {
    let mut rest = mix(volume, brick);
    for (byte, more) in rest.iter_mut().zip(id.0) {
        *byte ^= more;
    }
    let (tag, point) = rest.split_at(8);
    let point = point.try_into().ok().map(u64::from_be_bytes);
    point.filter(|_| tag == TAG)
}

fn mix(volume: VolumeId, brick: BrickId) -> [u8; 16] {
    let mut id = volume.0;
    for (byte, more) in id.iter_mut().zip(brick.0) {
        *byte ^= more;
    }
    id
}

/// Has the brick's states of now be those of a checkpoint.
pub(super) async fn checkpoint<M: Medium>(shared: &Shared<M>) -> Result<(), CommandError> {
    let failed = |error: &dyn std::fmt::Display| {
        CommandError::refused(
            "checkpoint",
            format!("what is there cannot be looked at: {error}"),
            "look at `cairn volume status`, and try again",
        )
    };
    let until = {
        let mut d = shared.borrow_mut();
        let until = d.brick.applied();
        if let Err(error) = d.brick.checkpoint() {
            return Err(failed(&error));
        }
        d.finish_turn();
        until
    };
    let done = async {
        while shared.borrow().brick.checkpointed() < until && !shared.borrow().stopping {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    tokio::time::timeout(CHECKPOINT_WITHIN, done)
        .await
        .map_err(|_| failed(&"the disk is behind"))
}

/// Reads states of the brick on another thread. `None`: the replica stops, or it failed inside.
pub(super) async fn beside<M: Medium, S: Send + 'static, T: Send + 'static>(
    shared: &Shared<M>,
    states: S,
    read: impl FnOnce(&S) -> T + Send + 'static,
) -> Option<T> {
    let readers = Arc::clone(&shared.borrow().readers);
    let place = readers.acquire_owned().await.ok()?;
    let reading = tokio::task::spawn_blocking(move || {
        let found = read(&states);
        // The brick is not closed while somebody reads it.
        drop(states);
        drop(place);
        found
    });
    reading.await.ok()
}

/// Waits until nobody reads beside the volume's thread any more, and lets nobody begin.
pub(super) async fn end_reading<M: Medium>(shared: &Shared<M>) {
    let readers = Arc::clone(&shared.borrow().readers);
    // Closed is what it becomes here, and only here.
    if let Ok(all) = readers.acquire_many(READERS_MAX).await {
        all.forget();
    }
    readers.close();
}

/// Serves one connection of a mount of a kept side to its end.
pub(super) async fn serve<M: Medium>(shared: Shared<M>, stream: Stream, id: VolumeId) {
    let allowed = {
        let d = shared.borrow();
        let right = |node| d.host.right(node, d.spec.id);
        // What was given up is for operators, on nodes.
        let is_node = |node| right(node).is_some_and(|right| right.client.is_none());
        stream.peer().is_none_or(is_node)
    };
    let (mut reader, writer) = stream.split();
    let outbox = Outbox::new();
    let writing = tokio::task::spawn_local(outbox.clone().run(writer));
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    let greeted =
        tokio::time::timeout(GREETING_TIMEOUT, next_frame(&mut reader, &mut buffer)).await;
    if let Ok(Some(frame)) = greeted {
        let reply = greet(&shared, &frame, allowed, id);
        let point = reply.as_ref().ok().map(|(point, _)| *point);
        let frame = match reply {
            Ok((_, welcome)) => welcome.encode(),
            Err((code, message)) => HelloReply::Refused { code, message }.encode(),
        };
        outbox.send(frame);
        if let Some(point) = point {
            answer_all(&shared, point, &mut reader, &mut buffer, &outbox).await;
        }
        // What was said last is on its way.
        let _ = tokio::time::timeout(GREETING_TIMEOUT, outbox.below(1)).await;
        let _ = tokio::time::timeout(GREETING_TIMEOUT, reader.read_buf(&mut buffer)).await;
    }
    outbox.close();
    let _ = tokio::time::timeout(GREETING_TIMEOUT, writing).await;
}

fn greet<M: Medium>(
    shared: &Shared<M>,
    frame: &RawFrame,
    allowed: bool,
    id: VolumeId,
) -> Result<(PointId, HelloReply), (u16, String)> {
    let d = shared.borrow();
    let hello = (frame.kind == kind::HELLO).then(|| Hello::decode(frame));
    let Some(Ok(hello)) = hello else {
        return Err((refusal::VERSION, "that is no greeting".to_owned()));
    };
    if !allowed {
        let message = "this identity has no right to the volume";
        return Err((refusal::FORBIDDEN, message.to_owned()));
    }
    if hello.version != FS_VERSION {
        let message = format!(
            "version {} is not spoken here, {FS_VERSION} is",
            hello.version
        );
        return Err((refusal::VERSION, message));
    }
    let own = &d.spec.replicas[d.me];
    let named = point_of(id, d.spec.id, own.brick).filter(|_| hello.volume == id);
    let mut points = d.brick.points().into_iter();
    let point = points.find(|point| {
        Some(point.id.0) == named && point.kind == PointKind::GivenUp && d.failed.is_none()
    });
    let Some(point) = point else {
        let message = format!(
            "{} keeps no such side of volume {}",
            own.node_name, d.spec.name
        );
        return Err((refusal::NO_VOLUME, message));
    };
    let timeout = d.settings.session_timeout.as_millis();
    let welcome = HelloReply::Welcome {
        version: FS_VERSION,
        term: point.position.term,
        // There is nothing of it that could be forgotten.
        known: true,
        session_timeout_ms: u32::try_from(timeout).unwrap_or(u32::MAX),
        block: d.spec.kind == VolumeKind::Block,
        ends: Vec::new(),
        gathers: false,
        in_doubt: false,
        object_bytes_max: 0, // nothing is changed
    };
    Ok((point.id, welcome))
}

async fn answer_all<M: Medium>(
    shared: &Shared<M>,
    point: PointId,
    reader: &mut ReadHalf,
    buffer: &mut BytesMut,
    outbox: &Outbox,
) {
    let key = shared.borrow_mut().mounted_points.insert_new(point);
    while let Some(frame) = next_frame(reader, buffer).await {
        match frame.kind {
            kind::REQUEST => {
                let Ok(request) = Request::decode(&frame) else {
                    break;
                };
                let Some(reply) = answer(shared, point, request).await else {
                    break;
                };
                outbox.send(reply.encode());
                outbox.below(UNREAD_BYTES_MAX).await;
            }
            kind::PING => outbox.send(RawFrame {
                kind: kind::PONG,
                ..frame
            }),
            // There is nothing that a client could have kept for it.
            kind::PONG | kind::PRESENT | kind::PRESENTED => {}
            _ => break,
        }
    }
    shared.borrow_mut().mounted_points.remove(key);
}

/// The answer to a request; `None`: the side is not kept any more.
async fn answer<M: Medium>(shared: &Shared<M>, point: PointId, request: Request) -> Option<Reply> {
    let mut tries = TRIES;
    let request = Arc::new(request);
    loop {
        tries -= 1;
        let (view, sequence) = {
            let d = shared.borrow();
            if d.stopping || d.failed.is_some() {
                return None;
            }
            let view = d.brick.view(point).ok()?;
            let sequence = view.applied();
            (view, sequence)
        };
        let asked = Arc::clone(&request);
        let done = beside(shared, view, move |view| outcome(view, &asked)).await?;
        let outcome = match done {
            Ok(outcome) => outcome,
            Err(error) if tries == 0 => {
                tracing::error!(%error, "a kept side cannot be read");
                Outcome::Error(EIO)
            }
            Err(_) => continue,
        };
        return Some(Reply {
            slot: request.slot,
            number: request.number,
            sequence,
            stable: sequence,
            lease_ms: 0,
            changed: false,
            authors: Vec::new(),
            leases: Vec::new(),
            old: Vec::new(),
            exclusive: None,
            times: Vec::new(),
            busy: Vec::new(),
            directories: Vec::new(),
            outcome,
        });
    }
}

/// What comes of a lock or a change. Nobody can change anything here, so a lock keeps nobody from
/// anything; those that the side shows were held when it was given up.
fn without_reading(operation: &Operation) -> Option<Outcome> {
    match operation {
        Operation::Lock { .. }
        | Operation::Unlock { .. }
        | Operation::AwaitLock { .. }
        | Operation::ForgetLock { .. } => Some(Outcome::Done),
        Operation::TestLock { .. } => Some(Outcome::Lock(None)),
        other => other.changes().then_some(Outcome::Error(EROFS)),
    }
}

fn outcome<M: Medium>(
    view: &Brick<M>,
    request: &Request,
) -> Result<Outcome, namespace::ExecuteError<ReadError>> {
    if let Some(outcome) = without_reading(&request.operation) {
        return Ok(outcome);
    }
    let context = Context {
        now: Timestamp(0),
        new_object: ObjectId::ROOT,
        sequence: view.applied(),
        session: SessionId::NONE,
        is_open: &|_| true,
        allocated_bytes: &|object| view.allocated_bytes(object).unwrap_or(0),
        object_bytes_max: i64::MAX as u64,
    };
    let store = namespace::ExecuteError::Store;
    Ok(match execute(&Keys(view), &context, request)? {
        Executed::Answer(outcome) => outcome,
        Executed::Change(_) | Executed::Copy { .. } => Outcome::Error(EROFS),
        Executed::Read {
            object,
            offset,
            len,
        } => Outcome::Data(view.read_now(object, offset, len).map_err(store)?),
        Executed::Sync { .. } => Outcome::Done,
        Executed::Seek {
            object,
            offset,
            hole,
            size,
        } => {
            let what = if hole { SeekFor::Hole } else { SeekFor::Data };
            let found = view.seek(object, offset, what, size).map_err(store)?;
            seek_outcome(hole, size, found)
        }
        Executed::Statistics { objects } => Outcome::FileSystem(FileSystemStatistics {
            bytes_total: view.used_bytes(),
            bytes_free: 0,
            objects,
            objects_free: 0,
        }),
    })
}

/// Which points are mounted, and by how many.
#[derive(Debug, Default)]
pub(super) struct MountedPoints {
    next: u64,
    by_connection: std::collections::BTreeMap<u64, PointId>,
}

impl MountedPoints {
    fn insert_new(&mut self, point: PointId) -> u64 {
        self.next += 1;
        self.by_connection.insert(self.next, point);
        self.next
    }

    fn remove(&mut self, key: u64) {
        self.by_connection.remove(&key);
    }

    /// How many connections show the point.
    pub(super) fn count(&self, point: PointId) -> usize {
        self.by_connection
            .values()
            .filter(|at| **at == point)
            .count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_lock_is_held_where_nothing_can_change() {
        use protocol::fs::{Lock, LockClass, LockKind, LockOwner};
        let object = ObjectId(5);
        let lock = Lock {
            owner: LockOwner {
                class: LockClass::Ranges,
                id: 1,
            },
            kind: LockKind::Exclusive,
            start: 0,
            end: 9,
            pid: 1,
        };
        let test = Operation::TestLock { object, lock };
        assert_eq!(without_reading(&test), Some(Outcome::Lock(None)));
        let ticket = 1;
        let wait = Operation::AwaitLock {
            object,
            lock,
            ticket,
        };
        assert_eq!(without_reading(&wait), Some(Outcome::Done));
        let look = Operation::GetAttributes { object };
        assert_eq!(without_reading(&look), None);
    }

    #[test]
    fn an_id_names_the_point_of_its_brick_and_of_no_other() {
        let (volume, brick) = (VolumeId([7; 16]), BrickId([9; 16]));
        let id = kept_id(volume, brick, 3);
        assert_eq!(point_of(id, volume, brick), Some(3));
        assert_eq!(point_of(id, volume, BrickId([8; 16])), None);
        assert_eq!(point_of(volume, volume, brick), None);
    }
}
