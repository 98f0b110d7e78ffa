//! BAD-3, FO-5 with real processes: a link that gets slow, a brick's file system that is full or
//! goes read-only under a writer, a brick's directory that is gone. Nothing confirmed is lost, the
//! daemons stay up, and when the cause is gone the replicas are in sync and equal.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use cairn_lab::{Lab, is_in_sync, is_root};
use cairn_tests::network::Cabled;
use cairn_tests::pulse::{BLOCK_BYTES, Pulse};
use cairn_tests::system::{Mounts, run, sparse};
use cairn_tests::{Writer, all_equal, binary, missing, skip};
use serde_json::Value;
use tempfile::TempDir;

const VOLUME: &str = "v1";
const WITHIN: Duration = Duration::from_secs(60);
/// The node without a brick; it mounts, and is asked.
const WITNESS: usize = 2;
/// Size of a brick's file system: several times the least that a brick needs.
const BRICK_BYTES: u64 = 2 << 30;

/// Nodes and a mount, with bricks on file systems of their own. Fields go in this order.
struct Place {
    lab: Lab,
    bricks: Mounts,
    mount: PathBuf,
    dir: TempDir,
}

impl Place {
    /// `None`, said loudly, where there is no root, FUSE or loop device.
    fn new() -> Result<Option<Self>> {
        let there = |path| Path::new(path).exists();
        if !is_root() || !there("/dev/fuse") || !there("/dev/loop-control") {
            skip("bricks on file systems of their own need root, /dev/fuse and loop devices");
            return Ok(None);
        }
        let dir = tempfile::tempdir()?;
        let mut place = Self {
            lab: Lab::new(&binary(), dir.path(), 3)?,
            bricks: Mounts::default(),
            mount: dir.path().join("mnt"),
            dir,
        };
        for node in 0..2 {
            let image = place.image(node);
            sparse(&image, BRICK_BYTES)?;
            place
                .bricks
                .make("ext4", &image, &place.file_system(node)?)?;
        }
        place.lab.form_pool()?;
        place.lab.make_volume(VOLUME, 2)?;
        place.lab.mount(WITNESS, VOLUME, &place.mount)?;
        Ok(Some(place))
    }

    fn image(&self, node: usize) -> PathBuf {
        self.dir.path().join(format!("brick{}.img", node + 1))
    }

    /// Where the file system of a node's brick is mounted.
    fn file_system(&self, node: usize) -> Result<PathBuf> {
        let brick = self.lab.brick(node, VOLUME);
        Ok(brick.parent().context("a brick has a parent")?.to_owned())
    }

    /// Waits until the replicas are in sync, and compares them.
    fn end(mut self, writer: Pulse) -> Result<()> {
        for node in 0..=WITNESS {
            ensure!(self.lab.is_running(node), "the daemon of node {node} ended");
        }
        in_sync_and_equal(&self.lab)?;
        writer.wait(20)?;
        writer.finish()?;
        self.lab.finish()?;
        Ok(())
    }
}

fn in_sync_and_equal(lab: &Lab) -> Result<()> {
    lab.wait_volume(WITNESS, VOLUME, "in sync", WITHIN, is_in_sync)?;
    all_equal(lab, WITNESS, VOLUME)
}

/// The node that is primary.
fn primary(lab: &Lab) -> Result<usize> {
    let status = lab.volume(WITNESS, VOLUME)?;
    let name = status["primary"].as_str().unwrap_or_default();
    (0..2)
        .find(|node| lab.name(*node) == name)
        .with_context(|| format!("no primary: {status}"))
}

/// Whether a replica of a status is out of the set, and the status says why.
fn has_failed(volume: &Value, node: usize) -> bool {
    let replica = &volume["replicas"][node];
    replica["disk"] == "failed" && replica["reason"].is_string()
}

/// Writes until there is no room; returns how many blocks were confirmed.
fn fill(file: &File) -> Result<u64> {
    let block = [9; 64 << 10];
    for number in 0.. {
        let wrote = file
            .write_all_at(&block, number * block.len() as u64)
            .and_then(|()| file.sync_data());
        match wrote {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(number),
            Err(error) => bail!("block {number}: {error}"),
        }
    }
    bail!("there is room for ever")
}

/// Does `work` as soon as there is room: the nodes tell each other a few times a second.
fn with_room<T>(work: impl Fn() -> io::Result<T>) -> Result<T> {
    let began = Instant::now();
    loop {
        match work() {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                ensure!(began.elapsed() < WITHIN, "there is no room again");
            }
            done => return Ok(done?),
        }
    }
}

/// Takes what is left of a file system but `leave` bytes.
fn occupy(at: &Path, leave: u64) -> Result<PathBuf> {
    let out = run("df", &["--output=avail", "-B1", &at.display().to_string()])?;
    let free: u64 = out.split_whitespace().last().context("df")?.parse()?;
    let filler = at.join("filler");
    let length = free.saturating_sub(leave).to_string();
    run("fallocate", &["-l", &length, &filler.display().to_string()])?;
    Ok(filler)
}

