//! Operations that take a name away, and what becomes of an object without one.

use bytes::Bytes;
use protocol::fs::Outcome;
use protocol::record::Change;
use protocol::units::ObjectId;

use super::check_name;
use crate::errno::{EISDIR, ENOENT, ENOTDIR, ENOTEMPTY};
use crate::inode::{Detail, Inode};
use crate::transaction::{Found, Step, Stop, Transaction};
use crate::{Context, ExecuteError, Store, keys};

/// Deletes an object that has no name and that nobody holds open.
pub(crate) fn delete_object<S: Store>(
    tx: &mut Transaction<'_, S>,
    object: ObjectId,
    inode: &Inode,
) -> Step<(), S> {
    tx.delete(&keys::inode(object));
    if inode.xattrs > 0 {
        let mut names = Vec::new();
        tx.store()
            .scan(
                &keys::xattr(object, b""),
                &keys::xattr_end(object),
                &mut |key, _| {
                    names.push(Bytes::copy_from_slice(key));
                    true
                },
            )
            .map_err(ExecuteError::Store)?;
        for name in names {
            tx.delete(&name);
        }
    }
    if inode.is_file() {
        tx.data(Change::Drop { object });
    }
    tx.count_objects(-1)
}

/// The object lost a name (`links` of its links go with it).
pub(super) fn drop_links<S: Store>(
    tx: &mut Transaction<'_, S>,
    context: &Context<'_>,
    object: ObjectId,
    mut inode: Inode,
    links: u32,
) -> Step<(), S> {
    inode.nlink = inode.nlink.saturating_sub(links);
    inode.changed(context.now);
    if inode.nlink > 0 {
        tx.put_inode(object, &inode);
        return Ok(());
    }
    if (context.is_open)(object) {
        tx.put_inode(object, &inode);
        tx.put(&keys::orphan(object), Bytes::from_static(&[1]));
        return Ok(());
    }
    delete_object(tx, object, &inode)
}

/// Whether the directory may go.
pub(super) fn check_empty<S: Store>(object: ObjectId, inode: &Inode) -> Step<(), S> {
    match inode.detail {
        Detail::Directory { entries: 0, .. } => Ok(()),
        Detail::Directory { .. } => Err(Stop::Errno(ENOTEMPTY)),
        // Its entry says that it is a directory.
        Detail::None | Detail::Symlink { .. } => Err(ExecuteError::Inconsistent { object }.into()),
    }
}

fn found<S: Store>(tx: &Transaction<'_, S>, parent: ObjectId, name: &[u8]) -> Step<Found, S> {
    check_name(name)?;
    match tx.find(parent, name)? {
        Some(found) => Ok(found),
        None => {
            tx.directory(parent)?;
            Err(Stop::Errno(ENOENT))
        }
    }
}

pub(super) fn unlink<S: Store>(
    tx: &mut Transaction<'_, S>,
    context: &Context<'_>,
    parent: ObjectId,
    name: &[u8],
) -> Step<Outcome, S> {
    let found = found(tx, parent, name)?;
    if found.is_directory() {
        return Err(Stop::Errno(EISDIR));
    }
    let inode = tx.named(found.object)?;
    tx.remove(parent, found.cookie)?;
    tx.touch_directory(parent, context.now, -1, 0)?;
    drop_links(tx, context, found.object, inode, 1)?;
    Ok(Outcome::Done)
}

pub(super) fn directory<S: Store>(
    tx: &mut Transaction<'_, S>,
    context: &Context<'_>,
    parent: ObjectId,
    name: &[u8],
) -> Step<Outcome, S> {
    let found = found(tx, parent, name)?;
    if !found.is_directory() {
        return Err(Stop::Errno(ENOTDIR));
    }
    let inode = tx.named(found.object)?;
    check_empty::<S>(found.object, &inode)?;
    tx.remove(parent, found.cookie)?;
    tx.touch_directory(parent, context.now, -1, -1)?;
    drop_links(tx, context, found.object, inode, 2)?;
    Ok(Outcome::Done)
}
