//! The data plane: this node's replica of one volume, on a thread of its own.
//!
//! | module | what |
//! | --- | --- |
//! | [`agreement`] | what the pool agrees about roles |
//! | [`driver`] | the owner: machine, namespace and brick joined, one event at a time |
//! | [`clients`], [`sessions`] | mounts: connections, requests, what they hold open |
//! | [`replay`], [`gathering`], [`doubts`] | what clients kept until it is stable, put back after it was lost |
//! | [`lifetimes`] | how long sessions live, and what they hold open |
//! | [`locks`] | who waits for a lock |
//! | [`keys`] | the brick as the namespace sees it |
//! | [`links`], [`acks`] | connections between replicas; what a follower tells of itself |
//! | [`held`] | answers that wait for what they rest on |
//! | [`kept`] | sides that were given up, served to mounts |
//! | [`differences`] | what differs between two sides, by name |
//! | [`failback`] | the role goes back to the preferred node |
//! | [`fencing`] | the volume's fence command |
//! | [`losses`] | what is said about replicas left behind and operations lost |
//! | [`received`] | what a primary sent and is not applied yet |
//! | [`points`] | what a target keeps of the time before a resync |
//! | [`room`] | nothing is ordered that a replica cannot hold |
//! | [`splits`] | what is said about two histories that diverged |
//! | [`source`], [`target`] | catching up: journal's tail, dirty map, everything by hash |
//! | [`verify`] | replicas compared |
//! | [`repair`] | blocks that cannot be read here, taken from another replica |
//! | [`strangers`] | who is not taken for a replica |
//! | [`words`] | sentences for operators |
//! | [`bricks`] | making, refusing and marking brick directories |
//! | [`thread`] | the thread, its tasks, its end |

mod acks;
mod agreement;
mod batch;
mod bricks;
mod clients;
mod copying;
mod differences;
mod doubts;
mod driver;
mod failback;
mod fencing;
mod gathering;
mod held;
mod kept;
mod keys;
mod leases;
mod lifetimes;
mod links;
mod locks;
mod losses;
mod outbox;
mod pace;
mod points;
mod received;
mod repair;
mod replay;
mod report;
mod room;
mod sessions;
mod settings;
mod source;
mod splits;
mod strangers;
mod stream;
mod tail;
mod target;
mod thread;
mod verify;
mod words;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use protocol::identity::Identity;
use protocol::ids::{NodeId, VolumeId};
use protocol::node_rpc::VolumeCommand;
use protocol::preamble::Purpose;
use protocol::report::{ConnectionState, DiskState, PeerReport, ReplicaReport, ReplicaRole};
use protocol::units::Term;
use protocol::volume::VolumeSpec;
use replication::machine::{Agreed, Proposed};
use replication::state::Mask;
use storage::{Brick, Medium, RecoveryReport};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::events::{EventLog, Severity};
use crate::pool::{ChangeError, PoolClient};
use crate::raft::Access;

pub use fencing::FenceOrder;
pub use kept::kept_id;
pub use keys::Keys;
pub use stream::Stream;
pub(crate) use words::split_side_text;

pub use bricks::{
    PrepareError, abort_brick, first_state, identity, mark_brick_deleted, prepare_brick,
};

/// How long a replica's thread may take to answer a question of status before it counts as busy.
const STATUS_TIMEOUT: Duration = Duration::from_millis(800);
/// Messages to the thread that may wait.
const INBOX_MAX: usize = 1024;

/// What a replica needs of its node.
#[derive(Clone)]
pub struct VolumeContext {
    /// This node.
    pub node: NodeId,
    /// Its name.
    pub node_name: String,
    /// The daemon's directory.
    pub data_dir: PathBuf,
    /// TLS configurations come from here.
    pub identity: Arc<Identity>,
    /// Members with addresses, volumes, replica sets (all watched), and the way to change them.
    pub pool: PoolClient,
    /// What operators should know.
    pub events: EventLog,
}

/// What an identity may do with a volume. By default what a node of the pool may: all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Right {
    /// The client's name, where it is one and no node.
    pub client: Option<String>,
    /// It may change nothing.
    pub read_only: bool,
}

