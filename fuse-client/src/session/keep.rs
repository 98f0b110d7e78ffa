//! What was confirmed and is not known to be stable (DUR-5).
//!
//! A confirmed operation may still be lost: by a power cut on every node, on a single copy, or,
//! under a looser ack policy, by a take-over. So it is kept, as it was sent, until the primary says
//! that it is stable. After a reconnect the primary tells where its past leaves that of the
//! earlier one; what it lacks is sent again, in order, and put back under the same number. What
//! cannot be, because it was too much to keep or because others went on meanwhile, is lost: the
//! files that it was about are told.
//!
//! Pure: it is told what happened, and returns what to send.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use protocol::frame::RawFrame;
use protocol::fs::{
    AUTHORS_MAX, Author, Operation, Outcome, Place, Present, Replay, Reply, Request, kind,
};
use protocol::mistakes::{Mistake, made};
use protocol::units::{ObjectId, Sequence, Term, Timestamp};

/// Bytes that are kept; at half of it everything is asked to be made stable. As much as a brick
/// lets wait for a sync by default.
const KEPT_BYTES_MAX: usize = 64 << 20;
/// Operations that are kept.
const KEPT_MAX: usize = 16 << 10;
/// What an operation takes besides its bytes, about.
const OVERHEAD_BYTES: usize = 256;
/// Objects of which is remembered that something about them is no longer kept and not stable.
const BEYOND_MAX: usize = 16 << 10;
/// Records of others that are remembered.
const REMEMBERED_MAX: usize = 4 * AUTHORS_MAX;

/// A confirmed operation.
#[derive(Debug)]
struct Kept {
    /// Its record in the primary's past, or in the past of the primary that is gone.
    at: Place,
    time: Timestamp,
    objects: Vec<ObjectId>,
    writes: bool,
    /// Where it is about a lock.
    locking: Option<Operation>,
    /// It was presented to the primary, which has not answered it yet.
    presented: bool,
    request: RawFrame,
}

impl Kept {
    fn bytes(&self) -> usize {
        OVERHEAD_BYTES + self.request.meta.len() + self.request.payload.len()
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Keep {
    /// Of the primary that is connected, or was last.
    term: Term,
    stable: Sequence,
    /// By the place where each was confirmed first.
    kept: BTreeMap<Place, Kept>,
    by_key: HashMap<(u16, u64), Place>,
    bytes: usize,
    /// Objects with something confirmed that is neither kept nor known to be stable: up to where.
    beyond: HashMap<ObjectId, Place>,
    /// The same of objects that nobody remembers.
    beyond_any: Place,
    /// What was confirmed about locks and is neither kept nor known to be stable.
    beyond_locking: BTreeMap<Place, Operation>,
    /// Locks that are presented; whether they are still held is not answered yet.
    asked_locks: BTreeSet<(u16, u64)>,
    authors: BTreeMap<Place, Author>,
    /// A flush is under way that covers everything up to here.
    flushing: Option<Place>,
    lost: BTreeSet<ObjectId>,
    lost_any: bool,
    lost_locking: Vec<Operation>,
}

/// What was lost since the last look.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// What it was about.
    pub objects: Vec<ObjectId>,
    /// It may have been about anything.
    pub any: bool,
    /// Taking and giving back of locks.
    pub locking: Vec<Operation>,
}

/// What a primary said as it let the client in.
#[derive(Debug, Clone, Copy)]
pub struct Welcome<'a> {
    /// Its term.
    pub term: Term,
    /// Of earlier terms, the last record that is part of its past.
    pub ends: &'a [Place],
    /// It takes nothing new before everybody has presented what he kept.
    pub gathers: bool,
    /// Data of large writes may be lost.
    pub in_doubt: bool,
    /// Leases that the client holds.
    pub leases: &'a [ObjectId],
    /// Those that it holds alone.
    pub exclusive: &'a [ObjectId],
    /// It sends changes of these again that were answered early.
    pub early: &'a [ObjectId],
}

