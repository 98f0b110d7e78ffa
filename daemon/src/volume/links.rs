//! The connection to another replica: dialling, greeting, reading, and who handles what arrives.
//!
//! Of two replicas the one with the lower index dials. Both say [`Message::Hello`] first; the
//! identity behind the connection must be the node that the volume names for that replica.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use protocol::frame::{FrameError, take_frame};
use protocol::ids::{BrickId, NodeId, VolumeId};
use protocol::mistakes::{Mistake, made};
use protocol::packed::{PackedError, Unpacker, ZSTD};
use protocol::preamble::Purpose;
use protocol::replica::{Message, REPLICA_VERSION};
use protocol::units::{BLOCKS_PER_EXTENT, Sequence, Term, is_within_reach};
use replication::decision::Rule;
use replication::machine::{Position, Refusal, Standing};
use replication::state::{Membership, Report, Welcome};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use storage::Medium;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::driver::{BrickFlush, Driver, Shared};
use super::outbox::Outbox;
use super::source::Wanted;
use super::strangers::{check_names, two_at_once};
use super::stream::Stream;
use super::words;

/// How long a connection may take to greet.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause between two attempts to dial.
const REDIAL_PAUSE: Duration = Duration::from_millis(20);
/// Longest pause, after many failures.
const REDIAL_PAUSE_MAX: Duration = Duration::from_secs(1);
/// How long the last word to a replica that is not taken on may take.
const LAST_WORD_WITHIN: Duration = Duration::from_millis(500);
/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;
/// How often what had to wait is tried again, if nothing says so earlier.
const STALLED_PAUSE: Duration = Duration::from_millis(20);

/// What the reader of a link does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// More is read.
    Read,
    /// What was said must leave first, then it goes on at once.
    Again,
    /// Nothing is read before something changed.
    Wait,
    /// More is read while something waits for a change.
    ReadOrWait,
}

/// A connected replica.
pub(super) struct LinkIo {
    /// Which connection: a task of an older one must not touch a newer.
    pub(super) epoch: u64,
    pub(super) outbox: Rc<Outbox>,
    /// When the two met.
    pub(super) since: Duration,
    /// Records go to it as they are ordered.
    pub(super) feed_live: bool,
    /// A resync runs towards it: dropped to stop it.
    pub(super) source: Option<Rc<super::source::Source>>,
    pub(super) target: super::target::Target,
    pub(super) received: super::received::Received,
    pub(super) room: Option<super::room::Said>,
    pub(super) questions: super::verify::Questions,
    pub(super) fetches: super::repair::Fetches,
    /// It takes packed frames.
    pub(super) unpacks: bool,
    pub(super) unpacker: Unpacker,
}

/// A connection on which something was asked. What is answered later goes out on it or not at all:
/// numbers of questions, batches and offers begin anew with each connection and each process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker {
    pub(super) replica: usize,
    /// As [`LinkIo::epoch`]; zero where there is none.
    pub(super) epoch: u64,
}

