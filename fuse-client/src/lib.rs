//! The mount: the kernel's FUSE requests on one side, a session with the volume's primary on
//! the other.
//!
//! [`session::Session`] finds the primary, stays with it through failures and repeats what was
//! not answered. [`serve::FileSystem`] translates between the kernel and the session.
//! [`command`] is `cairn mount`, [`unmount`] umount(8)'s helper, [`join`] is `cairn client join`,
//! [`certificates`] `cairn client certificates`. What an application may rely on stands in
//! `docs/mount.md`.

#![forbid(unsafe_code)]

mod abi;
pub mod certificates;
pub mod command;
pub mod connection;
mod dead;
mod identity;
pub mod join;
mod kernel;
mod options;
mod point;
mod remount;
pub mod serve;
pub mod session;
pub mod transport;
pub mod unmount;
