//! Locks against slow models: a table of bytes for what is held, threads of applications for who
//! waits.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use bytes::Bytes;
use proptest::prelude::*;
use protocol::fs::{
    Caller, LOCK_END_MAX, Lock, LockClass, LockKind, LockOwner, Operation, Outcome, Request,
    SLOT_NONE,
};
use protocol::ids::SessionId;
use protocol::units::{ObjectId, Timestamp};

use super::{
    Acquired, Called, Held, RANGES_PER_OWNER_MAX, Refusal, WAITS_OF_SESSION_MAX,
    WAITS_PER_OBJECT_OF_SESSION_MAX, Waits, Wanted, locks_of, release_locks, released_object,
    sessions_with_locks,
};
use crate::errno::{EAGAIN, ENOLCK, ESTALE};
use crate::memory::MemoryVolume;

const A: SessionId = SessionId([1; 16]);
const B: SessionId = SessionId([0xff; 16]);
/// It exists in each new volume, and directories can be locked as files can.
const OBJECT: ObjectId = ObjectId::ROOT;

fn ranges(id: u64) -> LockOwner {
    let class = LockClass::Ranges;
    LockOwner { class, id }
}

fn lock(owner: LockOwner, kind: LockKind, start: u64, end: u64) -> Lock {
    let pid = 7;
    Lock {
        owner,
        kind,
        start,
        end,
        pid,
    }
}

fn exclusive(owner: u64, at: u64) -> Lock {
    lock(ranges(owner), LockKind::Exclusive, at, at)
}

fn shared(owner: u64, at: u64) -> Lock {
    lock(ranges(owner), LockKind::Shared, at, at)
}

/// A volume that sessions ask for locks.
struct Bench {
    volume: MemoryVolume,
    number: u64,
}

impl Bench {
    fn new() -> Self {
        Self {
            volume: MemoryVolume::new(Timestamp(1)),
            number: 0,
        }
    }

    fn ask(&mut self, session: SessionId, operation: Operation) -> Outcome {
        self.number += 1;
        let request = Request {
            slot: if operation.changes() { 0 } else { SLOT_NONE },
            number: self.number,
            caller: Caller::default(),
            operation,
            early: None,
            payload: Bytes::new(),
        };
        let new = ObjectId(1000 + self.number);
        let served = self
            .volume
            .serve(session, new, Timestamp(2), &|_| true, &request);
        served.expect("memory")
    }

    fn take_of(&mut self, session: SessionId, object: ObjectId, lock: Lock) -> Outcome {
        let operation = Operation::Lock {
            object,
            lock,
            ticket: 0,
            waits: false,
        };
        self.ask(session, operation)
    }

    fn take(&mut self, session: SessionId, lock: Lock) -> Outcome {
        self.take_of(session, OBJECT, lock)
    }

    fn give(&mut self, session: SessionId, owner: LockOwner, start: u64, end: u64) -> Outcome {
        let operation = Operation::Unlock {
            object: OBJECT,
            owner,
            start,
            end,
        };
        self.ask(session, operation)
    }

    fn test(&mut self, session: SessionId, lock: Lock) -> Option<Lock> {
        let object = OBJECT;
        match self.ask(session, Operation::TestLock { object, lock }) {
            Outcome::Lock(lock) => lock,
            other => panic!("{other:?}"),
        }
    }

    fn held(&self) -> Vec<Held> {
        locks_of(&self.volume, OBJECT).expect("memory")
    }

    /// Ends a session in pieces; how many there were.
    fn end(&mut self, session: SessionId, changes_max: usize) -> usize {
        for piece in 0.. {
            let changes = release_locks(&self.volume, session, changes_max).expect("memory");
            if changes.is_empty() {
                return piece;
            }
            assert!(changes.len() <= changes_max + 1);
            let objects: Vec<_> = changes.iter().filter_map(released_object).collect();
            assert!(
                objects.iter().all(|object| *object == OBJECT),
                "{objects:?}"
            );
            self.volume.apply(&changes, &Bytes::new());
        }
        unreachable!("it ends")
    }
}

