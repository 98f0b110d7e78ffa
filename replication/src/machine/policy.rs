//! The ack policies A, B and C: on what evidence an operation is confirmed, how the policy is
//! changed while the volume serves, and how far replicas lag.
//!
//! * **Evidence.** A record is confirmed when it is applied here and each member of the set gives
//!   the evidence that the policy asks for: applied (C), received in memory (B), or merely inside
//!   the bound of its queue (A). A member without a connection gives none, under any policy:
//!   nothing goes on without it before it has left the set, durably and as agreed.
//! * **What members know.** A member that starts again may ask for the role by itself only if it
//!   has everything that was confirmed. Whether that can be doubted, it must know from its own
//!   disk. So a looser policy counts for a member only once that has acknowledged to know it
//!   durably; until then its evidence is that of C.
//! * **To a stricter policy.** New records ask for the new evidence at once. The members are told
//!   only when everything that was confirmed before satisfies it as well: given by all and, for C,
//!   on stable storage everywhere. Until then the looser policy is the one in force.
//! * **After a take-over** from a looser policy, what fsync confirmed may stand on stable storage
//!   at the old primary alone. Nothing is answered before what was taken over is stable here.

use std::time::Duration;

use protocol::units::{Sequence, Term};
use protocol::volume::{Protocol, REPLICAS_MAX};

use super::bugs::Bug;
use super::flushes::Own;
use super::queue::Lag;
use super::{DropReason, Link, Machine, Phase};
use crate::state::{InForce, Mask};

/// What a replica tells its primary of itself, in one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// It has everything up to here in memory.
    pub received: Sequence,
    /// Applied.
    pub applied: Sequence,
    /// On stable storage.
    pub stable: Sequence,
    /// The version of the policy in force that it knows durably.
    pub policy: u64,
}

/// Where a replica outside the set was when it left.
#[derive(Debug, Clone, Copy)]
pub(super) struct Missing {
    /// Bytes ordered up to the last record that it had applied.
    total: u64,
    /// When the first was ordered that it lacks; `None`: it lacks none.
    since: Option<Duration>,
}

impl Machine {
    // ---- evidence ------------------------------------------------------------------------------

    /// The policy by which this primary confirms; of single members it may ask for more.
    pub(super) fn rule(&self) -> Protocol {
        if matches!(self.phase, Phase::HandingOver { .. }) {
            return Protocol::C; // a planned promotion loses nothing
        }
        self.config.protocol.stricter(self.durable.policy.protocol)
    }

    /// The policy by which a member's evidence counts.
    pub(super) fn rule_for(&self, link: &Link) -> Protocol {
        let knows = link.policy >= self.durable.policy.version;
        if knows || self.errs(Bug::LoosensUnknown) {
            self.rule()
        } else {
            Protocol::C
        }
    }

    /// The last record for which the replica gives the evidence that the policy asks for.
    pub(super) fn evidence(&self, replica: usize) -> Sequence {
        if replica == self.config.me {
            return self.applied;
        }
        let Some(link) = self.links[replica].as_ref().filter(|l| l.gets_records()) else {
            return Sequence::ZERO;
        };
        match self.rule_for(link) {
            Protocol::C => link.applied,
            Protocol::B => link.received,
            Protocol::A => self
                .queue
                .reach(link.applied, self.queue_bytes_max())
                .min(self.last),
        }
    }

    fn queue_bytes_max(&self) -> u64 {
        if self.errs(Bug::IgnoresTheBound) {
            return u64::MAX;
        }
        self.config.queue_bytes_max
    }

    /// The last record for which everybody who is waited for gives the evidence.
    pub(super) fn covered(&self) -> Sequence {
        let members = if self.errs(Bug::ConfirmsAlone) {
            Mask::of(self.config.me)
        } else {
            self.members()
        };
        let lowest = members.iter().map(|r| self.evidence(r)).min();
        lowest.unwrap_or(self.applied)
    }

    /// Under A: whoever is beyond the bound of its queue is left behind, and catches up later.
    pub(super) fn leave_behind(&mut self) {
        if self.config.protocol != Protocol::A {
            return;
        }
        for replica in 0..REPLICAS_MAX {
            let Some(link) = self.links[replica].as_ref() else {
                continue;
            };
            let reach = self.queue.reach(link.applied, self.queue_bytes_max());
            if link.gets_records() && !link.leaving && reach < self.last {
                if let Some(link) = self.links[replica].as_mut() {
                    link.leaving = true;
                }
                self.drop_link(replica, DropReason::Ahead);
            }
        }
    }

    // ---- changes -------------------------------------------------------------------------------

    /// Another policy, or another bound for the queue of A, in bytes. Takes effect as the module
    /// says; [`Machine::protocol_in_force`] tells when.
    pub fn set_policy(&mut self, protocol: Protocol, queue_bytes_max: u64) {
        self.config.protocol = protocol;
        self.config.queue_bytes_max = queue_bytes_max;
        self.adjust_policy();
        self.leave_behind();
        self.advance();
    }

    /// The loosest policy by which something may be confirmed just now, or may have been that does
    /// not satisfy a stricter one yet.
    #[must_use]
    pub fn protocol_in_force(&self) -> Protocol {
        self.durable.policy.protocol
    }

