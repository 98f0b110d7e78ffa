//! What a mount may answer without the primary: names and attributes under leases (COH-1).
//!
//! A lease of an inode covers its attributes, that of a directory all of its names as well. All of
//! a session's leases last until the same moment, which each answer moves on, counted from when the
//! question was asked. What an operation of this mount may change is not answered from here while
//! it is under way: others may see it before its answer is back.
//!
//! A file that this mount holds alone (an exclusive lease) may be written and its attributes set
//! before the primary has heard of it (CL-1): the application is answered, and the request is on its
//! way as ever.
//!
//! Pure: whoever asks says what the time is, by a clock that goes on while the machine sleeps.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use protocol::fs::{
    Attributes, LEASES_OF_SESSION_MAX, Operation, Outcome, Place, Recalled, Reply, SetTime,
};
use protocol::mistakes::{Mistake, made};
use protocol::units::{ObjectId, Timestamp};

#[cfg(test)]
mod tests;

/// Memory of a lease with attributes, of a name besides its bytes, and of what is known about a
/// directory that is shared: entries of tables that are half full.
const LEASE_BYTES: usize = 600;
const NAME_BYTES: usize = 120;
/// Bytes that a cache may take if nobody says otherwise.
pub const CACHE_BYTES: u64 = 256 << 20;
/// Bytes that it may take at least.
pub const CACHE_BYTES_MIN: u64 = 1 << 20;
/// Clocks of two machines differ in their rates by so much at most, in percent, both ways.
const RATES_PERCENT: u32 = 2;
/// An idle mount asks something after so much of the lease time.
const ASKS_AFTER: u32 = 4;
/// The kernel keeps a name for so long at most: it cannot be told of all names of a directory without
/// a lock of its own, so a lease of one is given back when it has forgotten them by itself.
const NAMES_FOR: Duration = Duration::from_millis(300);
/// The kernel counts from when the process that asked gets round to the answer, which may be so late:
/// what it is told is valid for that much less than the lease.
const LATE: Duration = Duration::from_millis(700);
/// After a recall it keeps no names of the directory for so long: each is asked for, and answered from
/// here, so that nobody waits again.
const SHARED_FOR: Duration = Duration::from_secs(60);
/// Directories that are remembered to be shared.
const SHARED_MAX: usize = 16 << 10;
const SHARED_TIDIED_EVERY: Duration = Duration::from_secs(1);
/// While an early change is unanswered for so long nothing is answered early: where the primary or the
/// way to it is slow, what others wait for shall not grow.
pub const EARLY_UNANSWERED_MAX: Duration = Duration::from_millis(500);
/// Set-user-id and set-group-id.
const PRIVILEGES: u32 = 0o6000;
/// Files of which it is remembered that the kernel may have their ACLs.
const ACLS_MAX: usize = 64 << 10;
/// Extended attributes that the kernel keeps (posix_acl_xattr.h).
const ACL_NAMES: &[u8] = b"system.posix_acl_";
const ENOENT: i32 = 2;

/// What is known of a name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    Object(ObjectId),
    /// There is no such name.
    Nothing,
    /// The mount changed it, and was not told what it is now.
    Unknown,
}

#[derive(Debug, Default)]
struct Held {
    attributes: Option<Attributes>,
    /// Of a directory.
    names: HashMap<Bytes, Named>,
    /// There are no others: the mount made the directory, and knew of every change since.
    names_all: bool,
    used: u64,
    offered: bool,
    /// Nobody else is told anything of it.
    alone: bool,
    /// Its attributes with all changes that are on their way, as far as they are known: but for
    /// times that the primary sets.
    ahead: Option<Attributes>,
    /// When it was changed, by the last answer.
    changed_at: Timestamp,
    /// Changes on their way that were answered already.
    early: u32,
    /// The kernel may answer by itself, until then at the latest: attributes, and names.
    attributes_handed: Duration,
    /// When attributes were handed to it last.
    handed_at: Duration,
    names_handed: Duration,
}

impl Held {
    /// The object that a name leads to, or that there is no such name; `None`: that is not known.
    fn named(&self, name: &Bytes) -> Option<Option<ObjectId>> {
        match self.names.get(name) {
            Some(Named::Object(object)) => Some(Some(*object)),
            Some(Named::Nothing) => Some(None),
            Some(Named::Unknown) => None,
            None => self.names_all.then_some(None),
        }
    }
}

