//! What is kept, until when, and what is presented to whom.

use protocol::fs::{Attributes, Caller, Request};

use super::*;

const FILE: ObjectId = ObjectId(7);
const UNLIKELY: usize = 1 << 20;

fn write(number: u64, bytes: usize) -> (Operation, RawFrame) {
    let operation = Operation::Write {
        object: FILE,
        offset: number,
        append: false,
        kill_privileges: false,
    };
    let request = Request {
        slot: 3,
        number,
        caller: Caller::default(),
        operation: operation.clone(),
        early: None,
        payload: Bytes::from(vec![1; bytes]),
    };
    (operation, request.encode())
}

fn reply(number: u64, sequence: u64, stable: u64, outcome: Outcome) -> Reply {
    Reply {
        slot: 3,
        number,
        sequence: Sequence(sequence),
        stable: Sequence(stable),
        lease_ms: 0,
        leases: Vec::new(),
        old: Vec::new(),
        exclusive: None,
        times: Vec::new(),
        busy: Vec::new(),
        directories: Vec::new(),
        changed: true,
        authors: Vec::new(),
        outcome,
    }
}

fn written(ctime: i64) -> Outcome {
    Outcome::Written {
        len: 1,
        offset: 0,
        attributes: Attributes {
            ctime: Timestamp(ctime),
            ..Attributes::default()
        },
    }
}

fn welcome(term: u64, ends: &[Place]) -> Welcome<'_> {
    Welcome {
        term: Term(term),
        ends,
        gathers: false,
        in_doubt: false,
        leases: &[],
        exclusive: &[],
        early: &[],
    }
}

/// An append says no place; who lacks its data has to know where it went.
#[test]
fn what_was_appended_is_presented_with_the_place_where_it_went() {
    let went = |offset| match written(0) {
        Outcome::Written {
            len, attributes, ..
        } => Outcome::Written {
            len,
            offset,
            attributes,
        },
        other => other,
    };
    let (mut operation, request) = write(1, 1);
    let mut request = Request::decode(&request).expect("it is well formed");
    for operation in [&mut operation, &mut request.operation] {
        if let Operation::Write { append, .. } = operation {
            *append = true;
        }
    }
    let mut keep = Keep::new();
    keep.welcomed(welcome(1, &[]), [].into_iter());
    keep.confirmed(&operation, &request.encode(), &reply(1, 11, 10, went(500)));
    let place = |frames: &[RawFrame]| match replays(frames)[0].request.operation {
        Operation::Write { offset, append, .. } => (offset, append),
        ref other => panic!("{other:?}"),
    };
    let ends = [(Term(1), Sequence(10))];
    let frames = keep.welcomed(welcome(2, &ends), [].into_iter());
    assert_eq!(place(&frames), (500, true));
    assert!(keep.replayed(&reply(1, 21, 10, went(400))));
    let ends = [(Term(2), Sequence(20))];
    let frames = keep.welcomed(welcome(3, &ends), [].into_iter());
    assert_eq!(
        place(&frames),
        (400, true),
        "it went elsewhere the second time"
    );
}

/// With so many writes of so many bytes confirmed by the primary of term 1, at sequences from 11 on.
fn keeping(count: u64, bytes: usize) -> Keep {
    let mut keep = Keep::new();
    keep.welcomed(welcome(1, &[]), std::iter::empty());
    for number in 1..=count {
        let (operation, frame) = write(number, bytes);
        let reply = reply(number, 10 + number, 0, written(number as i64));
        keep.told(&reply);
        keep.confirmed(&operation, &frame, &reply);
    }
    keep
}

fn replays(frames: &[RawFrame]) -> Vec<Replay> {
    let replays = frames.iter().filter(|frame| frame.kind == kind::REPLAY);
    replays
        .map(|frame| Replay::decode(frame).expect("it is well formed"))
        .collect()
}

