//! What the pool agrees about roles, between the machine and the node.

use std::time::Duration;

use protocol::link::LEASE_MS_MIN;
use protocol::replica::Message;
use protocol::units::Term;
use replication::machine::{Agreed, Proposed};
use storage::Medium;

use super::driver::Driver;
use super::thread::TICK;

impl<M: Medium> Driver<M> {
    /// Has the pool agree, and tells the machine what came of it.
    pub(super) fn propose(&self, next: Agreed) {
        let Some(shared) = self.shared() else { return };
        let answer = self.host.propose(self.spec.id, next);
        tokio::task::spawn_local(async move {
            let outcome = answer.await.unwrap_or(Proposed::Undecided);
            let mut d = shared.borrow_mut();
            if d.stopping || d.failed.is_some() {
                return;
            }
            let learned = d.learn_agreement();
            let now = d.now();
            // What was agreed cannot be told before the replicas are known that it is about: until
            // then it may or may not have happened.
            let outcome = if learned {
                outcome
            } else {
                Proposed::Undecided
            };
            d.machine.proposed(now, next, outcome);
            d.finish_turn();
        });
    }

    /// Tells the machine what this node knows of the pool's agreement. False: not yet, as it is
    /// about replicas that this one has not learned of.
    pub(super) fn learn_agreement(&mut self) -> bool {
        let now = self.now();
        // Read first: it is no newer than the layout.
        let agreed = self.host.agreed(self.spec.id);
        if self.host.layout(self.spec.id) > self.spec.layout.version {
            return false;
        }
        if let Some(agreed) = agreed {
            self.machine.agreement(now, agreed);
        }
        true
    }

    /// As primary: has every follower promise to ask for no role for a while, as long as there are
    /// clients to answer.
    pub(super) fn ask_promises(&mut self) {
        let asked = self.machine.agreed().is_some() && !self.sessions.by_id.is_empty();
        if !asked || !self.machine.serves() {
            return;
        }
        let now = self.now();
        self.asked_promises = Some(now);
        self.machine.asks_promises(now);
        let ask = Message::AskPromise {
            term: self.machine.durable().term,
            sent_us: u64::try_from(now.as_micros()).unwrap_or(u64::MAX),
            lease_ms: self.settings.link.lease_ms,
        };
        for replica in 0..self.links.len() {
            self.send(replica, &ask);
        }
    }

    /// Asks for them again as often as the link's profile says, which leaves a question and its
    /// answer time to be late.
    pub(super) fn renew_promises(&mut self, now: Duration) {
        // The ticker is late by a little, and must not skip a turn for that.
        let pause = self.settings.link.ask_every.saturating_sub(TICK / 2);
        if self.asked_promises.is_none_or(|at| now >= at + pause) {
            self.ask_promises();
        }
    }

    /// The primary asks for a promise: what is given is told, with its length.
    pub(super) fn give_promise(&mut self, from: usize, term: Term, sent_us: u64, lease_ms: u32) {
        let asked = Duration::from_millis(lease_ms.into());
        let given = self.machine.promise(self.now(), from, term, asked);
        let given = given.and_then(|length| u32::try_from(length.as_millis()).ok());
        if let Some(lease_ms) = given.filter(|ms| *ms >= LEASE_MS_MIN) {
            self.send(from, &Message::Promise { sent_us, lease_ms });
        }
    }

    /// A replica promised what was asked for at `sent_us`, by this replica's clock.
    pub(super) fn take_promise(&mut self, from: usize, sent_us: u64, lease_ms: u32) {
        // Nothing that was sent later than now was asked for by this process.
        let sent = Duration::from_micros(sent_us).min(self.now());
        let given = Duration::from_millis(lease_ms.into());
        self.machine.promised(from, sent, given);
    }
}
