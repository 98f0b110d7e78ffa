//! How far a resync is and when it will end, without a clock of its own.

use std::time::Duration;

/// Progress of one resync. Times are durations since any fixed moment, handed in.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    started: Duration,
    done_bytes: u64,
    total_bytes: u64,
    sent_bytes: u64,
    /// (time, done) a while ago: the rate is measured over the recent past, not over all.
    mark: (Duration, u64),
    rate: Option<f64>,
}

/// How long one measurement of the rate lasts at least.
const WINDOW: Duration = Duration::from_millis(500);
/// Weight of the newest measurement.
const WEIGHT: f64 = 0.3;

impl Progress {
    /// A resync of `total_bytes` begins.
    #[must_use]
    pub fn begin(now: Duration, total_bytes: u64) -> Self {
        Self {
            started: now,
            done_bytes: 0,
            total_bytes,
            sent_bytes: 0,
            mark: (now, 0),
            rate: None,
        }
    }

    /// `sent` bytes crossed the wire, headers included.
    pub fn sent(&mut self, bytes: u64) {
        self.sent_bytes += bytes;
    }

    /// `bytes` more are in place at the target.
    pub fn done(&mut self, now: Duration, bytes: u64) {
        self.done_bytes += bytes;
        // What changes during the resync can be found dirty again: the total follows.
        self.total_bytes = self.total_bytes.max(self.done_bytes);
        let passed = now.saturating_sub(self.mark.0);
        if passed >= WINDOW {
            let fresh = (self.done_bytes - self.mark.1) as f64 / passed.as_secs_f64();
            self.rate = Some(self.rate.map_or(fresh, |old| old + WEIGHT * (fresh - old)));
            self.mark = (now, self.done_bytes);
        }
    }

    /// Bytes in place.
    #[must_use]
    pub fn done_bytes(&self) -> u64 {
        self.done_bytes
    }
    /// Bytes in all, as far as known.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }
    /// Bytes on the wire.
    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }
    /// Time since it began.
    #[must_use]
    pub fn lasted(&self, now: Duration) -> Duration {
        now.saturating_sub(self.started)
    }
    /// Bytes a second lately; `None` until measured.
    #[must_use]
    pub fn rate(&self) -> Option<f64> {
        self.rate
    }
    /// Time left at the recent rate; `None` where no honest answer can be given: nothing was
    /// measured yet, or nothing moves.
    #[must_use]
    pub fn time_left(&self, now: Duration) -> Option<Duration> {
        let rate = self.rate.filter(|rate| *rate >= 1.0)?;
        let stalled = now.saturating_sub(self.mark.0) > 20 * WINDOW;
        let left = self.total_bytes.saturating_sub(self.done_bytes) as f64;
        (!stalled).then(|| Duration::from_secs_f64(left / rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_follows_the_recent_rate_and_is_withheld_when_nothing_moves() {
        let at = Duration::from_secs;
        let mut progress = Progress::begin(at(0), 1000);
        assert_eq!(progress.time_left(at(0)), None);
        progress.done(at(1), 100);
        assert_eq!(progress.time_left(at(1)), Some(at(9)));
        progress.done(at(2), 100);
        assert_eq!(progress.time_left(at(2)), Some(at(8)));
        assert_eq!(progress.time_left(at(60)), None);
    }
}
