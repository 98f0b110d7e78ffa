//! One connection in use: whoever has a frame puts it into a queue, and sends the queue itself
//! if nobody is sending just now. So nobody waits for another thread's system call (which often
//! wakes the other end on this very processor), and what gathers meanwhile goes in one call. What
//! does not fit into the socket is sent by the link's own thread, so that nobody waits for the
//! network either.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex, MutexGuard};
use protocol::frame::{HEADER_BYTES, RawFrame};

use crate::connection::Connection;

/// Frames that are sent by one call.
const BATCH_FRAMES: usize = 16;

pub(super) struct Link {
    connection: Box<dyn Connection>,
    out: Mutex<Out>,
    more: Condvar,
    begun: Instant,
    /// Milliseconds after `begun` when bytes last came.
    heard_ms: AtomicU64,
}

/// A frame on its way.
struct Outgoing {
    header: [u8; HEADER_BYTES],
    frame: RawFrame,
}

impl Outgoing {
    fn parts(&self) -> [&[u8]; 3] {
        [&self.header, &self.frame.meta, &self.frame.payload]
    }

    fn len(&self) -> usize {
        self.parts().iter().map(|part| part.len()).sum()
    }
}

/// Who sends what is in the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Sender {
    /// Nobody; the queue is empty.
    #[default]
    Nobody,
    /// A thread that had a frame.
    Caller,
    /// The link's own thread, as the socket is full.
    Own,
}

#[derive(Default)]
struct Out {
    /// Payloads are shared with the table of requests, which bounds them.
    queue: VecDeque<Outgoing>,
    /// Bytes of the first frame that went already.
    sent: usize,
    sender: Sender,
    down: bool,
}

impl Out {
    /// Forgets bytes that went.
    fn went(&mut self, mut bytes: usize) {
        while let Some(first) = self.queue.front() {
            let left = first.len() - self.sent;
            if bytes < left {
                self.sent += bytes;
                return;
            }
            bytes -= left;
            self.sent = 0;
            self.queue.pop_front();
        }
    }
}

/// What came of sending.
enum Pushed {
    /// Everything went.
    All,
    /// The socket is full.
    Full,
}

impl Link {
    /// Takes a connection into use and starts its sending thread, which ends with it.
    pub(super) fn start(connection: Box<dyn Connection>) -> io::Result<Arc<Self>> {
        let link = Arc::new(Self {
            connection,
            out: Mutex::default(),
            more: Condvar::new(),
            begun: Instant::now(),
            heard_ms: AtomicU64::new(0),
        });
        let sender = Arc::clone(&link);
        std::thread::Builder::new()
            .name("cairn-send".to_owned())
            .spawn(move || sender.drain())?;
        Ok(link)
    }

    pub(super) fn connection(&self) -> &dyn Connection {
        &*self.connection
    }

    /// Sends a frame, now or as soon as it fits. A broken connection shows at its receiver.
    pub(super) fn send(&self, frame: &RawFrame) {
        self.queue(frame);
        self.go();
    }

    /// Puts a frame behind those that are to be sent; [`Link::go`] follows. Never waits, so that
    /// whoever decides about an order can do it under the lock of what is ordered.
    pub(super) fn queue(&self, frame: &RawFrame) {
        let outgoing = Outgoing {
            header: frame.header(),
            frame: frame.clone(),
        };
        let mut out = self.out.lock();
        if !out.down {
            out.queue.push_back(outgoing);
        }
    }

    /// Sends what is queued, unless somebody is sending.
    pub(super) fn go(&self) {
        let mut out = self.out.lock();
        if out.down || out.queue.is_empty() || out.sender != Sender::Nobody {
            return;
        }
        out.sender = Sender::Caller;
        match self.push(&mut out) {
            Ok(Pushed::All) => out.sender = Sender::Nobody,
            Ok(Pushed::Full) => {
                out.sender = Sender::Own;
                self.more.notify_one();
            }
            Err(error) => self.fail(&mut out, &error),
        }
    }

    /// Sends the queue, which may grow meanwhile, until it is empty or the socket is full. Only
    /// the one sender calls this.
    fn push(&self, out: &mut MutexGuard<'_, Out>) -> io::Result<Pushed> {
        loop {
            if out.queue.is_empty() {
                let flushed = MutexGuard::unlocked(out, || self.connection.flush())?;
                if !flushed {
                    return Ok(Pushed::Full);
                }
                // Something may have come while the lock was free.
                if out.queue.is_empty() {
                    return Ok(Pushed::All);
                }
            }
            let batch: Vec<Outgoing> = {
                let frames = out.queue.len().min(BATCH_FRAMES);
                out.queue.drain(..frames).collect()
            };
            let skip = out.sent;
            let result = MutexGuard::unlocked(out, || self.try_send(&batch, skip));
            // What was taken goes back to the front; only now it is known how much went.
            for outgoing in batch.into_iter().rev() {
                out.queue.push_front(outgoing);
            }
            let (sent, all) = result?;
            out.went(sent);
            if !all {
                return Ok(Pushed::Full);
            }
        }
    }

    /// Sends frames but their first `skip` bytes: how many bytes went, and whether all did.
    fn try_send(&self, batch: &[Outgoing], skip: usize) -> io::Result<(usize, bool)> {
        let mut parts = [IoSlice::new(&[]); 3 * BATCH_FRAMES];
        let mut count = 0;
        let mut before = skip;
        let mut bytes = 0;
        for part in batch.iter().flat_map(Outgoing::parts) {
            let gone = before.min(part.len());
            before -= gone;
            if gone < part.len() {
                parts[count] = IoSlice::new(&part[gone..]);
                bytes += part.len() - gone;
                count += 1;
            }
        }
        let sent = self.connection.try_send(&parts[..count])?;
        Ok((sent, sent == bytes))
    }

    fn fail(&self, out: &mut Out, error: &io::Error) {
        tracing::debug!(%error, "sending failed");
        self.down(out);
    }

    fn down(&self, out: &mut Out) {
        out.down = true;
        out.queue.clear();
        self.connection.shutdown();
        self.more.notify_one();
    }

    fn drain(&self) {
        let mut out = self.out.lock();
        loop {
            if out.down {
                return;
            }
            if out.sender != Sender::Own {
                self.more.wait(&mut out);
                continue;
            }
            MutexGuard::unlocked(&mut out, || {
                // An error shows at the next attempt to send.
                let _ = self.connection.wait_writable();
            });
            if out.down {
                return;
            }
            match self.push(&mut out) {
                Ok(Pushed::All) => out.sender = Sender::Nobody,
                Ok(Pushed::Full) => {}
                Err(error) => self.fail(&mut out, &error),
            }
        }
    }

    /// Ends the connection and wakes everyone who waits on it. What another thread is sending
    /// just now may be cut off.
    pub(super) fn close(&self) {
        self.down(&mut self.out.lock());
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Bytes came.
    pub(super) fn heard(&self) {
        self.heard_ms.store(self.elapsed_ms(), Ordering::Relaxed);
    }

    /// Milliseconds since bytes last came.
    pub(super) fn silent_ms(&self) -> u64 {
        self.elapsed_ms()
            .saturating_sub(self.heard_ms.load(Ordering::Relaxed))
    }
}
