//! What operators are told about operations that a replica lacks or that the volume lost.

use protocol::units::{Sequence, Term};
use protocol::volume::Protocol;
use replication::decision::Decision;
use storage::Medium;

use super::driver::Driver;
use super::words;

impl<M: Medium> Driver<M> {
    /// What a take-over left behind on the other side is given up by rule: that is said (ONE-3).
    pub(super) fn tell_given_up(&self, replica: usize, decision: Decision) {
        let (Decision::GiveUpTail { after }, Some(report)) =
            (decision, self.machine.report_of(replica))
        else {
            return;
        };
        let count = report.last.0.saturating_sub(after.0);
        let worth = if report.policy.protocol == Protocol::C {
            "none of them was confirmed"
        } else {
            "they may have been confirmed"
        };
        let node = &self.spec.replicas[replica].node_name;
        let text = words::tail_given_up(node, count, after, worth);
        self.host.event("tail_given_up", &self.spec.name, &text);
    }

    /// Under A the replica's queue is beyond the bound: this primary goes on without it.
    pub(super) fn left_behind(&mut self, replica: usize) {
        if self.ahead_of.has(replica) {
            return; // it was said, and it has not caught up since
        }
        self.ahead_of = self.ahead_of.with(replica);
        let bytes = self.machine.lag(replica).map_or(0, |lag| lag.bytes);
        let node = &self.spec.replicas[replica].node_name;
        let text = words::left_behind(node, bytes, self.settings.queue_bytes_max);
        self.host
            .event("replica_left_behind", &self.spec.name, &text);
    }

    /// A client showed the highest record that an answer to it rested on; so many operations were
    /// put back since (DUR-2).
    pub(super) fn look_for_losses(
        &mut self,
        client: &str,
        (term, sequence): (Term, Sequence),
        replayed: u64,
    ) {
        let lost = self.machine.lost_since(term, sequence);
        let lost = lost.saturating_sub(replayed);
        if lost <= self.lost_operations {
            return; // nothing, or another client showed as much already
        }
        self.lost_operations = lost;
        let text = words::operations_lost(lost, term, client, sequence);
        self.host.event("operations_lost", &self.spec.name, &text);
    }
}
