//! After a take-over that may have lost what was confirmed: what the clients kept is put back in
//! the order in which it was confirmed first, whoever brings it, before anything new is taken
//! (DUR-5).
//!
//! Each session brings its own in order, so it is enough to know the next one of each: what is
//! lowest of all goes first. What was executed and never answered has a place as well, if another
//! session was told of it; it is held until that place is reached.
//!
//! Pure: the driver tells who brings what and when, and asks whose turn it is.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use protocol::fs::{AUTHORS_MAX, Author, Place, Present, Replay};
use protocol::ids::SessionId;
use protocol::units::{Sequence, Term};

/// Who brings something may let so much time pass between two pieces.
const QUIET_FOR: Duration = Duration::from_secs(2);
/// Longest in all: then a session would end anyway.
const LONGEST: Duration = Duration::from_secs(30);
/// Bytes of unanswered operations that are held for their places; what is beyond comes again as
/// a request, after everything else.
const HELD_BYTES_MAX: usize = 64 << 20;
/// Terms of which it is remembered what is stable.
const TERMS_MAX: usize = 64;

fn held_bytes_of(replay: &Replay) -> usize {
    256 + replay.request.payload.len()
}

/// How far a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stand {
    /// It has not come, and is awaited until then.
    Awaited(Duration),
    /// What it brings next is not known yet; it is waited for until then.
    Brings(Duration),
    /// This is next.
    Next(Place),
    /// That was all.
    Done,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Gathering {
    sessions: BTreeMap<SessionId, Stand>,
    authors: HashMap<(SessionId, u16, u64), Place>,
    /// Up to where anybody knows everything to be stable, by the term in which that was told.
    stable: BTreeMap<Term, Sequence>,
    held: Vec<(SessionId, Box<Replay>)>,
    held_bytes: usize,
    /// Sessions that were waited for in vain.
    left_behind: usize,
    at_last: Duration,
}

/// Whose turn it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// The one that was asked for.
    Mine,
    /// First one that is held, at its place.
    Held(Place),
    /// Somebody else's.
    Later,
}

impl Gathering {
    /// Begins to await these sessions, for so long.
    pub(super) fn begin(
        awaited: impl IntoIterator<Item = SessionId>,
        now: Duration,
        within: Duration,
    ) -> Self {
        let sessions = awaited
            .into_iter()
            .map(|id| (id, Stand::Awaited(now + within)));
        Self {
            sessions: sessions.collect(),
            authors: HashMap::new(),
            stable: BTreeMap::new(),
            held: Vec::new(),
            held_bytes: 0,
            left_behind: 0,
            at_last: now + LONGEST,
        }
    }

    /// Whether everybody has brought everything, or was waited for long enough.
    pub(super) fn is_over(&mut self, now: Duration) -> bool {
        self.leave_behind(now);
        now >= self.at_last || self.sessions.values().all(|stand| *stand == Stand::Done)
    }

    /// Who does not come, or does not go on, is waited for no more: the others go on in order.
    fn leave_behind(&mut self, now: Duration) {
        let before = self.sessions.len();
        self.sessions.retain(|_, stand| match stand {
            Stand::Awaited(until) | Stand::Brings(until) => now < *until,
            Stand::Next(_) | Stand::Done => true,
        });
        self.left_behind += before - self.sessions.len();
    }

    /// Sessions that were waited for and have not brought everything.
    pub(super) fn missing(&self) -> usize {
        let stands = self.sessions.values();
        self.left_behind + stands.filter(|stand| **stand != Stand::Done).count()
    }

    /// Whether anybody knows a record of this past to be stable. A later term says nothing about
    /// records beyond what was told in it: who was just let in was told nothing yet.
    pub(super) fn is_stable(&self, (term, sequence): Place) -> bool {
        let mut told = self.stable.range(term..);
        told.any(|(_, upto)| sequence <= *upto)
    }

