//! DUR-1, DUR-2 with real processes: the ack policies A, B and C on a real mount, changed while a
//! writer writes; a secondary that is frozen (SIGSTOP), a queue beyond its bound, and a take-over
//! that costs the queue.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use anyhow::Result;
use cairn_lab::{Lab, is_in_sync, signal};
use cairn_tests::{Mounted, Writer, all_equal, events, nothing_lost};
use serde_json::Value;

const VOLUME: &str = "v1";
const WITHIN: Duration = Duration::from_secs(60);
/// Written while the secondary is frozen: less than the bound of its queue, more than a mount
/// keeps at all.
const QUEUED_MIB: u64 = 100;
/// The same, and a mount keeps it all.
const KEPT_MIB: u64 = 24;

fn set(lab: &Lab, node: usize, key: &str, value: &str) -> Result<()> {
    lab.cairn(node, &["volume", "set", VOLUME, key, value])?;
    Ok(())
}

fn send(lab: &Lab, node: usize, name: &str) -> Result<()> {
    let pid = lab.pid(node).ok_or_else(|| anyhow::anyhow!("it runs"))?;
    Ok(signal(pid, name)?)
}

/// Waits until the writer has so many more files confirmed.
fn goes_on(writer: &Writer, files: u64) -> Result<()> {
    let until = writer.confirmed().made + files;
    let began = Instant::now();
    while writer.confirmed().made < until {
        anyhow::ensure!(began.elapsed() < WITHIN, "the writer does not go on");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn lag_bytes(volume: &Value, replica: usize) -> u64 {
    volume["replicas"][replica]["lag_bytes"]
        .as_u64()
        .unwrap_or(0)
}

fn nothing_lags(volume: &Value) -> bool {
    is_in_sync(volume)
        && (0..2).all(|replica| volume["replicas"][replica]["lag_bytes"] == 0)
        && (0..2).all(|replica| volume["replicas"][replica]["lag_seconds"] == 0.0)
}

/// Whether the configured policy is the one in force.
fn is_in_force(volume: &Value) -> bool {
    let notes = volume["notes"].as_array().map_or(&[][..], Vec::as_slice);
    let waits = |note: &Value| {
        note.as_str()
            .is_some_and(|n| n.contains("takes full effect"))
    };
    !notes.iter().any(waits)
}

fn has_event(lab: &Lab, node: usize, kind: &str) -> Result<bool> {
    Ok(!events(lab, node, kind)?.is_empty())
}

/// Under each policy, and from each to the next, the writer goes on; planned promotions lose
/// nothing, and neither does the death of both daemons.
#[test]
fn the_policy_changes_under_a_writer_that_loses_nothing() -> Result<()> {
    let Some(Mounted {
        dir: _dir,
        mut lab,
        mount,
    }) = Mounted::new(VOLUME, 2)?
    else {
        return Ok(());
    };
    let writer = Writer::start(&mount, 5)?;
    for (round, protocol) in ["A", "B", "C", "A", "C", "B"].into_iter().enumerate() {
        set(&lab, round % 2, "protocol", protocol)?;
        goes_on(&writer, 50)?;
        lab.wait_volume(0, VOLUME, "the policy in force", WITHIN, is_in_force)?;
        let to = lab.name(1 - round % 2);
        lab.cairn(0, &["volume", "promote", VOLUME, &to])?;
        goes_on(&writer, 50)?;
        lab.wait_volume(0, VOLUME, "in sync", WITHIN, is_in_sync)?;
    }
    // B: what the secondary had in memory alone the primary has applied.
    lab.kill(1);
    lab.kill(0);
    lab.start(0)?;
    lab.start(1)?;
    goes_on(&writer, 50)?;
    lab.wait_volume(0, VOLUME, "in sync", WITHIN, nothing_lags)?;
    nothing_lost(&lab, VOLUME, &mount, writer)?;
    lab.finish()?;
    Ok(())
}

/// A secondary that is frozen slows no writer under A; its lag is shown, in bytes and seconds, and
/// worked off. Beyond the bound of its queue it is left behind and catches up.
#[test]
fn under_a_a_frozen_secondary_slows_nobody_and_its_lag_is_shown_and_worked_off() -> Result<()> {
    let Some(Mounted {
        dir: _dir,
        lab,
        mount,
    }) = Mounted::new(VOLUME, 2)?
    else {
        return Ok(());
    };
    // With C a frozen secondary would hold the writer for that long.
    set(&lab, 0, "replica-deadline", "10m")?;
    set(&lab, 0, "async-queue-max", "1G")?;
    set(&lab, 0, "protocol", "A")?;
    let writer = Writer::start(&mount, 5)?;
    goes_on(&writer, 20)?;
    send(&lab, 1, "STOP")?;
    goes_on(&writer, 200)?;
    let lags = |volume: &Value| {
        let age = volume["replicas"][1]["lag_seconds"].as_f64();
        lag_bytes(volume, 1) > 100_000 && age.is_some_and(|age| age > 0.0)
    };
    let status = lab.wait_volume(0, VOLUME, "the lag is shown", WITHIN, lags)?;
    assert_eq!(status["replicas"][1]["in_sync"], true, "{status}");
    send(&lab, 1, "CONT")?;
    goes_on(&writer, 20)?;
    nothing_lost(&lab, VOLUME, &mount, writer)?;
    lab.wait_volume(0, VOLUME, "the lag is worked off", WITHIN, nothing_lags)?;
    assert!(!has_event(&lab, 0, "replica_left_behind")?);

    set(&lab, 0, "async-queue-max", "1M")?;
    send(&lab, 1, "STOP")?;
    let mut file = File::create(mount.join("more"))?;
    for _ in 0..4 {
        file.write_all(&[7; 1 << 20])?;
    }
    file.sync_all()?;
    drop(file);
    let behind = |volume: &Value| {
        volume["replicas"][1]["in_sync"] == false && lag_bytes(volume, 1) >= 4 << 20
    };
    lab.wait_volume(0, VOLUME, "left behind", WITHIN, behind)?;
    assert!(has_event(&lab, 0, "replica_left_behind")?);
    send(&lab, 1, "CONT")?;
    lab.wait_volume(0, VOLUME, "caught up", WITHIN, nothing_lags)?;
    assert!(has_event(&lab, 0, "replica_caught_up")?);
    all_equal(&lab, 0, VOLUME)?;
    lab.finish()?;
    Ok(())
}

/// A volume under A with a queue that only its primary has: so many MiB written to `file`. Then
/// that primary is gone, and the other node is made primary by force.
fn lose_the_queue(lab: &mut Lab, file: &File, mib: u64) -> Result<()> {
    set(lab, 0, "replica-deadline", "10m")?;
    set(lab, 0, "protocol", "A")?;
    set(lab, 0, "async-queue-max", "256M")?;
    file.write_all_at(&[1; 4096], 0)?;
    file.sync_all()?;
    lab.wait_volume(0, VOLUME, "nothing lags", WITHIN, nothing_lags)?;
    send(lab, 1, "STOP")?;
    // More than the sockets between the two hold: that is lost with the process.
    for mib in 1..=mib {
        file.write_all_at(&vec![2; 1 << 20], mib << 20)?;
    }
    lab.kill(0);
    send(lab, 1, "CONT")?;
    lab.cairn(1, &["volume", "promote", VOLUME, "node2", "--force"])?;
    Ok(())
}

/// DUR-2, DUR-5: a take-over under A costs the queue, but what a mount kept of it comes back.
#[test]
fn a_takeover_under_a_loses_nothing_that_a_mount_keeps() -> Result<()> {
    let Some(Mounted {
        dir: _dir,
        mut lab,
        mount,
    }) = Mounted::new(VOLUME, 2)?
    else {
        return Ok(());
    };
    let file = File::create(mount.join("file"))?;
    lose_the_queue(&mut lab, &file, KEPT_MIB)?;
    file.write_all_at(&[3; 4096], 0)?;
    file.sync_all()?;
    drop(file);
    let found = fs::read(mount.join("file"))?;
    assert_eq!(found[..4096], [3; 4096]);
    assert_eq!(found.len() as u64, (KEPT_MIB + 1) << 20);
    assert!(found[1 << 20..].iter().all(|byte| *byte == 2));
    assert!(!has_event(&lab, 1, "operations_lost")?);
    lab.finish()?;
    Ok(())
}

/// DUR-2, DUR-5, ONE-3: of a queue that was more than a mount keeps, the open file is told once; how
/// much it was is told from what the mount was confirmed; and what the old primary had confirmed
/// alone is not given up by a rule.
#[test]
fn a_takeover_under_a_tells_how_much_was_lost() -> Result<()> {
    let Some(Mounted {
        dir: _dir,
        mut lab,
        mount,
    }) = Mounted::new(VOLUME, 2)?
    else {
        return Ok(());
    };
    let file = File::create(mount.join("file"))?;
    lose_the_queue(&mut lab, &file, QUEUED_MIB)?;
    // The first answer of the new primary comes after the mount knows what is lost.
    let is_eio = |result: std::io::Result<()>| match result {
        Ok(()) => false,
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(5), "{error}");
            true
        }
    };
    // A write may tell it as well, where the loss is known by then: that does not use it up.
    let _ = is_eio(file.write_all_at(&[3; 4096], 0));
    assert!(is_eio(file.sync_all()), "an fsync tells it");
    // Once.
    file.write_all_at(&[3; 4096], 0)?;
    file.sync_all()?;
    drop(file);
    let found = fs::read(mount.join("file"))?;
    assert_eq!(found[..4096], [3; 4096]);
    let is_there = |mib: &u64| found[(*mib as usize) << 20..].starts_with(&[2; 1 << 20]);
    assert!(is_there(&QUEUED_MIB), "the end was kept");
    let there = (1..=QUEUED_MIB).filter(is_there).count() as u64;
    assert!(there < QUEUED_MIB, "not all of it was");
    let lost = |volume: &Value| {
        let notes = volume["notes"].as_array().map_or(&[][..], Vec::as_slice);
        let told = |note: &Value| {
            let words = note.as_str().unwrap_or_default();
            words.contains("confirmed operations were lost")
        };
        notes.iter().any(told)
    };
    lab.wait_volume(1, VOLUME, "the loss is told", WITHIN, lost)?;
    assert!(has_event(&lab, 1, "operations_lost")?);
    lab.start(0)?;
    let split = |volume: &Value| volume["split_brain"].is_object();
    lab.wait_volume(1, VOLUME, "the other history kept", WITHIN, split)?;
    lab.finish()?;
    Ok(())
}
