//! `cairn bench net`: round trips and throughput to a node, over the connection that nodes use for
//! requests to each other, with TLS. The limit is plain TCP on this machine's loopback with
//! messages of the same sizes.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use cairn_lab::workloads::{Measure, rate};
use protocol::control::ControlRequest;
use protocol::frame::{HEADER_BYTES, RawFrame, take_frame};
use protocol::identity::{Identity, server_name};
use protocol::node_rpc::{self, NodeReply, kind};
use protocol::preamble::Purpose;
use protocol::report::{NodeStatus, PeerStatus};
use rustls::{ClientConnection, StreamOwned};

use super::{Machine, Report, beside};
use crate::args::Global;
use crate::commands::{ask, typed};
use crate::connection::data_dir;
use crate::failure::Failure;
use crate::output::Output;

/// No answer takes longer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Bytes of the large message; a frame's meta may have 2 MiB.
const LARGE_BYTES: usize = 1 << 20;
/// About what an answer has, so that the limit answers as much.
const ANSWER_BYTES: usize = 96;

/// Something that sends a message and waits for its answer.
trait Peer {
    fn exchange(&mut self, message: &[u8]) -> io::Result<()>;
}

pub(super) fn run(
    global: &Global,
    output: &Output,
    node: &str,
    small: bool,
) -> Result<Report, Failure> {
    let machine = Machine::look();
    let lasts = Duration::from_millis(if small { 200 } else { 3000 });
    let status = ask(global, output, &ControlRequest::PeerStatus {})?;
    let status: PeerStatus = typed(&status.data)?;
    let found = find(&status, node)?;
    let mut remote = Remote::connect(global, found)?;
    let measures = measure(&mut remote, lasts).map_err(|error| {
        Failure::refused(
            "bench",
            format!("the connection to {} broke: {error}", found.name),
            "Look at `cairn peer status` and at that node's log.",
        )
    })?;
    let limits = loopback(lasts).map_err(|error| {
        Failure::refused(
            "bench",
            format!("the limit cannot be measured on 127.0.0.1: {error}"),
            "Look at whether the loopback interface is up.",
        )
    })?;
    Ok(Report {
        target: format!("{} ({})", found.name, found.address),
        machine,
        results: beside(measures, &limits),
        notes: vec![
            "limit: plain TCP between two threads on 127.0.0.1, without TLS, frames or JSON; between two machines no network reaches it".to_owned(),
            "send_1m: requests of 1 MiB one after another, each answered before the next; the node checks and reads each".to_owned(),
        ],
    })
}

fn find<'a>(status: &'a PeerStatus, node: &str) -> Result<&'a NodeStatus, Failure> {
    let is_it = |one: &&NodeStatus| {
        let host = one.address.rsplit_once(':').map(|(host, _)| host);
        one.name == node || one.address == node || host == Some(node)
    };
    status.nodes.iter().find(is_it).ok_or_else(|| {
        Failure::refused(
            "no_such_node",
            format!("no node of the pool is called `{node}`"),
            "Look at `cairn peer status` for names and addresses.",
        )
    })
}

/// A node of the pool.
struct Remote {
    stream: StreamOwned<ClientConnection, TcpStream>,
    inbox: BytesMut,
}

impl Remote {
    fn connect(global: &Global, node: &NodeStatus) -> Result<Self, Failure> {
        let path = data_dir(global).join("identity.pem");
        let identity = fs::read_to_string(&path)
            .map_err(|error| error.to_string())
            .and_then(|pem| Identity::from_pem(&pem).map_err(|error| error.to_string()))
            .map_err(|error| {
                Failure::refused(
                    "identity",
                    format!("{} cannot be read: {error}", path.display()),
                    "Run the command as root: it speaks to the node as this one.",
                )
            })?;
        Self::reach(&identity, node).map_err(|error| {
            Failure::refused(
                "unreachable",
                format!(
                    "{} at {} cannot be reached: {error}",
                    node.name, node.address
                ),
                "Look at `cairn peer status`.",
            )
        })
    }

