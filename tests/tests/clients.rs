//! BAD-2: a machine that is no node mounts what it was invited to, and nothing else, until it is
//! revoked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use cairn_lab::Lab;
use cairn_tests::{Mounted, binary};
use serde_json::Value;

const EROFS: i32 = 30;

/// A machine with a directory of its own; what it mounted is taken away in the end.
struct Machine {
    data_dir: PathBuf,
    at: PathBuf,
}

impl Machine {
    fn new(dir: &Path, name: &str) -> Result<Self> {
        let at = dir.join(format!("{name}-mnt"));
        fs::create_dir(&at)?;
        let data_dir = dir.join(name);
        Ok(Self { data_dir, at })
    }

    fn cairn(&self, words: &[&str]) -> Result<Output> {
        let mut command = Command::new(binary());
        command.arg("--data-dir").arg(&self.data_dir).args(words);
        command.output().context("run cairn")
    }

    /// What the command says when it is refused.
    fn refused(&self, words: &[&str]) -> Result<String> {
        let output = self.cairn(words)?;
        ensure!(!output.status.success(), "{words:?} was done");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn join(&self, token: &str) -> Result<String> {
        self.done(&["client", "join", token])
    }

    fn done(&self, words: &[&str]) -> Result<String> {
        let output = self.cairn(words)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{words:?}: {said}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn mount_words<'a>(&'a self, source: &'a str, log: &'a str) -> Vec<&'a str> {
        let at = self.at.to_str().unwrap_or_default();
        vec!["mount", source, at, "-o", log]
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Nothing may be mounted there.
        let _ = Command::new("umount").arg("-l").arg(&self.at).output();
    }
}

fn token(lab: &Lab, words: &[&str]) -> Result<String> {
    let said = lab.cairn(0, &[&["-q", "client", "add"], words].concat())?;
    Ok(said.trim().to_owned())
}

fn source(lab: &Lab, volume: &str) -> String {
    format!("{},{}:/{volume}", lab.advertised(0), lab.advertised(1))
}

#[test]
fn bad_2_a_client_mounts_what_it_was_invited_to_until_it_is_revoked() -> Result<()> {
    let Some(Mounted { dir, lab, mount }) = Mounted::new("v1", 2)? else {
        return Ok(());
    };
    lab.make_volume("v2", 2)?;
    let log = format!("log_file={}", dir.path().join("client.log").display());
    let app1 = Machine::new(dir.path(), "app1")?;
    let (v1, v2) = (source(&lab, "v1"), source(&lab, "v2"));
    let said = app1.refused(&app1.mount_words(&v1, &log))?;
    ensure!(said.contains("client add"), "{said}");

    let token = token(&lab, &["app1", "--volume", "v1"])?;
    let said = app1.join(&token)?;
    ensure!(said.contains("app1") && said.contains("v1"), "{said}");
    app1.join(&token).context("its answer may be lost")?;
    let other = Machine::new(dir.path(), "other")?;
    let said = other.refused(&["client", "join", &token])?;
    ensure!(said.contains("another machine"), "{said}");

    app1.done(&app1.mount_words(&v1, &log))?;
    fs::write(app1.at.join("file"), "by app1")?;
    ensure!(fs::read(mount.join("file"))? == b"by app1");
    let shown = lab.volume(0, "v1")?;
    let named = |client: &Value| client["name"] == "app1" && client["read_only"] == false;
    ensure!(
        shown["clients"]
            .as_array()
            .is_some_and(|all| all.iter().any(named)),
        "{shown}"
    );
    let said = other.refused(&other.mount_words(&v2, &log))?;
    ensure!(said.contains("client add"), "{said}");
    let mut elsewhere = app1.mount_words(&v2, &log);
    elsewhere[2] = other.at.to_str().unwrap_or_default();
    let said = app1.refused(&elsewhere)?;
    ensure!(said.contains("may not mount volume `v2`"), "{said}");

    lab.cairn(1, &["client", "revoke", "app1"])?;
    // What is asked now has no answer but an error, and nothing of it arrives.
    ensure!(fs::write(app1.at.join("late"), "x").is_err(), "it went on");
    ensure!(!mount.join("late").exists());
    drop(app1);
    lab.finish()?;
    Ok(())
}

#[test]
fn bad_2_a_client_that_may_only_read_changes_nothing() -> Result<()> {
    let Some(Mounted { dir, lab, mount }) = Mounted::new("v1", 2)? else {
        return Ok(());
    };
    fs::write(mount.join("file"), "before")?;
    let log = format!("log_file={}", dir.path().join("client.log").display());
    let reader = Machine::new(dir.path(), "reader")?;
    reader.join(&token(&lab, &["reader", "--read-only"])?)?;
    let listed = lab.json(1, &["client", "list"])?;
    ensure!(listed["clients"][0]["state"] == "joined", "{listed}");
    let v1 = source(&lab, "v1");
    reader.done(&reader.mount_words(&v1, &log))?;
    ensure!(fs::read(reader.at.join("file"))? == b"before");
    for change in [
        fs::write(reader.at.join("file"), "after"),
        fs::remove_file(reader.at.join("file")),
        fs::create_dir(reader.at.join("dir")),
    ] {
        let error = change.expect_err("it may only read");
        ensure!(error.raw_os_error() == Some(EROFS), "{error}");
    }
    ensure!(fs::read(mount.join("file"))? == b"before");
    drop(reader);
    lab.finish()?;
    Ok(())
}
