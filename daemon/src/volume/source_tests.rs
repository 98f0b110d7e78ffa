//! A batch of a resync is read while live records go on. What one of them changed in between has
//! to be read again: otherwise the batch, which is sent after the record, puts old bytes over
//! newer ones at the target.

use super::*;

const BLOCK: u64 = BLOCK_BYTES;

fn after(change: Change) -> Changed {
    let mut changed = Changed::default();
    changed.note(&[change]);
    changed
}

fn blocks(object: u64, start: u64, end: u64) -> DirtyItem {
    DirtyItem::Blocks {
        object: ObjectId(object),
        start,
        end,
    }
}

fn key(name: &'static [u8]) -> DirtyItem {
    DirtyItem::Key {
        key: Bytes::from_static(name),
    }
}

#[test]
fn a_write_touches_each_block_that_it_reaches_into_and_no_other() {
    // The last byte of block 1, all of block 2, the first byte of block 3.
    let changed = after(Change::Write {
        object: ObjectId(5),
        offset: 2 * BLOCK - 1,
        len: u32::try_from(BLOCK + 2).expect("small"),
    });
    for block in 1..4 {
        assert!(changed.touches(&blocks(5, block, block + 1)), "{block}");
    }
    assert!(!changed.touches(&blocks(5, 0, 1)), "ends where it begins");
    assert!(!changed.touches(&blocks(5, 4, 9)), "begins where it ends");
    assert!(changed.touches(&blocks(5, 0, 100)), "lies inside");
    assert!(!changed.touches(&blocks(6, 1, 4)), "another object");
    assert!(!changed.touches(&key(b"5")));
}

#[test]
fn zeroing_cutting_and_dropping_touch_as_far_as_they_reach() {
    let object = ObjectId(5);
    let zeroed = after(Change::Zero {
        object,
        offset: BLOCK,
        len: BLOCK,
    });
    assert!(zeroed.touches(&blocks(5, 1, 2)));
    assert!(!zeroed.touches(&blocks(5, 0, 1)) && !zeroed.touches(&blocks(5, 2, 3)));
    // To the end of everything, without running over.
    let far = after(Change::Zero {
        object,
        offset: BLOCK,
        len: u64::MAX,
    });
    assert!(far.touches(&blocks(5, 1 << 40, (1 << 40) + 1)));
    let cut = after(Change::Truncate {
        object,
        size: BLOCK + 1,
    });
    assert!(cut.touches(&blocks(5, 1, 2)) && cut.touches(&blocks(5, 9, 10)));
    assert!(!cut.touches(&blocks(5, 0, 1)), "it is not cut");
    let dropped = after(Change::Drop { object });
    assert!(dropped.touches(&blocks(5, 0, 1)));
    assert!(dropped.touches(&DirtyItem::Dropped { object }));
}

#[test]
fn an_object_that_is_said_to_be_dropped_may_have_been_made_again() {
    let object = ObjectId(5);
    let written = after(Change::Write {
        object,
        offset: 0,
        len: 1,
    });
    assert!(written.touches(&DirtyItem::Dropped { object }));
    let other = DirtyItem::Dropped {
        object: ObjectId(6),
    };
    assert!(!written.touches(&other));
}

#[test]
fn putting_and_deleting_touch_exactly_their_key() {
    let name = Bytes::from_static(b"name");
    let put = Change::Put {
        key: name.clone(),
        value: Bytes::new(),
    };
    for change in [put, Change::Delete { key: name }] {
        let changed = after(change);
        assert!(changed.touches(&key(b"name")));
        assert!(!changed.touches(&key(b"nam")) && !changed.touches(&key(b"name2")));
    }
}

#[test]
fn every_record_since_the_batch_was_begun_counts() {
    let source = Source::default();
    let write = |block: u64| Change::Write {
        object: ObjectId(5),
        offset: block * BLOCK,
        len: 1,
    };
    source.ordered(&[write(1)]);
    assert!(
        source.changed.borrow().is_none(),
        "no batch is in the making"
    );
    *source.changed.borrow_mut() = Some(Changed::default());
    source.ordered(&[write(7), write(3)]);
    source.ordered(&[write(5)]);
    let changed = source.changed.borrow_mut().take().expect("in the making");
    let touched: Vec<u64> = (0..9)
        .filter(|block| changed.touches(&blocks(5, *block, block + 1)))
        .collect();
    assert_eq!(touched, [3, 5, 7]);
}
