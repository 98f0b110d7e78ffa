//! `cairn status`, `cairn why` and the text of `volume status`.

use std::time::Duration;

use protocol::control::{ControlRequest, exit};
use protocol::report::{
    ConnectionState, DiskState, Health, PeerStatus, PoolStatus, ReplicaRole, ReplicaStatus,
    VolumeStatus,
};
use protocol::volume::VolumeState;
use serde_json::Value;

use super::{ask, peer, typed};
use crate::args::Global;
use crate::failure::Failure;
use crate::output::{Output, bytes_text, table};

/// How often `--watch` looks.
const WATCH_EVERY: Duration = Duration::from_secs(1);

fn exit_of(health: Health) -> u8 {
    match health {
        Health::Healthy => exit::DONE,
        Health::Degraded => exit::DEGRADED,
        Health::Unavailable => exit::UNAVAILABLE,
    }
}

/// `cairn status`.
pub(super) fn pool(global: &Global, output: &Output, watch: bool) -> Result<u8, Failure> {
    let mut before = None;
    loop {
        let answer = ask(global, output, &ControlRequest::Status {})?;
        let status: PoolStatus = typed(&answer.data)?;
        let text = if output.json {
            answer.data.to_string()
        } else {
            pool_text(output, &status)
        };
        if before.as_ref() != Some(&text) {
            output.line(&text);
        }
        if !watch {
            return Ok(exit_of(status.health));
        }
        before = Some(text);
        std::thread::sleep(WATCH_EVERY);
    }
}

fn pool_text(output: &Output, status: &PoolStatus) -> String {
    let peers = PeerStatus {
        nodes: status.nodes.clone(),
        quorum: status.quorum,
    };
    let mut parts = vec![
        format!("The pool is {}.", health_text(output, status.health)),
        peer::nodes_text(&peers),
    ];
    parts.extend(status.volumes.iter().map(|v| volume_text(output, v)));
    parts.join("\n\n")
}

/// `cairn why`.
pub(super) fn why(global: &Global, output: &Output, volume: Option<String>) -> Result<u8, Failure> {
    let answer = ask(global, output, &ControlRequest::Why { volume })?;
    if output.json {
        output.value(&answer.data);
        return Ok(exit::DONE);
    }
    let reasons = answer.data["reasons"].as_array();
    let reasons: &[Value] = reasons.map_or(&[], Vec::as_slice);
    if reasons.is_empty() {
        output.line("Everything is healthy.");
    }
    for reason in reasons {
        let about = reason["volume"].as_str().unwrap_or("pool");
        let why = reason["reason"]
            .as_str()
            .unwrap_or("the reason is not known");
        output.line(&format!("{about}: {why}"));
    }
    Ok(exit::DONE)
}

fn health_text(output: &Output, health: Health) -> String {
    match health {
        Health::Healthy => output.paint("32", "healthy"),
        Health::Degraded => output.paint("33", "degraded"),
        Health::Unavailable => output.paint("31", "unavailable"),
    }
}

fn state_text(state: VolumeState) -> &'static str {
    match state {
        VolumeState::Created => "created",
        VolumeState::Started => "started",
        VolumeState::Stopped => "stopped",
    }
}

