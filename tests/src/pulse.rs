//! A writer that fsyncs 4 KiB at a time, remembers how long that took at most, and knows what the
//! file must hold.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// Bytes of a write.
pub const BLOCK_BYTES: usize = 4096;
/// Blocks of the file: write `n` goes to block `n` modulo this.
const BLOCKS: u64 = 256;
/// A writer that does not go on for so long hangs.
const HANGS_AFTER: Duration = Duration::from_secs(60);

/// What the thread and its owner share.
#[derive(Debug, Default)]
struct Shared {
    longest_us: AtomicU64,
    /// Writes that were confirmed, with their fsync.
    done: AtomicU64,
    stop: AtomicBool,
    /// Held while a write is under way: who reads beside a write through one page cache may see
    /// parts of both, here as on any other file system.
    under_way: Mutex<()>,
    failed: Mutex<Option<io::Error>>,
}

/// The writer, in a thread.
#[derive(Debug)]
pub struct Pulse {
    path: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Block of write `number`.
fn block(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(BLOCK_BYTES / 8)
}

fn beat(file: &File, shared: &Shared) -> io::Result<()> {
    let _under_way = shared.under_way.lock().expect("no thread panics with it");
    let number = shared.done.load(Ordering::Relaxed);
    let bytes = block(number);
    let began = Instant::now();
    file.write_all_at(&bytes, number % BLOCKS * BLOCK_BYTES as u64)?;
    file.sync_data()?;
    let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    shared.longest_us.fetch_max(took, Ordering::Relaxed);
    shared.done.store(number + 1, Ordering::Release);
    Ok(())
}

impl Pulse {
    /// Makes the file and writes to it until it is told to stop, or sees an error.
    pub fn start(path: &Path) -> io::Result<Self> {
        let file = File::create(path)?;
        let shared: Arc<Shared> = Arc::default();
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            while !theirs.stop.load(Ordering::Relaxed) {
                if let Err(error) = beat(&file, &theirs) {
                    *theirs.failed.lock().expect("no thread panics with it") = Some(error);
                    return;
                }
            }
        });
        Ok(Self {
            path: path.to_owned(),
            shared,
            thread: Some(thread),
        })
    }

    /// The longest write with its fsync since the last call, of those that have ended.
    #[must_use]
    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.shared.longest_us.swap(0, Ordering::Relaxed))
    }

    fn check(&self) -> Result<()> {
        let failed = self.shared.failed.lock().expect("no thread panics with it");
        ensure!(failed.is_none(), "the writer saw {failed:?}");
        Ok(())
    }

    /// Waits until the writer went on for so many operations.
    pub fn wait(&self, operations: u64) -> Result<()> {
        let until = self.shared.done.load(Ordering::Relaxed) + operations;
        let began = Instant::now();
        while self.shared.done.load(Ordering::Relaxed) < until {
            self.check()?;
            ensure!(began.elapsed() < HANGS_AFTER, "the writer does not go on");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Between two writes, reads the file: it holds what was confirmed, nothing older, torn or
    /// another's.
    pub fn compare(&self) -> Result<()> {
        self.check()?;
        let shared = &self.shared;
        let _under_way = shared.under_way.lock().expect("no thread panics with it");
        let confirmed = shared.done.load(Ordering::Acquire);
        let bytes = fs::read(&self.path)?;
        for number in confirmed.saturating_sub(BLOCKS)..confirmed {
            let at = (number % BLOCKS) as usize * BLOCK_BYTES;
            let whole = bytes.get(at..at + BLOCK_BYTES) == Some(&block(number)[..]);
            ensure!(whole, "write {number} of {confirmed} is not there");
        }
        Ok(())
    }

    /// Stops; says what the writer saw.
    pub fn finish(mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            ensure!(thread.join().is_ok(), "the writer panicked");
        }
        self.check()?;
        self.compare()
    }
}
