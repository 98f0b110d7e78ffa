//! `root-squash`: what root of a mount, and who it says that it is, may do.

use protocol::fs::{Caller, Operation, Outcome, SetAttributes, SetTime};
use protocol::units::{ObjectId, Timestamp};

use super::{Bench, ROOT, name};
use crate::NOBODY;
use crate::acl::tests::acl;
use crate::errno::{EACCES, ENODATA, EPERM};

const ROOTS: u32 = 0;
const USER: u32 = 1000;
const OTHER: u32 = 2000;

/// As root of a mount may where nothing is squashed.
fn by(bench: &mut Bench, uid: u32, operation: Operation) -> Outcome {
    bench.caller = caller(uid);
    bench.run_with(operation, b"data")
}

fn caller(id: u32) -> Caller {
    Caller {
        uid: id,
        gid: id,
        umask: 0,
    }
}

/// The same where root is squashed.
fn squashed(bench: &mut Bench, uid: u32, operation: Operation) -> Outcome {
    bench.caller = caller(uid);
    let request = bench.request(operation, b"data");
    match crate::squash(&bench.volume, &request).expect("a memory volume serves") {
        Ok(request) => bench.serve(&request),
        Err(errno) => Outcome::Error(errno),
    }
}

fn refused(bench: &mut Bench, uid: u32, operation: Operation, errno: i32) {
    let said = squashed(bench, uid, operation.clone());
    assert_eq!(said, Outcome::Error(errno), "{uid}: {operation:?}");
}

fn done(bench: &mut Bench, uid: u32, operation: Operation) -> Outcome {
    let said = squashed(bench, uid, operation.clone());
    assert!(
        !matches!(said, Outcome::Error(_)),
        "{uid}: {operation:?}: {said:?}"
    );
    said
}

fn directory(parent: ObjectId, text: &str, mode: u32) -> Operation {
    Operation::MakeDirectory {
        parent,
        name: name(text),
        mode,
    }
}

fn file(parent: ObjectId, text: &str, mode: u32) -> Operation {
    Operation::Create {
        parent,
        name: name(text),
        mode,
        exclusive: true,
    }
}

fn unlink(parent: ObjectId, text: &str) -> Operation {
    let name = name(text);
    Operation::Unlink { parent, name }
}

fn write(object: ObjectId) -> Operation {
    Operation::Write {
        object,
        offset: 0,
        append: false,
        kill_privileges: false,
    }
}

fn read(object: ObjectId) -> Operation {
    Operation::Read {
        object,
        offset: 0,
        len: 4,
    }
}

fn set(object: ObjectId, set: SetAttributes) -> Operation {
    Operation::SetAttributes { object, set }
}

fn chmod(object: ObjectId, mode: u32) -> Operation {
    set(
        object,
        SetAttributes {
            mode: Some(mode),
            ..SetAttributes::default()
        },
    )
}

fn chown(object: ObjectId, uid: Option<u32>, gid: Option<u32>) -> Operation {
    set(
        object,
        SetAttributes {
            uid,
            gid,
            ..SetAttributes::default()
        },
    )
}

fn xattr(object: ObjectId, text: &str) -> Operation {
    Operation::SetXattr {
        object,
        name: name(text),
        flags: 0,
    }
}

fn object(said: Outcome) -> ObjectId {
    match said {
        Outcome::Entry(a) => a.object,
        other => panic!("{other:?}"),
    }
}

#[test]
fn bad_2_what_root_makes_is_nobodys_and_only_where_nobody_may() {
    let mut bench = Bench::new();
    refused(&mut bench, ROOTS, file(ROOT, "f", 0o644), EACCES);
    let shared = object(by(&mut bench, ROOTS, directory(ROOT, "shared", 0o777)));
    let made = object(done(&mut bench, ROOTS, file(shared, "f", 0o600)));
    let attributes = bench.attributes(made);
    assert_eq!((attributes.uid, attributes.gid), (NOBODY, NOBODY));
    done(&mut bench, ROOTS, write(made));
    done(&mut bench, ROOTS, chmod(made, 0o400));
    // As on any file that was opened when it still could be written.
    done(&mut bench, ROOTS, write(made));
    refused(&mut bench, ROOTS, chown(made, Some(0), None), EPERM);
    refused(&mut bench, ROOTS, chown(made, None, Some(0)), EPERM);
    let device = Operation::MakeNode {
        parent: shared,
        name: name("disk"),
        mode: 0o060_666,
        rdev: 0x800,
    };
    refused(&mut bench, ROOTS, device, EPERM);
}

