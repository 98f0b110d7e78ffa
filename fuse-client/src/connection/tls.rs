//! TLS over TCP. The connection's state stands under a lock that is never held while waiting, so
//! that one thread can receive while others send.

use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::net::{Shutdown, shutdown};
use rustls::{ClientConfig, ClientConnection};
use rustls_pki_types::ServerName;

use super::plain::{receive, send_now, set_receive_timeout, wait_writable};
use super::{CONNECT_TIMEOUT, Connection};

/// Plain bytes that are taken before they are sent.
const BUFFER_BYTES_MAX: usize = 2 << 20;
/// Cipher bytes received at once.
const RECEIVE_BYTES: usize = 256 << 10;
/// The name in the handshake: identities are pinned keys, names mean nothing.
const SERVER_NAME: &str = "cairn";

/// A TLS connection.
pub struct Tls {
    fd: OwnedFd,
    state: Mutex<ClientConnection>,
    /// Only the receiving thread takes it.
    cipher: Mutex<Cipher>,
}

/// Bytes that were received and not decrypted yet, from `at` on.
struct Cipher {
    bytes: Vec<u8>,
    at: usize,
}

/// Writes to the socket without waiting.
struct Now<'a>(&'a OwnedFd);

impl Write for Now<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match send_now(self.0, parts)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            sent => Ok(sent),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Tls {
    /// The certificate that the node showed.
    pub(super) fn peer_certificate(&self) -> io::Result<Vec<u8>> {
        let state = self.state.lock();
        let shown = state.peer_certificates().and_then(<[_]>::first);
        let shown = shown.ok_or(io::ErrorKind::InvalidData)?;
        Ok(shown.to_vec())
    }

    /// Shakes hands over a stream whose preamble was sent.
    pub fn handshake(mut stream: TcpStream, config: Arc<ClientConfig>) -> io::Result<Self> {
        let name = ServerName::try_from(SERVER_NAME).expect("a valid name");
        let mut state = ClientConnection::new(config, name).map_err(io::Error::other)?;
        stream.set_read_timeout(Some(CONNECT_TIMEOUT))?;
        stream.set_write_timeout(Some(CONNECT_TIMEOUT))?;
        while state.is_handshaking() {
            state.complete_io(&mut stream)?;
        }
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        state.set_buffer_limit(Some(BUFFER_BYTES_MAX));
        Ok(Self {
            fd: stream.into(),
            state: Mutex::new(state),
            cipher: Mutex::new(Cipher {
                bytes: Vec::with_capacity(RECEIVE_BYTES),
                at: 0,
            }),
        })
    }

    fn push(&self, state: &mut ClientConnection) -> io::Result<bool> {
        while state.wants_write() {
            match state.write_tls(&mut Now(&self.fd)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Moves plain bytes that were decrypted to `into`. `None`: there are none yet.
    fn take_plain(state: &mut ClientConnection, into: &mut Vec<u8>) -> io::Result<Option<usize>> {
        let room = into.capacity() - into.len();
        let before = into.len();
        match state.reader().take(room as u64).read_to_end(into) {
            Ok(_) if into.len() == before => Ok(Some(0)),
            Ok(taken) => Ok(Some(taken)),
            // What came before the gap was appended.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let taken = into.len() - before;
                Ok((taken > 0).then_some(taken))
            }
            Err(error) => Err(error),
        }
    }
}

impl Connection for Tls {
    fn try_send(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut state = self.state.lock();
        let mut taken = 0;
        for part in parts {
            let mut rest = &part[..];
            while !rest.is_empty() {
                let n = state.writer().write(rest)?;
                taken += n;
                rest = &rest[n..];
                // Full: empty it into the socket; if that takes nothing either, wait.
                if n == 0 {
                    let before = state.wants_write();
                    let gone = self.push(&mut state)?;
                    if !gone || !before {
                        return Ok(taken);
                    }
                }
            }
        }
        self.push(&mut state)?;
        Ok(taken)
    }

    fn flush(&self) -> io::Result<bool> {
        self.push(&mut self.state.lock())
    }

    fn wait_writable(&self) -> io::Result<()> {
        wait_writable(&self.fd)
    }

    fn receive(&self, into: &mut Vec<u8>) -> io::Result<usize> {
        let mut cipher = self.cipher.lock();
        loop {
            {
                let mut state = self.state.lock();
                if let Some(taken) = Self::take_plain(&mut state, into)? {
                    return Ok(taken);
                }
                // What was received but did not fit the decoder goes in now.
                let mut rest = &cipher.bytes[cipher.at..];
                while !rest.is_empty() {
                    if state.read_tls(&mut rest)? == 0 {
                        break;
                    }
                    state.process_new_packets().map_err(io::Error::other)?;
                    self.push(&mut state)?;
                    if !state.wants_read() {
                        break;
                    }
                }
                let left = rest.len();
                cipher.at = cipher.bytes.len() - left;
                if let Some(taken) = Self::take_plain(&mut state, into)? {
                    return Ok(taken);
                }
            }
            if cipher.at == cipher.bytes.len() {
                cipher.bytes.clear();
                cipher.at = 0;
                if receive(&self.fd, &mut cipher.bytes)? == 0 {
                    return Ok(0);
                }
            }
        }
    }

    fn set_receive_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        set_receive_timeout(&self.fd, timeout)
    }

    fn shutdown(&self) {
        // It may be down already.
        let _ = shutdown(&self.fd, Shutdown::Both);
    }

    fn carrier(&self) -> &'static str {
        "tls"
    }
}
