//! Retained points: the whole picture before a resync, and what this replica gave up.
//!
//! A target makes a point before its brick stops being a picture of one time, and lets it go when
//! it is up to date. If its source is gone, an operator's word takes the replica back to it. What
//! the replica held alone and may have been confirmed is kept until an operator drops it (ONE-3).

use protocol::mistakes::{Mistake, made};
use protocol::report::{PointReport, PointState};
use protocol::units::{Sequence, Timestamp};
use protocol::volume::Protocol;
use replication::line::Relation;
use replication::machine::Refusal;
use replication::state::{Disk, DurableState, How, Mask, Places, Role, RoleReason, Welcome};
use storage::{BrickError, Medium, Point, PointError, PointId, PointKind};

use super::CommandError;
use super::driver::{Driver, name_places};
use super::links::{LinkError, to_json};
use super::words;

/// Records looked at for the time of the last change.
const RECORDS_FOR_TIME: u64 = 64;
/// Most bytes of them.
const BYTES_FOR_TIME: usize = 1 << 20;

/// The time that a point shows.
fn time_of(point: &Point) -> String {
    super::splits::shown(point.as_of)
}

fn brick_error(error: PointError) -> BrickError {
    match error {
        PointError::Brick(error) => error,
        other => {
            // The points were looked up a moment ago.
            tracing::error!(%other, "the brick's points are others than a moment ago");
            BrickError::ReadOnly
        }
    }
}

impl<M: Medium> Driver<M> {
    /// The point to which an inconsistent replica can go back.
    pub(super) fn point_of_resync(&self) -> Option<Point> {
        let state = self.machine.durable();
        let id = state.point.filter(|_| state.disk == Disk::Inconsistent)?;
        self.brick.points().pop().filter(|point| point.id.0 == id)
    }

    /// What status says about points: the one to go back to, and those that are kept.
    pub(super) fn point_reports(&self) -> (Option<PointReport>, Vec<PointReport>) {
        let report = |point: &Point| PointReport {
            id: point.id.0,
            state: match point.kind {
                PointKind::Resync => PointState::BeforeResync,
                PointKind::GivenUp => PointState::GivenUp,
            },
            as_of: time_of(point),
            sequence: point.position.sequence.0,
            kept_bytes: point.kept_bytes,
        };
        let back = self.point_of_resync();
        let points = self.brick.points();
        let kept = points
            .iter()
            .filter(|point| point.kind == PointKind::GivenUp);
        (back.as_ref().map(report), kept.map(report).collect())
    }

    /// Lets points go that were made for a resync which is not under way.
    pub(super) fn drop_resync_points(&mut self) -> Result<(), BrickError> {
        let state = self.machine.durable();
        let needed = state.point.filter(|_| state.disk == Disk::Inconsistent);
        for point in self.brick.points() {
            if point.kind == PointKind::Resync && needed != Some(point.id.0) {
                self.brick.drop_point(point.id).map_err(brick_error)?;
            }
        }
        Ok(())
    }

    /// A primary is about to take this replica on: where that is by a resync, the present state is
    /// retained first. Waits for the disk.
    pub(super) fn retain_before(
        &mut self,
        replica: usize,
        welcome: &Welcome,
    ) -> Result<(), LinkError> {
        self.machine.may_be_welcomed(replica, welcome)?;
        let state = self.machine.durable().clone();
        let whole = matches!(state.disk, Disk::UpToDate | Disk::Consistent);
        if welcome.how != How::Resync || !whole || self.machine.last() == Sequence::ZERO {
            return Ok(());
        }
        self.drop_resync_points()?;
        self.machine.retained(None);
        if made(Mistake::LosesThePoint) {
            return Ok(());
        }
        let tail = self.tail(&state, replica, welcome);
        let kind = match tail {
            Some(_) if made(Mistake::LosesTheGivenUp) => PointKind::Resync,
            Some(_) => PointKind::GivenUp,
            None => PointKind::Resync,
        };
        let as_of = self.time_of_last_change();
        if let Err(refusal) = self.room_for_point(welcome) {
            return self.no_room(refusal, kind);
        }
        match self.brick.make_point(kind, as_of, to_json(&state)) {
            Ok(id) => self.machine.retained(Some(id.0)),
            Err(error @ PointError::TooMany { .. }) => {
                return self.no_room(error.to_string(), kind);
            }
            Err(error) => return Err(brick_error(error).into()),
        }
        self.needs_room = None;
        if let Some(common) = tail {
            let last = self.machine.last();
            let node = &self.spec.replicas[self.me].node_name;
            let text = words::given_up_kept(node, common.next(), last, &self.spec.name);
            self.host.event("given_up_kept", &self.spec.name, &text);
        }
        Ok(())
    }

