//! A primary inside the test: speaks the protocol on a Unix socket, keeps its volume in memory,
//! and misbehaves on demand.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use bytes::{Bytes, BytesMut};
use namespace::memory::MemoryVolume;
use protocol::frame::{RawFrame, take_frame};
use protocol::fs::{
    FS_VERSION, Hello, HelloReply, Operation, Outcome, Replay, Reply, Request, kind,
};
use protocol::ids::{NodeId, SessionId, VolumeId};
use protocol::node_rpc::{self, LocatedNode, NodeReply};
use protocol::preamble::{PREAMBLE_BYTES, Purpose};
use protocol::units::{ObjectId, Sequence, Term, Timestamp};
use protocol::volume::VolumeKind;

/// What the server does out of the ordinary.
#[derive(Debug, Default)]
pub struct Mischief {
    /// Executes nothing and answers nothing.
    pub paused: bool,
    /// Closes each new connection.
    pub closed: bool,
    /// After executing the next change, closes the connection instead of answering.
    pub drop_next_answer: bool,
    /// Answers that it does not know the session.
    pub forget_sessions: bool,
    /// Gives each file that is changed to its mount alone.
    pub gives_alone: bool,
    /// Refuses changes that were answered early, with this error.
    pub refuses_early: Option<i32>,
    /// Answers no change before it is asked to make everything stable.
    pub withholds: bool,
    /// Has lost every lock since the beginning, and does not take them back.
    pub lose_locks: bool,
}

#[derive(Default)]
struct State {
    volume: MemoryVolume,
    clock: i64,
    next_object: u64,
    opens: HashMap<SessionId, HashMap<ObjectId, u32>>,
    connections: Vec<UnixStream>,
    mischief: Mischief,
    /// Requests that came, repetitions included, by operation's name.
    received: HashMap<&'static str, u32>,
    hellos: u32,
    turned_away: u32,
}

/// A running server.
#[derive(Clone)]
pub struct Server {
    path: PathBuf,
    state: Arc<(Mutex<State>, Condvar)>,
}

const VOLUME: VolumeId = VolumeId([7; 16]);

