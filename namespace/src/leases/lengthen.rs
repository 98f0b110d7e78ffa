//! How long an exclusive lease lasts that is recalled: what its holder answered early may be on its
//! way, and is behind nothing that it gives back.

use std::time::Duration;

use protocol::ids::SessionId;
use protocol::units::ObjectId;

use super::{HELD_OFF_MAX, Leases, Overdue};

/// Who did not give back in time what he had alone gets nothing alone for so long.
const MISTRUSTED_FOR: Duration = Duration::from_secs(60);

impl Leases {
    /// Something of the session came, if only a part of a question, or cannot be taken just now: what
    /// it has alone and is to give back lasts a lease time from now on, and [`HELD_OFF_MAX`] in all.
    pub fn heard(&mut self, session: SessionId, now: Duration) {
        for object in self.lengthened_of(session) {
            let time = self.time;
            self.move_end(session, object, |recalled| {
                let ends = (now + time).min(recalled.since + HELD_OFF_MAX);
                recalled.ends = recalled.ends.max(ends);
            });
        }
    }

    /// What a session has to give back behind what it answered early.
    fn lengthened_of(&self, session: SessionId) -> Vec<ObjectId> {
        let all = (session, ObjectId(0))..=(session, ObjectId(u64::MAX));
        let lengthened = self.lengthened.range(all);
        lengthened.map(|(_, object)| *object).collect()
    }

    /// Sessions that are heard with what they have to give back.
    #[must_use]
    pub fn owing(&self) -> Vec<SessionId> {
        let mut sessions: Vec<_> = self.lengthened.iter().map(|(of, _)| *of).collect();
        sessions.dedup();
        sessions
    }

    /// Nobody could be heard for so long, as the primary stood still.
    pub fn stood_still(&mut self, gap: Duration, now: Duration) {
        for (session, object) in self.lengthened.clone() {
            self.move_end(session, object, |recalled| recalled.since += gap);
        }
        for session in self.owing() {
            self.heard(session, now);
        }
    }

    /// Clients are gathered, or no more. Meanwhile nobody's word is read, so what was recalled because
    /// this primary may have lacked something does not end; then it counts as recalled anew.
    pub fn gathers(&mut self, gathers: bool, now: Duration) {
        if std::mem::replace(&mut self.gathers, gathers) == gathers || gathers {
            return;
        }
        let ends = now + self.time;
        for (_, session, object) in self.recalled.clone() {
            if self.is_held_up(session, object) {
                self.move_end(session, object, |recalled| {
                    recalled.since = now;
                    recalled.ends = recalled.ends.max(ends);
                    recalled.until = recalled.until.max(ends);
                });
            }
        }
    }

    /// Whether it was presented to a primary that may have lacked something.
    pub(super) fn is_held_up(&self, session: SessionId, object: ObjectId) -> bool {
        self.lease(session, object)
            .is_some_and(|lease| lease.before)
    }

    /// The session's connection is gone: what it answered early comes again, within a lease time.
    pub fn disconnected(&mut self, session: SessionId, now: Duration) {
        self.heard(session, now);
        if let Some(of) = self.sessions.get_mut(&session) {
            of.connected = false;
            if of.alone > 0 {
                of.until = of.until.max(now + self.time);
            }
        }
    }

    /// Sessions that did not give back in time, since the last call. What else they have alone is to be
    /// recalled, or others would wait for each of it.
    pub fn take_overdue(&mut self) -> Vec<Overdue> {
        std::mem::take(&mut self.overdue)
    }

    /// The session has answered a recall, behind everything that it had answered early. What it does
    /// not give back its kernel may know until the lease has run out.
    pub(super) fn lengthen_no_more(&mut self, session: SessionId, number: u64) {
        for object in self.lengthened_of(session) {
            let recalled = self.lease(session, object).and_then(|l| l.recalled);
            if recalled.is_some_and(|recalled| recalled.number == number) {
                self.lengthened.remove(&(session, object));
                self.move_end(session, object, |recalled| recalled.ends = recalled.until);
            }
        }
    }

    /// A lease that is recalled ends by its time, and not as it was given back.
    pub(super) fn mistrust(&mut self, session: SessionId, object: ObjectId, now: Duration) {
        if !self.lengthened.contains(&(session, object)) {
            return;
        }
        let recalled = self.lease(session, object).and_then(|l| l.recalled);
        let Some(of) = self.sessions.get_mut(&session).filter(|of| of.connected) else {
            return;
        };
        of.mistrusted_until = now + MISTRUSTED_FOR;
        let waited = recalled.map_or(Duration::ZERO, |r| now.saturating_sub(r.since));
        let closes = waited >= HELD_OFF_MAX;
        match self.overdue.iter_mut().find(|of| of.session == session) {
            Some(before) => before.closes |= closes,
            None => self.overdue.push(Overdue { session, closes }),
        }
    }

    fn move_end(
        &mut self,
        session: SessionId,
        object: ObjectId,
        change: impl FnOnce(&mut super::Recalled),
    ) {
        let lease = self.lease_mut(session, object);
        let Some(recalled) = lease.and_then(|lease| lease.recalled.as_mut()) else {
            return;
        };
        let before = recalled.ends;
        change(recalled);
        let ends = recalled.ends;
        self.recalled.remove(&(before, session, object));
        self.recalled.insert((ends, session, object));
    }
}
