//! What the figures were measured on.

use std::fs;

use serde::Serialize;

/// The machine.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    kernel: String,
    cpu: String,
    cores: usize,
    memory_bytes: u64,
    /// /proc/loadavg before the run: what else was going on.
    load_before: String,
}

/// The first value of `name` in a file of `name: value` lines; empty where there is none.
fn field(file: &str, name: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name));
    let value = line.and_then(|line| line.split(':').nth(1));
    value.unwrap_or_default().trim().to_owned()
}

fn whole(file: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.trim().to_owned()
}

impl Machine {
    pub(super) fn look() -> Self {
        let memory = field("/proc/meminfo", "MemTotal");
        let kib = memory.trim_end_matches(" kB").parse::<u64>();
        Self {
            kernel: whole("/proc/sys/kernel/osrelease"),
            cpu: field("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: kib.unwrap_or(0) * 1024,
            load_before: whole("/proc/loadavg"),
        }
    }
}
