//! Threads that wait on the device, and the place where everything that ended is collected.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::{Completion, Op};

/// Threads for syncs and reads: enough that a journal's sync never queues behind an object's.
const WAITERS: usize = 4;

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

/// A pool of threads. They end when the pool is dropped and their queue is empty.
#[derive(Debug)]
pub(super) struct Threads {
    waiters: Sender<Work>,
    jobs: Sender<Work>,
}

impl Threads {
    pub(super) fn start() -> io::Result<Self> {
        let (waiters, queue) = channel();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..WAITERS {
            let queue = Arc::clone(&queue);
            std::thread::Builder::new()
                .name("brick-wait".to_owned())
                .spawn(move || work_through(&queue))?;
        }
        let (jobs, queue) = channel();
        let queue = Mutex::new(queue);
        std::thread::Builder::new()
            .name("brick-job".to_owned())
            .spawn(move || work_through(&queue))?;
        Ok(Self { waiters, jobs })
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
        if to.send(work).is_err() {
            finished.end(token, Err(io::ErrorKind::BrokenPipe.into()));
        }
    }
}

fn work_through(queue: &Mutex<Receiver<Work>>) {
    loop {
        let next = lock(queue).recv();
        match next {
            Ok(work) => work(),
            Err(_) => return,
        }
    }
}
