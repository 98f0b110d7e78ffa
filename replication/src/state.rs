//! What a replica must not forget, and what it tells a replica that it meets.

use protocol::ids::BrickId;
use protocol::link::LinkProfile;
use protocol::units::{Sequence, Term, Timestamp};
use protocol::volume::{Protocol, REPLICAS_MAX, VolumeSpec};
use serde::{Deserialize, Serialize};

use crate::line::Line;
use crate::split::Policy;

/// A set of replicas, one bit an index in the volume's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Mask(pub u8);

impl Mask {
    /// The set of one replica.
    #[must_use]
    pub fn of(replica: usize) -> Self {
        Self(1 << replica)
    }
    /// The first `count` replicas.
    #[must_use]
    pub fn first(count: usize) -> Self {
        (0..count).fold(Self(0), |all, replica| all.with(replica))
    }
    /// Whether it holds `replica`.
    #[must_use]
    pub fn has(self, replica: usize) -> bool {
        self.0 & 1 << replica != 0
    }
    /// With `replica`.
    #[must_use]
    pub fn with(self, replica: usize) -> Self {
        Self(self.0 | 1 << replica)
    }
    /// Without `replica`.
    #[must_use]
    pub fn without(self, replica: usize) -> Self {
        Self(self.0 & !(1 << replica))
    }
    /// Its members in rising order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..REPLICAS_MAX).filter(move |replica| self.has(*replica))
    }
    /// How many.
    #[must_use]
    pub fn count(self) -> u32 {
        self.0.count_ones()
    }
}

/// Which brick is meant by each place in masks and maps, as a replica knows it. A place whose brick
/// changes is forgotten first: see [`crate::machine::Machine::replace_places`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Places {
    /// Rises with each change.
    pub version: u64,
    /// The brick at each place; `None`: there is none.
    pub bricks: [Option<BrickId>; REPLICAS_MAX],
    /// On their way out: not taken on, and made primary by nobody.
    pub leaving: Mask,
}

impl Places {
    /// Of a volume's configuration.
    #[must_use]
    pub fn of(spec: &VolumeSpec) -> Self {
        let mut bricks = [None; REPLICAS_MAX];
        for (place, replica) in spec.members().take(REPLICAS_MAX) {
            bricks[place] = Some(replica.brick);
        }
        Self {
            version: spec.layout.version,
            bricks,
            leaving: Mask(spec.layout.leaving),
        }
    }

    /// The places that have a brick.
    #[must_use]
    pub fn members(&self) -> Mask {
        (0..REPLICAS_MAX)
            .filter(|place| self.bricks[*place].is_some())
            .fold(Mask::default(), Mask::with)
    }
}

/// The loosest ack policy by which something may be confirmed that a member of the in-sync set
/// lacks. The primary says it; a member must know it durably before it is relied upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForce {
    /// The policy.
    pub protocol: Protocol,
    /// Rises with each change of it in a term.
    pub version: u64,
}

impl Default for InForce {
    fn default() -> Self {
        Self {
            protocol: Protocol::C,
            version: 0,
        }
    }
}

/// A replica's role, as it remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It ordered last, as far as it knows.
    Primary,
    /// It follows.
    Secondary,
}

/// What a replica's data is worth, by its own knowledge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Disk {
    /// It was in sync when it last knew.
    UpToDate,
    /// A whole picture of an earlier time: it is catching up record by record.
    Consistent,
    /// Between two pictures: a resync from dirty blocks or in full is under way or was cut off.
    Inconsistent,
    /// Just made, nothing was ever put there.
    Empty,
}

