//! Real nodes on loopback addresses, or in places that the caller made, each a child process with
//! a directory of its own: what the demo, the tests and the benchmarks run on. Everything is done
//! by the commands that a user types; facts come from their JSON.

#![forbid(unsafe_code)]

pub mod disk;
pub mod workloads;

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long a node may take to be ready.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Pause between two looks at a state.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What went wrong in a lab.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A command failed.
    #[error("`cairn {command}` ended with {status}: {stderr}")]
    Command {
        /// Its words.
        command: String,
        /// How it ended.
        status: String,
        /// What it said.
        stderr: String,
    },
    /// A command's output is not what was expected.
    #[error("`cairn {command}` printed {output}")]
    Output {
        /// Its words.
        command: String,
        /// What it printed.
        output: String,
    },
    /// A node ended before it was ready.
    #[error("node {node} did not become ready: {log}")]
    NotReady {
        /// Its index.
        node: usize,
        /// The end of its log.
        log: String,
    },
    /// A state was not reached in time.
    #[error("{what} was not reached within {seconds} s; it is {state}")]
    Timeout {
        /// Which state.
        what: String,
        /// How long was waited.
        seconds: u64,
        /// What it was instead.
        state: String,
    },
    /// A file operation failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        source: io::Error,
    },
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> LabError {
    let what = what.into();
    move |source| LabError::Io { what, source }
}

/// Where a node runs.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// The address that it listens at, without port.
    pub address: String,
    /// A program and its arguments that run what follows them in that place, as
    /// `nsenter --net=PATH` does by replacing itself; nothing for this process's own place.
    pub enter: Vec<String>,
    /// What others are told instead of where it listens; nothing: just that.
    pub advertised: Option<String>,
}

/// One node.
#[derive(Debug)]
struct Node {
    dir: PathBuf,
    place: Place,
    process: Option<Child>,
}

/// What a command left.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Exit status; -1 for a signal.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Nodes on loopback. Dropping it unmounts and kills what it started.
#[derive(Debug)]
pub struct Lab {
    binary: PathBuf,
    dir: PathBuf,
    nodes: Vec<Node>,
    mounts: Vec<PathBuf>,
    /// Environment of every process.
    env: Vec<(String, String)>,
}

impl Lab {
    /// A lab in the existing directory `dir`, with the executable `binary`. Addresses are chosen
    /// at random in 127.0.0.0/8, so that labs do not meet.
    pub fn new(binary: &Path, dir: &Path, nodes: usize) -> Result<Self, LabError> {
        let mut random = [0; 2];
        getrandom::fill(&mut random)
            .map_err(|error| failed("ask for random bytes")(io::Error::other(error)))?;
        let (a, b) = (random[0] % 200 + 20, random[1]);
        let places = (1..=nodes).map(|n| Place {
            address: format!("127.{a}.{b}.{n}"),
            ..Place::default()
        });
        Ok(Self::at(binary, dir, places))
    }

    /// A lab whose nodes run in the given places, which outlive it.
    pub fn at(binary: &Path, dir: &Path, places: impl IntoIterator<Item = Place>) -> Self {
        let nodes = (1..).zip(places).map(|(n, place)| Node {
            dir: dir.join(format!("node{n}")),
            place,
            process: None,
        });
        Self {
            binary: binary.to_owned(),
            dir: dir.to_owned(),
            nodes: nodes.collect(),
            mounts: Vec::new(),
            env: Vec::new(),
        }
    }

