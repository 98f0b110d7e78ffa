//! The journal: segments of frames, written in turn and used again.
//!
//! A frame is *pushed* when it stands in the page cache: a killed process loses nothing of it. It
//! is *stable* after the segments' sync. Frames are numbered without gaps for the whole life of the
//! brick, and each carries the brick's epoch, which rises with every opening for writing. Reading
//! follows numbers and never goes back to a lower epoch, so neither what an earlier use of a
//! segment left behind nor the remains of a lost tail are ever taken for a successor.

pub(crate) mod frame;
mod segment;

use std::collections::VecDeque;
use std::io;

use protocol::ids::BrickId;
use protocol::units::Sequence;

use crate::error::{BrickError, IoFault};
use crate::journal::frame::{Frame, FrameKind, Lsn};
use crate::layout::{FRAME_ALIGN, FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES, segment_path};
use crate::medium::{Medium, OpenMode};

pub(crate) use segment::{SegmentHeader, SegmentReader, list_segments};

/// Fewest segments.
pub(crate) const SEGMENTS_MIN: u64 = 4;

/// Where the frame after `lsn` stands, or would stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Place {
    /// The segment; 0 before the first.
    pub(crate) number: u64,
    /// Offset in its file.
    pub(crate) offset: u64,
    /// The last frame before.
    pub(crate) lsn: Lsn,
    /// Its epoch.
    pub(crate) epoch: u32,
}

#[derive(Debug)]
pub(crate) struct Segment<F> {
    pub(crate) slot: u32,
    pub(crate) file: F,
    pub(crate) len: u64,
    pub(crate) header: SegmentHeader,
    /// Bytes in use.
    pub(crate) end: u64,
}

#[derive(Debug)]
pub(crate) struct FreeSegment<F> {
    pub(crate) slot: u32,
    pub(crate) file: F,
    pub(crate) len: u64,
}

/// Where reading for catch-up stopped, so that the next call goes on there.
#[derive(Debug, Clone, Copy)]
struct ReadCursor {
    next: Sequence,
    number: u64,
    offset: u64,
    lsn: Lsn,
    epoch: u32,
}

#[derive(Debug)]
pub(crate) struct Journal<M: Medium> {
    medium: M,
    brick: BrickId,
    epoch: u32,
    /// Oldest first; the last one is written.
    segments: VecDeque<Segment<M::File>>,
    free: Vec<FreeSegment<M::File>>,
    next_slot: u32,
    segment_bytes: u64,
    total_bytes_max: u64,
    /// See [`Journal::limit_within`].
    limit_bytes: u64,
    /// Encoded and not pushed, beginning at `buffer_at` of the last segment.
    buffer: Vec<u8>,
    buffer_at: u64,
    next_lsn: Lsn,
    pushed: Lsn,
    stable: Lsn,
    /// Files with pushed frames that no sync was begun for; and the slot of the last of them.
    unsynced: Vec<M::File>,
    unsynced_last: Option<u32>,
    bytes_written: u64,
    /// Of these, in the page cache, and on stable storage.
    bytes_pushed: u64,
    bytes_stable: u64,
    /// Syncs under way: what each covers, and the bytes up to there.
    syncs: VecDeque<(Lsn, u64)>,
    /// A segment is being made beside.
    preparing: bool,
    /// None could be made since the last one was begun.
    none_made: bool,
    retain_from: Sequence,
    /// What is before this may leave although it is wanted: whoever lacks it has it marked.
    marked_before: Sequence,
    /// Everything up to this frame is checkpointed.
    checkpointed: Lsn,
    /// Records before this place belong to a history that was left.
    pub(crate) floor: (Sequence, Lsn),
    cursor: Option<ReadCursor>,
}

/// Sizes of a journal, from the file system's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalSizes {
    /// One segment.
    pub segment_bytes: u64,
    /// All that is kept where there is ample room. Less where there is not, at least four segments.
    pub total_bytes_max: u64,
}

impl JournalSizes {
    /// A sixteenth of the file system, at most 1 GiB, at least four segments.
    #[must_use]
    pub fn for_room(total_bytes: u64) -> Self {
        let total = (total_bytes / 16).min(1 << 30);
        let segment_bytes = if total >= 128 << 20 {
            16 << 20
        } else {
            4 << 20
        };
        Self {
            segment_bytes,
            total_bytes_max: total.max(segment_bytes * SEGMENTS_MIN),
        }
    }
}

