//! A segment's header, and reading its frames.

use std::io;

use bytes::Bytes;
use protocol::codec::{Reader, Writer};
use protocol::ids::BrickId;
use protocol::units::Sequence;

use super::frame::{Frame, Lsn, UnverifiedHeader};
use crate::error::{IoFault, OpenError};
use crate::layout::{
    FRAME_ALIGN, FRAME_HEADER_BYTES, JOURNAL, JOURNAL_VERSION, SEGMENT_HEADER_BYTES, SEGMENT_MAGIC,
    segment_path, segment_slot,
};
use crate::medium::{Medium, OpenMode};

/// Bytes of the header that say something.
const USED_BYTES: usize = 60;
/// How much is read at once.
const WINDOW_BYTES: usize = 1 << 20;

/// What a segment holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    /// Rises by one from segment to segment; the first has 1.
    pub(crate) number: u64,
    /// Number of the first frame.
    pub(crate) first_lsn: Lsn,
    /// No record before this sequence stands in the segment.
    pub(crate) first_seq: Sequence,
    /// The brick's epoch when the segment was begun.
    pub(crate) epoch: u32,
    /// Whose it is.
    pub(crate) brick: BrickId,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut w = Writer::with_capacity(USED_BYTES);
        w.raw(&SEGMENT_MAGIC).u32(JOURNAL_VERSION).u64(self.number);
        w.u64(self.first_lsn.0).u64(self.first_seq.0);
        w.u32(self.epoch).id(&self.brick.0);
        let mut out = w.finish().to_vec();
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        debug_assert_eq!(out.len(), USED_BYTES);
        out.resize(SEGMENT_HEADER_BYTES as usize, 0);
        out
    }

    pub(crate) fn decode(raw: &[u8]) -> Option<Self> {
        let raw = raw.get(..USED_BYTES)?;
        let (body, crc) = raw.split_last_chunk::<4>()?;
        if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
            return None;
        }
        let mut r = Reader::new(Bytes::copy_from_slice(body));
        let magic = r.raw(8, "magic").ok()?;
        let version = r.u32("version").ok()?;
        if magic[..] != SEGMENT_MAGIC || version != JOURNAL_VERSION {
            return None;
        }
        Some(Self {
            number: r.u64("number").ok()?,
            first_lsn: Lsn(r.u64("first frame").ok()?),
            first_seq: Sequence(r.u64("first sequence").ok()?),
            epoch: r.u32("epoch").ok()?,
            brick: BrickId(r.id("brick").ok()?),
        })
    }
}

/// A segment file: slot, file, length, and the header if it is whole and this brick's.
pub(crate) type Found<F> = (u32, F, u64, Option<SegmentHeader>);

/// Every segment file: slot, file, length, and the header if it is whole and this brick's.
pub(crate) fn list_segments<M: Medium>(
    medium: &M,
    brick: BrickId,
) -> Result<Vec<Found<M::File>>, OpenError> {
    let list = || -> io::Result<Vec<_>> {
        let mut found = Vec::new();
        for name in medium.list(JOURNAL)? {
            let Some(slot) = segment_slot(&name) else {
                continue;
            };
            let file = match medium.open(&segment_path(slot), OpenMode::Write) {
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied
                    ) =>
                {
                    medium.open(&segment_path(slot), OpenMode::Read)?
                }
                other => other?,
            };
            let len = medium.len(&file)?;
            let mut raw = [0; USED_BYTES];
            let got = medium.read_at(&file, 0, &mut raw)?;
            let header = SegmentHeader::decode(&raw[..got]).filter(|h| h.brick == brick);
            if len > SEGMENT_HEADER_BYTES {
                found.push((slot, file, len, header));
            }
        }
        Ok(found)
    };
    list().map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            OpenError::NotABrick { what: JOURNAL }
        } else {
            IoFault::new("list the journal", &error).into()
        }
    })
}

/// Reads frames of one segment, forwards, through a window.
pub(crate) struct SegmentReader<'a, M: Medium> {
    medium: &'a M,
    file: &'a M::File,
    limit: u64,
    window: Bytes,
    window_at: u64,
}

impl<'a, M: Medium> SegmentReader<'a, M> {
    /// Reads nothing at or past `limit`.
    pub(crate) fn new(medium: &'a M, file: &'a M::File, limit: u64) -> Self {
        Self {
            medium,
            file,
            limit,
            window: Bytes::new(),
            window_at: 0,
        }
    }

    /// At least `len` bytes at `offset`; fewer only at the limit.
    fn bytes_at(&mut self, offset: u64, len: usize) -> io::Result<Bytes> {
        let inside = offset.checked_sub(self.window_at).and_then(|at| {
            let at = usize::try_from(at).ok()?;
            (at + len <= self.window.len()).then_some(at)
        });
        if let Some(at) = inside {
            return Ok(self.window.slice(at..at + len));
        }
        let left = usize::try_from(self.limit.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut buf = vec![0; len.max(WINDOW_BYTES).min(left)];
        let got = self.medium.read_at(self.file, offset, &mut buf)?;
        buf.truncate(got);
        self.window = Bytes::from(buf);
        self.window_at = offset;
        Ok(self.window.slice(..len.min(got)))
    }

    /// The frame at `offset` and the offset after it. `None` where no whole frame stands there.
    pub(crate) fn frame_at(&mut self, offset: u64) -> io::Result<Option<(Frame, u64)>> {
        let raw = self.bytes_at(offset, FRAME_HEADER_BYTES)?;
        let Some(header) = UnverifiedHeader::read(&raw) else {
            return Ok(None);
        };
        if header.total as u64 > self.limit.saturating_sub(offset) {
            return Ok(None);
        }
        let raw = self.bytes_at(offset, header.total)?;
        let after = (offset + header.total as u64).next_multiple_of(FRAME_ALIGN);
        Ok(Frame::decode(&raw).map(|frame| (frame, after)))
    }
}
