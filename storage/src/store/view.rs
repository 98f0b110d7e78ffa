//! Reading the store: the last checkpoint, or a point through what was put aside since.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use protocol::units::{BLOCKS_PER_EXTENT, ObjectId};
use redb::{Database, ReadOnlyTable, ReadableDatabase, ReadableTable};

use super::saved::{self, SAVED, saved_key};
use super::{
    DIRTY, Definition, INLINE, META, OBJECTS, STATE, STATE_KEY, SUMS, object_key, read_fault,
    sums_from_row, sums_key, unseal,
};
use crate::dirty::DirtyItem;
use crate::error::{IoFault, ReadError};
use crate::overlay::Info;
use crate::points::{PointId, PointRow};

type Table = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// Takes a row; `None` where it does not decode.
type RowVisitor<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Option<()>;

/// The tables that points show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Meta,
    Objects,
    Sums,
    Inline,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Meta, Self::Objects, Self::Sums, Self::Inline];

    /// As it stands in keys of table `saved`.
    pub(crate) fn byte(self) -> u8 {
        match self {
            Self::Meta => 1,
            Self::Objects => 2,
            Self::Sums => 3,
            Self::Inline => 4,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Objects => "objects",
            Self::Sums => "sums",
            Self::Inline => "inline",
        }
    }

    pub(crate) fn table(self) -> Definition {
        match self {
            Self::Meta => META,
            Self::Objects => OBJECTS,
            Self::Sums => SUMS,
            Self::Inline => INLINE,
        }
    }
}

/// The tables at one checkpoint.
struct Snapshot {
    /// In the order of [`Kind::ALL`].
    kinds: [Table; 4],
    dirty: Table,
    state: Table,
    /// Missing in a brick that never held a point.
    points: Option<Table>,
    saved: Option<Table>,
}

impl Snapshot {
    fn take(database: &Database) -> Result<Self, redb::Error> {
        let read = database.begin_read()?;
        let perhaps = |definition| match read.open_table(definition) {
            Ok(table) => Ok(Some(table)),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(redb::Error::from(error)),
        };
        Ok(Self {
            kinds: [
                read.open_table(META)?,
                read.open_table(OBJECTS)?,
                read.open_table(SUMS)?,
                read.open_table(INLINE)?,
            ],
            dirty: read.open_table(DIRTY)?,
            state: read.open_table(STATE)?,
            points: perhaps(saved::POINTS)?,
            saved: perhaps(SAVED)?,
        })
    }

    fn table(&self, kind: Kind) -> &Table {
        &self.kinds[usize::from(kind.byte()) - 1]
    }
}

/// What a row stands for.
fn kept_row(kind: Kind, key: &[u8]) -> Option<DirtyItem> {
    let number = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_be_bytes);
    let (object, extent) = match kind {
        Kind::Meta => {
            let key = Bytes::copy_from_slice(key);
            return Some(DirtyItem::Key { key });
        }
        Kind::Sums => (number(key.get(..8)?)?, number(key.get(8..)?)?),
        Kind::Inline => (number(key)?, 0),
        Kind::Objects => return None,
    };
    Some(DirtyItem::Blocks {
        object: ObjectId(object),
        start: extent * BLOCKS_PER_EXTENT,
        end: (extent + 1) * BLOCKS_PER_EXTENT,
    })
}

/// What can be read of the store. Cheap to clone.
#[derive(Clone)]
pub(crate) struct View {
    snapshot: Arc<Snapshot>,
    /// Points whose saved rows come first, in this order; none for the state of now.
    chain: Vec<PointId>,
}

impl View {
    /// The last checkpoint.
    pub(crate) fn now(database: &Database) -> Result<Self, IoFault> {
        let snapshot = Snapshot::take(database)
            .map_err(|error| IoFault::store("open the metadata store", &error))?;
        Ok(Self {
            snapshot: Arc::new(snapshot),
            chain: Vec::new(),
        })
    }

    /// A point, as it is read through `chain`.
    pub(crate) fn at_point(&self, chain: &[PointId]) -> Self {
        Self {
            snapshot: Arc::clone(&self.snapshot),
            chain: chain.to_vec(),
        }
    }

