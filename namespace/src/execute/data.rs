//! write(2), copy_file_range(2) and fallocate(2).

use protocol::fs::fallocate::{KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE};
use protocol::fs::{IO_BYTES_MAX, Outcome};
use protocol::record::Change;
use protocol::units::ObjectId;

use super::{Next, entry_of, xattr};
use crate::errno::{EFBIG, EINVAL, EISDIR, ENODEV, EOPNOTSUPP};
use crate::inode::Inode;
use crate::transaction::{Step, Stop, Transaction};
use crate::{Context, Executed, Store, disk};

/// Where data goes.
pub(super) struct Place {
    pub(super) object: ObjectId,
    pub(super) offset: u64,
    pub(super) append: bool,
    pub(super) kill_privileges: bool,
}

/// The end of a range within a file of the longest size.
fn end_of<S: Store>(context: &Context<'_>, offset: u64, len: u64) -> Step<u64, S> {
    let limit = context.object_bytes_max.min(i64::MAX as u64);
    offset
        .checked_add(len)
        .filter(|end| *end <= limit)
        .ok_or(Stop::Errno(EFBIG))
}

pub(super) fn write<S: Store>(
    tx: &mut Transaction<'_, S>,
    context: &Context<'_>,
    place: &Place,
    bytes: usize,
) -> Step<Outcome, S> {
    let object = place.object;
    let mut inode = tx.inode(object)?;
    if inode.is_directory() {
        return Err(Stop::Errno(EISDIR));
    }
    let len = u32::try_from(bytes).ok().filter(|l| *l <= IO_BYTES_MAX);
    let (true, Some(len)) = (inode.is_file(), len) else {
        return Err(Stop::Errno(EINVAL));
    };
    let offset = if place.append {
        inode.size
    } else {
        place.offset
    };
    if object == ObjectId::DISK {
        let range = (offset, len);
        return disk::write(tx, context, inode, range, place.kill_privileges);
    }
    let end = end_of::<S>(context, offset, u64::from(len))?;
    if len > 0 {
        inode.size = inode.size.max(end);
        inode.modified(context.now);
        if place.kill_privileges {
            inode.kill_privileges();
        }
        xattr::drop_capability(tx, object, &mut inode)?;
        tx.put_inode(object, &inode);
    }
    Ok(put(tx, context, (object, &inode), (offset, len)))
}

/// The request's data goes to a range of a file, which is `inode` then.
pub(crate) fn put<S: Store>(
    tx: &mut Transaction<'_, S>,
    context: &Context<'_>,
    (object, inode): (ObjectId, &Inode),
    (offset, len): (u64, u32),
) -> Outcome {
    if len > 0 {
        tx.data(Change::Write {
            object,
            offset,
            len,
        });
    }
    Outcome::Written {
        len,
        offset,
        attributes: entry_of(context, object, inode),
    }
}

/// What of a copy the files allow.
pub(super) fn copy<S: Store>(
    tx: &Transaction<'_, S>,
    context: &Context<'_>,
    (from, from_offset): (ObjectId, u64),
    (object, offset): (ObjectId, u64),
    len: u32,
) -> Step<Next, S> {
    let (source, target) = (tx.inode(from)?, tx.inode(object)?);
    if source.is_directory() || target.is_directory() {
        return Err(Stop::Errno(EISDIR));
    }
    if !source.is_file() || !target.is_file() || len > IO_BYTES_MAX {
        return Err(Stop::Errno(EINVAL));
    }
    let left = source.size.saturating_sub(from_offset);
    let len = u32::try_from(left).map_or(len, |left| len.min(left));
    end_of::<S>(context, offset, u64::from(len))?;
    if len == 0 {
        return Ok(Next::Outcome(Outcome::Written {
            len,
            offset,
            attributes: entry_of(context, object, &target),
        }));
    }
    Ok(Next::Caller(Executed::Copy {
        from,
        offset: from_offset,
        len,
    }))
}

pub(super) fn allocate<S: Store>(
    tx: &mut Transaction<'_, S>,
    context: &Context<'_>,
    object: ObjectId,
    mode: u32,
    offset: u64,
    len: u64,
) -> Step<Outcome, S> {
    let mut inode = tx.inode(object)?;
    if inode.is_directory() {
        return Err(Stop::Errno(EISDIR));
    }
    if !inode.is_file() {
        return Err(Stop::Errno(ENODEV));
    }
    let zeroes = match mode & !KEEP_SIZE {
        0 => false,
        ZERO_RANGE => true,
        PUNCH_HOLE if mode & KEEP_SIZE != 0 => true,
        _ => return Err(Stop::Errno(EOPNOTSUPP)),
    };
    if len == 0 {
        return Err(Stop::Errno(EINVAL));
    }
    if object == ObjectId::DISK {
        return disk::allocate(tx, context, &inode, zeroes, (offset, len));
    }
    let end = end_of::<S>(context, offset, len)?;
    if zeroes && offset < inode.size {
        tx.data(Change::Zero {
            object,
            offset,
            len: end.min(inode.size) - offset,
        });
    }
    if mode & KEEP_SIZE == 0 {
        inode.size = inode.size.max(end);
    }
    inode.modified(context.now);
    tx.put_inode(object, &inode);
    Ok(Outcome::Attributes(entry_of(context, object, &inode)))
}
