//! A socket as it is: a Unix socket to a daemon on the same machine.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recv, sendmsg, shutdown, sockopt,
};

use super::Connection;

/// Bytes that the kernel may hold for the socket each way: a read of 1 MiB in few pieces.
const SOCKET_BUFFER_BYTES: usize = 2 << 20;

/// A socket as it is.
#[derive(Debug)]
pub struct Plain {
    fd: OwnedFd,
}

impl Plain {
    /// Over a connected Unix socket.
    #[must_use]
    pub fn unix(stream: UnixStream) -> Self {
        let fd = OwnedFd::from(stream);
        // Only a matter of speed: the kernel's limit may be lower.
        let _ = sockopt::set_socket_send_buffer_size(&fd, SOCKET_BUFFER_BYTES);
        let _ = sockopt::set_socket_recv_buffer_size(&fd, SOCKET_BUFFER_BYTES);
        Self { fd }
    }
}

/// Sends without waiting; 0 where nothing fits.
pub(super) fn send_now(fd: &OwnedFd, parts: &[IoSlice<'_>]) -> io::Result<usize> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    loop {
        match sendmsg(fd, parts, &mut SendAncillaryBuffer::default(), flags) {
            Ok(sent) => return Ok(sent),
            Err(Errno::AGAIN) => return Ok(0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

pub(super) fn wait_writable(fd: &OwnedFd) -> io::Result<()> {
    loop {
        match poll(&mut [PollFd::new(fd, PollFlags::OUT)], None) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

pub(super) fn receive(fd: &OwnedFd, into: &mut Vec<u8>) -> io::Result<usize> {
    loop {
        match recv(fd, spare_capacity(into), RecvFlags::empty()) {
            Ok((received, _)) => return Ok(received),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(error) => return Err(error.into()),
        }
    }
}

pub(super) fn set_receive_timeout(fd: &OwnedFd, timeout: Option<Duration>) -> io::Result<()> {
    sockopt::set_socket_timeout(fd, sockopt::Timeout::Recv, timeout)?;
    Ok(())
}

impl Connection for Plain {
    fn try_send(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        send_now(&self.fd, parts)
    }

    fn flush(&self) -> io::Result<bool> {
        Ok(true)
    }

    fn wait_writable(&self) -> io::Result<()> {
        wait_writable(&self.fd)
    }

    fn receive(&self, into: &mut Vec<u8>) -> io::Result<usize> {
        receive(&self.fd, into)
    }

    fn set_receive_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        set_receive_timeout(&self.fd, timeout)
    }

    fn shutdown(&self) {
        // It may be down already.
        let _ = shutdown(&self.fd, Shutdown::Both);
    }

    fn carrier(&self) -> &'static str {
        "unix socket"
    }
}
