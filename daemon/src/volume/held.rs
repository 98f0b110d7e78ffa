//! Answers that wait until what they rest on is confirmed.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use protocol::frame::RawFrame;
use protocol::fs::Outcome;
use protocol::ids::SessionId;
use protocol::units::Sequence;
use tokio::sync::oneshot;

use super::leases::Leased;
use super::outbox::Outbox;

/// Answers that may wait before clients are not read any more.
const UNCONFIRMED_MAX: usize = 16 << 10;
/// Bytes of them.
const UNCONFIRMED_BYTES_MAX: usize = 64 << 20;
/// What an entry of a directory takes besides its name, about.
const ENTRY_BYTES: usize = 128;

/// See [`Unconfirmed`].
pub(super) enum Held {
    Reply(PendingReply),
    /// A client is let in: not before its session is known wherever it may go next.
    Welcome(Rc<Outbox>, RawFrame),
}

impl Held {
    /// Bytes of the answer, about.
    fn bytes(&self) -> usize {
        let Self::Reply(reply) = self else { return 0 };
        match &reply.outcome {
            Outcome::Data(data) => data.len(),
            Outcome::Entries(entries) => {
                let names = entries.iter().map(|entry| entry.name.len() + ENTRY_BYTES);
                names.sum()
            }
            _ => 0,
        }
    }
}

/// A reply on its way.
pub(super) struct PendingReply {
    pub(super) session: SessionId,
    pub(super) slot: u16,
    pub(super) number: u64,
    pub(super) sequence: Sequence,
    /// When the request was taken; `None` if nobody waited for its work.
    pub(super) since: Option<Duration>,
    /// The record at `sequence` carries the request out.
    pub(super) changed: bool,
    pub(super) leased: Leased,
    pub(super) outcome: Outcome,
}

/// Who waits for a flush.
pub(super) enum FlushWaiter {
    Client {
        session: SessionId,
        number: u64,
        slot: u16,
        since: Option<Duration>,
    },
    /// A new client is let in once its session is stable: what it keeps can be put back only into a
    /// session that is known (DUR-5).
    Welcome(Rc<Outbox>, RawFrame),
    Task(oneshot::Sender<()>),
}

/// Answers in the order in which they were given, each with the record that has to be confirmed.
#[derive(Default)]
pub(super) struct Unconfirmed {
    queue: VecDeque<(Sequence, Held)>,
    bytes: usize,
}

impl Unconfirmed {
    pub(super) fn push(&mut self, until: Sequence, what: Held) {
        self.bytes += what.bytes();
        self.queue.push_back((until, what));
    }

    /// The next one, if what it rests on is confirmed.
    pub(super) fn pop(&mut self, confirmed: Sequence) -> Option<Held> {
        let (_, what) = self.queue.pop_front_if(|(until, _)| *until <= confirmed)?;
        self.bytes -= what.bytes();
        Some(what)
    }

    pub(super) fn clear(&mut self) {
        self.queue.clear();
        self.bytes = 0;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether no more should come for now.
    pub(super) fn is_full(&self) -> bool {
        self.queue.len() >= UNCONFIRMED_MAX || self.bytes >= UNCONFIRMED_BYTES_MAX
    }
}
