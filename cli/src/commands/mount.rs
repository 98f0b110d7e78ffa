//! `cairn mount`, and `mount.cairn` and `umount.cairn` with the arguments of mount(8) and umount(8).

use std::ffi::OsString;
use std::path::Path;

use fuse_client::command::{MountArgs, MountFailure, mount};
use fuse_client::unmount::{UnmountFlagsWanted, unmount};

use crate::args::{self, Global};
use crate::connection;
use crate::failure::Failure;

fn failed(error: &MountFailure) -> Failure {
    Failure::refused("mount", &error.sentence, &error.hint)
}

/// `cairn mount`.
pub(super) fn run(global: &Global, args: args::MountArgs) -> Result<u8, Failure> {
    let args = MountArgs {
        source: args.source,
        point: args.point,
        options: args.options,
        foreground: args.foreground,
        data_dir: connection::data_dir(global),
        verbose: global.verbose > 0,
    };
    mount(&args).map_err(|error| failed(&error))?;
    Ok(0)
}

/// Words of `mount.cairn SPEC DIR [-sfnv] [-o OPTIONS]` (mount(8), "External helpers") as words of
/// `cairn mount`. `-f` fakes: nothing is mounted. `None`: nothing is to be done.
pub(crate) fn helper_words(words: &[OsString]) -> Option<Vec<OsString>> {
    let mut mapped: Vec<OsString> = vec!["cairn".into(), "mount".into()];
    let mut rest = words.iter().skip(1);
    let mut fake = false;
    while let Some(word) = rest.next() {
        match word.to_str() {
            Some("-o" | "-N" | "-t") if word != "-o" => {
                let _ = rest.next();
            }
            Some(flags) if is_flags(flags) => {
                fake |= flags.contains('f');
                if flags.contains('v') {
                    mapped.push("-v".into());
                }
            }
            _ => mapped.push(word.clone()),
        }
    }
    (!fake).then_some(mapped)
}

/// `umount.cairn DIR [-flnrv] [-N NAMESPACE] [-t TYPE]` (umount(8), "External helpers").
pub(crate) fn unmount_helper(words: &[OsString]) -> Result<(), Failure> {
    let (point, how) = unmount_words(words)?;
    unmount(Path::new(&point), how)
        .map_err(|error| Failure::refused("umount", &error.sentence, &error.hint))
}

fn unmount_words(words: &[OsString]) -> Result<(OsString, UnmountFlagsWanted), Failure> {
    let misused = |what: String| Failure::refused("umount", &what, "Use `umount DIR`.");
    let mut how = UnmountFlagsWanted::default();
    let mut point = None;
    let mut rest = words.iter().skip(1);
    while let Some(word) = rest.next() {
        match word.to_str() {
            Some("-t") => _ = rest.next(),
            Some("-N") => {
                return Err(Failure::refused(
                    "umount",
                    "it is mounted in another namespace",
                    "Run `umount DIR` in that one: `nsenter -t PID -m umount DIR`.",
                ));
            }
            Some(flags) if flags.starts_with('-') => {
                if let Some(letter) = flags[1..].chars().find(|it| !"flnrv".contains(*it)) {
                    return Err(misused(format!("there is no option -{letter}")));
                }
                how.force |= flags.contains('f');
                how.lazy |= flags.contains('l');
            }
            _ => {
                if let Some(more) = point.replace(word.clone()) {
                    let more = more.to_string_lossy().into_owned();
                    return Err(misused(format!("{more} is one directory too many")));
                }
            }
        }
    }
    let point = point.ok_or_else(|| misused("no directory is named".to_owned()))?;
    Ok((point, how))
}

fn is_flags(word: &str) -> bool {
    word.strip_prefix('-').is_some_and(|letters| {
        !letters.is_empty() && letters.chars().all(|letter| "sfnv".contains(letter))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_helper_takes_what_mount_8_hands_it() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(
            helper_words(&words("mount.cairn node1:/v1 /mnt -n -v -o rw,_netdev")),
            Some(words("cairn mount node1:/v1 /mnt -v -o rw,_netdev"))
        );
        assert_eq!(
            helper_words(&words("mount.cairn node1:/v1 /mnt -f -o rw")),
            None
        );
    }

    #[test]
    fn the_helper_takes_what_umount_8_hands_it() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        let taken = |text: &str| unmount_words(&words(text)).ok();
        let plain = UnmountFlagsWanted::default();
        let at = OsString::from("/mnt");
        assert_eq!(
            taken("umount.cairn /mnt -n -r -v"),
            Some((at.clone(), plain))
        );
        assert_eq!(
            taken("umount.cairn -t fuse.cairn -lf /mnt"),
            Some((
                at,
                UnmountFlagsWanted {
                    lazy: true,
                    force: true
                }
            ))
        );
        for wrong in [
            "umount.cairn",
            "umount.cairn -v",
            "umount.cairn -a /mnt",
            "umount.cairn /a /b",
            "umount.cairn -N 3 /mnt",
        ] {
            assert_eq!(taken(wrong), None, "{wrong}");
        }
    }
}
