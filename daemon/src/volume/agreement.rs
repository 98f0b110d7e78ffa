//! What the pool agrees about roles, between the machine and the node.

use protocol::replica::Message;
use replication::machine::{Agreed, Proposed};
use storage::Medium;

use super::driver::Driver;

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
        let sent_us = u64::try_from(self.now().as_micros()).unwrap_or(u64::MAX);
        let term = self.machine.durable().term;
        for replica in 0..self.links.len() {
            self.send(replica, &Message::AskPromise { term, sent_us });
        }
    }
}
