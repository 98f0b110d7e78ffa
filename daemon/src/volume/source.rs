//! The source side of catching up: the journal's tail (`tail.rs`), or dirty keys and blocks, or
//! everything compared by hash. Runs as a task of the volume's thread, beside the live records, and
//! yields to them after every batch.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use protocol::ids::GenerationId;
use protocol::mistakes::{Mistake, made};
use protocol::record::{Change, PAYLOAD_BYTES_MAX, Record};
use protocol::replica::{Doubt, HASH_BYTES, Message};
use protocol::units::{BLOCK_BYTES, BLOCKS_PER_EXTENT, ObjectId, Sequence, Term};
use replication::decision::{Decision, Means, Rule};
use replication::progress::Progress;
use replication::state::{Disk, Membership, Welcome};
use storage::{DirtyItem, Medium};
use tokio::sync::{Notify, oneshot};

use super::batch::{Batch, Content};
use super::driver::{Driver, Shared, index};
use super::links::{borrow_link, to_json};
use super::repair::read_surely;
use super::words;

/// Items of one batch.
const BATCH_ITEMS_MAX: usize = 1024;
/// Bytes of data in one batch.
pub(super) const BATCH_BYTES_MAX: usize = 512 << 10;
/// What a key costs on the wire, about, for the choice of the cheaper way.
const KEY_BYTES_ESTIMATE: u64 = 160;
/// Keys of one exact range.
const EXACT_KEYS_MAX: usize = 512;
/// Bytes of one exact range.
const EXACT_BYTES_MAX: usize = 256 << 10;
/// What could not be read at the source is tried again after so long: an operator may have mended
/// it, or a client written it anew.
const AGAIN_AFTER: Duration = Duration::from_secs(10);
/// No object has a block from here on: its bytes could not be counted.
const BLOCKS_MAX: u64 = i64::MAX as u64 / BLOCK_BYTES + 1;
/// How long to wait for a word that something changed, before looking again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Objects of one exact range.
const EXACT_OBJECTS_MAX: usize = 4096;

/// A target's answer to an offer.
pub(super) struct Wanted {
    /// Which blocks of the extent differ there, one bit each.
    pub(super) bits: Bytes,
    /// The next extent that is not all zero there.
    pub(super) next: Option<u64>,
}

/// A resync towards one replica, as its task and the link's reader share it.
#[derive(Default)]
pub(super) struct Source {
    stopped: Cell<bool>,
    next_batch: Cell<u64>,
    /// Batches under way: what they hold, and their bytes.
    open: RefCell<BTreeMap<u64, (Vec<DirtyItem>, usize)>>,
    wants: RefCell<HashMap<u64, oneshot::Sender<Wanted>>>,
    wake: Notify,
    /// What records changed since the batch in the making was begun.
    changed: RefCell<Option<Changed>>,
}

/// What live records changed. They went to the target before the batch that is in the making, so
/// what the batch has of the same must be read again: else old bytes would follow newer ones.
#[derive(Default)]
struct Changed {
    keys: BTreeSet<Bytes>,
    /// Bytes by object.
    objects: BTreeMap<ObjectId, Vec<Range<u64>>>,
}

impl Changed {
    fn note(&mut self, changes: &[Change]) {
        for change in changes {
            let (object, range) = match change {
                Change::Put { key, .. } | Change::Delete { key } => {
                    self.keys.insert(key.clone());
                    continue;
                }
                Change::Write {
                    object,
                    offset,
                    len,
                } => (object, *offset..offset.saturating_add(u64::from(*len))),
                Change::Zero {
                    object,
                    offset,
                    len,
                } => (object, *offset..offset.saturating_add(*len)),
                Change::Truncate { object, size } => (object, *size..u64::MAX),
                Change::Drop { object } => (object, 0..u64::MAX),
            };
            self.objects.entry(*object).or_default().push(range);
        }
    }

    fn touches(&self, item: &DirtyItem) -> bool {
        match item {
            DirtyItem::Key { key } => self.keys.contains(key),
            DirtyItem::Dropped { object } => self.objects.contains_key(object),
            DirtyItem::Blocks { object, start, end } => {
                let (start, end) = (start * BLOCK_BYTES, end * BLOCK_BYTES);
                let ranges = self.objects.get(object).into_iter().flatten();
                ranges.into_iter().any(|r| r.start < end && start < r.end)
            }
        }
    }
}

