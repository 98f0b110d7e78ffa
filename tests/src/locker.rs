//! A process that locks files as it is told. Only another process is another owner of fcntl(2)'s
//! locks; Python has all the kinds of locks that the kernel has.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

/// Longest wait for an answer: a failover and a session's end are shorter.
const WITHIN: Duration = Duration::from_secs(60);

/// One line a command, one line an answer: `ok`, what was asked for, or the errno's name.
const PROGRAM: &str = r#"
import errno, fcntl, os, signal, struct, sys

def interrupted(*_):
    raise InterruptedError(errno.EINTR, "signal")

signal.signal(signal.SIGUSR1, interrupted)
KINDS = {"r": fcntl.F_RDLCK, "w": fcntl.F_WRLCK, "un": fcntl.F_UNLCK}
WHOLE = {"sh": fcntl.LOCK_SH, "ex": fcntl.LOCK_EX, "un": fcntl.LOCK_UN}
SET = {"posix": (fcntl.F_SETLKW, fcntl.F_SETLK), "ofd": (fcntl.F_OFD_SETLKW, fcntl.F_OFD_SETLK)}
files = {}

def do(what, name, *rest):
    if what == "open":
        files[name] = os.open(rest[0], os.O_RDWR | os.O_CREAT, 0o644)
        return "ok"
    if what == "pid":
        return str(os.getpid())
    file = files[name]
    if what == "close":
        os.close(files.pop(name))
    elif what == "flock":
        fcntl.flock(file, WHOLE[rest[0]] | (fcntl.LOCK_NB if rest[-1] == "nb" else 0))
    elif what == "test":
        lock = struct.pack("hh4xqqi4x", KINDS[rest[0]], 0, int(rest[1]), int(rest[2]), 0)
        kind, _, start, length, pid = struct.unpack("hh4xqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, lock))
        word = [key for key, value in KINDS.items() if value == kind][0]
        return "free" if word == "un" else f"{word} {start} {length} {pid}"
    elif what == "write":
        os.pwrite(file, rest[0].encode(), 0)
    elif what == "truncate":
        os.ftruncate(file, int(rest[0]))
    elif what == "allocate":
        os.posix_fallocate(file, 0, int(rest[0]))
    elif what == "sync":
        os.fsync(file)
    elif what == "read":
        return os.pread(file, 100, 0).decode() or "nothing"
    else:
        lock = struct.pack("hh4xqqi4x", KINDS[rest[0]], 0, int(rest[1]), int(rest[2]), 0)
        fcntl.fcntl(file, SET[what][rest[-1] == "nb"], lock)
    return "ok"

for line in sys.stdin:
    try:
        answer = do(*line.split())
    except OSError as error:
        answer = errno.errorcode[error.errno].replace("EDEADLOCK", "EDEADLK")
    print(answer, flush=True)
"#;

/// See the module. Killed when dropped.
#[derive(Debug)]
pub struct Locker {
    child: Child,
    commands: ChildStdin,
    answers: Receiver<String>,
}

impl Locker {
    /// Whether such a process can be had.
    #[must_use]
    pub fn is_possible() -> bool {
        let found = Command::new("python3")
            .args(["-c", "import fcntl; fcntl.F_OFD_SETLKW"])
            .stderr(Stdio::null())
            .status();
        found.is_ok_and(|status| status.success())
    }

    /// Starts one that has `path` open as `f`.
    ///
    /// # Errors
    /// It does not start, or cannot open the file.
    pub fn start(path: &Path) -> Result<Self> {
        let mut child = Command::new("python3")
            .args(["-u", "-c", PROGRAM])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start python3")?;
        let commands = child.stdin.take().context("a pipe")?;
        let output = child.stdout.take().context("a pipe")?;
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut this = Self {
            child,
            commands,
            answers,
        };
        this.expect(&format!("open f {}", path.display()), "ok")?;
        Ok(this)
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells it to do something; the answer comes later.
    ///
    /// # Errors
    /// It is gone.
    pub fn begin(&mut self, command: &str) -> Result<()> {
        writeln!(self.commands, "{command}").context("tell a locker")
    }

    /// The answer, if it is here.
    ///
    /// # Errors
    /// It is gone.
    pub fn answer(&mut self) -> Result<Option<String>> {
        match self.answers.try_recv() {
            Ok(answer) => Ok(Some(answer)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => bail!("the locker is gone"),
        }
    }

    /// Waits for the answer.
    ///
    /// # Errors
    /// It is gone, or does not answer.
    pub fn wait(&mut self) -> Result<String> {
        match self.answers.recv_timeout(WITHIN) {
            Ok(answer) => Ok(answer),
            Err(RecvTimeoutError::Timeout) => bail!("the locker does not answer"),
            Err(RecvTimeoutError::Disconnected) => bail!("the locker is gone"),
        }
    }

    /// Tells it to do something and waits for the answer.
    ///
    /// # Errors
    /// See [`Locker::wait`].
    pub fn ask(&mut self, command: &str) -> Result<String> {
        self.begin(command)?;
        self.wait()
    }

    /// The same, where the answer is known.
    ///
    /// # Errors
    /// It is another one.
    pub fn expect(&mut self, command: &str, wanted: &str) -> Result<()> {
        let answer = self.ask(command)?;
        ensure!(answer == wanted, "`{command}`: {answer}, not {wanted}");
        Ok(())
    }

    /// Tells it to do something that has to wait; returns when its process sleeps for it.
    ///
    /// # Errors
    /// It did not have to wait.
    pub fn expect_wait(&mut self, command: &str) -> Result<()> {
        self.begin(command)?;
        let wchan = format!("/proc/{}/wchan", self.pid());
        // A process that reads its next command waits in a pipe.
        while !std::fs::read_to_string(&wchan)
            .unwrap_or_default()
            .contains("request_wait")
        {
            if let Some(answer) = self.answer()? {
                bail!("`{command}` did not wait: {answer}");
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Ends it by SIGKILL.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        self.kill();
    }
}
