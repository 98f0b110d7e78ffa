//! The state of the brick: the active overlay, over the one that a checkpoint is writing, over the
//! metadata store.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use protocol::units::{BLOCKS_PER_EXTENT, ObjectId};

use crate::error::ReadError;
use crate::overlay::{Form, Info, ObjectOverlay, Overlay};
use crate::store::Store;

/// Most checksum arrays kept in memory: 4 KiB each.
const CACHED_SUMS_MAX: usize = 2048;

/// Checksums of an extent; what is missing at the end is zero.
pub(crate) type Sums = Arc<Vec<u32>>;

pub(crate) struct Layers {
    pub(crate) active: Overlay,
    pub(crate) frozen: Option<Arc<Overlay>>,
    pub(crate) store: Store,
    /// Arrays of the store's snapshot.
    cached: RefCell<HashMap<(ObjectId, u64), Sums>>,
}

impl Layers {
    pub(crate) fn new(store: Store) -> Self {
        Self {
            active: Overlay::default(),
            frozen: None,
            store,
            cached: RefCell::default(),
        }
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        if let Some(value) = self.active.meta.get(key) {
            return Ok(value.clone());
        }
        if let Some(value) = self.frozen.as_ref().and_then(|f| f.meta.get(key)) {
            return Ok(value.clone());
        }
        self.store.meta(key)
    }

