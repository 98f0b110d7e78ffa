//! Nodes: a disk each, and a replica that runs on it, is stopped, dies, loses its power.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use daemon::volume::{
    AcceptedStream, Connecting, FenceOrder, Host, Stream, VolumeHandle, first_state, identity,
};
use protocol::ids::{NodeId, PoolId, VolumeId};
use protocol::preamble::Purpose;
use protocol::units::Sequence;
use protocol::volume::{REPLICAS_MAX, VolumeSpec};
use replication::machine::{Agreed, Proposed};
use replication::state::{Disk, DurableState};
use storage::medium::sim::SimMedium;
use storage::{Brick, BrickError, Expected, JournalSizes, OpenError, Options, PointId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, LocalSet};
use tokio::time::Instant;

use super::disks::{DISK_BYTES, RESERVE_BYTES};
use super::network::{End, Network, Place};
use super::pool::Pool;
use super::random::Random;

/// The pool that every brick belongs to.
pub(crate) const POOL: PoolId = PoolId([7; 16]);

/// Nodes have the places before, clients those from here on.
pub(crate) const CLIENTS_FROM: Place = REPLICAS_MAX;

/// Sizes so small that checkpoints and the journal's reuse happen all the time.
fn sizes() -> Options {
    Options {
        large_write_bytes: 32 << 10,
        unsynced_bytes_max: 512 << 10,
        overlay_bytes_checkpoint: 128 << 10,
        overlay_bytes_max: 640 << 10,
        direct_bytes_checkpoint: 2 << 20,
        reserve_bytes: RESERVE_BYTES,
        journal: JournalSizes {
            segment_bytes: 1280 << 10,
            total_bytes_max: 6 << 20,
        },
    }
}

/// Who listens where.
#[derive(Clone, Default)]
pub(crate) struct Directory(Arc<Mutex<Vec<Option<VolumeHandle>>>>);

impl Directory {
    fn set(&self, place: Place, handle: Option<VolumeHandle>) {
        let mut handles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if handles.len() <= place {
            handles.resize(place + 1, None);
        }
        handles[place] = handle;
    }

    fn get(&self, place: Place) -> Option<VolumeHandle> {
        let handles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        handles.get(place).cloned().flatten()
    }
}

/// The node's identity.
pub(crate) fn node_id(place: Place) -> NodeId {
    let mut id = [0xA0; 16];
    id[15] = u8::try_from(place).expect("few places");
    NodeId(id)
}

/// The place of a node.
fn place_of(node: NodeId) -> Place {
    usize::from(node.0[15])
}

/// Connects to whatever replica runs at `to`.
pub(crate) async fn dial(
    network: Network,
    directory: Directory,
    from: Place,
    to: Place,
    purpose: Purpose,
) -> std::io::Result<End> {
    tokio::time::sleep(network.delay()).await;
    while !(network.is_open(from, to) && network.is_open(to, from)) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let Some(handle) = directory.get(to) else {
        return Err(std::io::ErrorKind::ConnectionRefused.into());
    };
    let (mine, theirs) = network.connect(from, to);
    let stream = Stream::new(theirs.reader, theirs.writer, Some(node_id(from)), None);
    handle.accept(AcceptedStream::Ready(stream), purpose);
    Ok(mine)
}

/// How a node's clock differs from the truth.
struct Clock {
    /// Thousandths by which it runs fast.
    fast: i32,
    /// By how much the time of day was put forward or back, in seconds.
    stepped: i64,
}

/// What a replica sees of its simulated node.
struct SimHost {
    me: Place,
    began: Instant,
    clock: Mutex<Clock>,
    random: Random,
    network: Network,
    directory: Directory,
    pool: Pool,
    journal: Journal,
    shots: mpsc::UnboundedSender<Shot>,
}

/// A node has its fence command run.
pub(crate) struct Shot {
    pub(crate) from: Place,
    pub(crate) order: FenceOrder,
    pub(crate) answer: oneshot::Sender<Result<(), String>>,
}