/// Bytes of a new brick's first segment: one that holds little takes little room. Used again, it
/// grows to the size of the others.
pub(crate) fn first_segment_bytes(sizes: JournalSizes) -> u64 {
    sizes.segment_bytes / 16
}

/// Makes a segment's file: zero-written, so that later syncs have no metadata to write.
pub(crate) fn make_segment<M: Medium>(medium: &M, slot: u32, len: u64) -> io::Result<M::File> {
    const PART: usize = 1 << 20;
    let file = medium.open(&segment_path(slot), OpenMode::Create)?;
    let fill = || -> io::Result<()> {
        let zeros = vec![0; PART];
        let mut at = medium.len(&file)?;
        while at < len {
            let part = (len - at).min(PART as u64);
            medium.write_at(&file, at, &zeros[..usize::try_from(part).unwrap_or(PART)])?;
            at += part;
        }
        medium.sync(&file)?;
        medium.sync_dir(crate::layout::JOURNAL)
    };
    if let Err(error) = fill() {
        // Nobody counts what it takes. If it stays, the next opening finds it.
        let _ = medium.unlink(&segment_path(slot));
        return Err(error);
    }
    Ok(file)
}

fn fault(op: &'static str) -> impl Fn(io::Error) -> BrickError {
    move |error| BrickError::Failed(IoFault::new(op, &error))
}

/// What a journal is opened with.
pub(crate) struct JournalStart<M: Medium> {
    pub(crate) medium: M,
    pub(crate) brick: BrickId,
    pub(crate) epoch: u32,
    pub(crate) sizes: JournalSizes,
    /// After the last whole frame.
    pub(crate) end: Place,
    pub(crate) segments: VecDeque<Segment<M::File>>,
    pub(crate) free: Vec<FreeSegment<M::File>>,
    pub(crate) floor: (Sequence, Lsn),
}

impl<M: Medium> Journal<M> {
    pub(crate) fn new(start: JournalStart<M>) -> Self {
        let slots = start.segments.iter().map(|segment| segment.slot);
        let next_slot = slots
            .chain(start.free.iter().map(|free| free.slot))
            .max()
            .map_or(0, |slot| slot + 1);
        let segment_bytes = start.sizes.segment_bytes;
        let total_bytes_max = start.sizes.total_bytes_max;
        Self {
            medium: start.medium,
            brick: start.brick,
            epoch: start.epoch,
            next_slot,
            segment_bytes,
            total_bytes_max,
            limit_bytes: total_bytes_max.max(segment_bytes * SEGMENTS_MIN),
            buffer: Vec::new(),
            buffer_at: start.end.offset,
            next_lsn: start.end.lsn.next(),
            pushed: start.end.lsn,
            stable: start.end.lsn,
            unsynced: Vec::new(),
            unsynced_last: None,
            bytes_written: 0,
            bytes_pushed: 0,
            bytes_stable: 0,
            syncs: VecDeque::new(),
            preparing: false,
            none_made: false,
            retain_from: Sequence::ZERO,
            marked_before: Sequence::ZERO,
            checkpointed: start.end.lsn,
            floor: start.floor,
            cursor: None,
            segments: start.segments,
            free: start.free,
        }
    }

    /// Largest frame.
    pub(crate) fn frame_bytes_max(&self) -> u64 {
        self.segment_bytes - SEGMENT_HEADER_BYTES
    }
    pub(crate) fn last_lsn(&self) -> Lsn {
        Lsn(self.next_lsn.0 - 1)
    }
    pub(crate) fn stable_lsn(&self) -> Lsn {
        self.stable
    }
    pub(crate) fn has_unpushed(&self) -> bool {
        !self.buffer.is_empty()
    }
    /// Bytes of frames since the journal was opened.
    pub(crate) fn bytes_written(&self) -> u64 {
        self.bytes_written
    }
    /// Bytes of pushed frames that a power cut may take.
    pub(crate) fn unstable_bytes(&self) -> u64 {
        self.bytes_pushed - self.bytes_stable
    }
    /// Bytes that may be written between two checkpoints before room runs short.
    pub(crate) fn capacity(&self) -> u64 {
        self.limit_bytes
    }
    pub(crate) fn set_retain_from(&mut self, from: Sequence) {
        self.retain_from = from;
    }
    pub(crate) fn set_marked_before(&mut self, before: Sequence) {
        self.marked_before = self.marked_before.max(before);
    }
    /// The state is the one of `floor.0`, as of the frame `floor.1`: records before cannot be read
    /// any more, and those that come may have lower numbers, of which none was marked.
    pub(crate) fn begin_at(&mut self, floor: (Sequence, Lsn)) {
        self.floor = floor;
        self.marked_before = Sequence::ZERO;
    }

