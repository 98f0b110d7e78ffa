//! Writing much beside those who wait for a sync.
//!
//! A checkpoint writes tens of MiB at once. Left to the sync at its end, all of it stands in the
//! device's queue together, and whoever syncs a few KiB of the journal meanwhile waits behind it.
//! So it is handed over in small pieces, each when the one before has arrived, as `PostgreSQL` does
//! with its `checkpoint_flush_after`.

use std::io;
use std::ops::Range;

use crate::medium::Medium;

/// What stands in the device's queue at once: half a millisecond of a disk with 250 MB/s.
const PIECE_BYTES: u64 = 128 << 10;

/// What of one file was written and not handed over.
#[derive(Debug, Default)]
pub(crate) struct Trickle {
    range: Range<u64>,
    bytes: u64,
}

impl Trickle {
    /// Notes a write; the range to hand over now, with everything since the last one, if that is
    /// enough.
    fn note(&mut self, offset: u64, len: u64) -> Option<Range<u64>> {
        let end = offset.saturating_add(len);
        self.range = match self.bytes {
            0 => offset..end,
            _ => self.range.start.min(offset)..self.range.end.max(end),
        };
        self.bytes += len;
        if self.bytes < PIECE_BYTES {
            return None;
        }
        self.bytes = 0;
        Some(self.range.clone())
    }

    /// Writes, and waits for the device where there is enough. Not durable.
    pub(crate) fn write<M: Medium>(
        &mut self,
        medium: &M,
        file: &M::File,
        offset: u64,
        data: &[u8],
    ) -> io::Result<()> {
        let mut at = offset;
        for part in data.chunks(PIECE_BYTES as usize) {
            medium.write_at(file, at, part)?;
            if let Some(range) = self.note(at, part.len() as u64) {
                medium.write_out(file, range)?;
            }
            at += part.len() as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scattered_writes_are_handed_over_when_they_come_to_a_piece() {
        let mut trickle = Trickle::default();
        let block = 4096;
        let places = [900, 20, 7_000];
        let mut handed = Vec::new();
        for turn in 0..PIECE_BYTES / block * 2 {
            let place = places[turn as usize % places.len()] + turn;
            handed.extend(
                trickle
                    .note(place * block, block)
                    .map(|range| (turn, range)),
            );
        }
        let turns: Vec<u64> = handed.iter().map(|(turn, _)| *turn + 1).collect();
        assert_eq!(turns, [PIECE_BYTES / block, PIECE_BYTES / block * 2]);
        let first = &handed[0].1;
        assert!(first.contains(&(21 * block)) && first.contains(&(7_002 * block)));
        let second = &handed[1].1;
        assert!(
            second.start > 21 * block,
            "what was handed over is handed over once"
        );
    }

    #[test]
    fn a_long_write_is_handed_over_piece_by_piece() {
        let mut trickle = Trickle::default();
        assert_eq!(trickle.note(0, PIECE_BYTES), Some(0..PIECE_BYTES));
        assert_eq!(trickle.note(PIECE_BYTES, 1), None);
        let end = 2 * PIECE_BYTES;
        assert_eq!(
            trickle.note(end, PIECE_BYTES),
            Some(PIECE_BYTES..end + PIECE_BYTES)
        );
    }
}
