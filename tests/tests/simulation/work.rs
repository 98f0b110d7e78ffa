//! What clients do all the time, and the record of what they saw.

mod sides;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use protocol::fs::{Operation, Outcome};
use protocol::units::ObjectId;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{Notify, oneshot};

use super::client::{Client, EarlyEnd};
use super::cluster::{CLIENTS_FROM, Journal};
use super::history::{Act, Cut, Entry, NAMES, State, holds};
use super::network::Place;
use super::random::Random;

const ENOENT: i32 = 2;
const EIO: i32 = 5;
/// What the journal says where not every replica is in sync any more.
pub(crate) const NOT_ALL_THERE: [&str; 10] = [
    " replica_lost: ",
    " replica_dropped: ",
    " replica_left_behind: ",
    " primary_lost: ",
    " primary: ",
    " secondary: ",
    " brick_failed: ",
    " is stopped",
    " is killed",
    " loses its power",
];
const EEXIST: i32 = 17;
const ENOSPC: i32 = 28;
/// fallocate(2): a hole, and the size stays.
const PUNCH_HOLE_KEEP_SIZE: u32 = 3;

/// Files of cells: the length of a cell, and how many there are. From a part of a block that goes
/// through the journal, to what goes into the object's file at once.
const FILES: [(u64, u64); 7] = [
    (512, 24),
    (4096, 12),
    (28 << 10, 6),
    (64 << 10, 4),
    (512, 8),
    (4096, 4),
    (64 << 10, 3),
];
/// From here on each mount that stays has a file of its own, which others look at now and then.
const OWN: usize = 4;
/// The file of cells that go into the object's file at once.
const LARGE: usize = 3;
const LOGS: usize = 2;
const DIRECTORIES: usize = 2;

/// What a look found.
pub(crate) type Found = BTreeMap<Thing, Vec<State>>;

/// A thing that has a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Thing {
    Cell { file: usize, cell: u64 },
    Log(usize),
    Directory(usize),
}

impl Thing {
    fn empty(self) -> State {
        match self {
            Self::Cell { .. } => State::Cell(0),
            Self::Log(_) => State::Log(Vec::new()),
            Self::Directory(_) => State::Directory([None; NAMES]),
        }
    }
}

#[derive(Clone, Default)]
struct Record {
    begin: BTreeMap<Thing, State>,
    entries: BTreeMap<Thing, Vec<Entry>>,
}

/// What clients like to do.
#[derive(Clone, Copy, Default)]
pub(crate) struct Habits {
    /// The same few things again and again.
    pub(crate) few: bool,
    /// Large writes, made stable at once.
    pub(crate) large: bool,
    /// There may be no room for an operation, and then it has no effect. While a block is damaged
    /// it may fail to be read.
    pub(crate) may_fail: bool,
}

/// The work of all clients.
pub(crate) struct Work {
    habits: Habits,
    files: Vec<ObjectId>,
    logs: Vec<ObjectId>,
    directories: Vec<ObjectId>,
    random: Random,
    journal: Journal,
    moment: Cell<u64>,
    value: Cell<u64>,
    /// When the power was cut last.
    cut_at: Cell<u64>,
    record: RefCell<Record>,
    under_way: Cell<u32>,
    /// The same of each mount that stays.
    busy: RefCell<BTreeMap<Place, u32>>,
    /// What was asked that changes a cell or a log, and is not answered.
    pending: RefCell<BTreeMap<u64, (Place, Thing, Act)>>,
    /// Nobody begins anything in a directory, and how much is under way there.
    leaves_directories: Cell<bool>,
    in_directories: Cell<u32>,
    /// Somebody fills a file, and nothing more is filled.
    fills: Cell<bool>,
    hold_fillers: Cell<bool>,
    held_up: Cell<bool>,
    /// Who mostly looks does nothing else for now.
    look_only: Cell<bool>,
    /// A block of one replica is damaged: since which line of the journal.
    rotten: Cell<Option<usize>>,
    /// A block was, once.
    has_rotted: Cell<bool>,
    /// Something was confirmed as stable.
    stable: Notify,
    ended: Cell<bool>,
    wake: Notify,
    done: Cell<u64>,
    pub(crate) failures: RefCell<Vec<String>>,
    /// What was answered early: which entry of a thing's history it is, and what becomes of it.
    early: RefCell<Vec<(Thing, usize, oneshot::Receiver<EarlyEnd>)>>,
}

