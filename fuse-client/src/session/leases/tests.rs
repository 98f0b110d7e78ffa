//! What a mount may answer by itself, and until when.

use std::time::Duration;

use bytes::Bytes;
use protocol::fs::{Attributes, Operation, Outcome, Recalled, Reply, SLOT_NONE, SetAttributes};
use protocol::mistakes::{Mistake, choose};
use protocol::units::{ObjectId, Sequence, Term};

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
    assert_eq!(
        cache.gives_back(&forget, &[], ms(4)),
        None,
        "it was presented"
    );

    let mut cache = found(ms(0), ms(1));
    let recalled = Recalled {
        number: 4,
        objects: vec![FILE, DIRECTORY],
    };
    let forget = cache.recalled(recalled, ms(2));
    let given = cache
        .gives_back(&forget, &[FILE], ms(3))
        .expect("nobody came");
    assert_eq!((given.number, &given.objects[..]), (4, &[DIRECTORY][..]));
    let other = Forget {
        number: 5,
        ..Forget::default()
    };
    assert_eq!(
        cache.gives_back(&other, &[], ms(3)),
        None,
        "nothing was recalled"
    );
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

/// After a split brain, or a take-over that lost something: what was told may never have been.
#[test]
fn coh_1_nothing_is_known_any_more_where_the_primary_lacks_what_was_confirmed() {
    let mut cache = found(ms(0), ms(1));
    cache.look(&look_up(), ms(2)).expect("it is known");
    let seen = (Term(5), Sequence(10));
    for whole in [
        vec![],
        vec![(Term(5), Sequence(10))],
        vec![(Term(4), Sequence(9))],
    ] {
        assert_eq!(cache.let_in(&whole, seen, ms(3)), None);
    }
    let ends = [(Term(5), Sequence(9))];
    let forget = cache.let_in(&ends, seen, ms(3)).expect("it lacks one");
    assert_eq!(forget.attributes, [FILE]);
    assert!(!knows(&mut cache, ms(3)));
    assert_eq!(cache.present(ms(3)), []);
    assert_eq!(cache.gives_back(&forget, &[], ms(4)), None);
}

fn recall(number: u64) -> Recalled {
    Recalled {
        number,
        objects: vec![FILE],
    }
}

/// Of what the kernel may know whatever it was told the lease runs out: another primary must hear of
/// it, and a second recall may not give it back.
#[test]
fn coh_1_what_the_kernel_may_still_know_counts_as_held_until_it_runs_out() {
    let mut cache = found(ms(0), ms(1));
    let forget = cache.recalled(recall(1), ms(2));
    let given = cache
        .gives_back(&forget, &[FILE], ms(3))
        .expect("it was recalled");
    assert_eq!(given.objects, []);
    assert!(cache.present(ms(4)).contains(&FILE));
    let again = cache.recalled(recall(2), ms(5));
    let given = cache
        .gives_back(&again, &[], ms(6))
        .expect("it was recalled");
    assert_eq!(given.objects, [], "the kernel was not told anything new");
    let late = cache.recalled(recall(3), ms(7));
    let given = cache
        .gives_back(&late, &[], BELIEVED)
        .expect("it was recalled");
    assert_eq!(given.objects, [FILE]);
}

/// The kernel notices only with some answers that they were overtaken by the word that they are old.
#[test]
fn coh_1_the_kernel_keeps_no_attributes_from_an_answer_that_could_be_overtaken() {
    let file = Attributes {
        object: FILE,
        ..Attributes::default()
    };
    let link = Operation::Link {
        object: FILE,
        new_parent: DIRECTORY,
        new_name: Bytes::from_static(b"other"),
    };
    let set = Operation::SetAttributes {
        object: FILE,
        set: SetAttributes::default(),
    };
    for (operation, outcome) in [
        (link, Outcome::Entry(file)),
        (set, Outcome::Attributes(file)),
    ] {
        let mut cache = found(ms(0), ms(1));
        let changes = cache.asks(&operation, ms(2));
        cache.over(&operation, &changes);
        let reply = reply(&[DIRECTORY, FILE], outcome.clone());
        cache.answered(&operation, &reply, ms(2), false, ms(3));
        let fresh = cache.fresh(&operation, &outcome, ms(3));
        assert!(fresh.attributes.is_zero(), "{operation:?}");
        let of_file = Operation::GetAttributes { object: FILE };
        assert!(
            cache.look(&of_file, ms(4)).is_some(),
            "the mount knows them"
        );
    }
}

/// It has no time for ACLs: it forgets them when it has to ask for attributes.
#[test]
fn coh_1_a_name_brings_no_attributes_where_the_kernel_may_have_an_acl() {
    let mut cache = found(ms(0), ms(1));
    let of_file = Operation::GetAttributes { object: FILE };
    let ask = Operation::GetXattr {
        object: FILE,
        name: Bytes::from_static(b"system.posix_acl_access"),
    };
    cache.asks(&ask, ms(2));
    let (_, named) = cache.look(&look_up(), ms(3)).expect("it is known");
    let (_, asked) = cache.look(&of_file, ms(3)).expect("it is known");
    assert!(named.attributes.is_zero() && !named.names.is_zero());
    assert!(!asked.attributes.is_zero());
}

#[test]
fn coh_1_a_process_that_stood_still_on_the_way_to_the_kernel_gives_it_nothing_to_keep() {
    let mut cache = found(ms(0), ms(1));
    let (_, fresh) = cache.look(&look_up(), ms(100)).expect("it is known");
    assert_eq!(fresh.in_time(ms(101)), fresh);
    let late = fresh.in_time(ms(100 + 350));
    assert!(late.names.is_zero() && late.attributes.is_zero());
    assert!(!fresh.is_late(ms(799)) && fresh.is_late(ms(800)));
}

#[test]
fn coh_1_what_was_handed_to_the_kernel_a_moment_ago_may_be_on_its_way_inside_of_it() {
    for (at, lately) in [(ms(101), true), (ms(900), false)] {
        let mut cache = found(ms(0), ms(1));
        cache.look(&look_up(), ms(100)).expect("it is known");
        let forget = cache.recalled(recall(1), at);
        assert_eq!(forget.attributes, [FILE]);
        assert_eq!(forget.lately.contains(&FILE), lately);
    }
}
