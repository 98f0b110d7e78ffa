//! Full disks, failing disks, damage, and what the journal keeps.

use bytes::Bytes;
use protocol::ids::GenerationId;
use protocol::record::Change;
use protocol::units::{BLOCK_BYTES, ObjectId, Sequence, Term};

use super::util::*;
use crate::journal::SegmentHeader;
use crate::journal::frame::Lsn;
use crate::layout::segment_path;
use crate::medium::sim::SimMedium;
use crate::medium::{Medium, OpenMode};
use crate::offline::{Finding, check_medium};
use crate::{
    Brick, BrickError, BrickEvent, DirtyItem, JournalSizes, OpenError, Options, Pace, ReadError,
    SeekFor,
};

pub(super) fn options() -> Options {
    Options {
        large_write_bytes: 64 << 10,
        unsynced_bytes_max: 2 << 20,
        overlay_bytes_checkpoint: 1 << 20,
        overlay_bytes_max: 2 << 20,
        direct_bytes_checkpoint: 64 << 20,
        reserve_bytes: 1 << 20,
        journal: JournalSizes {
            segment_bytes: 1 << 20,
            total_bytes_max: 4 << 20,
        },
    }
}

fn fresh(capacity: u64) -> (SimMedium, Brick<SimMedium>) {
    let disk = SimMedium::new(5, capacity);
    Brick::create(&disk, identity(), Bytes::new(), &options()).expect("create");
    let (brick, _) = Brick::open(disk.clone(), None, options()).expect("open");
    (disk, brick)
}

/// Kills the process and starts it again.
fn restart(disk: &mut SimMedium, brick: Brick<SimMedium>) -> Brick<SimMedium> {
    *disk = disk.fork();
    drop(brick);
    let (brick, _) = Brick::open(disk.clone(), None, options()).expect("open");
    brick
}

fn drop_object(object: u64) -> Change {
    Change::Drop {
        object: ObjectId(object),
    }
}

/// BAD-3
#[test]
fn a_full_disk_is_refused_before_the_order_and_truncation_works_on_it() {
    let (_, mut brick) = fresh(40 << 20);
    let part = 100_000;
    let mut object = 1;
    while brick.admit(part).is_ok() {
        // Zeros take room like any other bytes that were written.
        let data = if object % 2 == 0 {
            vec![0; part as usize]
        } else {
            pattern(object, part as usize)
        };
        write(&mut brick, object, 0, &data);
        flush(&mut brick);
        object += 1;
        assert!(object < 1000, "the disk never fills");
    }
    let full = brick.space().expect("room").free_bytes;
    let changes = (1..object).map(drop_object).collect();
    apply(&mut brick, changes, Vec::new(), 0);
    // Nobody asks for a checkpoint: what was deleted is worth one.
    brick.give_back();
    wait_for(&mut brick, |event| {
        matches!(event, BrickEvent::Checkpointed(_)).then_some(())
    });
    assert!(brick.space().expect("room").free_bytes > full + part);
    assert_eq!(brick.used_bytes(), 0);
    brick.close().expect("close");
}

#[test]
fn a_failed_sync_stops_the_brick_for_changes_and_not_for_reads() {
    let (disk, mut brick) = fresh(1 << 30);
    write(&mut brick, 1, 0, b"before");
    disk.fail_sync(0);
    brick.flush(crate::FlushWhat::All).expect("begun");
    let mut events = Vec::new();
    while !events
        .iter()
        .any(|event| matches!(event, BrickEvent::Failed(_)))
    {
        brick.wait();
        brick.poll(&mut events);
    }
    assert!(
        !events
            .iter()
            .any(|event| matches!(event, BrickEvent::Flushed(_)))
    );
    let record = next(&brick, vec![put("a", "b")], Vec::new());
    assert!(matches!(
        brick.append(&record, 0),
        Err(BrickError::Failed(_))
    ));
    assert_eq!(&read(&mut brick, 1, 0, 6).expect("read")[..], b"before");
}