impl Work {
    /// Makes the files and directories through `client`, stable on return.
    pub(crate) async fn prepare(
        client: &Client,
        habits: Habits,
        random: Random,
        journal: Journal,
    ) -> Rc<Self> {
        let make = async |name: String, directory: bool| {
            let (parent, name) = (ObjectId::ROOT, Bytes::from(name));
            let operation = if directory {
                Operation::MakeDirectory {
                    parent,
                    name,
                    mode: 0o755,
                }
            } else {
                Operation::Create {
                    parent,
                    name,
                    mode: 0o644,
                    exclusive: true,
                }
            };
            match client.call(0, operation, Bytes::new()).await {
                Outcome::Entry(attributes) => {
                    if !directory {
                        client.holds(attributes.object);
                    }
                    attributes.object
                }
                other => panic!("nothing can be made in a new volume: {other:?}"),
            }
        };
        let (mut files, mut logs, mut directories) = (Vec::new(), Vec::new(), Vec::new());
        for at in 0..FILES.len() {
            files.push(make(format!("cells{at}"), false).await);
        }
        for at in 0..LOGS {
            logs.push(make(format!("log{at}"), false).await);
        }
        for at in 0..DIRECTORIES {
            directories.push(make(format!("directory{at}"), true).await);
        }
        let made = client.call(0, Operation::SyncAll, Bytes::new()).await;
        assert_eq!(made, Outcome::Done, "a new volume can be made stable");
        Rc::new(Self {
            habits,
            files,
            logs,
            directories,
            random,
            journal,
            moment: Cell::new(1),
            value: Cell::new(0),
            cut_at: Cell::new(0),
            record: RefCell::default(),
            under_way: Cell::new(0),
            busy: RefCell::default(),
            pending: RefCell::default(),
            leaves_directories: Cell::new(false),
            in_directories: Cell::new(0),
            fills: Cell::new(false),
            hold_fillers: Cell::new(false),
            held_up: Cell::new(false),
            look_only: Cell::new(false),
            rotten: Cell::new(None),
            has_rotted: Cell::new(false),
            stable: Notify::new(),
            ended: Cell::new(false),
            wake: Notify::new(),
            done: Cell::new(0),
            failures: RefCell::default(),
            early: RefCell::default(),
        })
    }

    fn tick(&self) -> u64 {
        self.moment.set(self.moment.get() + 1);
        self.moment.get()
    }

    /// Something that changes a cell or a log is asked.
    fn began(&self, by: Place, thing: Thing, asked: u64, act: Act) {
        self.pending.borrow_mut().insert(asked, (by, thing, act));
    }

    fn next_value(&self) -> u64 {
        self.value.set(self.value.get() + 1);
        self.value.get()
    }

    /// How many operations were answered.
    pub(crate) fn done(&self) -> u64 {
        self.done.get()
    }

    /// Operations under way.
    pub(crate) fn under_way(&self) -> u32 {
        self.under_way.get()
    }

    /// No operation begins any more, for now.
    pub(crate) fn hold_up(&self, held_up: bool) {
        self.held_up.set(held_up);
        self.wake.notify_waiters();
    }

    /// Who mostly looks does nothing else, for now.
    pub(crate) fn look_only(&self, only: bool) {
        self.look_only.set(only);
    }

    /// A block of one replica is damaged while all are in sync, or not any more.
    pub(crate) fn rotten(&self, rotten: bool) {
        self.rotten.set(rotten.then(|| self.journal.len()));
        self.has_rotted.set(true);
    }

    /// Whether a block of a replica was damaged at any time.
    pub(crate) fn has_rotted(&self) -> bool {
        self.has_rotted.get()
    }

    /// See [`Work::rotten`].
    pub(crate) fn is_rotten(&self) -> bool {
        self.rotten.get().is_some()
    }

