//! Volumes: changed by version, commands sent to the node that they concern.

use std::sync::Arc;
use std::time::Duration;

use protocol::ids::NodeId;
use protocol::node_rpc::{NodeReply, NodeRequest, Refusal, VolumeCommand};
use protocol::options::nearest;
use protocol::volume::{VolumeSpec, VolumeState};

use super::Node;
use super::bricks::told_of;
use super::refusal::{refuse, refuse_loss};
use super::serve::{no_volume, not_started};
use crate::raft::{PoolCommand, PoolOutcome, PoolState};
use crate::rpc::CALL_WITHIN;

/// A switch-over hands a primary over; it may have to wait for a resync's last blocks.
const PROMOTE_WITHIN: Duration = Duration::from_secs(60);
/// Naming what differs walks the tree.
const DIFFERENCES_WITHIN: Duration = Duration::from_secs(120);
/// Comparing replicas reads all of them. A dead node ends the connection long before.
const VERIFY_WITHIN: Duration = Duration::from_secs(7 * 24 * 3600);

/// The volume of this name, or a refusal that names the nearest.
pub(crate) fn volume_of(state: &PoolState, name: &str) -> Result<VolumeSpec, Refusal> {
    if let Some(spec) = state.volume_named(name) {
        return Ok(spec.clone());
    }
    let names = state.volumes.values().map(|spec| spec.name.as_str());
    let mut refusal = no_volume(name);
    if let Some(near) = nearest(name, names) {
        refusal.hint = format!("Did you mean `{near}`?");
    }
    Err(refusal)
}

impl Node {
    pub(super) async fn brick_request(
        self: &Arc<Self>,
        spec: &VolumeSpec,
        index: usize,
        request: NodeRequest,
        within: Duration,
    ) -> Result<NodeReply, Refusal> {
        let node = spec.replicas[index].node;
        self.ask_node(node, &request, within).await
    }

    /// Asks a node, this one included, at most once.
    pub(super) async fn ask_node(
        self: &Arc<Self>,
        node: NodeId,
        request: &NodeRequest,
        within: Duration,
    ) -> Result<NodeReply, Refusal> {
        if node == self.id {
            return match request.clone() {
                NodeRequest::PrepareBrick {
                    spec,
                    replica,
                    force,
                } => self.prepare_brick(spec, replica, force).await,
                NodeRequest::AbortBrick { spec, replica } => self.abort_brick(spec, replica).await,
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
                NodeRequest::Unexport { volume, nbd } => {
                    self.unexport(volume, nbd.as_deref()).await
                }
                _ => Err(refuse(
                    "internal",
                    "that is not asked of oneself",
                    "Report this.",
                )),
            };
        }
        let Some(member) = self.pool.member(node) else {
            return Err(refuse(
                "not_member",
                format!("node {} is not a member of the pool any more", node.short()),
                "See `cairn peer status`.",
            ));
        };
        match self
            .clients
            .call_once(node, &member.address, request, within)
            .await
        {
            Ok(NodeReply::Error(refusal)) => Err(Refusal {
                message: format!("{}: {}", member.name, refusal.message),
                ..refusal
            }),
            Ok(reply) => Ok(reply),
            Err(error) => Err(refuse(
                "unreachable",
                format!("{} cannot be asked: {error}", member.name),
                "Start the daemon there, or look at `cairn peer status`.",
            )),
        }
    }

    pub(super) async fn update(&self, spec: VolumeSpec) -> Result<(), Refusal> {
        let expected_version = spec.version;
        let command = PoolCommand::UpdateVolume {
            spec,
            expected_version,
        };
        self.settle(command).await
    }

    pub(super) async fn settle(&self, command: PoolCommand) -> Result<(), Refusal> {
        match self.pool.propose_widely(command).await? {
            PoolOutcome::Applied { .. } => Ok(()),
            PoolOutcome::Refused(reason) => Err(refuse("conflict", reason, "Try again.")),
        }
    }

    /// Starts a volume; where it is started already, replicas that failed are tried again.
    pub(crate) async fn start_volume(self: &Arc<Self>, name: &str) -> Result<String, Refusal> {
        let mut spec = volume_of(&self.pool.state(), name)?;
        let was_started = spec.state == VolumeState::Started;
        if !was_started {
            spec.state = VolumeState::Started;
            self.update(spec.clone()).await?;
        }
        let request = NodeRequest::RetryVolume { volume: spec.id };
        let mut failed = Vec::new();
        let mut retried: Vec<&str> = Vec::new();
        for (_, replica) in spec.members() {
            match self.ask_node(replica.node, &request, CALL_WITHIN).await {
                Ok(NodeReply::Outcome { value }) if value["retried"] == true => {
                    retried.push(&replica.node_name);
                }
                Ok(_) => {}
                Err(refusal) => failed.push(refusal),
            }
        }
        if failed.len() == spec.members().count() {
            let mut refusal = failed.swap_remove(0);
            refusal.message = format!(
                "volume `{name}` is started, but none of its replicas runs: {}",
                refusal.message
            );
            return Err(refusal);
        }
        let mut text = if was_started {
            format!("volume `{name}` is started already")
        } else {
            format!("volume `{name}` is started")
        };
        if !retried.is_empty() {
            text = format!(
                "{text}; its failed replica was opened again on {}",
                retried.join(", ")
            );
        }
        for refusal in failed {
            text = format!("{text}; not running: {}", refusal.message);
        }
        Ok(text)
    }

