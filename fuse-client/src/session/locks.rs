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

/// Bytes, as ranges in order that do not touch each other.
#[derive(Debug, Default)]
struct Covered(Vec<Range>);

impl Covered {
    fn add(&mut self, (mut start, mut end): Range) {
        let apart = |r: &Range| r.1.saturating_add(1) < start || end.saturating_add(1) < r.0;
        let joined = self.0.iter().filter(|r| !apart(r)).copied();
        let joined: Vec<Range> = joined.collect();
        self.0.retain(|r| !joined.contains(r));
        for range in joined {
            (start, end) = (start.min(range.0), end.max(range.1));
        }
        self.0.push((start, end));
        self.0.sort_unstable();
    }

    fn remove(&mut self, (start, end): Range) {
        let before = std::mem::take(&mut self.0);
        for (first, last) in before {
            if first < start {
                self.0.push((first, last.min(start - 1)));
            }
            if last > end {
                self.0.push((first.max(end + 1), last));
            }
        }
    }

    /// What of `range` is not there.
    fn missing_in(&self, range: Range) -> Vec<Range> {
        let mut missing = Self(vec![range]);
        for held in &self.0 {
            missing.remove(*held);
        }
        missing.0
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[derive(Debug, Default)]
struct Owner {
    /// Open files through which locks were asked for.
    handles: BTreeSet<u64>,
    /// What it got and has not given back since.
    held: Covered,
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

    /// Whoever asked was answered. Returns what nobody knows to be held and is to be given back,
    /// before anything else of this owner is asked.
    pub(super) fn answered(
        &self,
        handle: u64,
        key: Key,
        range: Range,
        granted: bool,
    ) -> Vec<Range> {
        let mut state = self.0.lock();
        if !granted && !state.owners.contains_key(&key) {
            return Vec::new(); // closed meanwhile
        }
        let owner = state.owners.entry(key).or_default();
        owner.handles.insert(handle);
        owner.asked = owner.asked.saturating_sub(1);
        if granted {
            owner.held.add(range);
        }
        if owner.asked > 0 {
            return Vec::new();
        }
        // What the owner asked for again is not to be taken from it.
        let unnoticed = std::mem::take(&mut owner.unnoticed);
        let held = &owner.held;
        unnoticed
            .into_iter()
            .flat_map(|range| held.missing_in(range))
            .collect()
    }

    /// The primary may have a lock of which its owner does not know: it was taken after whoever
    /// asked had gone, or was given back and a power cut took that. Returns what is to be given
    /// back, before anything else of this owner is asked.
    pub(super) fn not_known(&self, key: Key, range: Range) -> Vec<Range> {
        let mut state = self.0.lock();
        let Some(owner) = state.owners.get_mut(&key) else {
            return vec![range];
        };
        if owner.asked > 0 {
            owner.unnoticed.push(range);
            return Vec::new();
        }
        owner.held.missing_in(range)
    }

    /// Whether the owner holds locks of the object.
    pub(crate) fn holds(&self, key: Key) -> bool {
        let state = self.0.lock();
        state
            .owners
            .get(&key)
            .is_some_and(|owner| !owner.held.is_empty())
    }

    /// The owner gives something back.
    pub(crate) fn gives_back(&self, key: Key, range: Range) {
        if let Some(owner) = self.0.lock().owners.get_mut(&key) {
            owner.held.remove(range);
        }
    }

    /// The primary did not take back what was given back, as to split a range takes one more.
    pub(crate) fn keeps(&self, key: Key, range: Range) {
        if let Some(owner) = self.0.lock().owners.get_mut(&key) {
            owner.held.add(range);
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
        let State { owners, lost } = &mut *state;
        let before = lost.len();
        owners.retain(|_, owner| {
            owner.unnoticed.clear();
            let held = !owner.held.is_empty();
            if held {
                lost.extend(&owner.handles);
            }
            !held
        });
        lost.len() - before
    }

    /// Locks of these owners are lost, or of all that hold any. Returns how many open files are
    /// told. What else the owners have at the primary goes when they close the files.
    pub(super) fn lost(&self, keys: Option<&[Key]>) -> usize {
        let mut state = self.0.lock();
        let State { owners, lost } = &mut *state;
        let before = lost.len();
        for (key, owner) in owners {
            let is_meant = keys.is_none_or(|keys| keys.contains(key));
            if is_meant && !owner.held.is_empty() {
                owner.held = Covered::default();
                lost.extend(&owner.handles);
            }
        }
        lost.len() - before
    }

    /// Whether locks were lost that somebody held through this open file: nothing is done through it
    /// any more, as others may have gone on.
    pub(crate) fn are_lost(&self, handle: u64) -> bool {
        self.0.lock().lost.contains(&handle)
    }
}

#[cfg(test)]
mod tests {
    use protocol::fs::{LOCK_END_MAX, LockClass};

    use super::*;

    const RANGE: Range = (0, 9);

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
        assert_eq!(locks.answered(1, KEY, RANGE, true), []);
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
        assert_eq!(locks.answered(1, KEY, RANGE, true), []);
        assert_eq!(locks.released(1, OBJECT), [KEY.1]);
    }

    #[test]
    fn a_lock_that_nobody_waited_for_is_given_back_unless_its_owner_asks_again() {
        let locks = Locks::default();
        let range = (3, 4);
        locks.asks(1, KEY);
        assert_eq!(locks.answered(1, KEY, range, false), [], "a signal");
        assert_eq!(locks.not_known(KEY, range), [range]);
        // It asks again before the first answer is here.
        locks.asks(1, KEY);
        assert_eq!(locks.not_known(KEY, range), [], "it would lose it");
        assert_eq!(locks.answered(1, KEY, range, true), []);
        assert_eq!(locks.not_known(KEY, (2, 5)), [(2, 2), (5, 5)], "it has it");
        locks.gives_back(KEY, range);
        locks.asks(1, KEY);
        assert_eq!(locks.not_known(KEY, range), []);
        let gone = locks.answered(1, KEY, range, false);
        assert_eq!(gone, [range], "it has gone as well");
    }

    #[test]
    fn who_gave_back_piece_by_piece_holds_nothing_and_is_told_nothing() {
        let locks = Locks::default();
        locks.asks(1, KEY);
        locks.answered(1, KEY, (0, 9), true);
        locks.gives_back(KEY, (3, 5));
        locks.gives_back(KEY, (0, 2));
        assert!(locks.holds(KEY));
        locks.gives_back(KEY, (4, LOCK_END_MAX));
        assert!(!locks.holds(KEY));
        locks.keeps(KEY, (4, 5));
        assert!(locks.holds(KEY), "the primary did not take it");
        locks.gives_back(KEY, (4, 5));
        assert_eq!(locks.session_ended(), 0);
        assert!(!locks.are_lost(1));
    }

    #[test]
    fn who_held_locks_of_a_session_that_ended_is_told_until_the_file_is_gone() {
        let locks = Locks::default();
        locks.asks(1, KEY);
        locks.answered(1, KEY, RANGE, true);
        locks.asks(2, (ObjectId(6), KEY.1));
        assert_eq!(locks.session_ended(), 1);
        assert!(locks.are_lost(1) && !locks.are_lost(2) && !locks.holds(KEY));
        locks.released(1, OBJECT);
        assert!(!locks.are_lost(1));
    }

    #[test]
    fn who_lost_a_lock_is_told_alone_and_gives_the_rest_back_at_the_end() {
        let locks = Locks::default();
        let other = (OBJECT, LockOwner { id: 10, ..KEY.1 });
        for (handle, key) in [(1, KEY), (2, other)] {
            locks.asks(handle, key);
            locks.answered(handle, key, RANGE, true);
        }
        assert_eq!(locks.lost(Some(&[KEY])), 1);
        assert!(locks.are_lost(1) && !locks.are_lost(2));
        assert_eq!(locks.lost(Some(&[KEY])), 0, "it holds nothing any more");
        assert_eq!(locks.lost(None), 1, "whose it was is not known");
        assert_eq!(locks.released(1, OBJECT), [KEY.1]);
    }

    /// Every way to take three steps with four bytes.
    #[test]
    fn bytes_come_and_go_as_in_a_table() {
        const BYTES: u64 = 4;
        let ranges = (0..BYTES).flat_map(|a| (a..BYTES).map(move |b| (a, b)));
        let ranges: Vec<Range> = ranges.collect();
        let steps = [true, false].map(|adds| ranges.iter().map(move |range| (adds, *range)));
        let steps: Vec<_> = steps.into_iter().flatten().collect();
        let count = steps.len();
        let inside = |ranges: &[Range], at| ranges.iter().any(|r| r.0 <= at && at <= r.1);
        for way in 0..count.pow(3) {
            let mut table = [false; 4];
            let mut covered = Covered::default();
            for (adds, range) in
                [way % count, way / count % count, way / count / count].map(|i| steps[i])
            {
                for (at, byte) in (0..).zip(&mut table) {
                    if inside(&[range], at) {
                        *byte = adds;
                    }
                }
                if adds {
                    covered.add(range);
                } else {
                    covered.remove(range);
                }
            }
            assert!(covered.0.windows(2).all(|two| two[0].1 + 1 < two[1].0));
            let missing = covered.missing_in((0, BYTES - 1));
            for (at, byte) in (0..).zip(table) {
                assert_eq!(inside(&covered.0, at), byte);
                assert_eq!(inside(&missing, at), !byte);
            }
        }
    }
}
