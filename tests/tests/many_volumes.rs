//! Many volumes over five nodes: each is in sync, costs little while nobody uses it, and goes on
//! without a pause when the pool's leader dies, if its replicas are elsewhere (FO-1).
//!
//! In CI the volumes are few; `cargo xtask volumes` makes a thousand and shows what they cost.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cairn_lab::Lab;
use cairn_tests::pulse::Pulse;
use cairn_tests::{binary, leader, setting, skip};
use serde_json::{Value, json};

const NODES: usize = 5;
const WITHIN: Duration = Duration::from_secs(120);

/// The two nodes with the bricks of a volume: every pair has its share.
fn places(volume: usize) -> (usize, usize) {
    let first = volume % NODES;
    (first, (first + 1 + volume / NODES % (NODES - 1)) % NODES)
}

fn make(lab: &Lab, volume: usize) -> Result<()> {
    let (first, second) = places(volume);
    let name = format!("v{volume}");
    let bricks = [first, second].map(|node| {
        let brick = lab.brick(node, &name);
        (
            brick.clone(),
            format!("{}:{}", lab.name(node), brick.display()),
        )
    });
    for (brick, _) in &bricks {
        std::fs::create_dir_all(brick.parent().context("a parent")?)?;
    }
    let words = ["volume", "create", &name, "replica", "2"];
    let places = [bricks[0].1.as_str(), bricks[1].1.as_str(), "force"];
    lab.cairn(first, &[&words[..], &places[..]].concat())?;
    lab.cairn(first, &["volume", "start", &name])?;
    Ok(())
}

/// Waits until all volumes are healthy, as `node` says.
fn healthy(lab: &Lab, node: usize, volumes: usize) -> Result<()> {
    let began = Instant::now();
    loop {
        let status = lab.json(node, &["volume", "status"])?;
        let all = status["volumes"].as_array().context("volumes")?;
        let healthy = all.iter().filter(|volume| volume["health"] == "healthy");
        let healthy = healthy.count();
        if healthy == volumes && all.len() == volumes {
            return Ok(());
        }
        ensure!(
            began.elapsed() < WITHIN,
            "{healthy} of {volumes} are healthy"
        );
    }
}

/// Waits until the pool has a leader other than `but`.
fn some_leader(lab: &Lab, asked: usize, but: Option<usize>) -> Result<usize> {
    let began = Instant::now();
    loop {
        let leads = leader(lab, asked, NODES)?;
        if let Some(leads) = leads.filter(|leads| Some(*leads) != but) {
            return Ok(leads);
        }
        ensure!(began.elapsed() < WITHIN, "nobody else leads");
    }
}

/// Processor time that the daemons have had, and their memory.
fn cost(lab: &Lab) -> Result<(Duration, u64)> {
    let (mut ticks, mut kib) = (0, 0);
    for node in 0..NODES {
        let pid = lab.pid(node).context("it runs")?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let fields: Vec<&str> = fields.split_whitespace().collect();
        for field in &fields[11..13] {
            ticks += field.parse::<u64>()?;
        }
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let rss = line.and_then(|line| line.split_whitespace().nth(1));
        kib += rss.context("VmRSS")?.parse::<u64>()?;
    }
    // proc(5): in units of a hundredth of a second on every Linux that this runs on.
    Ok((Duration::from_millis(ticks * 10), kib << 10))
}

#[test]
fn volumes_whose_replicas_are_elsewhere_do_not_notice_that_the_leader_died() -> Result<()> {
    let volumes = usize::try_from(setting("CAIRN_VOLUMES", 20))?;
    let seconds = setting("CAIRN_VOLUMES_SECONDS", 1);
    if !std::path::Path::new("/dev/fuse").exists() {
        skip("there is no /dev/fuse");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let mut lab = Lab::new(&binary(), dir.path(), NODES)?;
    lab.form_pool()?;
    let began = Instant::now();
    for volume in 0..volumes {
        make(&lab, volume)?;
    }
    healthy(&lab, 0, volumes)?;
    let made = began.elapsed();
    let before = cost(&lab)?;
    std::thread::sleep(Duration::from_secs(seconds));
    let after = cost(&lab)?;
    let leads = some_leader(&lab, 0, None)?;
    // Its bricks and its mount are on nodes that do not lead.
    let elsewhere = |volume: &usize| {
        let (first, second) = places(*volume);
        first != leads && second != leads
    };
    let used = (0..volumes).find(elsewhere).context("one of them")?;
    let (witness, name) = (places(used).0, format!("v{used}"));
    let mount = dir.path().join("mnt");
    lab.mount(witness, &name, &mount)?;
    let pulse = Pulse::start(&mount.join("pulse"))?;
    pulse.wait(200)?;
    let _ = pulse.longest();
    pulse.wait(1000)?;
    let usual = pulse.longest();
    lab.kill(leads);
    let killed = Instant::now();
    let next = some_leader(&lab, witness, Some(leads))?;
    let elected = killed.elapsed();
    pulse.wait(1000)?;
    let longest = pulse.longest();
    pulse.finish()?;
    lab.start(leads)?;
    healthy(&lab, next, volumes)?;
    let found = json!({
        "volumes": volumes,
        "nodes": NODES,
        "made_seconds": made.as_secs_f64(),
        "idle_cores": (after.0 - before.0).as_secs_f64() / seconds as f64,
        "memory_bytes_a_node": after.1 / NODES as u64,
        "longest_write_before_us": usize::try_from(usual.as_micros())?,
        "longest_write_while_the_leader_died_us": usize::try_from(longest.as_micros())?,
        "next_leader_seen_after_ms": usize::try_from(elected.as_millis())?,
        "all_healthy_again_after_seconds": killed.elapsed().as_secs_f64(),
    });
    report(&found)?;
    lab.finish()?;
    Ok(())
}

fn report(found: &Value) -> Result<()> {
    println!("{found:#}");
    if let Some(path) = std::env::var_os("CAIRN_VOLUMES_OUT").map(PathBuf::from) {
        std::fs::write(&path, format!("{found:#}\n"))
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}
