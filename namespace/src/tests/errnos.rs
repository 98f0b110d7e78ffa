//! Each refusal, and the side effects that POSIX wants.

use bytes::Bytes;
use protocol::fs::{Operation, Outcome, SetAttributes, SetTime};
use protocol::units::{ObjectId, Timestamp};

use super::{Bench, ROOT, name};
use crate::errno::*;
use crate::memory::MemoryVolume;

fn lookup(parent: ObjectId, text: &str) -> Operation {
    Operation::Lookup {
        parent,
        name: name(text),
    }
}

fn mkdir(parent: ObjectId, text: &str) -> Operation {
    Operation::MakeDirectory {
        parent,
        name: name(text),
        mode: 0o755,
    }
}

fn unlink(parent: ObjectId, text: &str) -> Operation {
    Operation::Unlink {
        parent,
        name: name(text),
    }
}

fn rmdir(parent: ObjectId, text: &str) -> Operation {
    Operation::RemoveDirectory {
        parent,
        name: name(text),
    }
}

#[test]
fn a_name_of_256_bytes_is_too_long_and_one_of_255_is_not() {
    let mut bench = Bench::new();
    let long = "n".repeat(256);
    assert_eq!(bench.errno(lookup(ROOT, &long)), ENAMETOOLONG);
    assert_eq!(bench.errno(mkdir(ROOT, &long)), ENAMETOOLONG);
    assert_eq!(bench.errno(unlink(ROOT, &long)), ENAMETOOLONG);
    bench.directory(ROOT, &long[1..]);
    assert_eq!(
        bench.rename(ROOT, &long[1..], ROOT, &long, 0),
        Outcome::Error(ENAMETOOLONG)
    );
}

#[test]
fn missing_names_and_wrong_types_are_refused_as_linux_does() {
    let mut bench = Bench::new();
    let file = bench.file(ROOT, "file");
    let dir = bench.directory(ROOT, "dir");
    bench.file(dir, "inner");
    assert_eq!(bench.errno(lookup(ROOT, "absent")), ENOENT);
    assert_eq!(bench.errno(lookup(file, "x")), ENOTDIR);
    assert_eq!(bench.errno(lookup(ObjectId(7), "x")), ENOENT);
    assert_eq!(bench.errno(mkdir(ROOT, "file")), EEXIST);
    assert_eq!(bench.errno(mkdir(file, "x")), ENOTDIR);
    assert_eq!(bench.errno(unlink(ROOT, "dir")), EISDIR);
    assert_eq!(bench.errno(rmdir(ROOT, "file")), ENOTDIR);
    assert_eq!(bench.errno(rmdir(ROOT, "dir")), ENOTEMPTY);
    assert_eq!(bench.errno(rmdir(ROOT, "absent")), ENOENT);
    assert_eq!(bench.errno(Operation::ReadLink { object: file }), EINVAL);
    let gone = Operation::GetAttributes {
        object: ObjectId(7),
    };
    assert_eq!(bench.errno(gone), ESTALE);
    let read = |object| Operation::Read {
        object,
        offset: 0,
        len: 1,
    };
    assert_eq!(bench.errno(read(dir)), EISDIR);
    let node = |mode| Operation::MakeNode {
        parent: ROOT,
        name: name("n"),
        mode,
        rdev: 5,
    };
    assert_eq!(bench.errno(node(0o040_755)), EPERM);
    assert_eq!(bench.errno(node(0o120_777)), EINVAL);
    assert_eq!(bench.entry(node(0o020_600)).rdev, 5);
}

#[test]
fn create_without_exclusive_opens_what_exists_and_changes_nothing() {
    let mut bench = Bench::new();
    let file = bench.file(ROOT, "file");
    bench.directory(ROOT, "dir");
    let create = |text: &str, exclusive| Operation::Create {
        parent: ROOT,
        name: name(text),
        mode: 0o600,
        exclusive,
    };
    let before = bench.volume.clone();
    assert_eq!(bench.entry(create("file", false)).object, file);
    assert_eq!(bench.errno(create("file", true)), EEXIST);
    assert_eq!(bench.errno(create("dir", false)), EISDIR);
    assert_eq!(bench.volume, before);
    let link = Operation::Symlink {
        parent: ROOT,
        name: name("link"),
        target: name("file"),
    };
    bench.entry(link);
    assert_eq!(bench.errno(create("link", false)), ESTALE);
}

