//! What is held of an object, in an order in which it shows soon whether anything is in the way of
//! a lock: whoever gives something back has all who wait looked at.

use std::collections::{BTreeMap, BTreeSet};

use protocol::fs::{Lock, LockClass, LockKind};

use super::Held;
use super::waits::Owner;

/// By whom something is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sole {
    Nobody,
    One(Owner),
    Several,
}

impl Sole {
    fn of(owners: impl Iterator<Item = Owner>) -> Self {
        let mut owners = owners.take(2);
        match (owners.next(), owners.next()) {
            (None, _) => Self::Nobody,
            (Some(one), None) => Self::One(one),
            (Some(_), Some(_)) => Self::Several,
        }
    }

    fn is_another(self, owner: Owner) -> bool {
        match self {
            Self::Nobody => false,
            Self::One(one) => one != owner,
            Self::Several => true,
        }
    }
}

/// Bytes that the same owners hold in the same way.
#[derive(Debug, Clone, Copy)]
struct Segment {
    start: u64,
    end: u64,
    exclusively: Sole,
    anyhow: Sole,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Holders {
    whole: Vec<Segment>,
    ranges: Vec<Segment>,
}

impl Holders {
    pub(super) fn of(held: &[Held]) -> Self {
        let of_class = |class| {
            let of_class = held.iter().filter(|h| h.lock.owner.class == class);
            segments(of_class)
        };
        Self {
            whole: of_class(LockClass::Whole),
            ranges: of_class(LockClass::Ranges),
        }
    }

    /// Whether somebody else than `owner` holds what keeps it from `lock`.
    pub(super) fn are_in_the_way_of(&self, owner: Owner, lock: &Lock) -> bool {
        let segments = match lock.owner.class {
            LockClass::Whole => &self.whole,
            LockClass::Ranges => &self.ranges,
        };
        let first = segments.partition_point(|s| s.end < lock.start);
        let mut covered = segments[first..].iter().take_while(|s| s.start <= lock.end);
        covered.any(|s| match lock.kind {
            LockKind::Shared => s.exclusively.is_another(owner),
            LockKind::Exclusive => s.anyhow.is_another(owner),
        })
    }
}

/// In order, without those that nobody holds. The ranges of one owner do not overlap.
fn segments<'a>(held: impl Iterator<Item = &'a Held>) -> Vec<Segment> {
    // Who begins and who has ended where.
    let mut edges: BTreeMap<u64, (Vec<&Held>, Vec<&Held>)> = BTreeMap::new();
    for one in held {
        edges.entry(one.lock.start).or_default().0.push(one);
        // LOCK_END_MAX is below the largest number.
        edges.entry(one.lock.end + 1).or_default().1.push(one);
    }
    let (mut exclusively, mut anyhow) = (BTreeSet::new(), BTreeSet::new());
    let mut found: Vec<Segment> = Vec::new();
    let mut edges = edges.into_iter().peekable();
    while let Some((start, (begin, ended))) = edges.next() {
        for gone in ended {
            let owner = (gone.session, gone.lock.owner);
            exclusively.remove(&owner);
            anyhow.remove(&owner);
        }
        for new in begin {
            let owner = (new.session, new.lock.owner);
            anyhow.insert(owner);
            if new.lock.kind == LockKind::Exclusive {
                exclusively.insert(owner);
            }
        }
        if let (Some((next, _)), false) = (edges.peek(), anyhow.is_empty()) {
            found.push(Segment {
                start,
                end: next - 1,
                exclusively: Sole::of(exclusively.iter().copied()),
                anyhow: Sole::of(anyhow.iter().copied()),
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use protocol::fs::{LOCK_END_MAX, LockOwner};
    use protocol::ids::SessionId;

    use super::*;

    fn lock(what: (u64, bool, bool, u64, u64)) -> Held {
        let (id, whole, exclusive, a, b) = what;
        let kinds = [LockKind::Shared, LockKind::Exclusive];
        let classes = [LockClass::Ranges, LockClass::Whole];
        let end = a.max(b);
        Held {
            session: SessionId([u8::from(id > 2); 16]),
            lock: Lock {
                owner: LockOwner {
                    class: classes[usize::from(whole)],
                    id: id % 3,
                },
                kind: kinds[usize::from(exclusive)],
                start: a.min(b),
                end: if end == 11 { LOCK_END_MAX } else { end },
                pid: 1,
            },
        }
    }

    type Numbers = (u64, bool, bool, u64, u64);

    fn numbers() -> impl Strategy<Value = Numbers> {
        (0..6_u64, any::<bool>(), any::<bool>(), 0..12_u64, 0..12_u64)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn what_is_in_the_way_is_found_as_by_looking_at_each(
            held in prop::collection::vec(numbers(), 0..12),
            wanted in numbers(),
        ) {
            let mut all: Vec<Held> = Vec::new();
            for one in held.into_iter().map(lock) {
                let own = |h: &&Held| (h.session, h.lock.owner) == (one.session, one.lock.owner);
                let mut own = all.iter().filter(own);
                if own.all(|h| h.lock.end < one.lock.start || one.lock.end < h.lock.start) {
                    all.push(one);
                }
            }
            let wanted = lock(wanted);
            let (session, lock) = (wanted.session, &wanted.lock);
            let slowly = all.iter().any(|h| h.is_in_the_way_of(session, lock));
            let owner = (session, lock.owner);
            prop_assert_eq!(Holders::of(&all).are_in_the_way_of(owner, lock), slowly);
        }
    }
}
