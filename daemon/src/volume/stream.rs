//! The two kinds of connection a volume's thread has: TLS over TCP between machines, and a Unix
//! socket on one machine.

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use protocol::identity::{peer_id, server_name};
use protocol::ids::NodeId;
use protocol::preamble::Purpose;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{AcceptedStream, PoolView};

/// The reading half.
pub(super) type ReadHalf = Pin<Box<dyn AsyncRead>>;
/// The writing half.
pub(super) type WriteHalf = Pin<Box<dyn AsyncWrite>>;

/// A connection, with the identity behind it where TLS showed one.
pub(super) struct Stream {
    peer: Option<NodeId>,
    address: Option<String>,
    reader: ReadHalf,
    writer: WriteHalf,
}

impl Stream {
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

    fn tls<S>(stream: S, peer: Option<NodeId>, address: Option<String>) -> Self
    where
        S: AsyncRead + AsyncWrite + 'static,
    {
        let (reader, writer) = tokio::io::split(stream);
        Self {
            peer,
            address,
            reader: Box::pin(reader),
            writer: Box::pin(writer),
        }
    }
}

fn refused(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, error)
}

/// Takes over a connection that the listener accepted: greets by TLS where it came by TCP.
pub(super) async fn accept(pool: &dyn PoolView, stream: AcceptedStream) -> io::Result<Stream> {
    match stream {
        AcceptedStream::Unix(stream) => {
            stream.set_nonblocking(true)?;
            let (reader, writer) = UnixStream::from_std(stream)?.into_split();
            Ok(Stream {
                peer: None,
                address: None,
                reader: Box::pin(reader),
                writer: Box::pin(writer),
            })
        }
        AcceptedStream::Tcp(stream) => {
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let address = stream.peer_addr()?.to_string();
            let stream = TcpStream::from_std(stream)?;
            let stream = TlsAcceptor::from(pool.server_tls()).accept(stream).await?;
            let peer = peer_id(stream.get_ref().1.peer_certificates()).map_err(refused)?;
            Ok(Stream::tls(stream, Some(peer), Some(address)))
        }
    }
}

/// Connects to a member of the pool; whoever answers must be that member.
pub(super) async fn dial(
    pool: &dyn PoolView,
    node: NodeId,
    purpose: Purpose,
) -> io::Result<Stream> {
    let address = pool.address_of(node).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("node {node} is not in the pool"),
        )
    })?;
    let mut stream = TcpStream::connect(&address).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&purpose.encode()).await?;
    let config: Arc<rustls::ClientConfig> = pool.client_tls(node)?;
    let stream = TlsConnector::from(config)
        .connect(server_name(), stream)
        .await?;
    Ok(Stream::tls(stream, Some(node), Some(address)))
}
