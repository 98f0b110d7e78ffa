//! `cairn demo`: a replicated volume survives a failure, on this machine, in a minute.
//!
//! Every line states a fact that was measured or checked; a step that does not hold ends the demo
//! with exit status 1.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cairn_lab::{Lab, LabError, is_in_sync};
use serde_json::Value;

use crate::failure::Failure;
use crate::output::Output;

/// The volume's name.
const VOLUME: &str = "v1";
/// The large file.
const LARGE_BYTES: u64 = 1 << 30;
/// Changed blocks while a replica is away.
const CHANGED_BLOCKS: usize = 1000;
/// What their resync may move at most: 1.1 times the blocks and 1 MiB.
const CHANGED_BYTES_MAX: u64 = CHANGED_BLOCKS as u64 * 4096 * 11 / 10 + (1 << 20);
/// New files while a replica is away.
const NEW_FILES: usize = 2000;
/// Entries copied from this machine.
const TREE_ENTRIES_MAX: usize = 3000;
/// Bytes copied from this machine.
const TREE_BYTES_MAX: u64 = 64 << 20;
/// How long a replica may take to be in sync again.
const IN_SYNC_WITHIN: Duration = Duration::from_secs(60);
/// Room that the demo needs: two copies of everything and journals.
const ROOM_BYTES: u64 = 5 << 30;

/// Why the demo stopped.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error(transparent)]
    Lab(#[from] LabError),
    #[error("{what}: {source}")]
    Io {
        what: &'static str,
        source: std::io::Error,
    },
    #[error("{0}")]
    NotHeld(String),
}

fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> DemoError {
    move |source| DemoError::Io { what, source }
}

fn hold(holds: bool, what: impl FnOnce() -> String) -> Result<(), DemoError> {
    if holds {
        Ok(())
    } else {
        Err(DemoError::NotHeld(what()))
    }
}

/// Tells facts with the time since the beginning.
struct Teller<'a> {
    output: &'a Output,
    began: Instant,
    facts: serde_json::Map<String, Value>,
}

impl Teller<'_> {
    fn say(&self, text: &str) {
        let line = format!("{:6.1} s  {text}", self.began.elapsed().as_secs_f64());
        if self.output.json {
            eprintln!("{line}");
        } else {
            self.output.line(&line);
        }
    }

    fn fact(&mut self, key: &str, value: impl Into<Value>) {
        self.facts.insert(key.to_owned(), value.into());
    }
}

/// Runs it. The directory stays with `keep`.
pub(super) fn run(output: &Output, keep: bool) -> Result<u8, Failure> {
    if let Some((sentence, hint)) = cannot_mount() {
        return Err(Failure::refused("demo", sentence, hint));
    }
    let dir = make_dir().map_err(|error| {
        Failure::refused(
            "demo",
            error,
            "Make room in the temporary directory, or set TMPDIR.",
        )
    })?;
    let mut teller = Teller {
        output,
        began: Instant::now(),
        facts: serde_json::Map::new(),
    };
    let result = demonstrate(&mut teller, &dir);
    if keep {
        teller.say(&format!("everything is left in {}", dir.display()));
    } else if let Err(error) = fs::remove_dir_all(&dir) {
        teller.say(&format!("{} could not be removed: {error}", dir.display()));
    }
    match result {
        Ok(()) => {
            teller.say("done: every step was checked and held");
            if output.json {
                output.value(&Value::Object(teller.facts));
            }
            Ok(0)
        }
        Err(error) => Err(Failure::refused(
            "demo",
            format!("the demo stopped: {error}"),
            "Run it again with --keep to look at what it left, and its nodes' logs.",
        )),
    }
}

