//! ONE-2 with real processes: two nodes, and a command that kills the other one's daemon.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cairn_lab::{Lab, is_in_sync, signal};
use cairn_tests::{Mounted, Writer, nothing_lost};
use serde_json::Value;

const VOLUME: &str = "v1";
const WITHIN: Duration = Duration::from_secs(60);

/// A power switch for the nodes of a lab.
struct Switch {
    dir: PathBuf,
}

impl Switch {
    fn new(lab: &Lab, dir: &Path) -> Result<Self> {
        let switch = Self {
            dir: dir.join("switch"),
        };
        fs::create_dir(&switch.dir)?;
        let script = switch.dir.join("fence.sh");
        fs::write(
            &script,
            "cd \"$(dirname \"$0\")\"\n\
             echo \"$CAIRN_SELF $CAIRN_REASON $CAIRN_NODE $CAIRN_VOLUME $CAIRN_ADDRESS\" >> shots\n\
             if test -e broken; then echo 'the switch does not answer' >&2; exit 7; fi\n\
             kill -9 \"$(cat \"$CAIRN_NODE\")\" 2> /dev/null\n\
             exit 0\n",
        )?;
        let command = format!("sh {}", script.display());
        lab.cairn(0, &["volume", "set", VOLUME, "fence-command", &command])?;
        lab.cairn(0, &["volume", "set", VOLUME, "fence-delay", "500ms"])?;
        lab.cairn(0, &["volume", "set", VOLUME, "fence-timeout", "20s"])?;
        for node in 0..2 {
            switch.wire(lab, node)?;
        }
        Ok(switch)
    }

    /// The node's process is this one now.
    fn wire(&self, lab: &Lab, node: usize) -> Result<()> {
        let pid = lab.pid(node).context("it runs")?;
        Ok(fs::write(self.dir.join(lab.name(node)), pid.to_string())?)
    }

    fn shots(&self) -> Result<Vec<String>> {
        match fs::read_to_string(self.dir.join("shots")) {
            Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }
}

fn start(lab: &mut Lab, switch: &Switch, node: usize) -> Result<()> {
    lab.kill(node); // what is left of it
    lab.start(node)?;
    switch.wire(lab, node)
}

#[test]
fn two_nodes_fail_over_by_themselves_when_each_can_fence_the_other() -> Result<()> {
    let Some(Mounted {
        dir,
        mut lab,
        mount,
    }) = Mounted::new(VOLUME, 2)?
    else {
        return Ok(());
    };
    lab.wait_volume(0, VOLUME, "in sync", WITHIN, is_in_sync)?;
    let switch = Switch::new(&lab, dir.path())?;
    let writer = Writer::start(&mount, 5)?;

    // Whoever stops in order is not fenced.
    lab.stop(1)?;
    let alone =
        |volume: &Value| volume["primary"] == "node1" && volume["replicas"][1]["in_sync"] == false;
    lab.wait_volume(0, VOLUME, "node1 goes on alone", WITHIN, alone)?;
    assert_eq!(switch.shots()?, Vec::<String>::new());
    start(&mut lab, &switch, 1)?;
    lab.wait_volume(0, VOLUME, "in sync again", WITHIN, is_in_sync)?;

    // The primary freezes: the other one makes sure that it is gone, and takes over.
    signal(lab.pid(0).context("it runs")?, "STOP")?;
    let moved = |volume: &Value| volume["primary"] == "node2";
    let status = lab.wait_volume(1, VOLUME, "node2 took over", WITHIN, moved)?;
    let reason = status["replicas"][1]["role_reason"].as_str();
    ensure!(
        reason.is_some_and(|reason| reason.contains("fenced")),
        "{status}"
    );
    let address = lab.address(0).to_owned();
    let shots = switch.shots()?;
    let one = format!("node2 primary-lost node1 {VOLUME} {address}:");
    ensure!(shots.len() == 1 && shots[0].starts_with(&one), "{shots:?}");
    start(&mut lab, &switch, 0)?;
    let settled = |volume: &Value| volume["primary"] == "node2" && is_in_sync(volume);
    lab.wait_volume(1, VOLUME, "node1 follows", WITHIN, settled)?;
    nothing_lost(&lab, VOLUME, &mount, writer)?;
    lab.finish()?;
    Ok(())
}

/// While it is not sure that the other one is gone, a primary answers nobody and says why.
#[test]
fn a_primary_waits_while_the_other_cannot_be_fenced_and_says_what_to_do() -> Result<()> {
    let Some(Mounted {
        dir,
        mut lab,
        mount,
    }) = Mounted::new(VOLUME, 2)?
    else {
        return Ok(());
    };
    lab.wait_volume(0, VOLUME, "in sync", WITHIN, is_in_sync)?;
    let switch = Switch::new(&lab, dir.path())?;
    fs::write(switch.dir.join("broken"), b"")?;
    lab.kill(1);
    let waits = |volume: &Value| {
        let reason = volume["reason"].as_str().unwrap_or_default();
        volume["health"] == "unavailable" && reason.contains("the switch does not answer")
    };
    lab.wait_volume(0, VOLUME, "it says why it waits", WITHIN, waits)?;
    let why = lab.cairn(0, &["why", VOLUME])?;
    ensure!(why.contains("promote v1 node1 --force"), "{why}");
    let writing = {
        let path = mount.join("file");
        std::thread::spawn(move || -> std::io::Result<()> {
            let mut file = File::create(path)?;
            file.write_all(b"it waited")?;
            file.sync_all()
        })
    };
    // It is tried again by itself.
    fs::remove_file(switch.dir.join("broken"))?;
    let goes_on = |volume: &Value| volume["health"] == "degraded";
    lab.wait_volume(0, VOLUME, "it goes on", WITHIN, goes_on)?;
    writing.join().expect("no panic")?;
    assert_eq!(fs::read_to_string(mount.join("file"))?, "it waited");
    // What was fenced takes nothing over when it is back and alone, however long it waits.
    lab.kill(0);
    start(&mut lab, &switch, 1)?;
    let idle = |volume: &Value| {
        volume["replicas"][1]["disk"] == "consistent" && volume["primary"].is_null()
    };
    lab.wait_volume(1, VOLUME, "it is no primary", WITHIN, idle)?;
    start(&mut lab, &switch, 0)?;
    let settled = |volume: &Value| volume["primary"] == "node1" && is_in_sync(volume);
    lab.wait_volume(0, VOLUME, "both are there", WITHIN, settled)?;
    let shots = switch.shots()?;
    let by_primary = shots
        .iter()
        .all(|shot| shot.starts_with("node1 secondary-lost node2"));
    ensure!(by_primary, "{shots:?}");
    lab.finish()?;
    Ok(())
}
