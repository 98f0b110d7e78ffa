//! Comparing replicas.
//!
//! The primary asks each member of the in-sync set what it holds, range by range, and compares it
//! with its own. The question travels in the ordered stream, so whoever answers has everything that
//! was ordered before it, and perhaps more: reading takes time. What differs, and was changed by a
//! record since the question, is asked again; what differs otherwise is a difference.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use protocol::replica::{HASH_BYTES, ITEMS_MAX, Message, Scope};
use protocol::units::{BLOCK_BYTES, BLOCKS_PER_EXTENT, EXTENT_BYTES, ObjectId, Sequence};
use replication::machine::Standing;
use serde::Serialize;
use storage::{DirtyItem, Medium, OBJECT_BYTES_MAX};
use tokio::sync::oneshot;

use super::driver::{Driver, Shared};
use super::keys::Keys;
use super::links::Asker;
use super::repair::{read_again, read_surely};
use super::source::{Pairs, after_key, hash_blocks, range_of_keys};

/// How often something is compared that is changed each time meanwhile.
const ROUNDS_MAX: usize = 16;
/// One question is about an extent at most, which a slow disk reads in seconds: a replica that lives and
/// takes longer is not compared.
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);
/// Differences that are listed; more are counted.
const DIFFERENCES_MAX: usize = 1000;
/// Objects of one question.
const OBJECTS_MAX: usize = 2048;

/// Questions under way on a link.
#[derive(Default)]
pub(super) struct Questions {
    next: u64,
    compare: HashMap<u64, oneshot::Sender<Answer>>,
}

/// What a replica answered.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) names: Vec<Bytes>,
    pub(super) hashes: Bytes,
    pub(super) unreadable: Bytes,
}

impl Answer {
    /// Of an extent: the next one that is not all zero there.
    fn next_extent(&self) -> Option<u64> {
        let name = self.names.first()?;
        let next = u64::from_le_bytes(name[..].try_into().ok()?);
        (next <= OBJECT_BYTES_MAX / EXTENT_BYTES).then_some(next)
    }
}

/// One difference, as `volume verify` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Difference {
    node: String,
    path: String,
    offset: u64,
    length: u64,
}

/// What `volume verify` prints.
#[derive(Debug, Default, Serialize)]
pub(super) struct Verdict {
    /// Every replica was compared and all are equal.
    pub(super) equal: bool,
    /// Bytes of data compared, at each replica.
    pub(super) bytes_compared: u64,
    /// Replicas compared, the primary among them.
    pub(super) replicas_compared: usize,
    /// Replicas that could not be compared.
    pub(super) not_compared: Vec<String>,
    /// What was changed in every round, so that it could not be compared.
    pub(super) unsettled: Vec<String>,
    /// What differs.
    pub(super) differences: Vec<Difference>,
    /// Differences beyond those listed.
    pub(super) differences_not_listed: u64,
    /// Blocks and keys put right by `--repair`.
    pub(super) repaired: u64,
}

impl<M: Medium> Driver<M> {
    pub(super) fn take_compared(&mut self, replica: usize, id: u64, answer: Answer) {
        let waiter = self.links[replica]
            .as_mut()
            .and_then(|l| l.questions.compare.remove(&id));
        if let Some(waiter) = waiter {
            let _ = waiter.send(answer);
        }
    }

    fn ask(&mut self, replica: usize, scope: Scope) -> Option<oneshot::Receiver<Answer>> {
        let link = self.links[replica].as_mut()?;
        link.questions.next += 1;
        let id = link.questions.next;
        let (sender, wait) = oneshot::channel();
        link.questions.compare.insert(id, sender);
        self.send(replica, &Message::Compare { id, scope });
        Some(wait)
    }
}

/// Answers a question about what this replica holds.
pub(super) fn answer<M: Medium>(shared: &Shared<M>, asker: Asker, id: u64, scope: Scope) {
    let shared = shared.clone();
    tokio::task::spawn_local(async move {
        let answer = look(&shared, scope).await;
        let Answer {
            names,
            hashes,
            unreadable,
        } = answer;
        shared.borrow().send_back(
            asker,
            &Message::Compared {
                id,
                names,
                hashes,
                unreadable,
            },
        );
    });
}

