//! The table of requests and the list of opens, by scenario.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use protocol::frame::RawFrame;
use protocol::fs::{
    Caller, EARLY_BYTES_MAX, EARLY_MAX, Lock, LockClass, LockKind, LockOwner, Operation, Request,
    SLOT_NONE, SLOTS_MAX,
};
use protocol::units::{ObjectId, Timestamp};

use super::caching::Asked;
use super::leases::{CACHE_BYTES, EARLY_UNANSWERED_MAX};
use super::opens::Opens;
use super::table::{
    CLOSE_PATIENCE, INTERRUPT_PATIENCE, Interrupted, SIGNAL_PATIENCE, Submission, Submitted, Table,
};

use super::{Session, SessionConfig, Shared};
use crate::connection::SystemConnector;

const OBJECT: ObjectId = ObjectId(9);

fn change() -> Operation {
    Operation::Unlink {
        parent: OBJECT,
        name: Bytes::from_static(b"name"),
    }
}

fn look() -> Operation {
    Operation::GetAttributes { object: OBJECT }
}

impl Session {
    /// One that has found no node, and looks for none.
    pub(crate) fn unconnected() -> Arc<Self> {
        let config = SessionConfig {
            volume: "v1".to_owned(),
            hosts: Vec::new(),
            local_socket: None,
            client_name: String::new(),
            read_only: false,
            no_primary_eio: None,
            mount_timeout: Duration::ZERO,
            early: true,
            cache_bytes: CACHE_BYTES,
        };
        let connector = Arc::new(SystemConnector::new(None));
        let (forgets, _) = channel();
        Arc::new(Self {
            shared: Arc::new(Shared::new(config, connector, forgets)),
            threads: Mutex::new(Vec::new()),
        })
    }
}

/// Early changes are asked through it.
const EARLY_HANDLE: u64 = 99;

/// A table whose waiters are the kernel's numbers of their requests.
struct Bench {
    table: Table<u64>,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Self {
            table: Table::new(),
            now: Instant::now(),
        }
    }

    fn submit(&mut self, unique: u64, operation: Operation, connected: bool) -> Submitted<u64> {
        self.submit_through(unique, None, operation, connected)
    }

    fn submit_through(
        &mut self,
        unique: u64,
        through: Option<u64>,
        operation: Operation,
        connected: bool,
    ) -> Submitted<u64> {
        let submission = Submission {
            waiter: Some(unique),
            unique: Some(unique),
            through,
            caller: Caller::default(),
            operation,
            payload: Bytes::new(),
            asked: Asked::default(),
            early: None,
        };
        self.table.submit(submission, self.now, connected)
    }

    /// Somebody was answered already, and this is on its way.
    fn sent_early(&mut self, bytes: usize) -> Request {
        let operation = Operation::Write {
            object: OBJECT,
            offset: 0,
            append: false,
            kill_privileges: false,
        };
        let submission = Submission {
            waiter: None,
            unique: None,
            through: Some(EARLY_HANDLE),
            caller: Caller::default(),
            operation,
            payload: Bytes::from(vec![0; bytes]),
            asked: Asked::default(),
            early: Some(Timestamp(3)),
        };
        match self.table.submit(submission, self.now, true) {
            Submitted::Send(frame) => request(&frame),
            other => panic!("not sent: {other:?}"),
        }
    }

    fn may_be_early(&self, bytes: usize) -> bool {
        self.table.may_be_early(bytes, self.now)
    }

    /// A sync was answered by the primary: who waits for it, if he may be told.
    fn synced(&mut self, request: &Request) -> Option<u64> {
        let answered = self.table.answered(request.slot, request.number, true);
        let answered = answered.expect("it was asked");
        let submission = Submission {
            waiter: answered.waiter,
            unique: answered.waiter,
            through: None,
            caller: Caller::default(),
            operation: answered.operation,
            payload: Bytes::new(),
            asked: Asked::default(),
            early: None,
        };
        let since = (answered.submitted, answered.interrupted);
        let told = self.table.sync(answered.order, submission, since);
        told.and_then(|told| told.waiter)
    }

    /// What is asked again now.
    fn asked_again(&mut self) -> Vec<Request> {
        let frames = self.table.ask_again(true);
        frames.iter().map(request).collect()
    }

    fn sent(&mut self, unique: u64, operation: Operation) -> Request {
        match self.submit(unique, operation, true) {
            Submitted::Send(frame) => request(&frame),
            other => panic!("not sent: {other:?}"),
        }
    }

    /// Everything that is sent again after a hello that was written now.
    fn resend(&mut self) -> Vec<RawFrame> {
        let mark = self.table.mark();
        self.table.resend(mark)
    }

    fn answer(&mut self, request: &Request) -> Option<u64> {
        let answered = self.table.answered(request.slot, request.number, true);
        answered.expect("it was asked").waiter
    }
}

