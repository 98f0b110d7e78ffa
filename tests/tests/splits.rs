//! ONE-3 with real processes: a split brain that the volume's policy ends by itself, and the side
//! that was given up.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use cairn_lab::{Lab, is_in_sync};
use cairn_tests::{Mounted, all_equal, events};
use serde_json::Value;

const VOLUME: &str = "v1";
const WITHIN: Duration = Duration::from_secs(30);

fn put(mount: &Path, name: &str, text: &str) -> Result<()> {
    let mut file = File::create(mount.join(name))?;
    file.write_all(text.as_bytes())?;
    Ok(file.sync_all()?)
}

/// What a side writes over the file that both have.
fn changed(side: u8) -> Vec<u8> {
    let mut bytes = vec![7; 200_000];
    bytes[8192..16_384].fill(side);
    bytes
}

fn change(mount: &Path, side: u8) -> Result<()> {
    let file = File::options().write(true).open(mount.join("changed"))?;
    file.write_all_at(&[side; 8192], 8192)?;
    Ok(file.sync_all()?)
}

/// The second node is made primary by force and goes on alone with many changes; then the first
/// one goes on alone with one. Both run in the end.
fn part(lab: &mut Lab, mount: &Path) -> Result<()> {
    put(mount, "both", "everyone has this")?;
    fs::write(mount.join("changed"), vec![7; 200_000])?;
    lab.wait_volume(0, VOLUME, "in sync", WITHIN, is_in_sync)?;
    lab.kill(0);
    lab.cairn(1, &["volume", "promote", VOLUME, "node2", "--force"])?;
    for number in 0..20 {
        put(mount, &format!("second{number}"), "only node2 has this")?;
    }
    change(mount, 2)?;
    lab.kill(1);
    lab.start(0)?;
    // It was primary, and goes on by itself when it has waited for the other.
    put(mount, "first", "only node1 has this")?;
    change(mount, 1)?;
    lab.start(1)
        .map_err(|error| anyhow::anyhow!("node2 does not start: {error}"))
}

#[test]
fn a_split_brain_ends_by_the_volumes_policy_and_the_side_that_goes_is_kept() -> Result<()> {
    let Some(Mounted {
        dir,
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
    check_kept_side(&mut lab, &mount, &dir.path().join("given-up"))?;
    all_equal(&lab, 0, VOLUME)?;
    lab.finish()?;
    Ok(())
}

/// What node1 held alone is named, mounted and read while the volume goes on, and dropped.
fn check_kept_side(lab: &mut Lab, mount: &Path, at: &Path) -> Result<()> {
    let list = ["volume", "split-brain", VOLUME, "list"];
    let listed = lab.json(1, &list)?;
    let rows = listed["kept"][0]["differences"].clone();
    let has = |path: &str, kind: &str, on: &str| -> Result<()> {
        let rows = rows.as_array().cloned().unwrap_or_default();
        let found = rows
            .iter()
            .any(|row| row["path"] == path && row["kind"] == kind && row["on"] == on);
        ensure!(found, "{path} {kind} {on}: {listed}");
        Ok(())
    };
    has("first", "only_one_side", "given-up")?;
    has("second0", "only_one_side", "volume")?;
    has("changed", "data", "volume")?;
    let few = lab.json(1, &[&list[..], &["--limit", "2"]].concat())?;
    assert_eq!(
        few["kept"][0]["differences"].as_array().map(Vec::len),
        Some(2)
    );
    let all = rows.as_array().map_or(0, Vec::len) as u64;
    assert_eq!(few["kept"][0]["more"], all - 2, "{few}");
    let shown = lab.cairn(1, &[&list[..], &["--limit", "2"]].concat())?;
    ensure!(shown.contains(&format!("and {} more", all - 2)), "{shown}");

    fs::create_dir(at)?;
    let dir = at.display().to_string();
    lab.cairn(
        1,
        &["volume", "split-brain", VOLUME, "mount", "node1", &dir],
    )?;
    assert_eq!(fs::read_to_string(at.join("first"))?, "only node1 has this");
    assert_eq!(fs::read(at.join("changed"))?, changed(1));
    assert!(!at.join("second0").exists(), "that is the volume's");
    let refused = fs::write(at.join("more"), b"x").map_err(|error| error.raw_os_error());
    assert_eq!(refused, Err(Some(30)), "read-only");
    // The volume goes on, also in what the kept side has in another way.
    File::options()
        .write(true)
        .open(mount.join("changed"))?
        .write_all(&[9; 200_000])?;
    fs::remove_file(mount.join("both"))?;
    assert_eq!(fs::read(at.join("changed"))?, changed(1));
    assert_eq!(fs::read_to_string(at.join("both"))?, "everyone has this");

    let drop = ["volume", "split-brain", VOLUME, "drop", "node1", "--force"];
    let ran = lab.run(1, &drop)?;
    ensure!(ran.status == 1 && ran.stderr.contains("mounted"), "{ran:?}");
    lab.umount(at)?;
    lab.wait_volume(1, VOLUME, "dropped", WITHIN, |_| {
        lab.run(1, &drop).is_ok_and(|ran| ran.status == 0)
    })?;
    let listed = lab.json(1, &list)?;
    assert_eq!(listed["kept"], serde_json::json!([]));
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
    let listed = lab.json(1, &["volume", "split-brain", VOLUME, "list"])?;
    let rows = listed["differences"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let has = |path: &str, kind: &str, on: &str| {
        rows.iter()
            .any(|row| row["path"] == path && row["kind"] == kind && row["on"] == on)
    };
    let named = has("first", "only_one_side", "node1")
        && has("second19", "only_one_side", "node2")
        && !has("both", "data", "node1");
    ensure!(named, "{listed}");
    for node in ["node1", "node2"] {
        let mut ranges = rows
            .iter()
            .filter(|row| row["path"] == "changed" && row["kind"] == "data" && row["on"] == node);
        let found = ranges
            .next()
            .map(|row| (row["offset"].clone(), row["length"].clone()));
        assert_eq!(found, Some((8192.into(), 8192.into())), "{listed}");
    }
    assert_eq!(listed["complete"], true);
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
