//! What differs between two sides that went on alone, by name (ONE-3): for operators who decide
//! which one stays, or look for what was given up.
//!
//! While a split brain is open each side names what its own map for the other holds. Of a side that
//! was given up, its point tells what changed since. Both are read from states of the last
//! checkpoint, beside the volume's thread.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use namespace::{ExecuteError, Inode, about, inode_of, walk};
use protocol::report::{Difference, DifferenceKind, Differences};
use protocol::units::{BLOCK_BYTES, BLOCKS_PER_EXTENT, ObjectId, Sequence, Timestamp};
use storage::{Brick, DirtyItem, Medium, PointId, RangeSet, ReadError};

use super::CommandError;
use super::driver::{Driver, Shared, index};
use super::keys::Keys;

/// Most things of a map that are looked at; more count as "everything may differ".
const ITEMS_MAX: usize = 1 << 18;
/// Most bytes of rows in one answer.
const ROWS_BYTES_MAX: usize = 1 << 20;
/// How the two sides of a point are called.
const GIVEN_UP: &str = "given-up";
const VOLUME: &str = "volume";

type Failed = ExecuteError<ReadError>;

/// What was touched.
#[derive(Default)]
struct Touched {
    objects: BTreeMap<ObjectId, Object>,
}

#[derive(Default)]
struct Object {
    metadata: bool,
    blocks: RangeSet,
}

impl Touched {
    fn block_range(&mut self, object: ObjectId, blocks: Range<u64>) {
        let object = self.objects.entry(object).or_default();
        object.blocks.insert(blocks);
    }

    /// A key, as each of the states has it.
    fn key<M: Medium>(&mut self, key: &[u8], states: &[&Brick<M>]) -> Result<(), ReadError> {
        let values = states.iter().map(|state| state.get(key));
        let values = values.collect::<Result<Vec<_>, _>>()?;
        if values.len() > 1 && values.windows(2).all(|pair| pair[0] == pair[1]) {
            return Ok(());
        }
        for value in values {
            if let Some(object) = about(key, value.as_deref()) {
                self.objects.entry(object).or_default().metadata = true;
            }
        }
        Ok(())
    }
}

/// Rows that are collected up to a bound.
struct Rows {
    rows: BTreeSet<Difference>,
}

impl Rows {
    fn finish(self, max: usize, complete: bool) -> Differences {
        let total = self.rows.len();
        let mut bytes = 0;
        let fits = |row: &Difference| {
            bytes += 200 + row.path.as_ref().map_or(0, String::len);
            bytes <= ROWS_BYTES_MAX
        };
        let rows = self.rows.into_iter().take(max).take_while(fits);
        let differences: Vec<_> = rows.collect();
        Differences {
            more: (total - differences.len()) as u64,
            differences,
            complete,
        }
    }
}

/// Paths of objects; a name that several share is one of them.
fn paths<M: Medium>(
    state: &Brick<M>,
    wanted: &BTreeSet<ObjectId>,
) -> Result<BTreeMap<ObjectId, String>, Failed> {
    let mut found = BTreeMap::new();
    if wanted.contains(&ObjectId::ROOT) {
        found.insert(ObjectId::ROOT, "/".to_owned());
    }
    walk(&Keys(state), &mut |path, object, _| {
        if wanted.contains(&object) {
            let text = || String::from_utf8_lossy(path).into_owned();
            found.entry(object).or_insert_with(text);
        }
        found.len() < wanted.len()
    })?;
    Ok(found)
}

/// What there is of an object: its size, where it has one.
fn size_in<M: Medium>(state: &Brick<M>, object: ObjectId) -> Result<Option<u64>, Failed> {
    let inode: Option<Inode> = inode_of(&Keys(state), object)?;
    Ok(inode.map(|inode| inode.size))
}

/// When an object was made.
fn born<M: Medium>(state: &Brick<M>, object: ObjectId) -> Result<Option<Timestamp>, Failed> {
    let inode: Option<Inode> = inode_of(&Keys(state), object)?;
    Ok(inode.map(|inode| inode.btime))
}

fn data_rows(
    rows: &mut Rows,
    object: ObjectId,
    path: Option<&String>,
    (blocks, size, on): (&RangeSet, u64, &str),
) {
    for range in blocks.iter() {
        let offset = range.start.saturating_mul(BLOCK_BYTES);
        let end = range.end.saturating_mul(BLOCK_BYTES).min(size.max(offset));
        rows.rows.insert(Difference {
            path: path.cloned(),
            kind: DifferenceKind::Data,
            offset,
            length: end - offset,
            on: on.to_owned(),
            object: object.0,
        });
    }
}

