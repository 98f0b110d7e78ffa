//! How a daemon's memory grows with the number of files and with sparse data: it is bounded by
//! what waits for a checkpoint and by caches of fixed size, not by what the volume holds.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context, Result};
use cairn_lab::Lab;
use cairn_tests::{binary, setting, skip};

const VOLUME: &str = "v1";
/// What a daemon that serves a million files and 100 GB of sparse data may hold.
const RESIDENT_BYTES_MAX: u64 = 512 << 20;

/// RssAnon + RssShmem (proc(5)).
fn resident(lab: &Lab, node: usize) -> Result<u64> {
    let pid = lab.pid(node).context("the node runs")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = status
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_default();
        line.split_whitespace()
            .nth(1)
            .and_then(|kib| kib.parse::<u64>().ok())
            .unwrap_or(0)
            * 1024
    };
    Ok(field("RssAnon") + field("RssShmem"))
}

#[test]
fn a_daemons_memory_stays_within_its_bound_however_many_files_it_serves() -> Result<()> {
    if !Path::new("/dev/fuse").exists() {
        skip("there is no /dev/fuse");
        return Ok(());
    }
    let files = setting("CAIRN_MEMORY_FILES", 5_000);
    let sparse_bytes = setting("CAIRN_MEMORY_SPARSE_GB", 10) * 1_000_000_000;
    let dir = tempfile::tempdir()?;
    let mut lab = Lab::new(&binary(), dir.path(), 2)?;
    lab.form_pool()?;
    lab.make_volume(VOLUME, 2)?;
    let mount = dir.path().join("mnt");
    lab.mount(0, VOLUME, &mount)?;
    let tell = |lab: &Lab, what: &str| -> Result<()> {
        let mib = |node| Ok::<_, anyhow::Error>(resident(lab, node)? as f64 / (1 << 20) as f64);
        println!(
            "{what}: primary {:.0} MiB, secondary {:.0} MiB",
            mib(0)?,
            mib(1)?
        );
        for node in 0..2 {
            assert!(
                resident(lab, node)? <= RESIDENT_BYTES_MAX,
                "{what}: node {node} holds more"
            );
        }
        Ok(())
    };
    tell(&lab, "an empty volume")?;
    // Sparse: 4 KiB at every 4 MiB, so that each extent has an array of checksums.
    let sparse = File::create_new(mount.join("sparse"))?;
    for extent in 0..sparse_bytes >> 22 {
        sparse.write_all_at(&[1; 4096], extent << 22)?;
    }
    sparse.set_len(sparse_bytes)?;
    sparse.sync_all()?;
    tell(
        &lab,
        &format!("{} GB of sparse data", sparse_bytes / 1_000_000_000),
    )?;
    for number in 0..files {
        let directory = mount.join(format!("d{}", number / 1000));
        if number % 1000 == 0 {
            fs::create_dir(&directory)?;
        }
        fs::write(directory.join(format!("f{number}")), [number as u8; 100])?;
        if (number + 1) % (files / 4).max(1) == 0 {
            tell(&lab, &format!("and {} files", number + 1))?;
        }
    }
    let found: usize = (0..files.div_ceil(1000))
        .map(|d| fs::read_dir(mount.join(format!("d{d}"))).map(Iterator::count))
        .sum::<std::io::Result<usize>>()?;
    assert_eq!(found as u64, files);
    tell(&lab, "after all were listed")?;
    lab.finish()?;
    Ok(())
}
