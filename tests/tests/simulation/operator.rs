//! What an operator does: the role, resyncs, comparisons, options.

use std::rc::Rc;

use protocol::node_rpc::VolumeCommand;
use protocol::report::{ConnectionState, PeerReport};
use protocol::volume::{Protocol, Quorum, VolumeSpec};
use replication::state::DurableState;
use tokio::time::Instant;

use super::faults::{Faults, all_in_sync, millis, reports, serving};
use super::network::Place;
use super::shape::Family;

impl Faults {
    /// An operator does something.
    pub(super) async fn operate(&self, place: Place) {
        let count = self.nodes.lock().await.nodes.len();
        let to = self.random.index(count);
        let command = match self.random.within(0..10) {
            0..4 => VolumeCommand::Promote { to, force: false },
            4 => VolumeCommand::Resync {
                replica: Some(to),
                full: self.random.one_in(2),
            },
            5 => VolumeCommand::PauseResync,
            6 => VolumeCommand::Verify { repair: false },
            7 => return self.needless_force().await,
            8 => return self.disaster().await,
            _ => VolumeCommand::ResumeResync,
        };
        if matches!(command, VolumeCommand::Promote { .. }) && self.random.one_in(3) {
            // An impatient one says it twice.
            self.say(place, command.clone()).await;
        }
        let resume = matches!(command, VolumeCommand::PauseResync);
        self.say(place, command).await;
        if resume {
            let (nodes, pause) = (Rc::clone(&self.nodes), self.while_long());
            tokio::task::spawn_local(async move {
                tokio::time::sleep(pause).await;
                // Nobody else waits while this one is answered.
                let handle = nodes.lock().await.handle(place);
                if let Some(handle) = handle {
                    let _ = handle.command(VolumeCommand::ResumeResync).await;
                }
            });
        }
    }

    /// A command to a node, which is not waited for.
    async fn say(&self, place: Place, command: VolumeCommand) {
        let handle = self.nodes.lock().await.handle(place);
        let Some(handle) = handle else { return };
        self.journal
            .note(format!("node{} is told: {command:?}", place + 1));
        let (journal, work) = (self.journal.clone(), Rc::clone(&self.work));
        tokio::task::spawn_local(async move {
            let rotten = work.is_rotten();
            let done = tokio::time::timeout(millis(20_000), handle.command(command)).await;
            journal.note(format!("node{} answers: {done:?}", place + 1));
            if let Ok(Ok(answer)) = &done
                && !rotten
                && !work.is_rotten()
            {
                work.take_verdict(answer);
            }
        });
    }

    /// Force where none is needed, which is refused: the primary serves and is connected.
    async fn needless_force(&self) {
        if !all_in_sync(&self.nodes).await {
            return;
        }
        let Some(primary) = serving(&self.nodes).await else {
            return;
        };
        let to = self.random.index(self.nodes.lock().await.nodes.len());
        let (strict, is_primary) = (self.protocols == [Protocol::C], to == primary.replica);
        match self.quorum {
            // Of two sides the pool has chosen.
            Quorum::Majority if self.random.one_in(2) => {
                self.say(to, VolumeCommand::KeepSide {}).await;
            }
            // Whoever is in sync under C has everything, should the primary be gone by then.
            Quorum::Majority if strict || is_primary => {
                self.say(to, VolumeCommand::Promote { to, force: true })
                    .await;
            }
            Quorum::Off if is_primary => {
                self.say(to, VolumeCommand::Promote { to, force: true })
                    .await;
            }
            _ => {}
        }
    }

