//! Coherence between real mounts: what one was answered, the others see at their next call, whatever
//! their caches hold. By hand, and by what random workers saw, put into one order (the checker of the
//! simulation).
//!
//! `CAIRN_COHERENCE_SECONDS` sets how long the workers go on, `CAIRN_COHERENCE_FAILOVERS=1` has the
//! primary killed every other second meanwhile, `CAIRN_COHERENCE_SEED` repeats their choices.

#[allow(dead_code, reason = "power cuts belong to the simulation")]
#[path = "simulation/history.rs"]
mod history;

/// What the checker calls a place is a mount here.
mod network {
    pub(crate) type Place = usize;
}

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cairn_lab::{Lab, is_in_sync, is_root, signal};
use cairn_tests::{Mounted, Random, mount_pid, setting, skip, wait_until_stopped};
use rustix::process::{Pid, Signal, kill_process};

use history::{Act, Entry, NAMES, State, holds};

const VOLUME: &str = "v1";
const ROUNDS: u32 = 200;
/// How long a lease lasts.
const LEASE: Duration = Duration::from_secs(2);
/// Nothing takes longer than a lease, with this for a loaded machine.
const SLACK: Duration = Duration::from_secs(2);
/// Workers stop so often, and what they saw is judged.
const ROUND: Duration = Duration::from_secs(2);
const CELLS: u64 = 3;
const CELL_BYTES: u64 = 4096;
const O_DSYNC: i32 = 0o10_000;

/// What stat(2) tells: size, mode, and whether the name exists.
fn look(path: &Path) -> Option<(u64, u32)> {
    let found = fs::symlink_metadata(path).ok()?;
    Some((found.size(), found.permissions().mode() & 0o777))
}

#[test]
fn coh_1_two_mounts_see_each_other_at_once_also_what_one_kept_alone() -> Result<()> {
    let Some(Mounted {
        dir,
        mut lab,
        mount: a,
    }) = Mounted::new(VOLUME, 2)?
    else {
        return Ok(());
    };
    let (name, other) = ("file", "other");
    fs::create_dir(a.join("d"))?;
    let there = |mount: &Path, name: &str| mount.join("d").join(name);
    fs::write(there(&a, name), b"alone")?;
    let b = dir.path().join("mnt2");
    // Alone, the first mount keeps what it looked at; the second is let in when that has ended.
    for _ in 0..100 {
        ensure!(look(&there(&a, name)) == Some((5, 0o644)));
    }
    lab.mount(1, VOLUME, &b)?;
    fs::write(there(&b, name), b"changed by the second")?;
    ensure!(
        look(&there(&a, name)) == Some((21, 0o644)),
        "the first one's copy is old"
    );
    for round in 0..ROUNDS {
        let (one, two) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let size = u64::from(round % 50);
        let mode = 0o600 + round % 8;
        File::options()
            .write(true)
            .open(there(one, name))?
            .set_len(size)?;
        ensure!(
            look(&there(two, name)).map(|it| it.0) == Some(size),
            "size, {round}"
        );
        fs::set_permissions(there(two, name), Permissions::from_mode(mode))?;
        ensure!(
            look(&there(one, name)) == Some((size, mode)),
            "mode, {round}"
        );
        fs::rename(there(one, name), there(one, other))?;
        ensure!(look(&there(two, name)).is_none(), "the old name, {round}");
        ensure!(look(&there(two, other)).is_some(), "the new name, {round}");
        fs::rename(there(two, other), there(two, name))?;
        ensure!(look(&there(one, other)).is_none(), "the name back, {round}");
        let listed = fs::read_dir(one.join("d"))?.count();
        ensure!(listed == 1, "the list, {round}: {listed}");
    }
    lab.finish()?;
    Ok(())
}