impl Host for SimHost {
    fn now(&self) -> Duration {
        let clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = self.began.elapsed();
        let off = passed / 1000 * clock.fast.unsigned_abs();
        if clock.fast < 0 {
            passed - off
        } else {
            passed + off
        }
    }

    fn wall(&self) -> SystemTime {
        let stepped = self
            .clock
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .stepped;
        let steady = UNIX_EPOCH + Duration::from_secs(1_800_000_000) + self.began.elapsed();
        let step = Duration::from_secs(stepped.unsigned_abs());
        if stepped < 0 {
            steady - step
        } else {
            steady + step
        }
    }

    fn entropy(&self) -> [u8; 16] {
        self.random.bytes()
    }

    fn dial(&self, node: NodeId, purpose: Purpose) -> Connecting {
        let connecting = dial(
            self.network.clone(),
            self.directory.clone(),
            self.me,
            place_of(node),
            purpose,
        );
        Box::pin(async move {
            let end = connecting.await?;
            Ok(Stream::new(end.reader, end.writer, Some(node), None))
        })
    }

    fn accept(&self, stream: AcceptedStream) -> Connecting {
        let AcceptedStream::Ready(stream) = stream else {
            panic!("there are no sockets here");
        };
        Box::pin(async move { Ok(stream) })
    }

    fn agreed(&self, _: VolumeId) -> Option<Agreed> {
        self.pool.known(self.me)
    }

    fn layout(&self, _: VolumeId) -> u64 {
        self.pool.known_spec(self.me).layout.version
    }

    fn changes(&self) -> watch::Receiver<()> {
        self.pool.changes(self.me)
    }

    fn propose(&self, _: VolumeId, next: Agreed) -> oneshot::Receiver<Proposed> {
        self.pool.propose(self.me, next)
    }

    fn fence(&self, order: FenceOrder) -> oneshot::Receiver<Result<(), String>> {
        let (answer, wait) = oneshot::channel();
        let from = self.me;
        // Where nobody takes it, it is as if the command had been abandoned.
        let _ = self.shots.send(Shot {
            from,
            order,
            answer,
        });
        wait
    }

    fn event(&self, kind: &str, _: &str, message: &str) {
        self.journal
            .note(format!("node{} {kind}: {message}", self.me + 1));
    }
}

/// What happened, a line each.
#[derive(Clone, Default)]
pub(crate) struct Journal {
    lines: Arc<Mutex<Vec<String>>>,
    began: Option<Instant>,
    aloud: bool,
}

impl Journal {
    pub(crate) fn new(aloud: bool) -> Self {
        Self {
            lines: Arc::default(),
            began: Some(Instant::now()),
            aloud,
        }
    }

    /// Simulated time since the run began.
    pub(crate) fn now(&self) -> Duration {
        self.began.map(|began| began.elapsed()).unwrap_or_default()
    }

    pub(crate) fn note(&self, what: String) {
        let line = format!("{:9.3} s  {what}", self.now().as_secs_f64());
        if self.aloud {
            println!("{line}");
        }
        self.lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(line);
    }

