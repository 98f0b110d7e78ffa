//! What goes wrong at the moment when it hurts most: see [`Family`].

use std::time::Duration;

use protocol::node_rpc::VolumeCommand;
use protocol::report::ReplicaReport;
use protocol::volume::Quorum;
use tokio::time::Instant;

use super::cluster::CLIENTS_FROM;
use super::faults::{Faults, all_in_sync, millis, serving};
use super::network::Place;
use super::shape::Family;

/// How long a moment is waited for.
const WAITED: Duration = Duration::from_secs(6);

impl Faults {
    /// Something of the family's own.
    pub(super) async fn moment(&self) {
        match self.family {
            Family::Mixed => match self.random.within(0..4) {
                0 => self.half_open().await,
                1 => self.stall().await,
                2 => self.amid_resync().await,
                _ => self.long_absence().await,
            },
            Family::Leases => self.half_open().await,
            Family::PowerCuts | Family::Resyncs | Family::LostSources => self.amid_resync().await,
            Family::Absences => self.long_absence().await,
            Family::Stalls => self.stall().await,
            Family::Disks => self.disk().await,
            Family::Bricks => self.bricks().await,
            Family::Partings | Family::Fences => self.lose_each_other().await,
            Family::Impostors => self.impostor().await,
        }
    }

    /// The primary and a client that only looks hear nothing of the others and the others nothing
    /// of them; the others know at once that their connections are gone, these two do not.
    async fn half_open(&self) {
        let Some(primary) = serving(&self.nodes).await.map(|report| report.replica) else {
            return;
        };
        let watcher = CLIENTS_FROM + self.clients - 1;
        let inside = [primary, watcher];
        let places = self.places().await;
        let network = self.nodes.lock().await.network.clone();
        self.journal
            .note(format!("{inside:?} are cut off, and do not know it"));
        self.work.look_only(true);
        for other in places.into_iter().filter(|place| !inside.contains(place)) {
            for place in inside {
                network.block(place, other);
                network.block(other, place);
            }
            network.forget_at(other, &inside);
        }
        let pause = millis(self.random.within(150..2500));
        tokio::time::sleep(pause).await;
        self.journal.note("the network is whole".to_owned());
        network.heal();
        self.work.look_only(false);
    }

    /// The primary reaches its clients and none of its replicas. Clients ask again, and it may die.
    async fn stall(&self) {
        let Some(primary) = serving(&self.nodes).await.map(|report| report.replica) else {
            return;
        };
        let nodes = 0..self.nodes.lock().await.nodes.len();
        let network = self.nodes.lock().await.network.clone();
        self.journal
            .note(format!("{primary} is cut off from its replicas"));
        for other in nodes.filter(|other| *other != primary) {
            network.block(primary, other);
            network.block(other, primary);
        }
        let ends = Instant::now() + millis(self.random.within(50..900));
        while Instant::now() < ends {
            tokio::time::sleep(millis(self.random.within(10..200))).await;
            let client = CLIENTS_FROM + self.random.index(self.clients);
            self.journal.note(format!("{client} asks again"));
            network.forget(client);
        }
        if self.random.one_in(2) {
            self.kill(primary).await;
        }
        self.journal.note("the network is whole".to_owned());
        network.heal();
    }

    /// A replica that was away is brought up to date; in the middle of that something happens to
    /// it, to its source, or to the connection.
    async fn amid_resync(&self) {
        if !self.nodes_resync().await {
            let Some(primary) = serving(&self.nodes).await else {
                return;
            };
            let others = primary.peers.iter().map(|peer| peer.replica);
            let others: Vec<_> = others.collect();
            if others.is_empty() {
                return;
            }
            let place = others[self.random.index(others.len())];
            let mut cluster = self.nodes.lock().await;
            if !cluster.is_running(place) {
                return;
            }
            cluster.kill(place).await;
            drop(cluster);
            self.start_after(place, millis(self.random.within(1200..3500)));
        }
        let end = Instant::now() + WAITED;
        while !self.nodes_resync().await {
            if Instant::now() >= end {
                return;
            }
            tokio::time::sleep(millis(5)).await;
        }
        tokio::time::sleep(millis(self.random.within(0..300))).await;
        let Some((source, target)) = self.resyncing().await else {
            return;
        };
        self.journal
            .note(format!("amid the resync of {target} from {source}"));
        let network = self.nodes.lock().await.network.clone();
        match self.random.within(0..8) {
            0..3 => network.reset(source, target),
            3..6 => self.power_aside().await,
            6 => self.kill(target).await,
            _ => self.kill(source).await,
        }
    }

    async fn resyncing(&self) -> Option<(Place, Place)> {
        let primary = serving(&self.nodes).await?;
        let mut peers = primary.peers.iter();
        let target = peers.find(|peer| peer.resync.is_some() && !peer.in_sync)?;
        Some((primary.replica, target.replica))
    }

    async fn nodes_resync(&self) -> bool {
        self.resyncing().await.is_some()
    }

    /// One replica is away for long. Another one is away for a while, comes back, and gets the
    /// role; then the first one returns.
    async fn long_absence(&self) {
        let members = self.nodes.lock().await.members();
        if members.len() < 3 || self.quorum == Quorum::Off || !all_in_sync(&self.nodes).await {
            return;
        }
        let Some(primary) = serving(&self.nodes).await.map(|report| report.replica) else {
            return;
        };
        let others: Vec<_> = members
            .into_iter()
            .filter(|place| *place != primary)
            .collect();
        let first = self.random.index(others.len());
        let second = (first + 1 + self.random.index(others.len() - 1)) % others.len();
        let (long, short) = (others[first], others[second]);
        self.nodes.lock().await.kill(long).await;
        tokio::time::sleep(millis(self.random.within(900..2000))).await;
        if self.nodes.lock().await.is_running(short) {
            self.nodes.lock().await.kill(short).await;
        }
        tokio::time::sleep(millis(self.random.within(1000..3000))).await;
        let start = |place| async move {
            let mut cluster = self.nodes.lock().await;
            if !cluster.is_running(place) {
                cluster.start(place);
            }
        };
        start(short).await;
        let end = Instant::now() + WAITED;
        while Instant::now() < end {
            let back = |report: &ReplicaReport| {
                let mut peers = report.peers.iter();
                peers.any(|peer| peer.replica == short && peer.in_sync)
            };
            if serving(&self.nodes)
                .await
                .is_some_and(|report| back(&report))
            {
                break;
            }
            tokio::time::sleep(millis(20)).await;
        }
        let handle = self.nodes.lock().await.handle(primary);
        if let Some(handle) = handle {
            let command = VolumeCommand::Promote {
                to: short,
                force: false,
            };
            self.journal
                .note(format!("node{} is told: {command:?}", primary + 1));
            let _ = tokio::time::timeout(millis(3000), handle.command(command)).await;
        }
        tokio::time::sleep(millis(self.random.within(0..500))).await;
        start(long).await;
    }
}
