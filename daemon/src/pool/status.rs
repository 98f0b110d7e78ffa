//! What is true now: asked of all nodes at once, waiting a second at most, never asking Raft.

use std::collections::BTreeMap;
use std::sync::Arc;

use protocol::ids::NodeId;
use protocol::node_rpc::{NodeReply, NodeRequest};
use protocol::options::Options;
use protocol::report::{
    ConnectionState, DiskState, Health, NodeState, NodeStatus, PeerReport, PeerStatus, PoolStatus,
    ReplicaReport, ReplicaRole, ReplicaStatus, SplitBrainReport, VolumeStatus,
};
use protocol::volume::{Quorum, VolumeSpec, VolumeState};

use super::Node;
use crate::events::time_text;
use crate::raft::{MAJORITY_VOTERS_MIN, PoolState};
use crate::rpc::STATUS_WITHIN;
use crate::volume::split_side_text;

/// Every node's answer; `None`: it did not answer.
type Answers = BTreeMap<NodeId, Option<Vec<ReplicaReport>>>;

impl Node {
    async fn ask_all(self: &Arc<Self>, state: &PoolState) -> Answers {
        let mut answers: Answers = state.members.keys().map(|id| (*id, None)).collect();
        let mut asked = tokio::task::JoinSet::new();
        for (id, member) in &state.members {
            let (id, address) = (*id, member.address.clone());
            let node = Arc::clone(self);
            asked.spawn(async move {
                if id == node.id {
                    return (id, Some(node.volumes.reports(None).await));
                }
                let request = NodeRequest::Reports { volume: None };
                match node
                    .clients
                    .call(id, &address, &request, STATUS_WITHIN)
                    .await
                {
                    Ok(NodeReply::Reports { reports }) => (id, Some(reports)),
                    // It is there and says no: it does not count us as a member.
                    Ok(reply) => {
                        tracing::debug!(%id, ?reply, "a member did not report");
                        (id, None)
                    }
                    Err(error) => {
                        tracing::debug!(%id, %error, "a member does not answer");
                        (id, None)
                    }
                }
            });
        }
        while let Some(done) = asked.join_next().await {
            if let Ok((id, reports)) = done {
                answers.insert(id, reports);
            }
        }
        answers
    }

    async fn nodes(&self, state: &PoolState, answers: &Answers) -> PeerStatus {
        let leader = self.pool.group().leadership().await.leader;
        let mut nodes: Vec<NodeStatus> = state
            .members
            .iter()
            .map(|(id, member)| {
                let is_self = *id == self.id;
                let answered = matches!(answers.get(id), Some(Some(_)));
                let seen = if is_self {
                    Some(time::OffsetDateTime::now_utc())
                } else {
                    self.clients.last_seen(*id)
                };
                NodeStatus {
                    name: member.name.clone(),
                    address: member.address.clone(),
                    id: *id,
                    state: if is_self || answered {
                        NodeState::Connected
                    } else {
                        NodeState::Disconnected
                    },
                    is_self,
                    voter: member.voter,
                    leader: leader == Some(*id) && (is_self || answered),
                    last_seen: seen.map(time_text),
                }
            })
            .collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let connected = nodes
            .iter()
            .filter(|node| node.voter && node.state == NodeState::Connected)
            .count();
        PeerStatus {
            quorum: connected * 2 > state.voters(),
            nodes,
        }
    }

    /// `peer status`.
    pub(crate) async fn peer_status(self: &Arc<Self>) -> PeerStatus {
        let state = self.pool.state();
        let answers = self.ask_all(&state).await;
        self.nodes(&state, &answers).await
    }

    /// `volume status` of one volume or all, by name.
    pub(crate) async fn volumes_status(self: &Arc<Self>, only: Option<&str>) -> Vec<VolumeStatus> {
        let state = self.pool.state();
        let answers = self.ask_all(&state).await;
        volume_list(&state, &answers, only)
    }