/// Whichever brick's file system is full: the writer is told ENOSPC and nothing else, what was
/// confirmed stays, files can be removed, and with room again writes go on.
fn full(secondary: bool) -> Result<()> {
    let Some(place) = Place::new()? else {
        return Ok(());
    };
    let first = primary(&place.lab)?;
    let node = if secondary { 1 - first } else { first };
    let kept = place.mount.join("kept");
    let mut file = File::create(&kept)?;
    file.write_all(&[5; BLOCK_BYTES])?;
    file.sync_all()?;
    drop(file);
    let filler = occupy(&place.file_system(node)?, 8 << 20)?;
    let big = place.mount.join("big");
    let file = File::create(&big);
    let confirmed = match &file {
        Ok(file) => fill(file)?,
        Err(error) if error.kind() == io::ErrorKind::StorageFull => 0,
        Err(error) => bail!("create: {error}"),
    };
    drop(file);
    ensure!(fs::read(&kept)? == [5; BLOCK_BYTES], "what was there");
    if confirmed > 0 {
        let found = fs::read(&big)?;
        let confirmed = confirmed as usize * (64 << 10);
        ensure!(found.len() >= confirmed, "{} bytes", found.len());
        ensure!(
            found[..confirmed].iter().all(|byte| *byte == 9),
            "other bytes"
        );
        fs::remove_file(&big).context("remove a file from a full volume")?;
    }
    fs::remove_file(&filler)?;
    in_sync_and_equal(&place.lab)?;
    let pulse = with_room(|| {
        fs::write(place.mount.join("room"), [3; 64 << 10])?;
        Pulse::start(&place.mount.join("pulse"))
    })?;
    place.end(pulse)
}

#[test]
fn a_writer_is_told_that_the_primarys_file_system_is_full_and_loses_nothing() -> Result<()> {
    full(false)
}

#[test]
fn a_writer_is_told_that_a_secondarys_file_system_is_full_and_loses_nothing() -> Result<()> {
    full(true)
}

/// The kernel ends a file system: every further write fails with EROFS, as after an error of its
/// device. With a remount, it may not: files are open for writing.
fn make_read_only(at: &Path) -> Result<()> {
    run("mount", &["-o", "remount,abort", &at.display().to_string()]).map(drop)
}

/// Mounts it anew, as an operator does: the daemon must let go of it first.
fn repair(place: &mut Place, node: usize) -> Result<()> {
    let at = place.file_system(node)?;
    place.lab.stop(node)?;
    place.bricks.umount(&at)?;
    let checked = Command::new("e2fsck")
        .arg("-p")
        .arg(place.image(node))
        .output()?;
    // 1: put right.
    let is_right = matches!(checked.status.code(), Some(0 | 1));
    ensure!(is_right, "e2fsck: {checked:?}");
    place.bricks.mount(&place.image(node), &at, "loop")?;
    place.lab.start(node)?;
    Ok(())
}

fn read_only(secondary: bool) -> Result<()> {
    let Some(mut place) = Place::new()? else {
        return Ok(());
    };
    let first = primary(&place.lab)?;
    let node = if secondary { 1 - first } else { first };
    let pulse = Pulse::start(&place.mount.join("pulse"))?;
    pulse.wait(20)?;
    make_read_only(&place.file_system(node)?)?;
    pulse.wait(50)?;
    let failed = |volume: &Value| has_failed(volume, node);
    place
        .lab
        .wait_volume(WITNESS, VOLUME, "the replica failed", WITHIN, failed)?;
    pulse.compare()?;
    repair(&mut place, node)?;
    place.end(pulse)
}

#[test]
fn a_secondary_whose_file_system_goes_read_only_steps_aside_and_comes_back() -> Result<()> {
    read_only(true)
}

#[test]
fn a_primary_whose_file_system_goes_read_only_steps_aside_and_comes_back() -> Result<()> {
    read_only(false)
}

/// The directory is renamed away under a running daemon: it holds what it has opened, and serves
/// on. Started anew it has no brick, says so, and leaves the path alone; when the directory is
/// back, so is the replica.
#[test]
fn a_brick_that_is_gone_at_the_start_is_told_and_its_return_heals_the_replica() -> Result<()> {
    let Some(mut place) = Place::new()? else {
        return Ok(());
    };
    let node = primary(&place.lab)?;
    let pulse = Pulse::start(&place.mount.join("pulse"))?;
    pulse.wait(20)?;
    let brick = place.lab.brick(node, VOLUME);
    let aside = brick.with_extension("aside");
    fs::rename(&brick, &aside)?;
    pulse.wait(200)?;
    pulse.compare()?;
    place.lab.kill(node);
    place.lab.start(node)?;
    pulse.wait(50)?;
    let failed = |volume: &Value| has_failed(volume, node);
    place
        .lab
        .wait_volume(WITNESS, VOLUME, "the replica failed", WITHIN, failed)?;
    ensure!(!brick.exists(), "nothing is made in its place");
    fs::rename(&aside, &brick)?;
    place.lab.cairn(node, &["volume", "start", VOLUME])?;
    place.end(pulse)
}

/// FO-5: a link that became slow holds the writer up, and brings no error; with its speed again
/// the replicas are in sync.
#[test]
fn a_slow_link_costs_time_and_nothing_else() -> Result<()> {
    // The lab is dropped first.
    let Some(Cabled {
        dir: _dir,
        network,
        mount,
        mut lab,
    }) = Cabled::new(VOLUME)?
    else {
        return Ok(());
    };
    let pulse = Pulse::start(&mount.join("pulse"))?;
    let writer = Writer::start(&mount, 5)?;
    pulse.wait(50)?;
    let slow = primary(&lab)?;
    network.slow(slow, 4000)?;
    pulse.wait(20)?;
    pulse.compare()?;
    network.full_speed(slow)?;
    let wrong = missing(&mount, &writer.finish()?, false)?;
    ensure!(wrong.is_empty(), "{wrong:?}");
    pulse.finish()?;
    in_sync_and_equal(&lab)?;
    for node in 0..=WITNESS {
        ensure!(lab.is_running(node), "the daemon of node {node} ended");
    }
    lab.finish()?;
    Ok(())
}
