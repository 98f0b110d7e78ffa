//! What a brick stands on: files that can be written, synced, and lost.
//!
//! Everything that a brick does to the world goes through [`Medium`]: [`DirMedium`] is a real
//! directory, [`sim::SimMedium`] a disk in memory that crashes on command. Paths are relative to
//! the brick's own directory and use `/`.
//!
//! Two kinds of calls: plain ones, which work on the page cache and return at once as a rule, and
//! [`Medium::submit`], for what waits on the device; its end is reported by [`Medium::poll`].

mod dir;
mod engine;
pub mod sim;
mod uring;

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

pub use dir::{DirMedium, EngineChoice};

/// How to open a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// For reading; it must be there.
    Read,
    /// For reading and writing; it must be there.
    Write,
    /// For reading and writing; made if it is not there.
    Create,
}

/// A file system's room in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// All of it.
    pub total_bytes: u64,
    /// What can still be written.
    pub free_bytes: u64,
}

/// Work that waits on the device, or takes long.
pub enum Op<F> {
    /// The file's data, and what is needed to find it, become durable.
    Sync(F),
    /// As [`Op::Sync`], and the entries of these directories become durable.
    SyncNew {
        /// The file.
        file: F,
        /// Directories.
        dirs: Vec<String>,
    },
    /// A part of a file is brought into the page cache.
    Prefetch {
        /// The file.
        file: F,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: usize,
    },
    /// A longer piece of work beside the caller's thread, one after another.
    Job(Box<dyn FnOnce() -> io::Result<()> + Send>),
}

/// The end of an [`Op`].
#[derive(Debug)]
pub struct Completion {
    /// What the submitter called it.
    pub token: u64,
    /// How it went.
    pub result: io::Result<()>,
}

/// Files for a brick. A handle is cheap to clone and all clones are one medium.
pub trait Medium: Clone + Send + Sync + 'static {
    /// An open file. Closed when the last clone is dropped.
    type File: Clone + Send + Sync + std::fmt::Debug + 'static;

    /// Which implementation this is, for logs and status.
    fn kind(&self) -> &'static str;
    /// Opens a file. Missing directories are `NotFound`.
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Self::File>;
    /// Takes the lock of a file that is made if needed: `None` if another process holds it. Held
    /// until the file is closed.
    fn lock(&self, path: &str) -> io::Result<Option<Self::File>>;
    /// Length in bytes.
    fn len(&self, file: &Self::File) -> io::Result<u64>;
    /// Reads until `buf` is full or the file ends; returns how much.
    fn read_at(&self, file: &Self::File, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
    /// As [`Medium::read_at`], but `None` where it would wait on the device.
    fn read_cached(
        &self,
        file: &Self::File,
        offset: u64,
        buf: &mut [u8],
    ) -> io::Result<Option<usize>>;
    /// Writes all of `data` into the page cache. Not durable.
    fn write_at(&self, file: &Self::File, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Hands what was written to a range to the device, and waits until that has it. Not durable:
    /// the device may hold it in a cache, and what is needed to find it is not written.
    ///
    /// # Errors
    /// The device refused: as after a failed sync, what the range holds there is not known.
    fn write_out(&self, file: &Self::File, range: Range<u64>) -> io::Result<()>;
    /// Cuts or lengthens with zeros. Not durable.
    fn set_len(&self, file: &Self::File, len: u64) -> io::Result<()>;
    /// Lengthens with zeros and takes their room at once, where the file system can. Not durable.
    fn allocate(&self, file: &Self::File, len: u64) -> io::Result<()>;
    /// Makes a range zero and frees it, without changing the length. Not durable.
    fn punch(&self, file: &Self::File, offset: u64, len: u64) -> io::Result<()>;
    /// Makes a file's data durable; waits.
    fn sync(&self, file: &Self::File) -> io::Result<()>;
    /// Makes a directory's entries durable; waits. `""` is the brick's own directory.
    fn sync_dir(&self, path: &str) -> io::Result<()>;
    /// Makes everything durable; waits. For many files at once.
    fn sync_all(&self) -> io::Result<()>;
    /// Removes a file. No error where there is none. Not durable.
    fn unlink(&self, path: &str) -> io::Result<()>;
    /// Gives a file a second name; an error where that is taken. Not durable.
    fn link(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes an empty directory. No error where there is none. Not durable.
    fn remove_dir(&self, path: &str) -> io::Result<()>;
    /// Makes a directory; true if it was not there. Not durable.
    fn make_dir(&self, path: &str) -> io::Result<bool>;
    /// Names in a directory, sorted.
    fn list(&self, path: &str) -> io::Result<Vec<String>>;
    /// Room of the file system.
    fn room(&self) -> io::Result<Room>;

    /// Begins `op`; its end will be reported once under `token`.
    fn submit(&self, op: Op<Self::File>, token: u64);
    /// Takes the ends that were reached. Never waits.
    fn poll(&self, done: &mut Vec<Completion>);
    /// Waits until [`Medium::poll`] has something to give; returns at once if nothing is under way.
    fn wait(&self);
    /// Becomes readable when [`Medium::poll`] has something to give. `None` where only polling helps.
    fn wake_fd(&self) -> Option<BorrowedFd<'_>>;
}
