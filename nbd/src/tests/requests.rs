//! Which requests are valid, and how replies look.

use bytes::{Buf as _, Bytes};

use crate::disk::Stretch;
use crate::numbers::{Errno, PAYLOAD_BYTES_MAX, command, command_flag};
use crate::reply;
use crate::request::{BadRequest, Command, REQUEST_BYTES, Request, Rules};

const SIZE: u64 = 1 << 30;
const RULES: Rules = Rules {
    size: SIZE,
    read_only: false,
    structured: true,
    allocation: true,
};

fn request(command: u16, flags: u16, offset: u64, len: u32) -> Request {
    Request {
        flags,
        command,
        cookie: 7,
        offset,
        len,
    }
}

fn asked(command: u16, flags: u16, offset: u64, len: u32) -> Result<Command, Errno> {
    request(command, flags, offset, len).command(&RULES)
}

#[test]
fn a_request_survives_the_way_and_what_is_none_ends_the_connection() {
    let sent = request(command::WRITE, command_flag::FUA, 1 << 40, 4096);
    assert_eq!(Request::decode(&sent.encode()), Ok(sent));
    let none = Request::decode(&[0; REQUEST_BYTES]);
    assert_eq!(none, Err(BadRequest::Magic(0)));
    let long = request(command::WRITE, 0, 0, PAYLOAD_BYTES_MAX + 1);
    let refused = Err(BadRequest::Payload(PAYLOAD_BYTES_MAX + 1));
    assert_eq!(Request::decode(&long.encode()), refused);
    // Lengths without data may be longer.
    let trim = request(command::TRIM, 0, 0, u32::MAX);
    assert_eq!(Request::decode(&trim.encode()), Ok(trim));
}

#[test]
fn requests_beyond_the_disk_are_refused_whichever_way_they_are_beyond() {
    for (offset, len) in [
        (SIZE, 1),
        (SIZE - 1, 2),
        (u64::MAX, 1),
        (u64::MAX - 1, u32::MAX),
    ] {
        for command in [command::WRITE, command::WRITE_ZEROES] {
            assert_eq!(asked(command, 0, offset, len), Err(Errno::NoSpc));
        }
        for command in [
            command::READ,
            command::TRIM,
            command::CACHE,
            command::BLOCK_STATUS,
        ] {
            assert_eq!(asked(command, 0, offset, len), Err(Errno::Inval));
        }
    }
    assert_eq!(asked(command::READ, 0, SIZE - 1, 1), Ok(Command::Read));
    assert_eq!(asked(command::READ, 0, SIZE, 0), Ok(Command::Read));
    assert_eq!(
        asked(command::READ, 0, 0, PAYLOAD_BYTES_MAX + 1),
        Err(Errno::Inval)
    );
}

#[test]
fn unknown_commands_and_flags_and_those_of_other_commands_are_refused() {
    use command_flag::{DF, FAST_ZERO, FUA, NO_HOLE, REQ_ONE};
    assert_eq!(asked(8, 0, 0, 512), Err(Errno::Inval));
    assert_eq!(asked(u16::MAX, 0, 0, 512), Err(Errno::Inval));
    let all = [
        (command::READ, DF),
        (command::WRITE, 0),
        (command::FLUSH, 0),
        (command::TRIM, 0),
        (command::CACHE, 0),
        (command::WRITE_ZEROES, NO_HOLE | FAST_ZERO),
        (command::BLOCK_STATUS, REQ_ONE),
    ];
    for (command, allowed) in all {
        for bit in 0..16 {
            let flag = 1 << bit;
            let known = flag & (allowed | FUA) != 0;
            assert_eq!(
                asked(command, flag, 0, 512).is_ok(),
                known,
                "{command} {flag:#x}"
            );
        }
    }
    let plain = Rules {
        structured: false,
        allocation: false,
        ..RULES
    };
    let unsaid = [(command::READ, DF), (command::BLOCK_STATUS, 0)];
    for (command, flags) in unsaid {
        let refused = request(command, flags, 0, 512).command(&plain);
        assert_eq!(refused, Err(Errno::Inval));
    }
    assert_eq!(asked(command::BLOCK_STATUS, 0, 0, 0), Err(Errno::Inval));
}

#[test]
fn a_disk_that_is_only_read_refuses_every_change() {
    let rules = Rules {
        read_only: true,
        ..RULES
    };
    for command in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
        let refused = request(command, 0, 0, 512).command(&rules);
        assert_eq!(refused, Err(Errno::Perm));
    }
    assert_eq!(
        request(command::FLUSH, 0, 0, 0).command(&rules),
        Ok(Command::Flush)
    );
}

#[test]
fn replies_are_as_long_as_they_say() {
    let data = vec![Bytes::from_static(b"abc"), Bytes::from_static(b"de")];
    let simple = reply::data(7, 512, data.clone(), false);
    assert_eq!(simple.bytes(), 16 + 5);
    let mut chunk = reply::data(7, 512, data, true).head;
    assert_eq!(chunk.get_u32(), 0x668e_33ef);
    assert_eq!(
        (chunk.get_u16(), chunk.get_u16(), chunk.get_u64()),
        (1, 1, 7)
    );
    assert_eq!(
        (chunk.get_u32(), chunk.get_u64(), chunk.len()),
        (8 + 5, 512, 0)
    );
    let mut empty = reply::data(7, 0, Vec::new(), true).head;
    empty.advance(6);
    assert_eq!(
        (empty.get_u16(), empty.get_u64(), empty.get_u32()),
        (0, 7, 0)
    );
    let mut failed = reply::failed(7, Errno::NoSpc, true).head;
    failed.advance(6);
    assert_eq!((failed.get_u16(), failed.get_u64()), (0x8001, 7));
    assert_eq!(
        (failed.get_u32(), failed.get_u32(), failed.get_u16()),
        (6, 28, 0)
    );
    let mut plain = reply::failed(7, Errno::Perm, false).head;
    assert_eq!((plain.get_u32(), plain.get_u32()), (0x6744_6698, 1));
    let of = |len, hole| Stretch { len, hole };
    let mut status = reply::stretches(7, &[of(4096, false), of(512, true)]).head;
    status.advance(16);
    assert_eq!((status.get_u32(), status.get_u32()), (20, 1));
    let both = [(4096, 0), (512, 3)];
    assert_eq!([(); 2].map(|()| (status.get_u32(), status.get_u32())), both);
}
