//! Making, opening and recovering a brick.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::Bytes;
use protocol::ids::{BrickId, PoolId, VolumeId};
use protocol::mistakes::{Mistake, made};
use protocol::record::{Change, Record};
use protocol::units::{BLOCK_BYTES, BLOCKS_PER_EXTENT, ObjectId, Sequence};
use protocol::volume::REPLICAS_MAX;

use super::checkpoint::CheckpointState;
use super::flush::Flushes;
use super::records::changes_of;
use super::state::StateRow;
use super::{Brick, Options, Position};
use crate::activity::ActivityLog;
use crate::apply::{Core, Mode};
use crate::dirty::{DirtyItem, DirtyMaps, SUSPECT};
use crate::error::{BrickError, CreateError, IoFault, OpenError, ReadError};
use crate::journal::frame::{Frame, FrameKind, LocalOp, Lsn};
use crate::journal::{
    Journal, JournalStart, first_segment_bytes, make_segment, record_sequence, replay,
};
use crate::layout::{FORMAT_WITHOUT_POINTS, JOURNAL, LOCK, OBJECTS, STORE};
use crate::medium::Medium;
use crate::points::PointId;
use crate::ranges::RangeSet;
use crate::store::{self, Store};
use crate::sum::{BLOCK, block_sum};
use crate::superblock::{BrickIdentity, Superblock, read_superblock, write_superblock};
use crate::unsynced::Marks;

/// Whose brick is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// The pool.
    pub pool: PoolId,
    /// The volume.
    pub volume: VolumeId,
    /// The brick.
    pub brick: BrickId,
}

/// What opening a brick found and did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RecoveryReport {
    /// The brick was closed in order.
    pub was_clean: bool,
    /// Records that were replayed.
    pub replayed_records: u64,
    /// Frames that were replayed, the brick's own included.
    pub replayed_frames: u64,
    /// Blocks of large writes without a sync that were taken as they were found.
    pub accepted_blocks: u64,
    /// Those blocks, as byte ranges, with the ones of earlier recoveries that nobody settled: what
    /// the order says about them is not what stands there. They must be taken from another replica,
    /// or be accepted by it; then call [`Brick::clear_suspects`].
    pub suspect: Vec<(ObjectId, Range<u64>)>,
    /// Records that changed suspect bytes, as far as the journal tells: what earlier ones had put
    /// there is not missing.
    pub last_writes: Vec<LastWrite>,
}

/// See [`RecoveryReport::last_writes`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastWrite {
    /// The object.
    pub object: ObjectId,
    /// Bytes of it.
    pub range: Range<u64>,
    /// The record.
    pub sequence: Sequence,
}

/// Whole blocks of a large write.
struct Direct {
    lsn: Lsn,
    /// Its record's; `None`: a resync put it there.
    sequence: Option<Sequence>,
    blocks: Range<u64>,
}

/// What a replay collects.
#[derive(Default)]
struct Replay {
    report: RecoveryReport,
    position: Position,
    floor: (Sequence, Lsn),
    /// Whole blocks of direct writes that no sync is known for.
    direct: BTreeMap<ObjectId, Vec<Direct>>,
    /// Objects with blocks that an earlier recovery left suspect.
    doubtful: BTreeSet<ObjectId>,
}

fn open_fault(op: &'static str) -> impl Fn(std::io::Error) -> IoFault {
    move |error| IoFault::new(op, &error)
}

fn damaged(_: protocol::codec::DecodeError) -> OpenError {
    OpenError::Damaged { what: JOURNAL }
}

impl<M: Medium> Brick<M> {
    /// Makes a brick on an empty medium. Waits; durable on return. A medium that holds one already
    /// is refused and left as it is.
    pub fn create(
        medium: &M,
        identity: BrickIdentity,
        state: Bytes,
        options: &Options,
    ) -> Result<(), CreateError> {
        match read_superblock(medium) {
            Ok(found) => {
                return Err(CreateError::AlreadyBrick {
                    pool: found.identity.pool,
                    volume: found.identity.spec.id,
                    name: found.identity.spec.name,
                });
            }
            Err(OpenError::NotABrick { .. }) => {}
            // The first superblock was never whole: the making was interrupted before its end.
            Err(OpenError::Damaged { .. }) => {}
            Err(other) => return Err(CreateError::UnreadableBrick(Box::new(other))),
        }
        let superblock = Superblock {
            format: FORMAT_WITHOUT_POINTS,
            number: 1,
            identity,
            state,
            deleted: false,
            clean: true,
        };
        superblock.encode()?;
        let lock = medium
            .lock(LOCK)
            .map_err(open_fault("make the lock file"))?;
        if lock.is_none() {
            return Err(CreateError::InUse);
        }
        let make = || -> std::io::Result<()> {
            medium.make_dir(JOURNAL)?;
            medium.make_dir(OBJECTS)?;
            // What an interrupted making left.
            medium.unlink(STORE)?;
            make_segment(medium, 0, first_segment_bytes(options.journal)).map(drop)
        };
        make().map_err(open_fault("make the brick's directories"))?;
        store::create(medium, &StateRow::default().encode())?;
        medium
            .sync_dir("")
            .map_err(open_fault("sync the brick's directory"))?;
        // Last: without it there is no brick.
        Ok(write_superblock(medium, &superblock, true)?)
    }

