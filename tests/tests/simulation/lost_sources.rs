//! Resyncs whose source is gone for good in the middle (RS-4): an operator makes the target primary
//! by force, which goes back to what it had before, and says as of when. In the middle of the
//! journal's tail it serves what it has: a whole picture of a later time.

use protocol::ids::BrickId;
use protocol::node_rpc::VolumeCommand;
use protocol::report::{DiskState, PointReport};
use protocol::units::Sequence;
use protocol::volume::{REPLICAS_MAX, ReplicaSpec};
use replication::decision::Rule;
use tokio::time::Instant;

use super::apart::{Apart, Files, files_in};
use super::cluster::{CLIENTS_FROM, node_id};
use super::faults::{all_in_sync, millis, serving};
use super::network::Place;
use super::work::Found;

/// How long a resync is waited for.
const BEGINS_WITHIN_MS: u64 = 6000;

/// What a target's brick held before, and where it was.
struct Was {
    files: Files,
    last: Sequence,
}

impl Apart {
    /// A round; `None`: it went wrong.
    pub(super) async fn lose_the_source(&mut self) -> Option<()> {
        let options = [("split-brain-policy", "manual")];
        let (source, target) = self.two_in_sync(&options).await?;
        self.rest().await?;
        let work = std::rc::Rc::clone(&self.scene.work);
        let reader = self.scene.clients[0].0.clone();
        let before = self.look(&reader).await;
        work.check(&before, None);
        work.begin_anew(before.clone());
        let was = self.begin_resync(source, target).await?;
        let Some(follows_tail) = self.is_amid(source, target).await else {
            // It was over at once.
            work.hold_up(false);
            return Some(());
        };
        self.leave_directories().await?;
        tokio::time::sleep(millis(self.random.within(0..300))).await;
        self.faults += 1;
        self.kill(source).await;
        self.bury(source, true).await;
        if self.random.one_in(3) {
            self.faults += 1;
            self.kill(target).await;
            self.start(target).await;
        }
        // What was on its way has come: from here on nothing can bring it up to date.
        tokio::time::sleep(millis(200)).await;
        let report = self.report(target).await?;
        let between = report.disk == DiskState::Inconsistent;
        if between || follows_tail {
            let mounts = self.end_all_mounts();
            let point = report.point.filter(|_| between);
            let forced = self.force_target(target, between).await?;
            let found = self.read_anew().await;
            match point {
                Some(point) => {
                    let said = (&forced, &point);
                    self.went_back(target, said, (was, before), &found).await?;
                }
                None => work.check_beginning(&found),
            }
            work.begin_anew(found);
            let since = work.moment();
            self.mount_anew(&mounts);
            let changed = async || work.changed_since(since, &mounts, 3);
            self.until("mounts of what is left are served", changed)
                .await?;
            self.replace_or_return(source, target, &mounts).await?;
        } else {
            // The resync ended in the last moment: it has everything, and nothing is given up.
            self.force_target(target, false).await?;
            work.leave_directories(false);
            self.bury(source, false).await;
            self.start(source).await;
        }
        // A resync that is held back, or a slow disk, may never overtake those who write.
        self.rest().await?;
        let nodes = std::rc::Rc::clone(&self.scene.nodes);
        let in_sync = async || all_in_sync(&nodes).await && serving(&nodes).await.is_some();
        self.until("all are in sync with whom was forced", in_sync)
            .await?;
        self.scene.network.reunite();
        work.hold_up(false);
        Some(())
    }

    fn end_all_mounts(&mut self) -> Vec<Place> {
        self.scene.work.hold_up(true);
        let mounts: Vec<Place> = self.scene.clients.iter().map(|(it, _)| it.place).collect();
        self.end_mounts(&mounts);
        mounts
    }

    /// An operator makes the target primary; where it is `between` two pictures, it has to go back.
    async fn force_target(&self, target: Place, between: bool) -> Option<serde_json::Value> {
        let to = target;
        let forced = self.command(target, VolumeCommand::Promote { to, force: true });
        let forced = forced.await?;
        if between && forced.get("as_of").is_none() {
            return self.wrong(format!(
                "it serves what is no picture of any time: {forced}"
            ));
        }
        Some(forced)
    }

    async fn bury(&self, place: Place, buried: bool) {
        self.scene.nodes.lock().await.bury(place, buried);
    }

    async fn as_it_is(&self, place: Place) -> Was {
        let brick = self.scene.nodes.lock().await.picture(place);
        Was {
            files: files_in(&brick),
            last: brick.applied(),
        }
    }