impl Source {
    /// A live record went to the target.
    pub(super) fn ordered(&self, changes: &[Change]) {
        if let Some(changed) = self.changed.borrow_mut().as_mut() {
            changed.note(changes);
        }
    }

    /// Ends the resync; what was not acknowledged stays dirty.
    pub(super) fn stop(&self) {
        self.stopped.set(true);
        self.wants.borrow_mut().clear();
        self.wake.notify_one();
    }

    /// Waits until batches of fewer than so many bytes are under way.
    pub(super) async fn open_below(&self, most: usize) -> Result<(), Stopped> {
        let open_bytes = || -> usize { self.open.borrow().values().map(|(_, bytes)| bytes).sum() };
        while open_bytes() >= most {
            if self.stopped.get() {
                return Err(Stopped);
            }
            self.wake.notified().await;
        }
        Ok(())
    }
}

/// What status tells about resyncs of one replica: the one under way and the last.
#[derive(Default)]
pub(super) struct Resyncs {
    pub(super) running: Option<Running>,
    pub(super) last: Option<Last>,
    /// Why the last one stopped and waits, until one ends well.
    pub(super) stopped: Option<String>,
}

/// A resync under way.
pub(super) struct Running {
    pub(super) full: bool,
    pub(super) rule: Rule,
    pub(super) began: SystemTime,
    pub(super) began_at: Duration,
    /// Only the source knows how much there is.
    pub(super) progress: Option<Progress>,
    wire_base: u64,
}

/// A resync that ended.
#[derive(Clone)]
pub(super) struct Last {
    pub(super) full: bool,
    pub(super) rule: Rule,
    pub(super) total_bytes: u64,
    pub(super) sent_bytes: u64,
    pub(super) lasted: Duration,
    pub(super) finished: SystemTime,
}

impl Resyncs {
    /// This replica is the target of one.
    pub(super) fn target_began(&mut self, welcome: &Welcome) {
        if welcome.rule == Rule::SamePast {
            return;
        }
        self.running = Some(Running {
            full: is_full(welcome.rule),
            rule: welcome.rule,
            began: SystemTime::now(),
            began_at: Duration::ZERO,
            progress: None,
            wire_base: 0,
        });
    }

    /// As target: it ended. The source tells the figures.
    pub(super) fn finished(&mut self) {
        self.running = None;
    }

    /// It was cut off.
    pub(super) fn abandon(&mut self) {
        self.running = None;
    }
}

fn is_full(rule: Rule) -> bool {
    matches!(
        rule,
        Rule::EmptyBrick | Rule::OlderThanMap | Rule::ForeignResync | Rule::Operator
    )
}

impl<M: Medium> Driver<M> {
    /// Finds out what could help a replica; see `Output::Assess`.
    pub(super) fn assess(&mut self, replica: usize, common: Option<Sequence>) {
        let summary = self.brick.dirty_summary(index(replica));
        let means = Means {
            map_since: None, // the machine knows
            journal_bytes: common.and_then(|at| self.brick.journal_bytes_since(at)),
            overwritten: self.overwritten.has(replica),
            dirty_bytes: summary.bytes + summary.keys * KEY_BYTES_ESTIMATE,
            resync_was_mine: false, // the machine knows
            marked_apart: false,    // the machine knows
            pool_decides: false,    // the machine knows
            waited_for_me: false,   // the machine knows
        };
        let full = self.full_wanted.has(replica);
        if !self.paused {
            self.machine.judge(replica, means, full);
        }
    }