    /// Opens a brick and recovers it: replays what the journal holds past the last checkpoint, and
    /// ends with a checkpoint. Waits. A refusal changes nothing.
    pub fn open(
        medium: M,
        expected: Option<Expected>,
        options: Options,
    ) -> Result<(Self, RecoveryReport), OpenError> {
        check_superblock(&medium, expected)?;
        let lock = match medium.lock(LOCK) {
            Ok(Some(lock)) => lock,
            Ok(None) => return Err(OpenError::InUse),
            Err(error) if error.kind() == std::io::ErrorKind::ReadOnlyFilesystem => {
                return Err(OpenError::ReadOnly);
            }
            Err(error) => return Err(IoFault::new("lock the brick", &error).into()),
        };
        // Another process may have written it between the first look and the lock.
        let superblock = check_superblock(&medium, expected)?;
        if !superblock.clean {
            // After a kill the page cache is ahead of the disk. What recovery builds on must not
            // vanish in a later power cut while what it built stays.
            medium
                .sync_all()
                .map_err(open_fault("sync the file system"))?;
        }
        let (mut brick, report) = Self::recover(medium, superblock, options, Some(lock))?;
        if report.was_clean {
            // What was written after the last checkpoint of a process that ended in order.
            brick
                .journal
                .sync_all()
                .map_err(open_fault("sync the journal"))?;
        }
        if made(Mistake::ForgetsMarksOnRestart) {
            for replica in 0..8 {
                brick.clear_all_dirty(replica)?;
            }
        }
        let format = brick.format_needed();
        brick.change_superblock(|superblock| {
            superblock.clean = false;
            superblock.format = format;
        })?;
        brick.checkpoint_now()?;
        brick.settle_points()?;
        brick.events.clear();
        Ok((brick, report))
    }

    /// Opens a brick for reading without changing a byte of it; what the journal holds is replayed
    /// in memory. In the middle of going back to a point it shows the point. Takes no lock: nobody may write it meanwhile, which the caller must know.
    pub fn open_read_only(medium: M) -> Result<(Self, RecoveryReport), OpenError> {
        let superblock = read_superblock(&medium)?;
        let room = medium
            .room()
            .map_err(open_fault("ask for the file system's room"))?;
        let (brick, report) = Self::recover(medium, superblock, Options::for_room(room), None)?;
        Ok((brick.where_it_goes(), report))
    }

    fn recover(
        medium: M,
        superblock: Superblock,
        options: Options,
        lock: Option<M::File>,
    ) -> Result<(Self, RecoveryReport), OpenError> {
        let read_only = lock.is_none();
        let store = Store::open(&medium, read_only)?;
        let row =
            StateRow::decode(store.state()?).map_err(|_| OpenError::Damaged { what: STORE })?;
        let mut dirty = DirtyMaps::default();
        store.each_dirty_row(&mut |key, value| dirty.load_row(key, value))?;
        let mut activity = ActivityLog::default();
        activity.apply(&row.active, &[], row.place.lsn);
        let (points, next_point) = store.points()?;
        let mut core = Core {
            dirty,
            tracking: row.tracking,
            activity,
            used_blocks: row.used_blocks,
            ..Core::new(medium.clone(), store, &options, read_only)
        };
        let mut collected = Replay {
            position: row.position,
            floor: row.floor,
            doubtful: core
                .dirty
                .next(SUSPECT, None, usize::MAX)
                .iter()
                .filter_map(|item| match item {
                    DirtyItem::Blocks { object, .. } => Some(*object),
                    _ => None,
                })
                .collect(),
            ..Replay::default()
        };
        collected.report.was_clean = superblock.clean;
        let replayed = replay(
            &medium,
            superblock.identity.brick,
            row.place,
            &mut |frame, _| collected.frame(&mut core, &frame),
        )?;
        settle_suspects(&mut core, &mut collected)?;
        let epoch = row.epoch.max(replayed.end.epoch) + 1;
        let journal = Journal::new(JournalStart {
            medium: medium.clone(),
            brick: superblock.identity.brick,
            epoch,
            sizes: options.journal,
            end: replayed.end,
            segments: replayed.segments,
            free: replayed.free,
            floor: collected.floor,
        });
        let position = collected.position;
        let mut brick = Self::over((medium, options), core, journal, superblock, position);
        brick.checkpointed = row.position.sequence;
        brick.read_only = read_only;
        brick.lock = lock;
        brick.points = points;
        brick.next_point = next_point;
        brick.keep_for_points();
        Ok((brick, collected.report))
    }