/// DUR-4
#[test]
fn a_check_names_every_flipped_bit_and_changes_nothing() {
    let (disk, mut brick) = fresh(1 << 30);
    apply(&mut brick, vec![put("k", "v")], Vec::new(), 0);
    write(&mut brick, 0x7, 0, &pattern(9, 200_000));
    write(&mut brick, 0x8, 0, b"inline");
    brick.close().expect("close");
    let check = |disk: &SimMedium| check_medium(disk.fork(), &mut |_| {}).expect("checked");
    let whole = check(&disk);
    assert!(whole.is_whole(), "{whole:?}");
    assert_eq!((whole.objects, whole.blocks), (2, 50));
    let path = crate::layout::object_path(ObjectId(7));
    assert!(disk.flip_bit(&path, 5 * BLOCK_BYTES + 77, 3));
    let corrupt = ReadError::Corrupt {
        object: ObjectId(7),
        block: 5,
    };
    assert_eq!(check(&disk).findings, [Finding::Unreadable(corrupt)]);
    let changes = disk.counts();
    let _ = check(&disk);
    assert_eq!(disk.counts(), changes);
}

#[test]
fn unreadable_sectors_are_an_error_of_those_blocks_alone() {
    let (disk, mut brick) = fresh(1 << 30);
    write(&mut brick, 7, 0, &pattern(1, 100_000));
    write(&mut brick, 9, 0, &pattern(2, 100_000));
    checkpoint(&mut brick);
    disk.fail_reads(&crate::layout::object_path(ObjectId(7)));
    assert!(matches!(
        read(&mut brick, 7, 0, 10),
        Err(ReadError::Unreadable { block: 0, .. })
    ));
    assert!(read(&mut brick, 9, 0, 10).is_ok());
    // A part of a block that cannot be read does not become a block that can.
    write(&mut brick, 7, 10, b"part");
    assert!(matches!(
        read(&mut brick, 7, 10, 4),
        Err(ReadError::Corrupt { .. })
    ));
}

/// A sector that cannot be read never comes to be at hand: whoever waited for it before a change
/// waited for ever, and everybody behind it.
#[test]
fn a_change_on_a_block_that_cannot_be_read_is_let_go_on() {
    let (disk, mut brick) = fresh(1 << 30);
    write(&mut brick, 7, 0, &pattern(1, 100_000));
    checkpoint(&mut brick);
    let path = crate::layout::object_path(ObjectId(7));
    disk.fail_block(&path, 0);
    disk.fail_block(&path, 2);
    let (offset, len) = (100, 2 * BLOCK_BYTES);
    let ready = brick.prepare(ObjectId(7), offset, len, 1);
    assert_eq!(ready, Ok(false), "it is not at hand");
    wait_for(&mut brick, |event| {
        matches!(event, BrickEvent::Prepared { token: 1 }).then_some(())
    });
    assert_eq!(brick.prepare(ObjectId(7), offset, len, 2), Ok(true));
    write(&mut brick, 7, offset, &pattern(2, 2 * BLOCK_BYTES as usize));
    assert!(matches!(
        read(&mut brick, 7, 0, 10),
        Err(ReadError::Corrupt { block: 0, .. })
    ));
    // What is written as a whole is whole again, on the medium too.
    write(&mut brick, 7, 0, &pattern(3, 3 * BLOCK_BYTES as usize));
    checkpoint(&mut brick);
    let whole = read(&mut brick, 7, 0, 3 * BLOCK_BYTES as u32).expect("whole");
    assert_eq!(whole, pattern(3, 3 * BLOCK_BYTES as usize));
}

/// BAD-4
#[test]
fn a_brick_of_another_format_is_refused_with_both_versions_named() {
    let (disk, brick) = fresh(1 << 30);
    brick.close().expect("close");
    let flip = |copy: u64| disk.flip_bit(crate::layout::SUPERBLOCK, copy * 131_072 + 8, 1);
    assert!(flip(0) && flip(1));
    let before = disk.counts();
    let refused = Brick::open(disk.clone(), None, options()).map(drop);
    assert!(matches!(
        refused,
        Err(OpenError::Format { found: 3, known: 2 })
    ));
    assert_eq!(disk.counts(), before);
}

#[test]
fn one_damaged_superblock_copy_does_no_harm() {
    let (disk, mut brick) = fresh(1 << 30);
    brick
        .set_state(Bytes::from_static(b"one"))
        .expect("durable");
    brick
        .set_state(Bytes::from_static(b"two"))
        .expect("durable");
    drop(brick);
    for copy in 0..2 {
        let disk = disk.fork();
        assert!(disk.flip_bit(crate::layout::SUPERBLOCK, copy * 131_072 + 500, 1));
        let (brick, _) = Brick::open(disk, None, options()).expect("the other copy");
        assert!(brick.state() == "one" || brick.state() == "two");
    }
}

