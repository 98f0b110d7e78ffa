//! `peer code` and `peer probe`: who gets in, and who does not.

use crate::support::{Node, directory, nodes, pool};

#[test]
fn a_probed_node_is_a_member_that_votes_and_every_node_says_the_same() {
    let root = directory();
    let pool = pool(root.path(), 3);
    for node in &pool {
        let status = node.wait("peer status", |status| {
            nodes(status).len() == 3
                && nodes(status)
                    .iter()
                    .all(|n| n["voter"] == true && n["state"] == "connected")
        });
        assert_eq!(status["quorum"], true);
        let own: Vec<_> = nodes(&status)
            .iter()
            .filter(|n| n["is_self"] == true)
            .map(|n| n["name"].as_str())
            .collect();
        assert_eq!(own, [Some(node.name.as_str())]);
        assert!(nodes(&status).iter().all(|n| n["last_seen"].is_string()));
    }
}

#[test]
fn probing_a_member_again_succeeds_and_says_so() {
    let root = directory();
    let pool = pool(root.path(), 2);
    let again = pool[0].run(&["peer", "probe", &pool[1].address]).done();
    assert!(again.stdout.contains("is a member already"), "{again:?}");
}

#[test]
fn a_probe_without_the_right_code_is_refused_and_changes_nothing() {
    let root = directory();
    let node1 = Node::start(root.path(), "node1");
    let node2 = Node::start(root.path(), "node2");
    let probe = |code: &str| node1.run(&["peer", "probe", &node2.address, "--code", code]);
    // Nobody asked for a code there.
    probe("AAAA-AAAA-AAAA-AAAA").refused(1, "wrong, used or expired", "cairn peer code");
    let code = node2.code();
    probe("AAAA-AAAA-AAAA-AAAA").refused(1, "wrong, used or expired", "cairn peer code");
    probe("nonsense").refused(1, "wrong, used or expired", "cairn peer code");
    node1
        .run(&["peer", "probe", &node2.address])
        .refused(1, "was not given", "--code");
    for node in [&node1, &node2] {
        assert_eq!(nodes(&node.facts("peer status")).len(), 1);
    }
    // A wrong attempt does not void the code; typing it in small letters is fine.
    probe(&code.to_lowercase()).done();
}

#[test]
fn a_code_admits_once_only() {
    let root = directory();
    let mut pool = pool(root.path(), 1);
    let node2 = Node::start(root.path(), "node2");
    let code = node2.code();
    let probe = ["peer", "probe", &node2.address, "--code", &code];
    pool[0].run(&probe).done();
    node2.say("peer leave").done();
    pool[0].run(&probe).refused(1, "used", "cairn peer code");
    pool[0].admit(&node2);
    pool.clear();
}

#[test]
fn five_wrong_codes_void_the_right_one() {
    let root = directory();
    let node1 = Node::start(root.path(), "node1");
    let node2 = Node::start(root.path(), "node2");
    let code = node2.code();
    let probe = |code: &str| node1.run(&["peer", "probe", &node2.address, "--code", code]);
    for _ in 0..5 {
        probe("AAAA-AAAA-AAAA-AAAA").refused(1, "wrong", "cairn peer code");
    }
    probe(&code).refused(1, "wrong, used or expired", "cairn peer code");
}

#[test]
fn probing_oneself_another_pool_nobody_or_nonsense_is_refused_with_a_hint() {
    let root = directory();
    let node1 = Node::start(root.path(), "node1");
    node1
        .run(&["peer", "probe", &node1.address])
        .refused(1, "is this node itself", "other node");
    let other = Node::start(root.path(), "other1");
    let second = Node::start(root.path(), "other2");
    other.admit(&second);
    node1
        .run(&[
            "peer",
            "probe",
            &other.address,
            "--code",
            "AAAA-AAAA-AAAA-AAAA",
        ])
        .refused(1, "belongs to a pool of several nodes", "peer leave");
    other
        .say("peer code")
        .refused(1, "belongs to a pool", "peer leave");
    // A port that was just closed: nobody is there.
    let closed = {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        socket.local_addr().expect("an address").to_string()
    };
    node1
        .run(&["peer", "probe", &closed, "--code", "AAAA-AAAA-AAAA-AAAA"])
        .refused(1, "does not accept connections", "daemon running");
    node1
        .say("peer probe no/host --code x")
        .refused(2, "is not HOST or HOST:PORT", "node2");
}

#[test]
fn a_second_node_of_the_same_name_is_refused_and_keeps_its_code() {
    let root = directory();
    let node1 = Node::start(root.path(), "node1");
    let twin = Node::start(&root.path().join("twin"), "node1");
    let code = twin.code();
    node1
        .run(&["peer", "probe", &twin.address, "--code", &code])
        .refused(1, "named `node1` already", "--name");
    assert_eq!(nodes(&twin.facts("peer status")).len(), 1);
}

#[test]
fn a_node_probed_as_no_voter_votes_when_told_so() {
    let root = directory();
    let node1 = Node::start(root.path(), "node1");
    let node2 = Node::start(root.path(), "node2");
    let code = node2.code();
    let probed = node1
        .run(&[
            "peer",
            "probe",
            &node2.address,
            "--code",
            &code,
            "--no-voter",
        ])
        .done();
    assert!(probed.stdout.contains("does not vote"), "{probed:?}");
    let votes = |expected: bool| {
        node2.wait("peer status", |status| {
            nodes(status)
                .iter()
                .any(|n| n["name"] == "node2" && n["voter"] == expected)
        });
    };
    votes(false);
    node2.say("peer voter node2 on").done();
    votes(true);
    node1.say("peer voter node2 off").done();
    votes(false);
    node1
        .say("peer voter node1 off")
        .refused(1, "only node that votes", "voter NODE on");
}
