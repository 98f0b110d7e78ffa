//! A disk in memory that crashes on command.
//!
//! Each file has a durable image and the changes since its last sync. A crash keeps, for every
//! 512-byte sector by itself, the effect of the first few of the changes to it: so un-synced writes
//! are lost, torn and reordered, and an older write never overtakes a newer one. Names are durable
//! after their directory's sync only. One seed decides everything.

mod image;
mod state;

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Completion, Medium, Op, OpenMode, Room};
use state::State;

/// When the disk stops working, as if the power went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashAt {
    /// Instead of the n-th sync (of a file, a directory or everything), from 0.
    Sync(u64),
    /// Instead of the n-th change of anything, syncs included, from 0.
    Change(u64),
}

/// A disk in memory.
#[derive(Debug, Clone)]
pub struct SimMedium {
    state: Arc<Mutex<State>>,
}

/// An open file of a [`SimMedium`].
#[derive(Debug, Clone)]
pub struct SimFile {
    inode: u64,
    _lock: Option<Arc<HeldLock>>,
}

#[derive(Debug)]
struct HeldLock {
    path: String,
    state: Arc<Mutex<State>>,
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        lock(&self.state).locks.remove(&self.path);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SimMedium {
    /// An empty disk of `capacity_bytes`; `seed` decides the order in which work ends.
    #[must_use]
    pub fn new(seed: u64, capacity_bytes: u64) -> Self {
        Self {
            state: Arc::new(Mutex::new(State::new(seed, capacity_bytes))),
        }
    }

    /// The disk after a crash, under new seeds. The old one, crashed already or now, gives nothing
    /// but errors from here on.
    #[must_use]
    pub fn crash(&self, seed: u64) -> Self {
        let mut state = lock(&self.state);
        state.crashed = true;
        let next = state.after_crash(seed);
        // Work that never ends holds handles of this very disk; not dropped under its lock.
        let never_done = std::mem::take(&mut state.queue);
        drop(state);
        drop(never_done);
        Self {
            state: Arc::new(Mutex::new(next)),
        }
    }

    /// The disk as the next process finds it when this one was killed: everything that was written
    /// is there, synced or not, and what was under way never ends. The old one gives nothing but
    /// errors from here on.
    #[must_use]
    pub fn kill(&self) -> Self {
        let mut state = lock(&self.state);
        state.crashed = true;
        let next = state.after_kill();
        let never_done = std::mem::take(&mut state.queue);
        drop(state);
        drop(never_done);
        Self {
            state: Arc::new(Mutex::new(next)),
        }
    }

    /// A copy of the disk as it is now, with everything un-synced kept; for comparing two ways on
    /// from one point. Nothing that is under way is copied.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self {
            state: Arc::new(Mutex::new(lock(&self.state).fork())),
        }
    }

    /// When to crash; `None` for never.
    pub fn set_crash(&self, at: Option<CrashAt>) {
        lock(&self.state).crash_at = at;
    }

    /// Whether the disk crashed.
    #[must_use]
    pub fn is_crashed(&self) -> bool {
        lock(&self.state).crashed
    }

    /// How many syncs, and how many changes of any kind, were asked for.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        let state = lock(&self.state);
        (state.syncs, state.changes)
    }

    /// The n-th sync from now on fails with EIO, once.
    pub fn fail_sync(&self, n: u64) {
        let mut state = lock(&self.state);
        state.fail_sync = Some(state.syncs + n);
    }

    /// The n-th change of a file from now on fails with EIO, once; syncs are not counted.
    pub fn fail_write(&self, n: u64) {
        lock(&self.state).fail_write = Some(n);
    }

    /// Nothing fails any more that was to fail.
    pub fn mend(&self) {
        let mut state = lock(&self.state);
        (state.fail_sync, state.fail_write) = (None, None);
        state.unreadable.clear();
        state.bad.clear();
    }

    /// A block of 4 KiB of this file cannot be read (EIO) until it is written as a whole.
    pub fn fail_block(&self, path: &str, block: u64) {
        let mut state = lock(&self.state);
        if let Some(inode) = state.entries.get(path).copied() {
            state.bad.insert((inode, block));
        }
    }

    /// What a file holds now, up to `len` bytes from `offset` on.
    #[must_use]
    pub fn peek(&self, path: &str, offset: u64, len: usize) -> Vec<u8> {
        lock(&self.state).peek(path, offset, len)
    }

    /// Reads of this file fail with EIO from now on.
    pub fn fail_reads(&self, path: &str) {
        let mut state = lock(&self.state);
        if let Some(inode) = state.entries.get(path).copied() {
            state.unreadable.insert(inode);
        }
    }

    /// The disk has this size from now on.
    pub fn set_capacity(&self, bytes: u64) {
        lock(&self.state).capacity = bytes;
    }

    /// How often something was refused for want of room, also before the last crash.
    #[must_use]
    pub fn refused(&self) -> u64 {
        lock(&self.state).refused
    }

    /// Work ends at one poll in `n` only, as on a slow disk.
    pub fn slow_down(&self, n: u64) {
        lock(&self.state).slowness = n;
    }

    /// Flips a bit of a file, in memory and on the disk; false where there is none.
    pub fn flip_bit(&self, path: &str, offset: u64, bit: u8) -> bool {
        let mut state = lock(&self.state);
        let Some(inode) = state.entries.get(path).copied() else {
            return false;
        };
        state.flip(inode, offset, bit)
    }

    /// Paths of all files, sorted.
    #[must_use]
    pub fn paths(&self) -> Vec<String> {
        lock(&self.state).entries.keys().cloned().collect()
    }

    /// Does the next piece of work that was submitted; false if there is none.
    fn step(&self) -> bool {
        let Some((op, token)) = lock(&self.state).next_op() else {
            return false;
        };
        let alive = lock(&self.state).alive();
        let result = match op {
            // Not run, so that it ends; dropped here and not under the lock.
            op if alive.is_err() => {
                drop(op);
                alive
            }
            Op::Sync(file) => self.sync(&file),
            Op::SyncNew { file, dirs } => self
                .sync(&file)
                .and_then(|()| dirs.iter().try_for_each(|dir| self.sync_dir(dir))),
            Op::Prefetch { file, offset, len } => {
                lock(&self.state).check_readable(file.inode, offset, len)
            }
            Op::Job(job) => job(),
        };
        lock(&self.state).done.push(Completion { token, result });
        true
    }
}

