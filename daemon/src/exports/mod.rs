//! Disks that this node serves by NBD, wherever their primaries are.
//!
//! An export is this node's own affair: it stands in a file of the data directory, and is served again
//! after a restart. Each volume that is asked for has one session with its primary, as a mount has
//! one, which all clients share; so what one client's flush makes stable, and what one client wrote, is
//! the same for all of them.

mod address;
mod disk;
mod serve;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fuse_client::connection::{SystemConnector, TlsSource};
use fuse_client::session::{Session, SessionConfig, StartError};
use nbd::server::Limits;
use parking_lot::Mutex;
use protocol::identity::Identity;
use protocol::ids::{NodeId, VolumeId};
use protocol::node_rpc::Refusal;
use protocol::volume::{VolumeKind, VolumeSpec};
use serde::{Deserialize, Serialize};
use tokio::sync::{OnceCell, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::data_dir::write_durably;
use crate::events::{EventLog, Severity};
use crate::pool::{PoolClient, refuse, refuse_usage};
use address::Address;
use serve::Place;

/// Where the exports stand, in the data directory.
const FILE: &str = "exports.json";
/// Exports of one node.
const EXPORTS_MAX: usize = 1024;
/// Data and answers of all NBD clients of one node.
const BYTES_MAX: usize = 256 << 20;
/// How long the first client of a disk may wait for its primary.
const SESSION_WITHIN: Duration = Duration::from_secs(10);
/// Between attempts to listen at an address that could not be had at the start.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);
/// How long sessions may take to end with the daemon.
const END_WITHIN: Duration = Duration::from_secs(2);

/// One row of the file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Row {
    volume: VolumeId,
    address: Address,
    insecure: bool,
}

/// An export as connections see it.
#[derive(Clone)]
struct Entry {
    insecure: bool,
    /// It is over: so are its connections.
    ended: watch::Sender<bool>,
}

/// What a connection is with.
#[derive(Clone)]
struct Target {
    volume: VolumeId,
    read_only: bool,
    ended: watch::Receiver<bool>,
}

type Cell = Arc<OnceCell<Arc<Session>>>;

#[derive(Default)]
struct State {
    entries: BTreeMap<(Address, VolumeId), Entry>,
    listening: BTreeMap<Address, JoinHandle<()>>,
    sessions: BTreeMap<VolumeId, Cell>,
    /// Nothing begins any more.
    stopped: bool,
}

/// See the module.
pub(crate) struct Exports {
    id: NodeId,
    /// This node's name.
    name: String,
    data_dir: PathBuf,
    identity: Arc<Identity>,
    pool: PoolClient,
    events: EventLog,
    limits: Limits,
    users: AtomicU64,
    state: Mutex<State>,
    /// One change at a time, the file's included.
    changing: tokio::sync::Mutex<()>,
}

/// Connections to nodes of the pool, as this node.
struct NodeTls {
    identity: Arc<Identity>,
    pool: PoolClient,
}

impl TlsSource for NodeTls {
    fn config(&self, node: Option<NodeId>) -> io::Result<Arc<rustls::ClientConfig>> {
        let config = match node {
            Some(node) => self.identity.client_config_for(node),
            None => {
                let members = self.pool.state().members.keys().copied().collect();
                self.identity.client_config_among(members)
            }
        };
        config.map_err(io::Error::other)
    }
}

impl Exports {
    /// Nothing is served yet: [`Exports::resume`].
    pub(crate) fn new(
        (name, data_dir): (String, PathBuf),
        identity: Arc<Identity>,
        pool: PoolClient,
        events: EventLog,
    ) -> Arc<Self> {
        Arc::new(Self {
            id: identity.id(),
            name,
            data_dir,
            identity,
            pool,
            events,
            limits: Limits::new(BYTES_MAX),
            users: AtomicU64::new(0),
            state: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
        })
    }