fn request(frame: &RawFrame) -> Request {
    Request::decode(frame).expect("our own encoding")
}

/// What a signal does to who waits.
const DIES: fn(&u64) -> bool = |_| true;
const HANDLES_IT: fn(&u64) -> bool = |_| false;

#[test]
fn numbers_of_a_slot_rise_by_one_and_a_slot_carries_one_request() {
    let mut bench = Bench::new();
    let first = bench.sent(1, change());
    let second = bench.sent(2, change());
    assert_ne!(first.slot, second.slot);
    assert_eq!((first.number, second.number), (1, 1));
    assert_eq!(bench.answer(&first), Some(1));
    let third = bench.sent(3, change());
    assert_eq!((third.slot, third.number), (first.slot, 2));
    assert_eq!(bench.sent(4, look()).slot, SLOT_NONE);
}

#[test]
fn an_answer_that_nobody_waits_for_is_told_from_others() {
    let mut bench = Bench::new();
    let first = bench.sent(1, change());
    assert!(bench.table.answered(first.slot, 7, true).is_none());
    assert_eq!(bench.answer(&first), Some(1));
    let again = bench.table.answered(first.slot, first.number, true);
    assert!(again.is_none());
}

#[test]
fn a_change_without_a_free_slot_waits_for_the_next_one() {
    let mut bench = Bench::new();
    let under_way: Vec<_> = (0..u64::from(SLOTS_MAX))
        .map(|unique| bench.sent(unique, change()))
        .collect();
    assert!(matches!(
        bench.submit(1000, change(), true),
        Submitted::Waits
    ));
    assert!(matches!(
        bench.submit(1001, look(), true),
        Submitted::Send(_)
    ));
    let freed = &under_way[5];
    let answered = bench.table.answered(freed.slot, freed.number, true);
    let next = answered.and_then(|a| a.next).expect("it goes now");
    let next = request(&next);
    assert_eq!((next.slot, next.number), (freed.slot, 2));
    assert_eq!(bench.answer(&next), Some(1000));
}

#[test]
fn unanswered_requests_are_sent_again_in_order_under_their_numbers() {
    let mut bench = Bench::new();
    let first = bench.sent(1, change());
    let second = bench.sent(2, look());
    let third = bench.sent(3, change());
    assert_eq!(bench.answer(&second), Some(2));
    // Asked while there is no connection.
    let Submitted::Send(fourth) = bench.submit(4, change(), false) else {
        panic!("it has a slot");
    };
    let again: Vec<_> = bench.resend().iter().map(request).collect();
    assert_eq!(again, [first, third, request(&fourth)]);
}

#[test]
fn releases_are_not_sent_again_since_the_hello_says_what_is_open() {
    let mut bench = Bench::new();
    bench.sent(1, Operation::Release { object: OBJECT });
    let kept = bench.sent(2, look());
    let again: Vec<_> = bench.resend().iter().map(request).collect();
    assert_eq!(again, std::slice::from_ref(&kept));
    assert_eq!(bench.table.len(), 1);
    // Closed after the hello was written: it is still to be said.
    let hello = bench.table.mark();
    let Submitted::Send(late) = bench.submit(3, Operation::Release { object: OBJECT }, false)
    else {
        panic!("no slot is needed");
    };
    let again: Vec<_> = bench.table.resend(hello).iter().map(request).collect();
    assert_eq!(again, [kept, request(&late)]);
}

#[test]
fn who_is_about_to_end_waits_a_second_while_connected_and_not_otherwise() {
    let mut bench = Bench::new();
    let asked = bench.sent(1, look());
    let now = bench.now;
    assert_eq!(
        bench.table.interrupt(1, now, true, DIES),
        Interrupted::Noted
    );
    assert!(bench.table.impatient(now, true, DIES).is_empty());
    assert_eq!(bench.table.impatient(now, false, DIES), [1]);
    // Given up: its answer is nobody's.
    assert!(
        bench
            .table
            .answered(asked.slot, asked.number, true)
            .is_none()
    );
    bench.sent(2, look());
    let late = now + INTERRUPT_PATIENCE;
    assert_eq!(
        bench.table.interrupt(2, late, true, DIES),
        Interrupted::Answer(2)
    );
    assert_eq!(
        bench.table.interrupt(2, late, true, DIES),
        Interrupted::Unknown
    );
    bench.sent(3, look());
    assert_eq!(
        bench.table.interrupt(3, now, true, DIES),
        Interrupted::Noted
    );
    assert_eq!(bench.table.impatient(late, true, DIES), [3]);
}

