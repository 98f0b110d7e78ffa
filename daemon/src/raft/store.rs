//! Log, vote, state and snapshot of the pool's Raft group in one redb file. Every write is one
//! durable transaction: when a call returns, its effect survives kill -9 and loss of power.
//!
//! A node changes pools (it is admitted, expelled, or its pool starts a new epoch) by
//! [`Store::reset`], which replaces everything in one transaction and raises the *incarnation*:
//! whatever still runs for the old group fails at its next write instead of mixing two groups.

use std::fmt::Debug;
use std::io::Cursor;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;

use openraft::storage::{LogFlushed, LogState, RaftLogStorage, RaftStateMachine, Snapshot};
use openraft::{
    AnyError, Entry, EntryPayload, LogId, OptionalSend, RaftLogReader, RaftSnapshotBuilder,
    SnapshotMeta, StorageError, StorageIOError, StoredMembership, Vote,
};
use parking_lot::Mutex;
use protocol::ids::{NodeId, PoolId};
use protocol::node_rpc::Member;
use redb::{
    Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, WriteTransaction,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::types::{MemberState, PoolOutcome, PoolRaft, PoolState};

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const VOTE: &str = "vote";
const PURGED: &str = "purged";
const APPLIED: &str = "applied";
const SNAPSHOT: &str = "snapshot";
const FORMAT: &str = "format";
/// Version of what stands in the file.
const FORMAT_VERSION: u32 = 1;

type NodeLogId = LogId<NodeId>;
type Membership = StoredMembership<NodeId, Member>;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database refused.
    #[error("the pool's configuration file: {source}")]
    Database {
        /// What it says.
        #[source]
        source: Box<redb::Error>,
    },
    /// Content that does not parse.
    #[error("the pool's configuration file has an unreadable `{what}`: {source}")]
    Content {
        /// Which part.
        what: &'static str,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// Another version's file.
    #[error(
        "the pool's configuration file has format {found}; this program reads {FORMAT_VERSION}"
    )]
    Format {
        /// What was found.
        found: u32,
    },
    /// The node is in another group by now.
    #[error("this node has left that pool")]
    Superseded,
    /// The thread that did the work is gone.
    #[error("the work on the pool's configuration file was abandoned")]
    Abandoned,
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        Self::Database {
            source: Box::new(error.into()),
        }
    }
}

/// The state with its place in the log.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Applied {
    pub(crate) last: Option<NodeLogId>,
    pub(crate) membership: Membership,
    pub(crate) state: PoolState,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredSnapshot {
    meta: SnapshotMeta<NodeId, Member>,
    state: PoolState,
}

struct Shared {
    db: Database,
    /// State in force and the incarnation that may change it. Held across a transaction and its
    /// publication, so that a superseded group never publishes after its successor.
    current: Mutex<(u64, Applied)>,
    published: watch::Sender<Arc<PoolState>>,
}

/// The file, shared by all that use it.
#[derive(Clone)]
pub(crate) struct Store {
    shared: Arc<Shared>,
}

impl Store {
    /// Opens or makes the file.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let db = Database::create(path)?;
        let txn = db.begin_write()?;
        let applied = {
            let mut meta = txn.open_table(META)?;
            txn.open_table(LOG)?;
            let found: Option<u32> = read_json(&meta, FORMAT, "format")?;
            match found {
                Some(FORMAT_VERSION) => {}
                Some(found) => return Err(StoreError::Format { found }),
                None => {
                    meta.insert(FORMAT, to_json("format", &FORMAT_VERSION)?.as_slice())?;
                }
            }
            read_json::<Applied>(&meta, APPLIED, "state")?.unwrap_or_default()
        };
        txn.commit()?;
        let (published, _) = watch::channel(Arc::new(applied.state.clone()));
        Ok(Self {
            shared: Arc::new(Shared {
                db,
                current: Mutex::new((1, applied)),
                published,
            }),
        })
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<PoolState>> {
        self.shared.published.subscribe()
    }

