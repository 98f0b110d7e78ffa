//! BAD-1: whatever bytes arrive, every decoder answers with a value or a typed error; and what it
//! accepts, it encodes to something that it accepts again as the same.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use cairn_tests::{Random, setting};
use nbd::handshake::{Export, Handshake, OPTION_BYTES_MAX, Refusal, Security, Step};
use nbd::numbers::PAYLOAD_BYTES_MAX;
use nbd::request::{Command, Rules};
use protocol::frame::{FRAME_BYTES_MAX, RawFrame, take_frame};
use protocol::fs::{
    Author, Hello, HelloReply, Lock, LockClass, LockKind, LockOwner, Operation, Outcome, Present,
    Recalled, Replay, Reply, Request, offer, offered,
};
use protocol::ids::{GenerationId, SessionId, VolumeId};
use protocol::packed::{Packer, Unpacker};
use protocol::preamble::{PREAMBLE_BYTES, Purpose};
use protocol::record::{Change, Record};
use protocol::replica::Message;
use protocol::units::{ObjectId, Sequence, Term, Timestamp};

fn seeds() -> Vec<RawFrame> {
    let name = Bytes::from_static(b"name");
    let request = |operation, payload: &'static [u8]| {
        let payload = Bytes::from_static(payload);
        Request {
            slot: 3,
            number: 9,
            caller: Default::default(),
            operation,
            early: None,
            payload,
        }
        .encode()
    };
    let record = Record {
        sequence: Sequence(5),
        term: Term(2),
        generation: GenerationId([9; 16]),
        changes: vec![
            Change::Put {
                key: name.clone(),
                value: name.clone(),
            },
            Change::Write {
                object: ObjectId(7),
                offset: 4096,
                len: 4,
            },
            Change::Zero {
                object: ObjectId(7),
                offset: 1,
                len: 2,
            },
        ],
        payload: name.clone(),
    };
    let author = Author {
        at: (Term(1), Sequence(4)),
        session: SessionId([1; 16]),
        slot: 2,
        number: 3,
    };
    let reply = |outcome| {
        let (sequence, stable) = (Sequence(4), Sequence(3));
        Reply {
            slot: 1,
            number: 2,
            sequence,
            stable,
            lease_ms: 1500,
            changed: true,
            authors: vec![author],
            leases: vec![ObjectId(1), ObjectId(5)],
            old: vec![ObjectId(6)],
            exclusive: Some(ObjectId(5)),
            times: vec![(ObjectId(5), Timestamp(7))],
            busy: vec![ObjectId(1)],
            directories: vec![protocol::fs::Attributes::default()],
            outcome,
        }
        .encode()
    };
    let welcome = HelloReply::Welcome {
        version: 3,
        term: Term(4),
        known: true,
        session_timeout_ms: 1,
        block: false,
        ends: vec![(Term(2), Sequence(8))],
        gathers: true,
        in_doubt: false,
        object_bytes_max: 1 << 44,
    }
    .encode();
    let lock = Lock {
        owner: LockOwner {
            class: LockClass::Ranges,
            id: 7,
        },
        kind: LockKind::Exclusive,
        start: 1,
        end: 8,
        pid: 3,
    };
    let present = Present {
        authors: vec![author],
        stable: (Term(1), Sequence(2)),
        leases: vec![ObjectId(4)],
        exclusive: vec![ObjectId(4)],
        early: vec![ObjectId(4), ObjectId(5)],
    }
    .encode();
    let recalled = Recalled {
        number: 3,
        objects: vec![ObjectId(5), ObjectId(6)],
    };
    let replay = Replay {
        order: Some(author.at),
        at: author.at,
        time: Timestamp(7),
        request: Request {
            slot: 3,
            number: 9,
            caller: Default::default(),
            operation: Operation::Unlink {
                parent: ObjectId(1),
                name: name.clone(),
            },
            early: None,
            payload: Bytes::new(),
        },
    }
    .encode();
    let packed = {
        let payload = Bytes::from(vec![7; 2000]);
        let record = Record {
            payload,
            ..record.clone()
        };
        Packer::default().pack(Message::Resync(record).encode(), false)
    };
    vec![
        packed,
        request(
            Operation::Create {
                parent: ObjectId(1),
                name: name.clone(),
                mode: 0,
                exclusive: true,
            },
            b"",
        ),
        request(
            Operation::Write {
                object: ObjectId(2),
                offset: 0,
                append: false,
                kill_privileges: false,
            },
            b"data",
        ),
        request(
            Operation::CopyRange {
                from: ObjectId(2),
                from_offset: 5,
                object: ObjectId(3),
                offset: 9,
                len: 7,
            },
            b"",
        ),
        request(
            Operation::MakeUnnamed {
                parent: ObjectId(1),
                mode: 0o600,
            },
            b"",
        ),
        request(
            Operation::SetAttributes {
                object: ObjectId(2),
                set: Default::default(),
            },
            b"",
        ),
        request(
            Operation::ReadDirectory {
                object: ObjectId(2),
                cookie: 0,
                bytes_max: 1,
                plus: true,
            },
            b"",
        ),
        request(
            Operation::Lock {
                object: ObjectId(2),
                lock,
                ticket: 5,
                waits: true,
            },
            b"",
        ),
        request(
            Operation::Unlock {
                object: ObjectId(2),
                owner: lock.owner,
                start: 0,
                end: 9,
            },
            b"",
        ),
        reply(Outcome::Lock(Some(lock))),
        reply(Outcome::Entry(Default::default())),
        reply(Outcome::Data(name.clone())),
        reply(Outcome::FileSystem(Default::default())),
        Hello {
            version: 7,
            volume: VolumeId([2; 16]),
            session: SessionId([1; 16]),
            client_name: "c".into(),
            mounted_at_ms: 0,
            read_only: false,
            opens: vec![ObjectId(3)],
            confirmed: (Term(3), Sequence(5)),
            kept_terms: vec![Term(2), Term(3)],
            leases: 9,
            early: true,
        }
        .encode(),
        welcome,
        present,
        replay,
        recalled.recall(),
        recalled.give_back(),
        offer(&recalled.objects),
        Message::Record(record).encode(),
        Message::Doubts {
            items: Vec::new(),
            last: true,
            unknown: false,
        }
        .encode(),
        Message::ExactKeys {
            from: name.clone(),
            to: name.clone(),
            pairs: vec![(name.clone(), name)],
        }
        .encode(),
        Message::Flush {
            id: 1,
            objects: Some(vec![ObjectId(1)]),
        }
        .encode(),
    ]
}

