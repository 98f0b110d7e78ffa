//! Bricks come and go under a writer that sees no error (add-brick, remove-brick, replace-brick);
//! nothing confirmed is lost, whoever dies in between.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use cairn_lab::{Lab, is_in_sync};
use cairn_tests::{Mounted, Writer, binary, nothing_lost};
use serde_json::Value;

const VOLUME: &str = "v1";
const WITHIN: Duration = Duration::from_secs(30);

/// HOST:/path of another brick of a node.
fn place(lab: &Lab, node: usize, name: &str) -> String {
    let brick = lab.brick(node, name);
    if let Some(parent) = brick.parent() {
        std::fs::create_dir_all(parent).expect("a directory");
    }
    format!("{}:{}", lab.name(node), brick.display())
}

fn replicas(volume: &Value) -> usize {
    volume["replicas"].as_array().map_or(0, Vec::len)
}

fn check(lab: &Lab, mount: &Path, writer: Writer) -> Result<()> {
    // It still gets answers.
    let before = writer.confirmed();
    let began = std::time::Instant::now();
    loop {
        let now = writer.confirmed();
        if now.made > before.made && now.appended > before.appended {
            break;
        }
        ensure!(began.elapsed() < WITHIN, "the writer hangs: {now:?}");
    }
    nothing_lost(lab, VOLUME, mount, writer)
}

/// BAD-5, DUR-2: one node grows to two, gives the role away and leaves, and comes back on another
/// disk, while a writer writes.
#[test]
fn a_single_replica_grows_moves_and_shrinks_under_a_writer() -> Result<()> {
    let Some(Mounted {
        dir: _dir,
        lab,
        mount,
    }) = Mounted::with_replicas(VOLUME, 3, 1)?
    else {
        return Ok(());
    };
    let writer = Writer::start(&mount, 5)?;
    let (a, b) = (place(&lab, 0, VOLUME), place(&lab, 1, VOLUME));
    // Its only copy cannot go, whatever is said.
    let last = lab.run(0, &["volume", "replace-brick", VOLUME, &a, &b, "force"])?;
    ensure!(
        last.status == 4 && last.stderr.contains("last good copy"),
        "{last:?}"
    );
    let first = lab.run(
        0,
        &[
            "volume",
            "remove-brick",
            VOLUME,
            "replica",
            "0",
            &a,
            "force",
        ],
    )?;
    ensure!(
        first.status == 1 && first.stderr.contains("one at least"),
        "{first:?}"
    );
    let wrong = lab.run(0, &["volume", "add-brick", VOLUME, "replica", "3", &b])?;
    ensure!(
        wrong.status == 1 && wrong.stderr.contains("2 afterwards"),
        "{wrong:?}"
    );

    lab.cairn(
        2,
        &[
            "volume",
            "add-brick",
            VOLUME,
            "replica",
            "2",
            &b,
            "force",
            "--wait",
        ],
    )?;
    let status = lab.volume(0, VOLUME)?;
    ensure!(is_in_sync(&status) && replicas(&status) == 2, "{status}");
    // The primary's brick goes: the role moves first.
    lab.cairn(1, &["volume", "remove-brick", VOLUME, "replica", "1", &a])?;
    let moved = |volume: &Value| {
        volume["primary"] == "node2" && replicas(volume) == 1 && volume["health"] == "healthy"
    };
    lab.wait_volume(0, VOLUME, "one replica on node2", WITHIN, moved)?;
    let old = lab.brick(0, VOLUME).display().to_string();
    let info = lab.json(0, &["brick", "info", &old])?;
    ensure!(info["deleted"] == true && info["in_use"] == false, "{info}");

    // It comes back on another disk of the same node, which is then replaced by a third one.
    let (c, d) = (place(&lab, 0, "v1b"), place(&lab, 0, "v1c"));
    lab.cairn(
        0,
        &[
            "volume",
            "add-brick",
            VOLUME,
            "replica",
            "2",
            &c,
            "force",
            "--wait",
        ],
    )?;
    lab.cairn(
        0,
        &[
            "volume",
            "replace-brick",
            VOLUME,
            &c,
            &d,
            "commit",
            "force",
            "--wait",
        ],
    )?;
    let status = lab.wait_volume(0, VOLUME, "in sync", WITHIN, is_in_sync)?;
    let bricks: Vec<_> = status["replicas"]
        .as_array()
        .expect("replicas")
        .iter()
        .collect();
    ensure!(bricks.len() == 2, "{status}");
    ensure!(
        bricks
            .iter()
            .any(|r| r["brick"] == lab.brick(0, "v1c").display().to_string()),
        "{status}"
    );
    check(&lab, &mount, writer)?;
    lab.finish()?;
    Ok(())
}

