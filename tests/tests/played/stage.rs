//! One replica that runs, shipped code from its connections to its disk, and every other end of its
//! connections played by the test: so each frame comes when the test says, and in no other order.

use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use daemon::volume::{
    AcceptedStream, Connecting, Host, Right, Stream, VolumeHandle, first_state, identity,
};
use protocol::frame::{RawFrame, take_frame};
use protocol::ids::{BrickId, GenerationId, NodeId, PoolId, VolumeId};
use protocol::node_rpc::VolumeCommand;
use protocol::preamble::Purpose;
use protocol::replica::{HASH_BYTES, Message, REPLICA_VERSION, Scope};
use protocol::report::ReplicaReport;
use protocol::units::{Sequence, Term};
use protocol::volume::{
    Layout, Protocol, Quorum, REPLICAS_MAX, ReplicaSpec, VolumeKind, VolumeSpec, VolumeState,
};
use replication::decision::Rule;
use replication::line::Line;
use replication::machine::{Agreed, Proposed};
use replication::state::{Disk, How, InForce, Mask, Report, Role, Welcome};
use storage::medium::sim::SimMedium;
use storage::{Brick, JournalSizes, Options};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, LocalSet};
use tokio::time::Instant;

const POOL: PoolId = PoolId([7; 16]);
const DISK_BYTES: u64 = 64 << 20;
/// How long the replica may take to say or do something.
const SOON: Duration = Duration::from_secs(20);

/// The node at a place.
pub(crate) fn node_id(place: usize) -> NodeId {
    NodeId([u8::try_from(place).expect("few places") + 1; 16])
}

/// Keys that begin with this or more are clients', others nodes'.
const CLIENTS_FROM: u8 = 100;

/// The key of a client.
pub(crate) fn client_key(number: u8) -> NodeId {
    NodeId([CLIENTS_FROM + number; 16])
}

/// A volume with so many replicas, node1 to nodeN.
pub(crate) fn spec(replicas: usize, quorum: Quorum) -> VolumeSpec {
    let replicas = (0..replicas).map(|place| ReplicaSpec {
        node: node_id(place),
        node_name: format!("node{}", place + 1),
        path: "/brick".to_owned(),
        brick: BrickId(node_id(place).0),
    });
    VolumeSpec {
        id: VolumeId([3; 16]),
        name: "v1".to_owned(),
        kind: VolumeKind::Fs,
        size_bytes: None,
        protocol: Protocol::C,
        quorum,
        replicas: replicas.collect(),
        state: VolumeState::Started,
        layout: Layout::default(),
        options: [].into(),
        version: 1,
    }
}

/// The node of the replica: reaches nobody by itself.
struct Alone {
    began: Instant,
    agreed: Option<Agreed>,
    starts: Mutex<u8>,
    events: Mutex<Vec<String>>,
    /// These have no right to the volume any more.
    revoked: Mutex<Vec<NodeId>>,
    /// These may only read it.
    readers: Mutex<Vec<NodeId>>,
    /// Nothing else changes at the pool.
    changes: watch::Sender<()>,
}

impl Host for Alone {
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn wall(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000) + self.began.elapsed()
    }

    fn entropy(&self) -> [u8; 16] {
        let mut starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
        *starts += 1;
        [*starts; 16]
    }

    fn dial(&self, _: NodeId, _: Purpose) -> Connecting {
        Box::pin(async { Err(std::io::ErrorKind::ConnectionRefused.into()) })
    }

    fn accept(&self, stream: AcceptedStream) -> Connecting {
        let AcceptedStream::Ready(stream) = stream else {
            panic!("there are no sockets here");
        };
        Box::pin(async move { Ok(stream) })
    }

    fn right(&self, identity: NodeId, _: VolumeId) -> Option<Right> {
        let revoked = self.revoked.lock().unwrap_or_else(PoisonError::into_inner);
        let readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        (!revoked.contains(&identity)).then(|| Right {
            client: identity.0[0]
                .ge(&CLIENTS_FROM)
                .then(|| format!("{identity}")),
            read_only: readers.contains(&identity),
        })
    }

    fn agreed(&self, _: VolumeId) -> Option<Agreed> {
        self.agreed
    }

    fn layout(&self, _: VolumeId) -> u64 {
        0
    }

    fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    fn propose(&self, _: VolumeId, _: Agreed) -> oneshot::Receiver<Proposed> {
        oneshot::channel().1
    }

    fn event(&self, kind: &str, _: &str, message: &str) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.push(format!("{kind}: {message}"));
    }
}

