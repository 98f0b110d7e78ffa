//! Scenarios on real directories and on the simulated disk.

mod golden;
mod limits;
mod oracle;
mod points;
mod real;
mod room;
mod util;
