//! Named scenarios where the bricks decide about roles.

use super::*;

#[test]
fn a_new_volume_comes_up_with_everyone_in_sync_and_confirms_when_all_have_applied() {
    let mut volume = Volume::new(3);
    volume.settle();
    let before = volume.confirmed.len();
    volume.write(0, 7);
    assert_eq!(
        volume.confirmed.len(),
        before,
        "confirmed before the replicas applied it"
    );
    volume.settle();
    assert_eq!(volume.confirmed.len(), before + 1);
    volume.check_whole();
}

#[test]
fn a_secondary_that_dies_is_left_behind_and_comes_back_by_the_cheaper_way() {
    for (writes, rule) in [(1, Rule::JournalTail), (50, Rule::DirtyMap)] {
        let mut volume = Volume::new(2);
        volume.settle();
        volume.crash(1, true);
        for i in 0..writes {
            volume.write(0, i % 3);
        }
        assert_eq!(
            volume.confirmed.len(),
            usize::from(writes),
            "the survivor goes on alone"
        );
        volume.boot(1);
        volume.connect(0, 1);
        let mut seen = None;
        while volume.deliver(0, 1) || volume.deliver(1, 0) {
            let machine = volume.nodes[0].machine.as_ref().unwrap();
            if let Some(Standing::Sourcing(rule) | Standing::Catching { rule, .. }) =
                machine.standing(1)
            {
                seen = Some(rule);
            }
        }
        assert_eq!(seen, Some(rule));
        volume.settle();
        volume.check_whole();
    }
}

#[test]
fn a_primary_that_lost_its_tail_fetches_it_from_the_secondary() {
    let mut volume = Volume::new(2);
    volume.settle();
    for key in 0..5 {
        volume.write(0, key);
    }
    volume.settle();
    let confirmed = volume.confirmed.clone();
    // Nothing was flushed since: the primary forgets, the secondary does not.
    volume.crash(0, true);
    volume.settle();
    volume.check_whole();
    for record in confirmed {
        assert_eq!(
            volume.nodes[0].live.keys.get(&record.key),
            Some(&record.value)
        );
    }
}

/// RS-2: what the dead primary told to be stable on both sides is not sent to it again, although
/// it has records that the other never got.
#[test]
fn who_takes_over_owes_a_dead_primary_nothing_that_was_stable_on_both_sides() {
    let mut volume = Volume::new(2);
    volume.settle();
    for key in 0..5 {
        volume.write(0, key);
    }
    while volume.deliver(0, 1) | volume.deliver(1, 0) {}
    volume.flush(0);
    volume.flush(1);
    volume.deliver(1, 0);
    volume.time(Duration::from_millis(1));
    volume.write(0, 5);
    while volume.deliver(0, 1) | volume.deliver(1, 0) {}
    volume.write(0, 6);
    volume.crash(0, false);
    let machine = volume.nodes[1].machine.as_mut().unwrap();
    machine.take_by_force(volume.now).expect("it is whole");
    volume.carry_out(1);
    assert_eq!(volume.nodes[1].live.dirty[0], BTreeSet::from([5]));
    volume.write(1, 3);
    volume.boot(0);
    volume.connect(0, 1);
    let mut seen = None;
    while volume.deliver(0, 1) | volume.deliver(1, 0) {
        let machine = volume.nodes[1].machine.as_ref().unwrap();
        if let Some(Standing::Sourcing(rule)) = machine.standing(0) {
            seen = Some(rule);
        }
    }
    assert_eq!(seen, Some(Rule::StaleTail));
    volume.settle();
    volume.check_whole();
}

#[test]
fn a_planned_promotion_loses_nothing_and_moves_the_role() {
    let mut volume = Volume::new(3);
    volume.settle();
    volume.write(0, 1);
    volume.nodes[0]
        .machine
        .as_mut()
        .unwrap()
        .hand_over(1)
        .expect("it is in sync");
    volume.write(0, 2);
    assert!(
        volume.ordered[0].iter().all(|r| r.key != 2),
        "ordered during a hand-over"
    );
    volume.settle();
    assert_eq!((volume.primary(), volume.handed_over), (Some(1), 1));
    assert_eq!(
        volume.nodes[1].live.keys.get(&1),
        volume.nodes[0].live.keys.get(&1)
    );
    volume.check_whole();
}

#[test]
fn a_resync_that_is_cut_off_goes_on_where_it_stopped() {
    let mut volume = Volume::new(2);
    volume.settle();
    volume.crash(1, true);
    for i in 0..60 {
        volume.write(0, i % 6);
    }
    volume.boot(1);
    volume.connect(0, 1);
    while volume.nodes[1].live.state.disk != Disk::Inconsistent {
        assert!(
            volume.deliver(1, 0) | volume.deliver(0, 1),
            "the resync begins"
        );
    }
    volume.crash(1, true);
    volume.write(0, 9);
    volume.settle();
    volume.check_whole();
}