    /// How many lines there are.
    pub(crate) fn len(&self) -> usize {
        self.lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Whether a line after so many has one of these words.
    pub(crate) fn told_since(&self, from: usize, words: &[&str]) -> bool {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let mut since = lines.iter().skip(from);
        since.any(|line| words.iter().any(|word| line.contains(word)))
    }

    /// A line that is worth writing only where somebody listens.
    pub(crate) fn quietly(&self, what: impl FnOnce() -> String) {
        if self.aloud {
            self.note(what());
        }
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// A replica's tasks, which stand still while the node is stopped.
struct Gate {
    tasks: LocalSet,
    frozen: Rc<Cell<bool>>,
    waker: Rc<RefCell<Option<Waker>>>,
}

impl Future for Gate {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        *self.waker.borrow_mut() = Some(cx.waker().clone());
        if self.frozen.get() {
            return Poll::Pending;
        }
        Pin::new(&mut self.tasks).poll(cx)
    }
}

struct Running {
    task: JoinHandle<()>,
    frozen: Rc<Cell<bool>>,
    waker: Rc<RefCell<Option<Waker>>>,
}

/// A node.
pub(crate) struct Node {
    place: Place,
    pub(crate) medium: SimMedium,
    host: Arc<SimHost>,
    running: Option<Running>,
    dark: bool,
    /// Its brick could not be opened for want of room.
    found_full: bool,
    /// Its brick was once seen to be a picture of one time, with something in it.
    whole: bool,
    /// How often its disk had had no room when it was last seen outside of a resync.
    refused: u64,
    /// The configuration that the replica was told last.
    told: u64,
    /// It is gone for good, for now.
    buried: bool,
    /// It is being asked whether bricks on their way out may go.
    lets_go: bool,
}

/// All nodes of a simulation.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    pub(crate) network: Network,
    pub(crate) directory: Directory,
    pub(crate) pool: Pool,
    pub(crate) journal: Journal,
    random: Random,
    slowness: u64,
    began: Instant,
    shots: mpsc::UnboundedSender<Shot>,
    /// Fence commands that were ordered, until somebody carries them out.
    ordered_shots: Option<mpsc::UnboundedReceiver<Shot>>,
}

impl Cluster {
    /// Fresh bricks for every replica of the volume, and nothing running.
    pub(crate) fn new(
        network: Network,
        pool: Pool,
        journal: Journal,
        random: Random,
        slowness: u64,
    ) -> Self {
        let directory = Directory::default();
        let began = Instant::now();
        let spec = pool.spec();
        let (shots, ordered_shots) = mpsc::unbounded_channel();
        let mut cluster = Self {
            nodes: Vec::new(),
            network,
            directory,
            pool,
            journal,
            random,
            slowness,
            began,
            shots,
            ordered_shots: Some(ordered_shots),
        };
        for place in 0..spec.replicas.len() {
            cluster.add_node(&spec, place);
        }
        cluster
    }

    /// A node with a fresh brick at this place of the volume, which is the next one.
    pub(crate) fn add_node(&mut self, spec: &VolumeSpec, place: Place) {
        assert_eq!(place, self.nodes.len(), "places are given in turn");
        let medium = SimMedium::new(self.random.next(), DISK_BYTES);
        medium.slow_down(self.slowness);
        let brick = identity(spec, place, POOL);
        Brick::create(&medium, brick, first_state(spec, place), &sizes())
            .expect("an empty disk takes a brick");
        let fast = i32::try_from(self.random.within(0..11)).expect("small") - 5;
        self.nodes.push(Node {
            place,
            medium,
            host: Arc::new(SimHost {
                me: place,
                began: self.began,
                clock: Mutex::new(Clock { fast, stepped: 0 }),
                random: self.random.fork(),
                network: self.network.clone(),
                directory: self.directory.clone(),
                pool: self.pool.clone(),
                journal: self.journal.clone(),
                shots: self.shots.clone(),
            }),
            running: None,
            dark: false,
            found_full: false,
            whole: false,
            refused: 0,
            told: 0,
            buried: false,
            lets_go: false,
        });
    }

    /// The fence commands, for whoever carries them out.
    pub(crate) fn take_shots(&mut self) -> mpsc::UnboundedReceiver<Shot> {
        self.ordered_shots.take().expect("one carries them out")
    }

    /// Tells a replica what its node knows of the volume's configuration, if that is news.
    pub(crate) fn tell_spec(&mut self, place: Place, spec: &VolumeSpec) {
        let Some(handle) = self.handle(place) else {
            return;
        };
        let node = &mut self.nodes[place];
        if node.told < spec.version && handle.update_spec(spec.clone()) {
            node.told = spec.version;
        }
    }

    /// The replica's node begins to ask whether bricks on their way out may go. False: it does so.
    pub(crate) fn begin_letting_go(&mut self, place: Place) -> bool {
        !std::mem::replace(&mut self.nodes[place].lets_go, true)
    }

