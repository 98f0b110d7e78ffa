//! A brick, its disk, its workload, and what must be true after a crash.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use protocol::ids::{BrickId, GenerationId, PoolId, VolumeId};
use protocol::record::{Change, Record};
use protocol::units::{ObjectId, Sequence, Term};
use protocol::volume::{Protocol, Quorum, VolumeKind, VolumeSpec, VolumeState};
use storage::medium::sim::{CrashAt, SimMedium};
use storage::{
    Brick, BrickError, BrickEvent, BrickIdentity, DirtyItem, FlushWhat, JournalSizes, Options,
    RecoveryReport,
};

use crate::model::{BLOCK, Model};
use crate::points::Points;

/// The replica that lacks everything.
const AWAY: u8 = 1;
const MASK: u8 = 1 << AWAY;
const LARGE: u64 = 8192;

/// What a run came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) syncs: u64,
    pub(crate) changes: u64,
}

/// What the workload did, to see that it does what it is there for.
#[derive(Debug, Default)]
pub(crate) struct Coverage {
    pub(crate) checkpoints: u64,
    pub(crate) catch_ups: u64,
    pub(crate) overwritten_records: u64,
    pub(crate) replayed: u64,
    pub(crate) accepted: u64,
    pub(crate) flushes: u64,
    pub(crate) points: u64,
    pub(crate) went_back: u64,
    pub(crate) views: u64,
}

impl Coverage {
    pub(crate) fn add(&mut self, other: &Self) {
        self.checkpoints += other.checkpoints;
        self.catch_ups += other.catch_ups;
        self.overwritten_records += other.overwritten_records;
        self.replayed += other.replayed;
        self.accepted += other.accepted;
        self.flushes += other.flushes;
        self.points += other.points;
        self.went_back += other.went_back;
        self.views += other.views;
    }
}

/// Index of a state, and the keys and blocks that it changed.
type Lack = (usize, BTreeSet<Vec<u8>>, BTreeSet<(u64, u64)>);

/// A state, and what led to it.
pub(crate) struct Entry {
    pub(crate) sequence: Sequence,
    pub(crate) model: Model,
    changes: Vec<Change>,
    payload: Bytes,
    /// Blocks that a large write of this record covers whole.
    large: BTreeSet<(u64, u64)>,
}

impl Entry {
    /// A state that no record led to.
    pub(crate) fn of(sequence: Sequence, model: Model) -> Self {
        Self {
            sequence,
            model,
            changes: Vec::new(),
            payload: Bytes::new(),
            large: BTreeSet::new(),
        }
    }
}

pub(crate) struct World {
    pub(crate) disk: SimMedium,
    pub(crate) brick: Option<Brick<SimMedium>>,
    random: u64,
    /// From the last state that is known to be stable, all that came after.
    pub(crate) history: Vec<Entry>,
    /// Index in `history` up to which records were pushed.
    pub(crate) pushed: usize,
    /// The highest index that is known to be stable, data included.
    pub(crate) stable: usize,
    pub(crate) flushes: BTreeMap<storage::FlushId, usize>,
    /// Keys and blocks that the replica lacks at least.
    pub(crate) lacks: Vec<Lack>,
    killed: bool,
    pub(crate) points: Points,
    pub(crate) coverage: Coverage,
}

fn options() -> Options {
    Options {
        large_write_bytes: LARGE,
        unsynced_bytes_max: 1 << 20,
        overlay_bytes_checkpoint: 400 << 10,
        overlay_bytes_max: 1 << 20,
        direct_bytes_checkpoint: 2 << 20,
        reserve_bytes: 64 << 10,
        journal: JournalSizes {
            segment_bytes: 192 << 10,
            total_bytes_max: 1536 << 10,
        },
    }
}