    /// What is before this may have to leave soon: the newest segments, with half of what may be
    /// kept, begin here.
    pub(crate) fn leaves_soon_before(&self) -> Sequence {
        let mut bytes = 0;
        let newest = self.segments.iter().rev().take_while(|segment| {
            bytes += segment.len;
            bytes <= self.limit_bytes / 2
        });
        newest.last().map_or(Sequence::ZERO, |s| s.header.first_seq)
    }
    pub(crate) fn set_checkpointed(&mut self, lsn: Lsn) {
        self.checkpointed = lsn;
    }

    /// Where the next frame will stand: what a checkpoint remembers.
    pub(crate) fn place(&self) -> Place {
        Place {
            number: self.segments.back().map_or(0, |s| s.header.number),
            offset: self.buffer_at + self.buffer.len() as u64,
            lsn: self.last_lsn(),
            epoch: self.epoch,
        }
    }

    /// Adds a frame to the buffer. `next_seq` is the sequence that the next record will have, or
    /// that this one has.
    pub(crate) fn append(
        &mut self,
        kind: FrameKind,
        next_seq: Sequence,
        (meta, aux, payload): (&[u8], &[u8], &[&[u8]]),
    ) -> Result<Lsn, BrickError> {
        let data: usize = payload.iter().map(|part| part.len()).sum();
        let bytes = (FRAME_HEADER_BYTES + meta.len() + aux.len() + data) as u64;
        if bytes > self.frame_bytes_max() {
            return Err(BrickError::TooLarge {
                bytes,
                max: self.frame_bytes_max(),
            });
        }
        let at = self.buffer_at + self.buffer.len() as u64;
        if self
            .segments
            .back()
            .is_none_or(|last| at + bytes > last.len)
        {
            self.push()?;
            self.roll(next_seq)?;
        }
        let lsn = self.next_lsn;
        Frame::encode(
            &mut self.buffer,
            (kind, self.epoch, lsn),
            meta,
            aux,
            payload,
        );
        let padded = (self.buffer.len() as u64).next_multiple_of(FRAME_ALIGN);
        self.buffer
            .resize(usize::try_from(padded).unwrap_or(self.buffer.len()), 0);
        self.bytes_written += bytes;
        self.next_lsn = lsn.next();
        Ok(lsn)
    }

