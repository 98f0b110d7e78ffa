//! Requests under way: their slots and numbers, who waits for them, what is sent again.
//!
//! Pure: the session tells it what happened and does what it returns.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use protocol::frame::RawFrame;
use protocol::fs::{
    Caller, EARLY_BYTES_MAX, EARLY_MAX, Operation, Outcome, Request, SLOT_NONE, SLOTS_MAX,
};
use protocol::units::{ObjectId, Timestamp};

use super::caching::Asked;
use super::leases::EARLY_UNANSWERED_MAX;

/// Objects of which it is known when they were changed; beyond, only those count that are under way.
const CHANGED_MAX: usize = 1024;
/// Requests that wait for a slot. Each blocks a thread of an application, so there are few; more
/// than this are refused with EAGAIN.
const WAITING_MAX: usize = 16_384;
/// What somebody asked who is about to end is given up when its answer takes so long, or there is
/// no connection.
pub(super) const INTERRUPT_PATIENCE: Duration = Duration::from_secs(1);
/// What somebody asked who handled a signal, so that its call would fail with EINTR, is given up
/// when its answer takes so long, connection or not: longer than a failover takes, on long lines as
/// well, or every program with a timer would see errors in it.
pub(super) const SIGNAL_PATIENCE: Duration = Duration::from_secs(10);
/// A close waits so long for a primary to confirm what it gives back: a process that was killed
/// cannot leave before.
pub(super) const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// A request before it has a number.
#[derive(Debug)]
pub(super) struct Submission<W> {
    pub(super) waiter: Option<W>,
    /// The kernel's number of the request, by which it interrupts.
    pub(super) unique: Option<u64>,
    /// The open file through which it is asked: it fails when that has lost locks.
    pub(super) through: Option<u64>,
    pub(super) caller: Caller,
    pub(super) operation: Operation,
    pub(super) payload: Bytes,
    /// As the cache is to know of it.
    pub(super) asked: Asked,
    /// Who asked was answered already; the change time by which that was decided.
    pub(super) early: Option<Timestamp>,
}

/// A request under way.
#[derive(Debug)]
struct Pending<W> {
    waiter: Option<W>,
    unique: Option<u64>,
    through: Option<u64>,
    operation: Operation,
    frame: RawFrame,
    submitted: Instant,
    interrupted: bool,
    /// It may have reached a primary, on this connection or an earlier one.
    sent: bool,
    /// It was sent more than once.
    again: bool,
    asked: Asked,
    early: bool,
}

/// A change that waits for a slot, or a sync that waits to be asked again.
#[derive(Debug)]
struct Waiting<W> {
    order: u64,
    submission: Submission<W>,
    submitted: Instant,
    interrupted: bool,
}

type Key = (u16, u64);

/// What came of an answer.
#[derive(Debug)]
pub(super) struct Answered<W> {
    /// Who waits, unless he gave up.
    pub(super) waiter: Option<W>,
    pub(super) operation: Operation,
    /// As it was sent.
    pub(super) frame: RawFrame,
    /// The request that waited for the slot.
    pub(super) next: Option<RawFrame>,
    pub(super) submitted: Instant,
    /// A signal came for who waits.
    pub(super) interrupted: bool,
    /// It was sent more than once.
    pub(super) again: bool,
    pub(super) asked: Asked,
    /// Who asked was answered already.
    pub(super) early: bool,
    /// Its place in the order of submission.
    pub(super) order: u64,
}

/// What came of a submission.
#[derive(Debug)]
pub(super) enum Submitted<W> {
    /// Send this, if there is a connection.
    Send(RawFrame),
    /// It has to wait for a slot.
    Waits,
    /// Too many wait: refused.
    Full(Option<W>),
}

/// What came of an interruption.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Interrupted<W> {
    /// Answer EINTR now.
    Answer(W),
    /// Its answer is awaited for now.
    Noted,
    /// No such request: answered already, or not here yet.
    Unknown,
}

