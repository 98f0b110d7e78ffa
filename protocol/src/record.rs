//! Records: the one log that a volume is made of.
//!
//! The primary turns each operation into a record of absolute changes and gives it a
//! [`Sequence`]. The same bytes go into the primary's journal, to the replicas, and into theirs.
//! Applying a record twice is the same as applying it once.
//!
//! The data of [`Change::Write`]s stands, concatenated in order, in [`Record::payload`], apart
//! from the rest, so that a buffer received from a client is forwarded without a copy.

use std::ops::Range;

use bytes::Bytes;

use crate::codec::{DecodeError, Reader, Writer};
use crate::ids::GenerationId;
use crate::units::{ObjectId, Sequence, Term};

/// Longest key of the metadata store.
pub const KEY_BYTES_MAX: usize = 512;
/// Longest value of the metadata store: an extended attribute of 64 KiB and its envelope.
pub const VALUE_BYTES_MAX: usize = 68 * 1024;
/// Most changes in one record.
pub const CHANGES_MAX: usize = 4096;
/// Most data in one record.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;

/// One absolute change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The key has this value from now on.
    Put {
        /// At most [`KEY_BYTES_MAX`] bytes.
        key: Bytes,
        /// At most [`VALUE_BYTES_MAX`] bytes.
        value: Bytes,
    },
    /// The key does not exist from now on. No error where it did not.
    Delete {
        /// The key.
        key: Bytes,
    },
    /// The next `len` bytes of the payload stand at `offset` of the object. An object that does
    /// not exist comes into being.
    Write {
        /// The object.
        object: ObjectId,
        /// First byte.
        offset: u64,
        /// Bytes, not 0.
        len: u32,
    },
    /// Every byte of the object at or past `size` reads as zero; storage behind it is freed.
    /// Does not lengthen anything: an object has no size of its own, only bytes.
    Truncate {
        /// The object.
        object: ObjectId,
        /// First byte that goes.
        size: u64,
    },
    /// `[offset, offset + len)` reads as zero; storage of whole blocks is freed.
    Zero {
        /// The object.
        object: ObjectId,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// The object and its data are gone. No error where it did not exist.
    Drop {
        /// The object.
        object: ObjectId,
    },
}

impl Change {
    /// The bytes of an object that it may change.
    #[must_use]
    pub fn data(&self) -> Option<(ObjectId, Range<u64>)> {
        match *self {
            Self::Write {
                object,
                offset,
                len,
            } => Some((object, offset..offset.saturating_add(u64::from(len)))),
            Self::Zero {
                object,
                offset,
                len,
            } => Some((object, offset..offset.saturating_add(len))),
            Self::Truncate { object, size } => Some((object, size..u64::MAX)),
            Self::Drop { object } => Some((object, 0..u64::MAX)),
            Self::Put { .. } | Self::Delete { .. } => None,
        }
    }
}

/// What one operation changed, at its place in the order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Place in the order.
    pub sequence: Sequence,
    /// The primary's term when it ordered this.
    pub term: Term,
    /// The history that this belongs to.
    pub generation: GenerationId,
    /// In order.
    pub changes: Vec<Change>,
    /// Data of the writes, concatenated.
    pub payload: Bytes,
}

impl Record {
    /// Everything but the payload: sequence, term, generation, payload length, changes.
    #[must_use]
    pub fn encode_meta(&self) -> Bytes {
        let mut w = Writer::with_capacity(128);
        w.u64(self.sequence.0)
            .u64(self.term.0)
            .id(&self.generation.0);
        w.u32(u32::try_from(self.payload.len()).expect("PAYLOAD_BYTES_MAX"));
        w.u32(u32::try_from(self.changes.len()).expect("CHANGES_MAX"));
        for change in &self.changes {
            encode_change(&mut w, change);
        }
        w.finish()
    }

    /// About the bytes that a record of these changes takes on a wire, for bounds and lags.
    #[must_use]
    pub fn bytes_about(changes: &[Change], payload: &Bytes) -> u64 {
        let fixed = 64 + 32 * changes.len();
        let keys = changes.iter().map(|change| match change {
            Change::Put { key, value } => key.len() + value.len(),
            Change::Delete { key } => key.len(),
            _ => 0,
        });
        (fixed + keys.sum::<usize>() + payload.len()) as u64
    }

    /// Reads what [`Record::encode_meta`] wrote and joins it with its payload. Checks every
    /// length and that the writes use the payload up exactly.
    pub fn decode(meta: Bytes, payload: Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(meta);
        let sequence = r.sequence("sequence")?;
        let term = r.term("term")?;
        let generation = GenerationId(r.id("generation")?);
        let payload_len = r.u32("payload length")? as usize;
        let count = r.count(9, "changes")?;
        if count > CHANGES_MAX {
            return Err(DecodeError::Invalid {
                what: "count of changes",
                value: count as u64,
            });
        }
        let mut changes = Vec::with_capacity(count);
        let mut data = 0_u64;
        for _ in 0..count {
            let change = decode_change(&mut r)?;
            if let Change::Write { len, .. } = change {
                data += u64::from(len);
            }
            changes.push(change);
        }
        r.end("record")?;
        if payload_len != payload.len() || data != payload.len() as u64 {
            return Err(DecodeError::Invalid {
                what: "payload length",
                value: data,
            });
        }
        if payload_len > PAYLOAD_BYTES_MAX {
            return Err(DecodeError::Invalid {
                what: "payload length",
                value: data,
            });
        }
        Ok(Self {
            sequence,
            term,
            generation,
            changes,
            payload,
        })
    }

