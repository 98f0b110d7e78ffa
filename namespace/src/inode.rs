//! An object's fixed fields, as they stand under its inode key.

use bytes::Bytes;
use protocol::codec::{DecodeError, Reader, Writer};
use protocol::fs::Attributes;
use protocol::record::Change;
use protocol::units::{ObjectId, Timestamp};

use crate::{TARGET_BYTES_MAX, keys};

/// Version of an inode's value.
const VERSION: u8 = 1;

pub(crate) const S_IFMT: u32 = 0o170_000;
pub(crate) const S_IFSOCK: u32 = 0o140_000;
pub(crate) const S_IFLNK: u32 = 0o120_000;
pub(crate) const S_IFREG: u32 = 0o100_000;
pub(crate) const S_IFBLK: u32 = 0o060_000;
pub(crate) const S_IFDIR: u32 = 0o040_000;
pub(crate) const S_IFCHR: u32 = 0o020_000;
pub(crate) const S_IFIFO: u32 = 0o010_000;
pub(crate) const S_ISUID: u32 = 0o4000;
pub(crate) const S_ISGID: u32 = 0o2000;
pub(crate) const S_IXGRP: u32 = 0o0010;
pub(crate) const PERMISSIONS: u32 = 0o7777;

/// What an inode has besides the common fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detail {
    /// Nothing: a file, pipe, socket or device.
    None,
    /// A directory.
    Directory {
        /// Its parent; the root's is the root.
        parent: ObjectId,
        /// Names in it.
        entries: u64,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points.
        target: Bytes,
    },
}

/// An object's fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// Type and permissions.
    pub mode: u32,
    /// Links; 0 for an orphan.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device of a special file.
    pub rdev: u32,
    /// Extended attributes that it has.
    pub xattrs: u32,
    /// Bytes of a regular file, else 0.
    pub size: u64,
    /// Access.
    pub atime: Timestamp,
    /// Modification.
    pub mtime: Timestamp,
    /// Change.
    pub ctime: Timestamp,
    /// Birth.
    pub btime: Timestamp,
    /// What its type adds.
    pub detail: Detail,
}

/// The latest change time of the inodes that a change set puts: about when it was ordered. `None`
/// where it puts none.
#[must_use]
pub fn latest_change(changes: &[Change]) -> Option<Timestamp> {
    changes
        .iter()
        .filter_map(|change| match change {
            Change::Put { key, value } if key.first() == Some(&keys::INODE) => {
                Inode::decode(value.clone()).ok()
            }
            _ => None,
        })
        .map(|inode| inode.ctime)
        .max()
}

/// `st_blocks` (stat(2)) of so many bytes: in units of 512, whatever the file system's are.
#[must_use]
pub fn blocks_of(allocated_bytes: u64) -> u64 {
    allocated_bytes.div_ceil(512)
}

impl Inode {
    /// S_IFMT bits.
    #[must_use]
    pub fn file_type(&self) -> u32 {
        self.mode & S_IFMT
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        self.file_type() == S_IFDIR
    }

    /// Whether it is a regular file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.file_type() == S_IFREG
    }

    /// What stat(2) tells, `allocated_bytes` of storage being in use.
    #[must_use]
    pub fn attributes(&self, object: ObjectId, allocated_bytes: u64) -> Attributes {
        let size = match &self.detail {
            Detail::None => self.size,
            Detail::Directory { entries, .. } => *entries,
            Detail::Symlink { target } => target.len() as u64,
        };
        Attributes {
            object,
            mode: self.mode,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            size,
            blocks: blocks_of(allocated_bytes),
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            btime: self.btime,
        }
    }

    /// What a write, a truncation or a new owner takes away from everything but a directory (the
    /// set-user-id bit; the set-group-id bit where the group may execute).
    pub(crate) fn kill_privileges(&mut self) {
        if self.is_directory() {
            return;
        }
        self.mode &= !S_ISUID;
        if self.mode & S_IXGRP != 0 {
            self.mode &= !S_ISGID;
        }
    }

    /// The data or the entries changed.
    pub(crate) fn modified(&mut self, now: Timestamp) {
        self.changed(now);
        self.mtime = self.ctime;
    }

    /// Something about the object changed. A primary whose clock is behind its predecessor's
    /// does not put the object back in time (COH-4), and each change has a time of its own: by that
    /// it is noticed where a cache is not told (FO-6).
    pub(crate) fn changed(&mut self, now: Timestamp) {
        self.ctime = self.time_of_change(now);
    }

    /// The time that a change at `now` gets.
    pub(crate) fn time_of_change(&self, now: Timestamp) -> Timestamp {
        now.max(Timestamp(self.ctime.0.saturating_add(1)))
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut w = Writer::with_capacity(96);
        w.u8(VERSION)
            .u32(self.mode)
            .u32(self.nlink)
            .u32(self.uid)
            .u32(self.gid)
            .u32(self.rdev)
            .u32(self.xattrs)
            .u64(self.size)
            .i64(self.atime.0)
            .i64(self.mtime.0)
            .i64(self.ctime.0)
            .i64(self.btime.0);
        match &self.detail {
            Detail::None => {}
            Detail::Directory { parent, entries } => {
                w.u64(parent.0).u64(*entries);
            }
            Detail::Symlink { target } => {
                w.bytes(target);
            }
        }
        w.finish()
    }

    pub(crate) fn decode(value: Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(value);
        let version = r.u8("inode version")?;
        if version != VERSION {
            return Err(DecodeError::Invalid {
                what: "inode version",
                value: u64::from(version),
            });
        }
        let mut inode = Self {
            mode: r.u32("mode")?,
            nlink: r.u32("links")?,
            uid: r.u32("owner")?,
            gid: r.u32("group")?,
            rdev: r.u32("device")?,
            xattrs: r.u32("extended attributes")?,
            size: r.u64("size")?,
            atime: Timestamp(r.i64("access time")?),
            mtime: Timestamp(r.i64("modification time")?),
            ctime: Timestamp(r.i64("change time")?),
            btime: Timestamp(r.i64("birth time")?),
            detail: Detail::None,
        };
        inode.detail = match inode.file_type() {
            S_IFREG | S_IFIFO | S_IFSOCK | S_IFCHR | S_IFBLK => Detail::None,
            S_IFDIR => Detail::Directory {
                parent: ObjectId(r.u64("parent")?),
                entries: r.u64("entries")?,
            },
            S_IFLNK => {
                let target = r.bytes("target")?;
                if target.is_empty() || target.len() > TARGET_BYTES_MAX {
                    return Err(DecodeError::Invalid {
                        what: "target length",
                        value: target.len() as u64,
                    });
                }
                Detail::Symlink { target }
            }
            other => {
                return Err(DecodeError::Invalid {
                    what: "file type",
                    value: u64::from(other),
                });
            }
        };
        r.end("inode")?;
        Ok(inode)
    }
}