#[test]
fn symlink_targets_have_limits() {
    let mut bench = Bench::new();
    let symlink = |text: &str, target: &str| Operation::Symlink {
        parent: ROOT,
        name: name(text),
        target: name(target),
    };
    assert_eq!(bench.errno(symlink("a", "")), ENOENT);
    assert_eq!(bench.errno(symlink("a", &"t".repeat(4096))), ENAMETOOLONG);
    let made = bench.entry(symlink("a", &"t".repeat(4095)));
    assert_eq!((made.size, made.mode), (4095, 0o120_777));
    let read = Operation::ReadLink {
        object: made.object,
    };
    assert_eq!(bench.run(read), Outcome::Data(name(&"t".repeat(4095))));
}

#[test]
fn hard_links_end_at_65000_and_never_lead_to_directories() {
    let mut bench = Bench::new();
    let file = bench.file(ROOT, "f");
    let dir = bench.directory(ROOT, "d");
    let link = |object, text: String| Operation::Link {
        object,
        new_parent: ROOT,
        new_name: Bytes::from(text),
    };
    assert_eq!(bench.errno(link(dir, "x".into())), EPERM);
    assert_eq!(bench.errno(link(file, "d".into())), EEXIST);
    assert_eq!(bench.errno(link(ObjectId(9), "x".into())), ESTALE);
    for n in 2..=65_000 {
        assert_eq!(bench.entry(link(file, format!("l{n}"))).nlink, n);
    }
    assert_eq!(bench.errno(link(file, "one more".into())), EMLINK);
}

#[test]
fn rename_refuses_what_would_break_the_tree() {
    let mut bench = Bench::new();
    let a = bench.directory(ROOT, "a");
    let b = bench.directory(a, "b");
    bench.file(ROOT, "f");
    let error = |outcome, errno| assert_eq!(outcome, Outcome::Error(errno));
    error(bench.rename(ROOT, "a", b, "x", 0), EINVAL);
    error(bench.rename(ROOT, "a", a, "x", 0), EINVAL);
    error(bench.rename(a, "b", ROOT, "a", 0), ENOTEMPTY);
    error(bench.rename(a, "b", ROOT, "a", 2), EINVAL);
    error(bench.rename(ROOT, "f", ROOT, "a", 0), EISDIR);
    error(bench.rename(ROOT, "a", ROOT, "f", 0), ENOTDIR);
    error(bench.rename(ROOT, "f", ROOT, "a", 1), EEXIST);
    error(bench.rename(ROOT, "f", ROOT, "none", 2), ENOENT);
    error(bench.rename(ROOT, "none", ROOT, "x", 0), ENOENT);
    error(bench.rename(ROOT, "f", ROOT, "x", 4), EINVAL);
    error(bench.rename(ROOT, "f", ROOT, "x", 3), EINVAL);
    bench.directory(ROOT, "full");
    let full = bench.entry(lookup(ROOT, "full")).object;
    bench.file(full, "x");
    error(bench.rename(ROOT, "a", ROOT, "full", 0), ENOTEMPTY);
}

#[test]
fn renaming_a_directory_moves_its_link_and_its_parent() {
    let mut bench = Bench::new();
    let a = bench.directory(ROOT, "a");
    let b = bench.directory(ROOT, "b");
    let inner = bench.directory(a, "inner");
    assert_eq!(bench.attributes(a).nlink, 3);
    assert_eq!(bench.rename(a, "inner", b, "inner", 0), Outcome::Done);
    assert_eq!(bench.attributes(a).nlink, 2);
    assert_eq!(bench.attributes(b).nlink, 3);
    // Its parent is b now: b cannot go below it, a can.
    assert_eq!(
        bench.rename(ROOT, "b", inner, "x", 0),
        Outcome::Error(EINVAL)
    );
    assert_eq!(bench.rename(ROOT, "a", inner, "x", 0), Outcome::Done);
}

#[test]
fn exchange_swaps_a_file_and_a_directory() {
    let mut bench = Bench::new();
    let a = bench.directory(ROOT, "a");
    let inner = bench.directory(a, "inner");
    let file = bench.file(ROOT, "file");
    assert_eq!(bench.rename(a, "inner", ROOT, "file", 2), Outcome::Done);
    assert_eq!(bench.entry(lookup(ROOT, "file")).object, inner);
    assert_eq!(bench.entry(lookup(a, "inner")).object, file);
    assert_eq!(bench.attributes(a).nlink, 2);
    assert_eq!(bench.attributes(ROOT).nlink, 4);
}