    fn stand(&mut self, session: SessionId, stand: Stand) {
        // Who was not there before has nothing to wait for.
        if let Some(before) = self.sessions.get_mut(&session) {
            *before = stand;
        }
    }

    /// A session begins to bring, perhaps anew.
    pub(super) fn brings(&mut self, session: SessionId, now: Duration) {
        self.stand(session, Stand::Brings(now + QUIET_FOR));
    }

    /// What a session knows of the others' operations.
    pub(super) fn presented(&mut self, present: Present) {
        let (term, upto) = present.stable;
        if upto > Sequence::ZERO && self.stable.len() < TERMS_MAX {
            let known = self.stable.entry(term).or_default();
            *known = upto.max(*known);
        }
        for author in present.authors {
            if self.authors.len() < 64 * AUTHORS_MAX {
                let key = (author.session, author.slot, author.number);
                self.authors.insert(key, author.at);
            }
        }
    }

    /// A session has brought everything.
    pub(super) fn done(&mut self, session: SessionId) {
        self.stand(session, Stand::Done);
    }

    /// A session ended.
    pub(super) fn gone(&mut self, session: SessionId) {
        self.sessions.remove(&session);
    }

    /// Holds what was never answered, until its place is known and reached.
    pub(super) fn hold(&mut self, session: SessionId, replay: Box<Replay>) {
        let bytes = held_bytes_of(&replay);
        let key = |r: &Replay| (r.request.slot, r.request.number);
        // Who comes again brings the same again.
        let again =
            |(of, held): &(SessionId, Box<Replay>)| *of == session && key(held) == key(&replay);
        if self.held_bytes + bytes <= HELD_BYTES_MAX && !self.held.iter().any(again) {
            self.held_bytes += bytes;
            self.held.push((session, replay));
        }
    }

    /// The place of an operation that was never answered, if it is here or anybody was told.
    fn place_of(&self, session: SessionId, replay: &Replay) -> Option<Place> {
        if replay.order.is_some() {
            return replay.order;
        }
        let key = (session, replay.request.slot, replay.request.number);
        self.authors.get(&key).copied()
    }

    /// The first of those that are held and have a place.
    pub(super) fn first_held(&self) -> Option<Place> {
        let places = self.held.iter().map(|(s, r)| self.place_of(*s, r));
        places.flatten().min()
    }

    fn let_go(&mut self, at: usize) -> (SessionId, Box<Replay>) {
        let (session, replay) = self.held.swap_remove(at);
        self.held_bytes -= held_bytes_of(&replay);
        (session, replay)
    }

    /// Takes what is held for this place.
    pub(super) fn take_held(&mut self, place: Place) -> Option<(SessionId, Box<Replay>)> {
        let at = self
            .held
            .iter()
            .position(|(s, r)| self.place_of(*s, r) == Some(place))?;
        let (session, mut replay) = self.let_go(at);
        replay.order = Some(place);
        Some((session, replay))
    }

    /// Takes one of those that are held and have no place.
    pub(super) fn take_unplaced(
        &mut self,
        wanted: impl Fn(&Replay) -> bool,
    ) -> Option<(SessionId, Box<Replay>)> {
        let mut held = self.held.iter();
        let at = held.position(|(s, r)| self.place_of(*s, r).is_none() && wanted(r))?;
        Some(self.let_go(at))
    }

    /// The session has this one next: whether it may go now.
    pub(super) fn turn(&mut self, session: SessionId, place: Place, now: Duration) -> Turn {
        if self.sessions.get(&session) != Some(&Stand::Next(place)) {
            self.stand(session, Stand::Next(place));
        }
        self.leave_behind(now);
        let comes = |stand: &Stand| matches!(stand, Stand::Awaited(_) | Stand::Brings(_));
        if self.sessions.values().any(comes) {
            return Turn::Later;
        }
        let before = |stand: &Stand| matches!(stand, Stand::Next(other) if *other < place);
        if self.sessions.values().any(before) {
            return Turn::Later;
        }
        match self.first_held() {
            Some(held) if held < place => Turn::Held(held),
            _ => Turn::Mine,
        }
    }
}

