//! The file systems that are compared: how each is made, made cold, and taken down.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cairn_lab::{Lab, workloads};

/// In the order of a round.
pub(crate) const NAMES: [&str; 5] = ["local", "fuse", "gluster", "gluster-tuned", "cairn"];

/// Bytes of the file system for all data.
const STAGE_BYTES: u64 = 7 << 30;

/// GlusterFS's options for small files and throughput, from its own documentation and groups
/// (metadata-cache, nl-cache), which the table calls tuned.
const TUNING: [(&str, &str); 16] = [
    ("performance.client-io-threads", "on"),
    ("client.event-threads", "4"),
    ("server.event-threads", "4"),
    ("features.cache-invalidation", "on"),
    ("features.cache-invalidation-timeout", "600"),
    ("performance.stat-prefetch", "on"),
    ("performance.cache-invalidation", "on"),
    ("performance.md-cache-timeout", "600"),
    ("network.inode-lru-limit", "200000"),
    ("performance.nl-cache", "on"),
    ("performance.nl-cache-timeout", "600"),
    ("performance.parallel-readdir", "on"),
    ("performance.cache-size", "256MB"),
    ("performance.write-behind-window-size", "4MB"),
    ("performance.io-thread-count", "16"),
    ("cluster.lookup-optimize", "on"),
];

