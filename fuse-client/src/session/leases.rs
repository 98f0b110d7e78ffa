//! What a mount may answer without the primary: names and attributes under leases (COH-1).
//!
//! A lease of an inode covers its attributes, that of a directory all of its names as well. All of
//! a session's leases last until the same moment, which each answer moves on, counted from when the
//! question was asked. What an operation of this mount may change is not answered from here while
//! it is under way: others may see it before its answer is back.
//!
//! Pure: whoever asks says what the time is, by a clock that goes on while the machine sleeps.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use protocol::fs::{Attributes, LEASES_OF_SESSION_MAX, Operation, Outcome, Place, Recalled, Reply};
use protocol::mistakes::{Mistake, made};
use protocol::units::ObjectId;

#[cfg(test)]
mod tests;

/// Names that are kept, some 150 bytes each.
const NAMES_MAX: usize = 256 << 10;
/// From so many leases on, those that were used longest ago are offered back, so many at once.
const OFFER_FROM: usize = LEASES_OF_SESSION_MAX - 2 * OFFER_AT_ONCE;
const OFFER_AT_ONCE: usize = 1024;
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
/// Files of which it is remembered that the kernel may have their ACLs.
const ACLS_MAX: usize = 64 << 10;
/// Extended attributes that the kernel keeps (posix_acl_xattr.h).
const ACL_NAMES: &[u8] = b"system.posix_acl_";
const ENOENT: i32 = 2;

#[derive(Debug, Default)]
struct Held {
    attributes: Option<Attributes>,
    /// Of a directory; `None`: there is no such name.
    names: HashMap<Bytes, Option<ObjectId>>,
    used: u64,
    offered: bool,
    /// The kernel may answer by itself, until then at the latest: attributes, and names.
    attributes_handed: Duration,
    /// When attributes were handed to it last.
    handed_at: Duration,
    names_handed: Duration,
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

/// See the module.
#[derive(Debug, Default)]
pub struct Cache {
    /// Until when all of it holds, and how long a lease lasts.
    until: Duration,
    lasts: Duration,
    asked: Duration,
    held: HashMap<ObjectId, Held>,
    order: BTreeMap<u64, ObjectId>,
    uses: u64,
    names: usize,
    shared: HashMap<ObjectId, SharedDirectory>,
    /// What operations under way may change.
    changing: HashMap<ObjectId, u32>,
    changing_names: HashMap<(ObjectId, Bytes), u32>,
    /// Recalled, and not given back yet.
    giving: BTreeMap<u64, Vec<ObjectId>>,
    /// Recalled, and the kernel may know it until then, whatever it was told.
    unsure: HashMap<ObjectId, Duration>,
    /// The kernel may have ACLs of these, for which it knows no time: it forgets them when it asks for
    /// attributes.
    acls: HashSet<ObjectId>,
    /// There were too many: it may have one of any.
    acls_of_any: bool,
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

    /// How long everything still holds.
    fn left(&self, now: Duration) -> Duration {
        self.until.saturating_sub(now)
    }

    // ---- what goes by --------------------------------------------------------------------------

    /// Something is asked. What it may change is not answered from here until it is over; returns
    /// what [`Cache::over`] is to be told then.
    pub fn asks(&mut self, operation: &Operation, now: Duration) -> Vec<ObjectId> {
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
            let led_to = self.held.get(&parent).and_then(|held| held.names.get(name));
            objects.extend(led_to.copied().flatten());
            count(&mut self.changing_names, (parent, name.clone()), true);
            self.forget_name(parent, name);
        }
        for object in &objects {
            count(&mut self.changing, *object, true);
            self.forget_attributes(*object);
        }
        objects.into_iter().collect()
    }

