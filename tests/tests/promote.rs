//! FO-1, FO-4: a planned switch-over, and a daemon that ends in order, move the role under a
//! writer that sees no error; nothing confirmed is lost.

use std::fs::{self, File};
use std::io::Write as _;
use std::time::Duration;

use anyhow::Result;
use cairn_lab::is_in_sync;
use cairn_tests::{Mounted, Writer, all_equal, nothing_lost};
use serde_json::Value;

const VOLUME: &str = "v1";
const WITHIN: Duration = Duration::from_secs(30);

fn primary_is(name: String) -> impl Fn(&Value) -> bool {
    move |volume| volume["primary"] == name.as_str() && is_in_sync(volume)
}

#[test]
fn the_role_moves_by_command_and_by_an_orderly_end_and_the_writer_sees_no_error() -> Result<()> {
    let Some(Mounted {
        dir: _dir,
        mut lab,
        mount,
    }) = Mounted::new(VOLUME, 2)?
    else {
        return Ok(());
    };
    let writer = Writer::start(&mount, 5)?;
    for node in [1, 0, 1] {
        lab.cairn(0, &["volume", "promote", VOLUME, &lab.name(node)])?;
        lab.wait_volume(
            0,
            VOLUME,
            "primary moved",
            WITHIN,
            primary_is(lab.name(node)),
        )?;
    }
    // The primary's daemon ends in order: the other takes the role by itself.
    lab.stop(1)?;
    let moved = |volume: &Value| volume["primary"] == "node1";
    lab.wait_volume(0, VOLUME, "primary handed over at the end", WITHIN, moved)?;
    lab.start(1)?;
    lab.wait_volume(0, VOLUME, "in sync again", WITHIN, is_in_sync)?;
    nothing_lost(&lab, VOLUME, &mount, writer)?;
    lab.finish()?;
    Ok(())
}

/// FO-4: the role goes back by itself, in order, only where an option asks.
#[test]
fn the_role_goes_back_to_the_preferred_node_and_the_writer_sees_no_error() -> Result<()> {
    let Some(Mounted {
        dir: _dir,
        mut lab,
        mount,
    }) = Mounted::new(VOLUME, 2)?
    else {
        return Ok(());
    };
    let set = |key: &str, value: &str| lab.cairn(0, &["volume", "set", VOLUME, key, value]);
    let ran = lab.run(0, &["volume", "set", VOLUME, "preferred-primary", "node9"])?;
    anyhow::ensure!(ran.status == 1 && ran.stderr.contains("node9"), "{ran:?}");
    set("preferred-primary", "node1")?;
    set("failback-delay", "1s")?;
    let writer = Writer::start(&mount, 5)?;
    lab.cairn(0, &["volume", "promote", VOLUME, "node2"])?;
    lab.wait_volume(0, VOLUME, "moved", WITHIN, primary_is(lab.name(1)))?;
    set("failback", "on")?;
    lab.wait_volume(0, VOLUME, "moved back", WITHIN, primary_is(lab.name(0)))?;
    // Also after the preferred node was away.
    lab.stop(0)?;
    let moved = |volume: &Value| volume["primary"] == "node2";
    lab.wait_volume(1, VOLUME, "handed over at the end", WITHIN, moved)?;
    lab.start(0)?;
    lab.wait_volume(1, VOLUME, "back again", WITHIN, primary_is(lab.name(0)))?;
    nothing_lost(&lab, VOLUME, &mount, writer)?;
    lab.finish()?;
    Ok(())
}

/// ONE-2, ONE-3, BAD-5: two nodes, nobody to vote. The primary dies; an operator forces the other.
/// What the dead one had confirmed alone makes a split brain, which nobody overwrites until an
/// operator says which side stays.
#[test]
fn a_forced_takeover_serves_and_a_split_brain_waits_for_the_operators_word() -> Result<()> {
    let Some(Mounted {
        dir: _dir,
        mut lab,
        mount,
    }) = Mounted::new(VOLUME, 2)?
    else {
        return Ok(());
    };
    let put = |name: &str, text: &str| -> Result<()> {
        let mut file = File::create(mount.join(name))?;
        file.write_all(text.as_bytes())?;
        Ok(file.sync_all()?)
    };
    put("both", "everyone has this")?;
    // A primary that can hand its role over is not passed by.
    let ran = lab.run(1, &["volume", "promote", VOLUME, "node2", "--force"])?;
    anyhow::ensure!(ran.status == 1 && ran.stderr.contains("serves"), "{ran:?}");
    // It dies while both are in sync: nothing is lost, and it comes back by itself.
    lab.kill(0);
    lab.cairn(1, &["volume", "promote", VOLUME, "node2", "--force"])?;
    put("after", "node2 has this")?;
    lab.start(0)?;
    lab.wait_volume(1, VOLUME, "in sync", WITHIN, primary_is(lab.name(1)))?;
    // Now each side goes on alone.
    lab.kill(0);
    put("alone2", "only node2 has this")?;
    lab.kill(1);
    lab.start(0)?;
    let runs = |volume: &Value| volume["replicas"][0]["disk"] == "consistent";
    lab.wait_volume(0, VOLUME, "the replica runs", WITHIN, runs)?;
    lab.cairn(0, &["volume", "promote", VOLUME, "node1", "--force"])?;
    put("alone1", "only node1 has this")?;
    lab.start(1)?;
    let split = |volume: &Value| volume["split_brain"].is_object();
    lab.wait_volume(0, VOLUME, "the split brain noticed", WITHIN, split)?;
    let resolve = [
        "volume",
        "split-brain",
        VOLUME,
        "resolve",
        "--keep",
        "node2",
    ];
    let ran = lab.run(1, &resolve)?;
    anyhow::ensure!(ran.status == 4 && ran.stderr.contains("node1"), "{ran:?}");
    lab.cairn(1, &[&resolve[..], &["--force"]].concat())?;
    lab.wait_volume(1, VOLUME, "one side", WITHIN, primary_is(lab.name(1)))?;
    assert_eq!(
        fs::read_to_string(mount.join("alone2"))?,
        "only node2 has this"
    );
    assert_eq!(fs::read_to_string(mount.join("after"))?, "node2 has this");
    assert!(!mount.join("alone1").exists(), "it was given up");
    all_equal(&lab, 0, VOLUME)?;
    lab.finish()?;
    Ok(())
}
