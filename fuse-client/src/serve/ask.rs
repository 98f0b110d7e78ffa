//! From the kernel's requests to operations.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use protocol::fs::{Caller, IO_BYTES_MAX, NAME_BYTES_MAX, Operation};

use super::attributes::to_set;
use super::{EINVAL, FileSystem, Shape};
use crate::abi::{Fields, InHeader, ROOT_ID, ShortRequest, WRITE_HEADER_BYTES, opcode, write};
use crate::session::Waiting;

const ENAMETOOLONG: i32 = 36;
const O_EXCL: u32 = 0o200;
const O_APPEND: u32 = 0o2000;
/// O_DSYNC, of which the kernel speaks also for RWF_DSYNC and a mount that is `sync`; and the bit that
/// makes an O_SYNC of it.
const O_DSYNC: u32 = 0o10_000;
const O_SYNC_BIT: u32 = 0o4_000_000;
/// Above this a write's buffer is handed on as it is, and a new one taken; below, copying the
/// data is cheaper than 1 MiB of fresh memory.
/// A buffer is kept until the write is stable, so little of it may be empty.
const COPY_BYTES_MAX: usize = 512 << 10;

/// What becomes of a request.
pub(super) enum Plan {
    Ask(Operation, Bytes, Shape),
    /// Makes something, under the caller's umask.
    Make(u32, Operation, Shape),
    /// Through an open file.
    Through(u64, Operation, Shape),
    Refuse(i32),
}

pub(super) fn plain(operation: Operation, shape: Shape) -> Plan {
    Plan::Ask(operation, Bytes::new(), shape)
}

/// Who asks, as the kernel says.
pub(super) fn caller(header: &InHeader) -> Caller {
    Caller {
        uid: header.uid,
        gid: header.gid,
        umask: 0,
    }
}

/// A name, checked as the protocol wants it: what is wrong here would close the connection.
fn name(fields: &mut Fields<'_>) -> Result<Result<Bytes, i32>, ShortRequest> {
    let name = fields.name()?;
    Ok(if name.len() > NAME_BYTES_MAX {
        Err(ENAMETOOLONG)
    } else if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
        Err(EINVAL)
    } else {
        Ok(Bytes::copy_from_slice(name))
    })
}

/// Takes a name or ends with the refusal.
macro_rules! take_name {
    ($fields:expr) => {
        match name($fields)? {
            Ok(name) => name,
            Err(errno) => return Ok(Plan::Refuse(errno)),
        }
    };
}