    /// Stops a volume.
    pub(crate) async fn stop_volume(self: &Arc<Self>, name: &str) -> Result<String, Refusal> {
        let mut spec = volume_of(&self.pool.state(), name)?;
        match spec.state {
            VolumeState::Stopped => Ok(format!("volume `{name}` is stopped already")),
            VolumeState::Created => Err(not_started(name)),
            VolumeState::Started => {
                spec.state = VolumeState::Stopped;
                let version = spec.version + 1;
                self.update(spec.clone()).await?;
                let late = self.settle_everywhere(&spec, Some(version)).await;
                Ok(format!("volume `{name}` is stopped{late}"))
            }
        }
    }

    /// Waits until the nodes that answer have done what was decided, and names the others.
    pub(super) async fn settle_everywhere(
        self: &Arc<Self>,
        spec: &VolumeSpec,
        version: Option<u64>,
    ) -> String {
        let mut asked = tokio::task::JoinSet::new();
        for (_, replica) in spec.members() {
            let node = Arc::clone(self);
            let (to, name) = (replica.node, replica.node_name.clone());
            let request = NodeRequest::SettleVolume {
                volume: spec.id,
                version,
            };
            asked.spawn(async move {
                let done = node.ask_node(to, &request, CALL_WITHIN).await;
                done.is_err().then_some(name)
            });
        }
        let mut late: Vec<String> = Vec::new();
        while let Some(done) = asked.join_next().await {
            late.extend(done.ok().flatten());
        }
        late.sort();
        if late.is_empty() {
            return String::new();
        }
        format!("; {} will follow when it can be reached", late.join(", "))
    }

    /// Deletes a volume; its bricks keep their data, marked as deleted.
    pub(crate) async fn delete_volume(self: &Arc<Self>, name: &str) -> Result<String, Refusal> {
        let spec = volume_of(&self.pool.state(), name)?;
        if spec.state == VolumeState::Started {
            return Err(refuse(
                "started",
                format!("volume `{name}` is started"),
                &format!("Stop it first: `cairn volume stop {name}`."),
            ));
        }
        self.settle(PoolCommand::DeleteVolume {
            volume: spec.id,
            expected_version: spec.version,
        })
        .await?;
        let late = self.settle_everywhere(&spec, None).await;
        let bricks: Vec<String> = spec
            .members()
            .map(|(_, replica)| format!("{}:{}", replica.node_name, replica.path))
            .collect();
        Ok(format!(
            "volume `{name}` is deleted; its data stays on {} until `cairn brick wipe`{late}",
            bricks.join(", ")
        ))
    }

    /// Sends a command to the node of one replica, or of the primary.
    pub(crate) async fn command_volume(
        self: &Arc<Self>,
        name: &str,
        command: VolumeCommand,
    ) -> Result<serde_json::Value, Refusal> {
        let spec = volume_of(&self.pool.state(), name)?;
        if spec.state != VolumeState::Started {
            return Err(not_started(name));
        }
        // A planned promotion is the primary's act, too: it gives the role away.
        let node = self.primary_node(&spec).await?;
        self.command_node(&spec, node, command).await
    }

    /// Sends a command to the node of one replica.
    pub(crate) async fn command_replica(
        self: &Arc<Self>,
        name: &str,
        replica: usize,
        command: VolumeCommand,
    ) -> Result<serde_json::Value, Refusal> {
        let spec = volume_of(&self.pool.state(), name)?;
        if spec.state != VolumeState::Started {
            return Err(not_started(name));
        }
        self.command_node(&spec, spec.replicas[replica].node, command)
            .await
    }

    /// Ending a split brain loses what the other sides alone hold: that is said first.
    pub(crate) async fn may_resolve(
        self: &Arc<Self>,
        name: &str,
        keep: &str,
        force: bool,
    ) -> Result<(), Refusal> {
        let status = self.volumes_status(Some(name)).await;
        let split = status
            .first()
            .and_then(|status| status.split_brain.as_ref());
        let Some(split) = split else {
            return Err(refuse(
                "no_split_brain",
                format!("volume `{name}` has no split brain"),
                &format!("Look at `cairn volume status {name}`."),
            ));
        };
        if force {
            return Ok(());
        }
        let others: Vec<&str> = split
            .nodes
            .iter()
            .map(String::as_str)
            .filter(|node| *node != keep)
            .collect();
        Err(refuse_loss(
            "split_brain",
            format!(
                "what {} took since the separation, {} at the latest, would be given up; it is kept, \
                 for reading only, until it is dropped",
                others.join(", "),
                split.since
            ),
            "Look at both sides first (`cairn brick export` of a stopped node's brick), then say --force.",
        ))
    }

