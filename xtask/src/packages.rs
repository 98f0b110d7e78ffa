//! Debian's packages that the tests use. Installed where they are missing and this is root.

use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A command that must exist, and the package that has it.
const NEEDED: [(&str, &str); 11] = [
    ("fusermount3", "fuse3"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("losetup", "mount"),
    ("getfattr", "attr"),
    ("fio", "fio"),
    ("cc", "gcc"),
];

fn exists(command: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<_> = std::env::split_paths(&path).collect();
    places.extend(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(Into::into));
    places.iter().any(|place| place.join(command).exists())
}

/// Installs what is missing. Without root it only says so: the tests then skip loudly.
pub(crate) fn ensure() -> Result<()> {
    let missing: Vec<_> = NEEDED
        .iter()
        .filter(|(command, _)| !exists(command))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let root = Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|o| o.stdout.starts_with(b"0"));
    if !root || !exists("apt-get") {
        eprintln!(
            "── missing, and tests that need them will skip: {}",
            missing.join(" ")
        );
        return Ok(());
    }
    eprintln!("── installing {}", missing.join(" "));
    apt(&["update", "-qq"])?;
    apt(&[
        &["install", "-y", "-qq", "--no-install-recommends"],
        &missing[..],
    ]
    .concat())
}

fn apt(args: &[&str]) -> Result<()> {
    let status = Command::new("apt-get")
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .status()
        .context("run apt-get")?;
    ensure!(status.success(), "apt-get {} failed", args.join(" "));
    Ok(())
}
