//! What a replica says about itself, and the shape of `volume status`, `peer status` and
//! `status`, as JSON. Keys are fixed: tools rely on them.

use serde::{Deserialize, Serialize};

use crate::ids::{GenerationId, NodeId, SessionId, VolumeId};
use crate::volume::{Protocol, Quorum, VolumeKind, VolumeState};

/// What a replica does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaRole {
    /// Orders and serves.
    Primary,
    /// Follows.
    Secondary,
}

/// What a replica's data is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskState {
    /// Equal to the primary's.
    UpToDate,
    /// A usable picture; whether it is the newest is not known yet.
    Consistent,
    /// A usable picture of an older time.
    Outdated,
    /// Half-way through a resync.
    Inconsistent,
    /// The brick cannot be used: see the reason.
    Failed,
    /// No brick.
    Diskless,
    /// Nobody who was asked knows.
    Unknown,
}

/// A connection between two replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConnectionState {
    /// Established.
    Connected,
    /// Being tried.
    Connecting,
    /// Given up until an operator decides: split brain.
    Standalone,
    /// The replica itself.
    #[serde(rename = "self")]
    Own,
}

/// Partial or full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResyncKind {
    /// What differs or may differ.
    Partial,
    /// Everything, skipping what is equal.
    Full,
}

/// Which end of a resync.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResyncRole {
    /// Sends.
    Source,
    /// Receives.
    Target,
}

/// A resync under way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResyncReport {
    /// Partial or full.
    pub kind: ResyncKind,
    /// The rule that chose direction and kind.
    pub rule: String,
    /// Which end the replica is.
    pub role: ResyncRole,
    /// Bytes that need no more work.
    pub done_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Bytes that crossed the wire for it, headers included.
    pub sent_bytes: u64,
    /// Recent rate; unknown at the beginning.
    pub rate_bytes_per_second: Option<u64>,
    /// Seconds left at the recent rate; unknown at the beginning.
    pub eta_seconds: Option<u64>,
    /// RFC 3339, UTC.
    pub started_at: String,
}

/// The last resync that ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LastResyncReport {
    /// Partial or full.
    pub kind: ResyncKind,
    /// The rule that chose direction and kind.
    pub rule: String,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Bytes that crossed the wire for it, headers included.
    pub sent_bytes: u64,
    /// How long it took.
    pub duration_seconds: f64,
    /// RFC 3339, UTC.
    pub finished_at: String,
}

/// A mounted client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientReport {
    /// Its session.
    pub id: SessionId,
    /// Its machine's name.
    pub name: String,
    /// Where it connects from; null for a Unix socket.
    pub address: Option<String>,
    /// RFC 3339, UTC, by the client's clock.
    pub mounted_at: String,
    /// Whether it cannot write.
    pub read_only: bool,
}

/// An open split brain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitBrainReport {
    /// RFC 3339, UTC.
    pub since: String,
    /// Names of the nodes whose histories diverged.
    pub nodes: Vec<String>,
    /// What the volume's option says about it.
    pub policy: String,
    /// Why the policy keeps nobody, so that an operator has to decide.
    #[serde(default)]
    pub reason: Option<String>,
    /// What each of two sides has, in the order of `nodes`.
    #[serde(default)]
    pub sides: Vec<SplitSideReport>,
}

/// One side of a split brain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitSideReport {
    /// Its node's name.
    pub node: String,
    /// Operations that the other side does not have.
    pub changes: u64,
    /// The term in which it was given the role; null where an older version did not note it.
    pub primary_term: Option<u64>,
    /// The time of that by its own clock. RFC 3339, UTC.
    pub primary_since: Option<String>,
}

/// What differs between two sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DifferenceKind {
    /// Bytes of a file.
    Data,
    /// A name, mode, owner, size, time or attribute.
    Metadata,
    /// One side alone has it.
    OnlyOneSide,
}

/// One thing that differs, or may differ, between two sides of a split brain, or between a side
/// that was given up and the volume.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Difference {
    /// Where it is, from the volume's root on; null where neither side names it any more.
    pub path: Option<String>,
    /// What differs.
    pub kind: DifferenceKind,
    /// The first byte, for data; else 0.
    pub offset: u64,
    /// How many bytes, for data and for what one side alone has.
    pub length: u64,
    /// Whose node changed it, or alone has it; of a side that was given up `given-up` or `volume`.
    pub on: String,
    /// The object's number, the same on both sides.
    pub object: u64,
}