/// The simulation found it: a primary began to resync a replica, passed its role on, and got it
/// back while the other primary was in the middle of resyncing the same replica. It took that for
/// its own resync, and never sent what only the other's map had: what the replica itself had
/// written in a tail that was given up.
#[test]
fn a_resync_that_another_primary_went_on_with_is_not_taken_for_ones_own() {
    let mut volume = Volume::new(3);
    volume.settle();
    volume.crash(2, true);
    for i in 0..60 {
        volume.write(0, i % 6);
    }
    while volume.deliver(0, 1) || volume.deliver(1, 0) {}
    volume.boot(2);
    for primary in [0, 1] {
        assert_eq!(volume.primary(), Some(primary));
        volume.connect(primary, 2);
        let sourcing = |volume: &Volume| {
            let machine = volume.nodes[primary].machine.as_ref().unwrap();
            matches!(machine.standing(2), Some(Standing::Sourcing(_)))
                && volume.nodes[2].live.state.disk == Disk::Inconsistent
                && volume.nodes[2].live.state.term == volume.nodes[primary].live.state.term
        };
        while !sourcing(&volume) {
            assert!(
                volume.deliver(2, primary) || volume.deliver(primary, 2),
                "the resync begins"
            );
        }
        volume.cut(primary, 2);
        let machine = volume.nodes[primary].machine.as_mut().unwrap();
        machine.hand_over(1 - primary).expect("it is in sync");
        volume.carry_out(primary);
        for _ in 0..20 {
            while volume.deliver(0, 1) || volume.deliver(1, 0) {}
            volume.sync(0);
            volume.sync(1);
        }
    }
    assert_eq!(volume.primary(), Some(0));
    volume.connect(0, 2);
    let mut seen = None;
    while seen.is_none() && (volume.deliver(2, 0) || volume.deliver(0, 2)) {
        let machine = volume.nodes[0].machine.as_ref().unwrap();
        if let Some(Standing::Sourcing(rule)) = machine.standing(2) {
            seen = Some(rule);
        }
    }
    assert_eq!(seen, Some(Rule::ForeignResync));
    volume.settle();
    volume.check_whole();
}

/// RS-1: the marks stand until the replica says that it has begun.
#[test]
fn a_resync_whose_first_word_is_lost_begins_again_with_all_its_marks() {
    let mut volume = Volume::new(2);
    volume.settle();
    volume.crash(1, true);
    for i in 0..60 {
        volume.write(0, i % 6);
    }
    let covered = volume.nodes[0].live.state.since[1];
    volume.boot(1);
    volume.connect(0, 1);
    let sourcing = |volume: &Volume| {
        let machine = volume.nodes[0].machine.as_ref().unwrap();
        matches!(machine.standing(1), Some(Standing::Sourcing(_)))
    };
    while !sourcing(&volume) {
        assert!(volume.deliver(1, 0) || volume.deliver(0, 1), "they meet");
    }
    volume.cut(0, 1);
    assert_eq!(volume.nodes[0].live.state.since[1], covered);
    assert_eq!(volume.nodes[0].live.dirty[1].len(), 6);
    volume.settle();
    volume.check_whole();
}

/// ONE-2, ONE-3: two nodes, the primary dies, an operator forces the other; what came back alone
/// is a split brain only if it had confirmed something alone.
#[test]
fn a_forced_takeover_overwrites_nothing_that_the_old_primary_confirmed_alone() {
    for alone in [false, true] {
        let mut volume = Volume::new(2);
        volume.settle();
        volume.write(0, 1);
        while volume.deliver(0, 1) || volume.deliver(1, 0) {}
        volume.write(0, 2);
        if alone {
            // The primary sees the other go, and goes on by itself; then it is cut off as well.
            volume.crash(1, false);
            volume.write(0, 3);
            volume.crash(0, false);
            volume.boot(1);
        } else {
            volume.crash(0, false);
        }
        let secondary = volume.nodes[1].machine.as_mut().unwrap();
        secondary
            .take_by_force(Duration::ZERO)
            .expect("the primary is gone");
        volume.carry_out(1);
        volume.write(1, 4);
        assert_eq!(volume.primary(), Some(1));
        volume.boot(0);
        if !alone {
            volume.settle();
            volume.check_whole();
            continue;
        }
        volume.connect(0, 1);
        while volume.deliver(0, 1) || volume.deliver(1, 0) {}
        let refused = Some(Standing::Refused(Rule::BothWentOn));
        assert_eq!(
            volume.nodes[1].machine.as_ref().unwrap().standing(0),
            refused
        );
        assert_eq!(volume.nodes[0].live.keys.get(&3), Some(&3), "kept");
        // Met again, it still is not overwritten.
        volume.cut(0, 1);
        volume.connect(0, 1);
        while volume.deliver(0, 1) || volume.deliver(1, 0) {}
        assert_eq!(
            volume.nodes[1].machine.as_ref().unwrap().standing(0),
            refused
        );
        // The operator keeps the first side after all.
        let kept = volume.nodes[0].machine.as_mut().unwrap();
        kept.keep_this_side().expect("whole");
        volume.carry_out(0);
        volume.settle();
        volume.check_whole();
        assert_eq!(volume.primary(), Some(0));
        assert_eq!(volume.nodes[1].live.keys.get(&3), Some(&3));
        assert_eq!(volume.nodes[1].live.keys.get(&4), None);
    }
}

