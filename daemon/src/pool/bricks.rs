//! Bricks that come and go while the volume is used (ADR 0011).
//!
//! A brick that is added is prepared first; with the pool's agreement it is a replica, which the
//! primary fills. A brick that is removed is first agreed to be on its way out; when the primary
//! has let go of it, the primary's node has the pool agree that it is gone (`manager`). So nothing
//! is left half done by whoever dies in between.

use std::sync::Arc;
use std::time::Duration;

use protocol::control::{BrickPlace, ChangeBricks};
use protocol::ids::BrickId;
use protocol::node_rpc::{Refusal, VolumeCommand};
use protocol::options::Options;
use protocol::report::{DiskState, ReplicaStatus, VolumeStatus};
use protocol::volume::{REPLICAS_MAX, ReplicaSpec, VolumeSpec, VolumeState};

use super::Node;
use super::create::{check_distinct, check_path};
use super::refusal::{refuse, refuse_loss};
use super::serve::not_started;
use super::volumes::volume_of;
use crate::events::Severity;
use crate::raft::{PoolCommand, PoolOutcome};

/// How long a command waits for the last step of a removal, which the primary's node takes.
const REMOVED_WITHIN: Duration = Duration::from_secs(5);

/// What was agreed, for whoever waits for the data.
pub(crate) struct Changed {
    /// One sentence.
    pub(crate) text: String,
    /// Nodes whose new brick is to be filled.
    pub(crate) filling: Vec<String>,
}

impl Node {
    /// `add-brick`, `remove-brick`, `replace-brick`.
    pub(crate) async fn change_bricks(
        self: &Arc<Self>,
        change: &ChangeBricks,
    ) -> Result<Changed, Refusal> {
        let state = self.pool.state();
        let spec = volume_of(&state, &change.name)?;
        if spec.layout.leaving != 0 {
            return Err(refuse(
                "change_in_progress",
                format!(
                    "volume `{}` has a brick on its way out already",
                    change.name
                ),
                &format!("Look at `cairn volume status {}`.", change.name),
            ));
        }
        check_count(&spec, change)?;
        let leaving = self.leaving_places(&spec, &change.remove).await?;
        let mut next = spec.clone();
        let mut added = Vec::new();
        for brick in &change.add {
            check_path(&brick.path)?;
            let (node, node_name) = self.resolve(&state, brick).await?;
            let replica = ReplicaSpec {
                node,
                node_name,
                path: brick.path.trim_end_matches('/').to_owned(),
                brick: BrickId(rand::random()),
            };
            added.push(place_of_new(&mut next, replica)?);
        }
        let staying: Vec<ReplicaSpec> = next
            .members()
            .filter(|(place, _)| !leaving.contains(place))
            .map(|(_, replica)| replica.clone())
            .collect();
        check_distinct(&staying)?;
        next.layout.version += 1;
        for place in &leaving {
            next.layout.leaving |= 1 << place;
        }
        if !leaving.is_empty() {
            self.may_leave(&spec, &leaving, change.force).await?;
        }
        self.prepare_places(&next, &added, change.force).await?;
        self.commit_change(&spec, &next, &added).await?;
        let removed = leaving.is_empty() || self.wait_removed(&spec, &leaving).await;
        let late = if removed && !leaving.is_empty() {
            // Two changes were agreed: on its way out, and gone.
            self.settle_everywhere(&spec, Some(spec.version + 2)).await
        } else {
            String::new()
        };
        let text = told(&next, &added, &leaving, removed);
        if !added.is_empty() {
            let (kind, name) = ("brick_added", Some(spec.name.as_str()));
            self.events.record(Severity::Info, kind, name, &text);
        }
        Ok(Changed {
            text: format!("{text}{late}"),
            filling: added
                .iter()
                .map(|place| next.replicas[*place].node_name.clone())
                .collect(),
        })
    }

    async fn leaving_places(
        &self,
        spec: &VolumeSpec,
        bricks: &[BrickPlace],
    ) -> Result<Vec<usize>, Refusal> {
        let state = self.pool.state();
        let mut leaving = Vec::new();
        for brick in bricks {
            let path = brick.path.trim_end_matches('/');
            // A node that was detached is known by the volume alone.
            let node = self.resolve(&state, brick).await.map(|(node, _)| node);
            let found = spec.members().find(|(_, replica)| {
                let same = node.as_ref().is_ok_and(|node| *node == replica.node);
                (same || replica.node_name == brick.host) && replica.path == path
            });
            let Some((place, _)) = found.filter(|(place, _)| !leaving.contains(place)) else {
                let bricks: Vec<String> = spec.members().map(|(_, place)| name(place)).collect();
                return Err(refuse(
                    "no_brick",
                    format!(
                        "{}:{path} is no brick of volume `{}`",
                        brick.host, spec.name
                    ),
                    &format!("Its bricks are {}.", bricks.join(", ")),
                ));
            };
            leaving.push(place);
        }
        Ok(leaving)
    }

