//! The pool as the parts of a node use it: what is configured, who is a member, and changes that
//! reach the leader wherever it is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::ids::{NodeId, VolumeId};
use protocol::node_rpc::{Member, NodeReply, NodeRequest, Refusal};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};

use super::refusal::{refuse, refuse_loss};
use crate::raft::{
    GroupError, MEMBERS_MAX, MemberState, PoolCommand, PoolOutcome, PoolRefusal, PoolState,
    RaftGroup, ReplicaSetState, VOTERS_MAX,
};
use crate::rpc::{CALL_WITHIN, CallError, NodeClients};

/// Pause before the leader is looked for again.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// A command waits at least so long for the other nodes to know of the change that it made. They are
/// told by the leader's next heartbeat.
const KNOWN_WIDELY_WITHIN: Duration = Duration::from_millis(500);

/// A command's outcome and the log index that it has.
#[derive(Debug, Serialize, Deserialize)]
struct Proposed {
    outcome: PoolOutcome,
    index: u64,
}

/// Whether a question that has reached a leader may be put to the next one as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    May,
    MustNot,
}

/// Why a change of a replica set was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The pool answered: it is not to be. Look at the state and decide anew.
    #[error(transparent)]
    Refused(#[from] PoolRefusal),
    /// Nobody could decide; it may still happen.
    #[error("the pool could not decide: {0}")]
    Undecided(Refusal),
}

/// Cheap to clone.
#[derive(Clone)]
pub struct PoolClient {
    inner: Arc<Inner>,
}

struct Inner {
    me: NodeId,
    group: Arc<RaftGroup>,
    clients: Arc<NodeClients>,
    /// On the leader: a volume is made, or a node leaves, one at a time, so that no brick is
    /// placed on a node that is just leaving.
    deciding: Mutex<()>,
}

impl PoolClient {
    pub(crate) fn new(me: NodeId, group: Arc<RaftGroup>, clients: Arc<NodeClients>) -> Self {
        Self {
            inner: Arc::new(Inner {
                me,
                group,
                clients,
                deciding: Mutex::new(()),
            }),
        }
    }

    pub(crate) fn group(&self) -> &RaftGroup {
        &self.inner.group
    }

    /// The configuration as applied on this node. Never waits.
    #[must_use]
    pub fn state(&self) -> Arc<PoolState> {
        self.inner.group.state()
    }

