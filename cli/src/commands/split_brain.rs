//! `cairn volume split-brain NAME list` and `mount`.

use std::path::PathBuf;

use fuse_client::command::{MountArgs, mount as mount_at};
use protocol::control::{ControlRequest, exit};
use protocol::report::{Difference, DifferenceKind, Differences, PeerStatus, PointReport};
use serde_json::{Value, json};

use super::{ask, typed};
use crate::args::Global;
use crate::connection;
use crate::failure::Failure;
use crate::output::{Output, bytes_text};

/// Rows of each list where nothing else is said.
pub(super) const ROWS: usize = 1000;

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// `list`.
pub(super) fn list(
    global: &Global,
    output: &Output,
    name: String,
    max: usize,
) -> Result<u8, Failure> {
    let request = ControlRequest::VolumeDifferences {
        name: name.clone(),
        max,
    };
    let answer = ask(global, output, &request)?;
    if output.json {
        output.value(&answer.data);
        return Ok(exit::DONE);
    }
    for side in array(&answer.data["kept"]) {
        show_kept(output, &name, side)?;
    }
    let split = &answer.data["split_brain"];
    if split.is_null() {
        output.done("There is no split brain.");
        return Ok(exit::DONE);
    }
    let nodes: Vec<&str> = array(&split["nodes"])
        .iter()
        .filter_map(Value::as_str)
        .collect();
    output.line(&format!(
        "Split brain since {}: {} each hold what the others do not.",
        split["since"].as_str().unwrap_or("an unknown time"),
        nodes.join(", ")
    ));
    for side in array(&split["sides"]) {
        output.line(&format!(
            "{} made {} changes, primary since {}.",
            side["node"].as_str().unwrap_or("a node"),
            side["changes"],
            side["primary_since"].as_str().unwrap_or("an unknown time"),
        ));
    }
    for reason in array(&answer.data["unknown"]) {
        output.line(reason.as_str().unwrap_or_default());
    }
    show_differences(output, &typed(&answer.data)?);
    output.line(&format!(
        "Keep one side: `cairn volume split-brain {name} resolve --keep NODE`."
    ));
    Ok(exit::DONE)
}

fn show_kept(output: &Output, name: &str, side: &Value) -> Result<(), Failure> {
    let point: PointReport = typed(&side["point"])?;
    let node = side["node"].as_str().unwrap_or("a node");
    output.line(&format!(
        "{node} keeps what it held alone as of {}, {} of copies (point {}).",
        point.as_of,
        bytes_text(point.kept_bytes),
        point.id
    ));
    match side["unknown"].as_str() {
        Some(reason) => output.line(&format!(
            "How it differs from the volume is not known: {reason}"
        )),
        None => show_differences(output, &typed(side)?),
    }
    output.line(&format!(
        "Look at it: `cairn volume split-brain {name} mount {node} DIR`.\n\
         Drop it: `cairn volume split-brain {name} drop {node}`."
    ));
    Ok(())
}

fn row_text(row: &Difference) -> String {
    let path = row
        .path
        .clone()
        .unwrap_or_else(|| format!("object {:x}", row.object));
    let what = match row.kind {
        DifferenceKind::Data => format!("{} bytes at {}", row.length, row.offset),
        DifferenceKind::Metadata => "metadata".to_owned(),
        DifferenceKind::OnlyOneSide => format!("there alone, {} bytes", row.length),
    };
    format!("  {path}: {what} ({})", row.on)
}

fn show_differences(output: &Output, found: &Differences) {
    for row in &found.differences {
        output.line(&row_text(row));
    }
    if found.more > 0 {
        output.line(&format!("  and {} more (`--limit N`)", found.more));
    }
    if !found.complete {
        output.line("  What else differs is not known: anything may.");
    }
}

/// `mount`.
pub(super) fn mount(
    global: &Global,
    output: &Output,
    name: &str,
    node: &str,
    dir: PathBuf,
    point: Option<u64>,
) -> Result<u8, Failure> {
    let request = ControlRequest::VolumeDifferences {
        name: name.to_owned(),
        max: 0,
    };
    let answer = ask(global, output, &request)?;
    let of_node = |side: &&Value| side["node"] == node;
    let wanted = |side: &&Value| point.is_none_or(|point| side["point"]["id"] == point);
    let mut kept = array(&answer.data["kept"]).iter().filter(of_node);
    let Some(side) = kept.rfind(wanted) else {
        return Err(Failure::refused(
            "nothing_kept",
            format!("{node} keeps no such side of volume `{name}`"),
            &format!("Look at `cairn volume split-brain {name} list`."),
        ));
    };
    let volume = side["mount"].as_str().unwrap_or_default();
    let peers: PeerStatus = typed(&ask(global, output, &ControlRequest::PeerStatus {})?.data)?;
    let own = peers.nodes.iter().find(|peer| peer.is_self);
    let host = own.map_or("localhost", |peer| &peer.address);
    let args = MountArgs {
        source: format!("{host}:/{volume}"),
        point: dir.clone(),
        options: vec!["ro".to_owned()],
        foreground: false,
        data_dir: connection::data_dir(global),
        verbose: global.verbose > 0,
    };
    mount_at(&args).map_err(|error| Failure::refused("mount", &error.sentence, &error.hint))?;
    let text = format!(
        "what {node} held alone as of {} is at {}, to be read",
        side["point"]["as_of"].as_str().unwrap_or("an unknown time"),
        dir.display()
    );
    if output.json {
        output.value(&json!({ "message": text, "source": args.source, "point": side["point"] }));
    } else {
        output.done(&text);
    }
    Ok(exit::DONE)
}
