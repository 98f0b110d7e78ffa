//! What users of other systems reported, replayed here; `docs/public-reports.md` has the list.

use super::pool::{pass, settled_with_pool};
use super::schedules::check_confirmed;
use super::*;

/// Every frame of a meeting and of the resync that follows, one after another.
fn exchange(volume: &mut Volume, frames: usize) -> bool {
    for _ in 0..frames {
        if !volume.deliver(0, 1) && !volume.deliver(1, 0) {
            return false;
        }
    }
    true
}

fn rule_towards(volume: &Volume, node: usize) -> Option<Rule> {
    let machine = volume.nodes[0].machine.as_ref()?;
    match machine.standing(node)? {
        Standing::Sourcing(rule) | Standing::Catching { rule, .. } => Some(rule),
        _ => None,
    }
}

/// drbd#145: a secondary is stopped in good order, the primary goes on by the third vote, and when
/// the secondary is back its lack is forgotten instead of being sent.
#[test]
fn drbd_145_what_the_survivor_wrote_while_the_other_was_stopped_is_sent() {
    for writes in [1, 16, 60] {
        let mut volume = settled_with_pool(2);
        volume.write(0, 1);
        pass(&mut volume, LEASE);
        volume.crash(1, false);
        pass(&mut volume, 4 * LEASE);
        for write in 0..writes {
            volume.write(0, write % 8);
        }
        pass(&mut volume, LEASE);
        assert_eq!(volume.confirmed.len(), usize::from(writes) + 1);
        volume.boot(1);
        volume.connect(0, 1);
        while exchange(&mut volume, 1) {
            let machine = volume.nodes[0].machine.as_ref().unwrap();
            if machine.standing(1) == Some(Standing::InSync) {
                assert_eq!(volume.nodes[0].live.keys, volume.nodes[1].live.keys);
            }
        }
        volume.settle();
        // And whoever is given the role then has it all.
        volume.crash(0, false);
        pass(&mut volume, Duration::from_secs(1));
        assert_eq!(volume.primary(), Some(1));
        check_confirmed(&volume);
        volume.settle();
        volume.check_whole();
    }
}

/// drbd#143: after an orderly restart of everything the nodes meet and part without end.
#[test]
fn drbd_143_after_an_orderly_restart_nobody_connects_without_end() {
    for pool in [false, true] {
        let mut volume = if pool {
            settled_with_pool(3)
        } else {
            Volume::new(3)
        };
        volume.settle();
        volume.write(0, 1);
        volume.settle();
        for node in 0..3 {
            volume.crash(node, false);
        }
        // It panics where this does not come to rest.
        volume.settle();
        volume.check_whole();
        // What is at rest stays at rest: nobody drops a connection from here on.
        volume.quiet = true;
        pass(&mut volume, Duration::from_secs(1));
        assert_eq!(volume.wires.len(), 6, "all are connected, both ways");
    }
}

/// drbd#40, crucible#968: a connection breaks in the middle of a resync, at any moment, on the way
/// from the source or between the others, and the resync never ends.
#[test]
fn drbd_40_crucible_968_a_resync_ends_wherever_its_connection_broke() {
    for broken in 0..120 {
        let mut volume = Volume::new(3);
        volume.settle();
        volume.crash(1, true);
        for write in 0..60 {
            volume.write(0, write % 6);
        }
        volume.boot(1);
        volume.connect(0, 1);
        volume.connect(1, 2);
        let ended = !exchange(&mut volume, broken);
        if broken % 2 == 0 {
            volume.cut_one_end(0, 1);
        } else {
            volume.cut(1, 2);
            volume.cut(0, 1);
        }
        volume.write(0, 7);
        volume.settle();
        volume.check_whole();
        if ended {
            return;
        }
    }
    panic!("the exchange is longer than was tried");
}

/// drbd#30, 9.3.3 "same UUID but bits left": in sync means that nothing is marked.
#[test]
fn drbd_30_whoever_is_in_sync_has_no_mark_left() {
    let mut volume = Volume::new(2);
    volume.settle();
    for round in 0..20_u8 {
        volume.crash(1, round % 2 == 0);
        for write in 0..=round {
            volume.write(0, write % 5);
        }
        volume.boot(1);
        volume.connect(0, 1);
        volume.write(0, round % 7);
        exchange(&mut volume, usize::from(round) * 3);
        volume.settle();
        assert_eq!(volume.nodes[0].live.dirty[1], BTreeSet::new());
        volume.check_whole();
    }
}