    fn row(table: &Table, name: &'static str, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        let Some(guard) = table.get(key).map_err(read_fault)? else {
            return Ok(None);
        };
        let value = unseal(name, key, guard.value())?;
        Ok(Some(Bytes::copy_from_slice(value)))
    }

    fn get(&self, kind: Kind, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        for id in &self.chain {
            let Some(table) = &self.snapshot.saved else {
                break;
            };
            let saved_key = saved_key(*id, kind, key);
            if let Some(guard) = table.get(&saved_key[..]).map_err(read_fault)? {
                let old = saved::old_row(&saved_key, guard.value())?;
                return old
                    .map(|row| unseal(kind.name(), key, row).map(Bytes::copy_from_slice))
                    .transpose();
            }
        }
        Self::row(self.snapshot.table(kind), kind.name(), key)
    }

    /// Rows with keys from `from` on and below `to`, ascending, as they are stored.
    fn range(&self, kind: Kind, from: &[u8], to: Option<&[u8]>) -> Result<Rows, ReadError> {
        let mut sources = Vec::new();
        for id in &self.chain {
            let Some(table) = &self.snapshot.saved else {
                break;
            };
            let low = saved_key(*id, kind, from);
            let high = match to {
                Some(to) => saved_key(*id, kind, to),
                None => saved::kind_end(*id, kind),
            };
            let range = table.range(&low[..]..&high[..]).map_err(read_fault)?;
            sources.push(Source::new(range, true)?);
        }
        let table = self.snapshot.table(kind);
        let high = to.map_or(Bound::Unbounded, Bound::Excluded);
        let range = table
            .range::<&[u8]>((Bound::Included(from), high))
            .map_err(read_fault)?;
        sources.push(Source::new(range, false)?);
        Ok(Rows { sources })
    }

    pub(crate) fn meta(&self, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        self.get(Kind::Meta, key)
    }

    /// Rows of the replicated metadata with `from <= key < to`, ascending.
    pub(crate) fn meta_range(&self, from: &[u8], to: &[u8]) -> Result<MetaRange, ReadError> {
        let rows = self.range(Kind::Meta, from, Some(to))?;
        Ok(MetaRange { rows })
    }

    pub(crate) fn info(&self, object: ObjectId) -> Result<Option<Info>, ReadError> {
        let key = object_key(object);
        let row = self.get(Kind::Objects, &key)?;
        row.map(|row| {
            Info::decode(&row).ok_or_else(|| ReadError::CorruptRow {
                table: "objects",
                key: key.to_vec(),
            })
        })
        .transpose()
    }

    pub(crate) fn inline(&self, object: ObjectId) -> Result<Bytes, ReadError> {
        let row = self.get(Kind::Inline, &object_key(object))?;
        Ok(row.unwrap_or_default())
    }

    pub(crate) fn sums(&self, object: ObjectId, extent: u64) -> Result<Vec<u32>, ReadError> {
        let row = self.get(Kind::Sums, &sums_key(object, extent))?;
        Ok(row.map(|row| sums_from_row(&row)).unwrap_or_default())
    }

    /// Extents of the object in `extents` that have checksums, ascending.
    pub(crate) fn extents(
        &self,
        object: ObjectId,
        extents: std::ops::Range<u64>,
    ) -> Result<Vec<u64>, ReadError> {
        let (from, to) = (
            sums_key(object, extents.start),
            sums_key(object, extents.end),
        );
        let mut rows = self.range(Kind::Sums, &from, Some(&to))?;
        let mut found = Vec::new();
        while let Some((key, _)) = rows.next()? {
            if let Some(extent) = key.last_chunk::<8>() {
                found.push(u64::from_be_bytes(*extent));
            }
        }
        Ok(found)
    }

    /// The first extent of the object from `from` on that has checksums.
    pub(crate) fn next_extent(
        &self,
        object: ObjectId,
        from: u64,
    ) -> Result<Option<u64>, ReadError> {
        let (from, to) = (sums_key(object, from), sums_key(object, u64::MAX));
        let first = self.range(Kind::Sums, &from, Some(&to))?.next()?;
        let extent = first.and_then(|(key, _)| key.last_chunk::<8>().copied());
        Ok(extent.map(u64::from_be_bytes))
    }

    /// Objects after `after`, ascending, at most `max`.
    pub(crate) fn objects_after(
        &self,
        after: Option<ObjectId>,
        max: usize,
    ) -> Result<Vec<ObjectId>, ReadError> {
        let from = match after {
            Some(ObjectId(u64::MAX)) => return Ok(Vec::new()),
            Some(after) => object_key(ObjectId(after.0 + 1)),
            None => [0; 8],
        };
        let mut rows = self.range(Kind::Objects, &from, None)?;
        let mut found = Vec::new();
        while found.len() < max {
            let Some((key, _)) = rows.next()? else {
                break;
            };
            if let Some(id) = key.first_chunk::<8>() {
                found.push(ObjectId(u64::from_be_bytes(*id)));
            }
        }
        Ok(found)
    }

    /// What the points of the chain put aside: keys, and extents by their checksums. False: there
    /// is more than `max`.
    pub(crate) fn kept_rows(&self, max: usize) -> Result<(Vec<DirtyItem>, bool), ReadError> {
        let mut found = BTreeSet::new();
        let Some(table) = &self.snapshot.saved else {
            return Ok((Vec::new(), true));
        };
        for id in &self.chain {
            for kind in [Kind::Meta, Kind::Sums, Kind::Inline] {
                let (low, high) = (saved_key(*id, kind, &[]), saved::kind_end(*id, kind));
                for row in table.range(&low[..]..&high[..]).map_err(read_fault)? {
                    let (key, _) = row.map_err(read_fault)?;
                    let key = &key.value()[saved::PREFIX_BYTES..];
                    found.extend(kept_row(kind, key));
                    if found.len() > max {
                        found.pop_last();
                        return Ok((found.into_iter().collect(), false));
                    }
                }
            }
        }
        Ok((found.into_iter().collect(), true))
    }

    pub(crate) fn state(&self) -> Result<Bytes, ReadError> {
        Self::row(&self.snapshot.state, "state", STATE_KEY)?.ok_or_else(|| ReadError::CorruptRow {
            table: "state",
            key: STATE_KEY.to_vec(),
        })
    }

    pub(crate) fn each_dirty_row(&self, take: RowVisitor<'_>) -> Result<(), ReadError> {
        for row in self.snapshot.dirty.iter().map_err(read_fault)? {
            let (key, value) = row.map_err(read_fault)?;
            let value = unseal("dirty", key.value(), value.value())?;
            take(key.value(), value).ok_or_else(|| ReadError::CorruptRow {
                table: "dirty",
                key: key.value().to_vec(),
            })?;
        }
        Ok(())
    }

    /// The points, by rising id, and the id of the next one.
    pub(crate) fn points(&self) -> Result<(Vec<PointRow>, PointId), ReadError> {
        let mut rows = Vec::new();
        let mut next = PointId(1);
        let Some(table) = &self.snapshot.points else {
            return Ok((rows, next));
        };
        for row in table.iter().map_err(read_fault)? {
            let (key, value) = row.map_err(read_fault)?;
            let (key, value) = (
                key.value(),
                unseal("points", key.value(), value.value())?.to_vec(),
            );
            let bad = || ReadError::CorruptRow {
                table: "points",
                key: key.to_vec(),
            };
            let number = |raw: &[u8]| raw.try_into().map(u64::from_be_bytes).map_err(|_| bad());
            if key == saved::NEXT_KEY {
                next = PointId(number(&value)?);
            } else {
                let id = PointId(number(key)?);
                rows.push(PointRow::decode(id, Bytes::from(value)).map_err(|_| bad())?);
            }
        }
        Ok((rows, next))
    }

    /// Objects of which a point in the chain put a row aside, ascending.
    pub(crate) fn objects_changed(&self) -> Result<BTreeSet<ObjectId>, ReadError> {
        let mut found = BTreeSet::new();
        let Some(table) = &self.snapshot.saved else {
            return Ok(found);
        };
        for id in &self.chain {
            for kind in [Kind::Objects, Kind::Sums, Kind::Inline] {
                let (low, high) = (saved_key(*id, kind, &[]), saved::kind_end(*id, kind));
                for row in table.range(&low[..]..&high[..]).map_err(read_fault)? {
                    let (key, _) = row.map_err(read_fault)?;
                    if let Some(object) = key.value()[low.len()..].first_chunk::<8>() {
                        found.insert(ObjectId(u64::from_be_bytes(*object)));
                    }
                }
            }
        }
        Ok(found)
    }

    /// Extents of an object of which a point in the chain put the checksums aside, ascending.
    pub(crate) fn extents_changed(&self, object: ObjectId) -> Result<BTreeSet<u64>, ReadError> {
        let mut found = BTreeSet::new();
        let Some(table) = &self.snapshot.saved else {
            return Ok(found);
        };
        for id in &self.chain {
            let low = saved_key(*id, Kind::Sums, &sums_key(object, 0));
            let high = saved_key(*id, Kind::Sums, &sums_key(object, u64::MAX));
            for row in table.range(&low[..]..=&high[..]).map_err(read_fault)? {
                let (key, _) = row.map_err(read_fault)?;
                if let Some(extent) = key.value().last_chunk::<8>() {
                    found.insert(u64::from_be_bytes(*extent));
                }
            }
        }
        Ok(found)
    }

    /// Checks every row's checksum; calls `bad` for each that is wrong.
    pub(crate) fn check_rows(&self, bad: &mut dyn FnMut(ReadError)) -> Result<u64, ReadError> {
        let snapshot = &self.snapshot;
        let mut tables: Vec<(&'static str, &Table)> = Kind::ALL
            .iter()
            .map(|kind| (kind.name(), snapshot.table(*kind)))
            .collect();
        tables.extend([("dirty", &snapshot.dirty), ("state", &snapshot.state)]);
        tables.extend(snapshot.points.iter().map(|table| ("points", table)));
        tables.extend(snapshot.saved.iter().map(|table| (saved::NAME, table)));
        let mut rows = 0;
        for (name, table) in tables {
            for row in table.iter().map_err(read_fault)? {
                let (key, value) = row.map_err(read_fault)?;
                rows += 1;
                if let Err(error) = unseal(name, key.value(), value.value()) {
                    bad(error);
                }
            }
        }
        Ok(rows)
    }
}

