//! Between a mount and the primary: hello, file system requests and replies.
//!
//! A session has slots. A slot carries one request at a time; its request numbers rise by one.
//! The primary keeps each slot's last reply in the replicated state, so a request that is sent
//! again under its number, after a reconnect or to another primary, gets the first answer and is
//! not executed twice (FO-2).

mod changed;
#[cfg(test)]
mod hello_tests;
mod lease;
mod lock;
mod replay;
mod wire;

use bytes::Bytes;

use crate::codec::{DecodeError, Reader, Writer};
use crate::frame::RawFrame;
use crate::ids::{NodeId, SessionId, VolumeId};
use crate::units::{ObjectId, Sequence, Term, Timestamp};

pub use lease::{LEASES_OF_SESSION_MAX, Recalled, offer, offered};
pub use lock::{LOCK_END_MAX, Lock, LockClass, LockKind, LockOwner};
pub use replay::{AUTHORS_MAX, Author, Place, Present, Replay};

/// Frame kinds of this module.
pub mod kind {
    /// Client to primary: [`super::Hello`].
    pub const HELLO: u8 = 16;
    /// Primary to client: [`super::HelloReply`].
    pub const HELLO_REPLY: u8 = 17;
    /// Client to primary: [`super::Request`].
    pub const REQUEST: u8 = 18;
    /// Primary to client: [`super::Reply`].
    pub const REPLY: u8 = 19;
    /// Client to primary, unanswered: the session ends, its opens with it.
    pub const GOODBYE: u8 = 20;
    /// Either way, answered by [`PONG`] with the same meta.
    pub const PING: u8 = 21;
    /// See [`PING`].
    pub const PONG: u8 = 22;
    /// Primary to client: this node is primary no more; go elsewhere. Meta as [`super::Elsewhere`].
    pub const ELSEWHERE: u8 = 23;
    /// Client to primary, after each welcome: [`super::Present`].
    pub const PRESENT: u8 = 24;
    /// Client to primary, before [`PRESENTED`]: [`super::Replay`]. Answered by [`REPLY`]: an error
    /// says that it is not there and cannot be.
    pub const REPLAY: u8 = 25;
    /// Client to primary: that was all; requests follow. No meta.
    pub const PRESENTED: u8 = 26;
    /// Primary to client: [`super::Recalled`]. What it names is not leased from now on, and is given
    /// back as soon as nobody on the client's machine answers from it any more.
    pub const RECALL: u8 = 27;
    /// Client to primary: [`super::Recalled`], as it was recalled, or a part of it.
    pub const GIVE_BACK: u8 = 28;
    /// Client to primary: leases that it would give back; it is answered by a [`RECALL`] of those
    /// that it holds.
    pub const OFFER: u8 = 29;
}

/// Every kind of frame between clients and nodes, with its name, for logs and tests.
pub const KINDS: [(u8, &str); 14] = [
    (kind::HELLO, "client-hello"),
    (kind::HELLO_REPLY, "client-hello-reply"),
    (kind::REQUEST, "client-request"),
    (kind::REPLY, "client-reply"),
    (kind::GOODBYE, "client-goodbye"),
    (kind::PING, "client-ping"),
    (kind::PONG, "client-pong"),
    (kind::ELSEWHERE, "client-elsewhere"),
    (kind::PRESENT, "client-present"),
    (kind::REPLAY, "client-replay"),
    (kind::PRESENTED, "client-presented"),
    (kind::RECALL, "client-recall"),
    (kind::GIVE_BACK, "client-give-back"),
    (kind::OFFER, "client-offer"),
];

/// Version of this module's messages.
pub const FS_VERSION: u16 = 8;
/// Longest name of a directory entry.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest data of one read or write.
pub const IO_BYTES_MAX: u32 = 1 << 20;
/// Changes that a client answered early and the primary has not: so many at most, with so many bytes
/// of data.
pub const EARLY_MAX: u16 = 128;
/// See [`EARLY_MAX`].
pub const EARLY_BYTES_MAX: u64 = 8 << 20;
/// Slots of a session: the requests that it may have under way.
pub const SLOTS_MAX: u16 = 256;
/// The slot of requests that change nothing: no reply is kept for them, any number may be under way.
pub const SLOT_NONE: u16 = u16::MAX;

