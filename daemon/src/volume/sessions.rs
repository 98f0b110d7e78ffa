//! Sessions of mounts: their connections, their slots, and what they hold open.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::time::Duration;

use protocol::frame::RawFrame;
use protocol::fs::{Outcome, Place};
use protocol::ids::{NodeId, SessionId};
use protocol::units::{ObjectId, Sequence};
use tokio::sync::oneshot;

use super::outbox::Outbox;

/// Opens that one session may hold.
pub(super) const OPENS_MAX: usize = 1 << 20;

/// The last request of a slot, as this primary knows it. The replicated state holds the same for
/// requests that changed something; this also knows what is still under way.
#[derive(Default)]
pub(super) struct Slot {
    pub(super) number: u64,
    /// The reply, once there is one.
    pub(super) done: Option<Done>,
    /// What it opened for the session.
    opened: Option<ObjectId>,
    /// The session said what it holds since, perhaps without having read the reply: until it
    /// asks again, or uses the slot for something else, the slot holds what was opened.
    holds: bool,
}

/// A reply that was given.
#[derive(Clone)]
pub(super) struct Done {
    /// At which record it holds.
    pub(super) sequence: Sequence,
    /// Whether that record carries the request out.
    pub(super) changed: bool,
    pub(super) outcome: Outcome,
}

/// One mount.
#[derive(Default)]
pub(super) struct Session {
    pub(super) client_name: String,
    pub(super) mounted_at_ms: i64,
    pub(super) read_only: bool,
    /// The record with which it began. Who was answered nothing since does not know that what it
    /// had before has ended.
    pub(super) began: Place,
    /// Told when that record is stable; nobody is let in before.
    pub(super) settling: Option<oneshot::Receiver<()>>,
    pub(super) address: Option<String>,
    /// Whose key proved who it is, at its last connection; `None`: it is of this machine.
    pub(super) peer: Option<NodeId>,
    /// It is known who that is; of a session that an older version wrote down it is not, until it
    /// comes back.
    pub(super) owner_known: bool,
    /// Its identity has the right to read only.
    pub(super) only_reads: bool,
    /// Its connection now, with a number that tells it from older ones.
    pub(super) connection: Option<(u64, Rc<Outbox>)>,
    pub(super) slots: BTreeMap<u16, Slot>,
    /// How often each object is held open.
    pub(super) opens: BTreeMap<ObjectId, u32>,
    /// When something was last heard of it.
    pub(super) heard: Duration,
    /// It has not said yet that it presented everything (DUR-5).
    pub(super) presents: bool,
    /// It said what it holds, which it does once.
    pub(super) has_presented: bool,
    /// It had operations confirmed and was not known when it came: what took effect of them, and
    /// what of them was replayed, is not known either.
    pub(super) was_unknown: bool,
    /// The last record of which it was told whose request it carries out.
    pub(super) told: Sequence,
}

impl Session {
    /// Whether the record with which it began is stable.
    pub(super) fn is_settled(&mut self) -> bool {
        let settled = self
            .settling
            .as_mut()
            .is_none_or(|told| told.try_recv().is_ok());
        if settled {
            self.settling = None;
        }
        settled
    }
}

/// All of them.
#[derive(Default)]
pub(super) struct Sessions {
    pub(super) by_id: BTreeMap<SessionId, Session>,
    /// How many sessions hold an object open.
    held: HashMap<ObjectId, u32>,
    /// Until then a session of before a restart may still present what it holds open, so every
    /// unlinked object counts as open.
    pub(super) grace_until: Option<Duration>,
    /// Unlinked while the grace lasted, or closed for the last time: to be looked at.
    pub(super) to_release: BTreeSet<ObjectId>,
    last_id: u64,
    /// When it was last looked for sessions of which nothing is heard, and whether they were served.
    looked: Option<(Duration, bool)>,
}

/// Sessions are looked at once a second. What goes by between two looks beyond this, as the process
/// or its machine stood still or the volume was not served, is not held against them.
const LOOK_WITHIN: Duration = Duration::from_secs(2);

