//! Applying changes to the state: the same code when they happen and when they are replayed.
//!
//! Nothing here touches a file, except that the whole blocks of a large write go into the object's
//! file where that is safe ([`Core::may_write_directly`]); everything else waits in the overlay
//! until a checkpoint, which first makes the journal stable. So a lost tail of the journal leaves
//! nothing behind in files but what the activity log and the objects' ends account for.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use protocol::record::Change;
use protocol::units::{BLOCK_BYTES, BLOCKS_PER_EXTENT, ObjectId, blocks_touched};

use crate::activity::{Activity, ActivityLog};
use crate::dirty::DirtyMaps;
use crate::error::{BrickError, IoFault, ReadError};
use crate::files::Files;
use crate::journal::frame::{Lsn, Step};
use crate::layers::Layers;
use crate::layout::INLINE_BYTES_MAX;
use crate::medium::Medium;
use crate::overlay::{Form, Info};
use crate::points::keep::{Keeping, KeptBlocks};
use crate::sum::{BLOCK, block_sum, broken_sum};
use crate::unsynced::Unsynced;

/// The state and what applying needs.
pub(crate) struct Core<M: Medium> {
    pub(crate) medium: M,
    pub(crate) layers: Layers,
    pub(crate) files: Files<M>,
    pub(crate) dirty: DirtyMaps,
    pub(crate) tracking: u8,
    pub(crate) activity: ActivityLog,
    pub(crate) unsynced: Unsynced,
    /// Blocks of all objects that are not all zero.
    pub(crate) used_blocks: u64,
    /// Blocks that files hold which the next checkpoint removes, those of zeros included; where a
    /// file has holes it is more than it holds.
    pub(crate) freed_blocks: u64,
    pub(crate) large_write_bytes: u64,
    /// Extents that should become active.
    pub(crate) activate: Vec<(ObjectId, u64)>,
    /// A checkpoint would let large writes go direct again.
    pub(crate) checkpoint_wanted: bool,
    /// What the newest living point needs, where there is one.
    pub(crate) keeping: Option<Keeping>,
    /// This core shows a point: where its blocks are.
    pub(crate) kept: Option<KeptBlocks>,
    /// Blocks found that do not match their checksums, since the brick was opened.
    pub(crate) corrupt_found: Vec<(ObjectId, u64)>,
}

/// Most entries of [`Core::corrupt_found`] kept until someone fetches them.
const CORRUPT_FOUND_MAX: usize = 1024;

/// What is being applied.
pub(crate) enum Mode<'a> {
    /// Something new. `stable` is the journal's; `lsn` the frame that it will stand in.
    Live { lsn: Lsn, stable: Lsn },
    /// A frame of the journal: what was done then decides. Whole blocks of direct writes are told
    /// to `direct`.
    Replay {
        steps: std::vec::IntoIter<Step>,
        direct: &'a mut dyn FnMut(ObjectId, Range<u64>),
    },
}

/// What was done, for the journal.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    pub(crate) steps: Vec<Step>,
    /// Parts of the payload that the journal must hold.
    pub(crate) journaled: Vec<Range<usize>>,
}

/// Data on its way into blocks: from the whole payload, or from its journaled parts.
struct Source<'a> {
    payload: &'a Bytes,
    at: usize,
}

impl Source<'_> {
    fn take(&mut self, len: u64) -> Result<Bytes, BrickError> {
        let end = self.at as u64 + len;
        let found = self.payload.len() as u64;
        let Some(end) = usize::try_from(end).ok().filter(|_| end <= found) else {
            return Err(BrickError::Payload {
                expected: end,
                found,
            });
        };
        let part = self.payload.slice(self.at..end);
        self.at = end;
        Ok(part)
    }
}

/// The whole blocks inside a byte range.
fn whole_blocks(offset: u64, len: u64) -> Range<u64> {
    let first = offset.div_ceil(BLOCK_BYTES);
    first..((offset + len) / BLOCK_BYTES).max(first)
}

