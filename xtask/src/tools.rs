//! Test suites that others wrote, as crates: installed below the target directory, each in the
//! version that is named here.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cargo_env;

/// A crate, its version and the program that it is.
const NEEDED: [(&str, &str); 2] = [("pjdfstest", "0.2.2"), ("fsx", "0.3.2")];

fn directory() -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    Ok(std::path::absolute(Path::new(&target).join("tools"))?)
}

/// Installs what is missing, or there in another version.
pub(crate) fn ensure() -> Result<()> {
    let root = directory()?;
    // cargo's own list of what it installed there, and from where.
    let installed = std::fs::read_to_string(root.join(".crates.toml")).unwrap_or_default();
    let text = |path: &Path| path.to_str().map(str::to_owned).context("a path of UTF-8");
    for (name, version) in NEEDED {
        let is_there = root.join("bin").join(name).exists();
        if is_there && installed.contains(&format!("\"{name} {version} ")) {
            continue;
        }
        let (at, version) = (text(&root)?, format!("={version}"));
        let words = [
            "install",
            "--quiet",
            "--locked",
            "--root",
            &at,
            "--version",
            &version,
            name,
        ];
        // Apart from the project's own build, of which it shares nothing.
        cargo_env(&words, &[("CARGO_TARGET_DIR", text(&root.join("build"))?)])?;
    }
    Ok(())
}
