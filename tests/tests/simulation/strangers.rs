//! Whoever connects as a replica and is not the one that the volume means, or says what no replica
//! would: refused by a sentence that names both facts, and nothing changes (BAD-1, BAD-4, BAD-6).

use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use daemon::volume::{AcceptedStream, Stream};
use protocol::frame::{RawFrame, take_frame};
use protocol::ids::{BrickId, GenerationId, VolumeId};
use protocol::packed::PACKED;
use protocol::preamble::Purpose;
use protocol::record::Record;
use protocol::replica::{Message, REPLICA_VERSION};
use protocol::report::ReplicaReport;
use protocol::units::{Sequence, Term};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::Mutex;

use super::cluster::{Cluster, Journal, node_id};
use super::faults::{Nodes, serving};
use super::network::Network;
use super::pool::Pool;
use super::random::Random;
use super::repair::{run, spec};

/// How long the node may take to say or do something.
const SOON: Duration = Duration::from_secs(20);

/// A node that serves alone; what should be the other one is played.
struct Stage {
    nodes: Nodes,
    journal: Journal,
}

/// A hello, to be changed.
#[derive(Clone)]
struct Greeting {
    version: u16,
    volume: VolumeId,
    replica: u8,
    brick: BrickId,
    incarnation: u64,
    report: Bytes,
}

impl Greeting {
    fn new(report: Bytes, incarnation: u64) -> Self {
        let spec = spec();
        Self {
            version: REPLICA_VERSION,
            volume: spec.id,
            replica: 1,
            brick: spec.replicas[1].brick,
            incarnation,
            report,
        }
    }

    fn message(&self) -> Message {
        Message::Hello {
            version: self.version,
            volume: self.volume,
            replica: self.replica,
            brick: self.brick,
            incarnation: self.incarnation,
            report: self.report.clone(),
        }
    }
}

fn heartbeat() -> Message {
    Message::Heartbeat {
        term: Term(0),
        free_bytes: 1 << 30,
        total_bytes: 1 << 30,
        confirmed: Sequence::ZERO,
    }
}

impl Stage {
    async fn new() -> Self {
        let random = Random::new(9);
        let journal = Journal::new(false);
        let network = Network::new(random.fork(), 1, 0);
        let (pool, proposals) = Pool::new(spec(), None, network.clone(), random.fork());
        tokio::task::spawn_local(pool.clone().run(proposals));
        let mut cluster = Cluster::new(network, pool, journal.clone(), random, 1);
        cluster.start(0);
        let nodes: Nodes = Rc::new(Mutex::new(cluster));
        let stage = Self { nodes, journal };
        stage
            .until(|stage| stage.journal.told_since(0, &["node1 is primary"]))
            .await;
        stage
    }

    async fn until(&self, so: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !so(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(SOON, waiting).await;
        assert!(waited.is_ok(), "{:#?}", self.journal.lines());
    }

    /// Connects as the other node.
    async fn meet(&self) -> Played {
        let (mine, theirs) = tokio::io::duplex(1 << 20);
        let (reader, writer) = tokio::io::split(theirs);
        let stream = Stream::new(reader, writer, Some(node_id(1)), None);
        let handle = self.nodes.lock().await.handle(0).expect("it runs");
        handle.accept(AcceptedStream::Ready(stream), Purpose::Replica(spec().id));
        Played::over(mine)
    }

    async fn greet(&self, greeting: &Greeting) -> Played {
        let mut played = self.meet().await;
        played.say(&greeting.message().encode()).await;
        played
    }

    /// What a replica of the volume that has nothing tells of itself.
    async fn a_report(&self) -> Bytes {
        let mut wrong = Greeting::new(Bytes::from_static(b"{}"), 1);
        wrong.version += 1;
        let mut played = self.greet(&wrong).await;
        let Some(Message::Hello { report, .. }) = played.hear().await else {
            panic!("it says who it is before it closes");
        };
        let mut report: serde_json::Value = serde_json::from_slice(&report).expect("JSON");
        let fresh = daemon::volume::first_state(&spec(), 1);
        let fresh: serde_json::Value = serde_json::from_slice(&fresh).expect("JSON");
        for key in ["term", "role", "disk", "line", "in_sync"] {
            report[key] = fresh[key].clone();
        }
        report["serving"] = false.into();
        for (key, value) in [("last", 0), ("stable", 0), ("journal_from", 1)] {
            report[key] = value.into();
        }
        Bytes::from(serde_json::to_vec(&report).expect("JSON"))
    }

    async fn status(&self) -> ReplicaReport {
        serving(&self.nodes).await.expect("it goes on serving")
    }

    /// The refusal that status, and so `why`, tells.
    async fn refusal(&self) -> String {
        self.status().await.peers[0]
            .refusal
            .clone()
            .unwrap_or_default()
    }
}

/// This end of a connection.
pub(super) struct Played {
    reader: ReadHalf<DuplexStream>,
    writer: WriteHalf<DuplexStream>,
    buffer: BytesMut,
}

impl Played {
    pub(super) fn over(stream: DuplexStream) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self {
            reader,
            writer,
            buffer: BytesMut::new(),
        }
    }

