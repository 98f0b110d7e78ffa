//! FO-1, COH-3 and what POSIX says of every call, asked by suites that others wrote: pjdfstest
//! case by case, fsx by random operations on one file, whose content it knows; on a real mount of
//! two replicas. `cargo xtask suites` installs both, with the versions that it names.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cairn_lab::is_in_sync;
use cairn_tests::{Mounted, Random, all_equal, binary, kill_primary, setting, skip};
use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags};

const VOLUME: &str = "v1";
const IN_SYNC_WITHIN: Duration = Duration::from_secs(60);
/// Between two deaths of the primary.
const KILL_EVERY: Duration = Duration::from_secs(1);
/// Cases of pjdfstest that are left out, with the reason: any other one that is fails the test.
const LEFT_OUT: [(&str, &str); 1] = [(
    "link::link_count_max",
    "pathconf(3) knows no limit of links for FUSE; `hard_links_end_at_65000_and_never_lead_to_directories` shows it",
)];

/// What the names of the cases have in common that make the file system read-only.
const READ_ONLY: &str = "::erofs";

/// The suite's program; `None`, said loudly, where it is not installed.
fn tool(name: &str) -> Option<PathBuf> {
    let target = binary().ancestors().nth(2).map(Path::to_owned);
    let tool = target.map(|target| target.join("tools/bin").join(name));
    let found = tool.filter(|tool| tool.exists());
    if found.is_none() {
        skip(&format!(
            "{name} is not installed: `cargo xtask suites` does"
        ));
    }
    found
}

fn config(name: &str) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.join("suites").join(name)
}

// ---- pjdfstest ---------------------------------------------------------------------------------

/// What a run said, line by line.
struct Said(String);

impl Said {
    fn summary(&self) -> &str {
        let summary = self.0.lines().find(|line| line.starts_with("Summary"));
        summary.unwrap_or("no summary")
    }

    fn left_out(&self) -> impl Iterator<Item = &str> {
        let lines = self.0.lines().filter(|line| line.ends_with("skipped"));
        lines.filter_map(|line| line.split_whitespace().next())
    }
}

/// A path for programs with a mount(8) that leaves out the helper for FUSE where there is one: it
/// would make a mount anew and knows of no remount, which is the kernel's.
fn asking_the_kernel(dir: &Path) -> Result<String> {
    let bin = dir.join("bin");
    fs::create_dir_all(&bin)?;
    let mount = bin.join("mount");
    fs::write(&mount, "#!/bin/sh\nexec /bin/mount -i \"$@\"\n")?;
    fs::set_permissions(&mount, fs::Permissions::from_mode(0o755))?;
    let path = std::env::var("PATH").unwrap_or_default();
    Ok(format!("{}:{path}", bin.display()))
}

/// Runs the cases whose names contain `pattern`. With `remounts` the mount is made read-only and
/// back on the way.
fn pjdfstest(tool: &Path, dir: &Path, mount: &Path, pattern: &str, remounts: bool) -> Result<Said> {
    let elsewhere = dir.join("elsewhere");
    fs::create_dir_all(&elsewhere)?;
    let text = fs::read_to_string(config("pjdfstest.toml"))?;
    let config = dir.join("pjdfstest.toml");
    fs::write(&config, text.replace("REMOUNTS", &remounts.to_string()))?;
    let output = Command::new(tool)
        .env("PATH", asking_the_kernel(dir)?)
        .args(["--configuration-file".as_ref(), config.as_os_str()])
        .args(["--path".as_ref(), mount.as_os_str()])
        .args(["--secondary-fs".as_ref(), elsewhere.as_os_str()])
        .arg(pattern)
        .env("NO_COLOR", "1")
        .output()?;
    let said = Said(String::from_utf8_lossy(&output.stdout).into_owned());
    ensure!(output.status.success(), "{}", said.0);
    Ok(said)
}

#[test]
fn every_case_of_pjdfstest_passes() -> Result<()> {
    let Some(tool) = tool("pjdfstest") else {
        return Ok(());
    };
    if !cairn_lab::is_root() {
        skip("pjdfstest changes users, which needs root");
        return Ok(());
    }
    let Some(Mounted { dir, lab, mount }) = Mounted::new(VOLUME, 2)? else {
        return Ok(());
    };
    // Other users go through it.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    let all = pjdfstest(&tool, dir.path(), &mount, "", false)?;
    // Apart from the others, some of which leave files open for writing: then no file system can
    // be made read-only.
    let read_only = pjdfstest(&tool, dir.path(), &mount, READ_ONLY, true)?;
    for case in all.left_out().chain(read_only.left_out()) {
        if case.contains(READ_ONLY) && read_only.left_out().all(|other| other != case) {
            continue;
        }
        let known = LEFT_OUT.iter().find(|(name, _)| *name == case);
        let (_, why) = known.with_context(|| format!("{case} was left out:\n{}", all.0))?;
        println!("pjdfstest: left out {case}: {why}");
    }
    println!("pjdfstest: {}", all.summary());
    println!("pjdfstest, made read-only: {}", read_only.summary());
    all_equal(&lab, 0, VOLUME)?;
    Ok(lab.finish()?)
}

// ---- fsx ---------------------------------------------------------------------------------------

/// How fsx opens its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Buffered,
    Direct,
    Mapped,
}

