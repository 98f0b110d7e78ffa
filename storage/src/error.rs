//! What goes wrong in a brick.

use std::io;

use protocol::ids::{BrickId, PoolId, VolumeId};
use protocol::units::{ObjectId, Sequence};

/// An operating system's error, in a form that can be kept and sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{op}: {}", .errno.map_or_else(|| io::Error::from(*.kind), io::Error::from_raw_os_error))]
pub struct IoFault {
    /// What was tried.
    pub op: &'static str,
    /// Its kind.
    pub kind: io::ErrorKind,
    /// Its number, where the system gave one.
    pub errno: Option<i32>,
}

impl IoFault {
    /// From an error at `op`.
    #[must_use]
    pub fn new(op: &'static str, error: &io::Error) -> Self {
        Self {
            op,
            kind: error.kind(),
            errno: error.raw_os_error(),
        }
    }

    /// From the metadata store's error at `op`.
    #[must_use]
    pub(crate) fn store(op: &'static str, error: &redb::Error) -> Self {
        match error {
            redb::Error::Io(source) => Self::new(op, source),
            redb::Error::Corrupted(_) => Self {
                op,
                kind: io::ErrorKind::InvalidData,
                errno: None,
            },
            _ => Self {
                op,
                kind: io::ErrorKind::Other,
                errno: None,
            },
        }
    }

    /// Whether the disk is full.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(
            self.kind,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }
}