/// The first frame of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// [`FS_VERSION`] of the client.
    pub version: u16,
    /// The volume, as in the preamble, but said inside TLS: the two must agree.
    pub volume: VolumeId,
    /// The session: a new one, or the one that goes on after a reconnect.
    pub session: SessionId,
    /// Name of the client for `volume status`: the machine's name.
    pub client_name: String,
    /// Milliseconds since 1970 when the mount was made, by the client's clock; only shown.
    pub mounted_at_ms: i64,
    /// The mount cannot write.
    pub read_only: bool,
    /// Objects that the client's applications hold open, so that an unlinked one stays usable.
    pub opens: Vec<ObjectId>,
    /// The highest record that an answer to the client rested on, and the term of the primary that
    /// gave it: after a take-over that shows what was confirmed and is lost (DUR-2). Zero: none.
    pub confirmed: (Term, Sequence),
    /// Terms of the primaries that confirmed what the client keeps until it is stable (DUR-5).
    pub kept_terms: Vec<Term>,
    /// Leases that the client can hold; 0: it is recalled nothing. At most
    /// [`LEASES_OF_SESSION_MAX`] count.
    pub leases: u32,
    /// The client answers changes early where it may: room is held back for it.
    pub early: bool,
}

/// The answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HelloReply {
    /// The session is served here.
    Welcome {
        /// [`FS_VERSION`] of the primary.
        version: u16,
        /// The primary's term.
        term: Term,
        /// Whether the primary knows this session's kept replies (false: it is new here).
        known: bool,
        /// The session ends when nothing was heard of the client for so long.
        session_timeout_ms: u32,
        /// Whether it is a block volume.
        block: bool,
        /// Of the terms that the client named, those that ended before something that they may
        /// have confirmed: with the last record that is part of this primary's past.
        ends: Vec<Place>,
        /// Nothing new is taken until clients have presented what they kept: the client sends what
        /// was never answered as well.
        gathers: bool,
        /// Data of large writes may be lost although their records are here: the client sends
        /// every write that it does not know to be stable.
        in_doubt: bool,
        /// No file is longer, in bytes: what would make it so fails with EFBIG.
        object_bytes_max: u64,
    },
    /// This node is not the primary.
    Elsewhere(Elsewhere),
    /// Refused for good: [`refusal`].
    Refused {
        /// Which refusal.
        code: u16,
        /// One sentence.
        message: String,
    },
}

/// Codes of [`HelloReply::Refused`].
pub mod refusal {
    /// The volume is stopped.
    pub const STOPPED: u16 = 1;
    /// The identity has no right to this volume.
    pub const FORBIDDEN: u16 = 2;
    /// The versions have nothing in common.
    pub const VERSION: u16 = 3;
    /// The volume is not here (deleted, or no brick of it on this node).
    pub const NO_VOLUME: u16 = 4;
}

/// Bits of fallocate(2)'s mode that are served ([`Operation::Allocate`]).
pub mod fallocate {
    /// The size stays.
    pub const KEEP_SIZE: u32 = 0x01;
    /// The range gives its room back.
    pub const PUNCH_HOLE: u32 = 0x02;
    /// The range becomes zeros.
    pub const ZERO_RANGE: u32 = 0x10;
}

/// What lseek(2) looks for ([`Operation::Seek`]).
pub mod whence {
    /// SEEK_DATA.
    pub const DATA: u32 = 3;
    /// SEEK_HOLE.
    pub const HOLE: u32 = 4;
}

/// Where to go instead.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Elsewhere {
    /// The primary, if this node knows one; the client knows its address from `Locate`.
    pub primary: Option<NodeId>,
    /// Try again here after so long if no primary is known.
    pub retry_ms: u32,
}

/// Who asks, as the kernel tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permissions that what the caller makes shall not have (0777), where no default ACL says
    /// which it shall.
    pub umask: u32,
}

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// The primary's now.
    Now,
    /// This.
    At(Timestamp),
}

