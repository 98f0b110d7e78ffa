//! RS-2, RS-3, RS-6 with real processes and networks: what travels after the death of a primary
//! under load, how fast an empty brick is filled, and what an application notices of a resync.
//!
//! In CI the amounts are small, and bytes are what is checked; `cargo xtask resync` takes the
//! amounts that are promised for, and shows rates and latencies.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cairn_lab::{Lab, is_in_sync};
use cairn_tests::network::Network;
use cairn_tests::{Mounted, Random, all_equal, binary, setting, skip};
use serde_json::{Value, json};

const VOLUME: &str = "v1";
const WITHIN: Duration = Duration::from_secs(600);
/// The node without a brick: it mounts.
const WITNESS: usize = 2;
/// A link with 1 Gbit/s.
const KILOBITS: u32 = 1_000_000;
/// RS-2, of the volume option's default.
const UNSTABLE_BYTES_MAX: u64 = 64 << 20;
const BLOCK: u64 = 4096;

/// Bytes that do not repeat.
fn noise(random: &mut Random, bytes: usize) -> Vec<u8> {
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        noise.extend_from_slice(&random.below(u64::MAX).to_le_bytes());
    }
    noise.truncate(bytes);
    noise
}

/// Writes a file of so many MiB from the start, and fsyncs it.
fn fill(path: &Path, mib: u64, random: &mut Random) -> Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    for piece in 0..mib {
        file.write_all_at(&noise(random, 1 << 20), piece << 20)?;
    }
    file.sync_all()?;
    Ok(())
}

fn in_sync(lab: &Lab, replicas: usize) -> Result<Value> {
    let all = |volume: &Value| {
        is_in_sync(volume) && volume["replicas"].as_array().map(Vec::len) == Some(replicas)
    };
    Ok(lab.wait_volume(WITNESS, VOLUME, "in sync", WITHIN, all)?)
}

/// The last resync of a node's replica.
fn last_resync(status: &Value, node: &str) -> Result<Value> {
    let replicas = status["replicas"].as_array().context("replicas")?;
    let replica = replicas.iter().find(|replica| replica["node"] == node);
    let last = replica.map(|replica| replica["last_resync"].clone());
    last.filter(|last| !last.is_null())
        .with_context(|| format!("{node} was not brought up to date: {status}"))
}

/// Bytes a second of a resync, by what it had to bring over.
fn rate(last: &Value) -> Result<f64> {
    let (bytes, seconds) = (&last["total_bytes"], &last["duration_seconds"]);
    let found = bytes.as_f64().zip(seconds.as_f64());
    let (bytes, seconds) = found.with_context(|| format!("no figures: {last}"))?;
    Ok(bytes / seconds)
}

