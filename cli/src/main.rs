//! The `cairn` executable: daemon, mount and command line in one.

#![forbid(unsafe_code)]

mod args;
mod commands;
mod connection;
mod failure;
mod output;
mod usage;

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

/// mount(8)'s exit status of wrong words.
const MOUNT_MISUSED: u8 = 1;
/// mount(8)'s exit status of a failed mount.
const MOUNT_FAILED: u8 = 32;

fn called_as_mount_helper(words: &[OsString]) -> bool {
    let name = words.first().and_then(|word| Path::new(word).file_name());
    // mount(8) looks for the second one when it changes what is mounted, whose type is `fuse.cairn`.
    name.is_some_and(|name| name == "mount.cairn" || name == "mount.fuse.cairn")
}

fn called_as_umount_helper(words: &[OsString]) -> bool {
    let name = words.first().and_then(|word| Path::new(word).file_name());
    // umount(8) goes by the type of what is mounted.
    name.is_some_and(|name| name == "umount.cairn" || name == "umount.fuse.cairn")
}

fn main() -> ExitCode {
    let words = arguments();
    if called_as_umount_helper(&words) {
        return match commands::unmount_helper(&words) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                output::Output::unparsed(&[]).failure(&failure);
                ExitCode::from(MOUNT_FAILED)
            }
        };
    }
    let helper = called_as_mount_helper(&words);
    let words = if helper {
        match commands::helper_words(&words) {
            Some(words) => words,
            None => return ExitCode::SUCCESS,
        }
    } else {
        words
    };
    let cli = match Cli::try_parse_from(&words) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, &words, helper),
    };
    let output = output::Output::new(&cli.global);
    match commands::run(cli, &output) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(if helper {
                MOUNT_FAILED
            } else {
                failure.exit_code
            })
        }
    }
}

/// Help and version are answers; everything else is wrong usage, with the nearest right word.
fn usage(error: &clap::Error, words: &[OsString], helper: bool) -> ExitCode {
    if let ErrorKind::DisplayHelp | ErrorKind::DisplayVersion = error.kind() {
        // Standard output may be closed already, and there is nobody left to tell.
        let _ = error.print();
        return ExitCode::from(exit::DONE);
    }
    let failure = usage::failure(error, words);
    output::Output::unparsed(words).failure(&failure);
    ExitCode::from(if helper {
        MOUNT_MISUSED
    } else {
        failure.exit_code
    })
}