    /// The configuration and its changes.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<PoolState>> {
        self.inner.group.subscribe()
    }

    /// A member's name and address, as applied on this node.
    #[must_use]
    pub fn member(&self, node: NodeId) -> Option<MemberState> {
        self.state().members.get(&node).cloned()
    }

    /// Whether `node` belongs to the pool: ask at each connection and request.
    #[must_use]
    pub fn is_member(&self, node: NodeId) -> bool {
        self.inner.group.believes(node)
    }

    /// The replica set of a volume with `quorum=majority`, as applied on this node.
    #[must_use]
    pub fn replica_set(&self, volume: VolumeId) -> Option<ReplicaSetState> {
        self.state().replica_sets.get(&volume).copied()
    }

    /// Changes who is primary and who is in sync, if nobody did since `expected_version`. When it
    /// returns `Ok` the change is durable at a majority. Takes at most as long as the links ask for
    /// ([`LinkTimes::role_within`](protocol::link::LinkTimes::role_within)): whoever asks for
    /// a role asks again soon, perhaps of another leader.
    pub async fn set_replica_set(
        &self,
        volume: VolumeId,
        expected_version: u64,
        term: u64,
        primary: u8,
        in_sync: u8,
    ) -> Result<u64, ChangeError> {
        let command = PoolCommand::SetReplicaSet {
            volume,
            expected_version,
            term,
            primary,
            in_sync,
        };
        let within = self.inner.group.times().role_within;
        let work = tokio::time::timeout(within, self.order(command));
        match work.await.unwrap_or_else(|_| Err(no_majority())) {
            Ok(proposed) => match proposed.outcome {
                PoolOutcome::Applied { version } => Ok(version),
                PoolOutcome::Refused(refusal) => Err(refusal.into()),
            },
            Err(refusal) => Err(ChangeError::Undecided(refusal)),
        }
    }

    /// Orders a command for an operator, and waits until it is applied here and, if they answer
    /// in time, at the other nodes: the next command may be typed there.
    pub(crate) async fn propose_widely(
        &self,
        command: PoolCommand,
    ) -> Result<PoolOutcome, Refusal> {
        let proposed = self.order(command).await?;
        self.wait_known_widely(proposed.index).await;
        Ok(proposed.outcome)
    }

    async fn order(&self, command: PoolCommand) -> Result<Proposed, Refusal> {
        let again = match &command {
            // Each happens once: a change of the replica set names the version that it follows, and a
            // volume is known by its id.
            PoolCommand::SetReplicaSet { .. } | PoolCommand::CreateVolume { .. } => Again::May,
            _ => Again::MustNot,
        };
        let command = serde_json::to_value(&command).map_err(|e| internal(&e))?;
        let request = NodeRequest::Propose { command };
        let reply = self.ask_leader(&request, again).await?;
        let NodeReply::Outcome { value } = reply else {
            return Err(internal(&"the leader's answer is of another kind"));
        };
        let proposed: Proposed = serde_json::from_value(value).map_err(|e| internal(&e))?;
        self.inner
            .group
            .wait_applied(proposed.index, CALL_WITHIN)
            .await;
        Ok(proposed)
    }

    /// Asks the leader for a change of members and waits until it is applied here and, if they
    /// answer in time, at the other nodes.
    pub(crate) async fn change_members(&self, request: &NodeRequest) -> Result<(), Refusal> {
        match self.ask_leader(request, Again::MustNot).await? {
            NodeReply::Done { index } => {
                self.inner.group.wait_applied(index, CALL_WITHIN).await;
                self.wait_known_widely(index).await;
                Ok(())
            }
            _ => Err(internal(&"the leader's answer is of another kind")),
        }
    }

    /// Waits until this node applied the pool's log up to `index`, not long.
    pub(crate) async fn wait_applied(&self, index: u64) {
        let group = &self.inner.group;
        group.wait_applied(index, self.known_widely_within()).await;
    }

    fn known_widely_within(&self) -> Duration {
        KNOWN_WIDELY_WITHIN.max(3 * self.inner.group.times().pool_heartbeat)
    }

    async fn wait_known_widely(&self, index: u64) {
        let mut asked = tokio::task::JoinSet::new();
        let within = self.known_widely_within();
        for (node, member) in self.others() {
            let clients = Arc::clone(&self.inner.clients);
            asked.spawn(async move {
                let request = NodeRequest::Applied { index };
                // A node that does not answer learns of it when it is back.
                let _ = clients.call(node, &member.address, &request, within).await;
            });
        }
        asked.join_all().await;
    }

    async fn ask_leader(&self, request: &NodeRequest, again: Again) -> Result<NodeReply, Refusal> {
        let within = match request {
            // Two steps of the group: it learns, then it votes.
            NodeRequest::Admit { .. } => 2 * CALL_WITHIN,
            _ => CALL_WITHIN,
        };
        let deadline = Instant::now() + within;
        let mut known = self.inner.group.leadership().await.leader;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(no_majority());
            }
            let Some(leader) = known else {
                known = self.inner.group.wait_for_leader(left).await;
                continue;
            };
            let asked = self.ask(leader, request, left);
            let replaced = async {
                match again {
                    Again::May => self.inner.group.wait_for_another(leader, left).await,
                    Again::MustNot => None,
                }
            };
            // A leader that is frozen or cut off takes the question and never answers.
            let answer = tokio::select! {
                answer = asked => answer,
                Some(other) = replaced => {
                    known = Some(other);
                    continue;
                }
            };
            match answer {
                Ok(NodeReply::NotLeader { leader }) => known = leader,
                Ok(NodeReply::Error(refusal)) => return Err(refusal),
                Ok(reply) => return Ok(reply),
                // It never reached the leader, so it may be asked again.
                Err(CallError::Connect { .. }) => known = None,
                Err(error) => {
                    tracing::info!(%leader, %error, "the pool's leader did not answer");
                    return Err(no_majority());
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
            if known.is_none() {
                known = self.inner.group.leadership().await.leader;
            }
        }
    }

    async fn ask(
        &self,
        leader: NodeId,
        request: &NodeRequest,
        within: Duration,
    ) -> Result<NodeReply, CallError> {
        if leader == self.inner.me {
            return Ok(self.lead(request.clone()).await);
        }
        let Some(member) = self.member(leader) else {
            return Ok(NodeReply::NotLeader { leader: None });
        };
        self.inner
            .clients
            .call_once(leader, &member.address, request, within)
            .await
    }

    /// Does what only the leader may do.
    pub(crate) async fn lead(&self, request: NodeRequest) -> NodeReply {
        match self.lead_inner(request).await {
            Ok(reply) => reply,
            Err(LeadError::Group(GroupError::NotLeader { leader })) => {
                NodeReply::NotLeader { leader }
            }
            Err(LeadError::Group(GroupError::NoMajority)) => NodeReply::Error(no_majority()),
            Err(LeadError::Group(error @ GroupError::ChangeInProgress)) => {
                NodeReply::Error(refuse(
                    "change_in_progress",
                    error,
                    "Try again in a few seconds; look at `cairn peer status`.",
                ))
            }
            Err(LeadError::Group(error)) => NodeReply::Error(refuse(
                "pool",
                error,
                "Look at `cairn peer status`, then try again.",
            )),
            Err(LeadError::Refused(refusal)) => NodeReply::Error(refusal),
        }
    }

    async fn lead_inner(&self, request: NodeRequest) -> Result<NodeReply, LeadError> {
        let group = &self.inner.group;
        let index = match request {
            NodeRequest::Propose { command } => {
                let command: PoolCommand =
                    serde_json::from_value(command).map_err(|e| internal(&e))?;
                let _one = match &command {
                    PoolCommand::CreateVolume { .. } => Some(self.inner.deciding.lock().await),
                    _ => None,
                };
                let (outcome, index) = group.propose(command).await?;
                let value =
                    serde_json::to_value(Proposed { outcome, index }).map_err(|e| internal(&e))?;
                return Ok(NodeReply::Outcome { value });
            }
            NodeRequest::Admit {
                node,
                member,
                voter,
            } => {
                self.check_admission(node, &member)?;
                group.admit(node, member, voter).await?
            }
            NodeRequest::SetVoter { node, voter } => {
                self.check_voter(node, voter)?;
                group.set_voter(node, voter).await?
            }
            NodeRequest::SetAddress { node, address } => group.set_address(node, &address).await?,
            NodeRequest::Expel { node, force } => {
                let _one = self.inner.deciding.lock().await;
                check_leaving(&self.state(), node, force)?;
                group.expel(node).await?
            }
            _ => return Err(internal(&"not a request for the leader").into()),
        };
        Ok(NodeReply::Done { index })
    }

    fn check_admission(&self, node: NodeId, member: &Member) -> Result<(), Refusal> {
        let state = self.state();
        if state.members.len() >= MEMBERS_MAX {
            return Err(refuse(
                "too_many_nodes",
                format!("the pool has {MEMBERS_MAX} nodes already, which is the most"),
                "Detach a node first.",
            ));
        }
        match state.member_named(&member.name) {
            Some((other, _)) if other != node => Err(name_taken(&member.name)),
            _ => Ok(()),
        }
    }

    fn check_voter(&self, node: NodeId, voter: bool) -> Result<(), Refusal> {
        let state = self.state();
        let votes = state.members.get(&node).is_some_and(|m| m.voter);
        if voter && !votes && state.voters() >= VOTERS_MAX {
            return Err(refuse(
                "too_many_voters",
                format!("{VOTERS_MAX} nodes vote already, which is the most"),
                "Take the vote from another node first: `cairn peer voter NODE off`.",
            ));
        }
        if !voter && votes && state.voters() == 1 {
            return Err(refuse(
                "last_voter",
                "it is the only node that votes",
                "Let another node vote first: `cairn peer voter NODE on`.",
            ));
        }
        Ok(())
    }

    /// Members that are not this node.
    #[must_use]
    pub fn others(&self) -> BTreeMap<NodeId, MemberState> {
        let mut members = self.state().members.clone();
        members.remove(&self.inner.me);
        members
    }
}

