//! What the whole-system tests share: the executable, seeds, skipping loudly, nodes with networks
//! of their own, and a writer that remembers what was confirmed to it.

#![forbid(unsafe_code)]

pub mod line;
pub mod locker;
pub mod machine;
pub mod network;
pub mod pulse;
pub mod system;

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use cairn_lab::Lab;

/// The executable under test: `CAIRN_BIN`, or the one that was built beside this test.
///
/// # Panics
/// Where there is none: `cargo build -p cairn` comes first.
#[must_use]
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("CAIRN_BIN") {
        return path.into();
    }
    let here = std::env::current_exe().expect("a test has an executable");
    let target = here
        .ancestors()
        .nth(2)
        .expect("target/<profile>/deps/<test>");
    let binary = target.join("cairn");
    assert!(
        binary.exists(),
        "{} is missing: cargo build -p cairn",
        binary.display()
    );
    binary
}

/// Says that a test cannot run here. In CI that is a failure.
///
/// # Panics
/// Where `CAIRN_SKIP_IS_FAILURE` is 1.
pub fn skip(why: &str) {
    eprintln!("SKIPPED: {why}");
    let strict = std::env::var("CAIRN_SKIP_IS_FAILURE").is_ok_and(|value| value == "1");
    assert!(!strict, "skipped where nothing may be: {why}");
}

/// A running volume with its mount, for a test. Taken apart, `dir` comes first: what comes first is
/// dropped last, and the directory must go after the mount in it.
#[derive(Debug)]
pub struct Mounted {
    /// The nodes.
    pub lab: Lab,
    /// Where the volume is mounted.
    pub mount: PathBuf,
    /// Everything lies in it; removed at the end.
    pub dir: tempfile::TempDir,
}

impl Mounted {
    /// `nodes` nodes in a pool, the volume `name` with bricks on the first two, mounted by the
    /// last. `None`, said loudly, where nothing can be mounted.
    pub fn new(name: &str, nodes: usize) -> anyhow::Result<Option<Self>> {
        Self::with_replicas(name, nodes, 2)
    }

    /// The same with as many replicas, on the first nodes.
    pub fn with_replicas(
        name: &str,
        nodes: usize,
        replicas: usize,
    ) -> anyhow::Result<Option<Self>> {
        if !Path::new("/dev/fuse").exists() {
            skip("there is no /dev/fuse");
            return Ok(None);
        }
        let dir = tempfile::tempdir()?;
        let mut lab = Lab::new(&binary(), dir.path(), nodes)?;
        lab.form_pool()?;
        lab.make_volume(name, replicas)?;
        let mount = dir.path().join("mnt");
        // Two nodes: by the first, whose primary is near.
        let by = if nodes > 2 { nodes - 1 } else { 0 };
        lab.mount(by, name, &mount)?;
        Ok(Some(Self { lab, mount, dir }))
    }
}

/// The process that serves the mount at a place.
///
/// # Errors
/// There is none.
pub fn mount_pid(at: &Path) -> anyhow::Result<u32> {
    let at = at.as_os_str().as_encoded_bytes();
    let mut found = None;
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Ok(line) = fs::read(entry.path().join("cmdline")) else {
            continue; // it ended meanwhile, or is none
        };
        let words: Vec<_> = line.split(|byte| *byte == 0).collect();
        if words.contains(&&b"mount"[..]) && words.contains(&at) {
            found = entry.file_name().to_str().and_then(|pid| pid.parse().ok());
        }
    }
    found.context("a mount has a process")
}

/// Waits until a process that was sent SIGSTOP stands still. One of its threads takes the signal, and
/// until that one is scheduled all others go on.
///
/// # Errors
/// There is no such process.
pub fn wait_until_stopped(pid: u32) -> anyhow::Result<()> {
    let stands = |task: &Path| -> io::Result<bool> {
        let status = fs::read_to_string(task.join("status"))?;
        Ok(status.lines().any(|line| line.starts_with("State:\tT")))
    };
    loop {
        let mut all = true;
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            all &= stands(&task?.path())?;
        }
        if all {
            return Ok(());
        }
        std::thread::yield_now();
    }
}

/// Has the replicas of `volume` compared, through `node`.
///
/// # Errors
/// What differs, or who could not be compared.
pub fn all_equal(lab: &Lab, node: usize, volume: &str) -> anyhow::Result<()> {
    let verdict = lab.json(node, &["volume", "verify", volume])?;
    anyhow::ensure!(verdict["equal"] == true, "verify: {verdict}");
    Ok(())
}

