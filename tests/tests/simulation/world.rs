//! One run.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Once;
use std::time::Duration;

use protocol::ids::{SessionId, VolumeId};
use protocol::node_rpc::VolumeCommand;
use protocol::units::Term;
use protocol::volume::Quorum;
use replication::machine::Agreed;
use replication::state::Mask;
use storage::Brick;
use storage::medium::sim::SimMedium;
use tokio::sync::Mutex;
use tokio::task::{JoinHandle, LocalSet};
use tokio::time::Instant;

use super::apart::Apart;
use super::bricks::manage;
use super::client::Client;
use super::cluster::{CLIENTS_FROM, Cluster, Directory, Journal};
use super::disks::mend_disks;
use super::faults::{Faults, Nodes, put_right, serving, wait_until_in_sync};
use super::fences::carry_out;
use super::lockers::Lockers;
use super::network::{Network, Place};
use super::pool::Pool;
use super::random::Random;
use super::shape::{Family, Shape};
use super::work::{Habits, Work};

/// How long things go wrong, in simulated time. The end of a run takes ten seconds and more.
const LASTS: Duration = Duration::from_secs(50);
/// Mounts that stay.
const CLIENTS: usize = 3;
/// How long one node goes without power for longer than the others.
const LATE: Duration = Duration::from_secs(4);
/// Slots of a client, one a worker, and one for looking.
const WORKERS: u16 = 3;
pub(crate) const LOOKING: u16 = 100;

/// How often replicas are ended in the hope that all have the same records just then.
const ENDINGS: usize = 20;

/// In one of so many runs clients lock files.
const LOCKERS_IN: u64 = 4;

/// What a run came to.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) operations: u64,
    /// Of them, those that a mount answered under its leases.
    pub(crate) kept: u64,
    /// Changes that were answered before they were asked.
    pub(crate) early: u64,
    pub(crate) faults: u64,
    /// Simulated time, in seconds.
    pub(crate) lasted: u64,
    pub(crate) frames: BTreeMap<u8, u64>,
    pub(crate) failures: Vec<String>,
    pub(crate) lines: Vec<String>,
}

/// Runs a seed. `aloud`: prints a line for everything that happens.
pub(crate) fn run(seed: u64, aloud: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let local = LocalSet::new();
    let seed = || local.block_on(&runtime, simulate(seed, aloud));
    // An assertion of the code itself notices as well, also in a task that nobody waits for.
    notice_panics();
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(seed));
    let mut outcome = done.unwrap_or_default();
    let panics = PANICS.with_borrow_mut(std::mem::take);
    outcome.failures.extend(panics);
    outcome
}

thread_local! {
    /// What panicked on this thread since a seed ended on it.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

fn notice_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.with_borrow_mut(|panics| panics.push(panic.to_string()));
            before(panic);
        }));
    });
}

/// Makes mounts.
pub(crate) struct Mounter {
    network: Network,
    directory: Directory,
    random: Random,
    volume: VolumeId,
    impatient: bool,
    /// They wait for each answer: where sides part, what is under way may be on both.
    patient: bool,
}

impl Mounter {
    /// A mount of the volume, whose connection is not kept yet.
    pub(crate) fn mount(&self, place: Place) -> Client {
        self.mount_of(place, self.volume)
    }

    /// A mount of what has this id.
    pub(crate) fn mount_of(&self, place: Place, volume: VolumeId) -> Client {
        let session = SessionId(self.random.bytes());
        let (network, directory) = (self.network.clone(), self.directory.clone());
        let client = Client::new(place, session, volume, self.impatient, network, directory);
        if self.patient {
            client.patient()
        } else {
            client
        }
    }
}

/// What a run has, whatever happens in it.
pub(crate) struct Scene {
    pub(crate) shape: Shape,
    pub(crate) random: Random,
    pub(crate) journal: Journal,
    pub(crate) network: Network,
    pub(crate) nodes: Nodes,
    pub(crate) mounter: Rc<Mounter>,
    /// Mounts that stay, each with what keeps its connection.
    pub(crate) clients: Vec<(Client, JoinHandle<()>)>,
    pub(crate) work: Rc<Work>,
}