    /// See [`Cluster::begin_letting_go`].
    pub(crate) fn end_letting_go(&mut self, place: Place) {
        self.nodes[place].lets_go = false;
    }

    /// The node has learned that its brick was removed.
    pub(crate) async fn retire(&mut self, place: Place) {
        self.journal
            .note(format!("node{}'s brick is gone", place + 1));
        self.end(place).await;
        self.pool.set_awake(place, true);
    }

    /// Places that have a brick.
    pub(crate) fn members(&self) -> Vec<Place> {
        let spec = self.pool.spec();
        spec.members().map(|(place, _)| place).collect()
    }

    pub(crate) fn is_running(&self, place: Place) -> bool {
        self.nodes[place].running.is_some()
    }

    pub(crate) fn is_frozen(&self, place: Place) -> bool {
        let running = self.nodes[place].running.as_ref();
        running.is_some_and(|running| running.frozen.get())
    }

    /// How to talk to the replica, if its process runs.
    pub(crate) fn handle(&self, place: Place) -> Option<VolumeHandle> {
        self.directory.get(place)
    }

    /// Nobody starts the node any more, or somebody may again.
    pub(crate) fn bury(&mut self, place: Place, buried: bool) {
        self.nodes[place].buried = buried;
    }

    /// Starts the node's process on its disk as it is.
    pub(crate) fn start(&mut self, place: Place) {
        if self.nodes[place].buried {
            return;
        }
        let spec = self.pool.known_spec(place);
        if std::mem::take(&mut self.nodes[place].dark) {
            self.network.power_on(place);
        }
        self.pool.set_awake(place, true);
        if !spec.is_member(place) {
            return; // it has not heard of its brick yet, or heard that it is gone
        }
        let expected = Expected {
            pool: POOL,
            volume: spec.id,
            brick: spec.replicas[place].brick,
        };
        let node = &mut self.nodes[place];
        assert!(node.running.is_none(), "one process a node");
        // A disk that fails while a brick is opened is one that was not mended in time.
        node.medium.mend();
        let opened = Brick::open(node.medium.clone(), Some(expected), sizes());
        if let Err(OpenError::Brick(BrickError::Failed(fault))) = &opened
            && fault.kind == std::io::ErrorKind::StorageFull
        {
            // Somebody else took the room that was kept free; an operator makes room again.
            node.found_full = true;
            let told = format!("node{} finds its disk full", place + 1);
            return self.journal.note(told);
        }
        let (brick, recovery) = opened.expect("a brick opens after any crash");
        self.journal.note(format!(
            "node{} starts at record {}, {} extents in doubt",
            place + 1,
            brick.applied().0,
            recovery.suspect.len()
        ));
        let host: Arc<dyn Host> = node.host.clone();
        let (handle, run) = VolumeHandle::over(spec.clone(), place, host, brick, recovery)
            .expect("a brick remembers its role");
        let tasks = LocalSet::new();
        tasks.spawn_local(run);
        let (frozen, waker) = (Rc::new(Cell::new(false)), Rc::default());
        let gate = Gate {
            tasks,
            frozen: Rc::clone(&frozen),
            waker: Rc::clone(&waker),
        };
        node.told = spec.version;
        node.running = Some(Running {
            task: tokio::task::spawn_local(gate),
            frozen,
            waker,
        });
        self.directory.set(place, Some(handle));
    }

    /// True, once: the node's brick was not opened, for want of room.
    pub(crate) fn was_found_full(&mut self, place: Place) -> bool {
        std::mem::take(&mut self.nodes[place].found_full)
    }

    async fn end(&mut self, place: Place) {
        let node = &mut self.nodes[place];
        self.directory.set(node.place, None);
        self.pool.set_awake(place, false);
        if let Some(running) = node.running.take() {
            running.task.abort();
            let _ = running.task.await;
        }
    }

