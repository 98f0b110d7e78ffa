//! BAD-6: who speaks another version is understood so far that it can be told so.

use bytes::{BufMut as _, BytesMut};

use super::{FS_VERSION, Hello};
use crate::frame::RawFrame;
use crate::ids::{SessionId, VolumeId};
use crate::units::{ObjectId, Sequence, Term};

fn hello(version: u16) -> Hello {
    Hello {
        version,
        volume: VolumeId([1; 16]),
        session: SessionId([2; 16]),
        client_name: "app1".to_owned(),
        mounted_at_ms: 5,
        read_only: false,
        opens: vec![ObjectId(7)],
        confirmed: (Term(3), Sequence(9)),
        kept_terms: vec![Term(3)],
        leases: 64,
        early: false,
    }
}

fn longer(frame: &RawFrame, more: &[u8]) -> RawFrame {
    let mut meta = BytesMut::from(&frame.meta[..]);
    meta.put_slice(more);
    RawFrame {
        meta: meta.freeze(),
        ..frame.clone()
    }
}

#[test]
fn bad_6_the_hello_of_a_mount_of_the_version_before_is_read() {
    let (seven, eight) = (hello(7).encode(), hello(8).encode());
    assert_eq!(
        eight.meta.len(),
        seven.meta.len() + 1,
        "changes that are answered early came with version 8"
    );
    assert_eq!(Hello::decode(&seven).expect("read"), hello(7));
}

#[test]
fn bad_6_the_hello_of_a_later_version_is_read_whatever_it_says_besides() {
    let later = longer(&hello(FS_VERSION + 1).encode(), b"whatever comes");
    let read = Hello::decode(&later).expect("read");
    assert_eq!(read.version, FS_VERSION + 1);
    let own = longer(&hello(FS_VERSION).encode(), b"x");
    assert!(
        Hello::decode(&own).is_err(),
        "ours says no more than it says"
    );
}