#[test]
fn the_journal_keeps_what_peers_need_up_to_its_limit() {
    let (_, mut brick) = fresh(1 << 30);
    brick.owe([(1, Sequence(0))].into_iter());
    let block = pattern(3, 30_000);
    for _ in 0..60 {
        write(&mut brick, 1, 0, &block);
    }
    checkpoint(&mut brick);
    assert_eq!(brick.oldest_kept(), Sequence(1));
    let bytes = brick.journal_bytes_since(Sequence(30)).expect("kept");
    assert!((600_000..1_300_000).contains(&bytes), "{bytes}");
    let records = brick.read_records(Sequence(0), 100_000).expect("kept");
    assert_eq!(
        records.first().map(|found| found.record.sequence),
        Some(Sequence(1))
    );
    assert_eq!(records.len(), 3);
    for _ in 0..200 {
        write(&mut brick, 1, 0, &block);
        flush(&mut brick);
    }
    assert!(brick.oldest_kept() > Sequence(60), "the limit counts");
    let refused = brick.read_records(Sequence(3), 1000);
    assert!(matches!(refused, Err(BrickError::NotKept { .. })));
    assert_eq!(brick.journal_bytes_since(Sequence(3)), None);
    assert!(matches!(
        brick.mark_dirty_since(2, Sequence(3)),
        Err(BrickError::NotKept { .. })
    ));
    let kept = brick.oldest_kept();
    let tail = brick
        .read_records(Sequence(kept.0 - 1), usize::MAX)
        .expect("kept");
    assert_eq!(
        tail.last().map(|found| found.record.sequence),
        Some(brick.applied())
    );
}

#[test]
fn what_leaves_the_journal_is_marked_first_for_whoever_has_not_confirmed_it() {
    let (mut disk, mut brick) = fresh(1 << 30);
    // Replica 1 confirmed the first ten records, replica 2 all but the last twenty.
    let block = pattern(3, 30_000);
    for number in 1..=300_u64 {
        let confirmed = Sequence(number.saturating_sub(20));
        brick.owe([(1, Sequence(10)), (2, confirmed)].into_iter());
        write(&mut brick, number, 0, &block);
        flush(&mut brick);
    }
    let left = brick.oldest_kept();
    assert!(left > Sequence(100), "the limit counts");
    let marked = |brick: &Brick<SimMedium>, replica| {
        let items = brick.next_dirty(replica, None, usize::MAX);
        let objects = items.into_iter().map(|item| match item {
            DirtyItem::Blocks { object, .. } | DirtyItem::Dropped { object } => object.0,
            DirtyItem::Key { .. } => 0,
        });
        objects.collect::<std::collections::BTreeSet<_>>()
    };
    for _ in 0..2 {
        for lost in 11..left.0 {
            assert!(
                marked(&brick, 1).contains(&lost),
                "record {lost} left unmarked"
            );
        }
        assert!(!marked(&brick, 1).contains(&5), "that one was confirmed");
        assert!(
            marked(&brick, 2).is_empty(),
            "the journal holds what it lacks"
        );
        assert_eq!(brick.marked_late(2), None);
        brick = restart(&mut disk, brick);
    }
}

#[test]
fn what_is_marked_suspect_is_suspect_after_a_crash_until_it_is_settled() {
    let (mut disk, mut brick) = fresh(1 << 30);
    brick
        .mark_suspect(ObjectId(1), &(5000..9000))
        .expect("marked");
    write(&mut brick, 1, 0, &pattern(3, 30_000));
    flush(&mut brick);
    for settled in [false, true] {
        disk = disk.fork();
        drop(brick);
        let (again, report) = Brick::open(disk.clone(), None, options()).expect("open");
        brick = again;
        let expected = (!settled).then_some((ObjectId(1), BLOCK_BYTES..3 * BLOCK_BYTES));
        assert_eq!(report.suspect, Vec::from_iter(expected));
        brick.clear_suspects().expect("settled");
        flush(&mut brick);
    }
}

