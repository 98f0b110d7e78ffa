//! `cairn brick`: what a brick's directory holds, without any daemon. Nobody is locked in.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use daemon::volume::Keys;
use protocol::control::exit;
use protocol::units::BLOCK_BYTES;
use protocol::volume::{VolumeKind, VolumeSpec};
use serde_json::{Value, json};
use storage::{DirBrick, EngineChoice, Medium as _, OpenError, Point, PointKind, Superblock};

use super::brick_export;
use crate::args::{BrickCommand, Global, PointArg};
use crate::failure::Failure;
use crate::output::{Output, bytes_text};

/// Bytes read at once.
pub(super) const READ_BYTES: u64 = 1 << 20;
/// Objects between two words about progress.
const OBJECTS_BETWEEN_NOTES: u64 = 1000;
/// Damaged places that are told one by one.
const FAULTS_TOLD_MAX: usize = 100;

pub(super) fn run(global: &Global, output: &Output, command: BrickCommand) -> Result<u8, Failure> {
    match command {
        BrickCommand::Info { dir } => info(output, &dir),
        BrickCommand::Check { dir } => check(output, &dir),
        BrickCommand::Export { dir, dest, point } => brick_export::run(output, &dir, &dest, point),
        BrickCommand::Wipe { dir, force } => wipe(global, output, &dir, force),
    }
}

fn open_failure(dir: &Path, error: &OpenError) -> Failure {
    let hint = match error {
        OpenError::Missing { .. } | OpenError::NotADirectory { .. } => "Name a brick's directory.",
        OpenError::NotABrick { .. } => "`cairn volume info` tells where a volume's bricks are.",
        OpenError::InUse => "Stop its volume or its daemon first.",
        OpenError::Format { .. } => "Use the version of cairn that made it.",
        _ => "Its volume's other replicas may still be whole.",
    };
    Failure::refused("brick", format!("{}: {error}", dir.display()), hint)
}

pub(super) fn read_failure(error: &impl std::fmt::Display) -> Failure {
    Failure::refused(
        "brick_damaged",
        error,
        "`cairn brick check` finds all that is damaged; another replica may be whole.",
    )
}

fn superblock(dir: &Path) -> Result<Superblock, Failure> {
    storage::open_medium(dir, EngineChoice::Threads)
        .and_then(|medium| storage::read_superblock(&medium))
        .map_err(|error| open_failure(dir, &error))
}

/// Whether a daemon has it open. A file system that is read-only cannot be in use.
fn in_use(dir: &Path) -> Result<bool, Failure> {
    let medium = storage::open_medium(dir, EngineChoice::Threads)
        .map_err(|error| open_failure(dir, &error))?;
    match medium.lock(storage::layout::LOCK) {
        Ok(lock) => Ok(lock.is_none()),
        Err(error) if error.kind() == std::io::ErrorKind::ReadOnlyFilesystem => Ok(false),
        Err(error) => Err(Failure::refused(
            "brick",
            format!("{}: {error}", dir.display()),
            "Run the command as root.",
        )),
    }
}

/// Opens for reading, unless a daemon has it open.
pub(super) fn open(dir: &Path) -> Result<DirBrick, Failure> {
    superblock(dir)?;
    if in_use(dir)? {
        return Err(open_failure(dir, &OpenError::InUse));
    }
    storage::open_brick_read_only(dir)
        .map(|(brick, _)| brick)
        .map_err(|error| open_failure(dir, &error))
}

/// As [`open`], showing a retained point where one is asked for.
pub(super) fn open_at(dir: &Path, point: Option<PointArg>) -> Result<DirBrick, Failure> {
    let brick = open(dir)?;
    let Some(wanted) = point else {
        return Ok(brick);
    };
    let found = brick.points().into_iter().rfind(|point| match wanted {
        PointArg::Newest => true,
        PointArg::Number(number) => point.id.0 == number,
    });
    found
        .and_then(|point| brick.view(point.id).ok())
        .ok_or_else(|| {
            Failure::refused(
                "no_point",
                format!("{} has no such retained point", dir.display()),
                "`cairn brick info` lists a brick's points.",
            )
        })
}

fn kind_text(kind: VolumeKind) -> &'static str {
    match kind {
        VolumeKind::Fs => "fs",
        VolumeKind::Block => "block",
    }
}

