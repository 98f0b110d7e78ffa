//! What clients saw, and whether it can have been one volume that everybody used at once.
//!
//! Each thing (a cell of a file, a log, a directory) has a history of its own: a set of operations
//! with the moments of asking and answer. It holds if they can be put into one order, in which an
//! operation that was answered before another was asked comes first, and in which each result is
//! what a simple model gives (linearizability: Herlihy and Wing 1990; the search: Wing and Gong
//! 1993, Lowe 2017).
//!
//! After a power cut everywhere, only what was made stable must still be there: a beginning of
//! that order, with at least all that was stable.

use std::collections::HashSet;
use std::hash::Hash;

use super::network::Place;

/// Names of a directory.
pub(crate) const NAMES: usize = 6;

/// What was done, with its result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Act {
    /// A cell is this value now.
    Write(u64),
    /// A cell was this value.
    Read(u64),
    /// A log has this at its end now.
    Append(u64),
    /// A log was this.
    ReadAll(Vec<u64>),
    /// A name was made for this object, or was there.
    Create { name: usize, made: Option<u64> },
    /// A name was removed, or was not there.
    Unlink { name: usize, done: bool },
    /// A name leads to this object.
    Lookup { name: usize, found: Option<u64> },
    /// A name took the place of another, or was not there.
    Rename { from: usize, to: usize, done: bool },
}

impl Act {
    /// Whether it changed a cell or a log, whatever it was before.
    pub(crate) fn changes(&self) -> bool {
        matches!(self, Self::Write(_) | Self::Append(_))
    }
}

/// One operation.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) asked: u64,
    /// `u64::MAX`: not answered.
    pub(crate) answered: u64,
    /// Of whose mount it was.
    pub(crate) by: Place,
    /// It took effect. Otherwise it may have: it was under way when two sides parted.
    pub(crate) must: bool,
    pub(crate) act: Act,
}

/// What a thing is like.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum State {
    Cell(u64),
    Log(Vec<u64>),
    Directory([Option<u64>; NAMES]),
}

impl State {
    /// What it is like afterwards; `None`: the result does not fit.
    fn after(&self, act: &Act) -> Option<Self> {
        match (self, act) {
            (Self::Cell(_), Act::Write(value)) => Some(Self::Cell(*value)),
            (Self::Cell(now), Act::Read(value)) => (now == value).then(|| self.clone()),
            (Self::Log(log), Act::Append(value)) => {
                let mut log = log.clone();
                log.push(*value);
                Some(Self::Log(log))
            }
            (Self::Log(log), Act::ReadAll(all)) => (log == all).then(|| self.clone()),
            (Self::Directory(names), act) => Self::names_after(names, act).map(Self::Directory),
            _ => None,
        }
    }

    fn names_after(names: &[Option<u64>; NAMES], act: &Act) -> Option<[Option<u64>; NAMES]> {
        let mut after = *names;
        match *act {
            Act::Create { name, made } => {
                if names[name].is_some() != made.is_none() {
                    return None;
                }
                after[name] = made.or(names[name]);
            }
            Act::Unlink { name, done } => {
                if names[name].is_some() != done {
                    return None;
                }
                after[name] = None;
            }
            Act::Lookup { name, found } => {
                if names[name] != found {
                    return None;
                }
            }
            Act::Rename { from, to, done } => {
                if names[from].is_some() != done {
                    return None;
                }
                if done && from != to {
                    after[to] = after[from].take();
                }
            }
            _ => return None,
        }
        Some(after)
    }
}

/// A power cut everywhere, as one history saw it.
#[derive(Debug, Clone)]
pub(crate) struct Cut {
    /// When.
    pub(crate) at: u64,
    /// What was answered by then is stable.
    pub(crate) stable_until: u64,
    /// What is there afterwards, once what was under way has ended.
    pub(crate) found: State,
}

/// Whether the history holds, from a state on; with a cut at its end, if there was one.
pub(crate) fn holds(begin: &State, history: &[Entry], cut: Option<&Cut>) -> bool {
    let mut entries: Vec<&Entry> = history.iter().collect();
    entries.sort_by_key(|entry| entry.asked);
    Search {
        entries: &entries,
        cut,
        seen: HashSet::new(),
    }
    .from(begin)
}

struct Search<'a> {
    entries: &'a [&'a Entry],
    cut: Option<&'a Cut>,
    seen: HashSet<(usize, Vec<usize>, State, bool)>,
}

/// Where a search is: everything before `base` is placed, and `beyond` as well.
struct Step {
    base: usize,
    beyond: Vec<usize>,
    state: State,
    /// The power was cut: only what was under way then may still come.
    dark: bool,
}

