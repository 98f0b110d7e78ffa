//! Runs in which an operator gives up what was confirmed: two sides of a split brain, and what a
//! source had that is gone for good. Each side has a history of its own, so such a run goes on in
//! rounds, and what clients saw in one is judged before the next begins. A mount whose side was
//! given up ends with it, and another one takes its place.

use std::collections::BTreeMap;
use std::time::Duration;

use protocol::node_rpc::VolumeCommand;
use protocol::report::{DiskState, ReplicaReport};
use protocol::volume::VolumeSpec;
use storage::Brick;
use storage::medium::sim::SimMedium;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::client::Client;
use super::faults::{millis, put_right, reports, wait_until_in_sync};
use super::network::Place;
use super::random::Random;
use super::shape::Family;
use super::work::Found;
use super::world::{LOOKING, Part, Scene, come_to_rest, compare_bricks, contents, finish};

/// How long something may take that has to come.
pub(super) const WITHIN: Duration = Duration::from_secs(60);
/// How long ordinary faults last before a round, at most.
const BEFORE_MS: u64 = 7000;

/// What files and directories are in a brick.
pub(super) type Files = BTreeMap<Part, bytes::Bytes>;

/// See the module.
pub(crate) struct Apart {
    pub(crate) scene: Scene,
    workers: Vec<Vec<JoinHandle<()>>>,
    pub(super) random: Random,
    pub(crate) faults: u64,
}

impl Apart {
    pub(crate) fn new(scene: Scene) -> Self {
        let workers = (0..scene.clients.len()).map(|at| scene.begin(at));
        Self {
            workers: workers.collect(),
            random: scene.random.fork(),
            scene,
            faults: 0,
        }
    }

    /// Rounds for so long, and then everything must come to a good end.
    pub(crate) async fn run(&mut self, lasts: Duration) {
        let end = Instant::now() + lasts;
        while Instant::now() < end {
            let mut faults = self.scene.faults(None);
            faults
                .run(millis(self.random.within(1000..BEFORE_MS)))
                .await;
            self.faults += faults.count;
            let went_well = match self.scene.shape.family {
                Family::Partings => self.part().await,
                _ => self.lose_the_source().await,
            };
            if went_well.is_none() {
                return; // what is wrong was said
            }
        }
        self.scene.work.end();
        let clients: Vec<Client> = self.clients();
        if finish(&self.scene.nodes, &self.scene.work, &clients).await {
            compare_bricks(&self.scene.nodes, &self.scene.work).await;
        }
    }

    fn clients(&self) -> Vec<Client> {
        self.scene
            .clients
            .iter()
            .map(|(client, _)| client.clone())
            .collect()
    }

    pub(super) fn note(&self, what: impl Into<String>) {
        self.scene.journal.note(what.into());
    }

    /// `None`, for whoever goes on with `?`: this is wrong.
    pub(super) fn wrong<T>(&self, what: impl Into<String>) -> Option<T> {
        self.scene.work.fail(what.into());
        None
    }

    /// Everything is put right, everybody is in sync, and the options are those of before any
    /// operator. Returns the primary and the other one.
    pub(super) async fn two_in_sync(&mut self, options: &[(&str, &str)]) -> Option<(Place, Place)> {
        put_right(&self.scene.nodes, None).await;
        let usual = [("min-in-sync", "1"), ("replica-deadline", "800ms")];
        self.configure(usual.iter().chain(options)).await;
        // A resync that is held back may never overtake those who write.
        self.rest().await?;
        if !wait_until_in_sync(&self.scene.nodes).await {
            return self.wrong("the replicas do not come to be in sync before a round");
        }
        // Whoever was brought up to date learns it last; made primary by force before that, it
        // serves what it had before the resync, and says so.
        let end = Instant::now() + WITHIN;
        let knows = |report: &ReplicaReport| report.disk == DiskState::UpToDate;
        while !reports(&self.scene.nodes).await.iter().all(knows) {
            if Instant::now() > end {
                return self.wrong("a replica in sync does not come to know it");
            }
            tokio::time::sleep(millis(10)).await;
        }
        self.scene.work.hold_up(false);
        let primary = super::faults::serving(&self.scene.nodes).await?;
        Some((primary.replica, primary.peers.first()?.replica))
    }

