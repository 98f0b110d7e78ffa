//! Who this machine is towards the pool, as the local daemon's directory tells.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use protocol::identity::Identity;
use protocol::ids::NodeId;

use crate::connection::TlsSource;

/// A node's identity, and the members of its pool as it knew them last.
pub(crate) struct NodeIdentity {
    identity: Identity,
    members: Vec<NodeId>,
}

impl NodeIdentity {
    /// Reads a daemon's directory once; it is not needed afterwards.
    pub(crate) fn read(data_dir: &Path) -> io::Result<Self> {
        let pem = std::fs::read_to_string(data_dir.join("identity.pem"))?;
        let identity = Identity::from_pem(&pem).map_err(io::Error::other)?;
        let members = std::fs::read(data_dir.join("members.json"))?;
        let members: BTreeMap<NodeId, String> = serde_json::from_slice(&members)?;
        Ok(Self {
            identity,
            members: members.into_keys().collect(),
        })
    }
}

impl TlsSource for NodeIdentity {
    fn config(&self, node: Option<NodeId>) -> io::Result<Arc<rustls::ClientConfig>> {
        let config = match node {
            Some(node) => self.identity.client_config_for(node),
            None => self.identity.client_config_among(self.members.clone()),
        };
        config.map_err(io::Error::other)
    }
}
