//! What a volume is: the part of the pool's configuration that bricks carry a copy of.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{BrickId, NodeId, VolumeId};

/// File system or disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeKind {
    /// A POSIX file system.
    Fs,
    /// One object of fixed size.
    Block,
}

/// When a write is confirmed: DRBD's protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// Applied at the primary, queued for the replicas.
    A,
    /// Applied at the primary, received by every in-sync replica.
    B,
    /// Applied at the primary and at every in-sync replica.
    C,
}

impl Protocol {
    /// How much it asks for before an operation is confirmed, from little to much.
    fn demand(self) -> u8 {
        match self {
            Self::A => 0,
            Self::B => 1,
            Self::C => 2,
        }
    }
    /// Whether it confirms on less evidence than `other`.
    #[must_use]
    pub fn is_looser_than(self, other: Self) -> bool {
        self.demand() < other.demand()
    }
    /// The one of both that asks for more.
    #[must_use]
    pub fn stricter(self, other: Self) -> Self {
        if self.is_looser_than(other) {
            other
        } else {
            self
        }
    }
    /// Its letter.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::B => "B",
            Self::C => "C",
        }
    }
}

/// Who decides about roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quorum {
    /// The pool's Raft group.
    Majority,
    /// The bricks themselves: two nodes and nobody to vote.
    Off,
}

/// Whether the volume serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    /// Made, never started.
    Created,
    /// Serves.
    Started,
    /// Does not serve.
    Stopped,
}

/// One replica's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaSpec {
    /// Its node.
    pub node: NodeId,
    /// That node's name, for people.
    pub node_name: String,
    /// Its brick's directory there.
    pub path: String,
    /// Its brick.
    pub brick: BrickId,
}

/// Which places of [`VolumeSpec::replicas`] are in use. A place keeps its meaning for as long as
/// its brick is in it; one whose brick was removed stays in the list, so that no other moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Layout {
    /// Rises with every change of the replicas; 0 as the volume was made.
    pub version: u64,
    /// Bricks on their way out, one bit a place: out of the in-sync set, or soon.
    pub leaving: u8,
    /// Places whose brick was removed.
    pub removed: u8,
}

impl Layout {
    fn is_first(&self) -> bool {
        *self == Self::default()
    }
}

/// A volume's configuration. The place of a replica in `replicas` is its index, 0 to 7, in every
/// mask of replicas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    /// Id.
    pub id: VolumeId,
    /// Name: 1 to 64 of `A-Z a-z 0-9 . _ -`, beginning with a letter or digit.
    pub name: String,
    /// File system or disk.
    pub kind: VolumeKind,
    /// Size of a block volume in bytes.
    pub size_bytes: Option<u64>,
    /// Ack policy.
    pub protocol: Protocol,
    /// Who decides.
    pub quorum: Quorum,
    /// Replicas; the first is the first primary. With those that were removed: see
    /// [`VolumeSpec::members`].
    pub replicas: Vec<ReplicaSpec>,
    /// Which of them count.
    #[serde(default, skip_serializing_if = "Layout::is_first")]
    pub layout: Layout,
    /// Whether it serves.
    pub state: VolumeState,
    /// Options that were set, by key.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// Rises with every change of this.
    pub version: u64,
}

impl VolumeSpec {
    /// The replicas of the volume with their places, those on their way out included.
    pub fn members(&self) -> impl Iterator<Item = (usize, &ReplicaSpec)> {
        let replicas = self.replicas.iter().enumerate();
        replicas.filter(|(place, _)| self.layout.removed & 1 << place == 0)
    }

    /// Whether there is a replica at this place.
    #[must_use]
    pub fn is_member(&self, place: usize) -> bool {
        self.members().any(|(member, _)| member == place)
    }

    /// Whether the replica at this place is on its way out.
    #[must_use]
    pub fn is_leaving(&self, place: usize) -> bool {
        place < REPLICAS_MAX && self.layout.leaving & 1 << place != 0
    }

    /// The members as a mask.
    #[must_use]
    pub fn member_mask(&self) -> u8 {
        self.members().fold(0, |mask, (place, _)| mask | 1 << place)
    }
}

/// Most replicas of a volume: a mask of them is one byte.
pub const REPLICAS_MAX: usize = 8;
