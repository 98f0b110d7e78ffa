//! Disks that are slow, fail, are full, or give back other bytes than were written.

use std::rc::Rc;
use std::time::Duration;

use protocol::node_rpc::VolumeCommand;
use protocol::report::DiskState;
use protocol::units::BLOCK_BYTES;
use storage::medium::Medium;
use storage::medium::sim::SimMedium;
use tokio::time::Instant;

use super::faults::{Faults, Nodes, all_in_sync, millis, reports, serving};
use super::network::Place;
use super::work::NOT_ALL_THERE;

/// Bytes of a node's disk.
pub(crate) const DISK_BYTES: u64 = 256 << 20;
/// What a brick keeps back of it: the least that bricks do.
pub(crate) const RESERVE_BYTES: u64 = 4 << 20;
/// How long a damaged block may wait for its repair.
const CURED_WITHIN: Duration = Duration::from_secs(60);

impl Faults {
    /// Something is wrong with one disk, for a while.
    pub(super) async fn disk(&self) {
        let place = self.victim().await;
        match self.random.within(0..8) {
            0 => self.slow(place).await,
            1..3 => self.fails(place).await,
            3 | 4 if all_in_sync(&self.nodes).await => self.little_room(place).await,
            3..6 => self.full(place).await,
            _ => self.rots(place).await,
        }
    }

    async fn medium(&self, place: Place) -> SimMedium {
        self.nodes.lock().await.nodes[place].medium.clone()
    }

