//! Retained points: states of the brick that can be read, and gone back to, after it went on.
//!
//! A point is the state of a checkpoint. From then on, whatever is about to change keeps what it
//! was before, once:
//!
//! - rows of the metadata store: the transaction that changes one puts the old one into table
//!   `saved`;
//! - blocks of object files: copied to the same place of a sparse file of the point ([`keep`]),
//!   which is synced before the object's file is touched; a hole costs nothing;
//! - files of dropped objects: they get a second name in the point's directory before they lose
//!   the first.
//!
//! Which of an object's blocks are copied is written nowhere: a copy counts where it matches the
//! checksum that the point has for the block, and else the object's file does.
//!
//! Only the newest point keeps; an older one reads what it did not keep itself through the newer
//! ones. So a point that is dropped while an older one is alive stays, hidden.

pub(crate) mod keep;
pub(crate) mod restore;

use bytes::Bytes;
use protocol::codec::{DecodeError, Reader, Writer};
use protocol::ids::GenerationId;
use protocol::units::{BLOCK_BYTES, Sequence, Term, Timestamp};

use crate::brick::Position;

/// Most points that a brick holds, besides those that were dropped and still serve older ones.
pub const POINTS_MAX: usize = 8;
/// Longest note of a point.
pub const NOTE_BYTES_MAX: usize = crate::layout::STATE_BYTES_MAX;

/// Names a point of a brick; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PointId(pub u64);

impl std::fmt::Display for PointId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What a point is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PointKind {
    /// The whole picture before a resync. Where room runs out it is given up, and the brick goes on
    /// without it.
    Resync,
    /// What a replica held and its volume gave up. It goes only when it is dropped: where room runs
    /// out the brick stops.
    GivenUp,
}

/// A point as its owner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// Its name.
    pub id: PointId,
    /// What it is there for.
    pub kind: PointKind,
    /// Its place in the order.
    pub position: Position,
    /// The time that it shows, as its maker said.
    pub as_of: Timestamp,
    /// Bytes of blocks that are not all zero, over all objects, as they were.
    pub used_bytes: u64,
    /// About how many bytes of blocks were copied for it.
    pub kept_bytes: u64,
    /// Its maker's own, at most [`NOTE_BYTES_MAX`] bytes.
    pub note: Bytes,
}

/// Where a point stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It can be read.
    Live,
    /// It was dropped; older ones read through it.
    Hidden,
    /// The brick is going back to it. With the replication layer's state for the end.
    GoingBack(Bytes),
    /// The brick's state is the point's; the superblock has to get this state.
    Restored(Bytes),
}

/// A row of table `points`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PointRow {
    pub(crate) id: PointId,
    pub(crate) phase: Phase,
    pub(crate) kind: PointKind,
    pub(crate) position: Position,
    pub(crate) as_of: Timestamp,
    pub(crate) used_blocks: u64,
    pub(crate) kept_blocks: u64,
    pub(crate) note: Bytes,
}

impl PointRow {
    pub(crate) fn encode(&self) -> Bytes {
        let mut w = Writer::with_capacity(128 + self.note.len());
        let (phase, state) = match &self.phase {
            Phase::Live => (0, &Bytes::new()),
            Phase::Hidden => (1, &Bytes::new()),
            Phase::GoingBack(state) => (2, state),
            Phase::Restored(state) => (3, state),
        };
        w.u8(phase).u8(match self.kind {
            PointKind::Resync => 1,
            PointKind::GivenUp => 2,
        });
        w.u64(self.position.sequence.0)
            .u64(self.position.term.0)
            .id(&self.position.generation.0);
        w.u64(self.as_of.0.cast_unsigned())
            .u64(self.used_blocks)
            .u64(self.kept_blocks);
        w.bytes(&self.note).bytes(state);
        w.finish()
    }

    pub(crate) fn decode(id: PointId, raw: Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(raw);
        let (phase, kind) = (r.u8("phase")?, r.u8("kind")?);
        let position = Position {
            sequence: Sequence(r.u64("sequence")?),
            term: Term(r.u64("term")?),
            generation: GenerationId(r.id("generation")?),
        };
        let as_of = Timestamp(r.u64("time")?.cast_signed());
        let used_blocks = r.u64("used blocks")?;
        let kept_blocks = r.u64("kept blocks")?;
        let note = r.bytes("note")?;
        let state = r.bytes("state")?;
        r.end("point")?;
        let bad = |what, value: u8| {
            let value = u64::from(value);
            Err(DecodeError::Invalid { what, value })
        };
        let phase = match phase {
            0 => Phase::Live,
            1 => Phase::Hidden,
            2 => Phase::GoingBack(state),
            3 => Phase::Restored(state),
            other => return bad("a point's phase", other),
        };
        let kind = match kind {
            1 => PointKind::Resync,
            2 => PointKind::GivenUp,
            other => return bad("a point's kind", other),
        };
        Ok(Self {
            id,
            phase,
            kind,
            position,
            as_of,
            used_blocks,
            kept_blocks,
            note,
        })
    }

    pub(crate) fn is_live(&self) -> bool {
        self.phase == Phase::Live
    }

    pub(crate) fn point(&self) -> Point {
        Point {
            id: self.id,
            kind: self.kind,
            position: self.position,
            as_of: self.as_of,
            used_bytes: self.used_blocks.saturating_mul(BLOCK_BYTES),
            kept_bytes: self.kept_blocks.saturating_mul(BLOCK_BYTES),
            note: self.note.clone(),
        }
    }
}

/// The points through which `from` is read, itself first. `rows` rise by id.
pub(crate) fn chain_from(rows: &[PointRow], from: PointId) -> Vec<PointId> {
    rows.iter()
        .map(|row| row.id)
        .filter(|id| *id >= from)
        .collect()
}

/// The points through which the newest one that is alive is read: what must not be lost stands in
/// one of them. Empty where none is alive.
pub(crate) fn live_chain(rows: &[PointRow]) -> Vec<PointId> {
    rows.iter()
        .rfind(|row| row.phase != Phase::Hidden)
        .map(|newest| chain_from(rows, newest.id))
        .unwrap_or_default()
}