impl Welcome<'_> {
    fn lacks(&self, (term, sequence): Place) -> bool {
        let end = self.ends.iter().find(|end| end.0 == term);
        end.is_some_and(|end| sequence > end.1)
    }
}

impl Keep {
    /// Nothing is kept.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Operations that are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether nothing is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// So much is kept that nothing should be changed before some of it is stable.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.bytes >= KEPT_BYTES_MAX || self.kept.len() >= KEPT_MAX
    }

    fn is_half_full(&self) -> bool {
        self.bytes >= KEPT_BYTES_MAX / 2 || self.kept.len() >= KEPT_MAX / 2
    }

    /// Whether everything should be asked to be made stable; from then on that counts as asked.
    pub fn wants_flush(&mut self) -> bool {
        let wants = self.is_half_full() && self.flushing.is_none();
        if wants {
            self.flushing = self.kept.keys().next_back().copied();
        }
        wants
    }

    /// What was asked to be made stable is, as the ack policy asks: what other replicas may lack
    /// all the same is let go where there is too much of it.
    pub fn flushed(&mut self) {
        let Some(upto) = self.flushing.take() else {
            return;
        };
        while self.is_half_full() {
            let Some(first) = self.kept.first_entry().filter(|first| *first.key() <= upto) else {
                return;
            };
            let kept = first.remove();
            self.forget_key(&kept);
            if let Some(locking) = kept.locking {
                if self.beyond_locking.len() >= BEYOND_MAX {
                    self.beyond_any = self.beyond_any.max(kept.at);
                } else {
                    self.beyond_locking.insert(kept.at, locking);
                }
            }
            for object in kept.objects {
                if self.beyond.len() >= BEYOND_MAX && !self.beyond.contains_key(&object) {
                    self.beyond_any = self.beyond_any.max(kept.at);
                } else {
                    self.beyond.insert(object, kept.at);
                }
            }
        }
    }

    fn forget_key(&mut self, kept: &Kept) {
        self.bytes -= kept.bytes();
        if let Some(key) = key_of(&kept.request) {
            self.by_key.remove(&key);
        }
    }

    /// A reply came: what it says of stability, and of others.
    pub fn told(&mut self, reply: &Reply) {
        for author in &reply.authors {
            if author.at.1 > reply.stable {
                self.authors.insert(author.at, *author);
            }
        }
        while self.authors.len() > REMEMBERED_MAX {
            self.authors.pop_first();
        }
        if reply.stable <= self.stable {
            return;
        }
        self.stable = reply.stable;
        let here = (self.term, self.stable);
        let is_stable = |at: Place| at.0 == here.0 && at.1 <= here.1;
        // What was presented waits for its answer: the record may be stable and its data gone.
        let is_over = |kept: &Kept| is_stable(kept.at) && !kept.presented;
        while let Some(first) = self.kept.first_entry().filter(|e| is_over(e.get())) {
            let kept = first.remove();
            self.forget_key(&kept);
        }
        self.beyond.retain(|_, at| !is_stable(*at));
        self.beyond_locking.retain(|at, _| !is_stable(*at));
        self.authors.retain(|at, _| at.1 > here.1);
    }

    /// A change was confirmed.
    pub fn confirmed(&mut self, operation: &Operation, request: &RawFrame, reply: &Reply) {
        if !reply.changed || reply.sequence <= self.stable {
            return;
        }
        let time = match &reply.outcome {
            Outcome::Error(_) => return,
            Outcome::Entry(a) | Outcome::Attributes(a) => a.ctime,
            Outcome::Written { attributes, .. } => attributes.ctime,
            _ => Timestamp(0),
        };
        let at = (self.term, reply.sequence);
        let kept = Kept {
            at,
            time,
            objects: objects_of(operation, &reply.outcome),
            writes: matches!(
                operation,
                Operation::Write { .. } | Operation::CopyRange { .. }
            ),
            locking: is_locking(operation).then(|| operation.clone()),
            presented: false,
            request: placed(operation, request, &reply.outcome),
        };
        self.bytes += kept.bytes();
        self.by_key.insert((reply.slot, reply.number), at);
        if let Some(before) = self.kept.insert(at, kept) {
            // One record carries out one request.
            self.forget_key(&before);
        }
    }

    /// The terms of which a primary has to tell where they ended.
    #[must_use]
    pub fn terms(&self) -> Vec<Term> {
        let kept = self.kept.values().map(|kept| kept.at.0);
        let beyond = self.beyond.values().map(|at| at.0);
        let locking = self.beyond_locking.keys().map(|at| at.0);
        let authors = self.authors.keys().map(|at| at.0);
        let all = kept.chain(beyond).chain(locking).chain(authors);
        let all = all.chain([self.beyond_any.0]);
        let all: BTreeSet<Term> = all.filter(|term| term.0 > 0).collect();
        all.into_iter().collect()
    }

    /// A primary let the client in. What to send before any request, in order; `unanswered` are the
    /// changes that were sent to a primary before, in order.
    pub fn welcomed<'a>(
        &mut self,
        welcome: Welcome<'_>,
        unanswered: impl Iterator<Item = &'a RawFrame>,
    ) -> Vec<RawFrame> {
        let stable = (self.term, self.stable);
        let lacks_anything = !welcome.ends.is_empty();
        // What nobody keeps and the primary lacks is lost; the rest is part of its past.
        for (object, at) in &mut self.beyond {
            if welcome.lacks(*at) {
                self.lost.insert(*object);
            }
            *at = (welcome.term, at.1);
        }
        if welcome.lacks(self.beyond_any) {
            self.lost_any = true;
        }
        for (at, locking) in std::mem::take(&mut self.beyond_locking) {
            if welcome.lacks(at) {
                self.lost_locking.push(locking);
            } else {
                let here = (welcome.term, at.1);
                self.beyond_locking.insert(here, locking);
            }
        }
        self.asked_locks.clear();
        let lost = std::mem::take(&mut self.lost);
        self.beyond.retain(|object, _| !lost.contains(object));
        self.lost = lost;
        if self.beyond_any.1 > Sequence::ZERO {
            self.beyond_any = match self.lost_any {
                true => Place::default(),
                false => (welcome.term, self.beyond_any.1),
            };
        }
        if self.term != welcome.term {
            self.term = welcome.term;
            self.stable = Sequence::ZERO;
        }
        self.flushing = None;
        let mut authors = Vec::new();
        if lacks_anything || welcome.gathers || welcome.in_doubt {
            let skip = self.authors.len().saturating_sub(AUTHORS_MAX);
            authors.extend(self.authors.values().skip(skip).copied());
        }
        let present = Present {
            authors,
            stable,
            leases: welcome.leases.to_vec(),
            exclusive: welcome.exclusive.to_vec(),
            early: welcome.early.to_vec(),
        };
        let mut frames = vec![present.encode()];
        if welcome.gathers {
            let place = Place::default();
            let unplaced = |request: &RawFrame| Replay::frame(None, place, Timestamp(0), request);
            frames.extend(unanswered.map(unplaced));
        }
        for (order, kept) in &mut self.kept {
            let lacking = welcome.lacks(kept.at);
            if !lacking {
                kept.at = (welcome.term, kept.at.1);
            }
            kept.presented = lacking || (welcome.in_doubt && kept.writes);
            if kept.presented && !made(Mistake::ForgetsTheUnstable) {
                let (at, time) = (kept.at, kept.time);
                if let Some(Operation::Lock { .. }) = kept.locking {
                    self.asked_locks.extend(key_of(&kept.request));
                }
                frames.push(Replay::frame(Some(*order), at, time, &kept.request));
            }
        }
        frames.push(RawFrame {
            kind: kind::PRESENTED,
            meta: Bytes::new(),
            payload: Bytes::new(),
        });
        frames
    }

    /// Whether locks were presented, and it is not known of all whether they are still held: until
    /// it is, nothing may be done under them.
    #[must_use]
    pub fn awaits_locks(&self) -> bool {
        !self.asked_locks.is_empty()
    }

    /// An answer to what was presented. False: it is to something else.
    pub fn replayed(&mut self, reply: &Reply) -> bool {
        let key = (reply.slot, reply.number);
        self.asked_locks.remove(&key);
        let Some(order) = self.by_key.get(&key).copied() else {
            return false;
        };
        if let Outcome::Error(_) = reply.outcome {
            if let Some(kept) = self.kept.remove(&order) {
                self.forget_key(&kept);
                self.lost.extend(kept.objects);
                self.lost_locking.extend(kept.locking);
            }
        } else if let Some(kept) = self.kept.get_mut(&order) {
            kept.at = (self.term, reply.sequence);
            kept.presented = false;
            if let (Outcome::Written { .. }, Ok(again)) =
                (&reply.outcome, Request::decode(&kept.request))
            {
                kept.request = placed(&again.operation, &kept.request, &reply.outcome);
            }
        }
        true
    }

    /// What was lost since the last look.
    pub fn take_lost(&mut self) -> Lost {
        Lost {
            objects: std::mem::take(&mut self.lost).into_iter().collect(),
            any: std::mem::take(&mut self.lost_any),
            locking: std::mem::take(&mut self.lost_locking),
        }
    }
}

