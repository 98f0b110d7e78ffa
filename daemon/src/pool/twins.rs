//! Two processes with one identity: a machine's image was copied, or a node restored from a backup
//! while it still ran. A member of the pool's group that is there twice may vote twice, so neither
//! of the two is listened to.
//!
//! Each start of a process has a number of its own, which it says with every message of the group and
//! whenever it measures the way to a member, every ten seconds.
//! A number that was followed by another belongs to a process that has ended. If it goes on
//! speaking, it has not.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use protocol::ids::NodeId;
use protocol::node_rpc::Refusal;

use super::refusal::refuse;
use super::{Caller, Node};
use crate::events::Severity;

/// Starts of one node that are remembered.
const STARTS_MAX: usize = 64;
/// So many messages of a process that has ended may still be on their way: more than it has
/// connections, each of which carries one at a time.
const LATE_MAX: u32 = 8;

#[derive(Debug, Default)]
struct Starts {
    current: u64,
    past: Vec<u64>,
    /// Messages of past starts since the present one was first heard.
    late: u32,
}

impl Starts {
    fn begin(&mut self, start: u64) {
        if self.current != 0 {
            if self.past.len() >= STARTS_MAX {
                self.past.remove(0);
            }
            self.past.push(self.current);
        }
        self.current = start;
        self.late = 0;
    }

    fn are_two(&self) -> bool {
        self.late > LATE_MAX
    }
}

/// What a message says of its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sender {
    /// It is the only one, as far as this node can know.
    One,
    /// There are two. `news`: until now that was not known.
    Two { news: bool },
}

/// What was heard of each member's process.
#[derive(Debug, Default)]
pub(super) struct Twins(Mutex<BTreeMap<NodeId, Starts>>);

impl Twins {
    /// `node` spoke, in that start of its process; 0 says nothing.
    pub(super) fn heard(&self, node: NodeId, start: u64) -> Sender {
        if start == 0 {
            return Sender::One;
        }
        let mut all = self.0.lock();
        let starts = all.entry(node).or_default();
        let were = starts.are_two();
        if starts.past.contains(&start) {
            starts.late = starts.late.saturating_add(1);
        } else if starts.current != start {
            // A process that was started after both: whoever goes on speaking is heard of again.
            starts.begin(start);
        }
        match starts.are_two() {
            true => Sender::Two { news: !were },
            false => Sender::One,
        }
    }

    /// The members that are there twice.
    pub(super) fn found(&self) -> Vec<NodeId> {
        let all = self.0.lock();
        let two = all.iter().filter(|(_, starts)| starts.are_two());
        two.map(|(node, _)| *node).collect()
    }
}

/// What an operator should know of a member that is there twice, and what to do.
fn sentence(node: &str, address: &str) -> String {
    format!(
        "two processes say that they are {node}, each with a copy of its key; the pool knows it at \
         {address} and listens to neither: a machine or its data directory was copied, or restored \
         from a backup while it still ran. Stop the copy, and start the daemon of {node} again"
    )
}

impl Node {
    /// Whether a message of the pool's group comes from the only process of its node.
    pub(super) fn check_twin(&self, caller: Caller, start: u64) -> Result<(), Refusal> {
        let Caller::Key(node) = caller else {
            return Ok(()); // those get no further
        };
        let Sender::Two { news } = self.twins.heard(node, start) else {
            return Ok(());
        };
        let text = self.twin_sentence(node);
        if news {
            self.events
                .record(Severity::Error, "node_twice", None, &text);
        }
        Err(refuse("node_twice", text, "Stop the copy."))
    }

    fn twin_sentence(&self, node: NodeId) -> String {
        let member = self.pool.member(node);
        let (name, address) = member.map_or_else(
            || (node.short(), String::new()),
            |member| (member.name, member.address),
        );
        sentence(&name, &address)
    }

    /// One sentence for each member that is there twice, as far as this node heard.
    pub(crate) fn twin_reasons(&self) -> Vec<String> {
        let members = self.pool.state();
        let found = self.twins.found().into_iter();
        let found = found.filter(|node| members.members.contains_key(node));
        found.map(|node| self.twin_sentence(node)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId([7; 16]);

    fn hear(twins: &Twins, start: u64, times: u32) -> Vec<Sender> {
        (0..times).map(|_| twins.heard(NODE, start)).collect()
    }

    #[test]
    fn a_process_that_starts_again_is_one_even_if_its_last_words_come_late() {
        let twins = Twins::default();
        for start in 1..=100 {
            assert_eq!(twins.heard(NODE, start), Sender::One);
            let late = hear(&twins, start - 1, LATE_MAX);
            assert!(late.iter().all(|sender| *sender == Sender::One));
        }
        assert!(twins.found().is_empty());
    }

    #[test]
    fn two_that_go_on_speaking_are_told_once_and_neither_is_heard_until_one_starts_anew() {
        let twins = Twins::default();
        hear(&twins, 1, 9);
        hear(&twins, 2, 9);
        let heard = hear(&twins, 1, LATE_MAX + 2);
        let at_last = usize::try_from(LATE_MAX).expect("few");
        assert_eq!(heard[at_last], Sender::Two { news: true });
        assert_eq!(heard[at_last + 1], Sender::Two { news: false });
        assert_eq!(twins.heard(NODE, 2), Sender::Two { news: false });
        assert_eq!(twins.found(), [NODE]);
        assert_eq!(twins.heard(NODE, 3), Sender::One);
        assert!(twins.found().is_empty());
        // The copy still runs.
        let heard = hear(&twins, 2, LATE_MAX + 1);
        assert_eq!(heard[at_last], Sender::Two { news: true });
    }
}