type TableRange = redb::Range<'static, &'static [u8], &'static [u8]>;
/// A key, and its row or that there was none.
type Head = (Bytes, Option<Bytes>);

/// Rows of one table, or of what one point put aside.
struct Source {
    range: TableRange,
    saved: bool,
    head: Option<Head>,
}

impl Source {
    fn new(range: TableRange, saved: bool) -> Result<Self, ReadError> {
        let mut source = Self {
            range,
            saved,
            head: None,
        };
        source.step()?;
        Ok(source)
    }

    /// Gives the head and moves on.
    fn step(&mut self) -> Result<Option<Head>, ReadError> {
        let next = match self.range.next().transpose().map_err(read_fault)? {
            None => None,
            Some((key, row)) if self.saved => {
                let old = saved::old_row(key.value(), row.value())?;
                let key = Bytes::copy_from_slice(&key.value()[saved::PREFIX_BYTES..]);
                Some((key, old.map(Bytes::copy_from_slice)))
            }
            Some((key, row)) => Some((
                Bytes::copy_from_slice(key.value()),
                Some(Bytes::copy_from_slice(row.value())),
            )),
        };
        Ok(std::mem::replace(&mut self.head, next))
    }
}

/// Rows of one kind by rising key: of each key the first source's.
struct Rows {
    sources: Vec<Source>,
}

impl Rows {
    fn next(&mut self) -> Result<Option<(Bytes, Bytes)>, ReadError> {
        loop {
            let heads = self
                .sources
                .iter()
                .filter_map(|source| source.head.as_ref());
            let Some(key) = heads.map(|(key, _)| key).min().cloned() else {
                return Ok(None);
            };
            let mut first: Option<Head> = None;
            for source in &mut self.sources {
                if source.head.as_ref().is_some_and(|(found, _)| *found == key) {
                    let head = source.step()?;
                    first = first.or(head);
                }
            }
            if let Some((key, Some(row))) = first {
                return Ok(Some((key, row)));
            }
        }
    }
}

/// Rows of the replicated metadata.
pub(crate) struct MetaRange {
    rows: Rows,
}

impl MetaRange {
    pub(crate) fn next(&mut self) -> Result<Option<(Bytes, Bytes)>, ReadError> {
        let Some((key, row)) = self.rows.next()? else {
            return Ok(None);
        };
        let len = unseal("meta", &key, &row)?.len();
        Ok(Some((key, row.slice(..len))))
    }
}
