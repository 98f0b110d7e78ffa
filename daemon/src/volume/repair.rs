//! Blocks that this replica's medium does not give, or gives back otherwise than they were written:
//! they are taken from another replica that is in sync, put in place here, and then read (DUR-4). The
//! primary takes them from a member; a member that finds one takes it from its primary.
//!
//! The question travels in the ordered stream, so the other replica answers with everything that
//! was ordered before it. What is ordered after it must not be overwritten by the answer: at the
//! primary changes of the object wait until the answer is here, and where one came all the same the
//! answer is thrown away and the block asked for again.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use protocol::fs::{Operation, Outcome};
use protocol::mistakes::{Mistake, made};
use protocol::record::Change;
use protocol::replica::Message;
use protocol::units::{BLOCK_BYTES, ObjectId, Sequence, blocks_touched};
use replication::machine::Standing;
use storage::{DirtyItem, Medium, OBJECT_BYTES_MAX, ReadError, ReadOutcome};
use tokio::sync::{Notify, oneshot};

use super::driver::{Driver, Shared, Token};
use super::held::PendingReply;
use super::links::Asker;

/// How often a block is asked for again that changed while the answer was on its way.
const ASKED_AGAIN_MAX: usize = 4;
/// How long a replica may take to answer, at least: its disk may be busy. One that is silent leaves
/// by its deadline.
const ANSWER_WITHIN_MIN: Duration = Duration::from_secs(2);

/// Blocks that a member asks its primary for at a time. Of more the next one that needs one asks.
const MENDING_MAX: usize = 64;

const EINVAL: i32 = 22;

/// What was asked of a replica and not answered yet. Each question has an end, so there are no more
/// than reads under way.
#[derive(Default)]
pub(super) struct Fetches {
    waiting: HashMap<u64, oneshot::Sender<Option<Bytes>>>,
}

/// Repairs under way, and how many there were.
#[derive(Default)]
pub(super) struct Repairs {
    /// Objects with a block on its way, and how many.
    objects: Rc<RefCell<BTreeMap<ObjectId, usize>>>,
    /// Blocks found damaged or unreadable since the replica started.
    pub(super) damaged: Cell<u64>,
    /// Blocks put right since then.
    pub(super) repaired: Cell<u64>,
    /// As member: what is being asked of the primary.
    mending: BTreeSet<(ObjectId, u64)>,
}

impl Repairs {
    /// Whether an operation must wait for the end of a repair.
    pub(super) fn holds(&self, operation: &Operation) -> bool {
        let objects = self.objects.borrow();
        if objects.is_empty() || made(Mistake::RepairsOverNewer) {
            return false;
        }
        match operation {
            Operation::Write { object, .. }
            | Operation::CopyRange { object, .. }
            | Operation::SetAttributes { object, .. }
            | Operation::Allocate { object, .. } => objects.contains_key(object),
            _ => false,
        }
    }

    fn hold(&self, object: ObjectId, changed: &Rc<Notify>) -> Hold {
        *self.objects.borrow_mut().entry(object).or_insert(0) += 1;
        Hold {
            object,
            objects: Rc::clone(&self.objects),
            changed: Rc::clone(changed),
        }
    }

    pub(super) fn found_one(&self) {
        self.damaged.set(self.damaged.get() + 1);
    }
}

/// While it lives, changes of the object wait.
struct Hold {
    object: ObjectId,
    objects: Rc<RefCell<BTreeMap<ObjectId, usize>>>,
    changed: Rc<Notify>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut objects = self.objects.borrow_mut();
        if let Some(count) = objects.get_mut(&self.object) {
            *count -= 1;
            if *count == 0 {
                objects.remove(&self.object);
            }
        }
        self.changed.notify_waiters();
    }
}

/// What became of asking one replica.
enum Asked {
    /// The block can be read here.
    Whole,
    /// It changed meanwhile.
    Changed,
    /// That replica does not have it either, or does not answer.
    Without,
    /// This replica orders nothing any more, or failed.
    Over,
}

