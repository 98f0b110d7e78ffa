//! FO-1, FO-5, DUR-2 with real processes: a pool of three nodes, each with a network of its own, a
//! volume with two replicas and `quorum=majority`, and a writer that fsyncs 4 KiB at a time on a
//! mount. The primary or the secondary is killed or stopped without a word (SIGSTOP), the
//! primary's network is cut, both ways or one, the role is moved by command; each with the
//! pool's leader on the node that fails, and elsewhere. The writer sees pauses and no error,
//! nothing confirmed is missing, both bricks hold the same.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use cairn_lab::{Lab, is_in_sync, signal};
use cairn_tests::network::{Cabled, Network};
use cairn_tests::pulse::Pulse;
use cairn_tests::{Random, Writer, all_equal, leader, missing, setting};
use serde_json::json;

const VOLUME: &str = "v1";
const IN_SYNC_WITHIN: Duration = Duration::from_secs(60);
/// How long a node stays stopped or cut off.
const FAULT_LASTS: Duration = Duration::from_secs(2);
/// Looks at where the pool's leader is. Each takes some milliseconds, an election many of them.
const MOVES_MAX: u32 = 200;
/// The node without a brick. Nothing happens to it; it mounts, and is asked.
const WITNESS: usize = 2;
const NODES: usize = 3;

/// What happens in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    PrimaryKilled,
    SecondaryKilled,
    PrimaryStopped,
    SecondaryStopped,
    PrimaryCut,
    PrimaryMute,
    PrimaryDeaf,
    Promoted,
}

/// What is shown, for each fault: its name, and how long a writer may be held up, as a median, with
/// the pool's leader on the node that fails and elsewhere.
const FAULTS: [(Fault, &str, u32, u32); 8] = [
    (Fault::SecondaryKilled, "secondary-killed", 300, 20),
    (Fault::PrimaryKilled, "primary-killed", 300, 300),
    (Fault::PrimaryStopped, "primary-stopped", 1000, 1000),
    (Fault::SecondaryStopped, "secondary-stopped", 1000, 1000),
    (Fault::PrimaryCut, "primary-cut", 1000, 1000),
    (Fault::PrimaryMute, "primary-mute", 1000, 1000),
    (Fault::PrimaryDeaf, "primary-deaf", 1000, 1000),
    (Fault::Promoted, "promoted", 100, 100),
];

/// A fault, and where the pool's leader is.
#[derive(Debug, Clone)]
struct Case {
    fault: Fault,
    name: &'static str,
    goal_ms: u32,
    leads: bool,
    rounds: Vec<Times>,
}

/// How long the writer was held up at most.
#[derive(Debug, Clone, Copy)]
struct Times {
    /// By the fault.
    fault: Duration,
    /// Afterwards, until the replicas were in sync again.
    back: Duration,
}

impl Case {
    /// On whom it falls.
    fn victim(&self, primary: usize) -> usize {
        match self.fault {
            Fault::SecondaryKilled | Fault::SecondaryStopped => 1 - primary,
            _ => primary,
        }
    }

    fn leader(&self) -> &'static str {
        if self.leads { "there" } else { "elsewhere" }
    }
}

fn cases() -> Vec<Case> {
    let both = FAULTS.into_iter().flat_map(|(fault, name, there, else_)| {
        [(true, there), (false, else_)].map(|(leads, goal_ms)| Case {
            fault,
            name,
            goal_ms,
            leads,
            rounds: Vec::new(),
        })
    });
    both.collect()
}

/// The node that is primary, as a node that runs says.
fn primary(lab: &Lab) -> Result<usize> {
    let status = lab.volume(WITNESS, VOLUME)?;
    let name = status["primary"].as_str().unwrap_or_default();
    (0..2)
        .find(|node| lab.name(*node) == name)
        .with_context(|| format!("no primary: {status}"))
}

