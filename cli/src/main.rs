//! The `cairn` executable: daemon, mount and command line in one.

#![forbid(unsafe_code)]

mod args;
mod commands;
mod connection;
mod failure;
mod output;

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;
use protocol::control::exit;

use args::Cli;

/// What the program was called as decides what it is.
fn arguments() -> Vec<OsString> {
    let mut words: Vec<OsString> = std::env::args_os().collect();
    let called = words
        .first()
        .and_then(|word| Path::new(word).file_name())
        .unwrap_or_else(|| OsStr::new("cairn"));
    if called == "cairnd" {
        words.insert(1, "daemon".into());
    }
    words
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(arguments()) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let output = output::Output::new(&cli.global);
    match commands::run(cli, &output) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(failure.exit_code)
        }
    }
}

/// Help and version are answers; everything else is wrong usage, with the nearest right word.
fn usage(error: &clap::Error) -> ExitCode {
    // Standard output may be closed already, and there is nobody left to tell.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::from(exit::DONE),
        _ => ExitCode::from(exit::USAGE),
    }
}