    /// Begins to bring a replica up to date; see `Output::Source`.
    pub(super) fn begin_source(&mut self, replica: usize, decision: Decision, welcome: &Welcome) {
        self.full_wanted = self.full_wanted.without(replica);
        self.overwritten = self.overwritten.without(replica);
        let mut welcome = welcome.clone();
        if matches!(decision, Decision::Dirty | Decision::GiveUpTail { .. }) {
            let summary = self.brick.dirty_summary(index(replica));
            welcome.changes_bytes = (!summary.all).then_some(summary.bytes);
        }
        self.send(replica, &Message::Welcome(to_json(&welcome)));
        // A resync is timed from the moment when the two met.
        let now = self.links[replica]
            .as_ref()
            .map_or(Duration::ZERO, |link| link.since);
        let total = match decision {
            Decision::Full => self.brick.used_bytes(),
            Decision::Journal { after } => self.brick.journal_bytes_since(after).unwrap_or(0),
            _ => {
                let summary = self.brick.dirty_summary(index(replica));
                summary.bytes + summary.keys * KEY_BYTES_ESTIMATE
            }
        };
        self.tell_given_up(replica, decision);
        let name = &self.spec.replicas[replica].node_name;
        let rule = welcome.rule;
        tracing::info!(
            volume = %self.spec.name, node = %name, rule = rule.name(), total_bytes = total,
            "bringing a replica up to date"
        );
        let wire_base = self.links[replica].as_ref().map_or(0, wire_bytes);
        if rule != Rule::SamePast {
            self.resyncs[replica].running = Some(Running {
                full: matches!(decision, Decision::Full),
                rule,
                began: SystemTime::now(),
                began_at: now,
                progress: Some(Progress::begin(now, total)),
                wire_base,
            });
        }
        let Some(link) = &mut self.links[replica] else {
            return;
        };
        let source = Rc::new(Source::default());
        link.source = Some(source.clone());
        link.feed_live = !matches!(decision, Decision::Journal { .. });
        let epoch = link.epoch;
        let Some(shared) = self.shared() else { return };
        let run = Run {
            shared,
            replica,
            epoch,
            source,
        };
        if decision == Decision::Join {
            self.machine.source_done(replica);
        } else {
            let report = self.machine.report_of(replica);
            let empty = report.is_some_and(|report| report.disk == Disk::Empty);
            tokio::task::spawn_local(async move { run.bring_up_to_date(decision, empty).await });
        }
    }

    /// A batch is on stable storage at the target.
    pub(super) fn batch_done(&mut self, replica: usize, batch: u64) {
        let Some(source) = self.links[replica].as_ref().and_then(|l| l.source.clone()) else {
            return;
        };
        let Some((items, bytes)) = source.open.borrow_mut().remove(&batch) else {
            return;
        };
        if let Err(error) = self.brick.clear_dirty(index(replica), &items) {
            self.fail(&error);
        }
        self.note_progress(replica, bytes as u64);
        source.wake.notify_one();
    }

    pub(super) fn note_progress(&mut self, replica: usize, done: u64) {
        let now = self.now();
        let wire = self.links[replica].as_ref().map_or(0, wire_bytes);
        if let Some(running) = &mut self.resyncs[replica].running
            && let Some(progress) = &mut running.progress
        {
            let so_far = progress.sent_bytes();
            progress.sent(
                wire.saturating_sub(running.wire_base)
                    .saturating_sub(so_far),
            );
            progress.done(now, done);
        }
    }

    /// The replica joined the in-sync set; see `Output::Joined`.
    pub(super) fn joined(&mut self, replica: usize, membership: &Membership) {
        self.send(replica, &Message::Joined(to_json(membership)));
        self.told_stable = None;
        self.note_progress(replica, 0);
        let now = self.now();
        let name = self.spec.replicas[replica].node_name.clone();
        if self.ahead_of.has(replica) {
            self.ahead_of = self.ahead_of.without(replica);
            let text = words::caught_up(&name);
            self.host.event("replica_caught_up", &self.spec.name, &text);
        }
        if let Some(running) = self.resyncs[replica].running.take() {
            let progress = running.progress.as_ref();
            let last = Last {
                full: running.full,
                rule: running.rule,
                total_bytes: progress.map_or(0, Progress::total_bytes),
                sent_bytes: progress.map_or(0, Progress::sent_bytes),
                lasted: now.saturating_sub(running.began_at),
                finished: SystemTime::now(),
            };
            tracing::info!(
                volume = %self.spec.name, node = %name, rule = last.rule.name(),
                sent_bytes = last.sent_bytes, lasted_ms = last.lasted.as_millis() as u64,
                "a replica is up to date"
            );
            self.host.event(
                "resync_finished",
                &self.spec.name,
                &format!(
                    "{name} is up to date: {} bytes sent (rule {})",
                    last.sent_bytes,
                    last.rule.name()
                ),
            );
            self.resyncs[replica].last = Some(last);
        }
        self.resyncs[replica].stopped = None;
        if let Some(link) = &mut self.links[replica] {
            link.source = None;
            link.feed_live = true;
        }
    }

