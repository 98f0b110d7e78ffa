//! Negotiation, byte by byte.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::handshake::{
    Agreed, Export, Handshake, OPTION_BYTES_MAX, OPTIONS_MAX, Refusal, Security, Step, Violation,
};
use crate::numbers::{IHAVEOPT, REP_MAGIC, info, option, rep, transmission_flag};

const FLAGS: [u8; 4] = [0, 0, 0, 3];

pub(super) fn option_bytes(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_u64(IHAVEOPT);
    bytes.put_u32(option);
    bytes.put_u32(data.len() as u32);
    bytes.put_slice(data);
    bytes
}

pub(super) fn info_data(name: &str, wants: &[u16]) -> Vec<u8> {
    let mut data = Vec::new();
    data.put_u32(name.len() as u32);
    data.put_slice(name.as_bytes());
    data.put_u16(wants.len() as u16);
    wants.iter().for_each(|want| data.put_u16(*want));
    data
}

pub(super) fn meta_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = Vec::new();
    data.put_u32(name.len() as u32);
    data.put_slice(name.as_bytes());
    data.put_u32(queries.len() as u32);
    for query in queries {
        data.put_u32(query.len() as u32);
        data.put_slice(query.as_bytes());
    }
    data
}

fn export() -> Export {
    Export {
        name: "disk1".to_owned(),
        description: "a disk".to_owned(),
        size: 1 << 30,
        read_only: false,
    }
}

/// The replies in what was sent: option, type and data.
fn replies(mut output: Bytes) -> Vec<(u32, u32, Bytes)> {
    let mut all = Vec::new();
    while output.has_remaining() {
        assert_eq!(output.get_u64(), REP_MAGIC);
        let (option, kind, len) = (output.get_u32(), output.get_u32(), output.get_u32());
        all.push((option, kind, output.split_to(len as usize)));
    }
    all
}

fn kinds(handshake: &mut Handshake) -> Vec<u32> {
    let output = handshake.take_output();
    replies(output).iter().map(|(_, kind, _)| *kind).collect()
}

fn greeted(security: Security) -> Handshake {
    let mut handshake = Handshake::new(security);
    let step = handshake.step(&mut BytesMut::from(&FLAGS[..]));
    assert_eq!(step, Ok(Step::More));
    handshake
}

fn ask(handshake: &mut Handshake, option: u32, data: &[u8]) -> Result<Step, Violation> {
    let mut input = BytesMut::from(&option_bytes(option, data)[..]);
    let step = handshake.step(&mut input);
    assert!(input.is_empty() || step.is_err());
    step
}

fn go(handshake: &mut Handshake, name: &str) -> Box<Agreed> {
    let asked = ask(handshake, option::GO, &info_data(name, &[]));
    assert_eq!(asked, Ok(Step::Describe(name.to_owned())));
    match handshake.described(Ok(export())) {
        Ok(Step::Transmit(agreed)) => agreed,
        other => panic!("no transmission: {other:?}"),
    }
}

#[test]
fn a_client_of_today_gets_everything_that_it_asks_for() {
    let mut handshake = greeted(Security::Settled);
    assert_eq!(
        ask(&mut handshake, option::STRUCTURED_REPLY, b""),
        Ok(Step::More)
    );
    assert_eq!(kinds(&mut handshake), [rep::ACK]);
    let meta = meta_data("disk1", &["qemu:dirty-bitmap:b", "base:allocation"]);
    let asked = ask(&mut handshake, option::SET_META_CONTEXT, &meta);
    assert_eq!(asked, Ok(Step::Describe("disk1".to_owned())));
    assert_eq!(handshake.described(Ok(export())), Ok(Step::More));
    let output = handshake.take_output();
    let [(_, rep::META_CONTEXT, context), (_, rep::ACK, _)] = &replies(output)[..] else {
        panic!("one context");
    };
    assert_eq!(&context[..], b"\0\0\0\x01base:allocation");
    let wants = [info::NAME, info::DESCRIPTION, info::BLOCK_SIZE, 77];
    let asked = ask(&mut handshake, option::GO, &info_data("", &wants));
    assert_eq!(asked, Ok(Step::Describe(String::new())));
    let Ok(Step::Transmit(agreed)) = handshake.described(Ok(export())) else {
        panic!("no transmission");
    };
    assert!(agreed.structured && agreed.allocation);
    let told = replies(handshake.take_output());
    let infos: Vec<u16> = told[..4]
        .iter()
        .map(|(_, _, d)| d.clone().get_u16())
        .collect();
    assert_eq!(
        infos,
        [
            info::EXPORT,
            info::NAME,
            info::DESCRIPTION,
            info::BLOCK_SIZE
        ]
    );
    let mut data = told[0].2.clone();
    data.advance(2);
    assert_eq!(data.get_u64(), 1 << 30);
    let flags = data.get_u16();
    assert_ne!(flags & transmission_flag::CAN_MULTI_CONN, 0);
    assert_ne!(flags & transmission_flag::SEND_DF, 0);
    assert_eq!(&told[1].2[2..], b"disk1");
    assert_eq!(&told[3].2[2..], b"\0\0\0\x01\0\0\x10\0\x02\0\0\0");
    assert_eq!(told[4].1, rep::ACK);
}