/// A directory of which others change names.
#[derive(Debug)]
struct SharedDirectory {
    until: Duration,
    /// The kernel may have names until then.
    names_handed: Duration,
}

/// For how long what an answer tells may be kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fresh {
    /// A name, or that there is none.
    pub names: Duration,
    /// Attributes.
    pub attributes: Duration,
    /// When it was so.
    pub at: Duration,
}

impl Fresh {
    /// Whether it took so long to get round to the answer that nothing of it may be kept.
    #[must_use]
    pub fn is_old(&self, now: Duration) -> bool {
        now >= self.at + LATE / 2
    }

    /// What may be kept by who gets round to it now.
    #[must_use]
    pub fn in_time(self, now: Duration) -> Self {
        match self.is_old(now) {
            false => self,
            true => Self {
                at: self.at,
                ..Self::default()
            },
        }
    }

    /// Whether what the kernel keeps of an answer that has just left, or may have stood still on the
    /// way, lasts for longer than it was meant to.
    #[must_use]
    pub fn is_late(&self, now: Duration) -> bool {
        now >= self.at + LATE
    }
}

/// What the kernel is to forget before leases are given back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forget {
    /// The recall's number.
    pub number: u64,
    /// Whose it is: each primary that lets the mount in counts its recalls anew.
    pub presented: u64,
    /// What is given back.
    pub objects: Vec<ObjectId>,
    /// Of these the kernel may have attributes.
    pub attributes: Vec<ObjectId>,
    /// Of these an answer that tells them may still be on its way inside of it.
    pub lately: BTreeSet<ObjectId>,
    /// It may have names of some of these until then.
    pub names_until: Duration,
}

impl Forget {
    /// What the kernel may know of an object that was held like that.
    fn add(&mut self, object: ObjectId, held: &Held, now: Duration) {
        if now < held.attributes_handed {
            self.attributes.push(object);
            if now < held.handed_at + LATE {
                self.lately.insert(object);
            }
        }
    }
}

/// How much is kept. What does not fit is asked for again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bounds {
    leases: usize,
    /// Of names, with what they take besides.
    name_bytes: usize,
}

impl Bounds {
    /// Half of it for leases, as far as a session may have so many; the rest for names.
    fn of(bytes: u64) -> Self {
        let bytes = usize::try_from(bytes.max(CACHE_BYTES_MIN)).unwrap_or(usize::MAX);
        let leases = (bytes / 2 / LEASE_BYTES).min(LEASES_OF_SESSION_MAX);
        Self {
            leases,
            name_bytes: bytes - leases * LEASE_BYTES,
        }
    }

    /// So many of the leases that were used longest ago are offered back at once.
    fn offers(self) -> usize {
        (self.leases / 64).max(1)
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Self::of(CACHE_BYTES)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Cache {
    bounds: Bounds,
    /// Until when all of it holds, and how long a lease lasts.
    until: Duration,
    lasts: Duration,
    asked: Duration,
    held: HashMap<ObjectId, Held>,
    order: BTreeMap<u64, ObjectId>,
    uses: u64,
    name_bytes: usize,
    /// Directories of which names are kept, by when they were used.
    with_names: BTreeSet<(u64, ObjectId)>,
    shared: HashMap<ObjectId, SharedDirectory>,
    shared_tidied: Duration,
    /// Nothing is offered back below so many.
    offer_from: usize,
    /// What operations under way may change.
    changing: HashMap<ObjectId, u32>,
    changing_names: HashMap<(ObjectId, Bytes), u32>,
    /// Changes on their way that were answered already, whatever became of the leases.
    early: HashMap<ObjectId, u32>,
    /// No file is longer, by the word of the primary; 0: it has said nothing.
    object_bytes_max: u64,
    /// How often it was said what is held, or nothing was any more.
    presented: u64,
    /// Recalled since that, by its number, and not given back yet.
    giving: BTreeMap<(u64, u64), Vec<ObjectId>>,
    /// Recalled, and the kernel may know it until then, whatever it was told.
    unsure: HashMap<ObjectId, Duration>,
    /// The kernel may have ACLs of these, for which it knows no time: it forgets them when it asks for
    /// attributes.
    acls: HashSet<ObjectId>,
    /// There were too many: it may have one of any.
    acls_of_any: bool,
}

impl Cache {
    /// It takes so many bytes, [`CACHE_BYTES_MIN`] at least, and some MiB for what it knows of others.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        Self {
            bounds: Bounds::of(bytes),
            ..Self::default()
        }
    }
}