    /// Whether a read may fail: a block is damaged, and since that was so some replica was not
    /// there to be asked, or another one serves.
    fn may_be_unreadable(&self) -> bool {
        let from = self.rotten.get();
        from.is_some_and(|from| self.journal.told_since(from, &NOT_ALL_THERE))
    }

    /// A file of cells none of which goes into the object's file at once: what a kill may leave
    /// behind there is checked like everything else.
    pub(crate) fn a_file(&self) -> ObjectId {
        self.files[self.random.index(LARGE)]
    }

    /// One of two files that are locked.
    pub(crate) fn locked_file(&self, at: usize) -> ObjectId {
        self.logs[at]
    }

    /// Something begins that has to end before the power is cut.
    pub(crate) fn begins(&self) {
        self.under_way.set(self.under_way.get() + 1);
    }

    /// It ended.
    pub(crate) fn ends(&self) {
        self.under_way.set(self.under_way.get() - 1);
        self.done.set(self.done.get() + 1);
    }

    /// What a command answered: where it compared replicas, they must be equal.
    pub(crate) fn take_verdict(&self, answer: &serde_json::Value) {
        let differences = answer["differences"].as_array();
        if differences.is_some_and(|list| !list.is_empty()) {
            self.fail(format!("replicas in sync differ: {answer}"));
        }
    }

    /// Waits until something is confirmed as stable.
    pub(crate) async fn next_stable(&self) {
        self.stable.notified().await;
    }

    /// No operation begins any more.
    pub(crate) fn end(&self) {
        self.ended.set(true);
        self.hold_up(false);
    }

    pub(crate) fn fail(&self, what: String) {
        self.journal.note(format!("WRONG: {what}"));
        self.failures.borrow_mut().push(what);
    }

    fn note(&self, by: Place, thing: Thing, asked: u64, act: Act) {
        self.pending.borrow_mut().remove(&asked);
        self.look_after_early();
        let answered = self.tick();
        self.journal
            .quietly(|| format!("{thing:?} {asked}..{answered} {act:?}"));
        let entry = Entry {
            asked,
            answered,
            by,
            must: true,
            act,
        };
        let mut record = self.record.borrow_mut();
        record.entries.entry(thing).or_default().push(entry);
    }

    /// Waits for a while, and while everything is held up. False: it is the end.
    pub(crate) async fn may_go_on(&self, pause_ms: Range<u64>) -> bool {
        let pause = self.random.within(pause_ms);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        while self.held_up.get() && !self.ended.get() {
            self.wake.notified().await;
        }
        !self.ended.get()
    }

    /// Works until the end. Each worker of a client has a slot of its own.
    /// One that `watches` mostly looks, and so never waits for a replica.
    pub(crate) async fn run(
        self: Rc<Self>,
        client: Client,
        slot: u16,
        pause_ms: u64,
        watches: bool,
    ) {
        loop {
            if !self.may_go_on(0..2 * pause_ms + 1).await {
                return;
            }
            self.takes(client.place);
            if watches && (self.look_only.get() || !self.random.one_in(12)) {
                self.look_somewhere(&client, slot).await;
            } else {
                self.one(&client, slot).await;
            }
            for lost in client.take_losses() {
                self.fail(format!("client{} lost {lost}", client.place));
            }
            self.has_done(client.place);
        }
    }

    /// A mount that comes, works a little and leaves, again and again until the end.
    pub(crate) async fn visit(self: Rc<Self>, mount: impl Fn() -> Client) {
        loop {
            if !self.may_go_on(20..700).await {
                return;
            }
            self.under_way.set(self.under_way.get() + 1);
            let began = self.tick();
            let client = mount();
            tokio::task::spawn_local(client.clone().run());
            for _ in 0..self.random.within(1..4) {
                self.one(&client, 1).await;
                self.done.set(self.done.get() + 1);
                if self.held_up.get() {
                    break; // what a power cut left is looked at before anything is done with it
                }
            }
            // A power cut may take a session that was not stable.
            if client.was_forgotten() && self.cut_at.get() < began {
                self.fail(format!("the session of client{} ended", client.place));
            }
            // As a mount does that is unmounted: nobody keeps anything afterwards.
            let stable = client.call(1, Operation::SyncAll, Bytes::new()).await;
            if stable != Outcome::Done {
                self.odd("a last sync", &stable);
            }
            client.leave();
            self.under_way.set(self.under_way.get() - 1);
        }
    }