impl Right {
    /// The name under which a mount is shown; `own` is what a node's mount calls itself.
    fn name_or(&self, own: &str) -> String {
        self.client.clone().unwrap_or_else(|| own.to_owned())
    }
}

/// A connection in the making.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Stream>>>>;

/// What a replica asks of its node: clocks, randomness, connections, the pool. A trait, so that
/// the same replica runs in a simulated world.
pub trait Host: Send + Sync {
    /// A clock that never steps back and goes on while the machine sleeps.
    fn now(&self) -> Duration;
    /// The time of day. It may step.
    fn wall(&self) -> SystemTime;
    /// Random bytes that nobody can guess.
    fn entropy(&self) -> [u8; 16];
    /// Connects to a member of the pool; whoever answers is that member.
    fn dial(&self, node: NodeId, purpose: Purpose) -> Connecting;
    /// Takes over a connection whose preamble was read, and finds out who is there.
    fn accept(&self, stream: AcceptedStream) -> Connecting;
    /// What the identity may do with the volume; `None`: nothing.
    fn right(&self, identity: NodeId, volume: VolumeId) -> Option<Right> {
        let _ = (identity, volume);
        Some(Right::default())
    }
    /// Name and addresses of a member of the pool; `None`: of this node.
    fn known_as(&self, node: Option<NodeId>) -> (String, Vec<IpAddr>) {
        let _ = node;
        (String::new(), Vec::new())
    }
    /// What the pool agreed about the volume's roles; `None`: its bricks decide.
    fn agreed(&self, volume: VolumeId) -> Option<Agreed>;
    /// Version of the volume's replicas ([`protocol::volume::Layout`]) that this node knows of.
    fn layout(&self, volume: VolumeId) -> u64;
    /// Wakes at each change of what the pool agreed about anything.
    fn changes(&self) -> watch::Receiver<()>;
    /// Has the pool agree on this if it is still at the version before. Answers within a second.
    fn propose(&self, volume: VolumeId, next: Agreed) -> oneshot::Receiver<Proposed>;
    /// A member's address as it is told to others; empty: it is not known.
    fn address(&self, node: NodeId) -> String {
        let _ = node;
        String::new()
    }
    /// Runs a fence command. The answer is why it failed.
    fn fence(&self, order: FenceOrder) -> oneshot::Receiver<Result<(), String>> {
        let (answer, wait) = oneshot::channel();
        let _ = answer.send(Err(format!("`{}` cannot be run here", order.command)));
        wait
    }
    /// Something that operators should know.
    fn event(&self, kind: &str, volume: &str, message: &str);
}

/// The real node.
struct RealHost {
    context: VolumeContext,
    acceptor: TlsAcceptor,
    /// Where the pool's own connections live.
    runtime: tokio::runtime::Handle,
}