#[derive(Debug)]
pub(super) struct Table<W> {
    /// The last one freed is used first, so that few slots are in use.
    free: Vec<u16>,
    /// Last number of each slot.
    numbers: Vec<u64>,
    next_plain: u64,
    /// In the order of submission, which is the order of sending again.
    pending: BTreeMap<u64, (Key, Pending<W>)>,
    by_key: HashMap<Key, u64>,
    by_unique: HashMap<u64, u64>,
    waiting: VecDeque<Waiting<W>>,
    next_order: u64,
    /// No change begins for now.
    held_up: bool,
    /// Changes under way that were answered already, with the bytes of their data.
    early: BTreeMap<u64, u64>,
    early_bytes: u64,
    /// When their objects were changed, by answers since the first of them was asked.
    changed_at: HashMap<ObjectId, Timestamp>,
    /// Syncs that were answered before some that came before them: they are asked again.
    syncs: Vec<Waiting<W>>,
    /// Objects of such changes that were given up.
    lost: Vec<ObjectId>,
}

impl<W> Table<W> {
    pub(super) fn new() -> Self {
        Self {
            free: (0..SLOTS_MAX).rev().collect(),
            numbers: vec![0; usize::from(SLOTS_MAX)],
            next_plain: 0,
            pending: BTreeMap::new(),
            by_key: HashMap::new(),
            by_unique: HashMap::new(),
            waiting: VecDeque::new(),
            next_order: 0,
            held_up: false,
            early: BTreeMap::new(),
            early_bytes: 0,
            changed_at: HashMap::new(),
            syncs: Vec::new(),
            lost: Vec::new(),
        }
    }

    /// Whether a change with so many bytes of data may be answered now: it goes on its way at once,
    /// and the primary has room for it.
    pub(super) fn may_be_early(&self, bytes: usize, now: Instant) -> bool {
        let first = self.early.keys().next().and_then(|o| self.pending.get(o));
        let since = first.map_or(now, |(_, pending)| pending.submitted);
        if now.duration_since(since) >= EARLY_UNANSWERED_MAX {
            return false;
        }
        let waits = self.held_up || !self.waiting.is_empty() || self.free.is_empty();
        let few = self.early.len() < usize::from(EARLY_MAX);
        !waits && few && self.early_bytes + bytes as u64 <= EARLY_BYTES_MAX
    }

    /// Whether changes are under way that were answered already.
    pub(super) fn has_early(&self) -> bool {
        !self.early.is_empty()
    }

    /// What was answered early and will not take effect since the last call.
    pub(super) fn take_lost(&mut self) -> Vec<ObjectId> {
        std::mem::take(&mut self.lost)
    }

    /// A sync was answered that was asked in this order. It comes back if everything before it was
    /// answered, too. Else it may have overtaken what it was to make stable, on the way or in between:
    /// [`Table::ask_again`] asks it once more.
    pub(super) fn sync(
        &mut self,
        order: u64,
        submission: Submission<W>,
        (submitted, interrupted): (Instant, bool),
    ) -> Option<Submission<W>> {
        if self.early.range(..order).next().is_none() {
            return Some(submission);
        }
        self.syncs.push(Waiting {
            order,
            submission,
            submitted,
            interrupted,
        });
        None
    }

    /// Asks those syncs again that wait for nothing any more, in their old order.
    pub(super) fn ask_again(&mut self, connected: bool) -> Vec<RawFrame> {
        let first = self.early.keys().next().copied();
        let is_over = |sync: &mut Waiting<W>| first.is_none_or(|first| sync.order < first);
        let over: Vec<_> = self.syncs.extract_if(.., is_over).collect();
        let again = over.into_iter().map(|sync| {
            self.next_plain += 1;
            self.start((SLOT_NONE, self.next_plain), sync, connected)
        });
        again.collect()
    }

    fn early_is_over(&mut self, order: u64) {
        self.early_bytes -= self.early.remove(&order).unwrap_or(0);
        if self.early.is_empty() {
            self.changed_at.clear();
        }
    }

