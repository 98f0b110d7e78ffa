//! Wrong usage as one sentence and one hint: clap tells it over many lines.

use std::ffi::OsString;

use clap::CommandFactory as _;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::args::Cli;
use crate::failure::Failure;

/// What was wrong, and the nearest right word where there is one.
pub(crate) fn failure(error: &clap::Error, words: &[OsString]) -> Failure {
    let path = path_of(words);
    let help = format!("See `{path} --help`.");
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return Failure::usage(format!("`{path}` needs a command after it"), &help);
    }
    let hint = match nearest(error) {
        Some(word) => format!("Did you mean `{word}`?"),
        None => help,
    };
    Failure::usage(sentence(error), &hint)
}

/// clap's first paragraph, on one line.
fn sentence(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    let line = first.split_whitespace().collect::<Vec<_>>().join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}

fn nearest(error: &clap::Error) -> Option<String> {
    let kinds = [
        ContextKind::SuggestedSubcommand,
        ContextKind::SuggestedArg,
        ContextKind::SuggestedValue,
    ];
    kinds.iter().find_map(|kind| match error.get(*kind)? {
        ContextValue::String(word) => Some(word.clone()),
        // The best comes last.
        ContextValue::Strings(words) => words.last().cloned(),
        _ => None,
    })
}

/// The program and the commands among the words, as far as they are right.
fn path_of(words: &[OsString]) -> String {
    let mut command = Cli::command();
    let mut path = command.get_name().to_owned();
    for word in words.iter().skip(1).filter_map(|word| word.to_str()) {
        if let Some(found) = command.find_subcommand(word) {
            path = format!("{path} {word}");
            command = found.clone();
        }
    }
    path
}