/// A program with a timer wrote while the primary died, and its write failed with EINTR: FO-1 says
/// that it sees a pause.
#[test]
fn a_signal_that_is_handled_outlasts_a_failover_and_does_not_wait_for_ever() {
    let mut bench = Bench::new();
    let now = bench.now;
    for unique in 1..=u64::from(SLOTS_MAX) {
        bench.sent(unique, change());
    }
    // One more, which has no slot.
    bench.submit(1000, change(), true);
    for unique in [1, 1000] {
        let noted = bench.table.interrupt(unique, now, false, HANDLES_IT);
        assert_eq!(noted, Interrupted::Noted);
    }
    let soon = now + SIGNAL_PATIENCE / 2;
    for connected in [true, false] {
        let impatient = bench.table.impatient(soon, connected, HANDLES_IT);
        assert!(impatient.is_empty());
    }
    let late = now + SIGNAL_PATIENCE;
    let impatient = bench.table.impatient(late, true, HANDLES_IT);
    assert_eq!(impatient, [1, 1000]);
    let again = bench.table.interrupt(2, late, true, HANDLES_IT);
    assert_eq!(again, Interrupted::Answer(2));
    // Killed after a signal that it handled: the kernel tells of the first one only.
    assert_eq!(
        bench.table.interrupt(3, soon, false, HANDLES_IT),
        Interrupted::Noted
    );
    assert_eq!(bench.table.impatient(soon, false, DIES), [3]);
}

#[test]
fn a_handled_signal_is_not_forgotten_when_a_slot_becomes_free() {
    let mut bench = Bench::new();
    let now = bench.now;
    let first = bench.sent(0, change());
    for unique in 1..u64::from(SLOTS_MAX) {
        bench.sent(unique, change());
    }
    bench.submit(1000, change(), true);
    let noted = bench.table.interrupt(1000, now, true, HANDLES_IT);
    assert_eq!(noted, Interrupted::Noted);
    bench.answer(&first);
    assert!(bench.table.impatient(now, true, HANDLES_IT).is_empty());
    let late = now + SIGNAL_PATIENCE;
    assert_eq!(bench.table.impatient(late, true, HANDLES_IT), [1000]);
}

#[test]
fn a_change_that_was_given_up_keeps_its_slot_until_it_is_answered() {
    let mut bench = Bench::new();
    let sent = bench.sent(1, change());
    let now = bench.now;
    assert_eq!(
        bench.table.interrupt(1, now, false, DIES),
        Interrupted::Answer(1)
    );
    let again: Vec<_> = bench.resend().iter().map(request).collect();
    assert_eq!(again, std::slice::from_ref(&sent));
    assert_eq!(bench.answer(&sent), None);
    let next = bench.sent(2, change());
    assert_eq!((next.slot, next.number), (sent.slot, 2));
}

#[test]
fn a_change_that_was_never_sent_goes_when_it_is_interrupted() {
    let mut bench = Bench::new();
    let now = bench.now;
    assert!(matches!(
        bench.submit(1, change(), false),
        Submitted::Send(_)
    ));
    assert_eq!(
        bench.table.interrupt(1, now, false, DIES),
        Interrupted::Answer(1)
    );
    assert!(bench.resend().is_empty());
    assert_eq!(bench.table.len(), 0);
    // Its number is skipped, its slot is free.
    assert_eq!(bench.sent(2, change()).number, 2);
}

#[test]
fn an_interrupted_change_that_waits_for_a_slot_never_happens() {
    let mut bench = Bench::new();
    for unique in 0..u64::from(SLOTS_MAX) {
        bench.sent(unique, change());
    }
    assert!(matches!(
        bench.submit(1000, change(), true),
        Submitted::Waits
    ));
    let now = bench.now;
    assert_eq!(
        bench.table.interrupt(1000, now, true, DIES),
        Interrupted::Answer(1000)
    );
    assert_eq!(bench.table.len(), usize::from(SLOTS_MAX));
}

