//! The brick against a slow oracle, with checkpoints at every place.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use protocol::record::Change;
use protocol::units::{ObjectId, Timestamp};

use super::util::*;
use crate::medium::sim::SimMedium;
use crate::{Brick, JournalSizes, Options, POINTS_MAX, PointId, PointKind, Position};

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8),
    Delete(u8),
    Write(u64, u64, usize),
    Truncate(u64, u64),
    Zero(u64, u64, u64),
    Drop(u64),
    Checkpoint,
    Reopen,
    Point,
    DropPoint(usize),
    GoBack,
}

fn step() -> impl Strategy<Value = Step> {
    let object = 1_u64..4;
    let offset = prop_oneof![0_u64..6000, 0_u64..60_000, Just(4096), Just(8192)];
    prop_oneof![
        2 => (any::<u8>(), any::<u8>()).prop_map(|(key, value)| Step::Put(key % 16, value)),
        1 => any::<u8>().prop_map(|key| Step::Delete(key % 16)),
        6 => (object.clone(), offset.clone(), 1_usize..30_000)
            .prop_map(|(object, offset, len)| Step::Write(object, offset, len)),
        2 => (object.clone(), offset.clone()).prop_map(|(object, size)| Step::Truncate(object, size)),
        2 => (object.clone(), offset, 1_u64..30_000)
            .prop_map(|(object, offset, len)| Step::Zero(object, offset, len)),
        1 => object.prop_map(Step::Drop),
        2 => Just(Step::Checkpoint),
        1 => Just(Step::Reopen),
        1 => Just(Step::Point),
        1 => (0_usize..4).prop_map(Step::DropPoint),
        1 => Just(Step::GoBack),
    ]
}

fn options() -> Options {
    Options {
        large_write_bytes: 8192,
        unsynced_bytes_max: 1 << 20,
        overlay_bytes_checkpoint: 1 << 20,
        overlay_bytes_max: 4 << 20,
        direct_bytes_checkpoint: 1 << 20,
        reserve_bytes: 1 << 16,
        journal: JournalSizes {
            segment_bytes: 1 << 18,
            total_bytes_max: 1 << 20,
        },
    }
}

#[derive(Clone, Default)]
struct Oracle {
    meta: BTreeMap<Vec<u8>, Vec<u8>>,
    objects: BTreeMap<u64, Vec<u8>>,
}

impl Oracle {
    fn take(&mut self, step: &Step, seed: u64) -> Option<(Change, Vec<u8>)> {
        let change = match *step {
            Step::Put(key, value) => {
                self.meta.insert(vec![key], vec![value; usize::from(value)]);
                Change::Put {
                    key: vec![key].into(),
                    value: vec![value; usize::from(value)].into(),
                }
            }
            Step::Delete(key) => {
                self.meta.remove(&vec![key]);
                Change::Delete {
                    key: vec![key].into(),
                }
            }
            Step::Write(object, offset, len) => {
                let data = pattern(seed, len);
                let bytes = self.objects.entry(object).or_default();
                let end = offset as usize + len;
                bytes.resize(bytes.len().max(end), 0);
                bytes[offset as usize..end].copy_from_slice(&data);
                let change = Change::Write {
                    object: ObjectId(object),
                    offset,
                    len: len as u32,
                };
                return Some((change, data));
            }
            Step::Truncate(object, size) => {
                if let Some(bytes) = self.objects.get_mut(&object) {
                    bytes.truncate(size as usize);
                }
                Change::Truncate {
                    object: ObjectId(object),
                    size,
                }
            }
            Step::Zero(object, offset, len) => {
                if let Some(bytes) = self.objects.get_mut(&object) {
                    let end = ((offset + len) as usize).min(bytes.len());
                    let start = (offset as usize).min(end);
                    bytes[start..end].fill(0);
                }
                Change::Zero {
                    object: ObjectId(object),
                    offset,
                    len,
                }
            }
            Step::Drop(object) => {
                self.objects.remove(&object);
                Change::Drop {
                    object: ObjectId(object),
                }
            }
            Step::Checkpoint | Step::Reopen | Step::Point | Step::DropPoint(_) | Step::GoBack => {
                return None;
            }
        };
        Some((change, Vec::new()))
    }