impl<M: Medium> Core<M> {
    /// Applies `changes`. Fails before anything changed where the payload does not fit; a failure
    /// of the medium leaves the state half changed and the brick must stop.
    pub(crate) fn apply(
        &mut self,
        changes: &[Change],
        payload: &Bytes,
        mut mode: Mode<'_>,
    ) -> Result<Applied, BrickError> {
        let mut source = Source { payload, at: 0 };
        let mut applied = Applied::default();
        for change in changes {
            let recorded = match &mut mode {
                Mode::Live { .. } => None,
                Mode::Replay { steps, .. } => Some(steps.next().unwrap_or_default()),
            };
            let step = match change {
                Change::Put { key, value } => {
                    self.layers.active.put(key, Some(value));
                    self.dirty.mark_key(self.tracking, key);
                    Step::default()
                }
                Change::Delete { key } => {
                    self.layers.active.put(key, None);
                    self.dirty.mark_key(self.tracking, key);
                    Step::default()
                }
                Change::Write {
                    object,
                    offset,
                    len,
                } => {
                    let range = (*object, *offset, u64::from(*len));
                    self.write(range, &mut source, recorded, &mut mode, &mut applied)?
                }
                Change::Truncate { object, size } => self.truncate(*object, *size, recorded)?,
                Change::Zero {
                    object,
                    offset,
                    len,
                } => self.zero(*object, *offset, *len, recorded)?,
                Change::Drop { object } => self.drop_object(*object)?,
            };
            applied.steps.push(step);
        }
        Ok(applied)
    }

    fn write(
        &mut self,
        (object, offset, len): (ObjectId, u64, u64),
        source: &mut Source<'_>,
        recorded: Option<Step>,
        mode: &mut Mode<'_>,
        applied: &mut Applied,
    ) -> Result<Step, BrickError> {
        let touched = blocks_touched(offset, len);
        self.dirty
            .mark_blocks(self.tracking, object, touched.clone());
        let middle = whole_blocks(offset, len);
        let direct = match (&recorded, &*mode) {
            (Some(step), _) => step.direct,
            (None, Mode::Live { lsn, stable }) => {
                (middle.end - middle.start) * BLOCK_BYTES >= self.large_write_bytes
                    && self.may_write_directly(object, middle.clone(), (*lsn, *stable))?
            }
            (None, Mode::Replay { .. }) => false,
        };
        let entry = self.layers.object_mut(object)?;
        let info = entry.info.get_or_insert_with(Info::new);
        let end = offset + len;
        if info.form == Form::Inline && end <= INLINE_BYTES_MAX {
            applied.journaled.push(source.at..source.at + len as usize);
            let data = source.take(len)?;
            self.write_inline(object, offset, &data)?;
            return Ok(Step::default());
        }
        self.promote(object)?;
        self.grow(object, end)?;
        let mut sums = recorded.map(|step| step.sums.into_iter());
        let mut new_sums = Vec::new();
        if !direct {
            applied.journaled.push(source.at..source.at + len as usize);
            let data = source.take(len)?;
            self.write_blocks(object, offset, &data, &mut sums, &mut new_sums)?;
            return Ok(Step::new(direct, new_sums));
        }
        let (middle_start, middle_end) = (middle.start * BLOCK_BYTES, middle.end * BLOCK_BYTES);
        let head = middle_start - offset;
        if head > 0 {
            applied.journaled.push(source.at..source.at + head as usize);
            let data = source.take(head)?;
            self.write_blocks(object, offset, &data, &mut sums, &mut new_sums)?;
        }
        match mode {
            Mode::Live { lsn, .. } => {
                let start = source.at;
                let data = source.take(middle_end - middle_start)?;
                if !self.write_direct(object, middle.clone(), &data, *lsn, &mut new_sums)? {
                    // No room in the file: the journal has some.
                    applied.journaled.push(start..source.at);
                    self.write_blocks(object, middle_start, &data, &mut None, &mut new_sums)?;
                    let tail = source.take(end - middle_end)?;
                    applied.journaled.push(source.at - tail.len()..source.at);
                    self.write_blocks(object, middle_end, &tail, &mut None, &mut new_sums)?;
                    return Ok(Step::new(false, new_sums));
                }
            }
            Mode::Replay { direct, .. } => {
                for block in middle.clone() {
                    let sum = sums.as_mut().and_then(Iterator::next).unwrap_or(0);
                    self.set_file_block(object, block, sum)?;
                }
                direct(object, middle.clone());
            }
        }
        if middle_end < end {
            applied
                .journaled
                .push(source.at..source.at + (end - middle_end) as usize);
            let data = source.take(end - middle_end)?;
            self.write_blocks(object, middle_end, &data, &mut sums, &mut new_sums)?;
        }
        Ok(Step::new(direct, new_sums))
    }

