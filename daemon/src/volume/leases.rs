//! Leases of the mounts' caches (COH-1): which an answer gives, and changes that wait for leases of
//! others. Who holds what stands in `namespace::leases`.
//!
//! A change that has to wait is put aside, so that its mount's connection is read on: what other
//! mounts wait for may be in it. When leases were given back or have ended it is decided on anew.

use std::collections::VecDeque;
use std::time::Duration;

use namespace::leases::{Grant, Leases, Recall, Verdict};
use protocol::fs::{Operation, Outcome, Recalled, Request};
use protocol::ids::SessionId;
use protocol::units::ObjectId;
use storage::Medium;

use super::clients::Taken;
use super::driver::{Driver, Shared};

/// How long a lease lasts after a question. Every primary of a volume counts the same, as one that
/// takes over awaits what its predecessor granted.
const LEASE_TIME: Duration = Duration::from_secs(2);
/// Bytes of changes that are put aside; beyond, the connections on which more come are not read.
const ASIDE_BYTES_MAX: usize = 64 << 20;
/// Something changed may have been told before it was waited for: it is looked again so soon.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// What a reply tells about leases.
#[derive(Default)]
pub(super) struct Leased {
    /// It gives these, if nothing was changed until it leaves.
    pub(super) grants: Vec<(ObjectId, Grant)>,
    /// What its session has kept of these is old.
    pub(super) old: Vec<ObjectId>,
}

/// What a primary knows of leases.
pub(super) struct Leasing {
    pub(super) table: Leases,
    aside: VecDeque<(SessionId, Box<Request>)>,
    aside_bytes: usize,
    /// Somebody looks again after what waits for something else than leases.
    looks_again: bool,
    /// Something ended by its time since what is put aside was decided on.
    ended: bool,
}

impl Default for Leasing {
    fn default() -> Self {
        Self {
            table: Leases::new(LEASE_TIME),
            aside: VecDeque::new(),
            aside_bytes: 0,
            looks_again: false,
            ended: false,
        }
    }
}

fn bytes_of(request: &Request) -> usize {
    512 + request.payload.len()
}

impl Leasing {
    /// This replica is primary no more.
    pub(super) fn stop(&mut self) {
        self.table.clear();
        self.take_aside();
    }

    /// Time goes by. Whether anything ended now.
    fn expire(&mut self, now: Duration) -> bool {
        let ends = self.table.expire(now);
        self.ended |= ends;
        ends
    }

    fn take_aside(&mut self) -> VecDeque<(SessionId, Box<Request>)> {
        self.aside_bytes = 0;
        std::mem::take(&mut self.aside)
    }

    fn put_aside(&mut self, session: SessionId, request: Box<Request>) {
        self.aside_bytes += bytes_of(&request);
        self.aside.push_back((session, request));
    }

    /// The connection on which these changes came is gone: they come again.
    pub(super) fn forget_aside(&mut self, session: SessionId) {
        for (of, request) in self.take_aside() {
            if of != session {
                self.put_aside(of, request);
            }
        }
    }

    /// Whether a change in this slot is put aside.
    pub(super) fn has_aside(&self, session: SessionId, slot: u16) -> bool {
        let mut aside = self.aside.iter();
        aside.any(|(of, request)| *of == session && request.slot == slot)
    }

    /// Puts a change aside, unless there is too much of it.
    pub(super) fn park(&mut self, session: SessionId, request: Box<Request>) -> Taken {
        if self.aside_bytes >= ASIDE_BYTES_MAX {
            return Taken::Later(request);
        }
        self.put_aside(session, request);
        Taken::Yes
    }
}

/// The objects of which an answer tells what a mount may keep.
fn told_of(operation: &Operation, outcome: &Outcome) -> Vec<ObjectId> {
    const ENOENT: i32 = 2;
    match (operation, outcome) {
        (Operation::Lookup { parent, .. }, Outcome::Error(ENOENT)) => vec![*parent],
        (
            Operation::Lookup { parent, .. }
            | Operation::MakeNode { parent, .. }
            | Operation::MakeDirectory { parent, .. }
            | Operation::Symlink { parent, .. }
            | Operation::Create { parent, .. }
            | Operation::Link {
                new_parent: parent, ..
            },
            Outcome::Entry(a),
        ) => vec![*parent, a.object],
        (_, Outcome::Entry(a) | Outcome::Attributes(a)) => vec![a.object],
        (_, Outcome::Written { attributes, .. }) => vec![attributes.object],
        (Operation::ReadDirectory { object, .. }, Outcome::Entries(entries)) => {
            let with_attributes = entries.iter().filter(|entry| entry.attributes.is_some());
            let mut objects = vec![*object];
            objects.extend(with_attributes.map(|entry| entry.object));
            objects
        }
        _ => Vec::new(),
    }
}