fn cannot_mount() -> Option<(&'static str, &'static str)> {
    if !Path::new("/dev/fuse").exists() {
        return Some((
            "there is no /dev/fuse: the demo cannot mount a volume",
            "Load it with `modprobe fuse`; in a container, start it with `--device /dev/fuse`.",
        ));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let helper = std::env::split_paths(&path).any(|dir| dir.join("fusermount3").exists());
    if !cairn_lab::is_root() && !helper {
        return Some((
            "an ordinary user needs fusermount3 to mount",
            "Install it (Debian: `apt-get install fuse3`), or run the demo as root.",
        ));
    }
    None
}

fn make_dir() -> Result<PathBuf, DemoError> {
    let base = std::env::temp_dir();
    let room = rustix::fs::statvfs(&base).map_err(|e| io("look at the room")(e.into()))?;
    let free = room.f_bavail * room.f_frsize;
    hold(free >= ROOM_BYTES, || {
        format!(
            "the demo needs {} GiB in {}, there are {:.1}",
            ROOM_BYTES >> 30,
            base.display(),
            free as f64 / (1_u64 << 30) as f64
        )
    })?;
    let dir = base.join(format!("cairn-demo-{}", std::process::id()));
    fs::create_dir(&dir).map_err(io("make the demo's directory"))?;
    Ok(dir)
}

fn demonstrate(teller: &mut Teller<'_>, dir: &Path) -> Result<(), DemoError> {
    let binary = std::env::current_exe().map_err(io("find this executable"))?;
    let mut lab = Lab::new(&binary, dir, 3)?;
    set_up(teller, &mut lab)?;
    let mount = dir.join("mnt");
    lab.mount(0, VOLUME, &mount)?;
    teller.say(&format!("mounted at {}", mount.display()));
    fill(teller, &mount)?;
    primary_dies(teller, &mut lab, &mount)?;
    blocks_change(teller, &mut lab, &mount)?;
    files_come(teller, &mut lab, &mount)?;
    compare(teller, &mut lab, &mount)?;
    lab.finish()?;
    Ok(())
}

fn set_up(teller: &mut Teller<'_>, lab: &mut Lab) -> Result<(), DemoError> {
    lab.form_pool()?;
    let status = lab.json(1, &["peer", "status"])?;
    let connected = status["nodes"].as_array().map_or(0, |nodes| {
        nodes
            .iter()
            .filter(|node| node["state"] == "connected")
            .count()
    });
    hold(connected == 3, || {
        format!("three nodes should be connected: {status}")
    })?;
    teller.say(&format!(
        "three nodes on {}, {} and {}, admitted by one-time codes, TLS 1.3 between them",
        lab.address(0),
        lab.address(1),
        lab.address(2)
    ));
    lab.make_volume(VOLUME, 2)?;
    teller.say("volume v1: bricks on node1 and node2, both in sync; node3 only votes");
    Ok(())
}

fn fill(teller: &mut Teller<'_>, mount: &Path) -> Result<(), DemoError> {
    let began = Instant::now();
    let mut tree = Tree::default();
    let source = ["/usr/share", "/usr/lib", "/etc"].map(Path::new);
    for source in source.into_iter().filter(|path| path.is_dir()) {
        tree.copy(source, &mount.join("tree"))?;
    }
    let took = began.elapsed().as_secs_f64();
    hold(tree.entries > 0, || {
        "nothing could be copied from this machine".to_owned()
    })?;
    for (from, to) in &tree.files {
        let same = read(from)? == read(to)?;
        hold(same, || format!("{} is not what was copied", to.display()))?;
    }
    teller.say(&format!(
        "copied {} files and directories of this machine ({:.1} MB) onto it in {took:.1} s, read back, equal",
        tree.entries,
        tree.bytes as f64 / 1e6
    ));
    let began = Instant::now();
    let mut large = File::create(mount.join("large")).map_err(io("make a large file"))?;
    let mut piece = vec![0; 1 << 20];
    for number in 0..LARGE_BYTES >> 20 {
        fill_piece(&mut piece, number);
        large.write_all(&piece).map_err(io("write a large file"))?;
    }
    large.sync_all().map_err(io("fsync a large file"))?;
    let rate = LARGE_BYTES as f64 / 1e6 / began.elapsed().as_secs_f64();
    teller.say(&format!(
        "wrote a file of 1 GiB, fsync included, at {rate:.0} MB/s, two copies"
    ));
    teller.fact("large_write_mb_per_second", rate.round());
    Ok(())
}

/// Bytes that differ from piece to piece and do not compress to nothing.
fn fill_piece(piece: &mut [u8], number: u64) {
    let mut reader = blake3::Hasher::new()
        .update(&number.to_le_bytes())
        .finalize_xof();
    reader.fill(piece);
}

fn read(path: &Path) -> Result<Vec<u8>, DemoError> {
    fs::read(path).map_err(io("read a file back"))
}

#[derive(Default)]
struct Tree {
    entries: usize,
    bytes: u64,
    files: Vec<(PathBuf, PathBuf)>,
}

impl Tree {
    fn is_full(&self) -> bool {
        self.entries >= TREE_ENTRIES_MAX || self.bytes >= TREE_BYTES_MAX
    }

    /// Copies what can be read, up to the limits; links as links.
    fn copy(&mut self, from: &Path, to: &Path) -> Result<(), DemoError> {
        fs::create_dir_all(to).map_err(io("make a directory"))?;
        let Ok(entries) = fs::read_dir(from) else {
            return Ok(());
        };
        for entry in entries.flatten() {
            if self.is_full() {
                break;
            }
            let (from, to) = (entry.path(), to.join(entry.file_name()));
            let Ok(kind) = entry.file_type() else {
                continue;
            };
            if kind.is_dir() {
                self.entries += 1;
                self.copy(&from, &to)?;
            } else if kind.is_symlink() {
                if let Ok(target) = fs::read_link(&from) {
                    self.entries += 1;
                    std::os::unix::fs::symlink(target, &to).map_err(io("make a link"))?;
                }
            } else if kind.is_file()
                && entry.metadata().is_ok_and(|m| m.len() < TREE_BYTES_MAX / 8)
                && let Ok(mut source) = File::open(&from)
            {
                let mut data = Vec::new();
                if source.read_to_end(&mut data).is_err() {
                    continue;
                }
                fs::write(&to, &data).map_err(io("write a file"))?;
                self.entries += 1;
                self.bytes += data.len() as u64;
                self.files.push((from, to));
            }
        }
        Ok(())
    }
}

/// A writer of 4 KiB and fsync, until stopped: how many it did, and its longest wait.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<std::io::Result<(u64, Duration)>>,
}

