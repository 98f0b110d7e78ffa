//! Raft messages over the nodes' request connections.

use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::error::{
    InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use protocol::ids::{NodeId, PoolId};
use protocol::node_rpc::{Member, NodeReply, NodeRequest, Refusal};
use serde::{Deserialize, Serialize};

use super::types::PoolRaft;
use crate::logging::RateLimit;
use crate::rpc::{CallError, NodeClients};

/// Pause before a member that cannot be reached is tried again, doubled each time up to the
/// longest. A member that starts again must hear of its leader before it stands for election
/// itself, and in time to know a dead one's successor.
const RETRY_PAUSE: Duration = Duration::from_millis(10);
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(80);

/// A request of the group.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RaftMessage {
    Append(AppendEntriesRequest<PoolRaft>),
    Vote(VoteRequest<NodeId>),
    Snapshot(InstallSnapshotRequest<PoolRaft>),
}

/// Its answer, of the same kind.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RaftAnswer {
    Append(Result<AppendEntriesResponse<NodeId>, RaftError<NodeId>>),
    Vote(Result<VoteResponse<NodeId>, RaftError<NodeId>>),
    Snapshot(Result<InstallSnapshotResponse<NodeId>, RaftError<NodeId, InstallSnapshotError>>),
}

/// A reply that is not the answer to the question.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AnswerError {
    #[error("the answer cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the other node refuses: {0}")]
    Refused(Refusal),
    #[error("the answer belongs to another request")]
    Mismatch,
}

/// Makes links to members.
pub(crate) struct Links {
    pub(crate) clients: Arc<NodeClients>,
    pub(crate) pool: PoolId,
    pub(crate) epoch: u64,
    /// Which start of this process it is.
    pub(crate) start: u64,
}

/// A link to one member.
pub(crate) struct Link {
    clients: Arc<NodeClients>,
    pool: PoolId,
    epoch: u64,
    start: u64,
    target: NodeId,
    member: Member,
    refusals: RateLimit,
}

impl RaftNetworkFactory<PoolRaft> for Links {
    type Network = Link;

    async fn new_client(&mut self, target: NodeId, node: &Member) -> Link {
        Link {
            clients: Arc::clone(&self.clients),
            pool: self.pool,
            epoch: self.epoch,
            start: self.start,
            target,
            member: node.clone(),
            refusals: RateLimit::new(1, Duration::from_secs(60)),
        }
    }
}

fn network<E: std::error::Error + 'static>(error: &E) -> NetworkError {
    NetworkError::new(error)
}

impl Link {
    async fn ask<E: std::error::Error>(
        &self,
        message: &RaftMessage,
        within: Duration,
    ) -> Result<RaftAnswer, RPCError<NodeId, Member, E>> {
        let message = serde_json::to_value(message).map_err(|e| network(&e))?;
        let request = NodeRequest::Raft {
            pool: self.pool,
            epoch: self.epoch,
            start: self.start,
            message,
        };
        let reply = self
            .clients
            .call(self.target, &self.member.address, &request, within)
            .await;
        match reply {
            Ok(NodeReply::Raft { message }) => {
                Ok(serde_json::from_value(message).map_err(|e| network(&AnswerError::Json(e)))?)
            }
            Ok(NodeReply::Error(refusal)) => {
                if self.refusals.pass(Instant::now()).is_some() {
                    tracing::warn!(node = self.member.name, %refusal, "a member refuses this node");
                }
                // It does not belong to this group (any more): asking again soon is no use.
                Err(Unreachable::new(&AnswerError::Refused(refusal)).into())
            }
            Ok(_) => Err(network(&AnswerError::Mismatch).into()),
            Err(error @ (CallError::Connect { .. } | CallError::Resolve { .. })) => {
                Err(Unreachable::new(&error).into())
            }
            Err(error) => Err(network(&error).into()),
        }
    }
}

impl RaftNetwork<PoolRaft> for Link {
    fn backoff(&self) -> Backoff {
        let double = |pause: &Duration| Some((*pause * 2).min(RETRY_PAUSE_MAX));
        Backoff::new(std::iter::successors(Some(RETRY_PAUSE), double))
    }

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<PoolRaft>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<NodeId>, RPCError<NodeId, Member, RaftError<NodeId>>> {
        match self
            .ask(&RaftMessage::Append(rpc), option.hard_ttl())
            .await?
        {
            RaftAnswer::Append(answer) => {
                answer.map_err(|e| RPCError::RemoteError(RemoteError::new(self.target, e)))
            }
            _ => Err(network(&AnswerError::Mismatch).into()),
        }
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<PoolRaft>,
        option: RPCOption,
    ) -> Result<
        InstallSnapshotResponse<NodeId>,
        RPCError<NodeId, Member, RaftError<NodeId, InstallSnapshotError>>,
    > {
        match self
            .ask(&RaftMessage::Snapshot(rpc), option.hard_ttl())
            .await?
        {
            RaftAnswer::Snapshot(answer) => {
                answer.map_err(|e| RPCError::RemoteError(RemoteError::new(self.target, e)))
            }
            _ => Err(network(&AnswerError::Mismatch).into()),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<NodeId>,
        option: RPCOption,
    ) -> Result<VoteResponse<NodeId>, RPCError<NodeId, Member, RaftError<NodeId>>> {
        match self.ask(&RaftMessage::Vote(rpc), option.hard_ttl()).await? {
            RaftAnswer::Vote(answer) => {
                answer.map_err(|e| RPCError::RemoteError(RemoteError::new(self.target, e)))
            }
            _ => Err(network(&AnswerError::Mismatch).into()),
        }
    }
}