/// The simulation found it: numbers of the given-up history counted as marked, so what the journal
/// gave up of the new one was marked for nobody, and a replica never got it.
#[test]
fn what_was_marked_in_a_history_that_was_given_up_does_not_count_in_the_next() {
    let (_, mut brick) = fresh(1 << 30);
    let block = pattern(3, 30_000);
    let run = |brick: &mut Brick<SimMedium>, from: u64, object_from: u64| {
        for number in from..from + 300 {
            brick.owe([(1, Sequence(from))].into_iter());
            write(brick, object_from + number, 0, &block);
            flush(brick);
        }
    };
    run(&mut brick, 0, 1);
    assert!(brick.marked_late(1) > Some(Sequence(50)));
    brick
        .set_applied(Sequence(20), Term(2), GenerationId([8; 16]))
        .expect("set");
    brick
        .clear_dirty(1, &brick.next_dirty(1, None, usize::MAX))
        .expect("sent");
    run(&mut brick, 20, 1001);
    let items = brick.next_dirty(1, None, usize::MAX);
    let marked = |object| {
        let mut items = items.iter();
        items.any(|item| matches!(item, DirtyItem::Blocks { object: of, .. } if of.0 == object))
    };
    let left = brick.oldest_kept();
    assert!(left > Sequence(100), "the limit counts");
    for lost in 21..left.0 {
        assert!(marked(1000 + lost), "record {lost} left unmarked");
    }
}

/// Their segment began with a higher number, so nothing was kept, it seemed, and nothing marked.
#[test]
fn records_after_a_lower_position_are_kept_also_by_a_segment_of_the_history_before() {
    let (mut disk, mut brick) = fresh(1 << 30);
    let block = pattern(3, 30_000);
    for number in 1..=100_u64 {
        write(&mut brick, number, 0, &block);
    }
    brick
        .set_applied(Sequence(20), Term(2), GenerationId([8; 16]))
        .expect("set");
    for number in 1..=40_u64 {
        write(&mut brick, 1000 + number, 0, &block);
    }
    for _ in 0..2 {
        assert_eq!(brick.oldest_kept(), Sequence(21));
        let records = brick.read_records(Sequence(20), usize::MAX).expect("kept");
        assert_eq!(records.len(), 40);
        let bytes = brick.journal_bytes_since(Sequence(20)).expect("kept");
        assert!((1_100_000..2_500_000).contains(&bytes), "{bytes}");
        flush(&mut brick);
        checkpoint(&mut brick);
        brick = restart(&mut disk, brick);
    }
}

#[test]
fn a_new_position_ends_what_the_journal_can_tell() {
    let (mut disk, mut brick) = fresh(1 << 30);
    for _ in 0..5 {
        write(&mut brick, 1, 0, b"x");
    }
    // Back, into another history: the old records 3 to 5 must not be taken for the new ones.
    brick
        .set_applied(Sequence(2), Term(2), GenerationId([8; 16]))
        .expect("set");
    for _ in 0..2 {
        write(&mut brick, 2, 0, b"new");
    }
    for round in 0..2 {
        assert_eq!(brick.applied(), Sequence(4));
        assert_eq!(brick.oldest_kept(), Sequence(3));
        let records = brick.read_records(Sequence(2), usize::MAX).expect("kept");
        assert!(records.iter().all(|found| found.record.payload == "new"));
        assert_eq!(records.len(), 2);
        if round == 0 {
            flush(&mut brick);
            brick = restart(&mut disk, brick);
        }
    }
}

#[test]
fn records_out_of_order_and_oversized_ones_are_refused_before_anything_changes() {
    let (_, mut brick) = fresh(1 << 30);
    let early = record(Sequence(2), vec![put("a", "b")], Vec::new());
    assert!(matches!(
        brick.append(&early, 0),
        Err(BrickError::OutOfOrder { .. })
    ));
    let huge = (0..40)
        .map(|key| put(&format!("{key}"), &"x".repeat(60_000)))
        .collect();
    let huge = record(Sequence(1), huge, Vec::new());
    assert!(matches!(
        brick.append(&huge, 0),
        Err(BrickError::TooLarge { .. })
    ));
    let short = Change::Write {
        object: ObjectId(1),
        offset: 0,
        len: 9,
    };
    let short = record(Sequence(1), vec![short], vec![1]);
    assert!(matches!(
        brick.append(&short, 0),
        Err(BrickError::Payload { .. })
    ));
    assert_eq!(brick.get(b"0").expect("get"), None);
    assert_eq!(brick.applied(), Sequence(0));
}

