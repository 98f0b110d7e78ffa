//! Retained points where the oracle and the crashing disk do not look: full disks, damage, versions,
//! real directories.

use bytes::Bytes;
use protocol::record::Change;
use protocol::units::{BLOCKS_PER_EXTENT, ObjectId, Sequence, Timestamp};

use super::util::*;
use crate::layout::{FORMAT_VERSION, FORMAT_WITHOUT_POINTS, kept_path, object_path, whole_path};
use crate::medium::sim::{CrashAt, SimMedium};
use crate::offline::check_medium;
use crate::{
    Brick, BrickError, BrickEvent, DirBrick, DirtyItem, EngineChoice, JournalSizes, Medium,
    Options, POINTS_MAX, PointError, PointId, PointKind, ReadError, create_brick, open_brick,
    open_brick_read_only, read_superblock,
};

const FAR: u64 = 8 << 20;

fn options() -> Options {
    Options {
        large_write_bytes: 8192,
        unsynced_bytes_max: 4 << 20,
        overlay_bytes_checkpoint: 4 << 20,
        overlay_bytes_max: 16 << 20,
        direct_bytes_checkpoint: 16 << 20,
        reserve_bytes: 1 << 16,
        journal: JournalSizes {
            segment_bytes: 1 << 20,
            total_bytes_max: 4 << 20,
        },
    }
}

fn fresh() -> (SimMedium, Brick<SimMedium>) {
    let disk = SimMedium::new(5, 1 << 30);
    Brick::create(&disk, identity(), Bytes::new(), &options()).expect("create");
    let (brick, _) = Brick::open(disk.clone(), None, options()).expect("open");
    (disk, brick)
}

fn open(disk: &SimMedium) -> Brick<SimMedium> {
    Brick::open(disk.clone(), None, options()).expect("open").0
}

fn point<M: Medium>(brick: &mut Brick<M>, kind: PointKind) -> PointId {
    let note = Bytes::from_static(b"note");
    let id = brick.make_point(kind, Timestamp(42), note).expect("made");
    // Its checkpoint's event is not the one that somebody waits for later.
    brick.poll(&mut Vec::new());
    id
}

fn leave_room(disk: &SimMedium, bytes: u64) {
    let room = disk.room().expect("room");
    disk.set_capacity(room.total_bytes - room.free_bytes + bytes);
}

/// RS-4: room is checked before, and may run out all the same.
#[test]
fn where_room_runs_out_the_state_before_a_resync_goes_and_the_brick_goes_on() {
    let (disk, mut brick) = fresh();
    write(&mut brick, 1, FAR, &pattern(1, 4096));
    let id = point(&mut brick, PointKind::Resync);
    write(&mut brick, 1, FAR, &pattern(2, 4096));
    leave_room(&disk, 4 << 20);
    brick.checkpoint().expect("begin");
    let lost = wait_for(&mut brick, |event| match event {
        BrickEvent::PointLost(id) => Some(*id),
        _ => None,
    });
    assert_eq!(lost, id);
    assert_eq!(brick.points(), []);
    assert_eq!(brick.view(id).err(), Some(PointError::Unknown { id }));
    disk.set_capacity(1 << 30);
    write(&mut brick, 1, FAR, &pattern(3, 4096));
    drop(brick);
    let mut brick = open(&disk.fork());
    assert_eq!(brick.points(), []);
    let found = read(&mut brick, 1, FAR, 4096).expect("read");
    assert!(found[..] == pattern(3, 4096)[..]);
}

/// ONE-3: what was given up is never lost silently.
#[test]
fn where_room_runs_out_a_given_up_side_stays_and_the_brick_stops() {
    let (disk, mut brick) = fresh();
    write(&mut brick, 1, FAR, &pattern(1, 4096));
    let id = point(&mut brick, PointKind::GivenUp);
    write(&mut brick, 1, FAR, &pattern(2, 4096));
    leave_room(&disk, 4 << 20);
    brick.checkpoint().expect("begin");
    let mut events = Vec::new();
    while brick.failure().is_none() {
        brick.wait();
        brick.poll(&mut events);
    }
    assert!(matches!(brick.failure(), Some(BrickError::Failed(fault)) if fault.is_no_space()));
    drop(brick);
    disk.set_capacity(1 << 30);
    let mut brick = open(&disk.fork());
    let mut view = brick.view(id).expect("there");
    let (then, now) = (
        read(&mut view, 1, FAR, 4096),
        read(&mut brick, 1, FAR, 4096),
    );
    assert!(then.expect("read")[..] == pattern(1, 4096)[..]);
    assert!(now.expect("read")[..] == pattern(2, 4096)[..]);
}

