//! What a mount may answer by itself, and until when.

use std::time::Duration;

use bytes::Bytes;
use protocol::fs::{
    Attributes, DirectoryEntry, Operation, Outcome, Recalled, Reply, SLOT_NONE, SetAttributes,
    SetTime,
};
use protocol::mistakes::{Mistake, choose};
use protocol::units::{ObjectId, Sequence, Term, Timestamp};

use super::{CACHE_BYTES_MIN, Cache, Forget, LEASE_BYTES, bytes_of};

const DIRECTORY: ObjectId = ObjectId::ROOT;
const FILE: ObjectId = ObjectId(7);
const LEASE_MS: u16 = 2_000;
/// So long a mount believes in a lease of 2 s.
const BELIEVED: Duration = Duration::from_millis(1_960);

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// The longest file, in bytes.
const LONGEST: u64 = 1 << 44;

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
        exclusive: None,
        times: Vec::new(),
        busy: Vec::new(),
        directories: Vec::new(),
        outcome,
    }
}

/// It found the file, was leased it and its directory, and had asked at `asked`.
fn found(asked: Duration, now: Duration) -> Cache {
    let mut cache = Cache::default();
    cache.files_up_to(LONGEST);
    let changes = cache.asks(&look_up(), false, asked);
    cache.over(&look_up(), &changes, false);
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
    let changes = cache.asks(&unlink(), false, ms(2));
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
    cache.over(&unlink(), &changes, false);
    cache.answered(&look_up(), &before, ms(5), false, ms(6));
    assert!(knows(&mut cache, ms(6)));
}

