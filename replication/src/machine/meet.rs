//! The machine when replicas meet and part: what is done for whom.

use std::time::Duration;

use protocol::units::{Sequence, Term};
use protocol::volume::REPLICAS_MAX;

use super::bugs::Bug;
use super::{DropReason, Link, Machine, Output, Phase, Refusal, Standing};
use crate::decision::{Decision, Means, Rule, decide};
use crate::line::Relation;
use crate::state::{Disk, How, Report, Welcome};

impl Machine {
    // ---- meeting -----------------------------------------------------------------------------

    /// A replica is connected and told about itself; on this connection it was told `told`.
    pub fn met(&mut self, now: Duration, replica: usize, told: &Report, report: Report) {
        assert!(
            replica != self.config.me && replica < REPLICAS_MAX,
            "a peer is another"
        );
        let handed_to_me =
            report.handed_to == Some(self.config.me) && report.term == self.state.term;
        let later = report.term > self.state.term;
        let serving = report.serving;
        self.heard_of = self.heard_of.max(report.term);
        self.links[replica] = Some(Link {
            report,
            standing: Standing::Met,
            received: Sequence::ZERO,
            applied: Sequence::ZERO,
            stable: Sequence::ZERO,
            policy: 0,
            leaving: false,
            heard: now,
            behind_since: None,
            acknowledged: false,
            lease_until: Duration::ZERO,
            unpromised_since: None,
            split: None,
        });
        self.met_again(replica);
        if self.notice_split(now, replica, told) {
            return;
        }
        match self.phase {
            Phase::Waiting { .. } => self.try_activate(now),
            Phase::Serving if later => self.step_down(),
            Phase::Serving => self.assess(replica),
            Phase::Following if handed_to_me => self.take_over(replica),
            Phase::Following if later && serving => self.leave_primary(),
            _ => {}
        }
    }

    /// A primary of `term` asks what this replica has in doubt. From the answer on, this replica
    /// takes and orders nothing until it is welcomed, so that the answer stays true.
    ///
    /// # Errors
    /// [`Refusal::OutOfPlace`] where this replica knows a later term, or serves in this one, or is
    /// not what it told any more.
    pub fn asked(&mut self, term: Term, revision: u64) -> Result<(), Refusal> {
        let serves = !matches!(self.phase, Phase::Following | Phase::Waiting { .. });
        let earlier = term < self.state.term || (term == self.state.term && serves);
        let other = revision != self.revision && !self.errs(Bug::IgnoresTheRevision);
        if earlier || other {
            return Err(Refusal::OutOfPlace);
        }
        if serves {
            self.step_down();
        }
        if !self.errs(Bug::GoesOnAfterDoubts) {
            self.leave_primary();
        }
        self.forget_received();
        Ok(())
    }

    /// A primary of a later term is there: this replica takes nothing more from the one that it
    /// followed, so that what it tells the new one of itself stays true.
    fn leave_primary(&mut self) {
        for link in self.links.iter_mut().flatten() {
            if link.standing == Standing::MyPrimary {
                link.standing = Standing::Met;
            }
        }
    }

