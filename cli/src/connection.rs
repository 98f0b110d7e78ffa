//! The control socket of the local daemon, from this side.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use protocol::control::{CONTROL_LINE_BYTES_MAX, ControlReply, ControlRequest};
use serde_json::Value;

use crate::args::Global;
use crate::failure::Failure;

/// Where the daemon keeps its things unless told otherwise.
const DATA_DIR: &str = "/var/lib/cairn";

/// A command's answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// One sentence for people.
    pub(crate) message: Option<String>,
    /// The facts.
    pub(crate) data: Value,
}

/// The directory of the local daemon: flag, environment, default.
pub(crate) fn data_dir(global: &Global) -> PathBuf {
    global
        .data_dir
        .clone()
        .or_else(|| std::env::var_os("CAIRN_DATA_DIR").map(PathBuf::from))
        .unwrap_or_else(|| PathBuf::from(DATA_DIR))
}

fn connect(dir: &Path) -> Result<UnixStream, Failure> {
    let path = dir.join("control.sock");
    UnixStream::connect(&path).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => Failure::no_daemon(
            format!("you may not use the daemon at {}", dir.display()),
            "Run the command as root, or as a member of the group `cairn`.",
        ),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Failure::no_daemon(
            format!("no daemon runs with the data directory {}", dir.display()),
            "Start it with `cairn daemon`, or name the right one with --data-dir.",
        ),
        _ => Failure::no_daemon(
            format!(
                "the daemon at {} cannot be reached: {error}",
                path.display()
            ),
            "Look at the daemon's log.",
        ),
    })
}

fn lost(error: &impl std::fmt::Display) -> Failure {
    Failure::no_daemon(
        format!("the daemon went away in the middle of the command: {error}"),
        "Look at the daemon's log; whether the command was done is not known.",
    )
}

/// Asks the local daemon. `each` gets progress and items as they come.
pub(crate) fn ask(
    global: &Global,
    request: &ControlRequest,
    mut each: impl FnMut(ControlReply),
) -> Result<Answer, Failure> {
    let stream = connect(&data_dir(global))?;
    let mut line = serde_json::to_vec(request).map_err(|error| lost(&error))?;
    line.push(b'\n');
    (&stream).write_all(&line).map_err(|error| lost(&error))?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    loop {
        line.clear();
        let read = io::Read::take(&mut reader, 64 * CONTROL_LINE_BYTES_MAX as u64)
            .read_line(&mut line)
            .map_err(|error| lost(&error))?;
        if read == 0 {
            return Err(lost(&"the connection ended"));
        }
        match serde_json::from_str(&line).map_err(|error| lost(&error))? {
            ControlReply::Ok { message, data } => return Ok(Answer { message, data }),
            ControlReply::Error {
                kind,
                message,
                hint,
                exit_code,
            } => {
                return Err(Failure {
                    kind,
                    message,
                    hint,
                    exit_code,
                });
            }
            other => each(other),
        }
    }
}
