//! Connections served from a disk in memory.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::Semaphore;

use super::handshake::{info_data, meta_data, option_bytes};
use crate::disk::{Disk, Doing, Stretch};
use crate::handshake::{Export, Handshake, Refusal, Security};
use crate::numbers::{Errno, command, command_flag, option};
use crate::request::Request;
use crate::server::{Ended, Exports, Limits, Negotiated, negotiate, transmit};

const SIZE: usize = 4 << 20;

/// A disk that says what it was asked, and answers reads as far as it is let.
struct Memory {
    bytes: Mutex<Vec<u8>>,
    asked: Mutex<Vec<&'static str>>,
    /// Lets one read of the second block through at a time.
    slow_reads: Arc<Semaphore>,
}

impl Memory {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            bytes: Mutex::new(vec![0; SIZE]),
            asked: Mutex::default(),
            slow_reads: Arc::new(Semaphore::new(1)),
        })
    }

    fn note(&self, what: &'static str) {
        self.asked.lock().expect("whole").push(what);
    }

    fn asked(&self) -> Vec<&'static str> {
        self.asked.lock().expect("whole").clone()
    }
}

impl Disk for Memory {
    fn size(&self) -> Doing<u64> {
        let size = self.bytes.lock().expect("whole").len() as u64;
        Box::pin(async move { Ok(size) })
    }

    fn read(&self, offset: u64, len: u32) -> Doing<Vec<Bytes>> {
        self.note("read");
        let at = offset as usize;
        let bytes = self.bytes.lock().expect("whole");
        let data = Bytes::copy_from_slice(&bytes[at..at + len as usize]);
        let reads = Arc::clone(&self.slow_reads);
        Box::pin(async move {
            if offset == 4096 {
                let _let = reads.acquire().await.expect("open");
            }
            Ok(vec![data])
        })
    }

    fn write(&self, offset: u64, data: Bytes) -> Doing<()> {
        self.note("write");
        let at = offset as usize;
        self.bytes.lock().expect("whole")[at..at + data.len()].copy_from_slice(&data);
        Box::pin(async { Ok(()) })
    }

    fn zero(&self, offset: u64, len: u64) -> Doing<()> {
        self.note("zero");
        let at = offset as usize;
        self.bytes.lock().expect("whole")[at..at + len as usize].fill(0);
        Box::pin(async { Ok(()) })
    }

    fn flush(&self) -> Doing<()> {
        self.note("flush");
        Box::pin(async { Ok(()) })
    }

    fn stretches(&self, _: u64, len: u64, max: usize) -> Doing<Vec<Stretch>> {
        let half = |hole| Stretch { len: len / 2, hole };
        let all = [half(false), half(true)];
        Box::pin(async move { Ok(all.into_iter().take(max).collect()) })
    }
}

struct Only(Arc<Memory>);

impl Exports for Only {
    type Disk = Memory;

    fn names(&self) -> Vec<String> {
        vec!["disk1".to_owned()]
    }

    async fn find(&self, name: &str) -> Result<(Export, Arc<Memory>), Refusal> {
        if !["", "disk1"].contains(&name) {
            return Err(Refusal::Unknown);
        }
        let export = Export {
            name: "disk1".to_owned(),
            description: String::new(),
            size: SIZE as u64,
            read_only: false,
        };
        Ok((export, Arc::clone(&self.0)))
    }
}

/// The other end of a connection that is served.
struct Client {
    stream: DuplexStream,
    served: tokio::task::JoinHandle<Result<(), Ended>>,
}

impl Client {
    /// Past the negotiation. `buffer`: bytes that the connection holds.
    async fn new(disk: &Arc<Memory>, buffer: usize) -> Self {
        let (stream, mut server) = tokio::io::duplex(buffer);
        let exports = Only(Arc::clone(disk));
        let served = tokio::spawn(async move {
            let handshake = Handshake::new(Security::Settled);
            match negotiate(&mut server, handshake, true, &exports).await? {
                Negotiated::Disk(agreed, disk, early) => {
                    let (reader, writer) = tokio::io::split(server);
                    let limits = Limits::new(0);
                    transmit(reader, writer, early, &agreed, disk, &limits).await
                }
                Negotiated::Tls(_) | Negotiated::Left => Ok(()),
            }
        });
        let mut client = Self { stream, served };
        client.take(18).await;
        let meta = meta_data("disk1", &["base:allocation"]);
        let words = [
            &[0, 0, 0, 3][..],
            &option_bytes(option::STRUCTURED_REPLY, b""),
        ];
        client.send(&words.concat()).await;
        client.take(20).await;
        client
            .send(&option_bytes(option::SET_META_CONTEXT, &meta))
            .await;
        client.take(20 + 19 + 20).await;
        client
            .send(&option_bytes(option::GO, &info_data("", &[])))
            .await;
        client.take(20 + 12 + 20).await;
        client
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("sent");
    }

