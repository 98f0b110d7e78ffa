//! The `cairn` executable.
fn main() {}