    /// Serves what was served before the daemon ended.
    pub(crate) async fn resume(self: &Arc<Self>) {
        tokio::spawn(Arc::clone(self).follow());
        let _changing = self.changing.lock().await;
        let path = self.data_dir.join(FILE);
        let rows: Vec<Row> = match std::fs::read(&path).map(|text| serde_json::from_slice(&text)) {
            Ok(Ok(rows)) => rows,
            Ok(Err(error)) => return self.complain(&format!("{FILE} cannot be read: {error}")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return self.complain(&format!("{FILE} cannot be read: {error}")),
        };
        let addresses: BTreeSet<_> = rows.iter().map(|row| row.address.clone()).collect();
        for row in rows.into_iter().take(EXPORTS_MAX) {
            self.enter(row);
        }
        for address in addresses {
            if let Err(error) = self.listen(&address).await {
                self.complain(&format!("no disk is served at {address} yet: {error}"));
                tokio::spawn(Arc::clone(self).listen_later(address));
            }
        }
    }

    fn complain(&self, message: &str) {
        self.events
            .record(Severity::Warning, "exports", None, message);
    }

    fn enter(&self, row: Row) {
        let entry = Entry {
            insecure: row.insecure,
            ended: watch::channel(false).0,
        };
        let key = (row.address, row.volume);
        if let Some(old) = self.state.lock().entries.insert(key, entry) {
            old.ended.send_replace(true);
        }
    }

    /// Listens, unless that is done already.
    async fn listen(self: &Arc<Self>, address: &Address) -> io::Result<()> {
        if self.state.lock().listening.contains_key(address) {
            return Ok(());
        }
        let bound = address.bind().await?;
        let tls = self.identity.disk_server_config(self.names(address));
        let tls = TlsAcceptor::from(tls.map_err(io::Error::other)?);
        let accepting = Place::new(Arc::clone(self), address.clone(), tls).accept(bound);
        let mut state = self.state.lock();
        if !state.stopped {
            let task = tokio::spawn(accepting);
            state.listening.insert(address.clone(), task);
        }
        Ok(())
    }

    /// Names and addresses under which clients look for this node there.
    fn names(&self, address: &Address) -> Vec<String> {
        let member = self.pool.member(self.id);
        let told = member.map(|member| member.address).unwrap_or_default();
        let host = told.rsplit_once(':').map_or("", |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let mut names: BTreeSet<_> = ["localhost", "127.0.0.1", "::1", &self.name, host]
            .map(str::to_owned)
            .into();
        if let Address::Tcp(address) = address
            && !address.ip().is_unspecified()
        {
            names.insert(address.ip().to_string());
        }
        names.remove("");
        names.into_iter().collect()
    }

    async fn listen_later(self: Arc<Self>, address: Address) {
        loop {
            tokio::time::sleep(LISTEN_AGAIN).await;
            let _changing = self.changing.lock().await;
            {
                let state = self.state.lock();
                if state.stopped || !state.entries.keys().any(|(at, _)| *at == address) {
                    return;
                }
            }
            if self.listen(&address).await.is_ok() {
                return;
            }
        }
    }

    /// Disks of volumes that are deleted are served no more.
    async fn follow(self: Arc<Self>) {
        let mut pool = self.pool.subscribe();
        let mut seen = BTreeSet::new();
        loop {
            let volumes: BTreeSet<_> = pool.borrow_and_update().volumes.keys().copied().collect();
            let gone: Vec<_> = seen.difference(&volumes).copied().collect();
            for volume in gone {
                // It has no address any more that could be refused.
                let _ = self.remove(volume, None).await;
            }
            seen = volumes;
            if pool.changed().await.is_err() || self.state.lock().stopped {
                return;
            }
        }
    }

    fn rows(&self) -> Vec<Row> {
        let state = self.state.lock();
        let entries = state.entries.iter();
        let rows = entries.map(|((address, volume), entry)| Row {
            volume: *volume,
            address: address.clone(),
            insecure: entry.insecure,
        });
        rows.collect()
    }

    fn save(&self) -> Result<(), Refusal> {
        let text = serde_json::to_vec_pretty(&self.rows()).map_err(io::Error::other);
        let saved = text.and_then(|text| write_durably(&self.data_dir, FILE, &text));
        saved.map_err(|error| {
            refuse(
                "exports_file",
                format!("{}: {error}", self.data_dir.join(FILE).display()),
                "Make room, or mend the file system of the data directory.",
            )
        })
    }

    /// Serves a volume's disk at an address, from now on and after restarts. Returns when
    /// connections are accepted.
    pub(crate) async fn add(
        self: &Arc<Self>,
        spec: &VolumeSpec,
        at: &str,
        insecure: bool,
    ) -> Result<serde_json::Value, Refusal> {
        let address = parse(at)?;
        if spec.kind != VolumeKind::Block {
            return Err(refuse(
                "not_block",
                format!("volume `{}` holds files and has no disk", spec.name),
                "Mount it, or make a volume with `--type block --size SIZE`.",
            ));
        }
        let _changing = self.changing.lock().await;
        if self.state.lock().entries.len() >= EXPORTS_MAX {
            return Err(refuse(
                "too_many_exports",
                format!("{} serves {EXPORTS_MAX} disks already", self.name),
                "Serve it from another node.",
            ));
        }
        self.listen(&address).await.map_err(|error| {
            refuse(
                "listen",
                format!("{} cannot listen at {address}: {error}", self.name),
                "Name an address of that node that nobody uses, as ADDR:PORT or unix:PATH.",
            )
        })?;
        self.enter(Row {
            volume: spec.id,
            address: address.clone(),
            insecure,
        });
        self.save()?;
        let uri = address.uri(&spec.name, !address.is_local() && !insecure);
        Ok(serde_json::json!({
            "volume": spec.name, "node": self.name, "nbd": address.to_string(), "uri": uri,
            "insecure": insecure,
        }))
    }

    /// Serves a volume's disk no more, at one address or anywhere. Whoever is connected is cut off.
    /// Returns at how many addresses it was served.
    pub(crate) async fn remove(
        self: &Arc<Self>,
        volume: VolumeId,
        at: Option<&str>,
    ) -> Result<usize, Refusal> {
        let address = at.map(parse).transpose()?;
        let _changing = self.changing.lock().await;
        let (gone, session) = {
            let mut state = self.state.lock();
            let State {
                entries,
                listening,
                sessions,
                ..
            } = &mut *state;
            let meant = |key: &(Address, VolumeId)| {
                key.1 == volume && address.as_ref().is_none_or(|address| key.0 == *address)
            };
            let gone: Vec<_> = entries.extract_if(.., |key, _| meant(key)).collect();
            for ((address, _), entry) in &gone {
                entry.ended.send_replace(true);
                if entries.keys().all(|(at, _)| at != address)
                    && let Some(task) = listening.remove(address)
                {
                    task.abort();
                    address.clear();
                }
            }
            let used = entries.keys().any(|(_, of)| *of == volume);
            let session = if used { None } else { sessions.remove(&volume) };
            (gone.len(), session)
        };
        end(session.into_iter().collect()).await;
        self.save()?;
        Ok(gone)
    }

    /// What is served at an address.
    fn at(&self, address: &Address) -> Vec<(VolumeSpec, Entry)> {
        let pool = self.pool.state();
        let state = self.state.lock();
        let entries = state.entries.iter().filter(|((at, _), _)| at == address);
        let known = entries.filter_map(|((_, volume), entry)| {
            let spec = pool.volumes.get(volume)?;
            Some((spec.clone(), entry.clone()))
        });
        known.collect()
    }

    fn all_insecure_at(&self, address: &Address) -> bool {
        let state = self.state.lock();
        let mut entries = state.entries.iter().filter(|((at, _), _)| at == address);
        entries.all(|(_, entry)| entry.insecure)
    }

    /// A number for a connection, by which it is told of losses.
    fn next_user(&self) -> u64 {
        self.users.fetch_add(1, Ordering::Relaxed)
    }

    /// The session with a volume's primary; the first to ask waits until there is one.
    async fn session(&self, spec: &VolumeSpec) -> Result<Arc<Session>, StartError> {
        let cell = {
            let mut state = self.state.lock();
            if state.stopped {
                return Err(StartError::NoHosts);
            }
            Arc::clone(state.sessions.entry(spec.id).or_default())
        };
        let begun = cell.get_or_try_init(|| async {
            let config = SessionConfig {
                volume: spec.name.clone(),
                hosts: Vec::new(),
                local_socket: Some(self.data_dir.join("data.sock")),
                client_name: format!("{} (nbd)", self.name),
                read_only: false,
                no_primary_eio: None,
                mount_timeout: SESSION_WITHIN,
                early: false,
                cache_bytes: 0,
            };
            let tls = NodeTls {
                identity: Arc::clone(&self.identity),
                pool: self.pool.clone(),
            };
            let connector = Arc::new(SystemConnector::new(Some(Box::new(tls))));
            let starting = tokio::task::spawn_blocking(|| Session::start(config, connector));
            starting.await.unwrap_or(Err(StartError::NoHosts))
        });
        begun.await.cloned()
    }

    /// Serves nothing any more: what is under way is finished as far as that is quick.
    pub(crate) async fn stop(&self) {
        let sessions = {
            let mut state = self.state.lock();
            state.stopped = true;
            for entry in state.entries.values() {
                entry.ended.send_replace(true);
            }
            for (address, task) in std::mem::take(&mut state.listening) {
                task.abort();
                address.clear();
            }
            std::mem::take(&mut state.sessions)
        };
        end(sessions.into_values().collect()).await;
    }
}

fn parse(text: &str) -> Result<Address, Refusal> {
    Address::try_from(text.to_owned()).map_err(|error| {
        refuse_usage(
            "address",
            error,
            "For example `--nbd 127.0.0.1:10809` or `--nbd unix:/run/disk1.sock`.",
        )
    })
}

/// Ends sessions, all at once; each has what it keeps made stable.
async fn end(cells: Vec<Cell>) {
    let sessions = cells.iter().filter_map(|cell| cell.get().cloned());
    let ending: Vec<_> = sessions
        .map(|session| tokio::task::spawn_blocking(move || session.end()))
        .collect();
    let all = async {
        for done in ending {
            if done.await.is_err() {
                tracing::error!("the end of a disk's session panicked");
            }
        }
    };
    // What lasts longer goes on without anybody waiting for it.
    let _ = tokio::time::timeout(END_WITHIN, all).await;
}
