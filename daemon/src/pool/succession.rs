//! What a node does when the pool's leader dies: its process, not its network. Its connections end
//! and nobody accepts new ones at its address, which is known in milliseconds. The group's own
//! election would wait for the end of the leader's lease, half a second, and volumes whose primary
//! died with it would wait as long.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use protocol::ids::NodeId;
use protocol::node_rpc::NodeRequest;

use super::Node;
use crate::rpc::CallError;

/// A process that dies closes one socket after the other.
const LOOKS_MAX: u32 = 20;
/// Pause between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// What a node's address says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    Alive,
    Dying,
    Dead,
    Unknown,
}

/// `error` is what a new connection and a question on it came to.
fn sign(error: &CallError) -> Sign {
    match error {
        CallError::Connect { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused => {
            Sign::Dead
        }
        CallError::Broken { .. } => Sign::Dying,
        CallError::Connect { .. }
        | CallError::Resolve { .. }
        | CallError::Timeout { .. }
        | CallError::Frame(_)
        | CallError::Codec(_)
        | CallError::Identity(_) => Sign::Unknown,
    }
}

impl Node {
    /// A connection on which `node` asked things has ended. If it leads the pool and is dead,
    /// another leader is elected at once.
    pub(crate) fn connection_ended(self: &Arc<Self>, node: NodeId) {
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let group = this.pool.group();
            if group.leadership().await.leader != Some(node) {
                return;
            }
            // Many connections end with a process; one look at it is enough.
            let Ok(_one) = this.succession.try_lock() else {
                return;
            };
            if !this.is_dead(node).await {
                return;
            }
            tracing::info!(leader = node.short(), "the pool's leader died");
            if let Err(error) = group.replace_leader(node).await {
                tracing::debug!(%error, "the pool's leader was not replaced at once");
            }
        });
    }

    async fn is_dead(&self, node: NodeId) -> bool {
        let Some(member) = self.pool.member(node) else {
            return false;
        };
        // What is alive answers by then. What does not is not dead for sure: it is left to the
        // election.
        let within = self.pool.group().times().answer_within;
        for _ in 0..LOOKS_MAX {
            let ping = NodeRequest::Ping { start: 0 };
            let asked = self
                .clients
                .call_once(node, &member.address, &ping, within)
                .await;
            match asked.as_ref().err().map_or(Sign::Alive, sign) {
                Sign::Dead => return true,
                Sign::Dying => tokio::time::sleep(LOOK_AGAIN).await,
                Sign::Alive | Sign::Unknown => return false,
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(kind: io::ErrorKind) -> CallError {
        CallError::Connect {
            address: "node1:7420".to_owned(),
            source: kind.into(),
        }
    }

    #[test]
    fn only_an_address_where_nobody_listens_tells_of_a_death() {
        let address = || "node1:7420".to_owned();
        assert_eq!(sign(&refused(io::ErrorKind::ConnectionRefused)), Sign::Dead);
        for kind in [io::ErrorKind::HostUnreachable, io::ErrorKind::TimedOut] {
            assert_eq!(sign(&refused(kind)), Sign::Unknown);
        }
        let broken = CallError::Broken {
            address: address(),
            source: io::ErrorKind::ConnectionReset.into(),
        };
        assert_eq!(sign(&broken), Sign::Dying);
        let slow = CallError::Timeout {
            address: address(),
            within: Duration::from_millis(250),
        };
        assert_eq!(sign(&slow), Sign::Unknown);
    }
}
