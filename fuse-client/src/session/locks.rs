//! What applications may hold locked, by whom and through which open files: what a close gives
//! back, and who is told when locks are lost.
//!
//! The kernel names the owner of a lock, and tells when a process closes a file and when an open
//! file is gone. The primary has the locks themselves.

use std::collections::{BTreeSet, HashMap, HashSet};

use parking_lot::Mutex;
use protocol::fs::LockOwner;
use protocol::units::ObjectId;

/// Who may hold locks, of what.
pub(crate) type Key = (ObjectId, LockOwner);
/// First and last byte.
pub(crate) type Range = (u64, u64);

#[derive(Debug, Default)]
struct Owner {
    /// Open files through which locks were asked for.
    handles: BTreeSet<u64>,
    /// It got one, and has not given back everything at once since.
    holds: bool,
    /// Requests for locks that somebody waits for.
    asked: u32,
    /// Taken after whoever asked had gone, as a signal came.
    unnoticed: Vec<Range>,
}

#[derive(Debug, Default)]
struct State {
    owners: HashMap<Key, Owner>,
    /// Open files through which somebody held locks that are lost.
    lost: HashSet<u64>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Locks(Mutex<State>);

impl Locks {
    /// A lock is asked for; [`Locks::answered`] follows once.
    pub(crate) fn asks(&self, handle: u64, key: Key) {
        let mut state = self.0.lock();
        let owner = state.owners.entry(key).or_default();
        owner.handles.insert(handle);
        owner.asked += 1;
    }

    /// Whoever asked was answered. Returns what nobody knows to be held and is to be given back.
    pub(crate) fn answered(&self, handle: u64, key: Key, granted: bool) -> Vec<Range> {
        let mut state = self.0.lock();
        if !granted && !state.owners.contains_key(&key) {
            return Vec::new(); // closed meanwhile
        }
        let owner = state.owners.entry(key).or_default();
        owner.handles.insert(handle);
        owner.asked = owner.asked.saturating_sub(1);
        owner.holds |= granted;
        if owner.asked > 0 {
            return Vec::new();
        }
        let unnoticed = std::mem::take(&mut owner.unnoticed);
        // What the owner asked for again is not to be taken from it. So it may have more than it
        // knows, until it closes the file.
        if owner.holds { Vec::new() } else { unnoticed }
    }

    /// A lock was taken for somebody who had gone. True: it is to be given back.
    pub(super) fn got_unnoticed(&self, key: Key, range: Range) -> bool {
        let mut state = self.0.lock();
        let Some(owner) = state.owners.get_mut(&key) else {
            return false; // closed meanwhile, and given back with everything
        };
        if owner.asked > 0 {
            owner.unnoticed.push(range);
        }
        owner.asked == 0 && !owner.holds
    }

    /// Whether the owner may hold locks of the object.
    pub(crate) fn holds(&self, key: Key) -> bool {
        let state = self.0.lock();
        state.owners.get(&key).is_some_and(|owner| owner.holds)
    }

    /// The owner gives back everything.
    pub(crate) fn gives_back(&self, key: Key) {
        if let Some(owner) = self.0.lock().owners.get_mut(&key) {
            owner.holds = false;
        }
    }

    /// A process closes a file. True: what it holds of it goes.
    pub(crate) fn closes(&self, key: Key) -> bool {
        self.0.lock().owners.remove(&key).is_some()
    }

    /// An open file is gone: whose locks of `object` go with it.
    pub(crate) fn released(&self, handle: u64, object: ObjectId) -> Vec<LockOwner> {
        let mut state = self.0.lock();
        state.lost.remove(&handle);
        let mut gone = Vec::new();
        state.owners.retain(|(of, id), owner| {
            if *of == object && owner.handles.remove(&handle) && owner.handles.is_empty() {
                gone.push(*id);
                return false;
            }
            true
        });
        gone
    }

    /// The session ended, and every lock with it. Returns how many open files are told.
    pub(super) fn session_ended(&self) -> usize {
        let mut state = self.0.lock();
        let owners = std::mem::take(&mut state.owners);
        let before = state.lost.len();
        for owner in owners.into_values().filter(|owner| owner.holds) {
            state.lost.extend(owner.handles);
        }
        state.lost.len() - before
    }

    /// Whether locks were lost that somebody held through this open file: nothing is done through it
    /// any more, as others may have gone on.
    pub(crate) fn are_lost(&self, handle: u64) -> bool {
        self.0.lock().lost.contains(&handle)
    }
}

#[cfg(test)]
mod tests {
    use protocol::fs::LockClass;

    use super::*;

    const OBJECT: ObjectId = ObjectId(5);
    const KEY: Key = (
        OBJECT,
        LockOwner {
            class: LockClass::Ranges,
            id: 9,
        },
    );

    #[test]
    fn a_close_gives_back_once_and_an_open_file_that_is_gone_what_is_left() {
        let locks = Locks::default();
        assert!(!locks.closes(KEY), "nothing was asked for");
        locks.asks(1, KEY);
        assert_eq!(locks.answered(1, KEY, true), []);
        assert!(locks.holds(KEY) && locks.closes(KEY) && !locks.closes(KEY));
        assert_eq!(locks.released(1, OBJECT), []);
        locks.asks(1, KEY);
        locks.asks(2, KEY);
        assert_eq!(locks.released(1, OBJECT), [], "another one has it, too");
        assert_eq!(locks.released(2, OBJECT), [KEY.1]);
    }

    #[test]
    fn a_lock_that_comes_after_its_close_is_given_back_with_its_file() {
        let locks = Locks::default();
        locks.asks(1, KEY);
        assert!(locks.closes(KEY), "by another thread");
        assert_eq!(locks.answered(1, KEY, true), []);
        assert_eq!(locks.released(1, OBJECT), [KEY.1]);
    }

    #[test]
    fn a_lock_that_nobody_waited_for_is_given_back_unless_its_owner_asks_again() {
        let locks = Locks::default();
        let range = (3, 4);
        locks.asks(1, KEY);
        assert_eq!(locks.answered(1, KEY, false), [], "a signal");
        assert!(locks.got_unnoticed(KEY, range));
        // It asks again before the first answer is here.
        locks.asks(1, KEY);
        assert!(!locks.got_unnoticed(KEY, range), "it would lose it");
        assert_eq!(locks.answered(1, KEY, true), []);
        locks.gives_back(KEY);
        locks.asks(1, KEY);
        assert!(!locks.got_unnoticed(KEY, range));
        assert_eq!(
            locks.answered(1, KEY, false),
            [range],
            "it has gone as well"
        );
    }

    #[test]
    fn who_held_locks_of_a_session_that_ended_is_told_until_the_file_is_gone() {
        let locks = Locks::default();
        locks.asks(1, KEY);
        locks.answered(1, KEY, true);
        locks.asks(2, (ObjectId(6), KEY.1));
        assert_eq!(locks.session_ended(), 1);
        assert!(locks.are_lost(1) && !locks.are_lost(2) && !locks.holds(KEY));
        locks.released(1, OBJECT);
        assert!(!locks.are_lost(1));
    }
}