    /// A brick may go only if another one that stays has everything (BAD-5). The role is moved
    /// away first.
    async fn may_leave(
        self: &Arc<Self>,
        spec: &VolumeSpec,
        leaving: &[usize],
        force: bool,
    ) -> Result<(), Refusal> {
        if spec.state != VolumeState::Started {
            return Err(not_started(&spec.name));
        }
        let status = self.volumes_status(Some(&spec.name)).await;
        let Some(status) = status.first().filter(|status| status.primary.is_some()) else {
            return Err(refuse(
                "no_primary",
                format!(
                    "volume `{}` has no primary that answers, so nobody knows which bricks have \
                     everything",
                    spec.name
                ),
                &format!("Look at `cairn why {}`.", spec.name),
            ));
        };
        let heir = check_copies(spec, status, leaving, force)?;
        let goes = |place: &usize| {
            let told = told_of(spec, status, *place).map(|replica| &replica.node);
            told.is_some() && told == status.primary.as_ref()
        };
        if leaving.iter().any(goes) {
            let command = VolumeCommand::Promote {
                to: heir,
                force: false,
            };
            self.command_volume(&spec.name, command).await?;
        }
        Ok(())
    }

    async fn commit_change(
        self: &Arc<Self>,
        spec: &VolumeSpec,
        next: &VolumeSpec,
        added: &[usize],
    ) -> Result<(), Refusal> {
        let command = PoolCommand::UpdateVolume {
            spec: next.clone(),
            expected_version: spec.version,
        };
        match self.pool.propose_widely(command).await {
            Ok(PoolOutcome::Applied { .. }) => Ok(()),
            Ok(PoolOutcome::Refused(reason)) => {
                self.abort_places(next, added).await;
                Err(refuse("conflict", reason, "Try again."))
            }
            // It may still be agreed on: what was prepared for it stays.
            Err(refusal) => Err(Refusal {
                message: format!(
                    "{}; whether the bricks of volume `{}` change is not known",
                    refusal.message, spec.name
                ),
                hint: format!(
                    "Look at `cairn volume info {}` once the pool has its majority. {}",
                    spec.name, refusal.hint
                ),
                ..refusal
            }),
        }
    }

    /// Waits until the primary's node had the bricks removed. False: it will.
    async fn wait_removed(&self, spec: &VolumeSpec, leaving: &[usize]) -> bool {
        let mut state = self.pool.subscribe();
        let removed = state.wait_for(|state| {
            state.volumes.get(&spec.id).is_none_or(|now| {
                leaving.iter().all(|place| {
                    let brick = spec.replicas[*place].brick;
                    now.members().all(|(_, replica)| replica.brick != brick)
                })
            })
        });
        tokio::time::timeout(REMOVED_WITHIN, removed)
            .await
            .is_ok_and(|seen| seen.is_ok())
    }
}

fn name(replica: &ReplicaSpec) -> String {
    format!("{}:{}", replica.node_name, replica.path)
}

/// What is told of the replica at a place: status names members only.
pub(super) fn told_of<'s>(
    spec: &VolumeSpec,
    status: &'s VolumeStatus,
    place: usize,
) -> Option<&'s ReplicaStatus> {
    let at = spec.members().position(|(member, _)| member == place)?;
    status.replicas.get(at)
}

/// `replica N` says how many there are afterwards.
fn check_count(spec: &VolumeSpec, change: &ChangeBricks) -> Result<(), Refusal> {
    let now = spec.members().count();
    let (added, removed) = (change.add.len(), change.remove.len());
    if removed > now || now + added - removed == 0 {
        return Err(refuse(
            "replica_count",
            format!(
                "volume `{}` has {now} bricks: one at least stays",
                spec.name
            ),
            "To give up all of it, stop and delete the volume.",
        ));
    }
    let after = now + added - removed;
    if after > REPLICAS_MAX {
        return Err(refuse(
            "replica_count",
            format!("a volume has 1 to {REPLICAS_MAX} replicas, not {after}"),
            "Remove a brick first.",
        ));
    }
    let least = Options::new(&spec.options).count("min-in-sync");
    if after < now && (after as u64) < least {
        return Err(refuse(
            "min_in_sync",
            format!("with {after} replicas writes would wait: min-in-sync is {least}"),
            &format!(
                "Lower it first: `cairn volume set {} min-in-sync {after}`.",
                spec.name
            ),
        ));
    }
    match change.replica {
        Some(said) if said != after => Err(refuse(
            "brick_count",
            format!(
                "volume `{}` has {now} replicas now and {after} afterwards, not {said}",
                spec.name
            ),
            &format!("Say `replica {after}`, or name other bricks."),
        )),
        _ => Ok(()),
    }
}

