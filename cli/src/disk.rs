//! What `cairn bench disk` runs: what a file system gives to a brick on it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::workloads::{
    Act, Cold, Measure, Sizes, THREADS, concurrent, noise, sequential, synced_writes,
};

/// Runs every workload in `dir`, which must exist and be empty, and calls `done` with each
/// figure. What it makes there it removes, unless it fails.
pub fn run(
    dir: &Path,
    sizes: &Sizes,
    cold: Cold<'_>,
    done: &mut dyn FnMut(Measure),
) -> io::Result<()> {
    // The fsync at the end is part of the time.
    sequential(dir, sizes, cold, done)?;
    let paths: Vec<_> = (0..THREADS)
        .map(|n| dir.join(format!("random{n}")))
        .collect();
    let piece = noise(1 << 20);
    for path in &paths {
        let mut file = File::create(path)?;
        for _ in 0..sizes.random_bytes >> 20 {
            file.write_all(&piece)?;
        }
        file.sync_all()?;
    }
    done(synced_writes(&paths[0], sizes)?);
    let write: Act = |file, buffer, at| file.write_all_at(buffer, at);
    let read: Act = |file, buffer, at| file.read_exact_at(buffer, at);
    let workloads = [
        ("rand_write_4k_direct_1", 1, write),
        ("rand_write_4k_direct_16", THREADS, write),
        ("rand_read_4k_direct_1", 1, read),
        ("rand_read_4k_direct_16", THREADS, read),
    ];
    for (name, threads, act) in workloads {
        done(concurrent(name, &paths[..threads], sizes, act)?);
    }
    paths.iter().try_for_each(fs::remove_file)
}