#[test]
fn only_a_brick_with_a_point_needs_the_newer_format() {
    let (disk, mut brick) = fresh();
    let format = |disk: &SimMedium| read_superblock(disk).expect("whole").format;
    assert_eq!(format(&disk), FORMAT_WITHOUT_POINTS);
    let id = point(&mut brick, PointKind::Resync);
    assert_eq!(format(&disk), FORMAT_VERSION);
    brick.close().expect("close");
    let mut brick = open(&disk);
    assert_eq!(format(&disk), FORMAT_VERSION);
    brick.drop_point(id).expect("there");
    brick.close().expect("close");
    let mut brick = open(&disk);
    assert_eq!(format(&disk), FORMAT_WITHOUT_POINTS);
    // A number is never used again, whatever files may have been left.
    assert!(point(&mut brick, PointKind::Resync) > id);
}

#[test]
fn what_cannot_be_done_with_points_is_refused_by_name() {
    let (_, mut brick) = fresh();
    let first = point(&mut brick, PointKind::GivenUp);
    let second = point(&mut brick, PointKind::Resync);
    let refused = brick.go_back(first, Bytes::new());
    let newest = second;
    assert_eq!(refused, Err(PointError::NotNewest { id: first, newest }));
    let id = PointId(99);
    assert_eq!(brick.drop_point(id), Err(PointError::Unknown { id }));
    for _ in 2..POINTS_MAX {
        point(&mut brick, PointKind::GivenUp);
    }
    let note = Bytes::new();
    let refused = brick.make_point(PointKind::Resync, Timestamp(0), note);
    assert_eq!(refused, Err(PointError::TooMany { max: POINTS_MAX }));
    assert!(brick.failure().is_none());
}

/// DUR-4
#[test]
fn a_damaged_copy_reads_as_an_error_and_never_as_other_bytes() {
    let (disk, mut brick) = fresh();
    write(&mut brick, 1, 0, &pattern(1, 20_000));
    let id = point(&mut brick, PointKind::GivenUp);
    write(&mut brick, 1, 0, &pattern(2, 20_000));
    checkpoint(&mut brick);
    assert!(disk.flip_bit(&kept_path(id.0, ObjectId(1)), 5000, 3));
    let mut view = brick.view(id).expect("there");
    let (object, block) = (ObjectId(1), 1);
    assert_eq!(
        read(&mut view, 1, 4096, 4096),
        Err(ReadError::Corrupt { object, block })
    );
    assert!(read(&mut view, 1, 0, 4096).expect("read")[..] == pattern(1, 20_000)[..4096]);
    brick.close().expect("close");
    let report = check_medium(disk, &mut |_| {}).expect("checked");
    assert_eq!(report.findings.len(), 1, "{:?}", report.findings);
}

/// RS-4
#[test]
fn going_back_that_was_cut_off_shows_one_state_or_the_other_and_ends_at_the_next_opening() {
    let make = || {
        let (disk, mut brick) = fresh();
        for object in 1..4 {
            write(&mut brick, object, 0, &pattern(object, 60_000));
        }
        apply(&mut brick, vec![put("a", "then")], Vec::new(), 0);
        let id = point(&mut brick, PointKind::Resync);
        write(&mut brick, 1, 9000, &pattern(7, 30_000));
        write(&mut brick, 4, 0, &pattern(8, 30_000));
        let gone = Change::Drop {
            object: ObjectId(2),
        };
        apply(&mut brick, vec![put("a", "now"), gone], Vec::new(), 0);
        checkpoint(&mut brick);
        write(&mut brick, 2, 0, &pattern(9, 20_000));
        flush(&mut brick);
        (disk, brick, id)
    };
    let then = |brick: &mut Brick<SimMedium>| {
        let whole = |brick: &mut Brick<SimMedium>, object| {
            read(brick, object, 0, 60_000).expect("read")[..] == pattern(object, 60_000)[..]
        };
        let value = brick.get(b"a").expect("get");
        let is_then = value.as_deref() == Some(b"then");
        assert_eq!(is_then, !brick.exists(ObjectId(4)).expect("known"));
        assert_eq!((1..4).all(|object| whole(brick, object)), is_then);
        is_then
    };
    let mut seen = std::collections::BTreeSet::new();
    for at in 0.. {
        let (disk, mut brick, id) = make();
        assert!(!then(&mut brick));
        let (_, changes) = disk.counts();
        disk.set_crash(Some(CrashAt::Change(changes + at)));
        let done = brick.go_back(id, Bytes::from_static(b"back")).is_ok();
        drop(brick);
        let disk = disk.crash(at);
        let (mut shown, _) = Brick::open_read_only(disk.clone()).expect("readable");
        let shows = then(&mut shown);
        let mut brick = open(&disk);
        assert_eq!(then(&mut brick), shows, "change {at}");
        assert_eq!(brick.points().len(), usize::from(!shows));
        assert_eq!(&brick.state()[..] == b"back", shows);
        if shows {
            assert_eq!(brick.applied(), Sequence(4));
            assert!(brick.dirty_summary(1).all);
        }
        seen.insert(shows);
        brick.close().expect("close");
        let report = check_medium(disk.clone(), &mut |_| {}).expect("checked");
        assert!(report.is_whole(), "{:?}", report.findings);
        assert_eq!(report.orphan_files, 0);
        if shows {
            assert!(!disk.paths().iter().any(|path| path.starts_with("points/")));
        }
        if done {
            break;
        }
    }
    assert_eq!(seen.len(), 2);
}