fn sizes() -> Options {
    Options {
        reserve_bytes: 1 << 20,
        journal: JournalSizes {
            segment_bytes: 1280 << 10,
            total_bytes_max: 6 << 20,
        },
        ..Options::for_room(storage::Room {
            total_bytes: DISK_BYTES,
            free_bytes: DISK_BYTES,
        })
    }
}

/// See the module.
pub(crate) struct Stage {
    pub(crate) spec: VolumeSpec,
    me: usize,
    handle: VolumeHandle,
    host: Arc<Alone>,
    medium: SimMedium,
    runs: JoinHandle<()>,
}

/// A process of the replica begins.
fn begin(
    spec: &VolumeSpec,
    me: usize,
    host: &Arc<Alone>,
    medium: &SimMedium,
) -> (VolumeHandle, JoinHandle<()>) {
    let (brick, recovery) = Brick::open(medium.clone(), None, sizes()).expect("it opens");
    let node: Arc<dyn Host> = host.clone();
    let (handle, runs) = VolumeHandle::over(spec.clone(), me, node, brick, recovery)
        .expect("a brick remembers its role");
    // With this the tasks that it starts end as well, as those of a process.
    let process = LocalSet::new();
    process.spawn_local(runs);
    (handle, tokio::task::spawn_local(process))
}

impl Stage {
    /// A fresh replica at the place `me`, at its start. `agreed` by the pool, where it decides.
    pub(crate) fn new(spec: VolumeSpec, me: usize, agreed: Option<Agreed>) -> Self {
        let medium = SimMedium::new(1, DISK_BYTES);
        let state = first_state(&spec, me);
        Brick::create(&medium, identity(&spec, me, POOL), state, &sizes())
            .expect("an empty disk takes a brick");
        let host = Arc::new(Alone {
            began: Instant::now(),
            agreed,
            starts: Mutex::new(0),
            events: Mutex::default(),
            revoked: Mutex::default(),
            readers: Mutex::default(),
            changes: watch::Sender::new(()),
        });
        let (handle, runs) = begin(&spec, me, &host, &medium);
        Self {
            handle,
            spec,
            me,
            host,
            medium,
            runs,
        }
    }

    /// The replica ends in order and takes the volume up anew: as after any take-over, nobody is
    /// connected, and what it knows of mounts is what is written.
    pub(crate) async fn restart(&mut self) {
        self.handle.stop().await;
        // What is left of it does nothing to this one.
        self.medium = self.medium.kill();
        (self.handle, self.runs) = begin(&self.spec, self.me, &self.host, &self.medium);
        self.until(|status| status.serving).await;
    }

    /// An option of the volume is set.
    pub(crate) fn set(&mut self, option: &str, value: &str) {
        self.spec
            .options
            .insert(option.to_owned(), value.to_owned());
        self.spec.version += 1;
        assert!(self.handle.update_spec(self.spec.clone()), "it runs");
    }

    /// An identity has the right to read the volume, and no other.
    pub(crate) fn only_reads(&self, identity: NodeId) {
        let readers = self.host.readers.lock();
        readers
            .unwrap_or_else(PoisonError::into_inner)
            .push(identity);
    }

    /// A node has no right to the volume any more.
    pub(crate) fn revoke(&self, node: NodeId) {
        let revoked = self.host.revoked.lock();
        revoked.unwrap_or_else(PoisonError::into_inner).push(node);
        self.host.changes.send_replace(());
    }