fn identity() -> BrickIdentity {
    BrickIdentity {
        pool: PoolId([1; 16]),
        brick: BrickId([3; 16]),
        replica: 0,
        spec: VolumeSpec {
            id: VolumeId([2; 16]),
            name: "v1".to_owned(),
            kind: VolumeKind::Fs,
            size_bytes: None,
            protocol: Protocol::C,
            quorum: Quorum::Off,
            replicas: Vec::new(),
            state: VolumeState::Started,
            layout: protocol::volume::Layout::default(),
            options: BTreeMap::new(),
            version: 1,
        },
    }
}

/// Everything that can be asked of a brick, for comparing two.
#[derive(Debug, PartialEq, Eq)]
struct Dump {
    position: storage::Position,
    meta: Vec<(Vec<u8>, Vec<u8>)>,
    objects: Vec<(ObjectId, u64, u64, Vec<Vec<u32>>)>,
    content: u32,
    dirty: Vec<DirtyItem>,
    used_bytes: u64,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let disk = SimMedium::new(seed, 1 << 30);
        Brick::create(&disk, identity(), Bytes::new(), &options()).expect("create");
        let (brick, _) = Brick::open(disk.clone(), None, options()).expect("open");
        Self {
            disk,
            brick: Some(brick),
            random: seed ^ 0xABCD_EF01,
            history: vec![Entry::of(Sequence::ZERO, Model::default())],
            pushed: 0,
            stable: 0,
            flushes: BTreeMap::new(),
            lacks: Vec::new(),
            killed: false,
            points: Points::default(),
            coverage: Coverage::default(),
        }
    }

    pub(crate) fn random(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % below.max(1)
    }

    /// Runs steps until they are done or the disk is gone.
    pub(crate) fn run(&mut self, steps: u64, at: Option<CrashAt>) -> Outcome {
        let (syncs, changes) = self.disk.counts();
        self.disk.set_crash(at.map(|at| match at {
            CrashAt::Sync(n) => CrashAt::Sync(syncs + n),
            CrashAt::Change(n) => CrashAt::Change(changes + n),
        }));
        for _ in 0..steps {
            match self.step() {
                Ok(()) => {}
                Err(error) => {
                    assert!(
                        self.disk.is_crashed(),
                        "the brick stopped by itself: {error}"
                    );
                    break;
                }
            }
        }
        let (syncs_now, changes_now) = self.disk.counts();
        self.disk.set_crash(None);
        Outcome {
            syncs: syncs_now - syncs,
            changes: changes_now - changes,
        }
    }

    pub(crate) fn brick(&mut self) -> &mut Brick<SimMedium> {
        self.brick.as_mut().expect("an open brick")
    }

    fn step(&mut self) -> Result<(), BrickError> {
        match self.random(24) {
            0..=11 => self.append_some()?,
            12 => self.flush_all()?,
            13 => {
                let object = ObjectId(self.random(5) + 1);
                self.brick().flush(FlushWhat::Objects(vec![object]))?;
                self.pushed = self.history.len() - 1;
            }
            14 => {
                self.brick().checkpoint()?;
                self.pushed = self.history.len() - 1;
            }
            15 => self.clear_some()?,
            16 => self.resync_some()?,
            17 => self.catch_up()?,
            18 if self.random(3) == 0 => self.reopen()?,
            20 | 21 => self.change_points()?,
            22 | 23 => self.view_some()?,
            _ => self.read_some()?,
        }
        self.poll()
    }

    fn poll(&mut self) -> Result<(), BrickError> {
        let mut events = Vec::new();
        self.brick().poll(&mut events);
        for event in events {
            match event {
                BrickEvent::Flushed(id) => {
                    if let Some(index) = self.flushes.remove(&id) {
                        self.stable = self.stable.max(index);
                        self.coverage.flushes += 1;
                    }
                }
                BrickEvent::Checkpointed(_) => self.coverage.checkpoints += 1,
                BrickEvent::Failed(error) => return Err(error),
                BrickEvent::Corrupt { object, block } => {
                    assert!(
                        self.disk.is_crashed(),
                        "object {object}, block {block} is corrupt"
                    );
                }
                _ => {}
            }
        }
        let stable = self.brick().stable();
        let index = self
            .history
            .iter()
            .position(|entry| entry.sequence == stable);
        self.stable = self.stable.max(index.unwrap_or(0));
        Ok(())
    }

    fn flush_all(&mut self) -> Result<(), BrickError> {
        let id = self.brick().flush(FlushWhat::All)?;
        self.pushed = self.history.len() - 1;
        self.flushes.insert(id, self.history.len() - 1);
        if self.random(2) == 0 {
            // Wait for it.
            while self.flushes.contains_key(&id) {
                self.brick().wait();
                self.poll()?;
                if self.disk.is_crashed() {
                    return Err(BrickError::ReadOnly);
                }
            }
        }
        Ok(())
    }

    /// A record of a few changes, sometimes several before a push.
    fn append_some(&mut self) -> Result<(), BrickError> {
        for _ in 0..=self.random(3) {
            let (changes, payload) = self.changes();
            let record = self.record(changes, payload);
            self.note(&record, record.sequence);
            let _ = self.brick().append(&record, MASK)?;
        }
        if self.random(4) > 0 {
            self.brick().push()?;
            self.pushed = self.history.len() - 1;
        }
        Ok(())
    }

    fn record(&mut self, changes: Vec<Change>, payload: Vec<u8>) -> Record {
        Record {
            sequence: self.brick().applied().next(),
            term: Term(1),
            generation: GenerationId([7; 16]),
            changes,
            payload: Bytes::from(payload),
        }
    }

    /// The record is on its way: the states that a crash may leave include it from here on.
    fn note(&mut self, record: &Record, sequence: Sequence) {
        let before = &self.history.last().expect("a state").model;
        let mut model = before.clone();
        model.apply(&record.changes, &record.payload);
        let (keys, blocks) = model.differences(before);
        let mut large = BTreeSet::new();
        for change in &record.changes {
            if let Some((object, blocks)) = large_blocks(change) {
                large.extend(blocks.map(|block| (object, block)));
            }
        }
        self.history.push(Entry {
            sequence,
            model,
            changes: record.changes.clone(),
            payload: record.payload.clone(),
            large,
        });
        self.lacks.push((self.history.len() - 1, keys, blocks));
    }

    fn changes(&mut self) -> (Vec<Change>, Vec<u8>) {
        let mut changes = Vec::new();
        let mut payload = Vec::new();
        for _ in 0..=self.random(2) {
            let object = ObjectId(self.random(5) + 1);
            // Some writes stand around the border of the first two extents.
            let base = if self.random(8) == 0 {
                (4 << 20) - 20_000
            } else {
                0
            };
            match self.random(12) {
                0..=2 => {
                    let key = format!("key{}", self.random(12));
                    let value = vec![self.random(255) as u8; self.random(300) as usize];
                    changes.push(Change::Put {
                        key: key.into(),
                        value: value.into(),
                    });
                }
                3 => changes.push(Change::Delete {
                    key: format!("key{}", self.random(12)).into(),
                }),
                4..=5 => self.write(object, 6000, 3000, base, &mut changes, &mut payload),
                6 => self.write(object, 60_000, 9000, base, &mut changes, &mut payload),
                7..=9 => self.write(object, 90_000, 70_000, base, &mut changes, &mut payload),
                10 => {
                    let offset = base + self.random(120_000);
                    let change = if self.random(2) == 0 {
                        Change::Truncate {
                            object,
                            size: offset,
                        }
                    } else {
                        let len = self.random(40_000) + 1;
                        Change::Zero {
                            object,
                            offset,
                            len,
                        }
                    };
                    changes.push(change);
                }
                _ if self.random(4) == 0 => changes.push(Change::Drop { object }),
                _ => {}
            }
        }
        (changes, payload)
    }

    fn write(
        &mut self,
        object: ObjectId,
        offsets: u64,
        lens: u64,
        base: u64,
        changes: &mut Vec<Change>,
        payload: &mut Vec<u8>,
    ) {
        let mut offset = base + self.random(offsets);
        if self.random(2) == 0 {
            offset -= offset % BLOCK as u64;
        }
        let len = self.random(lens) + 1;
        // Zeros sometimes, otherwise bytes that stand nowhere else.
        let mark = if self.random(10) == 0 {
            0
        } else {
            self.random(u64::MAX) | 1
        };
        payload
            .extend((0..len).map(|at| (mark.rotate_left((at / 64) as u32 % 61) >> (at % 8)) as u8));
        changes.push(Change::Write {
            object,
            offset,
            len: len as u32,
        });
    }

    fn resync_some(&mut self) -> Result<(), BrickError> {
        let (mut changes, payload) = self.changes();
        changes.push(Change::Put {
            key: Bytes::from_static(b"resync"),
            value: self.random(u64::MAX).to_le_bytes().to_vec().into(),
        });
        let record = self.record(changes, payload);
        let sequence = self.brick().applied();
        self.note(&record, sequence);
        let _ = self.brick().apply_resync(&record, MASK)?;
        self.brick().push()?;
        self.pushed = self.history.len() - 1;
        Ok(())
    }

    /// The replica got some of what it lacks.
    fn clear_some(&mut self) -> Result<(), BrickError> {
        let items = self.brick().next_dirty(AWAY, None, 7);
        for item in &items {
            for (_, keys, blocks) in &mut self.lacks {
                match item {
                    DirtyItem::Key { key } => {
                        keys.remove(&key[..]);
                    }
                    DirtyItem::Blocks { object, start, end } => {
                        blocks.retain(|(o, b)| *o != object.0 || b < start || b >= end);
                    }
                    DirtyItem::Dropped { object } => blocks.retain(|(o, _)| *o != object.0),
                }
            }
        }
        // A dropped object's blocks may be gone from the map: what was made again is marked anew.
        self.brick().clear_dirty(AWAY, &items)?;
        self.brick().push()
    }

    /// Records read back from the journal lead the model to the same state.
    fn catch_up(&mut self) -> Result<(), BrickError> {
        let now = self.brick().applied();
        let back = self.random(10);
        let after = Sequence(now.0.saturating_sub(back)).max(self.brick().oldest_kept());
        let Some(start) = self
            .history
            .iter()
            .rposition(|entry| entry.sequence == after)
        else {
            return Ok(());
        };
        let resynced = self.history[start + 1..]
            .windows(2)
            .any(|pair| pair[0].sequence == pair[1].sequence)
            || self
                .history
                .get(start + 1)
                .is_some_and(|next| next.sequence == after);
        let mut model = self.history[start].model.clone();
        let (mut at, mut as_of_now) = (after, false);
        let mut then = start;
        while at < now {
            let part = match self.brick().read_records(at, 100_000) {
                Err(BrickError::NotKept { .. }) => return Ok(()),
                other => other?,
            };
            assert!(!part.is_empty());
            for found in part {
                assert_eq!(found.record.sequence, at.next());
                at = found.record.sequence;
                as_of_now |= found.data_as_of_now;
                model.apply(&found.record.changes, &found.record.payload);
                then += 1;
                if !as_of_now && !resynced {
                    let (keys, blocks) = model.differences(&self.history[then].model);
                    assert!(
                        keys.is_empty() && blocks.is_empty(),
                        "record {at} is not as it was: {keys:?} {blocks:?}"
                    );
                }
            }
        }
        self.coverage.catch_ups += 1;
        self.coverage.overwritten_records += u64::from(as_of_now);
        if !resynced {
            let (keys, blocks) = model.differences(&self.history.last().expect("a state").model);
            assert!(
                keys.is_empty() && blocks.is_empty(),
                "catch-up differs: {keys:?} {blocks:?}"
            );
        }
        Ok(())
    }

    fn reopen(&mut self) -> Result<(), BrickError> {
        let last = self.history.len() - 1;
        self.pushed = last;
        self.brick.take().expect("an open brick").close()?;
        self.stable = last;
        self.flushes.clear();
        match Brick::open(self.disk.clone(), None, options()) {
            Ok((brick, report)) => {
                assert!(report.was_clean);
                assert_eq!(report.replayed_records, 0);
                self.brick = Some(brick);
                Ok(())
            }
            Err(error) => {
                assert!(self.disk.is_crashed(), "opening failed: {error}");
                Err(BrickError::ReadOnly)
            }
        }
    }

    fn read_some(&mut self) -> Result<(), BrickError> {
        let object = self.random(5) + 1;
        let block = self.random(40);
        let wanted = self
            .history
            .last()
            .expect("a state")
            .model
            .block(object, block);
        let token = self.random(u64::MAX);
        let offset = block * BLOCK as u64;
        let read = self
            .brick()
            .read(ObjectId(object), offset, BLOCK as u32, token);
        let found = match read {
            Err(_) if self.disk.is_crashed() => return Ok(()),
            Ok(storage::ReadOutcome::Ready(bytes)) => bytes,
            Ok(storage::ReadOutcome::Pending) => loop {
                if self.disk.is_crashed() {
                    return Ok(());
                }
                self.brick().wait();
                let mut events = Vec::new();
                self.brick().poll(&mut events);
                let done = events.into_iter().find_map(|event| match event {
                    BrickEvent::ReadDone { token: t, result } if t == token => Some(result),
                    BrickEvent::Flushed(id) => {
                        self.stable = self.stable.max(self.flushes.remove(&id).unwrap_or(0));
                        None
                    }
                    _ => None,
                });
                match done {
                    Some(Ok(bytes)) => break bytes,
                    Some(Err(_)) if self.disk.is_crashed() => return Ok(()),
                    Some(Err(error)) => panic!("object {object}, block {block}: {error}"),
                    None => {}
                }
            },
            Err(error) => panic!("object {object}, block {block}: {error}"),
        };
        assert!(
            found[..] == wanted[..],
            "object {object}, block {block} reads wrong"
        );
        Ok(())
    }

    /// Everything that was not synced is lost, or torn, or kept.
    pub(crate) fn power_cut(&mut self) {
        self.brick = None;
        let seed = self.random(u64::MAX);
        self.disk = self.disk.crash(seed);
        self.killed = false;
    }

    /// The process ends; the page cache stays. (A disk that is gone already: a power cut.)
    pub(crate) fn kill(&mut self) {
        if self.disk.is_crashed() {
            self.power_cut();
            return;
        }
        let disk = self.disk.fork();
        self.brick = None;
        let _ = self.disk.crash(0);
        self.disk = disk;
        self.killed = true;
    }

    pub(crate) fn recover_and_check(&mut self) {
        self.crash_in_recovery();
        let twin = self.disk.fork();
        let opened = Brick::open(self.disk.clone(), None, options());
        let (mut brick, report) = opened.unwrap_or_else(|error| panic!("recovery: {error}"));
        let dump = dump(&mut brick);
        // Recovering is the same the second time.
        let (again, _) = Brick::open(twin.clone(), None, options()).expect("the same again");
        drop(again);
        let (mut again, second) = Brick::open(twin, None, options()).expect("twice");
        assert_eq!(second.accepted_blocks, 0);
        assert_eq!(
            crate::world::dump(&mut again),
            dump,
            "recovering twice differs"
        );
        self.coverage.replayed += report.replayed_records;
        self.coverage.accepted += report.accepted_blocks;
        let chosen = self.find_state(&mut brick, &report);
        self.check_points(&brick, chosen);
        self.check_dirty(&brick, chosen);
        self.go_on_from(brick, chosen);
    }

    /// The disk stops at one of recovery's own syncs, now and then more than once.
    fn crash_in_recovery(&mut self) {
        for _ in 0..self.random(4).saturating_sub(1) {
            let n = self.random(6);
            self.disk.set_crash(Some(CrashAt::Sync(n)));
            let opened = Brick::open(self.disk.clone(), None, options());
            let crashed = self.disk.is_crashed();
            self.disk.set_crash(None);
            if !crashed {
                let (brick, _) = opened.unwrap_or_else(|error| panic!("recovery: {error}"));
                drop(brick);
            }
            // A power cut, also where it was a kill before.
            self.killed = false;
            let seed = self.random(u64::MAX);
            self.disk = self.disk.crash(seed);
        }
    }

    /// The state that the brick shows: exactly one of the history, at or after the stable one.
    fn find_state(&mut self, brick: &mut Brick<SimMedium>, report: &RecoveryReport) -> usize {
        let meta = scan(brick);
        let from = if self.killed {
            self.pushed
        } else {
            self.stable
        };
        let sequence = brick.applied();
        let candidates: Vec<usize> = (from..self.history.len())
            .filter(|index| self.history[*index].sequence == sequence)
            .filter(|index| {
                self.history[*index]
                    .model
                    .meta
                    .iter()
                    .eq(meta.iter().map(|(k, v)| (k, v)))
            })
            .collect();
        assert!(
            !candidates.is_empty(),
            "record {sequence} with this metadata is none of the {} states from {} on \
             (killed: {}, pushed {}, stable {}, {report:?})",
            self.history.len(),
            self.history[from].sequence,
            self.killed,
            self.pushed,
            self.stable,
        );
        let mut complaints = Vec::new();
        for index in candidates.into_iter().rev() {
            match self.compare(brick, report, index) {
                Ok(()) => return index,
                Err(complaint) => complaints.push(format!("{index}: {complaint}")),
            }
        }
        panic!("no state fits: {}", complaints.join("\n"));
    }

    fn compare(
        &self,
        brick: &Brick<SimMedium>,
        report: &RecoveryReport,
        index: usize,
    ) -> Result<(), String> {
        let wanted = &self.history[index].model;
        let later = &self.history[self.stable..];
        let mut blocks: BTreeSet<(u64, u64)> = BTreeSet::new();
        for entry in later {
            for (object, map) in &entry.model.objects {
                blocks.extend(map.keys().map(|block| (*object, *block)));
            }
        }
        let here: BTreeSet<u64> = all_objects(brick)
            .into_iter()
            .map(|object| object.0)
            .collect();
        let there: BTreeSet<u64> = wanted.objects.keys().copied().collect();
        if here != there {
            return Err(format!("objects {here:?} instead of {there:?}"));
        }
        for (object, block) in blocks {
            let offset = block * BLOCK as u64;
            let found = brick
                .read_now(ObjectId(object), offset, BLOCK as u32)
                .map_err(|error| format!("{error}: {}", self.story(object, block, 0, &[0; 512])))?;
            if found[..] == wanted.block(object, block)[..] {
                continue;
            }
            if self.killed {
                return Err(format!(
                    "object {object}, block {block} lost more than a kill loses"
                ));
            }
            let possible = self.possible_sectors(object, block, index);
            for (at, sector) in found.chunks(512).enumerate() {
                if !possible[at].iter().any(|known| known[..] == *sector) {
                    return Err(format!(
                        "object {object}, block {block}, sector {at} is foreign: {}",
                        self.story(object, block, at, &found)
                    ));
                }
            }
            let suspect = report
                .suspect
                .iter()
                .any(|(o, range)| o.0 == object && range.contains(&offset));
            if !suspect {
                return Err(format!("object {object}, block {block} is not reported"));
            }
        }
        Ok(())
    }

    /// What happened to a block, for a failed run's message.
    fn story(&self, object: u64, block: u64, sector: usize, found: &[u8]) -> String {
        let head = |bytes: &[u8]| format!("{:02x?}", &bytes[sector * 512..][..8]);
        let mut told = format!("found {}, stable {}", head(found), self.stable);
        for (index, entry) in self.history.iter().enumerate() {
            let now = entry.model.block(object, block);
            let here = |change: &&Change| match change {
                Change::Write { object: o, .. }
                | Change::Truncate { object: o, .. }
                | Change::Zero { object: o, .. }
                | Change::Drop { object: o } => o.0 == object,
                _ => false,
            };
            let changes: Vec<_> = entry.changes.iter().filter(here).collect();
            if index == 0 || !changes.is_empty() {
                let sequence = entry.sequence;
                told += &format!("\n  {index} (record {sequence}) {} {changes:?}", head(&now));
            }
        }
        told
    }

    /// What each sector of a block may hold after a crash that led to state `chosen`: every large
    /// write since the stable state may be there or not, later ones too; all else up to `chosen` is.
    fn possible_sectors(&self, object: u64, block: u64, chosen: usize) -> Vec<BTreeSet<Vec<u8>>> {
        let start = self.history[self.stable].model.block(object, block);
        let mut possible: Vec<BTreeSet<Vec<u8>>> = start
            .chunks(512)
            .map(|sector| BTreeSet::from([sector.to_vec()]))
            .collect();
        for (index, entry) in self.history.iter().enumerate().skip(self.stable + 1) {
            let mut at = 0;
            for change in &entry.changes {
                let len = match change {
                    Change::Write { len, .. } => *len as usize,
                    _ => 0,
                };
                let payload = entry.payload.slice(at..at + len);
                at += len;
                if block_is_large(change, object, block) {
                    let mut model = Model::default();
                    model.apply(std::slice::from_ref(change), &payload);
                    let new = model.block(object, block);
                    for (set, sector) in possible.iter_mut().zip(new.chunks(512)) {
                        set.insert(sector.to_vec());
                    }
                } else if index <= chosen {
                    for (at, set) in possible.iter_mut().enumerate() {
                        let offset = block * BLOCK as u64 + at as u64 * 512;
                        *set = set
                            .iter()
                            .map(|old| changed_sector(old, object, offset, change, &payload))
                            .collect();
                    }
                }
            }
        }
        possible
    }

    /// What changed up to the state is marked.
    fn check_dirty(&self, brick: &Brick<SimMedium>, chosen: usize) {
        if brick.dirty_summary(AWAY).all {
            return;
        }
        let items = brick.next_dirty(AWAY, None, usize::MAX);
        let mut keys = BTreeSet::new();
        let mut dropped = BTreeSet::new();
        let mut ranges = Vec::new();
        for item in items {
            match item {
                DirtyItem::Key { key } => {
                    keys.insert(key.to_vec());
                }
                DirtyItem::Dropped { object } => {
                    dropped.insert(object.0);
                }
                DirtyItem::Blocks { object, start, end } => ranges.push((object.0, start..end)),
            }
        }
        for (index, lacked_keys, lacked_blocks) in &self.lacks {
            if *index > chosen {
                continue;
            }
            assert!(lacked_keys.is_subset(&keys), "a changed key is not marked");
            for (object, block) in lacked_blocks {
                let marked = dropped.contains(object)
                    || ranges
                        .iter()
                        .any(|(o, range)| o == object && range.contains(block));
                assert!(
                    marked,
                    "object {object}, block {block} changed and is not marked"
                );
            }
        }
    }

    /// The history goes on from the state that was found, with what blocks really hold.
    fn go_on_from(&mut self, mut brick: Brick<SimMedium>, chosen: usize) {
        brick.clear_suspects().expect("settled");
        let mut entry = self.history.swap_remove(chosen);
        let last = std::mem::take(&mut self.history);
        let mut blocks: BTreeSet<(u64, u64)> = BTreeSet::new();
        for older in last.iter().chain([&entry]) {
            blocks.extend(&older.large);
        }
        for (object, block) in blocks {
            if !entry.model.objects.contains_key(&object) {
                continue;
            }
            let offset = block * BLOCK as u64;
            let found = brick
                .read_now(ObjectId(object), offset, BLOCK as u32)
                .expect("compared");
            if found[..] != entry.model.block(object, block)[..] {
                let change = Change::Write {
                    object: ObjectId(object),
                    offset,
                    len: BLOCK as u32,
                };
                entry.model.apply(&[change], &found);
            }
        }
        entry.large.clear();
        entry.changes.clear();
        self.history = vec![entry];
        // What a lost record changed need not be marked; what the kept ones changed must stay so.
        self.lacks.retain(|(index, ..)| *index <= chosen);
        for lack in &mut self.lacks {
            lack.0 = 0;
        }
        self.pushed = 0;
        self.stable = 0;
        self.flushes.clear();
        self.killed = false;
        self.check_counts(&brick);
        self.brick = Some(brick);
    }

    /// The counts of used blocks are those of the content.
    fn check_counts(&self, brick: &Brick<SimMedium>) {
        let model = &self.history[0].model;
        let mut used = 0;
        for (object, blocks) in &model.objects {
            let allocated = brick.allocated_bytes(ObjectId(*object)).expect("known");
            assert_eq!(allocated, (blocks.len() * BLOCK) as u64, "object {object}");
            used += allocated;
        }
        assert_eq!(brick.used_bytes(), used);
    }
}

