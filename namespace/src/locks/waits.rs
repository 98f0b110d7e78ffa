//! Who waits for a lock, in the order of arrival. Held by the primary in memory: whoever waits asks
//! again where it is let in next.
//!
//! ```text
//!            nothing is in the way           the ticket comes with the request for the lock
//! waiting ───────────────────────▶ called ─────────────────────────────────────────────────▶ gone
//!    └── forgotten, or the connection ended ──▶ gone ◀── forgotten, or the connection ended ─┘
//! ```
//!
//! Who is *called* has the lock reserved until it takes it: nobody gets in between. What keeps a
//! wait waiting is *hard* (somebody holds a lock that clashes, or has it reserved) or *soft*
//! (somebody came earlier and waits for what clashes: so no writer starves behind readers). A
//! ring of hard edges is a deadlock. A ring with a soft edge would be one of our own making: that
//! edge goes.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use protocol::fs::{Lock, LockClass, LockKind, LockOwner};
use protocol::ids::SessionId;
use protocol::units::ObjectId;

use super::Held;
use crate::errno::{EDEADLK, ENOLCK};

/// Waits for one object: each request for a lock of it may look at all of them.
pub const WAITS_PER_OBJECT_MAX: usize = 4096;
/// Waits of one volume, each a blocked thread of an application.
pub const WAITS_MAX: usize = 64 << 10;
/// Waits that are looked at in search of a ring; a longer one is not found.
const RING_WAITS_MAX: usize = 1024;

type Owner = (SessionId, LockOwner);

/// A lock that somebody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Whose mount.
    pub session: SessionId,
    /// The request that is answered when the lock can be taken.
    pub number: u64,
    /// The client's own number for the wait, from the first request to the last.
    pub ticket: u64,
    /// Of what.
    pub object: ObjectId,
    /// The lock.
    pub lock: Lock,
}

impl Wanted {
    fn owner(&self) -> Owner {
        (self.session, self.lock.owner)
    }
}

/// A wait that has come to its end: this request is to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Called {
    /// Whose mount.
    pub session: SessionId,
    /// The request.
    pub number: u64,
}

/// Why nobody waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Owners of fcntl(2) locks would wait for each other for ever.
    Deadlock,
    /// [`WAITS_PER_OBJECT_MAX`] or [`WAITS_MAX`].
    TooMany,
}

impl Refusal {
    /// As Linux numbers it.
    #[must_use]
    pub fn errno(self) -> i32 {
        match self {
            Self::Deadlock => EDEADLK,
            Self::TooMany => ENOLCK,
        }
    }
}

#[derive(Debug)]
struct Wait {
    /// Rises with each arrival.
    id: u64,
    wanted: Wanted,
    called: bool,
    /// It does not wait for those who came earlier and still wait.
    barges: bool,
}

impl Wait {
    fn clashes(&self, owner: Owner, lock: &Lock) -> bool {
        self.wanted.owner() != owner && self.wanted.lock.clashes(lock)
    }
}

/// Where a wait is.
type Place = (ObjectId, u64);

/// See the module.
#[derive(Debug, Default)]
pub struct Waits {
    queues: BTreeMap<ObjectId, Vec<Wait>>,
    tickets: BTreeMap<(SessionId, u64), Place>,
    owners: BTreeMap<Owner, BTreeSet<Place>>,
    last_id: u64,
}

/// A wait that a search came to.
struct Step {
    at: Place,
    /// From which step, and whether by a soft edge.
    from: Option<(usize, bool)>,
}

