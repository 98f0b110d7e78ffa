//! Connections without a network: bytes that take their time, are held up, or end with an error.
//!
//! A direction between two places can be blocked: what is sent waits until it is open again, as TCP
//! sends again, and the end of a connection is no more heard of than the rest. A place whose power
//! is off says nothing at all; when it is back, what was connected before is told so. One end can
//! lose a connection of which the other still believes that it is there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::random::Random;

/// A node or a client.
pub(crate) type Place = usize;

/// Bytes that may be under way in one direction of a connection.
const WINDOW_BYTES: usize = 512 << 10;

/// One direction of a connection.
struct Pipe {
    from: Place,
    to: Place,
    queue: VecDeque<(Instant, Bytes)>,
    queued_bytes: usize,
    last_at: Instant,
    /// The writer is gone, and the reader learns it then.
    closed_at: Option<Instant>,
    /// The reader is gone.
    deaf: bool,
    /// Both ends get an error.
    broken: bool,
    /// The place whose end gets an error, and the other not.
    broken_at: Option<Place>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()]
            .into_iter()
            .flatten()
        {
            waker.wake();
        }
    }
}

struct State {
    pipes: BTreeMap<u64, Pipe>,
    next_pipe: u64,
    blocked: BTreeSet<(Place, Place)>,
    parted: BTreeSet<(Place, Place)>,
    dark: BTreeSet<Place>,
    latency: Duration,
    jitter_ms: u64,
    random: Random,
    frames: BTreeMap<u8, u64>,
}

impl State {
    fn holds_up(&self, from: Place, to: Place) -> bool {
        self.blocked.contains(&(from, to)) || self.parted.contains(&(from, to))
    }
}

/// All connections. Clones are one network.
#[derive(Clone)]
pub(crate) struct Network(Arc<Mutex<State>>);

