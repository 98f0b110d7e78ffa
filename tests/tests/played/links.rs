//! What comes from other replicas.

use bytes::Bytes;
use protocol::ids::GenerationId;
use protocol::record::{Change, Record};
use protocol::replica::Message;
use protocol::units::{ObjectId, Sequence, Term};
use protocol::volume::Quorum;
use replication::state::How;

use super::stage::{Stage, run, spec, welcome};

/// A batch of a resync that puts a value in place.
fn batch(number: u64, key: &'static str, value: &'static str) -> Message {
    Message::Resync(Record {
        sequence: Sequence(number),
        term: Term(0),
        generation: GenerationId::NONE,
        changes: vec![Change::Put {
            key: Bytes::from_static(key.as_bytes()),
            value: Bytes::from_static(value.as_bytes()),
        }],
        payload: Bytes::new(),
    })
}

/// A primary that is cut off from the pool and from its members goes on with a resync that it has
/// begun, as long as its target hears it. Another one has the role by then, and has taken the target
/// on: what the first one still sends is older than what the second one brought.
#[test]
fn rs_5_a_target_takes_nothing_of_a_resync_from_a_primary_that_it_has_left() {
    let everything = Message::ExactKeys {
        from: Bytes::new(),
        to: Bytes::new(),
        pairs: vec![(Bytes::from_static(b"key"), Bytes::from_static(b"old"))],
    };
    let no_objects = Message::ExactObjects {
        from: ObjectId(0),
        to: ObjectId(u64::MAX),
        objects: Vec::new(),
    };
    for late in [batch(2, "key", "old"), everything, no_objects] {
        run(async {
            let stage = Stage::new(spec(3, Quorum::Off), 2, None);
            let first = stage.primary_report(0, 8, 10);
            let (mut one, told) = stage.greet(0, &first).await;
            one.say(&welcome(&first, &told, How::Resync)).await;
            one.say(&batch(1, "key", "old")).await;
            let stored = |message: &Message| matches!(message, Message::Resynced { .. });
            assert!(one.hear_until(stored).await.is_some());
            let second = stage.primary_report(1, 9, 20);
            let (mut other, told) = stage.greet(1, &second).await;
            other.say(&welcome(&second, &told, How::Resync)).await;
            other.say(&batch(1, "key", "new")).await;
            assert!(other.hear_until(stored).await.is_some());
            assert!(stage.holds(&mut other, &[("key", "new")]).await);
            one.say(&late).await;
            // It is told so: it learns of the later term when the two meet again.
            let taken = one.hear_until(stored).await;
            assert_eq!(taken, None, "{late:?}");
            assert!(stage.holds(&mut other, &[("key", "new")]).await, "{late:?}");
        });
    }
}