impl Waits {
    /// How many wait or are called.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tickets.len()
    }

    /// Whether nobody does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tickets.is_empty()
    }

    /// Whether anybody waits for a lock of the object, or is called.
    #[must_use]
    pub fn has(&self, object: ObjectId) -> bool {
        self.queues.contains_key(&object)
    }

    /// Objects of which somebody waits for a lock.
    pub fn objects(&self) -> impl Iterator<Item = ObjectId> + '_ {
        self.queues.keys().copied()
    }

    /// Nobody waits any more.
    pub fn clear(&mut self) {
        *self = Self {
            last_id: self.last_id,
            ..Self::default()
        };
    }

    /// Somebody waits from now on. `held` tells what is held of an object. Afterwards
    /// [`Waits::call`] may have news, of this object and of those that it returns.
    pub fn add<E>(
        &mut self,
        wanted: Wanted,
        held: &impl Fn(ObjectId) -> Result<Vec<Held>, E>,
    ) -> Result<Result<Vec<ObjectId>, Refusal>, E> {
        self.forget(wanted.session, wanted.ticket);
        let queue = self.queues.get(&wanted.object);
        let full = queue.is_some_and(|queue| queue.len() >= WAITS_PER_OBJECT_MAX);
        if full || self.len() >= WAITS_MAX {
            return Ok(Err(Refusal::TooMany));
        }
        self.last_id += 1;
        let at = (wanted.object, self.last_id);
        self.tickets.insert((wanted.session, wanted.ticket), at);
        self.owners.entry(wanted.owner()).or_default().insert(at);
        self.queues.entry(wanted.object).or_default().push(Wait {
            id: self.last_id,
            wanted,
            called: false,
            barges: false,
        });
        // flock(2) knows no deadlocks, as whoever has the file open can end one.
        if wanted.lock.owner.class == LockClass::Ranges && self.ring(at, false, held)?.is_some() {
            self.forget(wanted.session, wanted.ticket);
            return Ok(Err(Refusal::Deadlock));
        }
        Ok(Ok(self.open_rings(at, held)?))
    }

    /// An owner got a lock, perhaps while it waits for another. Returns objects with news.
    pub fn acquired<E>(
        &mut self,
        session: SessionId,
        owner: LockOwner,
        held: &impl Fn(ObjectId) -> Result<Vec<Held>, E>,
    ) -> Result<Vec<ObjectId>, E> {
        let waits = self.owners.get(&(session, owner));
        let waits: Vec<Place> = waits.into_iter().flatten().copied().collect();
        let mut news = Vec::new();
        for at in waits {
            news.extend(self.open_rings(at, held)?);
        }
        Ok(news)
    }

    /// Whether others go before this request for a lock: those for whom it is reserved, and, if it
    /// would wait, those who wait already. Who has as much or more has nothing to wait for.
    #[must_use]
    pub fn hold_back(
        &self,
        session: SessionId,
        object: ObjectId,
        lock: &Lock,
        waits: bool,
        held: &[Held],
    ) -> bool {
        let Some(queue) = self.queues.get(&object) else {
            return false;
        };
        let owner = (session, lock.owner);
        let called = queue.iter().find(|w| w.called && w.wanted.owner() == owner);
        let is_called = called.is_some_and(|w| w.wanted.lock == *lock);
        let has = |h: &Held| {
            (h.session, h.lock.owner) == owner
                && h.lock.start <= lock.start
                && h.lock.end >= lock.end
                && (h.lock.kind == LockKind::Exclusive || lock.kind == LockKind::Shared)
        };
        if is_called || held.iter().any(has) {
            return false;
        }
        let mut before = queue.iter().filter(|w| w.called || waits);
        before.any(|w| w.clashes(owner, lock))
    }

    /// Ends a wait: the lock was asked for with its ticket, or nobody wants it any more. Returns
    /// the object, of which [`Waits::call`] may have news.
    pub fn forget(&mut self, session: SessionId, ticket: u64) -> Option<ObjectId> {
        let at = self.tickets.remove(&(session, ticket))?;
        if let Some(queue) = self.queues.get_mut(&at.0)
            && let Ok(index) = queue.binary_search_by_key(&at.1, |w| w.id)
        {
            let gone = queue.remove(index);
            if queue.is_empty() {
                self.queues.remove(&at.0);
            }
            let owner = gone.wanted.owner();
            if let Some(waits) = self.owners.get_mut(&owner) {
                waits.remove(&at);
                if waits.is_empty() {
                    self.owners.remove(&owner);
                }
            }
        }
        Some(at.0)
    }

    /// Ends every wait of a session: its connection ended. Returns objects with news.
    pub fn forget_session(&mut self, session: SessionId) -> Vec<ObjectId> {
        let of_session = self.tickets.range((session, 0)..=(session, u64::MAX));
        let tickets: Vec<u64> = of_session.map(|((_, ticket), _)| *ticket).collect();
        let gone = tickets.into_iter();
        gone.filter_map(|ticket| self.forget(session, ticket))
            .collect()
    }

    /// Calls those who can take their lock now, in order of arrival. Each request is told once.
    pub fn call(&mut self, object: ObjectId, held: &[Held]) -> Vec<Called> {
        let Some(queue) = self.queues.get_mut(&object) else {
            return Vec::new();
        };
        let mut called = Vec::new();
        for at in 0..queue.len() {
            if queue[at].called || in_the_way(queue, at, held).next().is_some() {
                continue;
            }
            queue[at].called = true;
            called.push(Called {
                session: queue[at].wanted.session,
                number: queue[at].wanted.number,
            });
        }
        called
    }

    /// Takes soft edges away until no ring goes through this wait. Returns objects with news.
    fn open_rings<E>(
        &mut self,
        at: Place,
        held: &impl Fn(ObjectId) -> Result<Vec<Held>, E>,
    ) -> Result<Vec<ObjectId>, E> {
        let mut opened = Vec::new();
        while let Some(soft) = self.ring(at, true, held)? {
            if soft.is_empty() {
                break; // hard all around: nobody can help
            }
            for (object, id) in soft {
                if let Some(wait) = self.wait_mut((object, id)) {
                    wait.barges = true;
                }
                opened.push(object);
            }
        }
        Ok(opened)
    }

    fn wait_mut(&mut self, (object, id): Place) -> Option<&mut Wait> {
        let queue = self.queues.get_mut(&object)?;
        let index = queue.binary_search_by_key(&id, |w| w.id).ok()?;
        queue.get_mut(index)
    }

    /// Looks for a ring through a wait's owner; of its waits those that wait by a soft edge.
    fn ring<E>(
        &self,
        start: Place,
        with_soft: bool,
        held: &impl Fn(ObjectId) -> Result<Vec<Held>, E>,
    ) -> Result<Option<Vec<Place>>, E> {
        let mut locks: HashMap<ObjectId, Vec<Held>> = HashMap::new();
        let mut seen = BTreeSet::from([start]);
        let mut steps = vec![Step {
            at: start,
            from: None,
        }];
        let mut target = None;
        let mut next = 0;
        while next < steps.len() && steps.len() <= RING_WAITS_MAX {
            let (object, id) = steps[next].at;
            let Some(queue) = self.queues.get(&object) else {
                break;
            };
            let Ok(index) = queue.binary_search_by_key(&id, |w| w.id) else {
                break;
            };
            let target = *target.get_or_insert_with(|| queue[index].wanted.owner());
            let locks = match locks.entry(object) {
                Entry::Occupied(read) => read.into_mut(),
                Entry::Vacant(unread) => unread.insert(held(object)?),
            };
            for (owner, soft) in in_the_way(queue, index, locks) {
                if soft && !with_soft {
                    continue;
                }
                if owner == target {
                    return Ok(Some(soft_steps(&steps, next, soft)));
                }
                for at in self.owners.get(&owner).into_iter().flatten() {
                    if seen.insert(*at) {
                        let from = Some((next, soft));
                        steps.push(Step { at: *at, from });
                    }
                }
            }
            next += 1;
        }
        Ok(None)
    }
}

