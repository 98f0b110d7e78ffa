//! chmod(2), chown(2), truncate(2), utimensat(2).

use protocol::fs::{Outcome, SetAttributes, SetTime};
use protocol::record::Change;
use protocol::units::{ObjectId, Timestamp};

use super::{acl, entry_of, xattr};
use crate::errno::{EFBIG, EINVAL, EISDIR, EPERM};
use crate::inode::{Inode, PERMISSIONS};
use crate::transaction::{Step, Stop, Transaction};
use crate::{Context, Store};

pub(super) fn set<S: Store>(
    tx: &mut Transaction<'_, S>,
    context: &Context<'_>,
    object: ObjectId,
    set: &SetAttributes,
) -> Step<Outcome, S> {
    let mut inode = tx.inode(object)?;
    if *set == SetAttributes::default() {
        return Ok(Outcome::Attributes(entry_of(context, object, &inode)));
    }
    if let Some(size) = set.size {
        resize(tx, context, object, &mut inode, size)?;
    }
    if let Some(mode) = set.mode {
        inode.mode = inode.mode & !PERMISSIONS | mode & PERMISSIONS;
        acl::follow_mode(tx, object, &inode)?;
    }
    if let Some(uid) = set.uid {
        inode.uid = uid;
    }
    if let Some(gid) = set.gid {
        inode.gid = gid;
    }
    if set.kill_privileges {
        inode.kill_privileges();
    }
    // File capabilities go with a new owner or size, whoever asks.
    if set.size.is_some() || set.uid.is_some() || set.gid.is_some() {
        xattr::drop_capability(tx, object, &mut inode)?;
    }
    let now = inode.time_of_change(context.now);
    let time = |time| match time {
        SetTime::Now => now,
        SetTime::At(at) => at,
    };
    let set_time = |field: &mut Timestamp, value: Option<SetTime>| {
        if let Some(value) = value {
            *field = time(value);
        }
    };
    set_time(&mut inode.atime, set.atime);
    set_time(&mut inode.mtime, set.mtime);
    inode.changed(context.now);
    tx.put_inode(object, &inode);
    Ok(Outcome::Attributes(entry_of(context, object, &inode)))
}

fn resize<S: Store>(
    tx: &mut Transaction<'_, S>,
    context: &Context<'_>,
    object: ObjectId,
    inode: &mut Inode,
    size: u64,
) -> Step<(), S> {
    if inode.is_directory() {
        return Err(Stop::Errno(EISDIR));
    }
    if !inode.is_file() {
        return Err(Stop::Errno(EINVAL));
    }
    if object == ObjectId::DISK {
        // Its size is the volume's: an option of that.
        return match size == inode.size {
            true => Ok(()),
            false => Err(Stop::Errno(EPERM)),
        };
    }
    if size > context.object_bytes_max.min(i64::MAX as u64) {
        return Err(Stop::Errno(EFBIG));
    }
    // Growing needs no change of data: what was never written reads as zero.
    if size < inode.size {
        tx.data(Change::Truncate { object, size });
    }
    inode.size = size;
    inode.modified(context.now);
    Ok(())
}