/// A volume with `count` mounts; the first three nodes at most have one each.
fn mounts(nodes: usize, count: usize) -> Result<Option<(Mounted, Vec<PathBuf>)>> {
    let Some(mut mounted) = Mounted::new(VOLUME, nodes)? else {
        return Ok(None);
    };
    let mut all = vec![mounted.mount.clone()];
    for more in 1..count {
        let at = mounted.dir.path().join(format!("more{more}"));
        mounted.lab.mount(more % nodes, VOLUME, &at)?;
        all.push(at);
    }
    Ok(Some((mounted, all)))
}

#[test]
fn coh_1_a_mount_that_stands_still_goes_blind_before_others_change_what_it_knew() -> Result<()> {
    let Some((mounted, all)) = mounts(2, 2)? else {
        return Ok(());
    };
    let (a, b) = (all[0].clone(), all[1].clone());
    fs::create_dir(a.join("d"))?;
    let file = |mount: &Path| mount.join("d/file");
    let size = 1;
    fs::write(file(&a), b"first")?;
    ensure!(look(&file(&b)).is_some_and(|it| it.0 == 5), "it is there");
    let pid = mount_pid(&b)?;
    let process = i32::try_from(pid)?;
    let process = Pid::from_raw(process).context("no process has this number")?;
    let open = File::open(file(&b))?;
    ensure!(open.metadata()?.size() == 5);
    // Not by a child of ours: it would close the file, which the mount has to answer.
    kill_process(process, Signal::STOP)?;
    wait_until_stopped(pid)?;
    // Nobody else answers: its kernel does, for a while.
    let kept = open.metadata()?.size() == 5;
    let began = Instant::now();
    File::options().write(true).open(file(&a))?.set_len(size)?;
    fs::rename(file(&a), a.join("d/other"))?;
    let took = began.elapsed();
    let there = b.clone();
    let looks =
        std::thread::spawn(move || (look(&there.join("d/file")), look(&there.join("d/other"))));
    kill_process(process, Signal::CONT)?;
    let (old, new) = looks.join().expect("it looks");
    ensure!(kept, "its kernel had something else");
    ensure!(took < LEASE + SLACK, "the change took {took:?}");
    ensure!(old.is_none(), "the old name is there: {old:?}");
    ensure!(new.is_some_and(|it| it.0 == size), "the old size: {new:?}");
    ensure!(
        open.metadata()?.size() == size,
        "the old size of the open file"
    );
    drop(open);
    fs::remove_file(a.join("d/other"))?;
    Ok(mounted.lab.finish()?)
}

#[test]
fn coh_1_a_mount_that_was_killed_holds_others_up_for_a_lease_time_at_most() -> Result<()> {
    let Some((mut mounted, all)) = mounts(2, 2)? else {
        return Ok(());
    };
    let (a, b) = (&all[0], &all[1]);
    fs::write(a.join("file"), b"first")?;
    std::thread::sleep(Duration::from_millis(150));
    ensure!(look(&b.join("file")).is_some_and(|it| it.0 == 5));
    signal(mount_pid(b)?, "KILL")?;
    let began = Instant::now();
    fs::write(a.join("file"), b"longer than before")?;
    fs::rename(a.join("file"), a.join("other"))?;
    let took = began.elapsed();
    ensure!(took < LEASE + SLACK, "the changes took {took:?}");
    mounted.lab.umount(b)?;
    Ok(mounted.lab.finish()?)
}

/// A file that the mount has alone, as nobody else ever looked at it.
fn alone(mount: &Path, name: &str) -> Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(mount.join(name))?;
    file.write_at(&[0; 64], 0)?;
    Ok(file)
}

/// Does something beside the test, which may take long.
fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        // Nobody listens where the test has failed.
        let _ = sender.send(work());
    });
    receiver
}