/// A node that holds bricks does not leave, unless forced; one that holds the only brick of a
/// volume does not leave at all.
pub(crate) fn check_leaving(state: &PoolState, node: NodeId, force: bool) -> Result<(), Refusal> {
    let mut bricks = Vec::new();
    let mut only = Vec::new();
    for spec in state.volumes.values() {
        let elsewhere = spec
            .members()
            .any(|(_, replica)| replica.node != node && state.members.contains_key(&replica.node));
        for (_, replica) in spec.members().filter(|(_, replica)| replica.node == node) {
            let brick = format!("{} of volume `{}`", replica.path, spec.name);
            if !elsewhere {
                only.push(brick.clone());
            }
            bricks.push(brick);
        }
    }
    if !only.is_empty() {
        return Err(refuse(
            "last_copy",
            format!("it holds the only brick in the pool: {}", only.join(", ")),
            "Delete these volumes first.",
        ));
    }
    if bricks.is_empty() || force {
        return Ok(());
    }
    Err(refuse_loss(
        "has_bricks",
        format!(
            "it holds bricks, which would be lost to their volumes: {}",
            bricks.join(", ")
        ),
        "Delete these volumes first, or say --force if the node is lost for good.",
    ))
}

pub(crate) fn name_taken(name: &str) -> Refusal {
    refuse(
        "name_taken",
        format!("the pool has a node named `{name}` already"),
        "Start that node with another name: `cairn daemon --name NAME`.",
    )
}

fn no_majority() -> Refusal {
    refuse(
        "no_majority",
        "no majority of the pool's voters can be reached, so nothing can be changed",
        "Start the nodes that are down (`cairn peer status`), or give up lost ones with \
         `cairn peer detach NODE --force`.",
    )
}

fn internal(error: &impl std::fmt::Display) -> Refusal {
    refuse(
        "internal",
        format!("the pool's nodes do not understand each other: {error}"),
        "Run the same version of cairn on all nodes.",
    )
}

enum LeadError {
    Group(GroupError),
    Refused(Refusal),
}

impl From<GroupError> for LeadError {
    fn from(error: GroupError) -> Self {
        Self::Group(error)
    }
}

impl From<Refusal> for LeadError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}
