//! Where software runs: a mount of two replicas that a third node made, users without rights, and
//! processes that do not outlive the test.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cairn_lab::{Lab, is_in_sync, signal};
use cairn_tests::system::has_program;
use cairn_tests::{Mounted, all_equal, kill_primary, setting, skip};

const VOLUME: &str = "v1";
/// Who looks at the volume; its node has no brick.
const WATCHER: usize = 2;
const IN_SYNC_WITHIN: Duration = Duration::from_secs(60);
/// Between two looks at what is awaited.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// What a process gets to end after it was told to.
const ENDS_WITHIN: Duration = Duration::from_secs(60);
/// The user `nobody` and the group `nogroup` of every Debian.
const NOBODY: u32 = 65_534;
/// Where Debian keeps its programs, before all others.
const DEBIANS: &str = "/usr/lib/postgresql/15/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long a load lasts.
pub(crate) fn load() -> Duration {
    Duration::from_secs(setting("CAIRN_SOFTWARE_SECONDS", 4))
}

/// By how much sizes are larger than in CI.
pub(crate) fn scale() -> u64 {
    setting("CAIRN_SOFTWARE_SCALE", 1)
}

/// A volume and its mount.
pub(crate) struct Place {
    lab: Lab,
    mount: PathBuf,
    // Removed last: the mount is in it.
    dir: tempfile::TempDir,
}

impl Place {
    /// `None`, said loudly, without root or one of `programs`.
    pub(crate) fn new(programs: &[&str]) -> Result<Option<Self>> {
        if !cairn_lab::is_root() {
            skip("software is run as other users, which needs root");
            return Ok(None);
        }
        let there = |name: &str| has_program(name) || path_of(name, DEBIANS).is_some();
        let missing: Vec<_> = programs.iter().filter(|name| !there(name)).collect();
        if !missing.is_empty() {
            skip(&format!(
                "not installed: {missing:?}; `cargo xtask suites` does"
            ));
            return Ok(None);
        }
        let Some(Mounted { lab, mount, dir }) = Mounted::new(VOLUME, 3)? else {
            return Ok(None);
        };
        // Other users go through it.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        Ok(Some(Self { lab, mount, dir }))
    }

    /// The root of the mount.
    pub(crate) fn mount(&self) -> &Path {
        &self.mount
    }

    /// A directory beside the mount.
    pub(crate) fn beside(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.path().join(name);
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// A desk for a user without rights: `name` on the mount, and beside it.
    pub(crate) fn desk(&self, name: &str) -> Result<Desk> {
        let desk = Desk {
            home: self.mount.join(name),
            beside: self.beside(name)?,
        };
        fs::create_dir(&desk.home)?;
        for dir in [&desk.home, &desk.beside] {
            chown(dir, Some(NOBODY), Some(NOBODY))?;
        }
        Ok(desk)
    }

    /// Does `work` while the primary is killed and started again: soon, and as often as
    /// everything is in sync and `CAIRN_SOFTWARE_KILL_EVERY` seconds (3) have passed. At least one
    /// has to be killed, and says so.
    pub(crate) fn while_primaries_die<T: Send>(
        &mut self,
        what: &str,
        work: impl FnOnce() -> Result<T> + Send,
    ) -> Result<T> {
        let every = Duration::from_secs(setting("CAIRN_SOFTWARE_KILL_EVERY", 3));
        let mut next = Instant::now() + Duration::from_millis(500);
        let mut kills = 0;
        let done = std::thread::scope(|scope| {
            let work = scope.spawn(work);
            let mut trouble = Ok(());
            while !work.is_finished() && trouble.is_ok() {
                if Instant::now() >= next {
                    match kill_primary(&mut self.lab, WATCHER, VOLUME) {
                        Ok(true) => {
                            kills += 1;
                            next = Instant::now() + every;
                        }
                        Ok(false) => {}
                        Err(error) => trouble = Err(error),
                    }
                }
                std::thread::sleep(LOOK_AGAIN);
            }
            let done = work.join().expect("work does not panic");
            trouble.and(done)
        })?;
        println!("{what}: the primary was killed {kills} times");
        ensure!(kills > 0, "{what} ended before a primary was killed");
        Ok(done)
    }

    /// Does `work` while both replicas' daemons are dead.
    pub(crate) fn while_nobody_serves<T>(&mut self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.lab.kill(0);
        self.lab.kill(1);
        let done = work();
        self.lab.start(0)?;
        self.lab.start(1)?;
        done
    }

    /// The replicas are in sync and equal; everything is taken away in order.
    pub(crate) fn finish(self) -> Result<()> {
        let Self { lab, dir, .. } = self;
        lab.wait_volume(WATCHER, VOLUME, "in sync", IN_SYNC_WITHIN, is_in_sync)?;
        all_equal(&lab, WATCHER, VOLUME)?;
        lab.finish()?;
        Ok(dir.close()?)
    }
}

/// What a user without rights works with.
#[derive(Debug, Clone)]
pub(crate) struct Desk {
    /// On the mount.
    pub(crate) home: PathBuf,
    /// Beside it: sockets, and what programs say.
    pub(crate) beside: PathBuf,
}

impl Desk {
    /// A program that this user runs, to its end.
    pub(crate) fn command(&self, program: &str) -> Command {
        self.own(command(program))
    }

