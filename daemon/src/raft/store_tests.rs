use std::collections::{BTreeMap, BTreeSet};

use openraft::{CommittedLeaderId, Membership, RaftLogReader as _};
use protocol::ids::VolumeId;
use protocol::volume::{Protocol, Quorum, VolumeKind, VolumeSpec, VolumeState};

use super::super::types::PoolCommand;
use super::*;

const ME: NodeId = NodeId([1; 16]);

fn log_id(index: u64) -> NodeLogId {
    LogId::new(CommittedLeaderId::new(1, ME), index)
}

fn membership_entry(index: u64) -> Entry<PoolRaft> {
    let member = Member {
        name: "node1".to_owned(),
        address: "127.0.0.1:1".to_owned(),
    };
    Entry {
        log_id: log_id(index),
        payload: EntryPayload::Membership(Membership::new(
            vec![BTreeSet::from([ME])],
            BTreeMap::from([(ME, member)]),
        )),
    }
}

fn volume_entry(index: u64, name: &str) -> Entry<PoolRaft> {
    let spec = VolumeSpec {
        id: VolumeId([u8::try_from(index).expect("small"); 16]),
        name: name.to_owned(),
        kind: VolumeKind::Fs,
        size_bytes: None,
        protocol: Protocol::C,
        quorum: Quorum::Off,
        replicas: Vec::new(),
        state: VolumeState::Created,
        layout: protocol::volume::Layout::default(),
        options: BTreeMap::new(),
        version: 1,
    };
    Entry {
        log_id: log_id(index),
        payload: EntryPayload::Normal(PoolCommand::CreateVolume { spec }),
    }
}

/// Writes entries as the library does, without its callback.
fn append(log: &LogStore, entries: &[Entry<PoolRaft>]) -> Result<(), StoreError> {
    log.0.write(|txn| {
        let mut table = txn.open_table(LOG)?;
        for entry in entries {
            let bytes = to_json("log entry", entry)?;
            table.insert(entry.log_id.index, bytes.as_slice())?;
        }
        Ok(())
    })
}

#[tokio::test]
async fn everything_survives_reopening_the_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("raft.redb");
    let vote = Vote::new(3, ME);
    {
        let store = Store::open(&path).expect("new");
        store.reset(fresh(PoolId([9; 16])), false).expect("reset");
        let (mut log, mut machine) = store.handles();
        log.save_vote(&vote).await.expect("vote");
        append(&log, &[membership_entry(0), volume_entry(1, "v1")]).expect("append");
        machine
            .apply(vec![membership_entry(0), volume_entry(1, "v1")])
            .await
            .expect("apply");
        log.purge(log_id(0)).await.expect("purge");
    }
    let store = Store::open(&path).expect("again");
    let (mut log, mut machine) = store.handles();
    assert_eq!(log.read_vote().await.expect("vote"), Some(vote));
    let state = log.get_log_state().await.expect("state");
    assert_eq!(state.last_purged_log_id, Some(log_id(0)));
    assert_eq!(state.last_log_id, Some(log_id(1)));
    assert_eq!(
        machine.applied_state().await.expect("state").0,
        Some(log_id(1))
    );
    let state = store.applied().state;
    assert!(state.volume_named("v1").is_some());
    assert_eq!(state.members[&ME].name, "node1");
    assert!(state.members[&ME].voter);
}

#[tokio::test]
async fn a_truncated_tail_is_gone_and_the_rest_is_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(&dir.path().join("raft.redb")).expect("new");
    let (mut log, _) = store.handles();
    let entries: Vec<_> = (1..=5).map(|index| volume_entry(index, "v")).collect();
    append(&log, &entries).expect("append");
    log.truncate(log_id(4)).await.expect("truncate");
    let left = log.try_get_log_entries(0..100).await.expect("entries");
    let left: Vec<u64> = left.iter().map(|entry| entry.log_id.index).collect();
    assert_eq!(left, [1, 2, 3]);
}

#[tokio::test]
async fn a_snapshot_brings_another_node_to_the_same_state() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = Store::open(&dir.path().join("1.redb")).expect("new");
    let second = Store::open(&dir.path().join("2.redb")).expect("new");
    let (_, mut machine) = first.handles();
    machine
        .apply(vec![membership_entry(0), volume_entry(1, "v1")])
        .await
        .expect("apply");
    let snapshot = machine.build_snapshot().await.expect("built");
    let (_, mut other) = second.handles();
    other
        .install_snapshot(&snapshot.meta, snapshot.snapshot)
        .await
        .expect("installed");
    assert_eq!(first.applied().state, second.applied().state);
    assert!(other.get_current_snapshot().await.expect("read").is_some());
}

/// A node that changes pools must never let a late write of the old group into the new one.
#[tokio::test]
async fn handles_of_a_superseded_group_change_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(&dir.path().join("raft.redb")).expect("new");
    store.reset(fresh(PoolId([1; 16])), false).expect("first");
    let (mut log, mut machine) = store.handles();
    store.reset(fresh(PoolId([2; 16])), false).expect("second");
    assert!(log.save_vote(&Vote::new(1, ME)).await.is_err());
    assert!(machine.apply(vec![membership_entry(0)]).await.is_err());
    assert!(machine.build_snapshot().await.is_err());
    let state = store.applied().state;
    assert_eq!(state.pool, PoolId([2; 16]));
    assert!(state.members.is_empty());
    let (mut log, _) = store.handles();
    assert_eq!(log.read_vote().await.expect("vote"), None);
}

#[tokio::test]
async fn a_file_of_another_format_is_refused_by_number() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("raft.redb");
    drop(Store::open(&path).expect("new"));
    {
        let db = Database::create(&path).expect("open");
        let txn = db.begin_write().expect("begin");
        txn.open_table(META)
            .expect("table")
            .insert(FORMAT, b"99".as_slice())
            .expect("insert");
        txn.commit().expect("commit");
    }
    assert!(matches!(
        Store::open(&path),
        Err(StoreError::Format { found: 99 })
    ));
}
