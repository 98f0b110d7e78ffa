//! The brick: one replica's local store.

mod checkpoint;
mod flush;
mod local;
mod points;
mod read;
mod records;
mod recovery;
mod state;

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use protocol::ids::GenerationId;
use protocol::mistakes::{Mistake, made};
use protocol::record::{Change, Record};
use protocol::units::{ObjectId, Sequence, Term};
use protocol::volume::REPLICAS_MAX;

use crate::apply::{Core, Mode};
use crate::error::{BrickError, IoFault, NoSpace, ReadError};
use crate::journal::frame::{Aux, FrameKind, LocalOp, Lsn};
use crate::journal::{Journal, JournalSizes};
use crate::medium::{Completion, Medium, Room};
use crate::overlay::Form;
use crate::points::{PointId, PointRow};
use crate::superblock::{BrickIdentity, Superblock, write_superblock};
use crate::unsynced::Marks;

pub use flush::{FlushId, FlushWhat};
pub use read::{ReadOutcome, SeekFor};
pub use records::CatchUp;
pub use recovery::{Expected, LastWrite, RecoveryReport};

use checkpoint::CheckpointState;
use flush::Flushes;
use read::PendingRead;

/// Where a brick's state stands in the primary's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// The last record that is applied.
    pub sequence: Sequence,
    /// Its term.
    pub term: Term,
    /// Its history.
    pub generation: GenerationId,
}

/// Sizes and limits, all in bytes. The defaults suit a file system of some GiB and more; see
/// [`Options::for_room`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Writes whose whole blocks come to this go into the object's file, once, instead of into the
    /// journal.
    pub large_write_bytes: u64,
    /// At most so many bytes, of large writes and of the journal, are without a sync; at half of it
    /// one begins.
    pub unsynced_bytes_max: u64,
    /// A checkpoint begins when so much waits in memory.
    pub overlay_bytes_checkpoint: usize,
    /// From here on the caller is asked to wait.
    pub overlay_bytes_max: usize,
    /// A checkpoint begins after so many bytes of large writes: they bound what a recovery reads.
    pub direct_bytes_checkpoint: u64,
    /// Kept free for checkpoints, truncations and dirty maps.
    pub reserve_bytes: u64,
    /// The journal's sizes.
    pub journal: JournalSizes,
}

impl Options {
    /// Sizes for a file system with this room.
    #[must_use]
    pub fn for_room(room: Room) -> Self {
        let journal = JournalSizes::for_room(room.total_bytes);
        let overlay = usize::try_from(room.total_bytes / 64)
            .unwrap_or(usize::MAX)
            .clamp(2 << 20, 32 << 20);
        Self {
            large_write_bytes: 64 << 10,
            unsynced_bytes_max: 64 << 20,
            overlay_bytes_checkpoint: overlay,
            overlay_bytes_max: overlay * 4,
            direct_bytes_checkpoint: 1 << 30,
            reserve_bytes: (room.total_bytes / 32).clamp(4 << 20, 512 << 20),
            journal,
        }
    }
}

/// Longest object: ext4's limit for a file with 4 KiB blocks, the smallest of the file systems that
/// bricks lie on (ext4(5), xfs(5), btrfs(5)).
pub const OBJECT_BYTES_MAX: u64 = (16 << 40) - 4096;

/// Whether the caller may go on at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Pace {
    /// Yes.
    Ready,
    /// The change is applied; the next ones should wait for [`BrickEvent::Unthrottled`].
    Throttle,
}