#[test]
fn what_was_confirmed_is_kept_until_it_is_stable() {
    let mut keep = keeping(5, 1);
    assert_eq!(keep.len(), 5);
    keep.told(&reply(99, 15, 12, Outcome::Done));
    assert_eq!(keep.len(), 3);
    keep.told(&reply(99, 15, 20, Outcome::Done));
    assert!(keep.is_empty() && keep.bytes == 0 && keep.by_key.is_empty());
    let (operation, frame) = write(6, 1);
    keep.confirmed(&operation, &frame, &reply(6, 18, 20, written(1)));
    keep.confirmed(&operation, &frame, &reply(7, 21, 20, Outcome::Error(28)));
    let unchanged = Reply {
        changed: false,
        ..reply(8, 22, 20, written(1))
    };
    keep.confirmed(&operation, &frame, &unchanged);
    assert!(keep.is_empty(), "stable, failed, and nothing to do");
}

#[test]
fn a_primary_that_has_everything_is_sent_nothing() {
    let mut keep = keeping(5, 1);
    assert_eq!(keep.terms(), [Term(1)]);
    let ends = [(Term(1), Sequence(15))];
    let frames = keep.welcomed(welcome(2, &ends), std::iter::empty());
    let kinds: Vec<u8> = frames.iter().map(|frame| frame.kind).collect();
    assert_eq!(kinds, [kind::PRESENT, kind::PRESENTED]);
    assert_eq!(keep.terms(), [Term(2)], "it is part of its past now");
    keep.told(&reply(99, 15, 15, Outcome::Done));
    assert!(keep.is_empty());
}

#[test]
fn what_a_primary_lacks_is_sent_in_order_under_its_number_and_kept_on() {
    let mut keep = keeping(5, 1);
    let ends = [(Term(1), Sequence(13))];
    let frames = keep.welcomed(welcome(2, &ends), std::iter::empty());
    let sent = replays(&frames);
    let places: Vec<_> = sent.iter().map(|r| (r.order, r.at, r.time.0)).collect();
    let place = |sequence| (Term(1), Sequence(sequence));
    assert_eq!(
        places,
        [
            (Some(place(14)), place(14), 4),
            (Some(place(15)), place(15), 5)
        ]
    );
    assert_eq!(sent[0].request.number, 4);
    assert!(keep.replayed(&reply(4, 14, 0, written(4))));
    assert_eq!(keep.len(), 5, "not stable yet");
    // The next one has what was put back, and lacks the rest.
    let ends = [(Term(1), Sequence(13)), (Term(2), Sequence(14))];
    let frames = keep.welcomed(welcome(3, &ends), std::iter::empty());
    let sent = replays(&frames);
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].order, Some(place(15)), "its first place orders it");
    assert!(keep.replayed(&reply(5, 15, 0, written(5))));
    assert!(!keep.replayed(&reply(77, 15, 0, written(5))));
    keep.told(&reply(99, 15, 15, Outcome::Done));
    assert!(keep.is_empty());
    assert_eq!(keep.take_lost(), Lost::default());
}

/// The refusal says itself that the record is stable; the data is gone all the same.
#[test]
fn what_was_presented_is_lost_also_where_its_record_is_stable() {
    let mut keep = keeping(2, 1);
    let ends = [(Term(1), Sequence(12))];
    let in_doubt = Welcome {
        in_doubt: true,
        ..welcome(2, &ends)
    };
    assert_eq!(
        replays(&keep.welcomed(in_doubt, std::iter::empty())).len(),
        2
    );
    let refused = reply(1, 0, 15, Outcome::Error(5));
    keep.told(&refused);
    assert!(keep.replayed(&refused));
    assert_eq!(keep.take_lost().objects, [FILE]);
    assert!(keep.replayed(&reply(2, 12, 15, written(2))));
    keep.told(&reply(99, 16, 16, Outcome::Done));
    assert!(keep.is_empty());
}

#[test]
fn what_is_refused_is_lost_and_told_once() {
    let mut keep = keeping(2, 1);
    let ends = [(Term(1), Sequence(0))];
    keep.welcomed(welcome(2, &ends), std::iter::empty());
    assert!(keep.replayed(&reply(1, 0, 0, Outcome::Error(5))));
    assert!(keep.replayed(&reply(2, 11, 0, written(2))));
    assert_eq!(keep.take_lost().objects, [FILE]);
    assert_eq!(keep.take_lost(), Lost::default());
    assert_eq!(keep.len(), 1);
}