/// Sees to it that the pool's leader is on the node that is about to fail, or is not. There is no
/// command for that: the role moves instead, and where the witness leads, it is away for a moment.
/// Returns the primary.
fn arrange(lab: &mut Lab, case: &Case) -> Result<usize> {
    for _ in 0..MOVES_MAX {
        lab.wait_volume(WITNESS, VOLUME, "in sync", IN_SYNC_WITHIN, is_in_sync)?;
        let primary = primary(lab)?;
        match leader(lab, WITNESS, NODES)? {
            Some(leader) if (leader == case.victim(primary)) == case.leads => return Ok(primary),
            Some(WITNESS) => {
                lab.kill(WITNESS);
                // One that is back before the others have elected goes on leading.
                let mut looks = 0..MOVES_MAX;
                while looks.next().is_some() && leader(lab, primary, NODES)?.is_none() {}
                lab.start(WITNESS)?;
            }
            Some(_) => {
                let to = lab.name(1 - primary);
                lab.cairn(WITNESS, &["volume", "promote", VOLUME, &to])?;
            }
            None => {} // an election is under way
        }
    }
    bail!("the pool's leader would not be where it should")
}

/// What a round works with.
struct Stage<'a> {
    lab: &'a mut Lab,
    network: &'a Network,
    pulse: &'a Pulse,
}

impl Stage<'_> {
    /// Lets it happen, and the writer go on in spite of it.
    fn hurt(&mut self, case: &Case, victim: usize) -> Result<()> {
        let pid = self.lab.pid(victim).context("it runs")?;
        match case.fault {
            Fault::PrimaryKilled | Fault::SecondaryKilled => self.lab.kill(victim),
            Fault::PrimaryStopped | Fault::SecondaryStopped => signal(pid, "STOP")?,
            Fault::PrimaryCut => self.network.unplug(victim)?,
            Fault::PrimaryMute => self.network.mute(victim)?,
            Fault::PrimaryDeaf => self.network.deafen(victim)?,
            Fault::Promoted => {
                let to = self.lab.name(1 - victim);
                self.lab
                    .cairn(WITNESS, &["volume", "promote", VOLUME, &to])?;
            }
        }
        self.pulse.wait(20)
    }

    fn mend(&mut self, case: &Case, victim: usize, since: Instant) -> Result<()> {
        let pid = self.lab.pid(victim);
        if !matches!(
            case.fault,
            Fault::PrimaryKilled | Fault::SecondaryKilled | Fault::Promoted
        ) {
            std::thread::sleep(FAULT_LASTS.saturating_sub(since.elapsed()));
        }
        match case.fault {
            Fault::PrimaryKilled | Fault::SecondaryKilled => self.lab.start(victim)?,
            Fault::PrimaryStopped | Fault::SecondaryStopped => {
                signal(pid.context("it is stopped")?, "CONT")?;
            }
            Fault::PrimaryCut => self.network.plug(victim)?,
            Fault::PrimaryMute => self.network.unmute(victim)?,
            Fault::PrimaryDeaf => self.network.undeafen(victim)?,
            Fault::Promoted => {}
        }
        self.lab
            .wait_volume(WITNESS, VOLUME, "in sync", IN_SYNC_WITHIN, is_in_sync)?;
        Ok(())
    }

    fn round(&mut self, case: &Case) -> Result<Times> {
        let primary = arrange(self.lab, case)?;
        let victim = case.victim(primary);
        self.pulse.wait(50)?;
        let _ = self.pulse.longest();
        let began = Instant::now();
        self.hurt(case, victim)?;
        let fault = self.pulse.longest();
        self.mend(case, victim, began)?;
        self.pulse.wait(20)?;
        let back = self.pulse.longest();
        self.pulse.compare()?;
        all_equal(self.lab, WITNESS, VOLUME)?;
        Ok(Times { fault, back })
    }
}

/// Median and maximum, in milliseconds.
fn figures(times: impl Iterator<Item = Duration>) -> (u128, u128) {
    let mut times: Vec<_> = times.map(|time| time.as_millis()).collect();
    times.sort_unstable();
    let longest = times.last().copied().unwrap_or_default();
    (times.get(times.len() / 2).copied().unwrap_or(0), longest)
}

fn print(cases: &[Case]) {
    println!(
        "| fault | leader | rounds | median ms | maximum ms | goal ms | back: median ms | maximum ms |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for case in cases.iter().filter(|case| !case.rounds.is_empty()) {
        let (median, longest) = figures(case.rounds.iter().map(|times| times.fault));
        let (back, back_longest) = figures(case.rounds.iter().map(|times| times.back));
        println!(
            "| {} | {} | {} | {median} | {longest} | {} | {back} | {back_longest} |",
            case.name,
            case.leader(),
            case.rounds.len(),
            case.goal_ms
        );
    }
}