/// What must be on stable storage before anything that depends on it happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DurableState {
    /// Highest term known.
    pub term: Term,
    /// Role in it.
    pub role: Role,
    /// Worth of the data.
    pub disk: Disk,
    /// The past.
    pub line: Line,
    /// The in-sync set, as the primary decided it last.
    pub in_sync: Mask,
    /// For each replica outside the set: what it lacks was touched after this, or stands in the
    /// dirty map already. For each inside: it has everything up to here on stable storage.
    pub since: [Sequence; REPLICAS_MAX],
    /// This replica's journal and maps know what was touched after this only: what came before was
    /// put here by a resync.
    #[serde(default)]
    pub knows_after: Sequence,
    /// What the places mean in all of this.
    #[serde(default)]
    pub places: Places,
    /// Replicas for which this one's dirty map holds, or may hold, marks that no journal has: it
    /// resyncs them as primary, or did when it stopped.
    pub resyncing: Mask,
    /// Of these, the ones that this one, as primary, took on by a resync, and nobody else since: if
    /// one is between two pictures, what it lacks stands in the dirty map here.
    #[serde(default)]
    pub targets: Mask,
    /// Of these, the ones of which everything is compared: no map says what is left.
    pub full: Mask,
    /// The role was handed to this replica, in the next term, and it has not been seen since.
    pub handed_to: Option<usize>,
    /// Why the role is what it is (ONE-4).
    pub role_reason: RoleReason,
    /// What may be confirmed and not be here.
    #[serde(default)]
    pub policy: InForce,
    /// While [`Disk::Inconsistent`]: the whole picture before the resync is retained in the brick
    /// under this number.
    #[serde(default)]
    pub point: Option<u64>,
    /// The term in which this replica was given the role of primary that it has, or had last; going
    /// on after a restart does not change it. `None`: it never was, or an older version noted none.
    #[serde(default)]
    pub role_term: Option<Term>,
    /// The time of day of that, for people; the driver fills it in.
    #[serde(default)]
    pub primary_since: Option<Timestamp>,
    /// It took the role over by fencing this replica, which has not followed it since.
    #[serde(default)]
    pub taken_from: Option<usize>,
    /// Bound, in milliseconds, of the promises to ask for no role that this replica gave and that
    /// may still hold when its process starts again. Older versions gave none but of the default.
    #[serde(default = "promises_by_default")]
    pub longest_promise_ms: u32,
}

fn promises_by_default() -> u32 {
    LinkProfile::Lan.times().lease_ms
}

/// Why a replica has its role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoleReason {
    /// The volume was made so.
    Created,
    /// It was the last primary and came back.
    Resumed,
    /// An operator's planned promotion.
    Promoted,
    /// It handed the role over.
    HandedOver,
    /// It met a primary of a later term.
    Followed,
    /// The pool made it primary after the last one was gone.
    TookOver,
    /// The pool made another replica primary.
    Deposed,
    /// An operator made it primary although another may have gone on.
    Forced,
    /// The volume's policy kept its side of a split brain.
    Kept,
    /// It fenced the last primary.
    Fenced,
}

impl DurableState {
    /// The state of replica `me` of `count` in a volume just made; replica 0 is its primary.
    #[must_use]
    pub fn created(me: usize, count: usize, line: Line) -> Self {
        Self {
            term: Term(0),
            role: if me == 0 {
                Role::Primary
            } else {
                Role::Secondary
            },
            disk: Disk::UpToDate,
            line,
            in_sync: Mask::first(count),
            since: [Sequence::ZERO; REPLICAS_MAX],
            knows_after: Sequence::ZERO,
            places: Places::default(),
            resyncing: Mask::default(),
            targets: Mask::default(),
            full: Mask::default(),
            handed_to: None,
            role_reason: RoleReason::Created,
            policy: InForce::default(),
            point: None,
            role_term: (me == 0).then_some(Term(0)),
            primary_since: None,
            taken_from: None,
            longest_promise_ms: promises_by_default(),
        }
    }

    /// The state of a brick that is added to a volume with data: it has nothing, and is in nobody's
    /// set until it was brought up to date.
    #[must_use]
    pub fn added(line: Line) -> Self {
        Self {
            role: Role::Secondary,
            disk: Disk::Empty,
            in_sync: Mask::default(),
            ..Self::created(1, 0, line)
        }
    }
}

