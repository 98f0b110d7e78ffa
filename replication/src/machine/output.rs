//! What goes in and comes out of the machine.

use std::time::Duration;

use protocol::units::{Sequence, Term};
use protocol::volume::Protocol;

use super::fencing::Fencing;
use super::quorum::Agreed;
use crate::decision::{Decision, Rule};
use crate::split::{Policy, Split};
use crate::state::{DurableState, Membership, RoleReason, Welcome};

/// What does not change while the machine lives, but for the deadlines.
#[derive(Debug, Clone)]
pub struct Config {
    /// This replica's index.
    pub me: usize,
    /// Replicas in the volume.
    pub count: usize,
    /// How long a primary that comes back waits for the other members of its last in-sync set
    /// before it goes on without them.
    pub activation_wait: Duration,
    /// A member that acknowledges nothing, or says nothing, for so long leaves the set (FO-5).
    pub replica_deadline: Duration,
    /// What the pool agreed, where it decides about roles (`quorum=majority`).
    pub agreed: Option<Agreed>,
    /// A follower whose primary says nothing for so long asks for the role.
    pub claim_after: Duration,
    /// With fewer replicas in sync, this one included, nothing is confirmed.
    pub min_in_sync: u32,
    /// On what evidence an operation is confirmed.
    pub protocol: Protocol,
    /// Under A: bytes of records that a replica may lack before it is left behind. One record is
    /// always let through.
    pub queue_bytes_max: u64,
    /// What happens to a split brain.
    pub split_policy: Policy,
    /// Where the bricks decide about roles: how a replica that is gone is kept from serving.
    pub fencing: Option<Fencing>,
    /// Random, different at each start: generations are made from it.
    pub entropy: [u8; 16],
}

/// Where the machine stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Follows, or waits for a primary.
    Following,
    /// Was primary; waits for the members of the in-sync set to report.
    Waiting {
        /// Until then.
        until: Duration,
    },
    /// Fetches the longer tail that a member has.
    Pulling {
        /// From this replica.
        from: usize,
    },
    /// The pool was asked for the role.
    Claiming {
        /// Why.
        reason: RoleReason,
    },
    /// The decision to serve is being made durable.
    Activating,
    /// Orders and serves.
    Serving,
    /// Orders nothing more; hands the role over when all is in place.
    HandingOver {
        /// To this replica.
        to: usize,
    },
}

/// A flush under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlushId(pub u64);

/// What the driver has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Make this durable in the brick, then call [`super::Machine::decided`].
    Decide(Box<DurableState>),
    /// Everything up to here is confirmed: answer.
    Confirmed(Sequence),
    /// This flush is complete: answer.
    Flushed(FlushId),
    /// Mark dirty for `replica` what the journal's records after `since` touched (as far back as
    /// it is kept: older marks stand in the map).
    MarkDirtySince {
        /// For whom.
        replica: usize,
        /// After this.
        since: Sequence,
    },
    /// Forget all marks for `replica`: it has everything.
    ClearDirty {
        /// For whom.
        replica: usize,
    },
    /// Find out what could help `replica`, whose last common record is `common` (`None`: there
    /// is none) and call [`super::Machine::judge`].
    Assess {
        /// Whom.
        replica: usize,
        /// Last common record.
        common: Option<Sequence>,
    },
    /// Ask the replica what it has in doubt since `common`, mark that dirty, then call
    /// [`super::Machine::doubts_known`]. It keeps its own state until then, so that nothing in doubt is
    /// forgotten on either side by a crash in between.
    AskDoubts {
        /// Whom.
        replica: usize,
        /// The last common record.
        common: Sequence,
        /// [`crate::state::Report::revision`] that was decided on.
        revision: u64,
    },
    /// Send this first, then do as `decision` says, then call [`super::Machine::source_done`]. Live
    /// records follow from [`Welcome::at`] on, or after the journal's tail was sent.
    Source {
        /// To whom.
        replica: usize,
        /// What.
        decision: Decision,
        /// The message.
        welcome: Box<Welcome>,
    },
    /// Send this: the replica is in sync.
    Joined {
        /// To whom.
        replica: usize,
        /// The message.
        membership: Box<Membership>,
    },
    /// Send this to a replica that follows.
    Membership {
        /// To whom.
        replica: usize,
        /// The message.
        membership: Box<Membership>,
    },
    /// Ask for the records after `after`, then call [`super::Machine::pulled`].
    Pull {
        /// Whom.
        from: usize,
        /// After which.
        after: Sequence,
    },
    /// The replica and this one have nothing to do with each other until someone decides.
    Refused {
        /// Which replica.
        replica: usize,
        /// Why.
        rule: Rule,
    },
    /// The replica and this one both went on as primary (ONE-3).
    Split {
        /// Which replica.
        replica: usize,
        /// What each has, and who stays.
        split: Box<Split>,
    },
    /// Make sure that the replica, which is gone, cannot serve, then call
    /// [`super::Machine::fenced`].
    Fence {
        /// Which replica.
        replica: usize,
    },
    /// Close the connection to this replica.
    Disconnect {
        /// Which replica.
        replica: usize,
        /// Why.
        reason: DropReason,
    },
    /// This replica serves from now on.
    Serving {
        /// In this term.
        term: Term,
        /// Why.
        reason: RoleReason,
    },
    /// This replica serves no more: clients go elsewhere.
    StoppedServing {
        /// Why.
        reason: RoleReason,
    },
    /// As target: set the brick's applied sequence to this before live records are applied.
    BeginResync {
        /// Live records begin after this.
        at: Sequence,
    },
    /// Tell this replica that the role is its own.
    HandOver {
        /// Whom.
        to: usize,
        /// Its term.
        term: Term,
        /// What the pool agreed, where it decides.
        agreed: Option<Agreed>,
    },
    /// Have the pool agree on this if it still is at the version before, tell what it agreed by
    /// [`super::Machine::agreement`], then call [`super::Machine::proposed`].
    Propose(Agreed),
    /// A planned promotion ended.
    HandedOver {
        /// Whether it took place.
        done: bool,
    },
}

