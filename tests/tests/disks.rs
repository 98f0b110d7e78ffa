//! Block volumes with the clients that people use: a mount's `disk.img` with loop devices, and NBD
//! with libnbd's tools, QEMU's and fio, while primaries are killed.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cairn_lab::{Lab, is_in_sync};
use cairn_tests::machine::{Machine, token};
use cairn_tests::system::{Mounts, has_program, run};
use cairn_tests::{all_equal, binary, kill_primary, setting, skip};

const VOLUME: &str = "disk1";
const MIB: u64 = 1 << 20;
const IN_SYNC_WITHIN: Duration = Duration::from_secs(60);
/// The node that serves disks and holds no brick.
const SERVER: usize = 2;

/// Three nodes, the disk with bricks on the first two, served by the third.
struct Served {
    lab: Lab,
    /// `nbd://ADDRESS/disk1`.
    uri: String,
    dir: tempfile::TempDir,
}

impl Served {
    /// `None`, said loudly, where a program is missing.
    fn new(size: &str, programs: &[&str]) -> Result<Option<Self>> {
        let missing: Vec<_> = programs.iter().filter(|name| !has_program(name)).collect();
        if !missing.is_empty() {
            skip(&format!(
                "not installed: {missing:?}; `cargo xtask test` does"
            ));
            return Ok(None);
        }
        let dir = tempfile::tempdir()?;
        let mut lab = Lab::new(&binary(), dir.path(), 3)?;
        lab.form_pool()?;
        lab.make_disk(VOLUME, 2, size)?;
        let address = address_of(&lab, SERVER);
        let uri = lab.json(SERVER, &["volume", "export", VOLUME, "--nbd", &address])?;
        let uri = uri["uri"].as_str().context("a URI")?.to_owned();
        assert_eq!(uri, format!("nbd://{address}/{VOLUME}"));
        Ok(Some(Self { lab, uri, dir }))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn finish(self) -> Result<()> {
        let Self { lab, uri, dir } = self;
        lab.wait_volume(0, VOLUME, "in sync", IN_SYNC_WITHIN, is_in_sync)?;
        all_equal(&lab, 0, VOLUME)?;
        lab.finish()?;
        drop((uri, dir));
        Ok(())
    }

    /// Runs Python with libnbd's `h` connected to the disk; what it prints.
    fn nbdsh(&self, script: &str) -> Result<String> {
        nbdsh(&["-u", &self.uri, "-c", script])
    }
}

/// Debian's Python, which has libnbd's module, whatever else is called python3 here.
const PYTHON: &str = "/usr/bin/python3";

/// What nbdsh(1) does.
fn nbdsh(words: &[&str]) -> Result<String> {
    run(PYTHON, &[&["-m", "nbd"], words].concat())
}

fn nbdsh_beside(uri: &str, script: &str) -> Command {
    let mut command = Command::new(PYTHON);
    command.args(["-m", "nbd", "-u", uri, "-c", script]);
    command
}

/// Where a node of the lab serves disks.
fn address_of(lab: &Lab, node: usize) -> String {
    let listens = lab.address(node);
    let host = listens.rsplit_once(':').map_or(listens, |(host, _)| host);
    format!("{host}:10809")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of letters")
}

/// A file of bytes that no other place has, with a hole.
fn image(path: &Path, bytes: u64) -> Result<()> {
    let file = File::create(path)?;
    file.set_len(bytes)?;
    let mut block = vec![0; 65536];
    for at in (0..bytes)
        .step_by(65536)
        .filter(|at| !(MIB..3 * MIB).contains(at))
    {
        for (number, word) in block.chunks_exact_mut(8).enumerate() {
            let value = (at + 8 * number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            word.copy_from_slice(&value.to_le_bytes());
        }
        file.write_all_at(&block, at)?;
    }
    Ok(())
}

fn same(a: &Path, b: &Path) -> Result<()> {
    run("cmp", &[text(a), text(b)]).map(drop)
}

#[test]
fn libnbd_and_qemu_copy_images_onto_a_disk_and_off_it_and_see_what_it_is() -> Result<()> {
    let programs = ["nbdinfo", "nbdcopy", "qemu-img", "qemu-io"];
    let Some(served) = Served::new("16M", &programs)? else {
        return Ok(());
    };
    let (source, back) = (served.path("source.img"), served.path("back.img"));
    image(&source, 16 * MIB)?;
    let uri = served.uri.as_str();
    let info = run("nbdinfo", &["--json", uri])?;
    let info: serde_json::Value = serde_json::from_str(&info)?;
    let export = &info["exports"][0];
    assert_eq!(export["export-size"], 16 * MIB);
    assert_eq!(export["export-name"], VOLUME);
    for can in [
        "can_cache",
        "can_df",
        "can_fast_zero",
        "can_flush",
        "can_fua",
        "can_multi_conn",
        "can_trim",
        "can_zero",
    ] {
        assert_eq!(export[can], true, "{can}: {export}");
    }
    assert_eq!(export["block_size_preferred"], 4096);
    assert_eq!(export["contexts"][0], "base:allocation");
    let listed = run("nbdinfo", &["--list", uri])?;
    assert!(listed.contains("disk1"), "{listed}");
    run("nbdcopy", &["--flush", text(&source), uri])?;
    run("nbdcopy", &[uri, text(&back)])?;
    same(&source, &back)?;
    // The hole came over, and clients see it.
    let map = run("nbdinfo", &["--map", "--totals", uri])?;
    assert!(map.contains("hole,zero"), "{map}");
    run("qemu-img", &["compare", "-f", "raw", text(&source), uri])?;
    run(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            "write -P 0x5a 4095 8194",
            "-c",
            "flush",
            uri,
        ],
    )?;
    let read = run(
        "qemu-io",
        &["-f", "raw", "-c", "read -P 0x5a 4095 8194", uri],
    )?;
    assert!(read.contains("read 8194/8194"), "{read}");
    let zeroed = [
        "-f",
        "raw",
        "-c",
        "write -z -u 0 1M",
        "-c",
        "discard 1M 1M",
        "-c",
    ];
    let zeroed = [&zeroed[..], &["read -P 0 0 2M", uri]].concat();
    let zeroed = run("qemu-io", &zeroed)?;
    assert!(!zeroed.contains("verification failed"), "{zeroed}");
    let qcow = served.path("vm.qcow2");
    run(
        "qemu-img",
        &["convert", "-O", "qcow2", text(&source), text(&qcow)],
    )?;
    run(
        "qemu-img",
        &["convert", "-n", "-O", "raw", text(&qcow), uri],
    )?;
    run("qemu-img", &["compare", text(&qcow), uri])?;
    served.finish()
}

#[test]
fn nbdfuse_shows_a_disk_as_a_file() -> Result<()> {
    if !cairn_lab::is_root() || !Path::new("/dev/fuse").exists() {
        skip("nbdfuse needs /dev/fuse, and its mount is taken away by root");
        return Ok(());
    }
    let Some(served) = Served::new("16M", &["nbdfuse", "cmp"])? else {
        return Ok(());
    };
    let (source, at) = (served.path("source.img"), served.path("nbdfuse"));
    image(&source, 16 * MIB)?;
    fs::create_dir(&at)?;
    let file = at.join("disk.img");
    let mut nbdfuse = Command::new("nbdfuse");
    let nbdfuse = Running::start(nbdfuse.args([text(&file), &served.uri]))?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while !file.exists() {
        ensure!(Instant::now() < deadline, "nothing is mounted");
        std::thread::yield_now();
    }
    let written = File::options().write(true).open(&file)?;
    written.write_all_at(&fs::read(&source)?, 0)?;
    written.sync_all()?;
    drop(written);
    let compared = same(&source, &file);
    run("umount", &[text(&at)])?;
    nbdfuse.finish()?;
    compared?;
    served.finish()
}

/// What libnbd lets through to the server, and what the server says.
const ODD_REQUESTS: &str = r#"
import nbd, errno
h.set_strict_mode(0)
def refused(code, f, *args):
    try:
        f(*args)
    except nbd.Error as e:
        assert e.errnum == code, (e, code)
        return
    raise AssertionError((f, args))
size = h.get_size()
refused(errno.ENOSPC, h.pwrite, b"x" * 512, size - 511)
refused(errno.EINVAL, h.pread, 512, size - 511)
refused(errno.EINVAL, h.trim, 512, size)
refused(errno.ENOSPC, h.zero, 512, size)
refused(errno.EINVAL, h.pwrite, b"x" * 512, 0, 1 << 9)
refused(errno.EINVAL, h.flush, nbd.CMD_FLAG_DF)
assert h.pread(4096, 0) == bytearray(4096)
h.pwrite(b"abc", 1, nbd.CMD_FLAG_FUA)
assert h.pread(5, 0) == b"\0abc\0"
h.cache(4096, 0)
def status(*flags):
    found = []
    h.block_status(8 << 20, 0, lambda name, at, extents, err: found.extend(extents) or 0, *flags)
    return found
h.pwrite(b"x" * (3 << 20), 0)
assert status() == [3 << 20, 0, 5 << 20, 3], status()
h.zero(1 << 20, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
assert status() == [1 << 20, 3, 2 << 20, 0, 5 << 20, 3], status()
assert status(nbd.CMD_FLAG_REQ_ONE) == [1 << 20, 3], status(nbd.CMD_FLAG_REQ_ONE)
h.trim(2 << 20, 1 << 20)
assert h.pread(3 << 20, 0) == bytearray(3 << 20)
big = bytearray((7 * i + i // 256) & 255 for i in range(1 << 16)) * 100
h.pwrite(big, 777)
assert h.pread(len(big), 777) == big
print("well")
"#;

#[test]
fn bad_1_odd_requests_are_refused_one_by_one_and_the_connection_goes_on() -> Result<()> {
    let Some(served) = Served::new("16M", &["nbdsh"])? else {
        return Ok(());
    };
    let said = nbdsh(&["--base-allocation", "-u", &served.uri, "-c", ODD_REQUESTS])?;
    assert_eq!(said.trim(), "well");
    served.finish()
}

#[test]
fn what_one_connection_wrote_and_flushed_every_other_one_reads() -> Result<()> {
    let Some(served) = Served::new("16M", &["nbdsh"])? else {
        return Ok(());
    };
    // Also by another node.
    let other = address_of(&served.lab, 1);
    served
        .lab
        .cairn(1, &["volume", "export", VOLUME, "--nbd", &other])?;
    let script = format!(
        "o = nbd.NBD(); o.connect_uri('nbd://{other}/')\n\
         for n in range(200):\n\
         \x20   h.pwrite(bytes([n]) * 4096, 4096 * n)\n\
         \x20   assert o.pread(4096, 4096 * n) == bytes([n]) * 4096\n\
         o.flush(); o.shutdown()"
    );
    served.nbdsh(&script)?;
    served.finish()
}

#[test]
fn an_export_lasts_over_restarts_until_it_is_ended_and_sockets_serve_as_well() -> Result<()> {
    let Some(mut served) = Served::new("16M", &["nbdsh", "nbdinfo"])? else {
        return Ok(());
    };
    let socket = served.path("disk1.sock");
    let unix = format!("unix:{}", text(&socket));
    let words = [
        "volume", "export", VOLUME, "--nbd", &unix, "--node", "node3",
    ];
    let by_socket = served.lab.json(0, &words)?;
    let by_socket = by_socket["uri"].as_str().context("a URI")?.to_owned();
    served.nbdsh("h.pwrite(b'kept', 0); h.flush()")?;
    served.lab.kill(SERVER);
    served.lab.start(SERVER)?;
    let read = "assert h.pread(4, 0) == b'kept'";
    nbdsh(&["-u", &by_socket, "-c", read])?;
    served.nbdsh(read)?;
    served.lab.stop(SERVER)?;
    assert!(!socket.exists());
    served.lab.start(SERVER)?;
    nbdsh(&["-u", &by_socket, "-c", read])?;
    served
        .lab
        .cairn(SERVER, &["volume", "unexport", VOLUME, "--nbd", &unix])?;
    assert!(!socket.exists());
    served.nbdsh(read)?;
    served
        .lab
        .cairn(0, &["volume", "unexport", VOLUME, "--node", "node3"])?;
    assert!(served.nbdsh(read).is_err());
    let again = served.lab.run(SERVER, &["volume", "unexport", VOLUME])?;
    assert_eq!(again.status, 1, "{}", again.stderr);
    served.finish()
}

#[test]
fn what_cannot_be_served_is_refused_with_a_reason() -> Result<()> {
    let Some(served) = Served::new("16M", &["nbdinfo"])? else {
        return Ok(());
    };
    let lab = &served.lab;
    let refused = |words: &[&str], status: i32, says: &str| -> Result<()> {
        let ran = lab.run(SERVER, words)?;
        ensure!(
            ran.status == status,
            "{words:?}: {} {}",
            ran.status,
            ran.stderr
        );
        ensure!(ran.stderr.contains(says), "{words:?}: {}", ran.stderr);
        Ok(())
    };
    let export = ["volume", "export", VOLUME, "--nbd"];
    refused(&[&export[..], &["nowhere"]].concat(), 2, "ADDR:PORT")?;
    refused(&[&export[..], &["127.0.0.1:0"]].concat(), 2, "ADDR:PORT")?;
    refused(&[&export[..], &["192.0.2.7:10809"]].concat(), 1, "listen")?;
    let file = served.path("file");
    fs::write(&file, "mine")?;
    let there = format!("unix:{}", text(&file));
    refused(&[&export[..], &[&there]].concat(), 1, "listen")?;
    assert_eq!(fs::read(&file)?, b"mine");
    lab.make_volume("files", 2)?;
    let files = ["volume", "export", "files", "--nbd", "127.0.0.1:10809"];
    refused(&files, 1, "holds files")?;
    refused(
        &["volume", "export", "nothing", "--nbd", "127.0.0.1:1"],
        1,
        "nothing",
    )?;
    let address = address_of(lab, SERVER);
    let unknown = run("nbdinfo", &[&format!("nbd://{address}/other")]);
    assert!(unknown.is_err());
    // It is alone there, so no name means it.
    run("nbdinfo", &[&format!("nbd://{address}")])?;
    served.finish()
}

#[test]
fn a_mount_shows_a_disk_as_one_file_that_keeps_its_size_and_nothing_else_can_be_there() -> Result<()>
{
    if !Path::new("/dev/fuse").exists() {
        skip("there is no /dev/fuse");
        return Ok(());
    }
    let Some(mut served) = Served::new("16M", &[])? else {
        return Ok(());
    };
    let mount = served.path("mnt");
    served.lab.mount(SERVER, VOLUME, &mount)?;
    let names = fs::read_dir(&mount)?.map(|entry| Ok(entry?.file_name()));
    assert_eq!(names.collect::<Result<Vec<_>>>()?, ["disk.img"]);
    let disk = mount.join("disk.img");
    assert_eq!(fs::metadata(&disk)?.len(), 16 * MIB);
    let refused = |what: std::io::Result<()>, errno: i32| {
        assert_eq!(what.map_err(|error| error.raw_os_error()), Err(Some(errno)));
    };
    let (perm, nospc) = (1, 28);
    refused(File::create(mount.join("other")).map(drop), perm);
    refused(fs::create_dir(mount.join("other")), perm);
    refused(fs::rename(&disk, mount.join("other")), perm);
    refused(fs::hard_link(&disk, mount.join("other")), perm);
    refused(fs::remove_file(&disk), perm);
    refused(File::create(&disk).map(drop), perm);
    let file = File::options().read(true).write(true).open(&disk)?;
    refused(file.set_len(17 * MIB), perm);
    refused(file.write_all_at(b"x", 16 * MIB), nospc);
    file.write_all_at(b"the end", 16 * MIB - 7)?;
    // It grows while it is open, here and for who is connected; it is cut only by force.
    let size = |size: &str, more: &[&str]| {
        let words = [&["volume", "set", VOLUME, "size", size][..], more].concat();
        served.lab.run(0, &words)
    };
    assert_eq!(size("32M", &[])?.status, 0);
    let until = |bytes: u64| -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while file.metadata()?.len() != bytes {
            ensure!(
                Instant::now() < deadline,
                "{} bytes",
                file.metadata()?.len()
            );
            std::thread::yield_now();
        }
        Ok(())
    };
    until(32 * MIB)?;
    file.write_all_at(b"a new end", 32 * MIB - 9)?;
    let cut = size("16M", &[])?;
    assert_eq!(cut.status, 4, "{}", cut.stderr);
    assert!(cut.stderr.contains("16777216"), "{}", cut.stderr);
    assert_eq!(size("16M", &["--force"])?.status, 0);
    until(16 * MIB)?;
    assert_eq!(size("33555K", &[])?.status, 1, "no multiple of 4096");
    assert_eq!(size("900T", &[])?.status, 1, "longer than a file can be");
    assert_eq!(size("32M", &[])?.status, 0);
    until(32 * MIB)?;
    let mut ends = [1; 9];
    file.read_exact_at(&mut ends, 32 * MIB - 9)?;
    assert_eq!(ends, [0; 9], "what was cut does not come back");
    file.read_exact_at(&mut ends[..7], 16 * MIB - 7)?;
    assert_eq!(&ends[..7], b"the end");
    drop(file);
    served.lab.umount(&mount)?;
    served.finish()
}

/// Writes 4 KiB blocks at depth and remembers each that was answered, until the file that it is
/// given is there; then reads everything again. What it prints last is how many.
const WRITER: &str = r#"
import os, random, sys, time
stop = os.environ["STOP"]
blocks = h.get_size() // 4096
content = {}
busy = {}
done = 0
longest = 0
def finish(block, began):
    def completed(error):
        global done, longest
        assert error.value == 0, error.value
        done += 1
        longest = max(longest, time.monotonic() - began)
        content[block] = busy.pop(block)
        return 1
    return completed
number = 0
while not os.path.exists(stop) or not done:
    while len(busy) < 16:
        block = random.randrange(blocks)
        if block in busy:
            continue
        number += 1
        data = number.to_bytes(8, "big") * 512
        busy[block] = data
        content.pop(block, None)
        flags = nbd.CMD_FLAG_FUA if number % 7 == 0 else 0
        h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), block * 4096, finish(block, time.monotonic()), flags)
    h.poll(-1)
while busy:
    h.poll(-1)
h.flush()
for block, data in content.items():
    assert h.pread(4096, block * 4096) == data, block
print(done, "writes, the longest took", round(longest, 2), "s")
"#;

#[test]
fn fo_1_a_client_that_cannot_even_reconnect_sees_a_pause_when_primaries_are_killed() -> Result<()> {
    let Some(mut served) = Served::new("64M", &["nbdsh"])? else {
        return Ok(());
    };
    let kills = setting("CAIRN_DISK_KILLS", 3);
    let stop = served.path("stop");
    let mut writer = nbdsh_beside(&served.uri, WRITER);
    let writer = Running::start(writer.env("STOP", &stop))?;
    for _ in 0..kills {
        std::thread::sleep(Duration::from_millis(700));
        while !kill_primary(&mut served.lab, SERVER, VOLUME)? {
            std::thread::yield_now();
        }
    }
    std::thread::sleep(Duration::from_millis(300));
    fs::write(&stop, "")?;
    println!("{kills} primaries were killed: {}", writer.finish()?.trim());
    served.finish()
}

/// A program beside the test; killed if the test ends early.
struct Running(Option<Child>);

impl Running {
    fn start(command: &mut Command) -> Result<Self> {
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(Self(Some(command.spawn()?)))
    }