    /// The configured policy and the one that members know are brought together.
    pub(super) fn adjust_policy(&mut self) {
        if self.phase != Phase::Serving {
            return;
        }
        let (wanted, told) = (self.config.protocol, self.state.policy.protocol);
        if told.is_looser_than(wanted) {
            self.tightens.get_or_insert(self.confirmed);
            return;
        }
        self.tightens = None;
        self.own_flushes.retain(|(_, own)| *own != Own::Tighten);
        if wanted.is_looser_than(told) {
            self.tell_policy(wanted);
        }
    }

    /// Where a stricter policy waits for what was confirmed before.
    pub(super) fn go_on_tightening(&mut self) {
        let Some(until) = self.tightens else { return };
        if self.errs(Bug::TightensEarly) {
            self.tighten();
            return;
        }
        let flushes = self.config.protocol == Protocol::C;
        if self.phase == Phase::Serving && !flushes && self.covered() >= until {
            self.tighten();
        }
    }

    /// Whether everything that was confirmed by a looser policy has been given, and waits for
    /// stable storage everywhere.
    pub(super) fn tightening_wants_flush(&self) -> bool {
        self.phase == Phase::Serving
            && self.config.protocol == Protocol::C
            && self.tightens.is_some_and(|until| self.covered() >= until)
    }

    pub(super) fn tighten(&mut self) {
        if self.tightens.take().is_some() {
            self.tell_policy(self.config.protocol);
        }
    }

    fn tell_policy(&mut self, protocol: Protocol) {
        self.state.policy = InForce {
            protocol,
            version: self.state.policy.version + 1,
        };
        self.decide();
    }

    // ---- taking over ---------------------------------------------------------------------------

    /// In a new term: what was taken over is the content, and nobody else is in the set.
    pub(super) fn begin_policy(&mut self) {
        self.settling = self.state.policy.protocol != Protocol::C;
        self.state.policy = InForce {
            protocol: self.config.protocol,
            version: self.state.policy.version + 1,
        };
        self.tightens = None;
        self.queue.clear();
        self.missing.fill(None);
    }

    /// As a member that started again: whether the others may have what was confirmed and is not
    /// here, so that all of them have to report before this one asks for the role.
    pub(super) fn needs_every_report(&self) -> bool {
        // The last primary has applied whatever it confirmed. One that was agreed on and never
        // began may have lost what it had received.
        let last_primary = self.agreed().is_none_or(|agreed| {
            agreed.primary == self.config.me && agreed.term == self.state.term
        });
        self.state.policy.protocol != Protocol::C
            && !last_primary
            && !self.forced
            && !self.errs(Bug::ClaimsUnreported)
    }

    /// Whether this replica, as a member that started again, asks for the role only once all others
    /// of the last set have reported, or an operator decides otherwise.
    #[must_use]
    pub fn waits_for_every_report(&self) -> bool {
        matches!(self.phase, Phase::Waiting { .. }) && self.needs_every_report()
    }

    /// How many operations that a primary of `term` confirmed, up to `sequence`, are not part of
    /// this replica's past (DUR-2). A client presents both.
    #[must_use]
    pub fn lost_since(&self, term: Term, sequence: Sequence) -> u64 {
        let end = self.state.line.end_of(term);
        end.map_or(0, |end| sequence.0.saturating_sub(end.0))
    }

    // ---- lag -----------------------------------------------------------------------------------

    /// How far the replica is behind this primary; `None` where that is not known: it has not
    /// been in sync since this replica serves, or this one does not serve.
    #[must_use]
    pub fn lag(&self, replica: usize) -> Option<Lag> {
        if !self.leads() {
            return None;
        }
        if let Some(missing) = &self.missing[replica] {
            return Some(Lag {
                bytes: self.queue.total() - missing.total,
                since: missing.since,
            });
        }
        let link = self.links[replica].as_ref()?;
        let in_sync = link.standing == super::Standing::InSync;
        in_sync.then(|| self.queue.lag(link.applied))
    }

    /// What was ordered up to the last record that the replica is known to have applied: bytes since
    /// this replica serves, and the record. Where it gets no records it is what was ordered so far.
    #[must_use]
    pub fn ordered_for(&self, replica: usize) -> (u64, Sequence) {
        let fed = self.links[replica].as_ref().filter(|l| l.gets_records());
        match fed {
            Some(link) => (self.queue.total_at(link.applied), link.applied),
            None => (self.queue.total(), self.last),
        }
    }

    /// A member leaves: from here on it lacks what it has not applied.
    pub(super) fn note_missing(&mut self, replica: usize, applied: Sequence) {
        if self.missing[replica].is_none() {
            self.missing[replica] = Some(Missing {
                total: self.queue.total_at(applied),
                since: self.queue.lag(applied).since,
            });
        }
    }

    /// A record was ordered, `bytes` long.
    pub(super) fn note_ordered(&mut self, now: Duration, bytes: u64) {
        self.queue.ordered(self.last, bytes, now);
        for missing in self.missing.iter_mut().flatten() {
            missing.since.get_or_insert(now);
        }
        self.trim_queue();
        self.leave_behind();
    }

    /// Forgets what everybody has who gets records.
    pub(super) fn trim_queue(&mut self) {
        let links = self.links.iter().flatten().filter(|l| l.gets_records());
        let lowest = links.map(|l| l.applied).min().unwrap_or(self.last);
        self.queue.forget(lowest);
    }
}
