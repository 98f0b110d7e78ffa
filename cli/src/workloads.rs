//! What `cairn bench fs` and `benches/compare` run on a directory: the same calls everywhere, with
//! the latency of each.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// open(2)'s O_DIRECT on Linux, all architectures that Cairn is built for.
const O_DIRECT: i32 = 0o40000;
pub(crate) const BLOCK: usize = 4096;
/// Threads of the concurrent workloads.
pub(crate) const THREADS: usize = 16;
/// Files in one directory of the small-file workloads.
const FILES_A_DIRECTORY: usize = 500;

/// How much is done.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Bytes of the sequential file.
    pub sequential_bytes: u64,
    /// Bytes of each file of random access.
    pub random_bytes: u64,
    /// How long each random workload lasts.
    pub random_time: Duration,
    /// Small files.
    pub files: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            sequential_bytes: 512 << 20,
            random_bytes: 64 << 20,
            random_time: Duration::from_secs(3),
            files: 2000,
        }
    }
}

impl Sizes {
    /// For a quick look and for tests of the benchmark itself.
    #[must_use]
    pub fn small() -> Self {
        Self {
            sequential_bytes: 16 << 20,
            random_bytes: 4 << 20,
            random_time: Duration::from_millis(200),
            files: 100,
        }
    }
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// Which workload.
    pub workload: String,
    /// The rate.
    pub value: f64,
    /// MB/s (10^6 bytes), ops/s or s.
    pub unit: String,
    /// Median latency of one operation, where there are single ones.
    pub p50_us: Option<f64>,
    /// 99th percentile of it.
    pub p99_us: Option<f64>,
}

/// A figure from how much was done in which time, and how long each operation took.
pub fn rate(
    workload: &str,
    count: f64,
    unit: &str,
    took: Duration,
    mut each: Vec<Duration>,
) -> Measure {
    each.sort_unstable();
    let at = |share: f64| {
        let index = ((each.len() as f64 - 1.0) * share).round() as usize;
        each.get(index).map(|d| d.as_secs_f64() * 1e6)
    };
    Measure {
        workload: workload.to_owned(),
        value: count / took.as_secs_f64(),
        unit: unit.to_owned(),
        p50_us: at(0.5),
        p99_us: at(0.99),
    }
}

/// Makes everything cold: what is cached of the directory is forgotten.
pub type Cold<'a> = &'a mut dyn FnMut() -> io::Result<()>;

/// Forgets the kernel's caches; needs root. Without it "cold" figures are warm, and `false` says so.
pub fn drop_caches() -> bool {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

/// Runs every workload in `dir`, which must exist, and calls `done` with each figure.
pub fn run(
    dir: &Path,
    sizes: &Sizes,
    cold: Cold<'_>,
    done: &mut dyn FnMut(Measure),
) -> io::Result<()> {
    let work = dir.join("cairn-bench");
    let _ = fs::remove_dir_all(&work);
    fs::create_dir(&work)?;
    sequential(&work, sizes, cold, done)?;
    random(&work, sizes, done)?;
    small_files(&work, sizes, cold, done)?;
    archives(&work, done)?;
    fs::remove_dir_all(&work)
}

pub(crate) fn sequential(
    work: &Path,
    sizes: &Sizes,
    cold: Cold<'_>,
    done: &mut dyn FnMut(Measure),
) -> io::Result<()> {
    let path = work.join("sequential");
    let piece = noise(1 << 20);
    let pieces = sizes.sequential_bytes >> 20;
    let mut each = Vec::new();
    let began = Instant::now();
    let mut file = File::create(&path)?;
    for _ in 0..pieces {
        let one = Instant::now();
        file.write_all(&piece)?;
        each.push(one.elapsed());
    }
    file.sync_all()?;
    let megabytes = sizes.sequential_bytes as f64 / 1e6;
    done(rate(
        "seq_write_1m",
        megabytes,
        "MB/s",
        began.elapsed(),
        each,
    ));
    drop(file);
    cold()?;
    let mut each = Vec::new();
    let began = Instant::now();
    let mut file = File::open(&path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let one = Instant::now();
        if file.read(&mut buffer)? == 0 {
            break;
        }
        each.push(one.elapsed());
    }
    done(rate(
        "seq_read_1m_cold",
        megabytes,
        "MB/s",
        began.elapsed(),
        each,
    ));
    fs::remove_file(path)
}

/// Bytes that compress to nothing less.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new()
        .update(b"cairn bench")
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// A small generator of offsets: the same sequence in every run.
struct Offsets(u64);

impl Offsets {
    fn next(&mut self, blocks: u64) -> u64 {
        // SplitMix64 (Steele, Lea, Flood 2014).
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % blocks * BLOCK as u64
    }
}

/// A buffer of one block at an address that direct I/O accepts.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new() -> Self {
        let memory = noise(2 * BLOCK);
        let start = memory.as_ptr().align_offset(BLOCK);
        Self { memory, start }
    }
    fn block(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + BLOCK]
    }
}

