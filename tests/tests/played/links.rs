//! What comes from other replicas.

use std::time::Duration;

use bytes::Bytes;
use protocol::ids::GenerationId;
use protocol::record::{Change, Record};
use protocol::replica::{Message, Scope};
use protocol::units::{ObjectId, Sequence, Term};
use protocol::volume::Quorum;
use replication::state::{How, Report, Role};

use super::stage::{Stage, run, sign_of_life, spec, welcome};

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

/// Numbers from which nobody could count on.
#[test]
fn bad_1_numbers_that_nobody_can_have_counted_up_to_close_the_connection() {
    let (far, most) = (Sequence(u64::MAX), u64::MAX);
    let object = ObjectId(1);
    let forged = [
        Message::Pull { after: far },
        Message::Ask {
            common: far,
            term: Term(1),
            revision: 0,
        },
        Message::Compare {
            id: 1,
            scope: Scope::Extent {
                object,
                extent: most,
            },
        },
        Message::Offer {
            id: 1,
            object,
            first_block: most,
            hashes: Bytes::new(),
        },
        Message::Want {
            id: 1,
            next: Some(most - 1),
            bits: Bytes::new(),
        },
        Message::HandOver {
            term: Term(most),
            agreed: Bytes::new(),
        },
        Message::Ack {
            received: far,
            applied: far,
            stable: far,
            policy: 0,
        },
    ];
    run(async {
        let stage = Stage::new(spec(2, Quorum::Off), 0, None);
        let report = stage.fresh_report(1);
        for message in forged {
            let (mut played, _) = stage.greet(1, &report).await;
            let told = stage.events().len();
            played.say(&message).await;
            assert_eq!(played.hear_until(|_| false).await, None);
            let events = stage.events().split_off(told);
            let named = |event: &String| event.starts_with("link_malformed");
            assert!(events.iter().any(named), "{message:?}: {events:#?}");
        }
    });
}

/// A history from the future: a term, or a record, that no volume reaches. Whoever believed it could
/// make nothing any more, as ids of objects have the term in them.
#[test]
fn bad_1_who_says_that_it_is_where_no_volume_can_be_is_refused_with_both_named() {
    run(async {
        let stage = Stage::new(spec(2, Quorum::Off), 0, None);
        stage.until(|status| status.serving).await;
        let before = stage.status().await.term;
        let fresh = stage.fresh_report(1);
        let (term, last) = (Term(1 << 20), Sequence(1 << 44));
        for report in [
            Report {
                term,
                ..fresh.clone()
            },
            Report {
                last,
                ..fresh.clone()
            },
            Report {
                term: Term(u64::MAX),
                ..fresh.clone()
            },
        ] {
            let told = stage.events().len();
            let (mut played, _) = stage.greet(1, &report).await;
            assert_eq!(played.hear_until(|_| false).await, None);
            let events = stage.events().split_off(told);
            let named = |event: &String| event.starts_with("link_malformed");
            assert!(events.iter().any(named), "{events:#?}");
            let status = stage.status().await;
            assert!(status.serving, "it goes on");
            assert_eq!(status.term, before);
        }
        assert!(stage.events().iter().any(|event| event.contains(&format!(
            "it says that it is in term {term} at record 0, where no volume can be"
        ))));
    });
}

/// ONE-3, where the bricks decide: this node's brick was restored from a backup. It was primary, and
/// another node has what it did later; that is not lost without a word.
#[test]
fn one_3_a_history_from_the_future_serves_nobody_and_both_are_told_with_what_to_do() {
    run(async {
        let stage = Stage::new(spec(2, Quorum::Off), 0, None);
        let mut later = stage.primary_report(0, 9, 20);
        (later.role, later.serving) = (Role::Secondary, false);
        let (mut played, _) = stage.greet(1, &later).await;
        let told = |events: &[String]| {
            let mut events = events.iter();
            events.any(|event| event.starts_with("later_primary"))
        };
        let waits = async {
            while !told(&stage.events()) {
                played.say(&sign_of_life()).await;
                assert!(played.hear().await.is_some(), "they stay connected");
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), waits).await;
        assert!(waited.is_ok(), "{:#?}", stage.events());
        let status = stage.status().await;
        assert!(!status.serving);
        let reason = status.reason.expect("it says why");
        for said in [
            "node2 knows of a primary in term 9, up to record 20",
            "node1, in term 0 up to record 0, knows nothing",
            "an older copy, as after a restore",
            "cairn volume promote v1 node2 --force",
        ] {
            assert!(reason.contains(said), "{said} is not in: {reason}");
        }
    });
}