impl Server {
    /// Listens at `path`.
    pub fn start(path: &Path) -> Self {
        let listener = UnixListener::bind(path).expect("a socket in a new directory");
        let state = State {
            volume: MemoryVolume::new(Timestamp(1)),
            next_object: 100,
            clock: 1_700_000_000_000_000_000,
            ..State::default()
        };
        let server = Self {
            path: path.to_owned(),
            state: Arc::new((Mutex::new(state), Condvar::new())),
        };
        let accepting = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let serving = accepting.clone();
                std::thread::spawn(move || serving.serve(stream));
            }
        });
        server
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.0.lock().expect("no thread panicked")
    }

    /// Changes how it behaves.
    pub fn misbehave(&self, change: impl FnOnce(&mut Mischief)) {
        change(&mut self.state().mischief);
        self.state.1.notify_all();
    }

    /// Closes every connection.
    pub fn cut(&self) {
        for stream in self.state().connections.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// How often an operation came, repetitions included.
    pub fn received(&self, operation: &str) -> u32 {
        self.state().received.get(operation).copied().unwrap_or(0)
    }

    /// Sessions that began or came back.
    pub fn hellos(&self) -> u32 {
        self.state().hellos
    }

    /// Connections that were closed at once.
    pub fn turned_away(&self) -> u32 {
        self.state().turned_away
    }

    /// Objects that are held open, and objects that wait for their last close.
    pub fn held(&self) -> (usize, usize) {
        let state = self.state();
        let held = state.opens.values().map(HashMap::len).sum();
        let orphans = namespace::orphans(&state.volume).expect("memory").len();
        (held, orphans)
    }

    /// Objects in use.
    pub fn objects(&self) -> u64 {
        namespace::objects(&self.state().volume).expect("memory")
    }

    /// Waits until `reached` holds.
    pub fn wait_until(&self, reached: impl Fn(&Self) -> bool) {
        for _ in 0..100_000 {
            if reached(self) {
                return;
            }
            std::thread::yield_now();
            std::thread::park_timeout(std::time::Duration::from_micros(100));
        }
        panic!("the state was not reached");
    }

    fn serve(&self, mut stream: UnixStream) {
        let mut preamble = [0; PREAMBLE_BYTES];
        if stream.read_exact(&mut preamble).is_err() {
            return;
        }
        {
            let mut state = self.state();
            if state.mischief.closed {
                state.turned_away += 1;
                return;
            }
        }
        match Purpose::decode(&preamble) {
            Ok(Purpose::Rpc) => self.serve_rpc(stream),
            Ok(Purpose::Client(volume)) if volume == VOLUME => {
                let kept = stream.try_clone().expect("descriptors are left");
                self.state().connections.push(kept);
                let _ = self.serve_client(&stream);
                let _ = stream.shutdown(Shutdown::Both);
            }
            other => panic!("a connection for {other:?}"),
        }
    }

    fn serve_rpc(&self, mut stream: UnixStream) {
        let mut buffer = BytesMut::new();
        if next(&mut stream, &mut buffer).is_none() {
            return;
        }
        let node = LocatedNode {
            id: NodeId([1; 16]),
            name: "node1".to_owned(),
            address: "127.0.0.1:1".to_owned(),
            unix_socket: Some(self.path.display().to_string()),
            primary: true,
        };
        let reply = NodeReply::Located {
            volume_id: VOLUME,
            kind: VolumeKind::Fs,
            nodes: vec![node],
        };
        let frame = node_rpc::encode(node_rpc::kind::REPLY, &reply).expect("fits");
        let _ = stream.write_all(&bytes_of(&frame));
    }

    fn serve_client(&self, mut stream: &UnixStream) -> Option<()> {
        let mut buffer = BytesMut::new();
        let hello = Hello::decode(&next(&mut stream, &mut buffer)?).expect("a hello");
        let known = {
            let mut state = self.state();
            state.hellos += 1;
            let mut opens = HashMap::new();
            for object in &hello.opens {
                *opens.entry(*object).or_insert(0) += 1;
            }
            let before = state.opens.insert(hello.session, opens);
            before.is_some() && !state.mischief.forget_sessions
        };
        let (term, ends) = if self.state().mischief.lose_locks {
            (Term(2), vec![(Term(1), Sequence(0))])
        } else {
            (Term(1), Vec::new())
        };
        let welcome = HelloReply::Welcome {
            version: FS_VERSION,
            term,
            known,
            session_timeout_ms: 30_000,
            block: false,
            ends,
            gathers: false,
            in_doubt: false,
            object_bytes_max: 1 << 44,
        };
        stream.write_all(&bytes_of(&welcome.encode())).ok()?;
        let mut withheld = Vec::new();
        loop {
            let frame = next(&mut stream, &mut buffer)?;
            let answer = match frame.kind {
                kind::REQUEST => {
                    let request = Request::decode(&frame).expect("a request");
                    let answer = self.execute(hello.session, &request)?;
                    if request.operation == Operation::SyncAll {
                        for answer in std::mem::take(&mut withheld) {
                            stream.write_all(&bytes_of(&answer)).ok()?;
                        }
                    }
                    if self.state().mischief.withholds && request.operation.changes() {
                        withheld.push(answer);
                        continue;
                    }
                    answer
                }
                kind::PING => {
                    self.wait_while_paused();
                    RawFrame {
                        kind: kind::PONG,
                        ..frame
                    }
                }
                kind::GOODBYE => {
                    let gone = self.state().opens.remove(&hello.session);
                    for object in gone.into_iter().flatten().map(|(object, _)| object) {
                        self.release_if_last(object);
                    }
                    return None;
                }
                kind::PRESENT | kind::PRESENTED => continue,
                kind::REPLAY => {
                    let replay = Replay::decode(&frame).expect("a replay");
                    reply_to(&replay.request, Outcome::Error(EIO), false).encode()
                }
                other => panic!("a frame of kind {other}"),
            };
            stream.write_all(&bytes_of(&answer)).ok()?;
        }
    }

    fn wait_while_paused(&self) {
        let guard = self.state();
        drop(
            self.state
                .1
                .wait_while(guard, |state| state.mischief.paused)
                .expect("no thread panicked"),
        );
    }

    fn execute(&self, session: SessionId, request: &Request) -> Option<RawFrame> {
        self.wait_while_paused();
        let mut state = self.state();
        state.clock += 1000;
        state.next_object += 1;
        let (now, new) = (Timestamp(state.clock), ObjectId(state.next_object));
        let held: Vec<_> = state
            .opens
            .values()
            .flat_map(|o| o.keys().copied())
            .collect();
        let refused = request.early.and(state.mischief.refuses_early);
        let outcome = match refused {
            Some(errno) => Outcome::Error(errno),
            None => state
                .volume
                .serve(session, new, now, &|object| held.contains(&object), request)
                .expect("a client that keeps the protocol"),
        };
        let name = operation_name(&request.operation);
        *state.received.entry(name).or_insert(0) += 1;
        if let Some(object) = namespace::opened(&request.operation, &outcome) {
            let opens = state.opens.entry(session).or_default();
            *opens.entry(object).or_insert(0) += 1;
        }
        let alone = state.mischief.gives_alone;
        let drops = state.mischief.drop_next_answer && request.operation.changes();
        if drops {
            state.mischief.drop_next_answer = false;
        }
        drop(state);
        if let (Operation::Release { object }, Outcome::Done) = (&request.operation, &outcome) {
            self.release(session, *object);
        }
        if drops {
            return None;
        }
        Some(reply_to(request, outcome, alone).encode())
    }

    fn release(&self, session: SessionId, object: ObjectId) {
        let mut state = self.state();
        if let Some(opens) = state.opens.get_mut(&session)
            && let Some(count) = opens.get_mut(&object)
        {
            *count -= 1;
            if *count == 0 {
                opens.remove(&object);
            }
        }
        drop(state);
        self.release_if_last(object);
    }

    fn release_if_last(&self, object: ObjectId) {
        let mut state = self.state();
        if !state
            .opens
            .values()
            .any(|opens| opens.contains_key(&object))
        {
            state.volume.release(object).expect("memory");
        }
    }
}

