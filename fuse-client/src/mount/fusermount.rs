//! Mounting as an ordinary user: fusermount3 mounts and passes the descriptor back.

use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::mount::MountFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::{MountError, READ_BYTES_MAX};
use crate::options::Options;

const PROGRAM: &str = "fusermount3";
/// Where fusermount3 finds the socket to pass the descriptor through.
const SOCKET_VARIABLE: &str = "_FUSE_COMMFD";

fn words(source: &str, options: &Options) -> String {
    let mut words = vec![
        format!(
            "fsname={}",
            source.replace('\\', "\\\\").replace(',', "\\,")
        ),
        "subtype=cairn".to_owned(),
        "default_permissions".to_owned(),
        format!("max_read={READ_BYTES_MAX}"),
        "nosuid".to_owned(),
        "nodev".to_owned(),
    ];
    for (flag, word) in [
        (MountFlags::RDONLY, "ro"),
        (MountFlags::NOEXEC, "noexec"),
        (MountFlags::NOATIME, "noatime"),
        (MountFlags::SYNCHRONOUS, "sync"),
        (MountFlags::DIRSYNC, "dirsync"),
    ] {
        if options.flags.contains(flag) {
            words.push(word.to_owned());
        }
    }
    if options.allow_other {
        words.push("allow_other".to_owned());
    }
    words.join(",")
}

pub(super) fn attach(source: &str, path: &Path, options: &Options) -> Result<OwnedFd, MountError> {
    let helper = |source: io::Error| MountError::Helper { source };
    let (ours, theirs) = UnixStream::pair().map_err(helper)?;
    fcntl_setfd(&theirs, FdFlags::empty()).map_err(|error| helper(error.into()))?;
    let mut child = Command::new(PROGRAM)
        .arg("-o")
        .arg(words(source, options))
        .arg("--")
        .arg(path)
        .env(SOCKET_VARIABLE, theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(helper)?;
    drop(theirs);
    let fd = receive_descriptor(&ours);
    let mut message = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        // What it says matters only where it failed.
        let _ = stderr.read_to_string(&mut message);
    }
    let status = child.wait().map_err(helper)?;
    match (fd, status.success()) {
        (Ok(Some(fd)), true) => {
            fcntl_setfd(&fd, FdFlags::CLOEXEC).map_err(|error| helper(error.into()))?;
            Ok(fd)
        }
        (Err(error), true) => Err(helper(error)),
        _ => Err(MountError::HelperRefused {
            message: message
                .trim()
                .trim_start_matches("fusermount3: ")
                .to_owned(),
        }),
    }
}

fn receive_descriptor(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0_u8; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut byte)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    rustix::io::retry_on_intr(|| recvmsg(socket, &mut parts, &mut control, flags))?;
    let mut found = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            found = descriptors.last();
        }
    }
    Ok(found)
}

pub(super) fn detach(path: &Path) -> io::Result<()> {
    let run = |flag: &str| {
        Command::new(PROGRAM)
            .args([flag, "--"])
            .arg(path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
    };
    if run("-u")?.success() || run("-uz")?.success() {
        return Ok(());
    }
    Err(io::Error::other("fusermount3 could not unmount"))
}