    /// An operation is over, answered or not.
    pub fn over(&mut self, operation: &Operation, objects: &[ObjectId]) {
        for object in objects {
            count(&mut self.changing, *object, false);
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
        let leased = |object: ObjectId| reply.leases.contains(&object);
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
            }
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

    fn touch(&mut self, object: ObjectId) {
        let Some(held) = self.held.get_mut(&object) else {
            return;
        };
        self.order.remove(&held.used);
        self.uses += 1;
        held.used = self.uses;
        self.order.insert(held.used, object);
    }

    fn keep_attributes(&mut self, attributes: &Attributes) {
        let object = attributes.object;
        if !self.changing.contains_key(&object)
            && let Some(held) = self.held.get_mut(&object)
        {
            held.attributes = Some(*attributes);
        }
    }

    fn forget_attributes(&mut self, object: ObjectId) {
        if let Some(held) = self.held.get_mut(&object) {
            held.attributes = None;
        }
    }

    fn keep_name(&mut self, parent: ObjectId, name: &Bytes, object: Option<ObjectId>) {
        let key = (parent, name.clone());
        if self.changing_names.contains_key(&key) {
            return;
        }
        let Some(held) = self.held.get_mut(&parent) else {
            return;
        };
        if self.names >= NAMES_MAX {
            self.names -= held.names.len();
            held.names.clear();
        }
        if self.names < NAMES_MAX && held.names.insert(key.1, object).is_none() {
            self.names += 1;
        }
    }

    fn forget_name(&mut self, parent: ObjectId, name: &Bytes) {
        let held = self.held.get_mut(&parent);
        if held.is_some_and(|held| held.names.remove(name).is_some()) {
            self.names -= 1;
        }
    }

    fn drop_held(&mut self, object: ObjectId) -> Option<Held> {
        let held = self.held.remove(&object)?;
        self.order.remove(&held.used);
        self.names -= held.names.len();
        Some(held)
    }

    // ---- answers -------------------------------------------------------------------------------

    /// What is known of a question, and for how long the kernel may keep it.
    pub fn look(&mut self, operation: &Operation, now: Duration) -> Option<(Outcome, Fresh)> {
        if self.left(now).is_zero() {
            return None;
        }
        let outcome = match operation {
            Operation::Lookup { parent, name } => match self.held.get(parent)?.names.get(name)? {
                Some(object) => Outcome::Entry(self.held.get(object)?.attributes?),
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
            Some(held) if !left.is_zero() && held.names.get(name) == Some(&object) => {
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
            ..Forget::default()
        };
        for object in &objects {
            let held = self.drop_held(*object).unwrap_or_default();
            forget.add(*object, &held, now);
            let names_until = self.becomes_shared(*object, held.names_handed, now);
            forget.names_until = forget.names_until.max(names_until);
        }
        forget.objects.clone_from(&objects);
        self.giving.insert(number, objects);
        forget
    }

    /// Somebody else changes an object. Until when the kernel may have names of it.
    fn becomes_shared(&mut self, object: ObjectId, handed: Duration, now: Duration) -> Duration {
        if handed.is_zero() && !self.shared.contains_key(&object) {
            return Duration::ZERO; // a file, or nobody walks there
        }
        if self.shared.len() >= SHARED_MAX {
            self.shared
                .retain(|_, shared| now < shared.until.max(shared.names_handed));
        }
        let until = now + SHARED_FOR;
        let names_handed = handed;
        let shared = SharedDirectory {
            until,
            names_handed,
        };
        let before = self.shared.insert(object, shared);
        let handed = before.map_or(handed, |before| before.names_handed.max(handed));
        if let Some(shared) = self.shared.get_mut(&object) {
            shared.names_handed = handed;
        }
        handed
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
        let mut objects = self.giving.remove(&forget.number)?;
        objects.retain(|object| !self.unsure.contains_key(object));
        Some(Recalled {
            number: forget.number,
            objects,
        })
    }

    /// Leases to offer back, as there are many.
    pub fn to_offer(&mut self) -> Vec<ObjectId> {
        if self.held.len() < OFFER_FROM {
            return Vec::new();
        }
        let oldest: Vec<_> = self.order.values().take(OFFER_AT_ONCE).copied().collect();
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
        let giving = std::mem::take(&mut self.giving);
        let mut holds: BTreeSet<_> = giving.into_values().flatten().collect();
        holds.extend(self.held.keys());
        let unsure = self.unsure.iter().filter(|(_, until)| now < **until);
        holds.extend(unsure.map(|(object, _)| *object));
        self.held.values_mut().for_each(|held| held.offered = false);
        holds.into_iter().take(LEASES_OF_SESSION_MAX).collect()
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
        self.names = 0;
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
