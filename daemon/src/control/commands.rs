//! What each command of the control socket does.

use std::sync::Arc;
use std::time::Duration;

use protocol::control::{ControlReply, ControlRequest};
use protocol::node_rpc::{Refusal, VolumeCommand};
use protocol::report::{DiskState, Health, NodeState, ReplicaStatus, VolumesStatus};
use protocol::volume::{VolumeSpec, VolumeState};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;

use super::Replies;
use crate::pool::{Caller, Node, refuse, volume_of};

/// How often `--wait` looks.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// One sentence for people, and the facts.
struct Done {
    message: Option<String>,
    data: Value,
}

fn said(message: String) -> Done {
    Done {
        data: json!({ "message": message }),
        message: Some(message),
    }
}

fn facts(value: &impl Serialize) -> Result<Done, Refusal> {
    let data = serde_json::to_value(value).map_err(|error| {
        refuse(
            "internal",
            format!("the answer cannot be written: {error}"),
            "Look at the daemon's log.",
        )
    })?;
    Ok(Done {
        message: None,
        data,
    })
}

/// Runs one command and sends its lines; the last is `ok` or `error`.
pub(super) async fn run(node: Arc<Node>, request: ControlRequest, replies: Replies) {
    let reply = match dispatch(&node, request, &replies).await {
        Ok(Done { message, data }) => ControlReply::Ok { message, data },
        Err(refusal) => refusal.into(),
    };
    // An error only says that the asker is gone.
    let _ = replies.send(reply).await;
}

async fn dispatch(
    node: &Arc<Node>,
    request: ControlRequest,
    replies: &Replies,
) -> Result<Done, Refusal> {
    match request {
        ControlRequest::Ping {} => facts(&json!({ "name": node.name, "id": node.id })),
        ControlRequest::PeerCode {} => peer_code(node).await,
        ControlRequest::PeerProbe {
            address,
            code,
            voter,
        } => peer_probe(node, &address, code.as_deref(), voter).await,
        ControlRequest::PeerDetach { node: name, force } => {
            node.detach(&name, force).await.map(said)
        }
        ControlRequest::PeerLeave { force } => node.leave(force).await.map(said),
        ControlRequest::PeerVoter { node: name, voter } => {
            node.set_voter(&name, voter).await.map(said)
        }
        ControlRequest::ClientAdd {
            name,
            volumes,
            read_only,
        } => client_add(node, &name, &volumes, read_only).await,
        ControlRequest::ClientList {} => facts(&json!({ "clients": node.list_clients() })),
        ControlRequest::ClientRevoke { name } => node.revoke_client(&name).await.map(said),
        ControlRequest::PeerStatus {} => facts(&node.peer_status().await),
        ControlRequest::Status {} => facts(&node.pool_status().await),
        ControlRequest::Why { volume } => why(node, volume.as_deref()).await,
        ControlRequest::Events { follow } => events(node, follow, replies).await,
        ControlRequest::Locate { volume } => facts(&node.locate(&volume, Caller::Local).await?),
        other => dispatch_volume(node, other, replies).await,
    }
}

