//! POSIX rules over a small key-value store: an operation in, a change set out.
//!
//! The primary calls [`execute()`] once for each request. It reads the volume's keys through
//! [`Store`] and answers with one of five things ([`Executed`]): an outcome, a change set that
//! carries its outcome with it, or an instruction that needs the objects' data. Nothing is
//! changed here: the caller orders the change set, applies it everywhere and then replies, so
//! replicas never repeat the logic and cannot differ.
//!
//! Pure: no clock, socket, file or thread. Time, the id of a new object and who holds what open
//! come in with [`Context`].
//!
//! How the keys and values look stands in `docs/namespace-keys.md`.
//!
//! Permissions are the client's kernel's business, but where [`squash()`] says otherwise.
//!
//! Deliberate differences from a local file system: reading does not change the access time; a
//! directory's size is its number of entries; `fallocate` lengthens a file but reserves nothing
//! beyond what the volume's space credits already promise.

#![forbid(unsafe_code)]

mod acl;
mod disk;
mod entry;
pub mod errno;
mod execute;
mod inode;
mod keys;
pub mod leases;
pub mod locks;
pub mod memory;
mod replies;
mod transaction;
mod tree;

#[cfg(test)]
mod tests;

use bytes::Bytes;
use protocol::codec::DecodeError;
use protocol::fs::{Operation, Outcome};
use protocol::ids::SessionId;
use protocol::record::Change;
use protocol::units::{ObjectId, Sequence, Timestamp};

pub use disk::{DISK_NAME, mkdisk, resize_disk};
pub use execute::{NOBODY, copied, execute, seek_outcome, squash};
pub use inode::{Detail, Inode, blocks_of, latest_change};
pub use replies::{
    Admission, KeptReply, Owner, Session, admit, end_session, kept_reply, open_session, sessions,
};
pub use tree::{
    Orphans, about, inode_of, is_orphan, mkfs, objects, orphans, path_of, release_orphan, walk,
};

/// Hard links that a file may have.
pub const LINKS_MAX: u32 = 65_000;
/// Bytes of a symbolic link's target.
pub const TARGET_BYTES_MAX: usize = 4095;
/// Bytes of an extended attribute's value.
pub const XATTR_VALUE_BYTES_MAX: usize = 64 * 1024;
/// Bytes of an extended attribute's name, its prefix included.
pub const XATTR_NAME_BYTES_MAX: usize = 255;
/// Extended attributes of one object: their names fit the 64 KiB that listxattr(2) can return,
/// and deleting an object with all of them stays far below the changes that a record may have.
pub const XATTRS_MAX: u32 = 255;

/// The volume's ordered keys, as they are after every change that was ordered so far.
pub trait Store {
    /// Why reading failed.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Self::Error>;

    /// Calls `f` with each key in `[from, to)` and its value, in order, until it returns false.
    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        f: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), Self::Error>;
}

/// What an execution needs to know besides the keys.
pub struct Context<'a> {
    /// The primary's time: max(its clock, the last time it gave), so that times never step back.
    pub now: Timestamp,
    /// The id of the object that this operation may make: of the sequence that it would get.
    pub new_object: ObjectId,
    /// Whose request it is: the reply is kept under this.
    pub session: SessionId,
    /// The record that a change becomes.
    pub sequence: Sequence,
    /// Whether any session holds the object open: then its last link leaves an orphan.
    pub is_open: &'a dyn Fn(ObjectId) -> bool,
    /// Bytes of storage that the object's data takes.
    pub allocated_bytes: &'a dyn Fn(ObjectId) -> u64,
    /// Longest file, in bytes: where the smallest brick's file system ends, at most `i64::MAX`.
    pub object_bytes_max: u64,
}

/// A change and its reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeSet {
    /// For the record, the kept reply among them.
    pub changes: Vec<Change>,
    /// Data of the writes among them.
    pub payload: Bytes,
    /// The reply, once the record is confirmed.
    pub outcome: Outcome,
}

