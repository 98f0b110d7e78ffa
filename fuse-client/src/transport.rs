//! How requests come from the kernel and replies go back.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;

use crate::abi::{REQUEST_BYTES_MAX, out_header};

/// A way to the kernel. Several threads may receive at once.
pub trait Transport: Send + Sync {
    /// Waits for a request and puts it into `buffer`, which was empty. False: unmounted.
    fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<bool>;

    /// Answers a request; `errno` 0 is success. A request that the kernel has given up is no
    /// error.
    fn reply(&self, unique: u64, errno: i32, body: &[&[u8]]) -> io::Result<()>;

    /// Tells the kernel something that it did not ask for. False: it does not know the node.
    fn notify(&self, code: i32, body: &[&[u8]]) -> io::Result<bool>;
}

/// `/dev/fuse`, read by several threads through one descriptor: cloning it for each thread needs
/// an ioctl and with it unsafe code, for contention that a few threads do not have.
#[derive(Debug)]
pub struct Device {
    fd: OwnedFd,
}

impl Device {
    /// Over a descriptor that a file system is mounted with.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// False: what it is about is gone.
    fn send(&self, header: &[u8], body: &[&[u8]]) -> io::Result<bool> {
        let mut parts = [IoSlice::new(header), IoSlice::new(&[]), IoSlice::new(&[])];
        assert!(body.len() < parts.len(), "replies have at most two parts");
        for (part, bytes) in parts[1..].iter_mut().zip(body) {
            *part = IoSlice::new(bytes);
        }
        match rustix::io::writev(&self.fd, &parts[..=body.len()]) {
            Ok(_) => Ok(true),
            // Aborted, or unmounted; or the kernel has no such node.
            Err(Errno::NOENT | Errno::NODEV) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Transport for Device {
    fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<bool> {
        buffer.reserve(REQUEST_BYTES_MAX);
        loop {
            match rustix::io::read(&self.fd, spare_capacity(buffer)) {
                Ok(0) | Err(Errno::NODEV) => return Ok(false),
                Ok(_) => return Ok(true),
                // ENOENT: the request was taken back while it was being read.
                Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn reply(&self, unique: u64, errno: i32, body: &[&[u8]]) -> io::Result<()> {
        let bytes = body.iter().map(|part| part.len()).sum();
        self.send(&out_header(unique, errno, bytes), body)?;
        Ok(())
    }

    fn notify(&self, code: i32, body: &[&[u8]]) -> io::Result<bool> {
        let bytes = body.iter().map(|part| part.len()).sum();
        // A notification is a reply to nothing, its code in place of the error.
        self.send(&out_header(0, -code, bytes), body)
    }
}
