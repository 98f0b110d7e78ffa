//! What a replica has in memory of what its primary sent: messages in their order that are not
//! handled yet. Under protocol B a record counts for the primary once it is here; so it is applied
//! also where the connection is gone by then, before this replica tells anybody where it stands.

use std::collections::VecDeque;

use bytes::BytesMut;
use protocol::record::Record;
use protocol::replica::Message;
use protocol::volume::Protocol;
use replication::machine::{Phase, Standing};
use replication::state::Disk;
use storage::{Medium, ReadError};

use super::driver::{Driver, Shared};
use super::links::{LinkError, Next};

/// Bytes that may wait here: enough to bridge a disk that hesitates, little enough to be applied
/// within moments before a take-over.
const RECEIVED_BYTES_MAX: usize = 16 << 20;
/// Messages that may wait here.
const RECEIVED_MAX: usize = 4096;

/// A message that waits.
struct Waiting {
    message: Message,
    /// A record that only records are before: it was acknowledged as received.
    counted: bool,
    bytes: usize,
}

/// Messages of one connection that wait, in their order.
#[derive(Default)]
pub(super) struct Received {
    queue: VecDeque<Waiting>,
    bytes: usize,
}

impl Received {
    fn push(&mut self, message: Message, counted: bool, bytes: usize) {
        self.bytes += bytes;
        self.queue.push_back(Waiting {
            message,
            counted,
            bytes,
        });
    }

    fn pop(&mut self) -> Option<Waiting> {
        let waiting = self.queue.pop_front()?;
        self.bytes -= waiting.bytes;
        Some(waiting)
    }

    /// A record that was received and cannot be applied yet: it comes first again.
    pub(super) fn put_back(&mut self, record: Record) {
        let bytes = record.payload.len();
        self.bytes += bytes;
        self.queue.push_front(Waiting {
            message: Message::Record(record),
            counted: true,
            bytes,
        });
    }

    fn all_counted(&self) -> bool {
        self.queue.iter().all(|waiting| waiting.counted)
    }

    fn is_full(&self) -> bool {
        self.bytes >= RECEIVED_BYTES_MAX || self.queue.len() >= RECEIVED_MAX
    }
}

impl<M: Medium> Driver<M> {
    /// Takes what was read from a replica.
    ///
    /// Under B records are acknowledged as received before they are applied, and are read also
    /// while the disk is behind. Otherwise each message is handled as it comes.
    pub(super) fn take_frames(
        &mut self,
        shared: &Shared<M>,
        replica: usize,
        buffer: &mut BytesMut,
    ) -> Result<Next, LinkError> {
        let by_receipt = self.machine.protocol_in_force() == Protocol::B
            && self.machine.standing(replica) == Some(Standing::MyPrimary);
        if by_receipt {
            if self.receive(shared, replica, buffer)? {
                self.acknowledge();
                return Ok(Next::Again);
            }
            let stalled = self.work_off(shared, replica)?;
            let full = self.links[replica]
                .as_ref()
                .is_some_and(|link| link.received.is_full());
            return Ok(match (stalled, full) {
                (false, _) => Next::Read,
                (true, false) => Next::ReadOrWait,
                (true, true) => Next::Wait,
            });
        }
        let mut stalled = self.work_off(shared, replica)?;
        while !stalled {
            let Some((message, _)) = self.next_message(replica, buffer)? else {
                return Ok(Next::Read);
            };
            stalled = self.handle(shared, replica, message)?;
        }
        Ok(Next::Wait)
    }

    /// Puts what can be read into the queue. True: a record counts that did not before.
    fn receive(
        &mut self,
        shared: &Shared<M>,
        replica: usize,
        buffer: &mut BytesMut,
    ) -> Result<bool, LinkError> {
        let mut fresh = false;
        loop {
            let Some(link) = self.links[replica].as_mut() else {
                return Ok(fresh);
            };
            if link.received.is_full() {
                return Ok(fresh);
            }
            let (empty, counted) = (link.received.queue.is_empty(), link.received.all_counted());
            let Some((message, bytes)) = self.next_message(replica, buffer)? else {
                return Ok(fresh);
            };
            match &message {
                Message::Record(record) if counted => {
                    self.machine
                        .received(replica, record.sequence, record.term)?;
                    fresh = true;
                }
                // These have no place in the order of records.
                Message::AskPromise { .. } | Message::Stable { .. } => {
                    self.handle(shared, replica, message)?;
                    continue;
                }
                _ if empty => {
                    self.handle(shared, replica, message)?;
                    continue;
                }
                _ => {}
            }
            let counted = counted && matches!(message, Message::Record(_));
            if let Some(link) = &mut self.links[replica] {
                link.received.push(message, counted, bytes);
            }
        }
    }