#[test]
fn writes_in_doubt_are_sent_although_their_records_are_there() {
    let mut keep = keeping(2, 1);
    let doubt = Welcome {
        in_doubt: true,
        ..welcome(2, &[])
    };
    let (_, unanswered) = write(9, 1);
    let sent = replays(&keep.welcomed(doubt, [&unanswered].into_iter()));
    assert_eq!(sent.len(), 2, "what was not answered comes as a request");
    assert_eq!(sent[0].at, (Term(2), Sequence(11)));
    let gathers = Welcome {
        gathers: true,
        ..welcome(3, &[])
    };
    let sent = replays(&keep.welcomed(gathers, [&unanswered].into_iter()));
    assert_eq!((sent.len(), sent[0].order), (1, None));
}

#[test]
fn much_that_is_kept_is_made_stable_and_holds_changes_up() {
    let mut keep = keeping(33, UNLIKELY);
    assert!(keep.wants_flush() && !keep.wants_flush(), "asked once");
    assert!(!keep.is_full());
    let mut keep = keeping(64, UNLIKELY);
    assert!(keep.is_full() && keep.wants_flush());
    keep.told(&reply(99, 74, 74, Outcome::Done));
    keep.flushed();
    assert!(keep.is_empty() && !keep.is_full());
    assert_eq!(keep.terms(), [], "nothing is left to be lost");
}

#[test]
fn what_replicas_may_lack_after_a_flush_is_let_go_and_lost_with_them() {
    let mut keep = keeping(64, UNLIKELY);
    assert!(keep.wants_flush());
    // Under A a flush is no word of the other replicas.
    keep.told(&reply(99, 74, 3, Outcome::Done));
    keep.flushed();
    assert!(!keep.is_half_full() && keep.len() > 20);
    let here = [(Term(1), Sequence(74))];
    keep.welcomed(welcome(2, &here), std::iter::empty());
    assert_eq!(keep.take_lost(), Lost::default());
    let ends = [(Term(2), Sequence(12))];
    let sent = replays(&keep.welcomed(welcome(3, &ends), std::iter::empty()));
    assert_eq!(sent.len(), keep.len(), "what is kept is sent all the same");
    assert_eq!(keep.take_lost().objects, [FILE]);
    keep.welcomed(welcome(4, &ends), std::iter::empty());
    assert_eq!(keep.take_lost(), Lost::default(), "told once");
}

#[test]
fn the_records_of_others_are_remembered_until_they_are_stable() {
    let mut keep = keeping(1, 1);
    let author = |sequence| Author {
        at: (Term(1), Sequence(sequence)),
        session: protocol::ids::SessionId([8; 16]),
        slot: 1,
        number: sequence,
    };
    let told = Reply {
        authors: vec![author(5), author(12)],
        ..reply(99, 12, 4, Outcome::Done)
    };
    keep.told(&told);
    keep.told(&reply(99, 12, 5, Outcome::Done));
    let ends = [(Term(1), Sequence(4))];
    let frames = keep.welcomed(welcome(2, &ends), std::iter::empty());
    let present = Present::decode(&frames[0]).expect("it comes first");
    assert_eq!(present.authors, [author(12)]);
    assert_eq!(present.stable, (Term(1), Sequence(5)));
}

fn lock(number: u64) -> (Operation, RawFrame) {
    use protocol::fs::{Lock, LockClass, LockKind, LockOwner};
    let lock = Lock {
        owner: LockOwner {
            class: LockClass::Ranges,
            id: 1,
        },
        kind: LockKind::Exclusive,
        start: 0,
        end: 9,
        pid: 1,
    };
    let operation = Operation::Lock {
        object: FILE,
        lock,
        ticket: 0,
        waits: false,
    };
    let request = Request {
        slot: 4,
        number,
        caller: Caller::default(),
        operation: operation.clone(),
        early: None,
        payload: Bytes::new(),
    };
    (operation, request.encode())
}

