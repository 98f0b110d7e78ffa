//! What applications do all day: the mount answers as a local file system does.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use rustix::fs::{AtFlags, CWD, FallocateFlags, RenameFlags, XattrFlags};

use super::Bench;

/// Results of operations, one line each, to compare between file systems.
struct Diary {
    lines: Vec<String>,
}

fn short(error: &io::Error) -> String {
    format!("errno {}", error.raw_os_error().unwrap_or(0))
}

impl Diary {
    fn note<T: std::fmt::Debug>(&mut self, what: &str, result: io::Result<T>) {
        let line = match result {
            Ok(value) => format!("{what}: {value:?}"),
            Err(error) => format!("{what}: {}", short(&error)),
        };
        self.lines.push(line);
    }

    /// What stat tells and is the same everywhere.
    fn stat(&mut self, what: &str, path: &Path) {
        let result = fs::symlink_metadata(path).map(|m| {
            let size = if m.is_dir() { 0 } else { m.len() };
            let links = if m.is_dir() { 0 } else { m.nlink() };
            format!("{:o} {} {} {} {links}", m.mode(), m.uid(), m.gid(), size)
        });
        self.note(what, result);
    }

    fn names(&mut self, what: &str, path: &Path) {
        let names = fs::read_dir(path).and_then(|entries| {
            let mut names = entries
                .map(|entry| {
                    let entry = entry?;
                    let kind = entry.file_type()?;
                    let letter = if kind.is_dir() {
                        'd'
                    } else if kind.is_symlink() {
                        'l'
                    } else {
                        'f'
                    };
                    Ok(format!("{letter}{}", entry.file_name().display()))
                })
                .collect::<io::Result<Vec<_>>>()?;
            names.sort();
            Ok(names)
        });
        self.note(what, names);
    }
}

fn errno<T>(result: rustix::io::Result<T>) -> io::Result<T> {
    result.map_err(io::Error::from)
}

fn names_and_directories(d: &mut Diary, dir: &Path) {
    let at = |name: &str| dir.join(name);
    d.note("mkdir", fs::create_dir(at("a")));
    d.note("mkdir again", fs::create_dir(at("a")));
    d.note("mkdir below nothing", fs::create_dir(at("x/y")));
    d.note("write", fs::write(at("a/f"), b"content"));
    d.note("mkdir below a file", fs::create_dir(at("a/f/y")));
    d.note("read", fs::read(at("a/f")));
    d.stat("stat file", &at("a/f"));
    d.stat("stat dir", &at("a"));
    d.note("rmdir full", fs::remove_dir(at("a")));
    d.note("unlink dir", errno(rustix::fs::unlink(at("a"))));
    d.note("rmdir file", fs::remove_dir(at("a/f")));
    d.note("link", fs::hard_link(at("a/f"), at("a/g")));
    d.note("link exists", fs::hard_link(at("a/f"), at("a/g")));
    d.note("link dir", fs::hard_link(at("a"), at("b")));
    d.stat("stat two links", &at("a/f"));
    d.note("symlink", std::os::unix::fs::symlink("a/f", at("s")));
    d.note("readlink", fs::read_link(at("s")));
    d.note("read through link", fs::read(at("s")));
    d.stat("stat link", &at("s"));
    let exclusive = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(at("a/f"));
    d.note("create exists", exclusive.map(drop));
    let exclusive = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(at("s"));
    d.note("create at a link", exclusive.map(drop));
    d.names("list", dir);
    d.names("list a", &at("a"));
    d.names("list a file", &at("a/f"));
    d.note("mkdir to hold", fs::create_dir(at("held")));
    let held = fs::File::open(at("held")).expect("a directory opens");
    d.note("rmdir while open", fs::remove_dir(at("held")));
    d.note(
        "stat removed directory",
        held.metadata().map(|meta| (meta.nlink(), meta.mode())),
    );
    let listing = rustix::fs::Dir::read_from(&held).expect("a listing");
    let left: rustix::io::Result<Vec<_>> = listing
        .map(|entry| entry.map(|entry| entry.file_name().to_owned()))
        .collect();
    d.note("list removed directory", errno(left));
    let inside = rustix::fs::openat(
        &held,
        "inside",
        rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY,
        0o600.into(),
    );
    d.note("create in a removed directory", errno(inside.map(drop)));
    drop(held);
    let long = "n".repeat(255);
    d.note("long name", fs::write(at(&long), b"x"));
    d.note("too long name", fs::write(at(&format!("{long}n")), b"x"));
    d.note("long name goes", fs::remove_file(at(&long)));
    let odd = dir.join(OsStr::from_bytes(b"not \xff utf-8\n"));
    d.note("odd name", fs::write(&odd, b"odd"));
    d.note("odd name back", fs::read(&odd));
    d.note(
        "fifo",
        errno(rustix::fs::mknodat(
            CWD,
            at("fifo"),
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )),
    );
    d.stat("stat fifo", &at("fifo"));
}

