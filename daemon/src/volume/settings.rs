//! The options of a volume that its driver goes by.

use std::time::Duration;

use protocol::volume::VolumeSpec;

/// Options with their values in force.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// How long a returning primary waits for the other members of its set.
    pub(super) activation_wait: Duration,
    /// A replica that says or acknowledges nothing for so long leaves the set.
    pub(super) replica_deadline: Duration,
    /// A client that says nothing for so long has ended.
    pub(super) session_timeout: Duration,
    /// Upper bound of a resync; `None`: none.
    pub(super) resync_bytes_per_second_max: Option<u64>,
    /// Nobody writes.
    pub(super) read_only: bool,
}

impl Settings {
    /// Of a volume's configuration; values were checked when they were set.
    pub(super) fn of(spec: &VolumeSpec) -> Self {
        let get = |key: &str| spec.options.get(key).map(String::as_str);
        let duration =
            |key: &str, default: Duration| get(key).and_then(parse_duration).unwrap_or(default);
        Self {
            activation_wait: Duration::from_secs(2),
            replica_deadline: duration("replica-deadline", Duration::from_secs(3)),
            session_timeout: duration("session-timeout", Duration::from_secs(30)),
            resync_bytes_per_second_max: get("resync-max-rate")
                .and_then(parse_size)
                .filter(|rate| *rate > 0),
            read_only: matches!(get("read-only"), Some("on" | "true" | "yes" | "1")),
        }
    }
}

/// `250ms`, `3s`, `2m`, or seconds with an optional fraction.
fn parse_duration(text: &str) -> Option<Duration> {
    let (number, scale) = if let Some(number) = text.strip_suffix("ms") {
        (number, 0.001)
    } else if let Some(number) = text.strip_suffix('s') {
        (number, 1.0)
    } else if let Some(number) = text.strip_suffix('m') {
        (number, 60.0)
    } else {
        (text, 1.0)
    };
    let seconds = number.trim().parse::<f64>().ok()? * scale;
    Duration::try_from_secs_f64(seconds).ok()
}

/// Bytes, with K, M, G or T as powers of 1024.
fn parse_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let scale = match &text[digits.len()..] {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << scale)
}
