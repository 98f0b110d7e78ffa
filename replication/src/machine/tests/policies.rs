//! The ack policies A, B and C: what is confirmed when, and what a take-over may cost.

use super::pool::pass;
use super::schedules::check_confirmed;
use super::*;

/// Everyone in sync, on node 0, by this policy as all of them know.
fn settled(mut volume: Volume, protocol: Protocol) -> Volume {
    for node in 0..volume.nodes.len() {
        volume.set_policy(node, protocol);
    }
    volume.settle();
    assert_eq!(volume.primary(), Some(0));
    let machine = volume.nodes[0].machine.as_ref().unwrap();
    assert_eq!(machine.protocol_in_force(), protocol);
    volume
}

fn pool_of(count: usize, bug: Option<Bug>) -> Volume {
    Volume::made(count, Some(Volume::toy_pool(count)), bug)
}

fn machine(volume: &Volume, node: usize) -> &Machine {
    volume.nodes[node].machine.as_ref().unwrap()
}

/// Whether the scenario fails with this mistake in every machine.
fn is_found(scenario: fn(Option<Bug>), bug: Bug) -> bool {
    std::panic::catch_unwind(|| scenario(Some(bug))).is_err()
}

/// DUR-1, DUR-2: the table of the policies, write and fsync.
#[test]
fn a_confirms_at_once_b_when_it_was_received_and_c_when_it_was_applied() {
    for (protocol, sent, received, applied) in [
        (Protocol::A, 1, 1, 1),
        (Protocol::B, 0, 1, 1),
        (Protocol::C, 0, 0, 1),
    ] {
        let mut volume = settled(Volume::new(2), protocol);
        volume.nodes[1].holds = true;
        volume.write(0, 7);
        assert_eq!(volume.confirmed.len(), sent, "{protocol:?}");
        volume.deliver(0, 1);
        while volume.deliver(1, 0) {}
        assert_eq!(volume.confirmed.len(), received, "{protocol:?}");
        volume.apply_held(1, 1);
        while volume.deliver(1, 0) {}
        assert_eq!(volume.confirmed.len(), applied, "{protocol:?}");
        // The secondary's disk matters to C alone.
        volume.nodes[1].holds = false;
        volume.sync(0);
        let at_once = usize::from(protocol != Protocol::C);
        assert_eq!(volume.synced.len(), at_once, "{protocol:?}");
        while volume.deliver(0, 1) || volume.deliver(1, 0) {}
        assert_eq!(volume.synced.len(), 1, "{protocol:?}");
        volume.settle();
        volume.check_whole();
    }
}

/// DUR-2: an fsync under B waits until what was written before is in the other's memory.
#[test]
fn under_b_an_fsync_waits_for_receipt_and_not_for_the_other_disk() {
    let mut volume = settled(Volume::new(2), Protocol::B);
    volume.nodes[1].holds = true;
    volume.write(0, 7);
    let machine = volume.nodes[0].machine.as_mut().unwrap();
    let flush = machine.begin_flush().expect("it serves");
    volume.nodes[0].syncs.insert(flush, Vec::new());
    volume.volume_flush(0, flush);
    volume.carry_out(0);
    assert!(volume.nodes[0].syncs.contains_key(&flush), "too early");
    volume.deliver(0, 1);
    while volume.deliver(1, 0) {}
    assert!(volume.nodes[0].syncs.is_empty(), "it was received");
    assert!(volume.nodes[1].machine.as_ref().unwrap().has_received());
}

/// A policy counts for a member only once that knows of it.
fn a_member_that_does_not_know_gives_the_evidence_of_c(bug: Option<Bug>) {
    let mut volume = settled(pool_of(2, bug), Protocol::C);
    pass(&mut volume, LEASE);
    volume.set_policy(0, Protocol::A);
    volume.write(0, 1);
    assert_eq!(volume.confirmed.len(), 0, "the other still believes in C");
    while volume.deliver(0, 1) || volume.deliver(1, 0) {}
    volume.write(0, 2);
    assert_eq!(volume.confirmed.len(), 2, "it knows now");
}

