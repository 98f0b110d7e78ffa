//! What goes wrong, drawn from the seed, within what the promises say that it may.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use protocol::node_rpc::VolumeCommand;
use protocol::report::{DiskState, ReplicaReport};
use protocol::volume::{Protocol, Quorum};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::client::Client;
use super::cluster::{CLIENTS_FROM, Cluster, Journal};
use super::network::Place;
use super::random::Random;
use super::shape::Family;
use super::work::Work;

/// The nodes, as several tasks use them one after another.
pub(crate) type Nodes = Rc<Mutex<Cluster>>;

/// Places that vote in the pool.
const VOTERS: usize = 3;

/// Makes things go wrong.
pub(crate) struct Faults {
    pub(crate) nodes: Nodes,
    pub(crate) work: Rc<Work>,
    pub(crate) family: Family,
    pub(crate) quorum: Quorum,
    /// Mounts that stay, and mounts that come and go.
    pub(crate) clients: usize,
    pub(crate) guests: usize,
    /// Of disks, when nothing is wrong with them.
    pub(crate) slowness: u64,
    pub(crate) random: Random,
    pub(crate) journal: Journal,
    /// A mount that takes room where there is little.
    pub(crate) filler: Client,
    /// The ack policies that the volume has in turn.
    pub(crate) protocols: &'static [Protocol],
    /// Where the option for long lines is switched: what chooses when and how.
    pub(crate) links: Option<Random>,
    /// This node's machine is gone: nothing but what was begun for it starts it again.
    pub(crate) burnt: Rc<Cell<Option<Place>>>,
    /// How many there were.
    pub(crate) count: u64,
}

