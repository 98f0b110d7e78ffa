//! ONE-3: a split brain that the volume's policy ends, and one that nobody but an operator may.

use super::*;
use crate::split::Open;

const POLICIES: [Policy; 5] = [
    Policy::DiscardFewerChanges,
    Policy::DiscardOlderPrimary,
    Policy::DiscardYoungerPrimary,
    Policy::Prefer(0),
    Policy::Prefer(1),
];

fn machine(volume: &Volume, node: usize) -> &Machine {
    volume.nodes[node].machine.as_ref().unwrap()
}

/// Two that went on alone: the first, primary all the time, wrote keys 10 and up; the second was
/// made primary by force and wrote keys 20 and up. Both run and are not connected.
fn parted(policy: Policy, first: u8, second: u8) -> Volume {
    let mut volume = Volume::new(2);
    volume.split_policy = policy;
    for node in 0..2 {
        volume.crash(node, false);
        volume.boot(node);
    }
    volume.settle();
    volume.write(0, 1);
    volume.settle();
    volume.cut(0, 1);
    volume.parted = true;
    for key in 0..first {
        volume.write(0, 10 + key);
    }
    let secondary = volume.nodes[1].machine.as_mut().unwrap();
    let forced = secondary.take_by_force(Duration::ZERO);
    forced.expect("the primary is gone");
    volume.carry_out(1);
    for key in 0..second {
        volume.write(1, 20 + key);
    }
    volume
}

fn meet(volume: &mut Volume) {
    volume.connect(0, 1);
    while volume.deliver(0, 1) || volume.deliver(1, 0) {}
}

/// Both hold what the kept side had, and nothing of the other.
fn check_kept(volume: &Volume, kept: usize) {
    volume.check_whole();
    for node in &volume.nodes {
        assert!(node.live.keys.contains_key(&1), "what both had");
        for (side, first_key) in [(0, 10), (1, 20)] {
            assert_eq!(node.live.keys.contains_key(&first_key), side == kept);
        }
    }
}

#[test]
fn a_split_brain_ends_by_policy_with_the_same_side_whoever_serves() {
    for policy in POLICIES {
        for (first, second) in [(3, 5), (5, 3)] {
            // Who runs since before, and who comes back from a crash.
            for restarted in [None, Some(0), Some(1)] {
                let mut volume = parted(policy, first, second);
                if let Some(node) = restarted {
                    volume.crash(node, false);
                    volume.boot(node);
                }
                let kept = match policy {
                    Policy::DiscardFewerChanges => usize::from(second > first),
                    Policy::DiscardOlderPrimary => 1,
                    Policy::DiscardYoungerPrimary => 0,
                    Policy::Prefer(replica) => replica,
                    Policy::Manual => unreachable!("it keeps nobody"),
                };
                meet(&mut volume);
                volume.settle();
                assert_eq!(volume.primary(), Some(kept), "{policy:?} {restarted:?}");
                check_kept(&volume, kept);
                assert_eq!(
                    machine(&volume, kept).durable().role_reason,
                    RoleReason::Kept
                );
                let (_, split) = volume.splits[0];
                let changes = [split.mine.changes, split.theirs.changes];
                assert!(changes.contains(&first.into()) && changes.contains(&second.into()));
            }
        }
    }
}

/// The side that goes answers nothing more from the moment on in which it knows.
#[test]
fn the_side_that_is_given_up_stops_serving_before_the_other_begins() {
    let mut volume = parted(Policy::Prefer(0), 1, 1);
    assert!(machine(&volume, 1).serves());
    volume.connect(0, 1);
    assert!(volume.deliver(0, 1), "the second one hears of the first");
    assert!(!machine(&volume, 1).serves());
    volume.settle();
    check_kept(&volume, 0);
}

