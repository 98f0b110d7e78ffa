//! Who this machine is towards the pool: a node of it, as its daemon's directory tells, or a client.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use protocol::client::{KEY_FILE, MEMBERSHIP_FILE, Membership};
use protocol::identity::Identity;
use protocol::ids::NodeId;

use crate::connection::TlsSource;

/// A machine's key, and the nodes of its pool as it knew them last.
pub(crate) struct MachineIdentity {
    identity: Identity,
    /// With their addresses.
    nodes: BTreeMap<NodeId, String>,
}

impl MachineIdentity {
    pub(crate) fn new(identity: Identity, nodes: BTreeMap<NodeId, String>) -> Self {
        Self { identity, nodes }
    }

    /// The machine's own.
    pub(crate) fn own(&self) -> &Identity {
        &self.identity
    }

    /// The nodes, with their addresses.
    pub(crate) fn nodes(&self) -> BTreeMap<NodeId, String> {
        self.nodes.clone()
    }

    /// Reads a data directory once; it is not needed afterwards. A node mounts under the node's
    /// identity.
    pub(crate) fn read(data_dir: &Path) -> io::Result<Self> {
        if is_node(data_dir) {
            let members = std::fs::read(data_dir.join("members.json"))?;
            let members: BTreeMap<NodeId, String> = serde_json::from_slice(&members)?;
            let identity = read_key(&data_dir.join(NODE_KEY_FILE))?;
            return Ok(Self::new(identity, members));
        }
        let membership = std::fs::read(data_dir.join(MEMBERSHIP_FILE))?;
        let membership: Membership = serde_json::from_slice(&membership)?;
        let identity = read_key(&data_dir.join(KEY_FILE))?;
        Ok(Self::new(identity, membership.nodes))
    }
}

/// File of a node's key.
const NODE_KEY_FILE: &str = "identity.pem";

/// Whether the directory is a daemon's.
pub(crate) fn is_node(data_dir: &Path) -> bool {
    data_dir.join(NODE_KEY_FILE).exists()
}

pub(crate) fn read_key(path: &Path) -> io::Result<Identity> {
    let pem = std::fs::read_to_string(path)?;
    Identity::from_pem(&pem).map_err(io::Error::other)
}

impl TlsSource for MachineIdentity {
    fn config(&self, node: Option<NodeId>) -> io::Result<Arc<rustls::ClientConfig>> {
        let config = match node {
            Some(node) => self.identity.client_config_for(node),
            None => self
                .identity
                .client_config_among(self.nodes.keys().copied().collect()),
        };
        config.map_err(io::Error::other)
    }
}
