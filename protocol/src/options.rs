//! Options of volumes: one table with default, range and meaning, and typed reading of values.
//!
//! Sizes take K, M, G, T as powers of 1024; durations take ms, s, m, h; a bare number is bytes or
//! milliseconds.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::allow::AllowList;
use crate::link::LinkProfile;

/// What values an option takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionKind {
    /// One of these words.
    Word(&'static [&'static str]),
    /// One of these words, or a node's name after this one.
    WordOrNode {
        /// Words that stand alone.
        words: &'static [&'static str],
        /// The word before `=NODE`.
        before: &'static str,
    },
    /// Bytes.
    Bytes {
        /// Least.
        min: u64,
        /// Most.
        max: u64,
    },
    /// A time.
    Duration {
        /// Least, in milliseconds.
        ms_min: u64,
        /// Most, in milliseconds.
        ms_max: u64,
    },
    /// A number.
    Count {
        /// Least.
        min: u64,
        /// Most.
        max: u64,
    },
    /// `on` or `off`.
    Switch,
    /// Text.
    Text {
        /// Longest, in bytes.
        bytes_max: usize,
    },
    /// Who may come: [`AllowList`].
    Allow {
        /// Longest, in bytes.
        bytes_max: usize,
    },
}

/// One option.
#[derive(Debug, Clone, Copy)]
pub struct OptionRule {
    /// Its name.
    pub key: &'static str,
    /// What it takes.
    pub kind: OptionKind,
    /// Value where none was set; empty: none.
    pub default: &'static str,
    /// What it does, in one sentence.
    pub meaning: &'static str,
}

const K: u64 = 1 << 10;
const M: u64 = 1 << 20;
const G: u64 = 1 << 30;

