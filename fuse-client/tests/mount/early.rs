//! Changes that a mount answers before the primary has them (CL-1).

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use cairn_fuse_client::unmount::{UnmountFlagsWanted, unmount};

use super::Bench;

/// A mount that has a file alone.
fn alone() -> Option<(Bench, File, PathBuf)> {
    let (bench, mounted) = Bench::mounted()?;
    bench.server.misbehave(|m| m.gives_alone = true);
    let path = mounted.join("file");
    let file = File::create_new(&path).expect("a new file");
    file.write_at(b"first", 0).expect("written");
    Some((bench, file, path))
}

/// What happens in a thread of its own, and when it is over.
fn beside(what: impl FnOnce() + Send + 'static) -> (Receiver<()>, JoinHandle<()>) {
    let (sender, over) = channel();
    let thread = std::thread::spawn(move || {
        what();
        sender.send(()).expect("somebody waits for it");
    });
    (over, thread)
}

/// A copy, an unmount and a power cut after it lost what had been confirmed where every write waits.
#[test]
fn cl_1_a_close_waits_for_nobody_and_umount_8_for_everything_that_was_written() {
    let Some((mut bench, file, _)) = alone() else {
        return;
    };
    bench.server.misbehave(|m| m.paused = true);
    file.write_at(b"early", 0).expect("it waits for nobody");
    let (closed, closes) = beside(|| drop(file));
    let closed = closed.recv_timeout(Duration::from_secs(5));
    let (point, mount) = bench.mounts.pop().expect("a mount");
    let how = UnmountFlagsWanted::default();
    let (unmounted, unmounts) = beside(move || unmount(&point, how).expect("it is ours"));
    let early = unmounted.recv_timeout(Duration::from_millis(100));
    assert_eq!(bench.server.received("sync all"), 0);
    bench.server.misbehave(|m| m.paused = false);
    closed.expect("a close waited for the primary");
    early.expect_err("umount waited for nobody");
    for thread in [closes, unmounts, mount] {
        thread.join().expect("it is over");
    }
    // Its own, and the mount's as it ends.
    assert!(bench.server.received("sync all") >= 1);
}

/// What was confirmed while the mount ended was kept by nobody, and not stable.
#[test]
fn cl_1_an_unmount_makes_stable_what_was_still_on_its_way() {
    let Some((mut bench, file, path)) = alone() else {
        return;
    };
    drop(file);
    assert_eq!(bench.server.received("sync all"), 0);
    bench.server.misbehave(|m| m.withholds = true);
    let mode = Permissions::from_mode(0o640);
    fs::set_permissions(&path, mode).expect("it waits for nobody");
    bench.unmount();
    assert_eq!(bench.server.received("sync all"), 1);
}

/// A program that was short of room was told EIO, as if what it had written before were gone.
#[test]
fn cl_1_who_was_answered_early_is_told_by_the_next_call_why_the_primary_refused_it() {
    const ENOSPC: i32 = 28;
    let Some((bench, file, path)) = alone() else {
        return;
    };
    let second = File::options().write(true).open(&path).expect("it opens");
    let refuse = |errno| bench.server.misbehave(|m| m.refuses_early = errno);
    let told = |result: std::io::Result<()>| result.err().and_then(|error| error.raw_os_error());
    refuse(Some(ENOSPC));
    file.write_at(b"early", 0).expect("it waits for nobody");
    assert_eq!(told(file.sync_all()), Some(ENOSPC));
    assert_eq!(told(file.sync_all()), None, "it was told");
    assert_eq!(told(second.sync_all()), Some(ENOSPC), "so is everybody");
    refuse(None);
    file.write_at(b"again", 0).expect("there is room");
    file.sync_all().expect("there is room");
    assert_eq!(fs::read(&path).expect("it is read"), b"again");
}
