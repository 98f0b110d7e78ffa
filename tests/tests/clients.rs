//! BAD-2: a machine that is no node mounts what it was invited to, and nothing else, until it is
//! revoked.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cairn_tests::Mounted;
use cairn_tests::machine::{Machine, source, token};
use serde_json::Value;

const EROFS: i32 = 30;

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

/// Whoever has a client's key is that client, on however many machines; each has a session of its own.
#[test]
fn bad_2_a_revoked_client_is_cut_off_on_every_machine_that_has_its_key() -> Result<()> {
    let Some(Mounted { dir, lab, mount }) = Mounted::new("v1", 2)? else {
        return Ok(());
    };
    let log = format!("log_file={}", dir.path().join("client.log").display());
    let app1 = Machine::new(dir.path(), "app1")?;
    app1.join(&token(&lab, &["app1"])?)?;
    let copy = Machine::new(dir.path(), "copy")?;
    fs::create_dir(&copy.data_dir)?;
    for file in fs::read_dir(&app1.data_dir)? {
        let file = file?;
        fs::copy(file.path(), copy.data_dir.join(file.file_name()))?;
    }
    let v1 = source(&lab, "v1");
    for machine in [&app1, &copy] {
        machine.done(&machine.mount_words(&v1, &log))?;
    }
    fs::write(app1.at.join("one"), "1")?;
    fs::write(copy.at.join("two"), "2")?;
    ensure!(fs::read(mount.join("one"))? == b"1" && fs::read(app1.at.join("two"))? == b"2");
    lab.cairn(0, &["client", "revoke", "app1"])?;
    for machine in [&app1, &copy] {
        ensure!(
            fs::write(machine.at.join("late"), "x").is_err(),
            "it went on"
        );
    }
    ensure!(!mount.join("late").exists());
    drop((app1, copy));
    lab.finish()?;
    Ok(())
}

/// A write waits, as too few replicas are in sync, and its client loses its right meanwhile.
#[test]
fn bad_2_a_write_that_waits_when_its_client_is_revoked_ends_with_an_error() -> Result<()> {
    let Some(Mounted {
        dir,
        mut lab,
        mount,
    }) = Mounted::new("v1", 3)?
    else {
        return Ok(());
    };
    let log = format!("log_file={}", dir.path().join("client.log").display());
    let app1 = Machine::new(dir.path(), "app1")?;
    app1.join(&token(&lab, &["app1"])?)?;
    app1.done(&app1.mount_words(&source(&lab, "v1"), &log))?;
    fs::write(app1.at.join("early"), "x")?;
    lab.cairn(0, &["volume", "set", "v1", "min-in-sync", "2"])?;
    let primary = lab.volume(0, "v1")?["primary"].clone();
    let secondary = (0..2).find(|node| primary != lab.name(*node).as_str());
    let secondary = secondary.context("a secondary")?;
    lab.kill(secondary);
    let at = app1.at.clone();
    let began = Instant::now();
    let waiting = std::thread::spawn(move || fs::write(at.join("late"), "x"));
    let left = |v: &Value| v["replicas"][secondary]["in_sync"] == false;
    lab.wait_volume(2, "v1", "the secondary left", Duration::from_secs(20), left)?;
    ensure!(!waiting.is_finished(), "it did not wait");
    lab.cairn(2, &["client", "revoke", "app1"])?;
    let ended = waiting.join().expect("it does not panic");
    ensure!(ended.is_err(), "{ended:?}");
    ensure!(
        began.elapsed() < Duration::from_secs(30),
        "{:?}",
        began.elapsed()
    );
    lab.cairn(2, &["volume", "set", "v1", "min-in-sync", "1"])?;
    fs::write(mount.join("others"), "go on")?;
    drop(app1);
    lab.start(secondary)?;
    lab.finish()?;
    Ok(())
}