/// RS-1
#[test]
fn a_missing_replica_is_owed_each_block_once_also_after_recycling_and_restarts() {
    let (mut disk, mut brick) = fresh(1 << 30);
    write(&mut brick, 1, 0, &pattern(1, 900_000));
    for round in 0..300 {
        write_for(
            &mut brick,
            1,
            (round % 20) * 40_960,
            &pattern(round, 5000),
            0b10,
        );
        flush(&mut brick);
    }
    brick = restart(&mut disk, brick);
    let summary = brick.dirty_summary(1);
    assert_eq!(summary.blocks, 40);
    assert_eq!(summary.bytes, 40 * BLOCK_BYTES);
    assert!(brick.dirty_summary(0).is_clean());
    let items = brick.next_dirty(1, None, 3);
    assert_eq!(items.len(), 3);
    brick.clear_dirty(1, &items).expect("clear");
    flush(&mut brick);
    brick = restart(&mut disk, brick);
    assert_eq!(brick.dirty_summary(1).blocks, 34);
}

#[test]
fn what_the_journal_kept_can_be_marked_dirty_afterwards() {
    let (_, mut brick) = fresh(1 << 30);
    write(&mut brick, 1, 0, &pattern(1, 100_000));
    let before = brick.applied();
    apply(
        &mut brick,
        vec![put("a", "1"), drop_object(5)],
        Vec::new(),
        0,
    );
    write(&mut brick, 1, 8192, &pattern(2, 4096));
    let cut = Change::Truncate {
        object: ObjectId(1),
        size: 90_000,
    };
    apply(&mut brick, vec![cut], Vec::new(), 0);
    brick.mark_dirty_since(3, before).expect("kept");
    let blocks = |start, end| DirtyItem::Blocks {
        object: ObjectId(1),
        start,
        end,
    };
    let wanted = [
        blocks(2, 3),
        blocks(21, 25),
        DirtyItem::Dropped {
            object: ObjectId(5),
        },
        DirtyItem::Key {
            key: Bytes::from_static(b"a"),
        },
    ];
    assert_eq!(brick.next_dirty(3, None, 100), wanted);
    brick.mark_all_dirty(3).expect("all");
    brick
        .set_full_progress(3, Bytes::from_static(b"half"))
        .expect("progress");
    assert!(brick.dirty_summary(3).all);
    assert_eq!(brick.full_progress(3), "half");
    brick.clear_all_dirty(3).expect("clear");
    assert!(brick.dirty_summary(3).is_clean());
}

#[test]
fn holes_and_data_are_found_where_they_are() {
    let (_, mut brick) = fresh(1 << 30);
    write(&mut brick, 1, 2 * BLOCK_BYTES, &pattern(1, 8192));
    write(&mut brick, 1, 8 << 20, &pattern(2, 4096));
    write(&mut brick, 2, 100, b"inline");
    for _ in 0..2 {
        let size = 9 << 20;
        let seek = |object, offset, what| {
            brick
                .seek(ObjectId(object), offset, what, size)
                .expect("seek")
        };
        assert_eq!(seek(1, 0, SeekFor::Data), Some(8192));
        assert_eq!(seek(1, 9000, SeekFor::Data), Some(9000));
        assert_eq!(seek(1, 9000, SeekFor::Hole), Some(16384));
        assert_eq!(seek(1, 16384, SeekFor::Data), Some(8 << 20));
        assert_eq!(
            seek(1, (8 << 20) + 1, SeekFor::Hole),
            Some((8 << 20) + 4096)
        );
        assert_eq!(seek(1, (8 << 20) + 4096, SeekFor::Data), None);
        assert_eq!(seek(2, 0, SeekFor::Data), Some(0));
        assert_eq!(seek(2, 0, SeekFor::Hole), Some(4096));
        assert_eq!(seek(3, 5, SeekFor::Hole), Some(5));
        assert_eq!(seek(3, 5, SeekFor::Data), None);
        checkpoint(&mut brick);
    }
    let cut = Change::Truncate {
        object: ObjectId(1),
        size: 10_000,
    };
    apply(&mut brick, vec![cut], Vec::new(), 0);
    checkpoint(&mut brick);
    assert_eq!(brick.data_end(ObjectId(1)).expect("known"), 10_000);
    assert_eq!(brick.used_bytes(), 2 * BLOCK_BYTES);
}

