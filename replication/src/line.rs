//! A replica's past: which generation ordered which sequences.

use protocol::ids::GenerationId;
use protocol::units::{Sequence, Term};
use serde::{Deserialize, Serialize};

/// Most generations that a line remembers. Older ones are folded into the oldest kept, so a
/// replica that was away for more generations than this is compared by checksums, not by history.
pub const GENERATIONS_MAX: usize = 256;

/// A stretch of one generation: it ordered the records after `after`, up to where the next one
/// begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stretch {
    /// Its generation.
    pub generation: GenerationId,
    /// The last sequence before its own first.
    pub after: Sequence,
    /// The term of the primary that began it; 0 where an older version wrote it down.
    #[serde(default)]
    pub term: Term,
}

/// A past: stretches in rising order. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Stretch>", into = "Vec<Stretch>")]
pub struct Line {
    stretches: Vec<Stretch>,
}

/// Stretches that are no line: none at all, or not in rising order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a history needs at least one generation, in rising order")]
pub struct BadLine;

impl TryFrom<Vec<Stretch>> for Line {
    type Error = BadLine;
    fn try_from(stretches: Vec<Stretch>) -> Result<Self, BadLine> {
        let rising = stretches
            .windows(2)
            .all(|pair| pair[0].after <= pair[1].after);
        if stretches.is_empty() || !rising || stretches.len() > 2 * GENERATIONS_MAX {
            return Err(BadLine);
        }
        Ok(Self { stretches })
    }
}

impl From<Line> for Vec<Stretch> {
    fn from(line: Line) -> Self {
        line.stretches
    }
}

/// How two replicas' pasts relate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// No record of one is known to be the other's.
    Unrelated,
    /// The last place that both have in common, and whether each went on after it.
    Common {
        /// The last common place.
        at: Sequence,
        /// Mine has records after it.
        i_went_on: bool,
        /// Theirs has.
        they_went_on: bool,
    },
}

impl Line {
    /// The past of a volume just made.
    #[must_use]
    pub fn new(generation: GenerationId) -> Self {
        Self {
            stretches: vec![Stretch {
                generation,
                after: Sequence::ZERO,
                term: Term(0),
            }],
        }
    }

    /// The generation that orders now.
    #[must_use]
    pub fn current(&self) -> GenerationId {
        self.stretches
            .last()
            .expect("a line is never empty")
            .generation
    }

    /// A primary of `term` begins a new generation after `last`. Stretches that begin at or beyond `last` ordered
    /// nothing that is kept, and are dropped.
    pub fn begin(&mut self, generation: GenerationId, term: Term, last: Sequence) {
        // The first stretch is the volume's birth: it identifies the volume's data and stays.
        while self.stretches.len() > 1 && self.stretches[self.stretches.len() - 1].after >= last {
            self.stretches.pop();
        }
        self.stretches.push(Stretch {
            generation,
            after: last,
            term,
        });
        if self.stretches.len() > GENERATIONS_MAX {
            self.stretches.remove(1);
        }
    }

    /// The generation that ordered the record at `sequence`; at 0 the first.
    #[must_use]
    pub fn at(&self, sequence: Sequence) -> GenerationId {
        let after = self.stretches.partition_point(|s| s.after < sequence);
        self.stretches[after.saturating_sub(1)].generation
    }

    /// The term of the primary that ordered the record at `sequence`; 0 where that is not known.
    #[must_use]
    pub fn term_at(&self, sequence: Sequence) -> Term {
        let after = self.stretches.partition_point(|s| s.after < sequence);
        self.stretches[after.saturating_sub(1)].term
    }

    /// The last record of `term` and of those before it that is part of this past; `None`: no
    /// later term is known here, so nothing was left out.
    #[must_use]
    pub fn end_of(&self, term: Term) -> Option<Sequence> {
        let later = self.stretches.iter().find(|s| s.term > term);
        later.map(|stretch| stretch.after)
    }

    /// Stretches, oldest first.
    #[must_use]
    pub fn stretches(&self) -> &[Stretch] {
        &self.stretches
    }

    /// Each stretch up to `last` as (generation, first excluded, last included).
    fn spans(&self, last: Sequence) -> impl Iterator<Item = (GenerationId, Sequence, Sequence)> {
        self.stretches.iter().enumerate().map_while(move |(i, s)| {
            if s.after > last {
                return None;
            }
            let end = self
                .stretches
                .get(i + 1)
                .map_or(last, |next| next.after.min(last));
            Some((s.generation, s.after, end))
        })
    }

