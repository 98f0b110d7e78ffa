//! The daemon: one process per node. Joins the pool's control plane, the volumes' replicas and
//! the network.
//!
//! The control plane runs on the tokio runtime that [`Daemon::start`] is called on; volumes have
//! threads of their own, so neither makes the other wait.

#![forbid(unsafe_code)]

pub mod config;
pub mod control;
pub mod data_dir;
pub mod events;
mod exports;
mod http;
mod listener;
pub mod logging;
pub mod pool;
pub mod raft;
pub mod rpc;
pub mod volume;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use protocol::identity::IdentityError;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use config::DaemonConfig;
use data_dir::{DataDir, DataDirError};
use events::Severity;
use listener::Listener;
use pool::{Node, NodeError};

/// SIGTERM ends the daemon within 10 s: replicas have this long to checkpoint.
const STOP_WITHIN: Duration = Duration::from_secs(9);

/// Why the daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The port is taken, or the address is not this machine's.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the kernel says.
        source: std::io::Error,
    },
    /// The directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The node does not come up.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The identity cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// A running daemon.
pub struct Daemon {
    /// The node.
    pub node: Arc<Node>,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where it serves HTTP.
    pub http: Option<SocketAddr>,
    config: DaemonConfig,
    tasks: JoinSet<()>,
    /// Dropped last: the lock on the directory.
    data: DataDir,
}

impl Daemon {
    /// Starts everything. On return control socket and port answer; bricks may still recover.
    pub async fn start(config: DaemonConfig) -> Result<Self, DaemonError> {
        let data = DataDir::open(&config.data_dir)?;
        let listen_error = |source| DaemonError::Listen {
            address: config.listen,
            source,
        };
        let tcp = TcpListener::bind(config.listen)
            .await
            .map_err(listen_error)?;
        let listen = tcp.local_addr().map_err(listen_error)?;
        let node = Node::open(&config, &data, listen).await?;
        let control = control::bind_socket(&data.control_socket())?;
        let local = control::bind_socket(&data.data_socket())?;
        let listener = Listener::new(Arc::clone(&node))?;
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&listener).accept_tcp(tcp));
        tasks.spawn(listener.accept_unix(local));
        tasks.spawn(control::serve(Arc::clone(&node), control));
        node.exports.resume().await;
        let http = start_http(&config, &node, &mut tasks).await;
        Ok(Self {
            node,
            listen,
            http,
            config,
            tasks,
            data,
        })
    }

    /// The line that says that the daemon is ready.
    #[must_use]
    pub fn ready_line(&self) -> String {
        let http = self
            .http
            .map_or_else(|| "off".to_owned(), |address| address.to_string());
        format!(
            "cairnd ready name={} listen={} http={http}",
            self.node.name, self.listen
        )
    }

    /// Takes over what can change while running, and says what cannot.
    pub async fn reload(&mut self, new: DaemonConfig) {
        let mut later = Vec::new();
        let old = &self.config;
        for (key, changed) in [
            ("name", old.name != new.name),
            ("listen", old.listen != new.listen),
            ("http", old.http != new.http),
            ("http-full", old.http_full != new.http_full),
        ] {
            if changed {
                later.push(key);
            }
        }
        if old.advertise != new.advertise {
            self.node.readvertise(new.advertise.clone()).await;
            self.config.advertise = new.advertise;
        }
        let message = if later.is_empty() {
            "the configuration was read again".to_owned()
        } else {
            format!(
                "the configuration was read again; {} change at the next start",
                later.join(", ")
            )
        };
        self.node
            .events
            .record(Severity::Info, "configuration_read", None, &message);
    }

    /// Ends within 10 s: takes no more connections, lets replicas checkpoint, leaves the group.
    pub async fn stop(mut self) {
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
        if tokio::time::timeout(STOP_WITHIN, self.node.stop())
            .await
            .is_err()
        {
            tracing::warn!("replicas did not close in time; they recover at the next start");
        }
        for socket in [self.data.control_socket(), self.data.data_socket()] {
            // A socket that stays is replaced at the next start.
            let _ = std::fs::remove_file(socket);
        }
    }
}

async fn start_http(
    config: &DaemonConfig,
    node: &Arc<Node>,
    tasks: &mut JoinSet<()>,
) -> Option<SocketAddr> {
    let wanted = config.http?;
    let bound = match TcpListener::bind(wanted).await {
        Ok(listener) => listener.local_addr().map(|address| (listener, address)),
        Err(error) => Err(error),
    };
    match bound {
        Ok((listener, address)) => {
            let full = http::is_full(address, config.http_full);
            tasks.spawn(http::serve(Arc::clone(node), listener, full));
            Some(address)
        }
        Err(error) => {
            node.events.record(
                Severity::Warning,
                "http_off",
                None,
                &format!("HTTP is not served on {wanted}: {error}"),
            );
            None
        }
    }
}