    /// An answer told when an object was changed: what is sent again of changes that were answered
    /// early says so, as that was their own session's doing.
    pub(super) fn changed(&mut self, object: ObjectId, at: Timestamp) {
        if !self.has_early() {
            return;
        }
        if self.changed_at.len() >= CHANGED_MAX {
            let early = self
                .early
                .keys()
                .filter_map(|order| self.pending.get(order));
            let early = early.filter_map(|(_, pending)| pending.operation.early_file());
            let early: HashSet<_> = early.collect();
            self.changed_at.retain(|object, _| early.contains(object));
        }
        self.changed_at.insert(object, at);
    }

    /// Of how many objects it is known when they were changed.
    #[cfg(test)]
    pub(super) fn known(&self) -> usize {
        self.changed_at.len()
    }

    /// Requests under way or waiting.
    pub(super) fn len(&self) -> usize {
        self.pending.len() + self.waiting.len() + self.syncs.len()
    }

    /// Whether changes have to wait, for another reason than slots. After they had to,
    /// [`Table::refill`] gives those that may go.
    pub(super) fn hold_up(&mut self, held_up: bool) {
        self.held_up = held_up;
    }

    /// Changes that may have reached a primary and are not answered, in the order of asking.
    pub(super) fn unanswered(&self) -> impl Iterator<Item = &RawFrame> {
        let sent = self.pending.values().filter(|(_, pending)| pending.sent);
        sent.filter(|(key, _)| key.0 != SLOT_NONE)
            .map(|(_, pending)| &pending.frame)
    }

    pub(super) fn submit(
        &mut self,
        submission: Submission<W>,
        now: Instant,
        connected: bool,
    ) -> Submitted<W> {
        let order = self.next_order;
        self.next_order += 1;
        let key = if submission.operation.changes() {
            // Nobody overtakes those who wait for a slot.
            let waits = self.held_up || !self.waiting.is_empty();
            let free = if waits { None } else { self.free.pop() };
            let Some(slot) = free else {
                if self.waiting.len() >= WAITING_MAX {
                    return Submitted::Full(submission.waiter);
                }
                self.waiting.push_back(Waiting {
                    order,
                    submission,
                    submitted: now,
                    interrupted: false,
                });
                return Submitted::Waits;
            };
            self.numbers[usize::from(slot)] += 1;
            (slot, self.numbers[usize::from(slot)])
        } else {
            self.next_plain += 1;
            (SLOT_NONE, self.next_plain)
        };
        let begins = Waiting {
            order,
            submission,
            submitted: now,
            interrupted: false,
        };
        Submitted::Send(self.start(key, begins, connected))
    }

    fn start(&mut self, key: Key, begins: Waiting<W>, sent: bool) -> RawFrame {
        let Waiting {
            order,
            submission,
            submitted,
            interrupted,
        } = begins;
        let request = Request {
            slot: key.0,
            number: key.1,
            caller: submission.caller,
            operation: submission.operation,
            early: submission.early,
            payload: submission.payload,
        };
        if request.early.is_some() {
            let bytes = request.payload.len() as u64;
            self.early.insert(order, bytes);
            self.early_bytes += bytes;
        }
        let frame = request.encode();
        if let Some(unique) = submission.unique {
            self.by_unique.insert(unique, order);
        }
        self.by_key.insert(key, order);
        let pending = Pending {
            waiter: submission.waiter,
            unique: submission.unique,
            through: submission.through,
            operation: request.operation,
            frame: frame.clone(),
            submitted,
            interrupted,
            sent,
            again: false,
            asked: submission.asked,
            early: submission.early.is_some(),
        };
        self.pending.insert(order, (key, pending));
        frame
    }

    /// The primary answered. `None`: nothing like that was asked.
    pub(super) fn answered(
        &mut self,
        slot: u16,
        number: u64,
        connected: bool,
    ) -> Option<Answered<W>> {
        let order = self.by_key.remove(&(slot, number))?;
        let (_, pending) = self.pending.remove(&order)?;
        self.early_is_over(order);
        if let Some(unique) = pending.unique {
            self.by_unique.remove(&unique);
        }
        let next = if slot == SLOT_NONE {
            None
        } else {
            self.reuse(slot, connected)
        };
        Some(Answered {
            waiter: pending.waiter,
            operation: pending.operation,
            frame: pending.frame,
            next,
            submitted: pending.submitted,
            interrupted: pending.interrupted,
            again: pending.again,
            asked: pending.asked,
            early: pending.early,
            order,
        })
    }