    /// Compares this past, which ends at `my_last`, with another.
    #[must_use]
    pub fn relation(&self, my_last: Sequence, theirs: &Self, their_last: Sequence) -> Relation {
        let mut common = None;
        for (generation, my_after, my_end) in self.spans(my_last) {
            for (other, their_after, their_end) in theirs.spans(their_last) {
                // A generation begins at one place only; a begin that differs is the folding of
                // an old line, where the later begin is the safe one.
                let begins = my_after.max(their_after);
                let end = my_end.min(their_end);
                if generation == other && begins <= end {
                    common = common.max(Some(end));
                }
            }
        }
        match common {
            None => Relation::Unrelated,
            Some(at) => Relation::Common {
                at,
                i_went_on: my_last > at,
                they_went_on: their_last > at,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn generation(n: u8) -> GenerationId {
        GenerationId([n; 16])
    }

    fn common(at: u64, i_went_on: bool, they_went_on: bool) -> Relation {
        Relation::Common {
            at: Sequence(at),
            i_went_on,
            they_went_on,
        }
    }

    #[test]
    fn a_replica_that_was_away_is_behind_on_the_same_line() {
        let mut mine = Line::new(generation(1));
        let theirs = mine.clone();
        mine.begin(generation(2), Term(1), Sequence(10));
        assert_eq!(
            mine.relation(Sequence(20), &theirs, Sequence(8)),
            common(8, true, false)
        );
        assert_eq!(
            theirs.relation(Sequence(8), &mine, Sequence(20)),
            common(8, false, true)
        );
    }

    #[test]
    fn a_tail_beyond_the_branch_is_noticed_on_either_side() {
        let mut mine = Line::new(generation(1));
        let theirs = mine.clone();
        mine.begin(generation(2), Term(1), Sequence(10));
        assert_eq!(
            mine.relation(Sequence(20), &theirs, Sequence(12)),
            common(10, true, true)
        );
        // The primary lost its own tail in a power cut and has ordered nothing new.
        assert_eq!(
            mine.relation(Sequence(10), &theirs, Sequence(12)),
            common(10, false, true)
        );
    }

    #[test]
    fn two_generations_from_one_root_share_only_the_root() {
        let root = Line::new(generation(1));
        let (mut a, mut b) = (root.clone(), root);
        a.begin(generation(2), Term(1), Sequence(5));
        b.begin(generation(3), Term(1), Sequence(7));
        assert_eq!(
            a.relation(Sequence(9), &b, Sequence(9)),
            common(5, true, true)
        );
    }

    #[test]
    fn what_a_take_over_left_out_is_known_by_the_term_that_ordered_it() {
        let mut line = Line::new(generation(1));
        line.begin(generation(2), Term(3), Sequence(10));
        line.begin(generation(3), Term(3), Sequence(20));
        line.begin(generation(4), Term(4), Sequence(25));
        line.begin(generation(5), Term(6), Sequence(40));
        assert_eq!(line.end_of(Term(3)), Some(Sequence(25)));
        assert_eq!(line.end_of(Term(5)), Some(Sequence(40)));
        assert_eq!(line.end_of(Term(6)), None);
    }

    #[test]
    fn volumes_of_different_birth_are_unrelated() {
        let relation =
            Line::new(generation(1)).relation(Sequence(1), &Line::new(generation(2)), Sequence(1));
        assert_eq!(relation, Relation::Unrelated);
    }

    #[test]
    fn the_generation_of_each_sequence_is_found() {
        let mut line = Line::new(generation(1));
        line.begin(generation(2), Term(1), Sequence(5));
        line.begin(generation(3), Term(1), Sequence(9));
        let of = |n| line.at(Sequence(n));
        assert_eq!(
            (of(0), of(5), of(6), of(9), of(10)),
            (
                generation(1),
                generation(1),
                generation(2),
                generation(2),
                generation(3)
            )
        );
    }

    /// A slow oracle: a past as the list of (generation) per sequence.
    fn spelled_out(steps: &[(u8, u8)]) -> (Line, Vec<GenerationId>) {
        let mut line = Line::new(generation(0));
        let mut written = Vec::new();
        for &(count, next) in steps {
            let current = line.current();
            written.extend(std::iter::repeat_n(current, usize::from(count)));
            line.begin(generation(next), Term(1), Sequence(written.len() as u64));
        }
        (line, written)
    }

    proptest! {
        #[test]
        fn relation_agrees_with_comparing_record_by_record(
            shared in proptest::collection::vec((1u8..5, 1u8..50), 0..4),
            mine in proptest::collection::vec((1u8..5, 50u8..100), 0..4),
            theirs in proptest::collection::vec((1u8..5, 100u8..150), 0..4),
        ) {
            // Generations are random ids in life, so a scenario never meets one twice.
            let mut seen = std::collections::HashSet::new();
            for (_, g) in shared.iter().chain(&mine).chain(&theirs) {
                prop_assume!(seen.insert(*g));
            }
            let (a, a_written) = spelled_out(&[shared.clone(), mine].concat());
            let (b, b_written) = spelled_out(&[shared, theirs].concat());
            let (a_last, b_last) = (a_written.len() as u64, b_written.len() as u64);
            let same = a_written.iter().zip(&b_written).take_while(|(x, y)| x == y).count() as u64;
            prop_assert_eq!(
                a.relation(Sequence(a_last), &b, Sequence(b_last)),
                common(same, a_last > same, b_last > same)
            );
        }
    }
}
