//! `cairn client certificates`: this machine's identity, and the pool's, as programs take them that
//! speak NBD over TLS: libnbd, QEMU.

use std::fs::{DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use protocol::identity::pem;

use crate::command::{MountFailure, failure};
use crate::connection::peer_certificate;
use crate::identity::MachineIdentity;

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Nodes whose certificates are there: their addresses.
    pub nodes: Vec<String>,
    /// Nodes that did not answer.
    pub missing: Vec<String>,
}

/// Writes `ca-cert.pem`, `client-cert.pem` and `client-key.pem` into `dir`, which is made for this user
/// alone where it is not there. Each node is asked for its certificate, and is who it is by its key.
pub fn write(data_dir: &Path, dir: &Path) -> Result<Written, MountFailure> {
    let identity = MachineIdentity::read(data_dir).map_err(|error| {
        failure(
            format!(
                "this machine has no identity for a pool: {}: {error}",
                data_dir.display()
            ),
            "Invite this machine on a node (`cairn client add NAME`) and run `cairn client join` here.",
        )
    })?;
    let mut written = Written {
        nodes: Vec::new(),
        missing: Vec::new(),
    };
    // QEMU wants to see who signed its own certificate as well.
    let mut authorities = pem(identity.own().certificate());
    for (node, address) in identity.nodes() {
        let config = identity.own().client_config_for(node);
        let config = config.map_err(|error| failure(error, ""))?;
        match peer_certificate(&address, config) {
            Ok(certificate) => {
                authorities.push_str(&pem(&certificate));
                written.nodes.push(address);
            }
            Err(error) => {
                tracing::debug!(%address, %error, "a node gives no certificate");
                written.missing.push(address);
            }
        }
    }
    if written.nodes.is_empty() {
        return Err(failure(
            format!("no node answered: {}", written.missing.join(", ")),
            "Start a node's daemon, or look at the network between.",
        ));
    }
    let own = identity.own().client_certificate();
    let own = own.map_err(|error| failure(error, ""))?;
    let key = identity.own().client_key();
    let key = key.map_err(|error| failure(error, ""))?;
    let files = [
        ("ca-cert.pem", authorities),
        ("client-cert.pem", pem(&own)),
        ("client-key.pem", key),
    ];
    let put = || -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        for (name, text) in &files {
            let mut file = File::options()
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .open(dir.join(name))?;
            file.write_all(text.as_bytes())?;
        }
        Ok(())
    };
    put().map_err(|error| {
        failure(
            format!("{}: {error}", dir.display()),
            "Name a directory that you may write to.",
        )
    })?;
    Ok(written)
}
