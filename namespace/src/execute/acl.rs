//! Where ACLs and modes meet: setting either changes the other, and a directory hands its default
//! ACL down.

use bytes::Bytes;
use protocol::codec::DecodeError;
use protocol::fs::Caller;
use protocol::units::ObjectId;

use crate::acl::{ACCESS, Acl, DEFAULT};
use crate::errno::{EACCES, EINVAL, EOPNOTSUPP};
use crate::inode::{Inode, S_IFLNK, S_ISGID};
use crate::transaction::{Step, Stop, Transaction, damaged};
use crate::{Store, keys};

const RWX: u32 = 0o777;

/// What a new object begins with.
pub(super) struct Beginning {
    /// Type and permissions.
    pub(super) mode: u32,
    access: Option<Bytes>,
    default: Option<Bytes>,
}

/// The object's ACL of that name.
pub(super) fn read<S: Store>(
    tx: &Transaction<'_, S>,
    object: ObjectId,
    name: &[u8],
) -> Step<Option<Acl>, S> {
    let key = keys::xattr(object, name);
    let Some(value) = tx.get(&key)? else {
        return Ok(None);
    };
    let invalid = DecodeError::Invalid {
        what: "ACL",
        value: value.len() as u64,
    };
    match Acl::decode(&value) {
        Some(acl) => Ok(Some(acl)),
        None => Err(damaged(&key, invalid).into()),
    }
}

/// What is made in `directory` as `mode` begins with: what the default ACL there lets it, else
/// what the caller's umask does.
pub(super) fn inherit<S: Store>(
    tx: &Transaction<'_, S>,
    caller: &Caller,
    directory: (ObjectId, &Inode),
    mode: u32,
) -> Step<Beginning, S> {
    let plain = |mode| Beginning {
        mode,
        access: None,
        default: None,
    };
    let file_type = mode & crate::inode::S_IFMT;
    if file_type == S_IFLNK {
        return Ok(plain(mode));
    }
    let default = match directory.1.xattrs {
        0 => None,
        _ => read(tx, directory.0, DEFAULT)?,
    };
    let Some(default) = default else {
        return Ok(plain(mode & !(caller.umask & RWX)));
    };
    let access = default.inherited(mode);
    let is_directory = file_type == crate::inode::S_IFDIR;
    Ok(Beginning {
        mode: mode & !RWX | access.mode(),
        access: (!access.is_only_a_mode()).then(|| access.encode()),
        default: is_directory.then(|| default.encode()),
    })
}

impl Beginning {
    /// Gives the new object its ACLs.
    pub(super) fn store<S: Store>(
        self,
        tx: &mut Transaction<'_, S>,
        object: ObjectId,
        inode: &mut Inode,
    ) {
        for (name, value) in [(ACCESS, self.access), (DEFAULT, self.default)] {
            if let Some(value) = value {
                inode.xattrs += 1;
                tx.put(&keys::xattr(object, name), value);
            }
        }
    }
}

/// setxattr(2) of an ACL is about to happen: checks it, and lets the mode say the same. False: the
/// mode says all of it, and nothing is to be kept.
pub(super) fn check_new<S: Store>(
    inode: &mut Inode,
    name: &[u8],
    value: &Bytes,
    drops_group_id: bool,
) -> Step<bool, S> {
    if inode.file_type() == S_IFLNK {
        return Err(Stop::Errno(EOPNOTSUPP));
    }
    let acl = Acl::decode(value).ok_or(Stop::Errno(EINVAL))?;
    if name == DEFAULT {
        let allowed = inode.is_directory();
        return if allowed {
            Ok(true)
        } else {
            Err(Stop::Errno(EACCES))
        };
    }
    inode.mode = inode.mode & !RWX | acl.mode();
    if drops_group_id {
        inode.mode &= !S_ISGID;
    }
    Ok(!acl.is_only_a_mode())
}

/// chmod(2): what the mode says, the ACL says from now on.
pub(super) fn follow_mode<S: Store>(
    tx: &mut Transaction<'_, S>,
    object: ObjectId,
    inode: &Inode,
) -> Step<(), S> {
    if inode.xattrs == 0 {
        return Ok(());
    }
    if let Some(mut acl) = read(tx, object, ACCESS)? {
        acl.set_mode(inode.mode);
        tx.put(&keys::xattr(object, ACCESS), acl.encode());
    }
    Ok(())
}

/// Whether the attribute is an ACL.
pub(super) fn is_acl(name: &[u8]) -> bool {
    name == ACCESS || name == DEFAULT
}
