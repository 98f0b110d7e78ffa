//! ONE-3 with real processes: a split brain that the volume's policy ends by itself, and the side
//! that was given up.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use cairn_lab::{Lab, is_in_sync};
use cairn_tests::{Mounted, all_equal};
use serde_json::Value;

const VOLUME: &str = "v1";
const WITHIN: Duration = Duration::from_secs(30);

fn put(mount: &Path, name: &str, text: &str) -> Result<()> {
    let mut file = File::create(mount.join(name))?;
    file.write_all(text.as_bytes())?;
    Ok(file.sync_all()?)
}

fn events(lab: &Lab, node: usize, kind: &str) -> Result<Vec<String>> {
    let events = lab.json(node, &["events"])?;
    let events = events["events"].as_array().cloned().unwrap_or_default();
    let found = events.iter().filter(|event| event["kind"] == kind);
    Ok(found
        .filter_map(|event| event["message"].as_str().map(str::to_owned))
        .collect())
}

/// The second node is made primary by force and goes on alone with many changes; then the first
/// one goes on alone with one. Both run in the end.
fn part(lab: &mut Lab, mount: &Path) -> Result<()> {
    put(mount, "both", "everyone has this")?;
    lab.wait_volume(0, VOLUME, "in sync", WITHIN, is_in_sync)?;
    lab.kill(0);
    lab.cairn(1, &["volume", "promote", VOLUME, "node2", "--force"])?;
    for number in 0..20 {
        put(mount, &format!("second{number}"), "only node2 has this")?;
    }
    lab.kill(1);
    lab.start(0)?;
    // It was primary, and goes on by itself when it has waited for the other.
    put(mount, "first", "only node1 has this")?;
    lab.start(1)
        .map_err(|error| anyhow::anyhow!("node2 does not start: {error}"))
}

#[test]
fn a_split_brain_ends_by_the_volumes_policy_and_the_side_that_goes_is_kept() -> Result<()> {
    let Some(Mounted {
        dir: _dir,
        mut lab,
        mount,
    }) = Mounted::new(VOLUME, 2)?
    else {
        return Ok(());
    };
    let set = ["volume", "set", VOLUME, "split-brain-policy"];
    let ran = lab.run(0, &[&set[..], &["prefer=node9"]].concat())?;
    ensure!(ran.status == 1 && ran.stderr.contains("node9"), "{ran:?}");
    let ran = lab.run(0, &[&set[..], &["keep-newest"]].concat())?;
    ensure!(ran.status == 2, "{ran:?}");
    let said = lab.cairn(0, &[&set[..], &["discard-fewer-changes"]].concat())?;
    ensure!(!said.contains("not act"), "{said}");
    part(&mut lab, &mount)?;
    let settled = |volume: &Value| volume["primary"] == "node2" && is_in_sync(volume);
    let status = lab.wait_volume(1, VOLUME, "node2's side is kept", WITHIN, settled)?;
    assert_eq!(status["split_brain"], Value::Null);
    assert_eq!(
        fs::read_to_string(mount.join("second19"))?,
        "only node2 has this"
    );
    assert!(!mount.join("first").exists(), "it was given up");
    for node in 0..2 {
        let told = events(&lab, node, "split_brain_settled")?;
        let told = told.last().map(String::as_str).unwrap_or_default();
        let names = told.contains("discard-fewer-changes")
            && told.contains("the side of node2 stays, and node1 gives up")
            && told.contains("primary since");
        ensure!(names, "node{}: {told}", node + 1);
    }
    let listed = lab.json(1, &["volume", "split-brain", VOLUME, "list"])?;
    assert_eq!(listed["kept"][0]["node"], "node1", "{listed}");
    all_equal(&lab, 0, VOLUME)?;
    lab.finish()?;
    Ok(())
}

/// Where the policy's facts are equal or it is `manual`, status and `why` say what to do; another
/// policy ends it.
#[test]
fn an_open_split_brain_says_what_to_do_and_ends_when_a_policy_is_set() -> Result<()> {
    let Some(Mounted {
        dir: _dir,
        mut lab,
        mount,
    }) = Mounted::new(VOLUME, 2)?
    else {
        return Ok(());
    };
    part(&mut lab, &mount)?;
    let split = |volume: &Value| volume["split_brain"].is_object();
    let status = lab.wait_volume(0, VOLUME, "the split brain noticed", WITHIN, split)?;
    let sides = &status["split_brain"]["sides"];
    let of = |name: &str| {
        let sides = sides.as_array().cloned().unwrap_or_default();
        sides.into_iter().find(|side| side["node"] == name)
    };
    let changes = |name: &str| of(name).and_then(|side| side["changes"].as_u64());
    ensure!(
        changes("node1") > Some(0) && changes("node2") > changes("node1"),
        "{status}"
    );
    let why = lab.cairn(0, &["why", VOLUME])?;
    ensure!(why.contains("resolve --keep"), "{why}");
    let prefer = [
        "volume",
        "set",
        VOLUME,
        "split-brain-policy",
        "prefer=node1",
    ];
    lab.cairn(0, &prefer)?;
    let settled = |volume: &Value| volume["primary"] == "node1" && is_in_sync(volume);
    lab.wait_volume(0, VOLUME, "node1's side is kept", WITHIN, settled)?;
    assert_eq!(
        fs::read_to_string(mount.join("first"))?,
        "only node1 has this"
    );
    assert!(!mount.join("second0").exists(), "it was given up");
    all_equal(&lab, 0, VOLUME)?;
    lab.finish()?;
    Ok(())
}