impl Writer {
    fn start(path: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let file = File::create(path)?;
            let (mut writes, mut longest) = (0, Duration::ZERO);
            while !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                file.write_all_at(&[writes as u8; 4096], writes * 4096)?;
                file.sync_data()?;
                longest = longest.max(began.elapsed());
                writes += 1;
            }
            Ok((writes, longest))
        });
        Self { stop, thread }
    }

    fn finish(self) -> Result<(u64, Duration), DemoError> {
        self.stop.store(true, Ordering::Relaxed);
        let result = self
            .thread
            .join()
            .map_err(|_| DemoError::NotHeld("a thread died".into()))?;
        result.map_err(io("the writer met an error"))
    }
}

fn primary_dies(teller: &mut Teller<'_>, lab: &mut Lab, mount: &Path) -> Result<(), DemoError> {
    let writer = Writer::start(mount.join("log"));
    std::thread::sleep(Duration::from_millis(500));
    lab.kill(0);
    teller.say("killed node1 (the primary) with SIGKILL while a writer of 4 KiB and fsync runs");
    std::thread::sleep(Duration::from_secs(1));
    let (writes, longest) = writer.finish()?;
    let longest_ms = longest.as_secs_f64() * 1e3;
    let status = lab.volume(1, VOLUME)?;
    hold(status["primary"] == "node2", || {
        format!("node2 should have taken over: {status}")
    })?;
    teller.say(&format!(
        "node2 took over; the writer did {writes} writes, saw no error, and waited {longest_ms:.0} ms at most"
    ));
    teller.fact("longest_write_ms", longest_ms);
    hold(status["health"] == "degraded", || {
        format!("it should be degraded: {status}")
    })?;
    teller.say(&format!(
        "volume status: degraded ({})",
        status["reason"].as_str().unwrap_or("")
    ));
    Ok(())
}

