//! Data of large writes that a crash may have taken although their records are here (DUR-3): where,
//! and what of it is put back from clients.

use std::ops::Range;

use protocol::fs::{Operation, Outcome, Replay};
use protocol::ids::SessionId;
use protocol::record::Change;
use protocol::units::{ObjectId, Sequence};
use storage::{LastWrite, Medium};

use super::driver::Driver;
use super::keys::Keys;
use super::replay::was_answered;

/// Writes that are remembered since over what a crash left in doubt.
const REWRITES_MAX: usize = 16 << 10;
/// Ranges in doubt that are remembered one by one.
const SUSPECTS_MAX: usize = 16 << 10;

/// Whether the data of a write is where its record is.
pub(super) enum Data {
    /// It is, or what is newer.
    Here,
    /// It must be looked at again when something changed.
    Later,
    /// It is missing, and others went on without it.
    Lost,
}

/// What is known besides the recovery's own report.
#[derive(Default)]
pub(super) struct Doubts {
    /// Data is put back that this record had written.
    rewrites: Option<Sequence>,
    /// Too much was written since over what a crash left in doubt to say what is still missing.
    lost_count: bool,
}

impl<M: Medium> Driver<M> {
    /// This replica's data is the primary's: nothing is in doubt any more.
    pub(super) fn clear_doubts(&mut self) {
        self.recovery.suspect.clear();
        self.recovery.last_writes.clear();
        self.replays.doubts = Doubts::default();
    }

    /// Whether clients shall send writes whose records are here.
    pub(super) fn wants_data(&self) -> bool {
        self.doubts().next().is_some()
    }

    /// Takes one of the writes that were never answered and are held, of which a part may be here
    /// without its record.
    pub(super) fn take_part_here(&mut self) -> Option<(SessionId, Box<Replay>)> {
        let suspect = &self.recovery.suspect;
        let part_is_here = |replay: &Replay| {
            // What was appended without its record is beyond the end, where nobody sees it.
            let Operation::Write {
                object,
                offset,
                append: false,
                ..
            } = replay.request.operation
            else {
                return false;
            };
            let range = offset..offset.saturating_add(replay.request.payload.len() as u64);
            meet(suspect, object, &range)
        };
        self.replays.gathering.as_mut()?.take_unplaced(part_is_here)
    }

    /// Where data may be missing although its records are here.
    pub(super) fn doubts(&self) -> impl Iterator<Item = (ObjectId, &Range<u64>)> {
        let suspect = self.recovery.suspect.iter();
        suspect.map(|(object, range)| (*object, range))
    }

    /// A record is fetched from a member that had started again: it gives the data of large writes
    /// as it finds it, which may be what was there before. That is in doubt here like what this
    /// replica's own crash left so, also for whoever becomes primary instead.
    pub(super) fn doubt_pulled(&mut self, changes: &[Change]) -> Result<(), storage::BrickError> {
        for change in changes {
            if let Change::Write {
                object,
                offset,
                len,
            } = *change
            {
                let range = offset..offset + u64::from(len);
                self.brick.mark_suspect(object, &range)?;
                self.machine.doubts_more(1);
                self.doubt(object, range);
            }
        }
        Ok(())
    }

    /// Beyond a bound one range spans all that is in doubt of an object.
    fn doubt(&mut self, object: ObjectId, range: Range<u64>) {
        let suspect = &mut self.recovery.suspect;
        let known = if suspect.len() < SUSPECTS_MAX {
            None
        } else {
            suspect.iter_mut().find(|(of, _)| *of == object)
        };
        match known {
            Some((_, known)) => *known = known.start.min(range.start)..known.end.max(range.end),
            None => suspect.push((object, range)),
        }
    }

    /// A record changed data: what it changed of what a crash left in doubt is right from here on,
    /// and what an earlier write had put there is not missing any more.
    pub(super) fn note_data(&mut self, sequence: Sequence, changes: &[Change]) {
        if !self.wants_data() || self.replays.doubts.lost_count {
            return;
        }
        let sequence = self.replays.doubts.rewrites.unwrap_or(sequence);
        for (object, range) in changes.iter().filter_map(Change::data) {
            if meet(&self.recovery.suspect, object, &range) {
                self.recovery.last_writes.push(LastWrite {
                    object,
                    range,
                    sequence,
                });
            }
        }
        if self.recovery.last_writes.len() > REWRITES_MAX {
            self.replays.doubts.lost_count = true;
            self.recovery.last_writes.clear();
        }
    }

    /// Where the data of an operation went that is here.
    fn data_of(
        &self,
        session: SessionId,
        replay: &Replay,
    ) -> Result<Option<(ObjectId, u64, u64)>, String> {
        let request = &replay.request;
        Ok(match request.operation {
            // The client was not told where it went.
            Operation::Write {
                object,
                append: true,
                ..
            } if !was_answered(replay) => {
                match self.kept_of(session, request)?.map(|kept| kept.outcome) {
                    Some(Outcome::Written { offset, .. }) => {
                        Some((object, offset, request.payload.len() as u64))
                    }
                    _ => None,
                }
            }
            Operation::Write { object, offset, .. } => {
                Some((object, offset, request.payload.len() as u64))
            }
            // What it copied, the client does not have: what of it is missing is lost.
            Operation::CopyRange {
                object,
                offset,
                len,
                ..
            } => Some((object, offset, u64::from(len))),
            _ => None,
        })
    }