/// What the caller does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Executed {
    /// Reply this; nothing changes.
    Answer(Outcome),
    /// Order this, then reply its outcome.
    Change(ChangeSet),
    /// Reply these bytes, all of which lie within the file's size.
    Read {
        /// The object.
        object: ObjectId,
        /// First byte.
        offset: u64,
        /// Bytes, not 0.
        len: u32,
    },
    /// Read these bytes, all of which lie within the size of `from`, and execute what [`copied`]
    /// makes of them; reply its outcome once it is stable.
    Copy {
        /// What is copied.
        from: ObjectId,
        /// First byte of that.
        offset: u64,
        /// Bytes, not 0.
        len: u32,
    },
    /// Make stable what was confirmed, then reply `Done`.
    Sync {
        /// Of this object, or everything.
        object: Option<ObjectId>,
        /// Times need not be stable.
        data_only: bool,
    },
    /// Find data or a hole at or after `offset`, then reply [`seek_outcome`].
    Seek {
        /// The object.
        object: ObjectId,
        /// Below `size`.
        offset: u64,
        /// A hole is sought, else data.
        hole: bool,
        /// The file's size: everything from here on is a hole.
        size: u64,
    },
    /// Reply statistics with this number of objects in use.
    Statistics {
        /// Objects in use.
        objects: u64,
    },
}

/// Why an operation could not be decided. Not the operation's fault: see [`Outcome::Error`] for
/// that.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError<E: std::error::Error + 'static> {
    /// The store failed.
    #[error("the metadata store failed")]
    Store(#[source] E),
    /// A value does not decode.
    #[error("the value of a key of type `{}` at {at:x} is damaged", char::from(*kind))]
    Damaged {
        /// First byte of the key.
        kind: u8,
        /// The object of the key.
        at: u64,
        /// How.
        #[source]
        source: DecodeError,
    },
    /// A key that another one points to does not exist, or parents form a ring.
    #[error("object {object} is named in the tree but its keys contradict that")]
    Inconsistent {
        /// The object.
        object: ObjectId,
    },
    /// A request that changes the volume came without a slot.
    #[error("a request that changes the volume came in slot {slot}")]
    Slot {
        /// The slot.
        slot: u16,
    },
}

/// Whether an object has this id, an unlinked one included.
pub fn exists<S: Store>(store: &S, object: ObjectId) -> Result<bool, ExecuteError<S::Error>> {
    let found = store.get(&keys::inode(object));
    Ok(found.map_err(ExecuteError::Store)?.is_some())
}

/// The size of a regular file; `None`: there is no such object.
pub fn size<S: Store>(store: &S, object: ObjectId) -> Result<Option<u64>, ExecuteError<S::Error>> {
    Ok(transaction::read_inode(store, object)?.map(|inode| inode.size))
}

/// Whether an object is there and is a regular file.
pub fn is_file<S: Store>(store: &S, object: ObjectId) -> Result<bool, ExecuteError<S::Error>> {
    Ok(transaction::read_inode(store, object)?.is_some_and(|inode| inode.is_file()))
}

/// Attributes of a directory; `None`: there is no such object, or it is none.
pub fn attributes<S: Store>(
    store: &S,
    directory: ObjectId,
) -> Result<Option<protocol::fs::Attributes>, ExecuteError<S::Error>> {
    let inode = transaction::read_inode(store, directory)?.filter(Inode::is_directory);
    Ok(inode.map(|inode| inode.attributes(directory, 0)))
}

/// When an object was last changed; `None`: there is no such object.
pub fn changed_at<S: Store>(
    store: &S,
    object: ObjectId,
) -> Result<Option<Timestamp>, ExecuteError<S::Error>> {
    Ok(transaction::read_inode(store, object)?.map(|inode| inode.ctime))
}

/// The object that `operation` opened for its session, if `outcome` says so: the caller counts
/// it, also when the outcome is a kept one.
#[must_use]
pub fn opened(operation: &Operation, outcome: &Outcome) -> Option<ObjectId> {
    match (operation, outcome) {
        (Operation::Create { .. } | Operation::MakeUnnamed { .. }, Outcome::Entry(a))
        | (Operation::Open { .. }, Outcome::Attributes(a)) => Some(a.object),
        _ => None,
    }
}