/// The whole blocks of a write that may go into the file directly.
fn large_blocks(change: &Change) -> Option<(u64, std::ops::Range<u64>)> {
    let Change::Write {
        object,
        offset,
        len,
    } = change
    else {
        return None;
    };
    let first = offset.div_ceil(BLOCK as u64);
    let last = (offset + u64::from(*len)) / BLOCK as u64;
    (last.saturating_sub(first) * BLOCK as u64 >= LARGE).then_some((object.0, first..last))
}

fn block_is_large(change: &Change, object: u64, block: u64) -> bool {
    large_blocks(change).is_some_and(|(o, blocks)| o == object && blocks.contains(&block))
}

/// One sector at `offset` of the object after a change that is journaled there.
fn changed_sector(
    old: &[u8],
    object: u64,
    offset: u64,
    change: &Change,
    payload: &Bytes,
) -> Vec<u8> {
    let mut new = old.to_vec();
    let (target, from, to) = match change {
        Change::Write {
            object,
            offset,
            len,
        } => (object, *offset, offset + u64::from(*len)),
        Change::Truncate { object, size } => (object, *size, u64::MAX),
        Change::Zero {
            object,
            offset,
            len,
        } => (object, *offset, offset + len),
        Change::Drop { object } => (object, 0, u64::MAX),
        Change::Put { .. } | Change::Delete { .. } => return new,
    };
    if target.0 != object {
        return new;
    }
    for (at, byte) in new.iter_mut().enumerate() {
        let position = offset + at as u64;
        if (from..to).contains(&position) {
            *byte = payload
                .get((position - from) as usize)
                .copied()
                .unwrap_or(0);
        }
    }
    new
}

