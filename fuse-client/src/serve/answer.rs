//! From outcomes to the kernel's replies.

use bytes::Bytes;
use protocol::fs::{Attributes, Caller, FileSystemStatistics, Operation, Outcome};
use protocol::units::ObjectId;

use super::listing;
use super::lock::{self, Ask};
use super::{EIO, FileSystem};
use crate::abi::{Body, ENTRY_OUT_BYTES, STATX_OUT_BYTES, open};
use crate::session::leases::{Forget, Fresh};
use crate::session::{Key, Range, Replies, Waiting};

const ERANGE: i32 = 34;
/// The unit of statfs(2)'s counts, in bytes.
const STATFS_BLOCK_BYTES: u64 = 4096;

/// How an answer looks.
#[derive(Debug)]
pub(crate) enum Shape {
    Entry,
    Create {
        handle: u64,
    },
    Attributes,
    /// As statx(2) tells them.
    Statx,
    Open {
        handle: u64,
        object: ObjectId,
    },
    OpenDirectory {
        handle: u64,
        object: ObjectId,
    },
    Empty,
    /// The open file that is made stable. `all`: and everything else with it.
    Synced {
        handle: u64,
        all: bool,
    },
    Bytes,
    Xattr {
        size: u32,
    },
    /// `strips`: a node whose set-user-id bit the write may have dropped. `then_syncs`: it is answered
    /// when it is stable, or (true) its data and what finds it.
    Written {
        strips: Option<u64>,
        then_syncs: Option<bool>,
    },
    /// The same, once it is.
    WrittenAndSynced {
        strips: Option<u64>,
        len: u32,
    },
    Copied,
    Directory(Box<listing::Ask>),
    Statistics,
    Offset,
    Lock(Box<Ask>),
    LockWait(Box<Ask>),
    LockTest,
    /// What was given back, by whom.
    Unlocked(Box<(Key, Range)>),
    /// A close that had locks to give back. `told`: the error with which it tells of a loss.
    Closed {
        told: Option<i32>,
    },
}

impl Shape {
    /// What is to be opened.
    fn opens(&self) -> Option<u64> {
        match self {
            Self::Create { handle }
            | Self::Open { handle, .. }
            | Self::OpenDirectory { handle, .. } => Some(*handle),
            _ => None,
        }
    }

    /// Whether it is only a close that waits: what it gives back is given back all the same.
    pub(crate) fn is_close(&self) -> bool {
        matches!(self, Self::Closed { .. })
    }

    /// Whether it is answered when it is stable: that nobody says before.
    pub(crate) fn then_syncs(&self) -> bool {
        let syncs = matches!(self, Self::Written { then_syncs, .. } if then_syncs.is_some());
        syncs || matches!(self, Self::WrittenAndSynced { .. })
    }
}

/// Direct, also for several writers at once: the page cache would have to be told what other
/// clients do. A close is told: it may have to tell of a loss.
const OPEN_FLAGS: u32 = open::DIRECT_IO | open::PARALLEL_DIRECT_WRITES;

fn statistics(s: &FileSystemStatistics) -> Body {
    let mut body = Body::with_capacity(80);
    let free = s.bytes_free / STATFS_BLOCK_BYTES;
    body.u64(s.bytes_total / STATFS_BLOCK_BYTES)
        .u64(free)
        .u64(free);
    body.u64(s.objects.saturating_add(s.objects_free))
        .u64(s.objects_free);
    let block = u32::try_from(STATFS_BLOCK_BYTES).expect("4096");
    body.u32(block).u32(255).u32(block).zeros(28);
    body
}

impl Replies for FileSystem {
    fn answer(&self, waiting: Waiting, outcome: Outcome, fresh: Fresh) {
        self.answer_fresh(waiting, outcome, fresh);
    }

    fn forget(&self, forget: &Forget) -> Vec<ObjectId> {
        self.have_forgotten(forget)
    }
}

impl FileSystem {
    fn opened(&self, unique: u64, handle: u64, object: ObjectId, flags: u32) {
        self.session.losses().opened(handle, object);
        let mut body = Body::with_capacity(16);
        self.reply(unique, 0, &[&body.open(handle, flags).0]);
    }

    /// `size`: what there is room for; 0: only the length is asked for.
    fn xattr(&self, unique: u64, size: u32, data: &[u8]) {
        if size == 0 {
            let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
            let mut body = Body::with_capacity(8);
            self.reply(unique, 0, &[&body.u32(len).u32(0).0]);
        } else if data.len() > size as usize {
            self.reply(unique, ERANGE, &[]);
        } else {
            self.reply(unique, 0, &[data]);
        }
    }

    fn written(&self, unique: u64, len: u32, strips: Option<u64>) {
        let mut body = Body::with_capacity(8);
        self.reply(unique, 0, &[&body.u32(len).u32(0).0]);
        if let Some(node) = strips {
            self.attributes_changed(node);
        }
    }

    /// What is gone is not made stable by anything (DUR-5).
    fn synced(&self, unique: u64, handle: u64, all: bool) {
        let told = self.session.losses().tells(handle);
        let rest = all.then(|| self.session.losses().tells_rest()).flatten();
        let gravest = rest.filter(|errno| *errno == EIO).or(told).or(rest);
        self.reply(unique, gravest.unwrap_or(0), &[]);
    }