async fn look<M: Medium>(shared: &Shared<M>, scope: Scope) -> Answer {
    match scope {
        Scope::Keys { from, to } => {
            let end: Bytes = if to.is_empty() {
                Bytes::from_static(&[0xff; 32])
            } else {
                to
            };
            let mut pairs = Vec::new();
            let scanned = shared.borrow().brick.scan(&from, &end, &mut |key, value| {
                pairs.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
                pairs.len() < ITEMS_MAX
            });
            if scanned.is_err() {
                return Answer {
                    unreadable: Bytes::from_static(&[1]),
                    ..Answer::default()
                };
            }
            of_pairs(&pairs)
        }
        Scope::Objects { from, to } => {
            match shared
                .borrow()
                .brick
                .objects_after(before(from), OBJECTS_MAX + 1)
            {
                Ok(objects) => Answer {
                    names: objects
                        .into_iter()
                        .filter(|object| *object < to)
                        .map(|object| Bytes::copy_from_slice(&object.0.to_le_bytes()))
                        .collect(),
                    ..Answer::default()
                },
                Err(_) => Answer {
                    unreadable: Bytes::from_static(&[1]),
                    ..Answer::default()
                },
            }
        }
        Scope::Extent { object, extent } => of_extent(shared, object, extent).await,
    }
}

fn of_pairs(pairs: &Pairs) -> Answer {
    let mut hashes = BytesMut::with_capacity(pairs.len() * HASH_BYTES);
    for (key, value) in pairs {
        let mut hasher = blake3::Hasher::new();
        hasher.update(key);
        hasher.update(value);
        hashes.extend_from_slice(&hasher.finalize().as_bytes()[..HASH_BYTES]);
    }
    Answer {
        names: pairs.iter().map(|(key, _)| key.clone()).collect(),
        hashes: hashes.freeze(),
        unreadable: Bytes::new(),
    }
}

/// Hashes of an extent's blocks, up to where the object's data ends here: what follows is zeros,
/// and [`differing_blocks`] takes a missing hash for that of zeros. The name is the next extent
/// that is not all zero here, if any.
async fn of_extent<M: Medium>(shared: &Shared<M>, object: ObjectId, extent: u64) -> Answer {
    let mut hashes = BytesMut::new();
    let mut unreadable = vec![0_u8; BLOCKS_PER_EXTENT as usize / 8];
    let mut offset = extent.saturating_mul(EXTENT_BYTES);
    let known = {
        let brick = &shared.borrow().brick;
        brick
            .data_end(object)
            .and_then(|end| Ok((end, brick.next_extent(object, extent + 1)?)))
    };
    let Ok((data_end, next)) = known else {
        return Answer {
            unreadable: Bytes::from(vec![0xff; BLOCKS_PER_EXTENT as usize / 8]),
            ..Answer::default()
        };
    };
    let end = data_end
        .next_multiple_of(BLOCK_BYTES)
        .min(offset.saturating_add(EXTENT_BYTES));
    let mut block = 0;
    while offset < end {
        let piece = (256 * BLOCK_BYTES).min(end - offset);
        match read_again(shared, object, offset, piece as u32).await {
            Some(Ok(data)) => hashes.extend_from_slice(&hash_blocks(&data)),
            _ => {
                // Block by block, to tell which are damaged.
                for at in 0..piece / BLOCK_BYTES {
                    let one = offset + at * BLOCK_BYTES;
                    match read_again(shared, object, one, BLOCK_BYTES as u32).await {
                        Some(Ok(data)) => hashes.extend_from_slice(&hash_blocks(&data)),
                        _ => {
                            let bit = (block + at) as usize;
                            unreadable[bit / 8] |= 1 << (bit % 8);
                            hashes.extend_from_slice(&[0; HASH_BYTES]);
                        }
                    }
                }
            }
        }
        block += piece / BLOCK_BYTES;
        offset += piece;
    }
    let damaged = unreadable.iter().any(|byte| *byte != 0);
    let next = next.map(|next| Bytes::copy_from_slice(&next.to_le_bytes()));
    Answer {
        names: next.into_iter().collect(),
        hashes: hashes.freeze(),
        unreadable: if damaged {
            Bytes::from(unreadable)
        } else {
            Bytes::new()
        },
    }
}