    /// The last common record, where this replica has later ones that may have been confirmed.
    fn tail(&self, state: &DurableState, replica: usize, welcome: &Welcome) -> Option<Sequence> {
        let last = self.machine.last();
        let common = match state.line.relation(last, &welcome.line, welcome.at) {
            Relation::Common { at, .. } => at,
            Relation::Unrelated => Sequence::ZERO,
        };
        // The pool lets nobody confirm alone whom it then deposes, and a primary that waited for
        // the other one confirmed nothing without it.
        let waited = state.role == Role::Primary && state.in_sync.has(replica);
        // Under A and B both confirm what the other may not have.
        let strict = state.policy.protocol == Protocol::C;
        let unconfirmed = strict && (self.machine.agreed().is_some() || waited);
        (common < last && !unconfirmed).then_some(common)
    }

    /// Whether there is room for what the resync changes to be kept.
    fn room_for_point(&self, welcome: &Welcome) -> Result<(), String> {
        let used = self.brick.used_bytes();
        let wanted = welcome.changes_bytes.unwrap_or(used).min(used);
        match self.brick.space() {
            Ok(space) if space.free_bytes < wanted => Err(format!(
                "{wanted} bytes may have to be kept and {} are free",
                space.free_bytes
            )),
            // A brick that cannot tell will say so itself.
            _ => Ok(()),
        }
    }

    /// Asks, once; or goes on without a point where an operator said so.
    fn no_room(&mut self, why: String, kind: PointKind) -> Result<(), LinkError> {
        if self.without_point {
            let node = &self.spec.replicas[self.me].node_name;
            let text = words::without_point(node, &why);
            self.host
                .event("resync_without_point", &self.spec.name, &text);
            self.needs_room = None;
            return Ok(());
        }
        let what = match kind {
            PointKind::Resync => "the state before the resync",
            PointKind::GivenUp => "what only this replica holds",
        };
        let reason = format!("a resync waits: {what} cannot be kept, {why}");
        if self.needs_room.as_ref() != Some(&reason) {
            let node = &self.spec.replicas[self.me].node_name;
            let text = words::needs_room(node, what, &why);
            self.host.event("resync_needs_room", &self.spec.name, &text);
        }
        self.needs_room = Some(reason.clone());
        Err(LinkError::NoRoom { reason })
    }

    /// When the last change here was ordered, as far as this replica knows.
    fn time_of_last_change(&mut self) -> Timestamp {
        let after = self.machine.last().0.saturating_sub(RECORDS_FOR_TIME);
        let after = Sequence(after.max(self.brick.oldest_kept().0.saturating_sub(1)));
        let told = self.brick.push().and_then(|()| {
            let mut latest = None;
            let mut after = after;
            while after < self.brick.applied() {
                let records = self.brick.read_records(after, BYTES_FOR_TIME)?;
                let Some(last) = records.last() else { break };
                after = last.record.sequence;
                let times = records
                    .iter()
                    .filter_map(|found| namespace::latest_change(&found.record.changes));
                latest = latest.max(times.max());
            }
            Ok(latest)
        });
        let known = told.unwrap_or_default().or(self.followed_at);
        known.unwrap_or_else(|| self.wall_time())
    }