#[test]
fn an_old_client_gets_its_export_with_zeros_behind_unless_it_wants_none() {
    for (flags, bytes) in [(1_u8, 134), (3, 10)] {
        let mut handshake = Handshake::new(Security::Settled);
        let mut input = BytesMut::from(&[0, 0, 0, flags][..]);
        input.put_slice(&option_bytes(option::EXPORT_NAME, b"disk1"));
        assert_eq!(
            handshake.step(&mut input),
            Ok(Step::Describe("disk1".to_owned()))
        );
        let Ok(Step::Transmit(agreed)) = handshake.described(Ok(export())) else {
            panic!("no transmission");
        };
        assert!(!agreed.structured && !agreed.allocation);
        let mut output = handshake.take_output();
        assert_eq!(output.len(), bytes);
        assert_eq!(output.get_u64(), 1 << 30);
        assert_eq!(output.get_u16() & transmission_flag::SEND_DF, 0);
        assert!(output.iter().all(|byte| *byte == 0));
    }
}

#[test]
fn bytes_may_come_one_at_a_time() {
    let mut handshake = Handshake::new(Security::Settled);
    let mut input = BytesMut::new();
    let all = [&FLAGS[..], &option_bytes(option::LIST, b"")].concat();
    let (last, before) = all.split_last().expect("bytes");
    for byte in before {
        input.put_u8(*byte);
        assert_eq!(handshake.step(&mut input), Ok(Step::More));
    }
    input.put_u8(*last);
    assert_eq!(handshake.step(&mut input), Ok(Step::List));
    handshake.listed(&["disk1".to_owned()]);
    let told = replies(handshake.take_output());
    assert_eq!(
        (told[0].1, &told[0].2[..]),
        (rep::SERVER, &b"\0\0\0\x05disk1"[..])
    );
    assert_eq!(told[1].1, rep::ACK);
}

#[test]
fn what_is_not_there_or_not_known_is_refused_and_the_client_may_go_on() {
    let mut handshake = greeted(Security::Settled);
    for (refusal, kind) in [
        (Refusal::Unknown, rep::ERR_UNKNOWN),
        (Refusal::Policy, rep::ERR_POLICY),
        (Refusal::Shutdown, rep::ERR_SHUTDOWN),
    ] {
        ask(&mut handshake, option::INFO, &info_data("other", &[])).expect("asked");
        assert_eq!(handshake.described(Err(refusal)), Ok(Step::More));
        assert_eq!(kinds(&mut handshake), [kind]);
    }
    for (option, data, kind) in [
        (99, &b"whatever"[..], rep::ERR_UNSUP),
        (11, b"", rep::ERR_UNSUP),
        (option::LIST, b"x", rep::ERR_INVALID),
        (option::STRUCTURED_REPLY, b"x", rep::ERR_INVALID),
        (option::STARTTLS, b"", rep::ERR_POLICY),
        (option::GO, b"\0\0\0\xffshort", rep::ERR_INVALID),
        (option::INFO, b"\0\0\0\0\0\x02\0\x03", rep::ERR_INVALID),
        (option::GO, b"\0\0\0\x01\xff\0\0", rep::ERR_INVALID),
    ] {
        assert_eq!(ask(&mut handshake, option, data), Ok(Step::More));
        assert_eq!(kinds(&mut handshake), [kind], "option {option}");
    }
    go(&mut handshake, "disk1");
}

