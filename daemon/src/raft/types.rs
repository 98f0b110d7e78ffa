//! What the pool's Raft group orders, and the state that results.

use std::collections::BTreeMap;
use std::io::Cursor;

use openraft::TokioRuntime;
use protocol::ids::{NodeId, PoolId, VolumeId};
use protocol::node_rpc::Member;
use protocol::volume::{Quorum, REPLICAS_MAX, ReplicaSpec, VolumeSpec};
use serde::{Deserialize, Serialize};

use super::clients::{ClientRecord, Clients};

openraft::declare_raft_types!(
    /// Types of the pool's Raft group.
    pub PoolRaft:
        D = PoolCommand,
        R = PoolOutcome,
        NodeId = NodeId,
        Node = Member,
        Entry = openraft::Entry<PoolRaft>,
        SnapshotData = Cursor<Vec<u8>>,
        AsyncRuntime = TokioRuntime,
);

/// Most volumes of a pool: the whole configuration is one snapshot of a few megabytes at most.
pub const VOLUMES_MAX: usize = 1024;
/// Most nodes of a pool.
pub const MEMBERS_MAX: usize = 64;
/// Voters from which on a majority can decide about roles: with two, either alone is none.
pub const MAJORITY_VOTERS_MIN: usize = 3;
/// Most voters.
pub const VOTERS_MAX: usize = 5;

/// A change of the pool's configuration. Each names the version that it was decided on, where
/// two could race.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolCommand {
    /// A new volume, whose bricks are prepared.
    CreateVolume {
        /// Version 1.
        spec: VolumeSpec,
    },
    /// The volume as it shall be, decided on `expected_version`; the new one is one higher.
    UpdateVolume {
        /// All of it.
        spec: VolumeSpec,
        /// The version that was looked at.
        expected_version: u64,
    },
    /// The volume goes.
    DeleteVolume {
        /// Which.
        volume: VolumeId,
        /// The version that was looked at.
        expected_version: u64,
    },
    /// Who is primary and who is in sync, for a volume with `quorum=majority`.
    SetReplicaSet {
        /// Which.
        volume: VolumeId,
        /// The version that was looked at; 0: there is none yet.
        expected_version: u64,
        /// Never lower than before.
        term: u64,
        /// Index of the primary.
        primary: u8,
        /// One bit per replica, the primary's among them.
        in_sync: u8,
    },
    /// A machine may become a client under this name, by a token.
    InviteClient {
        /// Unique among the clients.
        name: String,
        /// What it may do.
        client: ClientRecord,
    },
    /// The bearer of a token is the client that it was made for.
    JoinClient {
        /// BLAKE3 of the token's secret, in hexadecimal.
        token: String,
        /// The bearer's key, proven by TLS.
        key: NodeId,
    },
    /// A client, or its invitation, ends.
    RevokeClient {
        /// Its name.
        name: String,
    },
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolOutcome {
    /// Applied; the thing's version now.
    Applied {
        /// Version.
        version: u64,
    },
    /// Not applied.
    Refused(PoolRefusal),
}

/// Why a command was not applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum PoolRefusal {
    /// A volume of this name exists.
    #[error("a volume named `{name}` exists already")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// No such volume.
    #[error("the volume does not exist any more")]
    NoVolume,
    /// Someone was faster.
    #[error("it was changed by someone else meanwhile (version {current} instead of {expected})")]
    VersionChanged {
        /// What the command was decided on.
        expected: u64,
        /// What it is.
        current: u64,
    },
    /// A brick's directory is taken.
    #[error("{path} on {node} is a brick of volume `{volume}`")]
    BrickTaken {
        /// The node's name.
        node: String,
        /// The directory.
        path: String,
        /// The volume that has it.
        volume: String,
    },
    /// A replica's node is no member.
    #[error("node {node} is not a member of the pool")]
    NotMember {
        /// Its name.
        node: String,
    },
    /// Too many volumes.
    #[error("the pool has {limit} volumes already, which is the most")]
    TooManyVolumes {
        /// The limit.
        limit: usize,
    },
    /// A brick that shall go may still become primary.
    #[error("the replica on {node} is still in the in-sync set")]
    InSync {
        /// The node's name.
        node: String,
    },
    /// A replica set that cannot be.
    #[error("the replica set is not valid: term {term}, primary {primary}, in sync {in_sync:#b}")]
    InvalidReplicaSet {
        /// Term.
        term: u64,
        /// Index of the primary.
        primary: u8,
        /// Mask.
        in_sync: u8,
    },
    /// A client of this name has joined.
    #[error("client `{name}` has joined already")]
    ClientExists {
        /// The name.
        name: String,
    },
    /// No such client.
    #[error("there is no client `{name}`")]
    NoClient {
        /// The name.
        name: String,
    },
    /// Too many clients.
    #[error("the pool has {limit} clients already, which is the most")]
    TooManyClients {
        /// The limit.
        limit: usize,
    },
    /// The token was revoked, replaced, or used by another machine.
    #[error("the token is not valid: it was used by another machine, replaced or revoked")]
    TokenUnknown,
    /// A node needs no invitation.
    #[error("that machine is a node of the pool, which mounts under its own identity")]
    ClientIsNode,
    /// The key belongs to another client.
    #[error("that machine is client `{name}` already")]
    KeyKnown {
        /// The client's name.
        name: String,
    },
}

