//! Where a disk is served: `ADDR:PORT` or `unix:PATH`.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, UnixListener};

use crate::data_dir::restrict_socket;

/// The port of NBD, where an address names none.
const PORT: u16 = 10809;
/// Longest path of a socket (`sun_path`, with its end).
const SOCKET_BYTES_MAX: usize = 107;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// It is no address, as it is not what it says here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub(crate) struct NoAddress {
    text: String,
    expected: &'static str,
}

impl TryFrom<String> for Address {
    type Error = NoAddress;

    fn try_from(text: String) -> Result<Self, NoAddress> {
        let bad = |expected| NoAddress {
            text: text.clone(),
            expected,
        };
        if let Some(path) = text.strip_prefix("unix:") {
            if !path.starts_with('/') || path.len() > SOCKET_BYTES_MAX || path.contains('\0') {
                return Err(bad("the absolute path of a socket, of at most 107 bytes"));
            }
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        let plain = text.parse::<SocketAddr>();
        let parsed = plain.or_else(|_| {
            let host = text.trim_start_matches('[').trim_end_matches(']');
            host.parse().map(|ip| SocketAddr::new(ip, PORT))
        });
        match parsed {
            Ok(address) if address.port() != 0 => Ok(Self::Tcp(address)),
            _ => Err(bad(
                "ADDR:PORT (of this node, IPv6 in brackets) or unix:PATH",
            )),
        }
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A socket that accepts.
pub(super) enum Bound {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Address {
    /// Whether nobody reaches it from another machine.
    pub(crate) fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }

    /// For clients: what they are given.
    pub(crate) fn uri(&self, name: &str, tls: bool) -> String {
        let s = if tls { "s" } else { "" };
        match self {
            Self::Tcp(address) => format!("nbd{s}://{address}/{name}"),
            Self::Unix(path) => format!("nbd{s}+unix:///{name}?socket={}", path.display()),
        }
    }

    /// Begins to listen. A socket that a dead daemon left is replaced; anything else there is not.
    pub(super) async fn bind(&self) -> io::Result<Bound> {
        match self {
            Self::Tcp(address) => Ok(Bound::Tcp(TcpListener::bind(address).await?)),
            Self::Unix(path) => {
                remove_dead(path)?;
                let listener = UnixListener::bind(path)?;
                restrict_socket(path).map_err(io::Error::other)?;
                Ok(Bound::Unix(listener))
            }
        }
    }

    /// Nobody listens there any more.
    pub(super) fn clear(&self) {
        if let Self::Unix(path) = self {
            // A socket that stays is replaced by the next one.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn remove_dead(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt as _;
    let Ok(found) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    let dead = found.file_type().is_socket()
        && std::os::unix::net::UnixStream::connect(path).is_err_and(|error| refused(&error));
    if dead {
        return std::fs::remove_file(path);
    }
    Err(io::ErrorKind::AddrInUse.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<String> {
        Address::try_from(text.to_owned()).ok().map(String::from)
    }

    #[test]
    fn addresses_are_read_as_they_are_written_and_nothing_else_is() {
        for text in ["127.0.0.1:10810", "[::1]:10809", "unix:/run/disk1.sock"] {
            assert_eq!(parse(text).as_deref(), Some(text));
        }
        assert_eq!(parse("192.0.2.1").as_deref(), Some("192.0.2.1:10809"));
        assert_eq!(parse("[::1]").as_deref(), Some("[::1]:10809"));
        let long = format!("unix:/{}", "x".repeat(107));
        for text in [
            "",
            "node1:10809",
            ":10809",
            "127.0.0.1:0",
            "unix:disk1",
            &long,
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn only_loopback_and_sockets_are_out_of_reach_for_other_machines() {
        let local = |text: &str| Address::try_from(text.to_owned()).expect("one").is_local();
        assert!(local("127.3.2.1:1") && local("[::1]:1") && local("unix:/a"));
        assert!(local("[::ffff:127.0.0.1]:1"));
        assert!(!local("0.0.0.0:1") && !local("[::]:1") && !local("192.0.2.1:1"));
    }

    #[tokio::test]
    async fn a_socket_that_is_in_use_or_a_file_is_not_taken_away() {
        let dir = tempfile::tempdir().expect("a directory");
        let address = Address::Unix(dir.path().join("s"));
        let held = address.bind().await.expect("bound");
        assert!(address.bind().await.is_err(), "somebody listens");
        drop(held);
        address.bind().await.expect("a dead one is replaced");
        let file = Address::Unix(dir.path().join("f"));
        std::fs::write(dir.path().join("f"), "mine").expect("written");
        assert!(file.bind().await.is_err());
        assert_eq!(std::fs::read(dir.path().join("f")).expect("there"), b"mine");
    }
}
