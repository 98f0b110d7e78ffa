//! The pool's Raft group, behind one adapter: nothing outside this folder names the Raft library.
//!
//! The group orders configuration and roles, a few entries a minute. Losing its majority stops
//! changes of these and nothing else. Members and their addresses are the group's own
//! membership, so that there is one source for who belongs to the pool.

mod clients;
mod network;
mod pace;
mod store;
mod types;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use openraft::error::{ChangeMembershipError, ClientWriteError, Fatal, RaftError};
use openraft::{ChangeMembers, Config, Raft, RaftMetrics, SnapshotPolicy, StoredMembership};
use protocol::ids::{NodeId, PoolId};
use protocol::link::{LinkProfile, LinkTimes};
use protocol::node_rpc::Member;
use tokio::sync::{Mutex, RwLock, watch};

pub use clients::{Access, ClientRecord};
pub use store::StoreError;
pub use types::{
    MAJORITY_VOTERS_MIN, MEMBERS_MAX, MemberState, PoolCommand, PoolOutcome, PoolRefusal,
    PoolState, ReplicaSetState, VOLUMES_MAX, VOTERS_MAX,
};

use crate::rpc::NodeClients;
use network::{Links, RaftAnswer, RaftMessage};
use pace::Pace;
use store::{Applied, Store};
use types::PoolRaft;

/// Entries between snapshots.
const SNAPSHOT_ENTRIES: u64 = 500;
/// A chunk of a snapshot: JSON writes each byte as a number, and a frame's meta has 2 MiB.
const SNAPSHOT_CHUNK_BYTES: u64 = 256 << 10;
/// Entries in one append message, for the same limit.
const APPEND_ENTRIES_MAX: u64 = 64;
/// How long a change may wait for the majority before it is reported as not agreed.
const AGREE_WITHIN: Duration = Duration::from_secs(4);

/// Why the group did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The file refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// This node does not lead.
    #[error("another node leads the pool")]
    NotLeader {
        /// Who leads, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// No majority answered in time. The change may still happen.
    #[error("no majority of the pool's voters answered in time")]
    NoMajority,
    /// A change of membership is under way.
    #[error("another change of the pool's members is under way")]
    ChangeInProgress,
    /// The library stopped.
    #[error("the pool's Raft group has stopped on this node: {reason}")]
    Stopped {
        /// What it says.
        reason: String,
    },
    /// A message of another pool or epoch.
    #[error("a message of pool {theirs} epoch {their_epoch} came to pool {ours} epoch {our_epoch}")]
    OtherPool {
        /// The sender's.
        theirs: PoolId,
        /// The sender's.
        their_epoch: u64,
        /// This node's.
        ours: PoolId,
        /// This node's.
        our_epoch: u64,
    },
    /// Not a message of the group.
    #[error("a message of the pool's group cannot be read: {0}")]
    Message(serde_json::Error),
}

/// What the asking node knows of leadership, without asking anyone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leadership {
    /// Who leads.
    pub leader: Option<NodeId>,
    /// Raft's own term.
    pub raft_term: u64,
}

/// This node's part in its pool's group.
pub struct RaftGroup {
    me: NodeId,
    store: Store,
    clients: Arc<NodeClients>,
    running: RwLock<Option<Raft<PoolRaft>>>,
    /// One change of membership at a time on the leader: the checks before it stay true.
    membership: Mutex<()>,
    pace: Pace,
    /// Which start of this process it is: never 0.
    this_start: u64,
}

/// How long each vote about the successor of a dead leader may take before the next. It is kept
/// on stable storage, by a majority. The last one begins when the dead leader's lease has ended
/// everywhere: who has not heard of the death itself votes for nobody before that.
fn replaced_within(profile: LinkProfile) -> [Duration; 4] {
    let (_, lease) = profile.times().pool_election;
    let soon = match profile {
        LinkProfile::Lan => [40, 80].map(Duration::from_millis),
        LinkProfile::Wan => [profile.times().pool_heartbeat; 2],
    };
    // The lease's end, and a little.
    let rest = lease.saturating_sub(soon[0] + soon[1]) + soon[0] / 2;
    [soon[0], soon[1], rest, profile.times().pool_heartbeat * 2]
}

fn config(times: &LinkTimes) -> Config {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let (election_min, election_max) = times.pool_election;
    Config {
        cluster_name: "cairn".to_owned(),
        heartbeat_interval: ms(times.pool_heartbeat),
        election_timeout_min: ms(election_min),
        election_timeout_max: ms(election_max),
        install_snapshot_timeout: 5_000,
        max_payload_entries: APPEND_ENTRIES_MAX,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_ENTRIES),
        snapshot_max_chunk_size: SNAPSHOT_CHUNK_BYTES,
        max_in_snapshot_log_to_keep: 100,
        ..Config::default()
    }
}

