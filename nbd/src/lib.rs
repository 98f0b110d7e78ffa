//! Disks by NBD: the server's side of the protocol, fixed newstyle.
//!
//! | module | what |
//! | --- | --- |
//! | [`numbers`] | the protocol document's numbers |
//! | [`handshake`] | what a connection agrees on, a state machine without I/O |
//! | [`request`], [`reply`] | what comes and goes after that, without I/O |
//! | [`disk`] | what a disk has to be able to do |
//! | [`server`] | connections: requests in parallel, bounded |
//!
//! The document is `doc/proto.md` of <https://github.com/NetworkBlockDevice/nbd>. What a disk is,
//! who may reach it and how a connection is encrypted is the caller's business.

#![forbid(unsafe_code)]

pub mod disk;
pub mod handshake;
pub mod numbers;
mod options;
pub mod reply;
pub mod request;
pub mod server;

#[cfg(test)]
mod tests;