impl Network {
    /// Every byte takes `latency_ms`, and at random up to `jitter_ms` more.
    pub(crate) fn new(random: Random, latency_ms: u64, jitter_ms: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            pipes: BTreeMap::new(),
            next_pipe: 0,
            blocked: BTreeSet::new(),
            parted: BTreeSet::new(),
            dark: BTreeSet::new(),
            latency: Duration::from_millis(latency_ms),
            jitter_ms,
            random,
            frames: BTreeMap::new(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the next message takes.
    pub(crate) fn delay(&self) -> Duration {
        let state = self.state();
        state.latency + Duration::from_millis(state.random.within(0..state.jitter_ms + 1))
    }

    /// How much longer than a few milliseconds a question and its answer take.
    pub(crate) fn far(&self) -> Duration {
        self.state()
            .latency
            .saturating_sub(Duration::from_millis(4))
            * 2
    }

    /// Whether something sent now would arrive.
    pub(crate) fn is_open(&self, from: Place, to: Place) -> bool {
        let state = self.state();
        let dark = |place| state.dark.contains(place);
        !state.holds_up(from, to) && !dark(&from) && !dark(&to)
    }

    /// Nothing gets from one place to the other until further notice.
    pub(crate) fn block(&self, from: Place, to: Place) {
        self.state().blocked.insert((from, to));
    }

    /// What gets from one place to the other does so again.
    pub(crate) fn open(&self, from: Place, to: Place) {
        let mut state = self.state();
        state.blocked.remove(&(from, to));
        state.parted.remove(&(from, to));
        state.pipes.values_mut().for_each(Pipe::wake);
    }

    /// Nothing gets from one place to the other, nor back, until they are reunited: also if
    /// somebody heals the network meanwhile.
    pub(crate) fn part(&self, a: Place, b: Place) {
        self.state().parted.extend([(a, b), (b, a)]);
    }

    /// Whoever was parted reaches each other.
    pub(crate) fn reunite(&self) {
        let mut state = self.state();
        state.parted.clear();
        state.pipes.values_mut().for_each(Pipe::wake);
    }

    /// Everything is open again.
    pub(crate) fn heal(&self) {
        let mut state = self.state();
        state.blocked.clear();
        state.pipes.values_mut().for_each(Pipe::wake);
    }

    /// The place loses its power: nothing more is heard of it.
    pub(crate) fn power_off(&self, place: Place) {
        self.state().dark.insert(place);
    }

    /// The power is back: connections of before are known no more.
    pub(crate) fn power_on(&self, place: Place) {
        let mut state = self.state();
        state.dark.remove(&place);
        drop(state);
        self.forget(place);
    }

    /// Connections of the place end with an error, and what was under way on them is lost.
    pub(crate) fn forget(&self, place: Place) {
        let mut state = self.state();
        self.reset_in(&mut state, |pipe| pipe.from == place || pipe.to == place);
    }

    /// Connections between the two places end with an error.
    pub(crate) fn reset(&self, a: Place, b: Place) {
        let mut state = self.state();
        self.reset_in(&mut state, |pipe| {
            (pipe.from, pipe.to) == (a, b) || (pipe.from, pipe.to) == (b, a)
        });
    }

    /// Every connection of the place to one of the others ends with an error at the place's own end.
    /// The others hear of that when something gets through to them again.
    pub(crate) fn forget_at(&self, place: Place, others: &[Place]) {
        let mut state = self.state();
        for pipe in state.pipes.values_mut() {
            let other = match (pipe.from == place, pipe.to == place) {
                (true, false) => pipe.to,
                (false, true) => pipe.from,
                _ => continue,
            };
            if others.contains(&other) {
                pipe.broken_at = Some(place);
                pipe.wake();
            }
        }
    }

    fn reset_in(&self, state: &mut State, which: impl Fn(&Pipe) -> bool) {
        for pipe in state.pipes.values_mut().filter(|pipe| which(pipe)) {
            pipe.broken = true;
            pipe.wake();
        }
    }

    /// How many frames of each kind were sent.
    pub(crate) fn frames(&self) -> BTreeMap<u8, u64> {
        self.state().frames.clone()
    }

    /// A connection: the end at `a`, and the end at `b`.
    pub(crate) fn connect(&self, a: Place, b: Place) -> (End, End) {
        let (there, back) = (self.pipe(a, b), self.pipe(b, a));
        let end = |read, write| End {
            reader: Reader {
                network: self.clone(),
                pipe: read,
                sleep: None,
            },
            writer: Writer {
                network: self.clone(),
                pipe: write,
                count: FrameCount::default(),
            },
        };
        (end(back, there), end(there, back))
    }

    fn pipe(&self, from: Place, to: Place) -> u64 {
        let mut state = self.state();
        state.next_pipe += 1;
        let id = state.next_pipe;
        state.pipes.insert(
            id,
            Pipe {
                from,
                to,
                queue: VecDeque::new(),
                queued_bytes: 0,
                last_at: Instant::now(),
                closed_at: None,
                deaf: false,
                broken: false,
                broken_at: None,
                reader: None,
                writer: None,
            },
        );
        id
    }
}

/// One end of a connection.
pub(crate) struct End {
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
}

/// Its reading half.
pub(crate) struct Reader {
    network: Network,
    pipe: u64,
    sleep: Option<Pin<Box<Sleep>>>,
}

/// Its writing half.
pub(crate) struct Writer {
    network: Network,
    pipe: u64,
    count: FrameCount,
}

fn reset() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let network = self.network.clone();
        loop {
            let wait_until = {
                let mut state = network.state();
                let State {
                    pipes,
                    blocked,
                    parted,
                    dark,
                    ..
                } = &mut *state;
                let Some(pipe) = pipes.get_mut(&self.pipe) else {
                    return Poll::Ready(Err(reset()));
                };
                if pipe.broken || pipe.broken_at == Some(pipe.to) {
                    return Poll::Ready(Err(reset()));
                }
                match &mut pipe.reader {
                    Some(reader) => reader.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                }
                let way = (pipe.from, pipe.to);
                let held_up = blocked.contains(&way) || parted.contains(&way);
                let silent = held_up || dark.contains(&pipe.from);
                if silent {
                    return Poll::Pending;
                }
                let now = Instant::now();
                match pipe.queue.front_mut() {
                    Some((at, bytes)) if *at <= now => {
                        let len = bytes.len().min(buf.remaining());
                        buf.put_slice(&bytes[..len]);
                        bytes.advance(len);
                        if bytes.is_empty() {
                            pipe.queue.pop_front();
                        }
                        pipe.queued_bytes -= len;
                        if let Some(writer) = pipe.writer.take() {
                            writer.wake();
                        }
                        return Poll::Ready(Ok(()));
                    }
                    Some((at, _)) => *at,
                    None => match pipe.closed_at {
                        Some(at) if at <= now => return Poll::Ready(Ok(())),
                        Some(at) => at,
                        None => return Poll::Pending,
                    },
                }
            };
            let sleep = match &mut self.sleep {
                Some(sleep) => {
                    // It may stand already: whoever polls for another reason waits for the same.
                    if sleep.deadline() != wait_until {
                        sleep.as_mut().reset(wait_until);
                    }
                    sleep
                }
                none => none.insert(Box::pin(tokio::time::sleep_until(wait_until))),
            };
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.network.state();
        if let Some(pipe) = state.pipes.get_mut(&self.pipe) {
            pipe.deaf = true;
            pipe.queue.clear();
            pipe.wake();
            if pipe.closed_at.is_some() {
                state.pipes.remove(&self.pipe);
            }
        }
    }
}

impl AsyncWrite for Writer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let network = self.network.clone();
        let mut state = network.state();
        let State {
            pipes,
            blocked,
            parted,
            dark,
            latency,
            jitter_ms,
            random,
            frames,
            ..
        } = &mut *state;
        let Some(pipe) = pipes.get_mut(&self.pipe) else {
            return Poll::Ready(Err(reset()));
        };
        // A place that cannot be heard says neither that it is deaf nor that it hears.
        let back = (pipe.to, pipe.from);
        let mute = dark.contains(&pipe.to) || blocked.contains(&back) || parted.contains(&back);
        let ended = pipe.broken || pipe.broken_at == Some(pipe.from);
        if ended || (pipe.deaf && !mute) || pipe.closed_at.is_some() {
            return Poll::Ready(Err(reset()));
        }
        if pipe.queued_bytes >= WINDOW_BYTES {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let delay = *latency + Duration::from_millis(random.within(0..*jitter_ms + 1));
        pipe.last_at = pipe.last_at.max(Instant::now() + delay);
        pipe.queue
            .push_back((pipe.last_at, Bytes::copy_from_slice(data)));
        pipe.queued_bytes += data.len();
        if let Some(reader) = pipe.reader.take() {
            reader.wake();
        }
        self.count.take(data, frames);
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.close();
        Poll::Ready(Ok(()))
    }
}

