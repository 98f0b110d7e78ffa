use std::collections::BTreeMap;

use protocol::ids::{NodeId, VolumeId};
use protocol::report::{ConnectionState, Health, PointReport, PointState};
use protocol::volume::{Layout, Protocol, Quorum, VolumeKind};

use super::*;

fn replica(byte: u8) -> ReplicaSpec {
    ReplicaSpec {
        node: NodeId([byte; 16]),
        node_name: format!("node{byte}"),
        path: "/b".to_owned(),
        brick: BrickId([byte; 16]),
    }
}

fn spec(count: u8) -> VolumeSpec {
    VolumeSpec {
        id: VolumeId([7; 16]),
        name: "v1".to_owned(),
        kind: VolumeKind::Fs,
        size_bytes: None,
        protocol: Protocol::C,
        quorum: Quorum::Off,
        replicas: (1..=count).map(replica).collect(),
        layout: Layout::default(),
        state: VolumeState::Started,
        options: BTreeMap::new(),
        version: 1,
    }
}

fn change(replica: Option<usize>, add: usize, remove: usize) -> ChangeBricks {
    let brick = BrickPlace {
        host: "node1".to_owned(),
        path: "/b".to_owned(),
    };
    ChangeBricks {
        name: "v1".to_owned(),
        replica,
        add: vec![brick.clone(); add],
        remove: vec![brick; remove],
        force: true,
        wait: false,
    }
}

fn told(in_sync: &[Option<bool>]) -> VolumeStatus {
    let replicas = in_sync
        .iter()
        .zip(1..)
        .map(|(in_sync, byte)| ReplicaStatus {
            node: format!("node{byte}"),
            brick: "/b".to_owned(),
            role: None,
            role_reason: None,
            disk: match in_sync {
                Some(true) => DiskState::UpToDate,
                Some(false) => DiskState::Consistent,
                None => DiskState::Unknown,
            },
            reason: None,
            connection: ConnectionState::Connected,
            in_sync: *in_sync,
            out_of_sync_bytes: None,
            lag_bytes: None,
            lag_seconds: None,
            resync: None,
            last_resync: None,
            link: None,
            damaged_blocks: None,
            repaired_blocks: None,
            point: None,
            kept: Vec::new(),
        });
    VolumeStatus {
        name: "v1".to_owned(),
        id: VolumeId([7; 16]),
        kind: VolumeKind::Fs,
        state: VolumeState::Started,
        protocol: Protocol::C,
        quorum: Quorum::Off,
        health: Health::Healthy,
        reason: None,
        notes: Vec::new(),
        primary: Some("node1".to_owned()),
        term: None,
        generation: None,
        size_bytes: None,
        used_bytes: None,
        free_bytes: None,
        replicas: replicas.collect(),
        clients: Vec::new(),
        split_brain: None,
    }
}

#[test]
fn replica_n_is_what_there_is_afterwards_and_one_brick_stays() {
    let count = |replica, add, remove| check_count(&spec(2), &change(replica, add, remove));
    assert!(count(Some(3), 1, 0).is_ok() && count(None, 1, 1).is_ok());
    for (replica, add, remove, why) in [
        (Some(2), 1, 0, "3 afterwards, not 2"),
        (Some(0), 0, 2, "one at least stays"),
        (Some(9), 7, 0, "1 to 8 replicas, not 9"),
    ] {
        let refusal = count(replica, add, remove).expect_err(why);
        assert!(refusal.message.contains(why), "{refusal:?}");
    }
}

#[test]
fn no_brick_goes_that_writes_would_wait_for() {
    let mut spec = spec(2);
    spec.options
        .insert("min-in-sync".to_owned(), "2".to_owned());
    let refusal = check_count(&spec, &change(None, 0, 1)).expect_err("they would wait");
    assert!(refusal.hint.contains("min-in-sync 1"), "{refusal:?}");
    assert!(check_count(&spec, &change(None, 1, 1)).is_ok());
}

/// BAD-5: the last good copy goes by no word; fewer good copies by `force`.
#[test]
fn bad_5_a_brick_goes_only_if_one_that_stays_has_everything() {
    let spec = spec(3);
    let (yes, no) = (Some(true), Some(false));
    let copies = |told: VolumeStatus, leaving: &[usize], force| {
        check_copies(&spec, &told, leaving, force).map_err(|refusal| {
            assert_eq!(refusal.exit_code, 4);
            refusal.code
        })
    };
    assert_eq!(copies(told(&[yes, yes, yes]), &[0], false), Ok(1));
    assert_eq!(copies(told(&[yes, no, None]), &[1, 2], false), Ok(0));
    for force in [false, true] {
        let lost = copies(told(&[yes, no, None]), &[0], force);
        assert_eq!(lost, Err("last_copy".to_owned()));
    }
    let fewer = told(&[yes, yes, no]);
    assert_eq!(
        copies(fewer.clone(), &[0], false),
        Err("fewer_copies".to_owned())
    );
    assert_eq!(copies(fewer, &[0], true), Ok(1));
}

/// BAD-5, ONE-3: what a brick alone keeps of a given-up side goes by `force` only.
#[test]
fn a_brick_that_keeps_a_given_up_side_goes_by_force_only() {
    let mut told = told(&[Some(true); 3]);
    told.replicas[1].kept.push(PointReport {
        id: 1,
        state: PointState::GivenUp,
        as_of: "2026-11-21T08:00:00Z".to_owned(),
        sequence: 7,
        kept_bytes: 4096,
    });
    let copies = |leaving: usize, force| {
        let checked = check_copies(&spec(3), &told, &[leaving], force);
        checked.map_err(|refusal| (refusal.exit_code, refusal.code))
    };
    assert_eq!(copies(1, false), Err((4, "given_up".to_owned())));
    assert_eq!(copies(1, true), Ok(0));
    assert_eq!(copies(2, false), Ok(0));
}

#[test]
fn a_place_is_used_again_only_when_all_are_taken_and_its_brick_was_removed() {
    let mut spec = spec(7);
    spec.layout.removed = 0b100;
    assert_eq!(place_of_new(&mut spec, replica(50)).ok(), Some(7));
    assert_eq!(place_of_new(&mut spec, replica(51)).ok(), Some(2));
    assert_eq!((spec.layout.removed, spec.members().count()), (0, 8));
    assert!(place_of_new(&mut spec, replica(52)).is_err());
}