    /// For reading, at a place in the order, with nothing under way.
    pub(super) fn over(
        (medium, options): (M, Options),
        core: Core<M>,
        journal: Journal<M>,
        superblock: Superblock,
        position: Position,
    ) -> Self {
        Self {
            medium,
            options,
            core,
            journal,
            superblock,
            read_only: true,
            position,
            stable: position.sequence,
            journal_stable: position.sequence,
            checkpointed: position.sequence,
            marks: Marks::default(),
            flushes: Flushes::new(),
            checkpoint: CheckpointState::default(),
            tasks: Default::default(),
            next_token: 0,
            events: Default::default(),
            unprepared: Default::default(),
            failed: None,
            throttled: false,
            direct_bytes: 0,
            owed: None,
            marked_late: [None; REPLICAS_MAX],
            marked_before: Sequence::ZERO,
            can_mark: true,
            points: Vec::new(),
            next_point: PointId(1),
            point_changes: Default::default(),
            lock: None,
        }
    }
}

fn check_superblock<M: Medium>(
    medium: &M,
    expected: Option<Expected>,
) -> Result<Superblock, OpenError> {
    let found = read_superblock(medium)?;
    if let Some(expected) = expected {
        let identity = &found.identity;
        let same = identity.pool == expected.pool
            && identity.spec.id == expected.volume
            && identity.brick == expected.brick;
        if !same {
            return Err(OpenError::Foreign {
                pool: expected.pool,
                volume: expected.volume,
                brick: expected.brick,
                found_pool: identity.pool,
                found_volume: identity.spec.id,
                found_brick: identity.brick,
            });
        }
    }
    if found.deleted {
        return Err(OpenError::Deleted {
            volume: found.identity.spec.id,
        });
    }
    Ok(found)
}

impl Replay {
    fn frame<M: Medium>(&mut self, core: &mut Core<M>, frame: &Frame) -> Result<(), OpenError> {
        self.report.replayed_frames += 1;
        if frame.kind == FrameKind::Local {
            let op = LocalOp::decode(frame.meta.clone()).map_err(damaged)?;
            core.apply_local(&op, frame.lsn);
            match op {
                LocalOp::Synced { objects } => self.synced(&objects),
                LocalOp::Position {
                    sequence,
                    term,
                    generation,
                } => {
                    self.position = Position {
                        sequence,
                        term,
                        generation,
                    };
                    self.floor = (sequence, frame.lsn);
                }
                _ => {}
            }
            return Ok(());
        }
        let (record, changes, steps) = changes_of(frame)?;
        if made(Mistake::RecoversTooLittle) && self.report.replayed_records % 16 == 15 {
            self.report.replayed_records += 1;
            self.note_record(&record, frame);
            return Ok(());
        }
        let direct = &mut self.direct;
        let doubtful = &self.doubtful;
        let is_record = frame.kind == FrameKind::Record;
        let sequence = is_record.then(|| record_sequence(frame).unwrap_or(record.sequence));
        for (object, range) in changes.iter().filter_map(Change::data) {
            if let (Some(sequence), true) = (sequence, doubtful.contains(&object)) {
                self.report.last_writes.push(LastWrite {
                    object,
                    range,
                    sequence,
                });
            }
        }
        let mode = Mode::Replay {
            steps: steps.into_iter(),
            direct: &mut |object, blocks| {
                direct.entry(object).or_default().push(Direct {
                    lsn: frame.lsn,
                    sequence,
                    blocks,
                });
            },
        };
        core.apply(&changes, &frame.payload, mode)?;
        if frame.kind == FrameKind::Record {
            self.report.replayed_records += 1;
            self.note_record(&record, frame);
        }
        Ok(())
    }

    fn note_record(&mut self, record: &Record, frame: &Frame) {
        self.position = Position {
            sequence: record_sequence(frame).unwrap_or(record.sequence),
            term: record.term,
            generation: record.generation,
        };
    }

    /// The data that belongs into a block is not there. Blocks come in rising order.
    fn note_lost(&mut self, object: ObjectId, block: u64) {
        let mut list = self.direct.get(&object).into_iter().flatten();
        let last = list.rfind(|direct| direct.blocks.contains(&block));
        let Some(sequence) = last.and_then(|direct| direct.sequence) else {
            return;
        };
        let range = block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES;
        match self.report.last_writes.last_mut() {
            Some(lost)
                if (lost.object, lost.sequence, lost.range.end)
                    == (object, sequence, range.start) =>
            {
                lost.range.end = range.end;
            }
            _ => self.report.last_writes.push(LastWrite {
                object,
                range,
                sequence,
            }),
        }
    }

