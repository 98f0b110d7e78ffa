//! What a serving primary and a replica that it meets have to do: a pure function of what both
//! told, which returns the decision and the rule that fired. `docs/resync-rules.md` has a row for
//! each rule.

use protocol::units::Sequence;
use serde::{Deserialize, Serialize};

use crate::line::Relation;
use crate::state::{Disk, Report, Role};

/// What the primary does for the replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// They are equal: it may join the in-sync set.
    Join,
    /// Send the records after this from the journal.
    Journal {
        /// The last record that it has.
        after: Sequence,
    },
    /// Send the dirty keys and blocks.
    Dirty,
    /// First have it name what its records after this touched, and mark that dirty; then as
    /// [`Decision::Dirty`].
    GiveUpTail {
        /// The last common record.
        after: Sequence,
    },
    /// Compare everything by checksum, send what differs.
    Full,
    /// Do nothing; both stay as they are.
    Refuse,
}

/// Why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// The pasts end at the same record.
    SamePast,
    /// The replica lacks the journal's tail, and the tail is the cheaper way.
    JournalTail,
    /// The replica lacks more than the journal's tail costs, or the journal does not reach back, or
    /// does not lead to all that it lacks.
    DirtyMap,
    /// The replica's last resync was cut off; it goes on.
    ResyncContinues,
    /// The replica crashed with large writes under way: these extents are sent again.
    CrashedTarget,
    /// The primary crashed with large writes under way, or a resync that it began did not end:
    /// its map holds marks that no journal has.
    CrashedPrimary,
    /// The replica has records that the primary's history gave up.
    StaleTail,
    /// The brick is new.
    EmptyBrick,
    /// The replica lacks records that neither journal nor dirty map covers.
    OlderThanMap,
    /// A resync from another primary was cut off: its dirty map is not here.
    ForeignResync,
    /// The operator asked for it.
    Operator,
    /// Both were primary and both went on (split brain).
    BothWentOn,
    /// The other knows a later term.
    LaterTerm,
    /// The data have nothing in common.
    Unrelated,
}

impl Rule {
    /// Every rule, for documentation and tests.
    pub const ALL: [Self; 14] = [
        Self::SamePast,
        Self::JournalTail,
        Self::DirtyMap,
        Self::ResyncContinues,
        Self::CrashedTarget,
        Self::CrashedPrimary,
        Self::StaleTail,
        Self::EmptyBrick,
        Self::OlderThanMap,
        Self::ForeignResync,
        Self::Operator,
        Self::BothWentOn,
        Self::LaterTerm,
        Self::Unrelated,
    ];

    /// Its name in status, logs and documentation.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SamePast => "same-past",
            Self::JournalTail => "journal-tail",
            Self::DirtyMap => "dirty-map",
            Self::ResyncContinues => "resync-continues",
            Self::CrashedTarget => "crashed-target",
            Self::CrashedPrimary => "crashed-primary",
            Self::StaleTail => "stale-tail",
            Self::EmptyBrick => "empty-brick",
            Self::OlderThanMap => "older-than-map",
            Self::ForeignResync => "foreign-resync",
            Self::Operator => "operator",
            Self::BothWentOn => "both-went-on",
            Self::LaterTerm => "later-term",
            Self::Unrelated => "unrelated",
        }
    }
}

/// What the primary knows of its own means to help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Means {
    /// The dirty map covers all that was touched after this, for the replica in question. `None`:
    /// no map is kept for it.
    pub map_since: Option<Sequence>,
    /// Bytes that the journal's records after the replica's last would cost; `None` where the
    /// journal does not reach back so far.
    pub journal_bytes: Option<u64>,
    /// Of what these records wrote, the journal no longer leads to all: it was overwritten since in
    /// the objects' files. Sent record by record the replica would be no picture of any time.
    pub overwritten: bool,
    /// Bytes that the dirty map's keys and blocks would cost.
    pub dirty_bytes: u64,
    /// A resync of this replica by this primary was cut off, and no other primary took it on since.
    pub resync_was_mine: bool,
    /// The dirty map may hold marks that no journal has.
    pub marked_apart: bool,
    /// The pool decides about roles: a primary that it deposed confirmed nothing after that.
    pub pool_decides: bool,
    /// See [`Report::confirmed_nothing_alone`]: what the replica ordered beyond the common past, it
    /// never confirmed.
    pub waited_for_me: bool,
}

