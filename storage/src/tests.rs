//! Scenarios on real directories and on the simulated disk.

mod real;
mod util;
