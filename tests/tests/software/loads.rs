//! fio, which knows what it wrote by checksums, and stress-ng's class of file systems.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use cairn_tests::setting;

use crate::place::{Place, command, run, said, scale};

// ---- fio ---------------------------------------------------------------------------------------

fn fio(dir: &Path) -> Command {
    let jobs = Path::new(env!("CARGO_MANIFEST_DIR")).join("suites/fio-verify.fio");
    let mut fio = command("fio");
    fio.arg(jobs).current_dir(dir);
    fio.env("CAIRN_FIO_SIZE", format!("{}m", 4 * scale()));
    fio
}

#[test]
fn fio_reads_what_it_wrote_while_the_primary_dies() -> Result<()> {
    let Some(mut place) = Place::new(&["fio"])? else {
        return Ok(());
    };
    let dir = place.mount().join("fio");
    fs::create_dir(&dir)?;
    run(&mut fio(&dir))?;
    place.while_primaries_die("fio", || run(&mut fio(&dir)))?;
    place.finish()
}

// ---- stress-ng ---------------------------------------------------------------------------------

/// Stressors of the class that are left out, with the reason: any other one that says that it
/// cannot run fails the test.
const LEFT_OUT: [(&str, &str); 9] = [
    (
        "bind-mount",
        "switched off by stress-ng: it may hang the machine",
    ),
    ("binderfs", "about a file system of its own"),
    ("dup", "about /dev/zero"),
    ("eventfd", "about no file system"),
    ("fiemap", "FUSE has no FS_IOC_FIEMAP"),
    (
        "io",
        "sync(2), of the whole machine, of which FUSE is not told",
    ),
    ("ioprio", "about processes"),
    ("procfs", "about /proc"),
    ("verity", "FS_IOC_ENABLE_VERITY is not offered"),
];
/// Some that make thousands of names and then take them away, and are thus no matter of a second:
/// left to `--full`.
const LONG: [&str; 5] = ["dentry", "dir", "filename", "link", "symlink"];
/// So many run at once, each in a directory of its own.
const AT_ONCE: usize = 3;

fn class() -> Result<BTreeSet<String>> {
    // With a question mark it names them, and ends as if that was a mistake.
    let told = command("stress-ng")
        .args(["--class", "filesystem?"])
        .output()?;
    let told = said(&told);
    let (_, names) = told.split_once("stressors:").context("no list")?;
    Ok(names.split_whitespace().map(str::to_owned).collect())
}

/// Runs those stressors one after the other.
fn stress(dir: &Path, all: &BTreeSet<String>, chosen: &[&String]) -> Result<()> {
    fs::create_dir(dir)?;
    let others: Vec<&str> = all
        .iter()
        .filter(|name| !chosen.contains(name))
        .map(String::as_str)
        .collect();
    let seconds = setting("CAIRN_SOFTWARE_STRESS_SECONDS", 1).to_string();
    let mut stress = command("stress-ng");
    stress.args(["--class", "filesystem", "--sequential", "1", "--verify"]);
    stress.args(["--timeout", &seconds, "--exclude", &others.join(",")]);
    let told = run(stress.arg("--temp-path").arg(dir))?;
    for line in told.lines() {
        let bad = [
            "fail:",
            "skipping",
            "not supported",
            "out of system resources",
        ];
        ensure!(!bad.iter().any(|word| line.contains(word)), "{told}");
    }
    let left: Vec<_> = fs::read_dir(dir)?.flatten().collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

#[test]
fn the_file_system_stressors_of_stress_ng_find_nothing_wrong() -> Result<()> {
    let Some(place) = Place::new(&["stress-ng"])? else {
        return Ok(());
    };
    let all = class()?;
    for (name, why) in LEFT_OUT {
        ensure!(all.contains(name), "stress-ng has no `{name}` any more");
        println!("stress-ng: left out {name}: {why}");
    }
    let is_left_out = |name: &str| LEFT_OUT.iter().any(|(left_out, _)| *left_out == name);
    let is_long = |name: &str| scale() == 1 && LONG.contains(&name);
    let chosen: Vec<_> = all
        .iter()
        .filter(|name| !is_left_out(name) && !is_long(name))
        .collect();
    std::thread::scope(|scope| {
        let lots: Vec<_> = (0..AT_ONCE)
            .map(|lot| {
                let dir = place.mount().join(format!("stress{lot}"));
                let mine: Vec<_> = chosen.iter().skip(lot).step_by(AT_ONCE).copied().collect();
                let all = &all;
                scope.spawn(move || stress(&dir, all, &mine))
            })
            .collect();
        lots.into_iter()
            .try_for_each(|lot| lot.join().expect("no panic"))
    })?;
    println!("stress-ng: {} stressors", chosen.len());
    place.finish()
}
