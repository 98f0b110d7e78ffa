//! Bricks in real directories: where one may be made, and opening by path.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bytes::Bytes;

use crate::brick::{Brick, Expected, Options, RecoveryReport};
use crate::error::{CreateError, IoFault, OpenError};
use crate::layout::{DIRECTORY, SUPERBLOCK};
use crate::medium::{DirMedium, EngineChoice, Medium};
use crate::superblock::BrickIdentity;

/// A brick in a real directory.
pub type DirBrick = Brick<DirMedium>;

fn name(path: &Path) -> String {
    path.display().to_string()
}

/// Makes a brick in the existing directory `path`. Refuses a directory that is not empty or lies on
/// the root file system, unless `force`; and always one that is a brick, or lies in one. Waits;
/// durable on return.
pub fn create_brick(
    path: &Path,
    force: bool,
    identity: BrickIdentity,
    state: Bytes,
) -> Result<(), CreateError> {
    let real = check_place(path, force)?;
    let inner = real.join(DIRECTORY);
    let made = match std::fs::create_dir(&inner) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            return Err(CreateError::ReadOnly);
        }
        Err(error) => return Err(IoFault::new("make the brick's directory", &error).into()),
    };
    let create = || -> Result<(), CreateError> {
        let fault = |error| IoFault::new("open the brick's directory", &error);
        let medium = DirMedium::open(&inner, EngineChoice::Threads).map_err(fault)?;
        let options = Options::for_room(medium.room().map_err(fault)?);
        Brick::create(&medium, identity, state, &options)?;
        let parent = std::fs::File::open(&real).map_err(fault)?;
        Ok(parent.sync_all().map_err(fault)?)
    };
    let created = create();
    if created.is_err() && made {
        // What an attempt left must not make the next one find a directory that is not empty.
        let _ = std::fs::remove_dir_all(&inner);
    }
    created
}

/// Opens the brick in the directory `path` with sizes that suit its file system. Waits.
pub fn open_brick(
    path: &Path,
    expected: Option<Expected>,
    engine: EngineChoice,
) -> Result<(DirBrick, RecoveryReport), OpenError> {
    let medium = open_medium(path, engine)?;
    let room = medium
        .room()
        .map_err(|error| IoFault::new("ask for the file system's room", &error))?;
    Brick::open(medium, expected, Options::for_room(room))
}

/// Opens the brick in the directory `path` for reading, without changing a byte of it. No daemon
/// may have it open.
pub fn open_brick_read_only(path: &Path) -> Result<(DirBrick, RecoveryReport), OpenError> {
    Brick::open_read_only(open_medium(path, EngineChoice::Threads)?)
}

/// The medium of the brick in the directory `path`.
pub fn open_medium(path: &Path, engine: EngineChoice) -> Result<DirMedium, OpenError> {
    let here = std::fs::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => OpenError::Missing { path: name(path) },
        _ => IoFault::new("look at the brick's directory", &error).into(),
    })?;
    if !here.is_dir() {
        return Err(OpenError::NotADirectory { path: name(path) });
    }
    DirMedium::open(&path.join(DIRECTORY), engine).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => OpenError::NotABrick { what: DIRECTORY },
        _ => IoFault::new("open the brick's directory", &error).into(),
    })
}

/// The brick that a real path (without links) lies in, or is.
#[must_use]
pub fn brick_around(real: &Path) -> Option<std::path::PathBuf> {
    real.ancestors()
        .find(|at| at.join(DIRECTORY).join(SUPERBLOCK).exists())
        .map(Path::to_owned)
}

/// Whether a brick may be made there; the directory's real path.
fn check_place(path: &Path, force: bool) -> Result<std::path::PathBuf, CreateError> {
    let fault = |error| IoFault::new("look at the directory", &error);
    let here = std::fs::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => CreateError::Missing { path: name(path) },
        _ => fault(error).into(),
    })?;
    if !here.is_dir() {
        return Err(CreateError::NotADirectory { path: name(path) });
    }
    let real = path.canonicalize().map_err(fault)?;
    if let Some(brick) = real.parent().and_then(brick_around) {
        return Err(CreateError::InsideBrick {
            path: name(path),
            brick: name(&brick),
        });
    }
    if real.components().any(|part| part.as_os_str() == DIRECTORY) {
        return Err(CreateError::InsideBrick {
            path: name(path),
            brick: name(&real),
        });
    }
    // A brick there is refused by what it is, which says more than "not empty".
    let is_brick = real.join(DIRECTORY).join(SUPERBLOCK).exists();
    if force || is_brick {
        return Ok(real);
    }
    let root = std::fs::metadata("/").map_err(fault)?;
    if root.dev() == here.dev() {
        return Err(CreateError::RootFileSystem { path: name(path) });
    }
    for entry in std::fs::read_dir(&real).map_err(fault)? {
        let first = entry.map_err(fault)?.file_name();
        // A fresh ext4 has one; an interrupted making left the other.
        if first != "lost+found" && first != DIRECTORY {
            return Err(CreateError::NotEmpty {
                path: name(path),
                first: first.to_string_lossy().into_owned(),
            });
        }
    }
    Ok(real)
}
