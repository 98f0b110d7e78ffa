//! Requests to a node and its replies: frame kind 1 and 2, meta is JSON, one reply per request,
//! in order, on a connection with purpose [`crate::preamble::Purpose::Rpc`].
//!
//! Every request is answered to members of the pool only, but [`NodeRequest::Locate`] to clients as
//! well, and [`NodeRequest::JoinClient`] to whoever has a token. JSON, because these are a few
//! messages a minute that must stay readable between versions.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::frame::{META_BYTES_MAX, RawFrame};
use crate::ids::{NodeId, PoolId, VolumeId};
use crate::report::ReplicaReport;
use crate::units::ObjectId;
use crate::volume::{VolumeKind, VolumeSpec};

/// Frame kinds of this module.
pub mod kind {
    /// A [`super::NodeRequest`] or [`super::JoinRequest`].
    pub const REQUEST: u8 = 1;
    /// A [`super::NodeReply`] or [`super::JoinReply`].
    pub const REPLY: u8 = 2;
}

/// Codes of refusals that clients act on.
pub mod code {
    /// No such volume in the pool.
    pub const NO_SUCH_VOLUME: &str = "no_such_volume";
    /// The volume is stopped.
    pub const STOPPED: &str = "stopped";
    /// The identity has no right to it.
    pub const FORBIDDEN: &str = "forbidden";
}

/// A member of the pool.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Member {
    /// Name, unique in the pool.
    pub name: String,
    /// HOST:PORT as told to others.
    pub address: String,
}

/// Why something was not done: for people, with a code for programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// One word for programs.
    pub code: String,
    /// One sentence.
    pub message: String,
    /// What to do next.
    pub hint: String,
    /// Exit status of the command that meets this.
    #[serde(default = "exit_refused")]
    pub exit_code: u8,
}

fn exit_refused() -> u8 {
    1
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

/// Most objects that one question about names may have.
pub const NAMES_MAX: usize = 1000;

/// What a volume is told to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeCommand {
    /// Make replica `to` the primary. Sent to the primary's node, which hands the role over; by
    /// force to the node of that replica.
    Promote {
        /// Index of the replica.
        to: usize,
        /// Also where confirmed writes may be lost.
        force: bool,
    },
    /// End a split brain: what this replica holds stays, what others alone hold is given up. Sent
    /// to the node of the replica that is kept.
    KeepSide {},
    /// Drop what this replica keeps of sides that were given up. Sent to the node of the replica.
    DropKept {},
    /// What this replica changed and that one, the other side of a split brain, does not have. Sent
    /// to the node of the replica.
    Differences {
        /// The other side.
        with: usize,
        /// Most rows.
        max: usize,
    },
    /// How the side that this replica gave up and keeps differs from the volume. Sent to the node
    /// of the replica.
    KeptDifferences {
        /// The point.
        point: u64,
        /// Most rows.
        max: usize,
    },
    /// Paths of objects, at most [`NAMES_MAX`], as this replica has them. Sent to its node.
    Names {
        /// The objects.
        objects: Vec<ObjectId>,
    },
    /// Let the next resync of this replica begin although what it changes cannot be kept. Sent to
    /// the node of the replica.
    ResyncWithoutPoint {},
    /// Bring replicas up to date now. Sent to the primary's node.
    Resync {
        /// Only this replica.
        replica: Option<usize>,
        /// Compare and send everything.
        full: bool,
    },
    /// Whether the bricks on their way out may be removed: they are in no set any more. A primary
    /// that is one of them hands its role over first. Sent to the primary's node.
    LetGo {},
    /// Whether every brick can hold a disk of this size. Sent to the primary's node.
    FitsDisk {
        /// The size.
        bytes: u64,
    },
    /// Let no resync go on until resumed. Sent to the primary's node.
    PauseResync,
    /// Let resync go on. Sent to the primary's node.
    ResumeResync,
    /// Compare all replicas. Sent to the primary's node.
    Verify {
        /// Copy from the primary what differs.
        repair: bool,
    },
}

