//! Operations that make a name.

use bytes::Bytes;
use protocol::fs::{Caller, Outcome};
use protocol::units::ObjectId;

use super::{acl, check_name, entry_of};
use crate::entry::Entry;
use crate::errno::{EEXIST, EINVAL, EISDIR, EMLINK, ENAMETOOLONG, ENOENT, EPERM, ESTALE};
use crate::inode::{
    Detail, Inode, PERMISSIONS, S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG,
    S_IFSOCK, S_ISGID,
};
use crate::transaction::{Step, Stop, Transaction};
use crate::{Context, LINKS_MAX, Store, TARGET_BYTES_MAX, keys};

/// Value of an orphan's key where the object never had a name.
const UNNAMED: [u8; 1] = [2];

/// A name in a directory.
type Place<'a> = (ObjectId, &'a Bytes);

/// Checks that the name can be made and returns its directory.
fn check_free<S: Store>(tx: &Transaction<'_, S>, place: Place<'_>) -> Step<Inode, S> {
    check_name(place.1)?;
    let directory = tx.directory(place.0)?;
    if tx.find(place.0, place.1)?.is_some() {
        return Err(Stop::Errno(EEXIST));
    }
    Ok(directory)
}

/// The fields of a new object in `directory`, and its ACLs.
fn begin<S: Store>(
    tx: &mut Transaction<'_, S>,
    context: &Context<'_>,
    caller: &Caller,
    directory: (ObjectId, &Inode),
    mode: u32,
    detail: Detail,
) -> Step<Inode, S> {
    let beginning = acl::inherit(tx, caller, directory, mode)?;
    let is_directory = mode & S_IFMT == S_IFDIR;
    // A set-group-id directory hands its group down, and sub-directories the bit as well.
    let inherits = directory.1.mode & S_ISGID != 0;
    let group_id = if inherits && is_directory { S_ISGID } else { 0 };
    let mut inode = Inode {
        mode: beginning.mode | group_id,
        nlink: if is_directory { 2 } else { 1 },
        uid: caller.uid,
        gid: if inherits {
            directory.1.gid
        } else {
            caller.gid
        },
        rdev: 0,
        xattrs: 0,
        size: 0,
        atime: context.now,
        mtime: context.now,
        ctime: context.now,
        btime: context.now,
        detail,
    };
    beginning.store(tx, context.new_object, &mut inode);
    Ok(inode)
}

/// Makes a new object under the name.
fn make<S: Store>(
    tx: &mut Transaction<'_, S>,
    context: &Context<'_>,
    caller: &Caller,
    place: Place<'_>,
    mode: u32,
    rdev: u32,
    detail: Detail,
) -> Step<Outcome, S> {
    let parent = check_free(tx, place)?;
    let is_directory = mode & S_IFMT == S_IFDIR;
    let mut inode = begin(tx, context, caller, (place.0, &parent), mode, detail)?;
    inode.rdev = rdev;
    let object = context.new_object;
    tx.insert(
        place.0,
        Entry {
            object,
            file_type: mode & S_IFMT,
            name: place.1.clone(),
        },
    )?;
    tx.put_inode(object, &inode);
    tx.touch_directory(place.0, context.now, 1, i32::from(is_directory))?;
    tx.count_objects(1)?;
    Ok(Outcome::Entry(inode.attributes(object, 0)))
}

pub(super) fn node<S: Store>(
    tx: &mut Transaction<'_, S>,
    context: &Context<'_>,
    caller: &Caller,
    place: Place<'_>,
    mode: u32,
    rdev: u32,
) -> Step<Outcome, S> {
    let rdev = match mode & S_IFMT {
        S_IFREG | S_IFIFO | S_IFSOCK => 0,
        S_IFCHR | S_IFBLK => rdev,
        S_IFDIR => return Err(Stop::Errno(EPERM)),
        _ => return Err(Stop::Errno(EINVAL)),
    };
    let mode = mode & (S_IFMT | PERMISSIONS);
    make(tx, context, caller, place, mode, rdev, Detail::None)
}