/// Attributes to set; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetAttributes {
    /// Permission bits (07777).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes; truncates or extends with zeros.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
    /// Drop set-user-id, and set-group-id where group-executable, as a write by a non-owner does.
    pub kill_privileges: bool,
}

/// A file system operation. Names are any bytes but `/` and NUL, not `.` or `..`, at most
/// [`NAME_BYTES_MAX`]. Permission is checked by the client's kernel; the primary checks what the
/// kernel cannot know to be still true (existence, type, emptiness, limits).
#[allow(
    missing_docs,
    reason = "the fields carry POSIX's own names; each variant says the rest"
)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Attributes of a name. Replies [`Outcome::Entry`].
    Lookup { parent: ObjectId, name: Bytes },
    /// Replies [`Outcome::Attributes`].
    GetAttributes { object: ObjectId },
    /// Replies [`Outcome::Attributes`] as they are afterwards.
    SetAttributes {
        object: ObjectId,
        set: SetAttributes,
    },
    /// Replies [`Outcome::Data`]: the target.
    ReadLink { object: ObjectId },
    /// A node of any type by `mode` (S_IFMT and permissions). Replies [`Outcome::Entry`].
    MakeNode {
        parent: ObjectId,
        name: Bytes,
        mode: u32,
        rdev: u32,
    },
    /// Replies [`Outcome::Entry`].
    MakeDirectory {
        parent: ObjectId,
        name: Bytes,
        mode: u32,
    },
    /// Replies [`Outcome::Entry`].
    Symlink {
        parent: ObjectId,
        name: Bytes,
        target: Bytes,
    },
    /// A regular file, opened. Replies [`Outcome::Entry`]. Where the name exists: EEXIST if
    /// `exclusive`, else it is opened as it is (the kernel truncates by `SetAttributes`).
    Create {
        parent: ObjectId,
        name: Bytes,
        mode: u32,
        exclusive: bool,
    },
    /// A regular file without a name, opened (O_TMPFILE): the directory says what it inherits.
    /// [`Operation::Link`] may give it a name. Replies [`Outcome::Entry`].
    MakeUnnamed { parent: ObjectId, mode: u32 },
    /// Replies [`Outcome::Done`].
    Unlink { parent: ObjectId, name: Bytes },
    /// Replies [`Outcome::Done`].
    RemoveDirectory { parent: ObjectId, name: Bytes },
    /// `flags` are renameat2(2)'s. Replies [`Outcome::Done`].
    Rename {
        parent: ObjectId,
        name: Bytes,
        new_parent: ObjectId,
        new_name: Bytes,
        flags: u32,
    },
    /// Replies [`Outcome::Entry`].
    Link {
        object: ObjectId,
        new_parent: ObjectId,
        new_name: Bytes,
    },
    /// The session holds the object open once more. Replies [`Outcome::Attributes`].
    Open { object: ObjectId },
    /// The session holds the object open once less. Replies [`Outcome::Done`].
    Release { object: ObjectId },
    /// Replies [`Outcome::Data`], shorter only at the end of the file.
    Read {
        object: ObjectId,
        offset: u64,
        len: u32,
    },
    /// The data is the frame's payload. With `append` the data goes to the end, and `offset` counts
    /// in a [`Replay`] of what was confirmed only: there it went. Replies [`Outcome::Written`].
    Write {
        object: ObjectId,
        offset: u64,
        append: bool,
        kill_privileges: bool,
    },
    /// Copies at most [`IO_BYTES_MAX`] bytes to `offset` of `object`; the ranges do not overlap.
    /// Ends where `from` does. Stable when it is answered. Replies [`Outcome::Written`].
    CopyRange {
        from: ObjectId,
        from_offset: u64,
        object: ObjectId,
        offset: u64,
        len: u32,
    },
    /// Everything confirmed for the object, its path included, is stable (DUR-1). Replies `Done`.
    Sync { object: ObjectId, data_only: bool },
    /// Everything confirmed is stable. Replies [`Outcome::Done`].
    SyncAll,
    /// Entries after `cookie` (0: from the start), about `bytes_max` of them encoded, at least one
    /// if there is one. With `plus` each carries its attributes. Replies [`Outcome::Entries`].
    ReadDirectory {
        object: ObjectId,
        cookie: u64,
        bytes_max: u32,
        plus: bool,
    },
    /// Replies [`Outcome::FileSystem`].
    StatFs,
    /// Replies [`Outcome::Data`].
    GetXattr { object: ObjectId, name: Bytes },
    /// `flags`: 1 must not exist, 2 must exist, 4 an access ACL takes set-group-id away. The value
    /// is the payload. Replies `Done`.
    SetXattr {
        object: ObjectId,
        name: Bytes,
        flags: u32,
    },
    /// Replies [`Outcome::Data`]: names, each ended by NUL.
    ListXattrs { object: ObjectId },
    /// Replies [`Outcome::Done`].
    RemoveXattr { object: ObjectId, name: Bytes },
    /// fallocate(2)'s `mode`. Replies [`Outcome::Attributes`].
    Allocate {
        object: ObjectId,
        mode: u32,
        offset: u64,
        len: u64,
    },
    /// SEEK_DATA (3) or SEEK_HOLE (4). Replies [`Outcome::Offset`].
    Seek {
        object: ObjectId,
        offset: u64,
        whence: u32,
    },
    /// Takes a lock, or changes the kind of one, if nobody holds what clashes; else EAGAIN. With
    /// `waits` those who wait for longer go first. `ticket`: of the [`Operation::AwaitLock`] that
    /// was answered, else 0. Replies [`Outcome::Done`].
    Lock {
        object: ObjectId,
        lock: Lock,
        ticket: u64,
        waits: bool,
    },
    /// Gives back what the owner holds of the range, end included. Replies [`Outcome::Done`].
    Unlock {
        object: ObjectId,
        owner: LockOwner,
        start: u64,
        end: u64,
    },
    /// Whether the lock could be taken. Replies [`Outcome::Lock`]: one that is in the way.
    TestLock { object: ObjectId, lock: Lock },
    /// Waits until the lock can be taken, in the order of arrival. The answer, [`Outcome::Done`],
    /// reserves it until [`Operation::Lock`] comes with the ticket, the client's own number for
    /// this, or the connection ends. EDEADLK where owners would wait for each other for ever.
    AwaitLock {
        object: ObjectId,
        lock: Lock,
        ticket: u64,
    },
    /// Nobody waits with this ticket any more. Replies [`Outcome::Done`].
    ForgetLock { ticket: u64 },
}

