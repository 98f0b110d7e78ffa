//! The activity log: extents that may be overwritten in place.
//!
//! A large write that overwrites bytes a crash could lead back to may touch the page cache before
//! its record is stable only where the extent is listed as active, durably. After a crash, blocks
//! of active extents that do not match their checksums are taken as they are: what a write that
//! nobody confirmed as stable left there.

use std::collections::BTreeMap;

use protocol::units::ObjectId;

use crate::journal::frame::Lsn;

/// Most active extents: what a recovery reads at most on their account is this many times 4 MiB.
pub const ACTIVE_EXTENTS_MAX: usize = 64;

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// The frame that lists it. Usable once that is stable.
    since: Lsn,
    /// The last write.
    used: Lsn,
}

#[derive(Debug, Default)]
pub(crate) struct ActivityLog {
    entries: BTreeMap<(ObjectId, u64), Entry>,
}

/// What an attempt to use an extent led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activity {
    /// It may be overwritten in place.
    Active,
    /// It is listed, not durably yet.
    Soon,
    /// It is not listed.
    Absent,
}

impl ActivityLog {
    pub(crate) fn state(&self, object: ObjectId, extent: u64, stable: Lsn) -> Activity {
        match self.entries.get(&(object, extent)) {
            Some(entry) if entry.since <= stable => Activity::Active,
            Some(_) => Activity::Soon,
            None => Activity::Absent,
        }
    }

    pub(crate) fn touch(&mut self, object: ObjectId, extent: u64, lsn: Lsn) {
        if let Some(entry) = self.entries.get_mut(&(object, extent)) {
            entry.used = lsn;
        }
    }

    pub(crate) fn apply(&mut self, add: &[(ObjectId, u64)], remove: &[(ObjectId, u64)], lsn: Lsn) {
        for key in remove {
            self.entries.remove(key);
        }
        for key in add {
            self.entries.insert(
                *key,
                Entry {
                    since: lsn,
                    used: lsn,
                },
            );
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn list(&self) -> Vec<(ObjectId, u64)> {
        self.entries.keys().copied().collect()
    }

    /// The least recently used extent that is settled: none of its writes is on its way to the disk.
    /// `settled` is asked with the object and the extent's last write.
    pub(crate) fn oldest_settled(
        &self,
        settled: impl Fn(ObjectId, Lsn) -> bool,
    ) -> Option<(ObjectId, u64)> {
        self.entries
            .iter()
            .filter(|((object, _), entry)| settled(*object, entry.used))
            .min_by_key(|(_, entry)| entry.used)
            .map(|(key, _)| *key)
    }

    /// The object of the least recently used extent.
    pub(crate) fn oldest_object(&self) -> Option<ObjectId> {
        let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used)?;
        Some(oldest.0.0)
    }

    /// Settled extents that nobody wrote to since `lsn`.
    pub(crate) fn idle_since(
        &self,
        lsn: Lsn,
        settled: impl Fn(ObjectId, Lsn) -> bool,
    ) -> Vec<(ObjectId, u64)> {
        self.entries
            .iter()
            .filter(|((object, _), entry)| entry.used <= lsn && settled(*object, entry.used))
            .map(|(key, _)| *key)
            .collect()
    }
}
