//! Advisory locks (FO-3, COH-1): held in the volume's keys like everything else that must survive
//! its primary, so they are replicated, taken exactly once and released with their session.
//!
//! A lock is one key for each range that an owner holds; owners of other sessions, classes or ids
//! clash where one of two is exclusive. Who waits is not kept in the volume but in [`Waits`] at
//! the primary: the client asks again wherever it is let in next.

mod holders;
mod ranges;
mod rings;
mod waits;

#[cfg(test)]
mod tests;

use bytes::Bytes;
use protocol::codec::{DecodeError, Reader, Writer};
use protocol::fs::{LOCK_END_MAX, Lock, LockKind, LockOwner, Operation, Outcome};
use protocol::ids::SessionId;
use protocol::record::Change;
use protocol::units::ObjectId;

use crate::errno::{EAGAIN, ENOLCK};
use crate::transaction::{Step, Stop, Transaction, damaged};
use crate::{Context, ExecuteError, Store, keys};
use ranges::{Range, assign};

pub use waits::{
    Acquired, Called, Refusal, WAITS_MAX, WAITS_OF_SESSION_MAX, WAITS_PER_OBJECT_MAX,
    WAITS_PER_OBJECT_OF_SESSION_MAX, Waits, Wanted,
};

/// Ranges that one owner may hold of one object: all of them change in one record.
pub const RANGES_PER_OWNER_MAX: usize = 1024;
/// Ranges that may be held of one object: each request looks at all of them.
pub const RANGES_PER_OBJECT_MAX: usize = 16 << 10;
/// Ranges that one session may hold.
pub const RANGES_PER_SESSION_MAX: u32 = 64 << 10;
/// Version of the values.
const VERSION: u8 = 1;

/// A range that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// By whom.
    pub session: SessionId,
    /// What.
    pub lock: Lock,
}

impl Held {
    /// Whether this keeps `session` from taking `lock`.
    #[must_use]
    pub fn is_in_the_way_of(&self, session: SessionId, lock: &Lock) -> bool {
        (self.session != session || self.lock.owner != lock.owner) && self.lock.clashes(lock)
    }
}

fn decode_lock(key: &[u8], value: &[u8]) -> Result<Held, DecodeError> {
    let mut r = Reader::new(Bytes::copy_from_slice(&key[1..]));
    let _object = r.u64("object of a lock")?;
    let session = SessionId(r.id("session of a lock")?);
    let class = r.u8("class of a lock")?.try_into()?;
    // Numbers in keys are big-endian.
    let id = r.u64("owner of a lock")?.swap_bytes();
    let start = r.u64("start of a lock")?.swap_bytes();
    r.end("key of a lock")?;
    let mut r = version_of(value)?;
    let kind: LockKind = r.u8("kind of a lock")?.try_into()?;
    let end = r.u64("end of a lock")?;
    let pid = r.u32("process of a lock")?;
    r.end("lock")?;
    if start > end || end > LOCK_END_MAX {
        return Err(DecodeError::Invalid {
            what: "end of a lock",
            value: end,
        });
    }
    let owner = LockOwner { class, id };
    let lock = Lock {
        owner,
        kind,
        start,
        end,
        pid,
    };
    Ok(Held { session, lock })
}

fn version_of(value: &[u8]) -> Result<Reader, DecodeError> {
    let mut r = Reader::new(Bytes::copy_from_slice(value));
    match r.u8("version of a lock")? {
        VERSION => Ok(r),
        other => Err(DecodeError::Invalid {
            what: "version of a lock",
            value: u64::from(other),
        }),
    }
}

fn encode_lock(range: &Range) -> Bytes {
    let mut w = Writer::with_capacity(14);
    w.u8(VERSION).u8(range.kind.code());
    w.u64(range.end).u32(range.pid);
    w.finish()
}

fn encode_count(count: u32) -> Bytes {
    Writer::with_capacity(5).u8(VERSION).u32(count).finish()
}

