//! umount(8)'s helper. umount(2) waits for nothing that a FUSE server still has to do, so what a
//! mount answered early is delivered before it.

use std::io;
use std::path::Path;
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use rustix::mount::UnmountFlags;

use crate::command::{MountFailure, failure};
use crate::kernel::ENOTCONN;
use crate::point;

const EBUSY: i32 = 16;
const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EACCES: i32 = 13;
const ECONNABORTED: i32 = 103;
const ESTALE: i32 = 116;

/// How it is unmounted: words of umount(8).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UnmountFlagsWanted {
    /// `-l`: out of the tree at once, also where it is in use.
    pub lazy: bool,
    /// `-f`: what processes wait for there fails.
    pub force: bool,
}

/// Unmounts what is at `at`. Without a flag everything that was changed through the mount is stable
/// when it returns, as the ack policy asks; that waits for a primary, and a signal ends it.
///
/// # Errors
///
/// Nothing of ours is mounted there, it is in use, it is not the caller's to unmount, no primary took
/// what was changed, or some of that was lost and nobody was told before: then it stays mounted.
pub fn unmount(at: &Path, how: UnmountFlagsWanted) -> Result<(), MountFailure> {
    let table = point::table();
    let shown = point::real_path(at).and_then(|it| Some((point::cairn_at(&table, &it)?, it)));
    let Some((shown, point)) = shown else {
        return Err(failure(
            format!("no volume is mounted at {}", at.display()),
            "`findmnt -t fuse.cairn` lists what is mounted.",
        ));
    };
    // What is mounted elsewhere as well stays there, and its process with it.
    let is_last = point::times_mounted(&table, &shown.device) <= 1;
    if !how.lazy && !how.force && is_last {
        deliver(&point).map_err(|error| {
            failure(
                format!(
                    "{} stays mounted: not everything is stable that was changed there: {error}",
                    at.display()
                ),
                "`cairn why` says what is wrong. What was lost is told once, so another `umount` takes it \
                 away; `umount -l` takes it out of the tree all the same.",
            )
        })?;
    }
    if !rustix::process::geteuid().is_root() {
        return by_helper(&point, how);
    }
    let mut flags = UnmountFlags::empty();
    flags.set(UnmountFlags::DETACH, how.lazy);
    flags.set(UnmountFlags::FORCE, how.force);
    rustix::mount::unmount(&point, flags).map_err(|errno| {
        let hint = match errno.raw_os_error() {
            EBUSY => "It is in use: `fuser -vm DIR` says by whom.",
            _ => "Look at the kernel's log (`dmesg`).",
        };
        failure(format!("{} is not unmounted: {errno}", at.display()), hint)
    })
}

/// An ordinary user's own mount.
fn by_helper(point: &Path, how: UnmountFlagsWanted) -> Result<(), MountFailure> {
    let mut command = Command::new("fusermount3");
    command.arg("-u");
    if how.lazy {
        command.arg("-z");
    }
    let done = command.arg("--").arg(point).status();
    match done {
        Ok(status) if status.success() => Ok(()),
        _ => Err(failure(
            format!("{} is not unmounted by fusermount3", point.display()),
            "An ordinary user unmounts what he mounted himself, if nobody uses it.",
        )),
    }
}

/// A sync of anything waits for everything that was answered early before it.
fn deliver(point: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(point, flags, Mode::empty());
    match opened {
        Err(errno) if cannot_be_asked(errno.raw_os_error()) => Ok(()),
        Err(errno) => Err(errno.into()),
        Ok(root) => match rustix::fs::fsync(root) {
            // Its process is gone, and with it what it had.
            Err(errno) if matches!(errno.raw_os_error(), ENOTCONN | ECONNABORTED) => Ok(()),
            other => Ok(other?),
        },
    }
}

/// Whether opening the mount's root failed so that it would for ever: its process is gone, or it is
/// another user's, whom FUSE lets nobody look over the shoulder, or its directory was removed. What it
/// still has, it delivers behind umount(2).
fn cannot_be_asked(errno: i32) -> bool {
    matches!(
        errno,
        ENOTCONN | ECONNABORTED | EACCES | EPERM | ENOENT | ESTALE
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_that_cannot_be_opened_is_unmounted_and_one_whose_changes_fail_is_not() {
        for errno in [EACCES, EPERM, ENOENT, ESTALE, ENOTCONN, ECONNABORTED] {
            assert!(cannot_be_asked(errno), "{errno}");
        }
        for errno in [5, 4, 28, EBUSY] {
            assert!(!cannot_be_asked(errno), "{errno}");
        }
        let gone = deliver(Path::new("/nowhere/at/all"));
        gone.expect("a directory that is gone");
        let file = tempfile::NamedTempFile::new().expect("a file");
        deliver(file.path()).expect("it is made stable");
    }
}