/// Whose requests the latest records carry out, as far as they are not stable.
#[derive(Debug, Default)]
pub(super) struct Authors {
    list: VecDeque<Author>,
}

/// Records that are remembered; far more than wait for a sync by the brick's own bounds.
const REMEMBERED_MAX: usize = 64 << 10;

impl Authors {
    /// Nothing is known any more.
    pub(super) fn clear(&mut self) {
        self.list.clear();
    }

    /// The latest record carries out this request.
    pub(super) fn note(&mut self, author: Author, stable: Sequence) {
        while self.list.front().is_some_and(|a| a.at.1 <= stable)
            || self.list.len() >= REMEMBERED_MAX
        {
            self.list.pop_front();
        }
        self.list.push_back(author);
    }

    /// Those of other sessions after one record, up to another.
    pub(super) fn between(
        &self,
        told: Sequence,
        upto: Sequence,
        stable: Sequence,
        session: SessionId,
    ) -> Vec<Author> {
        let from = self.list.partition_point(|a| a.at.1 <= told.max(stable));
        let new = self.list.range(from..).take_while(|a| a.at.1 <= upto);
        let others = new.filter(|a| a.session != session);
        others.take(AUTHORS_MAX).copied().collect()
    }
}

/// Sessions that changed something since this primary serves.
#[derive(Debug, Default)]
pub(super) struct Changers(BTreeSet<SessionId>);

impl Changers {
    /// One did.
    pub(super) fn note(&mut self, session: SessionId) {
        // Who they are matters only while there is one.
        if self.0.len() < 2 {
            self.0.insert(session);
        }
    }

