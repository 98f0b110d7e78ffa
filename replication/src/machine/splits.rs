//! The machine when it meets a replica that went on as primary as well (ONE-3).
//!
//! Both come to the same by what they told each other ([`crate::split`]). Only the side that stays
//! acts: it serves in a term after both, and takes the other one on when they meet again. The side
//! that is given up stops serving at once, so that nobody relies on what it would still take. Where
//! nobody is kept both go on as they are, but for a primary of an earlier term than one that serves.

use std::time::Duration;

use super::bugs::Bug;
use super::{DropReason, Machine, Output, Phase, Standing};
use crate::decision::Rule;
use crate::split::{Policy, Split, Verdict, between};
use crate::state::{Report, Role, RoleReason};

impl Machine {
    /// The split brain with this replica, which is connected.
    #[must_use]
    pub fn split_with(&self, replica: usize) -> Option<Split> {
        self.links[replica].as_ref()?.split
    }

    /// Another policy. One that is open is looked at again by it.
    pub fn set_split_policy(&mut self, policy: Policy) {
        if std::mem::replace(&mut self.config.split_policy, policy) == policy {
            return;
        }
        for replica in 0..self.links.len() {
            if self.split_with(replica).is_some() {
                self.drop_link(replica, DropReason::RoleMoved);
            }
        }
    }

    /// Looks whether the replica that was just met, and was told `told` of this one, went on as
    /// primary as well. True: what has to be done about it is done.
    pub(super) fn notice_split(&mut self, now: Duration, replica: usize, told: &Report) -> bool {
        let report = self.links[replica].as_ref().map(|link| &link.report);
        let given_up = self.giving_up.has(replica);
        // What was decided holds while this is the later term: the other one may have gone on.
        let over = given_up && report.map(|report| report.term) < Some(self.state.term);
        let decided = self.quorum.is_some() || over || self.errs(Bug::OverlooksSplits);
        // An operator's word holds until a later one is spoken, whoever was started again since.
        let spoken = given_up
            && self.state.role_reason == RoleReason::Forced
            && report.is_some_and(|report| report.role_term < self.state.role_term);
        let wrong_way = self.errs(Bug::KeepsTheWrongSide);
        // What was told must still be so: somebody may have taken this one on meanwhile.
        let same = told.term == self.state.term
            && told.revision == self.revision
            && self.state.role == Role::Primary;
        let Some(link) = self.links[replica].as_mut().filter(|_| !decided && same) else {
            return false;
        };
        let Some(mut split) = between(self.config.me, told, replica, &link.report) else {
            return false;
        };
        if spoken {
            self.keep(RoleReason::Forced);
            return true;
        }
        if wrong_way {
            split.verdict = match split.verdict {
                Verdict::Mine => Verdict::Theirs,
                Verdict::Theirs => Verdict::Mine,
                open @ Verdict::Open(_) => open,
            };
        }
        if !split.one_sided {
            link.split = Some(split);
            link.standing = Standing::Refused(Rule::BothWentOn);
        }
        let later_serves = link.report.serving && link.report.term > self.state.term;
        if !split.one_sided {
            let split = Box::new(split);
            self.outputs.push_back(Output::Split { replica, split });
        }
        match split.verdict {
            Verdict::Mine => {
                self.giving_up = self.giving_up.with(replica);
                let reason = if split.one_sided {
                    self.state.role_reason
                } else {
                    RoleReason::Kept
                };
                self.keep(reason);
            }
            Verdict::Theirs if self.serves() => self.step_down(),
            Verdict::Theirs if matches!(self.phase, Phase::Waiting { .. }) => {
                self.phase = Phase::Following;
            }
            Verdict::Open(_) if self.serves() && later_serves => self.step_down(),
            Verdict::Theirs | Verdict::Open(_) => self.try_activate(now),
        }
        true
    }
}