fn save(cases: &[Case], path: PathBuf) -> Result<()> {
    let all = cases.iter().map(|case| {
        let us = |time: fn(&Times) -> Duration| -> Vec<u128> {
            let times = case.rounds.iter();
            times.map(|times| time(times).as_micros()).collect()
        };
        json!({
            "fault": case.name,
            "leader": case.leader(),
            "goal_us": u64::from(case.goal_ms) * 1000,
            "longest_us": us(|times| times.fault),
            "back_longest_us": us(|times| times.back),
        })
    });
    let text = serde_json::to_string_pretty(&json!({ "cases": all.collect::<Vec<_>>() }))?;
    std::fs::write(&path, text + "\n").with_context(|| path.display().to_string())
}

/// What the test was asked for.
struct Wanted {
    /// Of each case. 0: each fault once, with the leader there or elsewhere as is drawn.
    rounds: u64,
    /// Figures are wanted: the writer is alone, and the ack policy stays C.
    measure: bool,
    out: Option<PathBuf>,
}

/// The cases in the order in which they are gone through.
fn order(cases: &mut Vec<Case>, wanted: &Wanted, random: &mut Random) -> Result<Vec<usize>> {
    if let Ok(only) = std::env::var("CAIRN_FAILOVER_ONLY") {
        let names = FAULTS.map(|(_, name, ..)| name);
        ensure!(
            names.contains(&only.as_str()),
            "there is no fault `{only}`; there are {}",
            names.join(", ")
        );
        cases.retain(|case| case.name == only);
    }
    if wanted.rounds > 0 {
        let rounds = 0..wanted.rounds;
        return Ok(rounds.flat_map(|_| 0..cases.len()).collect());
    }
    let pairs = (0..cases.len()).step_by(2);
    let drawn = pairs.map(|pair| pair + usize::from(random.below(2) == 1));
    Ok(drawn.collect())
}

#[test]
fn a_writer_sees_pauses_and_no_error_whatever_happens_to_one_node() -> Result<()> {
    let wanted = Wanted {
        rounds: setting("CAIRN_FAILOVER_ROUNDS", 0),
        measure: setting("CAIRN_FAILOVER_MEASURE", 0) == 1,
        out: std::env::var_os("CAIRN_FAILOVER_OUT").map(PathBuf::from),
    };
    let mut random = Random::from_env("CAIRN_FAILOVER_SEED");
    // The lab is dropped first.
    let Some(Cabled {
        dir: _dir,
        network,
        mount,
        mut lab,
    }) = Cabled::new(VOLUME)?
    else {
        return Ok(());
    };
    let pulse = Pulse::start(&mount.join("pulse"))?;
    let mut cases = cases();
    let order = order(&mut cases, &wanted, &mut random)?;
    for (round, at) in order.into_iter().enumerate() {
        let case = &mut cases[at];
        let said = || format!("round {round}, {}, leader {}", case.name, case.leader());
        let mut stage = Stage {
            lab: &mut lab,
            network: &network,
            pulse: &pulse,
        };
        if wanted.measure {
            let times = stage.round(case).with_context(said)?;
            println!("{}: {times:?}", said());
            case.rounds.push(times);
            continue;
        }
        // DUR-2: B loses as little as C.
        let protocol = if round % 2 == 0 { "C" } else { "B" };
        let words = ["volume", "set", VOLUME, "protocol", protocol];
        stage.lab.cairn(WITNESS, &words)?;
        let base = mount.join(format!("g{round}"));
        let writer = Writer::start(&base, 1 + random.below(9))?;
        let times = stage.round(case).with_context(said)?;
        let wrong = missing(&base, &writer.finish()?, false)?;
        ensure!(wrong.is_empty(), "{}: {wrong:?}", said());
        case.rounds.push(times);
    }
    pulse.finish()?;
    print(&cases);
    if let Some(path) = wanted.out {
        save(&cases, path)?;
    }
    lab.finish()?;
    Ok(())
}