/// What one node knows of the differences between two sides.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Differences {
    /// As many as were asked for, in the order of paths.
    pub differences: Vec<Difference>,
    /// How many more there are.
    pub more: u64,
    /// False: it is known that things differ, and not which: everything may.
    pub complete: bool,
}

/// One other replica as a replica sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerReport {
    /// Its index in the volume's replicas.
    pub replica: usize,
    /// The connection to it.
    pub connection: ConnectionState,
    /// Whether it is in the in-sync set. Meaningful from the primary.
    pub in_sync: bool,
    /// What differs or may differ there. Meaningful from the primary.
    pub out_of_sync_bytes: Option<u64>,
    /// What it lacks of the confirmed order (protocol A).
    pub lag_bytes: Option<u64>,
    /// How old the oldest operation is that it lacks.
    pub lag_seconds: Option<f64>,
    /// A resync towards it. Only its source knows the figures.
    #[serde(default)]
    pub resync: Option<ResyncReport>,
    /// The last resync towards it.
    #[serde(default)]
    pub last_resync: Option<LastResyncReport>,
    /// Why it is not taken on although it was met.
    #[serde(default)]
    pub refusal: Option<String>,
    /// The connection's counters; null where there is none.
    #[serde(default)]
    pub link: Option<LinkReport>,
}

/// What went to a replica over the connection that there is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkReport {
    /// Whether it is compressed where that gains: the option asks for it, and both ends know how.
    pub compressed: bool,
    /// Bytes before compression, headers included.
    pub plain_bytes: u64,
    /// Bytes that crossed the wire, below TLS.
    pub sent_bytes: u64,
}

/// One replica's own view, asked of its node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplicaReport {
    /// The volume.
    pub volume: VolumeId,
    /// The node that says so.
    pub node: NodeId,
    /// This replica's index in the volume's replicas.
    pub replica: usize,
    /// What it does.
    pub role: ReplicaRole,
    /// Why it has this role (ONE-4).
    pub role_reason: Option<String>,
    /// What its data is worth.
    pub disk: DiskState,
    /// Why `disk` is `failed`, or why the replica cannot go on.
    pub reason: Option<String>,
    /// Whether it confirms operations now. False on a primary: I/O is suspended, see `reason`.
    pub serving: bool,
    /// Term of the activation that it knows.
    pub term: u64,
    /// History that its data belongs to.
    pub generation: Option<GenerationId>,
    /// Whether it counts itself in the in-sync set.
    pub in_sync: bool,
    /// Every other replica as it sees it.
    pub peers: Vec<PeerReport>,
    /// Resync in which it is the target (or the source, with `role` saying so).
    pub resync: Option<ResyncReport>,
    /// Last resync in which it was the target.
    pub last_resync: Option<LastResyncReport>,
    /// Size of a block volume.
    pub size_bytes: Option<u64>,
    /// Bytes in use on its brick.
    pub used_bytes: Option<u64>,
    /// Bytes free on its brick.
    pub free_bytes: Option<u64>,
    /// Clients that it serves: only the primary has any.
    pub clients: Vec<ClientReport>,
    /// An open split brain.
    pub split_brain: Option<SplitBrainReport>,
    /// As primary: the loosest ack policy by which something is confirmed just now.
    #[serde(default)]
    pub protocol_in_force: Option<Protocol>,
    /// As primary: confirmed operations that its take-over lost, as far as clients showed.
    #[serde(default)]
    pub lost_operations: u64,
    /// How often a block of its brick was found damaged or unreadable since its start.
    #[serde(default)]
    pub damaged_blocks: u64,
    /// How many of those were put right from another replica (DUR-4).
    #[serde(default)]
    pub repaired_blocks: u64,
    /// The whole picture before the resync under way, to which the replica can go back.
    #[serde(default)]
    pub point: Option<PointReport>,
    /// What it held alone and the volume gave up, until somebody drops it.
    #[serde(default)]
    pub kept: Vec<PointReport>,
}

/// What a retained point is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PointState {
    /// To go back to if a resync's source dies.
    BeforeResync,
    /// To be read until an operator drops it.
    GivenUp,
}

/// A retained point of a brick.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointReport {
    /// Its number in the brick.
    pub id: u64,
    /// What it is there for.
    pub state: PointState,
    /// The time of its last change. RFC 3339, UTC.
    pub as_of: String,
    /// Its last operation.
    pub sequence: u64,
    /// About how many bytes it costs besides.
    pub kept_bytes: u64,
}