impl Host for RealHost {
    fn now(&self) -> Duration {
        // CLOCK_BOOTTIME of clock_gettime(2).
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::try_from(time).unwrap_or_default()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    fn entropy(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        // Without randomness there are no identities and no TLS: the daemon does not get here.
        getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
        bytes
    }

    fn dial(&self, node: NodeId, purpose: Purpose) -> Connecting {
        let address = self.context.pool.member(node).map(|member| member.address);
        let tls = self.context.identity.client_config_for(node);
        Box::pin(async move {
            let address = address.ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::NotFound,
                    format!("node {node} is not in the pool"),
                )
            })?;
            let connector = TlsConnector::from(tls.map_err(io::Error::other)?);
            stream::dial(connector, node, address, purpose).await
        })
    }

    fn accept(&self, stream: AcceptedStream) -> Connecting {
        let acceptor = self.acceptor.clone();
        Box::pin(async move {
            match stream {
                AcceptedStream::Tcp(stream) => stream::accept_tcp(acceptor, stream).await,
                AcceptedStream::Unix(stream) => stream::accept_unix(stream),
                AcceptedStream::Ready(stream) => Ok(stream),
            }
        })
    }

    fn right(&self, identity: NodeId, volume: VolumeId) -> Option<Right> {
        if self.context.pool.is_member(identity) {
            return Some(Right::default());
        }
        let state = self.context.pool.state();
        let access = state.access(identity, volume)?;
        let client = state.client_of(identity)?.0.to_owned();
        Some(Right {
            client: Some(client),
            read_only: access == Access::ReadOnly,
        })
    }

    fn known_as(&self, node: Option<NodeId>) -> (String, Vec<IpAddr>) {
        let member = self.context.pool.member(node.unwrap_or(self.context.node));
        let (name, address) = member.map_or_else(
            || (self.context.node_name.clone(), String::new()),
            |member| (member.name, member.address),
        );
        let host = address.rsplit_once(':').map_or("", |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let mut addresses: Vec<IpAddr> = host.parse().into_iter().collect();
        if node.is_none() {
            addresses.extend([
                Ipv4Addr::LOCALHOST.into(),
                IpAddr::from(Ipv6Addr::LOCALHOST),
            ]);
        }
        (name, addresses)
    }

    fn agreed(&self, volume: VolumeId) -> Option<Agreed> {
        let set = self.context.pool.replica_set(volume)?;
        Some(Agreed {
            version: set.version,
            term: Term(set.term),
            primary: usize::from(set.primary),
            in_sync: Mask(set.in_sync),
        })
    }

    fn layout(&self, volume: VolumeId) -> u64 {
        let state = self.context.pool.state();
        state
            .volumes
            .get(&volume)
            .map_or(0, |spec| spec.layout.version)
    }

    fn changes(&self) -> watch::Receiver<()> {
        let (tell, told) = watch::channel(());
        let mut changes = self.context.pool.subscribe();
        self.runtime.spawn(async move {
            while changes.changed().await.is_ok() && tell.send(()).is_ok() {}
        });
        told
    }

    fn propose(&self, volume: VolumeId, next: Agreed) -> oneshot::Receiver<Proposed> {
        let (answer, wait) = oneshot::channel();
        let pool = self.context.pool.clone();
        self.runtime.spawn(async move {
            let primary = u8::try_from(next.primary).expect("REPLICAS_MAX");
            let done = pool
                .set_replica_set(
                    volume,
                    next.version - 1,
                    next.term.0,
                    primary,
                    next.in_sync.0,
                )
                .await;
            let outcome = match done {
                Ok(_) => Proposed::Agreed,
                Err(ChangeError::Refused(refusal)) => {
                    tracing::debug!(%refusal, "the pool refused a change of roles");
                    Proposed::Refused
                }
                Err(ChangeError::Undecided(refusal)) => {
                    tracing::debug!(%refusal, "the pool could not decide about roles");
                    Proposed::Undecided
                }
            };
            let _ = answer.send(outcome);
        });
        wait
    }

    fn address(&self, node: NodeId) -> String {
        let member = self.context.pool.member(node);
        member.map_or_else(String::new, |member| member.address)
    }

    fn fence(&self, order: FenceOrder) -> oneshot::Receiver<Result<(), String>> {
        let (answer, wait) = oneshot::channel();
        self.runtime.spawn_blocking(move || {
            // Whoever asked may be gone; the node is fenced all the same.
            let _ = answer.send(order.run());
        });
        wait
    }

    fn event(&self, kind: &str, volume: &str, message: &str) {
        let severity = match kind {
            "block_damaged" | "brick_failed" | "metadata_damaged" | "read_failed"
            | "resync_stopped" | "operations_lost" | "split_brain" | "fencing_failed"
            | "beyond_the_pool" | "later_primary" => Severity::Error,
            "replica_dropped"
            | "replica_lost"
            | "replica_left_behind"
            | "tail_given_up"
            | "replica_refused"
            | "link_malformed"
            | "split_brain_settled"
            | "fencing"
            | "fenced"
            | "resync_needs_room"
            | "point_lost"
            | "given_up_kept"
            | "went_back"
            | "primary_lost"
            | "block_repaired" => Severity::Warning,
            _ => Severity::Info,
        };
        self.context
            .events
            .record(severity, kind, Some(volume), message);
    }
}

