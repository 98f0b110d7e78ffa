//! Scenarios of the protocol, without sockets where that is enough.

mod handshake;
mod requests;
mod served;
