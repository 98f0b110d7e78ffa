//! Threads that wait on the device, and the place where everything that ended is collected.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::{Completion, Op};

/// Threads for syncs and reads: enough that a journal's sync never queues behind an object's.
const WAITERS: usize = 4;
/// A thread without work ends after so long.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// Locks, whatever happened to an earlier holder: what is guarded is valid at every step.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What ended and was not fetched yet.
#[derive(Debug)]
pub(super) struct Finished {
    list: Mutex<Vec<Completion>>,
    event: OwnedFd,
    /// Begun and not fetched.
    under_way: AtomicUsize,
}

impl Finished {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            list: Mutex::new(Vec::new()),
            event: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
            under_way: AtomicUsize::new(0),
        })
    }

    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    pub(super) fn begin(&self) {
        self.under_way.fetch_add(1, Ordering::AcqRel);
    }

    #[expect(
        clippy::host_endian_bytes,
        reason = "eventfd(2) counts in the host's byte order"
    )]
    pub(super) fn end(&self, token: u64, result: io::Result<()>) {
        lock(&self.list).push(Completion { token, result });
        // Fails only when the counter is full, and then it is readable anyway.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }

    /// Clears the wake-up before the lists are looked at, so that none is missed.
    pub(super) fn quiet(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.event, &mut count);
    }

    pub(super) fn take(&self, done: &mut Vec<Completion>) {
        done.append(&mut lock(&self.list));
    }

    pub(super) fn fetched(&self, count: usize) {
        self.under_way.fetch_sub(count, Ordering::AcqRel);
    }

    pub(super) fn wait(&self) {
        if self.under_way.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut fds = [PollFd::new(&self.event, PollFlags::IN)];
        // An interrupted wait returns early; the caller polls and waits again.
        let _ = poll(&mut fds, None);
    }
}

type Work = Box<dyn FnOnce() + Send>;

/// What waits for a thread, and how many there are.
#[derive(Default)]
struct Queue {
    work: VecDeque<Work>,
    threads: usize,
    idle: usize,
    closed: bool,
}

/// Threads that come when there is work and go when there was none for a while: a machine may
/// have a thousand bricks of which few are busy.
struct Pool {
    name: &'static str,
    threads_max: usize,
    queue: Mutex<Queue>,
    wake: Condvar,
}

impl Pool {
    fn new(name: &'static str, threads_max: usize) -> Arc<Self> {
        Arc::new(Self {
            name,
            threads_max,
            queue: Mutex::default(),
            wake: Condvar::new(),
        })
    }

    /// # Errors
    /// There is no thread, and none can be started: `work` will not be done.
    fn run(self: &Arc<Self>, work: Work) -> io::Result<()> {
        let mut queue = lock(&self.queue);
        queue.work.push_back(work);
        if queue.work.len() <= queue.idle || queue.threads >= self.threads_max {
            self.wake.notify_one();
            return Ok(());
        }
        queue.threads += 1;
        let pool = Arc::clone(self);
        let started = std::thread::Builder::new()
            .name(self.name.to_owned())
            .spawn(move || pool.work());
        if let Err(error) = started {
            queue.threads -= 1;
            if queue.threads == 0 {
                queue.work.clear();
                return Err(error);
            }
        }
        Ok(())
    }

    fn work(&self) {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(work) = queue.work.pop_front() {
                drop(queue);
                work();
                queue = lock(&self.queue);
                continue;
            }
            if queue.closed {
                break;
            }
            queue.idle += 1;
            let (again, waited) = self
                .wake
                .wait_timeout(queue, IDLE_MAX)
                .unwrap_or_else(PoisonError::into_inner);
            queue = again;
            queue.idle -= 1;
            if waited.timed_out() && queue.work.is_empty() {
                break;
            }
        }
        queue.threads -= 1;
    }

    fn close(&self) {
        lock(&self.queue).closed = true;
        self.wake.notify_all();
    }
}

/// The threads of one medium. They end when it is dropped and their queue is empty.
pub(super) struct Threads {
    waiters: Arc<Pool>,
    jobs: Arc<Pool>,
}

impl std::fmt::Debug for Threads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Threads").finish_non_exhaustive()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.waiters.close();
        self.jobs.close();
    }
}

impl Threads {
    pub(super) fn start() -> Self {
        Self {
            waiters: Pool::new("brick-wait", WAITERS),
            jobs: Pool::new("brick-job", 1),
        }
    }

    /// Runs `op`, and reports its end to `finished`. `open_dir` opens a directory for a sync.
    pub(super) fn run(
        &self,
        op: Op<Arc<File>>,
        token: u64,
        finished: &Arc<Finished>,
        open_dir: impl Fn(&str) -> io::Result<File> + Send + 'static,
    ) {
        let done = Arc::clone(finished);
        let (to, work): (_, Work) = match op {
            Op::Sync(file) => (
                &self.waiters,
                Box::new(move || done.end(token, file.sync_data())),
            ),
            Op::SyncNew { file, dirs } => (
                &self.waiters,
                Box::new(move || {
                    let sync = || -> io::Result<()> {
                        file.sync_data()?;
                        dirs.iter().try_for_each(|dir| open_dir(dir)?.sync_all())
                    };
                    done.end(token, sync());
                }),
            ),
            Op::Prefetch { file, offset, len } => (
                &self.waiters,
                Box::new(move || {
                    let mut buf = vec![0; len];
                    done.end(token, file.read_at(&mut buf, offset).map(drop));
                }),
            ),
            Op::Job(job) => (&self.jobs, Box::new(move || done.end(token, job()))),
        };
        if let Err(error) = to.run(work) {
            finished.end(token, Err(error));
        }
    }
}
