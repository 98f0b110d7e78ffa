//! How fast a resync may go beside applications (RS-3), without a clock of its own.
//!
//! What is held is the 99th percentile of what applications wait for, at most [`BOUND`] times what it
//! is without the resync. An operation of theirs is several answers of which one is slow, such as a
//! write and its fsync: among answers it is taken as [`TAIL`]. Both are measured, window by window: the usual
//! latency before the resync and in short pauses of it, the other one in between. Above the bound
//! the rate falls by a factor, well below it rises by one, as in Chiu and Jain (1989) with a
//! multiplicative rise, because what is fair between two does not matter here. It never falls
//! below [`FLOOR`] of what the resync reached alone, so that it ends. Where nobody waits for
//! anything there is no bound.

use std::time::Duration;

/// It may rise to this multiple of the usual one: half more (RS-3) less a margin for what cannot be
/// seen here, as what waits to be read and what the client's machine does.
pub const BOUND: f64 = 1.4;
/// Below this multiple of the usual one the rate rises.
const CALM: f64 = 1.25;
/// The part of all answers that is faster.
const TAIL: f64 = 0.995;
/// Part of its free rate that a resync keeps: the 10 % of RS-3 and what the pauses cost.
pub const FLOOR: f64 = 0.12;
/// Bytes a second that a resync keeps in any case.
const RATE_MIN: f64 = (1 << 20) as f64;
/// What the rate is multiplied by.
const FALL: f64 = 0.7;
const RISE: f64 = 1.1;
/// A window is no shorter, so that one answer more or less does not decide.
const WINDOW: Duration = Duration::from_millis(100);
/// A window ends here, whatever it holds.
const WINDOW_MAX: Duration = Duration::from_millis(500);
/// Answers that make a window worth being looked at early.
const ANSWERS_ENOUGH: u32 = 200;
/// With fewer answers in a whole window nobody works.
const ANSWERS_MIN: u32 = 5;
/// Windows between two pauses in which the usual latency is measured.
const WINDOWS_BETWEEN_PAUSES: u32 = 60;
/// What was sent before a pause is still felt for so long, and for so many windows more where they
/// are slower than usual.
const SETTLES: Duration = Duration::from_millis(30);
const WINDOWS_MORE: u32 = 8;
/// Weight that older windows keep in the usual latency, and in the one beside the resync.
const USUAL_KEEPS: f64 = 0.9;
const BESIDE_KEEPS: f64 = 0.6;
/// In a pause what was sent may still be felt, as disks write on: what is slower than usual there may
/// be so without the resync, or not, and counts only so much of a window.
const SLOWER_COUNTS: f64 = 0.02;
/// Bytes sent at once beside applications: half a millisecond of a link with 1 Gbit/s.
const PIECE_BYTES: usize = 64 << 10;
/// Bounds between two buckets of latencies differ by this factor.
const STEP: f64 = 1.1;
/// The first bucket's bound, seconds.
const FIRST: f64 = 10e-6;
/// Buckets: up to some two minutes.
const BUCKETS: usize = 172;

/// How often which latency occurred, with weights.
#[derive(Debug, Clone, PartialEq)]
struct Latencies {
    counts: Vec<f64>,
    answers: u32,
}

impl Default for Latencies {
    fn default() -> Self {
        Self {
            counts: vec![0.0; BUCKETS],
            answers: 0,
        }
    }
}

impl Latencies {
    fn add(&mut self, latency: Duration) {
        let above = (latency.as_secs_f64() / FIRST).max(1.0);
        let bucket = above.log(STEP).ceil() as usize;
        self.counts[bucket.min(BUCKETS - 1)] += 1.0;
        self.answers += 1;
    }

    /// What was there keeps only part of its weight, and `fresh` is added with all of its own; of
    /// both only a part happens, 1 for all.
    fn absorb(&mut self, fresh: &Self, keeps: f64, part: f64) {
        for (count, new) in self.counts.iter_mut().zip(&fresh.counts) {
            *count += (*count * (keeps - 1.0) + new) * part;
        }
        self.answers = self.answers.saturating_add(fresh.answers);
    }

    /// What a part of [`TAIL`] is faster than, in seconds: the upper bound of its bucket. `None`
    /// without answers.
    fn tail(&self) -> Option<f64> {
        if self.answers == 0 {
            return None;
        }
        let all: f64 = self.counts.iter().sum();
        let mut below = 0.0;
        let bucket = self.counts.iter().position(|count| {
            below += count;
            below >= all * TAIL
        });
        Some(FIRST * STEP.powi(i32::try_from(bucket?).ok()?))
    }
}

/// What a resync does at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// There is none.
    Idle,
    /// It sends.
    Sends,
    /// It waits until what it sent is through, and then until the usual latency is known.
    Pauses {
        /// From here on answers count.
        settled: Duration,
        /// While a window is slower than usual, so many more are waited for.
        more: u32,
    },
}

/// The throttle of one volume's resyncs. Times are durations since any fixed moment, handed in.
#[derive(Debug, Clone)]
pub struct Throttle {
    state: State,
    window: Latencies,
    began: Duration,
    sent_bytes: u64,
    /// What applications wait when there is no resync.
    usual: Latencies,
    /// What they wait beside it, since the rate last fell.
    beside: Latencies,
    windows: u32,
    /// Bytes a second; `None`: no bound.
    rate: Option<f64>,
    /// The most that was reached without bound.
    free_rate: f64,
    /// Up to here the rate is used up.
    used_until: Duration,
}