fn mutate(frame: &RawFrame, random: &mut Random) -> RawFrame {
    let mut meta = BytesMut::from(&frame.meta[..]);
    for _ in 0..=random.below(4) {
        let len = meta.len() as u64;
        match random.below(4) {
            0 if len > 0 => meta[random.below(len) as usize] = random.below(256) as u8,
            1 if len > 0 => meta.truncate(random.below(len) as usize),
            2 => meta.extend_from_slice(&random.below(u64::MAX).to_le_bytes()),
            _ if len >= 4 => {
                let at = random.below(len - 3) as usize;
                meta[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
            }
            _ => {}
        }
    }
    let kind = if random.below(4) == 0 {
        random.below(256) as u8
    } else {
        frame.kind
    };
    RawFrame {
        kind,
        meta: meta.freeze(),
        payload: frame.payload.clone(),
    }
}

/// Decodes in every way; what is accepted survives being encoded again.
fn decode_all(frame: &RawFrame) {
    if let Ok(request) = Request::decode(frame) {
        assert_eq!(Request::decode(&request.encode()).as_ref(), Ok(&request));
    }
    if let Ok(reply) = Reply::decode(frame) {
        let again = Reply::decode(&reply.encode());
        assert_eq!(again.as_ref(), Ok(&reply));
    }
    if let Ok(hello) = Hello::decode(frame) {
        assert_eq!(Hello::decode(&hello.encode()).as_ref(), Ok(&hello));
    }
    if let Ok(reply) = HelloReply::decode(frame) {
        assert_eq!(HelloReply::decode(&reply.encode()).as_ref(), Ok(&reply));
    }
    if let Ok(present) = Present::decode(frame) {
        assert_eq!(Present::decode(&present.encode()).as_ref(), Ok(&present));
    }
    if let Ok(recalled) = Recalled::decode(frame) {
        let again = Recalled::decode(&recalled.give_back());
        assert_eq!(again.as_ref(), Ok(&recalled));
    }
    if let Ok(objects) = offered(frame) {
        assert_eq!(offered(&offer(&objects)), Ok(objects));
    }
    if let Ok(replay) = Replay::decode(frame) {
        let again = Replay::decode(&replay.encode());
        // Without a place, none is written.
        assert_eq!(again.as_ref(), Ok(&replay));
    }
    if let Ok(held) = Unpacker::default().unpack(frame.clone(), Message::may_be_packed) {
        assert!(held.meta.len() + held.payload.len() <= FRAME_BYTES_MAX);
        if held != *frame {
            let _ = Message::decode(&held);
        }
    }
    if let Ok(message) = Message::decode(frame) {
        assert_eq!(Message::decode(&message.encode()).as_ref(), Ok(&message));
    }
    if let Ok(record) = Record::decode(frame.meta.clone(), frame.payload.clone()) {
        let again = Record::decode(record.encode_meta(), record.payload.clone());
        assert_eq!(again.as_ref(), Ok(&record));
    }
}

#[test]
fn no_bytes_from_a_stranger_panic_a_decoder() {
    let seconds = setting("CAIRN_FUZZ_SECONDS", 0);
    let rounds_min = 300_000_u64;
    let mut random = Random::from_env("CAIRN_FUZZ_SEED");
    let seeds = seeds();
    let began = Instant::now();
    let mut rounds = 0_u64;
    while rounds < rounds_min || began.elapsed() < Duration::from_secs(seconds) {
        rounds += 1;
        let seed = &seeds[random.below(seeds.len() as u64) as usize];
        let frame = mutate(seed, &mut random);
        decode_all(&frame);
        // The same as a stream of bytes, damaged anywhere.
        let mut stream = BytesMut::new();
        frame.write_to(&mut stream);
        let at = random.below(stream.len() as u64) as usize;
        stream[at] ^= 1 << random.below(8);
        stream.truncate(random.below(stream.len() as u64 + 1) as usize);
        while let Ok(Some(frame)) = take_frame(&mut stream) {
            decode_all(&frame);
        }
        let mut preamble = Purpose::Rpc.encode();
        preamble[random.below(PREAMBLE_BYTES as u64) as usize] = random.below(256) as u8;
        if let Ok(purpose) = Purpose::decode(&preamble) {
            assert_eq!(purpose.encode(), preamble);
        }
    }
    println!("{rounds} mutated messages; none panicked");
}

/// What a client says, word by word: options with data as they should be.
fn nbd_words(random: &mut Random) -> Vec<u8> {
    let text = |text: &str| {
        let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
        bytes.extend_from_slice(text.as_bytes());
        bytes
    };
    let options: [(u32, Vec<u8>); 9] = [
        (1, b"disk1".to_vec()),
        (2, Vec::new()),
        (3, Vec::new()),
        (5, Vec::new()),
        (6, [&text("disk1")[..], &[0, 2, 0, 3, 0, 1]].concat()),
        (7, [&text("")[..], &[0, 0]].concat()),
        (8, Vec::new()),
        (
            9,
            [&text("disk1")[..], &[0, 0, 0, 1], &text("base:")].concat(),
        ),
        (
            10,
            [&text("disk1")[..], &[0, 0, 0, 1], &text("base:allocation")].concat(),
        ),
    ];
    let mut bytes = vec![0, 0, 0, random.below(4) as u8];
    for _ in 0..random.below(6) {
        let (option, data) = &options[random.below(options.len() as u64) as usize];
        bytes.extend_from_slice(b"IHAVEOPT");
        bytes.extend_from_slice(&option.to_be_bytes());
        bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
        bytes.extend_from_slice(data);
    }
    bytes
}

fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..random.below(3) {
        let len = bytes.len() as u64;
        match random.below(4) {
            0 => bytes[random.below(len) as usize] = random.below(256) as u8,
            1 => bytes[random.below(len) as usize] ^= 1 << random.below(8),
            2 => bytes.truncate(1 + random.below(len) as usize),
            _ => bytes.extend_from_slice(&random.below(u64::MAX).to_be_bytes()),
        }
    }
}

