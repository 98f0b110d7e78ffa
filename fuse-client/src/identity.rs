//! Who this machine is to the pool: the identity of the node whose data directory is here.

use std::io;
use std::path::Path;
use std::sync::Arc;

use protocol::identity::{Identity, IdentityError};
use protocol::ids::NodeId;

use crate::connection::TlsSource;

/// Why the identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadIdentityError {
    /// It cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// Its file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// It is none.
    #[error("{path}: {source}")]
    Invalid {
        /// Its file.
        path: String,
        /// Why.
        source: IdentityError,
    },
}

/// A node's identity. It connects to nodes whose ids are known, which the local daemon tells.
pub struct NodeIdentity {
    identity: Identity,
}

impl NodeIdentity {
    /// Reads the identity from a daemon's data directory. `None`: there is none, or it is not
    /// this user's to read.
    pub fn read(data_dir: &Path) -> Result<Option<Self>, ReadIdentityError> {
        let path = data_dir.join("identity.pem");
        let shown = path.display().to_string();
        match std::fs::read_to_string(&path) {
            Ok(pem) => match Identity::from_pem(&pem) {
                Ok(identity) => Ok(Some(Self { identity })),
                Err(source) => Err(ReadIdentityError::Invalid {
                    path: shown,
                    source,
                }),
            },
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
                ) =>
            {
                Ok(None)
            }
            Err(source) => Err(ReadIdentityError::Io {
                path: shown,
                source,
            }),
        }
    }
}

impl TlsSource for NodeIdentity {
    fn config(&self, node: Option<NodeId>) -> io::Result<Arc<rustls::ClientConfig>> {
        let Some(node) = node else {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the local daemon is not running, so nobody says which key this address has",
            ));
        };
        self.identity
            .client_config_for(node)
            .map_err(io::Error::other)
    }
}