/// Decides for a serving primary (`mine`) and a replica that it meets (`theirs`).
#[must_use]
pub fn decide(mine: &Report, theirs: &Report, means: &Means) -> (Decision, Rule) {
    if theirs.term > mine.term {
        return (Decision::Refuse, Rule::LaterTerm);
    }
    if theirs.disk == Disk::Empty {
        return (Decision::Full, Rule::EmptyBrick);
    }
    let relation = mine.line.relation(mine.last, &theirs.line, theirs.last);
    let Relation::Common {
        at, they_went_on, ..
    } = relation
    else {
        return (Decision::Refuse, Rule::Unrelated);
    };
    let covered = means.map_since.is_some_and(|since| at >= since);
    if theirs.disk == Disk::Inconsistent {
        // With records that nobody here knows it is another primary's target.
        let mine = means.resync_was_mine && !they_went_on;
        return match (covered, mine) {
            (true, true) => (Decision::Dirty, Rule::ResyncContinues),
            _ => (Decision::Full, Rule::ForeignResync),
        };
    }
    if they_went_on {
        // A primary that went on by itself has confirmed what nobody here knows: that is a split
        // brain, unless the pool decided who goes on, or it still waited for this one. A secondary's tail was given up by whoever
        // went on without it, in a later term: where both are of one term, another primary gave the
        // secondary what this one does not know, so this brick is an older copy of itself.
        let forgotten = theirs.term == mine.term;
        return match theirs.role {
            Role::Primary if !means.pool_decides && !means.waited_for_me => {
                (Decision::Refuse, Rule::BothWentOn)
            }
            Role::Secondary if forgotten && !means.pool_decides => {
                (Decision::Refuse, Rule::BothWentOn)
            }
            _ if covered => (Decision::GiveUpTail { after: at }, Rule::StaleTail),
            _ if means.journal_bytes.is_some() => {
                (Decision::GiveUpTail { after: at }, Rule::StaleTail)
            }
            _ => (Decision::Full, Rule::OlderThanMap),
        };
    }
    behind(mine, theirs, means, at, covered)
}

