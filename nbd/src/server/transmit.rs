//! Requests of one connection, in parallel.

use std::io;
use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::writer::{self, Outgoing};
use super::{CONNECTION_BYTES_MAX, Ended, Limits, REQUEST_OVERHEAD_BYTES, REQUESTS_MAX};
use crate::disk::{Disk, Doing};
use crate::handshake::Agreed;
use crate::numbers::{Errno, PAYLOAD_BYTES_MAX};
use crate::reply::{self, Reply};
use crate::request::{Command, REQUEST_BYTES, Request, Rules};

/// Bytes that are asked of the socket at once.
const READ_BYTES: usize = 256 << 10;
/// Stretches of one answer; the client asks on where it ends.
const STRETCHES_MAX: usize = 256;

/// Room that a request has, until its answer has gone.
#[derive(Debug)]
pub(super) struct Room(#[allow(dead_code, reason = "held, not read")] [OwnedSemaphorePermit; 3]);

/// Serves requests until the client leaves or the connection breaks. What was asked by then is done.
pub async fn transmit<R, W, D>(
    reader: R,
    writer: W,
    early: BytesMut,
    agreed: &Agreed,
    disk: Arc<D>,
    limits: &Limits,
) -> Result<(), Ended>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin + Send + 'static,
    D: Disk,
{
    let (replies, outbox) = mpsc::unbounded_channel();
    let mut writing = tokio::spawn(writer::run(writer, outbox));
    let mut connection = Connection {
        input: Input {
            reader,
            buffer: early,
        },
        rules: Rules {
            size: agreed.export.size,
            read_only: agreed.export.read_only,
            structured: agreed.structured,
            allocation: agreed.allocation,
        },
        disk,
        replies,
        requests: Arc::new(Semaphore::new(REQUESTS_MAX)),
        bytes: Arc::new(Semaphore::new(CONNECTION_BYTES_MAX)),
        limits: limits.clone(),
    };
    let read = tokio::select! {
        read = connection.read() => read,
        written = &mut writing => {
            return written.unwrap_or(Ok(()));
        }
    };
    drop(connection);
    // Its requests hold the way to the writer, which ends with the last of them.
    match writing.await {
        Ok(written) => read.and(written),
        Err(_) => read,
    }
}

struct Connection<R, D> {
    input: Input<R>,
    rules: Rules,
    disk: Arc<D>,
    replies: UnboundedSender<Outgoing>,
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    limits: Limits,
}

impl<R: AsyncRead + Unpin, D: Disk> Connection<R, D> {
    async fn read(&mut self) -> Result<(), Ended> {
        while let Some(head) = self.input.head().await? {
            let request = Request::decode(&head)?;
            let mut command = request.command(&self.rules);
            if command.is_err() && self.is_beyond(&request) {
                // The disk may have grown since.
                if let Ok(size) = self.disk.size().await {
                    self.rules.size = size;
                }
                command = request.command(&self.rules);
            }
            let room = self.room(&request, command).await;
            let data = self.input.take(request.payload_bytes()).await?;
            match command {
                Ok(Command::Disconnect) => return Ok(()),
                Ok(command) => self.begin(request, command, data, room),
                Err(errno) => self.refuse(&request, errno, room),
            }
        }
        Ok(())
    }

    fn is_beyond(&self, request: &Request) -> bool {
        let end = request.offset.checked_add(u64::from(request.len));
        end.is_some_and(|end| end > self.rules.size)
    }

    /// Waits for room for a request's data and its answer.
    async fn room(&self, request: &Request, command: Result<Command, Errno>) -> Room {
        let data = match command {
            Ok(Command::Read) => request.len,
            Ok(Command::BlockStatus { .. }) => 8 * u32::try_from(STRETCHES_MAX).expect("few"),
            _ => request.payload_bytes(),
        };
        debug_assert!(data <= PAYLOAD_BYTES_MAX);
        let bytes = data + REQUEST_OVERHEAD_BYTES;
        let open = "nobody closes it";
        let request = Arc::clone(&self.requests).acquire_owned();
        let request = request.await.expect(open);
        let own = Arc::clone(&self.bytes).acquire_many_owned(bytes);
        let own = own.await.expect(open);
        let shared = Arc::clone(&self.limits.bytes).acquire_many_owned(bytes);
        Room([request, own, shared.await.expect(open)])
    }

    fn refuse(&self, request: &Request, errno: Errno, room: Room) {
        use crate::numbers::command::{BLOCK_STATUS, READ};
        let chunks = self.rules.structured && [READ, BLOCK_STATUS].contains(&request.command);
        let failed = reply::failed(request.cookie, errno, chunks);
        // The writer is gone only with the connection.
        let _ = self.replies.send((failed, room));
    }

    /// Begins a request: its place among others is where it is called.
    fn begin(&self, request: Request, command: Command, data: Bytes, room: Room) {
        let (cookie, offset, len) = (request.cookie, request.offset, request.len);
        let structured = self.rules.structured;
        let disk = &self.disk;
        let nothing: Doing<()> = Box::pin(async { Ok(()) });
        match command {
            Command::Read => {
                let reading = match len {
                    0 => Box::pin(async { Ok(Vec::new()) }),
                    _ => disk.read(offset, len),
                };
                self.answer(room, async move {
                    match reading.await {
                        Ok(data) => reply::data(cookie, offset, data, structured),
                        Err(errno) => reply::failed(cookie, errno, structured),
                    }
                });
            }
            Command::BlockStatus { one } => {
                let max = if one { 1 } else { STRETCHES_MAX };
                let looking = disk.stretches(offset, u64::from(len), max);
                self.answer(room, async move {
                    match looking.await {
                        Ok(found) => reply::stretches(cookie, &found),
                        Err(errno) => reply::failed(cookie, errno, structured),
                    }
                });
            }
            Command::Flush => self.settle(cookie, room, disk.flush(), false),
            Command::Disconnect | Command::Cache => self.settle(cookie, room, nothing, false),
            _ if len == 0 => self.settle(cookie, room, nothing, false),
            Command::Write { fua } => {
                self.settle(cookie, room, disk.write(offset, data), fua);
            }
            Command::Trim { fua } | Command::WriteZeroes { fua } => {
                let zeroing = disk.zero(offset, u64::from(len));
                self.settle(cookie, room, zeroing, fua);
            }
        }
    }

    /// Answers without data, once it is done and, if so asked, stable.
    fn settle(&self, cookie: u64, room: Room, doing: Doing<()>, fua: bool) {
        let disk = Arc::clone(&self.disk);
        self.answer(room, async move {
            let mut result = doing.await;
            if fua && result.is_ok() {
                result = disk.flush().await;
            }
            match result {
                Ok(()) => reply::done(cookie),
                Err(errno) => reply::failed(cookie, errno, false),
            }
        });
    }

    /// Sends what `work` comes to.
    fn answer(&self, room: Room, work: impl Future<Output = Reply> + Send + 'static) {
        let replies = self.replies.clone();
        tokio::spawn(async move {
            let reply = work.await;
            // Whoever has left needs no answer.
            let _ = replies.send((reply, room));
        });
    }
}

/// What comes from the client.
struct Input<R> {
    reader: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> Input<R> {
    /// The next request's head; `None`: the client has gone.
    async fn head(&mut self) -> io::Result<Option<[u8; REQUEST_BYTES]>> {
        while self.buffer.len() < REQUEST_BYTES {
            self.buffer.reserve(READ_BYTES);
            if self.reader.read_buf(&mut self.buffer).await? == 0 {
                return match self.buffer.is_empty() {
                    true => Ok(None),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
        }
        let mut head = [0; REQUEST_BYTES];
        self.buffer.copy_to_slice(&mut head);
        Ok(Some(head))
    }

    /// So many bytes of data. A buffer of their own: they may be kept for long, and would keep
    /// everything that came with them.
    async fn take(&mut self, len: u32) -> io::Result<Bytes> {
        if len == 0 {
            return Ok(Bytes::new());
        }
        let len = len as usize;
        let here = len.min(self.buffer.len());
        let mut data = BytesMut::with_capacity(len);
        data.put_slice(&self.buffer[..here]);
        self.buffer.advance(here);
        let mut rest = (&mut self.reader).take((len - here) as u64);
        while data.len() < len {
            if rest.read_buf(&mut data).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(data.freeze())
    }
}