/// One volume.
pub(super) fn volume_text(output: &Output, volume: &VolumeStatus) -> String {
    let reason = volume
        .reason
        .as_ref()
        .map_or_else(String::new, |reason| format!(": {reason}"));
    let mut lines = vec![format!(
        "Volume {} is {}, {}{reason}",
        volume.name,
        state_text(volume.state),
        health_text(output, volume.health),
    )];
    let rows: Vec<Vec<String>> = volume.replicas.iter().map(replica_row).collect();
    lines.push(table(
        &["NODE", "BRICK", "ROLE", "DISK", "CONNECTION", "OUT OF SYNC"],
        &rows,
    ));
    for replica in &volume.replicas {
        if let (Some(role), Some(reason)) = (replica.role, &replica.role_reason) {
            lines.push(format!("{} is {}: {reason}", replica.node, role_text(role)));
        }
    }
    for replica in &volume.replicas {
        if let Some(resync) = &replica.resync {
            lines.push(format!(
                "Resync of {}: {} of {}, {}",
                replica.node,
                bytes_text(resync.done_bytes),
                bytes_text(resync.total_bytes),
                resync
                    .eta_seconds
                    .map_or_else(|| "time left unknown".to_owned(), |s| format!("{s} s left")),
            ));
        }
        if let (Some(bytes @ 1..), Some(seconds)) = (replica.lag_bytes, replica.lag_seconds) {
            lines.push(format!(
                "{} lacks {} of what is confirmed, the oldest for {seconds:.1} s",
                replica.node,
                bytes_text(bytes)
            ));
        }
    }
    for replica in &volume.replicas {
        if let Some(point) = &replica.point {
            lines.push(format!(
                "{} can go back to its state as of {}",
                replica.node, point.as_of
            ));
        }
        for kept in &replica.kept {
            lines.push(format!(
                "{} keeps what it held alone as of {} until it is dropped",
                replica.node, kept.as_of
            ));
        }
    }
    if let (Some(used), Some(free)) = (volume.used_bytes, volume.free_bytes) {
        lines.push(format!(
            "{} used, {} free",
            bytes_text(used),
            bytes_text(free)
        ));
    }
    if !volume.clients.is_empty() {
        let names: Vec<&str> = volume.clients.iter().map(|c| c.name.as_str()).collect();
        lines.push(format!("Clients: {}", names.join(", ")));
    }
    if let Some(split) = &volume.split_brain {
        lines.push(output.paint(
            "31",
            &format!(
                "Split brain since {} between {}",
                split.since,
                split.nodes.join(", ")
            ),
        ));
    }
    lines.extend(volume.notes.iter().map(|note| format!("Note: {note}")));
    lines.join("\n")
}

fn role_text(role: ReplicaRole) -> &'static str {
    match role {
        ReplicaRole::Primary => "primary",
        ReplicaRole::Secondary => "secondary",
    }
}

fn replica_row(replica: &ReplicaStatus) -> Vec<String> {
    let role = replica.role.map_or("unknown", role_text);
    let disk = match replica.disk {
        DiskState::UpToDate => "up_to_date",
        DiskState::Consistent => "consistent",
        DiskState::Outdated => "outdated",
        DiskState::Inconsistent => "inconsistent",
        DiskState::Failed => "failed",
        DiskState::Diskless => "diskless",
        DiskState::Unknown => "unknown",
    };
    let connection = match replica.connection {
        ConnectionState::Connected => "connected",
        ConnectionState::Connecting => "connecting",
        ConnectionState::Standalone => "standalone",
        ConnectionState::Own => "self",
    };
    vec![
        replica.node.clone(),
        replica.brick.clone(),
        role.to_owned(),
        disk.to_owned(),
        connection.to_owned(),
        replica
            .out_of_sync_bytes
            .map_or_else(|| "unknown".to_owned(), bytes_text),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_4_a_role_is_shown_with_the_reason_for_which_it_was_given() {
        let replica = |node: &str, role: &str, reason: Value| {
            serde_json::json!({
                "node": node, "brick": "/b", "role": role, "role_reason": reason,
                "disk": "up_to_date", "reason": null, "connection": "connected", "in_sync": true,
                "out_of_sync_bytes": 0, "lag_bytes": 0, "lag_seconds": 0.0, "resync": null,
                "last_resync": null, "kept": [],
            })
        };
        let volume = serde_json::json!({
            "name": "v1", "id": "07".repeat(16), "type": "fs", "state": "started",
            "protocol": "C", "quorum": "off", "health": "healthy", "reason": null,
            "notes": [], "primary": "node1", "term": 3, "generation": null, "size_bytes": null,
            "used_bytes": null, "free_bytes": null, "clients": [], "split_brain": null,
            "replicas": [
                replica("node1", "primary", "it fenced the last primary".into()),
                replica("node2", "secondary", "handed its role over".into()),
                replica("node3", "secondary", Value::Null),
            ],
        });
        let volume: VolumeStatus = serde_json::from_value(volume).expect("a volume's status");
        let text = volume_text(&Output::unparsed(&[]), &volume);
        for said in [
            "node1 is primary: it fenced the last primary",
            "node2 is secondary: handed its role over",
        ] {
            assert!(text.contains(said), "{said} is not in: {text}");
        }
        assert!(!text.contains("node3 is secondary:"), "{text}");
    }
}