/// The retained points; unknown while a daemon has the brick open.
fn points(dir: &Path, found: &Superblock, in_use: bool) -> Result<Option<Vec<Point>>, Failure> {
    if found.format == storage::layout::FORMAT_WITHOUT_POINTS {
        return Ok(Some(Vec::new()));
    }
    if in_use || found.deleted {
        return Ok(None);
    }
    open(dir).map(|brick| Some(brick.points()))
}

fn point_time(point: &Point) -> String {
    let since = Duration::from_nanos(point.as_of.0.max(0).unsigned_abs());
    daemon::events::time_text((UNIX_EPOCH + since).into())
}

fn point_kind(point: &Point) -> &'static str {
    match point.kind {
        PointKind::Resync => "before_resync",
        PointKind::GivenUp => "given_up",
    }
}

fn point_facts(point: &Point) -> Value {
    json!({
        "id": point.id.0, "state": point_kind(point), "as_of": point_time(point),
        "sequence": point.position.sequence.0, "used_bytes": point.used_bytes,
        "kept_bytes": point.kept_bytes,
    })
}

fn facts(dir: &Path, found: &Superblock, in_use: bool, points: Option<&[Point]>) -> Value {
    let identity = &found.identity;
    let spec = &identity.spec;
    json!({
        "directory": dir, "volume": spec.name, "volume_id": spec.id, "type": spec.kind,
        "pool": identity.pool, "brick": identity.brick, "replica": identity.replica,
        "node": node_of(spec, identity.replica), "size_bytes": spec.size_bytes,
        "replicas": spec.replicas, "deleted": found.deleted, "clean": found.clean,
        "in_use": in_use, "format": found.format,
        "points": points.map(|points| points.iter().map(point_facts).collect::<Vec<_>>()),
    })
}

fn node_of(spec: &VolumeSpec, replica: u8) -> Option<&str> {
    let place = spec.replicas.get(usize::from(replica))?;
    Some(&place.node_name)
}

fn info(output: &Output, dir: &Path) -> Result<u8, Failure> {
    let found = superblock(dir)?;
    let in_use = in_use(dir)?;
    let points = points(dir, &found, in_use)?;
    if output.json {
        output.value(&facts(dir, &found, in_use, points.as_deref()));
        return Ok(exit::DONE);
    }
    let identity = &found.identity;
    let spec = &identity.spec;
    output.line(&format!(
        "Brick of volume {} ({})",
        spec.name,
        kind_text(spec.kind)
    ));
    output.line(&format!("Volume ID: {}", spec.id));
    output.line(&format!("Pool: {}", identity.pool));
    output.line(&format!("Brick: {}", identity.brick));
    for (index, place) in spec.replicas.iter().enumerate() {
        let own = if index == usize::from(identity.replica) {
            "  (this one)"
        } else {
            ""
        };
        output.line(&format!(
            "Replica {}: {}:{}{own}",
            index + 1,
            place.node_name,
            place.path
        ));
    }
    let state = match (found.deleted, in_use, found.clean) {
        (true, _, _) => "its volume was deleted",
        (false, true, _) => "in use",
        (false, false, true) => "closed in order",
        (false, false, false) => "not closed in order; it recovers when it is opened",
    };
    output.line(&format!("State: {state}"));
    for point in points.iter().flatten() {
        let what = match point.kind {
            PointKind::Resync => "before a resync",
            PointKind::GivenUp => "given up by the volume",
        };
        output.line(&format!(
            "Retained point {}: {what}, as of {}, {} of copies",
            point.id,
            point_time(point),
            bytes_text(point.kept_bytes)
        ));
    }
    Ok(exit::DONE)
}

/// What a check found.
#[derive(Default)]
struct Checked {
    objects: u64,
    bytes: u64,
    faults: Vec<String>,
    more_faults: u64,
}

impl Checked {
    fn fault(&mut self, text: String) {
        if self.faults.len() < FAULTS_TOLD_MAX {
            self.faults.push(text);
        } else {
            self.more_faults += 1;
        }
    }
}

