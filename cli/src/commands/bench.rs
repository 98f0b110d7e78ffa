//! `cairn bench`: throughput and latency, with the limit measured beside it.

mod machine;
mod net;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cairn_lab::workloads::{self, Measure, Sizes};
use cairn_lab::{disk, is_root};
use protocol::control::exit;
use serde::Serialize;

use crate::args::{BenchCommand, Global};
use crate::failure::Failure;
use crate::output::{Output, bytes_text, table};
use machine::Machine;

/// Threads of random access, each with a file of its own.
const RANDOM_FILES: u64 = 16;
/// What the archives, the small files and their metadata take besides.
const OTHER_BYTES: u64 = 256 << 20;

/// What a run prints.
#[derive(Debug, Serialize)]
struct Report {
    /// What was measured.
    target: String,
    /// On what.
    machine: Machine,
    /// The figures.
    results: Vec<Figure>,
    /// What a reader of the figures has to know.
    notes: Vec<String>,
}

/// One figure beside its limit.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Figure {
    workload: String,
    value: f64,
    unit: String,
    p50_us: Option<f64>,
    p99_us: Option<f64>,
    /// The same on what sets the limit; `None` where the target is the limit itself.
    limit: Option<f64>,
    /// How much of the limit is reached: 1 is all of it, whichever way the unit counts.
    ratio_to_limit: Option<f64>,
}

impl Figure {
    fn new(measure: Measure, limit: Option<f64>) -> Self {
        let ratio = limit.map(|limit| {
            // Seconds count the other way: more is worse.
            if measure.unit == "s" {
                limit / measure.value
            } else {
                measure.value / limit
            }
        });
        Self {
            workload: measure.workload,
            value: measure.value,
            unit: measure.unit,
            p50_us: measure.p50_us,
            p99_us: measure.p99_us,
            limit,
            ratio_to_limit: ratio.filter(|ratio| ratio.is_finite()),
        }
    }
}

/// Puts each figure beside that of the same name.
fn beside(measures: Vec<Measure>, limits: &[Measure]) -> Vec<Figure> {
    let limit_of = |workload: &str| {
        let same = limits.iter().find(|limit| limit.workload == workload);
        same.map(|limit| limit.value)
    };
    measures
        .into_iter()
        .map(|measure| {
            let limit = limit_of(&measure.workload);
            Figure::new(measure, limit)
        })
        .collect()
}

pub(super) fn run(global: &Global, output: &Output, command: &BenchCommand) -> Result<u8, Failure> {
    let report = match command {
        BenchCommand::Fs { dir, beside, small } => {
            file_system(output, dir, beside.as_deref(), *small)?
        }
        BenchCommand::Net { node, small } => net::run(global, output, node, *small)?,
        BenchCommand::Disk { dir, small } => disk_under(output, dir, *small)?,
    };
    print(output, &report);
    Ok(exit::DONE)
}

fn sizes(small: bool) -> Sizes {
    if small {
        Sizes::small()
    } else {
        Sizes::default()
    }
}

fn file_system(
    output: &Output,
    dir: &Path,
    local: Option<&Path>,
    small: bool,
) -> Result<Report, Failure> {
    let sizes = sizes(small);
    let machine = Machine::look();
    let local = local.map_or_else(std::env::temp_dir, Path::to_owned);
    let (target, limit) = (
        Scratch::in_dir(dir, &sizes)?,
        Scratch::in_dir(&local, &sizes)?,
    );
    let mut notes = notes_on_caches("of nodes on other machines stay warm");
    if target.device == limit.device {
        notes.push(format!(
            "{} and {} lie on one file system: the ratio compares it with itself; name a local directory with --beside",
            dir.display(),
            local.display()
        ));
    }
    let limits = measure(output, &limit, &local, &sizes, workloads::run)?;
    let measures = measure(output, &target, dir, &sizes, workloads::run)?;
    notes.push(format!("limit: the same on {}", local.display()));
    Ok(Report {
        target: dir.display().to_string(),
        machine,
        results: beside(measures, &limits),
        notes,
    })
}

fn disk_under(output: &Output, dir: &Path, small: bool) -> Result<Report, Failure> {
    let sizes = sizes(small);
    let machine = Machine::look();
    let scratch = Scratch::in_dir(dir, &sizes)?;
    let measures = measure(output, &scratch, dir, &sizes, disk::run)?;
    let mut notes = notes_on_caches("inside the drive and the host below stay warm");
    notes.push("these figures are limits themselves: no others stand beside them".to_owned());
    Ok(Report {
        target: dir.display().to_string(),
        machine,
        results: beside(measures, &[]),
        notes,
    })
}

/// What is said of caches, `which` being those that nobody can drop.
fn notes_on_caches(which: &str) -> Vec<String> {
    if is_root() {
        vec![format!(
            "before workloads with `cold` in their names this machine's caches are dropped; caches {which}"
        )]
    } else {
        vec![
            "caches cannot be dropped without root: workloads with `cold` in their names are warm"
                .to_owned(),
        ]
    }
}

