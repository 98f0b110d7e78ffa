//! Which open files have to be told that something confirmed was lost: each once, by an error at its
//! next fsync or close (DUR-5), as Linux tells of a failed write-back (errseq_t). A write tells it before,
//! but does not count: the kernel cuts a large write(2) into several, and where one behind the first
//! fails, the caller hears of a short write and of no error. It is EIO,
//! or what the primary refused a change with that had been answered early (CL-1), where nothing else
//! was lost: of several such errors the last.

use std::collections::HashMap;

use parking_lot::Mutex;
use protocol::units::ObjectId;

use super::EIO;
use super::keep::Lost;

/// Objects with a loss that are remembered. Beyond that everybody is told.
const LOSSES_MAX: usize = 64 << 10;

/// A loss, or several, of one object.
#[derive(Debug, Clone, Copy, Default)]
struct Loss {
    /// Rises with each.
    count: u64,
    /// Up to here somebody was told of them.
    told: u64,
    /// The last one that was no refusal.
    last_eio: u64,
    /// The error of the last refusal.
    refused: i32,
}

#[derive(Debug, Default)]
struct State {
    objects: HashMap<ObjectId, Loss>,
    /// Losses that may be about anything, and up to where somebody was told of them.
    any: u64,
    any_told: u64,
    handles: HashMap<u64, Handle>,
}

/// Up to where somebody was told of losses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    /// Of the object.
    object: u64,
    /// About anything.
    any: u64,
}

/// An open file or directory, and the losses that it was told of.
#[derive(Debug, Clone, Copy)]
struct Handle {
    object: ObjectId,
    /// By an fsync.
    seen: Seen,
    /// By a write or by what counts: none tells it again.
    at_write: Seen,
    /// By a close.
    at_close: Seen,
}

impl State {
    fn loss(&self, object: ObjectId) -> Loss {
        self.objects.get(&object).copied().unwrap_or_default()
    }

    /// Everything that was lost by now.
    fn all(&self, object: ObjectId) -> Seen {
        Seen {
            object: self.loss(object).count,
            any: self.any,
        }
    }

    /// What is told of what came after `seen`.
    fn since(&self, object: ObjectId, seen: Seen) -> Option<i32> {
        let of_any = (self.any > seen.any).then_some(EIO);
        of_any.or_else(|| self.loss(object).since(seen.object))
    }

    /// Somebody who had seen so much was told up to there.
    fn count_as_told(&mut self, object: ObjectId, seen: Seen, to: Seen) {
        if to.any > seen.any {
            self.any_told = self.any_told.max(to.any);
        }
        if to.object > seen.object
            && let Some(loss) = self.objects.get_mut(&object)
        {
            loss.told = loss.told.max(to.object);
        }
    }

    fn note(&mut self, any: bool, objects: &[ObjectId], errno: i32) {
        if any || self.objects.len() + objects.len() > LOSSES_MAX {
            self.any += 1;
            return;
        }
        for object in objects {
            let loss = self.objects.entry(*object).or_default();
            loss.count += 1;
            match errno {
                EIO => loss.last_eio = loss.count,
                other => loss.refused = other,
            }
        }
    }
}