    fn reuse(&mut self, slot: u16, connected: bool) -> Option<RawFrame> {
        let next = if self.held_up {
            None
        } else {
            self.waiting.pop_front()
        };
        let Some(begins) = next else {
            self.free.push(slot);
            return None;
        };
        let number = &mut self.numbers[usize::from(slot)];
        *number += 1;
        let key = (slot, *number);
        Some(self.start(key, begins, connected))
    }

    /// A signal came for whoever waits for `unique`; `dies` tells whether it ends him.
    pub(super) fn interrupt(
        &mut self,
        unique: u64,
        now: Instant,
        connected: bool,
        dies: impl Fn(&W) -> bool,
    ) -> Interrupted<W> {
        let asked = |waiting: &Waiting<W>| waiting.submission.unique == Some(unique);
        if let Some(at) = self.waiting.iter().position(asked) {
            self.waiting[at].interrupted = true;
            if !self.waiting[at].is_due(now, &dies) {
                return Interrupted::Noted;
            }
            return match self.withdraw(at) {
                Some(waiter) => Interrupted::Answer(waiter),
                None => Interrupted::Unknown,
            };
        }
        if let Some(at) = self.syncs.iter().position(asked) {
            self.syncs[at].interrupted = true;
            if !self.syncs[at].is_due(now, &dies) {
                return Interrupted::Noted;
            }
            return match self.syncs.remove(at).submission.waiter {
                Some(waiter) => Interrupted::Answer(waiter),
                None => Interrupted::Unknown,
            };
        }
        let Some(order) = self.by_unique.get(&unique).copied() else {
            return Interrupted::Unknown;
        };
        let Some((_, pending)) = self.pending.get_mut(&order) else {
            return Interrupted::Unknown;
        };
        pending.interrupted = true;
        // Who waits for a lock gets nothing by that alone.
        let waits = matches!(pending.operation, Operation::AwaitLock { .. });
        if !waits && !pending.is_due(now, connected, &dies) {
            return Interrupted::Noted;
        }
        match self.give_up(order) {
            Some(waiter) => Interrupted::Answer(waiter),
            None => Interrupted::Unknown,
        }
    }

    /// The waiters of interrupted requests whose answer takes too long.
    pub(super) fn impatient(
        &mut self,
        now: Instant,
        connected: bool,
        dies: impl Fn(&W) -> bool,
    ) -> Vec<W> {
        let mut waiters = self.give_up_where(|pending| pending.is_due(now, connected, &dies));
        // From the end, as what is withdrawn is gone.
        for at in (0..self.waiting.len()).rev() {
            if self.waiting[at].is_due(now, &dies) {
                waiters.extend(self.withdraw(at));
            }
        }
        let due = |sync: &mut Waiting<W>| sync.is_due(now, &dies);
        let syncs = self.syncs.extract_if(.., due);
        waiters.extend(syncs.filter_map(|sync| sync.submission.waiter));
        waiters
    }

    /// Nobody waits any more for what waits for a slot. It was not sent, so it never happens,
    /// unless it must.
    fn withdraw(&mut self, at: usize) -> Option<W> {
        if must_happen(&self.waiting[at].submission.operation) {
            return self.waiting[at].submission.waiter.take();
        }
        let gone = self.waiting.remove(at);
        gone.and_then(|gone| gone.submission.waiter)
    }

    /// The waiters of everything that was submitted before `limit`.
    pub(super) fn older_than(&mut self, limit: Instant) -> Vec<W> {
        let mut waiters = self.give_up_where(|pending| pending.submitted <= limit);
        let syncs = self.syncs.drain(..);
        waiters.extend(syncs.filter_map(|sync| sync.submission.waiter));
        let mut kept = VecDeque::new();
        for mut entry in self.waiting.drain(..) {
            if entry.submitted <= limit {
                waiters.extend(entry.submission.waiter.take());
            }
            if entry.submitted > limit || must_happen(&entry.submission.operation) {
                kept.push_back(entry);
            }
        }
        self.waiting = kept;
        waiters
    }