/// Who is primary and who is in sync: for `quorum=majority`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaSetState {
    /// Term of the activation.
    pub term: u64,
    /// Index of the primary.
    pub primary: u8,
    /// One bit per replica.
    pub in_sync: u8,
    /// Rises with every change of this.
    pub version: u64,
}

/// A member as the group knows it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemberState {
    /// Unique in the pool.
    pub name: String,
    /// HOST:PORT.
    pub address: String,
    /// Whether it votes.
    pub voter: bool,
}

/// The pool's configuration: what applying the log up to now gave.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PoolState {
    /// The pool.
    pub pool: PoolId,
    /// Rises when an operator starts the pool anew without a majority.
    pub epoch: u64,
    /// True until the first entry of the pool that this node is entering was applied.
    pub entering: bool,
    /// Members believed while entering: named by the node that admits this one.
    #[serde(default)]
    pub bootstrap: BTreeMap<NodeId, Member>,
    /// Members by id.
    pub members: BTreeMap<NodeId, MemberState>,
    /// Volumes by id.
    pub volumes: BTreeMap<VolumeId, VolumeSpec>,
    /// Replica sets of volumes with `quorum=majority`.
    pub replica_sets: BTreeMap<VolumeId, ReplicaSetState>,
    /// Clients by name.
    #[serde(default)]
    pub clients: Clients,
}

impl PoolState {
    /// The volume of this name.
    #[must_use]
    pub fn volume_named(&self, name: &str) -> Option<&VolumeSpec> {
        self.volumes.values().find(|spec| spec.name == name)
    }

    /// The member of this name.
    #[must_use]
    pub fn member_named(&self, name: &str) -> Option<(NodeId, &MemberState)> {
        self.members
            .iter()
            .find(|(_, member)| member.name == name)
            .map(|(id, member)| (*id, member))
    }

    /// How many vote.
    #[must_use]
    pub fn voters(&self) -> usize {
        self.members.values().filter(|member| member.voter).count()
    }

    /// Applies one command. The same on every node: no clock, no randomness, nothing local.
    pub fn apply(&mut self, command: PoolCommand) -> PoolOutcome {
        let done = match command {
            PoolCommand::CreateVolume { spec } => self.create(spec),
            PoolCommand::UpdateVolume {
                spec,
                expected_version,
            } => self.update(spec, expected_version),
            PoolCommand::DeleteVolume {
                volume,
                expected_version,
            } => self.delete(volume, expected_version),
            PoolCommand::SetReplicaSet {
                volume,
                expected_version,
                term,
                primary,
                in_sync,
            } => {
                let next = ReplicaSetState {
                    term,
                    primary,
                    in_sync,
                    version: expected_version + 1,
                };
                self.set_replica_set(volume, next)
            }
            PoolCommand::InviteClient { name, client } => self.invite(name, client),
            PoolCommand::JoinClient { token, key } => self.join_client(&token, key),
            PoolCommand::RevokeClient { name } => self.revoke_client(&name),
        };
        match done {
            Ok(version) => PoolOutcome::Applied { version },
            Err(refusal) => PoolOutcome::Refused(refusal),
        }
    }

    fn create(&mut self, mut spec: VolumeSpec) -> Result<u64, PoolRefusal> {
        // Whoever heard no answer asked again, perhaps another leader.
        if let Some(made) = self.volumes.get(&spec.id) {
            return Ok(made.version);
        }
        if self.volume_named(&spec.name).is_some() {
            return Err(PoolRefusal::NameTaken { name: spec.name });
        }
        if self.volumes.len() >= VOLUMES_MAX {
            return Err(PoolRefusal::TooManyVolumes { limit: VOLUMES_MAX });
        }
        for replica in &spec.replicas {
            // A node may have been detached between the command's decision and its turn.
            if !self.members.contains_key(&replica.node) {
                return Err(PoolRefusal::NotMember {
                    node: replica.node_name.clone(),
                });
            }
            self.brick_free(replica.node, &replica.path)?;
        }
        spec.version = 1;
        if spec.quorum == Quorum::Majority {
            self.replica_sets.insert(spec.id, first_replica_set(&spec));
        }
        self.volumes.insert(spec.id, spec);
        Ok(1)
    }

