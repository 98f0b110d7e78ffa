//! Replies of the transmission phase.

use bytes::{BufMut, Bytes, BytesMut};

use crate::disk::Stretch;
use crate::numbers::{
    BASE_ALLOCATION_ID, Errno, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk, state,
};

/// A reply: its head, and data that is not copied into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Everything before the data.
    pub head: Bytes,
    /// The data.
    pub data: Vec<Bytes>,
}

impl Reply {
    /// Bytes that go to the client.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.head.len() + self.data.iter().map(Bytes::len).sum::<usize>()
    }
}

fn simple(cookie: u64, error: u32, data: Vec<Bytes>) -> Reply {
    let mut head = BytesMut::with_capacity(16);
    head.put_u32(SIMPLE_REPLY_MAGIC);
    head.put_u32(error);
    head.put_u64(cookie);
    Reply {
        head: head.freeze(),
        data,
    }
}

/// The head of a reply's only chunk, with room for `len` bytes, all of which count in its length.
fn only_chunk(cookie: u64, kind: u16, len: usize, data_bytes: usize) -> BytesMut {
    let mut head = BytesMut::with_capacity(20 + len);
    head.put_u32(STRUCTURED_REPLY_MAGIC);
    head.put_u16(chunk::FLAG_DONE);
    head.put_u16(kind);
    head.put_u64(cookie);
    let all = u32::try_from(len + data_bytes).expect("replies are bounded");
    head.put_u32(all);
    head
}

/// Done, without data.
#[must_use]
pub fn done(cookie: u64) -> Reply {
    simple(cookie, 0, Vec::new())
}

/// Not done. `structured`: the request would have been answered by chunks.
#[must_use]
pub fn failed(cookie: u64, errno: Errno, structured: bool) -> Reply {
    if !structured {
        return simple(cookie, errno as u32, Vec::new());
    }
    let mut head = only_chunk(cookie, chunk::ERROR, 6, 0);
    head.put_u32(errno as u32);
    head.put_u16(0); // no sentence
    Reply {
        head: head.freeze(),
        data: Vec::new(),
    }
}

/// What was read.
#[must_use]
pub fn data(cookie: u64, offset: u64, data: Vec<Bytes>, structured: bool) -> Reply {
    if !structured {
        return simple(cookie, 0, data);
    }
    let bytes = data.iter().map(Bytes::len).sum();
    let head = if bytes == 0 {
        // A chunk of data has at least one byte.
        only_chunk(cookie, chunk::NONE, 0, 0)
    } else {
        let mut head = only_chunk(cookie, chunk::OFFSET_DATA, 8, bytes);
        head.put_u64(offset);
        head
    };
    Reply {
        head: head.freeze(),
        data,
    }
}

/// What is stored where, as `base:allocation` says it.
#[must_use]
pub fn stretches(cookie: u64, stretches: &[Stretch]) -> Reply {
    let mut head = only_chunk(cookie, chunk::BLOCK_STATUS, 4 + 8 * stretches.len(), 0);
    head.put_u32(BASE_ALLOCATION_ID);
    for stretch in stretches {
        // No longer than a request, whose length has 32 bits.
        head.put_u32(u32::try_from(stretch.len).unwrap_or(u32::MAX));
        head.put_u32(if stretch.hole {
            state::HOLE | state::ZERO
        } else {
            0
        });
    }
    Reply {
        head: head.freeze(),
        data: Vec::new(),
    }
}
