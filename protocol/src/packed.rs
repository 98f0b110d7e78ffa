//! Frames between replicas made smaller (option `compression`): a frame of kind [`PACKED`] holds
//! another one, compressed by zstd (RFC 8878).
//!
//! Each is compressed by itself, so none needs what was sent before. What does not become smaller
//! by an eighth at least goes as it is, and after a few of those most are not even tried: data that
//! is compressed or encrypted already costs next to nothing.

use bytes::Bytes;
use zstd::bulk::{Compressor, Decompressor};

use crate::codec::{DecodeError, Reader, Writer};
use crate::frame::{FRAME_BYTES_MAX, META_BYTES_MAX, RawFrame};

/// The kind of a frame that holds another one.
pub const PACKED: u8 = 72;
/// What a replica that takes such frames says in its hello.
pub const ZSTD: &str = "zstd";

/// Shorter content is sent as it is: there is little to gain, and acknowledgements, promises and
/// heartbeats are not held up.
const TRIED_BYTES_MIN: usize = 512;
/// After frames that did not become smaller, at most so many are not tried.
const NOT_TRIED_MAX: u32 = 63;
/// Where the link keeps up, the fastest level; where it is behind, one that gains more.
const LEVELS: [i32; 2] = [1, 3];

/// Why a frame that holds another one is refused. Each closes the connection (BAD-1).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PackedError {
    /// Its fields do not parse.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// It announces more than a frame may have.
    #[error("a packed frame announces {bytes} bytes, more than the {limit} that are allowed")]
    TooLong {
        /// What it announces.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// It holds what is never packed.
    #[error("a packed frame holds one of kind {0}, which is never packed")]
    Kind(u8),
    /// It does not decompress, or to more than it announces.
    #[error(
        "a packed frame of {packed} bytes does not unpack to the {announced} that it announces: {reason}"
    )]
    Damaged {
        /// Its own bytes.
        packed: usize,
        /// What it announces.
        announced: usize,
        /// What the decompressor says.
        reason: String,
    },
    /// It decompresses to less than it announces.
    #[error("a packed frame announces {announced} bytes and holds {found}")]
    Length {
        /// What it announces.
        announced: usize,
        /// What it holds.
        found: usize,
    },
}

/// Makes the frames of one connection smaller.
pub struct Packer {
    /// By level; made when first used.
    compressors: [Option<Compressor<'static>>; LEVELS.len()],
    plain: Vec<u8>,
    packed: Vec<u8>,
    /// Frames that are not tried.
    not_tried: u32,
    /// How many will not be after the next that does not become smaller.
    next: u32,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer")
            .field("not_tried", &self.not_tried)
            .finish_non_exhaustive()
    }
}

impl Default for Packer {
    fn default() -> Self {
        Self {
            compressors: [const { None }; LEVELS.len()],
            plain: Vec::new(),
            packed: Vec::new(),
            not_tried: 0,
            next: 1,
        }
    }
}

impl Packer {
    /// The frame as it should be sent. `behind`: the link takes less than there is to send, so it
    /// is worth more work to send less.
    #[must_use]
    pub fn pack(&mut self, frame: RawFrame, behind: bool) -> RawFrame {
        let bytes = frame.meta.len() + frame.payload.len();
        if bytes < TRIED_BYTES_MIN {
            return frame;
        }
        if self.not_tried > 0 {
            self.not_tried -= 1;
            return frame;
        }
        match self.smaller(&frame, usize::from(behind)) {
            Some(packed) => {
                self.next = 1;
                packed
            }
            None => {
                self.not_tried = self.next;
                self.next = (self.next * 2 + 1).min(NOT_TRIED_MAX);
                frame
            }
        }
    }

    /// `None`: it does not become smaller by an eighth.
    fn smaller(&mut self, frame: &RawFrame, level: usize) -> Option<RawFrame> {
        let compressor = match &mut self.compressors[level] {
            Some(made) => made,
            // Without memory for it frames go as they are.
            empty => empty.insert(Compressor::new(LEVELS[level]).ok()?),
        };
        self.plain.clear();
        self.plain.extend_from_slice(&frame.meta);
        self.plain.extend_from_slice(&frame.payload);
        self.packed.clear();
        // No more room than it may take: what does not fit ends early.
        self.packed.reserve(self.plain.len() - self.plain.len() / 8);
        let room = self.plain.len() - self.plain.len() / 8;
        let len = compressor
            .compress_to_buffer(&self.plain, &mut self.packed)
            .ok()
            .filter(|len| *len <= room)?;
        let mut meta = Writer::with_capacity(9);
        meta.u8(frame.kind);
        // Both are below the longest frame.
        meta.u32(u32::try_from(frame.meta.len()).ok()?);
        meta.u32(u32::try_from(frame.payload.len()).ok()?);
        Some(RawFrame {
            kind: PACKED,
            meta: meta.finish(),
            payload: Bytes::copy_from_slice(&self.packed[..len]),
        })
    }
}

/// Takes frames out of the packed ones of one connection.
#[derive(Default)]
pub struct Unpacker {
    decompressor: Option<Decompressor<'static>>,
}

impl std::fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unpacker").finish_non_exhaustive()
    }
}