#[test]
fn a_looser_policy_counts_once_the_member_knows_of_it() {
    a_member_that_does_not_know_gives_the_evidence_of_c(None);
    assert!(is_found(
        a_member_that_does_not_know_gives_the_evidence_of_c,
        Bug::LoosensUnknown
    ));
}

/// From A to C: in force when everything of before is applied and stable at the members.
fn c_is_in_force_when_all_of_before_satisfies_it(bug: Option<Bug>) {
    let mut volume = settled(Volume::made(2, None, bug), Protocol::A);
    volume.write(0, 1);
    volume.set_policy(0, Protocol::C);
    assert_eq!(machine(&volume, 0).protocol_in_force(), Protocol::A);
    volume.write(0, 2);
    assert_eq!(volume.confirmed.len(), 1, "new records ask for C at once");
    volume.deliver(0, 1);
    volume.deliver(1, 0);
    assert_eq!(
        machine(&volume, 0).protocol_in_force(),
        Protocol::A,
        "applied, and not stable there"
    );
    while volume.deliver(0, 1) || volume.deliver(1, 0) {}
    assert_eq!(machine(&volume, 0).protocol_in_force(), Protocol::C);
    assert_eq!(machine(&volume, 1).protocol_in_force(), Protocol::C);
    assert_eq!(volume.confirmed.len(), 2);
}

#[test]
fn a_stricter_policy_is_in_force_when_nothing_looser_is_left() {
    c_is_in_force_when_all_of_before_satisfies_it(None);
    assert!(is_found(
        c_is_in_force_when_all_of_before_satisfies_it,
        Bug::TightensEarly
    ));
}

/// Both processes die while the secondary has in memory only what B confirmed; it is back first.
fn a_restarted_member_waits_for_the_last_primary(bug: Option<Bug>) {
    let mut volume = settled(pool_of(2, bug), Protocol::B);
    pass(&mut volume, LEASE);
    volume.nodes[1].holds = true;
    volume.write(0, 7);
    while volume.deliver(0, 1) || volume.deliver(1, 0) {}
    assert_eq!(volume.confirmed.len(), 1);
    volume.crash(0, false);
    volume.crash(1, false);
    volume.boot(1);
    pass(&mut volume, WAIT * 5);
    assert_eq!(volume.primary(), None, "it lacks what was confirmed");
    volume.settle();
    volume.check_whole();
    check_confirmed(&volume);
}

#[test]
fn a_member_that_started_again_is_promoted_only_when_all_have_reported() {
    a_restarted_member_waits_for_the_last_primary(None);
    assert!(is_found(
        a_restarted_member_waits_for_the_last_primary,
        Bug::ClaimsUnreported
    ));
    // Under C everything that was confirmed is applied here: no need to wait.
    let mut volume = settled(pool_of(2, None), Protocol::C);
    volume.write(0, 7);
    volume.settle();
    volume.crash(0, false);
    volume.crash(1, false);
    volume.boot(1);
    pass(&mut volume, WAIT * 5);
    assert_eq!(volume.primary(), Some(1));
    check_confirmed(&volume);
}

/// An operator may decide not to wait; what is lost is told.
#[test]
fn an_operator_ends_the_wait_for_the_last_primary_and_the_loss_is_told() {
    let mut volume = settled(pool_of(2, None), Protocol::B);
    pass(&mut volume, LEASE);
    volume.nodes[1].holds = true;
    volume.write(0, 7);
    while volume.deliver(0, 1) || volume.deliver(1, 0) {}
    let (term, seen) = {
        let record = volume.confirmed.last().unwrap();
        (record.term, record.sequence)
    };
    volume.crash(0, false);
    volume.crash(1, false);
    volume.boot(1);
    pass(&mut volume, WAIT * 2);
    let now = volume.clock(1);
    let left = volume.nodes[1].machine.as_mut().unwrap();
    left.take_by_force(now).expect("it is a member");
    volume.carry_out(1);
    pass(&mut volume, WAIT);
    assert_eq!(volume.primary(), Some(1));
    assert_eq!(machine(&volume, 1).lost_since(term, seen), 1);
    assert_eq!(
        machine(&volume, 1).durable().role_reason,
        RoleReason::Forced
    );
    volume.settle();
    volume.check_whole();
}

