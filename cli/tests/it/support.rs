//! Daemons as child processes on loopback, and commands to them.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{RwLock, mpsc};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// The program under test.
pub(crate) const CAIRN: &str = env!("CARGO_BIN_EXE_cairn");
/// No state takes longer to come about, on a machine that does other things too.
const BOUND: Duration = Duration::from_secs(60);

/// A command's end.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    pub(crate) fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The one JSON value on standard output.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Fails the test unless it was done.
    #[track_caller]
    pub(crate) fn done(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }

    /// Fails the test unless it was refused with this status, and with these words in sentence
    /// and hint.
    #[track_caller]
    pub(crate) fn refused(self, code: i32, sentence: &str, hint: &str) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        let mut lines = self.stderr.lines();
        let error = lines.find(|line| line.starts_with("error:"));
        assert!(
            error.is_some_and(|line| line.contains(sentence)),
            "{self:?}"
        );
        let next = lines.find(|line| line.starts_with("hint:"));
        assert!(next.is_some_and(|line| line.contains(hint)), "{self:?}");
        self
    }
}

/// A process between fork and exec holds copies of this process's locks. Whoever takes a lock
/// file in this process does so while no process is being started.
pub(crate) static STARTING: RwLock<()> = RwLock::new(());

/// Starts a process; on return it holds nothing of this one.
pub(crate) fn spawn(command: &mut Command) -> std::io::Result<Child> {
    let _guard = STARTING.read();
    command.spawn()
}

/// Runs a process to its end.
pub(crate) fn output(command: &mut Command) -> std::io::Result<Output> {
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    spawn(command)?.wait_with_output()
}

/// Runs the program without a daemon's directory.
pub(crate) fn cairn(args: &[&str]) -> Run {
    let mut command = Command::new(CAIRN);
    command.env_remove("CAIRN_DATA_DIR").args(args);
    Run::of(&output(&mut command).expect("the program runs"))
}

/// Sends a signal.
pub(crate) fn signal(name: &str, pid: u32) {
    let mut command = Command::new("kill");
    command.args([name, &pid.to_string()]);
    let sent = output(&mut command).expect("kill runs");
    assert!(sent.status.success());
}

/// A directory that goes away with the test.
pub(crate) fn directory() -> TempDir {
    tempfile::Builder::new()
        .prefix("cairn-it-")
        .tempdir()
        .expect("a directory")
}

/// A daemon.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    pub(crate) address: String,
    pub(crate) http: String,
    child: Option<Child>,
    extra: Vec<String>,
}

impl Node {
    /// Starts a daemon under `root` at a port of the kernel's choice.
    pub(crate) fn start(root: &Path, name: &str) -> Self {
        Self::start_with(root, name, &["--http", "off"])
    }

    pub(crate) fn start_with(root: &Path, name: &str, extra: &[&str]) -> Self {
        let mut node = Self {
            name: name.to_owned(),
            dir: root.join(name),
            address: "127.0.0.1:0".to_owned(),
            http: String::new(),
            child: None,
            extra: extra.iter().map(|&word| word.to_owned()).collect(),
        };
        std::fs::create_dir_all(root).expect("a directory");
        std::fs::write(node.settings_path(), "").expect("settings");
        node.restart();
        node
    }

    /// Its configuration file, empty at first.
    pub(crate) fn settings_path(&self) -> PathBuf {
        self.dir.with_extension("toml")
    }

