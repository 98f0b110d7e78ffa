//! Mounts, and a primary whose other replica is played.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use protocol::fs::{HelloReply, IO_BYTES_MAX, Operation, Outcome, SLOT_NONE, refusal};
use protocol::ids::SessionId;
use protocol::preamble::Purpose;
use protocol::replica::Message;
use protocol::report::ReplicaReport;
use protocol::units::Sequence;
use protocol::volume::Quorum;
use replication::state::{Disk, Report};

use super::mount::{Mount, create, greet, hello};
use super::stage::{Stage, client_key, room, run, spec};

const MIB: u64 = 1 << 20;

/// Who had a session was known to the primary that let it in, and to no later one: after a take-over
/// another client could go on with it, until its owner came back.
#[test]
fn bad_2_a_session_of_before_a_take_over_is_its_owners_alone() {
    run(async {
        let mut stage = Stage::new(spec(1, Quorum::Off), 0, None);
        stage.until(|status| status.serving).await;
        let purpose = Purpose::Client(stage.spec.id);
        let of_node = Mount::new(&stage, 1).await;
        let mut of_client = stage.connect(client_key(1), purpose);
        let said = greet(&mut of_client, stage.spec.id, SessionId([2; 16]), 0, false).await;
        assert!(matches!(said, HelloReply::Welcome { .. }), "{said:?}");
        stage.start_anew().await;
        stage.until(|status| status.serving).await;
        drop((of_node, of_client));
        for session in [1, 2] {
            let mut other = stage.connect(client_key(2), purpose);
            let said = greet(
                &mut other,
                stage.spec.id,
                SessionId([session; 16]),
                0,
                false,
            )
            .await;
            let HelloReply::Refused { code, message } = said else {
                panic!("{session}: {said:?}");
            };
            assert_eq!(code, refusal::FORBIDDEN);
            assert!(message.contains("belongs to another"), "{message}");
        }
        let mut owner = stage.connect(client_key(1), purpose);
        let said = greet(&mut owner, stage.spec.id, SessionId([2; 16]), 0, false).await;
        assert!(matches!(said, HelloReply::Welcome { .. }), "{said:?}");
        Mount::new(&stage, 1).await;
    });
}

/// Everybody was waited for, and nobody was let in: another session had begun meanwhile, and its record
/// could not be confirmed before the other replica was up to date.
#[test]
fn dur_5_whose_changes_are_awaited_is_let_in_though_nothing_can_be_confirmed() {
    run(async {
        let mut stage = Stage::new(spec(2, Quorum::Off), 0, None);
        stage.until(|status| status.serving).await;
        drop(Mount::new(&stage, 1).await);
        let both = ("min-in-sync".to_owned(), "2".to_owned());
        stage.spec.options.extend([both]);
        stage.start_anew().await;
        stage.until(|status| status.serving).await;
        let mut other = stage.mount();
        other
            .say_frame(&hello(stage.spec.id, SessionId([2; 16]), 0, false).encode())
            .await;
        stage.until(|status| status.clients.len() == 1).await;
        Mount::new(&stage, 1).await;
    });
}