#[test]
fn cl_1_a_write_waits_for_nobody_where_the_mount_is_alone_and_a_sync_for_all_of_them() -> Result<()>
{
    let Some((mut mounted, all)) = mounts(2, 2)? else {
        return Ok(());
    };
    let (a, b) = (&all[0], &all[1]);
    let (file, synced) = (alone(a, "file")?, alone(a, "synced")?);
    alone(a, "log")?;
    let log = OpenOptions::new();
    let log = { log }
        .write(true)
        .custom_flags(O_DSYNC)
        .open(a.join("log"))?;
    let pids = [0, 1].map(|node| mounted.lab.pid(node));
    let all_daemons = |name: &str| {
        let mut running = pids.iter().flatten();
        running.try_for_each(|pid| signal(*pid, name))
    };
    all_daemons("STOP")?;
    for pid in pids.iter().flatten() {
        wait_until_stopped(*pid)?;
    }
    let writes = beside(move || -> Result<File> {
        // Soon: nothing is answered early while one is unanswered for half a second.
        for at in 0..8 {
            file.write_at(&[7], at)?;
        }
        file.set_permissions(Permissions::from_mode(0o640))?;
        Ok(file)
    });
    let written = writes.recv_timeout(LEASE + SLACK);
    let syncs = beside(move || synced.sync_all());
    let logs = beside(move || log.write_at(&[7], 0));
    let early = syncs.recv_timeout(Duration::from_millis(200));
    let logged = logs.recv_timeout(Duration::from_millis(10));
    all_daemons("CONT")?;
    let file = written.context("a write waited for the primary")??;
    ensure!(early.is_err(), "a sync waited for nobody: {early:?}");
    ensure!(
        logged.is_err(),
        "with O_DSYNC a write waited for nobody: {logged:?}"
    );
    syncs.recv_timeout(4 * LEASE)??;
    ensure!(logs.recv_timeout(4 * LEASE)?? == 1);
    // What was answered before the sync was asked is not the mount's alone any more.
    signal(mount_pid(a)?, "KILL")?;
    let found = fs::read(b.join("file"))?;
    ensure!(found.len() == 64 && found[..8] == [7; 8], "{found:?}");
    ensure!(look(&b.join("file")) == Some((64, 0o640)));
    drop(file);
    mounted.lab.umount(a)?;
    Ok(mounted.lab.finish()?)
}

#[test]
fn cl_1_what_was_answered_is_there_for_the_next_mount_after_an_unmount_without_a_sync() -> Result<()>
{
    let Some((mut mounted, all)) = mounts(2, 2)? else {
        return Ok(());
    };
    let (a, b) = (&all[0], &all[1]);
    let file = alone(a, "file")?;
    for round in 0..ROUNDS {
        let value = u8::try_from(round % 251)?;
        for at in 0..64 {
            file.write_at(&[value], at)?;
        }
    }
    drop(file);
    mounted.lab.umount(a)?;
    let last = u8::try_from((ROUNDS - 1) % 251)?;
    ensure!(fs::read(b.join("file"))? == [last; 64]);
    Ok(mounted.lab.finish()?)
}

#[test]
fn what_is_mounted_below_a_mount_stays_when_others_change_its_directory() -> Result<()> {
    if !is_root() {
        skip("only root mounts");
        return Ok(());
    }
    let Some((mounted, all)) = mounts(2, 2)? else {
        return Ok(());
    };
    let (a, b) = (&all[0], &all[1]);
    fs::create_dir_all(a.join("d/sub"))?;
    let over = mounted.dir.path().join("over");
    fs::create_dir(&over)?;
    fs::write(over.join("inside"), b"")?;
    let at = b.join("d/sub");
    rustix::mount::mount_bind(&over, &at)?;
    let inside = at.join("inside");
    let mut there = inside.exists();
    for change in 0..3 {
        std::thread::sleep(Duration::from_millis(150));
        ensure!(look(&b.join("d")).is_some());
        fs::write(a.join(format!("d/new{change}")), b"")?;
        ensure!(look(&b.join(format!("d/new{change}"))).is_some());
        there &= inside.exists();
    }
    rustix::mount::unmount(&at, rustix::mount::UnmountFlags::DETACH)?;
    ensure!(there, "it was taken away");
    Ok(mounted.lab.finish()?)
}