/// FO-5, DUR-2: the writer goes on past the bound, the replica is left behind and catches up.
#[test]
fn under_a_a_replica_beyond_the_bound_of_its_queue_is_left_behind_and_catches_up() {
    let mut volume = settled(Volume::new(2), Protocol::A);
    for key in 0..4 {
        volume.write(0, key);
    }
    assert_eq!(machine(&volume, 0).lag(1).map(|lag| lag.bytes), Some(4));
    assert_eq!(machine(&volume, 0).standing(1), Some(Standing::InSync));
    for key in 4..10 {
        volume.write(0, key);
    }
    assert_eq!(machine(&volume, 0).standing(1), None, "left behind");
    assert_eq!(machine(&volume, 0).durable().in_sync, Mask::of(0));
    assert_eq!(volume.confirmed.len(), 10);
    let lag = machine(&volume, 0).lag(1).unwrap();
    assert_eq!((lag.bytes, lag.since.is_some()), (10, true));
    volume.settle();
    volume.check_whole();
    assert_eq!(machine(&volume, 0).lag(1), Some(Lag::default()));
}

/// DUR-2: where the pool cannot agree to leave it behind, no more than the queue is confirmed.
fn no_more_than_the_queue_is_confirmed(bug: Option<Bug>) {
    let mut volume = settled(pool_of(2, bug), Protocol::A);
    pass(&mut volume, LEASE);
    volume.pool.as_mut().unwrap().cut_off[0] = true;
    for key in 0..10 {
        volume.write(0, key);
    }
    assert_eq!(volume.confirmed.len() as u64, QUEUE_MAX);
}

#[test]
fn under_a_no_more_than_the_queue_is_confirmed_before_a_replica_is_out() {
    no_more_than_the_queue_is_confirmed(None);
    assert!(is_found(
        no_more_than_the_queue_is_confirmed,
        Bug::IgnoresTheBound
    ));
}

/// DUR-2: at most the queue is lost, and how much is told to who presents what it was confirmed.
#[test]
fn a_takeover_under_a_tells_what_was_lost() {
    let mut volume = settled(pool_of(3, None), Protocol::A);
    volume.write(0, 1);
    pass(&mut volume, LEASE);
    for key in 0..3 {
        volume.write(0, key);
    }
    assert_eq!(volume.confirmed.len(), 4);
    let seen = volume.confirmed.last().unwrap().clone();
    volume.crash(0, false);
    pass(&mut volume, LEASE * 4);
    let primary = volume.primary().expect("a member takes over");
    assert_eq!(volume.given_up, 3);
    let machine = machine(&volume, primary);
    assert_eq!(machine.lost_since(seen.term, seen.sequence), 3);
    assert_eq!(
        machine.lost_since(seen.term, Sequence(seen.sequence.0 - 3)),
        0
    );
    // The old primary's tail is given up by rule.
    volume.settle();
    volume.check_whole();
}

