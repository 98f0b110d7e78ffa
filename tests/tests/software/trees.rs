//! tar and rsync carry a tree with everything that a file system can hold onto the mount and off
//! it; what arrived is compared by a walk of our own.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{
    FileExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink,
};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use cairn_tests::system::{Mounts, sparse};
use rustix::fs::{FileType, Mode, SeekFrom, XattrFlags};
use rustix::io::Errno;

use crate::place::{Place, command, run, scale};

/// The file system beside, which knows everything that the tree has.
const IMAGE_BYTES: u64 = 512 << 20;
/// Holes begin and end on these: no program and no file system makes them smaller.
const GRAIN: u64 = 64 << 10;

// ---- the tree ----------------------------------------------------------------------------------

/// `length` bytes without long runs of zeros.
fn bytes(number: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut source = blake3::Hasher::new()
        .update(&number.to_le_bytes())
        .finalize_xof();
    source.fill(&mut bytes);
    bytes
}

/// Makes the tree at `root`.
fn make(root: &Path) -> Result<()> {
    fs::create_dir(root)?;
    names(root)?;
    holes(root)?;
    links(root)?;
    special(root)?;
    rights(root)?;
    times(root)
}

fn names(root: &Path) -> Result<()> {
    let many = root.join("many");
    fs::create_dir(&many)?;
    for number in 0..100 * scale() {
        let length = [0, 1, 100, 4096, 5000, 70_000, 300_000][(number % 7) as usize];
        fs::write(many.join(format!("f{number}")), bytes(number, length))?;
    }
    let mut deep = root.join("deep");
    for _ in 0..20 {
        deep.push("d");
    }
    fs::create_dir_all(&deep)?;
    fs::write(deep.join("end"), "far down")?;
    let odd: [&[u8]; 6] = [
        b"with a space",
        b"with\na line",
        b"not UTF-8: \xff\xfe",
        b"-starts with a dash",
        b"'\"\\*?[",
        &[b'n'; 255],
    ];
    for name in odd {
        let name = OsString::from_vec(name.to_vec());
        fs::write(root.join(&name), name.as_bytes())?;
    }
    Ok(())
}

fn holes(root: &Path) -> Result<()> {
    let piece = bytes(1, GRAIN as usize);
    let holey = File::create(root.join("holes in it"))?;
    for at in [1, 16, 17, 40] {
        holey.write_all_at(&piece, at * GRAIN)?;
    }
    holey.set_len(100 * GRAIN)?;
    sparse(&root.join("nothing but a hole"), 32 * GRAIN)?;
    let last = File::create(root.join("far away"))?;
    last.write_all_at(&piece, 1000 * GRAIN)?;
    Ok(())
}

fn links(root: &Path) -> Result<()> {
    let dir = root.join("links");
    fs::create_dir(&dir)?;
    fs::write(root.join("three names"), bytes(3, 10_000))?;
    fs::hard_link(root.join("three names"), dir.join("second"))?;
    fs::hard_link(root.join("three names"), dir.join("third"))?;
    symlink("../three names", dir.join("relative"))?;
    symlink("/nowhere/at all", dir.join("dangling"))?;
    symlink(
        OsString::from_vec(vec![b't'; 1000]),
        dir.join("a long target"),
    )?;
    Ok(())
}

fn special(root: &Path) -> Result<()> {
    let kinds = [
        ("fifo", FileType::Fifo, 0),
        (
            "character",
            FileType::CharacterDevice,
            rustix::fs::makedev(1, 3),
        ),
        ("block", FileType::BlockDevice, rustix::fs::makedev(7, 300)),
    ];
    for (name, kind, device) in kinds {
        let mode = Mode::from_raw_mode(0o640);
        rustix::fs::mknodat(rustix::fs::CWD, root.join(name), kind, mode, device)?;
    }
    Ok(())
}

