//! A mount's session with a volume: one connection to the primary at a time, requests that
//! survive it.
//!
//! Whoever has a request puts it into the [`table`] and sends it on the [`link`]; one thread
//! receives answers and hands them to whoever waits. When the connection breaks, or the primary
//! says so, that thread finds the primary again, says hello with the same session id and
//! everything that is held open, and sends again what was not answered, under the same numbers,
//! so that each operation takes effect once (FO-2). Applications wait meanwhile, and can be
//! interrupted. What was confirmed and may not be stable is kept in [`keep`], and presented to a
//! primary that lacks it (DUR-5).

mod caching;
mod connect;
mod dial;
pub mod keep;
pub mod leases;
mod link;
mod locks;
mod losses;
mod opens;
mod places;
mod requests;
mod signals;
mod table;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use protocol::frame::RawFrame;
use protocol::fs::{Caller, Elsewhere, Operation, Outcome, Recalled, Reply, kind};
use protocol::ids::{SessionId, VolumeId};
use protocol::units::{ObjectId, Sequence, Term};

use crate::connection::{Connector, FrameReader};
use caching::Asked;
pub(crate) use caching::clock;
use connect::RETRY_MAX;
pub use dial::DialError;
use dial::Welcomed;
pub(crate) use dial::ask;
use keep::{Keep, Welcome};
use leases::{Cache, Forget, Fresh};
use link::Link;
use locks::Locks;
pub(crate) use locks::{Key, Range};
pub(crate) use losses::Losses;
use opens::Opens;
use places::Places;
use table::{Interrupted, Submission, Submitted, Table};

const EINTR: i32 = 4;
const EIO: i32 = 5;
const EAGAIN: i32 = 11;

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(100);
/// A connection on which nothing came for so long is asked for a sign of life; sooner while
/// something waits for an answer.
const PING_AFTER_MS: u64 = 1_000;
const PING_WAITING_AFTER_MS: u64 = 150;
/// After so much silence while something waits, other nodes are asked who is primary.
const DOUBT_AFTER_MS: u64 = 300;
/// A connection that gave none for so long is left.
const DEAD_AFTER_MS: u64 = 5_000;
/// Longest wait for answers at the end of a session.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// The same where changes are on their way that applications take for done.
const END_EARLY_TIMEOUT: Duration = Duration::from_secs(60);

/// What a session is for.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// The volume's name.
    pub volume: String,
    /// `host:port` of nodes to begin with.
    pub hosts: Vec<String>,
    /// The local daemon's data socket, if there is one.
    pub local_socket: Option<PathBuf>,
    /// How the client is called in `volume status`.
    pub client_name: String,
    /// The mount cannot write, to begin with.
    pub read_only: bool,
    /// Operations fail with EIO once there was no primary for so long; none: they wait.
    pub no_primary_eio: Option<Duration>,
    /// Longest wait for a node at the start.
    pub mount_timeout: Duration,
    /// Changes of files that nobody else uses are answered before the primary has them.
    pub early: bool,
    /// What is known under leases takes so many bytes at most; 0: there are none.
    pub cache_bytes: u64,
}

/// Takes the answers to what the kernel asked.
pub trait Replies: Send + Sync {
    /// Answers a request. What it tells may be kept for `fresh`.
    fn answer(&self, waiting: Waiting, outcome: Outcome, fresh: Fresh);

    /// Has the kernel forget, before leases are given back. Returns those of which it is not sure:
    /// they run out instead.
    fn forget(&self, forget: &Forget) -> Vec<ObjectId>;
}

/// A request of the kernel that waits for its answer.
#[derive(Debug)]
pub struct Waiting {
    /// The kernel's number of the request.
    pub unique: u64,
    /// The thread that asks; 0 where the kernel does not tell.
    pub thread: u32,
    /// The open file through which it is asked, where that matters: it fails once locks that were
    /// held through the file are lost.
    pub(crate) through: Option<u64>,
    /// How the answer looks.
    pub(crate) shape: crate::serve::Shape,
}

