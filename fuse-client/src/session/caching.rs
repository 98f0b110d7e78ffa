//! The session's leases in use: what is asked and answered goes through [`super::leases`], and what
//! is recalled is forgotten by the kernel before it is given back.
//!
//! The kernel is told by a thread that holds nothing: it may have to wait for what an answer of this
//! mount ends.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use parking_lot::Mutex;
use protocol::fs::{Operation, Outcome, Recalled, Reply, offer};
use protocol::units::{ObjectId, Timestamp};
use rustix::time::{ClockId, clock_gettime};

use super::leases::{Cache, Forget, Fresh};
use super::table::Answered;
use super::{Session, Shared, State, Waiter, go};

/// A clock that goes on while the machine sleeps, as leases do at the primary.
pub(crate) fn clock() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0));
    seconds + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// When something was asked, and what it may change.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub(super) at: Duration,
    under_way: Option<UnderWay>,
}

/// A change on its way: what it may change is not answered from the cache before it is over.
#[derive(Debug)]
struct UnderWay {
    cache: Arc<Mutex<Cache>>,
    operation: Operation,
    objects: Vec<ObjectId>,
    early: bool,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut cache = self.cache.lock();
        cache.over(&self.operation, &self.objects, self.early);
    }
}

impl Asked {
    /// Something with so many bytes of data is asked; it may be answered `early`, if the cache says
    /// so: with what, and what the request says of it.
    pub(super) fn new(
        cache: &Arc<Mutex<Cache>>,
        operation: &Operation,
        bytes: usize,
        early: bool,
    ) -> (Self, Option<(Timestamp, Outcome)>) {
        let at = clock();
        let mut locked = cache.lock();
        let early = early.then(|| locked.early(operation, bytes, at)).flatten();
        let objects = locked.asks(operation, early.is_some(), at);
        drop(locked);
        let under_way = operation.changes().then(|| UnderWay {
            cache: Arc::clone(cache),
            operation: operation.clone(),
            objects,
            early: early.is_some(),
        });
        (Self { at, under_way }, early)
    }
}

impl Shared {
    /// What an answer says of leases, and how long the kernel may keep what it tells, if it is the
    /// kernel that asked.
    pub(super) fn keep_answer(
        &self,
        state: &State,
        answered: &mut Answered<Waiter>,
        reply: &Reply,
    ) -> Fresh {
        // From here on the cache may tell what it changed.
        answered.asked.under_way = None;
        let (asked, now) = (answered.asked.at, clock());
        let mut cache = self.cache.lock();
        cache.answered(&answered.operation, reply, asked, answered.again, now);
        let offered = cache.to_offer();
        let fresh = match &answered.waiter {
            Some(Waiter::Kernel(_)) => cache.fresh(&answered.operation, &reply.outcome, now),
            _ => Fresh::default(),
        };
        drop(cache);
        if !offered.is_empty() {
            state.queue(&[offer(&offered)]);
        }
        fresh
    }

    /// The primary recalls leases.
    pub(super) fn recalled(&self, recalled: Recalled) {
        let forget = self.cache.lock().recalled(recalled, clock());
        self.have_forgotten(Some(forget));
    }

    /// Has the kernel forget something, soon.
    pub(super) fn have_forgotten(&self, forget: Option<Forget>) {
        if let (Some(forget), Some(forgets)) = (forget, &*self.forgets.lock()) {
            // Its receiver lives as long as the sender.
            let _ = forgets.send(forget);
        }
    }

    /// The thread that has the kernel forget.
    pub(super) fn forget_all(&self, forgets: &Receiver<Forget>) {
        // Those of which the kernel may have names for a moment more.
        let mut waiting: Vec<(Forget, Vec<ObjectId>)> = Vec::new();
        loop {
            let first = waiting.iter().map(|(forget, _)| forget.names_until).min();
            let left = first.map_or(Duration::MAX, |first| first.saturating_sub(clock()));
            match forgets.recv_timeout(left) {
                Ok(forget) => {
                    let but = match self.replies.get() {
                        Some(replies) => replies.forget(&forget),
                        None => Vec::new(),
                    };
                    waiting.push((forget, but));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = clock();
            for (forget, but) in waiting.extract_if(.., |(forget, _)| forget.names_until <= now) {
                self.forgotten(&forget, &but);
            }
        }
    }

    /// The kernel has forgotten everything but this: the rest is given back.
    fn forgotten(&self, forget: &Forget, but: &[ObjectId]) {
        let mut state = self.state.lock();
        let given = self.cache.lock().gives_back(forget, but, clock());
        if let Some(given) = given {
            Self::return_leases(&mut state, &given);
        }
        let link = state.sending().cloned();
        drop(state);
        go(link);
    }

    fn return_leases(state: &mut State, given: &Recalled) {
        let frame = given.give_back();
        match (state.sending().is_some(), state.link.is_some()) {
            (true, _) => state.queue(&[frame]),
            // What is presented comes first.
            (false, true) => state.returns.push(frame),
            // It is not presented any more.
            (false, false) => {}
        }
    }

    /// So that leases do not run out while nobody asks anything; `go` follows.
    pub(super) fn keep_leases(&self, state: &mut State) {
        if state.sending().is_some() && self.cache.lock().wants_to_ask(clock()) {
            let object = ObjectId::ROOT;
            self.tell(state, Operation::GetAttributes { object });
        }
    }
}

impl Session {
    /// What is known of a question without asking.
    pub(crate) fn look(&self, operation: &Operation) -> Option<(Outcome, Fresh)> {
        self.shared.cache.lock().look(operation, clock())
    }

    /// What may be answered without asking.
    pub(crate) fn cache(&self) -> &Mutex<Cache> {
        &self.shared.cache
    }
}
