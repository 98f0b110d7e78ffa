//! What only this brick knows, through the journal: dirty marks, the activity log, its position.

use std::ops::Range;

use bytes::Bytes;
use protocol::ids::GenerationId;
use protocol::record::Change;
use protocol::units::{BLOCK_BYTES, ObjectId, Sequence, Term, blocks_touched};

use super::records::changes_of;
use super::{Brick, Position};
use crate::activity::{ACTIVE_EXTENTS_MAX, Activity};
use crate::apply::Core;
use crate::dirty::{DirtyItem, DirtySummary, PROGRESS_BYTES_MAX, SUSPECT};
use crate::error::BrickError;
use crate::journal::frame::{FrameKind, LocalOp, Lsn};
use crate::medium::Medium;

/// Most items in one journaled frame.
const ITEMS_PER_FRAME_MAX: usize = 512;

impl<M: Medium> Core<M> {
    /// Does what a local frame says, now or in a replay; the position and syncs are the caller's.
    pub(crate) fn apply_local(&mut self, op: &LocalOp, lsn: Lsn) {
        match op {
            LocalOp::Tracking { mask } => self.tracking = *mask,
            LocalOp::Activity { add, remove } => self.activity.apply(add, remove, lsn),
            LocalOp::Clear { replica, items } => {
                for item in items {
                    self.dirty.set(*replica, item, false);
                }
            }
            LocalOp::Mark { replica, items } => {
                for item in items {
                    self.dirty.set(*replica, item, true);
                }
            }
            LocalOp::All { replica, all } => self.dirty.set_all(*replica, *all),
            LocalOp::Progress { replica, cursor } => {
                // A copy: the cursor is a slice of a whole frame.
                let cursor = Bytes::copy_from_slice(cursor);
                self.dirty.set_progress(*replica, cursor);
            }
            LocalOp::Synced { .. } | LocalOp::Position { .. } => {}
        }
    }
}

impl<M: Medium> Brick<M> {
    pub(super) fn local(&mut self, op: LocalOp) -> Result<Lsn, BrickError> {
        let next = self.position.sequence.next();
        let appended = self
            .journal
            .append(FrameKind::Local, next, (&op.encode(), &[], &[]));
        let lsn = appended.map_err(|error| self.fail(error))?;
        self.core.apply_local(&op, lsn);
        Ok(lsn)
    }

    /// What the replica lacks.
    #[must_use]
    pub fn dirty_summary(&self, replica: u8) -> DirtySummary {
        self.core.dirty.summary(replica)
    }

    /// The next things that the replica lacks, after `after`, in the order of [`DirtyItem`].
    #[must_use]
    pub fn next_dirty(&self, replica: u8, after: Option<&DirtyItem>, max: usize) -> Vec<DirtyItem> {
        self.core.dirty.next(replica, after, max)
    }

    /// The replica has these now. Lost in a crash before the next flush, they are dirty again.
    pub fn clear_dirty(&mut self, replica: u8, items: &[DirtyItem]) -> Result<(), BrickError> {
        self.writable()?;
        for part in items.chunks(ITEMS_PER_FRAME_MAX) {
            let items = part.to_vec();
            self.local(LocalOp::Clear { replica, items })?;
        }
        Ok(())
    }

    /// The replica lacks these. Durable with the next flush. A range of more than 256 GiB
    /// makes everything dirty.
    pub fn mark_dirty(&mut self, replica: u8, items: &[DirtyItem]) -> Result<(), BrickError> {
        self.writable()?;
        for part in items.chunks(ITEMS_PER_FRAME_MAX) {
            let items = part.to_vec();
            self.local(LocalOp::Mark { replica, items })?;
        }
        Ok(())
    }

    /// Everything must be compared with the replica; single marks go. Durable with the next flush.
    pub fn mark_all_dirty(&mut self, replica: u8) -> Result<(), BrickError> {
        self.writable()?;
        self.local(LocalOp::All { replica, all: true }).map(drop)
    }

    /// The replica lacks nothing. Durable with the next flush.
    pub fn clear_all_dirty(&mut self, replica: u8) -> Result<(), BrickError> {
        self.writable()?;
        self.local(LocalOp::All {
            replica,
            all: false,
        })?;
        if let Some(marked) = self.marked_late.get_mut(usize::from(replica)) {
            *marked = None;
        }
        Ok(())
    }

    /// These bytes were taken as somebody else's crash may have left them: suspect like what a
    /// recovery finds, until [`Brick::clear_suspects`]. Durable with the next flush, and not after
    /// any record that is appended later.
    pub fn mark_suspect(&mut self, object: ObjectId, range: &Range<u64>) -> Result<(), BrickError> {
        self.mark_dirty(
            SUSPECT,
            &[DirtyItem::Blocks {
                object,
                start: range.start / BLOCK_BYTES,
                end: range.end.div_ceil(BLOCK_BYTES),
            }],
        )
    }

    /// The suspect blocks of [`super::RecoveryReport`] are settled: they were taken from another
    /// replica, or this brick's content counts. Durable with the next flush.
    pub fn clear_suspects(&mut self) -> Result<(), BrickError> {
        self.writable()?;
        self.local(LocalOp::All {
            replica: SUSPECT,
            all: false,
        })
        .map(drop)
    }

    /// How far the comparison of everything with the replica came, in the caller's own words; empty
    /// at its beginning.
    #[must_use]
    pub fn full_progress(&self, replica: u8) -> Bytes {
        self.core.dirty.progress(replica)
    }