    /// Who wrote is answered when that is stable.
    fn sync_written(&self, waiting: Waiting, object: ObjectId, data_only: bool) {
        let sync = Operation::Sync { object, data_only };
        let caller = Caller::default(); // it was allowed to write
        self.session.submit(waiting, caller, sync, Bytes::new());
    }

    /// Tells the kernel an outcome; it may keep it for `fresh`.
    pub(super) fn tell(&self, waiting: Waiting, outcome: Outcome, fresh: Fresh) {
        let unique = waiting.unique;
        match (waiting.shape, outcome) {
            (Shape::Lock(ask), outcome) => self.lock_taken(unique, *ask, &outcome),
            (Shape::LockWait(ask), outcome) => self.lock_awaited(unique, *ask, &outcome),
            (Shape::Unlocked(what), outcome) => self.unlocked(unique, *what, &outcome),
            (Shape::Entry, Outcome::Error(_)) if !fresh.names.is_zero() => {
                // There is no such name, and that may be kept.
                let mut body = Body::with_capacity(ENTRY_OUT_BYTES);
                let nothing = Attributes::default();
                self.reply(unique, 0, &[&body.entry(0, &nothing, fresh).0]);
            }
            // An entry that the kernel got with attributes only, as Open answers.
            (shape, Outcome::Error(errno)) => {
                if let Some(handle) = shape.opens() {
                    self.openers.closed(handle);
                }
                self.reply(unique, errno, &[]);
            }
            (Shape::Entry, Outcome::Entry(a)) => {
                let mut body = Body::with_capacity(ENTRY_OUT_BYTES);
                self.reply(unique, 0, &[&body.entry(self.node(a.object), &a, fresh).0]);
            }
            (Shape::Create { handle }, Outcome::Entry(a)) => {
                self.session.losses().opened(handle, a.object);
                let mut body = Body::with_capacity(ENTRY_OUT_BYTES + 16);
                body.entry(self.node(a.object), &a, fresh)
                    .open(handle, OPEN_FLAGS);
                self.reply(unique, 0, &[&body.0]);
            }
            (Shape::Open { handle, object }, Outcome::Attributes(_) | Outcome::Done) => {
                self.opened(unique, handle, object, OPEN_FLAGS);
            }
            (Shape::OpenDirectory { handle, object }, Outcome::Attributes(_) | Outcome::Done) => {
                self.opened(unique, handle, object, 0);
            }
            (Shape::Attributes, Outcome::Attributes(a)) => {
                let mut body = Body::with_capacity(104);
                self.reply(unique, 0, &[&body.attr(&a, fresh.attributes).0]);
            }
            (Shape::Statx, Outcome::Attributes(a)) => {
                let mut body = Body::with_capacity(STATX_OUT_BYTES);
                self.reply(unique, 0, &[&body.statx(&a, fresh.attributes).0]);
            }
            (Shape::Empty, Outcome::Done | Outcome::Attributes(_)) => self.reply(unique, 0, &[]),
            (Shape::Synced { handle, all }, Outcome::Done) => self.synced(unique, handle, all),
            (Shape::Bytes, Outcome::Data(data)) => self.reply(unique, 0, &[&data]),
            (Shape::Xattr { size }, Outcome::Data(data)) => self.xattr(unique, size, &data),
            (
                Shape::Written { strips, then_syncs },
                Outcome::Written {
                    len, attributes, ..
                },
            ) => match then_syncs {
                None => self.written(unique, len, strips),
                Some(data_only) => {
                    let shape = Shape::WrittenAndSynced { strips, len };
                    let waiting = Waiting { shape, ..waiting };
                    self.sync_written(waiting, attributes.object, data_only);
                }
            },
            (Shape::WrittenAndSynced { strips, len }, Outcome::Done) => {
                let handle = waiting.through;
                let losses = self.session.losses();
                match handle.and_then(|handle| losses.tells_at_write(handle)) {
                    None => self.written(unique, len, strips),
                    Some(errno) => self.reply(unique, errno, &[]),
                }
            }
            (Shape::Copied, Outcome::Written { len, .. }) => {
                // A count of 8 bytes is the same as one of 4 and padding, low bytes first.
                let mut body = Body::with_capacity(8);
                self.reply(unique, 0, &[&body.u64(u64::from(len)).0]);
            }
            (Shape::Directory(ask), Outcome::Entries(entries)) => {
                self.list(unique, *ask, entries.into());
            }
            (Shape::Statistics, Outcome::FileSystem(s)) => {
                self.reply(unique, 0, &[&statistics(&s).0]);
            }
            (Shape::Offset, Outcome::Offset(at)) => {
                let mut body = Body::with_capacity(8);
                self.reply(unique, 0, &[&body.u64(at).0]);
            }
            (Shape::LockTest, Outcome::Lock(lock)) => {
                self.reply(unique, 0, &[&lock::body_of(lock.as_ref()).0]);
            }
            (Shape::Closed { told }, Outcome::Done) => {
                self.reply(unique, told.unwrap_or(0), &[]);
            }
            (shape, outcome) => {
                tracing::error!(?shape, ?outcome, "the primary answered something else");
                self.reply(unique, EIO, &[]);
            }
        }
    }
}
