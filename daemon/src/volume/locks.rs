//! Who waits for a lock at this primary. What is held stands in the volume's keys; here is only the
//! queue (`namespace::locks::Waits`), which ends with the role: each mount asks again at the next
//! primary.

use bytes::Bytes;
use namespace::ExecuteError;
use namespace::locks::{
    Acquired, Called, Held as HeldLock, Refusal, Waits, Wanted, locks_of, release_locks,
    released_object,
};
use protocol::fs::{Operation, Outcome, Request, SLOT_NONE};
use protocol::ids::SessionId;
use protocol::units::ObjectId;
use storage::{Medium, ReadError};

use super::clients::EIO;
use super::driver::Driver;
use super::held::PendingReply;
use super::keys::Keys;
use super::leases::Leased;

const EAGAIN: i32 = 11;
/// Keys of locks that one record deletes: well below what a record may have.
const RELEASED_AT_ONCE: usize = 2048;

/// What a primary knows of locks besides the volume's keys.
#[derive(Default)]
pub(super) struct Locks {
    waits: Waits,
    /// Locks of sessions that ended could not be released, and are still to be.
    left_over: bool,
}

impl Locks {
    /// This replica is primary no more.
    pub(super) fn stop(&mut self) {
        self.waits.clear();
        self.left_over = false;
    }
}

impl<M: Medium> Driver<M> {
    fn locks_of(&self, object: ObjectId) -> Result<Vec<HeldLock>, ExecuteError<ReadError>> {
        locks_of(&Keys(&self.brick), object)
    }

    fn cannot_read_locks(&self, error: &ExecuteError<ReadError>) {
        tracing::error!(volume = %self.spec.name, %error, "locks cannot be read");
        let text = format!("a lock was refused with an error: {error}");
        self.host.event("metadata_damaged", &self.spec.name, &text);
    }

    /// What the queue has to say to a request before it is executed: an errno for one that others
    /// go before.
    pub(super) fn refuse_lock(&self, session: SessionId, request: &Request) -> Option<i32> {
        let Operation::Lock {
            object,
            lock,
            waits,
            ..
        } = &request.operation
        else {
            return None;
        };
        if !self.locks.waits.has(*object) {
            return None;
        }
        match self.locks_of(*object) {
            Ok(held) => {
                let queue = &self.locks.waits;
                let back = queue.hold_back(session, *object, lock, *waits, &held);
                back.then_some(EAGAIN)
            }
            Err(error) => {
                self.cannot_read_locks(&error);
                Some(EIO)
            }
        }
    }

    /// Takes a request that is answered when a lock can be taken. False: it is another one.
    pub(super) fn take_wait(&mut self, session: SessionId, request: &Request) -> bool {
        let Operation::AwaitLock {
            object,
            lock,
            ticket,
        } = request.operation
        else {
            return false;
        };
        let number = request.number;
        let wanted = Wanted {
            session,
            number,
            ticket,
            object,
            lock,
        };
        let brick = &self.brick;
        let held = |object| locks_of(&Keys(brick), object);
        let errno = match self.locks.waits.add(wanted, &held) {
            Ok(Ok(news)) => {
                self.call_waits(news);
                self.call_waits([object]);
                return true;
            }
            Ok(Err(refusal)) => refusal.errno(),
            Err(error) => {
                self.locks.waits.forget(session, ticket);
                self.cannot_read_locks(&error);
                EIO
            }
        };
        self.answer_wait(Called { session, number }, Outcome::Error(errno));
        true
    }

    /// A request was carried out: who waited for a lock may take it now.
    pub(super) fn after_locking(&mut self, session: SessionId, operation: &Operation) {
        match operation {
            Operation::Lock {
                object,
                lock,
                ticket,
                ..
            } => {
                self.locks.waits.forget(session, *ticket);
                let brick = &self.brick;
                let held = |object| locks_of(&Keys(brick), object);
                match self.locks.waits.acquired(session, lock.owner, &held) {
                    Ok(Acquired { news, deadlocked }) => {
                        let errno = Refusal::Deadlock.errno();
                        for told in deadlocked {
                            self.answer_wait(told, Outcome::Error(errno));
                        }
                        self.call_waits(news);
                    }
                    Err(error) => self.cannot_read_locks(&error),
                }
                self.call_waits([*object]);
            }
            Operation::Unlock { object, .. } => self.call_waits([*object]),
            Operation::ForgetLock { ticket } => {
                let news = self.locks.waits.forget(session, *ticket);
                self.call_waits(news);
            }
            _ => {}
        }
    }

    /// The connection of a session ended, or another one took its place: whoever waits there, for
    /// a lock or with a change for leases of others, asks again.
    pub(super) fn forget_waits(&mut self, session: SessionId) {
        let news = self.locks.waits.forget_session(session);
        self.call_waits(news);
        self.leasing.forget_aside(session);
    }

    /// A session ended, and with it what it had locked. False: the rest is released later.
    pub(super) fn release_locks_of(&mut self, session: SessionId) -> bool {
        let mut news = self.locks.waits.forget_session(session);
        let released = loop {
            let changes = match release_locks(&Keys(&self.brick), session, RELEASED_AT_ONCE) {
                Ok(changes) => changes,
                Err(error) => {
                    tracing::error!(%error, "the locks of a session that ended cannot be read");
                    break false;
                }
            };
            if changes.is_empty() {
                break true;
            }
            news.extend(changes.iter().filter_map(released_object));
            if let Err(error) = self.order(changes, Bytes::new()) {
                tracing::warn!(%error, "the locks of a session that ended are released later");
                break false;
            }
        };
        self.locks.left_over |= !released;
        news.sort_unstable();
        news.dedup();
        self.call_waits(news);
        released
    }

    /// With each tick.
    pub(super) fn release_left_over_locks(&mut self) {
        if self.locks.left_over {
            self.release_stray_locks();
        }
    }

    /// Releases what sessions had locked that ended. A primary that takes up the volume cannot know
    /// whether its predecessor died between the two.
    pub(super) fn release_stray_locks(&mut self) {
        self.locks.left_over = false;
        let sessions = match namespace::locks::sessions_with_locks(&Keys(&self.brick)) {
            Ok(sessions) => sessions,
            Err(error) => {
                tracing::error!(%error, "the sessions with locks cannot be read");
                return;
            }
        };
        for session in sessions {
            if !self.sessions.by_id.contains_key(&session) {
                self.release_locks_of(session);
            }
        }
    }

    fn call_waits(&mut self, objects: impl IntoIterator<Item = ObjectId>) {
        for object in objects {
            if !self.locks.waits.has(object) {
                continue;
            }
            match self.locks_of(object) {
                Ok(held) => {
                    for called in self.locks.waits.call(object, &held) {
                        self.answer_wait(called, Outcome::Done);
                    }
                }
                Err(error) => self.cannot_read_locks(&error),
            }
        }
    }

    fn answer_wait(&mut self, called: Called, outcome: Outcome) {
        let sequence = self.machine.last();
        self.reply_when_confirmed(PendingReply {
            session: called.session,
            slot: SLOT_NONE,
            number: called.number,
            sequence,
            since: None,
            changed: false,
            leased: Leased::default(),
            outcome,
        });
    }
}