impl Unpacker {
    /// The frame that a packed one holds; any other frame as it is. Takes no more memory than the
    /// longest frame, whatever the bytes say. `packable`: which kinds may be held.
    pub fn unpack(
        &mut self,
        frame: RawFrame,
        packable: impl Fn(u8) -> bool,
    ) -> Result<RawFrame, PackedError> {
        if frame.kind != PACKED {
            return Ok(frame);
        }
        let mut meta = Reader::new(frame.meta);
        let kind = meta.u8("the kind of a packed frame")?;
        let meta_bytes = meta.u32("the meta of a packed frame")? as usize;
        let payload_bytes = meta.u32("the payload of a packed frame")? as usize;
        meta.end("a packed frame")?;
        if kind == PACKED || !packable(kind) {
            return Err(PackedError::Kind(kind));
        }
        let announced = meta_bytes.saturating_add(payload_bytes);
        for (bytes, limit) in [(meta_bytes, META_BYTES_MAX), (announced, FRAME_BYTES_MAX)] {
            if bytes > limit {
                return Err(PackedError::TooLong { bytes, limit });
            }
        }
        let packed = frame.payload.len();
        let damaged = |error: std::io::Error| PackedError::Damaged {
            packed,
            announced,
            reason: error.to_string(),
        };
        let decompressor = match &mut self.decompressor {
            Some(made) => made,
            empty => empty.insert(Decompressor::new().map_err(damaged)?),
        };
        let plain = decompressor
            .decompress(&frame.payload, announced)
            .map_err(damaged)?;
        if plain.len() != announced {
            return Err(PackedError::Length {
                announced,
                found: plain.len(),
            });
        }
        let mut payload = Bytes::from(plain);
        let meta = payload.split_to(meta_bytes);
        Ok(RawFrame {
            kind,
            meta,
            payload,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(_: u8) -> bool {
        true
    }

    fn frame(payload: Vec<u8>) -> RawFrame {
        RawFrame {
            kind: 34,
            meta: Bytes::from_static(b"some meta that is kept apart"),
            payload: Bytes::from(payload),
        }
    }

    /// Bytes that do not become smaller (splitmix64).
    fn noise(len: usize) -> Vec<u8> {
        let mut state = 7_u64;
        let mut next = || {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            (z ^ (z >> 27)).to_le_bytes()
        };
        (0..len.div_ceil(8))
            .flat_map(|_| next())
            .take(len)
            .collect()
    }

    fn packed(fields: (u8, u32, u32), payload: &[u8]) -> RawFrame {
        let mut meta = Writer::with_capacity(9);
        meta.u8(fields.0).u32(fields.1).u32(fields.2);
        RawFrame {
            kind: PACKED,
            meta: meta.finish(),
            payload: Bytes::copy_from_slice(payload),
        }
    }

    #[test]
    fn what_gains_is_packed_and_comes_out_as_it_was() {
        let (mut packer, mut unpacker) = (Packer::default(), Unpacker::default());
        for behind in [false, true] {
            for len in [600, 4096, 1 << 20] {
                let whole = frame(vec![7; len]);
                let sent = packer.pack(whole.clone(), behind);
                assert_eq!(sent.kind, PACKED);
                assert!(sent.payload.len() < len / 4);
                assert_eq!(unpacker.unpack(sent, any), Ok(whole));
            }
        }
    }

    #[test]
    fn what_does_not_gain_goes_as_it_is_and_soon_is_not_tried() {
        let mut packer = Packer::default();
        let small = frame(vec![7; 64]);
        assert_eq!(packer.pack(small.clone(), false), small);
        let hard = frame(noise(8192));
        for _ in 0..500 {
            assert_eq!(packer.pack(hard.clone(), true), hard);
        }
        // What gains is found again within a bound.
        let soft = frame(vec![7; 8192]);
        let tried = (0..=NOT_TRIED_MAX).position(|_| packer.pack(soft.clone(), true) != soft);
        assert!(tried.is_some());
        assert_eq!(packer.pack(soft, true).kind, PACKED);
    }

    /// BAD-1
    #[test]
    fn bombs_wrong_lengths_and_frames_in_frames_are_refused_within_bounds() {
        let (kind, limit) = (34, FRAME_BYTES_MAX as u32);
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 19).expect("compressed");
        assert!(bomb.len() < 16 << 10, "it is one");
        let four = zstd::bulk::compress(b"four", 1).expect("compressed");
        let mut unpacker = Unpacker::default();
        let mut refusal = |fields, payload: &[u8]| {
            let refused = unpacker.unpack(packed(fields, payload), |kind| kind != 32);
            refused.expect_err("refused")
        };
        for len in [0, 1, 4096, limit] {
            let error = refusal((kind, 0, len), &bomb);
            assert!(matches!(error, PackedError::Damaged { .. }), "{error}");
        }
        let too_long = |error| matches!(error, PackedError::TooLong { .. });
        assert!(too_long(refusal((kind, 0, limit + 1), &bomb)));
        assert!(too_long(refusal((kind, u32::MAX, u32::MAX), &bomb)));
        assert!(too_long(refusal(
            (kind, META_BYTES_MAX as u32 + 1, 0),
            &bomb
        )));
        let longer = PackedError::Length {
            announced: 5,
            found: 4,
        };
        assert_eq!(refusal((kind, 1, 4), &four), longer);
        assert!(matches!(
            refusal((kind, 1, 2), &four),
            PackedError::Damaged { .. }
        ));
        assert_eq!(refusal((PACKED, 0, 4), &four), PackedError::Kind(PACKED));
        assert_eq!(refusal((32, 0, 4), &four), PackedError::Kind(32));
        assert!(matches!(
            refusal((kind, 0, 4), b"noise"),
            PackedError::Damaged { .. }
        ));
        let mut cut = packed((kind, 0, 4), &four);
        cut.meta = cut.meta.slice(..8);
        let refused = unpacker.unpack(cut, any);
        assert!(matches!(refused, Err(PackedError::Decode(_))));
    }
}