    pub(crate) fn applied(&self) -> Applied {
        self.shared.current.lock().1.clone()
    }

    /// Handles for one Raft instance; they fail after the next [`Store::reset`].
    pub(crate) fn handles(&self) -> (LogStore, Machine) {
        let incarnation = self.shared.current.lock().0;
        let handle = Handle {
            shared: Arc::clone(&self.shared),
            incarnation,
        };
        (LogStore(handle.clone()), Machine(handle))
    }

    /// Replaces everything by `applied`, an empty log behind it, durably, and returns when the
    /// old group cannot write any more. `keep_vote` where the group goes on under the same pool.
    pub(crate) fn reset(&self, applied: Applied, keep_vote: bool) -> Result<(), StoreError> {
        let mut current = self.shared.current.lock();
        let txn = self.shared.db.begin_write()?;
        {
            txn.delete_table(LOG)?;
            txn.open_table(LOG)?;
            let mut meta = txn.open_table(META)?;
            if !keep_vote {
                meta.remove(VOTE)?;
            }
            meta.remove(SNAPSHOT)?;
            meta.remove(PURGED)?;
            if let Some(last) = &applied.last {
                meta.insert(PURGED, to_json("purged", last)?.as_slice())?;
            }
            meta.insert(APPLIED, to_json("state", &applied)?.as_slice())?;
        }
        txn.commit()?;
        current.0 += 1;
        self.shared
            .published
            .send_replace(Arc::new(applied.state.clone()));
        current.1 = applied;
        Ok(())
    }
}

/// What a new pool of one starts from.
pub(crate) fn fresh(pool: PoolId) -> Applied {
    Applied {
        state: PoolState {
            pool,
            epoch: 1,
            ..PoolState::default()
        },
        ..Applied::default()
    }
}

fn to_json<T: Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|source| StoreError::Content { what, source })
}

fn from_json<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|source| StoreError::Content { what, source })
}

fn read_json<T: DeserializeOwned>(
    table: &impl redb::ReadableTable<&'static str, &'static [u8]>,
    key: &'static str,
    what: &'static str,
) -> Result<Option<T>, StoreError> {
    match table.get(key)? {
        Some(bytes) => from_json(what, bytes.value()).map(Some),
        None => Ok(None),
    }
}

#[derive(Clone)]
struct Handle {
    shared: Arc<Shared>,
    incarnation: u64,
}

impl Handle {
    /// One durable transaction, refused when the group was superseded.
    fn write(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let current = self.shared.current.lock();
        if current.0 != self.incarnation {
            return Err(StoreError::Superseded);
        }
        let txn = self.shared.db.begin_write()?;
        work(&txn)?;
        txn.commit()?;
        Ok(())
    }

    fn meta<T: DeserializeOwned>(&self, key: &'static str) -> Result<Option<T>, StoreError> {
        let txn = self.shared.db.begin_read()?;
        read_json(&txn.open_table(META)?, key, key)
    }

    /// Changes the state, stores it, publishes it.
    fn change<T>(
        &self,
        snapshot: Option<StoredSnapshot>,
        change: impl FnOnce(&mut Applied) -> T,
    ) -> Result<T, StoreError> {
        let mut current = self.shared.current.lock();
        if current.0 != self.incarnation {
            return Err(StoreError::Superseded);
        }
        let mut next = current.1.clone();
        let result = change(&mut next);
        let txn = self.shared.db.begin_write()?;
        {
            let mut meta = txn.open_table(META)?;
            meta.insert(APPLIED, to_json("state", &next)?.as_slice())?;
            if let Some(snapshot) = snapshot {
                meta.insert(SNAPSHOT, to_json("snapshot", &snapshot)?.as_slice())?;
            }
        }
        txn.commit()?;
        if next.state != current.1.state {
            self.shared
                .published
                .send_replace(Arc::new(next.state.clone()));
        }
        current.1 = next;
        Ok(result)
    }

