//! What a session says that it holds as it is let in, by a primary that knows it or another one.

use std::collections::BTreeSet;
use std::time::Duration;

use protocol::ids::SessionId;
use protocol::units::ObjectId;

use super::{Leases, Recall};

/// What a session says as it is let in.
#[derive(Debug, Clone, Copy, Default)]
pub struct Presents<'a> {
    /// It holds leases of these.
    pub leases: &'a [ObjectId],
    /// Of these exclusive ones.
    pub alone: &'a [ObjectId],
    /// It answered changes of these early, and sends them again: whether it still holds them or not.
    pub early: &'a [ObjectId],
}

impl Leases {
    /// What a session says as it is let in. `whole`: this primary has everything that was confirmed
    /// before. Returns what it does not hold, or shall not.
    ///
    /// What it sends again goes before what others ask of the same files: they wait until it gives
    /// these back, behind what it sends, unless somebody else was let in there before.
    pub fn present(
        &mut self,
        session: SessionId,
        presents: Presents<'_>,
        whole: bool,
        now: Duration,
    ) -> Option<Recall> {
        let awaited = self.awaited.remove(&session) && now < self.awaited_until;
        let of = self.sessions.get(&session)?;
        let set = |objects: &[ObjectId]| objects.iter().copied().collect::<BTreeSet<_>>();
        let presented = set(presents.leases);
        let (alone, early) = (set(presents.alone), set(presents.early));
        let before = of.objects.clone();
        // An answer that granted them was lost on the way.
        for object in before.difference(&presented) {
            if !early.contains(object) {
                self.drop_lease(session, *object);
            }
        }
        if awaited {
            self.put_in(session, &presented, &alone, whole, now);
        }
        // An answer that made it exclusive was lost on the way.
        for object in before.difference(&alone) {
            if !early.contains(object) {
                self.set_alone(session, *object, false);
            }
        }
        for object in &early {
            self.claim(session, *object, whole, now);
        }
        // What is put back is what it knows already; whatever comes after that waits.
        let holds = |object: &ObjectId| {
            let lease = self.lease(session, *object);
            lease.is_some_and(|lease| {
                let kind = match alone.contains(object) {
                    true => lease.exclusive && !lease.claimed,
                    false => !early.contains(object),
                };
                lease.given && !lease.before && kind && lease.recalled.is_none()
            })
        };
        let refused = presented.union(&early).filter(|object| !holds(object));
        self.recall(session, refused.copied().collect(), now)
    }

    /// What a primary before this one gave it. Until it is heard again that ends as it would have
    /// with that one.
    fn put_in(
        &mut self,
        session: SessionId,
        presented: &BTreeSet<ObjectId>,
        alone: &BTreeSet<ObjectId>,
        whole: bool,
        now: Duration,
    ) {
        if let Some(of) = self.sessions.get_mut(&session) {
            of.until = of.until.max(now + self.time);
        }
        for object in presented {
            // It has it, whatever waits for others who have: a change that waits is to wait for this
            // one as well.
            if self.lease(session, *object).is_none() {
                if !self.has_room_for(session) {
                    continue;
                }
                self.begin(session, *object);
            }
            self.drop_claims_of_others(session, *object);
            if let Some(lease) = self.lease_mut(session, *object) {
                (lease.given, lease.before) = (true, !whole);
            }
            let early = self.sessions.get(&session).is_some_and(|of| of.early);
            self.set_alone(session, *object, early && alone.contains(object));
        }
    }

    /// Who holds a lease knows better than who only sends something again.
    fn drop_claims_of_others(&mut self, session: SessionId, object: ObjectId) {
        let leases = self.objects.get(&object).into_iter().flatten();
        let claims = leases.filter(|(holder, lease)| *holder != session && lease.claimed);
        let claims: Vec<_> = claims.map(|(holder, _)| *holder).collect();
        for holder in claims {
            self.drop_lease(holder, object);
        }
    }

    /// Others are held off an object of which the session sends changes again.
    fn claim(&mut self, session: SessionId, object: ObjectId, whole: bool, now: Duration) {
        if self.lease(session, object).is_some_and(|l| l.exclusive) {
            return;
        }
        let of = self.sessions.get(&session);
        let Some(of) = of.filter(|of| of.early && now >= of.mistrusted_until) else {
            return;
        };
        let leases = self.objects.get(&object).into_iter().flatten();
        let others = leases.filter(|(holder, _)| *holder != session);
        if others.clone().any(|(_, lease)| lease.given) {
            return; // they were let in before
        }
        let others: Vec<_> = others.map(|(holder, _)| *holder).collect();
        let holds = of.objects.contains(&object);
        if !holds && !self.has_room_for(session) {
            return;
        }
        for holder in others {
            self.drop_lease(holder, object);
        }
        if !holds {
            self.begin(session, object);
        }
        self.set_alone(session, object, true);
        if let Some(lease) = self.lease_mut(session, object) {
            (lease.given, lease.claimed, lease.before) = (true, true, !whole);
        }
    }
}