    async fn take(&mut self, len: usize) -> Bytes {
        let mut bytes = BytesMut::zeroed(len);
        let read = self.stream.read_exact(&mut bytes);
        let read = tokio::time::timeout(Duration::from_secs(10), read).await;
        read.expect("in time").expect("all of it");
        bytes.freeze()
    }

    async fn ask(&mut self, command: u16, flags: u16, offset: u64, len: u32, data: &[u8]) {
        let request = Request {
            flags,
            command,
            cookie: offset,
            offset,
            len,
        };
        self.send(&[&request.encode()[..], data].concat()).await;
    }

    /// A reply without data: its cookie and error.
    async fn answered(&mut self) -> (u64, u32) {
        let mut reply = self.take(16).await;
        assert_eq!(reply.get_u32(), 0x6744_6698);
        let error = reply.get_u32();
        (reply.get_u64(), error)
    }

    /// A chunk: its cookie, type and what is in it.
    async fn chunk(&mut self) -> (u64, u16, Bytes) {
        let mut head = self.take(20).await;
        assert_eq!(head.get_u32(), 0x668e_33ef);
        let (done, kind, cookie) = (head.get_u16(), head.get_u16(), head.get_u64());
        assert_eq!(done, 1);
        let data = self.take(head.get_u32() as usize).await;
        (cookie, kind, data)
    }

    async fn end(self) -> Result<(), Ended> {
        drop(self.stream);
        self.served.await.expect("no panic")
    }
}

#[tokio::test]
async fn what_is_written_is_read_again_and_zeros_where_it_was_zeroed() {
    let disk = Memory::new();
    let mut client = Client::new(&disk, 64 << 10).await;
    let data = vec![7; 300_000];
    client.ask(command::WRITE, 0, 8192, 300_000, &data).await;
    assert_eq!(client.answered().await, (8192, 0));
    client
        .ask(
            command::WRITE_ZEROES,
            command_flag::FAST_ZERO,
            8192,
            512,
            b"",
        )
        .await;
    assert_eq!(client.answered().await, (8192, 0));
    client
        .ask(command::READ, command_flag::DF, 8192, 300_000, b"")
        .await;
    let (cookie, kind, mut read) = client.chunk().await;
    assert_eq!((cookie, kind, read.get_u64()), (8192, 1, 8192));
    assert!(read[..512].iter().all(|b| *b == 0) && read[512..].iter().all(|b| *b == 7));
    assert_eq!(read.len(), 300_000);
    client.ask(command::BLOCK_STATUS, 0, 0, 8192, b"").await;
    let (_, _, status) = client.chunk().await;
    assert_eq!(
        &status[..],
        b"\0\0\0\x01\0\0\x10\0\0\0\0\0\0\0\x10\0\0\0\0\x03"
    );
    client.ask(command::READ, 0, 0, 0, b"").await;
    assert_eq!(client.chunk().await, (0, 0, Bytes::new()));
    client.ask(command::DISC, 0, 0, 0, b"").await;
    assert!(client.end().await.is_ok());
}

#[tokio::test]
async fn dur_1_a_forced_change_is_answered_after_a_flush() {
    let disk = Memory::new();
    let mut client = Client::new(&disk, 64 << 10).await;
    client
        .ask(command::WRITE, command_flag::FUA, 0, 3, b"abc")
        .await;
    client.answered().await;
    client
        .ask(command::TRIM, command_flag::FUA, 0, 3, b"")
        .await;
    client.answered().await;
    let flags = command_flag::NO_HOLE | command_flag::FAST_ZERO | command_flag::FUA;
    client
        .ask(command::WRITE_ZEROES, flags, 0, 2_500_000, b"")
        .await;
    assert_eq!(client.answered().await, (0, 0));
    client.ask(command::FLUSH, 0, 0, 0, b"").await;
    client.answered().await;
    let asked = ["write", "flush", "zero", "flush", "zero", "flush", "flush"];
    assert_eq!(disk.asked(), asked);
    assert!(client.end().await.is_ok());
}