    async fn look_somewhere(&self, client: &Client, slot: u16) {
        match self.random.within(0..8) {
            0..5 => {
                let (file, cell) = self.any_cell(client.place);
                self.read(client, slot, file, cell).await;
            }
            5 => self.read_log(client, slot, self.random.index(LOGS)).await,
            _ => {
                let (directory, name) = (self.random.index(DIRECTORIES), self.random.index(NAMES));
                let asked = self.tick();
                let found = self.lookup(client, slot, directory, name).await;
                let act = Act::Lookup { name, found };
                self.note(client.place, Thing::Directory(directory), asked, act);
            }
        }
    }

    async fn one(&self, client: &Client, slot: u16) {
        match self.random.within(0..22) {
            0..6 => self.write(client, slot).await,
            6..10 => {
                let (file, cell) = self.any_cell(client.place);
                self.read(client, slot, file, cell).await;
            }
            10..12 => self.append(client, slot).await,
            12 => self.read_log(client, slot, self.random.index(LOGS)).await,
            13..19 => self.in_directory(client, slot).await,
            _ => self.sync(client, slot).await,
        }
    }

    fn any_cell(&self, of: Place) -> (usize, u64) {
        let own = OWN + of.saturating_sub(CLIENTS_FROM);
        if own < FILES.len() && self.random.one_in(3) {
            return (own, self.random.within(0..FILES[own].1));
        }
        if self.random.one_in(100) {
            let file = OWN + self.random.index(FILES.len() - OWN);
            return (file, self.random.within(0..FILES[file].1));
        }
        if self.habits.few && self.random.one_in(2) {
            return (self.random.index(OWN), 0);
        }
        if self.habits.large && self.random.one_in(2) {
            return (LARGE, self.random.within(0..FILES[LARGE].1));
        }
        let file = self.random.index(OWN);
        (file, self.random.within(0..FILES[file].1))
    }

    /// A change was answered, early or not.
    fn note_change(
        &self,
        by: Place,
        thing: Thing,
        (asked, act): (u64, Act),
        early: Option<oneshot::Receiver<EarlyEnd>>,
    ) {
        self.note(by, thing, asked, act);
        if let Some(ends) = early {
            let record = self.record.borrow();
            let entries = record.entries.get(&thing);
            let at = entries.map_or(0, |entries| entries.len() - 1);
            self.early.borrow_mut().push((thing, at, ends));
        }
    }

    /// Looks what became of changes that were answered early. Returns how many are on their way.
    fn look_after_early(&self) -> usize {
        let mut open = Vec::new();
        for (thing, at, mut ends) in self.early.take() {
            let end = match ends.try_recv() {
                Ok(end) => end,
                Err(TryRecvError::Empty) => {
                    open.push((thing, at, ends));
                    continue;
                }
                Err(TryRecvError::Closed) => EarlyEnd {
                    outcome: Outcome::Error(EIO),
                    lapsed: false,
                },
            };
            let now = self.tick();
            let mut record = self.record.borrow_mut();
            let entries = record.entries.get_mut(&thing);
            let Some(entry) = entries.and_then(|entries| entries.get_mut(at)) else {
                continue;
            };
            let lost = matches!(end.outcome, Outcome::Error(_));
            // Room that was held back for it, and others on the disk have taken.
            let full = self.habits.may_fail && end.outcome == Outcome::Error(ENOSPC);
            if end.lapsed || full {
                // Others may have looked before it was there.
                entry.answered = if lost { u64::MAX } else { now };
                entry.must = !lost;
            } else if lost {
                drop(record);
                self.odd("what was answered early", &end.outcome);
            }
        }
        let count = open.len();
        self.early.replace(open);
        count
    }

