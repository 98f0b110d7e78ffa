//! Extended attributes. `user.`, `trusted.` and `security.` are kept, and of `system.` the two
//! that are POSIX ACLs; who may use which is the client's kernel's business.

use bytes::{BufMut, Bytes, BytesMut};
use protocol::fs::Outcome;
use protocol::units::ObjectId;

use super::acl;
use crate::errno::{E2BIG, EEXIST, EINVAL, ENAMETOOLONG, ENODATA, ENOSPC, EOPNOTSUPP};
use crate::inode::Inode;
use crate::transaction::{Step, Stop, Transaction};
use crate::{
    Context, ExecuteError, Store, XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX, XATTRS_MAX, keys,
};

const PREFIXES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
const CAPABILITY: &[u8] = b"security.capability";
const CREATE: u32 = 1;
const REPLACE: u32 = 2;
/// An access ACL takes set-group-id away.
const DROP_GROUP_ID: u32 = 4;

fn check_name<S: Store>(name: &[u8]) -> Step<(), S> {
    if name.len() > XATTR_NAME_BYTES_MAX {
        return Err(Stop::Errno(ENAMETOOLONG));
    }
    if acl::is_acl(name) {
        return Ok(());
    }
    let Some(prefix) = PREFIXES.iter().find(|p| name.starts_with(p)) else {
        return Err(Stop::Errno(EOPNOTSUPP));
    };
    if name.len() == prefix.len() || name.contains(&0) {
        return Err(Stop::Errno(EINVAL));
    }
    Ok(())
}

pub(super) fn get<S: Store>(
    tx: &Transaction<'_, S>,
    object: ObjectId,
    name: &[u8],
) -> Step<Outcome, S> {
    check_name::<S>(name)?;
    // Asked for most often where there are none (`security.capability` before writes).
    if tx.inode(object)?.xattrs == 0 {
        return Err(Stop::Errno(ENODATA));
    }
    match tx.get(&keys::xattr(object, name))? {
        Some(value) => Ok(Outcome::Data(value)),
        None => Err(Stop::Errno(ENODATA)),
    }
}

pub(super) fn list<S: Store>(tx: &Transaction<'_, S>, object: ObjectId) -> Step<Outcome, S> {
    let mut names = BytesMut::new();
    if tx.inode(object)?.xattrs > 0 {
        let start = keys::xattr(object, b"");
        tx.store()
            .scan(&start, &keys::xattr_end(object), &mut |key, _| {
                names.put_slice(&key[start.len()..]);
                names.put_u8(0);
                true
            })
            .map_err(ExecuteError::Store)?;
    }
    Ok(Outcome::Data(names.freeze()))
}

pub(super) fn set<S: Store>(
    tx: &mut Transaction<'_, S>,
    context: &Context<'_>,
    object: ObjectId,
    name: &[u8],
    value: &Bytes,
    flags: u32,
) -> Step<Outcome, S> {
    check_name::<S>(name)?;
    if flags & !(CREATE | REPLACE | DROP_GROUP_ID) != 0 {
        return Err(Stop::Errno(EINVAL));
    }
    if value.len() > XATTR_VALUE_BYTES_MAX {
        return Err(Stop::Errno(E2BIG));
    }
    let mut inode = tx.inode(object)?;
    let key = keys::xattr(object, name);
    let exists = tx.get(&key)?.is_some();
    if exists && flags & CREATE != 0 {
        return Err(Stop::Errno(EEXIST));
    }
    if !exists && flags & REPLACE != 0 {
        return Err(Stop::Errno(ENODATA));
    }
    if !exists && inode.xattrs >= XATTRS_MAX {
        return Err(Stop::Errno(ENOSPC));
    }
    let drops_group_id = flags & DROP_GROUP_ID != 0;
    let keeps = !acl::is_acl(name) || acl::check_new::<S>(&mut inode, name, value, drops_group_id)?;
    if keeps {
        inode.xattrs += u32::from(!exists);
        tx.put(&key, value.clone());
    } else if exists {
        inode.xattrs = inode.xattrs.saturating_sub(1);
        tx.delete(&key);
    }
    inode.changed(context.now);
    tx.put_inode(object, &inode);
    Ok(Outcome::Done)
}

pub(super) fn remove<S: Store>(
    tx: &mut Transaction<'_, S>,
    context: &Context<'_>,
    object: ObjectId,
    name: &[u8],
) -> Step<Outcome, S> {
    check_name::<S>(name)?;
    let mut inode = tx.inode(object)?;
    let key = keys::xattr(object, name);
    if tx.get(&key)?.is_none() {
        return Err(Stop::Errno(ENODATA));
    }
    inode.xattrs = inode.xattrs.saturating_sub(1);
    inode.changed(context.now);
    tx.delete(&key);
    tx.put_inode(object, &inode);
    Ok(Outcome::Done)
}

/// Takes the file's capabilities away, as every write does.
pub(super) fn drop_capability<S: Store>(
    tx: &mut Transaction<'_, S>,
    object: ObjectId,
    inode: &mut Inode,
) -> Step<(), S> {
    if inode.xattrs == 0 {
        return Ok(());
    }
    let key = keys::xattr(object, CAPABILITY);
    if tx.get(&key)?.is_some() {
        inode.xattrs -= 1;
        tx.delete(&key);
    }
    Ok(())
}
