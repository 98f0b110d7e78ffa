//! The source of a catch-up from the journal's tail is gone in its middle (RS-4): large writes of
//! that tail stand in files alone, and some of them were overwritten since.

use bytes::Bytes;
use protocol::fs::{Operation, Outcome};
use protocol::node_rpc::VolumeCommand;
use protocol::units::{BLOCK_BYTES, ObjectId};

use super::faults::millis;
use super::repair::{Stage, run, spec, write};

/// So much goes into the object's file at once, and its record into the journal.
const LARGE: usize = 16 * BLOCK_BYTES as usize;
/// Where the large write is that is overwritten, and where those are that take long to be sent.
const OVERWRITTEN_AT: u64 = 1 << 20;
const OTHERS_AT: u64 = 2 << 20;

async fn first_byte(stage: &Stage, object: ObjectId, offset: u64) -> u8 {
    let read = Operation::Read {
        object,
        offset,
        len: 1,
    };
    match stage.other.call(9, read, Bytes::new()).await {
        Outcome::Data(data) => data.first().copied().unwrap_or(0),
        other => panic!("it cannot be read: {other:?}"),
    }
}

/// How a node is brought up to date, as the other one says.
async fn rule_of_resync(stage: &Stage) -> Option<String> {
    let primary = stage.nodes.lock().await.handle(0).expect("it runs");
    let report = primary.status().await;
    let peer = report.peers.into_iter().next()?;
    peer.resync.map(|resync| resync.rule)
}

/// A large write, others that take long to be sent, a small one, and the first again: on which of
/// these node 2 stands when its source dies so long after the resync began.
fn serves_after(dies_after_ms: u64) -> (u8, u8) {
    run(async {
        let mut spec = spec();
        let (option, rate) = ("resync-max-rate".to_owned(), "64K".to_owned());
        spec.options.insert(option, rate);
        let stage = Stage::of(7, spec).await;
        stage.nodes.lock().await.kill(1).await;
        let (file, hollow) = (stage.file, stage.hollow);
        write(&stage.one, 0, file, OVERWRITTEN_AT, vec![1; LARGE]).await;
        for at in 0..16 {
            let offset = OTHERS_AT + at * LARGE as u64;
            write(&stage.one, 0, file, offset, vec![6; LARGE]).await;
        }
        write(&stage.one, 0, hollow, 0, vec![5; 100]).await;
        write(&stage.one, 0, file, OVERWRITTEN_AT, vec![2; LARGE]).await;
        // Nothing of it is kept by a mount, to be put back.
        let stable = stage.one.call(0, Operation::SyncAll, Bytes::new()).await;
        assert_eq!(stable, Outcome::Done);
        stage.nodes.lock().await.start(1);
        while rule_of_resync(&stage).await.is_none() {
            tokio::time::sleep(millis(5)).await;
        }
        tokio::time::sleep(millis(dies_after_ms)).await;
        stage.nodes.lock().await.kill(0).await;
        tokio::time::sleep(millis(500)).await;
        let handle = stage.nodes.lock().await.handle(1).expect("it runs");
        let forced = VolumeCommand::Promote { to: 1, force: true };
        handle.command(forced).await.expect("nobody else serves");
        (
            first_byte(&stage, file, OVERWRITTEN_AT).await,
            first_byte(&stage, hollow, 0).await,
        )
    })
}

#[test]
fn rs_4_a_target_whose_source_dies_amid_the_journals_tail_serves_one_time_and_no_mixture() {
    for dies_after_ms in [50, 500, 1000, 3000, 6000, 12_000, 20_000] {
        let found = serves_after(dies_after_ms);
        let was_so = [(0, 0), (1, 0), (1, 5), (2, 5)];
        assert!(was_so.contains(&found), "{dies_after_ms} ms: {found:?}");
    }
}
