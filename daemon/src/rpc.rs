//! Requests to other nodes: TLS connections to a pinned identity, kept for the next request.
//!
//! A connection carries one request at a time. Raft heartbeats therefore never wait behind a slow
//! command: a second request takes a second connection.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use parking_lot::Mutex;
use protocol::frame::{FrameError, RawFrame, take_frame};
use protocol::identity::{self, Identity, IdentityError};
use protocol::ids::NodeId;
use protocol::node_rpc::{self, NodeReply, NodeRequest, RpcCodecError};
use protocol::preamble::Purpose;
use serde::{Serialize, de::DeserializeOwned};
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Connections kept per node for the next request.
const IDLE_CONNECTIONS_MAX: usize = 4;
/// No request waits longer for a dead node.
pub const CALL_WITHIN: Duration = Duration::from_secs(5);
/// A status request waits no longer.
pub const STATUS_WITHIN: Duration = Duration::from_secs(1);

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The name does not resolve.
    #[error("{address} does not resolve: {source}")]
    Resolve {
        /// What was looked up.
        address: String,
        /// What the resolver says.
        source: io::Error,
    },
    /// Nobody accepts there.
    #[error("{address} does not accept connections: {source}")]
    Connect {
        /// Where.
        address: String,
        /// What the kernel says.
        source: io::Error,
    },
    /// Too slow.
    #[error("{address} did not answer within {} ms", within.as_millis())]
    Timeout {
        /// Where.
        address: String,
        /// The limit.
        within: Duration,
    },
    /// The connection broke, or TLS refused the other end.
    #[error("the connection to {address} broke: {source}")]
    Broken {
        /// Where.
        address: String,
        /// What the kernel or TLS says.
        source: io::Error,
    },
    /// The other end does not speak this protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The other end's message is not what was due.
    #[error(transparent)]
    Codec(#[from] RpcCodecError),
    /// This node's own identity cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// A connection that carries frames of JSON.
pub(crate) struct FrameStream<S> {
    stream: S,
    inbox: BytesMut,
}

/// Why a frame could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl<S: AsyncRead + AsyncWrite + Unpin> FrameStream<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            inbox: BytesMut::new(),
        }
    }

    /// The next frame; `None` at the end between two frames.
    pub(crate) async fn read(&mut self) -> Result<Option<RawFrame>, ReadError> {
        loop {
            if let Some(frame) = take_frame(&mut self.inbox)? {
                return Ok(Some(frame));
            }
            if self.stream.read_buf(&mut self.inbox).await? == 0 {
                if self.inbox.is_empty() {
                    return Ok(None);
                }
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }

    pub(crate) async fn write(&mut self, frame: &RawFrame) -> io::Result<()> {
        let mut out = BytesMut::new();
        frame.write_to(&mut out);
        self.stream.write_all(&out).await?;
        self.stream.flush().await
    }
}

type NodeStream = FrameStream<TlsStream<TcpStream>>;

/// Sends one request and reads its reply.
pub(crate) async fn exchange<S, Q, R>(
    stream: &mut FrameStream<S>,
    address: &str,
    request: &Q,
) -> Result<R, CallError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    Q: Serialize,
    R: DeserializeOwned,
{
    let broken = |source| CallError::Broken {
        address: address.to_owned(),
        source,
    };
    let frame = node_rpc::encode(node_rpc::kind::REQUEST, request)?;
    stream.write(&frame).await.map_err(broken)?;
    match stream.read().await {
        Ok(Some(frame)) => Ok(node_rpc::decode(node_rpc::kind::REPLY, &frame)?),
        Ok(None) => Err(broken(io::ErrorKind::ConnectionReset.into())),
        Err(ReadError::Io(source)) => Err(broken(source)),
        Err(ReadError::Frame(error)) => Err(error.into()),
    }
}

/// Connects, says the purpose, and does the handshake with `expected`, or with anyone.
pub(crate) async fn connect(
    identity: &Identity,
    address: &str,
    expected: Option<NodeId>,
    purpose: Purpose,
) -> Result<TlsStream<TcpStream>, CallError> {
    let mut found: Vec<_> = tokio::net::lookup_host(address)
        .await
        .map_err(|source| CallError::Resolve {
            address: address.to_owned(),
            source,
        })?
        .collect();
    found.truncate(8);
    let connect_error = |source| CallError::Connect {
        address: address.to_owned(),
        source,
    };
    let mut tcp = TcpStream::connect(found.as_slice())
        .await
        .map_err(connect_error)?;
    let broken = |source| CallError::Broken {
        address: address.to_owned(),
        source,
    };
    tcp.set_nodelay(true).map_err(broken)?;
    notice_death(&tcp).map_err(|errno| broken(errno.into()))?;
    tcp.write_all(&purpose.encode()).await.map_err(broken)?;
    let config = match expected {
        Some(node) => identity.client_config_for(node)?,
        None => identity.client_config()?,
    };
    TlsConnector::from(config)
        .connect(identity::server_name(), tcp)
        .await
        .map_err(broken)
}

/// A long request (comparing replicas) ends when the other machine is gone, not with its limit.
fn notice_death(tcp: &TcpStream) -> rustix::io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_socket_keepalive(tcp, true)?;
    sockopt::set_tcp_keepidle(tcp, Duration::from_secs(2))?;
    sockopt::set_tcp_keepintvl(tcp, Duration::from_secs(1))?;
    sockopt::set_tcp_keepcnt(tcp, 3)?;
    sockopt::set_tcp_user_timeout(tcp, 5_000)
}