/// Every range that is held of an object.
pub fn locks_of<S: Store>(
    store: &S,
    object: ObjectId,
) -> Result<Vec<Held>, ExecuteError<S::Error>> {
    let prefix = keys::locks(object);
    let mut held = Vec::new();
    let mut broken = None;
    store
        .scan(&prefix, &keys::past(&prefix), &mut |key, value| {
            match decode_lock(key, value) {
                Ok(lock) => held.push(lock),
                Err(source) => broken = Some(damaged(key, source)),
            }
            broken.is_none()
        })
        .map_err(ExecuteError::Store)?;
    match broken {
        Some(error) => Err(error),
        None => Ok(held),
    }
}

/// Operations about locks; `None` for the rest.
pub(crate) fn dispatch<S: Store>(
    tx: &mut Transaction<'_, S>,
    context: &Context<'_>,
    operation: &Operation,
) -> Step<Option<Outcome>, S> {
    Ok(Some(match operation {
        Operation::Lock { object, lock, .. } => {
            tx.inode(*object)?;
            let held = locks_of(tx.store(), *object)?;
            clear(&held, context.session, lock)?;
            let new = Some((lock.kind, lock.pid));
            let range = (lock.start, lock.end);
            set(tx, context.session, *object, &held, lock.owner, range, new)?
        }
        // The object may be gone: its last release can overtake this.
        Operation::Unlock {
            object,
            owner,
            start,
            end,
        } => {
            let held = locks_of(tx.store(), *object)?;
            let range = (*start, *end);
            set(tx, context.session, *object, &held, *owner, range, None)?
        }
        Operation::TestLock { object, lock } => {
            tx.inode(*object)?;
            let held = locks_of(tx.store(), *object)?;
            let other = held
                .iter()
                .find(|h| h.is_in_the_way_of(context.session, lock));
            Outcome::Lock(other.map(|held| told(held, context.session)))
        }
        // Without a queue: whether it could be taken now. A primary has one.
        Operation::AwaitLock { object, lock, .. } => {
            clear(&locks_of(tx.store(), *object)?, context.session, lock)?;
            Outcome::Done
        }
        Operation::ForgetLock { .. } => Outcome::Done,
        _ => return Ok(None),
    }))
}

fn clear<E: std::error::Error>(
    held: &[Held],
    session: SessionId,
    lock: &Lock,
) -> Result<(), Stop<E>> {
    match held.iter().any(|h| h.is_in_the_way_of(session, lock)) {
        true => Err(Stop::Errno(EAGAIN)),
        false => Ok(()),
    }
}

/// What another session may know: its process ids mean nothing there.
fn told(held: &Held, session: SessionId) -> Lock {
    let own = held.session == session;
    Lock {
        pid: if own { held.lock.pid } else { 0 },
        ..held.lock
    }
}

fn count_at<S: Store>(tx: &Transaction<'_, S>, key: &[u8]) -> Step<u32, S> {
    let Some(value) = tx.get(key)? else {
        return Ok(0);
    };
    let decoded = version_of(&value).and_then(|mut r| {
        let count = r.u32("count of locks")?;
        r.end("count of locks")?;
        Ok(count)
    });
    decoded.map_err(|source| damaged(key, source).into())
}

fn put_count<S: Store>(tx: &mut Transaction<'_, S>, key: &[u8], count: u32) {
    match count {
        0 => tx.delete(key),
        _ => tx.put(key, encode_count(count)),
    }
}

