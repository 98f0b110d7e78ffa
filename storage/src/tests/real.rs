//! The brick on a real directory.

use bytes::Bytes;
use protocol::record::Change;
use protocol::units::{ObjectId, Sequence};

use super::util::*;
use crate::{
    CreateError, DirBrick, EngineChoice, OpenError, ReadError, create_brick, open_brick,
    open_brick_read_only,
};

const ENGINES: [EngineChoice; 2] = [EngineChoice::Best, EngineChoice::Threads];

fn fresh(engine: EngineChoice) -> (tempfile::TempDir, DirBrick) {
    let dir = tempfile::tempdir().expect("a directory");
    create_brick(dir.path(), true, identity(), Bytes::from_static(b"s")).expect("create");
    let (brick, _) = open_brick(dir.path(), None, engine).expect("open");
    (dir, brick)
}

#[test]
fn what_was_written_reads_back_through_checkpoints_and_openings_with_either_engine() {
    for engine in ENGINES {
        let (dir, mut brick) = fresh(engine);
        let big = pattern(1, 1 << 20);
        apply(&mut brick, vec![put("a", "1"), put("b", "2")], vec![], 0);
        write(&mut brick, 10, 0, b"inline");
        write(&mut brick, 11, 3, &big);
        write(&mut brick, 12, 5000, &pattern(2, 9000));
        for round in 0..4 {
            assert_eq!(brick.get(b"a").expect("get").as_deref(), Some(&b"1"[..]));
            assert_eq!(
                &read(&mut brick, 10, 0, 8).expect("read")[..],
                b"inline\0\0"
            );
            assert_eq!(read(&mut brick, 11, 3, 1 << 20).expect("read")[..], big[..]);
            assert_eq!(
                read(&mut brick, 12, 5000, 9000).expect("read")[..],
                pattern(2, 9000)[..]
            );
            assert_eq!(
                read(&mut brick, 12, 0, 5000).expect("read")[..],
                [0; 5000][..]
            );
            match round {
                0 => flush(&mut brick),
                1 => checkpoint(&mut brick),
                2 => {
                    brick.close().expect("close");
                    let (opened, report) = open_brick(dir.path(), None, engine).expect("open");
                    assert!(report.was_clean);
                    assert_eq!(report.replayed_records, 0);
                    brick = opened;
                }
                _ => {}
            }
        }
        assert_eq!(brick.stable(), Sequence(4));
    }
}

#[test]
fn a_brick_that_was_not_closed_replays_its_journal() {
    let (dir, mut brick) = fresh(EngineChoice::Best);
    let big = pattern(3, 300_000);
    apply(&mut brick, vec![put("k", "v")], vec![], 0);
    write(&mut brick, 5, 0, &big);
    write(&mut brick, 5, 100, b"over");
    apply(
        &mut brick,
        vec![Change::Truncate {
            object: ObjectId(5),
            size: 200_000,
        }],
        vec![],
        0,
    );
    drop(brick);
    let (read_only, _) = open_brick_read_only(dir.path()).expect("open");
    assert_eq!(read_only.applied(), Sequence(4));
    drop(read_only);
    let (mut brick, report) = open_brick(dir.path(), None, EngineChoice::Best).expect("open");
    assert!(!report.was_clean);
    assert_eq!(report.replayed_records, 4);
    assert_eq!(report.accepted_blocks, 0);
    let mut wanted = big;
    wanted[100..104].copy_from_slice(b"over");
    wanted[200_000..].fill(0);
    assert_eq!(
        read(&mut brick, 5, 0, 300_000).expect("read")[..],
        wanted[..]
    );
    assert_eq!(
        brick.allocated_bytes(ObjectId(5)).expect("known"),
        200_000_u64.next_multiple_of(4096)
    );
}

#[test]
fn a_flipped_bit_in_an_object_is_an_error_and_never_other_bytes() {
    let (dir, mut brick) = fresh(EngineChoice::Threads);
    write(&mut brick, 0x1234, 0, &pattern(4, 100_000));
    brick.close().expect("close");
    let file = dir
        .path()
        .join(".cairn")
        .join(crate::layout::object_path(ObjectId(0x1234)));
    let mut bytes = std::fs::read(&file).expect("the object's file");
    bytes[5000] ^= 4;
    std::fs::write(&file, bytes).expect("write");
    let (mut brick, _) = open_brick(dir.path(), None, EngineChoice::Threads).expect("open");
    assert!(read(&mut brick, 0x1234, 0, 4096).is_ok());
    let corrupt = ReadError::Corrupt {
        object: ObjectId(0x1234),
        block: 1,
    };
    assert_eq!(read(&mut brick, 0x1234, 4090, 100), Err(corrupt.clone()));
    // A change of a part of the block must not make the damage look whole.
    write(&mut brick, 0x1234, 6000, b"part");
    assert_eq!(read(&mut brick, 0x1234, 4096, 100), Err(corrupt));
    // A whole block does.
    write(&mut brick, 0x1234, 4096, &pattern(5, 4096));
    assert_eq!(
        read(&mut brick, 0x1234, 4096, 4096).expect("read")[..],
        pattern(5, 4096)[..]
    );
}

#[test]
fn places_where_no_brick_belongs_are_refused_by_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let create =
        |path: &std::path::Path, force| create_brick(path, force, identity(), Bytes::new());
    let missing = dir.path().join("missing");
    assert!(matches!(
        create(&missing, true),
        Err(CreateError::Missing { .. })
    ));
    let file = dir.path().join("file");
    std::fs::write(&file, b"x").expect("write");
    assert!(matches!(
        create(&file, true),
        Err(CreateError::NotADirectory { .. })
    ));
    assert!(matches!(
        create(dir.path(), false),
        Err(CreateError::NotEmpty { .. } | CreateError::RootFileSystem { .. })
    ));
    create(dir.path(), true).expect("forced");
    assert!(matches!(
        create(dir.path(), true),
        Err(CreateError::AlreadyBrick { .. })
    ));
    let inside = dir.path().join("inside");
    std::fs::create_dir(&inside).expect("mkdir");
    assert!(matches!(
        create(&inside, true),
        Err(CreateError::InsideBrick { .. })
    ));

    let open = |path: &std::path::Path, expected| {
        open_brick(path, expected, EngineChoice::Threads).map(drop)
    };
    assert!(matches!(
        open(&missing, None),
        Err(OpenError::Missing { .. })
    ));
    assert!(matches!(
        open(&file, None),
        Err(OpenError::NotADirectory { .. })
    ));
    assert!(matches!(
        open(&inside, None),
        Err(OpenError::NotABrick { .. })
    ));
    let mut expected = crate::Expected {
        pool: identity().pool,
        volume: identity().spec.id,
        brick: identity().brick,
    };
    let (brick, _) =
        open_brick(dir.path(), Some(expected), EngineChoice::Threads).expect("its own");
    assert!(matches!(open(dir.path(), None), Err(OpenError::InUse)));
    drop(brick);
    expected.pool = protocol::ids::PoolId([9; 16]);
    assert!(matches!(
        open(dir.path(), Some(expected)),
        Err(OpenError::Foreign { .. })
    ));
    let (mut brick, _) = open_brick(dir.path(), None, EngineChoice::Threads).expect("open");
    brick.set_deleted().expect("durable");
    drop(brick);
    assert!(matches!(
        open(dir.path(), None),
        Err(OpenError::Deleted { .. })
    ));
}
