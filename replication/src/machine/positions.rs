//! How far each member is on stable storage: what a map for it need not hold.
//!
//! A replica that dies is owed what it may not have on stable storage. Its primary knows that from
//! its acknowledgements. A member that takes over from a primary knows it by the primary's word
//! ([`Machine::stable_at`]), which goes out as positions move; only now and then it is noted
//! durably, so after a restart more is marked than is needed.

use protocol::units::{Sequence, Term};
use protocol::volume::REPLICAS_MAX;

use super::{Machine, Standing};

/// Up to where each replica has everything on stable storage; zero where nothing is known.
pub type Stable = [Sequence; REPLICAS_MAX];

impl Machine {
    /// The replicas for which records are not marked dirty as they are appended, and up to where
    /// each has them on stable storage, as far as this replica knows: what comes after must stay in
    /// the journal or be marked.
    pub fn owed(&self) -> impl Iterator<Item = (usize, Sequence)> {
        let feeds = self.leads();
        let others = self.belonging().without(self.config.me);
        let others = (0..REPLICAS_MAX).filter(move |replica| others.has(*replica));
        others.filter_map(move |replica| {
            let position = if feeds {
                let link = self.links[replica].as_ref().filter(|l| l.gets_records());
                link.map(|link| link.stable)
            } else {
                let member = self.state.in_sync.has(replica);
                member.then(|| self.state.since[replica])
            };
            position.map(|position| (replica, position))
        })
    }

    /// Whether marks for what the replica has on stable storage by now may go. A map that a resync
    /// goes by is cleared by its end: while it runs, the position of its target is the place where
    /// records begin to reach it, and tells nothing of what came before. Where replicas are fenced,
    /// such a target may still be in the set.
    #[must_use]
    pub fn may_forget_marks(&self, replica: usize) -> bool {
        let resyncs = self.state.resyncing.0 | self.durable.resyncing.0;
        self.durable.in_sync.has(replica) && !super::Mask(resyncs).has(replica)
    }

    /// As primary: what members should know of one another, and which replicas the places mean.
    /// `None` where this replica does not serve.
    #[must_use]
    pub fn stable_at(&self) -> Option<(Term, u64, Stable)> {
        if !self.serves() {
            return None;
        }
        let mut stable = Stable::default();
        for replica in self.state.in_sync.iter() {
            let link = self.links[replica].as_ref();
            if replica == self.config.me || link.is_some_and(|l| l.standing == Standing::InSync) {
                stable[replica] = self.position(replica).1;
            }
        }
        Some((self.state.term, self.state.places.version, stable))
    }

    /// The primary's word about the members. It is kept until this replica takes the role; old and
    /// foreign ones are ignored.
    pub fn told_stable(&mut self, from: usize, term: Term, layout: u64, stable: &Stable) {
        let mine = self.standing(from) == Some(Standing::MyPrimary) && term == self.state.term;
        if mine && layout == self.state.places.version {
            for (known, told) in self.told.iter_mut().zip(stable) {
                *known = (*known).max(*told);
            }
        }
    }

    /// Another primary's word begins, or the places mean other bricks.
    pub(super) fn forget_told(&mut self) {
        self.told = Stable::default();
    }

    /// This replica takes the role: what the members have on stable storage is not marked for them.
    pub(super) fn believe_positions(&mut self) {
        for replica in self.state.in_sync.without(self.config.me).iter() {
            // Records that this one dropped before it applied them are of no history.
            let told = self.told[replica].min(self.last);
            self.state.since[replica] = self.state.since[replica].max(told);
        }
        self.forget_told();
    }

    /// Notes how far the members are on stable storage, so that a restart knows. Call now and
    /// then; costs a durable write when something changed.
    pub fn note_positions(&mut self) {
        if !self.serves() || self.decisions_open > 0 {
            return;
        }
        let mut changed = false;
        for replica in self.state.in_sync.iter().filter(|r| *r != self.config.me) {
            let stable = self.position(replica).1;
            changed |= stable > self.state.since[replica];
            self.state.since[replica] = self.state.since[replica].max(stable);
        }
        if changed {
            self.decide();
        }
    }
}
