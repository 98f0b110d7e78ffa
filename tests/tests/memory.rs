//! How memory grows with the number of files, with sparse data and with time: a daemon's is bounded by
//! what waits for a checkpoint and by caches of fixed size, not by what the volume holds, and a
//! mount's by its option `cache-size`.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cairn_lab::Lab;
use cairn_tests::machine::source;
use cairn_tests::{binary, mount_pid, setting, skip};

const VOLUME: &str = "v1";
/// What a daemon that serves a million files and 100 GB of sparse data may hold.
const RESIDENT_BYTES_MAX: u64 = 512 << 20;
/// A mount's memory besides its cache: buffers of requests, what it keeps until it is stable, threads.
const MOUNT_BESIDES: u64 = 96 << 20;
/// `cache-size`, unless a mount says otherwise.
const CACHE_BYTES: u64 = 256 << 20;
const FILES_A_DIRECTORY: u64 = 1000;

/// RssAnon + RssShmem (proc(5)), in bytes.
fn resident(pid: u32) -> Result<u64> {
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

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

/// Two nodes, a volume and a mount of it.
struct Bench {
    _dir: tempfile::TempDir,
    lab: Lab,
    mount: PathBuf,
    mount_pid: u32,
}

impl Bench {
    /// `None`, said loudly, where this machine cannot mount.
    fn new(options: &str) -> Result<Option<Self>> {
        if !Path::new("/dev/fuse").exists() {
            skip("there is no /dev/fuse");
            return Ok(None);
        }
        let dir = tempfile::tempdir()?;
        let mut lab = Lab::new(&binary(), dir.path(), 2)?;
        lab.form_pool()?;
        lab.make_volume(VOLUME, 2)?;
        let mount = dir.path().join("mnt");
        fs::create_dir(&mount)?;
        let at = mount.to_str().context("a path of letters")?;
        lab.cairn(0, &["mount", &source(&lab, VOLUME), at, "-o", options])?;
        let mount_pid = mount_pid(&mount)?;
        Ok(Some(Self {
            _dir: dir,
            lab,
            mount,
            mount_pid,
        }))
    }

    fn tell(&self, what: &str) -> Result<()> {
        let node = |node| resident(self.lab.pid(node).context("the node runs")?);
        let (primary, secondary, mount) = (node(0)?, node(1)?, resident(self.mount_pid)?);
        println!(
            "{what}: primary {:.0} MiB, secondary {:.0} MiB, mount {:.0} MiB",
            mib(primary),
            mib(secondary),
            mib(mount)
        );
        for daemon in [primary, secondary] {
            ensure!(daemon <= RESIDENT_BYTES_MAX, "{what}: a daemon holds more");
        }
        ensure!(
            mount <= CACHE_BYTES + MOUNT_BESIDES,
            "{what}: the mount holds more"
        );
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        self.lab.umount(&self.mount)?;
        Ok(self.lab.finish()?)
    }
}

/// Makes the files `from..to`, in several threads.
fn make_files(mount: &Path, from: u64, to: u64) -> Result<()> {
    const THREADS: u64 = 4;
    let directories = from / FILES_A_DIRECTORY..to.div_ceil(FILES_A_DIRECTORY);
    let make = |thread: u64| -> Result<()> {
        for number in directories.clone().filter(|n| n % THREADS == thread) {
            let directory = mount.join(format!("d{number}"));
            fs::create_dir(&directory)?;
            let first = number * FILES_A_DIRECTORY;
            for file in first..(first + FILES_A_DIRECTORY).min(to) {
                fs::write(directory.join(format!("f{file}")), [file as u8; 100])?;
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|n| scope.spawn(move || make(n))).collect();
        let mut ended = threads.into_iter().map(|it| it.join().expect("no panic"));
        ended.try_for_each(|made| made)
    })
}

/// Every name with its attributes.
fn walk(mount: &Path, files: u64) -> Result<u64> {
    let mut found = 0;
    for number in 0..files.div_ceil(FILES_A_DIRECTORY) {
        for entry in fs::read_dir(mount.join(format!("d{number}")))? {
            ensure!(entry?.metadata()?.len() == 100);
            found += 1;
        }
    }
    Ok(found)
}

#[test]
fn memory_stays_within_its_bound_however_many_files_are_served_and_walked() -> Result<()> {
    let files = setting("CAIRN_MEMORY_FILES", 5_000);
    let sparse_bytes = setting("CAIRN_MEMORY_SPARSE_GB", 10) * 1_000_000_000;
    let Some(bench) = Bench::new("rw")? else {
        return Ok(());
    };
    let mount = &bench.mount;
    bench.tell("an empty volume")?;
    // Sparse: 4 KiB at every 4 MiB, so that each extent has an array of checksums.
    let sparse = File::create_new(mount.join("sparse"))?;
    for extent in 0..sparse_bytes >> 22 {
        sparse.write_all_at(&[1; 4096], extent << 22)?;
    }
    sparse.set_len(sparse_bytes)?;
    sparse.sync_all()?;
    drop(sparse);
    let gigabytes = sparse_bytes / 1_000_000_000;
    bench.tell(&format!("{gigabytes} GB of sparse data"))?;
    let step = (files / 5).next_multiple_of(FILES_A_DIRECTORY);
    let mut made = 0;
    while made < files {
        let to = (made + step).min(files);
        make_files(mount, made, to)?;
        made = to;
        bench.tell(&format!("and {made} files"))?;
    }
    for round in ["walked", "walked once more"] {
        ensure!(walk(mount, files)? == files);
        bench.tell(&format!("after all were {round}"))?;
    }
    bench.end()
}

/// What applications do all day, in one directory of many.
fn churn(mount: &Path, round: u64) -> Result<()> {
    let directory = mount.join(format!("s{}", round % 512));
    let _ = fs::remove_dir_all(&directory); // of 512 rounds ago
    fs::create_dir(&directory)?;
    for number in 0..20 {
        let path = directory.join(format!("a file of round {round} with number {number}"));
        fs::write(&path, [7; 3000])?;
        ensure!(fs::read(&path)?.len() == 3000);
        match number % 4 {
            0 => fs::rename(&path, path.with_extension("renamed"))?,
            1 => fs::remove_file(&path)?,
            2 => fs::hard_link(&path, path.with_extension("linked"))?,
            _ => File::open(&path)?.sync_all()?,
        }
    }
    ensure!(fs::metadata(directory.join("nothing")).is_err());
    for entry in fs::read_dir(&directory)? {
        entry?.metadata()?;
    }
    Ok(())
}

/// After the first half, in which caches fill up, nothing grows.
#[test]
fn a_mounts_memory_does_not_grow_with_time() -> Result<()> {
    const CACHE: u64 = 4 << 20;
    const SAMPLES: u32 = 40;
    let lasts = Duration::from_secs(setting("CAIRN_SOAK_SECONDS", 8));
    let Some(bench) = Bench::new("cache-size=4M")? else {
        return Ok(());
    };
    let began = Instant::now();
    let (mut rounds, mut samples) = (0, Vec::new());
    for sample in 1..=SAMPLES {
        while began.elapsed() < lasts * sample / SAMPLES {
            churn(&bench.mount, rounds)?;
            rounds += 1;
        }
        samples.push(resident(bench.mount_pid)?);
        if sample % 4 == 0 {
            bench.tell(&format!(
                "{:.0} s, {rounds} rounds",
                began.elapsed().as_secs_f64()
            ))?;
        }
    }
    let (first, second) = samples.split_at(samples.len() / 2);
    let highest = |samples: &[u64]| samples.iter().copied().max().unwrap_or(0);
    let (before, after) = (highest(first), highest(second));
    println!(
        "the mount: at most {:.1} MiB in the first half, {:.1} MiB in the second",
        mib(before),
        mib(after)
    );
    ensure!(after <= before + (8 << 20), "it grows");
    ensure!(after <= CACHE + MOUNT_BESIDES);
    bench.end()
}