// ---- workers -----------------------------------------------------------------------------------

/// A thing that has a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    Directory,
    Size,
    Mode,
    Cell(u64),
    Log,
}

/// One mount's worker: it does one thing after the other.
struct Worker<'a> {
    mount: usize,
    root: PathBuf,
    random: Random,
    clock: &'a AtomicU64,
    seen: Vec<(Thing, Entry)>,
    cells: File,
    value: u64,
}

fn no_such(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

impl Worker<'_> {
    fn new<'a>(
        mount: usize,
        root: &Path,
        random: Random,
        clock: &'a AtomicU64,
    ) -> Result<Worker<'a>> {
        Ok(Worker {
            mount,
            root: root.to_owned(),
            random,
            clock,
            seen: Vec::new(),
            cells: File::options()
                .read(true)
                .write(true)
                .open(root.join("cells"))?,
            value: 0,
        })
    }

    fn name(&self, name: usize) -> PathBuf {
        self.root.join("names").join(format!("name{name}"))
    }

    fn any_name(&mut self) -> usize {
        self.random.below(NAMES as u64) as usize
    }

    /// No other worker gives the same.
    fn next_value(&mut self) -> u64 {
        self.value += 1;
        self.value * 16 + self.mount as u64
    }

    fn note(&mut self, thing: Thing, asked: u64, act: Act) {
        let entry = Entry {
            asked,
            answered: self.clock.fetch_add(1, Ordering::SeqCst),
            by: self.mount,
            must: true,
            act,
        };
        self.seen.push((thing, entry));
    }

    fn one(&mut self) -> Result<()> {
        let asked = self.clock.fetch_add(1, Ordering::SeqCst);
        let (thing, act) = match self.random.below(20) {
            0..6 => (Thing::Directory, self.look_up()?),
            6 | 7 => (Thing::Directory, self.change_names()?),
            8..12 => (
                Thing::Size,
                Act::Read(fs::metadata(self.root.join("size"))?.size()),
            ),
            12 => (Thing::Size, self.set_size()?),
            13 | 14 => (Thing::Mode, Act::Read(u64::from(self.mode()?))),
            15 => (Thing::Mode, self.set_mode()?),
            16 | 17 => self.cell()?,
            18 => (Thing::Log, self.append()?),
            _ => (Thing::Log, self.read_log()?),
        };
        self.note(thing, asked, act);
        Ok(())
    }

    fn look_up(&mut self) -> Result<Act> {
        let name = self.any_name();
        let found = match fs::symlink_metadata(self.name(name)) {
            Ok(found) => Some(found.ino()),
            Err(error) if no_such(&error) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Act::Lookup { name, found })
    }

    fn change_names(&mut self) -> Result<Act> {
        let name = self.any_name();
        let done = |result: io::Result<()>| match result {
            Ok(()) => Ok(true),
            Err(error) if no_such(&error) => Ok(false),
            Err(error) => Err(error),
        };
        Ok(match self.random.below(3) {
            0 => {
                let made = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .open(self.name(name));
                let made = match made {
                    Ok(file) => Some(file.metadata()?.ino()),
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
                    Err(error) => return Err(error.into()),
                };
                Act::Create { name, made }
            }
            1 => {
                let done = done(fs::remove_file(self.name(name)))?;
                Act::Unlink { name, done }
            }
            _ => {
                let to = self.any_name();
                let done = done(fs::rename(self.name(name), self.name(to)))?;
                Act::Rename {
                    from: name,
                    to,
                    done,
                }
            }
        })
    }

    fn set_size(&mut self) -> Result<Act> {
        let size = self.next_value();
        let file = File::options().write(true).open(self.root.join("size"))?;
        file.set_len(size)?;
        Ok(Act::Write(size))
    }

    fn mode(&self) -> Result<u32> {
        Ok(fs::metadata(self.root.join("mode"))?.permissions().mode() & 0o777)
    }

    fn set_mode(&mut self) -> Result<Act> {
        let mode = 0o600 + u32::try_from(self.random.below(64))?;
        fs::set_permissions(self.root.join("mode"), Permissions::from_mode(mode))?;
        Ok(Act::Write(u64::from(mode)))
    }

    fn cell(&mut self) -> Result<(Thing, Act)> {
        let cell = self.random.below(CELLS);
        let again;
        let file = match self.random.below(2) {
            0 => &self.cells,
            _ => {
                let path = self.root.join("cells");
                again = File::options().read(true).write(true).open(path)?;
                &again
            }
        };
        let mut word = [0; 8];
        let act = if self.random.below(3) == 0 {
            self.value += 1;
            let value = self.value * 16 + self.mount as u64;
            file.write_all_at(&value.to_le_bytes(), cell * CELL_BYTES)?;
            Act::Write(value)
        } else {
            file.read_exact_at(&mut word, cell * CELL_BYTES)?;
            Act::Read(u64::from_le_bytes(word))
        };
        Ok((Thing::Cell(cell), act))
    }

    fn append(&mut self) -> Result<Act> {
        let value = self.next_value();
        let mut log = OpenOptions::new()
            .append(true)
            .open(self.root.join("log"))?;
        log.write_all(&value.to_le_bytes())?;
        Ok(Act::Append(value))
    }

    fn read_log(&self) -> Result<Act> {
        let all = fs::read(self.root.join("log"))?;
        let words = all
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().expect("8")));
        Ok(Act::ReadAll(words.collect()))
    }

    /// Works until `end`, now and then with a pause in which leases are had and kept.
    fn work(mut self, end: Instant) -> Result<Vec<(Thing, Entry)>> {
        while Instant::now() < end {
            self.one()
                .with_context(|| format!("mount {}", self.mount))?;
            match self.random.below(100) {
                0 => std::thread::sleep(Duration::from_millis(150)),
                1..30 => std::thread::sleep(Duration::from_millis(self.random.below(8))),
                _ => {}
            }
        }
        Ok(self.seen)
    }
}