/// Asked of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeRequest {
    /// Where a volume's replicas are.
    Locate {
        /// Its name.
        volume: String,
    },
    /// I was invited: take me for a client. On an outcome the asker's key is known to the pool.
    JoinClient {
        /// The token's secret, in hexadecimal. Asked of a node that the token names, so only the
        /// pool reads it.
        secret: String,
    },
    /// Are you there?
    Ping {
        /// See [`NodeRequest::Raft`].
        #[serde(default)]
        start: u64,
    },
    /// Answer when your configuration is as new as this entry of the pool's log, or soon at
    /// least.
    Applied {
        /// The log index.
        index: u64,
    },
    /// A message of the pool's Raft group.
    Raft {
        /// The sender's pool.
        pool: PoolId,
        /// The sender's pool epoch.
        epoch: u64,
        /// Which start of the sender's process it is; 0: an older version, which does not say.
        #[serde(default)]
        start: u64,
        /// The message, as the Raft library encodes it.
        message: Value,
    },
    /// Order this command. Answered by the leader only.
    Propose {
        /// A command of the pool's state machine.
        command: Value,
    },
    /// Take a node into the pool. Answered by the leader only.
    Admit {
        /// The node.
        node: NodeId,
        /// Name and address.
        member: Member,
        /// Make it a voter while there are fewer than five.
        voter: bool,
    },
    /// Let a member vote or not. Answered by the leader only.
    SetVoter {
        /// The node.
        node: NodeId,
        /// Whether it votes.
        voter: bool,
    },
    /// Change a member's address. Answered by the leader only.
    SetAddress {
        /// The node.
        node: NodeId,
        /// HOST:PORT.
        address: String,
    },
    /// Take a member out of the pool. Answered by the leader only.
    Expel {
        /// The node.
        node: NodeId,
        /// Also while it holds bricks, as long as none is the only one of its volume.
        force: bool,
    },
    /// You are no member any more: become fresh.
    Expelled {
        /// The pool.
        pool: PoolId,
        /// Its epoch.
        epoch: u64,
    },
    /// The pool goes on under a new epoch, decided by an operator: wait to be admitted to it.
    AdoptEpoch {
        /// The pool.
        pool: PoolId,
        /// The new epoch.
        epoch: u64,
        /// Who is in it.
        members: BTreeMap<NodeId, Member>,
    },
    /// Make the brick of a replica ready, marked as not yet part of a volume.
    PrepareBrick {
        /// The volume as it would be.
        spec: VolumeSpec,
        /// Index of the replica.
        replica: usize,
        /// Accept a directory that is not empty or lies on the root file system.
        force: bool,
    },
    /// Undo [`NodeRequest::PrepareBrick`].
    AbortBrick {
        /// The volume as it would have been.
        spec: VolumeSpec,
        /// Index of the replica.
        replica: usize,
    },
    /// What do your replicas say about themselves?
    Reports {
        /// Only this volume's.
        volume: Option<VolumeId>,
    },
    /// Open the volume's brick again if it failed.
    RetryVolume {
        /// The volume.
        volume: VolumeId,
    },
    /// Answer when what the pool decided about the volume has happened on your node: its replica
    /// stopped, its brick marked.
    SettleVolume {
        /// The volume.
        volume: VolumeId,
        /// The version to wait for; absent: that the volume is gone.
        version: Option<u64>,
    },
    /// Serve a block volume's disk by NBD.
    Export {
        /// The volume.
        volume: VolumeId,
        /// ADDR:PORT or unix:PATH.
        nbd: String,
        /// Also to other machines without TLS.
        insecure: bool,
    },
    /// Serve it no more.
    Unexport {
        /// The volume.
        volume: VolumeId,
        /// At this address; absent: at all of them.
        nbd: Option<String>,
    },
    /// Do this to the volume.
    VolumeCommand {
        /// The volume.
        volume: VolumeId,
        /// What.
        command: VolumeCommand,
    },
}

/// A replica's node, for clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocatedNode {
    /// The node.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// HOST:PORT.
    pub address: String,
    /// Path of the Unix data socket, when the node is the one that was asked.
    pub unix_socket: Option<String>,
    /// Whether it is the primary, as far as the asked node knows.
    pub primary: bool,
}

/// A node's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeReply {
    /// To [`NodeRequest::Locate`].
    Located {
        /// The volume.
        volume_id: VolumeId,
        /// File system or disk.
        kind: VolumeKind,
        /// Its replicas' nodes.
        nodes: Vec<LocatedNode>,
    },
    /// To [`NodeRequest::JoinClient`].
    ClientJoined {
        /// The name under which an operator invited it.
        name: String,
        /// Names of the volumes that it may mount; absent: all.
        volumes: Option<Vec<String>>,
        /// Whether it may only read them.
        read_only: bool,
        /// The pool's nodes.
        nodes: BTreeMap<NodeId, Member>,
    },
    /// To [`NodeRequest::Ping`].
    Pong {
        /// The node's pool.
        pool: PoolId,
        /// Its epoch.
        epoch: u64,
    },
    /// To [`NodeRequest::Raft`].
    Raft {
        /// The answer, as the Raft library encodes it.
        message: Value,
    },
    /// The leader is elsewhere, or unknown.
    NotLeader {
        /// Who leads, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// Done; the index of the log entry up to which the asker may want to wait.
    Done {
        /// Log index, 0 where none applies.
        index: u64,
    },
    /// To [`NodeRequest::Reports`].
    Reports {
        /// One per replica.
        reports: Vec<ReplicaReport>,
    },
    /// To [`NodeRequest::VolumeCommand`].
    Outcome {
        /// The command's result.
        value: Value,
    },
    /// Not done.
    Error(Refusal),
}