    /// A program that this user runs until it is told to end.
    pub(crate) fn unbounded(&self, program: &str) -> Command {
        self.own(unbounded(program))
    }

    fn own(&self, mut command: Command) -> Command {
        command.uid(NOBODY).gid(NOBODY);
        command.current_dir(&self.beside).env("HOME", &self.beside);
        command
    }

    /// Starts a server, whose words go to a file; `last` is the signal that ends it at once.
    pub(crate) fn serve(
        &self,
        name: &'static str,
        mut command: Command,
        last: &'static str,
    ) -> Result<Server> {
        let log = self.beside.join(format!("{name}.log"));
        let file = fs::File::options().create(true).append(true).open(&log)?;
        let process = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| name.to_owned())?;
        Ok(Server {
            name,
            process,
            log,
            last,
        })
    }
}

/// Looked up by the path that the program gets, which `Command` would do by the test's own.
fn path_of(program: &str, path: &str) -> Option<PathBuf> {
    let mut found = std::env::split_paths(path).map(|dir| dir.join(program));
    found.find(|file| file.is_file())
}

/// A program by its name, with a plain language.
pub(crate) fn unbounded(program: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{DEBIANS}:{path}");
    let mut command = Command::new(path_of(program, &path).unwrap_or_else(|| program.into()));
    command.env("PATH", path).env("LC_ALL", "C.UTF-8");
    command.stdin(Stdio::null());
    command
}

/// The same, told to end when it takes longer than [`soon`], and killed five seconds later, with
/// all its children.
pub(crate) fn command(program: &str) -> Command {
    let mut command = unbounded("timeout");
    let seconds = soon().as_secs().to_string();
    command.args(["-k", "5", &seconds, program]);
    command
}

/// Runs a program to its end, which must be a good one; returns what it said, errors included.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let said = said(&output);
    ensure!(
        output.status.success(),
        "{command:?}: {}: {said}",
        output.status
    );
    Ok(said)
}

/// Everything that a program said.
pub(crate) fn said(output: &Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    format!("{out}{err}")
}

/// How long anything may take that a load does not make longer.
pub(crate) fn soon() -> Duration {
    Duration::from_secs(120) + load() * 4
}

/// A server's process. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    name: &'static str,
    process: Child,
    log: PathBuf,
    last: &'static str,
}

impl Server {
    /// Waits until `answers`.
    pub(crate) fn wait(&mut self, answers: impl Fn() -> Result<bool>) -> Result<()> {
        let began = Instant::now();
        while !answers()? {
            let ended = self.process.try_wait()?;
            ensure!(ended.is_none(), "{}: {ended:?}: {}", self.name, self.said());
            ensure!(
                began.elapsed() < soon(),
                "{} does not answer: {}",
                self.name,
                self.said()
            );
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    /// Everything that it and those before it said.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a signal and waits for the end.
    pub(crate) fn end_by(mut self, name: &str) -> Result<ExitStatus> {
        signal(self.process.id(), name)?;
        let status = ended(&mut self.process, ENDS_WITHIN)?;
        status.with_context(|| format!("{} does not end: {}", self.name, self.said()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            // It may have ended by itself.
            let _ = signal(self.process.id(), self.last);
            if !matches!(ended(&mut self.process, ENDS_WITHIN), Ok(Some(_))) {
                let _ = self.process.kill();
            }
        }
    }
}

/// Waits for a process's end.
pub(crate) fn ended(process: &mut Child, within: Duration) -> Result<Option<ExitStatus>> {
    let began = Instant::now();
    loop {
        let status = process.try_wait()?;
        if status.is_some() || began.elapsed() > within {
            return Ok(status);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}
