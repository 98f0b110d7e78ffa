//! Named scenarios where the pool decides about roles.

use super::schedules::check_confirmed;
use super::*;

/// A volume whose pool decides, with the primary on node 0 and everyone in sync.
pub(super) fn settled_with_pool(count: usize) -> Volume {
    let mut volume = Volume::with_pool(count);
    volume.settle();
    assert_eq!(volume.primary(), Some(0), "the first replica begins");
    volume
}

/// Lets time pass and frames arrive, for so long.
pub(super) fn pass(volume: &mut Volume, time: Duration) {
    let until = volume.now + time;
    while volume.now < until {
        volume.time(Duration::from_millis(5));
        while volume.pool_turn(true, true) {}
        let count = volume.nodes.len();
        for node in 0..count {
            volume.learn(node);
        }
        for from in 0..count {
            for to in 0..count {
                while volume.deliver(from, to) {}
            }
        }
        if volume.pool.is_some() && !volume.power {
            volume.check_answers();
        }
    }
}

#[test]
fn fo_1_a_member_takes_over_when_the_primary_dies_but_not_before_its_promise_ends() {
    let mut volume = settled_with_pool(3);
    volume.write(0, 1);
    pass(&mut volume, LEASE);
    let died = volume.now;
    volume.crash(0, false);
    while volume.primary().is_none() {
        assert!(volume.now < died + 2 * LEASE, "nobody takes over");
        pass(&mut volume, Duration::from_millis(5));
    }
    assert!(volume.now >= died + LEASE - Duration::from_millis(10));
    check_confirmed(&volume);
    let primary = volume.primary().unwrap();
    let reason = volume.nodes[primary].live.state.role_reason;
    assert_eq!(reason, RoleReason::TookOver);
    volume.write(primary, 2);
    volume.settle();
    volume.check_whole();
    assert_eq!(
        volume.primary(),
        Some(primary),
        "no failback by itself (FO-4)"
    );
}

#[test]
fn one_1_a_primary_that_is_cut_off_stops_answering_before_another_begins() {
    let mut volume = settled_with_pool(3);
    for other in [1, 2] {
        volume.mute.insert((0, other));
        volume.mute.insert((other, 0));
    }
    volume.pool.as_mut().unwrap().cut_off[0] = true;
    pass(&mut volume, Duration::from_millis(300));
    let primary = volume.nodes[1..]
        .iter()
        .position(|node| node.machine.as_ref().unwrap().serves());
    assert!(primary.is_some(), "a member took over");
    let old = volume.nodes[0].machine.as_ref().unwrap();
    assert!(!old.may_answer(volume.clock(0)));
    // It confirms nothing either.
    let before = volume.confirmed.len();
    volume.write(0, 5);
    pass(&mut volume, Duration::from_millis(300));
    assert_eq!(volume.confirmed.len(), before);
    volume.settle();
    volume.check_whole();
}

/// A primary without clients asks for no promises; it answers nobody until it has them again, and
/// its silence is taken for its end only later.
#[test]
fn a_quiet_primary_may_be_silent_longer_and_answers_only_with_promises() {
    let may_answer = |volume: &Volume| {
        let machine = volume.nodes[0].machine.as_ref().unwrap();
        (machine.serves(), machine.may_answer(volume.clock(0)))
    };
    let mut volume = settled_with_pool(3);
    volume.quiet = true;
    pass(&mut volume, 4 * LEASE);
    assert_eq!(may_answer(&volume), (true, false));
    volume.quiet = false;
    pass(&mut volume, Duration::from_millis(10));
    assert_eq!(may_answer(&volume), (true, true));
    volume.quiet = true;
    pass(&mut volume, 4 * LEASE);
    for other in [1, 2] {
        volume.mute.insert((0, other));
        volume.mute.insert((other, 0));
    }
    volume.pool.as_mut().unwrap().cut_off[0] = true;
    let others_serve = |volume: &Volume| {
        let machines = volume.nodes[1..].iter().map(|node| node.machine.as_ref());
        machines.flatten().any(Machine::serves)
    };
    pass(&mut volume, Duration::from_millis(250));
    assert!(!others_serve(&volume), "nobody waits for another primary");
    pass(&mut volume, Duration::from_millis(250));
    assert!(others_serve(&volume), "a member took over");
    volume.settle();
    volume.check_whole();
}

