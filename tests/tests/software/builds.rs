//! git and cargo: many small files, renames into place, lock files, programs that run from the
//! mount.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::place::{Place, command, run, scale};

/// Commits of the generated repository, times [`scale`]; each changes so many files.
const COMMITS: u64 = 60;
const FILES_OF_A_COMMIT: u64 = 5;
const FILES: u64 = 150;

fn git(at: &Path, words: &[&str]) -> Command {
    let mut git = command("git");
    git.arg("-C").arg(at).args(words);
    git.env("GIT_CONFIG_NOSYSTEM", "1");
    git.env("GIT_CONFIG_GLOBAL", "/dev/null");
    for role in ["AUTHOR", "COMMITTER"] {
        git.env(format!("GIT_{role}_NAME"), "somebody");
        git.env(format!("GIT_{role}_EMAIL"), "somebody@example.org");
    }
    git
}

/// What `git fast-import` makes the repository of.
fn history() -> Result<String> {
    let mut text = String::new();
    for commit in 0..COMMITS * scale() {
        let message = format!("change {commit}");
        writeln!(text, "commit refs/heads/main")?;
        writeln!(
            text,
            "committer somebody <somebody@example.org> {} +0000",
            1_700_000_000 + commit
        )?;
        writeln!(text, "data {}\n{message}", message.len())?;
        for file in 0..FILES_OF_A_COMMIT {
            let number = (commit * FILES_OF_A_COMMIT + file) % FILES;
            let line = blake3::hash(&commit.to_le_bytes()).to_hex();
            let content = format!("{line}\n").repeat(1 + (number as usize * 7) % 200);
            writeln!(text, "M 100644 inline dir{}/file{number}", number % 12)?;
            writeln!(text, "data {}\n{content}", content.len())?;
        }
    }
    writeln!(text, "done")?;
    Ok(text)
}

fn make_repository(at: &Path, stream: &Path) -> Result<()> {
    fs::write(stream, history()?)?;
    fs::create_dir(at)?;
    run(&mut git(
        at,
        &["init", "--quiet", "--bare", "--initial-branch=main"],
    ))?;
    let mut import = git(at, &["fast-import", "--quiet", "--done"]);
    run(import.stdin(Stdio::from(fs::File::open(stream)?)))?;
    Ok(())
}

/// Clones, changes, packs and gives back; every object is looked at in between.
fn use_it(origin: &Path, mount: &Path) -> Result<()> {
    let (work, second) = (mount.join("work"), mount.join("second"));
    let text = |path: &Path| path.to_str().map(str::to_owned).context("UTF-8");
    let git = |at: &Path, words: &[&str]| run(&mut git(at, words));
    let whole = |at: &Path| -> Result<()> {
        git(at, &["fsck", "--full", "--strict"])?;
        let changed = git(at, &["status", "--porcelain"])?;
        ensure!(changed.is_empty(), "{changed}");
        Ok(())
    };
    let url = format!("file://{}", text(origin)?);
    git(mount, &["clone", "--quiet", &url, &text(&work)?])?;
    whole(&work)?;
    // The directory gets another name and its old one in turn, by the shell's mv and by git's.
    for round in 0..3 * scale() {
        fs::write(work.join(format!("new{round}")), round.to_string())?;
        fs::rename(work.join("dir1"), work.join("renamed"))?;
        git(&work, &["add", "--all"])?;
        git(&work, &["commit", "--quiet", "-m", "there"])?;
        git(&work, &["mv", "renamed", "dir1"])?;
        git(&work, &["commit", "--quiet", "-m", "and back"])?;
        git(&work, &["checkout", "--quiet", "HEAD~1"])?;
        git(&work, &["checkout", "--quiet", "main"])?;
    }
    whole(&work)?;
    git(&work, &["gc", "--quiet", "--prune=now"])?;
    whole(&work)?;
    // On one file system a clone links the packs.
    git(mount, &["clone", "--quiet", &text(&work)?, &text(&second)?])?;
    whole(&second)?;
    let tree = |at: &Path| git(at, &["rev-parse", "HEAD^{tree}"]);
    ensure!(tree(&work)? == tree(&second)?, "the clones differ");
    git(&work, &["push", "--quiet", "origin", "main"])?;
    git(origin, &["fsck", "--full", "--strict"])?;
    ensure!(tree(&work)? == tree(origin)?, "what was pushed differs");
    Ok(())
}

#[test]
fn git_clones_packs_and_finds_every_object_while_the_primary_dies() -> Result<()> {
    let Some(mut place) = Place::new(&["git"])? else {
        return Ok(());
    };
    let beside = place.beside("git")?;
    let (origin, mount) = (beside.join("origin"), place.mount().to_owned());
    make_repository(&origin, &beside.join("stream"))?;
    place.while_primaries_die("git", || use_it(&origin, &mount))?;
    place.finish()
}

/// A library, a program and a build script, without dependencies.
fn make_crate(at: &Path) -> Result<()> {
    fs::create_dir_all(at.join("src"))?;
    let files = [
        (
            "Cargo.toml",
            "[package]\nname = \"tiny\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n",
        ),
        (
            "build.rs",
            "fn main() { let out = std::env::var(\"OUT_DIR\").unwrap(); \
             std::fs::write(format!(\"{out}/made.rs\"), \"pub const MADE: u32 = 41;\").unwrap(); }\n",
        ),
        (
            "src/lib.rs",
            "include!(concat!(env!(\"OUT_DIR\"), \"/made.rs\"));\n",
        ),
        (
            "src/main.rs",
            "fn main() { println!(\"{}\", tiny::MADE + 1); }\n",
        ),
    ];
    for (name, text) in files {
        fs::write(at.join(name), text)?;
    }
    Ok(())
}

fn build(at: &Path) -> Result<String> {
    // Of the toolchain that builds this test, and with none of its settings.
    let mut cargo = command(&std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    for name in ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET_DIR", "RUSTFLAGS"] {
        cargo.env_remove(name);
    }
    run(cargo.args(["build", "--offline"]).current_dir(at))
}

fn build_and_run(at: &Path) -> Result<()> {
    make_crate(at)?;
    let program = at.join("target/debug/tiny");
    let result = || run(&mut command(program.to_str().context("UTF-8")?));
    ensure!(build(at)?.contains("Compiling tiny"), "nothing was built");
    ensure!(result()?.trim() == "42", "another result");
    let again = build(at)?;
    ensure!(!again.contains("Compiling"), "built anew: {again}");
    fs::write(
        at.join("src/main.rs"),
        "fn main() { println!(\"{}\", tiny::MADE + 2); }\n",
    )?;
    ensure!(build(at)?.contains("Compiling tiny"), "a change was missed");
    ensure!(result()?.trim() == "43", "the old result");
    Ok(())
}

#[test]
fn cargo_builds_and_knows_what_changed_while_the_primary_dies() -> Result<()> {
    let Some(mut place) = Place::new(&[])? else {
        return Ok(());
    };
    let at = place.mount().join("tiny");
    place.while_primaries_die("cargo", || build_and_run(&at))?;
    place.finish()
}
