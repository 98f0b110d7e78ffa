//! FO-2: each operation takes effect exactly once.

use protocol::fs::{Operation, Outcome, SLOT_NONE};
use protocol::ids::SessionId;
use protocol::units::Sequence;

use super::{Bench, ROOT, name};
use crate::errno::EEXIST;
use crate::{
    Admission, KeptReply, Session, admit, end_session, kept_reply, open_session, sessions,
};

#[test]
fn a_repeated_append_returns_the_first_answer_and_appends_once() {
    let mut bench = Bench::new();
    let object = bench.file(ROOT, "f");
    let append = Operation::Write {
        object,
        offset: 0,
        append: true,
        kill_privileges: false,
    };
    let request = bench.request(append, b"abc");
    let first = bench.serve(&request);
    let after = bench.volume.clone();
    assert_eq!(bench.serve(&request), first);
    assert_eq!(bench.volume, after);
    assert_eq!(bench.attributes(object).size, 3);
}

#[test]
fn a_repeated_exclusive_create_succeeds_and_another_sessions_does_not() {
    let mut bench = Bench::new();
    let create = Operation::Create {
        parent: ROOT,
        name: name("lock"),
        mode: 0o600,
        exclusive: true,
    };
    let request = bench.request(create, b"");
    let first = bench.serve(&request);
    assert_eq!(bench.serve(&request), first);
    assert!(crate::opened(&request.operation, &first).is_some());
    bench.session = SessionId([6; 16]);
    assert_eq!(bench.serve(&request), Outcome::Error(EEXIST));
}

#[test]
fn numbers_may_skip_but_not_go_back() {
    let last = KeptReply {
        number: 7,
        sequence: Some(Sequence(3)),
        outcome: Outcome::Done,
    };
    let kept = Some(last.clone());
    assert_eq!(admit(kept.clone(), 7), Admission::Kept(last));
    assert_eq!(admit(kept.clone(), 8), Admission::Execute);
    assert_eq!(admit(kept.clone(), 12), Admission::Execute);
    assert_eq!(admit(kept, 6), Admission::Past { last: 7 });
    assert_eq!(admit(None, 1), Admission::Execute);
}

#[test]
fn a_change_without_a_slot_is_an_error_of_the_caller() {
    let mut bench = Bench::new();
    let unlink = Operation::Unlink {
        parent: ROOT,
        name: name("x"),
    };
    let mut request = bench.request(unlink, b"");
    request.slot = SLOT_NONE;
    let context = crate::Context {
        now: protocol::units::Timestamp(0),
        new_object: protocol::units::ObjectId(2),
        session: bench.session,
        sequence: Sequence(2),
        is_open: &|_| false,
        allocated_bytes: &|_| 0,
        object_bytes_max: 1 << 40,
    };
    let error = crate::execute(&bench.volume, &context, &request).expect_err("no slot");
    assert!(matches!(error, crate::ExecuteError::Slot { .. }));
}

#[test]
fn an_ended_session_leaves_nothing_and_others_stay() {
    let mut bench = Bench::new();
    let info = Session {
        client_name: "app1".to_owned(),
        mounted_at_ms: 1_700_000_000_000,
        read_only: false,
        began: Default::default(),
        owner: crate::Owner::Local,
    };
    let (one, two) = (SessionId([1; 16]), SessionId([2; 16]));
    for id in [one, two] {
        bench
            .volume
            .apply(&[open_session(id, &info)], &bytes::Bytes::new());
        bench.session = id;
        bench.file(ROOT, &id.to_string());
    }
    let listed = sessions(&bench.volume).expect("memory");
    assert_eq!(listed, [(one, info.clone()), (two, info)]);
    let changes = end_session(&bench.volume, one).expect("memory");
    assert_eq!(changes.len(), 2);
    bench.volume.apply(&changes, &bytes::Bytes::new());
    assert_eq!(kept_reply(&bench.volume, one, 3).expect("memory"), None);
    assert!(kept_reply(&bench.volume, two, 3).expect("memory").is_some());
    assert_eq!(sessions(&bench.volume).expect("memory").len(), 1);
}
