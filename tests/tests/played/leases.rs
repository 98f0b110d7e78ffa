//! Who waits for the leases of whom, to the millisecond: after a take-over, for mounts that are
//! gone, and for those that have no right any more.

use std::time::Duration;

use bytes::Bytes;
use protocol::fs::{Operation, Outcome, SLOT_NONE, SetAttributes};
use protocol::preamble::Purpose;
use protocol::units::ObjectId;
use protocol::volume::Quorum;
use tokio::time::{Instant, timeout};

use super::mount::{Mount, create};
use super::stage::{Stage, node_id, run, spec};

/// Leases that a mount may hold.
const LEASES: u32 = 100;
/// How long a lease lasts.
const LEASE: Duration = Duration::from_secs(2);
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
