//! What happened, for operators: a bounded ring in memory, kept in the data directory.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::broadcast;

/// Events that are shown.
const EVENTS_MAX: usize = 1024;
/// The file is started anew past this size; the one before is kept beside it.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Events that a slow follower may be behind before it is told that it missed some.
const FOLLOW_BACKLOG: usize = 256;

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// For the record.
    Info,
    /// Less safety than configured.
    Warning,
    /// Something does not work.
    Error,
}

/// One event, a line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// RFC 3339, UTC.
    pub time: String,
    /// How much it matters.
    pub severity: Severity,
    /// One word for programs.
    pub kind: String,
    /// The node that says so.
    pub node: String,
    /// The volume that it concerns.
    pub volume: Option<String>,
    /// One sentence.
    pub message: String,
}

struct Ring {
    events: VecDeque<Event>,
    file: Option<File>,
}

struct Shared {
    node: String,
    path: PathBuf,
    ring: Mutex<Ring>,
    live: broadcast::Sender<Event>,
}

/// Where events go. Cheap to clone.
#[derive(Clone)]
pub struct EventLog {
    shared: Arc<Shared>,
}

/// Now, as RFC 3339 in UTC.
#[must_use]
pub fn now_text() -> String {
    time_text(OffsetDateTime::now_utc())
}

/// A time as RFC 3339.
#[must_use]
pub fn time_text(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_default()
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

impl EventLog {
    /// Goes on with what stands in the file. A line that does not parse, cut by a crash, is
    /// skipped; without a usable file events are kept in memory only, and the log says so.
    #[must_use]
    pub fn open(path: &Path, node: &str) -> Self {
        let mut events: VecDeque<Event> = fs::read_to_string(path)
            .unwrap_or_default()
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        while events.len() > EVENTS_MAX {
            events.pop_front();
        }
        let file = open(path)
            .inspect_err(|error| {
                tracing::warn!(path = %path.display(), %error, "events are not kept on disk");
            })
            .ok();
        let (live, _) = broadcast::channel(FOLLOW_BACKLOG);
        Self {
            shared: Arc::new(Shared {
                node: node.to_owned(),
                path: path.to_owned(),
                ring: Mutex::new(Ring { events, file }),
                live,
            }),
        }
    }

    /// Records an event. Never fails and never waits for the medium's confirmation: an event is
    /// a message to people, not state.
    pub fn record(&self, severity: Severity, kind: &str, volume: Option<&str>, message: &str) {
        match severity {
            Severity::Info => tracing::info!(kind, volume, "{message}"),
            Severity::Warning => tracing::warn!(kind, volume, "{message}"),
            Severity::Error => tracing::error!(kind, volume, "{message}"),
        }
        let event = Event {
            time: now_text(),
            severity,
            kind: kind.to_owned(),
            node: self.shared.node.clone(),
            volume: volume.map(str::to_owned),
            message: message.to_owned(),
        };
        let mut ring = self.shared.ring.lock();
        self.write(&mut ring, &event);
        if ring.events.len() == EVENTS_MAX {
            ring.events.pop_front();
        }
        ring.events.push_back(event.clone());
        // An error only says that nobody follows.
        let _ = self.shared.live.send(event);
    }

    fn write(&self, ring: &mut Ring, event: &Event) {
        let Some(file) = ring.file.as_mut() else {
            return;
        };
        let Ok(mut line) = serde_json::to_vec(event) else {
            return;
        };
        line.push(b'\n');
        let written = file.write_all(&line).and_then(|()| {
            if file.metadata()?.len() <= FILE_BYTES_MAX {
                return Ok(());
            }
            fs::rename(
                &self.shared.path,
                self.shared.path.with_extension("jsonl.1"),
            )?;
            *file = open(&self.shared.path)?;
            Ok(())
        });
        if let Err(error) = written {
            tracing::warn!(%error, "an event is not kept on disk");
        }
    }

    /// What happened lately, oldest first, and what happens from now on.
    #[must_use]
    pub fn follow(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        // Under the lock: no event falls between the two.
        let ring = self.shared.ring.lock();
        (
            ring.events.iter().cloned().collect(),
            self.shared.live.subscribe(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_a_restart_and_a_line_cut_by_a_crash() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("events.jsonl");
        let log = EventLog::open(&path, "node1");
        log.record(Severity::Info, "one", Some("v1"), "first");
        log.record(Severity::Warning, "two", None, "second");
        drop(log);
        let mut file = open(&path).expect("file");
        file.write_all(b"{\"time\":\"20").expect("write");
        let (events, _) = EventLog::open(&path, "node1").follow();
        let kinds: Vec<_> = events.iter().map(|event| event.kind.as_str()).collect();
        assert_eq!(kinds, ["one", "two"]);
    }

    #[test]
    fn the_ring_forgets_the_oldest() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = EventLog::open(&dir.path().join("e"), "node1");
        for number in 0..=EVENTS_MAX {
            log.record(Severity::Info, &number.to_string(), None, "x");
        }
        let (events, _) = log.follow();
        assert_eq!(events.len(), EVENTS_MAX);
        assert_eq!(events[0].kind, "1");
    }
}
