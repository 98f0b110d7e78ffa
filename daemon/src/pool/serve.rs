//! Requests of other nodes and of mounts.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use protocol::ids::{NodeId, VolumeId};
use protocol::node_rpc::code;
use protocol::node_rpc::{
    self, LocatedNode, NodeReply, NodeRequest, Refusal, RpcCodecError, VolumeCommand, kind,
};
use protocol::report::ReplicaRole;
use protocol::volume::{VolumeSpec, VolumeState};
use tokio::io::{AsyncRead, AsyncWrite};

use super::Node;
use super::clients::client_refusal;
use super::manager::replica_on;
use super::refusal::{refuse, refuse_loss};
use crate::raft::{GroupError, PoolRefusal};
use crate::rpc::{FrameStream, ReadError};
use crate::volume::{self, CommandError, PrepareError};

/// A connection that says nothing for so long is closed; the other end opens a new one.
const IDLE_MAX: Duration = Duration::from_secs(120);
/// How long a node waits for a configuration that the asker has seen already.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(2);

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller {
    /// Proven by TLS.
    Key(NodeId),
    /// Through this machine's data socket, whose mode says who may.
    Local,
}

/// Why a connection with requests ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Codec(#[from] RpcCodecError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl Node {
    /// Answers requests until the connection ends.
    pub(crate) async fn serve_requests<S: AsyncRead + AsyncWrite + Unpin>(
        self: &Arc<Self>,
        stream: S,
        caller: Caller,
    ) -> Result<(), ServeError> {
        let ended = self.serve_until_end(stream, caller).await;
        if let Caller::Key(node) = caller {
            self.connection_ended(node);
        }
        ended
    }

    async fn serve_until_end<S: AsyncRead + AsyncWrite + Unpin>(
        self: &Arc<Self>,
        stream: S,
        caller: Caller,
    ) -> Result<(), ServeError> {
        let mut stream = FrameStream::new(stream);
        loop {
            let Ok(frame) = tokio::time::timeout(IDLE_MAX, stream.read()).await else {
                return Ok(());
            };
            let Some(frame) = frame? else {
                return Ok(());
            };
            let request: NodeRequest = node_rpc::decode(kind::REQUEST, &frame)?;
            let reply = self.answer(request, caller).await;
            let frame = node_rpc::encode(kind::REPLY, &reply)?;
            stream.write(&frame).await?;
        }
    }

    /// Checks who asks, for each request anew: membership may have ended since the handshake.
    async fn answer(self: &Arc<Self>, request: NodeRequest, caller: Caller) -> NodeReply {
        match caller {
            Caller::Key(node) if !self.pool.is_member(node) => {
                return self.answer_client(request, node).await;
            }
            Caller::Local if !matches!(request, NodeRequest::Locate { .. }) => {
                return NodeReply::Error(not_member());
            }
            Caller::Key(node) => self.clients.heard_of(node),
            Caller::Local => {}
        }
        let done = match request {
            NodeRequest::Locate { volume } => self.locate(&volume, caller).await,
            NodeRequest::Ping { start } => self.check_twin(caller, start).map(|()| {
                let state = self.pool.state();
                NodeReply::Pong {
                    pool: state.pool,
                    epoch: state.epoch,
                }
            }),
            NodeRequest::Applied { index } => {
                self.pool.wait_applied(index).await;
                Ok(NodeReply::Done { index })
            }
            NodeRequest::Raft {
                pool,
                epoch,
                start,
                message,
            } => match self.check_twin(caller, start) {
                Ok(()) => self.raft_message(pool, epoch, message).await,
                Err(refusal) => Err(refusal),
            },
            NodeRequest::Expelled { pool, epoch } => self.expelled(pool, epoch).await,
            NodeRequest::AdoptEpoch {
                pool,
                epoch,
                members,
            } => self.adopt_epoch(pool, epoch, members).await,
            NodeRequest::PrepareBrick {
                spec,
                replica,
                force,
            } => self.prepare_brick(spec, replica, force).await,
            NodeRequest::AbortBrick { spec, replica } => self.abort_brick(spec, replica).await,
            NodeRequest::Reports { volume } => Ok(NodeReply::Reports {
                reports: self.volumes.reports(volume).await,
            }),
            NodeRequest::RetryVolume { volume } => self.retry_volume(volume).await,
            NodeRequest::SettleVolume { volume, version } => {
                self.settle_volume(volume, version).await
            }
            NodeRequest::VolumeCommand { volume, command } => {
                self.volume_command(volume, command).await
            }
            NodeRequest::Export {
                volume,
                nbd,
                insecure,
            } => self.export(volume, &nbd, insecure).await,
            NodeRequest::Unexport { volume, nbd } => self.unexport(volume, nbd.as_deref()).await,
            NodeRequest::JoinClient { .. } => Err(client_refusal(&PoolRefusal::ClientIsNode)),
            NodeRequest::Propose { .. }
            | NodeRequest::Admit { .. }
            | NodeRequest::SetVoter { .. }
            | NodeRequest::SetAddress { .. }
            | NodeRequest::Expel { .. } => Ok(self.pool.lead(request).await),
        };
        done.unwrap_or_else(NodeReply::Error)
    }

    /// What others than members may ask.
    async fn answer_client(self: &Arc<Self>, request: NodeRequest, key: NodeId) -> NodeReply {
        let known = self.pool.state().client_of(key).is_some();
        let done = match request {
            NodeRequest::JoinClient { secret } => self.join_client(key, &secret).await,
            NodeRequest::Locate { volume } if known => match self.may_mount(key, &volume) {
                Ok(()) => self.locate(&volume, Caller::Key(key)).await,
                Err(refusal) => Err(refusal),
            },
            _ => {
                tracing::debug!(%key, "a request of a key that has no right to it was refused");
                Err(not_member())
            }
        };
        done.unwrap_or_else(NodeReply::Error)
    }

    async fn raft_message(
        &self,
        pool: protocol::ids::PoolId,
        epoch: u64,
        message: serde_json::Value,
    ) -> Result<NodeReply, Refusal> {
        match self.pool.group().handle(pool, epoch, message).await {
            Ok(message) => Ok(NodeReply::Raft { message }),
            Err(error @ GroupError::OtherPool { .. }) => Err(refuse(
                "other_pool",
                error,
                "End the old membership there: `cairn peer leave --force`, then probe it again.",
            )),
            Err(error) => Err(refuse("pool", error, "Look at that node's log.")),
        }
    }

    /// Where a volume's replicas are, and which of them is primary as far as this node knows.
    pub(crate) async fn locate(&self, name: &str, caller: Caller) -> Result<NodeReply, Refusal> {
        let state = self.pool.state();
        if let Some((volume, rest)) = name.split_once('@') {
            let spec = state
                .volume_named(volume)
                .ok_or_else(|| no_volume(volume))?;
            return self.locate_kept(spec, rest, caller);
        }
        let spec = state.volume_named(name).ok_or_else(|| no_volume(name))?;
        if spec.state != VolumeState::Started {
            return Err(not_started(name));
        }
        let primary = match state.replica_sets.get(&spec.id) {
            Some(set) => Some(usize::from(set.primary)),
            None => self.known_primary(spec).await,
        };
        // A path on this machine is of use to this machine only.
        let near = caller == Caller::Local || caller == Caller::Key(self.id);
        let nodes = spec
            .members()
            .filter_map(|(index, replica)| {
                let member = state.members.get(&replica.node)?;
                let socket = near && replica.node == self.id;
                Some(LocatedNode {
                    id: replica.node,
                    name: member.name.clone(),
                    address: member.address.clone(),
                    unix_socket: socket
                        .then(|| self.data_dir.join("data.sock").display().to_string()),
                    primary: primary == Some(index),
                })
            })
            .collect();
        Ok(NodeReply::Located {
            volume_id: spec.id,
            kind: spec.kind,
            nodes,
        })
    }

    /// Where a given-up side is mounted from; `rest` is NODE@POINT. Whether it is kept there, that
    /// node says.
    fn locate_kept(
        &self,
        spec: &VolumeSpec,
        rest: &str,
        caller: Caller,
    ) -> Result<NodeReply, Refusal> {
        if spec.state != VolumeState::Started {
            return Err(not_started(&spec.name));
        }
        let named = rest.split_once('@').and_then(|(node, point)| {
            let mut members = spec.members();
            let found = members.find(|(_, replica)| replica.node_name == node);
            found.zip(point.parse::<u64>().ok())
        });
        let state = self.pool.state();
        let member = named.and_then(|((_, replica), _)| state.members.get(&replica.node));
        let Some((((_, replica), point), member)) = named.zip(member) else {
            return Err(refuse(
                code::NO_SUCH_VOLUME,
                format!(
                    "`{rest}` names no side of volume `{}` that was given up",
                    spec.name
                ),
                "See `cairn volume split-brain NAME list`; it is mounted by \
                 `cairn volume split-brain NAME mount NODE DIR`.",
            ));
        };
        let near = caller == Caller::Local || caller == Caller::Key(self.id);
        let socket = near && replica.node == self.id;
        Ok(NodeReply::Located {
            volume_id: volume::kept_id(spec.id, replica.brick, point),
            kind: spec.kind,
            nodes: vec![LocatedNode {
                id: replica.node,
                name: member.name.clone(),
                address: member.address.clone(),
                unix_socket: socket.then(|| self.data_dir.join("data.sock").display().to_string()),
                primary: true,
            }],
        })
    }

    async fn known_primary(&self, spec: &VolumeSpec) -> Option<usize> {
        let handle = self.volumes.handle(spec.id)?;
        let report = handle.status().await;
        (report.role == ReplicaRole::Primary).then_some(report.replica)
    }

    pub(crate) async fn prepare_brick(
        &self,
        spec: VolumeSpec,
        replica: usize,
        force: bool,
    ) -> Result<NodeReply, Refusal> {
        let path = self.brick_path(&spec, replica)?;
        let told = path.clone();
        let pool = self.pool.state().pool;
        let own_dir = self.data_dir.clone();
        let prepared = tokio::task::spawn_blocking(move || {
            volume::prepare_brick(&spec, replica, pool, &path, &own_dir, force)
        })
        .await;
        match prepared {
            Ok(Ok(())) => Ok(NodeReply::Done { index: 0 }),
            Ok(Err(error)) => Err(prepare_refusal(&error)),
            Err(_) => Err(refuse(
                "brick",
                format!("the work on {} was abandoned", told.display()),
                "Look at the daemon's log.",
            )),
        }
    }

    pub(crate) async fn abort_brick(
        &self,
        spec: VolumeSpec,
        replica: usize,
    ) -> Result<NodeReply, Refusal> {
        // What became a volume after all is not undone.
        let brick = spec.replicas.get(replica).map(|place| place.brick);
        let state = self.pool.state();
        let became = state
            .volumes
            .get(&spec.id)
            .is_some_and(|known| known.members().any(|(_, place)| Some(place.brick) == brick));
        if became {
            return Err(refuse(
                "volume_exists",
                "the volume exists: its brick is not undone",
                "Delete the volume instead.",
            ));
        }
        let path = self.brick_path(&spec, replica)?;
        let aborted =
            tokio::task::spawn_blocking(move || volume::abort_brick(&spec, replica, &path)).await;
        match aborted {
            Ok(Err(error)) => Err(prepare_refusal(&error)),
            _ => Ok(NodeReply::Done { index: 0 }),
        }
    }

    fn brick_path(&self, spec: &VolumeSpec, replica: usize) -> Result<PathBuf, Refusal> {
        match spec.replicas.get(replica) {
            Some(place) if place.node == self.id => Ok(PathBuf::from(&place.path)),
            _ => Err(refuse(
                "brick",
                "that brick is not on this node",
                "Run the same version of cairn on all nodes.",
            )),
        }
    }

    pub(crate) async fn retry_volume(&self, volume: VolumeId) -> Result<NodeReply, Refusal> {
        let mut state = self.pool.subscribe();
        let started = state.wait_for(|state| {
            state
                .volumes
                .get(&volume)
                .is_some_and(|spec| spec.state == VolumeState::Started)
        });
        // The configuration may be on its way here; if it does not come, the answer says so.
        let arrived = tokio::time::timeout(CATCH_UP_WITHIN, started)
            .await
            .is_ok_and(|seen| seen.is_ok());
        if !arrived {
            return Err(refuse(
                "behind",
                "this node does not have the pool's newest configuration yet",
                "Look at `cairn peer status`.",
            ));
        }
        match self.volumes.retry(volume).await {
            Ok(retried) => Ok(NodeReply::Outcome {
                value: serde_json::json!({ "retried": retried }),
            }),
            Err(reason) => Err(refuse(
                "brick_failed",
                reason,
                "Repair the directory, then run `cairn volume start` again.",
            )),
        }
    }

    pub(crate) async fn settle_volume(
        &self,
        volume: VolumeId,
        version: Option<u64>,
    ) -> Result<NodeReply, Refusal> {
        let mut state = self.pool.subscribe();
        let arrived = state.wait_for(|state| match (state.volumes.get(&volume), version) {
            (None, _) => true,
            (Some(spec), Some(version)) => spec.version >= version,
            (Some(_), None) => false,
        });
        if tokio::time::timeout(CATCH_UP_WITHIN, arrived)
            .await
            .is_err()
        {
            return Err(refuse(
                "behind",
                "this node does not have the pool's newest configuration yet",
                "Look at `cairn peer status`.",
            ));
        }
        self.volumes.settle().await;
        Ok(NodeReply::Done { index: 0 })
    }

    pub(crate) async fn volume_command(
        &self,
        volume: VolumeId,
        command: VolumeCommand,
    ) -> Result<NodeReply, Refusal> {
        let state = self.pool.state();
        let held = state
            .volumes
            .get(&volume)
            .and_then(|spec| replica_on(spec, self.id));
        let Some(handle) = self.volumes.handle(volume).filter(|_| held.is_some()) else {
            return Err(refuse(
                "no_replica",
                format!("{} runs no replica of the volume", self.name),
                "Look at `cairn volume status`.",
            ));
        };
        match handle.command(command).await {
            Ok(value) => Ok(NodeReply::Outcome { value }),
            Err(CommandError::Refused {
                code,
                reason,
                hint,
                data_loss: true,
            }) => Err(refuse_loss(code, reason, &hint)),
            Err(CommandError::Refused {
                code, reason, hint, ..
            }) => Err(refuse(code, reason, &hint)),
        }
    }
}

fn prepare_refusal(error: &PrepareError) -> Refusal {
    refuse("brick", error, error.hint())
}

fn not_member() -> Refusal {
    refuse(
        code::FORBIDDEN,
        "this key belongs to no node and no client of the pool",
        "A machine that mounts is invited by `cairn client add NAME` on a node; a node is admitted \
         by `cairn peer probe`.",
    )
}

pub(crate) fn no_volume(name: &str) -> Refusal {
    refuse(
        code::NO_SUCH_VOLUME,
        format!("there is no volume `{name}`"),
        "See `cairn volume list`.",
    )
}

pub(crate) fn not_started(name: &str) -> Refusal {
    refuse(
        code::STOPPED,
        format!("volume `{name}` is not started"),
        &format!("Start it: `cairn volume start {name}`."),
    )
}