/// A connection whose preamble was read.
#[derive(Debug)]
pub enum AcceptedStream {
    /// From the network: TLS comes next.
    Tcp(std::net::TcpStream),
    /// From this machine: no TLS.
    Unix(std::os::unix::net::UnixStream),
    /// From a node that is simulated: ready to use.
    Ready(Stream),
}

/// Why a replica does not start. The directory was not touched.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The brick cannot be opened.
    #[error("the brick {} cannot be opened: {source}", path.display())]
    Open {
        /// Its directory.
        path: PathBuf,
        /// Why.
        source: Box<storage::OpenError>,
    },
    /// What the replica remembers of its role does not parse.
    #[error("the brick {} remembers a role that cannot be read: {reason}", path.display())]
    State {
        /// Its directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The thread or its runtime could not be made.
    #[error("the volume's thread cannot be started: {0}")]
    Thread(#[source] io::Error),
    /// TLS could not be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
    /// Something else stopped the thread before it was ready.
    #[error("the volume's thread ended before it was ready")]
    Ended,
}

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It does not fit the replica's state.
    #[error("{reason}")]
    Refused {
        /// One word for programs.
        code: &'static str,
        /// One sentence.
        reason: String,
        /// What to do next.
        hint: String,
        /// Whether it was refused because data could be lost.
        data_loss: bool,
    },
}

impl CommandError {
    pub(crate) fn refused(code: &'static str, reason: impl Into<String>, hint: &str) -> Self {
        Self::Refused {
            code,
            reason: reason.into(),
            hint: hint.to_owned(),
            data_loss: false,
        }
    }
}

/// What is said to the volume's thread.
enum Said {
    Accept(AcceptedStream, Purpose),
    Spec(Box<VolumeSpec>),
    Status(oneshot::Sender<ReplicaReport>),
    Command(
        VolumeCommand,
        oneshot::Sender<Result<serde_json::Value, CommandError>>,
    ),
    Stop(oneshot::Sender<()>),
}

/// Runs this node's replica of one volume on its own thread. Cheap to clone.
#[derive(Clone)]
pub struct VolumeHandle {
    inner: Arc<Inner>,
}

struct Inner {
    inbox: mpsc::Sender<Said>,
    spec: Mutex<VolumeSpec>,
    me: usize,
    node: NodeId,
}

impl VolumeHandle {
    /// Opens the brick, recovers it, and starts. Blocks until that is done or refused.
    pub fn start(
        spec: VolumeSpec,
        my_replica: usize,
        ctx: VolumeContext,
    ) -> Result<Self, StartError> {
        let node = ctx.node;
        let server = ctx
            .identity
            .server_config()
            .map_err(|e| StartError::Tls(e.to_string()))?;
        let pool_id = ctx.pool.state().pool;
        let host: Arc<dyn Host> = Arc::new(RealHost {
            context: ctx,
            acceptor: TlsAcceptor::from(server),
            runtime: tokio::runtime::Handle::current(),
        });
        let (handle, messages) = Self::to(spec.clone(), my_replica, node);
        thread::start(spec, my_replica, pool_id, host, messages)?;
        Ok(handle)
    }

    /// A replica in surroundings of the caller's, on the caller's thread: the second value runs it
    /// until it is stopped and its brick is closed. It starts tasks by
    /// [`tokio::task::spawn_local`]. Dropped with them at any moment, it is as if its process died.
    pub fn over<M: Medium>(
        spec: VolumeSpec,
        my_replica: usize,
        host: Arc<dyn Host>,
        brick: Brick<M>,
        recovery: RecoveryReport,
    ) -> Result<(Self, impl Future<Output = ()>), StartError> {
        let path = PathBuf::from(&spec.replicas[my_replica].path);
        let state =
            bricks::state_of(&brick).map_err(|reason| StartError::State { path, reason })?;
        let node = spec.replicas[my_replica].node;
        let (handle, messages) = Self::to(spec.clone(), my_replica, node);
        let opened = (brick, recovery, state);
        let running = async move {
            if let Some(stopped) = thread::run(spec, my_replica, host, opened, messages).await {
                let _ = stopped.send(());
            }
        };
        Ok((handle, running))
    }

