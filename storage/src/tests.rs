//! Scenarios on real directories and on the simulated disk.

mod golden;
mod limits;
mod oracle;
mod real;
mod util;
