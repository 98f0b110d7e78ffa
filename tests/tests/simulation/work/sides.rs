//! Room that is taken, and sides that part.

use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use protocol::fs::{Operation, Outcome};
use protocol::units::ObjectId;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::super::client::Client;
use super::super::history::{Act, Entry, State};
use super::super::network::Place;
use super::{ENOSPC, Found, Record, Thing, Work};

/// Slots that fill a file where there is little room, what each writes at once, and how often in all.
const FILLERS: Range<u16> = 200..208;
const FILLED_BYTES: usize = 28 << 10;
const FILLED_MAX: u64 = 400;

impl Work {
    // ---- room ------------------------------------------------------------------------------------

    /// Makes a file and fills it, a lot at once, until there is no room or it is time; then it goes.
    pub(crate) async fn fill(self: Rc<Self>, client: Client, until: Instant) {
        if self.fills.replace(true) {
            return; // somebody does so already
        }
        self.begins();
        let name = Bytes::from(format!("filler{}", self.next_value()));
        let create = Operation::Create {
            parent: ObjectId::ROOT,
            name: name.clone(),
            mode: 0o644,
            exclusive: true,
        };
        let made = client.call(FILLERS.start, create, Bytes::new()).await;
        if let Outcome::Entry(attributes) = made {
            let mut fillers = JoinSet::new();
            for slot in FILLERS {
                let filler = Rc::clone(&self).fill_part(client.clone(), attributes.object, slot);
                fillers.spawn_local(filler);
            }
            let _ = tokio::time::timeout_at(until, async {
                while fillers.join_next().await.is_some() {}
            })
            .await;
            // What was asked is answered first: a slot carries one operation at a time.
            self.hold_fillers.set(true);
            while fillers.join_next().await.is_some() {}
            self.hold_fillers.set(false);
            let parent = ObjectId::ROOT;
            let unlink = Operation::Unlink { parent, name };
            let gone = client.call(FILLERS.start, unlink, Bytes::new()).await;
            if gone != Outcome::Done {
                self.odd("an unlink where there is no room", &gone);
            }
        }
        self.fills.set(false);
        self.ends();
    }

    async fn fill_part(self: Rc<Self>, client: Client, object: ObjectId, slot: u16) {
        let slots = u64::from(FILLERS.end - FILLERS.start);
        let first = u64::from(slot - FILLERS.start);
        for at in (first..FILLED_MAX).step_by(slots as usize) {
            if self.hold_fillers.get() || self.ended.get() {
                return;
            }
            let write = Operation::Write {
                object,
                offset: at * FILLED_BYTES as u64,
                append: false,
                kill_privileges: false,
            };
            let data = Bytes::from(vec![1; FILLED_BYTES]);
            let outcome = client.call(slot, write, data).await;
            if outcome == Outcome::Error(ENOSPC) {
                tokio::time::sleep(Duration::from_millis(self.random.within(20..200))).await;
            } else if !matches!(outcome, Outcome::Written { .. }) {
                self.odd("filling a file", &outcome);
            }
        }
    }

    // ---- sides that part -------------------------------------------------------------------------

    /// Nobody begins anything in a directory any more, for now: what is under way there when two
    /// sides part has a result of its own on each.
    pub(crate) fn leave_directories(&self, leaves: bool) {
        self.leaves_directories.set(leaves);
    }

    /// How much is under way in directories.
    pub(crate) fn in_directories(&self) -> u32 {
        self.in_directories.get()
    }

    /// Now, as histories count it.
    pub(crate) fn moment(&self) -> u64 {
        self.tick()
    }

    /// Whether mounts of these places were confirmed so many changes that they asked for after that
    /// moment.
    pub(crate) fn changed_since(&self, after: u64, of: &[Place], count: usize) -> bool {
        let record = self.record.borrow();
        let entries = record.entries.values().flatten();
        let changes = entries
            .filter(|entry| entry.asked > after && of.contains(&entry.by) && entry.act.changes());
        changes.count() >= count
    }