impl<M: Medium> Driver<M> {
    /// Whether this replica is a whole one of the volume as it is now.
    fn is_whole(&self) -> bool {
        self.machine.serves() || self.machine.is_joined()
    }

    /// Whether the replica has every block as it belongs here.
    fn gives_blocks(&self, replica: usize) -> bool {
        match self.machine.standing(replica) {
            Some(Standing::InSync) => self.machine.serves(),
            Some(Standing::MyPrimary) => self.machine.is_joined(),
            _ => false,
        }
    }

    /// A block was found damaged. Nobody reads it at a member, which has it put right all the same:
    /// it may be the last one that has it some day. At the primary whoever reads it sees to that.
    pub(super) fn mend(&mut self, object: ObjectId, block: u64) {
        let asks = self.machine.is_joined() && !self.machine.serves();
        let room = self.repairs.mending.len() < MENDING_MAX;
        if !asks || !room || made(Mistake::AsksNobody) {
            return;
        }
        let Some(shared) = self.shared() else { return };
        if self.repairs.mending.insert((object, block)) {
            tokio::task::spawn_local(async move {
                repair_block(&shared, object, block).await;
                let repairs = &mut shared.borrow_mut().repairs;
                repairs.mending.remove(&(object, block));
            });
        }
    }

    /// Asks for a block. `None`: the replica does not have it.
    fn ask_for(
        &mut self,
        replica: usize,
        (object, block): (ObjectId, u64),
    ) -> Option<(u64, u64, oneshot::Receiver<Option<Bytes>>)> {
        if !self.gives_blocks(replica) {
            return None;
        }
        // Of no other connection: an answer to it must not be taken for one to this.
        let id = self.sessions.next_id();
        let link = self.links[replica].as_mut()?;
        let epoch = link.epoch;
        let (sender, wait) = oneshot::channel();
        link.fetches.waiting.insert(id, sender);
        let message = Message::Fetch {
            id,
            object,
            offset: block * BLOCK_BYTES,
            len: BLOCK_BYTES as u32,
        };
        self.send(replica, &message);
        Some((id, epoch, wait))
    }

    pub(super) fn take_fetched(&mut self, replica: usize, id: u64, data: Option<Bytes>) {
        let waiter = self.links[replica]
            .as_mut()
            .and_then(|link| link.fetches.waiting.remove(&id));
        if let Some(waiter) = waiter {
            let _ = waiter.send(data);
        }
    }

    /// Whether the block was changed by a record after `since`, or nobody can say.
    fn changed_since(&mut self, since: Sequence, (object, block): (ObjectId, u64)) -> bool {
        if made(Mistake::RepairsOverNewer) {
            return false;
        }
        let pushed = self.brick.push();
        let touched = pushed.and_then(|()| self.brick.touched_since(since));
        let Ok(Some(items)) = touched else {
            return true;
        };
        items.iter().any(|item| match item {
            DirtyItem::Blocks {
                object: of,
                start,
                end,
            } => *of == object && (*start..*end).contains(&block),
            DirtyItem::Dropped { object: of } => *of == object,
            DirtyItem::Key { .. } => false,
        })
    }

    /// Puts the answer in place.
    fn put_in_place(
        &mut self,
        from: usize,
        since: Sequence,
        (object, block): (ObjectId, u64),
        data: Bytes,
    ) -> Asked {
        // A write that came meanwhile may have put the block right, with newer bytes. One to a part
        // of it leaves it damaged, and the answer may be from before.
        if self.changed_since(since, (object, block)) {
            return Asked::Changed;
        }
        let (offset, len) = (block * BLOCK_BYTES, BLOCK_BYTES as u32);
        let change = Change::Write {
            object,
            offset,
            len,
        };
        if let Err(error) = self.apply_apart(vec![change], data) {
            self.fail(&error);
            return Asked::Over;
        }
        self.repairs.repaired.set(self.repairs.repaired.get() + 1);
        let node = &self.spec.replicas[from].node_name;
        let text = format!("damaged block {block} of object {object} was put right from {node}");
        self.host.event("block_repaired", &self.spec.name, &text);
        Asked::Whole
    }

