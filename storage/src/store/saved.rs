//! Rows that points put aside, and the rows of the points themselves.

use redb::{Database, ReadableTable};

use super::view::Kind;
use super::{Definition, TableForWriting, put_plain, unseal, write_rest};
use crate::error::{IoFault, ReadError};
use crate::points::{PointId, PointRow};

pub(super) const POINTS: Definition = Definition::new("points");
pub(super) const SAVED: Definition = Definition::new(NAME);
pub(super) const NAME: &str = "saved";
/// The row of table `points` that holds the next point's id.
pub(super) const NEXT_KEY: &[u8] = b"next";
/// Bytes of a saved row's key before the key that the row had.
pub(super) const PREFIX_BYTES: usize = 9;

/// A row of table `saved`: which point, which table, which key there.
pub(crate) fn saved_key(point: PointId, kind: Kind, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(PREFIX_BYTES + key.len());
    out.extend_from_slice(&point.0.to_be_bytes());
    out.push(kind.byte());
    out.extend_from_slice(key);
    out
}

/// Past the last row of a kind.
pub(super) fn kind_end(point: PointId, kind: Kind) -> Vec<u8> {
    let mut out = point.0.to_be_bytes().to_vec();
    out.push(kind.byte() + 1);
    out
}

/// What a row of table `saved` says: the row that was there, as it was stored, or that there was
/// none.
pub(super) fn old_row<'a>(saved_key: &[u8], row: &'a [u8]) -> Result<Option<&'a [u8]>, ReadError> {
    match unseal(NAME, saved_key, row)?.split_first() {
        Some((0, [])) => Ok(None),
        Some((1, old)) => Ok(Some(old)),
        _ => Err(ReadError::CorruptRow {
            table: NAME,
            key: saved_key.to_vec(),
        }),
    }
}

fn saved_value(old: Option<&[u8]>) -> Vec<u8> {
    match old {
        None => vec![0],
        Some(old) => [&[1], old].concat(),
    }
}

/// Puts aside what rows were before a transaction changes them, once.
pub(super) struct Saver<'txn> {
    /// `None` where no point is alive.
    table: Option<TableForWriting<'txn>>,
    chain: Vec<PointId>,
}

impl<'txn> Saver<'txn> {
    pub(super) fn open(
        txn: &'txn redb::WriteTransaction,
        chain: &[PointId],
    ) -> Result<Self, redb::Error> {
        let table = match chain {
            [] => None,
            _ => Some(txn.open_table(SAVED)?),
        };
        Ok(Self {
            table,
            chain: chain.to_vec(),
        })
    }

    pub(super) fn keep(
        &mut self,
        kind: Kind,
        key: &[u8],
        old: Option<&[u8]>,
    ) -> Result<(), redb::Error> {
        let (Some(table), Some(newest)) = (&mut self.table, self.chain.last()) else {
            return Ok(());
        };
        for id in &self.chain {
            if table.get(&saved_key(*id, kind, key)[..])?.is_some() {
                return Ok(());
            }
        }
        let saved_key = saved_key(*newest, kind, key);
        put_plain(table, &saved_key, Some(&saved_value(old)))
    }
}

/// What a checkpoint does to points.
#[derive(Debug, Default)]
pub(crate) struct Points {
    /// The points through which the newest living one is read: where old rows go.
    pub(crate) chain: Vec<PointId>,
    /// Rows that are new or changed.
    pub(crate) rows: Vec<PointRow>,
    /// Points that go, with all that they put aside.
    pub(crate) removed: Vec<PointId>,
    /// The next point's id, where it changes.
    pub(crate) next: Option<PointId>,
}

impl Points {
    pub(super) fn write(&self, txn: &redb::WriteTransaction) -> Result<(), redb::Error> {
        if self.rows.is_empty() && self.removed.is_empty() && self.next.is_none() {
            return Ok(());
        }
        let mut points = txn.open_table(POINTS)?;
        for row in &self.rows {
            put_plain(&mut points, &row.id.0.to_be_bytes(), Some(&row.encode()))?;
        }
        if let Some(next) = self.next {
            put_plain(&mut points, NEXT_KEY, Some(&next.0.to_be_bytes()))?;
        }
        let mut saved = txn.open_table(SAVED)?;
        for id in &self.removed {
            put_plain(&mut points, &id.0.to_be_bytes(), None)?;
            remove_saved(&mut saved, *id)?;
        }
        Ok(())
    }
}

fn remove_saved(saved: &mut TableForWriting<'_>, id: PointId) -> Result<(), redb::Error> {
    let (low, high) = (id.0.to_be_bytes(), (id.0 + 1).to_be_bytes());
    saved.retain_in(&low[..]..&high[..], |_, _| false)?;
    Ok(())
}

/// Writes what `points` says and nothing else; durable on return.
pub(crate) fn write_points(database: &Database, points: &Points) -> Result<(), IoFault> {
    let write = || -> Result<(), redb::Error> {
        let mut txn = database.begin_write()?;
        txn.set_quick_repair(true);
        points.write(&txn)?;
        txn.commit()?;
        Ok(())
    };
    write().map_err(|error| IoFault::store("write the metadata store", &error))
}

/// Gives every row that the points in `chain` put aside its old content, the first point's where
/// several did; and the store its `state`, in one durable transaction. `points` is done with it.
pub(crate) fn restore_rows(
    database: &Database,
    chain: &[PointId],
    points: &Points,
    dirty: &[crate::dirty::Row],
    state: &[u8],
) -> Result<(), IoFault> {
    let write = || -> Result<(), redb::Error> {
        let mut txn = database.begin_write()?;
        txn.set_quick_repair(true);
        // Newest first: an older point's row is the one that counts.
        for id in chain.iter().rev() {
            let saved = txn.open_table(SAVED)?;
            for kind in Kind::ALL {
                let mut table = txn.open_table(kind.table())?;
                let (low, high) = (saved_key(*id, kind, &[]), kind_end(*id, kind));
                for row in saved.range(&low[..]..&high[..])? {
                    let (key, value) = row?;
                    let old = old_row(key.value(), value.value())
                        .map_err(|error| redb::Error::Corrupted(error.to_string()))?;
                    let key = &key.value()[PREFIX_BYTES..];
                    match old {
                        Some(old) => table.insert(key, old)?,
                        None => table.remove(key)?,
                    };
                }
            }
        }
        {
            let mut saved = txn.open_table(SAVED)?;
            for id in chain {
                remove_saved(&mut saved, *id)?;
            }
        }
        points.write(&txn)?;
        write_rest(&txn, dirty, state)?;
        txn.commit()?;
        Ok(())
    };
    write().map_err(|error| IoFault::store("go back to a point", &error))
}