/// Compares every replica with the primary.
pub(super) async fn verify<M: Medium>(shared: &Shared<M>, repair: bool) -> Verdict {
    let mut verdict = Verdict {
        equal: true,
        replicas_compared: 1,
        ..Verdict::default()
    };
    let (members, me) = {
        let d = shared.borrow();
        let staying = d.spec.members().filter(|(r, _)| !d.spec.is_leaving(*r));
        (staying.map(|(r, _)| r).collect::<Vec<_>>(), d.me)
    };
    for replica in members.into_iter().filter(|r| *r != me) {
        let (name, in_sync) = {
            let d = shared.borrow();
            let in_sync = d.machine.standing(replica) == Some(Standing::InSync);
            (d.spec.replicas[replica].node_name.clone(), in_sync)
        };
        let mut run = Comparison {
            shared,
            replica,
            name: name.clone(),
            repair,
            verdict,
        };
        let compared = in_sync && run.all().await.is_some();
        verdict = run.verdict;
        if compared {
            verdict.replicas_compared += 1;
        } else {
            verdict.not_compared.push(name);
        }
    }
    let differs = !verdict.differences.is_empty() || verdict.differences_not_listed > 0;
    let all = verdict.not_compared.is_empty() && verdict.unsettled.is_empty();
    verdict.equal = !differs && all;
    verdict
}

/// `None`: the replica went away, or follows and does not say what it holds.
async fn answered(wait: oneshot::Receiver<Answer>) -> Option<Answer> {
    tokio::time::timeout(ANSWERS_WITHIN, wait).await.ok()?.ok()
}

struct Comparison<'a, M: Medium> {
    shared: &'a Shared<M>,
    replica: usize,
    name: String,
    repair: bool,
    verdict: Verdict,
}

