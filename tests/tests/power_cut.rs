//! DUR-1, DUR-3 on real file systems: the power of real bricks is cut at random moments under
//! load. Each brick lies on ext4 on a loop device; its backing file is cloned by reflink, which
//! keeps exactly what had reached the device. Each clone is checked without a daemon, and must
//! hold everything that fsync had confirmed before the cut.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cairn_lab::{Lab, is_root};
use cairn_tests::system::{Mounts, run, sparse};
use cairn_tests::{Random, Writer, binary, missing, setting, skip};

const VOLUME: &str = "v1";
/// Size of a brick's file system.
const BRICK_BYTES: u64 = 1 << 30;
/// Size of the file system below.
const POOL_BYTES: u64 = 12 << 30;

#[test]
fn each_brick_holds_after_a_power_cut_what_fsync_confirmed_before() -> Result<()> {
    if !is_root() || !Path::new("/dev/fuse").exists() || !Path::new("/dev/loop-control").exists() {
        skip("power cuts need root, /dev/fuse and loop devices");
        return Ok(());
    }
    let moments = setting("CAIRN_POWER_CUTS", 12);
    let mut random = Random::from_env("CAIRN_POWER_CUT_SEED");
    let dir = tempfile::tempdir()?;
    let mut mounts = Mounts::default();
    let below = dir.path().join("below");
    let pool = dir.path().join("pool.img");
    sparse(&pool, POOL_BYTES)?;
    mounts.make("xfs", &pool, &below)?;
    let mut lab = Lab::new(&binary(), dir.path(), 2)?;
    let images = [below.join("brick1.img"), below.join("brick2.img")];
    for (node, image) in images.iter().enumerate() {
        sparse(image, BRICK_BYTES)?;
        let at = lab
            .brick(node, VOLUME)
            .parent()
            .context("a brick has a parent")?
            .to_owned();
        mounts.make("ext4", image, &at)?;
    }
    lab.form_pool()?;
    lab.make_volume(VOLUME, 2)?;
    let mount = dir.path().join("mnt");
    lab.mount(0, VOLUME, &mount)?;
    let mut done = 0;
    let mut generation = 0;
    while done < moments {
        let base = mount.join(format!("g{generation}"));
        fs::create_dir(&base)?;
        let writer = Writer::start(&base, 1 + random.below(20))?;
        for _ in 0..5.min(moments - done) {
            std::thread::sleep(Duration::from_millis(random.below(400)));
            let confirmed = writer.confirmed();
            for image in &images {
                let clone = image.with_extension("cut");
                let _ = fs::remove_file(&clone);
                let (from, to) = (image.display().to_string(), clone.display().to_string());
                run("cp", &["--reflink=always", &from, &to])?;
            }
            for (node, image) in images.iter().enumerate() {
                let looked = look(&mut mounts, dir.path(), image, generation, &confirmed);
                looked.with_context(|| format!("cut {done}, brick of node {}", node + 1))?;
            }
            done += 1;
        }
        writer.finish()?;
        fs::remove_dir_all(&base)?;
        generation += 1;
    }
    println!(
        "{done} power cuts of each of two bricks: everything that fsync had confirmed is there"
    );
    lab.finish()?;
    Ok(())
}

/// Mounts a cut image, checks the brick on it, exports it and looks for what was confirmed.
fn look(
    mounts: &mut Mounts,
    dir: &Path,
    image: &Path,
    generation: u64,
    confirmed: &cairn_tests::Confirmed,
) -> Result<()> {
    let (at, out) = (dir.join("cut"), dir.join("exported"));
    mounts.mount(&image.with_extension("cut"), &at, "loop")?;
    let brick = at.join(VOLUME).display().to_string();
    let checked = Command::new(binary())
        .args(["brick", "check", &brick])
        .output()?;
    let said = String::from_utf8_lossy(&checked.stdout).into_owned()
        + &String::from_utf8_lossy(&checked.stderr);
    ensure!(checked.status.success(), "brick check: {said}");
    let _ = fs::remove_dir_all(&out);
    let exported = Command::new(binary())
        .args(["brick", "export", &brick])
        .arg(&out)
        .output()?;
    ensure!(
        exported.status.success(),
        "brick export: {}",
        String::from_utf8_lossy(&exported.stderr)
    );
    let wrong = missing(&out.join(format!("g{generation}")), confirmed, true)?;
    ensure!(wrong.is_empty(), "{wrong:?}, confirmed {confirmed:?}");
    mounts.umount(&at)
}