#[test]
fn a_slot_freed_by_giving_up_goes_to_who_waits_for_one() {
    let mut bench = Bench::new();
    for unique in 0..u64::from(SLOTS_MAX) {
        bench.submit(unique, change(), false);
    }
    assert!(matches!(
        bench.submit(1000, change(), false),
        Submitted::Waits
    ));
    let now = bench.now;
    assert_eq!(
        bench.table.interrupt(3, now, false, DIES),
        Interrupted::Answer(3)
    );
    let frames = bench.table.refill(true);
    assert_eq!(frames.len(), 1);
    assert_eq!(bench.answer(&request(&frames[0])), Some(1000));
}

#[test]
fn an_open_given_up_by_its_process_is_still_answered_so_that_it_can_be_undone() {
    let mut bench = Bench::new();
    let open = bench.sent(1, Operation::Open { object: OBJECT });
    let now = bench.now;
    assert_eq!(
        bench.table.interrupt(1, now, false, DIES),
        Interrupted::Answer(1)
    );
    assert_eq!(bench.answer(&open), None);
    // Unless the connection went, and with it what the primary counted.
    bench.sent(2, Operation::Open { object: OBJECT });
    assert_eq!(
        bench.table.interrupt(2, now, false, DIES),
        Interrupted::Answer(2)
    );
    assert!(bench.resend().is_empty());
}

#[test]
fn a_forgotten_session_loses_the_changes_that_were_sent_and_only_those() {
    let mut bench = Bench::new();
    bench.sent(1, change());
    let read = bench.sent(2, look());
    let Submitted::Send(unsent) = bench.submit(3, change(), false) else {
        panic!("it has a slot");
    };
    assert_eq!(bench.table.forgotten(), [1]);
    let again: Vec<_> = bench.resend().iter().map(request).collect();
    assert_eq!(again, [read, request(&unsent)]);
}

/// Whether nobody changed the file since the primary decides, also where it knows the session no more.
#[test]
fn fo_6_what_was_answered_early_is_sent_again_also_where_the_session_was_forgotten() {
    let mut bench = Bench::new();
    let early = bench.sent_early(1);
    bench.sent(1, change());
    assert_eq!(bench.table.forgotten(), [1]);
    let again: Vec<_> = bench.resend().iter().map(request).collect();
    assert_eq!(again, [early]);
    assert_eq!(bench.table.take_lost(), []);
}

#[test]
fn what_is_older_than_a_limit_is_given_up() {
    let mut bench = Bench::new();
    let began = bench.now;
    bench.sent(1, look());
    bench.now += Duration::from_secs(2);
    bench.sent(2, look());
    let mut late = bench.table.older_than(began + Duration::from_secs(1));
    assert_eq!(late, [1]);
    late = bench.table.older_than(bench.now);
    assert_eq!(late, [2]);
}

#[test]
fn the_last_close_gives_back_all_that_the_primary_counts() {
    let mut opens = Opens::default();
    assert!(!opens.again(OBJECT));
    opens.opened(OBJECT);
    assert!(opens.again(OBJECT));
    // Two at once, before either was answered.
    opens.opened(OBJECT);
    assert_eq!(opens.list(10), [OBJECT, OBJECT]);
    assert_eq!(opens.list(1), [OBJECT]);
    assert_eq!(opens.closed(OBJECT), 0);
    assert_eq!(opens.closed(OBJECT), 0);
    assert_eq!(opens.closed(OBJECT), 2);
    assert_eq!(opens.closed(OBJECT), 0);
    assert!(opens.list(10).is_empty());
}

const OWNER: LockOwner = LockOwner {
    class: LockClass::Ranges,
    id: 7,
};

fn unlock() -> Operation {
    Operation::Unlock {
        object: OBJECT,
        owner: OWNER,
        start: 0,
        end: 9,
    }
}

fn await_lock() -> Operation {
    let lock = Lock {
        owner: OWNER,
        kind: LockKind::Exclusive,
        start: 0,
        end: 9,
        pid: 1,
    };
    Operation::AwaitLock {
        object: OBJECT,
        lock,
        ticket: 3,
    }
}

#[test]
fn who_waits_for_a_lock_is_interrupted_at_once_and_its_answer_is_nobodys() {
    let mut bench = Bench::new();
    let wait = bench.sent(1, await_lock());
    assert_eq!(wait.slot, SLOT_NONE, "it takes no slot");
    let interrupted = bench.table.interrupt(1, bench.now, true, DIES);
    assert_eq!(interrupted, Interrupted::Answer(1));
    let late = bench.table.answered(wait.slot, wait.number, true);
    assert!(late.is_none());
    assert_eq!(bench.resend(), []);
    bench.sent(2, await_lock());
    bench.sent(3, Operation::ForgetLock { ticket: 3 });
    assert_eq!(bench.resend().len(), 1, "a new connection knows of no wait");
    assert_eq!(bench.table.waits_for_locks(), [2]);
}

