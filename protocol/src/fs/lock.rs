//! Advisory locks, as mounts and the primary speak of them.

use crate::codec::{DecodeError, Reader, Writer};

/// The last byte that a lock can cover: the kernel's largest offset.
pub const LOCK_END_MAX: u64 = i64::MAX as u64;

/// Which locks know of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LockClass {
    /// fcntl(2)'s: of a process (POSIX) or of an open file (OFD), for ranges of bytes.
    Ranges,
    /// flock(2)'s: of an open file, for all of it.
    Whole,
}

/// Who holds a lock, within a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockOwner {
    /// Locks of different classes do not know of each other.
    pub class: LockClass,
    /// A number that the client gives: of a process or of an open file.
    pub id: u64,
}

/// Whether others may hold it, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LockKind {
    /// With others of this kind.
    Shared,
    /// Alone.
    Exclusive,
}

/// A lock that is held or wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lock {
    /// Whose.
    pub owner: LockOwner,
    /// Of which kind.
    pub kind: LockKind,
    /// First byte.
    pub start: u64,
    /// Last byte, not below `start`, at most [`LOCK_END_MAX`].
    pub end: u64,
    /// The process, for whoever asks who holds the lock; 0: not to be told.
    pub pid: u32,
}

impl Lock {
    /// Whether both cover a byte, have different owners of one class, and one is exclusive. The
    /// owners' sessions are the caller's business.
    #[must_use]
    pub fn clashes(&self, other: &Self) -> bool {
        self.owner.class == other.owner.class
            && self.start <= other.end
            && other.start <= self.end
            && (self.kind == LockKind::Exclusive || other.kind == LockKind::Exclusive)
    }
}

impl LockClass {
    /// As a byte.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Ranges => 0,
            Self::Whole => 1,
        }
    }
}

impl TryFrom<u8> for LockClass {
    type Error = DecodeError;

    fn try_from(code: u8) -> Result<Self, DecodeError> {
        match code {
            0 => Ok(Self::Ranges),
            1 => Ok(Self::Whole),
            other => Err(DecodeError::Invalid {
                what: "class of a lock",
                value: u64::from(other),
            }),
        }
    }
}

impl LockKind {
    /// As a byte.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Shared => 0,
            Self::Exclusive => 1,
        }
    }
}

impl TryFrom<u8> for LockKind {
    type Error = DecodeError;

    fn try_from(code: u8) -> Result<Self, DecodeError> {
        match code {
            0 => Ok(Self::Shared),
            1 => Ok(Self::Exclusive),
            other => Err(DecodeError::Invalid {
                what: "kind of a lock",
                value: u64::from(other),
            }),
        }
    }
}

pub(super) fn write_owner(w: &mut Writer, owner: LockOwner) {
    w.u8(owner.class.code()).u64(owner.id);
}

pub(super) fn read_owner(r: &mut Reader) -> Result<LockOwner, DecodeError> {
    Ok(LockOwner {
        class: r.u8("class of a lock")?.try_into()?,
        id: r.u64("owner of a lock")?,
    })
}

pub(super) fn read_range(r: &mut Reader) -> Result<(u64, u64), DecodeError> {
    let (start, end) = (r.u64("start of a lock")?, r.u64("end of a lock")?);
    if start > end || end > LOCK_END_MAX {
        return Err(DecodeError::Invalid {
            what: "end of a lock",
            value: end,
        });
    }
    Ok((start, end))
}

pub(super) fn write_lock(w: &mut Writer, lock: &Lock) {
    write_owner(w, lock.owner);
    w.u8(lock.kind.code())
        .u64(lock.start)
        .u64(lock.end)
        .u32(lock.pid);
}

pub(super) fn read_lock(r: &mut Reader) -> Result<Lock, DecodeError> {
    let owner = read_owner(r)?;
    let kind = r.u8("kind of a lock")?.try_into()?;
    let (start, end) = read_range(r)?;
    Ok(Lock {
        owner,
        kind,
        start,
        end,
        pid: r.u32("process of a lock")?,
    })
}