    /// Remembers how far the comparison came. Durable with the next flush.
    pub fn set_full_progress(&mut self, replica: u8, cursor: Bytes) -> Result<(), BrickError> {
        self.writable()?;
        if cursor.len() > PROGRESS_BYTES_MAX {
            return Err(BrickError::StateTooLarge {
                what: "the progress of a resync",
                bytes: cursor.len(),
                max: PROGRESS_BYTES_MAX,
            });
        }
        self.local(LocalOp::Progress { replica, cursor }).map(drop)
    }

    /// Marks dirty what the records after `from` touched. [`BrickError::NotKept`] where the journal
    /// does not reach back so far; nothing is marked then. Reads the journal, which may wait.
    pub fn mark_dirty_since(&mut self, replica: u8, from: Sequence) -> Result<(), BrickError> {
        self.writable()?;
        match self.touched_since(from)? {
            Some(items) => self.mark_dirty(replica, &items),
            None => Err(BrickError::NotKept {
                wanted: from.next(),
                oldest: self.oldest_kept(),
            }),
        }
    }

    /// What the records after `from` touched; `None` where the journal does not reach back so far.
    /// Reads the journal, which may wait.
    pub fn touched_since(&mut self, from: Sequence) -> Result<Option<Vec<DirtyItem>>, BrickError> {
        self.touched_between(from, Sequence(u64::MAX))
    }

    /// As [`Brick::touched_since`], for records up to `last`.
    pub(super) fn touched_between(
        &mut self,
        from: Sequence,
        last: Sequence,
    ) -> Result<Option<Vec<DirtyItem>>, BrickError> {
        let wanted = from.next();
        if wanted > self.position.sequence {
            return Ok(Some(Vec::new()));
        }
        let mut items = Vec::new();
        let whole = self.journal.read_records(wanted, &mut |sequence, frame| {
            if sequence > last {
                return Ok(false);
            }
            let (_, changes, steps) = changes_of(&frame)?;
            for (change, step) in changes.iter().zip(steps) {
                items.extend(touched_by(change, step.old_end));
            }
            Ok(true)
        })?;
        if !whole {
            return Ok(None);
        }
        items.sort_unstable();
        items.dedup();
        Ok(Some(items))
    }

    /// The state is the one of this place in the order: the end of a resync. Records before cannot
    /// be read any more. Survives the process after the next push, a power cut after a flush.
    pub fn set_applied(
        &mut self,
        sequence: Sequence,
        term: Term,
        generation: GenerationId,
    ) -> Result<(), BrickError> {
        self.writable()?;
        let lsn = self.local(LocalOp::Position {
            sequence,
            term,
            generation,
        })?;
        self.position = Position {
            sequence,
            term,
            generation,
        };
        self.journal.begin_at((sequence, lsn));
        self.marks.clear();
        self.marks.add(lsn, sequence);
        self.stable = self.stable.min(sequence);
        self.journal_stable = self.journal_stable.min(sequence);
        self.forget_marked_late();
        Ok(())
    }

    /// Lists the extents as active that large writes asked for, making room where it can.
    pub(super) fn activate_wanted(&mut self) -> Result<(), BrickError> {
        let mut wanted = std::mem::take(&mut self.core.activate);
        if wanted.is_empty() {
            return Ok(());
        }
        wanted.sort_unstable();
        wanted.dedup();
        let mut add = Vec::new();
        let stable = self.journal.stable_lsn();
        for (object, extent) in wanted {
            if self.core.activity.state(object, extent, stable) != Activity::Absent {
                continue;
            }
            if self.core.activity.len() + add.len() < ACTIVE_EXTENTS_MAX {
                add.push((object, extent));
                continue;
            }
            let unsynced = &self.core.unsynced;
            let found = self
                .core
                .activity
                .oldest_settled(|object, lsn| unsynced.is_settled_upto(object, lsn));
            match found {
                Some(key) => {
                    // At once, so that the next one is another.
                    self.local(LocalOp::Activity {
                        add: Vec::new(),
                        remove: vec![key],
                    })?;
                    add.push((object, extent));
                }
                // All are in use: the oldest is synced, and a later write finds it settled. Until
                // then large writes go through the journal.
                None => {
                    if let Some(oldest) = self.core.activity.oldest_object() {
                        self.sync_in_background(oldest)?;
                    }
                    break;
                }
            }
        }
        if !add.is_empty() {
            let remove = Vec::new();
            self.local(LocalOp::Activity { add, remove })?;
            self.want_journal_sync();
        }
        Ok(())
    }
}

/// What a change leaves different.
fn touched_by(change: &Change, old_end: Option<u64>) -> Option<DirtyItem> {
    let blocks = |object: ObjectId, offset: u64, len: u64| {
        let range = blocks_touched(offset, len);
        (!range.is_empty()).then_some(DirtyItem::Blocks {
            object,
            start: range.start,
            end: range.end,
        })
    };
    match change {
        Change::Put { key, .. } | Change::Delete { key } => Some(DirtyItem::Key {
            key: Bytes::copy_from_slice(key),
        }),
        Change::Write {
            object,
            offset,
            len,
        } => blocks(*object, *offset, u64::from(*len)),
        Change::Zero {
            object,
            offset,
            len,
        } => {
            let end = offset.saturating_add(*len).min(old_end?);
            blocks(*object, *offset, end.saturating_sub(*offset))
        }
        Change::Truncate { object, size } => blocks(*object, *size, old_end?.saturating_sub(*size)),
        Change::Drop { object } => Some(DirtyItem::Dropped { object: *object }),
    }
}