#[derive(Debug)]
enum Waiter {
    Kernel(Waiting),
    Caller(SyncSender<Outcome>),
    /// Called with the answer, by the thread that received it.
    Told(Told),
    /// What is kept is made stable, as it is much.
    Flush,
}

/// Who takes one answer.
struct Told(Box<dyn FnOnce(Outcome) + Send>);

impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Told")
    }
}

struct State {
    table: Table<Waiter>,
    opens: Opens,
    keep: Keep,
    places: Places,
    volume: VolumeId,
    link: Option<Arc<Link>>,
    /// What was presented has to be answered before anything is asked: asked up to this mark of the
    /// table before the hello.
    presenting: Option<u64>,
    /// Leases that are given back once that is over.
    returns: Vec<RawFrame>,
    disconnected_since: Instant,
    /// When the last sign of life was asked for.
    pinged: Instant,
    /// The highest record that an answer rested on, and the term of the primary that gave it.
    seen: (Term, Sequence),
    /// A change was confirmed, so the primary must know the session from now on.
    confirmed: bool,
    /// The pool refuses this client until an operator changes that.
    refused: bool,
    /// Other nodes are being asked who is primary.
    doubting: bool,
    /// The end waits for what is under way.
    ending: bool,
    ended: bool,
}

struct Shared {
    config: SessionConfig,
    connector: Arc<dyn Connector>,
    id: SessionId,
    mounted_at_ms: i64,
    state: Mutex<State>,
    changed: Condvar,
    replies: OnceLock<Arc<dyn Replies>>,
    losses: Losses,
    locks: Locks,
    /// Locked for a moment only, and nothing else is locked under it.
    cache: Arc<Mutex<Cache>>,
    forgets: Mutex<Option<Sender<Forget>>>,
    /// The mount cannot write now.
    read_only: AtomicBool,
}

/// A mount's session.
pub struct Session {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Why a session did not begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No node gave a session within the time.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// Nobody to ask.
    #[error("no node was named")]
    NoHosts,
    /// The machine gave no thread.
    #[error("no thread could be started")]
    Thread(#[source] io::Error),
}

impl Session {
    /// Finds the volume and begins a session, within the configured time.
    pub fn start(
        config: SessionConfig,
        connector: Arc<dyn Connector>,
    ) -> Result<Arc<Self>, StartError> {
        let (forgets, to_forget) = channel();
        let shared = Arc::new(Shared::new(config, connector, forgets));
        let welcomed = shared.begin()?;
        let (link, frames) = shared.take_into_use(welcomed).map_err(StartError::Thread)?;
        let receiver = Arc::clone(&shared);
        let ticker = Arc::clone(&shared);
        let forgetter = Arc::clone(&shared);
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(work)
                .map_err(StartError::Thread)
        };
        let threads = vec![
            spawn(
                "cairn-receive",
                Box::new(move || receiver.run(link, frames)),
            )?,
            spawn("cairn-tick", Box::new(move || ticker.tick()))?,
            spawn(
                "cairn-forget",
                Box::new(move || forgetter.forget_all(&to_forget)),
            )?,
        ];
        Ok(Arc::new(Self {
            shared,
            threads: Mutex::new(threads),
        }))
    }

    /// Who takes answers from now on. Only the first call counts.
    pub fn set_replies(&self, replies: Arc<dyn Replies>) {
        let _ = self.shared.replies.set(replies);
    }

    /// Asks something for the kernel.
    pub fn submit(&self, waiting: Waiting, caller: Caller, operation: Operation, payload: Bytes) {
        self.shared.submit(Submission {
            unique: Some(waiting.unique),
            through: waiting.through,
            waiter: Some(Waiter::Kernel(waiting)),
            caller,
            operation,
            payload,
            asked: Asked::default(),
            early: None,
        });
    }

    /// Asks something and waits for the answer.
    #[must_use]
    pub fn call(&self, operation: Operation) -> Outcome {
        let (sender, receiver) = sync_channel(1);
        self.shared.submit(Submission {
            waiter: Some(Waiter::Caller(sender)),
            unique: None,
            through: None,
            caller: Caller::default(),
            operation,
            payload: Bytes::new(),
            asked: Asked::default(),
            early: None,
        });
        receiver.recv().unwrap_or(Outcome::Error(EIO))
    }

