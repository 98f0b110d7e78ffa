//! The proof that the proof can fail.

use super::schedules::*;
use super::*;

thread_local! {
    /// This thread expects panics and wants none of them printed.
    static HUNTING: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// What a schedule runs on.
#[derive(Debug, Clone, Copy)]
struct Setting {
    count: usize,
    pool: bool,
    power: bool,
    /// The ack policy to begin with; `None`: C, and it never changes.
    protocol: Option<Protocol>,
}

/// Draws the same for the same seed.
pub(super) fn runner_of(seed: u64) -> proptest::test_runner::TestRunner {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = proptest::test_runner::TestRng::from_seed(
        proptest::test_runner::RngAlgorithm::ChaCha,
        &bytes,
    );
    proptest::test_runner::TestRunner::new_with_rng(ProptestConfig::default(), rng)
}

/// The schedule of `seed`, in one of eight settings.
fn draw(seed: u64) -> (Setting, Vec<Step>) {
    let mut runner = runner_of(seed);
    let (count, pool, power) = match seed % 4 {
        0 => (2, false, false),
        1 => (3, false, true),
        2 => (3, true, false),
        _ => (3, true, true),
    };
    // In every other four the ack policy is drawn as well, and changes.
    let policies = seed / 4 % 2 == 1;
    let node = 0..count;
    let steps = if policies {
        policy_step(count).boxed()
    } else {
        pool_step(count).boxed()
    };
    let lively = prop_oneof![
        6 => steps,
        2 => (1u8..30).prop_map(Step::Pass),
        1 => (30u8..150).prop_map(Step::Pass),
        1 => (node.clone(), node.clone()).prop_map(|(a, b)| Step::Mute(a, b)),
        2 => (node.clone(), node.clone()).prop_map(|(a, b)| Step::CutOneEnd(a, b)),
        2 => (node.clone(), node.clone()).prop_map(|(a, b)| Step::Connect(a, b)),
        2 => (node, 0u8..4).prop_map(|(n, k)| Step::Write(n, k)),
    ];
    let strategy = (protocol(), proptest::collection::vec(lively, 0..150));
    let drawn = strategy.new_tree(&mut runner).expect("steps");
    let (protocol, steps) = drawn.current();
    let steps = steps
        .into_iter()
        .map(|step| match step {
            Step::Crash(node, _) if !power => Step::Crash(node, false),
            other => other,
        })
        .collect();
    let setting = Setting {
        count,
        pool,
        power,
        protocol: policies.then_some(protocol),
    };
    (setting, steps)
}

/// Runs a schedule to its end and to rest; panics where a checker objects.
fn play(setting: Setting, steps: &[Step], bug: Option<Bug>) {
    let pool = setting.pool.then(|| Volume::toy_pool(setting.count));
    let mut volume = Volume::made(setting.count, pool, bug);
    volume.power = setting.power;
    if let Some(protocol) = setting.protocol {
        (0..setting.count).for_each(|node| volume.set_policy(node, protocol));
    }
    volume.settle();
    if setting.power {
        run_unchecked(&mut volume, steps);
    } else {
        run(&mut volume, steps);
    }
    volume.settle();
    volume.check_whole();
    if !setting.power {
        check_confirmed(&volume);
    }
}

fn fails(setting: Setting, steps: &[Step], bug: Option<Bug>) -> bool {
    std::panic::catch_unwind(|| play(setting, steps, bug)).is_err()
}

/// `CAIRN_HUNT_SEED=S`: plays that schedule; where it fails, prints the fewest of its steps that
/// fail as well.
#[test]
fn one_schedule_is_played_again() {
    let seed = std::env::var("CAIRN_HUNT_SEED").ok();
    let seed = seed.and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let (setting, mut steps) = draw(seed);
    if !fails(setting, &steps, None) {
        return;
    }
    let mut size = steps.len();
    while size > 0 {
        let mut at = 0;
        while at < steps.len() {
            let mut fewer = steps.clone();
            fewer.drain(at..(at + size).min(steps.len()));
            if fails(setting, &fewer, None) {
                steps = fewer;
            } else {
                at += size;
            }
        }
        size /= 2;
    }
    println!("{setting:?} {steps:?}");
    play(setting, &steps, None);
}

/// The proof that the proof can fail: deliberate mistakes are found, and without one nothing is.
/// `CAIRN_HUNT_SEEDS` looks for the rare ones as well, in so many schedules each.
#[test]
fn deliberate_mistakes_are_found_and_nothing_else_is() {
    const SEEDS: u64 = 3_000;
    let long: u64 = std::env::var("CAIRN_HUNT_SEEDS")
        .ok()
        .and_then(|seeds| seeds.parse().ok())
        .unwrap_or(0);
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !HUNTING.get() {
            print(panic);
        }
    }));
    for seed in 0..1_000.max(long) {
        let (setting, steps) = draw(seed);
        assert!(
            !fails(setting, &steps, None),
            "CAIRN_HUNT_SEED={seed} fails without a mistake"
        );
    }
    HUNTING.set(true);
    let search = |bug, seeds: u64| {
        let found = (0..seeds).find(|seed| {
            let (setting, steps) = draw(*seed);
            fails(setting, &steps, Some(bug))
        });
        match found {
            Some(seed) => println!("{bug:?}: found after {} schedules", seed + 1),
            None => println!("{bug:?}: not found in {seeds} schedules"),
        }
        found.is_none()
    };
    let missed: Vec<_> = Bug::SOON
        .into_iter()
        .chain(Bug::POLICIES)
        .filter(|bug| search(*bug, SEEDS))
        .collect();
    if long > 0 {
        for bug in Bug::RARE {
            search(bug, long);
        }
    }
    HUNTING.set(false);
    assert!(
        missed.is_empty(),
        "not found in {SEEDS} schedules: {missed:?}"
    );
}
