//! `cairn brick export`: a brick's files as plain files.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, lchown, symlink};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use daemon::volume::Keys;
use namespace::{Context, Detail, ExecuteError, Executed, Inode, execute};
use protocol::control::exit;
use protocol::fs::{Caller, Operation, Outcome, Request, SLOT_NONE};
use protocol::ids::SessionId;
use protocol::units::{EXTENT_BYTES, ObjectId, Sequence, Timestamp};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use serde_json::json;
use storage::{DirBrick, ReadError};

use super::brick::{READ_BYTES, open_at, read_failure};
use crate::args::PointArg;
use crate::failure::Failure;
use crate::output::{Output, bytes_text};

fn write_failure(path: &Path, error: &io::Error) -> Failure {
    Failure::refused(
        "export",
        format!("{}: {error}", path.display()),
        "Is there room, and do you have the right to write there?",
    )
}

/// What was copied.
#[derive(Default)]
struct Totals {
    files: u64,
    bytes: u64,
}

pub(super) fn run(
    output: &Output,
    dir: &Path,
    dest: &Path,
    point: Option<PointArg>,
) -> Result<u8, Failure> {
    let brick = open_at(dir, point)?;
    prepare(dest)?;
    let mut export = Export {
        brick: &brick,
        dest,
        seen: HashMap::new(),
        directories: Vec::new(),
        totals: Totals::default(),
    };
    export.tree()?;
    let totals = &export.totals;
    if output.json {
        output.value(&json!({ "files": totals.files, "bytes": totals.bytes }));
    } else {
        output.done(&format!(
            "{} entries, {} copied to {}",
            totals.files,
            bytes_text(totals.bytes),
            dest.display()
        ));
    }
    Ok(exit::DONE)
}

/// The destination is new or empty: nothing there is overwritten.
fn prepare(dest: &Path) -> Result<(), Failure> {
    let failed = |error: io::Error| write_failure(dest, &error);
    let absolute = std::path::absolute(dest).map_err(failed)?;
    let around = absolute.parent().unwrap_or(&absolute);
    // The destination itself may be a link into one.
    let real = absolute.canonicalize().or_else(|_| around.canonicalize());
    if let Some(brick) = storage::brick_around(&real.map_err(failed)?) {
        return Err(Failure::refused(
            "inside_brick",
            format!(
                "{} lies inside the brick at {}",
                dest.display(),
                brick.display()
            ),
            "Name a directory outside of any brick.",
        ));
    }
    match fs::create_dir(dest) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    if fs::read_dir(dest).map_err(failed)?.next().is_some() {
        return Err(Failure::refused(
            "not_empty",
            format!("{} is not empty", dest.display()),
            "Name a new or an empty directory.",
        ));
    }
    Ok(())
}

struct Export<'b> {
    brick: &'b DirBrick,
    dest: &'b Path,
    /// Where an object with several names was put first.
    seen: HashMap<ObjectId, PathBuf>,
    /// Directories get their times and modes last, when nothing changes in them any more.
    directories: Vec<(PathBuf, ObjectId, Inode)>,
    totals: Totals,
}

