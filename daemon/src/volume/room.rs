//! Room at the replicas: nothing is ordered that one of them cannot hold (BAD-3).
//!
//! Each tells with its signs of life how much its brick can still take, as of what it has applied.
//! From that the primary takes off what it has ordered since, whether that is on the way or waits
//! there: so what a replica said is never given out twice, however late it says something new.

use protocol::mistakes::{Mistake, made};
use protocol::units::{BLOCK_BYTES, Sequence};
use storage::Medium;

use super::driver::Driver;

/// Room that is kept for what is on the way to a replica besides records: batches of a resync.
const SPACE_MARGIN_BYTES: u64 = 4 << 20;

/// What a replica said of its room.
#[derive(Debug, Clone, Copy)]
pub(super) struct Said {
    pub(super) free_bytes: u64,
    pub(super) total_bytes: u64,
    /// It knew of what was ordered up to here, in bytes and records.
    knew: (u64, Sequence),
}

impl<M: Medium> Driver<M> {
    /// A replica says how much its brick can take.
    pub(super) fn note_room(&mut self, replica: usize, free_bytes: u64, total_bytes: u64) {
        let knew = self.machine.ordered_for(replica);
        if let Some(link) = &mut self.links[replica] {
            link.room = Some(Said {
                free_bytes,
                total_bytes,
                knew,
            });
        }
    }

    /// Whether every replica that gets records can take so many bytes more.
    pub(super) fn has_room(&mut self, bytes: u64) -> bool {
        let here = self.brick.admit(bytes).is_ok();
        let (ordered, last) = self.machine.ordered_for(self.me);
        let feeds = self.links.iter().flatten().filter(|link| link.feed_live);
        let there = feeds.filter_map(|link| link.room).all(|said| {
            let (knew, upto) = said.knew;
            // Each record may touch a block of its own.
            let records = last.0.saturating_sub(upto.0) * BLOCK_BYTES;
            let held = match made(Mistake::PromisesRoomTwice) {
                true => 0,
                false => SPACE_MARGIN_BYTES + ordered.saturating_sub(knew) + records,
            };
            said.free_bytes >= bytes + held
        });
        here && there
    }
}
