//! BAD-3: what was promised can be stored, whatever the journal keeps for others.

use bytes::Bytes;
use protocol::record::Change;
use protocol::units::{BLOCK_BYTES, ObjectId, Sequence};

use super::limits::options;
use super::util::*;
use crate::medium::Medium;
use crate::medium::sim::SimMedium;
use crate::{Brick, BrickEvent, Options};

/// A brick whose journal may come to be many times its fewest segments.
fn with_long_journal(capacity: u64) -> (SimMedium, Brick<SimMedium>) {
    let mut long: Options = options();
    long.journal.total_bytes_max = 24 << 20;
    let disk = SimMedium::new(5, capacity);
    Brick::create(&disk, identity(), Bytes::new(), &long).expect("create");
    let (brick, _) = Brick::open(disk.clone(), None, long).expect("open");
    (disk, brick)
}

/// Appends a record of which replica 1, which is away, has nothing; then waits as it is asked to.
fn apply_paced(brick: &mut Brick<SimMedium>, changes: Vec<Change>, payload: Vec<u8>) {
    brick.owe([(1, Sequence(0))].into_iter());
    apply(brick, changes, payload, 0);
    if brick.is_throttled() {
        wait_for(brick, |event| {
            matches!(event, BrickEvent::Unthrottled).then_some(())
        });
    }
}

fn write_paced(brick: &mut Brick<SimMedium>, object: u64, bytes: u64) {
    let change = Change::Write {
        object: ObjectId(object),
        offset: 0,
        len: bytes as u32,
    };
    apply_paced(brick, vec![change], pattern(object, bytes as usize));
}

/// The n-th of writes that go through the journal, which takes the most room.
fn journaled_bytes(n: u64) -> u64 {
    (28 + n * 4 % 36) << 10
}

/// The n-th of writes of all sizes up to 100 KiB.
fn mixed_bytes(n: u64) -> u64 {
    (n * 7919 % 200) << 9 | 1
}

fn replace_attributes(brick: &mut Brick<SimMedium>, rounds: u64) {
    for round in 0..rounds {
        let value = format!("{round:04}{}", "v".repeat(9996));
        apply_paced(brick, vec![put("attributes", &value)], Vec::new());
    }
}

/// BAD-3: the journal's tail for a replica that is away takes none of the room that was promised.
#[test]
fn what_was_promised_is_stored_while_the_journal_keeps_a_tail_for_a_replica_that_is_away() {
    for capacity in [24 << 20, 48 << 20, 96 << 20] {
        for bytes in [journaled_bytes, mixed_bytes] {
            let (_, mut brick) = with_long_journal(capacity);
            let promised = brick.space().expect("room").free_bytes;
            assert!(promised > capacity / 2, "{promised} of {capacity}");
            let mut stored = 0;
            for object in 0.. {
                // As the daemon does: each record may touch a block of its own.
                stored += bytes(object) + BLOCK_BYTES;
                if stored > promised {
                    break;
                }
                write_paced(&mut brick, object, bytes(object));
            }
            checkpoint(&mut brick);
            brick.close().expect("close");
        }
    }
}

/// BAD-3: what is let through on a full volume does not make the journal take the reserve.
#[test]
fn small_changes_on_a_full_disk_use_the_journal_again_though_a_replica_is_away() {
    let (_, mut brick) = with_long_journal(40 << 20);
    for object in 1.. {
        let bytes = journaled_bytes(object);
        if brick.admit(BLOCK_BYTES + bytes).is_err() {
            break;
        }
        write_paced(&mut brick, object, bytes);
    }
    replace_attributes(&mut brick, 2000);
    assert!(brick.oldest_kept() > Sequence(1000), "it gave up the tail");
    assert!(!brick.dirty_summary(1).is_clean(), "marked before it left");
    checkpoint(&mut brick);
    brick.close().expect("close");
}

/// BAD-3: room that others took meanwhile is none for the tail.
#[test]
fn the_journal_does_not_grow_into_a_reserve_to_which_others_have_filled_the_disk() {
    let (disk, mut brick) = with_long_journal(200 << 20);
    replace_attributes(&mut brick, 800);
    assert_eq!(brick.oldest_kept(), Sequence(1), "there is ample room");
    let room = disk.room().expect("works");
    // The reserve is 1 MiB; what waits and the store's copy of it need some, too.
    disk.set_capacity(room.total_bytes - room.free_bytes + (2 << 20));
    assert_eq!(brick.space().expect("room").free_bytes, 0);
    replace_attributes(&mut brick, 2000);
    assert!(brick.oldest_kept() > Sequence(1000), "it gave up the tail");
    checkpoint(&mut brick);
    brick.close().expect("close");
}
