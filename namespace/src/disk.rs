//! A block volume: a root directory with one file, `disk.img`, of fixed size. Nothing can be made,
//! renamed or removed beside it. Its writes change no inode: they are the data and the kept reply,
//! so `disk.img` keeps the times of its last change of size, owner or mode.

use bytes::Bytes;
use protocol::codec::{DecodeError, Reader, Writer};
use protocol::fs::{Operation, Outcome};
use protocol::record::Change;
use protocol::units::{ObjectId, Timestamp};

use crate::entry::{Entry, Slot, first_cookie};
use crate::errno::{ENOSPC, EPERM};
use crate::execute::{entry_of, put};
use crate::inode::{Detail, Inode, S_IFREG};
use crate::transaction::{Step, Stop, Transaction, damaged, read_inode};
use crate::{Context, ExecuteError, Store, keys};

/// The name of a block volume's disk.
pub const DISK_NAME: &str = "disk.img";
/// Version of the value under [`keys::DISK`].
const VERSION: u8 = 1;

fn encode(config: u64) -> Bytes {
    Writer::with_capacity(9).u8(VERSION).u64(config).finish()
}

fn decode(value: Bytes) -> Result<u64, DecodeError> {
    let mut r = Reader::new(value);
    let version = r.u8("disk version")?;
    if version != VERSION {
        return Err(DecodeError::Invalid {
            what: "disk version",
            value: u64::from(version),
        });
    }
    let config = r.u64("version of the configuration")?;
    r.end("disk")?;
    Ok(config)
}

/// What a new block volume holds: the root directory, and a disk of `size` bytes in it, root:root
/// 0600, without data. `config` is the version of the configuration that says so.
#[must_use]
pub fn mkdisk(size: u64, config: u64, now: Timestamp) -> Vec<Change> {
    let disk = Inode {
        mode: S_IFREG | 0o600,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        xattrs: 0,
        size,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        detail: Detail::None,
    };
    let name = Slot {
        chained: false,
        entry: Some(Entry {
            object: ObjectId::DISK,
            file_type: S_IFREG,
            name: Bytes::from_static(DISK_NAME.as_bytes()),
        }),
    };
    let put = |key: &[u8], value| Change::Put {
        key: Bytes::copy_from_slice(key),
        value,
    };
    let mut changes = crate::tree::root(now, 1);
    changes.extend([
        put(&keys::inode(ObjectId::DISK), disk.encode()),
        put(
            &keys::entry(ObjectId::ROOT, first_cookie(DISK_NAME.as_bytes())),
            name.encode(),
        ),
        put(keys::DISK, encode(config)),
    ]);
    changes
}

/// The changes that give the disk the size that version `config` of the configuration says; none
/// where it has one of that version or a later one. A primary whose configuration is old must not
/// cut what was written since: so the version stands beside the size.
pub fn resize_disk<S: Store>(
    store: &S,
    size: u64,
    config: u64,
    now: Timestamp,
) -> Result<Vec<Change>, ExecuteError<S::Error>> {
    let Some(value) = store.get(keys::DISK).map_err(ExecuteError::Store)? else {
        return Ok(Vec::new());
    };
    let known = decode(value).map_err(|source| damaged(keys::DISK, source))?;
    let object = ObjectId::DISK;
    let Some(mut inode) = read_inode(store, object)? else {
        return Err(ExecuteError::Inconsistent { object });
    };
    if known >= config {
        return Ok(Vec::new());
    }
    let mut tx = Transaction::new(store);
    if size < inode.size {
        tx.data(Change::Truncate { object, size });
    }
    if size != inode.size {
        inode.size = size;
        inode.modified(now);
        tx.put_inode(object, &inode);
    }
    tx.put(keys::DISK, encode(config));
    Ok(tx.into_changes())
}

/// EPERM for what a block volume does not allow: any other name than its disk's.
pub(crate) fn check<S: Store>(tx: &Transaction<'_, S>, operation: &Operation) -> Step<(), S> {
    let names = matches!(
        operation,
        Operation::MakeNode { .. }
            | Operation::MakeDirectory { .. }
            | Operation::Symlink { .. }
            | Operation::Create { .. }
            | Operation::MakeUnnamed { .. }
            | Operation::Unlink { .. }
            | Operation::RemoveDirectory { .. }
            | Operation::Rename { .. }
            | Operation::Link { .. }
    );
    if names && tx.get(keys::DISK)?.is_some() {
        return Err(Stop::Errno(EPERM));
    }
    Ok(())
}

/// ENOSPC for a range that is not on the disk, as a block device says it.
fn check_range<S: Store>(
    context: &Context<'_>,
    inode: &Inode,
    (offset, len): (u64, u64),
) -> Step<(), S> {
    let size = inode.size.min(context.object_bytes_max);
    let end = offset.checked_add(len);
    match end.is_some_and(|end| end <= size) {
        true => Ok(()),
        false => Err(Stop::Errno(ENOSPC)),
    }
}

/// A write to the disk. Only privileges that it takes away change the inode.
pub(crate) fn write<S: Store>(
    tx: &mut Transaction<'_, S>,
    context: &Context<'_>,
    mut inode: Inode,
    (offset, len): (u64, u32),
    kill_privileges: bool,
) -> Step<Outcome, S> {
    let object = ObjectId::DISK;
    check_range::<S>(context, &inode, (offset, u64::from(len)))?;
    if len > 0 {
        let mode = inode.mode;
        if kill_privileges {
            inode.kill_privileges();
        }
        if inode.mode != mode {
            inode.changed(context.now);
            tx.put_inode(object, &inode);
        }
    }
    Ok(put(tx, context, (object, &inode), (offset, len)))
}

/// fallocate(2) of the disk: what is zeroed gives its room back, and to reserve is nothing.
pub(crate) fn allocate<S: Store>(
    tx: &mut Transaction<'_, S>,
    context: &Context<'_>,
    inode: &Inode,
    zeroes: bool,
    (offset, len): (u64, u64),
) -> Step<Outcome, S> {
    let object = ObjectId::DISK;
    check_range::<S>(context, inode, (offset, len))?;
    if zeroes {
        tx.data(Change::Zero {
            object,
            offset,
            len,
        });
    }
    Ok(Outcome::Attributes(entry_of(context, object, inode)))
}
