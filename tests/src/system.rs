//! Programs of the system, and file systems made for a test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Runs a program that must succeed; returns its standard output.
pub fn run(program: &str, words: &[&str]) -> Result<String> {
    // Debian's interpreters before others: they have the modules that Debian's programs need.
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new(program)
        .args(words)
        .env("PATH", format!("/usr/sbin:/usr/bin:/sbin:/bin:{path}"))
        .output()
        .with_context(|| program.to_owned())?;
    ensure!(
        output.status.success(),
        "{program} {}: {}",
        words.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether a program is there.
#[must_use]
pub fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<_> = std::env::split_paths(&path).collect();
    places.extend(["/usr/sbin", "/sbin"].map(Into::into));
    places.iter().any(|place| place.join(name).exists())
}

/// Makes an empty file of `bytes` that takes no room.
pub fn sparse(path: &Path, bytes: u64) -> Result<()> {
    Ok(fs::File::create(path)?.set_len(bytes)?)
}

/// Mounts that go away when dropped, last first.
#[derive(Debug, Default)]
pub struct Mounts(Vec<PathBuf>);

impl Mounts {
    /// Makes a file system of `kind` in the file `image` and mounts it at `at`.
    pub fn make(&mut self, kind: &str, image: &Path, at: &Path) -> Result<()> {
        run(
            &format!("mkfs.{kind}"),
            &["-q", &image.display().to_string()],
        )?;
        self.mount(image, at, "loop")
    }

    /// Mounts what is there.
    pub fn mount(&mut self, image: &Path, at: &Path, options: &str) -> Result<()> {
        fs::create_dir_all(at)?;
        let (image, text) = (image.display().to_string(), at.display().to_string());
        run("mount", &["-o", options, &image, &text])?;
        self.0.push(at.to_owned());
        Ok(())
    }

    /// Unmounts; nobody may use it any more.
    pub fn umount(&mut self, at: &Path) -> Result<()> {
        run("umount", &[&at.display().to_string()])?;
        self.0.retain(|mounted| mounted != at);
        Ok(())
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        for at in self.0.iter().rev() {
            let _ = run("umount", &["-l", &at.display().to_string()]);
        }
    }
}