#[tokio::test]
async fn requests_of_one_connection_do_not_wait_for_each_other() {
    let disk = Memory::new();
    let held = Arc::clone(&disk.slow_reads)
        .acquire_owned()
        .await
        .expect("open");
    let mut client = Client::new(&disk, 64 << 10).await;
    client.ask(command::READ, 0, 4096, 4096, b"").await;
    client.ask(command::READ, 0, 0, 512, b"").await;
    client.ask(command::WRITE, 0, 512, 1, b"x").await;
    let first = client.chunk().await.0;
    assert_eq!((first, client.answered().await), (0, (512, 0)));
    drop(held);
    assert_eq!(client.chunk().await.0, 4096, "the slow one");
    assert!(client.end().await.is_ok());
}

#[tokio::test]
async fn a_wrong_request_is_answered_with_an_error_and_its_data_is_not_taken_for_requests() {
    let disk = Memory::new();
    let mut client = Client::new(&disk, 64 << 10).await;
    let size = SIZE as u64;
    client
        .ask(command::WRITE, 0, size - 1, 4096, &[9; 4096])
        .await;
    assert_eq!(client.answered().await, (size - 1, Errno::NoSpc as u32));
    client
        .ask(command::WRITE, 1 << 9, 0, 4096, &[9; 4096])
        .await;
    assert_eq!(client.answered().await, (0, Errno::Inval as u32));
    client.ask(command::READ, 0, size, 1, b"").await;
    let (_, kind, error) = client.chunk().await;
    assert_eq!((kind, &error[..]), (0x8001, &b"\0\0\0\x16\0\0"[..]));
    client.ask(77, 0, 5, 0, b"").await;
    assert_eq!(client.answered().await, (5, Errno::Inval as u32));
    assert!(disk.asked().is_empty());
    client.send(&[0; 28]).await;
    assert!(matches!(client.end().await, Err(Ended::Request(_))));
}

#[tokio::test]
async fn a_disk_that_grew_is_used_to_its_new_end_by_who_was_connected_before() {
    let disk = Memory::new();
    let mut client = Client::new(&disk, 64 << 10).await;
    disk.bytes.lock().expect("whole").resize(SIZE + 4096, 0);
    client.ask(command::WRITE, 0, SIZE as u64, 1, b"x").await;
    assert_eq!(client.answered().await, (SIZE as u64, 0));
    client
        .ask(command::WRITE, 0, SIZE as u64 + 4096, 1, b"x")
        .await;
    assert_eq!(client.answered().await.1, Errno::NoSpc as u32);
    assert!(client.end().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn bad_1_a_client_that_never_reads_its_answers_gets_no_more_room_and_is_left() {
    let disk = Memory::new();
    let mut client = Client::new(&disk, 4096).await;
    let asking = async {
        for _ in 0..10_000 {
            client.ask(command::READ, 0, 0, 1 << 20, b"").await;
        }
    };
    let took = tokio::time::timeout(Duration::from_secs(10), asking).await;
    assert!(took.is_err(), "it is not read any more");
    let reads = disk.asked().len();
    assert!(reads <= 33, "{reads} MiB wait for it");
    let ended = (&mut client.served).await.expect("no panic");
    assert!(matches!(ended, Err(Ended::Unread(60))), "{ended:?}");
}

#[tokio::test]
async fn what_was_asked_is_done_though_the_connection_breaks_in_the_middle_of_the_next() {
    let disk = Memory::new();
    let mut client = Client::new(&disk, 64 << 10).await;
    client.ask(command::WRITE, 0, 0, 3, b"abc").await;
    client.ask(command::WRITE, 0, 3, 100, b"half").await;
    assert!(matches!(client.end().await, Err(Ended::Io(_))));
    assert_eq!(disk.asked(), ["write"]);
    assert_eq!(&disk.bytes.lock().expect("whole")[..7], b"abc\0\0\0\0");
}

#[tokio::test]
async fn what_is_not_served_is_refused_before_any_request() {
    let disk = Memory::new();
    let (mut stream, mut server) = tokio::io::duplex(4096);
    let exports = Only(disk);
    stream.write_all(&[0, 0, 0, 3]).await.expect("sent");
    let asked = option_bytes(option::EXPORT_NAME, b"other");
    stream.write_all(&asked).await.expect("sent");
    let handshake = Handshake::new(Security::Settled);
    let ended = negotiate(&mut server, handshake, true, &exports).await;
    assert!(matches!(ended, Err(Ended::Violation(_))));
}