/// A replica whose node is down while its brick is removed learns of it when it comes back, and
/// the role stays where somebody can take it.
#[test]
fn a_replica_that_was_away_learns_that_it_was_removed_and_the_others_fail_over() -> Result<()> {
    let Some(Mounted {
        dir: _dir,
        mut lab,
        mount,
    }) = Mounted::new(VOLUME, 3)?
    else {
        return Ok(());
    };
    let writer = Writer::start(&mount, 5)?;
    let primary = |volume: &Value| volume["primary"].as_str().map(str::to_owned);
    let first = primary(&lab.volume(2, VOLUME)?).unwrap_or_default();
    let (kept, gone) = if first == "node1" { (0, 1) } else { (1, 0) };
    lab.kill(gone);
    let (old, new) = (place(&lab, gone, VOLUME), place(&lab, 2, VOLUME));
    // The one that stays has everything: the missing one may go at once.
    lab.cairn(
        kept,
        &["volume", "remove-brick", VOLUME, "replica", "1", &old],
    )?;
    lab.cairn(
        kept,
        &[
            "volume",
            "add-brick",
            VOLUME,
            "replica",
            "2",
            &new,
            "force",
            "--wait",
        ],
    )?;
    lab.start(gone)?;
    let brick = lab.brick(gone, VOLUME).display().to_string();
    let began = std::time::Instant::now();
    loop {
        let info = lab.json(gone, &["brick", "info", &brick])?;
        if info["deleted"] == true {
            break;
        }
        ensure!(began.elapsed() < WITHIN, "never marked: {info}");
    }
    // The new replica takes over when the old primary dies.
    lab.kill(kept);
    let taken = |volume: &Value| volume["primary"] == "node3";
    lab.wait_volume(2, VOLUME, "node3 took over", WITHIN, taken)?;
    lab.start(kept)?;
    lab.wait_volume(2, VOLUME, "in sync", WITHIN, is_in_sync)?;
    ensure!(replicas(&lab.volume(gone, VOLUME)?) == 2);
    check(&lab, &mount, writer)?;
    lab.finish()?;
    Ok(())
}

/// Whoever dies while bricks change, the volume comes to rest with the old or the new ones.
#[test]
fn a_crash_in_the_middle_leaves_the_old_or_the_new_replicas() -> Result<()> {
    for victim in 0..3 {
        let Some(Mounted {
            dir: _dir,
            mut lab,
            mount,
        }) = Mounted::new(VOLUME, 3)?
        else {
            return Ok(());
        };
        let writer = Writer::start(&mount, 5)?;
        let (old, new) = (place(&lab, 1, VOLUME), place(&lab, 2, VOLUME));
        let asked = std::process::Command::new(binary())
            .arg("--data-dir")
            .arg(lab.data_dir(2))
            .args(["volume", "replace-brick", VOLUME, &old, &new, "force"])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()?;
        // At whatever point it is just now.
        lab.kill(victim);
        drop(asked.wait_with_output()?);
        lab.start(victim)?;
        let whole = |volume: &Value| is_in_sync(volume) && replicas(volume) == 2;
        let status = lab.wait_volume(0, VOLUME, "whole again", WITHIN, whole)?;
        let at = |brick: &str| {
            let all = status["replicas"].as_array();
            all.is_some_and(|all| {
                all.iter()
                    .any(|r| format!("{}:{}", r["node"], r["brick"]).replace('"', "") == brick)
            })
        };
        ensure!(at(&old) != at(&new), "victim {victim}: {status}");
        check(&lab, &mount, writer)?;
        lab.finish()?;
    }
    Ok(())
}
