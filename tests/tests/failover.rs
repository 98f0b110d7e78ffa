//! FO-1, FO-5, DUR-2 with real processes: a pool of three nodes, a volume with two replicas and
//! `quorum=majority`, and a writer that fsyncs 4 KiB at a time on a mount. The primary or the
//! secondary is killed, or stopped without a word (SIGSTOP); the role is moved by command. The
//! writer sees pauses and no error, nothing confirmed is missing, both bricks hold the same.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cairn_lab::{Lab, is_in_sync};
use cairn_tests::{Mounted, Random, Writer, missing, setting};

const VOLUME: &str = "v1";
const IN_SYNC_WITHIN: Duration = Duration::from_secs(60);
/// How long a stopped process stays so.
const STOPPED: Duration = Duration::from_secs(3);

/// What happens in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    PrimaryKilled,
    PrimaryStopped,
    SecondaryKilled,
    SecondaryStopped,
    Promoted,
}

const FAULTS: [Fault; 5] = [
    Fault::PrimaryKilled,
    Fault::SecondaryKilled,
    Fault::PrimaryStopped,
    Fault::SecondaryStopped,
    Fault::Promoted,
];

/// Writes and fsyncs a block again and again, and remembers the longest time that one took.
struct Pulse {
    longest_us: Arc<AtomicU64>,
    done: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    failed: Arc<Mutex<Option<io::Error>>>,
    thread: Option<JoinHandle<()>>,
}

impl Pulse {
    fn start(path: &Path) -> io::Result<Self> {
        let file = File::create(path)?;
        let pulse = Self {
            longest_us: Arc::default(),
            done: Arc::default(),
            stop: Arc::default(),
            failed: Arc::default(),
            thread: None,
        };
        let (longest, done) = (pulse.longest_us.clone(), pulse.done.clone());
        let (stop, failed) = (pulse.stop.clone(), pulse.failed.clone());
        let thread = std::thread::spawn(move || {
            let block = [7; 4096];
            while !stop.load(Ordering::Relaxed) {
                let began = Instant::now();
                let at = done.load(Ordering::Relaxed) % 256 * 4096;
                let wrote = file
                    .write_all_at(&block, at)
                    .and_then(|()| file.sync_data());
                if let Err(error) = wrote {
                    *failed.lock().expect("no thread panics with it") = Some(error);
                    return;
                }
                let took = began.elapsed().as_micros();
                longest.fetch_max(u64::try_from(took).unwrap_or(u64::MAX), Ordering::Relaxed);
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
        Ok(Self {
            thread: Some(thread),
            ..pulse
        })
    }

    /// The longest operation since the last call.
    fn longest(&self) -> Duration {
        Duration::from_micros(self.longest_us.swap(0, Ordering::Relaxed))
    }

    /// Waits until the writer went on for so many operations.
    fn wait(&self, operations: u64) {
        let until = self.done.load(Ordering::Relaxed) + operations;
        let began = Instant::now();
        while self.done.load(Ordering::Relaxed) < until {
            let failed = self.failed.lock().expect("no thread panics with it");
            assert!(failed.is_none(), "the writer saw {failed:?}");
            drop(failed);
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "the writer does not go on"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the writer did not panic");
        }
        let failed = self.failed.lock().expect("no thread panics with it");
        assert!(failed.is_none(), "the writer saw {failed:?}");
    }
}

fn signal(lab: &Lab, node: usize, name: &str) -> anyhow::Result<()> {
    let pid = lab
        .pid(node)
        .map_or_else(String::new, |pid| pid.to_string());
    let status = Command::new("kill").args(["-s", name, &pid]).status()?;
    anyhow::ensure!(status.success(), "kill -s {name} {pid}");
    Ok(())
}

/// The node that is primary, as a node that runs says.
fn primary(lab: &Lab) -> anyhow::Result<usize> {
    let status = lab.json(2, &["volume", "status", VOLUME])?;
    let name = status["volumes"][0]["primary"].as_str().unwrap_or_default();
    (0..2)
        .find(|node| lab.name(*node) == name)
        .ok_or_else(|| anyhow::anyhow!("no primary: {status}"))
}

fn one_round(lab: &mut Lab, pulse: &Pulse, fault: Fault) -> anyhow::Result<Duration> {
    let primary = primary(lab)?;
    let secondary = 1 - primary;
    pulse.wait(50);
    pulse.longest();
    match fault {
        Fault::PrimaryKilled | Fault::SecondaryKilled => {
            let victim = if fault == Fault::PrimaryKilled {
                primary
            } else {
                secondary
            };
            lab.kill(victim);
            pulse.wait(20);
            let longest = pulse.longest();
            lab.start(victim)?;
            Ok(longest)
        }
        Fault::PrimaryStopped | Fault::SecondaryStopped => {
            let victim = if fault == Fault::PrimaryStopped {
                primary
            } else {
                secondary
            };
            signal(lab, victim, "STOP")?;
            let stopped = Instant::now();
            pulse.wait(20);
            let longest = pulse.longest();
            std::thread::sleep(STOPPED.saturating_sub(stopped.elapsed()));
            signal(lab, victim, "CONT")?;
            Ok(longest)
        }
        Fault::Promoted => {
            let to = lab.name(secondary);
            lab.cairn(2, &["volume", "promote", VOLUME, &to])?;
            pulse.wait(20);
            Ok(pulse.longest())
        }
    }
}

#[test]
fn a_writer_sees_pauses_and_no_error_whatever_happens_to_one_node() -> anyhow::Result<()> {
    let rounds = setting("CAIRN_FAILOVER_ROUNDS", 10);
    let only = setting("CAIRN_FAILOVER_ONLY", u64::MAX);
    let mut random = Random::from_env("CAIRN_FAILOVER_SEED");
    let Some(Mounted {
        mut lab,
        mount,
        dir: _dir,
    }) = Mounted::new(VOLUME, 3)?
    else {
        return Ok(());
    };
    let pulse = Pulse::start(&mount.join("pulse"))?;
    let mut figures: BTreeMap<Fault, Vec<Duration>> = BTreeMap::new();
    for round in 0..rounds {
        let chosen = if only < FAULTS.len() as u64 {
            only
        } else {
            round % 5
        };
        let fault = FAULTS[usize::try_from(chosen)?];
        // DUR-2: B loses as little as C.
        let protocol = if round % 2 == 0 { "C" } else { "B" };
        lab.cairn(2, &["volume", "set", VOLUME, "protocol", protocol])?;
        let base = mount.join(format!("g{round}"));
        let writer = Writer::start(&base, 1 + random.below(9))?;
        std::thread::sleep(Duration::from_millis(random.below(300)));
        let longest = one_round(&mut lab, &pulse, fault)?;
        figures.entry(fault).or_default().push(longest);
        lab.wait_volume(2, VOLUME, "in sync", IN_SYNC_WITHIN, is_in_sync)?;
        let confirmed = writer.finish()?;
        let wrong = missing(&base, &confirmed, false)?;
        assert!(wrong.is_empty(), "round {round}, {fault:?}: {wrong:?}");
        if round % 5 == 4 {
            let verdict = lab.json(2, &["volume", "verify", VOLUME])?;
            assert_eq!(verdict["equal"], true, "round {round}: {verdict}");
        }
    }
    pulse.finish();
    for (fault, times) in &mut figures {
        times.sort_unstable();
        println!(
            "{fault:?}: {} rounds, longest operation {} ms median, {} ms at most",
            times.len(),
            times[times.len() / 2].as_millis(),
            times.last().map_or(0, Duration::as_millis)
        );
    }
    lab.finish()?;
    Ok(())
}
