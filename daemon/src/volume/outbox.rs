//! What waits to be written to a connection, and the task that writes it.
//!
//! Frames are queued by whoever has something to say and written together when the thread gets to
//! the writer: many replies and acknowledgements leave in one system call.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use bytes::BytesMut;
use protocol::frame::RawFrame;
use protocol::packed::Packer;
use protocol::replica::Message;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

/// Payloads from this size on are written from their own buffer instead of being copied together.
const OWN_WRITE_BYTES_MIN: usize = 32 << 10;
/// Small frames are gathered up to this size for one write.
const GATHER_BYTES_MAX: usize = 256 << 10;

/// With so much waiting the link is what holds things up, and not what there is to do.
const BEHIND_BYTES: usize = 1 << 20;

/// Frames that wait for one connection. Shared by the tasks of one thread.
#[derive(Default)]
pub(super) struct Outbox {
    queue: RefCell<VecDeque<RawFrame>>,
    queued_bytes: Cell<usize>,
    /// Of the frames as they were queued, and as they went out.
    plain_bytes: Cell<u64>,
    written_bytes: Cell<u64>,
    /// Frames go out smaller where that is possible.
    packer: RefCell<Option<Packer>>,
    closed: Cell<bool>,
    wake: Notify,
    drained: Notify,
}

impl Outbox {
    pub(super) fn new() -> Rc<Self> {
        Rc::default()
    }

    /// Queues a frame. Dropped silently when the connection is closing: its reader ends too.
    pub(super) fn send(&self, frame: RawFrame) {
        if self.closed.get() {
            return;
        }
        self.queued_bytes
            .set(self.queued_bytes.get() + size(&frame));
        self.queue.borrow_mut().push_back(frame);
        self.wake.notify_one();
    }

    /// Bytes that wait.
    pub(super) fn queued_bytes(&self) -> usize {
        self.queued_bytes.get()
    }

    /// Whether frames are to be packed from now on: the other end must know how.
    pub(super) fn pack(&self, pack: bool) {
        let mut packer = self.packer.borrow_mut();
        if packer.is_some() != pack {
            *packer = pack.then(Packer::default);
        }
    }

    /// Bytes of the frames that went out, before they were packed.
    pub(super) fn plain_bytes(&self) -> u64 {
        self.plain_bytes.get()
    }

    /// Bytes handed to the socket since the connection began.
    pub(super) fn written_bytes(&self) -> u64 {
        self.written_bytes.get()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Ends the connection: nothing more is written.
    pub(super) fn close(&self) {
        self.closed.set(true);
        self.queue.borrow_mut().clear();
        self.queued_bytes.set(0);
        self.wake.notify_one();
        self.drained.notify_waiters();
    }

    /// Waits until fewer than `bytes` wait, or the connection is closed.
    pub(super) async fn below(&self, bytes: usize) {
        while self.queued_bytes.get() >= bytes && !self.closed.get() {
            self.drained.notified().await;
        }
    }

    /// Writes until the connection is closed or fails.
    pub(super) async fn run<W: AsyncWrite + Unpin>(
        self: Rc<Self>,
        mut socket: W,
    ) -> std::io::Result<()> {
        let mut gathered = BytesMut::with_capacity(GATHER_BYTES_MAX);
        let result = loop {
            if self.closed.get() {
                break Ok(());
            }
            let next = self.queue.borrow_mut().pop_front();
            let Some(frame) = next else {
                self.wake.notified().await;
                continue;
            };
            if let Err(error) = self.write_from(&mut socket, frame, &mut gathered).await {
                break Err(error);
            }
        };
        self.close();
        // The other side may be gone already.
        let _ = socket.shutdown().await;
        result
    }

    async fn write_from<W: AsyncWrite + Unpin>(
        &self,
        socket: &mut W,
        first: RawFrame,
        gathered: &mut BytesMut,
    ) -> std::io::Result<()> {
        let mut frame = first;
        loop {
            let bytes = size(&frame);
            self.queued_bytes
                .set(self.queued_bytes.get().saturating_sub(bytes));
            self.plain_bytes.set(self.plain_bytes.get() + bytes as u64);
            // A hello may still be queued when it is known that the other end unpacks.
            if Message::may_be_packed(frame.kind)
                && let Some(packer) = &mut *self.packer.borrow_mut()
            {
                let behind = self.queued_bytes.get() >= BEHIND_BYTES;
                frame = packer.pack(frame, behind);
            }
            self.written_bytes
                .set(self.written_bytes.get() + size(&frame) as u64);
            if frame.payload.len() >= OWN_WRITE_BYTES_MIN {
                gathered.extend_from_slice(&frame.header());
                gathered.extend_from_slice(&frame.meta);
                socket.write_all(gathered).await?;
                gathered.clear();
                socket.write_all(&frame.payload).await?;
            } else {
                frame.write_to(gathered);
            }
            if gathered.len() >= GATHER_BYTES_MAX {
                break;
            }
            let next = self.queue.borrow_mut().pop_front();
            match next {
                Some(more) => frame = more,
                None => break,
            }
        }
        if !gathered.is_empty() {
            socket.write_all(gathered).await?;
            gathered.clear();
        }
        socket.flush().await?;
        self.drained.notify_waiters();
        Ok(())
    }
}

fn size(frame: &RawFrame) -> usize {
    protocol::frame::HEADER_BYTES + frame.meta.len() + frame.payload.len()
}