    /// Writes the buffer into the page cache.
    pub(crate) fn push(&mut self) -> Result<(), BrickError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let Some(segment) = self.segments.back_mut() else {
            return Ok(());
        };
        // Padding may reach past the segment's end by less than the alignment.
        let room = usize::try_from(segment.len - self.buffer_at).unwrap_or(usize::MAX);
        let part = &self.buffer[..self.buffer.len().min(room)];
        self.medium
            .write_at(&segment.file, self.buffer_at, part)
            .map_err(fault("write the journal"))?;
        self.buffer_at += self.buffer.len() as u64;
        segment.end = self.buffer_at.min(segment.len);
        if self.unsynced_last != Some(segment.slot) {
            self.unsynced.push(segment.file.clone());
            self.unsynced_last = Some(segment.slot);
        }
        self.pushed = self.last_lsn();
        self.bytes_pushed = self.bytes_written;
        // A rare large frame must not hold its memory for ever.
        self.buffer.clear();
        self.buffer.shrink_to(1 << 20);
        Ok(())
    }

    /// Pushed frames are not all stable.
    pub(crate) fn needs_sync(&self) -> bool {
        self.pushed > self.stable
    }

    /// Files with pushed frames that no sync was begun for.
    pub(crate) fn unsynced_files(&self) -> Vec<M::File> {
        self.unsynced.clone()
    }

    /// Files to sync for everything pushed to be stable, those of a sync under way included.
    pub(crate) fn unstable_files(&self, under_way: Vec<M::File>) -> Vec<M::File> {
        let mut files = under_way;
        files.extend(self.unsynced.iter().cloned());
        files
    }

    /// Syncs every segment, whoever wrote it. Waits.
    pub(crate) fn sync_all(&self) -> io::Result<()> {
        let mut segments = self.segments.iter();
        segments.try_for_each(|segment| self.medium.sync(&segment.file))
    }

    /// What must be synced for everything pushed to be stable.
    pub(crate) fn begin_sync(&mut self) -> (Vec<M::File>, Lsn) {
        self.unsynced_last = None;
        self.syncs.push_back((self.pushed, self.bytes_pushed));
        (std::mem::take(&mut self.unsynced), self.pushed)
    }

    pub(crate) fn synced(&mut self, upto: Lsn) {
        self.stable = self.stable.max(upto);
        while let Some((_, bytes)) = self.syncs.pop_front_if(|(lsn, _)| *lsn <= self.stable) {
            self.bytes_stable = bytes;
        }
        if !self.needs_sync() {
            self.bytes_stable = self.bytes_pushed;
        }
    }

    fn lens(&self) -> impl Iterator<Item = u64> {
        let free = self.free.iter().map(|free| free.len);
        self.segments.iter().map(|segment| segment.len).chain(free)
    }

    /// Bytes that its files take.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.lens().sum()
    }

    /// Bytes that its files will take once each has its full size, with the one being made.
    fn full_bytes(&self) -> u64 {
        let full: u64 = self.lens().map(|len| len.max(self.segment_bytes)).sum();
        full + self.segment_bytes * u64::from(self.preparing)
    }

    /// What the journal may come to hold of `room` bytes, its own files among them: a quarter, or
    /// what it has already, within its sizes. While the room only shrinks, this does not rise.
    fn limit_within(&self, room: u64) -> u64 {
        let least = self.segment_bytes * SEGMENTS_MIN;
        let most = self.total_bytes_max.max(least);
        let share = (room / 4).max(self.full_bytes()).clamp(least, most);
        share.next_multiple_of(self.segment_bytes)
    }

    /// What of `room` bytes, its own files among them, nobody else may have.
    pub(crate) fn claim_within(&self, room: u64) -> u64 {
        self.limit_within(room).max(self.full_bytes())
    }

    /// There is room for so much, its own files among them.
    pub(crate) fn set_room(&mut self, room: u64) {
        self.limit_bytes = self.limit_within(room);
    }

    fn may_grow(&self) -> bool {
        !self.none_made && self.full_bytes() + self.segment_bytes <= self.limit_bytes
    }

    /// Nothing can follow the last segment, which is half full: whether there is room for another
    /// should be found out.
    pub(crate) fn needs_another(&self) -> bool {
        let last = self.segments.back().map_or(0, |segment| segment.len);
        self.buffer_at > last / 2
            && !self.preparing
            && self.free.is_empty()
            && !self.oldest_is_free()
    }

    /// The last segment is filled to so many quarters, no other may be made to follow it, and a
    /// checkpoint would free the oldest, if it can have marked what somebody lacks.
    pub(crate) fn is_short(&self, quarters: u64, can_mark: bool) -> bool {
        let (Some(last), Some(second)) = (self.segments.back(), self.segments.get(1)) else {
            return false;
        };
        let at = self.buffer_at + self.buffer.len() as u64;
        let none_follows = at > last.len / 4 * quarters
            && self.free.is_empty()
            && !self.may_grow()
            && !self.oldest_is_free();
        let leaves = can_mark && second.header.first_seq <= self.leaves_soon_before();
        none_follows && (leaves || !self.is_wanted(second))
    }

    /// What the next segment begins after is wanted by somebody.
    fn is_wanted(&self, second: &Segment<M::File>) -> bool {
        // Before the floor nothing is read, whatever its numbers.
        second.header.first_lsn > self.floor.1 && second.header.first_seq > self.retain_from
    }

    /// Whether the oldest segment may be used again. Its successor must be stable: if both were
    /// lost, nothing would follow the checkpoint.
    fn oldest_is_free(&self) -> bool {
        let Some(second) = self.segments.get(1) else {
            return false;
        };
        let needed = second.header.first_lsn.0 > self.checkpointed.0 + 1
            || second.header.first_lsn > self.stable;
        let marked = second.header.first_seq <= self.marked_before;
        !needed && (!self.is_wanted(second) || (marked && !self.may_grow()))
    }

    fn roll(&mut self, next_seq: Sequence) -> Result<(), BrickError> {
        let mut next = if let Some(free) = self.free.pop() {
            free
        } else if self.oldest_is_free()
            && let Some(oldest) = self.segments.pop_front()
        {
            FreeSegment {
                slot: oldest.slot,
                file: oldest.file,
                len: oldest.len,
            }
        } else {
            // Nothing was prepared: a file without zeros will do, at slower syncs.
            let slot = self.take_slot();
            let make = || -> io::Result<M::File> {
                let file = self.medium.open(&segment_path(slot), OpenMode::Create)?;
                self.medium.allocate(&file, self.segment_bytes)?;
                self.medium.sync_dir(crate::layout::JOURNAL)?;
                Ok(file)
            };
            FreeSegment {
                slot,
                file: make().map_err(fault("make a journal segment"))?,
                len: self.segment_bytes,
            }
        };
        if next.len < self.segment_bytes {
            self.medium
                .allocate(&next.file, self.segment_bytes)
                .map_err(fault("make a journal segment larger"))?;
            next.len = self.segment_bytes;
        }
        self.none_made = false;
        let header = SegmentHeader {
            number: self.segments.back().map_or(0, |last| last.header.number) + 1,
            first_lsn: self.next_lsn,
            first_seq: next_seq,
            epoch: self.epoch,
            brick: self.brick,
        };
        self.buffer = header.encode();
        self.buffer_at = 0;
        self.segments.push_back(Segment {
            slot: next.slot,
            file: next.file,
            len: next.len,
            header,
            end: 0,
        });
        Ok(())
    }

    pub(crate) fn take_slot(&mut self) -> u32 {
        let slot = self.next_slot;
        self.next_slot += 1;
        slot
    }

    /// The slot and length of a segment that should be made ahead: when the last one is half full
    /// and no other can follow it, within the limit; or there are fewer than the fewest.
    pub(crate) fn wants_segment(&mut self) -> Option<(u32, u64)> {
        let count = self.segments.len() + self.free.len();
        let last = self.segments.back().map_or(0, |segment| segment.len);
        let half = self.buffer_at > last / 2;
        // A journal that is used at all gets its fewest segments while there is room.
        let wanted = if (count as u64) < SEGMENTS_MIN {
            half || count > 1
        } else {
            self.needs_another() && self.may_grow()
        };
        if self.preparing || self.none_made || !wanted {
            return None;
        }
        self.preparing = true;
        Some((self.take_slot(), self.segment_bytes))
    }

    /// The segment that was wanted could not be made.
    pub(crate) fn made_none(&mut self) {
        self.preparing = false;
        self.none_made = true;
    }

    pub(crate) fn add_free(&mut self, slot: u32) -> io::Result<()> {
        self.preparing = false;
        let file = self.medium.open(&segment_path(slot), OpenMode::Write)?;
        let len = self.medium.len(&file)?;
        self.free.push(FreeSegment { slot, file, len });
        Ok(())
    }

    /// The first sequence that can be read.
    pub(crate) fn oldest_kept(&self) -> Option<Sequence> {
        let first = &self.segments.front()?.header;
        // Numbers of segments that begin before the floor may be of a history that was given up.
        Some(if first.first_lsn <= self.floor.1 {
            self.floor.0.next()
        } else {
            first.first_seq
        })
    }

    /// About how many bytes of frames stand at and after `from`.
    pub(crate) fn bytes_from(&self, from: Sequence, next: Sequence) -> u64 {
        let mut bytes = 0;
        let floor = self.floor_segment();
        let ends = self.segments.iter().skip(floor + 1);
        let ends = ends.map(|segment| segment.header.first_seq).chain([next]);
        for (segment, after) in self.segments.iter().skip(floor).zip(ends) {
            let (first, after) = (segment.header.first_seq.0, after.0);
            if after <= from.0 {
                continue;
            }
            let records = (after.saturating_sub(first)).max(1);
            let wanted = after - from.0.max(first).min(after);
            bytes += (u128::from(segment.end) * u128::from(wanted) / u128::from(records)) as u64;
        }
        bytes
    }

    /// Index of the segment that the floor is in; the first, where that one has left.
    fn floor_segment(&self) -> usize {
        let mut segments = self.segments.iter();
        segments
            .rposition(|segment| segment.header.first_lsn <= self.floor.1)
            .unwrap_or(0)
    }

    /// Index of the segment in which reading at `from` begins.
    fn segment_for(&self, from: Sequence) -> usize {
        let floor = self.floor_segment();
        (floor + 1..self.segments.len())
            .rev()
            .find(|&index| self.segments[index].header.first_seq <= from)
            .unwrap_or(floor)
    }

    /// Hands out pushed record frames with a sequence from `from` on, in order, until `take` says
    /// false. `Ok(false)`: the journal does not reach back so far, or is broken there.
    pub(crate) fn read_records(
        &mut self,
        from: Sequence,
        take: &mut dyn FnMut(Sequence, Frame) -> Result<bool, BrickError>,
    ) -> Result<bool, BrickError> {
        self.push()?;
        if self.oldest_kept().is_none_or(|oldest| from < oldest) {
            return Ok(false);
        }
        let mut index = self.segment_for(from);
        let mut at = ReadCursor {
            next: from,
            ..self.start_of(index)
        };
        if let Some(cursor) = self.cursor.filter(|cursor| cursor.next == from)
            && let Some(found) = self
                .segments
                .iter()
                .position(|s| s.header.number == cursor.number)
        {
            (index, at) = (found, cursor);
        }
        loop {
            let go_on = self.read_segment(index, &mut at, from, take)?;
            self.cursor = Some(at);
            match go_on {
                Some(true) if at.lsn < self.pushed => {}
                Some(_) => return Ok(true),
                None => return Ok(false),
            }
            index += 1;
            let follows = self.segments.get(index).is_some_and(|segment| {
                segment.header.first_lsn == at.lsn.next() && segment.header.epoch >= at.epoch
            });
            if !follows {
                return Ok(false);
            }
            at = ReadCursor {
                next: at.next,
                ..self.start_of(index)
            };
        }
    }

    fn start_of(&self, index: usize) -> ReadCursor {
        let header = &self.segments[index].header;
        ReadCursor {
            next: header.first_seq,
            number: header.number,
            offset: SEGMENT_HEADER_BYTES,
            lsn: Lsn(header.first_lsn.0 - 1),
            epoch: 0,
        }
    }

    /// Reads one segment from `at` on. `Some(true)`: its end was reached; `Some(false)`: `take` has
    /// enough; `None`: a record is missing.
    fn read_segment(
        &self,
        index: usize,
        at: &mut ReadCursor,
        from: Sequence,
        take: &mut dyn FnMut(Sequence, Frame) -> Result<bool, BrickError>,
    ) -> Result<Option<bool>, BrickError> {
        let segment = &self.segments[index];
        let mut reader = SegmentReader::new(&self.medium, &segment.file, segment.end);
        while at.lsn < self.pushed {
            let found = reader
                .frame_at(at.offset)
                .map_err(fault("read the journal"))?;
            let Some((frame, after)) = found else {
                break;
            };
            // The end of what was written here; older bytes follow.
            if frame.lsn != at.lsn.next() || frame.epoch < at.epoch {
                break;
            }
            (at.lsn, at.epoch) = (frame.lsn, frame.epoch);
            let (before, lsn) = (at.offset, frame.lsn);
            at.offset = after;
            let sequence = record_sequence(&frame).filter(|sequence| *sequence >= from);
            if let Some(sequence) = sequence.filter(|_| lsn > self.floor.1) {
                if sequence != at.next {
                    return Ok(None);
                }
                if !take(sequence, frame)? {
                    at.offset = before;
                    at.lsn = Lsn(lsn.0 - 1);
                    return Ok(Some(false));
                }
                at.next = sequence.next();
            }
        }
        Ok(Some(true))
    }
}

