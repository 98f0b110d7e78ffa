//! Who may answer from a cache: leases of inodes, held by sessions (COH-1).
//!
//! ```text
//!  a question is decided on   its answer leaves        somebody else changes the object
//!  ────────────────────────▶ ungiven ─────────▶ held ──────────────────────────────────▶ recalled
//!                               │ a change                    given back, or its time is over │
//!                               └──────────────────────▶ gone ◀───────────────────────────────┘
//! ```
//!
//! A lease of an inode covers its attributes and extended attributes; of a directory all of its
//! names, those that do not exist included. Several sessions may hold one. It ends when it is given
//! back, or a lease time after the last question of its session that was answered while it stood.
//! A change waits until nobody else holds a lease of what it changes. It never waits for leases of
//! its own session: whoever is to give a lease back may have to be answered first.
//!
//! An answer gives a lease only if nothing was changed between the decision on it and its leaving:
//! it would tell what was before. So what is granted by the decision counts only once it was given.
//!
//! Leases are not replicated. A primary that takes up a volume awaits the sessions that it finds:
//! until each of them has presented what it holds, or a lease time is over, nobody else changes
//! anything.
//!
//! Pure: whoever asks says what the time is, and sends what is returned.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use protocol::fs::LEASES_OF_SESSION_MAX;
use protocol::ids::SessionId;
use protocol::mistakes::{Mistake, made};
use protocol::record::Change;
use protocol::units::ObjectId;

use crate::keys;

#[cfg(test)]
mod tests;

/// Leases of one volume, some 150 bytes each.
pub const LEASES_MAX: usize = 1 << 20;
/// An object whose leases were recalled is leased to nobody for so long: where two change what both
/// look at, recalls must not cost more than leases gain.
pub const REST: Duration = Duration::from_millis(100);

/// A session that let a recall run out is leased nothing for so long, for twice as long the next time,
/// up to the last: whoever never gives back must not hold up every change. The first of the two for
/// one that answered, and was not sure of what it gives back.
const UNSURE_FOR: Duration = Duration::from_secs(1);
const SILENT_FOR: Duration = Duration::from_secs(10);
const DISTRUSTED_MAX: Duration = Duration::from_secs(600);
/// After so long without another one it begins anew.
const FORGIVEN_AFTER: Duration = Duration::from_secs(60);

/// One granting of a lease. The same object is granted anew under another number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grant(u64);

/// What an object's lease to one session is.
#[derive(Debug, Clone, Copy)]
struct Lease {
    grant: Grant,
    /// An answer that said so has left.
    given: bool,
    /// A primary before this one gave it, which had everything that was confirmed.
    before: bool,
    recalled: Option<Recalled>,
}

#[derive(Debug, Clone, Copy)]
struct Recalled {
    /// It ends then at the latest.
    ends: Duration,
    /// By which word: only what answers that gives it back.
    number: u64,
}

/// A session is to be told that it gives these leases back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recall {
    /// Who.
    pub session: SessionId,
    /// The answer carries it.
    pub number: u64,
    /// What.
    pub objects: Vec<ObjectId>,
}

#[derive(Debug, Default)]
struct Of {
    /// How many it may hold.
    limit: usize,
    objects: BTreeSet<ObjectId>,
    /// What it holds ends then, unless it asks something before.
    until: Duration,
    /// Recalls that it was told of on this connection and has not answered.
    unanswered: BTreeSet<u64>,
    /// It is leased nothing until then, and was not for so long.
    distrusted_until: Duration,
    distrusted_for: Duration,
}

impl Of {
    /// A recall ran out.
    fn distrust(&mut self, least: Duration, now: Duration) {
        if now > self.distrusted_until + FORGIVEN_AFTER {
            self.distrusted_for = Duration::ZERO;
        }
        self.distrusted_for = (self.distrusted_for * 2).clamp(least, DISTRUSTED_MAX);
        self.distrusted_until = now + self.distrusted_for;
    }
}

