//! The brick: one replica's local store.
//!
//! It applies [`protocol::record::Record`]s mechanically. It knows no POSIX and no replication,
//! has no clock and no randomness, and does everything to the world through a [`Medium`].
//!
//! ```text
//!  append ──► journal (buffer ─push─► page cache ─flush─► stable)
//!     │
//!     ├─────► overlay in memory ──checkpoint──► object files, then the metadata store
//!     └─────► whole blocks of large writes: into the object's file at once
//! ```
//!
//! A driver calls [`Brick::append`] for each record, [`Brick::push`] once a batch (from then on a
//! killed process loses nothing), [`Brick::flush`] when something must survive a power cut, and
//! [`Brick::poll`] after each batch of calls and whenever [`Brick::wake_fd`] is readable. No call
//! waits for the device, except those that say so.
//!
//! `docs/on-disk-format.md` describes what stands in the files.

mod activity;
mod apply;
mod brick;
mod dirty;
mod error;
mod files;
mod journal;
mod layers;
pub mod layout;
pub mod medium;
pub mod offline;
mod overlay;
mod place;
mod points;
mod ranges;
mod store;
mod sum;
mod superblock;
mod trickle;
mod unsynced;

#[cfg(test)]
mod tests;

pub use activity::ACTIVE_EXTENTS_MAX;
pub use brick::{
    Brick, BrickEvent, CatchUp, Expected, FlushId, FlushWhat, LastWrite, OBJECT_BYTES_MAX, Options,
    Pace, Position, ReadOutcome, RecoveryReport, SeekFor, Space,
};
pub use dirty::{DIRTY_BYTES_MAX, DirtyItem, DirtySummary, PROGRESS_BYTES_MAX};
pub use error::{BrickError, CreateError, IoFault, NoSpace, OpenError, PointError, ReadError};
pub use journal::JournalSizes;
pub use medium::{DirMedium, EngineChoice, Medium, Room};
pub use place::{
    DirBrick, brick_around, create_brick, open_brick, open_brick_read_only, open_medium,
};
pub use points::{NOTE_BYTES_MAX, POINTS_MAX, Point, PointId, PointKind};
pub use ranges::RangeSet;
pub use sum::block_sum;
pub use superblock::{BrickIdentity, Superblock, read_superblock};
