//! Keeping blocks of object files before they change, and reading what was kept.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protocol::units::{BLOCK_BYTES, BLOCKS_PER_EXTENT, ObjectId};

use super::PointId;
use crate::error::{IoFault, ReadError};
use crate::layout::{POINTS, kept_dir, kept_path, object_path, point_dir, whole_path};
use crate::medium::{Medium, OpenMode};
use crate::overlay::{Form, Info, ObjectOverlay, Overlay};
use crate::ranges::RangeSet;
use crate::store::View;
use crate::sum::{BLOCK, block_sum};
use crate::trickle::Trickle;

/// With more files than this one sync of everything is cheaper.
const SYNCS_MAX: usize = 16;
/// Most blocks copied at once.
const RUN_BLOCKS_MAX: usize = 256;
/// Most ranges of blocks that are remembered as kept; past it they are looked up again.
const SAFE_RANGES_MAX: usize = 1 << 16;

/// What the brick's thread and a checkpoint's share.
#[derive(Debug, Default)]
struct Shared {
    /// Blocks that may change: what the point needs of them is durable elsewhere.
    safe: Mutex<HashMap<ObjectId, RangeSet>>,
    /// Blocks copied since somebody last asked.
    copied: AtomicU64,
    /// There was no room to keep something, and the points are gone.
    given_up: AtomicBool,
}