type Workloads = fn(&Path, &Sizes, workloads::Cold<'_>, &mut dyn FnMut(Measure)) -> io::Result<()>;

fn measure(
    output: &Output,
    scratch: &Scratch,
    dir: &Path,
    sizes: &Sizes,
    workloads: Workloads,
) -> Result<Vec<Measure>, Failure> {
    let mut measures = Vec::new();
    let mut cold = || {
        if is_root() && !workloads::drop_caches() {
            return Err(io::Error::other(
                "/proc/sys/vm/drop_caches cannot be written",
            ));
        }
        Ok(())
    };
    let ran = workloads(&scratch.path, sizes, &mut cold, &mut |measure| {
        output.note(&format!("{}: {}", dir.display(), measure.workload));
        measures.push(measure);
    });
    let last = measures
        .last()
        .map(|measure: &Measure| measure.workload.clone());
    ran.map_err(|error| stopped(dir, last.as_deref(), &error))?;
    Ok(measures)
}

fn stopped(dir: &Path, last: Option<&str>, error: &io::Error) -> Failure {
    let after = last.map_or_else(|| "at its start".to_owned(), |name| format!("after {name}"));
    let hint = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "Make room there, or use --small."
        }
        io::ErrorKind::InvalidInput => {
            "Its file system may not take O_DIRECT; name a directory on another one."
        }
        io::ErrorKind::NotFound => "The workloads use tar and git: install them.",
        _ => "Look at the volume's state with `cairn status`, or at the kernel's log.",
    };
    Failure::refused(
        "bench",
        format!(
            "the benchmark in {} stopped {after}: {error}",
            dir.display()
        ),
        hint,
    )
}

/// A directory of the benchmark's own, gone when dropped. The workloads keep what they read from
/// in another one, in the system's temporary directory.
struct Scratch {
    path: PathBuf,
    device: u64,
}

impl Scratch {
    fn in_dir(dir: &Path, sizes: &Sizes) -> Result<Self, Failure> {
        use std::os::unix::fs::MetadataExt as _;
        let unusable = |error: io::Error| {
            Failure::refused(
                "bench",
                format!("{} cannot be used: {error}", dir.display()),
                "Name an existing directory that you may write to.",
            )
        };
        let needed = sizes.sequential_bytes + RANDOM_FILES * sizes.random_bytes + OTHER_BYTES;
        let room = rustix::fs::statvfs(dir).map_err(|errno| unusable(errno.into()))?;
        let free = room.f_bavail.saturating_mul(room.f_frsize);
        if free < needed {
            return Err(Failure::refused(
                "bench",
                format!(
                    "the benchmark needs {} in {}, there are {}",
                    bytes_text(needed),
                    dir.display(),
                    bytes_text(free)
                ),
                "Make room there, name another directory, or use --small.",
            ));
        }
        let path = dir.join(format!("cairn-bench-scratch-{}", std::process::id()));
        fs::create_dir(&path).map_err(unusable)?;
        let device = fs::metadata(&path).map_err(unusable)?.dev();
        Ok(Self { path, device })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It may be what failed; the name says whose it is.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn print(output: &Output, report: &Report) {
    if output.json {
        output.value(report);
        return;
    }
    let number = |value: f64| {
        if value < 100.0 {
            format!("{value:.2}")
        } else {
            format!("{value:.0}")
        }
    };
    let maybe = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), number);
    let rows: Vec<Vec<String>> = report
        .results
        .iter()
        .map(|figure| {
            vec![
                figure.workload.clone(),
                number(figure.value),
                figure.unit.clone(),
                maybe(figure.p50_us),
                maybe(figure.p99_us),
                maybe(figure.limit),
                maybe(figure.ratio_to_limit),
            ]
        })
        .collect();
    let head = [
        "WORKLOAD", "VALUE", "UNIT", "P50 us", "P99 us", "LIMIT", "RATIO",
    ];
    output.line(&table(&head, &rows));
    for note in &report.notes {
        output.note(note);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(workload: &str, value: f64, unit: &str) -> Measure {
        Measure {
            workload: workload.to_owned(),
            value,
            unit: unit.to_owned(),
            p50_us: None,
            p99_us: None,
        }
    }

    #[test]
    fn half_the_limit_is_half_whether_more_or_less_is_better() {
        let limits = [measured("rate", 200.0, "MB/s"), measured("time", 3.0, "s")];
        let measures = vec![measured("rate", 100.0, "MB/s"), measured("time", 6.0, "s")];
        let ratios: Vec<_> = beside(measures, &limits)
            .iter()
            .map(|figure| figure.ratio_to_limit)
            .collect();
        assert_eq!(ratios, [Some(0.5), Some(0.5)]);
    }

    #[test]
    fn a_workload_without_limit_says_so() {
        let figures = beside(vec![measured("alone", 1.0, "ops/s")], &[]);
        assert_eq!((figures[0].limit, figures[0].ratio_to_limit), (None, None));
    }
}