impl Sessions {
    /// Sessions of which nothing was heard for so long. Only time counts in which they were served
    /// and could be heard.
    pub(super) fn unheard(
        &mut self,
        now: Duration,
        serves: bool,
        timeout: Duration,
    ) -> Vec<SessionId> {
        let (looked, served) = self.looked.replace((now, serves)).unwrap_or((now, serves));
        let since = now.saturating_sub(looked);
        let counts = if served && serves {
            since.min(LOOK_WITHIN)
        } else {
            Duration::ZERO
        };
        let lost = since.saturating_sub(counts);
        for session in self.by_id.values_mut() {
            session.heard = (session.heard + lost).min(now);
        }
        self.grace_until = self
            .grace_until
            .map(|until| (until + lost).min(now + timeout));
        if !serves {
            return Vec::new();
        }
        let unheard = |s: &Session| now.saturating_sub(s.heard) > timeout;
        let found = self.by_id.iter().filter(|(_, s)| unheard(s));
        found.map(|(id, _)| *id).collect()
    }

    /// Whether a client that says hello knows of everything that this session is. It does not where
    /// an earlier one under its id has ended and it was answered nothing since, though it may have
    /// been let in before.
    pub(super) fn is_known(&self, session: SessionId, confirmed: Place) -> bool {
        let known = self.by_id.get(&session);
        known.is_some_and(|state| confirmed >= state.began)
    }

    /// A number for a connection.
    pub(super) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Whether anybody holds the object open, or may.
    pub(super) fn holds(&self, object: ObjectId) -> bool {
        self.grace_until.is_some() || self.held.contains_key(&object)
    }

    /// The session holds the object once more. False: it holds too many.
    pub(super) fn open(&mut self, session: SessionId, object: ObjectId) -> bool {
        let Some(state) = self.by_id.get_mut(&session) else {
            return false;
        };
        if state.opens.len() >= OPENS_MAX && !state.opens.contains_key(&object) {
            return false;
        }
        let count = state.opens.entry(object).or_insert(0);
        *count += 1;
        if *count == 1 {
            *self.held.entry(object).or_insert(0) += 1;
        }
        true
    }