    pub(super) fn take_want(&mut self, replica: usize, id: u64, wanted: Wanted) {
        let source = self.links[replica].as_ref().and_then(|l| l.source.clone());
        let waiter = source.and_then(|s| s.wants.borrow_mut().remove(&id));
        if let Some(waiter) = waiter {
            let _ = waiter.send(wanted);
        }
    }

    /// The target says what it has in doubt: that is sent too.
    pub(super) fn take_doubts(
        &mut self,
        replica: usize,
        items: Vec<Doubt>,
        last: bool,
        unknown: bool,
    ) -> Result<(), storage::BrickError> {
        let mut dirty = Vec::with_capacity(items.len());
        for item in items {
            match item {
                Doubt::Key(key) => dirty.push(DirtyItem::Key { key }),
                Doubt::Blocks(object, start, count) => {
                    let end = start.saturating_add(count).min(BLOCKS_MAX);
                    if start < end {
                        dirty.push(DirtyItem::Blocks { object, start, end });
                    }
                }
                Doubt::Object(object) => dirty.push(DirtyItem::Dropped { object }),
            }
        }
        self.brick.mark_dirty(index(replica), &dirty)?;
        if unknown {
            // It cannot say what its own tail touched: everything is compared.
            self.full_wanted = self.full_wanted.with(replica);
            self.link_lost(replica, None);
        } else if last {
            self.machine.doubts_known(replica);
        }
        Ok(())
    }

    /// Sends the records after `after` to a primary that lost its tail.
    pub(super) fn serve_pull(&mut self, shared: &Shared<M>, replica: usize, after: Sequence) {
        let Some(link) = &self.links[replica] else {
            return;
        };
        let epoch = link.epoch;
        let source = Rc::new(Source::default());
        let run = Run {
            shared: shared.clone(),
            replica,
            epoch,
            source,
        };
        tokio::task::spawn_local(async move { run.pulled(after).await });
    }
}

/// Bytes that were or will be written to a link.
fn wire_bytes(link: &super::links::LinkIo) -> u64 {
    link.outbox.written_bytes() + link.outbox.queued_bytes() as u64
}

/// What a resync's task knows.
pub(super) struct Run<M: Medium> {
    pub(super) shared: Shared<M>,
    pub(super) replica: usize,
    epoch: u64,
    pub(super) source: Rc<Source>,
}

/// A resync's task ends early: its link is gone, or it cannot go on.
pub(super) struct Stopped;

impl<M: Medium> Run<M> {
    pub(super) fn with<T>(&self, f: impl FnOnce(&mut Driver<M>) -> T) -> Result<T, Stopped> {
        if self.source.stopped.get() {
            return Err(Stopped);
        }
        borrow_link(&self.shared, self.replica, self.epoch, |d| {
            let result = f(d);
            d.finish_turn();
            result
        })
        .ok_or(Stopped)
    }

    /// Waits until something is so.
    pub(super) async fn once(&self, so: impl Fn(&Driver<M>) -> bool) -> Result<(), Stopped> {
        let changed = self.with(|d| d.changed.clone())?;
        while !self.with(|d| so(d))? {
            let _ = tokio::time::timeout(LOOK_AGAIN, changed.notified()).await;
        }
        Ok(())
    }

    /// All that a resync sends, by the way that was chosen; to an `empty` brick without asking.
    async fn bring_up_to_date(self, decision: Decision, empty: bool) {
        // First what clients kept is put back. What a crash left in doubt here may be whole at the
        // others, and whoever takes over from here would not know that it was lost (DUR-5).
        if self.once(|d| !d.replays.hold_up()).await.is_err() {
            return;
        }
        let sent = match decision {
            Decision::Journal { after } => self.send_tail(after, true).await,
            Decision::Dirty | Decision::GiveUpTail { .. } => self.send_dirty().await,
            Decision::Full => self.send_full(empty).await,
            Decision::Join | Decision::Refuse => Ok(()),
        };
        if sent.is_err() {
            self.try_again().await;
        }
    }

    /// Where the link is still there, something could not be read here: the two meet anew.
    async fn try_again(&self) {
        tokio::time::sleep(AGAIN_AFTER).await;
        let _ = self.give_up();
    }

    /// The resync cannot go on over this link: a new meeting decides anew.
    pub(super) fn give_up(&self) -> Result<(), Stopped> {
        let _ = self.with(|d| {
            if let Some(link) = &d.links[self.replica] {
                link.outbox.close();
            }
            d.link_lost(self.replica, Some(self.epoch));
        });
        Err(Stopped)
    }