/// Reads every row, block and kept record against its checksum; for a file system, walks the tree.
fn check(output: &Output, dir: &Path) -> Result<u8, Failure> {
    let mut told = 0;
    let report = storage::offline::check(dir, &mut |so_far| {
        if so_far.objects >= told + OBJECTS_BETWEEN_NOTES {
            told = so_far.objects;
            let checked = bytes_text(so_far.blocks * BLOCK_BYTES);
            output.note(&format!("{} objects, {checked} checked", so_far.objects));
        }
    })
    .map_err(|error| open_failure(dir, &error))?;
    let mut checked = Checked {
        objects: report.objects,
        bytes: report.blocks * BLOCK_BYTES,
        more_faults: report.more,
        ..Checked::default()
    };
    for finding in &report.findings {
        checked.fault(finding.to_string());
    }
    let brick = open(dir)?;
    if brick.identity().spec.kind == VolumeKind::Fs {
        check_tree(&brick, &mut checked);
    }
    let whole = checked.faults.is_empty();
    if output.json {
        output.value(&json!({
            "whole": whole, "objects": checked.objects, "bytes_checked": checked.bytes,
            "rows_checked": report.rows, "records_checked": report.records,
            "orphan_files": report.orphan_files,
            "faults": checked.faults, "more_faults": checked.more_faults,
        }));
    } else {
        for fault in &checked.faults {
            output.line(fault);
        }
        if checked.more_faults > 0 {
            output.line(&format!("… and {} more", checked.more_faults));
        }
        let says = if whole { "whole" } else { "damaged" };
        output.line(&format!(
            "The brick is {says}: {} objects, {} checked",
            checked.objects,
            bytes_text(checked.bytes)
        ));
    }
    Ok(if whole { exit::DONE } else { exit::REFUSED })
}

fn check_tree(brick: &DirBrick, checked: &mut Checked) {
    let keys = Keys(brick);
    if let Err(error) = namespace::walk(&keys, &mut |_, _, _| true) {
        checked.fault(error.to_string());
    }
}

/// Clears the brick of a deleted volume for new use; the brick of a living one only by force.
fn wipe(global: &Global, output: &Output, dir: &Path, force: bool) -> Result<u8, Failure> {
    let found = superblock(dir)?;
    if in_use(dir)? {
        return Err(open_failure(dir, &OpenError::InUse));
    }
    let spec = &found.identity.spec;
    if !found.deleted && !force {
        return Err(Failure {
            kind: "data_loss".to_owned(),
            message: format!(
                "{} is a brick of volume `{}`, which was not deleted: its replica's data would be lost",
                dir.display(),
                spec.name
            ),
            hint: "Delete the volume first, or say --force.".to_owned(),
            exit_code: exit::DATA_LOSS,
        });
    }
    if !global.yes && !force {
        let question = format!(
            "Remove all data of the deleted volume `{}` from {}?",
            spec.name,
            dir.display()
        );
        confirm(&question)?;
    }
    let inner = dir.join(storage::layout::DIRECTORY);
    // The superblock first and durably: half a removal must not look like a brick.
    let removed = std::fs::remove_file(inner.join(storage::layout::SUPERBLOCK))
        .and_then(|()| std::fs::File::open(&inner)?.sync_all())
        .and_then(|()| std::fs::remove_dir_all(&inner));
    removed.map_err(|error| {
        Failure::refused(
            "brick",
            format!("{}: {error}", inner.display()),
            "Run the command as root, and again if it stopped in the middle.",
        )
    })?;
    output.done(&format!("{} is cleared", dir.display()));
    Ok(exit::DONE)
}

/// Asks at a terminal; without one nothing waits for an answer.
fn confirm(question: &str) -> Result<(), Failure> {
    let refused = |message: &str| Failure::refused("not_confirmed", message, "Say --yes.");
    if !std::io::stdin().is_terminal() {
        return Err(refused(
            "the question cannot be asked: there is no terminal",
        ));
    }
    let mut err = std::io::stderr();
    let mut answer = String::new();
    let asked = write!(err, "{question} [y/N] ")
        .and_then(|()| err.flush())
        .and_then(|()| std::io::stdin().read_line(&mut answer));
    match asked {
        Ok(_) if matches!(answer.trim(), "y" | "Y" | "yes") => Ok(()),
        _ => Err(refused("nothing was changed")),
    }
}
