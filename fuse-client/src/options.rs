//! What a mount is asked for: `HOST[:PORT][,HOST…]:/VOL[/subdir]` and `-o` options.

use std::path::PathBuf;
use std::time::Duration;

use crate::session::leases::{CACHE_BYTES, CACHE_BYTES_MIN};

/// The port where none is given.
const PORT: u16 = 7420;
/// Longest time that makes sense in an option.
const SECONDS_MAX: u64 = 24 * 3600;

/// More is a mistake in typing.
const CACHE_BYTES_MAX: u64 = 64 << 30;

/// Every option, for the hint on an unknown one.
const KNOWN: [&str; 41] = [
    "acl",
    "allow_other",
    "async",
    "atime",
    "auto",
    "backup-volfile-servers",
    "cache-size",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "group",
    "lazytime",
    "log-file",
    "log_file",
    "mount_timeout",
    "no_primary",
    "noatime",
    "noauto",
    "nodev",
    "nodiratime",
    "noexec",
    "nofail",
    "nogroup",
    "nolazytime",
    "noowner",
    "norelatime",
    "nosuid",
    "nouser",
    "nousers",
    "owner",
    "relatime",
    "remount",
    "ro",
    "rw",
    "suid",
    "sync",
    "user",
    "users",
    "_netdev",
];

/// Why what was typed makes no mount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// The source has no volume.
    #[error("`{0}` is not HOST[:PORT][,HOST…]:/VOLUME[/subdir]")]
    Source(String),
    /// An option that does not exist.
    #[error("there is no mount option `{option}`; the nearest one is `{nearest}`")]
    Unknown {
        /// What was given.
        option: String,
        /// What may have been meant.
        nearest: &'static str,
    },
    /// A value that does not fit its option.
    #[error("`{value}` does not fit the mount option `{option}`: it wants {wants}")]
    Value {
        /// Which.
        option: String,
        /// What was given.
        value: String,
        /// What it wants.
        wants: &'static str,
    },
}

/// Flags for the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct MountFlagsWanted {
    pub(crate) read_only: bool,
    pub(crate) nosuid: bool,
    pub(crate) nodev: bool,
    pub(crate) noexec: bool,
    pub(crate) noatime: bool,
    pub(crate) sync: bool,
    pub(crate) allow_other: bool,
}

/// A checked request for a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountRequest {
    pub(crate) source: String,
    pub(crate) hosts: Vec<String>,
    pub(crate) volume: String,
    pub(crate) subdir: Vec<u8>,
    pub(crate) flags: MountFlagsWanted,
    pub(crate) log_file: Option<PathBuf>,
    pub(crate) mount_timeout: Duration,
    pub(crate) no_primary_eio: Option<Duration>,
    pub(crate) cache_bytes: u64,
}

impl MountRequest {
    /// Reads source and options. Later options win.
    pub(crate) fn parse(source: &str, options: &[String], root: bool) -> Result<Self, OptionError> {
        let flags = MountFlagsWanted {
            allow_other: root,
            ..MountFlagsWanted::default()
        };
        Self::parse_over(flags, source, options)
    }

    /// The same, with these flags where no option says otherwise.
    pub(crate) fn parse_over(
        flags: MountFlagsWanted,
        source: &str,
        options: &[String],
    ) -> Result<Self, OptionError> {
        let (hosts, volume, subdir) = parse_source(source)?;
        let mut request = Self {
            source: source.to_owned(),
            hosts,
            volume,
            subdir,
            flags,
            log_file: None,
            mount_timeout: Duration::from_secs(30),
            no_primary_eio: None,
            cache_bytes: CACHE_BYTES,
        };
        for option in options
            .iter()
            .flat_map(|o| o.split(','))
            .filter(|o| !o.is_empty())
        {
            request.option(option)?;
        }
        Ok(request)
    }

    fn option(&mut self, option: &str) -> Result<(), OptionError> {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let flags = &mut self.flags;
        match name {
            "acl" | "remount" | "defaults" | "_netdev" | "nofail" | "noauto" | "auto"
            | "norelatime" | "diratime" | "nodiratime" | "lazytime" | "nolazytime" | "dirsync"
            | "user" | "nouser" | "users" | "nousers" | "owner" | "noowner" | "group"
            | "nogroup" => {}
            _ if name.starts_with("x-") => {}
            "ro" => flags.read_only = true,
            "rw" => flags.read_only = false,
            "suid" => flags.nosuid = false,
            "nosuid" => flags.nosuid = true,
            "dev" => flags.nodev = false,
            "nodev" => flags.nodev = true,
            "exec" => flags.noexec = false,
            "noexec" => flags.noexec = true,
            "noatime" => flags.noatime = true,
            "atime" | "relatime" => flags.noatime = false,
            "sync" => flags.sync = true,
            "async" => flags.sync = false,
            "allow_other" => flags.allow_other = true,
            "log_file" | "log-file" => self.log_file = Some(PathBuf::from(value)),
            "mount_timeout" => self.mount_timeout = seconds(name, value)?,
            "cache-size" => {
                let bytes = protocol::options::parse_size(value);
                let bytes =
                    bytes.filter(|bytes| (CACHE_BYTES_MIN..=CACHE_BYTES_MAX).contains(bytes));
                self.cache_bytes = bytes.ok_or_else(|| OptionError::Value {
                    option: name.to_owned(),
                    value: value.to_owned(),
                    wants: "a size from 1M to 64G, as 256M",
                })?;
            }
            "no_primary" => {
                let time = value
                    .strip_prefix("eio:")
                    .ok_or_else(|| OptionError::Value {
                        option: name.to_owned(),
                        value: value.to_owned(),
                        wants: "eio:SECONDS",
                    })?;
                self.no_primary_eio = Some(seconds(name, time)?);
            }
            "backup-volfile-servers" => {
                for host in value.split(':').filter(|host| !host.is_empty()) {
                    self.hosts.push(with_port(host));
                }
            }
            _ => {
                let nearest = nearest(name);
                return Err(OptionError::Unknown {
                    option: name.to_owned(),
                    nearest,
                });
            }
        }
        Ok(())
    }
}