/// The replica's past is the beginning of the primary's.
fn behind(
    mine: &Report,
    theirs: &Report,
    means: &Means,
    at: Sequence,
    covered: bool,
) -> (Decision, Rule) {
    if means.marked_apart {
        // Its map holds marks that no journal has.
        return if covered {
            (Decision::Dirty, Rule::CrashedPrimary)
        } else {
            (Decision::Full, Rule::OlderThanMap)
        };
    }
    if theirs.suspects > 0 {
        return if covered || means.journal_bytes.is_some() {
            (Decision::Dirty, Rule::CrashedTarget)
        } else {
            (Decision::Full, Rule::OlderThanMap)
        };
    }
    if at == mine.last {
        return (Decision::Join, Rule::SamePast);
    }
    match (means.journal_bytes, covered) {
        // Where the map does not cover it, the journal still names what is to be marked.
        (Some(_), _) if means.overwritten => (Decision::Dirty, Rule::DirtyMap),
        (Some(journal), true) if journal <= means.dirty_bytes => {
            (Decision::Journal { after: at }, Rule::JournalTail)
        }
        (_, true) => (Decision::Dirty, Rule::DirtyMap),
        (Some(_), false) => (Decision::Journal { after: at }, Rule::JournalTail),
        (None, false) => (Decision::Full, Rule::OlderThanMap),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::Line;
    use crate::split::Policy;
    use crate::state::{InForce, Mask};
    use protocol::ids::GenerationId;
    use protocol::units::Term;

    fn report(role: Role, line: &Line, last: u64) -> Report {
        Report {
            term: Term(3),
            role,
            serving: role == Role::Primary,
            disk: Disk::UpToDate,
            line: line.clone(),
            last: Sequence(last),
            stable: Sequence(last),
            in_sync: Mask(3),
            journal_from: Sequence(1),
            handed_to: None,
            suspects: 0,
            layout: 0,
            revision: 0,
            policy: InForce::default(),
            split_policy: Policy::default(),
            role_term: None,
            primary_since: None,
            taken_from: None,
        }
    }

    /// A primary at 100 that went on without its replica after 50.
    fn primary() -> Report {
        let mut line = Line::new(GenerationId([1; 16]));
        line.begin(GenerationId([2; 16]), Term(3), Sequence(50));
        report(Role::Primary, &line, 100)
    }

    fn secondary(last: u64) -> Report {
        report(Role::Secondary, &Line::new(GenerationId([1; 16])), last)
    }

    fn means() -> Means {
        Means {
            map_since: Some(Sequence(40)),
            journal_bytes: Some(1000),
            overwritten: false,
            dirty_bytes: 4000,
            resync_was_mine: false,
            marked_apart: false,
            pool_decides: false,
            waited_for_me: false,
        }
    }

    #[test]
    fn equal_pasts_join_at_once() {
        let mut theirs = primary();
        theirs.role = Role::Secondary;
        assert_eq!(
            decide(&primary(), &theirs, &means()),
            (Decision::Join, Rule::SamePast)
        );
    }

    #[test]
    fn the_cheaper_of_tail_and_map_is_taken() {
        let tail = decide(&primary(), &secondary(45), &means());
        assert_eq!(
            tail,
            (
                Decision::Journal {
                    after: Sequence(45)
                },
                Rule::JournalTail
            )
        );
        let dear = Means {
            journal_bytes: Some(5000),
            ..means()
        };
        assert_eq!(
            decide(&primary(), &secondary(45), &dear),
            (Decision::Dirty, Rule::DirtyMap)
        );
        let gone = Means {
            journal_bytes: None,
            ..means()
        };
        assert_eq!(
            decide(&primary(), &secondary(45), &gone),
            (Decision::Dirty, Rule::DirtyMap)
        );
    }

    #[test]
    fn a_replica_older_than_the_map_uses_the_journal_or_is_compared_in_full() {
        let tail = decide(
            &primary(),
            &secondary(30),
            &Means {
                journal_bytes: Some(9000),
                ..means()
            },
        );
        assert_eq!(
            tail,
            (
                Decision::Journal {
                    after: Sequence(30)
                },
                Rule::JournalTail
            )
        );
        let gone = Means {
            journal_bytes: None,
            ..means()
        };
        assert_eq!(
            decide(&primary(), &secondary(30), &gone),
            (Decision::Full, Rule::OlderThanMap)
        );
    }

    /// RS-4: record by record it would hold data of later ones, and count as a whole picture.
    #[test]
    fn what_the_journal_does_not_lead_to_any_more_comes_from_the_map() {
        let overwritten = Means {
            overwritten: true,
            ..means()
        };
        for last in [30, 45] {
            assert_eq!(
                decide(&primary(), &secondary(last), &overwritten),
                (Decision::Dirty, Rule::DirtyMap)
            );
        }
        let gone = Means {
            journal_bytes: None,
            ..overwritten
        };
        assert_eq!(
            decide(&primary(), &secondary(30), &gone),
            (Decision::Full, Rule::OlderThanMap)
        );
        let mut equal = primary();
        equal.role = Role::Secondary;
        assert_eq!(
            decide(&primary(), &equal, &overwritten),
            (Decision::Join, Rule::SamePast)
        );
    }

    #[test]
    fn a_cut_off_resync_goes_on_only_from_the_map_that_it_came_from() {
        let mut theirs = secondary(50);
        theirs.disk = Disk::Inconsistent;
        let mine = Means {
            resync_was_mine: true,
            ..means()
        };
        assert_eq!(
            decide(&primary(), &theirs, &mine),
            (Decision::Dirty, Rule::ResyncContinues)
        );
        let apart = Means {
            marked_apart: true,
            ..means()
        };
        for foreign in [means(), apart] {
            assert_eq!(
                decide(&primary(), &theirs, &foreign),
                (Decision::Full, Rule::ForeignResync)
            );
        }
        // It holds what another primary ordered.
        let foreign = GenerationId([9; 16]);
        theirs.line.begin(foreign, Term(3), Sequence(40));
        assert_eq!(
            decide(&primary(), &theirs, &mine),
            (Decision::Full, Rule::ForeignResync)
        );
    }

    #[test]
    fn a_crashed_replica_gets_its_doubtful_extents_again() {
        let mut theirs = secondary(50);
        theirs.suspects = 2;
        assert_eq!(
            decide(&primary(), &theirs, &means()),
            (Decision::Dirty, Rule::CrashedTarget)
        );
    }

    #[test]
    fn marks_that_no_journal_has_are_sent_from_the_map() {
        let pending = Means {
            marked_apart: true,
            journal_bytes: Some(1),
            ..means()
        };
        assert_eq!(
            decide(&primary(), &secondary(50), &pending),
            (Decision::Dirty, Rule::CrashedPrimary)
        );
    }

    #[test]
    fn a_secondarys_tail_is_given_up_and_a_primarys_is_a_split_brain() {
        let mut theirs = secondary(55);
        theirs.term = Term(2);
        let given_up = decide(&primary(), &theirs, &means());
        assert_eq!(
            given_up,
            (
                Decision::GiveUpTail {
                    after: Sequence(50)
                },
                Rule::StaleTail
            )
        );
        let other = report(Role::Primary, &Line::new(GenerationId([1; 16])), 55);
        assert_eq!(
            decide(&primary(), &other, &means()),
            (Decision::Refuse, Rule::BothWentOn)
        );
        let decided = Means {
            pool_decides: true,
            ..means()
        };
        assert_eq!(decide(&primary(), &other, &decided), given_up);
        let waited = Means {
            waited_for_me: true,
            ..means()
        };
        let mut before = other;
        before.term = Term(2);
        assert_eq!(decide(&primary(), &before, &waited), given_up);
    }

    /// ONE-3: the primary's brick was replaced by an older copy of itself.
    #[test]
    fn a_secondary_that_followed_another_primary_of_this_term_is_not_overwritten() {
        assert_eq!(
            decide(&primary(), &secondary(55), &means()),
            (Decision::Refuse, Rule::BothWentOn)
        );
    }

    #[test]
    fn marks_that_only_the_map_has_are_never_skipped() {
        let pending = Means {
            marked_apart: true,
            map_since: Some(Sequence(60)),
            ..means()
        };
        for last in [30, 50] {
            assert_eq!(
                decide(&primary(), &secondary(last), &pending),
                (Decision::Full, Rule::OlderThanMap)
            );
        }
    }

    #[test]
    fn an_empty_brick_is_filled() {
        let mut theirs = secondary(0);
        theirs.disk = Disk::Empty;
        assert_eq!(
            decide(&primary(), &theirs, &means()),
            (Decision::Full, Rule::EmptyBrick)
        );
    }

    #[test]
    fn foreign_data_and_later_terms_are_refused() {
        let foreign = report(Role::Secondary, &Line::new(GenerationId([9; 16])), 10);
        assert_eq!(
            decide(&primary(), &foreign, &means()),
            (Decision::Refuse, Rule::Unrelated)
        );
        let mut later = secondary(10);
        later.term = Term(4);
        assert_eq!(
            decide(&primary(), &later, &means()),
            (Decision::Refuse, Rule::LaterTerm)
        );
    }
}