/// The sequence of a record's frame.
pub(crate) fn record_sequence(frame: &Frame) -> Option<Sequence> {
    let first = (frame.kind == FrameKind::Record).then(|| frame.meta.first_chunk::<8>())??;
    Some(Sequence(u64::from_le_bytes(*first)))
}

/// Reads the frames after `start` in order and returns the place after the last whole one, with
/// the chain of segments that lead there; the other segments are free.
pub(crate) fn replay<M: Medium>(
    medium: &M,
    brick: BrickId,
    start: Place,
    take: &mut dyn FnMut(Frame, Place) -> Result<(), crate::error::OpenError>,
) -> Result<Replayed<M::File>, crate::error::OpenError> {
    use crate::error::OpenError;
    let found = list_segments(medium, brick)?;
    let mut end = start;
    let follower = |end: Place| {
        let number = end.number + 1;
        found
            .iter()
            .filter_map(|(slot, _, _, header)| Some((*slot, (*header)?)))
            .filter(|(_, header)| {
                header.number == number
                    && header.first_lsn == end.lsn.next()
                    && header.epoch >= end.epoch
            })
            .max_by_key(|(_, header)| header.epoch)
    };
    let mut last = None;
    if start.number > 0 {
        // A lost tail may have left an older segment of the same number.
        let here = found
            .iter()
            .filter_map(|(slot, file, len, header)| Some((slot, file, len, (*header)?)))
            .filter(|(.., h)| {
                h.number == start.number
                    && h.first_lsn <= start.lsn.next()
                    && h.epoch <= start.epoch
            })
            .max_by_key(|(.., h)| h.epoch);
        match here {
            Some((slot, file, len, _)) => {
                read_segment(medium, (file, *len), &mut end, take)?;
                last = Some(*slot);
            }
            None if follower(start).is_some() => {}
            None => {
                return Err(OpenError::JournalMissing {
                    wanted: start.lsn.0 + 1,
                });
            }
        }
    }
    while let Some((slot, header)) = follower(end) {
        let Some((_, file, len, _)) = found.iter().find(|(s, ..)| *s == slot) else {
            break;
        };
        let mut next = Place {
            number: header.number,
            offset: SEGMENT_HEADER_BYTES,
            ..end
        };
        read_segment(medium, (file, *len), &mut next, take)?;
        end = next;
        last = Some(slot);
    }
    Ok(sort_out(found, end, last))
}

