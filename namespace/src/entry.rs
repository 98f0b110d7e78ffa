//! Directory entries: a name's place in its directory.
//!
//! An entry's key ends in its cookie: 55 bits of the name's hash and 8 bits that tell names of
//! one hash apart (a chain). The order of keys is the order of readdir and the cookie is the
//! position that readdir gives out, so a name keeps its position as long as it exists.
//!
//! A chain begins at collision 0 and its first value says whether more may follow. So a lookup
//! of an absent name costs one read, and removing the first of a chain leaves a mark in its
//! place instead of moving the others.

use bytes::Bytes;
use protocol::codec::{DecodeError, Reader, Writer};
use protocol::fs::NAME_BYTES_MAX;
use protocol::units::ObjectId;

/// Version of an entry's value.
const VERSION: u8 = 1;
/// Names that may share a hash.
pub(crate) const CHAIN_MAX: u64 = 256;

/// What stands under an entry's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slot {
    /// More of the chain may follow (only said at collision 0).
    pub(crate) chained: bool,
    /// The entry, unless it was removed.
    pub(crate) entry: Option<Entry>,
}

/// A name and what it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) object: ObjectId,
    pub(crate) file_type: u32,
    pub(crate) name: Bytes,
}

/// The cookie of a name at collision 0. At least 256 (1 and 2 stand for `.` and `..`) and below
/// 2^63 (a file offset).
#[cfg(not(test))]
pub(crate) fn first_cookie(name: &[u8]) -> u64 {
    hashed_cookie(name)
}

/// In tests every name that begins with `collide` has the same hash.
#[cfg(test)]
pub(crate) fn first_cookie(name: &[u8]) -> u64 {
    let name = if name.starts_with(b"collide") {
        b"collide"
    } else {
        name
    };
    hashed_cookie(name)
}

fn hashed_cookie(name: &[u8]) -> u64 {
    let hash = blake3::hash(name);
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    let hash = u64::from_le_bytes(first) >> 9;
    hash.max(1) << 8
}

impl Slot {
    pub(crate) fn encode(&self) -> Bytes {
        let mut w = Writer::with_capacity(32);
        w.u8(VERSION).u8(u8::from(self.chained));
        match &self.entry {
            None => {
                w.u8(0);
            }
            Some(entry) => {
                w.u8(1)
                    .u64(entry.object.0)
                    .u32(entry.file_type)
                    .raw(&entry.name);
            }
        }
        w.finish()
    }

    pub(crate) fn decode(value: Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(value);
        let version = r.u8("entry version")?;
        if version != VERSION {
            return Err(DecodeError::Invalid {
                what: "entry version",
                value: u64::from(version),
            });
        }
        let chained = flag(&mut r)?;
        if !flag(&mut r)? {
            r.end("entry")?;
            return Ok(Self {
                chained,
                entry: None,
            });
        }
        let object = ObjectId(r.u64("object")?);
        let file_type = r.u32("file type")?;
        let name = r.rest();
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(DecodeError::Invalid {
                what: "name length",
                value: name.len() as u64,
            });
        }
        Ok(Self {
            chained,
            entry: Some(Entry {
                object,
                file_type,
                name,
            }),
        })
    }
}

fn flag(r: &mut Reader) -> Result<bool, DecodeError> {
    match r.u8("entry flag")? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(DecodeError::Invalid {
            what: "entry flag",
            value: u64::from(other),
        }),
    }
}
