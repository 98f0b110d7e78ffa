use protocol::ids::{BrickId, PoolId, VolumeId};
use protocol::report::SplitSideReport;
use protocol::volume::{Protocol, ReplicaSpec, VolumeKind};

use super::*;
use crate::raft::MemberState;

fn node(byte: u8) -> NodeId {
    NodeId([byte; 16])
}

fn spec() -> VolumeSpec {
    let replica = |byte: u8| ReplicaSpec {
        node: node(byte),
        node_name: format!("node{byte}"),
        path: "/bricks/v1".to_owned(),
        brick: BrickId([byte; 16]),
    };
    VolumeSpec {
        id: VolumeId([7; 16]),
        name: "v1".to_owned(),
        kind: VolumeKind::Fs,
        size_bytes: None,
        protocol: Protocol::C,
        quorum: Quorum::Off,
        replicas: vec![replica(1), replica(2)],
        state: VolumeState::Started,
        layout: protocol::volume::Layout::default(),
        options: BTreeMap::new(),
        version: 1,
    }
}

fn state() -> PoolState {
    let mut state = PoolState {
        pool: PoolId([1; 16]),
        ..PoolState::default()
    };
    for byte in [1, 2] {
        let member = MemberState {
            name: format!("node{byte}"),
            address: String::new(),
            voter: true,
        };
        state.members.insert(node(byte), member);
    }
    state.volumes.insert(spec().id, spec());
    state
}

fn report(replica: usize, role: ReplicaRole) -> ReplicaReport {
    let primary = role == ReplicaRole::Primary;
    ReplicaReport {
        volume: spec().id,
        node: spec().replicas[replica].node,
        replica,
        role,
        role_reason: Some("first start".to_owned()),
        disk: DiskState::UpToDate,
        reason: None,
        serving: primary,
        term: 3,
        generation: None,
        in_sync: true,
        peers: vec![PeerReport {
            replica: 1 - replica,
            connection: ConnectionState::Connected,
            in_sync: true,
            out_of_sync_bytes: Some(0),
            lag_bytes: Some(0),
            lag_seconds: Some(0.0),
            resync: None,
            last_resync: None,
            refusal: None,
            link: None,
        }],
        resync: None,
        last_resync: None,
        size_bytes: None,
        used_bytes: Some(10),
        free_bytes: Some(20),
        clients: Vec::new(),
        split_brain: None,
        protocol_in_force: None,
        lost_operations: 0,
        damaged_blocks: 0,
        repaired_blocks: 0,
        point: None,
        kept: Vec::new(),
    }
}

fn answers(reports: [Option<ReplicaReport>; 2]) -> Answers {
    let [first, second] = reports;
    BTreeMap::from([
        (node(1), first.map(|report| vec![report])),
        (node(2), second.map(|report| vec![report])),
    ])
}

fn judged(reports: [Option<ReplicaReport>; 2]) -> VolumeStatus {
    volume_status(&state(), &spec(), &answers(reports))
}

#[test]
fn two_equal_connected_replicas_are_healthy() {
    let status = judged([
        Some(report(0, ReplicaRole::Primary)),
        Some(report(1, ReplicaRole::Secondary)),
    ]);
    assert_eq!((status.health, status.reason), (Health::Healthy, None));
    assert_eq!(status.primary.as_deref(), Some("node1"));
    assert_eq!(status.replicas[0].connection, ConnectionState::Own);
    assert_eq!(status.replicas[1].connection, ConnectionState::Connected);
    assert_eq!(status.term, Some(3));
}

/// ONE-4: as the node that has it says; of one that does not answer nobody makes anything up.
#[test]
fn one_4_status_names_the_reason_that_each_node_gives_for_its_role() {
    let status = judged([Some(report(0, ReplicaRole::Primary)), None]);
    let reasons = status.replicas.iter().map(|it| it.role_reason.as_deref());
    assert_eq!(reasons.collect::<Vec<_>>(), [Some("first start"), None]);
}

/// An operator made both nodes primary by force.
#[test]
fn one_3_who_forced_both_sides_is_told_what_each_has_and_what_to_do() {
    let side = |node: &str, changes, since: Option<&str>| SplitSideReport {
        node: node.to_owned(),
        changes,
        primary_term: Some(changes),
        primary_since: since.map(str::to_owned),
    };
    let forced = |replica: usize| ReplicaReport {
        role_reason: Some("made primary by an operator, by force".to_owned()),
        split_brain: Some(SplitBrainReport {
            since: "2026-03-01T00:00:00Z".to_owned(),
            nodes: vec!["node1".to_owned(), "node2".to_owned()],
            policy: "manual".to_owned(),
            reason: None,
            sides: vec![
                side("node1", 7, Some("2026-02-01T00:00:00Z")),
                side("node2", 9, None),
            ],
        }),
        ..report(replica, ReplicaRole::Primary)
    };
    let status = judged([Some(forced(0)), Some(forced(1))]);
    let notes = status.notes.join("\n");
    for said in [
        "node1 (primary since 2026-02-01T00:00:00Z, term 7) made 7 changes",
        "node2 (primary since term 9) made 9 changes",
        "cairn volume split-brain v1 list",
        "cairn volume split-brain v1 resolve --keep NODE",
    ] {
        assert!(notes.contains(said), "{said} is not in: {notes}");
    }
}

