//! The metadata store: redb, written at checkpoints only, read through a snapshot of the last one.

pub(crate) mod backend;
pub(crate) mod saved;
mod view;

use std::io;
use std::sync::Arc;

use protocol::units::ObjectId;
use redb::{Database, TableDefinition};

use crate::error::{IoFault, ReadError};
use crate::medium::Medium;
use crate::overlay::{Form, Overlay};
use crate::points::PointId;

use saved::Saver;
pub(crate) use view::{Kind, View};

type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;

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

/// The store, with a view of the last checkpoint for reading.
pub(crate) struct Store {
    database: Arc<Database>,
    view: View,
}

/// What a checkpoint writes.
pub(crate) struct Batch {
    pub(crate) overlay: Arc<Overlay>,
    pub(crate) dirty: Vec<crate::dirty::Row>,
    pub(crate) state: Vec<u8>,
    pub(crate) points: saved::Points,
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
            points: saved::Points::default(),
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
        let view = View::now(&database)?;
        Ok(Self {
            database: Arc::new(database),
            view,
        })
    }

    /// A store that shows a point and nothing else.
    pub(crate) fn at_point(&self, chain: &[PointId]) -> Self {
        Self {
            database: Arc::clone(&self.database),
            view: self.view.at_point(chain),
        }
    }

    pub(crate) fn database(&self) -> Arc<Database> {
        Arc::clone(&self.database)
    }

    /// Reads see the last checkpoint from here on.
    pub(crate) fn refresh(&mut self) -> Result<(), IoFault> {
        self.view = View::now(&self.database)?;
        Ok(())
    }
}

impl std::ops::Deref for Store {
    type Target = View;

    fn deref(&self) -> &View {
        &self.view
    }
}

/// Writes a checkpoint in one durable transaction. Quick repair costs a little here and saves the
/// walk over the whole store after a crash. What the newest living point has to keep is put aside
/// in the same transaction.
pub(crate) fn write_batch(database: &Database, batch: &Batch) -> Result<(), IoFault> {
    let write = || -> Result<(), redb::Error> {
        let mut txn = database.begin_write()?;
        txn.set_quick_repair(true);
        {
            let mut saver = Saver::open(&txn, &batch.points.chain)?;
            let mut meta = txn.open_table(META)?;
            for (key, value) in &batch.overlay.meta {
                put(&mut meta, (&mut saver, Kind::Meta), key, value.as_deref())?;
            }
            write_objects(&txn, &batch.overlay, &mut saver)?;
        }
        batch.points.write(&txn)?;
        write_rest(&txn, &batch.dirty, &batch.state)?;
        txn.commit()?;
        Ok(())
    };
    write().map_err(|error| IoFault::store("write the metadata store", &error))
}

/// The rows that are no part of what points show.
fn write_rest(
    txn: &redb::WriteTransaction,
    dirty_rows: &[crate::dirty::Row],
    state: &[u8],
) -> Result<(), redb::Error> {
    let mut dirty = txn.open_table(DIRTY)?;
    for (key, value) in dirty_rows {
        put_plain(&mut dirty, key, value.as_deref())?;
    }
    put_plain(&mut txn.open_table(STATE)?, STATE_KEY, Some(state))
}

type TableForWriting<'txn> = redb::Table<'txn, &'static [u8], &'static [u8]>;

fn put_plain(
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

/// As [`put_plain`], for a row that points show.
fn put(
    table: &mut TableForWriting<'_>,
    (saver, kind): (&mut Saver<'_>, Kind),
    key: &[u8],
    value: Option<&[u8]>,
) -> Result<(), redb::Error> {
    let row = value.map(|value| seal(key, value));
    let old = match &row {
        Some(row) => table.insert(key, &row[..])?,
        None => table.remove(key)?,
    };
    let old = old.as_ref().map(redb::AccessGuard::value);
    if old != row.as_deref() {
        saver.keep(kind, key, old)?;
    }
    Ok(())
}

/// Removes the checksums of a range of an object's extents.
fn remove_sums(
    sums: &mut TableForWriting<'_>,
    saver: &mut Saver<'_>,
    (from, to): ([u8; 16], std::ops::Bound<&[u8]>),
) -> Result<(), redb::Error> {
    let mut kept = Ok(());
    let range = (std::ops::Bound::Included(&from[..]), to);
    sums.retain_in::<&[u8], _>(range, |key, old| {
        if kept.is_ok() {
            kept = saver.keep(Kind::Sums, key, Some(old));
        }
        false
    })?;
    kept
}

fn write_objects(
    txn: &redb::WriteTransaction,
    overlay: &Overlay,
    saver: &mut Saver<'_>,
) -> Result<(), redb::Error> {
    let mut objects = txn.open_table(OBJECTS)?;
    let mut sums = txn.open_table(SUMS)?;
    let mut inline = txn.open_table(INLINE)?;
    for (&object, change) in &overlay.objects {
        let id = object_key(object);
        if change.hides_below {
            let (from, to) = (sums_key(object, 0), sums_key(object, u64::MAX));
            let to = std::ops::Bound::Included(&to[..]);
            remove_sums(&mut sums, saver, (from, to))?;
        }
        for extents in change.zero_extents.iter() {
            let (from, to) = (
                sums_key(object, extents.start),
                sums_key(object, extents.end),
            );
            let to = std::ops::Bound::Excluded(&to[..]);
            remove_sums(&mut sums, saver, (from, to))?;
        }
        for (&extent, array) in &change.sums {
            let row = sums_to_row(array);
            let key = sums_key(object, extent);
            let row = (!row.is_empty()).then_some(&row[..]);
            put(&mut sums, (saver, Kind::Sums), &key, row)?;
        }
        let row = change.info.map(|info| info.encode());
        let row = row.as_ref().map(|row| &row[..]);
        put(&mut objects, (saver, Kind::Objects), &id, row)?;
        let is_inline = change.info.is_some_and(|info| info.form == Form::Inline);
        let bytes = change.inline.as_deref().filter(|_| is_inline);
        put(&mut inline, (saver, Kind::Inline), &id, bytes)?;
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