#[test]
fn fo_5_a_silent_secondary_leaves_the_set_and_the_primary_goes_on() {
    let mut volume = settled_with_pool(2);
    volume.mute.insert((0, 1));
    volume.mute.insert((1, 0));
    volume.pool.as_mut().unwrap().cut_off[1] = true;
    pass(&mut volume, LEASE * 2);
    let primary = |volume: &Volume| {
        let machine = volume.nodes[0].machine.as_ref().unwrap();
        (machine.serves(), machine.may_answer(volume.clock(0)))
    };
    assert_eq!(primary(&volume), (true, false), "its lease has run out");
    volume.write(0, 3);
    let before = volume.confirmed.len();
    pass(&mut volume, Duration::from_millis(400));
    assert_eq!(primary(&volume), (true, true));
    assert_eq!(volume.confirmed.len(), before + 1, "it goes on alone");
    volume.settle();
    volume.check_whole();
}

/// A secondary was cut off from everybody for a moment, asked for the role and heard nothing. Then
/// it follows again, though it cannot reach the pool, and may promise nothing while its claim may
/// come true: nothing moved the agreement on, and nobody was answered any more.
#[test]
fn fo_5_a_member_that_can_promise_nothing_leaves_the_set() {
    let mut volume = settled_with_pool(3);
    volume.lively = true;
    pass(&mut volume, LEASE);
    let cut = [(0, 1), (1, 0), (1, 2), (2, 1)];
    volume.mute.extend(cut);
    volume.pool.as_mut().unwrap().cut_off[1] = true;
    pass(&mut volume, Duration::from_millis(180));
    let primary = volume.nodes[0].machine.as_ref().unwrap();
    let before = primary.agreed().unwrap();
    assert!(before.in_sync.has(1) && !primary.may_answer(volume.clock(0)));
    volume.mute.clear();
    pass(&mut volume, Duration::from_millis(600));
    let primary = volume.nodes[0].machine.as_ref().unwrap();
    assert!(primary.serves() && primary.may_answer(volume.clock(0)));
    volume.settle();
    volume.check_whole();
}

#[test]
fn a_claim_that_nobody_answered_lets_no_old_primary_answer_again() {
    let mut volume = settled_with_pool(2);
    // Node 1 loses its primary, asks for the role, and hears nothing: it was agreed.
    volume.cut(0, 1);
    volume.pool.as_mut().unwrap().cut_off[0] = true;
    while volume.pool.as_ref().unwrap().asked.is_empty() {
        volume.time(Duration::from_millis(5));
        volume.check_answers();
    }
    let asked = volume.pool.as_ref().unwrap().asked.front().copied();
    assert_eq!(
        asked.map(|(node, ..)| node),
        Some(0),
        "first it asks to go on alone"
    );
    while !volume
        .pool
        .as_ref()
        .unwrap()
        .asked
        .iter()
        .any(|(node, ..)| *node == 1)
    {
        // What node 0 asks is decided, what node 1 asks is not yet.
        while volume
            .pool
            .as_ref()
            .unwrap()
            .asked
            .front()
            .is_some_and(|(node, ..)| *node == 0)
        {
            volume.pool_turn(true, true);
        }
        volume.time(Duration::from_millis(5));
        volume.check_answers();
    }
    volume.pool_turn(true, false);
    volume.connect(0, 1);
    for _ in 0..100 {
        volume.time(Duration::from_millis(5));
        while volume.deliver(0, 1) || volume.deliver(1, 0) {}
        volume.check_answers();
        let old = volume.nodes[0].machine.as_ref().unwrap();
        assert!(
            !old.may_answer(volume.clock(0)),
            "answers although another may begin"
        );
    }
    volume.settle();
    volume.check_whole();
    assert_eq!(volume.primary(), Some(1));
}