/// Of the steps to the last one those that go on by a soft edge; the last one's is `soft`.
fn soft_steps(steps: &[Step], last: usize, soft: bool) -> Vec<Place> {
    let mut found = Vec::new();
    let (mut at, mut soft) = (last, soft);
    loop {
        if soft {
            found.push(steps[at].at);
        }
        match steps[at].from {
            Some(from) => (at, soft) = from,
            None => return found,
        }
    }
}

/// Whose locks and waits keep a wait waiting, and whether softly. Nobody's, if it is called.
fn in_the_way<'a>(
    queue: &'a [Wait],
    at: usize,
    held: &'a [Held],
) -> impl Iterator<Item = (Owner, bool)> + 'a {
    let wait = &queue[at];
    let Wanted { session, lock, .. } = &wait.wanted;
    let holders = held
        .iter()
        .filter(|h| h.is_in_the_way_of(*session, lock))
        .map(|h| ((h.session, h.lock.owner), false));
    let others = queue
        .iter()
        .enumerate()
        .filter(move |(i, w)| w.called || (*i < at && !wait.barges))
        .filter(|(_, w)| w.clashes(wait.wanted.owner(), &wait.wanted.lock))
        .map(|(_, w)| (w.wanted.owner(), !w.called));
    let all = holders.chain(others);
    all.filter(|_| !wait.called)
}
