//! Clients that lock: what one was told to hold alone, nobody else was told to hold until it gave
//! it back, whatever happens to nodes, networks and power (FO-3).

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use protocol::fs::{LOCK_END_MAX, Lock, LockClass, LockKind, LockOwner, Operation, Outcome};

use super::client::Client;
use super::random::Random;
use super::work::Work;

const EAGAIN: i32 = 11;
/// The slot of a client's first locker; each has an owner of its own, too.
const SLOT: u16 = 50;
const LOCKERS: u16 = 2;
/// Longest time for which a lock is held.
const HELD_MS: u64 = 120;
/// Places in a file that are locked.
const PLACES: u64 = 4;

/// What clients were told to hold, and by which one.
type Held = Rc<RefCell<Vec<(usize, u64, usize, Lock)>>>;

/// See the module.
pub(crate) struct Lockers {
    work: Rc<Work>,
    random: Random,
    held: Held,
}

impl Lockers {
    pub(crate) fn new(work: &Rc<Work>, random: Random) -> Rc<Self> {
        Rc::new(Self {
            work: Rc::clone(work),
            random,
            held: Rc::default(),
        })
    }

    /// Begins with a client's.
    pub(crate) fn begin(self: &Rc<Self>, client: &Client) -> Vec<tokio::task::JoinHandle<()>> {
        let all = (SLOT..SLOT + LOCKERS).map(|slot| {
            let locker = Rc::clone(self).run(client.clone(), slot);
            tokio::task::spawn_local(locker)
        });
        all.collect()
    }

    async fn run(self: Rc<Self>, client: Client, slot: u16) {
        let mut ticket = u64::from(slot) << 32;
        while self.work.may_go_on(0..60).await {
            self.work.begins();
            ticket += 1;
            self.once(&client, slot, ticket).await;
            self.work.ends();
        }
    }

    async fn once(&self, client: &Client, slot: u16, ticket: u64) {
        let at = self.random.index(2);
        let object = self.work.locked_file(at);
        let id = u64::from(slot);
        let (a, b) = (self.random.within(0..PLACES), self.random.within(0..PLACES));
        let (class, start, end) = match at {
            0 => (LockClass::Ranges, a.min(b), a.max(b)),
            _ => (LockClass::Whole, 0, LOCK_END_MAX),
        };
        let kind = match self.random.one_in(3) {
            true => LockKind::Shared,
            false => LockKind::Exclusive,
        };
        let owner = LockOwner { class, id };
        let lock = Lock {
            owner,
            kind,
            start,
            end,
            pid: 1,
        };
        let waits = self.random.one_in(2);
        let mut awaited = 0;
        loop {
            let take = Operation::Lock {
                object,
                lock,
                ticket: awaited,
                waits,
            };
            match client.call(slot, take, Bytes::new()).await {
                Outcome::Done => break,
                Outcome::Error(EAGAIN) if !waits => return,
                Outcome::Error(EAGAIN) => {}
                other => return self.work.fail(format!("a lock ended with {other:?}")),
            }
            awaited = ticket;
            let wait = Operation::AwaitLock {
                object,
                lock,
                ticket,
            };
            match client.call(slot, wait, Bytes::new()).await {
                Outcome::Done => {}
                other => return self.work.fail(format!("a wait ended with {other:?}")),
            }
        }
        self.was_told(client, (at, id), lock);
        let held_ms = self.random.within(0..HELD_MS);
        tokio::time::sleep(Duration::from_millis(held_ms)).await;
        let mine = |h: &(usize, u64, usize, Lock)| (h.0, h.1, h.2) == (client.place, id, at);
        self.held.borrow_mut().retain(|h| !mine(h));
        let give = Operation::Unlock {
            object,
            owner,
            start: 0,
            end: LOCK_END_MAX,
        };
        match client.call(slot, give, Bytes::new()).await {
            Outcome::Done => {}
            other => self.work.fail(format!("to unlock ended with {other:?}")),
        }
    }

    fn was_told(&self, client: &Client, (at, id): (usize, u64), lock: Lock) {
        let mut held = self.held.borrow_mut();
        let other = held
            .iter()
            .find(|(_, _, of, other)| *of == at && other.clashes(&lock));
        if let Some((place, other_id, ..)) = other {
            self.work.fail(format!(
                "client{} was told that {id} holds {lock:?}, which {other_id} of client{place} holds",
                client.place
            ));
        }
        held.push((client.place, id, at, lock));
    }

    /// In the end nobody holds anything.
    pub(crate) async fn check(&self, client: &Client, slot: u16) {
        for at in 0..2 {
            let class = [LockClass::Ranges, LockClass::Whole][at];
            let lock = Lock {
                owner: LockOwner { class, id: 0 },
                kind: LockKind::Exclusive,
                start: 0,
                end: LOCK_END_MAX,
                pid: 1,
            };
            let object = self.work.locked_file(at);
            let test = Operation::TestLock { object, lock };
            let found = client.call(slot, test, Bytes::new()).await;
            if found != Outcome::Lock(None) {
                self.work.fail(format!("a lock is left: {found:?}"));
            }
        }
    }
}
