//! Mounts, and a primary whose other replica is played.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use protocol::fs::{
    HelloReply, IO_BYTES_MAX, Operation, Outcome, SLOT_NONE, SetAttributes, refusal,
};
use protocol::ids::SessionId;
use protocol::preamble::Purpose;
use protocol::replica::Message;
use protocol::report::ReplicaReport;
use protocol::units::{ObjectId, Sequence};
use protocol::volume::Quorum;
use replication::state::{Disk, Report};
use tokio::time::timeout;

use super::mount::{Mount, create, greet, hello};
use super::stage::{Stage, client_key, room, run, spec};

const MIB: u64 = 1 << 20;
/// Leases that a mount may hold.
const LEASES: u32 = 100;
/// What waits for nobody takes no longer.
const AT_ONCE: Duration = Duration::from_millis(20);
const EROFS: i32 = 30;

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

/// Every change but those of locks.
fn changes_of(file: ObjectId) -> Vec<Operation> {
    let parent = ObjectId::ROOT;
    let name = |name: &'static str| Bytes::from_static(name.as_bytes());
    vec![
        Operation::Write {
            object: file,
            offset: 0,
            append: false,
            kill_privileges: false,
        },
        Operation::SetAttributes {
            object: file,
            set: SetAttributes {
                mode: Some(0o777),
                ..SetAttributes::default()
            },
        },
        create("new"),
        Operation::MakeUnnamed {
            parent,
            mode: 0o644,
        },
        Operation::MakeNode {
            parent,
            name: name("pipe"),
            mode: 0o010_644,
            rdev: 0,
        },
        Operation::MakeDirectory {
            parent,
            name: name("directory"),
            mode: 0o755,
        },
        Operation::Symlink {
            parent,
            name: name("symlink"),
            target: name("file"),
        },
        Operation::Link {
            object: file,
            new_parent: parent,
            new_name: name("link"),
        },
        Operation::Rename {
            parent,
            name: name("file"),
            new_parent: parent,
            new_name: name("other"),
            flags: 0,
        },
        Operation::Unlink {
            parent,
            name: name("file"),
        },
        Operation::RemoveDirectory {
            parent,
            name: name("empty"),
        },
        Operation::CopyRange {
            from: file,
            from_offset: 0,
            object: file,
            offset: 4096,
            len: 1,
        },
        Operation::SetXattr {
            object: file,
            name: name("user.a"),
            flags: 0,
        },
        Operation::RemoveXattr {
            object: file,
            name: name("user.a"),
        },
        Operation::Allocate {
            object: file,
            mode: 0,
            offset: 0,
            len: 4096,
        },
    ]
}

fn is_early(operation: &Operation) -> bool {
    matches!(
        operation,
        Operation::Write { .. } | Operation::SetAttributes { .. }
    )
}

/// Its kernel lets nobody change anything. What comes all the same is from a client that was made to.
#[test]
fn bad_2_who_may_only_read_has_nothing_alone_and_changes_nothing_early_or_late() {
    run(async {
        let stage = Stage::new(spec(1, Quorum::Off), 0, None);
        stage.until(|status| status.serving).await;
        let reader = client_key(1);
        stage.only_reads(reader);
        let connect = || stage.connect(reader, Purpose::Client(stage.spec.id));
        let mut owner = Mount::over(&stage, stage.mount(), 1, LEASES).await;
        let file = owner.create("file").await;
        let empty = Operation::MakeDirectory {
            parent: ObjectId::ROOT,
            name: Bytes::from_static(b"empty"),
            mode: 0o755,
        };
        owner.call(0, empty).await;
        let look = Operation::GetAttributes { object: file };
        let before = owner.call(SLOT_NONE, look.clone()).await;
        let listing = Operation::ReadDirectory {
            object: ObjectId::ROOT,
            cookie: 0,
            bytes_max: 1 << 16,
            plus: false,
        };
        let names = owner.call(SLOT_NONE, listing.clone()).await;
        let Outcome::Attributes(attributes) = before else {
            panic!("{before:?}");
        };
        owner.ends().await;

        // Nobody else is there who could be in its way.
        let mut mount = Mount::early_over(&stage, connect(), 2, LEASES).await;
        mount.call(SLOT_NONE, look.clone()).await;
        assert!(mount.leases.contains(&file), "it may remember what it saw");
        for operation in changes_of(file) {
            let early = is_early(&operation).then_some(attributes.ctime);
            for early in [None, early] {
                let data = Bytes::from_static(b"not its to change");
                mount.ask_early(1, operation.clone(), data, early).await;
                let refused = mount.answer().await;
                assert_eq!(refused, Outcome::Error(EROFS), "{operation:?}");
            }
        }
        assert!(mount.alone.is_empty());

        // It says that it has the file alone, and that changes of it are on their way.
        let mut other = Mount::over(&stage, stage.mount(), 3, LEASES).await;
        for claims in [true, false] {
            mount.alone.extend(claims.then_some(file));
            mount.sends_again.push(file);
            mount.comes_back_over(&stage, connect(), LEASES).await;
            mount.has_presented().await;
            mount.call(SLOT_NONE, Operation::StatFs).await; // it is let in
            let seen = timeout(AT_ONCE, other.call(SLOT_NONE, look.clone())).await;
            let seen = seen.expect("it waits for nobody");
            assert_eq!(seen, Outcome::Attributes(attributes), "nothing was changed");
            mount.alone.clear();
        }

        // It says that it was confirmed that.
        for operation in changes_of(file) {
            mount.comes_back_over(&stage, connect(), LEASES).await;
            let data = Bytes::from_static(b"not its to change");
            mount.replays(operation, data).await;
            mount.is_cut_off().await;
        }
        let seen = other.call(SLOT_NONE, look).await;
        assert_eq!(seen, Outcome::Attributes(attributes));
        assert_eq!(other.call(SLOT_NONE, listing).await, names);
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
