//! Requests of the transmission phase.

use crate::numbers::{Errno, PAYLOAD_BYTES_MAX, REQUEST_MAGIC, command, command_flag};

/// Bytes of a request before its data.
pub const REQUEST_BYTES: usize = 28;

/// A request as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Flags.
    pub flags: u16,
    /// Which command.
    pub command: u16,
    /// The client's mark, for the reply.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

/// What ends a connection: it cannot be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// Something else than a request.
    #[error("{0:#x} is no request's magic")]
    Magic(u32),
    /// More data than anybody has to take.
    #[error("a write of {0} bytes is longer than {PAYLOAD_BYTES_MAX}")]
    Payload(u32),
}

/// A request that makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Read.
    Read,
    /// Write the data that follows.
    Write {
        /// Answer when it is stable.
        fua: bool,
    },
    /// The client leaves.
    Disconnect,
    /// Make everything stable.
    Flush,
    /// The range is not needed any more.
    Trim {
        /// Answer when it is stable.
        fua: bool,
    },
    /// The range will be read.
    Cache,
    /// Zeros. The disk is thin: it stores none, so that this is always faster than a write, and there
    /// is no room that could be kept for them.
    WriteZeroes {
        /// Answer when it is stable.
        fua: bool,
    },
    /// What is stored where.
    BlockStatus {
        /// One stretch only.
        one: bool,
    },
}

/// What was agreed on and decides which requests are valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Bytes of the disk.
    pub size: u64,
    /// Nothing may be changed.
    pub read_only: bool,
    /// Replies are structured.
    pub structured: bool,
    /// `base:allocation` was selected.
    pub allocation: bool,
}

impl Request {
    /// Reads what came.
    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, BadRequest> {
        fn part<const N: usize>(bytes: &[u8; REQUEST_BYTES], at: usize) -> [u8; N] {
            bytes[at..at + N].try_into().expect("within the request")
        }
        let magic = u32::from_be_bytes(part(bytes, 0));
        if magic != REQUEST_MAGIC {
            return Err(BadRequest::Magic(magic));
        }
        let request = Self {
            flags: u16::from_be_bytes(part(bytes, 4)),
            command: u16::from_be_bytes(part(bytes, 6)),
            cookie: u64::from_be_bytes(part(bytes, 8)),
            offset: u64::from_be_bytes(part(bytes, 16)),
            len: u32::from_be_bytes(part(bytes, 24)),
        };
        if request.payload_bytes() > PAYLOAD_BYTES_MAX {
            return Err(BadRequest::Payload(request.len));
        }
        Ok(request)
    }

    /// For clients and tests.
    #[must_use]
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0; REQUEST_BYTES];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }

    /// Bytes of data that follow it, whether it is valid or not.
    #[must_use]
    pub fn payload_bytes(&self) -> u32 {
        if self.command == command::WRITE {
            self.len
        } else {
            0
        }
    }

    /// What it asks for, or the error that answers it.
    pub fn command(&self, rules: &Rules) -> Result<Command, Errno> {
        use command_flag::{DF, FAST_ZERO, FUA, NO_HOLE, REQ_ONE};
        let has = |flag| self.flags & flag != 0;
        let fua = has(FUA);
        // FUA is allowed with every command, and means nothing where nothing is written.
        let (command, allowed) = match self.command {
            command::READ => (Command::Read, if rules.structured { DF } else { 0 }),
            command::WRITE => (Command::Write { fua }, 0),
            command::DISC => (Command::Disconnect, 0),
            command::FLUSH => (Command::Flush, 0),
            command::TRIM => (Command::Trim { fua }, 0),
            command::CACHE => (Command::Cache, 0),
            command::WRITE_ZEROES => (Command::WriteZeroes { fua }, NO_HOLE | FAST_ZERO),
            command::BLOCK_STATUS if rules.allocation => {
                (Command::BlockStatus { one: has(REQ_ONE) }, REQ_ONE)
            }
            _ => return Err(Errno::Inval),
        };
        if self.flags & !(allowed | FUA) != 0 {
            return Err(Errno::Inval);
        }
        self.check_range(command, rules)?;
        Ok(command)
    }

    fn check_range(&self, command: Command, rules: &Rules) -> Result<(), Errno> {
        let writes = match command {
            Command::Disconnect | Command::Flush => return Ok(()),
            Command::Write { .. } | Command::Trim { .. } | Command::WriteZeroes { .. } => true,
            Command::Read | Command::Cache | Command::BlockStatus { .. } => false,
        };
        if writes && rules.read_only {
            return Err(Errno::Perm);
        }
        if command == Command::Read && self.len > PAYLOAD_BYTES_MAX {
            return Err(Errno::Inval);
        }
        if matches!(command, Command::BlockStatus { .. }) && self.len == 0 {
            return Err(Errno::Inval); // there is no stretch of nothing
        }
        let end = self.offset.checked_add(u64::from(self.len));
        match end.is_some_and(|end| end <= rules.size) {
            true => Ok(()),
            // A trim only gives a hint about a range that has to be there all the same.
            false if matches!(command, Command::Write { .. } | Command::WriteZeroes { .. }) => {
                Err(Errno::NoSpc)
            }
            false => Err(Errno::Inval),
        }
    }
}