/// Said by the one who probes, on a connection with purpose Join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JoinRequest {
    /// I know your code: HMAC-SHA256 over this connection's TLS exporter, in hexadecimal.
    Prove {
        /// The proof.
        proof: String,
    },
    /// Leave your pool of one and wait for this pool's Raft group.
    Enter {
        /// The pool.
        pool: PoolId,
        /// Its epoch.
        epoch: u64,
        /// Its members, so that they are believed before the first log entry came.
        members: BTreeMap<NodeId, Member>,
        /// The pool's links are long, or the line to this node is: its group wants the patience
        /// for that from the first message on.
        #[serde(default)]
        far: bool,
    },
    /// The admission failed: be a pool of one again.
    Abandon {},
    /// The admission is complete.
    Admitted {},
}

/// The probed node's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JoinReply {
    /// I know it too, and this is me.
    Proven {
        /// The proof of the other role.
        proof: String,
        /// Name.
        name: String,
        /// HOST:PORT to tell others; null: as you called me.
        address: Option<String>,
        /// The address that this connection comes from.
        observed: String,
    },
    /// Done.
    Ok {},
    /// Not done.
    Error(Refusal),
}

/// A message that cannot be sent or read.
#[derive(Debug, thiserror::Error)]
pub enum RpcCodecError {
    /// Not the JSON that was expected.
    #[error("a message is not what its kind says: {source}")]
    Json {
        /// What the parser says.
        source: serde_json::Error,
    },
    /// Longer than a frame may be.
    #[error("a message of {bytes} bytes is longer than the {limit} that are allowed")]
    TooLong {
        /// Its bytes.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Another kind of frame.
    #[error("a frame of kind {found} came where kind {expected} was due")]
    Kind {
        /// What came.
        found: u8,
        /// What was due.
        expected: u8,
    },
}

/// A frame of `kind` with `message` as JSON.
pub fn encode<T: Serialize>(kind: u8, message: &T) -> Result<RawFrame, RpcCodecError> {
    let meta = serde_json::to_vec(message).map_err(|source| RpcCodecError::Json { source })?;
    if meta.len() > META_BYTES_MAX {
        return Err(RpcCodecError::TooLong {
            bytes: meta.len(),
            limit: META_BYTES_MAX,
        });
    }
    Ok(RawFrame {
        kind,
        meta: Bytes::from(meta),
        payload: Bytes::new(),
    })
}

/// The message in a frame that must be of `kind`.
pub fn decode<T: for<'de> Deserialize<'de>>(
    kind: u8,
    frame: &RawFrame,
) -> Result<T, RpcCodecError> {
    if frame.kind != kind {
        return Err(RpcCodecError::Kind {
            found: frame.kind,
            expected: kind,
        });
    }
    serde_json::from_slice(&frame.meta).map_err(|source| RpcCodecError::Json { source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_that_other_programs_speak_do_not_change() {
        let locate: NodeRequest =
            serde_json::from_str(r#"{"locate":{"volume":"v1"}}"#).expect("locate");
        assert_eq!(
            locate,
            NodeRequest::Locate {
                volume: "v1".to_owned()
            }
        );
        let refusal = NodeReply::Error(Refusal {
            code: "no_volume".to_owned(),
            message: "m".to_owned(),
            hint: "h".to_owned(),
            exit_code: 1,
        });
        assert_eq!(
            serde_json::to_value(&refusal).expect("json"),
            serde_json::json!({"error":{"code":"no_volume","message":"m","hint":"h","exit_code":1}})
        );
    }

    #[test]
    fn a_frame_of_another_kind_or_with_other_content_is_refused() {
        let frame = encode(kind::REQUEST, &NodeRequest::Ping { start: 0 }).expect("frame");
        assert!(decode::<NodeRequest>(kind::REQUEST, &frame).is_ok());
        assert!(decode::<NodeRequest>(kind::REPLY, &frame).is_err());
        assert!(decode::<JoinRequest>(kind::REQUEST, &frame).is_err());
    }
}