#[test]
fn the_room_is_that_of_the_smallest_replica_that_is_up_to_date() {
    let mut small = report(1, ReplicaRole::Secondary);
    (small.used_bytes, small.free_bytes) = (Some(11), Some(5));
    let primary = || Some(report(0, ReplicaRole::Primary));
    let status = judged([primary(), Some(small.clone())]);
    assert_eq!((status.used_bytes, status.free_bytes), (Some(11), Some(5)));
    // In the middle of a resync its brick says nothing about the volume.
    small.disk = DiskState::Inconsistent;
    let status = judged([primary(), Some(small)]);
    assert_eq!((status.used_bytes, status.free_bytes), (Some(10), Some(20)));
}

#[test]
fn a_replica_whose_node_is_silent_is_unknown_and_not_what_it_was() {
    let mut primary = report(0, ReplicaRole::Primary);
    primary.peers[0].connection = ConnectionState::Connecting;
    primary.peers[0].in_sync = false;
    primary.peers[0].out_of_sync_bytes = Some(8192);
    let status = judged([Some(primary), None]);
    assert_eq!(status.health, Health::Degraded);
    assert_eq!(status.reason.as_deref(), Some("node2 does not answer"));
    let silent = &status.replicas[1];
    assert_eq!((silent.role, silent.disk), (None, DiskState::Unknown));
    assert_eq!(silent.connection, ConnectionState::Connecting);
    assert_eq!(silent.in_sync, Some(false));
    // What the primary knows about it is known.
    assert_eq!(silent.out_of_sync_bytes, Some(8192));
}

#[test]
fn without_an_answering_primary_a_volume_is_unavailable() {
    let status = judged([None, Some(report(1, ReplicaRole::Secondary))]);
    assert_eq!(status.health, Health::Unavailable);
    assert_eq!(status.primary, None);
    assert_eq!(status.replicas[1].in_sync, None);
    assert_eq!(status.replicas[1].out_of_sync_bytes, None);
}

#[test]
fn a_suspended_primary_is_unavailable_for_its_own_reason() {
    let mut primary = report(0, ReplicaRole::Primary);
    primary.serving = false;
    primary.reason = Some("no quorum".to_owned());
    let status = judged([Some(primary), None]);
    assert_eq!(status.health, Health::Unavailable);
    assert_eq!(status.reason.as_deref(), Some("no quorum"));
}

#[test]
fn of_two_claims_to_be_primary_the_higher_term_counts() {
    let mut late = report(1, ReplicaRole::Primary);
    late.term = 4;
    let status = judged([Some(report(0, ReplicaRole::Primary)), Some(late)]);
    assert_eq!(status.primary.as_deref(), Some("node2"));
    assert_eq!(status.term, Some(4));
}

#[test]
fn each_other_state_of_a_replica_is_degraded_with_its_reason() {
    for (disk, words) in [
        (DiskState::Inconsistent, "node2 is inconsistent (resync)"),
        (DiskState::Outdated, "node2 is outdated (resync)"),
        (DiskState::Failed, "node2 is failed (resync)"),
    ] {
        let mut second = report(1, ReplicaRole::Secondary);
        second.disk = disk;
        second.reason = Some("resync".to_owned());
        let status = judged([Some(report(0, ReplicaRole::Primary)), Some(second)]);
        assert_eq!(status.health, Health::Degraded);
        assert_eq!(status.reason.as_deref(), Some(words));
    }
    let mut primary = report(0, ReplicaRole::Primary);
    primary.peers[0].in_sync = false;
    let status = judged([Some(primary), Some(report(1, ReplicaRole::Secondary))]);
    assert_eq!(status.reason.as_deref(), Some("node2 is not in sync"));
}

#[test]
fn a_volume_that_may_have_a_majority_says_so() {
    let mut state = state();
    let note = |state: &PoolState| notes(state, &spec(), None).join("\n");
    assert!(note(&state).contains("third voting node"));
    let third = MemberState {
        voter: true,
        ..MemberState::default()
    };
    state.members.insert(node(3), third);
    assert!(note(&state).contains("cairn volume set v1 quorum majority"));
}

#[test]
fn a_stopped_volume_does_not_make_the_pool_unavailable() {
    let mut stopped = judged([None, None]);
    stopped.state = VolumeState::Stopped;
    let peers = PeerStatus {
        nodes: Vec::new(),
        quorum: true,
    };
    assert_eq!(overall(&peers, &[stopped.clone()]), Health::Healthy);
    stopped.state = VolumeState::Started;
    assert_eq!(overall(&peers, &[stopped]), Health::Unavailable);
    let alone = PeerStatus {
        nodes: Vec::new(),
        quorum: false,
    };
    assert_eq!(overall(&alone, &[]), Health::Degraded);
}

/// DUR-4
#[test]
fn a_brick_whose_blocks_were_damaged_is_told_with_what_to_do() {
    let mut primary = report(0, ReplicaRole::Primary);
    (primary.damaged_blocks, primary.repaired_blocks) = (3, 2);
    let status = judged([Some(primary), Some(report(1, ReplicaRole::Secondary))]);
    assert_eq!(
        status.health,
        Health::Healthy,
        "what was wrong was put right"
    );
    let told = |note: &&String| note.contains("found damaged 3 times") && note.contains("--repair");
    assert_eq!(
        status.notes.iter().filter(told).count(),
        1,
        "{:?}",
        status.notes
    );
    assert_eq!(status.replicas[0].repaired_blocks, Some(2));
}
