//! The format that is written down is the one that is written.
//!
//! The files in `tests/golden` were made by the version that ends their names. To make new ones for a new version:
//! `CAIRN_WRITE_GOLDEN=1 cargo test -p cairn-storage golden`.

use std::path::PathBuf;

use bytes::Bytes;
use protocol::ids::{BrickId, GenerationId};
use protocol::record::Change;
use protocol::units::{BLOCK_BYTES, EXTENT_BYTES, ObjectId, Sequence, Term, Timestamp};

use super::util::{identity, put, record};
use crate::Position;
use crate::dirty::DirtyItem;
use crate::error::OpenError;
use crate::journal::SegmentHeader;
use crate::journal::frame::{Aux, Frame, FrameKind, LocalOp, Lsn, Step};
use crate::layout::*;
use crate::points::{NOTE_BYTES_MAX, POINTS_MAX, Phase, PointId, PointKind, PointRow};
use crate::store::Kind;
use crate::store::saved::saved_key;
use crate::superblock::Superblock;

fn golden(name: &str, made: &[u8]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if std::env::var_os("CAIRN_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, made).expect("write");
    }
    let kept = std::fs::read(&path).expect("a golden file");
    assert!(
        kept == made,
        "{name} is written differently: the format's version must change"
    );
}

fn superblock() -> Superblock {
    Superblock {
        format: FORMAT_WITHOUT_POINTS,
        number: 7,
        identity: identity(),
        state: Bytes::from_static(b"the replication layer's"),
        deleted: false,
        clean: true,
    }
}

#[test]
fn a_superblock_of_version_1_is_written_and_read_as_it_was() {
    let raw = superblock().encode().expect("fits");
    // The zeros in the middle need no file.
    let mut kept = raw[..1024].to_vec();
    kept.extend_from_slice(&raw[raw.len() - 4..]);
    assert!(raw[1024..raw.len() - 4].iter().all(|byte| *byte == 0));
    golden("superblock.v1", &kept);
    assert_eq!(Superblock::decode(&raw).expect("whole"), superblock());
    for at in [0, 9, 30, 100, 900, SUPERBLOCK_BYTES - 1] {
        let mut bad = raw.clone();
        bad[at] ^= 0x10;
        assert!(Superblock::decode(&bad).is_err(), "byte {at}");
        assert!(Superblock::decode(&raw[..at]).is_err());
    }
}

fn header() -> SegmentHeader {
    SegmentHeader {
        number: 3,
        first_lsn: Lsn(41),
        first_seq: Sequence(17),
        epoch: 2,
        brick: BrickId([3; 16]),
    }
}

fn local_ops() -> Vec<LocalOp> {
    let items = vec![
        DirtyItem::Blocks {
            object: ObjectId(9),
            start: 1,
            end: 5,
        },
        DirtyItem::Dropped {
            object: ObjectId(8),
        },
        DirtyItem::Key {
            key: Bytes::from_static(b"key"),
        },
    ];
    vec![
        LocalOp::Tracking { mask: 6 },
        LocalOp::Synced {
            objects: vec![(ObjectId(9), Lsn(40))],
        },
        LocalOp::Activity {
            add: vec![(ObjectId(9), 2)],
            remove: vec![(ObjectId(9), 0), (ObjectId(9), 1)],
        },
        LocalOp::Clear {
            replica: 1,
            items: items.clone(),
        },
        LocalOp::Mark { replica: 2, items },
        LocalOp::All {
            replica: 1,
            all: true,
        },
        LocalOp::Progress {
            replica: 1,
            cursor: Bytes::from_static(b"here"),
        },
        LocalOp::Position {
            sequence: Sequence(99),
            term: Term(4),
            generation: GenerationId([5; 16]),
        },
    ]
}

#[test]
fn a_brick_that_holds_a_point_is_of_version_2() {
    let superblock = Superblock {
        format: FORMAT_VERSION,
        ..superblock()
    };
    let raw = superblock.encode().expect("fits");
    assert_eq!(Superblock::decode(&raw).expect("whole"), superblock);
    let mut newer = raw.clone();
    newer[8] = 3;
    let refused = Superblock::decode(&newer);
    assert!(matches!(
        refused,
        Err(OpenError::Format { found: 3, known: 2 })
    ));
    let row = PointRow {
        id: PointId(5),
        phase: Phase::Live,
        kind: PointKind::GivenUp,
        position: Position {
            sequence: Sequence(17),
            term: Term(3),
            generation: GenerationId([7; 16]),
        },
        as_of: Timestamp(1_700_000_000_000_000_000),
        used_blocks: 12,
        kept_blocks: 4,
        note: Bytes::from_static(b"a note"),
    };
    let mut made = raw[..16].to_vec();
    let state = Bytes::from_static(b"a state");
    let phases = [
        Phase::Live,
        Phase::Hidden,
        Phase::GoingBack(state.clone()),
        Phase::Restored(state),
    ];
    for phase in phases {
        let row = PointRow {
            phase,
            ..row.clone()
        };
        let encoded = row.encode();
        assert_eq!(PointRow::decode(PointId(5), encoded.clone()), Ok(row));
        for cut in 0..encoded.len() {
            assert!(PointRow::decode(PointId(5), encoded.slice(..cut)).is_err());
        }
        made.extend_from_slice(&encoded);
    }
    for kind in Kind::ALL {
        made.extend_from_slice(&saved_key(PointId(5), kind, b"key"));
    }
    golden("points.v2", &made);
}

