//! `cairn events`.

use protocol::control::{ControlReply, ControlRequest, exit};
use serde_json::Value;

use crate::args::Global;
use crate::connection;
use crate::failure::Failure;
use crate::output::Output;

pub(super) fn run(global: &Global, output: &Output, follow: bool) -> Result<u8, Failure> {
    let json = output.json;
    let mut all = Vec::new();
    connection::ask(
        global,
        &ControlRequest::Events { follow },
        |line| match line {
            // One value a line with --follow, one value in all without.
            ControlReply::Item(item) if json && follow => output.value(&item),
            ControlReply::Item(item) if json => all.push(item),
            ControlReply::Item(item) => output.line(&text(&item)),
            ControlReply::Progress { text } => output.note(&text),
            ControlReply::Ok { .. } | ControlReply::Error { .. } => {}
        },
    )?;
    if json && !follow {
        output.value(&serde_json::json!({ "events": all }));
    }
    Ok(exit::DONE)
}

fn text(event: &Value) -> String {
    let word = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
    let volume = match event["volume"].as_str() {
        Some(volume) => format!(" [{volume}]"),
        None => String::new(),
    };
    format!(
        "{} {:7} {}{volume}: {}",
        word("time"),
        word("severity"),
        word("node"),
        word("message")
    )
}