/// Every option, in the order of the interface.
pub const OPTIONS: &[OptionRule] = &[
    OptionRule {
        key: "protocol",
        kind: OptionKind::Word(&["A", "B", "C"]),
        default: "C",
        meaning: "When a write is confirmed: A at the primary, B received by every in-sync replica, C applied by every in-sync replica.",
    },
    OptionRule {
        key: "quorum",
        kind: OptionKind::Word(&["majority", "off"]),
        default: "off",
        meaning: "Who decides about roles: the pool's majority, or with two nodes the bricks and the operator.",
    },
    OptionRule {
        key: "size",
        kind: OptionKind::Bytes {
            min: M,
            max: 1 << 50,
        },
        default: "",
        meaning: "Size of a block volume, a multiple of 4096 bytes; it grows while it is used, and is cut only by force.",
    },
    OptionRule {
        key: "split-brain-policy",
        kind: OptionKind::WordOrNode {
            words: &[
                "manual",
                "discard-fewer-changes",
                "discard-older-primary",
                "discard-younger-primary",
            ],
            before: "prefer",
        },
        default: "manual",
        meaning: "Which side goes when two histories diverged; it is kept readable.",
    },
    OptionRule {
        key: "resync-max-rate",
        kind: OptionKind::Bytes {
            min: 0,
            max: 100 * G,
        },
        default: "0",
        meaning: "Bytes per second that a resync may take; 0 is no limit.",
    },
    OptionRule {
        key: "async-queue-max",
        kind: OptionKind::Bytes {
            min: M,
            max: 64 * G,
        },
        default: "64M",
        meaning: "Bytes that protocol A may queue, in memory, for a replica; one that lacks more is left behind and catches up later.",
    },
    OptionRule {
        key: "compression",
        kind: OptionKind::Word(&["off", "zstd"]),
        default: "off",
        meaning: "Compression between replicas: of what becomes smaller by it, where both ends know how.",
    },
    OptionRule {
        key: "link-profile",
        kind: OptionKind::Word(&["lan", "wan"]),
        default: "lan",
        meaning: "How patient replicas are with each other: lan for round trips of a few milliseconds, wan for up to 300 ms.",
    },
    OptionRule {
        key: "replica-deadline",
        kind: OptionKind::Duration {
            ms_min: 200,
            ms_max: 600_000,
        },
        default: "800ms",
        meaning: "How long a replica may leave a write unanswered before it is put out of the in-sync set; 3s by default where link-profile is wan.",
    },
    OptionRule {
        key: "min-in-sync",
        kind: OptionKind::Count { min: 1, max: 8 },
        default: "1",
        meaning: "Below so many in-sync replicas, the primary included, writes wait.",
    },
    OptionRule {
        key: "lease-time",
        kind: OptionKind::Duration {
            ms_min: 200,
            ms_max: 60_000,
        },
        default: "2s",
        meaning: "How long a client may trust its cache after it was last heard of.",
    },
    OptionRule {
        key: "session-timeout",
        kind: OptionKind::Duration {
            ms_min: 1_000,
            ms_max: 3_600_000,
        },
        default: "30s",
        meaning: "How long a client may be silent before its locks and open files are released.",
    },
    OptionRule {
        key: "fence-command",
        kind: OptionKind::Text {
            bytes_max: 4 * K as usize,
        },
        default: "",
        meaning: "Command that makes sure that a vanished node cannot serve; empty: none.",
    },
    OptionRule {
        key: "fence-delay",
        kind: OptionKind::Duration {
            ms_min: 0,
            ms_max: 600_000,
        },
        default: "5s",
        meaning: "How much longer than a primary a secondary waits before it fences; longer than the command takes.",
    },
    OptionRule {
        key: "fence-timeout",
        kind: OptionKind::Duration {
            ms_min: 100,
            ms_max: 600_000,
        },
        default: "30s",
        meaning: "How long the fence command may take.",
    },
    OptionRule {
        key: "preferred-primary",
        kind: OptionKind::Text { bytes_max: 64 },
        default: "",
        meaning: "Name of the node that shall be primary where there is a choice.",
    },
    OptionRule {
        key: "failback",
        kind: OptionKind::Switch,
        default: "off",
        meaning: "Whether the primary moves back to preferred-primary once that is up to date.",
    },
    OptionRule {
        key: "failback-delay",
        kind: OptionKind::Duration {
            ms_min: 0,
            ms_max: 86_400_000,
        },
        default: "1m",
        meaning: "How long preferred-primary must have been up to date, without a break, before the primary moves back.",
    },
    OptionRule {
        key: "auth.allow",
        kind: OptionKind::Allow {
            bytes_max: 4 * K as usize,
        },
        default: "*",
        meaning: "Who may mount: addresses, networks, and names of clients and nodes; a mount that is not among them any more is cut off.",
    },
    OptionRule {
        key: "read-only",
        kind: OptionKind::Switch,
        default: "off",
        meaning: "Refuse every change by mounts, with EROFS, before it is ordered.",
    },
    OptionRule {
        key: "root-squash",
        kind: OptionKind::Switch,
        default: "off",
        meaning: "Treat user and group 0 of mounts as 65534 (nobody), and check permissions at the primary.",
    },
];

/// Why a value was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// No such option.
    #[error("there is no option `{key}`")]
    Unknown {
        /// What was said.
        key: String,
        /// The nearest that exists.
        nearest: Option<&'static str>,
    },
    /// Not a value that it takes.
    #[error("option `{key}` cannot be `{value}`: it takes {range}")]
    Value {
        /// The option.
        key: &'static str,
        /// What was said.
        value: String,
        /// What it takes.
        range: String,
    },
}

/// One option's row in `volume options --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OptionRow {
    /// Name.
    pub key: &'static str,
    /// Value where none was set.
    pub default: &'static str,
    /// What it takes.
    pub range: String,
    /// What it does.
    pub meaning: &'static str,
}

/// The table for people and programs.
#[must_use]
pub fn rows() -> Vec<OptionRow> {
    OPTIONS
        .iter()
        .map(|rule| OptionRow {
            key: rule.key,
            default: rule.default,
            range: rule.range(),
            meaning: rule.meaning,
        })
        .collect()
}

/// The rule of `key`.
pub fn rule(key: &str) -> Result<&'static OptionRule, OptionError> {
    OPTIONS
        .iter()
        .find(|rule| rule.key == key)
        .ok_or_else(|| OptionError::Unknown {
            key: key.to_owned(),
            nearest: nearest(key, OPTIONS.iter().map(|rule| rule.key)),
        })
}