impl<M: Medium> Comparison<'_, M> {
    /// `None`: the replica went away.
    async fn all(&mut self) -> Option<()> {
        self.keys().await?;
        let mut from = ObjectId(0);
        loop {
            let objects = self
                .shared
                .borrow()
                .brick
                .objects_after(before(from), OBJECTS_MAX)
                .ok()?;
            let last = objects.len() < OBJECTS_MAX;
            let to = match objects.last() {
                Some(object) if !last => ObjectId(object.0 + 1),
                _ => ObjectId(u64::MAX),
            };
            self.objects(from, to).await?;
            for object in objects {
                self.object(object).await?;
            }
            if last {
                return Some(());
            }
            from = to;
        }
    }

    /// Asks; also at which place in the order.
    fn ask(&self, scope: Scope) -> Option<(oneshot::Receiver<Answer>, Sequence)> {
        let mut d = self.shared.borrow_mut();
        let asked_at = d.machine.last();
        Some((d.ask(self.replica, scope)?, asked_at))
    }

    /// What the records after `from` touched: what differs there may have been read at two moments.
    /// `None`: that is not known any more.
    fn touched_since(&self, from: Sequence, differing: usize) -> Option<Vec<DirtyItem>> {
        if differing == 0 {
            return Some(Vec::new());
        }
        let mut d = self.shared.borrow_mut();
        d.brick.touched_since(from).ok().flatten()
    }

    /// It was changed in every round.
    fn never_settled(&mut self, what: &str) {
        let line = format!("{what} at {}", self.name);
        if !self.verdict.unsettled.contains(&line) {
            self.verdict.unsettled.push(line);
        }
    }

    async fn keys(&mut self) -> Option<()> {
        let mut from = Bytes::new();
        loop {
            let (pairs, more) = {
                let d = self.shared.borrow();
                range_of_keys(&d, &from).ok()?
            };
            let to = match pairs.last() {
                Some((key, _)) if more => after_key(key),
                _ => Bytes::new(),
            };
            self.key_range(&from, &to).await?;
            if to.is_empty() {
                return Some(());
            }
            from = to;
        }
    }

    async fn key_range(&mut self, from: &Bytes, to: &Bytes) -> Option<()> {
        let scope = Scope::Keys {
            from: from.clone(),
            to: to.clone(),
        };
        let mut rounds = Rounds::new();
        for _ in 0..ROUNDS_MAX {
            let (wait, own, asked_at) = {
                let mut d = self.shared.borrow_mut();
                let asked_at = d.machine.last();
                let wait = d.ask(self.replica, scope.clone())?;
                let end = if to.is_empty() {
                    Bytes::from_static(&[0xff; 32])
                } else {
                    to.clone()
                };
                let mut pairs = Vec::new();
                let scanned = d.brick.scan(from, &end, &mut |key, value| {
                    pairs.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
                    true
                });
                scanned.ok()?;
                (wait, of_pairs(&pairs), asked_at)
            };
            let theirs = answered(wait).await?;
            let bad = differing_keys(&own, &theirs);
            let touched = self.touched_since(asked_at, bad.len());
            let is_over = rounds.take(
                bad,
                touched.as_deref(),
                |item, bad| matches!(item, DirtyItem::Key { key } if key == bad),
            );
            if is_over {
                break;
            }
        }
        if rounds.is_open() {
            self.never_settled("metadata");
        }
        for key in rounds.differing {
            let path = format!("metadata key {}", printable(&key));
            self.report(path, 0, key.len() as u64);
            self.put_right(&[DirtyItem::Key { key }]).await;
        }
        Some(())
    }

    async fn objects(&mut self, from: ObjectId, to: ObjectId) -> Option<()> {
        let scope = Scope::Objects { from, to };
        let mut rounds = Rounds::new();
        for _ in 0..ROUNDS_MAX {
            let (wait, asked_at) = self.ask(scope.clone())?;
            let theirs = answered(wait).await?;
            let own = self
                .shared
                .borrow()
                .brick
                .objects_after(before(from), OBJECTS_MAX)
                .ok()?;
            let bad: Vec<ObjectId> = theirs
                .names
                .iter()
                .filter_map(|name| Some(u64::from_le_bytes(name[..].try_into().ok()?)))
                .map(ObjectId)
                .filter(|object| !own.contains(object))
                .collect();
            let touched = self.touched_since(asked_at, bad.len());
            let is_over = rounds.take(
                bad,
                touched.as_deref(),
                |item, bad| matches!(item, DirtyItem::Dropped { object } if object == bad),
            );
            if is_over {
                break;
            }
        }
        if rounds.is_open() {
            self.never_settled("the list of objects");
        }
        for object in rounds.differing {
            let is_known = {
                let d = self.shared.borrow();
                namespace::exists(&Keys(&d.brick), object).ok()?
            };
            if is_known {
                // Of its bytes the primary has none: they are zeros, and may be there as well.
                self.object(object).await?;
                continue;
            }
            self.report(format!("object {object} that should be gone"), 0, 0);
            self.put_right(&[DirtyItem::Dropped { object }]).await;
        }
        Some(())
    }

    async fn object(&mut self, object: ObjectId) -> Option<()> {
        let mut next = Some(0);
        while let Some(extent) = next {
            let (blocks, after) = self.extent(object, extent).await?;
            self.verdict.bytes_compared += blocks * BLOCK_BYTES;
            next = after.filter(|after| *after > extent);
        }
        Some(())
    }

    /// Returns the blocks compared, and the next extent that holds something here or there.
    async fn extent(&mut self, object: ObjectId, extent: u64) -> Option<(u64, Option<u64>)> {
        let mut rounds = Rounds::new();
        let (mut blocks, mut next) = (0, None);
        for _ in 0..ROUNDS_MAX {
            let (wait, asked_at) = self.ask(Scope::Extent { object, extent })?;
            let own = of_extent(self.shared, object, extent).await;
            let theirs = answered(wait).await?;
            let bad = differing_blocks(&own, &theirs);
            blocks = (own.hashes.len() / HASH_BYTES) as u64;
            next = own
                .next_extent()
                .into_iter()
                .chain(theirs.next_extent())
                .min();
            let touched = self.touched_since(asked_at, bad.len());
            let is_over = rounds.take(bad, touched.as_deref(), |item, bad| {
                touches(item, object, extent * BLOCKS_PER_EXTENT + bad)
            });
            if is_over {
                break;
            }
        }
        if rounds.differing.is_empty() && !rounds.is_open() {
            return Some((blocks, next));
        }
        let path = {
            let d = self.shared.borrow();
            match namespace::path_of(&Keys(&d.brick), object) {
                Ok(Some(path)) => String::from_utf8_lossy(&path).into_owned(),
                _ => format!("object {object}"),
            }
        };
        if rounds.is_open() {
            self.never_settled(&path);
        }
        let differing: Vec<u64> = rounds.differing.into_iter().collect();
        for (first, count) in runs(&differing) {
            let first = extent * BLOCKS_PER_EXTENT + first;
            self.report(path.clone(), first * BLOCK_BYTES, count * BLOCK_BYTES);
            self.put_right(&[DirtyItem::Blocks {
                object,
                start: first,
                end: first + count,
            }])
            .await;
        }
        Some((blocks, next))
    }

    fn report(&mut self, path: String, offset: u64, length: u64) {
        if self.verdict.differences.len() < DIFFERENCES_MAX {
            let node = self.name.clone();
            self.verdict.differences.push(Difference {
                node,
                path,
                offset,
                length,
            });
        } else {
            self.verdict.differences_not_listed += 1;
        }
    }

    /// With `--repair`: sends the primary's content again, as records of the ordered log.
    async fn put_right(&mut self, items: &[DirtyItem]) {
        if !self.repair {
            return;
        }
        for item in items {
            if rewrite(self.shared, item).await {
                self.verdict.repaired += 1;
            }
        }
    }
}

