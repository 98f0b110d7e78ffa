//! Leases of the mounts' caches (COH-1): which an answer gives, and changes that wait for leases of
//! others. Who holds what stands in `namespace::leases`.
//!
//! A change that has to wait is put aside, so that its mount's connection is read on: what other
//! mounts wait for may be in it. When leases were given back or have ended it is decided on anew.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use namespace::Executed;
use namespace::leases::{Given, Grant, Leases, Overdue, Presents, Recall, Verdict};
use protocol::fs::{
    Attributes, EARLY_BYTES_MAX, EARLY_MAX, Operation, Outcome, Present, Recalled, Request,
};
use protocol::ids::SessionId;
use protocol::units::{ObjectId, Timestamp};
use protocol::volume::VolumeKind;
use storage::Medium;

use super::clients::Taken;
use super::driver::{Driver, Shared};
use super::keys::Keys;

/// How long a lease lasts after a question. Every primary of a volume counts the same, as one that
/// takes over awaits what its predecessor granted.
const LEASE_TIME: Duration = Duration::from_secs(2);
/// Bytes of changes that are put aside; beyond, the connections on which more come are not read.
const ASIDE_BYTES_MAX: usize = 64 << 20;
/// Requests of one session that are put aside; beyond, its connection is not read. A mount has a few
/// hundred under way at most.
const ASIDE_OF_SESSION_MAX: usize = 1024;
/// Something changed may have been told before it was waited for: it is looked again so soon.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The leases are looked at more often than this, unless the process or its machine stood still.
const LOOKS_WITHIN: Duration = Duration::from_secs(1);

/// Room that is held back for each session that answers changes early, so that none of them fails:
/// what may be under way, and what goes by before leases are recalled where room becomes short.
const EARLY_ROOM: u64 = EARLY_BYTES_MAX + EARLY_MAX as u64 * (8 << 10) + (2 << 20);
/// Files of a session of which it is known when it changed them last.
const EARLY_FILES_MAX: usize = 4096;

/// What a reply tells about leases.
#[derive(Default)]
pub(super) struct Leased {
    /// It gives these, if nothing was changed until it leaves.
    pub(super) grants: Vec<(ObjectId, Grant)>,
    /// What its session has kept of these is old.
    pub(super) old: Vec<ObjectId>,
    /// A file that it changed: its session may get it for itself.
    pub(super) alone: Option<ObjectId>,
    /// When it changed files that the session has alone, where the outcome does not tell.
    pub(super) times: Vec<(ObjectId, Timestamp)>,
    /// Directories that it changed names in, as they are since.
    pub(super) directories: Vec<Attributes>,
}

/// What a primary knows of leases.
pub(super) struct Leasing {
    pub(super) table: Leases,
    aside: VecDeque<(SessionId, Box<Request>)>,
    aside_bytes: usize,
    /// How many of them are whose.
    aside_of: HashMap<SessionId, Aside>,
    /// Given back behind changes that are put aside.
    returns: Vec<(SessionId, Recalled)>,
    /// The change time of files after the last change that their session made itself, early or while
    /// it had them alone.
    early: HashMap<SessionId, HashMap<ObjectId, Timestamp>>,
    /// Somebody looks again after what waits for something else than leases.
    looks_again: bool,
    /// Something ended by its time since what is put aside was decided on.
    ended: bool,
    /// When it was last looked what has ended.
    looked: Option<Duration>,
}

/// How much of a session is put aside.
#[derive(Debug, Clone, Copy, Default)]
struct Aside {
    requests: usize,
    /// Those that were answered early.
    early: usize,
}