    /// Asks something and returns at once. `told` gets the answer, on the thread that receives all
    /// of them: it must not wait. Requests go in the order of these calls.
    pub fn ask(
        &self,
        operation: Operation,
        payload: Bytes,
        told: impl FnOnce(Outcome) + Send + 'static,
    ) {
        self.shared.submit(Submission {
            payload,
            ..plain(Some(Waiter::Told(Told(Box::new(told)))), operation)
        });
    }

    /// Somebody uses an object under this number, until [`Session::leaves`]: he is told of losses.
    pub fn uses(&self, user: u64, object: ObjectId) {
        self.shared.losses.opened(user, object);
    }

    /// Whether something that was confirmed to him is lost (DUR-5): told once.
    #[must_use]
    pub fn has_lost(&self, user: u64) -> bool {
        self.shared.losses.tells(user).is_some()
    }

    /// He does not use it any more.
    pub fn leaves(&self, user: u64) {
        self.shared.losses.closed(user);
    }

    /// Asks something whose answer nobody waits for.
    pub(crate) fn tell(&self, operation: Operation) {
        self.shared.submit(plain(None, operation));
    }

    /// An application opens an object.
    pub fn open(&self, waiting: Waiting, caller: Caller, object: ObjectId) {
        let held = self.shared.state.lock().opens.again(object);
        if held {
            return self
                .shared
                .answer(Some(Waiter::Kernel(waiting)), Outcome::Done);
        }
        self.submit(waiting, caller, Operation::Open { object }, Bytes::new());
    }

    /// An application closed an object for good.
    pub fn close(&self, object: ObjectId) {
        let mut state = self.shared.state.lock();
        for _ in 0..state.opens.closed(object) {
            self.shared.tell(&mut state, Operation::Release { object });
        }
        let link = state.sending().cloned();
        drop(state);
        go(link);
    }

    /// A signal came for who waits for a request. False: the request is not known here.
    #[must_use]
    pub fn interrupt(&self, unique: u64) -> bool {
        let mut state = self.shared.state.lock();
        let connected = state.link.is_some();
        let result = state
            .table
            .interrupt(unique, Instant::now(), connected, dies);
        let link = state.refill();
        drop(state);
        go(link);
        match result {
            Interrupted::Answer(waiter) => {
                self.shared.answer(Some(waiter), Outcome::Error(EINTR));
                true
            }
            Interrupted::Noted => true,
            Interrupted::Unknown => false,
        }
    }

    /// Which open files have to be told that something was lost.
    pub(crate) fn losses(&self) -> &Losses {
        &self.shared.losses
    }

    /// What applications may hold locked.
    pub(crate) fn locks(&self) -> &Locks {
        &self.shared.locks
    }

    /// The mount was remounted: whether it can write is told to the primary by another hello.
    pub fn set_read_only(&self, read_only: bool) {
        if self.shared.read_only.swap(read_only, Ordering::Relaxed) == read_only {
            return;
        }
        let link = self.shared.state.lock().link.clone();
        if let Some(link) = link {
            link.close();
        }
    }

