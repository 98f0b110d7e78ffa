//! The replica-set machine: what a volume's replicas owe each other, as pure state.
//!
//! No clock, socket, file, thread or async stands here. A driver feeds a [`machine::Machine`] one
//! event at a time, with the time where it matters, and carries out the [`machine::Output`]s that
//! it leaves, in order. The same code runs in the daemon and under simulation.
//!
//! * [`mod@line`]: a replica's past as generations, and how two pasts relate.
//! * [`decision`]: what two replicas that meet have to do, and the rule that says so.
//! * [`split`]: two that both went on as primary, and which side stays.
//! * [`state`]: what a replica must not forget, and what it tells on meeting.
//! * [`machine`]: roles, activation, the in-sync set, confirmation, flushes, hand-over.
//! * [`progress`]: how far a resync is and when it will end.
//! * [`throttle`]: how fast it may go beside applications.

#![forbid(unsafe_code)]

pub mod decision;
pub mod line;
pub mod machine;
pub mod progress;
pub mod split;
pub mod state;
pub mod throttle;