fn run(program: &str, words: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {}: {}{}",
        words.join(" "),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// One ext4 on a loop device, for the data of every target.
pub(crate) struct Stage {
    image: PathBuf,
    dir: PathBuf,
    mount: PathBuf,
}

impl Stage {
    pub(crate) fn new(ram: bool) -> Result<Self> {
        let base = if ram {
            PathBuf::from("/dev/shm")
        } else {
            std::env::temp_dir()
        };
        let dir = base.join(format!("cairn-compare-{}", std::process::id()));
        fs::create_dir(&dir)?;
        let image = dir.join("image");
        fs::File::create(&image)?.set_len(STAGE_BYTES)?;
        let mount = dir.join("fs");
        fs::create_dir(&mount)?;
        let (image_text, mount_text) = (text(&image), text(&mount));
        run("mkfs.ext4", &["-q", "-F", &image_text])?;
        run("mount", &["-o", "loop", &image_text, &mount_text])?;
        Ok(Self { image, dir, mount })
    }

    fn fresh(&self, name: &str) -> Result<PathBuf> {
        let dir = self.mount.join(name);
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir(&dir)?;
        Ok(dir)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = run("ip", &["netns", "delete", NAMESPACE]);
        let _ = run("umount", &[&text(&self.mount)]);
        let _ = fs::remove_file(&self.image);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Why a target cannot be measured here.
pub(crate) fn missing(name: &str) -> Option<String> {
    let exists = |program: &str| Command::new(program).arg("--version").output().is_ok();
    match name {
        "fuse" if !exists("bindfs") => Some("Debian's package bindfs is not installed".to_owned()),
        "gluster" | "gluster-tuned" if !exists("glusterd") => {
            Some("Debian's package glusterfs-server is not installed".to_owned())
        }
        _ => None,
    }
}

/// A file system under measurement.
pub(crate) struct Target {
    dir: PathBuf,
    kind: Kind,
}

enum Kind {
    Local,
    Fuse { process: Child },
    Gluster { daemon: Child, volume: String },
    Cairn { lab: Box<Lab>, mount: PathBuf },
}

/// Makes a target ready.
pub(crate) fn open(stage: &Stage, name: &str) -> Result<Target> {
    let base = stage.fresh(name)?;
    match name {
        "local" => Ok(Target {
            dir: base,
            kind: Kind::Local,
        }),
        "fuse" => fuse(stage, &base),
        "gluster" => gluster(stage, &base, "plain", &[]),
        "gluster-tuned" => gluster(stage, &base, "tuned", &TUNING),
        "cairn" => cairn(stage, &base),
        other => bail!("there is no target `{other}`"),
    }
}

fn mount_point(stage: &Stage, name: &str) -> Result<PathBuf> {
    let mount = stage.dir.join(name);
    fs::create_dir_all(&mount)?;
    Ok(mount)
}

fn wait(what: &str, mut ready: impl FnMut() -> bool) -> Result<()> {
    let began = Instant::now();
    while !ready() {
        ensure!(
            began.elapsed() < Duration::from_secs(30),
            "{what} did not come up"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn is_mounted(at: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == Some(&text(at)))
}

fn fuse(stage: &Stage, base: &Path) -> Result<Target> {
    let mount = mount_point(stage, "mnt-fuse")?;
    let process = Command::new("bindfs")
        .args(["-f", "--multithreaded"])
        .arg(base)
        .arg(&mount)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    wait("bindfs", || is_mounted(&mount))?;
    Ok(Target {
        dir: mount,
        kind: Kind::Fuse { process },
    })
}

/// GlusterFS refuses loopback addresses: it gets a network namespace with an address of its own
/// (RFC 5737), which nothing outside can reach.
const NAMESPACE: &str = "cairn-compare";
const GLUSTER_HOST: &str = "192.0.2.1";

fn namespace() -> Result<()> {
    if Path::new("/run/netns").join(NAMESPACE).exists() {
        return Ok(());
    }
    run("ip", &["netns", "add", NAMESPACE])?;
    let inside = |words: &[&str]| run("ip", &[&["-n", NAMESPACE], words].concat());
    inside(&["link", "set", "lo", "up"])?;
    inside(&[
        "link", "add", "inner", "type", "veth", "peer", "name", "outer",
    ])?;
    inside(&[
        "address",
        "add",
        &format!("{GLUSTER_HOST}/24"),
        "dev",
        "inner",
    ])?;
    inside(&["link", "set", "outer", "up"])?;
    inside(&["link", "set", "inner", "up"])?;
    Ok(())
}

/// Words that run a program in the namespace; its mounts are seen everywhere.
fn within(program: &str) -> Vec<String> {
    vec![
        format!("--net=/run/netns/{NAMESPACE}"),
        "--".to_owned(),
        program.to_owned(),
    ]
}

fn run_within(program: &str, words: &[&str]) -> Result<String> {
    let mut all = within(program);
    all.extend(words.iter().map(|word| (*word).to_owned()));
    run(
        "nsenter",
        &all.iter().map(String::as_str).collect::<Vec<_>>(),
    )
}

fn gluster(stage: &Stage, base: &Path, label: &str, options: &[(&str, &str)]) -> Result<Target> {
    namespace()?;
    let daemon = Command::new("nsenter")
        .args(within("glusterd"))
        .args(["--no-daemon", "--log-level", "ERROR"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start glusterd")?;
    wait("glusterd", || {
        run_within("gluster", &["--mode=script", "volume", "list"]).is_ok()
    })?;
    let volume = format!("cairncompare{label}");
    let _ = run_within(
        "gluster",
        &["--mode=script", "volume", "stop", &volume, "force"],
    );
    let _ = run_within("gluster", &["--mode=script", "volume", "delete", &volume]);
    let host = GLUSTER_HOST;
    let bricks: Vec<_> = (1..=2)
        .map(|n| format!("{host}:{}/b{n}", base.display()))
        .collect();
    let create = ["--mode=script", "volume", "create", &volume, "replica", "2"];
    run_within(
        "gluster",
        &[&create[..], &[&bricks[0], &bricks[1], "force"]].concat(),
    )?;
    for (key, value) in options {
        run_within(
            "gluster",
            &["--mode=script", "volume", "set", &volume, key, value],
        )?;
    }
    run_within("gluster", &["--mode=script", "volume", "start", &volume])?;
    let mount = mount_point(stage, &format!("mnt-{volume}"))?;
    let target = Target {
        dir: mount,
        kind: Kind::Gluster { daemon, volume },
    };
    target.mount_gluster()?;
    Ok(target)
}

fn cairn(stage: &Stage, base: &Path) -> Result<Target> {
    let here = std::env::current_exe()?;
    let binary = here.parent().context("the target directory")?.join("cairn");
    ensure!(
        binary.exists(),
        "build it first: cargo build --release -p cairn"
    );
    let mut lab = Lab::new(&binary, base, 2)?;
    lab.form_pool()?;
    lab.make_volume("bench", 2)?;
    let mount = mount_point(stage, "mnt-cairn")?;
    lab.mount(0, "bench", &mount)?;
    Ok(Target {
        dir: mount.clone(),
        kind: Kind::Cairn {
            lab: Box::new(lab),
            mount,
        },
    })
}

impl Target {
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    fn mount_gluster(&self) -> Result<()> {
        let Kind::Gluster { volume, .. } = &self.kind else {
            return Ok(());
        };
        let source = format!("{GLUSTER_HOST}:/{volume}");
        run_within("mount", &["-t", "glusterfs", &source, &text(&self.dir)])?;
        wait("the GlusterFS mount", || is_mounted(&self.dir))
    }

    /// Forgets what clients and the kernel have cached: mounts anew and drops the caches.
    pub(crate) fn cold(&mut self) -> io::Result<()> {
        let mut remount = || -> Result<()> {
            match &mut self.kind {
                Kind::Local | Kind::Fuse { .. } => Ok(()),
                Kind::Gluster { volume, .. } => {
                    run("umount", &[&text(&self.dir)])?;
                    let source = format!("{GLUSTER_HOST}:/{volume}");
                    run_within("mount", &["-t", "glusterfs", &source, &text(&self.dir)])?;
                    wait("the GlusterFS mount", || is_mounted(&self.dir))
                }
                Kind::Cairn { lab, mount } => {
                    lab.umount(mount)?;
                    Ok(lab.mount(0, "bench", mount)?)
                }
            }
        };
        remount().map_err(io::Error::other)?;
        if workloads::drop_caches() {
            Ok(())
        } else {
            Err(io::Error::other("caches stay"))
        }
    }

    pub(crate) fn close(self) -> Result<()> {
        match self.kind {
            Kind::Local => Ok(()),
            Kind::Fuse { mut process } => {
                run("umount", &[&text(&self.dir)])?;
                process.wait()?;
                Ok(())
            }
            Kind::Gluster { mut daemon, volume } => {
                run("umount", &[&text(&self.dir)])?;
                run_within(
                    "gluster",
                    &["--mode=script", "volume", "stop", &volume, "force"],
                )?;
                run_within("gluster", &["--mode=script", "volume", "delete", &volume])?;
                daemon.kill()?;
                daemon.wait()?;
                Ok(())
            }
            Kind::Cairn { lab, .. } => Ok(lab.finish()?),
        }
    }
}
