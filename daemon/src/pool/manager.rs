//! Starts and stops this node's replicas as the pool's configuration says.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use protocol::ids::{NodeId, PoolId, VolumeId};
use protocol::report::{DiskState, ReplicaReport, ReplicaRole};
use protocol::volume::{VolumeSpec, VolumeState};
use tokio::sync::{mpsc, oneshot};

use crate::events::Severity;
use crate::raft::PoolState;
use crate::volume::{self, VolumeContext, VolumeHandle};

/// Requests that may wait for the manager.
const REQUESTS_MAX: usize = 64;

enum Slot {
    Running {
        handle: VolumeHandle,
        version: u64,
    },
    Failed {
        reason: String,
        spec: VolumeSpec,
        replica: usize,
    },
}

enum ManagerRequest {
    /// Open what failed again, then say whether the volume runs here.
    Retry(VolumeId, oneshot::Sender<Result<bool, String>>),
    /// Answer when everything decided up to now has happened here.
    Settle(oneshot::Sender<()>),
    Stop(oneshot::Sender<()>),
}

/// This node's replicas.
pub struct VolumeManager {
    slots: Arc<Mutex<BTreeMap<VolumeId, Slot>>>,
    requests: mpsc::Sender<ManagerRequest>,
    node: NodeId,
}

/// This node's index in the volume, if it holds a replica.
pub(crate) fn replica_on(spec: &VolumeSpec, node: NodeId) -> Option<usize> {
    spec.replicas
        .iter()
        .position(|replica| replica.node == node)
}

impl VolumeManager {
    /// Starts the replicas that shall run, and follows the configuration from then on.
    #[must_use]
    pub fn start(context: VolumeContext) -> Self {
        let slots: Arc<Mutex<BTreeMap<VolumeId, Slot>>> = Arc::default();
        let (requests, inbox) = mpsc::channel(REQUESTS_MAX);
        let node = context.node;
        let work = Work {
            slots: Arc::clone(&slots),
            context,
            known: BTreeMap::new(),
            pool: PoolId::NONE,
        };
        tokio::spawn(work.run(inbox));
        Self {
            slots,
            requests,
            node,
        }
    }

    /// The running replica of a volume.
    #[must_use]
    pub fn handle(&self, volume: VolumeId) -> Option<VolumeHandle> {
        match self.slots.lock().get(&volume) {
            Some(Slot::Running { handle, .. }) => Some(handle.clone()),
            _ => None,
        }
    }

    /// What this node's replicas say.
    pub async fn reports(&self, only: Option<VolumeId>) -> Vec<ReplicaReport> {
        let mut reports = Vec::new();
        let mut running = Vec::new();
        for (id, slot) in self.slots.lock().iter() {
            if only.is_some_and(|only| only != *id) {
                continue;
            }
            match slot {
                Slot::Running { handle, .. } => running.push(handle.clone()),
                Slot::Failed {
                    reason,
                    spec,
                    replica,
                } => reports.push(failed_report(spec, *replica, self.node, reason)),
            }
        }
        for handle in running {
            reports.push(handle.status().await);
        }
        reports
    }

    /// Opens a replica that failed again; whether there was one. `Err` is why it still does not run.
    pub async fn retry(&self, volume: VolumeId) -> Result<bool, String> {
        let (answer, done) = oneshot::channel();
        let gone = || "the daemon is ending".to_owned();
        self.requests
            .send(ManagerRequest::Retry(volume, answer))
            .await
            .map_err(|_| gone())?;
        done.await.map_err(|_| gone())?
    }

    /// Waits until everything that is decided up to now has happened here.
    pub async fn settle(&self) {
        let (answer, done) = oneshot::channel();
        if self
            .requests
            .send(ManagerRequest::Settle(answer))
            .await
            .is_ok()
        {
            // An error means that the daemon is ending, and with it everything here.
            let _ = done.await;
        }
    }

