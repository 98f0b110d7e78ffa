//! Requests that any node answers, from clients and from other nodes: JSON in a frame's meta.
//!
//! One request of kind [`KIND_REQUEST`], one reply of kind [`KIND_REPLY`], in turn.

use serde::{Deserialize, Serialize};

use crate::ids::{NodeId, VolumeId};
use crate::volume::VolumeKind;

/// Frame kind of a [`Request`].
pub const KIND_REQUEST: u8 = 1;
/// Frame kind of a [`Reply`].
pub const KIND_REPLY: u8 = 2;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Where a volume is served. Replies [`Reply::Located`].
    Locate {
        /// The volume's name.
        volume: String,
    },
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To [`Request::Locate`].
    Located(Located),
    /// It was refused or failed.
    Error(Refusal),
}

/// Where a volume is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Located {
    /// The volume.
    pub volume_id: VolumeId,
    /// File system or disk.
    pub kind: VolumeKind,
    /// The nodes that hold replicas of it.
    pub nodes: Vec<LocatedNode>,
}

/// A node that holds a replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocatedNode {
    /// The node.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// `host:port`, IPv6 in brackets.
    pub address: String,
    /// Where a client on the same machine may connect instead, without TLS.
    pub unix_socket: Option<String>,
    /// It is the primary, as far as the answering node knows.
    pub primary: bool,
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// One of [`code`], or a newer one.
    pub code: String,
    /// One sentence that says why.
    pub message: String,
    /// One sentence that says what to do next.
    pub hint: String,
}

/// Codes of [`Refusal`].
pub mod code {
    /// There is no volume of this name.
    pub const NO_SUCH_VOLUME: &str = "no_such_volume";
    /// The volume is stopped.
    pub const STOPPED: &str = "stopped";
    /// The identity has no right to it.
    pub const FORBIDDEN: &str = "forbidden";
    /// The request is not understood.
    pub const BAD_REQUEST: &str = "bad_request";
}
