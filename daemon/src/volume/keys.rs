//! A brick's keys, for the namespace.

use bytes::Bytes;
use storage::{Brick, Medium, ReadError};

/// The brick as [`namespace::Store`] wants it: what was applied so far, read at once.
pub struct Keys<'a, M: Medium>(pub &'a Brick<M>);

impl<M: Medium> namespace::Store for Keys<'_, M> {
    type Error = ReadError;

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        self.0.get(key)
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        f: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), ReadError> {
        self.0.scan(from, to, f)
    }
}