    // ---- dirty keys and blocks -----------------------------------------------------------------

    async fn send_dirty(&self) -> Result<(), Stopped> {
        let mut after = None;
        loop {
            self.room().await?;
            let items = self.with(|d| {
                d.brick
                    .next_dirty(index(self.replica), after.as_ref(), BATCH_ITEMS_MAX)
            })?;
            let Some(last) = items.last().cloned() else {
                break;
            };
            after = Some(last);
            self.send_items(items).await?;
        }
        self.finish().await
    }

    /// Sends items in batches of bounded size.
    async fn send_items(&self, items: Vec<DirtyItem>) -> Result<(), Stopped> {
        let mut todo: VecDeque<DirtyItem> = items.into();
        while !todo.is_empty() {
            let most = self.with(|d| d.throttle.piece_bytes(BATCH_BYTES_MAX))?;
            *self.source.changed.borrow_mut() = Some(Changed::default());
            let mut read = Vec::new();
            let mut bytes = 0;
            while bytes < most
                && let Some(item) = next_piece(&mut todo, most - bytes)
            {
                let content = self.read_item(&item).await?;
                bytes += content.bytes();
                read.push((item, content));
            }
            // No await between here and the sending: what was read and not changed since is what
            // the target lacks at this place of the stream.
            let changed = self.source.changed.borrow_mut().take().unwrap_or_default();
            let mut batch = Batch::default();
            for (item, content) in read {
                if changed.touches(&item) && !made(Mistake::SendsOldAfterNew) {
                    todo.push_back(item);
                } else {
                    batch.add(item, content);
                }
            }
            self.send_batch(batch).await?;
        }
        Ok(())
    }

    /// What the target is to have in place of an item.
    async fn read_item(&self, item: &DirtyItem) -> Result<Content, Stopped> {
        match item {
            DirtyItem::Key { key } => match self.with(|d| d.brick.get(key))? {
                Ok(Some(value)) => Ok(Content::Change(Change::Put {
                    key: key.clone(),
                    value,
                })),
                Ok(None) => Ok(Content::Change(Change::Delete { key: key.clone() })),
                Err(error) => Err(self.unreadable(&error)),
            },
            DirtyItem::Dropped { object } => match self.with(|d| d.brick.exists(*object))? {
                Ok(true) => Ok(Content::Nothing), // made again since: its blocks are dirty of their own
                Ok(false) => Ok(Content::Change(Change::Drop { object: *object })),
                Err(error) => Err(self.unreadable(&error)),
            },
            DirtyItem::Blocks { object, start, end } => {
                match self.with(|d| d.brick.exists(*object))? {
                    Ok(true) => {}
                    Ok(false) => return Ok(Content::Change(Change::Drop { object: *object })),
                    Err(error) => return Err(self.unreadable(&error)),
                }
                let offset = start * BLOCK_BYTES;
                let len = u32::try_from((end - start) * BLOCK_BYTES).map_err(|_| Stopped)?;
                match read_surely(&self.shared, *object, offset, len).await {
                    Some(Ok(data)) => Ok(Content::Data(data)),
                    Some(Err(error)) => Err(self.unreadable(&error)),
                    None => Err(Stopped),
                }
            }
        }
    }

    fn unreadable(&self, error: &storage::ReadError) -> Stopped {
        let _ = self.with(|d| {
            let node = &d.spec.replicas[self.replica].node_name;
            let text = format!(
                "the resync of {node} stopped, its source is damaged: {error}; it is tried again \
                 every {} s",
                AGAIN_AFTER.as_secs()
            );
            let resyncs = &mut d.resyncs[self.replica];
            resyncs.running = None;
            if resyncs.stopped.as_ref() != Some(&text) {
                d.host.event("resync_stopped", &d.spec.name, &text);
                resyncs.stopped = Some(text);
            }
        });
        Stopped
    }

    async fn send_batch(&self, batch: Batch) -> Result<(), Stopped> {
        if batch.items.is_empty() && batch.changes.is_empty() {
            return Ok(());
        }
        self.send_any_batch(batch).await
    }

