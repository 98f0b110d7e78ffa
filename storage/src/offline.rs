//! Tools for a brick that nobody serves: what it is, whether it is whole, and clearing it.
//!
//! Everything but [`wipe`] reads only. To copy files out, open the brick with
//! [`crate::open_brick_read_only`] and read.

use std::collections::BTreeSet;
use std::path::Path;

use bytes::Bytes;
use protocol::ids::{BrickId, PoolId};
use protocol::units::{BLOCK_BYTES, BLOCKS_PER_EXTENT, ObjectId};
use protocol::volume::VolumeSpec;

use crate::brick::Brick;
use crate::error::{IoFault, OpenError, ReadError};
use crate::layout::{DIRECTORY, LOCK, OBJECTS, object_of_name};
use crate::medium::{EngineChoice, Medium};
use crate::place::open_medium;
use crate::superblock::read_superblock;

/// What a brick is, from its superblock alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrickInfo {
    /// Version of the format.
    pub format: u32,
    /// Its pool.
    pub pool: PoolId,
    /// Its id.
    pub brick: BrickId,
    /// Its place in the volume's list of replicas.
    pub replica: u8,
    /// Its volume, as it was configured when this was last written.
    pub spec: VolumeSpec,
    /// The volume was deleted.
    pub deleted: bool,
    /// It was closed in order.
    pub clean: bool,
    /// A process has it open.
    pub in_use: bool,
    /// The replication layer's state.
    pub state: Bytes,
}

/// What the brick in the directory `path` is. Reads the superblock and nothing else.
pub fn info(path: &Path) -> Result<BrickInfo, OpenError> {
    let medium = open_medium(path, EngineChoice::Threads)?;
    let superblock = read_superblock(&medium)?;
    Ok(BrickInfo {
        format: superblock.format,
        pool: superblock.identity.pool,
        brick: superblock.identity.brick,
        replica: superblock.identity.replica,
        spec: superblock.identity.spec,
        deleted: superblock.deleted,
        clean: superblock.clean,
        in_use: is_in_use(&medium)?,
        state: superblock.state,
    })
}

/// Whether a process holds the lock. Takes it for a moment, where it is free.
fn is_in_use<M: Medium>(medium: &M) -> Result<bool, OpenError> {
    match medium.lock(LOCK) {
        Ok(lock) => Ok(lock.is_none()),
        // Nobody can have it open for writing there.
        Err(error) if error.kind() == std::io::ErrorKind::ReadOnlyFilesystem => Ok(false),
        Err(error) => Err(IoFault::new("look at the brick's lock", &error).into()),
    }
}

/// Something that is wrong with a brick.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    /// Bytes do not match their checksum, or cannot be read.
    #[error(transparent)]
    Unreadable(#[from] ReadError),
    /// A count does not agree with what it counts.
    #[error("object {object} counts {counted} blocks and has {found}")]
    Count {
        /// The object.
        object: ObjectId,
        /// What the store says.
        counted: u64,
        /// What there is.
        found: u64,
    },
    /// The brick's sum of used blocks is wrong.
    #[error("the brick counts {counted} used blocks and has {found}")]
    Total {
        /// What the store says.
        counted: u64,
        /// What there is.
        found: u64,
    },
    /// Something is wrong with what a retained point shows.
    #[error("retained point {point}: {what}")]
    InPoint {
        /// The point.
        point: crate::PointId,
        /// What it is.
        what: Box<Self>,
    },
    /// Records in the journal that are still kept cannot be read.
    #[error("the journal cannot be read: {0}")]
    Journal(crate::error::BrickError),
}

impl Finding {
    /// Whether data is affected, and not only a count.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Unreadable(_) => true,
            Self::InPoint { what, .. } => what.is_damage(),
            _ => false,
        }
    }
}

/// What a check looked at and found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckReport {
    /// Objects looked at.
    pub objects: u64,
    /// Blocks read.
    pub blocks: u64,
    /// Rows of the metadata store read.
    pub rows: u64,
    /// Records of the journal read.
    pub records: u64,
    /// What is wrong; at most [`FINDINGS_MAX`], then `more` counts.
    pub findings: Vec<Finding>,
    /// Findings that are not listed.
    pub more: u64,
    /// Files that belong to no object: space lost, nothing else.
    pub orphan_files: u64,
}

/// Most findings that a report lists.
pub const FINDINGS_MAX: usize = 1000;

impl CheckReport {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.findings.is_empty()
    }

    fn add(&mut self, finding: Finding) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        } else {
            self.more += 1;
        }
    }
}

/// Checks every checksum of the brick in the directory `path`: rows, blocks, journal, and blocks of
/// each retained point. Modifies
/// nothing; what the journal holds is replayed in memory. `progress` hears of each object.
/// Nobody may have the brick open.
pub fn check(
    path: &Path,
    progress: &mut dyn FnMut(&CheckReport),
) -> Result<CheckReport, OpenError> {
    let medium = open_medium(path, EngineChoice::Threads)?;
    if is_in_use(&medium)? {
        return Err(OpenError::InUse);
    }
    check_medium(medium, progress)
}

/// As [`check`], on any medium.
pub fn check_medium<M: Medium>(
    medium: M,
    progress: &mut dyn FnMut(&CheckReport),
) -> Result<CheckReport, OpenError> {
    let (mut brick, _) = Brick::open_read_only(medium.clone())?;
    let mut report = CheckReport::default();
    brick.check_rows(&mut report)?;
    check_objects(&brick, &mut report, progress)?;
    for point in brick.points() {
        let Ok(view) = brick.view(point.id) else {
            continue;
        };
        let before = report.findings.len();
        check_objects(&view, &mut report, progress)?;
        for finding in report.findings.drain(before..).collect::<Vec<_>>() {
            report.findings.push(Finding::InPoint {
                point: point.id,
                what: Box::new(finding),
            });
        }
    }
    check_journal(&mut brick, &mut report);
    report.orphan_files = count_orphans(&medium, &brick)?;
    Ok(report)
}