impl Default for Throttle {
    fn default() -> Self {
        Self {
            state: State::Idle,
            window: Latencies::default(),
            began: Duration::ZERO,
            sent_bytes: 0,
            usual: Latencies::default(),
            beside: Latencies::default(),
            windows: 0,
            rate: None,
            free_rate: 0.0,
            used_until: Duration::ZERO,
        }
    }
}

impl Throttle {
    /// An application got an answer that took so long.
    pub fn answered(&mut self, now: Duration, latency: Duration) {
        let counts = match self.state {
            State::Pauses { settled, .. } => now >= settled,
            State::Idle | State::Sends => true,
        };
        if counts {
            self.window.add(latency);
        }
        self.turn(now);
    }

    /// Tells whether a resync is under way now.
    pub fn resyncs(&mut self, now: Duration, under_way: bool) {
        if under_way != (self.state != State::Idle) {
            self.close(now);
            self.state = if under_way { State::Sends } else { State::Idle };
            self.beside = Latencies::default();
            (self.windows, self.rate, self.free_rate) = (0, None, 0.0);
        }
    }

    /// Time has passed.
    pub fn turn(&mut self, now: Duration) {
        let lasted = now.saturating_sub(self.began);
        let enough = lasted >= WINDOW && self.window.answers >= ANSWERS_ENOUGH;
        if enough || lasted >= WINDOW_MAX {
            self.close(now);
        }
    }

    /// How many bytes the resync sends at once.
    #[must_use]
    pub fn piece_bytes(&self, most: usize) -> usize {
        match self.rate {
            Some(_) => PIECE_BYTES.min(most),
            None => most,
        }
    }

    /// Bytes a second that are allowed now; `None`: no bound.
    #[must_use]
    pub fn rate(&self) -> Option<u64> {
        self.rate.map(|rate| rate as u64)
    }

    /// The resync sent so many bytes, and may send more at the moment that is returned. `most` is
    /// a bound in bytes a second that holds besides.
    pub fn sent(&mut self, now: Duration, bytes: usize, most: Option<u64>) -> Duration {
        self.sent_bytes += bytes as u64;
        self.turn(now);
        let most = most.map_or(f64::INFINITY, |most| most as f64);
        let rate = self.rate.unwrap_or(f64::INFINITY).min(most).max(1.0);
        self.used_until = self.used_until.max(now) + Duration::from_secs_f64(bytes as f64 / rate);
        self.used_until
    }

    /// Whether nothing is to be sent now: the usual latency is being measured.
    #[must_use]
    pub fn pauses(&self) -> bool {
        matches!(self.state, State::Pauses { .. })
    }

    fn close(&mut self, now: Duration) {
        let lasted = now.saturating_sub(self.began);
        let window = std::mem::take(&mut self.window);
        let sent = std::mem::take(&mut self.sent_bytes);
        self.began = now;
        match self.state {
            State::Idle if window.answers >= ANSWERS_MIN => {
                self.usual.absorb(&window, USUAL_KEEPS, 1.0);
            }
            State::Idle => {}
            State::Pauses { settled, more } => {
                let both = self.usual.tail().zip(window.tail());
                let slower = both.is_some_and(|(usual, now)| now > usual);
                if slower && more > 0 {
                    let more = more - 1;
                    self.state = State::Pauses { settled, more };
                    return;
                }
                if window.answers >= ANSWERS_MIN {
                    let part = if slower { SLOWER_COUNTS } else { 1.0 };
                    self.usual.absorb(&window, USUAL_KEEPS, part);
                }
                self.state = State::Sends;
            }
            State::Sends => self.judge(now, &window, sent as f64 / lasted.as_secs_f64().max(1e-6)),
        }
    }

    /// A window in which the resync sent at `reached` bytes a second is over.
    fn judge(&mut self, now: Duration, window: &Latencies, reached: f64) {
        if self.rate.is_none() {
            self.free_rate = self.free_rate.max(reached);
        }
        if window.answers < ANSWERS_MIN || self.free_rate == 0.0 {
            self.rate = None;
            self.beside = Latencies::default();
            return;
        }
        self.windows += 1;
        self.beside.absorb(window, BESIDE_KEEPS, 1.0);
        let Some((usual, beside)) = self.usual.tail().zip(self.beside.tail()) else {
            // Nobody worked before the resync began.
            self.pause(now);
            return;
        };
        let floor = (self.free_rate * FLOOR).max(RATE_MIN);
        let rate = self.rate.unwrap_or(self.free_rate);
        if beside > usual * BOUND {
            self.rate = Some((rate * FALL).max(floor));
            self.beside = Latencies::default();
        } else if let (true, Some(rate)) = (beside < usual * CALM, self.rate) {
            // What the rate allows and the link does not give is no reason to allow more.
            if reached > rate * 0.5 {
                self.rate = Some(rate * RISE);
            }
        }
        if self.windows.is_multiple_of(WINDOWS_BETWEEN_PAUSES) {
            self.pause(now);
        }
    }

    fn pause(&mut self, now: Duration) {
        self.state = State::Pauses {
            settled: now + SETTLES,
            more: WINDOWS_MORE,
        };
    }
}

#[cfg(test)]
#[path = "throttle_tests.rs"]
mod tests;