pub(super) fn directory<S: Store>(
    tx: &mut Transaction<'_, S>,
    context: &Context<'_>,
    caller: &Caller,
    place: Place<'_>,
    mode: u32,
) -> Step<Outcome, S> {
    let detail = Detail::Directory {
        parent: place.0,
        entries: 0,
    };
    let mode = S_IFDIR | mode & PERMISSIONS;
    make(tx, context, caller, place, mode, 0, detail)
}

pub(super) fn symlink<S: Store>(
    tx: &mut Transaction<'_, S>,
    context: &Context<'_>,
    caller: &Caller,
    place: Place<'_>,
    target: &Bytes,
) -> Step<Outcome, S> {
    if target.is_empty() {
        return Err(Stop::Errno(ENOENT));
    }
    if target.len() > TARGET_BYTES_MAX {
        return Err(Stop::Errno(ENAMETOOLONG));
    }
    if target.contains(&0) {
        return Err(Stop::Errno(EINVAL));
    }
    let detail = Detail::Symlink {
        target: target.clone(),
    };
    make(tx, context, caller, place, S_IFLNK | 0o777, 0, detail)
}

pub(super) fn file<S: Store>(
    tx: &mut Transaction<'_, S>,
    context: &Context<'_>,
    caller: &Caller,
    place: Place<'_>,
    mode: u32,
    exclusive: bool,
) -> Step<Outcome, S> {
    check_name(place.1)?;
    let Some(found) = tx.find(place.0, place.1)? else {
        let mode = S_IFREG | mode & PERMISSIONS;
        return make(tx, context, caller, place, mode, 0, Detail::None);
    };
    if exclusive {
        return Err(Stop::Errno(EEXIST));
    }
    match found.file_type {
        S_IFREG => {
            let inode = tx.named(found.object)?;
            Ok(Outcome::Entry(entry_of(context, found.object, &inode)))
        }
        S_IFDIR => Err(Stop::Errno(EISDIR)),
        // The kernel thought that the name is free; it has to look again and follow the link or
        // open the device itself.
        _ => Err(Stop::Errno(ESTALE)),
    }
}

/// A file that has no name: an orphan from the beginning, which may still get one.
pub(super) fn unnamed<S: Store>(
    tx: &mut Transaction<'_, S>,
    context: &Context<'_>,
    caller: &Caller,
    parent: ObjectId,
    mode: u32,
) -> Step<Outcome, S> {
    let directory = tx.directory(parent)?;
    let mode = S_IFREG | mode & PERMISSIONS;
    let place = (parent, &directory);
    let mut inode = begin(tx, context, caller, place, mode, Detail::None)?;
    inode.nlink = 0;
    let object = context.new_object;
    tx.put_inode(object, &inode);
    tx.put(&keys::orphan(object), Bytes::from_static(&UNNAMED));
    tx.count_objects(1)?;
    Ok(Outcome::Entry(inode.attributes(object, 0)))
}

pub(super) fn link<S: Store>(
    tx: &mut Transaction<'_, S>,
    context: &Context<'_>,
    object: ObjectId,
    place: Place<'_>,
) -> Step<Outcome, S> {
    check_free(tx, place)?;
    let mut inode = tx.inode(object)?;
    if inode.is_directory() {
        return Err(Stop::Errno(EPERM));
    }
    if inode.nlink == 0 {
        // What lost its last name gets none again; what never had one may.
        let orphan = keys::orphan(object);
        if tx.get(&orphan)?.as_deref() != Some(&UNNAMED) {
            return Err(Stop::Errno(ENOENT));
        }
        tx.delete(&orphan);
    }
    if inode.nlink >= LINKS_MAX {
        return Err(Stop::Errno(EMLINK));
    }
    inode.nlink += 1;
    inode.changed(context.now);
    tx.insert(
        place.0,
        Entry {
            object,
            file_type: inode.file_type(),
            name: place.1.clone(),
        },
    )?;
    tx.put_inode(object, &inode);
    tx.touch_directory(place.0, context.now, 1, 0)?;
    Ok(Outcome::Entry(entry_of(context, object, &inode)))
}