    pub(super) fn assess(&mut self, replica: usize) {
        let met = self.standing(replica) == Some(Standing::Met);
        if met && self.staying().has(replica) && !self.may_still_claim(replica) {
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
        let knows_after = if self.errs(Bug::CoversTooMuch) {
            Sequence::ZERO
        } else {
            self.state.knows_after
        };
        let covered_since = self.state.since[replica].max(knows_after);
        let mine = self.report();
        let mistakes = self.errs(Bug::MistakesHistories);
        let overlooks = self.errs(Bug::OverlooksSplits);
        let Some(link) = self.links[replica].as_mut() else {
            return;
        };
        if self.phase != Phase::Serving || link.standing != Standing::Met {
            return;
        }
        if link.report.disk != Disk::Inconsistent {
            self.state.targets = self.state.targets.without(replica);
        }
        means.resync_was_mine = self.state.targets.has(replica);
        means.marked_apart = self.state.resyncing.has(replica);
        means.pool_decides = self.quorum.is_some() || overlooks;
        means.waited_for_me = (link.report).confirmed_nothing_alone(replica, self.config.me, &mine);
        means.map_since = Some(covered_since);
        let (mut decision, mut rule) = decide(&mine, &link.report, &means);
        if mistakes && matches!(decision, Decision::GiveUpTail { .. }) {
            (decision, rule) = (Decision::Join, Rule::SamePast);
        }
        if full && decision != Decision::Refuse {
            (decision, rule) = (Decision::Full, Rule::Operator);
        }
        if self.state.full.has(replica) && decision != Decision::Refuse {
            (decision, rule) = (Decision::Full, Rule::ResyncContinues);
        }
        if rule == Rule::BothWentOn && self.giving_up.has(replica) {
            (decision, rule) = (Decision::Full, Rule::Operator);
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
            let revision = link.report.revision;
            self.outputs.push_back(Output::AskDoubts {
                replica,
                common,
                revision,
            });
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
        link.received = position;
        link.policy = 0;
        link.stable = if how == How::Resync {
            at
        } else {
            position.min(link.report.stable)
        };
        link.standing = Standing::Sourcing(rule);
        link.acknowledged = false;
        let (basis, revision) = (link.report.last, link.report.revision);
        if how == How::Resync {
            self.state.resyncing = self.state.resyncing.with(replica);
            self.state.targets = self.state.targets.with(replica);
            if decision == Decision::Full {
                self.state.full = self.state.full.with(replica);
            }
            if self.errs(Bug::ClearsMarksEarly) {
                self.outputs.push_back(Output::ClearDirty { replica });
            }
            if self.errs(Bug::BeginsTooEarly) {
                self.state.since[replica] = at;
            }
            // What is covered stays as it was until the replica says that it has begun: the word to
            // it may be lost, and then it still is where it told.
            self.decide();
        }
        let welcome = Box::new(Welcome {
            term: self.state.term,
            line: self.state.line.clone(),
            at,
            how,
            basis,
            revision,
            layout: self.state.places.version,
            rule,
            in_sync: self.state.in_sync,
            since: self.state.since,
            policy: self.state.policy,
            fences: self.fences(),
            changes_bytes: None,
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
        if link.applied < until
            || !link.acknowledged
            || self.state.in_sync.has(replica)
            || !self.serves()
        {
            return;
        }
        // From here on nothing is confirmed without it; what was confirmed before, it must have.
        self.entering = self.entering.with(replica);
        if self.evidence(replica) < self.confirmed && !self.errs(Bug::JoinsTooEarly) {
            return;
        }
        self.entering = self.entering.without(replica);
        self.state.in_sync = self.state.in_sync.with(replica);
        self.state.resyncing = self.state.resyncing.without(replica);
        // It stays a target of this one's until it shows that it knows: it may die before.
        self.state.full = self.state.full.without(replica);
        self.giving_up = self.giving_up.without(replica);
        if self.state.taken_from == Some(replica) {
            self.state.taken_from = None;
        }
        self.state.since[replica] = link.stable;
        self.joining = self.joining.with(replica);
        self.decide();
    }

    /// The connection to a replica is gone.
    pub fn lost(&mut self, now: Duration, replica: usize) {
        let Some(link) = self.links[replica].take() else {
            return;
        };
        self.entering = self.entering.without(replica);
        if link.gets_records() {
            if link.standing == Standing::InSync {
                self.note_missing(replica, link.applied);
            }
            let begun = link.acknowledged || !self.state.resyncing.has(replica);
            if begun || self.errs(Bug::BeginsTooEarly) {
                self.state.since[replica] = link.stable;
            }
            if !self.errs(Bug::ForgetsTheTail) {
                self.outputs.push_back(Output::MarkDirtySince {
                    replica,
                    since: link.stable,
                });
            }
            if self.state.in_sync.has(replica) && !self.suspend_for(now, replica) {
                self.leave_set(replica);
            }
            self.joining = self.joining.without(replica);
            self.decide();
            self.ask_for_members(now);
        }
        if !link.gets_records() {
            self.look_after_loss(now, replica);
        }
        self.look_after_primary(now);
        self.wait_for_members(now);
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
