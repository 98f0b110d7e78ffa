//! Who waits for whom, all around.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use protocol::units::ObjectId;

use super::Held;
use super::waits::{Owner, Place, Wait, goes_before};

/// Waits that are looked at in search of a ring; a longer one is not found.
const STEPS_MAX: usize = 1024;
/// What a search may look at, in comparisons of two locks: a few milliseconds. What would be found
/// only beyond is not found.
const LOOKS_MAX: usize = 1 << 20;
/// To read a range that is held takes as long as so many comparisons.
const LOOKS_PER_READ: usize = 16;

/// Owners that wait for each other.
#[derive(Debug)]
pub(super) struct Ring {
    /// Of its waits those that wait by a soft edge.
    pub(super) soft: Vec<Place>,
    /// The wait that closes it: for the owner with which the search began.
    pub(super) last: Place,
}

/// A wait that a search came to.
struct Step {
    at: Place,
    /// From which step, and whether by a soft edge.
    from: Option<(usize, bool)>,
}

/// What a search has not come to yet, of an object. Whatever it has come to needs no second look:
/// all that follows from it is on the way.
struct Unreached {
    held: Vec<Held>,
    /// Indices of waits.
    waits: Vec<usize>,
}

/// See the module.
pub(super) struct Search<'a> {
    queues: &'a BTreeMap<ObjectId, Vec<Wait>>,
    owners: &'a BTreeMap<Owner, BTreeSet<Place>>,
    target: Owner,
    with_soft: bool,
    steps: Vec<Step>,
    seen: BTreeSet<Place>,
    seen_owners: BTreeSet<Owner>,
    unreached: BTreeMap<ObjectId, Unreached>,
    looks: usize,
}

impl<'a> Search<'a> {
    /// For a ring through `target`, also one of our own making if `with_soft`.
    pub(super) fn new(
        queues: &'a BTreeMap<ObjectId, Vec<Wait>>,
        owners: &'a BTreeMap<Owner, BTreeSet<Place>>,
        target: Owner,
        with_soft: bool,
    ) -> Self {
        Self {
            queues,
            owners,
            target,
            with_soft,
            steps: Vec::new(),
            seen: BTreeSet::new(),
            seen_owners: BTreeSet::new(),
            unreached: BTreeMap::new(),
            looks: 0,
        }
    }

    /// Looks from these waits of the target on.
    pub(super) fn from<E>(
        mut self,
        waits: &[Place],
        held: &impl Fn(ObjectId) -> Result<Vec<Held>, E>,
    ) -> Result<Option<Ring>, E> {
        for at in waits {
            self.step(*at, None);
        }
        let mut next = 0;
        while next < self.steps.len() && next < STEPS_MAX && self.looks < LOOKS_MAX {
            for (owner, soft) in self.owners_before(self.steps[next].at, held)? {
                if owner == self.target {
                    return Ok(Some(self.ring(next, soft)));
                }
                if self.seen_owners.insert(owner) {
                    let owners = self.owners;
                    for at in owners.get(&owner).into_iter().flatten() {
                        self.step(*at, Some((next, soft)));
                    }
                }
            }
            next += 1;
        }
        Ok(None)
    }

    fn step(&mut self, at: Place, from: Option<(usize, bool)>) {
        if self.seen.insert(at) {
            self.steps.push(Step { at, from });
        }
    }

    /// Whose locks and waits keep a wait waiting, and whether softly; nobody's, if it is called.
    /// Without those whom the search has come to.
    fn owners_before<E>(
        &mut self,
        (object, id): Place,
        held: &impl Fn(ObjectId) -> Result<Vec<Held>, E>,
    ) -> Result<Vec<(Owner, bool)>, E> {
        let queue = self.queues.get(&object).map_or(&[][..], Vec::as_slice);
        let Ok(index) = queue.binary_search_by_key(&id, |w| w.id) else {
            return Ok(Vec::new());
        };
        let wait = &queue[index];
        if wait.called {
            return Ok(Vec::new());
        }
        let left = match self.unreached.entry(object) {
            Entry::Occupied(left) => left.into_mut(),
            Entry::Vacant(new) => {
                let held = held(object)?;
                self.looks += held.len() * LOOKS_PER_READ;
                let waits = (0..queue.len()).collect();
                new.insert(Unreached { held, waits })
            }
        };
        self.looks += left.held.len() + left.waits.len();
        let mut found = Vec::new();
        let session = wait.wanted.session;
        left.held.retain(|h| {
            let before = h.is_in_the_way_of(session, &wait.wanted.lock);
            if before {
                found.push(((h.session, h.lock.owner), false));
            }
            !before
        });
        let with_soft = self.with_soft;
        left.waits.retain(|i| {
            let other = &queue[*i];
            let before = (other.called || with_soft) && goes_before((*i, other), queue, index);
            if before {
                found.push((other.owner(), !other.called));
            }
            !before
        });
        Ok(found)
    }

    /// The ring that the edge from this step to the target closes.
    fn ring(&self, last: usize, soft: bool) -> Ring {
        let (mut at, mut is_soft) = (last, soft);
        let mut soft = Vec::new();
        loop {
            if is_soft {
                soft.push(self.steps[at].at);
            }
            match self.steps[at].from {
                Some(from) => (at, is_soft) = from,
                None => break,
            }
        }
        Ring {
            soft,
            last: self.steps[last].at,
        }
    }
}
