//! Byte streams with an identity: TLS to and from other machines, plain over a Unix socket on one
//! machine.

use std::io;
use std::pin::Pin;

use protocol::identity::{peer_id, server_name};
use protocol::ids::NodeId;
use protocol::preamble::Purpose;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The reading half.
pub(super) type ReadHalf = Pin<Box<dyn AsyncRead + Send>>;
/// The writing half.
pub(super) type WriteHalf = Pin<Box<dyn AsyncWrite + Send>>;

/// A connection, with the identity behind it where it was shown.
pub struct Stream {
    peer: Option<NodeId>,
    address: Option<String>,
    reader: ReadHalf,
    writer: WriteHalf,
}

impl Stream {
    /// A connection that is ready to use. `peer`: who is there, checked; `address`: from where.
    pub fn new(
        reader: impl AsyncRead + Send + 'static,
        writer: impl AsyncWrite + Send + 'static,
        peer: Option<NodeId>,
        address: Option<String>,
    ) -> Self {
        Self {
            peer,
            address,
            reader: Box::pin(reader),
            writer: Box::pin(writer),
        }
    }

    /// Who is there; `None` on a Unix socket, whose file's permissions admit.
    pub(super) fn peer(&self) -> Option<NodeId> {
        self.peer
    }

    /// From where; `None` on a Unix socket.
    pub(super) fn address(&self) -> Option<String> {
        self.address.clone()
    }

    pub(super) fn split(self) -> (ReadHalf, WriteHalf) {
        (self.reader, self.writer)
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream")
            .field("peer", &self.peer)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

fn refused(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, error)
}

/// Takes over a connection from this machine, which the socket file's permissions admitted.
pub(super) fn accept_unix(stream: std::os::unix::net::UnixStream) -> io::Result<Stream> {
    stream.set_nonblocking(true)?;
    let (reader, writer) = UnixStream::from_std(stream)?.into_split();
    Ok(Stream::new(reader, writer, None, None))
}

/// Takes over a connection from another machine: greets by TLS.
pub(super) async fn accept_tcp(
    acceptor: TlsAcceptor,
    stream: std::net::TcpStream,
) -> io::Result<Stream> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    let address = stream.peer_addr()?.to_string();
    let stream = acceptor.accept(TcpStream::from_std(stream)?).await?;
    let peer = peer_id(stream.get_ref().1.peer_certificates()).map_err(refused)?;
    let (reader, writer) = tokio::io::split(stream);
    Ok(Stream::new(reader, writer, Some(peer), Some(address)))
}

/// Connects to `node` at HOST:PORT; `connector` accepts nobody else there.
pub(super) async fn dial(
    connector: TlsConnector,
    node: NodeId,
    address: String,
    purpose: Purpose,
) -> io::Result<Stream> {
    let mut stream = TcpStream::connect(&address).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&purpose.encode()).await?;
    let stream = connector.connect(server_name(), stream).await?;
    let (reader, writer) = tokio::io::split(stream);
    Ok(Stream::new(reader, writer, Some(node), Some(address)))
}
