//! `cairn brick`: bricks without a daemon.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::RwLockWriteGuard;

use bytes::Bytes;
use daemon::volume::Keys;
use namespace::{Context, Executed, execute, mkfs};
use protocol::fs::{Caller, Operation, Outcome, Request};
use protocol::ids::{BrickId, GenerationId, NodeId, PoolId, SessionId, VolumeId};
use protocol::record::{Change, Record};
use protocol::units::{ObjectId, Sequence, Term, Timestamp};
use protocol::volume::{Protocol, Quorum, ReplicaSpec, VolumeKind, VolumeSpec, VolumeState};
use storage::{BrickIdentity, DirBrick, EngineChoice, create_brick, open_brick};

use crate::support::{Node, STARTING, cairn, directory};

const BIG: usize = 300_000;

/// A brick that is filled as a primary would fill it.
struct Filled {
    brick: DirBrick,
    numbers: Cell<u64>,
    /// No process starts while this one holds the brick's lock.
    _guard: RwLockWriteGuard<'static, ()>,
}

impl Filled {
    fn make(path: &Path, kind: VolumeKind) -> Self {
        let guard = STARTING.write().expect("no test failed in here");
        fs::create_dir(path).expect("a directory");
        let spec = VolumeSpec {
            id: VolumeId([7; 16]),
            name: "v1".to_owned(),
            kind,
            size_bytes: (kind == VolumeKind::Block).then_some(1 << 20),
            protocol: Protocol::C,
            quorum: Quorum::Off,
            replicas: vec![ReplicaSpec {
                node: NodeId([1; 16]),
                node_name: "node1".to_owned(),
                path: path.display().to_string(),
                brick: BrickId([3; 16]),
            }],
            state: VolumeState::Started,
            layout: protocol::volume::Layout::default(),
            options: std::collections::BTreeMap::new(),
            version: 1,
        };
        let identity = BrickIdentity {
            pool: PoolId([9; 16]),
            brick: BrickId([3; 16]),
            replica: 0,
            spec,
        };
        create_brick(path, true, identity, Bytes::new()).expect("made");
        let (brick, _) = open_brick(path, None, EngineChoice::Threads).expect("opened");
        Self {
            brick,
            numbers: Cell::new(0),
            _guard: guard,
        }
    }

    fn order(&mut self, changes: Vec<Change>, payload: Bytes) {
        let record = Record {
            sequence: self.brick.applied().next(),
            term: Term(1),
            generation: GenerationId([5; 16]),
            changes,
            payload,
        };
        let _pace = self.brick.append(&record, 0).expect("appended");
    }

    fn execute(&mut self, operation: Operation, payload: Bytes) -> Outcome {
        self.numbers.set(self.numbers.get() + 1);
        let sequence: Sequence = self.brick.applied().next();
        let context = Context {
            now: Timestamp(1_700_000_000_123_456_789),
            new_object: ObjectId::allocate(Term(1), sequence).expect("an id"),
            session: SessionId([4; 16]),
            sequence,
            is_open: &|_| false,
            allocated_bytes: &|_| 0,
            object_bytes_max: i64::MAX as u64,
        };
        let request = Request {
            slot: 0,
            number: self.numbers.get(),
            caller: Caller::default(),
            operation,
            early: None,
            payload,
        };
        match execute(&Keys(&self.brick), &context, &request).expect("executed") {
            Executed::Answer(outcome) => outcome,
            Executed::Change(change) => {
                self.order(change.changes, change.payload);
                change.outcome
            }
            other => panic!("{other:?}"),
        }
    }

    fn entry(&mut self, operation: Operation) -> ObjectId {
        match self.execute(operation, Bytes::new()) {
            Outcome::Entry(attributes) => attributes.object,
            other => panic!("{other:?}"),
        }
    }

    fn file(&mut self, parent: ObjectId, name: &'static str, content: Vec<u8>) -> ObjectId {
        let object = self.entry(Operation::Create {
            parent,
            name: Bytes::from_static(name.as_bytes()),
            mode: 0o640,
            exclusive: true,
        });
        let written = self.execute(
            Operation::Write {
                object,
                offset: 0,
                append: false,
                kill_privileges: false,
            },
            Bytes::from(content),
        );
        assert!(matches!(written, Outcome::Written { .. }), "{written:?}");
        object
    }

    fn close(self) {
        self.brick.close().expect("closed");
    }
}

fn big() -> Vec<u8> {
    (0..BIG)
        .map(|at| u8::try_from(at % 251).expect("small"))
        .collect()
}

