//! What a resync sends at once.

use bytes::{Bytes, BytesMut};
use protocol::record::Change;
use protocol::units::{BLOCK_BYTES, ObjectId};
use storage::DirtyItem;

/// Items of one message.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) items: Vec<DirtyItem>,
    pub(super) changes: Vec<Change>,
    pub(super) payload: BytesMut,
    pub(super) key_bytes: usize,
}

/// What is sent in place of a dirty item.
pub(super) enum Content {
    Nothing,
    Change(Change),
    Data(Bytes),
}

impl Content {
    /// About what it costs on the wire.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Change(Change::Put { key, value }) => key.len() + value.len() + 32,
            Self::Change(Change::Delete { key }) => key.len() + 32,
            Self::Change(_) => 32,
            Self::Data(data) => data.len(),
        }
    }
}

impl Batch {
    pub(super) fn add(&mut self, item: DirtyItem, content: Content) {
        match (&item, &content) {
            (DirtyItem::Blocks { object, start, .. }, Content::Data(data)) => {
                self.add_data(*object, start * BLOCK_BYTES, data);
            }
            (_, Content::Change(change)) => {
                self.key_bytes += content.bytes();
                self.changes.push(change.clone());
            }
            _ => {}
        }
        self.items.push(item);
    }

    /// Adds data; blocks of zeros travel as a range.
    fn add_data(&mut self, object: ObjectId, offset: u64, data: &[u8]) {
        for (index, block) in data.chunks(BLOCK_BYTES as usize).enumerate() {
            let at = offset + index as u64 * BLOCK_BYTES;
            let zero = block.iter().all(|byte| *byte == 0);
            let len = block.len() as u64;
            match self.changes.last_mut() {
                Some(Change::Zero {
                    object: o,
                    offset: from,
                    len: l,
                }) if zero && *o == object && *from + *l == at => {
                    *l += len;
                }
                Some(Change::Write {
                    object: o,
                    offset: from,
                    len: l,
                }) if !zero && *o == object && *from + u64::from(*l) == at => {
                    *l += block.len() as u32;
                }
                _ if zero => self.changes.push(Change::Zero {
                    object,
                    offset: at,
                    len,
                }),
                _ => {
                    let len = block.len() as u32;
                    self.changes.push(Change::Write {
                        object,
                        offset: at,
                        len,
                    });
                }
            }
            if !zero {
                self.payload.extend_from_slice(block);
            }
        }
    }
}