    /// What carries the session now, for people.
    #[must_use]
    pub fn carrier(&self) -> Option<&'static str> {
        let state = self.shared.state.lock();
        state.link.as_ref().map(|link| link.connection().carrier())
    }

    /// Ends the session: waits a little for what is under way, says goodbye.
    ///
    /// # Errors
    ///
    /// Changes were lost that applications take for done, and nobody was told.
    pub fn end(&self) -> io::Result<()> {
        let early = self.shared.state.lock().table.has_early();
        let patience = if early {
            END_EARLY_TIMEOUT
        } else {
            END_TIMEOUT
        };
        let deadline = Instant::now() + patience;
        // What is on its way is kept when it is confirmed, and asked to be stable behind that.
        let keeps = early || !self.shared.state.lock().keep.is_empty();
        if keeps {
            // Nobody keeps it afterwards.
            self.shared
                .submit(plain(Some(Waiter::Flush), Operation::SyncAll));
        }
        let mut state = self.shared.state.lock();
        state.ending = true;
        // The kernel is gone, and with it whoever could get a lock.
        let waits = state.table.waits_for_locks();
        drop(state);
        for waiter in waits {
            self.shared.answer(Some(waiter), Outcome::Error(EIO));
        }
        let mut state = self.shared.state.lock();
        // What applications take for done is not left behind where a primary may be back soon.
        while state.table.len() > 0
            && (state.link.is_some() || state.table.has_early())
            && Instant::now() < deadline
        {
            // What is given up without an answer wakes nobody.
            let soon = deadline.min(Instant::now() + TICK);
            self.shared.changed.wait_until(&mut state, soon);
        }
        state.ended = true;
        let early = state.table.has_early();
        if early {
            tracing::error!(
                "the mount ended before a primary took the last changes: they are lost"
            );
        }
        let left = state.table.older_than(Instant::now());
        let link = state.link.take();
        *self.shared.forgets.lock() = None;
        self.shared.changed.notify_all();
        drop(state);
        for waiter in left {
            self.shared.answer(Some(waiter), Outcome::Error(EIO));
        }
        if let Some(link) = link {
            link.send(&empty_frame(kind::GOODBYE));
            link.close();
        }
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the session panicked");
            }
        }
        self.shared.nothing_untold(early)
    }
}

fn empty_frame(kind: u8) -> RawFrame {
    RawFrame {
        kind,
        meta: Bytes::new(),
        payload: Bytes::new(),
    }
}

/// Sends what was queued.
fn go(link: Option<Arc<Link>>) {
    if let Some(link) = link {
        link.go();
    }
}

/// Whether who waits is about to end.
fn dies(waiter: &Waiter) -> bool {
    matches!(waiter, Waiter::Kernel(waiting) if signals::end(waiting.thread))
}

/// A request that no application asked.
fn plain(waiter: Option<Waiter>, operation: Operation) -> Submission<Waiter> {
    Submission {
        waiter,
        unique: None,
        through: None,
        caller: Caller::default(),
        operation,
        payload: Bytes::new(),
        asked: Asked::default(),
        early: None,
    }
}

impl State {
    /// Where requests go now.
    fn sending(&self) -> Option<&Arc<Link>> {
        self.link.as_ref().filter(|_| self.presenting.is_none())
    }

    fn queue(&self, frames: &[RawFrame]) {
        if let Some(link) = self.sending() {
            for frame in frames {
                link.queue(frame);
            }
        }
    }

    /// Slots may have become free: what may go now is queued; where.
    fn refill(&mut self) -> Option<Arc<Link>> {
        let frames = self.table.refill(self.sending().is_some());
        self.queue(&frames);
        self.sending().cloned()
    }

    /// Whether requests fail instead of waiting.
    fn fails(&self, limit: Option<Duration>) -> bool {
        let late = limit.is_some_and(|limit| self.disconnected_since.elapsed() >= limit);
        self.ended || (self.link.is_none() && (self.refused || late))
    }
}