    /// The executable in a node's place, told of that node's directory.
    fn command(&self, node: usize) -> Command {
        let Node { dir, place, .. } = &self.nodes[node];
        let mut command = match place.enter.split_first() {
            None => Command::new(&self.binary),
            Some((program, words)) => {
                let mut command = Command::new(program);
                command.args(words).arg(&self.binary);
                command
            }
        };
        command
            .arg("--data-dir")
            .arg(dir)
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null());
        command
    }

    /// Sets a variable for every process started from now on.
    pub fn set_env(&mut self, key: &str, value: &str) {
        self.env.push((key.to_owned(), value.to_owned()));
    }

    /// The lab's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The address of a node, without port.
    #[must_use]
    pub fn address(&self, node: usize) -> &str {
        &self.nodes[node].place.address
    }

    /// Where other nodes find it.
    #[must_use]
    pub fn advertised(&self, node: usize) -> &str {
        let place = &self.nodes[node].place;
        place.advertised.as_ref().unwrap_or(&place.address)
    }

    /// The name of a node in the pool.
    #[must_use]
    pub fn name(&self, node: usize) -> String {
        format!("node{}", node + 1)
    }

    /// The data directory of a node.
    #[must_use]
    pub fn data_dir(&self, node: usize) -> &Path {
        &self.nodes[node].dir
    }

    /// The process id of a running node.
    #[must_use]
    pub fn pid(&self, node: usize) -> Option<u32> {
        self.nodes[node].process.as_ref().map(Child::id)
    }

    /// Where a node's log is.
    #[must_use]
    pub fn log(&self, node: usize) -> PathBuf {
        self.dir.join(format!("node{}.log", node + 1))
    }

    /// Starts a node's daemon and waits until it is ready.
    pub fn start(&mut self, node: usize) -> Result<(), LabError> {
        let name = self.name(node);
        let log = self.log(node);
        fs::create_dir_all(self.data_dir(node)).map_err(failed("make a node's directory"))?;
        let log_file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(failed("open a node's log"))?;
        let advertised = self.nodes[node].place.advertised.iter();
        let advertise = advertised.flat_map(|told| ["--advertise", told]);
        let mut process = self
            .command(node)
            .args(["daemon", "--name", &name, "--listen"])
            .args([self.address(node), "--http", "off"])
            .args(advertise)
            .stdout(Stdio::piped())
            .stderr(log_file)
            .spawn()
            .map_err(failed("start a daemon"))?;
        let out = process.stdout.take();
        let (ready, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            if let Some(out) = out {
                // The channel tells that it ended, too.
                let _ = BufReader::new(out).read_line(&mut line);
            }
            let _ = ready.send(line);
        });
        let line = wait.recv_timeout(READY_WITHIN).unwrap_or_default();
        self.nodes[node].process = Some(process);
        if line.starts_with("cairnd ready") {
            return Ok(());
        }
        self.kill(node);
        let log = fs::read_to_string(log).unwrap_or_default();
        let tail = log.lines().rev().take(5).collect::<Vec<_>>();
        let log = tail.into_iter().rev().collect::<Vec<_>>().join(" | ");
        Err(LabError::NotReady { node, log })
    }

    /// Ends a node's process with SIGKILL.
    pub fn kill(&mut self, node: usize) {
        if let Some(mut process) = self.nodes[node].process.take() {
            // It may have ended by itself.
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Ends a node's process in order, by SIGTERM.
    pub fn stop(&mut self, node: usize) -> Result<(), LabError> {
        let Some(mut process) = self.nodes[node].process.take() else {
            return Ok(());
        };
        signal(process.id(), "TERM")?;
        process.wait().map_err(failed("wait for a daemon"))?;
        Ok(())
    }

    /// Whether a node's process runs.
    pub fn is_running(&mut self, node: usize) -> bool {
        let process = self.nodes[node].process.as_mut();
        process.is_some_and(|process| matches!(process.try_wait(), Ok(None)))
    }

    /// Runs a command against a node, whatever its exit status.
    pub fn run(&self, node: usize, words: &[&str]) -> Result<Ran, LabError> {
        let output = self
            .command(node)
            .args(words)
            .output()
            .map_err(failed("run a command"))?;
        Ok(Ran {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs a command that must succeed; returns its output.
    pub fn cairn(&self, node: usize, words: &[&str]) -> Result<String, LabError> {
        let ran = self.run(node, words)?;
        if ran.status == 0 {
            return Ok(ran.stdout);
        }
        Err(LabError::Command {
            command: words.join(" "),
            status: format!("status {}", ran.status),
            stderr: ran.stderr.trim().to_owned(),
        })
    }

    /// Runs a command with `--json`, whatever its exit status, and reads what it printed.
    pub fn json(&self, node: usize, words: &[&str]) -> Result<Value, LabError> {
        let ran = self.run(node, &[words, &["--json"]].concat())?;
        serde_json::from_str(&ran.stdout).map_err(|_| LabError::Output {
            command: words.join(" "),
            output: format!("{}{}", ran.stdout, ran.stderr),
        })
    }

    /// Starts every node and admits all to the pool of the first.
    pub fn form_pool(&mut self) -> Result<(), LabError> {
        for node in 0..self.nodes.len() {
            self.start(node)?;
        }
        for node in 1..self.nodes.len() {
            let printed = self.cairn(node, &["peer", "code"])?;
            let code = printed
                .split_whitespace()
                .last()
                .unwrap_or_default()
                .to_owned();
            let address = self.advertised(node);
            self.cairn(0, &["peer", "probe", address, "--code", &code])?;
        }
        Ok(())
    }

    /// The directory of a node's brick of a volume, below `under` or the lab's own directory.
    #[must_use]
    pub fn brick(&self, node: usize, volume: &str) -> PathBuf {
        self.dir.join(format!("brick{}", node + 1)).join(volume)
    }

    /// Makes and starts a volume with a brick on each of the first `replicas` nodes.
    pub fn make_volume(&self, volume: &str, replicas: usize) -> Result<(), LabError> {
        self.make(volume, replicas, &[])
    }

    /// The same of a block volume.
    pub fn make_disk(&self, volume: &str, replicas: usize, size: &str) -> Result<(), LabError> {
        self.make(volume, replicas, &["--type", "block", "--size", size])
    }

    fn make(&self, volume: &str, replicas: usize, options: &[&str]) -> Result<(), LabError> {
        let mut words = vec!["volume".to_owned(), "create".to_owned(), volume.to_owned()];
        words.extend(options.iter().map(|word| (*word).to_owned()));
        words.extend(["replica".to_owned(), replicas.to_string()]);
        for node in 0..replicas {
            let brick = self.brick(node, volume);
            if let Some(parent) = brick.parent() {
                fs::create_dir_all(parent).map_err(failed("make a brick's directory"))?;
            }
            words.push(format!("{}:{}", self.name(node), brick.display()));
        }
        words.push("force".to_owned());
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.cairn(0, &words)?;
        self.cairn(0, &["volume", "start", volume])?;
        self.wait_volume(0, volume, "in sync", Duration::from_secs(20), is_in_sync)?;
        Ok(())
    }

    /// One volume of `volume status`.
    pub fn volume(&self, node: usize, volume: &str) -> Result<Value, LabError> {
        let status = self.json(node, &["volume", "status", volume])?;
        Ok(status["volumes"][0].clone())
    }

    /// Waits until the volume's status, asked at `node`, is as wanted.
    pub fn wait_volume(
        &self,
        node: usize,
        volume: &str,
        what: &str,
        within: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value, LabError> {
        let began = Instant::now();
        loop {
            let status = self.volume(node, volume)?;
            if wanted(&status) {
                return Ok(status);
            }
            if began.elapsed() > within {
                return Err(LabError::Timeout {
                    what: format!("volume {volume}: {what}"),
                    seconds: within.as_secs(),
                    state: status.to_string(),
                });
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Mounts a volume by a node's identity and returns when it is usable.
    pub fn mount(&mut self, node: usize, volume: &str, at: &Path) -> Result<(), LabError> {
        fs::create_dir_all(at).map_err(failed("make a mount point"))?;
        let hosts: Vec<_> = (0..self.nodes.len().min(2))
            .map(|n| (n + node) % self.nodes.len().min(2))
            .map(|n| self.advertised(n).to_owned())
            .collect();
        let source = format!("{}:/{volume}", hosts.join(","));
        let log = format!("log_file={}", self.dir.join("mount.log").display());
        let at_text = at.display().to_string();
        self.mounts.push(at.to_owned());
        self.cairn(node, &["mount", &source, &at_text, "-o", &log])?;
        Ok(())
    }

    /// Unmounts.
    pub fn umount(&mut self, at: &Path) -> Result<(), LabError> {
        unmount(at)?;
        self.mounts.retain(|mount| mount != at);
        Ok(())
    }

    /// Unmounts and ends everything, in order.
    pub fn finish(mut self) -> Result<(), LabError> {
        // A mount that cannot be taken away in order is left to the lazy way of `drop`: its
        // processes must not outlive the nodes and hang whoever looks at it.
        for at in self.mounts.clone() {
            self.umount(&at)?;
        }
        for node in 0..self.nodes.len() {
            self.stop(node)?;
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for at in std::mem::take(&mut self.mounts) {
            // Lazily: whoever still sits in it must not keep the daemons alive.
            let program = if is_root() { "umount" } else { "fusermount3" };
            let flag = if is_root() { "-l" } else { "-uz" };
            let _ = Command::new(program)
                .arg(flag)
                .arg(at)
                .stderr(Stdio::null())
                .status();
        }
        for node in 0..self.nodes.len() {
            self.kill(node);
        }
    }
}

/// Whether every replica of a volume's status is in sync and up to date.
#[must_use]
pub fn is_in_sync(volume: &Value) -> bool {
    let replicas = volume["replicas"].as_array();
    replicas.is_some_and(|replicas| {
        replicas
            .iter()
            .all(|r| r["in_sync"] == true && r["disk"] == "up_to_date")
    })
}

/// Sends a signal by name to a process.
pub fn signal(pid: u32, name: &str) -> Result<(), LabError> {
    let sent = Command::new("kill")
        .args(["-s", name, &pid.to_string()])
        .status();
    sent.map(drop).map_err(failed("send a signal"))
}

/// Whether this process is root.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn unmount(at: &Path) -> Result<(), LabError> {
    let mut command = if is_root() {
        Command::new("umount")
    } else {
        let mut command = Command::new("fusermount3");
        command.arg("-u");
        command
    };
    let output = command.arg(at).output().map_err(failed("run umount"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(LabError::Command {
        command: format!("umount {}", at.display()),
        status: output.status.to_string(),
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
