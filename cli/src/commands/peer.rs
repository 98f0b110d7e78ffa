//! `cairn peer`.

use protocol::control::{ControlRequest, exit};
use protocol::report::{NodeState, PeerStatus};

use super::{act, ask, typed};
use crate::args::{Global, PeerCommand, Switch};
use crate::failure::Failure;
use crate::output::{Output, table};

pub(super) fn run(global: &Global, output: &Output, command: PeerCommand) -> Result<u8, Failure> {
    let request = match command {
        PeerCommand::Code => return code(global, output),
        PeerCommand::Status => return status(global, output),
        PeerCommand::Probe {
            address,
            code,
            no_voter,
        } => ControlRequest::PeerProbe {
            address,
            code,
            voter: !no_voter,
        },
        PeerCommand::Detach { node, force } => ControlRequest::PeerDetach { node, force },
        PeerCommand::Leave { force } => ControlRequest::PeerLeave { force },
        PeerCommand::Voter { node, switch } => ControlRequest::PeerVoter {
            node,
            voter: switch == Switch::On,
        },
    };
    act(global, output, &request)
}

/// The code is the last word on standard output, with `-q` the only one.
fn code(global: &Global, output: &Output) -> Result<u8, Failure> {
    let answer = ask(global, output, &ControlRequest::PeerCode {})?;
    if output.json {
        output.value(&answer.data);
        return Ok(exit::DONE);
    }
    output.done(answer.message.as_deref().unwrap_or_default());
    if output.quiet() {
        output.line(answer.data["code"].as_str().unwrap_or_default());
    }
    Ok(exit::DONE)
}

fn status(global: &Global, output: &Output) -> Result<u8, Failure> {
    let answer = ask(global, output, &ControlRequest::PeerStatus {})?;
    if output.json {
        output.value(&answer.data);
        return Ok(exit::DONE);
    }
    let status: PeerStatus = typed(&answer.data)?;
    output.line(&nodes_text(&status));
    if !status.quorum {
        output.line("No majority of the voters is connected: configuration cannot change.");
    }
    Ok(exit::DONE)
}

/// The nodes as a table.
pub(super) fn nodes_text(status: &PeerStatus) -> String {
    let rows: Vec<Vec<String>> = status
        .nodes
        .iter()
        .map(|node| {
            let mut marks = Vec::new();
            if node.is_self {
                marks.push("this node");
            }
            if node.leader {
                marks.push("leads");
            }
            if node.voter {
                marks.push("votes");
            }
            let state = match node.state {
                NodeState::Connected => "connected",
                NodeState::Disconnected => "disconnected",
            };
            vec![
                node.name.clone(),
                node.address.clone(),
                state.to_owned(),
                marks.join(", "),
            ]
        })
        .collect();
    table(&["NODE", "ADDRESS", "STATE", ""], &rows)
}