/// Everything as it is now, through one mount.
fn state(root: &Path) -> Result<BTreeMap<Thing, State>> {
    let mut names = [None; NAMES];
    for (at, name) in names.iter_mut().enumerate() {
        let path = root.join("names").join(format!("name{at}"));
        *name = fs::symlink_metadata(path).ok().map(|found| found.ino());
    }
    let mode = fs::metadata(root.join("mode"))?.permissions().mode() & 0o777;
    let mut all = BTreeMap::from([
        (Thing::Directory, State::Directory(names)),
        (
            Thing::Size,
            State::Cell(fs::metadata(root.join("size"))?.size()),
        ),
        (Thing::Mode, State::Cell(u64::from(mode))),
        (Thing::Log, State::Log(Vec::new())),
    ]);
    let cells = File::open(root.join("cells"))?;
    for cell in 0..CELLS {
        let mut word = [0; 8];
        cells.read_exact_at(&mut word, cell * CELL_BYTES)?;
        all.insert(Thing::Cell(cell), State::Cell(u64::from_le_bytes(word)));
    }
    Ok(all)
}

/// Makes everything anew.
fn prepare(root: &Path) -> Result<()> {
    fs::create_dir(root.join("names"))?;
    for file in ["size", "mode", "log"] {
        fs::write(root.join(file), b"")?;
    }
    fs::write(root.join("cells"), vec![0; (CELLS * CELL_BYTES) as usize])?;
    Ok(())
}