    /// What it printed, if it succeeded.
    fn finish(mut self) -> Result<String> {
        let output = self.0.take().context("running")?.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {said}", output.status);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn dur_1_a_file_system_on_a_loop_device_is_whole_after_its_primary_was_killed() -> Result<()> {
    if !cairn_lab::is_root() || !Path::new("/dev/fuse").exists() {
        skip("loop devices and mounts need root and /dev/fuse");
        return Ok(());
    }
    let Some(mut served) = Served::new("128M", &["mkfs.ext4", "fsck.ext4", "fio"])? else {
        return Ok(());
    };
    let (mount, inside) = (served.path("mnt"), served.path("ext4"));
    served.lab.mount(SERVER, VOLUME, &mount)?;
    let disk = mount.join("disk.img");
    let mut mounts = Mounts::default();
    mounts.make("ext4", &disk, &inside)?;
    let rounds = setting("CAIRN_DISK_ROUNDS", 2);
    for round in 0..rounds {
        let file = format!("--filename={}", text(&inside.join("data")));
        let mut fio = Command::new("fio");
        fio.args([
            "--name=verify",
            &file,
            "--size=24m",
            "--rw=randwrite",
            "--bs=4k",
            "--iodepth=8",
            "--ioengine=libaio",
            "--direct=1",
            "--fsync=16",
            "--verify=crc32c",
            "--do_verify=1",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--output-format=terse",
        ]);
        let fio = Running::start(&mut fio)?;
        while fs::metadata(inside.join("data")).map_or(0, |data| data.blocks()) == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        while !kill_primary(&mut served.lab, SERVER, VOLUME)? {
            std::thread::yield_now();
        }
        fio.finish().with_context(|| format!("round {round}"))?;
        served
            .lab
            .wait_volume(0, VOLUME, "in sync", IN_SYNC_WITHIN, is_in_sync)?;
        mounts.umount(&inside)?;
        run("fsck.ext4", &["-f", "-n", text(&disk)])?;
        mounts.mount(&disk, &inside, "loop")?;
        let read = ["--rw=randread", "--verify_only=1"];
        let again = [
            "--name=verify",
            &file,
            "--size=24m",
            "--bs=4k",
            "--verify=crc32c",
            "--verify_state_save=0",
        ];
        run("fio", &[&again[..], &read].concat()).with_context(|| format!("round {round}"))?;
    }
    drop(mounts);
    served.lab.umount(&mount)?;
    served.finish()
}

#[test]
fn rs_1_of_a_disk_only_the_blocks_that_changed_travel() -> Result<()> {
    let Some(mut served) = Served::new("1G", &["nbdsh"])? else {
        return Ok(());
    };
    served.nbdsh("for n in range(16): h.pwrite(bytes([n + 1]) * (1 << 20), n << 26)")?;
    served
        .lab
        .wait_volume(0, VOLUME, "in sync", IN_SYNC_WITHIN, is_in_sync)?;
    let status = served.lab.volume(0, VOLUME)?;
    let away = usize::from(status["primary"] == served.lab.name(0).as_str());
    served.lab.stop(away)?;
    served.nbdsh(
        "import random\nfor n in random.sample(range(1 << 18), 1000): h.pwrite(b'new!' * 1024, n << 12)\nh.flush()",
    )?;
    served.lab.start(away)?;
    let synced = served
        .lab
        .wait_volume(0, VOLUME, "in sync", IN_SYNC_WITHIN, is_in_sync)?;
    let sent = synced["replicas"][away]["last_resync"]["sent_bytes"].as_u64();
    let sent = sent.context("a resync")?;
    println!("1,000 blocks of 4 KiB on 1 GiB: {sent} bytes sent");
    assert!((4_096_000..=5_600_000).contains(&sent), "{sent}");
    served.finish()
}

/// Opens connections that say nothing, half a word, or rubbish.
fn nuisances(address: &str, count: usize) -> Result<Vec<TcpStream>> {
    let words: [&[u8]; 4] = [
        b"",
        b"\0\0\0\x03IHAVE",
        b"GET / HTTP/1.1\r\nHost: disk\r\n\r\n",
        b"\0\0\0\x03IHAVEOPT\0\0\0\x07\xff\xff\xff\xff",
    ];
    let open = (0..count).map(|n| {
        let mut stream = TcpStream::connect(address)?;
        // It may have been closed already.
        let _ = stream.write_all(words[n % words.len()]);
        Ok(stream)
    });
    open.collect()
}

#[test]
fn bad_1_who_says_nothing_or_rubbish_or_never_reads_does_not_keep_others_from_the_disk()
-> Result<()> {
    let Some(served) = Served::new("64M", &["nbdsh"])? else {
        return Ok(());
    };
    let address = address_of(&served.lab, SERVER);
    let open = nuisances(&address, 300)?;
    // Never reads its answers.
    let hog = "for n in range(4000): h.aio_pread(nbd.Buffer(1 << 20), 0)\nimport sys; print('asked'); sys.stdout.flush(); import time; time.sleep(30)";
    let hog = Running::start(&mut nbdsh_beside(&served.uri, hog))?;
    // The words of those who speak are refused at once, those who are silent in 15 s.
    let began = Instant::now();
    served.nbdsh(
        "h.pwrite(b'here' * 1024, 0, nbd.CMD_FLAG_FUA); assert h.pread(4, 4096) == bytes(4)",
    )?;
    assert!(
        began.elapsed() < Duration::from_secs(40),
        "{:?}",
        began.elapsed()
    );
    for mut stream in open {
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut rest = Vec::new();
        // The greeting, and then the end.
        let _ = stream.read_to_end(&mut rest);
        assert_eq!(rest.get(..8), Some(&b"NBDMAGIC"[..]));
    }
    let pid = served.lab.pid(SERVER).context("it runs")?;
    let resident = fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages: u64 = resident.split(' ').nth(1).context("a number")?.parse()?;
    assert!(pages * 4096 < 600 * MIB, "{} MiB", pages * 4096 / MIB);
    drop(hog);
    served.finish()
}

#[test]
fn bad_2_off_the_machine_nothing_is_told_without_tls_unless_the_operator_says_so() -> Result<()> {
    let Some(served) = Served::new("16M", &["nbdinfo"])? else {
        return Ok(());
    };
    let open = ["volume", "export", VOLUME, "--nbd", "0.0.0.0:10977"];
    let uri = served.lab.json(SERVER, &open)?;
    assert_eq!(uri["uri"], "nbds://0.0.0.0:10977/disk1");
    let plain = run("nbdinfo", &["nbd://127.0.0.1:10977/disk1"]);
    assert!(plain.is_err());
    assert!(run("nbdinfo", &["--list", "nbd://127.0.0.1:10977"]).is_err());
    served
        .lab
        .cairn(SERVER, &[&open[..], &["--insecure"]].concat())?;
    run("nbdinfo", &["nbd://127.0.0.1:10977/disk1"])?;
    // Whom the volume does not let in, the export does not either.
    served
        .lab
        .cairn(0, &["volume", "set", VOLUME, "auth.allow", "node*"])?;
    let gone = Instant::now() + Duration::from_secs(10);
    while run("nbdinfo", &["nbd://127.0.0.1:10977/disk1"]).is_ok() {
        ensure!(Instant::now() < gone, "it is let in");
    }
    served.finish()
}

#[test]
fn bad_2_with_tls_a_client_of_the_pool_has_the_right_that_it_has_to_mount_until_it_is_revoked()
-> Result<()> {
    let Some(served) = Served::new("16M", &["nbdsh", "qemu-io"])? else {
        return Ok(());
    };
    let lab = &served.lab;
    lab.make_volume("files", 2)?;
    let open = ["volume", "export", VOLUME, "--nbd", "0.0.0.0:10978"];
    lab.cairn(SERVER, &open)?;
    let host = lab.address(SERVER);
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    let client = |name: &str, words: &[&str]| -> Result<(Machine, String)> {
        let machine = Machine::new(served.dir.path(), name)?;
        machine.join(&token(lab, &[&[name], words].concat())?)?;
        let certificates = served.path(&format!("{name}-certificates"));
        machine.done(&["client", "certificates", text(&certificates)])?;
        let dir = text(&certificates);
        let uri = format!("nbds://{host}:10978/{VOLUME}?tls-certificates={dir}");
        Ok((machine, uri))
    };
    let (_app1, app1) = client("app1", &["--volume", VOLUME])?;
    let (_reader, reader) = client("reader", &["--volume", VOLUME, "--read-only"])?;
    let (_other, other) = client("other", &["--volume", "files"])?;
    // The URI names files here, which libnbd takes only from who says so.
    let connected = |uri: &str, script: &str| {
        format!("h.set_uri_allow_local_file(True); h.connect_uri('{uri}')\n{script}")
    };
    let sh = |uri: &str, script: &str| nbdsh(&["-c", &connected(uri, script)]);
    sh(&app1, "h.pwrite(b'by app1', 0, nbd.CMD_FLAG_FUA)")?;
    sh(
        &reader,
        "assert h.is_read_only() and h.pread(7, 0) == b'by app1'",
    )?;
    assert!(sh(&other, "pass").is_err());
    let credentials = format!(
        "tls-creds-x509,id=tls0,endpoint=client,dir={}",
        text(&served.path("app1-certificates"))
    );
    let image = format!(
        "driver=raw,file.driver=nbd,file.server.type=inet,file.server.host={host},\
         file.server.port=10978,file.export={VOLUME},file.tls-creds=tls0"
    );
    let words = [
        "--object",
        &credentials,
        "--image-opts",
        "-c",
        "read -P 98 0 1",
        &image,
    ];
    let read = run("qemu-io", &words)?;
    assert!(read.contains("read 1/1"), "{read}");
    // Who is revoked is cut off, connected or not.
    let wait = "import time\nprint('connected'); import sys; sys.stdout.flush()\n\
                while True:\n\x20   h.pread(512, 0)\n\x20   time.sleep(0.05)";
    let mut beside = Command::new(PYTHON);
    beside.args(["-m", "nbd", "-c", &connected(&app1, wait)]);
    let mut connected = Running::start(&mut beside)?;
    let mut first = [0; 9];
    let child = connected.0.as_mut().context("running")?;
    child
        .stdout
        .as_mut()
        .context("piped")?
        .read_exact(&mut first)?;
    lab.cairn(0, &["client", "revoke", "app1"])?;
    assert!(connected.finish().is_err(), "it is cut off");
    assert!(sh(&app1, "pass").is_err());
    served.finish()
}
