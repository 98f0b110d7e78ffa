//! Requests about attributes: the fixed ones, and the extended ones, ACLs among them.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use protocol::fs::{Operation, SetAttributes, SetTime};

use super::ask::{Plan, plain};
use super::{ENOSYS, FileSystem, Shape};
use crate::abi::{Fields, InHeader, SETXATTR_ACL_KILL_SGID, ShortRequest, join, opcode, set};

/// The protocol's flag of an access ACL that takes set-group-id away.
const DROP_GROUP_ID: u32 = 4;

/// What to set, and the open file through which it is, if it is.
pub(super) fn to_set(
    fields: &mut Fields<'_>,
) -> Result<(SetAttributes, Option<u64>), ShortRequest> {
    let valid = fields.u32()?;
    fields.skip(4)?;
    let handle = fields.u64()?;
    let size = fields.u64()?;
    fields.skip(8)?;
    let (atime, mtime, _ctime) = (fields.u64()?, fields.u64()?, fields.u64()?);
    let (atime_ns, mtime_ns, _ctime_ns) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let mode = fields.u32()?;
    fields.skip(4)?;
    let (uid, gid) = (fields.u32()?, fields.u32()?);
    let has = |bit| valid & bit != 0;
    let time = |bit, now, seconds, nanoseconds| match (has(now), has(bit)) {
        (true, _) => Some(SetTime::Now),
        (false, true) => Some(SetTime::At(join(seconds, nanoseconds))),
        (false, false) => None,
    };
    let set = SetAttributes {
        mode: has(set::MODE).then_some(mode & 0o7777),
        uid: has(set::UID).then_some(uid),
        gid: has(set::GID).then_some(gid),
        size: has(set::SIZE).then_some(size),
        atime: time(set::ATIME, set::ATIME_NOW, atime, atime_ns),
        mtime: time(set::MTIME, set::MTIME_NOW, mtime, mtime_ns),
        kill_privileges: has(set::KILL_SUIDGID),
    };
    Ok((set, has(set::HANDLE).then_some(handle)))
}

impl FileSystem {
    pub(super) fn plan_xattr(
        &self,
        header: &InHeader,
        fields: &mut Fields<'_>,
    ) -> Result<Plan, ShortRequest> {
        let object = self.object(header.node);
        let text = |name: &[u8]| Bytes::copy_from_slice(name);
        Ok(match header.opcode {
            opcode::SETXATTR => {
                let (size, mut flags) = (fields.u32()?, fields.u32()?);
                if self.long_setxattr.load(Ordering::Relaxed) {
                    if fields.u32()? & SETXATTR_ACL_KILL_SGID != 0 {
                        flags |= DROP_GROUP_ID;
                    }
                    fields.skip(4)?;
                }
                let name = text(fields.name()?);
                let value = text(fields.bytes(size as usize)?);
                let operation = Operation::SetXattr {
                    object,
                    name,
                    flags,
                };
                Plan::Ask(operation, value, Shape::Empty)
            }
            opcode::GETXATTR => {
                let size = fields.u32()?;
                fields.skip(4)?;
                let name = text(fields.name()?);
                let shape = Shape::Xattr { size };
                plain(Operation::GetXattr { object, name }, shape)
            }
            opcode::LISTXATTR => {
                let size = fields.u32()?;
                plain(Operation::ListXattrs { object }, Shape::Xattr { size })
            }
            opcode::REMOVEXATTR => {
                let name = text(fields.name()?);
                plain(Operation::RemoveXattr { object, name }, Shape::Empty)
            }
            // The kernel does without what it is told not to be there.
            _ => Plan::Refuse(ENOSYS),
        })
    }
}