#[test]
fn bad_2_root_reads_writes_and_removes_what_everybody_may_and_no_more() {
    let mut bench = Bench::new();
    let shared = object(by(&mut bench, ROOTS, directory(ROOT, "shared", 0o1777)));
    let closed = object(by(&mut bench, USER, directory(shared, "closed", 0o700)));
    let own = object(by(&mut bench, USER, file(closed, "own", 0o600)));
    let open = object(by(&mut bench, USER, file(shared, "open", 0o644)));
    for operation in [
        read(own),
        write(own),
        write(open),
        file(closed, "x", 0o644),
        Operation::Lookup {
            parent: closed,
            name: name("own"),
        },
        Operation::ReadDirectory {
            object: closed,
            cookie: 0,
            bytes_max: 4096,
            plus: false,
        },
        unlink(closed, "own"),
    ] {
        refused(&mut bench, ROOTS, operation.clone(), EACCES);
        done(&mut bench, USER, operation);
    }
    refused(&mut bench, ROOTS, chmod(open, 0o666), EPERM);
    refused(&mut bench, ROOTS, unlink(shared, "open"), EPERM);
    let moved = Operation::Rename {
        parent: shared,
        name: name("open"),
        new_parent: shared,
        new_name: name("mine"),
        flags: 0,
    };
    refused(&mut bench, ROOTS, moved, EPERM);
    done(&mut bench, ROOTS, read(open));
}

/// A mount says who asks. Who is root there becomes any user, and keeps root's capabilities, so that
/// the kernel there lets it do anything as that user.
#[test]
fn bad_2_no_user_of_a_mount_does_what_only_root_may() {
    let mut bench = Bench::new();
    let shared = object(by(&mut bench, ROOTS, directory(ROOT, "shared", 0o777)));
    let tool = object(by(&mut bench, ROOTS, file(shared, "tool", 0o755)));
    let own = object(done(&mut bench, USER, file(shared, "own", 0o644)));
    let at = SetAttributes {
        mtime: Some(SetTime::At(Timestamp(5))),
        ..SetAttributes::default()
    };
    refused(&mut bench, USER, write(tool), EACCES);
    refused(&mut bench, USER, set(tool, at), EPERM);
    refused(&mut bench, USER, chmod(tool, 0o4777), EPERM);
    refused(&mut bench, USER, chown(own, Some(0), None), EPERM);
    refused(&mut bench, USER, chown(own, None, Some(0)), EPERM);
    refused(&mut bench, USER, file(ROOT, "f", 0o644), EACCES);
    for text in ["trusted.x", "security.capability"] {
        refused(&mut bench, USER, xattr(own, text), EPERM);
    }
    let hidden = Operation::GetXattr {
        object: own,
        name: name("trusted.x"),
    };
    refused(&mut bench, USER, hidden, ENODATA);
    refused(&mut bench, OTHER, xattr(own, "user.x"), EACCES);
    done(&mut bench, USER, xattr(own, "user.x"));
}

/// Which groups a user is in only his machine knows. Group 0 is nobody's.
#[test]
fn a_user_may_what_one_of_his_groups_may_and_nobody_what_group_0_may() {
    let mut bench = Bench::new();
    let shared = object(by(&mut bench, ROOTS, directory(ROOT, "shared", 0o777)));
    let team = object(by(&mut bench, OTHER, file(shared, "team", 0o660)));
    let roots = object(by(&mut bench, ROOTS, file(shared, "roots", 0o660)));
    done(&mut bench, USER, write(team));
    refused(&mut bench, ROOTS, write(team), EACCES);
    refused(&mut bench, USER, write(roots), EACCES);
    refused(&mut bench, ROOTS, write(roots), EACCES);
    done(&mut bench, USER, chown(team, None, None));
    // A set-group-id bit is only given for a group of one's own.
    let own = object(done(&mut bench, USER, file(shared, "own", 0o2755)));
    assert_eq!(bench.attributes(own).mode & 0o7777, 0o2755);
    by(&mut bench, ROOTS, chown(shared, None, Some(0)));
    by(&mut bench, ROOTS, chmod(shared, 0o2777));
    let inherits = object(done(&mut bench, USER, file(shared, "inherits", 0o2755)));
    let attributes = bench.attributes(inherits);
    assert_eq!((attributes.gid, attributes.mode & 0o7777), (0, 0o755));
    done(&mut bench, USER, chmod(inherits, 0o2755));
    assert_eq!(bench.attributes(inherits).mode & 0o7777, 0o755);
}

#[test]
fn an_access_control_list_counts_where_root_is_squashed() {
    let mut bench = Bench::new();
    let shared = object(by(&mut bench, ROOTS, directory(ROOT, "shared", 0o777)));
    let own = object(by(&mut bench, OTHER, file(shared, "own", 0o600)));
    let list = acl(&["u::6", "u:1000:6", "u:3000:6", "g::0", "m::6", "o::0"]);
    bench.caller = caller(OTHER);
    bench.run_with(xattr(own, "system.posix_acl_access"), &list);
    done(&mut bench, USER, write(own));
    refused(&mut bench, 4000, write(own), EACCES);
    refused(&mut bench, ROOTS, write(own), EACCES);
    refused(
        &mut bench,
        USER,
        xattr(own, "system.posix_acl_access"),
        EPERM,
    );
    let list = acl(&["u::6", "u:1000:6", "g::0", "m::4", "o::0"]);
    bench.caller = caller(OTHER);
    bench.run_with(xattr(own, "system.posix_acl_access"), &list);
    refused(&mut bench, USER, write(own), EACCES);
    done(&mut bench, USER, read(own));
}