/// Reads every object of a brick, or of what a point shows.
fn check_objects<M: Medium>(
    brick: &Brick<M>,
    report: &mut CheckReport,
    progress: &mut dyn FnMut(&CheckReport),
) -> Result<(), OpenError> {
    let mut after = None;
    let mut total = 0;
    loop {
        let objects = brick.objects_after(after, 256)?;
        let Some(last) = objects.last() else {
            break;
        };
        after = Some(*last);
        for object in objects {
            total += check_object(brick, object, report);
            report.objects += 1;
            progress(report);
        }
    }
    let counted = brick.used_bytes() / BLOCK_BYTES;
    if counted != total {
        let found = total;
        report.add(Finding::Total { counted, found });
    }
    Ok(())
}

/// Reads every block of an object; returns how many are not zero.
fn check_object<M: Medium>(brick: &Brick<M>, object: ObjectId, report: &mut CheckReport) -> u64 {
    let (end, counted) = match (brick.data_end(object), brick.allocated_bytes(object)) {
        (Ok(end), Ok(bytes)) => (end, bytes / BLOCK_BYTES),
        (Err(error), _) | (_, Err(error)) => {
            report.add(error.into());
            return 0;
        }
    };
    let mut found = 0;
    for extent in 0..end.div_ceil(BLOCK_BYTES * BLOCKS_PER_EXTENT) {
        let sums = match brick.block_sums(object, extent) {
            Ok(sums) => sums,
            Err(error) => {
                report.add(error.into());
                continue;
            }
        };
        for (block, sum) in (extent * BLOCKS_PER_EXTENT..).zip(&sums) {
            if *sum == 0 {
                continue;
            }
            found += 1;
            report.blocks += 1;
            let offset = block * BLOCK_BYTES;
            if let Err(error) = brick.read_now(object, offset, BLOCK_BYTES as u32) {
                report.add(error.into());
            }
        }
    }
    if found != counted {
        report.add(Finding::Count {
            object,
            counted,
            found,
        });
    }
    found
}

/// Reads every record that the journal says it keeps. Where its older part is broken, it only
/// keeps less; the part after the last checkpoint was replayed already.
fn check_journal<M: Medium>(brick: &mut Brick<M>, report: &mut CheckReport) {
    let mut after = protocol::units::Sequence(brick.oldest_kept().0.saturating_sub(1));
    while after < brick.applied() {
        match brick.read_records(after, 4 << 20) {
            Ok(records) => {
                report.records += records.len() as u64;
                match records.last() {
                    Some(last) => after = last.record.sequence,
                    None => return,
                }
            }
            // Damage of a block that the journal only refers to was reported with the block.
            Err(crate::error::BrickError::Read(_)) => return,
            Err(error) => {
                report.add(Finding::Journal(error));
                return;
            }
        }
    }
}

fn count_orphans<M: Medium>(medium: &M, brick: &Brick<M>) -> Result<u64, OpenError> {
    let list = |path: &str| -> Result<Vec<String>, OpenError> {
        medium
            .list(path)
            .map_err(|error| IoFault::new("list the objects", &error).into())
    };
    let mut orphans = 0;
    for outer in list(OBJECTS)? {
        let outer = format!("{OBJECTS}/{outer}");
        for inner in list(&outer)? {
            let names: BTreeSet<String> = list(&format!("{outer}/{inner}"))?.into_iter().collect();
            for name in names {
                let known = match object_of_name(&name) {
                    Some(object) => brick.exists(object)?,
                    None => false,
                };
                orphans += u64::from(!known);
            }
        }
    }
    Ok(orphans)
}

/// Why a brick was not wiped. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum WipeError {
    /// It is not one, or cannot be looked at.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Its volume was not deleted.
    #[error("the brick holds data of volume {volume}, which was not deleted")]
    NotDeleted {
        /// The volume's name.
        volume: String,
    },
    /// The medium failed.
    #[error(transparent)]
    Io(#[from] IoFault),
}

/// Clears the directory `path` of its brick, so that a new one can be made there. One whose volume
/// was not deleted only with `force`, one that is in use never.
pub fn wipe(path: &Path, force: bool) -> Result<(), WipeError> {
    let medium = open_medium(path, EngineChoice::Threads)?;
    match read_superblock(&medium) {
        Ok(superblock) if superblock.deleted || force => {}
        Ok(superblock) => {
            return Err(WipeError::NotDeleted {
                volume: superblock.identity.spec.name,
            });
        }
        // Damaged, of another format, or half made: there may be data in it.
        Err(_) if force => {}
        Err(error) => return Err(error.into()),
    }
    let lock = medium
        .lock(LOCK)
        .map_err(|error| IoFault::new("lock the brick", &error))?;
    if lock.is_none() {
        return Err(OpenError::InUse.into());
    }
    // The superblock first: an interrupted wipe leaves no brick that looks whole.
    let fault = |error: std::io::Error| IoFault::new("remove the brick", &error);
    medium.unlink(crate::layout::SUPERBLOCK).map_err(fault)?;
    medium.sync_dir("").map_err(fault)?;
    std::fs::remove_dir_all(path.join(DIRECTORY)).map_err(fault)?;
    Ok(())
}
