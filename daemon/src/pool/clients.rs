//! Clients: invited by an operator, known by their keys, revoked at once.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use protocol::client::{ClientInfo, ClientState, ClientToken, TOKEN_NODES_MAX};
use protocol::ids::NodeId;
use protocol::node_rpc::{Member, NodeReply, Refusal, code};

use super::Node;
use super::create::is_plain;
use super::refusal::{refuse, refuse_usage};
use super::volumes::volume_of;
use crate::events::Severity;
use crate::raft::{ClientRecord, PoolCommand, PoolOutcome, PoolRefusal, PoolState};

/// How long a token may be used, in seconds.
const TOKEN_SECONDS: u64 = 24 * 3600;

impl Node {
    /// Invites a client. The token is for its machine, which uses it within a day.
    pub(crate) async fn add_client(
        &self,
        name: &str,
        volumes: &[String],
        read_only: bool,
    ) -> Result<String, Refusal> {
        check_name(name)?;
        let state = self.pool.state();
        let mut some = BTreeSet::new();
        for volume in volumes {
            some.insert(volume_of(&state, volume)?.id);
        }
        let token = ClientToken {
            pool: state.pool,
            secret: rand::random(),
            nodes: self.nodes_to_name(&state),
        };
        let client = ClientRecord {
            volumes: (!volumes.is_empty()).then_some(some),
            read_only,
            token: fingerprint(&token.secret_text()),
            expires_at: seconds_now() + TOKEN_SECONDS,
            key: None,
        };
        let command = PoolCommand::InviteClient {
            name: name.to_owned(),
            client,
        };
        self.order_client(command).await?;
        Ok(token.to_string())
    }

    /// This node first: it answers just now.
    fn nodes_to_name(&self, state: &PoolState) -> Vec<(NodeId, String)> {
        let mut nodes: Vec<_> = state.members.iter().collect();
        nodes.sort_by_key(|(id, member)| (**id != self.id, !member.voter));
        nodes.truncate(TOKEN_NODES_MAX);
        let named =
            |(id, member): (&NodeId, &crate::raft::MemberState)| (*id, member.address.clone());
        nodes.into_iter().map(named).collect()
    }

    /// All clients, by name.
    pub(crate) fn list_clients(&self) -> Vec<ClientInfo> {
        let (state, now) = (self.pool.state(), seconds_now());
        let clients = state.clients.iter();
        let info = |(name, client): (&String, &ClientRecord)| ClientInfo {
            name: name.clone(),
            volumes: volume_names(&state, client),
            read_only: client.read_only,
            state: match client.key {
                Some(_) => ClientState::Joined,
                None if client.has_expired(now) => ClientState::Expired,
                None => ClientState::Invited,
            },
            id: client.key,
        };
        clients.map(info).collect()
    }

    /// Ends a client's right. Each node closes its connections as it learns of it.
    pub(crate) async fn revoke_client(&self, name: &str) -> Result<String, Refusal> {
        let command = PoolCommand::RevokeClient {
            name: name.to_owned(),
        };
        self.order_client(command).await?;
        Ok(format!("client `{name}` may mount nothing any more"))
    }

    /// Whether a client may mount the volume of this name. What was given up is for nodes.
    pub(crate) fn may_mount(&self, key: NodeId, volume: &str) -> Result<(), Refusal> {
        let state = self.pool.state();
        let spec = state.volume_named(volume);
        if spec.is_some_and(|spec| state.access(key, spec.id).is_some()) {
            return Ok(());
        }
        let name = state.client_of(key).map_or("", |(name, _)| name);
        // Whether there is such a volume is nothing that it has to know.
        Err(refuse(
            code::FORBIDDEN,
            format!("client `{name}` may not mount volume `{volume}`"),
            "See `cairn client list` on a node; `cairn client add … --volume` grants volumes.",
        ))
    }

    async fn order_client(&self, command: PoolCommand) -> Result<(), Refusal> {
        match self.pool.propose_widely(command).await? {
            PoolOutcome::Applied { .. } => Ok(()),
            PoolOutcome::Refused(refusal) => Err(client_refusal(&refusal)),
        }
    }

    /// Makes whoever has this key, and a token's secret, the client that the token was made for.
    pub(crate) async fn join_client(
        &self,
        key: NodeId,
        secret: &str,
    ) -> Result<NodeReply, Refusal> {
        let token = fingerprint(secret);
        let state = self.pool.state();
        let invited = state.clients.values().find(|client| client.token == token);
        match invited {
            None => return Err(client_refusal(&PoolRefusal::TokenUnknown)),
            Some(client) if client.has_expired(seconds_now()) => {
                return Err(refuse(
                    "token_expired",
                    "the token was valid for a day, which is over",
                    "Make a new one on a node: `cairn client add NAME …`.",
                ));
            }
            Some(_) => {}
        }
        self.order_client(PoolCommand::JoinClient { token, key })
            .await?;
        let state = self.pool.state();
        let Some((name, client)) = state.client_of(key) else {
            return Err(client_refusal(&PoolRefusal::TokenUnknown));
        };
        let text = format!("client `{name}` has joined");
        self.events
            .record(Severity::Info, "client_joined", None, &text);
        let members = state.members.iter();
        let nodes = members.map(|(id, member)| {
            let (name, address) = (member.name.clone(), member.address.clone());
            (*id, Member { name, address })
        });
        Ok(NodeReply::ClientJoined {
            name: name.to_owned(),
            volumes: volume_names(&state, client),
            read_only: client.read_only,
            nodes: nodes.collect(),
        })
    }
}

fn volume_names(state: &PoolState, client: &ClientRecord) -> Option<Vec<String>> {
    let volumes = client.volumes.as_ref()?;
    let spec = |id| state.volumes.get(id).map(|spec| spec.name.clone());
    Some(volumes.iter().filter_map(spec).collect())
}

fn check_name(name: &str) -> Result<(), Refusal> {
    if is_plain(name) {
        return Ok(());
    }
    Err(refuse_usage(
        "client_name",
        format!("`{name}` cannot be a client's name"),
        "Take 1 to 64 of A-Z a-z 0-9 . _ -, beginning with a letter or digit: its host name, for \
         example.",
    ))
}

pub(super) fn client_refusal(refusal: &PoolRefusal) -> Refusal {
    let (code, hint) = match refusal {
        PoolRefusal::ClientExists { .. } => (
            "client_exists",
            "Take another name, or end that client first: `cairn client revoke NAME`.",
        ),
        PoolRefusal::KeyKnown { .. } => (
            "client_exists",
            "End it first: `cairn client revoke NAME` on a node.",
        ),
        PoolRefusal::NoClient { .. } => ("no_client", "See `cairn client list`."),
        PoolRefusal::TokenUnknown => (
            "token",
            "Make a new one on a node: `cairn client add NAME …`.",
        ),
        PoolRefusal::ClientIsNode => (
            "client_is_node",
            "Mount there without `client join`, with the daemon's --data-dir.",
        ),
        PoolRefusal::NoVolume => ("no_such_volume", "See `cairn volume list`."),
        _ => ("client", "See `cairn client list`."),
    };
    refuse(code, refusal, hint)
}

fn fingerprint(secret: &str) -> String {
    let key = blake3::derive_key("cairn 2026 token of a client", secret.as_bytes());
    blake3::Hash::from_bytes(key).to_string()
}

fn seconds_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
