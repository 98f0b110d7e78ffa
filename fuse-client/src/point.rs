//! What is mounted at a directory, by the kernel's table. Nothing here asks a file system that
//! may be waiting for its primary.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// The directory's path without links, found without looking at what is mounted on it.
pub(crate) fn real_path(point: &Path) -> Option<PathBuf> {
    let point = std::path::absolute(point).ok()?;
    if std::fs::read_link(&point).is_ok() {
        return point.canonicalize().ok();
    }
    match (point.parent(), point.file_name()) {
        (Some(parent), Some(name)) => Some(parent.canonicalize().ok()?.join(name)),
        _ => Some(point),
    }
}

/// A volume's mount, as the kernel's table shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown {
    /// What was mounted.
    pub(crate) source: String,
    /// The kernel's number of the file system, as `0:50`.
    pub(crate) device: String,
    /// Of the mount and of its file system, such as `ro` and `nosuid`.
    pub(crate) options: Vec<String>,
}

impl Shown {
    /// Whether the kernel lets nobody change anything.
    pub(crate) fn is_read_only(&self) -> bool {
        self.options.iter().any(|option| option == "ro")
    }
}

/// The kernel's table of mounts.
pub(crate) fn table() -> Vec<u8> {
    // Without it nothing is known to be mounted anywhere.
    std::fs::read("/proc/self/mountinfo").unwrap_or_default()
}

/// The volume that is mounted at `point` on top of everything else there, by a table as
/// proc_pid_mountinfo(5) has it.
pub(crate) fn cairn_at(table: &[u8], point: &Path) -> Option<Shown> {
    let mut found = None;
    for line in table.split(|byte| *byte == b'\n') {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let separator = fields.iter().position(|field| *field == b"-");
        let (Some(at), Some(separator)) = (fields.get(4), separator) else {
            continue;
        };
        if OsString::from_vec(plain(at)) != point.as_os_str() {
            continue;
        }
        // The last one covers the others.
        let is_cairn = fields.get(separator + 1) == Some(&&b"fuse.cairn"[..]);
        let text = |field: &&[u8]| String::from_utf8_lossy(&plain(field)).into_owned();
        let source = fields.get(separator + 2).filter(|_| is_cairn);
        found = source.map(|source| {
            let options = [fields.get(5), fields.get(separator + 3)];
            let options = options.into_iter().flatten().map(text);
            let options =
                options.flat_map(|all| all.split(',').map(str::to_owned).collect::<Vec<_>>());
            Shown {
                source: text(source),
                device: fields.get(2).map(text).unwrap_or_default(),
                options: options.collect(),
            }
        });
    }
    found
}

/// At how many places the file system of this number is mounted, wholly or in part.
pub(crate) fn times_mounted(table: &[u8], device: &str) -> usize {
    let lines = table.split(|byte| *byte == b'\n');
    let devices = lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(2));
    devices.filter(|of| *of == device.as_bytes()).count()
}

/// A field without the octal escapes for blanks and backslashes.
fn plain(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.first_chunk::<3>().filter(|digits| {
            *first == b'\\' && digits.iter().all(|digit| (b'0'..b'8').contains(digit))
        });
        if let Some(digits) = digits {
            let value = digits
                .iter()
                .fold(0_u16, |value, digit| value * 8 + u16::from(digit - b'0'));
            out.push(u8::try_from(value & 0xff).unwrap_or(0));
            rest = &after[3..];
        } else {
            out.push(*first);
            rest = after;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
90 22 0:50 / /mnt rw,nosuid shared:9 - fuse.cairn node1:/old rw,user_id=0
91 90 0:51 / /mnt rw,nosuid - fuse.cairn node1,node2:/v1 rw,user_id=0
92 22 0:52 / /my\\040mnt rw shared:2 master:3 - fuse.cairn [::1]:/v2/sub rw
93 22 0:53 / /other rw - fuse.cairn node1:/v3 rw
94 93 0:54 / /other rw - tmpfs none rw
broken
";

    #[test]
    fn the_topmost_mount_counts_and_only_one_of_ours() {
        let at = |point: &str| cairn_at(TABLE, Path::new(point)).map(|shown| shown.source);
        assert_eq!(at("/mnt").as_deref(), Some("node1,node2:/v1"));
        assert_eq!(at("/my mnt").as_deref(), Some("[::1]:/v2/sub"));
        assert_eq!(at("/other"), None, "something else covers it");
        assert_eq!(at("/"), None);
        assert_eq!(at("/mnt/below"), None);
    }

    #[test]
    fn a_mount_that_is_bound_elsewhere_is_there_twice() {
        let bound = b"95 22 0:51 /sub /bound rw - fuse.cairn node1,node2:/v1 rw,user_id=0\n";
        let table = [TABLE, bound].concat();
        assert_eq!(times_mounted(&table, "0:51"), 2);
        assert_eq!(times_mounted(&table, "0:5"), 0);
        assert_eq!(times_mounted(&table, "0:52"), 1);
    }

    #[test]
    fn a_mount_is_read_only_where_it_or_its_file_system_is() {
        let shown = |own: &str, system: &str| {
            let line = format!("90 22 0:50 / /mnt {own} shared:9 - fuse.cairn a:/v1 {system}\n");
            cairn_at(line.as_bytes(), Path::new("/mnt")).expect("it is there")
        };
        assert!(!shown("rw,nosuid", "rw,user_id=0").is_read_only());
        assert!(shown("ro,nosuid", "rw,user_id=0").is_read_only());
        assert!(shown("rw,nosuid", "ro,user_id=0").is_read_only());
        let shown = shown("rw,nosuid", "rw,user_id=0");
        assert_eq!(shown.device, "0:50");
        assert_eq!(shown.options, ["rw", "nosuid", "rw", "user_id=0"]);
    }

    #[test]
    fn a_link_to_a_mount_point_is_that_mount_point() {
        let dir = tempfile::tempdir().expect("a directory");
        let real = dir.path().canonicalize().expect("real").join("mnt");
        std::fs::create_dir(&real).expect("made");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&real, &link).expect("a link");
        assert_eq!(real_path(&link), Some(real.clone()));
        assert_eq!(real_path(&dir.path().join("mnt")), Some(real));
    }
}