/// DRBD 9.3.3: a primary begins a new generation that its peer never hears of, because it dies
/// before it says so; when they meet, nothing is torn apart and nothing is lost.
#[test]
fn drbd_9_3_3_a_generation_that_only_the_dead_primary_knew_is_no_split_brain() {
    for pool in [false, true] {
        let mut volume = if pool {
            settled_with_pool(2)
        } else {
            Volume::new(2)
        };
        volume.settle();
        volume.write(0, 1);
        volume.settle();
        volume.crash(1, false);
        pass(&mut volume, Duration::from_secs(1));
        volume.write(0, 2); // it goes on alone, in a generation of its own
        pass(&mut volume, LEASE);
        volume.crash(0, false);
        volume.boot(1);
        pass(&mut volume, Duration::from_secs(1));
        assert_eq!(volume.primary(), None, "it lacks what was confirmed");
        volume.settle();
        check_confirmed(&volume);
        volume.check_whole();
    }
}

/// DRBD 9.3.3: while a third replica is brought up to date, the set changes; that each change
/// begins a generation is not left out.
#[test]
fn drbd_9_3_3_a_member_that_leaves_while_a_third_resyncs_lacks_what_comes_then() {
    for frames in 0..60 {
        let mut volume = Volume::new(3);
        volume.settle();
        volume.crash(1, true);
        for write in 0..30 {
            volume.write(0, write % 5);
        }
        volume.boot(1);
        volume.connect(0, 1);
        exchange(&mut volume, frames);
        // The other member goes in the middle of it, and what follows is confirmed without it.
        volume.crash(2, false);
        volume.write(0, 6);
        exchange(&mut volume, usize::MAX);
        let machine = volume.nodes[0].machine.as_ref().unwrap();
        assert!(!machine.durable().in_sync.has(2));
        volume.boot(2);
        volume.connect(0, 2);
        volume.settle();
        volume.check_whole();
    }
}

/// DRBD 9.3.3, linstor-server#450: after everybody lost power a survivor with an old copy is made
/// primary, or the source, before it met those who know more.
#[test]
fn drbd_9_3_3_an_old_copy_serves_nobody_before_it_met_the_newer_ones() {
    for pool in [false, true] {
        let mut volume = if pool {
            settled_with_pool(3)
        } else {
            Volume::new(3)
        };
        volume.settle();
        volume.crash(2, false);
        pass(&mut volume, Duration::from_secs(1));
        for write in 0..40 {
            volume.write(0, write % 6);
        }
        pass(&mut volume, LEASE);
        let confirmed = volume.confirmed.len();
        volume.crash(0, false);
        volume.crash(1, false);
        volume.boot(2);
        pass(&mut volume, Duration::from_secs(2));
        assert_eq!(volume.primary(), None, "the old copy is alone");
        volume.settle();
        assert!(confirmed >= 40);
        check_confirmed(&volume);
        volume.check_whole();
    }
}

/// mayastor#1806: a replica comes back for a moment and goes again; what was known of its lack is
/// given up, and everything is copied.
#[test]
fn mayastor_1806_a_replica_that_is_back_for_a_moment_is_still_sent_only_what_it_lacks() {
    let mut volume = Volume::new(2);
    volume.settle();
    volume.crash(1, false);
    for write in 0..50 {
        volume.write(0, write % 6);
    }
    let mut rules = BTreeSet::new();
    for moment in 0..40 {
        volume.boot(1);
        volume.connect(0, 1);
        for _ in 0..moment {
            exchange(&mut volume, 1);
            rules.extend(rule_towards(&volume, 1).map(Rule::name));
        }
        volume.crash(1, moment % 3 == 0);
        volume.write(0, 7);
    }
    let full = [
        Rule::EmptyBrick,
        Rule::OlderThanMap,
        Rule::ForeignResync,
        Rule::Operator,
    ];
    assert!(!rules.is_empty());
    for rule in full {
        assert!(!rules.contains(rule.name()), "{rules:?}");
    }
    volume.settle();
    volume.check_whole();
}

/// drbd#37: a split brain each time a node terminates.
#[test]
fn drbd_37_a_primary_that_dies_again_and_again_leaves_no_split_brain() {
    let mut volume = settled_with_pool(3);
    for round in 0..20 {
        let primary = volume.primary().expect("at rest somebody serves");
        volume.write(primary, round % 6);
        volume.write(primary, 7);
        volume.crash(primary, false);
        pass(&mut volume, Duration::from_millis(500));
        let next = volume.primary().expect("a member took over");
        assert_ne!(next, primary);
        volume.write(next, 6);
        volume.settle();
        check_confirmed(&volume);
        volume.check_whole();
    }
}