    /// An operator's word: the resync's source is gone for good, the whole picture before it is to
    /// serve. Says what that means; `None` where there is no such picture.
    pub(super) fn go_back(&mut self) -> Result<Option<WentBack>, CommandError> {
        let Some(point) = self.point_of_resync() else {
            return Ok(None);
        };
        let mut note: DurableState = serde_json::from_slice(&point.note).map_err(|error| {
            CommandError::refused(
                "point_unreadable",
                format!("what the replica remembers of the time before the resync cannot be read: {error}"),
                "the brick's point can still be copied out: `cairn brick export DIR DEST --point`",
            )
        })?;
        name_places(&mut note, &self.brick.identity().spec);
        let now = self.machine.durable();
        let lost = now.knows_after.max(self.machine.last());
        let state = DurableState {
            term: now.term.max(note.term),
            role: Role::Secondary,
            disk: Disk::Consistent,
            knows_after: point.position.sequence,
            resyncing: Mask::default(),
            targets: Mask::default(),
            full: Mask::default(),
            handed_to: None,
            role_reason: RoleReason::Followed,
            point: None,
            longest_promise_ms: now.longest_promise_ms.max(note.longest_promise_ms),
            ..note
        };
        for replica in 0..self.links.len() {
            self.link_lost(replica, None);
        }
        self.resyncs[self.me].abandon();
        let gone_back = self.brick.go_back(point.id, to_json(&state));
        if let Err(error) = gone_back {
            self.fail(&error);
            return Err(CommandError::refused(
                "brick_failed",
                format!("the brick cannot go back: {error}"),
                "mend the file system below the brick, then run `cairn volume start` again",
            ));
        }
        // As after a start, with the brick as it is now.
        self.machine = self.fresh_machine(state);
        let now = self.now();
        // What was noted then means the replicas of then.
        self.machine.replace_places(now, Places::of(&self.spec));
        self.machine.start(now);
        self.forget_acknowledged();
        self.finish_turn();
        let went = WentBack {
            as_of: time_of(&point),
            operations_lost_min: lost.0.saturating_sub(point.position.sequence.0),
        };
        let node = &self.spec.replicas[self.me].node_name;
        let text = words::went_back(node, &went.as_of, went.operations_lost_min);
        self.host.event("went_back", &self.spec.name, &text);
        Ok(Some(went))
    }

    /// Drops what is kept of given-up sides; says how many there were.
    pub(super) fn drop_kept(&mut self) -> Result<serde_json::Value, CommandError> {
        let under_way = self.point_of_resync().map(|point| point.id);
        let points = self.brick.points();
        let kept = points
            .iter()
            .filter(|point| point.kind == PointKind::GivenUp);
        let ids: Vec<PointId> = kept.map(|point| point.id).collect();
        if ids.iter().any(|id| Some(*id) == under_way) {
            return Err(CommandError::refused(
                "resync_under_way",
                "the kept side is what this replica goes back to if its resync's source dies",
                "wait until the replica is up to date",
            ));
        }
        let mounts: usize = ids.iter().map(|id| self.mounted_points.count(*id)).sum();
        if mounts > 0 {
            return Err(CommandError::refused(
                "mounted",
                format!("the kept side is mounted, by {mounts}"),
                "unmount it first",
            ));
        }
        for id in &ids {
            if let Err(error) = self.brick.drop_point(*id) {
                self.fail(&error);
                return Err(CommandError::refused(
                    "brick_failed",
                    format!("the brick has failed: {error}"),
                    "mend the file system below the brick, then run `cairn volume start` again",
                ));
            }
        }
        if !ids.is_empty() {
            let node = &self.spec.replicas[self.me].node_name;
            let text = words::given_up_dropped(node, ids.len());
            self.host.event("given_up_dropped", &self.spec.name, &text);
        }
        self.finish_turn();
        Ok(serde_json::json!({ "dropped": ids.len() }))
    }
}

/// What going back means.
pub(super) struct WentBack {
    pub(super) as_of: String,
    pub(super) operations_lost_min: u64,
}

impl WentBack {
    pub(super) fn text(&self) -> String {
        words::went_back("it", &self.as_of, self.operations_lost_min)
    }
}

/// Why an operator's word about the role was not followed.
pub(super) enum NotForced {
    /// It does not fit the machine's state.
    Refused(Refusal),
    /// Something else stands against it.
    Command(CommandError),
}

impl From<Refusal> for NotForced {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Makes this replica primary although the last one is gone: as it is, or, in the middle of a
/// resync, as it was before.
pub(super) fn take_by_force<M: Medium>(d: &mut Driver<M>) -> Result<Option<WentBack>, NotForced> {
    let now = d.now();
    match d.machine.take_by_force(now) {
        Ok(()) => Ok(None),
        Err(refusal @ Refusal::NotWhole) => {
            words::not_done(&refusal);
            let went = d.go_back().map_err(NotForced::Command)?;
            d.machine.take_by_force(now)?;
            Ok(went)
        }
        Err(refusal) => Err(refusal.into()),
    }
}
