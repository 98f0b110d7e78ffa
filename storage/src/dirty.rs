//! Dirty maps: what each missing replica lacks.
//!
//! In memory, with a journaled frame for each change that does not follow from a record, and rows
//! in the metadata store at each checkpoint. One entry a key, ranges of 4 KiB blocks an object.
//! Past [`DIRTY_BYTES_MAX`] the map of a replica becomes "everything", and the resync compares
//! checksums instead.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, Range};

use bytes::Bytes;
use protocol::codec::{DecodeError, Reader, Writer};
use protocol::units::{BLOCK_BYTES, BLOCKS_PER_EXTENT, ObjectId};
use protocol::volume::REPLICAS_MAX;

use crate::ranges::RangeSet;

/// Most memory of one replica's map, by estimate; past it the map says "everything".
pub const DIRTY_BYTES_MAX: usize = 64 << 20;
/// Estimated cost of an entry besides its key.
const ENTRY_BYTES: usize = 64;
/// Longest range that is kept as one; past it the map says "everything". 256 GiB.
const RANGE_EXTENTS_MAX: u64 = 1 << 16;
/// Longest cursor of a comparison of everything.
pub const PROGRESS_BYTES_MAX: usize = 1024;

/// One thing that a replica lacks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum DirtyItem {
    /// Blocks of an object, as a half-open range of block indices: send what they hold now.
    Blocks {
        /// The object.
        object: ObjectId,
        /// First block.
        start: u64,
        /// Block after the last.
        end: u64,
    },
    /// The object was dropped.
    Dropped {
        /// The object.
        object: ObjectId,
    },
    /// The key was put or deleted: send what it is now.
    Key {
        /// The key.
        key: Bytes,
    },
}

impl DirtyItem {
    pub(crate) fn encode(&self, w: &mut Writer) {
        match self {
            Self::Blocks { object, start, end } => w.u8(1).u64(object.0).u64(*start).u64(*end),
            Self::Dropped { object } => w.u8(2).u64(object.0),
            Self::Key { key } => w.u8(3).bytes(key),
        };
    }

    pub(crate) fn decode(r: &mut Reader) -> Result<Self, DecodeError> {
        match r.u8("dirty kind")? {
            1 => Ok(Self::Blocks {
                object: ObjectId(r.u64("object")?),
                start: r.u64("start")?,
                end: r.u64("end")?,
            }),
            2 => Ok(Self::Dropped {
                object: ObjectId(r.u64("object")?),
            }),
            3 => Ok(Self::Key {
                key: r.bytes("key")?,
            }),
            other => Err(DecodeError::Invalid {
                what: "dirty kind",
                value: u64::from(other),
            }),
        }
    }
}

/// How much a replica lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DirtySummary {
    /// Blocks of 4 KiB.
    pub blocks: u64,
    /// Keys.
    pub keys: u64,
    /// Dropped objects.
    pub dropped: u64,
    /// Bytes of the blocks.
    pub bytes: u64,
    /// Everything must be compared; the counts above say nothing then.
    pub all: bool,
}

impl DirtySummary {
    /// Whether the replica lacks nothing.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.blocks == 0 && self.keys == 0 && self.dropped == 0 && !self.all
    }
}

/// A row of the store: key, and value or absence.
pub(crate) type Row = (Vec<u8>, Option<Vec<u8>>);

#[derive(Debug, Default, Clone)]
struct ReplicaMap {
    blocks: BTreeMap<ObjectId, RangeSet>,
    dropped: BTreeSet<ObjectId>,
    keys: BTreeSet<Bytes>,
    key_bytes: usize,
    /// Ranges in `blocks`.
    ranges: usize,
    all: bool,
    progress: Bytes,
    // What the store's rows do not say yet.
    changed_extents: BTreeMap<ObjectId, RangeSet>,
    changed_dropped: BTreeSet<ObjectId>,
    changed_keys: BTreeSet<Bytes>,
    changed_head: bool,
}

/// The map after those of the replicas: blocks of this brick that a recovery took as it found them.
pub(crate) const SUSPECT: u8 = REPLICAS_MAX as u8;

/// The maps of all replicas, and that of suspect blocks.
#[derive(Debug, Default)]
pub(crate) struct DirtyMaps {
    maps: [ReplicaMap; REPLICAS_MAX + 1],
}