impl Loss {
    /// What is told of what came after `seen`.
    fn since(&self, seen: u64) -> Option<i32> {
        let errno = if self.last_eio > seen {
            EIO
        } else {
            self.refused
        };
        (self.count > seen).then_some(errno)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Losses(Mutex<State>);

impl Losses {
    /// A file or directory was opened. What was lost before and nobody was told of is told here.
    pub(crate) fn opened(&self, handle: u64, object: ObjectId) {
        let mut state = self.0.lock();
        let seen = Seen {
            object: state.loss(object).told,
            any: state.any,
        };
        let new = Handle {
            object,
            seen,
            at_write: seen,
            at_close: seen,
        };
        state.handles.insert(handle, new);
    }

    /// A handle is gone: what its close told was told.
    pub(crate) fn closed(&self, handle: u64) {
        let mut state = self.0.lock();
        if let Some(gone) = state.handles.remove(&handle) {
            state.count_as_told(gone.object, gone.seen, gone.at_close);
        }
    }

    /// With which error a close has to tell of a loss, if of any. It may be a copy of the descriptor
    /// that is closed, in a child that runs another program: whoever goes on with the handle is told
    /// as well.
    pub(crate) fn tells_at_close(&self, handle: u64) -> Option<i32> {
        let mut state = self.0.lock();
        let mut known = state.handles.get(&handle).copied()?;
        known.at_close = state.all(known.object);
        state.handles.insert(handle, known);
        state.since(known.object, known.seen)
    }

    /// Something was lost.
    pub(super) fn lost(&self, lost: &Lost) {
        self.0.lock().note(lost.any, &lost.objects, EIO);
    }

    /// A primary refused a change of this object that had been answered.
    pub(crate) fn refused(&self, object: ObjectId, errno: i32) {
        self.0.lock().note(false, &[object], errno);
    }

    /// With which error the handle has to be told of a loss, if of any; it is from then on.
    pub(crate) fn tells(&self, handle: u64) -> Option<i32> {
        let mut state = self.0.lock();
        let known = state.handles.get(&handle).copied()?;
        let all = state.all(known.object);
        let new = Handle {
            seen: all,
            at_write: all,
            ..known
        };
        state.handles.insert(handle, new);
        state.count_as_told(known.object, known.seen, all);
        state.since(known.object, known.seen)
    }

    /// With which error whoever takes the mount away has to be told of losses that nobody was told of, if
    /// there are any: the gravest one. They count as told from then on, but for who has their files open.
    pub(crate) fn tells_rest(&self) -> Option<i32> {
        let mut state = self.0.lock();
        let mut gravest = (state.any > state.any_told).then_some(EIO);
        state.any_told = state.any;
        for loss in state.objects.values_mut() {
            let errno = loss.since(loss.told);
            loss.told = loss.count;
            if gravest != Some(EIO) {
                gravest = errno.or(gravest);
            }
        }
        gravest
    }

    /// With which error a write has to tell of a loss, if of any: no further one does, but an fsync or
    /// a close tells it again, as nobody may have heard it.
    pub(crate) fn tells_at_write(&self, handle: u64) -> Option<i32> {
        let mut state = self.0.lock();
        let known = state.handles.get(&handle).copied()?;
        let new = Handle {
            at_write: state.all(known.object),
            ..known
        };
        state.handles.insert(handle, new);
        state.since(known.object, known.at_write)
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
        assert!(losses.tells(1).is_none());
        losses.lost(&lost(FILE));
        assert!(losses.tells(1).is_some() && losses.tells(2).is_some());
        assert!(
            losses.tells(1).is_none() && losses.tells(2).is_none() && losses.tells(3).is_none()
        );
        losses.opened(4, FILE);
        assert!(losses.tells(4).is_none(), "others were told before it came");
        losses.lost(&lost(FILE));
        assert!(losses.tells(1).is_some() && losses.tells(4).is_some());
    }

    #[test]
    fn cl_1_a_file_tells_what_the_primary_refused_an_early_change_with() {
        const ENOSPC: i32 = 28;
        let losses = Losses::default();
        for handle in 1..=4 {
            losses.opened(handle, FILE);
        }
        losses.refused(FILE, ENOSPC);
        assert_eq!(losses.tells(1), Some(ENOSPC));
        assert_eq!(losses.tells_at_close(2), Some(ENOSPC));
        losses.lost(&lost(FILE));
        losses.refused(FILE, ENOSPC);
        assert_eq!(losses.tells(1), Some(EIO), "the graver of both");
        assert_eq!(losses.tells(3), Some(EIO));
        assert_eq!(losses.tells(3), None);
        losses.refused(FILE, ENOSPC);
        assert_eq!(losses.tells(3), Some(ENOSPC), "it was told of the rest");
        for errno in [EIO, ENOSPC] {
            losses.refused(FILE, errno);
        }
        losses.opened(5, FILE);
        assert_eq!(losses.tells(5), Some(EIO), "nobody was told of either");
        losses.refused(FILE, ENOSPC);
        losses.lost(&Lost {
            any: true,
            ..Lost::default()
        });
        assert_eq!(losses.tells(4), Some(EIO), "the graver of both");
        assert_eq!(losses.tells(4), None);
    }

    #[test]
    fn dur_5_a_loss_that_a_write_swallowed_is_told_by_the_next_fsync_or_close() {
        const ENOSPC: i32 = 28;
        let losses = Losses::default();
        losses.opened(1, FILE);
        losses.refused(FILE, ENOSPC);
        assert_eq!(losses.tells_at_write(1), Some(ENOSPC), "the second MiB");
        assert_eq!(losses.tells_at_write(1), None, "the rest of it is written");
        assert_eq!(losses.tells_at_close(1), Some(ENOSPC));
        assert_eq!(losses.tells(1), Some(ENOSPC));
        assert_eq!(losses.tells(1), None);
        assert_eq!(losses.tells_at_write(1), None);
        losses.refused(FILE, ENOSPC);
        assert_eq!(losses.tells(1), Some(ENOSPC));
        assert_eq!(losses.tells_at_write(1), None, "the fsync told it");
        // A file that is written, and whose process dies before it closes.
        losses.refused(FILE, ENOSPC);
        assert_eq!(losses.tells_at_write(1), Some(ENOSPC));
        losses.closed(1);
        losses.opened(2, FILE);
        losses.lost(&Lost {
            any: true,
            ..Lost::default()
        });
        assert_eq!(losses.tells_at_write(2), Some(EIO));
        assert_eq!(losses.tells_at_write(2), None);
        assert_eq!(losses.tells(2), Some(EIO));
        assert_eq!(losses.tells(2), None);
    }

    #[test]
    fn cl_1_who_takes_a_mount_away_is_told_what_nobody_was_told() {
        const ENOSPC: i32 = 28;
        let losses = Losses::default();
        losses.opened(1, FILE);
        assert_eq!(losses.tells_rest(), None);
        losses.refused(FILE, ENOSPC);
        losses.refused(ObjectId(6), ENOSPC);
        assert_eq!(losses.tells_rest(), Some(ENOSPC));
        assert_eq!(losses.tells_rest(), None, "once");
        assert_eq!(losses.tells(1), Some(ENOSPC), "who has it open is told");
        losses.refused(FILE, ENOSPC);
        losses.lost(&lost(ObjectId(7)));
        losses.refused(ObjectId(8), ENOSPC);
        assert_eq!(losses.tells_rest(), Some(EIO), "the gravest");
        losses.tells(1);
        losses.refused(FILE, ENOSPC);
        assert_eq!(losses.tells(1), Some(ENOSPC));
        assert_eq!(losses.tells_rest(), None, "an fsync told it");
        let any = Lost {
            any: true,
            ..Lost::default()
        };
        losses.lost(&any);
        assert_eq!(losses.tells_rest(), Some(EIO));
        losses.lost(&any);
        assert_eq!(losses.tells_at_close(1), Some(EIO));
        losses.closed(1);
        assert_eq!(losses.tells_rest(), None, "the last close told it");
    }

    #[test]
    fn the_close_of_a_copy_tells_and_leaves_the_rest_to_be_told() {
        let losses = Losses::default();
        losses.opened(1, FILE);
        losses.lost(&lost(FILE));
        assert!(
            losses.tells_at_close(1).is_some(),
            "a child runs another program"
        );
        assert!(
            losses.tells(1).is_some() && losses.tells(1).is_none(),
            "its parent goes on"
        );
        assert!(losses.tells_at_close(1).is_none());
        losses.lost(&lost(FILE));
        assert!(losses.tells_at_close(1).is_some());
        losses.closed(1);
        losses.opened(2, FILE);
        assert!(losses.tells(2).is_none(), "the last close told it");
    }

    #[test]
    fn who_opens_a_file_is_told_what_nobody_was_told_before() {
        let losses = Losses::default();
        losses.lost(&lost(FILE));
        losses.opened(1, FILE);
        assert!(losses.tells(1).is_some() && losses.tells(1).is_none());
        losses.closed(1);
        assert!(losses.tells(1).is_none(), "it is gone");
        losses.opened(2, ObjectId(9));
        losses.lost(&Lost {
            objects: Vec::new(),
            any: true,
            locking: Vec::new(),
        });
        assert!(losses.tells(2).is_some() && losses.tells(2).is_none());
    }
}
