//! ONE-1 where promises have different lengths, and where the length changes under way.

use super::pool::{pass, settled_with_pool};
use super::*;

const LONG: Duration = Duration::from_millis(1500);
const STEP: Duration = Duration::from_millis(5);

/// Every node asks for promises of that length from now on, as primary. Nobody leaves the set for
/// being silent before they end.
fn asks_for(volume: &mut Volume, lease: Duration) {
    for node in &mut volume.nodes {
        node.lease = lease;
        let machine = node.machine.as_mut().unwrap();
        machine.set_replica_deadline(20 * LONG);
    }
}

/// Nothing gets from the primary to the others or to the pool any more, or back. The others lose
/// their connections at once, the primary notices nothing.
fn cut_off(volume: &mut Volume, primary: usize) {
    for other in (0..volume.nodes.len()).filter(|other| *other != primary) {
        volume.cut_one_end(other, primary);
    }
    volume.pool.as_mut().unwrap().cut_off[primary] = true;
}

fn may_answer(volume: &Volume, node: usize) -> bool {
    let machine = volume.nodes[node].machine.as_ref().unwrap();
    machine.may_answer(volume.clock(node))
}

/// How long it takes from now until another than the first node serves.
fn taken_over_after(volume: &mut Volume) -> Duration {
    let began = volume.now;
    let serves = |volume: &Volume| {
        let others = volume.nodes[1..].iter();
        let mut machines = others.filter_map(|node| node.machine.as_ref());
        machines.any(Machine::serves)
    };
    while !serves(volume) {
        assert!(volume.now < began + 20 * LONG, "nobody takes over");
        pass(volume, STEP);
    }
    volume.now - began
}

/// The clock of each node is faster than that of the one before, by half a percent.
#[test]
fn one_1_of_any_length_a_lease_ends_before_the_promise_that_it_rests_on() {
    for ms in [25, 60, 150, 1500, 10_000] {
        let lease = Duration::from_millis(ms);
        let mut volume = settled_with_pool(3);
        asks_for(&mut volume, lease);
        pass(&mut volume, LONG);
        assert!(may_answer(&volume, 0), "{lease:?}");
        cut_off(&mut volume, 0);
        let cut = volume.now;
        // What passes in here also looks that no two answer at once.
        while may_answer(&volume, 0) {
            pass(&mut volume, STEP);
            assert!(volume.now <= cut + lease, "{lease:?}: it overstays");
        }
        assert!(volume.now + STEP * 4 >= cut + lease * 49 / 50, "{lease:?}");
        taken_over_after(&mut volume);
        volume.settle();
        volume.check_whole();
    }
}

#[test]
fn one_1_a_longer_promise_is_given_only_once_it_would_outlive_a_restart() {
    let mut volume = settled_with_pool(2);
    pass(&mut volume, LEASE);
    let (now, term) = (volume.clock(1), volume.nodes[1].live.state.term);
    let machine = volume.nodes[1].machine.as_mut().unwrap();
    let ask = |machine: &mut Machine| machine.promise(now, 0, term, LONG);
    assert_eq!(ask(machine), Some(LEASE), "as much as is remembered");
    assert_eq!(ask(machine), Some(LEASE), "it is not durable yet");
    volume.carry_out(1);
    let machine = volume.nodes[1].machine.as_mut().unwrap();
    assert_eq!(machine.durable().longest_promise_ms, 1500);
    assert_eq!(ask(machine), Some(LONG));
    // Less may be remembered only when no longer one holds.
    assert_eq!(machine.promise(now, 0, term, LEASE), Some(LEASE));
    assert_eq!(machine.report().term, term);
    volume.carry_out(1);
    let machine = volume.nodes[1].machine.as_mut().unwrap();
    assert_eq!(machine.durable().longest_promise_ms, 1500);
    let ended = now + LONG;
    assert_eq!(machine.promise(ended, 0, term, LEASE), Some(LEASE));
    volume.carry_out(1);
    let machine = volume.nodes[1].machine.as_ref().unwrap();
    assert_eq!(machine.durable().longest_promise_ms, LEASE_MS);
}

/// A follower that promised for long and starts again knows nothing of that but the bound; the
/// primary, which still believes in the promise, may be frozen and not dead.
#[test]
fn one_1_a_restarted_follower_keeps_the_longest_promise_that_it_may_have_given() {
    let mut volume = settled_with_pool(2);
    asks_for(&mut volume, LONG);
    pass(&mut volume, LONG);
    cut_off(&mut volume, 0);
    let cut = volume.now;
    // The primary does not hear of that either.
    volume.half.clear();
    volume.crash(1, true);
    volume.half.insert((0, 1));
    volume.boot(1);
    while may_answer(&volume, 0) {
        pass(&mut volume, STEP);
        assert!(volume.now < cut + 2 * LONG, "it overstays");
    }
    assert!(volume.now >= cut + LONG / 2, "the promise held meanwhile");
    let serves = volume.nodes[1].machine.as_ref().unwrap().serves();
    assert!(!serves, "it took over while the promise held");
    volume.settle();
    volume.check_whole();
}

/// Primary and follower change to shorter promises while longer ones hold, and the primary is cut
/// off in that very moment.
#[test]
fn one_1_a_shorter_promise_does_not_end_a_longer_one() {
    let mut volume = settled_with_pool(3);
    asks_for(&mut volume, LONG);
    pass(&mut volume, LONG);
    asks_for(&mut volume, LEASE);
    pass(&mut volume, 2 * STEP);
    cut_off(&mut volume, 0);
    let after = taken_over_after(&mut volume);
    assert!(after >= LONG - 10 * STEP, "{after:?}");
    volume.settle();
    volume.check_whole();
    // From then on it is as if it never had been longer.
    pass(&mut volume, 2 * LONG);
    let primary = volume.primary().unwrap();
    let follower = (0..3).find(|node| *node != primary).unwrap();
    let state = &volume.nodes[follower].live.state;
    assert_eq!(state.longest_promise_ms, LEASE_MS);
}
