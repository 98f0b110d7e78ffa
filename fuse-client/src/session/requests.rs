//! Requests on their way into the table and onto the link, in one order: what is decided about a
//! request under the state's lock holds for everything that comes behind it. So nothing that gives
//! a lock back overtakes what took it, or is overtaken by what takes it again.

use std::time::Instant;

use protocol::fs::{Lock, Operation, Outcome};
use protocol::units::ObjectId;

use super::caching::Asked;
use super::table::{Answered, Submission, Submitted};
use super::{EAGAIN, EINTR, EIO, Key, Range, Session, Shared, State, Waiter, go, keep, plain};

/// Those who are to be answered once the state is free, and what.
pub(super) type Done = Vec<(Waiter, Outcome)>;

fn fail_all(waiters: Vec<Waiter>) -> Done {
    let failed = waiters.into_iter();
    failed.map(|waiter| (waiter, Outcome::Error(EIO))).collect()
}

impl Shared {
    pub(super) fn submit(&self, submission: Submission<Waiter>) {
        let mut state = self.state.lock();
        let refused = self.put(&mut state, submission);
        let link = state.sending().cloned();
        drop(state);
        go(link);
        if let Some((waiter, outcome)) = refused {
            self.answer(waiter, outcome);
        }
    }

    /// Puts a request behind those that were asked before; [`go`] follows. Returns who is answered
    /// already, and how: who is refused, and whose change is sure.
    fn put(
        &self,
        state: &mut State,
        mut submission: Submission<Waiter>,
    ) -> Option<(Option<Waiter>, Outcome)> {
        // What gives a lock back waits for a primary, whoever waits for it or not.
        let waits = matches!(submission.operation, Operation::Unlock { .. }) && !state.ended;
        let fails = state.fails(self.config.no_primary_eio) && !waits;
        let through = submission.through;
        if fails || through.is_some_and(|handle| self.locks.are_lost(handle)) {
            return Some((submission.waiter, Outcome::Error(EIO)));
        }
        let connected = state.sending().is_some();
        let bytes = submission.payload.len();
        let syncs = |waiter: &Waiter| match waiter {
            Waiter::Kernel(waiting) => waiting.shape.then_syncs(),
            Waiter::Caller(_) | Waiter::Told(_) | Waiter::Flush => false,
        };
        let may_be_early = self.config.early
            && connected
            && submission.unique.is_some()
            && !submission.waiter.as_ref().is_some_and(syncs)
            && submission.operation.early_file().is_some()
            && state.table.may_be_early(bytes, Instant::now());
        let operation = &submission.operation;
        let (asked, early) = Asked::new(&self.cache, operation, bytes, may_be_early);
        submission.asked = asked;
        let mut answered = None;
        if let Some((known, outcome)) = early {
            submission.early = Some(known);
            submission.unique = None;
            answered = Some((submission.waiter.take(), outcome));
        }
        match state.table.submit(submission, Instant::now(), connected) {
            Submitted::Send(frame) => state.queue(&[frame]),
            Submitted::Waits => {}
            Submitted::Full(waiter) => return Some((waiter, Outcome::Error(EAGAIN))),
        }
        answered
    }

    /// What was answered early came back with an error, or never will come: it is lost. `go` follows.
    pub(super) fn note_early(&self, state: &mut State, failed: Option<(ObjectId, i32)>) {
        if let Some((object, errno)) = failed {
            self.cache.lock().failed(object);
            self.tell_refused(object, errno);
        }
        let objects = state.table.take_lost();
        if !objects.is_empty() {
            let mut cache = self.cache.lock();
            objects.iter().for_each(|object| cache.failed(*object));
            drop(cache);
            self.tell_lost(&keep::Lost {
                objects,
                ..keep::Lost::default()
            });
        }
        let connected = state.sending().is_some();
        let syncs = state.table.ask_again(connected);
        state.queue(&syncs);
    }

    /// A sync was answered: who waits for it is, if everything that had been answered early before it
    /// has been taken.
    pub(super) fn look_after_sync(state: &mut State, answered: &mut Answered<Waiter>) {
        let Some(waiter) = answered.waiter.take() else {
            return;
        };
        let (unique, through) = match &waiter {
            Waiter::Kernel(waiting) => (Some(waiting.unique), waiting.through),
            Waiter::Caller(_) | Waiter::Told(_) | Waiter::Flush => (None, None),
        };
        let again = Submission {
            unique,
            through,
            ..plain(Some(waiter), answered.operation.clone())
        };
        let since = (answered.submitted, answered.interrupted);
        let over = state.table.sync(answered.order, again, since);
        answered.waiter = over.and_then(|sync| sync.waiter);
    }

