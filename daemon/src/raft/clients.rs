//! Clients in the pool's configuration: machines that may mount volumes and are no nodes.

use std::collections::{BTreeMap, BTreeSet};

use protocol::ids::{NodeId, VolumeId};
use serde::{Deserialize, Serialize};

use super::types::{PoolRefusal, PoolState};

/// Most clients of a pool, invited ones included.
pub(super) const CLIENTS_MAX: usize = 4096;

/// A client as the pool knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientRecord {
    /// The volumes that it may mount; `None`: all, also those that are made later.
    pub volumes: Option<BTreeSet<VolumeId>>,
    /// Whether it may only read them.
    pub read_only: bool,
    /// BLAKE3 of the token's secret, in hexadecimal.
    pub token: String,
    /// Until when the token may be used, in seconds since 1970. Looked at by the node that is
    /// asked: applying knows no clock.
    pub expires_at: u64,
    /// Its key, once it has joined.
    pub key: Option<NodeId>,
}

impl ClientRecord {
    /// Whether the token may not be used any more, at so many seconds since 1970.
    #[must_use]
    pub fn has_expired(&self, now: u64) -> bool {
        self.key.is_none() && now >= self.expires_at
    }
}

/// What an identity may do with a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read and change it.
    Full,
    /// Read it.
    ReadOnly,
}

/// Clients by name.
pub(super) type Clients = BTreeMap<String, ClientRecord>;

impl PoolState {
    /// The client with this key.
    #[must_use]
    pub fn client_of(&self, key: NodeId) -> Option<(&str, &ClientRecord)> {
        let mut clients = self.clients.iter();
        let found = clients.find(|(_, client)| client.key == Some(key));
        found.map(|(name, client)| (name.as_str(), client))
    }

    /// What whoever has this key may do with the volume; `None`: nothing. Members may do all.
    #[must_use]
    pub fn access(&self, key: NodeId, volume: VolumeId) -> Option<Access> {
        if self.members.contains_key(&key) {
            return Some(Access::Full);
        }
        let (_, client) = self.client_of(key)?;
        let granted = client.volumes.as_ref();
        if granted.is_some_and(|volumes| !volumes.contains(&volume)) {
            return None;
        }
        Some(if client.read_only {
            Access::ReadOnly
        } else {
            Access::Full
        })
    }

    /// An invitation; one that was not used yet is replaced.
    pub(super) fn invite(
        &mut self,
        name: String,
        client: ClientRecord,
    ) -> Result<u64, PoolRefusal> {
        match self.clients.get(&name) {
            Some(known) if known.key.is_some() => return Err(PoolRefusal::ClientExists { name }),
            None if self.clients.len() >= CLIENTS_MAX => {
                return Err(PoolRefusal::TooManyClients { limit: CLIENTS_MAX });
            }
            _ => {}
        }
        let gone = |volume: &VolumeId| !self.volumes.contains_key(volume);
        if client.volumes.iter().flatten().any(gone) {
            return Err(PoolRefusal::NoVolume);
        }
        self.clients.insert(name, client);
        Ok(0)
    }

    /// The bearer of a token becomes known. Asked again with the same key, as an answer may be
    /// lost, it is known already.
    pub(super) fn join_client(&mut self, token: &str, key: NodeId) -> Result<u64, PoolRefusal> {
        let mut clients = self.clients.iter();
        let invited = clients.find(|(_, client)| client.token == token);
        let Some((name, client)) = invited else {
            return Err(PoolRefusal::TokenUnknown);
        };
        match client.key {
            Some(known) if known == key => return Ok(0),
            Some(_) => return Err(PoolRefusal::TokenUnknown),
            None => {}
        }
        if self.members.contains_key(&key) {
            return Err(PoolRefusal::ClientIsNode);
        }
        if let Some((known, _)) = self.client_of(key) {
            let name = known.to_owned();
            return Err(PoolRefusal::KeyKnown { name });
        }
        let name = name.clone();
        if let Some(client) = self.clients.get_mut(&name) {
            client.key = Some(key);
        }
        Ok(0)
    }

    /// The client, or its invitation, is gone.
    pub(super) fn revoke_client(&mut self, name: &str) -> Result<u64, PoolRefusal> {
        match self.clients.remove(name) {
            Some(_) => Ok(0),
            None => Err(PoolRefusal::NoClient {
                name: name.to_owned(),
            }),
        }
    }
}
