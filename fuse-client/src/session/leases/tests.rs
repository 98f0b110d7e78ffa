//! What a mount may answer by itself, and until when.

use std::time::Duration;

use bytes::Bytes;
use protocol::fs::{Attributes, Operation, Outcome, Recalled, Reply, SLOT_NONE};
use protocol::mistakes::{Mistake, choose};
use protocol::units::{ObjectId, Sequence};

use super::{Cache, Forget};

const DIRECTORY: ObjectId = ObjectId::ROOT;
const FILE: ObjectId = ObjectId(7);
const LEASE_MS: u16 = 2_000;
/// So long a mount believes in a lease of 2 s.
const BELIEVED: Duration = Duration::from_millis(1_960);

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn look_up() -> Operation {
    let (parent, name) = (DIRECTORY, Bytes::from_static(b"file"));
    Operation::Lookup { parent, name }
}

fn unlink() -> Operation {
    let (parent, name) = (DIRECTORY, Bytes::from_static(b"file"));
    Operation::Unlink { parent, name }
}

fn reply(leases: &[ObjectId], outcome: Outcome) -> Reply {
    Reply {
        slot: SLOT_NONE,
        number: 1,
        sequence: Sequence(1),
        stable: Sequence(1),
        lease_ms: LEASE_MS,
        changed: false,
        authors: Vec::new(),
        leases: leases.to_vec(),
        old: Vec::new(),
        outcome,
    }
}

/// It found the file, was leased it and its directory, and had asked at `asked`.
fn found(asked: Duration, now: Duration) -> Cache {
    let mut cache = Cache::default();
    let changes = cache.asks(&look_up(), asked);
    cache.over(&look_up(), &changes);
    let file = Attributes {
        object: FILE,
        ..Attributes::default()
    };
    let reply = reply(&[DIRECTORY, FILE], Outcome::Entry(file));
    cache.answered(&look_up(), &reply, asked, false, now);
    cache
}

fn knows(cache: &mut Cache, now: Duration) -> bool {
    cache.look(&look_up(), now).is_some()
}

#[test]
fn coh_1_a_mount_believes_in_a_lease_from_when_it_asked_and_a_little_less_long() {
    let believes = |at| knows(&mut found(ms(0), ms(1_500)), at);
    assert!(believes(ms(1_500)) && believes(BELIEVED - ms(1)));
    assert!(!believes(BELIEVED));
    choose(Some(Mistake::CountsFromTheAnswer));
    let wrongly = believes(BELIEVED);
    choose(None);
    assert!(wrongly, "the mistake would not be noticed");
}

#[test]
fn coh_1_what_a_change_under_way_may_concern_is_not_answered_from_memory() {
    let mut cache = found(ms(0), ms(1));
    let changes = cache.asks(&unlink(), ms(2));
    assert_eq!(changes, [DIRECTORY, FILE]);
    let of_file = Operation::GetAttributes { object: FILE };
    assert!(!knows(&mut cache, ms(3)) && cache.look(&of_file, ms(3)).is_none());
    // Another process looks meanwhile: whether it saw what was before, nobody knows.
    let file = Attributes {
        object: FILE,
        ..Attributes::default()
    };
    let before = reply(&[DIRECTORY, FILE], Outcome::Entry(file));
    cache.answered(&look_up(), &before, ms(3), false, ms(4));
    assert!(!knows(&mut cache, ms(4)));
    cache.over(&unlink(), &changes);
    cache.answered(&look_up(), &before, ms(5), false, ms(6));
    assert!(knows(&mut cache, ms(6)));
}

#[test]
fn coh_1_what_is_recalled_is_not_answered_and_counts_as_held_until_it_is_given_back() {
    let mut cache = found(ms(0), ms(1));
    let recalled = Recalled {
        number: 3,
        objects: vec![FILE],
    };
    let forget = cache.recalled(recalled, ms(2));
    assert!(forget.attributes.is_empty(), "the kernel was told nothing");
    assert!(!knows(&mut cache, ms(2)));
    let mut waits = cache.present(ms(3));
    waits.sort_unstable();
    assert_eq!(waits, [DIRECTORY, FILE]);
    assert_eq!(cache.gives_back(&forget, &[]), None, "it was presented");

    let mut cache = found(ms(0), ms(1));
    let recalled = Recalled {
        number: 4,
        objects: vec![FILE, DIRECTORY],
    };
    let forget = cache.recalled(recalled, ms(2));
    let given = cache.gives_back(&forget, &[FILE]).expect("nobody came");
    assert_eq!((given.number, &given.objects[..]), (4, &[DIRECTORY][..]));
    let other = Forget {
        number: 5,
        ..Forget::default()
    };
    assert_eq!(cache.gives_back(&other, &[]), None, "nothing was recalled");
}

#[test]
fn coh_1_a_recall_names_until_when_the_kernel_may_have_names() {
    let mut cache = found(ms(0), ms(1));
    let (_, fresh) = cache.look(&look_up(), ms(100)).expect("it is known");
    assert_eq!(fresh.names, ms(300));
    assert!(fresh.attributes > ms(1_000) && ms(100) + fresh.attributes < BELIEVED);
    let recalled = Recalled {
        number: 1,
        objects: vec![DIRECTORY, FILE],
    };
    let forget = cache.recalled(recalled, ms(200));
    assert_eq!(forget.attributes, [FILE]);
    assert_eq!(forget.names_until, ms(100 + 300 + 700));
}

#[test]
fn coh_1_what_has_run_out_is_neither_answered_nor_presented() {
    let mut cache = found(ms(0), ms(1));
    assert!(!cache.has_lapsed(ms(1)) && !cache.is_empty());
    assert_eq!(cache.present(BELIEVED), []);
    assert!(cache.is_empty() && !knows(&mut cache, ms(1)));
}