    async fn slow(&self, place: Place) {
        let slowness = self.random.within(100..2000);
        self.journal
            .note(format!("node{}'s disk is slow: {slowness}", place + 1));
        self.medium(place).await.slow_down(slowness);
        let (nodes, pause, usual) = (Rc::clone(&self.nodes), self.while_long(), self.slowness);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(pause).await;
            let cluster = nodes.lock().await;
            cluster.nodes[place].medium.slow_down(usual);
        });
    }

    /// A write or a sync fails: the replica steps aside. Its disk is mended, and its process
    /// started again.
    async fn fails(&self, place: Place) {
        let (medium, n) = (self.medium(place).await, self.random.within(0..60));
        if self.random.one_in(2) {
            self.journal
                .note(format!("node{}: sync {n} fails", place + 1));
            medium.fail_sync(n);
        } else {
            self.journal
                .note(format!("node{}: write {n} fails", place + 1));
            medium.fail_write(n);
        }
        let end = Instant::now() + millis(3000);
        while !has_failed(&self.nodes, place).await && Instant::now() < end {
            tokio::time::sleep(millis(50)).await;
        }
        tokio::time::sleep(millis(self.random.within(0..2000))).await;
        let mut cluster = self.nodes.lock().await;
        cluster.nodes[place].medium.mend();
        if cluster.is_running(place) {
            cluster.kill(place).await;
        }
        drop(cluster);
        self.start_after(place, millis(50));
    }

    async fn full(&self, place: Place) {
        let medium = self.medium(place).await;
        let room = medium.room().expect("a disk that works");
        let used = room.total_bytes - room.free_bytes;
        let left = self.random.within(0..3 << 20);
        self.journal
            .note(format!("node{}'s disk is full up to {left}", place + 1));
        medium.set_capacity(used + left);
        let (nodes, pause) = (Rc::clone(&self.nodes), self.while_long());
        tokio::task::spawn_local(async move {
            tokio::time::sleep(pause).await;
            let failed = has_failed(&nodes, place).await;
            let mut cluster = nodes.lock().await;
            cluster.nodes[place].medium.set_capacity(DISK_BYTES);
            if failed {
                // Somebody else took the room that was kept free: the replica stepped aside.
                cluster.kill(place).await;
                cluster.start(place);
            }
            if cluster.was_found_full(place) && !cluster.is_running(place) {
                cluster.start(place);
            }
        });
    }

    /// There is not much room any more, and nobody else takes it: clients are told ENOSPC, and the
    /// replica, as long as it has only what is ordered to store, stores all of it (BAD-3).
    async fn little_room(&self, place: Place) {
        let from = self.journal.len();
        let end = Instant::now() + millis(1000) + self.while_long();
        let (work, filler) = (Rc::clone(&self.work), self.filler.clone());
        // Room of the primary's own runs out by what it orders; that of another, by what is promised
        // to it between two words about it.
        if serving(&self.nodes)
            .await
            .is_some_and(|primary| primary.replica != place)
        {
            tokio::task::spawn_local(work.fill(filler, end));
        }
        // Little by little: others learn of it with the next sign of life, and what they order before
        // that has to fit into the reserve.
        for left in [RESERVE_BYTES * 3 / 4, self.random.within(0..64 << 10)] {
            let mut all = reports(&self.nodes).await.into_iter();
            let report = all.find(|report| report.replica == place);
            let Some(free) = report.and_then(|report| report.free_bytes) else {
                break;
            };
            self.journal
                .note(format!("node{}'s disk has room for {left}", place + 1));
            let medium = self.medium(place).await;
            let room = medium.room().expect("a disk that works");
            let held = room.free_bytes.saturating_sub(free);
            medium.set_capacity(room.total_bytes - room.free_bytes + held + left);
            tokio::time::sleep(millis(500)).await;
        }
        let nodes = Rc::clone(&self.nodes);
        let (journal, work) = (self.journal.clone(), Rc::clone(&self.work));
        tokio::task::spawn_local(async move {
            let (mut failed, mut quiet) = (false, true);
            while !failed && Instant::now() < end {
                quiet = !journal.told_since(from, &NOT_ALL_THERE);
                tokio::time::sleep(millis(50)).await;
                failed = has_failed(&nodes, place).await;
            }
            if failed && quiet && journal.told_since(from, &["(os error 28)"]) {
                work.fail("a replica was to store more than it had said it can".to_owned());
            }
            let mut cluster = nodes.lock().await;
            cluster.nodes[place].medium.set_capacity(DISK_BYTES);
            if failed {
                cluster.kill(place).await;
                cluster.start(place);
            }
        });
    }

    /// A bit of a stored block flips, or the block cannot be read, at a replica where all have
    /// everything (DUR-4). Whoever reads it gets what was written, and no error as long as all are
    /// there; an operator's comparison puts right what nobody read.
    async fn rots(&self, place: Place) {
        self.work.rotten(true);
        if all_in_sync(&self.nodes).await {
            self.damage(place).await;
        }
        self.work.rotten(false);
    }

    async fn damage(&self, place: Place) {
        let medium = self.medium(place).await;
        let path = storage::layout::object_path(self.work.a_file());
        let blocks = medium.peek(&path, 0, 1 << 20).len() as u64 / BLOCK_BYTES;
        if blocks == 0 {
            return;
        }
        let block = self.random.within(0..blocks);
        if self.random.one_in(3) {
            self.journal.note(format!(
                "node{}: block {block} of {path} cannot be read",
                place + 1
            ));
            medium.fail_block(&path, block);
            tokio::time::sleep(millis(self.random.within(100..2500))).await;
            let cured = cure(&self.nodes).await;
            // Only this replica has what stands there, as another one was away; or what
            // waits in memory to be written there hides it.
            self.medium(place).await.mend();
            if !cured && !cure(&self.nodes).await {
                self.work
                    .fail("a block that cannot be read is not put right".to_owned());
            }
            return;
        }
        let at = block * BLOCK_BYTES + self.random.within(0..BLOCK_BYTES);
        medium.flip_bit(&path, at, 3);
        let damaged = medium.peek(&path, block * BLOCK_BYTES, BLOCK_BYTES as usize);
        self.journal.note(format!(
            "node{}: a bit flips in block {block} of {path}",
            place + 1
        ));
        tokio::time::sleep(millis(self.random.within(100..2500))).await;
        let cured = cure(&self.nodes).await;
        // Only this replica has what stood there, as another one was away; or what waits in
        // memory to be written there hides it.
        let medium = self.medium(place).await;
        if medium.peek(&path, block * BLOCK_BYTES, BLOCK_BYTES as usize) == damaged {
            medium.flip_bit(&path, at, 3);
        }
        if !cured && !cure(&self.nodes).await {
            self.work
                .fail("a damaged block is not put right".to_owned());
        }
    }
}

/// Whether the replica stepped aside.
async fn has_failed(nodes: &Nodes, place: Place) -> bool {
    let mut all = reports(nodes).await.into_iter();
    all.any(|it| it.replica == place && it.disk == DiskState::Failed)
}

/// Every disk works again.
pub(crate) async fn mend_disks(nodes: &Nodes) {
    for node in &nodes.lock().await.nodes {
        node.medium.mend();
        node.medium.set_capacity(DISK_BYTES);
    }
}

/// Has replicas compared and put right until they are equal. False: they did not come to be.
async fn cure(nodes: &Nodes) -> bool {
    let end = Instant::now() + CURED_WITHIN;
    while Instant::now() < end {
        tokio::time::sleep(millis(100)).await;
        if !all_in_sync(nodes).await {
            continue;
        }
        let Some(primary) = serving(nodes).await else {
            continue;
        };
        let Some(handle) = nodes.lock().await.handle(primary.replica) else {
            continue;
        };
        let command = |repair| {
            let done = handle.command(VolumeCommand::Verify { repair });
            tokio::time::timeout(millis(20_000), done)
        };
        let _ = command(true).await;
        if let Ok(Ok(verdict)) = command(false).await
            && verdict["equal"] == true
        {
            return true;
        }
    }
    false
}