/// One round of all workers; how much they did.
fn round(all: &[PathBuf], at: u64, random: &mut Random) -> Result<usize> {
    fs::write(all[0].join("log"), b"")?;
    let begin = state(&all[0])?;
    let (clock, end) = (AtomicU64::new(0), Instant::now() + ROUND);
    let workers = all.iter().enumerate().map(|(mount, root)| {
        let mut worker = Worker::new(mount, root, random.fork(), &clock)?;
        worker.value = at << 16;
        Ok(worker)
    });
    let workers = workers.collect::<Result<Vec<_>>>()?;
    let seen = std::thread::scope(|scope| {
        let threads: Vec<_> = workers
            .into_iter()
            .map(|worker| scope.spawn(|| worker.work(end)))
            .collect();
        let ended = threads
            .into_iter()
            .map(|thread| thread.join().expect("no worker panics"));
        ended.collect::<Result<Vec<_>>>()
    })?;
    let mut histories: BTreeMap<Thing, Vec<Entry>> = BTreeMap::new();
    let mut count = 0;
    for (thing, entry) in seen.into_iter().flatten() {
        histories.entry(thing).or_default().push(entry);
        count += 1;
    }
    for (thing, history) in &mut histories {
        history.sort_by_key(|entry| entry.asked);
        let begin = &begin[thing];
        ensure!(
            holds(begin, history, None),
            "{thing:?} from {begin:?} fits no order: {history:#?}"
        );
    }
    Ok(count)
}

/// Kills the primary and starts it again, whenever everything is in sync, until the workers end.
fn kill_primaries(lab: &mut Lab, ended: &AtomicBool) -> Result<u32> {
    let mut kills = 0;
    while !ended.load(Ordering::Relaxed) {
        let status = lab.volume(2, VOLUME)?;
        let primary = status["primary"].as_str().map(str::to_owned);
        let found = (0..2).find(|node| primary.as_deref() == Some(lab.name(*node).as_str()));
        if let Some(node) = found.filter(|_| is_in_sync(&status)) {
            lab.kill(node);
            lab.start(node)?;
            kills += 1;
        }
        std::thread::sleep(ROUND / 2);
    }
    Ok(kills)
}

/// Workers on so many mounts, for a while.
fn work(count: usize, failovers: bool) -> Result<()> {
    let Some((mounted, all)) = mounts(3, count)? else {
        return Ok(());
    };
    // What comes first is dropped last: the directory goes after the mounts in it.
    let Mounted {
        dir: _dir, mut lab, ..
    } = mounted;
    prepare(&all[0])?;
    let mut random = Random::from_env("CAIRN_COHERENCE_SEED");
    let end = Instant::now() + Duration::from_secs(setting("CAIRN_COHERENCE_SECONDS", 6));
    let ended = AtomicBool::new(false);
    let (done, kills) = std::thread::scope(|scope| {
        let (lab, ended) = (&mut lab, &ended);
        let kills = failovers.then(|| scope.spawn(move || kill_primaries(lab, ended)));
        let mut done: Result<usize> = Ok(0);
        let mut at = 0;
        while Instant::now() < end && done.is_ok() {
            at += 1;
            let more = round(&all, at, &mut random);
            done = done.and_then(|before| Ok(before + more?));
        }
        ended.store(true, Ordering::Relaxed);
        (
            done,
            kills.map(|thread| thread.join().expect("nobody panics")),
        )
    });
    let kills = kills.transpose()?.unwrap_or(0);
    println!(
        "{count} mounts: {} operations in one order, {kills} primaries killed",
        done?
    );
    ensure!(!failovers || kills > 0, "no primary was killed");
    lab.wait_volume(2, VOLUME, "in sync", Duration::from_secs(60), is_in_sync)?;
    cairn_tests::all_equal(&lab, 2, VOLUME)?;
    Ok(lab.finish()?)
}

#[test]
fn coh_1_and_2_what_two_mounts_saw_has_an_order() -> Result<()> {
    work(2, setting("CAIRN_COHERENCE_FAILOVERS", 0) == 1)
}

#[test]
fn coh_1_and_2_what_three_mounts_saw_has_an_order_while_primaries_are_killed() -> Result<()> {
    work(3, true)
}
