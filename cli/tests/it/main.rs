//! Real daemons, real sockets, the real command line.

#![forbid(unsafe_code)]

mod admission;
mod bench;
mod bricks;
mod command_line;
mod http;
mod network;
mod pool;
mod support;
mod volumes;
