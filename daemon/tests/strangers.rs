//! BAD-2: a key that is not in the pool learns nothing and changes nothing.

#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cairn_daemon::Daemon;
use cairn_daemon::config::DaemonConfig;
use cairn_daemon::rpc::NodeClients;
use protocol::identity::Identity;
use protocol::ids::{NodeId, PoolId};
use protocol::node_rpc::{Member, NodeReply, NodeRequest};

const WITHIN: Duration = Duration::from_secs(20);

async fn start(dir: &Path) -> Daemon {
    Daemon::start(DaemonConfig {
        data_dir: dir.to_owned(),
        name: "node1".to_owned(),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        advertise: None,
        http: None,
        http_full: false,
    })
    .await
    .expect("the daemon starts")
}

fn requests(stranger: NodeId) -> Vec<NodeRequest> {
    let member = Member {
        name: "evil".to_owned(),
        address: "127.0.0.1:1".to_owned(),
    };
    vec![
        NodeRequest::Ping { start: 0 },
        NodeRequest::Locate {
            volume: "v1".to_owned(),
        },
        NodeRequest::Reports { volume: None },
        NodeRequest::Admit {
            node: stranger,
            member,
            voter: true,
        },
        NodeRequest::Propose {
            command: serde_json::json!({}),
        },
        NodeRequest::Raft {
            pool: PoolId::NONE,
            epoch: 1,
            start: 0,
            message: serde_json::json!({}),
        },
        NodeRequest::Expelled {
            pool: PoolId::NONE,
            epoch: 1,
        },
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_with_a_valid_key_is_refused_every_request() {
    let dir = tempfile::tempdir().expect("a directory");
    let daemon = start(dir.path()).await;
    let address = daemon.listen.to_string();
    let stranger = Arc::new(Identity::generate().expect("a key"));
    let clients = NodeClients::new(Arc::clone(&stranger));
    for request in requests(stranger.id()) {
        let reply = clients
            .call(daemon.node.id, &address, &request, WITHIN)
            .await
            .expect("an answer");
        let NodeReply::Error(refusal) = reply else {
            panic!("{request:?} was answered with {reply:?}");
        };
        assert_eq!(refusal.code, "forbidden", "{request:?}");
    }
    assert_eq!(daemon.node.pool.state().members.len(), 1);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_not_taken_for_another_at_the_same_address() {
    let dir = tempfile::tempdir().expect("a directory");
    let daemon = start(dir.path()).await;
    let clients = NodeClients::new(Arc::new(Identity::generate().expect("a key")));
    let expected = Identity::generate().expect("a key").id();
    let address = daemon.listen.to_string();
    let reply = clients
        .call(expected, &address, &NodeRequest::Ping { start: 0 }, WITHIN)
        .await;
    assert!(reply.is_err(), "{reply:?}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_is_answered_and_a_message_of_another_pool_is_refused_with_both_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let daemon = start(dir.path()).await;
    let address = daemon.listen.to_string();
    // The node's own key is a member's key: a mount on the node uses it, too.
    let clients = NodeClients::new(Arc::clone(&daemon.node.identity));
    let pong = clients
        .call(
            daemon.node.id,
            &address,
            &NodeRequest::Ping { start: 0 },
            WITHIN,
        )
        .await
        .expect("an answer");
    let ours = daemon.node.pool.state().pool;
    assert_eq!(
        pong,
        NodeReply::Pong {
            pool: ours,
            epoch: 1
        }
    );
    let theirs = PoolId([7; 16]);
    let message = NodeRequest::Raft {
        pool: theirs,
        epoch: 5,
        start: 0,
        message: serde_json::json!({}),
    };
    let reply = clients
        .call(daemon.node.id, &address, &message, WITHIN)
        .await
        .expect("an answer");
    let NodeReply::Error(refusal) = reply else {
        panic!("{reply:?}");
    };
    for name in [ours.to_string(), theirs.to_string()] {
        assert!(refusal.message.contains(&name), "{refusal}");
    }
    daemon.stop().await;
}