/// What a change has to do about the leases of others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing. Its author holds leases of these objects, and learns with the answer that what it
    /// knows of them is old.
    Free(Vec<ObjectId>),
    /// It must wait. These were not recalled before: they are to be told.
    Wait(Vec<Recall>),
}

/// See the module.
#[derive(Debug)]
pub struct Leases {
    time: Duration,
    sessions: BTreeMap<SessionId, Of>,
    objects: HashMap<ObjectId, Vec<(SessionId, Lease)>>,
    held: usize,
    recalled: BTreeSet<(Duration, SessionId, ObjectId)>,
    resting: HashMap<ObjectId, Duration>,
    /// To whom a primary before this one may have granted something, until they come or then.
    awaited: BTreeSet<SessionId>,
    awaited_until: Duration,
    last_grant: u64,
    last_recall: u64,
    to_tell: Vec<Recall>,
}

/// The objects whose leases a change set concerns: each inode, directory and file that it changes
/// anything of.
#[must_use]
pub fn touched(changes: &[Change]) -> Vec<ObjectId> {
    let object_of = |change: &Change| match change {
        Change::Put { key, .. } | Change::Delete { key } => match *key.first()? {
            // An entry's key begins with its directory.
            keys::INODE | keys::XATTR | keys::ENTRY => keys::object_of(key),
            _ => None,
        },
        Change::Write { object, .. }
        | Change::Truncate { object, .. }
        | Change::Zero { object, .. }
        | Change::Drop { object } => Some(*object),
    };
    let objects: BTreeSet<_> = changes.iter().filter_map(object_of).collect();
    objects.into_iter().collect()
}

impl Leases {
    /// Nobody holds anything. A lease lasts for `time`.
    #[must_use]
    pub fn new(time: Duration) -> Self {
        Self {
            time,
            sessions: BTreeMap::new(),
            objects: HashMap::new(),
            held: 0,
            recalled: BTreeSet::new(),
            resting: HashMap::new(),
            awaited: BTreeSet::new(),
            awaited_until: Duration::ZERO,
            last_grant: 0,
            last_recall: 0,
            to_tell: Vec::new(),
        }
    }

    /// How long a lease lasts after a question.
    #[must_use]
    pub fn time(&self) -> Duration {
        self.time
    }

