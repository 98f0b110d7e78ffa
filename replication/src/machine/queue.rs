//! What a primary ordered and its replicas have not applied yet, by sequence, bytes and time: how
//! far a replica lags, and what fits the bound of protocol A.

use std::collections::VecDeque;
use std::time::Duration;

use protocol::units::Sequence;

/// Entries kept. Where there are more, neighbours are taken together, and a place between them
/// counts as the earlier one: lags are told up to that much too large, never too small.
const ENTRIES_MAX: usize = 8192;

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// The last record that it stands for; the first follows the entry before.
    last: Sequence,
    /// Bytes ordered up to and with `last`.
    total: u64,
    /// When its first record was ordered.
    at: Duration,
}

/// How far a replica is behind the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lag {
    /// Bytes of records, headers included, that the replica has not applied.
    pub bytes: u64,
    /// Since when the oldest of them waits; `None`: there are none.
    pub since: Option<Duration>,
}

/// The records that somebody lacks, in order.
#[derive(Debug, Default)]
pub(super) struct Queue {
    entries: VecDeque<Entry>,
    /// Bytes ordered before the first entry.
    forgotten: u64,
}

impl Queue {
    /// A record was ordered.
    pub(super) fn ordered(&mut self, sequence: Sequence, bytes: u64, now: Duration) {
        let total = self.total() + bytes;
        self.entries.push_back(Entry {
            last: sequence,
            total,
            at: now,
        });
        if self.entries.len() > ENTRIES_MAX {
            let mut halved = VecDeque::with_capacity(ENTRIES_MAX);
            let mut entries = self.entries.iter();
            while let Some(first) = entries.next() {
                let last = entries.next().unwrap_or(first);
                halved.push_back(Entry {
                    at: first.at,
                    ..*last
                });
            }
            self.entries = halved;
        }
    }

    /// Bytes ordered in all.
    pub(super) fn total(&self) -> u64 {
        self.entries.back().map_or(self.forgotten, |e| e.total)
    }

    /// Bytes ordered up to and with `sequence`.
    pub(super) fn total_at(&self, sequence: Sequence) -> u64 {
        let after = self.entries.partition_point(|e| e.last <= sequence);
        match after.checked_sub(1) {
            Some(before) => self.entries[before].total,
            None => self.forgotten,
        }
    }

    /// How far somebody is behind who has applied everything up to `applied`.
    pub(super) fn lag(&self, applied: Sequence) -> Lag {
        let first = self.entries.partition_point(|e| e.last <= applied);
        Lag {
            bytes: self.total() - self.total_at(applied),
            since: self.entries.get(first).map(|entry| entry.at),
        }
    }

    /// The last record that fits a queue of `bytes_max` towards somebody who has applied
    /// everything up to `applied`. One record always fits.
    pub(super) fn reach(&self, applied: Sequence, bytes_max: u64) -> Sequence {
        let most = self.total_at(applied).saturating_add(bytes_max);
        let beyond = self.entries.partition_point(|e| e.total <= most);
        let fits = beyond
            .checked_sub(1)
            .map_or(Sequence::ZERO, |i| self.entries[i].last);
        fits.max(applied.next())
    }

    /// Nobody lacks anything up to here.
    pub(super) fn forget(&mut self, upto: Sequence) {
        while self.entries.front().is_some_and(|e| e.last <= upto) {
            if let Some(entry) = self.entries.pop_front() {
                self.forgotten = entry.total;
            }
        }
    }

    /// Nobody lacks anything.
    pub(super) fn clear(&mut self) {
        self.forgotten = self.total();
        self.entries.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_lag_is_what_was_ordered_after_the_last_applied_record_and_its_age() {
        let mut queue = Queue::default();
        for n in 1..=4 {
            queue.ordered(Sequence(n), 10 * n, at(n));
        }
        let lag = |bytes, since: u64| Lag {
            bytes,
            since: Some(at(since)),
        };
        assert_eq!(queue.lag(Sequence(0)), lag(100, 1));
        assert_eq!(queue.lag(Sequence(2)), lag(70, 3));
        queue.forget(Sequence(2));
        assert_eq!(queue.lag(Sequence(3)), lag(40, 4));
        assert_eq!(queue.lag(Sequence(4)), Lag::default());
        queue.clear();
        assert_eq!(
            (queue.lag(Sequence(0)), queue.total()),
            (Lag::default(), 100)
        );
    }

    #[test]
    fn one_record_always_fits_and_more_up_to_the_bound() {
        let mut queue = Queue::default();
        for n in 1..=4 {
            queue.ordered(Sequence(n), 10, at(n));
        }
        assert_eq!(queue.reach(Sequence(0), 5), Sequence(1));
        assert_eq!(queue.reach(Sequence(0), 29), Sequence(2));
        assert_eq!(queue.reach(Sequence(1), 30), Sequence(4));
    }

    proptest! {
        /// However entries are taken together, a lag is never told too small and the bound never
        /// taken too wide.
        #[test]
        fn a_long_queue_is_told_too_long_rather_than_too_short(
            sizes in proptest::collection::vec(1u64..100, 1..40),
            rounds in 1usize..1000,
            applied in 0u64..40_000,
            bytes_max in 0u64..100_000,
        ) {
            let mut queue = Queue::default();
            let mut totals = vec![0];
            for (n, bytes) in sizes.iter().cycle().take(sizes.len() * rounds).enumerate() {
                queue.ordered(Sequence(n as u64 + 1), *bytes, at(n as u64));
                totals.push(totals[n] + bytes);
            }
            let applied = applied.min(totals.len() as u64 - 1);
            let here = totals[applied as usize];
            let behind = totals[totals.len() - 1] - here;
            let lag = queue.lag(Sequence(applied));
            prop_assert!(lag.bytes >= behind);
            prop_assert!(behind == 0 || lag.since <= Some(at(applied)));
            prop_assert_eq!(behind == 0, lag.since.is_none());
            let reach = queue.reach(Sequence(applied), bytes_max).0;
            if let Some(total) = totals.get(reach as usize) {
                prop_assert!(reach == applied + 1 || total - here <= bytes_max);
            }
        }
    }
}
