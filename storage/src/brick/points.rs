//! Retained points of the brick: making, reading, going back, dropping. See [`crate::points`].

use bytes::Bytes;
use protocol::units::Timestamp;
use protocol::volume::REPLICAS_MAX;

use super::{Brick, BrickEvent, Position, Task};
use crate::activity::ActivityLog;
use crate::apply::Core;
use crate::dirty::{DirtyItem, DirtyMaps};
use crate::error::{BrickError, IoFault, OpenError, PointError, ReadError};
use crate::files::Files;
use crate::journal::{Journal, JournalStart, Place};
use crate::layers::Layers;
use crate::layout::{FORMAT_VERSION, FORMAT_WITHOUT_POINTS};
use crate::medium::{Medium, Op};
use crate::points::keep::{Keeping, KeptBlocks};
use crate::points::restore::{remove_files, remove_strangers, restore_files};
use crate::points::{
    NOTE_BYTES_MAX, POINTS_MAX, Phase, Point, PointId, PointKind, PointRow, chain_from, live_chain,
};
use crate::store::saved::{Points, restore_rows, write_points};
use crate::superblock::{Superblock, check_state};
use crate::unsynced::Unsynced;

/// What the next checkpoint does to points.
#[derive(Debug, Default)]
pub(super) struct Changes {
    make: Option<(PointKind, Timestamp, Bytes)>,
    /// Until the checkpoint is durable.
    drop: Vec<PointId>,
}

/// What points there are after a checkpoint.
#[derive(Debug, Default)]
pub(super) struct After {
    rows: Vec<PointRow>,
    next: Option<PointId>,
    removed: Vec<PointId>,
    made: Option<PointId>,
}

impl After {
    /// Room ran out: only what the checkpoint made is left.
    pub(super) fn forget_old(&mut self) {
        let made = self.made;
        let old = self.rows.extract_if(.., |row| Some(row.id) != made);
        self.removed.extend(old.map(|row| row.id));
    }
}

impl Points {
    /// As [`After::forget_old`], for what is written.
    pub(super) fn forget_old(&mut self) {
        self.chain.clear();
        self.removed.clear();
        let made = self.next.map(|next| PointId(next.0 - 1));
        self.rows.retain(|row| Some(row.id) == made);
    }
}

impl<M: Medium> Brick<M> {
    /// The points that can be read, the oldest first.
    #[must_use]
    pub fn points(&self) -> Vec<Point> {
        let live = self
            .points
            .iter()
            .filter(|row| self.live_row(row.id).is_ok());
        live.map(PointRow::point).collect()
    }

    /// Retains the present state as a point: from here on whatever changes keeps what it was. The
    /// maker says which time it shows (`as_of`) and may add a note of its own. Waits for a
    /// checkpoint; durable on return.
    pub fn make_point(
        &mut self,
        kind: PointKind,
        as_of: Timestamp,
        note: Bytes,
    ) -> Result<PointId, PointError> {
        self.writable()?;
        if note.len() > NOTE_BYTES_MAX {
            return Err(PointError::Brick(BrickError::StateTooLarge {
                what: "the note of a point",
                bytes: note.len(),
                max: NOTE_BYTES_MAX,
            }));
        }
        if self.points().len() >= POINTS_MAX {
            return Err(PointError::TooMany { max: POINTS_MAX });
        }
        self.end_checkpoint()?;
        // First: software that knows nothing of points must not change such a brick.
        if self.superblock.format != FORMAT_VERSION {
            self.change_superblock(|superblock| superblock.format = FORMAT_VERSION)?;
        }
        let id = self.next_point;
        self.point_changes.make = Some((kind, as_of, note));
        let made = self.checkpoint_now();
        made.map_err(|error| self.fail(error))?;
        Ok(id)
    }

    /// Lets a point go: it is not read any more, and the next checkpoint, which is asked for,
    /// frees what nobody else needs. Lost in a crash before that, the point is there again.
    pub fn drop_point(&mut self, id: PointId) -> Result<(), PointError> {
        self.writable()?;
        self.live_row(id)?;
        self.point_changes.drop.push(id);
        Ok(self.checkpoint()?)
    }

