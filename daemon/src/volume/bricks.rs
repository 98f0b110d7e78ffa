//! Making, opening and marking brick directories.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use protocol::ids::{GenerationId, PoolId};
use protocol::volume::{Layout, VolumeSpec};
use replication::line::Line;
use replication::state::{DurableState, Places};
use storage::{
    Brick, BrickIdentity, CreateError, DirBrick, EngineChoice, Expected, Medium, OpenError,
    RecoveryReport, create_brick, open_brick, open_medium, read_superblock,
};

use crate::data_dir;

/// Why a directory cannot become a brick, or cannot be marked. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The directory cannot be made into a brick.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// The brick in it cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The brick could not be written.
    #[error(transparent)]
    Brick(#[from] storage::BrickError),
    /// A daemon keeps its own state there.
    #[error("{} and the data directory {} lie in each other", path.display(), data_dir.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// The daemon's.
        data_dir: PathBuf,
    },
    /// The directory cannot be reached.
    #[error("{}: {source}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the kernel says.
        source: std::io::Error,
    },
}

impl PrepareError {
    /// What an operator can do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Create(CreateError::NotEmpty { .. } | CreateError::RootFileSystem { .. }) => {
                "Add the word `force` to use it all the same, or name another directory."
            }
            Self::Create(CreateError::AlreadyBrick { .. }) => {
                "Name another directory; `cairn brick info DIR` tells what is there."
            }
            Self::DataDir { .. } => {
                "Name a directory beside it: what a daemon keeps there is not a volume's data."
            }
            Self::Create(CreateError::InsideBrick { .. }) => {
                "Name a directory outside of any brick."
            }
            Self::Create(CreateError::ReadOnly) => "Mount its file system for writing.",
            _ => "Look at the directory on that node, or name another one.",
        }
    }
}

/// Who the brick of replica `index` is.
#[must_use]
pub fn identity(spec: &VolumeSpec, index: usize, pool: PoolId) -> BrickIdentity {
    BrickIdentity {
        pool,
        brick: spec.replicas[index].brick,
        replica: u8::try_from(index).expect("REPLICAS_MAX"),
        spec: spec.clone(),
    }
}

/// Refuses the data directory `own_dir`, any other daemon's, and what lies in or around one.
/// `path` need not exist, its parent must.
fn check_apart(path: &Path, own_dir: &Path) -> Result<(), PrepareError> {
    let io = |source| PrepareError::Io {
        path: path.to_owned(),
        source,
    };
    let real = match (path.canonicalize(), path.parent(), path.file_name()) {
        (Ok(real), _, _) => real,
        (Err(_), Some(parent), Some(name)) => parent.canonicalize().map_err(io)?.join(name),
        (Err(source), _, _) => return Err(io(source)),
    };
    let own = own_dir.canonicalize().map_err(io)?;
    let keeps =
        |at: &&Path| at.join(data_dir::LOCK).exists() && at.join(data_dir::IDENTITY).exists();
    let found = if own.starts_with(&real) {
        Some(own)
    } else {
        real.ancestors().find(keeps).map(Path::to_owned)
    };
    match found {
        None => Ok(()),
        Some(data_dir) => Err(PrepareError::DataDir {
            path: path.to_owned(),
            data_dir,
        }),
    }
}

/// Makes the directory the brick of replica `index`; it is durable on return. A missing
/// directory is made where its parent exists. `own_dir` is the daemon's own.
pub fn prepare_brick(
    spec: &VolumeSpec,
    index: usize,
    pool: PoolId,
    path: &Path,
    own_dir: &Path,
    force: bool,
) -> Result<(), PrepareError> {
    check_apart(path, own_dir)?;
    let made = match std::fs::create_dir(path) {
        Ok(()) => true,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => false,
        Err(source) => {
            return Err(PrepareError::Io {
                path: path.to_owned(),
                source,
            });
        }
    };
    let result = create_brick(
        path,
        force,
        identity(spec, index, pool),
        first_state(spec, index),
    );
    if result.is_err() && made {
        // Only what was made here, and only if it is still empty.
        let _ = std::fs::remove_dir(path);
    }
    Ok(result?)
}

/// What the brick of replica `index` of a new volume knows of its role: every one begins with the
/// same generation, so that they know each other.
#[must_use]
pub fn first_state(spec: &VolumeSpec, index: usize) -> Bytes {
    let line = Line::new(GenerationId(spec.id.0));
    let state = if spec.layout == Layout::default() {
        DurableState::created(index, spec.replicas.len(), line)
    } else {
        DurableState {
            places: Places::of(spec),
            ..DurableState::added(line)
        }
    };
    super::links::to_json(&state)
}

/// Undoes [`prepare_brick`]. No error where nothing was prepared for this volume.
pub fn abort_brick(spec: &VolumeSpec, index: usize, path: &Path) -> Result<(), PrepareError> {
    let medium = match open_medium(path, EngineChoice::Threads) {
        Ok(medium) => medium,
        Err(OpenError::Missing { .. } | OpenError::NotABrick { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    match read_superblock(&medium) {
        Ok(found) if found.identity.brick == spec.replicas[index].brick => {
            std::fs::remove_dir_all(path.join(storage::layout::DIRECTORY)).map_err(|source| {
                PrepareError::Io {
                    path: path.to_owned(),
                    source,
                }
            })
        }
        // Of another volume, or nothing whole: not ours to remove.
        _ => Ok(()),
    }
}

/// Marks the brick of a deleted volume. Its data stays.
pub fn mark_brick_deleted(
    spec: &VolumeSpec,
    index: usize,
    pool: PoolId,
    path: &Path,
) -> Result<(), PrepareError> {
    let (mut brick, _) = match open(spec, index, pool, path) {
        Err(OpenError::Deleted { .. }) => return Ok(()),
        other => other?,
    };
    brick.set_deleted()?;
    Ok(brick.close()?)
}

/// Opens and recovers the brick of replica `index`.
pub(super) fn open(
    spec: &VolumeSpec,
    index: usize,
    pool: PoolId,
    path: &Path,
) -> Result<(DirBrick, RecoveryReport), OpenError> {
    let expected = Expected {
        pool,
        volume: spec.id,
        brick: spec.replicas[index].brick,
    };
    open_brick(path, Some(expected), EngineChoice::Best)
}

/// What the replica remembers of its role.
pub(super) fn state_of<M: Medium>(brick: &Brick<M>) -> Result<DurableState, String> {
    serde_json::from_slice(brick.state()).map_err(|error| error.to_string())
}