#[test]
fn where_nobody_may_be_kept_both_keep_what_they_have_until_an_operator_speaks() {
    for (policy, why) in [
        (Policy::Manual, Open::Manual),
        (Policy::DiscardFewerChanges, Open::EqualChanges),
        (Policy::Prefer(2), Open::PreferredElsewhere),
    ] {
        let mut volume = parted(policy, 2, 2);
        for _ in 0..3 {
            meet(&mut volume);
            for node in 0..2 {
                let standing = machine(&volume, node).standing(1 - node);
                assert_eq!(standing, Some(Standing::Refused(Rule::BothWentOn)));
                let split = machine(&volume, node).split_with(1 - node).expect("noted");
                assert_eq!(split.verdict, Verdict::Open(why));
                let own = 10 * u8::try_from(node + 1).unwrap();
                assert!(volume.nodes[node].live.keys.contains_key(&own), "untouched");
            }
            volume.cut(0, 1);
        }
        meet(&mut volume);
        let kept = volume.nodes[1].machine.as_mut().unwrap();
        kept.keep_this_side().expect("whole");
        volume.carry_out(1);
        volume.settle();
        check_kept(&volume, 1);
    }
}

/// The simulation found it: the link was down for the moment in which the operator spoke, the side
/// that was to stay began a term before the other's, and gave way to it when they met.
#[test]
fn an_operators_word_counts_also_where_the_side_that_is_given_up_is_not_connected_just_then() {
    let mut volume = parted(Policy::Manual, 2, 2);
    for _ in 0..2 {
        volume.crash(1, false);
        volume.boot(1);
    }
    meet(&mut volume);
    volume.cut(0, 1);
    assert!(machine(&volume, 1).report().term > machine(&volume, 0).report().term);
    let kept = volume.nodes[0].machine.as_mut().unwrap();
    kept.keep_this_side().expect("whole");
    volume.carry_out(0);
    volume.settle();
    check_kept(&volume, 0);
}

/// The simulation found it: the side that was to go had been started again since the two last met,
/// and served in a term that nobody knew when the operator spoke. The side that was to stay gave way
/// to it.
#[test]
fn an_operators_word_counts_also_where_the_side_that_is_given_up_was_started_again_unseen() {
    let mut volume = parted(Policy::Manual, 2, 2);
    meet(&mut volume);
    volume.cut(0, 1);
    for _ in 0..3 {
        volume.crash(1, false);
        volume.boot(1);
    }
    let kept = volume.nodes[0].machine.as_mut().unwrap();
    assert!(!kept.is_this_side_kept());
    kept.keep_this_side().expect("whole");
    assert!(kept.is_this_side_kept());
    volume.carry_out(0);
    assert!(machine(&volume, 1).report().term > machine(&volume, 0).report().term);
    volume.settle();
    check_kept(&volume, 0);
}

/// One that was made primary by force gives nobody up by that alone.
#[test]
fn a_primary_by_force_gives_the_other_side_up_only_when_an_operator_says_so() {
    let mut volume = parted(Policy::Manual, 2, 2);
    meet(&mut volume);
    volume.cut(0, 1);
    assert!(!machine(&volume, 1).is_this_side_kept());
    meet(&mut volume);
    assert!(machine(&volume, 1).split_with(0).is_some());
}

/// Both were restarted more than once while they were apart, and the one that knows the earlier
/// term serves when they meet: before, each then followed the other, and nobody served.
#[test]
fn a_primary_that_serves_goes_on_when_it_meets_a_later_one_that_does_not() {
    let mut volume = parted(Policy::Manual, 1, 1);
    for _ in 0..3 {
        volume.crash(1, false);
        volume.boot(1);
    }
    volume.crash(1, false);
    volume.crash(0, false);
    volume.boot(0);
    volume.boot(1);
    // The later one has just been started by somebody and waits for nobody: it serves at once,
    // unless it hears of the other one first.
    volume.nodes[1].machine.as_mut().unwrap().phase = Phase::Following;
    assert!(machine(&volume, 1).report().term > machine(&volume, 0).report().term);
    meet(&mut volume);
    assert_eq!(volume.primary(), Some(0));
    assert!(machine(&volume, 1).split_with(0).is_some());
}

#[test]
fn a_policy_that_is_set_while_a_split_brain_is_open_ends_it_once_both_know() {
    let mut volume = parted(Policy::Manual, 2, 1);
    meet(&mut volume);
    let set = |volume: &mut Volume, node: usize| {
        let machine = volume.nodes[node].machine.as_mut().unwrap();
        machine.set_split_policy(Policy::DiscardFewerChanges);
        volume.carry_out(node);
    };
    set(&mut volume, 0);
    meet(&mut volume);
    let split = machine(&volume, 0).split_with(1).expect("still open");
    assert_eq!(split.verdict, Verdict::Open(Open::PoliciesDiffer));
    set(&mut volume, 1);
    volume.split_policy = Policy::DiscardFewerChanges;
    volume.settle();
    check_kept(&volume, 0);
}