/// What [`replay`] found.
pub(crate) struct Replayed<F> {
    pub(crate) end: Place,
    pub(crate) segments: VecDeque<Segment<F>>,
    pub(crate) free: Vec<FreeSegment<F>>,
}

fn read_segment<M: Medium>(
    medium: &M,
    (file, len): (&M::File, u64),
    end: &mut Place,
    take: &mut dyn FnMut(Frame, Place) -> Result<(), crate::error::OpenError>,
) -> Result<(), crate::error::OpenError> {
    let mut reader = SegmentReader::new(medium, file, len);
    loop {
        let next = reader
            .frame_at(end.offset)
            .map_err(|error| IoFault::new("read the journal", &error))?;
        let Some((frame, after)) = next else {
            return Ok(());
        };
        if frame.lsn != end.lsn.next() || frame.epoch < end.epoch {
            return Ok(());
        }
        end.offset = after;
        end.lsn = frame.lsn;
        end.epoch = frame.epoch;
        take(frame, *end)?;
    }
}

/// Walks back from the last segment while numbers follow; the rest is free.
fn sort_out<F: Clone>(
    mut found: Vec<segment::Found<F>>,
    end: Place,
    last: Option<u32>,
) -> Replayed<F> {
    let mut segments = VecDeque::new();
    let mut wanted = last;
    while let Some(slot) = wanted.take() {
        let Some(index) = found.iter().position(|(s, ..)| *s == slot) else {
            break;
        };
        let (slot, file, len, header) = found.swap_remove(index);
        let Some(header) = header else {
            break;
        };
        let used = if segments.is_empty() { end.offset } else { len };
        segments.push_front(Segment {
            slot,
            file,
            len,
            header,
            end: used,
        });
        wanted = found
            .iter()
            .filter_map(|(s, _, _, h)| Some((*s, (*h)?)))
            .filter(|(_, h)| {
                // Not by sequences: they begin anew, lower, where a history was given up.
                h.number + 1 == header.number
                    && h.first_lsn < header.first_lsn
                    && h.epoch <= header.epoch
            })
            .max_by_key(|(_, h)| h.epoch)
            .map(|(s, _)| s);
    }
    let free = found
        .into_iter()
        .map(|(slot, file, len, _)| FreeSegment { slot, file, len })
        .collect();
    Replayed {
        end,
        segments,
        free,
    }
}