/// Negotiates with a server about those words, as they come in pieces. Whether requests follow.
fn negotiate_nbd(words: &[u8], random: &mut Random) -> bool {
    let securities = [Security::Settled, Security::Offered, Security::Required];
    let security = securities[random.below(3) as usize];
    let mut handshake = Handshake::new(security);
    let mut input = BytesMut::new();
    let mut rest = words;
    loop {
        let mut step = handshake.step(&mut input);
        if let Ok(Step::Describe(name)) = &step {
            assert!(name.len() <= 4096 && security != Security::Required);
            let found = Export {
                name: "disk1".to_owned(),
                description: String::new(),
                size: 1 << 30,
                read_only: random.below(2) == 0,
            };
            let known = name.is_empty() || name == "disk1";
            step = handshake.described(known.then_some(found).ok_or(Refusal::Unknown));
        }
        if step == Ok(Step::List) {
            assert_ne!(security, Security::Required);
            handshake.listed(&["disk1".to_owned()]);
            step = Ok(Step::More);
        }
        // What a client makes a server say is not much more than what it said.
        assert!(handshake.take_output().len() <= 300 * 24 + words.len());
        match step {
            Ok(Step::More) => {}
            Ok(Step::Transmit(_)) => return true,
            Ok(_) | Err(_) => return false,
        }
        if rest.is_empty() {
            return false;
        }
        let piece = (1 + random.below(40) as usize).min(rest.len());
        input.extend_from_slice(&rest[..piece]);
        rest = &rest[piece..];
        assert!(input.len() <= OPTION_BYTES_MAX as usize + 16 + 40);
    }
}

