//! Retained points in the workload, and what must be true of them.

use std::collections::BTreeMap;

use bytes::Bytes;
use protocol::units::{ObjectId, Timestamp};
use storage::medium::sim::SimMedium;
use storage::{Brick, BrickError, PointError, PointId, PointKind, Position};

use crate::model::{BLOCK, Model};
use crate::world::{Entry, World, all_objects, scan};

/// With more, hardly anything is written directly.
const POINTS_AT_ONCE: usize = 2;

/// What is known of a brick's points.
#[derive(Default)]
pub(crate) struct Points {
    /// Each with what it shows.
    known: BTreeMap<PointId, (Model, Position)>,
    /// May be there or not after a crash.
    making: Option<PointId>,
    dropping: Vec<PointId>,
    /// Index of the state in the history, and the replication state that comes with it.
    going_back: Option<(usize, PointId, Bytes)>,
    /// The replication state, as it was last set.
    state: Bytes,
}

fn brick_error(error: PointError) -> BrickError {
    match error {
        PointError::Brick(error) => error,
        other => panic!("{other}"),
    }
}

impl World {
    pub(crate) fn change_points(&mut self) -> Result<(), BrickError> {
        match self.random(6) {
            0..=2 if self.points.known.len() < POINTS_AT_ONCE => self.make_point(),
            0..=3 => self.drop_point(),
            _ => self.go_back(),
        }
    }

    fn make_point(&mut self) -> Result<(), BrickError> {
        let kind = if self.random(2) == 0 {
            PointKind::Resync
        } else {
            PointKind::GivenUp
        };
        let last = self.history.len() - 1;
        let model = self.history[last].model.clone();
        let position = self.brick().position();
        // Ids rise by one, over everything that there ever was.
        let next = self.points.known.keys().chain(&self.points.dropping);
        let guess = next.max().map_or(1, |last| last.0 + 1);
        self.points.making = Some(PointId(guess));
        self.points
            .known
            .insert(PointId(guess), (model.clone(), position));
        self.pushed = last;
        let note = Bytes::from_static(b"a note");
        let made = self.brick().make_point(kind, Timestamp(7), note);
        let id = match made {
            Ok(id) => id,
            Err(error) => {
                // Whatever number it has: it is the newest.
                let (known, _) = self.points.known.pop_last().expect("just put");
                self.points.making = Some(known);
                self.points
                    .known
                    .insert(PointId(u64::MAX), (model, position));
                return Err(brick_error(error));
            }
        };
        self.points.known.remove(&PointId(guess));
        self.points.known.insert(id, (model, position));
        self.points.making = None;
        self.stable = last;
        self.coverage.points += 1;
        Ok(())
    }

    fn drop_point(&mut self) -> Result<(), BrickError> {
        let at = self.random(4) as usize;
        let dropping = &self.points.dropping;
        let mut live = self.points.known.keys().filter(|id| !dropping.contains(id));
        let Some(id) = live.nth(at).copied() else {
            return Ok(());
        };
        self.points.dropping.push(id);
        self.pushed = self.history.len() - 1;
        self.brick().drop_point(id).map_err(brick_error)
    }

    fn go_back(&mut self) -> Result<(), BrickError> {
        let dropping = &self.points.dropping;
        let mut live = self.points.known.keys().filter(|id| !dropping.contains(id));
        let Some(id) = live.next_back().copied() else {
            return Ok(());
        };
        let (model, position) = self.points.known[&id].clone();
        let state = Bytes::from(self.random(u64::MAX).to_le_bytes().to_vec());
        self.pushed = self.history.len() - 1;
        self.history.push(Entry::of(position.sequence, model));
        self.points.going_back = Some((self.history.len() - 1, id, state.clone()));
        self.brick()
            .go_back(id, state.clone())
            .map_err(brick_error)?;
        assert_eq!(self.brick().position(), position);
        self.went_back(id, state);
        let entry = self.history.pop().expect("just put");
        self.history = vec![entry];
        (self.pushed, self.stable) = (0, 0);
        self.flushes.clear();
        self.lacks.clear();
        self.coverage.went_back += 1;
        let brick = self.brick.take().expect("open");
        let result = compare(&brick, &self.history[0].model);
        self.brick = Some(brick);
        match result {
            Err(_) if self.disk.is_crashed() => Err(BrickError::ReadOnly),
            Err(complaint) => panic!("after going back: {complaint}"),
            Ok(()) => Ok(()),
        }
    }

