//! The metadata store: redb, written at checkpoints only, read through a snapshot of the last one.

pub(crate) mod backend;

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use protocol::units::ObjectId;
use redb::{Database, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition};

use crate::error::{IoFault, ReadError};
use crate::medium::Medium;
use crate::overlay::{Form, Info, Overlay};

type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;
type Table = ReadOnlyTable<&'static [u8], &'static [u8]>;

const META: Definition = TableDefinition::new("meta");
const OBJECTS: Definition = TableDefinition::new("objects");
const SUMS: Definition = TableDefinition::new("sums");
const INLINE: Definition = TableDefinition::new("inline");
const DIRTY: Definition = TableDefinition::new("dirty");
const STATE: Definition = TableDefinition::new("state");
/// The only key of the state table.
const STATE_KEY: &[u8] = b"state";

/// Memory for pages of the store.
const CACHE_BYTES: usize = 48 << 20;

/// A value with the checksum of its key and itself behind it.
pub(crate) fn seal(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len() + 4);
    out.extend_from_slice(value);
    out.extend_from_slice(&row_crc(key, value).to_le_bytes());
    out
}

fn row_crc(key: &[u8], value: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(value);
    hasher.finalize()
}

/// The value of a sealed row.
pub(crate) fn unseal<'a>(
    table: &'static str,
    key: &[u8],
    row: &'a [u8],
) -> Result<&'a [u8], ReadError> {
    match row.split_last_chunk::<4>() {
        Some((value, crc)) if row_crc(key, value) == u32::from_le_bytes(*crc) => Ok(value),
        _ => Err(ReadError::CorruptRow {
            table,
            key: key.to_vec(),
        }),
    }
}

fn read_fault(error: impl Into<redb::Error>) -> ReadError {
    ReadError::Io(IoFault::store("read the metadata store", &error.into()))
}

fn object_key(object: ObjectId) -> [u8; 8] {
    object.0.to_be_bytes()
}

pub(crate) fn sums_key(object: ObjectId, extent: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&object.0.to_be_bytes());
    key[8..].copy_from_slice(&extent.to_be_bytes());
    key
}

fn sums_from_row(row: &[u8]) -> Vec<u32> {
    row.chunks_exact(4)
        .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
        .collect()
}

fn sums_to_row(sums: &[u32]) -> Vec<u8> {
    let used = sums
        .iter()
        .rposition(|sum| *sum != 0)
        .map_or(0, |at| at + 1);
    sums[..used]
        .iter()
        .flat_map(|sum| sum.to_le_bytes())
        .collect()
}

/// Takes a row; `None` where it does not decode.
type RowVisitor<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Option<()>;

/// The state of the last checkpoint.
struct Snapshot {
    meta: Table,
    objects: Table,
    sums: Table,
    inline: Table,
    dirty: Table,
    state: Table,
}

/// The store, with a snapshot for reading.
pub(crate) struct Store {
    database: Arc<Database>,
    snapshot: Snapshot,
}

/// What a checkpoint writes.
pub(crate) struct Batch {
    pub(crate) overlay: Arc<Overlay>,
    pub(crate) dirty: Vec<crate::dirty::Row>,
    pub(crate) state: Vec<u8>,
}

/// A fresh store's tables.
pub(crate) fn create<M: Medium>(medium: &M, state: &[u8]) -> Result<(), IoFault> {
    let database = open_database(backend::MediumBackend::open(medium, true)?)?;
    write_batch(
        &database,
        &Batch {
            overlay: Arc::default(),
            dirty: Vec::new(),
            state: state.to_vec(),
        },
    )
}

fn open_database(backend: impl redb::StorageBackend) -> Result<Database, IoFault> {
    Database::builder()
        .set_cache_size(CACHE_BYTES)
        .create_with_backend(backend)
        .map_err(|error| IoFault::store("open the metadata store", &error.into()))
}