fn save(part: &str, value: &Value) -> Result<()> {
    println!("{part}: {value:#}");
    if let Some(dir) = std::env::var_os("CAIRN_CATCHING_UP_OUT") {
        std::fs::create_dir_all(&dir)?;
        let path = PathBuf::from(dir).join(format!("{part}.json"));
        std::fs::write(&path, format!("{value:#}\n"))
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Puts 4 KiB somewhere in the first blocks of a file.
fn write_anywhere(file: &File, blocks: u64, random: &mut Random) -> std::io::Result<()> {
    let bytes = random.below(u64::MAX).to_le_bytes();
    let bytes = bytes.repeat(BLOCK as usize / bytes.len());
    file.write_all_at(&bytes, random.below(blocks) * BLOCK)
}

/// Writers that put 4 KiB anywhere in a file until they are stopped, without fsync.
struct Storm {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    threads: Vec<JoinHandle<std::io::Result<()>>>,
}

impl Storm {
    fn start(path: &Path, blocks: u64, threads: u64, random: &mut Random) -> Result<Self> {
        let (stop, written) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let mut running = Vec::new();
        for _ in 0..threads {
            let file = OpenOptions::new().write(true).open(path)?;
            let (stop, written) = (Arc::clone(&stop), Arc::clone(&written));
            let mut random = random.fork();
            running.push(std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    write_anywhere(&file, blocks, &mut random)?;
                    written.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            }));
        }
        Ok(Self {
            stop,
            written,
            threads: running,
        })
    }

    /// Waits for so many writes; writers that do not go on are an error.
    fn wait(&self, writes: u64) -> Result<()> {
        let began = Instant::now();
        while self.written.load(Ordering::Relaxed) < writes {
            ensure!(began.elapsed() < WITHIN, "the writers do not go on");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Ends them; says how many blocks they wrote in all.
    fn finish(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().ok().context("a writer panicked")??;
        }
        Ok(self.written.load(Ordering::Relaxed))
    }
}

/// RS-2: besides what was written while it was away, a primary that died under load is sent what
/// was not yet stable on both sides, whatever the size of the object.
#[test]
fn rs_2_a_primary_that_died_under_random_writes_is_sent_little() -> Result<()> {
    let mib = setting("CAIRN_CATCHING_UP_OBJECT_MIB", 256);
    let writes = setting("CAIRN_CATCHING_UP_WRITES", 10_000);
    let mut random = Random::from_env("CAIRN_CATCHING_UP_SEED");
    let Some(Mounted {
        dir: _dir,
        mut lab,
        mount,
    }) = Mounted::new(VOLUME, 3)?
    else {
        return Ok(());
    };
    let path = mount.join("object");
    fill(&path, mib, &mut random)?;
    let storm = Storm::start(&path, (mib << 20) / BLOCK, 4, &mut random)?;
    storm.wait(writes)?;
    let before = storm.written.load(Ordering::Relaxed);
    lab.kill(0);
    let all = storm.finish()?;
    lab.start(0)?;
    let status = in_sync(&lab, 2)?;
    // Where both ended with the same record, and the writers were answered what the dead primary
    // would have answered, there is nothing to send.
    let last = last_resync(&status, &lab.name(0)).unwrap_or_else(|_| json!({ "sent_bytes": 0 }));
    let sent = last["sent_bytes"].as_u64().context("sent")?;
    save(
        "rs-2",
        &json!({
            "object_bytes": mib << 20,
            "writes_before": before,
            "writes_after": all - before,
            "sent_bytes": sent,
            "rule": last["rule"],
            "duration_seconds": last["duration_seconds"],
        }),
    )?;
    // 4 KiB and what tells where they belong.
    let bound = UNSTABLE_BYTES_MAX + (all - before) * (BLOCK + 512);
    assert!(
        sent <= bound,
        "{sent} bytes were sent, {bound} are promised: {last}"
    );
    all_equal(&lab, WITNESS, VOLUME)?;
    lab.finish()?;
    Ok(())
}

/// An application that puts 4 KiB anywhere in a file of its own and waits for fdatasync.
struct Application {
    file: File,
    random: Random,
}

impl Application {
    const BLOCKS: u64 = 16 << 10;

    fn start(path: &Path, random: &mut Random) -> Result<Self> {
        let file = File::create(path)?;
        file.write_all_at(&noise(random, 64 << 20), 0)?;
        file.sync_all()?;
        let random = random.fork();
        Ok(Self { file, random })
    }

    /// Works until told to stop; the latencies, sorted, in microseconds.
    fn work(&mut self, mut goes_on: impl FnMut(Duration) -> Result<bool>) -> Result<Vec<u64>> {
        let began = Instant::now();
        let mut latencies = Vec::new();
        while goes_on(began.elapsed())? {
            let asked = Instant::now();
            write_anywhere(&self.file, Self::BLOCKS, &mut self.random)?;
            self.file.sync_data()?;
            latencies.push(u64::try_from(asked.elapsed().as_micros())?);
        }
        latencies.sort_unstable();
        Ok(latencies)
    }
}

fn figures(latencies: &[u64]) -> Value {
    let at = |percent: usize| latencies.get(latencies.len() * percent / 100).copied();
    json!({
        "operations": latencies.len(),
        "p50_us": at(50),
        "p99_us": at(99),
        "longest_us": latencies.last(),
    })
}

/// What writing and one fsync at the end reach in the bricks' own file system.
fn disk_rate(dir: &Path, mib: u64, random: &mut Random) -> Result<f64> {
    let path = dir.join("plain");
    let began = Instant::now();
    fill(&path, mib, random)?;
    let rate = (mib << 20) as f64 / began.elapsed().as_secs_f64();
    std::fs::remove_file(path)?;
    Ok(rate)
}

struct Stage {
    lab: Lab,
    mount: PathBuf,
    mib: u64,
    random: Random,
}

impl Stage {
    /// The second replica goes away, the file is written anew, and it comes back.
    fn falls_behind(&mut self) -> Result<()> {
        self.lab.kill(1);
        fill(&self.mount.join("large"), self.mib, &mut self.random)?;
        self.lab.start(1)?;
        Ok(())
    }

    fn beside_an_application(&mut self, seconds: u64) -> Result<Value> {
        self.falls_behind()?;
        let free = last_resync(&in_sync(&self.lab, 2)?, &self.lab.name(1))?;
        let mut application =
            Application::start(&self.mount.join("application"), &mut self.random)?;
        let time = Duration::from_secs(seconds);
        let for_a_while = |passed: Duration| Ok(passed < time);
        let in_sync_before = application.work(for_a_while)?;
        self.lab.kill(1);
        fill(&self.mount.join("large"), self.mib, &mut self.random)?;
        let alone = application.work(for_a_while)?;
        self.lab.start(1)?;
        let mut looked = Instant::now();
        let beside = application.work(|_| {
            if looked.elapsed() < Duration::from_millis(500) {
                return Ok(true);
            }
            looked = Instant::now();
            Ok(!is_in_sync(&self.lab.volume(WITNESS, VOLUME)?))
        })?;
        let held = last_resync(&in_sync(&self.lab, 2)?, &self.lab.name(1))?;
        Ok(json!({
            "resync_alone_bytes_per_second": rate(&free)?,
            "resync_beside_bytes_per_second": rate(&held)?,
            "application_both_in_sync": figures(&in_sync_before),
            "application_other_replica_away": figures(&alone),
            "application_beside_resync": figures(&beside),
        }))
    }
}

/// RS-3, RS-6: an empty brick is filled over a link with 1 Gbit/s, and a replica that lacks
/// everything is brought up to date beside an application.
#[test]
fn an_empty_brick_is_filled_and_an_application_goes_on_beside_a_resync() -> Result<()> {
    let mib = setting("CAIRN_CATCHING_UP_MIB", 64);
    let seconds = setting("CAIRN_CATCHING_UP_SECONDS", 1);
    if !Path::new("/dev/fuse").exists() {
        skip("there is no /dev/fuse");
        return Ok(());
    }
    let Some(network) = Network::new(3)? else {
        return Ok(());
    };
    let dir = tempfile::tempdir()?;
    let mut random = Random::from_env("CAIRN_CATCHING_UP_SEED");
    let mut lab = Lab::at(&binary(), dir.path(), network.places());
    lab.form_pool()?;
    lab.make_volume(VOLUME, 1)?;
    let mount = dir.path().join("mnt");
    lab.mount(WITNESS, VOLUME, &mount)?;
    fill(&mount.join("large"), mib, &mut random)?;
    network.slow(0, KILOBITS)?;
    network.slow(1, KILOBITS)?;
    let link = network.rate(0, 1, mib << 20)?;
    let disk = disk_rate(dir.path(), mib, &mut random)?;
    let brick = lab.brick(1, VOLUME);
    std::fs::create_dir_all(brick.parent().context("a parent")?)?;
    let at = format!("{}:{}", lab.name(1), brick.display());
    let words = ["volume", "add-brick", VOLUME, "replica", "2", &at, "force"];
    lab.cairn(0, &words)?;
    let full = last_resync(&in_sync(&lab, 2)?, &lab.name(1))?;
    ensure!(full["kind"] == "full", "{full}");
    let filled = json!({
        "link_bytes_per_second": link,
        "disk_bytes_per_second": disk,
        "resync_bytes_per_second": rate(&full)?,
        "of_the_lesser": rate(&full)? / link.min(disk),
        "resync": full,
    });
    save("rs-6", &filled)?;
    let mut stage = Stage {
        lab,
        mount,
        mib,
        random,
    };
    let beside = stage.beside_an_application(seconds)?;
    save("rs-3", &beside)?;
    all_equal(&stage.lab, WITNESS, VOLUME)?;
    stage.lab.finish()?;
    Ok(())
}
