//! Random schedules and the properties that hold under each.

use super::pool::pass;
use super::*;

#[derive(Debug, Clone)]
pub(super) enum Step {
    Write(usize, Key),
    Deliver(usize, usize, u8),
    Cut(usize, usize),
    Connect(usize, usize),
    Crash(usize, bool),
    Boot(usize),
    Flush(usize),
    HandOver(usize, usize),
    Time(u8),
    Pool(bool, bool),
    Learn(usize),
    CutOff(usize, bool),
    Mute(usize, usize),
    /// Time passes, and what can arrive arrives.
    Pass(u8),
    CutOneEnd(usize, usize),
    Policy(usize, Protocol),
    /// The node keeps records in memory, or applies each at once.
    Hold(usize, bool),
    ApplyHeld(usize, u8),
    /// A client asks for stability.
    Sync(usize),
    /// The node asks for promises of that many milliseconds from now on.
    Lease(usize, u8),
}

pub(super) fn step(count: usize) -> impl Strategy<Value = Step> {
    let node = 0..count;
    prop_oneof![
        8 => (node.clone(), 0u8..12).prop_map(|(n, k)| Step::Write(n, k)),
        12 => (node.clone(), node.clone(), 1u8..6).prop_map(|(a, b, n)| Step::Deliver(a, b, n)),
        1 => (node.clone(), node.clone()).prop_map(|(a, b)| Step::Cut(a, b)),
        3 => (node.clone(), node.clone()).prop_map(|(a, b)| Step::Connect(a, b)),
        1 => (node.clone(), any::<bool>()).prop_map(|(n, p)| Step::Crash(n, p)),
        2 => node.clone().prop_map(Step::Boot),
        2 => node.clone().prop_map(Step::Flush),
        1 => (node.clone(), node).prop_map(|(a, b)| Step::HandOver(a, b)),
        1 => (1u8..150).prop_map(Step::Time),
    ]
}

/// Where the pool decides.
pub(super) fn pool_step(count: usize) -> impl Strategy<Value = Step> {
    let node = 0..count;
    prop_oneof![
        20 => step(count),
        3 => Just(Step::Pool(true, true)),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(r, a)| Step::Pool(r, a)),
        3 => node.clone().prop_map(Step::Learn),
        1 => (node.clone(), any::<bool>()).prop_map(|(n, off)| Step::CutOff(n, off)),
        1 => (node.clone(), lease_ms()).prop_map(|(n, ms)| Step::Lease(n, ms)),
        1 => (node.clone(), node).prop_map(|(a, b)| Step::Mute(a, b)),
        2 => (1u8..40).prop_map(Step::Time),
    ]
}

fn lease_ms() -> impl Strategy<Value = u8> {
    prop_oneof![Just(60), Just(25), Just(200)]
}

pub(super) fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![Just(Protocol::A), Just(Protocol::B), Just(Protocol::C)]
}

/// With the ack policy changed now and then, on each node at its own time.
pub(super) fn policy_step(count: usize) -> impl Strategy<Value = Step> {
    let node = 0..count;
    prop_oneof![
        24 => pool_step(count),
        2 => (node.clone(), protocol()).prop_map(|(n, p)| Step::Policy(n, p)),
        2 => (node.clone(), any::<bool>()).prop_map(|(n, on)| Step::Hold(n, on)),
        2 => (node.clone(), 1u8..6).prop_map(|(n, most)| Step::ApplyHeld(n, most)),
        2 => node.prop_map(Step::Sync),
    ]
}

/// Whether a step is about nodes that there are.
pub(super) fn fits(step: &Step, count: usize) -> bool {
    match *step {
        Step::Write(n, _)
        | Step::Crash(n, _)
        | Step::Boot(n)
        | Step::Flush(n)
        | Step::Learn(n)
        | Step::Policy(n, _)
        | Step::Hold(n, _)
        | Step::ApplyHeld(n, _)
        | Step::Sync(n)
        | Step::Lease(n, _)
        | Step::CutOff(n, _) => n < count,
        Step::Deliver(a, b, _)
        | Step::Cut(a, b)
        | Step::Connect(a, b)
        | Step::Mute(a, b)
        | Step::CutOneEnd(a, b)
        | Step::HandOver(a, b) => a < count && b < count,
        Step::Time(_) | Step::Pool(..) | Step::Pass(_) => true,
    }
}