fn count<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, u32>, key: K, begins: bool) {
    let counted = counts.entry(key);
    match (counted, begins) {
        (entry, true) => *entry.or_insert(0) += 1,
        (std::collections::hash_map::Entry::Occupied(mut left), false) => {
            *left.get_mut() -= 1;
            if *left.get() == 0 {
                left.remove();
            }
        }
        (std::collections::hash_map::Entry::Vacant(_), false) => {}
    }
}

/// What these names take.
fn bytes_of(names: &HashMap<Bytes, Named>) -> usize {
    names.keys().map(|name| NAME_BYTES + name.len()).sum()
}

/// The names that a change is about.
fn names_of(operation: &Operation) -> [Option<(ObjectId, &Bytes)>; 2] {
    match operation {
        Operation::MakeNode { parent, name, .. }
        | Operation::MakeDirectory { parent, name, .. }
        | Operation::Symlink { parent, name, .. }
        | Operation::Create { parent, name, .. }
        | Operation::Unlink { parent, name }
        | Operation::RemoveDirectory { parent, name } => [Some((*parent, name)), None],
        Operation::Rename {
            parent,
            name,
            new_parent,
            new_name,
            ..
        } => [Some((*parent, name)), Some((*new_parent, new_name))],
        Operation::Link {
            new_parent,
            new_name,
            ..
        } => [Some((*new_parent, new_name)), None],
        _ => [None, None],
    }
}

/// The object that a change names by itself.
fn object_of(operation: &Operation) -> Option<ObjectId> {
    match operation {
        Operation::SetAttributes { object, .. }
        | Operation::Write { object, .. }
        | Operation::CopyRange { object, .. }
        | Operation::SetXattr { object, .. }
        | Operation::RemoveXattr { object, .. }
        | Operation::Allocate { object, .. }
        | Operation::Link { object, .. } => Some(*object),
        _ => None,
    }
}

impl Cache {
    /// Leases that are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether none is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Whether nothing holds any more.
    #[must_use]
    pub fn has_lapsed(&self, now: Duration) -> bool {
        self.left(now).is_zero()
    }

    /// Until when everything holds.
    #[must_use]
    pub fn until(&self) -> Duration {
        self.until
    }

    /// How long everything still holds.
    fn left(&self, now: Duration) -> Duration {
        self.until.saturating_sub(now)
    }

    // ---- what goes by --------------------------------------------------------------------------

    /// A primary says how long a file can be, in bytes.
    pub fn files_up_to(&mut self, object_bytes_max: u64) {
        self.object_bytes_max = object_bytes_max;
    }

    /// What a change comes to, if it may be answered before it is asked, and when its file was changed
    /// by the last answer: the request says so. [`Cache::asks`] follows.
    pub fn early(
        &mut self,
        operation: &Operation,
        bytes: usize,
        now: Duration,
    ) -> Option<(Timestamp, Outcome)> {
        if self.left(now).is_zero() {
            return None;
        }
        let object = object_of(operation)?;
        let held = self.held.get_mut(&object).filter(|held| held.alone)?;
        // Whatever else is on its way may change it as well.
        let on_the_way = self.changing.get(&object).copied().unwrap_or(0);
        let ahead = held.ahead.as_mut().filter(|_| on_the_way == held.early)?;
        let outcome = match operation {
            Operation::Write {
                offset,
                append: false,
                kill_privileges,
                ..
            } => {
                // So the kernel asks of everybody but root; mostly there is nothing to take away.
                if *kill_privileges && ahead.mode & PRIVILEGES != 0 {
                    return None;
                }
                let end = offset.checked_add(bytes as u64)?;
                if end > self.object_bytes_max || bytes == 0 {
                    return None; // EFBIG is the primary's to say
                }
                ahead.size = ahead.size.max(end);
                Outcome::Written {
                    len: u32::try_from(bytes).ok()?,
                    offset: *offset,
                    attributes: *ahead,
                }
            }
            Operation::SetAttributes { set, .. } if set.size.is_none() && !set.kill_privileges => {
                ahead.mode = (ahead.mode & !0o7777) | (set.mode.unwrap_or(ahead.mode) & 0o7777);
                ahead.uid = set.uid.unwrap_or(ahead.uid);
                ahead.gid = set.gid.unwrap_or(ahead.gid);
                for (time, to) in [(&mut ahead.atime, set.atime), (&mut ahead.mtime, set.mtime)] {
                    if let Some(SetTime::At(at)) = to {
                        *time = at;
                    }
                }
                Outcome::Attributes(*ahead)
            }
            _ => return None,
        };
        held.early += 1;
        Some((held.changed_at, outcome))
    }

