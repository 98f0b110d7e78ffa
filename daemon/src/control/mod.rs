//! The control socket: for root and the group, one JSON value a line.

mod commands;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use protocol::control::{CONTROL_LINE_BYTES_MAX, ControlReply, ControlRequest};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};

use crate::data_dir::{DataDirError, cairn_group, restrict_socket};
use crate::pool::{Node, refuse, refuse_usage};

/// Commands at once; at the limit the next waits.
const CONNECTIONS_MAX: usize = 64;
/// A request line has to be there within this.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);
/// Lines that may wait for a slow reader; then the command waits.
const REPLIES_MAX: usize = 64;

/// Where a command's lines go.
pub(crate) type Replies = mpsc::Sender<ControlReply>;

/// Makes a socket at `path`, replacing one that a dead daemon left.
pub(crate) fn bind_socket(path: &Path) -> Result<UnixListener, DataDirError> {
    let failed = |source| DataDirError::Io {
        path: path.to_owned(),
        source,
    };
    // The directory is locked by this process, so whoever made it is gone.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    restrict_socket(path)?;
    Ok(listener)
}

/// Serves the control socket until the task is ended.
pub(crate) async fn serve(node: Arc<Node>, listener: UnixListener) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let node = Arc::clone(&node);
                tokio::spawn(async move {
                    if let Err(error) = serve_one(node, stream).await {
                        tracing::debug!(%error, "a control connection ended early");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "no control connection can be accepted just now");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// The socket's mode says who may connect; the kernel's word about who did is checked as well, in
/// case somebody widened the mode.
fn allowed(stream: &UnixStream) -> io::Result<bool> {
    let peer = stream.peer_cred()?;
    if peer.uid() == 0 || peer.uid() == rustix::process::geteuid().as_raw() {
        return Ok(true);
    }
    let Some(group) = cairn_group() else {
        return Ok(false);
    };
    if peer.gid() == group {
        return Ok(true);
    }
    let Some(pid) = peer.pid() else {
        return Ok(false);
    };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(status
        .lines()
        .find_map(|line| line.strip_prefix("Groups:"))
        .is_some_and(|groups| {
            groups
                .split_whitespace()
                .any(|gid| gid.parse() == Ok(group))
        }))
}

async fn serve_one(node: Arc<Node>, stream: UnixStream) -> io::Result<()> {
    let permitted = allowed(&stream)?;
    let (reader, mut writer) = stream.into_split();
    if !permitted {
        let refusal = refuse(
            "not_permitted",
            "the control socket is for root and the group `cairn`",
            "Run the command as root.",
        );
        return write_line(&mut writer, &refusal.into()).await;
    }
    let request = match tokio::time::timeout(REQUEST_WITHIN, read_request(reader)).await {
        Ok(Ok(Some(request))) => request,
        Ok(Ok(None)) | Err(_) => return Ok(()),
        Ok(Err(reason)) => {
            let refusal = refuse_usage(
                "request",
                reason,
                "Use the `cairn` of the same version as the daemon.",
            );
            return write_line(&mut writer, &refusal.into()).await;
        }
    };
    let (replies, mut outbox) = mpsc::channel(REPLIES_MAX);
    // A command goes on when its asker vanishes: half a `volume create` would be worse.
    tokio::spawn(commands::run(node, request, replies));
    while let Some(reply) = outbox.recv().await {
        write_line(&mut writer, &reply).await?;
    }
    Ok(())
}

async fn read_request(reader: OwnedReadHalf) -> Result<Option<ControlRequest>, String> {
    let mut line = Vec::new();
    let limit = CONTROL_LINE_BYTES_MAX as u64 + 1;
    let mut reader = BufReader::new(reader.take(limit));
    let read = reader
        .read_until(b'\n', &mut line)
        .await
        .map_err(|error| error.to_string())?;
    if read == 0 {
        return Ok(None);
    }
    if line.len() > CONTROL_LINE_BYTES_MAX {
        return Err(format!(
            "a request is longer than {CONTROL_LINE_BYTES_MAX} bytes"
        ));
    }
    serde_json::from_slice(&line)
        .map(Some)
        .map_err(|error| format!("the request is not understood: {error}"))
}

async fn write_line(writer: &mut OwnedWriteHalf, reply: &ControlReply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    writer.write_all(&line).await
}
