//! Connections of NBD clients at one address.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nbd::handshake::{Export, Handshake, Refusal, Security};
use nbd::server::{Ended, Negotiated, negotiate, transmit};
use protocol::identity::{self, PeerIdError};
use protocol::ids::NodeId;
use protocol::options::Options;
use protocol::volume::VolumeSpec;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;

use super::address::{Address, Bound};
use super::disk::SessionDisk;
use super::{Exports, Target};
use crate::listener::accept_each;
use crate::logging::RateLimit;
use crate::raft::Access;

/// Connections between `accept` and the choice of a disk; at the limit new ones wait in the kernel.
const HALF_OPEN_MAX: usize = 64;
/// Clients of one address. Many of one machine are one client's that asks in parallel.
pub(super) const CLIENTS_MAX: usize = 256;
/// A client has chosen a disk within this.
const CHOSEN_WITHIN: Duration = Duration::from_secs(15);
const COMPLAINTS_PER_MINUTE_MAX: u32 = 10;
/// What TCP asks a client that says nothing, so that a dead one gives its place back.
const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(60);

/// Why a connection was closed.
#[derive(Debug, thiserror::Error)]
enum Closed {
    #[error("it chose no disk within {} s", CHOSEN_WITHIN.as_secs())]
    Slow,
    #[error(transparent)]
    Ended(#[from] Ended),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Peer(#[from] PeerIdError),
    #[error("the disk is not served here any more")]
    Unexported,
    #[error("its right to the volume has ended")]
    Revoked,
    #[error("{CLIENTS_MAX} clients are connected already")]
    TooMany,
}

impl Closed {
    /// Clients that end, or are killed, are no news.
    fn is_ordinary(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        match self {
            Self::Io(error) | Self::Ended(Ended::Io(error)) => {
                matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
            }
            Self::Unexported => true,
            _ => false,
        }
    }
}

/// Who is at the other end.
#[derive(Debug, Clone, Copy)]
struct Peer {
    /// Proven by TLS.
    key: Option<NodeId>,
    /// `None`: this machine, by a socket.
    address: Option<SocketAddr>,
}

/// One address.
pub(super) struct Place {
    exports: Arc<Exports>,
    address: Address,
    tls: TlsAcceptor,
    half_open: Arc<Semaphore>,
    clients: Arc<Semaphore>,
    complaints: RateLimit,
}

impl Place {
    pub(super) fn new(exports: Arc<Exports>, address: Address, tls: TlsAcceptor) -> Arc<Self> {
        Arc::new(Self {
            exports,
            address,
            tls,
            half_open: Arc::new(Semaphore::new(HALF_OPEN_MAX)),
            clients: Arc::new(Semaphore::new(CLIENTS_MAX)),
            complaints: RateLimit::new(COMPLAINTS_PER_MINUTE_MAX, Duration::from_secs(60)),
        })
    }

    /// Accepts until the task is ended.
    pub(super) async fn accept(self: Arc<Self>, bound: Bound) {
        match bound {
            Bound::Tcp(listener) => {
                let accept = || listener.accept();
                accept_each(&self.half_open, accept, |(stream, from), half_open| {
                    tokio::spawn(Arc::clone(&self).begin_tcp(stream, from, half_open));
                })
                .await;
            }
            Bound::Unix(listener) => {
                let accept = || listener.accept();
                accept_each(&self.half_open, accept, |(stream, _), half_open| {
                    tokio::spawn(Arc::clone(&self).begin_unix(stream, half_open));
                })
                .await;
            }
        }
    }

    async fn begin_tcp(
        self: Arc<Self>,
        stream: TcpStream,
        from: SocketAddr,
        half_open: OwnedSemaphorePermit,
    ) {
        let set = stream.set_nodelay(true).and_then(|()| keep_alive(&stream));
        let peer = Peer {
            key: None,
            address: Some(from),
        };
        let done = match set {
            Ok(()) => self.serve(stream, peer, half_open).await,
            Err(error) => Err(error.into()),
        };
        self.complain(&from, done);
    }