/// What setting an option does in this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// What it says.
    InForce,
    /// Nothing yet; what happens instead asks nothing more of anybody.
    Later,
}

impl OptionRule {
    /// What setting it to `value`, in normal form, does.
    #[must_use]
    pub fn effect(&self, value: &str) -> Effect {
        let default = self.normalize(self.default).is_ok_and(|it| it == value);
        match self.key {
            "protocol" | "async-queue-max" | "quorum" | "size" | "resync-max-rate"
            | "replica-deadline" | "session-timeout" | "min-in-sync" | "read-only"
            | "split-brain-policy" | "fence-command" | "fence-delay" | "fence-timeout"
            | "preferred-primary" | "failback" | "failback-delay" | "compression"
            | "link-profile" | "auth.allow" | "root-squash" => Effect::InForce,
            _ if default || value.is_empty() => Effect::InForce,
            _ => Effect::Later,
        }
    }

    /// What values it takes, for people.
    #[must_use]
    pub fn range(&self) -> String {
        match self.kind {
            OptionKind::Word(words) => words.join(" | "),
            OptionKind::WordOrNode { words, before } => {
                format!("{} | {before}=NODE", words.join(" | "))
            }
            OptionKind::Bytes { min, max } => {
                format!("{} to {} bytes", size_text(min), size_text(max))
            }
            OptionKind::Duration { ms_min, ms_max } => {
                format!("{} to {}", duration_text(ms_min), duration_text(ms_max))
            }
            OptionKind::Count { min, max } => format!("{min} to {max}"),
            OptionKind::Switch => "on | off".to_owned(),
            OptionKind::Text { bytes_max } => format!("text of at most {bytes_max} bytes"),
            OptionKind::Allow { bytes_max } => format!(
                "* | addresses, networks such as 10.1.0.0/16, patterns such as 192.168.1.*, names of \
                 clients and nodes, between commas, of at most {bytes_max} bytes"
            ),
        }
    }

    /// Checks a value and returns it in its one written form.
    pub fn normalize(&self, value: &str) -> Result<String, OptionError> {
        let refused = || OptionError::Value {
            key: self.key,
            value: value.to_owned(),
            range: self.range(),
        };
        match self.kind {
            OptionKind::Word(words) => words
                .iter()
                .find(|word| word.eq_ignore_ascii_case(value))
                .map(|word| (*word).to_owned()),
            OptionKind::WordOrNode { words, before } => {
                let word = words.iter().find(|word| word.eq_ignore_ascii_case(value));
                let named = value.split_once('=').filter(|(word, node)| {
                    let clean = !node.is_empty() && node.len() <= 64;
                    word.eq_ignore_ascii_case(before) && clean && !node.contains(char::is_control)
                });
                word.map(|word| (*word).to_owned())
                    .or_else(|| named.map(|(_, node)| format!("{before}={node}")))
            }
            OptionKind::Bytes { min, max } => parse_size(value)
                .filter(|bytes| (min..=max).contains(bytes))
                .map(|bytes| bytes.to_string()),
            OptionKind::Duration { ms_min, ms_max } => parse_duration_ms(value)
                .filter(|ms| (ms_min..=ms_max).contains(ms))
                .map(|ms| format!("{ms}ms")),
            OptionKind::Count { min, max } => value
                .parse()
                .ok()
                .filter(|count| (min..=max).contains(count))
                .map(|count: u64| count.to_string()),
            OptionKind::Switch => match value.to_ascii_lowercase().as_str() {
                "on" | "yes" | "true" | "1" | "enable" => Some("on".to_owned()),
                "off" | "no" | "false" | "0" | "disable" => Some("off".to_owned()),
                _ => None,
            },
            OptionKind::Text { bytes_max } => {
                let clean = value.len() <= bytes_max && !value.contains(char::is_control);
                clean.then(|| value.to_owned())
            }
            OptionKind::Allow { bytes_max } => AllowList::parse(value)
                .map(|list| list.to_string())
                .filter(|list| list.len() <= bytes_max),
        }
        .ok_or_else(refused)
    }
}

