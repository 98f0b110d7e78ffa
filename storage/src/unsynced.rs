//! What was written into object files and may still be lost.

use std::collections::BTreeMap;

use protocol::units::{ObjectId, Sequence};

use crate::journal::frame::Lsn;

#[derive(Debug, Clone, Copy)]
struct Entry {
    bytes: u64,
    /// The first and the last frame whose direct bytes may be lost.
    first: Lsn,
    last: Lsn,
    /// Where the last write ended.
    end: u64,
    /// A sync is under way: its token, and what it covers.
    syncing: Option<Sync>,
}

#[derive(Debug, Clone, Copy)]
struct Sync {
    token: u64,
    upto: Lsn,
    bytes: u64,
}

/// Direct writes that no sync covers yet, by object.
#[derive(Debug, Default)]
pub(crate) struct Unsynced {
    objects: BTreeMap<ObjectId, Entry>,
    bytes: u64,
    /// Ends of recent streams, also of synced objects.
    ends: BTreeMap<ObjectId, u64>,
}

/// Most streams remembered.
const ENDS_MAX: usize = 256;

impl Unsynced {
    pub(crate) fn wrote(&mut self, object: ObjectId, offset: u64, bytes: u64, lsn: Lsn) {
        let entry = self.objects.entry(object).or_insert(Entry {
            bytes: 0,
            first: lsn,
            last: lsn,
            end: 0,
            syncing: None,
        });
        entry.bytes += bytes;
        entry.last = lsn;
        entry.end = offset + bytes;
        self.bytes += bytes;
        self.note_end(object, offset + bytes);
    }

    pub(crate) fn note_end(&mut self, object: ObjectId, end: u64) {
        if self.ends.len() >= ENDS_MAX && !self.ends.contains_key(&object) {
            self.ends.clear();
        }
        self.ends.insert(object, end);
    }

    /// Whether the last large write of the object ended here.
    pub(crate) fn continues(&self, object: ObjectId, offset: u64) -> bool {
        self.ends.get(&object) == Some(&offset)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn is_settled(&self, object: ObjectId) -> bool {
        !self.objects.contains_key(&object)
    }

    /// Whether everything written to the object up to this frame is on stable storage.
    pub(crate) fn is_settled_upto(&self, object: ObjectId, lsn: Lsn) -> bool {
        self.objects
            .get(&object)
            .is_none_or(|entry| lsn < entry.first)
    }

    pub(crate) fn objects(&self) -> Vec<ObjectId> {
        self.objects.keys().copied().collect()
    }

    /// The sync that is under way and covers all of the object's writes.
    pub(crate) fn covering_sync(&self, object: ObjectId) -> Option<u64> {
        let entry = self.objects.get(&object)?;
        entry
            .syncing
            .filter(|sync| sync.upto == entry.last)
            .map(|sync| sync.token)
    }

    /// Objects with writes that no sync under way covers.
    pub(crate) fn uncovered(&self) -> Vec<ObjectId> {
        self.objects
            .iter()
            .filter(|(_, entry)| entry.syncing.is_none_or(|sync| sync.upto < entry.last))
            .map(|(object, _)| *object)
            .collect()
    }

    pub(crate) fn begin(&mut self, object: ObjectId, token: u64) {
        if let Some(entry) = self.objects.get_mut(&object) {
            entry.syncing = Some(Sync {
                token,
                upto: entry.last,
                bytes: entry.bytes,
            });
        }
    }

    /// A sync ended well; returns the last frame that it covered. A later sync of the same object
    /// may have replaced it; then it says nothing.
    pub(crate) fn ended(&mut self, object: ObjectId, token: u64) -> Option<Lsn> {
        let entry = self.objects.get_mut(&object)?;
        let sync = entry.syncing.filter(|sync| sync.token == token)?;
        self.settle(object, sync.upto, sync.bytes);
        Some(sync.upto)
    }

    /// Everything up to `upto` is on stable storage; `bytes` of it were counted.
    fn settle(&mut self, object: ObjectId, upto: Lsn, bytes: u64) {
        let Some(entry) = self.objects.get_mut(&object) else {
            return;
        };
        let bytes = bytes.min(entry.bytes);
        self.bytes -= bytes;
        entry.bytes -= bytes;
        entry.first = upto.next();
        entry.syncing = None;
        if entry.last <= upto {
            self.bytes -= entry.bytes;
            self.objects.remove(&object);
        }
    }

    /// What a checkpoint covers.
    pub(crate) fn snapshot(&self) -> Vec<(ObjectId, Lsn, u64)> {
        self.objects
            .iter()
            .map(|(object, entry)| (*object, entry.last, entry.bytes))
            .collect()
    }

    /// The checkpoint with this snapshot ended well.
    pub(crate) fn checkpointed(&mut self, snapshot: &[(ObjectId, Lsn, u64)]) {
        for &(object, upto, bytes) in snapshot {
            if let Some(entry) = self.objects.get(&object) {
                if entry.first > upto {
                    continue;
                }
                // Syncs that ended meanwhile took their share of the bytes already: what is left
                // was written after the snapshot at most as far as it is not covered by it.
                let syncing = entry.syncing;
                self.settle(object, upto, bytes);
                if let (Some(entry), Some(sync)) = (self.objects.get_mut(&object), syncing)
                    && sync.upto > upto
                {
                    entry.syncing = Some(sync);
                }
            }
        }
    }

    pub(crate) fn forget(&mut self, object: ObjectId) {
        if let Some(entry) = self.objects.remove(&object) {
            self.bytes -= entry.bytes;
        }
        self.ends.remove(&object);
    }

    /// The first frame whose direct bytes may be lost.
    pub(crate) fn first(&self) -> Option<Lsn> {
        self.objects.values().map(|entry| entry.first).min()
    }
}

/// Which record each frame belongs to, so that "everything up to this record is stable" can be
/// said. Bounded: neighbours are merged when it grows.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    marks: std::collections::VecDeque<(Lsn, Sequence)>,
}

/// Most marks kept.
const MARKS_MAX: usize = 4096;

impl Marks {
    pub(crate) fn add(&mut self, lsn: Lsn, sequence: Sequence) {
        self.marks.push_back((lsn, sequence));
        if self.marks.len() > MARKS_MAX {
            // Every second one goes: what is asked for is answered a little too low.
            let mut keep = false;
            self.marks.retain(|_| {
                keep = !keep;
                !keep
            });
        }
    }

    /// The last record whose frame is at or before `lsn`, if known; forgets what is older.
    pub(crate) fn reached(&mut self, lsn: Lsn) -> Option<Sequence> {
        let mut found = None;
        while let Some(&(at, sequence)) = self.marks.front() {
            if at > lsn {
                break;
            }
            found = Some(sequence);
            self.marks.pop_front();
        }
        found
    }

    /// As [`Marks::reached`], without forgetting.
    pub(crate) fn peek(&self, lsn: Lsn) -> Option<Sequence> {
        let at = self.marks.partition_point(|(at, _)| *at <= lsn);
        at.checked_sub(1).map(|index| self.marks[index].1)
    }

    pub(crate) fn clear(&mut self) {
        self.marks.clear();
    }
}
