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
/// Nothing of ours is mounted there, it is in use, it is not the caller's to unmount, or no primary
/// took what was changed: then it stays mounted.
pub fn unmount(at: &Path, how: UnmountFlagsWanted) -> Result<(), MountFailure> {
    let shown = point::real_path(at).filter(|it| point::cairn_at(&point::table(), it).is_some());
    let Some(point) = shown else {
        return Err(failure(
            format!("no volume is mounted at {}", at.display()),
            "`findmnt -t fuse.cairn` lists what is mounted.",
        ));
    };
    if !how.lazy && !how.force {
        deliver(&point).map_err(|error| {
            failure(
                format!(
                    "{} stays mounted: what was changed there is not stable: {error}",
                    at.display()
                ),
                "`cairn why` says what is wrong; `umount -l` takes it out of the tree all the same.",
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
    let synced = rustix::fs::open(point, flags, Mode::empty()).and_then(rustix::fs::fsync);
    match synced {
        // Its process is gone, and with it what it had.
        Err(errno) if errno.raw_os_error() == ENOTCONN => Ok(()),
        other => Ok(other?),
    }
}
