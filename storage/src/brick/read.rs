//! Reading: from memory where it can, from files with every block checked.

use std::io;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use protocol::units::{BLOCK_BYTES, BLOCKS_PER_EXTENT, ObjectId, blocks_touched};

use super::{Brick, BrickEvent, Task};
use crate::apply::Core;
use crate::error::{IoFault, ReadError};
use crate::medium::{Medium, Op};
use crate::overlay::Form;
use crate::sum::{BLOCK, block_sum};

/// Most blocks read from a file at once.
const RUN_BLOCKS_MAX: u64 = 256;
/// Ranges remembered that could not be read for a change. What is forgotten is tried again.
const UNPREPARED_MAX: usize = 64;

/// Blocks of an object.
pub(super) type Blocks = (ObjectId, Range<u64>);

/// How a read began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadOutcome {
    /// Here it is: exactly as many bytes as asked for, zeros where nothing was written.
    Ready(Bytes),
    /// [`BrickEvent::ReadDone`] will bring it.
    Pending,
}

/// What [`Brick::seek`] looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeekFor {
    /// A byte that may not be zero.
    Data,
    /// A byte in a block that is zero, or the end.
    Hole,
}

/// A read that waits for the device.
#[derive(Debug)]
pub(super) struct PendingRead {
    token: u64,
    object: ObjectId,
    offset: u64,
    len: u64,
}

/// Why a read did not give bytes at once.
enum Miss {
    WouldWait(Range<u64>),
    Failed(ReadError),
}

impl From<ReadError> for Miss {
    fn from(error: ReadError) -> Self {
        Self::Failed(error)
    }
}

fn unreadable(object: ObjectId, blocks: &Range<u64>, error: &io::Error) -> ReadError {
    ReadError::Unreadable {
        object,
        block: blocks.start,
        count: blocks.end - blocks.start,
        source: IoFault::new("read an object's file", error),
    }
}

impl<M: Medium> Core<M> {
    /// The bytes of a range. `wait`: the device may be waited for.
    fn assemble(&self, object: ObjectId, offset: u64, len: u64, wait: bool) -> Result<Bytes, Miss> {
        let Some(info) = self.layers.info(object)? else {
            return Ok(Bytes::from(vec![0; len as usize]));
        };
        if info.form == Form::Inline {
            let bytes = self.layers.inline(object)?;
            let mut out = vec![0; len as usize];
            if let Some(from) = usize::try_from(offset).ok().filter(|at| *at < bytes.len()) {
                let part = (bytes.len() - from).min(out.len());
                out[..part].copy_from_slice(&bytes[from..from + part]);
            }
            return Ok(Bytes::from(out));
        }
        let blocks = blocks_touched(offset, len);
        let start = blocks.start * BLOCK_BYTES;
        let mut out = BytesMut::zeroed(((blocks.end - blocks.start) * BLOCK_BYTES) as usize);
        let mut at = blocks.start;
        while at < blocks.end {
            let extent = at / BLOCKS_PER_EXTENT;
            let end = blocks.end.min((extent + 1) * BLOCKS_PER_EXTENT);
            let sums = self.layers.sums(object, extent)?;
            let first = (at - blocks.start) as usize * BLOCK;
            let last = (end - blocks.start) as usize * BLOCK;
            self.fill(object, at..end, &sums, &mut out[first..last], wait)?;
            at = end;
        }
        let from = (offset - start) as usize;
        Ok(out.freeze().slice(from..from + len as usize))
    }

