//! A real directory.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{
    AtFlags, Dir, FallocateFlags, FlockOperation, Mode, OFlags, fallocate, flock, fstatvfs, linkat,
    mkdirat, openat, syncfs, unlinkat,
};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::engine::{Finished, Threads};
use super::uring::{Entry, Uring};
use super::{Completion, Medium, Op, OpenMode, Room};

/// What waits on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineChoice {
    /// io_uring where the kernel allows it, else threads.
    Best,
    /// A pool of threads.
    Threads,
}

#[derive(Debug)]
struct Inner {
    root: OwnedFd,
    finished: Arc<Finished>,
    uring: Option<Uring>,
    threads: Threads,
}

/// A real directory: a brick's `.cairn`.
#[derive(Debug, Clone)]
pub struct DirMedium {
    inner: Arc<Inner>,
}

impl DirMedium {
    /// Takes the directory at `path`, which must exist. Nothing is written.
    pub fn open(path: &Path, engine: EngineChoice) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())?;
        let finished = Arc::new(Finished::new()?);
        let uring = match engine {
            EngineChoice::Best => match Uring::start(finished.event()) {
                Ok(uring) => Some(uring),
                Err(error) => {
                    tracing::debug!(%error, "io_uring cannot be used; threads wait on the disk");
                    None
                }
            },
            EngineChoice::Threads => None,
        };
        Ok(Self {
            inner: Arc::new(Inner {
                root,
                finished,
                uring,
                threads: Threads::start(),
            }),
        })
    }

    fn open_dir(&self, path: &str) -> io::Result<File> {
        open_dir_at(self.inner.root.as_fd(), path)
    }

    fn ring_submit(&self, uring: &Uring, entry: Entry, token: u64) {
        let mut failed = Vec::new();
        uring.submit(entry, token, &mut failed);
        for Completion { token, result } in failed {
            self.inner.finished.end(token, result);
        }
    }
}

impl Medium for DirMedium {
    type File = Arc<File>;

