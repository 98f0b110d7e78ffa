//! copy_file_range(2) inside the volume: the primary reads, and orders what it read as a write.
//!
//! ```text
//! taken ─► reading ─► room, blocks at the edges ─► ordered ─► stable everywhere ─► answered
//! ```
//!
//! Two steps, as Linux promises no more: what others write meanwhile may be in the copy or not.
//! It takes effect once, as the record keeps the reply. The client has no data to put back after
//! a power cut (DUR-5), so it is answered only when the copy is stable.

use std::time::Duration;

use bytes::Bytes;
use namespace::Executed;
use namespace::leases::touched;
use protocol::fs::{Outcome, Request};
use protocol::ids::SessionId;
use protocol::units::{ObjectId, Sequence, Term};
use storage::Medium;
use tokio::sync::oneshot;

use super::clients::{EIO, Refusal};
use super::driver::{Driver, OrderError, Shared};
use super::held::{FlushWaiter, PendingReply};
use super::keys::Keys;
use super::leases::Leased;
use super::repair::read_surely;

/// Something changed may have been told before it was waited for: it is looked again so soon.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// What is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub(super) from: ObjectId,
    pub(super) offset: u64,
    pub(super) len: u32,
}

/// A request to copy, and who asked it of which primary.
struct Copying {
    session: SessionId,
    term: Term,
    request: Request,
    since: Option<Duration>,
}

/// How far a copy is.
enum Step {
    /// Something must change first.
    Later,
    /// It is a record; told when that is stable.
    Ordered(Sequence, Outcome, Leased, oneshot::Receiver<()>),
    /// It ends with this, and nothing changed.
    Answered(Outcome),
    /// Nobody waits for an answer from this primary.
    Over,
}

/// Begins to copy.
pub(super) fn copy<M: Medium>(
    driver: &Driver<M>,
    shared: &Shared<M>,
    session: SessionId,
    request: &Request,
    piece: Piece,
) {
    let copying = Copying {
        session,
        term: driver.machine.durable().term,
        request: request.clone(),
        since: Some(driver.now()),
    };
    let shared = shared.clone();
    tokio::task::spawn_local(async move { copying.run(&shared, piece).await });
}

impl Copying {
    async fn run<M: Medium>(self, shared: &Shared<M>, piece: Piece) {
        let data = match read_surely(shared, piece.from, piece.offset, piece.len).await {
            Some(Ok(data)) => data,
            Some(Err(error)) => {
                let mut d = shared.borrow_mut();
                d.tell_failed_read(&error);
                let sequence = d.machine.last();
                return self.answer(&mut d, sequence, Outcome::Error(EIO), None);
            }
            None => return, // the brick is closing
        };
        loop {
            let (step, changed) = {
                let mut d = shared.borrow_mut();
                let step = self.step(&mut d, piece, &data);
                d.finish_turn();
                (step, d.changed.clone())
            };
            match step {
                Step::Later => {
                    let _ = tokio::time::timeout(LOOK_AGAIN, changed.notified()).await;
                }
                Step::Ordered(sequence, outcome, leased, stable) => {
                    if stable.await.is_ok() {
                        self.answer(&mut shared.borrow_mut(), sequence, outcome, Some(leased));
                    }
                    return; // else the client asks the next primary
                }
                Step::Answered(outcome) => {
                    let mut d = shared.borrow_mut();
                    let sequence = d.machine.last();
                    return self.answer(&mut d, sequence, outcome, None);
                }
                Step::Over => return,
            }
        }
    }

    /// Whether the request is still under way at this primary. In a later term it was asked again.
    fn is_awaited<M: Medium>(&self, d: &Driver<M>) -> bool {
        let slot = d.sessions.by_id.get(&self.session);
        let slot = slot.and_then(|s| s.slots.get(&self.request.slot));
        let under_way = slot.is_some_and(|s| s.number == self.request.number && s.done.is_none());
        let serves = d.failed.is_none() && d.machine.serves();
        under_way && serves && d.machine.durable().term == self.term
    }

    fn step<M: Medium>(&self, d: &mut Driver<M>, piece: Piece, data: &Bytes) -> Step {
        if !self.is_awaited(d) {
            return Step::Over;
        }
        if d.is_full() || d.is_handing_over() || d.replays.hold_up() {
            return Step::Later;
        }
        // It may have become shorter while it was read: what is past its end is not copied.
        let size = match namespace::size(&Keys(&d.brick), piece.from) {
            Ok(size) => size.unwrap_or(0).saturating_sub(piece.offset),
            Err(error) => {
                tracing::error!(%error, "a copy could not be decided");
                return Step::Answered(Outcome::Error(EIO));
            }
        };
        let len = usize::try_from(size).map_or(data.len(), |left| left.min(data.len()));
        let Some(write) = namespace::copied(&self.request, data.slice(..len)) else {
            return Step::Answered(Outcome::Error(EIO));
        };
        match d.refuse_change(self.session, &write) {
            Some(Refusal::Errno(errno)) => return Step::Answered(Outcome::Error(errno)),
            Some(Refusal::HeldBack) => {
                d.give_up_early_room();
                return Step::Later;
            }
            None => {}
        }
        if d.repairs.holds(&write.operation) || !d.is_prepared(&write.operation, len as u64) {
            return Step::Later;
        }
        self.order(d, &write)
    }

    fn order<M: Medium>(&self, d: &mut Driver<M>, write: &Request) -> Step {
        let now = d.timestamp();
        let set = match d.decide_on(self.session, write, now, ObjectId::ROOT) {
            Ok(Executed::Change(set)) => set,
            Ok(Executed::Answer(outcome)) => return Step::Answered(outcome),
            Ok(_) => return Step::Answered(Outcome::Error(EIO)),
            Err(error) => {
                tracing::error!(%error, "a copy could not be decided");
                return Step::Answered(Outcome::Error(EIO));
            }
        };
        let objects = touched(&set.changes);
        let Some(old) = d.may_change(self.session, &objects) else {
            return Step::Later;
        };
        match d.order(set.changes, set.payload) {
            Ok(sequence) => {
                d.note_author(self.session, write, sequence);
                d.replays.changers.note(self.session);
                let (done, stable) = oneshot::channel();
                d.sync_all = true;
                d.sync_waiters.push(FlushWaiter::Task(done));
                let outcome = d.with_blocks(set.outcome);
                let grants = d.grants_of(self.session, &write.operation, &outcome);
                let leased = Leased {
                    grants,
                    old,
                    alone: None,
                    times: d.note_changed(self.session, &objects, &outcome),
                    directories: Vec::new(),
                };
                Step::Ordered(sequence, outcome, leased, stable)
            }
            Err(OrderError::Brick(error)) => {
                d.fail(&error);
                Step::Over
            }
            Err(OrderError::Refused(_)) => Step::Over,
        }
    }

    fn answer<M: Medium>(
        self,
        d: &mut Driver<M>,
        sequence: Sequence,
        outcome: Outcome,
        changed: Option<Leased>,
    ) {
        if !self.is_awaited(d) {
            return;
        }
        d.reply_when_confirmed(PendingReply {
            session: self.session,
            slot: self.request.slot,
            number: self.request.number,
            sequence,
            since: self.since,
            changed: changed.is_some(),
            leased: changed.unwrap_or_default(),
            outcome,
        });
        d.finish_turn();
    }
}