    /// The replica's process dies, and another one begins.
    pub(crate) async fn start_anew(&mut self) {
        self.runs.abort();
        // It ends by that.
        let _ = (&mut self.runs).await;
        (self.handle, self.runs) = begin(&self.spec, self.me, &self.host, &self.medium);
    }

    /// The replica's disk.
    pub(crate) fn disk(&self) -> &SimMedium {
        &self.medium
    }

    pub(crate) fn events(&self) -> Vec<String> {
        let events = self.host.events.lock();
        events.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) async fn status(&self) -> ReplicaReport {
        self.handle.status().await
    }

    /// What an operator's comparison of the replicas finds.
    pub(crate) async fn verify(&self) -> serde_json::Value {
        let verify = VolumeCommand::Verify { repair: false };
        self.handle
            .command(verify)
            .await
            .expect("a primary compares")
    }

    /// Waits until the replica says so of itself.
    pub(crate) async fn until(&self, so: impl Fn(&ReplicaReport) -> bool) {
        let waiting = async {
            while !so(&self.status().await) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(SOON, waiting).await;
        assert!(waited.is_ok(), "{:#?}", self.events());
    }

    /// A connection to the replica.
    pub(crate) fn connect(&self, from: NodeId, purpose: Purpose) -> Played {
        let (mine, theirs) = tokio::io::duplex(4 << 20);
        let (reader, writer) = tokio::io::split(theirs);
        let stream = Stream::new(reader, writer, Some(from), None);
        self.handle.accept(AcceptedStream::Ready(stream), purpose);
        let (reader, writer) = tokio::io::split(mine);
        Played {
            reader,
            writer,
            buffer: BytesMut::new(),
        }
    }

    /// A replica at another place says hello, and tells this of itself. Returns what is told back.
    pub(crate) async fn greet(&self, place: usize, report: &Report) -> (Played, Report) {
        let purpose = Purpose::Replica(self.spec.id);
        let mut played = self.connect(node_id(place), purpose);
        let hello = Message::Hello {
            version: REPLICA_VERSION,
            volume: self.spec.id,
            replica: u8::try_from(place).expect("few places"),
            brick: self.spec.replicas[place].brick,
            incarnation: 1,
            report: json(report),
        };
        played.say(&hello).await;
        let Some(Message::Hello { report, .. }) = played.hear().await else {
            panic!("whoever is greeted greets: {:#?}", self.events());
        };
        let told = serde_json::from_slice(&report).expect("a report");
        (played, told)
    }

    /// What a replica at another place of this volume tells that is as new as the volume.
    pub(crate) fn fresh_report(&self, place: usize) -> Report {
        Report {
            term: Term(0),
            role: if place == 0 {
                Role::Primary
            } else {
                Role::Secondary
            },
            serving: false,
            disk: Disk::UpToDate,
            line: Line::new(GenerationId(self.spec.id.0)),
            last: Sequence::ZERO,
            stable: Sequence::ZERO,
            in_sync: Mask::first(self.spec.replicas.len()),
            journal_from: Sequence(1),
            handed_to: None,
            suspects: 0,
            layout: 0,
            revision: 0,
            policy: InForce::default(),
            split_policy: replication::split::Policy::default(),
            role_term: None,
            primary_since: None,
            taken_from: None,
        }
    }

    /// What a primary in `term` tells that has gone on to `last`.
    pub(crate) fn primary_report(&self, place: usize, term: u64, last: u64) -> Report {
        let mut report = Report {
            term: Term(term),
            role: Role::Primary,
            serving: true,
            last: Sequence(last),
            stable: Sequence(last),
            in_sync: Mask::of(place),
            ..self.fresh_report(place)
        };
        let generation = GenerationId([u8::try_from(term).expect("small"); 16]);
        report.line.begin(generation, Term(term), Sequence::ZERO);
        report
    }

    /// The key's value at the replica, told by the hash that it gives of everything.
    pub(crate) async fn holds(&self, asks: &mut Played, pairs: &[(&str, &str)]) -> bool {
        let (from, to) = (Bytes::new(), Bytes::new());
        let scope = Scope::Keys { from, to };
        asks.say(&Message::Compare { id: 1, scope }).await;
        loop {
            let said = asks.hear().await;
            let Some(Message::Compared { hashes, names, .. }) = said else {
                assert!(said.is_some(), "it answers: {:#?}", self.events());
                continue;
            };
            let expected = pairs.iter().map(|(key, value)| {
                let hash = blake3::hash(format!("{key}{value}").as_bytes());
                hash.as_bytes()[..HASH_BYTES].to_vec()
            });
            return names.len() == pairs.len() && hashes == expected.collect::<Vec<_>>().concat();
        }
    }

    /// Mounts of the volume come from here.
    pub(crate) fn mount(&self) -> Played {
        self.connect(node_id(self.me), Purpose::Client(self.spec.id))
    }
}

/// Somebody is there, whose disk has room.
pub(crate) fn sign_of_life() -> Message {
    room(DISK_BYTES)
}

/// Somebody is there, whose disk has so much room.
pub(crate) fn room(free_bytes: u64) -> Message {
    Message::Heartbeat {
        term: Term(0),
        free_bytes,
        total_bytes: DISK_BYTES,
        confirmed: Sequence::ZERO,
    }
}

/// A primary takes a replica on that told `told`.
pub(crate) fn welcome(primary: &Report, told: &Report, how: How) -> Message {
    Message::Welcome(json(&Welcome {
        term: primary.term,
        line: primary.line.clone(),
        at: primary.last,
        how,
        basis: told.last,
        revision: told.revision,
        layout: 0,
        rule: Rule::DirtyMap,
        in_sync: primary.in_sync,
        since: [Sequence::ZERO; REPLICAS_MAX],
        policy: InForce::default(),
        fences: false,
        changes_bytes: Some(0),
    }))
}

pub(crate) fn json<T: serde::Serialize>(value: &T) -> Bytes {
    Bytes::from(serde_json::to_vec(value).expect("plain data is always JSON"))
}

/// This end of a connection.
pub(crate) struct Played {
    reader: ReadHalf<DuplexStream>,
    writer: WriteHalf<DuplexStream>,
    buffer: BytesMut,
}

impl Played {
    pub(crate) async fn say(&mut self, message: &Message) {
        self.say_frame(&message.encode()).await;
    }