impl<M: Medium> Driver<M> {
    /// What an answer may give.
    pub(super) fn grants_of(
        &mut self,
        session: SessionId,
        operation: &Operation,
        outcome: &Outcome,
    ) -> Vec<(ObjectId, Grant)> {
        let now = self.now();
        let objects = told_of(operation, outcome).into_iter();
        let table = &mut self.leasing.table;
        objects
            .filter_map(|object| Some((object, table.grant(session, object, now)?)))
            .collect()
    }

    /// A change of these objects: what its author has kept of them is old. `None`: it has to wait,
    /// and whoever it waits for is told.
    pub(super) fn may_change(
        &mut self,
        author: SessionId,
        objects: &[ObjectId],
    ) -> Option<Vec<ObjectId>> {
        let now = self.now();
        self.end_what_ran_out(now);
        loop {
            let verdict = if self.replays.hold_up() {
                self.leasing.table.put_back(author, objects, now)
            } else {
                self.leasing.table.change(author, objects, now)
            };
            match verdict {
                Verdict::Free(old) => return Some(old),
                Verdict::Wait(recalls) => {
                    recalls.into_iter().for_each(|recall| self.tell(recall));
                }
            }
            // What had run out before it was recalled has ended with that.
            if !self.end_what_ran_out(now) {
                return None;
            }
        }
    }

    /// Time goes by. Whether anything ended now; whoever let it is told what is recalled besides,
    /// before any answer.
    pub(super) fn end_what_ran_out(&mut self, now: Duration) -> bool {
        let ends = self.leasing.expire(now);
        for recall in self.leasing.table.take_recalls() {
            self.tell(recall);
        }
        ends
    }

    /// Tells a session what is recalled. One that is not connected is told when it comes back.
    pub(super) fn tell(&mut self, recall: Recall) {
        let state = self.sessions.by_id.get(&recall.session);
        let Some((_, outbox)) = state.and_then(|s| s.connection.as_ref()) else {
            return self.leasing.table.not_told(&recall);
        };
        let Recall {
            number, objects, ..
        } = recall;
        outbox.send(Recalled { number, objects }.recall());
    }

    /// What a session presents as it is let in.
    pub(super) fn leases_presented(&mut self, session: SessionId, objects: &[ObjectId]) {
        let now = self.now();
        let whole = !self.replays.hold_up();
        let recall = self.leasing.table.present(session, objects, whole, now);
        if let Some(recall) = recall {
            self.tell(recall);
        }
        self.try_aside();
    }

    /// A session gave leases back.
    pub(super) fn leases_given_back(&mut self, session: SessionId, given: &Recalled) {
        let table = &mut self.leasing.table;
        if table.given_back(session, given.number, &given.objects) {
            self.try_aside();
        }
    }

    /// A session would give leases back.
    pub(super) fn leases_offered(&mut self, session: SessionId, objects: &[ObjectId]) {
        if let Some(recall) = self.leasing.table.offered(session, objects) {
            self.tell(recall);
        }
    }

    /// With each tick: what nobody gave back ends.
    pub(super) fn expire_leases(&mut self) {
        let now = self.now();
        self.leasing.table.tidy(now);
        self.end_what_ran_out(now);
        if std::mem::take(&mut self.leasing.ended) {
            self.try_aside();
        }
    }

    /// Leases have ended: changes that were put aside are decided on anew.
    pub(super) fn try_aside(&mut self) {
        self.changed.notify_waiters();
        let Some(shared) = self.shared() else {
            return;
        };
        let mut later = false;
        for (session, request) in self.leasing.take_aside() {
            let waits = self.is_full() || self.is_handing_over() || self.replays.hold_up();
            if waits {
                later = true;
                self.leasing.put_aside(session, request);
                continue;
            }
            match self.take(&shared, session, request) {
                Ok(Taken::Yes) => {}
                Ok(Taken::Later(request)) => {
                    later = true;
                    self.leasing.put_aside(session, request);
                }
                Err(reason) => {
                    tracing::warn!(%reason, "closing a client's connection");
                    let state = self.sessions.by_id.get(&session);
                    if let Some((_, outbox)) = state.and_then(|s| s.connection.as_ref()) {
                        outbox.close();
                    }
                }
            }
        }
        if later && !self.leasing.looks_again {
            self.leasing.looks_again = true;
            tokio::task::spawn_local(look_again(shared));
        }
    }
}

/// What waits for something else than leases is tried again soon.
async fn look_again<M: Medium>(shared: Shared<M>) {
    let changed = shared.borrow().changed.clone();
    let _ = tokio::time::timeout(LOOK_AGAIN, changed.notified()).await;
    let mut d = shared.borrow_mut();
    d.leasing.looks_again = false;
    if d.failed.is_none() && d.machine.serves() {
        d.try_aside();
        d.finish_turn();
    }
}