    /// Sends a batch even if it is empty: its acknowledgement says that everything sent before it
    /// is on stable storage.
    async fn send_any_batch(&self, batch: Batch) -> Result<(), Stopped> {
        let number = self.source.next_batch.get() + 1;
        self.source.next_batch.set(number);
        let bytes = batch.payload.len() + batch.key_bytes;
        let record = Record {
            sequence: Sequence(number),
            term: Term(0),
            generation: GenerationId::NONE,
            changes: batch.changes,
            payload: batch.payload.freeze(),
        };
        self.with(|d| {
            if made(Mistake::ForgetsMarksOnSending) {
                let _ = d.brick.clear_dirty(index(self.replica), &batch.items);
            }
            self.source
                .open
                .borrow_mut()
                .insert(number, (batch.items, bytes.max(1)));
            d.send(self.replica, &Message::Resync(record));
        })?;
        self.pace(bytes).await?;
        self.room().await
    }

    /// Waits for every batch, then hands over to the machine.
    async fn finish(&self) -> Result<(), Stopped> {
        self.send_any_batch(Batch::default()).await?;
        while !self.source.open.borrow().is_empty() {
            if self.source.stopped.get() {
                return Err(Stopped);
            }
            self.source.wake.notified().await;
        }
        self.with(|d| d.machine.source_done(self.replica))
    }

    // ---- everything, by hash -------------------------------------------------------------------

    async fn send_full(&self, empty: bool) -> Result<(), Stopped> {
        self.send_all_keys().await?;
        let mut from = ObjectId(0);
        loop {
            self.room().await?;
            let after = from.0.checked_sub(1).map(ObjectId);
            let objects = self.with(|d| d.brick.objects_after(after, EXACT_OBJECTS_MAX))?;
            let Ok(objects) = objects else {
                return self.give_up();
            };
            let last = objects.len() < EXACT_OBJECTS_MAX;
            let to = match objects.last() {
                Some(object) if !last => ObjectId(object.0 + 1),
                _ => ObjectId(u64::MAX),
            };
            let exact = Message::ExactObjects {
                from,
                to,
                objects: objects.clone(),
            };
            self.with(|d| d.send(self.replica, &exact))?;
            for object in objects {
                self.send_object(object, empty).await?;
            }
            if last {
                break;
            }
            from = to;
        }
        self.finish().await
    }

    async fn send_all_keys(&self) -> Result<(), Stopped> {
        let mut from = Bytes::new();
        loop {
            self.room().await?;
            let next = self.with(|d| {
                let (pairs, more) = range_of_keys(d, &from)?;
                let to = if more {
                    pairs
                        .last()
                        .map(|(key, _)| after_key(key))
                        .unwrap_or_default()
                } else {
                    Bytes::new()
                };
                d.send(
                    self.replica,
                    &Message::ExactKeys {
                        from: from.clone(),
                        to: to.clone(),
                        pairs,
                    },
                );
                Ok::<_, storage::ReadError>(more.then_some(to))
            })?;
            match next {
                Ok(Some(to)) => from = to,
                Ok(None) => return Ok(()),
                Err(error) => return Err(self.unreadable(&error)),
            }
        }
    }

    async fn send_object(&self, object: ObjectId, empty: bool) -> Result<(), Stopped> {
        let extents = self.with(|d| d.brick.extents(object))?;
        let Ok(extents) = extents else {
            return self.give_up();
        };
        let mut own = extents.into_iter().peekable();
        // What is all zero here may be something there: each answer names the next one there.
        let mut next = if empty { own.next() } else { Some(0) };
        while let Some(extent) = next {
            while own.next_if(|own| *own <= extent).is_some() {}
            next = own.peek().copied();
            let first = extent * BLOCKS_PER_EXTENT;
            let data_end = self.with(|d| d.brick.data_end(object))?.unwrap_or(u64::MAX);
            let end = data_end
                .div_ceil(BLOCK_BYTES)
                .min(first + BLOCKS_PER_EXTENT);
            let items = if empty {
                vec![DirtyItem::Blocks {
                    object,
                    start: first,
                    end,
                }]
            } else {
                self.room().await?;
                let (items, theirs) = self.wanted(object, first, end).await?;
                let theirs = theirs.filter(|theirs| *theirs > extent);
                next = next.into_iter().chain(theirs).min();
                items
            };
            self.send_items(items).await?;
        }
        Ok(())
    }