pub(super) fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl Faults {
    /// For so long. What was begun is not put right.
    pub(crate) async fn run(&mut self, lasts: Duration) {
        let end = Instant::now() + lasts;
        loop {
            let pause = millis(self.random.within(50..2200));
            tokio::time::sleep(pause).await;
            if Instant::now() >= end {
                return;
            }
            self.count += 1;
            let usual = if self.family == Family::Mixed { 6 } else { 2 };
            if self.random.one_in(usual) {
                self.moment().await;
            } else if self.random.one_in(10) {
                self.change_options().await;
            } else {
                self.one().await;
            }
        }
    }

    pub(super) async fn any_node(&self) -> Place {
        self.random.index(self.nodes.lock().await.nodes.len())
    }

    /// Mostly soon, sometimes late.
    pub(super) fn while_long(&self) -> Duration {
        match self.random.within(0..4) {
            0 => millis(self.random.within(5..200)),
            1 | 2 => millis(self.random.within(200..2500)),
            _ => millis(self.random.within(2500..9000)),
        }
    }

    /// The primary in half of the cases.
    pub(super) async fn victim(&self) -> Place {
        if self.random.one_in(2)
            && let Some(report) = serving(&self.nodes).await
        {
            return report.replica;
        }
        self.any_node().await
    }

    async fn one(&mut self) {
        let place = self.victim().await;
        match self.random.within(0..21) {
            0..4 => self.kill(place).await,
            4..6 => self.freeze(place).await,
            6..9 => self.cut().await,
            9..11 => self.split().await,
            16 => {
                // What it said last gets nowhere.
                self.isolate(place).await;
                tokio::time::sleep(millis(self.random.within(1..150))).await;
                self.kill(place).await;
                self.nodes.lock().await.network.forget(place);
            }
            17..19 => {
                let other = self.any_place().await;
                self.journal
                    .note(format!("connections {place}-{other} are reset"));
                self.nodes.lock().await.network.reset(place, other);
            }
            11 => {
                let seconds = self.random.within(0..7200);
                let step = i64::try_from(seconds).expect("small") - 3600;
                self.nodes.lock().await.step_clock(place, step);
            }
            12 => self.stop(place).await,
            13 => self.power(place).await,
            14 | 15 => self.power_aside().await,
            _ => self.operate(place).await,
        }
    }

    /// Nodes, voters and mounts.
    pub(super) async fn places(&self) -> Vec<Place> {
        let nodes = 0..self.nodes.lock().await.nodes.len().max(VOTERS);
        nodes.chain(self.mounts()).collect()
    }

    fn mounts(&self) -> std::ops::Range<Place> {
        CLIENTS_FROM..CLIENTS_FROM + self.clients + self.guests
    }

    async fn any_place(&self) -> Place {
        let places = self.places().await;
        places[self.random.index(places.len())]
    }

    pub(super) async fn kill(&self, place: Place) {
        let mut cluster = self.nodes.lock().await;
        if !cluster.is_running(place) {
            return;
        }
        cluster.kill(place).await;
        drop(cluster);
        self.start_after(place, self.while_long());
    }

    pub(super) fn start_after(&self, place: Place, pause: Duration) {
        let (nodes, burnt) = (Rc::clone(&self.nodes), Rc::clone(&self.burnt));
        tokio::task::spawn_local(async move {
            tokio::time::sleep(pause).await;
            let mut cluster = nodes.lock().await;
            if !cluster.is_running(place) && burnt.get() != Some(place) {
                cluster.start(place);
            }
        });
    }

    async fn freeze(&self, place: Place) {
        self.nodes.lock().await.freeze(place, true);
        if self.random.one_in(2) {
            // Clients that wait for it ask again.
            tokio::time::sleep(millis(self.random.within(20..300))).await;
            let cluster = self.nodes.lock().await;
            self.mounts()
                .for_each(|mount| cluster.network.forget(mount));
        }
        let (nodes, pause) = (Rc::clone(&self.nodes), self.while_long());
        tokio::task::spawn_local(async move {
            tokio::time::sleep(pause).await;
            nodes.lock().await.freeze(place, false);
        });
    }

    async fn cut(&self) {
        let (a, b) = (self.any_place().await, self.any_place().await);
        let cluster = self.nodes.lock().await;
        let network = cluster.network.clone();
        drop(cluster);
        match self.random.within(0..4) {
            0 => return self.isolate(a).await,
            1 => {
                self.journal.note(format!("nothing gets from {a} to {b}"));
                network.block(a, b);
            }
            _ => {
                self.journal.note(format!("{a} and {b} are cut off"));
                network.block(a, b);
                network.block(b, a);
            }
        }
        self.heal_after(self.while_long()).await;
    }

    /// Two sides that hear nothing of each other.
    async fn split(&self) {
        let places = self.places().await;
        let network = self.nodes.lock().await.network.clone();
        let (here, there): (Vec<_>, Vec<_>) =
            places.into_iter().partition(|_| self.random.one_in(2));
        self.journal
            .note(format!("the network is split: {here:?} {there:?}"));
        for (a, b) in here
            .iter()
            .flat_map(|a| there.iter().map(move |b| (*a, *b)))
        {
            network.block(a, b);
            network.block(b, a);
        }
        self.heal_after(self.while_long()).await;
    }

    async fn isolate(&self, place: Place) {
        let places = self.places().await;
        let network = self.nodes.lock().await.network.clone();
        self.journal
            .note(format!("{place} is cut off from everyone"));
        for other in places.into_iter().filter(|other| *other != place) {
            network.block(place, other);
            network.block(other, place);
        }
        self.heal_after(self.while_long()).await;
    }

    async fn heal_after(&self, pause: Duration) {
        let network = self.nodes.lock().await.network.clone();
        let journal = self.journal.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(pause).await;
            journal.note("the network is whole".to_owned());
            network.heal();
        });
    }

    async fn stop(&self, place: Place) {
        let mut cluster = self.nodes.lock().await;
        if !cluster.is_running(place) || cluster.is_frozen(place) {
            return;
        }
        cluster.stop(place).await;
        drop(cluster);
        self.start_after(place, self.while_long());
    }

    /// One node loses its power while every replica is in sync, for so long that another takes
    /// over; nothing else happens until all are in sync again. More than that, or a primary that
    /// nobody can replace, may take what no fsync confirmed (DUR-3).
    async fn power(&self, place: Place) {
        if self.quorum == Quorum::Off || !all_in_sync(&self.nodes).await {
            return;
        }
        let mut cluster = self.nodes.lock().await;
        cluster.power_off(place).await;
        drop(cluster);
        tokio::time::sleep(millis(2500) + self.while_long()).await;
        let mut cluster = self.nodes.lock().await;
        // Something begun earlier may have started it.
        if !cluster.is_running(place) {
            cluster.start(place);
        }
        drop(cluster);
        wait_until_in_sync(&self.nodes).await;
    }

    /// A replica that is not in sync loses its power: nothing can rest on it.
    pub(super) async fn power_aside(&self) {
        let mut aside = Vec::new();
        let mut serving = Vec::new();
        for report in reports(&self.nodes).await {
            if report.serving {
                serving.push(report.replica);
                aside.extend(
                    report
                        .peers
                        .iter()
                        .filter(|p| !p.in_sync)
                        .map(|p| p.replica),
                );
            }
        }
        let mut cluster = self.nodes.lock().await;
        // A primary that was replaced and does not know it may say so of the one that counts.
        let counts = |place: &Place| {
            let agreed = cluster.pool.agreed();
            serving.contains(place) || agreed.is_some_and(|agreed| agreed.in_sync.has(*place))
        };
        let mut aside = aside.into_iter().filter(|place| !counts(place));
        let Some(place) = aside.find(|place| cluster.is_running(*place)) else {
            return;
        };
        cluster.power_off(place).await;
        drop(cluster);
        self.start_after(place, self.while_long());
    }
}

