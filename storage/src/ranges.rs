//! Sets of half-open ranges: what is zeroed, what is dirty, what is suspect.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of numbers, kept as disjoint ranges that do not touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// Start to end.
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// Adds every number of `range`.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        // Every range that touches the new one starts at or before its end.
        while let Some((&s, &e)) = self.ranges.range(..=end).next_back() {
            if e < start {
                break;
            }
            start = start.min(s);
            end = end.max(e);
            self.ranges.remove(&s);
        }
        self.ranges.insert(start, end);
    }

    /// Takes every number of `range` out.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        while let Some((&s, &e)) = self.ranges.range(..range.end).next_back() {
            if e <= range.start {
                break;
            }
            self.ranges.remove(&s);
            if e > range.end {
                self.ranges.insert(range.end, e);
            }
            if s < range.start {
                self.ranges.insert(s, range.start);
                break;
            }
        }
    }

    /// Whether any number of `range` is in the set.
    #[must_use]
    pub fn overlaps(&self, range: Range<u64>) -> bool {
        !range.is_empty()
            && self
                .ranges
                .range(..range.end)
                .next_back()
                .is_some_and(|(_, &end)| end > range.start)
    }

    /// Whether the number is in the set.
    #[must_use]
    pub fn contains(&self, number: u64) -> bool {
        self.ranges
            .range(..=number)
            .next_back()
            .is_some_and(|(_, &end)| end > number)
    }

    /// The ranges, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges.iter().map(|(&s, &e)| s..e)
    }

    /// The parts of `within` that are in the set, ascending.
    pub fn iter_within(&self, within: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let first = self
            .ranges
            .range(..=within.start)
            .next_back()
            .filter(|(_, e)| **e > within.start)
            .map_or(within.start, |(&s, _)| s);
        let last = within.end.max(first);
        self.ranges
            .range(first..last)
            .map(move |(&s, &e)| s.max(within.start)..e.min(within.end))
            .filter(|range| !range.is_empty())
    }

    /// How many numbers are in the set.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.iter().map(|range| range.end - range.start).sum()
    }

    /// How many ranges there are: what the set costs in memory.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn a_range_set_answers_as_a_plain_set_does(
            steps in prop::collection::vec((any::<bool>(), 0_u64..60, 0_u64..20), 1..60),
            probe in (0_u64..70, 0_u64..10),
        ) {
            let mut set = RangeSet::default();
            let mut oracle = BTreeSet::new();
            for (add, start, len) in steps {
                if add {
                    set.insert(start..start + len);
                    oracle.extend(start..start + len);
                } else {
                    set.remove(start..start + len);
                    oracle.retain(|n| !(start..start + len).contains(n));
                }
            }
            let flat: Vec<u64> = set.iter().flatten().collect();
            prop_assert_eq!(&flat, &oracle.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(set.total(), oracle.len() as u64);
            let within = probe.0..probe.0 + probe.1;
            let found: Vec<u64> = set.iter_within(within.clone()).flatten().collect();
            let wanted: Vec<u64> = within.clone().filter(|n| oracle.contains(n)).collect();
            prop_assert_eq!(set.overlaps(within), !wanted.is_empty());
            prop_assert_eq!(found, wanted);
            prop_assert_eq!(set.contains(probe.0), oracle.contains(&probe.0));
            // Touching ranges are joined.
            let ranges: Vec<_> = set.iter().collect();
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }
}
