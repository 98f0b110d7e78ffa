//! Frames of the journal: a header, then the parts.

use bytes::Bytes;
use protocol::codec::{DecodeError, Reader, Writer};
use protocol::ids::GenerationId;
use protocol::units::{ObjectId, Sequence, Term};

use crate::dirty::DirtyItem;
use crate::layout::FRAME_HEADER_BYTES;

/// The journal's own number of a frame: every frame has the number after its predecessor's, for
/// the whole life of the brick.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Lsn(pub(crate) u64);

impl Lsn {
    pub(crate) fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameKind {
    /// A record of the primary's order.
    Record,
    /// Changes without a place in the order, from a resync.
    Resync,
    /// A [`LocalOp`].
    Local,
}

impl FrameKind {
    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Record),
            2 => Some(Self::Resync),
            3 => Some(Self::Local),
            _ => None,
        }
    }
    fn byte(self) -> u8 {
        match self {
            Self::Record => 1,
            Self::Resync => 2,
            Self::Local => 3,
        }
    }
}

/// A frame whose checksum was checked.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) kind: FrameKind,
    pub(crate) epoch: u32,
    pub(crate) lsn: Lsn,
    /// `Record::encode_meta`, or a [`LocalOp`].
    pub(crate) meta: Bytes,
    /// How each change was carried out, see [`Aux`].
    pub(crate) aux: Bytes,
    /// Journaled data.
    pub(crate) payload: Bytes,
}

/// Lengths from a header, before the checksum was checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UnverifiedHeader {
    pub(crate) total: usize,
}

impl UnverifiedHeader {
    /// `None` where the bytes cannot begin a frame.
    pub(crate) fn read(raw: &[u8]) -> Option<Self> {
        let word = |at: usize| -> Option<usize> {
            let bytes = raw.get(at..at + 4)?.first_chunk::<4>()?;
            usize::try_from(u32::from_le_bytes(*bytes)).ok()
        };
        let total = word(4)?;
        let parts = word(24)?.checked_add(word(28)?)?.checked_add(word(32)?)?;
        let fits = total >= FRAME_HEADER_BYTES && total - FRAME_HEADER_BYTES == parts;
        fits.then_some(Self { total })
    }
}

impl Frame {
    /// Appends the frame's bytes, without padding.
    pub(crate) fn encode(
        out: &mut Vec<u8>,
        (kind, epoch, lsn): (FrameKind, u32, Lsn),
        meta: &[u8],
        aux: &[u8],
        payload: &[&[u8]],
    ) {
        let start = out.len();
        let data: usize = payload.iter().map(|part| part.len()).sum();
        let len = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&len(FRAME_HEADER_BYTES + meta.len() + aux.len() + data));
        out.extend_from_slice(&[kind.byte(), 0, 0, 0]);
        out.extend_from_slice(&epoch.to_le_bytes());
        out.extend_from_slice(&lsn.0.to_le_bytes());
        for part in [meta.len(), aux.len(), data] {
            out.extend_from_slice(&len(part));
        }
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(meta);
        out.extend_from_slice(aux);
        for part in payload {
            out.extend_from_slice(part);
        }
        let crc = crc32fast::hash(&out[start + 4..]);
        out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    }

    /// Checks and reads the bytes of exactly one frame.
    pub(crate) fn decode(raw: &Bytes) -> Option<Self> {
        let header = UnverifiedHeader::read(raw)?;
        let crc = u32::from_le_bytes(*raw.first_chunk::<4>()?);
        if header.total != raw.len() || crc32fast::hash(&raw[4..]) != crc {
            return None;
        }
        let mut r = Reader::new(raw.slice(8..));
        let kind = FrameKind::from_byte(r.u8("kind").ok()?)?;
        r.raw(3, "reserved").ok()?;
        let epoch = r.u32("epoch").ok()?;
        let lsn = Lsn(r.u64("number").ok()?);
        let meta_len = r.u32("meta length").ok()? as usize;
        let aux_len = r.u32("aux length").ok()? as usize;
        let payload_len = r.u32("payload length").ok()? as usize;
        r.u32("reserved").ok()?;
        Some(Self {
            kind,
            epoch,
            lsn,
            meta: r.raw(meta_len, "meta").ok()?,
            aux: r.raw(aux_len, "aux").ok()?,
            payload: r.raw(payload_len, "payload").ok()?,
        })
    }
}

/// How one change was carried out by this brick.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Step {
    /// The whole blocks of the write stand in the object's file, not in the journal.
    pub(crate) direct: bool,
    /// Checksums of the blocks that the change left with new content, ascending.
    pub(crate) sums: Vec<u32>,
    /// For a truncation: where the data ended before.
    pub(crate) old_end: Option<u64>,
}

impl Step {
    pub(crate) fn new(direct: bool, sums: Vec<u32>) -> Self {
        Self {
            direct,
            sums,
            old_end: None,
        }
    }
}

/// Writes and reads [`Step`]s, one a change.
#[derive(Debug)]
pub(crate) struct Aux;

impl Aux {
    pub(crate) fn encode(steps: &[Step]) -> Bytes {
        let mut w = Writer::with_capacity(steps.len() * 8);
        for step in steps {
            w.u8(u8::from(step.direct) | u8::from(step.old_end.is_some()) << 1);
            if let Some(end) = step.old_end {
                w.u64(end);
            }
            w.u32(u32::try_from(step.sums.len()).unwrap_or(u32::MAX));
            for sum in &step.sums {
                w.u32(*sum);
            }
        }
        w.finish()
    }