    fn odd(&self, what: &str, outcome: &Outcome) {
        let known = match outcome {
            Outcome::Error(ENOSPC) => self.habits.may_fail,
            Outcome::Error(EIO) => self.may_be_unreadable(),
            _ => false,
        };
        if known {
            return;
        }
        self.fail(format!("{what} ended with {outcome:?}"));
    }

    async fn write(&self, client: &Client, slot: u16) {
        let (file, cell) = self.any_cell(client.place);
        let object = self.files[file];
        let (len, offset) = (FILES[file].0, FILES[file].0 * cell);
        let asked = self.tick();
        let thing = Thing::Cell { file, cell };
        if self.random.one_in(12) {
            let hole = Operation::Allocate {
                object,
                mode: PUNCH_HOLE_KEEP_SIZE,
                offset,
                len,
            };
            self.began(client.place, thing, asked, Act::Write(0));
            match client.call(slot, hole, Bytes::new()).await {
                Outcome::Attributes(_) => self.note(client.place, thing, asked, Act::Write(0)),
                other => self.odd("a hole", &other),
            }
            return;
        }
        let value = self.next_value();
        let write = Operation::Write {
            object,
            offset,
            append: false,
            kill_privileges: false,
        };
        let data = value.to_le_bytes().repeat(len as usize / 8);
        self.began(client.place, thing, asked, Act::Write(value));
        match client.change(slot, write, Bytes::from(data)).await {
            (Outcome::Written { len: written, .. }, early) if u64::from(written) == len => {
                let act = (asked, Act::Write(value));
                self.note_change(client.place, thing, act, early);
            }
            (other, _) => self.odd("a write", &other),
        }
    }

    /// The values of a cell: one, unless it is torn.
    async fn values(&self, client: &Client, slot: u16, file: usize, cell: u64) -> Vec<u64> {
        let len = FILES[file].0;
        let read = Operation::Read {
            object: self.files[file],
            offset: len * cell,
            len: u32::try_from(len).expect("a cell is short"),
        };
        match client.call(slot, read, Bytes::new()).await {
            Outcome::Data(data) => {
                let values = different_words(&data);
                if data.len() < len as usize && values.iter().any(|value| *value != 0) {
                    self.fail(format!("a cell of {} bytes was read", data.len()));
                }
                values
            }
            other => {
                self.odd("a read", &other);
                Vec::new()
            }
        }
    }

    async fn read(&self, client: &Client, slot: u16, file: usize, cell: u64) {
        let asked = self.tick();
        let values = self.values(client, slot, file, cell).await;
        match values[..] {
            // It failed.
            [] => {}
            [value] => {
                let thing = Thing::Cell { file, cell };
                self.note(client.place, thing, asked, Act::Read(value));
            }
            _ => self.fail(format!("cell {cell} of file {file} is torn: {values:?}")),
        }
    }

    async fn append(&self, client: &Client, slot: u16) {
        let log = self.random.index(LOGS);
        let (asked, value) = (self.tick(), self.next_value());
        let write = Operation::Write {
            object: self.logs[log],
            offset: 0,
            append: true,
            kill_privileges: false,
        };
        let data = Bytes::copy_from_slice(&value.to_le_bytes());
        self.began(client.place, Thing::Log(log), asked, Act::Append(value));
        match client.call(slot, write, data).await {
            Outcome::Written { len: 8, .. } => {
                self.note(client.place, Thing::Log(log), asked, Act::Append(value));
            }
            other => self.odd("an append", &other),
        }
    }

    async fn log(&self, client: &Client, slot: u16, log: usize) -> Vec<u64> {
        let read = Operation::Read {
            object: self.logs[log],
            offset: 0,
            len: 1 << 20,
        };
        match client.call(slot, read, Bytes::new()).await {
            Outcome::Data(data) => words(&data),
            other => {
                self.odd("reading a log", &other);
                Vec::new()
            }
        }
    }

    async fn read_log(&self, client: &Client, slot: u16, log: usize) {
        let asked = self.tick();
        let all = self.log(client, slot, log).await;
        self.note(client.place, Thing::Log(log), asked, Act::ReadAll(all));
    }

