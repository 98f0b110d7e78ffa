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
//! A lease of a file is *exclusive* where its session changed the file, nobody else holds one, and
//! nobody else was in the way of it lately. Its holder may answer changes of the file's data and
//! attributes before they are here (CL-1), so nobody else is told of either before it was given back:
//! also questions wait for exclusive leases of others.
//!
//! An answer gives a lease only if nothing was changed between the decision on it and its leaving:
//! it would tell what was before. So what is granted by the decision counts only once it was given.
//!
//! Leases are not replicated. A primary that takes up a volume awaits the sessions that it finds:
//! until each of them has presented what it holds, or a lease time is over, nobody else changes
//! anything, or is told of a file.
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

mod lengthen;
mod present;
#[cfg(test)]
mod tests;

pub use present::Presents;

/// Leases of one volume, some 150 bytes each.
pub const LEASES_MAX: usize = 1 << 20;
/// An object whose leases were recalled is leased to nobody for so long: where two change what both
/// look at, recalls must not cost more than leases gain.
pub const REST: Duration = Duration::from_millis(100);
/// And to nobody alone for so long.
pub const SHARED_FOR: Duration = Duration::from_secs(5);
/// Others wait no longer for what its holder may have changed already, whatever keeps those changes.
pub const HELD_OFF_MAX: Duration = Duration::from_secs(10);

/// An object whose leases were recalled for a change counts as changed by others for so long.
pub const BUSY_FOR: Duration = Duration::from_secs(60);
/// So many are remembered.
const BUSY_MAX: usize = 64 << 10;

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
    /// Nobody else holds one, or is told anything of the object.
    exclusive: bool,
    /// Exclusive only as its session said that changes of the object are under way which it answered
    /// early: others may have changed it before.
    claimed: bool,
    /// A primary before this one gave it, which had everything that was confirmed.
    before: bool,
    recalled: Option<Recalled>,
}

#[derive(Debug, Clone, Copy)]
struct Recalled {
    /// It was first.
    since: Duration,
    /// It ends then at the latest.
    ends: Duration,
    /// Then its holder believes in it no more, as it was not heard since.
    until: Duration,
    /// By which word: only what answers that gives it back.
    number: u64,
}

/// What an answer gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Given {
    /// Nothing: what it tells may be old already.
    Nothing,
    /// What it tells may be kept.
    Shared,
    /// And changes of the object may be answered early.
    Exclusive,
}