/// How well a volume or the pool serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// All replicas are there and equal.
    Healthy,
    /// It serves, with less safety than configured.
    Degraded,
    /// It does not serve.
    Unavailable,
}

/// One replica in `volume status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// Its node's name.
    pub node: String,
    /// Its brick's directory.
    pub brick: String,
    /// What it does; null when its node does not answer.
    pub role: Option<ReplicaRole>,
    /// Why it has this role.
    pub role_reason: Option<String>,
    /// What its data is worth.
    pub disk: DiskState,
    /// Why the disk is `failed`, or what else stops it.
    pub reason: Option<String>,
    /// As the primary sees it.
    pub connection: ConnectionState,
    /// Whether it is in the in-sync set; null when nobody knows.
    pub in_sync: Option<bool>,
    /// What differs or may differ; null when nobody knows.
    pub out_of_sync_bytes: Option<u64>,
    /// What it lacks of the confirmed order.
    pub lag_bytes: Option<u64>,
    /// How old the oldest operation is that it lacks.
    pub lag_seconds: Option<f64>,
    /// A resync towards it.
    pub resync: Option<ResyncReport>,
    /// The last one.
    pub last_resync: Option<LastResyncReport>,
    /// What the primary sent to it over the connection that there is now.
    #[serde(default)]
    pub link: Option<LinkReport>,
    /// How often a block of its brick was found damaged or unreadable since its start.
    #[serde(default)]
    pub damaged_blocks: Option<u64>,
    /// How many of those were put right from another replica (DUR-4).
    #[serde(default)]
    pub repaired_blocks: Option<u64>,
    /// The whole picture before the resync under way, to which it can go back.
    #[serde(default)]
    pub point: Option<PointReport>,
    /// What it held alone and the volume gave up, until somebody drops it.
    #[serde(default)]
    pub kept: Vec<PointReport>,
}

/// One volume in `volume status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Name.
    pub name: String,
    /// Id.
    pub id: VolumeId,
    /// File system or disk.
    #[serde(rename = "type")]
    pub kind: VolumeKind,
    /// Whether it is meant to serve.
    pub state: VolumeState,
    /// Ack policy.
    pub protocol: Protocol,
    /// Who decides about roles.
    pub quorum: Quorum,
    /// How well it serves.
    pub health: Health,
    /// Why it is not healthy.
    pub reason: Option<String>,
    /// What the operator may want to know besides.
    pub notes: Vec<String>,
    /// Name of the primary's node.
    pub primary: Option<String>,
    /// Term of the primary.
    pub term: Option<u64>,
    /// History of the primary's data.
    pub generation: Option<GenerationId>,
    /// Size of a block volume.
    pub size_bytes: Option<u64>,
    /// Bytes in use, at the replica with the least room.
    pub used_bytes: Option<u64>,
    /// Bytes free, at the replica with the least room: the volume takes no more.
    pub free_bytes: Option<u64>,
    /// Replicas in their order.
    pub replicas: Vec<ReplicaStatus>,
    /// Mounted clients.
    pub clients: Vec<ClientReport>,
    /// An open split brain.
    pub split_brain: Option<SplitBrainReport>,
}

/// Whether a node answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It answered.
    Connected,
    /// It did not, within a second.
    Disconnected,
}

/// One node in `peer status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Name.
    pub name: String,
    /// Address as told to others.
    pub address: String,
    /// Id.
    pub id: NodeId,
    /// Whether it answered; the asking node counts as connected.
    pub state: NodeState,
    /// Whether it is the asking node.
    pub is_self: bool,
    /// Whether it votes.
    pub voter: bool,
    /// Whether it leads the pool's Raft group, as far as the asking node knows.
    pub leader: bool,
    /// RFC 3339, UTC: when it was last heard of, since the asking daemon's start.
    pub last_seen: Option<String>,
}

/// `peer status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Every member, oneself included.
    pub nodes: Vec<NodeStatus>,
    /// Whether a majority of the voters is connected.
    pub quorum: bool,
}

/// `volume status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumesStatus {
    /// The volumes that were asked for.
    pub volumes: Vec<VolumeStatus>,
}

/// `status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// The worst of the started volumes; degraded too when nodes are away.
    pub health: Health,
    /// Whether a majority of the voters is connected.
    pub quorum: bool,
    /// Every member.
    pub nodes: Vec<NodeStatus>,
    /// Every volume.
    pub volumes: Vec<VolumeStatus>,
}
