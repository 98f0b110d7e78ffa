//! FO-1, FO-2, DUR-5 and COH-3, asked by software as it comes from Debian: databases, version
//! control, a compiler, archives and loads with a memory of their own run unmodified on a real
//! mount of two replicas, and again while its primary is killed. `cargo xtask suites --full` makes
//! everything larger by `CAIRN_SOFTWARE_SECONDS` and `CAIRN_SOFTWARE_SCALE`.

mod builds;
mod databases;
mod loads;
mod mariadb;
mod place;
mod postgresql;
mod sqlite;
mod timers;
mod trees;
