//! Volumes: made whole or not at all, told the same everywhere.

use std::fs;

use crate::support::{Node, create, directory, pool};

#[test]
fn a_volume_is_made_started_shown_stopped_and_deleted() {
    let root = directory();
    let pool = pool(root.path(), 3);
    create(root.path(), &pool, "v1").done();
    let info = pool[2].facts("volume info all");
    let volume = &info["volumes"][0];
    assert_eq!(volume["name"], "v1");
    assert_eq!(volume["state"], "created");
    assert_eq!(volume["quorum"], "majority");
    assert_eq!(volume["replicas"][1]["node"], "node2");
    pool[1].say("volume start v1").done();
    for node in &pool {
        let status = node.wait("volume status v1", |status| {
            status["volumes"][0]["health"] == "healthy"
        });
        let volume = &status["volumes"][0];
        assert_eq!(volume["primary"], "node1");
        assert_eq!(volume["replicas"][0]["connection"], "self");
        assert_eq!(volume["replicas"][1]["connection"], "connected");
    }
    assert_eq!(pool[2].say("status").code, 0);
    pool[0]
        .say("volume delete v1")
        .refused(1, "is started", "volume stop v1");
    pool[0].say("volume stop v1").done();
    pool[0].say("volume delete v1").done();
    assert_eq!(pool[0].say("volume list").stdout, "");
    pool[0]
        .say("volume status v1")
        .refused(1, "no volume `v1`", "volume list");
}

#[test]
fn with_two_voters_quorum_is_off_and_the_sentence_says_what_that_means() {
    let root = directory();
    let pool = pool(root.path(), 2);
    let made = create(root.path(), &pool, "v1").done();
    assert!(made.stdout.contains("quorum is off"), "{made:?}");
    pool[0]
        .say("volume set v1 quorum majority")
        .refused(1, "needs 3 voting nodes", "third node");
}

#[test]
fn when_one_brick_cannot_be_made_no_brick_is_and_the_others_stay_usable() {
    let root = directory();
    let pool = pool(root.path(), 2);
    // The second brick's directory is a file.
    fs::write(root.path().join("node2-v1"), "in the way").expect("a file");
    assert_eq!(create(root.path(), &pool, "v1").code, 1);
    assert_eq!(pool[0].say("volume list").done().stdout, "");
    fs::remove_file(root.path().join("node2-v1")).expect("removed");
    // The first brick was undone: the same command works now, without `force`.
    create(root.path(), &pool, "v1").done();
}

#[test]
fn a_volume_with_a_brick_on_a_dead_node_is_not_made() {
    let root = directory();
    let mut pool = pool(root.path(), 3);
    pool[1].kill();
    let run = create(root.path(), &pool, "v1");
    run.refused(1, "node2 cannot be asked", "Start the daemon there");
    assert_eq!(pool[0].say("volume list").done().stdout, "");
}

#[test]
fn wrong_requests_are_refused_before_anything_is_touched() {
    let root = directory();
    let pool = pool(root.path(), 2);
    let node = &pool[0];
    node.say("volume create v1 replica 2 node1:/b/1").refused(
        1,
        "2 replicas need 2 bricks; 1 were given",
        "HOST:/path",
    );
    node.say("volume create v1 replica 2 node1:/b/1 node1:/b/2")
        .refused(1, "two bricks are on node node1", "node of its own");
    node.say("volume create v1 node1:/b/../etc").refused(
        1,
        "cannot be a brick's directory",
        "absolute path",
    );
    node.say("volume create v1 nodeX:/b/1")
        .refused(1, "no node `nodeX`", "Did you mean `node");
    node.say("volume create all node1:/b/1")
        .refused(1, "cannot be a volume's name", "1 to 64");
    node.say("volume create v1 --type block node1:/b/1")
        .refused(1, "needs a size", "--size 10G");
    node.say("volume create v1 --size 1G node1:/b/1").refused(
        1,
        "no size of its own",
        "--type block",
    );
    node.say("volume create v1 replcia 2 node1:/b/1").refused(
        2,
        "`replcia` is not a brick",
        "Did you mean `replica`?",
    );
    assert!(!std::path::Path::new("/b").exists());
}