impl LinkIo {
    pub(super) fn stop_source(&mut self) {
        self.feed_live = false;
        if let Some(source) = self.source.take() {
            source.stop();
        }
    }
}

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    /// The socket or TLS failed.
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
    /// Bytes that are no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame that is no message.
    #[error(transparent)]
    Decode(#[from] protocol::codec::DecodeError),
    /// A frame that holds another one, and does not.
    #[error(transparent)]
    Packed(#[from] PackedError),
    /// A message that does not fit.
    #[error(transparent)]
    OutOfPlace(#[from] Refusal),
    /// JSON that does not parse.
    #[error("a message does not parse: {0}")]
    Json(#[from] serde_json::Error),
    /// The brick cannot be read.
    #[error(transparent)]
    Read(#[from] storage::ReadError),
    /// The brick failed.
    #[error(transparent)]
    Brick(#[from] storage::BrickError),
    /// Not who it should be.
    #[error("the other end is {found}, not {expected}")]
    Identity {
        /// The node that the volume names.
        expected: NodeId,
        /// The node that is there.
        found: NodeId,
    },
    /// It speaks of another volume.
    #[error("it speaks of volume {theirs}, this node of volume {ours}")]
    OtherVolume {
        /// Theirs.
        theirs: VolumeId,
        /// Ours.
        ours: VolumeId,
    },
    /// It says that it is a replica which it cannot be.
    #[error(
        "it says that it is replica {theirs} of the volume, of which this node is replica {ours}"
    )]
    Place {
        /// Theirs.
        theirs: usize,
        /// Ours.
        ours: usize,
    },
    /// It holds another brick.
    #[error("it holds brick {theirs} where the volume has brick {expected}")]
    OtherBrick {
        /// What is there.
        theirs: BrickId,
        /// What should be.
        expected: BrickId,
    },
    /// No volume gets there.
    #[error("it says that it is in term {term} at record {last}, where no volume can be")]
    BeyondReach {
        /// Theirs.
        term: Term,
        /// Theirs.
        last: Sequence,
    },
    /// Two processes have its identity.
    #[error(
        "two processes say that they are this replica, each with a copy of the node's key and the brick's identity"
    )]
    Twice,
    /// It greets for something else.
    #[error("the other end does not greet as a replica, or greets again")]
    Foreign,
    /// Versions.
    #[error("the other end speaks version {theirs} between replicas, this one {ours}")]
    Version {
        /// Theirs.
        theirs: u16,
        /// Ours.
        ours: u16,
    },
    /// One of the two has not learned yet how the replicas changed.
    #[error("the other end knows version {theirs} of the volume's replicas, this one {ours}")]
    Layout {
        /// Theirs.
        theirs: u64,
        /// Ours.
        ours: u64,
    },
    /// The other end closed.
    #[error("the other end closed the connection")]
    Closed,
    /// What a resync would change cannot be kept.
    #[error("{reason}")]
    NoRoom {
        /// Why.
        reason: String,
    },
    /// It took too long.
    #[error("the other end did not greet in time")]
    Timeout,
}

/// A value as JSON bytes.
pub(super) fn to_json<T: Serialize>(value: &T) -> Bytes {
    // These types have string keys and plain values only.
    Bytes::from(serde_json::to_vec(value).expect("plain data is always JSON"))
}

fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, LinkError> {
    Ok(serde_json::from_slice(bytes)?)
}

/// Dials a replica for as long as the volume runs.
pub(super) async fn keep_dialling<M: Medium>(driver: Shared<M>, replica: usize) {
    let mut pause = REDIAL_PAUSE;
    let brick = driver.borrow().spec.replicas[replica].brick;
    loop {
        let (node, volume, host, name, waits) = {
            let d = driver.borrow();
            if d.stopping || d.failed.is_some() {
                return;
            }
            let spec = &d.spec.replicas[replica];
            if spec.brick != brick || !d.spec.is_member(replica) {
                return; // it was removed
            }
            // Its node runs the brick whose place it takes, until that is gone.
            let waits = d.spec.members().any(|(place, other)| {
                place != replica && other.node == spec.node && d.spec.is_leaving(place)
            });
            let name = d.spec.name.clone();
            (spec.node, d.spec.id, d.host.clone(), name, waits)
        };
        if !waits && driver.borrow().links[replica].is_none() {
            let dialled =
                tokio::time::timeout(GREETING_TIMEOUT, host.dial(node, Purpose::Replica(volume)))
                    .await;
            match dialled {
                Ok(Ok(stream)) => {
                    let began = tokio::time::Instant::now();
                    let ended = serve_link(driver.clone(), stream, Some(replica)).await;
                    // A node that accepts and closes is not asked fifty times a second.
                    pause = if began.elapsed() >= REDIAL_PAUSE_MAX {
                        REDIAL_PAUSE
                    } else {
                        (pause * 2).min(REDIAL_PAUSE_MAX)
                    };
                    tracing::debug!(volume = %name, replica, ?ended, "a link to a replica ended");
                }
                Ok(Err(error)) => {
                    tracing::trace!(volume = %name, replica, %error, "a replica cannot be reached");
                    pause = (pause * 2).min(REDIAL_PAUSE_MAX);
                }
                Err(_) => pause = (pause * 2).min(REDIAL_PAUSE_MAX),
            }
        }
        tokio::time::sleep(pause).await;
    }
}

/// Runs one connection between replicas to its end. `dialled`: whom it was made to.
pub(super) async fn serve_link<M: Medium>(
    driver: Shared<M>,
    stream: Stream,
    dialled: Option<usize>,
) -> Result<(), LinkError> {
    let peer = stream.peer();
    let (mut reader, writer) = stream.split();
    let outbox = Outbox::new();
    let writing = tokio::task::spawn_local(outbox.clone().run(writer));
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    let result = async {
        let mut told = None;
        if dialled.is_some() {
            told = Some(send_hello(&driver, &outbox).await);
        }
        let greeted = tokio::time::timeout(GREETING_TIMEOUT, next_frame(&mut reader, &mut buffer));
        let frame = greeted.await.map_err(|_| LinkError::Timeout)??;
        let checked = check_hello(&driver.borrow(), Message::decode(&frame)?, peer);
        let (replica, greeting) = match checked {
            Ok(checked) => checked,
            Err(error) => {
                // The other end is told what there is here, so that it can say as much.
                if told.is_none() && driver.borrow().replica_of(peer).is_some() {
                    send_hello(&driver, &outbox).await;
                    let _ = tokio::time::timeout(LAST_WORD_WITHIN, outbox.below(1)).await;
                }
                return Err(error);
            }
        };
        if let Some(ours) = dialled.filter(|expected| *expected != replica) {
            let theirs = replica;
            return Err(LinkError::Place { theirs, ours });
        }
        let told = match told {
            Some(told) => told,
            None => send_hello(&driver, &outbox).await,
        };
        if driver.borrow().seen[replica].is_over(greeting.incarnation) {
            let more = tokio::time::timeout(GREETING_TIMEOUT, next_frame(&mut reader, &mut buffer));
            more.await.map_err(|_| LinkError::Timeout)??;
            return Err(two_at_once(&driver, replica));
        }
        let epoch = {
            let mut d = driver.borrow_mut();
            if d.stopping || d.failed.is_some() {
                return Err(LinkError::Closed);
            }
            d.check_in_step();
            let epoch = d.link_up(replica, outbox.clone(), &told, greeting);
            d.finish_turn();
            epoch
        };
        let ended = read_link(&driver, replica, epoch, &mut reader, &mut buffer).await;
        driver.borrow_mut().link_lost(replica, Some(epoch));
        ended
    }
    .await;
    outbox.close();
    writing.abort();
    if let Err(error) = &result {
        if let LinkError::OutOfPlace(refusal) = error {
            words::not_done(refusal);
        }
        let name = driver.borrow().spec.name.clone();
        tracing::info!(volume = %name, %error, "a link between replicas ended");
        let mut d = driver.borrow_mut();
        if let Some(replica) = dialled.or_else(|| d.replica_of(peer)) {
            d.note_refusal(replica, error);
        }
    }
    result
}

async fn next_frame<R: AsyncRead + Unpin>(
    reader: &mut R,
    buffer: &mut BytesMut,
) -> Result<protocol::frame::RawFrame, LinkError> {
    loop {
        if let Some(frame) = take_frame(buffer)? {
            return Ok(frame);
        }
        if reader.read_buf(buffer).await? == 0 {
            return Err(LinkError::Closed);
        }
    }
}

async fn read_link<M: Medium, R: AsyncRead + Unpin>(
    driver: &Shared<M>,
    replica: usize,
    epoch: u64,
    reader: &mut R,
    buffer: &mut BytesMut,
) -> Result<(), LinkError> {
    loop {
        let next = {
            let mut d = driver.borrow_mut();
            let current = d.links[replica]
                .as_ref()
                .is_some_and(|link| link.epoch == epoch);
            if !current || d.stopping || d.failed.is_some() {
                return Err(LinkError::Closed);
            }
            let now = d.now();
            d.machine.heard(now, replica);
            let next = d.take_frames(driver, replica, buffer)?;
            d.finish_turn();
            next
        };
        // An extent is being listed in the activity log, or the disk is behind.
        let changed = driver.borrow().changed.clone();
        let moment = tokio::time::timeout(STALLED_PAUSE, changed.notified());
        match next {
            Next::Again => {
                tokio::task::yield_now().await;
                continue;
            }
            Next::Wait => {
                let _ = moment.await;
                continue;
            }
            Next::ReadOrWait => {
                buffer.reserve(READ_BYTES);
                tokio::select! {
                    // In order: what happens must not be left to chance.
                    biased;
                    read = reader.read_buf(buffer) => if read? == 0 {
                        return Err(LinkError::Closed);
                    },
                    _ = moment => {}
                }
                continue;
            }
            Next::Read => {}
        }
        buffer.reserve(READ_BYTES);
        if reader.read_buf(buffer).await? == 0 {
            return Err(LinkError::Closed);
        }
    }
}

/// Waits until nothing that was acknowledged as received is still to be applied, and then says
/// hello: what it tells of this replica must hold all of that. Returns that.
async fn send_hello<M: Medium>(driver: &Shared<M>, outbox: &Outbox) -> Report {
    loop {
        let changed = {
            let d = driver.borrow();
            if !d.machine.has_received() {
                let report = d.machine.report();
                outbox.send(hello(&d, &report));
                return report;
            }
            d.changed.clone()
        };
        let _ = tokio::time::timeout(STALLED_PAUSE, changed.notified()).await;
    }
}

fn hello<M: Medium>(driver: &Driver<M>, report: &Report) -> protocol::frame::RawFrame {
    let replica = &driver.spec.replicas[driver.me];
    Message::Hello {
        version: REPLICA_VERSION,
        volume: driver.spec.id,
        replica: u8::try_from(driver.me).expect("REPLICAS_MAX"),
        brick: replica.brick,
        incarnation: driver.incarnation,
        report: to_json(&Greets {
            report,
            understands: [ZSTD],
        }),
    }
    .encode()
}

/// What a hello tells besides fixed fields. Others ignore what they do not know.
#[derive(Serialize)]
struct Greets<'a> {
    #[serde(flatten)]
    report: &'a Report,
    understands: [&'a str; 1],
}

/// What was read of one.
struct Greeting {
    report: Report,
    /// It takes packed frames.
    unpacks: bool,
    /// Which start of its process it is.
    incarnation: u64,
}

/// Older ones say nothing of it.
#[derive(Deserialize)]
struct Understands {
    #[serde(default)]
    understands: Vec<String>,
}

/// Whoever believed in such a term could make nothing any more, nor follow anybody else.
fn check_reach(term: Term, last: Sequence) -> Result<(), LinkError> {
    if is_within_reach(term, last) {
        Ok(())
    } else {
        Err(LinkError::BeyondReach { term, last })
    }
}

fn check_hello<M: Medium>(
    driver: &Driver<M>,
    message: Message,
    peer: Option<NodeId>,
) -> Result<(usize, Greeting), LinkError> {
    let Message::Hello {
        version,
        volume,
        replica,
        brick,
        report,
        incarnation,
    } = message
    else {
        return Err(LinkError::Foreign);
    };
    if version != REPLICA_VERSION {
        return Err(LinkError::Version {
            theirs: version,
            ours: REPLICA_VERSION,
        });
    }
    let replica = usize::from(replica);
    check_names(&driver.spec, driver.me, (volume, replica, brick), peer)?;
    let Understands { understands } = from_json(&report)?;
    let unpacks = understands.iter().any(|what| what == ZSTD);
    let report: Report = from_json(&report)?;
    check_reach(report.term, report.last)?;
    let ours = driver.machine.report().layout;
    if report.layout != ours {
        return Err(LinkError::Layout {
            theirs: report.layout,
            ours,
        });
    }
    let greeting = Greeting {
        report,
        unpacks,
        incarnation,
    };
    Ok((replica, greeting))
}

impl<M: Medium> Driver<M> {
    /// What this replica tells of itself rests on the machine and the brick being at one place.
    fn check_in_step(&mut self) {
        let (machine, brick) = (self.machine.last(), self.brick.applied());
        if machine != brick {
            self.fail(&format!(
                "the replica believes to be at record {machine}, its brick is at {brick}"
            ));
        }
    }

    fn link_up(
        &mut self,
        replica: usize,
        outbox: Rc<Outbox>,
        told: &Report,
        Greeting {
            report,
            unpacks,
            incarnation,
        }: Greeting,
    ) -> u64 {
        if self.links[replica].is_some() {
            self.link_lost(replica, None);
        }
        self.seen[replica].met(incarnation);
        let epoch = self.sessions.next_id();
        let now = self.now();
        self.links[replica] = Some(LinkIo {
            epoch,
            outbox,
            since: now,
            feed_live: false,
            source: None,
            target: super::target::Target::default(),
            received: super::received::Received::default(),
            room: None,
            questions: super::verify::Questions::default(),
            fetches: super::repair::Fetches::default(),
            unpacks,
            unpacker: Unpacker::default(),
        });
        self.pack_frames(replica);
        let later = report.term > self.machine.durable().term;
        if self.machine.serves() && later {
            note_rule(Rule::LaterTerm); // it steps down, or is the side of a split brain that stays
        }
        self.machine.met(now, replica, told, report);
        self.heartbeat(replica);
        epoch
    }

    /// A link is gone. With an epoch: only if it still is that one.
    pub(super) fn link_lost(&mut self, replica: usize, epoch: Option<u64>) {
        let same = |link: &LinkIo| epoch.is_none_or(|epoch| epoch == link.epoch);
        if !self.links[replica].as_ref().is_some_and(same) {
            return;
        }
        let kept = self.keep_received(replica);
        if let Some(mut link) = self.links[replica].take() {
            link.outbox.close();
            link.stop_source();
        }
        self.resyncs[replica].abandon();
        if self.failed.is_some() {
            return;
        }
        if epoch.is_some() && self.machine.serves() {
            let left = self.machine.standing(replica) == Some(Standing::InSync);
            let text = words::lost(&self.spec.replicas[replica].node_name, left);
            self.host.event("replica_lost", &self.spec.name, &text);
        }
        let was_primary = self.machine.standing(replica) == Some(Standing::MyPrimary);
        self.left_over.extend(kept);
        self.apply_left_over();
        let now = self.now();
        self.machine.lost(now, replica);
        self.hurry.notify_one();
        self.forget_acknowledged();
        if was_primary {
            let node = self.spec.replicas[replica].node_name.clone();
            let text = format!("the connection to {node}, the primary, is gone");
            self.host.event("primary_lost", &self.spec.name, &text);
        }
        self.finish_turn();
    }

    /// Frames to the replica are packed where the volume asks for it and both know how.
    pub(super) fn pack_frames(&self, replica: usize) {
        if let Some(link) = &self.links[replica] {
            link.outbox.pack(self.settings.compression && link.unpacks);
        }
    }

    /// The next message that came from the replica, and its bytes; unpacked where it was packed.
    pub(super) fn next_message(
        &mut self,
        replica: usize,
        buffer: &mut BytesMut,
    ) -> Result<Option<(Message, usize)>, LinkError> {
        let Some(frame) = take_frame(buffer)? else {
            return Ok(None);
        };
        let frame = match &mut self.links[replica] {
            Some(link) => link.unpacker.unpack(frame, Message::may_be_packed)?,
            None => frame,
        };
        let bytes = frame.meta.len() + frame.payload.len();
        Ok(Some((Message::decode(&frame)?, bytes)))
    }

    /// Signs of life to everyone.
    pub(super) fn heartbeats(&mut self) {
        for replica in 0..self.links.len() {
            self.heartbeat(replica);
        }
    }

    fn heartbeat(&mut self, replica: usize) {
        let Ok(space) = self.brick.space() else {
            return;
        };
        let message = Message::Heartbeat {
            term: self.machine.durable().term,
            free_bytes: space.free_bytes,
            total_bytes: space.total_bytes,
            confirmed: self.machine.confirmed(),
        };
        self.send(replica, &message);
    }

    /// Handles what arrived. `Ok(true)`: the link must wait.
    // A table: one row a message.
    pub(super) fn handle(
        &mut self,
        shared: &Shared<M>,
        replica: usize,
        message: Message,
    ) -> Result<bool, LinkError> {
        let now = self.now();
        match message {
            Message::Hello { .. } => return Err(LinkError::Foreign),
            Message::Record(record) => return self.take_record(replica, record),
            Message::Ack {
                received,
                applied,
                stable,
                policy,
            } => {
                let position = Position {
                    received,
                    applied,
                    stable,
                    policy,
                };
                self.machine.acknowledged(now, replica, position);
            }
            Message::Flush { id, .. } if made(Mistake::FlushesLater) => {
                self.send_to_primary(&Message::Flushed { id });
            }
            Message::Flush { id, objects } => {
                let asker = self.asker(replica);
                self.flush_brick(objects, BrickFlush::ForPrimary { id, asker });
            }
            Message::Flushed { id } => {
                self.machine
                    .flushed(now, replica, replication::machine::FlushId(id));
            }
            Message::Heartbeat {
                free_bytes,
                total_bytes,
                ..
            } => self.note_room(replica, free_bytes, total_bytes),
            Message::Welcome(json) => {
                let welcome: Welcome = from_json(&json)?;
                check_reach(welcome.term, welcome.at)?;
                self.welcomed(replica, &welcome)?;
            }
            Message::Joined(json) | Message::Membership(json)
                if self.machine.standing(replica) != Some(Standing::MyPrimary) =>
            {
                drop(json); // crossed a change of roles
            }
            Message::Joined(json) => {
                let membership: Membership = from_json(&json)?;
                self.machine
                    .membership_changed(replica, &membership, true)?;
                self.clear_doubts();
                self.replays.has_everything = true;
                self.brick.clear_suspects()?;
                self.resyncs[self.me].finished();
                self.without_point = false;
                // The decision must be durable before what it rests on goes.
                self.finish_turn();
                self.drop_resync_points()?;
            }
            Message::Membership(json) => {
                let membership: Membership = from_json(&json)?;
                self.machine
                    .membership_changed(replica, &membership, false)?;
            }
            Message::HandOver { term, agreed } => {
                let agreed = match &agreed[..] {
                    [] => None,
                    json => Some(from_json(json)?),
                };
                self.machine.handed_over(now, replica, term, agreed)?;
            }
            Message::AskPromise {
                term,
                sent_us,
                lease_ms,
            } => self.give_promise(replica, term, sent_us, lease_ms),
            Message::Promise { sent_us, lease_ms } => self.take_promise(replica, sent_us, lease_ms),
            Message::Stable {
                term,
                layout,
                positions,
            } => {
                self.machine.told_stable(replica, term, layout, &positions);
            }
            Message::Pull { after } => self.serve_pull(shared, replica, after),
            Message::Pulled => self.machine.pulled(now, replica),
            Message::Leaving => self.machine.parting(replica),
            Message::Resync(record) => self.take_resync(replica, &record)?,
            Message::Resynced { batch } => self.batch_done(replica, batch),
            Message::Ask {
                common,
                term,
                revision,
            } => {
                self.machine.asked(term, revision)?;
                self.drop_received(replica);
                self.tell_doubts(replica, common)?;
            }
            Message::Doubts {
                items,
                last,
                unknown,
            } => {
                self.take_doubts(replica, items, last, unknown)?;
            }
            Message::Offer {
                id,
                object,
                first_block,
                hashes,
            } => {
                let next = first_block / BLOCKS_PER_EXTENT + 1;
                let next = self.brick.next_extent(object, next)?;
                let asker = self.asker(replica);
                super::target::answer_offer(shared, asker, (id, next), object, first_block, hashes);
            }
            Message::Want { id, next, bits } => self.take_want(replica, id, Wanted { bits, next }),
            Message::ExactKeys { from, to, pairs } => {
                self.take_exact_keys(replica, &from, &to, &pairs)?;
            }
            Message::ExactObjects { from, to, objects } => {
                self.take_exact_objects(replica, (from, to), &objects)?;
            }
            Message::Compare { id, scope } => {
                super::verify::answer(shared, self.asker(replica), id, scope);
            }
            Message::Compared {
                id,
                names,
                hashes,
                unreadable,
            } => {
                let answer = super::verify::Answer {
                    names,
                    hashes,
                    unreadable,
                };
                self.take_compared(replica, id, answer);
            }
            Message::Fetch {
                id,
                object,
                offset,
                len,
            } => {
                let asker = self.asker(replica);
                super::repair::answer_fetch(shared, asker, id, (object, offset, len));
            }
            Message::Fetched { id, data } => self.take_fetched(replica, id, data),
        }
        Ok(false)
    }

    fn welcomed(&mut self, replica: usize, welcome: &Welcome) -> Result<(), LinkError> {
        self.retain_before(replica, welcome)?;
        let now = self.now();
        self.machine.welcomed(now, replica, welcome)?;
        self.drop_received(replica);
        self.forget_acknowledged();
        let node = &self.spec.replicas[replica].node_name;
        tracing::info!(
            volume = %self.spec.name, primary = %node, rule = welcome.rule.name(),
            "following a primary"
        );
        self.resyncs[self.me].target_began(welcome);
        // The decision must be durable before an item or a record of it is applied.
        self.finish_turn();
        Ok(())
    }

    pub(super) fn refused(&mut self, replica: usize, rule: Rule) {
        note_rule(rule);
        let text = words::refused(&self.spec.replicas[replica].node_name, rule);
        self.host.event("replica_refused", &self.spec.name, &text);
    }
}

/// A rule by which nothing is sent.
pub(super) fn note_rule(rule: Rule) {
    tracing::debug!(rule = rule.name(), "a replica is not taken on");
}

/// What a link's reader shares with the tasks that it starts.
pub(super) fn borrow_link<M: Medium, T>(
    driver: &RefCell<Driver<M>>,
    replica: usize,
    epoch: u64,
    f: impl FnOnce(&mut Driver<M>) -> T,
) -> Option<T> {
    let mut d = driver.borrow_mut();
    let current = d.links[replica]
        .as_ref()
        .is_some_and(|link| link.epoch == epoch);
    current.then(|| f(&mut d))
}
