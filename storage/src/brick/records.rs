//! The journal as the replication log: records from a sequence on.

use bytes::{Bytes, BytesMut};
use protocol::record::{Change, PAYLOAD_BYTES_MAX, Record};
use protocol::units::{BLOCK_BYTES, Sequence};
use protocol::volume::REPLICAS_MAX;

use super::Brick;
use crate::error::{BrickError, IoFault};
use crate::journal::frame::{Aux, Frame, Step};
use crate::medium::Medium;
use crate::sum::{BLOCK, block_sum};

static ZEROS: [u8; PAYLOAD_BYTES_MAX] = [0; PAYLOAD_BYTES_MAX];

/// A record for a replica that was away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatchUp {
    /// The record.
    pub record: Record,
    /// Some of the payload is what the object holds now, and not what the record wrote: it was
    /// changed since. The receiver is consistent only at the source's present sequence.
    pub data_as_of_now: bool,
}

fn broken() -> BrickError {
    BrickError::Failed(IoFault {
        op: "decode a journaled record",
        kind: std::io::ErrorKind::InvalidData,
        errno: None,
    })
}

/// The record of a frame, with zeros for a payload; its changes; and how each was done.
pub(super) fn changes_of(frame: &Frame) -> Result<(Record, Vec<Change>, Vec<Step>), BrickError> {
    let len = frame
        .meta
        .get(32..36)
        .and_then(|raw| raw.first_chunk::<4>());
    let len = len.map_or(0, |raw| u32::from_le_bytes(*raw) as usize);
    if len > PAYLOAD_BYTES_MAX {
        return Err(broken());
    }
    let zeros = Bytes::from_static(&ZEROS[..len]);
    let record = Record::decode(frame.meta.clone(), zeros).map_err(|_| broken())?;
    let steps = Aux::decode(frame.aux.clone(), record.changes.len()).map_err(|_| broken())?;
    let changes = record.changes.clone();
    Ok((record, changes, steps))
}

impl<M: Medium> Brick<M> {
    /// About how many bytes of the journal follow the record `from`; `None` where it does not reach
    /// back so far.
    #[must_use]
    pub fn journal_bytes_since(&self, from: Sequence) -> Option<u64> {
        if from >= self.position.sequence {
            return Some(0);
        }
        let next = self.position.sequence.next();
        (from.next() >= self.oldest_kept()).then(|| self.journal.bytes_from(from.next(), next))
    }

    /// These replicas get records as they are appended, and have confirmed those up to the sequence
    /// beside them. What they have not is kept for them, up to the journal's limit; beyond it, a
    /// checkpoint marks it dirty for them before it may leave. Until the first call nothing leaves
    /// for want of room alone.
    pub fn owe(&mut self, replicas: impl Iterator<Item = (u8, Sequence)>) {
        let mut owed = [None; REPLICAS_MAX];
        for (replica, after) in replicas {
            owed[usize::from(replica)] = Some(after);
        }
        let least = owed.iter().flatten().min();
        let from = least.map_or(Sequence(u64::MAX), |after| after.next());
        self.journal.set_retain_from(from);
        self.owed = Some(owed);
    }

    /// The last record that [`Brick::owe`] had marked dirty for the replica.
    #[must_use]
    pub fn marked_late(&self, replica: u8) -> Option<Sequence> {
        self.marked_late[usize::from(replica)]
    }

    /// Marks what the journal may not keep until everyone has it. True: it may leave once that is
    /// durable.
    pub(super) fn mark_late(&mut self, before: Sequence) -> Result<bool, BrickError> {
        let Some(owed) = self.owed else {
            return Ok(false);
        };
        for (replica, after) in (0..).zip(owed) {
            let Some(after) = after else { continue };
            let marked = self.marked_late[usize::from(replica)].unwrap_or_default();
            // What left earlier was marked then, or as it was appended.
            let left = Sequence(self.oldest_kept().0.saturating_sub(1));
            let from = after.max(marked).max(left);
            let last = Sequence(before.0.saturating_sub(1)).min(self.position.sequence);
            if from >= last {
                continue;
            }
            let items = self.touched_between(from, last)?;
            let Some(items) = items else {
                return Ok(false);
            };
            self.mark_dirty(replica, &items)?;
            self.marked_late[usize::from(replica)] = Some(last);
        }
        Ok(true)
    }