pub(crate) fn scan(brick: &Brick<SimMedium>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut meta = Vec::new();
    brick
        .scan(b"", b"\xff", &mut |key, value| {
            meta.push((key.to_vec(), value.to_vec()));
            true
        })
        .expect("scan");
    meta
}

pub(crate) fn all_objects(brick: &Brick<SimMedium>) -> Vec<ObjectId> {
    let mut found: Vec<ObjectId> = Vec::new();
    loop {
        let more = brick
            .objects_after(found.last().copied(), 2)
            .expect("objects");
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

fn dump(brick: &mut Brick<SimMedium>) -> Dump {
    let mut objects = Vec::new();
    let mut content = 0_u32;
    for object in all_objects(brick) {
        let end = brick.data_end(object).expect("known");
        let allocated = brick.allocated_bytes(object).expect("known");
        let sums = (0..2)
            .map(|extent| brick.block_sums(object, extent).expect("sums"))
            .collect();
        // A block that does not read is told by the comparison with the model, which knows more.
        if let Ok(bytes) = brick.read_now(object, 0, end as u32) {
            content = content.rotate_left(1) ^ crc32(&bytes);
        }
        objects.push((object, end, allocated, sums));
    }
    Dump {
        position: brick.position(),
        meta: scan(brick),
        objects,
        content,
        dirty: brick.next_dirty(AWAY, None, usize::MAX),
        used_bytes: brick.used_bytes(),
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    bytes.chunks(BLOCK).fold(0, |sum, block| {
        sum.rotate_left(3) ^ storage::block_sum(block)
    })
}
