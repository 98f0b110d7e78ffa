//! Who waits for the leases of whom, to the millisecond: after a take-over, for mounts that are
//! gone, and for those that have no right any more.

use std::time::Duration;

use bytes::Bytes;
use protocol::fs::{IO_BYTES_MAX, Operation, Outcome, SLOT_NONE, SetAttributes};
use protocol::preamble::Purpose;
use protocol::units::{ObjectId, Timestamp};
use protocol::volume::Quorum;
use tokio::time::{Instant, timeout};

use super::mount::{Mount, create};
use super::stage::{Stage, node_id, run, spec};

/// Leases that a mount may hold.
const LEASES: u32 = 100;
/// How long a lease lasts.
const LEASE: Duration = Duration::from_secs(2);
/// Others wait no longer for what was answered early and is on its way.
const HELD_OFF_MAX: Duration = Duration::from_secs(10);
/// What waits for nobody takes no longer.
const AT_ONCE: Duration = Duration::from_millis(20);
/// How exactly an end is kept.
const SLACK: Duration = Duration::from_millis(150);

async fn serving() -> Stage {
    let stage = Stage::new(spec(1, Quorum::Off), 0, None);
    stage.until(|status| status.serving).await;
    stage
}

async fn mounted(stage: &Stage, session: u8) -> Mount {
    Mount::over(stage, stage.mount(), session, LEASES).await
}

/// What is done, and how long it took.
async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let began = Instant::now();
    let done = work.await;
    (done, began.elapsed())
}

async fn creates_at_once(mount: &mut Mount, name: &'static str) -> ObjectId {
    let (object, took) = timed(mount.create(name)).await;
    assert!(took < AT_ONCE, "`{name}` was made after {took:?}");
    object
}

async fn writes(mount: &mut Mount, object: ObjectId) -> Duration {
    mount.write(0, object, 0).await;
    let (outcome, took) = timed(mount.answer()).await;
    assert!(matches!(outcome, Outcome::Written { .. }), "{outcome:?}");
    took
}

/// It writes and has that made stable, waiting for nobody.
async fn syncs_at_once(mount: &mut Mount, object: ObjectId) {
    let sync = Operation::Sync {
        object,
        data_only: false,
    };
    let took = writes(mount, object).await;
    let (outcome, more) = timed(mount.call(SLOT_NONE, sync)).await;
    assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
    assert!(took + more < AT_ONCE, "{took:?} and {more:?}");
}

#[test]
fn coh_1_after_a_take_over_who_is_alone_waits_for_nobody() {
    run(async {
        let mut stage = serving().await;
        let mut alone = mounted(&stage, 1).await;
        let file = alone.create("file").await;
        assert!(alone.finds("file").await && alone.leases.contains(&ObjectId::ROOT));
        for name in ["one", "two"] {
            stage.restart().await;
            alone.comes_back(&stage, LEASES).await;
            syncs_at_once(&mut alone, file).await;
            creates_at_once(&mut alone, name).await;
        }
        assert!(alone.recalls.is_empty(), "it keeps what it held");
    });
}

#[test]
fn coh_1_after_a_take_over_changes_wait_for_who_has_not_come_a_lease_time_at_most() {
    run(async {
        let mut stage = serving().await;
        let mut one = mounted(&stage, 1).await;
        one.create("file").await;
        let mut other = mounted(&stage, 2).await;
        assert!(other.finds("file").await && other.leases.contains(&ObjectId::ROOT));

        stage.restart().await;
        let began = Instant::now();
        one.comes_back(&stage, LEASES).await;
        one.ask(0, create("late"), Bytes::new()).await;
        let (found, took) = timed(one.finds("file")).await;
        assert!(found && took < AT_ONCE, "who only looks waits: {took:?}");
        assert!(timeout(LEASE - SLACK, one.answer()).await.is_err());
        assert!(matches!(one.answer().await, Outcome::Entry(_)));
        let took = began.elapsed();
        assert!(took < LEASE + SLACK, "{took:?}");
        creates_at_once(&mut one, "at once").await;

        // It comes back too late, and is told that it holds nothing.
        other.comes_back(&stage, LEASES).await;
        assert!(other.finds("late").await && !other.recalls.is_empty());
    });
}