/// Kills the primary, as `asked` knows it, and starts it again; one of the first two nodes. False:
/// not everything is in sync, so nothing was done.
///
/// # Errors
/// The status cannot be had, or the node does not start.
pub fn kill_primary(lab: &mut Lab, asked: usize, volume: &str) -> anyhow::Result<bool> {
    let status = lab.volume(asked, volume)?;
    let primary = status["primary"].as_str().map(str::to_owned);
    let found = (0..2).find(|node| primary.as_deref() == Some(lab.name(*node).as_str()));
    let Some(node) = found.filter(|_| cairn_lab::is_in_sync(&status)) else {
        return Ok(false);
    };
    lab.kill(node);
    lab.start(node)?;
    Ok(true)
}

/// Ends the writer: everything that was confirmed to it is below `mount`, and the replicas are
/// equal.
///
/// # Errors
/// What is missing, or differs.
pub fn nothing_lost(lab: &Lab, volume: &str, mount: &Path, writer: Writer) -> anyhow::Result<()> {
    let confirmed = writer.finish()?;
    let wrong = missing(mount, &confirmed, false)?;
    anyhow::ensure!(wrong.is_empty(), "{wrong:?}");
    all_equal(lab, 0, volume)
}

/// What the events of a kind say, as `node` knows them.
///
/// # Errors
/// The command fails.
pub fn events(lab: &Lab, node: usize, kind: &str) -> anyhow::Result<Vec<String>> {
    let events = lab.json(node, &["events"])?;
    let events = events["events"].as_array().cloned().unwrap_or_default();
    let found = events.iter().filter(|event| event["kind"] == kind);
    Ok(found
        .filter_map(|event| event["message"].as_str().map(str::to_owned))
        .collect())
}

/// The node that leads the pool, as `asked` says: one of the first `nodes`.
///
/// # Errors
/// The command fails.
pub fn leader(lab: &Lab, asked: usize, nodes: usize) -> anyhow::Result<Option<usize>> {
    let status = lab.json(asked, &["peer", "status"])?;
    let all = status["nodes"].as_array().context("nodes")?;
    let leads = all.iter().find(|node| node["leader"] == true);
    let name = leads.and_then(|node| node["name"].as_str());
    Ok((0..nodes).find(|node| Some(lab.name(*node).as_str()) == name))
}

/// A number from the environment, or `default`.
#[must_use]
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

/// A seeded generator (SplitMix64; Steele, Lea, Flood 2014).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// From the variable `name`, else fresh; printed, so that a run can be repeated.
    #[must_use]
    pub fn from_env(name: &str) -> Self {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
        let seed = setting(name, u64::from_le_bytes(bytes));
        println!("{name}={seed}");
        Self(seed)
    }

    /// Another generator, seeded by this one.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self(self.below(u64::MAX))
    }

    /// The next number below `below`.
    pub fn below(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below.max(1)
    }
}

