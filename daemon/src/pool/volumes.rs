//! Volumes: made in two phases, changed by version, commands sent to the node that they concern.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Component, Path};
use std::sync::Arc;
use std::time::Duration;

use protocol::control::{BrickPlace, CreateVolume};
use protocol::ids::{BrickId, NodeId, VolumeId};
use protocol::node_rpc::{NodeReply, NodeRequest, Refusal, VolumeCommand};
use protocol::options::{self, OptionError, Options, nearest, parse_size};
use protocol::report::{ConnectionState, DiskState, ReplicaRole};
use protocol::volume::{
    Protocol, Quorum, REPLICAS_MAX, ReplicaSpec, VolumeKind, VolumeSpec, VolumeState,
};

use super::Node;
use super::members::member_of;
use super::refusal::{refuse, refuse_usage};
use super::serve::{no_volume, not_started};
use crate::raft::{PoolCommand, PoolOutcome, PoolState};
use crate::rpc::CALL_WITHIN;

/// Voters from which on a majority can decide about roles.
const MAJORITY_VOTERS_MIN: usize = 3;
/// Longest path of a brick.
const PATH_BYTES_MAX: usize = 1024;
/// A switch-over hands a primary over; it may have to wait for a resync's last blocks.
const PROMOTE_WITHIN: Duration = Duration::from_secs(60);
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

fn check_name(name: &str) -> Result<(), Refusal> {
    let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if begins && name.len() <= 64 && name.chars().all(allowed) && name != "all" {
        return Ok(());
    }
    Err(refuse(
        "volume_name",
        format!("`{name}` cannot be a volume's name"),
        "Take 1 to 64 of A-Z a-z 0-9 . _ -, beginning with a letter or digit, and not `all`.",
    ))
}