fn seconds(option: &str, value: &str) -> Result<Duration, OptionError> {
    match value.parse::<u64>() {
        Ok(seconds) if seconds <= SECONDS_MAX => Ok(Duration::from_secs(seconds)),
        _ => Err(OptionError::Value {
            option: option.to_owned(),
            value: value.to_owned(),
            wants: "a number of seconds, at most a day",
        }),
    }
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`.
fn with_port(host: &str) -> String {
    let has_port = match host.rfind(']') {
        Some(end) => host[end..].contains(':'),
        None => host.contains(':'),
    };
    if has_port {
        host.to_owned()
    } else {
        format!("{host}:{PORT}")
    }
}

type Source = (Vec<String>, String, Vec<u8>);

fn parse_source(source: &str) -> Result<Source, OptionError> {
    let bad = || OptionError::Source(source.to_owned());
    let (hosts, path) = source.split_once(":/").ok_or_else(bad)?;
    let hosts: Vec<_> = hosts
        .split(',')
        .filter(|h| !h.is_empty())
        .map(with_port)
        .collect();
    let path = path.trim_start_matches('/');
    let (volume, subdir) = path.split_once('/').unwrap_or((path, ""));
    if hosts.is_empty() || volume.is_empty() {
        return Err(bad());
    }
    Ok((hosts, volume.to_owned(), subdir.as_bytes().to_vec()))
}

/// The known option that takes the fewest changes of letters.
fn nearest(name: &str) -> &'static str {
    KNOWN
        .into_iter()
        .min_by_key(|known| distance(name, known))
        .unwrap_or("defaults")
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut before = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let change = before + usize::from(x != y);
            before = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(before + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(source: &str, options: &str) -> Result<MountRequest, OptionError> {
        MountRequest::parse(source, &[options.to_owned()], true)
    }

    #[test]
    fn hosts_get_the_port_and_ipv6_stays_in_brackets() {
        let request = parse("node1,node2:7500,[2001:db8::1],[::1]:9:/v1/a/b", "").expect("fits");
        assert_eq!(
            request.hosts,
            ["node1:7420", "node2:7500", "[2001:db8::1]:7420", "[::1]:9"]
        );
        assert_eq!(
            (request.volume.as_str(), &request.subdir[..]),
            ("v1", &b"a/b"[..])
        );
    }

    #[test]
    fn sources_without_volume_or_host_are_refused() {
        for source in ["node1", "node1:/", ":/v1", "node1:v1", ""] {
            assert_eq!(
                parse(source, ""),
                Err(OptionError::Source(source.to_owned()))
            );
        }
    }

    #[test]
    fn an_fstab_line_with_generic_options_is_taken() {
        let line =
            "defaults,_netdev,nofail,noatime,x-systemd.automount,ro,backup-volfile-servers=b:c";
        let request = parse("a:/v1", line).expect("fits");
        assert!(request.flags.read_only && request.flags.noatime && request.flags.allow_other);
        assert_eq!(request.hosts, ["a:7420", "b:7420", "c:7420"]);
    }

    #[test]
    fn an_unknown_option_is_refused_by_name_with_the_nearest_one() {
        let refused = parse("a:/v1", "noatim").expect_err("there is none");
        assert_eq!(
            refused,
            OptionError::Unknown {
                option: "noatim".to_owned(),
                nearest: "noatime"
            }
        );
        assert!(matches!(
            parse("a:/v1", "mount_timeout=soon"),
            Err(OptionError::Value { .. })
        ));
        for size in ["", "1", "64", "65G", "much"] {
            let option = format!("cache-size={size}");
            assert!(matches!(
                parse("a:/v1", &option),
                Err(OptionError::Value { .. })
            ));
        }
        let small = parse("a:/v1", "cache-size=8M").expect("it fits");
        assert_eq!(small.cache_bytes, 8 << 20);
        assert!(matches!(
            parse("a:/v1", "no_primary=5"),
            Err(OptionError::Value { .. })
        ));
    }
}
