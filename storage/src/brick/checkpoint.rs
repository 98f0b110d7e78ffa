//! Checkpoints: the overlay goes into object files and the metadata store, beside the caller.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use protocol::units::{BLOCK_BYTES, ObjectId, Sequence};

use super::state::StateRow;
use super::{Brick, BrickEvent, Task};
use crate::error::{BrickError, IoFault};
use crate::files::DirtyDirs;
use crate::journal::frame::{LocalOp, Lsn};
use crate::layout::{object_dirs, object_path};
use crate::medium::{Medium, Op, OpenMode};
use crate::overlay::{Form, ObjectOverlay, Overlay};
use crate::points::PointId;
use crate::points::keep::Keeping;
use crate::store::saved::{Points, write_points};
use crate::store::{Batch, as_io, write_batch};
use crate::trickle::Trickle;

/// With more files than this one sync of everything is cheaper.
const SYNCS_MAX: usize = 16;
/// Freed space of so many bytes does not wait for another reason to checkpoint.
const FREED_BYTES_MAX: u64 = 64 << 20;
/// Longest write into an object's file.
const WRITE_BYTES_MAX: usize = 1 << 20;

#[derive(Default)]
pub(super) struct CheckpointState {
    running: Option<Running>,
    wanted: bool,
    /// The last frame of the one before the last.
    before_last: Lsn,
    last: Lsn,
    /// Bytes of the journal when the last one began.
    pub(super) journal_from: u64,
}

impl CheckpointState {
    /// What the one that is under way will have marked is of a history that was given up.
    pub(super) fn forget_marked_before(&mut self) {
        if let Some(running) = &mut self.running {
            running.marked_before = Sequence::ZERO;
        }
    }
}

struct Running {
    /// The points afterwards.
    points: super::points::After,
    lsn: Lsn,
    sequence: Sequence,
    unsynced: Vec<(ObjectId, Lsn, u64)>,
    batch: Option<Batch>,
    journal_from: u64,
    /// What is before this is marked for whoever lacks it.
    marked_before: Sequence,
}

/// What must be kept of files before they change.
struct KeepWork {
    keeping: Keeping,
    database: Arc<redb::Database>,
    /// Every point: what goes where there is no room.
    all: Vec<PointId>,
}

/// What the first half of a checkpoint needs, on whatever thread.
struct FilesWork<M: Medium> {
    medium: M,
    journal: Vec<M::File>,
    overlay: Arc<Overlay>,
    objects: Vec<ObjectId>,
    dirs: DirtyDirs,
    keep: Option<KeepWork>,
    /// Nobody else may open the brick while this is at work, even if its owner is gone.
    _lock: Option<M::File>,
}

impl<M: Medium> Brick<M> {
    pub(super) fn journal_since_checkpoint(&self) -> u64 {
        self.journal.bytes_written() - self.checkpoint.journal_from
    }

    pub(super) fn checkpoint_is_due(&mut self) -> bool {
        let wanted = self.checkpoint.wanted
            || std::mem::take(&mut self.core.checkpoint_wanted)
            || self.core.layers.active.bytes >= self.options.overlay_bytes_checkpoint
            || self.direct_bytes >= self.options.direct_bytes_checkpoint
            || self.journal_since_checkpoint() >= (self.journal.capacity() / 4).min(64 << 20)
            || (self.checkpoint.running.is_none() && self.journal_is_short(2));
        self.checkpoint.wanted = wanted;
        wanted && self.checkpoint.running.is_none()
    }

    /// Gives space back to the file system that was freed, if that is worth a checkpoint: files
    /// that were deleted go with one. Call about once a second.
    pub fn give_back(&mut self) {
        let freed_bytes = self.core.freed_blocks.saturating_mul(BLOCK_BYTES);
        let free_bytes = self.space().map_or(0, |space| space.free_bytes);
        let worth = freed_bytes >= FREED_BYTES_MAX.min(free_bytes / 8);
        if freed_bytes > 0 && worth && self.failed.is_none() && !self.read_only {
            self.checkpoint.wanted = true;
        }
    }

    /// Asks for a checkpoint; [`BrickEvent::Checkpointed`] reports it.
    pub fn checkpoint(&mut self) -> Result<(), BrickError> {
        self.writable()?;
        self.checkpoint.wanted = true;
        self.push()
    }

    pub(super) fn state_row(&self) -> StateRow {
        StateRow {
            place: self.journal.place(),
            epoch: self.journal.place().epoch,
            position: self.position,
            tracking: self.core.tracking,
            used_blocks: self.core.used_blocks,
            floor: self.journal.floor,
            active: self.core.activity.list(),
        }
    }