impl Operation {
    /// Whether it may change the volume: such a request needs a slot.
    #[must_use]
    pub fn changes(&self) -> bool {
        !matches!(
            self,
            Self::Lookup { .. }
                | Self::GetAttributes { .. }
                | Self::ReadLink { .. }
                | Self::Open { .. }
                | Self::Release { .. }
                | Self::Read { .. }
                | Self::Sync { .. }
                | Self::SyncAll
                | Self::ReadDirectory { .. }
                | Self::StatFs
                | Self::GetXattr { .. }
                | Self::ListXattrs { .. }
                | Self::Seek { .. }
                | Self::TestLock { .. }
                | Self::AwaitLock { .. }
                | Self::ForgetLock { .. }
        )
    }

    /// The file that it changes, if it is a change that may be answered before it is asked (CL-1).
    #[must_use]
    pub fn early_file(&self) -> Option<ObjectId> {
        match self {
            Self::Write { object, .. } | Self::SetAttributes { object, .. } => Some(*object),
            _ => None,
        }
    }
}

/// A request. Its bulk data, if any, is the frame's payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Below [`SLOTS_MAX`] for what changes the volume, else [`SLOT_NONE`].
    pub slot: u16,
    /// For a slot: one more than the slot's last request. Without slot: any number not under way.
    pub number: u64,
    /// Who asks.
    pub caller: Caller,
    /// What.
    pub operation: Operation,
    /// The application was answered already, under an exclusive lease of the object (CL-1): the
    /// object's change time by the last answer that the client had. Refused with EIO where the lease
    /// is lost and others changed the object since.
    pub early: Option<Timestamp>,
    /// Bulk data.
    pub payload: Bytes,
}

