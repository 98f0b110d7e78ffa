//! Locks: flock(2), and fcntl(2)'s of processes and of open files.
//!
//! ```text
//!  SETLK ──▶ Lock ──▶ Done, or the errno
//! SETLKW ──▶ Lock ──▶ Done
//!              │ EAGAIN   ▲
//!              ▼          │ Lock with the ticket (EAGAIN: wait again)
//!           AwaitLock ──▶ Done
//! ```
//!
//! Only *Lock* takes anything, in a slot like each change. A wait has no slot and holds nothing, so
//! a signal ends it at once, and after a change of the primary it is asked again.

use bytes::Bytes;
use protocol::fs::{
    Caller, LOCK_END_MAX, Lock, LockClass, LockKind, LockOwner, Operation, Outcome,
};
use protocol::units::ObjectId;

use super::{EAGAIN, EINVAL, EIO, FileSystem, Shape};
use crate::abi::{Body, Fields, InHeader, ShortRequest, lk, opcode};
use crate::session::{Key, Range, Waiting};

/// A request for a lock, until it is answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask {
    thread: u32,
    handle: u64,
    object: ObjectId,
    lock: Lock,
    waits: bool,
    /// It was waited for under this number; 0: not yet.
    ticket: u64,
}

impl Ask {
    fn key(&self) -> (ObjectId, LockOwner) {
        (self.object, self.lock.owner)
    }

    /// The same process asks again, by its request.
    fn who(&self, unique: u64) -> Who {
        let thread = self.thread;
        Who { unique, thread }
    }
}

/// The request that is to be answered, and the thread that waits for it.
#[derive(Debug, Clone, Copy)]
struct Who {
    unique: u64,
    thread: u32,
}

impl From<&InHeader> for Who {
    fn from(header: &InHeader) -> Self {
        Self {
            unique: header.unique,
            thread: header.thread,
        }
    }
}

/// `fuse_lk_in`.
struct Request {
    handle: u64,
    owner: LockOwner,
    start: u64,
    end: u64,
    kind: u32,
    pid: u32,
}

fn request(fields: &mut Fields<'_>) -> Result<Request, ShortRequest> {
    let (handle, owner) = (fields.u64()?, fields.u64()?);
    let (start, end) = (fields.u64()?, fields.u64()?);
    let (kind, pid) = (fields.u32()?, fields.u32()?);
    let whole = fields.u32()? & lk::FLOCK != 0;
    Ok(Request {
        handle,
        // The kernel's number of an open file may be another one's in a moment; ours never is.
        owner: if whole {
            LockOwner {
                class: LockClass::Whole,
                id: handle,
            }
        } else {
            process(owner)
        },
        start,
        end: end.min(LOCK_END_MAX),
        kind,
        pid,
    })
}

/// The owner of fcntl(2) locks, as the kernel numbers it.
fn process(id: u64) -> LockOwner {
    let class = LockClass::Ranges;
    LockOwner { class, id }
}

fn kind_of(kind: u32) -> Option<LockKind> {
    match kind {
        lk::SHARED => Some(LockKind::Shared),
        lk::EXCLUSIVE => Some(LockKind::Exclusive),
        _ => None,
    }
}

fn everything(object: ObjectId, owner: LockOwner) -> Operation {
    Operation::Unlock {
        object,
        owner,
        start: 0,
        end: LOCK_END_MAX,
    }
}

/// `fuse_lk_out`.
pub(super) fn body_of(lock: Option<&Lock>) -> Body {
    let mut body = Body::with_capacity(24);
    match lock {
        None => body.u64(0).u64(0).u32(lk::NONE).u32(0),
        Some(lock) => {
            let kind = match lock.kind {
                LockKind::Shared => lk::SHARED,
                LockKind::Exclusive => lk::EXCLUSIVE,
            };
            body.u64(lock.start).u64(lock.end).u32(kind).u32(lock.pid)
        }
    };
    body
}