    /// Whether whole blocks may go into the object's file before their record is stable.
    fn may_write_directly(
        &mut self,
        object: ObjectId,
        blocks: Range<u64>,
        (lsn, stable): (Lsn, Lsn),
    ) -> Result<bool, BrickError> {
        let info = self.layers.info(object)?.unwrap_or_else(Info::new);
        let layers = [Some(&self.layers.active), self.layers.frozen.as_deref()];
        let layers = layers.into_iter().flatten();
        for over in layers.filter_map(|layer| layer.objects.get(&object)) {
            // What the checkpoint does to the file later must not meet these bytes.
            if over.hides_below || over.punch.overlaps(blocks.clone()) {
                self.checkpoint_wanted = true;
                return Ok(false);
            }
            // Nor may a replay lay an older small write over what a lost large one left.
            if over.blocks.range(blocks.clone()).next().is_some() {
                return Ok(false);
            }
        }
        // What a point needs is kept by a checkpoint, before it writes what the journal got now.
        if let Some(keeping) = &self.keeping
            && !keeping.may_change(object, blocks.clone())?
        {
            return Ok(false);
        }
        // An object that stands in the store has a file in no state that a crash may lead back to.
        let old_end = match info.form {
            Form::Inline => 0,
            Form::File => info.high_end.div_ceil(BLOCK_BYTES),
        };
        if !self.is_active(object, blocks.start..blocks.end.min(old_end), (lsn, stable)) {
            return Ok(false);
        }
        let open = || -> std::io::Result<bool> {
            let file = self.files.get_or_make(object)?;
            // What a lost write left past the end must not come back: a checkpoint cuts it first.
            Ok(self.medium.len(&file)? <= old_end * BLOCK_BYTES)
        };
        let clean = match open() {
            Ok(clean) => clean,
            Err(error) => {
                let fault = IoFault::new("open an object's file", &error);
                if fault.is_no_space() {
                    return Ok(false);
                }
                return Err(BrickError::Failed(fault));
            }
        };
        if !clean {
            let entry = self.layers.object_mut(object)?;
            entry.punch.insert(old_end..u64::MAX);
            self.checkpoint_wanted = true;
        }
        Ok(clean)
    }

    /// Whether all extents of `blocks` are durably active; asks for those that are not.
    fn is_active(
        &mut self,
        object: ObjectId,
        blocks: Range<u64>,
        (lsn, stable): (Lsn, Lsn),
    ) -> bool {
        if blocks.is_empty() {
            return true;
        }
        let mut active = true;
        let extents = blocks.start / BLOCKS_PER_EXTENT..blocks.end.div_ceil(BLOCKS_PER_EXTENT);
        for extent in extents.clone() {
            match self.activity.state(object, extent, stable) {
                Activity::Active => self.activity.touch(object, extent, lsn),
                Activity::Soon => active = false,
                Activity::Absent => {
                    self.activate.push((object, extent));
                    active = false;
                }
            }
        }
        // A stream that reaches the second half of an extent will want the next one.
        let last = extents.end - 1;
        let past_half = blocks.end - last * BLOCKS_PER_EXTENT > BLOCKS_PER_EXTENT / 2;
        if past_half
            && self.unsynced.continues(object, blocks.start * BLOCK_BYTES)
            && self.activity.state(object, last + 1, stable) == Activity::Absent
        {
            self.activate.push((object, last + 1));
        }
        active
    }

    /// Writes whole blocks into the file. False where the file system has no room.
    fn write_direct(
        &mut self,
        object: ObjectId,
        blocks: Range<u64>,
        data: &Bytes,
        lsn: Lsn,
        sums: &mut Vec<u32>,
    ) -> Result<bool, BrickError> {
        let write = || {
            let file = self.files.get_or_make(object)?;
            self.medium
                .write_at(&file, blocks.start * BLOCK_BYTES, data)
        };
        if let Err(error) = write() {
            let fault = IoFault::new("write an object's file", &error);
            if fault.is_no_space() {
                // Some of it may have been written; the blocks get their content from the journal.
                self.checkpoint_wanted = true;
                return Ok(false);
            }
            return Err(BrickError::Failed(fault));
        }
        for (block, content) in blocks.clone().zip(data.chunks(BLOCK)) {
            let sum = block_sum(content);
            self.set_file_block(object, block, sum)?;
            sums.push(sum);
        }
        let bytes = data.len() as u64;
        self.unsynced
            .wrote(object, blocks.start * BLOCK_BYTES, bytes, lsn);
        Ok(true)
    }

