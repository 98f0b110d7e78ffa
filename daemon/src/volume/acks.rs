//! What a follower tells its primary of how far it is, and the primary all of them of each other.

use protocol::replica::Message;
use replication::machine::Standing;
use storage::Medium;

use super::driver::{BrickFlush, Driver};

impl<M: Medium> Driver<M> {
    /// As a follower: tells the primary how far this replica is.
    pub(super) fn acknowledge(&mut self) {
        self.machine.local_stable(self.brick.stable());
        let mut position = self.machine.position_here();
        if !self.machine.is_joined() {
            // Clients let go of what is stable everywhere (DUR-5), and fsync has confirmed it
            // (DUR-1): who joins the set has all of that stable.
            position.applied = position.applied.min(position.stable);
            position.received = position.received.min(position.stable);
            self.flush_to_join();
        }
        if self.acked == Some(position) {
            return;
        }
        for (replica, link) in self.links.iter().enumerate() {
            let Some(link) = link else { continue };
            if self.machine.standing(replica) == Some(Standing::MyPrimary) {
                self.followed_at = Some(self.wall_time());
                let ack = Message::Ack {
                    received: position.received,
                    applied: position.applied,
                    stable: position.stable,
                    policy: position.policy,
                };
                link.outbox.send(ack.encode());
                self.acked = Some(position);
            }
        }
    }

    /// As a follower that is not in the set yet: what is not stable is made so, again and again.
    fn flush_to_join(&mut self) {
        let follows = (0..self.links.len())
            .any(|replica| self.machine.standing(replica) == Some(Standing::MyPrimary));
        let under_way = self
            .brick_flushes
            .values()
            .any(|purpose| matches!(purpose, BrickFlush::Background));
        if follows && !under_way && self.brick.stable() < self.brick.applied() {
            self.flush_brick(None, BrickFlush::Background);
        }
    }

    /// As primary: tells the members how far each other is, where that changed. What they know to
    /// be stable is not sent again where this primary dies (RS-2).
    pub(super) fn tell_stable(&mut self) {
        let known = self.machine.stable_at();
        if known == self.told_stable {
            return;
        }
        self.told_stable = known;
        let Some((term, layout, positions)) = known else {
            return;
        };
        for replica in 0..self.links.len() {
            if self.machine.standing(replica) == Some(Standing::InSync) {
                let message = Message::Stable {
                    term,
                    layout,
                    positions,
                };
                self.send(replica, &message);
            }
        }
    }

    /// Something about the primary changed: the next acknowledgement is sent in any case.
    pub(super) fn forget_acknowledged(&mut self) {
        self.acked = None;
    }
}