impl Store {
    /// Opens the store; with `read_only` nothing of it is written, repairs stay in memory.
    pub(crate) fn open<M: Medium>(medium: &M, read_only: bool) -> Result<Self, IoFault> {
        let database = if read_only {
            open_database(backend::CopyOnWrite::open(medium)?)?
        } else {
            open_database(backend::MediumBackend::open(medium, false)?)?
        };
        let snapshot = Snapshot::take(&database)?;
        Ok(Self {
            database: Arc::new(database),
            snapshot,
        })
    }

    pub(crate) fn database(&self) -> Arc<Database> {
        Arc::clone(&self.database)
    }

    /// Reads see the last checkpoint from here on.
    pub(crate) fn refresh(&mut self) -> Result<(), IoFault> {
        self.snapshot = Snapshot::take(&self.database)?;
        Ok(())
    }

    fn row(table: &Table, name: &'static str, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        let Some(guard) = table.get(key).map_err(read_fault)? else {
            return Ok(None);
        };
        let value = unseal(name, key, guard.value())?;
        Ok(Some(Bytes::copy_from_slice(value)))
    }

    pub(crate) fn meta(&self, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        Self::row(&self.snapshot.meta, "meta", key)
    }

    /// Rows of the replicated metadata with `from <= key < to`, ascending.
    pub(crate) fn meta_range(&self, from: &[u8], to: &[u8]) -> Result<MetaRange, ReadError> {
        let range = self.snapshot.meta.range(from..to).map_err(read_fault)?;
        Ok(MetaRange { range })
    }

    pub(crate) fn info(&self, object: ObjectId) -> Result<Option<Info>, ReadError> {
        let key = object_key(object);
        let row = Self::row(&self.snapshot.objects, "objects", &key)?;
        row.map(|row| {
            Info::decode(&row).ok_or_else(|| ReadError::CorruptRow {
                table: "objects",
                key: key.to_vec(),
            })
        })
        .transpose()
    }

    pub(crate) fn inline(&self, object: ObjectId) -> Result<Bytes, ReadError> {
        let row = Self::row(&self.snapshot.inline, "inline", &object_key(object))?;
        Ok(row.unwrap_or_default())
    }

    pub(crate) fn sums(&self, object: ObjectId, extent: u64) -> Result<Vec<u32>, ReadError> {
        let row = Self::row(&self.snapshot.sums, "sums", &sums_key(object, extent))?;
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
        let range = self
            .snapshot
            .sums
            .range(&from[..]..&to[..])
            .map_err(read_fault)?;
        let mut found = Vec::new();
        for row in range {
            let (key, _) = row.map_err(read_fault)?;
            if let Some(extent) = key.value().last_chunk::<8>() {
                found.push(u64::from_be_bytes(*extent));
            }
        }
        Ok(found)
    }

    /// Objects after `after`, ascending, at most `max`.
    pub(crate) fn objects_after(
        &self,
        after: Option<ObjectId>,
        max: usize,
    ) -> Result<Vec<ObjectId>, ReadError> {
        let from = after.map_or([0; 8], object_key);
        let skip = usize::from(after.is_some());
        let range = self
            .snapshot
            .objects
            .range(&from[..]..)
            .map_err(read_fault)?;
        let mut found = Vec::new();
        for row in range.take(max.saturating_add(skip)) {
            let (key, _) = row.map_err(read_fault)?;
            if let Some(id) = key.value().first_chunk::<8>() {
                let id = ObjectId(u64::from_be_bytes(*id));
                if Some(id) != after {
                    found.push(id);
                }
            }
        }
        found.truncate(max);
        Ok(found)
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

    /// Checks every row's checksum; calls `bad` for each that is wrong.
    pub(crate) fn check_rows(&self, bad: &mut dyn FnMut(ReadError)) -> Result<u64, ReadError> {
        let snapshot = &self.snapshot;
        let tables = [
            ("meta", &snapshot.meta),
            ("objects", &snapshot.objects),
            ("sums", &snapshot.sums),
            ("inline", &snapshot.inline),
            ("dirty", &snapshot.dirty),
            ("state", &snapshot.state),
        ];
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

impl Snapshot {
    fn take(database: &Database) -> Result<Self, IoFault> {
        let open = || -> Result<Self, redb::Error> {
            let read = database.begin_read()?;
            Ok(Self {
                meta: read.open_table(META)?,
                objects: read.open_table(OBJECTS)?,
                sums: read.open_table(SUMS)?,
                inline: read.open_table(INLINE)?,
                dirty: read.open_table(DIRTY)?,
                state: read.open_table(STATE)?,
            })
        };
        open().map_err(|error| IoFault::store("open the metadata store", &error))
    }
}

/// Rows of the replicated metadata.
pub(crate) struct MetaRange {
    range: redb::Range<'static, &'static [u8], &'static [u8]>,
}

impl MetaRange {
    pub(crate) fn next(&mut self) -> Result<Option<(Bytes, Bytes)>, ReadError> {
        let Some(row) = self.range.next() else {
            return Ok(None);
        };
        let (key, value) = row.map_err(read_fault)?;
        let plain = unseal("meta", key.value(), value.value())?;
        Ok(Some((
            Bytes::copy_from_slice(key.value()),
            Bytes::copy_from_slice(plain),
        )))
    }
}

/// Writes a checkpoint in one durable transaction. Quick repair costs a little here and saves the
/// walk over the whole store after a crash.
pub(crate) fn write_batch(database: &Database, batch: &Batch) -> Result<(), IoFault> {
    let write = || -> Result<(), redb::Error> {
        let mut txn = database.begin_write()?;
        txn.set_quick_repair(true);
        {
            let mut meta = txn.open_table(META)?;
            for (key, value) in &batch.overlay.meta {
                put(&mut meta, key, value.as_deref())?;
            }
        }
        write_objects(&txn, &batch.overlay)?;
        {
            let mut dirty = txn.open_table(DIRTY)?;
            for (key, value) in &batch.dirty {
                put(&mut dirty, key, value.as_deref())?;
            }
        }
        put(&mut txn.open_table(STATE)?, STATE_KEY, Some(&batch.state))?;
        txn.commit()?;
        Ok(())
    };
    write().map_err(|error| IoFault::store("write the metadata store", &error))
}

type TableForWriting<'txn> = redb::Table<'txn, &'static [u8], &'static [u8]>;

fn put(
    table: &mut TableForWriting<'_>,
    key: &[u8],
    value: Option<&[u8]>,
) -> Result<(), redb::Error> {
    match value {
        Some(value) => table.insert(key, &seal(key, value)[..])?,
        None => table.remove(key)?,
    };
    Ok(())
}

fn write_objects(txn: &redb::WriteTransaction, overlay: &Overlay) -> Result<(), redb::Error> {
    let mut objects = txn.open_table(OBJECTS)?;
    let mut sums = txn.open_table(SUMS)?;
    let mut inline = txn.open_table(INLINE)?;
    for (&object, change) in &overlay.objects {
        let id = object_key(object);
        if change.hides_below {
            let (from, to) = (sums_key(object, 0), sums_key(object, u64::MAX));
            sums.retain_in(&from[..]..=&to[..], |_, _| false)?;
        }
        for extents in change.zero_extents.iter() {
            let (from, to) = (
                sums_key(object, extents.start),
                sums_key(object, extents.end),
            );
            sums.retain_in(&from[..]..&to[..], |_, _| false)?;
        }
        for (&extent, array) in &change.sums {
            let row = sums_to_row(array);
            let key = sums_key(object, extent);
            put(&mut sums, &key, (!row.is_empty()).then_some(&row[..]))?;
        }
        let row = change.info.map(|info| info.encode());
        put(&mut objects, &id, row.as_ref().map(|row| &row[..]))?;
        let is_inline = change.info.is_some_and(|info| info.form == Form::Inline);
        put(
            &mut inline,
            &id,
            change.inline.as_deref().filter(|_| is_inline),
        )?;
    }
    Ok(())
}

/// An `io::Error` for a thread that reports no other kind.
pub(crate) fn as_io(fault: IoFault) -> io::Error {
    match fault.errno {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(fault.kind, fault),
    }
}