fn rights(root: &Path) -> Result<()> {
    for (name, owner, mode) in [
        ("set-user-id", 0, 0o4755),
        ("set-group-id", 1234, 0o2711),
        ("nobody's", 65_534, 0o600),
        ("no rights", 1_000_000, 0),
    ] {
        let path = root.join(name);
        fs::write(&path, name)?;
        chown(&path, Some(owner), Some(owner + 1))?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
    }
    for (name, mode) in [("sticky", 0o1777), ("group's", 0o2775)] {
        fs::create_dir(root.join(name))?;
        fs::set_permissions(root.join(name), Permissions::from_mode(mode))?;
    }
    let path = root.join("attributes");
    fs::write(&path, "attributes")?;
    // A capability as the kernel wants it: version 2, effective, CAP_NET_RAW.
    let mut capability = [0; 20];
    capability[..8].copy_from_slice(&[1, 0, 0, 2, 0, 0x20, 0, 0]);
    let attributes: [(&str, &[u8]); 5] = [
        ("user.text", b"text"),
        ("user.empty", b""),
        ("user.large", &bytes(5, 2000)),
        ("trusted.bytes", b"\0\xff\n"),
        ("security.capability", &capability),
    ];
    for (name, value) in attributes {
        rustix::fs::setxattr(&path, name, value, XattrFlags::empty())?;
    }
    rustix::fs::setxattr(
        root.join("sticky"),
        "user.dir",
        b"a directory's",
        XattrFlags::empty(),
    )?;
    let setfacl = |words: &[&str], path: &str| {
        run(command("setfacl").args(words).arg(root.join(path))).map(drop)
    };
    fs::write(root.join("a list"), "a list")?;
    setfacl(&["-m", "u:1234:rw,g:5678:r,m::rw"], "a list")?;
    setfacl(
        &["-m", "u:1234:rwx", "-m", "d:u:1234:rwx,d:g:5678:rx"],
        "group's",
    )
}

fn times(root: &Path) -> Result<()> {
    for (name, seconds, nanoseconds) in [
        ("a list", 1_000_000_000, 123_456_789),
        ("attributes", 4_102_444_800, 999_999_999),
        ("links", 1, 1),
    ] {
        let time = UNIX_EPOCH + Duration::new(seconds, nanoseconds);
        File::open(root.join(name))?.set_times(FileTimes::new().set_modified(time))?;
    }
    Ok(())
}

// ---- the walk ----------------------------------------------------------------------------------

/// All that is compared of a name.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    mode: u32,
    owner: (u32, u32),
    links: u64,
    /// Modified: seconds and nanoseconds.
    time: (i64, i64),
    attributes: BTreeMap<OsString, Vec<u8>>,
    kind: Kind,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Directory,
    File {
        bytes: u64,
        /// Where data is.
        data: Vec<(u64, u64)>,
        hash: String,
        /// The first name of the same file.
        first: PathBuf,
    },
    Link(PathBuf),
    Device(u64),
    Fifo,
}

type Tree = BTreeMap<PathBuf, Entry>;

fn walk(root: &Path) -> Result<Tree> {
    let mut tree = Tree::new();
    let mut firsts = BTreeMap::new();
    let mut dirs = vec![PathBuf::new()];
    while let Some(dir) = dirs.pop() {
        let at = root.join(&dir);
        let mut names: Vec<_> = fs::read_dir(&at)?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<Result<_>>()?;
        names.sort();
        for name in names {
            let path = dir.join(name);
            if fs::symlink_metadata(root.join(&path))?.is_dir() {
                dirs.push(path);
            } else {
                let found = entry(root, &path, &mut firsts);
                tree.insert(path.clone(), found.with_context(|| format!("{path:?}"))?);
            }
        }
        let found = entry(root, &dir, &mut firsts);
        tree.insert(dir.clone(), found.with_context(|| format!("{dir:?}"))?);
    }
    Ok(tree)
}

fn entry(root: &Path, path: &Path, firsts: &mut BTreeMap<u64, PathBuf>) -> Result<Entry> {
    let at = if path.as_os_str().is_empty() {
        root.to_owned()
    } else {
        root.join(path)
    };
    let found = fs::symlink_metadata(&at)?;
    let kind = found.file_type();
    let kind = if kind.is_dir() {
        Kind::Directory
    } else if kind.is_symlink() {
        Kind::Link(fs::read_link(&at)?)
    } else if kind.is_fifo() {
        Kind::Fifo
    } else if kind.is_char_device() || kind.is_block_device() {
        Kind::Device(found.rdev())
    } else {
        let first = firsts.entry(found.ino()).or_insert_with(|| path.to_owned());
        let file = File::open(&at)?;
        let data = data(&file, found.len())?;
        Kind::File {
            bytes: found.len(),
            hash: hash(&file, &data)?,
            data,
            first: first.clone(),
        }
    };
    Ok(Entry {
        mode: found.mode(),
        owner: (found.uid(), found.gid()),
        links: found.nlink(),
        time: (found.mtime(), found.mtime_nsec()),
        attributes: attributes(&at)?,
        kind,
    })
}

/// Where a file has data, from where to where.
fn data(file: &File, bytes: u64) -> Result<Vec<(u64, u64)>> {
    let (mut data, mut at) = (Vec::new(), 0);
    while at < bytes {
        let from = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(from) => from,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        at = rustix::fs::seek(file, SeekFrom::Hole(from))?;
        data.push((from, at));
    }
    Ok(data)
}

