//! `cairn client`.

use std::path::Path;

use protocol::client::{ClientInfo, ClientState};
use protocol::control::{ControlRequest, exit};
use serde_json::json;

use super::{act, ask, ask_for_word, typed};
use crate::args::{ClientCommand, Global};
use crate::connection;
use crate::failure::Failure;
use crate::output::{Output, table};

pub(super) fn run(global: &Global, output: &Output, command: ClientCommand) -> Result<u8, Failure> {
    match command {
        ClientCommand::Add {
            name,
            volumes,
            read_only,
        } => {
            let request = ControlRequest::ClientAdd {
                name,
                volumes,
                read_only,
            };
            ask_for_word(global, output, &request, "token")
        }
        ClientCommand::Join { token } => join(global, output, &token),
        ClientCommand::Certificates { dir } => certificates(global, output, &dir),
        ClientCommand::List => list(global, output),
        ClientCommand::Revoke { name } => {
            act(global, output, &ControlRequest::ClientRevoke { name })
        }
    }
}

fn join(global: &Global, output: &Output, token: &str) -> Result<u8, Failure> {
    let data_dir = connection::data_dir(global);
    let joined = fuse_client::join::join(&data_dir, token)
        .map_err(|error| Failure::refused("join", &error.sentence, &error.hint))?;
    if output.json {
        output.value(&json!({
            "name": joined.name, "volumes": joined.volumes, "read_only": joined.read_only,
        }));
        return Ok(exit::DONE);
    }
    output.done(&format!(
        "this machine is client `{}` and may {} {}",
        joined.name,
        if joined.read_only { "read" } else { "mount" },
        volumes(joined.volumes.as_deref()),
    ));
    Ok(exit::DONE)
}

fn certificates(global: &Global, output: &Output, dir: &Path) -> Result<u8, Failure> {
    let data_dir = connection::data_dir(global);
    let written = fuse_client::certificates::write(&data_dir, dir)
        .map_err(|error| Failure::refused("certificates", &error.sentence, &error.hint))?;
    if output.json {
        output.value(&json!({ "nodes": written.nodes, "missing": written.missing }));
        return Ok(exit::DONE);
    }
    for address in &written.missing {
        output.note(&format!(
            "{address} did not answer: say it again when it does, to reach disks there"
        ));
    }
    output.done(&format!(
        "{} has the certificates of {}",
        dir.display(),
        written.nodes.join(", ")
    ));
    Ok(exit::DONE)
}

fn list(global: &Global, output: &Output) -> Result<u8, Failure> {
    let answer = ask(global, output, &ControlRequest::ClientList {})?;
    if output.json {
        output.value(&answer.data);
        return Ok(exit::DONE);
    }
    let clients: Vec<ClientInfo> = typed(&answer.data["clients"])?;
    if clients.is_empty() {
        output.line("No client was invited: `cairn client add NAME`.");
        return Ok(exit::DONE);
    }
    let rows: Vec<Vec<String>> = clients.iter().map(row).collect();
    output.line(&table(&["CLIENT", "STATE", "MAY", "VOLUMES"], &rows));
    Ok(exit::DONE)
}

fn row(client: &ClientInfo) -> Vec<String> {
    let state = match client.state {
        ClientState::Invited => "invited",
        ClientState::Expired => "token expired",
        ClientState::Joined => "joined",
    };
    let may = if client.read_only {
        "read"
    } else {
        "read, write"
    };
    vec![
        client.name.clone(),
        state.to_owned(),
        may.to_owned(),
        volumes(client.volumes.as_deref()),
    ]
}

fn volumes(names: Option<&[String]>) -> String {
    match names {
        None => "all volumes".to_owned(),
        Some([]) => "none: they were deleted".to_owned(),
        Some(names) => names.join(", "),
    }
}