/// Why a link is closed by the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// Nothing was heard within the deadline.
    Silent,
    /// It does not acknowledge within the deadline.
    Slow,
    /// It is of an earlier term than this replica knows.
    StaleTerm,
    /// The role moved: they tell each other anew where they stand.
    RoleMoved,
    /// The volume's replicas changed: it leaves, or another brick takes its place.
    Leaving,
    /// Under A its queue is beyond the bound: it is left behind and catches up later.
    Ahead,
}

impl DropReason {
    /// Every reason, for tests.
    pub const ALL: [Self; 6] = [
        Self::Silent,
        Self::Slow,
        Self::StaleTerm,
        Self::RoleMoved,
        Self::Leaving,
        Self::Ahead,
    ];

    /// Its name in logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Slow => "slow",
            Self::StaleTerm => "stale-term",
            Self::RoleMoved => "role-moved",
            Self::Leaving => "leaving",
            Self::Ahead => "ahead",
        }
    }
}

/// Why a request to the machine is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// This replica does not serve.
    #[error("this replica is not the serving primary")]
    NotServing,
    /// That replica is not in sync.
    #[error("that replica is not in sync")]
    NotInSync,
    /// That replica is not connected.
    #[error("that replica is not connected")]
    NotConnected,
    /// A hand-over is under way.
    #[error("the role is being handed over")]
    HandingOver,
    /// Not by force where the pool decides.
    #[error("the pool decides about roles")]
    PoolDecides,
    /// It is primary already.
    #[error("this replica is primary already")]
    AlreadyPrimary,
    /// A primary is connected: it can hand its role over.
    #[error("the primary is connected and serves")]
    PrimaryServes,
    /// Its data is no picture of any time.
    #[error("this replica's data is not whole")]
    NotWhole,
    /// Records that it has in memory may be confirmed and are not applied yet.
    #[error("this replica is still applying what it received")]
    StillApplying,
    /// The message does not fit what this replica knows.
    #[error("the message does not fit this replica's state")]
    OutOfPlace,
}

impl Refusal {
    /// Every refusal, for tests.
    pub const ALL: [Self; 10] = [
        Self::NotServing,
        Self::NotInSync,
        Self::NotConnected,
        Self::HandingOver,
        Self::PoolDecides,
        Self::AlreadyPrimary,
        Self::PrimaryServes,
        Self::NotWhole,
        Self::StillApplying,
        Self::OutOfPlace,
    ];

    /// Its name in logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NotServing => "not-serving",
            Self::NotInSync => "not-in-sync",
            Self::NotConnected => "not-connected",
            Self::HandingOver => "handing-over",
            Self::PoolDecides => "pool-decides",
            Self::AlreadyPrimary => "already-primary",
            Self::PrimaryServes => "primary-serves",
            Self::NotWhole => "not-whole",
            Self::StillApplying => "still-applying",
            Self::OutOfPlace => "out-of-place",
        }
    }
}

/// How a connected replica stands towards this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// They have met; nothing was decided.
    Met,
    /// It is asked what it has in doubt, before it is brought up to date.
    Asked(Decision, Rule),
    /// This primary brings it up to date.
    Sourcing(Rule),
    /// It was sent everything; it joins when it has acknowledged up to here.
    Catching {
        /// Up to here.
        until: Sequence,
        /// How it came so far.
        rule: Rule,
    },
    /// It is in the in-sync set.
    InSync,
    /// Nothing can be done with it.
    Refused(Rule),
    /// It is the primary that this replica follows.
    MyPrimary,
}
