//! Logs go to stderr; `CAIRN_LOG` filters them as `RUST_LOG` does elsewhere.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing_subscriber::EnvFilter;

/// Levels where `CAIRN_LOG` says nothing. The Raft library calls every vote and every node that is
/// down a warning; what operators need of it is said by the pool in its own words.
const DEFAULT_FILTER: &str = "info,openraft=off";

/// Starts logging. A second call changes nothing.
pub fn init() {
    let filter =
        EnvFilter::try_from_env("CAIRN_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    // An error means that a subscriber is set already: in tests, by another one.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(false)
        .try_init();
}

/// Lets a message through so often and counts the others: strangers on the port must not be able
/// to fill the log.
#[derive(Debug)]
pub struct RateLimit {
    state: Mutex<Window>,
    per_window_max: u32,
    window: Duration,
}

#[derive(Debug)]
struct Window {
    began: Instant,
    passed: u32,
    held_back: u64,
}

impl RateLimit {
    /// At most `per_window_max` in each `window`.
    #[must_use]
    pub fn new(per_window_max: u32, window: Duration) -> Self {
        Self {
            state: Mutex::new(Window {
                began: Instant::now(),
                passed: 0,
                held_back: 0,
            }),
            per_window_max,
            window,
        }
    }

    /// `Some(n)`: say it, and that `n` were held back before. `None`: hold this one back.
    pub fn pass(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock();
        if now.duration_since(state.began) >= self.window {
            state.began = now;
            state.passed = 0;
        }
        if state.passed == self.per_window_max {
            state.held_back += 1;
            return None;
        }
        state.passed += 1;
        Some(std::mem::take(&mut state.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_held_back_and_counted() {
        let limit = RateLimit::new(2, Duration::from_secs(1));
        let now = Instant::now();
        assert_eq!(limit.pass(now), Some(0));
        assert_eq!(limit.pass(now), Some(0));
        assert_eq!(limit.pass(now), None);
        assert_eq!(limit.pass(now + Duration::from_secs(2)), Some(1));
    }
}
