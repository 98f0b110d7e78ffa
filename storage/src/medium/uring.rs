//! Syncs and reads through io_uring: no thread of ours waits, and one system call begins many.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use io_uring::{IoUring, opcode, squeue, types};

use super::Completion;
use super::engine::lock;

/// Entries of the ring, and so the most that is under way in the kernel.
const RING_ENTRIES: u32 = 128;

/// What the ring does.
pub(super) enum Entry {
    Sync(Arc<File>),
    /// The buffer is only there to make the kernel fetch the pages.
    Read(Arc<File>, u64, usize),
}

struct Flight {
    token: u64,
    /// Kept open, and the buffer kept in its place, until the kernel is done with them.
    _file: Arc<File>,
    _buffer: Vec<u8>,
}

struct State {
    ring: IoUring,
    flights: HashMap<u64, Flight>,
    waiting: VecDeque<(Entry, u64)>,
    next_id: u64,
}

pub(super) struct Uring {
    state: Mutex<State>,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Uring")
    }
}

impl Uring {
    /// Sets a ring up that signals `event`. An error where the kernel has none or forbids it.
    pub(super) fn start(event: BorrowedFd<'_>) -> io::Result<Self> {
        let ring = IoUring::new(RING_ENTRIES)?;
        let mut probe = io_uring::Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if !probe.is_supported(opcode::Fsync::CODE) || !probe.is_supported(opcode::Read::CODE) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        Ok(Self {
            state: Mutex::new(State {
                ring,
                flights: HashMap::new(),
                waiting: VecDeque::new(),
                next_id: 0,
            }),
        })
    }

    pub(super) fn submit(&self, entry: Entry, token: u64, done: &mut Vec<Completion>) {
        let mut state = lock(&self.state);
        state.waiting.push_back((entry, token));
        state.drive(done);
    }

    pub(super) fn poll(&self, done: &mut Vec<Completion>) {
        let mut state = lock(&self.state);
        state.reap(done);
        state.drive(done);
    }
}

impl State {
    fn drive(&mut self, done: &mut Vec<Completion>) {
        while self.flights.len() < RING_ENTRIES as usize {
            let Some((entry, token)) = self.waiting.pop_front() else {
                break;
            };
            self.begin(entry, token);
        }
        if let Err(error) = self.ring.submit()
            && error.kind() != io::ErrorKind::Interrupted
            && error.raw_os_error() != Some(libc::EBUSY)
            && error.raw_os_error() != Some(libc::EAGAIN)
        {
            // The ring is unusable: what waits would wait for ever. What the kernel already took
            // stays in `flights`, since it may still write into the buffers.
            for (_, token) in self.waiting.drain(..) {
                done.push(Completion {
                    token,
                    result: Err(io::Error::from(error.kind())),
                });
            }
        }
    }

    fn begin(&mut self, entry: Entry, token: u64) {
        self.next_id += 1;
        let (file, mut buffer, read_at) = match entry {
            Entry::Sync(file) => (file, Vec::new(), None),
            Entry::Read(file, offset, len) => (file, vec![0; len], Some(offset)),
        };
        let fd = types::Fd(file.as_raw_fd());
        let sqe: squeue::Entry = match read_at {
            None => opcode::Fsync::new(fd)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
            Some(offset) => {
                let len = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
                opcode::Read::new(fd, buffer.as_mut_ptr(), len)
                    .offset(offset)
                    .build()
            }
        };
        let flight = Flight {
            token,
            _file: file,
            _buffer: buffer,
        };
        self.flights.insert(self.next_id, flight);
        let sqe = sqe.user_data(self.next_id);
        // SAFETY: the entry names a file and a buffer that `flights` owns until the kernel's
        // completion is reaped; the buffer's heap memory does not move with the `Flight`. The
        // queue has room: at most RING_ENTRIES flights exist, and each was one entry.
        let pushed = unsafe { self.ring.submission().push(&sqe) };
        debug_assert!(pushed.is_ok());
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        for cqe in self.ring.completion() {
            if let Some(flight) = self.flights.remove(&cqe.user_data()) {
                let result = match cqe.result() {
                    code if code < 0 => Err(io::Error::from_raw_os_error(-code)),
                    _ => Ok(()),
                };
                done.push(Completion {
                    token: flight.token,
                    result,
                });
            }
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // The kernel may still write into the buffers: they stay until it is done.
        let mut done = Vec::new();
        while !self.flights.is_empty() {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => {
                    std::mem::forget(std::mem::take(&mut self.flights));
                    return;
                }
            }
            self.reap(&mut done);
        }
    }
}
