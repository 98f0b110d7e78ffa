//! Machines that are no nodes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use cairn_lab::Lab;

use crate::binary;

/// A machine with a directory of its own; what it mounted is taken away in the end.
#[derive(Debug)]
pub struct Machine {
    /// Where its identity is.
    pub data_dir: PathBuf,
    /// Where it mounts.
    pub at: PathBuf,
}

impl Machine {
    /// One without identity, below `dir`.
    pub fn new(dir: &Path, name: &str) -> Result<Self> {
        let at = dir.join(format!("{name}-mnt"));
        fs::create_dir(&at)?;
        let data_dir = dir.join(name);
        Ok(Self { data_dir, at })
    }

    /// Runs a command there.
    pub fn cairn(&self, words: &[&str]) -> Result<Output> {
        let mut command = Command::new(binary());
        command.arg("--data-dir").arg(&self.data_dir).args(words);
        command.output().context("run cairn")
    }

    /// What the command says when it is refused.
    pub fn refused(&self, words: &[&str]) -> Result<String> {
        let output = self.cairn(words)?;
        ensure!(!output.status.success(), "{words:?} was done");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Takes the token.
    pub fn join(&self, token: &str) -> Result<String> {
        self.done(&["client", "join", token])
    }

    /// What the command says when it is done.
    pub fn done(&self, words: &[&str]) -> Result<String> {
        let output = self.cairn(words)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{words:?}: {said}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The words of a mount there.
    #[must_use]
    pub fn mount_words<'a>(&'a self, source: &'a str, log: &'a str) -> Vec<&'a str> {
        let at = self.at.to_str().unwrap_or_default();
        vec!["mount", source, at, "-o", log]
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Nothing may be mounted there.
        let _ = Command::new("umount").arg("-l").arg(&self.at).output();
    }
}

/// A token for a new client.
pub fn token(lab: &Lab, words: &[&str]) -> Result<String> {
    let said = lab.cairn(0, &[&["-q", "client", "add"], words].concat())?;
    Ok(said.trim().to_owned())
}

/// What a mount names.
#[must_use]
pub fn source(lab: &Lab, volume: &str) -> String {
    format!("{},{}:/{volume}", lab.advertised(0), lab.advertised(1))
}