/// A hash of the data.
fn hash(file: &File, data: &[(u64, u64)]) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for (from, to) in data {
        let mut bytes = vec![0; usize::try_from(to - from)?];
        file.read_exact_at(&mut bytes, *from)?;
        hasher.update(&bytes);
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn attributes(path: &Path) -> Result<BTreeMap<OsString, Vec<u8>>> {
    let mut names = vec![0; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut names[..])?;
    let mut attributes = BTreeMap::new();
    let names = names[..length].split(|byte| *byte == 0);
    for name in names.filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::lgetxattr(path, CString::new(name)?, &mut value[..])?;
        value.truncate(length);
        attributes.insert(OsString::from_vec(name.to_vec()), value);
    }
    Ok(attributes)
}

fn ensure_equal(what: &str, expected: &Tree, at: &Path) -> Result<()> {
    let found = walk(at)?;
    let paths = expected.keys().chain(found.keys());
    for path in paths {
        let (expected, found) = (expected.get(path), found.get(path));
        ensure!(
            expected == found,
            "{what}: {path:?} was {expected:#?} and is {found:#?}"
        );
    }
    println!("{what}: {} names, none differs", found.len());
    Ok(())
}

// ---- the programs ------------------------------------------------------------------------------

/// tar with everything that it can keep.
fn tar(action: &str, archive: &Path, dir: &Path) -> Command {
    let mut tar = command("tar");
    tar.args(["--format=posix", "--numeric-owner", "--same-permissions"]);
    tar.args(["--acls", "--xattrs", "--xattrs-include=*", "--sparse"]);
    tar.arg(action).arg("--file").arg(archive);
    tar.arg("--directory").arg(dir);
    tar
}

fn carry(archive: &Path, from: &Path, to: &Path) -> Result<()> {
    run(tar("--create", archive, from).arg("."))?;
    fs::create_dir(to)?;
    run(&mut tar("--extract", archive, to))?;
    Ok(())
}

/// `words` beside all that rsync can keep.
fn rsync(words: &[&str], from: &Path, to: &Path) -> Result<String> {
    let mut rsync = command("rsync");
    // Times count to the nanosecond; by default it takes those of one second for the same.
    rsync.args(["-aHAXS", "--numeric-ids", "--modify-window=-1"]);
    rsync.args(words);
    // With a slash at its end: what is in it.
    run(rsync.arg(from.join("")).arg(to.join("")))
}

#[test]
fn tar_and_rsync_bring_everything_onto_the_mount_and_off_it() -> Result<()> {
    let programs = ["tar", "rsync", "setfacl", "mkfs.ext4", "losetup"];
    let Some(place) = Place::new(&programs)? else {
        return Ok(());
    };
    // With its holes where the tree has none: its directory is on the machine's own disk.
    let (image, beside) = (
        place.beside("image")?.join("ext4"),
        place.beside("elsewhere")?,
    );
    let mut mounts = Mounts::default();
    sparse(&image, IMAGE_BYTES)?;
    mounts.make("ext4", &image, &beside)?;
    let archive = beside.join("archive");
    let first = beside.join("tree");
    make(&first)?;
    let tree = walk(&first)?;
    let holey = &tree[Path::new("holes in it")].kind;
    ensure!(
        matches!(holey, Kind::File { data, .. } if data.len() == 3),
        "{holey:?}"
    );

    let mount = place.mount();
    carry(&archive, &first, &mount.join("untarred"))?;
    ensure_equal("tar onto the mount", &tree, &mount.join("untarred"))?;
    carry(
        &mount.join("archive"),
        &mount.join("untarred"),
        &beside.join("untarred"),
    )?;
    ensure_equal("tar off the mount", &tree, &beside.join("untarred"))?;

    rsync(&[], &first, &mount.join("synced"))?;
    ensure_equal("rsync onto the mount", &tree, &mount.join("synced"))?;
    rsync(&[], &mount.join("synced"), &beside.join("synced"))?;
    ensure_equal("rsync off the mount", &tree, &beside.join("synced"))?;
    for to in [&mount.join("synced"), &mount.join("untarred")] {
        let said = rsync(
            &["--checksum", "--itemize-changes", "--dry-run"],
            &first,
            to,
        )?;
        ensure!(said.trim().is_empty(), "rsync would change: {said}");
    }

    make(&mount.join("made here"))?;
    let made = walk(&mount.join("made here"))?;
    rsync(&[], &mount.join("made here"), &mount.join("copied here"))?;
    ensure_equal("rsync on the mount", &made, &mount.join("copied here"))?;
    mounts.umount(&beside)?;
    place.finish()
}