fn whole_row(
    object: ObjectId,
    path: Option<&String>,
    (kind, length, on): (DifferenceKind, u64, &str),
) -> Difference {
    Difference {
        path: path.cloned(),
        kind,
        offset: 0,
        length,
        on: on.to_owned(),
        object: object.0,
    }
}

/// What this side changed after `common`. `mine` and `theirs` are the nodes' names.
fn of_map<M: Medium>(
    state: &Brick<M>,
    items: Vec<DirtyItem>,
    (common, mine, theirs): (Sequence, &str, &str),
    (max, complete): (usize, bool),
) -> Result<Differences, Failed> {
    let mut touched = Touched::default();
    for item in items {
        match item {
            DirtyItem::Blocks { object, start, end } => touched.block_range(object, start..end),
            DirtyItem::Dropped { object } => touched.block_range(object, 0..0),
            DirtyItem::Key { key } => touched.key(&key, &[state]).map_err(ExecuteError::Store)?,
        }
    }
    let wanted = touched.objects.keys().copied().collect();
    let names = paths(state, &wanted)?;
    let mut rows = Rows {
        rows: BTreeSet::new(),
    };
    for (object, what) in &touched.objects {
        let path = names.get(object);
        // Ids tell when an object was made: after the last common record it is this side's own.
        let of_the_start = [ObjectId::ROOT, ObjectId::DISK].contains(object);
        let own = object.made_at() > common && !of_the_start;
        match (size_in(state, *object)?, own) {
            (None, true) => {} // it came and went
            (None, false) => {
                let kind = (DifferenceKind::OnlyOneSide, 0, theirs);
                rows.rows.insert(whole_row(*object, None, kind));
            }
            (Some(size), true) => {
                let kind = (DifferenceKind::OnlyOneSide, size, mine);
                rows.rows.insert(whole_row(*object, path, kind));
            }
            (Some(size), false) => {
                if what.metadata {
                    let kind = (DifferenceKind::Metadata, 0, mine);
                    rows.rows.insert(whole_row(*object, path, kind));
                }
                data_rows(&mut rows, *object, path, (&what.blocks, size, mine));
            }
        }
    }
    Ok(rows.finish(max, complete))
}

/// How a point differs from the last checkpoint.
fn of_point<M: Medium>(then: &Brick<M>, now: &Brick<M>, max: usize) -> Result<Differences, Failed> {
    let (items, complete) = then.kept_rows(ITEMS_MAX).map_err(ExecuteError::Store)?;
    let mut touched = Touched::default();
    for item in items {
        match item {
            DirtyItem::Blocks { object, start, .. } => {
                let extent = start / BLOCKS_PER_EXTENT;
                let sums = |state: &Brick<M>| state.block_sums(object, extent);
                let (old, new) = (sums(then), sums(now));
                let (old, new) = (
                    old.map_err(ExecuteError::Store)?,
                    new.map_err(ExecuteError::Store)?,
                );
                for block in 0..old.len().max(new.len()) {
                    if old.get(block).unwrap_or(&0) != new.get(block).unwrap_or(&0) {
                        let at = start + block as u64;
                        touched.block_range(object, at..at + 1);
                    }
                }
            }
            DirtyItem::Key { key } => touched
                .key(&key, &[then, now])
                .map_err(ExecuteError::Store)?,
            DirtyItem::Dropped { .. } => {}
        }
    }
    let wanted: BTreeSet<ObjectId> = touched.objects.keys().copied().collect();
    let (was, is) = (paths(then, &wanted)?, paths(now, &wanted)?);
    let mut rows = Rows {
        rows: BTreeSet::new(),
    };
    for (object, what) in &touched.objects {
        let sizes = (size_in(then, *object)?, size_in(now, *object)?);
        let (size, on, path) = match sizes {
            (None, None) => continue,
            (Some(size), None) => (size, GIVEN_UP, was.get(object)),
            (None, Some(size)) => (size, VOLUME, is.get(object)),
            (Some(old), Some(new)) if born(then, *object)? != born(now, *object)? => {
                // Sides of older versions could give two objects one number.
                let kind = (DifferenceKind::OnlyOneSide, old, GIVEN_UP);
                rows.rows.insert(whole_row(*object, was.get(object), kind));
                (new, VOLUME, is.get(object))
            }
            (Some(old), Some(new)) => {
                let path = was.get(object).or_else(|| is.get(object));
                if what.metadata {
                    let kind = (DifferenceKind::Metadata, 0, VOLUME);
                    rows.rows.insert(whole_row(*object, path, kind));
                }
                let data = (&what.blocks, old.max(new), VOLUME);
                data_rows(&mut rows, *object, path, data);
                continue;
            }
        };
        let kind = (DifferenceKind::OnlyOneSide, size, on);
        rows.rows.insert(whole_row(*object, path, kind));
    }
    Ok(rows.finish(max, complete))
}

