//! A volume in memory: keys and objects as plain collections, and the reference for how a
//! caller drives [`crate::execute()`]. For tests, simulation and the client's test server.

use std::collections::BTreeMap;
use std::convert::Infallible;

use bytes::{Bytes, BytesMut};
use protocol::fs::{FileSystemStatistics, Outcome, Request};
use protocol::ids::SessionId;
use protocol::record::Change;
use protocol::units::{BLOCK_BYTES, ObjectId, Timestamp};

use crate::{
    Admission, Context, ExecuteError, Executed, Store, admit, copied, execute, kept_reply, mkdisk,
    mkfs, release_orphan, seek_outcome,
};

/// Blocks of an object that were written, by index.
type Blocks = BTreeMap<u64, Box<[u8]>>;

/// A volume in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryVolume {
    keys: BTreeMap<Vec<u8>, Bytes>,
    objects: BTreeMap<ObjectId, Blocks>,
}

impl Store for MemoryVolume {
    type Error = Infallible;

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Infallible> {
        Ok(self.keys.get(key).cloned())
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        f: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), Infallible> {
        for (key, value) in self.keys.range(from.to_vec()..to.to_vec()) {
            if !f(key, value) {
                break;
            }
        }
        Ok(())
    }
}

fn block_len() -> usize {
    BLOCK_BYTES as usize
}

/// Each block that `[offset, offset + len)` touches, with the part of it.
fn parts(offset: u64, len: u64) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let end = offset + len;
    (offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES)).map(move |block| {
        let start = block * BLOCK_BYTES;
        let from = offset.saturating_sub(start) as usize;
        let to = (end - start).min(BLOCK_BYTES) as usize;
        (block, from..to)
    })
}