    fn reach(identity: &Identity, node: &NodeStatus) -> io::Result<Self> {
        let address = node.address.to_socket_addrs()?.next();
        let address = address.ok_or_else(|| io::Error::other("it has no address"))?;
        let mut tcp = TcpStream::connect_timeout(&address, ANSWER_WITHIN)?;
        prepare(&tcp)?;
        tcp.write_all(&Purpose::Rpc.encode())?;
        let config = identity
            .client_config_for(node.id)
            .map_err(io::Error::other)?;
        let tls = ClientConnection::new(config, server_name()).map_err(io::Error::other)?;
        Ok(Self {
            stream: StreamOwned::new(tls, tcp),
            inbox: BytesMut::new(),
        })
    }
}

impl Peer for Remote {
    fn exchange(&mut self, message: &[u8]) -> io::Result<()> {
        self.stream.write_all(message)?;
        self.stream.flush()?;
        let mut buffer = [0; 4096];
        loop {
            if let Some(frame) = take_frame(&mut self.inbox).map_err(io::Error::other)? {
                return match node_rpc::decode(kind::REPLY, &frame).map_err(io::Error::other)? {
                    NodeReply::Pong { .. } => Ok(()),
                    NodeReply::Error(refusal) => Err(io::Error::other(refusal)),
                    other => Err(io::Error::other(format!("answered {other:?} to a ping"))),
                };
            }
            let read = self.stream.read(&mut buffer)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.inbox.extend_from_slice(&buffer[..read]);
        }
    }
}

fn prepare(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    tcp.set_read_timeout(Some(ANSWER_WITHIN))?;
    tcp.set_write_timeout(Some(ANSWER_WITHIN))
}

/// A ping with so many bytes of padding: unknown fields are ignored.
fn ping(padding: usize) -> BytesMut {
    let meta = if padding == 0 {
        r#"{"ping":{}}"#.to_owned()
    } else {
        format!(r#"{{"ping":{{"padding":"{}"}}}}"#, "0".repeat(padding))
    };
    let mut out = BytesMut::with_capacity(HEADER_BYTES + meta.len());
    RawFrame {
        kind: kind::REQUEST,
        meta: Bytes::from(meta),
        payload: Bytes::new(),
    }
    .write_to(&mut out);
    out
}

fn measure(peer: &mut impl Peer, lasts: Duration) -> io::Result<Vec<Measure>> {
    let small = ping(0);
    // The first one pays for the handshake.
    peer.exchange(&small)?;
    let (took, each) = repeat(peer, &small, lasts)?;
    let trips = rate("round_trip", each.len() as f64, "ops/s", took, each);
    let large = ping(LARGE_BYTES);
    let (took, each) = repeat(peer, &large, lasts)?;
    let megabytes = each.len() as f64 * large.len() as f64 / 1e6;
    Ok(vec![trips, rate("send_1m", megabytes, "MB/s", took, each)])
}

fn repeat(
    peer: &mut impl Peer,
    message: &[u8],
    lasts: Duration,
) -> io::Result<(Duration, Vec<Duration>)> {
    let mut each = Vec::new();
    let began = Instant::now();
    while began.elapsed() < lasts {
        let one = Instant::now();
        peer.exchange(message)?;
        each.push(one.elapsed());
    }
    Ok((began.elapsed(), each))
}

/// The other end is a thread that reads a message by its header and answers a fixed number of
/// bytes.
struct Loopback(TcpStream);

impl Peer for Loopback {
    fn exchange(&mut self, message: &[u8]) -> io::Result<()> {
        self.0.write_all(message)?;
        self.0.read_exact(&mut [0; ANSWER_BYTES])
    }
}

fn loopback(lasts: Duration) -> io::Result<Vec<Measure>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let tcp = TcpStream::connect(listener.local_addr()?)?;
    prepare(&tcp)?;
    let (other, _) = listener.accept()?;
    prepare(&other)?;
    std::thread::scope(|scope| {
        let answering = scope.spawn(move || answer(other));
        let mut near = Loopback(tcp);
        let measures = measure(&mut near, lasts);
        drop(near);
        let answered = answering
            .join()
            .map_err(|_| io::Error::other("a thread died"))?;
        measures.and_then(|measures| answered.map(|()| measures))
    })
}

/// Until the end of the stream.
fn answer(mut tcp: TcpStream) -> io::Result<()> {
    let mut header = [0; HEADER_BYTES];
    let mut rest = Vec::new();
    loop {
        match tcp.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
        let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        rest.resize(length as usize, 0);
        tcp.read_exact(&mut rest)?;
        tcp.write_all(&[0; ANSWER_BYTES])?;
    }
}