/// A place for a new brick: one that nobody had, else one whose brick was removed.
fn place_of_new(spec: &mut VolumeSpec, replica: ReplicaSpec) -> Result<usize, Refusal> {
    if spec.replicas.len() < REPLICAS_MAX {
        spec.replicas.push(replica);
        return Ok(spec.replicas.len() - 1);
    }
    let free = (0..REPLICAS_MAX).find(|place| !spec.is_member(*place));
    let Some(place) = free else {
        return Err(refuse(
            "replica_count",
            format!(
                "all {REPLICAS_MAX} places of volume `{}` are taken",
                spec.name
            ),
            "Remove a brick first, then add the new one.",
        ));
    };
    spec.replicas[place] = replica;
    spec.layout.removed &= !(1 << place);
    Ok(place)
}

/// Which replicas that stay have everything: one at least, all unless forced. Returns the best one
/// for the role.
fn check_copies(
    spec: &VolumeSpec,
    status: &VolumeStatus,
    leaving: &[usize],
    force: bool,
) -> Result<usize, Refusal> {
    let whole = |place: usize| {
        told_of(spec, status, place).is_some_and(|replica| {
            replica.in_sync == Some(true) && replica.disk == DiskState::UpToDate
        })
    };
    let staying = spec.members().filter(|(place, _)| !leaving.contains(place));
    let (good, bad): (Vec<_>, Vec<_>) = staying.partition(|(place, _)| whole(*place));
    let names = |replicas: &[(usize, &ReplicaSpec)]| {
        let names: Vec<String> = replicas.iter().map(|(_, replica)| name(replica)).collect();
        names.join(", ")
    };
    let going: Vec<_> = spec
        .members()
        .filter(|(place, _)| leaving.contains(place))
        .collect();
    let Some((heir, _)) = good.first().copied() else {
        return Err(refuse_loss(
            "last_copy",
            format!(
                "the last good copy of volume `{}` would be lost with {}: no brick that stays has \
                 everything",
                spec.name,
                names(&going)
            ),
            &format!(
                "Add a brick and wait until it has the data: `cairn volume add-brick {} replica N \
                 HOST:/path --wait`.",
                spec.name
            ),
        ));
    };
    let keeps = |(place, _): &(usize, _)| {
        told_of(spec, status, *place).is_some_and(|replica| !replica.kept.is_empty())
    };
    let keepers: Vec<_> = going.iter().copied().filter(keeps).collect();
    if !keepers.is_empty() && !force {
        return Err(refuse_loss(
            "given_up",
            format!(
                "what {} keeps of a side that was given up could not be read any more",
                names(&keepers)
            ),
            &format!(
                "Look at `cairn volume split-brain {} list`; copy it out, or add the word `force`.",
                spec.name
            ),
        ));
    }
    if !bad.is_empty() && !force {
        return Err(refuse_loss(
            "fewer_copies",
            format!(
                "without {}, only {} would hold everything that was written: {} is not in sync",
                names(&going),
                names(&good),
                names(&bad)
            ),
            "Wait until it is (`cairn volume resync --wait`), or add the word `force`.",
        ));
    }
    Ok(heir)
}

fn told(next: &VolumeSpec, added: &[usize], leaving: &[usize], removed: bool) -> String {
    let names = |places: &[usize]| {
        let names: Vec<String> = places.iter().map(|p| name(&next.replicas[*p])).collect();
        names.join(", ")
    };
    let mut parts = Vec::new();
    if !added.is_empty() {
        parts.push(format!("{} was added and is being filled", names(added)));
    }
    match (leaving.is_empty(), removed) {
        (true, _) => {}
        (false, true) => parts.push(format!(
            "{} was removed; its data stays there until `cairn brick wipe`",
            names(leaving)
        )),
        (false, false) => parts.push(format!(
            "{} is on its way out and will be removed when the primary has let go of it",
            names(leaving)
        )),
    }
    format!("volume `{}`: {}", next.name, parts.join("; "))
}

#[cfg(test)]
#[path = "bricks_tests.rs"]
mod tests;