    /// Something is asked. What it may change is not answered from here until it is over; returns
    /// what [`Cache::over`] is to be told then. `early`: it was answered.
    pub fn asks(&mut self, operation: &Operation, early: bool, now: Duration) -> Vec<ObjectId> {
        self.asked = now;
        if let Operation::GetXattr { object, name, .. } = operation
            && name.starts_with(ACL_NAMES)
        {
            self.acls_of_any |= self.acls.len() >= ACLS_MAX;
            match self.acls_of_any {
                true => self.acls = HashSet::new(),
                false => _ = self.acls.insert(*object),
            }
        }
        if !operation.changes() {
            return Vec::new();
        }
        let mut objects: BTreeSet<ObjectId> = object_of(operation).into_iter().collect();
        for (parent, name) in names_of(operation).into_iter().flatten() {
            objects.insert(parent);
            let led_to = self.held.get(&parent).and_then(|held| held.named(name));
            objects.extend(led_to.flatten());
            self.forget_name(parent, name);
            count(&mut self.changing_names, (parent, name.clone()), true);
        }
        for object in &objects {
            count(&mut self.changing, *object, true);
            if early {
                count(&mut self.early, *object, true);
            }
            self.forget_attributes(*object);
            if let Some(held) = self.held.get_mut(object).filter(|_| !early) {
                held.ahead = None;
            }
        }
        objects.into_iter().collect()
    }

    /// An operation is over, answered or not; `early`: as [`Cache::asks`] was told.
    pub fn over(&mut self, operation: &Operation, objects: &[ObjectId], early: bool) {
        for object in objects {
            count(&mut self.changing, *object, false);
            if early {
                count(&mut self.early, *object, false);
            }
            // A lease that was lost and granted anew counts from none.
            if let Some(held) = self.held.get_mut(object).filter(|_| early) {
                held.early = held.early.saturating_sub(1);
            }
        }
        if operation.changes() {
            for (parent, name) in names_of(operation).into_iter().flatten() {
                count(&mut self.changing_names, (parent, name.clone()), false);
            }
        }
    }

    /// An answer to what was asked at `asked`, after [`Cache::over`]. `again`: it was asked more than
    /// once, and the answer does not tell what it changed.
    pub fn answered(
        &mut self,
        operation: &Operation,
        reply: &Reply,
        asked: Duration,
        again: bool,
        now: Duration,
    ) {
        if reply.lease_ms > 0 {
            self.lasts = Duration::from_millis(u64::from(reply.lease_ms));
            let from = match made(Mistake::CountsFromTheAnswer) {
                true => now,
                false => asked,
            };
            let until = from + self.lasts * (100 - RATES_PERCENT) / 100;
            self.until = self.until.max(until);
        }
        if again && operation.changes() {
            self.held.values_mut().for_each(|h| h.attributes = None);
        }
        self.changed(&reply.old);
        for object in &reply.leases {
            self.held.entry(*object).or_default();
            self.touch(*object);
        }
        for object in &reply.busy {
            let held = self.held.get(object);
            let handed = held.map_or(Duration::ZERO, |held| held.names_handed);
            self.is_changed_by_others(*object, handed, now);
        }
        if let Some(held) = reply.exclusive.and_then(|alone| self.held.get_mut(&alone)) {
            held.alone = true;
        }
        for (object, at) in &reply.times {
            if let Some(held) = self.held.get_mut(object) {
                held.changed_at = held.changed_at.max(*at);
            }
        }
        let leased = |object: ObjectId| reply.leases.contains(&object);
        for directory in &reply.directories {
            if leased(directory.object) {
                self.keep_attributes(directory);
            }
        }
        match (&reply.outcome, operation) {
            (Outcome::Entries(entries), Operation::ReadDirectory { object, .. }) => {
                // Many, and all of them leased or hardly any.
                let leases: BTreeSet<_> = reply.leases.iter().copied().collect();
                for entry in entries {
                    let Some(attributes) = &entry.attributes else {
                        continue;
                    };
                    if leases.contains(&entry.object) {
                        self.keep_attributes(attributes);
                    }
                    if leases.contains(object) {
                        self.keep_name(*object, &entry.name, Some(entry.object));
                    }
                }
            }
            (Outcome::Entry(a), _) => {
                if leased(a.object) {
                    self.keep_attributes(a);
                }
                let named = match operation {
                    Operation::Lookup { parent, name } => Some((*parent, name)),
                    other => names_of(other)[0],
                };
                if let Some((parent, name)) = named.filter(|(parent, _)| leased(*parent)) {
                    self.keep_name(parent, name, Some(a.object));
                }
                let makes = matches!(operation, Operation::MakeDirectory { .. });
                if makes && leased(a.object) && !again {
                    self.is_new(a.object);
                }
            }
            (
                Outcome::Done,
                Operation::Unlink { parent, name } | Operation::RemoveDirectory { parent, name },
            ) if !again => self.is_gone(*parent, name),
            (Outcome::Error(ENOENT), Operation::Lookup { parent, name }) if leased(*parent) => {
                self.keep_name(*parent, name, None);
            }
            (Outcome::Attributes(a) | Outcome::Written { attributes: a, .. }, _)
                if leased(a.object) =>
            {
                self.keep_attributes(a);
            }
            _ => {}
        }
    }