/// Two operators at once, or one in a hurry: each side was told to stay. No two replicas ever begin
/// the same term, so one of the words is the later one.
#[test]
fn of_two_sides_that_were_both_kept_one_stays_whole() {
    let mut volume = parted(Policy::Manual, 1, 1);
    meet(&mut volume);
    for node in 0..2 {
        let machine = volume.nodes[node].machine.as_mut().unwrap();
        machine.keep_this_side().expect("whole");
    }
    for node in 0..2 {
        volume.carry_out(node);
    }
    let terms = [0, 1].map(|node| machine(&volume, node).report().term);
    assert_ne!(terms[0], terms[1]);
    volume.settle();
    check_kept(&volume, usize::from(terms[1] > terms[0]));
}

/// COH-4: what the two make while they are apart must not get the same ids.
#[test]
fn two_that_went_on_alone_never_order_in_the_same_term() {
    let mut volume = parted(Policy::Manual, 1, 1);
    for node in [0, 0, 1, 0, 1, 1] {
        volume.crash(node, false);
        volume.boot(node);
        volume.write(node, 30);
    }
    let terms = |node: usize| {
        let own = volume.nodes[node].live.log.iter();
        let own = own.filter(|record| record.key >= 10);
        own.map(|record| record.term).collect::<BTreeSet<_>>()
    };
    assert!(terms(0).len() > 2 && terms(1).len() > 2);
    assert!(terms(0).is_disjoint(&terms(1)));
}

proptest! {
    /// Whatever dies in the middle, in the end one side stays whole, and the other one follows it.
    #[test]
    fn crashes_while_a_policy_ends_a_split_brain_leave_one_whole_side(
        policy in proptest::sample::select(POLICIES.to_vec()),
        (first, second) in (1_u8..6, 1_u8..6),
        steps in proptest::collection::vec((0_u8..8, any::<bool>()), 0..60),
    ) {
        let mut volume = parted(policy, first, second);
        for (step, which) in steps {
            let node = usize::from(which);
            match step {
                0 => {
                    volume.crash(node, false);
                    volume.boot(node);
                }
                1 => volume.cut(0, 1),
                2 => volume.flush(node),
                _ => {
                    volume.connect(0, 1);
                    volume.deliver(node, 1 - node);
                }
            }
        }
        let tie = first == second && policy == Policy::DiscardFewerChanges;
        if tie && volume.nodes.iter().all(|node| node.live.state.role == Role::Primary) {
            return Ok(());
        }
        volume.settle();
        let kept = usize::from(volume.nodes[0].live.keys.contains_key(&20));
        check_kept(&volume, kept);
    }
}

/// Who is made primary by force, and is connected to a replica that knows a later term and does not
/// serve, stepped down again as soon as the two met anew.
#[test]
fn who_is_forced_serves_in_a_later_term_than_anybody_who_is_connected() {
    let mut volume = Volume::new(3);
    volume.settle();
    let meet = |volume: &mut Volume, a: usize, b: usize| {
        volume.connect(a, b);
        while volume.deliver(a, b) || volume.deliver(b, a) {}
    };
    volume.crash(2, false);
    for _ in 0..2 {
        volume.crash(0, false);
        volume.boot(0);
        meet(&mut volume, 0, 1);
        volume.now += Duration::from_secs(60);
        let now = volume.clock(0);
        volume.nodes[0].machine.as_mut().unwrap().tick(now);
        volume.carry_out(0);
        meet(&mut volume, 0, 1);
    }
    volume.crash(0, false);
    volume.boot(2);
    meet(&mut volume, 1, 2);
    let terms = [1, 2].map(|node| machine(&volume, node).report().term);
    assert!(terms[1] < terms[0]);
    let forced = volume.nodes[2].machine.as_mut().unwrap();
    forced.take_by_force(Duration::ZERO).expect("nobody serves");
    volume.carry_out(2);
    assert!(machine(&volume, 2).report().term > terms[0]);
    volume.cut(1, 2);
    meet(&mut volume, 1, 2);
    assert_eq!(volume.primary(), Some(2));
}
