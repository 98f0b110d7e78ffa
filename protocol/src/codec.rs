//! Little-endian writing and checked reading of fixed fields. The layouts built from it are
//! written down in `docs/wire-protocol.md` and `docs/on-disk-format.md`.

use bytes::{BufMut, Bytes, BytesMut};

use crate::units::{Sequence, Term};

/// Bytes that do not decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes ended inside `what`.
    #[error("the bytes end inside {what}")]
    Short {
        /// The field.
        what: &'static str,
    },
    /// A field has a value that does not exist.
    #[error("{what} cannot be {value}")]
    Invalid {
        /// The field.
        what: &'static str,
        /// What was found.
        value: u64,
    },
    /// Bytes are left over.
    #[error("{left} bytes follow the end of {what}")]
    Trailing {
        /// What had ended.
        what: &'static str,
        /// How many bytes follow.
        left: usize,
    },
}

/// Appends fields to a buffer.
#[derive(Debug, Default)]
pub struct Writer {
    out: BytesMut,
}

impl Writer {
    /// An empty writer with room for `capacity` bytes.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            out: BytesMut::with_capacity(capacity),
        }
    }
    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.out.put_u8(value);
        self
    }
    /// Two bytes.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.out.put_u16_le(value);
        self
    }
    /// Four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.out.put_u32_le(value);
        self
    }
    /// Eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.out.put_u64_le(value);
        self
    }
    /// Eight bytes, signed.
    pub fn i64(&mut self, value: i64) -> &mut Self {
        self.out.put_i64_le(value);
        self
    }
    /// Sixteen bytes of an id.
    pub fn id(&mut self, value: &[u8; 16]) -> &mut Self {
        self.out.put_slice(value);
        self
    }
    /// A length in four bytes, then the bytes.
    pub fn bytes(&mut self, value: &[u8]) -> &mut Self {
        // A longer value cannot be framed anyway: FRAME_BYTES_MAX is far below u32::MAX.
        let len = u32::try_from(value.len()).expect("a field is shorter than 4 GiB");
        self.out.put_u32_le(len);
        self.out.put_slice(value);
        self
    }
    /// The bytes alone, without a length.
    pub fn raw(&mut self, value: &[u8]) -> &mut Self {
        self.out.put_slice(value);
        self
    }
    /// How much was written.
    #[must_use]
    pub fn len(&self) -> usize {
        self.out.len()
    }
    /// Whether nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }
    /// What was written.
    #[must_use]
    pub fn finish(&mut self) -> Bytes {
        self.out.split().freeze()
    }
}

/// Takes fields from the front of a buffer; byte fields share the buffer's memory.
#[derive(Debug, Clone)]
pub struct Reader {
    rest: Bytes,
}

impl Reader {
    /// Reads from the start of `bytes`.
    #[must_use]
    pub fn new(bytes: Bytes) -> Self {
        Self { rest: bytes }
    }
    fn take<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        let Some(found) = self.rest.first_chunk::<N>().copied() else {
            return Err(DecodeError::Short { what });
        };
        let _ = self.rest.split_to(N);
        Ok(found)
    }
    /// One byte.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        Ok(self.take::<1>(what)?[0])
    }
    /// Two bytes.
    pub fn u16(&mut self, what: &'static str) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.take(what)?))
    }
    /// Four bytes.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.take(what)?))
    }
    /// Eight bytes.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.take(what)?))
    }
    /// Eight bytes, of a value that is below `limit`.
    pub fn below(&mut self, limit: u64, what: &'static str) -> Result<u64, DecodeError> {
        let value = self.u64(what)?;
        if value < limit {
            Ok(value)
        } else {
            Err(DecodeError::Invalid { what, value })
        }
    }
    /// Eight bytes of a place in an order, so that whoever counts on from it does not overflow.
    pub fn sequence(&mut self, what: &'static str) -> Result<Sequence, DecodeError> {
        let value = self.u64(what)?;
        Sequence::try_from(value).map_err(|_| DecodeError::Invalid { what, value })
    }
    /// Eight bytes of a term.
    pub fn term(&mut self, what: &'static str) -> Result<Term, DecodeError> {
        let value = self.u64(what)?;
        Term::try_from(value).map_err(|_| DecodeError::Invalid { what, value })
    }
    /// Eight bytes, signed.
    pub fn i64(&mut self, what: &'static str) -> Result<i64, DecodeError> {
        Ok(i64::from_le_bytes(self.take(what)?))
    }
    /// Sixteen bytes of an id.
    pub fn id(&mut self, what: &'static str) -> Result<[u8; 16], DecodeError> {
        self.take(what)
    }
    /// A length in four bytes, then that many bytes.
    pub fn bytes(&mut self, what: &'static str) -> Result<Bytes, DecodeError> {
        let len = self.u32(what)? as usize;
        self.raw(len, what)
    }
    /// `len` bytes.
    pub fn raw(&mut self, len: usize, what: &'static str) -> Result<Bytes, DecodeError> {
        if len > self.rest.len() {
            return Err(DecodeError::Short { what });
        }
        Ok(self.rest.split_to(len))
    }
    /// A count of items that each take at least `item_bytes_min` bytes: refused when so many
    /// cannot follow, so that a stranger's count never decides how much memory is taken.
    pub fn count(
        &mut self,
        item_bytes_min: usize,
        what: &'static str,
    ) -> Result<usize, DecodeError> {
        let count = self.u32(what)? as usize;
        if count.saturating_mul(item_bytes_min.max(1)) > self.rest.len() {
            return Err(DecodeError::Short { what });
        }
        Ok(count)
    }
    /// What was not read yet.
    #[must_use]
    pub fn rest(&self) -> Bytes {
        self.rest.clone()
    }
    /// Refuses bytes after the end.
    pub fn end(&self, what: &'static str) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::Trailing {
                what,
                left: self.rest.len(),
            })
        }
    }
}