#[test]
fn a_node_is_named_by_its_address_too() {
    let root = directory();
    let node = Node::start(root.path(), "node1");
    let brick = format!("127.0.0.1:{}", root.path().join("b").display());
    node.run(&["volume", "create", "v1", &brick, "force"])
        .done();
    let info = node.facts("volume info v1");
    assert_eq!(info["volumes"][0]["replicas"][0]["node"], "node1");
}

#[test]
fn two_volumes_cannot_share_a_name_or_a_brick() {
    let root = directory();
    let pool = pool(root.path(), 2);
    create(root.path(), &pool, "v1").done();
    create(root.path(), &pool, "v1").refused(1, "`v1` exists already", "another name");
    let brick = format!("node1:{}", root.path().join("node1-v1").display());
    let run = pool[0].run(&["volume", "create", "v2", &brick, "force"]);
    assert_eq!(run.code, 1, "{run:?}");
    assert_eq!(pool[0].say("volume list").stdout, "v1\n");
}

#[test]
fn options_are_checked_kept_and_reset() {
    let root = directory();
    let pool = pool(root.path(), 2);
    create(root.path(), &pool, "v1").done();
    let node = &pool[1];
    let get = |key: &str| node.say(&format!("volume get v1 {key}")).done().stdout;
    assert_eq!(get("session-timeout"), "30000ms\n");
    node.say("volume set v1 session-timeout 1m").done();
    assert_eq!(get("session-timeout"), "60000ms\n");
    node.say("volume set v1 async-queue-max 128M").done();
    assert_eq!(get("async-queue-max"), "134217728\n");
    node.say("volume set v1 protocol b").done();
    assert_eq!(
        pool[0].facts("volume info v1")["volumes"][0]["protocol"],
        "B"
    );
    node.say("volume reset v1 session-timeout").done();
    assert_eq!(get("session-timeout"), "30000ms\n");
    node.say("volume reset v1").done();
    assert_eq!(get("async-queue-max"), "67108864\n");
    node.say("volume set v1 session-timeuot 1m").refused(
        2,
        "no option",
        "Did you mean `session-timeout`?",
    );
    node.say("volume set v1 lease-time 0")
        .refused(2, "takes 200ms to 1m", "volume options");
    node.say("volume set v1 min-in-sync 3")
        .refused(1, "2 replicas only", "smaller");
    node.say("volume set v1 preferred-primary node9")
        .refused(1, "holds no replica", "Name a node");
    node.say("volume set v1 size 1G")
        .refused(1, "no size of its own", "smallest brick");
}

/// BAD-3: a brick that cannot be opened makes its replica fail, not the daemon; `volume start`
/// tries again.
#[test]
fn no_brick_is_made_in_or_around_a_data_directory() {
    let root = directory();
    let pool = pool(root.path(), 2);
    let data = pool[0].dir.display();
    let around = root.path().display();
    let other = pool[1].dir.display();
    for path in [
        format!("{data}"),
        format!("{data}/brick"),
        format!("{around}"),
        format!("{other}/brick"),
    ] {
        pool[0]
            .say(&format!("volume create v1 node1:{path} force"))
            .refused(1, "lie in each other", "beside it");
    }
    assert!(!pool[0].dir.join("brick").exists() && !root.path().join(".cairn").exists());
}

#[test]
fn a_vanished_brick_fails_its_replica_and_leaves_the_daemon_up() {
    let root = directory();
    let mut pool = pool(root.path(), 2);
    create(root.path(), &pool, "v1").done();
    let brick = root.path().join("node2-v1");
    let aside = root.path().join("aside");
    fs::rename(&brick, &aside).expect("moved");
    let started = pool[0].say("volume start v1").done();
    assert!(started.stdout.contains("not running: node2"), "{started:?}");
    let status = pool[1].facts("volume status v1");
    let replica = &status["volumes"][0]["replicas"][1];
    assert_eq!(replica["disk"], "failed");
    assert!(replica["reason"].is_string());
    fs::rename(&aside, &brick).expect("moved back");
    let again = pool[1].say("volume start v1").done();
    assert!(again.stdout.contains("opened again on node2"), "{again:?}");
    pool[1].wait("volume status v1", |status| {
        status["volumes"][0]["replicas"][1]["disk"] != "failed"
    });
    let idle = pool[1].say("volume start v1").done();
    assert!(!idle.stdout.contains("again"), "nothing failed: {idle:?}");
    assert_eq!(pool[1].terminate(), 0);
}

