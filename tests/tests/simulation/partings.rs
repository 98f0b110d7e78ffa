//! Split brains (ONE-3): two nodes that nobody votes for are cut off from each other, an operator
//! makes the second one primary by force, and both serve mounts of their own until they meet.

use std::rc::Rc;

use protocol::node_rpc::VolumeCommand;
use protocol::units::Sequence;
use protocol::volume::Protocol;
use tokio::time::Instant;

use super::apart::{Apart, Files, WITHIN, files_in};
use super::cluster::CLIENTS_FROM;
use super::faults::{all_in_sync, millis, serving};
use super::network::Place;
use super::world::compare_replicas;

const POLICY: &str = "split-brain-policy";
const POLICIES: [&str; 6] = [
    "manual",
    "discard-fewer-changes",
    "discard-older-primary",
    "discard-younger-primary",
    "prefer=node1",
    "prefer=node2",
];
/// Changes that each side has of its own before the two meet.
const CHANGES: usize = 3;

/// One of the two, and the mounts that reach it.
struct Side {
    node: Place,
    mounts: Vec<Place>,
}

impl Apart {
    /// A round; `None`: it went wrong.
    pub(super) async fn part(&mut self) -> Option<()> {
        let policy = POLICIES[self.random.index(POLICIES.len())];
        let (primary, other) = self.two_in_sync(&[(POLICY, policy)]).await?;
        let sides = self.draw_sides(primary, other);
        self.leave_directories().await?;
        let slow = self.fall_behind(other).await;
        if !all_in_sync(&self.scene.nodes).await {
            // It was left behind: what was confirmed meanwhile is not there.
            self.keep_up(other).await;
            self.scene.work.leave_directories(false);
            return Some(());
        }
        self.cut(&sides, slow);
        let parted_at = self.scene.work.moment();
        self.scene.work.leave_directories(false);
        self.force(other, slow).await?;
        for side in &sides {
            let has = async || {
                self.scene
                    .work
                    .changed_since(parted_at, &side.mounts, CHANGES)
            };
            self.until("each side has something of its own", has)
                .await?;
        }
        self.go_on_alone(&sides).await;
        // In some rounds they meet while their mounts write.
        let rested = !self.random.one_in(3);
        if rested {
            self.rest().await?;
        } else {
            self.leave_directories().await?;
        }
        let before = self.pictures(&sides).await;
        let kept = self.meet(&sides, policy, rested).await?;
        let gone = &before[1 - kept];
        self.judge(&sides, kept, (parted_at, rested.then_some(gone)))
            .await
    }

    /// At least one mount on each.
    fn draw_sides(&self, primary: Place, other: Place) -> [Side; 2] {
        let count = self.scene.clients.len();
        let alone = CLIENTS_FROM + self.random.index(count);
        let all = CLIENTS_FROM..CLIENTS_FROM + count;
        let rest = all.filter(|mount| *mount != alone).collect();
        let (mine, theirs) = match self.random.one_in(2) {
            true => (vec![alone], rest),
            false => (rest, vec![alone]),
        };
        [(primary, mine), (other, theirs)].map(|(node, mounts)| Side { node, mounts })
    }

    /// In some of the rounds the disk of the other one is behind: by B it received what it has not
    /// applied, and what may be confirmed.
    async fn fall_behind(&mut self, other: Place) -> bool {
        let pool = self.scene.nodes.lock().await.pool.clone();
        if pool.spec().protocol != Protocol::B || self.random.one_in(4) {
            return false;
        }
        self.faults += 1;
        self.note(format!("node{}'s disk is behind", other + 1));
        self.scene.nodes.lock().await.nodes[other]
            .medium
            .slow_down(100_000);
        let filler = self.scene.clients[0].0.clone();
        let fill = Rc::clone(&self.scene.work).fill(filler, Instant::now() + millis(900));
        tokio::task::spawn_local(fill);
        tokio::time::sleep(millis(self.random.within(200..700))).await;
        true
    }

    async fn keep_up(&self, other: Place) {
        let slowness = self.scene.shape.slowness;
        self.scene.nodes.lock().await.nodes[other]
            .medium
            .slow_down(slowness);
    }

    fn cut(&mut self, sides: &[Side; 2], at_once: bool) {
        self.faults += 1;
        let network = &self.scene.network;
        for (side, away) in [(0, 1), (1, 0)].map(|(a, b)| (&sides[a], &sides[b])) {
            self.note(format!(
                "{:?} reach node{} alone",
                side.mounts,
                side.node + 1
            ));
            for place in side.mounts.iter().chain([&side.node]) {
                network.part(*place, away.node);
            }
        }
        if at_once || self.random.one_in(2) {
            // Both learn it at once.
            network.reset(sides[0].node, sides[1].node);
        }
    }

