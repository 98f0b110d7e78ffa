//! Frames over real sockets, plain and by TLS, both ways at once.

use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use protocol::frame::{RawFrame, take_frame};
use protocol::identity::Identity;
use protocol::ids::NodeId;
use rustls::{ServerConnection, StreamOwned};

use super::{Connection, FrameReader, Plain, Tls, send_all};

/// Of every size around the borders of chunks and buffers.
fn frames() -> Vec<RawFrame> {
    let sizes = [0, 1, 15, 4096, 65_519, 65_536, 65_537, 200_000, 1 << 20];
    let sizes = sizes.into_iter().chain((0..300).map(|n| n * 7));
    sizes
        .map(|size| RawFrame {
            kind: 19,
            meta: Bytes::from(vec![3; size % 100]),
            payload: (0..size).map(|n| (n % 253) as u8).collect(),
        })
        .collect()
}

/// Echoes every frame until the end.
fn echo(mut stream: impl io::Read + io::Write) {
    let mut buffer = BytesMut::new();
    let mut chunk = vec![0; 10_000];
    loop {
        while let Some(frame) = take_frame(&mut buffer).expect("frames") {
            let mut out = BytesMut::new();
            frame.write_to(&mut out);
            if stream
                .write_all(&out)
                .and_then(|()| stream.flush())
                .is_err()
            {
                return;
            }
        }
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return,
            Ok(n) => buffer.extend_from_slice(&chunk[..n]),
        }
    }
}

fn exchange(connection: &dyn Connection) {
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            for frame in frames() {
                let mut out = BytesMut::new();
                frame.write_to(&mut out);
                send_all(connection, &out).expect("sent");
            }
        });
        let mut reader = FrameReader::default();
        for (index, frame) in frames().iter().enumerate() {
            let back = reader.next(connection).expect("an answer");
            assert!(back == *frame, "frame {index} came back different");
        }
        sender.join().expect("all were sent");
    });
    connection.shutdown();
    let end = FrameReader::default()
        .next(connection)
        .expect_err("it ended");
    assert!(matches!(
        end.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
    ));
}

#[test]
fn frames_of_every_size_come_back_over_a_unix_socket() {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let server = std::thread::spawn(move || echo(theirs));
    exchange(&Plain::unix(ours));
    server.join().expect("it ended");
}

fn tls_server(identity: &Identity) -> (std::net::SocketAddr, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let config = identity.server_config().expect("a configuration");
    let server = std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a connection");
        let session = ServerConnection::new(config).expect("a session");
        echo(StreamOwned::new(session, stream));
    });
    (address, server)
}

#[test]
fn frames_of_every_size_come_back_over_tls() {
    let (node, client) = (Identity::generate(), Identity::generate());
    let (node, client) = (node.expect("a key"), client.expect("a key"));
    let (address, server) = tls_server(&node);
    let stream = TcpStream::connect(address).expect("connected");
    let config = client
        .client_config_for(node.id())
        .expect("a configuration");
    exchange(&Tls::handshake(stream, config).expect("hands shaken"));
    server.join().expect("it ended");
}

#[test]
fn bad_2_a_node_with_another_key_is_not_talked_to() {
    let (node, client) = (Identity::generate(), Identity::generate());
    let (node, client) = (node.expect("a key"), client.expect("a key"));
    let (address, server) = tls_server(&node);
    let stream = TcpStream::connect(address).expect("connected");
    let config: Arc<_> = client
        .client_config_for(NodeId([1; 16]))
        .expect("a configuration");
    assert!(Tls::handshake(stream, config).is_err());
    server.join().expect("it ended");
}

#[test]
fn bad_1_bytes_that_are_no_frame_end_the_connection_with_a_reason() {
    let mut flipped = BytesMut::new();
    frames()[3].write_to(&mut flipped);
    flipped[20] ^= 1;
    let too_long = [0xff; 64];
    for bytes in [&flipped[..], &too_long[..]] {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        theirs.write_all(bytes).expect("sent");
        let error = FrameReader::default()
            .next(&Plain::unix(ours))
            .expect_err("no frame");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}

#[test]
fn a_full_socket_takes_nothing_and_does_not_wait() {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair");
    let ours = Plain::unix(ours);
    let data = vec![7; 1 << 20];
    let mut taken = 0;
    loop {
        match ours.try_send(&[IoSlice::new(&data)]).expect("open") {
            0 => break,
            n => taken += n,
        }
    }
    let mut back = vec![0; taken];
    theirs.read_exact(&mut back).expect("all of it");
    ours.wait_writable().expect("open");
    assert!(ours.try_send(&[IoSlice::new(&data)]).expect("open") > 0);
}
