//! A mount that asks and reads answers when the test says so.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use protocol::frame::RawFrame;
use protocol::fs::{
    Attributes, Caller, FS_VERSION, Hello, HelloReply, IO_BYTES_MAX, Operation, Outcome, Present,
    Recalled, Replay, Reply, Request, SLOT_NONE, kind,
};
use protocol::ids::{SessionId, VolumeId};
use protocol::units::{ObjectId, Sequence, Term, Timestamp};

use super::stage::{Played, Stage};

/// See the module.
pub(crate) struct Mount {
    link: Played,
    session: SessionId,
    numbers: u64,
    /// It answers changes early.
    early: bool,
    /// What it was told that it holds.
    pub(crate) leases: BTreeSet<ObjectId>,
    /// Of these, what it holds alone.
    pub(crate) alone: BTreeSet<ObjectId>,
    /// Files of which it will send early changes again.
    pub(crate) sends_again: Vec<ObjectId>,
    /// When it changed files that it holds alone, by what it was told besides.
    pub(crate) times: BTreeMap<ObjectId, Timestamp>,
    /// Directories in which the last answer says that it changed names.
    pub(crate) directories: Vec<Attributes>,
    /// What it was told to give back, and has not.
    pub(crate) recalls: Vec<Recalled>,
}

fn plain(kind: u8) -> RawFrame {
    RawFrame {
        kind,
        meta: Bytes::new(),
        payload: Bytes::new(),
    }
}

/// What a session that keeps nothing says first.
pub(crate) fn hello(volume: VolumeId, session: SessionId, leases: u32, early: bool) -> Hello {
    Hello {
        version: FS_VERSION,
        volume,
        session,
        client_name: "played".to_owned(),
        mounted_at_ms: 0,
        read_only: false,
        opens: Vec::new(),
        confirmed: (Term(0), Sequence::ZERO),
        kept_terms: Vec::new(),
        leases,
        early,
    }
}

/// Says hello as this session.
pub(crate) async fn greet(
    link: &mut Played,
    volume: VolumeId,
    session: SessionId,
    leases: u32,
    early: bool,
) -> HelloReply {
    let hello = hello(volume, session, leases, early);
    link.say_frame(&hello.encode()).await;
    let frame = link.hear_frame().await.expect("it is answered");
    HelloReply::decode(&frame).expect("a greeting")
}

/// As [`greet`], and it is let in.
async fn welcomed(stage: &Stage, link: &mut Played, session: SessionId, leases: u32, early: bool) {
    let welcome = greet(link, stage.spec.id, session, leases, early).await;
    assert!(matches!(welcome, HelloReply::Welcome { .. }), "{welcome:?}");
}

impl Mount {
    /// One that keeps nothing.
    pub(crate) async fn new(stage: &Stage, session: u8) -> Self {
        Self::over(stage, stage.mount(), session, 0).await
    }

    /// One that may hold so many leases, on a connection from anywhere.
    pub(crate) async fn over(stage: &Stage, link: Played, session: u8, leases: u32) -> Self {
        Self::begin(stage, link, session, leases, false).await
    }

    /// One that answers changes early.
    pub(crate) async fn early(stage: &Stage, session: u8, leases: u32) -> Self {
        Self::early_over(stage, stage.mount(), session, leases).await
    }

    /// The same on a connection from anywhere.
    pub(crate) async fn early_over(stage: &Stage, link: Played, session: u8, leases: u32) -> Self {
        Self::begin(stage, link, session, leases, true).await
    }

    async fn begin(stage: &Stage, mut link: Played, session: u8, leases: u32, early: bool) -> Self {
        let session = SessionId([session; 16]);
        welcomed(stage, &mut link, session, leases, early).await;
        // There is nothing to present.
        link.say_frame(&plain(kind::PRESENTED)).await;
        Self {
            link,
            session,
            numbers: 0,
            early,
            leases: BTreeSet::new(),
            alone: BTreeSet::new(),
            sends_again: Vec::new(),
            times: BTreeMap::new(),
            directories: Vec::new(),
            recalls: Vec::new(),
        }
    }

    /// The session goes on, on a new connection, and presents what it holds.
    pub(crate) async fn comes_back(&mut self, stage: &Stage, leases: u32) {
        self.comes_back_over(stage, stage.mount(), leases).await;
        self.has_presented().await;
    }

    /// The same on a connection from anywhere, and it has more to present.
    pub(crate) async fn comes_back_over(&mut self, stage: &Stage, link: Played, leases: u32) {
        self.link = link;
        self.recalls.clear();
        welcomed(stage, &mut self.link, self.session, leases, self.early).await;
        let present = Present {
            authors: Vec::new(),
            stable: (Term(0), Sequence::ZERO),
            leases: self.leases.iter().copied().collect(),
            exclusive: self.alone.iter().copied().collect(),
            early: std::mem::take(&mut self.sends_again),
        };
        self.link.say_frame(&present.encode()).await;
    }