impl Shared {
    fn safe(&self) -> MutexGuard<'_, HashMap<ObjectId, RangeSet>> {
        self.safe.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps what the newest living point needs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Keeping {
    /// Through these the point is read; the last one gets what is kept.
    pub(crate) chain: Vec<PointId>,
    /// Where room runs out, the points go, and not the brick.
    expendable: bool,
    /// The point's rows.
    then: View,
    shared: Arc<Shared>,
}

/// Rows that cannot be read are as lost to the point as to the brick.
fn or_nothing<T: Default>(read: Result<T, ReadError>) -> Result<T, ReadError> {
    match read {
        Err(ReadError::CorruptRow { .. }) => Ok(T::default()),
        other => other,
    }
}

fn as_io(error: ReadError) -> io::Error {
    match error {
        ReadError::Io(fault) | ReadError::Unreadable { source: fault, .. } => {
            crate::store::as_io(fault)
        }
        other => io::Error::other(other),
    }
}

fn missing_is_none<T>(opened: io::Result<T>) -> io::Result<Option<T>> {
    match opened {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Files and directories that must be durable before an object's file changes.
struct Written<M: Medium> {
    files: Vec<M::File>,
    dirs: BTreeSet<String>,
    safe: Vec<(ObjectId, Range<u64>)>,
    copied: u64,
}

impl Keeping {
    /// For the point that is read through `chain`, which is not empty.
    pub(crate) fn new(chain: Vec<PointId>, expendable: bool, now: &View) -> Self {
        Self {
            then: now.at_point(&chain),
            chain,
            expendable,
            shared: Arc::default(),
        }
    }

    /// The same point over a later checkpoint.
    pub(crate) fn refreshed(&self, now: &View) -> Self {
        Self {
            then: now.at_point(&self.chain),
            ..self.clone()
        }
    }

    /// Blocks copied since this was last asked.
    pub(crate) fn take_copied(&self) -> u64 {
        self.shared.copied.swap(0, Ordering::Relaxed)
    }

    /// Whether room ran out and the points are gone.
    pub(crate) fn is_given_up(&self) -> bool {
        self.shared.given_up.load(Ordering::Acquire)
    }

    /// The object's info, where the point has it in a file.
    fn file_info(&self, object: ObjectId) -> Result<Option<Info>, ReadError> {
        let info = or_nothing(self.then.info(object))?;
        Ok(info.filter(|info| info.form == Form::File))
    }

    /// Whether these blocks of the object's file may change at once.
    pub(crate) fn may_change(
        &self,
        object: ObjectId,
        blocks: Range<u64>,
    ) -> Result<bool, ReadError> {
        let Some(info) = self.file_info(object)? else {
            return Ok(true);
        };
        let end = blocks.end.min(info.data_end.div_ceil(BLOCK_BYTES));
        if blocks.start >= end {
            return Ok(true);
        }
        Ok(self.needed(object, blocks.start..end)?.is_empty())
    }

    /// Blocks of a range that the point needs and that are not known to be kept, with their
    /// checksums.
    fn needed(&self, object: ObjectId, blocks: Range<u64>) -> Result<Vec<(u64, u32)>, ReadError> {
        let mut open = RangeSet::default();
        open.insert(blocks.clone());
        if let Some(safe) = self.shared.safe().get(&object) {
            for range in safe.iter_within(blocks) {
                open.remove(range);
            }
        }
        let mut found = Vec::new();
        for range in open.iter() {
            let mut at = range.start;
            while at < range.end {
                let extent = at / BLOCKS_PER_EXTENT;
                let end = range.end.min((extent + 1) * BLOCKS_PER_EXTENT);
                let sums = or_nothing(self.then.sums(object, extent))?;
                let first = (at % BLOCKS_PER_EXTENT) as usize;
                let known = sums.iter().skip(first).zip(at..end);
                found.extend(known.filter(|(sum, _)| **sum != 0).map(|(s, b)| (b, *s)));
                at = end;
            }
        }
        Ok(found)
    }

    /// Keeps what the checkpoint of `overlay` is about to change in object files; durable on
    /// return. Where there is no room, the points go if they may, and `give_up` is told.
    pub(crate) fn keep<M: Medium>(
        &self,
        medium: &M,
        overlay: &Overlay,
        give_up: &dyn Fn() -> io::Result<()>,
    ) -> io::Result<()> {
        match self.keep_objects(medium, overlay) {
            Err(error)
                if self.expendable
                    && IoFault::new("keep what a point needs", &error).is_no_space() =>
            {
                tracing::warn!("no room to keep the state before the resync: it is given up");
                give_up()?;
                self.shared.given_up.store(true, Ordering::Release);
                Ok(())
            }
            other => other,
        }
    }

    fn keep_objects<M: Medium>(&self, medium: &M, overlay: &Overlay) -> io::Result<()> {
        let mut written = Written {
            files: Vec::new(),
            dirs: BTreeSet::new(),
            safe: Vec::new(),
            copied: 0,
        };
        for (&object, over) in &overlay.objects {
            let touched = over.hides_below || !over.blocks.is_empty() || !over.punch.is_empty();
            if touched && let Some(info) = self.file_info(object).map_err(as_io)? {
                self.keep_object(medium, (object, info), over, &mut written)?;
            }
        }
        written.sync(medium)?;
        self.shared
            .copied
            .fetch_add(written.copied, Ordering::Relaxed);
        let mut safe = self.shared.safe();
        if safe.values().map(RangeSet::len).sum::<usize>() > SAFE_RANGES_MAX {
            safe.clear();
        }
        for (object, blocks) in written.safe {
            safe.entry(object).or_default().insert(blocks);
        }
        Ok(())
    }

    fn keep_object<M: Medium>(
        &self,
        medium: &M,
        (object, info): (ObjectId, Info),
        over: &ObjectOverlay,
        written: &mut Written<M>,
    ) -> io::Result<()> {
        let end = info.data_end.div_ceil(BLOCK_BYTES);
        if over.hides_below {
            return self.keep_whole(medium, object, written);
        }
        let mut ranges = RangeSet::default();
        over.punch
            .iter_within(0..end)
            .for_each(|range| ranges.insert(range));
        over.blocks
            .range(..end)
            .for_each(|(block, _)| ranges.insert(*block..*block + 1));
        let mut needed = Vec::new();
        for range in ranges.iter() {
            needed.extend(self.needed(object, range).map_err(as_io)?);
        }
        if needed.is_empty() {
            return Ok(());
        }
        if self.whole(medium, object)?.is_some() {
            written.safe.push((object, 0..u64::MAX));
            return Ok(());
        }
        let mut copier = Copier {
            medium,
            object,
            newest: *self.chain.last().expect("a point is alive"),
            kept: kept_files(medium, &self.chain, object)?,
            current: missing_is_none(medium.open(&object_path(object), OpenMode::Read))?,
            target: None,
            trickle: Trickle::default(),
        };
        let mut rest = &needed[..];
        while let Some((&(first, _), _)) = rest.split_first() {
            let run = rest
                .iter()
                .zip(first..)
                .take(RUN_BLOCKS_MAX)
                .take_while(|((block, _), at)| block == at)
                .count();
            let (now, later) = rest.split_at(run);
            copier.copy(now, written)?;
            rest = later;
        }
        Ok(())
    }

    /// The file of an object that was dropped since the point, if there is one.
    fn whole<M: Medium>(&self, medium: &M, object: ObjectId) -> io::Result<Option<M::File>> {
        for id in &self.chain {
            let opened = medium.open(&whole_path(id.0, object), OpenMode::Read);
            if let Some(file) = missing_is_none(opened)? {
                return Ok(Some(file));
            }
        }
        Ok(None)
    }

    /// The file of an object that is dropped gets a second name.
    fn keep_whole<M: Medium>(
        &self,
        medium: &M,
        object: ObjectId,
        written: &mut Written<M>,
    ) -> io::Result<()> {
        let newest = *self.chain.last().expect("a point is alive");
        written.safe.push((object, 0..u64::MAX));
        if self.whole(medium, object)?.is_some() {
            return Ok(());
        }
        written.make_dirs(medium, newest, object)?;
        // Gone already, or never made: there is nothing to keep.
        missing_is_none(medium.link(&object_path(object), &whole_path(newest.0, object)))?;
        Ok(())
    }
}

impl<M: Medium> Written<M> {
    fn make_dirs(&mut self, medium: &M, point: PointId, object: ObjectId) -> io::Result<()> {
        let (outer, inner) = (point_dir(point.0), kept_dir(point.0, object));
        self.dirs.insert(inner.clone());
        for (dir, parent) in [(POINTS, ""), (&outer, POINTS), (&inner, &outer)] {
            if medium.make_dir(dir)? {
                self.dirs.insert(parent.to_owned());
            }
        }
        Ok(())
    }

    fn sync(&self, medium: &M) -> io::Result<()> {
        if self.files.len() + self.dirs.len() > SYNCS_MAX {
            return medium.sync_all();
        }
        self.files.iter().try_for_each(|file| medium.sync(file))?;
        self.dirs.iter().try_for_each(|dir| medium.sync_dir(dir))
    }
}

/// Copies blocks of one object.
struct Copier<'a, M: Medium> {
    medium: &'a M,
    object: ObjectId,
    newest: PointId,
    kept: Vec<M::File>,
    current: Option<M::File>,
    target: Option<M::File>,
    trickle: Trickle,
}

impl<M: Medium> Copier<'_, M> {
    /// Copies those of the neighbouring blocks in `run` that are not kept yet.
    fn copy(&mut self, run: &[(u64, u32)], written: &mut Written<M>) -> io::Result<()> {
        let (Some((first, _)), Some((last, _))) = (run.first(), run.last()) else {
            return Ok(());
        };
        let blocks = *first..*last + 1;
        let sums: Vec<u32> = run.iter().map(|(_, sum)| *sum).collect();
        let mut content = vec![0; run.len() * BLOCK];
        let missing = read_matching(self.medium, &self.kept, &blocks, &sums, &mut content);
        let found = match &self.current {
            Some(current) if !missing.is_empty() => {
                let current = std::slice::from_ref(current);
                // What is nowhere was damaged before; the point says so when it is read.
                let lost = read_matching(self.medium, current, &blocks, &sums, &mut content);
                missing
                    .into_iter()
                    .filter(|at| !lost.contains(at))
                    .collect()
            }
            _ => Vec::new(),
        };
        let mut rest = &found[..];
        while let Some((&at, _)) = rest.split_first() {
            let run = rest.iter().zip(at..).take_while(|(a, b)| *a == b).count();
            let target = self.target(written)?;
            let offset = (blocks.start + at as u64) * BLOCK_BYTES;
            let data = &content[at * BLOCK..(at + run) * BLOCK];
            self.trickle.write(self.medium, &target, offset, data)?;
            written.copied += run as u64;
            rest = &rest[run..];
        }
        written.safe.push((self.object, blocks));
        Ok(())
    }

    fn target(&mut self, written: &mut Written<M>) -> io::Result<M::File> {
        if let Some(file) = &self.target {
            return Ok(file.clone());
        }
        written.make_dirs(self.medium, self.newest, self.object)?;
        let path = kept_path(self.newest.0, self.object);
        let file = self.medium.open(&path, OpenMode::Create)?;
        written.files.push(file.clone());
        self.target = Some(file.clone());
        Ok(file)
    }
}

/// The files in which a point that is read through `chain` finds an object's blocks, besides the
/// object's own, in the order that counts.
pub(crate) fn kept_files<M: Medium>(
    medium: &M,
    chain: &[PointId],
    object: ObjectId,
) -> io::Result<Vec<M::File>> {
    let mut files = Vec::new();
    for id in chain {
        for path in [kept_path(id.0, object), whole_path(id.0, object)] {
            files.extend(missing_is_none(medium.open(&path, OpenMode::Read))?);
        }
    }
    Ok(files)
}

/// Fills `out` with the blocks that match their checksums, each from the first file where it does;
/// returns the places of those that match nowhere. A file that cannot be read matches nothing.
/// Blocks with checksum 0 are left as they are.
pub(crate) fn read_matching<M: Medium>(
    medium: &M,
    files: &[M::File],
    blocks: &Range<u64>,
    sums: &[u32],
    out: &mut [u8],
) -> Vec<usize> {
    let sum_of = |at: usize| sums.get(at).copied().unwrap_or(0);
    let count = (blocks.end - blocks.start) as usize;
    let mut missing: Vec<usize> = (0..count).filter(|at| sum_of(*at) != 0).collect();
    let mut content = vec![0; count * BLOCK];
    for file in files {
        if missing.is_empty() {
            break;
        }
        let Ok(got) = medium.read_at(file, blocks.start * BLOCK_BYTES, &mut content) else {
            continue;
        };
        content[got..].fill(0);
        missing.retain(|at| {
            let place = at * BLOCK..(at + 1) * BLOCK;
            let right = block_sum(&content[place.clone()]) == sum_of(*at);
            if right {
                out[place.clone()].copy_from_slice(&content[place]);
            }
            !right
        });
    }
    missing
}

/// Reads objects as a point has them.
#[derive(Debug, Clone)]
pub(crate) struct KeptBlocks {
    chain: Vec<PointId>,
}

impl KeptBlocks {
    pub(crate) fn new(chain: Vec<PointId>) -> Self {
        Self { chain }
    }

    /// Fills blocks of an object by their checksums; waits for the device.
    pub(crate) fn read<M: Medium>(
        &self,
        medium: &M,
        object: ObjectId,
        blocks: Range<u64>,
        sums: &[u32],
        out: &mut [u8],
    ) -> Result<(), ReadError> {
        let fault = |error| IoFault::new("read what a point kept", &error);
        let mut missing = Vec::new();
        // A block may be copied and changed between the look at the copies and at the file itself.
        for _ in 0..2 {
            let mut files = kept_files(medium, &self.chain, object).map_err(fault)?;
            let current = medium.open(&object_path(object), OpenMode::Read);
            files.extend(missing_is_none(current).map_err(fault)?);
            missing = read_matching(medium, &files, &blocks, sums, out);
            if missing.is_empty() {
                return Ok(());
            }
        }
        Err(ReadError::Corrupt {
            object,
            block: blocks.start + missing[0] as u64,
        })
    }
}
