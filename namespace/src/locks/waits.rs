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

use std::collections::{BTreeMap, BTreeSet};

use protocol::fs::{Lock, LockClass, LockKind, LockOwner};
use protocol::ids::SessionId;
use protocol::units::ObjectId;

use super::Held;
use super::holders::Holders;
use super::rings::{Ring, Search};
use crate::errno::{EDEADLK, ENOLCK};

/// Waits for one object: each request for a lock of it may look at all of them.
pub const WAITS_PER_OBJECT_MAX: usize = 4096;
/// Of these, waits of one session: nobody else is kept out by it.
pub const WAITS_PER_OBJECT_OF_SESSION_MAX: usize = WAITS_PER_OBJECT_MAX / 4;
/// Waits of one volume, each a blocked thread of an application.
pub const WAITS_MAX: usize = 64 << 10;
/// Of these, waits of one session.
pub const WAITS_OF_SESSION_MAX: usize = WAITS_MAX / 8;
/// Rings that one request opens one by one; then whole queues go by who can go on, and after as
/// many again nobody looks further.
const RINGS_MAX: usize = 16;

pub(super) type Owner = (SessionId, LockOwner);

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
    /// [`WAITS_PER_OBJECT_MAX`], [`WAITS_MAX`], or what one session may have of these.
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
pub(super) struct Wait {
    /// Rises with each arrival.
    pub(super) id: u64,
    pub(super) wanted: Wanted,
    pub(super) called: bool,
    /// It does not wait for those who came earlier and still wait.
    pub(super) barges: bool,
}

impl Wait {
    pub(super) fn owner(&self) -> Owner {
        self.wanted.owner()
    }

    fn clashes(&self, owner: Owner, lock: &Lock) -> bool {
        self.wanted.owner() != owner && self.wanted.lock.clashes(lock)
    }
}

/// What came of a lock that an owner got.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Acquired {
    /// Objects of which [`Waits::call`] may have news.
    pub news: Vec<ObjectId>,
    /// Waits that have come to their end, as they would last for ever: [`Refusal::Deadlock`].
    pub deadlocked: Vec<Called>,
}

/// Where a wait is.
pub(super) type Place = (ObjectId, u64);