    pub(crate) fn decode(raw: Bytes, count: usize) -> Result<Vec<Step>, DecodeError> {
        let mut r = Reader::new(raw);
        let mut steps = Vec::with_capacity(count.min(4096));
        for _ in 0..count {
            let flags = r.u8("how a change was done")?;
            let old_end = if flags & 2 != 0 {
                Some(r.u64("old end")?)
            } else {
                None
            };
            let sums = r.count(4, "checksums")?;
            let sums = (0..sums)
                .map(|_| r.u32("checksum"))
                .collect::<Result<_, _>>()?;
            steps.push(Step {
                direct: flags & 1 != 0,
                sums,
                old_end,
            });
        }
        r.end("checksums")?;
        Ok(steps)
    }
}

/// What only this brick knows, journaled so that replay rebuilds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LocalOp {
    /// From here on changes are marked dirty for these replicas.
    Tracking { mask: u8 },
    /// Direct writes of the objects up to these frames are on stable storage.
    Synced { objects: Vec<(ObjectId, Lsn)> },
    /// Extents that may be overwritten directly from here on, and such that are not any more.
    Activity {
        add: Vec<(ObjectId, u64)>,
        remove: Vec<(ObjectId, u64)>,
    },
    /// Dirty marks that go.
    Clear { replica: u8, items: Vec<DirtyItem> },
    /// Dirty marks that come.
    Mark { replica: u8, items: Vec<DirtyItem> },
    /// Everything is dirty for the replica, or (with `false`) nothing is any more.
    All { replica: u8, all: bool },
    /// How far the comparison of everything came: the caller's own words.
    Progress { replica: u8, cursor: Bytes },
    /// The state is the one of this place in the order.
    Position {
        sequence: Sequence,
        term: Term,
        generation: GenerationId,
    },
}

impl LocalOp {
    pub(crate) fn encode(&self) -> Bytes {
        let mut w = Writer::with_capacity(64);
        match self {
            Self::Tracking { mask } => {
                w.u8(1).u8(*mask);
            }
            Self::Synced { objects } => {
                w.u8(2).u32(count(objects.len()));
                for (object, upto) in objects {
                    w.u64(object.0).u64(upto.0);
                }
            }
            Self::Activity { add, remove } => {
                w.u8(3);
                for list in [add, remove] {
                    w.u32(count(list.len()));
                    for (object, extent) in list {
                        w.u64(object.0).u64(*extent);
                    }
                }
            }
            Self::Clear { replica, items } | Self::Mark { replica, items } => {
                let kind = if matches!(self, Self::Clear { .. }) {
                    4
                } else {
                    5
                };
                w.u8(kind).u8(*replica).u32(count(items.len()));
                for item in items {
                    item.encode(&mut w);
                }
            }
            Self::All { replica, all } => {
                w.u8(6).u8(*replica).u8(u8::from(*all));
            }
            Self::Progress { replica, cursor } => {
                w.u8(7).u8(*replica).bytes(cursor);
            }
            Self::Position {
                sequence,
                term,
                generation,
            } => {
                w.u8(8).u64(sequence.0).u64(term.0).id(&generation.0);
            }
        }
        w.finish()
    }

    pub(crate) fn decode(raw: Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(raw);
        let kind = r.u8("local kind")?;
        let op = match kind {
            1 => Self::Tracking {
                mask: r.u8("mask")?,
            },
            2 => {
                let n = r.count(16, "objects")?;
                let objects = (0..n)
                    .map(|_| Ok((ObjectId(r.u64("object")?), Lsn(r.u64("frame")?))))
                    .collect::<Result<_, DecodeError>>()?;
                Self::Synced { objects }
            }
            3 => Self::Activity {
                add: extents(&mut r)?,
                remove: extents(&mut r)?,
            },
            4 | 5 => {
                let replica = r.u8("replica")?;
                let n = r.count(5, "items")?;
                let items = (0..n)
                    .map(|_| DirtyItem::decode(&mut r))
                    .collect::<Result<_, _>>()?;
                if kind == 4 {
                    Self::Clear { replica, items }
                } else {
                    Self::Mark { replica, items }
                }
            }
            6 => Self::All {
                replica: r.u8("replica")?,
                all: r.u8("all")? != 0,
            },
            7 => Self::Progress {
                replica: r.u8("replica")?,
                cursor: r.bytes("cursor")?,
            },
            8 => Self::Position {
                sequence: Sequence(r.u64("sequence")?),
                term: Term(r.u64("term")?),
                generation: GenerationId(r.id("generation")?),
            },
            other => {
                return Err(DecodeError::Invalid {
                    what: "local kind",
                    value: u64::from(other),
                });
            }
        };
        r.end("local frame")?;
        Ok(op)
    }
}

fn extents(r: &mut Reader) -> Result<Vec<(ObjectId, u64)>, DecodeError> {
    let n = r.count(16, "extents")?;
    (0..n)
        .map(|_| Ok((ObjectId(r.u64("object")?), r.u64("extent")?)))
        .collect()
}

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