fn renames(d: &mut Diary, dir: &Path) {
    let at = |name: &str| dir.join(name);
    for name in ["r", "r/one", "r/two", "r/two/full"] {
        d.note("mkdir", fs::create_dir(at(name)));
    }
    d.note("write", fs::write(at("r/f"), b"f"));
    d.note("write", fs::write(at("r/g"), b"g"));
    d.note("over a file", fs::rename(at("r/f"), at("r/g")));
    d.note("read", fs::read(at("r/g")));
    d.note("gone", fs::rename(at("r/f"), at("r/h")));
    d.note("dir over full", fs::rename(at("r/one"), at("r/two")));
    d.note("file over dir", fs::rename(at("r/g"), at("r/one")));
    d.note("dir over file", fs::rename(at("r/one"), at("r/g")));
    d.note("into itself", fs::rename(at("r/two"), at("r/two/full/x")));
    d.note("over its parent", fs::rename(at("r/two/full"), at("r/two")));
    d.note("dir over empty", fs::rename(at("r/two/full"), at("r/one")));
    let flags =
        |a: &str, b: &str, flags| errno(rustix::fs::renameat_with(CWD, at(a), CWD, at(b), flags));
    let noreplace = RenameFlags::NOREPLACE;
    d.note("noreplace", flags("r/one", "r/g", noreplace));
    d.note("noreplace free", flags("r/g", "r/new", noreplace));
    let exchange = RenameFlags::EXCHANGE;
    d.note("exchange", flags("r/one", "r/new", exchange));
    d.note("exchange none", flags("r/one", "r/none", exchange));
    d.note("read", fs::read(at("r/one")));
    d.names("list", &at("r"));
    d.note("remove tree", fs::remove_dir_all(at("r")));
}

fn data(d: &mut Diary, dir: &Path) {
    let path = dir.join("data");
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .create(true)
        .mode(0o640)
        .open(&path);
    let mut file = file.expect("a new file");
    let large: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    d.note("large write", file.write_all(&large));
    d.note("sync", file.sync_all());
    d.note("datasync", file.sync_data());
    let mut back = Vec::new();
    d.note("rewind", file.seek(SeekFrom::Start(0)));
    d.note("large read", file.read_to_end(&mut back));
    assert!(back == large, "what was written comes back");
    d.note("hole", file.write_all_at(b"end", 5_000_001));
    let mut gap = [1; 8];
    d.note(
        "in the hole",
        file.read_exact_at(&mut gap, 4_000_000).map(|()| gap),
    );
    d.note("past the end", file.read_at(&mut gap, 6_000_000));
    d.stat("stat", &path);
    d.note("truncate", file.set_len(10));
    d.note("extend", file.set_len(20));
    d.note("read", fs::read(&path));
    d.note("too far", file.write_at(b"x", i64::MAX as u64));
    let mut appending = OpenOptions::new()
        .append(true)
        .open(&path)
        .expect("it exists");
    d.note("append", appending.write_all(b"more"));
    d.note("append", appending.write_all(b"again"));
    d.note("read", fs::read(&path));
    d.note("overwrite", fs::write(&path, b"short"));
    d.note("read", fs::read(&path));
    let read_only = File::open(&path).expect("it exists");
    d.note("write to reader", (&read_only).write(b"x").map(drop));
    d.note(
        "read a dir",
        File::open(dir).and_then(|f| f.read_at(&mut gap, 0)),
    );
    let zero = FallocateFlags::ZERO_RANGE;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let keep = FallocateFlags::KEEP_SIZE;
    let f = &file;
    d.note(
        "allocate",
        errno(rustix::fs::fallocate(f, FallocateFlags::empty(), 0, 8192)),
    );
    d.note(
        "allocate beyond",
        errno(rustix::fs::fallocate(f, keep, 8192, 8192)),
    );
    d.stat("stat", &path);
    d.note("fill", file.write_all_at(&[7; 8192], 0));
    d.note("punch", errno(rustix::fs::fallocate(f, punch, 1, 4096)));
    d.note("zero", errno(rustix::fs::fallocate(f, zero, 8000, 1000)));
    d.note("read", fs::read(&path).map(|bytes| blake(&bytes)));
    d.stat("stat", &path);
}