impl Scene {
    async fn set_up(seed: u64, aloud: bool) -> Self {
        let random = Random::new(seed);
        let journal = Journal::new(aloud);
        let shape = Shape::draw(seed, &random);
        let spec = shape.spec(&random);
        let volume = spec.id;
        let network = Network::new(random.fork(), shape.latency_ms, shape.jitter_ms);
        let agreed = (shape.quorum == Quorum::Majority).then(|| Agreed {
            version: 1,
            term: Term(0),
            primary: 0,
            in_sync: Mask::first(shape.replicas),
        });
        let (pool, proposals) = Pool::new(spec, agreed, network.clone(), random.fork());
        tokio::task::spawn_local(pool.clone().run(proposals));
        let (made, slowness) = (random.fork(), shape.slowness);
        let mut cluster = Cluster::new(network.clone(), pool, journal.clone(), made, slowness);
        for place in 0..shape.replicas {
            cluster.start(place);
        }
        let mounter = Rc::new(Mounter {
            network: network.clone(),
            directory: cluster.directory.clone(),
            random: random.fork(),
            volume,
            impatient: shape.impatient,
            patient: shape.family.parts(),
        });
        let places = CLIENTS_FROM..CLIENTS_FROM + CLIENTS;
        let clients: Vec<Client> = places.map(|place| mounter.mount(place)).collect();
        let keep = |client: Client| (client.clone(), tokio::task::spawn_local(client.run()));
        let clients: Vec<_> = clients.into_iter().map(keep).collect();
        let nodes: Nodes = Rc::new(Mutex::new(cluster));
        tokio::task::spawn_local(manage(Rc::clone(&nodes)));
        let habits = Habits {
            few: shape.family == Family::Leases || random.one_in(4),
            large: shape.cuts,
            may_fail: shape.family == Family::Disks,
        };
        let work = Work::prepare(&clients[0].0, habits, random.fork(), journal.clone()).await;
        Self {
            shape,
            random,
            journal,
            network,
            nodes,
            mounter,
            clients,
            work,
        }
    }

    /// The mount begins to work. The last of them mostly looks.
    pub(crate) fn begin(&self, index: usize) -> Vec<JoinHandle<()>> {
        let watches = index + 1 == self.clients.len();
        let pause_ms = if watches {
            self.shape.pause_ms / 2
        } else {
            self.shape.pause_ms
        };
        let slots = 1..=WORKERS;
        let workers = slots.map(|slot| {
            let client = self.clients[index].0.clone();
            let work = Rc::clone(&self.work).run(client, slot, pause_ms, watches);
            tokio::task::spawn_local(work)
        });
        workers.collect()
    }

    /// What goes wrong. `links`: where the option for long lines is switched.
    pub(crate) fn faults(&self, links: Option<Random>) -> Faults {
        Faults {
            nodes: Rc::clone(&self.nodes),
            work: Rc::clone(&self.work),
            family: self.shape.family,
            quorum: self.shape.quorum,
            clients: CLIENTS,
            guests: self.shape.guests,
            slowness: self.shape.slowness,
            random: self.random.fork(),
            journal: self.journal.clone(),
            filler: self.clients[0].0.clone(),
            protocols: self.shape.protocols,
            links,
            burnt: Rc::new(Cell::new(None)),
            count: 0,
        }
    }

    fn outcome(&self, faults: u64) -> Outcome {
        Outcome {
            operations: self.work.done(),
            kept: self
                .clients
                .iter()
                .map(|(client, _)| client.kept_answers())
                .sum(),
            early: self
                .clients
                .iter()
                .map(|(client, _)| client.early_answers())
                .sum(),
            faults,
            lasted: self.journal.now().as_secs(),
            frames: self.network.frames(),
            failures: std::mem::take(&mut *self.work.failures.borrow_mut()),
            lines: self.journal.lines(),
        }
    }
}

async fn simulate(seed: u64, aloud: bool) -> Outcome {
    let scene = Scene::set_up(seed, aloud).await;
    if scene.shape.family.parts() {
        let mut apart = Apart::new(scene);
        apart.run(LASTS).await;
        return apart.scene.outcome(apart.faults);
    }
    let faults = one_history(&scene, seed).await;
    scene.outcome(faults)
}

