//! Mounts whose process is gone. All that they answer is ENOTCONN ("Transport endpoint is not
//! connected"), until somebody takes them away: whoever mounts anew at that place does.
//!
//! The kernel does not know whose they were, so each process leaves a note where notes do not
//! outlive the machine's next start.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::command::{MountFailure, failure};
use crate::kernel::{self, ENOTCONN};
use crate::point::{self, Shown};

/// A mount that answers nothing for so long is alive: it waits for its primary.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// Dead mounts on top of each other.
const STACKED_MAX: usize = 64;

/// Takes dead mounts of volumes away from `at`, and says so on standard error.
pub(crate) fn take_away(at: &Path) -> Result<(), MountFailure> {
    let Some(point) = point::real_path(at) else {
        return Ok(());
    };
    for _ in 0..STACKED_MAX {
        let Some(shown) = point::cairn_at(&point::table(), &point) else {
            return Ok(());
        };
        if !is_dead(&point) {
            return Ok(());
        }
        let what = describe(&shown, &point);
        kernel::unmount(&point);
        if point::cairn_at(&point::table(), &point).is_some_and(|now| now.device == shown.device) {
            return Err(failure(
                format!("{what}, and it cannot be taken away"),
                format!("As root: `umount -l {}`, then mount again.", at.display()),
            ));
        }
        // It may be closed: the mount matters, not the word about it.
        let _ = writeln!(std::io::stderr(), "{what}; it is taken away");
        let _ = fs::remove_file(note_of(&shown.device));
    }
    Ok(())
}

/// Asks the mount; a statfs(2) is answered by its process only, from no cache.
fn is_dead(point: &Path) -> bool {
    let (tell, told) = mpsc::channel();
    let asked = point.to_owned();
    let thread = std::thread::Builder::new().name("cairn-ask".to_owned());
    let asking = thread.spawn(move || {
        // Who asked may have gone on.
        let _ = tell.send(rustix::fs::statfs(&asked));
    });
    let answer = asking
        .ok()
        .and_then(|_| told.recv_timeout(ANSWERS_WITHIN).ok());
    matches!(answer, Some(Err(errno)) if errno.raw_os_error() == ENOTCONN)
}

fn describe(shown: &Shown, point: &Path) -> String {
    let what = format!("a dead mount of {} is at {}", shown.source, point.display());
    match Note::read(&shown.device, point) {
        Some((process, since)) => format!(
            "{what}: its process {process}, which mounted it at {}, is gone",
            OffsetDateTime::from(since)
                .format(&Rfc3339)
                .unwrap_or_default()
        ),
        None => format!("{what}: its process is gone"),
    }
}

fn whole_seconds(at: SystemTime) -> SystemTime {
    let since = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// Where notes are; a user's own where it is no service.
fn notes() -> PathBuf {
    let own = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    match own.filter(|_| !rustix::process::geteuid().is_root()) {
        Some(own) => own.join("cairn"),
        None => PathBuf::from("/run/cairn"),
    }
}

fn note_of(device: &str) -> PathBuf {
    notes().join(format!("mount-{}", device.replace(':', "-")))
}

/// A note of this process about its mount; taken away with it in order.
#[derive(Debug)]
pub(crate) struct Note(PathBuf);

impl Note {
    /// `None`: it cannot be left, and a later mount knows less.
    pub(crate) fn leave(at: &Path) -> Option<Self> {
        let point = point::real_path(at)?;
        let shown = point::cairn_at(&point::table(), &point)?;
        let path = note_of(&shown.device);
        fs::create_dir_all(path.parent()?).ok()?;
        let text = format!("{}\n{}\n", std::process::id(), point.display());
        fs::write(&path, text).ok()?;
        Some(Self(path))
    }

    /// The process, and since when it had been mounted.
    fn read(device: &str, point: &Path) -> Option<(u32, SystemTime)> {
        let path = note_of(device);
        let (process, rest) = fs::read_to_string(&path).ok().and_then(|text| {
            let (process, rest) = text.split_once('\n')?;
            Some((process.parse().ok()?, rest.to_owned()))
        })?;
        // Numbers of file systems are used again.
        let same = rest.trim_end_matches('\n') == point.display().to_string();
        let since = fs::metadata(&path).and_then(|meta| meta.modified()).ok();
        let since = since.map(whole_seconds);
        since.filter(|_| same).map(|since| (process, since))
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        // Whoever mounts next looks at what is mounted first.
        let _ = fs::remove_file(&self.0);
    }
}
