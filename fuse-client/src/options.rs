//! What is mounted and how: the source and `-o` of mount(8).

use std::path::PathBuf;
use std::time::Duration;

use rustix::mount::MountFlags;

/// Port of a node where none is given.
pub const PORT: u16 = 7420;
/// How long a mount waits for a node where nothing else is said.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(30);

/// Wrong words of a mount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// The source is not `HOST[:PORT][,HOST…]:/VOLUME[/DIR]`.
    #[error("`{source_text}` does not name a volume")]
    Source {
        /// What was given.
        source_text: String,
    },
    /// A host is not `HOST[:PORT]`.
    #[error("`{host}` is no HOST or HOST:PORT (IPv6 stands in brackets)")]
    Host {
        /// What was given.
        host: String,
    },
    /// An option that does not exist.
    #[error("option `{option}` does not exist")]
    Unknown {
        /// Which.
        option: String,
    },
    /// An option's value is wrong.
    #[error("`{value}` is no value for option `{option}`")]
    Value {
        /// Which.
        option: &'static str,
        /// What was given.
        value: String,
    },
    /// An option that this file system cannot do.
    #[error("option `{option}` is not supported")]
    Unsupported {
        /// Which.
        option: &'static str,
    },
}

/// A volume, and where to ask for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// `host:port`, IPv6 in brackets.
    pub hosts: Vec<String>,
    /// The volume's name.
    pub volume: String,
    /// A directory in it, without slashes at either end; empty: its root.
    pub directory: String,
}

fn host_with_port(host: &str) -> Result<String, OptionError> {
    let bad = || OptionError::Host {
        host: host.to_owned(),
    };
    let port_of = |port: &str| port.parse::<u16>().ok().filter(|p| *p > 0);
    if let Some(rest) = host.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or_else(bad)?;
        address.parse::<std::net::Ipv6Addr>().map_err(|_| bad())?;
        let port = match rest.strip_prefix(':') {
            Some(port) => port_of(port).ok_or_else(bad)?,
            None if rest.is_empty() => PORT,
            None => return Err(bad()),
        };
        return Ok(format!("[{address}]:{port}"));
    }
    let (name, port) = match host.split_once(':') {
        Some((name, port)) => (name, port_of(port).ok_or_else(bad)?),
        None => (host, PORT),
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if name.is_empty() || !name.chars().all(fits) {
        return Err(bad());
    }
    Ok(format!("{name}:{port}"))
}

impl Source {
    /// Reads `HOST[:PORT][,HOST[:PORT]…]:/VOLUME[/DIR]`.
    pub fn parse(text: &str) -> Result<Self, OptionError> {
        let bad = || OptionError::Source {
            source_text: text.to_owned(),
        };
        let (hosts, path) = text.split_once(":/").ok_or_else(bad)?;
        let hosts = hosts
            .split(',')
            .map(host_with_port)
            .collect::<Result<_, _>>()?;
        let (volume, directory) = path.split_once('/').unwrap_or((path, ""));
        if volume.is_empty() {
            return Err(bad());
        }
        Ok(Self {
            hosts,
            volume: volume.to_owned(),
            directory: directory.trim_matches('/').to_owned(),
        })
    }
}

/// How it is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Flags for the kernel.
    pub flags: MountFlags,
    /// A mount of an ordinary user serves every user.
    pub allow_other: bool,
    /// More hosts to begin with, `host:port`.
    pub hosts: Vec<String>,
    /// Where the log goes; none: syslog, or stderr in the foreground.
    pub log_file: Option<PathBuf>,
    /// Longest wait for a node.
    pub mount_timeout: Duration,
    /// Operations fail with EIO once there was no primary for so long; none: they wait.
    pub no_primary_eio: Option<Duration>,
    /// Directory of the local daemon, instead of the one given otherwise.
    pub data_dir: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            flags: MountFlags::empty(),
            allow_other: false,
            hosts: Vec::new(),
            log_file: None,
            mount_timeout: MOUNT_TIMEOUT,
            no_primary_eio: None,
            data_dir: None,
        }
    }
}

/// Words that mean nothing here: for mount(8), fstab and systemd, or the default anyway.
const IGNORED: [&str; 20] = [
    "defaults",
    "_netdev",
    "nofail",
    "noauto",
    "auto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "rw",
    "suid",
    "dev",
    "exec",
    "async",
    "atime",
    "diratime",
    "relatime",
    "loud",
    "nolazytime",
];

fn flag(word: &str) -> Option<(MountFlags, bool)> {
    Some(match word {
        "ro" => (MountFlags::RDONLY, true),
        "nosuid" => (MountFlags::NOSUID, true),
        "nodev" => (MountFlags::NODEV, true),
        "noexec" => (MountFlags::NOEXEC, true),
        "sync" => (MountFlags::SYNCHRONOUS, true),
        "dirsync" => (MountFlags::DIRSYNC, true),
        "noatime" => (MountFlags::NOATIME, true),
        "nodiratime" => (MountFlags::NODIRATIME, true),
        "strictatime" => (MountFlags::STRICTATIME, true),
        "silent" => (MountFlags::SILENT, true),
        "norelatime" | "nostrictatime" => (MountFlags::empty(), true),
        _ => return None,
    })
}

