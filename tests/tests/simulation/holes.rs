//! Where the primary has nothing and another replica has something: a comparison finds it, and a
//! full resync takes it away (RS-5), however far behind the end of what the primary has.

use bytes::Bytes;
use daemon::volume::VolumeHandle;
use protocol::ids::GenerationId;
use protocol::node_rpc::VolumeCommand;
use protocol::record::{Change, Record};
use protocol::units::{BLOCK_BYTES, EXTENT_BYTES, ObjectId, Sequence, Term};
use storage::medium::Room;
use storage::{Brick, Options};

use super::faults::{millis, wait_until_in_sync};
use super::repair::{Stage, create, run};

/// Changes a stopped replica behind the back of the others: writes a block, which may then be `zeroed`.
async fn tamper(stage: &Stage, place: usize, (object, offset): (ObjectId, u64), zeroed: bool) {
    let mut cluster = stage.nodes.lock().await;
    cluster.stop(place).await;
    let medium = cluster.nodes[place].medium.clone();
    let options = Options::for_room(Room {
        total_bytes: 1 << 30,
        free_bytes: 1 << 30,
    });
    let (mut brick, _) = Brick::open(medium, None, options).expect("it stopped in order");
    let len = BLOCK_BYTES as u32;
    let mut changes = vec![Change::Write {
        object,
        offset,
        len,
    }];
    changes.extend(zeroed.then_some(Change::Zero {
        object,
        offset,
        len: BLOCK_BYTES,
    }));
    let record = Record {
        sequence: Sequence(0),
        term: Term(0),
        generation: GenerationId::NONE,
        changes,
        payload: Bytes::from(vec![5; len as usize]),
    };
    let pace = brick.apply_resync(&record, 0).expect("there is room");
    assert_eq!(pace, storage::Pace::Ready, "it is little");
    brick.close().expect("the disk is whole");
    cluster.start(place);
}

/// What has just begun is noticed first (on the simulated clock).
async fn in_sync_again(stage: &Stage) {
    tokio::time::sleep(millis(500)).await;
    assert!(wait_until_in_sync(&stage.nodes).await);
}

async fn differences(primary: &VolumeHandle, repair: bool) -> Vec<u64> {
    let verdict = primary.command(VolumeCommand::Verify { repair }).await;
    let verdict = verdict.expect("the primary serves");
    assert_eq!(verdict["replicas_compared"], 2, "{verdict}");
    let differences = verdict["differences"].as_array().expect("a list").iter();
    differences
        .map(|one| one["offset"].as_u64().expect("a number"))
        .collect()
}

/// What is done about a difference.
#[derive(Clone, Copy)]
enum Mend {
    Repair,
    FullResync,
}

/// A block in an extent of which the primary has nothing. Without `file`, of a file that nobody wrote
/// to.
fn beyond(mend: Mend, file: Option<fn(&Stage) -> ObjectId>, offset: u64) {
    run(async {
        let stage = Stage::new().await;
        let file = match file {
            Some(file) => file(&stage),
            None => create(&stage.one, "empty").await,
        };
        tamper(&stage, 1, (file, offset), false).await;
        in_sync_again(&stage).await;
        let primary = stage.nodes.lock().await.handle(0).expect("it runs");
        assert_eq!(differences(&primary, false).await, vec![offset]);
        match mend {
            Mend::Repair => {
                assert_eq!(differences(&primary, true).await, vec![offset]);
            }
            Mend::FullResync => {
                let full = VolumeCommand::Resync {
                    replica: Some(1),
                    full: true,
                };
                primary.command(full).await.expect("the primary serves");
                in_sync_again(&stage).await;
            }
        }
        assert_eq!(differences(&primary, false).await, Vec::<u64>::new());
    });
}

#[test]
fn a_block_that_the_primary_does_not_have_is_found_and_taken_away() {
    for mend in [Mend::Repair, Mend::FullResync] {
        for extent in [1, 3, 40] {
            beyond(mend, Some(|stage| stage.file), extent * EXTENT_BYTES);
        }
        // The primary has nothing at all of this one.
        beyond(mend, Some(|stage| stage.hollow), 0);
        beyond(mend, Some(|stage| stage.hollow), 2 * EXTENT_BYTES);
        beyond(mend, None, 2 * EXTENT_BYTES);
    }
}

/// What was written and zeroed there came to a later replica as nothing.
#[test]
fn what_holds_nothing_is_no_difference_to_what_is_not_there() {
    run(async {
        let stage = Stage::new().await;
        let empty = create(&stage.one, "empty").await;
        tamper(&stage, 1, (empty, EXTENT_BYTES), true).await;
        in_sync_again(&stage).await;
        let primary = stage.nodes.lock().await.handle(0).expect("it runs");
        assert_eq!(differences(&primary, false).await, Vec::<u64>::new());
    });
}
