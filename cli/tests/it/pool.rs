//! The pool through crashes, losses and departures.

use crate::support::{Node, create, directory, nodes, pool};

#[test]
fn what_was_agreed_survives_kill_9_of_either_node_and_of_both() {
    let root = directory();
    let mut pool = pool(root.path(), 2);
    create(root.path(), &pool, "v1").done();
    for victim in [0, 1] {
        pool[victim].kill();
        pool[victim].restart();
        pool[victim].wait_for_leader();
        let key = ["lease-time", "session-timeout"][victim];
        pool[victim].run(&["volume", "set", "v1", key, "7s"]).done();
    }
    for node in &mut pool {
        node.kill();
    }
    for node in &mut pool {
        node.restart();
    }
    for node in &pool {
        node.wait("volume get v1", |got| {
            got["options"]["lease-time"] == "7000ms"
                && got["options"]["session-timeout"] == "7000ms"
        });
    }
}

#[test]
fn two_of_three_go_on_when_the_leader_is_killed() {
    let root = directory();
    let mut pool = pool(root.path(), 3);
    create(root.path(), &pool, "v1").done();
    let status = pool[0].facts("peer status");
    let leader = nodes(&status)
        .iter()
        .position(|node| node["leader"] == true)
        .expect("a leader");
    pool[leader].kill();
    let left: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
    pool[left[0]].wait("peer status", |status| {
        nodes(status)
            .iter()
            .any(|node| node["leader"] == true && node["state"] == "connected")
    });
    pool[left[0]].say("volume set v1 lease-time 9s").done();
    pool[left[1]].wait("volume get v1", |got| {
        got["options"]["lease-time"] == "9000ms"
    });
    pool[leader].restart();
    pool[leader].wait("volume get v1", |got| {
        got["options"]["lease-time"] == "9000ms"
    });
}

#[test]
fn without_a_majority_status_answers_and_a_change_is_refused_with_a_way_out() {
    let root = directory();
    let mut pool = pool(root.path(), 2);
    create(root.path(), &pool, "v1").done();
    pool[1].kill();
    let status = pool[0].facts("peer status");
    assert_eq!(status["quorum"], false);
    let lost = nodes(&status)
        .iter()
        .find(|node| node["name"] == "node2")
        .expect("still listed");
    assert_eq!(lost["state"], "disconnected");
    pool[0]
        .say("volume set v1 lease-time 9s")
        .refused(1, "no majority", "peer status");
    // A status is an answer, not a failure.
    pool[0].say("volume status v1").done();
}

#[test]
fn a_detached_node_is_fresh_and_can_be_admitted_again() {
    let root = directory();
    let pool = pool(root.path(), 3);
    pool[1].say("peer detach node3").done();
    for node in &pool[..2] {
        node.wait("peer status", |status| nodes(status).len() == 2);
    }
    pool[2].wait("peer status", |status| nodes(status).len() == 1);
    pool[1].admit(&pool[2]);
    pool[2].wait("peer status", |status| nodes(status).len() == 3);
    pool[0]
        .say("peer detach node4")
        .refused(1, "no node `node4`", "Did you mean");
    pool[0]
        .say("peer detach node1")
        .refused(1, "this node itself", "peer leave");
}

#[test]
fn a_node_with_bricks_leaves_only_by_force_and_never_with_the_only_copy() {
    let root = directory();
    let pool = pool(root.path(), 3);
    create(root.path(), &pool, "v1").done();
    pool[2]
        .say("peer detach node2")
        .refused(4, "node2-v1 of volume `v1`", "--force");
    pool[1].say("peer leave").refused(4, "v1", "--force");
    pool[2].say("peer detach node2 --force").done();
    pool[2].wait("peer status", |status| nodes(status).len() == 2);
    pool[2]
        .say("peer detach node1 --force")
        .refused(1, "only brick in the pool", "Delete");
}

