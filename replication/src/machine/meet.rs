//! The machine when replicas meet and part: what is done for whom.

use std::time::Duration;

use protocol::units::Sequence;

use super::{DropReason, Link, Machine, Output, Phase, Standing};
use crate::decision::{Decision, Means, Rule, decide};
use crate::line::Relation;
use crate::state::{How, Report, Welcome};

impl Machine {
    // ---- meeting -----------------------------------------------------------------------------

    /// A replica is connected and told about itself.
    pub fn met(&mut self, now: Duration, replica: usize, report: Report) {
        assert!(
            replica != self.config.me && replica < self.config.count,
            "a peer is another"
        );
        let handed_to_me =
            report.handed_to == Some(self.config.me) && report.term == self.state.term;
        let later = report.term > self.state.term;
        self.links[replica] = Some(Link {
            report,
            standing: Standing::Met,
            applied: Sequence::ZERO,
            stable: Sequence::ZERO,
            heard: now,
            behind_since: None,
        });
        match self.phase {
            Phase::Waiting { .. } => self.try_activate(now),
            Phase::Serving if later => self.step_down(),
            Phase::Serving => self.assess(replica),
            Phase::Following if handed_to_me => self.take_over(replica),
            _ => {}
        }
    }

    pub(super) fn assess(&mut self, replica: usize) {
        if self.standing(replica) == Some(Standing::Met) {
            let common = self.common_with(replica);
            self.outputs.push_back(Output::Assess { replica, common });
        }
    }

    /// The last record that this replica and the connected one have in common.
    fn common_with(&self, replica: usize) -> Option<Sequence> {
        let report = &self.links[replica].as_ref()?.report;
        match self
            .state
            .line
            .relation(self.last, &report.line, report.last)
        {
            Relation::Common { at, .. } => Some(at),
            Relation::Unrelated => None,
        }
    }

    /// The answer to [`Output::Assess`]: decides what is done for the replica. With `full`, the
    /// operator asked for a full resync.
    pub fn judge(&mut self, replica: usize, mut means: Means, full: bool) {
        let mine = self.report();
        let Some(link) = self.links[replica].as_mut() else {
            return;
        };
        if self.phase != Phase::Serving || link.standing != Standing::Met {
            return;
        }
        means.resync_was_mine = self.state.resyncing.has(replica);
        means.map_since = Some(self.state.since[replica]);
        let covered_since = self.state.since[replica];
        let (mut decision, mut rule) = decide(&mine, &link.report, &means);
        if full && decision != Decision::Refuse {
            (decision, rule) = (Decision::Full, Rule::Operator);
        }
        if self.state.full.has(replica) && decision != Decision::Refuse {
            (decision, rule) = (Decision::Full, Rule::ResyncContinues);
        }
        if decision == Decision::Refuse {
            link.standing = Standing::Refused(rule);
            self.outputs.push_back(Output::Refused { replica, rule });
            return;
        }
        let common = self.common_with(replica).unwrap_or_default();
        let link = self.links[replica].as_mut().expect("looked at above");
        if matches!(decision, Decision::Dirty | Decision::GiveUpTail { .. }) {
            link.standing = Standing::Asked(decision, rule);
            if common < covered_since {
                self.outputs.push_back(Output::MarkDirtySince {
                    replica,
                    since: common,
                });
            }
            self.outputs
                .push_back(Output::AskDoubts { replica, common });
        } else {
            self.source(replica, decision, rule);
        }
    }

    /// What the replica has in doubt is marked dirty: its resync begins.
    pub fn doubts_known(&mut self, replica: usize) {
        if let Some(Standing::Asked(decision, rule)) = self.standing(replica)
            && self.serves()
        {
            self.source(replica, decision, rule);
        }
    }

    fn source(&mut self, replica: usize, decision: Decision, rule: Rule) {
        let at = self.last;
        let (how, position) = match decision {
            Decision::Journal { after } => (How::Records, after),
            Decision::Join | Decision::Refuse => (How::Records, at),
            Decision::Dirty | Decision::GiveUpTail { .. } | Decision::Full => (How::Resync, at),
        };
        let Some(link) = self.links[replica].as_mut() else {
            return;
        };
        link.applied = position;
        link.stable = if how == How::Resync {
            at
        } else {
            position.min(link.report.stable)
        };
        link.standing = Standing::Sourcing(rule);
        if how == How::Resync {
            self.state.resyncing = self.state.resyncing.with(replica);
            if decision == Decision::Full {
                self.state.full = self.state.full.with(replica);
            }
            self.state.since[replica] = at;
            self.decide();
        }
        let welcome = Box::new(Welcome {
            term: self.state.term,
            line: self.state.line.clone(),
            at,
            how,
            rule,
            in_sync: self.state.in_sync,
            since: self.state.since,
        });
        self.outputs.push_back(Output::Source {
            replica,
            decision,
            welcome,
        });
    }

    /// Everything that [`Output::Source`] asked for was sent and is durable at the target.
    pub fn source_done(&mut self, replica: usize) {
        let until = self.last;
        let Some(link) = self.links[replica].as_mut() else {
            return;
        };
        let Standing::Sourcing(rule) = link.standing else {
            return;
        };
        link.standing = Standing::Catching { until, rule };
        self.try_join(replica);
    }

    pub(super) fn try_join(&mut self, replica: usize) {
        let Some(link) = &self.links[replica] else {
            return;
        };
        let Standing::Catching { until, .. } = link.standing else {
            return;
        };
        if link.applied < until || self.state.in_sync.has(replica) || !self.serves() {
            return;
        }
        self.state.in_sync = self.state.in_sync.with(replica);
        self.state.resyncing = self.state.resyncing.without(replica);
        self.state.full = self.state.full.without(replica);
        self.state.since[replica] = link.stable;
        self.joined_after_decision = self.joined_after_decision.with(replica);
        self.decide();
    }

    /// The connection to a replica is gone.
    pub fn lost(&mut self, now: Duration, replica: usize) {
        let Some(link) = self.links[replica].take() else {
            return;
        };
        if link.gets_records() {
            self.state.since[replica] = link.stable;
            self.outputs.push_back(Output::MarkDirtySince {
                replica,
                since: link.stable,
            });
            if self.state.in_sync.has(replica) {
                self.state.in_sync = self.state.in_sync.without(replica);
                let generation = self.fresh_generation();
                self.state.line.begin(generation, self.last);
            }
            self.decide();
        }
        match self.phase {
            Phase::HandingOver { to } if to == replica => self.cancel_handover(),
            Phase::Pulling { from } if from == replica => {
                self.phase = Phase::Waiting {
                    until: now + self.config.activation_wait,
                };
                self.try_activate(now);
            }
            _ => {}
        }
    }

    pub(super) fn drop_link(&mut self, replica: usize, reason: DropReason) {
        self.outputs
            .push_back(Output::Disconnect { replica, reason });
    }
}
