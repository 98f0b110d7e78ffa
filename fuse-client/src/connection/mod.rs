//! Connections to nodes: a byte stream both ways, whatever carries it.

mod frames;
mod plain;
#[cfg(test)]
mod tests;
mod tls;

use std::fmt;
use std::io::{self, IoSlice};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use protocol::ids::NodeId;
use protocol::preamble::Purpose;

pub use frames::FrameReader;
pub use plain::Plain;
pub use tls::Tls;

/// Longest wait for a node to accept a connection and to finish the handshake.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A connection, after its preamble. One thread receives, any may send.
pub trait Connection: Send + Sync {
    /// Takes as many of the bytes as fit now, in order, and returns how many. 0: none fit.
    fn try_send(&self, parts: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Moves bytes that were taken on towards the peer without waiting. True: all are gone.
    fn flush(&self) -> io::Result<bool>;

    /// Waits until more may be sent.
    fn wait_writable(&self) -> io::Result<()>;

    /// Waits for bytes and appends them to `into` within its spare capacity. 0: the end.
    fn receive(&self, into: &mut Vec<u8>) -> io::Result<usize>;

    /// How long [`Connection::receive`] waits: then it fails with `TimedOut`.
    fn set_receive_timeout(&self, timeout: Option<Duration>) -> io::Result<()>;

    /// Ends it: whoever waits on it is woken.
    fn shutdown(&self);

    /// What carries it, for log lines and `mount -v`.
    fn carrier(&self) -> &'static str;
}

/// A place where a node listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A Unix socket on this machine.
    Unix(PathBuf),
    /// `host:port`, IPv6 in brackets.
    Network {
        /// The address.
        address: String,
        /// Who should answer there, if that is known.
        node: Option<NodeId>,
    },
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Network { address, .. } => f.write_str(address),
        }
    }
}

/// Makes connections.
pub trait Connector: Send + Sync {
    /// Connects and sends the preamble. Waits at most some [`CONNECT_TIMEOUT`].
    fn connect(&self, target: &Target, purpose: Purpose) -> io::Result<Box<dyn Connection>>;
}

/// Where TLS configurations come from: the identity of this machine, and who may answer.
pub trait TlsSource: Send + Sync {
    /// The configuration for a connection to `node`, or to any member of the pool.
    fn config(&self, node: Option<NodeId>) -> io::Result<Arc<rustls::ClientConfig>>;
}

/// Connects by Unix socket, and by TLS over TCP where it was given an identity.
pub struct SystemConnector {
    tls: Option<Box<dyn TlsSource>>,
}

impl SystemConnector {
    /// `tls` none: only Unix sockets can be reached.
    #[must_use]
    pub fn new(tls: Option<Box<dyn TlsSource>>) -> Self {
        Self { tls }
    }
}

impl Connector for SystemConnector {
    fn connect(&self, target: &Target, purpose: Purpose) -> io::Result<Box<dyn Connection>> {
        match target {
            Target::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                send_preamble(&stream, purpose)?;
                Ok(Box::new(Plain::unix(stream)))
            }
            Target::Network { address, node } => {
                let Some(source) = &self.tls else {
                    return Err(io::Error::new(
                        io::ErrorKind::PermissionDenied,
                        "this machine has no identity for the pool",
                    ));
                };
                let config = source.config(*node)?;
                let stream = connect_tcp(address)?;
                send_preamble(&stream, purpose)?;
                Ok(Box::new(Tls::handshake(stream, config)?))
            }
        }
    }
}

/// The certificate that a node shows.
pub(crate) fn peer_certificate(
    address: &str,
    config: Arc<rustls::ClientConfig>,
) -> io::Result<Vec<u8>> {
    let stream = connect_tcp(address)?;
    send_preamble(&stream, Purpose::Rpc)?;
    Tls::handshake(stream, config)?.peer_certificate()
}

fn connect_tcp(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for resolved in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&resolved, CONNECT_TIMEOUT) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn send_preamble(mut stream: impl io::Write, purpose: Purpose) -> io::Result<()> {
    stream.write_all(&purpose.encode())
}

/// Sends everything, waiting as needed: for the few frames before a link is up.
pub fn send_all(connection: &dyn Connection, bytes: &[u8]) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let sent = connection.try_send(&[IoSlice::new(rest)])?;
        rest = &rest[sent..];
        if sent == 0 {
            connection.wait_writable()?;
        }
    }
    while !connection.flush()? {
        connection.wait_writable()?;
    }
    Ok(())
}
