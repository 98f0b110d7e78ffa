//! What changed since a checkpoint, in memory over the metadata store and the object files.

use std::collections::BTreeMap;

use bytes::Bytes;
use protocol::codec::{Reader, Writer};
use protocol::units::ObjectId;

use crate::ranges::RangeSet;

/// Estimated cost of an entry besides its bytes.
const ENTRY_BYTES: usize = 96;

/// Where an object's bytes stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// In the metadata store.
    Inline,
    /// In a file.
    File,
}

/// What a brick knows of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Info {
    pub(crate) form: Form,
    /// No byte at or past this was written since the last truncation before it.
    pub(crate) data_end: u64,
    /// Blocks that are not all zero.
    pub(crate) allocated: u64,
    /// The highest `data_end` in any state that a crash may lead back to. Not stored: a checkpoint
    /// makes it `data_end`.
    pub(crate) high_end: u64,
}

impl Info {
    pub(crate) fn new() -> Self {
        Self {
            form: Form::Inline,
            data_end: 0,
            allocated: 0,
            high_end: 0,
        }
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut w = Writer::with_capacity(17);
        w.u8(match self.form {
            Form::Inline => 0,
            Form::File => 1,
        });
        w.u64(self.data_end).u64(self.allocated);
        w.finish()
    }

    pub(crate) fn decode(row: &Bytes) -> Option<Self> {
        let mut r = Reader::new(row.clone());
        let form = match r.u8("form").ok()? {
            0 => Form::Inline,
            1 => Form::File,
            _ => return None,
        };
        let data_end = r.u64("data end").ok()?;
        let allocated = r.u64("allocated").ok()?;
        r.end("object").ok()?;
        Some(Self {
            form,
            data_end,
            allocated,
            high_end: data_end,
        })
    }
}

/// Changes of one object. Every part hides what the layers below say about it.
#[derive(Debug, Clone, Default)]
pub(crate) struct ObjectOverlay {
    /// Nothing below counts: the object was dropped (and perhaps made again).
    pub(crate) hides_below: bool,
    /// `None`: it does not exist.
    pub(crate) info: Option<Info>,
    /// The bytes, where the form is [`Form::Inline`].
    pub(crate) inline: Option<Bytes>,
    /// Checksums by extent, shorter arrays end in zeros.
    pub(crate) sums: BTreeMap<u64, Vec<u32>>,
    /// Extents whose checksums below do not count.
    pub(crate) zero_extents: RangeSet,
    /// Blocks whose content is not in the file yet. Never an all-zero one.
    pub(crate) blocks: BTreeMap<u64, Bytes>,
    /// Blocks to be freed in the file, before `blocks` are written.
    pub(crate) punch: RangeSet,
}

/// Changes between two checkpoints.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    /// `None`: deleted.
    pub(crate) meta: BTreeMap<Bytes, Option<Bytes>>,
    pub(crate) objects: BTreeMap<ObjectId, ObjectOverlay>,
    /// About how much memory this takes.
    pub(crate) bytes: usize,
}

impl Overlay {
    pub(crate) fn put(&mut self, key: &Bytes, value: Option<&Bytes>) {
        let value = value.map(|value| Bytes::copy_from_slice(value));
        let new = value.as_ref().map_or(0, Bytes::len);
        if let Some(slot) = self.meta.get_mut(key) {
            self.bytes = self
                .bytes
                .saturating_sub(slot.as_ref().map_or(0, Bytes::len))
                + new;
            *slot = value;
        } else {
            self.bytes += key.len() + new + ENTRY_BYTES;
            self.meta.insert(Bytes::copy_from_slice(key), value);
        }
    }

    pub(crate) fn charge(&mut self, bytes: usize) {
        self.bytes += bytes;
    }
}
