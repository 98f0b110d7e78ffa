//! A block that the primary cannot read, while clients read it and write parts of it: moment by
//! moment, so that no luck is needed (DUR-4).

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use protocol::fs::{Operation, Outcome};
use protocol::ids::{BrickId, SessionId, VolumeId};
use protocol::units::{BLOCK_BYTES, ObjectId};
use protocol::volume::{
    Layout, Protocol, Quorum, ReplicaSpec, VolumeKind, VolumeSpec, VolumeState,
};
use storage::medium::sim::SimMedium;
use tokio::sync::Mutex;
use tokio::task::LocalSet;

use super::client::Client;
use super::cluster::{CLIENTS_FROM, Cluster, Journal, node_id};
use super::faults::{Nodes, serving, wait_until_in_sync};
use super::network::Network;
use super::pool::Pool;
use super::random::Random;

/// fallocate(2): FALLOC_FL_KEEP_SIZE and FALLOC_FL_PUNCH_HOLE.
const PUNCH_HOLE: u32 = 3;
/// What every message takes on its way.
const LATENCY_MS: u64 = 20;

fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub(super) fn spec() -> VolumeSpec {
    let replicas = (0..2).map(|place| ReplicaSpec {
        node: node_id(place),
        node_name: format!("node{}", place + 1),
        path: "/brick".to_owned(),
        brick: BrickId([u8::try_from(place).expect("two") + 1; 16]),
    });
    VolumeSpec {
        id: VolumeId([3; 16]),
        name: "v1".to_owned(),
        kind: VolumeKind::Fs,
        size_bytes: None,
        protocol: Protocol::C,
        quorum: Quorum::Off,
        replicas: replicas.collect(),
        state: VolumeState::Started,
        layout: Layout::default(),
        options: [].into(),
        version: 1,
    }
}

/// Two nodes, two mounts, and a file whose first block stands on the disks alone.
pub(super) struct Stage {
    pub(super) nodes: Nodes,
    journal: Journal,
    pub(super) one: Client,
    pub(super) other: Client,
    pub(super) file: ObjectId,
    /// A file whose every byte was zeroed after it had been written.
    pub(super) hollow: ObjectId,
}

pub(super) async fn write(
    client: &Client,
    slot: u16,
    object: ObjectId,
    offset: u64,
    data: Vec<u8>,
) {
    let operation = Operation::Write {
        object,
        offset,
        append: false,
        kill_privileges: false,
    };
    let done = client.call(slot, operation, Bytes::from(data)).await;
    assert!(matches!(done, Outcome::Written { .. }), "{done:?}");
}

/// A new file.
pub(super) async fn create(client: &Client, name: &'static str) -> ObjectId {
    let create = Operation::Create {
        parent: ObjectId::ROOT,
        name: Bytes::from(name),
        mode: 0o644,
        exclusive: true,
    };
    match client.call(0, create, Bytes::new()).await {
        Outcome::Entry(attributes) => attributes.object,
        made => panic!("nothing can be made in a new volume: {made:?}"),
    }
}

impl Stage {
    pub(super) async fn new() -> Self {
        Self::with_seed(7).await
    }

    pub(super) async fn with_seed(seed: u64) -> Self {
        Self::of(seed, spec()).await
    }

    pub(super) async fn of(seed: u64, spec: VolumeSpec) -> Self {
        let random = Random::new(seed);
        let journal = Journal::new(false);
        let volume = spec.id;
        let network = Network::new(random.fork(), LATENCY_MS, 0);
        let (pool, proposals) = Pool::new(spec, None, network.clone(), random.fork());
        tokio::task::spawn_local(pool.clone().run(proposals));
        let mut cluster = Cluster::new(network.clone(), pool, journal.clone(), random.fork(), 1);
        cluster.start(0);
        cluster.start(1);
        let mount = |at: usize| {
            let (network, directory) = (network.clone(), cluster.directory.clone());
            let session = SessionId(random.bytes());
            let client = Client::new(
                CLIENTS_FROM + at,
                session,
                volume,
                false,
                network,
                directory,
            );
            tokio::task::spawn_local(client.clone().run());
            client
        };
        let (one, other) = (mount(0), mount(1));
        let nodes: Nodes = Rc::new(Mutex::new(cluster));
        let mut files = Vec::new();
        for name in ["damaged", "other", "hollow"] {
            files.push(create(&one, name).await);
        }
        write(&one, 0, files[0], 0, vec![1; 3 * BLOCK_BYTES as usize]).await;
        // So much, in writes that go through the journal, that checkpoints bring everything from
        // memory to the disks.
        for at in 0..40 {
            write(&one, 0, files[1], at * (24 << 10), vec![9; 24 << 10]).await;
        }
        write(&one, 0, files[2], 0, vec![3; BLOCK_BYTES as usize]).await;
        let zero = Operation::Allocate {
            object: files[2],
            offset: 0,
            len: BLOCK_BYTES,
            mode: PUNCH_HOLE,
        };
        for operation in [zero, Operation::SyncAll] {
            let done = one.call(0, operation, Bytes::new()).await;
            assert!(
                matches!(done, Outcome::Done | Outcome::Attributes(_)),
                "{done:?}"
            );
        }
        assert!(wait_until_in_sync(&nodes).await);
        Self {
            nodes,
            journal,
            one,
            other,
            file: files[0],
            hollow: files[2],
        }
    }

    fn path(&self) -> String {
        storage::layout::object_path(self.file)
    }

