//! RS-1 with real processes: what a replica that was away gets is what differs, however often it
//! was overwritten, and also after the journal was recycled and both daemons were restarted.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cairn_lab::{Lab, is_in_sync, is_root};
use cairn_tests::{Random, all_equal, binary, setting, skip};
use serde_json::Value;

const VOLUME: &str = "v1";
const BLOCKS: u64 = 1000;
/// 1.1 times the blocks and 1 MiB.
const BYTES_MAX: u64 = BLOCKS * 4096 * 11 / 10 + (1 << 20);
const IN_SYNC_WITHIN: Duration = Duration::from_secs(120);

/// A small file system of its own, so that the journal is small and is soon recycled.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn make(image: &Path, at: &'a Path, bytes: u64) -> Result<Self> {
        File::create(image)?.set_len(bytes)?;
        fs::create_dir_all(at)?;
        let (image, text) = (image.display().to_string(), at.display().to_string());
        for words in [
            vec!["mkfs.ext4", "-q", "-F", &image],
            vec!["mount", "-o", "loop", &image, &text],
        ] {
            let done = Command::new(words[0])
                .args(&words[1..])
                .status()
                .context("make a disk")?;
            ensure!(done.success(), "{words:?}");
        }
        Ok(Self(at))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

fn comes_back(lab: &Lab, what: &str, bytes_max: u64) -> Result<Value> {
    let status = lab.wait_volume(0, VOLUME, "in sync", IN_SYNC_WITHIN, is_in_sync)?;
    let last = status["replicas"][1]["last_resync"].clone();
    let sent = last["sent_bytes"].as_u64().context("a resync took place")?;
    println!(
        "{what}: {sent} bytes on the wire in {} s by rule {}, of {} bytes used",
        last["duration_seconds"], last["rule"], status["used_bytes"]
    );
    assert_eq!(last["kind"], "partial", "{last}");
    assert!(
        sent <= bytes_max,
        "{what}: {sent} bytes were sent, {bytes_max} are promised (RS-1)"
    );
    Ok(last)
}

#[test]
fn a_replica_that_was_away_gets_only_what_differs() -> Result<()> {
    if !is_root() || !Path::new("/dev/fuse").exists() || !Path::new("/dev/loop-control").exists() {
        skip("this needs root, /dev/fuse and loop devices");
        return Ok(());
    }
    let mut random = Random::from_env("CAIRN_RESYNC_SEED");
    let file_bytes = setting("CAIRN_RESYNC_FILE_MIB", 1024) << 20;
    let dir = tempfile::tempdir()?;
    let (disk_at, image) = (dir.path().join("disk"), dir.path().join("disk.img"));
    let _disk = SmallDisk::make(&image, &disk_at, 4 << 30)?;
    let mut lab = Lab::new(&binary(), &disk_at, 2)?;
    lab.form_pool()?;
    lab.make_volume(VOLUME, 2)?;
    let mount = dir.path().join("mnt");
    lab.mount(0, VOLUME, &mount)?;
    let file = File::create_new(mount.join("large"))?;
    for piece in 0..file_bytes >> 20 {
        file.write_all_at(&vec![piece as u8 | 1; 1 << 20], piece << 20)?;
    }
    file.sync_all()?;
    let mut blocks: Vec<u64> = Vec::new();
    while blocks.len() < BLOCKS as usize {
        let block = random.below(file_bytes / 4096);
        if !blocks.contains(&block) {
            blocks.push(block);
        }
    }
    // Each changed block is overwritten 50 times while the replica is away.
    lab.kill(1);
    for round in 0..50 {
        for block in &blocks {
            file.write_all_at(&[round; 4096], block * 4096)?;
        }
    }
    file.sync_all()?;
    lab.start(1)?;
    comes_back(&lab, "1,000 blocks overwritten 50 times", BYTES_MAX)?;

    // The journal is recycled: 16 KiB at one place, over and over, more than the journal holds.
    lab.stop(1)?;
    for block in &blocks {
        file.write_all_at(&[77; 4096], block * 4096)?;
    }
    let journal = 4_u64 << 30 >> 4;
    for round in 0..journal / (16 << 10) + 4096 {
        file.write_all_at(&[round as u8; 16 << 10], 0)?;
    }
    file.sync_all()?;
    drop(file);
    lab.kill(0);
    lab.start(0)?;
    lab.start(1)?;
    comes_back(
        &lab,
        "the same after the journal was recycled and both restarted",
        BYTES_MAX,
    )?;
    all_equal(&lab, 0, VOLUME)?;
    lab.finish()?;
    Ok(())
}