fn replicas(mask: u8) -> impl Iterator<Item = usize> {
    (0..REPLICAS_MAX).filter(move |index| mask >> index & 1 == 1)
}

const ROW_HEAD: u8 = 0;
const ROW_BLOCKS: u8 = 1;
const ROW_DROPPED: u8 = 2;
const ROW_KEY: u8 = 3;

impl DirtyMaps {
    pub(crate) fn mark_blocks(&mut self, mask: u8, object: ObjectId, blocks: Range<u64>) {
        for index in replicas(mask) {
            self.maps[index].set_blocks(object, blocks.clone(), true);
        }
    }

    pub(crate) fn mark_key(&mut self, mask: u8, key: &Bytes) {
        for index in replicas(mask) {
            self.maps[index].set_key(key, true);
        }
    }

    pub(crate) fn mark_dropped(&mut self, mask: u8, object: ObjectId) {
        for index in replicas(mask) {
            let map = &mut self.maps[index];
            // Its blocks need not travel any more.
            map.set_blocks(object, 0..u64::MAX, false);
            map.set_dropped(object, true);
        }
    }

    pub(crate) fn set(&mut self, replica: u8, item: &DirtyItem, dirty: bool) {
        let Some(map) = self.maps.get_mut(usize::from(replica)) else {
            return;
        };
        match item {
            DirtyItem::Blocks { object, start, end } => {
                map.set_blocks(*object, *start..*end, dirty);
            }
            DirtyItem::Dropped { object } => map.set_dropped(*object, dirty),
            DirtyItem::Key { key } => map.set_key(key, dirty),
        }
    }

    pub(crate) fn set_all(&mut self, replica: u8, all: bool) {
        if let Some(map) = self.maps.get_mut(usize::from(replica)) {
            map.set_all(all);
        }
    }

    pub(crate) fn set_progress(&mut self, replica: u8, cursor: Bytes) {
        if let Some(map) = self.maps.get_mut(usize::from(replica)) {
            map.progress = cursor;
            map.changed_head = true;
        }
    }

    pub(crate) fn progress(&self, replica: u8) -> Bytes {
        self.maps
            .get(usize::from(replica))
            .map(|map| map.progress.clone())
            .unwrap_or_default()
    }

    pub(crate) fn summary(&self, replica: u8) -> DirtySummary {
        let Some(map) = self.maps.get(usize::from(replica)) else {
            return DirtySummary::default();
        };
        let blocks = map.blocks.values().map(RangeSet::total).sum::<u64>();
        DirtySummary {
            blocks,
            keys: map.keys.len() as u64,
            dropped: map.dropped.len() as u64,
            bytes: blocks.saturating_mul(BLOCK_BYTES),
            all: map.all,
        }
    }

    /// The items after `after`, in the order of [`DirtyItem`], at most `max`. A range of blocks
    /// that reaches past `after` is given from there on.
    pub(crate) fn next(
        &self,
        replica: u8,
        after: Option<&DirtyItem>,
        max: usize,
    ) -> Vec<DirtyItem> {
        let Some(map) = self.maps.get(usize::from(replica)) else {
            return Vec::new();
        };
        let mut out = Vec::new();
        let (object, block) = match after {
            None => (ObjectId(0), 0),
            Some(DirtyItem::Blocks { object, end, .. }) => (*object, *end),
            Some(_) => (ObjectId(u64::MAX), u64::MAX),
        };
        for (&id, ranges) in map.blocks.range(object..) {
            let from = if id == object { block } else { 0 };
            for range in ranges.iter_within(from..u64::MAX) {
                if out.len() >= max {
                    return out;
                }
                out.push(DirtyItem::Blocks {
                    object: id,
                    start: range.start,
                    end: range.end,
                });
            }
        }
        let dropped_after = match after {
            Some(DirtyItem::Dropped { object }) => Bound::Excluded(*object),
            Some(DirtyItem::Key { .. }) => Bound::Excluded(ObjectId(u64::MAX)),
            _ => Bound::Unbounded,
        };
        for &object in map.dropped.range((dropped_after, Bound::Unbounded)) {
            if out.len() >= max {
                return out;
            }
            out.push(DirtyItem::Dropped { object });
        }
        let keys_after = match after {
            Some(DirtyItem::Key { key }) => Bound::Excluded(key.clone()),
            _ => Bound::Unbounded,
        };
        let room = max.saturating_sub(out.len());
        let keys = map.keys.range((keys_after, Bound::Unbounded)).take(room);
        out.extend(keys.map(|key| DirtyItem::Key { key: key.clone() }));
        out
    }