/// Processes die, the ack policy changes; from being settled by one to being settled again.
fn under_policies(mut volume: Volume, protocol: Protocol, steps: Vec<Step>) -> Volume {
    let count = volume.nodes.len();
    (0..count).for_each(|node| volume.set_policy(node, protocol));
    volume.settle();
    run(&mut volume, &without_power_loss(steps, count));
    volume.settle();
    volume.check_whole();
    check_confirmed(&volume);
    volume
}

/// The steps about nodes that there are; processes die, and keep what the kernel has.
fn without_power_loss(steps: Vec<Step>, count: usize) -> Vec<Step> {
    let steps = steps.into_iter().filter(|step| fits(step, count));
    let keeps = |step| match step {
        Step::Crash(node, _) => Step::Crash(node, false),
        other => other,
    };
    steps.map(keeps).collect()
}

/// Everything that was confirmed is at the primary, or something newer.
pub(super) fn check_confirmed(volume: &Volume) {
    let primary = volume.primary().expect("somebody serves");
    let mut newest: BTreeMap<Key, u64> = BTreeMap::new();
    for record in &volume.confirmed {
        newest.insert(record.key, record.value);
    }
    for (key, value) in newest {
        let found = volume.nodes[primary].live.keys.get(&key).copied();
        // A later, unconfirmed write of the key may stand there instead.
        assert!(
            found >= Some(value),
            "key {key}: confirmed {value}, found {found:?}"
        );
    }
}

pub(super) fn run(volume: &mut Volume, steps: &[Step]) {
    for step in steps {
        one_step(volume, step);
        let serving = volume
            .nodes
            .iter()
            .filter(|n| n.machine.as_ref().is_some_and(Machine::serves))
            .count();
        if volume.pool.is_some() {
            volume.check_answers();
        } else {
            assert!(serving <= 1, "two primaries serve at once");
        }
    }
}

/// Where power was lost, what was confirmed may be gone.
pub(super) fn run_unchecked(volume: &mut Volume, steps: &[Step]) {
    for step in steps {
        one_step(volume, step);
    }
}

