//! `cairn volume`.

use std::time::Duration;

use protocol::control::{ControlRequest, exit};
use protocol::options;
use protocol::report::VolumesStatus;
use serde_json::Value;

use super::create::Change;
use super::{act, ask, create, split_brain, status, typed};
use crate::args::{Global, HealArg, SplitBrainAction, VolumeCommand};
use crate::failure::Failure;
use crate::output::{Output, bytes_text, table};

/// How often `--watch` looks.
const WATCH_EVERY: Duration = Duration::from_secs(1);

fn unless_all(name: Option<String>) -> Option<String> {
    name.filter(|name| name != "all")
}

pub(super) fn run(global: &Global, output: &Output, command: VolumeCommand) -> Result<u8, Failure> {
    let request = match command {
        VolumeCommand::List => return list(global, output),
        VolumeCommand::Info { name } => return info(global, output, unless_all(name)),
        VolumeCommand::Status { name, watch } => {
            return live(global, output, unless_all(name), watch);
        }
        VolumeCommand::Get { name, key } => return get(global, output, name, key),
        VolumeCommand::Options => return show_options(output),
        VolumeCommand::Verify { name, repair } => return verify(global, output, name, repair),
        VolumeCommand::Heal {
            name,
            what: Some(HealArg::Info),
        } => return heal_info(global, output, name),
        VolumeCommand::SplitBrain { name, action } => match action {
            Some(SplitBrainAction::Resolve { keep, force }) => {
                ControlRequest::VolumeResolve { name, keep, force }
            }
            Some(SplitBrainAction::Drop { node, force }) => {
                ControlRequest::VolumeDropKept { name, node, force }
            }
            Some(SplitBrainAction::Mount { node, dir, point }) => {
                return split_brain::mount(global, output, &name, &node, dir, point);
            }
            Some(SplitBrainAction::List { limit }) => {
                return split_brain::list(global, output, name, limit);
            }
            None => return split_brain::list(global, output, name, split_brain::ROWS),
        },
        VolumeCommand::Create(args) => create::request(args)?,
        VolumeCommand::AddBrick(args) => create::bricks(args, Change::Add)?,
        VolumeCommand::RemoveBrick(args) => create::bricks(args, Change::Remove)?,
        VolumeCommand::ReplaceBrick(args) => create::bricks(args, Change::Replace)?,
        other => simple(other),
    };
    act(global, output, &request)
}

/// Commands that say what they did and no more.
fn simple(command: VolumeCommand) -> ControlRequest {
    match command {
        VolumeCommand::Start { name } => ControlRequest::VolumeStart { name },
        VolumeCommand::Stop { name } => ControlRequest::VolumeStop { name },
        VolumeCommand::Delete { name } => ControlRequest::VolumeDelete { name },
        VolumeCommand::Set {
            name,
            key,
            value,
            force,
        } => ControlRequest::VolumeSet {
            name,
            key,
            value,
            force,
        },
        VolumeCommand::Reset { name, key } => ControlRequest::VolumeReset { name, key },
        VolumeCommand::Export {
            name,
            nbd,
            node,
            insecure,
        } => ControlRequest::VolumeExport {
            name,
            nbd,
            node,
            insecure,
        },
        VolumeCommand::Unexport { name, nbd, node } => {
            ControlRequest::VolumeUnexport { name, nbd, node }
        }
        VolumeCommand::Promote { name, node, force } => {
            ControlRequest::VolumePromote { name, node, force }
        }
        VolumeCommand::Resync {
            name,
            node,
            full,
            wait,
            force,
        } => ControlRequest::VolumeResync {
            name,
            node,
            full,
            wait,
            force,
        },
        VolumeCommand::Heal { name, what } => ControlRequest::VolumeResync {
            name,
            node: None,
            full: what == Some(HealArg::Full),
            wait: false,
            force: false,
        },
        VolumeCommand::PauseResync { name } => ControlRequest::VolumePauseResync { name },
        VolumeCommand::ResumeResync { name } => ControlRequest::VolumeResumeResync { name },
        // The commands that print facts were taken out before.
        VolumeCommand::Create(_)
        | VolumeCommand::AddBrick(_)
        | VolumeCommand::RemoveBrick(_)
        | VolumeCommand::ReplaceBrick(_)
        | VolumeCommand::SplitBrain { .. }
        | VolumeCommand::List
        | VolumeCommand::Info { .. }
        | VolumeCommand::Status { .. }
        | VolumeCommand::Get { .. }
        | VolumeCommand::Options
        | VolumeCommand::Verify { .. } => ControlRequest::Ping {},
    }
}

