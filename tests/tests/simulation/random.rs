//! Where every choice of a simulation comes from.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Random numbers from one seed (splitmix64, Steele et al. 2014). Clones go on in one sequence.
#[derive(Clone)]
pub(crate) struct Random(Arc<Mutex<u64>>);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(seed)))
    }

    /// A sequence of its own, so that what is drawn here does not shift what is drawn there.
    pub(crate) fn fork(&self) -> Self {
        Self::new(self.next())
    }

    pub(crate) fn next(&self) -> u64 {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number of the range, which is not empty.
    pub(crate) fn within(&self, range: Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }

    /// True in one of `n` cases.
    pub(crate) fn one_in(&self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }

    /// An index below `len`, which is not 0.
    pub(crate) fn index(&self, len: usize) -> usize {
        usize::try_from(self.next() % len as u64).expect("less than a usize")
    }

    pub(crate) fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.next().to_le_bytes());
        bytes[8..].copy_from_slice(&self.next().to_le_bytes());
        bytes
    }
}
