//! The machine's flushes: what fsync waits for, under each policy, and what the machine itself
//! wants on stable storage.

use std::time::Duration;

use protocol::units::Sequence;
use protocol::volume::Protocol;

use super::{FlushId, Machine, Mask, Output, Refusal};

/// Disks take longer than messages: a flush has so long at least.
const FLUSH_DEADLINE: Duration = Duration::from_secs(5);

/// A flush under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flush {
    /// Whose disks are waited for.
    waiting: Mask,
    /// Since when, as far as ticks tell.
    since: Option<Duration>,
    /// Everybody else gives evidence up to here, as the policy asks.
    until: Sequence,
}

/// What the machine itself wants a flush for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Own {
    /// The role is passed on with everything.
    HandOver,
    /// A stricter policy takes effect.
    Tighten,
    /// What was taken over from a looser policy is made stable before anything is answered.
    Settle,
}

impl Machine {
    /// Everything confirmed so far shall be as stable as the policy asks. The driver flushes here
    /// and at every replica of [`Machine::flush_waits_for`], and reports each by
    /// [`Machine::flushed`].
    ///
    /// # Errors
    /// [`Refusal::NotServing`].
    pub fn begin_flush(&mut self) -> Result<FlushId, Refusal> {
        let strict = |machine: &Self, replica: &usize| {
            let link = machine.links[*replica].as_ref();
            link.is_none_or(|link| machine.rule_for(link) == Protocol::C)
        };
        if self.rule() == Protocol::C {
            // Who flushed has applied what was sent before.
            return self.start_flush(self.set(), Sequence::ZERO);
        }
        let others = self.set().without(self.config.me);
        let strict = others.iter().filter(|r| strict(self, r));
        let waiting = strict.fold(Mask::of(self.config.me), Mask::with);
        self.start_flush(waiting, self.last)
    }

    fn start_flush(&mut self, waiting: Mask, until: Sequence) -> Result<FlushId, Refusal> {
        if !self.leads() {
            return Err(Refusal::NotServing);
        }
        let id = FlushId(self.next_flush);
        self.next_flush += 1;
        let flush = Flush {
            waiting,
            since: None,
            until,
        };
        self.flushes.insert(id, flush);
        Ok(id)
    }

    /// The replicas whose disks a flush waits for.
    #[must_use]
    pub fn flush_waits_for(&self, id: FlushId) -> Mask {
        self.flushes
            .get(&id)
            .map_or_else(Mask::default, |flush| flush.waiting)
    }

    /// A flush that the machine itself wants, at every member, whatever the policy. The driver
    /// asks after each event, and starts it like any other.
    pub fn own_flush(&mut self) -> Option<FlushId> {
        let open = |own| self.own_flushes.iter().any(|(_, other)| *other == own);
        let own = if self.settling && !open(Own::Settle) {
            Own::Settle
        } else if self.handover_wants_flush() && !open(Own::HandOver) {
            Own::HandOver
        } else if self.tightening_wants_flush() && !open(Own::Tighten) {
            Own::Tighten
        } else {
            return None;
        };
        let id = self.start_flush(self.set(), Sequence::ZERO).ok()?;
        self.own_flushes.push((id, own));
        Some(id)
    }

    /// A replica, or this one, completed a flush.
    pub fn flushed(&mut self, now: Duration, replica: usize, id: FlushId) {
        if let Some(flush) = self.flushes.get_mut(&id) {
            flush.waiting = flush.waiting.without(replica);
        }
        self.advance();
        self.ask_for_handover(now);
    }

    /// Nobody outside `members` is waited for any more.
    pub(super) fn flush_without(&mut self, members: Mask) {
        for flush in self.flushes.values_mut() {
            flush.waiting.0 &= members.0;
        }
        self.advance();
    }

    pub(super) fn finish_flushes(&mut self) {
        let covered = self.covered();
        let done: Vec<_> = self
            .flushes
            .iter()
            .filter(|(_, flush)| flush.waiting.0 == 0 && flush.until <= covered)
            .map(|(id, _)| *id)
            .collect();
        for id in done {
            self.flushes.remove(&id);
            let own = self.own_flushes.iter().position(|(other, _)| *other == id);
            let Some(own) = own else {
                self.outputs.push_back(Output::Flushed(id));
                continue;
            };
            match self.own_flushes.swap_remove(own).1 {
                Own::HandOver => self.decide_handover(),
                Own::Tighten => self.tighten(),
                Own::Settle => self.settling = false,
            }
        }
    }

    /// Replicas that do not come to the end of a flush: their disks hang (FO-5).
    pub(super) fn overdue(&mut self, now: Duration) -> Mask {
        let deadline = self.config.replica_deadline.max(FLUSH_DEADLINE);
        let mut overdue = Mask::default();
        for flush in self.flushes.values_mut() {
            if now >= *flush.since.get_or_insert(now) + deadline {
                overdue.0 |= flush.waiting.0;
            }
        }
        overdue
    }
}