#[test]
fn a_caller_that_outruns_the_disk_is_asked_to_wait_and_told_to_go_on() {
    let (_, mut brick) = fresh(1 << 30);
    let big = pattern(1, 512 << 10);
    let mut pace = Pace::Ready;
    for at in 0..20 {
        let change = Change::Write {
            object: ObjectId(1),
            offset: at * (512 << 10),
            len: 512 << 10,
        };
        let record = next(&brick, vec![change], big.clone());
        pace = brick.append(&record, 0).expect("append");
        brick.push().expect("push");
        if pace == Pace::Throttle {
            break;
        }
    }
    assert_eq!(pace, Pace::Throttle);
    wait_for(&mut brick, |event| {
        matches!(event, BrickEvent::Unthrottled).then_some(())
    });
}

/// RS-2: what the journal alone holds counts as well.
#[test]
fn small_writes_are_synced_before_more_waits_than_is_promised() {
    let disk = SimMedium::new(5, 1 << 30);
    let few = Options {
        unsynced_bytes_max: 256 << 10,
        ..options()
    };
    Brick::create(&disk, identity(), Bytes::new(), &few).expect("create");
    let (mut brick, _) = Brick::open(disk, None, few).expect("open");
    let mut written = 0;
    let mut write = |brick: &mut Brick<SimMedium>| {
        let offset = written % 64 * BLOCK_BYTES;
        written += 1;
        let change = Change::Write {
            object: ObjectId(1),
            offset,
            len: BLOCK_BYTES as u32,
        };
        let record = next(brick, vec![change], pattern(written, BLOCK_BYTES as usize));
        let pace = brick.append(&record, 0).expect("append");
        brick.push().expect("push");
        (pace, written)
    };
    let written = loop {
        if let (Pace::Throttle, written) = write(&mut brick) {
            break written;
        }
    };
    assert!(written * BLOCK_BYTES <= 256 << 10, "{written} blocks");
    // The sync began by itself.
    wait_for(&mut brick, |event| {
        matches!(event, BrickEvent::Unthrottled).then_some(())
    });
    assert!(brick.stable() > Sequence::ZERO);
    assert_eq!(write(&mut brick).0, Pace::Ready);
}

/// RS-2, and the reason for the activity log.
#[test]
fn an_overwrite_in_place_waits_for_its_extent_to_be_listed_and_then_skips_the_journal() {
    let (_, mut brick) = fresh(1 << 30);
    let big = pattern(1, 256 << 10);
    write(&mut brick, 1, 0, &big);
    flush(&mut brick);
    for round in 0..4 {
        write(&mut brick, 1, 0, &pattern(round + 2, 256 << 10));
        flush(&mut brick);
        checkpoint(&mut brick);
    }
    let found = brick.read_records(Sequence(1), usize::MAX).expect("kept");
    let lost: Vec<bool> = found.iter().map(|found| found.data_as_of_now).collect();
    // The first goes through the journal and lists the extent; the later ones go direct, and what
    // they wrote is nowhere once it is overwritten.
    assert_eq!(lost, [false, true, true, false]);
}