    /// These objects were changed: what is known of them is old.
    pub fn changed(&mut self, objects: &[ObjectId]) {
        objects
            .iter()
            .for_each(|object| self.forget_attributes(*object));
    }

    /// What was answered early did not take effect: what the object is now, the next answer tells.
    pub fn failed(&mut self, object: ObjectId) {
        self.forget_attributes(object);
        if let Some(held) = self.held.get_mut(&object) {
            held.ahead = None;
        }
    }

    fn touch(&mut self, object: ObjectId) {
        let Some(held) = self.held.get_mut(&object) else {
            return;
        };
        self.order.remove(&held.used);
        self.uses += 1;
        if self.with_names.remove(&(held.used, object)) {
            self.with_names.insert((self.uses, object));
        }
        held.used = self.uses;
        self.order.insert(held.used, object);
    }

    fn keep_attributes(&mut self, attributes: &Attributes) {
        let object = attributes.object;
        let changes = self.changing.contains_key(&object);
        let Some(held) = self.held.get_mut(&object) else {
            return;
        };
        // A copy's answer may come late. Every change of an object has a time of its own.
        let is_old = attributes.ctime < held.changed_at;
        held.changed_at = held.changed_at.max(attributes.ctime);
        if !changes && !is_old {
            held.attributes = Some(*attributes);
            held.ahead = Some(*attributes);
        }
    }

    fn forget_attributes(&mut self, object: ObjectId) {
        if let Some(held) = self.held.get_mut(&object) {
            held.attributes = None;
        }
    }

    fn keep_name(&mut self, parent: ObjectId, name: &Bytes, object: Option<ObjectId>) {
        // A name of an answer would keep the whole answer in memory.
        let key = (parent, Bytes::copy_from_slice(name));
        if self.changing_names.contains_key(&key) || !self.held.contains_key(&parent) {
            return;
        }
        let bytes = NAME_BYTES + name.len();
        self.make_room_for_names(parent, bytes);
        let Some(held) = self.held.get_mut(&parent) else {
            return;
        };
        let named = object.map_or(Named::Nothing, Named::Object);
        if held.names.insert(key.1, named).is_none() {
            self.name_bytes += bytes;
        }
        self.with_names.insert((held.used, parent));
    }

    /// Forgets names: of the directories that were used longest ago, and of the one that needs room
    /// last.
    fn make_room_for_names(&mut self, parent: ObjectId, bytes: usize) {
        while self.name_bytes + bytes > self.bounds.name_bytes {
            let mut oldest = self.with_names.iter();
            let Some((_, other)) = oldest.find(|(_, of)| *of != parent).copied() else {
                return self.forget_names(parent);
            };
            self.forget_names(other);
        }
    }

