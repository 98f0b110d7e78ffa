//! renameat2(2).

use bytes::Bytes;
use protocol::fs::Outcome;
use protocol::units::ObjectId;

use super::check_name;
use super::remove::{check_empty, drop_links};
use crate::entry::Entry;
use crate::errno::{EEXIST, EINVAL, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY};
use crate::inode::{Detail, Inode};
use crate::transaction::{Found, Step, Stop, Transaction};
use crate::tree::DEPTH_MAX;
use crate::{Context, ExecuteError, Store};

const NOREPLACE: u32 = 1;
const EXCHANGE: u32 = 2;

type Place<'a> = (ObjectId, &'a Bytes);

/// Whether `ancestor` is `directory` or one of the directories above it.
fn is_at_or_above<S: Store>(
    tx: &Transaction<'_, S>,
    ancestor: ObjectId,
    directory: ObjectId,
) -> Step<bool, S> {
    let mut at = directory;
    for _ in 0..DEPTH_MAX {
        if at == ancestor {
            return Ok(true);
        }
        if at == ObjectId::ROOT {
            return Ok(false);
        }
        match tx.named(at)?.detail {
            Detail::Directory { parent, .. } => at = parent,
            Detail::None | Detail::Symlink { .. } => break,
        }
    }
    Err(ExecuteError::Inconsistent { object: directory }.into())
}

/// Refuses to move a directory into itself, or over one that it stands in.
fn check_ancestors<S: Store>(
    tx: &Transaction<'_, S>,
    from: ObjectId,
    source: &Found,
    to: ObjectId,
    target: Option<&Found>,
    flags: u32,
) -> Step<(), S> {
    if from == to {
        return Ok(());
    }
    if source.is_directory() && is_at_or_above(tx, source.object, to)? {
        return Err(Stop::Errno(EINVAL));
    }
    let Some(target) = target.filter(|t| t.is_directory()) else {
        return Ok(());
    };
    if is_at_or_above(tx, target.object, from)? {
        let errno = if flags == EXCHANGE { EINVAL } else { ENOTEMPTY };
        return Err(Stop::Errno(errno));
    }
    Ok(())
}

pub(super) fn rename<S: Store>(
    tx: &mut Transaction<'_, S>,
    context: &Context<'_>,
    (from, name): Place<'_>,
    (to, new_name): Place<'_>,
    flags: u32,
) -> Step<Outcome, S> {
    if ![0, NOREPLACE, EXCHANGE].contains(&flags) {
        return Err(Stop::Errno(EINVAL));
    }
    check_name(name)?;
    check_name(new_name)?;
    tx.directory(from)?;
    tx.directory(to)?;
    let source = tx.find(from, name)?.ok_or(Stop::Errno(ENOENT))?;
    let target = tx.find(to, new_name)?;
    match (&target, flags) {
        (Some(_), NOREPLACE) => return Err(Stop::Errno(EEXIST)),
        (None, EXCHANGE) => return Err(Stop::Errno(ENOENT)),
        _ => {}
    }
    check_ancestors(tx, from, &source, to, target.as_ref(), flags)?;
    let Some(target) = target else {
        move_to_free(tx, context, (from, &source), (to, new_name))?;
        return Ok(Outcome::Done);
    };
    // Two names of one file, or one name twice: nothing happens.
    if target.object == source.object {
        return Ok(Outcome::Done);
    }
    if flags == EXCHANGE {
        exchange(tx, context, (from, &source), (to, &target))?;
    } else {
        replace(tx, context, (from, &source), (to, &target))?;
    }
    Ok(Outcome::Done)
}

/// The moved object's own fields.
fn settle<S: Store>(
    tx: &mut Transaction<'_, S>,
    context: &Context<'_>,
    object: ObjectId,
    to: ObjectId,
) -> Step<(), S> {
    let mut inode = tx.named(object)?;
    if let Detail::Directory { parent, .. } = &mut inode.detail {
        *parent = to;
    }
    inode.changed(context.now);
    tx.put_inode(object, &inode);
    Ok(())
}

fn move_to_free<S: Store>(
    tx: &mut Transaction<'_, S>,
    context: &Context<'_>,
    (from, source): (ObjectId, &Found),
    (to, new_name): Place<'_>,
) -> Step<(), S> {
    let directories = i32::from(source.is_directory());
    tx.remove(from, source.cookie)?;
    tx.touch_directory(from, context.now, -1, -directories)?;
    tx.insert(
        to,
        Entry {
            object: source.object,
            file_type: source.file_type,
            name: new_name.clone(),
        },
    )?;
    tx.touch_directory(to, context.now, 1, directories)?;
    settle(tx, context, source.object, to)
}

fn replace<S: Store>(
    tx: &mut Transaction<'_, S>,
    context: &Context<'_>,
    (from, source): (ObjectId, &Found),
    (to, target): (ObjectId, &Found),
) -> Step<(), S> {
    match (source.is_directory(), target.is_directory()) {
        (true, false) => return Err(Stop::Errno(ENOTDIR)),
        (false, true) => return Err(Stop::Errno(EISDIR)),
        _ => {}
    }
    let replaced: Inode = tx.named(target.object)?;
    let directories = i32::from(target.is_directory());
    if target.is_directory() {
        check_empty::<S>(target.object, &replaced)?;
    }
    // Repointing first: removing the source's name may fold a chain that the target is in.
    tx.repoint(to, target.cookie, source.object, source.file_type)?;
    tx.remove(from, source.cookie)?;
    tx.touch_directory(from, context.now, -1, -directories)?;
    tx.touch_directory(to, context.now, 0, 0)?;
    let links = if target.is_directory() { 2 } else { 1 };
    drop_links(tx, context, target.object, replaced, links)?;
    settle(tx, context, source.object, to)
}

fn exchange<S: Store>(
    tx: &mut Transaction<'_, S>,
    context: &Context<'_>,
    (from, source): (ObjectId, &Found),
    (to, target): (ObjectId, &Found),
) -> Step<(), S> {
    tx.repoint(from, source.cookie, target.object, target.file_type)?;
    tx.repoint(to, target.cookie, source.object, source.file_type)?;
    let gained = i32::from(target.is_directory()) - i32::from(source.is_directory());
    tx.touch_directory(from, context.now, 0, gained)?;
    tx.touch_directory(to, context.now, 0, -gained)?;
    settle(tx, context, source.object, to)?;
    settle(tx, context, target.object, from)
}