/// Requests to the pool's nodes.
pub struct NodeClients {
    identity: Arc<Identity>,
    idle: Mutex<BTreeMap<NodeId, Vec<(String, NodeStream)>>>,
    last_seen: Mutex<BTreeMap<NodeId, OffsetDateTime>>,
}

impl NodeClients {
    /// Speaks as `identity`.
    #[must_use]
    pub fn new(identity: Arc<Identity>) -> Self {
        Self {
            identity,
            idle: Mutex::default(),
            last_seen: Mutex::default(),
        }
    }

    /// When the node was last heard of.
    #[must_use]
    pub fn last_seen(&self, node: NodeId) -> Option<OffsetDateTime> {
        self.last_seen.lock().get(&node).copied()
    }

    /// Notes that the node was heard of now.
    pub fn heard_of(&self, node: NodeId) {
        self.last_seen
            .lock()
            .insert(node, OffsetDateTime::now_utc());
    }

    /// Asks `node` at `address`. Only for requests that may arrive twice: an idle connection
    /// that turns out to be broken is replaced and the request sent again.
    pub async fn call(
        &self,
        node: NodeId,
        address: &str,
        request: &NodeRequest,
        within: Duration,
    ) -> Result<NodeReply, CallError> {
        let work = async {
            while let Some(mut stream) = self.take_idle(node, address) {
                match exchange(&mut stream, address, request).await {
                    Ok(reply) => {
                        self.keep(node, address, stream);
                        return Ok(reply);
                    }
                    Err(error) => tracing::debug!(%node, %error, "an idle connection was dead"),
                }
            }
            self.fresh(node, address, request).await
        };
        self.within(address, within, work).await
    }

    /// Asks `node` at `address` over a new connection: the request is sent at most once.
    pub async fn call_once(
        &self,
        node: NodeId,
        address: &str,
        request: &NodeRequest,
        within: Duration,
    ) -> Result<NodeReply, CallError> {
        let work = self.fresh(node, address, request);
        self.within(address, within, work).await
    }

    async fn within(
        &self,
        address: &str,
        within: Duration,
        work: impl Future<Output = Result<NodeReply, CallError>>,
    ) -> Result<NodeReply, CallError> {
        tokio::time::timeout(within, work)
            .await
            .unwrap_or_else(|_| {
                Err(CallError::Timeout {
                    address: address.to_owned(),
                    within,
                })
            })
    }

    async fn fresh(
        &self,
        node: NodeId,
        address: &str,
        request: &NodeRequest,
    ) -> Result<NodeReply, CallError> {
        let stream = connect(&self.identity, address, Some(node), Purpose::Rpc).await?;
        let mut stream = FrameStream::new(stream);
        let reply = exchange(&mut stream, address, request).await?;
        self.keep(node, address, stream);
        Ok(reply)
    }

    fn take_idle(&self, node: NodeId, address: &str) -> Option<NodeStream> {
        let mut idle = self.idle.lock();
        let kept = idle.get_mut(&node)?;
        // A node that moved is not looked for at its old address.
        kept.retain(|(at, _)| at == address);
        kept.pop().map(|(_, stream)| stream)
    }

    fn keep(&self, node: NodeId, address: &str, stream: NodeStream) {
        self.heard_of(node);
        let mut idle = self.idle.lock();
        let kept = idle.entry(node).or_default();
        if kept.len() < IDLE_CONNECTIONS_MAX {
            kept.push((address.to_owned(), stream));
        }
    }

    /// Closes what is kept to a node: it left the pool.
    pub fn forget(&self, node: NodeId) {
        self.idle.lock().remove(&node);
        self.last_seen.lock().remove(&node);
    }
}