    /// The block's content is what stands in the file, with this checksum.
    fn set_file_block(&mut self, object: ObjectId, block: u64, sum: u32) -> Result<(), BrickError> {
        if let Some(entry) = self.layers.active.objects.get_mut(&object) {
            entry.blocks.remove(&block);
        }
        self.set_sum(object, block, sum)
    }

    pub(crate) fn set_sum(
        &mut self,
        object: ObjectId,
        block: u64,
        sum: u32,
    ) -> Result<(), BrickError> {
        let old = self.layers.set_sum(object, block, sum)?;
        let change = i64::from(sum != 0) - i64::from(old != 0);
        self.change_allocated(object, change)
    }

    fn change_allocated(&mut self, object: ObjectId, change: i64) -> Result<(), BrickError> {
        if change != 0 {
            let entry = self.layers.object_mut(object)?;
            if let Some(info) = &mut entry.info {
                info.allocated = info.allocated.saturating_add_signed(change);
            }
            self.used_blocks = self.used_blocks.saturating_add_signed(change);
        }
        Ok(())
    }

    /// Gives blocks new content, through the overlay. `recorded` are the checksums that a replay
    /// knows from the journal; new ones are added to `sums`.
    fn write_blocks(
        &mut self,
        object: ObjectId,
        offset: u64,
        data: &Bytes,
        recorded: &mut Option<std::vec::IntoIter<u32>>,
        sums: &mut Vec<u32>,
    ) -> Result<(), BrickError> {
        let mut at = 0_usize;
        while at < data.len() {
            let position = offset + at as u64;
            let (block, inside) = (position / BLOCK_BYTES, (position % BLOCK_BYTES) as usize);
            let part = (data.len() - at).min(BLOCK - inside);
            let recorded_sum = recorded.as_mut().and_then(Iterator::next);
            let new = &data[at..at + part];
            let (content, whole) = if part == BLOCK {
                (Bytes::copy_from_slice(new), true)
            } else {
                let (base, whole) = self.base(object, block, recorded.is_some())?;
                let mut content = BytesMut::from(&base[..]);
                content[inside..inside + part].copy_from_slice(new);
                (content.freeze(), whole)
            };
            sums.push(self.put_block(object, block, content, whole, recorded_sum)?);
            at += part;
        }
        Ok(())
    }

    /// A block's present content for a partial change, and whether it can be trusted. A replay
    /// does not check it: a file may be ahead of the checkpoint in exactly the bytes that the
    /// journal writes again, and the recorded checksum of the result tells.
    fn base(
        &mut self,
        object: ObjectId,
        block: u64,
        replay: bool,
    ) -> Result<(Bytes, bool), BrickError> {
        let sum = self.layers.sum(object, block)?;
        if sum == 0 {
            return Ok((Bytes::from_static(&[0; BLOCK]), true));
        }
        if let Some(content) = self.layers.pending(object, block) {
            let content = content.clone();
            let whole = replay || block_sum(&content) == sum;
            return Ok((content, whole));
        }
        let mut content = vec![0; BLOCK];
        let read = self.files.get(object).and_then(|file| match file {
            Some(file) => self
                .medium
                .read_at(&file, block * BLOCK_BYTES, &mut content)
                .map(drop),
            None => Ok(()),
        });
        let whole = read.is_ok() && (replay || block_sum(&content) == sum);
        if !whole {
            self.note_corrupt(object, block);
        }
        Ok((Bytes::from(content), whole))
    }

    pub(crate) fn note_corrupt(&mut self, object: ObjectId, block: u64) {
        if self.corrupt_found.len() < CORRUPT_FOUND_MAX {
            self.corrupt_found.push((object, block));
        }
    }