fn check_path(path: &str) -> Result<(), Refusal> {
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
            options: BTreeMap::new(),
            version: 1,
        };
        self.prepare_all(&spec, request.force).await?;
        self.commit_create(&spec).await?;
        Ok(format!("volume `{}` is made{note}", spec.name))
    }

    async fn commit_create(self: &Arc<Self>, spec: &VolumeSpec) -> Result<(), Refusal> {
        let command = PoolCommand::CreateVolume { spec: spec.clone() };
        match self.pool.propose(command).await {
            Ok(PoolOutcome::Applied { .. }) => Ok(()),
            Ok(PoolOutcome::Refused(reason)) => {
                self.abort_all(spec).await;
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
    async fn resolve(
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

    async fn brick_request(
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
    async fn ask_node(
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
                NodeRequest::VolumeCommand { volume, command } => {
                    self.volume_command(volume, command).await
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

    async fn prepare_all(self: &Arc<Self>, spec: &VolumeSpec, force: bool) -> Result<(), Refusal> {
        let mut asked = tokio::task::JoinSet::new();
        for replica in 0..spec.replicas.len() {
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
                self.abort_all(spec).await;
                Err(refusal)
            }
        }
    }

    async fn abort_all(self: &Arc<Self>, spec: &VolumeSpec) {
        for replica in 0..spec.replicas.len() {
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

    async fn update(&self, spec: VolumeSpec) -> Result<(), Refusal> {
        let expected_version = spec.version;
        let command = PoolCommand::UpdateVolume {
            spec,
            expected_version,
        };
        self.settle(command).await
    }

    async fn settle(&self, command: PoolCommand) -> Result<(), Refusal> {
        match self.pool.propose(command).await? {
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
        for replica in &spec.replicas {
            if let Err(refusal) = self.ask_node(replica.node, &request, CALL_WITHIN).await {
                failed.push(refusal);
            }
        }
        if failed.len() == spec.replicas.len() {
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
        for refusal in failed {
            text = format!("{text}; not running: {}", refusal.message);
        }
        Ok(text)
    }

    /// Stops a volume.
    pub(crate) async fn stop_volume(&self, name: &str) -> Result<String, Refusal> {
        let mut spec = volume_of(&self.pool.state(), name)?;
        match spec.state {
            VolumeState::Stopped => Ok(format!("volume `{name}` is stopped already")),
            VolumeState::Created => Err(not_started(name)),
            VolumeState::Started => {
                spec.state = VolumeState::Stopped;
                self.update(spec).await?;
                Ok(format!("volume `{name}` is stopped"))
            }
        }
    }

    /// Deletes a volume; its bricks keep their data, marked as deleted.
    pub(crate) async fn delete_volume(&self, name: &str) -> Result<String, Refusal> {
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
        let bricks: Vec<String> = spec
            .replicas
            .iter()
            .map(|replica| format!("{}:{}", replica.node_name, replica.path))
            .collect();
        Ok(format!(
            "volume `{name}` is deleted; its data stays on {} until `cairn brick wipe`",
            bricks.join(", ")
        ))
    }

    /// Sets an option.
    pub(crate) async fn set_option(
        self: &Arc<Self>,
        name: &str,
        key: &str,
        value: &str,
    ) -> Result<String, Refusal> {
        let state = self.pool.state();
        let mut spec = volume_of(&state, name)?;
        let rule = options::rule(key).map_err(|error| option_refusal(&error))?;
        let value = rule
            .normalize(value)
            .map_err(|error| option_refusal(&error))?;
        match key {
            "protocol" => spec.protocol = protocol_of(&value),
            "quorum" if value == "majority" => {
                if spec.quorum != Quorum::Majority {
                    self.ready_for_majority(&spec).await?;
                }
                spec.quorum = Quorum::Majority;
            }
            "quorum" => spec.quorum = Quorum::Off,
            "size" => spec.size_bytes = Some(grown(&spec, &value)?),
            _ => {
                check_option(&spec, key, &value)?;
                spec.options.insert(key.to_owned(), value.clone());
            }
        }
        self.update(spec).await?;
        Ok(format!("{key} of volume `{name}` is {value}"))
    }

    /// Roles may be handed to the pool when all replicas agree on them.
    async fn ready_for_majority(self: &Arc<Self>, spec: &VolumeSpec) -> Result<(), Refusal> {
        let state = self.pool.state();
        if state.voters() < MAJORITY_VOTERS_MIN {
            return Err(too_few_voters(&state));
        }
        if spec.state != VolumeState::Started {
            return Err(not_started(&spec.name));
        }
        let status = self.volumes_status(Some(&spec.name)).await;
        let status = status.first().ok_or_else(|| no_volume(&spec.name))?;
        let settled = status.replicas.iter().all(|replica| {
            replica.disk == DiskState::UpToDate
                && replica.in_sync == Some(true)
                && matches!(
                    replica.connection,
                    ConnectionState::Connected | ConnectionState::Own
                )
        });
        let primary = status
            .replicas
            .iter()
            .position(|replica| replica.role == Some(ReplicaRole::Primary));
        let (true, Some(primary), Some(term)) = (settled, primary, status.term) else {
            return Err(refuse(
                "not_settled",
                "roles can be handed to the pool only while all replicas are connected and up to date",
                &format!("Look at `cairn why {}`.", spec.name),
            ));
        };
        self.settle(PoolCommand::SetReplicaSet {
            volume: spec.id,
            expected_version: state
                .replica_sets
                .get(&spec.id)
                .map_or(0, |set| set.version),
            term,
            primary: u8::try_from(primary).unwrap_or(u8::MAX),
            in_sync: u8::MAX >> (REPLICAS_MAX - spec.replicas.len().clamp(1, REPLICAS_MAX)),
        })
        .await
    }

    /// Back to defaults.
    pub(crate) async fn reset_option(
        &self,
        name: &str,
        key: Option<&str>,
    ) -> Result<String, Refusal> {
        let mut spec = volume_of(&self.pool.state(), name)?;
        let Some(key) = key else {
            spec.options.clear();
            self.update(spec).await?;
            return Ok(format!(
                "all options of volume `{name}` have their defaults"
            ));
        };
        let rule = options::rule(key).map_err(|error| option_refusal(&error))?;
        match key {
            "protocol" => spec.protocol = Protocol::C,
            "quorum" | "size" => {
                return Err(refuse(
                    "no_default",
                    format!("{key} has no default to go back to"),
                    &format!("Set it: `cairn volume set {name} {key} VALUE`."),
                ));
            }
            _ => {
                spec.options.remove(key);
            }
        }
        self.update(spec).await?;
        Ok(format!("{key} of volume `{name}` is {}", rule.default))
    }

    /// Values in force, by key.
    pub(crate) fn get_options(
        &self,
        name: &str,
        key: Option<&str>,
    ) -> Result<BTreeMap<&'static str, String>, Refusal> {
        let spec = volume_of(&self.pool.state(), name)?;
        let rules: Vec<_> = match key {
            None | Some("all") => options::OPTIONS.iter().collect(),
            Some(key) => vec![options::rule(key).map_err(|error| option_refusal(&error))?],
        };
        Ok(rules
            .into_iter()
            .map(|rule| (rule.key, value_of(&spec, rule.key)))
            .collect())
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
        let node = match &command {
            VolumeCommand::Promote { to, .. } => spec.replicas[*to].node,
            _ => self.primary_node(&spec).await?,
        };
        let within = match &command {
            VolumeCommand::Promote { .. } => PROMOTE_WITHIN,
            VolumeCommand::Verify { .. } => VERIFY_WITHIN,
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
                status
                    .replicas
                    .iter()
                    .position(|replica| Some(&replica.node) == status.primary.as_ref())
            })
            .map(|index| spec.replicas[index].node)
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
        spec.replicas
            .iter()
            .position(|replica| Some(replica.node) == by_member || replica.node_name == node)
            .ok_or_else(|| {
                let holders: Vec<_> = spec
                    .replicas
                    .iter()
                    .map(|replica| replica.node_name.as_str())
                    .collect();
                refuse(
                    "no_replica",
                    format!("{node} holds no replica of volume `{volume}`"),
                    &format!("Its replicas are on {}.", holders.join(", ")),
                )
            })
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

fn check_distinct(replicas: &[ReplicaSpec]) -> Result<(), Refusal> {
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

fn too_few_voters(state: &PoolState) -> Refusal {
    refuse(
        "too_few_voters",
        format!(
            "`quorum=majority` needs {MAJORITY_VOTERS_MIN} voting nodes; the pool has {}",
            state.voters()
        ),
        "Probe a third node (it needs no brick), or say `--quorum off`.",
    )
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
        None if possible => Ok((Quorum::Majority, "")),
        None if request.replica == 1 => Ok((Quorum::Off, "")),
        None => Ok((
            Quorum::Off,
            "; quorum is off, since fewer than three nodes vote: when the primary's node dies, \
             the other takes over only by `cairn volume promote --force`",
        )),
    }
}

fn protocol_of(value: &str) -> Protocol {
    match value {
        "A" => Protocol::A,
        "B" => Protocol::B,
        _ => Protocol::C,
    }
}

fn grown(spec: &VolumeSpec, value: &str) -> Result<u64, Refusal> {
    let bytes = parse_size(value).unwrap_or(0);
    match spec.size_bytes {
        None => Err(refuse(
            "size_needless",
            "a file system volume has no size of its own",
            "It is as large as its smallest brick.",
        )),
        Some(now) if bytes < now || !bytes.is_multiple_of(4096) => Err(refuse(
            "size",
            format!("a volume of {now} bytes cannot become one of {bytes}"),
            "A block volume only grows, by multiples of 4096 bytes.",
        )),
        Some(_) => Ok(bytes),
    }
}

fn check_option(spec: &VolumeSpec, key: &str, value: &str) -> Result<(), Refusal> {
    if key == "min-in-sync"
        && value
            .parse::<usize>()
            .is_ok_and(|min| min > spec.replicas.len())
    {
        return Err(refuse(
            "option_value",
            format!("the volume has {} replicas only", spec.replicas.len()),
            "Take a smaller number: below it, writes wait.",
        ));
    }
    let known = |name: &str| {
        spec.replicas
            .iter()
            .any(|replica| replica.node_name == name)
    };
    if key == "preferred-primary" && !value.is_empty() && !known(value) {
        return Err(refuse(
            "option_value",
            format!("{value} holds no replica of the volume"),
            "Name a node that holds one, or reset the option.",
        ));
    }
    Ok(())
}

fn option_refusal(error: &OptionError) -> Refusal {
    match error {
        OptionError::Unknown {
            nearest: Some(near),
            ..
        } => refuse_usage("option", error, &format!("Did you mean `{near}`?")),
        OptionError::Unknown { .. } => refuse_usage("option", error, "See `cairn volume options`."),
        OptionError::Value { .. } => {
            refuse_usage("option_value", error, "See `cairn volume options`.")
        }
    }
}

fn value_of(spec: &VolumeSpec, key: &str) -> String {
    match key {
        "protocol" => match spec.protocol {
            Protocol::A => "A".to_owned(),
            Protocol::B => "B".to_owned(),
            Protocol::C => "C".to_owned(),
        },
        "quorum" => match spec.quorum {
            Quorum::Majority => "majority".to_owned(),
            Quorum::Off => "off".to_owned(),
        },
        "size" => spec
            .size_bytes
            .map_or_else(String::new, |bytes| bytes.to_string()),
        _ => Options::new(&spec.options).text(key),
    }
}