    async fn begin_unix(self: Arc<Self>, stream: UnixStream, half_open: OwnedSemaphorePermit) {
        let peer = Peer {
            key: None,
            address: None,
        };
        let done = self.serve(stream, peer, half_open).await;
        self.complain(&self.address, done);
    }

    fn complain(&self, from: &dyn std::fmt::Display, done: Result<(), Closed>) {
        let Err(reason) = done else { return };
        if reason.is_ordinary() {
            tracing::debug!(%from, %reason, "an NBD client's connection ended");
        } else if let Some(held_back) = self.complaints.pass(Instant::now()) {
            tracing::warn!(%from, %reason, held_back, "an NBD client's connection was closed");
        }
    }

    /// Whether TLS may or must be there. Where any disk at the address is not to be read in the open,
    /// nothing is told before.
    fn security(&self) -> Security {
        if self.address.is_local() || self.exports.all_insecure_at(&self.address) {
            Security::Offered
        } else {
            Security::Required
        }
    }

    async fn serve<S>(
        &self,
        mut stream: S,
        mut peer: Peer,
        half_open: OwnedSemaphorePermit,
    ) -> Result<(), Closed>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let until = tokio::time::Instant::now() + CHOSEN_WITHIN;
        let found = Found {
            place: self,
            peer,
            target: parking_lot::Mutex::new(None),
        };
        let handshake = Handshake::new(self.security());
        let negotiated = negotiate(&mut stream, handshake, true, &found);
        let negotiated = tokio::time::timeout_at(until, negotiated).await;
        let target = found.target.into_inner();
        let inside = match negotiated.map_err(|_| Closed::Slow)?? {
            Negotiated::Left => return Ok(()),
            Negotiated::Tls(inside) => inside,
            Negotiated::Disk(agreed, disk, early) => {
                drop(half_open);
                let (reader, writer) = tokio::io::split(stream);
                let serving = transmit(reader, writer, early, &agreed, disk, &self.exports.limits);
                return self.attend(serving, peer, target).await;
            }
        };
        let accepting = self.tls.accept(stream);
        let accepted = tokio::time::timeout_at(until, accepting).await;
        let mut tls = accepted.map_err(|_| Closed::Slow)??;
        peer.key = Some(identity::peer_id(tls.get_ref().1.peer_certificates())?);
        let found = Found {
            place: self,
            peer,
            target: parking_lot::Mutex::new(None),
        };
        let negotiated = negotiate(&mut tls, inside, false, &found);
        let negotiated = tokio::time::timeout_at(until, negotiated).await;
        let target = found.target.into_inner();
        match negotiated.map_err(|_| Closed::Slow)?? {
            Negotiated::Left | Negotiated::Tls(_) => Ok(()),
            Negotiated::Disk(agreed, disk, early) => {
                drop(half_open);
                let (reader, writer) = tokio::io::split(tls);
                let serving = transmit(reader, writer, early, &agreed, disk, &self.exports.limits);
                self.attend(serving, peer, target).await
            }
        }
    }

    /// Serves as long as the disk is exported and the client has a right to it.
    async fn attend(
        &self,
        serving: impl Future<Output = Result<(), Ended>>,
        peer: Peer,
        target: Option<Target>,
    ) -> Result<(), Closed> {
        let Ok(_place) = self.clients.try_acquire() else {
            return Err(Closed::TooMany);
        };
        let Some(target) = target else {
            return Err(Closed::Unexported);
        };
        let mut ended = target.ended.clone();
        let mut pool = self.exports.pool.subscribe();
        tokio::pin!(serving);
        loop {
            tokio::select! {
                done = &mut serving => return Ok(done?),
                gone = ended.wait_for(|over| *over) => {
                    drop(gone);
                    return Err(Closed::Unexported);
                }
                changed = pool.changed() => {
                    if changed.is_err() {
                        return Err(Closed::Unexported);
                    }
                    let state = self.exports.pool.state();
                    let spec = state.volumes.get(&target.volume);
                    let access = spec.and_then(|spec| self.access(spec, peer));
                    // Whoever could write before keeps that no longer than the right to.
                    let less = |access| access == Access::ReadOnly && !target.read_only;
                    if access.is_none_or(less) {
                        return Err(Closed::Revoked);
                    }
                }
            }
        }
    }