    /// An operator makes the other one primary; where its disk is `slow`, in vain until what it
    /// received is applied.
    async fn force(&mut self, other: Place, slow: bool) -> Option<()> {
        self.faults += 1;
        let force = VolumeCommand::Promote {
            to: other,
            force: true,
        };
        let handle = self.scene.nodes.lock().await.handle(other);
        if let Some(handle) = handle.filter(|_| slow) {
            let hasty = tokio::time::timeout(millis(1000), handle.command(force.clone())).await;
            self.note(format!("a hasty operator is told: {hasty:?}"));
        } else {
            tokio::time::sleep(millis(self.random.within(0..1500))).await;
        }
        self.keep_up(other).await;
        self.command(other, force).await.map(|_| ())
    }

    /// Both serve, are killed and started again.
    async fn go_on_alone(&mut self, sides: &[Side; 2]) {
        for _ in 0..self.random.within(0..4) {
            tokio::time::sleep(millis(self.random.within(100..1500))).await;
            let node = sides[self.random.index(2)].node;
            self.faults += 1;
            self.kill(node).await;
            tokio::time::sleep(millis(self.random.within(10..800))).await;
            self.start(node).await;
        }
        tokio::time::sleep(millis(self.random.within(200..2000))).await;
    }

    /// Who has to stay by the policy, told from facts of the test's own; `None`: nobody. While the
    /// two still write it is not known who has more.
    async fn expected(&self, sides: &[Side; 2], policy: &str) -> Option<Place> {
        let [older, younger] = [sides[0].node, sides[1].node];
        let cluster = self.scene.nodes.lock().await;
        let last = |place: Place| -> Sequence { cluster.picture(place).applied() };
        match policy {
            "discard-fewer-changes" if last(older) == last(younger) => None,
            "discard-fewer-changes" if last(older) > last(younger) => Some(older),
            "discard-fewer-changes" | "discard-older-primary" => Some(younger),
            "discard-younger-primary" => Some(older),
            "prefer=node1" => Some(0),
            "prefer=node2" => Some(1),
            _ => None,
        }
    }

    /// The two meet, and one of them stays: returns its place in `sides`.
    async fn meet(&mut self, sides: &[Side; 2], policy: &str, rested: bool) -> Option<usize> {
        let nodes = [sides[0].node, sides[1].node];
        for node in nodes {
            self.start(node).await;
        }
        for node in nodes {
            let serves = async || self.report(node).await.is_some_and(|it| it.serving);
            self.until("both sides serve", serves).await?;
        }
        let mut expected = self.expected(sides, policy).await;
        let mut certain = rested || policy != "discard-fewer-changes";
        self.note(format!(
            "node{} and node{} meet",
            nodes[0] + 1,
            nodes[1] + 1
        ));
        let from = self.scene.journal.len();
        let open = |apart: &Self| {
            apart.scene.network.open(nodes[0], nodes[1]);
            apart.scene.network.open(nodes[1], nodes[0]);
        };
        if expected.is_none() && certain {
            let before = self.pictures(sides).await;
            open(self);
            self.notice(nodes, from).await?;
            self.faults_while_open(nodes).await;
            let untouched = !rested || self.pictures(sides).await == before;
            if !untouched {
                return self.wrong("a byte was overwritten before anybody decided (ONE-3)");
            }
            for node in nodes {
                self.start(node).await;
                let report = self.report(node).await?;
                if report
                    .role_reason
                    .as_deref()
                    .is_some_and(|why| why.contains("policy"))
                {
                    return self.wrong(format!("node{} was kept by {policy}", node + 1));
                }
            }
            let kept = self.settle(nodes).await?;
            (expected, certain) = (Some(kept), true);
        } else {
            open(self);
        }
        self.scene.work.hold_up(true);
        let settled = async || {
            let primary = serving(&self.scene.nodes).await.map(|it| it.replica);
            all_in_sync(&self.scene.nodes).await && primary.is_some()
        };
        self.until("one side stays and the other follows it", settled)
            .await?;
        let kept = serving(&self.scene.nodes).await?.replica;
        if certain && expected != Some(kept) {
            let text = format!("by {policy} node{} stays, and not {expected:?}", kept + 1);
            return self.wrong(text);
        }
        nodes.iter().position(|node| *node == kept)
    }