    /// The rows that changed since the last call.
    pub(crate) fn take_changed_rows(&mut self) -> Vec<Row> {
        let mut rows = Vec::new();
        for (map, replica) in self.maps.iter_mut().zip(0_u8..) {
            map.take_changed_rows(replica, &mut rows);
        }
        rows
    }

    /// Takes one stored row in. `None` where it does not decode.
    pub(crate) fn load_row(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let (&[kind, replica], rest) = key.split_first_chunk::<2>()?;
        let map = self.maps.get_mut(usize::from(replica))?;
        match kind {
            ROW_HEAD => {
                map.all = *value.first()? != 0;
                map.progress = Bytes::copy_from_slice(&value[1..]);
            }
            ROW_BLOCKS => {
                let (object, extent) = rest.split_first_chunk::<8>()?;
                let object = ObjectId(u64::from_be_bytes(*object));
                let base = u64::from_be_bytes(extent.try_into().ok()?) * BLOCKS_PER_EXTENT;
                let ranges = map.blocks.entry(object).or_default();
                map.ranges -= ranges.len();
                for pair in value.chunks_exact(4) {
                    let start = u64::from(u16::from_le_bytes([pair[0], pair[1]]));
                    let end = u64::from(u16::from_le_bytes([pair[2], pair[3]]));
                    ranges.insert(base + start..base + end);
                }
                map.ranges += ranges.len();
            }
            ROW_DROPPED => {
                let object = u64::from_be_bytes(rest.try_into().ok()?);
                map.dropped.insert(ObjectId(object));
            }
            ROW_KEY => {
                map.key_bytes += rest.len();
                map.keys.insert(Bytes::copy_from_slice(rest));
            }
            _ => return None,
        }
        Some(())
    }
}

impl ReplicaMap {
    fn cost(&self) -> usize {
        let entries = self.keys.len() + self.dropped.len() + self.blocks.len() + self.ranges;
        entries * ENTRY_BYTES + self.key_bytes
    }

    fn check_limit(&mut self) {
        if self.cost() > DIRTY_BYTES_MAX {
            self.set_all(true);
        }
    }

    fn set_all(&mut self, all: bool) {
        for (object, ranges) in std::mem::take(&mut self.blocks) {
            let changed = self.changed_extents.entry(object).or_default();
            for range in ranges.iter() {
                changed.insert(extents_of(&range));
            }
        }
        self.changed_dropped.append(&mut self.dropped);
        self.changed_keys.append(&mut self.keys);
        self.key_bytes = 0;
        self.ranges = 0;
        self.all = all;
        self.progress = Bytes::new();
        self.changed_head = true;
    }

    fn set_blocks(&mut self, object: ObjectId, blocks: Range<u64>, dirty: bool) {
        if blocks.is_empty() {
            return;
        }
        let extents = extents_of(&blocks);
        if dirty && extents.end - extents.start > RANGE_EXTENTS_MAX {
            self.set_all(true);
        } else if dirty {
            let ranges = self.blocks.entry(object).or_default();
            self.ranges -= ranges.len();
            ranges.insert(blocks);
            self.ranges += ranges.len();
            self.changed_extents
                .entry(object)
                .or_default()
                .insert(extents);
            self.check_limit();
        } else if let Some(ranges) = self.blocks.get_mut(&object) {
            // Only what was set changes: `blocks` may reach to the end of everything.
            let touched: Vec<_> = ranges.iter_within(blocks.clone()).collect();
            self.ranges -= ranges.len();
            ranges.remove(blocks);
            self.ranges += ranges.len();
            if ranges.is_empty() {
                self.blocks.remove(&object);
            }
            let changed = self.changed_extents.entry(object).or_default();
            for range in touched {
                changed.insert(extents_of(&range));
            }
        }
    }

    fn set_dropped(&mut self, object: ObjectId, dirty: bool) {
        let changed = if dirty {
            self.dropped.insert(object)
        } else {
            self.dropped.remove(&object)
        };
        if changed {
            self.changed_dropped.insert(object);
            self.check_limit();
        }
    }

