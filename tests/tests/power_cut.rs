//! DUR-1, DUR-3 on real file systems: the power of real bricks is cut at random moments under
//! load. Each brick lies on ext4 on a loop device; its backing file is cloned by reflink, which
//! keeps exactly what had reached the device. Each clone is checked without a daemon, and must
//! hold everything that fsync had confirmed before the cut.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cairn_lab::{Lab, is_in_sync, is_root};
use cairn_tests::system::{Mounts, run, sparse};
use cairn_tests::{Random, Writer, binary, missing, nothing_lost, setting, skip};

const VOLUME: &str = "v1";
const WITHIN: Duration = Duration::from_secs(60);
/// Size of a brick's file system.
const BRICK_BYTES: u64 = 1 << 30;
/// Size of the file system below.
const POOL_BYTES: u64 = 12 << 30;

/// Two nodes in a pool, the brick of each on a file system of its own, and a mount.
struct Bench {
    dir: tempfile::TempDir,
    mounts: Mounts,
    lab: Lab,
    images: [PathBuf; 2],
    mount: PathBuf,
}

impl Bench {
    /// `None`, said loudly, where that cannot be made.
    fn new() -> Result<Option<Self>> {
        let there = |path: &str| Path::new(path).exists();
        if !is_root() || !there("/dev/fuse") || !there("/dev/loop-control") {
            skip("power cuts need root, /dev/fuse and loop devices");
            return Ok(None);
        }
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
            mounts.make("ext4", image, &place_of(&lab, node)?)?;
        }
        lab.form_pool()?;
        lab.make_volume(VOLUME, 2)?;
        let mount = dir.path().join("mnt");
        lab.mount(0, VOLUME, &mount)?;
        Ok(Some(Self {
            dir,
            mounts,
            lab,
            images,
            mount,
        }))
    }
}

/// Where the file system of a node's brick is mounted.
fn place_of(lab: &Lab, node: usize) -> Result<PathBuf> {
    let brick = lab.brick(node, VOLUME);
    Ok(brick.parent().context("a brick has a parent")?.to_owned())
}

/// Clones what has reached the device.
fn cut(image: &Path) -> Result<PathBuf> {
    let clone = image.with_extension("cut");
    let _ = fs::remove_file(&clone);
    let (from, to) = (image.display().to_string(), clone.display().to_string());
    run("cp", &["--reflink=always", &from, &to])?;
    Ok(clone)
}

/// DUR-5: the power goes on both nodes at once, and takes what nobody fsynced. The mount kept it,
/// and puts it back: the writer sees a pause, and everything that was confirmed to it is there.
#[test]
fn what_was_confirmed_comes_back_after_the_power_went_everywhere() -> Result<()> {
    let Some(Bench {
        dir: _dir,
        mut mounts,
        mut lab,
        images,
        mount,
    }) = Bench::new()?
    else {
        return Ok(());
    };
    let mut random = Random::from_env("CAIRN_POWER_CUT_SEED");
    // It never fsyncs.
    let writer = Writer::start(&mount, u64::MAX)?;
    for _ in 0..setting("CAIRN_POWER_CUTS", 12).div_ceil(4) {
        let confirmed = writer.confirmed().made;
        std::thread::sleep(Duration::from_millis(random.below(1500)));
        lab.kill(0);
        lab.kill(1);
        for (node, image) in images.iter().enumerate() {
            let clone = cut(image)?;
            let at = place_of(&lab, node)?;
            mounts.umount(&at)?;
            fs::rename(&clone, image)?;
            mounts.mount(image, &at, "loop")?;
        }
        lab.start(0)?;
        lab.start(1)?;
        lab.wait_volume(0, VOLUME, "in sync", WITHIN, is_in_sync)?;
        let began = Instant::now();
        while writer.confirmed().made <= confirmed {
            ensure!(began.elapsed() < WITHIN, "the writer does not go on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    nothing_lost(&lab, VOLUME, &mount, writer)?;
    let mut put_back = 0;
    for node in 0..2 {
        put_back += replayed(&fs::read_to_string(lab.log(node))?);
    }
    ensure!(put_back > 0, "no cut took anything");
    println!("{put_back} operations were put back");
    lab.finish()?;
    Ok(())
}

/// How many operations a daemon's log says were put back.
fn replayed(log: &str) -> u64 {
    let lines = log.lines().filter(|line| line.contains("was put back"));
    let counts = lines.filter_map(|line| {
        let plain: String = line.split('\u{1b}').map(after_colour).collect();
        let count: Result<u64, _> = plain.split("replayed=").nth(1)?.split(' ').next()?.parse();
        count.ok()
    });
    counts.sum::<u64>()
}

/// What follows a terminal's change of colour.
fn after_colour(part: &str) -> &str {
    match part.strip_prefix('[') {
        Some(rest) => rest.split_once('m').map_or(rest, |(_, text)| text),
        None => part,
    }
}

#[test]
fn each_brick_holds_after_a_power_cut_what_fsync_confirmed_before() -> Result<()> {
    let Some(Bench {
        dir,
        mut mounts,
        lab,
        images,
        mount,
    }) = Bench::new()?
    else {
        return Ok(());
    };
    let moments = setting("CAIRN_POWER_CUTS", 12);
    let mut random = Random::from_env("CAIRN_POWER_CUT_SEED");
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
                cut(image)?;
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