impl Shared {
    /// Without a connection.
    fn new(config: SessionConfig, connector: Arc<dyn Connector>, forgets: Sender<Forget>) -> Self {
        let places = Places::new(config.local_socket.clone(), &config.hosts);
        let now = Instant::now();
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            connector,
            id: SessionId(rand::random()),
            mounted_at_ms: since_1970.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(0)),
            state: Mutex::new(State {
                table: Table::new(),
                opens: Opens::default(),
                keep: Keep::new(),
                places,
                volume: VolumeId::NONE,
                link: None,
                presenting: None,
                returns: Vec::new(),
                disconnected_since: now,
                pinged: now,
                seen: Default::default(),
                confirmed: false,
                refused: false,
                doubting: false,
                ending: false,
                ended: false,
            }),
            changed: Condvar::new(),
            replies: OnceLock::new(),
            losses: Losses::default(),
            locks: Locks::default(),
            cache: Arc::new(Mutex::new(Cache::new(config.cache_bytes))),
            forgets: Mutex::new(Some(forgets)),
            read_only: AtomicBool::new(config.read_only),
            config,
        }
    }

    fn answer(&self, waiter: Option<Waiter>, outcome: Outcome) {
        self.answer_fresh(waiter, outcome, Fresh::default());
    }

    fn answer_fresh(&self, waiter: Option<Waiter>, outcome: Outcome, fresh: Fresh) {
        match waiter {
            Some(Waiter::Kernel(waiting)) => match self.replies.get() {
                Some(replies) => replies.answer(waiting, outcome, fresh),
                None => tracing::error!("an answer came before anybody could take it"),
            },
            // Who stopped waiting needs no answer.
            Some(Waiter::Caller(sender)) => drop(sender.send(outcome)),
            Some(Waiter::Told(Told(tell))) => tell(outcome),
            Some(Waiter::Flush) | None => {}
        }
    }

    /// The receiving thread.
    fn run(&self, mut link: Arc<Link>, mut frames: FrameReader) {
        loop {
            match self.receive(&link, &mut frames) {
                _ if self.state.lock().ended => return,
                Ok(()) => tracing::info!("the node is primary no more"),
                Err(error) => tracing::info!(%error, "the connection to the primary broke"),
            }
            self.disconnected(&link);
            let Some(welcomed) = self.reconnect() else {
                return;
            };
            match self.take_into_use(welcomed) {
                Ok(next) => (link, frames) = next,
                Err(error) => {
                    tracing::error!(%error, "no thread could be started for the connection");
                    std::thread::sleep(RETRY_MAX);
                }
            }
        }
    }

    fn receive(&self, link: &Arc<Link>, frames: &mut FrameReader) -> io::Result<()> {
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        loop {
            let frame = frames.next(link.connection())?;
            link.heard();
            match frame.kind {
                kind::REPLY => self.replied(Reply::decode(&frame).map_err(invalid)?),
                kind::PING => link.send(&RawFrame {
                    kind: kind::PONG,
                    ..frame
                }),
                kind::PONG => {}
                kind::RECALL => self.recalled(Recalled::decode(&frame).map_err(invalid)?),
                kind::ELSEWHERE => {
                    let elsewhere = Elsewhere::decode(&frame).map_err(invalid)?;
                    self.state.lock().places.set_primary(elsewhere.primary);
                    return Ok(());
                }
                other => {
                    return Err(invalid(protocol::codec::DecodeError::Invalid {
                        what: "frame kind",
                        value: u64::from(other),
                    }));
                }
            }
        }
    }

    fn replied(&self, reply: Reply) {
        let mut state = self.state.lock();
        state.seen.1 = state.seen.1.max(reply.sequence);
        state.keep.told(&reply);
        let connected = state.sending().is_some();
        let answered = state.table.answered(reply.slot, reply.number, connected);
        let Some(mut answered) = answered else {
            // It is to what was presented, or nobody's, as who asked gave up meanwhile.
            self.cache.lock().changed(&reply.old);
            state.keep.replayed(&reply);
            let lost = state.keep.take_lost();
            let done = self.note_lost(&mut state, &lost);
            self.end_presenting(&mut state);
            let link = state.sending().cloned();
            drop(state);
            go(link);
            self.tell_lost(&lost);
            self.answer_all(done);
            return;
        };
        let fresh = self.keep_answer(&state, &mut answered, &reply);
        if let Outcome::Written { attributes: a, .. } | Outcome::Attributes(a) | Outcome::Entry(a) =
            &reply.outcome
            && reply.changed
        {
            state.table.changed(a.object, a.ctime);
        }
        for (object, at) in &reply.times {
            state.table.changed(*object, *at);
        }
        let failed = match (&reply.outcome, answered.early) {
            (Outcome::Error(errno), true) => answered
                .operation
                .early_file()
                .map(|object| (object, *errno)),
            _ => None,
        };
        if answered.early {
            self.note_early(&mut state, failed);
        }
        state
            .keep
            .confirmed(&answered.operation, &answered.frame, &reply);
        state.queue(answered.next.as_slice());
        self.look_after_kept(&mut state, answered.waiter.as_ref());
        state.confirmed |= reply.slot != protocol::fs::SLOT_NONE;
        let opened = table::opened(&answered.operation, &reply.outcome);
        match opened {
            Some(object) if answered.waiter.is_some() => state.opens.opened(object),
            // Who asked for the open has gone: give it back.
            Some(object) => self.tell(&mut state, Operation::Release { object }),
            None => {}
        }
        let mut outcome = reply.outcome;
        if let Operation::Lock { .. } = &answered.operation {
            self.look_after_lock(&mut state, &answered, &mut outcome);
        }
        let syncs = matches!(
            answered.operation,
            Operation::Sync { .. } | Operation::SyncAll
        );
        // What is kept was confirmed, so the early changes among it were taken.
        let flushes = matches!(answered.waiter, Some(Waiter::Flush));
        if syncs && !flushes && outcome == Outcome::Done {
            Self::look_after_sync(&mut state, &mut answered);
        }
        // Only the end waits for that; waking the thread of deadlines each time would cost more
        // than the answer.
        if state.ending && state.table.len() == 0 {
            self.changed.notify_all();
        }
        let link = state.sending().cloned();
        drop(state);
        self.answer_fresh(answered.waiter, outcome, fresh);
        go(link);
    }

    /// Bounds what is kept: asks for a flush, and holds changes up until it is done.
    fn look_after_kept(&self, state: &mut State, answered: Option<&Waiter>) {
        if matches!(answered, Some(Waiter::Flush)) {
            state.keep.flushed();
        }
        if state.keep.wants_flush() {
            let flush = plain(Some(Waiter::Flush), Operation::SyncAll);
            let connected = state.sending().is_some();
            if let Submitted::Send(frame) = state.table.submit(flush, Instant::now(), connected) {
                state.queue(&[frame]);
            }
        }
        state.table.hold_up(state.keep.is_full());
        state.refill();
    }

    fn tell_lost(&self, lost: &keep::Lost) {
        if lost.any || !lost.objects.is_empty() {
            tracing::error!(
                objects = lost.objects.len(),
                any = lost.any,
                "confirmed operations were lost: their files give EIO once"
            );
            self.losses.lost(lost);
        }
    }

    /// The primary refused what had been answered early.
    fn tell_refused(&self, object: ObjectId, errno: i32) {
        tracing::error!(
            ?object,
            errno,
            "a change failed that had been answered: its file tells so once"
        );
        self.losses.refused(object, errno);
    }

    /// The session is over: what nobody was told of the losses is told by its end.
    fn nothing_untold(&self, early: bool) -> io::Result<()> {
        let untold = self.losses.tells_rest().or_else(|| early.then_some(EIO));
        let Some(errno) = untold else {
            return Ok(());
        };
        let error = io::Error::from_raw_os_error(errno);
        let sentence =
            format!("changes that had been answered were lost, and nobody was told: {error}");
        tracing::error!("{sentence}");
        Err(io::Error::other(sentence))
    }

    fn disconnected(&self, link: &Arc<Link>) {
        link.close();
        let mut state = self.state.lock();
        state.link = None;
        state.presenting = None;
        state.returns.clear();
        state.disconnected_since = Instant::now();
        // Whoever is about to end does not wait for the next primary.
        let gone = state.table.impatient(Instant::now(), false, dies);
        state.refill();
        drop(state);
        self.changed.notify_all();
        for waiter in gone {
            self.answer(Some(waiter), Outcome::Error(EINTR));
        }
    }

    /// Makes a welcomed connection the one in use and sends what is unanswered.
    fn take_into_use(&self, welcomed: Welcomed) -> io::Result<(Arc<Link>, FrameReader)> {
        let link = Link::start(welcomed.connection)?;
        tracing::info!(
            carrier = link.connection().carrier(),
            "connected to the primary"
        );
        let mut state = self.state.lock();
        let mut cache = self.cache.lock();
        let forget = cache.let_in(&welcomed.ends, state.seen, clock());
        drop(cache);
        self.have_forgotten(forget);
        if state.seen.0 != welcomed.term {
            state.seen = (welcomed.term, Sequence::ZERO); // it was told what another one confirmed
        }
        let mut failed = Vec::new();
        if !welcomed.known && state.confirmed {
            state.confirmed = false;
            failed = self.session_ended(&mut state);
        }
        let (leases, exclusive, early) = {
            let mut cache = self.cache.lock();
            cache.files_up_to(welcomed.object_bytes_max);
            let leases = cache.present(clock());
            (leases, cache.alone(), cache.early_under_way())
        };
        let welcome = Welcome {
            term: welcomed.term,
            ends: &welcomed.ends,
            gathers: welcomed.gathers,
            in_doubt: welcomed.in_doubt,
            leases: &leases,
            exclusive: &exclusive,
            early: &early,
        };
        let State { keep, table, .. } = &mut *state;
        let frames = keep.welcomed(welcome, table.unanswered());
        let lost = keep.take_lost();
        failed.extend(self.note_lost(&mut state, &lost));
        state.refused = false;
        // Before anybody else sends: what is presented comes first.
        for frame in &frames {
            link.queue(frame);
        }
        if !state.ended {
            state.link = Some(Arc::clone(&link));
            state.presenting = Some(welcomed.mark);
            self.end_presenting(&mut state);
        }
        drop(state);
        link.go();
        self.tell_lost(&lost);
        self.answer_all(failed);
        Ok((link, welcomed.frames))
    }

    /// The thread of deadlines.
    fn tick(self: &Arc<Self>) {
        loop {
            let mut state = self.state.lock();
            if state.ended {
                return;
            }
            self.changed.wait_for(&mut state, TICK);
            let now = Instant::now();
            let connected = state.link.is_some();
            let interrupted = state.table.impatient(now, connected, dies);
            let closes = |waiter: &Waiter| match waiter {
                Waiter::Kernel(waiting) => waiting.shape.is_close(),
                Waiter::Caller(_) | Waiter::Told(_) | Waiter::Flush => false,
            };
            let closed = state.table.need_not_wait(closes, now, connected);
            let mut failed = Vec::new();
            if let (None, Some(limit)) = (&state.link, self.config.no_primary_eio)
                && state.disconnected_since.elapsed() >= limit
            {
                failed = state.table.older_than(now);
            }
            self.keep_leases(&mut state);
            let link = state.refill();
            let link_check = state.link.clone().filter(|_| !state.ended);
            let mut ping = None;
            let mut doubted = false;
            if let Some(link) = &link_check {
                let silent_ms = link.silent_ms();
                if silent_ms >= DEAD_AFTER_MS {
                    tracing::warn!(silent_ms, "the primary gives no sign of life");
                    link.close();
                }
                let waiting = state.table.len() > 0;
                let patience = if waiting {
                    PING_WAITING_AFTER_MS
                } else {
                    PING_AFTER_MS
                };
                let pinged = now.duration_since(state.pinged).as_millis();
                if silent_ms >= patience && pinged >= u128::from(patience) {
                    state.pinged = now;
                    ping = Some(empty_frame(kind::PING));
                }
                doubted = waiting && silent_ms >= DOUBT_AFTER_MS;
            }
            drop(state);
            if let (Some(link), true) = (&link_check, doubted) {
                self.doubt(link);
            }
            go(link);
            if let (Some(link), Some(ping)) = (&link_check, ping) {
                link.send(&ping);
            }
            for waiter in interrupted {
                self.answer(Some(waiter), Outcome::Error(EINTR));
            }
            for waiter in failed {
                self.answer(Some(waiter), Outcome::Error(EIO));
            }
            for waiter in closed {
                self.answer(Some(waiter), Outcome::Done);
            }
        }
    }
}
