//! Deliberate mistakes, for the proof that tests notice them: a simulation runs every node of its
//! thread with one of them, and must fail. They exist in builds with debug assertions only; in a
//! release build [`made`] is false and the compiler removes what it guards.

#[cfg(debug_assertions)]
use std::cell::Cell;

/// A mistake outside of the replica-set machine, which has its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    /// A client is answered before the other replicas have what the answer rests on.
    AnswersEarly,
    /// A client is let in before its session is known to the other replicas.
    WelcomesEarly,
    /// A request that is asked again of another primary is executed again.
    ForgetsReplies,
    /// A request that is asked again while it is under way is executed again.
    ExecutesTwice,
    /// Data that a resync read goes out although a record changed it meanwhile.
    SendsOldAfterNew,
    /// Marks go when data leaves, not when it is stable at the target.
    ForgetsMarksOnSending,
    /// A target says that it stored what it only received.
    StoresLater,
    /// A replica says that it flushed what it did not.
    FlushesLater,
    /// What a crash left in doubt is not sent to the others.
    IgnoresDoubts,
    /// A flush does not wait for the journal.
    SkipsTheJournal,
    /// A flush does not wait for the files of large writes.
    SkipsTheFiles,
    /// Recovery leaves out a record now and then.
    RecoversTooLittle,
    /// Marks are not kept over a restart.
    ForgetsMarksOnRestart,
    /// A block that another replica gave is put over what was written meanwhile.
    RepairsOverNewer,
    /// A read that fails is not answered from another replica.
    AsksNobody,
    /// Room that was promised to what is not stored yet is promised again.
    PromisesRoomTwice,
    /// A resync begins without the picture before it being kept.
    LosesThePoint,
    /// A record is sent from the journal with data that was written after it.
    SendsNewerData,
    /// What a side of a split brain held alone is not kept.
    LosesTheGivenUp,
    /// A client does not put back what was confirmed and was not stable.
    ForgetsTheUnstable,
    /// A lease is granted while it is recalled.
    GrantsDuringRecall,
    /// A mount counts a lease from when it was answered.
    CountsFromTheAnswer,
    /// A new primary does not await those who may hold leases.
    ForgetsLeases,
    /// An operation waits for a lease that its own mount holds.
    HoldsUpTheHolder,
    /// A question is answered about what another mount may have changed already.
    TellsUnasked,
}

impl Mistake {
    /// All of them.
    pub const ALL: [Self; 25] = [
        Self::AnswersEarly,
        Self::WelcomesEarly,
        Self::ForgetsReplies,
        Self::ExecutesTwice,
        Self::SendsOldAfterNew,
        Self::ForgetsMarksOnSending,
        Self::StoresLater,
        Self::FlushesLater,
        Self::IgnoresDoubts,
        Self::SkipsTheJournal,
        Self::SkipsTheFiles,
        Self::RecoversTooLittle,
        Self::ForgetsMarksOnRestart,
        Self::RepairsOverNewer,
        Self::AsksNobody,
        Self::PromisesRoomTwice,
        Self::LosesThePoint,
        Self::SendsNewerData,
        Self::LosesTheGivenUp,
        Self::ForgetsTheUnstable,
        Self::GrantsDuringRecall,
        Self::CountsFromTheAnswer,
        Self::ForgetsLeases,
        Self::HoldsUpTheHolder,
        Self::TellsUnasked,
    ];
}

#[cfg(debug_assertions)]
thread_local! {
    static CHOSEN: Cell<Option<Mistake>> = const { Cell::new(None) };
}

/// Everything on this thread makes the mistake from now on, or none.
#[cfg(debug_assertions)]
pub fn choose(mistake: Option<Mistake>) {
    CHOSEN.set(mistake);
}

/// Whether the mistake is to be made here.
#[cfg(debug_assertions)]
#[must_use]
pub fn made(mistake: Mistake) -> bool {
    CHOSEN.get() == Some(mistake)
}

/// Never, in a release build.
#[cfg(not(debug_assertions))]
#[must_use]
pub const fn made(_: Mistake) -> bool {
    false
}
