//! The forms of keys. Numbers in keys are big-endian, so that keys sort as their numbers do.

use bytes::Bytes;
use protocol::fs::LockOwner;
use protocol::ids::SessionId;
use protocol::units::ObjectId;

pub(crate) const INODE: u8 = b'i';
pub(crate) const ENTRY: u8 = b'd';
pub(crate) const XATTR: u8 = b'x';
pub(crate) const ORPHAN: u8 = b'o';
pub(crate) const REPLY: u8 = b'r';
pub(crate) const SESSION: u8 = b's';
/// A range of an object that is locked.
pub(crate) const LOCK: u8 = b'l';
/// How many locks a session holds, in all and of each object.
pub(crate) const LOCKS_OF_SESSION: u8 = b'm';
/// Of a block volume: of which configuration its disk has the size.
pub(crate) const DISK: &[u8] = b"b";
/// Totals of the volume.
pub(crate) const TOTALS: &[u8] = b"t";

fn object_key(kind: u8, object: ObjectId) -> [u8; 9] {
    let mut key = [kind; 9];
    key[1..].copy_from_slice(&object.0.to_be_bytes());
    key
}

pub(crate) fn inode(object: ObjectId) -> [u8; 9] {
    object_key(INODE, object)
}

pub(crate) fn orphan(object: ObjectId) -> [u8; 9] {
    object_key(ORPHAN, object)
}

pub(crate) fn entry(parent: ObjectId, cookie: u64) -> [u8; 17] {
    let mut key = [ENTRY; 17];
    key[1..9].copy_from_slice(&parent.0.to_be_bytes());
    key[9..].copy_from_slice(&cookie.to_be_bytes());
    key
}

/// The cookie in a key of [`entry`].
pub(crate) fn entry_cookie(key: &[u8]) -> Option<u64> {
    key.get(9..17)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u64::from_be_bytes)
}

/// The object in a key of [`inode`] or [`orphan`].
pub(crate) fn object_of(key: &[u8]) -> Option<ObjectId> {
    key.get(1..9)
        .and_then(|bytes| bytes.try_into().ok())
        .map(|bytes| ObjectId(u64::from_be_bytes(bytes)))
}

/// An extended attribute; with an empty name the start of the object's.
pub(crate) fn xattr(object: ObjectId, name: &[u8]) -> Bytes {
    let mut key = Vec::with_capacity(9 + name.len());
    key.extend_from_slice(&object_key(XATTR, object));
    key.extend_from_slice(name);
    key.into()
}

/// Past every extended attribute of the object: names never begin with 0xff, they have prefixes.
pub(crate) fn xattr_end(object: ObjectId) -> Bytes {
    xattr(object, &[0xff])
}

pub(crate) fn reply(session: SessionId, slot: u16) -> [u8; 19] {
    let mut key = [REPLY; 19];
    key[1..17].copy_from_slice(&session.0);
    key[17..].copy_from_slice(&slot.to_be_bytes());
    key
}

pub(crate) fn session(session: SessionId) -> [u8; 17] {
    let mut key = [SESSION; 17];
    key[1..].copy_from_slice(&session.0);
    key
}

/// Before every lock of an object.
pub(crate) fn locks(object: ObjectId) -> [u8; 9] {
    object_key(LOCK, object)
}

/// Before every lock that a session holds of an object.
pub(crate) fn locks_of_object_and(object: ObjectId, session: SessionId) -> [u8; 25] {
    let mut key = [LOCK; 25];
    key[1..9].copy_from_slice(&object.0.to_be_bytes());
    key[9..].copy_from_slice(&session.0);
    key
}

/// A range that is held.
pub(crate) fn lock(object: ObjectId, session: SessionId, owner: LockOwner, start: u64) -> [u8; 42] {
    let mut key = [owner.class.code(); 42];
    key[..25].copy_from_slice(&locks_of_object_and(object, session));
    key[26..34].copy_from_slice(&owner.id.to_be_bytes());
    key[34..].copy_from_slice(&start.to_be_bytes());
    key
}

/// How many locks a session holds.
pub(crate) fn locks_of_session(session: SessionId) -> [u8; 17] {
    let mut key = [LOCKS_OF_SESSION; 17];
    key[1..].copy_from_slice(&session.0);
    key
}

/// How many locks a session holds of an object.
pub(crate) fn locks_of_session_on(session: SessionId, object: ObjectId) -> [u8; 25] {
    let mut key = [LOCKS_OF_SESSION; 25];
    key[1..17].copy_from_slice(&session.0);
    key[17..].copy_from_slice(&object.0.to_be_bytes());
    key
}

/// The object in a key of [`locks_of_session_on`].
pub(crate) fn object_of_count(key: &[u8]) -> Option<ObjectId> {
    let bytes = key.get(17..25)?.try_into().ok()?;
    Some(ObjectId(u64::from_be_bytes(bytes)))
}

/// Past every key that begins with `prefix`. The kinds of keys are letters, so there is such a one.
pub(crate) fn past(prefix: &[u8]) -> Bytes {
    let kept = prefix.iter().rposition(|byte| *byte < u8::MAX);
    let mut past = prefix[..=kept.unwrap_or(0)].to_vec();
    if let Some(last) = past.last_mut() {
        *last += 1;
    }
    past.into()
}

/// The byte after all keys of a kind.
pub(crate) fn end_of(kind: u8) -> [u8; 1] {
    [kind + 1]
}