    /// Gives the brick the state of its newest point back, and uses the point up. What came after
    /// it is gone. The replication layer's state becomes `state`; the journal gives no record from
    /// before; every replica counts as lacking everything. Waits; durable on return. After a crash
    /// in between, opening the brick ends it.
    pub fn go_back(&mut self, id: PointId, state: Bytes) -> Result<(), PointError> {
        self.writable()?;
        self.newest_live(id)?;
        check_state(&state)?;
        self.end_checkpoint()?;
        // What is written directly from here on is nothing: there is no recovery to be prepared.
        self.core.activity = ActivityLog::default();
        let ended = self.checkpoint_now();
        ended.map_err(|error| self.fail(error))?;
        // Room may have run out in between.
        self.newest_live(id)?;
        let gone_back = self.begin_going_back(id, state);
        Ok(gone_back.map_err(|error| self.fail(error))?)
    }

    /// The state of a point, for reading; waits for the device wherever it reads. It stays true
    /// while the brick goes on, until the point is dropped or gone back to.
    pub fn view(&self, id: PointId) -> Result<Self, PointError> {
        let row = self.live_row(id)?;
        Ok(self.at_point(row))
    }

    /// The state of the last checkpoint, for reading keys and checksums beside the brick. Data that
    /// changed since may not match.
    pub fn last_checkpoint(&self) -> Self {
        let store = self.core.layers.store.at_point(&[]);
        let position = Position {
            sequence: self.checkpointed,
            ..self.position
        };
        self.reader(store, None, self.core.used_blocks, (Bytes::new(), position))
    }

    /// Of a [`Brick::view`]: what may differ from the last checkpoint, at most `max` things: keys,
    /// and whole extents, of which the point kept what they were. False: there is more. Waits for
    /// the device.
    pub fn kept_rows(&self, max: usize) -> Result<(Vec<DirtyItem>, bool), ReadError> {
        self.core.layers.store.kept_rows(max)
    }

    /// As [`Brick::open_read_only`], showing a point.
    pub fn open_read_only_at(medium: M, id: PointId) -> Result<Self, OpenError> {
        let (brick, _) = Self::open_read_only(medium)?;
        brick
            .view(id)
            .map_err(|_| OpenError::NoSuchPoint { point: id.0 })
    }

    fn live_row(&self, id: PointId) -> Result<&PointRow, PointError> {
        let mut rows = self.points.iter();
        let found = rows.find(|row| row.id == id && row.is_live());
        found
            .filter(|_| !self.point_changes.drop.contains(&id))
            .ok_or(PointError::Unknown { id })
    }

    fn newest_live(&self, id: PointId) -> Result<(), PointError> {
        self.live_row(id)?;
        let dropped = &self.point_changes.drop;
        let mut rows = self.points.iter();
        let newest = rows.rfind(|row| row.is_live() && !dropped.contains(&row.id));
        let newest = newest.map_or(id, |row| row.id);
        if newest == id {
            Ok(())
        } else {
            Err(PointError::NotNewest { id, newest })
        }
    }

    fn at_point(&self, row: &PointRow) -> Self {
        let chain = chain_from(&self.points, row.id);
        let store = self.core.layers.store.at_point(&chain);
        let kept = KeptBlocks::new(chain);
        self.reader(
            store,
            Some(kept),
            row.used_blocks,
            (row.note.clone(), row.position),
        )
    }

    fn reader(
        &self,
        store: crate::store::Store,
        kept: Option<KeptBlocks>,
        used_blocks: u64,
        (state, position): (Bytes, Position),
    ) -> Self {
        let journal = Journal::new(JournalStart {
            medium: self.medium.clone(),
            brick: self.superblock.identity.brick,
            epoch: 0,
            sizes: self.options.journal,
            end: Place::default(),
            segments: std::collections::VecDeque::new(),
            free: Vec::new(),
            floor: Default::default(),
        });
        let core = Core {
            kept,
            used_blocks,
            ..Core::new(self.medium.clone(), store, &self.options, true)
        };
        let superblock = Superblock {
            state,
            ..self.superblock.clone()
        };
        let on = (self.medium.clone(), self.options.clone());
        Self::over(on, core, journal, superblock, position)
    }

    // ---- with checkpoints ----------------------------------------------------------------------

