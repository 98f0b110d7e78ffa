//! A mount without a kernel: a session that goes on over reconnects and asks again by number.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use protocol::frame::{RawFrame, take_frame};
use protocol::fs::{
    Caller, Elsewhere, FS_VERSION, Hello, HelloReply, Operation, Outcome, Reply, Request,
    SLOT_NONE, kind,
};
use protocol::ids::{SessionId, VolumeId};
use protocol::preamble::Purpose;
use protocol::units::{ObjectId, Sequence, Term};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, oneshot};

use super::cluster::{Directory, dial, place_of};
use super::network::{End, Network, Place, Reader, Writer};

/// A greeting may take as long as a promise to another mount, and a little.
const GREETING_WITHIN: Duration = Duration::from_secs(3);
/// A node that says nothing for so long is left.
const SILENCE: Duration = Duration::from_millis(600);
/// A sign of life is asked for when nothing came for so long.
const PING_AFTER: Duration = Duration::from_millis(150);

struct Pending {
    frame: RawFrame,
    answer: Option<oneshot::Sender<Outcome>>,
}

#[derive(Default)]
struct State {
    /// In the order of asking.
    pending: BTreeMap<u64, ((u16, u64), Pending)>,
    asked: u64,
    /// Asked, and not yet sent on this connection.
    unsent: Vec<RawFrame>,
    numbers: BTreeMap<u16, u64>,
    plain: u64,
    opens: Vec<ObjectId>,
    /// Whether the session was known where it went, once it had begun.
    forgotten: bool,
    welcomed: bool,
    /// The highest record that an answer rested on, and the term of the primary that gave it.
    seen: (Term, Sequence),
}

/// One mount. Clones are one mount.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) place: Place,
    session: SessionId,
    volume: VolumeId,
    nodes: usize,
    network: Network,
    directory: Directory,
    state: Rc<RefCell<State>>,
    wake: Rc<Notify>,
}

impl Client {
    pub(crate) fn new(
        place: Place,
        session: SessionId,
        volume: VolumeId,
        nodes: usize,
        network: Network,
        directory: Directory,
    ) -> Self {
        Self {
            place,
            session,
            volume,
            nodes,
            network,
            directory,
            state: Rc::default(),
            wake: Rc::default(),
        }
    }

    /// Whether the session ended at the primary while the mount lived.
    pub(crate) fn was_forgotten(&self) -> bool {
        self.state.borrow().forgotten
    }

    /// Does an operation; `slot` is the caller's own, and carries one operation at a time. Waits
    /// for as long as it takes.
    pub(crate) async fn call(&self, slot: u16, operation: Operation, payload: Bytes) -> Outcome {
        let (answer, wait) = oneshot::channel();
        {
            let mut state = self.state.borrow_mut();
            let key = if operation.changes() {
                let number = state.numbers.entry(slot).or_insert(0);
                *number += 1;
                (slot, *number)
            } else {
                state.plain += 1;
                (SLOT_NONE, state.plain)
            };
            let request = Request {
                slot: key.0,
                number: key.1,
                caller: Caller::default(),
                operation,
                payload,
            };
            let frame = request.encode();
            state.unsent.push(frame.clone());
            state.asked += 1;
            let order = state.asked;
            let pending = Pending {
                frame,
                answer: Some(answer),
            };
            state.pending.insert(order, (key, pending));
        }
        self.wake.notify_one();
        wait.await.expect("the client outlives its callers")
    }

    /// The mount holds the object open from now on.
    pub(crate) fn holds(&self, object: ObjectId) {
        self.state.borrow_mut().opens.push(object);
    }

    /// Keeps a connection for ever.
    pub(crate) async fn run(self) {
        let mut at = self.place % self.nodes;
        loop {
            let dialled = dial(
                self.network.clone(),
                self.directory.clone(),
                self.place,
                at,
                Purpose::Client(self.volume),
            );
            let next = match tokio::time::timeout(Duration::from_secs(1), dialled).await {
                Ok(Ok(end)) => self.serve(end).await,
                _ => None,
            };
            tokio::time::sleep(Duration::from_millis(20)).await;
            at = next.unwrap_or((at + 1) % self.nodes);
        }
    }