/// What two replicas tell each other when they meet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Highest term known.
    pub term: Term,
    /// Role as remembered.
    pub role: Role,
    /// It is primary and orders at this moment.
    pub serving: bool,
    /// Worth of its data.
    pub disk: Disk,
    /// Its past.
    pub line: Line,
    /// Its last record.
    pub last: Sequence,
    /// Of these, on stable storage.
    pub stable: Sequence,
    /// The in-sync set that it knows.
    pub in_sync: Mask,
    /// The oldest record that its journal can still hand out; `last` + 1 if none.
    pub journal_from: Sequence,
    /// To whom it handed the role over, in the term after its own.
    pub handed_to: Option<usize>,
    /// Extents of its own that a crash left in doubt: they are taken from the primary.
    pub suspects: u64,
    /// [`Places::version`]: of two with different ones, a mask means different bricks.
    #[serde(default)]
    pub layout: u64,
    /// Rises when somebody takes the replica on, and by that changes what it would tell. What is
    /// decided on this report is void once the replica has another revision.
    pub revision: u64,
    /// By which policy it confirmed, as primary, or was confirmed, as member.
    #[serde(default)]
    pub policy: InForce,
    /// What it knows of the volume's policy about split brains.
    #[serde(default)]
    pub split_policy: Policy,
    /// See [`DurableState::role_term`].
    #[serde(default)]
    pub role_term: Option<Term>,
    /// See [`DurableState::primary_since`].
    #[serde(default)]
    pub primary_since: Option<Timestamp>,
    /// See [`DurableState::taken_from`].
    #[serde(default)]
    pub taken_from: Option<usize>,
}

impl Report {
    /// Whether replica `me`, which tells this, confirmed nothing that replica `other`, which told
    /// `others`, lacks: it still waits for that one, by protocol C, or that one fenced it. With the
    /// looser policies whoever fences has what was confirmed, but for the queue of A.
    #[must_use]
    pub fn confirmed_nothing_alone(&self, me: usize, other: usize, others: &Self) -> bool {
        let fenced = others.taken_from == Some(me);
        self.in_sync.has(other) && (self.policy.protocol == Protocol::C || fenced)
    }
}

/// What a primary tells a replica that it takes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The primary's term.
    pub term: Term,
    /// The primary's past.
    pub line: Line,
    /// The primary's last record: where live records begin after a resync.
    pub at: Sequence,
    /// How the replica is brought up to date.
    pub how: How,
    /// The replica's last record as it told: if it has others by now, what was decided on that is
    /// void. Matters where records follow.
    pub basis: Sequence,
    /// [`Report::revision`] that was decided on.
    pub revision: u64,
    /// [`Places::version`] that the set below is told in.
    #[serde(default)]
    pub layout: u64,
    /// The rule that chose it.
    pub rule: crate::decision::Rule,
    /// The in-sync set.
    pub in_sync: Mask,
    /// See [`DurableState::since`].
    pub since: [Sequence; REPLICAS_MAX],
    /// See [`DurableState::policy`].
    #[serde(default)]
    pub policy: InForce,
    /// The primary goes on without a member of the set only when that one cannot take over.
    #[serde(default)]
    pub fences: bool,
    /// About how many bytes a resync will change; `None`: perhaps everything. The driver fills it in.
    #[serde(default)]
    pub changes_bytes: Option<u64>,
}

/// How a replica is brought up to date, as it sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// Records follow on its own last one.
    Records,
    /// Blocks and keys come in any order, live records from [`Welcome::at`] on; until the end it
    /// is inconsistent.
    Resync,
}

/// The in-sync set as the primary decided it; sent to all that follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The primary's term.
    pub term: Term,
    /// The primary's past.
    pub line: Line,
    /// [`Places::version`] that the set is told in.
    #[serde(default)]
    pub layout: u64,
    /// See [`Welcome::fences`].
    #[serde(default)]
    pub fences: bool,
    /// The set.
    pub in_sync: Mask,
    /// See [`DurableState::since`].
    pub since: [Sequence; REPLICAS_MAX],
    /// See [`DurableState::policy`].
    #[serde(default)]
    pub policy: InForce,
}
