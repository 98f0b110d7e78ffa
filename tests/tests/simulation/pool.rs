//! The pool as a replica sees it: one agreement about roles and one about the volume's configuration,
//! changed by compare-and-set, which a node learns and changes only while it reaches a majority of
//! the voters.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use protocol::volume::{REPLICAS_MAX, VolumeSpec};
use replication::machine::{Agreed, Proposed};
use tokio::sync::{mpsc, oneshot, watch};

use super::network::{Network, Place};
use super::random::Random;

/// Voters; replicas beyond the third do not vote.
const VOTERS: usize = 3;
/// An answer that does not come is given up after this.
const UNDECIDED_AFTER: Duration = Duration::from_secs(1);

struct State {
    agreed: Option<Agreed>,
    spec: VolumeSpec,
    /// What each node knows: both of one moment, as they stand in one log.
    known: Vec<(Option<Agreed>, VolumeSpec)>,
    tell: Vec<watch::Sender<()>>,
    /// Whose process runs and is not stopped.
    awake: Vec<bool>,
}

/// A proposal on its way.
pub(crate) struct Proposal {
    from: Place,
    next: Agreed,
    answer: oneshot::Sender<Proposed>,
}

/// The pool. Clones are one pool.
#[derive(Clone)]
pub(crate) struct Pool {
    state: Arc<Mutex<State>>,
    network: Network,
    random: Random,
    proposals: mpsc::UnboundedSender<Proposal>,
}

impl Pool {
    /// A pool, and the proposals that [`Pool::run`] takes.
    pub(crate) fn new(
        spec: VolumeSpec,
        agreed: Option<Agreed>,
        network: Network,
        random: Random,
    ) -> (Self, mpsc::UnboundedReceiver<Proposal>) {
        let (proposals, to_decide) = mpsc::unbounded_channel();
        let nodes = REPLICAS_MAX;
        let state = State {
            agreed,
            known: vec![(agreed, spec.clone()); nodes],
            spec,
            tell: (0..nodes).map(|_| watch::channel(()).0).collect(),
            // Voters without a brick are never away.
            awake: vec![true; nodes],
        };
        let pool = Self {
            state: Arc::new(Mutex::new(state)),
            network,
            random,
            proposals,
        };
        (pool, to_decide)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node's process runs, or not.
    pub(crate) fn set_awake(&self, node: Place, awake: bool) {
        self.state().awake[node] = awake;
    }

    /// What is agreed.
    pub(crate) fn agreed(&self) -> Option<Agreed> {
        self.state().agreed
    }

    /// The pool's state is put back to an older one everywhere, or roles are the bricks' from now on.
    pub(crate) fn set_back(&self, agreed: Option<Agreed>, spec: VolumeSpec) {
        let mut state = self.state();
        state.agreed = agreed;
        let nodes = state.known.len();
        state.known = vec![(agreed, spec.clone()); nodes];
        state.spec = spec;
    }

    /// What a node knows of the agreement.
    pub(crate) fn known(&self, node: Place) -> Option<Agreed> {
        self.state().known[node].0
    }

    /// The volume's configuration.
    pub(crate) fn spec(&self) -> VolumeSpec {
        self.state().spec.clone()
    }

    /// What a node knows of it.
    pub(crate) fn known_spec(&self, node: Place) -> VolumeSpec {
        self.state().known[node].1.clone()
    }

    /// Has the pool agree on another configuration, which was made from the present one. No brick
    /// is taken away that the pool counts as in sync.
    pub(crate) fn propose_spec(&self, from: Place, mut next: VolumeSpec) -> bool {
        if !self.reaches_majority(from) {
            return false;
        }
        let mut state = self.state();
        let members = next.member_mask();
        let counted = state.agreed.map_or(0, |agreed| agreed.in_sync.0);
        if next.version != state.spec.version || counted & !members != 0 {
            return false;
        }
        next.version += 1;
        state.spec = next;
        drop(state);
        self.learn(from);
        true
    }

    /// Wakes when what the node knows changed.
    pub(crate) fn changes(&self, node: Place) -> watch::Receiver<()> {
        self.state().tell[node].subscribe()
    }

    /// Asks for a change in the node's name.
    pub(crate) fn propose(&self, from: Place, next: Agreed) -> oneshot::Receiver<Proposed> {
        let (answer, wait) = oneshot::channel();
        let _ = self.proposals.send(Proposal { from, next, answer });
        wait
    }

    /// Whether the node reaches a majority of the voters, both ways.
    fn reaches_majority(&self, node: Place) -> bool {
        let state = self.state();
        let reached = (0..VOTERS).filter(|voter| {
            let there = *voter == node
                || (self.network.is_open(node, *voter) && self.network.is_open(*voter, node));
            there && state.awake[*voter]
        });
        reached.count() * 2 > VOTERS && state.awake[node]
    }

    /// Decides proposals, and tells the nodes, for ever.
    pub(crate) async fn run(self, mut proposals: mpsc::UnboundedReceiver<Proposal>) {
        let mut ticks = tokio::time::interval(Duration::from_millis(25));
        loop {
            tokio::select! {
                biased;
                proposal = proposals.recv() => {
                    let Some(proposal) = proposal else { return };
                    tokio::task::spawn_local(self.clone().decide(proposal));
                }
                _ = ticks.tick() => self.spread(),
            }
        }
    }

    /// Every node that reaches a majority learns what is agreed, most of the time.
    fn spread(&self) {
        let behind: Vec<Place> = {
            let state = self.state();
            let now = (state.agreed, state.spec.version);
            let known = state
                .known
                .iter()
                .map(|(agreed, spec)| (*agreed, spec.version));
            let nodes = known.enumerate().filter(|(_, known)| *known != now);
            nodes.map(|(node, _)| node).collect()
        };
        for node in behind {
            if !self.random.one_in(3) && self.reaches_majority(node) {
                self.learn(node);
            }
        }
    }

    fn learn(&self, node: Place) {
        let mut state = self.state();
        state.known[node] = (state.agreed, state.spec.clone());
        state.tell[node].send_replace(());
    }

    async fn decide(self, proposal: Proposal) {
        let Proposal { from, next, answer } = proposal;
        let slow = if self.random.one_in(20) { 300 } else { 15 };
        tokio::time::sleep(Duration::from_millis(self.random.within(2..slow))).await;
        // To the leader, from there to a majority, and back.
        tokio::time::sleep(2 * self.network.far()).await;
        if !self.reaches_majority(from) {
            tokio::time::sleep(UNDECIDED_AFTER).await;
            let _ = answer.send(Proposed::Undecided);
            return;
        }
        let outcome = {
            let mut state = self.state();
            let current = state
                .agreed
                .is_some_and(|now| now.version + 1 == next.version);
            // Nobody counts who is no member.
            let current = current && next.in_sync.0 & !state.spec.member_mask() == 0;
            if current {
                state.agreed = Some(next);
                Proposed::Agreed
            } else {
                Proposed::Refused
            }
        };
        if self.random.one_in(25) {
            // The answer is lost on its way.
            tokio::time::sleep(UNDECIDED_AFTER).await;
            let _ = answer.send(Proposed::Undecided);
            return;
        }
        tokio::time::sleep(Duration::from_millis(self.random.within(1..5))).await;
        if outcome == Proposed::Agreed {
            self.learn(from);
        }
        let _ = answer.send(outcome);
    }
}