pub(super) fn one_step(volume: &mut Volume, step: &Step) {
    {
        match *step {
            Step::Write(node, key) => volume.write(node, key),
            Step::Deliver(from, to, times) => {
                for _ in 0..times {
                    volume.deliver(from, to);
                }
            }
            Step::Cut(a, b) if a != b => volume.cut(a, b),
            Step::Connect(a, b) => volume.connect(a, b),
            Step::Crash(node, power) if volume.nodes[node].machine.is_some() => {
                volume.crash(node, power);
            }
            Step::Boot(node) if volume.nodes[node].machine.is_none() => volume.boot(node),
            Step::Flush(node) if volume.nodes[node].machine.is_some() => volume.flush(node),
            Step::HandOver(node, to) => {
                if let Some(machine) = volume.nodes[node].machine.as_mut()
                    && node != to
                {
                    // Refusals are expected: the schedule does not know who may.
                    let _ = machine.hand_over(to);
                    volume.carry_out(node);
                }
            }
            Step::Time(ms) => volume.time(Duration::from_millis(u64::from(ms))),
            Step::Pool(reaches, answers) => {
                volume.pool_turn(reaches, answers);
            }
            Step::CutOneEnd(a, b) if a != b => volume.cut_one_end(a, b),
            Step::Policy(node, protocol) => volume.set_policy(node, protocol),
            Step::Hold(node, holds) => {
                volume.nodes[node].holds = holds;
                if !holds {
                    volume.apply_held(node, usize::MAX);
                }
            }
            Step::ApplyHeld(node, most) => {
                volume.apply_held(node, usize::from(most));
            }
            Step::Sync(node) => volume.sync(node),
            Step::Lease(node, ms) => {
                volume.nodes[node].lease = Duration::from_millis(ms.into());
            }
            Step::Pass(ms) => pass(volume, Duration::from_millis(u64::from(ms))),
            Step::Learn(node) => volume.learn(node),
            Step::CutOff(node, off) => {
                if let Some(pool) = volume.pool.as_mut() {
                    pool.cut_off[node] = off;
                }
            }
            Step::Mute(a, b) if volume.wires.contains_key(&(a, b)) => {
                volume.mute.insert((a, b));
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// RS-5, ONE-2: whatever happens, the replicas come to rest in sync and equal, with one
    /// primary at each instant.
    #[test]
    fn after_any_schedule_the_replicas_come_to_rest_equal(
        steps in proptest::collection::vec(step(3), 0..200),
        count in 2usize..4,
    ) {
        let mut volume = Volume::new(count);
        volume.power = true;
        volume.settle();
        let steps: Vec<_> = steps.into_iter().filter(|step| fits(step, count)).collect();
        run(&mut volume, &steps);
        volume.settle();
        volume.check_whole();
    }

    /// DUR-2: while processes die and links break, but no power is lost, nothing confirmed is
    /// ever missing.
    #[test]
    fn nothing_confirmed_is_lost_when_processes_die(
        steps in proptest::collection::vec(step(2), 0..200),
    ) {
        let mut volume = Volume::new(2);
        volume.settle();
        let steps: Vec<_> = steps
            .into_iter()
            .map(|s| match s {
                Step::Crash(node, _) => Step::Crash(node, false),
                other => other,
            })
            .collect();
        run(&mut volume, &steps);
        volume.settle();
        check_confirmed(&volume);
    }

    /// ONE-1, RS-5 with `quorum=majority`: whatever happens to nodes, links and the pool, at most
    /// one primary answers at each instant, what it answers is not old, and the replicas come to
    /// rest equal.
    #[test]
    fn the_pool_keeps_one_primary_and_the_replicas_come_to_rest_equal(
        steps in proptest::collection::vec(pool_step(3), 0..300),
        count in 2usize..4,
    ) {
        let mut volume = Volume::with_pool(count);
        volume.settle();
        let steps: Vec<_> = steps
            .into_iter()
            .filter(|step| fits(step, count))
            .map(|step| match step {
                Step::Crash(node, _) => Step::Crash(node, false),
                other => other,
            })
            .collect();
        run(&mut volume, &steps);
        volume.settle();
        volume.check_whole();
        check_confirmed(&volume);
    }

    /// The same while power is lost, which may cost what was not on stable storage everywhere.
    #[test]
    fn after_power_losses_the_replicas_come_to_rest_equal_with_the_pool(
        steps in proptest::collection::vec(pool_step(3), 0..300),
    ) {
        let mut volume = Volume::with_pool(3);
        volume.power = true;
        volume.settle();
        run_unchecked(&mut volume, &steps);
        volume.settle();
        volume.check_whole();
    }

    /// DUR-2, ONE-2 under A, B and C, changed while the volume serves, where the bricks decide:
    /// nothing confirmed is lost when processes die, and the replicas come to rest equal.
    #[test]
    fn under_changing_policies_nothing_confirmed_is_lost_when_processes_die(
        protocol in protocol(),
        steps in proptest::collection::vec(policy_step(3), 0..200),
        count in 2usize..4,
    ) {
        let volume = under_policies(Volume::new(count), protocol, steps);
        prop_assert_eq!(volume.given_up, 0);
    }

    /// DUR-1, DUR-2, ONE-1 under A, B and C, changed while the volume serves, where the pool
    /// decides: a take-over costs at most what A had queued, and says so; B and C lose nothing.
    #[test]
    fn under_changing_policies_a_takeover_costs_at_most_the_queue_of_a(
        protocol in protocol(),
        steps in proptest::collection::vec(policy_step(3), 0..300),
        count in 2usize..4,
    ) {
        under_policies(Volume::with_pool(count), protocol, steps);
    }

    /// DUR-1: the same while power is lost; what fsync confirmed stays.
    #[test]
    fn under_changing_policies_what_fsync_confirmed_survives_power_losses(
        protocol in protocol(),
        steps in proptest::collection::vec(policy_step(3), 0..300),
        pool in any::<bool>(),
    ) {
        let mut volume = if pool { Volume::with_pool(3) } else { Volume::new(3) };
        volume.power = true;
        (0..3).for_each(|node| volume.set_policy(node, protocol));
        volume.settle();
        run_unchecked(&mut volume, &steps);
        volume.settle();
        volume.check_whole();
    }
}
