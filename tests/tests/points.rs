//! RS-4, ONE-3 with real processes: a target whose source dies in the middle of a resync serves
//! what it had before; and what a side of a split brain held alone stays readable.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cairn_lab::is_in_sync;
use cairn_tests::{Mounted, all_equal, content};
use serde_json::Value;

const VOLUME: &str = "v1";
const WITHIN: Duration = Duration::from_secs(60);
/// Blocks of the large file that change, and how often: the journal must cost more than the map.
const BLOCKS: u64 = 800;
const ROUNDS: u64 = 20;
const LARGE_BYTES: u64 = 16 << 20;

type Tree = BTreeMap<String, Vec<u8>>;

fn tree(dir: &Path) -> Result<Tree> {
    let mut found = Tree::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() {
            for (inner, bytes) in tree(&entry.path())? {
                found.insert(format!("{name}/{inner}"), bytes);
            }
        } else {
            found.insert(name, fs::read(entry.path())?);
        }
    }
    Ok(found)
}

/// Names the difference: the trees themselves are long.
fn same(what: &str, found: &Tree, wanted: &Tree) -> Result<()> {
    ensure!(
        found.keys().eq(wanted.keys()),
        "{what}: {:?} instead of {:?}",
        found.keys(),
        wanted.keys()
    );
    for (name, bytes) in found {
        ensure!(*bytes == wanted[name], "{what}: {name} differs");
    }
    Ok(())
}

fn first_state(mount: &Path) -> Result<()> {
    fs::create_dir(mount.join("dir"))?;
    for number in 0..20 {
        fs::write(mount.join(format!("dir/{number}")), content(number))?;
    }
    let large = File::create_new(mount.join("large"))?;
    for piece in 0..LARGE_BYTES >> 20 {
        large.write_all_at(&vec![piece as u8 | 1; 1 << 20], piece << 20)?;
    }
    fs::write(mount.join("dropped"), vec![7; 300_000])?;
    fs::write(mount.join("cut"), vec![9; 300_000])?;
    Ok(large.sync_all()?)
}

fn second_state(mount: &Path) -> Result<()> {
    let large = File::options().write(true).open(mount.join("large"))?;
    for round in 0..ROUNDS {
        for block in 0..BLOCKS {
            large.write_all_at(&[round as u8 + 100; 4096], block * 5 * 4096)?;
        }
    }
    fs::remove_file(mount.join("dropped"))?;
    File::options()
        .write(true)
        .open(mount.join("cut"))?
        .set_len(5000)?;
    for number in 0..10 {
        fs::write(mount.join(format!("dir/{number}")), content(number + 1000))?;
        fs::rename(
            mount.join(format!("dir/{}", number + 10)),
            mount.join(format!("dir/new{number}")),
        )?;
    }
    Ok(large.sync_all()?)
}

/// Half-way: something was sent, and something is left.
fn half_way(volume: &Value) -> bool {
    let target = &volume["replicas"][1];
    target["disk"] == "inconsistent"
        && target["point"].is_object()
        && target["resync"]["done_bytes"].as_u64() > Some(300_000)
}

#[test]
fn a_target_whose_source_dies_serves_what_it_had_and_the_side_given_up_stays_readable() -> Result<()>
{
    let Some(Mounted {
        dir,
        mut lab,
        mount,
    }) = Mounted::new(VOLUME, 2)?
    else {
        return Ok(());
    };
    first_state(&mount)?;
    lab.wait_volume(0, VOLUME, "in sync", WITHIN, is_in_sync)?;
    let before = tree(&mount)?;
    lab.cairn(0, &["volume", "set", VOLUME, "resync-max-rate", "256K"])?;
    lab.kill(1);
    second_state(&mount)?;
    let after = tree(&mount)?;
    lab.umount(&mount)?;
    lab.start(1)?;
    let status = lab.wait_volume(0, VOLUME, "half resynced", WITHIN, half_way)?;
    assert_eq!(status["replicas"][1]["resync"]["rule"], "dirty-map");
    lab.kill(0);

    // The source is gone. The target says what it could do, and does it when told to.
    let status = lab.volume(1, VOLUME)?;
    let point = &status["replicas"][1]["point"];
    let as_of = point["as_of"].as_str().context("a point to go back to")?;
    assert_eq!(status["replicas"][1]["disk"], "inconsistent");
    let said = lab.json(1, &["volume", "promote", VOLUME, "node2", "--force"])?;
    assert_eq!(said["as_of"], as_of, "{said}");
    assert!(said["operations_lost_min"].as_u64() > Some(0), "{said}");
    let serves = |volume: &Value| volume["primary"] == "node2";
    lab.wait_volume(1, VOLUME, "it serves", WITHIN, serves)?;
    lab.mount(1, VOLUME, &mount)?;
    same("after going back", &tree(&mount)?, &before)?;
    fs::write(mount.join("on"), b"it goes")?;

    // The source comes back with what only it has: a split brain, and its side is given up.
    lab.start(0)?;
    let split = |volume: &Value| volume["split_brain"].is_object();
    lab.wait_volume(1, VOLUME, "the split brain noticed", WITHIN, split)?;
    lab.cairn(1, &["volume", "reset", VOLUME, "resync-max-rate"])?;
    let resolve = ["volume", "split-brain", VOLUME, "resolve"];
    let keep = ["--keep", "node2", "--force"];
    lab.cairn(1, &[&resolve[..], &keep].concat())?;
    let whole = |volume: &Value| is_in_sync(volume) && volume["health"] == "healthy";
    lab.wait_volume(1, VOLUME, "one side", WITHIN, whole)?;
    same("the side that stays", &tree(&mount)?.clone(), &{
        let mut wanted = before.clone();
        wanted.insert("on".to_owned(), b"it goes".to_vec());
        wanted
    })?;
    let listed = lab.json(1, &["volume", "split-brain", VOLUME, "list"])?;
    assert_eq!(listed["split_brain"], Value::Null);
    assert_eq!(listed["kept"][0]["node"], "node1", "{listed}");
    lab.stop(0)?;
    let brick = lab.brick(0, VOLUME).display().to_string();
    let dest = dir.path().join("given-up");
    let dest_text = dest.display().to_string();
    let info = lab.json(0, &["brick", "info", &brick])?;
    assert_eq!(info["points"][0]["state"], "given_up", "{info}");
    lab.cairn(0, &["brick", "export", &brick, &dest_text, "--point"])?;
    same("the side that was given up", &tree(&dest)?, &after)?;
    lab.cairn(0, &["brick", "check", &brick])?;

    // Until somebody drops it.
    lab.start(0)?;
    lab.wait_volume(1, VOLUME, "in sync again", WITHIN, is_in_sync)?;
    let drop = ["volume", "split-brain", VOLUME, "drop", "node1"];
    let ran = lab.run(1, &drop)?;
    ensure!(ran.status == 4 && ran.stderr.contains("node1"), "{ran:?}");
    lab.cairn(1, &[&drop[..], &["--force"]].concat())?;
    let listed = lab.json(1, &["volume", "split-brain", VOLUME, "list"])?;
    assert_eq!(listed["kept"], serde_json::json!([]));
    all_equal(&lab, 1, VOLUME)?;
    lab.finish()?;
    Ok(())
}
