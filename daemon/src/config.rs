//! The daemon's settings: from flags, then from the file, then defaults.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// The port between machines.
pub const PORT: u16 = 7420;
/// The HTTP port.
pub const HTTP_PORT: u16 = 7421;
/// Where the settings are read from when no file is named.
pub const CONFIG_FILE: &str = "/etc/cairn/cairnd.toml";

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the kernel says.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{path}: {source}")]
    Parse {
        /// Which.
        path: PathBuf,
        /// What the parser says.
        source: Box<toml::de::Error>,
    },
    /// An address that is none.
    #[error("`{text}` is not {expected}")]
    Address {
        /// What was given.
        text: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A name that is none.
    #[error(
        "`{name}` cannot be a node's name: 1 to 64 of A-Z a-z 0-9 . _ : -, beginning with a letter or digit"
    )]
    Name {
        /// What was given.
        name: String,
    },
}

/// Settings as written: each key of the file is also a flag.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RawConfig {
    /// Name in the pool.
    pub name: Option<String>,
    /// ADDR or ADDR:PORT.
    pub listen: Option<String>,
    /// HOST or HOST:PORT that others are told.
    pub advertise: Option<String>,
    /// ADDR:PORT or `off`.
    pub http: Option<String>,
    /// Whether everything is served by HTTP beyond loopback, too.
    pub http_full: Option<bool>,
}

/// Settings in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DaemonConfig {
    /// The daemon's directory.
    pub data_dir: PathBuf,
    /// Name in the pool.
    pub name: String,
    /// Where to listen.
    pub listen: SocketAddr,
    /// What others are told; absent: as they call this node.
    pub advertise: Option<String>,
    /// Where to serve HTTP.
    pub http: Option<SocketAddr>,
    /// Whether everything is served by HTTP beyond loopback, too.
    pub http_full: bool,
}

impl RawConfig {
    /// Reads the file. A missing default file is an empty one.
    pub fn read(path: Option<&Path>) -> Result<Self, ConfigError> {
        let (path, required) = match path {
            Some(path) => (path, true),
            None => (Path::new(CONFIG_FILE), false),
        };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if !required && error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(source) => {
                return Err(ConfigError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    /// These settings, with those of `file` where they say nothing.
    #[must_use]
    pub fn or(self, file: Self) -> Self {
        Self {
            name: self.name.or(file.name),
            listen: self.listen.or(file.listen),
            advertise: self.advertise.or(file.advertise),
            http: self.http.or(file.http),
            http_full: self.http_full.or(file.http_full),
        }
    }

    /// Checks everything and fills in the defaults.
    pub fn resolve(self, data_dir: &Path) -> Result<DaemonConfig, ConfigError> {
        let listen = match &self.listen {
            Some(text) => parse_listen(text)?,
            None => SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), PORT),
        };
        let name = self.name.unwrap_or_else(|| default_name(listen.ip()));
        check_name(&name)?;
        let advertise = match self.advertise {
            Some(text) => Some(with_port(&text)?),
            None if listen.ip().is_unspecified() || listen.port() == 0 => None,
            None => Some(listen.to_string()),
        };
        let http = match self.http.as_deref() {
            None => Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), HTTP_PORT)),
            Some("off") => None,
            Some(text) => Some(text.parse().map_err(|_| ConfigError::Address {
                text: text.to_owned(),
                expected: "ADDR:PORT or `off`",
            })?),
        };
        Ok(DaemonConfig {
            data_dir: data_dir.to_owned(),
            name,
            listen,
            advertise,
            http,
            http_full: self.http_full.unwrap_or(false),
        })
    }
}

fn default_name(listen: IpAddr) -> String {
    if listen.is_loopback() {
        return listen.to_string();
    }
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .split('.')
        .next()
        .unwrap_or_default()
        .to_owned()
}

fn check_name(name: &str) -> Result<(), ConfigError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._:-".contains(c);
    let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == ':');
    if name.len() <= 64 && begins && name.chars().all(allowed) {
        return Ok(());
    }
    Err(ConfigError::Name {
        name: name.to_owned(),
    })
}

fn parse_listen(text: &str) -> Result<SocketAddr, ConfigError> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        Ok(ip) => Ok(SocketAddr::new(ip, PORT)),
        Err(_) => Err(ConfigError::Address {
            text: text.to_owned(),
            expected: "ADDR or ADDR:PORT",
        }),
    }
}

/// HOST:PORT of HOST or HOST:PORT; IPv6 with or without brackets.
pub fn with_port(text: &str) -> Result<String, ConfigError> {
    let bad = || ConfigError::Address {
        text: text.to_owned(),
        expected: "HOST or HOST:PORT",
    };
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address.to_string());
    }
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, PORT).to_string());
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse::<u16>().map_err(|_| bad())?),
        None => (text, PORT),
    };
    let host_ok = !host.is_empty()
        && host.len() <= 253
        && host
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    if !host_ok || port == 0 {
        return Err(bad());
    }
    Ok(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(raw: RawConfig) -> Result<DaemonConfig, ConfigError> {
        raw.resolve(Path::new("/data"))
    }

    #[test]
    fn a_loopback_node_is_named_and_told_by_its_address() {
        let config = resolve(RawConfig {
            listen: Some("127.0.0.2".to_owned()),
            ..RawConfig::default()
        })
        .expect("valid");
        assert_eq!(config.name, "127.0.0.2");
        assert_eq!(config.advertise.as_deref(), Some("127.0.0.2:7420"));
        assert_eq!(config.http.map(|http| http.port()), Some(7421));
    }

    #[test]
    fn a_flag_comes_before_the_file_and_the_file_before_the_default() {
        let flags = RawConfig {
            name: Some("flag".to_owned()),
            ..RawConfig::default()
        };
        let file: RawConfig = toml::from_str("name = \"file\"\nhttp = \"off\"\n").expect("valid");
        let config = resolve(flags.or(file)).expect("valid");
        assert_eq!(config.name, "flag");
        assert_eq!(config.http, None);
        assert_eq!(config.advertise, None);
        assert!(toml::from_str::<RawConfig>("nmae = \"x\"").is_err());
    }

    #[test]
    fn addresses_take_the_port_where_none_is_said() {
        for (text, expected) in [
            ("node2", "node2:7420"),
            ("node2:99", "node2:99"),
            ("192.0.2.1", "192.0.2.1:7420"),
            ("fd00::1", "[fd00::1]:7420"),
            ("[fd00::1]", "[fd00::1]:7420"),
            ("[fd00::1]:5", "[fd00::1]:5"),
        ] {
            assert_eq!(with_port(text).expect("valid"), expected);
        }
        for bad in ["", ":1", "a b", "node:0", "node:x", "no/de"] {
            assert!(with_port(bad).is_err(), "{bad}");
        }
    }
}
