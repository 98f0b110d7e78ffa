//! The side that is brought up to date: records in order, resync items as they come.

use bytes::Bytes;
use protocol::ids::GenerationId;
use protocol::mistakes::{Mistake, made};
use protocol::record::{Change, Record};
use protocol::replica::{Doubt, HASH_BYTES, Message};
use protocol::units::{BLOCK_BYTES, BLOCKS_PER_EXTENT, EXTENT_BYTES, ObjectId, Sequence, Term};
use replication::machine::{Refusal, Standing};
use storage::{BrickError, DirtyItem, Medium, Pace, ReadError};

use super::driver::{BrickFlush, Driver, Shared, Token};
use super::links::{Asker, LinkError};
use super::source::{hash_blocks, read_extent};

/// Changes of one record of resync.
const CHANGES_AT_ONCE_MAX: usize = 1024;
/// Doubts of one message.
const DOUBTS_MAX: usize = 4096;

/// What a link holds as target.
#[derive(Default)]
pub(super) struct Target {
    /// Batches that were applied and wait for the next flush.
    batches: Vec<u64>,
}

impl<M: Medium> Driver<M> {
    /// Takes a record from the stream. `Ok(true)`: nothing more may be read for now.
    pub(super) fn take_record(
        &mut self,
        replica: usize,
        record: Record,
    ) -> Result<bool, LinkError> {
        self.machine
            .received(replica, record.sequence, record.term)?;
        if self.ready_for(&record)? {
            self.follow(&record)?;
            return Ok(self.throttled);
        }
        if let Some(link) = &mut self.links[replica] {
            link.received.put_back(record);
        }
        Ok(true)
    }

