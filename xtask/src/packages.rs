//! Debian's packages that the tests use. Installed where they are missing and this is root.

use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A command that must exist, and the package that has it.
const NEEDED: [(&str, &str); 23] = [
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
    ("nbdcopy", "libnbd-bin"),
    ("nbdsh", "python3-libnbd"),
    ("nbdfuse", "nbdfuse"),
    ("qemu-io", "qemu-utils"),
    ("cc", "gcc"),
    ("python3", "python3"),
    ("setfacl", "acl"),
    ("rsync", "rsync"),
    ("git", "git"),
    ("stress-ng", "stress-ng"),
    (POSTGRES, "postgresql-15"),
    // Without the package that has the system start a server.
    ("mariadbd", "mariadb-server-core"),
    ("mariadb-slap", "mariadb-client"),
];

/// Debian keeps it outside of every path.
const POSTGRES: &str = "/usr/lib/postgresql/15/bin/postgres";
/// Says whether PostgreSQL's package makes and starts a cluster of its own when it is installed.
const CLUSTERS: &str = "/etc/postgresql-common/createcluster.conf";

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
    if !exists(POSTGRES) {
        make_no_cluster()?;
    }
    install(&missing)
}

/// The tests start servers of their own; none of the system's is to run for them.
fn make_no_cluster() -> Result<()> {
    install(&["postgresql-common"])?;
    let mut text = std::fs::read_to_string(CLUSTERS).unwrap_or_default();
    let is_set = |line: &str| line.trim_start().starts_with("create_main_cluster");
    if !text.lines().any(is_set) {
        text.push_str("\ncreate_main_cluster = false\n");
        std::fs::write(CLUSTERS, text).context(CLUSTERS)?;
    }
    Ok(())
}

fn install(packages: &[&str]) -> Result<()> {
    let words = ["install", "-y", "-qq", "--no-install-recommends"];
    apt(&[&words, packages].concat())
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
