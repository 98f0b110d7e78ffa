//! How patient the group is. Its times fit a switch between the nodes, or a long line: what volumes
//! say of their links counts, and what is measured. With the short times no message would get
//! through a long line before it is given up, so nobody could be admitted over one, or elected, to
//! be told about links.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use protocol::ids::NodeId;
use protocol::link::{LinkProfile, LinkTimes};
use protocol::node_rpc::NodeRequest;
use protocol::options::Options;

use super::{GroupError, PoolState, RaftGroup};
use crate::rpc::NodeClients;

/// How often the way to each member is measured.
const MEASURE_EVERY: Duration = Duration::from_secs(10);
/// Questions of one measurement. The quickest answer counts: a busy node is not a distant one.
const QUESTIONS: usize = 5;
/// How long one of them, with a new connection for it, may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// Whoever asked for the change that asks for another pace is answered first.
const SETTLES: Duration = Duration::from_millis(500);

/// What the group's patience goes by.
pub(super) struct Pace {
    chosen: Mutex<LinkProfile>,
    /// The quickest answer of each member when it was last measured.
    trips: Mutex<BTreeMap<NodeId, Duration>>,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
}

impl Pace {
    /// For a pool in this state, of whose links nothing is measured yet.
    pub(super) fn of(state: &PoolState) -> Self {
        let trips = BTreeMap::new();
        Self {
            chosen: Mutex::new(wanted(state, &trips, LinkProfile::Lan)),
            trips: Mutex::new(trips),
            changing: tokio::sync::Mutex::new(()),
        }
    }

    /// What is in force.
    pub(super) fn profile(&self) -> LinkProfile {
        *self.chosen.lock()
    }
}

/// A message of the group, its answer, and what both need on busy machines, must fit between two
/// heartbeats.
fn is_far(trip: Duration) -> bool {
    trip > LinkProfile::Lan.times().pool_heartbeat / 2
}

/// Long times as soon as one volume or one member needs them: a member that is given up on stands
/// for election again and again. What a node was told when it entered stands until it has measured.
fn wanted(state: &PoolState, trips: &BTreeMap<NodeId, Duration>, now: LinkProfile) -> LinkProfile {
    let is_measured = !state.entering && (!trips.is_empty() || state.members.len() < 2);
    let mut links = state.volumes.values().map(|spec| &spec.options);
    let told = links.any(|set| Options::new(set).link() == LinkProfile::Wan);
    if told || trips.values().copied().any(is_far) {
        LinkProfile::Wan
    } else if is_measured {
        LinkProfile::Lan
    } else {
        now
    }
}

/// The quickest of some answers; `None`: not all came.
async fn measure(
    clients: &NodeClients,
    start: u64,
    node: NodeId,
    address: &str,
) -> Option<Duration> {
    let ping = NodeRequest::Ping { start };
    let mut quickest = None;
    // The first one may have to connect.
    for _ in 0..=QUESTIONS {
        let asked = Instant::now();
        let answer = clients.call(node, address, &ping, ANSWER_WITHIN).await;
        let took = asked.elapsed();
        answer.ok()?;
        quickest = Some(quickest.map_or(took, |least: Duration| least.min(took)));
    }
    quickest
}

impl RaftGroup {
    /// Whether the group at the end of a line with this round trip needs the times for long lines:
    /// for the line, or as the rest of the pool has them.
    pub(crate) fn looks_far(&self, trip: Duration) -> bool {
        is_far(trip) || self.pace.profile() == LinkProfile::Wan
    }

    /// Takes the times for long lines at the next start, before anything is measured: with the
    /// short ones this node would stand for election again and again in the pool that it enters.
    pub(crate) fn expect_long_links(&self) {
        *self.pace.chosen.lock() = LinkProfile::Wan;
    }

    /// The times that fit the pool's links.
    #[must_use]
    pub fn times(&self) -> LinkTimes {
        self.pace.profile().times()
    }

    /// Keeps the group's times fit for its links, until the group is shut down.
    pub(crate) async fn keep_pace(self: Arc<Self>) {
        let mut changes = self.store.subscribe();
        loop {
            self.measure_members().await;
            if self.wants_another_pace() {
                tokio::time::sleep(SETTLES).await;
                match self.change_pace().await {
                    Ok(()) => {}
                    Err(GroupError::Stopped { .. }) => return,
                    Err(error) => {
                        tracing::error!(%error, "this node takes no part in the pool any more");
                    }
                }
            }
            let again = tokio::time::timeout(MEASURE_EVERY, changes.changed()).await;
            if matches!(again, Ok(Err(_))) {
                return;
            }
        }
    }