    fn set_key(&mut self, key: &Bytes, dirty: bool) {
        if dirty && !self.keys.contains(key) {
            // A copy: the caller's is a slice of a whole frame.
            let key = Bytes::copy_from_slice(key);
            self.key_bytes += key.len();
            self.keys.insert(key.clone());
            self.changed_keys.insert(key);
            self.check_limit();
        } else if !dirty && self.keys.remove(key) {
            self.key_bytes -= key.len();
            self.changed_keys.insert(Bytes::copy_from_slice(key));
        }
    }

    fn take_changed_rows(&mut self, replica: u8, rows: &mut Vec<Row>) {
        if std::mem::take(&mut self.changed_head) {
            let mut value = vec![u8::from(self.all)];
            value.extend_from_slice(&self.progress);
            let idle = !self.all && self.progress.is_empty();
            rows.push((vec![ROW_HEAD, replica], (!idle).then_some(value)));
        }
        for (object, extents) in std::mem::take(&mut self.changed_extents) {
            let ranges = self.blocks.get(&object);
            for extent in extents.iter().flatten() {
                let mut key = vec![ROW_BLOCKS, replica];
                key.extend_from_slice(&object.0.to_be_bytes());
                key.extend_from_slice(&extent.to_be_bytes());
                rows.push((key, ranges.and_then(|ranges| extent_row(ranges, extent))));
            }
        }
        for object in std::mem::take(&mut self.changed_dropped) {
            let mut key = vec![ROW_DROPPED, replica];
            key.extend_from_slice(&object.0.to_be_bytes());
            rows.push((key, self.dropped.contains(&object).then(Vec::new)));
        }
        for name in std::mem::take(&mut self.changed_keys) {
            let mut key = vec![ROW_KEY, replica];
            key.extend_from_slice(&name);
            rows.push((key, self.keys.contains(&name).then(Vec::new)));
        }
    }
}

/// The dirty parts of one extent, as pairs of block numbers inside it.
fn extent_row(ranges: &RangeSet, extent: u64) -> Option<Vec<u8>> {
    let base = extent * BLOCKS_PER_EXTENT;
    let mut value = Vec::new();
    for range in ranges.iter_within(base..base + BLOCKS_PER_EXTENT) {
        for block in [range.start, range.end] {
            let inside = u16::try_from(block - base).unwrap_or(u16::MAX);
            value.extend_from_slice(&inside.to_le_bytes());
        }
    }
    (!value.is_empty()).then_some(value)
}

fn extents_of(blocks: &Range<u64>) -> Range<u64> {
    blocks.start / BLOCKS_PER_EXTENT..blocks.end.div_ceil(BLOCKS_PER_EXTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_marked_comes_back_in_order_and_survives_its_rows() {
        let mut maps = DirtyMaps::default();
        let object = ObjectId(5);
        maps.mark_blocks(0b10, object, 1000..3000);
        maps.mark_blocks(0b11, object, 7..8);
        maps.mark_key(0b10, &Bytes::from_static(b"k"));
        maps.mark_dropped(0b10, ObjectId(9));
        let mut back = DirtyMaps::default();
        for (key, value) in maps.take_changed_rows() {
            if let Some(value) = value {
                back.load_row(&key, &value).expect("a row of our own");
            }
        }
        assert_eq!(back.summary(1), maps.summary(1));
        assert_eq!(back.summary(0).blocks, 1);
        let mut seen = Vec::new();
        let mut after = None;
        while let Some(item) = back.next(1, after.as_ref(), 1).pop() {
            seen.push(item.clone());
            after = Some(item);
        }
        assert_eq!(seen, back.next(1, None, 100));
        assert_eq!(seen.len(), 4);
        for item in &seen {
            back.set(1, item, false);
        }
        assert!(back.summary(1).is_clean());
        let rows = back.take_changed_rows();
        assert!(rows.iter().all(|(_, value)| value.is_none()));
    }

    #[test]
    fn a_map_past_its_limit_says_everything() {
        let mut maps = DirtyMaps::default();
        for block in 0..(DIRTY_BYTES_MAX / ENTRY_BYTES) as u64 + 2 {
            maps.mark_blocks(1, ObjectId(1), block * 2..block * 2 + 1);
        }
        assert!(maps.summary(0).all);
        maps.set_all(0, false);
        maps.mark_blocks(1, ObjectId(1), 5..u64::MAX);
        assert!(maps.summary(0).all, "a range without an end");
        maps.set_all(0, false);
        assert!(maps.summary(0).is_clean());
    }
}
