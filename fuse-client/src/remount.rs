//! `mount -o remount`: other flags for what is mounted. The kernel keeps them and acts on them; the
//! mount's process is told only so that `volume status` shows what is true.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};

use crate::command::{MountFailure, failure};
use crate::kernel;
use crate::options::{MountFlagsWanted, MountRequest};
use crate::point::{self, Shown};
use crate::session::Session;

const EBUSY: i32 = 16;
/// What FUSE itself shows of a mount, and mount(8) hands on.
const OF_FUSE: [&str; 6] = [
    "user_id",
    "group_id",
    "default_permissions",
    "allow_other",
    "max_read",
    "rootcontext",
];

/// Whether it is asked for.
pub(crate) fn is_asked(options: &[String]) -> bool {
    let mut words = options.iter().flat_map(|all| all.split(','));
    words.any(|word| word == "remount")
}

/// Changes the flags of the volume that is mounted at `point`; what the options do not name stays.
pub(crate) fn remount(at: &Path, options: &[String]) -> Result<(), MountFailure> {
    let nothing = || {
        failure(
            format!("no volume is mounted at {}", at.display()),
            "Mount it without `-o remount`.",
        )
    };
    let point = point::real_path(at).ok_or_else(nothing)?;
    let shown = point::cairn_at(&point::table(), &point).ok_or_else(nothing)?;
    let flags = flags_over(&shown, options)?;
    kernel::remount(&point, &flags).map_err(|error| {
        let hint = match error.raw_os_error() {
            Some(EBUSY) => "Files are open for writing there: `fuser -vm DIR` says whose.",
            _ if !rustix::process::geteuid().is_root() => {
                "Only root can: `umount` it and mount anew."
            }
            _ => "Look at the kernel's log (`dmesg`).",
        };
        failure(
            format!("{} cannot be remounted: {error}", at.display()),
            hint,
        )
    })
}

fn flags_over(shown: &Shown, options: &[String]) -> Result<MountFlagsWanted, MountFailure> {
    let has = |word: &str| shown.options.iter().any(|option| option == word);
    let now = MountFlagsWanted {
        read_only: shown.is_read_only(),
        nosuid: has("nosuid"),
        nodev: has("nodev"),
        noexec: has("noexec"),
        noatime: has("noatime"),
        sync: has("sync"),
        allow_other: has("allow_other"),
    };
    let of_fuse = |option: &str| {
        let name = option.split_once('=').map_or(option, |(name, _)| name);
        OF_FUSE.contains(&name)
    };
    let said = options.iter().flat_map(|all| all.split(','));
    let said: Vec<String> = said
        .filter(|option| !of_fuse(option))
        .map(str::to_owned)
        .collect();
    Ok(MountRequest::parse_over(now, &shown.source, &said)?.flags)
}

/// Tells the session when the kernel is told to let changes through, or no more. For as long as the
/// process lives.
pub(crate) fn watch(at: &Path, session: &Arc<Session>) {
    let Some(point) = point::real_path(at) else {
        return;
    };
    let session = Arc::clone(session);
    let watching = move || {
        let Ok(table) = std::fs::File::open("/proc/self/mountinfo") else {
            return;
        };
        loop {
            // The table is "exceptional" whenever it has changed (proc_pid_mounts(5)).
            let mut changed = [PollFd::from_borrowed_fd(table.as_fd(), PollFlags::PRI)];
            match poll(&mut changed, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
            if let Some(shown) = point::cairn_at(&point::table(), &point) {
                session.set_read_only(shown.is_read_only());
            }
        }
    };
    let thread = std::thread::Builder::new().name("cairn-remounts".to_owned());
    if let Err(error) = thread.spawn(watching) {
        tracing::warn!(%error, "a remount will not be shown by `volume status`");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remount_is_asked_for_by_its_word_only() {
        let asked = |options: &str| is_asked(&[options.to_owned()]);
        assert!(asked("ro,remount") && asked("remount"));
        assert!(!asked("ro,x-remount,log_file=remount"));
    }

    #[test]
    fn a_remount_changes_what_is_said_and_nothing_else() {
        let shown = Shown {
            source: "a,b:/v1".to_owned(),
            device: "0:50".to_owned(),
            options: ["ro", "nosuid", "noatime", "user_id=0"]
                .map(str::to_owned)
                .into(),
        };
        let over = |options: &str| flags_over(&shown, &[options.to_owned()]);
        let flags = over("remount,rw,user_id=0,group_id=0,default_permissions").expect("known");
        assert!(!flags.read_only && flags.nosuid && flags.noatime);
        let flags = over("remount,suid,relatime").expect("known");
        assert!(flags.read_only && !flags.nosuid && !flags.noatime);
        assert!(over("remount,readonly").is_err(), "it is named");
    }
}