fn is_locking(operation: &Operation) -> bool {
    matches!(operation, Operation::Lock { .. } | Operation::Unlock { .. })
}

/// The request of what was appended says where that went, for a primary that has the record and may
/// lack the data.
fn placed(operation: &Operation, request: &RawFrame, outcome: &Outcome) -> RawFrame {
    let (Operation::Write { append: true, .. }, Outcome::Written { offset: went, .. }) =
        (operation, outcome)
    else {
        return request.clone();
    };
    let Ok(mut again) = Request::decode(request) else {
        return request.clone(); // it was encoded here
    };
    if let Operation::Write { offset, .. } = &mut again.operation {
        *offset = *went;
    }
    again.encode()
}

/// Slot and number stand first in a request.
fn key_of(request: &RawFrame) -> Option<(u16, u64)> {
    let slot = request.meta.get(..2)?.try_into().ok()?;
    let number = request.meta.get(2..10)?.try_into().ok()?;
    Some((u16::from_le_bytes(slot), u64::from_le_bytes(number)))
}

/// What an operation is about: whoever has one of these open is told of its loss. Of a lock only
/// its owner is.
fn objects_of(operation: &Operation, outcome: &Outcome) -> Vec<ObjectId> {
    let made = match outcome {
        Outcome::Entry(a) => Some(a.object),
        _ => None,
    };
    let named = match operation {
        Operation::SetAttributes { object, .. }
        | Operation::Write { object, .. }
        | Operation::CopyRange { object, .. }
        | Operation::SetXattr { object, .. }
        | Operation::RemoveXattr { object, .. }
        | Operation::Allocate { object, .. } => [Some(*object), None],
        Operation::MakeNode { parent, .. }
        | Operation::MakeDirectory { parent, .. }
        | Operation::Symlink { parent, .. }
        | Operation::Create { parent, .. }
        | Operation::Unlink { parent, .. }
        | Operation::RemoveDirectory { parent, .. } => [Some(*parent), made],
        Operation::Rename {
            parent, new_parent, ..
        } => [Some(*parent), Some(*new_parent)],
        Operation::Link {
            object, new_parent, ..
        } => [Some(*new_parent), Some(*object)],
        // Its directory does not know of it.
        Operation::MakeUnnamed { .. } => [made, None],
        _ => [None, None],
    };
    named.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests;