const EIO: i32 = 5;

/// Only locks are kept by clients, as the rest is said to have changed nothing.
fn reply_to(request: &Request, outcome: Outcome, alone: bool) -> Reply {
    let exclusive = match &outcome {
        Outcome::Written { attributes: a, .. } | Outcome::Attributes(a) | Outcome::Entry(a) => {
            let changes = request.operation.changes() && a.is_file();
            (alone && changes).then_some(a.object)
        }
        _ => None,
    };
    Reply {
        slot: request.slot,
        number: request.number,
        sequence: Sequence(1),
        stable: Sequence(0),
        lease_ms: if alone { 2_000 } else { 0 },
        leases: exclusive.into_iter().collect(),
        old: Vec::new(),
        exclusive,
        times: Vec::new(),
        busy: Vec::new(),
        changed: matches!(request.operation, Operation::Lock { .. }),
        authors: Vec::new(),
        directories: Vec::new(),
        outcome,
    }
}

fn operation_name(operation: &Operation) -> &'static str {
    match operation {
        Operation::Create { .. } => "create",
        Operation::Write { .. } => "write",
        Operation::CopyRange { .. } => "copy",
        Operation::Rename { .. } => "rename",
        Operation::MakeDirectory { .. } => "mkdir",
        Operation::Unlink { .. } => "unlink",
        Operation::Unlock { .. } => "unlock",
        Operation::Sync { .. } => "sync",
        Operation::SyncAll => "sync all",
        _ => "other",
    }
}

fn bytes_of(frame: &RawFrame) -> Bytes {
    let mut out = BytesMut::new();
    frame.write_to(&mut out);
    out.freeze()
}

fn next(stream: &mut impl Read, buffer: &mut BytesMut) -> Option<RawFrame> {
    let mut chunk = vec![0; 64 << 10];
    loop {
        if let Some(frame) = take_frame(buffer).expect("well-formed frames") {
            return Some(frame);
        }
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return None,
            Ok(n) => buffer.extend_from_slice(&chunk[..n]),
        }
    }
}
