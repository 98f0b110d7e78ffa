//! The slow model: every state that there was, block by block.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bytes::Bytes;
use protocol::record::Change;

pub(crate) const BLOCK: usize = 4096;

pub(crate) type Block = Rc<[u8; BLOCK]>;
pub(crate) type Blocks = BTreeMap<u64, Block>;

/// One state. Blocks that are all zero are absent; an object without blocks is present.
#[derive(Clone, Default)]
pub(crate) struct Model {
    pub(crate) meta: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) objects: BTreeMap<u64, Rc<Blocks>>,
}

impl Model {
    pub(crate) fn apply(&mut self, changes: &[Change], payload: &Bytes) {
        let mut at = 0;
        for change in changes {
            match change {
                Change::Put { key, value } => {
                    self.meta.insert(key.to_vec(), value.to_vec());
                }
                Change::Delete { key } => {
                    self.meta.remove(&key[..]);
                }
                Change::Write {
                    object,
                    offset,
                    len,
                } => {
                    let end = at + *len as usize;
                    let data = &payload[at..end];
                    at = end;
                    self.objects.entry(object.0).or_default();
                    self.set(object.0, *offset, data.len() as u64, |at| data[at]);
                }
                Change::Truncate { object, size } => self.zero(object.0, *size, u64::MAX),
                Change::Zero {
                    object,
                    offset,
                    len,
                } => self.zero(object.0, *offset, offset + len),
                Change::Drop { object } => {
                    self.objects.remove(&object.0);
                }
            }
        }
    }

    fn set(&mut self, object: u64, offset: u64, len: u64, byte: impl Fn(usize) -> u8) {
        let Some(blocks) = self.objects.get_mut(&object) else {
            return;
        };
        let blocks = Rc::make_mut(blocks);
        let mut done = 0;
        while done < len {
            let position = offset + done;
            let block = position / BLOCK as u64;
            let inside = (position % BLOCK as u64) as usize;
            let part = (len - done).min((BLOCK - inside) as u64) as usize;
            let slot = blocks.entry(block).or_insert_with(|| Rc::new([0; BLOCK]));
            let content = Rc::make_mut(slot);
            for index in 0..part {
                content[inside + index] = byte(done as usize + index);
            }
            if *content == [0; BLOCK] {
                blocks.remove(&block);
            }
            done += part as u64;
        }
    }

    fn zero(&mut self, object: u64, from: u64, to: u64) {
        let Some(blocks) = self.objects.get(&object) else {
            return;
        };
        let touched: Vec<u64> = blocks
            .keys()
            .copied()
            .filter(|block| (block + 1) * BLOCK as u64 > from && block * (BLOCK as u64) < to)
            .collect();
        for block in touched {
            let start = (block * BLOCK as u64).max(from);
            let end = ((block + 1) * BLOCK as u64).min(to);
            self.set(object, start, end - start, |_| 0);
        }
    }

    pub(crate) fn block(&self, object: u64, block: u64) -> [u8; BLOCK] {
        let blocks = self.objects.get(&object);
        let found = blocks.and_then(|blocks| blocks.get(&block));
        found.map_or([0; BLOCK], |content| **content)
    }

    /// Keys and blocks that differ from `other`.
    pub(crate) fn differences(&self, other: &Self) -> (BTreeSet<Vec<u8>>, BTreeSet<(u64, u64)>) {
        let keys = self.meta.keys().chain(other.meta.keys());
        let keys = keys
            .filter(|key| self.meta.get(*key) != other.meta.get(*key))
            .cloned()
            .collect();
        let mut blocks = BTreeSet::new();
        for object in self.objects.keys().chain(other.objects.keys()) {
            let (a, b) = (self.objects.get(object), other.objects.get(object));
            if let (Some(a), Some(b)) = (a, b)
                && Rc::ptr_eq(a, b)
            {
                continue;
            }
            let here = [a, b]
                .into_iter()
                .flatten()
                .flat_map(|blocks| blocks.keys());
            for block in here {
                if self.block(*object, *block) != other.block(*object, *block) {
                    blocks.insert((*object, *block));
                }
            }
        }
        (keys, blocks)
    }
}