#[test]
fn who_asks_what_is_in_the_way_learns_the_process_only_in_its_own_session() {
    let mut bench = Bench::new();
    assert_eq!(bench.take(A, exclusive(1, 5)), Outcome::Done);
    assert_eq!(bench.test(A, exclusive(1, 5)), None, "its own");
    assert_eq!(bench.test(A, exclusive(2, 5)).map(|l| l.pid), Some(7));
    assert_eq!(bench.test(B, exclusive(1, 5)).map(|l| l.pid), Some(0));
    assert_eq!(bench.test(B, shared(1, 4)), None);
    assert_eq!(bench.take(B, shared(1, 5)), Outcome::Error(EAGAIN));
    let whole = LockOwner {
        class: LockClass::Whole,
        id: 1,
    };
    let flock = lock(whole, LockKind::Exclusive, 0, LOCK_END_MAX);
    assert_eq!(bench.take(B, flock), Outcome::Done, "another class");
    assert_eq!(bench.take(A, flock), Outcome::Error(EAGAIN));
}

#[test]
fn a_lock_is_given_back_although_its_object_is_gone_and_not_taken() {
    let mut bench = Bench::new();
    let object = ObjectId(77);
    let outcome = bench.take_of(A, object, exclusive(1, 0));
    assert_eq!(outcome, Outcome::Error(ESTALE));
    let back = Operation::Unlock {
        object,
        owner: ranges(1),
        start: 0,
        end: 9,
    };
    assert_eq!(bench.ask(A, back), Outcome::Done);
}

#[test]
fn one_lock_too_many_is_refused_and_everything_can_be_given_back() {
    let mut bench = Bench::new();
    for at in 0..RANGES_PER_OWNER_MAX as u64 {
        assert_eq!(bench.take(A, exclusive(1, 2 * at)), Outcome::Done);
    }
    let before = bench.volume.clone();
    assert_eq!(bench.take(A, exclusive(1, 1 << 40)), Outcome::Error(ENOLCK));
    assert_eq!(bench.volume, before);
    assert_eq!(
        bench.take(A, exclusive(1, 1)),
        Outcome::Done,
        "it joins two"
    );
    assert_eq!(bench.give(A, ranges(1), 0, LOCK_END_MAX), Outcome::Done);
    assert_eq!(bench.held(), []);
    assert_eq!(sessions_with_locks(&bench.volume).expect("memory"), []);
}