    /// Starts it (again), at the address that it had.
    pub(crate) fn restart(&mut self) {
        assert!(self.child.is_none(), "{} runs", self.name);
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("a log");
        let mut command = Command::new(CAIRN);
        command
            .args(["daemon", "--name", &self.name, "--listen", &self.address])
            .arg("--config")
            .arg(self.settings_path())
            .args(&self.extra)
            .arg("--data-dir")
            .arg(&self.dir)
            .stdout(Stdio::piped())
            .stderr(log);
        let mut child = spawn(&mut command).expect("the daemon starts");
        let stdout = child.stdout.take().expect("piped");
        let (tell, ready) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            // An error shows as a line that says nothing.
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = tell.send(line);
        });
        let line = ready.recv_timeout(BOUND).unwrap_or_default();
        let log = self.log();
        let word = |key: &str| {
            line.split_whitespace()
                .find_map(|word| word.strip_prefix(key))
                .unwrap_or_else(|| panic!("not ready: `{line}`; {log}"))
                .to_owned()
        };
        assert!(line.starts_with("cairnd ready "), "{line}");
        assert_eq!(word("name="), self.name);
        self.address = word("listen=");
        self.http = word("http=");
        self.child = Some(child);
    }

    fn log_path(&self) -> PathBuf {
        self.dir.with_extension("log")
    }

    /// What it said on standard error.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("killed");
        child.wait().expect("gone");
    }

    /// SIGTERM; the exit status.
    pub(crate) fn terminate(&mut self) -> i32 {
        let mut child = self.child.take().expect("it runs");
        signal("-TERM", child.id());
        child.wait().expect("gone").code().unwrap_or(-1)
    }

    /// A command to this daemon.
    pub(crate) fn run(&self, args: &[&str]) -> Run {
        let mut command = Command::new(CAIRN);
        command.args(args).env("CAIRN_DATA_DIR", &self.dir);
        Run::of(&output(&mut command).expect("the program runs"))
    }

    /// A command given as one line.
    pub(crate) fn say(&self, line: &str) -> Run {
        self.run(&line.split_whitespace().collect::<Vec<_>>())
    }

    /// Facts.
    pub(crate) fn facts(&self, line: &str) -> Value {
        self.say(&format!("{line} --json")).json()
    }

    /// A one-time code of this node: the last word.
    pub(crate) fn code(&self) -> String {
        let run = self.say("peer code").done();
        run.stdout
            .split_whitespace()
            .last()
            .expect("a code")
            .to_owned()
    }

    /// Admits `other`.
    pub(crate) fn admit(&self, other: &Self) {
        let code = other.code();
        self.run(&["peer", "probe", &other.address, "--code", &code])
            .done();
    }

    /// Waits until `reached` holds of what `line` prints.
    #[track_caller]
    pub(crate) fn wait(&self, line: &str, reached: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let run = self.say(&format!("{line} --json"));
            if let Ok(value) = serde_json::from_str(&run.stdout)
                && reached(&value)
            {
                return value;
            }
            assert!(
                began.elapsed() < BOUND,
                "never reached: {run:?}\n{}",
                self.log()
            );
        }
    }

    /// Waits until the pool has a leader that this node knows.
    #[track_caller]
    pub(crate) fn wait_for_leader(&self) {
        self.wait("peer status", |status| {
            nodes(status).iter().any(|node| node["leader"] == true)
        });
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may be gone by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.name, self.log());
        }
    }
}

/// The nodes of a status.
pub(crate) fn nodes(status: &Value) -> &Vec<Value> {
    status["nodes"].as_array().expect("nodes")
}

/// A pool of `count` nodes named node1, node2, …
pub(crate) fn pool(root: &Path, count: usize) -> Vec<Node> {
    let nodes: Vec<Node> = (1..=count)
        .map(|number| Node::start(root, &format!("node{number}")))
        .collect();
    for other in &nodes[1..] {
        nodes[0].admit(other);
    }
    nodes
}

/// `volume create NAME replica 2` on the first two nodes, bricks under `root`.
pub(crate) fn create(root: &Path, nodes: &[Node], name: &str) -> Run {
    let bricks: Vec<String> = nodes[..2]
        .iter()
        .map(|node| {
            let path = root.join(format!("{}-{name}", node.name));
            format!("{}:{}", node.name, path.display())
        })
        .collect();
    // A test's directory may lie on the root file system.
    let words = ["volume", "create", name, "replica", "2"];
    nodes[0].run(&[&words[..], &[&bricks[0], &bricks[1], "force"]].concat())
}