/// Reads the options of a volume; a value that does not parse counts as not set, since an older
/// version may have stored what this one does not take.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    set: &'a BTreeMap<String, String>,
}

impl<'a> Options<'a> {
    /// Over what was set.
    #[must_use]
    pub fn new(set: &'a BTreeMap<String, String>) -> Self {
        Self { set }
    }

    /// The value in force, in its written form.
    #[must_use]
    pub fn text(&self, key: &str) -> String {
        let Ok(rule) = rule(key) else {
            return String::new();
        };
        self.set
            .get(key)
            .and_then(|value| rule.normalize(value).ok())
            .or_else(|| rule.normalize(self.default_of(rule)).ok())
            .unwrap_or_default()
    }

    /// What an option is where it is not set. A deadline fits the links.
    fn default_of(&self, rule: &OptionRule) -> &'static str {
        match rule.key {
            "replica-deadline" if self.link() == LinkProfile::Wan => "3s",
            _ => rule.default,
        }
    }

    /// What the links between replicas are like.
    #[must_use]
    pub fn link(&self) -> LinkProfile {
        LinkProfile::of(&self.text("link-profile"))
    }

    /// A size or rate in bytes; 0 where neither set nor defaulted.
    #[must_use]
    pub fn bytes(&self, key: &str) -> u64 {
        parse_size(&self.text(key)).unwrap_or(0)
    }

    /// A duration; zero where neither set nor defaulted.
    #[must_use]
    pub fn duration(&self, key: &str) -> Duration {
        Duration::from_millis(parse_duration_ms(&self.text(key)).unwrap_or(0))
    }

    /// A number; 0 where neither set nor defaulted.
    #[must_use]
    pub fn count(&self, key: &str) -> u64 {
        self.text(key).parse().unwrap_or(0)
    }

    /// Who may come.
    #[must_use]
    pub fn allowed(&self) -> AllowList {
        AllowList::parse(&self.text("auth.allow")).unwrap_or_default()
    }

    /// A switch.
    #[must_use]
    pub fn on(&self, key: &str) -> bool {
        self.text(key) == "on"
    }
}

/// Bytes of `10`, `4K`, `1.5G`, `2TiB`.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_uppercase();
    let shift = match unit.trim_end_matches("IB").trim_end_matches('B') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        "P" => 50,
        _ => return None,
    };
    let factor = 1_u64 << shift;
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let mut bytes = whole.parse::<u64>().ok()?.checked_mul(factor)?;
    if !part.is_empty() {
        if shift == 0 || part.len() > 6 {
            return None;
        }
        let scale = 10_u64.pow(u32::try_from(part.len()).ok()?);
        let fraction =
            u128::from(part.parse::<u64>().ok()?) * u128::from(factor) / u128::from(scale);
        bytes = bytes.checked_add(u64::try_from(fraction).ok()?)?;
    }
    Some(bytes)
}