#[test]
fn an_ended_session_leaves_no_lock_and_others_keep_theirs() {
    for changes_max in [1, 2, 3, 7, 100] {
        let mut bench = Bench::new();
        let empty = bench.volume.clone();
        for at in 0..10 {
            assert_eq!(bench.take(A, exclusive(at % 3, 2 * at)), Outcome::Done);
            assert_eq!(bench.take(B, exclusive(9, 2 * at + 1)), Outcome::Done);
        }
        let sessions = sessions_with_locks(&bench.volume);
        assert_eq!(sessions.expect("memory"), [A, B]);
        assert!(bench.end(A, changes_max) >= 1);
        let held = bench.held();
        assert_eq!(held.len(), 10);
        assert!(held.iter().all(|h| h.session == B));
        assert_eq!(sessions_with_locks(&bench.volume).expect("memory"), [B]);
        bench.end(B, changes_max);
        let copies = [A, B].map(|session| crate::end_session(&bench.volume, session));
        for changes in copies {
            bench.volume.apply(&changes.expect("memory"), &Bytes::new());
        }
        assert_eq!(bench.volume, empty, "not a key is left");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn sessions_hold_what_a_table_of_bytes_says(
        steps in prop::collection::vec(
            (0..2_usize, 0..2_u64, any::<bool>(), 0..8_u64, 0..8_u64, 0..3_u8), 1..60)
    ) {
        let mut bench = Bench::new();
        // By class and byte: who holds it, and how.
        let mut table: BTreeMap<(LockClass, u64), BTreeMap<(usize, u64), LockKind>> = BTreeMap::new();
        for (session, id, whole, a, b, what) in steps {
            let class = if whole { LockClass::Whole } else { LockClass::Ranges };
            let owner = LockOwner { class, id };
            let (start, end) = (a.min(b), a.max(b));
            let of = [A, B][session];
            let kind = match what {
                0 => {
                    prop_assert_eq!(bench.give(of, owner, start, end), Outcome::Done);
                    for at in start..=end {
                        table.entry((class, at)).or_default().remove(&(session, id));
                    }
                    continue;
                }
                1 => LockKind::Shared,
                _ => LockKind::Exclusive,
            };
            let clashes = (start..=end).any(|at| {
                let others = table.get(&(class, at)).into_iter().flatten();
                let mut others = others.filter(|(holder, _)| **holder != (session, id));
                others.any(|(_, k)| LockKind::Exclusive == *k || LockKind::Exclusive == kind)
            });
            let wanted = lock(owner, kind, start, end);
            prop_assert_eq!(bench.test(of, wanted).is_some(), clashes);
            let outcome = bench.take(of, wanted);
            prop_assert_eq!(outcome, if clashes { Outcome::Error(EAGAIN) } else { Outcome::Done });
            if !clashes {
                for at in start..=end {
                    table.entry((class, at)).or_default().insert((session, id), kind);
                }
            }
        }
        let held = bench.held();
        for ((class, at), holders) in table {
            let found: BTreeMap<(usize, u64), LockKind> = held.iter()
                .filter(|h| h.lock.owner.class == class && h.lock.start <= at && at <= h.lock.end)
                .map(|h| ((usize::from(h.session == B), h.lock.owner.id), h.lock.kind))
                .collect();
            prop_assert_eq!(found, holders);
        }
    }
}

// ---- who waits -----------------------------------------------------------------------------------

/// A primary's locks and queue, without anything else.
#[derive(Default)]
struct Queue {
    held: BTreeMap<ObjectId, Vec<Held>>,
    waits: Waits,
    ticket: u64,
    called: BTreeSet<u64>,
    deadlocked: BTreeSet<u64>,
}

impl Queue {
    fn of(&self, object: ObjectId) -> Vec<Held> {
        self.held.get(&object).cloned().unwrap_or_default()
    }

    fn call(&mut self, objects: impl IntoIterator<Item = ObjectId>) {
        for object in objects {
            let held = self.of(object);
            for Called { number, .. } in self.waits.call(object, &held) {
                assert!(self.called.insert(number), "told twice");
            }
        }
    }

    /// Takes a lock of the whole object if nothing keeps it from that.
    fn take(&mut self, session: SessionId, object: ObjectId, lock: Lock, waits: bool) -> bool {
        let held = self.of(object);
        let holds_back = self.waits.hold_back(session, object, &lock, waits, &held);
        if holds_back || held.iter().any(|h| h.is_in_the_way_of(session, &lock)) {
            return false;
        }
        let locks = self.held.entry(object).or_default();
        locks.retain(|h| (h.session, h.lock.owner) != (session, lock.owner));
        locks.push(Held { session, lock });
        let all = self.held.clone();
        let of =
            |object: ObjectId| Ok::<_, Infallible>(all.get(&object).cloned().unwrap_or_default());
        let Ok(Acquired { news, deadlocked }) = self.waits.acquired(session, lock.owner, &of);
        for Called { number, .. } in deadlocked {
            assert!(self.deadlocked.insert(number), "told twice");
        }
        // It may have become weaker.
        self.call(news.into_iter().chain([object]));
        true
    }

    fn give(&mut self, session: SessionId, object: ObjectId, owner: LockOwner) {
        let locks = self.held.entry(object).or_default();
        locks.retain(|h| (h.session, h.lock.owner) != (session, owner));
        self.call([object]);
    }

    /// Waits; returns the ticket.
    fn wait(&mut self, session: SessionId, object: ObjectId, lock: Lock) -> Result<u64, Refusal> {
        self.ticket += 1;
        let wanted = Wanted {
            session,
            number: self.ticket,
            ticket: self.ticket,
            object,
            lock,
        };
        let all = self.held.clone();
        let of =
            |object: ObjectId| Ok::<_, Infallible>(all.get(&object).cloned().unwrap_or_default());
        let Ok(added) = self.waits.add(wanted, &of);
        let news = added?;
        self.call(news.into_iter().chain([object]));
        Ok(self.ticket)
    }

    /// Who was called takes its lock.
    fn take_called(&mut self, session: SessionId, object: ObjectId, lock: Lock, ticket: u64) {
        assert!(self.called.contains(&ticket), "it was called");
        assert!(self.take(session, object, lock, true), "it is reserved");
        assert_eq!(self.waits.forget(session, ticket), Some(object));
        self.call([object]);
    }
}

#[test]
fn who_waits_longer_goes_first_and_readers_do_not_starve_a_writer() {
    let mut queue = Queue::default();
    let (read, write) = (|id| shared(id, 0), |id| exclusive(id, 0));
    assert!(queue.take(A, OBJECT, read(1), false));
    let writer = queue.wait(B, OBJECT, write(2)).expect("no ring");
    assert!(!queue.take(A, OBJECT, read(3), true), "the writer is first");
    let reader = queue.wait(A, OBJECT, read(3)).expect("no ring");
    assert!(
        queue.take(B, OBJECT, read(4), false),
        "who does not wait may"
    );
    assert!(queue.take(A, OBJECT, read(1), true), "it has that already");
    queue.give(B, OBJECT, ranges(4));
    assert!(queue.called.is_empty());
    queue.give(A, OBJECT, ranges(1));
    assert_eq!(queue.called, BTreeSet::from([writer]));
    assert!(!queue.take(A, OBJECT, read(5), false), "it is reserved");
    queue.take_called(B, OBJECT, write(2), writer);
    assert!(!queue.called.contains(&reader));
    queue.give(B, OBJECT, ranges(2));
    assert!(queue.called.contains(&reader));
    queue.take_called(A, OBJECT, read(3), reader);
    assert!(queue.waits.is_empty());
}

#[test]
fn a_reservation_ends_with_its_connection_and_the_next_one_is_called() {
    let mut queue = Queue::default();
    assert!(queue.take(A, OBJECT, exclusive(1, 0), false));
    let first = queue.wait(B, OBJECT, exclusive(2, 0)).expect("no ring");
    let second = queue.wait(A, OBJECT, exclusive(3, 0)).expect("no ring");
    queue.give(A, OBJECT, ranges(1));
    assert_eq!(queue.called, BTreeSet::from([first]));
    let news = queue.waits.forget_session(B);
    queue.call(news);
    assert_eq!(queue.called, BTreeSet::from([first, second]));
    queue.take_called(A, OBJECT, exclusive(3, 0), second);
}

#[test]
fn two_that_wait_for_each_other_across_sessions_are_told() {
    let mut queue = Queue::default();
    let other = ObjectId(2);
    assert!(queue.take(A, OBJECT, exclusive(1, 0), false));
    assert!(queue.take(B, other, exclusive(1, 0), false));
    let waits = queue.wait(A, other, exclusive(1, 0)).expect("not yet");
    let ring = queue.wait(B, OBJECT, exclusive(1, 0));
    assert_eq!(ring, Err(Refusal::Deadlock));
    queue.give(B, other, ranges(1));
    queue.take_called(A, other, exclusive(1, 0), waits);
    // Two readers of one range that both want to write.
    let mut queue = Queue::default();
    assert!(queue.take(A, OBJECT, shared(1, 0), false));
    assert!(queue.take(B, OBJECT, shared(1, 0), false));
    queue.wait(A, OBJECT, exclusive(1, 0)).expect("not yet");
    let ring = queue.wait(B, OBJECT, exclusive(1, 0));
    assert_eq!(ring, Err(Refusal::Deadlock));
}

#[test]
fn who_waits_for_ever_as_another_got_a_lock_first_is_told() {
    // 1 waits for what 2 has; 2 waits for what 9 has. 9 gives it back, and before 2 has come for
    // it, another thread of 1 takes it.
    let mut queue = Queue::default();
    let other = ObjectId(2);
    assert!(queue.take(B, OBJECT, exclusive(2, 0), false));
    assert!(queue.take(A, other, shared(9, 0), false));
    let first = queue.wait(A, OBJECT, exclusive(1, 0)).expect("no ring");
    let second = queue.wait(B, other, exclusive(2, 0)).expect("no ring");
    assert!(queue.take(A, other, shared(1, 0), false), "others read too");
    assert_eq!(queue.deadlocked, BTreeSet::from([second]));
    queue.give(B, OBJECT, ranges(2));
    assert!(queue.called.contains(&first));
    assert_eq!(queue.waits.forget(B, second), None, "it waits no more");
}

#[test]
fn two_threads_of_an_owner_that_are_called_both_get_their_locks() {
    let mut queue = Queue::default();
    assert!(queue.take(B, OBJECT, exclusive(9, 0), false));
    let first = queue.wait(A, OBJECT, exclusive(2, 0)).expect("no ring");
    let second = queue.wait(A, OBJECT, shared(2, 0)).expect("no ring");
    queue.wait(B, OBJECT, exclusive(3, 0)).expect("no ring");
    queue.give(B, OBJECT, ranges(9));
    assert_eq!(queue.called, BTreeSet::from([first, second]));
    queue.take_called(A, OBJECT, shared(2, 0), second);
    queue.take_called(A, OBJECT, exclusive(2, 0), first);
}

#[test]
fn one_session_cannot_keep_others_from_waiting() {
    let mut queue = Queue::default();
    assert!(queue.take(B, OBJECT, exclusive(1, 0), false));
    let mut waits = 0;
    for object in 1.. {
        let object = ObjectId(object);
        assert!(object == OBJECT || queue.take(B, object, exclusive(1, 0), false));
        let of_object = (0..).take_while(|id| queue.wait(A, object, shared(*id, 0)).is_ok());
        waits += of_object.count();
        if waits >= WAITS_OF_SESSION_MAX {
            break;
        }
        assert_eq!(waits % WAITS_PER_OBJECT_OF_SESSION_MAX, 0);
    }
    assert_eq!(waits, WAITS_OF_SESSION_MAX);
    let other = SessionId([3; 16]);
    assert!(queue.wait(other, OBJECT, shared(1, 0)).is_ok());
    queue.waits.forget_session(A);
    assert_eq!(queue.waits.len(), 1);
    assert!(queue.wait(A, OBJECT, shared(1, 0)).is_ok(), "it may again");
}

#[test]
fn nobody_waits_for_a_writer_that_waits_for_him() {
    // 1 reads the first object. A writer waits for it, who holds nothing. 2 reads the second one and
    // waits for the first one behind the writer. 1 wants the second one: a ring of our own making.
    let mut queue = Queue::default();
    let other = ObjectId(2);
    assert!(queue.take(A, OBJECT, shared(1, 0), false));
    assert!(queue.take(B, other, exclusive(2, 0), false));
    queue.wait(A, OBJECT, exclusive(9, 0)).expect("no ring");
    let behind = queue.wait(B, OBJECT, shared(2, 0)).expect("no ring");
    assert!(queue.called.is_empty());
    queue.wait(A, other, exclusive(1, 0)).expect("no deadlock");
    assert_eq!(queue.called, BTreeSet::from([behind]));
}

/// An application's thread in the model: each process has two.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Thread {
    Runs,
    Waits(ObjectId, Lock, u64),
}

