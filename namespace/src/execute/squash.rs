//! `root-squash`: user and group 0 of mounts are nobody, and the primary checks permissions.
//!
//! The kernel of a mount checks permissions too, for whoever its root says that a process is, and
//! lets root through. So who is root there could do as somebody else, with root's capabilities,
//! what root itself may not: everybody is checked here. Which groups a user is in only his machine
//! knows: whoever was not root is taken for a member of every group but 0. Whoever was root is a
//! member of nobody's alone.

use protocol::fs::{Operation, Request, SetAttributes, SetTime};
use protocol::units::ObjectId;

use super::acl;
use crate::acl::Acl;
use crate::errno::{EACCES, ENODATA, EPERM};
use crate::inode::{Inode, S_IFBLK, S_IFCHR, S_IFMT, S_ISGID};
use crate::transaction::{Step, Stop, Transaction};
use crate::{ExecuteError, Store};

/// User and group that stand for 0.
pub const NOBODY: u32 = 65_534;

const READ: u16 = 4;
const WRITE: u16 = 2;
const EXECUTE: u16 = 1;
const S_ISVTX: u32 = 0o1000;
const RENAME_EXCHANGE: u32 = 2;

/// The request as nobody's, if root made it, and as what it may do; or the errno that refuses it.
///
/// # Errors
/// The store fails, or what it holds contradicts itself.
pub fn squash<S: Store>(
    store: &S,
    request: &Request,
) -> Result<Result<Request, i32>, ExecuteError<S::Error>> {
    let nobody = |id| if id == 0 { NOBODY } else { id };
    let mut squashed = request.clone();
    squashed.caller.uid = nobody(request.caller.uid);
    squashed.caller.gid = nobody(request.caller.gid);
    let tx = Transaction::new(store);
    let who = Who {
        tx: &tx,
        uid: squashed.caller.uid,
        gid: squashed.caller.gid,
        was_root: request.caller.uid == 0,
    };
    match who.check(&mut squashed.operation) {
        Ok(()) => Ok(Ok(squashed)),
        Err(Stop::Errno(errno)) => Ok(Err(errno)),
        Err(Stop::Failed(error)) => Err(error),
    }
}

struct Who<'a, S: Store> {
    tx: &'a Transaction<'a, S>,
    uid: u32,
    gid: u32,
    was_root: bool,
}