    /// Something is to be sent to the target by a resync that is slow. Returns what its brick held.
    async fn begin_resync(&mut self, source: Place, target: Place) -> Option<Was> {
        let work = &self.scene.work;
        let full = self.random.one_in(3);
        if full {
            let was = self.as_it_is(target).await;
            let resync = VolumeCommand::Resync {
                replica: Some(target),
                full: true,
            };
            work.hold_up(false);
            self.command(source, resync).await?;
            return Some(was);
        }
        self.kill(target).await;
        self.faults += 1;
        let was = self.as_it_is(target).await;
        work.hold_up(false);
        tokio::time::sleep(millis(self.random.within(1500..4000))).await;
        self.start(target).await;
        Some(was)
    }

    /// Waits until the target is brought up to date. `Some(true)`: from the journal's tail, so it is
    /// a whole picture after each record; else it is between two and could go back to a point.
    async fn is_amid(&self, source: Place, target: Place) -> Option<bool> {
        let end = Instant::now() + millis(BEGINS_WITHIN_MS);
        while Instant::now() < end {
            let report = self.report(target).await?;
            if report.point.is_some() && report.disk == DiskState::Inconsistent {
                return Some(false);
            }
            let peers = self.report(source).await?.peers;
            let mut resyncs = peers
                .iter()
                .filter(|it| it.replica == target && !it.in_sync);
            let tail = |rule: &str| rule == Rule::JournalTail.name();
            if resyncs.any(|it| it.resync.as_ref().is_some_and(|resync| tail(&resync.rule))) {
                return Some(true);
            }
            tokio::time::sleep(millis(5)).await;
        }
        None
    }

    /// The target serves exactly what the point held, and said so. Where that was made before
    /// anything came, what it held is known; else it is a later picture.
    async fn went_back(
        &self,
        target: Place,
        (said, point): (&serde_json::Value, &PointReport),
        (was, before): (Was, Found),
        found: &Found,
    ) -> Option<()> {
        if said["as_of"] != point.as_of.as_str() {
            return self.wrong(format!("it said {} before and {said} now", point.as_of));
        }
        if point.sequence != was.last.0 {
            self.scene.work.check_beginning(found);
            return Some(());
        }
        let now = self.as_it_is(target).await.files;
        let mut parts = was.files.keys().chain(now.keys());
        if let Some(part) = parts.find(|part| was.files.get(part) != now.get(part)) {
            return self.wrong(format!("after going back there is another {part:?} (RS-4)"));
        }
        if *found != before {
            let mut things = found.iter();
            let thing = things.find(|(thing, states)| before.get(thing) != Some(states));
            return self.wrong(format!("it serves what it did not have: {thing:?} (RS-4)"));
        }
        Some(())
    }

    /// The source was burnt and another brick takes its place; or it comes back after all, and both
    /// went on: the operator has decided already.
    async fn replace_or_return(
        &mut self,
        source: Place,
        target: Place,
        mounts: &[Place],
    ) -> Option<()> {
        let mut spec = self.scene.nodes.lock().await.pool.spec();
        if spec.replicas.len() < REPLICAS_MAX && self.random.one_in(2) {
            let place = spec.replicas.len();
            spec.layout.version += 1;
            spec.layout.leaving |= 1 << source;
            spec.replicas.push(ReplicaSpec {
                node: node_id(place),
                node_name: format!("node{}", place + 1),
                path: "/brick".to_owned(),
                brick: BrickId(self.random.bytes()),
            });
            self.scene.nodes.lock().await.add_node(&spec, place);
            self.note(format!(
                "node{} takes the place of node{}",
                place + 1,
                source + 1
            ));
            self.propose(target, spec).await;
            let knows = async || {
                let cluster = self.scene.nodes.lock().await;
                cluster.pool.known_spec(place).is_member(place)
            };
            self.until("the new node knows its brick", knows).await?;
            self.start(place).await;
            let gone = async || !self.scene.nodes.lock().await.members().contains(&source);
            self.until("the brick that burnt is removed", gone).await?;
            // Its node votes again, on another machine.
            self.scene.nodes.lock().await.pool.set_awake(source, true);
            return Some(());
        }
        let from = self.scene.journal.len();
        tokio::time::sleep(millis(self.random.within(10..1500))).await;
        // It may take itself for the primary: no mount is to find it before somebody has decided.
        mounts
            .iter()
            .for_each(|mount| self.scene.network.part(*mount, source));
        self.bury(source, false).await;
        self.start(source).await;
        let told = format!("node{} split_brain: ", target + 1);
        let over = async || {
            self.scene.journal.told_since(from, &[&told]) || all_in_sync(&self.scene.nodes).await
        };
        self.until("the two meet again", over).await?;
        if !all_in_sync(&self.scene.nodes).await {
            self.command(target, VolumeCommand::KeepSide {}).await?;
        }
        Some(())
    }

    /// What a mount sees that was not there before.
    async fn read_anew(&self) -> Found {
        let reader = self.scene.mounter.mount(CLIENTS_FROM + 20);
        let keeps = tokio::task::spawn_local(reader.clone().run());
        let found = self.look(&reader).await;
        reader.leave();
        tokio::time::sleep(millis(100)).await;
        keeps.abort();
        found
    }
}
