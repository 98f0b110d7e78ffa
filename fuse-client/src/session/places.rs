//! Where the volume is served: what was given at the mount, what nodes said since, and in which
//! order to try.

use std::path::PathBuf;

use protocol::ids::NodeId;
use protocol::node_rpc::LocatedNode;

use crate::connection::Target;

#[derive(Debug)]
pub(super) struct Places {
    /// As given: the local daemon's socket and the hosts of the mount.
    seeds: Vec<Target>,
    nodes: Vec<LocatedNode>,
    /// Who is primary, by the last word of any node.
    primary: Option<NodeId>,
}

impl Places {
    pub(super) fn new(local_socket: Option<PathBuf>, hosts: &[String]) -> Self {
        let mut seeds: Vec<_> = local_socket.into_iter().map(Target::Unix).collect();
        seeds.extend(hosts.iter().map(|address| Target::Network {
            address: address.clone(),
            node: None,
        }));
        Self {
            seeds,
            nodes: Vec::new(),
            primary: None,
        }
    }

    /// Whom to ask where the volume is: known nodes after what was given.
    pub(super) fn to_ask(&self) -> Vec<Target> {
        let mut targets = self.seeds.clone();
        for node in &self.nodes {
            for target in Self::targets(node) {
                if !targets.contains(&target) {
                    targets.push(target);
                }
            }
        }
        targets
    }

    /// Nodes of the volume that are not its primary, and whatever was given at the mount.
    pub(super) fn others(&self) -> Vec<Target> {
        let primary = self.nodes.iter().find(|n| Some(n.id) == self.primary);
        let its: Vec<Target> = primary.map(Self::targets).unwrap_or_default();
        let mut targets = self.to_ask();
        targets.retain(|target| !its.iter().any(|own| own.to_string() == target.to_string()));
        targets
    }

    /// A node answered. Only a node itself says where it can be reached on this machine, so that
    /// is kept when another node answers later.
    pub(super) fn located(&mut self, mut nodes: Vec<LocatedNode>) {
        if let Some(node) = nodes.iter().find(|node| node.primary) {
            self.primary = Some(node.id);
        }
        for node in &mut nodes {
            let before = self.nodes.iter().find(|known| known.id == node.id);
            if let (None, Some(before)) = (&node.unix_socket, before) {
                node.unix_socket.clone_from(&before.unix_socket);
            }
        }
        self.nodes = nodes;
    }

    /// A node named the primary.
    pub(super) fn set_primary(&mut self, primary: Option<NodeId>) {
        if primary.is_some() {
            self.primary = primary;
        }
    }

    pub(super) fn primary(&self) -> Option<NodeId> {
        self.primary
    }

    /// Nodes to try for a session, the primary first.
    pub(super) fn to_try(&self) -> Vec<(NodeId, Vec<Target>)> {
        let mut nodes: Vec<_> = self.nodes.iter().collect();
        nodes.sort_by_key(|node| Some(node.id) != self.primary);
        nodes
            .into_iter()
            .map(|node| (node.id, Self::targets(node)))
            .collect()
    }

    /// A path that a node names may be another node's on this machine, so its address is tried
    /// as well if that did not lead to the primary.
    fn targets(node: &LocatedNode) -> Vec<Target> {
        let mut targets = Vec::new();
        if let Some(path) = &node.unix_socket {
            let path = PathBuf::from(path);
            if path.exists() {
                targets.push(Target::Unix(path));
            }
        }
        targets.push(Target::Network {
            address: node.address.clone(),
            node: Some(node.id),
        });
        targets
    }
}
