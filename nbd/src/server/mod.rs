//! Connections: [`negotiate`] until it is clear which disk, [`transmit()`] until the client leaves.
//!
//! What a connection costs is bounded by [`Limits`]: a request is read when there is room for its data
//! and its answer, and gives the room back when the answer has gone.

mod transmit;
mod writer;

use std::future::Future;
use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Semaphore;

use crate::disk::Disk;
use crate::handshake::{Agreed, Export, Handshake, OPTION_BYTES_MAX, Refusal, Step, Violation};
use crate::numbers::PAYLOAD_BYTES_MAX;
use crate::request::BadRequest;

pub use transmit::transmit;

/// Requests of one connection that are under way.
const REQUESTS_MAX: usize = 256;
/// What a request takes besides its data.
const REQUEST_OVERHEAD_BYTES: u32 = 512;
/// Data and answers of one connection: the longest request always finds room in the end.
const CONNECTION_BYTES_MAX: usize =
    PAYLOAD_BYTES_MAX as usize + REQUESTS_MAX * REQUEST_OVERHEAD_BYTES as usize;

/// Room that the connections of a server share.
#[derive(Debug, Clone)]
pub struct Limits {
    bytes: Arc<Semaphore>,
}

impl Limits {
    /// So many bytes of data and answers at once; at least the longest request's.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes: Arc::new(Semaphore::new(bytes_max.max(CONNECTION_BYTES_MAX))),
        }
    }
}

/// Why a connection ended, other than by the client's leave.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// It broke.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The client does not keep to the protocol.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// Nor so.
    #[error(transparent)]
    Request(#[from] BadRequest),
    /// It does not read its answers.
    #[error("the client has read nothing for {0} s")]
    Unread(u64),
}

/// What a client may find.
pub trait Exports: Sync {
    /// The disks.
    type Disk: Disk;
    /// Names to list.
    fn names(&self) -> Vec<String>;
    /// What is meant by this name.
    fn find(
        &self,
        name: &str,
    ) -> impl Future<Output = Result<(Export, Arc<Self::Disk>), Refusal>> + Send;
}

/// What a negotiation came to.
#[derive(Debug)]
pub enum Negotiated<D> {
    /// Requests follow, of which these bytes are there.
    Disk(Box<Agreed>, Arc<D>, BytesMut),
    /// TLS, and then this inside.
    Tls(Handshake),
    /// The client left.
    Left,
}

/// Negotiates on a connection: its greeting, if it is `new`, and options.
pub async fn negotiate<S, E>(
    stream: &mut S,
    mut handshake: Handshake,
    new: bool,
    exports: &E,
) -> Result<Negotiated<E::Disk>, Ended>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    E: Exports,
{
    if new {
        stream.write_all(&Handshake::greeting()).await?;
        stream.flush().await?;
    }
    let mut input = BytesMut::with_capacity(4096);
    let mut found = None;
    loop {
        let mut step = handshake.step(&mut input)?;
        if let Step::Describe(name) = &step {
            let answer = exports.find(name).await;
            let answer = answer.map(|(export, disk)| {
                found = Some(disk);
                export
            });
            step = handshake.described(answer)?;
        }
        if step == Step::List {
            handshake.listed(&exports.names());
            step = Step::More;
        }
        let output = handshake.take_output();
        if !output.is_empty() {
            stream.write_all(&output).await?;
            stream.flush().await?;
            if step == Step::More {
                continue; // more may be there already
            }
        }
        match step {
            Step::Transmit(agreed) => {
                let disk = found.expect("what was described last is what was agreed on");
                return Ok(Negotiated::Disk(agreed, disk, input));
            }
            Step::StartTls => return Ok(Negotiated::Tls(handshake.inside_tls())),
            Step::End => return Ok(Negotiated::Left),
            Step::More | Step::Describe(_) | Step::List => {}
        }
        // One option and the next one's beginning fit; more is left in the socket.
        input.reserve(4096);
        debug_assert!(input.len() <= 2 * OPTION_BYTES_MAX as usize);
        if stream.read_buf(&mut input).await? == 0 {
            return Ok(Negotiated::Left);
        }
    }
}