fn fill(path: &Path) {
    let mut filled = Filled::make(path, VolumeKind::Fs);
    filled.order(mkfs(Timestamp(1)), Bytes::new());
    let root = ObjectId::ROOT;
    let dir = filled.entry(Operation::MakeDirectory {
        parent: root,
        name: Bytes::from_static(b"dir"),
        mode: 0o750,
    });
    let small = filled.file(dir, "small", b"hello".to_vec());
    filled.file(root, "big", big());
    filled.entry(Operation::Link {
        object: small,
        new_parent: root,
        new_name: Bytes::from_static(b"linked"),
    });
    filled.entry(Operation::Symlink {
        parent: root,
        name: Bytes::from_static(b"sym"),
        target: Bytes::from_static(b"dir/small"),
    });
    let set = filled.execute(
        Operation::SetXattr {
            object: small,
            name: Bytes::from_static(b"user.color"),
            flags: 0,
        },
        Bytes::from_static(b"red"),
    );
    assert_eq!(set, Outcome::Done);
    filled.close();
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

#[test]
fn a_bricks_files_are_copied_out_as_they_are() {
    let root = directory();
    let brick = root.path().join("brick");
    let out = root.path().join("out");
    fill(&brick);
    cairn(&["brick", "export", text(&brick), text(&out)]).done();
    assert_eq!(fs::read(out.join("dir/small")).expect("read"), b"hello");
    assert!(fs::read(out.join("big")).expect("read") == big());
    let meta = fs::metadata(out.join("dir/small")).expect("metadata");
    assert_eq!(meta.permissions().mode() & 0o7777, 0o640);
    assert_eq!(
        (meta.mtime(), meta.mtime_nsec()),
        (1_700_000_000, 123_456_790),
        "it was written a moment after it was made"
    );
    assert_eq!(
        meta.ino(),
        fs::metadata(out.join("linked")).expect("metadata").ino()
    );
    let target = fs::read_link(out.join("sym")).expect("a link");
    assert_eq!(target, Path::new("dir/small"));
    let mode = fs::metadata(out.join("dir"))
        .expect("metadata")
        .permissions();
    assert_eq!(mode.mode() & 0o7777, 0o750);
    let mut color = [0_u8; 16];
    let len =
        rustix::fs::lgetxattr(out.join("linked"), "user.color", &mut color[..]).expect("kept");
    assert_eq!(&color[..len], b"red");
    // Nothing of it lands in a brick.
    let inside = brick.join("out");
    cairn(&["brick", "export", text(&brick), text(&inside)]).refused(
        1,
        "lies inside the brick",
        "outside of any brick",
    );
    assert!(!inside.exists());
    // What is there is not overwritten.
    cairn(&["brick", "export", text(&brick), text(&out)]).refused(
        1,
        "is not empty",
        "new or an empty",
    );
}

#[test]
fn a_block_volumes_disk_is_copied_out_with_its_size() {
    let root = directory();
    let brick = root.path().join("brick");
    let mut filled = Filled::make(&brick, VolumeKind::Block);
    let disk = namespace::mkdisk(1 << 20, 1, Timestamp(0));
    filled.order(disk, Bytes::new());
    let write = Change::Write {
        object: ObjectId::DISK,
        offset: 8192,
        len: 5,
    };
    filled.order(vec![write], Bytes::from_static(b"block"));
    filled.close();
    let out = root.path().join("out");
    cairn(&["brick", "export", text(&brick), text(&out)]).done();
    let disk = fs::read(out.join("disk.img")).expect("a disk");
    assert_eq!(disk.len(), 1 << 20);
    assert_eq!(&disk[8192..8197], b"block");
    assert!(
        disk[..8192]
            .iter()
            .chain(&disk[8197..])
            .all(|byte| *byte == 0)
    );
}

#[test]
fn a_whole_brick_is_called_whole_and_a_flipped_bit_is_found() {
    let root = directory();
    let brick = root.path().join("brick");
    fill(&brick);
    let whole = cairn(&["brick", "check", "--json", text(&brick)]).done();
    assert_eq!(whole.json()["whole"], true);
    assert!(whole.json()["bytes_checked"].as_u64() >= Some(BIG as u64));
    flip_a_byte_of_the_big_file(&brick);
    let damaged = cairn(&["brick", "check", "--json", text(&brick)]);
    assert_eq!(damaged.code, 1, "{damaged:?}");
    assert_eq!(damaged.json()["whole"], false);
    let faults = damaged.json()["faults"].to_string();
    assert!(faults.contains("does not match its checksum"), "{faults}");
    // DUR-4: never other bytes.
    let out = root.path().join("out");
    cairn(&["brick", "export", text(&brick), text(&out)]).refused(1, "checksum", "brick check");
}

/// The one object file of that size, wherever the brick keeps it.
fn flip_a_byte_of_the_big_file(dir: &Path) {
    let mut pending = vec![dir.to_owned()];
    while let Some(here) = pending.pop() {
        for entry in fs::read_dir(here).expect("listed") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                pending.push(path);
                continue;
            }
            let content = fs::read(&path).expect("read");
            let begins = content.get(..4096) == Some(&big()[..4096]);
            if begins && content.len() < 2 * BIG {
                let file = fs::OpenOptions::new()
                    .write(true)
                    .open(&path)
                    .expect("open");
                file.write_all_at(&[content[5000] ^ 1], 5000)
                    .expect("written");
                return;
            }
        }
    }
    panic!("no object file holds the big file");
}

#[test]
fn a_brick_is_wiped_only_when_deleted_or_by_force() {
    let root = directory();
    let node = Node::start(root.path(), "node1");
    let brick = root.path().join("brick");
    let place = format!("node1:{}", text(&brick));
    node.run(&["volume", "create", "v1", &place, "force"])
        .done();
    let info = cairn(&["brick", "info", "--json", text(&brick)]).done();
    assert_eq!(info.json()["volume"], "v1");
    assert_eq!(info.json()["deleted"], false);
    cairn(&["brick", "wipe", text(&brick)]).refused(4, "volume `v1`", "--force");
    node.say("volume start v1").done();
    cairn(&["brick", "wipe", "--force", text(&brick)]).refused(1, "in use", "Stop");
    node.say("volume stop v1").done();
    node.say("volume delete v1").done();
    // Deletion is complete when the command returns: marked, and let go of.
    let info = cairn(&["brick", "info", "--json", text(&brick)]).json();
    assert_eq!(
        (&info["deleted"], &info["in_use"]),
        (&true.into(), &false.into())
    );
    cairn(&["brick", "wipe", text(&brick)]).refused(1, "no terminal", "--yes");
    cairn(&["--yes", "brick", "wipe", text(&brick)]).done();
    cairn(&["brick", "info", text(&brick)]).refused(1, "no brick here", "volume info");
    node.run(&["volume", "create", "v2", &place, "force"])
        .done();
}
