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
        run("nbdsh", &["-u", &self.uri, "-c", script])
    }
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
refused(errno.ENOTSUP, h.zero, 4096, 0, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(4096, 0) == bytearray(4096)
h.pwrite(b"abc", 1, nbd.CMD_FLAG_FUA)
assert h.pread(5, 0) == b"\0abc\0"
h.cache(4096, 0)
h.zero(3 << 20, 0, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
found = []
h.block_status(8 << 20, 0, lambda name, at, extents, err: found.extend(extents) or 0)
assert found[:2] == [3 << 20, 0] and found[3] == 3, found
h.zero(1 << 20, 0, nbd.CMD_FLAG_FAST_ZERO)
found.clear()
h.block_status(8 << 20, 0, lambda name, at, extents, err: found.extend(extents) or 0, nbd.CMD_FLAG_REQ_ONE)
assert found == [1 << 20, 3], found
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
    let script = "--base-allocation";
    let said = run("nbdsh", &[script, "-u", &served.uri, "-c", ODD_REQUESTS])?;
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
    run("nbdsh", &["-u", &by_socket, "-c", read])?;
    served.nbdsh(read)?;
    served.lab.stop(SERVER)?;
    assert!(!socket.exists());
    served.lab.start(SERVER)?;
    run("nbdsh", &["-u", &by_socket, "-c", read])?;
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
