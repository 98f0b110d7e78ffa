//! What happened how often, over all seeds: so that nobody believes in what never happens.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protocol::{fs, replica};
use replication::decision::Rule;
use replication::machine::{DropReason, Refusal};
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber, span};

/// What a line is about, and how often each of it came.
type Counts = BTreeMap<&'static str, u64>;

/// Counts what the replicas of a thread say that happens, as they log it.
#[derive(Clone, Default)]
pub(crate) struct Counters(Arc<Mutex<BTreeMap<String, u64>>>);

/// Fields of log lines whose values are counted.
const FIELDS: [&str; 3] = ["rule", "refusal", "dropped"];

impl Counters {
    fn counted(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, what: &str, value: &str) {
        *self.counted().entry(format!("{what} {value}")).or_insert(0) += 1;
    }

    /// One line each of rules, refusals, reasons and kinds of frames; then what never came.
    pub(crate) fn told(&self, frames: &BTreeMap<u8, u64>) -> (String, Vec<&'static str>) {
        let counted = self.counted();
        let of = |what: &str, names: &[&'static str]| -> Counts {
            let count = |name: &str| counted.get(&format!("{what} {name}")).copied();
            let each = names.iter();
            each.map(|name| (*name, count(name).unwrap_or(0))).collect()
        };
        let kinds = fs::KINDS.iter().chain(&replica::KINDS);
        let frames: Counts = kinds
            .map(|(kind, name)| (*name, frames.get(kind).copied().unwrap_or(0)))
            .collect();
        let lines = [
            ("resync rules", of("rule", &Rule::ALL.map(Rule::name))),
            ("refusals", of("refusal", &Refusal::ALL.map(Refusal::name))),
            (
                "links closed as",
                of("dropped", &DropReason::ALL.map(DropReason::name)),
            ),
            ("frames", frames),
        ];
        let mut text = String::new();
        let mut never = Vec::new();
        for (what, counts) in lines {
            let each: Vec<String> = counts
                .iter()
                .map(|(name, count)| format!("{name} {count}"))
                .collect();
            let _ = writeln!(text, "{what}: {}", each.join(", "));
            let missing = counts.into_iter().filter(|(_, count)| *count == 0);
            never.extend(missing.map(|(name, _)| name));
        }
        (text, never)
    }
}

impl Subscriber for Counters {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let fields = metadata.fields();
        metadata.is_event() && FIELDS.iter().any(|name| fields.field(name).is_some())
    }

    fn event(&self, event: &Event<'_>) {
        event.record(&mut self.clone());
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

impl Visit for Counters {
    fn record_str(&mut self, field: &Field, value: &str) {
        if FIELDS.contains(&field.name()) {
            self.add(field.name(), value);
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}