#[test]
fn renaming_over_a_link_of_the_same_file_does_nothing() {
    let mut bench = Bench::new();
    let file = bench.file(ROOT, "a");
    bench.entry(Operation::Link {
        object: file,
        new_parent: ROOT,
        new_name: name("b"),
    });
    let before = bench.volume.clone();
    assert_eq!(bench.rename(ROOT, "a", ROOT, "b", 0), Outcome::Done);
    assert_eq!(bench.volume, before);
}

#[test]
fn a_file_held_open_outlives_its_name_until_it_is_released() {
    let mut bench = Bench::new();
    let file = bench.file(ROOT, "a");
    bench.write(file, 0, b"data");
    bench.open.insert(file);
    bench.done(unlink(ROOT, "a"));
    assert_eq!(bench.attributes(file).nlink, 0);
    assert_eq!(crate::orphans(&bench.volume).expect("memory"), [file]);
    let link = Operation::Link {
        object: file,
        new_parent: ROOT,
        new_name: name("back"),
    };
    assert_eq!(bench.errno(link), ENOENT);
    assert!(matches!(
        bench.write(file, 4, b"more"),
        Outcome::Written { .. }
    ));
    bench.volume.release(file).expect("memory");
    assert_eq!(bench.volume.objects_with_data().count(), 0);
    assert_eq!(crate::objects(&bench.volume).expect("memory"), 1);
    bench
        .volume
        .release(file)
        .expect("a second time is nothing");
}

#[test]
fn a_set_group_id_directory_hands_its_group_down() {
    let mut bench = Bench::new();
    let dir = bench.directory(ROOT, "d");
    let set = SetAttributes {
        mode: Some(0o2775),
        gid: Some(77),
        ..SetAttributes::default()
    };
    bench.entry(Operation::SetAttributes { object: dir, set });
    let inner = bench.directory(dir, "inner");
    let file = bench.file(dir, "file");
    let inner = bench.attributes(inner);
    assert_eq!((inner.gid, inner.mode), (77, 0o042_755));
    let file = bench.attributes(file);
    assert_eq!((file.gid, file.mode, file.uid), (77, 0o100_644, 1000));
}

#[test]
fn a_write_takes_set_id_bits_and_capabilities_away() {
    let mut bench = Bench::new();
    let object = bench.file(ROOT, "f");
    let chmod = |mode| Operation::SetAttributes {
        object,
        set: SetAttributes {
            mode: Some(mode),
            ..SetAttributes::default()
        },
    };
    let capability = || Operation::SetXattr {
        object,
        name: name("security.capability"),
        flags: 0,
    };
    let write = |kill_privileges| Operation::Write {
        object,
        offset: 0,
        append: false,
        kill_privileges,
    };
    bench.entry(chmod(0o6755));
    assert_eq!(bench.run_with(capability(), b"cap"), Outcome::Done);
    bench.run_with(write(false), b"x");
    assert_eq!(bench.attributes(object).mode, 0o106_755);
    let list = Operation::ListXattrs { object };
    assert_eq!(bench.run(list), Outcome::Data(Bytes::new()));
    bench.run_with(write(true), b"x");
    assert_eq!(bench.attributes(object).mode, 0o100_755);
    // Without execution by the group the bit means mandatory locks, not privilege.
    bench.entry(chmod(0o6745));
    bench.run_with(write(true), b"x");
    assert_eq!(bench.attributes(object).mode, 0o102_745);
}

/// A new owner took the bits from regular files only; pjdfstest's chown/00 found it.
#[test]
fn a_new_owner_takes_set_id_bits_from_everything_but_directories() {
    let mut bench = Bench::new();
    for (text, kind) in [("f", 0o100_000), ("p", 0o010_000), ("s", 0o140_000)] {
        let node = Operation::MakeNode {
            parent: ROOT,
            name: name(text),
            mode: kind | 0o6755,
            rdev: 0,
        };
        let object = bench.entry(node).object;
        let set = SetAttributes {
            gid: Some(7),
            kill_privileges: true,
            ..SetAttributes::default()
        };
        let changed = bench.entry(Operation::SetAttributes { object, set });
        assert_eq!(changed.mode, kind | 0o755);
    }
    let object = bench.directory(ROOT, "d");
    let set = SetAttributes {
        mode: Some(0o6755),
        kill_privileges: true,
        ..SetAttributes::default()
    };
    let kept = bench.entry(Operation::SetAttributes { object, set });
    assert_eq!(kept.mode, 0o046_755);
}