    /// Leases that are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held
    }

    /// Whether nobody holds any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held == 0
    }

    // ---- sessions ------------------------------------------------------------------------------

    /// This primary takes up the volume, with these sessions of before, who may hold anything.
    pub fn take_over(&mut self, sessions: impl Iterator<Item = SessionId>, now: Duration) {
        self.clear();
        if !made(Mistake::ForgetsLeases) {
            self.awaited = sessions.collect();
        }
        self.awaited_until = now + self.time;
    }

    /// This replica is primary no more.
    pub fn clear(&mut self) {
        *self = Self {
            last_grant: self.last_grant,
            last_recall: self.last_recall,
            ..Self::new(self.time)
        };
    }

    /// A session is let in and may hold so many leases. What it is answered on its new connection
    /// to what it asked on an earlier one gives it nothing: it presents what it holds just now.
    pub fn let_in(&mut self, session: SessionId, limit: usize) {
        let of = self.sessions.entry(session).or_default();
        of.limit = limit.min(LEASES_OF_SESSION_MAX);
        of.unanswered.clear();
        for object in of.objects.clone() {
            if self
                .lease(session, object)
                .is_some_and(|lease| !lease.given)
            {
                self.drop_lease(session, object);
            }
        }
    }

    /// A question of the session came: what it holds lasts a lease time from now on.
    pub fn renew(&mut self, session: SessionId, now: Duration) {
        if let Some(of) = self.sessions.get_mut(&session) {
            of.until = of.until.max(now + self.time);
        }
    }

    /// What a session says that it holds, as it is let in. `whole`: this primary has everything that
    /// was confirmed before. Returns what it does not hold, or shall not.
    pub fn present(
        &mut self,
        session: SessionId,
        objects: &[ObjectId],
        whole: bool,
        now: Duration,
    ) -> Option<Recall> {
        let awaited = self.awaited.remove(&session) && now < self.awaited_until;
        let of = self.sessions.get(&session)?;
        let presented: BTreeSet<_> = objects.iter().copied().collect();
        let before = of.objects.clone();
        // An answer that granted them was lost on the way.
        for object in before.difference(&presented) {
            self.drop_lease(session, *object);
        }
        if awaited {
            // Until it is heard again they end as they would have with the primary of before.
            if let Some(of) = self.sessions.get_mut(&session) {
                of.until = of.until.max(now + self.time);
            }
            for object in &presented {
                // It has it, whatever waits for others who have: a change that waits is to wait for
                // this one as well.
                if self.lease(session, *object).is_none() && self.has_room_for(session) {
                    self.begin(session, *object);
                }
                if let Some(lease) = self.lease_mut(session, *object) {
                    lease.given = true;
                    lease.before = !whole;
                }
            }
        }
        // What is put back is what it knows already; whatever comes after that waits.
        let holds = |object: &ObjectId| {
            let lease = self.lease(session, *object);
            lease.is_some_and(|lease| lease.given && !lease.before && lease.recalled.is_none())
        };
        let refused = presented.into_iter().filter(|object| !holds(object));
        self.recall(session, refused.collect())
    }

    /// A session has said everything that it has to say as it is let in.
    pub fn presented(&mut self, session: SessionId) {
        self.awaited.remove(&session);
    }

    /// A session is over. `at_once`: its mount said so itself, or has no right any more to what it
    /// holds. Else that lasts for as long as the mount may believe in it.
    pub fn end(&mut self, session: SessionId, at_once: bool) {
        if at_once {
            self.awaited.remove(&session);
        }
        let Some(of) = self.sessions.get_mut(&session) else {
            return;
        };
        of.limit = 0;
        let objects: Vec<_> = of.objects.iter().copied().collect();
        if at_once {
            for object in objects {
                self.drop_lease(session, object);
            }
        } else {
            self.recall(session, objects);
        }
    }

    /// A session would give these back, as it holds many.
    pub fn offered(&mut self, session: SessionId, objects: &[ObjectId]) -> Option<Recall> {
        let holds = |object: &&ObjectId| {
            let lease = self.lease(session, **object);
            lease.is_some_and(|lease| lease.given && lease.recalled.is_none())
        };
        let objects = objects.iter().filter(holds).copied().collect();
        self.recall(session, objects)
    }

    // ---- leases --------------------------------------------------------------------------------

    fn lease(&self, session: SessionId, object: ObjectId) -> Option<&Lease> {
        let leases = self.objects.get(&object)?;
        leases.iter().find(|l| l.0 == session).map(|l| &l.1)
    }

    fn lease_mut(&mut self, session: SessionId, object: ObjectId) -> Option<&mut Lease> {
        let leases = self.objects.get_mut(&object)?;
        leases.iter_mut().find(|l| l.0 == session).map(|l| &mut l.1)
    }

    /// A question was decided on that tells of an object: the answer may give a lease, if
    /// [`Leases::give`] says so as it leaves. `None`: there is none to be had.
    pub fn grant(&mut self, session: SessionId, object: ObjectId, now: Duration) -> Option<Grant> {
        let has_room = self.has_room_for(session);
        let of = self.sessions.get(&session)?;
        let rests = self.resting.get(&object);
        if now < of.distrusted_until || rests.is_some_and(|until| now < *until) {
            return None;
        }
        let leases = self.objects.entry(object).or_default();
        let recalled = leases.iter().any(|(_, lease)| lease.recalled.is_some());
        let before = leases.iter().find(|(holder, _)| *holder == session);
        let grant = match before {
            _ if recalled && !made(Mistake::GrantsDuringRecall) => None,
            Some((_, lease)) => Some(lease.grant),
            None if !has_room => None,
            None => return Some(self.begin(session, object)),
        };
        if leases.is_empty() {
            self.objects.remove(&object);
        }
        grant
    }

    /// Whether a session may hold one more.
    fn has_room_for(&self, session: SessionId) -> bool {
        let of = self.sessions.get(&session);
        of.is_some_and(|of| of.objects.len() < of.limit) && self.held < LEASES_MAX
    }

    /// A lease that no answer gave yet.
    fn begin(&mut self, session: SessionId, object: ObjectId) -> Grant {
        self.last_grant += 1;
        let grant = Grant(self.last_grant);
        let lease = Lease {
            grant,
            given: false,
            before: false,
            recalled: None,
        };
        let leases = self.objects.entry(object).or_default();
        leases.push((session, lease));
        if let Some(of) = self.sessions.get_mut(&session) {
            of.objects.insert(object);
        }
        self.held += 1;
        grant
    }

    /// An answer leaves that rests on `grant`: whether it gives the lease.
    pub fn give(&mut self, session: SessionId, object: ObjectId, grant: Grant) -> bool {
        let leases = self.objects.get_mut(&object);
        let lease = leases.and_then(|all| all.iter_mut().find(|l| l.0 == session));
        match lease {
            Some((_, lease)) if lease.grant == grant && lease.recalled.is_none() => {
                lease.given = true;
                true
            }
            _ => made(Mistake::GrantsDuringRecall),
        }
    }

    /// What a change of these objects by `author` has to wait for, if anything. Whoever waits asks
    /// again when leases were given back or have ended.
    pub fn change(&mut self, author: SessionId, objects: &[ObjectId], now: Duration) -> Verdict {
        let awaits = !objects.is_empty() && self.awaited.iter().any(|of| *of != author);
        match self.waits_for(author, objects, false, now) {
            Verdict::Free(_) if awaits => Verdict::Wait(Vec::new()),
            verdict => verdict,
        }
    }

    /// The same of a change that was confirmed by a primary before this one and is put back: who has
    /// not come, or holds a lease from before, may know of it already.
    pub fn put_back(&mut self, author: SessionId, objects: &[ObjectId], now: Duration) -> Verdict {
        self.waits_for(author, objects, true, now)
    }

    fn waits_for(
        &mut self,
        author: SessionId,
        objects: &[ObjectId],
        put_back: bool,
        now: Duration,
    ) -> Verdict {
        let mut waits = false;
        let mut recalls: BTreeMap<SessionId, Vec<ObjectId>> = BTreeMap::new();
        let mut old = Vec::new();
        for object in objects {
            let leases = self.objects.get(object).cloned().unwrap_or_default();
            for (holder, lease) in leases {
                if !lease.given {
                    // What was decided on before tells what was before.
                    self.drop_lease(holder, *object);
                } else if holder == author {
                    old.push(*object);
                    waits |= lease.recalled.is_some() && made(Mistake::HoldsUpTheHolder);
                } else if !(put_back && lease.before) {
                    waits = true;
                    if lease.recalled.is_none() {
                        recalls.entry(holder).or_default().push(*object);
                    }
                }
            }
        }
        self.rest(objects, waits, now);
        if !waits {
            return Verdict::Free(old);
        }
        let recalls = recalls.into_iter();
        Verdict::Wait(
            recalls
                .filter_map(|(holder, objects)| self.recall(holder, objects))
                .collect(),
        )
    }

    /// While a change waits nobody is leased what it changes: it would wait for that next.
    fn rest(&mut self, objects: &[ObjectId], waits: bool, now: Duration) {
        for object in objects {
            if waits {
                self.resting.insert(*object, now + self.time);
            } else if let Some(until) = self.resting.get_mut(object) {
                *until = (*until).min(now + REST);
            }
        }
    }

    /// From now on no question lengthens them: an answer that leaves later comes after the word that
    /// they are recalled.
    fn recall(&mut self, session: SessionId, objects: Vec<ObjectId>) -> Option<Recall> {
        if objects.is_empty() {
            return None;
        }
        self.last_recall += 1;
        let number = self.last_recall;
        let mut until = Duration::ZERO;
        if let Some(of) = self.sessions.get_mut(&session) {
            of.unanswered.insert(number);
            until = of.until;
        }
        for object in &objects {
            let leases = self.objects.get_mut(object);
            let lease = leases.and_then(|all| all.iter_mut().find(|l| l.0 == session));
            let Some((_, lease)) = lease else {
                continue;
            };
            let ends = lease.recalled.map_or(until, |before| before.ends);
            lease.recalled = Some(Recalled { ends, number });
            self.recalled.insert((ends, session, *object));
        }
        Some(Recall {
            session,
            number,
            objects,
        })
    }

    /// A session does not use its leases of these objects any more, as it was told. Whether any of
    /// them ended by that.
    pub fn given_back(&mut self, session: SessionId, number: u64, objects: &[ObjectId]) -> bool {
        if let Some(of) = self.sessions.get_mut(&session) {
            of.unanswered.remove(&number);
        }
        let mut ends = false;
        for object in objects {
            let recalled = self.lease(session, *object).and_then(|l| l.recalled);
            if recalled.is_some_and(|recalled| recalled.number == number) {
                self.drop_lease(session, *object);
                ends = true;
            }
        }
        ends
    }

    fn drop_lease(&mut self, session: SessionId, object: ObjectId) {
        let Some(leases) = self.objects.get_mut(&object) else {
            return;
        };
        let Some(at) = leases.iter().position(|(holder, _)| *holder == session) else {
            return;
        };
        let (_, lease) = leases.swap_remove(at);
        if leases.is_empty() {
            self.objects.remove(&object);
        }
        self.held -= 1;
        if let Some(recalled) = lease.recalled {
            self.recalled.remove(&(recalled.ends, session, object));
        }
        if let Some(of) = self.sessions.get_mut(&session) {
            of.objects.remove(&object);
        }
    }

    /// Time goes by: what is recalled and not given back ends, and who has not come is awaited no
    /// more. Whether anything changed.
    pub fn expire(&mut self, now: Duration) -> bool {
        let mut changed = false;
        while let Some((ends, session, object)) = self.recalled.first().copied()
            && ends <= now
        {
            self.runs_out(session, object, now);
            changed = true;
        }
        if now >= self.awaited_until && !self.awaited.is_empty() {
            self.awaited.clear();
            changed = true;
        }
        changed
    }

    fn runs_out(&mut self, session: SessionId, object: ObjectId, now: Duration) {
        let recalled = self.lease(session, object).and_then(|l| l.recalled);
        self.drop_lease(session, object);
        let (Some(of), Some(recalled)) = (self.sessions.get_mut(&session), recalled) else {
            return;
        };
        if now < of.distrusted_until {
            return; // it is one and the same
        }
        if !of.unanswered.remove(&recalled.number) {
            return of.distrust(UNSURE_FOR, now);
        }
        of.distrust(SILENT_FOR, now);
        // It may hold many, and each would hold up somebody.
        let holds: Vec<_> = of.objects.iter().copied().collect();
        let left = holds.into_iter().filter(|object| {
            let lease = self.lease(session, *object);
            lease.is_some_and(|lease| lease.recalled.is_none())
        });
        let left = left.collect();
        let recall = self.recall(session, left);
        self.to_tell.extend(recall);
    }

    /// The session is not connected: it could not be told of a recall.
    pub fn not_told(&mut self, recall: &Recall) {
        if let Some(of) = self.sessions.get_mut(&recall.session) {
            of.unanswered.remove(&recall.number);
        }
    }

    /// What is recalled from whoever let a recall run out: he is to be told.
    pub fn take_recalls(&mut self) -> Vec<Recall> {
        std::mem::take(&mut self.to_tell)
    }

    /// Forgets what does not matter any more.
    pub fn tidy(&mut self, now: Duration) {
        self.resting.retain(|_, until| now < *until);
        self.sessions
            .retain(|_, of| of.limit > 0 || !of.objects.is_empty());
    }
}