    /// Everything applied so far becomes the work of a checkpoint. The journal must be pushed.
    fn freeze(&mut self) -> FilesWork<M> {
        debug_assert!(!self.journal.has_unpushed());
        let state = self.state_row();
        let (points, after) = self.changes_to_points();
        let keep = self.core.keeping.clone().map(|keeping| KeepWork {
            keeping,
            database: self.core.layers.store.database(),
            all: self.points.iter().map(|row| row.id).collect(),
        });
        let overlay = self.core.layers.freeze();
        let unsynced = self.core.unsynced.snapshot();
        let mut journal = self.flushes.journal_files();
        journal.extend(self.journal.unsynced_files());
        let work = FilesWork {
            medium: self.medium.clone(),
            journal,
            overlay: Arc::clone(&overlay),
            objects: unsynced.iter().map(|(object, ..)| *object).collect(),
            dirs: self.core.files.dirty_dirs.clone(),
            keep,
            _lock: self.lock.clone(),
        };
        let journal_from = self.journal.bytes_written();
        self.checkpoint.wanted = false;
        self.checkpoint.journal_from = journal_from;
        self.direct_bytes = 0;
        self.core.freed_blocks = 0;
        self.checkpoint.running = Some(Running {
            points: after,
            lsn: state.place.lsn,
            sequence: self.position.sequence,
            unsynced,
            batch: Some(Batch {
                overlay,
                dirty: self.core.dirty.take_changed_rows(),
                state: state.encode().to_vec(),
                points,
            }),
            journal_from,
            marked_before: self.marked_before,
        });
        work
    }

    fn prepare_checkpoint(&mut self) -> Result<(), BrickError> {
        self.measure_room();
        // A segment of a history that was given up may begin with a higher number.
        let next = self.position.sequence.next();
        let before = self.journal.leaves_soon_before().min(next);
        if !self.read_only {
            let marked = self.mark_late(before)?;
            if marked {
                self.marked_before = before;
            }
            // Before anyone is owed anything nothing was tried.
            self.can_mark = marked || self.owed.is_none();
        }
        self.journal.push()
    }

    pub(super) fn begin_checkpoint(&mut self) {
        if let Err(error) = self.prepare_checkpoint() {
            self.fail(error);
            return;
        }
        let work = self.freeze();
        let token = self.token(Task::CheckpointFiles);
        let job = move || write_files(&work);
        self.medium.submit(Op::Job(Box::new(job)), token);
    }

    pub(super) fn checkpoint_files_done(
        &mut self,
        result: io::Result<()>,
    ) -> Result<(), BrickError> {
        result.map_err(|error| BrickError::Failed(IoFault::new("write a checkpoint", &error)))?;
        let Some(batch) = self.take_batch() else {
            return Ok(());
        };
        let database = self.core.layers.store.database();
        let token = self.token(Task::CheckpointStore);
        let lock = self.lock.clone();
        let job = move || {
            let result = write_batch(&database, &batch).map_err(as_io);
            drop(database);
            drop(lock);
            result
        };
        self.medium.submit(Op::Job(Box::new(job)), token);
        Ok(())
    }

    /// The second half's work, after the first.
    fn take_batch(&mut self) -> Option<Batch> {
        let lost = self.core.keeping.as_ref().is_some_and(Keeping::is_given_up);
        let running = self.checkpoint.running.as_mut()?;
        let mut batch = running.batch.take()?;
        if lost {
            // The first half found no room for them; they are gone from the store already.
            running.points.forget_old();
            batch.points.forget_old();
        }
        Some(batch)
    }

    pub(super) fn checkpoint_store_done(
        &mut self,
        result: io::Result<()>,
    ) -> Result<(), BrickError> {
        result.map_err(|error| {
            BrickError::Failed(IoFault::new("write the metadata store", &error))
        })?;
        self.finish_checkpoint()
    }

    fn finish_checkpoint(&mut self) -> Result<(), BrickError> {
        let Some(running) = self.checkpoint.running.take() else {
            return Ok(());
        };
        if let Some(frozen) = &self.core.layers.frozen {
            for (object, over) in &frozen.objects {
                if over.hides_below {
                    self.core.files.forget(*object);
                }
            }
        }
        self.core.layers.thaw().map_err(BrickError::Failed)?;
        self.points_changed(running.points);
        self.core.unsynced.checkpointed(&running.unsynced);
        self.journal.synced(running.lsn);
        self.journal.set_checkpointed(running.lsn);
        self.journal.set_marked_before(running.marked_before);
        self.checkpointed = running.sequence;
        debug_assert!(self.checkpoint.journal_from >= running.journal_from);
        self.events
            .push_back(BrickEvent::Checkpointed(running.sequence));
        // Extents that nobody writes to need not be read by a recovery.
        let settled = |object, lsn| self.core.unsynced.is_settled_upto(object, lsn);
        self.checkpoint.before_last = std::mem::replace(&mut self.checkpoint.last, running.lsn);
        let idle = self.checkpoint.before_last;
        let remove = self.core.activity.idle_since(idle, settled);
        if !remove.is_empty() && !self.read_only {
            let add = Vec::new();
            self.local(LocalOp::Activity { add, remove })?;
        }
        self.note_stable();
        self.answer_waiters();
        Ok(())
    }