    /// `status`.
    pub(crate) async fn pool_status(self: &Arc<Self>) -> PoolStatus {
        let state = self.pool.state();
        let answers = self.ask_all(&state).await;
        let peers = self.nodes(&state, &answers).await;
        let volumes = volume_list(&state, &answers, None);
        PoolStatus {
            health: overall(&peers, &volumes),
            quorum: peers.quorum,
            nodes: peers.nodes,
            volumes,
        }
    }
}

fn overall(peers: &PeerStatus, volumes: &[VolumeStatus]) -> Health {
    let started = || {
        volumes
            .iter()
            .filter(|volume| volume.state == VolumeState::Started)
            .map(|volume| volume.health)
    };
    if started().any(|health| health == Health::Unavailable) {
        return Health::Unavailable;
    }
    let away = peers
        .nodes
        .iter()
        .any(|node| node.state == NodeState::Disconnected);
    if away || !peers.quorum || started().any(|health| health == Health::Degraded) {
        return Health::Degraded;
    }
    Health::Healthy
}

fn volume_list(state: &PoolState, answers: &Answers, only: Option<&str>) -> Vec<VolumeStatus> {
    let mut volumes: Vec<VolumeStatus> = state
        .volumes
        .values()
        .filter(|spec| only.is_none_or(|only| only == spec.name))
        .map(|spec| volume_status(state, spec, answers))
        .collect();
    volumes.sort_by(|a, b| a.name.cmp(&b.name));
    volumes
}

/// One volume from its replicas' own words. A pure function of the answers.
fn volume_status(state: &PoolState, spec: &VolumeSpec, answers: &Answers) -> VolumeStatus {
    let reports: Vec<Option<&ReplicaReport>> = spec
        .members()
        .map(|(index, replica)| {
            let said = answers.get(&replica.node)?.as_ref()?;
            said.iter()
                .find(|report| report.volume == spec.id && report.replica == index)
        })
        .collect();
    let primary = reports
        .iter()
        .flatten()
        .filter(|report| report.role == ReplicaRole::Primary)
        .max_by_key(|report| report.term)
        .copied();
    // Connections are told from one end, so that every node tells the same.
    let witness = primary.or_else(|| reports.iter().flatten().next().copied());
    // What the volume can take is what the fullest brick can take.
    let smallest = reports
        .iter()
        .flatten()
        .filter(|report| report.disk == DiskState::UpToDate && report.free_bytes.is_some())
        .min_by_key(|report| report.free_bytes)
        .copied()
        .or(witness);
    let replicas: Vec<ReplicaStatus> = spec
        .members()
        .zip(&reports)
        .map(|((index, place), report)| {
            let name = state
                .members
                .get(&place.node)
                .map_or(place.node_name.as_str(), |member| member.name.as_str());
            replica_status(index, name, &place.path, *report, witness, primary)
        })
        .collect();
    let (health, reason) = judge(spec, primary, &replicas);
    let primary_name = primary
        .and_then(|report| spec.members().position(|(at, _)| at == report.replica))
        .and_then(|at| replicas.get(at))
        .map(|replica| replica.node.clone());
    let split_brain = reports
        .iter()
        .flatten()
        .find_map(|report| report.split_brain.clone());
    let mut notes = notes(state, spec, primary);
    notes.extend(replicas.iter().filter_map(|it| damage_note(&spec.name, it)));
    notes.extend(
        split_brain
            .as_ref()
            .map(|split| split_note(&spec.name, split)),
    );
    VolumeStatus {
        name: spec.name.clone(),
        id: spec.id,
        kind: spec.kind,
        state: spec.state,
        protocol: spec.protocol,
        quorum: spec.quorum,
        health,
        reason,
        notes,
        primary: primary_name,
        term: primary.map(|report| report.term),
        generation: primary.and_then(|report| report.generation),
        size_bytes: spec.size_bytes,
        used_bytes: smallest.and_then(|report| report.used_bytes),
        free_bytes: smallest.and_then(|report| report.free_bytes),
        replicas,
        clients: primary.map_or_else(Vec::new, |report| report.clients.clone()),
        split_brain,
    }
}

