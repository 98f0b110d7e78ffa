//! The machine when the volume's replicas change: bricks come, leave, and others take their places.
//!
//! Masks, maps and the pool's agreement name replicas by their place. So that no place ever means
//! two bricks at once:
//!
//! * Each replica keeps durably which brick it means by each place, and what it noted for a brick
//!   goes when another one is there ([`Machine::replace_places`]).
//! * What two replicas tell each other in masks holds only while both mean the same: hellos,
//!   welcomes and memberships carry the version of the places, and another one ends the link until
//!   the one behind has learned.
//! * A brick that leaves is put out of the set first. Only when the primary has decided that
//!   durably, and the pool agreed where it decides, it is removed.

use std::time::Duration;

use protocol::volume::REPLICAS_MAX;

use super::bugs::Bug;
use super::{DropReason, Machine, Output, Phase};
use crate::state::{Mask, Places};

impl Machine {
    /// Replicas that belong to the volume, those on their way out among them.
    pub(super) fn belonging(&self) -> Mask {
        let members = self.state.places.members();
        if members == Mask::default() {
            return Mask::first(self.config.count); // as the volume was made
        }
        members
    }

    /// Replicas that belong to the volume and are to stay.
    pub(super) fn staying(&self) -> Mask {
        if self.errs(Bug::TakesOnTheLeaving) {
            return self.belonging();
        }
        Mask(self.belonging().0 & !self.state.places.leaving.0)
    }

    /// The volume's replicas changed, or may have while this one was away. Old news are ignored.
    pub fn replace_places(&mut self, now: Duration, places: Places) {
        let before = self.state.places;
        let first = before.members() == Mask::default();
        if !first && places.version <= before.version {
            return;
        }
        self.state.places = places;
        self.forget_told();
        let orders = matches!(
            self.phase,
            Phase::Serving | Phase::HandingOver { .. } | Phase::Activating
        );
        for replica in Mask::first(REPLICAS_MAX).without(self.config.me).iter() {
            let changed = !first && before.bricks[replica] != places.bricks[replica];
            // Others follow the primary's word, which itself may be on its way out.
            if changed || (orders && places.leaving.has(replica)) {
                self.put_out(now, replica);
            }
            if changed {
                // Marks for the new brick begin here; what it lacks of before, no map tells.
                self.state.since[replica] = self.last;
                self.outputs.push_back(Output::ClearDirty { replica });
            }
        }
        self.decide();
        self.ask_for_members(now);
    }

    /// The replica belongs to no set any more.
    fn put_out(&mut self, now: Duration, replica: usize) {
        if self.links[replica].is_some() {
            let reason = DropReason::Leaving;
            self.outputs
                .push_back(Output::Disconnect { replica, reason });
            self.lost(now, replica);
        }
        for mask in [
            &mut self.state.in_sync,
            &mut self.state.resyncing,
            &mut self.state.targets,
            &mut self.state.full,
            &mut self.entering,
            &mut self.joining,
            &mut self.giving_up,
        ] {
            *mask = mask.without(replica);
        }
        self.missing[replica] = None;
        self.forget_loss(replica);
    }

    /// Whether every brick on its way out may be removed: this primary has put them out, durably,
    /// and the pool, where it decides, can make none of them primary.
    #[must_use]
    pub fn has_let_go(&self) -> bool {
        let leaving = self.state.places.leaving;
        let inside = self.set().0 & leaving.0 != 0;
        self.phase == Phase::Serving
            && self.decisions_open == 0
            && self.durable.places == self.state.places
            && !inside
            && !leaving.has(self.config.me)
    }

    /// To whom this primary, itself on its way out, hands its role.
    #[must_use]
    pub fn heir(&self) -> Option<usize> {
        let others = self.staying().without(self.config.me);
        others
            .iter()
            .find(|r| self.standing(*r) == Some(super::Standing::InSync))
    }
}