    /// The session holds the object once less.
    pub(super) fn release(&mut self, session: SessionId, object: ObjectId) {
        let Some(state) = self.by_id.get_mut(&session) else {
            return;
        };
        let Some(count) = state.opens.get_mut(&object) else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            state.opens.remove(&object);
            self.drop_hold(object);
        }
    }

    /// The last request of a slot was answered.
    pub(super) fn answered(&mut self, session: SessionId, slot: u16, done: Done) {
        if let Some(slot) = self.slot(session, slot) {
            slot.done = Some(done);
        }
    }

    /// A slot takes up a request. What the one before it opened was read by the session.
    pub(super) fn take_slot(&mut self, session: SessionId, slot: u16, number: u64) {
        let Some(state) = self.by_id.get_mut(&session) else {
            return;
        };
        let taken = Slot {
            number,
            ..Slot::default()
        };
        if let Some(before) = state.slots.insert(slot, taken) {
            self.drop_slot_hold(&before);
        }
    }

    /// The request of a slot opened an object. False: the session holds too many.
    pub(super) fn open_by_slot(&mut self, session: SessionId, slot: u16, object: ObjectId) -> bool {
        let open = self.open(session, object);
        if open && let Some(slot) = self.slot(session, slot) {
            slot.opened = Some(object);
        }
        open
    }

    /// The session sends the request of a slot again, as it has not read the reply. So what it
    /// said that it holds cannot have had in it what the request opened: that is held now.
    pub(super) fn repeated(&mut self, session: SessionId, slot: u16) {
        let Some(slot) = self.slot(session, slot) else {
            return;
        };
        let held = std::mem::take(&mut slot.holds);
        if held && let Some(object) = slot.opened {
            self.open(session, object);
            self.drop_hold(object);
        }
    }

    fn slot(&mut self, session: SessionId, slot: u16) -> Option<&mut Slot> {
        self.by_id.get_mut(&session)?.slots.get_mut(&slot)
    }

    fn drop_slot_hold(&mut self, slot: &Slot) {
        if slot.holds
            && let Some(object) = slot.opened
        {
            self.drop_hold(object);
        }
    }

    fn drop_hold(&mut self, object: ObjectId) {
        if let Some(count) = self.held.get_mut(&object) {
            *count -= 1;
            if *count == 0 {
                self.held.remove(&object);
                self.to_release.insert(object);
            }
        }
    }

    /// What the session says that it holds, after a reconnect; replaces what was known, but for
    /// what its last requests opened, whose replies it may not have read.
    pub(super) fn present(&mut self, session: SessionId, opens: &[ObjectId]) {
        let Some(state) = self.by_id.get_mut(&session) else {
            return;
        };
        let before: Vec<_> = std::mem::take(&mut state.opens).into_keys().collect();
        for slot in state.slots.values_mut().filter(|slot| !slot.holds) {
            if let Some(object) = slot.opened {
                slot.holds = true;
                *self.held.entry(object).or_insert(0) += 1;
            }
        }
        for object in opens.iter().take(OPENS_MAX) {
            self.open(session, *object);
        }
        for object in before {
            self.drop_hold(object);
        }
    }

    /// The session is over.
    pub(super) fn remove(&mut self, session: SessionId) {
        if let Some(state) = self.by_id.remove(&session) {
            if let Some((_, outbox)) = state.connection {
                outbox.close();
            }
            for object in state.opens.into_keys() {
                self.drop_hold(object);
            }
            for slot in state.slots.values() {
                self.drop_slot_hold(slot);
            }
        }
    }

    /// Tells every connected client to go elsewhere, and closes.
    pub(super) fn send_elsewhere(&mut self, frame: &RawFrame) {
        for session in self.by_id.values_mut() {
            if let Some((_, outbox)) = session.connection.take() {
                outbox.send(frame.clone());
                // The client closes when it has read this.
            }
        }
        self.by_id.clear();
        self.held.clear();
        self.to_release.clear();
    }

    /// Closes every connection.
    pub(super) fn close_connections(&mut self) {
        for session in self.by_id.values_mut() {
            if let Some((_, outbox)) = session.connection.take() {
                outbox.close();
            }
        }
    }

    /// Whether somebody else than `peer` was let in with this session. Its id is no secret: answers
    /// name it to others, whose changes it made.
    pub(super) fn belongs_to_another(&self, session: SessionId, peer: Option<NodeId>) -> bool {
        let known = self.by_id.get(&session);
        known.is_some_and(|known| known.owner_known && known.peer != peer)
    }

    /// Closes a session's connection, if it has one. Its client's name.
    pub(super) fn cut_off(&mut self, session: SessionId) -> String {
        let Some(state) = self.by_id.get_mut(&session) else {
            return String::new();
        };
        if let Some((_, outbox)) = state.connection.take() {
            outbox.close();
        }
        state.client_name.clone()
    }

    /// The connection of a session ended. False: it has another one by now.
    pub(super) fn disconnected(
        &mut self,
        session: SessionId,
        connection: u64,
        now: Duration,
    ) -> bool {
        if let Some(state) = self.by_id.get_mut(&session)
            && state
                .connection
                .as_ref()
                .is_some_and(|(id, _)| *id == connection)
        {
            state.connection = None;
            state.heard = now;
            return true;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use protocol::units::Term;

    use super::*;

    #[test]
    fn an_object_is_released_only_when_the_last_session_lets_go() {
        let (a, b) = (SessionId([1; 16]), SessionId([2; 16]));
        let object = ObjectId(5);
        let mut sessions = Sessions::default();
        for id in [a, b] {
            sessions.by_id.insert(id, Session::default());
            assert!(sessions.open(id, object));
        }
        assert!(sessions.open(a, object));
        sessions.release(a, object);
        sessions.remove(b);
        assert!(sessions.holds(object) && sessions.to_release.is_empty());
        sessions.release(a, object);
        assert!(!sessions.holds(object) && sessions.to_release.contains(&object));
    }

    #[test]
    fn presenting_opens_again_does_not_let_them_go() {
        let a = SessionId([1; 16]);
        let (kept, gone) = (ObjectId(5), ObjectId(6));
        let mut sessions = Sessions::default();
        sessions.by_id.insert(a, Session::default());
        sessions.open(a, kept);
        sessions.open(a, gone);
        sessions.present(a, &[kept]);
        assert!(sessions.holds(kept) && !sessions.holds(gone));
        assert!(!sessions.to_release.contains(&kept));
    }

    /// A session that created a file in a slot, and reconnected before it read the reply.
    fn reconnected_after_create(file: ObjectId) -> (Sessions, SessionId) {
        let a = SessionId([1; 16]);
        let mut sessions = Sessions::default();
        sessions.by_id.insert(a, Session::default());
        sessions.take_slot(a, 3, 1);
        assert!(sessions.open_by_slot(a, 3, file));
        sessions.present(a, &[]);
        (sessions, a)
    }

    #[test]
    fn a_repeated_create_holds_its_file_although_the_hello_did_not_name_it() {
        let file = ObjectId(5);
        let (mut sessions, a) = reconnected_after_create(file);
        assert!(sessions.holds(file), "unlinked now, it must not go");
        sessions.repeated(a, 3);
        assert_eq!(sessions.by_id[&a].opens[&file], 1);
        sessions.take_slot(a, 3, 2);
        assert!(sessions.holds(file));
        sessions.release(a, file);
        assert!(!sessions.holds(file) && sessions.to_release.contains(&file));
    }

    #[test]
    fn a_create_whose_reply_was_read_holds_nothing_once_its_slot_goes_on() {
        let file = ObjectId(5);
        let (mut sessions, a) = reconnected_after_create(file);
        sessions.take_slot(a, 3, 2);
        assert!(!sessions.holds(file));
        let (mut sessions, a) = reconnected_after_create(file);
        sessions.present(a, &[]);
        sessions.remove(a);
        assert!(!sessions.holds(file), "two reconnects hold it once");
    }

    #[test]
    fn a_session_ends_by_the_time_in_which_it_could_be_heard_and_was_not() {
        let (a, b) = (SessionId([1; 16]), SessionId([2; 16]));
        let at = Duration::from_secs;
        let mut sessions = Sessions::default();
        sessions.by_id.insert(a, Session::default());
        sessions.by_id.insert(b, Session::default());
        let look = |sessions: &mut Sessions, now, serves| sessions.unheard(at(now), serves, at(5));
        for now in 0..=2 {
            assert_eq!(look(&mut sessions, now, true), []);
        }
        // This process, or its machine, stands still.
        assert_eq!(look(&mut sessions, 100, true), []);
        if let Some(a) = sessions.by_id.get_mut(&a) {
            a.heard = at(100);
        }
        // Others are asked whether it is still primary.
        for now in 101..=120 {
            assert_eq!(look(&mut sessions, now, false), []);
        }
        assert_eq!(look(&mut sessions, 121, true), []);
        assert_eq!(look(&mut sessions, 122, true), []);
        assert_eq!(look(&mut sessions, 123, true), [b]);
        sessions.remove(b);
        for now in 124..=126 {
            assert_eq!(look(&mut sessions, now, true), []);
        }
        assert_eq!(look(&mut sessions, 127, true), [a]);
    }

    #[test]
    fn bad_2_a_session_belongs_to_whoever_was_let_in_with_it() {
        let a = SessionId([1; 16]);
        let (one, other) = (Some(NodeId([7; 16])), Some(NodeId([8; 16])));
        let mut sessions = Sessions::default();
        assert!(!sessions.belongs_to_another(a, one), "nobody has it");
        sessions.by_id.insert(a, Session::default());
        assert!(!sessions.belongs_to_another(a, one), "of an older version");
        let session = Session {
            peer: one,
            owner_known: true,
            ..Session::default()
        };
        sessions.by_id.insert(a, session);
        assert!(!sessions.belongs_to_another(a, one));
        assert!(sessions.belongs_to_another(a, other) && sessions.belongs_to_another(a, None));
    }

    #[test]
    fn who_was_answered_nothing_since_a_session_began_does_not_know_it() {
        let a = SessionId([1; 16]);
        let place = |term, sequence| (Term(term), Sequence(sequence));
        let mut sessions = Sessions::default();
        assert!(!sessions.is_known(a, place(9, 9)));
        let began = place(3, 7);
        let session = Session {
            began,
            ..Session::default()
        };
        sessions.by_id.insert(a, session);
        assert!(
            !sessions.is_known(a, place(3, 6)),
            "its welcome may be lost"
        );
        assert!(!sessions.is_known(a, place(2, 100)));
        assert!(sessions.is_known(a, place(3, 7)) && sessions.is_known(a, place(4, 0)));
    }
}
