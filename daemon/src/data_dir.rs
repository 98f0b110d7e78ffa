//! The daemon's directory: identity, configuration of the pool, sockets, events.
//!
//! Others may pass through it (0711) to reach the sockets, whose own modes say who may use them;
//! nobody else may list it or read what is in it.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use protocol::identity::{Identity, IdentityError};
use rustix::fs::FlockOperation;

/// Name of the group whose members may use the sockets.
pub const GROUP: &str = "cairn";
/// Locked while a daemon works in the directory.
pub(crate) const LOCK: &str = "daemon.lock";
/// The node's key.
pub(crate) const IDENTITY: &str = "identity.pem";

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// A file operation failed.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// Another daemon works here.
    #[error("another daemon uses the data directory {path}")]
    InUse {
        /// Which.
        path: PathBuf,
    },
    /// The identity cannot be used.
    #[error("{path}: {source}")]
    Identity {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: IdentityError,
    },
}

/// The directory, locked by this process.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Holds the lock for as long as it is open.
    _lock: File,
}

impl DataDir {
    /// Makes the directory where it is missing, and locks it.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let failed = |source| DataDirError::Io {
            path: path.to_owned(),
            source,
        };
        fs::create_dir_all(path).map_err(failed)?;
        fs::set_permissions(path, Permissions::from_mode(0o711)).map_err(failed)?;
        let path = path.canonicalize().map_err(failed)?;
        let lock_path = path.join(LOCK);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|source| DataDirError::Io {
                path: lock_path.clone(),
                source,
            })?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(DataDirError::InUse { path }),
            Err(errno) => Err(DataDirError::Io {
                path: lock_path,
                source: errno.into(),
            }),
        }
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The pool's configuration.
    #[must_use]
    pub fn raft_file(&self) -> PathBuf {
        self.path.join("raft.redb")
    }

    /// The control socket.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.path.join("control.sock")
    }

    /// The data socket for mounts on this machine.
    #[must_use]
    pub fn data_socket(&self) -> PathBuf {
        self.path.join("data.sock")
    }

    /// The events.
    #[must_use]
    pub fn events_file(&self) -> PathBuf {
        self.path.join("events.jsonl")
    }

    /// Reads the identity, or makes one, durably: an identity that was shown to anybody is never
    /// lost by a crash.
    pub fn identity(&self) -> Result<Identity, DataDirError> {
        let path = self.path.join(IDENTITY);
        let bad = |source| DataDirError::Identity {
            path: path.clone(),
            source,
        };
        match fs::read_to_string(&path) {
            Ok(pem) => Identity::from_pem(&pem).map_err(bad),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let identity = Identity::generate().map_err(bad)?;
                self.write_durably(IDENTITY, identity.to_pem().as_bytes())?;
                Ok(identity)
            }
            Err(source) => Err(DataDirError::Io { path, source }),
        }
    }

    /// Writes a file of mode 0600 whole or not at all, durable on return.
    pub fn write_durably(&self, name: &str, content: &[u8]) -> Result<(), DataDirError> {
        write_durably(&self.path, name, content).map_err(|source| DataDirError::Io {
            path: self.path.join(name),
            source,
        })
    }
}

/// Writes a file of mode 0600 in a directory whole or not at all, durable on return.
pub(crate) fn write_durably(dir: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let new = dir.join(format!("{name}.new"));
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&new)?;
    io::Write::write_all(&mut file, content)?;
    file.sync_all()?;
    fs::rename(&new, dir.join(name))?;
    File::open(dir)?.sync_all()
}

/// The group id of [`GROUP`], if the machine has it.
#[must_use]
pub fn cairn_group() -> Option<u32> {
    let groups = fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != GROUP {
            return None;
        }
        fields.nth(1)?.parse().ok()
    })
}

/// Mode 0660 for root and, where it exists, the group; 0600 otherwise.
pub fn restrict_socket(path: &Path) -> Result<(), DataDirError> {
    let failed = |source| DataDirError::Io {
        path: path.to_owned(),
        source,
    };
    let mode = match cairn_group() {
        // An ordinary user cannot give the socket away, and then it is for that user alone.
        Some(gid) => match std::os::unix::fs::chown(path, None, Some(gid)) {
            Ok(()) => 0o660,
            Err(_) => 0o600,
        },
        None => 0o600,
    };
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_on_the_same_directory_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let held = DataDir::open(dir.path()).expect("the first");
        assert!(matches!(
            DataDir::open(dir.path()),
            Err(DataDirError::InUse { .. })
        ));
        drop(held);
        assert!(DataDir::open(dir.path()).is_ok());
    }

    #[test]
    fn the_identity_is_made_once_and_readable_by_its_owner_only() {
        let dir = tempfile::tempdir().expect("a directory");
        let data = DataDir::open(dir.path()).expect("open");
        let first = data.identity().expect("made").id();
        assert_eq!(data.identity().expect("read").id(), first);
        let mode = fs::metadata(dir.path().join("identity.pem"))
            .expect("a file")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(dir.path().join("identity.pem"), "rubbish").expect("write");
        assert!(matches!(
            data.identity(),
            Err(DataDirError::Identity { .. })
        ));
    }
}
