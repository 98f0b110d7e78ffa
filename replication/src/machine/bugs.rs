//! Deliberate mistakes. A test builds a machine with one of them and lets the schedules find it:
//! what no schedule finds, no schedule protects. In a release build no machine errs.

#[cfg(any(test, debug_assertions))]
use std::cell::Cell;

use super::Machine;

/// A mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A write is confirmed when the primary alone has applied it.
    ConfirmsAlone,
    /// Records that a missing replica lacks are not marked.
    SkipsMarks,
    /// What was on the way to a replica when its link broke is not marked.
    ForgetsTheTail,
    /// Marks are forgotten when a resync begins.
    ClearsMarksEarly,
    /// A tail that the other history gave up is taken for common.
    MistakesHistories,
    /// A replica that was filled by a resync believes to cover others from before it.
    CoversTooMuch,
    /// A brick on its way out is taken on again.
    TakesOnTheLeaving,
    /// A resync whose first word was lost counts as begun.
    BeginsTooEarly,
    /// A replica joins before it has what was confirmed meanwhile.
    JoinsTooEarly,
    /// A replica is taken for what it told, although it changed since.
    IgnoresTheBasis,
    /// The same where another primary had begun to fill it.
    IgnoresTheRevision,
    /// What is in doubt is told, and then more is taken from the old primary.
    GoesOnAfterDoubts,
    /// A word of an earlier term is followed.
    FollowsEarlierTerms,
    /// A promise is given and not kept.
    BreaksPromises,
    /// A promise of before a restart is forgotten.
    ForgetsPromises,
    /// A promise is given while an own claim may still come true.
    PromisesInDoubt,
    /// A longer promise is given than is remembered after a restart.
    PromisesUnbounded,
    /// A promise that is asked for anew takes the place of a longer one that still holds.
    ShortensPromises,
    /// A primary believes in promises for longer than they hold.
    OverstaysLeases,
    /// A primary answers whether its lease holds or not.
    AnswersWithoutLease,
    /// A change of the set that was asked for and not answered is forgotten.
    ForgetsWhatItAsked,
    /// A replica is taken on while its own claim may still come true.
    TakesOnClaimants,
    /// The role is handed over before everything is confirmed.
    HandsOverEarly,
    /// A looser policy counts for members that do not know of it.
    LoosensUnknown,
    /// Under A more is confirmed than the queue may hold.
    IgnoresTheBound,
    /// A member that started again asks for the role although others may have more.
    ClaimsUnreported,
    /// A member asks for the role before it has applied what it acknowledged as received.
    ClaimsUnapplied,
    /// A stricter policy is told to be in force before what was confirmed satisfies it.
    TightensEarly,
    /// A primary goes on although it has not fenced whoever may take over from it.
    GoesOnUnfenced,
    /// A fence command that failed counts as one that did not.
    IgnoresTheFence,
    /// The side of a split brain that the policy gives up is the one that stays.
    KeepsTheWrongSide,
    /// A side that went on alone is taken for a tail that was given up.
    OverlooksSplits,
    /// An operator makes a replica primary that is between two pictures.
    ServesTheMixture,
}

impl Bug {
    /// Found by random schedules soon.
    pub const SOON: [Self; 10] = [
        Self::ConfirmsAlone,
        Self::SkipsMarks,
        Self::ForgetsTheTail,
        Self::ClearsMarksEarly,
        Self::MistakesHistories,
        Self::CoversTooMuch,
        Self::IgnoresTheBasis,
        Self::BreaksPromises,
        Self::OverstaysLeases,
        Self::AnswersWithoutLease,
    ];
    /// About the ack policies, found by random schedules soon.
    pub const POLICIES: [Self; 2] = [Self::IgnoresTheBound, Self::ClaimsUnapplied];
    /// About nodes that nobody votes for: found by whole systems that part, and soon.
    pub const ALONE: [Self; 5] = [
        Self::GoesOnUnfenced,
        Self::IgnoresTheFence,
        Self::KeepsTheWrongSide,
        Self::OverlooksSplits,
        Self::ServesTheMixture,
    ];
    /// Found by long runs only, or not yet.
    pub const RARE: [Self; 15] = [
        Self::PromisesUnbounded,
        Self::ShortensPromises,
        Self::LoosensUnknown,
        Self::ClaimsUnreported,
        Self::TightensEarly,
        Self::BeginsTooEarly,
        Self::JoinsTooEarly,
        Self::IgnoresTheRevision,
        Self::GoesOnAfterDoubts,
        Self::FollowsEarlierTerms,
        Self::ForgetsPromises,
        Self::PromisesInDoubt,
        Self::ForgetsWhatItAsked,
        Self::TakesOnClaimants,
        Self::HandsOverEarly,
    ];
}

#[cfg(any(test, debug_assertions))]
thread_local! {
    static CHOSEN: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Every machine that is made on this thread makes the mistake from now on, or none.
#[cfg(any(test, debug_assertions))]
pub fn make_mistake(bug: Option<Bug>) {
    CHOSEN.set(bug);
}

#[cfg(any(test, debug_assertions))]
pub(super) fn chosen() -> Option<Bug> {
    CHOSEN.get()
}

impl Machine {
    /// Whether this machine makes the mistake.
    #[cfg(any(test, debug_assertions))]
    pub(super) fn errs(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// No machine in use does.
    #[cfg(not(any(test, debug_assertions)))]
    #[allow(clippy::unused_self, reason = "the same call as under test")]
    pub(super) const fn errs(&self, _: Bug) -> bool {
        false
    }
}
