//! One connection in use: whoever has a frame sends it himself if it fits at once; what does not
//! fit is sent by the link's own thread, so that nobody else ever waits for the network.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use protocol::frame::RawFrame;

use crate::connection::Connection;

pub(super) struct Link {
    connection: Box<dyn Connection>,
    out: Mutex<Out>,
    more: Condvar,
    begun: Instant,
    /// Milliseconds after `begun` when bytes last came.
    heard_ms: AtomicU64,
}

#[derive(Default)]
struct Out {
    /// What did not fit. Its payloads are shared with the table of requests, which bounds them.
    queue: VecDeque<Bytes>,
    /// The connection holds bytes that it took and could not pass on.
    unflushed: bool,
    down: bool,
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
        let header = frame.header();
        let mut out = self.out.lock();
        if out.down {
            return;
        }
        let mut sent = 0;
        if out.queue.is_empty() && !out.unflushed {
            let parts = [
                IoSlice::new(&header),
                IoSlice::new(&frame.meta),
                IoSlice::new(&frame.payload),
            ];
            let result = self.connection.try_send(&parts);
            match result.and_then(|n| Ok((n, self.connection.flush()?))) {
                Ok((n, flushed)) => {
                    sent = n;
                    out.unflushed = !flushed;
                }
                Err(error) => return self.fail(&mut out, &error),
            }
        }
        let header = Bytes::copy_from_slice(&header);
        for part in [header, frame.meta.clone(), frame.payload.clone()] {
            let skip = sent.min(part.len());
            sent -= skip;
            if skip < part.len() {
                out.queue.push_back(part.slice(skip..));
            }
        }
        if !out.queue.is_empty() || out.unflushed {
            self.more.notify_one();
        }
    }

    fn fail(&self, out: &mut Out, error: &io::Error) {
        tracing::debug!(%error, "sending failed");
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
            if out.queue.is_empty() && !out.unflushed {
                self.more.wait(&mut out);
                continue;
            }
            parking_lot::MutexGuard::unlocked(&mut out, || {
                // An error shows at the next attempt to send.
                let _ = self.connection.wait_writable();
            });
            if out.down {
                return;
            }
            if let Err(error) = self.push(&mut out) {
                self.fail(&mut out, &error);
            }
        }
    }

    fn push(&self, out: &mut Out) -> io::Result<()> {
        while let Some(part) = out.queue.front_mut() {
            let sent = self.connection.try_send(&[IoSlice::new(part)])?;
            if sent == part.len() {
                out.queue.pop_front();
                continue;
            }
            let _ = part.split_to(sent);
            break;
        }
        out.unflushed = !self.connection.flush()?;
        Ok(())
    }

    /// Ends the connection and wakes everyone who waits on it.
    pub(super) fn close(&self) {
        let mut out = self.out.lock();
        out.down = true;
        out.queue.clear();
        self.connection.shutdown();
        self.more.notify_one();
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