#[test]
fn writes_and_sizes_end_where_a_file_offset_ends() {
    let mut bench = Bench::new();
    let object = bench.file(ROOT, "f");
    let last = i64::MAX as u64;
    assert_eq!(bench.write(object, last, b"x"), Outcome::Error(EFBIG));
    assert_eq!(bench.write(object, u64::MAX, b"x"), Outcome::Error(EFBIG));
    assert!(matches!(
        bench.write(object, last - 1, b"x"),
        Outcome::Written { .. }
    ));
    let size = |size| Operation::SetAttributes {
        object,
        set: SetAttributes {
            size: Some(size),
            ..SetAttributes::default()
        },
    };
    assert_eq!(bench.errno(size(last + 1)), EFBIG);
    let long = vec![0; (1 << 20) + 1];
    assert_eq!(bench.write(object, 0, &long), Outcome::Error(EINVAL));
    let dir = bench.directory(ROOT, "d");
    assert_eq!(bench.write(dir, 0, b"x"), Outcome::Error(EISDIR));
}

#[test]
fn an_append_goes_to_the_end_whatever_the_offset_says() {
    let mut bench = Bench::new();
    let object = bench.file(ROOT, "f");
    bench.write(object, 0, b"12345");
    let append = Operation::Write {
        object,
        offset: 1,
        append: true,
        kill_privileges: false,
    };
    match bench.run_with(append, b"67") {
        Outcome::Written {
            len,
            offset,
            attributes,
        } => assert_eq!((len, offset, attributes.size), (2, 5, 7)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_was_cut_off_reads_as_zero_when_the_file_grows_again() {
    let mut bench = Bench::new();
    let object = bench.file(ROOT, "f");
    bench.write(object, 0, &[7; 9000]);
    for size in [5, 9000] {
        let set = SetAttributes {
            size: Some(size),
            ..SetAttributes::default()
        };
        bench.entry(Operation::SetAttributes { object, set });
    }
    let read = Operation::Read {
        object,
        offset: 3,
        len: 9000,
    };
    let Outcome::Data(data) = bench.run(read) else {
        panic!("no data");
    };
    assert_eq!(data.len(), 8997);
    assert_eq!(&data[..3], &[7, 7, 0]);
    assert!(data[2..].iter().all(|byte| *byte == 0));
}

#[test]
fn fallocate_lengthens_punches_and_zeroes_and_refuses_the_rest() {
    let mut bench = Bench::new();
    let object = bench.file(ROOT, "f");
    bench.write(object, 0, &[7; 8192]);
    let allocate = |mode, offset, len| Operation::Allocate {
        object,
        mode,
        offset,
        len,
    };
    assert_eq!(bench.entry(allocate(0, 8000, 1000)).size, 9000);
    assert_eq!(bench.entry(allocate(1, 0, 1 << 30)).size, 9000);
    assert_eq!(bench.entry(allocate(3, 0, 4096)).size, 9000);
    assert_eq!(bench.entry(allocate(0x10, 8190, 2000)).size, 10_190);
    assert_eq!(bench.entry(allocate(0x11, 10_000, 2000)).size, 10_190);
    assert_eq!(bench.volume.read(object, 4095, 2), &[0_u8, 7][..]);
    assert_eq!(bench.volume.read(object, 8189, 2), &[7_u8, 0][..]);
    assert_eq!(bench.errno(allocate(2, 0, 1)), EOPNOTSUPP);
    assert_eq!(bench.errno(allocate(8, 0, 4096)), EOPNOTSUPP);
    assert_eq!(bench.errno(allocate(0, 0, 0)), EINVAL);
    assert_eq!(bench.errno(allocate(0, u64::MAX, 2)), EFBIG);
    let dir = bench.directory(ROOT, "d");
    let on_dir = Operation::Allocate {
        object: dir,
        mode: 0,
        offset: 0,
        len: 1,
    };
    assert_eq!(bench.errno(on_dir), EISDIR);
}

#[test]
fn seeking_finds_data_and_holes_within_the_size() {
    let mut bench = Bench::new();
    let object = bench.file(ROOT, "f");
    bench.write(object, 8192, &[1; 100]);
    let seek = |offset, whence| Operation::Seek {
        object,
        offset,
        whence,
    };
    assert_eq!(bench.run(seek(0, 3)), Outcome::Offset(8192));
    assert_eq!(bench.run(seek(10, 4)), Outcome::Offset(10));
    assert_eq!(bench.run(seek(8200, 4)), Outcome::Offset(8292));
    assert_eq!(bench.errno(seek(8292, 3)), ENXIO);
    assert_eq!(bench.errno(seek(8292, 4)), ENXIO);
    assert_eq!(bench.errno(seek(0, 5)), EINVAL);
    let set = SetAttributes {
        size: Some(20_000),
        ..SetAttributes::default()
    };
    bench.entry(Operation::SetAttributes { object, set });
    assert_eq!(bench.errno(seek(15_000, 3)), ENXIO);
}

#[test]
fn extended_attributes_keep_their_rules() {
    let mut bench = Bench::new();
    let object = bench.file(ROOT, "f");
    let set = |text: &str, flags| Operation::SetXattr {
        object,
        name: name(text),
        flags,
    };
    let get = |text: &str| Operation::GetXattr {
        object,
        name: name(text),
    };
    let error = |outcome, errno| assert_eq!(outcome, Outcome::Error(errno));
    error(bench.run_with(set("system.other", 0), b"v"), EOPNOTSUPP);
    error(bench.run_with(set("user.", 0), b"v"), EINVAL);
    error(bench.run_with(set("user.a", 8), b"v"), EINVAL);
    error(bench.run_with(set("user.a", 2), b"v"), ENODATA);
    error(bench.run_with(set("user.a", 0), &vec![0; 65_537]), E2BIG);
    error(
        bench.run_with(set(&format!("user.{}", "n".repeat(251)), 0), b"v"),
        ENAMETOOLONG,
    );
    assert_eq!(bench.errno(get("user.a")), ENODATA);
    assert_eq!(bench.run_with(set("user.a", 1), b"v1"), Outcome::Done);
    error(bench.run_with(set("user.a", 1), b"v2"), EEXIST);
    assert_eq!(
        bench.run_with(set("user.a", 2), &vec![3; 65_536]),
        Outcome::Done
    );
    assert_eq!(
        bench.run(get("user.a")),
        Outcome::Data(vec![3; 65_536].into())
    );
    assert_eq!(bench.errno(get("user.b")), ENODATA);
    assert_eq!(bench.run_with(set("trusted.b", 0), b""), Outcome::Done);
    assert_eq!(
        bench.run(Operation::ListXattrs { object }),
        Outcome::Data(Bytes::from_static(b"trusted.b\0user.a\0"))
    );
    let remove = || Operation::RemoveXattr {
        object,
        name: name("user.a"),
    };
    bench.done(remove());
    assert_eq!(bench.errno(remove()), ENODATA);
    for n in 1..255 {
        assert_eq!(
            bench.run_with(set(&format!("user.{n}"), 0), b""),
            Outcome::Done
        );
    }
    error(bench.run_with(set("user.too many", 0), b""), ENOSPC);
    bench.done(unlink(ROOT, "f"));
    let mut left = 0;
    crate::Store::scan(&bench.volume, b"x", b"y", &mut |_, _| {
        left += 1;
        true
    })
    .expect("memory");
    assert_eq!(left, 0);
}

#[test]
fn times_follow_the_primarys_clock_or_what_was_asked_for() {
    let mut bench = Bench::new();
    let object = bench.file(ROOT, "f");
    let made = bench.attributes(object);
    bench.write(object, 0, b"x");
    let written = bench.attributes(object);
    assert!(written.mtime > made.mtime && written.ctime > made.ctime);
    assert_eq!((written.atime, written.btime), (made.atime, made.btime));
    let set = SetAttributes {
        atime: Some(SetTime::At(Timestamp(-5))),
        mtime: Some(SetTime::Now),
        ..SetAttributes::default()
    };
    let touched = bench.entry(Operation::SetAttributes { object, set });
    assert_eq!(touched.atime, Timestamp(-5));
    assert_eq!(touched.mtime, touched.ctime);
    assert!(touched.ctime > written.ctime);
    let root = bench.attributes(ROOT);
    bench.file(ROOT, "g");
    assert!(bench.attributes(ROOT).mtime > root.mtime);
}

/// COH-4: another primary, or the same one after its clock was set back.
#[test]
fn no_change_puts_an_object_back_in_time_and_each_has_a_time_of_its_own() {
    let mut bench = Bench::new();
    bench.next = 1_000_000;
    let file = bench.file(ROOT, "f");
    let (of_file, of_root) = (bench.attributes(file), bench.attributes(ROOT));
    bench.behind = 900_000;
    let set = SetAttributes {
        mtime: Some(SetTime::Now),
        atime: Some(SetTime::Now),
        ..SetAttributes::default()
    };
    let mut before = of_file.ctime;
    for round in 0..4 {
        if round % 2 == 0 {
            bench.write(file, 0, b"later");
        } else {
            bench.entry(Operation::SetAttributes { object: file, set });
        }
        let now = bench.attributes(file);
        assert!(now.mtime >= of_file.mtime && now.ctime > before);
        assert!(now.atime >= of_file.atime && now.mtime <= now.ctime);
        before = now.ctime;
    }
    bench.rename(ROOT, "f", ROOT, "g", 0);
    let now = bench.attributes(ROOT);
    assert!(now.mtime > of_root.mtime && now.ctime > of_root.ctime);
}

#[test]
fn a_new_volume_has_an_empty_root_that_belongs_to_root() {
    let volume = MemoryVolume::new(Timestamp(4));
    let mut bench = Bench::new();
    bench.volume = volume;
    let root = bench.attributes(ROOT);
    assert_eq!(
        (root.mode, root.uid, root.gid, root.nlink),
        (0o040_755, 0, 0, 2)
    );
    assert!(bench.names(ROOT, 100).is_empty());
    let beyond = Operation::ReadDirectory {
        object: ROOT,
        cookie: u64::MAX,
        bytes_max: 10,
        plus: false,
    };
    assert_eq!(bench.run(beyond), Outcome::Entries(Vec::new()));
}

#[test]
fn walking_meets_every_path_once_and_paths_are_found() {
    let mut bench = Bench::new();
    let mut all = std::collections::BTreeSet::new();
    let mut at = ROOT;
    let mut path = String::new();
    for depth in 0..5 {
        for n in 0..3 {
            bench.file(at, &format!("f{n}"));
            all.insert(format!("{path}f{n}"));
        }
        at = bench.directory(at, &format!("d{depth}"));
        all.insert(format!("{path}d{depth}"));
        path = format!("{path}d{depth}/");
    }
    let mut met = std::collections::BTreeSet::new();
    crate::walk(&bench.volume, &mut |path, _, _| {
        assert!(met.insert(String::from_utf8_lossy(path).into_owned()));
        true
    })
    .expect("memory");
    assert_eq!(met, all);
    let found = crate::path_of(&bench.volume, at).expect("memory");
    assert_eq!(found, Some(Bytes::from_static(b"d0/d1/d2/d3/d4")));
    let absent = crate::path_of(&bench.volume, ObjectId(3)).expect("memory");
    assert_eq!(absent, None);
}

#[test]
fn a_copy_ends_where_its_source_does_and_is_made_between_files_only() {
    let mut bench = Bench::new();
    let (from, to) = (bench.file(ROOT, "from"), bench.file(ROOT, "to"));
    bench.write(from, 0, b"0123456789");
    let copy = |from, from_offset, object, len| Operation::CopyRange {
        from,
        from_offset,
        object,
        offset: 100,
        len,
    };
    let Outcome::Written {
        len, attributes, ..
    } = bench.run(copy(from, 4, to, 1000))
    else {
        panic!("it is copied");
    };
    assert_eq!((len, attributes.size), (6, 106));
    assert_eq!(&bench.volume.read(to, 98, 8)[..], b"\x00\x00456789");
    let before = bench.volume.clone();
    let past = bench.run(copy(from, 10, to, 1));
    assert!(matches!(past, Outcome::Written { len: 0, .. }));
    assert_eq!(bench.volume, before);
    assert_eq!(bench.errno(copy(ROOT, 0, to, 1)), EISDIR);
    assert_eq!(bench.errno(copy(from, 0, ROOT, 1)), EISDIR);
    assert_eq!(bench.errno(copy(ObjectId(7), 0, to, 1)), ESTALE);
    assert_eq!(bench.errno(copy(from, 0, to, (1 << 20) + 1)), EINVAL);
    let far = Operation::CopyRange {
        from,
        from_offset: 0,
        object: to,
        offset: i64::MAX as u64 - 3,
        len: 10,
    };
    assert_eq!(bench.errno(far), EFBIG);
}
