//! What the kernel keeps under leases, and how it is made to forget it.
//!
//! Only attributes and names are kept by it. Attributes are invalidated without their pages, which
//! takes no lock that an operation of this mount may hold. Names are kept for a moment only and are
//! waited for: invalidating one takes its directory's lock, and FUSE_NOTIFY_INC_EPOCH, which takes
//! none, has the kernel take away whatever is mounted below.

use std::time::Duration;

use protocol::fs::{Attributes, Operation, Outcome};
use protocol::units::ObjectId;

use super::{FileSystem, Shape};
use crate::abi::{Body, NOTIFY_INVAL_INODE};
use crate::session::leases::{Forget, Fresh};
use crate::session::{Waiting, clock};

/// A process that was answered may not have got round to keeping it: the kernel is told again.
const TELL_AGAIN: [Duration; 4] = [
    Duration::from_micros(100),
    Duration::from_millis(1),
    Duration::from_millis(3),
    Duration::from_millis(10),
];

impl FileSystem {
    /// The attributes that the kernel may have kept of a node are old. False: it has no such node.
    pub(super) fn attributes_changed(&self, node: u64) -> bool {
        let mut body = Body::with_capacity(24);
        // A negative offset: the attributes only (linux/fuse.h, fuse_notify_inval_inode_out).
        body.u64(node).u64(u64::MAX).u64(0);
        match self.transport.notify(NOTIFY_INVAL_INODE, &[&body.0]) {
            Ok(known) => known,
            Err(error) => {
                tracing::error!(%error, "the kernel was not told that attributes changed");
                false
            }
        }
    }

    /// Has the kernel forget attributes. Returns the objects of which it may still come to keep them,
    /// from an answer that is on its way inside of it.
    pub(super) fn have_forgotten(&self, forget: &Forget) -> Vec<ObjectId> {
        // Whoever looked before the recall has handed over what he saw.
        drop(self.answering.write());
        let objects = forget.attributes.iter().copied();
        let unknown = objects.filter(|object| !self.attributes_changed(self.node(*object)));
        // What was handed to it some time ago, and it does not know, it has forgotten already.
        let mut unsure: Vec<_> = unknown.filter(|of| forget.lately.contains(of)).collect();
        for pause in TELL_AGAIN {
            if unsure.is_empty() {
                break;
            }
            std::thread::sleep(pause);
            unsure.retain(|object| !self.attributes_changed(self.node(*object)));
        }
        unsure
    }

    /// Answers a question from memory, if the answer is there.
    pub(super) fn answer_kept(
        &self,
        unique: u64,
        operation: &Operation,
        shape: Shape,
    ) -> Option<Shape> {
        let _answering = self.answering.read();
        let Some((outcome, fresh)) = self.session.look(operation) else {
            return Some(shape);
        };
        let waiting = Waiting {
            unique,
            thread: 0, // it waits for nothing
            through: None,
            shape,
        };
        let told = match &outcome {
            Outcome::Entry(a) | Outcome::Attributes(a) => Some(*a),
            _ => None,
        };
        self.answer_fresh(waiting, outcome, fresh);
        if let Some(told) = told.filter(|_| !fresh.attributes.is_zero()) {
            self.take_back_overtaken(&told);
        }
        None
    }

    /// The kernel was answered from memory. What another thread has changed since, and was perhaps
    /// answered first, it must not go on believing: of a directory nothing tells it but this.
    fn take_back_overtaken(&self, told: &Attributes) {
        let cache = self.session.cache();
        let known = cache.lock().attributes_of(told.object, clock());
        if known.as_ref() != Some(told) {
            self.attributes_changed(self.node(told.object));
        }
    }

    /// Answers, and takes back what the kernel may keep if the process stood still on the way there
    /// for so long that the leases may have run out.
    pub(super) fn answer_fresh(&self, waiting: Waiting, outcome: Outcome, fresh: Fresh) {
        let object = match &outcome {
            Outcome::Entry(a) | Outcome::Attributes(a) => Some(a.object),
            _ => None,
        };
        let fresh = fresh.in_time(clock());
        self.tell(waiting, outcome, fresh);
        if let Some(object) = object.filter(|_| !fresh.attributes.is_zero()) {
            self.take_back_late(fresh, [object]);
        }
    }

    /// An answer has left that told the kernel for how long it may keep these attributes.
    pub(super) fn take_back_late(&self, fresh: Fresh, objects: impl IntoIterator<Item = ObjectId>) {
        if fresh.is_late(clock()) {
            for object in objects {
                self.attributes_changed(self.node(object));
            }
        }
    }
}