impl Mode {
    fn config(self) -> PathBuf {
        config(match self {
            Self::Buffered => "fsx-buffered.toml",
            Self::Direct => "fsx-direct.toml",
            Self::Mapped => "fsx-mmap.toml",
        })
    }
}

/// A running fsx.
struct Fsx {
    mode: Mode,
    seed: u64,
    operations: u64,
    log: PathBuf,
    process: Child,
}

impl Fsx {
    fn start(tool: &Path, mount: &Path, mode: Mode, seed: u64, operations: u64) -> Result<Self> {
        let file = mount.join(format!("fsx-{mode:?}"));
        let artifacts = std::env::temp_dir();
        let log = artifacts.join(format!("fsx-{}-{mode:?}-{seed}.log", std::process::id()));
        let process = Command::new(tool)
            .args(["-f".as_ref(), mode.config().as_os_str()])
            .args(["-N", &operations.to_string(), "-S", &seed.to_string()])
            .args(["-P".as_ref(), artifacts.as_os_str()])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()?;
        let mut fsx = Self {
            mode,
            seed,
            operations,
            log,
            process,
        };
        if mode == Mode::Direct {
            fsx.make_direct(&file)?;
        }
        Ok(fsx)
    }

    /// fsx has no word for O_DIRECT: its open file gets the flag from here.
    fn make_direct(&mut self, file: &Path) -> Result<()> {
        let pid = self.process.id();
        let began = Instant::now();
        let number = loop {
            let open = fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
            let found = open
                .into_iter()
                .find(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == file));
            if let Some(found) = found {
                break found.file_name().to_string_lossy().parse::<i32>()?;
            }
            ensure!(began.elapsed() < IN_SYNC_WITHIN, "fsx opened no file");
            ensure!(self.process.try_wait()?.is_none(), "fsx ended");
            std::thread::yield_now();
        };
        let pid = Pid::from_raw(i32::try_from(pid)?).context("a process")?;
        let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        let none = rustix::process::PidfdGetfdFlags::empty();
        let shared = rustix::process::pidfd_getfd(process, number, none)?;
        let flags = rustix::fs::fcntl_getfl(&shared)?;
        rustix::fs::fcntl_setfl(&shared, flags | OFlags::DIRECT)?;
        let now = rustix::fs::fcntl_getfl(&shared)?;
        ensure!(
            now.contains(OFlags::DIRECT),
            "the file is not direct: {now:?}"
        );
        Ok(())
    }

    fn is_running(&mut self) -> Result<bool> {
        Ok(self.process.try_wait()?.is_none())
    }

    fn finish(self) -> Result<()> {
        let Self {
            mode,
            seed,
            operations,
            log,
            mut process,
        } = self;
        let status = process.wait()?;
        let said = fs::read_to_string(&log).unwrap_or_default();
        let end: Vec<_> = said.lines().rev().take(60).collect();
        let end: Vec<_> = end.into_iter().rev().collect();
        ensure!(
            status.success(),
            "{mode:?}, `-S {seed}`, all of it in {}:\n{}",
            log.display(),
            end.join("\n")
        );
        fs::remove_file(log)?;
        println!("fsx: {operations} operations, {mode:?}: no byte wrong");
        Ok(())
    }
}

/// The volume of an fsx, and the program.
fn for_fsx(nodes: usize) -> Result<Option<(PathBuf, Mounted)>> {
    let Some(tool) = tool("fsx") else {
        return Ok(None);
    };
    Ok(Mounted::new(VOLUME, nodes)?.map(|mounted| (tool, mounted)))
}

fn seed() -> u64 {
    Random::from_env("CAIRN_FSX_SEED").below(1 << 31)
}

#[test]
fn fsx_finds_every_byte_as_it_was_written() -> Result<()> {
    let Some((tool, mounted)) = for_fsx(2)? else {
        return Ok(());
    };
    let operations = setting("CAIRN_FSX_OPERATIONS", 4_000);
    let seed = seed();
    for mode in [Mode::Buffered, Mode::Direct, Mode::Mapped] {
        Fsx::start(&tool, &mounted.mount, mode, seed, operations)?.finish()?;
    }
    all_equal(&mounted.lab, 0, VOLUME)?;
    let Mounted { lab, .. } = mounted;
    Ok(lab.finish()?)
}

#[test]
fn fsx_finds_every_byte_while_the_primary_is_killed_every_second() -> Result<()> {
    let Some((tool, mounted)) = for_fsx(3)? else {
        return Ok(());
    };
    let Mounted {
        dir: _dir,
        mut lab,
        mount,
    } = mounted;
    let operations = setting("CAIRN_FSX_KILLED_OPERATIONS", 4_000);
    let mut fsx = Fsx::start(&tool, &mount, Mode::Mapped, seed(), operations)?;
    let (mut kills, mut next) = (0, Instant::now() + KILL_EVERY);
    while fsx.is_running()? {
        if Instant::now() >= next && kill_primary(&mut lab, 2, VOLUME)? {
            kills += 1;
            next = Instant::now() + KILL_EVERY;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    fsx.finish()?;
    println!("fsx: the primary was killed {kills} times");
    lab.wait_volume(2, VOLUME, "in sync", IN_SYNC_WITHIN, is_in_sync)?;
    all_equal(&lab, 0, VOLUME)?;
    Ok(lab.finish()?)
}