impl Export<'_> {
    fn tree(&mut self) -> Result<(), Failure> {
        let brick = self.brick;
        let keys = Keys(brick);
        let mut stopped = None;
        let walked = namespace::walk(&keys, &mut |path, object, inode| {
            let done = self.entry(path, object, inode);
            stopped = done.err();
            stopped.is_none()
        });
        if let Some(failure) = stopped {
            return Err(failure);
        }
        walked.map_err(|error: ExecuteError<ReadError>| read_failure(&error))?;
        for (path, object, inode) in std::mem::take(&mut self.directories).into_iter().rev() {
            self.attributes(&path, object, &inode)?;
        }
        Ok(())
    }

    /// The place of an entry. Names come from a medium: one that would lead out of the
    /// destination is not followed.
    fn place(&self, path: &[u8]) -> Result<PathBuf, Failure> {
        let plain = path
            .split(|byte| *byte == b'/')
            .all(|name| !name.is_empty() && name != b"." && name != b".." && !name.contains(&0));
        if !plain {
            return Err(read_failure(&"a name in the brick is not a name"));
        }
        Ok(self.dest.join(std::ffi::OsStr::from_bytes(path)))
    }

    fn entry(&mut self, path: &[u8], object: ObjectId, inode: &Inode) -> Result<(), Failure> {
        let place = self.place(path)?;
        let failed = |error: io::Error| write_failure(&place, &error);
        self.totals.files += 1;
        if !inode.is_directory() && inode.nlink > 1 {
            if let Some(first) = self.seen.get(&object) {
                return fs::hard_link(first, &place).map_err(failed);
            }
            self.seen.insert(object, place.clone());
        }
        if inode.is_directory() {
            fs::create_dir(&place).map_err(failed)?;
            self.directories.push((place, object, inode.clone()));
            return Ok(());
        }
        if let Detail::Symlink { target } = &inode.detail {
            symlink(std::ffi::OsStr::from_bytes(target), &place).map_err(failed)?;
        } else if inode.is_file() {
            self.data(&place, object, inode.size)?;
        } else {
            let kind = FileType::from_raw_mode(inode.mode);
            rustix::fs::mknodat(CWD, &place, kind, Mode::empty(), u64::from(inode.rdev))
                .map_err(|errno| failed(errno.into()))?;
        }
        self.attributes(&place, object, inode)
    }

    /// Data with its holes.
    fn data(&mut self, place: &Path, object: ObjectId, size: u64) -> Result<(), Failure> {
        let failed = |error: io::Error| write_failure(place, &error);
        let file = File::create_new(place).map_err(failed)?;
        file.set_len(size).map_err(failed)?;
        let extents = self.brick.extents(object).map_err(|e| read_failure(&e))?;
        for extent in extents {
            let from = extent * EXTENT_BYTES;
            let until = (from + EXTENT_BYTES).min(size);
            let mut at = from;
            while at < until {
                let len = READ_BYTES.min(until - at);
                let data = self
                    .brick
                    .read_now(object, at, u32::try_from(len).unwrap_or(u32::MAX))
                    .map_err(|error| read_failure(&format!("{}: {error}", place.display())))?;
                if data.iter().any(|byte| *byte != 0) {
                    file.write_all_at(&data, at).map_err(failed)?;
                    self.totals.bytes += data.len() as u64;
                }
                at += len;
            }
        }
        Ok(())
    }

    /// Owner, extended attributes, mode, times, in the order in which each spares the others.
    fn attributes(&self, place: &Path, object: ObjectId, inode: &Inode) -> Result<(), Failure> {
        let failed = |error: io::Error| write_failure(place, &error);
        let is_link = matches!(inode.detail, Detail::Symlink { .. });
        let is_root = rustix::process::geteuid().is_root();
        if is_root {
            lchown(place, Some(inode.uid), Some(inode.gid)).map_err(failed)?;
        }
        for (name, value) in self.xattrs(object, inode)? {
            let set = rustix::fs::lsetxattr(place, &*name, &value, XattrFlags::empty());
            match set {
                Ok(()) => {}
                // Names that only root may set, on an export by somebody else.
                Err(rustix::io::Errno::PERM) if !is_root => {}
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        if !is_link {
            let mode = Mode::from_raw_mode(inode.mode & 0o7777);
            rustix::fs::chmod(place, mode).map_err(|errno| failed(errno.into()))?;
        }
        let times = Timestamps {
            last_access: timespec(inode.atime),
            last_modification: timespec(inode.mtime),
        };
        rustix::fs::utimensat(CWD, place, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| failed(errno.into()))
    }

    fn xattrs(&self, object: ObjectId, inode: &Inode) -> Result<Vec<(Bytes, Bytes)>, Failure> {
        if inode.xattrs == 0 {
            return Ok(Vec::new());
        }
        let names = self.ask(Operation::ListXattrs { object })?;
        let mut found = Vec::new();
        for name in names.split(|byte| *byte == 0).filter(|n| !n.is_empty()) {
            let name = names.slice_ref(name);
            let operation = Operation::GetXattr {
                object,
                name: name.clone(),
            };
            found.push((name, self.ask(operation)?));
        }
        Ok(found)
    }

    /// Asks the namespace what needs no change.
    fn ask(&self, operation: Operation) -> Result<Bytes, Failure> {
        let context = Context {
            now: Timestamp(0),
            new_object: ObjectId::ROOT,
            session: SessionId::NONE,
            sequence: Sequence::ZERO,
            is_open: &|_| false,
            allocated_bytes: &|_| 0,
            object_bytes_max: i64::MAX as u64,
        };
        let request = Request {
            slot: SLOT_NONE,
            number: 1,
            caller: Caller::default(),
            operation,
            early: None,
            payload: Bytes::new(),
        };
        match execute(&Keys(self.brick), &context, &request) {
            Ok(Executed::Answer(Outcome::Data(data))) => Ok(data),
            Ok(_) => Err(read_failure(&"an extended attribute is missing")),
            Err(error) => Err(read_failure(&error)),
        }
    }
}

fn timespec(at: Timestamp) -> Timespec {
    const NANOS: i64 = 1_000_000_000;
    Timespec {
        tv_sec: at.0.div_euclid(NANOS),
        tv_nsec: at.0.rem_euclid(NANOS),
    }
}