    /// Measures the way to a node that is about to be admitted, and changes the times if it is long.
    pub(super) async fn fit_pace_to(&self, node: NodeId, address: &str) -> Result<(), GroupError> {
        if let Some(trip) = measure(&self.clients, self.this_start, node, address).await {
            self.pace.trips.lock().insert(node, trip);
        }
        if self.wants_another_pace() {
            self.change_pace().await?;
            self.wait_for_leader(super::AGREE_WITHIN).await;
        }
        Ok(())
    }

    /// What looks far now and did not before is looked at once more: a busy machine may answer late
    /// for a while.
    async fn measure_members(&self) {
        let near = self.pace.profile() == LinkProfile::Lan;
        self.measure_once().await;
        if near && self.wants_another_pace() {
            self.measure_once().await;
        }
    }

    async fn measure_once(&self) {
        let members = self.state().members.clone();
        let asked = members.iter().filter(|(node, _)| **node != self.me);
        let mut asking = tokio::task::JoinSet::new();
        for (node, member) in asked {
            let (clients, start) = (Arc::clone(&self.clients), self.this_start);
            let (node, address) = (*node, member.address.clone());
            asking.spawn(async move { (node, measure(&clients, start, node, &address).await) });
        }
        let measured = asking.join_all().await;
        let mut trips = self.pace.trips.lock();
        trips.retain(|node, _| members.contains_key(node));
        // Of one that does not answer the last measurement stands.
        trips.extend(
            measured
                .into_iter()
                .filter_map(|(node, t)| Some((node, t?))),
        );
    }

    fn wants_another_pace(&self) -> bool {
        self.pace_wanted() != self.pace.profile()
    }

    fn pace_wanted(&self) -> LinkProfile {
        let now = self.pace.profile();
        wanted(&self.state(), &self.pace.trips.lock(), now)
    }

    /// The library takes its times at its start only: it is stopped and started again on what it
    /// has stored, as when the process starts again.
    async fn change_pace(&self) -> Result<(), GroupError> {
        let _one = self.pace.changing.lock().await;
        let wanted = self.pace_wanted();
        if wanted == self.pace.profile() {
            return Ok(());
        }
        let mut running = self.running.write().await;
        let Some(old) = running.take() else {
            return Err(super::stopped(&"it was shut down"));
        };
        if let Err(error) = old.shutdown().await {
            tracing::warn!(%error, "the pool's Raft group did not stop cleanly");
        }
        *self.pace.chosen.lock() = wanted;
        *running = Some(self.start().await?);
        tracing::info!(
            links = wanted.name(),
            "the pool's times fit other links now"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::MemberState;

    fn node(id: u8) -> NodeId {
        NodeId([id; 16])
    }

    #[test]
    fn one_distant_member_or_one_volume_that_says_so_is_enough_for_long_times() {
        let state = super::super::store::fresh(protocol::ids::PoolId([1; 16])).state;
        let wanted = |state: &_, trips: &_| super::wanted(state, trips, LinkProfile::Lan);
        let near = (node(1), Duration::from_millis(2));
        let far = (node(2), Duration::from_millis(40));
        assert_eq!(wanted(&state, &BTreeMap::new()), LinkProfile::Lan);
        assert_eq!(wanted(&state, &BTreeMap::from([near])), LinkProfile::Lan);
        let both = BTreeMap::from([near, far]);
        assert_eq!(wanted(&state, &both), LinkProfile::Wan);
    }

    #[test]
    fn a_node_that_enters_over_a_long_line_is_patient_until_it_has_measured() {
        let mut state = super::super::store::fresh(protocol::ids::PoolId([1; 16])).state;
        let told = |state: &_, trips: &_| wanted(state, trips, LinkProfile::Wan);
        let none = BTreeMap::new();
        assert_eq!(told(&state, &none), LinkProfile::Lan, "it is alone");
        state.entering = true;
        assert_eq!(told(&state, &none), LinkProfile::Wan);
        state.entering = false;
        for id in 1..=2 {
            let member = MemberState {
                name: format!("node{id}"),
                address: String::new(),
                voter: true,
            };
            state.members.insert(node(id), member);
        }
        assert_eq!(told(&state, &none), LinkProfile::Wan);
        let near = BTreeMap::from([(node(1), Duration::from_millis(2))]);
        assert_eq!(told(&state, &near), LinkProfile::Lan);
    }
}