    async fn lookup(
        &self,
        client: &Client,
        slot: u16,
        directory: usize,
        name: usize,
    ) -> Option<u64> {
        let lookup = Operation::Lookup {
            parent: self.directories[directory],
            name: name_of(name),
        };
        match client.call(slot, lookup, Bytes::new()).await {
            Outcome::Entry(attributes) => Some(attributes.object.0),
            Outcome::Error(ENOENT) => None,
            other => {
                self.odd("a lookup", &other);
                None
            }
        }
    }

    async fn in_directory(&self, client: &Client, slot: u16) {
        if self.leaves_directories.get() {
            let (file, cell) = self.any_cell(client.place);
            return self.read(client, slot, file, cell).await;
        }
        self.in_directories.set(self.in_directories.get() + 1);
        self.change_directory(client, slot).await;
        self.in_directories.set(self.in_directories.get() - 1);
    }

    async fn change_directory(&self, client: &Client, slot: u16) {
        let directory = self.random.index(DIRECTORIES);
        let parent = self.directories[directory];
        let (name, to) = (self.random.index(NAMES), self.random.index(NAMES));
        let asked = self.tick();
        let act = match self.random.within(0..8) {
            0..3 => {
                let create = Operation::MakeNode {
                    parent,
                    name: name_of(name),
                    mode: 0o100_644,
                    rdev: 0,
                };
                match client.call(slot, create, Bytes::new()).await {
                    Outcome::Entry(attributes) => Act::Create {
                        name,
                        made: Some(attributes.object.0),
                    },
                    Outcome::Error(EEXIST) => Act::Create { name, made: None },
                    other => return self.odd("a create", &other),
                }
            }
            3..5 => {
                let unlink = Operation::Unlink {
                    parent,
                    name: name_of(name),
                };
                match client.call(slot, unlink, Bytes::new()).await {
                    Outcome::Done => Act::Unlink { name, done: true },
                    Outcome::Error(ENOENT) => Act::Unlink { name, done: false },
                    other => return self.odd("an unlink", &other),
                }
            }
            5..7 => {
                let rename = Operation::Rename {
                    parent,
                    name: name_of(name),
                    new_parent: parent,
                    new_name: name_of(to),
                    flags: 0,
                };
                let from = name;
                match client.call(slot, rename, Bytes::new()).await {
                    Outcome::Done => Act::Rename {
                        from,
                        to,
                        done: true,
                    },
                    Outcome::Error(ENOENT) => Act::Rename {
                        from,
                        to,
                        done: false,
                    },
                    other => return self.odd("a rename", &other),
                }
            }
            _ => {
                let found = self.lookup(client, slot, directory, name).await;
                Act::Lookup { name, found }
            }
        };
        self.note(client.place, Thing::Directory(directory), asked, act);
    }

    async fn sync(&self, client: &Client, slot: u16) {
        let mut which = self.random.index(8);
        if self.habits.large && self.random.one_in(2) {
            which = LARGE;
        }
        let data_only = self.random.one_in(2);
        let one = |object| Operation::Sync { object, data_only };
        let operation = match which {
            0..4 => one(self.files[which]),
            4 => one(self.logs[0]),
            5 => one(self.directories[0]),
            _ => Operation::SyncAll,
        };
        match client.call(slot, operation, Bytes::new()).await {
            Outcome::Done => self.stable.notify_waiters(),
            other => self.odd("a sync", &other),
        }
    }

    fn things(&self) -> impl Iterator<Item = Thing> {
        let cells = (0..FILES.len())
            .flat_map(|file| (0..FILES[file].1).map(move |cell| Thing::Cell { file, cell }));
        let logs = (0..LOGS).map(Thing::Log);
        cells
            .chain(logs)
            .chain((0..DIRECTORIES).map(Thing::Directory))
    }