    /// Fills blocks of one extent; `out` is zero.
    fn fill(
        &self,
        object: ObjectId,
        blocks: Range<u64>,
        sums: &[u32],
        out: &mut [u8],
        wait: bool,
    ) -> Result<(), Miss> {
        let sum_of = |block: u64| {
            let at = (block % BLOCKS_PER_EXTENT) as usize;
            sums.get(at).copied().unwrap_or(0)
        };
        let place = |block: u64| (block - blocks.start) as usize * BLOCK;
        let mut at = blocks.start;
        while at < blocks.end {
            if sum_of(at) == 0 {
                at += 1;
                continue;
            }
            if let Some(content) = self.layers.pending(object, at) {
                if block_sum(content) != sum_of(at) {
                    return Err(ReadError::Corrupt { object, block: at }.into());
                }
                out[place(at)..place(at) + BLOCK].copy_from_slice(content);
                at += 1;
                continue;
            }
            let mut end = at + 1;
            while end < blocks.end.min(at + RUN_BLOCKS_MAX)
                && sum_of(end) != 0
                && self.layers.pending(object, end).is_none()
            {
                end += 1;
            }
            let part = &mut out[place(at)..place(end)];
            if let Some(kept) = &self.kept {
                let from = (at % BLOCKS_PER_EXTENT) as usize;
                kept.read(&self.medium, object, at..end, &sums[from..], part)?;
                at = end;
                continue;
            }
            self.read_run(object, at..end, part, wait)?;
            for (block, content) in (at..end).zip(part.chunks(BLOCK)) {
                if block_sum(content) != sum_of(block) {
                    return Err(ReadError::Corrupt { object, block }.into());
                }
            }
            at = end;
        }
        Ok(())
    }

    fn read_run(
        &self,
        object: ObjectId,
        blocks: Range<u64>,
        out: &mut [u8],
        wait: bool,
    ) -> Result<(), Miss> {
        let offset = blocks.start * BLOCK_BYTES;
        let mut read = || -> io::Result<bool> {
            let Some(file) = self.files.get(object)? else {
                return Ok(true);
            };
            if wait {
                self.medium.read_at(&file, offset, out).map(|_| true)
            } else {
                Ok(self.medium.read_cached(&file, offset, out)?.is_some())
            }
        };
        match read() {
            Ok(true) => Ok(()),
            Ok(false) => Err(Miss::WouldWait(blocks)),
            Err(error) => Err(unreadable(object, &blocks, &error).into()),
        }
    }

    /// As [`Core::assemble`], waiting for the device.
    pub(crate) fn read_now(
        &self,
        object: ObjectId,
        offset: u64,
        len: u64,
    ) -> Result<Bytes, ReadError> {
        match self.assemble(object, offset, len, true) {
            Ok(bytes) => Ok(bytes),
            Err(Miss::Failed(error)) => Err(error),
            Err(Miss::WouldWait(_)) => Err(ReadError::Io(IoFault {
                op: "read an object's file",
                kind: io::ErrorKind::WouldBlock,
                errno: None,
            })),
        }
    }
}

