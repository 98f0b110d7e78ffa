//! What is printed. Standard output may be a pipe that closes early: then the program ends
//! quietly, as other tools do.

use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write as _};
use std::process;

use serde::Serialize;

use crate::args::{Color, Global};
use crate::failure::Failure;

/// Exit status of a program that SIGPIPE ended, as shells report it.
const ENDED_BY_PIPE: i32 = 141;

/// How to print.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// One JSON value on standard output.
    pub(crate) json: bool,
    quiet: bool,
    color_stdout: bool,
    color_stderr: bool,
}

impl Output {
    pub(crate) fn new(global: &Global) -> Self {
        let color = |terminal: bool| match global.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => terminal && std::env::var_os("NO_COLOR").is_none(),
        };
        Self {
            json: global.json,
            quiet: global.quiet,
            color_stdout: color(io::stdout().is_terminal()),
            color_stderr: color(io::stderr().is_terminal()),
        }
    }

    /// For words that could not be understood: with `--json` anywhere among them, JSON is
    /// expected.
    pub(crate) fn unparsed(words: &[OsString]) -> Self {
        let colored = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self {
            json: words.iter().any(|word| word == "--json"),
            quiet: false,
            color_stdout: false,
            color_stderr: colored,
        }
    }

    /// Whether `-q` was said.
    pub(crate) fn quiet(&self) -> bool {
        self.quiet
    }

    /// A line on standard output.
    pub(crate) fn line(&self, text: &str) {
        let mut out = io::stdout().lock();
        let written = writeln!(out, "{text}").and_then(|()| out.flush());
        if let Err(error) = written {
            if error.kind() == io::ErrorKind::BrokenPipe {
                process::exit(ENDED_BY_PIPE);
            }
            // Standard error may be gone as well.
            let _ = writeln!(io::stderr(), "error: standard output: {error}");
            process::exit(1);
        }
    }

    /// What was done, unless `-q`.
    pub(crate) fn done(&self, text: &str) {
        if !self.quiet {
            self.line(text);
        }
    }

    /// A JSON value on one line.
    pub(crate) fn value(&self, value: &impl Serialize) {
        match serde_json::to_string(value) {
            Ok(text) => self.line(&text),
            Err(error) => self.note(&error.to_string()),
        }
    }

    /// A line on standard error, unless `-q`.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            // Nobody reads it: then nobody needs it.
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// The one sentence and the one hint.
    pub(crate) fn failure(&self, failure: &Failure) {
        if self.json {
            self.value(&serde_json::json!({ "error": failure }));
        }
        let (red, plain) = if self.color_stderr {
            ("\x1b[31m", "\x1b[0m")
        } else {
            ("", "")
        };
        let mut err = io::stderr().lock();
        // Nobody reads it: the exit status says the same.
        let _ = writeln!(err, "{red}error:{plain} {}", failure.message);
        if !failure.hint.is_empty() {
            let _ = writeln!(err, "hint: {}", failure.hint);
        }
    }

    /// Text in a color where colors are wanted.
    pub(crate) fn paint(&self, color: &str, text: &str) -> String {
        if self.color_stdout {
            format!("\x1b[{color}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Columns that line up.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let render = |cells: Vec<&str>| -> String {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(cells) {
            line.push_str(cell);
            let pad = width.saturating_sub(cell.chars().count()) + 2;
            line.extend(std::iter::repeat_n(' ', pad));
        }
        line.trim_end().to_owned()
    };
    let mut lines = vec![render(head.to_vec())];
    lines.extend(
        rows.iter()
            .map(|row| render(row.iter().map(String::as_str).collect())),
    );
    lines.join("\n")
}

/// Bytes for people.
pub(crate) fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut unit = 0;
    let mut scaled = bytes * 10 / 1024;
    while scaled >= 10_240 && unit + 1 < UNITS.len() {
        scaled /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", scaled / 10, scaled % 10, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_with_one_digit_after_the_point() {
        assert_eq!(bytes_text(0), "0 B");
        assert_eq!(bytes_text(1536), "1.5 KiB");
        assert_eq!(bytes_text(10 << 30), "10.0 GiB");
    }

    #[test]
    fn a_table_lines_up_and_has_no_trailing_blanks() {
        let rows = vec![vec!["long name".to_owned(), "x".to_owned()]];
        assert_eq!(table(&["a", "b"], &rows), "a          b\nlong name  x");
    }
}
