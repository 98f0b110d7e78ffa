//! Clients: machines that mount a pool's volumes and are no nodes of it.
//!
//! An operator invites one by name (`cairn client add`); the token that this gives, used once on
//! the machine itself (`cairn client join`), makes its key known to the pool.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};

use crate::codec::{DecodeError, Reader, Writer};
use crate::ids::{NodeId, PoolId};

/// File of a client's key, in its data directory: PEM, readable by its owner only.
pub const KEY_FILE: &str = "client.pem";
/// File of what a client knows of its pool, in its data directory: a [`Membership`] in JSON.
pub const MEMBERSHIP_FILE: &str = "client.json";

/// How a token's text begins.
const PREFIX: &str = "cairn1.";
/// The layout after the prefix.
const VERSION: u8 = 1;
/// Nodes that a token names at most: one of them has to answer.
pub const TOKEN_NODES_MAX: usize = 8;
/// A key and the length of an address.
const NODE_BYTES_MIN: usize = 20;

/// Text that is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("that is no token of `cairn client add`, or not all of it")]
pub struct BadToken;

/// What `cairn client add` prints: proves to the pool that an operator invited its bearer, and to
/// the bearer who the pool is.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientToken {
    /// The pool.
    pub pool: PoolId,
    /// Nobody can guess it; the pool keeps its hash only.
    pub secret: [u8; 16],
    /// Nodes by their keys, with HOST:PORT: no other may answer. 1 to [`TOKEN_NODES_MAX`].
    pub nodes: Vec<(NodeId, String)>,
}

impl fmt::Debug for ClientToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The secret never reaches a log.
        f.debug_struct("ClientToken")
            .field("pool", &self.pool)
            .field("nodes", &self.nodes)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for ClientToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut w = Writer::default();
        w.u8(VERSION).id(&self.pool.0).id(&self.secret);
        w.u32(u32::try_from(self.nodes.len()).unwrap_or(u32::MAX));
        for (node, address) in &self.nodes {
            w.id(&node.0).bytes(address.as_bytes());
        }
        let mut bytes = w.finish().to_vec();
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        write!(f, "{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
    }
}

impl FromStr for ClientToken {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        let coded = text.trim().strip_prefix(PREFIX).ok_or(BadToken)?;
        let bytes = BASE64URL_NOPAD
            .decode(coded.as_bytes())
            .map_err(|_| BadToken)?;
        let (content, sum) = bytes.split_last_chunk::<4>().ok_or(BadToken)?;
        if crc32fast::hash(content) != u32::from_le_bytes(*sum) {
            return Err(BadToken);
        }
        Self::decode(Reader::new(Bytes::copy_from_slice(content))).map_err(|_| BadToken)
    }
}

impl ClientToken {
    /// The secret as it is shown to a node: 32 hexadecimal digits.
    #[must_use]
    pub fn secret_text(&self) -> String {
        let digits = self.secret.iter().map(|byte| format!("{byte:02x}"));
        digits.collect()
    }

    fn decode(mut r: Reader) -> Result<Self, DecodeError> {
        let version = r.u8("a token's version")?;
        if version != VERSION {
            let (what, value) = ("a token's version", u64::from(version));
            return Err(DecodeError::Invalid { what, value });
        }
        let pool = PoolId(r.id("a token's pool")?);
        let secret = r.id("a token's secret")?;
        let count = r.count(NODE_BYTES_MIN, "a token's nodes")?;
        if count == 0 || count > TOKEN_NODES_MAX {
            let (what, value) = ("a token's nodes", count as u64);
            return Err(DecodeError::Invalid { what, value });
        }
        let mut nodes = Vec::with_capacity(count);
        for _ in 0..count {
            let node = NodeId(r.id("a node")?);
            let address = r.bytes("an address")?;
            let address =
                String::from_utf8(address.to_vec()).map_err(|_| DecodeError::Invalid {
                    what: "an address",
                    value: 0,
                })?;
            nodes.push((node, address));
        }
        r.end("a token")?;
        Ok(Self {
            pool,
            secret,
            nodes,
        })
    }
}

/// What a client knows of the pool that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// Under which name an operator invited it.
    pub name: String,
    /// The pool.
    pub pool: PoolId,
    /// The pool's nodes by their keys, with HOST:PORT.
    pub nodes: BTreeMap<NodeId, String>,
}

/// What an operator sees of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientInfo {
    /// Name.
    pub name: String,
    /// Names of the volumes that it may mount; absent: all.
    pub volumes: Option<Vec<String>>,
    /// Whether it may only read them.
    pub read_only: bool,
    /// What became of the invitation.
    pub state: ClientState,
    /// Its key's name, once it has joined.
    pub id: Option<NodeId>,
}

/// What became of an invitation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientState {
    /// Its token was not used yet.
    Invited,
    /// Its token was not used in time: it needs a new one.
    Expired,
    /// Its key is known.
    Joined,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> ClientToken {
        ClientToken {
            pool: PoolId([1; 16]),
            secret: [2; 16],
            nodes: vec![
                (NodeId([3; 16]), "node1:7450".to_owned()),
                (NodeId([4; 16]), "[fe80::1]:7450".to_owned()),
            ],
        }
    }

    #[test]
    fn a_token_is_one_word_and_survives_being_typed() {
        let text = token().to_string();
        assert!(!text.contains(char::is_whitespace) && !text.contains('"'));
        assert_eq!(format!("  {text}\n").parse(), Ok(token()));
    }

    #[test]
    fn bad_1_a_token_that_is_cut_changed_or_names_nobody_is_none() {
        let text = token().to_string();
        for end in 0..text.len() {
            assert_eq!(text[..end].parse::<ClientToken>(), Err(BadToken));
        }
        let changed = text.replace('A', "B");
        assert_ne!(changed, text);
        assert_eq!(changed.parse::<ClientToken>(), Err(BadToken));
        let nodes = Vec::new();
        let nobody = ClientToken { nodes, ..token() }.to_string();
        assert_eq!(nobody.parse::<ClientToken>(), Err(BadToken));
    }

    #[test]
    fn a_token_in_a_log_does_not_tell_its_secret() {
        assert!(!format!("{:?}", token()).contains('2'));
    }
}
