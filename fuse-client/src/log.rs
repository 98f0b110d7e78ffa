//! Where a mount's log goes: stderr in the foreground, else a file or syslog.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// syslog's `daemon.info`; the line itself says its level.
const PRIORITY: &str = "<30>";
const SYSLOG: &str = "/dev/log";

/// One line a datagram. Where nobody listens lines are dropped: there is nowhere else to go.
struct Syslog {
    socket: Option<UnixDatagram>,
    tag: String,
}

struct SyslogLine<'a> {
    log: &'a Syslog,
    line: Vec<u8>,
}

impl Write for SyslogLine<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for SyslogLine<'_> {
    fn drop(&mut self) {
        let Some(socket) = &self.log.socket else {
            return;
        };
        let mut message = format!("{PRIORITY}{}: ", self.log.tag).into_bytes();
        message.extend_from_slice(self.line.trim_ascii_end());
        let _ = socket.send(&message);
    }
}

impl<'a> MakeWriter<'a> for Syslog {
    type Writer = SyslogLine<'a>;

    fn make_writer(&'a self) -> SyslogLine<'a> {
        SyslogLine {
            log: self,
            line: Vec::new(),
        }
    }
}

fn filter(verbose: bool) -> EnvFilter {
    let default = if verbose { "debug" } else { "info" };
    EnvFilter::try_from_env("CAIRN_LOG").unwrap_or_else(|_| EnvFilter::new(default))
}

/// Where the log goes.
pub(crate) enum Log {
    Stderr,
    File(File),
    Syslog,
}

impl Log {
    pub(crate) fn file(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self::File(file))
    }

    /// Takes it into use for the process, unless the process has one already.
    pub(crate) fn start(self, verbose: bool) {
        let builder = tracing_subscriber::fmt()
            .with_env_filter(filter(verbose))
            .with_ansi(false)
            .with_target(false);
        // An error says that somebody else was first, which is as well.
        let _ = match self {
            Self::Stderr => builder.with_writer(io::stderr).try_init(),
            Self::File(file) => builder.with_writer(Arc::new(file)).try_init(),
            Self::Syslog => {
                let socket = UnixDatagram::unbound()
                    .and_then(|socket| socket.connect(SYSLOG).map(|()| socket));
                let log = Syslog {
                    socket: socket.ok(),
                    tag: format!("cairn-mount[{}]", std::process::id()),
                };
                builder.without_time().with_writer(log).try_init()
            }
        };
    }
}
