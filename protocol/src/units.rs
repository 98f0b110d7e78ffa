//! Units and orders, as newtypes, and the only conversions between them.

use serde::{Deserialize, Serialize};

/// The unit of checksums and dirty maps, in bytes.
pub const BLOCK_BYTES: u64 = 4096;
/// The unit of the activity log and of checksum arrays, in bytes.
pub const EXTENT_BYTES: u64 = 4 << 20;
/// Blocks in an extent.
pub const BLOCKS_PER_EXTENT: u64 = EXTENT_BYTES / BLOCK_BYTES;

/// Place of a record in the primary's order. The first record has 1; 0 is "before everything".
/// Comparable between replicas only inside one history ([`crate::ids::GenerationId`]).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(try_from = "u64")]
pub struct Sequence(pub u64);

/// What comes from elsewhere stays far below where counting on would overflow. Nobody gets there: a
/// million records a second take a hundred thousand years.
const COUNTED_MAX: u64 = 1 << 62;

/// A place or a term that nobody can have counted up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is beyond any place or term")]
pub struct BeyondCounting(pub u64);

impl TryFrom<u64> for Sequence {
    type Error = BeyondCounting;
    fn try_from(value: u64) -> Result<Self, BeyondCounting> {
        (value <= COUNTED_MAX)
            .then_some(Self(value))
            .ok_or(BeyondCounting(value))
    }
}

impl TryFrom<u64> for Term {
    type Error = BeyondCounting;
    fn try_from(value: u64) -> Result<Self, BeyondCounting> {
        (value <= COUNTED_MAX)
            .then_some(Self(value))
            .ok_or(BeyondCounting(value))
    }
}

impl Sequence {
    /// Before the first record.
    pub const ZERO: Self = Self(0);

    /// The place after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl std::fmt::Display for Sequence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Number of an activation of a primary: each activation (promotion, or restart as primary) has
/// a higher one. A message of an older term is refused.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(try_from = "u64")]
pub struct Term(pub u64);

impl std::fmt::Display for Term {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// An object (for `fs` volumes: the inode number; a block volume's only object is 1). Never
/// reused: see [`ObjectId::allocate`].
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct ObjectId(pub u64);

/// Bits of an object id that hold the sequence; the term stands above them.
const OBJECT_SEQUENCE_BITS: u32 = 44;

/// Whether a volume can have come so far: beyond, it could make no object. Who says that it is there
/// is not believed.
#[must_use]
pub fn is_within_reach(term: Term, sequence: Sequence) -> bool {
    term.0 < 1 << (64 - OBJECT_SEQUENCE_BITS) && sequence.0 < 1 << OBJECT_SEQUENCE_BITS
}

impl ObjectId {
    /// The root directory.
    pub const ROOT: Self = Self(1);
    /// The disk of a `block` volume. No record of an `fs` volume makes an object of this id, as
    /// terms begin at 1.
    pub const DISK: Self = Self(2);

    /// The id of the object that the record at `sequence` of `term` makes. Unique without a
    /// stored counter: a term is never used twice for one sequence, even by a primary that lost
    /// its un-stable tail, since each activation has a new term. `None` past 2^20 terms or 2^44
    /// records.
    #[must_use]
    pub fn allocate(term: Term, sequence: Sequence) -> Option<Self> {
        let fits = term.0 > 0 && is_within_reach(term, sequence);
        fits.then_some(Self(term.0 << OBJECT_SEQUENCE_BITS | sequence.0))
    }

    /// The sequence of the record that made the object.
    #[must_use]
    pub fn made_at(self) -> Sequence {
        Sequence(self.0 & ((1 << OBJECT_SEQUENCE_BITS) - 1))
    }
}

impl std::fmt::Display for ObjectId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// Nanoseconds since 1970-01-01T00:00:00Z. Set by the primary, never stepping back for an object.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Timestamp(pub i64);

/// The blocks that `[offset, offset + len)` touches, as a half-open range of block indices.
#[must_use]
pub fn blocks_touched(offset: u64, len: u64) -> std::ops::Range<u64> {
    if len == 0 {
        return offset / BLOCK_BYTES..offset / BLOCK_BYTES;
    }
    offset / BLOCK_BYTES..offset.saturating_add(len).div_ceil(BLOCK_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_id_differs_between_terms_at_the_same_sequence() {
        let first = ObjectId::allocate(Term(1), Sequence(9));
        let second = ObjectId::allocate(Term(2), Sequence(9));
        assert_ne!(first, second);
        assert_eq!(first.map(ObjectId::made_at), Some(Sequence(9)));
        assert_eq!(ObjectId::allocate(Term(1 << 20), Sequence(1)), None);
    }

    #[test]
    fn touched_blocks_include_partly_covered_ones() {
        assert_eq!(blocks_touched(4095, 2), 0..2);
        assert_eq!(blocks_touched(4096, 4096), 1..2);
        assert_eq!(blocks_touched(10, 0), 0..0);
    }
}