/// Why a change was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrickError {
    /// A write or a sync failed. The brick takes no more changes until it is opened again; reads
    /// go on.
    #[error("the brick stopped: {0}")]
    Failed(IoFault),
    /// The brick was opened for reading only.
    #[error("the brick is open for reading only")]
    ReadOnly,
    /// A record came that does not follow the last one.
    #[error("record {found} came where {expected} was due")]
    OutOfOrder {
        /// The next in order.
        expected: Sequence,
        /// What came.
        found: Sequence,
    },
    /// A record is larger than a journal segment.
    #[error("a record of {bytes} bytes is larger than the journal's limit of {max}")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// Writes use more payload than there is, or leave some.
    #[error("the payload of {found} bytes does not fit the writes of {expected}")]
    Payload {
        /// What the writes need.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// The replication state is larger than its place in the superblock.
    #[error("{what} of {bytes} bytes is larger than its limit of {max}")]
    StateTooLarge {
        /// Which part.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The journal does not reach back so far.
    #[error("the journal keeps records from {oldest}, not from {wanted}")]
    NotKept {
        /// What was asked for.
        wanted: Sequence,
        /// The oldest that is there.
        oldest: Sequence,
    },
    /// Something that had to be read could not be.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Why something could not be done with a retained point. Nothing was changed, unless the brick
/// stopped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PointError {
    /// There is no such point, or it was dropped.
    #[error("the brick has no point {id}")]
    Unknown {
        /// What was named.
        id: crate::points::PointId,
    },
    /// The brick goes back to its newest point only.
    #[error("point {newest} is newer than {id}: the brick goes back to its newest point only")]
    NotNewest {
        /// What was named.
        id: crate::points::PointId,
        /// The newest.
        newest: crate::points::PointId,
    },
    /// It holds as many as it may.
    #[error("the brick holds {max} points already")]
    TooMany {
        /// The limit.
        max: usize,
    },
    /// The brick takes no changes, or cannot be read.
    #[error(transparent)]
    Brick(#[from] BrickError),
}

impl From<ReadError> for PointError {
    fn from(error: ReadError) -> Self {
        Self::Brick(error.into())
    }
}

/// Why bytes cannot be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// What the medium gave is not what was written.
    #[error("object {object}: block {block} does not match its checksum")]
    Corrupt {
        /// The object.
        object: ObjectId,
        /// The block's index in it.
        block: u64,
    },
    /// The medium does not give what it holds of the object.
    #[error("object {object}: {count} blocks from {block} on cannot be read: {source}")]
    Unreadable {
        /// The object.
        object: ObjectId,
        /// The first block that was asked for.
        block: u64,
        /// How many were asked for: one of them at least cannot be read.
        count: u64,
        /// What the medium said.
        source: IoFault,
    },
    /// A row of the metadata store does not match its checksum.
    #[error("a row of table {table} does not match its checksum")]
    CorruptRow {
        /// The table.
        table: &'static str,
        /// The key.
        key: Vec<u8>,
    },
    /// The medium failed with the metadata store.
    #[error(transparent)]
    Io(#[from] IoFault),
}

/// There is no room: the answer is ENOSPC, before anything is ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{wanted_bytes} bytes do not fit into the {free_bytes} that are free besides the reserve")]
pub struct NoSpace {
    /// What was asked for.
    pub wanted_bytes: u64,
    /// What could be had.
    pub free_bytes: u64,
}

/// Why a brick was not opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory is not there.
    #[error("{path} does not exist")]
    Missing {
        /// The directory.
        path: String,
    },
    /// It is something else.
    #[error("{path} is not a directory")]
    NotADirectory {
        /// What was named.
        path: String,
    },
    /// There is no brick in it.
    #[error("there is no brick here: {what} is missing")]
    NotABrick {
        /// What is missing.
        what: &'static str,
    },
    /// Another process has it open.
    #[error("the brick is in use by another process")]
    InUse,
    /// It belongs elsewhere.
    #[error(
        "the brick belongs to pool {found_pool}, volume {found_volume}, brick {found_brick}; \
         expected pool {pool}, volume {volume}, brick {brick}"
    )]
    Foreign {
        /// Expected.
        pool: PoolId,
        /// Expected.
        volume: VolumeId,
        /// Expected.
        brick: BrickId,
        /// Found.
        found_pool: PoolId,
        /// Found.
        found_volume: VolumeId,
        /// Found.
        found_brick: BrickId,
    },
    /// Its format is another one.
    #[error("the brick has format version {found}; this software reads version {known}")]
    Format {
        /// The brick's.
        found: u32,
        /// This software's.
        known: u32,
    },
    /// Its volume was deleted.
    #[error("the brick's volume {volume} was deleted")]
    Deleted {
        /// The volume.
        volume: VolumeId,
    },
    /// Neither copy of a structure is whole.
    #[error("{what} is damaged")]
    Damaged {
        /// The structure.
        what: &'static str,
    },
    /// The file system cannot be written.
    #[error("the brick's file system is read-only")]
    ReadOnly,
    /// The brick has no such retained point.
    #[error("the brick has no retained point {point}")]
    NoSuchPoint {
        /// Its number.
        point: u64,
    },
    /// The journal ends before the store's checkpoint.
    #[error("the journal's record {wanted} is missing, which the checkpoint builds on")]
    JournalMissing {
        /// The journal's own number of the record.
        wanted: u64,
    },
    /// The medium failed.
    #[error(transparent)]
    Io(#[from] IoFault),
    /// Something that recovery needs cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Recovery could not finish.
    #[error(transparent)]
    Brick(#[from] BrickError),
}

/// Why a brick was not made. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The directory is not there.
    #[error("{path} does not exist")]
    Missing {
        /// The directory.
        path: String,
    },
    /// It is something else.
    #[error("{path} is not a directory")]
    NotADirectory {
        /// What was named.
        path: String,
    },
    /// It has files in it.
    #[error("{path} is not empty (it holds `{first}`)")]
    NotEmpty {
        /// The directory.
        path: String,
        /// One name in it.
        first: String,
    },
    /// It lies on the root file system.
    #[error("{path} lies on the root file system")]
    RootFileSystem {
        /// The directory.
        path: String,
    },
    /// It lies in another brick.
    #[error("{path} lies inside the brick at {brick}")]
    InsideBrick {
        /// The directory.
        path: String,
        /// The brick around it.
        brick: String,
    },
    /// It is a brick already.
    #[error("the directory is a brick of volume {volume} (`{name}`) in pool {pool}")]
    AlreadyBrick {
        /// Its pool.
        pool: PoolId,
        /// Its volume.
        volume: VolumeId,
        /// The volume's name.
        name: String,
    },
    /// It holds a brick that this software cannot read.
    #[error("the directory is a brick already, and it cannot be read: {0}")]
    UnreadableBrick(Box<OpenError>),
    /// Another process has it open.
    #[error("the brick is in use by another process")]
    InUse,
    /// The file system cannot be written.
    #[error("the directory's file system is read-only")]
    ReadOnly,
    /// The volume's description is too long.
    #[error(transparent)]
    Brick(#[from] BrickError),
    /// The medium failed.
    #[error(transparent)]
    Io(#[from] IoFault),
}