fn list(global: &Global, output: &Output) -> Result<u8, Failure> {
    let answer = ask(global, output, &ControlRequest::VolumeList {})?;
    if output.json {
        output.value(&answer.data);
        return Ok(exit::DONE);
    }
    for name in array(&answer.data["volumes"]) {
        output.line(name.as_str().unwrap_or_default());
    }
    Ok(exit::DONE)
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn info(global: &Global, output: &Output, name: Option<String>) -> Result<u8, Failure> {
    let answer = ask(global, output, &ControlRequest::VolumeInfo { name })?;
    if output.json {
        output.value(&answer.data);
        return Ok(exit::DONE);
    }
    let volumes = array(&answer.data["volumes"]);
    if volumes.is_empty() {
        output.done("There are no volumes.");
    }
    for volume in volumes {
        output.line(&info_text(volume));
    }
    Ok(exit::DONE)
}

fn info_text(volume: &Value) -> String {
    let word = |key: &str| volume[key].as_str().unwrap_or_default().to_owned();
    let mut lines = vec![
        format!("Volume Name: {}", word("name")),
        format!("Type: {}", word("type")),
        format!("Volume ID: {}", word("id")),
        format!("Status: {}", word("state")),
        format!("Protocol: {}", word("protocol")),
        format!("Quorum: {}", word("quorum")),
    ];
    if let Some(bytes) = volume["size_bytes"].as_u64() {
        lines.push(format!("Size: {}", bytes_text(bytes)));
    }
    let replicas = array(&volume["replicas"]);
    lines.push(format!("Number of Bricks: {}", replicas.len()));
    for (at, replica) in replicas.iter().enumerate() {
        let part = |key: &str| replica[key].as_str().unwrap_or_default();
        lines.push(format!(
            "Brick{}: {}:{}",
            at + 1,
            part("node"),
            part("brick")
        ));
    }
    if let Some(set) = volume["options"].as_object() {
        for (key, value) in set {
            lines.push(format!("{key}: {}", value.as_str().unwrap_or_default()));
        }
    }
    lines.push(String::new());
    lines.join("\n")
}

fn live(
    global: &Global,
    output: &Output,
    name: Option<String>,
    watch: bool,
) -> Result<u8, Failure> {
    let request = ControlRequest::VolumeStatus { name };
    let mut before = None;
    loop {
        let answer = ask(global, output, &request)?;
        let text = if output.json {
            answer.data.to_string()
        } else {
            let status: VolumesStatus = typed(&answer.data)?;
            let parts: Vec<String> = status
                .volumes
                .iter()
                .map(|volume| status::volume_text(output, volume))
                .collect();
            parts.join("\n\n")
        };
        if text.is_empty() {
            output.done("There are no volumes.");
        } else if before.as_ref() != Some(&text) {
            output.line(&text);
        }
        if !watch {
            return Ok(exit::DONE);
        }
        before = Some(text);
        std::thread::sleep(WATCH_EVERY);
    }
}

fn get(global: &Global, output: &Output, name: String, key: Option<String>) -> Result<u8, Failure> {
    let one = key.as_ref().is_some_and(|key| key != "all");
    let answer = ask(global, output, &ControlRequest::VolumeGet { name, key })?;
    if output.json {
        output.value(&answer.data);
        return Ok(exit::DONE);
    }
    if let Some(values) = answer.data["options"].as_object() {
        for (key, value) in values {
            let value = value.as_str().unwrap_or_default();
            if one {
                output.line(value);
            } else {
                output.line(&format!("{key} = {value}"));
            }
        }
    }
    Ok(exit::DONE)
}

/// The table is this program's own: no daemon is needed.
fn show_options(output: &Output) -> Result<u8, Failure> {
    let rows = options::rows();
    if output.json {
        output.value(&serde_json::json!({ "options": rows }));
        return Ok(exit::DONE);
    }
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            vec![
                row.key.to_owned(),
                row.default.to_owned(),
                row.range.clone(),
                row.meaning.to_owned(),
            ]
        })
        .collect();
    output.line(&table(&["OPTION", "DEFAULT", "TAKES", "MEANING"], &cells));
    Ok(exit::DONE)
}

/// Exit status 0 only if every replica was compared and all are equal.
fn verify(global: &Global, output: &Output, name: String, repair: bool) -> Result<u8, Failure> {
    let request = ControlRequest::VolumeVerify { name, repair };
    let answer = ask(global, output, &request)?;
    let equal = answer.data["equal"].as_bool() == Some(true);
    if output.json {
        output.value(&answer.data);
    } else {
        let compared = answer.data["bytes_compared"].as_u64().unwrap_or(0);
        let replicas = answer.data["replicas_compared"].as_u64().unwrap_or(0);
        let says = if equal {
            "are equal"
        } else {
            "are not known to be equal"
        };
        output.line(&format!(
            "{replicas} replicas {says}; {} compared",
            bytes_text(compared)
        ));
        for node in array(&answer.data["not_compared"]) {
            output.line(&format!(
                "{} was not compared: it is not connected, or not in sync",
                node.as_str().unwrap_or("a node")
            ));
        }
        for what in array(&answer.data["unsettled"]) {
            output.line(&format!(
                "{} was changed all the while and could not be compared: try again",
                what.as_str().unwrap_or("something")
            ));
        }
        for difference in array(&answer.data["differences"]) {
            output.line(&format!(
                "{} differs: {} at {}, {} bytes",
                difference["node"].as_str().unwrap_or("a node"),
                difference["path"].as_str().unwrap_or("a file"),
                difference["offset"],
                difference["length"]
            ));
        }
    }
    Ok(if equal { exit::DONE } else { exit::REFUSED })
}

fn heal_info(global: &Global, output: &Output, name: String) -> Result<u8, Failure> {
    let request = ControlRequest::VolumeStatus { name: Some(name) };
    let answer = ask(global, output, &request)?;
    if output.json {
        output.value(&answer.data);
        return Ok(exit::DONE);
    }
    let status: VolumesStatus = typed(&answer.data)?;
    for replica in status.volumes.iter().flat_map(|volume| &volume.replicas) {
        let lacks = replica
            .out_of_sync_bytes
            .map_or_else(|| "unknown".to_owned(), bytes_text);
        output.line(&format!("Brick {}:{}", replica.node, replica.brick));
        output.line(&format!("Out of sync: {lacks}\n"));
    }
    Ok(exit::DONE)
}