    /// Stops every replica: each checkpoints and closes.
    pub async fn stop(&self) {
        let (answer, done) = oneshot::channel();
        if self
            .requests
            .send(ManagerRequest::Stop(answer))
            .await
            .is_ok()
        {
            // An error means that the work ended with its runtime: nothing is left to stop.
            let _ = done.await;
        }
    }
}

fn failed_report(spec: &VolumeSpec, replica: usize, node: NodeId, reason: &str) -> ReplicaReport {
    ReplicaReport {
        volume: spec.id,
        node,
        replica,
        role: ReplicaRole::Secondary,
        role_reason: Some("the brick cannot be used".to_owned()),
        disk: DiskState::Failed,
        reason: Some(reason.to_owned()),
        serving: false,
        term: 0,
        generation: None,
        in_sync: false,
        peers: Vec::new(),
        resync: None,
        last_resync: None,
        size_bytes: spec.size_bytes,
        used_bytes: None,
        free_bytes: None,
        clients: Vec::new(),
        split_brain: None,
    }
}

struct Work {
    slots: Arc<Mutex<BTreeMap<VolumeId, Slot>>>,
    context: VolumeContext,
    /// Volumes with a replica here, as last seen: to tell a deletion from a change of pools.
    known: BTreeMap<VolumeId, VolumeSpec>,
    pool: PoolId,
}

impl Work {
    async fn run(mut self, mut inbox: mpsc::Receiver<ManagerRequest>) {
        let mut state = self.context.pool.subscribe();
        loop {
            let now = Arc::clone(&state.borrow_and_update());
            self.reconcile(&now).await;
            tokio::select! {
                changed = state.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                request = inbox.recv() => match request {
                    Some(ManagerRequest::Retry(volume, answer)) => {
                        let now = Arc::clone(&state.borrow_and_update());
                        // The asker may have given up; the volume was tried all the same.
                        let _ = answer.send(self.retry(&now, volume).await);
                    }
                    Some(ManagerRequest::Settle(answer)) => {
                        let now = Arc::clone(&state.borrow_and_update());
                        self.reconcile(&now).await;
                        // The asker may have given up; it happened all the same.
                        let _ = answer.send(());
                    }
                    Some(ManagerRequest::Stop(answer)) => {
                        self.stop_all().await;
                        let _ = answer.send(());
                        return;
                    }
                    None => return,
                },
            }
        }
    }

    /// Leaves the members' identities beside the node's own: a mount on this machine knows by
    /// them whom to believe while the daemon is down.
    fn note_members(&self, state: &PoolState) {
        let members: BTreeMap<_, _> = state
            .members
            .iter()
            .map(|(id, member)| (*id, member.address.clone()))
            .collect();
        let write = || -> std::io::Result<()> {
            let path = self.context.data_dir.join("members.json");
            let text = serde_json::to_vec(&members)?;
            if std::fs::read(&path).is_ok_and(|old| old == text) {
                return Ok(());
            }
            let new = path.with_extension("new");
            std::fs::write(&new, text)?;
            std::fs::rename(new, path)
        };
        if let Err(error) = write() {
            tracing::warn!(%error, "the members' identities could not be noted for mounts");
        }
    }

    async fn retry(&mut self, state: &PoolState, volume: VolumeId) -> Result<bool, String> {
        let running = match self.slots.lock().get(&volume) {
            Some(Slot::Running { handle, .. }) => Some(handle.clone()),
            Some(Slot::Failed { .. }) | None => None,
        };
        let failed = match &running {
            Some(handle) => handle.status().await.disk == DiskState::Failed,
            None => self.slots.lock().contains_key(&volume),
        };
        if failed {
            if let Some(handle) = running {
                // It stepped aside; its brick must be let go of before it is opened again.
                handle.stop().await;
            }
            self.slots.lock().remove(&volume);
        }
        self.reconcile(state).await;
        match self.slots.lock().get(&volume) {
            Some(Slot::Failed { reason, .. }) => Err(reason.clone()),
            _ => Ok(failed),
        }
    }

