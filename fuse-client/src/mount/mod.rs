//! Attaching to the kernel and detaching.

mod fusermount;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{UnmountFlags, mount, unmount};

use crate::options::Options;

/// Longest read in one request: what the protocol carries in one frame.
const READ_BYTES_MAX: u32 = protocol::fs::IO_BYTES_MAX;

/// Why it was not mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The machine has no FUSE.
    #[error("/dev/fuse cannot be opened: {source}")]
    Device {
        /// Why.
        source: io::Error,
    },
    /// The directory is none.
    #[error("{path} is no directory to mount on: {source}", path = path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused.
    #[error("the kernel refused to mount on {path}: {source}", path = path.display())]
    Refused {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The helper for ordinary users is missing or failed to start.
    #[error("fusermount3 cannot be run: {source}")]
    Helper {
        /// Why.
        source: io::Error,
    },
    /// The helper refused.
    #[error("fusermount3 refused: {message}")]
    HelperRefused {
        /// What it said.
        message: String,
    },
}

/// A mount point in use.
#[derive(Debug)]
pub struct MountPoint {
    path: PathBuf,
    by_helper: bool,
}

/// Mounts on `path`; the descriptor is where requests come from. Root mounts by itself and
/// serves every user; an ordinary user mounts by fusermount3.
pub fn attach(
    source: &str,
    path: &Path,
    options: &Options,
) -> Result<(OwnedFd, MountPoint), MountError> {
    let directory = |error| MountError::Directory {
        path: path.to_owned(),
        source: error,
    };
    if !std::fs::metadata(path).map_err(directory)?.is_dir() {
        return Err(directory(io::ErrorKind::NotADirectory.into()));
    }
    let by_helper = !rustix::process::geteuid().is_root();
    let fd = if by_helper {
        fusermount::attach(source, path, options)?
    } else {
        attach_as_root(source, path, options)?
    };
    let point = MountPoint {
        path: path.to_owned(),
        by_helper,
    };
    Ok((fd, point))
}

fn attach_as_root(source: &str, path: &Path, options: &Options) -> Result<OwnedFd, MountError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let fd = rustix::fs::open("/dev/fuse", flags, Mode::empty()).map_err(|error| {
        MountError::Device {
            source: error.into(),
        }
    })?;
    let data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other,max_read={}",
        fd.as_raw_fd(),
        READ_BYTES_MAX
    );
    let data = CString::new(data).expect("no NUL in it");
    mount(source, path, "fuse.cairn", options.flags, Some(&*data)).map_err(|error| {
        MountError::Refused {
            path: path.to_owned(),
            source: error.into(),
        }
    })?;
    Ok(fd)
}

impl MountPoint {
    /// Detaches. A mount that is in use goes on for those who use it, and nobody new gets in.
    pub fn detach(&self) -> io::Result<()> {
        if self.by_helper {
            return fusermount::detach(&self.path);
        }
        // Plainly first, so that a mount that nobody uses is gone when this returns.
        match unmount(&self.path, UnmountFlags::NOFOLLOW) {
            Err(rustix::io::Errno::BUSY) => Ok(unmount(
                &self.path,
                UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
            )?),
            other => Ok(other?),
        }
    }
}