impl Medium for SimMedium {
    type File = SimFile;

    fn kind(&self) -> &'static str {
        "simulated"
    }

    fn open(&self, path: &str, mode: OpenMode) -> io::Result<SimFile> {
        let inode = lock(&self.state).open(path, mode)?;
        Ok(SimFile { inode, _lock: None })
    }

    fn lock(&self, path: &str) -> io::Result<Option<SimFile>> {
        let file = self.open(path, OpenMode::Create)?;
        if !lock(&self.state).locks.insert(path.to_owned()) {
            return Ok(None);
        }
        Ok(Some(SimFile {
            inode: file.inode,
            _lock: Some(Arc::new(HeldLock {
                path: path.to_owned(),
                state: Arc::clone(&self.state),
            })),
        }))
    }

    fn len(&self, file: &SimFile) -> io::Result<u64> {
        lock(&self.state).len(file.inode)
    }

    fn read_at(&self, file: &SimFile, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        lock(&self.state).read(file.inode, offset, buf)
    }

    fn read_cached(
        &self,
        file: &SimFile,
        offset: u64,
        buf: &mut [u8],
    ) -> io::Result<Option<usize>> {
        let mut state = lock(&self.state);
        // What cannot be read is never at hand; asking without waiting does not find out why.
        let bad = !state.crashed && state.check_readable(file.inode, offset, buf.len()).is_err();
        if state.random(4) == 0 || bad {
            return Ok(None);
        }
        drop(state);
        self.read_at(file, offset, buf).map(Some)
    }

    fn write_at(&self, file: &SimFile, offset: u64, data: &[u8]) -> io::Result<()> {
        lock(&self.state).write(file.inode, offset, data)
    }

    fn write_out(&self, file: &SimFile, _: Range<u64>) -> io::Result<()> {
        // What is not synced may reach this disk or not, at any time.
        lock(&self.state).len(file.inode).map(drop)
    }

    fn set_len(&self, file: &SimFile, len: u64) -> io::Result<()> {
        lock(&self.state).set_len(file.inode, len)
    }

    fn allocate(&self, file: &SimFile, len: u64) -> io::Result<()> {
        lock(&self.state).allocate(file.inode, len)
    }

    fn punch(&self, file: &SimFile, offset: u64, len: u64) -> io::Result<()> {
        lock(&self.state).punch(file.inode, offset, len)
    }

    fn sync(&self, file: &SimFile) -> io::Result<()> {
        lock(&self.state).sync(file.inode)
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        lock(&self.state).sync_dir(path)
    }

    fn sync_all(&self) -> io::Result<()> {
        lock(&self.state).sync_all()
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        lock(&self.state).unlink(path)
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        lock(&self.state).link(from, to)
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        lock(&self.state).remove_dir(path)
    }

    fn make_dir(&self, path: &str) -> io::Result<bool> {
        lock(&self.state).make_dir(path)
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        lock(&self.state).list(path)
    }

    fn room(&self) -> io::Result<Room> {
        lock(&self.state).room()
    }

    fn submit(&self, op: Op<SimFile>, token: u64) {
        lock(&self.state).queue.push((op, token));
    }

    fn poll(&self, done: &mut Vec<Completion>) {
        // Some of what is under way ends between two polls, as the seed decides.
        let steps = {
            let mut state = lock(&self.state);
            let (waiting, slowness) = (state.queue.len() as u64, state.slowness);
            // Looking where nothing is under way changes nothing, luck included.
            let idle = waiting == 0 || (slowness > 1 && state.random(slowness) > 0);
            if idle { 0 } else { state.random(waiting + 1) }
        };
        for _ in 0..steps {
            self.step();
        }
        done.append(&mut lock(&self.state).done);
    }

    fn wait(&self) {
        if lock(&self.state).done.is_empty() {
            self.step();
        }
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[cfg(test)]
mod tests;
