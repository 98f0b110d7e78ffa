//! ONE-2: with a fencing command nobody goes on alone before the other cannot.

use super::schedules::{Step, check_confirmed, one_step, step};
use super::*;

const FENCING: Fencing = Fencing {
    grace: Duration::from_millis(100),
    delay: Duration::from_millis(300),
    again: Duration::from_millis(200),
};

fn machine(volume: &Volume, node: usize) -> &Machine {
    volume.nodes[node].machine.as_ref().unwrap()
}

fn fencing_volume(count: usize) -> Volume {
    let mut volume = Volume::new(count);
    volume.fencing = Some(FENCING);
    for node in 0..count {
        volume.crash(node, false);
        volume.boot(node);
    }
    volume.settle();
    volume
}

fn wait(volume: &mut Volume, time: Duration) {
    volume.now += time;
    for node in 0..volume.nodes.len() {
        let now = volume.clock(node);
        if let Some(machine) = volume.nodes[node].machine.as_mut() {
            machine.tick(now);
            volume.carry_out(node);
        }
    }
}

/// The command of `from` against `to` ends: a hit ends the other process.
fn shoot(volume: &mut Volume, (from, to): (usize, usize), hits: bool) {
    volume.shots.retain(|shot| *shot != (from, to));
    if hits {
        volume.crash(to, false);
    }
    let now = volume.clock(from);
    if let Some(machine) = volume.nodes[from].machine.as_mut() {
        machine.fenced(now, to, hits);
        volume.carry_out(from);
    }
}

fn answers(volume: &Volume, node: usize) -> bool {
    machine(volume, node).may_answer(volume.clock(node))
}

#[test]
fn the_primary_suspends_until_it_has_fenced_the_secondary_and_then_goes_on() {
    let mut volume = fencing_volume(2);
    volume.cut(0, 1);
    volume.write(0, 5);
    assert!(volume.confirmed.is_empty() && !answers(&volume, 0));
    assert_eq!(volume.shots, []);
    wait(&mut volume, FENCING.grace);
    assert_eq!(volume.shots, [(0, 1)], "the primary shoots first");
    shoot(&mut volume, (0, 1), false);
    assert!(volume.confirmed.is_empty(), "it missed");
    wait(&mut volume, FENCING.again);
    assert!(volume.shots.contains(&(0, 1)), "it is tried again");
    shoot(&mut volume, (0, 1), true);
    assert_eq!(volume.confirmed.len(), 1);
    assert!(answers(&volume, 0));
    // What was fenced does not take over when it is back, whatever happens to the primary then.
    volume.boot(1);
    volume.crash(0, false);
    wait(&mut volume, Duration::from_secs(60));
    assert_eq!(volume.shots, []);
    assert_eq!(volume.primary(), None);
    volume.settle();
    volume.check_whole();
    check_confirmed(&volume);
}

#[test]
fn the_secondary_takes_over_only_when_it_has_fenced_the_primary() {
    let mut volume = fencing_volume(2);
    volume.write(0, 5);
    volume.settle();
    volume.crash(0, false);
    wait(&mut volume, FENCING.grace);
    assert_eq!(volume.shots, [], "it waits for longer than a primary");
    wait(&mut volume, FENCING.delay);
    assert_eq!(volume.shots, [(1, 0)]);
    assert_eq!(volume.primary(), None);
    shoot(&mut volume, (1, 0), true);
    assert_eq!(volume.primary(), Some(1));
    let reason = machine(&volume, 1).durable().role_reason;
    assert_eq!(reason, RoleReason::Fenced);
    volume.write(1, 6);
    assert_eq!(volume.confirmed.len(), 2);
    // The old primary is back and hears of nobody: it waits, it does not shoot.
    volume.boot(0);
    wait(&mut volume, Duration::from_secs(60));
    assert_eq!(volume.primary(), Some(1));
    assert!(machine(&volume, 0).waits_for_the_others());
    assert_eq!(volume.shots, []);
    volume.settle();
    assert_eq!(volume.primary(), Some(1));
    volume.check_whole();
    check_confirmed(&volume);
}

/// ONE-3: a take-over by fencing is a decision. What the primary had ordered and told nobody is
/// given up by rule; under B it was taken for a side of a split brain, and an operator had to come.
#[test]
fn what_a_fenced_primary_never_confirmed_is_given_up_by_rule_under_every_policy() {
    for protocol in [Protocol::C, Protocol::B, Protocol::A] {
        let mut volume = fencing_volume(2);
        (0..2).for_each(|node| volume.set_policy(node, protocol));
        volume.settle();
        volume.cut(0, 1);
        volume.write(0, 5);
        assert!(volume.confirmed.is_empty(), "it is suspended");
        wait(&mut volume, FENCING.grace);
        shoot(&mut volume, (0, 1), false);
        wait(&mut volume, FENCING.delay);
        shoot(&mut volume, (1, 0), true);
        assert_eq!(volume.primary(), Some(1));
        volume.write(1, 6);
        volume.boot(0);
        // Also where who took over is started again before the two meet.
        volume.crash(1, false);
        volume.boot(1);
        volume.settle();
        assert_eq!(volume.splits, [], "{protocol:?}");
        assert_eq!(volume.primary(), Some(1), "{protocol:?}");
        volume.check_whole();
        check_confirmed(&volume);
        assert_eq!(machine(&volume, 1).durable().taken_from, None);
    }
}