/// What [`Brick::poll`] reports.
#[derive(Debug)]
pub enum BrickEvent {
    /// What [`Brick::flush`] was asked for is on stable storage.
    Flushed(FlushId),
    /// A read that was pending is done.
    ReadDone {
        /// What the caller called it.
        token: u64,
        /// The bytes.
        result: Result<Bytes, ReadError>,
    },
    /// What [`Brick::prepare`] brings in is there.
    Prepared {
        /// What the caller called it.
        token: u64,
    },
    /// Changes may come again.
    Unthrottled,
    /// A checkpoint at this place in the order is durable.
    Checkpointed(Sequence),
    /// A block does not match its checksum: it reads as an error until it is written anew.
    Corrupt {
        /// The object.
        object: ObjectId,
        /// The block's index.
        block: u64,
    },
    /// There was no room to keep what a point of kind [`crate::PointKind::Resync`] needs: it is
    /// gone, and the brick goes on.
    PointLost(PointId),
    /// The brick stopped. Told once; what was asked for and not reported will not be.
    Failed(BrickError),
}

/// What a completion of the medium belongs to.
enum Task {
    JournalSync,
    /// With the directories that it covers.
    FileSync(ObjectId, Vec<(String, u64)>),
    CheckpointFiles,
    CheckpointStore,
    Prefetch(PendingRead),
    Prepare(u64, read::Blocks),
    Segment(u32),
    /// Files of points that are gone are removed.
    RemoveFiles,
}

/// One replica's local store. One thread drives it; no call waits for the device except those that
/// say so. Call [`Brick::poll`] after each batch of calls and whenever [`Brick::wake_fd`] is readable.
pub struct Brick<M: Medium> {
    medium: M,
    options: Options,
    core: Core<M>,
    journal: Journal<M>,
    superblock: Superblock,
    read_only: bool,
    position: Position,
    /// Everything up to here, large writes included, is on stable storage.
    stable: Sequence,
    /// Everything up to here is in the journal on stable storage.
    journal_stable: Sequence,
    checkpointed: Sequence,
    marks: Marks,
    flushes: Flushes<M>,
    checkpoint: CheckpointState,
    tasks: HashMap<u64, Task>,
    next_token: u64,
    events: VecDeque<BrickEvent>,
    /// What changes build on and the medium does not give.
    unprepared: VecDeque<read::Blocks>,
    failed: Option<BrickError>,
    throttled: bool,
    direct_bytes: u64,
    /// See [`Brick::owe`].
    owed: Option<[Option<Sequence>; REPLICAS_MAX]>,
    marked_late: [Option<Sequence>; REPLICAS_MAX],
    marked_before: Sequence,
    /// The last try to mark went well: a checkpoint may free what is owed.
    can_mark: bool,
    /// By rising id.
    points: Vec<PointRow>,
    next_point: PointId,
    /// To be made and dropped by the next checkpoint.
    point_changes: points::Changes,
    /// Dropped last: nobody else may open the brick before everything above is gone.
    lock: Option<M::File>,
}

impl<M: Medium> Brick<M> {
    /// Where the state stands: everything up to here survives the end of the process.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }
    /// The last record that is applied.
    #[must_use]
    pub fn applied(&self) -> Sequence {
        self.position.sequence
    }
    /// Every record up to here is on stable storage, the data of its large writes included.
    #[must_use]
    pub fn stable(&self) -> Sequence {
        self.stable
    }
    /// Every record up to here stands in the journal on stable storage; the data of large writes
    /// may still be lost.
    #[must_use]
    pub fn journal_stable(&self) -> Sequence {
        self.journal_stable
    }
    /// The last record of the last durable checkpoint.
    #[must_use]
    pub fn checkpointed(&self) -> Sequence {
        self.checkpointed
    }
    /// The first record that [`Brick::read_records`] can give.
    #[must_use]
    pub fn oldest_kept(&self) -> Sequence {
        let next = self.position.sequence.next();
        self.journal
            .oldest_kept()
            .map_or(next, |oldest| oldest.min(next))
    }
    /// The brick's file system ends a file here, at most.
    #[must_use]
    pub fn object_bytes_max(&self) -> u64 {
        OBJECT_BYTES_MAX
    }
    /// Whether data of large writes waits for a sync.
    #[must_use]
    pub fn has_unsynced_data(&self) -> bool {
        self.core.unsynced.bytes() > 0
    }
    /// Extents of the object that are not all zero, ascending.
    pub fn extents(&self, object: ObjectId) -> Result<Vec<u64>, ReadError> {
        let mut found = Vec::new();
        let mut from = 0;
        while let Some(extent) = self.next_extent(object, from)? {
            found.push(extent);
            from = extent + 1;
        }
        Ok(found)
    }