    /// A checkpoint of everything, waiting for it. None may be under way.
    pub(super) fn checkpoint_now(&mut self) -> Result<(), BrickError> {
        self.prepare_checkpoint()?;
        let work = self.freeze();
        write_files(&work)
            .map_err(|error| BrickError::Failed(IoFault::new("write a checkpoint", &error)))?;
        if let Some(batch) = self.take_batch() {
            let database = self.core.layers.store.database();
            write_batch(&database, &batch).map_err(BrickError::Failed)?;
        }
        self.finish_checkpoint()
    }

    /// Waits for the end of a checkpoint that is under way. What happened meanwhile is told by the
    /// next [`Brick::poll`].
    pub(super) fn end_checkpoint(&mut self) -> Result<(), BrickError> {
        let mut events = Vec::new();
        while self.checkpoint.running.is_some() {
            self.medium.wait();
            self.poll(&mut events);
            if self.failed.is_some() {
                break;
            }
        }
        self.events.extend(events);
        self.writable()
    }

    /// Ends the use of the brick in order: everything is checkpointed and the superblock says so.
    /// Waits. Without this call nothing is lost, and the next opening replays the journal.
    pub fn close(mut self) -> Result<(), BrickError> {
        self.shut_down()
    }

    /// As [`Brick::close`]; the brick stays in its owner's hands, and takes no changes any more.
    pub fn shut_down(&mut self) -> Result<(), BrickError> {
        if self.read_only {
            return Ok(());
        }
        self.writable()?;
        self.end_checkpoint()?;
        self.checkpoint_now()?;
        self.change_superblock(|superblock| superblock.clean = true)
    }
}

/// The journal becomes stable, then the object files get their blocks, and become durable.
fn write_files<M: Medium>(work: &FilesWork<M>) -> io::Result<()> {
    for file in &work.journal {
        work.medium.sync(file)?;
    }
    if let Some(keep) = &work.keep {
        let give_up = || {
            let points = Points {
                removed: keep.all.clone(),
                ..Points::default()
            };
            write_points(&keep.database, &points).map_err(as_io)
        };
        keep.keeping.keep(&work.medium, &work.overlay, &give_up)?;
    }
    let mut unlinked = BTreeSet::new();
    let mut files = Vec::new();
    for (&object, over) in &work.overlay.objects {
        if over.hides_below {
            // Durably, or the old bytes could come back under an object that is made anew.
            work.medium.unlink(&object_path(object))?;
            let [_, inner] = object_dirs(object);
            unlinked.insert(inner);
        }
        let is_file = over.info.is_some_and(|info| info.form == Form::File);
        if is_file && let Some(file) = write_object(&work.medium, object, over, &work.dirs)? {
            files.push((object, file));
        }
    }
    for &object in &work.objects {
        if files.iter().any(|(found, _)| *found == object) {
            continue;
        }
        match work.medium.open(&object_path(object), OpenMode::Write) {
            Ok(file) => files.push((object, file)),
            // Dropped since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    // Listed only now: the brick's thread may have made one of these files meanwhile.
    let dirs = work.dirs.list();
    if files.len() + dirs.len() + unlinked.len() > SYNCS_MAX {
        work.medium.sync_all()?;
        work.dirs.synced(&dirs);
        return Ok(());
    }
    for (_, file) in &files {
        work.medium.sync(file)?;
    }
    unlinked.extend(dirs.iter().map(|(dir, _)| dir.clone()));
    for dir in &unlinked {
        match work.medium.sync_dir(dir) {
            // A dropped object never had a file, or one could not be made.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    work.dirs.synced(&dirs);
    Ok(())
}

fn write_object<M: Medium>(
    medium: &M,
    object: ObjectId,
    over: &ObjectOverlay,
    dirs: &DirtyDirs,
) -> io::Result<Option<M::File>> {
    if over.blocks.is_empty() && over.punch.is_empty() {
        return Ok(None);
    }
    let file = if over.blocks.is_empty() {
        match medium.open(&object_path(object), OpenMode::Write) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
    } else {
        dirs.open_or_make(medium, object)?
    };
    let len = medium.len(&file)?;
    for range in over.punch.iter() {
        let start = range.start.saturating_mul(BLOCK_BYTES);
        let end = range.end.saturating_mul(BLOCK_BYTES).min(len);
        if start >= end {
            continue;
        }
        if end == len {
            medium.set_len(&file, start)?;
        } else {
            medium.punch(&file, start, end - start)?;
        }
    }
    let mut trickle = Trickle::default();
    let mut run: Vec<u8> = Vec::new();
    let mut run_start = 0;
    for (&block, content) in &over.blocks {
        let follows = run_start + run.len() as u64 == block * BLOCK_BYTES;
        if !run.is_empty() && (!follows || run.len() >= WRITE_BYTES_MAX) {
            trickle.write(medium, &file, run_start, &run)?;
            run.clear();
        }
        if run.is_empty() {
            run_start = block * BLOCK_BYTES;
        }
        run.extend_from_slice(content);
    }
    if !run.is_empty() {
        trickle.write(medium, &file, run_start, &run)?;
    }
    Ok(Some(file))
}
