//! What POSIX and Linux have beyond the everyday: ACLs, files without a name, times of birth.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use rustix::fs::{AtFlags, CWD, OFlags, StatxFlags, XattrFlags};

use super::Bench;

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
/// A user of every machine who is not root.
const NOBODY: u32 = 65_534;

/// An ACL as the kernel takes it: the owner `rwx`, the named user, the group and the mask, others.
fn acl(user: u16, mask: u16) -> Vec<u8> {
    let none = u32::MAX;
    let entries = [
        (0x01_u16, 7_u16, none),
        (0x02, user, NOBODY),
        (0x04, 0, none),
        (0x10, mask, none),
        (0x20, 0, none),
    ];
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

fn get(path: &Path, name: &str) -> rustix::io::Result<Vec<u8>> {
    let mut value = vec![0; 4096];
    let len = rustix::fs::getxattr(path, name, &mut value[..])?;
    value.truncate(len);
    Ok(value)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").mode() & 0o7777
}

/// Whether somebody else than root can read the file, as the kernel decides.
fn nobody_reads(path: &Path) -> bool {
    use std::os::unix::process::CommandExt as _;
    let mut command = Command::new("cat");
    let output = command.arg(path).uid(NOBODY).gid(NOBODY).output();
    output.expect("cat runs").status.success()
}

#[test]
fn the_kernel_checks_acls_on_every_mount_and_chmod_changes_them() {
    let Some((mut bench, point)) = Bench::mounted() else {
        return;
    };
    let other = bench.mount("node1:/v1", "");
    let file = point.join("f");
    fs::write(&file, b"x").expect("written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o700)).expect("chmod");
    assert!(!nobody_reads(&file));
    rustix::fs::setxattr(&file, ACCESS, &acl(4, 7), XattrFlags::empty()).expect("an ACL");
    for mount in [&point, &other] {
        let file = mount.join("f");
        assert_eq!(
            mode(&file),
            0o770,
            "the mask is the group's part of the mode"
        );
        assert!(nobody_reads(&file), "{}", mount.display());
        assert_eq!(get(&file, ACCESS), Ok(acl(4, 7)));
    }
    fs::set_permissions(other.join("f"), fs::Permissions::from_mode(0o700)).expect("chmod");
    assert!(!nobody_reads(&file), "the mask lets nobody in");
    assert_eq!(get(&file, ACCESS), Ok(acl(4, 0)));
    rustix::fs::removexattr(&file, ACCESS).expect("it is there");
    assert_eq!(get(&file, ACCESS), Err(rustix::io::Errno::NODATA));
}

#[test]
fn a_default_acl_stands_in_for_the_umask() {
    let Some((_bench, point)) = Bench::mounted() else {
        return;
    };
    let make = |dir: &Path| {
        let script = "umask 077; : > f; mkdir d; mkfifo p";
        let mut shell = Command::new("sh");
        let made = shell.args(["-c", script]).current_dir(dir).status();
        assert!(made.expect("sh runs").success());
        ["f", "d", "p"].map(|name| mode(&dir.join(name)))
    };
    let (plain, with) = (point.join("plain"), point.join("with"));
    fs::create_dir(&plain).expect("made");
    fs::create_dir(&with).expect("made");
    assert_eq!(make(&plain), [0o600, 0o700, 0o600]);
    rustix::fs::setxattr(&with, DEFAULT, &acl(7, 7), XattrFlags::empty()).expect("an ACL");
    assert_eq!(make(&with), [0o660, 0o770, 0o660]);
    assert_eq!(get(&with.join("f"), ACCESS).map(|acl| acl.len()), Ok(44));
    assert_eq!(get(&with.join("d"), DEFAULT), Ok(acl(7, 7)));
}

fn unnamed(dir: &Path, flags: OFlags) -> File {
    let mut options = OpenOptions::new();
    let flags = OFlags::TMPFILE | flags;
    options.read(true).write(true).mode(0o640);
    options.custom_flags(flags.bits().cast_signed());
    options.open(dir).expect("a file without a name")
}

fn give_name(file: &File, path: &Path) -> rustix::io::Result<()> {
    rustix::fs::linkat(file, "", CWD, path, AtFlags::EMPTY_PATH)
}

#[test]
fn a_file_without_a_name_is_gone_with_its_close_or_gets_a_name() {
    use std::io::{Read as _, Seek as _, Write as _};
    let Some((bench, point)) = Bench::mounted() else {
        return;
    };
    let mut file = unnamed(&point, OFlags::empty());
    file.write_all(b"data").expect("written");
    file.rewind().expect("a file");
    let mut read = String::new();
    file.read_to_string(&mut read).expect("read");
    let meta = file.metadata().expect("open");
    assert_eq!((read.as_str(), meta.nlink()), ("data", 0));
    assert_eq!(fs::read_dir(&point).expect("a directory").count(), 0);
    give_name(&file, &point.join("named")).expect("it gets a name");
    assert_eq!(file.metadata().expect("open").nlink(), 1);
    drop(file);
    assert_eq!(fs::read(point.join("named")).expect("it stays"), b"data");

    let file = unnamed(&point, OFlags::EXCL);
    let refused = give_name(&file, &point.join("never"));
    assert_eq!(refused, Err(rustix::io::Errno::NOENT));
    let objects = bench.server.objects();
    drop(file);
    bench.server.wait_until(|server| server.objects() < objects);
}

#[test]
fn a_file_without_a_name_survives_a_reconnect() {
    use std::os::unix::fs::FileExt as _;
    let Some((bench, point)) = Bench::mounted() else {
        return;
    };
    let file = unnamed(&point, OFlags::empty());
    let before = bench.server.hellos();
    bench.server.cut();
    bench.server.wait_until(|server| server.hellos() > before);
    file.write_all_at(b"data", 0).expect("still there");
    give_name(&file, &point.join("named")).expect("it gets a name");
    assert_eq!(fs::read(point.join("named")).expect("read"), b"data");
}

#[test]
fn statx_tells_when_a_file_was_born() {
    let Some((_bench, point)) = Bench::mounted() else {
        return;
    };
    let file = point.join("f");
    fs::write(&file, b"x").expect("written");
    let statx = || {
        let flags = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        rustix::fs::statx(CWD, &file, AtFlags::empty(), flags).expect("statx")
    };
    let born = statx();
    assert!(born.stx_mask & StatxFlags::BTIME.bits() != 0);
    assert_eq!(born.stx_btime.tv_sec, 1_700_000_000);
    fs::write(&file, b"longer").expect("written");
    let later = statx();
    let time = |t: &rustix::fs::StatxTimestamp| (t.tv_sec, t.tv_nsec);
    assert_eq!(time(&later.stx_btime), time(&born.stx_btime));
    assert!(time(&later.stx_mtime) > time(&born.stx_mtime));
    assert_eq!((later.stx_size, later.stx_mode), (6, 0o100_644));
    let device = point.join("null");
    let rdev = rustix::fs::makedev(1, 300);
    let kind = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(CWD, &device, kind, 0o600.into(), rdev).expect("a device");
    let flags = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let told = rustix::fs::statx(CWD, &device, AtFlags::empty(), flags).expect("statx");
    assert_eq!((told.stx_rdev_major, told.stx_rdev_minor), (1, 300));
}

#[test]
fn a_copy_inside_the_volume_brings_no_data_to_the_mount() {
    let Some((bench, point)) = Bench::mounted() else {
        return;
    };
    let data: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    fs::write(point.join("from"), &data).expect("written");
    let from = File::open(point.join("from")).expect("it is there");
    let to = File::create(point.join("to")).expect("made");
    let writes = bench.server.received("write");
    let (mut at, mut there) = (5, 1000);
    loop {
        let left = 10_000_000;
        let copied = rustix::fs::copy_file_range(&from, Some(&mut at), &to, Some(&mut there), left);
        if copied.expect("copied") == 0 {
            break;
        }
    }
    assert_eq!((at, there), (3_000_000, 3_000_995));
    assert_eq!(bench.server.received("write"), writes);
    assert_eq!(bench.server.received("copy"), 3);
    let read = fs::read(point.join("to")).expect("read");
    assert!(read[..1000].iter().all(|byte| *byte == 0) && read[1000..] == data[5..]);
}