fn stopped(reason: &impl std::fmt::Display) -> GroupError {
    GroupError::Stopped {
        reason: reason.to_string(),
    }
}

impl RaftGroup {
    /// Opens the file at `path` and takes part in the group that it names. `own` is this node's
    /// entry when a new pool of one is founded, which happens when the file names none.
    pub async fn open(
        path: &Path,
        me: NodeId,
        own: &Member,
        clients: Arc<NodeClients>,
    ) -> Result<Self, GroupError> {
        let store = Store::open(path)?;
        let group = Self {
            me,
            pace: Pace::of(&store.applied().state),
            store,
            clients,
            running: RwLock::new(None),
            membership: Mutex::new(()),
            this_start: rand::random_range(1..=u64::MAX),
        };
        if group.store.applied().state.pool.is_none() {
            group.found(own).await?;
        } else {
            *group.running.write().await = Some(group.start().await?);
        }
        Ok(group)
    }

    async fn start(&self) -> Result<Raft<PoolRaft>, GroupError> {
        let (log, machine) = self.store.handles();
        let state = self.store.applied().state;
        let links = Links {
            clients: Arc::clone(&self.clients),
            pool: state.pool,
            epoch: state.epoch,
            start: self.this_start,
        };
        let config = Arc::new(config(&self.times()).validate().map_err(|e| stopped(&e))?);
        let raft = Raft::new(self.me, config, links, log, machine)
            .await
            .map_err(|e| stopped(&e))?;
        tokio::spawn(watch(self.me, raft.metrics()));
        Ok(raft)
    }

