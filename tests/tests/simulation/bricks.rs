//! Bricks that are added, removed and replaced, and what the nodes' managers do about that: they
//! tell replicas what the pool agreed, start and end them, and have the pool agree that a brick is
//! gone once the primary has let go of it.

use std::rc::Rc;
use std::time::Duration;

use protocol::ids::BrickId;
use protocol::node_rpc::VolumeCommand;
use protocol::volume::ReplicaSpec;

use super::cluster::node_id;
use super::faults::{Faults, Nodes, millis, serving};
use super::network::Place;

/// How often a node's manager looks at what it knows.
const LOOKS: Duration = Duration::from_millis(40);
/// Most bricks at once, and places that are used in all: the rest belong to nobody.
const BRICKS_MAX: usize = 4;
const PLACES_MAX: usize = 7;

/// The managers of all nodes, for ever.
pub(crate) async fn manage(nodes: Nodes) {
    loop {
        tokio::time::sleep(LOOKS).await;
        let count = nodes.lock().await.nodes.len();
        for place in 0..count {
            look_after(&nodes, place).await;
        }
    }
}

async fn look_after(nodes: &Nodes, place: Place) {
    let mut cluster = nodes.lock().await;
    if !cluster.is_running(place) || cluster.is_frozen(place) {
        return;
    }
    let spec = cluster.pool.known_spec(place);
    if !spec.is_member(place) {
        cluster.retire(place).await;
        return;
    }
    cluster.tell_spec(place, &spec);
    if spec.layout.leaving == 0 || !cluster.begin_letting_go(place) {
        return;
    }
    let Some(handle) = cluster.handle(place) else {
        return;
    };
    drop(cluster);
    let nodes = Rc::clone(nodes);
    tokio::task::spawn_local(async move {
        let asked = handle.command(VolumeCommand::LetGo {});
        let answer = tokio::time::timeout(millis(1000), asked).await;
        let mut cluster = nodes.lock().await;
        if let Ok(Ok(answer)) = answer
            && answer["let_go"] == true
            && answer["version"] == spec.version
        {
            let mut next = spec.clone();
            next.layout.removed |= std::mem::take(&mut next.layout.leaving);
            next.layout.version += 1;
            if cluster.pool.propose_spec(place, next) {
                cluster.journal.note("the brick is gone".to_owned());
            }
        }
        cluster.end_letting_go(place);
    });
}

impl Faults {
    /// A brick comes, goes, or takes the place of another, as far as an operator may have that.
    pub(super) async fn bricks(&self) {
        let spec = self.nodes.lock().await.pool.spec();
        let members: Vec<Place> = spec.members().map(|(place, _)| place).collect();
        if spec.layout.leaving != 0 {
            return;
        }
        let room = members.len() < BRICKS_MAX && spec.replicas.len() < PLACES_MAX;
        let (add, remove) = match self.random.within(0..3) {
            0 => (true, false),
            1 => (false, true),
            _ => (true, true),
        };
        let add = add && room;
        // Two stay at least: `min-in-sync` may ask for as many.
        let remove = remove && members.len() > 2 - usize::from(add);
        let Some(primary) = serving(&self.nodes).await else {
            return;
        };
        let mut next = spec.clone();
        next.layout.version += 1;
        if remove {
            let place = members[self.random.index(members.len())];
            // Every one that stays must have everything (BAD-5).
            let has = |other: &Place| {
                let peer = |peer: &&protocol::report::PeerReport| peer.replica == *other;
                *other == primary.replica
                    || primary.peers.iter().find(peer).is_some_and(|p| p.in_sync)
            };
            let staying: Vec<Place> = members.into_iter().filter(|it| *it != place).collect();
            if !staying.iter().all(has) {
                return;
            }
            if place == primary.replica && !self.hand_over(place, staying[0]).await {
                return;
            }
            next.layout.leaving |= 1 << place;
        }
        if add {
            let place = next.replicas.len();
            next.replicas.push(ReplicaSpec {
                node: node_id(place),
                node_name: format!("node{}", place + 1),
                path: "/brick".to_owned(),
                brick: BrickId(self.random.bytes()),
            });
        }
        if !add && !remove {
            return;
        }
        let mut cluster = self.nodes.lock().await;
        self.journal.note(format!(
            "bricks: {} places, leaving {:b}",
            next.replicas.len(),
            next.layout.leaving
        ));
        let place = next.replicas.len() - 1;
        if add {
            cluster.add_node(&next, place);
        }
        // An operator's node is one that reaches the others.
        if !cluster.pool.propose_spec(primary.replica, next) {
            self.journal.note("the pool does not agree".to_owned());
            if add {
                cluster.nodes.pop();
            }
            return;
        }
        drop(cluster);
        if add {
            self.start_after(place, millis(self.random.within(50..600)));
        }
    }

    async fn hand_over(&self, from: Place, to: Place) -> bool {
        let Some(handle) = self.nodes.lock().await.handle(from) else {
            return false;
        };
        let command = VolumeCommand::Promote { to, force: false };
        let done = tokio::time::timeout(millis(3000), handle.command(command)).await;
        self.journal
            .note(format!("node{} hands over to {to}: {done:?}", from + 1));
        matches!(done, Ok(Ok(_)))
    }
}
