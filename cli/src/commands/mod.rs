//! One file a command.

mod bench;
mod brick;
mod brick_export;
mod client;
mod completions;
mod create;
mod daemon;
mod demo;
mod events;
mod mount;
mod peer;
mod split_brain;
mod status;
mod volume;

use serde_json::Value;

pub(crate) use mount::{helper_words, unmount_helper};

use crate::args::{Cli, Command, Global};
use crate::connection;
use crate::failure::Failure;
use crate::output::Output;
use protocol::control::{ControlReply, ControlRequest, exit};
use serde::de::DeserializeOwned;

/// Runs a command; `Ok` is its exit status.
pub(crate) fn run(cli: Cli, output: &Output) -> Result<u8, Failure> {
    let global = &cli.global;
    match cli.command {
        Command::Daemon(args) => daemon::run(global, args),
        Command::Peer(command) => peer::run(global, output, command),
        Command::Client(command) => client::run(global, output, command),
        Command::Volume(command) => volume::run(global, output, command),
        Command::Brick(command) => brick::run(global, output, command),
        Command::Status { watch } => status::pool(global, output, watch),
        Command::Why { volume } => status::why(global, output, volume),
        Command::Events { follow } => events::run(global, output, follow),
        Command::Mount(args) => mount::run(global, args),
        Command::Demo { keep } => demo::run(output, keep),
        Command::Bench(command) => bench::run(global, output, &command),
        Command::Completions { shell } => {
            completions::run(output, shell);
            Ok(exit::DONE)
        }
    }
}

/// Asks, shows progress on standard error, and returns the answer.
pub(crate) fn ask(
    global: &Global,
    output: &Output,
    request: &ControlRequest,
) -> Result<connection::Answer, Failure> {
    connection::ask(global, request, |line| match line {
        ControlReply::Progress { text } => output.note(&text),
        ControlReply::Item(item) => output.value(&item),
        ControlReply::Ok { .. } | ControlReply::Error { .. } => {}
    })
}

/// Asks and prints what was done.
pub(crate) fn act(
    global: &Global,
    output: &Output,
    request: &ControlRequest,
) -> Result<u8, Failure> {
    let answer = ask(global, output, request)?;
    if output.json {
        output.value(&answer.data);
    } else if let Some(message) = &answer.message {
        output.done(message);
    }
    Ok(exit::DONE)
}

/// Asks for something to be typed elsewhere: the last word on standard output, with `-q` the only
/// one. `key` is its name among the facts.
pub(crate) fn ask_for_word(
    global: &Global,
    output: &Output,
    request: &ControlRequest,
    key: &str,
) -> Result<u8, Failure> {
    let answer = ask(global, output, request)?;
    if output.json {
        output.value(&answer.data);
        return Ok(exit::DONE);
    }
    output.done(answer.message.as_deref().unwrap_or_default());
    if output.quiet() {
        output.line(answer.data[key].as_str().unwrap_or_default());
    }
    Ok(exit::DONE)
}

/// The facts as the type that they are.
pub(crate) fn typed<T: DeserializeOwned>(data: &Value) -> Result<T, Failure> {
    T::deserialize(data).map_err(|error| {
        Failure::refused(
            "version",
            format!("the daemon's answer is not understood: {error}"),
            "Use the `cairn` of the same version as the daemon.",
        )
    })
}