impl<S: Store> Who<'_, S> {
    /// Whether the operation may be; bits that it may not give are taken from it.
    fn check(&self, operation: &mut Operation) -> Step<(), S> {
        match operation {
            Operation::Lookup { parent, .. } => self.uses(*parent, EXECUTE),
            Operation::MakeNode { mode, .. } if matches!(*mode & S_IFMT, S_IFCHR | S_IFBLK) => {
                Err(Stop::Errno(EPERM))
            }
            Operation::MakeNode { parent, mode, .. }
            | Operation::MakeUnnamed { parent, mode }
            | Operation::MakeDirectory { parent, mode, .. } => self.makes(*parent, mode),
            Operation::Create {
                parent, name, mode, ..
            } => match self.tx.find(*parent, name)? {
                // It is opened as it is; what is read and written is checked then.
                Some(_) => self.uses(*parent, EXECUTE),
                None => self.makes(*parent, mode),
            },
            Operation::Symlink { parent, .. } => self.uses(*parent, WRITE | EXECUTE),
            Operation::Link { new_parent, .. } => self.uses(*new_parent, WRITE | EXECUTE),
            Operation::Unlink { parent, name } | Operation::RemoveDirectory { parent, name } => {
                self.takes_away(*parent, name, false)
            }
            Operation::Rename {
                parent,
                name,
                new_parent,
                new_name,
                flags,
            } => {
                let moves = parent != new_parent;
                self.takes_away(*parent, name, moves)?;
                self.takes_away(
                    *new_parent,
                    new_name,
                    moves && *flags & RENAME_EXCHANGE != 0,
                )
            }
            Operation::SetAttributes { object, set } => self.sets(*object, set),
            Operation::Read { object, .. } => self.reads(*object),
            Operation::Seek { object, .. } | Operation::ReadDirectory { object, .. } => {
                self.has_open(*object, READ)
            }
            Operation::Write { object, .. } | Operation::Allocate { object, .. } => {
                self.has_open(*object, WRITE)
            }
            Operation::CopyRange { from, object, .. } => {
                self.reads(*from)?;
                self.has_open(*object, WRITE)
            }
            Operation::GetXattr { object, name } => self.attribute(*object, name, READ),
            Operation::SetXattr { object, name, .. } | Operation::RemoveXattr { object, name } => {
                self.attribute(*object, name, WRITE)
            }
            _ => Ok(()),
        }
    }

    fn is_in(&self, gid: u32) -> bool {
        gid != 0 && (!self.was_root || gid == self.gid)
    }

    fn owns(&self, inode: &Inode) -> bool {
        inode.uid == self.uid
    }

    /// What mode and ACL let.
    fn may(&self, object: ObjectId, inode: &Inode, want: u16) -> Step<bool, S> {
        let acl = match inode.xattrs {
            0 => None,
            _ => acl::read(self.tx, object, crate::acl::ACCESS)?,
        };
        let acl = acl.unwrap_or_else(|| Acl::of_mode(inode.mode));
        let groups = |gid: Option<u32>| self.is_in(gid.unwrap_or(inode.gid));
        let own = self.owns(inode);
        // Who may be in any group may be in none of those that are named.
        Ok(acl.allows(own, self.uid, groups, !self.was_root, want))
    }

    fn needs(&self, allowed: bool, errno: i32) -> Step<(), S> {
        if allowed {
            Ok(())
        } else {
            Err(Stop::Errno(errno))
        }
    }

    fn uses(&self, parent: ObjectId, want: u16) -> Step<(), S> {
        let directory = self.tx.directory(parent)?;
        self.needs(self.may(parent, &directory, want)?, EACCES)
    }

    /// Through an open file, whose owner could give himself the right.
    fn has_open(&self, object: ObjectId, want: u16) -> Step<(), S> {
        let inode = self.tx.inode(object)?;
        let may = self.owns(&inode) || self.may(object, &inode, want)?;
        self.needs(may, EACCES)
    }

    /// Who may run a program has it read.
    fn reads(&self, object: ObjectId) -> Step<(), S> {
        let inode = self.tx.inode(object)?;
        let runs = inode.is_file() && self.may(object, &inode, EXECUTE)?;
        let may = runs || self.owns(&inode) || self.may(object, &inode, READ)?;
        self.needs(may, EACCES)
    }

    fn makes(&self, parent: ObjectId, mode: &mut u32) -> Step<(), S> {
        self.uses(parent, WRITE | EXECUTE)?;
        let directory = self.tx.inode(parent)?;
        let inherits = directory.mode & S_ISGID != 0;
        let gid = if inherits { directory.gid } else { self.gid };
        if !self.is_in(gid) {
            *mode &= !S_ISGID;
        }
        Ok(())
    }

    /// A name goes from a directory, or gets another meaning. `moves`: what it names gets another
    /// parent, which a directory notes.
    fn takes_away(&self, parent: ObjectId, name: &[u8], moves: bool) -> Step<(), S> {
        self.uses(parent, WRITE | EXECUTE)?;
        let Some(found) = self.tx.find(parent, name)? else {
            return Ok(());
        };
        let (directory, inode) = (self.tx.inode(parent)?, self.tx.named(found.object)?);
        let sticks = directory.mode & S_ISVTX != 0;
        let may = !sticks || self.owns(&directory) || self.owns(&inode);
        self.needs(may, EPERM)?;
        if moves && found.is_directory() {
            self.needs(self.may(found.object, &inode, WRITE)?, EACCES)?;
        }
        Ok(())
    }

    fn sets(&self, object: ObjectId, set: &mut SetAttributes) -> Step<(), S> {
        let inode = self.tx.inode(object)?;
        let owns = self.owns(&inode);
        let gives_away = set.uid.is_some_and(|uid| uid != inode.uid);
        let other_group = set
            .gid
            .is_some_and(|gid| gid != inode.gid && !self.is_in(gid));
        if gives_away || other_group {
            return Err(Stop::Errno(EPERM));
        }
        let chosen = |time| matches!(time, Some(SetTime::At(_)));
        let owners = set.uid.is_some() || set.gid.is_some() || set.mode.is_some();
        if owners || chosen(set.atime) || chosen(set.mtime) {
            self.needs(owns, EPERM)?;
        }
        let touches = set.size.is_some() || set.atime.is_some() || set.mtime.is_some();
        if touches {
            self.needs(owns || self.may(object, &inode, WRITE)?, EACCES)?;
        }
        if let Some(mode) = &mut set.mode
            && !self.is_in(set.gid.unwrap_or(inode.gid))
        {
            *mode &= !S_ISGID;
        }
        Ok(())
    }

    fn attribute(&self, object: ObjectId, name: &[u8], want: u16) -> Step<(), S> {
        let writes = want == WRITE;
        if name.starts_with(b"trusted.") {
            return Err(Stop::Errno(if writes { EPERM } else { ENODATA }));
        }
        if name.starts_with(b"security.") {
            // Capabilities of files are root's; kernels ask for them all the time.
            return self.needs(!writes, EPERM);
        }
        let inode = self.tx.inode(object)?;
        if acl::is_acl(name) {
            // Every kernel reads ACLs to check by them.
            return self.needs(!writes || self.owns(&inode), EPERM);
        }
        if writes && inode.is_directory() && inode.mode & S_ISVTX != 0 {
            self.needs(self.owns(&inode), EPERM)?;
        }
        self.needs(self.may(object, &inode, want)?, EACCES)
    }
}