/// What stat(2) tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attributes {
    /// The object; the inode number.
    pub object: ObjectId,
    /// Type and permissions.
    pub mode: u32,
    /// Links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device of a special file.
    pub rdev: u32,
    /// Bytes.
    pub size: u64,
    /// 512-byte units in use.
    pub blocks: u64,
    /// Access.
    pub atime: Timestamp,
    /// Modification.
    pub mtime: Timestamp,
    /// Change.
    pub ctime: Timestamp,
    /// Birth.
    pub btime: Timestamp,
}

impl Attributes {
    /// Whether it is a regular file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.mode & 0o170_000 == 0o100_000
    }
}

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// Its name.
    pub name: Bytes,
    /// Its object.
    pub object: ObjectId,
    /// S_IFMT bits of its mode.
    pub file_type: u32,
    /// Give this back to go on after this entry. Below 2^63.
    pub cookie: u64,
    /// If asked for.
    pub attributes: Option<Attributes>,
}

/// What statfs(2) tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FileSystemStatistics {
    /// Bytes in all, of the smallest replica.
    pub bytes_total: u64,
    /// Bytes free, of the fullest replica.
    pub bytes_free: u64,
    /// Objects in use.
    pub objects: u64,
    /// Objects that could still be made.
    pub objects_free: u64,
}

/// The result of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It failed: a Linux errno.
    Error(i32),
    /// Nothing to say.
    Done,
    /// An entry that exists.
    Entry(Attributes),
    /// Attributes.
    Attributes(Attributes),
    /// Bytes: the frame's payload.
    Data(Bytes),
    /// Bytes written, at which offset, and the attributes afterwards.
    Written {
        /// How many.
        len: u32,
        /// Where (for an append, where it went).
        offset: u64,
        /// Afterwards.
        attributes: Attributes,
    },
    /// Directory entries; none: the end.
    Entries(Vec<DirectoryEntry>),
    /// Statistics.
    FileSystem(FileSystemStatistics),
    /// A position.
    Offset(u64),
    /// A lock that is in the way, if there is one.
    Lock(Option<Lock>),
}

/// A rename changes names in so many directories.
pub const CHANGED_DIRECTORIES_MAX: usize = 2;

/// A reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The request's.
    pub slot: u16,
    /// The request's.
    pub number: u64,
    /// The sequence at which this holds: for a change, the record's.
    pub sequence: Sequence,
    /// Everything up to here is stable (DUR-5).
    pub stable: Sequence,
    /// Every lease of the session lasts for so many milliseconds from when this request was sent; 0:
    /// the answer lengthens none.
    pub lease_ms: u16,
    /// It changed something: a record carries it out, the one at `sequence`.
    pub changed: bool,
    /// Requests of other sessions that records up to `sequence` carry out, as far as they are not
    /// stable and this connection was not told of them. At most [`AUTHORS_MAX`].
    pub authors: Vec<Author>,
    /// Objects of which the session holds a lease since this answer, or did before: what it tells of
    /// them may be kept.
    pub leases: Vec<ObjectId>,
    /// Objects that the request changed and of which the session holds a lease: what is kept of them
    /// is old.
    pub old: Vec<ObjectId>,
    /// Of these the one that the session holds alone: nobody else is told of its attributes and data
    /// before the lease was given back, so changes of it may be answered before they are asked.
    pub exclusive: Option<ObjectId>,
    /// Files that the session holds alone and that the request changed, with their change times since,
    /// where the result does not tell: by those it is seen later that nobody else changed them.
    pub times: Vec<(ObjectId, Timestamp)>,
    /// Of the leases those of directories in which others change names: no kernel shall keep any, or
    /// they would have to wait until it has forgotten them.
    pub busy: Vec<ObjectId>,
    /// Of the leases those of directories that the request changed names in, as they are since: at
    /// most [`CHANGED_DIRECTORIES_MAX`].
    pub directories: Vec<Attributes>,
    /// The result.
    pub outcome: Outcome,
}
