//! A member and its primary.

use bytes::Bytes;
use protocol::ids::GenerationId;
use protocol::record::{Change, Record};
use protocol::replica::Message;
use protocol::units::{BLOCK_BYTES, ObjectId, Sequence, Term};
use protocol::volume::{Quorum, REPLICAS_MAX};
use replication::state::{How, InForce, Mask, Membership, Report};

use super::stage::{Played, Stage, json, run, spec, welcome};

const OBJECT: ObjectId = ObjectId(1 << 44 | 1);
const BLOCK: usize = BLOCK_BYTES as usize;

/// A record that writes to the object.
fn written(place: (Sequence, Term, GenerationId), offset: u64, data: Vec<u8>) -> Message {
    let (sequence, term, generation) = place;
    Message::Record(Record {
        sequence,
        term,
        generation,
        changes: vec![Change::Write {
            object: OBJECT,
            offset,
            len: u32::try_from(data.len()).expect("a short write"),
        }],
        payload: Bytes::from(data),
    })
}

/// A played primary whose member runs.
struct Primary {
    stage: Stage,
    report: Report,
    link: Played,
    last: Sequence,
}

impl Primary {
    async fn with_member() -> Self {
        let stage = Stage::new(spec(2, Quorum::Off), 1, None);
        let report = stage.primary_report(0, 8, 0);
        let (mut link, told) = stage.greet(0, &report).await;
        link.say(&welcome(&report, &told, How::Records)).await;
        let acked = |message: &Message| matches!(message, Message::Ack { .. });
        link.hear_until(acked).await.expect("it follows");
        let membership = Membership {
            term: report.term,
            line: report.line.clone(),
            layout: 0,
            fences: false,
            in_sync: Mask::first(2),
            since: [Sequence::ZERO; REPLICAS_MAX],
            policy: InForce::default(),
        };
        link.say(&Message::Joined(json(&membership))).await;
        Self {
            stage,
            report,
            link,
            last: Sequence::ZERO,
        }
    }

    async fn write(&mut self, offset: u64, data: Vec<u8>) {
        self.last = self.last.next();
        let place = (self.last, self.report.term, GenerationId([8; 16]));
        self.link.say(&written(place, offset, data)).await;
    }

    /// Until the member has everything on stable storage.
    async fn flush(&mut self) {
        let id = 7;
        self.link.say(&Message::Flush { id, objects: None }).await;
        let flushed = |message: &Message| matches!(message, Message::Flushed { .. });
        self.link.hear_until(flushed).await.expect("it flushes");
    }

    /// The number under which the member asks for the second block.
    async fn asked(&mut self) -> u64 {
        let fetch = |message: &Message| matches!(message, Message::Fetch { .. });
        match self.link.hear_until(fetch).await {
            Some(Message::Fetch {
                id,
                object: OBJECT,
                offset: BLOCK_BYTES,
                ..
            }) => id,
            other => panic!("{other:?}: {:#?}", self.stage.events()),
        }
    }

    async fn answer(&mut self, id: u64, block: &[u8]) {
        let data = Some(Bytes::copy_from_slice(block));
        self.link.say(&Message::Fetched { id, data }).await;
    }

    /// The second block, as the member has it.
    async fn block(&mut self) -> Option<Bytes> {
        let (id, len) = (9, BLOCK_BYTES as u32);
        self.link
            .say(&Message::Fetch {
                id,
                object: OBJECT,
                offset: BLOCK_BYTES,
                len,
            })
            .await;
        loop {
            match self.link.hear().await.expect("it answers") {
                Message::Fetched { id: 9, data } => return data,
                Message::Fetch { .. } => panic!("it asks while it should know"),
                _ => {}
            }
        }
    }

    /// What stands on the member's disk is not what was written, and a part of it is written anew.
    async fn damage(&mut self) {
        self.write(0, vec![7; 32 * BLOCK]).await;
        self.flush().await;
        let path = storage::layout::object_path(OBJECT);
        let disk = self.stage.disk();
        assert_eq!(disk.peek(&path, BLOCK_BYTES, BLOCK), vec![7; BLOCK]);
        assert!(disk.flip_bit(&path, BLOCK_BYTES + 2000, 3));
        self.write(BLOCK_BYTES + 100, vec![2; 50]).await;
    }
}

/// Nobody reads a member's copy. It noticed that a block of it was damaged, counted that, and waited
/// for an operator.
#[test]
fn dur_4_a_member_takes_a_block_that_is_damaged_here_from_its_primary() {
    run(async {
        let mut primary = Primary::with_member().await;
        primary.damage().await;
        let id = primary.asked().await;
        let mut block = vec![7; BLOCK];
        block[100..150].fill(2);
        primary.answer(id, &block).await;
        assert_eq!(primary.block().await, Some(Bytes::from(block)));
        let status = primary.stage.status().await;
        assert_eq!((status.damaged_blocks, status.repaired_blocks), (1, 1));
    });
}

#[test]
fn dur_4_an_answer_that_a_later_record_has_overtaken_is_not_put_in_place() {
    run(async {
        let mut primary = Primary::with_member().await;
        primary.damage().await;
        let id = primary.asked().await;
        let mut block = vec![7; BLOCK];
        block[100..150].fill(2);
        primary.write(BLOCK_BYTES + 200, vec![3; 50]).await;
        primary.answer(id, &block).await;
        let again = primary.asked().await;
        assert_ne!(again, id);
        block[200..250].fill(3);
        primary.answer(again, &block).await;
        assert_eq!(primary.block().await, Some(Bytes::from(block.clone())));
        // A whole write puts it right without anybody's help.
        primary.write(BLOCK_BYTES, vec![4; BLOCK]).await;
        block.fill(4);
        assert_eq!(primary.block().await, Some(Bytes::from(block)));
    });
}

/// A power cut took the data of a record at the member that still had the record. Who fetched it
/// gave way to another primary, which was told of no doubt: the old bytes stayed.
#[test]
fn dur_5_what_was_fetched_from_a_member_is_in_doubt_for_whoever_becomes_primary_instead() {
    run(async {
        let stage = Stage::new(spec(3, Quorum::Off), 0, None);
        let longer = Report {
            last: Sequence(1),
            ..stage.fresh_report(1)
        };
        let (mut link, told) = stage.greet(1, &longer).await;
        assert_eq!(told.suspects, 0);
        let _other = stage.greet(2, &stage.fresh_report(2)).await;
        let pull = |message: &Message| matches!(message, Message::Pull { .. });
        link.hear_until(pull).await.expect("it fetches the tail");
        let generation = GenerationId(stage.spec.id.0);
        let place = (Sequence(1), Term(0), generation);
        link.say(&written(place, 0, vec![1; BLOCK])).await;
        let mut told = stage.greet(2, &stage.fresh_report(2)).await.1;
        while told.last < Sequence(1) {
            told = stage.greet(2, &stage.fresh_report(2)).await.1;
        }
        assert_eq!(told.suspects, 1);
    });
}