impl MemoryVolume {
    /// An empty volume.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        let mut volume = Self::default();
        volume.apply(&mkfs(now), &Bytes::new());
        volume
    }

    /// An empty block volume.
    #[must_use]
    pub fn disk(size: u64, now: Timestamp) -> Self {
        let mut volume = Self::default();
        volume.apply(&mkdisk(size, 1, now), &Bytes::new());
        volume
    }

    /// Applies changes in order.
    ///
    /// # Panics
    /// When the payload is shorter than the writes say.
    pub fn apply(&mut self, changes: &[Change], payload: &Bytes) {
        let mut at = 0;
        for change in changes {
            match change {
                Change::Put { key, value } => {
                    self.keys.insert(key.to_vec(), value.clone());
                }
                Change::Delete { key } => {
                    self.keys.remove(&key[..]);
                }
                Change::Write {
                    object,
                    offset,
                    len,
                } => {
                    let end = at + *len as usize;
                    self.write(*object, *offset, &payload[at..end]);
                    at = end;
                }
                Change::Truncate { object, size } => {
                    self.zero(*object, *size, (i64::MAX as u64).saturating_sub(*size));
                }
                Change::Zero {
                    object,
                    offset,
                    len,
                } => self.zero(*object, *offset, *len),
                Change::Drop { object } => {
                    self.objects.remove(object);
                }
            }
        }
    }

    fn write(&mut self, object: ObjectId, offset: u64, data: &[u8]) {
        let blocks = self.objects.entry(object).or_default();
        let mut at = 0;
        for (block, part) in parts(offset, data.len() as u64) {
            let stored = blocks
                .entry(block)
                .or_insert_with(|| vec![0; block_len()].into_boxed_slice());
            let end = at + part.len();
            stored[part].copy_from_slice(&data[at..end]);
            at = end;
        }
    }

    fn zero(&mut self, object: ObjectId, offset: u64, len: u64) {
        let Some(blocks) = self.objects.get_mut(&object) else {
            return;
        };
        let touched = protocol::units::blocks_touched(offset, len);
        let indices: Vec<u64> = blocks.range(touched).map(|(index, _)| *index).collect();
        for index in indices {
            let start = index * BLOCK_BYTES;
            let from = offset.saturating_sub(start) as usize;
            let to = (offset + len - start).min(BLOCK_BYTES) as usize;
            if from == 0 && to == block_len() {
                blocks.remove(&index);
            } else if let Some(block) = blocks.get_mut(&index) {
                block[from..to].fill(0);
            }
        }
    }

    /// Bytes of an object; what was never written is zero.
    #[must_use]
    pub fn read(&self, object: ObjectId, offset: u64, len: u32) -> Bytes {
        let mut out = BytesMut::zeroed(len as usize);
        if let Some(blocks) = self.objects.get(&object) {
            let mut at = 0;
            for (block, part) in parts(offset, u64::from(len)) {
                let end = at + part.len();
                if let Some(stored) = blocks.get(&block) {
                    out[at..end].copy_from_slice(&stored[part]);
                }
                at = end;
            }
        }
        out.freeze()
    }

    /// Bytes of storage that an object takes.
    #[must_use]
    pub fn allocated_bytes(&self, object: ObjectId) -> u64 {
        self.objects
            .get(&object)
            .map_or(0, |blocks| blocks.len() as u64 * BLOCK_BYTES)
    }

    /// Objects that have data.
    pub fn objects_with_data(&self) -> impl Iterator<Item = ObjectId> + '_ {
        self.objects.keys().copied()
    }

    /// The first byte of data, or of a hole, at or after `offset`.
    #[must_use]
    pub fn seek(&self, object: ObjectId, offset: u64, hole: bool) -> Option<u64> {
        let blocks = self.objects.get(&object);
        let first = offset / BLOCK_BYTES;
        let block = if hole {
            (first..).find(|index| !blocks.is_some_and(|blocks| blocks.contains_key(index)))
        } else {
            blocks.and_then(|blocks| blocks.range(first..).next().map(|(index, _)| *index))
        };
        block.map(|index| (index * BLOCK_BYTES).max(offset))
    }

    /// Executes a request, or answers it from its kept reply, and applies what it changes: what
    /// a primary does, alone and at once. `is_open` as in [`Context`].
    pub fn serve(
        &mut self,
        session: SessionId,
        new_object: ObjectId,
        now: Timestamp,
        is_open: &dyn Fn(ObjectId) -> bool,
        request: &Request,
    ) -> Result<Outcome, ServeError> {
        if request.operation.changes() {
            let kept = kept_reply(self, session, request.slot)?;
            match admit(kept, request.number) {
                Admission::Kept(kept) => return Ok(kept.outcome),
                Admission::Past { last } => return Err(ServeError::Past { last }),
                Admission::Execute => {}
            }
        }
        let context = Context {
            now,
            new_object,
            session,
            sequence: new_object.made_at(),
            is_open,
            allocated_bytes: &|object| self.allocated_bytes(object),
            object_bytes_max: i64::MAX as u64,
        };
        Ok(match execute(self, &context, request)? {
            Executed::Answer(outcome) => outcome,
            Executed::Change(set) => {
                self.apply(&set.changes, &set.payload);
                set.outcome
            }
            Executed::Read {
                object,
                offset,
                len,
            } => Outcome::Data(self.read(object, offset, len)),
            Executed::Copy { from, offset, len } => {
                let data = self.read(from, offset, len);
                let write = copied(request, data).expect("it was asked to copy");
                return self.serve(session, new_object, now, is_open, &write);
            }
            Executed::Sync { .. } => Outcome::Done,
            Executed::Seek {
                object,
                offset,
                hole,
                size,
            } => seek_outcome(hole, size, self.seek(object, offset, hole)),
            Executed::Statistics { objects } => Outcome::FileSystem(FileSystemStatistics {
                bytes_total: 1 << 40,
                bytes_free: 1 << 39,
                objects,
                objects_free: 1 << 40,
            }),
        })
    }

    /// Deletes the object if it is an orphan: its last open went.
    pub fn release(&mut self, object: ObjectId) -> Result<(), ServeError> {
        let changes = release_orphan(self, object)?;
        self.apply(&changes, &Bytes::new());
        Ok(())
    }
}

/// Why a request was not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It could not be executed.
    #[error(transparent)]
    Execute(#[from] ExecuteError<Infallible>),
    /// Its slot is past it.
    #[error("the slot's last request has number {last}")]
    Past {
        /// The slot's last number.
        last: u64,
    },
}
