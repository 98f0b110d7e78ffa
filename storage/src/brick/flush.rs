//! Flushes: making things stable, many waiting for one sync.

use std::collections::{HashSet, VecDeque};
use std::io;

use protocol::mistakes::{Mistake, made};
use protocol::units::ObjectId;

use super::{Brick, BrickEvent, Task};
use crate::error::{BrickError, IoFault};
use crate::journal::frame::{LocalOp, Lsn};
use crate::medium::{Medium, Op};

/// Names a flush, in the order of asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlushId(pub u64);

/// What shall be stable. Records are always: those that were appended before, all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlushWhat {
    /// Besides, the data of these objects.
    Objects(Vec<ObjectId>),
    /// Besides, the data of all objects.
    All,
}

struct Waiter {
    id: FlushId,
    lsn: Lsn,
    tokens: HashSet<u64>,
}

struct JournalSync<F> {
    tokens: HashSet<u64>,
    upto: Lsn,
    files: Vec<F>,
}

pub(super) struct Flushes<M: Medium> {
    next: u64,
    waiters: VecDeque<Waiter>,
    journal: Option<JournalSync<M::File>>,
    /// A sync of the journal up to here should begin.
    wanted: Lsn,
}

impl<M: Medium> Flushes<M> {
    pub(super) fn new() -> Self {
        Self {
            next: 0,
            waiters: VecDeque::new(),
            journal: None,
            wanted: Lsn(0),
        }
    }

    /// Files of the journal whose sync is under way.
    pub(super) fn journal_files(&self) -> Vec<M::File> {
        self.journal
            .as_ref()
            .map(|sync| sync.files.clone())
            .unwrap_or_default()
    }
}

impl<M: Medium> Brick<M> {
    /// Makes everything appended so far stable, and the data of the objects named. Pushes first.
    /// [`BrickEvent::Flushed`] reports the end; many flushes share one sync.
    pub fn flush(&mut self, what: FlushWhat) -> Result<FlushId, BrickError> {
        self.push()?;
        let objects = match what {
            FlushWhat::Objects(objects) => objects,
            FlushWhat::All => self.core.unsynced.objects(),
        };
        let mut tokens = HashSet::new();
        for object in objects {
            if let Some(token) = self.sync_object(object)? {
                tokens.insert(token);
            }
        }
        self.flushes.next += 1;
        let id = FlushId(self.flushes.next);
        let lsn = self.journal.last_lsn();
        self.flushes.waiters.push_back(Waiter { id, lsn, tokens });
        self.flushes.wanted = lsn;
        self.flush_wanted();
        self.answer_waiters();
        Ok(id)
    }

    /// The token of a sync that covers everything written to the object, begun if need be; `None`
    /// where nothing is left to sync.
    fn sync_object(&mut self, object: ObjectId) -> Result<Option<u64>, BrickError> {
        if self.core.unsynced.is_settled(object) {
            return Ok(None);
        }
        if let Some(token) = self.core.unsynced.covering_sync(object) {
            return Ok(Some(token));
        }
        let opened = self.core.files.get(object);
        let file = opened.map_err(|error| {
            self.fail(BrickError::Failed(IoFault::new(
                "open an object's file",
                &error,
            )))
        })?;
        let Some(file) = file else {
            // Dropped, and removed by a checkpoint, which made the drop stable first.
            self.core.unsynced.forget(object);
            return Ok(None);
        };
        // A file that nobody finds is not durable, so its directories count as a part of it.
        let dirs = self.core.files.dirty_dirs.list();
        let names: Vec<String> = dirs.iter().map(|(dir, _)| dir.clone()).collect();
        let token = self.token(Task::FileSync(object, dirs));
        self.core.unsynced.begin(object, token);
        let op = if names.is_empty() {
            Op::Sync(file)
        } else {
            Op::SyncNew { file, dirs: names }
        };
        self.medium.submit(op, token);
        Ok(Some(token))
    }

    /// Begins syncs of everything that has none.
    pub(super) fn sync_uncovered(&mut self) {
        for object in self.core.unsynced.uncovered() {
            // A failure is noted in the brick.
            let _ = self.sync_object(object);
        }
    }

    /// Begins a sync that nobody waits for.
    pub(super) fn sync_in_background(&mut self, object: ObjectId) -> Result<(), BrickError> {
        self.sync_object(object).map(drop)
    }

    /// The journal shall be synced soon, without anyone waiting.
    pub(super) fn want_journal_sync(&mut self) {
        self.flushes.wanted = self.journal.last_lsn();
    }

    pub(super) fn flush_wanted(&mut self) {
        let due = self.flushes.wanted > self.journal.stable_lsn();
        if !due || self.flushes.journal.is_some() || !self.journal.needs_sync() {
            return;
        }
        let (files, upto) = self.journal.begin_sync();
        let mut tokens = HashSet::new();
        for file in &files {
            let token = self.token(Task::JournalSync);
            tokens.insert(token);
            self.medium.submit(Op::Sync(file.clone()), token);
        }
        self.flushes.journal = Some(JournalSync {
            tokens,
            upto,
            files,
        });
    }

    pub(super) fn journal_synced(
        &mut self,
        token: u64,
        result: io::Result<()>,
    ) -> Result<(), BrickError> {
        result.map_err(|error| BrickError::Failed(IoFault::new("sync the journal", &error)))?;
        if let Some(sync) = &mut self.flushes.journal {
            sync.tokens.remove(&token);
            if sync.tokens.is_empty() {
                self.journal.synced(sync.upto);
                self.flushes.journal = None;
            }
        }
        self.flush_wanted();
        self.note_stable();
        self.answer_waiters();
        Ok(())
    }

    pub(super) fn file_synced(
        &mut self,
        (object, dirs): (ObjectId, Vec<(String, u64)>),
        token: u64,
        result: io::Result<()>,
    ) -> Result<(), BrickError> {
        result.map_err(|error| BrickError::Failed(IoFault::new("sync an object", &error)))?;
        self.core.files.dirty_dirs.synced(&dirs);
        if let Some(upto) = self.core.unsynced.ended(object, token) {
            // Only saves the next recovery some work: it need not be stable, nor wait for it.
            self.local(LocalOp::Synced {
                objects: vec![(object, upto)],
            })?;
        }
        self.token_done(token);
        Ok(())
    }

    fn token_done(&mut self, token: u64) {
        for waiter in &mut self.flushes.waiters {
            waiter.tokens.remove(&token);
        }
        self.note_stable();
        self.answer_waiters();
    }

    pub(super) fn answer_waiters(&mut self) {
        let stable = self.journal.stable_lsn();
        let events = &mut self.events;
        self.flushes.waiters.retain(|waiter| {
            let journal = waiter.lsn <= stable || made(Mistake::SkipsTheJournal);
            let files = waiter.tokens.is_empty() || made(Mistake::SkipsTheFiles);
            let done = journal && files;
            if done {
                events.push_back(BrickEvent::Flushed(waiter.id));
            }
            !done
        });
    }
}