#[test]
fn a_replica_that_is_back_soon_or_says_that_it_goes_is_not_fenced() {
    let mut volume = fencing_volume(2);
    volume.cut(0, 1);
    volume.write(0, 5);
    volume.settle();
    assert_eq!(volume.confirmed.len(), 1, "it came back and has it");
    volume.send(1, 0, Wire::Leaving);
    assert!(volume.deliver(1, 0));
    volume.crash(1, false);
    volume.write(0, 6);
    assert_eq!(volume.confirmed.len(), 2, "nobody is waited for");
    wait(&mut volume, Duration::from_secs(60));
    assert_eq!(volume.shots, []);
    volume.settle();
    // The primary stops in order, and nobody takes over from it.
    volume.send(0, 1, Wire::Leaving);
    assert!(volume.deliver(0, 1));
    volume.crash(0, false);
    wait(&mut volume, Duration::from_secs(60));
    assert_eq!((volume.shots.len(), volume.primary()), (0, None));
    volume.settle();
    volume.check_whole();
}

/// A primary that was restarted answers nobody while the other, which never heard of that, may
/// still take over from it.
#[test]
fn a_restarted_primary_confirms_nothing_before_the_secondary_follows_it_anew() {
    let mut volume = fencing_volume(2);
    volume.crash(0, false);
    volume.boot(0);
    volume.connect(0, 1);
    assert!(
        volume.deliver(1, 0),
        "it hears of the secondary, which hears nothing"
    );
    assert_eq!(volume.primary(), Some(0));
    volume.write(0, 5);
    volume.cut(0, 1);
    assert!(volume.confirmed.is_empty() && !answers(&volume, 0));
    wait(&mut volume, FENCING.grace + FENCING.delay);
    assert!(
        volume.shots.contains(&(1, 0)),
        "the secondary may take over"
    );
    shoot(&mut volume, (1, 0), true);
    assert_eq!(volume.primary(), Some(1));
    volume.settle();
    volume.check_whole();
}

#[test]
fn an_operators_word_ends_the_wait_for_a_fencing_that_fails() {
    let mut volume = fencing_volume(2);
    volume.crash(1, false);
    volume.write(0, 5);
    wait(&mut volume, FENCING.grace);
    shoot(&mut volume, (0, 1), false);
    let suspended = machine(&volume, 0).suspended().expect("it waits");
    assert_eq!((suspended.replica, suspended.runs), (1, false));
    let primary = volume.nodes[0].machine.as_mut().unwrap();
    primary
        .take_by_force(Duration::ZERO)
        .expect("an operator says that it is down");
    volume.carry_out(0);
    assert_eq!(volume.confirmed.len(), 1);
    assert!(answers(&volume, 0));
}

#[test]
fn with_more_than_two_replicas_no_secondary_takes_over() {
    let mut volume = fencing_volume(3);
    volume.crash(0, false);
    wait(&mut volume, Duration::from_secs(60));
    assert_eq!(volume.shots, []);
    assert_eq!(volume.primary(), None);
}

/// The command is taken away while both are in sync: who still relies on it is waited for.
#[test]
fn without_the_command_nobody_is_waited_for_once_all_know() {
    let mut volume = fencing_volume(2);
    let primary = volume.nodes[0].machine.as_mut().unwrap();
    primary.set_fencing(None);
    volume.carry_out(0);
    volume.write(0, 5);
    assert!(
        volume.confirmed.is_empty(),
        "the other one does not know yet"
    );
    volume.fencing = None;
    volume.settle();
    volume.crash(1, false);
    volume.write(0, 6);
    assert_eq!(volume.confirmed.len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    /// Whatever dies, is cut off or shot: one primary, nothing confirmed is lost.
    #[test]
    fn with_fencing_there_is_one_primary_and_nothing_confirmed_is_lost(
        steps in proptest::collection::vec((step(2), 0_u8..8), 1..120),
    ) {
        let mut volume = fencing_volume(2);
        for (step, shot) in steps {
            let step = match step {
                Step::Crash(node, _) => Step::Crash(node, false),
                other => other,
            };
            one_step(&mut volume, &step);
            if let Some(next) = volume.shots.first().copied().filter(|_| shot < 3) {
                shoot(&mut volume, next, shot < 2);
            }
            let serving = (0..2).filter(|node| {
                volume.nodes[*node].machine.as_ref().is_some_and(Machine::serves)
            });
            let answering = serving.filter(|node| answers(&volume, *node)).count();
            prop_assert!(answering <= 1, "two primaries answer");
        }
        volume.settle();
        volume.check_whole();
        check_confirmed(&volume);
    }
}
