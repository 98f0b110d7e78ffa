//! Two replicas that both went on as primary (ONE-3): what each has that the other lacks, and
//! which side stays by the volume's policy.
//!
//! A pure function of what the two told each other when they met, and of nothing else, so both
//! come to the same. No clock counts: who was primary first is told by terms. Where a fact is
//! missing or equal, nobody is kept, and an operator decides.

use protocol::units::{Sequence, Term, Timestamp};
use serde::{Deserialize, Serialize};

use crate::line::Relation;
use crate::state::{Disk, Mask, Report, Role};

/// What happens by itself when a split brain is noticed. The side that is given up stays readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Nothing: an operator decides.
    #[default]
    Manual,
    /// The side with more changes since the two parted stays.
    DiscardFewerChanges,
    /// The side stays that became primary last.
    DiscardOlderPrimary,
    /// The side stays that was primary first.
    DiscardYoungerPrimary,
    /// This replica's side stays.
    Prefer(usize),
}

impl Policy {
    /// The word of the option.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::DiscardFewerChanges => "discard-fewer-changes",
            Self::DiscardOlderPrimary => "discard-older-primary",
            Self::DiscardYoungerPrimary => "discard-younger-primary",
            Self::Prefer(_) => "prefer",
        }
    }
}

/// One side of a split brain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Side {
    /// Records after the last common one.
    pub changes: u64,
    /// The term in which it was given its role; `None`: an older version did not note it.
    pub role_term: Option<Term>,
    /// The time of that, by its own clock. For people only.
    pub primary_since: Option<Timestamp>,
}

/// Who stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The side of the replica that asks.
    Mine,
    /// The other one's.
    Theirs,
    /// Nobody's, before an operator says so.
    Open(Open),
}

/// Why nobody is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// The policy says so.
    Manual,
    /// The two have not learned of the same policy yet.
    PoliciesDiffer,
    /// Both have as many changes.
    EqualChanges,
    /// It is not known of both in which term they became primary.
    UnknownPrimary,
    /// Both became primary in the same term.
    EqualPrimary,
    /// The preferred replica is neither of the two.
    PreferredElsewhere,
}

/// A split brain, as one of the two sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Split {
    /// The last record that both have.
    pub common: Sequence,
    /// This side.
    pub mine: Side,
    /// The other side.
    pub theirs: Side,
    /// The policy that was asked.
    pub policy: Policy,
    /// No more than one side has something of its own: no split brain, and no policy is asked.
    pub one_sided: bool,
    /// What it says.
    pub verdict: Verdict,
}

/// What two replicas that told `mine` and `theirs` are to each other; `None`: no split brain. Where
/// the pool decides about roles there is none.
#[must_use]
pub fn between(me: usize, mine: &Report, them: usize, theirs: &Report) -> Option<Split> {
    let whole = |report: &Report| matches!(report.disk, Disk::UpToDate | Disk::Consistent);
    let sides = [mine, theirs];
    if !sides.iter().all(|it| it.role == Role::Primary && whole(it)) {
        return None;
    }
    let relation = mine.line.relation(mine.last, &theirs.line, theirs.last);
    let Relation::Common {
        at,
        i_went_on,
        they_went_on,
    } = relation
    else {
        return None;
    };
    let i_alone = i_went_on && !mine.confirmed_nothing_alone(me, them, theirs);
    let they_alone = they_went_on && !theirs.confirmed_nothing_alone(them, me, mine);
    // Whoever knows the later term has the word, and takes on who has nothing of its own. Where the
    // other one alone has something, or alone serves, the word is its own.
    let mine_stays = match (i_alone, they_alone) {
        (true, true) => None,
        (false, false) if mine.serving == theirs.serving => return None,
        (false, false) => Some(mine.serving),
        (i_alone, _) => Some(i_alone),
    };
    let later = match mine_stays {
        Some(true) => mine.term > theirs.term,
        Some(false) => theirs.term > mine.term,
        None => false,
    };
    if later {
        return None; // it goes by the rules
    }
    let side = |report: &Report| Side {
        changes: report.last.0.saturating_sub(at.0),
        role_term: report.role_term,
        primary_since: report.primary_since,
    };
    let (my_side, their_side) = (side(mine), side(theirs));
    let verdict = match mine_stays {
        Some(true) => Verdict::Mine,
        Some(false) => Verdict::Theirs,
        None if mine.split_policy == theirs.split_policy => {
            decide(mine.split_policy, (me, my_side), (them, their_side))
        }
        None => Verdict::Open(Open::PoliciesDiffer),
    };
    Some(Split {
        common: at,
        mine: my_side,
        theirs: their_side,
        policy: mine.split_policy,
        one_sided: mine_stays.is_some(),
        verdict,
    })
}

