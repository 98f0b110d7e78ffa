//! Which open files have to be told that something confirmed was lost: each once, by EIO at its
//! next write, fsync or close (DUR-5), as Linux tells of a failed write-back (errseq_t).

use std::collections::HashMap;

use parking_lot::Mutex;
use protocol::units::ObjectId;

use super::keep::Lost;

/// Objects with a loss that are remembered. Beyond that everybody is told.
const LOSSES_MAX: usize = 64 << 10;

/// A loss, or several, of one object.
#[derive(Debug, Clone, Copy, Default)]
struct Loss {
    /// Rises with each.
    count: u64,
    /// Somebody was told of the last one.
    was_told: bool,
}

#[derive(Debug, Default)]
struct State {
    objects: HashMap<ObjectId, Loss>,
    /// Losses that may be about anything.
    any: u64,
    handles: HashMap<u64, Handle>,
}

/// An open file or directory, and the losses that it was told of.
#[derive(Debug, Clone, Copy)]
struct Handle {
    object: ObjectId,
    /// Of the object.
    seen: u64,
    /// About anything.
    seen_any: u64,
    /// Of the object, told by a close.
    closing: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Losses(Mutex<State>);

impl Losses {
    /// A file or directory was opened. What was lost before and nobody was told of is told here.
    pub(crate) fn opened(&self, handle: u64, object: ObjectId) {
        let mut state = self.0.lock();
        let loss = state.objects.get(&object).copied().unwrap_or_default();
        let seen = loss.count - u64::from(loss.count > 0 && !loss.was_told);
        let any = state.any;
        let new = Handle {
            object,
            seen,
            seen_any: any,
            closing: seen,
        };
        state.handles.insert(handle, new);
    }

    /// A handle is gone: what its close told was told.
    pub(crate) fn closed(&self, handle: u64) {
        let mut state = self.0.lock();
        if let Some(gone) = state.handles.remove(&handle)
            && gone.closing > gone.seen
            && let Some(loss) = state.objects.get_mut(&gone.object)
        {
            loss.was_told |= loss.count == gone.closing;
        }
    }

    /// Whether a close has to tell of a loss. It may be a copy of the descriptor that is closed, in
    /// a child that runs another program: whoever goes on with the handle is told as well.
    pub(crate) fn tells_at_close(&self, handle: u64) -> bool {
        let mut state = self.0.lock();
        let any = state.any;
        let Some(mut known) = state.handles.get(&handle).copied() else {
            return false;
        };
        let count = state
            .objects
            .get(&known.object)
            .map_or(0, |loss| loss.count);
        known.closing = known.closing.max(count);
        state.handles.insert(handle, known);
        count > known.seen || any > known.seen_any
    }

    /// Something was lost.
    pub(super) fn lost(&self, lost: &Lost) {
        let mut state = self.0.lock();
        if lost.any || state.objects.len() + lost.objects.len() > LOSSES_MAX {
            state.any += 1;
            return;
        }
        for object in &lost.objects {
            let loss = state.objects.entry(*object).or_default();
            loss.count += 1;
            loss.was_told = false;
        }
    }

    /// Whether the handle has to be told of a loss; it is from then on.
    pub(crate) fn tells(&self, handle: u64) -> bool {
        let mut state = self.0.lock();
        let any = state.any;
        let Some(mut known) = state.handles.get(&handle).copied() else {
            return false;
        };
        let (seen, seen_any) = (known.seen, known.seen_any);
        if let Some(loss) = state.objects.get_mut(&known.object)
            && loss.count > seen
        {
            loss.was_told = true;
            known.seen = loss.count;
        }
        known.seen_any = any;
        state.handles.insert(handle, known);
        known.seen > seen || any > seen_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: ObjectId = ObjectId(5);

    fn lost(object: ObjectId) -> Lost {
        Lost {
            objects: vec![object],
            any: false,
            locking: Vec::new(),
        }
    }

    #[test]
    fn each_open_file_is_told_of_a_loss_once() {
        let losses = Losses::default();
        losses.opened(1, FILE);
        losses.opened(2, FILE);
        losses.opened(3, ObjectId(6));
        assert!(!losses.tells(1));
        losses.lost(&lost(FILE));
        assert!(losses.tells(1) && losses.tells(2));
        assert!(!losses.tells(1) && !losses.tells(2) && !losses.tells(3));
        losses.opened(4, FILE);
        assert!(!losses.tells(4), "others were told before it came");
        losses.lost(&lost(FILE));
        assert!(losses.tells(1) && losses.tells(4));
    }

    #[test]
    fn the_close_of_a_copy_tells_and_leaves_the_rest_to_be_told() {
        let losses = Losses::default();
        losses.opened(1, FILE);
        losses.lost(&lost(FILE));
        assert!(losses.tells_at_close(1), "a child runs another program");
        assert!(losses.tells(1) && !losses.tells(1), "its parent goes on");
        assert!(!losses.tells_at_close(1));
        losses.lost(&lost(FILE));
        assert!(losses.tells_at_close(1));
        losses.closed(1);
        losses.opened(2, FILE);
        assert!(!losses.tells(2), "the last close told it");
    }

    #[test]
    fn who_opens_a_file_is_told_what_nobody_was_told_before() {
        let losses = Losses::default();
        losses.lost(&lost(FILE));
        losses.opened(1, FILE);
        assert!(losses.tells(1) && !losses.tells(1));
        losses.closed(1);
        assert!(!losses.tells(1), "it is gone");
        losses.opened(2, ObjectId(9));
        losses.lost(&Lost {
            objects: Vec::new(),
            any: true,
            locking: Vec::new(),
        });
        assert!(losses.tells(2) && !losses.tells(2));
    }
}