#[test]
fn a_lock_is_given_back_whoever_waits_for_that_or_not() {
    let mut bench = Bench::new();
    // Not sent, as there is no connection.
    bench.submit(1, unlock(), false);
    let interrupted = bench.table.interrupt(1, bench.now, false, DIES);
    assert_eq!(interrupted, Interrupted::Answer(1));
    assert_eq!(bench.resend().len(), 1);
    bench.submit(2, unlock(), false);
    assert_eq!(bench.table.older_than(bench.now), [2]);
    assert_eq!(bench.resend().len(), 2);
    // Without a slot.
    bench.table.hold_up(true);
    bench.submit(3, unlock(), false);
    bench.submit(4, unlock(), false);
    bench.submit(5, change(), false);
    let interrupted = bench.table.interrupt(3, bench.now, false, DIES);
    assert_eq!(interrupted, Interrupted::Answer(3));
    let now = bench.now;
    assert!(bench.table.need_not_wait(|_| true, now, true).is_empty());
    assert_eq!(bench.table.need_not_wait(|_| true, now, false), [4]);
    assert_eq!(bench.table.older_than(bench.now), [5]);
    bench.table.hold_up(false);
    assert_eq!(bench.table.refill(true).len(), 2, "the change is not made");
}

/// A mount was cut off, and its session ended: what was asked through a file that held a lock must
/// not be done any more, wherever the request is.
#[test]
fn fo_6_what_was_asked_through_a_file_that_lost_its_lock_fails_sent_or_not() {
    let (lost, other) = (Some(1), Some(2));
    let mut bench = Bench::new();
    bench.submit_through(1, lost, look(), true);
    bench.submit_through(2, other, look(), true);
    bench.submit_through(3, lost, await_lock(), true);
    bench.submit_through(4, lost, change(), true);
    // Asked while there was no connection.
    bench.submit_through(5, lost, change(), false);
    bench.submit_through(6, other, change(), false);
    bench.submit(7, unlock(), false);
    // Without a slot.
    bench.table.hold_up(true);
    bench.submit_through(8, lost, change(), false);
    bench.submit_through(9, other, change(), false);
    let is_lost = |handle| Some(handle) == lost;
    assert_eq!(bench.table.fail_through(is_lost), [1, 3, 4, 5, 8]);
    bench.table.hold_up(false);
    bench.table.refill(true);
    let again = bench.resend();
    let again: Vec<_> = again.iter().map(|frame| request(frame).operation).collect();
    assert_eq!(again, [look(), change(), unlock(), change()]);
    // Whatever number a primary may have seen is not used again.
    let next = bench.sent(10, change());
    assert!(next.number > 1, "{next:?}");
}

#[test]
fn a_change_does_not_overtake_those_that_wait_for_a_slot() {
    let mut bench = Bench::new();
    bench.table.hold_up(true);
    bench.submit(1, unlock(), true);
    bench.table.hold_up(false);
    assert!(matches!(bench.submit(2, change(), true), Submitted::Waits));
    let frames = bench.table.refill(true);
    let order: Vec<_> = frames
        .iter()
        .map(|frame| request(frame).operation)
        .collect();
    assert_eq!(order, [unlock(), change()]);
}

#[test]
fn a_close_waits_a_little_for_a_primary_that_confirms_nothing() {
    let mut bench = Bench::new();
    bench.sent(1, unlock());
    let late = bench.now + CLOSE_PATIENCE;
    assert!(
        bench
            .table
            .need_not_wait(|_| true, bench.now, true)
            .is_empty()
    );
    assert_eq!(bench.table.need_not_wait(|_| true, late, true), [1]);
    assert_eq!(bench.resend().len(), 1, "it is given back all the same");
}

fn sync() -> Operation {
    Operation::Sync {
        object: OBJECT,
        data_only: false,
    }
}