/// A session has not given back in time what it had alone, and was heard all the while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overdue {
    /// Who.
    pub session: SessionId,
    /// Others waited for as long as they do at most: its connection is closed, or what comes on it
    /// would be refused one by one.
    pub closes: bool,
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
    /// It answers changes early.
    early: bool,
    objects: BTreeSet<ObjectId>,
    /// Exclusive ones.
    alone: usize,
    /// What it holds ends then, unless it asks something before.
    until: Duration,
    /// It has a connection: what it answered early may be on it.
    connected: bool,
    /// It has nothing alone before then, as it did not give back in time what it had.
    mistrusted_until: Duration,
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
    /// Exclusive ones of these of which changes may be on their way: they last while those come.
    lengthened: BTreeSet<(SessionId, ObjectId)>,
    /// Sessions that did not give back in time what they had alone.
    overdue: Vec<Overdue>,
    /// When leases of an object were last recalled as another session came, and whether it changed it.
    shared: HashMap<ObjectId, (Duration, bool)>,
    /// Leased to nobody until then: a change waits for it, or did a moment ago.
    resting: HashMap<ObjectId, Duration>,
    /// Others had to give them back for a change: until then whoever looks at them is told so.
    busy: HashMap<ObjectId, Duration>,
    /// To whom a primary before this one may have granted something, until they come or then.
    awaited: BTreeSet<SessionId>,
    awaited_until: Duration,
    /// Clients are gathered, see [`Leases::gathers`].
    gathers: bool,
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
            lengthened: BTreeSet::new(),
            overdue: Vec::new(),
            shared: HashMap::new(),
            resting: HashMap::new(),
            busy: HashMap::new(),
            awaited: BTreeSet::new(),
            awaited_until: Duration::ZERO,
            gathers: false,
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

    /// Sessions that hold something alone.
    #[must_use]
    pub fn alone(&self) -> usize {
        self.sessions.values().filter(|of| of.alone > 0).count()
    }

    /// Whether a session holds an object alone: so far nobody else changed it or was told of it.
    #[must_use]
    pub fn is_alone(&self, session: SessionId, object: ObjectId) -> bool {
        let lease = self.lease(session, object);
        lease.is_some_and(|lease| lease.given && lease.exclusive && !lease.claimed)
    }

    /// Whether a session holds others off an object: it has it alone, or sends changes of it again.
    #[must_use]
    pub fn holds_off(&self, session: SessionId, object: ObjectId) -> bool {
        let lease = self.lease(session, object);
        lease.is_some_and(|lease| lease.given && lease.exclusive)
    }

    /// Whether a session may be told nothing of a file for now: another one may have it alone.
    #[must_use]
    pub fn is_hidden(&self, session: SessionId, file: ObjectId) -> bool {
        let leases = self.objects.get(&file).into_iter().flatten();
        let mut leases = leases.filter(|(_, lease)| lease.given);
        let holds = leases.clone().any(|(holder, _)| *holder == session);
        let awaits = !holds && self.awaited.iter().any(|of| *of != session);
        awaits || leases.any(|(holder, lease)| *holder != session && lease.exclusive)
    }

    /// Takes back everything that a session holds alone.
    pub fn recall_alone(&mut self, now: Duration) -> Vec<Recall> {
        let holders = self.sessions.iter().filter(|(_, of)| of.alone > 0);
        let holders: Vec<_> = holders.map(|(session, _)| *session).collect();
        let holders = holders.into_iter();
        holders
            .filter_map(|session| self.recall_alone_of(session, now))
            .collect()
    }

    /// The same of one session.
    pub fn recall_alone_of(&mut self, session: SessionId, now: Duration) -> Option<Recall> {
        let of = self.sessions.get(&session)?;
        let recalled = |object: &&ObjectId| {
            let lease = self.lease(session, **object);
            lease.is_some_and(|lease| lease.exclusive && lease.recalled.is_none())
        };
        let objects = of.objects.iter().filter(recalled).copied().collect();
        self.recall(session, objects, now)
    }

    /// A session is let in and may hold so many leases, exclusive ones if it answers changes `early`.
    /// What it is answered on its new connection to what it asked on an earlier one gives it nothing:
    /// it presents what it holds just now.
    pub fn let_in(&mut self, session: SessionId, limit: usize, early: bool) {
        let of = self.sessions.entry(session).or_default();
        of.limit = limit.min(LEASES_OF_SESSION_MAX);
        of.early = early;
        of.connected = true;
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

    /// A session has said everything that it has to say as it is let in.
    pub fn presented(&mut self, session: SessionId) {
        self.awaited.remove(&session);
    }

    /// A session is over. `at_once`: its mount said so itself, or has no right any more to what it
    /// holds. Else that lasts for as long as the mount may believe in it.
    pub fn end(&mut self, session: SessionId, at_once: bool, now: Duration) {
        if at_once {
            self.awaited.remove(&session);
        }
        let Some(of) = self.sessions.get_mut(&session) else {
            return;
        };
        of.limit = 0;
        of.connected = false;
        let objects: Vec<_> = of.objects.iter().copied().collect();
        if at_once {
            for object in objects {
                self.drop_lease(session, object);
            }
        } else {
            self.recall(session, objects, now);
        }
    }

    /// A session would give these back, as it holds many.
    pub fn offered(
        &mut self,
        session: SessionId,
        objects: &[ObjectId],
        now: Duration,
    ) -> Option<Recall> {
        let holds = |object: &&ObjectId| {
            let lease = self.lease(session, **object);
            lease.is_some_and(|lease| lease.given && lease.recalled.is_none())
        };
        let objects = objects.iter().filter(holds).copied().collect();
        self.recall(session, objects, now)
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
        let mut others = leases.iter().filter(|(holder, _)| *holder != session);
        let alone = others.any(|(_, lease)| lease.exclusive);
        let before = leases.iter().find(|(holder, _)| *holder == session);
        let grant = match before {
            _ if alone => None,
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
            exclusive: false,
            claimed: false,
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

    /// An answer leaves that rests on `grant`: what it gives. `alone`: its question changed the object,
    /// and the session may get it for itself.
    pub fn give(
        &mut self,
        session: SessionId,
        object: ObjectId,
        grant: Grant,
        alone: bool,
        now: Duration,
    ) -> Given {
        let leases = self.objects.get_mut(&object);
        let Some(leases) = leases else {
            return Given::Nothing;
        };
        let holders = leases.len();
        let lease = leases.iter_mut().find(|(holder, _)| *holder == session);
        match lease {
            Some((_, lease)) if lease.grant == grant && lease.recalled.is_none() => {
                lease.given = true;
            }
            _ if made(Mistake::GrantsDuringRecall) => return Given::Shared,
            _ => return Given::Nothing,
        }
        let may = |of: &Of| of.early && now >= of.mistrusted_until;
        let early = self.sessions.get(&session).is_some_and(may);
        let shared = self.shared.get(&object);
        let lately = shared.is_some_and(|(since, _)| now < *since + SHARED_FOR);
        if alone && early && !lately && holders == 1 {
            self.set_alone(session, object, true);
        }
        match self.is_alone(session, object) {
            true => Given::Exclusive,
            false => Given::Shared,
        }
    }

    /// Makes a lease exclusive, if no other one is there, or shared.
    fn set_alone(&mut self, session: SessionId, object: ObjectId, alone: bool) {
        let Some(leases) = self.objects.get_mut(&object) else {
            return;
        };
        let may = leases.len() == 1;
        let lease = leases.iter_mut().find(|(holder, _)| *holder == session);
        let (Some((_, lease)), Some(of)) = (lease, self.sessions.get_mut(&session)) else {
            return;
        };
        of.alone -= usize::from(lease.exclusive);
        lease.exclusive = alone && may;
        lease.claimed = false;
        of.alone += usize::from(lease.exclusive);
    }

    /// What a question of `session` has to wait for that tells of these files, if anything. Whoever
    /// waits asks again when leases were given back or have ended.
    pub fn ask(&mut self, session: SessionId, files: &[ObjectId], now: Duration) -> Verdict {
        if made(Mistake::TellsUnasked) {
            return Verdict::Free(Vec::new());
        }
        // Where it holds a lease itself nobody has the file alone.
        let holds = |file: &ObjectId| self.lease(session, *file).is_some_and(|l| l.given);
        let unsure = !files.iter().all(holds);
        let mut waits = unsure && self.awaited.iter().any(|of| *of != session);
        let mut recalls: BTreeMap<SessionId, Vec<ObjectId>> = BTreeMap::new();
        for object in files {
            let leases = self.objects.get(object).into_iter().flatten();
            let mut others = leases.filter(|(holder, lease)| *holder != session && lease.exclusive);
            let Some((holder, lease)) = others.next() else {
                continue;
            };
            waits = true;
            if lease.recalled.is_none() {
                // Both may look at it from now on.
                let since = self.shared.entry(*object).or_insert((now, false));
                if now >= since.0 + REST {
                    *since = (now, false);
                }
                recalls.entry(*holder).or_default().push(*object);
            }
        }
        if !waits {
            return Verdict::Free(Vec::new());
        }
        let recalls = recalls.into_iter();
        Verdict::Wait(
            recalls
                .filter_map(|(holder, objects)| self.recall(holder, objects, now))
                .collect(),
        )
    }

    /// What a change of these objects by `author` has to wait for, if anything. Whoever waits asks
    /// again when leases were given back or have ended.
    pub fn change(&mut self, author: SessionId, objects: &[ObjectId], now: Duration) -> Verdict {
        // What it has alone nobody who is awaited holds.
        let unsure = !objects.iter().all(|object| self.is_alone(author, *object));
        let awaits = unsure && self.awaited.iter().any(|of| *of != author);
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
                        self.shared.insert(*object, (now, true));
                        recalls.entry(holder).or_default().push(*object);
                    }
                }
            }
        }
        for object in recalls.values().flatten() {
            if self.busy.len() < BUSY_MAX || self.busy.contains_key(object) {
                self.busy.insert(*object, now + BUSY_FOR);
            }
        }
        self.rest(objects, waits, now);
        if !waits {
            return Verdict::Free(old);
        }
        let recalls = recalls.into_iter();
        Verdict::Wait(
            recalls
                .filter_map(|(holder, objects)| self.recall(holder, objects, now))
                .collect(),
        )
    }

    /// Whether others had to give the object back for a change lately.
    #[must_use]
    pub fn is_busy(&self, object: ObjectId, now: Duration) -> bool {
        self.busy.get(&object).is_some_and(|until| now < *until)
    }

    /// While a change waits nobody is leased what it changes: it would wait for that next. After it
    /// those rest that somebody had to give back, and not what it made in a directory that others
    /// look at.
    fn rest(&mut self, objects: &[ObjectId], waits: bool, now: Duration) {
        for object in objects {
            if waits {
                self.resting.insert(*object, now + self.time);
                continue;
            }
            let shared = self.shared.get(object);
            let recalled =
                shared.is_some_and(|(since, for_change)| *for_change && now < *since + SHARED_FOR);
            match self.resting.get_mut(object) {
                Some(until) if recalled => *until = (*until).min(now + REST),
                Some(_) => _ = self.resting.remove(object),
                None => {}
            }
        }
    }

    /// From now on no question lengthens them: an answer that leaves later comes after the word that
    /// they are recalled. What its holder may have changed early lasts while that is on its way, see
    /// [`Leases::heard`].
    fn recall(
        &mut self,
        session: SessionId,
        objects: Vec<ObjectId>,
        now: Duration,
    ) -> Option<Recall> {
        if objects.is_empty() {
            return None;
        }
        self.last_recall += 1;
        let number = self.last_recall;
        let (mut until, mut connected) = (Duration::ZERO, false);
        if let Some(of) = self.sessions.get_mut(&session) {
            of.unanswered.insert(number);
            (until, connected) = (of.until, of.connected);
        }
        for object in &objects {
            let leases = self.objects.get_mut(object);
            let lease = leases.and_then(|all| all.iter_mut().find(|l| l.0 == session));
            let Some((_, lease)) = lease else {
                continue;
            };
            let before = lease.recalled;
            let since = before.map_or(now, |before| before.since);
            let until = before.map_or(until, |before| before.until);
            let mut ends = before.map_or(until, |before| before.ends);
            if lease.exclusive && connected {
                ends = ends.max((now + self.time).min(since + HELD_OFF_MAX));
                self.lengthened.insert((session, *object));
            }
            if let Some(before) = before {
                self.recalled.remove(&(before.ends, session, *object));
            }
            lease.recalled = Some(Recalled {
                since,
                ends,
                until,
                number,
            });
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
        self.lengthen_no_more(session, number);
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
        self.lengthened.remove(&(session, object));
        if let Some(of) = self.sessions.get_mut(&session) {
            of.objects.remove(&object);
            of.alone -= usize::from(lease.exclusive);
        }
    }

    /// Time goes by: what is recalled and not given back ends, and who has not come is awaited no
    /// more. Whether anything changed.
    pub fn expire(&mut self, now: Duration) -> bool {
        let mut changed = false;
        let due = self.recalled.iter().take_while(|(ends, ..)| *ends <= now);
        let due = due.filter(|(_, of, object)| !self.gathers || !self.is_held_up(*of, *object));
        for (ends, session, object) in due.copied().collect::<Vec<_>>() {
            if self.recalled.contains(&(ends, session, object)) {
                self.mistrust(session, object, now);
                self.runs_out(session, object, now);
                changed = true;
            }
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
        let recall = self.recall(session, left, now);
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
        self.busy.retain(|_, until| now < *until);
        self.shared
            .retain(|_, (since, _)| now < *since + SHARED_FOR);
        self.sessions
            .retain(|_, of| of.limit > 0 || !of.objects.is_empty());
    }
}
