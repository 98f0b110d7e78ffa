//! The kernel's FUSE interface: numbers, what arrives, what is sent back.
//!
//! Fields are in the machine's byte order. Cairn's targets are little-endian, which this module
//! relies on, so that everything in the project is written one way.

#[cfg(not(target_endian = "little"))]
compile_error!("the FUSE interface is written here for little-endian machines");

use std::time::Duration;

use protocol::fs::Attributes;
use protocol::units::Timestamp;

use crate::session::leases::Fresh;

/// Interface version that is spoken: 7.45, down to [`MINOR_MIN`].
pub(crate) const MAJOR: u32 = 7;
pub(crate) const MINOR: u32 = 45;
/// Linux 5.4, the first with everything that is needed here.
pub(crate) const MINOR_MIN: u32 = 31;
/// Node id of the mount's root.
pub(crate) const ROOT_ID: u64 = 1;
/// Bytes of a request's header.
pub(crate) const IN_HEADER_BYTES: usize = 40;
/// Bytes of a reply's header.
pub(crate) const OUT_HEADER_BYTES: usize = 16;
/// Bytes of a write request before its data.
pub(crate) const WRITE_HEADER_BYTES: usize = IN_HEADER_BYTES + 40;
/// Room for a request: the longest write and its headers, and some for long names.
pub(crate) const REQUEST_BYTES_MAX: usize = (1 << 20) + 8192;

macro_rules! opcodes {
    ($($name:ident = $value:literal),* $(,)?) => {
        /// What the kernel asks for.
        pub(crate) mod opcode {
            $(pub(crate) const $name: u32 = $value;)*
        }
    };
}

opcodes! {
    LOOKUP = 1, FORGET = 2, GETATTR = 3, SETATTR = 4, READLINK = 5, SYMLINK = 6, MKNOD = 8,
    MKDIR = 9, UNLINK = 10, RMDIR = 11, RENAME = 12, LINK = 13, OPEN = 14, READ = 15, WRITE = 16,
    STATFS = 17, RELEASE = 18, FSYNC = 20, SETXATTR = 21, GETXATTR = 22, LISTXATTR = 23,
    REMOVEXATTR = 24, FLUSH = 25, INIT = 26, OPENDIR = 27, READDIR = 28, RELEASEDIR = 29,
    FSYNCDIR = 30, GETLK = 31, SETLK = 32, SETLKW = 33, CREATE = 35, INTERRUPT = 36, DESTROY = 38, BATCH_FORGET = 42, FALLOCATE = 43,
    READDIRPLUS = 44, RENAME2 = 45, LSEEK = 46, COPY_FILE_RANGE = 47, SYNCFS = 50, TMPFILE = 51, STATX = 52,
    COPY_FILE_RANGE_64 = 53,
}

/// Tells the kernel that what it keeps of a node is old (linux/fuse.h, fuse_notify_code).
pub(crate) const NOTIFY_INVAL_INODE: i32 = 2;

/// INIT flags.
pub(crate) mod init {
    pub(crate) const ASYNC_READ: u64 = 1 << 0;
    pub(crate) const POSIX_LOCKS: u64 = 1 << 1;
    pub(crate) const BIG_WRITES: u64 = 1 << 5;
    pub(crate) const DONT_MASK: u64 = 1 << 6;
    pub(crate) const FLOCK_LOCKS: u64 = 1 << 10;
    pub(crate) const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub(crate) const DO_READDIRPLUS: u64 = 1 << 13;
    pub(crate) const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub(crate) const ASYNC_DIO: u64 = 1 << 15;
    pub(crate) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(crate) const POSIX_ACL: u64 = 1 << 20;
    pub(crate) const MAX_PAGES: u64 = 1 << 22;
    pub(crate) const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub(crate) const SETXATTR_EXT: u64 = 1 << 29;
    pub(crate) const INIT_EXT: u64 = 1 << 30;
    pub(crate) const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
}

/// SETATTR's `valid` bits.
pub(crate) mod set {
    pub(crate) const MODE: u32 = 1 << 0;
    pub(crate) const UID: u32 = 1 << 1;
    pub(crate) const GID: u32 = 1 << 2;
    pub(crate) const SIZE: u32 = 1 << 3;
    pub(crate) const ATIME: u32 = 1 << 4;
    pub(crate) const MTIME: u32 = 1 << 5;
    /// Through an open file, which is named.
    pub(crate) const HANDLE: u32 = 1 << 6;
    pub(crate) const ATIME_NOW: u32 = 1 << 7;
    pub(crate) const MTIME_NOW: u32 = 1 << 8;
    pub(crate) const KILL_SUIDGID: u32 = 1 << 11;
}

/// OPEN's reply flags.
pub(crate) mod open {
    pub(crate) const DIRECT_IO: u32 = 1 << 0;
    pub(crate) const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
}