    /// Forgets all names of a directory.
    fn forget_names(&mut self, directory: ObjectId) {
        if let Some(held) = self.held.get_mut(&directory) {
            self.with_names.remove(&(held.used, directory));
            self.name_bytes -= bytes_of(&std::mem::take(&mut held.names));
            held.names_all = false;
        }
    }

    /// A name is changed by the mount itself.
    fn forget_name(&mut self, parent: ObjectId, name: &Bytes) {
        if self.changing_names.contains_key(&(parent, name.clone())) {
            // Which of them comes first, no answer will tell.
            self.forget_names(parent);
        }
        let Some(held) = self.held.get_mut(&parent) else {
            return;
        };
        let bytes = NAME_BYTES + name.len();
        if !held.names_all {
            if held.names.remove(name).is_some() {
                self.name_bytes -= bytes;
            }
        } else if let Some(named) = held.names.get_mut(name) {
            *named = Named::Unknown;
        } else {
            // That it is unknown is to be remembered, or it would count as not there.
            self.make_room_for_names(parent, bytes);
            let held = self.held.get_mut(&parent).filter(|held| held.names_all);
            if let Some(held) = held {
                held.names
                    .insert(Bytes::copy_from_slice(name), Named::Unknown);
                self.name_bytes += bytes;
                self.with_names.insert((held.used, parent));
            }
        }
    }

    /// The mount made this directory, which nobody else has changed since.
    fn is_new(&mut self, directory: ObjectId) {
        if let Some(held) = self.held.get_mut(&directory) {
            held.names_all = held.names.is_empty();
        }
    }

    /// The mount removed this name, and nobody else changed its directory since.
    fn is_gone(&mut self, parent: ObjectId, name: &Bytes) {
        if self.changing_names.contains_key(&(parent, name.clone())) {
            return;
        }
        let held = self.held.get_mut(&parent).filter(|held| held.names_all);
        if held.is_some_and(|held| held.names.remove(name).is_some()) {
            self.name_bytes -= NAME_BYTES + name.len();
        }
    }

    fn drop_held(&mut self, object: ObjectId) -> Option<Held> {
        let held = self.held.remove(&object)?;
        self.order.remove(&held.used);
        self.with_names.remove(&(held.used, object));
        self.name_bytes -= bytes_of(&held.names);
        Some(held)
    }

    // ---- answers -------------------------------------------------------------------------------

    /// What is known of a question, and for how long the kernel may keep it.
    pub fn look(&mut self, operation: &Operation, now: Duration) -> Option<(Outcome, Fresh)> {
        if self.left(now).is_zero() {
            return None;
        }
        let outcome = match operation {
            Operation::Lookup { parent, name } => match self.held.get(parent)?.named(name)? {
                Some(object) => Outcome::Entry(self.held.get(&object)?.attributes?),
                None => Outcome::Error(ENOENT),
            },
            Operation::GetAttributes { object } => {
                Outcome::Attributes(self.held.get(object)?.attributes?)
            }
            _ => return None,
        };
        let fresh = self.fresh(operation, &outcome, now);
        Some((outcome, fresh))
    }

    /// How long the kernel may keep what an outcome tells; it counts as handed to it.
    pub fn fresh(&mut self, operation: &Operation, outcome: &Outcome, now: Duration) -> Fresh {
        let (named, object) = match (operation, outcome) {
            (Operation::Lookup { parent, name }, Outcome::Error(ENOENT)) => {
                (Some((*parent, name, None)), None)
            }
            (Operation::Lookup { parent, name }, Outcome::Entry(a)) => {
                (Some((*parent, name, Some(a.object))), Some(a))
            }
            (other, Outcome::Entry(a)) => {
                let named = names_of(other)[0];
                (named.map(|(p, name)| (p, name, Some(a.object))), Some(a))
            }
            (_, Outcome::Attributes(a)) => (None, Some(a)),
            _ => (None, None),
        };
        let names = named.map_or(Duration::ZERO, |(parent, name, object)| {
            self.hand_name(parent, name, object, now)
        });
        // The kernel does not notice where such an answer was overtaken by the word that the
        // attributes are old.
        let overtaken = matches!(
            operation,
            Operation::SetAttributes { .. } | Operation::Link { .. }
        );
        let object = object.filter(|_| !overtaken);
        let attributes = object.map_or(Duration::ZERO, |a| match outcome {
            Outcome::Entry(_) => self.hand_entry(a, now),
            _ => self.hand_attributes(a, now),
        });
        Fresh {
            names,
            attributes,
            at: now,
        }
    }