    /// The first extent of the object from `from` on that is not all zero. Holes cost nothing,
    /// however wide.
    pub fn next_extent(&self, object: ObjectId, from: u64) -> Result<Option<u64>, ReadError> {
        let layers = &self.core.layers;
        let Some(info) = layers.info(object)? else {
            return Ok(None);
        };
        if info.form == Form::Inline {
            return Ok(Some(0).filter(|extent| from <= *extent && info.allocated > 0));
        }
        let mut from = from;
        while let Some(extent) = layers.next_extent(object, from)? {
            if layers.sums(object, extent)?.iter().any(|sum| *sum != 0) {
                return Ok(Some(extent));
            }
            from = extent + 1;
        }
        Ok(None)
    }
    /// Who this is.
    #[must_use]
    pub fn identity(&self) -> &BrickIdentity {
        &self.superblock.identity
    }
    /// The replication layer's state, as it was last set.
    #[must_use]
    pub fn state(&self) -> &Bytes {
        &self.superblock.state
    }
    /// Bytes of blocks that are not all zero, over all objects.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.core.used_blocks * protocol::units::BLOCK_BYTES
    }
    /// Which medium this stands on, for status.
    #[must_use]
    pub fn medium_kind(&self) -> &'static str {
        self.medium.kind()
    }
    /// Why the brick stopped, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<&BrickError> {
        self.failed.as_ref()
    }
    /// Becomes readable when [`Brick::poll`] has something to do. `None`: poll in turns.
    #[must_use]
    pub fn wake_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.medium.wake_fd()
    }
    /// Waits until [`Brick::poll`] has something to do; for tools without an event loop.
    pub fn wait(&self) {
        if self.events.is_empty() {
            self.medium.wait();
        }
    }

    /// Replaces the replication layer's state. Waits; durable on return, and with it everything
    /// that was appended before: a state may rest on records and marks, never the reverse.
    pub fn set_state(&mut self, state: Bytes) -> Result<(), BrickError> {
        self.writable()?;
        let pushed = self.journal.push();
        pushed.map_err(|error| self.fail(error))?;
        for file in self.journal.unstable_files(self.flushes.journal_files()) {
            if let Err(error) = self.medium.sync(&file) {
                let fault = IoFault::new("sync the journal", &error);
                return Err(self.fail(BrickError::Failed(fault)));
            }
        }
        self.change_superblock(|superblock| superblock.state = state)
    }
    /// Replaces the volume's description. Waits; durable on return.
    pub fn set_spec(&mut self, spec: protocol::volume::VolumeSpec) -> Result<(), BrickError> {
        self.change_superblock(|superblock| superblock.identity.spec = spec)
    }
    /// Sets the brick's place in the volume's list of replicas. Waits; durable on return.
    pub fn set_replica(&mut self, replica: u8) -> Result<(), BrickError> {
        self.change_superblock(|superblock| superblock.identity.replica = replica)
    }
    /// Marks the brick as one of a deleted volume: it is not opened again. Waits; durable on return.
    pub fn set_deleted(&mut self) -> Result<(), BrickError> {
        self.change_superblock(|superblock| superblock.deleted = true)
    }

    fn change_superblock(
        &mut self,
        change: impl FnOnce(&mut Superblock),
    ) -> Result<(), BrickError> {
        self.writable()?;
        let mut next = self.superblock.clone();
        change(&mut next);
        next.number += 1;
        match write_superblock(&self.medium, &next, false) {
            Ok(()) => {
                self.superblock = next;
                Ok(())
            }
            Err(error @ BrickError::Failed(_)) => Err(self.fail(error)),
            Err(other) => Err(other),
        }
    }

    fn writable(&self) -> Result<(), BrickError> {
        match &self.failed {
            Some(error) => Err(error.clone()),
            None if self.read_only => Err(BrickError::ReadOnly),
            None => Ok(()),
        }
    }

    /// The brick stops: what the files hold after a failed write or sync is not known.
    fn fail(&mut self, error: BrickError) -> BrickError {
        let error = match error {
            BrickError::Failed(fault)
            | BrickError::Read(
                ReadError::Io(fault) | ReadError::Unreadable { source: fault, .. },
            ) => BrickError::Failed(fault),
            BrickError::Read(_) => BrickError::Failed(IoFault {
                op: "read what a change builds on",
                kind: std::io::ErrorKind::InvalidData,
                errno: None,
            }),
            other => other,
        };
        if self.failed.is_none() {
            tracing::error!(%error, "the brick stops");
            self.failed = Some(error.clone());
            self.events.push_back(BrickEvent::Failed(error.clone()));
        }
        error
    }

    /// Applies the next record. `dirty_mask` names the replicas that lack it: what it touches is
    /// marked dirty for them. The record survives the end of the process after the next
    /// [`Brick::push`], and a power cut after the next flush.
    ///
    /// A failure of the medium stops the brick.
    pub fn append(&mut self, record: &Record, dirty_mask: u8) -> Result<Pace, BrickError> {
        self.writable()?;
        let expected = self.position.sequence.next();
        if record.sequence != expected {
            return Err(BrickError::OutOfOrder {
                expected,
                found: record.sequence,
            });
        }
        let lsn = self.apply_and_journal(FrameKind::Record, record, dirty_mask)?;
        self.position = Position {
            sequence: record.sequence,
            term: record.term,
            generation: record.generation,
        };
        self.marks.add(lsn, record.sequence);
        self.activate_wanted()?;
        Ok(self.pace())
    }

    /// Applies changes that have no place in the order: what a resync target receives, or a repair.
    /// The record's sequence is ignored. Durability as for [`Brick::append`].
    pub fn apply_resync(&mut self, record: &Record, dirty_mask: u8) -> Result<Pace, BrickError> {
        self.writable()?;
        self.apply_and_journal(FrameKind::Resync, record, dirty_mask)?;
        self.activate_wanted()?;
        Ok(self.pace())
    }

    fn apply_and_journal(
        &mut self,
        kind: FrameKind,
        record: &Record,
        dirty_mask: u8,
    ) -> Result<Lsn, BrickError> {
        check_payload(record)?;
        let meta = record.encode_meta();
        // The journal must take the record whatever way its writes go.
        let blocks = record.payload.len() / 4096 + record.changes.len() * 2;
        let bytes =
            (meta.len() + record.payload.len() + blocks * 4 + record.changes.len() * 16) as u64;
        if bytes + 1024 > self.journal.frame_bytes_max() {
            return Err(BrickError::TooLarge {
                bytes,
                max: self.journal.frame_bytes_max(),
            });
        }
        if dirty_mask != self.core.tracking {
            self.local(LocalOp::Tracking { mask: dirty_mask })?;
        }
        let lsn = self.journal.last_lsn().next();
        let mode = Mode::Live {
            lsn,
            stable: self.journal.stable_lsn(),
        };
        let before = self.core.unsynced.bytes();
        let applied = self.core.apply(&record.changes, &record.payload, mode);
        let applied = applied.map_err(|error| self.fail(error))?;
        self.direct_bytes += self.core.unsynced.bytes().saturating_sub(before);
        let aux = Aux::encode(&applied.steps);
        let parts: Vec<&[u8]> = applied
            .journaled
            .iter()
            .map(|part| &record.payload[part.clone()])
            .collect();
        let next = self.position.sequence.next();
        let appended = self.journal.append(kind, next, (&meta, &aux, &parts));
        appended.map_err(|error| self.fail(error))
    }

    /// Writes what was appended into the page cache in one call: from here on it survives the end
    /// of the process. Begins a checkpoint or a sync where one is due.
    pub fn push(&mut self) -> Result<(), BrickError> {
        self.writable()?;
        let pushed = self.journal.push();
        pushed.map_err(|error| self.fail(error))?;
        self.keep_up();
        Ok(())
    }

    /// Whether the caller should wait for [`BrickEvent::Unthrottled`].
    #[must_use]
    pub fn is_throttled(&self) -> bool {
        self.throttled
    }

    /// Whether there is room for `bytes` more of data and metadata, besides the reserve. Ask before
    /// ordering a change; what was admitted does not fail for want of space.
    pub fn admit(&self, bytes: u64) -> Result<(), NoSpace> {
        let free_bytes = self.space().map_or(0, |space| space.free_bytes);
        if bytes > free_bytes {
            return Err(NoSpace {
                wanted_bytes: bytes,
                free_bytes,
            });
        }
        Ok(())
    }

    /// Room of the brick: what is free is what [`Brick::admit`] would admit.
    ///
    /// So much of records, small ones and large ones, can be appended and checkpointed without
    /// running out of space, each taken as its bytes and a block more, and whatever tail of the
    /// journal is owed to others: it grows within what is kept back for it here, and where that is
    /// used up the tail gives way. Others that use the file system may take the room first.
    pub fn space(&self) -> Result<Space, IoFault> {
        let room = self
            .medium
            .room()
            .map_err(|error| IoFault::new("ask for the file system's room", &error))?;
        let free_bytes = match made(Mistake::PromisesRoomTwice) {
            true => room.free_bytes,
            false => {
                let shared = self.shared_room(room);
                shared.saturating_sub(self.journal.claim_within(shared))
            }
        };
        Ok(Space {
            total_bytes: room.total_bytes,
            free_bytes,
            reserve_bytes: self.options.reserve_bytes,
        })
    }

    /// What the journal, which has its part of it already, shares with what is still to come: it
    /// stays the same as the journal grows.
    fn shared_room(&self, room: Room) -> u64 {
        // What waits in memory will need room too, and the store copies what it changes.
        let layers = &self.core.layers;
        let frozen = layers.frozen.as_ref().map_or(0, |frozen| frozen.bytes);
        let waiting = 2 * (layers.active.bytes + frozen) as u64;
        let all = room.free_bytes + self.journal.held_bytes();
        all.saturating_sub(self.options.reserve_bytes + waiting)
    }

    /// Tells the journal how much room there is now.
    fn measure_room(&mut self) {
        match self.medium.room() {
            Ok(room) => self.journal.set_room(self.shared_room(room)),
            Err(error) => tracing::warn!(%error, "the file system does not say its room"),
        }
    }

    /// Nothing may follow the journal's last segment, filled to so many quarters, before a
    /// checkpoint.
    fn journal_is_short(&self, quarters: u64) -> bool {
        let can_mark = self.owed.is_some() && self.can_mark;
        self.journal.is_short(quarters, can_mark)
    }

    /// Takes the ends of what was begun, does what is due, and reports. Never waits.
    pub fn poll(&mut self, events: &mut Vec<BrickEvent>) {
        let mut done = Vec::new();
        self.medium.poll(&mut done);
        for completion in done {
            self.complete(completion);
        }
        if self.failed.is_none() && !self.read_only {
            // What the completions appended joins the next push of records; alone it goes now.
            let pushed = self.journal.push();
            if let Err(error) = pushed {
                self.fail(error);
            } else {
                self.keep_up();
            }
        }
        for (object, block) in std::mem::take(&mut self.core.corrupt_found) {
            self.events.push_back(BrickEvent::Corrupt { object, block });
        }
        events.extend(self.events.drain(..));
    }

    /// Whether work is under way whose end [`Brick::poll`] will tell.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.tasks.is_empty()
    }

    fn complete(&mut self, completion: Completion) {
        let Completion { token, result } = completion;
        let Some(task) = self.tasks.remove(&token) else {
            return;
        };
        let outcome = match task {
            Task::Prefetch(read) => {
                self.finish_read(read, result);
                return;
            }
            Task::Prepare(token, blocks) => {
                self.finish_prepare(token, blocks, result);
                return;
            }
            _ if self.failed.is_some() => return,
            Task::Segment(slot) => {
                // Room for journal segments is a wish: without one the oldest serves.
                match result.and_then(|()| self.journal.add_free(slot)) {
                    Ok(()) => {}
                    Err(error) => {
                        tracing::warn!(%error, "no further journal segment was made");
                        self.journal.made_none();
                    }
                }
                Ok(())
            }
            Task::RemoveFiles => {
                // What is left goes at the next opening.
                if let Err(error) = result {
                    tracing::warn!(%error, "files of a dropped point were not removed");
                }
                Ok(())
            }
            Task::JournalSync => self.journal_synced(token, result),
            Task::FileSync(object, dirs) => self.file_synced((object, dirs), token, result),
            Task::CheckpointFiles => self.checkpoint_files_done(result),
            Task::CheckpointStore => self.checkpoint_store_done(result),
        };
        if let Err(error) = outcome {
            self.fail(error);
        }
    }

    fn token(&mut self, task: Task) -> u64 {
        self.next_token += 1;
        self.tasks.insert(self.next_token, task);
        self.next_token
    }

    /// Begins what is due: a sync, a checkpoint, a segment; and says when changes may come again.
    fn keep_up(&mut self) {
        if self.unsynced_bytes() >= self.options.unsynced_bytes_max / 2 {
            self.sync_uncovered();
            self.want_journal_sync();
        }
        self.flush_wanted();
        if self.journal.needs_another() {
            self.measure_room();
        }
        if self.checkpoint_is_due() {
            self.begin_checkpoint();
        }
        if let Some((slot, len)) = self.journal.wants_segment() {
            let medium = self.medium.clone();
            let token = self.token(Task::Segment(slot));
            let job = move || crate::journal::make_segment(&medium, slot, len).map(drop);
            self.medium
                .submit(crate::medium::Op::Job(Box::new(job)), token);
        }
        self.note_stable();
        if self.throttled && !self.is_over_limits() {
            self.throttled = false;
            self.events.push_back(BrickEvent::Unthrottled);
        }
    }

    /// Bytes that a power cut may take.
    fn unsynced_bytes(&self) -> u64 {
        self.core.unsynced.bytes() + self.journal.unstable_bytes()
    }

    fn is_over_limits(&self) -> bool {
        self.unsynced_bytes() >= self.options.unsynced_bytes_max
            || self.core.layers.active.bytes >= self.options.overlay_bytes_max
            || self.journal_since_checkpoint() >= self.journal.capacity() / 2
            || self.journal_is_short(3)
    }

    fn pace(&mut self) -> Pace {
        if self.is_over_limits() {
            self.throttled = true;
            Pace::Throttle
        } else {
            Pace::Ready
        }
    }

    fn note_stable(&mut self) {
        let journal = self.journal.stable_lsn();
        let all = match self.core.unsynced.first() {
            Some(first) => journal.min(Lsn(first.0 - 1)),
            None => journal,
        };
        if let Some(found) = self.marks.reached(all) {
            self.stable = found;
        }
        let journal_stable = self.marks.peek(journal).unwrap_or(self.stable);
        self.journal_stable = self.journal_stable.max(journal_stable).max(self.stable);
    }
}

/// Room of a brick, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// The file system's size.
    pub total_bytes: u64,
    /// What can be admitted.
    pub free_bytes: u64,
    /// What is kept back.
    pub reserve_bytes: u64,
}

/// The writes must use the payload up exactly.
fn check_payload(record: &Record) -> Result<(), BrickError> {
    let expected = record
        .changes
        .iter()
        .map(|change| match change {
            Change::Write { len, .. } => u64::from(*len),
            _ => 0,
        })
        .sum::<u64>();
    let found = record.payload.len() as u64;
    if expected != found {
        return Err(BrickError::Payload { expected, found });
    }
    Ok(())
}