/// The content of file `number`: its length and bytes follow from the number.
#[must_use]
pub fn content(number: u64) -> Vec<u8> {
    let lengths = [0, 1, 100, 4096, 5000, 70_000, 300_000];
    let mut bytes = vec![0; lengths[(number % lengths.len() as u64) as usize]];
    blake3::Hasher::new()
        .update(&number.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// What a writer was told to be done, and thus must be there for ever.
#[derive(Debug, Default, Clone)]
pub struct Confirmed {
    /// Files that were made: number by number from 0.
    pub made: u64,
    /// Of these, fsynced with their directory's entry.
    pub synced: u64,
    /// Every third file was renamed afterwards; renamed up to here.
    pub renamed: u64,
    /// Every so manyth file and record is fsynced.
    pub sync_every: u64,
    /// Records appended to the log.
    pub appended: u64,
    /// Of these, fsynced.
    pub appended_synced: u64,
}

/// Bytes of a record of the log.
pub const RECORD_BYTES: usize = 512;

/// Record `number` of the log.
#[must_use]
pub fn record(number: u64) -> [u8; RECORD_BYTES] {
    let mut bytes = [0; RECORD_BYTES];
    blake3::Hasher::new()
        .update(b"log")
        .update(&number.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// Name of file `number`, and the one that it gets.
#[must_use]
pub fn names(dir: &Path, number: u64) -> (PathBuf, PathBuf) {
    (
        dir.join(format!("f{number}")),
        dir.join(format!("r{number}")),
    )
}

/// A writer in a thread.
#[derive(Debug)]
pub struct Writer {
    confirmed: Arc<Mutex<Confirmed>>,
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<io::Result<()>>>,
}

impl Writer {
    /// Makes files and appends to a log below `dir`; every `sync_every`th is fsynced.
    pub fn start(dir: &Path, sync_every: u64) -> io::Result<Self> {
        let work = dir.join("work");
        fs::create_dir_all(&work)?;
        File::open(dir)?.sync_all()?;
        let confirmed = Confirmed {
            sync_every,
            ..Confirmed::default()
        };
        let confirmed = Arc::new(Mutex::new(confirmed));
        let stop: Arc<AtomicBool> = Arc::default();
        let (c, s, w) = (confirmed.clone(), stop.clone(), work.clone());
        let files = std::thread::spawn(move || files(&w, sync_every, &c, &s));
        let (c, s) = (confirmed.clone(), stop.clone());
        let log = std::thread::spawn(move || log(&work.join("log"), sync_every, &c, &s));
        Ok(Self {
            confirmed,
            stop,
            threads: vec![files, log],
        })
    }

    /// What is confirmed by now.
    #[must_use]
    pub fn confirmed(&self) -> Confirmed {
        self.confirmed
            .lock()
            .expect("no thread panics with it")
            .clone()
    }

    /// Stops; an error that the writer saw is returned.
    pub fn finish(mut self) -> io::Result<Confirmed> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread
                .join()
                .map_err(|_| io::Error::other("a writer panicked"))??;
        }
        Ok(self.confirmed())
    }
}

fn note(confirmed: &Mutex<Confirmed>, f: impl FnOnce(&mut Confirmed)) {
    f(&mut confirmed.lock().expect("no thread panics with it"));
}

fn files(
    work: &Path,
    sync_every: u64,
    confirmed: &Mutex<Confirmed>,
    stop: &AtomicBool,
) -> io::Result<()> {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let (name, renamed) = names(work, number);
        let mut file = File::create_new(&name)?;
        file.write_all(&content(number))?;
        let sync = number % sync_every == sync_every - 1;
        if number % 3 == 0 {
            fs::rename(&name, &renamed)?;
        }
        number += 1;
        note(confirmed, |c| {
            c.made = number;
            c.renamed = number;
        });
        if sync {
            file.sync_all()?;
            note(confirmed, |c| c.synced = number);
        }
    }
    Ok(())
}

fn log(
    path: &Path,
    sync_every: u64,
    confirmed: &Mutex<Confirmed>,
    stop: &AtomicBool,
) -> io::Result<()> {
    let mut file = File::options().append(true).create_new(true).open(path)?;
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        file.write_all(&record(number))?;
        number += 1;
        note(confirmed, |c| c.appended = number);
        if number % sync_every == 0 {
            file.sync_data()?;
            note(confirmed, |c| c.appended_synced = number);
        }
    }
    Ok(())
}

/// Looks below `dir` for what was confirmed. `last_synced` says to look for the fsynced part only.
/// Returns what is wrong.
pub fn missing(dir: &Path, confirmed: &Confirmed, synced_only: bool) -> io::Result<Vec<String>> {
    let work = dir.join("work");
    let mut wrong = Vec::new();
    let made = if synced_only {
        confirmed.synced
    } else {
        confirmed.made
    };
    for number in 0..made {
        if synced_only && number % confirmed.sync_every != confirmed.sync_every - 1 {
            continue;
        }
        let (name, renamed) = names(&work, number);
        let (here, gone) = if number % 3 == 0 {
            (renamed, name)
        } else {
            (name, renamed)
        };
        match fs::read(&here) {
            Ok(found) if found == content(number) => {}
            Ok(found) => wrong.push(format!(
                "{} has {} other bytes",
                here.display(),
                found.len()
            )),
            Err(error) => wrong.push(format!("{}: {error}", here.display())),
        }
        if gone.exists() {
            wrong.push(format!("{} should be gone", gone.display()));
        }
    }
    let mut bytes = Vec::new();
    match File::open(work.join("log")) {
        Ok(mut file) => {
            file.read_to_end(&mut bytes)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let appended = if synced_only {
        confirmed.appended_synced
    } else {
        confirmed.appended
    };
    for number in 0..appended {
        let at = number as usize * RECORD_BYTES;
        if bytes.get(at..at + RECORD_BYTES) != Some(&record(number)[..]) {
            wrong.push(format!(
                "record {number} of the log is not there, of {appended}"
            ));
            break;
        }
    }
    Ok(wrong)
}