    /// How long the kernel may keep the attributes that come with a name. It would go on using an ACL
    /// that it has.
    pub fn hand_entry(&mut self, attributes: &Attributes, now: Duration) -> Duration {
        match self.acls_of_any || self.acls.contains(&attributes.object) {
            true => Duration::ZERO,
            false => self.hand_attributes(attributes, now),
        }
    }

    /// How long the kernel may keep a name.
    pub fn hand_name(
        &mut self,
        parent: ObjectId,
        name: &Bytes,
        object: Option<ObjectId>,
        now: Duration,
    ) -> Duration {
        let shared = self.shared.get(&parent);
        let left = match shared.is_some_and(|shared| now < shared.until) {
            true => Duration::ZERO,
            false => self.left(now).saturating_sub(LATE).min(NAMES_FOR),
        };
        match self.held.get_mut(&parent) {
            Some(held) if !left.is_zero() && held.named(name) == Some(object) => {
                held.names_handed = now + left + LATE;
                self.touch(parent);
                left
            }
            _ => Duration::ZERO,
        }
    }

    /// How long the kernel may keep attributes.
    pub fn hand_attributes(&mut self, attributes: &Attributes, now: Duration) -> Duration {
        let (left, until) = (self.left(now).saturating_sub(LATE), self.until);
        match self.held.get_mut(&attributes.object) {
            Some(held) if !left.is_zero() && held.attributes.as_ref() == Some(attributes) => {
                held.attributes_handed = until;
                held.handed_at = now;
                self.touch(attributes.object);
                left
            }
            _ => Duration::ZERO,
        }
    }

    /// What is known of an object's attributes.
    #[must_use]
    pub fn attributes_of(&self, object: ObjectId, now: Duration) -> Option<Attributes> {
        if self.has_lapsed(now) {
            return None;
        }
        self.held.get(&object)?.attributes
    }

    // ---- giving back ---------------------------------------------------------------------------

    /// The primary recalls leases: nothing is answered under them from now on. What the kernel has to
    /// forget before they are given back.
    pub fn recalled(&mut self, recalled: Recalled, now: Duration) -> Forget {
        let Recalled { number, objects } = recalled;
        let mut forget = Forget {
            number,
            presented: self.presented,
            ..Forget::default()
        };
        for object in &objects {
            let held = self.drop_held(*object).unwrap_or_default();
            forget.add(*object, &held, now);
            let names_until = self.becomes_shared(*object, &held, now);
            forget.names_until = forget.names_until.max(names_until);
        }
        forget.objects.clone_from(&objects);
        self.giving.insert((self.presented, number), objects);
        forget
    }

    /// An object is recalled, as somebody else changes it or it was offered. Until when the kernel may
    /// have names of it.
    fn becomes_shared(&mut self, object: ObjectId, held: &Held, now: Duration) -> Duration {
        let before = self.shared.get(&object);
        let handed = before.map_or(Duration::ZERO, |before| before.names_handed);
        let names_handed = handed.max(held.names_handed);
        // Else a file, or nobody walks there, or nobody else does.
        let walks = before.is_some() || !held.names_handed.is_zero();
        if walks && !held.offered {
            self.is_changed_by_others(object, names_handed, now);
        }
        names_handed
    }

    fn is_changed_by_others(&mut self, object: ObjectId, names_handed: Duration, now: Duration) {
        if self.has_room_for_shared(object, now) {
            let before = self.shared.get(&object);
            let before = before.map_or(Duration::ZERO, |before| before.names_handed);
            let shared = SharedDirectory {
                until: now + SHARED_FOR,
                names_handed: names_handed.max(before),
            };
            self.shared.insert(object, shared);
        }
    }

    /// Where there are too many, some directory is taken for one that nobody else changes.
    fn has_room_for_shared(&mut self, object: ObjectId, now: Duration) -> bool {
        if self.shared.len() < SHARED_MAX || self.shared.contains_key(&object) {
            return true;
        }
        if now >= self.shared_tidied + SHARED_TIDIED_EVERY {
            self.shared_tidied = now;
            self.shared
                .retain(|_, shared| now < shared.until.max(shared.names_handed));
        }
        self.shared.len() < SHARED_MAX
    }