#[test]
fn a_node_that_dies_is_named_by_an_event_and_by_verify() {
    let root = directory();
    let mut pool = pool(root.path(), 2);
    create(root.path(), &pool, "v1").done();
    pool[0].say("volume start v1").done();
    pool[0].wait("volume status v1", |status| {
        status["volumes"][0]["health"] == "healthy"
    });
    pool[1].kill();
    let told = |events: &serde_json::Value| {
        let events = events["events"].as_array().cloned().unwrap_or_default();
        events.iter().any(|event| {
            event["kind"] == "replica_lost"
                && event["severity"] == "warning"
                && event["message"]
                    .as_str()
                    .is_some_and(|text| text.starts_with("node2 left the in-sync set: "))
        })
    };
    pool[0].wait("events", told);
    let verify = pool[0].say("volume verify v1");
    assert_eq!(verify.code, 1, "{verify:?}");
    assert!(
        verify.stdout.contains("node2 was not compared"),
        "{verify:?}"
    );
}

#[test]
fn a_command_for_a_volume_that_is_not_started_says_how_to_start_it() {
    let root = directory();
    let pool = pool(root.path(), 2);
    create(root.path(), &pool, "v1").done();
    for command in ["verify v1", "resync v1", "promote v1 node2", "heal v1 full"] {
        pool[0]
            .say(&format!("volume {command}"))
            .refused(1, "is not started", "volume start v1");
    }
    pool[0]
        .say("volume promote v1 node7")
        .refused(1, "holds no replica", "node1, node2");
}

/// BAD-4: two nodes' bricks, exchanged while their daemons were down. Neither is touched, both
/// identities are named, and once each is back where it belongs the volume serves what it had.
#[test]
fn bricks_exchanged_between_nodes_are_refused_with_both_named_and_are_not_touched() {
    let root = directory();
    let mut pool = pool(root.path(), 2);
    create(root.path(), &pool, "v1").done();
    pool[0].say("volume start v1").done();
    let healthy = |status: &serde_json::Value| status["volumes"][0]["health"] == "healthy";
    pool[0].wait("volume status v1", healthy);
    for node in &mut pool {
        assert_eq!(node.terminate(), 0);
    }
    let bricks = [root.path().join("node1-v1"), root.path().join("node2-v1")];
    let exchange = || {
        let aside = root.path().join("aside");
        fs::rename(&bricks[0], &aside).expect("moved");
        fs::rename(&bricks[1], &bricks[0]).expect("moved");
        fs::rename(&aside, &bricks[1]).expect("moved");
    };
    exchange();
    let superblocks = || {
        bricks
            .each_ref()
            .map(|at| fs::read(at.join(".cairn/superblock")).ok())
    };
    let before = superblocks();
    for node in &mut pool {
        node.restart();
    }
    let failed = |status: &serde_json::Value| {
        let replicas = status["volumes"][0]["replicas"].as_array().cloned();
        replicas.is_some_and(|all| all.iter().all(|replica| replica["disk"] == "failed"))
    };
    let status = pool[0].wait("volume status v1", failed);
    for replica in status["volumes"][0]["replicas"].as_array().expect("two") {
        let reason = replica["reason"].as_str().expect("it says why");
        assert!(reason.contains("the brick belongs to pool"), "{reason}");
        assert!(reason.contains("expected pool"), "{reason}");
    }
    let why = pool[1].say("why v1");
    assert!(why.stdout.contains("the brick belongs to pool"), "{why:?}");
    assert_eq!(superblocks(), before);
    for node in &mut pool {
        assert_eq!(node.terminate(), 0);
    }
    exchange();
    for node in &mut pool {
        node.restart();
    }
    pool[0].wait("volume status v1", healthy);
}