    /// The record of a large write is here; what a crash took of its data is written again, but for
    /// what a later write put in its place. What was confirmed is not put back behind what others
    /// may have seen without it: then it is lost.
    pub(super) fn put_data_back(
        &mut self,
        session: SessionId,
        replay: &Replay,
    ) -> Result<Data, String> {
        let Some((object, offset, len)) = self.data_of(session, replay)? else {
            return Ok(Data::Here);
        };
        let place = if was_answered(replay) {
            replay.at
        } else {
            replay.order.unwrap_or_default()
        };
        let gathering = self.replays.gathering.as_ref();
        let is_stable = gathering.is_some_and(|gathering| gathering.is_stable(place));
        if is_stable || !self.wants_data() {
            return Ok(Data::Here);
        }
        let size = namespace::size(&Keys(&self.brick), object).map_err(|e| e.to_string())?;
        let end = offset.saturating_add(len).min(size.unwrap_or(0));
        let mut pieces: Vec<_> = self
            .doubts()
            .filter(|(of, _)| *of == object)
            .map(|(_, range)| range.start.max(offset)..range.end.min(end))
            .filter(|piece| !piece.is_empty())
            .collect();
        let later = self.recovery.last_writes.iter();
        for lost in later.filter(|l| l.object == object && l.sequence > place.1) {
            pieces = without(pieces, &lost.range);
        }
        if pieces.is_empty() {
            return Ok(Data::Here);
        }
        if let Operation::CopyRange { .. } = replay.request.operation {
            tracing::info!(%object, ?place, "data of a copy is lost");
            return Ok(Data::Lost);
        }
        let late = self.replays.gathering.is_none() && self.replays.changers.any_other(session);
        if self.replays.doubts.lost_count || (late && was_answered(replay)) {
            let payload = &replay.request.payload;
            // Waits for the device, once: a crash, and a client that was away since.
            let there = |piece: &Range<u64>| {
                let from = usize::try_from(piece.start - offset).ok()?;
                let len = u32::try_from(piece.end - piece.start).ok()?;
                let data = self.brick.read_now(object, piece.start, len).ok()?;
                (data == payload.get(from..from + len as usize)?).then_some(())
            };
            if pieces.iter().all(|piece| there(piece).is_some()) {
                return Ok(Data::Here);
            }
            tracing::info!(%object, ?place, "data of a write is lost");
            return Ok(Data::Lost);
        }
        let unprepared = |d: &mut Self, piece: &Range<u64>| {
            let write = Operation::Write {
                object,
                offset: piece.start,
                append: false,
                kill_privileges: false,
            };
            !d.is_prepared(&write, piece.end - piece.start)
        };
        if pieces.iter().any(|piece| unprepared(self, piece)) {
            return Ok(Data::Later);
        }
        for piece in pieces {
            tracing::debug!(%object, ?piece, ?place, "data of a write is put back");
            let from = usize::try_from(piece.start - offset).map_err(|e| e.to_string())?;
            let len = u32::try_from(piece.end - piece.start).map_err(|e| e.to_string())?;
            let payload = replay.request.payload.slice(from..from + len as usize);
            let change = Change::Write {
                object,
                offset: piece.start,
                len,
            };
            self.replays.doubts.rewrites = Some(place.1);
            let ordered = self.order(vec![change], payload);
            self.replays.doubts.rewrites = None;
            if let Err(error) = ordered {
                return Err(error.to_string());
            }
        }
        Ok(Data::Here)
    }
}

/// Whether a range of an object meets what is in doubt.
pub(super) fn meet(
    doubts: &[(ObjectId, Range<u64>)],
    object: ObjectId,
    range: &Range<u64>,
) -> bool {
    let meets = |doubt: &Range<u64>| doubt.start < range.end && range.start < doubt.end;
    doubts
        .iter()
        .any(|(of, doubt)| *of == object && meets(doubt))
}

/// Ranges without what lies in another.
fn without(ranges: Vec<Range<u64>>, other: &Range<u64>) -> Vec<Range<u64>> {
    let parts = ranges.into_iter().flat_map(|range| {
        [
            range.start..range.end.min(other.start),
            range.start.max(other.end)..range.end,
        ]
    });
    parts.filter(|part| !part.is_empty()).collect()
}

#[test]
fn what_a_later_write_replaced_is_left_out() {
    let one = |start: u64, end: u64| Vec::from([Range { start, end }]);
    assert_eq!(without(one(0, 10), &(4..6)), [0..4, 6..10]);
    assert_eq!(without(one(0, 10), &(0..10)), []);
    assert_eq!(without(one(5, 10), &(0..7)), one(7, 10));
    assert_eq!(without(one(5, 10), &(10..12)), one(5, 10));
    assert_eq!(without(one(5, 10), &(0..2)), one(5, 10));
}
