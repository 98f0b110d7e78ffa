//! Making a volume in two phases: all its bricks are prepared, then the pool agrees on it, or
//! nothing is left.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Component, Path};
use std::sync::Arc;
use std::time::Duration;

use protocol::control::{BrickPlace, CreateVolume};
use protocol::ids::{BrickId, NodeId, VolumeId};
use protocol::node_rpc::{NodeRequest, Refusal};
use protocol::volume::{Quorum, REPLICAS_MAX, ReplicaSpec, VolumeKind, VolumeSpec, VolumeState};

use super::Node;
use super::members::member_of;
use super::options::too_few_voters;
use super::refusal::refuse;
use crate::raft::{MAJORITY_VOTERS_MIN, PoolCommand, PoolOutcome, PoolState};
use crate::rpc::CALL_WITHIN;

/// Longest path of a brick.
const PATH_BYTES_MAX: usize = 1024;

/// What a volume or a client may be called: 1 to 64 of A-Z a-z 0-9 . _ -, beginning with a letter
/// or digit.
pub(super) fn is_plain(name: &str) -> bool {
    let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    begins && name.len() <= 64 && name.chars().all(allowed)
}

fn check_name(name: &str) -> Result<(), Refusal> {
    if is_plain(name) && name != "all" {
        return Ok(());
    }
    Err(refuse(
        "volume_name",
        format!("`{name}` cannot be a volume's name"),
        "Take 1 to 64 of A-Z a-z 0-9 . _ -, beginning with a letter or digit, and not `all`.",
    ))
}

pub(super) fn check_path(path: &str) -> Result<(), Refusal> {
    let parsed = Path::new(path);
    let plain = parsed
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let fits = path.len() <= PATH_BYTES_MAX && !path.contains(char::is_control);
    if parsed.is_absolute() && plain && fits && parsed.parent().is_some() {
        return Ok(());
    }
    Err(refuse(
        "brick_path",
        format!("`{path}` cannot be a brick's directory"),
        "Give an absolute path without `..`, for example `node1:/bricks/v1`.",
    ))
}

fn check_request(request: &CreateVolume) -> Result<(), Refusal> {
    check_name(&request.name)?;
    let bricks = request.bricks.len();
    if request.replica == 0 || request.replica > REPLICAS_MAX {
        return Err(refuse(
            "replica_count",
            format!(
                "a volume has 1 to {REPLICAS_MAX} replicas, not {}",
                request.replica
            ),
            "For example: `replica 2 node1:/bricks/v1 node2:/bricks/v1`.",
        ));
    }
    if bricks != request.replica {
        return Err(refuse(
            "brick_count",
            format!(
                "{} replicas need {} bricks; {bricks} were given",
                request.replica, request.replica
            ),
            "Name one brick, HOST:/path, for each replica.",
        ));
    }
    for brick in &request.bricks {
        check_path(&brick.path)?;
    }
    match (request.kind, request.size_bytes) {
        (VolumeKind::Block, None) => Err(refuse(
            "size_missing",
            "a block volume needs a size",
            "For example: `--size 10G`.",
        )),
        (VolumeKind::Fs, Some(_)) => Err(refuse(
            "size_needless",
            "a file system volume has no size of its own: it is as large as its smallest brick",
            "Leave `--size` out, or say `--type block`.",
        )),
        (VolumeKind::Block, Some(bytes)) if bytes == 0 || !bytes.is_multiple_of(4096) => {
            Err(refuse(
                "size",
                format!("a block volume of {bytes} bytes cannot be"),
                "Take a multiple of 4096 bytes.",
            ))
        }
        _ => Ok(()),
    }
}

impl Node {
    /// Makes a volume: all its bricks or none.
    pub(crate) async fn create_volume(
        self: &Arc<Self>,
        request: CreateVolume,
    ) -> Result<String, Refusal> {
        check_request(&request)?;
        let state = self.pool.state();
        if state.volume_named(&request.name).is_some() {
            return Err(refuse(
                "name_taken",
                format!("a volume named `{}` exists already", request.name),
                "Take another name, or delete that volume first.",
            ));
        }
        let (quorum, note) = choose_quorum(&state, &request)?;
        let mut replicas = Vec::with_capacity(request.bricks.len());
        for brick in &request.bricks {
            let (node, node_name) = self.resolve(&state, brick).await?;
            replicas.push(ReplicaSpec {
                node,
                node_name,
                path: brick.path.trim_end_matches('/').to_owned(),
                brick: BrickId(rand::random()),
            });
        }
        check_distinct(&replicas)?;
        let spec = VolumeSpec {
            id: VolumeId(rand::random()),
            name: request.name,
            kind: request.kind,
            size_bytes: request.size_bytes,
            protocol: request.protocol,
            quorum,
            replicas,
            state: VolumeState::Created,
            layout: protocol::volume::Layout::default(),
            options: BTreeMap::new(),
            version: 1,
        };
        let places: Vec<usize> = (0..spec.replicas.len()).collect();
        self.prepare_places(&spec, &places, request.force).await?;
        self.commit_create(&spec).await?;
        Ok(format!("volume `{}` is made{note}", spec.name))
    }

    async fn commit_create(self: &Arc<Self>, spec: &VolumeSpec) -> Result<(), Refusal> {
        let command = PoolCommand::CreateVolume { spec: spec.clone() };
        match self.pool.propose_widely(command).await {
            Ok(PoolOutcome::Applied { .. }) => Ok(()),
            Ok(PoolOutcome::Refused(reason)) => {
                let places: Vec<usize> = (0..spec.replicas.len()).collect();
                self.abort_places(spec, &places).await;
                Err(refuse(
                    "volume_create",
                    reason,
                    "Look at `cairn volume info all`, then try again.",
                ))
            }
            // The command may still be agreed on. Bricks that were prepared for it stay ready;
            // undoing them could leave a volume without bricks.
            Err(refusal) => Err(Refusal {
                message: format!(
                    "{}; whether volume `{}` comes into being is not known",
                    refusal.message, spec.name
                ),
                hint: format!(
                    "Look at `cairn volume list` once the pool has its majority; if the volume is \
                     not there, run `cairn brick wipe` on its bricks. {}",
                    refusal.hint
                ),
                ..refusal
            }),
        }
    }

