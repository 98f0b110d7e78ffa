//! Health and metrics.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::support::{Node, create, directory};

fn request(address: &str, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("connected");
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let status = answer
        .split_whitespace()
        .nth(1)
        .and_then(|word| word.parse().ok())
        .expect("a status");
    let body = answer.split_once("\r\n\r\n").expect("a body").1.to_owned();
    (status, body)
}

fn pool(root: &std::path::Path) -> Vec<Node> {
    let nodes = vec![
        Node::start_with(root, "node1", &["--http", "127.0.0.1:0"]),
        Node::start(root, "node2"),
    ];
    nodes[0].admit(&nodes[1]);
    nodes
}

#[test]
fn health_follows_the_volume_and_status_is_that_of_the_command_line() {
    let root = directory();
    let nodes = pool(root.path());
    let get = |path: &str| request(&nodes[0].http, "GET", path);
    assert_eq!(get("/healthz").0, 200);
    assert_eq!(get("/readyz").0, 200);
    assert_eq!(get("/healthz/v1").0, 404);
    create(root.path(), &nodes, "v1").done();
    assert_eq!(get("/healthz/v1").0, 503);
    nodes[0].say("volume start v1").done();
    nodes[0].wait("volume status v1", |status| {
        status["volumes"][0]["health"] == "healthy"
    });
    assert_eq!(get("/healthz/v1").0, 200);
    let (code, body) = get("/api/v1/status");
    assert_eq!(code, 200);
    let status: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(status["volumes"][0]["name"], "v1");
    assert_eq!(status["quorum"], true);
    let (_, metrics) = get("/metrics");
    assert!(
        metrics.contains("cairn_volume_serving{volume=\"v1\"} 1\n"),
        "{metrics}"
    );
    assert!(
        metrics.contains("cairn_peer_up{peer=\"node2\"} 1\n"),
        "{metrics}"
    );
    assert!(get("/").1.contains("Cairn on node1"));
    assert_eq!(get("/nothing").0, 404);
    assert_eq!(request(&nodes[0].http, "POST", "/healthz").0, 405);
}

#[test]
fn a_taken_port_is_said_and_the_daemon_goes_on_without_http() {
    let root = directory();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let node = Node::start_with(root.path(), "node1", &["--http", &address]);
    assert_eq!(node.http, "off");
    let events = node.facts("events");
    let kinds: Vec<_> = events["events"]
        .as_array()
        .expect("events")
        .iter()
        .map(|event| event["kind"].as_str().expect("a kind"))
        .collect();
    assert!(kinds.contains(&"http_off"), "{kinds:?}");
}