#[test]
fn a_planned_promotion_by_the_pool_moves_the_role_and_keeps_everyone() {
    let mut volume = settled_with_pool(3);
    volume.write(0, 1);
    volume.nodes[0]
        .machine
        .as_mut()
        .unwrap()
        .hand_over(2)
        .expect("it is in sync");
    volume.carry_out(0);
    volume.settle();
    assert_eq!((volume.primary(), volume.handed_over), (Some(2), 1));
    assert_eq!(volume.nodes[2].live.state.role_reason, RoleReason::Promoted);
    volume.check_whole();
    check_confirmed(&volume);
}

#[test]
fn who_dies_during_a_promotion_by_the_pool_is_waited_for_no_more() {
    let mut volume = settled_with_pool(3);
    super::scenarios::hand_over_while_one_dies(&mut volume);
    for _ in 0..20 {
        pass(&mut volume, LEASE);
        volume.sync(0);
        volume.sync(1);
    }
    assert_eq!((volume.primary(), volume.handed_over), (Some(1), 1));
    volume.settle();
    volume.check_whole();
    check_confirmed(&volume);
}

/// BAD-1: what one replica tells another of the pool's agreement is about the two of them, or it is
/// forged.
#[test]
fn bad_1_an_agreement_about_somebody_else_or_from_nowhere_is_not_taken_from_a_replica() {
    let mut volume = settled_with_pool(3);
    let now = volume.clock(1);
    let machine = volume.nodes[1].machine.as_mut().unwrap();
    let before = machine.agreed().unwrap();
    let next = Agreed {
        version: before.version + 1,
        term: Term(before.term.0 + 1),
        primary: 1,
        in_sync: before.in_sync,
    };
    let forged = [
        Agreed {
            primary: 99,
            ..next
        },
        Agreed { primary: 2, ..next },
        Agreed {
            in_sync: Mask::of(0),
            ..next
        },
        Agreed {
            term: before.term,
            ..next
        },
        Agreed {
            term: Term(1 << 40),
            ..next
        },
    ];
    for agreed in forged {
        let taken = machine.handed_over(now, 0, agreed.term, Some(agreed));
        assert_eq!(taken, Err(Refusal::OutOfPlace), "{agreed:?}");
        machine.tick(now);
        assert_eq!(machine.agreed(), Some(before), "{agreed:?}");
    }
    assert_eq!(machine.handed_over(now, 0, next.term, Some(next)), Ok(()));
}

/// FO-1: the primary hesitated, a member asked for the role, nobody answered that, and the primary
/// went on: it got no promise any more, and answered nothing, until the set changed by chance.
#[test]
fn a_claim_that_nobody_answered_is_taken_back_when_the_primary_is_there_after_all() {
    for happens in [false, true] {
        let mut volume = settled_with_pool(3);
        pass(&mut volume, Duration::from_secs(1));
        let primary = volume.primary().expect("one serves");
        let member = (primary + 1) % 3;
        // When no promise holds any more.
        let later = volume.clock(member) + Duration::from_secs(60);
        let machine = volume.nodes[member].machine.as_mut().unwrap();
        machine.claim(later, RoleReason::TookOver);
        volume.carry_out(member);
        assert!(volume.pool_turn(happens, false), "it asked");
        // It is heard of all the time, so nobody drops it.
        for _ in 0..200 {
            volume.send(member, primary, Wire::Heartbeat);
            pass(&mut volume, Duration::from_millis(5));
        }
        let serving = volume.primary().expect("one serves");
        assert_eq!(serving == primary, !happens);
        let machine = volume.nodes[serving].machine.as_ref().unwrap();
        assert!(machine.may_answer(volume.clock(serving)), "{happens}");
    }
}