    /// Reads everything back. Where a cell is torn, its several values.
    pub(crate) async fn look(&self, client: &Client, slot: u16) -> Found {
        let mut found = BTreeMap::new();
        for thing in self.things() {
            let states = match thing {
                Thing::Cell { file, cell } => {
                    let values = self.values(client, slot, file, cell).await;
                    values.into_iter().map(State::Cell).collect()
                }
                Thing::Log(log) => vec![State::Log(self.log(client, slot, log).await)],
                Thing::Directory(directory) => {
                    let mut names = [None; NAMES];
                    for (name, found) in names.iter_mut().enumerate() {
                        *found = self.lookup(client, slot, directory, name).await;
                    }
                    vec![State::Directory(names)]
                }
            };
            found.insert(thing, states);
        }
        found
    }

    /// Checks every history against what is found in the end. A cut of the power everywhere, at
    /// `cut_at`, has taken nothing that was answered: clients kept what was not stable (DUR-5).
    pub(crate) fn check(&self, found: &Found, cut_at: Option<u64>) {
        let on_their_way = self.look_after_early();
        if on_their_way > 0 {
            self.fail(format!(
                "{on_their_way} changes that were answered early never ended"
            ));
        }
        let record = std::mem::take(&mut *self.record.borrow_mut());
        let cut_at = cut_at.map_or_else(String::new, |at| format!(", cut at {at}"));
        self.check_record(&record, found, u64::MAX, &cut_at);
    }

    /// What was answered `before` that moment must be there, in an order that makes sense.
    fn check_record(&self, record: &Record, found: &Found, before: u64, told: &str) {
        let end = self.tick();
        for (thing, states) in found {
            let begin = record
                .begin
                .get(thing)
                .cloned()
                .unwrap_or_else(|| thing.empty());
            let entries = record.entries.get(thing).map_or(&[][..], Vec::as_slice);
            for state in states {
                let cut = Cut {
                    at: end,
                    stable_until: end.min(before),
                    found: state.clone(),
                };
                if !holds(&begin, entries, Some(&cut)) {
                    let from = entries.len().saturating_sub(40);
                    self.fail(format!(
                        "{thing:?} cannot have come to {state:?} by {:?}{told}",
                        &entries[from..],
                    ));
                }
            }
            if states.len() > 1 {
                self.fail(format!("{thing:?} is torn: {states:?}"));
            }
        }
    }

    /// Histories go on from here.
    pub(crate) fn begin_with(&self, found: Found) {
        let begin = found
            .into_iter()
            .map(|(thing, mut states)| (thing, states.remove(0)));
        self.record.borrow_mut().begin = begin.collect();
    }

    /// The power is cut everywhere: the moment, as histories count it.
    pub(crate) fn cut_now(&self) -> u64 {
        self.cut_at.set(self.tick());
        self.cut_at.get()
    }

    /// Gives each torn cell one value, stable on return, so that histories go on.
    pub(crate) async fn mend(&self, client: &Client, slot: u16, found: &mut Found) {
        for (thing, states) in found.iter_mut().filter(|(_, states)| states.len() > 1) {
            let Thing::Cell { file, cell } = *thing else {
                continue;
            };
            let value = self.next_value();
            let write = Operation::Write {
                object: self.files[file],
                offset: FILES[file].0 * cell,
                append: false,
                kill_privileges: false,
            };
            let data = value.to_le_bytes().repeat(FILES[file].0 as usize / 8);
            let outcome = client.call(slot, write, Bytes::from(data)).await;
            if !matches!(outcome, Outcome::Written { .. }) {
                self.odd("a write", &outcome);
            }
            *states = vec![State::Cell(value)];
        }
    }
}

fn name_of(name: usize) -> Bytes {
    Bytes::from(format!("n{name}"))
}

/// Each word that is there, once; a cell that holds one value is told at a glance.
fn different_words(data: &[u8]) -> Vec<u64> {
    if data.len() < 8 {
        return if data.is_empty() {
            vec![0]
        } else {
            words(data)
        };
    }
    if data[8..] == data[..data.len() - 8] {
        return words(&data[..8]);
    }
    let mut values = words(data);
    values.sort_unstable();
    values.dedup();
    values
}

fn words(data: &[u8]) -> Vec<u64> {
    data.chunks(8)
        .map(|word| {
            let mut bytes = [0; 8];
            bytes[..word.len()].copy_from_slice(word);
            u64::from_le_bytes(bytes)
        })
        .collect()
}