    /// The node that HOST means: by its name, by its address, or by what HOST resolves to.
    pub(super) async fn resolve(
        &self,
        state: &PoolState,
        brick: &BrickPlace,
    ) -> Result<(NodeId, String), Refusal> {
        if let Some((id, member)) = state.member_named(&brick.host) {
            return Ok((id, member.name.clone()));
        }
        let wanted = addresses_of(&brick.host).await;
        let mut found = Vec::new();
        for (id, member) in &state.members {
            let host = host_of(&member.address);
            let same = host == brick.host
                || (!wanted.is_empty() && !wanted.is_disjoint(&addresses_of(host).await));
            if same {
                found.push((*id, member.name.clone()));
            }
        }
        if let [only] = found.as_slice() {
            return Ok(only.clone());
        }
        if found.is_empty() {
            let mut refusal = match member_of(state, &brick.host) {
                Err(refusal) => refusal,
                Ok((id, member)) => return Ok((id, member.name)),
            };
            if !refusal.hint.starts_with("Did") {
                refusal.hint = format!(
                    "Admit it first: `cairn peer probe {}`; members: {}.",
                    brick.host,
                    names(state)
                );
            }
            return Err(refusal);
        }
        Err(refuse(
            "ambiguous_node",
            format!("`{}` is the address of several nodes", brick.host),
            &format!("Use a node's name: {}.", names(state)),
        ))
    }

    /// Makes the bricks of these places: all or none.
    pub(super) async fn prepare_places(
        self: &Arc<Self>,
        spec: &VolumeSpec,
        places: &[usize],
        force: bool,
    ) -> Result<(), Refusal> {
        let mut asked = tokio::task::JoinSet::new();
        for replica in places.iter().copied() {
            let (node, spec) = (Arc::clone(self), spec.clone());
            asked.spawn(async move {
                let request = NodeRequest::PrepareBrick {
                    spec: spec.clone(),
                    replica,
                    force,
                };
                node.brick_request(&spec, replica, request, CALL_WITHIN)
                    .await
            });
        }
        let mut failed = None;
        while let Some(done) = asked.join_next().await {
            match done {
                Ok(Ok(_)) => {}
                Ok(Err(refusal)) => failed = failed.or(Some(refusal)),
                Err(_) => {
                    failed = failed.or_else(|| {
                        Some(refuse(
                            "internal",
                            "the preparation of a brick was abandoned",
                            "Look at the daemon's log.",
                        ))
                    });
                }
            }
        }
        match failed {
            None => Ok(()),
            Some(refusal) => {
                self.abort_places(spec, places).await;
                Err(refusal)
            }
        }
    }

    /// Undoes what was prepared and did not become part of a volume.
    pub(super) async fn abort_places(self: &Arc<Self>, spec: &VolumeSpec, places: &[usize]) {
        for replica in places.iter().copied() {
            let request = NodeRequest::AbortBrick {
                spec: spec.clone(),
                replica,
            };
            let done = self
                .brick_request(spec, replica, request, CALL_WITHIN)
                .await;
            if let Err(refusal) = done {
                tracing::warn!(
                    brick = spec.replicas[replica].path,
                    %refusal,
                    "a prepared brick may be left over; `cairn brick wipe` clears it"
                );
            }
        }
    }
}

fn names(state: &PoolState) -> String {
    let names: Vec<&str> = state.members.values().map(|m| m.name.as_str()).collect();
    names.join(", ")
}

fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

async fn addresses_of(host: &str) -> BTreeSet<IpAddr> {
    if let Ok(ip) = host.parse() {
        return BTreeSet::from([ip]);
    }
    // A resolver that does not answer must not hold the command up.
    let looked_up = tokio::time::timeout(
        Duration::from_secs(2),
        tokio::net::lookup_host((host.to_owned(), 0)),
    );
    match looked_up.await {
        Ok(Ok(found)) => found.map(|address| address.ip()).collect(),
        _ => BTreeSet::new(),
    }
}

pub(super) fn check_distinct(replicas: &[ReplicaSpec]) -> Result<(), Refusal> {
    let mut seen = BTreeSet::new();
    for replica in replicas {
        if !seen.insert(replica.node) {
            return Err(refuse(
                "same_node",
                format!("two bricks are on node {}", replica.node_name),
                "Give each replica a node of its own: two on one node die together.",
            ));
        }
    }
    Ok(())
}

/// The quorum of a new volume, and what the operator should know about it.
fn choose_quorum(
    state: &PoolState,
    request: &CreateVolume,
) -> Result<(Quorum, &'static str), Refusal> {
    let possible = state.voters() >= MAJORITY_VOTERS_MIN;
    match request.quorum {
        Some(Quorum::Majority) if !possible => Err(too_few_voters(state)),
        Some(quorum) => Ok((quorum, "")),
        // One replica has nobody to hand its role to: it serves whether the pool agrees or not.
        None if request.replica == 1 => Ok((Quorum::Off, "")),
        None if possible => Ok((Quorum::Majority, "")),
        None => Ok((
            Quorum::Off,
            "; quorum is off, since fewer than three nodes vote: when the primary's node dies, \
             the volume waits until it is back or `cairn volume promote --force` is said; with a \
             third voting node another replica takes over by itself",
        )),
    }
}