    /// It has presented everything.
    pub(crate) async fn has_presented(&mut self) {
        self.link.say_frame(&plain(kind::PRESENTED)).await;
    }

    /// It says that this was confirmed, and that the primary may lack it.
    pub(crate) async fn replays(&mut self, operation: Operation, payload: Bytes) {
        self.numbers += 1;
        let replay = Replay {
            order: Some((Term(1), Sequence(1 << 20))),
            at: (Term(1), Sequence(1 << 20)),
            time: Timestamp(0),
            request: Request {
                slot: 1,
                number: self.numbers,
                caller: Caller::default(),
                operation,
                early: None,
                payload,
            },
        };
        self.link.say_frame(&replay.encode()).await;
    }

    /// Its connection is closed by the other end.
    pub(crate) async fn is_cut_off(&mut self) {
        while self.link.hear_frame().await.is_some() {}
    }

    /// It is unmounted.
    pub(crate) async fn ends(mut self) {
        self.link.say_frame(&plain(kind::GOODBYE)).await;
        self.is_cut_off().await;
    }

    pub(crate) async fn ask(&mut self, slot: u16, operation: Operation, payload: Bytes) {
        self.ask_early(slot, operation, payload, None).await;
    }

    /// Whoever asked was answered already, when the object was known to be changed then.
    pub(crate) async fn ask_early(
        &mut self,
        slot: u16,
        operation: Operation,
        payload: Bytes,
        early: Option<Timestamp>,
    ) {
        let frame = self.request(slot, operation, payload, early);
        self.link.say_frame(&frame).await;
    }

    fn request(
        &mut self,
        slot: u16,
        operation: Operation,
        payload: Bytes,
        early: Option<Timestamp>,
    ) -> RawFrame {
        self.numbers += 1;
        let request = Request {
            slot,
            number: self.numbers,
            caller: Caller::default(),
            operation,
            early,
            payload,
        };
        request.encode()
    }

    /// As [`Mount::ask_early`], over a line on which it takes so long. False: it was closed meanwhile.
    pub(crate) async fn ask_slowly(
        &mut self,
        operation: Operation,
        payload: Bytes,
        known: Timestamp,
        takes: Duration,
    ) -> bool {
        let frame = self.request(0, operation, payload, Some(known));
        let mut bytes = BytesMut::new();
        frame.write_to(&mut bytes);
        let parts = bytes.chunks(2);
        let pause = takes / u32::try_from(parts.len()).expect("a small write");
        for part in parts {
            let closed = async { while self.link.hear_frame().await.is_some() {} };
            if tokio::time::timeout(pause, closed).await.is_ok() {
                return false;
            }
            self.link.say_bytes(part).await;
        }
        true
    }

    pub(crate) async fn answer(&mut self) -> Outcome {
        loop {
            let frame = self.link.hear_frame().await.expect("it is answered");
            match frame.kind {
                kind::REPLY => {
                    let reply = Reply::decode(&frame).expect("a reply");
                    self.leases.extend(reply.leases);
                    self.alone.extend(reply.exclusive);
                    self.times.extend(reply.times);
                    self.directories = reply.directories;
                    return reply.outcome;
                }
                kind::RECALL => {
                    let recalled = Recalled::decode(&frame).expect("a recall");
                    self.leases.retain(|of| !recalled.objects.contains(of));
                    self.alone.retain(|of| !recalled.objects.contains(of));
                    self.recalls.push(recalled);
                }
                _ => {}
            }
        }
    }

    /// Gives back what was recalled.
    pub(crate) async fn gives_back(&mut self) {
        for recalled in std::mem::take(&mut self.recalls) {
            self.link.say_frame(&recalled.give_back()).await;
        }
    }

    pub(crate) async fn call(&mut self, slot: u16, operation: Operation) -> Outcome {
        self.ask(slot, operation, Bytes::new()).await;
        self.answer().await
    }

    pub(crate) async fn create(&mut self, name: &'static str) -> ObjectId {
        match self.call(0, create(name)).await {
            Outcome::Entry(attributes) => attributes.object,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn write(&mut self, slot: u16, object: ObjectId, offset: u64) {
        let operation = Operation::Write {
            object,
            offset,
            append: false,
            kill_privileges: false,
        };
        let payload = Bytes::from(vec![5; IO_BYTES_MAX as usize]);
        self.ask(slot, operation, payload).await;
    }

    pub(crate) async fn finds(&mut self, name: &'static str) -> bool {
        let (parent, name) = (ObjectId::ROOT, Bytes::from_static(name.as_bytes()));
        let found = self
            .call(SLOT_NONE, Operation::Lookup { parent, name })
            .await;
        matches!(found, Outcome::Entry(_))
    }
}

pub(crate) fn create(name: &'static str) -> Operation {
    Operation::Create {
        parent: ObjectId::ROOT,
        name: Bytes::from_static(name.as_bytes()),
        mode: 0o644,
        exclusive: true,
    }
}
