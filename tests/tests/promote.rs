//! FO-1, FO-4: a planned switch-over, and a daemon that ends in order, move the role under a
//! writer that sees no error; nothing confirmed is lost.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use cairn_lab::{Lab, is_in_sync};
use cairn_tests::{Writer, binary, missing, skip};
use serde_json::Value;

const VOLUME: &str = "v1";
const WITHIN: Duration = Duration::from_secs(30);

fn primary_is(name: String) -> impl Fn(&Value) -> bool {
    move |volume| volume["primary"] == name.as_str() && is_in_sync(volume)
}

#[test]
fn the_role_moves_by_command_and_by_an_orderly_end_and_the_writer_sees_no_error() -> Result<()> {
    if !Path::new("/dev/fuse").exists() {
        skip("there is no /dev/fuse");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let mut lab = Lab::new(&binary(), dir.path(), 2)?;
    lab.form_pool()?;
    lab.make_volume(VOLUME, 2)?;
    let mount = dir.path().join("mnt");
    lab.mount(0, VOLUME, &mount)?;
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
    let confirmed = writer.finish()?;
    let wrong = missing(&mount, &confirmed, false)?;
    assert!(wrong.is_empty(), "{wrong:?}");
    let verdict = lab.json(0, &["volume", "verify", VOLUME])?;
    assert_eq!(verdict["equal"], true, "{verdict}");
    lab.finish()?;
    Ok(())
}