fn random(work: &Path, sizes: &Sizes, done: &mut dyn FnMut(Measure)) -> io::Result<()> {
    let paths: Vec<_> = (0..THREADS)
        .map(|n| work.join(format!("random{n}")))
        .collect();
    for path in &paths {
        let mut file = File::create(path)?;
        let piece = noise(1 << 20);
        for _ in 0..sizes.random_bytes >> 20 {
            file.write_all(&piece)?;
        }
        file.sync_all()?;
    }
    done(synced_writes(&paths[0], sizes)?);
    let one = vec![paths[0].clone(); THREADS];
    let write: Act = |file, buffer, at| file.write_all_at(buffer, at);
    let read: Act = |file, buffer, at| file.read_exact_at(buffer, at);
    done(concurrent(
        "rand_write_4k_direct_16_one_file",
        &one,
        sizes,
        write,
    )?);
    done(concurrent(
        "rand_write_4k_direct_16_files",
        &paths,
        sizes,
        write,
    )?);
    done(concurrent("rand_read_4k_direct_16", &paths, sizes, read)?);
    paths.iter().try_for_each(fs::remove_file)
}

pub(crate) fn synced_writes(path: &Path, sizes: &Sizes) -> io::Result<Measure> {
    let file = File::options().write(true).open(path)?;
    let data = noise(BLOCK);
    let mut offsets = Offsets(1);
    let mut each = Vec::new();
    let began = Instant::now();
    while began.elapsed() < sizes.random_time {
        let one = Instant::now();
        file.write_all_at(&data, offsets.next(sizes.random_bytes / BLOCK as u64))?;
        file.sync_data()?;
        each.push(one.elapsed());
    }
    Ok(rate(
        "rand_write_4k_fdatasync",
        each.len() as f64,
        "ops/s",
        began.elapsed(),
        each,
    ))
}

pub(crate) type Act = fn(&File, &mut [u8], u64) -> io::Result<()>;

pub(crate) fn concurrent(
    name: &str,
    paths: &[PathBuf],
    sizes: &Sizes,
    act: Act,
) -> io::Result<Measure> {
    let stop = AtomicBool::new(false);
    let began = Instant::now();
    let each = std::thread::scope(|scope| {
        let threads: Vec<_> = paths
            .iter()
            .enumerate()
            .map(|(seed, path)| {
                let stop = &stop;
                scope.spawn(move || -> io::Result<Vec<Duration>> {
                    let file = File::options()
                        .read(true)
                        .write(true)
                        .custom_flags(O_DIRECT)
                        .open(path)?;
                    let mut buffer = Aligned::new();
                    let mut offsets = Offsets(seed as u64);
                    let mut each = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let one = Instant::now();
                        let at = offsets.next(sizes.random_bytes / BLOCK as u64);
                        act(&file, buffer.block(), at)?;
                        each.push(one.elapsed());
                    }
                    Ok(each)
                })
            })
            .collect();
        std::thread::sleep(sizes.random_time);
        stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for thread in threads {
            let done = thread
                .join()
                .map_err(|_| io::Error::other("a thread died"))?;
            all.extend(done?);
        }
        Ok::<_, io::Error>(all)
    })?;
    Ok(rate(
        name,
        each.len() as f64,
        "ops/s",
        began.elapsed(),
        each,
    ))
}

fn small_path(work: &Path, number: usize) -> PathBuf {
    work.join(format!("d{}", number / FILES_A_DIRECTORY))
        .join(format!("f{number}"))
}

fn timed(
    count: usize,
    mut one: impl FnMut(usize) -> io::Result<()>,
) -> io::Result<(Duration, Vec<Duration>)> {
    let mut each = Vec::with_capacity(count);
    let began = Instant::now();
    for number in 0..count {
        let start = Instant::now();
        one(number)?;
        each.push(start.elapsed());
    }
    Ok((began.elapsed(), each))
}