impl Writer {
    fn close(&self) {
        let mut state = self.network.state();
        let delay = state.latency;
        if let Some(pipe) = state.pipes.get_mut(&self.pipe) {
            pipe.closed_at
                .get_or_insert_with(|| pipe.last_at.max(Instant::now() + delay));
            pipe.wake();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.close();
        let mut state = self.network.state();
        if state.pipes.get(&self.pipe).is_some_and(|pipe| pipe.deaf) {
            state.pipes.remove(&self.pipe);
        }
    }
}

/// Counts the kinds of frames in a stream of bytes.
#[derive(Default)]
struct FrameCount {
    header: Vec<u8>,
    body_left: usize,
}

impl FrameCount {
    fn take(&mut self, mut data: &[u8], frames: &mut BTreeMap<u8, u64>) {
        while !data.is_empty() {
            let body = self.body_left.min(data.len());
            self.body_left -= body;
            data = &data[body..];
            let header = (protocol::frame::HEADER_BYTES - self.header.len()).min(data.len());
            self.header.extend_from_slice(&data[..header]);
            data = &data[header..];
            if self.header.len() == protocol::frame::HEADER_BYTES {
                let length = self.header[..4].try_into().expect("four bytes");
                self.body_left = u32::from_le_bytes(length) as usize;
                *frames.entry(self.header[8]).or_insert(0) += 1;
                self.header.clear();
            }
        }
    }
}