/// A primary lacks a lock that was confirmed: until it says whether it is held again nothing may be
/// done under it, and if it is not, its owner is told and nobody else.
#[test]
fn a_lock_that_is_presented_is_awaited_and_if_refused_lost_with_its_owner() {
    let ends = [(Term(1), Sequence(11))];
    let of_lock = |outcome| Reply {
        slot: 4,
        ..reply(1, 30, 0, outcome)
    };
    for refused in [false, true] {
        let mut keep = keeping(1, 1);
        let (operation, frame) = lock(1);
        let confirmed = Reply {
            sequence: Sequence(12),
            ..of_lock(Outcome::Done)
        };
        keep.confirmed(&operation, &frame, &confirmed);
        assert!(!keep.awaits_locks());
        let frames = keep.welcomed(welcome(2, &ends), std::iter::empty());
        assert_eq!(replays(&frames).len(), 1);
        assert!(keep.awaits_locks());
        let outcome = if refused {
            Outcome::Error(5)
        } else {
            Outcome::Done
        };
        assert!(keep.replayed(&of_lock(outcome)));
        assert!(!keep.awaits_locks());
        let lost = keep.take_lost();
        let expected: &[Operation] = if refused { &[operation] } else { &[] };
        assert_eq!(lost.locking, expected);
        assert!(lost.objects.is_empty() && !lost.any, "no data is");
    }
}

#[test]
fn a_lock_that_is_stable_when_its_answer_comes_is_awaited_no_more() {
    let mut keep = keeping(0, 1);
    let (operation, frame) = lock(1);
    let answer = Reply {
        slot: 4,
        ..reply(1, 12, 0, Outcome::Done)
    };
    keep.confirmed(&operation, &frame, &answer);
    keep.welcomed(welcome(2, &[(Term(1), Sequence(11))]), std::iter::empty());
    keep.replayed(&answer);
    keep.welcomed(welcome(3, &[(Term(2), Sequence(11))]), std::iter::empty());
    assert!(keep.awaits_locks());
    let answer = Reply {
        stable: Sequence(20),
        sequence: Sequence(13),
        ..answer
    };
    keep.told(&reply(99, 20, 20, Outcome::Done));
    keep.told(&answer);
    keep.replayed(&answer);
    assert!(!keep.awaits_locks());
}

/// It was too much to keep, and is not there any more.
#[test]
fn a_lock_that_is_no_longer_kept_is_lost_where_the_primary_lacks_it() {
    for lacks in [false, true] {
        let mut keep = keeping(0, 1);
        let (operation, frame) = lock(1);
        keep.confirmed(&operation, &frame, &reply(1, 12, 0, Outcome::Done));
        for number in 2..40 {
            let (operation, frame) = write(number, UNLIKELY);
            keep.confirmed(
                &operation,
                &frame,
                &reply(number, 12 + number, 0, written(1)),
            );
        }
        assert!(keep.wants_flush());
        keep.flushed();
        assert_eq!(keep.beyond_locking.len(), 1);
        let ends = [(Term(1), Sequence(if lacks { 11 } else { 100 }))];
        keep.welcomed(welcome(2, &ends), std::iter::empty());
        let lost = keep.take_lost().locking;
        assert_eq!(lost.len(), usize::from(lacks));
        keep.told(&reply(99, 200, 200, Outcome::Done));
        assert!(keep.beyond_locking.is_empty());
    }
}

/// A lock is no longer kept, and of everything that was the primary said that it is gone. The next
/// primary has to tell where that one's term ended: else a lock that is gone counts as held.
#[test]
fn fo_6_where_the_term_of_a_lock_ended_that_is_no_longer_kept_is_asked() {
    let mut keep = keeping(0, 1);
    let confirm = |keep: &mut Keep, number: u64| {
        let (operation, frame) = lock(number);
        let reply = Reply {
            slot: 4,
            ..reply(number, 10 + number, 0, Outcome::Done)
        };
        keep.confirmed(&operation, &frame, &reply);
    };
    let locks = 1..=KEPT_MAX as u64 / 2;
    locks.clone().for_each(|number| confirm(&mut keep, number));
    assert!(keep.wants_flush());
    keep.flushed();
    assert_eq!(keep.beyond_locking.len(), 1);
    let ends = [(Term(1), Sequence(11))];
    let presented = replays(&keep.welcomed(welcome(2, &ends), std::iter::empty()));
    assert_eq!(presented.len() + 1, locks.count());
    for replay in presented {
        let gone = Reply {
            slot: 4,
            ..reply(replay.request.number, 0, 0, Outcome::Error(5))
        };
        assert!(keep.replayed(&gone));
    }
    assert!(keep.is_empty());
    assert_eq!(keep.terms(), [Term(2)]);
    keep.take_lost();
    keep.welcomed(welcome(3, &[(Term(2), Sequence(5))]), std::iter::empty());
    assert_eq!(keep.take_lost().locking.len(), 1, "its owner is told");
}