    /// What this client may do with a volume.
    fn access(&self, spec: &VolumeSpec, peer: Peer) -> Option<Access> {
        let state = self.exports.pool.state();
        let (access, name) = match peer.key {
            Some(key) => {
                let member = state.members.get(&key).map(|member| member.name.as_str());
                let client = state.client_of(key).map(|(name, _)| name);
                (state.access(key, spec.id)?, member.or(client)?)
            }
            // Whom the operator let in without TLS; on this machine it is this node that asks.
            None if self.address.is_local() => (Access::Full, self.exports.name.as_str()),
            None => (Access::Full, ""),
        };
        let mut addresses: Vec<IpAddr> = peer.address.map(|from| from.ip()).into_iter().collect();
        if peer.address.is_none() {
            addresses.push(Ipv4Addr::LOCALHOST.into());
        }
        let allowed = Options::new(&spec.options).allowed();
        allowed.admits(&addresses, name).then_some(access)
    }
}

/// What one client may find.
struct Found<'a> {
    place: &'a Place,
    peer: Peer,
    /// What it was told of last.
    target: parking_lot::Mutex<Option<Target>>,
}

impl nbd::server::Exports for Found<'_> {
    type Disk = SessionDisk;

    fn names(&self) -> Vec<String> {
        let at = self.place.exports.at(&self.place.address);
        let may = |spec: &VolumeSpec| self.place.access(spec, self.peer).is_some();
        let mine = at.into_iter().filter(|(spec, _)| may(spec));
        mine.map(|(spec, _)| spec.name).collect()
    }

    async fn find(&self, name: &str) -> Result<(Export, Arc<SessionDisk>), Refusal> {
        let place = self.place;
        let at = place.exports.at(&place.address);
        let alone = at.len() == 1;
        let mut at = at.into_iter();
        let named = at.find(|(spec, _)| spec.name == name || (name.is_empty() && alone));
        let Some((spec, entry)) = named else {
            return Err(Refusal::Unknown);
        };
        let open = self.peer.key.is_none() && !place.address.is_local() && !entry.insecure;
        let access = place.access(&spec, self.peer).filter(|_| !open);
        let Some(access) = access else {
            return Err(Refusal::Unknown);
        };
        if place.clients.available_permits() == 0 {
            return Err(Refusal::Policy);
        }
        let session = place.exports.session(&spec).await;
        let session = session.map_err(|error| {
            tracing::info!(volume = %spec.name, %error, "an NBD client cannot be served");
            Refusal::Shutdown
        })?;
        let disk = Arc::new(SessionDisk::new(session, place.exports.next_user()));
        let size = nbd::disk::Disk::size(&*disk).await;
        let read_only = access == Access::ReadOnly || Options::new(&spec.options).on("read-only");
        *self.target.lock() = Some(Target {
            volume: spec.id,
            read_only,
            ended: entry.ended.subscribe(),
        });
        let export = Export {
            description: format!("block volume {}", spec.name),
            name: spec.name,
            size: size.map_err(|_| Refusal::Shutdown)?,
            read_only,
        };
        Ok((export, disk))
    }
}

fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    rustix::net::sockopt::set_socket_keepalive(stream, true)?;
    rustix::net::sockopt::set_tcp_keepidle(stream, KEEP_ALIVE_AFTER)?;
    rustix::net::sockopt::set_tcp_keepintvl(stream, KEEP_ALIVE_AFTER / 4)?;
    Ok(())
}