    /// The waiters of everything that waits for a lock.
    pub(super) fn waits_for_locks(&mut self) -> Vec<W> {
        self.give_up_where(|pending| matches!(pending.operation, Operation::AwaitLock { .. }))
    }

    /// The waiters of requests that are carried out all the same, if `choose` says so: without a
    /// connection at once, and where the primary confirms nothing for [`CLOSE_PATIENCE`].
    pub(super) fn need_not_wait(
        &mut self,
        choose: impl Fn(&W) -> bool,
        now: Instant,
        connected: bool,
    ) -> Vec<W> {
        let sure = |operation: &Operation, waiter: &Option<W>, submitted: Instant| {
            let late = !connected || now.duration_since(submitted) >= CLOSE_PATIENCE;
            late && must_happen(operation) && waiter.as_ref().is_some_and(&choose)
        };
        let mut waiters = self.give_up_where(|p| sure(&p.operation, &p.waiter, p.submitted));
        for waiting in &mut self.waiting {
            let Waiting {
                submission,
                submitted,
                ..
            } = waiting;
            if sure(&submission.operation, &submission.waiter, *submitted) {
                waiters.extend(submission.waiter.take());
            }
        }
        waiters
    }

    /// Open files lost locks: what was asked through them and is not answered fails, sent or not.
    /// Their waiters. What gives locks back is not asked through a file.
    pub(super) fn fail_through(&mut self, lost: impl Fn(u64) -> bool) -> Vec<W> {
        let mut waiters = self.drop_where(|_, pending| pending.through.is_some_and(&lost));
        let fails = |sync: &mut Waiting<W>| sync.submission.through.is_some_and(&lost);
        let syncs = self.syncs.extract_if(.., fails);
        waiters.extend(syncs.filter_map(|sync| sync.submission.waiter));
        let waiting = std::mem::take(&mut self.waiting);
        for mut entry in waiting {
            if entry.submission.through.is_some_and(&lost) {
                waiters.extend(entry.submission.waiter.take());
            } else {
                self.waiting.push_back(entry);
            }
        }
        waiters
    }

