use protocol::ids::BrickId;
use protocol::volume::{Protocol, ReplicaSpec, VolumeKind, VolumeState};

use super::super::clients::{Access, ClientRecord};
use super::*;

fn node(byte: u8) -> NodeId {
    NodeId([byte; 16])
}

fn spec(id: u8, name: &str, quorum: Quorum) -> VolumeSpec {
    let replica = |byte: u8| ReplicaSpec {
        node: node(byte),
        node_name: format!("node{byte}"),
        path: format!("/bricks/{name}"),
        brick: BrickId([byte; 16]),
    };
    VolumeSpec {
        id: VolumeId([id; 16]),
        name: name.to_owned(),
        kind: VolumeKind::Fs,
        size_bytes: None,
        protocol: Protocol::C,
        quorum,
        replicas: vec![replica(1), replica(2)],
        state: VolumeState::Created,
        layout: protocol::volume::Layout::default(),
        options: BTreeMap::new(),
        version: 0,
    }
}

fn pool() -> PoolState {
    let mut state = PoolState::default();
    for byte in [1, 2] {
        state.members.insert(node(byte), MemberState::default());
    }
    state
}

fn applied(outcome: &PoolOutcome) -> bool {
    matches!(outcome, PoolOutcome::Applied { .. })
}

#[test]
fn a_second_volume_of_the_same_name_or_on_the_same_brick_is_refused_and_the_same_one_is_none() {
    let mut state = pool();
    let first = spec(1, "v1", Quorum::Off);
    assert!(applied(&state.apply(PoolCommand::CreateVolume {
        spec: first.clone()
    })));
    assert!(applied(&state.apply(PoolCommand::CreateVolume {
        spec: first.clone()
    })));
    let again = state.apply(PoolCommand::CreateVolume {
        spec: spec(2, "v1", Quorum::Off),
    });
    assert!(matches!(
        again,
        PoolOutcome::Refused(PoolRefusal::NameTaken { .. })
    ));
    let mut other = spec(3, "v3", Quorum::Off);
    other.replicas[1].path.clone_from(&first.replicas[1].path);
    assert!(matches!(
        state.apply(PoolCommand::CreateVolume { spec: other }),
        PoolOutcome::Refused(PoolRefusal::BrickTaken { .. })
    ));
    assert_eq!(state.volumes.len(), 1);
}

#[test]
fn of_two_updates_decided_on_one_version_only_the_first_is_applied() {
    let mut state = pool();
    state.apply(PoolCommand::CreateVolume {
        spec: spec(1, "v1", Quorum::Off),
    });
    let mut started = state.volumes[&VolumeId([1; 16])].clone();
    started.state = VolumeState::Started;
    let update = PoolCommand::UpdateVolume {
        spec: started,
        expected_version: 1,
    };
    assert!(applied(&state.apply(update.clone())));
    assert_eq!(
        state.apply(update),
        PoolOutcome::Refused(PoolRefusal::VersionChanged {
            expected: 1,
            current: 2
        })
    );
}

/// ONE-1: the replica set changes by compare-and-set, and only a member of the last in-sync set
/// becomes primary, under a higher term.
#[test]
fn only_an_in_sync_replica_becomes_primary_and_only_once_per_version() {
    let mut state = pool();
    let volume = VolumeId([1; 16]);
    state.apply(PoolCommand::CreateVolume {
        spec: spec(1, "v1", Quorum::Majority),
    });
    let set = |expected_version, term, primary, in_sync| PoolCommand::SetReplicaSet {
        volume,
        expected_version,
        term,
        primary,
        in_sync,
    };
    // The primary drops the secondary; the secondary's claim on the same version comes second.
    assert!(applied(&state.apply(set(1, 1, 0, 0b01))));
    assert!(!applied(&state.apply(set(1, 2, 1, 0b10))));
    // It is not in sync, so it cannot become primary on the new version either.
    assert!(!applied(&state.apply(set(2, 2, 1, 0b10))));
    assert!(applied(&state.apply(set(2, 1, 0, 0b11))));
    // Without a higher term it cannot; with one it can.
    assert!(!applied(&state.apply(set(3, 1, 1, 0b10))));
    assert!(applied(&state.apply(set(3, 2, 1, 0b10))));
    // A primary outside its own in-sync set, and a replica that does not exist.
    assert!(!applied(&state.apply(set(4, 3, 1, 0b01))));
    assert!(!applied(&state.apply(set(4, 3, 1, 0b110))));
}

#[test]
fn a_volume_without_majority_has_no_replica_set_in_the_pool() {
    let mut state = pool();
    state.apply(PoolCommand::CreateVolume {
        spec: spec(1, "v1", Quorum::Majority),
    });
    let mut off = state.volumes[&VolumeId([1; 16])].clone();
    assert_eq!(state.replica_sets[&off.id].in_sync, 0b11);
    off.quorum = Quorum::Off;
    let id = off.id;
    state.apply(PoolCommand::UpdateVolume {
        spec: off,
        expected_version: 1,
    });
    assert!(!state.replica_sets.contains_key(&id));
}

