//! What all databases are asked: numbers, each a transaction of its own, remembered as soon as the
//! database confirms them.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::place::{ended, load, soon};

/// The numbers of a client begin at its own multiple of this.
const NUMBERS_OF_A_CLIENT: u64 = 10_000_000;

/// So many answers make a run in which something is killed worth looking at.
const FEW: u64 = 5;

/// The table that they go to.
pub(crate) const TABLE: &str =
    "CREATE TABLE confirmed (n BIGINT PRIMARY KEY, filling VARCHAR(300))";
/// Everything in it, a number a line.
pub(crate) const ALL: &str = "SELECT n FROM confirmed ORDER BY n";

/// The question for one number: its answer is that number.
fn insert(number: u64) -> String {
    let filling = blake3::hash(&number.to_le_bytes()).to_hex();
    format!("INSERT INTO confirmed VALUES ({number}, '{filling}{filling}') RETURNING n;\n")
}

/// A client of a database: a process that reads a question a line and prints the answer when the
/// transaction is done. Killed when dropped.
pub(crate) struct Client {
    process: Child,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    /// What was confirmed, and whether the client said so to the last.
    thread: Option<JoinHandle<(BTreeSet<u64>, bool)>>,
}

impl Client {
    /// Starts client `which` and its questions.
    pub(crate) fn start(mut command: Command, which: u64) -> Result<Self> {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{command:?}"))?;
        let mut questions = process.stdin.take().context("a pipe")?;
        let answers = BufReader::new(process.stdout.take().context("a pipe")?);
        let stop: Arc<AtomicBool> = Arc::default();
        let told = stop.clone();
        let count: Arc<AtomicU64> = Arc::default();
        let counted = count.clone();
        let thread = std::thread::spawn(move || {
            let mut confirmed = BTreeSet::new();
            let mut answers = answers.lines();
            for number in which * NUMBERS_OF_A_CLIENT.. {
                if told.load(Ordering::Relaxed) {
                    return (confirmed, true);
                }
                if questions.write_all(insert(number).as_bytes()).is_err() {
                    break;
                }
                // Another line, or none: the server is gone, or the database said something else.
                match answers.next() {
                    Some(Ok(line)) if line.trim() == number.to_string() => {
                        confirmed.insert(number);
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                    _ => break,
                }
            }
            (confirmed, false)
        });
        Ok(Self {
            process,
            stop,
            count,
            thread: Some(thread),
        })
    }

    /// Kills the process, at whatever it is.
    pub(crate) fn kill(&mut self) -> Result<()> {
        Ok(self.process.kill()?)
    }

    /// Ends it; every question must have been answered well. Returns what was confirmed.
    pub(crate) fn finish(self) -> Result<BTreeSet<u64>> {
        self.stop.store(true, Ordering::Relaxed);
        let (confirmed, well, said) = self.end()?;
        ensure!(
            well,
            "a client saw an error after {}: {said}",
            confirmed.len()
        );
        Ok(confirmed)
    }

    /// Waits for its end where its server or itself was killed. Returns what was confirmed.
    pub(crate) fn broken(self) -> Result<BTreeSet<u64>> {
        let (confirmed, well, _) = self.end()?;
        ensure!(!well, "a client saw nothing of a server's end");
        Ok(confirmed)
    }

    fn end(mut self) -> Result<(BTreeSet<u64>, bool, String)> {
        // Its input ends with the last answer, and it with that.
        let status = ended(&mut self.process, soon())?;
        if status.is_none() {
            self.process.kill()?;
            self.process.wait()?;
        }
        let mut said = String::new();
        if let Some(mut errors) = self.process.stderr.take() {
            errors.read_to_string(&mut said)?;
        }
        let thread = self.thread.take().context("it ends once")?;
        let (confirmed, well) = thread.join().expect("it does not panic");
        ensure!(status.is_some(), "a client gets no answer: {said}");
        println!("confirmed to a client: {}", confirmed.len());
        Ok((confirmed, well, said))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It has ended, where all is well.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Waits until each client has got a number of answers, and half a load has passed.
pub(crate) fn some_confirmed(clients: &[Client]) -> Result<()> {
    let began = Instant::now();
    let few = |client: &Client| client.count.load(Ordering::Relaxed) < FEW;
    while clients.iter().any(few) || began.elapsed() < load() / 2 {
        ensure!(began.elapsed() < soon(), "a client gets no answers");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Starts so many clients.
pub(crate) fn clients(from: u64, count: u64, command: impl Fn() -> Command) -> Result<Vec<Client>> {
    (from..from + count)
        .map(|which| Client::start(command(), which))
        .collect()
}

/// Everything that was confirmed is in what the database lists, a number a line.
pub(crate) fn all_there(confirmed: &BTreeSet<u64>, listed: &str) -> Result<()> {
    let there: BTreeSet<u64> = listed
        .lines()
        .flat_map(|line| line.trim().parse())
        .collect();
    let missing: Vec<_> = confirmed.difference(&there).take(10).collect();
    ensure!(
        missing.is_empty(),
        "confirmed and not there: {missing:?}; {} are, {} were confirmed",
        there.len(),
        confirmed.len()
    );
    ensure!(!confirmed.is_empty(), "nothing was confirmed");
    Ok(())
}