    pub(super) async fn say(&mut self, frame: &RawFrame) {
        let mut bytes = BytesMut::new();
        frame.write_to(&mut bytes);
        // It may be closed already: that is what is looked for.
        let _ = self.writer.write_all(&bytes).await;
    }

    /// The next message; `None`: closed.
    pub(super) async fn hear(&mut self) -> Option<Message> {
        loop {
            if let Some(frame) = take_frame(&mut self.buffer).expect("it sends frames") {
                return Some(Message::decode(&frame).expect("and messages"));
            }
            let read = tokio::time::timeout(SOON, self.reader.read_buf(&mut self.buffer)).await;
            match read.expect("it says something or closes") {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    async fn is_closed(&mut self) {
        while self.hear().await.is_some() {}
    }

    /// Whether it was let in: hello, and a sign of life.
    async fn is_let_in(&mut self) -> bool {
        let hello = matches!(self.hear().await, Some(Message::Hello { .. }));
        hello && self.hear().await.is_some()
    }
}

#[test]
fn another_version_volume_brick_or_replica_is_refused_with_both_named() {
    run(async {
        let stage = Stage::new().await;
        let right = Greeting::new(stage.a_report().await, 1);
        let spec = spec();
        let (other_volume, other_brick) = (VolumeId([8; 16]), BrickId([9; 16]));
        let version = Greeting {
            version: 99,
            ..right.clone()
        };
        let volume = Greeting {
            volume: other_volume,
            ..right.clone()
        };
        let brick = Greeting {
            brick: other_brick,
            ..right.clone()
        };
        let place = Greeting {
            replica: 0,
            ..right.clone()
        };
        for (greeting, named, advice) in [
            (
                version,
                [
                    "version 99".to_owned(),
                    format!("this one {REPLICA_VERSION}"),
                ],
                "install the same version",
            ),
            (
                volume,
                [other_volume.to_string(), spec.id.to_string()],
                "put each brick back",
            ),
            (
                brick,
                [other_brick.to_string(), spec.replicas[1].brick.to_string()],
                "put each brick back",
            ),
            (
                place,
                [
                    "replica 0 of the volume".to_owned(),
                    "this node is replica 0".to_owned(),
                ],
                "put each brick back",
            ),
        ] {
            let from = stage.journal.len();
            stage.greet(&greeting).await.is_closed().await;
            let told = stage.refusal().await;
            for what in named.iter().map(String::as_str).chain([advice]) {
                assert!(told.contains(what), "{what} is not in: {told}");
            }
            assert!(
                stage
                    .journal
                    .told_since(from, &["replica_refused: node2 is not taken on"])
            );
            // Told once, however often it tries.
            let from = stage.journal.len();
            stage.greet(&greeting).await.is_closed().await;
            assert!(!stage.journal.told_since(from, &["replica_refused"]));
        }
        let let_in = stage.greet(&right).await.is_let_in().await;
        assert!(let_in, "{:#?}", stage.journal.lines());
        assert_eq!(
            stage.refusal().await,
            "",
            "what is right is not held against it"
        );
    });
}

/// Two machines restored from one backup: both have the node's key and the brick.
#[test]
fn two_processes_that_are_the_same_replica_are_both_refused_until_one_starts_anew() {
    run(async {
        let stage = Stage::new().await;
        let report = stage.a_report().await;
        let start = |incarnation| Greeting::new(report.clone(), incarnation);
        let mut one = stage.greet(&start(1)).await;
        assert!(one.is_let_in().await);
        let mut other = stage.greet(&start(2)).await;
        assert!(
            other.is_let_in().await,
            "the first may have been started again"
        );
        one.is_closed().await;
        let mut again = stage.greet(&start(1)).await;
        again.say(&heartbeat().encode()).await;
        again.is_closed().await;
        other.is_closed().await;
        let told = stage.refusal().await;
        assert!(told.contains("two processes"), "{told}");
        assert!(told.contains("stop the copy"), "{told}");
        let mut other = stage.greet(&start(2)).await;
        other.say(&heartbeat().encode()).await;
        other.is_closed().await;
        assert!(stage.greet(&start(3)).await.is_let_in().await);
        assert_eq!(stage.refusal().await, "");
    });
}

/// What a process said before it ended may arrive after its next start, or be sent again by whoever
/// recorded it: it has no effect on the connection that counts.
#[test]
fn a_hello_that_is_late_or_replayed_harms_nobody() {
    run(async {
        let stage = Stage::new().await;
        let report = stage.a_report().await;
        let start = |incarnation| Greeting::new(report.clone(), incarnation);
        let mut one = stage.greet(&start(1)).await;
        assert!(one.is_let_in().await);
        drop(one);
        let mut two = stage.greet(&start(2)).await;
        assert!(two.is_let_in().await);
        let late = stage.greet(&start(1)).await;
        drop(late);
        two.say(&heartbeat().encode()).await;
        for _ in 0..3 {
            assert!(two.hear().await.is_some(), "it goes on");
            two.say(&heartbeat().encode()).await;
        }
        assert_eq!(stage.refusal().await, "");
    });
}

#[test]
fn forged_frames_change_nothing_and_malformed_ones_close_the_connection() {
    run(async {
        let stage = Stage::new().await;
        let report = stage.a_report().await;
        let before = stage.status().await;
        let record = |sequence, term| {
            Message::Record(Record {
                sequence: Sequence(sequence),
                term: Term(term),
                generation: GenerationId([6; 16]),
                changes: Vec::new(),
                payload: Bytes::new(),
            })
        };
        let nonsense = Bytes::from_static(b"{\"term\":");
        let forged = [
            record(1, 1),
            record(1 << 40, 99),
            Message::Membership(nonsense.clone()),
            Message::Welcome(nonsense.clone()),
            Message::HandOver {
                term: Term(99),
                agreed: Bytes::new(),
            },
            Message::Flushed { id: 77 },
            Message::Resynced { batch: 77 },
            Message::Promise {
                sent_us: u64::MAX,
                lease_ms: 10_000,
            },
            Message::Pulled,
        ];
        let mut incarnation = 10;
        for message in forged {
            incarnation += 1;
            let greeting = Greeting::new(report.clone(), incarnation);
            let mut played = stage.greet(&greeting).await;
            assert!(played.is_let_in().await, "{message:?}");
            played.say(&message.encode()).await;
            played.say(&heartbeat().encode()).await;
            let after = stage.status().await;
            assert_eq!(
                (after.term, after.role),
                (before.term, before.role),
                "{message:?}"
            );
        }
        let bomb = {
            let mut meta = BytesMut::from(&[34][..]);
            meta.extend_from_slice(&0_u32.to_le_bytes());
            meta.extend_from_slice(&u32::MAX.to_le_bytes());
            RawFrame {
                kind: PACKED,
                meta: meta.freeze(),
                payload: Bytes::from_static(b"bomb"),
            }
        };
        let unknown = RawFrame {
            kind: 200,
            meta: Bytes::new(),
            payload: Bytes::new(),
        };
        let again = Greeting::new(report.clone(), 1).message().encode();
        for (frame, why) in [
            (bomb, "a packed frame announces"),
            (unknown, "200"),
            (again, "greets again"),
        ] {
            incarnation += 1;
            let mut played = stage
                .greet(&Greeting::new(report.clone(), incarnation))
                .await;
            assert!(played.is_let_in().await);
            let from = stage.journal.len();
            played.say(&frame).await;
            played.is_closed().await;
            assert!(
                stage
                    .journal
                    .told_since(from, &["link_malformed: the connection to node2"])
            );
            assert!(stage.journal.told_since(from, &[why]), "{why}");
        }
        assert_eq!(stage.status().await.term, before.term);
    });
}