    pub(crate) async fn say_frame(&mut self, frame: &RawFrame) {
        let mut bytes = BytesMut::new();
        frame.write_to(&mut bytes);
        // It may be closed already: that is what is looked for.
        let _ = self.writer.write_all(&bytes).await;
    }

    /// Some bytes of a frame: the rest comes later.
    pub(crate) async fn say_bytes(&mut self, bytes: &[u8]) {
        // As above.
        let _ = self.writer.write_all(bytes).await;
    }

    /// The next frame; `None`: closed.
    pub(crate) async fn hear_frame(&mut self) -> Option<RawFrame> {
        loop {
            if let Some(frame) = take_frame(&mut self.buffer).expect("it sends frames") {
                return Some(frame);
            }
            let read = tokio::time::timeout(SOON, self.reader.read_buf(&mut self.buffer)).await;
            match read.expect("it says something or closes") {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// The next message between replicas; `None`: closed.
    pub(crate) async fn hear(&mut self) -> Option<Message> {
        let frame = self.hear_frame().await?;
        Some(Message::decode(&frame).expect("and messages"))
    }

    /// Waits for a message; `None`: closed before it came.
    pub(crate) async fn hear_until(&mut self, so: impl Fn(&Message) -> bool) -> Option<Message> {
        loop {
            let message = self.hear().await?;
            if so(&message) {
                return Some(message);
            }
        }
    }
}

/// Runs a scenario in told time.
pub(crate) fn run<T>(scenario: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let tasks = Rc::new(LocalSet::new());
    tasks.block_on(&runtime, scenario)
}