    async fn pictures(&self, sides: &[Side; 2]) -> Vec<Files> {
        let cluster = self.scene.nodes.lock().await;
        let each = sides
            .iter()
            .map(|side| files_in(&cluster.picture(side.node)));
        each.collect()
    }

    /// Both say that there is a split brain.
    async fn notice(&self, nodes: [Place; 2], from: usize) -> Option<()> {
        for node in nodes {
            let told = format!("node{} split_brain: ", node + 1);
            let noticed = async || self.scene.journal.told_since(from, &[&told]);
            self.until("the split brain is noticed", noticed).await?;
        }
        Some(())
    }

    /// They part and meet again, and are started again, while nobody has decided.
    async fn faults_while_open(&mut self, nodes: [Place; 2]) {
        for _ in 0..self.random.within(0..3) {
            self.faults += 1;
            tokio::time::sleep(millis(self.random.within(50..1200))).await;
            if self.random.one_in(2) {
                self.scene.network.reset(nodes[0], nodes[1]);
            } else {
                let node = nodes[self.random.index(2)];
                self.kill(node).await;
                tokio::time::sleep(millis(self.random.within(10..600))).await;
                self.start(node).await;
            }
        }
        tokio::time::sleep(millis(self.random.within(100..1500))).await;
    }

    /// An operator names the side that stays, or a policy that says it.
    async fn settle(&mut self, nodes: [Place; 2]) -> Option<Place> {
        let kept = self.random.index(2);
        if self.random.one_in(2) {
            let words = ["discard-younger-primary", "discard-older-primary"];
            self.configure([(POLICY, words[kept])].iter()).await;
        } else {
            self.command(nodes[kept], VolumeCommand::KeepSide {})
                .await?;
        }
        Some(nodes[kept])
    }

    /// What is there afterwards: the kept side whole, and the other one as it was, to be read.
    async fn judge(
        &mut self,
        sides: &[Side; 2],
        kept: usize,
        (parted_at, gone): (u64, Option<&Files>),
    ) -> Option<()> {
        let (stays, goes) = (&sides[kept], &sides[1 - kept]);
        let work = Rc::clone(&self.scene.work);
        work.hold_up(true);
        let end = Instant::now() + WITHIN;
        while work.under_way_of(&stays.mounts) > 0 {
            if Instant::now() >= end {
                return self.wrong("mounts of the side that stays get no answer");
            }
            tokio::time::sleep(millis(20)).await;
        }
        self.end_mounts(&goes.mounts);
        self.scene.network.reunite();
        let reader = self
            .scene
            .clients
            .iter()
            .find(|(it, _)| stays.mounts.contains(&it.place));
        let reader = reader.map(|(client, _)| client.clone())?;
        let found = self.look(&reader).await;
        work.check_side(&found, parted_at, &stays.mounts);
        let given_up = self.read_given_up(goes.node).await?;
        work.check_side(&given_up, parted_at, &goes.mounts);
        if let Some(gone) = gone {
            let brick = self.scene.nodes.lock().await.picture(goes.node);
            let point = brick.points().pop()?;
            let view = brick.view(point.id).ok()?;
            if files_in(&view) != *gone {
                return self.wrong("what was given up is kept otherwise than it was (ONE-3)");
            }
        }
        compare_replicas(&self.scene.nodes, &work).await;
        if self.random.one_in(2) {
            let dropped = self.command(goes.node, VolumeCommand::DropKept {}).await?;
            if dropped["dropped"].as_u64().is_none_or(|count| count == 0) {
                return self.wrong(format!("nothing was kept to be dropped: {dropped}"));
            }
        }
        work.begin_anew(found);
        self.mount_anew(&goes.mounts);
        Some(())
    }

    /// What a mount of the side that was given up last reads at its node.
    async fn read_given_up(&self, node: Place) -> Option<super::work::Found> {
        let report = self.report(node).await?;
        let Some(point) = report.kept.last() else {
            return self.wrong(format!("node{} keeps nothing of what it gave up", node + 1));
        };
        let spec = self.scene.nodes.lock().await.pool.spec();
        let id = daemon::volume::kept_id(spec.id, spec.replicas[node].brick, point.id);
        let mount = self.scene.mounter.mount_of(CLIENTS_FROM + 20, id).at(node);
        let keeps = tokio::task::spawn_local(mount.clone().run());
        let found = self.look(&mount).await;
        mount.leave();
        keeps.abort();
        Some(found)
    }
}