#[test]
fn a_journal_of_version_1_is_written_and_read_as_it_was() {
    let mut raw = header().encode();
    raw.truncate(64);
    let write = Change::Write {
        object: ObjectId(9),
        offset: 10,
        len: 5,
    };
    let record = record(Sequence(17), vec![put("k", "v"), write], b"abcde".to_vec());
    let mut step = Step::new(true, vec![0xAABB_CCDD, 1]);
    step.old_end = Some(77);
    let aux = Aux::encode(&[Step::default(), step.clone()]);
    let meta = record.encode_meta();
    let id = (FrameKind::Record, 2, Lsn(41));
    let start = raw.len();
    Frame::encode(&mut raw, id, &meta, &aux, &[b"ab", b"cde"]);
    let frame = Frame::decode(&Bytes::copy_from_slice(&raw[start..])).expect("whole");
    assert_eq!((frame.kind, frame.epoch, frame.lsn), id);
    assert_eq!(
        (&frame.meta, &frame.aux, &frame.payload[..]),
        (&meta, &aux, &b"abcde"[..])
    );
    assert_eq!(Aux::decode(aux, 2), Ok(vec![Step::default(), step]));
    for (op, lsn) in local_ops().into_iter().zip(42..) {
        let encoded = op.encode();
        assert_eq!(LocalOp::decode(encoded.clone()), Ok(op));
        for cut in 0..encoded.len() {
            assert!(LocalOp::decode(encoded.slice(..cut)).is_err());
        }
        Frame::encode(
            &mut raw,
            (FrameKind::Local, 2, Lsn(lsn)),
            &encoded,
            &[],
            &[],
        );
    }
    golden("journal.v1", &raw);
    assert_eq!(SegmentHeader::decode(&raw[..64]), Some(header()));
    let frame = Bytes::copy_from_slice(&raw[start..start + 40 + meta.len() + 31 + 5]);
    for bit in 0..frame.len() * 8 {
        let mut bad = frame.to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(Frame::decode(&Bytes::from(bad)).is_none(), "bit {bit}");
    }
}

#[test]
fn the_document_names_the_numbers_that_the_program_uses() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/on-disk-format.md");
    let text = std::fs::read_to_string(path).expect("the document");
    let constants = [
        ("FORMAT_VERSION", u64::from(FORMAT_VERSION)),
        ("FORMAT_WITHOUT_POINTS", u64::from(FORMAT_WITHOUT_POINTS)),
        ("JOURNAL_VERSION", u64::from(JOURNAL_VERSION)),
        ("POINTS_MAX", POINTS_MAX as u64),
        ("NOTE_BYTES_MAX", NOTE_BYTES_MAX as u64),
        ("SUPERBLOCK_BYTES", SUPERBLOCK_BYTES as u64),
        ("SPEC_BYTES_MAX", SPEC_BYTES_MAX as u64),
        ("STATE_BYTES_MAX", STATE_BYTES_MAX as u64),
        ("SEGMENT_HEADER_BYTES", SEGMENT_HEADER_BYTES),
        ("FRAME_HEADER_BYTES", FRAME_HEADER_BYTES as u64),
        ("FRAME_ALIGN", FRAME_ALIGN),
        ("INLINE_BYTES_MAX", INLINE_BYTES_MAX),
        ("BLOCK_BYTES", BLOCK_BYTES),
        ("EXTENT_BYTES", EXTENT_BYTES),
    ];
    for (name, value) in constants {
        assert!(
            text.contains(&format!("| {name} | {value} |")),
            "{name} is {value}"
        );
    }
    let object = ObjectId(0xA1_B2C3);
    let paths = [
        object_path(object),
        segment_path(5),
        kept_path(10, object),
        whole_path(10, object),
    ];
    let wanted = [
        "objects/a1/b2/0000000000a1b2c3",
        "journal/00000005.seg",
        "points/0000000a/b2/0000000000a1b2c3",
        "points/0000000a/b2/0000000000a1b2c3.whole",
    ];
    assert_eq!(paths, wanted);
}