    /// Whether the blocks that a record's writes build on are at hand.
    pub(super) fn ready_for(&mut self, record: &Record) -> Result<bool, ReadError> {
        for change in &record.changes {
            let Change::Write {
                object,
                offset,
                len,
            } = change
            else {
                continue;
            };
            let token = self.token(Token::Prepared);
            let prepared = self.brick.prepare(*object, *offset, u64::from(*len), token);
            if !matches!(prepared, Ok(false)) {
                self.tokens.remove(&token);
            }
            if !prepared? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Applies changes that have no place in the order.
    pub(super) fn apply_apart(
        &mut self,
        changes: Vec<Change>,
        payload: Bytes,
    ) -> Result<(), BrickError> {
        let mask = self.machine.dirty_mask();
        for part in cut(changes, payload) {
            let pace = self.brick.apply_resync(&part, mask.0)?;
            self.throttled |= pace == Pace::Throttle;
        }
        Ok(())
    }

    /// What a resync brings counts from the primary that this replica follows, and from nobody else:
    /// one that was replaced goes on with a resync that it began for as long as its target hears it,
    /// and what it sends is older than what the next one brought.
    fn check_source(&self, replica: usize) -> Result<(), Refusal> {
        if self.machine.standing(replica) == Some(Standing::MyPrimary) {
            Ok(())
        } else {
            Err(Refusal::OutOfPlace)
        }
    }

    pub(super) fn take_resync(&mut self, replica: usize, record: &Record) -> Result<(), LinkError> {
        self.check_source(replica)?;
        self.apply_apart(record.changes.clone(), record.payload.clone())?;
        if made(Mistake::StoresLater) {
            let batch = record.sequence.0;
            self.send_to_primary(&Message::Resynced { batch });
            return Ok(());
        }
        if let Some(link) = &mut self.links[replica] {
            link.target.batches.push(record.sequence.0);
        }
        self.flush_batches();
        Ok(())
    }

    /// Makes received batches stable, many at once.
    pub(super) fn flush_batches(&mut self) {
        for replica in 0..self.links.len() {
            let mut flushes = self.brick_flushes.values();
            if flushes.any(|purpose| matches!(purpose, BrickFlush::Batches(..))) {
                return; // its end comes back here
            }
            let Some(link) = &mut self.links[replica] else {
                continue;
            };
            if link.target.batches.is_empty() {
                continue;
            }
            let batches = std::mem::take(&mut link.target.batches);
            let asker = self.asker(replica);
            self.flush_brick(None, BrickFlush::Batches(asker, batches));
        }
    }

    pub(super) fn take_exact_keys(
        &mut self,
        replica: usize,
        from: &[u8],
        to: &[u8],
        pairs: &[(Bytes, Bytes)],
    ) -> Result<(), LinkError> {
        self.check_source(replica)?;
        let end: &[u8] = if to.is_empty() { &[0xff; 32] } else { to };
        let wanted: std::collections::BTreeMap<&[u8], &Bytes> =
            pairs.iter().map(|(key, value)| (&key[..], value)).collect();
        let mut changes = Vec::new();
        let mut equal = std::collections::BTreeSet::new();
        let scanned = self.brick.scan(from, end, &mut |key, value| {
            match wanted.get(key) {
                Some(right) if right[..] == *value => {
                    equal.insert(key.to_vec());
                }
                Some(_) => {}
                None => changes.push(Change::Delete {
                    key: Bytes::copy_from_slice(key),
                }),
            }
            true
        });
        if let Err(error) = scanned {
            tracing::warn!(%error, replica, "a range of keys cannot be read, it is replaced");
        }
        for (key, value) in pairs.iter().filter(|(key, _)| !equal.contains(&key[..])) {
            changes.push(Change::Put {
                key: key.clone(),
                value: value.clone(),
            });
        }
        self.apply_apart(changes, Bytes::new())?;
        Ok(())
    }

    pub(super) fn take_exact_objects(
        &mut self,
        replica: usize,
        (from, to): (ObjectId, ObjectId),
        objects: &[ObjectId],
    ) -> Result<(), LinkError> {
        self.check_source(replica)?;
        let mut changes = Vec::new();
        let mut after = from.0.checked_sub(1).map(ObjectId);
        loop {
            let found = self.brick.objects_after(after, DOUBTS_MAX)?;
            let more = found.len() == DOUBTS_MAX;
            after = found.last().copied();
            let beyond = after.is_none_or(|last| last >= to);
            for object in found.into_iter().filter(|object| *object < to) {
                if objects.binary_search(&object).is_err() {
                    changes.push(Change::Drop { object });
                }
            }
            if !more || beyond {
                break;
            }
        }
        self.apply_apart(changes, Bytes::new())?;
        Ok(())
    }
}

/// Cuts changes into records that a journal takes.
fn cut(changes: Vec<Change>, payload: Bytes) -> Vec<Record> {
    let record = |changes, payload| Record {
        sequence: Sequence::ZERO,
        term: Term(0),
        generation: GenerationId::NONE,
        changes,
        payload,
    };
    if changes.len() <= CHANGES_AT_ONCE_MAX {
        return vec![record(changes, payload)];
    }
    let mut rest = payload;
    changes
        .chunks(CHANGES_AT_ONCE_MAX)
        .map(|part| {
            let bytes = part.iter().map(|change| match change {
                Change::Write { len, .. } => *len as usize,
                _ => 0,
            });
            let data = rest.split_to(bytes.sum::<usize>().min(rest.len()));
            record(part.to_vec(), data)
        })
        .collect()
}

impl<M: Medium> Driver<M> {
    /// Tells what this replica has in doubt: the extents that a crash left so, and what its own
    /// records after the last common one touched. It changes nothing here: should either side
    /// crash now, the same is asked and told again.
    pub(super) fn tell_doubts(
        &mut self,
        replica: usize,
        common: Sequence,
    ) -> Result<(), BrickError> {
        let mut items = Vec::new();
        let honest = !made(Mistake::IgnoresDoubts);
        for (object, range) in self.recovery.suspect.iter().filter(|_| honest) {
            let first = range.start / BLOCK_BYTES;
            items.push(Doubt::Blocks(
                *object,
                first,
                range.end.div_ceil(BLOCK_BYTES) - first,
            ));
        }
        self.brick.push()?;
        let touched = self.brick.touched_since(common)?;
        let unknown = touched.is_none();
        items.extend(
            touched
                .unwrap_or_default()
                .into_iter()
                .map(|item| match item {
                    DirtyItem::Key { key } => Doubt::Key(key),
                    DirtyItem::Blocks { object, start, end } => {
                        Doubt::Blocks(object, start, end - start)
                    }
                    DirtyItem::Dropped { object } => Doubt::Object(object),
                }),
        );
        let mut chunks = items.chunks(DOUBTS_MAX).peekable();
        if chunks.peek().is_none() {
            self.send(
                replica,
                &Message::Doubts {
                    items: Vec::new(),
                    last: true,
                    unknown,
                },
            );
        }
        while let Some(chunk) = chunks.next() {
            let last = chunks.peek().is_none();
            self.send(
                replica,
                &Message::Doubts {
                    items: chunk.to_vec(),
                    last,
                    unknown,
                },
            );
        }
        Ok(())
    }
}

/// Says which blocks of an offer differ here, and which extent is the next here.
pub(super) fn answer_offer<M: Medium>(
    shared: &Shared<M>,
    asker: Asker,
    (id, next): (u64, Option<u64>),
    object: ObjectId,
    first_block: u64,
    hashes: Bytes,
) {
    let shared = shared.clone();
    tokio::task::spawn_local(async move {
        let offset = first_block.saturating_mul(BLOCK_BYTES);
        let data_end = shared.borrow().brick.data_end(object).unwrap_or(0);
        let most = offset.saturating_add(EXTENT_BYTES);
        let end = data_end.next_multiple_of(BLOCK_BYTES).clamp(offset, most);
        let len = u32::try_from(end - offset).expect("at most an extent");
        let mut bits = vec![0_u8; (BLOCKS_PER_EXTENT as usize).div_ceil(8)];
        // What is damaged here matches nothing: it is wanted. Beyond either end are zeros.
        let mine = match read_extent(&shared, object, offset, len).await {
            Some(Ok(data)) => hash_blocks(&data),
            _ => Bytes::from(vec![0; len as usize / BLOCK_BYTES as usize * HASH_BYTES]),
        };
        let zeros = hash_blocks(&[0; BLOCK_BYTES as usize]);
        for block in 0..BLOCKS_PER_EXTENT as usize {
            let range = block * HASH_BYTES..(block + 1) * HASH_BYTES;
            let own = mine.get(range.clone()).unwrap_or(&zeros);
            if hashes.get(range).unwrap_or(&zeros) != own {
                bits[block / 8] |= 1 << (block % 8);
            }
        }
        shared.borrow().send_back(
            asker,
            &Message::Want {
                id,
                next,
                bits: Bytes::from(bits),
            },
        );
    });
}
