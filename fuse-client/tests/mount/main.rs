//! Real mounts of a volume whose primary is inside the test. They need root and /dev/fuse, and
//! say loudly where they are skipped.

#![forbid(unsafe_code)]

mod early;
mod everyday;
mod failures;
mod locks;
mod posix;
mod server;
mod sharing;

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use cairn_fuse_client::command::{MountArgs, mount};
use server::Server;

/// A volume and one or more mounts of it.
pub struct Bench {
    /// The primary.
    pub server: Server,
    dir: tempfile::TempDir,
    mounts: Vec<(PathBuf, JoinHandle<()>)>,
}

impl Bench {
    /// `None`, said loudly, where this machine cannot mount.
    pub fn new() -> Option<Self> {
        let root = rustix::process::geteuid().is_root();
        if !root || !Path::new("/dev/fuse").exists() {
            eprintln!("SKIPPED: real mounts need root and /dev/fuse");
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let server = Server::start(&dir.path().join("data.sock"));
        Some(Self {
            server,
            dir,
            mounts: Vec::new(),
        })
    }

    /// Mounts the volume once more and returns where.
    pub fn mount(&mut self, source: &str, options: &str) -> PathBuf {
        let point = self.dir.path().join(format!("mnt{}", self.mounts.len()));
        std::fs::create_dir(&point).expect("a new directory");
        let args = MountArgs {
            source: source.to_owned(),
            point: point.clone(),
            options: vec![options.to_owned()],
            foreground: true,
            data_dir: self.dir.path().to_owned(),
            verbose: false,
        };
        let thread = std::thread::spawn(move || mount(&args).expect("it mounts"));
        let device = |path: &Path| {
            use std::os::unix::fs::MetadataExt as _;
            std::fs::metadata(path).map(|meta| meta.dev()).ok()
        };
        let outside = device(self.dir.path());
        self.server
            .wait_until(|_| device(&point).is_some_and(|inside| Some(inside) != outside));
        self.mounts.push((point.clone(), thread));
        point
    }

    /// The plain mount of the whole volume.
    pub fn mounted() -> Option<(Self, PathBuf)> {
        let mut bench = Self::new()?;
        let point = bench.mount("node1:/v1", "");
        Some((bench, point))
    }

    /// A directory of a local file system, for comparison.
    pub fn local(&self) -> PathBuf {
        let local = self.dir.path().join("local");
        std::fs::create_dir(&local).expect("a new directory");
        local
    }
}

impl Bench {
    /// Unmounts everything, and waits for the mounts to end.
    pub fn unmount(&mut self) {
        for (point, thread) in self.mounts.drain(..) {
            let detach = rustix::mount::UnmountFlags::DETACH;
            rustix::mount::unmount(&point, detach).expect("it was mounted");
            if !std::thread::panicking() {
                thread.join().expect("the mount ended in order");
            }
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.server.misbehave(|m| *m = server::Mischief::default());
        self.unmount();
    }
}