    fn synced(&mut self, objects: &[(ObjectId, Lsn)]) {
        for (object, upto) in objects {
            if let Some(list) = self.direct.get_mut(object) {
                list.retain(|direct| direct.lsn > *upto);
            }
        }
    }
}

/// Looks at every block that may have been lost or half written, and takes what it finds: blocks
/// of large writes that no sync is known for, and of active extents.
fn settle_suspects<M: Medium>(core: &mut Core<M>, replay: &mut Replay) -> Result<(), OpenError> {
    let mut suspects: BTreeMap<ObjectId, RangeSet> = BTreeMap::new();
    for (object, list) in &replay.direct {
        for direct in list {
            let ranges = suspects.entry(*object).or_default();
            ranges.insert(direct.blocks.clone());
        }
    }
    for (object, extent) in core.activity.list() {
        let blocks = extent * BLOCKS_PER_EXTENT..(extent + 1) * BLOCKS_PER_EXTENT;
        suspects.entry(object).or_default().insert(blocks);
    }
    for (object, ranges) in suspects {
        let Some(info) = core.layers.info(object)? else {
            continue;
        };
        let end = info.data_end.div_ceil(BLOCK_BYTES);
        let (mut accepted, mut zero) = (RangeSet::default(), RangeSet::default());
        for block in ranges.iter_within(0..end).flatten() {
            match accept_block(core, object, block)? {
                Found::Whole => {}
                Found::Zero => zero.insert(block..block + 1),
                Found::Accepted => {
                    accepted.insert(block..block + 1);
                    replay.note_lost(object, block);
                }
            }
        }
        if !zero.is_empty() {
            // What a lost write left in a hole must not show through a later one that is lost.
            let entry = core.layers.object_mut(object)?;
            zero.iter().for_each(|blocks| entry.punch.insert(blocks));
        }
        replay.report.accepted_blocks += accepted.total();
        for blocks in accepted.iter() {
            // Kept until someone settles them: this recovery's report may be lost with a crash.
            let item = DirtyItem::Blocks {
                object,
                start: blocks.start,
                end: blocks.end,
            };
            core.dirty.set(SUSPECT, &item, true);
        }
    }
    for item in core.dirty.next(SUSPECT, None, usize::MAX) {
        if let DirtyItem::Blocks { object, start, end } = item {
            let range = start * BLOCK_BYTES..end * BLOCK_BYTES;
            replay.report.suspect.push((object, range));
        }
    }
    // Damage found while replaying partial writes was looked at above, or shows when it is read.
    core.corrupt_found.clear();
    Ok(())
}

/// What stands in a block that may be lost or half written.
enum Found {
    /// What belongs there, or nothing readable.
    Whole,
    /// It should be zero; what the file holds there does not count.
    Zero,
    /// Something else, which counts from now on.
    Accepted,
}

/// Takes a block as it is if it does not match its checksum.
fn accept_block<M: Medium>(
    core: &mut Core<M>,
    object: ObjectId,
    block: u64,
) -> Result<Found, OpenError> {
    let sum = core.layers.sum(object, block)?;
    if sum == 0 {
        return Ok(Found::Zero);
    }
    let waiting = core.layers.pending(object, block).cloned();
    let content = match &waiting {
        Some(content) => content.clone(),
        None => {
            let mut content = vec![0; BLOCK];
            let read = core.files.get(object).and_then(|file| match file {
                Some(file) => core
                    .medium
                    .read_at(&file, block * BLOCK_BYTES, &mut content)
                    .map(drop),
                None => Ok(()),
            });
            if read.is_err() {
                // Unreadable: the checksum stays, and reads say so.
                return Ok(Found::Whole);
            }
            Bytes::from(content)
        }
    };
    let found = block_sum(&content);
    if found == sum {
        return Ok(Found::Whole);
    }
    core.accept(object, block, found)
        .map_err(|error| match error {
            BrickError::Read(error) => OpenError::Read(error),
            other => OpenError::Brick(other),
        })?;
    Ok(Found::Accepted)
}

impl<M: Medium> Core<M> {
    fn accept(&mut self, object: ObjectId, block: u64, sum: u32) -> Result<(), BrickError> {
        let entry = self.layers.object_mut(object)?;
        if sum == 0 {
            entry.blocks.remove(&block);
            entry.punch.insert(block..block + 1);
        }
        self.set_sum(object, block, sum)
    }
}

impl From<ReadError> for CreateError {
    fn from(error: ReadError) -> Self {
        Self::Brick(BrickError::Read(error))
    }
}