    async fn reconcile(&mut self, state: &PoolState) {
        let me = self.context.node;
        let wanted: BTreeMap<VolumeId, (VolumeSpec, usize)> = state
            .volumes
            .values()
            .filter(|spec| spec.state == VolumeState::Started)
            .filter_map(|spec| Some((spec.id, (spec.clone(), replica_on(spec, me)?))))
            .collect();
        self.stop_unwanted(&wanted).await;
        self.note_members(state);
        self.mark_deleted(state).await;
        for (id, (spec, replica)) in wanted {
            self.start_or_update(id, spec, replica).await;
        }
    }

    async fn stop_unwanted(&self, wanted: &BTreeMap<VolumeId, (VolumeSpec, usize)>) {
        let ended: Vec<Slot> = {
            let mut slots = self.slots.lock();
            let gone: Vec<VolumeId> = slots
                .keys()
                .filter(|id| !wanted.contains_key(id))
                .copied()
                .collect();
            gone.iter().filter_map(|id| slots.remove(id)).collect()
        };
        for slot in ended {
            if let Slot::Running { handle, .. } = slot {
                handle.stop().await;
            }
        }
    }

    /// Bricks of volumes that were deleted are marked so. A volume that vanished because this
    /// node left the pool was not deleted.
    async fn mark_deleted(&mut self, state: &PoolState) {
        let me = self.context.node;
        if self.pool != state.pool || state.entering || !state.members.contains_key(&me) {
            self.known.clear();
            self.pool = state.pool;
        }
        let mine: BTreeMap<VolumeId, VolumeSpec> = state
            .volumes
            .iter()
            .filter(|(_, spec)| replica_on(spec, me).is_some())
            .map(|(id, spec)| (*id, spec.clone()))
            .collect();
        let before = std::mem::replace(&mut self.known, mine);
        for (id, spec) in before {
            let Some(replica) = replica_on(&spec, me) else {
                continue;
            };
            if self.known.contains_key(&id) {
                continue;
            }
            let name = spec.name.clone();
            let pool = state.pool;
            let marked = tokio::task::spawn_blocking(move || {
                let path = spec.replicas[replica].path.clone();
                volume::mark_brick_deleted(&spec, replica, pool, Path::new(&path))
            })
            .await;
            if let Ok(Err(error)) = marked {
                self.context.events.record(
                    Severity::Warning,
                    "brick_not_marked",
                    Some(&name),
                    &format!("the brick of the deleted volume could not be marked: {error}"),
                );
            }
        }
    }

    async fn start_or_update(&self, id: VolumeId, spec: VolumeSpec, replica: usize) {
        {
            let mut slots = self.slots.lock();
            match slots.get_mut(&id) {
                Some(Slot::Running { handle, version }) => {
                    if *version != spec.version {
                        *version = spec.version;
                        handle.update_spec(spec);
                    }
                    return;
                }
                // It is tried again by `volume start`, not at every change of something else.
                Some(Slot::Failed { .. }) => return,
                None => {}
            }
        }
        let version = spec.version;
        let context = self.context.clone();
        let own = spec.clone();
        let started =
            tokio::task::spawn_blocking(move || VolumeHandle::start(own, replica, context)).await;
        let slot = match started {
            Ok(Ok(handle)) => Slot::Running { handle, version },
            Ok(Err(error)) => self.failed(spec, replica, error.to_string()),
            Err(_) => self.failed(spec, replica, "its start was abandoned".to_owned()),
        };
        self.slots.lock().insert(id, slot);
    }

    fn failed(&self, spec: VolumeSpec, replica: usize, reason: String) -> Slot {
        self.context.events.record(
            Severity::Error,
            "brick_failed",
            Some(&spec.name),
            &format!("the replica on this node does not run: {reason}"),
        );
        Slot::Failed {
            reason,
            spec,
            replica,
        }
    }

    async fn stop_all(&self) {
        let slots = std::mem::take(&mut *self.slots.lock());
        let mut stops = tokio::task::JoinSet::new();
        for slot in slots.into_values() {
            if let Slot::Running { handle, .. } = slot {
                stops.spawn(async move { handle.stop().await });
            }
        }
        while stops.join_next().await.is_some() {}
    }
}
