//! The power goes everywhere, and a mount comes back when others have gone on: what it wrote is
//! there, or it is told that it is not (DUR-2).

use std::time::Duration;

use bytes::Bytes;
use protocol::fs::{Operation, Outcome};
use protocol::node_rpc::VolumeCommand;
use protocol::units::BLOCK_BYTES;

use super::cluster::CLIENTS_FROM;
use super::faults::wait_until_in_sync;
use super::repair::{Stage, run, write};

/// So much goes into the object's file at once, and its record into the journal.
const LARGE: usize = 16 * BLOCK_BYTES as usize;

/// Cuts the first mount off from the nodes, or connects it again.
async fn cut_off(stage: &Stage, cut: bool) {
    let cluster = stage.nodes.lock().await;
    match cut {
        true => (0..2).for_each(|node| {
            cluster.network.block(CLIENTS_FROM, node);
            cluster.network.block(node, CLIENTS_FROM);
        }),
        false => cluster.network.heal(),
    }
}

/// Whether what was written is there when the mount is back, and whether it is told of a loss.
fn written_and_told(seed: u64) -> (bool, bool) {
    run(async {
        let stage = Stage::with_seed(seed).await;
        let data = vec![7; LARGE];
        write(&stage.one, 0, stage.hollow, 0, data.clone()).await;
        cut_off(&stage, true).await;
        {
            let mut cluster = stage.nodes.lock().await;
            for node in [0, 1] {
                cluster.power_off(node).await;
            }
            for node in [0, 1] {
                cluster.start(node);
            }
        }
        // Longer than anybody is awaited, and shorter than a session lives.
        tokio::time::sleep(Duration::from_secs(12)).await;
        write(&stage.other, 0, stage.file, 0, vec![8; 100]).await;
        cut_off(&stage, false).await;
        let sync = Operation::SyncAll;
        let _ = stage.one.call(0, sync, Bytes::new()).await;
        assert!(wait_until_in_sync(&stage.nodes).await);
        let read = Operation::Read {
            object: stage.hollow,
            offset: 0,
            len: LARGE as u32,
        };
        let found = stage.other.call(9, read, Bytes::new()).await;
        let there = found == Outcome::Data(Bytes::from(data));
        (there, !stage.one.take_losses().is_empty())
    })
}

#[test]
fn a_mount_that_comes_late_is_told_of_data_that_a_power_cut_took() {
    let seen: Vec<_> = (0..40).map(written_and_told).collect();
    for (seed, (there, told)) in seen.iter().enumerate() {
        assert_ne!(there, told, "seed {seed}");
    }
    assert!(seen.iter().any(|(there, _)| *there));
    assert!(seen.iter().any(|(_, told)| *told));
}

/// The power goes everywhere, and the mounts come back at once with what they appended.
fn is_appended(seed: u64) -> bool {
    run(async {
        let stage = Stage::with_seed(seed).await;
        let (first, second) = (vec![6; 2 * LARGE], vec![7; LARGE]);
        write(&stage.one, 0, stage.hollow, 0, first.clone()).await;
        stage.one.call(0, Operation::SyncAll, Bytes::new()).await;
        let append = Operation::Write {
            object: stage.hollow,
            offset: 0,
            append: true,
            kill_privileges: false,
        };
        let appends = stage.one.call(0, append, Bytes::from(second.clone()));
        let cut = async {
            // Before it is answered, or after.
            tokio::time::sleep(Duration::from_millis(seed % 8 * 10)).await;
            let mut cluster = stage.nodes.lock().await;
            for node in [0, 1] {
                cluster.power_off(node).await;
            }
            for node in [0, 1] {
                cluster.start(node);
            }
        };
        let (appended, ()) = tokio::join!(appends, cut);
        assert!(matches!(appended, Outcome::Written { .. }), "{appended:?}");
        stage.one.call(0, Operation::SyncAll, Bytes::new()).await;
        let read = Operation::Read {
            object: stage.hollow,
            offset: 0,
            len: 4 * LARGE as u32,
        };
        let found = stage.other.call(9, read, Bytes::new()).await;
        found == Outcome::Data(Bytes::from([first, second].concat()))
    })
}

/// An append says no offset: its data came back at the start of the file.
#[test]
fn dur_5_what_was_appended_is_put_back_where_it_went() {
    let wrong: Vec<u64> = (0..80).filter(|seed| !is_appended(*seed)).collect();
    assert_eq!(wrong, Vec::<u64>::new());
}

/// A primary lost its power and comes back, while a mount that kept what was lost cannot reach it.
/// Then it is gone for good, and the other replica, which has everything, serves.
fn is_whole_after_both(seed: u64) -> bool {
    run(async {
        let stage = Stage::with_seed(seed).await;
        let data = vec![7; LARGE];
        write(&stage.one, 0, stage.hollow, 0, data.clone()).await;
        cut_off(&stage, true).await;
        {
            let mut cluster = stage.nodes.lock().await;
            cluster.power_off(0).await;
            cluster.start(0);
        }
        // Shorter than mounts are awaited, and long enough for the replicas to meet.
        tokio::time::sleep(Duration::from_secs(4)).await;
        stage.nodes.lock().await.kill(0).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let handle = stage.nodes.lock().await.handle(1).expect("it runs");
        let forced = VolumeCommand::Promote { to: 1, force: true };
        handle.command(forced).await.expect("nobody else serves");
        cut_off(&stage, false).await;
        let read = Operation::Read {
            object: stage.hollow,
            offset: 0,
            len: LARGE as u32,
        };
        let found = stage.one.call(9, read, Bytes::new()).await;
        found == Outcome::Data(Bytes::from(data))
    })
}

/// The primary's doubtful data went to the replica that had it whole before the mounts had put
/// anything back, and a torn write that had been confirmed was served.
#[test]
fn dur_5_what_a_crash_left_in_doubt_replaces_nothing_before_it_is_put_back() {
    let torn: Vec<u64> = (0..40).filter(|seed| !is_whole_after_both(*seed)).collect();
    assert_eq!(torn, Vec::<u64>::new());
}