/// See the module.
#[derive(Debug, Default)]
pub struct Waits {
    queues: BTreeMap<ObjectId, Vec<Wait>>,
    tickets: BTreeMap<(SessionId, u64), Place>,
    owners: BTreeMap<Owner, BTreeSet<Place>>,
    of_session: BTreeMap<SessionId, usize>,
    last_id: u64,
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
        if self.is_full_for(wanted.session, wanted.object) {
            return Ok(Err(Refusal::TooMany));
        }
        self.last_id += 1;
        let at = (wanted.object, self.last_id);
        self.tickets.insert((wanted.session, wanted.ticket), at);
        *self.of_session.entry(wanted.session).or_insert(0) += 1;
        self.owners.entry(wanted.owner()).or_default().insert(at);
        self.queues.entry(wanted.object).or_default().push(Wait {
            id: self.last_id,
            wanted,
            called: false,
            barges: false,
        });
        let owner = wanted.owner();
        if is_told(owner) && self.ring(owner, &[at], false, held)?.is_some() {
            self.forget(wanted.session, wanted.ticket);
            return Ok(Err(Refusal::Deadlock));
        }
        Ok(Ok(self.open_rings(owner, &[at], held)?))
    }

    fn is_full_for(&self, session: SessionId, object: ObjectId) -> bool {
        let of_session = self.of_session.get(&session).copied().unwrap_or(0);
        if self.len() >= WAITS_MAX || of_session >= WAITS_OF_SESSION_MAX {
            return true;
        }
        let queue = self.queues.get(&object).map_or(&[][..], Vec::as_slice);
        let own = queue.iter().filter(|w| w.wanted.session == session);
        queue.len() >= WAITS_PER_OBJECT_MAX || own.count() >= WAITS_PER_OBJECT_OF_SESSION_MAX
    }

    /// An owner got a lock, perhaps while another of its threads waits for one. Those who wait for
    /// what it got, and for whom it waits, would wait for ever: they are told, as they would be if
    /// they asked only now.
    pub fn acquired<E>(
        &mut self,
        session: SessionId,
        owner: LockOwner,
        held: &impl Fn(ObjectId) -> Result<Vec<Held>, E>,
    ) -> Result<Acquired, E> {
        let owner = (session, owner);
        let waits = self.owners.get(&owner);
        let waits: Vec<Place> = waits.into_iter().flatten().copied().collect();
        let mut acquired = Acquired::default();
        if waits.is_empty() {
            return Ok(acquired);
        }
        for _ in 0..RINGS_MAX {
            if !is_told(owner) {
                break;
            }
            let Some(ring) = self.ring(owner, &waits, false, held)? else {
                break;
            };
            let Some(last) = self.wait_mut(ring.last) else {
                break;
            };
            let Wanted {
                session,
                number,
                ticket,
                ..
            } = last.wanted;
            acquired.deadlocked.push(Called { session, number });
            acquired.news.extend(self.forget(session, ticket));
        }
        let opened = self.open_rings(owner, &waits, held)?;
        acquired.news.extend(opened);
        Ok(acquired)
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
        let mut called = queue.iter().filter(|w| w.called && w.owner() == owner);
        let is_called = called.any(|w| w.wanted.lock == *lock);
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
        if let Some(count) = self.of_session.get_mut(&session) {
            *count -= 1;
            if *count == 0 {
                self.of_session.remove(&session);
            }
        }
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
        let holders = Holders::of(held);
        let mut called = Vec::new();
        for at in 0..queue.len() {
            let Wait { wanted, .. } = &queue[at];
            let holders = holders.are_in_the_way_of(wanted.owner(), &wanted.lock);
            let stays = || holders || queue.iter().enumerate().any(|w| goes_before(w, queue, at));
            if queue[at].called || stays() {
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

    /// Takes soft edges away until no ring goes through these waits of an owner. Returns objects
    /// with news.
    fn open_rings<E>(
        &mut self,
        owner: Owner,
        waits: &[Place],
        held: &impl Fn(ObjectId) -> Result<Vec<Held>, E>,
    ) -> Result<Vec<ObjectId>, E> {
        let mut opened = Vec::new();
        for round in 0..2 * RINGS_MAX {
            let Some(ring) = self.ring(owner, waits, true, held)? else {
                break;
            };
            if ring.soft.is_empty() {
                break; // hard all around: nobody can help
            }
            for (object, id) in ring.soft {
                if round >= RINGS_MAX {
                    let queue = self.queues.get_mut(&object);
                    queue.into_iter().flatten().for_each(|w| w.barges = true);
                } else if let Some(wait) = self.wait_mut((object, id)) {
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

    /// Looks for a ring through an owner, from these of its waits.
    fn ring<E>(
        &self,
        owner: Owner,
        waits: &[Place],
        with_soft: bool,
        held: &impl Fn(ObjectId) -> Result<Vec<Held>, E>,
    ) -> Result<Option<Ring>, E> {
        Search::new(&self.queues, &self.owners, owner, with_soft).from(waits, held)
    }
}

/// flock(2) knows no deadlocks, as whoever has the file open can end one.
fn is_told((_, owner): Owner) -> bool {
    owner.class == LockClass::Ranges
}

/// Whether a wait (its index beside it) keeps the one at `at` waiting.
pub(super) fn goes_before((i, other): (usize, &Wait), queue: &[Wait], at: usize) -> bool {
    let wait = &queue[at];
    let before = other.called || (i < at && !wait.barges);
    before && other.clashes(wait.owner(), &wait.wanted.lock)
}