/// Milliseconds of `250ms`, `2s`, `5m`, `1h`; a bare number is milliseconds.
#[must_use]
pub fn parse_duration_ms(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "" | "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// A size for people: the largest unit that divides it.
#[must_use]
pub fn size_text(bytes: u64) -> String {
    for (shift, unit) in [(50, "P"), (40, "T"), (30, "G"), (20, "M"), (10, "K")] {
        if bytes != 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

fn duration_text(ms: u64) -> String {
    match ms {
        _ if ms != 0 && ms.is_multiple_of(3_600_000) => format!("{}h", ms / 3_600_000),
        _ if ms != 0 && ms.is_multiple_of(60_000) => format!("{}m", ms / 60_000),
        _ if ms != 0 && ms.is_multiple_of(1_000) => format!("{}s", ms / 1_000),
        _ => format!("{ms}ms"),
    }
}

/// The candidate nearest to `word`, if it is near at all: for "did you mean".
#[must_use]
pub fn nearest<'c>(word: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    let word = word.to_ascii_lowercase();
    candidates
        .map(|candidate| (edits(&word, &candidate.to_ascii_lowercase()), candidate))
        .min()
        .filter(|(distance, candidate)| *distance * 3 <= candidate.len().max(word.len()) + 1)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_a_value_that_its_option_takes() {
        for rule in OPTIONS {
            let ok = rule.default.is_empty() || rule.normalize(rule.default).is_ok();
            assert!(ok, "{}", rule.key);
        }
    }

    #[test]
    fn sizes_are_powers_of_1024_and_bare_numbers_are_bytes() {
        assert_eq!(parse_size("4096"), Some(4096));
        assert_eq!(parse_size("64M"), Some(64 << 20));
        assert_eq!(parse_size("1.5GiB"), Some(3 << 29));
        for bad in ["", "M", "-1", "1.5", "1X", "99999999999T", "1e3"] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_value_out_of_range_names_the_range() {
        let refused = rule("min-in-sync").expect("rule").normalize("9");
        assert_eq!(
            refused.expect_err("refused").to_string(),
            "option `min-in-sync` cannot be `9`: it takes 1 to 8"
        );
    }

    #[test]
    fn what_others_would_rely_on_is_in_force() {
        let effect = |key, value| rule(key).expect("rule").effect(value);
        assert_eq!(effect("auth.allow", "10.0.0.0/8"), Effect::InForce);
        assert_eq!(effect("root-squash", "on"), Effect::InForce);
        assert_eq!(effect("protocol", "A"), Effect::InForce);
        assert_eq!(effect("lease-time", "1s"), Effect::Later);
        assert_eq!(effect("protocol", "C"), Effect::InForce);
        assert_eq!(effect("read-only", "on"), Effect::InForce);
    }

    #[test]
    fn a_list_that_lets_nobody_in_or_is_no_list_names_what_it_takes() {
        let rule = rule("auth.allow").expect("rule");
        for bad in ["", "10.0.0.0/33", "app 1"] {
            let refused = rule.normalize(bad).expect_err("refused").to_string();
            assert!(
                refused.starts_with(&format!(
                    "option `auth.allow` cannot be `{bad}`: it takes * |"
                )),
                "{refused}"
            );
        }
        let normal = rule.normalize(" 10.0.0.0/8 , app1");
        assert_eq!(normal.as_deref(), Ok("10.0.0.0/8,app1"));
    }

    #[test]
    fn a_node_is_named_after_its_word_only() {
        let rule = rule("split-brain-policy").expect("rule");
        let normal = |value| rule.normalize(value).ok();
        assert_eq!(normal("Prefer=node1").as_deref(), Some("prefer=node1"));
        assert_eq!(normal("MANUAL").as_deref(), Some("manual"));
        for bad in ["prefer", "prefer=", "manual=node1", "=node1", "keep-newest"] {
            assert_eq!(normal(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_deadline_of_replicas_fits_the_links_unless_it_is_set() {
        let of = |set: &[(&str, &str)]| {
            let set = set.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            Options::new(&set.collect()).duration("replica-deadline")
        };
        assert_eq!(of(&[]), Duration::from_millis(800));
        assert_eq!(of(&[("link-profile", "wan")]), Duration::from_secs(3));
        let both = [("link-profile", "wan"), ("replica-deadline", "1s")];
        assert_eq!(of(&both), Duration::from_secs(1));
    }

    #[test]
    fn an_unknown_option_suggests_the_nearest() {
        let Err(OptionError::Unknown { nearest, .. }) = rule("min-insync") else {
            panic!("it was found");
        };
        assert_eq!(nearest, Some("min-in-sync"));
        let Err(OptionError::Unknown { nearest, .. }) = rule("xyzzy") else {
            panic!("it was found");
        };
        assert_eq!(nearest, None);
    }

    #[test]
    fn what_was_set_comes_before_the_default() {
        let set = BTreeMap::from([
            ("lease-time".to_owned(), "500ms".to_owned()),
            ("failback".to_owned(), "nonsense".to_owned()),
        ]);
        let options = Options::new(&set);
        assert_eq!(options.duration("lease-time"), Duration::from_millis(500));
        assert_eq!(options.duration("session-timeout"), Duration::from_secs(30));
        assert!(!options.on("failback"));
        assert_eq!(options.bytes("async-queue-max"), 64 << 20);
    }
}