/// RS-4: the data of a large write is read from the object, and may be newer than the record.
#[test]
fn a_record_whose_data_was_changed_since_is_marked_and_others_are_as_they_were() {
    let object = ObjectId(1);
    let write_of = |offset, len| Change::Write {
        object,
        offset,
        len,
    };
    let zero = Change::Zero {
        object,
        offset: 100,
        len: 50_000,
    };
    let changes = [
        None,
        Some(write_of(0, 5000)),
        Some(write_of(100_000, 10)),
        Some(zero),
        Some(Change::Drop { object }),
    ];
    for (at, change) in changes.into_iter().enumerate() {
        let (_, mut brick) = fresh(1 << 30);
        // Parts of blocks at both ends stand in the journal.
        let data = pattern(1, 100_000);
        write(&mut brick, 1, 1000, &data);
        write(&mut brick, 2, 0, &pattern(3, 100));
        if let Some(change) = change {
            let len = match change {
                Change::Write { len, .. } => len as usize,
                _ => 0,
            };
            apply(&mut brick, vec![change], pattern(2, len), 0);
        }
        let found = brick.read_records(Sequence(0), usize::MAX).expect("kept");
        let (marked, rest) = found.split_first().expect("records");
        // The third change reaches into no block that stands whole in the object's file.
        assert_eq!(marked.data_as_of_now, [1, 3, 4].contains(&at), "{at}");
        assert!(marked.data_as_of_now || marked.record.payload[..] == data[..]);
        assert!(rest.iter().all(|found| !found.data_as_of_now), "{at}");
    }
}

/// BAD-3
#[test]
fn a_large_write_that_finds_no_room_in_its_file_goes_through_the_journal() {
    let (mut disk, mut brick) = fresh(1 << 30);
    write(&mut brick, 1, 0, &pattern(1, 200_000));
    flush(&mut brick);
    disk.set_capacity(1 << 20);
    let data = pattern(2, 300_000);
    write(&mut brick, 1, 200_704, &data);
    disk.set_capacity(1 << 30);
    flush(&mut brick);
    assert!(brick.failure().is_none());
    let back = brick.read_records(Sequence(1), usize::MAX).expect("kept");
    assert!(!back[0].data_as_of_now);
    for _ in 0..2 {
        let found = read(&mut brick, 1, 200_704, 300_000).expect("read");
        assert!(found[..] == data[..]);
        brick = restart(&mut disk, brick);
    }
}

#[test]
fn a_missing_replica_is_owed_what_a_zeroed_range_cut_and_not_its_empty_rest() {
    let (_, mut brick) = fresh(1 << 30);
    write(&mut brick, 1, 0, &pattern(1, 100_000));
    let before = brick.applied();
    let zero = Change::Zero {
        object: ObjectId(1),
        offset: 90_000,
        len: i64::MAX as u64 - 90_000,
    };
    apply(&mut brick, vec![zero], Vec::new(), 0b10);
    let owed = [DirtyItem::Blocks {
        object: ObjectId(1),
        start: 21,
        end: 25,
    }];
    assert_eq!(brick.next_dirty(1, None, 10), owed);
    brick.mark_dirty_since(2, before).expect("kept");
    assert_eq!(brick.next_dirty(2, None, 10), owed);
}

/// Story (crash test, seed 14): a large write without a sync, its object dropped. With the drop the
/// write counted as settled and its record as stable; a power cut that lost the drop and not the
/// record showed zeros where stable bytes should have been.
#[test]
fn a_drop_that_may_be_lost_does_not_make_a_lost_write_stable() {
    let (_, mut brick) = fresh(1 << 30);
    write(&mut brick, 1, 0, &pattern(1, 262_144));
    let id = brick
        .flush(crate::FlushWhat::Objects(Vec::new()))
        .expect("flush");
    wait_for(&mut brick, |event| {
        matches!(event, BrickEvent::Flushed(done) if *done == id).then_some(())
    });
    assert_eq!(brick.journal_stable(), Sequence(1));
    apply(&mut brick, vec![drop_object(1)], Vec::new(), 0);
    brick.poll(&mut Vec::new());
    assert_eq!(brick.stable(), Sequence(0));
    flush(&mut brick);
    assert_eq!(brick.stable(), Sequence(2));
}

/// Story (crash test, seed 1): the process is killed, the brick opens on what the page cache holds
/// and writes it into files, and then the power goes.
#[test]
fn a_power_cut_after_the_recovery_from_a_kill_loses_nothing_that_recovery_showed() {
    let (mut disk, mut brick) = fresh(1 << 30);
    write(&mut brick, 1, 0, &pattern(1, 262_144));
    write(&mut brick, 1, 5000, b"small");
    for seed in 0..8 {
        disk = disk.fork();
        drop(brick);
        brick = Brick::open(disk.clone(), None, options()).expect("open").0;
        assert_eq!(brick.applied(), Sequence(2));
        drop(brick);
        disk = disk.crash(seed);
        brick = Brick::open(disk.clone(), None, options()).expect("open").0;
        assert_eq!(brick.applied(), Sequence(2));
        assert_eq!(&read(&mut brick, 1, 5000, 5).expect("read")[..], b"small");
        assert!(read(&mut brick, 1, 0, 262_144).is_ok());
    }
}