    /// Checks the history of one side, which parted from the other at that moment, against what is
    /// found there. What the other side asked for before and was told later may be there or not,
    /// and so may what nobody was told.
    pub(crate) fn check_side(&self, found: &Found, parted_at: u64, side: &[Place]) {
        let mut record = self.record.borrow().clone();
        for entries in record.entries.values_mut() {
            let elsewhere = |entry: &Entry| entry.answered > parted_at && !side.contains(&entry.by);
            entries.retain(|entry| {
                !elsewhere(entry) || (entry.asked < parted_at && entry.act.changes())
            });
            for entry in entries.iter_mut().filter(|entry| elsewhere(entry)) {
                (entry.answered, entry.must) = (u64::MAX, false);
            }
        }
        self.add_pending(&mut record, |asked, by| {
            asked < parted_at || side.contains(&by)
        });
        let told = format!(", on the side of {side:?}");
        self.check_record(&record, found, u64::MAX, &told);
    }

    /// Adds what was asked and not answered, as what may be there or not.
    fn add_pending(&self, record: &mut Record, which: impl Fn(u64, Place) -> bool) {
        let pending = self.pending.borrow();
        let pending = pending
            .iter()
            .filter(|(asked, (by, ..))| which(**asked, *by));
        for (asked, (by, thing, act)) in pending {
            record.entries.entry(*thing).or_default().push(Entry {
                asked: *asked,
                answered: u64::MAX,
                by: *by,
                must: false,
                act: act.clone(),
            });
        }
    }

    /// Checks that what is found was there at one time, whatever came after it (RS-4): with
    /// something that was asked for, everything is there that had been answered before.
    pub(crate) fn check_beginning(&self, found: &Found) {
        let mut record = std::mem::take(&mut *self.record.borrow_mut());
        self.add_pending(&mut record, |_, _| true);
        let is_there = |(thing, act): (&Thing, &Act)| {
            let mut states = found.get(thing).into_iter().flatten();
            states.any(|state| match (state, act) {
                (State::Cell(now), Act::Write(value)) => now == value && *value != 0,
                (State::Log(log), Act::Append(value)) => log.contains(value),
                (State::Directory(names), Act::Create { made, .. }) => {
                    made.is_some() && names.contains(made)
                }
                _ => false,
            })
        };
        let all = record.entries.iter();
        let all = all.flat_map(|(thing, entries)| entries.iter().map(move |it| (thing, it)));
        let there = all.filter(|(thing, entry)| is_there((thing, &entry.act)));
        let newest = there.max_by_key(|(_, entry)| entry.asked);
        let told = format!(", as there is {newest:?}");
        let before = newest.map_or(0, |(_, entry)| entry.asked);
        self.check_record(&record, found, before, &told);
    }

    /// Histories go on from here, as if nothing had been before.
    pub(crate) fn begin_anew(&self, found: Found) {
        *self.record.borrow_mut() = Record::default();
        self.pending.borrow_mut().clear();
        self.begin_with(found);
    }

    /// What the mount asked will never be answered: it is gone.
    pub(crate) fn give_up(&self, mount: Place) {
        let busy = self.busy.borrow_mut().remove(&mount).unwrap_or(0);
        self.under_way.set(self.under_way.get() - busy);
    }

    /// How many operations of these mounts are under way.
    pub(crate) fn under_way_of(&self, mounts: &[Place]) -> u32 {
        let busy = self.busy.borrow();
        mounts.iter().filter_map(|mount| busy.get(mount)).sum()
    }

    /// A mount's worker begins something.
    pub(super) fn takes(&self, mount: Place) {
        *self.busy.borrow_mut().entry(mount).or_insert(0) += 1;
        self.begins();
    }

    /// It ended.
    pub(super) fn has_done(&self, mount: Place) {
        *self.busy.borrow_mut().entry(mount).or_insert(1) -= 1;
        self.ends();
    }
}
