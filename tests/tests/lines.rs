//! Nodes on long lines, as real processes: the pool is formed, elects and fails over, and a volume
//! with `link-profile=wan` and `quorum=majority` serves.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cairn_lab::{Lab, is_in_sync};
use cairn_tests::{Writer, binary, leader, line, nothing_lost, skip};

const VOLUME: &str = "v1";
/// Longer than a message of the pool's group may take over short lines.
const ROUND_TRIP: Duration = Duration::from_millis(200);
const IN_SYNC_WITHIN: Duration = Duration::from_secs(60);
/// A writer that does not go on for so long hangs.
const GOES_ON_WITHIN: Duration = Duration::from_secs(90);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Waits until the writer has had more files confirmed as stable.
fn go_on(writer: &Writer) -> Result<()> {
    let (began, wanted) = (Instant::now(), writer.confirmed().synced + 5);
    while writer.confirmed().synced < wanted {
        ensure!(began.elapsed() < GOES_ON_WITHIN, "the writer hangs");
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}

/// FO-1, ONE-1 over long lines.
#[test]
fn nodes_far_from_each_other_form_a_pool_serve_and_fail_over() -> Result<()> {
    if !Path::new("/dev/fuse").exists() {
        skip("there is no /dev/fuse");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let mut lab = Lab::at(&binary(), dir.path(), line::places(3, ROUND_TRIP)?);
    lab.form_pool()?;
    lab.make_volume(VOLUME, 2)?;
    lab.cairn(0, &["volume", "set", VOLUME, "link-profile", "wan"])?;
    lab.wait_volume(2, VOLUME, "in sync", IN_SYNC_WITHIN, is_in_sync)?;
    let mount = dir.path().join("mnt");
    lab.mount(2, VOLUME, &mount)?;
    let writer = Writer::start(&mount, 1)?;
    go_on(&writer)?;
    let status = lab.volume(2, VOLUME)?;
    let name = status["primary"].as_str().unwrap_or_default().to_owned();
    let primary = (0..2).find(|node| lab.name(*node) == name);
    let primary = primary.with_context(|| format!("no primary: {status}"))?;
    let leads = leader(&lab, 2, 3)?;
    lab.kill(primary);
    go_on(&writer)?;
    println!("the primary was killed, the pool's leader was {leads:?}");
    lab.start(primary)?;
    lab.wait_volume(2, VOLUME, "in sync", IN_SYNC_WITHIN, is_in_sync)?;
    // Back to short times and to long ones again, in use; what the pool does meanwhile stops no I/O.
    for profile in ["lan", "wan"] {
        lab.cairn(2, &["volume", "set", VOLUME, "link-profile", profile])?;
    }
    go_on(&writer)?;
    lab.wait_volume(2, VOLUME, "in sync", IN_SYNC_WITHIN, is_in_sync)?;
    nothing_lost(&lab, VOLUME, &mount, writer)?;
    lab.finish()?;
    Ok(())
}
