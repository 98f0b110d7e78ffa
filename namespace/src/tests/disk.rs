//! A block volume's one file.

use bytes::Bytes;
use protocol::fs::{Operation, Outcome, SetAttributes};
use protocol::record::Change;
use protocol::units::{ObjectId, Timestamp};

use super::{Bench, ROOT, name};
use crate::errno::{ENOSPC, EPERM};
use crate::memory::MemoryVolume;
use crate::{Executed, resize_disk};

const SIZE: u64 = 1 << 20;
const DISK: ObjectId = ObjectId::DISK;

fn bench() -> Bench {
    Bench {
        volume: MemoryVolume::disk(SIZE, Timestamp(1)),
        ..Bench::new()
    }
}

fn read(bench: &mut Bench, offset: u64, len: u32) -> Bytes {
    let object = DISK;
    match bench.run(Operation::Read {
        object,
        offset,
        len,
    }) {
        Outcome::Data(data) => data,
        other => panic!("no data: {other:?}"),
    }
}

#[test]
fn a_block_volume_shows_its_disk_at_the_root_and_nothing_else_can_be_there() {
    let mut bench = bench();
    assert_eq!(bench.names(ROOT, 1000), ["disk.img"]);
    let found = bench.entry(Operation::Lookup {
        parent: ROOT,
        name: name("disk.img"),
    });
    assert_eq!(
        (found.object, found.size, found.mode),
        (DISK, SIZE, 0o100_600)
    );
    let (parent, disk, other) = (ROOT, name("disk.img"), name("other"));
    let refused = [
        Operation::Create {
            parent,
            name: other.clone(),
            mode: 0o644,
            exclusive: false,
        },
        Operation::MakeDirectory {
            parent,
            name: other.clone(),
            mode: 0o755,
        },
        Operation::MakeUnnamed {
            parent,
            mode: 0o644,
        },
        Operation::Symlink {
            parent,
            name: other.clone(),
            target: name("t"),
        },
        Operation::Link {
            object: DISK,
            new_parent: parent,
            new_name: other.clone(),
        },
        Operation::Rename {
            parent,
            name: disk.clone(),
            new_parent: parent,
            new_name: other,
            flags: 0,
        },
        Operation::Unlink { parent, name: disk },
    ];
    for operation in refused {
        assert_eq!(bench.errno(operation.clone()), EPERM, "{operation:?}");
    }
    assert_eq!(bench.names(ROOT, 1000), ["disk.img"]);
}

#[test]
fn the_disk_keeps_its_size_whatever_a_mount_asks() {
    let mut bench = bench();
    let resize = |size| Operation::SetAttributes {
        object: DISK,
        set: SetAttributes {
            size: Some(size),
            ..SetAttributes::default()
        },
    };
    for size in [0, SIZE - 1, SIZE + 1] {
        assert_eq!(bench.errno(resize(size)), EPERM);
    }
    assert_eq!(bench.entry(resize(SIZE)).size, SIZE);
    assert_eq!(bench.write(DISK, SIZE - 1, b"ab"), Outcome::Error(ENOSPC));
    assert_eq!(bench.write(DISK, u64::MAX, b"ab"), Outcome::Error(ENOSPC));
    let beyond = Operation::Allocate {
        object: DISK,
        mode: 0,
        offset: SIZE,
        len: 1,
    };
    assert_eq!(bench.errno(beyond), ENOSPC);
    assert_eq!(bench.attributes(DISK).size, SIZE);
}

#[test]
fn a_write_of_the_disk_is_its_data_and_its_kept_reply_and_changes_no_inode() {
    let mut bench = bench();
    let write = Operation::Write {
        object: DISK,
        offset: 4096,
        append: false,
        kill_privileges: true,
    };
    let request = bench.request(write, &[7; 4096]);
    let context = crate::Context {
        now: Timestamp(9),
        new_object: ObjectId(99),
        session: bench.session,
        sequence: ObjectId(99).made_at(),
        is_open: &|_| false,
        allocated_bytes: &|_| 0,
        object_bytes_max: u64::MAX,
    };
    let executed = crate::execute(&bench.volume, &context, &request).expect("decided");
    let Executed::Change(set) = executed else {
        panic!("not a change: {executed:?}");
    };
    assert!(
        matches!(
            &set.changes[..],
            [Change::Write { object: DISK, offset: 4096, len: 4096 }, Change::Put { key, .. }]
                if key[0] == b'r'
        ),
        "{:?}",
        set.changes
    );
    let before = bench.attributes(DISK).mtime;
    bench.serve(&request);
    assert_eq!(read(&mut bench, 4095, 2), &b"\0\x07"[..]);
    assert_eq!(bench.attributes(DISK).mtime, before);
}

#[test]
fn what_is_punched_out_of_the_disk_reads_as_zeros() {
    let mut bench = bench();
    bench.write(DISK, 0, &[1; 12288]);
    let punch = Operation::Allocate {
        object: DISK,
        mode: 3,
        offset: 4096,
        len: 4096,
    };
    assert!(matches!(bench.run(punch), Outcome::Attributes(_)));
    assert_eq!(read(&mut bench, 4095, 4098)[..], {
        let mut bytes = vec![0; 4098];
        (bytes[0], bytes[4097]) = (1, 1);
        bytes
    });
}

#[test]
fn the_disk_follows_newer_configurations_only_so_that_an_old_one_cuts_nothing() {
    let mut bench = bench();
    bench.write(DISK, SIZE - 4096, &[3; 4096]);
    let fit = |bench: &mut Bench, size, config| {
        let changes = resize_disk(&bench.volume, size, config, Timestamp(50)).expect("decided");
        bench.volume.apply(&changes, &Bytes::new());
        (changes.len(), bench.attributes(DISK).size)
    };
    assert_eq!(fit(&mut bench, 4096, 1), (0, SIZE), "it is of this one");
    assert_eq!(fit(&mut bench, 2 * SIZE, 5).1, 2 * SIZE);
    bench.write(DISK, 2 * SIZE - 1, &[4]);
    assert_eq!(fit(&mut bench, SIZE, 4), (0, 2 * SIZE));
    // An equal size of a newer configuration makes those between old as well.
    assert_eq!(fit(&mut bench, 2 * SIZE, 8).1, 2 * SIZE);
    assert_eq!(fit(&mut bench, SIZE, 7), (0, 2 * SIZE));
    assert_eq!(fit(&mut bench, SIZE, 9).1, SIZE);
    assert_eq!(fit(&mut bench, 2 * SIZE, 10).1, 2 * SIZE);
    assert_eq!(read(&mut bench, 2 * SIZE - 1, 1), &[0][..], "it was cut");
    assert_eq!(read(&mut bench, SIZE - 1, 1), &[3][..]);
}

#[test]
fn a_volume_of_files_has_no_disk_to_resize() {
    let bench = Bench::new();
    let none = resize_disk(&bench.volume, 1, 99, Timestamp(1)).expect("decided");
    assert!(none.is_empty());
}