    /// The kernel has forgotten: what may be given back. `None`: it was presented as held meanwhile,
    /// or nobody counts on it any more, and it will be recalled again if it has to be.
    pub fn gives_back(
        &mut self,
        forget: &Forget,
        but: &[ObjectId],
        now: Duration,
    ) -> Option<Recalled> {
        let until = self.until;
        self.unsure.retain(|_, until| now < *until);
        self.unsure
            .extend(but.iter().map(|object| (*object, until)));
        let mut objects = self.giving.remove(&(forget.presented, forget.number))?;
        objects.retain(|object| !self.unsure.contains_key(object));
        Some(Recalled {
            number: forget.number,
            objects,
        })
    }

    /// How many leases may be held.
    #[must_use]
    pub fn leases_max(&self) -> usize {
        self.bounds.leases
    }

    /// Leases to offer back, as there are many.
    pub fn to_offer(&mut self) -> Vec<ObjectId> {
        let at_once = self.bounds.offers();
        if self.held.len() + 2 * at_once < self.bounds.leases {
            self.offer_from = 0;
        } else if self.held.len() >= self.offer_from {
            // Those that are on their way back are not looked at again for each answer.
            self.offer_from = (self.held.len() + at_once / 2).min(self.bounds.leases);
            return self.offer(at_once);
        }
        Vec::new()
    }

    fn offer(&mut self, at_once: usize) -> Vec<ObjectId> {
        let oldest: Vec<_> = self.order.values().take(at_once).copied().collect();
        let mut offered = Vec::new();
        for object in oldest {
            if let Some(held) = self.held.get_mut(&object)
                && !std::mem::replace(&mut held.offered, true)
            {
                offered.push(object);
            }
        }
        offered
    }

    /// What is held, for a primary that lets the session in. What has lapsed may be somebody else's
    /// already, though no word of it arrived: it is forgotten.
    pub fn present(&mut self, now: Duration) -> Vec<ObjectId> {
        if self.left(now).is_zero() {
            self.clear();
            return Vec::new();
        }
        self.presented += 1;
        let giving = std::mem::take(&mut self.giving);
        let mut holds: BTreeSet<_> = giving.into_values().flatten().collect();
        holds.extend(self.held.keys());
        let unsure = self.unsure.iter().filter(|(_, until)| now < **until);
        holds.extend(unsure.map(|(object, _)| *object));
        self.held.values_mut().for_each(|held| held.offered = false);
        holds.into_iter().take(LEASES_OF_SESSION_MAX).collect()
    }

    /// What of that is held alone.
    #[must_use]
    pub fn alone(&self) -> Vec<ObjectId> {
        let held = self.held.iter().filter(|(_, held)| held.alone);
        held.map(|(object, _)| *object).collect()
    }

    /// What changes are about that were answered early and that no primary answered: they are sent
    /// again, and others are held off meanwhile, though it may be held no more.
    #[must_use]
    pub fn early_under_way(&self) -> Vec<ObjectId> {
        self.early.keys().copied().collect()
    }

    /// A primary let the session in, whose past has these ends of terms. If it lacks something of what
    /// was `seen`, nothing that is known counts any more: what the kernel is to forget; nothing is given
    /// back. [`Cache::present`] follows.
    pub fn let_in(&mut self, ends: &[Place], seen: Place, now: Duration) -> Option<Forget> {
        let (term, sequence) = seen;
        let mut ends = ends.iter();
        if !ends.any(|end| end.0 == term && sequence > end.1) {
            return None;
        }
        let mut forget = Forget::default();
        for (object, held) in &self.held {
            forget.add(*object, held, now);
        }
        self.clear();
        Some(forget)
    }

    /// Nothing is held.
    pub fn clear(&mut self) {
        self.held.clear();
        self.order.clear();
        self.with_names.clear();
        self.name_bytes = 0;
        self.presented += 1;
        self.giving.clear();
        self.unsure.clear();
        self.until = Duration::ZERO;
    }

    /// Whether something should be asked, so that the leases do not run out.
    #[must_use]
    pub fn wants_to_ask(&self, now: Duration) -> bool {
        let asked = now.saturating_sub(self.asked);
        !self.held.is_empty() && !self.left(now).is_zero() && asked >= self.lasts / ASKS_AFTER
    }
}