    fn kind(&self) -> &'static str {
        if self.inner.uring.is_some() {
            "directory, io_uring"
        } else {
            "directory, threads"
        }
    }

    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Self::File> {
        let flags = match mode {
            OpenMode::Read => OFlags::RDONLY,
            OpenMode::Write => OFlags::RDWR,
            OpenMode::Create => OFlags::RDWR | OFlags::CREATE,
        };
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = openat(&self.inner.root, path, flags, Mode::from_raw_mode(0o600))?;
        Ok(Arc::new(fd.into()))
    }

    fn lock(&self, path: &str) -> io::Result<Option<Self::File>> {
        let file = self.open(path, OpenMode::Create)?;
        match flock(&*file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn len(&self, file: &Self::File) -> io::Result<u64> {
        Ok(file.metadata()?.len())
    }

    fn read_at(&self, file: &Self::File, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut got = 0;
        while got < buf.len() {
            match file.read_at(&mut buf[got..], offset + got as u64) {
                Ok(0) => break,
                Ok(count) => got += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(got)
    }

    fn read_cached(
        &self,
        file: &Self::File,
        offset: u64,
        buf: &mut [u8],
    ) -> io::Result<Option<usize>> {
        let mut got = 0;
        while got < buf.len() {
            let mut slices = [io::IoSliceMut::new(&mut buf[got..])];
            let at = offset + got as u64;
            match preadv2(&**file, &mut slices, at, ReadWriteFlags::NOWAIT) {
                Ok(0) => break,
                Ok(count) => got += count,
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                // File systems without RWF_NOWAIT: the plain read is all there is.
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                    return self.read_at(file, offset, buf).map(Some);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(got))
    }

    fn write_at(&self, file: &Self::File, offset: u64, data: &[u8]) -> io::Result<()> {
        file.write_all_at(data, offset)
    }

    fn write_out(&self, file: &Self::File, range: Range<u64>) -> io::Result<()> {
        // sync_file_range(2). It tells an error of writing back once, as fdatasync does: it must
        // not be swallowed here.
        let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
            | libc::SYNC_FILE_RANGE_WRITE
            | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        let number = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let (at, len) = (number(range.start), number(range.end - range.start));
        // SAFETY: no memory is handed over, and the descriptor is open while `file` is borrowed.
        let done = unsafe { libc::sync_file_range(file.as_raw_fd(), at, len, flags) };
        match done {
            0 => Ok(()),
            _ => match io::Error::last_os_error() {
                // A hint that this kernel, or a filter before it, does not take.
                error if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
                error => Err(error),
            },
        }
    }

    fn set_len(&self, file: &Self::File, len: u64) -> io::Result<()> {
        file.set_len(len)
    }

    fn allocate(&self, file: &Self::File, len: u64) -> io::Result<()> {
        let old = self.len(file)?;
        if old >= len {
            return Ok(());
        }
        let take = || fallocate(&**file, FallocateFlags::empty(), old, len - old);
        match rustix::io::retry_on_intr(take) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP) => file.set_len(len),
            Err(error) => Err(error.into()),
        }
    }

    fn punch(&self, file: &Self::File, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&**file, flags, offset, len) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP) => zero_fill(file, offset, len),
            Err(error) => Err(error.into()),
        }
    }

    fn sync(&self, file: &Self::File) -> io::Result<()> {
        file.sync_data()
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.open_dir(path)?.sync_all()
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(syncfs(&self.inner.root)?)
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        match unlinkat(&self.inner.root, path, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        let root = &self.inner.root;
        Ok(linkat(root, from, root, to, AtFlags::empty())?)
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        match unlinkat(&self.inner.root, path, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn make_dir(&self, path: &str) -> io::Result<bool> {
        match mkdirat(&self.inner.root, path, Mode::from_raw_mode(0o700)) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(self.open_dir(path)?)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn room(&self) -> io::Result<Room> {
        let stat = fstatvfs(&self.inner.root)?;
        Ok(Room {
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }

    fn submit(&self, op: Op<Self::File>, token: u64) {
        self.inner.finished.begin();
        match (&self.inner.uring, op) {
            (Some(uring), Op::Sync(file)) => self.ring_submit(uring, Entry::Sync(file), token),
            (Some(uring), Op::Prefetch { file, offset, len }) => {
                self.ring_submit(uring, Entry::Read(file, offset, len), token);
            }
            (_, op) => {
                let root = self.inner.root.try_clone();
                let open_dir = move |path: &str| -> io::Result<File> {
                    let root = root
                        .as_ref()
                        .map_err(|error| io::Error::from(error.kind()))?;
                    open_dir_at(root.as_fd(), path)
                };
                self.inner
                    .threads
                    .run(op, token, &self.inner.finished, open_dir);
            }
        }
    }

    fn poll(&self, done: &mut Vec<Completion>) {
        let before = done.len();
        self.inner.finished.quiet();
        if let Some(uring) = &self.inner.uring {
            uring.poll(done);
        }
        self.inner.finished.take(done);
        self.inner.finished.fetched(done.len() - before);
    }

    fn wait(&self) {
        self.inner.finished.wait();
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.inner.finished.event())
    }
}

fn open_dir_at(root: BorrowedFd<'_>, path: &str) -> io::Result<File> {
    let path = if path.is_empty() { "." } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(root, path, flags, Mode::empty())?.into())
}

/// Where holes cannot be made, zeros take their place.
fn zero_fill(file: &File, offset: u64, len: u64) -> io::Result<()> {
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    let end = offset.saturating_add(len).min(file.metadata()?.len());
    let mut at = offset;
    while at < end {
        let part = usize::try_from(end - at).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
        file.write_all_at(&ZEROS[..part], at)?;
        at += part as u64;
    }
    Ok(())
}