    fn brick_free(&self, node: NodeId, path: &str) -> Result<(), PoolRefusal> {
        for other in self.volumes.values() {
            for (_, taken) in other.members() {
                if taken.node == node && taken.path == path {
                    return Err(PoolRefusal::BrickTaken {
                        node: taken.node_name.clone(),
                        path: path.to_owned(),
                        volume: other.name.clone(),
                    });
                }
            }
        }
        Ok(())
    }

    fn checked(&self, volume: VolumeId, expected: u64) -> Result<&VolumeSpec, PoolRefusal> {
        let spec = self.volumes.get(&volume).ok_or(PoolRefusal::NoVolume)?;
        if spec.version != expected {
            return Err(PoolRefusal::VersionChanged {
                expected,
                current: spec.version,
            });
        }
        Ok(spec)
    }

    fn update(&mut self, mut spec: VolumeSpec, expected: u64) -> Result<u64, PoolRefusal> {
        let before = self.checked(spec.id, expected)?.clone();
        self.check_replicas(&before, &spec)?;
        if spec.quorum == Quorum::Off {
            self.replica_sets.remove(&spec.id);
        }
        spec.version = expected + 1;
        let version = spec.version;
        self.volumes.insert(spec.id, spec);
        Ok(version)
    }

    /// A brick that comes is free and on a member; one that goes can be made primary by nobody any
    /// more. What is decided here and who is in sync change in one order, so nothing slips between.
    fn check_replicas(&self, before: &VolumeSpec, spec: &VolumeSpec) -> Result<(), PoolRefusal> {
        let known =
            |replica: &&ReplicaSpec| before.members().any(|(_, old)| old.brick == replica.brick);
        let added = spec.members().map(|(_, replica)| replica);
        for replica in added.filter(|replica| !known(replica)) {
            if !self.members.contains_key(&replica.node) {
                return Err(PoolRefusal::NotMember {
                    node: replica.node_name.clone(),
                });
            }
            self.brick_free(replica.node, &replica.path)?;
        }
        let Some(set) = self.replica_sets.get(&spec.id) else {
            return Ok(());
        };
        for (place, old) in before.members() {
            let stays = spec
                .replicas
                .get(place)
                .is_some_and(|new| new.brick == old.brick)
                && spec.is_member(place);
            if !stays && set.in_sync & 1 << place != 0 {
                return Err(PoolRefusal::InSync {
                    node: old.node_name.clone(),
                });
            }
        }
        Ok(())
    }

    fn delete(&mut self, volume: VolumeId, expected: u64) -> Result<u64, PoolRefusal> {
        self.checked(volume, expected)?;
        self.volumes.remove(&volume);
        self.replica_sets.remove(&volume);
        for client in self.clients.values_mut() {
            if let Some(volumes) = &mut client.volumes {
                volumes.remove(&volume);
            }
        }
        Ok(expected)
    }

    fn set_replica_set(
        &mut self,
        volume: VolumeId,
        next: ReplicaSetState,
    ) -> Result<u64, PoolRefusal> {
        let spec = self.volumes.get(&volume).ok_or(PoolRefusal::NoVolume)?;
        let current = self.replica_sets.get(&volume).copied();
        let current_version = current.map_or(0, |set| set.version);
        if current_version != next.version - 1 {
            return Err(PoolRefusal::VersionChanged {
                expected: next.version - 1,
                current: current_version,
            });
        }
        let mask = spec.member_mask();
        let primary_in =
            usize::from(next.primary) < REPLICAS_MAX && next.in_sync & (1 << next.primary) != 0;
        let in_range = next.in_sync & !mask == 0;
        // A new primary is taken from the last in-sync set, under a higher term: whoever proposes
        // anything else is wrong, whatever it believes.
        let succession = current.is_none_or(|was| {
            if was.primary == next.primary {
                next.term >= was.term
            } else {
                next.term > was.term && was.in_sync & (1 << next.primary) != 0
            }
        });
        if !(primary_in && in_range && succession) {
            return Err(PoolRefusal::InvalidReplicaSet {
                term: next.term,
                primary: next.primary,
                in_sync: next.in_sync,
            });
        }
        self.replica_sets.insert(volume, next);
        Ok(next.version)
    }
}

/// All bricks are empty and equal: all are in sync, the first is primary.
fn first_replica_set(spec: &VolumeSpec) -> ReplicaSetState {
    ReplicaSetState {
        term: 1,
        primary: 0,
        in_sync: spec.member_mask(),
        version: 1,
    }
}

#[cfg(test)]
#[path = "types_tests.rs"]
mod tests;