#[test]
fn a_point_in_a_real_directory_is_read_beside_the_present_and_gone_back_to() {
    let dir = tempfile::tempdir().expect("a directory");
    create_brick(dir.path(), true, identity(), Bytes::new()).expect("create");
    let opened = |engine| -> DirBrick { open_brick(dir.path(), None, engine).expect("open").0 };
    let mut brick = opened(EngineChoice::Best);
    let (then, now) = (pattern(1, 1 << 20), pattern(2, 1 << 20));
    write(&mut brick, 0x1_0001, 0, &then);
    write(&mut brick, 0x1_0002, 0, &then);
    let id = point(&mut brick, PointKind::GivenUp);
    // Through the journal first, directly once it is kept.
    for round in 0..3 {
        write(&mut brick, 0x1_0001, 0, &pattern(3 + round, 1 << 20));
        checkpoint(&mut brick);
    }
    write(&mut brick, 0x1_0001, 0, &now);
    checkpoint(&mut brick);
    let back = brick.read_records(Sequence(4), 1).expect("kept");
    assert!(
        back[0].data_as_of_now,
        "what is kept may be written directly"
    );
    let gone = Change::Drop {
        object: ObjectId(0x1_0002),
    };
    apply(&mut brick, vec![gone], Vec::new(), 0);
    brick.close().expect("close");
    let inner = dir.path().join(".cairn");
    assert!(!inner.join(object_path(ObjectId(0x1_0002))).exists());
    assert!(inner.join(whole_path(id.0, ObjectId(0x1_0002))).exists());
    let (offline, _) = open_brick_read_only(dir.path()).expect("readable");
    let view = offline.view(id).expect("there");
    for object in [0x1_0001, 0x1_0002] {
        let found = view.read_now(ObjectId(object), 0, 1 << 20).expect("read");
        assert!(found[..] == then[..]);
    }
    let point = &offline.points()[0];
    assert_eq!(
        (point.as_of, &point.note[..]),
        (Timestamp(42), &b"note"[..])
    );
    assert_eq!((point.used_bytes, point.kept_bytes), (2 << 20, 1 << 20));
    drop((view, offline));
    let mut brick = opened(EngineChoice::Threads);
    assert!(read(&mut brick, 0x1_0001, 0, 1 << 20).expect("read")[..] == now[..]);
    brick
        .go_back(id, Bytes::from_static(b"s"))
        .expect("gone back");
    for object in [0x1_0001, 0x1_0002] {
        let found = read(&mut brick, object, 0, 1 << 20).expect("read");
        assert!(found[..] == then[..]);
    }
    let left = std::fs::read_dir(inner.join("points")).expect("there");
    assert_eq!(left.count(), 0);
    write(&mut brick, 0x1_0001, 0, b"on it goes");
    brick.close().expect("close");
}

/// ONE-3: what a given-up side lacks or has besides is told without looking at the whole brick.
#[test]
fn a_point_names_the_keys_and_extents_that_changed_since_and_no_others() {
    let (_disk, mut brick) = fresh();
    for object in 1..4 {
        write(&mut brick, object, FAR, &pattern(object, 8192));
    }
    let id = point(&mut brick, PointKind::GivenUp);
    let rows = |brick: &Brick<SimMedium>| {
        let view = brick.view(id).expect("view");
        view.kept_rows(100).expect("rows")
    };
    assert_eq!(rows(&brick), (Vec::new(), true));
    write(&mut brick, 2, FAR + 4096, &pattern(9, 4096));
    write(&mut brick, 7, 0, &pattern(7, 4096));
    brick.checkpoint().expect("begin");
    while brick.checkpointed() < brick.applied() {
        brick.wait();
        brick.poll(&mut Vec::new());
    }
    let extent = |object: u64, extent: u64| DirtyItem::Blocks {
        object: ObjectId(object),
        start: extent * BLOCKS_PER_EXTENT,
        end: (extent + 1) * BLOCKS_PER_EXTENT,
    };
    let (found, complete) = rows(&brick);
    assert!(complete);
    let blocks: Vec<_> = found
        .iter()
        .filter(|item| matches!(item, DirtyItem::Blocks { .. }))
        .collect();
    assert_eq!(blocks, [&extent(2, FAR >> 22), &extent(7, 0)]);
    let view = brick.view(id).expect("view");
    let (few, complete) = view.kept_rows(1).expect("rows");
    assert_eq!((few.len(), complete), (1, false));
    let sums = |state: &Brick<SimMedium>, object| {
        let sums = state.block_sums(ObjectId(object), FAR >> 22);
        sums.expect("checksums")
    };
    let now = brick.last_checkpoint();
    assert_ne!(sums(&view, 2), sums(&now, 2));
    assert_eq!(sums(&view, 3), sums(&now, 3));
}
