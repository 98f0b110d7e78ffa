//! The words that every part of Cairn shares: identities, units, records, frames, messages.
//!
//! Pure: no socket, file, clock, thread or unsafe code. Everything that is decoded here may come
//! from a stranger, so every decoder returns a typed error and never panics.

#![forbid(unsafe_code)]

pub mod allow;
pub mod client;
pub mod codec;
pub mod control;
pub mod frame;
pub mod fs;
#[cfg(feature = "tls")]
pub mod identity;
pub mod ids;
pub mod link;
pub mod mistakes;
pub mod node_rpc;
pub mod options;
pub mod packed;
pub mod preamble;
pub mod record;
pub mod replica;
pub mod report;
pub mod units;
pub mod volume;
