//! Changes that a mount answers before the primary has them (CL-1).

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::time::Duration;

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

/// A copy, an unmount and a power cut after it lost what had been confirmed where every write waits.
#[test]
fn cl_1_a_close_waits_until_what_was_written_before_it_is_taken() {
    let Some((bench, file, _)) = alone() else {
        return;
    };
    bench.server.misbehave(|m| m.paused = true);
    file.write_at(b"early", 0).expect("it waits for nobody");
    let (sender, closed) = channel();
    let closes = std::thread::spawn(move || {
        drop(file);
        sender.send(()).expect("somebody waits for it");
    });
    let early = closed.recv_timeout(Duration::from_millis(100));
    bench.server.misbehave(|m| m.paused = false);
    assert!(early.is_err(), "it waited for nobody");
    closed
        .recv_timeout(Duration::from_secs(10))
        .expect("closed");
    closes.join().expect("it closed");
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
