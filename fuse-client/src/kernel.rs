//! Mounting and unmounting: by mount(2) as root, else by fusermount3, which hands the device over
//! on a socket (fuse(4); libfuse's `mount.c` has the convention).

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};

use crate::options::MountFlagsWanted;

/// What a file system answers whose process is gone.
pub(crate) const ENOTCONN: i32 = 107;

/// Why a mount was not made.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The device is missing.
    #[error("/dev/fuse cannot be opened: {0}")]
    Device(io::Error),
    /// The mount point cannot be used.
    #[error("the mount point {point} cannot be used: {source}")]
    Point {
        /// Which.
        point: String,
        /// Why.
        source: io::Error,
    },
    /// mount(2) refused.
    #[error("the kernel refused the mount: {0}")]
    Kernel(io::Error),
    /// The helper is missing or refused.
    #[error("fusermount3 did not mount: {0}")]
    Helper(String),
}

/// Mounts at `point` and returns the device.
pub(crate) fn mount(
    source: &str,
    point: &Path,
    wanted: &MountFlagsWanted,
) -> Result<OwnedFd, MountError> {
    let bad_point = |source| MountError::Point {
        point: point.display().to_string(),
        source,
    };
    let meta = std::fs::metadata(point).map_err(|error| {
        // One of ours is taken away before.
        if error.raw_os_error() == Some(ENOTCONN) {
            let what = "another file system's process died there; `umount -l` it first";
            return bad_point(io::Error::new(io::ErrorKind::NotConnected, what));
        }
        bad_point(error)
    })?;
    if !meta.is_dir() {
        return Err(bad_point(io::ErrorKind::NotADirectory.into()));
    }
    if rustix::process::geteuid().is_root() {
        by_kernel(source, point, wanted)
    } else {
        by_helper(source, point, wanted)
    }
}

fn by_kernel(source: &str, point: &Path, wanted: &MountFlagsWanted) -> Result<OwnedFd, MountError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device = rustix::fs::open("/dev/fuse", flags, Mode::empty())
        .map_err(|errno| MountError::Device(errno.into()))?;
    let (uid, gid) = (
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    let mut data = format!(
        "fd={},rootmode=40000,user_id={uid},group_id={gid},default_permissions",
        device.as_raw_fd()
    );
    if wanted.allow_other {
        data.push_str(",allow_other");
    }
    let flags = flags_of(wanted);
    let data = std::ffi::CString::new(data).expect("no NUL in numbers and names");
    rustix::mount::mount(source, point, "fuse.cairn", flags, Some(data.as_c_str()))
        .map_err(|errno| MountError::Kernel(errno.into()))?;
    Ok(device)
}

fn flags_of(wanted: &MountFlagsWanted) -> MountFlags {
    let mut flags = MountFlags::empty();
    let chosen = [
        (wanted.read_only, MountFlags::RDONLY),
        (wanted.nosuid, MountFlags::NOSUID),
        (wanted.nodev, MountFlags::NODEV),
        (wanted.noexec, MountFlags::NOEXEC),
        (wanted.noatime, MountFlags::NOATIME),
        (wanted.sync, MountFlags::SYNCHRONOUS),
    ];
    for (on, flag) in chosen {
        flags.set(flag, on);
    }
    flags
}

/// Gives what is mounted at `point` other flags.
pub(crate) fn remount(point: &Path, wanted: &MountFlagsWanted) -> io::Result<()> {
    Ok(rustix::mount::mount_remount(point, flags_of(wanted), "")?)
}

fn by_helper(source: &str, point: &Path, wanted: &MountFlagsWanted) -> Result<OwnedFd, MountError> {
    let failed = |error: &dyn std::fmt::Display| MountError::Helper(error.to_string());
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|e| failed(&e))?;
    // The helper finds the socket by number: it must survive exec.
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).map_err(|e| failed(&e))?;
    let mut options = vec![
        format!("fsname={}", source.replace(',', "\\,")),
        "subtype=cairn".to_owned(),
        "default_permissions".to_owned(),
    ];
    if wanted.allow_other {
        options.push("allow_other".to_owned());
    }
    let chosen = [
        (wanted.read_only, "ro"),
        (wanted.noexec, "noexec"),
        (wanted.noatime, "noatime"),
        (wanted.sync, "sync"),
    ];
    options.extend(
        chosen
            .iter()
            .filter(|(on, _)| *on)
            .map(|(_, word)| (*word).to_owned()),
    );
    let child = Command::new("fusermount3")
        .arg("-o")
        .arg(options.join(","))
        .arg("--")
        .arg(point)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(&format!("it cannot be run ({e}); Debian has it in `fuse3`")))?;
    drop(theirs);
    let device = receive_descriptor(&ours);
    let output = child.wait_with_output().map_err(|e| failed(&e))?;
    match device {
        Ok(Some(device)) if output.status.success() => Ok(device),
        _ => Err(failed(&String::from_utf8_lossy(&output.stderr).trim())),
    }
}

fn receive_descriptor(socket: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            return Ok(descriptors.next());
        }
    }
    Ok(None)
}

/// Takes the mount away; lazily, since somebody may still sit in it.
pub(crate) fn unmount(point: &Path) {
    if rustix::process::geteuid().is_root() {
        // It may be gone already.
        let _ = rustix::mount::unmount(point, UnmountFlags::DETACH);
    } else {
        let _ = Command::new("fusermount3")
            .args(["-u", "-z", "--"])
            .arg(point)
            .status();
    }
}