    /// What a read that nobody could help is answered with, told.
    pub(super) fn tell_failed_read(&self, error: &ReadError) {
        tracing::error!(volume = %self.spec.name, %error, "a read failed");
        let text = format!(
            "a read was answered with an error, as no replica in sync has what is missing: {error}"
        );
        self.host.event("read_failed", &self.spec.name, &text);
    }
}

/// Asks one replica for a block that is damaged here, and puts it in place.
async fn ask_one<M: Medium>(shared: &Shared<M>, replica: usize, at: (ObjectId, u64)) -> Asked {
    let (id, epoch, since, term, within, wait) = {
        let mut d = shared.borrow_mut();
        if !d.is_whole() || d.failed.is_some() {
            return Asked::Over;
        }
        let Some((id, epoch, wait)) = d.ask_for(replica, at) else {
            return Asked::Without;
        };
        let within = d.settings.replica_deadline.max(ANSWER_WITHIN_MIN);
        let term = d.machine.durable().term;
        (id, epoch, d.machine.last(), term, within, wait)
    };
    let answer = tokio::time::timeout(within, wait).await;
    let mut d = shared.borrow_mut();
    let same = |link: &super::links::LinkIo| link.epoch == epoch;
    let connected = d.links[replica].as_ref().is_some_and(same);
    if connected && let Some(link) = &mut d.links[replica] {
        link.fetches.waiting.remove(&id);
    }
    // Whoever is whole no more, or in another term, may stand at another past by now.
    if !d.is_whole() || d.machine.durable().term != term || d.failed.is_some() {
        return Asked::Over;
    }
    if !connected || !d.gives_blocks(replica) {
        return Asked::Without;
    }
    let Ok(Ok(Some(data))) = answer else {
        return Asked::Without;
    };
    if data.len() as u64 != BLOCK_BYTES {
        return Asked::Without;
    }
    let asked = d.put_in_place(replica, since, at, data);
    d.finish_turn();
    asked
}

/// Takes a block that is damaged here from a replica that has it. True: it can be read now.
async fn repair_block<M: Medium>(shared: &Shared<M>, object: ObjectId, block: u64) -> bool {
    let (count, _hold) = {
        let d = shared.borrow();
        (d.links.len(), d.repairs.hold(object, &d.changed))
    };
    for replica in 0..count {
        for _ in 0..ASKED_AGAIN_MAX {
            match ask_one(shared, replica, (object, block)).await {
                Asked::Whole => return true,
                Asked::Changed => {
                    let offset = block * BLOCK_BYTES;
                    let read = read_again(shared, object, offset, BLOCK_BYTES as u32).await;
                    if matches!(read, Some(Ok(_))) {
                        return true;
                    }
                }
                Asked::Without => break,
                Asked::Over => return false,
            }
        }
    }
    false
}

/// Those of the blocks that cannot be read one by one.
async fn those_unreadable<M: Medium>(
    shared: &Shared<M>,
    object: ObjectId,
    blocks: Range<u64>,
) -> Vec<u64> {
    let mut bad = Vec::new();
    for block in blocks {
        let read = read_again(shared, object, block * BLOCK_BYTES, BLOCK_BYTES as u32).await;
        if matches!(read, Some(Err(_))) {
            bad.push(block);
        }
    }
    bad
}

/// Puts right what an error names. True: it is worth reading again.
pub(super) async fn repair<M: Medium>(shared: &Shared<M>, error: &ReadError) -> bool {
    let (object, bad) = match *error {
        ReadError::Corrupt { object, block } => (object, vec![block]),
        ReadError::Unreadable {
            object,
            block,
            count,
            ..
        } => {
            let blocks = block..block.saturating_add(count);
            let bad = those_unreadable(shared, object, blocks).await;
            let d = shared.borrow();
            bad.iter().for_each(|_| d.repairs.found_one());
            (object, bad)
        }
        ReadError::CorruptRow { .. } | ReadError::Io(_) => return false,
    };
    for block in bad {
        if made(Mistake::AsksNobody) || !repair_block(shared, object, block).await {
            return false;
        }
    }
    true
}