    fn check(&self, brick: &mut Brick<SimMedium>) {
        let mut meta = BTreeMap::new();
        brick
            .scan(&[0], &[0xff], &mut |key, value| {
                meta.insert(key.to_vec(), value.to_vec());
                true
            })
            .expect("scan");
        assert_eq!(meta, self.meta);
        let objects = brick.objects_after(None, 100).expect("objects");
        let known: Vec<ObjectId> = self
            .objects
            .keys()
            .map(|object| ObjectId(*object))
            .collect();
        assert_eq!(objects, known);
        for (object, bytes) in &self.objects {
            let mut wanted = bytes.clone();
            wanted.resize(bytes.len() + 5000, 0);
            let found = read(brick, *object, 0, wanted.len() as u32).expect("read");
            assert!(found[..] == wanted[..], "object {object}");
            assert_eq!(
                brick.data_end(ObjectId(*object)).expect("known"),
                bytes.len() as u64
            );
            let blocks = bytes
                .chunks(4096)
                .filter(|block| block.iter().any(|b| *b != 0))
                .count();
            let allocated = brick.allocated_bytes(ObjectId(*object)).expect("known");
            assert_eq!(allocated, blocks as u64 * 4096);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_sequence_of_changes_reads_as_the_oracle_says(
        steps in prop::collection::vec(step(), 1..40),
        seed in any::<u64>(),
    ) {
        let mut disk = SimMedium::new(seed, 1 << 30);
        Brick::create(&disk, identity(), Bytes::new(), &options()).expect("create");
        let (mut brick, _) = Brick::open(disk.clone(), None, options()).expect("open");
        let mut oracle = Oracle::default();
        let mut points: BTreeMap<PointId, (Oracle, Position)> = BTreeMap::new();
        for (number, step) in (1_u64..).zip(&steps) {
            match step {
                Step::Checkpoint => brick.checkpoint().expect("begin"),
                Step::Reopen => {
                    // As after a kill: what was under way does not end.
                    disk = disk.fork();
                    drop(brick);
                    brick = Brick::open(disk.clone(), None, options()).expect("open").0;
                    // A drop that no checkpoint took yet is forgotten.
                    for point in brick.points() {
                        if !points.contains_key(&point.id) {
                            brick.drop_point(point.id).expect("there");
                        }
                    }
                }
                Step::Point if points.len() < POINTS_MAX => {
                    let kind = PointKind::GivenUp;
                    let id = brick.make_point(kind, Timestamp(9), Bytes::new()).expect("made");
                    points.insert(id, (oracle.clone(), brick.position()));
                }
                Step::DropPoint(at) => {
                    if let Some(id) = points.keys().nth(*at).copied() {
                        brick.drop_point(id).expect("there");
                        points.remove(&id);
                    }
                }
                Step::GoBack => {
                    if let Some((id, (then, position))) = points.pop_last() {
                        brick.go_back(id, Bytes::from_static(b"back")).expect("gone back");
                        oracle = then;
                        prop_assert_eq!(brick.position(), position);
                        prop_assert_eq!(&brick.state()[..], b"back");
                    }
                }
                _ => {}
            }
            if let Some((change, payload)) = oracle.take(step, seed ^ number) {
                apply(&mut brick, vec![change], payload, 0);
            }
            // Some of a checkpoint that is under way may end between any two steps.
            brick.poll(&mut Vec::new());
            oracle.check(&mut brick);
            for (id, (then, position)) in &points {
                let mut view = brick.view(*id).expect("there");
                prop_assert_eq!(view.position(), *position);
                then.check(&mut view);
            }
        }
    }
}