    /// What the checkpoint that begins now does to points, and what there is afterwards.
    pub(super) fn changes_to_points(&mut self) -> (Points, After) {
        let make = self.point_changes.make.take();
        let drop = &self.point_changes.drop;
        let mut rows = self.points.clone();
        let mut changed = Vec::new();
        if let (Some(keeping), Some(newest)) = (&self.core.keeping, rows.last_mut()) {
            let copied = keeping.take_copied();
            newest.kept_blocks += copied;
            if copied > 0 {
                changed.push(newest.id);
            }
        }
        for row in rows.iter_mut().filter(|row| drop.contains(&row.id)) {
            row.phase = Phase::Hidden;
            changed.push(row.id);
        }
        let mut made = None;
        if let Some((kind, as_of, note)) = make {
            let id = self.next_point;
            rows.push(PointRow {
                id,
                phase: Phase::Live,
                kind,
                position: self.position,
                as_of,
                used_blocks: self.core.used_blocks,
                kept_blocks: 0,
                note,
            });
            changed.push(id);
            made = Some(id);
        }
        // Nobody reads through a hidden point that has no older one alive.
        let oldest = rows.iter().find(|row| row.phase != Phase::Hidden);
        let oldest = oldest.map_or(PointId(u64::MAX), |row| row.id);
        let gone = |row: &mut PointRow| row.id < oldest;
        let removed: Vec<PointId> = rows.extract_if(.., gone).map(|row| row.id).collect();
        let next = made.map(|id| PointId(id.0 + 1));
        let chain = self.core.keeping.as_ref();
        let points = Points {
            chain: chain
                .map(|keeping| keeping.chain.clone())
                .unwrap_or_default(),
            rows: rows
                .iter()
                .filter(|row| changed.contains(&row.id))
                .cloned()
                .collect(),
            removed: removed.clone(),
            next,
        };
        let after = After {
            rows,
            next,
            removed,
            made,
        };
        (points, after)
    }

    /// A checkpoint is durable.
    pub(super) fn points_changed(&mut self, after: After) {
        let lost = self.core.keeping.as_ref().is_some_and(Keeping::is_given_up);
        if lost {
            for row in self.points.iter().filter(|row| row.is_live()) {
                self.events.push_back(BrickEvent::PointLost(row.id));
            }
        }
        self.points = after.rows;
        let still = |id: &PointId| self.points.iter().any(|row| row.is_live() && row.id == *id);
        self.point_changes.drop.retain(still);
        self.next_point = after.next.unwrap_or(self.next_point);
        self.keep_for_points();
        if !after.removed.is_empty() {
            // Without the lock: whoever opens the brick meanwhile removes the same files.
            let medium = self.medium.clone();
            let token = self.token(Task::RemoveFiles);
            let job = move || {
                let mut removed = after.removed.iter();
                removed.try_for_each(|id| remove_files(&medium, *id))
            };
            self.medium.submit(Op::Job(Box::new(job)), token);
        }
    }

    /// Keeps from here on what the newest living point needs.
    pub(super) fn keep_for_points(&mut self) {
        let chain = live_chain(&self.points);
        let now = &self.core.layers.store;
        self.core.keeping = match self.core.keeping.take() {
            _ if chain.is_empty() => None,
            Some(keeping) if keeping.chain == chain => Some(keeping.refreshed(now)),
            _ => {
                let mut live = self.points.iter().filter(|row| row.phase != Phase::Hidden);
                let expendable = live.all(|row| row.kind == PointKind::Resync && row.is_live());
                Some(Keeping::new(chain, expendable, now))
            }
        };
    }

    // ---- going back ----------------------------------------------------------------------------

    fn begin_going_back(&mut self, id: PointId, state: Bytes) -> Result<(), BrickError> {
        let Some(row) = self.points.iter_mut().find(|row| row.id == id) else {
            return Ok(());
        };
        row.phase = Phase::GoingBack(state);
        let points = Points {
            rows: vec![row.clone()],
            ..Points::default()
        };
        let database = self.core.layers.store.database();
        write_points(&database, &points).map_err(BrickError::Failed)?;
        self.end_going_back()
    }

    /// Ends what [`Brick::go_back`] began, here or before a crash. Nothing may wait in memory.
    pub(super) fn end_going_back(&mut self) -> Result<(), BrickError> {
        let mut rows = self.points.iter();
        let found = rows.find(|row| matches!(row.phase, Phase::GoingBack(_)));
        if let Some(row) = found.cloned() {
            self.restore(row)?;
        }
        let mut rows = self.points.iter();
        let found = rows.find_map(|row| match &row.phase {
            Phase::Restored(state) => Some((row.id, state.clone())),
            _ => None,
        });
        let Some((id, state)) = found else {
            return Ok(());
        };
        self.change_superblock(|superblock| superblock.state = state)?;
        let points = Points {
            removed: vec![id],
            ..Points::default()
        };
        let database = self.core.layers.store.database();
        write_points(&database, &points).map_err(BrickError::Failed)?;
        self.points.retain(|row| row.id < id);
        self.core.layers.reload().map_err(BrickError::Failed)?;
        self.keep_for_points();
        remove_files(&self.medium, id)
            .map_err(|error| BrickError::Failed(IoFault::new("remove a point's files", &error)))
    }

