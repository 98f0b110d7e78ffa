//! What the figures were measured on.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use serde::Serialize;

/// The machine.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_bytes: u64,
    pub(crate) load_before: String,
}

impl Machine {
    pub(crate) fn look() -> Self {
        let field = |file: &str, name: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let line = text
                .lines()
                .find(|line| line.starts_with(name))
                .unwrap_or_default();
            line.split(':').nth(1).unwrap_or_default().trim().to_owned()
        };
        let kib = field("/proc/meminfo", "MemTotal").replace(" kB", "");
        Self {
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            cpu: field("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: kib.parse::<u64>().unwrap_or(0) * 1024,
            load_before: fs::read_to_string("/proc/loadavg")
                .unwrap_or_default()
                .trim()
                .to_owned(),
        }
    }
}

/// Versions of what is compared.
pub(crate) fn versions() -> BTreeMap<String, String> {
    let programs: [(&str, &[&str]); 4] = [
        ("glusterfs", &["gluster", "--version"]),
        ("bindfs", &["bindfs", "--version"]),
        ("git", &["git", "--version"]),
        ("mkfs.ext4", &["mkfs.ext4", "-V"]),
    ];
    let mut versions = BTreeMap::from([("cairn".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]);
    for (name, words) in programs {
        if let Ok(output) = Command::new(words[0]).args(&words[1..]).output() {
            let text = if output.stdout.is_empty() {
                output.stderr
            } else {
                output.stdout
            };
            let text = String::from_utf8_lossy(&text);
            let line = text.lines().next().unwrap_or_default().to_owned();
            versions.insert(name.to_owned(), line);
        }
    }
    versions
}

/// Seconds that all processors together have worked since the machine's start.
pub(crate) fn cpu_seconds() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<f64> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal: all but idle, iowait and steal, in 1/100 s.
    let busy = [0, 1, 2, 5, 6]
        .iter()
        .filter_map(|at| fields.get(*at))
        .sum::<f64>();
    busy / 100.0
}
