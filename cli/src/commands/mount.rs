//! `cairn mount`, and `mount.cairn` with mount(8)'s order of arguments.

use std::ffi::OsString;

use fuse_client::command::{MountArgs, MountFailure, mount};

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
}