    /// The brick's state becomes the point's.
    fn restore(&mut self, mut row: PointRow) -> Result<(), BrickError> {
        let chain = chain_from(&self.points, row.id);
        self.core.layers.reload().map_err(BrickError::Failed)?;
        let then = self.core.layers.store.at_point(&chain);
        restore_files(&self.medium, &chain, &then)?;
        if let Phase::GoingBack(state) = row.phase {
            row.phase = Phase::Restored(state);
        }
        self.journal.push()?;
        let lsn = self.journal.last_lsn();
        self.position = row.position;
        self.core.used_blocks = row.used_blocks;
        self.core.freed_blocks = 0;
        self.core.activity = ActivityLog::default();
        self.core.unsynced = Unsynced::default();
        self.journal.begin_at((row.position.sequence, lsn));
        for replica in 0..u8::try_from(REPLICAS_MAX).unwrap_or(u8::MAX) {
            self.core.dirty.set_all(replica, true);
        }
        let points = Points {
            rows: vec![row.clone()],
            removed: chain[1..].to_vec(),
            ..Points::default()
        };
        let state = self.state_row().encode();
        let dirty = self.core.dirty.take_changed_rows();
        let database = self.core.layers.store.database();
        restore_rows(&database, &chain, &points, &dirty, &state).map_err(BrickError::Failed)?;
        self.points.retain(|other| other.id < row.id);
        self.points.push(row);
        self.core.layers.reload().map_err(BrickError::Failed)?;
        self.core.files.forget_all();
        self.forget_marked_late();
        self.marks.clear();
        self.marks.add(lsn, self.position.sequence);
        self.stable = self.position.sequence;
        self.journal_stable = self.position.sequence;
        self.checkpointed = self.position.sequence;
        self.journal.synced(lsn);
        self.journal.set_checkpointed(lsn);
        for id in &chain[1..] {
            remove_files(&self.medium, *id).map_err(|error| {
                BrickError::Failed(IoFault::new("remove a point's files", &error))
            })?;
        }
        Ok(())
    }

    /// At the opening: ends what was begun, and removes what belongs to no point.
    pub(super) fn settle_points(&mut self) -> Result<(), BrickError> {
        self.end_going_back()?;
        let known: Vec<PointId> = self.points.iter().map(|row| row.id).collect();
        remove_strangers(&self.medium, &known)
            .map_err(|error| BrickError::Failed(IoFault::new("remove a point's files", &error)))
    }

    /// A brick that is opened for reading in the middle of going back shows where it goes.
    pub(super) fn where_it_goes(self) -> Self {
        let mut rows = self.points.iter();
        match rows.find(|row| matches!(row.phase, Phase::GoingBack(_))) {
            Some(row) => {
                let mut shown = self.at_point(row);
                shown.points = self
                    .points
                    .iter()
                    .filter(|r| r.id < row.id)
                    .cloned()
                    .collect();
                shown
            }
            None => self,
        }
    }

    /// The format that the superblock has to name.
    pub(super) fn format_needed(&self) -> u32 {
        if self.points.is_empty() {
            FORMAT_WITHOUT_POINTS
        } else {
            FORMAT_VERSION
        }
    }
}

impl<M: Medium> Core<M> {
    /// A core over a store as it is, with nothing in memory.
    pub(super) fn new(
        medium: M,
        store: crate::store::Store,
        options: &super::Options,
        read_only: bool,
    ) -> Self {
        Self {
            files: Files::new(medium.clone(), read_only),
            medium,
            layers: Layers::new(store),
            dirty: DirtyMaps::default(),
            tracking: 0,
            activity: ActivityLog::default(),
            unsynced: Unsynced::default(),
            used_blocks: 0,
            freed_blocks: 0,
            large_write_bytes: options.large_write_bytes.max(protocol::units::BLOCK_BYTES),
            activate: Vec::new(),
            checkpoint_wanted: false,
            keeping: None,
            kept: None,
            corrupt_found: Vec::new(),
        }
    }
}
