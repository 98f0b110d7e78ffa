//! Frames: what travels on a connection after the preamble.
//!
//! | bytes | field |
//! | --- | --- |
//! | 0..4 | bytes that follow the header (meta and payload) |
//! | 4..8 | of these, bytes of meta |
//! | 8 | kind |
//! | 9 | version, [`VERSION`] |
//! | 10..12 | zero |
//! | 12..16 | CRC-32 (IEEE) of bytes 0..12 and meta |
//!
//! The payload has no checksum of its own: between machines TLS authenticates it, on a Unix
//! socket it is the kernel's memory, and blocks are checksummed end to end by the brick.

use bytes::{BufMut, Bytes, BytesMut};

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 16;
/// Longest frame after its header. The largest legal content is 1 MiB of data with its meta, or
/// a batch of resync items; a longer frame closes the connection.
pub const FRAME_BYTES_MAX: usize = 8 << 20;
/// Longest meta.
pub const META_BYTES_MAX: usize = 2 << 20;
/// The frame version that this program speaks.
pub const VERSION: u8 = 1;

/// Why bytes are no frame. Each closes the connection (BAD-1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than allowed.
    #[error("a frame of {bytes} bytes is longer than the {limit} that are allowed")]
    TooLong {
        /// What the header says.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// More meta than frame.
    #[error("the header announces {meta} bytes of meta in a frame of {bytes}")]
    MetaBeyondEnd {
        /// Bytes of meta.
        meta: usize,
        /// Bytes of the frame.
        bytes: usize,
    },
    /// Not this version.
    #[error("frame version {0} is not spoken here")]
    Version(u8),
    /// The checksum does not hold.
    #[error("a frame's checksum does not hold")]
    Checksum,
}

/// A frame whose outer form was checked; what is in it was not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawFrame {
    /// What the meta is: see the message modules.
    pub kind: u8,
    /// The message's fields.
    pub meta: Bytes,
    /// Bulk data.
    pub payload: Bytes,
}

impl RawFrame {
    /// The header for this frame. Send header, meta, payload, in this order.
    ///
    /// # Panics
    /// When the content is longer than [`FRAME_BYTES_MAX`]: messages are built within it.
    #[must_use]
    pub fn header(&self) -> [u8; HEADER_BYTES] {
        let total = self.meta.len() + self.payload.len();
        assert!(
            total <= FRAME_BYTES_MAX,
            "a frame of {total} bytes was built"
        );
        assert!(
            self.meta.len() <= META_BYTES_MAX,
            "meta of {} bytes was built",
            self.meta.len()
        );
        let mut header = [0; HEADER_BYTES];
        header[0..4].copy_from_slice(&u32::try_from(total).expect("checked").to_le_bytes());
        let meta = u32::try_from(self.meta.len()).expect("checked");
        header[4..8].copy_from_slice(&meta.to_le_bytes());
        header[8] = self.kind;
        header[9] = VERSION;
        let crc = checksum(&header, &self.meta);
        header[12..16].copy_from_slice(&crc.to_le_bytes());
        header
    }

    /// Appends the whole frame to `out`.
    pub fn write_to(&self, out: &mut BytesMut) {
        out.reserve(HEADER_BYTES + self.meta.len() + self.payload.len());
        out.put_slice(&self.header());
        out.put_slice(&self.meta);
        out.put_slice(&self.payload);
    }
}

fn checksum(header: &[u8; HEADER_BYTES], meta: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header[..12]);
    hasher.update(meta);
    hasher.finalize()
}

fn word(bytes: &[u8], at: usize) -> usize {
    let mut le = [0; 4];
    le.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(le) as usize
}

/// Takes the next frame from the front of `buffer`. `Ok(None)`: more bytes are needed; room for
/// the rest of the frame has been reserved.
pub fn take_frame(buffer: &mut BytesMut) -> Result<Option<RawFrame>, FrameError> {
    if buffer.len() < HEADER_BYTES {
        buffer.reserve(HEADER_BYTES);
        return Ok(None);
    }
    let bytes = word(buffer, 0);
    let meta = word(buffer, 4);
    if buffer[9] != VERSION {
        return Err(FrameError::Version(buffer[9]));
    }
    if bytes > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong {
            bytes,
            limit: FRAME_BYTES_MAX,
        });
    }
    if meta > META_BYTES_MAX {
        return Err(FrameError::TooLong {
            bytes: meta,
            limit: META_BYTES_MAX,
        });
    }
    if meta > bytes {
        return Err(FrameError::MetaBeyondEnd { meta, bytes });
    }
    let whole = HEADER_BYTES + bytes;
    if buffer.len() < whole {
        buffer.reserve(whole - buffer.len());
        return Ok(None);
    }
    let mut body = buffer.split_to(whole).freeze();
    let mut header = [0; HEADER_BYTES];
    header.copy_from_slice(&body.split_to(HEADER_BYTES));
    let meta = body.split_to(meta);
    if checksum(&header, &meta).to_le_bytes() != header[12..16] || header[10..12] != [0, 0] {
        return Err(FrameError::Checksum);
    }
    Ok(Some(RawFrame {
        kind: header[8],
        meta,
        payload: body,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> RawFrame {
        RawFrame {
            kind: 3,
            meta: Bytes::from_static(b"meta"),
            payload: Bytes::from_static(b"payload"),
        }
    }

    #[test]
    fn a_frame_cut_at_any_byte_waits_for_the_rest() {
        let mut whole = BytesMut::new();
        sample().write_to(&mut whole);
        for cut in 0..whole.len() {
            let mut part = BytesMut::from(&whole[..cut]);
            assert_eq!(take_frame(&mut part), Ok(None), "cut at {cut}");
            part.extend_from_slice(&whole[cut..]);
            assert_eq!(take_frame(&mut part), Ok(Some(sample())), "cut at {cut}");
            assert!(part.is_empty());
        }
    }

    #[test]
    fn a_flipped_bit_in_header_or_meta_is_refused() {
        let mut whole = BytesMut::new();
        sample().write_to(&mut whole);
        for bit in 0..(HEADER_BYTES + 4) * 8 {
            let mut bad = whole.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let got = take_frame(&mut bad);
            assert!(!matches!(got, Ok(Some(_))), "bit {bit} passed");
        }
    }

    #[test]
    fn a_frame_longer_than_the_limit_is_refused_before_memory_is_taken() {
        let mut buffer = BytesMut::new();
        let mut header = sample().header();
        header[0..4].copy_from_slice(&u32::MAX.to_le_bytes());
        buffer.extend_from_slice(&header);
        assert!(matches!(
            take_frame(&mut buffer),
            Err(FrameError::TooLong { .. })
        ));
    }
}
