//! Options of volumes: set, read, reset; what more than the table's rules stands in the way.

use std::collections::BTreeMap;
use std::sync::Arc;

use protocol::node_rpc::{Refusal, VolumeCommand};
use protocol::options::{self, Effect, OptionError, Options, parse_size};
use protocol::report::{ConnectionState, DiskState, ReplicaRole};
use protocol::volume::{Protocol, Quorum, VolumeKind, VolumeSpec, VolumeState};

use super::Node;
use super::refusal::{refuse, refuse_loss, refuse_usage};
use super::serve::{no_volume, not_started};
use super::volumes::volume_of;
use crate::raft::{MAJORITY_VOTERS_MIN, PoolCommand, PoolState};

impl Node {
    /// Sets an option.
    pub(crate) async fn set_option(
        self: &Arc<Self>,
        name: &str,
        key: &str,
        value: &str,
        force: bool,
    ) -> Result<String, Refusal> {
        let state = self.pool.state();
        let mut spec = volume_of(&state, name)?;
        let rule = options::rule(key).map_err(|error| option_refusal(&error))?;
        let value = rule
            .normalize(value)
            .map_err(|error| option_refusal(&error))?;
        let effect = rule.effect(&value);
        match key {
            "protocol" => spec.protocol = protocol_of(&value),
            "quorum" if value == "majority" => {
                if spec.quorum != Quorum::Majority {
                    self.ready_for_majority(&spec).await?;
                }
                spec.quorum = Quorum::Majority;
            }
            "quorum" => spec.quorum = Quorum::Off,
            "size" => spec.size_bytes = Some(self.resized(&spec, &value, force).await?),
            _ => {
                check_option(&spec, key, &value)?;
                spec.options.insert(key.to_owned(), value.clone());
            }
        }
        self.update(spec).await?;
        let note = match effect {
            Effect::Later => "; this version does not act on it yet",
            _ => "",
        };
        Ok(format!("{key} of volume `{name}` is {value}{note}"))
    }

    /// The new size of a block volume's disk.
    async fn resized(
        self: &Arc<Self>,
        spec: &VolumeSpec,
        value: &str,
        force: bool,
    ) -> Result<u64, Refusal> {
        let bytes = resized(spec, value, force)?;
        // Of one that is not served nobody knows; what is too long for a brick is refused as it is
        // written.
        if spec.state == VolumeState::Started {
            let fits = VolumeCommand::FitsDisk { bytes };
            self.command_volume(&spec.name, fits).await?;
        }
        Ok(bytes)
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
            .zip(spec.members())
            .find(|(replica, _)| replica.role == Some(ReplicaRole::Primary))
            .map(|(_, (place, _))| place);
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
            in_sync: spec.member_mask(),
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
        options::rule(key).map_err(|error| option_refusal(&error))?;
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
        let value = value_of(&spec, key);
        self.update(spec).await?;
        Ok(format!("{key} of volume `{name}` is {value}"))
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
}

pub(super) fn too_few_voters(state: &PoolState) -> Refusal {
    refuse(
        "too_few_voters",
        format!(
            "`quorum=majority` needs {MAJORITY_VOTERS_MIN} voting nodes; the pool has {}",
            state.voters()
        ),
        "Probe a third node (it needs no brick), or say `--quorum off`.",
    )
}

fn protocol_of(value: &str) -> Protocol {
    match value {
        "A" => Protocol::A,
        "B" => Protocol::B,
        _ => Protocol::C,
    }
}

fn resized(spec: &VolumeSpec, value: &str, force: bool) -> Result<u64, Refusal> {
    let bytes = parse_size(value).unwrap_or(0);
    match spec.size_bytes {
        None => Err(refuse(
            "size_needless",
            "a file system volume has no size of its own",
            "It is as large as its smallest brick.",
        )),
        Some(_) if !bytes.is_multiple_of(4096) => Err(refuse(
            "size",
            format!("a disk of {bytes} bytes cannot be"),
            "Take a multiple of 4096 bytes.",
        )),
        Some(now) if bytes < now && !force => Err(refuse_loss(
            "size_cut",
            format!(
                "volume `{}` has {now} bytes: the last {} bytes of its disk, from byte {bytes} on, \
                 would be cut off, and whatever is there",
                spec.name,
                now - bytes
            ),
            "Shrink what is on the disk first, then say it again with `--force`.",
        )),
        Some(_) => Ok(bytes),
    }
}

fn check_option(spec: &VolumeSpec, key: &str, value: &str) -> Result<(), Refusal> {
    if key == "min-in-sync"
        && value
            .parse::<usize>()
            .is_ok_and(|min| min > spec.members().count())
    {
        return Err(refuse(
            "option_value",
            format!("the volume has {} replicas only", spec.members().count()),
            "Take a smaller number: below it, writes wait.",
        ));
    }
    if key == "root-squash" && value == "on" && spec.kind == VolumeKind::Block {
        return Err(refuse(
            "option_value",
            "a disk knows no users, so there is nothing to keep root from",
            "Say who may reach it: `auth.allow`, `cairn client add --volume`.",
        ));
    }
    let known = |name: &str| spec.members().any(|(_, replica)| replica.node_name == name);
    let named = match key {
        "preferred-primary" => Some(value).filter(|name| !name.is_empty()),
        "split-brain-policy" => value.strip_prefix("prefer="),
        _ => None,
    };
    if let Some(name) = named.filter(|name| !known(name)) {
        return Err(refuse(
            "option_value",
            format!("{name} holds no replica of the volume"),
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
