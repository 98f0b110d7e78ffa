//! What no compiler checks: who may know whom, that pure crates are pure, lengths, words.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The edges of `docs/architecture.md`: crate, and the workspace crates that it may use.
const EDGES: [(&str, &[&str]); 11] = [
    ("cairn-protocol", &[]),
    ("cairn-replication", &["cairn-protocol"]),
    ("cairn-namespace", &["cairn-protocol"]),
    ("cairn-storage", &["cairn-protocol"]),
    (
        "cairn-daemon",
        &[
            "cairn-protocol",
            "cairn-replication",
            "cairn-namespace",
            "cairn-storage",
            "cairn-fuse-client",
            "cairn-nbd",
        ],
    ),
    ("cairn-fuse-client", &["cairn-protocol"]),
    ("cairn-nbd", &[]),
    ("xtask", &[]),
    ("cairn", ALL),
    ("cairn-tests", ALL),
    ("cairn-benches", ALL),
];
const ALL: &[&str] = &[
    "cairn",
    "cairn-protocol",
    "cairn-replication",
    "cairn-namespace",
    "cairn-storage",
    "cairn-daemon",
    "cairn-fuse-client",
    "cairn-nbd",
];

/// Crates that touch nothing of the world, and what they therefore never name.
const PURE: [&str; 3] = ["protocol", "replication", "namespace"];
const WORLD: [&str; 10] = [
    "std::net",
    "std::fs",
    "std::thread",
    "std::process",
    "SystemTime::now",
    "Instant::now",
    "tokio::",
    "async fn",
    "std::env",
    "rand::",
];
/// Crates that may contain unsafe code.
const UNSAFE: [&str; 1] = ["storage"];

const FILE_LINES_MAX: usize = 1000;
const FUNCTION_LINES_MAX: usize = 100;

/// Checks everything and names every fault.
pub(crate) fn check(root: &Path) -> Result<()> {
    let mut faults = Vec::new();
    edges(&mut faults)?;
    let mut files = Vec::new();
    collect(root, &mut files)?;
    for path in &files {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let name = path
            .strip_prefix(root)
            .unwrap_or(path)
            .display()
            .to_string();
        file(&name, &text, &mut faults);
    }
    adr_index(root, &mut faults)?;
    if faults.is_empty() {
        eprintln!("── tidy: {} files", files.len());
        return Ok(());
    }
    for fault in &faults {
        eprintln!("tidy: {fault}");
    }
    bail!("{} faults", faults.len())
}

fn edges(faults: &mut Vec<String>) -> Result<()> {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .output()
        .context("run cargo metadata")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
    let allowed: BTreeMap<_, _> = EDGES.into_iter().collect();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(edges) = allowed.get(name) else {
            faults.push(format!("crate `{name}` is not in the list of crates"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let used = dependency["name"].as_str().unwrap_or_default();
            let own = dependency["path"].is_string();
            let dev = dependency["kind"].as_str() == Some("dev");
            if own && !dev && !edges.contains(&used) {
                faults.push(format!("`{name}` must not use `{used}`"));
            }
        }
    }
    Ok(())
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        let name = path
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default();
        if path.is_dir() {
            if !matches!(name, "target" | ".git" | "results") {
                collect(&path, files)?;
            }
        } else if name.ends_with(".rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn is_test(name: &str) -> bool {
    let tests = name.ends_with("tests.rs") || name.contains("/tests/") || name.contains("_tests");
    tests || name.starts_with("tests/")
}

fn file(name: &str, text: &str, faults: &mut Vec<String>) {
    let krate = name.split('/').next().unwrap_or_default();
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or(text);
    if !is_test(name) && code.lines().count() > FILE_LINES_MAX {
        faults.push(format!(
            "{name}: {} lines; {FILE_LINES_MAX} is the end",
            code.lines().count()
        ));
    }
    if PURE.contains(&krate) && name.contains("/src/") && !is_test(name) {
        for word in WORLD {
            if code.contains(word) {
                faults.push(format!("{name}: a pure crate names `{word}`"));
            }
        }
    }
    if krate != "xtask" {
        for (at, line) in text.lines().enumerate() {
            let found = ["TODO", "FIXME", "XXX", "HACK"]
                .iter()
                .find(|word| line.contains(**word));
            if let Some(word) = found {
                faults.push(format!("{name}:{}: a stray {word}", at + 1));
            }
        }
        let root = name.ends_with("src/lib.rs")
            || name.ends_with("src/main.rs")
            || name == "cli/src/lab.rs";
        if root && !UNSAFE.contains(&krate) && !text.contains("#![forbid(unsafe_code)]") {
            faults.push(format!("{name}: unsafe code is not forbidden"));
        }
    }
    functions(name, code, faults);
}

/// Lengths of functions, by the indentation that rustfmt gives.
fn functions(name: &str, code: &str, faults: &mut Vec<String>) {
    let mut open: Option<(usize, usize, String)> = None;
    for (at, line) in code.lines().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let trimmed = line.trim_start();
        let begins = trimmed.starts_with("fn ") || trimmed.contains(" fn ");
        // A table, one row a variant, reads better in one piece.
        let table = at > 0
            && code
                .lines()
                .nth(at - 1)
                .is_some_and(|l| l.contains("// A table:"));
        if open.is_none()
            && begins
            && !table
            && !trimmed.starts_with("//")
            && !trimmed.ends_with(';')
        {
            open = Some((at, indent, trimmed.to_owned()));
        } else if let Some((from, depth, head)) = &open
            && indent == *depth
            && trimmed.starts_with('}')
        {
            if !is_test(name) && at - from > FUNCTION_LINES_MAX {
                let lines = at - from;
                faults.push(format!("{name}:{}: {lines} lines: {head}", from + 1));
            }
            open = None;
        }
    }
}

/// Every decision record is in the index.
fn adr_index(root: &Path, faults: &mut Vec<String>) -> Result<()> {
    let dir = root.join("docs/adr");
    let index = fs::read_to_string(dir.join("README.md")).unwrap_or_default();
    for entry in fs::read_dir(&dir).context("read docs/adr")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".md") && name != "README.md" && !index.contains(&name) {
            faults.push(format!("docs/adr/README.md does not name {name}"));
        }
    }
    Ok(())
}
