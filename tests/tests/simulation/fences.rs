//! Two nodes that fence each other (ONE-2): a command that works, fails, hangs, or works and says
//! otherwise.

use std::time::Duration;

use protocol::volume::VolumeSpec;
use tokio::sync::mpsc;

use super::cluster::Shot;
use super::faults::{Faults, Nodes, millis, serving};
use super::network::Place;
use super::random::Random;

/// Carries out fence commands, for ever.
pub(crate) async fn carry_out(
    mut shots: mpsc::UnboundedReceiver<Shot>,
    nodes: Nodes,
    random: Random,
) {
    while let Some(shot) = shots.recv().await {
        tokio::task::spawn_local(one(shot, Nodes::clone(&nodes), random.fork()));
    }
}

async fn one(shot: Shot, nodes: Nodes, random: Random) {
    let named =
        |(key, value): &&(&'static str, String)| (*key == "CAIRN_NODE").then(|| value.clone());
    let node = shot.order.environment.iter().find_map(|pair| named(&pair));
    let target = {
        let spec: VolumeSpec = nodes.lock().await.pool.spec();
        let mut members = spec.members();
        let found = members.find(|(_, it)| Some(&it.node_name) == node.as_ref());
        found.map(|(place, _)| place)
    };
    let Some(target) = target else {
        let _ = shot.answer.send(Err("nobody has that name".to_owned()));
        return;
    };
    let takes = millis(random.within(20..500));
    let failed = |why: &str| Err(why.to_owned());
    let answer = match random.within(0..10) {
        0..5 => {
            tokio::time::sleep(takes).await;
            shoot(&nodes, &random, shot.from, target).await;
            Ok(())
        }
        5..8 => {
            tokio::time::sleep(takes).await;
            failed("no power strip answers")
        }
        8 => {
            tokio::time::sleep(shot.order.within).await;
            if random.one_in(2) {
                // The strip works on what it was told, after nobody waits for it any more.
                tokio::task::spawn_local(async move {
                    tokio::time::sleep(takes).await;
                    shoot(&nodes, &random, shot.from, target).await;
                });
            }
            failed("it did not end in time")
        }
        _ => {
            shoot(&nodes, &random, shot.from, target).await;
            failed("it works and says that it does not")
        }
    };
    let _ = shot.answer.send(answer);
}

/// The node's process is gone, at once, and comes back later.
async fn shoot(nodes: &Nodes, random: &Random, from: Place, target: Place) {
    let mut cluster = nodes.lock().await;
    cluster
        .journal
        .note(format!("node{} shoots node{}", from + 1, target + 1));
    if cluster.is_running(target) {
        cluster.kill(target).await;
    }
    drop(cluster);
    let (nodes, pause) = (Nodes::clone(nodes), millis(random.within(200..6000)));
    tokio::task::spawn_local(async move {
        tokio::time::sleep(pause).await;
        let mut cluster = nodes.lock().await;
        if !cluster.is_running(target) {
            cluster.start(target);
        }
    });
}

impl Faults {
    /// The two lose each other: both go on, or one is stopped or dead.
    pub(super) async fn lose_each_other(&self) {
        let primary = serving(&self.nodes)
            .await
            .map_or(0, |report| report.replica);
        let victim = if self.random.one_in(3) {
            1 - primary
        } else {
            primary
        };
        let lasts: Duration = millis(self.random.within(500..7000));
        let network = self.nodes.lock().await.network.clone();
        match self.random.within(0..6) {
            0..3 => {
                self.journal
                    .note("the two are cut off from each other".to_owned());
                network.block(0, 1);
                network.block(1, 0);
                if self.random.one_in(2) {
                    network.reset(0, 1);
                }
            }
            3 => {
                self.journal
                    .note(format!("nothing of {victim} gets to the other one"));
                network.block(victim, 1 - victim);
            }
            4 => self.nodes.lock().await.freeze(victim, true),
            _ => return self.kill(victim).await,
        }
        tokio::time::sleep(lasts).await;
        self.journal.note("they reach each other again".to_owned());
        network.open(0, 1);
        network.open(1, 0);
        self.nodes.lock().await.freeze(victim, false);
    }
}