    /// The primary's machine burns down where nobody takes over by itself, and an operator makes
    /// the other replica primary: it has everything. What was there once comes back later.
    async fn disaster(&self) {
        let two = self.nodes.lock().await.nodes.len() == 2;
        // Who fences takes over by itself.
        let alone = two && self.quorum == Quorum::Off && self.family != Family::Fences;
        if !alone || !all_in_sync(&self.nodes).await {
            return;
        }
        let Some(primary) = serving(&self.nodes).await.map(|report| report.replica) else {
            return;
        };
        let mut cluster = self.nodes.lock().await;
        cluster.kill(primary).await;
        let heir = 1 - primary;
        let state: DurableState = {
            let brick = cluster.brick(primary);
            serde_json::from_slice(brick.state()).expect("a brick remembers its role")
        };
        // Under A and B, and where it went on alone in the last moment, it may have had more.
        let whole = state.in_sync.has(heir) && state.policy.protocol == Protocol::C;
        drop(cluster);
        if whole {
            self.burnt.set(Some(primary));
            let end = Instant::now() + millis(5000);
            while Instant::now() < end {
                let handle = self.nodes.lock().await.handle(heir);
                let Some(handle) = handle else { break };
                let command = VolumeCommand::Promote {
                    to: heir,
                    force: true,
                };
                let done = tokio::time::timeout(millis(5000), handle.command(command)).await;
                self.journal
                    .note(format!("node{} is forced: {done:?}", heir + 1));
                if matches!(done, Ok(Ok(_))) {
                    break;
                }
                tokio::time::sleep(millis(100)).await;
            }
            tokio::time::sleep(millis(self.random.within(200..4000))).await;
        }
        self.burnt.set(None);
        self.start_after(primary, millis(10));
        if whole {
            // The operator sees to it that the one that comes back meets the one that he made primary:
            // else it goes on, as it was primary last.
            self.until_they_meet().await;
        }
    }

    /// Of two nodes, each is connected to the other.
    async fn until_they_meet(&self) {
        let end = Instant::now() + millis(5000);
        while Instant::now() < end {
            let all = reports(&self.nodes).await;
            let connected = |peer: &PeerReport| peer.connection == ConnectionState::Connected;
            if all.len() == 2 && all.iter().flat_map(|it| &it.peers).all(connected) {
                return;
            }
            tokio::time::sleep(millis(20)).await;
        }
    }

    /// Another option is configured. Nodes learn of it one after the other, as the pool tells them.
    pub(super) async fn change_options(&self) {
        if let Some(links) = &self.links
            && links.one_in(2)
        {
            let profile = ["lan", "wan"][links.index(2)];
            return self.set_option("link-profile", profile).await;
        }
        let (key, values): (_, &[&str]) = match self.random.within(0..7) {
            0 => ("min-in-sync", &["1", "1", "2"]),
            1 => ("replica-deadline", &["200ms", "800ms", "3s"]),
            2 => ("async-queue-max", &["1M", "4M"]),
            3 => ("resync-max-rate", &["0", "128K", "512K"]),
            4 => ("compression", &["zstd", "zstd", "off"]),
            _ => ("protocol", &[]),
        };
        if !values.is_empty() {
            let value = values[self.random.index(values.len())];
            let far = self.nodes.lock().await.network.far();
            if key == "replica-deadline" && value == "200ms" && far > millis(20) {
                return; // over long lines nobody would be heard within that
            }
            return self.set_option(key, value).await;
        }
        let protocol = self.protocols[self.random.index(self.protocols.len())];
        self.journal
            .note(format!("the policy is {} now", protocol.name()));
        self.reconfigure(|spec| spec.protocol = protocol).await;
    }

    async fn set_option(&self, key: &str, value: &str) {
        self.journal.note(format!("{key} is {value} now"));
        let set = |spec: &mut VolumeSpec| {
            spec.options.insert(key.to_owned(), value.to_owned());
        };
        self.reconfigure(set).await;
    }

    async fn reconfigure(&self, change: impl FnOnce(&mut VolumeSpec)) {
        let pool = self.nodes.lock().await.pool.clone();
        let mut spec = pool.spec();
        change(&mut spec);
        let from = self.any_node().await;
        if !pool.propose_spec(from, spec) {
            self.journal.note("the pool does not agree".to_owned());
        }
    }
}
