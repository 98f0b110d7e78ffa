//! Giving object files back what a point has, and removing what a point kept.

use std::io;

use protocol::units::{BLOCK_BYTES, BLOCKS_PER_EXTENT, ObjectId};

use super::PointId;
use super::keep::{kept_files, read_matching};
use crate::error::{IoFault, ReadError};
use crate::files::DirtyDirs;
use crate::layout::{POINTS, object_path, point_dir, point_of_name, whole_path};
use crate::medium::{Medium, OpenMode};
use crate::overlay::{Form, Info};
use crate::store::View;
use crate::sum::BLOCK;

/// Blocks looked at in one go.
const RUN_BLOCKS: u64 = 256;

fn fault(error: io::Error) -> ReadError {
    IoFault::new("give objects back what a point has", &error).into()
}

/// Makes the object files those of the point `then`, which is read through `chain`; durable on
/// return. Begun anew after a crash it comes to the same: it changes nothing that it builds on.
pub(crate) fn restore_files<M: Medium>(
    medium: &M,
    chain: &[PointId],
    then: &View,
) -> Result<(), ReadError> {
    for object in then.objects_changed()? {
        match then.info(object)? {
            Some(info) if info.form == Form::File => {
                restore_object(medium, chain, then, (object, info))?;
            }
            _ => medium.unlink(&object_path(object)).map_err(fault)?,
        }
    }
    medium.sync_all().map_err(fault)
}

fn restore_object<M: Medium>(
    medium: &M,
    chain: &[PointId],
    then: &View,
    (object, info): (ObjectId, Info),
) -> Result<(), ReadError> {
    let dirs = DirtyDirs::default();
    let path = object_path(object);
    for id in chain {
        let whole = whole_path(id.0, object);
        match medium.open(&whole, OpenMode::Read) {
            Ok(_) => {
                // Its directories are made by making a file, which then goes.
                dirs.open_or_make(medium, object).map_err(fault)?;
                medium.unlink(&path).map_err(fault)?;
                medium.link(&whole, &path).map_err(fault)?;
                break;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(fault(error)),
        }
    }
    let kept = kept_files(medium, chain, object).map_err(fault)?;
    let file = dirs.open_or_make(medium, object).map_err(fault)?;
    let end = info.data_end.div_ceil(BLOCK_BYTES);
    let len = medium.len(&file).map_err(fault)?;
    if len > end * BLOCK_BYTES {
        medium.set_len(&file, end * BLOCK_BYTES).map_err(fault)?;
    }
    for extent in then.extents_changed(object)? {
        let sums = then.sums(object, extent)?;
        let first = extent * BLOCKS_PER_EXTENT;
        let last = end.min(first + BLOCKS_PER_EXTENT);
        for start in (first..last).step_by(RUN_BLOCKS as usize) {
            let blocks = start..last.min(start + RUN_BLOCKS);
            let at = ((start - first) as usize).min(sums.len());
            let run = Run {
                medium,
                file: &file,
                kept: &kept,
            };
            run.restore(blocks, &sums[at..]).map_err(fault)?;
        }
    }
    Ok(())
}

struct Run<'a, M: Medium> {
    medium: &'a M,
    file: &'a M::File,
    kept: &'a [M::File],
}

impl<M: Medium> Run<'_, M> {
    /// Writes the kept ones of these blocks, and frees those that are zero.
    fn restore(&self, blocks: std::ops::Range<u64>, sums: &[u32]) -> io::Result<()> {
        let count = (blocks.end - blocks.start) as usize;
        let mut content = vec![0; count * BLOCK];
        let missing = read_matching(self.medium, self.kept, &blocks, sums, &mut content);
        let zero = |at: usize| sums.get(at).copied().unwrap_or(0) == 0;
        let mut at = 0;
        while at < count {
            let is = |at: usize| (zero(at), missing.contains(&at));
            let kind = is(at);
            let run = (at..count).take_while(|next| is(*next) == kind).count();
            let offset = (blocks.start + at as u64) * BLOCK_BYTES;
            match kind {
                (true, _) => self.free(offset, (run * BLOCK) as u64)?,
                // Not kept: the file's own still is what it was, or was damaged then.
                (false, true) => {}
                (false, false) => {
                    let data = &content[at * BLOCK..(at + run) * BLOCK];
                    self.medium.write_at(self.file, offset, data)?;
                }
            }
            at += run;
        }
        Ok(())
    }

    fn free(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = (offset + len).min(self.medium.len(self.file)?);
        if offset < end {
            self.medium.punch(self.file, offset, end - offset)?;
        }
        Ok(())
    }
}

/// Removes the files that a point kept. Not durable: what comes back is removed at the next opening.
pub(crate) fn remove_files<M: Medium>(medium: &M, id: PointId) -> io::Result<()> {
    let outer = point_dir(id.0);
    for inner in list(medium, &outer)? {
        let inner = format!("{outer}/{inner}");
        for name in list(medium, &inner)? {
            medium.unlink(&format!("{inner}/{name}"))?;
        }
        medium.remove_dir(&inner)?;
    }
    medium.remove_dir(&outer)
}

fn list<M: Medium>(medium: &M, path: &str) -> io::Result<Vec<String>> {
    match medium.list(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}

/// Removes the files of points that are not in `known`.
pub(crate) fn remove_strangers<M: Medium>(medium: &M, known: &[PointId]) -> io::Result<()> {
    for name in list(medium, POINTS)? {
        match point_of_name(&name).map(PointId) {
            Some(id) if !known.contains(&id) => remove_files(medium, id)?,
            _ => {}
        }
    }
    Ok(())
}