fn decide(policy: Policy, (me, mine): (usize, Side), (them, theirs): (usize, Side)) -> Verdict {
    let keep = |mine: bool| {
        if mine { Verdict::Mine } else { Verdict::Theirs }
    };
    let terms = mine.role_term.zip(theirs.role_term);
    match policy {
        Policy::Manual => Verdict::Open(Open::Manual),
        Policy::DiscardFewerChanges if mine.changes == theirs.changes => {
            Verdict::Open(Open::EqualChanges)
        }
        Policy::DiscardFewerChanges => keep(mine.changes > theirs.changes),
        Policy::DiscardOlderPrimary | Policy::DiscardYoungerPrimary => match terms {
            None => Verdict::Open(Open::UnknownPrimary),
            Some((mine, theirs)) if mine == theirs => Verdict::Open(Open::EqualPrimary),
            Some((mine, theirs)) => {
                keep((mine < theirs) == (policy == Policy::DiscardYoungerPrimary))
            }
        },
        Policy::Prefer(replica) if !Mask::of(me).with(them).has(replica) => {
            Verdict::Open(Open::PreferredElsewhere)
        }
        Policy::Prefer(replica) => keep(replica == me),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::Line;
    use crate::state::InForce;
    use proptest::prelude::*;
    use protocol::ids::GenerationId;
    use protocol::volume::Protocol;

    /// Two primaries that parted at 50: the first went on in term 1 to 60, the other one was made
    /// primary in term 2 and went on to 80.
    fn sides(policy: Policy) -> (Report, Report) {
        let side = |generation: u8, term: u64, me: usize, last: u64| {
            let mut line = Line::new(GenerationId([1; 16]));
            line.begin(GenerationId([generation; 16]), Term(term), Sequence(50));
            Report {
                term: Term(term),
                role: Role::Primary,
                serving: true,
                disk: Disk::UpToDate,
                line,
                last: Sequence(last),
                stable: Sequence(last),
                in_sync: Mask::of(me),
                journal_from: Sequence(1),
                handed_to: None,
                suspects: 0,
                layout: 0,
                revision: 0,
                policy: InForce::default(),
                split_policy: policy,
                role_term: Some(Term(term)),
                primary_since: None,
                taken_from: None,
            }
        };
        (side(2, 1, 0, 60), side(3, 2, 1, 80))
    }

    fn verdicts(first: &Report, second: &Report) -> (Verdict, Verdict) {
        let here = between(0, first, 1, second).expect("a split brain");
        let there = between(1, second, 0, first).expect("a split brain");
        (here.verdict, there.verdict)
    }

    #[test]
    fn each_policy_keeps_one_side_and_both_sides_know_which() {
        for (policy, first_stays) in [
            (Policy::DiscardFewerChanges, false),
            (Policy::DiscardOlderPrimary, false),
            (Policy::DiscardYoungerPrimary, true),
            (Policy::Prefer(0), true),
            (Policy::Prefer(1), false),
        ] {
            let (first, second) = sides(policy);
            let kept = if first_stays {
                (Verdict::Mine, Verdict::Theirs)
            } else {
                (Verdict::Theirs, Verdict::Mine)
            };
            assert_eq!(verdicts(&first, &second), kept, "{policy:?}");
        }
        let (first, second) = sides(Policy::DiscardFewerChanges);
        let split = between(0, &first, 1, &second).expect("a split brain");
        assert_eq!(
            (split.common, split.mine.changes, split.theirs.changes),
            (Sequence(50), 10, 30)
        );
    }

    #[test]
    fn where_facts_are_missing_or_equal_nobody_is_kept() {
        let open = |change: &dyn Fn(&mut Report, &mut Report), policy| {
            let (mut first, mut second) = sides(policy);
            change(&mut first, &mut second);
            let (here, there) = verdicts(&first, &second);
            assert_eq!(here, there);
            match here {
                Verdict::Open(why) => why,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(open(&|_, _| {}, Policy::Manual), Open::Manual);
        assert_eq!(
            open(&|_, _| {}, Policy::Prefer(2)),
            Open::PreferredElsewhere
        );
        assert_eq!(
            open(&|a, b| a.last = b.last, Policy::DiscardFewerChanges),
            Open::EqualChanges
        );
        assert_eq!(
            open(&|a, _| a.role_term = None, Policy::DiscardOlderPrimary),
            Open::UnknownPrimary
        );
        assert_eq!(
            open(
                &|a, b| a.role_term = b.role_term,
                Policy::DiscardYoungerPrimary
            ),
            Open::EqualPrimary
        );
        assert_eq!(
            open(
                &|a, _| a.split_policy = Policy::Manual,
                Policy::DiscardYoungerPrimary
            ),
            Open::PoliciesDiffer
        );
    }

    #[test]
    fn who_confirmed_nothing_alone_is_no_side() {
        let (mut first, second) = sides(Policy::Manual);
        first.in_sync = first.in_sync.with(1);
        assert_eq!(between(1, &second, 0, &first), None, "it waited");
        first.term = Term(3);
        let kept = (Verdict::Theirs, Verdict::Mine);
        assert_eq!(
            verdicts(&first, &second),
            kept,
            "its later term says nothing"
        );
        first.policy.protocol = Protocol::B;
        let split = between(1, &second, 0, &first).expect("by B it did not wait");
        assert!(!split.one_sided);
        let (mut first, second) = sides(Policy::Manual);
        first.last = Sequence(50);
        assert_eq!(
            between(0, &first, 1, &second),
            None,
            "it just lacks records"
        );
        let (mut first, second) = sides(Policy::Manual);
        first.role = Role::Secondary;
        assert_eq!(
            between(0, &first, 1, &second),
            None,
            "its tail is no history"
        );
        let (first, mut second) = sides(Policy::Manual);
        second.disk = Disk::Inconsistent;
        assert_eq!(
            between(0, &first, 1, &second),
            None,
            "it is no picture of any time"
        );
    }

    proptest! {
        /// Whatever the two told, they never both stay, and never does each wait for the other.
        #[test]
        fn both_sides_always_come_to_the_same(
            lasts in (40_u64..90, 40_u64..90),
            terms in (1_u64..4, 1_u64..4),
            roles in (proptest::option::of(0_u64..3), proptest::option::of(0_u64..3)),
            waited in (any::<bool>(), any::<bool>()),
            policy in prop_oneof![
                Just(Policy::Manual),
                Just(Policy::DiscardFewerChanges),
                Just(Policy::DiscardOlderPrimary),
                Just(Policy::DiscardYoungerPrimary),
                (0_usize..3).prop_map(Policy::Prefer),
            ],
        ) {
            let (mut first, mut second) = sides(policy);
            (first.last, second.last) = (Sequence(lasts.0), Sequence(lasts.1));
            (first.term, second.term) = (Term(terms.0), Term(terms.1));
            (first.role_term, second.role_term) = (roles.0.map(Term), roles.1.map(Term));
            if waited.0 { first.in_sync = Mask::first(2); }
            if waited.1 { second.in_sync = Mask::first(2); }
            let here = between(0, &first, 1, &second);
            let there = between(1, &second, 0, &first);
            prop_assert_eq!(here.is_some(), there.is_some());
            if let Some((here, there)) = here.zip(there) {
                let mirrored = match there.verdict {
                    Verdict::Mine => Verdict::Theirs,
                    Verdict::Theirs => Verdict::Mine,
                    open => open,
                };
                prop_assert_eq!(here.verdict, mirrored);
            }
        }
    }
}