    /// Options are set, and every node that runs knows of it.
    pub(super) async fn configure<'a>(
        &self,
        options: impl Iterator<Item = &'a (&'a str, &'a str)>,
    ) {
        let pool = self.scene.nodes.lock().await.pool.clone();
        let mut spec = pool.spec();
        for (key, value) in options {
            self.note(format!("{key} is {value} now"));
            spec.options.insert((*key).to_owned(), (*value).to_owned());
        }
        let from = spec.members().map(|(place, _)| place).next().unwrap_or(0);
        self.propose(from, spec).await;
        // The nodes' managers look twenty-five times a second.
        let (version, end) = (pool.spec().version, Instant::now() + WITHIN);
        while Instant::now() < end {
            let all = pool.spec();
            let mut members = all.members();
            if members.all(|(place, _)| pool.known_spec(place).version >= version) {
                break;
            }
            tokio::time::sleep(millis(20)).await;
        }
        tokio::time::sleep(millis(100)).await;
    }

    /// An operator at that node has the pool agree, as soon as it can.
    pub(super) async fn propose(&self, from: Place, spec: VolumeSpec) {
        let end = Instant::now() + WITHIN;
        let pool = self.scene.nodes.lock().await.pool.clone();
        while !pool.propose_spec(from, spec.clone()) && Instant::now() < end {
            self.note("the pool does not agree");
            tokio::time::sleep(millis(200)).await;
        }
    }

    /// Waits for something that has to come. `None`: it does not.
    pub(super) async fn until(&self, what: &str, so: impl AsyncFn() -> bool) -> Option<()> {
        let end = Instant::now() + WITHIN;
        while !so().await {
            if Instant::now() >= end {
                super::world::say_how_it_stands(&self.scene.nodes).await;
                return self.wrong(format!("this does not come: {what}"));
            }
            tokio::time::sleep(millis(20)).await;
        }
        Some(())
    }

    /// What the node says of itself, if its process runs.
    pub(super) async fn report(&self, place: Place) -> Option<ReplicaReport> {
        let handle = self.scene.nodes.lock().await.handle(place)?;
        Some(handle.status().await)
    }

    /// An operator says it to a node until it is done.
    pub(super) async fn command(
        &self,
        place: Place,
        command: VolumeCommand,
    ) -> Option<serde_json::Value> {
        let end = Instant::now() + WITHIN;
        while Instant::now() < end {
            let handle = self.scene.nodes.lock().await.handle(place);
            if let Some(handle) = handle {
                let said = handle.command(command.clone());
                let done = tokio::time::timeout(millis(5000), said).await;
                self.note(format!("node{} is told {command:?}: {done:?}", place + 1));
                if let Ok(Ok(answer)) = done {
                    return Some(answer);
                }
            }
            tokio::time::sleep(millis(self.random.within(5..100))).await;
        }
        self.wrong(format!("node{} does not do {command:?}", place + 1))
    }

    pub(super) async fn kill(&self, place: Place) {
        let mut cluster = self.scene.nodes.lock().await;
        if cluster.is_running(place) {
            cluster.kill(place).await;
        }
    }

    pub(super) async fn start(&self, place: Place) {
        let mut cluster = self.scene.nodes.lock().await;
        if !cluster.is_running(place) {
            cluster.start(place);
        }
    }

    /// Nobody begins anything in a directory from here on, and nothing is under way there.
    pub(super) async fn leave_directories(&self) -> Option<()> {
        let work = &self.scene.work;
        work.leave_directories(true);
        let none = async || work.in_directories() == 0;
        self.until("operations in directories end", none).await
    }

    /// Nothing is under way any more.
    pub(super) async fn rest(&self) -> Option<()> {
        self.scene.work.hold_up(true);
        let rests = come_to_rest(&self.scene.nodes, &self.scene.work).await;
        rests.then_some(())
    }

    /// What a mount sees.
    pub(super) async fn look(&self, client: &Client) -> Found {
        self.scene.work.look(client, LOOKING).await
    }

    /// These mounts are gone, with what they asked.
    pub(super) fn end_mounts(&mut self, which: &[Place]) {
        for (at, (client, keeps)) in self.scene.clients.iter().enumerate() {
            if which.contains(&client.place) {
                keeps.abort();
                self.workers[at].drain(..).for_each(|worker| worker.abort());
                self.scene.work.give_up(client.place);
                self.scene.network.forget(client.place);
            }
        }
    }

    /// Others take their places, and everybody works again.
    pub(super) fn mount_anew(&mut self, which: &[Place]) {
        for at in 0..self.scene.clients.len() {
            let place = self.scene.clients[at].0.place;
            if which.contains(&place) {
                let client = self.scene.mounter.mount(place);
                let keeps = tokio::task::spawn_local(client.clone().run());
                self.scene.clients[at] = (client, keeps);
                self.workers[at] = self.scene.begin(at);
            }
        }
        self.scene.work.leave_directories(false);
        self.scene.work.hold_up(false);
    }
}

/// What files and directories come to in a brick. What is remembered of mounts is left out: it
/// changes as they come and go.
pub(super) fn files_in(brick: &Brick<SimMedium>) -> Files {
    let mut parts = contents(brick);
    parts.retain(|part, _| match part {
        Part::Key(key) => matches!(key.first(), Some(b'i' | b'd' | b'x')),
        Part::Data(..) => true,
    });
    parts
}