/// Positions where bytes change, enough to compare contents.
fn blake(bytes: &[u8]) -> Vec<(usize, u8)> {
    let mut runs = Vec::new();
    for (at, byte) in bytes.iter().enumerate() {
        if runs.last().is_none_or(|(_, last)| last != byte) {
            runs.push((at, *byte));
        }
    }
    runs.push((bytes.len(), 0));
    runs
}

fn attributes(d: &mut Diary, dir: &Path) {
    let path = dir.join("attributes");
    d.note("write", fs::write(&path, b"x"));
    d.note(
        "chmod",
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6751)),
    );
    d.stat("stat", &path);
    d.note(
        "chown",
        std::os::unix::fs::chown(&path, Some(1234), Some(567)),
    );
    d.stat("stat after chown", &path);
    d.note(
        "chmod",
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)),
    );
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec {
            tv_sec: -100,
            tv_nsec: 5,
        },
        last_modification: rustix::fs::Timespec {
            tv_sec: 1_000_000_000,
            tv_nsec: 123_456_789,
        },
    };
    let set = rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty());
    d.note("utimens", errno(set));
    let meta = fs::metadata(&path);
    d.note(
        "times",
        meta.map(|m| (m.atime(), m.atime_nsec(), m.mtime(), m.mtime_nsec())),
    );
    let set =
        |name: &str, value: &[u8], flags| errno(rustix::fs::setxattr(&path, name, value, flags));
    d.note("xattr", set("user.one", b"1", XattrFlags::CREATE));
    d.note("xattr exists", set("user.one", b"1", XattrFlags::CREATE));
    d.note("xattr absent", set("user.two", b"1", XattrFlags::REPLACE));
    d.note(
        "xattr replaced",
        set("user.one", b"new", XattrFlags::REPLACE),
    );
    let mut value = [0; 16];
    let get = rustix::fs::getxattr(&path, "user.one", &mut value);
    d.note("getxattr", errno(get));
    let mut small = [0; 1];
    let get = rustix::fs::getxattr(&path, "user.one", &mut small);
    d.note("getxattr small", errno(get));
    let get = rustix::fs::getxattr(&path, "user.none", &mut value);
    d.note("getxattr none", errno(get));
    let mut list = [0; 64];
    let listed = errno(rustix::fs::listxattr(&path, &mut list));
    d.note("listxattr", listed.map(|n| list[..n].to_vec()));
    d.note(
        "removexattr",
        errno(rustix::fs::removexattr(&path, "user.one")),
    );
    d.note(
        "removexattr",
        errno(rustix::fs::removexattr(&path, "user.one")),
    );
}

#[test]
fn everyday_operations_answer_as_a_local_file_system_does() {
    let Some((bench, mounted)) = Bench::mounted() else {
        return;
    };
    let local = bench.local();
    let write = |dir: &Path| {
        let mut diary = Diary { lines: Vec::new() };
        for part in [names_and_directories, renames, data, attributes] {
            part(&mut diary, dir);
        }
        diary.lines
    };
    let (ours, theirs) = (write(&mounted), write(&local));
    for (our, their) in ours.iter().zip(&theirs) {
        assert_eq!(our, their);
    }
    assert_eq!(ours.len(), theirs.len());
}

#[test]
fn a_program_runs_from_the_mount() {
    let Some((_bench, mounted)) = Bench::mounted() else {
        return;
    };
    // Executing maps the file privately.
    let program = mounted.join("echo");
    fs::copy("/bin/echo", &program).expect("copied");
    let output = Command::new(&program).arg("mapped").output().expect("runs");
    assert_eq!(output.stdout, b"mapped\n");
}

