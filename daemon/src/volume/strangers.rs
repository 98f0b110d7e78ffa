//! Who is not taken for a replica, and what is said about it: other versions, other bricks, and two
//! processes that both say that they are the same replica.

use protocol::ids::{BrickId, NodeId};
use protocol::volume::VolumeSpec;
use replication::machine::{Phase, Standing};
use storage::Medium;

use super::driver::{Driver, Shared};
use super::links::LinkError;
use super::words;

/// Starts of a replica's process that are remembered.
const STARTS_MAX: usize = 64;

/// What is known of one replica's process.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The start that was met last.
    current: Option<u64>,
    /// Those before, which must be over.
    past: Vec<u64>,
    /// Why it is not taken on, told already.
    refusal: Option<String>,
    /// Of this replica itself: what stands there was so a second ago, and is told.
    told: bool,
}

impl Seen {
    /// Why the replica is not taken on.
    pub(super) fn refusal(&self) -> Option<&String> {
        self.refusal.as_ref()
    }

    /// Whether that start of its process is over, as a later one was met.
    pub(super) fn is_over(&self, incarnation: u64) -> bool {
        self.past.contains(&incarnation)
    }

    /// This start is the present one.
    pub(super) fn met(&mut self, incarnation: u64) {
        self.refusal = None;
        if self.current != Some(incarnation) {
            self.end_current();
            self.current = Some(incarnation);
        }
    }

    fn end_current(&mut self) {
        if let Some(before) = self.current.take() {
            if self.past.len() >= STARTS_MAX {
                self.past.remove(0);
            }
            self.past.push(before);
        }
    }
}

impl LinkError {
    /// What an operator should know, with what to do; `None`: it passes by itself.
    fn for_operators(&self, node: &str, volume: &str) -> Option<String> {
        let advice = match self {
            Self::Version { .. } => {
                "install the same version on both nodes, first where the replica is secondary"
                    .to_owned()
            }
            Self::OtherBrick { .. } | Self::OtherVolume { .. } | Self::Place { .. } => format!(
                "bricks may have been exchanged, copied or restored: compare `cairn brick info` on \
                 both nodes with `cairn volume info {volume}`, and put each brick back where it \
                 belongs"
            ),
            Self::Twice => format!(
                "a machine or its directories may have been copied: stop the copy, and start the \
                 daemon of {node} again"
            ),
            _ => return None,
        };
        Some(format!("{node} is not taken on: {self}; {advice}"))
    }

    /// Whether nobody who is what they say would have sent that.
    fn is_malformed(&self) -> bool {
        matches!(
            self,
            Self::Frame(_)
                | Self::Decode(_)
                | Self::Packed(_)
                | Self::Json(_)
                | Self::Foreign
                | Self::BeyondReach { .. }
        )
    }
}

/// Whether a hello names what the volume has at that place.
pub(super) fn check_names(
    spec: &VolumeSpec,
    me: usize,
    (volume, replica, brick): (protocol::ids::VolumeId, usize, BrickId),
    peer: Option<NodeId>,
) -> Result<(), LinkError> {
    if volume != spec.id {
        let ours = spec.id;
        return Err(LinkError::OtherVolume {
            theirs: volume,
            ours,
        });
    }
    let named = spec.replicas.get(replica);
    let Some(named) = named.filter(|_| replica != me && spec.is_member(replica)) else {
        return Err(LinkError::Place {
            theirs: replica,
            ours: me,
        });
    };
    let found = peer.unwrap_or(NodeId::NONE);
    if found != named.node {
        return Err(LinkError::Identity {
            expected: named.node,
            found,
        });
    }
    if brick != named.brick {
        return Err(LinkError::OtherBrick {
            theirs: brick,
            expected: named.brick,
        });
    }
    Ok(())
}

/// A start of a replica's process spoke that must be over. It may have spoken before it ended; if it
/// goes on speaking, two processes have the replica's identity. Nobody can say which of them is the
/// right one, and what one has the other may lack: neither is taken on before it is started again.
pub(super) fn two_at_once<M: Medium>(shared: &Shared<M>, replica: usize) -> LinkError {
    let mut d = shared.borrow_mut();
    d.seen[replica].end_current();
    d.link_lost(replica, None);
    LinkError::Twice
}

impl<M: Medium> Driver<M> {
    /// A history from the future: nobody serves, and a brick, this one or one that was met, is in a
    /// term that the pool never gave, as far as this node knows. What came after the pool's state
    /// may be confirmed and in that brick alone, so nobody else takes the role. Where the bricks
    /// decide: one that was met is in a later term than this one. `None` while somebody serves: then
    /// that term was given, and this node hears of it later.
    pub(super) fn a_later_history(&self) -> Option<String> {
        let places = 0..self.links.len();
        let follows = |place| self.machine.standing(place) == Some(Standing::MyPrimary);
        let reports = || {
            let met = |place| Some((place, self.machine.report_of(place)?));
            places.clone().filter_map(met)
        };
        let served = self.machine.serves()
            || places.clone().any(follows)
            || reports().any(|(_, report)| report.serving);
        if served {
            return None;
        }
        let name = |place: usize| &self.spec.replicas[place].node_name;
        let volume = &self.spec.name;
        let (own, last) = (self.machine.durable().term, self.machine.last());
        let Some(agreed) = self.machine.agreed() else {
            let (place, latest) = reports().max_by_key(|(_, report)| report.term)?;
            let theirs = (name(place).as_str(), latest.term, latest.last);
            let waits = self.machine.phase() == Phase::Following;
            return (waits && latest.term > own)
                .then(|| words::later_primary(theirs, (name(self.me), own, last), volume));
        };
        let terms = reports().map(|(place, report)| (place, report.term));
        let (place, term) = terms
            .chain([(self.me, own)])
            .max_by_key(|(_, term)| *term)?;
        let given = agreed.term;
        (term > given).then(|| words::beyond_the_pool(name(place), term, given, volume))
    }

    /// Tells operators of that, once it has been so for a second.
    pub(super) fn tell_of_the_future(&mut self) {
        let found = self.a_later_history();
        let own = &mut self.seen[self.me];
        let stays = found.is_some() && own.refusal == found;
        let news = stays && !std::mem::replace(&mut own.told, stays);
        own.told = stays;
        own.refusal.clone_from(&found);
        if let Some(text) = found.filter(|_| news) {
            let pool = self.machine.agreed().is_some();
            let kind = if pool {
                "beyond_the_pool"
            } else {
                "later_primary"
            };
            self.host.event(kind, &self.spec.name, &text);
        }
    }

    /// The replica that a connection belongs to, as its proven identity says.
    pub(super) fn replica_of(&self, peer: Option<NodeId>) -> Option<usize> {
        let mut members = self.spec.members();
        let found =
            members.find(|(place, replica)| *place != self.me && Some(replica.node) == peer);
        found.map(|(place, _)| place)
    }

    /// Tells operators why a replica is not taken on, once each reason.
    pub(super) fn note_refusal(&mut self, replica: usize, error: &LinkError) {
        let node = self.spec.replicas[replica].node_name.clone();
        if error.is_malformed() {
            let text = format!("the connection to {node} was closed: {error}");
            self.host.event("link_malformed", &self.spec.name, &text);
        }
        let Some(text) = error.for_operators(&node, &self.spec.name) else {
            return;
        };
        if self.seen[replica].refusal.as_ref() != Some(&text) {
            self.host.event("replica_refused", &self.spec.name, &text);
            self.seen[replica].refusal = Some(text);
        }
    }
}