fn judge_nbd(random: &mut Random) -> bool {
    let rules = Rules {
        size: random.below(3) << 29,
        read_only: random.below(4) == 0,
        structured: random.below(2) == 0,
        allocation: random.below(2) == 0,
    };
    let around = [0, rules.size, rules.size.wrapping_sub(4096), u64::MAX];
    let bits = random.below(33);
    let flag = 1 << random.below(16);
    let sent = nbd::request::Request {
        flags: flag & random.below(1 << 16) as u16,
        command: random.below(10) as u16,
        cookie: random.below(u64::MAX),
        offset: around[random.below(4) as usize].wrapping_add(random.below(8192)),
        len: random.below(1 << bits) as u32,
    };
    let mut bytes = sent.encode();
    if random.below(4) == 0 {
        bytes[random.below(28) as usize] = random.below(256) as u8;
    }
    let Ok(request) = nbd::request::Request::decode(&bytes) else {
        return false;
    };
    assert_eq!(request.encode(), bytes);
    assert!(request.payload_bytes() <= PAYLOAD_BYTES_MAX);
    let Ok(command) = request.command(&rules) else {
        return false;
    };
    let end = u128::from(request.offset) + u128::from(request.len);
    match command {
        Command::Disconnect | Command::Flush => {}
        Command::Read => assert!(request.len <= PAYLOAD_BYTES_MAX && end <= rules.size.into()),
        Command::Cache => assert!(end <= rules.size.into()),
        Command::BlockStatus { .. } => assert!(rules.allocation && end <= rules.size.into()),
        Command::Write { .. } | Command::Trim { .. } | Command::WriteZeroes { .. } => {
            assert!(!rules.read_only && end <= rules.size.into());
        }
    }
    true
}

#[test]
fn no_bytes_from_an_nbd_client_panic_its_server_or_make_it_hold_much() {
    let seconds = setting("CAIRN_FUZZ_SECONDS", 0);
    let mut random = Random::from_env("CAIRN_FUZZ_SEED");
    let began = Instant::now();
    let (mut rounds, mut agreed, mut valid) = (0_u64, 0_u64, 0_u64);
    while rounds < 200_000 || began.elapsed() < Duration::from_secs(seconds) {
        rounds += 1;
        let mut words = nbd_words(&mut random);
        damage(&mut words, &mut random);
        agreed += u64::from(negotiate_nbd(&words, &mut random));
        valid += u64::from(judge_nbd(&mut random));
    }
    println!("{rounds} clients: {agreed} agreed on a disk, {valid} asked for something valid");
    assert!(agreed > rounds / 50 && valid > rounds / 50);
}