impl FileSystem {
    /// GETLK, SETLK and SETLKW.
    pub(super) fn lock(
        &self,
        header: &InHeader,
        fields: &mut Fields<'_>,
    ) -> Result<(), ShortRequest> {
        let asked = request(fields)?;
        let object = self.object(header.node);
        let kind = kind_of(asked.kind);
        if asked.start > asked.end || (kind.is_none() && asked.kind != lk::NONE) {
            self.refuse(header, EINVAL);
            return Ok(());
        }
        let Some(kind) = kind else {
            let (owner, start, end) = (asked.owner, asked.start, asked.end);
            let (key, range) = ((object, owner), (start, end));
            self.session.locks().gives_back(key, range);
            let unlock = Operation::Unlock {
                object,
                owner,
                start,
                end,
            };
            let shape = Shape::Unlocked(Box::new((key, range)));
            self.submit_lock(header.into(), None, unlock, shape);
            return Ok(());
        };
        let lock = Lock {
            owner: asked.owner,
            kind,
            start: asked.start,
            end: asked.end,
            pid: asked.pid,
        };
        if header.opcode == opcode::GETLK {
            let test = Operation::TestLock { object, lock };
            self.submit_lock(header.into(), Some(asked.handle), test, Shape::LockTest);
            return Ok(());
        }
        let ask = Ask {
            thread: header.thread,
            handle: asked.handle,
            object,
            lock,
            waits: header.opcode == opcode::SETLKW,
            ticket: 0,
        };
        self.session.locks().asks(ask.handle, ask.key());
        self.take_lock(header.unique, ask);
        Ok(())
    }

    fn submit_lock(&self, who: Who, through: Option<u64>, operation: Operation, shape: Shape) {
        let waiting = Waiting {
            unique: who.unique,
            thread: who.thread,
            through,
            shape,
        };
        self.session
            .submit(waiting, Caller::default(), operation, Bytes::new());
    }

    fn take_lock(&self, unique: u64, ask: Ask) {
        let take = Operation::Lock {
            object: ask.object,
            lock: ask.lock,
            ticket: ask.ticket,
            waits: ask.waits,
        };
        let shape = Shape::Lock(Box::new(ask));
        self.submit_lock(ask.who(unique), Some(ask.handle), take, shape);
    }

    fn await_lock(&self, unique: u64, mut ask: Ask) {
        if ask.ticket == 0 {
            ask.ticket = self.new_handle();
        }
        let wait = Operation::AwaitLock {
            object: ask.object,
            lock: ask.lock,
            ticket: ask.ticket,
        };
        let shape = Shape::LockWait(Box::new(ask));
        self.submit_lock(ask.who(unique), Some(ask.handle), wait, shape);
    }

    /// The answer to *Lock*.
    pub(super) fn lock_taken(&self, unique: u64, ask: Ask, outcome: &Outcome) {
        match outcome {
            Outcome::Error(EAGAIN) if ask.waits => {
                // As Linux does: who changes the kind of a flock(2) lock and has to wait gives back
                // what it has, so that two who do that do not wait for each other.
                let key = ask.key();
                if key.1.class == LockClass::Whole && self.session.locks().holds(key) {
                    self.session.locks().gives_back(key, (0, LOCK_END_MAX));
                    self.session.tell(everything(key.0, key.1));
                }
                self.await_lock(unique, ask);
            }
            other => self.end_ask(unique, ask, other),
        }
    }

    /// The answer to *AwaitLock*.
    pub(super) fn lock_awaited(&self, unique: u64, ask: Ask, outcome: &Outcome) {
        match outcome {
            Outcome::Done => self.take_lock(unique, ask),
            other => self.end_ask(unique, ask, other),
        }
    }

    fn end_ask(&self, unique: u64, ask: Ask, outcome: &Outcome) {
        let granted = *outcome == Outcome::Done;
        let Ask {
            handle,
            object,
            ticket,
            ..
        } = ask;
        self.session
            .lock_answered(handle, object, &ask.lock, ticket, granted);
        let errno = match outcome {
            Outcome::Done => 0,
            Outcome::Error(errno) => *errno,
            other => {
                tracing::error!(?other, "the primary answered something else");
                EIO
            }
        };
        self.reply(unique, errno, &[]);
    }

    /// The answer to *Unlock*.
    pub(super) fn unlocked(&self, unique: u64, (key, range): (Key, Range), outcome: &Outcome) {
        let errno = match outcome {
            Outcome::Error(errno) => *errno,
            _ => 0,
        };
        if errno != 0 {
            self.session.locks().keeps(key, range);
        }
        self.reply(unique, errno, &[]);
    }

    /// A process closes a file: its fcntl(2) locks of it go before the close returns. False: it has
    /// none, and nothing was asked. `told`: the error that the close is answered with.
    pub(super) fn unlock_at_close(&self, header: &InHeader, owner: u64, told: Option<i32>) -> bool {
        let (object, owner) = (self.object(header.node), process(owner));
        if !self.session.locks().closes((object, owner)) {
            return false;
        }
        let shape = Shape::Closed { told };
        self.submit_lock(header.into(), None, everything(object, owner), shape);
        true
    }

    /// An open file is gone, and every lock with it that is left.
    pub(super) fn unlock_released(&self, handle: u64, object: ObjectId) {
        for owner in self.session.locks().released(handle, object) {
            self.session.tell(everything(object, owner));
        }
    }
}