#[test]
fn coh_1_after_a_take_over_nobody_waits_for_who_has_come_or_was_unmounted() {
    run(async {
        let mut stage = serving().await;
        let mut one = mounted(&stage, 1).await;
        one.create("file").await;
        let mut other = mounted(&stage, 2).await;
        assert!(other.finds("file").await);

        stage.restart().await;
        one.comes_back(&stage, LEASES).await;
        other.comes_back(&stage, LEASES).await;
        assert!(other.finds("file").await);
        one.ask(0, create("second"), Bytes::new()).await;
        assert!(timeout(AT_ONCE, one.answer()).await.is_err(), "it is held");
        assert!(!other.finds("second").await && !other.recalls.is_empty());
        other.gives_back().await;
        let (made, took) = timed(one.answer()).await;
        assert!(
            matches!(made, Outcome::Entry(_)) && took < AT_ONCE,
            "{took:?}"
        );

        other.ends().await;
        stage.restart().await;
        one.comes_back(&stage, LEASES).await;
        creates_at_once(&mut one, "third").await;
    });
}

#[test]
fn coh_1_who_is_silent_holds_up_only_changes_of_what_it_holds_and_a_lease_time_at_most() {
    run(async {
        let stage = serving().await;
        let mut one = mounted(&stage, 1).await;
        let (file, other) = (one.create("file").await, one.create("other").await);
        let mut silent = mounted(&stage, 2).await;
        let look = Operation::GetAttributes { object: file };
        silent.call(SLOT_NONE, look.clone()).await;
        assert!(silent.leases.contains(&file));
        let heard = Instant::now();
        assert!(writes(&mut one, other).await < AT_ONCE);
        creates_at_once(&mut one, "new").await;
        writes(&mut one, file).await;
        let held_up = heard.elapsed();
        assert!(
            held_up > LEASE - SLACK && held_up < LEASE + SLACK,
            "{held_up:?}"
        );
        assert!(writes(&mut one, file).await < AT_ONCE, "it is over");

        // It holds nobody up again by that.
        for _ in 0..20 {
            silent.leases.clear();
            silent.call(SLOT_NONE, look.clone()).await;
            assert!(!silent.leases.contains(&file), "it does not give back");
            assert!(writes(&mut one, file).await < AT_ONCE);
            tokio::time::sleep(LEASE / 10).await;
        }
    });
}

#[test]
fn coh_1_what_has_run_out_holds_nobody_up() {
    run(async {
        let stage = serving().await;
        let mut one = mounted(&stage, 1).await;
        let file = one.create("file").await;
        let mut idle = mounted(&stage, 2).await;
        let look = Operation::GetAttributes { object: file };
        idle.call(SLOT_NONE, look).await;
        assert!(idle.leases.contains(&file), "nobody holds it");
        tokio::time::sleep(2 * LEASE).await;
        let took = writes(&mut one, file).await;
        assert!(took < AT_ONCE, "what has run out holds up {took:?}");
    });
}

#[test]
fn what_an_answer_tells_of_a_files_blocks_is_so_after_its_change() {
    run(async {
        let stage = serving().await;
        let mut one = mounted(&stage, 1).await;
        let file = one.create("file").await;
        one.write(0, file, 0).await;
        let Outcome::Written { attributes, .. } = one.answer().await else {
            panic!("it is written");
        };
        assert_eq!(attributes.blocks * 512, attributes.size);
        let set = SetAttributes {
            size: Some(4096),
            ..SetAttributes::default()
        };
        let cut = Operation::SetAttributes { object: file, set };
        let Outcome::Attributes(attributes) = one.call(0, cut).await else {
            panic!("it is cut");
        };
        assert_eq!((attributes.blocks * 512, attributes.size), (4096, 4096));
    });
}