    /// Asks something whose answer nobody waits for; [`go`] follows.
    pub(super) fn tell(&self, state: &mut State, operation: Operation) {
        // Nobody is there to be told of a refusal.
        let _ = self.put(state, plain(None, operation));
    }

    pub(super) fn answer_all(&self, done: Done) {
        for (waiter, outcome) in done {
            self.answer(Some(waiter), outcome);
        }
    }

    /// What was presented is answered as far as that matters: everything else may be asked.
    pub(super) fn end_presenting(&self, state: &mut State) {
        if state.keep.awaits_locks() {
            return; // nothing is done under a lock that may be lost
        }
        if let Some(mark) = state.presenting.take() {
            let frames = state.table.resend(mark);
            state.queue(&frames);
            let returns = std::mem::take(&mut state.returns);
            state.queue(&returns);
            self.look_after_kept(state, None);
        }
    }

    // ---- locks ---------------------------------------------------------------------------------

    /// Has a lock given back that its owner does not know of.
    fn give_back(&self, state: &mut State, (object, owner): Key, ranges: Vec<Range>) {
        for (start, end) in ranges {
            let unlock = Operation::Unlock {
                object,
                owner,
                start,
                end,
            };
            self.tell(state, unlock);
        }
    }

    /// A request for a lock was answered: nobody may be there any more who asked.
    pub(super) fn look_after_lock(
        &self,
        state: &mut State,
        answered: &Answered<Waiter>,
        outcome: &mut Outcome,
    ) {
        let Operation::Lock {
            object,
            lock,
            waits,
            ..
        } = &answered.operation
        else {
            return;
        };
        if *outcome == Outcome::Done && answered.waiter.is_none() {
            let (key, range) = ((*object, lock.owner), (lock.start, lock.end));
            let unknown = self.locks.not_known(key, range);
            self.give_back(state, key, unknown);
        }
        // It would wait now: the signal that came before ends that.
        if *waits && answered.interrupted && *outcome == Outcome::Error(EAGAIN) {
            *outcome = Outcome::Error(EINTR);
        }
    }

    /// The session had ended, and every lock with it. Returns who is to be told.
    pub(super) fn session_ended(&self, state: &mut State) -> Done {
        let files = self.locks.session_ended();
        if files > 0 {
            tracing::error!(
                files,
                "the session had ended: locks are lost, their files give EIO"
            );
        }
        let mut lost = state.table.forgotten();
        self.note_early(state, None);
        if !lost.is_empty() {
            tracing::warn!(
                operations = lost.len(),
                "the session had ended: whether these operations took effect is not known"
            );
        }
        lost.extend(self.fail_under_lost_locks(state));
        fail_all(lost)
    }

    fn fail_under_lost_locks(&self, state: &mut State) -> Vec<Waiter> {
        let waiters = state
            .table
            .fail_through(|handle| self.locks.are_lost(handle));
        self.note_early(state, None);
        state.refill();
        waiters
    }

    /// What was confirmed about locks was lost. Returns who is to be told.
    pub(super) fn note_lost(&self, state: &mut State, lost: &keep::Lost) -> Done {
        if lost.locking.is_empty() && !lost.any {
            return Done::new();
        }
        let taken = lost.locking.iter().filter_map(|locking| match locking {
            Operation::Lock { object, lock, .. } => Some((*object, lock.owner)),
            _ => None,
        });
        let taken: Vec<_> = taken.collect();
        let files = self.locks.lost((!lost.any).then_some(&taken));
        // Given back before, and held there again: nobody here knows of it.
        for locking in &lost.locking {
            if let Operation::Unlock {
                object,
                owner,
                start,
                end,
            } = *locking
            {
                let unknown = self.locks.not_known((object, owner), (start, end));
                self.give_back(state, (object, owner), unknown);
            }
        }
        if files == 0 {
            return Done::new();
        }
        tracing::error!(
            files,
            "locks that were confirmed are lost, their files give EIO"
        );
        fail_all(self.fail_under_lost_locks(state))
    }
}

impl Session {
    /// Whoever asked for a lock is answered; `ticket`: it was waited for, unless 0.
    pub(crate) fn lock_answered(
        &self,
        handle: u64,
        object: ObjectId,
        lock: &Lock,
        ticket: u64,
        granted: bool,
    ) {
        let (key, range) = ((object, lock.owner), (lock.start, lock.end));
        let shared = &self.shared;
        let mut state = shared.state.lock();
        if !granted && ticket != 0 {
            // It may be waited for or reserved there.
            shared.tell(&mut state, Operation::ForgetLock { ticket });
        }
        let unknown = shared.locks.answered(handle, key, range, granted);
        shared.give_back(&mut state, key, unknown);
        let link = state.sending().cloned();
        drop(state);
        go(link);
    }
}