/// Orders the primary's own content of `item` once more: every replica then has it.
async fn rewrite<M: Medium>(shared: &Shared<M>, item: &DirtyItem) -> bool {
    use protocol::record::Change;
    match item {
        DirtyItem::Key { key } => {
            let mut d = shared.borrow_mut();
            let change = match d.brick.get(key) {
                Ok(Some(value)) => Change::Put {
                    key: key.clone(),
                    value,
                },
                Ok(None) => Change::Delete { key: key.clone() },
                Err(_) => return false,
            };
            let ordered = d.order(vec![change], Bytes::new()).is_ok();
            d.finish_turn();
            ordered
        }
        DirtyItem::Dropped { object } => {
            let mut d = shared.borrow_mut();
            if !matches!(d.brick.exists(*object), Ok(false)) {
                return false;
            }
            let ordered = d
                .order(vec![Change::Drop { object: *object }], Bytes::new())
                .is_ok();
            d.finish_turn();
            ordered
        }
        DirtyItem::Blocks { object, start, end } => {
            for block in *start..*end {
                let offset = block * BLOCK_BYTES;
                // What is damaged here is taken from whoever has it.
                let Some(Ok(data)) = read_surely(shared, *object, offset, BLOCK_BYTES as u32).await
                else {
                    return false;
                };
                let mut d = shared.borrow_mut();
                let change = Change::Write {
                    object: *object,
                    offset,
                    len: BLOCK_BYTES as u32,
                };
                if d.order(vec![change], data).is_err() {
                    return false;
                }
                d.finish_turn();
            }
            true
        }
    }
}

fn differing_keys(own: &Answer, theirs: &Answer) -> Vec<Bytes> {
    let table = |answer: &Answer| -> BTreeMap<Bytes, Bytes> {
        let hashes = answer.hashes.chunks(HASH_BYTES).map(Bytes::copy_from_slice);
        answer.names.iter().cloned().zip(hashes).collect()
    };
    let (own, theirs) = (table(own), table(theirs));
    let keys = own.keys().chain(theirs.keys());
    let mut bad: Vec<_> = keys
        .filter(|key| own.get(*key) != theirs.get(*key))
        .cloned()
        .collect();
    bad.sort();
    bad.dedup();
    bad
}

/// Blocks of an extent that differ or cannot be read at either side.
fn differing_blocks(own: &Answer, theirs: &Answer) -> Vec<u64> {
    let bit = |bits: &Bytes, block: usize| {
        bits.get(block / 8)
            .is_some_and(|byte| byte & (1 << (block % 8)) != 0)
    };
    let zeros = hash_blocks(&[0; BLOCK_BYTES as usize]);
    let hash = |answer: &Answer, block: usize| {
        let at = block * HASH_BYTES;
        answer
            .hashes
            .get(at..at + HASH_BYTES)
            .map_or_else(|| zeros.to_vec(), <[u8]>::to_vec)
    };
    (0..BLOCKS_PER_EXTENT as usize)
        .filter(|block| {
            let unreadable = bit(&own.unreadable, *block) || bit(&theirs.unreadable, *block);
            unreadable || hash(own, *block) != hash(theirs, *block)
        })
        .map(|block| block as u64)
        .collect()
}