/// FO-5: a disk that hangs in a sync, while the process goes on answering.
#[test]
fn a_replica_that_does_not_end_a_flush_leaves_the_set() {
    let mut volume = Volume::new(2);
    volume.settle();
    let machine = volume.nodes[0].machine.as_mut().unwrap();
    let flush = machine.begin_flush().expect("it serves");
    machine.flushed(Duration::ZERO, 0, flush);
    for _ in 0..12 {
        volume.now += Duration::from_secs(1);
        let now = volume.clock(0);
        let machine = volume.nodes[0].machine.as_mut().unwrap();
        machine.heard(now, 1);
        machine.tick(now);
        volume.carry_out(0);
    }
    let machine = volume.nodes[0].machine.as_ref().unwrap();
    assert_eq!(machine.durable().in_sync, Mask::of(0));
    assert_eq!(
        machine.flush_waits_for(flush),
        Mask::default(),
        "it is done"
    );
}

/// DUR-1: below `min-in-sync` writes wait, and go on when enough are back.
#[test]
fn below_the_least_number_in_sync_nothing_is_confirmed() {
    let mut volume = Volume::new(2);
    volume.settle();
    let primary = |volume: &mut Volume, min| {
        volume.nodes[0]
            .machine
            .as_mut()
            .unwrap()
            .set_min_in_sync(min);
        volume.carry_out(0);
    };
    primary(&mut volume, 2);
    volume.crash(1, false);
    volume.write(0, 1);
    assert!(volume.confirmed.is_empty());
    assert!(volume.nodes[0].machine.as_ref().unwrap().lacks_replicas());
    volume.settle();
    assert_eq!(volume.confirmed.len(), 1, "the other is back");
    volume.crash(1, false);
    volume.write(0, 2);
    primary(&mut volume, 1);
    assert_eq!(volume.confirmed.len(), 2, "the operator asks for less");
}

/// DUR-2: what a replica has not applied yet, it neither acknowledges nor claims to have.
#[test]
fn a_record_counts_only_once_it_is_applied() {
    let mut volume = Volume::new(2);
    volume.settle();
    let machine = volume.nodes[1].machine.as_mut().unwrap();
    let term = machine.durable().term;
    let next = machine.last().next();
    machine.received(0, next, term).expect("it is the next");
    assert!(machine.last() < next && machine.report().last < next);
    machine.followed(next);
    assert_eq!(machine.last(), next);
}

/// Nobody looked at it again: it was connected, and got nothing.
#[test]
fn who_is_met_during_a_hand_over_that_comes_to_nothing_is_taken_on() {
    let mut volume = Volume::new(3);
    volume.settle();
    volume.crash(2, false);
    // Node 1 does not hear of it, so the role cannot go there yet.
    volume.write(0, 1);
    let primary = volume.nodes[0].machine.as_mut().unwrap();
    primary.hand_over(1).expect("it is in sync");
    volume.carry_out(0);
    volume.boot(2);
    volume.connect(0, 2);
    while volume.deliver(0, 2) || volume.deliver(2, 0) {}
    let standing = |volume: &Volume| volume.nodes[0].machine.as_ref().unwrap().standing(2);
    assert_eq!(standing(&volume), Some(Standing::Met));
    volume.cut(0, 1);
    while volume.deliver(0, 2) || volume.deliver(2, 0) {}
    assert_eq!(standing(&volume), Some(Standing::InSync));
}

/// Its disk was waited for, for ever: no operation was ordered any more, and the role stayed.
#[test]
fn who_dies_during_a_hand_over_is_waited_for_no_more() {
    let mut volume = Volume::new(3);
    volume.settle();
    hand_over_while_one_dies(&mut volume);
    for _ in 0..20 {
        while volume.deliver(0, 1) | volume.deliver(1, 0) {}
        volume.sync(0);
        volume.sync(1);
    }
    assert_eq!((volume.primary(), volume.handed_over), (Some(1), 1));
    volume.settle();
    volume.check_whole();
}

/// Node 2 has all records, and dies before it has synced them for the hand-over to node 1.
pub(super) fn hand_over_while_one_dies(volume: &mut Volume) {
    volume.write(0, 1);
    while volume.deliver(0, 1) | volume.deliver(1, 0) | volume.deliver(0, 2) | volume.deliver(2, 0)
    {
    }
    let primary = volume.nodes[0].machine.as_mut().unwrap();
    primary.hand_over(1).expect("it is in sync");
    volume.carry_out(0);
    volume.crash(2, false);
}
