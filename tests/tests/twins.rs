//! A node that is there twice, as real processes: its machine's image was copied, or it was restored
//! from a backup while it still ran. It votes, so it might vote twice.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cairn_lab::{Lab, Place};
use cairn_tests::system::run;
use cairn_tests::{binary, events};
use serde_json::Value;

const WITHIN: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

fn until(what: &str, so: impl Fn() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !so()? {
        ensure!(began.elapsed() < WITHIN, "{what}: not reached");
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}

fn why(lab: &Lab) -> Result<String> {
    let reasons: Value = lab.json(0, &["why"])?;
    Ok(reasons.to_string())
}

/// The node's own copy of everything, in a lab of its own, as its third node.
fn copy_of_the_third(lab: &Lab, dir: &Path) -> Result<Lab> {
    let from = lab.data_dir(2).display().to_string();
    let to = dir.join("node3").display().to_string();
    run("cp", &["-a", &from, &to])?;
    let base = lab
        .address(2)
        .rsplit_once('.')
        .map_or("127.9.9", |(base, _)| base);
    let places = (201..=203).map(|n| Place {
        address: format!("{base}.{n}"),
        // By its configuration it is where the other one is.
        advertised: Some(format!("{}:7420", lab.address(2))),
        ..Place::default()
    });
    Ok(Lab::at(&binary(), dir, places))
}

/// BAD-2: neither is listened to, both facts are told, and the pool goes on without them.
#[test]
fn a_node_that_is_there_twice_is_noticed_and_takes_no_part_until_the_copy_is_gone() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut lab = Lab::new(&binary(), dir.path(), 3)?;
    lab.form_pool()?;
    let copies = dir.path().join("copies");
    std::fs::create_dir(&copies)?;
    // What a backup would have: a whole state, while nothing runs.
    lab.stop(2)?;
    let mut copy = copy_of_the_third(&lab, &copies)?;
    lab.start(2)?;
    copy.start(2)?;
    until("the twins are noticed", || {
        let told = (0..2).map(|node| events(&lab, node, "node_twice"));
        let told: Result<Vec<_>> = told.collect();
        Ok(told?.concat().iter().any(|text| text.contains("node3")))
    })?;
    until("why says so", || {
        let said = [why(&lab)?, lab.json(1, &["why"])?.to_string()].concat();
        Ok(
            said.contains("two processes say that they are node3")
                && said.contains("Stop the copy"),
        )
    })?;
    copy.kill(2);
    lab.stop(2)?;
    lab.start(2)?;
    until("the right one is a member again", || {
        let status = lab.json(0, &["peer", "status"])?;
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        let back = nodes.iter().all(|node| node["state"] == "connected");
        let quiet = !why(&lab)?.contains("two processes");
        Ok(back && quiet && status["quorum"] == true)
    })?;
    lab.finish()?;
    Ok(())
}