    fn to(spec: VolumeSpec, me: usize, node: NodeId) -> (Self, mpsc::Receiver<Said>) {
        let (inbox, messages) = mpsc::channel(INBOX_MAX);
        let inner = Inner {
            inbox,
            spec: Mutex::new(spec),
            me,
            node,
        };
        let handle = Self {
            inner: Arc::new(inner),
        };
        (handle, messages)
    }

    /// The volume's configuration changed. False: the thread takes no message for now, and must be
    /// told again.
    #[must_use]
    pub fn update_spec(&self, spec: VolumeSpec) -> bool {
        *self.inner.spec.lock() = spec.clone();
        self.say(Said::Spec(Box::new(spec)))
    }

    /// A connection for this volume. Closed where the thread is overwhelmed.
    pub fn accept(&self, stream: AcceptedStream, purpose: Purpose) {
        // What is not taken is closed.
        let _ = self.say(Said::Accept(stream, purpose));
    }

    fn say(&self, said: Said) -> bool {
        let taken = self.inner.inbox.try_send(said).is_ok();
        if !taken {
            tracing::warn!("a volume's thread takes no more messages for now");
        }
        taken
    }

    /// Whether the id names a point of this replica's brick.
    #[must_use]
    pub fn keeps(&self, id: VolumeId) -> bool {
        let spec = self.inner.spec.lock();
        let brick = spec.replicas.get(self.inner.me).map(|own| own.brick);
        brick.is_some_and(|brick| kept::point_of(id, spec.id, brick).is_some())
    }

    /// This replica's view. A thread that does not answer in time is reported as such.
    pub async fn status(&self) -> ReplicaReport {
        let (answer, wait) = oneshot::channel();
        let asked = self.inner.inbox.try_send(Said::Status(answer)).is_ok();
        if asked && let Ok(Ok(report)) = tokio::time::timeout(STATUS_TIMEOUT, wait).await {
            return report;
        }
        self.unknown()
    }

    fn unknown(&self) -> ReplicaReport {
        let spec = self.inner.spec.lock();
        let members = spec.members().map(|(replica, _)| replica);
        let peers = members.filter(|replica| *replica != self.inner.me);
        ReplicaReport {
            volume: spec.id,
            node: self.inner.node,
            replica: self.inner.me,
            role: ReplicaRole::Secondary,
            role_reason: None,
            disk: DiskState::Unknown,
            reason: Some("the volume's thread does not answer".to_owned()),
            serving: false,
            term: 0,
            generation: None,
            in_sync: false,
            peers: peers
                .map(|replica| PeerReport {
                    replica,
                    connection: ConnectionState::Connecting,
                    in_sync: false,
                    out_of_sync_bytes: None,
                    lag_bytes: None,
                    lag_seconds: None,
                    resync: None,
                    last_resync: None,
                    refusal: None,
                    link: None,
                })
                .collect(),
            resync: None,
            last_resync: None,
            size_bytes: spec.size_bytes,
            used_bytes: None,
            free_bytes: None,
            clients: Vec::new(),
            split_brain: None,
            protocol_in_force: None,
            lost_operations: 0,
            damaged_blocks: 0,
            repaired_blocks: 0,
            point: None,
            kept: Vec::new(),
        }
    }

    /// Does what an operator asks; returns when it is done.
    pub async fn command(&self, command: VolumeCommand) -> Result<serde_json::Value, CommandError> {
        let gone = || {
            CommandError::refused(
                "stopping",
                "the volume is stopping on this node",
                "look at `cairn volume status` and try again",
            )
        };
        let (answer, wait) = oneshot::channel();
        self.inner
            .inbox
            .send(Said::Command(command, answer))
            .await
            .map_err(|_| gone())?;
        wait.await.map_err(|_| gone())?
    }

    /// Hands the role over where another replica can take it, checkpoints and closes.
    pub async fn stop(&self) {
        let (answer, wait) = oneshot::channel();
        if self.inner.inbox.send(Said::Stop(answer)).await.is_ok() {
            let _ = wait.await;
        }
    }
}