    fn put_block(
        &mut self,
        object: ObjectId,
        block: u64,
        content: Bytes,
        whole: bool,
        recorded: Option<u32>,
    ) -> Result<u32, BrickError> {
        let sum = recorded.unwrap_or_else(|| {
            if whole {
                block_sum(&content)
            } else {
                broken_sum(&content)
            }
        });
        let entry = self.layers.object_mut(object)?;
        let mut grown = 0;
        if sum == 0 {
            entry.blocks.remove(&block);
            entry.punch.insert(block..block + 1);
            grown += 48;
        } else if entry.blocks.insert(block, content).is_none() {
            grown += BLOCK + 64;
        }
        self.layers.active.charge(grown);
        self.set_sum(object, block, sum)?;
        Ok(sum)
    }

    fn write_inline(
        &mut self,
        object: ObjectId,
        offset: u64,
        data: &[u8],
    ) -> Result<(), BrickError> {
        let entry = self.layers.object_mut(object)?;
        let end = offset as usize + data.len();
        let mut bytes = BytesMut::from(entry.inline.as_deref().unwrap_or_default());
        let old = bytes.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset as usize..end].copy_from_slice(data);
        let (new, sum) = (bytes.len(), block_sum(&bytes));
        entry.inline = Some(bytes.freeze());
        self.layers.active.charge(new - old);
        self.grow(object, end as u64)?;
        self.settle_inline(object, sum)
    }

    /// An inline object has one block, or none if it is all zero.
    fn settle_inline(&mut self, object: ObjectId, sum: u32) -> Result<(), BrickError> {
        let entry = self.layers.object_mut(object)?;
        let old = entry.info.map_or(0, |info| info.allocated);
        self.change_allocated(object, i64::from(sum != 0) - old as i64)
    }

    fn grow(&mut self, object: ObjectId, end: u64) -> Result<(), BrickError> {
        let entry = self.layers.object_mut(object)?;
        if let Some(info) = &mut entry.info {
            info.data_end = info.data_end.max(end);
            info.high_end = info.high_end.max(info.data_end);
        }
        Ok(())
    }

    /// An object whose bytes stood in the store gets blocks.
    fn promote(&mut self, object: ObjectId) -> Result<(), BrickError> {
        let entry = self.layers.object_mut(object)?;
        let Some(info) = entry.info.as_mut().filter(|info| info.form == Form::Inline) else {
            return Ok(());
        };
        info.form = Form::File;
        let bytes = entry.inline.take().unwrap_or_default();
        let old = std::mem::take(&mut info.allocated);
        self.used_blocks = self.used_blocks.saturating_sub(old);
        if bytes.iter().any(|byte| *byte != 0) {
            let mut content = BytesMut::from(&bytes[..]);
            content.resize(BLOCK, 0);
            self.put_block(object, 0, content.freeze(), true, None)?;
        }
        Ok(())
    }

    fn truncate(
        &mut self,
        object: ObjectId,
        size: u64,
        recorded: Option<Step>,
    ) -> Result<Step, BrickError> {
        let Some(info) = self
            .layers
            .info(object)?
            .filter(|info| info.data_end > size)
        else {
            return Ok(Step::default());
        };
        let step = self.zero(object, size, info.data_end - size, recorded)?;
        let entry = self.layers.object_mut(object)?;
        if let Some(info) = &mut entry.info {
            info.data_end = size;
        }
        if let Some(bytes) = &mut entry.inline {
            bytes.truncate(size as usize);
        }
        if info.form == Form::File {
            // The file is cut, so that it holds nothing past its end.
            entry.punch.insert(size.div_ceil(BLOCK_BYTES)..u64::MAX);
        }
        Ok(step)
    }

    fn zero(
        &mut self,
        object: ObjectId,
        offset: u64,
        len: u64,
        recorded: Option<Step>,
    ) -> Result<Step, BrickError> {
        let Some(info) = self.layers.info(object)? else {
            return Ok(Step::default());
        };
        let mut step = self.zero_range(object, info, (offset, len), recorded)?;
        step.old_end = Some(info.data_end);
        Ok(step)
    }

    fn zero_range(
        &mut self,
        object: ObjectId,
        info: Info,
        (offset, len): (u64, u64),
        recorded: Option<Step>,
    ) -> Result<Step, BrickError> {
        let end = offset.saturating_add(len).min(info.data_end);
        if offset >= end {
            return Ok(Step::default());
        }
        self.dirty
            .mark_blocks(self.tracking, object, blocks_touched(offset, end - offset));
        if info.form == Form::Inline {
            self.zero_inline(object, offset as usize..end as usize)?;
            return Ok(Step::default());
        }
        // Bytes past the data's end are zero already: its last block counts as whole.
        let blocks_end = if end == info.data_end {
            end.div_ceil(BLOCK_BYTES)
        } else {
            end / BLOCK_BYTES
        };
        let first = offset.div_ceil(BLOCK_BYTES);
        let mut sums = recorded.map(|step| step.sums.into_iter());
        let mut new_sums = Vec::new();
        if first > blocks_end {
            // Inside one block.
            self.zero_part(object, offset..end, &mut sums, &mut new_sums)?;
            return Ok(Step::new(false, new_sums));
        }
        if offset < first * BLOCK_BYTES {
            let part = offset..(first * BLOCK_BYTES).min(end);
            self.zero_part(object, part, &mut sums, &mut new_sums)?;
        }
        self.zero_blocks(object, first..blocks_end)?;
        if blocks_end * BLOCK_BYTES < end {
            let part = blocks_end * BLOCK_BYTES..end;
            self.zero_part(object, part, &mut sums, &mut new_sums)?;
        }
        Ok(Step::new(false, new_sums))
    }

    fn zero_inline(&mut self, object: ObjectId, part: Range<usize>) -> Result<(), BrickError> {
        let entry = self.layers.object_mut(object)?;
        let mut bytes = BytesMut::from(entry.inline.as_deref().unwrap_or_default());
        let part = part.start.min(bytes.len())..part.end.min(bytes.len());
        bytes[part].fill(0);
        let sum = block_sum(&bytes);
        entry.inline = Some(bytes.freeze());
        self.settle_inline(object, sum)
    }

    /// Zeros inside one block.
    fn zero_part(
        &mut self,
        object: ObjectId,
        part: Range<u64>,
        recorded: &mut Option<std::vec::IntoIter<u32>>,
        sums: &mut Vec<u32>,
    ) -> Result<(), BrickError> {
        if self.layers.sum(object, part.start / BLOCK_BYTES)? == 0 {
            return Ok(());
        }
        let zeros = Bytes::from(vec![0; (part.end - part.start) as usize]);
        self.write_blocks(object, part.start, &zeros, recorded, sums)
    }

    fn zero_blocks(&mut self, object: ObjectId, blocks: Range<u64>) -> Result<(), BrickError> {
        if blocks.is_empty() {
            return Ok(());
        }
        let entry = self.layers.object_mut(object)?;
        entry.punch.insert(blocks.clone());
        let gone: Vec<u64> = entry
            .blocks
            .range(blocks.clone())
            .map(|(b, _)| *b)
            .collect();
        for block in gone {
            entry.blocks.remove(&block);
        }
        let extents = blocks.start.div_ceil(BLOCKS_PER_EXTENT)..blocks.end / BLOCKS_PER_EXTENT;
        if extents.start >= extents.end {
            return self.clear_sums(object, blocks);
        }
        self.clear_sums(object, blocks.start..extents.start * BLOCKS_PER_EXTENT)?;
        let freed = self.layers.clear_extents(object, extents.clone())?;
        self.change_allocated(object, -(freed as i64))?;
        self.clear_sums(object, extents.end * BLOCKS_PER_EXTENT..blocks.end)
    }

    fn clear_sums(&mut self, object: ObjectId, blocks: Range<u64>) -> Result<(), BrickError> {
        for block in blocks {
            if self.layers.sum(object, block)? != 0 {
                self.set_sum(object, block, 0)?;
            }
        }
        Ok(())
    }

    fn drop_object(&mut self, object: ObjectId) -> Result<Step, BrickError> {
        self.dirty.mark_dropped(self.tracking, object);
        let Some(info) = self.layers.info(object)? else {
            return Ok(Step::default());
        };
        self.used_blocks = self.used_blocks.saturating_sub(info.allocated);
        self.freed_blocks += match info.form {
            Form::Inline => 0,
            Form::File => info.high_end.div_ceil(BLOCK_BYTES),
        };
        // What was written directly stays without a sync: until the drop is stable, a crash may
        // lead back to it.
        self.files.forget(object);
        let entry = self.layers.object_mut(object)?;
        *entry = crate::overlay::ObjectOverlay {
            hides_below: true,
            ..Default::default()
        };
        Ok(Step::default())
    }
}

impl From<IoFault> for BrickError {
    fn from(fault: IoFault) -> Self {
        Self::Read(ReadError::Io(fault))
    }
}
