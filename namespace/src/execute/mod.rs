//! From an operation to what the caller does next.

mod acl;
mod attributes;
mod create;
mod data;
mod look;
mod remove;
mod rename;
mod squash;
mod xattr;

use bytes::Bytes;
use protocol::fs::{NAME_BYTES_MAX, Operation, Outcome, Request, SLOTS_MAX};
use protocol::record::Change;
use protocol::units::ObjectId;

use crate::errno::{EINVAL, ENAMETOOLONG, ENXIO};
use crate::inode::Inode;
use crate::replies::encode_reply;
use crate::transaction::{Step, Stop, Transaction, read_totals};
use crate::{ChangeSet, Context, ExecuteError, Executed, Store, disk, keys, locks};

pub(crate) use data::put;
pub(crate) use remove::delete_object;
pub use squash::{NOBODY, squash};

/// How far an operation got by itself.
enum Next {
    /// Its outcome; what the transaction holds is to be ordered, if anything.
    Outcome(Outcome),
    /// The same, with data to write.
    Write(Outcome, Bytes),
    /// The caller goes on.
    Caller(Executed),
}

/// Executes a request against the volume as it is now. See [`Executed`] for what comes back.
///
/// For a request that changes the volume the caller asks [`crate::admit`] first. A failed
/// operation is an [`Executed::Answer`] and changes nothing, its kept reply included.
pub fn execute<S: Store>(
    store: &S,
    context: &Context<'_>,
    request: &Request,
) -> Result<Executed, ExecuteError<S::Error>> {
    if request.operation.changes() && request.slot >= SLOTS_MAX {
        return Err(ExecuteError::Slot { slot: request.slot });
    }
    let mut tx = Transaction::new(store);
    let allowed = disk::check(&tx, &request.operation);
    let (outcome, payload) = match allowed.and_then(|()| dispatch(&mut tx, context, request)) {
        Ok(Next::Outcome(outcome)) => (outcome, Bytes::new()),
        Ok(Next::Write(outcome, payload)) => (outcome, payload),
        Ok(Next::Caller(executed)) => return Ok(executed),
        Err(Stop::Errno(errno)) => return Ok(Executed::Answer(Outcome::Error(errno))),
        Err(Stop::Failed(error)) => return Err(error),
    };
    let mut changes = tx.into_changes();
    if changes.is_empty() {
        return Ok(Executed::Answer(outcome));
    }
    changes.push(Change::Put {
        key: Bytes::copy_from_slice(&keys::reply(context.session, request.slot)),
        value: encode_reply(request.number, context.sequence, &outcome),
    });
    Ok(Executed::Change(ChangeSet {
        changes,
        payload,
        outcome,
    }))
}

fn dispatch<S: Store>(
    tx: &mut Transaction<'_, S>,
    context: &Context<'_>,
    request: &Request,
) -> Step<Next, S> {
    if let Some(executed) = look::dispatch(tx, context, &request.operation)? {
        return Ok(executed);
    }
    if let Some(outcome) = locks::dispatch(tx, context, &request.operation)? {
        return Ok(Next::Outcome(outcome));
    }
    let caller = &request.caller;
    let outcome = match &request.operation {
        Operation::SetAttributes { object, set } => attributes::set(tx, context, *object, set)?,
        Operation::MakeNode {
            parent,
            name,
            mode,
            rdev,
        } => create::node(tx, context, caller, (*parent, name), *mode, *rdev)?,
        Operation::MakeDirectory { parent, name, mode } => {
            create::directory(tx, context, caller, (*parent, name), *mode)?
        }
        Operation::Symlink {
            parent,
            name,
            target,
        } => create::symlink(tx, context, caller, (*parent, name), target)?,
        Operation::Create {
            parent,
            name,
            mode,
            exclusive,
        } => create::file(tx, context, caller, (*parent, name), *mode, *exclusive)?,
        Operation::MakeUnnamed { parent, mode } => {
            create::unnamed(tx, context, caller, *parent, *mode)?
        }
        Operation::Link {
            object,
            new_parent,
            new_name,
        } => create::link(tx, context, *object, (*new_parent, new_name))?,
        Operation::Unlink { parent, name } => remove::unlink(tx, context, *parent, name)?,
        Operation::RemoveDirectory { parent, name } => {
            remove::directory(tx, context, *parent, name)?
        }
        Operation::Rename {
            parent,
            name,
            new_parent,
            new_name,
            flags,
        } => rename::rename(
            tx,
            context,
            (*parent, name),
            (*new_parent, new_name),
            *flags,
        )?,
        Operation::Write {
            object,
            offset,
            append,
            kill_privileges,
        } => {
            let place = data::Place {
                object: *object,
                offset: *offset,
                append: *append,
                kill_privileges: *kill_privileges,
            };
            let outcome = data::write(tx, context, &place, request.payload.len())?;
            return Ok(Next::Write(outcome, request.payload.clone()));
        }
        Operation::Allocate {
            object,
            mode,
            offset,
            len,
        } => data::allocate(tx, context, *object, *mode, *offset, *len)?,
        Operation::CopyRange {
            from,
            from_offset,
            object,
            offset,
            len,
        } => {
            let (source, target) = ((*from, *from_offset), (*object, *offset));
            return data::copy(tx, context, source, target, *len);
        }
        Operation::SetXattr {
            object,
            name,
            flags,
        } => xattr::set(tx, context, *object, name, &request.payload, *flags)?,
        Operation::RemoveXattr { object, name } => xattr::remove(tx, context, *object, name)?,
        // Everything that changes nothing was answered above.
        _ => return Err(Stop::Errno(crate::errno::EOPNOTSUPP)),
    };
    Ok(Next::Outcome(outcome))
}

/// A name that may stand in a directory.
fn check_name<E: std::error::Error>(name: &[u8]) -> Result<(), Stop<E>> {
    if name.len() > NAME_BYTES_MAX {
        return Err(Stop::Errno(ENAMETOOLONG));
    }
    let bad = name.is_empty()
        || name == b"."
        || name == b".."
        || name.contains(&b'/')
        || name.contains(&0);
    if bad {
        return Err(Stop::Errno(EINVAL));
    }
    Ok(())
}

/// Attributes for a reply. `blocks` is what the data takes before the change at hand.
pub(crate) fn entry_of(
    context: &Context<'_>,
    object: ObjectId,
    inode: &Inode,
) -> protocol::fs::Attributes {
    let allocated = if inode.is_file() {
        (context.allocated_bytes)(object)
    } else {
        0
    };
    inode.attributes(object, allocated)
}

fn statistics<S: Store>(tx: &Transaction<'_, S>) -> Step<Next, S> {
    let objects = read_totals(tx.store())?;
    Ok(Next::Caller(Executed::Statistics { objects }))
}

/// The write that a request to copy is, given what was read. `None`: the request is another one.
#[must_use]
pub fn copied(request: &Request, data: Bytes) -> Option<Request> {
    let Operation::CopyRange { object, offset, .. } = request.operation else {
        return None;
    };
    Some(Request {
        operation: Operation::Write {
            object,
            offset,
            append: false,
            kill_privileges: false,
        },
        payload: data,
        ..request.clone()
    })
}

/// The reply to a seek, given where data or a hole was found in the object's bytes (`None`:
/// none to the end).
#[must_use]
pub fn seek_outcome(hole: bool, size: u64, found: Option<u64>) -> Outcome {
    match (hole, found.filter(|at| *at < size)) {
        (_, Some(at)) => Outcome::Offset(at),
        (true, None) => Outcome::Offset(size),
        (false, None) => Outcome::Error(ENXIO),
    }
}