impl Default for Leasing {
    fn default() -> Self {
        Self {
            table: Leases::new(LEASE_TIME),
            aside: VecDeque::new(),
            aside_bytes: 0,
            aside_of: HashMap::new(),
            returns: Vec::new(),
            early: HashMap::new(),
            looks_again: false,
            ended: false,
            looked: None,
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
        self.returns.clear();
        self.early.clear();
    }

    /// A session is over. `at_once`: nobody believes in what it held.
    pub(super) fn end(&mut self, session: SessionId, at_once: bool, now: Duration) {
        self.forget_aside(session);
        self.table.end(session, at_once, now);
        self.early.remove(&session);
    }

    /// Whether something is put aside that the session's applications take for done: whatever it asks
    /// next comes after it.
    pub(super) fn has_early_aside(&self, session: SessionId) -> bool {
        self.aside_of(session).early > 0
    }

    fn aside_of(&self, session: SessionId) -> Aside {
        self.aside_of.get(&session).copied().unwrap_or_default()
    }

    /// The same of one of these files.
    fn has_early_aside_of(&self, session: SessionId, objects: &[ObjectId]) -> bool {
        if !self.has_early_aside(session) {
            return false;
        }
        let mut aside = self.aside.iter();
        aside.any(|(of, request)| {
            let file = changed_early(request);
            *of == session && file.is_some_and(|file| objects.contains(&file))
        })
    }

    /// A change that was answered early is carried out.
    pub(super) fn note_early(&mut self, session: SessionId, request: &Request, outcome: &Outcome) {
        let (Outcome::Attributes(a) | Outcome::Written { attributes: a, .. }) = outcome else {
            return;
        };
        if request.early.is_some() {
            self.note_own(session, a.object, a.ctime);
        }
    }

    /// A session changed a file itself, then.
    fn note_own(&mut self, session: SessionId, file: ObjectId, at: Timestamp) {
        let files = self.early.entry(session).or_default();
        if files.len() >= EARLY_FILES_MAX {
            files.clear(); // it counts only where the lease was lost, and something is under way
        }
        files.insert(file, at);
    }

    /// Time goes by. Whether anything ended now.
    fn expire(&mut self, now: Duration) -> bool {
        let looked = self.looked.replace(now).unwrap_or(now);
        let gap = now.saturating_sub(looked);
        if gap >= LOOKS_WITHIN {
            self.table.stood_still(gap, now);
        }
        let ends = self.table.expire(now);
        self.ended |= ends;
        ends
    }

    fn take_aside(&mut self) -> VecDeque<(SessionId, Box<Request>)> {
        self.aside_bytes = 0;
        self.aside_of.clear();
        std::mem::take(&mut self.aside)
    }

    fn put_aside(&mut self, session: SessionId, request: Box<Request>) {
        self.aside_bytes += bytes_of(&request);
        let of = self.aside_of.entry(session).or_default();
        of.requests += 1;
        of.early += usize::from(request.early.is_some());
        self.aside.push_back((session, request));
    }

    /// The connection on which these changes came is gone: they come again.
    pub(super) fn forget_aside(&mut self, session: SessionId) {
        for (of, request) in self.take_aside() {
            if of != session {
                self.put_aside(of, request);
            }
        }
        self.returns.retain(|(of, _)| *of != session);
    }

    /// Whether a change in this slot is put aside.
    pub(super) fn has_aside(&self, session: SessionId, slot: u16) -> bool {
        let mut aside = self.aside.iter();
        self.aside_of(session).requests > 0
            && aside.any(|(of, request)| *of == session && request.slot == slot)
    }

    /// Puts a change aside, unless there is too much of it.
    pub(super) fn park(&mut self, session: SessionId, request: Box<Request>) -> Taken {
        let many = self.aside_of(session).requests >= ASIDE_OF_SESSION_MAX;
        if many || self.aside_bytes >= ASIDE_BYTES_MAX {
            return Taken::Later(request);
        }
        self.put_aside(session, request);
        Taken::Yes
    }
}

/// The file that a change is about which was answered early.
fn changed_early(request: &Request) -> Option<ObjectId> {
    request.early.and_then(|_| request.operation.early_file())
}

/// The directories in which a change makes, takes away or moves names.
pub(super) fn directories_of(operation: &Operation) -> Vec<ObjectId> {
    match operation {
        Operation::MakeNode { parent, .. }
        | Operation::MakeDirectory { parent, .. }
        | Operation::Symlink { parent, .. }
        | Operation::Create { parent, .. }
        | Operation::Link {
            new_parent: parent, ..
        }
        | Operation::Unlink { parent, .. }
        | Operation::RemoveDirectory { parent, .. } => vec![*parent],
        Operation::Rename {
            parent, new_parent, ..
        } if parent == new_parent => vec![*parent],
        Operation::Rename {
            parent, new_parent, ..
        } => vec![*parent, *new_parent],
        _ => Vec::new(),
    }
}

/// The objects of which an answer tells what a mount may keep.
fn told_of(operation: &Operation, outcome: &Outcome) -> Vec<ObjectId> {
    const ENOENT: i32 = 2;
    match (operation, outcome) {
        (Operation::Lookup { parent, .. }, Outcome::Error(ENOENT)) => vec![*parent],
        (Operation::Lookup { parent, .. }, Outcome::Entry(a)) => vec![*parent, a.object],
        (_, Outcome::Entry(a)) => {
            let mut objects = directories_of(operation);
            objects.push(a.object);
            objects
        }
        (_, Outcome::Done) => directories_of(operation),
        (_, Outcome::Attributes(a)) => vec![a.object],
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

/// The files of whose attributes or data an answer tells. That there is nothing to read tells of the
/// size as well: who asks for data is told of it, whatever the answer is.
pub(super) fn files_told(operation: &Operation, executed: &Executed) -> Vec<ObjectId> {
    let of_outcome = |outcome: &Outcome| match outcome {
        Outcome::Entry(a) | Outcome::Attributes(a) | Outcome::Written { attributes: a, .. } => {
            a.is_file().then_some(a.object)
        }
        _ => None,
    };
    let asked = match operation {
        // An ACL changes with the mode.
        Operation::Read { object, .. }
        | Operation::Seek { object, .. }
        | Operation::GetXattr { object, .. } => Some(*object),
        Operation::CopyRange { from, .. } => Some(*from),
        _ => None,
    };
    let told = match executed {
        Executed::Answer(outcome) => of_outcome(outcome),
        Executed::Change(set) => of_outcome(&set.outcome),
        _ => None,
    };
    asked.into_iter().chain(told).collect()
}

/// The file that a change is about, which its session may get for itself.
pub(super) fn file_changed(operation: &Operation, outcome: &Outcome) -> Option<ObjectId> {
    let (Outcome::Entry(a) | Outcome::Attributes(a) | Outcome::Written { attributes: a, .. }) =
        outcome
    else {
        return None;
    };
    let changes = matches!(
        operation,
        Operation::Create { .. }
            | Operation::MakeUnnamed { .. }
            | Operation::Write { .. }
            | Operation::SetAttributes { .. }
            | Operation::Allocate { .. }
    );
    (changes && a.is_file()).then_some(a.object)
}

impl<M: Medium> Driver<M> {
    /// Whether an answer that tells of these files may be given. Else it waits, and whoever has one
    /// for himself is told.
    pub(super) fn may_tell(&mut self, session: SessionId, files: &[ObjectId]) -> bool {
        let now = self.now();
        self.end_what_ran_out(now);
        loop {
            match self.leasing.table.ask(session, files, now) {
                Verdict::Free(_) => return true,
                Verdict::Wait(recalls) => {
                    recalls.into_iter().for_each(|recall| self.tell(recall));
                }
            }
            // What had run out before it was recalled has ended with that.
            if !self.end_what_ran_out(now) {
                return false;
            }
        }
    }

    /// What a listing tells of files is left out where another mount may have changed it already:
    /// who wants to know asks for it.
    pub(super) fn hide_in_listing(&self, session: SessionId, outcome: &mut Outcome) {
        let Outcome::Entries(entries) = outcome else {
            return;
        };
        for entry in entries {
            let is_file = entry.attributes.is_some_and(|a| a.is_file());
            if is_file && self.leasing.table.is_hidden(session, entry.object) {
                entry.attributes = None;
            }
        }
    }

    /// Whether a change may take effect that was answered before it came: nobody else was told of
    /// the file, or at least nobody else changed it.
    pub(super) fn takes_early(
        &self,
        session: SessionId,
        request: &Request,
        known: Timestamp,
    ) -> Result<bool, String> {
        let object = changed_early(request).ok_or("a change was answered early that cannot be")?;
        if self.leasing.table.is_alone(session, object) {
            return Ok(true);
        }
        let changed_at = namespace::changed_at(&Keys(&self.brick), object);
        let changed_at = changed_at.map_err(|e| e.to_string())?;
        let own = self
            .leasing
            .early
            .get(&session)
            .and_then(|files| files.get(&object));
        Ok(changed_at.is_some_and(|at| at == known || Some(&at) == own))
    }

    /// Room that is held back for changes which were answered early, from any other change.
    pub(super) fn early_room(&self) -> u64 {
        self.leasing.table.alone() as u64 * EARLY_ROOM
    }

    /// Whether changes may be answered early: what they come to is sure. A disk's are not: it has an
    /// end that an operator may move.
    fn may_be_early(&self) -> bool {
        let block = self.spec.kind == VolumeKind::Block;
        !self.settings.read_only && !self.settings.root_squash && !block
    }

    /// The volume's options have changed: what was answered early is taken, and nothing more of it comes.
    pub(super) fn look_after_early_changes(&mut self) {
        if !self.may_be_early() {
            self.give_up_early_room();
        }
    }

    /// A change of these objects is carried out. What its session has alone of them it changed itself:
    /// when, it is told where the outcome does not say so.
    pub(super) fn note_changed(
        &mut self,
        session: SessionId,
        objects: &[ObjectId],
        outcome: &Outcome,
    ) -> Vec<(ObjectId, Timestamp)> {
        let told = match outcome {
            Outcome::Entry(a) | Outcome::Attributes(a) => Some(a),
            Outcome::Written { attributes, .. } => Some(attributes),
            _ => None,
        };
        let mut times = Vec::new();
        for object in objects {
            if !self.leasing.table.is_alone(session, *object) {
                continue;
            }
            if let Some(told) = told.filter(|told| told.object == *object) {
                self.leasing.note_own(session, *object, told.ctime);
                continue;
            }
            match namespace::changed_at(&Keys(&self.brick), *object) {
                Ok(Some(at)) => {
                    self.leasing.note_own(session, *object, at);
                    times.push((*object, at));
                }
                Ok(None) => {} // it is gone
                Err(error) => tracing::error!(%error, "a change time cannot be read"),
            }
        }
        times
    }

    /// Whether a change is taken that others would be refused just now: it was answered under a lease
    /// that stands. Of any other nobody knows whether it was answered at all.
    pub(super) fn is_privileged(&self, session: SessionId, request: &Request) -> bool {
        let table = &self.leasing.table;
        changed_early(request).is_some_and(|object| table.is_alone(session, object))
    }

    /// Whether a change may use room that is held back: others wait until it is taken.
    pub(super) fn has_room_held_back(&self, session: SessionId, request: &Request) -> bool {
        let table = &self.leasing.table;
        changed_early(request).is_some_and(|object| table.holds_off(session, object))
    }

    /// Changes of a session were put back, at a time of which its mount was not told: what it
    /// answered early after them is measured by that.
    pub(super) fn note_own_again(&mut self, session: SessionId, objects: &[ObjectId]) {
        for object in objects {
            match namespace::changed_at(&Keys(&self.brick), *object) {
                Ok(Some(at)) => self.leasing.note_own(session, *object, at),
                Ok(None) => {} // it is gone
                Err(error) => tracing::error!(%error, "a change time cannot be read"),
            }
        }
    }

    /// What an answer gives of a lease.
    pub(super) fn give(
        &mut self,
        session: SessionId,
        (object, grant): (ObjectId, Grant),
        alone: Option<ObjectId>,
    ) -> Given {
        let now = self.now();
        let mut alone = alone == Some(object) && self.may_be_early();
        if alone && !self.leasing.table.is_alone(session, object) {
            let room = self.early_room() + 2 * EARLY_ROOM;
            alone = self.has_room(room);
        }
        self.leasing.table.give(session, object, grant, alone, now)
    }

    /// Where room becomes short nothing is answered early any more, before anything of it fails.
    pub(super) fn look_after_early_room(&mut self) {
        let room = self.early_room();
        if room > 0 && !self.has_room(room) {
            self.give_up_early_room();
        }
    }

    /// Everything is recalled that mounts have alone: no room is held back when it is given back.
    pub(super) fn give_up_early_room(&mut self) {
        let now = self.now();
        let recalls = self.leasing.table.recall_alone(now);
        recalls.into_iter().for_each(|recall| self.tell(recall));
    }

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
        self.leasing.table.gathers(self.replays.hold_up(), now);
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
    pub(super) fn leases_presented(&mut self, session: SessionId, present: &Present) {
        let now = self.now();
        let whole = !self.replays.hold_up();
        // Who comes with what nobody gave gets no room held back that others may need.
        let may = self.may_be_early() && self.has_room(self.early_room() + 2 * EARLY_ROOM);
        let of = |objects: &[ObjectId]| -> Vec<ObjectId> {
            // Who says so first when changes are refused is not believed, nor of what is no file.
            let given = |object| self.leasing.table.is_alone(session, object);
            let is_file = |object| namespace::is_file(&Keys(&self.brick), object).unwrap_or(false);
            let counts = |object: &&ObjectId| given(**object) || (may && is_file(**object));
            objects.iter().filter(counts).copied().collect()
        };
        let some = present.early.len().min(usize::from(EARLY_MAX));
        let (alone, early) = (of(&present.exclusive), of(&present.early[..some]));
        let presents = Presents {
            leases: &present.leases,
            alone: &alone,
            early: &early,
        };
        let recall = self.leasing.table.present(session, presents, whole, now);
        if let Some(recall) = recall {
            self.tell(recall);
        }
        self.look_after_early_changes();
        self.try_aside();
    }

    /// A session gave leases back, behind everything that it had answered early.
    pub(super) fn leases_given_back(&mut self, session: SessionId, given: Recalled) {
        if self.leasing.has_early_aside_of(session, &given.objects) {
            self.leasing.returns.push((session, given));
            return;
        }
        let table = &mut self.leasing.table;
        if table.given_back(session, given.number, &given.objects) {
            self.try_aside();
        }
    }

    /// A session would give leases back.
    pub(super) fn leases_offered(&mut self, session: SessionId, objects: &[ObjectId]) {
        let now = self.now();
        if let Some(recall) = self.leasing.table.offered(session, objects, now) {
            self.tell(recall);
        }
    }

    /// With each tick: what nobody gave back ends.
    pub(super) fn expire_leases(&mut self) {
        let now = self.now();
        self.leasing.table.tidy(now);
        // What it sends lies unread as long as it reads no answers.
        for session in self.leasing.table.owing() {
            if self.unread(session).is_some() {
                self.leasing.table.heard(session, now);
            }
        }
        self.end_what_ran_out(now);
        for Overdue { session, closes } in self.leasing.table.take_overdue() {
            if closes {
                self.close(session, "it does not give back what others wait for");
            } else if let Some(rest) = self.leasing.table.recall_alone_of(session, now) {
                self.tell(rest);
            }
        }
        if std::mem::take(&mut self.leasing.ended) {
            self.try_aside();
        }
    }

    fn close(&self, session: SessionId, reason: &str) {
        tracing::warn!(%reason, "closing a client's connection");
        let state = self.sessions.by_id.get(&session);
        if let Some((_, outbox)) = state.and_then(|s| s.connection.as_ref()) {
            outbox.close();
        }
    }

    /// Leases have ended: changes that were put aside are decided on anew.
    pub(super) fn try_aside(&mut self) {
        self.changed.notify_waiters();
        let Some(shared) = self.shared() else {
            return;
        };
        let mut later = false;
        let mut closed = HashSet::new();
        for (session, request) in self.leasing.take_aside() {
            if closed.contains(&session) {
                continue; // it comes again, in its order, with the next connection
            }
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
                    self.close(session, &reason);
                    self.leasing.forget_aside(session);
                    closed.insert(session);
                }
            }
        }
        if later && !self.leasing.looks_again {
            self.leasing.looks_again = true;
            tokio::task::spawn_local(look_again(shared));
        }
        for (session, given) in std::mem::take(&mut self.leasing.returns) {
            self.leases_given_back(session, given);
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use protocol::fs::{Caller, SLOT_NONE};

    use super::*;

    fn question(number: u64) -> Box<Request> {
        Box::new(Request {
            slot: SLOT_NONE,
            number,
            caller: Caller::default(),
            operation: Operation::GetAttributes {
                object: ObjectId(7),
            },
            early: None,
            payload: Bytes::new(),
        })
    }

    #[test]
    fn bad_1_of_one_session_only_so_much_is_put_aside_and_others_have_their_own() {
        let mut leasing = Leasing::default();
        let (flood, other) = (SessionId([1; 16]), SessionId([2; 16]));
        let parked =
            (0..).take_while(|number| matches!(leasing.park(flood, question(*number)), Taken::Yes));
        assert_eq!(parked.count(), ASIDE_OF_SESSION_MAX);
        assert!(matches!(leasing.park(other, question(0)), Taken::Yes));
        leasing.forget_aside(flood);
        assert!(matches!(leasing.park(flood, question(0)), Taken::Yes));
        assert_eq!(leasing.take_aside().len(), 2);
    }

    #[test]
    fn what_was_answered_early_and_is_put_aside_is_known_until_it_is_taken_out() {
        let mut leasing = Leasing::default();
        let (session, other) = (SessionId([1; 16]), SessionId([2; 16]));
        let mut early = question(0);
        early.early = Some(Timestamp::default());
        leasing.put_aside(session, early);
        leasing.put_aside(other, question(1));
        assert!(leasing.has_early_aside(session) && !leasing.has_early_aside(other));
        leasing.forget_aside(session);
        assert!(!leasing.has_early_aside(session));
    }
}
