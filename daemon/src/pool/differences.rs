//! What differs between the sides of a split brain, and between a side that was given up and the
//! volume, put together from what the nodes know.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use protocol::node_rpc::{NAMES_MAX, Refusal, VolumeCommand};
use protocol::report::{Difference, Differences, PointReport, SplitBrainReport};
use protocol::units::ObjectId;
use protocol::volume::VolumeSpec;
use serde::Serialize;

use super::Node;
use super::volumes::volume_of;

/// Most rows of an answer.
const ROWS_MAX: usize = 4000;

/// A side that was given up and is kept.
#[derive(Debug, Serialize)]
pub(crate) struct KeptSide {
    /// Its node.
    node: String,
    /// What it is mounted as, from any node.
    mount: String,
    /// Its point.
    point: PointReport,
    #[serde(flatten)]
    differences: Differences,
    /// Why what differs is not known.
    unknown: Option<String>,
}

/// The answer of `volume split-brain NAME list`.
#[derive(Debug, Serialize)]
pub(crate) struct SplitBrain {
    split_brain: Option<SplitBrainReport>,
    /// Between the sides of the open split brain.
    #[serde(flatten)]
    differences: Differences,
    /// Why what differs is not known, of one side or both.
    unknown: Vec<String>,
    kept: Vec<KeptSide>,
}

impl Node {
    /// What differs, at most `max` rows a list.
    pub(crate) async fn differences(
        self: &Arc<Self>,
        name: &str,
        max: usize,
    ) -> Result<SplitBrain, Refusal> {
        let max = max.min(ROWS_MAX);
        let spec = volume_of(&self.pool.state(), name)?;
        let status = self.volumes_status(Some(name)).await;
        let status = status.first();
        let split_brain = status.and_then(|status| status.split_brain.clone());
        let mut unknown = Vec::new();
        let differences = match &split_brain {
            Some(split) => self.between(&spec, split, max, &mut unknown).await,
            None => Differences {
                complete: true,
                ..Differences::default()
            },
        };
        let mut kept = Vec::new();
        for replica in status.into_iter().flat_map(|status| &status.replicas) {
            for point in &replica.kept {
                kept.push(self.kept_side(&spec, &replica.node, point, max).await);
            }
        }
        Ok(SplitBrain {
            split_brain,
            differences,
            unknown,
            kept,
        })
    }

    async fn ask_differences(
        self: &Arc<Self>,
        spec: &VolumeSpec,
        replica: usize,
        command: VolumeCommand,
    ) -> Result<Differences, String> {
        let answer = self.command_replica(&spec.name, replica, command).await;
        let value = answer.map_err(|refusal| refusal.message)?;
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    async fn kept_side(
        self: &Arc<Self>,
        spec: &VolumeSpec,
        node: &str,
        point: &PointReport,
        max: usize,
    ) -> KeptSide {
        let command = VolumeCommand::KeptDifferences {
            point: point.id,
            max,
        };
        let asked = match self.replica_named(&spec.name, node) {
            Ok(replica) => self.ask_differences(spec, replica, command).await,
            Err(refusal) => Err(refusal.message),
        };
        let (differences, unknown) = match asked {
            Ok(differences) => (differences, None),
            Err(reason) => (Differences::default(), Some(reason)),
        };
        KeptSide {
            node: node.to_owned(),
            mount: format!("{}@{node}@{}", spec.name, point.id),
            point: point.clone(),
            differences,
            unknown,
        }
    }

    /// What each of two sides changed, by the names that either has.
    async fn between(
        self: &Arc<Self>,
        spec: &VolumeSpec,
        split: &SplitBrainReport,
        max: usize,
        unknown: &mut Vec<String>,
    ) -> Differences {
        let sides: Vec<(usize, &String)> = split
            .nodes
            .iter()
            .filter_map(|node| Some((self.replica_named(&spec.name, node).ok()?, node)))
            .collect();
        let [(first, first_name), (second, second_name)] = sides[..] else {
            unknown.push("more than two sides went on: look at each of them".to_owned());
            return Differences::default();
        };
        let mut rows = BTreeSet::new();
        let (mut more, mut complete) = (0, true);
        for (side, name, other) in [(first, first_name, second), (second, second_name, first)] {
            let command = VolumeCommand::Differences { with: other, max };
            match self.ask_differences(spec, side, command).await {
                Ok(mut found) => {
                    self.name(spec, other, &mut found.differences).await;
                    rows.extend(found.differences);
                    more += found.more;
                    complete &= found.complete;
                }
                Err(reason) => {
                    unknown.push(format!("what {name} changed is not known: {reason}"));
                    complete = false;
                }
            }
        }
        let beyond = rows.len().saturating_sub(max) as u64;
        Differences {
            differences: rows.into_iter().take(max).collect(),
            more: more + beyond,
            complete,
        }
    }

    /// What one side has no name for any more, the other one may.
    async fn name(self: &Arc<Self>, spec: &VolumeSpec, other: usize, rows: &mut [Difference]) {
        let nameless = rows.iter().filter(|row| row.path.is_none());
        let objects: Vec<ObjectId> = nameless
            .map(|row| ObjectId(row.object))
            .take(NAMES_MAX)
            .collect();
        if objects.is_empty() {
            return;
        }
        let command = VolumeCommand::Names { objects };
        let Ok(value) = self.command_replica(&spec.name, other, command).await else {
            return; // it stays nameless
        };
        let names: BTreeMap<u64, String> = serde_json::from_value(value).unwrap_or_default();
        for row in rows.iter_mut().filter(|row| row.path.is_none()) {
            row.path = names.get(&row.object).cloned();
        }
    }
}
