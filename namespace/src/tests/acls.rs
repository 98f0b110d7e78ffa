//! POSIX ACLs: mode and ACL say the same, and directories hand theirs down.

use bytes::Bytes;
use protocol::fs::{Operation, Outcome, SetAttributes};
use protocol::units::ObjectId;

use super::{Bench, ROOT, name};
use crate::acl::tests::acl;
use crate::errno::{EACCES, EINVAL, ENODATA, EOPNOTSUPP};

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

impl Bench {
    fn set_acl(&mut self, object: ObjectId, text: &str, flags: u32, words: &[&str]) -> Outcome {
        let set = Operation::SetXattr {
            object,
            name: name(text),
            flags,
        };
        self.run_with(set, &acl(words))
    }

    fn acl_of(&mut self, object: ObjectId, text: &str) -> Option<Bytes> {
        let get = Operation::GetXattr {
            object,
            name: name(text),
        };
        match self.run(get) {
            Outcome::Data(value) => Some(value),
            Outcome::Error(ENODATA) => None,
            other => panic!("no value: {other:?}"),
        }
    }

    fn chmod(&mut self, object: ObjectId, mode: u32) {
        let set = SetAttributes {
            mode: Some(mode),
            ..SetAttributes::default()
        };
        self.entry(Operation::SetAttributes { object, set });
    }
}

#[test]
fn an_access_acl_changes_the_mode_and_chmod_changes_the_acl() {
    let mut bench = Bench::new();
    let file = bench.file(ROOT, "f");
    bench.chmod(file, 0o2755);
    let words = ["u::6", "u:7:7", "g::4", "m::5", "o::1"];
    assert_eq!(bench.set_acl(file, ACCESS, 0, &words), Outcome::Done);
    assert_eq!(bench.attributes(file).mode, 0o102_651);
    assert_eq!(bench.acl_of(file, ACCESS), Some(acl(&words)));
    bench.chmod(file, 0o720);
    let followed = acl(&["u::7", "u:7:7", "g::4", "m::2", "o::0"]);
    assert_eq!(bench.acl_of(file, ACCESS), Some(followed));
    // A mode says all of this one.
    let plain = ["u::7", "g::5", "o::0"];
    assert_eq!(bench.set_acl(file, ACCESS, 0, &plain), Outcome::Done);
    assert_eq!(bench.acl_of(file, ACCESS), None);
    assert_eq!(bench.attributes(file).mode, 0o100_750);
    let list = Operation::ListXattrs { object: file };
    assert_eq!(bench.run(list), Outcome::Data(Bytes::new()));
}

#[test]
fn an_access_acl_by_who_is_not_of_the_group_takes_set_group_id_away() {
    let mut bench = Bench::new();
    let file = bench.file(ROOT, "f");
    bench.chmod(file, 0o2755);
    let words = ["u::7", "u:7:7", "g::5", "m::5", "o::5"];
    assert_eq!(bench.set_acl(file, ACCESS, 4, &words), Outcome::Done);
    assert_eq!(bench.attributes(file).mode, 0o100_755);
}

#[test]
fn what_is_no_acl_or_stands_where_none_may_is_refused() {
    let mut bench = Bench::new();
    let file = bench.file(ROOT, "f");
    let whole = ["u::7", "g::5", "o::0"];
    let refused = bench.set_acl(file, ACCESS, 0, &["u::7", "g::5"]);
    assert_eq!(refused, Outcome::Error(EINVAL));
    let refused = bench.set_acl(file, DEFAULT, 0, &whole);
    assert_eq!(refused, Outcome::Error(EACCES));
    let link = Operation::Symlink {
        parent: ROOT,
        name: name("l"),
        target: name("f"),
    };
    let link = bench.entry(link).object;
    let refused = bench.set_acl(link, ACCESS, 0, &whole);
    assert_eq!(refused, Outcome::Error(EOPNOTSUPP));
}

#[test]
fn a_default_acl_is_handed_down_and_stands_in_for_the_umask() {
    let mut bench = Bench::new();
    bench.caller.umask = 0o077;
    let plain = bench.file(ROOT, "plain");
    assert_eq!(bench.attributes(plain).mode, 0o100_600);
    let dir = bench.directory(ROOT, "dir");
    let words = ["u::7", "u:7:7", "g::5", "m::7", "o::5"];
    assert_eq!(bench.set_acl(dir, DEFAULT, 0, &words), Outcome::Done);
    assert_eq!(
        bench.attributes(dir).mode,
        0o040_700,
        "it says nothing of itself"
    );

    let file = bench.file(dir, "file");
    assert_eq!(bench.attributes(file).mode, 0o100_644);
    let access = acl(&["u::6", "u:7:7", "g::5", "m::4", "o::4"]);
    assert_eq!(bench.acl_of(file, ACCESS), Some(access));
    assert_eq!(bench.acl_of(file, DEFAULT), None);

    let below = bench.directory(dir, "below");
    assert_eq!(bench.attributes(below).mode, 0o040_755);
    assert_eq!(bench.acl_of(below, DEFAULT), Some(acl(&words)));
    let access = acl(&["u::7", "u:7:7", "g::5", "m::5", "o::5"]);
    assert_eq!(bench.acl_of(below, ACCESS), Some(access));

    let link = Operation::Symlink {
        parent: dir,
        name: name("l"),
        target: name("f"),
    };
    assert_eq!(bench.entry(link).mode, 0o120_777);
    let before = bench.volume.clone();
    let passing = bench.file(dir, "passing");
    bench.done(Operation::Unlink {
        parent: dir,
        name: name("passing"),
    });
    let get = Operation::GetXattr {
        object: passing,
        name: name(ACCESS),
    };
    assert!(matches!(bench.run(get), Outcome::Error(_)));
    let count = |volume| crate::objects(volume).expect("memory");
    assert_eq!(count(&bench.volume), count(&before));
}

#[test]
fn a_default_acl_of_modes_only_leaves_no_acl_at_a_file() {
    let mut bench = Bench::new();
    bench.caller.umask = 0o077;
    let dir = bench.directory(ROOT, "dir");
    let words = ["u::7", "g::5", "o::0"];
    assert_eq!(bench.set_acl(dir, DEFAULT, 0, &words), Outcome::Done);
    let file = bench.file(dir, "file");
    assert_eq!(bench.attributes(file).mode, 0o100_640);
    assert_eq!(bench.acl_of(file, ACCESS), None);
}
