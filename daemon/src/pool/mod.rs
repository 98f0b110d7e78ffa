//! A node in its pool: membership, volumes, status.

mod bricks;
mod client;
mod clients;
mod code;
mod create;
mod differences;
mod exported;
mod join;
mod manager;
mod members;
mod options;
mod refusal;
mod serve;
mod status;
mod succession;
mod twins;
mod volumes;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use protocol::identity::Identity;
use protocol::ids::NodeId;
use protocol::node_rpc::{Member, NodeRequest};

pub use client::{ChangeError, PoolClient};
pub use manager::VolumeManager;
pub(crate) use refusal::{refuse, refuse_usage};
pub(crate) use serve::{Caller, ServeError};
pub(crate) use volumes::volume_of;

use crate::config::DaemonConfig;
use crate::data_dir::{DataDir, DataDirError};
use crate::events::{EventLog, Severity};
use crate::exports::Exports;
use crate::raft::{GroupError, RaftGroup};
use crate::rpc::NodeClients;
use crate::volume::VolumeContext;
use code::OneTimeCode;

/// Pause between attempts to tell the pool this node's new address.
const TELL_AGAIN: Duration = Duration::from_secs(2);

/// Why a node does not come up.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The pool's configuration cannot be used.
    #[error(transparent)]
    Group(#[from] GroupError),
}

/// This node.
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Its name in the pool.
    pub name: String,
    /// Where it keeps its things.
    pub data_dir: PathBuf,
    /// Its key.
    pub identity: Arc<Identity>,
    /// Requests to others.
    pub clients: Arc<NodeClients>,
    /// The pool.
    pub pool: PoolClient,
    /// Its replicas.
    pub volumes: VolumeManager,
    /// Disks that it serves.
    pub(crate) exports: Arc<Exports>,
    /// What happened.
    pub events: EventLog,
    /// Where it listens.
    pub listen: SocketAddr,
    /// What others are told, where that is certain.
    advertise: Mutex<Option<String>>,
    code: Mutex<Option<OneTimeCode>>,
    /// One change of pools at a time.
    moving: tokio::sync::Mutex<()>,
    /// One look at a leader that seems to be dead at a time.
    succession: tokio::sync::Mutex<()>,
    /// What was heard of other members' processes.
    twins: twins::Twins,
}

impl Node {
    /// Brings the node up: identity, pool, replicas. `listen` is where it really listens.
    pub async fn open(
        config: &DaemonConfig,
        data: &DataDir,
        listen: SocketAddr,
    ) -> Result<Arc<Self>, NodeError> {
        let identity = Arc::new(data.identity()?);
        let id = identity.id();
        let clients = Arc::new(NodeClients::new(Arc::clone(&identity)));
        let advertise = match &config.advertise {
            Some(told) => Some(told.clone()),
            None if listen.ip().is_unspecified() => None,
            None => Some(listen.to_string()),
        };
        let own = Member {
            name: config.name.clone(),
            address: advertise
                .clone()
                .unwrap_or_else(|| format!("{}:{}", config.name, listen.port())),
        };
        let group = RaftGroup::open(&data.raft_file(), id, &own, Arc::clone(&clients)).await?;
        let events = EventLog::open(&data.events_file(), &config.name);
        let name = settle_name(&group, id, &own, &events).await?;
        let group = Arc::new(group);
        let pool = PoolClient::new(id, Arc::clone(&group), Arc::clone(&clients));
        tokio::spawn(group.keep_pace());
        let volumes = VolumeManager::start(VolumeContext {
            node: id,
            node_name: name.clone(),
            data_dir: data.path().to_owned(),
            identity: Arc::clone(&identity),
            pool: pool.clone(),
            events: events.clone(),
        });
        let place = (name.clone(), data.path().to_owned());
        let exports = Exports::new(place, Arc::clone(&identity), pool.clone(), events.clone());
        let node = Arc::new(Self {
            id,
            name,
            data_dir: data.path().to_owned(),
            identity,
            clients,
            pool,
            volumes,
            exports,
            events,
            listen,
            advertise: Mutex::new(advertise),
            code: Mutex::new(None),
            moving: tokio::sync::Mutex::new(()),
            succession: tokio::sync::Mutex::new(()),
            twins: twins::Twins::default(),
        });
        tokio::spawn(Arc::clone(&node).tell_address());
        Ok(node)
    }

    /// This node's entry for a pool of its own.
    pub(crate) fn own_member(&self) -> Member {
        let address = self
            .advertise()
            .unwrap_or_else(|| format!("{}:{}", self.name, self.listen.port()));
        Member {
            name: self.name.clone(),
            address,
        }
    }

    /// What others are told, where that is certain.
    pub(crate) fn advertise(&self) -> Option<String> {
        self.advertise.lock().clone()
    }

    /// Others shall be told another address from now on.
    pub async fn readvertise(self: &Arc<Self>, address: Option<String>) {
        *self.advertise.lock() = address;
        tokio::spawn(Arc::clone(self).tell_address());
    }

    /// A node that was started at another address than before tells the pool.
    async fn tell_address(self: Arc<Self>) {
        loop {
            let Some(address) = self.advertise() else {
                return;
            };
            match self.pool.member(self.id) {
                Some(member) if member.address != address => {}
                _ => return,
            }
            let request = NodeRequest::SetAddress {
                node: self.id,
                address: address.clone(),
            };
            match self.pool.change_members(&request).await {
                Ok(()) => return,
                Err(refusal) => {
                    tracing::warn!(%refusal, "the pool does not know this node's new address yet");
                }
            }
            tokio::time::sleep(TELL_AGAIN).await;
        }
    }

    /// A one-time code for this node's admission; the one before is void.
    pub(crate) fn make_code(&self) -> String {
        let (code, text) = OneTimeCode::generate(Instant::now());
        *self.code.lock() = Some(code);
        text
    }

    /// Stops the replicas, then the part in the pool.
    pub async fn stop(&self) {
        self.exports.stop().await;
        self.volumes.stop().await;
        self.pool.group().shutdown().await;
    }
}

/// The name in the pool is fixed at admission. A node that is alone and has no volume may change
/// it; any other keeps the old one and says so.
async fn settle_name(
    group: &RaftGroup,
    id: NodeId,
    own: &Member,
    events: &EventLog,
) -> Result<String, GroupError> {
    let state = group.state();
    let Some(member) = state.members.get(&id) else {
        return Ok(own.name.clone());
    };
    if member.name == own.name {
        return Ok(own.name.clone());
    }
    if state.members.len() == 1 && state.volumes.is_empty() {
        group.found(own).await?;
        return Ok(own.name.clone());
    }
    events.record(
        Severity::Warning,
        "name_kept",
        None,
        &format!(
            "the daemon was started as `{}`, but the pool knows this node as `{}`, which it stays",
            own.name, member.name
        ),
    );
    Ok(member.name.clone())
}