/// WRITE's flags.
pub(crate) mod write {
    pub(crate) const CACHE: u32 = 1 << 0;
    pub(crate) const KILL_SUIDGID: u32 = 1 << 2;
}

/// SETXATTR's flag of an access ACL that takes set-group-id away.
pub(crate) const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;

/// Kinds of locks, and the flag of those of flock(2).
pub(crate) mod lk {
    pub(crate) const SHARED: u32 = 0;
    pub(crate) const EXCLUSIVE: u32 = 1;
    pub(crate) const NONE: u32 = 2;
    pub(crate) const FLOCK: u32 = 1 << 0;
}

/// A request's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InHeader {
    pub(crate) opcode: u32,
    pub(crate) unique: u64,
    pub(crate) node: u64,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The thread, not the process; 0 where it is none that the mount could see.
    pub(crate) thread: u32,
}

/// The kernel sent something shorter than its own interface says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a request of the kernel ends too early")]
pub(crate) struct ShortRequest;

/// Takes fields from the front of a request's body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], ShortRequest> {
        let (first, rest) = self.rest.split_first_chunk().ok_or(ShortRequest)?;
        self.rest = rest;
        Ok(*first)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, ShortRequest> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, ShortRequest> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    pub(crate) fn skip(&mut self, bytes: usize) -> Result<(), ShortRequest> {
        self.rest = self.rest.get(bytes..).ok_or(ShortRequest)?;
        Ok(())
    }

    /// Bytes up to a NUL, which goes with them.
    pub(crate) fn name(&mut self) -> Result<&'a [u8], ShortRequest> {
        let end = self.rest.iter().position(|byte| *byte == 0);
        let end = end.ok_or(ShortRequest)?;
        let name = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        Ok(name)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'a [u8], ShortRequest> {
        let (bytes, rest) = self.rest.split_at_checked(len).ok_or(ShortRequest)?;
        self.rest = rest;
        Ok(bytes)
    }
}

impl InHeader {
    pub(crate) fn decode(request: &[u8]) -> Result<Self, ShortRequest> {
        let mut f = Fields::new(request.get(..IN_HEADER_BYTES).ok_or(ShortRequest)?);
        let len = f.u32()?;
        if len as usize != request.len() {
            return Err(ShortRequest);
        }
        Ok(Self {
            opcode: f.u32()?,
            unique: f.u64()?,
            node: f.u64()?,
            uid: f.u32()?,
            gid: f.u32()?,
            thread: f.u32()?,
        })
    }
}

/// A reply's header. `errno` 0 is success.
pub(crate) fn out_header(unique: u64, errno: i32, body_bytes: usize) -> [u8; OUT_HEADER_BYTES] {
    let len = u32::try_from(OUT_HEADER_BYTES + body_bytes).expect("replies are below 2 MiB");
    let mut header = [0; OUT_HEADER_BYTES];
    header[..4].copy_from_slice(&len.to_le_bytes());
    header[4..8].copy_from_slice(&(-errno).to_le_bytes());
    header[8..].copy_from_slice(&unique.to_le_bytes());
    header
}

/// Builds a reply's body.
#[derive(Debug, Default)]
pub(crate) struct Body(pub(crate) Vec<u8>);

impl Body {
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(crate) fn zeros(&mut self, bytes: usize) -> &mut Self {
        self.0.resize(self.0.len() + bytes, 0);
        self
    }

    fn attributes(&mut self, a: &Attributes) -> &mut Self {
        let (atime, mtime, ctime) = (split(a.atime), split(a.mtime), split(a.ctime));
        self.u64(a.object.0).u64(a.size).u64(a.blocks);
        self.u64(atime.0).u64(mtime.0).u64(ctime.0);
        self.u32(atime.1).u32(mtime.1).u32(ctime.1);
        self.u32(a.mode).u32(a.nlink).u32(a.uid).u32(a.gid);
        // Then flags.
        self.u32(a.rdev).u32(BLOCK_BYTES).u32(0)
    }

    /// `fuse_entry_out`: name and attributes valid as long as their leases (COH-1), generation 0 as
    /// ids are never reused. Node 0: there is no such name.
    pub(crate) fn entry(&mut self, node: u64, a: &Attributes, fresh: Fresh) -> &mut Self {
        let Fresh {
            names, attributes, ..
        } = fresh;
        self.u64(node).u64(0);
        self.u64(names.as_secs()).u64(attributes.as_secs());
        self.u32(names.subsec_nanos());
        self.u32(attributes.subsec_nanos()).attributes(a)
    }

    /// Nothing of the entry that begins here is valid any more.
    pub(crate) fn expire_entry(&mut self, begin: usize) {
        // After node and generation.
        self.0[begin + 16..begin + 40].fill(0);
    }

    /// `fuse_attr_out`, valid for `fresh`.
    pub(crate) fn attr(&mut self, a: &Attributes, fresh: Duration) -> &mut Self {
        self.u64(fresh.as_secs())
            .u32(fresh.subsec_nanos())
            .u32(0)
            .attributes(a)
    }