/// What the rounds of one comparison come to.
struct Rounds<T> {
    /// What differed in every round so far, and may have been changed between the two readings each
    /// time; `None`: there was no round yet.
    open: Option<BTreeSet<T>>,
    /// What differed, and was not changed meanwhile.
    differing: BTreeSet<T>,
}

impl<T: Ord> Rounds<T> {
    fn new() -> Self {
        Self {
            open: None,
            differing: BTreeSet::new(),
        }
    }

    /// A round found these. `touched` is what records changed since its question; `None`: nobody
    /// knows. True: nothing is open any more.
    fn take(
        &mut self,
        bad: Vec<T>,
        touched: Option<&[DirtyItem]>,
        touches: impl Fn(&DirtyItem, &T) -> bool,
    ) -> bool {
        let changed =
            |bad: &T| touched.is_none_or(|touched| touched.iter().any(|item| touches(item, bad)));
        let (open, sure): (Vec<T>, Vec<T>) = bad.into_iter().partition(changed);
        self.differing.extend(sure);
        let before = self.open.take();
        let still = |item: &T| before.as_ref().is_none_or(|before| before.contains(item));
        let open = open.into_iter().filter(still).collect();
        self.open = Some(open);
        !self.is_open()
    }

    fn is_open(&self) -> bool {
        self.open.as_ref().is_none_or(|open| !open.is_empty())
    }
}

fn touches(item: &DirtyItem, of: ObjectId, block: u64) -> bool {
    match item {
        DirtyItem::Blocks { object, start, end } => {
            *object == of && (*start..*end).contains(&block)
        }
        DirtyItem::Dropped { object } => *object == of,
        DirtyItem::Key { .. } => false,
    }
}

/// Runs of neighbours as (first, count).
fn runs(blocks: &[u64]) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for block in blocks {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == *block => *count += 1,
            _ => runs.push((*block, 1)),
        }
    }
    runs
}

/// The place before an object, for listings that begin after one.
fn before(object: ObjectId) -> Option<ObjectId> {
    object.0.checked_sub(1).map(ObjectId)
}

fn printable(key: &[u8]) -> String {
    key.iter()
        .flat_map(|byte| std::ascii::escape_default(*byte))
        .map(char::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: ObjectId = ObjectId(7);

    fn written(block: u64) -> DirtyItem {
        DirtyItem::Blocks {
            object: FILE,
            start: block,
            end: block + 1,
        }
    }

    fn round(rounds: &mut Rounds<u64>, bad: &[u64], touched: &[DirtyItem]) -> bool {
        rounds.take(bad.to_vec(), Some(touched), |item, bad| {
            touches(item, FILE, *bad)
        })
    }

    /// A writer went over an extent, and each round met another block of it in two states.
    #[test]
    fn what_differed_in_one_round_because_it_was_just_written_is_no_difference() {
        let mut rounds = Rounds::new();
        assert!(!round(&mut rounds, &[1], &[written(1)]));
        assert!(round(&mut rounds, &[2], &[written(2)]));
        assert!(rounds.differing.is_empty() && !rounds.is_open());
    }

    #[test]
    fn what_differs_and_was_not_written_since_the_question_is_a_difference_at_once() {
        let mut rounds = Rounds::new();
        assert!(round(&mut rounds, &[1, 2], &[]));
        assert_eq!(rounds.differing, BTreeSet::from([1, 2]));
        let mut rounds = Rounds::new();
        assert!(!round(&mut rounds, &[1, 2], &[written(1), written(2)]));
        assert!(round(&mut rounds, &[1], &[written(3)]));
        assert_eq!(rounds.differing, BTreeSet::from([1]));
    }

    #[test]
    fn what_is_written_all_the_while_is_neither_equal_nor_different() {
        let mut rounds = Rounds::new();
        for _ in 0..ROUNDS_MAX {
            assert!(!round(&mut rounds, &[1], &[written(1)]));
        }
        assert!(rounds.is_open() && rounds.differing.is_empty());
        let unknown = rounds.take(vec![1], None, |_, _| false);
        assert!(!unknown && rounds.differing.is_empty());
    }
}