/// What the replicas say whose processes run and are not stopped.
pub(crate) async fn reports(nodes: &Nodes) -> Vec<ReplicaReport> {
    let handles: Vec<_> = {
        let cluster = nodes.lock().await;
        let awake = (0..cluster.nodes.len()).filter(|place| !cluster.is_frozen(*place));
        awake.filter_map(|place| cluster.handle(place)).collect()
    };
    let mut reports = Vec::new();
    for handle in handles {
        reports.push(handle.status().await);
    }
    reports
}

/// What the primary says, if one serves.
pub(crate) async fn serving(nodes: &Nodes) -> Option<ReplicaReport> {
    let all = reports(nodes).await;
    all.into_iter().find(|report| report.serving)
}

/// Everything runs but for one node perhaps, and every connection is possible.
pub(crate) async fn put_right(nodes: &Nodes, but: Option<Place>) {
    // What stepped aside as its disk failed comes back by an operator's word only.
    let failed = reports(nodes).await.into_iter();
    let failed = failed.filter(|report| report.disk == DiskState::Failed);
    let failed: Vec<Place> = failed.map(|report| report.replica).collect();
    let mut cluster = nodes.lock().await;
    for place in failed {
        cluster.kill(place).await;
    }
    cluster.network.heal();
    for place in (0..cluster.nodes.len()).filter(|place| but != Some(*place)) {
        cluster.freeze(place, false);
        if !cluster.is_running(place) {
            cluster.start(place);
        }
        if let Some(handle) = cluster.handle(place) {
            let _ = tokio::time::timeout(millis(100), handle.command(VolumeCommand::ResumeResync))
                .await;
        }
    }
}

/// Whether one node serves, and says of every other that it is in sync and has everything.
pub(crate) async fn all_in_sync(nodes: &Nodes) -> bool {
    let (count, leaving) = {
        let spec = nodes.lock().await.pool.spec();
        (spec.members().count(), spec.layout.leaving)
    };
    let reports = reports(nodes).await;
    leaving == 0
        && reports.len() == count
        && reports
            .iter()
            .any(|report| report.serving && report.peers.iter().all(|peer| peer.in_sync))
}

/// True: all were in sync within two minutes.
pub(crate) async fn wait_until_in_sync(nodes: &Nodes) -> bool {
    let end = Instant::now() + Duration::from_secs(120);
    while Instant::now() < end {
        if all_in_sync(nodes).await {
            return true;
        }
        tokio::time::sleep(millis(50)).await;
    }
    false
}