/// What had run out was noticed by whoever came next, and the change that waited for it was not told.
#[test]
fn coh_1_who_waits_goes_on_when_a_lease_runs_out_whatever_else_happens() {
    run(async {
        let stage = serving().await;
        let mut one = mounted(&stage, 1).await;
        let (file, other) = (one.create("file").await, one.create("other").await);
        let mut silent = mounted(&stage, 2).await;
        // Not when deadlines are looked at.
        tokio::time::sleep(Duration::from_millis(23)).await;
        let look = Operation::GetAttributes { object: file };
        silent.call(SLOT_NONE, look).await;
        let mut busy = mounted(&stage, 3).await;
        one.write(0, file, 0).await;
        let small = Operation::Write {
            object: other,
            offset: 0,
            append: false,
            kill_privileges: false,
        };
        let goes_on = async {
            loop {
                busy.ask(0, small.clone(), Bytes::from_static(b"x")).await;
                busy.answer().await;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let waits = timeout(LEASE + SLACK, one.answer());
        tokio::select! {
            answer = waits => assert!(answer.is_ok(), "it waits for ever"),
            () = goes_on => {}
        }
    });
}

/// Writes, as whoever asked was answered already; what came of it.
async fn writes_early(mount: &mut Mount, object: ObjectId, known: Timestamp) -> Outcome {
    writes_early_at(mount, object, 0, known).await
}

async fn asks_early(mount: &mut Mount, slot: u16, object: ObjectId, known: Timestamp) {
    let write = Operation::Write {
        object,
        offset: 0,
        append: false,
        kill_privileges: false,
    };
    let data = Bytes::from_static(b"early");
    mount.ask_early(slot, write, data, Some(known)).await;
}

async fn writes_early_at(
    mount: &mut Mount,
    object: ObjectId,
    offset: u64,
    known: Timestamp,
) -> Outcome {
    let write = Operation::Write {
        object,
        offset,
        append: false,
        kill_privileges: false,
    };
    let data = Bytes::from_static(b"early");
    mount.ask_early(0, write, data, Some(known)).await;
    mount.answer().await
}

fn changed_at(outcome: &Outcome) -> Timestamp {
    match outcome {
        Outcome::Written { attributes, .. } | Outcome::Attributes(attributes) => attributes.ctime,
        other => panic!("{other:?}"),
    }
}

/// A file that the mount has alone, and when it was changed.
async fn alone(mount: &mut Mount, name: &'static str) -> (ObjectId, Timestamp) {
    let file = mount.create(name).await;
    mount.write(0, file, 0).await;
    let known = changed_at(&mount.answer().await);
    assert!(mount.alone.contains(&file), "nobody else looks at it");
    (file, known)
}

fn rename(name: &'static str) -> Operation {
    Operation::Rename {
        parent: ObjectId::ROOT,
        name: Bytes::from_static(name.as_bytes()),
        new_parent: ObjectId::ROOT,
        new_name: Bytes::from(format!("{name} renamed")),
        flags: 0,
    }
}

/// Whoever changed names in a directory again and again asked for its attributes each time.
#[test]
fn what_an_answer_tells_of_the_directories_that_it_changed_is_so_after_its_change() {
    run(async {
        let stage = serving().await;
        let mut mount = mounted(&stage, 1).await;
        let name = |name: &'static str| Bytes::from_static(name.as_bytes());
        let root = ObjectId::ROOT;
        let make_directory = |name| Operation::MakeDirectory {
            parent: root,
            name,
            mode: 0o755,
        };
        let Outcome::Entry(a) = mount.call(0, make_directory(name("other"))).await else {
            panic!("it is made");
        };
        let other = a.object;
        let file = mount.create("file").await;
        let changes = [
            (make_directory(name("directory")), vec![root]),
            (create("second"), vec![root]),
            (
                Operation::Symlink {
                    parent: root,
                    name: name("symlink"),
                    target: name("file"),
                },
                vec![root],
            ),
            (
                Operation::MakeNode {
                    parent: other,
                    name: name("pipe"),
                    mode: 0o010_644,
                    rdev: 0,
                },
                vec![other],
            ),
            (
                Operation::Link {
                    object: file,
                    new_parent: other,
                    new_name: name("link"),
                },
                vec![other],
            ),
            (rename("second"), vec![root]),
            (
                Operation::Rename {
                    parent: root,
                    name: name("directory"),
                    new_parent: other,
                    new_name: name("directory"),
                    flags: 0,
                },
                vec![root, other],
            ),
            (
                Operation::RemoveDirectory {
                    parent: other,
                    name: name("directory"),
                },
                vec![other],
            ),
            (
                Operation::Unlink {
                    parent: root,
                    name: name("file"),
                },
                vec![root],
            ),
        ];
        for (change, directories) in changes {
            let what = format!("{change:?}");
            let outcome = mount.call(0, change).await;
            assert!(!matches!(outcome, Outcome::Error(_)), "{what}: {outcome:?}");
            let told = std::mem::take(&mut mount.directories);
            let of: Vec<_> = told.iter().map(|directory| directory.object).collect();
            assert_eq!(of, directories, "{what}");
            for directory in told {
                let object = directory.object;
                assert!(mount.leases.contains(&object), "{what}");
                let look = Operation::GetAttributes { object };
                let seen = mount.call(SLOT_NONE, look).await;
                assert_eq!(seen, Outcome::Attributes(directory), "{what}");
            }
        }
        // Where nothing was changed, and where it may keep nothing, nothing is told.
        let refused = mount.call(0, create("symlink")).await;
        assert_eq!(refused, Outcome::Error(17));
        assert!(mount.directories.is_empty());
        let mut forgets = Mount::new(&stage, 2).await;
        forgets.ask(0, create("third"), Bytes::new()).await;
        assert!(mount.finds("symlink").await && !mount.recalls.is_empty());
        mount.gives_back().await;
        assert!(matches!(forgets.answer().await, Outcome::Entry(_)));
        assert!(forgets.directories.is_empty() && forgets.leases.is_empty());
    });
}

/// The mount was cut off while it changed a file that it had alone; its lease ran out.
#[test]
fn fo_6_what_was_answered_early_takes_effect_only_where_nobody_else_changed_the_file() {
    run(async {
        let mut stage = serving().await;
        let mut early = Mount::early(&stage, 1, LEASES).await;
        let mut other = mounted(&stage, 2).await;
        let (touched, known_touched) = alone(&mut early, "touched").await;
        let (untouched, known_untouched) = alone(&mut early, "untouched").await;
        let (at_once, known_at_once) = alone(&mut early, "at once").await;
        // Its own doing is nobody else's.
        for name in ["untouched", "at once"] {
            let renamed = early.call(1, rename(name)).await;
            assert_eq!(renamed, Outcome::Done);
        }
        let told = early.times.get(&untouched).copied();
        let known_untouched = told.filter(|at| *at > known_untouched).expect("it is told");
        let took = writes(&mut other, touched).await;
        assert!(took > LEASE - SLACK, "others waited only {took:?}");
        let look = Operation::GetAttributes { object: untouched };
        let seen = changed_at(&other.call(SLOT_NONE, look).await);
        assert_eq!(seen, known_untouched);
        let look = Operation::GetAttributes { object: at_once };
        other.call(SLOT_NONE, look).await;
        // It was on its way when the file was renamed.
        let taken = writes_early(&mut early, at_once, known_at_once).await;
        assert!(matches!(taken, Outcome::Written { .. }), "{taken:?}");
        // As after a power cut: nothing is known of leases.
        stage.restart().await;
        early.alone.clear();
        early.leases.clear();
        early.comes_back(&stage, LEASES).await;
        other.comes_back(&stage, LEASES).await;

        let lost = writes_early(&mut early, touched, known_touched).await;
        assert_eq!(lost, Outcome::Error(5), "it would undo what another did");
        let first = writes_early(&mut early, untouched, known_untouched).await;
        let next = writes_early(&mut early, untouched, known_untouched).await;
        for taken in [&first, &next] {
            assert!(matches!(taken, Outcome::Written { .. }), "{taken:?}");
        }
    });
}

#[test]
fn coh_1_who_looks_at_a_file_that_another_has_alone_waits_until_it_is_given_back() {
    run(async {
        let stage = serving().await;
        let mut early = Mount::early(&stage, 1, LEASES).await;
        let mut other = mounted(&stage, 2).await;
        let (file, known) = alone(&mut early, "file").await;
        let look = Operation::GetAttributes { object: file };
        other.ask(SLOT_NONE, look, Bytes::new()).await;
        let late = writes_early(&mut early, file, known).await;
        assert!(!early.recalls.is_empty(), "it was told to give it back");
        early.gives_back().await;
        let seen = other.answer().await;
        assert_eq!(changed_at(&seen), changed_at(&late));
        early
            .ask(
                SLOT_NONE,
                Operation::GetAttributes { object: file },
                Bytes::new(),
            )
            .await;
        early.answer().await;
        assert!(!early.alone.contains(&file), "another one looks at it");
    });
}

/// What it had answered early was on the way, and the lease given back behind it, when the connection
/// broke: who had waited for the lease went first.
#[test]
fn cl_1_who_comes_back_after_a_break_sends_early_changes_again_before_others_go_on() {
    run(async {
        let stage = serving().await;
        let mut early = Mount::early(&stage, 1, LEASES).await;
        let mut other = mounted(&stage, 2).await;
        let (file, known) = alone(&mut early, "file").await;
        other.write(0, file, 0).await;
        assert!(early.finds("file").await && !early.recalls.is_empty());
        early.sends_again.push(file);
        early.comes_back(&stage, LEASES).await;
        assert!(early.finds("file").await, "it is let in");
        assert!(timeout(AT_ONCE, other.answer()).await.is_err(), "first");
        let first = writes_early(&mut early, file, known).await;
        early.gives_back().await;
        let (next, took) = timed(other.answer()).await;
        assert!(took < AT_ONCE, "it is given back once more: {took:?}");
        assert!(changed_at(&first) < changed_at(&next));
    });
}

/// What had to wait for the lease of another mount was overtaken by whatever the same mount asked next,
/// and by what it gave back.
#[test]
fn cl_1_nothing_of_a_mount_overtakes_what_it_answered_early() {
    run(async {
        let stage = serving().await;
        let mut early = Mount::early(&stage, 1, LEASES).await;
        let (mut other, mut third) = (mounted(&stage, 2).await, mounted(&stage, 3).await);
        let (file, known) = alone(&mut early, "file").await;
        let (second, known_second) = alone(&mut early, "second").await;
        // It stands still, and another one looks at the file.
        let look = Operation::GetAttributes { object: file };
        for _ in 0..2 {
            // The second time it waits for nobody, so what it is leased lasts.
            other.call(SLOT_NONE, look.clone()).await;
        }
        assert!(other.leases.contains(&file));
        early.recalls.clear();
        asks_early(&mut early, 0, file, known).await;
        asks_early(&mut early, 1, second, known_second).await;
        let sync = Operation::Sync {
            object: file,
            data_only: false,
        };
        early.ask(SLOT_NONE, sync, Bytes::new()).await;
        let answer = timeout(AT_ONCE, early.answer()).await;
        assert!(answer.is_err(), "it waits for the other: {answer:?}");
        let read = Operation::Read {
            object: second,
            offset: 0,
            len: 5,
        };
        third.ask(SLOT_NONE, read, Bytes::new()).await;
        assert!(timeout(AT_ONCE, early.answer()).await.is_err());
        assert!(!early.recalls.is_empty(), "the third one looks");
        early.gives_back().await;
        let answer = timeout(AT_ONCE, third.answer()).await;
        assert!(answer.is_err(), "it is told of what was before: {answer:?}");
        assert!(other.finds("file").await && !other.recalls.is_empty());
        other.gives_back().await;
        for _ in 0..2 {
            let taken = early.answer().await;
            assert!(matches!(taken, Outcome::Written { .. }), "{taken:?}");
        }
        assert_eq!(early.answer().await, Outcome::Done);
        let seen = third.answer().await;
        assert_eq!(seen, Outcome::Data(Bytes::from_static(b"early")));
    });
}

/// The line was slow, or the primary took nothing just then, and the lease ended by its time.
#[test]
fn cl_1_what_was_answered_early_is_awaited_as_long_as_anything_comes_and_not_for_ever() {
    run(async {
        let stage = serving().await;
        let mut early = Mount::early(&stage, 1, LEASES).await;
        let mut other = mounted(&stage, 2).await;
        for (name, takes, arrives) in [("slow", 3, true), ("endless", 40, false)] {
            let (file, known) = alone(&mut early, name).await;
            let read = Operation::Read {
                object: file,
                offset: 0,
                len: 5,
            };
            let began = Instant::now();
            other.ask(SLOT_NONE, read, Bytes::new()).await;
            assert!(timeout(AT_ONCE, other.answer()).await.is_err());
            assert!(early.finds(name).await && !early.recalls.is_empty());
            let write = Operation::Write {
                object: file,
                offset: 0,
                append: false,
                kill_privileges: false,
            };
            let (data, takes) = (Bytes::from_static(b"early"), Duration::from_secs(takes));
            let arrived = early.ask_slowly(write, data, known, takes).await;
            assert_eq!(arrived, arrives, "{name}: after {:?}", began.elapsed());
            if arrived {
                let taken = early.answer().await;
                assert!(matches!(taken, Outcome::Written { .. }), "{taken:?}");
            }
            early.gives_back().await;
            let Outcome::Data(data) = other.answer().await else {
                panic!("it is read");
            };
            assert_eq!(&data[..] == b"early", arrives);
            assert!(began.elapsed() < HELD_OFF_MAX + LEASE);
        }
    });
}

/// That there is nothing to read was told at once: who followed a file that grew was told of no more.
#[test]
fn coh_1_who_looks_past_the_end_of_a_file_that_another_has_alone_waits_as_well() {
    run(async {
        let stage = serving().await;
        let mut early = Mount::early(&stage, 1, LEASES).await;
        let mut other = mounted(&stage, 2).await;
        let target = other.create("target").await;
        for name in ["read", "sought", "copied"] {
            let (file, known) = alone(&mut early, name).await;
            let (object, offset, len) = (file, u64::from(IO_BYTES_MAX), 10);
            let (slot, look) = match name {
                "read" => (
                    SLOT_NONE,
                    Operation::Read {
                        object,
                        offset,
                        len,
                    },
                ),
                "sought" => {
                    let whence = 3; // data
                    let seek = Operation::Seek {
                        object,
                        offset,
                        whence,
                    };
                    (SLOT_NONE, seek)
                }
                _ => {
                    let copy = Operation::CopyRange {
                        from: file,
                        from_offset: offset,
                        object: target,
                        offset: 0,
                        len,
                    };
                    (0, copy)
                }
            };
            other.ask(slot, look, Bytes::new()).await;
            let early_answer = timeout(AT_ONCE, other.answer()).await;
            assert!(early_answer.is_err(), "{name}: {early_answer:?}");
            writes_early_at(&mut early, file, offset, known).await;
            early.gives_back().await;
            match other.answer().await {
                Outcome::Data(data) => assert_eq!(&data[..], b"early"),
                Outcome::Offset(at) => assert_eq!(at, offset),
                Outcome::Written { len, .. } => assert_eq!(len, 5),
                outcome => panic!("{name}: {outcome:?}"),
            }
        }
    });
}

/// Who had a file alone went on writing it, and whoever said that he had answered a change wrote any.
#[test]
fn cl_1_on_a_volume_that_is_set_read_only_only_that_is_taken_which_was_answered_before() {
    run(async {
        let mut stage = serving().await;
        let mut early = Mount::early(&stage, 1, LEASES).await;
        let (file, known) = alone(&mut early, "file").await;
        let (other, known_other) = alone(&mut early, "other").await;
        stage.set("read-only", "on");
        let taken = writes_early(&mut early, file, known).await;
        assert!(matches!(taken, Outcome::Written { .. }), "{taken:?}");
        assert!(!early.recalls.is_empty(), "nothing is answered any more");
        early.gives_back().await;
        let erofs = Outcome::Error(30);
        let known = changed_at(&taken);
        assert_eq!(writes_early(&mut early, file, known).await, erofs);
        // Nobody gave it that.
        early.sends_again.push(other);
        early.comes_back(&stage, LEASES).await;
        let again = writes_early(&mut early, other, known_other).await;
        assert_eq!(again, erofs);
        stage.set("read-only", "off");
        let taken = writes_early(&mut early, other, known_other).await;
        assert!(matches!(taken, Outcome::Written { .. }), "{taken:?}");
    });
}

/// Room was free, and held back for mounts that did nothing: others were told that the disk was full.
#[test]
fn cl_1_room_that_is_held_back_is_given_up_before_anybody_is_told_that_there_is_none() {
    run(async {
        let stage = serving().await;
        let mut early = Mount::early(&stage, 1, LEASES).await;
        let mut other = mounted(&stage, 2).await;
        alone(&mut early, "idle").await;
        let file = other.create("file").await;
        let (mut offset, mut went_on_at) = (0, None::<u64>);
        let last = loop {
            other.write(0, file, offset).await;
            let answer = match timeout(AT_ONCE, other.answer()).await {
                Ok(answer) => answer,
                Err(_) => {
                    assert!(early.finds("idle").await);
                    if early.alone.is_empty() {
                        went_on_at.get_or_insert(offset);
                    }
                    early.gives_back().await;
                    other.answer().await
                }
            };
            let Outcome::Written { .. } = answer else {
                break answer;
            };
            offset += u64::from(IO_BYTES_MAX);
        };
        assert_eq!(last, Outcome::Error(28));
        let after = offset - went_on_at.expect("it was given up");
        assert!(after >= 8 << 20, "only {after} bytes of it were used");
    });
}

/// Whoever came back could hold everybody off the root of the volume.
#[test]
fn bad_2_who_comes_back_holds_others_off_regular_files_only() {
    run(async {
        let stage = serving().await;
        let mut early = Mount::early(&stage, 1, LEASES).await;
        let mut other = mounted(&stage, 2).await;
        early.leases.clear();
        early.sends_again.push(ObjectId::ROOT);
        early.comes_back(&stage, LEASES).await;
        early.call(SLOT_NONE, Operation::StatFs).await; // it is let in
        early.alone.insert(ObjectId::ROOT);
        creates_at_once(&mut other, "file").await;
        early.leases.insert(ObjectId::ROOT);
        early.comes_back(&stage, LEASES).await;
        early.call(SLOT_NONE, Operation::StatFs).await;
        creates_at_once(&mut other, "another").await;
    });
}

/// The kernel of the mount lets root do what the primary then refuses.
#[test]
fn cl_1_where_root_is_squashed_nothing_is_answered_early() {
    run(async {
        let mut stage = serving().await;
        let mut early = Mount::early(&stage, 1, LEASES).await;
        let (file, known) = alone(&mut early, "file").await;
        let (open, _) = alone(&mut early, "open").await;
        let set = SetAttributes {
            mode: Some(0o666),
            ..SetAttributes::default()
        };
        let object = open;
        early
            .call(1, Operation::SetAttributes { object, set })
            .await;
        stage.set("root-squash", "on");
        let taken = writes_early(&mut early, file, known).await;
        assert!(matches!(taken, Outcome::Written { .. }), "{taken:?}");
        assert!(!early.recalls.is_empty(), "nothing is answered any more");
        early.gives_back().await;
        let known = changed_at(&taken);
        let refused = writes_early(&mut early, file, known).await;
        assert_eq!(refused, Outcome::Error(13), "it is root's");
        assert!(writes(&mut early, open).await < AT_ONCE);
        assert!(early.leases.contains(&open) && early.alone.is_empty());
    });
}

#[test]
fn bad_2_nobody_waits_for_the_leases_of_who_lost_the_right_to_the_volume() {
    run(async {
        let mut stage = serving().await;
        let mut one = mounted(&stage, 1).await;
        one.create("file").await;
        let stranger = node_id(9);
        let link = stage.connect(stranger, Purpose::Client(stage.spec.id));
        let mut revoked = Mount::over(&stage, link, 2, LEASES).await;
        assert!(revoked.finds("file").await && revoked.leases.contains(&ObjectId::ROOT));
        stage.revoke(stranger);
        revoked.is_cut_off().await;
        creates_at_once(&mut one, "at once").await;
        stage.restart().await;
        one.comes_back(&stage, LEASES).await;
        creates_at_once(&mut one, "after a take-over").await;
    });
}