/// Where files are written directly the kernel asks for no fsync behind such a write.
#[test]
fn dur_1_a_write_that_is_to_be_stable_when_it_returns_is_followed_by_a_sync() {
    let Some((bench, mounted)) = Bench::mounted() else {
        return;
    };
    let (o_dsync, o_sync) = (0o10_000, 0o4_010_000);
    for (flags, syncs) in [(0, 0), (o_dsync, 1), (o_sync, 2)] {
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(flags)
            .open(mounted.join("log"))
            .expect("opened");
        assert_eq!(file.write_at(b"entry", 7).expect("written"), 5);
        assert_eq!(bench.server.received("sync"), syncs, "flags {flags:o}");
    }
    assert_eq!(fs::read(mounted.join("log")).expect("read").len(), 12);
}

#[test]
fn holes_are_found_by_seeking() {
    let Some((_bench, mounted)) = Bench::mounted() else {
        return;
    };
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(mounted.join("sparse"))
        .expect("a new file");
    file.set_len(1 << 40).expect("sparse");
    file.write_all_at(b"island", 1 << 30).expect("written");
    let seek = |from| errno(rustix::fs::seek(&file, from)).map_err(|e| e.raw_os_error());
    assert_eq!(seek(rustix::fs::SeekFrom::Data(0)), Ok(1 << 30));
    assert_eq!(
        seek(rustix::fs::SeekFrom::Hole(1 << 30)),
        Ok((1 << 30) + 4096)
    );
    assert_eq!(
        seek(rustix::fs::SeekFrom::Data((1 << 30) + 4096)),
        Err(Some(6))
    );
    let blocks = file.metadata().expect("stat").blocks();
    assert_eq!(blocks, 8, "a terabyte of nothing takes no space");
}

#[test]
fn every_entry_of_a_large_directory_is_listed_once_while_others_come_and_go() {
    let Some((_bench, mounted)) = Bench::mounted() else {
        return;
    };
    let dir = mounted.join("large");
    fs::create_dir(&dir).expect("made");
    for n in 0..3000 {
        File::create(dir.join(format!("kept{n}"))).expect("made");
        File::create(dir.join(format!("goes{n}"))).expect("made");
    }
    let mut seen = std::collections::BTreeMap::new();
    let mut removed = 0;
    for entry in fs::read_dir(&dir).expect("listed") {
        let name = entry
            .expect("an entry")
            .file_name()
            .into_string()
            .expect("plain");
        if removed < 3000 {
            fs::remove_file(dir.join(format!("goes{removed}"))).expect("removed");
            File::create(dir.join(format!("comes{removed}"))).expect("made");
            removed += 1;
        }
        *seen.entry(name).or_insert(0) += 1;
    }
    for n in 0..3000 {
        assert_eq!(seen.get(&format!("kept{n}")), Some(&1), "kept{n}");
    }
    assert!(seen.values().all(|times| *times == 1));
}

#[test]
fn a_directory_of_the_volume_is_mounted_as_root() {
    let Some((mut bench, whole)) = Bench::mounted() else {
        return;
    };
    fs::create_dir_all(whole.join("a/b")).expect("made");
    fs::write(whole.join("a/b/f"), b"deep").expect("written");
    let part = bench.mount("node1:/v1/a/b", "");
    assert_eq!(fs::read(part.join("f")).expect("read"), b"deep");
    fs::write(part.join("g"), b"new").expect("written");
    fs::rename(part.join("g"), part.join("h")).expect("renamed");
    assert_eq!(fs::read(whole.join("a/b/h")).expect("read"), b"new");
    let inode = |path: &Path| fs::metadata(path).expect("stat").ino();
    assert_eq!(inode(&part), inode(&whole.join("a/b")));
}

#[test]
fn a_read_only_mount_refuses_changes_and_reads() {
    let Some((mut bench, writable)) = Bench::mounted() else {
        return;
    };
    fs::write(writable.join("f"), b"x").expect("written");
    let reader = bench.mount("node1:/v1", "ro");
    assert_eq!(fs::read(reader.join("f")).expect("read"), b"x");
    let refused = fs::write(reader.join("f"), b"y").expect_err("read-only");
    assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
}
