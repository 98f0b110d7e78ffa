//! COH-1 between real mounts: what one did, the other sees at its next call, also what the first
//! one had kept while it was alone.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Result, ensure};
use cairn_tests::Mounted;

const VOLUME: &str = "v1";
const ROUNDS: u32 = 200;

/// What stat(2) tells: size, mode, and whether the name exists.
fn look(path: &Path) -> Option<(u64, u32)> {
    let found = fs::symlink_metadata(path).ok()?;
    Some((found.size(), found.permissions().mode() & 0o777))
}

#[test]
fn coh_1_two_mounts_see_each_other_at_once_also_what_one_kept_alone() -> Result<()> {
    let Some(Mounted {
        dir,
        mut lab,
        mount: a,
    }) = Mounted::new(VOLUME, 2)?
    else {
        return Ok(());
    };
    let (name, other) = ("file", "other");
    fs::create_dir(a.join("d"))?;
    let there = |mount: &Path, name: &str| mount.join("d").join(name);
    fs::write(there(&a, name), b"alone")?;
    let b = dir.path().join("mnt2");
    // Alone, the first mount keeps what it looked at; the second is let in when that has ended.
    for _ in 0..100 {
        ensure!(look(&there(&a, name)) == Some((5, 0o644)));
    }
    lab.mount(1, VOLUME, &b)?;
    fs::write(there(&b, name), b"changed by the second")?;
    ensure!(
        look(&there(&a, name)) == Some((21, 0o644)),
        "the first one's copy is old"
    );
    for round in 0..ROUNDS {
        let (one, two) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let size = u64::from(round % 50);
        let mode = 0o600 + round % 8;
        File::options()
            .write(true)
            .open(there(one, name))?
            .set_len(size)?;
        ensure!(
            look(&there(two, name)).map(|it| it.0) == Some(size),
            "size, {round}"
        );
        fs::set_permissions(there(two, name), Permissions::from_mode(mode))?;
        ensure!(
            look(&there(one, name)) == Some((size, mode)),
            "mode, {round}"
        );
        fs::rename(there(one, name), there(one, other))?;
        ensure!(look(&there(two, name)).is_none(), "the old name, {round}");
        ensure!(look(&there(two, other)).is_some(), "the new name, {round}");
        fs::rename(there(two, other), there(two, name))?;
        ensure!(look(&there(one, other)).is_none(), "the name back, {round}");
        let listed = fs::read_dir(one.join("d"))?.count();
        ensure!(listed == 1, "the list, {round}: {listed}");
    }
    lab.finish()?;
    Ok(())
}
