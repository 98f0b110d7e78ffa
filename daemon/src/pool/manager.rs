//! Starts and stops this node's replicas as the pool's configuration says.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use protocol::ids::{BrickId, NodeId, PoolId, VolumeId};
use protocol::node_rpc::VolumeCommand;
use protocol::report::{DiskState, ReplicaReport, ReplicaRole};
use protocol::volume::{VolumeSpec, VolumeState};
use tokio::sync::{mpsc, oneshot};

use crate::events::Severity;
use crate::raft::{PoolCommand, PoolOutcome, PoolState};
use crate::volume::{self, VolumeContext, VolumeHandle};

/// How often a brick on its way out is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How long the primary may take to say whether it let go of a brick.
const LET_GO_WITHIN: Duration = Duration::from_secs(2);
/// Requests that may wait for the manager.
const REQUESTS_MAX: usize = 64;

enum Slot {
    Running {
        handle: VolumeHandle,
        replica: usize,
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

/// This node's place in the volume, if it holds a replica. Where one brick takes another's place
/// on the same node, it is the old one's until that was let go of.
pub(crate) fn replica_on(spec: &VolumeSpec, node: NodeId) -> Option<usize> {
    let mine = spec.members().filter(|(_, replica)| replica.node == node);
    mine.map(|(place, _)| place)
        .min_by_key(|place| !spec.is_leaving(*place))
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
            marked: BTreeSet::new(),
            finishing: Arc::default(),
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

    /// The running replica whose brick has the point that the id names.
    #[must_use]
    pub fn keeper(&self, id: VolumeId) -> Option<VolumeHandle> {
        let slots = self.slots.lock();
        let mut handles = slots.values().filter_map(|slot| match slot {
            Slot::Running { handle, .. } => Some(handle),
            Slot::Failed { .. } => None,
        });
        handles.find(|handle| handle.keeps(id)).cloned()
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
        protocol_in_force: None,
        lost_operations: 0,
        damaged_blocks: 0,
        repaired_blocks: 0,
        point: None,
        kept: Vec::new(),
    }
}

/// The last step of a removal.
struct Finish {
    handle: VolumeHandle,
    context: VolumeContext,
    spec: VolumeSpec,
}

impl Finish {
    async fn run(self) {
        let asked = self.handle.command(VolumeCommand::LetGo {});
        // It refuses where it is not the primary: then that one's node does it.
        let Ok(Ok(answer)) = tokio::time::timeout(LET_GO_WITHIN, asked).await else {
            return;
        };
        let mut spec = self.spec;
        if answer["let_go"] != true || answer["version"] != spec.version {
            return;
        }
        let gone: Vec<String> = spec
            .members()
            .filter(|(place, _)| spec.is_leaving(*place))
            .map(|(_, replica)| format!("{}:{}", replica.node_name, replica.path))
            .collect();
        spec.layout.removed |= std::mem::take(&mut spec.layout.leaving);
        spec.layout.version += 1;
        let name = spec.name.clone();
        let command = PoolCommand::UpdateVolume {
            expected_version: spec.version,
            spec,
        };
        match self.context.pool.propose_widely(command).await {
            Ok(PoolOutcome::Applied { .. }) => {
                let text = format!("{} is no brick of the volume any more", gone.join(", "));
                let events = &self.context.events;
                events.record(Severity::Info, "brick_removed", Some(&name), &text);
            }
            // Somebody was faster, or nobody can decide: it is looked at again.
            Ok(PoolOutcome::Refused(refusal)) => tracing::debug!(%refusal, "not removed yet"),
            Err(refusal) => tracing::debug!(%refusal, "not removed yet"),
        }
    }
}

struct Work {
    slots: Arc<Mutex<BTreeMap<VolumeId, Slot>>>,
    context: VolumeContext,
    /// Volumes with a replica here, as last seen: to tell a deletion from a change of pools.
    known: BTreeMap<VolumeId, VolumeSpec>,
    pool: PoolId,
    /// Removed bricks of this node that need no more looking at.
    marked: BTreeSet<BrickId>,
    /// Volumes of which the end of a removal is being seen to.
    finishing: Arc<Mutex<BTreeSet<VolumeId>>>,
}

impl Work {
    async fn run(mut self, mut inbox: mpsc::Receiver<ManagerRequest>) {
        let mut state = self.context.pool.subscribe();
        loop {
            let now = Arc::clone(&state.borrow_and_update());
            let told = self.reconcile(&now).await;
            let again = self.finish_leaving(&now) || !told;
            tokio::select! {
                () = tokio::time::sleep(LOOK_AGAIN), if again => {}
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

    /// False: it must be done again soon.
    async fn reconcile(&mut self, state: &PoolState) -> bool {
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
        self.mark_removed(state).await;
        let mut told = true;
        for (id, (spec, replica)) in wanted {
            told &= self.start_or_update(id, spec, replica).await;
        }
        told
    }

    async fn stop_unwanted(&self, wanted: &BTreeMap<VolumeId, (VolumeSpec, usize)>) {
        let ended: Vec<Slot> = {
            let mut slots = self.slots.lock();
            let at = |slot: &Slot| match slot {
                Slot::Running { replica, .. } | Slot::Failed { replica, .. } => *replica,
            };
            // Also where another brick takes the place of the one that ran here.
            let gone: Vec<VolumeId> = slots
                .iter()
                .filter(|(id, slot)| wanted.get(id).is_none_or(|(_, place)| *place != at(slot)))
                .map(|(id, _)| *id)
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

    /// Bricks of this node that were removed from volumes that go on are marked, also where that
    /// happened while this node was away.
    async fn mark_removed(&mut self, state: &PoolState) {
        let me = self.context.node;
        for spec in state.volumes.values() {
            for (place, replica) in spec.replicas.iter().enumerate() {
                let taken = spec
                    .members()
                    .any(|(_, other)| (other.node, &other.path) == (me, &replica.path));
                if replica.node != me || spec.is_member(place) || taken {
                    continue;
                }
                if !self.marked.insert(replica.brick) {
                    continue;
                }
                let (own, pool) = (spec.clone(), state.pool);
                let marked = tokio::task::spawn_blocking(move || {
                    let path = own.replicas[place].path.clone();
                    volume::mark_brick_deleted(&own, place, pool, Path::new(&path))
                })
                .await;
                if let Ok(Err(error)) = marked {
                    let text = format!("the removed brick could not be marked: {error}");
                    let (name, events) = (Some(spec.name.as_str()), &self.context.events);
                    events.record(Severity::Warning, "brick_not_marked", name, &text);
                }
            }
        }
    }

    /// Where bricks are on their way out, the primary's node removes them once it has let go of
    /// them. Whether any are, of volumes that run here.
    fn finish_leaving(&self, state: &PoolState) -> bool {
        let mut leaving = false;
        let slots = self.slots.lock();
        for spec in state.volumes.values().filter(|s| s.layout.leaving != 0) {
            let Some(Slot::Running { handle, .. }) = slots.get(&spec.id) else {
                continue;
            };
            leaving = true;
            if !self.finishing.lock().insert(spec.id) {
                continue;
            }
            let finish = Finish {
                handle: handle.clone(),
                context: self.context.clone(),
                spec: spec.clone(),
            };
            let finishing = Arc::clone(&self.finishing);
            tokio::spawn(async move {
                let id = finish.spec.id;
                finish.run().await;
                finishing.lock().remove(&id);
            });
        }
        leaving
    }

    /// False: the running replica could not be told yet.
    async fn start_or_update(&self, id: VolumeId, spec: VolumeSpec, replica: usize) -> bool {
        {
            let mut slots = self.slots.lock();
            match slots.get_mut(&id) {
                Some(Slot::Running {
                    handle, version, ..
                }) => {
                    let newer = spec.version;
                    if *version != newer && handle.update_spec(spec) {
                        *version = newer;
                    }
                    // Not taken: it is looked at again soon.
                    return *version == newer;
                }
                // It is tried again by `volume start`, not at every change of something else.
                Some(Slot::Failed { .. }) => return true,
                None => {}
            }
        }
        let version = spec.version;
        let context = self.context.clone();
        let own = spec.clone();
        let started =
            tokio::task::spawn_blocking(move || VolumeHandle::start(own, replica, context)).await;
        let slot = match started {
            Ok(Ok(handle)) => Slot::Running {
                handle,
                replica,
                version,
            },
            Ok(Err(error)) => self.failed(spec, replica, error.to_string()),
            Err(_) => self.failed(spec, replica, "its start was abandoned".to_owned()),
        };
        self.slots.lock().insert(id, slot);
        true
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
