//! The values' bytes: fixed by version, and never trusted.

use bytes::Bytes;
use proptest::prelude::*;
use protocol::units::{ObjectId, Timestamp};

use crate::entry::{Entry, Slot};
use crate::inode::{Detail, Inode};

fn sample() -> Inode {
    Inode {
        mode: 0o040_755,
        nlink: 2,
        uid: 3,
        gid: 4,
        rdev: 5,
        xattrs: 6,
        size: 7,
        atime: Timestamp(8),
        mtime: Timestamp(9),
        ctime: Timestamp(10),
        btime: Timestamp(-1),
        detail: Detail::Directory {
            parent: ObjectId(11),
            entries: 12,
        },
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn an_inodes_bytes_are_those_of_version_1() {
    let golden = concat!(
        "01",
        "ed410000",
        "02000000",
        "03000000",
        "04000000",
        "05000000",
        "06000000",
        "0700000000000000",
        "0800000000000000",
        "0900000000000000",
        "0a00000000000000",
        "ffffffffffffffff",
        "0b00000000000000",
        "0c00000000000000",
    );
    assert_eq!(hex(&sample().encode()), golden);
    assert_eq!(Inode::decode(sample().encode()), Ok(sample()));
}

#[test]
fn an_entrys_bytes_and_place_are_those_of_version_1() {
    let slot = Slot {
        chained: true,
        entry: Some(Entry {
            object: ObjectId(0x0102),
            file_type: 0o100_000,
            name: Bytes::from_static(b"name"),
        }),
    };
    assert_eq!(
        hex(&slot.encode()),
        "0101010201000000000000008000006e616d65"
    );
    assert_eq!(Slot::decode(slot.encode()), Ok(slot));
    assert_eq!(crate::entry::first_cookie(b"name"), GOLDEN_COOKIE);
}

/// Changing how names are hashed makes every volume unreadable: never without a new version.
const GOLDEN_COOKIE: u64 = 348_770_171_055_210_240;

proptest! {
    #[test]
    fn damaged_values_are_refused_or_read_but_never_panic(
        flips in prop::collection::vec((0_usize..80, any::<u8>()), 1..6),
        cut in 0_usize..80,
    ) {
        let mut bytes = sample().encode().to_vec();
        for (at, value) in flips {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        bytes.truncate(bytes.len() - cut.min(bytes.len()));
        let _ = Inode::decode(Bytes::from(bytes.clone()));
        let _ = Slot::decode(Bytes::from(bytes));
    }
}