impl<M: Medium> Brick<M> {
    /// The value of a key. May wait for a page of the metadata store that is not in memory.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        self.core.layers.get(key)
    }

    /// Calls `take` with each key in `[from, to)` and its value, ascending, until it says false.
    pub fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        take: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), ReadError> {
        self.core.layers.scan(from, to, take)
    }

    /// Reads `len` bytes of an object at `offset`; at most 1 MiB is meant. What was never written
    /// reads as zeros. Never wrong bytes: a block that does not match its checksum is an error.
    pub fn read(
        &mut self,
        object: ObjectId,
        offset: u64,
        len: u32,
        token: u64,
    ) -> Result<ReadOutcome, ReadError> {
        let len = u64::from(len);
        match self.core.assemble(object, offset, len, false) {
            Ok(bytes) => Ok(ReadOutcome::Ready(bytes)),
            Err(Miss::Failed(error)) => {
                self.note_read_error(&error);
                Err(error)
            }
            Err(Miss::WouldWait(blocks)) => {
                let pending = PendingRead {
                    token,
                    object,
                    offset,
                    len,
                };
                // One fetch of everything from the first missing block: neighbours will miss too.
                let end = blocks_touched(offset, len).end;
                self.fetch(object, blocks.start..end, Task::Prefetch(pending))
                    .map(|()| ReadOutcome::Pending)
            }
        }
    }

    fn fetch(&mut self, object: ObjectId, blocks: Range<u64>, task: Task) -> Result<(), ReadError> {
        let file = self
            .core
            .files
            .get(object)
            .map_err(|error| unreadable(object, &blocks, &error))?;
        let token = self.token(task);
        match file {
            Some(file) => {
                let op = Op::Prefetch {
                    file,
                    offset: blocks.start * BLOCK_BYTES,
                    len: ((blocks.end - blocks.start) * BLOCK_BYTES) as usize,
                };
                self.medium.submit(op, token);
            }
            None => self.medium.submit(Op::Job(Box::new(|| Ok(()))), token),
        }
        Ok(())
    }

    pub(super) fn finish_read(&mut self, read: PendingRead, fetched: io::Result<()>) {
        // The pages are there now; what was written meanwhile counts, so everything is put
        // together anew, by the checksums of now.
        let result = match fetched {
            Ok(()) => self.core.read_now(read.object, read.offset, read.len),
            Err(error) => {
                let blocks = blocks_touched(read.offset, read.len);
                Err(unreadable(read.object, &blocks, &error))
            }
        };
        if let Err(error) = &result {
            self.note_read_error(error);
        }
        self.events.push_back(BrickEvent::ReadDone {
            token: read.token,
            result,
        });
    }

    fn note_read_error(&mut self, error: &ReadError) {
        if let ReadError::Corrupt { object, block } = error {
            self.core.note_corrupt(*object, *block);
        }
    }

    /// Reads, waiting for the device: for tools and for catch-up.
    pub fn read_now(&self, object: ObjectId, offset: u64, len: u32) -> Result<Bytes, ReadError> {
        self.core.read_now(object, offset, u64::from(len))
    }

    /// Brings in what a change of this range builds on: the blocks at its edges. `true`: nothing
    /// is missing. `false`: [`BrickEvent::Prepared`] will say when; to append before is correct and
    /// may wait for the device.
    pub fn prepare(
        &mut self,
        object: ObjectId,
        offset: u64,
        len: u64,
        token: u64,
    ) -> Result<bool, ReadError> {
        let end = offset.saturating_add(len);
        for edge in [offset, end] {
            if edge % BLOCK_BYTES == 0 {
                continue;
            }
            let block = edge / BLOCK_BYTES;
            let missed = self
                .core
                .assemble(object, block * BLOCK_BYTES, BLOCK_BYTES, false);
            if let Err(Miss::WouldWait(_)) = missed {
                // What cannot be read does not come to be at hand: the change finds out.
                let hopeless = |(of, blocks): &Blocks| *of == object && blocks.contains(&block);
                if self.unprepared.iter().any(hopeless) {
                    continue;
                }
                let blocks = block..(end / BLOCK_BYTES + 1).min(block + RUN_BLOCKS_MAX);
                let task = Task::Prepare(token, (object, blocks.clone()));
                self.fetch(object, blocks, task)?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What [`Brick::prepare`] asked for was read, or cannot be.
    pub(super) fn finish_prepare(&mut self, token: u64, blocks: Blocks, fetched: io::Result<()>) {
        if fetched.is_err() && !self.unprepared.contains(&blocks) {
            if self.unprepared.len() >= UNPREPARED_MAX {
                self.unprepared.pop_front();
            }
            self.unprepared.push_back(blocks);
        }
        self.events.push_back(BrickEvent::Prepared { token });
    }

    /// The first position at or after `offset` and before `size` that is data or a hole. For a hole
    /// the end `size` counts as one. `None` past the end, or where no data follows.
    pub fn seek(
        &self,
        object: ObjectId,
        offset: u64,
        what: SeekFor,
        size: u64,
    ) -> Result<Option<u64>, ReadError> {
        if offset >= size {
            return Ok(None);
        }
        let info = self.core.layers.info(object)?;
        let first = offset / BLOCK_BYTES;
        let end = size.div_ceil(BLOCK_BYTES);
        let is_inline = info.is_some_and(|info| info.form == Form::Inline);
        let wanted = what == SeekFor::Data;
        let clip = |block: u64| Some((block * BLOCK_BYTES).max(offset)).filter(|at| *at < size);
        if info.is_none() || is_inline {
            let has_data = info.is_some_and(|info| info.allocated > 0);
            return Ok(match (wanted, has_data && first == 0) {
                (true, true) | (false, false) => Some(offset),
                (true, false) => None,
                (false, true) => Some(clip(1).unwrap_or(size)),
            });
        }
        let layers = &self.core.layers;
        if wanted {
            let mut next = first / BLOCKS_PER_EXTENT;
            while let Some(extent) = layers.next_extent(object, next)? {
                if extent >= end.div_ceil(BLOCKS_PER_EXTENT) {
                    break;
                }
                next = extent + 1;
                let sums = layers.sums(object, extent)?;
                let base = extent * BLOCKS_PER_EXTENT;
                let from = first.saturating_sub(base) as usize;
                let found = (from..sums.len()).find(|at| sums[*at] != 0);
                if let Some(at) = found {
                    return Ok(clip(base + at as u64));
                }
            }
            return Ok(None);
        }
        let mut block = first;
        while block < end {
            let sums = layers.sums(object, block / BLOCKS_PER_EXTENT)?;
            let base = block / BLOCKS_PER_EXTENT * BLOCKS_PER_EXTENT;
            let from = (block - base) as usize;
            let hole = (from..BLOCKS_PER_EXTENT as usize)
                .find(|at| sums.get(*at).copied().unwrap_or(0) == 0);
            if let Some(at) = hole {
                return Ok(Some(clip(base + at as u64).unwrap_or(size)));
            }
            block = base + BLOCKS_PER_EXTENT;
        }
        Ok(Some(size))
    }

    /// Whether the object exists.
    pub fn exists(&self, object: ObjectId) -> Result<bool, ReadError> {
        Ok(self.core.layers.info(object)?.is_some())
    }

    /// Bytes of the object's blocks that are not all zero. The same on every replica.
    pub fn allocated_bytes(&self, object: ObjectId) -> Result<u64, ReadError> {
        let info = self.core.layers.info(object)?;
        Ok(info.map_or(0, |info| info.allocated * BLOCK_BYTES))
    }

    /// Where the object's data ends: every byte from here on is zero. 0 where there is no object.
    pub fn data_end(&self, object: ObjectId) -> Result<u64, ReadError> {
        let info = self.core.layers.info(object)?;
        Ok(info.map_or(0, |info| info.data_end))
    }

    /// Checksums of an extent's blocks as [`block_sum`] gives them; missing ones at the end are 0.
    pub fn block_sums(&self, object: ObjectId, extent: u64) -> Result<Vec<u32>, ReadError> {
        let info = self.core.layers.info(object)?;
        if info.is_some_and(|info| info.form == Form::Inline) {
            if extent > 0 {
                return Ok(Vec::new());
            }
            let sum = block_sum(&self.core.layers.inline(object)?);
            return Ok(if sum == 0 { Vec::new() } else { vec![sum] });
        }
        let mut sums = self.core.layers.sums(object, extent)?.to_vec();
        let used = sums
            .iter()
            .rposition(|sum| *sum != 0)
            .map_or(0, |at| at + 1);
        sums.truncate(used);
        Ok(sums)
    }

    /// Checks every row of the metadata store, for [`crate::offline::check`].
    pub(crate) fn check_rows(
        &self,
        report: &mut crate::offline::CheckReport,
    ) -> Result<(), ReadError> {
        let mut bad = Vec::new();
        report.rows = self
            .core
            .layers
            .store
            .check_rows(&mut |error| bad.push(error))?;
        report.findings.extend(bad.into_iter().map(Into::into));
        Ok(())
    }

    /// Objects after `after`, ascending, at most `max`.
    pub fn objects_after(
        &self,
        after: Option<ObjectId>,
        max: usize,
    ) -> Result<Vec<ObjectId>, ReadError> {
        self.core.layers.objects_after(after, max)
    }
}
