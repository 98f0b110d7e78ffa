//! What a server needs of a disk.

use std::pin::Pin;

use bytes::Bytes;

use crate::numbers::Errno;

/// Something that has begun, and what it will come to.
pub type Doing<T> = Pin<Box<dyn Future<Output = Result<T, Errno>> + Send>>;

/// A stretch of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Bytes, not 0.
    pub len: u64,
    /// Nothing is stored there: it reads as zeros.
    pub hole: bool,
}

/// A disk. Every range lies within what [`Disk::size`] told; a disk that was cut since answers with an
/// error. Calls run in parallel, and changes begin when they are asked for, not when they are awaited:
/// whoever comes again after his connection broke must not be overtaken by what he asked before.
pub trait Disk: Send + Sync + 'static {
    /// Its size in bytes now.
    fn size(&self) -> Doing<u64>;
    /// Bytes, in pieces that together are exactly the range, which is not empty.
    fn read(&self, offset: u64, len: u32) -> Doing<Vec<Bytes>>;
    /// Writes; confirmed, not stable.
    fn write(&self, offset: u64, data: Bytes) -> Doing<()>;
    /// Makes a range read as zeros, and gives its room back where it can.
    fn zero(&self, offset: u64, len: u64) -> Doing<()>;
    /// Everything that was confirmed before is stable afterwards, whoever wrote it.
    fn flush(&self) -> Doing<()>;
    /// The stretches from `offset` on, in order, at most `max` of them and not beyond `len` bytes:
    /// at least one.
    fn stretches(&self, offset: u64, len: u64, max: usize) -> Doing<Vec<Stretch>>;
}
