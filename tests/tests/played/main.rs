//! A replica of the shipped code whose every connection is played: what it does with each frame, at
//! the moment at which it hurts most.

#![forbid(unsafe_code)]

mod clients;
mod leases;
mod links;
mod members;
mod mount;
mod stage;
