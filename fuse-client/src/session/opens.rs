//! What applications hold open, so that an unlinked file stays usable (COH-2).
//!
//! The primary counts opens of a session. The first open of an object here asks it; while one is
//! held, further ones do not. The last close gives back all that the primary counted.

use std::collections::HashMap;

use protocol::units::ObjectId;

#[derive(Debug, Clone, Copy, Default)]
struct Held {
    /// Handles of applications.
    here: u32,
    /// What the primary counts.
    there: u32,
}

#[derive(Debug, Default)]
pub(super) struct Opens {
    held: HashMap<ObjectId, Held>,
}

impl Opens {
    /// One more handle of an object that is held already; false where it is not.
    pub(super) fn again(&mut self, object: ObjectId) -> bool {
        match self.held.get_mut(&object) {
            Some(held) => {
                held.here += 1;
                true
            }
            None => false,
        }
    }

    /// The primary opened it for a handle.
    pub(super) fn opened(&mut self, object: ObjectId) {
        let held = self.held.entry(object).or_default();
        held.here += 1;
        held.there += 1;
    }

    /// A handle was closed: how often to release the object at the primary.
    pub(super) fn closed(&mut self, object: ObjectId) -> u32 {
        let Some(held) = self.held.get_mut(&object) else {
            return 0;
        };
        held.here -= 1;
        if held.here > 0 {
            return 0;
        }
        let there = held.there;
        self.held.remove(&object);
        there
    }

    /// Every object that is held, as often as the primary counts it, at most `max` of them.
    pub(super) fn list(&self, max: usize) -> Vec<ObjectId> {
        self.held
            .iter()
            .flat_map(|(object, held)| std::iter::repeat_n(*object, held.there as usize))
            .take(max)
            .collect()
    }
}