impl Search<'_> {
    fn from(&mut self, begin: &State) -> bool {
        let mut open = vec![Step {
            base: 0,
            beyond: Vec::new(),
            state: begin.clone(),
            dark: false,
        }];
        while let Some(step) = open.pop() {
            if self.is_end(&step) {
                return true;
            }
            if let Some(cut) = self.cut
                && !step.dark
                && self.stable_is_placed(&step, cut)
            {
                self.push(
                    &mut open,
                    step.base,
                    step.beyond.clone(),
                    step.state.clone(),
                    true,
                );
            }
            for next in self.candidates(&step) {
                if let Some(state) = step.state.after(&self.entries[next].act) {
                    let (base, beyond) = self.placed(&step, next);
                    self.push(&mut open, base, beyond, state, step.dark);
                }
            }
        }
        false
    }

    fn push(
        &mut self,
        open: &mut Vec<Step>,
        base: usize,
        beyond: Vec<usize>,
        state: State,
        dark: bool,
    ) {
        if self
            .seen
            .insert((base, beyond.clone(), state.clone(), dark))
        {
            open.push(Step {
                base,
                beyond,
                state,
                dark,
            });
        }
    }

    fn placed(&self, step: &Step, next: usize) -> (usize, Vec<usize>) {
        let mut beyond = step.beyond.clone();
        beyond.push(next);
        beyond.sort_unstable();
        let mut base = step.base;
        while beyond.first() == Some(&base) {
            beyond.remove(0);
            base += 1;
        }
        (base, beyond)
    }

    fn is_placed(step: &Step, at: usize) -> bool {
        at < step.base || step.beyond.contains(&at)
    }

    /// Not placed yet, and not answered before another that is not placed was asked.
    fn candidates(&self, step: &Step) -> Vec<usize> {
        let open = (step.base..self.entries.len()).filter(|at| !Self::is_placed(step, *at));
        if let (true, Some(cut)) = (step.dark, self.cut) {
            return open
                .filter(|at| self.entries[*at].answered > cut.at)
                .collect();
        }
        let mut first_answer = u64::MAX;
        let mut found = Vec::new();
        for at in open {
            let entry = self.entries[at];
            if entry.asked > first_answer {
                break;
            }
            first_answer = first_answer.min(entry.answered);
            found.push(at);
        }
        found
    }

    fn stable_is_placed(&self, step: &Step, cut: &Cut) -> bool {
        (step.base..self.entries.len())
            .filter(|at| self.entries[*at].answered <= cut.stable_until)
            .all(|at| Self::is_placed(step, at))
    }

    fn is_end(&self, step: &Step) -> bool {
        let left = (step.base..self.entries.len()).filter(|at| self.entries[*at].must);
        match self.cut {
            None => left.into_iter().all(|at| Self::is_placed(step, at)),
            Some(cut) => {
                step.dark
                    && step.state == cut.found
                    && left
                        .filter(|at| self.entries[*at].answered > cut.at)
                        .all(|at| Self::is_placed(step, at))
            }
        }
    }
}

#[test]
fn a_history_holds_only_if_there_is_an_order_for_it() {
    let entry = |asked, answered, act| Entry {
        asked,
        answered,
        by: 0,
        must: true,
        act,
    };
    let begin = State::Cell(0);
    let one_after_the_other = [entry(1, 2, Act::Write(7)), entry(3, 4, Act::Read(0))];
    assert!(!holds(&begin, &one_after_the_other, None), "a stale read");
    let at_once = [entry(1, 4, Act::Write(7)), entry(2, 3, Act::Read(0))];
    assert!(holds(&begin, &at_once, None));
    let seen_and_gone = [
        entry(1, 9, Act::Write(7)),
        entry(2, 3, Act::Read(7)),
        entry(4, 5, Act::Read(0)),
    ];
    assert!(!holds(&begin, &seen_and_gone, None));
    let twice = [
        entry(1, 2, Act::Append(7)),
        entry(3, 4, Act::ReadAll(vec![7, 7])),
    ];
    assert!(!holds(&State::Log(vec![]), &twice, None), "appended twice");
}

#[test]
fn a_power_cut_may_take_what_was_not_stable_and_nothing_else() {
    let entry = |asked, answered, value| Entry {
        asked,
        answered,
        by: 0,
        must: true,
        act: Act::Append(value),
    };
    let history = [
        entry(1, 2, 5),
        entry(3, 4, 6),
        entry(5, 6, 7),
        entry(7, 20, 8),
    ];
    let cut = |stable_until, found: &[u64]| Cut {
        at: 10,
        stable_until,
        found: State::Log(found.to_vec()),
    };
    let begin = State::Log(vec![]);
    for (stable_until, found, right) in [
        (4, &[5, 6, 7, 8][..], true),
        (4, &[5, 6, 8], true),
        (4, &[5, 8], false),
        (4, &[5, 7, 8], false),
        (4, &[5, 6, 7], false),
        (0, &[8], true),
    ] {
        let verdict = holds(&begin, &history, Some(&cut(stable_until, found)));
        assert_eq!(verdict, right, "{stable_until} {found:?}");
    }
}

#[test]
fn what_was_under_way_when_two_sides_parted_may_be_there_and_need_not() {
    let entry = |asked, answered, must, act| Entry {
        asked,
        answered,
        by: 0,
        must,
        act,
    };
    let begin = State::Cell(0);
    for (read, right) in [(0, true), (7, true), (8, false)] {
        let history = [
            entry(1, u64::MAX, false, Act::Write(7)),
            entry(3, 4, true, Act::Read(read)),
        ];
        assert_eq!(holds(&begin, &history, None), right, "{read}");
    }
}