/// A mount that asks and does not read what it is answered had every answer kept for it in memory.
#[test]
fn bad_1_a_mount_that_reads_no_answers_is_not_heard_before_it_does() {
    run(async {
        let stage = Stage::new(spec(1, Quorum::Off), 0, None);
        stage.until(|status| status.serving).await;
        let mut deaf = Mount::new(&stage, 1).await;
        let object = deaf.create("file").await;
        deaf.write(0, object, 0).await;
        assert!(matches!(deaf.answer().await, Outcome::Written { .. }));
        let mut other = Mount::new(&stage, 2).await;
        // More than may be under way at a time.
        let (reads, len) = (320, IO_BYTES_MAX / 4);
        for _ in 0..reads {
            let read = Operation::Read {
                object,
                offset: 0,
                len,
            };
            deaf.ask(SLOT_NONE, read, Bytes::new()).await;
        }
        deaf.ask(0, create("last"), Bytes::new()).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(!other.finds("last").await, "all was taken and kept");
        let mut bytes = 0;
        for _ in 0..=reads {
            match deaf.answer().await {
                Outcome::Data(data) => bytes += data.len(),
                Outcome::Entry(_) => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(bytes, reads * len as usize);
        assert!(other.finds("last").await);
    });
}

/// A block of the source could not be read. The resync stopped for good, on a connection that stayed,
/// and status showed one that runs.
#[test]
fn rs_4_a_resync_whose_source_cannot_be_read_says_so_and_goes_on_when_it_can() {
    run(async {
        let stage = Stage::new(spec(2, Quorum::Off), 0, None);
        stage.until(|status| status.serving).await;
        let mut mount = Mount::new(&stage, 1).await;
        let object = mount.create("file").await;
        mount.write(0, object, 0).await;
        assert!(matches!(mount.answer().await, Outcome::Written { .. }));
        assert!(matches!(
            mount.call(SLOT_NONE, Operation::SyncAll).await,
            Outcome::Done
        ));
        let path = storage::layout::object_path(object);
        assert!(stage.disk().flip_bit(&path, 5000, 3));
        let empty = Report {
            disk: Disk::Empty,
            ..stage.fresh_report(1)
        };
        let brings = |message: &Message| {
            let Message::Resync(record) = message else {
                return false;
            };
            record.payload.iter().any(|byte| *byte != 0)
        };
        let (mut link, _) = stage.greet(1, &empty).await;
        let stopped = |status: &ReplicaReport| {
            let peer = &status.peers[0];
            let refusal = peer.refusal.as_deref().unwrap_or_default();
            refusal.contains("its source is damaged") && peer.resync.is_none()
        };
        let waits = async {
            loop {
                link.say(&room(64 * MIB)).await;
                let Some(message) = link.hear().await else {
                    return;
                };
                assert!(!brings(&message), "what is damaged is not sent");
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), waits).await;
        assert!(waited.is_ok(), "they meet anew");
        assert!(
            stopped(&stage.status().await),
            "{:#?}",
            stage.status().await.peers
        );
        mount.write(0, object, 0).await;
        assert!(matches!(mount.answer().await, Outcome::Written { .. }));
        let (mut link, _) = stage.greet(1, &empty).await;
        assert!(link.hear_until(brings).await.is_some(), "it goes on");
        let events = stage.events();
        let told = events
            .iter()
            .filter(|event| event.starts_with("resync_stopped"));
        assert_eq!(told.count(), 1, "{events:#?}");
    });
}

/// The other replica: takes everything, and acknowledges it or not.
#[derive(Clone)]
struct Follower {
    acknowledges: Rc<Cell<bool>>,
    free_bytes: Rc<Cell<u64>>,
    /// Bytes of records that came since.
    taken: Rc<Cell<u64>>,
}

impl Follower {
    async fn of(stage: &Stage) -> Self {
        let (mut link, _) = stage.greet(1, &stage.fresh_report(1)).await;
        let follower = Self {
            acknowledges: Rc::new(Cell::new(true)),
            free_bytes: Rc::new(Cell::new(64 * MIB)),
            taken: Rc::default(),
        };
        let one = follower.clone();
        tokio::task::spawn_local(async move {
            let mut last = Sequence::ZERO;
            let mut beat = tokio::time::interval(Duration::from_millis(100));
            loop {
                tokio::select! {
                    biased;
                    message = link.hear() => match message {
                        Some(Message::Record(record)) => {
                            last = record.sequence;
                            one.taken.set(one.taken.get() + record.payload.len() as u64);
                        }
                        Some(Message::Flush { id, .. }) => link.say(&Message::Flushed { id }).await,
                        Some(_) => {}
                        None => return,
                    },
                    _ = beat.tick() => link.say(&room(one.free_bytes.get())).await,
                }
                if one.acknowledges.get() {
                    let policy = 1;
                    let (received, applied, stable) = (last, last, last);
                    link.say(&Message::Ack {
                        received,
                        applied,
                        stable,
                        policy,
                    })
                    .await;
                }
            }
        });
        stage
            .until(|status| status.peers.iter().any(|peer| peer.in_sync))
            .await;
        follower
    }
}

/// A replica whose disk hangs for a moment says again and again how much it can take, as of before.
/// What it was sent meanwhile has to fit as well.
#[test]
fn bad_3_what_a_replica_has_not_applied_yet_is_taken_off_what_it_says_it_can_take() {
    run(async {
        let stage = Stage::new(spec(2, Quorum::Off), 0, None);
        let follower = Follower::of(&stage).await;
        let mut mount = Mount::new(&stage, 1).await;
        let object = mount.create("file").await;
        let free = 12 * MIB;
        follower.free_bytes.set(free);
        tokio::time::sleep(Duration::from_millis(300)).await;
        follower.acknowledges.set(false);
        follower.taken.set(0);
        let writes = 16_u16;
        for slot in 0..writes {
            mount.write(slot, object, u64::from(slot) * MIB).await;
            tokio::time::sleep(Duration::from_millis(35)).await;
        }
        follower.acknowledges.set(true);
        let mut written = 0;
        for _ in 0..writes {
            match mount.answer().await {
                Outcome::Written { .. } => written += 1,
                Outcome::Error(28) => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(written >= 4, "what fits is taken: {written}");
        let taken = follower.taken.get();
        assert!(taken <= free, "{taken} bytes were ordered where {free} fit");
        assert_eq!(taken, written * MIB);
    });
}

/// A comparison waited for ever for a replica that follows and does not say what it holds.
#[test]
fn a_comparison_ends_though_a_replica_follows_and_never_answers_it() {
    run(async {
        let stage = Stage::new(spec(2, Quorum::Off), 0, None);
        let _follower = Follower::of(&stage).await;
        let compared = tokio::time::timeout(Duration::from_secs(600), stage.verify()).await;
        let verdict = compared.expect("it ends");
        assert_eq!(verdict["equal"], false, "{verdict}");
        assert_eq!(verdict["replicas_compared"], 1, "{verdict}");
        let node = &stage.spec.replicas[1].node_name;
        assert_eq!(
            verdict["not_compared"],
            serde_json::json!([node]),
            "{verdict}"
        );
    });
}
