//! `cairn peer`.

use protocol::control::{ControlRequest, exit};
use protocol::report::{NodeState, PeerStatus};

use super::{act, ask, ask_for_word, typed};
use crate::args::{Global, PeerCommand, Switch};
use crate::failure::Failure;
use crate::output::{Output, table};

pub(super) fn run(global: &Global, output: &Output, command: PeerCommand) -> Result<u8, Failure> {
    let request = match command {
        PeerCommand::Code => {
            return ask_for_word(global, output, &ControlRequest::PeerCode {}, "code");
        }
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
