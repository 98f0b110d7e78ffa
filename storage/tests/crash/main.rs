//! The brick on a disk that crashes (DUR-1, DUR-3, DUR-4).
//!
//! A workload of every kind of change runs until the disk stops at a chosen sync or change. What
//! was not synced is then lost, torn or kept, sector by sector. The brick that opens on the rest is
//! compared with a slow model of every state that there was:
//!
//! - metadata and journaled data are exactly those of one record, no older than what was stable;
//! - a block of a large write that was not stable is, sector by sector, of that or a later state;
//!   such a block is reported as suspect; nothing reads as an error;
//! - a retained point reads as the state that it was made of, or was dropped; going back to it has
//!   happened or has not;
//! - what changed is dirty for the replica that lacks it.
//!
//! `CAIRN_CRASH_SEEDS=N` runs N seeds instead of the fixed few, `CAIRN_CRASH_SEED=S` only that one,
//! with `CAIRN_CRASH_POINT=P` only one crash of it.

extern crate cairn_storage as storage;

mod model;
mod points;
mod world;

use storage::medium::sim::CrashAt;
use world::{Outcome, World};

/// Seeds of the short run.
const SEEDS: [u64; 3] = [1, 2, 3];
/// Steps of the workload.
const STEPS: u64 = 90;

/// The short run takes every third crash point, another third for each seed.
const SHORT_STRIDE: usize = 3;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn seeds() -> Vec<u64> {
    match (number("CAIRN_CRASH_SEED"), number("CAIRN_CRASH_SEEDS")) {
        (Some(seed), _) => vec![seed],
        (None, Some(count)) => (1..=count).collect(),
        (None, None) => SEEDS.to_vec(),
    }
}

/// Crash points below `count`: all of them in a long run.
fn points(seed: u64, count: u64) -> impl Iterator<Item = u64> {
    if let Some(point) = number("CAIRN_CRASH_POINT") {
        return (point..point + 1).step_by(1);
    }
    let long = ["CAIRN_CRASH_SEED", "CAIRN_CRASH_SEEDS"];
    let is_long = long.into_iter().any(|name| number(name).is_some());
    let stride = if is_long { 1 } else { SHORT_STRIDE };
    (seed % stride as u64..count).step_by(stride)
}

/// Runs one seed up to one crash, and on from there through two more.
fn one_history(seed: u64, at: Option<CrashAt>) -> Outcome {
    println!("seed {seed}, crash at {at:?}");
    let mut world = World::new(seed);
    let outcome = world.run(STEPS, at);
    world.power_cut();
    world.recover_and_check();
    for generation in 1..3 {
        let change = world.random(400);
        world.run(STEPS / 2, Some(CrashAt::Change(change)));
        if generation == 1 {
            world.power_cut();
        } else {
            world.kill();
        }
        world.recover_and_check();
    }
    outcome
}

#[test]
fn a_crash_at_every_sync_leaves_a_prefix_and_all_that_was_stable() {
    for seed in seeds() {
        let whole = one_history(seed, None);
        assert!(whole.syncs > 20, "the workload hardly syncs: {whole:?}");
        for n in points(seed, whole.syncs) {
            one_history(seed, Some(CrashAt::Sync(n)));
        }
    }
}

#[test]
fn a_crash_between_any_two_changes_leaves_a_prefix_and_all_that_was_stable() {
    for seed in seeds() {
        let seed = seed + 1_000_000;
        let whole = one_history(seed, None);
        // Some forty of the many changes, spread evenly.
        let step = (whole.changes / 40).max(1);
        for n in points(seed, whole.changes / step) {
            let n = n * step + seed % step;
            one_history(seed, Some(CrashAt::Change(n)));
        }
    }
}

#[test]
fn the_workload_reaches_what_it_is_there_for() {
    let mut sum = world::Coverage::default();
    for seed in 1..=24 {
        let mut world = World::new(seed);
        world.run(STEPS, None);
        world.power_cut();
        world.recover_and_check();
        sum.add(&world.coverage);
    }
    // A workload that stopped doing one of these would prove nothing about it.
    assert!(sum.checkpoints > 20, "{sum:?}");
    assert!(sum.catch_ups > 10, "{sum:?}");
    assert!(sum.overwritten_records > 3, "{sum:?}");
    assert!(sum.replayed > 20, "{sum:?}");
    assert!(sum.accepted > 0, "{sum:?}");
    assert!(sum.flushes > 25, "{sum:?}");
    assert!(sum.points > 10, "{sum:?}");
    assert!(sum.went_back > 3, "{sum:?}");
    assert!(sum.views > 20, "{sum:?}");
}