#[test]
fn contexts_of_metadata_need_structured_replies_and_count_for_their_export_alone() {
    let select = |handshake: &mut Handshake, name: &str, queries: &[&str]| {
        let data = meta_data(name, queries);
        let asked = ask(handshake, option::SET_META_CONTEXT, &data).expect("asked");
        if asked != Step::More {
            let found = Export {
                name: name.to_owned(),
                ..export()
            };
            handshake.described(Ok(found)).expect("answered");
        }
        kinds(handshake)
    };
    let mut handshake = greeted(Security::Settled);
    let early = select(&mut handshake, "disk1", &["base:allocation"]);
    assert_eq!(early, [rep::ERR_INVALID]);
    ask(&mut handshake, option::STRUCTURED_REPLY, b"").expect("asked");
    kinds(&mut handshake);
    assert_eq!(
        select(&mut handshake, "disk1", &["no colon"]),
        [rep::ERR_INVALID]
    );
    assert_eq!(
        select(&mut handshake, "disk1", &["base:", "x-y:z"]),
        [rep::ACK]
    );
    let selected = select(&mut handshake, "other", &["base:allocation"]);
    assert_eq!(selected, [rep::META_CONTEXT, rep::ACK]);
    assert!(
        !go(&mut handshake, "disk1").allocation,
        "it was for the other"
    );
    let mut handshake = greeted(Security::Settled);
    ask(&mut handshake, option::STRUCTURED_REPLY, b"").expect("asked");
    kinds(&mut handshake);
    let data = meta_data("disk1", &["base:"]);
    ask(&mut handshake, option::LIST_META_CONTEXT, &data).expect("asked");
    handshake.described(Ok(export())).expect("answered");
    assert_eq!(kinds(&mut handshake), [rep::META_CONTEXT, rep::ACK]);
    select(&mut handshake, "disk1", &["base:allocation"]);
    select(&mut handshake, "disk1", &[]);
    assert!(
        !go(&mut handshake, "disk1").allocation,
        "none was asked for last"
    );
}

#[test]
fn where_tls_is_required_nothing_is_told_before_it_and_nothing_said_before_counts() {
    let mut handshake = greeted(Security::Required);
    for option in [option::LIST, option::GO, option::STRUCTURED_REPLY, 99] {
        assert_eq!(ask(&mut handshake, option, b""), Ok(Step::More));
        assert_eq!(kinds(&mut handshake), [rep::ERR_TLS_REQD]);
    }
    let mut old = greeted(Security::Required);
    let refused = ask(&mut old, option::EXPORT_NAME, b"disk1");
    assert_eq!(refused, Err(Violation::Refused));
    assert_eq!(
        ask(&mut handshake, option::STARTTLS, b""),
        Ok(Step::StartTls)
    );
    assert_eq!(kinds(&mut handshake), [rep::ACK]);
    let mut inside = handshake.inside_tls();
    assert!(!go(&mut inside, "disk1").structured);
    let mut offered = greeted(Security::Offered);
    ask(&mut offered, option::STRUCTURED_REPLY, b"").expect("asked");
    kinds(&mut offered);
    // What was sent ahead in the open could be somebody else's.
    let mut input = BytesMut::from(&option_bytes(option::STARTTLS, b"")[..]);
    input.put_slice(&option_bytes(option::ABORT, b""));
    assert_eq!(offered.step(&mut input), Err(Violation::Early));
}

#[test]
fn bad_1_what_makes_no_sense_or_never_ends_closes_the_connection() {
    let mut handshake = Handshake::new(Security::Settled);
    let flags = handshake.step(&mut BytesMut::from(&[0, 0, 0, 4][..]));
    assert_eq!(flags, Err(Violation::Flags(4)));
    let mut handshake = greeted(Security::Settled);
    let http = handshake.step(&mut BytesMut::from(&b"GET / HTTP/1.1\r\n"[..]));
    assert!(matches!(http, Err(Violation::Magic(_))));
    let mut handshake = greeted(Security::Settled);
    let mut long = BytesMut::from(&option_bytes(option::GO, b"")[..12]);
    long.put_u32(OPTION_BYTES_MAX + 1);
    let refused = Err(Violation::Length(OPTION_BYTES_MAX + 1));
    assert_eq!(handshake.step(&mut long), refused);
    let mut handshake = greeted(Security::Settled);
    let asked = (0..=OPTIONS_MAX).map(|_| {
        let step = ask(&mut handshake, 99, b"");
        handshake.take_output();
        step
    });
    assert_eq!(asked.last(), Some(Err(Violation::Count)));
    let mut handshake = greeted(Security::Settled);
    ask(&mut handshake, option::EXPORT_NAME, b"none").expect("asked");
    let early = handshake.step(&mut BytesMut::from(&b"x"[..]));
    assert_eq!(early, Err(Violation::Early));
    let refused = handshake.described(Err(Refusal::Unknown));
    assert_eq!(refused, Err(Violation::Refused));
}

#[test]
fn a_client_that_leaves_is_told_so() {
    let mut handshake = greeted(Security::Required);
    assert_eq!(ask(&mut handshake, option::ABORT, b"bye"), Ok(Step::End));
    assert_eq!(kinds(&mut handshake), [rep::ACK]);
}
