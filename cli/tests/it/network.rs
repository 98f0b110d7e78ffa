//! What strangers may send, and who may use the sockets.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::support::{CAIRN, Node, Run, directory, output};

/// Sends bytes and waits until the daemon has closed the connection.
fn send(node: &Node, bytes: &[u8]) {
    let mut stream = TcpStream::connect(&node.address).expect("connected");
    // The daemon may close while we still send.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = stream.read_to_end(&mut Vec::new());
}

/// BAD-1.
#[test]
fn garbage_on_the_port_closes_that_connection_with_a_reason_and_nothing_else() {
    let root = directory();
    let node = Node::start(root.path(), "node1");
    let preamble = |purpose: u8| {
        let mut bytes = [0_u8; 32];
        bytes[..8].copy_from_slice(b"CAIRN/1\n");
        bytes[8] = purpose;
        bytes
    };
    send(&node, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    send(&node, &[0; 4096]);
    send(&node, &preamble(9));
    send(&node, &preamble(1)[..20]);
    // The right preamble, then no TLS; a volume that does not exist.
    send(&node, &[&preamble(1)[..], &[0x55; 2000]].concat());
    let mut unknown = preamble(3);
    unknown[31] = 7;
    send(&node, &unknown);
    node.say("peer status").done();
    let log = node.log();
    assert!(
        log.contains("does not begin like a Cairn connection"),
        "{log}"
    );
    assert!(log.contains("no replica of the volume runs here"), "{log}");
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn a_flood_of_silent_connections_leaves_the_daemon_answering() {
    let root = directory();
    let node = Node::start(root.path(), "node1");
    let other = Node::start(root.path(), "node2");
    let silent: Vec<TcpStream> = (0..200)
        .map(|_| TcpStream::connect(&node.address).expect("connected"))
        .collect();
    node.admit(&other);
    other.wait("peer status", |status| {
        crate::support::nodes(status)
            .iter()
            .all(|peer| peer["state"] == "connected")
    });
    drop(silent);
}

#[test]
fn the_control_socket_refuses_what_is_no_request() {
    let root = directory();
    let node = Node::start(root.path(), "node1");
    for line in ["rubbish\n", "{\"no_such\":{}}\n", "[1]\n"] {
        let path = node.dir.join("control.sock");
        let mut stream = std::os::unix::net::UnixStream::connect(path).expect("connected");
        stream.write_all(line.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let answer: serde_json::Value = serde_json::from_str(&answer).expect("one line of JSON");
        assert_eq!(answer["error"]["exit_code"], 2, "{answer}");
        assert!(answer["error"]["hint"].is_string());
    }
    node.say("peer status").done();
}

#[test]
fn the_directory_is_closed_and_its_sockets_are_for_root_and_the_group() {
    let root = directory();
    let node = Node::start(root.path(), "node1");
    let mode = |name: &str| {
        let path = node.dir.join(name);
        let found = std::fs::metadata(&path).expect("it is there");
        found.permissions().mode() & 0o777
    };
    assert_eq!(mode("."), 0o711);
    assert_eq!(mode("identity.pem"), 0o600);
    for socket in ["control.sock", "data.sock"] {
        assert!([0o600, 0o660].contains(&mode(socket)), "{socket}");
    }
    if !is_root() {
        // Another user's view can be tried by root only.
        return;
    }
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(root.path(), open).expect("opened");
    let mut command = Command::new(CAIRN);
    command
        .args([
            "--data-dir",
            node.dir.to_str().expect("text"),
            "peer",
            "status",
        ])
        .uid(65_534)
        .gid(65_534)
        .current_dir("/");
    match output(&mut command) {
        Ok(output) => {
            Run::of(&output).refused(3, "may not use the daemon", "as root");
        }
        // The program itself may lie where that user cannot reach it.
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied),
    }
}

fn is_root() -> bool {
    let id = output(Command::new("id").arg("-u")).expect("id runs");
    id.stdout == b"0\n"
}