/// A run in which nothing that was confirmed is given up. Returns how many faults there were.
async fn one_history(scene: &Scene, seed: u64) -> u64 {
    let Scene {
        shape,
        random,
        work,
        ..
    } = scene;
    let clients: Vec<Client> = scene
        .clients
        .iter()
        .map(|(client, _)| client.clone())
        .collect();
    let mut workers: Vec<_> = (0..clients.len()).flat_map(|at| scene.begin(at)).collect();
    for guest in 0..shape.guests {
        let mounter = Rc::clone(&scene.mounter);
        let mount = move || mounter.mount(CLIENTS_FROM + CLIENTS + guest);
        let visit = Rc::clone(work).visit(mount);
        workers.push(tokio::task::spawn_local(visit));
    }
    // In some of the runs, and from numbers of their own: the others stay as they are.
    let lockers = seed
        .is_multiple_of(LOCKERS_IN)
        .then(|| Lockers::new(work, Random::new(!seed)));
    if let Some(lockers) = &lockers {
        workers.extend(clients.iter().flat_map(|client| lockers.begin(client)));
    }
    let links = shape.switches_links.then(|| Random::new(!seed).fork());
    let mut faults = scene.faults(links);
    if shape.family == Family::Fences {
        let shots = scene.nodes.lock().await.take_shots();
        tokio::task::spawn_local(carry_out(shots, Rc::clone(&scene.nodes), random.fork()));
    }
    let parts = if shape.cuts { 8 } else { 1 };
    for part in 0..parts {
        faults.run(LASTS / parts).await;
        let cut = shape.cuts && part + 1 < parts;
        if cut {
            let late = shape.quorum == Quorum::Majority && random.one_in(2);
            power_cut(&scene.nodes, work, &clients[0], late).await;
            work.hold_up(false);
        }
    }
    work.end();
    let ended = finish(&scene.nodes, work, &clients).await;
    if let (true, Some(lockers)) = (ended, &lockers) {
        lockers.check(&clients[0], LOOKING).await;
    }
    for worker in workers {
        worker.abort();
    }
    if ended {
        compare_bricks(&scene.nodes, work).await;
    }
    // DUR-2: only power that goes everywhere may take what was confirmed.
    let mut told = scene.journal.lines().into_iter();
    let lost = told.find(|line| line.contains("operations_lost"));
    if let Some(line) = lost.filter(|_| !shape.cuts) {
        work.fail(line);
    }
    faults.count
}