/// The simulation found it: something was written into the journal as the brick shut down, and not
/// synced. The next process built on it, a power cut took it, and the journal had a hole where it said
/// that it reached: nobody could be brought up to date from it, and the brick stopped.
#[test]
fn the_journal_has_no_hole_when_power_goes_after_an_orderly_restart() {
    for seed in 0..8 {
        let (mut disk, mut brick) = fresh(1 << 30);
        write(&mut brick, 1, 0, &pattern(1, 5000));
        brick.shut_down().expect("in order");
        // A task that has not heard of the end.
        write(&mut brick, 2, 0, b"late");
        brick.poll(&mut Vec::new());
        drop(brick);
        let (brick, report) = Brick::open(disk.clone(), None, options()).expect("open");
        assert!(report.was_clean);
        assert_eq!(brick.applied(), Sequence(2));
        drop(brick);
        disk = disk.crash(seed);
        let (mut brick, _) = Brick::open(disk.clone(), None, options()).expect("open");
        assert_eq!(brick.applied(), Sequence(2));
        let records = brick.read_records(Sequence::ZERO, 1 << 30).expect("all");
        assert_eq!(records.len(), 2);
    }
}

/// A segment that a lost tail left had the number of the one that was made in its place later, and
/// was read instead: the records after the last checkpoint were gone.
#[test]
fn a_segment_of_a_lost_tail_is_not_taken_for_the_one_in_its_place() {
    let (mut disk, mut brick) = fresh(1 << 30);
    write(&mut brick, 1, 0, &pattern(1, 5000));
    checkpoint(&mut brick);
    write(&mut brick, 1, 0, &pattern(2, 5000));
    flush(&mut brick);
    let left = SegmentHeader {
        number: 1,
        first_lsn: Lsn(1),
        first_seq: Sequence(1),
        epoch: 0,
        brick: identity().brick,
    };
    // The first segment is made in the highest slot.
    let file = disk
        .open(&segment_path(0), OpenMode::Write)
        .expect("a free segment");
    disk.write_at(&file, 0, &left.encode()).expect("written");
    disk.sync(&file).expect("synced");
    let mut brick = restart(&mut disk, brick);
    assert_eq!(brick.applied(), Sequence(2));
    let found = read(&mut brick, 1, 0, 5000).expect("read");
    assert!(found[..] == pattern(2, 5000)[..]);
}

#[test]
fn extents_are_those_that_hold_something_and_wide_holes_cost_nothing() {
    let (_, mut brick) = fresh(64 << 20);
    let object = ObjectId(1);
    let extent = protocol::units::EXTENT_BYTES;
    for at in [0, 3, 5] {
        write(&mut brick, 1, at * extent, &pattern(at, 5000));
    }
    checkpoint(&mut brick);
    // Over what is stored: one emptied, one new, one that only looks as if it held something, and
    // one so far away that nobody counts up to it.
    let zero = Change::Zero {
        object,
        offset: 3 * extent,
        len: extent,
    };
    apply(&mut brick, vec![zero], Vec::new(), 0);
    write(&mut brick, 1, 4 * extent, &pattern(4, 100));
    write(&mut brick, 1, 6 * extent, &[0; 5000]);
    write(&mut brick, 1, (1 << 40) * extent, &pattern(9, 100));
    assert_eq!(brick.extents(object).expect("readable"), [0, 4, 5, 1 << 40]);
    assert_eq!(brick.next_extent(object, 1).expect("readable"), Some(4));
    assert_eq!(brick.next_extent(object, 5).expect("readable"), Some(5));
    assert_eq!(brick.next_extent(object, 1 << 41).expect("readable"), None);
    write(&mut brick, 2, 0, b"little");
    assert_eq!(brick.extents(ObjectId(2)).expect("readable"), [0]);
    assert_eq!(brick.next_extent(ObjectId(2), 1).expect("readable"), None);
    assert_eq!(brick.extents(ObjectId(3)).expect("readable"), [0_u64; 0]);
}
