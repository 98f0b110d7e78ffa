//! `cairn completions`.

use clap::CommandFactory as _;

use crate::args::Cli;
use crate::output::Output;

/// Prints the completions of a shell.
pub(super) fn run(output: &Output, shell: clap_complete::Shell) {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "cairn", &mut script);
    output.line(String::from_utf8_lossy(&script).trim_end());
}