fn unreadable(error: impl std::fmt::Display) -> CommandError {
    CommandError::refused(
        "differences",
        format!("what differs cannot be read: {error}"),
        "look at `cairn volume status`, and try again",
    )
}

impl<M: Medium> Driver<M> {
    /// The things that the other side lacks, and whether these are all.
    fn map_for(&mut self, replica: usize, common: Sequence) -> (Vec<DirtyItem>, bool) {
        // The map also has what the other one may not have had on stable storage; the journal
        // tells, as far as it reaches back.
        if let Ok(Some(items)) = self.brick.touched_since(common) {
            return (items, true);
        }
        let all = self.brick.dirty_summary(index(replica)).all;
        let items = self.brick.next_dirty(index(replica), None, ITEMS_MAX);
        let complete = !all && items.len() < ITEMS_MAX;
        (items, complete)
    }

    fn last_common(&self, with: usize) -> Option<Sequence> {
        let split = self.machine.split_with(with)?;
        Some(split.common)
    }
}

fn value(found: &Differences) -> serde_json::Value {
    serde_json::to_value(found).unwrap_or_default()
}

/// See [`protocol::node_rpc::VolumeCommand::Differences`].
pub(super) async fn open<M: Medium>(
    shared: &Shared<M>,
    with: usize,
    max: usize,
) -> Result<serde_json::Value, CommandError> {
    super::kept::checkpoint(shared).await?;
    let (state, (items, complete), about) = {
        let mut d = shared.borrow_mut();
        let Some(common) = d.links.get(with).and_then(|_| d.last_common(with)) else {
            return Err(CommandError::refused(
                "no_split_brain",
                "this replica knows of no split brain with that one just now",
                "look at `cairn volume status`",
            ));
        };
        let name = |replica: usize| d.spec.replicas[replica].node_name.clone();
        let about = (common, name(d.me), name(with));
        let items = d.map_for(with, common);
        (d.brick.last_checkpoint(), items, about)
    };
    let found = super::kept::beside(shared, state, move |state| {
        let (common, mine, theirs) = about;
        of_map(state, items, (common, &mine, &theirs), (max, complete))
    });
    let found = found.await.ok_or_else(|| unreadable("the replica stops"))?;
    found.map(|found| value(&found)).map_err(unreadable)
}

/// See [`protocol::node_rpc::VolumeCommand::KeptDifferences`].
pub(super) async fn kept<M: Medium>(
    shared: &Shared<M>,
    point: u64,
    max: usize,
) -> Result<serde_json::Value, CommandError> {
    super::kept::checkpoint(shared).await?;
    let (then, now) = {
        let d = shared.borrow();
        let then = d.brick.view(PointId(point)).map_err(unreadable)?;
        (then, d.brick.last_checkpoint())
    };
    let found = super::kept::beside(shared, (then, now), move |(then, now)| {
        of_point(then, now, max)
    });
    let found = found.await.ok_or_else(|| unreadable("the replica stops"))?;
    found.map(|found| value(&found)).map_err(unreadable)
}

/// See [`protocol::node_rpc::VolumeCommand::Names`].
pub(super) async fn names<M: Medium>(
    shared: &Shared<M>,
    objects: Vec<ObjectId>,
) -> Result<serde_json::Value, CommandError> {
    let state = shared.borrow().brick.last_checkpoint();
    let wanted: BTreeSet<ObjectId> = objects.into_iter().collect();
    let found = super::kept::beside(shared, state, move |state| {
        let names = paths(state, &wanted)?;
        let rows = names.into_iter().map(|(object, path)| (object.0, path));
        Ok::<_, Failed>(rows.collect::<BTreeMap<u64, String>>())
    });
    let found = found.await.ok_or_else(|| unreadable("the replica stops"))?;
    let found = found.map_err(unreadable)?;
    Ok(serde_json::to_value(found).unwrap_or_default())
}