/// Reads, waiting for the medium where needed. What cannot be read here is taken from another
/// replica, where this one is the primary and such a one is in sync. `None`: the brick is closing.
pub(super) async fn read_surely<M: Medium>(
    shared: &Shared<M>,
    object: ObjectId,
    offset: u64,
    len: u32,
) -> Option<Result<Bytes, ReadError>> {
    let result = read_again(shared, object, offset, len).await;
    go_on(shared, (object, offset, len), result).await
}

async fn go_on<M: Medium>(
    shared: &Shared<M>,
    (object, offset, len): (ObjectId, u64, u32),
    mut result: Option<Result<Bytes, ReadError>>,
) -> Option<Result<Bytes, ReadError>> {
    let blocks = blocks_touched(offset, u64::from(len));
    // Each round repairs one damaged block at least.
    for _ in blocks.start..=blocks.end {
        match &result {
            Some(Err(error)) if repair(shared, error).await => {
                result = read_again(shared, object, offset, len).await;
            }
            _ => break,
        }
    }
    result
}

/// Completes a read of a client that had to wait, or that this replica cannot answer by itself.
pub(super) async fn finish_read<M: Medium>(
    shared: &Shared<M>,
    reply: PendingReply,
    range: (ObjectId, u64, u32),
    result: Option<Result<Bytes, ReadError>>,
) {
    let result = go_on(shared, range, result).await;
    let mut d = shared.borrow_mut();
    if !d.machine.serves() {
        return; // the client asks the next primary
    }
    let outcome = match result {
        Some(Ok(data)) => Outcome::Data(data),
        Some(Err(error)) => {
            d.tell_failed_read(&error);
            Outcome::Error(super::clients::EIO)
        }
        None => Outcome::Error(EINVAL), // the brick is closing; the connection ends too
    };
    // The bytes are of now, so what was ordered while they were read must be confirmed too.
    let sequence = d.machine.last();
    d.reply_when_confirmed(PendingReply {
        outcome,
        sequence,
        ..reply
    });
    d.finish_turn();
}

/// Reads what is here, waiting for the medium where needed. `None`: the brick is closing.
pub(super) async fn read_again<M: Medium>(
    shared: &Shared<M>,
    object: ObjectId,
    offset: u64,
    len: u32,
) -> Option<Result<Bytes, ReadError>> {
    let wait = {
        let mut d = shared.borrow_mut();
        let (done, wait) = oneshot::channel();
        let token = d.token(Token::Read(done));
        match d.brick.read(object, offset, len, token) {
            Ok(ReadOutcome::Ready(data)) => {
                d.tokens.remove(&token);
                return Some(Ok(data));
            }
            Ok(ReadOutcome::Pending) => wait,
            Err(error) => {
                d.tokens.remove(&token);
                return Some(Err(error));
            }
        }
    };
    wait.await.ok()
}

/// Answers a question for a block, from this replica alone.
pub(super) fn answer_fetch<M: Medium>(
    shared: &Shared<M>,
    asker: Asker,
    id: u64,
    (object, offset, len): (ObjectId, u64, u32),
) {
    let whole = u64::from(len) == BLOCK_BYTES && offset.is_multiple_of(BLOCK_BYTES);
    let readable = whole && offset < OBJECT_BYTES_MAX;
    let shared = shared.clone();
    tokio::task::spawn_local(async move {
        let data = if readable {
            let read = read_again(&shared, object, offset, len).await;
            read.and_then(Result::ok)
        } else {
            None
        };
        let answer = Message::Fetched { id, data };
        shared.borrow().send_back(asker, &answer);
    });
}