#[test]
fn a_leader_that_leaves_hands_the_pool_to_the_others() {
    let root = directory();
    let pool = pool(root.path(), 3);
    let status = pool[0].facts("peer status");
    let leader = nodes(&status)
        .iter()
        .position(|node| node["leader"] == true)
        .expect("a leader");
    pool[leader].say("peer leave").done();
    let other = &pool[(leader + 1) % 3];
    other.wait("peer status", |status| {
        nodes(status).len() == 2 && nodes(status).iter().any(|node| node["leader"] == true)
    });
    assert_eq!(nodes(&pool[leader].facts("peer status")).len(), 1);
    pool[leader]
        .say("peer leave")
        .refused(1, "in no pool of others", "");
}

/// A pool that lost its majority for good goes on under a new epoch, and whoever comes back from
/// the older one is refused with both named.
#[test]
fn a_lost_majority_is_given_up_by_force_and_the_old_epoch_is_refused() {
    let root = directory();
    let mut pool = pool(root.path(), 3);
    create(root.path(), &pool, "v1").done();
    pool[1].kill();
    pool[2].kill();
    pool[0]
        .say("peer detach node3")
        .refused(4, "new epoch", "--force");
    let forced = pool[0].say("peer detach node3 --force").done();
    assert!(forced.stdout.contains("epoch 2"), "{forced:?}");
    assert!(forced.stdout.contains("node2"), "{forced:?}");
    // It decides alone again, and the configuration is still there.
    pool[0].say("volume set v1 lease-time 9s").done();
    assert_eq!(nodes(&pool[0].facts("peer status")).len(), 1);
    // The two others are a majority of the old epoch; they may not pull node1 back.
    pool[1].restart();
    pool[2].restart();
    pool[1].wait("peer status", |status| {
        nodes(status)
            .iter()
            .any(|node| node["name"] == "node1" && node["state"] == "disconnected")
    });
    // Made fresh, it is admitted to the new epoch and finds its volume there.
    pool[1].say("peer leave --force").done();
    pool[0].admit(&pool[1]);
    pool[1].wait("volume get v1", |got| {
        got["options"]["lease-time"] == "9000ms"
    });
}

/// With one survivor besides the forcing node, both go on: the other adopts the epoch.
#[test]
fn a_survivor_adopts_the_new_epoch_without_being_probed_again() {
    let root = directory();
    let mut pool = pool(root.path(), 4);
    pool[2].kill();
    pool[3].kill();
    let forced = pool[0].say("peer detach node3 --force").done();
    assert!(forced.stdout.contains("epoch 2"), "{forced:?}");
    for node in &pool[..2] {
        node.wait("peer status", |status| {
            nodes(status).len() == 2 && status["quorum"] == true
        });
    }
}

#[test]
fn a_node_at_a_new_address_is_found_there() {
    let root = directory();
    let mut pool = pool(root.path(), 3);
    pool[2].kill();
    let before = std::mem::replace(&mut pool[2].address, "127.0.0.1:0".to_owned());
    pool[2].restart();
    assert_ne!(before, pool[2].address);
    let now = pool[2].address.clone();
    pool[0].wait("peer status", |status| {
        nodes(status).iter().any(|node| {
            node["name"] == "node3" && node["state"] == "connected" && node["address"] == now
        })
    });
}

#[test]
fn a_daemon_ends_cleanly_on_sigterm_and_guards_its_directory() {
    let root = directory();
    let mut node = Node::start(root.path(), "node1");
    let second = crate::support::cairn(&[
        "daemon",
        "--data-dir",
        node.dir.to_str().expect("text"),
        "--listen",
        "127.0.0.1:0",
        "--http",
        "off",
    ]);
    second.refused(1, "another daemon uses", "--data-dir");
    assert_eq!(node.terminate(), 0);
    node.say("peer status")
        .refused(3, "no daemon runs", "cairn daemon");
    assert!(!node.dir.join("control.sock").exists());
}