    /// One connection; returns where to go next, if that is known.
    async fn serve(&self, end: End) -> Option<Place> {
        let End {
            mut reader,
            mut writer,
        } = end;
        let mut buffer = BytesMut::new();
        let hello = Hello {
            version: FS_VERSION,
            volume: self.volume,
            session: self.session,
            client_name: format!("client{}", self.place),
            mounted_at_ms: 0,
            read_only: false,
            opens: self.state.borrow().opens.clone(),
            confirmed: self.state.borrow().seen,
        };
        send(&mut writer, &hello.encode()).await?;
        let greeted = tokio::time::timeout(GREETING_WITHIN, next_frame(&mut reader, &mut buffer));
        match HelloReply::decode(&greeted.await.ok()??).ok()? {
            HelloReply::Welcome { known, term, .. } => {
                let mut state = self.state.borrow_mut();
                if state.seen.0 != term {
                    state.seen = (term, Sequence::ZERO);
                }
                state.forgotten |= state.welcomed && !known;
                state.welcomed = true;
                state.unsent.clear();
                let again: Vec<RawFrame> = state
                    .pending
                    .values()
                    .map(|(_, p)| p.frame.clone())
                    .collect();
                state.unsent.extend(again);
            }
            HelloReply::Elsewhere(elsewhere) => return elsewhere.primary.map(place_of),
            HelloReply::Refused { message, .. } => panic!("a client was refused: {message}"),
        }
        let mut quiet = 0;
        loop {
            let unsent = std::mem::take(&mut self.state.borrow_mut().unsent);
            for frame in &unsent {
                send(&mut writer, frame).await?;
            }
            tokio::select! {
                biased;
                frame = next_frame(&mut reader, &mut buffer) => {
                    quiet = 0;
                    match self.take(&frame?) {
                        Ok(()) => {}
                        Err(elsewhere) => return elsewhere.primary.map(place_of),
                    }
                }
                () = self.wake.notified() => {}
                () = tokio::time::sleep(PING_AFTER) => {
                    quiet += 1;
                    if PING_AFTER * quiet > SILENCE {
                        return None;
                    }
                    let ping = RawFrame { kind: kind::PING, meta: Bytes::new(), payload: Bytes::new() };
                    send(&mut writer, &ping).await?;
                }
            }
        }
    }

    fn take(&self, frame: &RawFrame) -> Result<(), Elsewhere> {
        match frame.kind {
            kind::REPLY => {
                let reply = Reply::decode(frame).expect("a reply is well formed");
                let mut state = self.state.borrow_mut();
                state.seen.1 = state.seen.1.max(reply.sequence);
                let key = (reply.slot, reply.number);
                let order = state.pending.iter().find(|(_, (k, _))| *k == key);
                if let Some(order) = order.map(|(order, _)| *order)
                    && let Some((_, pending)) = state.pending.remove(&order)
                    && let Some(answer) = pending.answer
                {
                    let _ = answer.send(reply.outcome);
                }
                Ok(())
            }
            kind::ELSEWHERE => Err(Elsewhere::decode(frame).unwrap_or_default()),
            _ => Ok(()),
        }
    }
}

async fn send(writer: &mut Writer, frame: &RawFrame) -> Option<()> {
    let mut bytes = BytesMut::new();
    frame.write_to(&mut bytes);
    let sent = tokio::time::timeout(Duration::from_secs(1), writer.write_all(&bytes));
    sent.await.ok()?.ok()
}

async fn next_frame(reader: &mut Reader, buffer: &mut BytesMut) -> Option<RawFrame> {
    loop {
        if let Some(frame) = take_frame(buffer).expect("a primary sends frames") {
            return Some(frame);
        }
        if reader.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}
