//! Operations that change nothing.

use bytes::Bytes;
use protocol::fs::{DirectoryEntry, Operation, Outcome, whence};
use protocol::units::ObjectId;

use super::{Next, check_name, entry_of, statistics, xattr};
use crate::entry::{Entry, Slot};
use crate::errno::{EINVAL, EISDIR, ENOENT, ENXIO};
use crate::inode::Detail;
use crate::transaction::{Step, Stop, Transaction, damaged};
use crate::{Context, ExecuteError, Executed, Store, keys};

/// Most bytes of directory entries in one reply, encoded: their frame's meta has 2 MiB.
const READ_DIRECTORY_BYTES_MAX: u32 = 1 << 20;
/// Bytes of an encoded entry besides its name, and of its attributes.
const ENTRY_BYTES: usize = 25;
const ATTRIBUTES_BYTES: usize = 76;

/// Answers what changes nothing; `None` for the rest.
pub(super) fn dispatch<S: Store>(
    tx: &Transaction<'_, S>,
    context: &Context<'_>,
    operation: &Operation,
) -> Step<Option<Next>, S> {
    let outcome = match operation {
        Operation::Lookup { parent, name } => lookup(tx, context, *parent, name)?,
        Operation::GetAttributes { object } | Operation::Open { object } => {
            Outcome::Attributes(entry_of(context, *object, &tx.inode(*object)?))
        }
        // The last release of an orphan is the caller's business: it knows who holds it open.
        Operation::Release { .. } => Outcome::Done,
        Operation::ReadLink { object } => match tx.inode(*object)?.detail {
            Detail::Symlink { target } => Outcome::Data(target),
            Detail::None | Detail::Directory { .. } => return Err(Stop::Errno(EINVAL)),
        },
        Operation::Read {
            object,
            offset,
            len,
        } => return read(tx, *object, *offset, *len).map(Some),
        Operation::Sync { object, data_only } => {
            tx.inode(*object)?;
            return Ok(Some(Next::Caller(Executed::Sync {
                object: Some(*object),
                data_only: *data_only,
            })));
        }
        Operation::SyncAll => {
            return Ok(Some(Next::Caller(Executed::Sync {
                object: None,
                data_only: false,
            })));
        }
        Operation::ReadDirectory {
            object,
            cookie,
            bytes_max,
            plus,
        } => read_directory(tx, context, *object, *cookie, *bytes_max, *plus)?,
        Operation::StatFs => return statistics(tx).map(Some),
        Operation::GetXattr { object, name } => xattr::get(tx, *object, name)?,
        Operation::ListXattrs { object } => xattr::list(tx, *object)?,
        Operation::Seek {
            object,
            offset,
            whence,
        } => return seek(tx, *object, *offset, *whence).map(Some),
        _ => return Ok(None),
    };
    Ok(Some(Next::Outcome(outcome)))
}

fn lookup<S: Store>(
    tx: &Transaction<'_, S>,
    context: &Context<'_>,
    parent: ObjectId,
    name: &[u8],
) -> Step<Outcome, S> {
    check_name(name)?;
    let Some(found) = tx.find(parent, name)? else {
        // Only now it matters whether the directory is one: what has entries is.
        tx.directory(parent)?;
        return Err(Stop::Errno(ENOENT));
    };
    let inode = tx.named(found.object)?;
    Ok(Outcome::Entry(entry_of(context, found.object, &inode)))
}

fn read<S: Store>(
    tx: &Transaction<'_, S>,
    object: ObjectId,
    offset: u64,
    len: u32,
) -> Step<Next, S> {
    let inode = tx.inode(object)?;
    if inode.is_directory() {
        return Err(Stop::Errno(EISDIR));
    }
    if !inode.is_file() || len > protocol::fs::IO_BYTES_MAX {
        return Err(Stop::Errno(EINVAL));
    }
    let left = inode.size.saturating_sub(offset);
    let len = u32::try_from(left).map_or(len, |left| len.min(left));
    if len == 0 {
        return Ok(Next::Outcome(Outcome::Data(Bytes::new())));
    }
    Ok(Next::Caller(Executed::Read {
        object,
        offset,
        len,
    }))
}

fn seek<S: Store>(
    tx: &Transaction<'_, S>,
    object: ObjectId,
    offset: u64,
    whence: u32,
) -> Step<Next, S> {
    let inode = tx.inode(object)?;
    let hole = match whence {
        whence::DATA => false,
        whence::HOLE => true,
        _ => return Err(Stop::Errno(EINVAL)),
    };
    if !inode.is_file() {
        return Err(Stop::Errno(EINVAL));
    }
    if offset >= inode.size {
        return Err(Stop::Errno(ENXIO));
    }
    Ok(Next::Caller(Executed::Seek {
        object,
        offset,
        hole,
        size: inode.size,
    }))
}

/// Reads the raw entries after `cookie` that fit `bytes_max`, with their cookies.
fn scan_entries<S: Store>(
    tx: &Transaction<'_, S>,
    parent: ObjectId,
    cookie: u64,
    bytes_max: usize,
    bytes_each: usize,
) -> Result<Vec<(u64, Entry)>, ExecuteError<S::Error>> {
    let mut found = Vec::new();
    let mut bytes = 0;
    let mut broken = None;
    let from = keys::entry(parent, cookie + 1);
    let to = keys::entry(parent, 1 << 63);
    tx.store()
        .scan(&from, &to, &mut |key, value| {
            let slot = match Slot::decode(Bytes::copy_from_slice(value)) {
                Ok(slot) => slot,
                Err(source) => {
                    broken = Some(damaged(key, source));
                    return false;
                }
            };
            let (Some(entry), Some(cookie)) = (slot.entry, keys::entry_cookie(key)) else {
                return true;
            };
            bytes += bytes_each + entry.name.len();
            if bytes > bytes_max && !found.is_empty() {
                return false;
            }
            found.push((cookie, entry));
            true
        })
        .map_err(ExecuteError::Store)?;
    match broken {
        Some(error) => Err(error),
        None => Ok(found),
    }
}

fn read_directory<S: Store>(
    tx: &Transaction<'_, S>,
    context: &Context<'_>,
    object: ObjectId,
    cookie: u64,
    bytes_max: u32,
    plus: bool,
) -> Step<Outcome, S> {
    tx.directory(object)?;
    if cookie >= 1 << 63 {
        return Ok(Outcome::Entries(Vec::new()));
    }
    let bytes_max = bytes_max.min(READ_DIRECTORY_BYTES_MAX) as usize;
    let bytes_each = ENTRY_BYTES + if plus { ATTRIBUTES_BYTES } else { 0 };
    let found = scan_entries(tx, object, cookie, bytes_max, bytes_each)?;
    let mut entries = Vec::with_capacity(found.len());
    for (cookie, entry) in found {
        let attributes = if plus {
            let inode = tx.named(entry.object)?;
            Some(entry_of(context, entry.object, &inode))
        } else {
            None
        };
        entries.push(DirectoryEntry {
            name: entry.name,
            object: entry.object,
            file_type: entry.file_type,
            cookie,
            attributes,
        });
    }
    Ok(Outcome::Entries(entries))
}