    /// `fuse_statx_out`, valid for `fresh`: what stat(2) tells, and the time of birth.
    pub(crate) fn statx(&mut self, a: &Attributes, fresh: Duration) -> &mut Self {
        self.u64(fresh.as_secs()).u32(fresh.subsec_nanos()).u32(0);
        self.zeros(16);
        self.u32(STATX_BASIC_STATS | STATX_BTIME).u32(BLOCK_BYTES);
        self.u64(0).u32(a.nlink).u32(a.uid).u32(a.gid);
        self.u16(u16::try_from(a.mode).unwrap_or(u16::MAX)).u16(0);
        self.u64(a.object.0).u64(a.size).u64(a.blocks).u64(0);
        for time in [a.atime, a.btime, a.ctime, a.mtime] {
            let (seconds, nanoseconds) = split(time);
            self.u64(seconds).u32(nanoseconds).u32(0);
        }
        // As the kernel's new_encode_dev() puts a device together.
        let (major, minor) = (a.rdev >> 8 & 0xfff, a.rdev & 0xff | a.rdev >> 12 & 0xfff00);
        self.u32(major).u32(minor).u32(0).u32(0).zeros(112)
    }

    /// `fuse_open_out`.
    pub(crate) fn open(&mut self, handle: u64, flags: u32) -> &mut Self {
        self.u64(handle).u32(flags).u32(0)
    }

    /// `fuse_dirent`, padded.
    pub(crate) fn dirent(&mut self, object: u64, next: u64, file_type: u32, name: &[u8]) {
        let len = u32::try_from(name.len()).expect("names have 255 bytes");
        // The directory entry's type is the mode's, shifted.
        self.u64(object).u64(next).u32(len).u32(file_type >> 12);
        self.0.extend_from_slice(name);
        self.zeros(name.len().next_multiple_of(8) - name.len());
    }
}

/// Bytes of a `fuse_dirent` with a name of this length.
pub(crate) fn dirent_bytes(name: &[u8]) -> usize {
    24 + name.len().next_multiple_of(8)
}

/// Bytes of a `fuse_statx_out`.
pub(crate) const STATX_OUT_BYTES: usize = 288;
/// Block size for applications' buffers.
const BLOCK_BYTES: u32 = 64 * 1024;
/// statx(2)'s masks.
const STATX_BASIC_STATS: u32 = 0x7ff;
const STATX_BTIME: u32 = 0x800;

/// Bytes of a `fuse_entry_out`.
pub(crate) const ENTRY_OUT_BYTES: usize = 128;

/// Seconds and nanoseconds; the seconds may be negative and travel as their bits.
fn split(time: Timestamp) -> (u64, u32) {
    let seconds = time.0.div_euclid(1_000_000_000);
    let nanoseconds = time.0.rem_euclid(1_000_000_000);
    (
        seconds.cast_unsigned(),
        u32::try_from(nanoseconds).expect("below a billion"),
    )
}

/// The time of seconds and nanoseconds; as far as a timestamp reaches.
pub(crate) fn join(seconds: u64, nanoseconds: u32) -> Timestamp {
    let seconds = seconds.cast_signed();
    Timestamp(
        seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(i64::from(nanoseconds)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_have_the_sizes_of_the_kernels_structures() {
        let a = Attributes::default();
        assert_eq!(
            Body::default().entry(1, &a, Fresh::default()).0.len(),
            ENTRY_OUT_BYTES
        );
        assert_eq!(Body::default().attr(&a, Duration::ZERO).0.len(), 104);
        assert_eq!(Body::default().open(0, 0).0.len(), 16);
        assert_eq!(
            Body::default().statx(&a, Duration::ZERO).0.len(),
            STATX_OUT_BYTES
        );
        for len in 1..20 {
            let name = vec![b'n'; len];
            let mut body = Body::default();
            body.dirent(1, 2, 0o100_000, &name);
            assert_eq!(body.0.len(), dirent_bytes(&name));
            assert_eq!(body.0[20], 8, "a regular file is DT_REG");
        }
    }

    #[test]
    fn times_before_1970_survive_the_way() {
        for nanoseconds in [-1, -1_000_000_001, 0, 1_700_000_000_123_456_789] {
            let (s, n) = split(Timestamp(nanoseconds));
            assert_eq!(join(s, n), Timestamp(nanoseconds));
        }
        assert_eq!(join(u64::MAX >> 1, 0), Timestamp(i64::MAX));
    }

    #[test]
    fn a_request_cut_anywhere_is_refused() {
        let mut request = vec![0; IN_HEADER_BYTES];
        request[0] = 40;
        assert!(InHeader::decode(&request).is_ok());
        for cut in 0..IN_HEADER_BYTES {
            assert_eq!(InHeader::decode(&request[..cut]), Err(ShortRequest));
        }
        assert!(Fields::new(b"no end").name().is_err());
    }
}