    /// Offers the hashes of an extent's blocks up to `end` (zeros follow) and learns which blocks
    /// the target lacks, and which extent is the next there.
    async fn wanted(
        &self,
        object: ObjectId,
        first: u64,
        end: u64,
    ) -> Result<(Vec<DirtyItem>, Option<u64>), Stopped> {
        let len = u32::try_from(end.saturating_sub(first) * BLOCK_BYTES).expect("an extent");
        let data = match read_extent(&self.shared, object, first * BLOCK_BYTES, len).await {
            Some(Ok(data)) => data,
            Some(Err(error)) => return Err(self.unreadable(&error)),
            None => return Err(Stopped),
        };
        let hashes = hash_blocks(&data);
        let (answer, wait) = oneshot::channel();
        let id = self.source.next_batch.get() + 1;
        self.source.next_batch.set(id);
        self.source.wants.borrow_mut().insert(id, answer);
        let offer = Message::Offer {
            id,
            object,
            first_block: first,
            hashes,
        };
        self.with(|d| d.send(self.replica, &offer))?;
        let Wanted { bits, next } = wait.await.map_err(|_| Stopped)?;
        self.with(|d| d.note_progress(self.replica, 0))?;
        let mut items: Vec<DirtyItem> = Vec::new();
        for block in 0..BLOCKS_PER_EXTENT {
            let at = usize::try_from(block / 8).expect("small");
            if bits
                .get(at)
                .is_some_and(|byte| byte & (1 << (block % 8)) != 0)
            {
                match items.last_mut() {
                    Some(DirtyItem::Blocks { end, .. }) if *end == first + block => *end += 1,
                    _ => items.push(DirtyItem::Blocks {
                        object,
                        start: first + block,
                        end: first + block + 1,
                    }),
                }
            }
        }
        Ok((items, next))
    }
}

/// Reads a whole extent in pieces that a read may have.
pub(super) async fn read_extent<M: Medium>(
    shared: &Shared<M>,
    object: ObjectId,
    offset: u64,
    len: u32,
) -> Option<Result<Bytes, storage::ReadError>> {
    let mut data = BytesMut::with_capacity(len as usize);
    let mut at = 0;
    while at < len {
        let piece = (len - at).min(PAYLOAD_BYTES_MAX as u32);
        match read_surely(shared, object, offset + u64::from(at), piece).await? {
            Ok(bytes) => data.extend_from_slice(&bytes),
            Err(error) => return Some(Err(error)),
        }
        at += piece;
    }
    Some(Ok(data.freeze()))
}

/// [`HASH_BYTES`] of BLAKE3 for each block.
pub(super) fn hash_blocks(data: &[u8]) -> Bytes {
    let mut hashes = BytesMut::with_capacity(data.len() / 256);
    for block in data.chunks(BLOCK_BYTES as usize) {
        hashes.extend_from_slice(&blake3::hash(block).as_bytes()[..HASH_BYTES]);
    }
    hashes.freeze()
}

/// Keys and values.
pub(super) type Pairs = Vec<(Bytes, Bytes)>;

/// Keys from `from` on, as many as fit one message, and whether there are more.
pub(super) fn range_of_keys<M: Medium>(
    d: &Driver<M>,
    from: &[u8],
) -> Result<(Pairs, bool), storage::ReadError> {
    let mut pairs = Vec::new();
    let mut bytes = 0;
    let mut more = false;
    d.brick.scan(from, &[0xff; 32], &mut |key, value| {
        if pairs.len() >= EXACT_KEYS_MAX || bytes >= EXACT_BYTES_MAX {
            more = true;
            return false;
        }
        bytes += key.len() + value.len();
        pairs.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        true
    })?;
    Ok((pairs, more))
}

/// The first key after `key`.
pub(super) fn after_key(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.extend_from_slice(&[0]);
    next.freeze()
}

/// The next of the items, or of a long run of blocks as much as makes up to `most` bytes, one
/// block at least.
fn next_piece(todo: &mut VecDeque<DirtyItem>, most: usize) -> Option<DirtyItem> {
    let item = todo.pop_front()?;
    let DirtyItem::Blocks { object, start, end } = item else {
        return Some(item);
    };
    let cut = (most as u64 / BLOCK_BYTES).max(1).saturating_add(start);
    if cut >= end {
        return Some(item);
    }
    todo.push_front(DirtyItem::Blocks {
        object,
        start: cut,
        end,
    });
    Some(DirtyItem::Blocks {
        object,
        start,
        end: cut,
    })
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