    /// Nobody did.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Whether anybody but this session did.
    pub(super) fn any_other(&self, session: SessionId) -> bool {
        self.0.iter().any(|id| *id != session)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use protocol::fs::{Caller, Operation, Request};
    use protocol::units::{ObjectId, Term, Timestamp};

    const AWAITED: Duration = Duration::from_secs(5);

    use super::*;

    const A: SessionId = SessionId([1; 16]);
    const B: SessionId = SessionId([2; 16]);

    fn place(sequence: u64) -> Place {
        (Term(3), Sequence(sequence))
    }

    fn unanswered(slot: u16) -> Box<Replay> {
        Box::new(Replay {
            order: None,
            at: Place::default(),
            time: Timestamp(0),
            request: Request {
                slot,
                number: 1,
                caller: Caller::default(),
                operation: Operation::Unlink {
                    parent: ObjectId::ROOT,
                    name: Bytes::from_static(b"n"),
                },
                early: None,
                payload: Bytes::new(),
            },
        })
    }

    #[test]
    fn what_was_confirmed_first_goes_first_whoever_brings_it() {
        let now = Duration::ZERO;
        let mut gathering = Gathering::begin([A, B], now, AWAITED);
        assert_eq!(
            gathering.turn(A, place(5), now),
            Turn::Later,
            "B is awaited"
        );
        assert_eq!(gathering.turn(B, place(4), now), Turn::Mine);
        gathering.brings(B, now);
        assert_eq!(gathering.turn(A, place(5), now), Turn::Later, "B goes on");
        assert_eq!(gathering.turn(B, place(6), now), Turn::Later);
        assert_eq!(gathering.turn(A, place(5), now), Turn::Mine);
        gathering.done(A);
        assert_eq!(gathering.turn(B, place(6), now), Turn::Mine);
        assert!(!gathering.is_over(now));
        gathering.done(B);
        assert!(gathering.is_over(now));
    }

    #[test]
    fn an_unanswered_operation_gets_the_place_that_another_session_was_told() {
        let now = Duration::ZERO;
        let mut gathering = Gathering::begin([A, B], now, AWAITED);
        gathering.hold(A, unanswered(7));
        gathering.hold(A, unanswered(7));
        gathering.hold(A, unanswered(8));
        gathering.done(A);
        let author = Author {
            at: place(4),
            session: A,
            slot: 7,
            number: 1,
        };
        gathering.presented(Present {
            authors: vec![author],
            stable: place(2),
            leases: Vec::new(),
            exclusive: Vec::new(),
            early: Vec::new(),
        });
        assert_eq!(gathering.turn(B, place(3), now), Turn::Mine);
        assert_eq!(gathering.turn(B, place(5), now), Turn::Held(place(4)));
        let (session, replay) = gathering.take_held(place(4)).expect("it is held");
        assert_eq!((session, replay.order), (A, Some(place(4))));
        assert_eq!(gathering.turn(B, place(5), now), Turn::Mine);
        assert_eq!(gathering.first_held(), None, "nobody saw the other one");
    }

    /// A client was let in by the new primary, lost the connection, and came again: all that it
    /// knew of the new term was nothing, and that counted for more than all of the old one.
    #[test]
    fn dur_5_what_is_known_to_be_stable_is_known_of_one_term() {
        let mut gathering = Gathering::begin([A, B], Duration::ZERO, AWAITED);
        let place = |term, sequence| (Term(term), Sequence(sequence));
        for stable in [place(13, 100), place(14, 0), place(15, 40)] {
            gathering.presented(Present {
                authors: Vec::new(),
                stable,
                leases: Vec::new(),
                exclusive: Vec::new(),
                early: Vec::new(),
            });
        }
        assert!(gathering.is_stable(place(13, 100)) && gathering.is_stable(place(12, 90)));
        assert!(!gathering.is_stable(place(13, 101)));
        assert!(!gathering.is_stable(place(14, 50)) && gathering.is_stable(place(14, 40)));
        assert!(!gathering.is_stable(place(16, 1)));
    }

    #[test]
    fn who_does_not_come_or_stalls_is_left_behind_and_the_others_go_on_in_order() {
        let (c, d) = (SessionId([3; 16]), SessionId([4; 16]));
        let now = Duration::ZERO;
        let mut gathering = Gathering::begin([A, B, c, d], now, AWAITED);
        assert_eq!(gathering.turn(A, place(5), now), Turn::Later);
        assert_eq!(gathering.turn(B, place(4), now), Turn::Later);
        let late = AWAITED;
        gathering.brings(d, late - Duration::from_millis(1));
        assert!(!gathering.is_over(late), "c is given up, the rest goes on");
        assert_eq!(gathering.turn(B, place(4), late), Turn::Later, "d is at it");
        let later = late + QUIET_FOR;
        assert_eq!(gathering.turn(A, place(5), later), Turn::Later, "B first");
        assert_eq!(gathering.turn(B, place(4), later), Turn::Mine);
        gathering.done(B);
        assert_eq!(gathering.turn(A, place(5), later), Turn::Mine);
        gathering.done(A);
        assert!(gathering.is_over(later));
        assert_eq!(gathering.missing(), 2);
        let mut gathering = Gathering::begin([A], now, AWAITED);
        assert_eq!(gathering.turn(A, place(5), now), Turn::Mine);
        assert!(gathering.is_over(LONGEST), "not for ever");
        gathering.gone(A);
        assert_eq!(gathering.missing(), 0);
    }

    #[test]
    fn a_session_is_told_once_of_the_records_of_others_that_are_not_stable() {
        let mut authors = Authors::default();
        for (sequence, session) in [(1, A), (2, B), (3, A), (4, B)] {
            let author = Author {
                at: place(sequence),
                session,
                slot: 0,
                number: sequence,
            };
            authors.note(author, Sequence(1));
        }
        let told = |told, upto, stable| {
            let list = authors.between(Sequence(told), Sequence(upto), Sequence(stable), A);
            list.iter().map(|a| a.at.1.0).collect::<Vec<_>>()
        };
        assert_eq!(told(0, 3, 0), [2]);
        assert_eq!(told(2, 9, 0), [4]);
        assert_eq!(told(0, 9, 2), [4]);
    }
}