/// The flag that a word takes back.
fn cleared(word: &str) -> MountFlags {
    match word {
        "rw" => MountFlags::RDONLY,
        "suid" => MountFlags::NOSUID,
        "dev" => MountFlags::NODEV,
        "exec" => MountFlags::NOEXEC,
        "async" => MountFlags::SYNCHRONOUS,
        "atime" => MountFlags::NOATIME,
        "diratime" => MountFlags::NODIRATIME,
        _ => MountFlags::empty(),
    }
}

fn seconds(option: &'static str, value: &str) -> Result<Duration, OptionError> {
    let number = value.parse::<f64>().ok();
    number
        .and_then(|s| Duration::try_from_secs_f64(s).ok())
        .ok_or_else(|| OptionError::Value {
            option,
            value: value.to_owned(),
        })
}

impl Options {
    /// Takes the words of one `-o`, separated by commas, over what was said before.
    pub fn take(&mut self, words: &str) -> Result<(), OptionError> {
        words
            .split(',')
            .filter(|word| !word.is_empty())
            .try_for_each(|word| self.take_one(word))
    }

    fn take_one(&mut self, word: &str) -> Result<(), OptionError> {
        if let Some((name, value)) = word.split_once('=') {
            return self.take_value(word, name, value);
        }
        if let Some((flags, _)) = flag(word) {
            self.flags |= flags;
            return Ok(());
        }
        self.flags -= cleared(word);
        match word {
            "allow_other" => self.allow_other = true,
            "remount" => {
                return Err(OptionError::Unsupported { option: "remount" });
            }
            _ if IGNORED.contains(&word) || for_others(word) => {}
            _ => {
                return Err(OptionError::Unknown {
                    option: word.to_owned(),
                });
            }
        }
        Ok(())
    }

    fn take_value(&mut self, word: &str, name: &str, value: &str) -> Result<(), OptionError> {
        match name {
            "log_file" => self.log_file = Some(PathBuf::from(value)),
            "data_dir" => self.data_dir = Some(PathBuf::from(value)),
            "mount_timeout" => self.mount_timeout = seconds("mount_timeout", value)?,
            "no_primary" => {
                self.no_primary_eio = match value.strip_prefix("eio:") {
                    Some(after) => Some(seconds("no_primary", after)?),
                    None if value == "wait" => None,
                    None => {
                        return Err(OptionError::Value {
                            option: "no_primary",
                            value: value.to_owned(),
                        });
                    }
                };
            }
            "backup-volfile-servers" => {
                for host in split_hosts(value) {
                    self.hosts.push(host_with_port(host)?);
                }
            }
            "comment" => {}
            _ if for_others(name) => {}
            _ => {
                return Err(OptionError::Unknown {
                    option: word.to_owned(),
                });
            }
        }
        Ok(())
    }
}

/// `x-systemd.automount` and the like.
fn for_others(word: &str) -> bool {
    word.starts_with("x-") || word.starts_with("X-")
}

/// `H1:H2`, as GlusterFS writes it: colons separate, but not inside brackets. A port cannot be
/// told from a host there, so none is expected outside brackets.
fn split_hosts(text: &str) -> Vec<&str> {
    let mut hosts = Vec::new();
    let mut start = 0;
    let mut depth = 0_u32;
    for (at, c) in text.char_indices() {
        match c {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            ':' if depth == 0 => {
                hosts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    hosts.push(&text[start..]);
    hosts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_names_hosts_volume_and_directory() {
        let source = Source::parse("node1,10.0.0.2:7421,[fe80::1],[::1]:99:/v1/a/b/");
        let hosts = ["node1:7420", "10.0.0.2:7421", "[fe80::1]:7420", "[::1]:99"];
        let expected = Source {
            hosts: hosts.map(str::to_owned).to_vec(),
            volume: "v1".to_owned(),
            directory: "a/b".to_owned(),
        };
        assert_eq!(source, Ok(expected));
        for bad in [
            "v1",
            "node1:v1",
            ":/v1",
            "node1:/",
            "a,,b:/v1",
            "::1:/v1",
            "[::1:/v1",
            "n:0:/v1",
            "n:70000:/v1",
            "a b:/v1",
        ] {
            assert!(Source::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn known_options_are_taken_and_unknown_ones_named() {
        let mut options = Options::default();
        let words = "defaults,_netdev,ro,noatime,x-systemd.automount,mount_timeout=5,\
                     no_primary=eio:1.5,backup-volfile-servers=n1:[::1]:n2,log_file=/l";
        options.take(words).expect("all are known");
        assert_eq!(options.flags, MountFlags::RDONLY | MountFlags::NOATIME);
        assert_eq!(options.mount_timeout, Duration::from_secs(5));
        assert_eq!(options.no_primary_eio, Some(Duration::from_millis(1500)));
        assert_eq!(options.hosts, ["n1:7420", "[::1]:7420", "n2:7420"]);
        options.take("rw").expect("known");
        assert_eq!(options.flags, MountFlags::NOATIME);
        for (word, named) in [("speed", "speed"), ("rw,color=red", "color=red")] {
            let error = Options::default().take(word).expect_err("unknown");
            assert!(error.to_string().contains(named), "{error}");
        }
        assert!(Options::default().take("remount").is_err());
        assert!(Options::default().take("no_primary=later").is_err());
        assert!(Options::default().take("mount_timeout=-1").is_err());
    }
}