    /// Calls `take` with each key in `[from, to)`, ascending, until it says false.
    pub(crate) fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        take: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), ReadError> {
        if from >= to {
            return Ok(());
        }
        let (low, high) = (
            std::ops::Bound::Included(from),
            std::ops::Bound::Excluded(to),
        );
        let empty = Overlay::default();
        let frozen = self.frozen.as_deref().unwrap_or(&empty);
        let mut active = self.active.meta.range::<[u8], _>((low, high)).peekable();
        let mut frozen = frozen.meta.range::<[u8], _>((low, high)).peekable();
        let mut store = self.store.meta_range(from, to)?;
        let mut stored = store.next()?;
        loop {
            let keys = [
                active.peek().map(|(key, _)| *key),
                frozen.peek().map(|(key, _)| *key),
                stored.as_ref().map(|(key, _)| key),
            ];
            let Some(key) = keys.into_iter().flatten().min().cloned() else {
                return Ok(());
            };
            let mut value = None;
            if stored.as_ref().is_some_and(|(found, _)| *found == key) {
                value = stored.take().map(|(_, value)| value);
                stored = store.next()?;
            }
            if let Some((_, over)) = frozen.next_if(|(found, _)| **found == key) {
                value.clone_from(over);
            }
            if let Some((_, over)) = active.next_if(|(found, _)| **found == key) {
                value.clone_from(over);
            }
            if let Some(value) = value
                && !take(&key, &value)
            {
                return Ok(());
            }
        }
    }

    /// The overlays that say something about the object, upper first, down to one that hides the
    /// rest; and whether the store counts.
    fn over(&self, object: ObjectId) -> (impl Iterator<Item = &ObjectOverlay>, bool) {
        let active = self.active.objects.get(&object);
        let frozen = self
            .frozen
            .as_ref()
            .and_then(|frozen| frozen.objects.get(&object))
            .filter(|_| active.is_none_or(|active| !active.hides_below));
        let hidden = [active, frozen]
            .into_iter()
            .flatten()
            .any(|over| over.hides_below);
        ([active, frozen].into_iter().flatten(), !hidden)
    }

    pub(crate) fn info(&self, object: ObjectId) -> Result<Option<Info>, ReadError> {
        let (mut over, _) = self.over(object);
        match over.next() {
            Some(found) => Ok(found.info),
            None => self.store.info(object),
        }
    }

    pub(crate) fn inline(&self, object: ObjectId) -> Result<Bytes, ReadError> {
        let (mut over, _) = self.over(object);
        match over.next() {
            Some(found) => Ok(found.inline.clone().unwrap_or_default()),
            None => self.store.inline(object),
        }
    }

    /// Checksums of an extent; what is missing at the end is zero.
    pub(crate) fn sums(&self, object: ObjectId, extent: u64) -> Result<Sums, ReadError> {
        let (over, store_counts) = self.over(object);
        for layer in over {
            if let Some(sums) = layer.sums.get(&extent) {
                return Ok(Arc::new(sums.clone()));
            }
            if layer.zero_extents.contains(extent) {
                return Ok(Arc::default());
            }
        }
        if store_counts {
            self.stored_sums(object, extent)
        } else {
            Ok(Arc::default())
        }
    }

    fn stored_sums(&self, object: ObjectId, extent: u64) -> Result<Sums, ReadError> {
        let mut cached = self.cached.borrow_mut();
        if let Some(found) = cached.get(&(object, extent)) {
            return Ok(Arc::clone(found));
        }
        let sums = Arc::new(self.store.sums(object, extent)?);
        if cached.len() >= CACHED_SUMS_MAX {
            // Rare and cheap to refill; keeping an order would cost more than it saves.
            cached.clear();
        }
        cached.insert((object, extent), Arc::clone(&sums));
        Ok(sums)
    }

    pub(crate) fn sum(&self, object: ObjectId, block: u64) -> Result<u32, ReadError> {
        let (extent, at) = (
            block / BLOCKS_PER_EXTENT,
            (block % BLOCKS_PER_EXTENT) as usize,
        );
        // Not through `sums`, which copies the array.
        let (over, store_counts) = self.over(object);
        for layer in over {
            if let Some(sums) = layer.sums.get(&extent) {
                return Ok(sums.get(at).copied().unwrap_or(0));
            }
            if layer.zero_extents.contains(extent) {
                return Ok(0);
            }
        }
        if !store_counts {
            return Ok(0);
        }
        Ok(self
            .stored_sums(object, extent)?
            .get(at)
            .copied()
            .unwrap_or(0))
    }

    /// A block's content, where it waits in memory. Ask for its checksum first: a block whose
    /// checksum is 0 is zero, whatever this says.
    pub(crate) fn pending(&self, object: ObjectId, block: u64) -> Option<&Bytes> {
        let (mut over, _) = self.over(object);
        over.find_map(|layer| layer.blocks.get(&block))
    }

    /// Extents in `extents` that may have checksums, ascending.
    pub(crate) fn extents(
        &self,
        object: ObjectId,
        extents: Range<u64>,
    ) -> Result<BTreeSet<u64>, ReadError> {
        let (over, store_counts) = self.over(object);
        let mut found = BTreeSet::new();
        for layer in over {
            found.extend(layer.sums.range(extents.clone()).map(|(extent, _)| *extent));
        }
        if store_counts {
            found.extend(self.store.extents(object, extents)?);
        }
        Ok(found)
    }

    /// The first extent from `from` on that may have checksums.
    pub(crate) fn next_extent(
        &self,
        object: ObjectId,
        from: u64,
    ) -> Result<Option<u64>, ReadError> {
        let (over, store_counts) = self.over(object);
        let next = over
            .filter_map(|layer| layer.sums.range(from..).next())
            .map(|(extent, _)| *extent)
            .min();
        if !store_counts {
            return Ok(next);
        }
        let stored = self.store.next_extent(object, from)?;
        Ok(next.into_iter().chain(stored).min())
    }

    /// Objects after `after` that exist, ascending, at most `max`.
    pub(crate) fn objects_after(
        &self,
        after: Option<ObjectId>,
        max: usize,
    ) -> Result<Vec<ObjectId>, ReadError> {
        let low = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let mut found = BTreeSet::new();
        let mut from = after;
        while found.len() < max {
            let stored = self.store.objects_after(from, max)?;
            let (end, last) = match stored.last() {
                Some(last) if stored.len() == max => (std::ops::Bound::Included(*last), false),
                _ => (std::ops::Bound::Unbounded, true),
            };
            let mut ids: BTreeSet<ObjectId> = stored.iter().copied().collect();
            let low = from.map_or(low, std::ops::Bound::Excluded);
            if let Some(frozen) = &self.frozen {
                ids.extend(frozen.objects.range((low, end)).map(|(id, _)| *id));
            }
            ids.extend(self.active.objects.range((low, end)).map(|(id, _)| *id));
            for id in &ids {
                if self.info(*id)?.is_some() {
                    found.insert(*id);
                }
            }
            if last {
                break;
            }
            from = stored.last().copied();
        }
        Ok(found.into_iter().take(max).collect())
    }

    /// The object's entry in the active overlay, with its info and inline bytes copied up.
    pub(crate) fn object_mut(&mut self, object: ObjectId) -> Result<&mut ObjectOverlay, ReadError> {
        if !self.active.objects.contains_key(&object) {
            let info = self.info(object)?;
            let inline = match info {
                Some(info) if info.form == Form::Inline => Some(self.inline(object)?),
                _ => None,
            };
            self.active
                .charge(160 + inline.as_ref().map_or(0, Bytes::len));
            let entry = ObjectOverlay {
                info,
                inline,
                ..ObjectOverlay::default()
            };
            self.active.objects.insert(object, entry);
        }
        Ok(self.active.objects.entry(object).or_default())
    }

    /// Changes one checksum of an object that has an active entry; returns the old one.
    pub(crate) fn set_sum(
        &mut self,
        object: ObjectId,
        block: u64,
        sum: u32,
    ) -> Result<u32, ReadError> {
        let (extent, at) = (
            block / BLOCKS_PER_EXTENT,
            (block % BLOCKS_PER_EXTENT) as usize,
        );
        let known = self
            .active
            .objects
            .get(&object)
            .is_some_and(|entry| entry.sums.contains_key(&extent));
        let copied = if known {
            None
        } else {
            Some(self.sums(object, extent)?.to_vec())
        };
        let entry = self.active.objects.entry(object).or_default();
        let mut grown = 0;
        let sums = match copied {
            Some(sums) => {
                grown += 64 + sums.len() * 4;
                entry.sums.entry(extent).or_insert(sums)
            }
            None => entry.sums.entry(extent).or_default(),
        };
        if sums.len() <= at {
            grown += (at + 1 - sums.len()) * 4;
            sums.resize(at + 1, 0);
        }
        let old = std::mem::replace(&mut sums[at], sum);
        self.active.charge(grown);
        Ok(old)
    }

    /// Checksums of whole extents become zero; returns how many blocks were not zero before.
    pub(crate) fn clear_extents(
        &mut self,
        object: ObjectId,
        extents: Range<u64>,
    ) -> Result<u64, ReadError> {
        let mut freed = 0;
        for extent in self.extents(object, extents.clone())? {
            let sums = self.sums(object, extent)?;
            freed += sums.iter().filter(|sum| **sum != 0).count() as u64;
        }
        let entry = self.active.objects.entry(object).or_default();
        let gone: Vec<u64> = entry.sums.range(extents.clone()).map(|(e, _)| *e).collect();
        for extent in gone {
            entry.sums.remove(&extent);
        }
        entry.zero_extents.insert(extents);
        self.active.charge(48);
        Ok(freed)
    }

    /// The active overlay becomes the frozen one.
    pub(crate) fn freeze(&mut self) -> Arc<Overlay> {
        let frozen = Arc::new(std::mem::take(&mut self.active));
        self.frozen = Some(Arc::clone(&frozen));
        frozen
    }

    /// The store is another one: what was in memory does not count any more.
    pub(crate) fn reload(&mut self) -> Result<(), crate::error::IoFault> {
        self.active = Overlay::default();
        self.thaw()
    }

    /// The frozen overlay stands in the store.
    pub(crate) fn thaw(&mut self) -> Result<(), crate::error::IoFault> {
        self.store.refresh()?;
        self.cached.borrow_mut().clear();
        self.frozen = None;
        Ok(())
    }
}