/// Brings node1 back, as secondary, and says what its resync moved.
fn come_back(
    teller: &mut Teller<'_>,
    lab: &mut Lab,
    what: &str,
    key: &str,
) -> Result<u64, DemoError> {
    lab.start(0)?;
    let status = lab.wait_volume(1, VOLUME, "in sync", IN_SYNC_WITHIN, is_in_sync)?;
    let last = &status["replicas"][0]["last_resync"];
    let sent = last["sent_bytes"].as_u64().unwrap_or(0);
    let seconds = last["duration_seconds"].as_f64().unwrap_or(0.0);
    let holds = status["used_bytes"].as_u64().unwrap_or(0);
    teller.say(&format!(
        "node1 is back: {what} took {:.2} MB on the wire and {seconds:.2} s (rule {}); the volume holds {:.0} MB",
        sent as f64 / 1e6,
        last["rule"].as_str().unwrap_or("unknown"),
        holds as f64 / 1e6
    ));
    teller.fact(&format!("{key}_resync_bytes"), sent);
    teller.fact(&format!("{key}_resync_seconds"), seconds);
    teller.fact("volume_used_bytes", holds);
    hold(last["kind"] == "partial", || {
        format!("the resync should be partial: {last}")
    })?;
    Ok(sent)
}

fn blocks_change(teller: &mut Teller<'_>, lab: &mut Lab, mount: &Path) -> Result<(), DemoError> {
    come_back(teller, lab, "what the writer wrote", "writer")?;
    lab.kill(0);
    let large = File::options()
        .write(true)
        .open(mount.join("large"))
        .map_err(io("open the large file"))?;
    let blocks = LARGE_BYTES / 4096;
    for i in 0..CHANGED_BLOCKS as u64 {
        // A step that shares no factor with the number of blocks visits each once.
        let block = i * 7919 % blocks;
        let mut data = [0; 4096];
        fill_piece(&mut data, 1_000_000 + i);
        large
            .write_all_at(&data, block * 4096)
            .map_err(io("change a block"))?;
    }
    large.sync_all().map_err(io("fsync the changes"))?;
    teller
        .say("killed node1, now the secondary; changed 1,000 blocks of 4 KiB, scattered over the file of 1 GiB");
    let sent = come_back(teller, lab, "1,000 changed blocks", "blocks")?;
    hold(sent <= CHANGED_BYTES_MAX, || {
        format!("the resync moved {sent} bytes, more than the {CHANGED_BYTES_MAX} promised (RS-1)")
    })
}

fn files_come(teller: &mut Teller<'_>, lab: &mut Lab, mount: &Path) -> Result<(), DemoError> {
    lab.kill(0);
    let dir = mount.join("new");
    fs::create_dir(&dir).map_err(io("make a directory"))?;
    let began = Instant::now();
    for i in 0..NEW_FILES {
        let mut data = [0; 4096];
        fill_piece(&mut data, 2_000_000 + i as u64);
        fs::write(dir.join(format!("file{i}")), data).map_err(io("make a file"))?;
    }
    let rate = NEW_FILES as f64 / began.elapsed().as_secs_f64();
    teller.say(&format!(
        "killed node1 again; made 2,000 files of 4 KiB at {rate:.0} a second"
    ));
    come_back(teller, lab, "2,000 new files", "files")?;
    Ok(())
}

fn compare(teller: &mut Teller<'_>, lab: &mut Lab, mount: &Path) -> Result<(), DemoError> {
    let verdict = lab.json(0, &["volume", "verify", VOLUME])?;
    hold(verdict["equal"] == true, || {
        format!("the replicas differ: {verdict}")
    })?;
    teller.say(&format!(
        "compared both replicas, metadata and {:.0} MB of data: equal",
        verdict["bytes_compared"].as_u64().unwrap_or(0) as f64 / 1e6
    ));
    lab.umount(mount)?;
    lab.cairn(0, &["volume", "stop", VOLUME])?;
    for node in 0..2 {
        lab.stop(node)?;
        let brick = lab.brick(node, VOLUME);
        let checked = lab.run(node, &["brick", "check", &brick.display().to_string()])?;
        hold(checked.status == 0, || {
            format!("brick check: {}{}", checked.stdout, checked.stderr)
        })?;
    }
    teller
        .say("stopped the daemons; `cairn brick check` finds every checksum of both bricks right");
    Ok(())
}