/// DUR-2: a planned promotion loses nothing under any policy.
#[test]
fn a_planned_promotion_works_the_queue_off_first() {
    for protocol in [Protocol::A, Protocol::B] {
        for pool in [false, true] {
            let volume = if pool {
                pool_of(2, None)
            } else {
                Volume::new(2)
            };
            let mut volume = settled(volume, protocol);
            pass(&mut volume, LEASE);
            volume.nodes[1].holds = true;
            for key in 0..3 {
                volume.write(0, key);
            }
            let machine = volume.nodes[0].machine.as_mut().unwrap();
            machine.hand_over(1).expect("it is in sync");
            volume.carry_out(0);
            while volume.deliver(0, 1) || volume.deliver(1, 0) {}
            assert_eq!(volume.handed_over, 0, "received is not enough");
            volume.settle();
            assert_eq!((volume.primary(), volume.handed_over), (Some(1), 1));
            assert_eq!((volume.given_up, volume.confirmed.len()), (0, 3));
            volume.check_whole();
            check_confirmed(&volume);
        }
    }
}

/// ONE-3: without a pool, what A confirmed alone is not given up by a rule.
#[test]
fn a_forced_takeover_under_a_is_a_split_brain_when_the_old_primary_confirmed_more() {
    for (protocol, split) in [(Protocol::A, true), (Protocol::C, false)] {
        let mut volume = settled(Volume::new(2), protocol);
        volume.write(0, 1);
        volume.crash(0, false);
        let left = volume.nodes[1].machine.as_mut().unwrap();
        left.take_by_force(Duration::ZERO).expect("alone");
        volume.carry_out(1);
        volume.write(1, 2);
        volume.boot(0);
        volume.connect(0, 1);
        while volume.deliver(0, 1) || volume.deliver(1, 0) {}
        let refused = Some(Standing::Refused(Rule::BothWentOn));
        assert_eq!(machine(&volume, 1).standing(0) == refused, split);
    }
}

/// DUR-1: what fsync confirmed under B is on the old primary's disk alone; nobody is answered by
/// the new one before it is on its own.
#[test]
fn after_a_loose_policy_nothing_is_answered_before_what_was_taken_over_is_stable() {
    for (protocol, settles) in [(Protocol::B, true), (Protocol::C, false)] {
        let volume = settled(Volume::new(2), Protocol::C);
        let config = machine(&volume, 0).config.clone();
        let mut state = volume.nodes[0].live.state.clone();
        state.in_sync = Mask::of(0);
        state.policy.protocol = protocol;
        let mut machine = Machine::new(config, state, Sequence(0), 0);
        machine.start(Duration::ZERO);
        while let Some(output) = machine.poll() {
            if let Output::Decide(state) = output {
                machine.decided(Duration::ZERO, *state);
            }
        }
        assert!(machine.serves());
        assert_eq!(machine.may_answer(Duration::ZERO), !settles);
        let (sequence, ..) = machine.order(Duration::ZERO, 1).expect("it serves");
        machine.local_applied(sequence);
        assert_eq!(machine.confirmed() == sequence, !settles);
        let flush = machine.own_flush();
        assert_eq!(flush.is_some(), settles);
        if let Some(flush) = flush {
            machine.flushed(Duration::ZERO, 0, flush);
        }
        assert!(machine.may_answer(Duration::ZERO) && machine.confirmed() == sequence);
    }
}

/// FO-5: under A being slow is no reason to leave, being silent is.
#[test]
fn under_a_a_slow_member_stays_and_a_silent_one_leaves() {
    for heard in [true, false] {
        let mut volume = settled(Volume::new(2), Protocol::A);
        volume.write(0, 1);
        for _ in 0..12 {
            volume.now += Duration::from_secs(1);
            let now = volume.clock(0);
            let machine = volume.nodes[0].machine.as_mut().unwrap();
            if heard {
                machine.heard(now, 1);
            }
            machine.tick(now);
            volume.carry_out(0);
        }
        let set = machine(&volume, 0).durable().in_sync;
        assert_eq!(set == Mask::first(2), heard);
        let lag = machine(&volume, 0).lag(1).unwrap();
        let since = lag.since.unwrap();
        assert!(
            volume.clock(0) - since >= Duration::from_secs(10),
            "its age"
        );
    }
}