/// BAD-5: whatever the one who asks believes, a brick that may become primary is not removed, and
/// one that was removed becomes primary no more.
#[test]
fn a_brick_goes_only_when_it_is_in_no_set_and_then_its_place_counts_no_more() {
    let mut state = pool();
    let made = spec(1, "v1", Quorum::Majority);
    let version = |outcome: PoolOutcome| match outcome {
        PoolOutcome::Applied { version } => version,
        PoolOutcome::Refused(refusal) => panic!("{refusal}"),
    };
    version(state.apply(PoolCommand::CreateVolume { spec: made.clone() }));
    let mut without = state.volumes[&made.id].clone();
    without.layout.removed = 0b10;
    let remove = PoolCommand::UpdateVolume {
        spec: without,
        expected_version: 1,
    };
    let refused = state.apply(remove.clone());
    assert!(
        matches!(
            refused,
            PoolOutcome::Refused(PoolRefusal::InSync { ref node }) if node == "node2"
        ),
        "{refused:?}"
    );
    let set = |in_sync, primary, term, expected_version| PoolCommand::SetReplicaSet {
        volume: made.id,
        expected_version,
        term,
        primary,
        in_sync,
    };
    version(state.apply(set(0b01, 0, 1, 1)));
    version(state.apply(remove));
    for bad in [set(0b11, 0, 1, 2), set(0b11, 1, 2, 2)] {
        let refused = state.apply(bad);
        assert!(
            matches!(
                refused,
                PoolOutcome::Refused(PoolRefusal::InvalidReplicaSet { .. })
            ),
            "{refused:?}"
        );
    }
    // The directory is free for another volume's brick now.
    version(state.apply(PoolCommand::CreateVolume {
        spec: {
            let mut other = spec(2, "v2", Quorum::Off);
            other.replicas[0].path = "/elsewhere".to_owned();
            other.replicas[1].path.clone_from(&made.replicas[1].path);
            other
        },
    }));
}

/// With volumes v1 and v2.
fn pool_with_volumes() -> PoolState {
    let mut state = pool();
    for id in [1, 2] {
        let spec = spec(id, &format!("v{id}"), Quorum::Off);
        assert!(applied(&state.apply(PoolCommand::CreateVolume { spec })));
    }
    state
}

fn invite(state: &mut PoolState, name: &str, volumes: &[u8], read_only: bool) -> PoolOutcome {
    let some = volumes.iter().map(|id| VolumeId([*id; 16])).collect();
    state.apply(PoolCommand::InviteClient {
        name: name.to_owned(),
        client: ClientRecord {
            volumes: (!volumes.is_empty()).then_some(some),
            read_only,
            token: format!("token of {name}"),
            expires_at: 0,
            key: None,
        },
    })
}

fn join(state: &mut PoolState, name: &str, key: u8) -> PoolOutcome {
    state.apply(PoolCommand::JoinClient {
        token: format!("token of {name}"),
        key: node(key),
    })
}

#[test]
fn bad_2_a_client_may_use_what_it_was_invited_to_until_it_is_revoked() {
    let mut state = pool_with_volumes();
    let access = |state: &PoolState, volume| state.access(node(7), VolumeId([volume; 16]));
    assert!(applied(&invite(&mut state, "app1", &[1], true)));
    assert_eq!(access(&state, 1), None, "invited only");
    assert!(applied(&join(&mut state, "app1", 7)));
    assert_eq!(access(&state, 1), Some(Access::ReadOnly));
    assert_eq!(access(&state, 2), None);
    let name = "app1".to_owned();
    assert!(applied(&state.apply(PoolCommand::RevokeClient { name })));
    assert_eq!(access(&state, 1), None);
    assert!(!applied(&join(&mut state, "app1", 7)), "the token is void");
    assert_eq!(state.access(node(1), VolumeId([2; 16])), Some(Access::Full));
}

#[test]
fn bad_2_a_client_of_one_volume_does_not_get_all_when_that_one_is_deleted() {
    let mut state = pool_with_volumes();
    invite(&mut state, "app1", &[1], false);
    join(&mut state, "app1", 7);
    let gone = PoolCommand::DeleteVolume {
        volume: VolumeId([1; 16]),
        expected_version: 1,
    };
    assert!(applied(&state.apply(gone)));
    assert_eq!(state.access(node(7), VolumeId([2; 16])), None);
}

#[test]
fn bad_2_a_token_expires_with_its_time_and_a_client_that_has_joined_does_not() {
    let mut state = pool_with_volumes();
    let token = ClientRecord {
        volumes: None,
        read_only: false,
        token: "token".to_owned(),
        expires_at: 100,
        key: None,
    };
    assert!(!token.has_expired(99));
    assert!(token.has_expired(100) && token.has_expired(u64::MAX));
    let (name, client) = ("app1".to_owned(), token);
    state.apply(PoolCommand::InviteClient { name, client });
    let (token, key) = ("token".to_owned(), node(7));
    assert!(applied(
        &state.apply(PoolCommand::JoinClient { token, key })
    ));
    assert!(!state.clients["app1"].has_expired(u64::MAX));
}

#[test]
fn bad_2_a_token_is_for_one_machine_which_may_ask_again() {
    let mut state = pool_with_volumes();
    invite(&mut state, "app1", &[], false);
    assert!(applied(&join(&mut state, "app1", 7)));
    assert!(applied(&join(&mut state, "app1", 7)), "its answer was lost");
    let other = join(&mut state, "app1", 8);
    assert_eq!(other, PoolOutcome::Refused(PoolRefusal::TokenUnknown));
    assert!(!applied(&invite(&mut state, "app1", &[], false)), "joined");
    invite(&mut state, "app2", &[], false);
    assert!(!applied(&join(&mut state, "app2", 7)), "it is app1");
    assert!(!applied(&join(&mut state, "app2", 1)), "it is a node");
}