    /// Runs `work` where waiting for the medium hurts nobody.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let handle = self.clone();
        tokio::task::spawn_blocking(move || work(&handle))
            .await
            .map_err(|_| StoreError::Abandoned)?
    }
}

fn write_failed(error: StoreError) -> StorageError<NodeId> {
    StorageIOError::write(AnyError::new(&error)).into()
}

fn read_failed(error: StoreError) -> StorageError<NodeId> {
    StorageIOError::read(AnyError::new(&error)).into()
}

/// The log of one Raft instance.
#[derive(Clone)]
pub(crate) struct LogStore(Handle);

impl RaftLogReader<PoolRaft> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry<PoolRaft>>, StorageError<NodeId>> {
        let bounds: (Bound<u64>, Bound<u64>) =
            (range.start_bound().cloned(), range.end_bound().cloned());
        self.0
            .blocking(move |handle| {
                let txn = handle.shared.db.begin_read()?;
                let log = txn.open_table(LOG)?;
                let mut entries = Vec::new();
                for item in log.range::<u64>(bounds)? {
                    entries.push(from_json("log entry", item?.1.value())?);
                }
                Ok(entries)
            })
            .await
            .map_err(read_failed)
    }
}

impl RaftLogStorage<PoolRaft> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<PoolRaft>, StorageError<NodeId>> {
        self.0
            .blocking(|handle| {
                let purged: Option<NodeLogId> = handle.meta(PURGED)?;
                let txn = handle.shared.db.begin_read()?;
                let log = txn.open_table(LOG)?;
                let last = match log.last()? {
                    Some((_, bytes)) => {
                        let entry: Entry<PoolRaft> = from_json("log entry", bytes.value())?;
                        Some(entry.log_id)
                    }
                    None => purged,
                };
                Ok(LogState {
                    last_purged_log_id: purged,
                    last_log_id: last,
                })
            })
            .await
            .map_err(read_failed)
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<NodeId>) -> Result<(), StorageError<NodeId>> {
        let vote = *vote;
        self.0
            .blocking(move |handle| {
                handle.write(|txn| {
                    let bytes = to_json("vote", &vote)?;
                    txn.open_table(META)?.insert(VOTE, bytes.as_slice())?;
                    Ok(())
                })
            })
            .await
            .map_err(write_failed)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<NodeId>>, StorageError<NodeId>> {
        self.0
            .blocking(|handle| handle.meta(VOTE))
            .await
            .map_err(read_failed)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<PoolRaft>,
    ) -> Result<(), StorageError<NodeId>>
    where
        I: IntoIterator<Item = Entry<PoolRaft>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry<PoolRaft>> = entries.into_iter().collect();
        self.0
            .blocking(move |handle| {
                handle.write(|txn| {
                    let mut log = txn.open_table(LOG)?;
                    for entry in &entries {
                        let bytes = to_json("log entry", entry)?;
                        log.insert(entry.log_id.index, bytes.as_slice())?;
                    }
                    Ok(())
                })
            })
            .await
            .map_err(write_failed)?;
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, log_id: NodeLogId) -> Result<(), StorageError<NodeId>> {
        self.0
            .blocking(move |handle| {
                handle.write(|txn| {
                    txn.open_table(LOG)?
                        .retain_in(log_id.index.., |_, _| false)?;
                    Ok(())
                })
            })
            .await
            .map_err(write_failed)
    }

    async fn purge(&mut self, log_id: NodeLogId) -> Result<(), StorageError<NodeId>> {
        self.0
            .blocking(move |handle| {
                handle.write(|txn| {
                    txn.open_table(LOG)?
                        .retain_in(..=log_id.index, |_, _| false)?;
                    let bytes = to_json("purged", &log_id)?;
                    txn.open_table(META)?.insert(PURGED, bytes.as_slice())?;
                    Ok(())
                })
            })
            .await
            .map_err(write_failed)
    }
}

/// The state machine of one Raft instance.
#[derive(Clone)]
pub(crate) struct Machine(Handle);