impl FileSystem {
    pub(super) fn new_handle(&self) -> u64 {
        self.next_handle.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn ask(
        &self,
        header: &InHeader,
        mut fields: Fields<'_>,
    ) -> Result<(), ShortRequest> {
        let object = self.object(header.node);
        let opens = match header.opcode {
            opcode::OPEN => {
                let handle = self.new_handle();
                Some(Shape::Open { handle, object })
            }
            // Told to the primary as well: a directory that is removed stays while it is open.
            opcode::OPENDIR => {
                let handle = self.new_handle();
                Some(Shape::OpenDirectory { handle, object })
            }
            _ => None,
        };
        if let Some(shape) = opens {
            if let Shape::Open { handle, .. } | Shape::OpenDirectory { handle, .. } = &shape {
                self.openers.opens(*handle, caller(header));
            }
            let waiting = Waiting {
                unique: header.unique,
                thread: header.thread,
                through: None,
                shape,
            };
            self.session.open(waiting, caller(header), object);
            return Ok(());
        }
        let plan = match self.plan_names(header, &mut fields)? {
            Some(plan) => plan,
            None => self.plan_object(header, &mut fields)?,
        };
        let mut caller = caller(header);
        let (through, operation, payload, shape) = match plan {
            Plan::Ask(operation, payload, shape) => (None, operation, payload, shape),
            Plan::Make(umask, operation, shape) => {
                if let Shape::Create { handle } = &shape {
                    self.openers.opens(*handle, caller);
                }
                caller.umask = umask & 0o777;
                (None, operation, Bytes::new(), shape)
            }
            Plan::Through(handle, operation, shape) => {
                caller = self.openers.of(handle, caller);
                (Some(handle), operation, Bytes::new(), shape)
            }
            Plan::Refuse(errno) => {
                self.refuse(header, errno);
                return Ok(());
            }
        };
        let Some(shape) = self.answer_kept(header.unique, &operation, shape) else {
            return Ok(());
        };
        let waiting = Waiting {
            unique: header.unique,
            thread: header.thread,
            through,
            shape,
        };
        self.session.submit(waiting, caller, operation, payload);
        Ok(())
    }

    /// Requests that make, move or take away names; `None` for the rest.
    fn plan_names(
        &self,
        header: &InHeader,
        fields: &mut Fields<'_>,
    ) -> Result<Option<Plan>, ShortRequest> {
        let plan = match header.opcode {
            opcode::MKNOD | opcode::MKDIR | opcode::CREATE | opcode::SYMLINK | opcode::TMPFILE => {
                self.plan_create(header, fields)?
            }
            opcode::RENAME | opcode::RENAME2 | opcode::LINK => self.plan_move(header, fields)?,
            opcode::LOOKUP | opcode::UNLINK | opcode::RMDIR => self.plan_name(header, fields)?,
            _ => return Ok(None),
        };
        Ok(Some(plan))
    }

    fn plan_name(&self, header: &InHeader, fields: &mut Fields<'_>) -> Result<Plan, ShortRequest> {
        let parent = self.object(header.node);
        let name = take_name!(fields);
        Ok(match header.opcode {
            opcode::LOOKUP => plain(Operation::Lookup { parent, name }, Shape::Entry),
            opcode::UNLINK => plain(Operation::Unlink { parent, name }, Shape::Empty),
            _ => plain(Operation::RemoveDirectory { parent, name }, Shape::Empty),
        })
    }

    fn plan_create(
        &self,
        header: &InHeader,
        fields: &mut Fields<'_>,
    ) -> Result<Plan, ShortRequest> {
        let parent = self.object(header.node);
        Ok(match header.opcode {
            opcode::MKNOD => {
                let (mode, rdev, umask) = (fields.u32()?, fields.u32()?, fields.u32()?);
                fields.skip(4)?;
                let name = take_name!(fields);
                let operation = Operation::MakeNode {
                    parent,
                    name,
                    mode,
                    rdev,
                };
                Plan::Make(umask, operation, Shape::Entry)
            }
            opcode::MKDIR => {
                let (mode, umask) = (fields.u32()?, fields.u32()?);
                let name = take_name!(fields);
                let operation = Operation::MakeDirectory { parent, name, mode };
                Plan::Make(umask, operation, Shape::Entry)
            }
            opcode::SYMLINK => {
                let name = take_name!(fields);
                let target = Bytes::copy_from_slice(fields.name()?);
                let operation = Operation::Symlink {
                    parent,
                    name,
                    target,
                };
                plain(operation, Shape::Entry)
            }
            _ => {
                let (flags, mode, umask) = (fields.u32()?, fields.u32()?, fields.u32()?);
                fields.skip(4)?;
                let mode = mode & 0o7777;
                let operation = if header.opcode == opcode::TMPFILE {
                    // What follows is the kernel's word for a name that there is not.
                    Operation::MakeUnnamed { parent, mode }
                } else {
                    let name = take_name!(fields);
                    Operation::Create {
                        parent,
                        name,
                        mode,
                        exclusive: flags & O_EXCL != 0,
                    }
                };
                let handle = self.new_handle();
                Plan::Make(umask, operation, Shape::Create { handle })
            }
        })
    }

    fn plan_move(&self, header: &InHeader, fields: &mut Fields<'_>) -> Result<Plan, ShortRequest> {
        let node = fields.u64()?;
        let other = self.object(node);
        if header.opcode == opcode::LINK {
            let new_name = take_name!(fields);
            let operation = Operation::Link {
                object: other,
                new_parent: self.object(header.node),
                new_name,
            };
            return Ok(plain(operation, Shape::Entry));
        }
        let mut flags = 0;
        if header.opcode == opcode::RENAME2 {
            flags = fields.u32()?;
            fields.skip(4)?;
        }
        let name = take_name!(fields);
        let new_name = take_name!(fields);
        let operation = Operation::Rename {
            parent: self.object(header.node),
            name,
            new_parent: other,
            new_name,
            flags,
        };
        Ok(plain(operation, Shape::Empty))
    }

    /// Requests about one object.
    fn plan_object(
        &self,
        header: &InHeader,
        fields: &mut Fields<'_>,
    ) -> Result<Plan, ShortRequest> {
        let object = self.object(header.node);
        Ok(match header.opcode {
            opcode::GETATTR => plain(Operation::GetAttributes { object }, Shape::Attributes),
            opcode::STATX => plain(Operation::GetAttributes { object }, Shape::Statx),
            opcode::SETATTR => {
                let (set, through) = to_set(fields)?;
                let operation = Operation::SetAttributes { object, set };
                match through {
                    Some(handle) => Plan::Through(handle, operation, Shape::Attributes),
                    None => plain(operation, Shape::Attributes),
                }
            }
            opcode::READLINK => plain(Operation::ReadLink { object }, Shape::Bytes),
            opcode::READ => {
                let handle = fields.u64()?;
                let (offset, len) = (fields.u64()?, fields.u32()?.min(IO_BYTES_MAX));
                let operation = Operation::Read {
                    object,
                    offset,
                    len,
                };
                Plan::Through(handle, operation, Shape::Bytes)
            }
            opcode::FSYNC | opcode::FSYNCDIR => {
                let handle = fields.u64()?;
                let data_only = fields.u32()? & 1 != 0;
                // Of the whole mount that is everything: so umount(8)'s helper asks.
                let all = header.opcode == opcode::FSYNCDIR && header.node == ROOT_ID;
                let operation = match all {
                    true => Operation::SyncAll,
                    false => Operation::Sync { object, data_only },
                };
                Plan::Through(handle, operation, Shape::Synced { handle, all })
            }
            opcode::SYNCFS => plain(Operation::SyncAll, Shape::Empty),
            opcode::STATFS => plain(Operation::StatFs, Shape::Statistics),
            opcode::FALLOCATE => {
                let handle = fields.u64()?;
                let (offset, len, mode) = (fields.u64()?, fields.u64()?, fields.u32()?);
                let operation = Operation::Allocate {
                    object,
                    mode,
                    offset,
                    len,
                };
                Plan::Through(handle, operation, Shape::Empty)
            }
            opcode::COPY_FILE_RANGE | opcode::COPY_FILE_RANGE_64 => {
                self.plan_copy(header, fields)?
            }
            opcode::LSEEK => {
                let handle = fields.u64()?;
                let (offset, whence) = (fields.u64()?, fields.u32()?);
                let operation = Operation::Seek {
                    object,
                    offset,
                    whence,
                };
                Plan::Through(handle, operation, Shape::Offset)
            }
            _ => self.plan_xattr(header, fields)?,
        })
    }

    /// A part of what is to be copied, as the kernel asks again for the rest.
    fn plan_copy(&self, header: &InHeader, fields: &mut Fields<'_>) -> Result<Plan, ShortRequest> {
        let (_from, from_offset) = (fields.u64()?, fields.u64()?);
        let (node, handle, offset) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let (len, flags) = (fields.u64()?, fields.u64()?);
        if flags != 0 {
            return Ok(Plan::Refuse(EINVAL));
        }
        if let Some(errno) = self.session.losses().tells_at_write(handle) {
            return Ok(Plan::Refuse(errno));
        }
        let operation = Operation::CopyRange {
            from: self.object(header.node),
            from_offset,
            object: self.object(node),
            offset,
            len: u32::try_from(len).map_or(IO_BYTES_MAX, |len| len.min(IO_BYTES_MAX)),
        };
        Ok(Plan::Through(handle, operation, Shape::Copied))
    }

    /// A write, whose data is handed on without a copy where it is large.
    pub(super) fn write(
        &self,
        header: &InHeader,
        buffer: &mut Vec<u8>,
    ) -> Result<(), ShortRequest> {
        let mut fields = Fields::new(&buffer[crate::abi::IN_HEADER_BYTES..]);
        let handle = fields.u64()?;
        let (offset, size, write_flags) = (fields.u64()?, fields.u32()?, fields.u32()?);
        fields.skip(8)?;
        let open_flags = fields.u32()?;
        fields.skip(4)?;
        let data = fields.bytes(size as usize)?;
        let payload = if data.len() <= COPY_BYTES_MAX {
            Bytes::copy_from_slice(data)
        } else {
            let whole = Bytes::from(std::mem::take(buffer));
            whole.slice(WRITE_HEADER_BYTES..WRITE_HEADER_BYTES + size as usize)
        };
        if let Some(errno) = self.session.losses().tells_at_write(handle) {
            self.refuse(header, errno);
            return Ok(());
        }
        let operation = Operation::Write {
            object: self.object(header.node),
            offset,
            // Written back from a mapping: it has its place, whatever the file was opened with.
            append: open_flags & O_APPEND != 0 && write_flags & write::CACHE == 0,
            kill_privileges: write_flags & write::KILL_SUIDGID != 0,
        };
        let waiting = Waiting {
            unique: header.unique,
            thread: header.thread,
            through: Some(handle),
            shape: Shape::Written {
                strips: (write_flags & write::KILL_SUIDGID != 0).then_some(header.node),
                // The kernel leaves that to the mount where files are written directly.
                then_syncs: (open_flags & (O_DSYNC | O_SYNC_BIT) != 0)
                    .then_some(open_flags & O_SYNC_BIT == 0),
            },
        };
        let caller = self.openers.of(handle, caller(header));
        self.session.submit(waiting, caller, operation, payload);
        Ok(())
    }
}