    /// SIGKILL: what the kernel holds of its files stays.
    pub(crate) async fn kill(&mut self, place: Place) {
        self.journal.note(format!("node{} is killed", place + 1));
        self.end(place).await;
        self.nodes[place].medium = self.nodes[place].medium.kill();
        self.look_for_the_point(place);
    }

    /// The power goes: what was not synced is lost, torn or kept; nobody hears that it is gone.
    pub(crate) async fn power_off(&mut self, place: Place) {
        self.journal
            .note(format!("node{} loses its power", place + 1));
        self.network.power_off(place);
        self.end(place).await;
        let node = &mut self.nodes[place];
        node.medium = node.medium.crash(self.random.next());
        node.dark = true;
        self.look_for_the_point(place);
    }

    /// In the middle of a resync the picture before it must be there, and whole (RS-4), unless there
    /// was no room to keep it.
    fn look_for_the_point(&mut self, place: Place) {
        // Where the disk gives errors there is nothing to be seen.
        let Ok((brick, _)) = Brick::open_read_only(self.nodes[place].medium.clone()) else {
            return;
        };
        let state: DurableState =
            serde_json::from_slice(brick.state()).expect("a replica notes what it can read");
        let whole = matches!(state.disk, Disk::UpToDate | Disk::Consistent);
        let node = &mut self.nodes[place];
        node.whole |= whole && brick.applied() > Sequence::ZERO;
        let refused = node.medium.refused();
        if state.disk != Disk::Inconsistent {
            node.refused = refused;
        }
        if !node.whole || state.disk != Disk::Inconsistent {
            return;
        }
        let point = state.point.map(PointId);
        let points = brick.points();
        let found = points.iter().find(|found| Some(found.id) == point);
        let shown = found.and_then(|found| brick.view(found.id).ok());
        let keys = shown.and_then(|view| {
            let mut keys = 0;
            let scanned = view.scan(&[], &[0xff; 32], &mut |_, _| {
                keys += 1;
                true
            });
            scanned.is_ok().then_some(keys)
        });
        let given_up = found.is_none() && refused > node.refused;
        assert!(
            given_up || keys.is_some_and(|keys| keys > 0),
            "node{} has no picture of before its resync: {state:?}",
            place + 1
        );
    }

    /// SIGSTOP and SIGCONT.
    pub(crate) fn freeze(&mut self, place: Place, frozen: bool) {
        let Some(running) = &self.nodes[place].running else {
            return;
        };
        if running.frozen.replace(frozen) == frozen {
            return;
        }
        let what = if frozen { "is stopped" } else { "goes on" };
        self.journal.note(format!("node{} {what}", place + 1));
        self.pool.set_awake(place, !frozen);
        if let Some(waker) = running.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Somebody sets the node's clock.
    pub(crate) fn step_clock(&self, place: Place, seconds: i64) {
        self.journal
            .note(format!("node{}'s clock steps by {seconds} s", place + 1));
        let clock = &self.nodes[place].host.clock;
        clock.lock().unwrap_or_else(PoisonError::into_inner).stepped += seconds;
    }

    /// SIGTERM, and the end of the process.
    pub(crate) async fn stop(&mut self, place: Place) {
        self.journal.note(format!("node{} stops", place + 1));
        if let Some(handle) = self.handle(place) {
            handle.stop().await;
        }
        self.end(place).await;
    }

    /// What the replica's brick holds now, as it would be found if its process died.
    pub(crate) fn picture(&self, place: Place) -> Brick<SimMedium> {
        let medium = self.nodes[place].medium.fork();
        let (brick, _) = Brick::open_read_only(medium).expect("a brick opens after any crash");
        brick
    }

    /// The replica's brick, whose process must have been stopped.
    pub(crate) fn brick(&self, place: Place) -> Brick<SimMedium> {
        let medium = self.nodes[place].medium.clone();
        let (brick, _) = Brick::open_read_only(medium).expect("a stopped brick opens");
        brick
    }
}