    /// Handles what waits. `Ok(true)`: something cannot be handled yet.
    fn work_off(&mut self, shared: &Shared<M>, replica: usize) -> Result<bool, LinkError> {
        while !self.throttled {
            let link = self.links[replica].as_mut();
            let Some(waiting) = link.and_then(|link| link.received.pop()) else {
                return Ok(false);
            };
            let stalled = match waiting.message {
                Message::Record(record) if waiting.counted => {
                    let ready = self.ready_for(&record);
                    if !matches!(ready, Ok(true)) {
                        if let Some(link) = &mut self.links[replica] {
                            link.received.put_back(record);
                        }
                        return Ok(!ready?);
                    }
                    self.follow(&record)?;
                    false
                }
                message => self.handle(shared, replica, message)?,
            };
            if stalled {
                return Ok(true);
            }
        }
        Ok(true)
    }

    /// The connection to the replica is gone. Returns the records that it sent and that were
    /// acknowledged as received, if it was the primary and they can stand alone.
    pub(super) fn keep_received(&mut self, replica: usize) -> Vec<Record> {
        let followed = self.machine.standing(replica) == Some(Standing::MyPrimary)
            && self.machine.phase() == Phase::Following
            && self.machine.durable().disk != Disk::Inconsistent;
        let queue = self.links[replica]
            .as_mut()
            .map(|link| std::mem::take(&mut link.received).queue);
        let counted = queue
            .into_iter()
            .flatten()
            .filter(|waiting| waiting.counted);
        let records: Vec<_> = counted
            .filter_map(|waiting| match waiting.message {
                Message::Record(record) => Some(record),
                _ => None,
            })
            .collect();
        if followed && !records.is_empty() {
            return records;
        }
        let elsewhere = |link: &super::links::LinkIo| {
            link.received
                .queue
                .front()
                .is_some_and(|first| first.counted)
        };
        if self.left_over.is_empty() && !self.links.iter().flatten().any(elsewhere) {
            self.machine.forget_received();
        }
        Vec::new()
    }

    /// The replica stops: what was received is applied, as far as that needs no waiting.
    pub(super) fn apply_what_was_received(&mut self) {
        for replica in 0..self.links.len() {
            let kept = self.keep_received(replica);
            self.left_over.extend(kept);
        }
        self.apply_left_over();
    }

    /// Another primary takes this replica on: what came from elsewhere is not applied any more.
    pub(super) fn drop_received(&mut self, from: usize) {
        self.left_over.clear();
        for (replica, link) in self.links.iter_mut().enumerate() {
            if let Some(link) = link.as_mut().filter(|_| replica != from) {
                link.received = Received::default();
            }
        }
    }

    /// Applies what a primary that is gone sent; where that has to wait, it is tried again.
    pub(super) fn apply_left_over(&mut self) {
        if self.failed.is_some() {
            return;
        }
        while let Some(record) = self.left_over.pop_front() {
            match self.apply_one_left_over(&record) {
                Ok(true) => {}
                Ok(false) => {
                    self.left_over.push_front(record);
                    return;
                }
                Err(LeftOverError::Brick(error)) => return self.fail(&error),
                Err(LeftOverError::Read(error)) => {
                    tracing::error!(
                        volume = %self.spec.name, %error,
                        "what was received cannot be applied: this replica does not take over"
                    );
                    self.left_over.clear();
                    self.machine.lose_received();
                    return;
                }
            }
        }
    }

    fn apply_one_left_over(&mut self, record: &Record) -> Result<bool, LeftOverError> {
        if !self.ready_for(record)? {
            return Ok(false);
        }
        self.follow(record)?;
        Ok(true)
    }
}

/// Why a received record was not applied.
#[derive(Debug, thiserror::Error)]
enum LeftOverError {
    /// What it builds on cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The brick failed.
    #[error(transparent)]
    Brick(#[from] storage::BrickError),
}