// A table: one row a request.
async fn dispatch_volume(
    node: &Arc<Node>,
    request: ControlRequest,
    replies: &Replies,
) -> Result<Done, Refusal> {
    match request {
        ControlRequest::VolumeCreate(create) => node.create_volume(create).await.map(said),
        ControlRequest::VolumeBricks(change) => {
            let changed = node.change_bricks(&change).await?;
            if change.wait {
                wait_for_bricks(node, &change.name, &changed.filling, replies).await?;
            }
            Ok(said(changed.text))
        }
        ControlRequest::VolumeStart { name } => node.start_volume(&name).await.map(said),
        ControlRequest::VolumeStop { name } => node.stop_volume(&name).await.map(said),
        ControlRequest::VolumeDelete { name } => node.delete_volume(&name).await.map(said),
        ControlRequest::VolumeList {} => list(node),
        ControlRequest::VolumeInfo { name } => info(node, name.as_deref()),
        ControlRequest::VolumeStatus { name } => {
            let state = node.pool.state();
            if let Some(name) = &name {
                volume_of(&state, name)?;
            }
            let volumes = node.volumes_status(name.as_deref()).await;
            facts(&VolumesStatus { volumes })
        }
        ControlRequest::VolumeExport {
            name,
            nbd,
            node: at,
            insecure,
        } => {
            let data = node
                .export_volume(&name, nbd, at.as_deref(), insecure)
                .await?;
            let uri = data["uri"].as_str().unwrap_or_default();
            let message = format!("volume `{name}` is served at {uri}");
            Ok(Done {
                message: Some(message),
                data,
            })
        }
        ControlRequest::VolumeUnexport {
            name,
            nbd,
            node: at,
        } => node
            .unexport_volume(&name, nbd, at.as_deref())
            .await
            .map(said),
        ControlRequest::VolumeSet {
            name,
            key,
            value,
            force,
        } => node.set_option(&name, &key, &value, force).await.map(said),
        ControlRequest::VolumeGet { name, key } => {
            facts(&json!({ "options": node.get_options(&name, key.as_deref())? }))
        }
        ControlRequest::VolumeReset { name, key } => {
            node.reset_option(&name, key.as_deref()).await.map(said)
        }
        ControlRequest::VolumePromote {
            name,
            node: to,
            force,
        } => {
            let to_index = node.replica_named(&name, &to)?;
            let command = VolumeCommand::Promote {
                to: to_index,
                force,
            };
            let data = if force {
                node.command_replica(&name, to_index, command).await?
            } else {
                node.command_volume(&name, command).await?
            };
            let message = match data["message"].as_str() {
                Some(besides) => format!("{to} is primary of volume `{name}`: {besides}"),
                None => format!("{to} is primary of volume `{name}`"),
            };
            Ok(Done {
                message: Some(message),
                data,
            })
        }
        ControlRequest::VolumeResolve { name, keep, force } => {
            let index = node.replica_named(&name, &keep)?;
            node.may_resolve(&name, &keep, force).await?;
            let data = node
                .command_replica(&name, index, VolumeCommand::KeepSide {})
                .await?;
            Ok(Done {
                message: Some(format!(
                    "{keep} is primary of volume `{name}`; the others take over what it holds"
                )),
                data,
            })
        }
        ControlRequest::VolumeDropKept {
            name,
            node: of,
            force,
        } => {
            let index = node.replica_named(&name, &of)?;
            node.may_drop_kept(&name, index, force).await?;
            let data = node
                .command_replica(&name, index, VolumeCommand::DropKept {})
                .await?;
            Ok(Done {
                message: Some(format!("{of} keeps nothing that was given up any more")),
                data,
            })
        }
        ControlRequest::VolumeDifferences { name, max } => {
            facts(&node.differences(&name, max).await?)
        }
        ControlRequest::VolumeResync {
            name,
            node: only,
            full,
            wait,
            force,
        } => {
            if force {
                node.resync_without_points(&name, only.as_deref()).await?;
            }
            resync(node, &name, only.as_deref(), full, wait, replies).await
        }
        ControlRequest::VolumePauseResync { name } => {
            let data = node
                .command_volume(&name, VolumeCommand::PauseResync)
                .await?;
            Ok(Done {
                message: Some(format!("resync of volume `{name}` is paused")),
                data,
            })
        }
        ControlRequest::VolumeResumeResync { name } => {
            let data = node
                .command_volume(&name, VolumeCommand::ResumeResync)
                .await?;
            Ok(Done {
                message: Some(format!("resync of volume `{name}` may go on")),
                data,
            })
        }
        ControlRequest::VolumeVerify { name, repair } => {
            let data = node
                .command_volume(&name, VolumeCommand::Verify { repair })
                .await?;
            Ok(Done {
                message: None,
                data,
            })
        }
        _ => Err(refuse(
            "request",
            "the daemon does not know this request",
            "Use the `cairn` of the same version as the daemon.",
        )),
    }
}

async fn client_add(
    node: &Arc<Node>,
    name: &str,
    volumes: &[String],
    read_only: bool,
) -> Result<Done, Refusal> {
    let token = node.add_client(name, volumes, read_only).await?;
    Ok(Done {
        message: Some(format!(
            "on {name}, within a day, and once: cairn client join {token}"
        )),
        data: json!({ "name": name, "token": token }),
    })
}

