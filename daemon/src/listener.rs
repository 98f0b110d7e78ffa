//! The one TCP port and the data socket: reads who a connection is for, and hands it on.
//!
//! Whatever a stranger sends costs at most one of [`HALF_OPEN_MAX`] places for a few seconds and
//! one line in a rate-limited log (BAD-1).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::identity::{self, PeerIdError};
use protocol::ids::VolumeId;
use protocol::preamble::{BadPreamble, PREAMBLE_BYTES, Purpose};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;

use crate::logging::RateLimit;
use crate::pool::{Caller, Node, ServeError};
use crate::rpc::ReadError;
use crate::volume::{AcceptedStream, VolumeHandle};

/// Connections between `accept` and the end of the handshake. At the limit new ones wait in the
/// kernel's backlog.
const HALF_OPEN_MAX: usize = 256;
/// Connections with requests; at the limit the newest is closed.
const REQUEST_CONNECTIONS_MAX: usize = 1024;
/// Preamble and handshake have to be there within this.
const BEGIN_WITHIN: Duration = Duration::from_secs(5);
/// Pause when the process has no file descriptors left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// Lines about strangers, each minute.
const COMPLAINTS_PER_MINUTE_MAX: u32 = 10;

/// Why a connection was closed.
#[derive(Debug, thiserror::Error)]
enum Closed {
    #[error("nothing useful came within {} s", BEGIN_WITHIN.as_secs())]
    Slow,
    #[error("it ended in the middle of the preamble or handshake: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Preamble(#[from] BadPreamble),
    #[error("it asks for a purpose that this socket does not serve")]
    Purpose,
    #[error(transparent)]
    Peer(#[from] PeerIdError),
    #[error("no replica of the volume runs here")]
    NoReplica,
    #[error("{REQUEST_CONNECTIONS_MAX} connections with requests are open already")]
    TooMany,
    #[error(transparent)]
    Serve(#[from] ServeError),
}

impl Closed {
    /// A node that was killed ends its connections like this; that is no offence.
    fn is_ordinary(&self) -> bool {
        let ServeError::Read(ReadError::Io(error)) = (match self {
            Self::Serve(error) => error,
            _ => return false,
        }) else {
            return false;
        };
        matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
        )
    }
}

/// Accepts until the task is ended; each connection begins with one of the places of `half_open`. While
/// there is none, connections wait in the kernel.
pub(crate) async fn accept_each<C, A: Future<Output = io::Result<C>>>(
    half_open: &Arc<Semaphore>,
    accept: impl Fn() -> A,
    begin: impl Fn(C, OwnedSemaphorePermit),
) {
    loop {
        let Ok(place) = Arc::clone(half_open).acquire_owned().await else {
            return;
        };
        match accept().await {
            Ok(connection) => begin(connection, place),
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted just now");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

/// Accepts connections for a node.
pub(crate) struct Listener {
    node: Arc<Node>,
    tls: TlsAcceptor,
    half_open: Arc<Semaphore>,
    requests: Arc<Semaphore>,
    complaints: RateLimit,
}

impl Listener {
    pub(crate) fn new(node: Arc<Node>) -> Result<Arc<Self>, identity::IdentityError> {
        let tls = TlsAcceptor::from(node.identity.server_config()?);
        Ok(Arc::new(Self {
            node,
            tls,
            half_open: Arc::new(Semaphore::new(HALF_OPEN_MAX)),
            requests: Arc::new(Semaphore::new(REQUEST_CONNECTIONS_MAX)),
            complaints: RateLimit::new(COMPLAINTS_PER_MINUTE_MAX, Duration::from_secs(60)),
        }))
    }

    /// Accepts on the port until the task is ended.
    pub(crate) async fn accept_tcp(self: Arc<Self>, listener: TcpListener) {
        let accept = || listener.accept();
        accept_each(&self.half_open, accept, |(stream, from), place| {
            let this = Arc::clone(&self);
            tokio::spawn(async move {
                if let Err(reason) = this.begin_tcp(stream, from, place).await {
                    this.complain(&from, &reason);
                }
            });
        })
        .await;
    }

    /// Accepts on the data socket until the task is ended.
    pub(crate) async fn accept_unix(self: Arc<Self>, listener: UnixListener) {
        let accept = || listener.accept();
        accept_each(&self.half_open, accept, |(stream, _), place| {
            let this = Arc::clone(&self);
            tokio::spawn(async move {
                if let Err(reason) = this.begin_unix(stream, place).await {
                    this.complain(&"the data socket", &reason);
                }
            });
        })
        .await;
    }

    /// The volume's replica, or the one that keeps the given-up side of that id.
    fn replica_for(&self, volume: VolumeId) -> Option<VolumeHandle> {
        let volumes = &self.node.volumes;
        volumes.handle(volume).or_else(|| volumes.keeper(volume))
    }

    fn complain(&self, from: &dyn std::fmt::Display, reason: &Closed) {
        if reason.is_ordinary() {
            tracing::debug!(%from, %reason, "a connection ended");
            return;
        }
        if let Some(held_back) = self.complaints.pass(Instant::now()) {
            tracing::warn!(%from, %reason, held_back, "a connection was closed");
        }
    }

    async fn begin_tcp(
        &self,
        mut stream: TcpStream,
        from: SocketAddr,
        place: OwnedSemaphorePermit,
    ) -> Result<(), Closed> {
        stream.set_nodelay(true)?;
        let began = Instant::now();
        let purpose = purpose(&mut stream).await?;
        match purpose {
            Purpose::Rpc | Purpose::Join => {}
            Purpose::Replica(volume) | Purpose::Client(volume) => {
                let handle = self.replica_for(volume).ok_or(Closed::NoReplica)?;
                let stream = stream.into_std()?;
                stream.set_nonblocking(false)?;
                handle.accept(AcceptedStream::Tcp(stream), purpose);
                return Ok(());
            }
        }
        let left = BEGIN_WITHIN.saturating_sub(began.elapsed());
        let tls = tokio::time::timeout(left, self.tls.accept(stream))
            .await
            .map_err(|_| Closed::Slow)??;
        let peer = identity::peer_id(tls.get_ref().1.peer_certificates())?;
        drop(place);
        let Ok(_place) = self.requests.try_acquire() else {
            return Err(Closed::TooMany);
        };
        if purpose == Purpose::Join {
            self.node.serve_join(tls, peer, from.ip()).await?;
        } else {
            self.node.serve_requests(tls, Caller::Key(peer)).await?;
        }
        Ok(())
    }

    async fn begin_unix(
        &self,
        mut stream: UnixStream,
        place: OwnedSemaphorePermit,
    ) -> Result<(), Closed> {
        let purpose = purpose(&mut stream).await?;
        match purpose {
            Purpose::Rpc => {
                drop(place);
                let Ok(_place) = self.requests.try_acquire() else {
                    return Err(Closed::TooMany);
                };
                self.node.serve_requests(stream, Caller::Local).await?;
                Ok(())
            }
            Purpose::Client(volume) => {
                let handle = self.replica_for(volume).ok_or(Closed::NoReplica)?;
                let stream = stream.into_std()?;
                stream.set_nonblocking(false)?;
                handle.accept(AcceptedStream::Unix(stream), purpose);
                Ok(())
            }
            Purpose::Join | Purpose::Replica(_) => Err(Closed::Purpose),
        }
    }
}

async fn purpose<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Purpose, Closed> {
    let mut bytes = [0; PREAMBLE_BYTES];
    tokio::time::timeout(BEGIN_WITHIN, stream.read_exact(&mut bytes))
        .await
        .map_err(|_| Closed::Slow)??;
    Ok(Purpose::decode(&bytes)?)
}