fn replica_status(
    index: usize,
    name: &str,
    path: &str,
    report: Option<&ReplicaReport>,
    witness: Option<&ReplicaReport>,
    primary: Option<&ReplicaReport>,
) -> ReplicaStatus {
    let seen_by = |from: Option<&ReplicaReport>| -> Option<PeerReport> {
        from?
            .peers
            .iter()
            .find(|peer| peer.replica == index)
            .cloned()
    };
    let is_witness = witness.is_some_and(|witness| witness.replica == index);
    let is_primary = primary.is_some_and(|primary| primary.replica == index);
    let by_primary = seen_by(primary);
    let connection = if is_witness {
        ConnectionState::Own
    } else {
        seen_by(witness).map_or(ConnectionState::Connecting, |peer| peer.connection)
    };
    let in_sync = match primary {
        Some(primary) if is_primary => Some(primary.in_sync),
        Some(_) => by_primary.as_ref().map(|peer| peer.in_sync),
        None => None,
    };
    let own = |value: Option<u64>| if is_primary { Some(0) } else { value };
    ReplicaStatus {
        node: name.to_owned(),
        brick: path.to_owned(),
        role: report.map(|report| report.role),
        role_reason: report.and_then(|report| report.role_reason.clone()),
        disk: report.map_or(DiskState::Unknown, |report| report.disk),
        reason: report
            .and_then(|report| report.reason.clone())
            .or_else(|| seen_by(witness)?.refusal),
        connection,
        in_sync,
        out_of_sync_bytes: own(by_primary.as_ref().and_then(|peer| peer.out_of_sync_bytes)),
        lag_bytes: own(by_primary.as_ref().and_then(|peer| peer.lag_bytes)),
        lag_seconds: if is_primary {
            Some(0.0)
        } else {
            by_primary.as_ref().and_then(|peer| peer.lag_seconds)
        },
        // The source alone knows how much there is; the target is asked where it cannot answer.
        resync: by_primary
            .as_ref()
            .and_then(|peer| peer.resync.clone())
            .or_else(|| report.and_then(|report| report.resync.clone())),
        link: by_primary.as_ref().and_then(|peer| peer.link),
        last_resync: by_primary.and_then(|peer| peer.last_resync),
        damaged_blocks: report.map(|report| report.damaged_blocks),
        repaired_blocks: report.map(|report| report.repaired_blocks),
        point: report.and_then(|report| report.point.clone()),
        kept: report.map_or_else(Vec::new, |report| report.kept.clone()),
    }
}

fn judge(
    spec: &VolumeSpec,
    primary: Option<&ReplicaReport>,
    replicas: &[ReplicaStatus],
) -> (Health, Option<String>) {
    let because = |health, reason: String| (health, Some(reason));
    match spec.state {
        VolumeState::Created => {
            return because(Health::Unavailable, "it was never started".to_owned());
        }
        VolumeState::Stopped => return because(Health::Unavailable, "it is stopped".to_owned()),
        VolumeState::Started => {}
    }
    let Some(primary) = primary else {
        let said: Vec<String> = replicas
            .iter()
            .filter_map(|replica| Some(format!("{}: {}", replica.node, replica.reason.as_ref()?)))
            .collect();
        let detail = if said.is_empty() {
            String::new()
        } else {
            format!(" ({})", said.join("; "))
        };
        return because(
            Health::Unavailable,
            format!("no node that answers is primary{detail}"),
        );
    };
    if !primary.serving {
        let reason = primary.reason.clone();
        return because(
            Health::Unavailable,
            reason.unwrap_or_else(|| "the primary does not serve".to_owned()),
        );
    }
    let lacking: Vec<String> = replicas.iter().filter_map(lack).collect();
    if lacking.is_empty() {
        return (Health::Healthy, None);
    }
    because(Health::Degraded, lacking.join("; "))
}