    /// Stops the running instance, replaces what is stored, starts again.
    async fn replace(&self, applied: Applied, keep_vote: bool) -> Result<(), GroupError> {
        let mut running = self.running.write().await;
        if let Some(old) = running.take()
            && let Err(error) = old.shutdown().await
        {
            tracing::warn!(%error, "the pool's Raft group did not stop cleanly");
        }
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || store.reset(applied, keep_vote))
            .await
            .map_err(|_| StoreError::Abandoned)??;
        *running = Some(self.start().await?);
        Ok(())
    }

    /// Makes this node a new pool of one.
    pub async fn found(&self, own: &Member) -> Result<(), GroupError> {
        let pool = PoolId(rand::random());
        self.replace(store::fresh(pool), false).await?;
        let running = self.running.read().await;
        let raft = running.as_ref().ok_or_else(|| stopped(&"not started"))?;
        raft.initialize(BTreeMap::from([(self.me, own.clone())]))
            .await
            .map_err(|e| stopped(&e))?;
        raft.wait(Some(AGREE_WITHIN))
            .metrics(
                |m| {
                    m.current_leader == Some(self.me) && m.last_applied.is_some_and(|l| l.index > 0)
                },
                "a pool of one leads itself",
            )
            .await
            .map_err(|_| GroupError::NoMajority)?;
        Ok(())
    }

    /// Leaves the present pool behind and waits to be fed by the leader of another.
    pub async fn enter(
        &self,
        pool: PoolId,
        epoch: u64,
        members: BTreeMap<NodeId, Member>,
    ) -> Result<(), GroupError> {
        let mut applied = store::fresh(pool);
        applied.state.epoch = epoch;
        applied.state.entering = true;
        applied.state.bootstrap = members;
        self.replace(applied, false).await
    }

    /// Goes on alone under a new epoch: for a pool that lost its majority for good. The others
    /// must be made to adopt the epoch, then admitted.
    pub async fn new_epoch(&self) -> Result<u64, GroupError> {
        let mut applied = self.store.applied();
        let own = applied
            .membership
            .nodes()
            .find(|(id, _)| **id == self.me)
            .map(|(_, member)| member.clone())
            .unwrap_or_default();
        let membership = openraft::Membership::new(
            vec![BTreeSet::from([self.me])],
            BTreeMap::from([(self.me, own.clone())]),
        );
        applied.membership = StoredMembership::new(applied.last, membership);
        applied.state.epoch += 1;
        applied.state.members = BTreeMap::from([(
            self.me,
            MemberState {
                name: own.name,
                address: own.address,
                voter: true,
            },
        )]);
        let epoch = applied.state.epoch;
        self.replace(applied, true).await?;
        let running = self.running.read().await;
        let raft = running.as_ref().ok_or_else(|| stopped(&"not started"))?;
        raft.wait(Some(AGREE_WITHIN))
            .metrics(
                |m| m.current_leader == Some(self.me),
                "the epoch has a leader",
            )
            .await
            .map_err(|_| GroupError::NoMajority)?;
        Ok(epoch)
    }

    /// The configuration as applied here.
    #[must_use]
    pub fn state(&self) -> Arc<PoolState> {
        Arc::clone(&self.store.subscribe().borrow())
    }

    /// The configuration and its changes.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<PoolState>> {
        self.store.subscribe()
    }

    /// Whether requests of this node are to be believed: it is a member, or, while this node
    /// enters a pool, was named as one by the node that admits it.
    #[must_use]
    pub fn believes(&self, node: NodeId) -> bool {
        let state = self.state();
        if state.entering {
            return state.bootstrap.contains_key(&node);
        }
        state.members.contains_key(&node)
    }

    /// Members as `Enter` and `AdoptEpoch` carry them.
    #[must_use]
    pub fn members(&self) -> BTreeMap<NodeId, Member> {
        self.state()
            .members
            .iter()
            .map(|(id, state)| {
                let member = Member {
                    name: state.name.clone(),
                    address: state.address.clone(),
                };
                (*id, member)
            })
            .collect()
    }

    async fn raft(&self) -> Result<Raft<PoolRaft>, GroupError> {
        let running = self.running.read().await;
        running.clone().ok_or_else(|| stopped(&"not started"))
    }

    /// What is known of the leader, without waiting.
    pub async fn leadership(&self) -> Leadership {
        let Ok(raft) = self.raft().await else {
            return Leadership::default();
        };
        let metrics = raft.metrics().borrow().clone();
        Leadership {
            leader: metrics.current_leader,
            raft_term: metrics.current_term,
        }
    }

    /// Stands for election at once, where `gone` is still taken for the leader: whoever calls it
    /// knows that it is dead, and need not wait for its lease. Those that voted for it do not
    /// vote for another before that lease has ended, unless they stand as well: then the greatest
    /// candidate of the term wins at once. As they hear of the death one after the other, a first
    /// vote may fail. Returns when another leads, or when that is left to the usual election.
    pub async fn replace_leader(&self, gone: NodeId) -> Result<(), GroupError> {
        let raft = self.raft().await?;
        if raft.metrics().borrow().current_leader != Some(gone) {
            return Ok(());
        }
        for patience in replaced_within(self.pace.profile()) {
            raft.trigger().elect().await.map_err(|e| stopped(&e))?;
            if self.wait_for_another(gone, patience).await.is_some() {
                break;
            }
        }
        Ok(())
    }

    /// Waits, bounded, until a leader is known.
    pub async fn wait_for_leader(&self, within: Duration) -> Option<NodeId> {
        let raft = self.raft().await.ok()?;
        let metrics = raft
            .wait(Some(within))
            .metrics(|m| m.current_leader.is_some(), "a leader")
            .await
            .ok()?;
        metrics.current_leader
    }

    /// Waits, bounded, until another than `leader` is known to lead.
    pub async fn wait_for_another(&self, leader: NodeId, within: Duration) -> Option<NodeId> {
        let raft = self.raft().await.ok()?;
        let is_another =
            |m: &RaftMetrics<NodeId, Member>| m.current_leader.is_some_and(|known| known != leader);
        let waited = raft.wait(Some(within));
        let metrics = waited.metrics(is_another, "another leader").await.ok()?;
        metrics.current_leader
    }

    /// Waits, bounded, until the log is applied here up to `index`.
    pub async fn wait_applied(&self, index: u64, within: Duration) -> bool {
        let Ok(raft) = self.raft().await else {
            return false;
        };
        raft.wait(Some(within))
            .applied_index_at_least(Some(index), "applied")
            .await
            .is_ok()
    }

    /// Orders a command. On the leader only. When it returns the command is durable at a majority
    /// and applied here; the index of its entry comes with the outcome.
    pub async fn propose(&self, command: PoolCommand) -> Result<(PoolOutcome, u64), GroupError> {
        let raft = self.raft().await?;
        match tokio::time::timeout(AGREE_WITHIN, raft.client_write(command)).await {
            Err(_) => Err(GroupError::NoMajority),
            Ok(Ok(response)) => Ok((response.data, response.log_id.index)),
            Ok(Err(error)) => Err(write_error(error)),
        }
    }

    async fn change(&self, change: ChangeMembers<NodeId, Member>) -> Result<u64, GroupError> {
        let raft = self.raft().await?;
        let work = raft.change_membership(change, false);
        match tokio::time::timeout(AGREE_WITHIN, work).await {
            Err(_) => Err(GroupError::NoMajority),
            Ok(Ok(response)) => Ok(response.log_id.index),
            Ok(Err(error)) => Err(write_error(error)),
        }
    }

    /// Takes a node in: first it learns, then, where wanted and fewer than five vote, it votes.
    /// On the leader only.
    pub async fn admit(
        &self,
        node: NodeId,
        member: Member,
        voter: bool,
    ) -> Result<u64, GroupError> {
        let _one = self.membership.lock().await;
        self.fit_pace_to(node, &member.address).await?;
        let raft = self.raft().await?;
        // Blocking: it has the log, so making it a voter does not stop the group.
        let learned = tokio::time::timeout(AGREE_WITHIN, raft.add_learner(node, member, true));
        let index = match learned.await {
            Err(_) => return Err(GroupError::NoMajority),
            Ok(Ok(response)) => response.log_id.index,
            Ok(Err(error)) => return Err(write_error(error)),
        };
        if voter && self.state().voters() < VOTERS_MAX {
            return self
                .change(ChangeMembers::AddVoterIds(BTreeSet::from([node])))
                .await;
        }
        Ok(index)
    }

    /// Lets a member vote or not. On the leader only.
    pub async fn set_voter(&self, node: NodeId, voter: bool) -> Result<u64, GroupError> {
        let _one = self.membership.lock().await;
        let ids = BTreeSet::from([node]);
        if voter {
            return self.change(ChangeMembers::AddVoterIds(ids)).await;
        }
        let raft = self.raft().await?;
        // Retained: it stays a member that learns.
        let work = raft.change_membership(ChangeMembers::RemoveVoters(ids), true);
        match tokio::time::timeout(AGREE_WITHIN, work).await {
            Err(_) => Err(GroupError::NoMajority),
            Ok(Ok(response)) => Ok(response.log_id.index),
            Ok(Err(error)) => Err(write_error(error)),
        }
    }

    /// Changes a member's address. On the leader only.
    pub async fn set_address(&self, node: NodeId, address: &str) -> Result<u64, GroupError> {
        let _one = self.membership.lock().await;
        let Some(state) = self.state().members.get(&node).cloned() else {
            return Ok(0);
        };
        let member = Member {
            name: state.name,
            address: address.to_owned(),
        };
        self.change(ChangeMembers::SetNodes(BTreeMap::from([(node, member)])))
            .await
    }

    /// Takes a member out. On the leader only, which may be the member itself.
    pub async fn expel(&self, node: NodeId) -> Result<u64, GroupError> {
        let _one = self.membership.lock().await;
        let ids = BTreeSet::from([node]);
        let voter = self
            .state()
            .members
            .get(&node)
            .is_some_and(|member| member.voter);
        if voter {
            // Not retained as a learner: it leaves in the same step.
            return self.change(ChangeMembers::RemoveVoters(ids)).await;
        }
        self.change(ChangeMembers::RemoveNodes(ids)).await
    }

    /// A message of another member.
    pub async fn handle(
        &self,
        pool: PoolId,
        epoch: u64,
        message: serde_json::Value,
    ) -> Result<serde_json::Value, GroupError> {
        let state = self.state();
        if (state.pool, state.epoch) != (pool, epoch) {
            return Err(GroupError::OtherPool {
                theirs: pool,
                their_epoch: epoch,
                ours: state.pool,
                our_epoch: state.epoch,
            });
        }
        let message = serde_json::from_value(message).map_err(GroupError::Message)?;
        let raft = self.raft().await?;
        let answer = match message {
            RaftMessage::Append(rpc) => RaftAnswer::Append(raft.append_entries(rpc).await),
            RaftMessage::Vote(rpc) => RaftAnswer::Vote(raft.vote(rpc).await),
            RaftMessage::Snapshot(rpc) => RaftAnswer::Snapshot(raft.install_snapshot(rpc).await),
        };
        serde_json::to_value(answer).map_err(GroupError::Message)
    }

    /// Stops taking part.
    pub async fn shutdown(&self) {
        if let Some(raft) = self.running.write().await.take()
            && let Err(error) = raft.shutdown().await
        {
            tracing::warn!(%error, "the pool's Raft group did not stop cleanly");
        }
    }
}

/// Says in the log who leads, and when the group cannot go on here.
async fn watch(me: NodeId, mut metrics: watch::Receiver<RaftMetrics<NodeId, Member>>) {
    let mut leader = None;
    loop {
        {
            let now = metrics.borrow_and_update();
            match &now.running_state {
                Err(Fatal::Stopped) => return,
                Err(error) => {
                    tracing::error!(%error, "this node takes no part in the pool any more");
                    return;
                }
                Ok(()) => {}
            }
            if now.current_leader != leader {
                leader = now.current_leader;
                match leader {
                    Some(id) if id == me => tracing::info!("this node leads the pool"),
                    Some(id) => tracing::info!(leader = id.short(), "another node leads the pool"),
                    None => tracing::info!("the pool has no leader that this node knows"),
                }
            }
        }
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

fn write_error(error: RaftError<NodeId, ClientWriteError<NodeId, Member>>) -> GroupError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => GroupError::NotLeader {
            leader: forward.leader_id,
        },
        RaftError::APIError(ClientWriteError::ChangeMembershipError(
            ChangeMembershipError::InProgress(_),
        )) => GroupError::ChangeInProgress,
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => stopped(&error),
        RaftError::Fatal(error) => stopped(&error),
    }
}