fn session_of(process: u64) -> SessionId {
    [A, B, A][usize::try_from(process).expect("there are three")]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(800))]
    #[test]
    fn locks_exclude_and_somebody_can_always_go_on(
        steps in prop::collection::vec((0..6_usize, 1..4_u64, 0..6_u8), 1..120)
    ) {
        let mut queue = Queue::default();
        let mut threads = [Thread::Runs; 6];
        for (who, object, what) in steps {
            let of = who as u64 / 2;
            let session = session_of(of);
            let object = ObjectId(object);
            if let Thread::Waits(object, lock, ticket) = threads[who] {
                if queue.deadlocked.contains(&ticket) {
                    threads[who] = Thread::Runs;
                } else if queue.called.contains(&ticket) {
                    queue.take_called(session, object, lock, ticket);
                    threads[who] = Thread::Runs;
                } else if what == 5 {
                    queue.waits.forget(session, ticket);
                    queue.call([object]);
                    threads[who] = Thread::Runs;
                }
                continue;
            }
            let lock = match what {
                0 | 1 => { queue.give(session, object, ranges(of)); continue }
                2 | 3 => shared(of, 0),
                _ => exclusive(of, 0),
            };
            if !queue.take(session, object, lock, true)
                && let Ok(ticket) = queue.wait(session, object, lock)
            {
                threads[who] = Thread::Waits(object, lock, ticket);
            }
            for locks in queue.held.values() {
                for (at, one) in locks.iter().enumerate() {
                    let rest = &locks[at + 1..];
                    prop_assert!(rest.iter().all(|h| !h.is_in_the_way_of(one.session, &one.lock)));
                }
            }
            let stuck = |t: &Thread| matches!(t, Thread::Waits(_, _, n)
                if !queue.called.contains(n) && !queue.deadlocked.contains(n));
            prop_assert!(!threads.iter().all(stuck), "nobody can go on");
        }
        // Whoever runs gives everything back, and in the end nobody waits.
        for _ in 0..threads.len() {
            for (who, thread) in threads.iter_mut().enumerate() {
                let of = who as u64 / 2;
                let session = session_of(of);
                if let Thread::Waits(object, lock, ticket) = *thread
                    && queue.called.contains(&ticket)
                {
                    queue.take_called(session, object, lock, ticket);
                    *thread = Thread::Runs;
                } else if let Thread::Waits(_, _, ticket) = *thread
                    && queue.deadlocked.contains(&ticket)
                {
                    *thread = Thread::Runs;
                }
                if *thread == Thread::Runs {
                    for object in 1..4 {
                        queue.give(session, ObjectId(object), ranges(of));
                    }
                }
            }
        }
        prop_assert!(queue.waits.is_empty(), "{threads:?}");
    }
}