    /// Sequences begin anew, perhaps at a lower one: the numbers of what was marked late, and of what
    /// may leave for that reason, mean other records now.
    pub(super) fn forget_marked_late(&mut self) {
        self.owed = None;
        self.marked_late = [None; REPLICAS_MAX];
        self.marked_before = Sequence::ZERO;
        self.checkpoint.forget_marked_before();
    }

    /// Records after `after`, in order, until their bytes come to `bytes_max`, at least one. The
    /// data of large writes is read from the objects as it is now; where the checksums say that it
    /// was changed since, the record is marked. [`BrickError::NotKept`] where
    /// the journal does not reach back so far. May wait for the device.
    pub fn read_records(
        &mut self,
        after: Sequence,
        bytes_max: usize,
    ) -> Result<Vec<CatchUp>, BrickError> {
        let from = after.next();
        if from > self.position.sequence {
            return Ok(Vec::new());
        }
        let mut frames = Vec::new();
        let mut bytes = 0;
        let whole = self.journal.read_records(from, &mut |_, frame| {
            let (record, _, steps) = changes_of(&frame)?;
            let size = frame.meta.len() + record.payload.len();
            if !frames.is_empty() && bytes + size > bytes_max {
                return Ok(false);
            }
            bytes += size;
            frames.push((record, steps, frame.payload));
            Ok(true)
        });
        // Reading does not stop a brick; only a failed push does, at the next call.
        let whole = whole?;
        if !whole && frames.is_empty() {
            return Err(BrickError::NotKept {
                wanted: from,
                oldest: self.oldest_kept(),
            });
        }
        frames
            .into_iter()
            .map(|(record, steps, journaled)| self.fill_payload(record, &steps, &journaled))
            .collect()
    }

    /// Puts the payload together from what the journal has and what the objects hold.
    fn fill_payload(
        &self,
        mut record: Record,
        steps: &[Step],
        journaled: &Bytes,
    ) -> Result<CatchUp, BrickError> {
        if !steps.iter().any(|step| step.direct) {
            record.payload = journaled.clone();
            return Ok(CatchUp {
                record,
                data_as_of_now: false,
            });
        }
        let mut data_as_of_now = false;
        let mut payload = BytesMut::with_capacity(record.payload.len());
        let mut at = 0;
        let mut take = |payload: &mut BytesMut, len: u64| {
            let end = at + len as usize;
            let part = journaled.get(at..end).ok_or_else(broken)?;
            payload.extend_from_slice(part);
            at = end;
            Ok::<(), BrickError>(())
        };
        for (change, step) in record.changes.iter().zip(steps) {
            let &Change::Write {
                object,
                offset,
                len,
            } = change
            else {
                continue;
            };
            let len = u64::from(len);
            if !step.direct {
                take(&mut payload, len)?;
                continue;
            }
            let start = offset.next_multiple_of(BLOCK_BYTES);
            let end = (offset + len) / BLOCK_BYTES * BLOCK_BYTES;
            take(&mut payload, start - offset)?;
            let data = self.core.read_now(object, start, end - start)?;
            // A block at the edge has its checksum before those of the whole blocks.
            let written = step.sums.iter().skip(usize::from(start > offset));
            let written = written.take(data.len() / BLOCK).copied();
            data_as_of_now |= !data.chunks(BLOCK).map(block_sum).eq(written);
            payload.extend_from_slice(&data);
            take(&mut payload, offset + len - end)?;
        }
        record.payload = payload.freeze();
        Ok(CatchUp {
            record,
            data_as_of_now,
        })
    }
}