/// Whether the sync made stable what was answered early before it is not known: it may have overtaken
/// that.
#[test]
fn cl_1_a_sync_is_over_when_everything_is_that_was_answered_early_before_it() {
    let mut bench = Bench::new();
    let first = bench.sent_early(1);
    let second = bench.sent_early(1);
    assert_eq!(first.early, Some(Timestamp(3)));
    let (one, other) = (bench.sent(7, sync()), bench.sent(8, sync()));
    let later = bench.sent_early(1);
    assert_eq!(bench.synced(&one), None);
    assert_eq!(bench.answer(&second), None);
    assert_eq!(bench.asked_again(), [], "the first is not answered");
    assert_eq!(bench.answer(&first), None);
    assert_eq!(bench.synced(&other), Some(8));
    let [again] = &bench.asked_again()[..] else {
        panic!("it is asked once more");
    };
    assert!(again.operation == sync() && again.number > other.number);
    assert_eq!(bench.synced(again), Some(7));
    assert!(bench.table.has_early());
    bench.answer(&later);
    assert!(!bench.table.has_early() && bench.table.len() == 0);
}

#[test]
fn cl_1_a_sync_that_waits_is_told_of_what_is_lost() {
    let mut bench = Bench::new();
    bench.sent_early(1);
    let sync = bench.sent(7, sync());
    assert_eq!(bench.synced(&sync), None);
    let fails = bench.table.fail_through(|handle| handle == EARLY_HANDLE);
    assert!(fails.is_empty(), "nobody waits for a write");
    assert_eq!(bench.table.take_lost(), [OBJECT]);
    let again = bench.asked_again();
    assert_eq!(bench.synced(&again[0]), Some(7));
}

/// Any signal ended it, whatever the program did with it.
#[test]
fn fo_6_a_sync_that_waits_for_early_changes_is_as_patient_with_signals_as_any_call() {
    let mut bench = Bench::new();
    bench.sent_early(1);
    let syncs = [7, 8, 9].map(|unique| bench.sent(unique, sync()));
    for sync in &syncs {
        assert_eq!(bench.synced(sync), None);
    }
    let handled =
        |table: &mut Table<u64>, unique, now| table.interrupt(unique, now, true, |_| false);
    assert_eq!(handled(&mut bench.table, 7, bench.now), Interrupted::Noted);
    let deadly = bench.table.interrupt(8, bench.now, true, |_| true);
    assert_eq!(deadly, Interrupted::Answer(8));
    let late = bench.now + SIGNAL_PATIENCE;
    assert_eq!(bench.table.impatient(late, true, |_| false), [7]);
    assert_eq!(handled(&mut bench.table, 9, late), Interrupted::Answer(9));
}

#[test]
fn cl_1_no_more_is_answered_early_than_the_primary_holds_room_for() {
    let mut bench = Bench::new();
    let whole = usize::try_from(EARLY_BYTES_MAX).expect("8 MiB");
    assert!(bench.may_be_early(whole));
    let half = bench.sent_early(whole / 2);
    assert!(bench.may_be_early(whole / 2) && !bench.may_be_early(whole / 2 + 1));
    bench.answer(&half);
    let few: Vec<_> = (0..EARLY_MAX).map(|_| bench.sent_early(1)).collect();
    assert!(!bench.may_be_early(1));
    bench.answer(&few[0]);
    assert!(bench.may_be_early(1));
    bench.table.hold_up(true);
    assert!(!bench.may_be_early(1), "it would wait here");
}

/// On a slow line 8 MiB took seconds, in which the lease ran out for others.
#[test]
fn cl_1_nothing_is_answered_early_while_an_earlier_change_is_unanswered_for_long() {
    let mut bench = Bench::new();
    let first = bench.sent_early(1);
    bench.now += EARLY_UNANSWERED_MAX - Duration::from_millis(1);
    assert!(bench.may_be_early(1));
    let second = bench.sent_early(1);
    bench.now += Duration::from_millis(1);
    assert!(!bench.may_be_early(1));
    bench.answer(&first);
    assert!(
        bench.may_be_early(1),
        "the second is on its way for a moment"
    );
    bench.answer(&second);
}

/// Where something was always under way they became ever more.
#[test]
fn change_times_are_remembered_of_what_is_under_way_and_of_little_else() {
    let mut bench = Bench::new();
    let early = bench.sent_early(1);
    bench.table.changed(OBJECT, Timestamp(4));
    for object in 100..5_000 {
        bench.table.changed(ObjectId(object), Timestamp(5));
    }
    assert!(bench.table.known() <= 1024);
    let again = bench.resend();
    assert_eq!(request(&again[0]).early, Some(Timestamp(4)));
    bench.answer(&early);
    assert_eq!(bench.table.known(), 0);
}