fn apply_entry(applied: &mut Applied, entry: Entry<PoolRaft>) -> PoolOutcome {
    applied.last = Some(entry.log_id);
    match entry.payload {
        EntryPayload::Blank => PoolOutcome::Applied { version: 0 },
        EntryPayload::Normal(command) => applied.state.apply(command),
        EntryPayload::Membership(membership) => {
            applied.membership = StoredMembership::new(Some(entry.log_id), membership);
            take_members(applied);
            PoolOutcome::Applied { version: 0 }
        }
    }
}

/// Members are what the Raft membership says: one source, so that they cannot disagree.
fn take_members(applied: &mut Applied) {
    let voters: Vec<NodeId> = applied.membership.voter_ids().collect();
    applied.state.members = applied
        .membership
        .nodes()
        .map(|(id, member)| {
            let state = MemberState {
                name: member.name.clone(),
                address: member.address.clone(),
                voter: voters.contains(id),
            };
            (*id, state)
        })
        .collect();
    applied.state.entering = false;
    applied.state.bootstrap.clear();
}

impl RaftStateMachine<PoolRaft> for Machine {
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<NodeLogId>, Membership), StorageError<NodeId>> {
        let current = self.0.shared.current.lock();
        Ok((current.1.last, current.1.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<PoolOutcome>, StorageError<NodeId>>
    where
        I: IntoIterator<Item = Entry<PoolRaft>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry<PoolRaft>> = entries.into_iter().collect();
        self.0
            .blocking(move |handle| {
                handle.change(None, |applied| {
                    entries
                        .into_iter()
                        .map(|entry| apply_entry(applied, entry))
                        .collect()
                })
            })
            .await
            .map_err(write_failed)
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        self.clone()
    }

    async fn begin_receiving_snapshot(
        &mut self,
    ) -> Result<Box<Cursor<Vec<u8>>>, StorageError<NodeId>> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<NodeId, Member>,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError<NodeId>> {
        let meta = meta.clone();
        self.0
            .blocking(move |handle| {
                let state: PoolState = from_json("snapshot", snapshot.get_ref())?;
                let stored = StoredSnapshot {
                    meta: meta.clone(),
                    state: state.clone(),
                };
                handle.change(Some(stored), |applied| {
                    applied.last = meta.last_log_id;
                    applied.membership = meta.last_membership;
                    applied.state = state;
                    take_members(applied);
                })
            })
            .await
            .map_err(write_failed)
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<Snapshot<PoolRaft>>, StorageError<NodeId>> {
        let stored: Option<StoredSnapshot> = self
            .0
            .blocking(|handle| handle.meta(SNAPSHOT))
            .await
            .map_err(read_failed)?;
        stored.map(to_snapshot).transpose().map_err(read_failed)
    }
}

fn to_snapshot(stored: StoredSnapshot) -> Result<Snapshot<PoolRaft>, StoreError> {
    let bytes = to_json("snapshot", &stored.state)?;
    Ok(Snapshot {
        meta: stored.meta,
        snapshot: Box::new(Cursor::new(bytes)),
    })
}

impl RaftSnapshotBuilder<PoolRaft> for Machine {
    async fn build_snapshot(&mut self) -> Result<Snapshot<PoolRaft>, StorageError<NodeId>> {
        self.0
            .blocking(|handle| {
                let applied = handle.shared.current.lock().1.clone();
                let snapshot_id = applied
                    .last
                    .map_or_else(|| "empty".to_owned(), |last| last.to_string());
                let stored = StoredSnapshot {
                    meta: SnapshotMeta {
                        last_log_id: applied.last,
                        last_membership: applied.membership,
                        snapshot_id,
                    },
                    state: applied.state,
                };
                handle.write(|txn| {
                    let bytes = to_json("snapshot", &stored)?;
                    txn.open_table(META)?.insert(SNAPSHOT, bytes.as_slice())?;
                    Ok(())
                })?;
                to_snapshot(stored)
            })
            .await
            .map_err(write_failed)
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