/// What a replica lacks, in words.
fn lack(replica: &ReplicaStatus) -> Option<String> {
    let node = &replica.node;
    let reason = replica
        .reason
        .as_ref()
        .map_or_else(String::new, |reason| format!(" ({reason})"));
    match (replica.disk, replica.connection) {
        (DiskState::Unknown, _) => Some(format!("{node} does not answer")),
        (_, ConnectionState::Connecting) => Some(format!("{node} is not connected{reason}")),
        (_, ConnectionState::Standalone) => Some(format!("{node} stands alone{reason}")),
        (DiskState::UpToDate, _) if replica.in_sync == Some(true) => None,
        (DiskState::UpToDate, _) => Some(format!("{node} is not in sync{reason}")),
        (disk, _) => Some(format!("{node} is {}{reason}", disk_text(disk))),
    }
}

fn disk_text(disk: DiskState) -> &'static str {
    match disk {
        DiskState::UpToDate => "up to date",
        DiskState::Consistent => "consistent, but may be old",
        DiskState::Outdated => "outdated",
        DiskState::Inconsistent => "inconsistent",
        DiskState::Failed => "failed",
        DiskState::Diskless => "without a brick",
        DiskState::Unknown => "unknown",
    }
}

/// What an operator should know of a split brain, and can do about it.
fn split_note(name: &str, split: &SplitBrainReport) -> String {
    let reason = split.reason.as_ref().map_or_else(String::new, |reason| {
        format!(" (policy {}: {reason})", split.policy)
    });
    let sides = split.sides.iter().map(split_side_text);
    let sides = sides.collect::<Vec<_>>().join(", ");
    let facts = match sides.is_empty() {
        true => String::new(),
        false => format!(": {sides}"),
    };
    format!(
        "split brain between {}{reason}{facts}: see what differs by `cairn volume split-brain {name} \
         list`, then keep one side by `cairn volume split-brain {name} resolve --keep NODE`; the \
         other one stays readable",
        split.nodes.join(" and ")
    )
}

/// What a brick's medium got wrong.
fn damage_note(name: &str, replica: &ReplicaStatus) -> Option<String> {
    let damaged = replica.damaged_blocks.filter(|count| *count > 0)?;
    Some(format!(
        "blocks of {}:{} were found damaged {damaged} times since its daemon's start, {} were put \
         right from another replica: look at that disk, and run `cairn volume verify {name} --repair`",
        replica.node,
        replica.brick,
        replica.repaired_blocks.unwrap_or(0)
    ))
}

fn notes(state: &PoolState, spec: &VolumeSpec, primary: Option<&ReplicaReport>) -> Vec<String> {
    let mut notes = Vec::new();
    let in_force = primary.and_then(|report| report.protocol_in_force);
    if let Some(in_force) = in_force.filter(|it| it.is_looser_than(spec.protocol)) {
        notes.push(format!(
            "protocol {} takes full effect when what {} confirmed before satisfies it",
            spec.protocol.name(),
            in_force.name()
        ));
    }
    let lost = primary.map_or(0, |report| report.lost_operations);
    if lost > 0 {
        notes.push(format!(
            "{lost} confirmed operations were lost when this primary took over"
        ));
    }
    if spec.quorum == Quorum::Off && spec.members().count() > 1 {
        notes.push(if state.voters() >= MAJORITY_VOTERS_MIN {
            format!(
                "quorum is off, although the pool has {} voters: `cairn volume set {} quorum \
                 majority` makes failover automatic",
                state.voters(),
                spec.name
            )
        } else {
            "quorum is off: a secondary never takes over by itself; a third voting node makes \
             failover automatic"
                .to_owned()
        });
    }
    for (_, replica) in spec.members().filter(|(place, _)| spec.is_leaving(*place)) {
        notes.push(format!(
            "{}:{} is on its way out: it is removed once another replica has the role and the data",
            replica.node_name, replica.path
        ));
    }
    let min = Options::new(&spec.options).count("min-in-sync");
    if min > spec.members().count() as u64 {
        notes.push(format!(
            "min-in-sync is {min}, more than there are replicas: writes wait"
        ));
    }
    notes
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