async fn peer_code(node: &Arc<Node>) -> Result<Done, Refusal> {
    node.check_fresh()?;
    if node.pool.state().entering {
        // An admission that never came to its end: begin anew.
        node.become_fresh("a new code was asked for").await;
    }
    let code = node.make_code();
    Ok(Done {
        message: Some(format!(
            "one-time code of {}, good for an hour: {code}",
            node.name
        )),
        data: json!({ "code": code, "name": node.name, "expires_seconds": 3600 }),
    })
}

async fn peer_probe(
    node: &Arc<Node>,
    address: &str,
    code: Option<&str>,
    voter: bool,
) -> Result<Done, Refusal> {
    let probed = node.probe(address, code, voter).await?;
    let votes = node
        .pool
        .member(probed.id)
        .is_some_and(|member| member.voter);
    let message = if probed.was_member {
        format!("{} ({}) is a member already", probed.name, probed.address)
    } else if votes {
        format!(
            "{} ({}) is in the pool and votes",
            probed.name, probed.address
        )
    } else {
        format!(
            "{} ({}) is in the pool and does not vote",
            probed.name, probed.address
        )
    };
    Ok(Done {
        data: json!({
            "name": probed.name, "address": probed.address, "id": probed.id,
            "was_member": probed.was_member, "voter": votes, "message": message,
        }),
        message: Some(message),
    })
}

fn list(node: &Arc<Node>) -> Result<Done, Refusal> {
    let state = node.pool.state();
    let mut names: Vec<&str> = state.volumes.values().map(|v| v.name.as_str()).collect();
    names.sort_unstable();
    facts(&json!({ "volumes": names }))
}

fn info_of(spec: &VolumeSpec) -> Value {
    let replicas: Vec<Value> = spec
        .members()
        .map(|(_, replica)| {
            json!({
                "node": replica.node_name, "node_id": replica.node,
                "brick": replica.path, "brick_id": replica.brick,
            })
        })
        .collect();
    json!({
        "name": spec.name, "id": spec.id, "type": spec.kind, "state": spec.state,
        "protocol": spec.protocol, "quorum": spec.quorum, "size_bytes": spec.size_bytes,
        "replicas": replicas, "options": spec.options, "version": spec.version,
    })
}

fn info(node: &Arc<Node>, name: Option<&str>) -> Result<Done, Refusal> {
    let state = node.pool.state();
    let mut specs: Vec<VolumeSpec> = match name {
        None | Some("all") => state.volumes.values().cloned().collect(),
        Some(name) => vec![volume_of(&state, name)?],
    };
    specs.sort_by(|a, b| a.name.cmp(&b.name));
    let volumes: Vec<Value> = specs.iter().map(info_of).collect();
    facts(&json!({ "volumes": volumes }))
}

async fn resync(
    node: &Arc<Node>,
    name: &str,
    only: Option<&str>,
    full: bool,
    wait: bool,
    replies: &Replies,
) -> Result<Done, Refusal> {
    let replica = only
        .map(|only| node.replica_named(name, only))
        .transpose()?;
    let data = node
        .command_volume(name, VolumeCommand::Resync { replica, full })
        .await?;
    if wait {
        wait_for_resync(node, name, replies).await?;
    }
    let message = if wait {
        format!("all replicas of volume `{name}` that answer are up to date")
    } else {
        format!("resync of volume `{name}` is under way where it is needed")
    };
    Ok(Done {
        message: Some(message),
        data,
    })
}