    /// The primary's disk, and the other one's.
    async fn disks(&self) -> (SimMedium, SimMedium) {
        let primary = serving(&self.nodes).await.expect("one serves").replica;
        let cluster = self.nodes.lock().await;
        let disk = |place: usize| cluster.nodes[place].medium.clone();
        for place in [0, 1] {
            let there = disk(place).peek(&self.path(), 0, BLOCK_BYTES as usize);
            assert_eq!(there, vec![1; BLOCK_BYTES as usize], "it is on the disk");
        }
        (disk(primary), disk(1 - primary))
    }

    async fn read(&self, client: &Client) -> Outcome {
        let read = Operation::Read {
            object: self.file,
            offset: 0,
            len: 2 * BLOCK_BYTES as u32,
        };
        client.call(9, read, Bytes::new()).await
    }
}

pub(super) fn run<T>(scenario: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    LocalSet::new().block_on(&runtime, scenario)
}

/// Somebody begins to read after so long.
const READ_AFTER_MS: u64 = 60;
/// And somebody else to write, which may wait for leases, after any of these.
const WRITTEN_AFTER_MS: std::ops::Range<u64> = 0..150;

/// What the file's first two blocks are at the end when a part of the first one is written after so
/// long, about when somebody reads it.
fn part_written_after(ms: u64, damage: fn(&SimMedium, &str)) -> (Outcome, Outcome) {
    run(async {
        let stage = Stage::new().await;
        damage(&stage.disks().await.0, &stage.path());
        let writing = async {
            tokio::time::sleep(millis(ms)).await;
            write(&stage.other, 0, stage.file, 100, vec![2; 50]).await;
        };
        let reading = async {
            tokio::time::sleep(millis(READ_AFTER_MS)).await;
            stage.read(&stage.one).await
        };
        let (first, ()) = tokio::join!(reading, writing);
        (first, stage.read(&stage.other).await)
    })
}

fn expected(part_written: bool) -> Outcome {
    let mut whole = vec![1; 2 * BLOCK_BYTES as usize];
    if part_written {
        whole[100..150].fill(2);
    }
    Outcome::Data(Bytes::from(whole))
}

fn flip(disk: &SimMedium, path: &str) {
    assert!(disk.flip_bit(path, 77, 3));
}

fn cannot_be_read(disk: &SimMedium, path: &str) {
    disk.fail_block(path, 0);
}

/// A block came back from the other replica and was put over what had been written to a part of it
/// meanwhile. Only whoever asked whether the block could be read noticed a write, and after a write
/// to a part of a damaged block it cannot.
#[test]
fn a_repair_never_overwrites_what_was_written_while_it_was_on_its_way() {
    for damage in [flip, cannot_be_read] {
        for ms in WRITTEN_AFTER_MS.step_by(3) {
            let (read, at_the_end) = part_written_after(ms, damage);
            let either = read == expected(false) || read == expected(true);
            assert!(either, "{ms} ms: {read:?}");
            assert_eq!(at_the_end, expected(true), "{ms} ms");
        }
    }
}

#[cfg(debug_assertions)]
#[test]
fn a_repair_that_overwrites_what_is_newer_is_noticed() {
    use protocol::mistakes::{Mistake, choose};
    choose(Some(Mistake::RepairsOverNewer));
    let noticed = WRITTEN_AFTER_MS
        .step_by(3)
        .any(|ms| part_written_after(ms, flip).1 != expected(true));
    choose(None);
    assert!(noticed);
}

#[test]
fn a_read_that_the_primarys_disk_cannot_answer_is_answered_from_the_other_replica() {
    for damage in [flip, cannot_be_read] {
        run(async {
            let stage = Stage::new().await;
            let (primary, other) = stage.disks().await;
            damage(&primary, &stage.path());
            assert_eq!(stage.read(&stage.one).await, expected(false));
            assert!(stage.journal.told_since(0, &["was put right from node2"]));
            let report = serving(&stage.nodes).await.expect("one serves");
            assert_eq!(report.repaired_blocks, 1);
            assert!(report.damaged_blocks >= 1);
            // It is here again: nobody else is asked.
            damage(&other, &stage.path());
            assert_eq!(stage.read(&stage.other).await, expected(false));
        });
    }
}

#[test]
fn what_no_replica_can_read_is_an_error_and_never_other_bytes() {
    run(async {
        let stage = Stage::new().await;
        let (primary, other) = stage.disks().await;
        flip(&primary, &stage.path());
        cannot_be_read(&other, &stage.path());
        assert_eq!(stage.read(&stage.one).await, Outcome::Error(5));
        assert!(
            stage
                .journal
                .told_since(0, &["no replica in sync has what is missing"])
        );
        // What is written as a whole can be read again.
        write(&stage.one, 0, stage.file, 0, vec![4; BLOCK_BYTES as usize]).await;
        let Outcome::Data(data) = stage.read(&stage.other).await else {
            panic!("it is whole again");
        };
        assert_eq!(data[..BLOCK_BYTES as usize], vec![4; BLOCK_BYTES as usize]);
    });
}

/// The replica that is asked is stopped: whoever waits for the answer, and whoever is held up by
/// that, goes on when it has left the set.
#[test]
fn a_repair_ends_when_the_replica_that_is_asked_is_silent() {
    run(async {
        let stage = Stage::new().await;
        let (primary, _) = stage.disks().await;
        flip(&primary, &stage.path());
        stage.nodes.lock().await.freeze(1, true);
        let began = tokio::time::Instant::now();
        let writing = async {
            tokio::time::sleep(millis(30)).await;
            write(&stage.other, 0, stage.file, 100, vec![2; 50]).await;
        };
        let (read, ()) = tokio::join!(stage.read(&stage.one), writing);
        assert_eq!(read, Outcome::Error(5));
        assert!(began.elapsed() < Duration::from_secs(10), "it was bounded");
        stage.nodes.lock().await.freeze(1, false);
    });
}
