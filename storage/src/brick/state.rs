//! The row of the store that says which state a checkpoint holds.

use bytes::Bytes;
use protocol::codec::{DecodeError, Reader, Writer};
use protocol::ids::GenerationId;
use protocol::units::{ObjectId, Sequence, Term};

use super::Position;
use crate::journal::Place;
use crate::journal::frame::Lsn;

/// What a checkpoint remembers besides the tables.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct StateRow {
    /// Replay begins here.
    pub(crate) place: Place,
    /// The epoch of frames that are written now; 0 before the first opening.
    pub(crate) epoch: u32,
    pub(crate) position: Position,
    pub(crate) tracking: u8,
    pub(crate) used_blocks: u64,
    pub(crate) floor: (Sequence, Lsn),
    pub(crate) active: Vec<(ObjectId, u64)>,
}

impl StateRow {
    pub(crate) fn encode(&self) -> Bytes {
        let mut w = Writer::with_capacity(128);
        w.u64(self.place.number)
            .u64(self.place.offset)
            .u64(self.place.lsn.0)
            .u32(self.place.epoch)
            .u32(self.epoch);
        w.u64(self.position.sequence.0)
            .u64(self.position.term.0)
            .id(&self.position.generation.0);
        w.u8(self.tracking).u64(self.used_blocks);
        w.u64(self.floor.0.0).u64(self.floor.1.0);
        w.u32(u32::try_from(self.active.len()).unwrap_or(u32::MAX));
        for (object, extent) in &self.active {
            w.u64(object.0).u64(*extent);
        }
        w.finish()
    }

    pub(crate) fn decode(raw: Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(raw);
        let place = Place {
            number: r.u64("segment")?,
            offset: r.u64("offset")?,
            lsn: Lsn(r.u64("frame")?),
            epoch: r.u32("frame's epoch")?,
        };
        let epoch = r.u32("epoch")?;
        let position = Position {
            sequence: Sequence(r.u64("sequence")?),
            term: Term(r.u64("term")?),
            generation: GenerationId(r.id("generation")?),
        };
        let tracking = r.u8("tracking")?;
        let used_blocks = r.u64("used blocks")?;
        let floor = (Sequence(r.u64("floor")?), Lsn(r.u64("floor's frame")?));
        let count = r.count(16, "active extents")?;
        let active = (0..count)
            .map(|_| Ok((ObjectId(r.u64("object")?), r.u64("extent")?)))
            .collect::<Result<_, DecodeError>>()?;
        r.end("state")?;
        Ok(Self {
            place,
            epoch,
            position,
            tracking,
            used_blocks,
            floor,
            active,
        })
    }
}