    /// Each write with its bytes, in order.
    pub fn writes(&self) -> impl Iterator<Item = (ObjectId, u64, Bytes)> + '_ {
        let mut at = 0_usize;
        self.changes.iter().filter_map(move |change| {
            let Change::Write {
                object,
                offset,
                len,
            } = change
            else {
                return None;
            };
            let end = at + *len as usize;
            let data = self.payload.slice(at..end);
            at = end;
            Some((*object, *offset, data))
        })
    }
}

fn encode_change(w: &mut Writer, change: &Change) {
    match change {
        Change::Put { key, value } => w.u8(1).bytes(key).bytes(value),
        Change::Delete { key } => w.u8(2).bytes(key).u32(0),
        Change::Write {
            object,
            offset,
            len,
        } => w.u8(3).u64(object.0).u64(*offset).u32(*len),
        Change::Truncate { object, size } => w.u8(4).u64(object.0).u64(*size),
        Change::Zero {
            object,
            offset,
            len,
        } => w.u8(5).u64(object.0).u64(*offset).u64(*len),
        Change::Drop { object } => w.u8(6).u64(object.0),
    };
}

fn decode_change(r: &mut Reader) -> Result<Change, DecodeError> {
    let kind = r.u8("change kind")?;
    let change = match kind {
        1 => Change::Put {
            key: key(r)?,
            value: value(r)?,
        },
        2 => {
            let key = key(r)?;
            r.u32("reserved")?;
            Change::Delete { key }
        }
        3 => {
            let object = ObjectId(r.u64("object")?);
            let offset = r.u64("offset")?;
            let len = r.u32("length")?;
            checked_range(offset, u64::from(len))?;
            if len == 0 {
                return Err(DecodeError::Invalid {
                    what: "length of a write",
                    value: 0,
                });
            }
            Change::Write {
                object,
                offset,
                len,
            }
        }
        4 => Change::Truncate {
            object: ObjectId(r.u64("object")?),
            size: r.u64("size")?,
        },
        5 => {
            let object = ObjectId(r.u64("object")?);
            let offset = r.u64("offset")?;
            let len = r.u64("length")?;
            checked_range(offset, len)?;
            Change::Zero {
                object,
                offset,
                len,
            }
        }
        6 => Change::Drop {
            object: ObjectId(r.u64("object")?),
        },
        other => {
            return Err(DecodeError::Invalid {
                what: "change kind",
                value: u64::from(other),
            });
        }
    };
    Ok(change)
}

/// Offsets stay within what a file offset can say (2^63 - 1).
fn checked_range(offset: u64, len: u64) -> Result<(), DecodeError> {
    match offset.checked_add(len) {
        Some(end) if end <= i64::MAX as u64 => Ok(()),
        _ => Err(DecodeError::Invalid {
            what: "offset",
            value: offset,
        }),
    }
}

fn key(r: &mut Reader) -> Result<Bytes, DecodeError> {
    let key = r.bytes("key")?;
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(DecodeError::Invalid {
            what: "key length",
            value: key.len() as u64,
        });
    }
    Ok(key)
}

fn value(r: &mut Reader) -> Result<Bytes, DecodeError> {
    let value = r.bytes("value")?;
    if value.len() > VALUE_BYTES_MAX {
        return Err(DecodeError::Invalid {
            what: "value length",
            value: value.len() as u64,
        });
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Record {
        let object = ObjectId(77);
        Record {
            sequence: Sequence(5),
            term: Term(2),
            generation: GenerationId([9; 16]),
            changes: vec![
                Change::Put {
                    key: Bytes::from_static(b"k"),
                    value: Bytes::from_static(b"v"),
                },
                Change::Delete {
                    key: Bytes::from_static(b"gone"),
                },
                Change::Write {
                    object,
                    offset: 4096,
                    len: 3,
                },
                Change::Write {
                    object,
                    offset: 0,
                    len: 2,
                },
                Change::Truncate { object, size: 9000 },
                Change::Zero {
                    object,
                    offset: 1,
                    len: 2,
                },
                Change::Drop { object },
            ],
            payload: Bytes::from_static(b"abcde"),
        }
    }

    #[test]
    fn a_record_survives_encoding_and_hands_out_each_writes_bytes() {
        let record = sample();
        let back = Record::decode(record.encode_meta(), record.payload.clone());
        assert_eq!(back.as_ref(), Ok(&record));
        let writes: Vec<_> = record.writes().collect();
        assert_eq!(writes[0].2, Bytes::from_static(b"abc"));
        assert_eq!(writes[1].2, Bytes::from_static(b"de"));
    }

    #[test]
    fn a_record_cut_anywhere_is_refused() {
        let record = sample();
        let meta = record.encode_meta();
        for cut in 0..meta.len() {
            assert!(Record::decode(meta.slice(..cut), record.payload.clone()).is_err());
        }
        assert!(Record::decode(meta, Bytes::from_static(b"abcd")).is_err());
    }
}
