//! The same workloads on a local directory, through a plain FUSE passthrough, on GlusterFS
//! replica 2 where it is installed, and on Cairn with two replicas: side by side in one run.
//!
//! Every target's data lies on one file system made for the run (ext4 on a loop device, in RAM or
//! on disk). Rounds visit the targets in turn, so that a mood of the machine meets all of them;
//! the table shows medians, their spread, and ratios. Needs root, and nothing else running.

#![forbid(unsafe_code)]

mod machine;
mod table;
mod targets;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use cairn_lab::workloads::{self, Measure, Sizes};
use clap::{Parser, ValueEnum};
use serde::Serialize;

/// Where the bricks lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Bricks {
    /// On ext4 on a loop device whose file is in memory.
    Ram,
    /// On ext4 on a loop device whose file is on the disk.
    Disk,
}

/// What to measure.
#[derive(Debug, Parser)]
#[command(
    name = "compare",
    about = "The same workloads on several file systems, side by side"
)]
struct Args {
    /// Where the bricks lie
    #[arg(long, value_enum, default_value = "ram")]
    bricks: Bricks,
    /// Rounds; medians are taken over them
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only these targets: local, fuse, gluster, gluster-tuned, cairn
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Much less of everything: a test of the benchmark, no measurement
    #[arg(long)]
    small: bool,
    /// Where the result goes [default: benches/results/compare-<bricks>.json]
    #[arg(long)]
    out: Option<PathBuf>,
}

/// The file that a run leaves.
#[derive(Debug, Serialize)]
struct Results {
    command: String,
    machine: machine::Machine,
    versions: BTreeMap<String, String>,
    bricks: String,
    rounds: usize,
    /// Target, workload: the figure of each round.
    figures: BTreeMap<String, BTreeMap<String, Vec<Measure>>>,
    /// CPU seconds of the whole machine while a target's round ran.
    cpu_seconds: BTreeMap<String, Vec<f64>>,
    skipped: Vec<String>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(
        cairn_lab::is_root(),
        "this needs root: it makes loop devices and mounts"
    );
    let stage = targets::Stage::new(args.bricks == Bricks::Ram)?;
    let mut results = Results {
        command: std::env::args().collect::<Vec<_>>().join(" "),
        machine: machine::Machine::look(),
        versions: machine::versions(),
        bricks: format!("{:?}", args.bricks).to_lowercase(),
        rounds: args.rounds,
        figures: BTreeMap::new(),
        cpu_seconds: BTreeMap::new(),
        skipped: Vec::new(),
    };
    let sizes = if args.small {
        Sizes::small()
    } else {
        Sizes::default()
    };
    for round in 0..args.rounds {
        for name in targets::NAMES {
            if !args.only.is_empty() && !args.only.iter().any(|only| only == name) {
                continue;
            }
            if let Some(why) = targets::missing(name) {
                if round == 0 {
                    eprintln!("SKIPPED {name}: {why}");
                    results.skipped.push(format!("{name}: {why}"));
                }
                continue;
            }
            eprintln!("round {} of {}: {name}", round + 1, args.rounds);
            one(&stage, name, &sizes, &mut results).with_context(|| format!("target {name}"))?;
        }
    }
    let default = format!("benches/results/compare-{}.json", results.bricks);
    let out = args.out.unwrap_or_else(|| PathBuf::from(default));
    if let Some(parent) = out.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(&out, serde_json::to_string_pretty(&results)? + "\n")?;
    println!("{}", table::markdown(&results));
    println!("Raw figures: {}", out.display());
    Ok(())
}

fn one(stage: &targets::Stage, name: &str, sizes: &Sizes, results: &mut Results) -> Result<()> {
    let mut target = targets::open(stage, name)?;
    let dir = target.dir().to_owned();
    let figures = results.figures.entry(name.to_owned()).or_default();
    let before = machine::cpu_seconds();
    let run = workloads::run(
        Path::new(&dir),
        sizes,
        &mut || target.cold(),
        &mut |measure: Measure| {
            eprintln!(
                "  {:34} {:>12.1} {}",
                measure.workload, measure.value, measure.unit
            );
            figures
                .entry(measure.workload.clone())
                .or_default()
                .push(measure);
        },
    );
    results
        .cpu_seconds
        .entry(name.to_owned())
        .or_default()
        .push(machine::cpu_seconds() - before);
    run.context("the workloads")?;
    target.close()
}