    fn give_up_where(&mut self, choose: impl Fn(&Pending<W>) -> bool) -> Vec<W> {
        let orders: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, (_, p))| p.waiter.is_some() && choose(p))
            .map(|(order, _)| *order)
            .collect();
        orders
            .into_iter()
            .filter_map(|order| self.give_up(order))
            .collect()
    }

    /// Nobody waits for the request any more. What may have reached a primary and changes
    /// something stays until it is answered, so that its slot goes on in order; the rest goes.
    fn give_up(&mut self, order: u64) -> Option<W> {
        let (key, pending) = self.pending.get_mut(&order)?;
        let waiter = pending.waiter.take();
        if let Some(unique) = pending.unique.take() {
            self.by_unique.remove(&unique);
        }
        let key = *key;
        // An Open stays as well: the primary counts it, so its answer must be undone.
        let counts = matches!(pending.operation, Operation::Open { .. });
        let stays =
            (pending.sent && (key.0 != SLOT_NONE || counts)) || must_happen(&pending.operation);
        if !stays {
            self.pending.remove(&order);
            self.by_key.remove(&key);
            if key.0 != SLOT_NONE {
                // The number was never seen by a primary; numbers may skip.
                self.free.push(key.0);
            }
        }
        waiter
    }

    /// Tells what was submitted before now from what comes later.
    pub(super) fn mark(&self) -> u64 {
        self.next_order
    }

    /// A new connection: everything to send on it, in order. Releases from before `hello` (a
    /// [`Table::mark`]) are dropped: it said what is open.
    pub(super) fn resend(&mut self, hello: u64) -> Vec<RawFrame> {
        let gone: Vec<u64> = self
            .pending
            .iter()
            .filter(|(order, (_, p))| {
                let abandoned_open =
                    p.waiter.is_none() && matches!(p.operation, Operation::Open { .. });
                let released = matches!(p.operation, Operation::Release { .. });
                // Waits end with the connection; those that are left are asked for anew.
                let forgets = matches!(p.operation, Operation::ForgetLock { .. });
                abandoned_open || forgets || (released && **order < hello)
            })
            .map(|(order, _)| *order)
            .collect();
        for order in gone {
            if let Some((key, _)) = self.pending.remove(&order) {
                self.by_key.remove(&key);
            }
        }
        let mut frames = Vec::with_capacity(self.pending.len());
        for (_, pending) in self.pending.values_mut() {
            pending.again |= std::mem::replace(&mut pending.sent, true);
            let object = pending.operation.early_file().filter(|_| pending.early);
            if let Some(at) = object.and_then(|object| self.changed_at.get(&object)) {
                pending.frame = Request::known_later(&pending.frame, *at);
            }
            frames.push(pending.frame.clone());
        }
        frames
    }

    /// The primary forgot the session: whether requests that were sent to it and change
    /// something took effect cannot be known. Their waiters; they are not sent again. What was answered
    /// early is: it takes effect where nobody changed the file since (FO-6).
    pub(super) fn forgotten(&mut self) -> Vec<W> {
        self.drop_where(|key, pending| pending.sent && key.0 != SLOT_NONE && !pending.early)
    }

    /// Nothing becomes of these requests. A number that a primary may have seen is not used again.
    fn drop_where(&mut self, choose: impl Fn(&Key, &Pending<W>) -> bool) -> Vec<W> {
        let chosen = self.pending.iter();
        let chosen = chosen.filter(|(_, (key, pending))| choose(key, pending));
        let orders: Vec<u64> = chosen.map(|(order, _)| *order).collect();
        let mut waiters = Vec::new();
        for order in orders {
            if let Some((key, pending)) = self.pending.remove(&order) {
                self.by_key.remove(&key);
                if pending.early {
                    self.early_is_over(order);
                    self.lost.extend(pending.operation.early_file());
                }
                if let Some(unique) = pending.unique {
                    self.by_unique.remove(&unique);
                }
                if key.0 != SLOT_NONE {
                    self.free.push(key.0);
                }
                waiters.extend(pending.waiter);
            }
        }
        waiters
    }

    /// After slots became free without an answer: requests that may go now.
    pub(super) fn refill(&mut self, connected: bool) -> Vec<RawFrame> {
        let mut frames = Vec::new();
        while !self.waiting.is_empty() && !self.held_up {
            let Some(slot) = self.free.pop() else {
                break;
            };
            frames.extend(self.reuse(slot, connected));
        }
        frames
    }
}

impl<W> Pending<W> {
    /// Whether a signal came for who waits, and he waits no longer.
    fn is_due(&self, now: Instant, connected: bool, dies: &impl Fn(&W) -> bool) -> bool {
        let waited = now.duration_since(self.submitted);
        let healthy = connected && waited < INTERRUPT_PATIENCE;
        self.interrupted && !healthy && is_over(waited, self.waiter.as_ref(), dies)
    }
}

impl<W> Waiting<W> {
    /// The same. No answer is under way that could be awaited.
    fn is_due(&self, now: Instant, dies: &impl Fn(&W) -> bool) -> bool {
        let waited = now.duration_since(self.submitted);
        self.interrupted && is_over(waited, self.submission.waiter.as_ref(), dies)
    }
}

/// Whether who waited so long, and got a signal, waits no longer.
fn is_over<W>(waited: Duration, waiter: Option<&W>, dies: &impl Fn(&W) -> bool) -> bool {
    waited >= SIGNAL_PATIENCE || waiter.is_some_and(dies)
}

/// Whether a request is sent although nobody waits for it any more: nothing else would give the
/// locks back while the mount lives.
fn must_happen(operation: &Operation) -> bool {
    matches!(operation, Operation::Unlock { .. })
}

/// The object that an outcome says was opened for the session.
pub(super) fn opened(operation: &Operation, outcome: &Outcome) -> Option<ObjectId> {
    match (operation, outcome) {
        (Operation::Create { .. } | Operation::MakeUnnamed { .. }, Outcome::Entry(a))
        | (Operation::Open { .. }, Outcome::Attributes(a)) => Some(a.object),
        _ => None,
    }
}