fn small_files(
    work: &Path,
    sizes: &Sizes,
    cold: Cold<'_>,
    done: &mut dyn FnMut(Measure),
) -> io::Result<()> {
    let files = sizes.files;
    let data = noise(BLOCK);
    let tree = work.join("small");
    for directory in 0..files.div_ceil(FILES_A_DIRECTORY) {
        fs::create_dir_all(tree.join(format!("d{directory}")))?;
    }
    let mut report = |name: &str, count: usize, (took, each): (Duration, Vec<Duration>)| {
        done(rate(name, count as f64, "ops/s", took, each));
    };
    report(
        "create_4k",
        files,
        timed(files, |n| fs::write(small_path(&tree, n), &data))?,
    );
    let synced = work.join("synced");
    fs::create_dir(&synced)?;
    let few = files / 4;
    report(
        "create_4k_fsync",
        few,
        timed(few, |n| {
            let mut file = File::create(synced.join(format!("f{n}")))?;
            file.write_all(&data)?;
            file.sync_all()
        })?,
    );
    cold()?;
    report(
        "stat_cold",
        files,
        timed(files, |n| fs::metadata(small_path(&tree, n)).map(drop))?,
    );
    report(
        "stat_warm",
        files,
        timed(files, |n| fs::metadata(small_path(&tree, n)).map(drop))?,
    );
    cold()?;
    let began = Instant::now();
    let found = list(&tree)?;
    report("ls_lr_cold", found, (began.elapsed(), Vec::new()));
    cold()?;
    report(
        "read_4k_cold",
        files,
        timed(files, |n| fs::read(small_path(&tree, n)).map(drop))?,
    );
    report(
        "rename",
        files,
        timed(files, |n| {
            let path = small_path(&tree, n);
            fs::rename(&path, path.with_extension("renamed"))
        })?,
    );
    report(
        "unlink",
        files,
        timed(files, |n| {
            fs::remove_file(small_path(&tree, n).with_extension("renamed"))
        })?,
    );
    Ok(())
}

/// Every name below with its attributes, as `ls -lR` asks for them.
fn list(dir: &Path) -> io::Result<usize> {
    let mut found = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        found += 1;
        if entry.metadata()?.is_dir() {
            found += list(&entry.path())?;
        }
    }
    Ok(found)
}

/// `tar xf` and `git clone` of trees made here.
fn archives(work: &Path, done: &mut dyn FnMut(Measure)) -> io::Result<()> {
    let local = std::env::temp_dir().join(format!("cairn-bench-{}", std::process::id()));
    let result = archives_with(&local, work, done);
    let _ = fs::remove_dir_all(&local);
    result
}

fn archives_with(local: &Path, work: &Path, done: &mut dyn FnMut(Measure)) -> io::Result<()> {
    let tree = local.join("tree");
    // 4,547 entries and 45 MB, as in the figures that this is compared with.
    let (directories, files, bytes) = (227, 4320, 10_400);
    for number in 0..directories {
        fs::create_dir_all(tree.join(format!("d{number}")))?;
    }
    let data = noise(bytes + files);
    for number in 0..files {
        let path = tree
            .join(format!("d{}", number % directories))
            .join(format!("f{number}"));
        fs::write(path, &data[number..number + bytes])?;
    }
    let archive = local.join("tree.tar");
    shell(
        Command::new("tar")
            .arg("cf")
            .arg(&archive)
            .arg("-C")
            .arg(local)
            .arg("tree"),
    )?;
    let target = work.join("untarred");
    fs::create_dir(&target)?;
    let took = shell(
        Command::new("tar")
            .arg("xf")
            .arg(&archive)
            .arg("-C")
            .arg(&target),
    )?;
    done(seconds("tar_xf", took));
    let git = |words: &[&str]| {
        let mut command = Command::new("git");
        let identity = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"];
        command.args(identity).args(["-C"]).arg(&tree).args(words);
        command
    };
    let made = shell(&mut git(&["init", "-q"]))
        .and_then(|_| shell(&mut git(&["add", "."])))
        .and_then(|_| shell(&mut git(&["commit", "-q", "-m", "tree"])));
    if made.is_ok() {
        let clone = work.join("clone");
        let took = shell(
            Command::new("git")
                .args(["clone", "-q"])
                .arg(&tree)
                .arg(&clone),
        )?;
        done(seconds("git_clone", took));
    }
    Ok(())
}

fn seconds(workload: &str, took: Duration) -> Measure {
    Measure {
        workload: workload.to_owned(),
        value: took.as_secs_f64(),
        unit: "s".to_owned(),
        p50_us: None,
        p99_us: None,
    }
}

fn shell(command: &mut Command) -> io::Result<Duration> {
    let began = Instant::now();
    let output = command.output()?;
    if output.status.success() {
        return Ok(began.elapsed());
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(io::Error::other(format!("{command:?}: {text}")))
}