    fn went_back(&mut self, id: PointId, state: Bytes) {
        self.points.known.retain(|known, _| *known < id);
        self.points.state = state;
        self.points.going_back = None;
    }

    /// One point reads as it should while the brick goes on.
    pub(crate) fn view_some(&mut self) -> Result<(), BrickError> {
        let at = self.random(3) as usize;
        let live = self.brick().points();
        let Some(point) = live.get(at) else {
            return Ok(());
        };
        let (model, position) = &self.points.known[&point.id];
        assert_eq!(point.position, *position);
        assert_eq!(&point.note[..], b"a note");
        let brick = self.brick.as_ref().expect("an open brick");
        let view = brick.view(point.id).expect("it is alive");
        match compare(&view, model) {
            Err(_) if self.disk.is_crashed() => return Err(BrickError::ReadOnly),
            Err(complaint) => panic!("point {}: {complaint}", point.id),
            Ok(()) => {}
        }
        self.coverage.views += 1;
        Ok(())
    }

    /// After a crash: what must be there is there, and reads as it should.
    pub(crate) fn check_points(&mut self, brick: &Brick<SimMedium>, chosen: usize) {
        if let Some((index, id, state)) = self.points.going_back.take() {
            // Told apart by the superblock, which changes with nothing else here.
            if brick.state() == &state {
                assert_eq!(chosen, index, "it went back, and shows something else");
                self.went_back(id, state);
            }
        }
        assert_eq!(brick.state(), &self.points.state);
        let found = brick.points();
        if let Some(guess) = self.points.making.take() {
            let known = self.points.known.pop_last().expect("in the making").1;
            let newest = found
                .last()
                .filter(|point| !self.points.known.contains_key(&point.id));
            if let Some(point) = newest {
                assert!(point.id >= guess);
                self.points.known.insert(point.id, known);
            }
        }
        for point in &found {
            let (model, position) = self
                .points
                .known
                .get(&point.id)
                .unwrap_or_else(|| panic!("point {} is unknown", point.id));
            assert_eq!(point.position, *position);
            let view = brick.view(point.id).expect("it is alive");
            if let Err(complaint) = compare(&view, model) {
                panic!("point {} after a crash: {complaint}", point.id);
            }
        }
        for id in self.points.known.keys() {
            let there = found.iter().any(|point| point.id == *id);
            let dropped = self.points.dropping.contains(id);
            assert!(there || dropped, "point {id} is lost");
        }
        let ids: Vec<PointId> = found.iter().map(|point| point.id).collect();
        self.points.known.retain(|id, _| ids.contains(id));
        self.points.dropping.clear();
    }
}

/// Whether a brick, or a view of a point, shows exactly this.
fn compare(brick: &Brick<SimMedium>, model: &Model) -> Result<(), String> {
    let meta = scan(brick);
    if !model.meta.iter().eq(meta.iter().map(|(k, v)| (k, v))) {
        return Err(format!("keys {:?} instead of {:?}", meta, model.meta));
    }
    let objects: Vec<u64> = all_objects(brick).iter().map(|object| object.0).collect();
    if !objects.iter().eq(model.objects.keys()) {
        return Err(format!("objects {objects:?}"));
    }
    let mut used = 0;
    for (object, blocks) in &model.objects {
        let id = ObjectId(*object);
        let allocated = brick.allocated_bytes(id).map_err(|e| e.to_string())?;
        if allocated != (blocks.len() * BLOCK) as u64 {
            return Err(format!("object {object} has {allocated} bytes"));
        }
        used += allocated;
        for (block, wanted) in blocks.iter() {
            let found = brick
                .read_now(id, block * BLOCK as u64, BLOCK as u32)
                .map_err(|error| format!("object {object}: {error}"))?;
            if found[..] != wanted[..] {
                return Err(format!("object {object}, block {block} reads wrong"));
            }
        }
    }
    if brick.used_bytes() != used {
        return Err(format!(
            "{} bytes used instead of {used}",
            brick.used_bytes()
        ));
    }
    Ok(())
}