/// Waits until nothing is under way. False: two minutes were not enough.
pub(crate) async fn come_to_rest(nodes: &Nodes, work: &Work) -> bool {
    let end = Instant::now() + Duration::from_secs(120);
    while work.under_way() > 0 {
        if Instant::now() >= end {
            say_how_it_stands(nodes).await;
            work.fail(format!("{} operations are not answered", work.under_way()));
            return false;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    true
}

/// For whoever reads a failure.
pub(crate) async fn say_how_it_stands(nodes: &Nodes) {
    let cluster = nodes.lock().await;
    for place in 0..cluster.nodes.len() {
        let known = cluster.pool.known(place);
        let status = match cluster.handle(place) {
            Some(handle) => Some(handle.status().await),
            None => None,
        };
        let status = serde_json::to_string(&status).unwrap_or_default();
        let line = format!(
            "node{} knows of {known:?} and stands at {status}",
            place + 1
        );
        cluster.journal.note(line);
    }
}

/// The power goes everywhere at once, at the moment when something was confirmed as stable, and
/// comes back. `late`: at one node a little later, where another one can serve until then.
async fn power_cut(nodes: &Nodes, work: &Work, client: &Client, late: bool) {
    let primary = serving(nodes).await.map(|report| report.replica);
    // Nothing may be confirmed while nobody serves.
    let _ = tokio::time::timeout(Duration::from_secs(1), work.next_stable()).await;
    work.hold_up(true);
    let cut_at = {
        let mut cluster = nodes.lock().await;
        for place in 0..cluster.nodes.len() {
            cluster.power_off(place).await;
        }
        work.cut_now()
    };
    let late = primary.filter(|_| late);
    put_right(nodes, late).await;
    if late.is_some() {
        tokio::time::sleep(LATE).await;
        put_right(nodes, None).await;
    }
    if !come_to_rest(nodes, work).await {
        return;
    }
    let mut found = work.look(client, LOOKING).await;
    work.check(&found, Some(cut_at));
    work.mend(client, LOOKING, &mut found).await;
    work.begin_with(found);
    if wait_until_in_sync(nodes).await {
        compare_replicas(nodes, work).await;
    }
}

/// What a crash left in doubt must be the same everywhere by now.
pub(crate) async fn compare_replicas(nodes: &Nodes, work: &Work) {
    let Some(primary) = serving(nodes).await else {
        return;
    };
    let handle = nodes.lock().await.handle(primary.replica);
    let Some(handle) = handle else { return };
    let verdict = handle
        .command(VolumeCommand::Verify { repair: false })
        .await;
    if let Ok(verdict) = verdict {
        work.take_verdict(&verdict);
    }
}

/// Everything is put right, and must come to a good end. True: it did.
pub(crate) async fn finish(nodes: &Nodes, work: &Work, clients: &[Client]) -> bool {
    // What was to be started or healed later is so now.
    mend_disks(nodes).await;
    put_right(nodes, None).await;
    if !come_to_rest(nodes, work).await {
        return false;
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    mend_disks(nodes).await;
    put_right(nodes, None).await;
    if !wait_until_in_sync(nodes).await {
        say_how_it_stands(nodes).await;
        work.fail("the replicas do not come to be in sync".to_owned());
        return false;
    }
    for client in clients {
        if client.was_forgotten() {
            work.fail(format!("the session of client{} ended", client.place));
        }
    }
    let found = work.look(&clients[0], LOOKING).await;
    work.check(&found, None);
    true
}

/// Has what every replica holds in memory brought into its files, by an end in order. Damage below
/// it is covered by that; a process that is killed would find it when it builds on it anew, and
/// nobody is there to be asked in the end.
async fn write_down(nodes: &Nodes) {
    let members = nodes.lock().await.members();
    for place in members {
        let mut cluster = nodes.lock().await;
        cluster.stop(place).await;
        cluster.start(place);
        drop(cluster);
        wait_until_in_sync(nodes).await;
    }
}

/// Ends every replica in one instant, at which all have the same records: one that ends earlier
/// misses what the others order without it, if only to let go what a mount held.
async fn end_together(nodes: &Nodes) -> Option<Vec<usize>> {
    for _ in 0..ENDINGS {
        let mut cluster = nodes.lock().await;
        let members = cluster.members();
        for place in &members {
            cluster.freeze(*place, true);
        }
        for place in &members {
            cluster.kill(*place).await;
        }
        let applied = |place: &usize| cluster.brick(*place).applied();
        if members
            .iter()
            .all(|place| applied(place) == applied(&members[0]))
        {
            return Some(members);
        }
        for place in &members {
            cluster.start(*place);
        }
        drop(cluster);
        wait_until_in_sync(nodes).await;
    }
    None
}

/// Every replica must hold the same, byte for byte.
pub(crate) async fn compare_bricks(nodes: &Nodes, work: &Work) {
    if work.has_rotted() {
        write_down(nodes).await;
    }
    let Some(members) = end_together(nodes).await else {
        work.fail("the replicas do not come to hold the same records".to_owned());
        return;
    };
    let cluster = nodes.lock().await;
    let one = members[0];
    let first = contents(&cluster.brick(one));
    for place in members.into_iter().skip(1) {
        let other = contents(&cluster.brick(place));
        for key in first.keys().chain(other.keys()) {
            if first.get(key) != other.get(key) {
                work.fail(format!(
                    "node{} and node{} differ in {key:?}: {:?} {:?}",
                    one + 1,
                    place + 1,
                    first.get(key).map(bytes::Bytes::len),
                    other.get(key).map(bytes::Bytes::len)
                ));
                return;
            }
        }
    }
}

/// A key, or a piece of an object.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Key(bytes::Bytes),
    Data(u64, u64),
}

pub(crate) fn contents(brick: &Brick<SimMedium>) -> BTreeMap<Part, bytes::Bytes> {
    let mut parts = BTreeMap::new();
    brick
        .scan(&[], &[0xff; 64], &mut |key, value| {
            let copy = bytes::Bytes::copy_from_slice;
            parts.insert(Part::Key(copy(key)), copy(value));
            true
        })
        .expect("a whole brick can be read");
    let objects = brick
        .objects_after(None, 1 << 20)
        .expect("a whole brick can be read");
    for object in objects {
        let end = brick.data_end(object).expect("a whole brick can be read");
        for offset in (0..end).step_by(1 << 20) {
            let len = u32::try_from((end - offset).min(1 << 20)).expect("a MiB");
            let data = brick
                .read_now(object, offset, len)
                .expect("every checksum holds");
            // What is beyond the data's end, and what is zero, is the same.
            let end = data
                .iter()
                .rposition(|byte| *byte != 0)
                .map_or(0, |at| at + 1);
            if end > 0 {
                parts.insert(Part::Data(object.0, offset), data.slice(..end));
            }
        }
    }
    parts
}