#[test]
fn coh_1_the_attributes_of_a_directory_that_an_answer_changed_are_known_unless_it_changes_again() {
    let directory = |at: i64| Attributes {
        object: DIRECTORY,
        ctime: Timestamp(at),
        ..Attributes::default()
    };
    let told = |at, leases: &[ObjectId]| Reply {
        old: vec![DIRECTORY],
        directories: vec![directory(at)],
        ..reply(leases, Outcome::Done)
    };
    let look = Operation::GetAttributes { object: DIRECTORY };
    let known = |cache: &mut Cache| cache.look(&look, ms(9)).map(|(outcome, _)| outcome);
    let another = Operation::MakeDirectory {
        parent: DIRECTORY,
        name: Bytes::from_static(b"another"),
        mode: 0o755,
    };

    let mut cache = found(ms(0), ms(1));
    let first = cache.asks(&unlink(), false, ms(2));
    let second = cache.asks(&another, false, ms(3));
    cache.over(&unlink(), &first, false);
    let answer = told(5, &[DIRECTORY]);
    cache.answered(&unlink(), &answer, ms(2), false, ms(4));
    assert_eq!(
        known(&mut cache),
        None,
        "others may see the second one already"
    );
    cache.over(&another, &second, false);
    cache.answered(&another, &told(6, &[DIRECTORY]), ms(3), false, ms(5));
    assert_eq!(known(&mut cache), Some(Outcome::Attributes(directory(6))));

    // Others may have changed it since.
    let third = cache.asks(&unlink(), false, ms(6));
    cache.over(&unlink(), &third, false);
    cache.answered(&unlink(), &told(7, &[]), ms(6), false, ms(7));
    assert_eq!(known(&mut cache), None);
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
fn coh_1_a_recall_of_a_new_primary_is_not_answered_for_an_old_one_of_the_same_number() {
    let mut cache = found(ms(0), ms(1));
    let recall = |object| Recalled {
        number: 3,
        objects: vec![object],
    };
    let old = cache.recalled(recall(DIRECTORY), ms(2));
    cache.present(ms(3));
    let new = cache.recalled(recall(FILE), ms(4));
    assert_eq!(
        cache.gives_back(&old, &[], ms(5)),
        None,
        "the kernel may still know the file"
    );
    let given = cache.gives_back(&new, &[], ms(6)).expect("it is asked for");
    assert_eq!((given.number, &given.objects[..]), (3, &[FILE][..]));
    let lost = cache.recalled(recall(FILE), ms(7));
    cache.clear();
    cache.recalled(recall(FILE), ms(8));
    assert_eq!(cache.gives_back(&lost, &[], ms(9)), None);
}

#[test]
fn coh_1_an_answer_that_comes_late_does_not_bring_old_attributes_back() {
    let file = |at: i64| Attributes {
        object: FILE,
        ctime: Timestamp(at),
        ..Attributes::default()
    };
    let look = Operation::GetAttributes { object: FILE };
    let mut cache = found(ms(0), ms(1));
    for (at, then) in [(5, 5), (4, 5), (5, 5), (6, 6)] {
        let answer = reply(&[FILE], Outcome::Attributes(file(at)));
        cache.answered(&look, &answer, ms(2), false, ms(3));
        let known = cache.look(&look, ms(4)).map(|(outcome, _)| outcome);
        assert_eq!(known, Some(Outcome::Attributes(file(then))), "{at}");
    }
    cache.changed(&[FILE]);
    let answer = reply(&[FILE], Outcome::Attributes(file(5)));
    cache.answered(&look, &answer, ms(5), false, ms(6));
    assert!(cache.look(&look, ms(6)).is_none(), "the next answer tells");
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

fn write(offset: u64) -> Operation {
    Operation::Write {
        object: FILE,
        offset,
        append: false,
        kill_privileges: false,
    }
}

/// A change that was answered early is answered by the primary.
fn taken(cache: &mut Cache, operation: &Operation, changes: &[ObjectId], ctime: i64) {
    let attributes = Attributes {
        object: FILE,
        ctime: Timestamp(ctime),
        size: 100,
        ..Attributes::default()
    };
    cache.over(operation, changes, true);
    let outcome = Outcome::Written {
        len: 1,
        offset: 0,
        attributes,
    };
    let reply = Reply {
        exclusive: Some(FILE),
        ..reply(&[FILE], outcome)
    };
    cache.answered(operation, &reply, ms(1), false, ms(1));
}

/// It holds the file alone, whose size is 100.
fn alone() -> Cache {
    let mut cache = found(ms(0), ms(0));
    assert!(
        cache.early(&write(0), 1, ms(1)).is_none(),
        "others may look at it"
    );
    let changes = cache.asks(&write(0), false, ms(1));
    taken(&mut cache, &write(0), &changes, 5);
    assert_eq!(cache.alone(), [FILE]);
    cache
}

fn early_size(cache: &mut Cache, offset: u64) -> Option<u64> {
    let (known, outcome) = cache.early(&write(offset), 50, ms(2))?;
    assert_eq!(known, Timestamp(5), "by the last answer");
    cache.asks(&write(offset), true, ms(2));
    match outcome {
        Outcome::Written { attributes, .. } => Some(attributes.size),
        other => panic!("{other:?}"),
    }
}

#[test]
fn cl_1_what_a_mount_holds_alone_it_changes_before_it_asks() {
    let mut cache = alone();
    assert_eq!(early_size(&mut cache, 0), Some(100));
    assert_eq!(early_size(&mut cache, 80), Some(130));
    let set = SetAttributes {
        mode: Some(0o4755),
        mtime: Some(SetTime::At(Timestamp(9))),
        ..SetAttributes::default()
    };
    let set_mode = Operation::SetAttributes { object: FILE, set };
    let Some((_, Outcome::Attributes(now))) = cache.early(&set_mode, 0, ms(2)) else {
        panic!("it holds the file alone");
    };
    assert_eq!((now.mode, now.mtime, now.size), (0o4755, Timestamp(9), 130));
    let look = Operation::GetAttributes { object: FILE };
    assert!(
        cache.look(&look, ms(2)).is_none(),
        "times are the primary's"
    );
}

#[test]
fn cl_1_nothing_is_answered_early_whose_outcome_is_not_sure() {
    let append = Operation::Write {
        object: FILE,
        offset: 0,
        append: true,
        kill_privileges: false,
    };
    let set = SetAttributes {
        size: Some(1),
        ..SetAttributes::default()
    };
    let truncate = Operation::SetAttributes { object: FILE, set };
    for unsure in [append, truncate.clone(), unlink()] {
        assert!(alone().early(&unsure, 1, ms(2)).is_none(), "{unsure:?}");
    }
    assert!(alone().early(&write(u64::MAX), 1, ms(2)).is_none());
    assert!(alone().early(&write(LONGEST - 1), 1, ms(2)).is_some());
    assert!(alone().early(&write(LONGEST), 1, ms(2)).is_none());
    assert!(
        alone().early(&write(0), 1, BELIEVED + ms(1)).is_none(),
        "it ran out"
    );
    // Whatever it comes to, the mount does not know the file's size before the answer.
    let mut cache = alone();
    let changes = cache.asks(&truncate, false, ms(2));
    assert!(cache.early(&write(0), 1, ms(2)).is_none());
    taken(&mut cache, &truncate, &changes, 6);
    assert!(cache.early(&write(0), 1, ms(2)).is_some());
}

#[test]
fn coh_1_what_is_recalled_is_not_changed_before_it_is_asked() {
    let mut cache = alone();
    let recalled = Recalled {
        number: 1,
        objects: vec![FILE],
    };
    cache.recalled(recalled, ms(2));
    assert!(cache.early(&write(0), 1, ms(2)).is_none() && cache.alone().is_empty());
}

#[test]
fn cl_1_after_an_early_change_failed_the_next_waits_for_an_answer() {
    let mut cache = alone();
    let changes = cache.asks(&write(0), true, ms(2));
    cache.over(&write(0), &changes, true);
    cache.failed(FILE);
    assert!(cache.early(&write(0), 1, ms(2)).is_none());
}

/// It was given back behind the change, or ran out, and then the connection broke.
#[test]
fn cl_1_what_was_changed_early_is_named_to_whoever_lets_the_mount_in_until_it_is_answered() {
    let mut cache = alone();
    let changes = cache.asks(&write(0), true, ms(2));
    let recalled = Recalled {
        number: 1,
        objects: vec![FILE],
    };
    let forget = cache.recalled(recalled, ms(2));
    assert!(cache.gives_back(&forget, &[], ms(2)).is_some());
    assert_eq!(cache.present(ms(3)), [DIRECTORY]);
    assert_eq!(
        (cache.alone(), cache.early_under_way()),
        (vec![], vec![FILE])
    );
    assert_eq!(cache.present(BELIEVED + ms(1)), []);
    assert_eq!(cache.early_under_way(), [FILE]);
    cache.over(&write(0), &changes, true);
    assert_eq!(cache.early_under_way(), []);
}

/// It was renamed, and a later change that named the time before was taken for one over another's.
#[test]
fn fo_6_when_its_own_other_changes_were_the_mount_knows_as_well() {
    let mut cache = alone();
    let moved = Operation::Rename {
        parent: DIRECTORY,
        name: Bytes::from_static(b"file"),
        new_parent: DIRECTORY,
        new_name: Bytes::from_static(b"moved"),
        flags: 0,
    };
    let changes = cache.asks(&moved, false, ms(2));
    cache.over(&moved, &changes, false);
    let told = Reply {
        times: vec![(FILE, Timestamp(8))],
        ..reply(&[], Outcome::Done)
    };
    cache.answered(&moved, &told, ms(2), false, ms(2));
    let look = Operation::GetAttributes { object: FILE };
    let mut known_after = |ctime| {
        let file = Attributes {
            object: FILE,
            ctime: Timestamp(ctime),
            ..Attributes::default()
        };
        let answer = reply(&[FILE], Outcome::Attributes(file));
        cache.answered(&look, &answer, ms(2), false, ms(2));
        cache.early(&write(0), 1, ms(3)).map(|(known, _)| known)
    };
    assert_eq!(known_after(5), None, "that was before it was moved");
    assert_eq!(known_after(8), Some(Timestamp(8)));
}

/// The kernel has them taken away by whoever lacks CAP_FSETID: nobody but root wrote early.
#[test]
fn cl_1_a_write_that_takes_privileges_away_is_answered_early_where_there_are_none() {
    let by_user = Operation::Write {
        object: FILE,
        offset: 0,
        append: false,
        kill_privileges: true,
    };
    let early = |mode| {
        let mut cache = alone();
        let set = SetAttributes {
            mode: Some(mode),
            ..SetAttributes::default()
        };
        let set = Operation::SetAttributes { object: FILE, set };
        cache.early(&set, 0, ms(2)).expect("it has it alone");
        cache.asks(&set, true, ms(2));
        cache.early(&by_user, 1, ms(2)).is_some()
    };
    assert!(early(0o1777) && !early(0o4755) && !early(0o2755));
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
        let changes = cache.asks(&operation, false, ms(2));
        cache.over(&operation, &changes, false);
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
    cache.asks(&ask, false, ms(2));
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

/// Whoever changes names there would wait until the kernel has forgotten them.
#[test]
fn coh_1_the_kernel_keeps_no_names_of_a_directory_that_others_change() {
    let mut cache = Cache::default();
    let file = Attributes {
        object: FILE,
        ..Attributes::default()
    };
    let reply = Reply {
        busy: vec![DIRECTORY],
        ..reply(&[DIRECTORY, FILE], Outcome::Entry(file))
    };
    cache.answered(&look_up(), &reply, ms(0), false, ms(1));
    let (_, fresh) = cache.look(&look_up(), ms(2)).expect("the mount knows it");
    assert!(fresh.names.is_zero() && !fresh.attributes.is_zero());
    let recalled = Recalled {
        number: 1,
        objects: vec![DIRECTORY],
    };
    let forget = cache.recalled(recalled, ms(3));
    assert_eq!(forget.names_until, Duration::ZERO, "nobody waits");
}

/// A listing of so many files in a directory, all of them leased.
fn lists(cache: &mut Cache, directory: ObjectId, count: u64, now: Duration) {
    let entry = |at: u64| DirectoryEntry {
        name: Bytes::from(format!("a name that is not short at all {at}")),
        object: ObjectId(directory.0 * 100_000 + at),
        file_type: 0o100_000,
        cookie: at + 1,
        attributes: Some(Attributes {
            object: ObjectId(directory.0 * 100_000 + at),
            ..Attributes::default()
        }),
    };
    let entries: Vec<_> = (0..count).map(entry).collect();
    let mut leases = vec![directory];
    leases.extend(entries.iter().map(|entry| entry.object));
    // The primary gives no more.
    leases.truncate(cache.leases_max() - cache.len());
    let operation = Operation::ReadDirectory {
        object: directory,
        cookie: 0,
        bytes_max: 1 << 16,
        plus: true,
    };
    let reply = reply(&leases, Outcome::Entries(entries));
    cache.answered(&operation, &reply, now, false, now);
}

#[test]
fn what_a_mount_remembers_takes_no_more_than_it_may() {
    let mut cache = Cache::new(CACHE_BYTES_MIN);
    let bounds = cache.bounds;
    assert!(bounds.leases * LEASE_BYTES + bounds.name_bytes <= 1 << 20);
    for directory in 1..40 {
        lists(&mut cache, ObjectId(directory), 100, ms(directory));
        // What is offered is recalled, and given back.
        let offered = cache.to_offer();
        if !offered.is_empty() {
            let recalled = Recalled {
                number: directory,
                objects: offered,
            };
            let forget = cache.recalled(recalled, ms(directory));
            cache.gives_back(&forget, &[], ms(directory));
        }
        let names: usize = cache.held.values().map(|held| bytes_of(&held.names)).sum();
        assert_eq!(names, cache.name_bytes);
        assert!(
            cache.name_bytes <= bounds.name_bytes,
            "{}",
            cache.name_bytes
        );
        assert!(cache.len() <= bounds.leases, "{}", cache.len());
    }
    let known = |cache: &mut Cache, directory| {
        let name = Bytes::from_static(b"a name that is not short at all 7");
        let parent = ObjectId(directory);
        let look = Operation::Lookup { parent, name };
        cache.look(&look, ms(40)).is_some()
    };
    assert!(known(&mut cache, 39), "what was listed last is known");
    assert!(!known(&mut cache, 1), "what was used longest ago is not");
}

#[test]
fn a_directory_that_is_larger_than_all_room_leaves_the_others_alone_in_the_end() {
    let mut cache = Cache::new(CACHE_BYTES_MIN);
    lists(&mut cache, ObjectId(1), 1, ms(1));
    for at in 0..20_000 {
        cache.keep_name(ObjectId(1), &Bytes::from(format!("name {at}")), None);
    }
    assert!(cache.name_bytes <= cache.bounds.name_bytes);
    lists(&mut cache, ObjectId(2), 10, ms(2));
    let name = Bytes::from_static(b"a name that is not short at all 7");
    let parent = ObjectId(2);
    assert!(
        cache
            .look(&Operation::Lookup { parent, name }, ms(3))
            .is_some()
    );
}

/// A change that is asked for at `now`, and answered at once.
fn changes(
    cache: &mut Cache,
    operation: &Operation,
    leases: &[ObjectId],
    outcome: Outcome,
    now: Duration,
) {
    let objects = cache.asks(operation, false, now);
    cache.over(operation, &objects, false);
    let reply = reply(leases, outcome);
    cache.answered(operation, &reply, now, false, now);
}

/// A directory that the mount made itself, at 1 ms.
fn made_directory(again: bool) -> (Cache, ObjectId) {
    let new = ObjectId(20);
    let mut cache = found(ms(0), ms(1));
    let make = Operation::MakeDirectory {
        parent: DIRECTORY,
        name: Bytes::from_static(b"new"),
        mode: 0o755,
    };
    let directory = Attributes {
        object: new,
        ..Attributes::default()
    };
    let objects = cache.asks(&make, false, ms(1));
    cache.over(&make, &objects, false);
    let reply = reply(&[DIRECTORY, new], Outcome::Entry(directory));
    cache.answered(&make, &reply, ms(1), again, ms(1));
    (cache, new)
}

#[test]
fn coh_1_in_a_directory_that_a_mount_made_itself_there_is_nothing_that_it_did_not_make() {
    let (mut cache, new) = made_directory(false);
    let name = Bytes::from_static(b"file");
    let look = Operation::Lookup {
        parent: new,
        name: name.clone(),
    };
    let answer = |cache: &mut Cache| cache.look(&look, ms(2)).map(|(outcome, _)| outcome);
    let nothing = Some(Outcome::Error(2));
    assert_eq!(answer(&mut cache), nothing);
    let create = Operation::Link {
        object: FILE,
        new_parent: new,
        new_name: name.clone(),
    };
    let file = Attributes {
        object: FILE,
        ..Attributes::default()
    };
    let objects = cache.asks(&create, false, ms(2));
    assert_eq!(answer(&mut cache), None, "it is on its way");
    cache.over(&create, &objects, false);
    assert_eq!(answer(&mut cache), None, "nobody said what it came to");
    changes(&mut cache, &create, &[], Outcome::Error(17), ms(2));
    assert_eq!(answer(&mut cache), None, "nor does that");
    changes(
        &mut cache,
        &create,
        &[new, FILE],
        Outcome::Entry(file),
        ms(2),
    );
    assert_eq!(answer(&mut cache), Some(Outcome::Entry(file)));
    let unlink = Operation::Unlink { parent: new, name };
    changes(&mut cache, &unlink, &[], Outcome::Done, ms(2));
    assert_eq!(answer(&mut cache), nothing, "it removed it");
    // Two at once: either may have been the later one.
    let one = cache.asks(&unlink, false, ms(2));
    let other = cache.asks(&create, false, ms(2));
    cache.over(&create, &other, false);
    cache.over(&unlink, &one, false);
    cache.answered(&unlink, &reply(&[], Outcome::Done), ms(2), false, ms(2));
    assert_eq!(answer(&mut cache), None);
    let names: usize = cache.held.values().map(|held| bytes_of(&held.names)).sum();
    assert_eq!(names, cache.name_bytes);
}

#[test]
fn coh_1_in_a_directory_that_others_may_have_changed_or_that_was_made_before_names_are_asked_for() {
    let new_name = |cache: &mut Cache, parent| {
        let name = Bytes::from_static(b"file");
        cache.look(&Operation::Lookup { parent, name }, ms(2))
    };
    let (mut cache, new) = made_directory(true);
    assert_eq!(
        new_name(&mut cache, new),
        None,
        "it was asked more than once"
    );
    let (mut cache, new) = made_directory(false);
    assert!(new_name(&mut cache, new).is_some());
    let recalled = Recalled {
        number: 1,
        objects: vec![new],
    };
    let forget = cache.recalled(recalled, ms(2));
    assert_eq!(new_name(&mut cache, new), None, "it was recalled");
    cache.gives_back(&forget, &[], ms(2));
    let attributes = Attributes {
        object: new,
        ..Attributes::default()
    };
    let look = Operation::GetAttributes { object: new };
    let reply = reply(&[new], Outcome::Attributes(attributes));
    cache.answered(&look, &reply, ms(2), false, ms(2));
    assert_eq!(new_name(&mut cache, new), None, "it is leased anew");
}