    /// Dropping a given-up side loses it for good: that is said first.
    pub(crate) async fn may_drop_kept(
        self: &Arc<Self>,
        name: &str,
        replica: usize,
        force: bool,
    ) -> Result<(), Refusal> {
        let spec = volume_of(&self.pool.state(), name)?;
        let status = self.volumes_status(Some(name)).await;
        let replica = status
            .first()
            .and_then(|status| told_of(&spec, status, replica));
        let Some(replica) = replica.filter(|replica| !replica.kept.is_empty()) else {
            return Err(refuse(
                "nothing_kept",
                format!("no side of volume `{name}` that was given up is kept there"),
                &format!("Look at `cairn volume split-brain {name} list`."),
            ));
        };
        if force {
            return Ok(());
        }
        let sides: Vec<&str> = replica.kept.iter().map(|kept| &kept.as_of[..]).collect();
        Err(refuse_loss(
            "given_up",
            format!(
                "what {} held alone, as of {}, would be lost for good",
                replica.node,
                sides.join(" and ")
            ),
            "Copy it out first (`cairn brick export --point` while its daemon is stopped), then say \
             --force.",
        ))
    }

    /// Lets resyncs begin that have no room to keep what they change: of one node's replica, or of
    /// every replica whose node answers.
    pub(crate) async fn resync_without_points(
        self: &Arc<Self>,
        name: &str,
        only: Option<&str>,
    ) -> Result<(), Refusal> {
        let spec = volume_of(&self.pool.state(), name)?;
        let only = only
            .map(|node| self.replica_named(name, node))
            .transpose()?;
        let members = spec.members().map(|(index, _)| index);
        for replica in members.filter(|index| only.is_none_or(|only| only == *index)) {
            let command = VolumeCommand::ResyncWithoutPoint {};
            let allowed = self.command_replica(name, replica, command).await;
            if only.is_some() {
                allowed?;
            }
        }
        Ok(())
    }

    async fn command_node(
        self: &Arc<Self>,
        spec: &VolumeSpec,
        node: NodeId,
        command: VolumeCommand,
    ) -> Result<serde_json::Value, Refusal> {
        let within = match &command {
            VolumeCommand::Promote { .. } | VolumeCommand::KeepSide {} => PROMOTE_WITHIN,
            VolumeCommand::Verify { .. } => VERIFY_WITHIN,
            VolumeCommand::Differences { .. }
            | VolumeCommand::KeptDifferences { .. }
            | VolumeCommand::Names { .. } => DIFFERENCES_WITHIN,
            _ => CALL_WITHIN,
        };
        let request = NodeRequest::VolumeCommand {
            volume: spec.id,
            command,
        };
        match self.ask_node(node, &request, within).await? {
            NodeReply::Outcome { value } => Ok(value),
            _ => Err(refuse(
                "internal",
                "the node's answer is of another kind",
                "Run the same version of cairn on all nodes.",
            )),
        }
    }

    async fn primary_node(self: &Arc<Self>, spec: &VolumeSpec) -> Result<NodeId, Refusal> {
        let status = self.volumes_status(Some(&spec.name)).await;
        status
            .first()
            .and_then(|status| {
                let mut told = status.replicas.iter().zip(spec.members());
                told.find(|(replica, _)| Some(&replica.node) == status.primary.as_ref())
            })
            .map(|(_, (_, replica))| replica.node)
            .ok_or_else(|| {
                refuse(
                    "no_primary",
                    format!("volume `{}` has no primary that answers", spec.name),
                    &format!("Look at `cairn why {}`.", spec.name),
                )
            })
    }

    /// Index of the replica on the node of this name.
    pub(crate) fn replica_named(&self, volume: &str, node: &str) -> Result<usize, Refusal> {
        let state = self.pool.state();
        let spec = volume_of(&state, volume)?;
        let by_member = state.member_named(node).map(|(id, _)| id);
        spec.members()
            .find(|(_, replica)| Some(replica.node) == by_member || replica.node_name == node)
            .map(|(place, _)| place)
            .ok_or_else(|| {
                let holders: Vec<_> = spec
                    .members()
                    .map(|(_, replica)| replica.node_name.as_str())
                    .collect();
                refuse(
                    "no_replica",
                    format!("{node} holds no replica of volume `{volume}`"),
                    &format!("Its replicas are on {}.", holders.join(", ")),
                )
            })
    }
}
