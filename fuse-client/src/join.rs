//! `cairn client join`: a machine's key becomes known to a pool.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use protocol::client::{ClientToken, KEY_FILE, MEMBERSHIP_FILE, Membership};
use protocol::identity::Identity;
use protocol::ids::NodeId;
use protocol::node_rpc::{Member, NodeReply, NodeRequest, Refusal};

use crate::command::{MountFailure, failure};
use crate::connection::{SystemConnector, Target};
use crate::identity::{MachineIdentity, is_node, read_key};
use crate::session::ask;

/// What a machine became.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// Under which name.
    pub name: String,
    /// Names of the volumes that it may mount; `None`: all.
    pub volumes: Option<Vec<String>>,
    /// Whether it may only read them.
    pub read_only: bool,
}

/// Makes this machine the client that `token` was made for. Its key and what it knows of the pool
/// stand in `data_dir` durably on return. May be repeated with the same token, as an answer may be
/// lost.
pub fn join(data_dir: &Path, token: &str) -> Result<Joined, MountFailure> {
    let token: ClientToken = token.parse().map_err(|error| {
        failure(
            error,
            "Copy the whole last word of what `cairn client add NAME` printed.",
        )
    })?;
    if is_node(data_dir) {
        return Err(failure(
            "this machine is a node, which mounts under its own identity",
            "Mount without joining: `cairn mount HOST:/VOLUME DIR`.",
        ));
    }
    check_pool(data_dir, &token)?;
    let kept = |error: io::Error| {
        failure(
            format!(
                "the identity cannot be kept in {}: {error}",
                data_dir.display()
            ),
            "Run it as root, or give another directory: `--data-dir DIR`, to `cairn mount` as well.",
        )
    };
    let identity = key_in(data_dir).map_err(kept)?;
    let (joined, nodes) = ask_to_join(identity, &token)?;
    let membership = Membership {
        name: joined.name.clone(),
        pool: token.pool,
        nodes: nodes
            .into_iter()
            .map(|(id, member)| (id, member.address))
            .collect(),
    };
    let text = serde_json::to_vec_pretty(&membership).map_err(|error| kept(error.into()))?;
    write_durably(&data_dir.join(MEMBERSHIP_FILE), &text).map_err(kept)?;
    Ok(joined)
}

/// A machine belongs to one pool: what it mounts of another would be lost without a word.
fn check_pool(data_dir: &Path, token: &ClientToken) -> Result<(), MountFailure> {
    let path = data_dir.join(MEMBERSHIP_FILE);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failure(format!("{}: {error}", path.display()), "")),
    };
    // One that cannot be read is of no use to anybody.
    match serde_json::from_slice::<Membership>(&text) {
        Ok(known) if known.pool != token.pool => Err(failure(
            format!(
                "this machine is client `{}` of another pool already",
                known.name
            ),
            format!(
                "Give this pool a directory of its own, `--data-dir DIR` (to `cairn mount` as \
                 well), or remove {} to leave the other.",
                path.display()
            ),
        )),
        _ => Ok(()),
    }
}

/// The machine's key, made where there is none.
fn key_in(data_dir: &Path) -> io::Result<Identity> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data_dir)?;
    let path = data_dir.join(KEY_FILE);
    match read_key(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let identity = Identity::generate().map_err(io::Error::other)?;
            write_durably(&path, identity.to_pem().as_bytes())?;
            Ok(identity)
        }
        read => read,
    }
}

/// All of it or none, and for its owner only.
fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = File::options()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

/// Asks the nodes that the token names, one after the other, until one answers.
fn ask_to_join(
    identity: Identity,
    token: &ClientToken,
) -> Result<(Joined, BTreeMap<NodeId, Member>), MountFailure> {
    let ids = token.nodes.iter().cloned().collect();
    let source = MachineIdentity::new(identity, ids);
    let connector = SystemConnector::new(Some(Box::new(source)));
    let request = NodeRequest::JoinClient {
        secret: token.secret_text(),
    };
    let mut met = Vec::new();
    for (id, address) in &token.nodes {
        let target = Target::Network {
            address: address.clone(),
            node: Some(*id),
        };
        match ask(&connector, &target, &request) {
            Ok(NodeReply::ClientJoined {
                name,
                volumes,
                read_only,
                nodes,
            }) => {
                let joined = Joined {
                    name,
                    volumes,
                    read_only,
                };
                return Ok((joined, nodes));
            }
            Ok(NodeReply::Error(Refusal { message, hint, .. })) => {
                return Err(failure(message, hint));
            }
            Ok(_) => met.push(format!("{address}: its answer is of another kind")),
            Err(error) => met.push(format!("{address}: {error}")),
        }
    }
    Err(failure(
        format!("no node of the pool answers: {}", met.join("; ")),
        "Can this machine reach them? Is `cairn daemon` running there?",
    ))
}

#[cfg(test)]
mod tests {
    use protocol::ids::PoolId;

    use super::*;

    fn token(pool: u8) -> String {
        let nodes = vec![(NodeId([9; 16]), "127.0.0.1:1".to_owned())];
        ClientToken {
            pool: PoolId([pool; 16]),
            secret: [2; 16],
            nodes,
        }
        .to_string()
    }

    fn member_of(dir: &Path, pool: u8) {
        let membership = Membership {
            name: "app1".to_owned(),
            pool: PoolId([pool; 16]),
            nodes: BTreeMap::new(),
        };
        let text = serde_json::to_vec(&membership).unwrap();
        write_durably(&dir.join(MEMBERSHIP_FILE), &text).unwrap();
    }

    #[test]
    fn a_token_that_is_none_a_node_and_a_client_of_another_pool_are_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let said = |token: &str| join(dir.path(), token).unwrap_err().sentence;
        assert!(said("K7Q2-0000").contains("no token"), "{}", said("K7Q2"));
        member_of(dir.path(), 1);
        assert!(said(&token(2)).contains("another pool"));
        std::fs::write(dir.path().join("identity.pem"), "").unwrap();
        assert!(said(&token(1)).contains("is a node"));
    }

    #[test]
    fn the_key_is_made_once_for_its_owner_only_and_kept_when_nobody_answers() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("a/b");
        assert!(
            join(&inside, &token(1))
                .unwrap_err()
                .sentence
                .contains("127.0.0.1:1")
        );
        let path = inside.join(KEY_FILE);
        let key = std::fs::read(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(join(&inside, &token(1)).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), key);
        assert!(!inside.join(MEMBERSHIP_FILE).exists());
    }
}