/// Makes `range` of the owner `new`, or gives it back.
fn set<S: Store>(
    tx: &mut Transaction<'_, S>,
    session: SessionId,
    object: ObjectId,
    held: &[Held],
    owner: LockOwner,
    range: (u64, u64),
    new: Option<(LockKind, u32)>,
) -> Step<Outcome, S> {
    let of_session = held.iter().filter(|h| h.session == session);
    let own = of_session.clone().filter(|h| h.lock.owner == owner);
    let before: Vec<Range> = own
        .map(|h| Range {
            start: h.lock.start,
            end: h.lock.end,
            kind: h.lock.kind,
            pid: h.lock.pid,
        })
        .collect();
    let after = assign(&before, range, new);
    let key = |start| keys::lock(object, session, owner, start);
    for gone in &before {
        if after.iter().all(|range| range.start != gone.start) {
            tx.delete(&key(gone.start));
        }
    }
    for range in &after {
        if !before.contains(range) {
            tx.put(&key(range.start), encode_lock(range));
        }
    }
    if after.len() == before.len() {
        return Ok(Outcome::Done);
    }
    let (was, is) = (count(before.len()), count(after.len()));
    let total = count_at(tx, &keys::locks_of_session(session))?.saturating_sub(was) + is;
    let on_object = held.len() - before.len() + after.len();
    let too_many = after.len() > RANGES_PER_OWNER_MAX
        || on_object > RANGES_PER_OBJECT_MAX
        || total > RANGES_PER_SESSION_MAX;
    if after.len() > before.len() && too_many {
        return Err(Stop::Errno(ENOLCK));
    }
    let here = count(of_session.count()) - was + is;
    put_count(tx, &keys::locks_of_session_on(session, object), here);
    put_count(tx, &keys::locks_of_session(session), total);
    Ok(Outcome::Done)
}

fn count(ranges: usize) -> u32 {
    u32::try_from(ranges).expect("RANGES_PER_OBJECT_MAX")
}

/// The sessions that hold locks, in order.
pub fn sessions_with_locks<S: Store>(store: &S) -> Result<Vec<SessionId>, ExecuteError<S::Error>> {
    let prefix = [keys::LOCKS_OF_SESSION];
    let mut sessions = Vec::new();
    store
        .scan(&prefix, &keys::past(&prefix), &mut |key, _| {
            let id = key.get(1..17).and_then(|id| id.try_into().ok());
            if let Some(id) = id.map(SessionId)
                && sessions.last() != Some(&id)
            {
                sessions.push(id);
            }
            true
        })
        .map_err(ExecuteError::Store)?;
    Ok(sessions)
}

/// The object of which a change of [`release_locks`] says that nothing is held any more.
#[must_use]
pub fn released_object(change: &Change) -> Option<ObjectId> {
    match change {
        Change::Delete { key } if key.first() == Some(&keys::LOCKS_OF_SESSION) => {
            keys::object_of_count(key)
        }
        _ => None,
    }
}

/// Gives back locks of a session that ended, at most about `changes_max` keys at once: the caller
/// orders what comes and asks again until nothing comes.
pub fn release_locks<S: Store>(
    store: &S,
    session: SessionId,
    changes_max: usize,
) -> Result<Vec<Change>, ExecuteError<S::Error>> {
    let prefix = keys::locks_of_session(session);
    let mut counts = Vec::new();
    store
        .scan(&prefix, &keys::past(&prefix), &mut |key, _| {
            counts.push(Bytes::copy_from_slice(key));
            counts.len() <= changes_max
        })
        .map_err(ExecuteError::Store)?;
    let mut gone = Vec::new();
    // The total stands first; it goes last, so that nothing is left behind half-way.
    if !counts.is_empty() {
        counts.rotate_left(1);
    }
    for at in counts {
        if let Some(object) = keys::object_of_count(&at) {
            let prefix = keys::locks_of_object_and(object, session);
            store
                .scan(&prefix, &keys::past(&prefix), &mut |key, _| {
                    gone.push(Bytes::copy_from_slice(key));
                    gone.len() < changes_max
                })
                .map_err(ExecuteError::Store)?;
        }
        if gone.len() >= changes_max {
            break;
        }
        gone.push(at);
    }
    let delete = |key| Change::Delete { key };
    Ok(gone.into_iter().map(delete).collect())
}
