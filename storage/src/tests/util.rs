//! Building records and waiting for bricks.

use std::collections::BTreeMap;

use bytes::Bytes;
use protocol::ids::{BrickId, GenerationId, NodeId, PoolId, VolumeId};
use protocol::record::{Change, Record};
use protocol::units::{ObjectId, Sequence, Term};
use protocol::volume::{Protocol, Quorum, ReplicaSpec, VolumeKind, VolumeSpec, VolumeState};

use crate::{Brick, BrickEvent, BrickIdentity, FlushWhat, Medium, ReadOutcome};

pub(crate) fn identity() -> BrickIdentity {
    BrickIdentity {
        pool: PoolId([1; 16]),
        brick: BrickId([3; 16]),
        replica: 0,
        spec: VolumeSpec {
            id: VolumeId([2; 16]),
            name: "v1".to_owned(),
            kind: VolumeKind::Fs,
            size_bytes: None,
            protocol: Protocol::C,
            quorum: Quorum::Off,
            replicas: vec![ReplicaSpec {
                node: NodeId([4; 16]),
                node_name: "node1".to_owned(),
                path: "/bricks/v1".to_owned(),
                brick: BrickId([3; 16]),
            }],
            state: VolumeState::Started,
            layout: protocol::volume::Layout::default(),
            options: BTreeMap::new(),
            version: 1,
        },
    }
}

pub(crate) fn record(sequence: Sequence, changes: Vec<Change>, payload: Vec<u8>) -> Record {
    Record {
        sequence,
        term: Term(1),
        generation: GenerationId([7; 16]),
        changes,
        payload: Bytes::from(payload),
    }
}

pub(crate) fn next(brick: &Brick<impl Medium>, changes: Vec<Change>, payload: Vec<u8>) -> Record {
    record(brick.applied().next(), changes, payload)
}

pub(crate) fn put(key: &str, value: &str) -> Change {
    Change::Put {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
    }
}

pub(crate) fn write<M: Medium>(brick: &mut Brick<M>, object: u64, offset: u64, data: &[u8]) {
    write_for(brick, object, offset, data, 0);
}

pub(crate) fn write_for<M: Medium>(
    brick: &mut Brick<M>,
    object: u64,
    offset: u64,
    data: &[u8],
    dirty_mask: u8,
) {
    let change = Change::Write {
        object: ObjectId(object),
        offset,
        len: u32::try_from(data.len()).expect("small"),
    };
    apply(brick, vec![change], data.to_vec(), dirty_mask);
}

pub(crate) fn apply<M: Medium>(
    brick: &mut Brick<M>,
    changes: Vec<Change>,
    payload: Vec<u8>,
    dirty_mask: u8,
) {
    let record = next(brick, changes, payload);
    let _ = brick.append(&record, dirty_mask).expect("append");
    brick.push().expect("push");
}

pub(crate) fn wait_for<M: Medium, T>(
    brick: &mut Brick<M>,
    mut found: impl FnMut(&BrickEvent) -> Option<T>,
) -> T {
    let mut events = Vec::new();
    loop {
        brick.poll(&mut events);
        for event in events.drain(..) {
            if let BrickEvent::Failed(error) = &event {
                panic!("the brick stopped: {error}");
            }
            if let Some(value) = found(&event) {
                return value;
            }
        }
        brick.wait();
    }
}

pub(crate) fn flush<M: Medium>(brick: &mut Brick<M>) {
    let id = brick.flush(FlushWhat::All).expect("flush");
    wait_for(brick, |event| {
        matches!(event, BrickEvent::Flushed(done) if *done == id).then_some(())
    });
}

pub(crate) fn checkpoint<M: Medium>(brick: &mut Brick<M>) {
    brick.checkpoint().expect("checkpoint");
    wait_for(brick, |event| {
        matches!(event, BrickEvent::Checkpointed(_)).then_some(())
    });
}

pub(crate) fn read<M: Medium>(
    brick: &mut Brick<M>,
    object: u64,
    offset: u64,
    len: u32,
) -> Result<Bytes, crate::ReadError> {
    match brick.read(ObjectId(object), offset, len, 99)? {
        ReadOutcome::Ready(bytes) => Ok(bytes),
        ReadOutcome::Pending => wait_for(brick, |event| match event {
            BrickEvent::ReadDone { token: 99, result } => Some(result.clone()),
            _ => None,
        }),
    }
}

/// Bytes that differ from block to block and from seed to seed, and are never zero.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8 | 1
        })
        .collect()
}