/// Waits until the new bricks are in sync and the old ones gone, however long that takes.
async fn wait_for_bricks(
    node: &Arc<Node>,
    name: &str,
    filling: &[String],
    replies: &Replies,
) -> Result<(), Refusal> {
    let mut last = String::new();
    loop {
        let spec = volume_of(&node.pool.state(), name)?;
        let status = node.volumes_status(Some(name)).await;
        let replicas = status.first().map_or(&[][..], |volume| &volume.replicas);
        let open = replicas
            .iter()
            .filter(|replica| filling.contains(&replica.node) && replica.in_sync != Some(true));
        let mut busy: Vec<String> = open.map(progress_of).collect();
        if spec.layout.leaving != 0 {
            busy.push("a brick is on its way out".to_owned());
        }
        if busy.is_empty() && !replicas.is_empty() {
            return Ok(());
        }
        if !show_progress(busy.join("; "), &mut last, replies).await {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn progress_of(replica: &ReplicaStatus) -> String {
    match &replica.resync {
        Some(resync) => format!(
            "{}: {} of {} bytes",
            replica.node, resync.done_bytes, resync.total_bytes
        ),
        None => format!("{}: waiting", replica.node),
    }
}

/// Tells how far it is, where that changed. False: nobody waits any more.
async fn show_progress(text: String, last: &mut String, replies: &Replies) -> bool {
    if text == *last {
        return true;
    }
    last.clone_from(&text);
    replies.send(ControlReply::Progress { text }).await.is_ok()
}

async fn wait_for_resync(node: &Arc<Node>, name: &str, replies: &Replies) -> Result<(), Refusal> {
    let mut last = String::new();
    loop {
        let status = node.volumes_status(Some(name)).await;
        let Some(volume) = status.first() else {
            volume_of(&node.pool.state(), name)?;
            continue;
        };
        let busy: Vec<String> = volume
            .replicas
            .iter()
            .filter(|replica| {
                replica.resync.is_some()
                    || !matches!(
                        replica.disk,
                        DiskState::UpToDate | DiskState::Unknown | DiskState::Failed
                    )
            })
            .map(progress_of)
            .collect();
        if busy.is_empty() {
            return Ok(());
        }
        if !show_progress(busy.join("; "), &mut last, replies).await {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn why(node: &Arc<Node>, only: Option<&str>) -> Result<Done, Refusal> {
    if let Some(name) = only {
        volume_of(&node.pool.state(), name)?;
    }
    let status = node.pool_status().await;
    let mut reasons = Vec::new();
    for volume in &status.volumes {
        if only.is_some_and(|only| only != volume.name) {
            continue;
        }
        if volume.state != VolumeState::Started && only.is_none() {
            continue;
        }
        if volume.health != Health::Healthy {
            reasons.push(json!({
                "volume": volume.name, "health": volume.health, "reason": volume.reason,
            }));
        }
        for note in &volume.notes {
            reasons.push(json!({ "volume": volume.name, "health": null, "reason": note }));
        }
    }
    if only.is_none() {
        for peer in &status.nodes {
            if peer.state == NodeState::Disconnected {
                let since = peer.last_seen.as_deref().map_or_else(
                    || "since this daemon's start".to_owned(),
                    |seen| format!("since {seen}"),
                );
                let reason = format!("{} ({}) does not answer {since}", peer.name, peer.address);
                reasons.push(json!({ "volume": null, "health": "degraded", "reason": reason }));
            }
        }
        for reason in node.twin_reasons() {
            reasons.push(json!({ "volume": null, "health": "degraded", "reason": reason }));
        }
        if !status.quorum {
            reasons.push(json!({
                "volume": null, "health": "degraded",
                "reason": "no majority of the voters is connected: configuration and roles cannot change",
            }));
        }
    }
    facts(&json!({ "health": status.health, "reasons": reasons }))
}

async fn events(node: &Arc<Node>, follow: bool, replies: &Replies) -> Result<Done, Refusal> {
    let (past, mut live) = node.events.follow();
    for event in past {
        if !send_item(replies, &event).await {
            return facts(&json!({}));
        }
    }
    if !follow {
        return facts(&json!({}));
    }
    loop {
        tokio::select! {
            event = live.recv() => match event {
                Ok(event) => {
                    if !send_item(replies, &event).await {
                        break;
                    }
                }
                Err(RecvError::Lagged(missed)) => {
                    let text = format!("{missed} events were missed: the reader is too slow");
                    if replies.send(ControlReply::Progress { text }).await.is_err() {
                        break;
                    }
                }
                Err(RecvError::Closed) => break,
            },
            () = replies.closed() => break,
        }
    }
    facts(&json!({}))
}

async fn send_item(replies: &Replies, item: &impl Serialize) -> bool {
    match serde_json::to_value(item) {
        Ok(value) => replies.send(ControlReply::Item(value)).await.is_ok(),
        Err(_) => true,
    }
}
