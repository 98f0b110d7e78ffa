//! What operators are told about two histories that diverged (ONE-3), and the facts that a policy
//! goes by.

use std::time::{Duration, UNIX_EPOCH};

use protocol::options::Options;
use protocol::report::{SplitBrainReport, SplitSideReport};
use protocol::units::Timestamp;
use replication::decision::Rule;
use replication::machine::Standing;
use replication::split::{Open, Side, Split, Verdict};
use replication::state::{DurableState, Role};
use storage::Medium;
use time::OffsetDateTime;

use super::driver::Driver;
use super::report::text;
use super::words;
use crate::events::time_text;

/// A time of day as it is shown.
pub(super) fn shown(at: Timestamp) -> String {
    let since = Duration::from_nanos(at.0.max(0).unsigned_abs());
    time_text(OffsetDateTime::from(UNIX_EPOCH + since))
}

impl<M: Medium> Driver<M> {
    /// A role that is new gets its time of day.
    pub(super) fn note_primary_since(&self, state: &mut DurableState) {
        if state.role == Role::Primary && state.role_term.is_some() && state.primary_since.is_none()
        {
            state.primary_since = Some(self.wall_time());
        }
    }

    /// The open split brain that this replica knows of.
    pub(super) fn split_brain(&self) -> Option<SplitBrainReport> {
        let refused =
            |r: &usize| self.machine.standing(*r) == Some(Standing::Refused(Rule::BothWentOn));
        let others: Vec<usize> = (0..self.links.len()).filter(refused).collect();
        let since = others
            .iter()
            .filter_map(|r| self.links[*r].as_ref().map(|link| link.since))
            .min()?;
        let met = self.host.wall() - self.now().saturating_sub(since);
        let names = std::iter::once(self.me).chain(others.iter().copied());
        let split = match others[..] {
            [other] => self.machine.split_with(other).map(|split| (other, split)),
            _ => None,
        };
        let sides = split.map_or_else(Vec::new, |(other, split)| {
            vec![
                self.side_report(self.me, &split.mine),
                self.side_report(other, &split.theirs),
            ]
        });
        Some(SplitBrainReport {
            since: text(met),
            nodes: names
                .map(|r| self.spec.replicas[r].node_name.clone())
                .collect(),
            policy: Options::new(&self.spec.options).text("split-brain-policy"),
            reason: split.and_then(|(_, split)| match split.verdict {
                Verdict::Open(Open::Manual) | Verdict::Mine | Verdict::Theirs => None,
                Verdict::Open(why) => Some(words::split_open(why).to_owned()),
            }),
            sides,
        })
    }

    fn side_report(&self, replica: usize, side: &Side) -> SplitSideReport {
        SplitSideReport {
            node: self.spec.replicas[replica].node_name.clone(),
            changes: side.changes,
            primary_term: side.role_term.map(|term| term.0),
            primary_since: side.primary_since.map(shown),
        }
    }

    /// A replica was met that went on as primary, as this one did.
    pub(super) fn tell_split(&self, replica: usize, split: &Split) {
        let sides = [
            self.side_report(self.me, &split.mine),
            self.side_report(replica, &split.theirs),
        ];
        let [mine, theirs] = &sides;
        if !split.one_sided {
            super::links::note_rule(Rule::BothWentOn);
        }
        let policy = Options::new(&self.spec.options).text("split-brain-policy");
        let (kind, end) = match split.verdict {
            Verdict::Mine => (
                "split_brain_settled",
                words::split_settled(&mine.node, &theirs.node, &policy),
            ),
            Verdict::Theirs => (
                "split_brain_settled",
                words::split_settled(&theirs.node, &mine.node, &policy),
            ),
            Verdict::Open(why) => (
                "split_brain",
                words::split_undecided(why, &policy, &self.spec.name),
            ),
        };
        let text = words::split_brain(&sides, split.common, &end);
        self.host.event(kind, &self.spec.name, &text);
    }
}
