//! Volume options about who uses a volume and how: `auth.allow`, `read-only`, `root-squash`. All are
//! changed while mounts are there.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cairn_lab::Lab;
use cairn_tests::machine::{Machine, source, token};
use cairn_tests::{Mounted, all_equal, skip};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};

const EPERM: i32 = 1;
const EACCES: i32 = 13;
const EROFS: i32 = 30;
const NOBODY: u32 = 65_534;
const SOON: Duration = Duration::from_secs(20);

fn set(lab: &Lab, key: &str, value: &str) -> Result<()> {
    lab.cairn(0, &["volume", "set", "v1", key, value])?;
    Ok(())
}

/// Tries until it is done, within a bound.
fn until_done<T>(what: &str, mut attempt: impl FnMut() -> io::Result<T>) -> Result<T> {
    let began = Instant::now();
    loop {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(error) => ensure!(began.elapsed() < SOON, "{what}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Tries until it fails, within a bound.
fn until_refused<T>(what: &str, mut attempt: impl FnMut() -> io::Result<T>) -> Result<io::Error> {
    let began = Instant::now();
    loop {
        match attempt() {
            Err(error) => return Ok(error),
            Ok(_) => ensure!(began.elapsed() < SOON, "{what}: it went on"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn errno<T>(result: io::Result<T>) -> Result<i32> {
    let Err(error) = result else {
        anyhow::bail!("it was done");
    };
    error.raw_os_error().context("an error of the system")
}

#[test]
fn bad_2_a_mount_that_auth_allow_names_no_more_is_cut_off_and_comes_back_when_it_does() -> Result<()>
{
    let Some(Mounted { dir, lab, mount }) = Mounted::new("v1", 2)? else {
        return Ok(());
    };
    let log = format!("log_file={}", dir.path().join("client.log").display());
    let app1 = Machine::new(dir.path(), "app1")?;
    app1.join(&token(&lab, &["app1"])?)?;
    let v1 = source(&lab, "v1");
    app1.done(&app1.mount_words(&v1, &log))?;
    let write = |at: &Path| fs::write(at.join("file"), "x");
    let (of_node, of_client) = (mount.as_path(), app1.at.as_path());
    write(of_node)?;
    write(of_client)?;

    let node = lab.name(0);
    set(&lab, "auth.allow", &node)?;
    until_refused("a client that is not named", || write(of_client))?;
    write(of_node).context("the node is named")?;
    let other = Machine::new(dir.path(), "other")?;
    let mut words = app1.mount_words(&v1, &log);
    words[2] = other.at.to_str().unwrap_or_default();
    let said = app1.refused(&words)?;
    ensure!(
        said.contains("auth.allow") && said.contains("app1"),
        "{said}"
    );

    set(&lab, "auth.allow", "app*")?;
    until_done("a client that is named again", || write(of_client))?;
    until_refused("a node that is not named", || write(of_node))?;
    // Clients come from the loopback address here, and a node's own mount counts as there.
    for list in ["127.0.0.0/8", "127.0.0.*,::1", "10.0.0.0/8,127.0.0.1", "*"] {
        set(&lab, "auth.allow", "10.0.0.0/8")?;
        until_refused("an address that is not named", || write(of_client))?;
        until_refused("a node's address that is not named", || write(of_node))?;
        set(&lab, "auth.allow", list)?;
        until_done(list, || write(of_client))?;
        until_done(list, || write(of_node))?;
    }
    for bad in ["", "10.0.0.0/33", "app 1", "10.0.0.*/8"] {
        let ran = lab.run(0, &["volume", "set", "v1", "auth.allow", bad])?;
        ensure!(ran.status == 2, "{bad}: {ran:?}");
        ensure!(
            ran.stderr.contains("option `auth.allow` cannot be"),
            "{ran:?}"
        );
    }
    drop((app1, other));
    lab.finish()?;
    Ok(())
}

/// Makes files until it is told that it may not; returns how many were made.
fn files_until_refused(mount: &Path, stop: &AtomicBool) -> io::Result<(u32, Option<i32>)> {
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            return Ok((number, None));
        }
        let result = File::create_new(mount.join(format!("f{number}")))
            .and_then(|mut file| file.write_all(&number.to_le_bytes()));
        if let Err(error) = result {
            return Ok((number, error.raw_os_error()));
        }
    }
    unreachable!("numbers end later")
}

#[test]
fn a_volume_that_becomes_read_only_refuses_every_change_and_keeps_what_was_confirmed() -> Result<()>
{
    let Some(Mounted { dir, lab, mount }) = Mounted::new("v1", 2)? else {
        return Ok(());
    };
    let mut open = File::create(mount.join("open"))?;
    open.write_all(b"before")?;
    let stop: Arc<AtomicBool> = Arc::default();
    let (at, told) = (mount.clone(), Arc::clone(&stop));
    let writer = std::thread::spawn(move || files_until_refused(&at, &told));
    until_done("the writer writes", || fs::metadata(mount.join("f9")))?;
    set(&lab, "read-only", "on")?;
    let began = Instant::now();
    while !writer.is_finished() && began.elapsed() < SOON {
        std::thread::sleep(Duration::from_millis(20));
    }
    stop.store(true, Ordering::Relaxed);
    let (made, ended) = writer.join().expect("it does not panic")?;
    ensure!(ended == Some(EROFS), "{made} files, then {ended:?}");
    for number in 0..made {
        let found = fs::read(mount.join(format!("f{number}")))?;
        ensure!(found == number.to_le_bytes(), "f{number}: {found:?}");
    }
    let file = mount.join("f0");
    for (what, refused) in [
        ("write", errno(open.write_all(b"x"))?),
        ("truncate", errno(open.set_len(1))?),
        ("create", errno(File::create_new(mount.join("new")))?),
        ("mkdir", errno(fs::create_dir(mount.join("dir")))?),
        ("unlink", errno(fs::remove_file(&file))?),
        ("rename", errno(fs::rename(&file, mount.join("g")))?),
        (
            "chmod",
            errno(fs::set_permissions(
                &file,
                fs::Permissions::from_mode(0o600),
            ))?,
        ),
    ] {
        ensure!(refused == EROFS, "{what}: {refused}");
    }
    open.sync_all().context("there is nothing to fail")?;
    ensure!(fs::read(mount.join("open"))? == b"before");
    // Who mounts now mounts it so, and finds it so.
    let second = dir.path().join("second");
    fs::create_dir(&second)?;
    let (text, v1) = (second.display().to_string(), source(&lab, "v1"));
    let log = format!("log_file={}", dir.path().join("second.log").display());
    lab.cairn(1, &["mount", &v1, &text, "-o", &log])?;
    ensure!(errno(fs::write(second.join("new"), "x"))? == EROFS);
    set(&lab, "read-only", "off")?;
    open.write_all(b", after")?;
    open.sync_all()?;
    ensure!(fs::read(second.join("open"))? == b"before, after");
    drop(open);
    cairn_tests::system::run("umount", &[&text])?;
    all_equal(&lab, 0, "v1")?;
    lab.finish()?;
    Ok(())
}

/// Does this as an ordinary user, on a thread of its own.
fn as_user<T: Send>(id: u32, work: impl FnOnce() -> io::Result<T> + Send) -> Result<T> {
    let become_user = move || {
        set_thread_groups(&[])?;
        set_thread_gid(Gid::from_raw(id))?;
        set_thread_uid(Uid::from_raw(id))?;
        work()
    };
    let done = std::thread::scope(|scope| scope.spawn(become_user).join());
    Ok(done.map_err(|_| anyhow::anyhow!("it panicked"))??)
}

#[test]
fn bad_2_root_of_a_mount_is_nobody_where_it_is_squashed() -> Result<()> {
    if !cairn_lab::is_root() {
        skip("only root can be squashed");
        return Ok(());
    }
    let Some(Mounted { dir, lab, mount }) = Mounted::new("v1", 2)? else {
        return Ok(());
    };
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    let (shared, tool, secret) = (
        mount.join("shared"),
        mount.join("tool"),
        mount.join("secret"),
    );
    fs::create_dir(&shared)?;
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o777))?;
    for (file, mode) in [(&tool, 0o755), (&secret, 0o600)] {
        fs::write(file, "by root")?;
        fs::set_permissions(file, fs::Permissions::from_mode(mode))?;
    }
    let mut open = File::options().write(true).open(&tool)?;

    set(&lab, "root-squash", "on")?;
    let refused = until_refused("a write of root's", || open.write_all(b"x"))?;
    ensure!(refused.raw_os_error() == Some(EACCES), "{refused}");
    ensure!(errno(fs::read(&secret))? == EACCES);
    ensure!(errno(fs::write(mount.join("new"), "x"))? == EACCES);
    ensure!(errno(fs::remove_file(&tool))? == EACCES);
    ensure!(
        errno(fs::set_permissions(
            &tool,
            fs::Permissions::from_mode(0o4755)
        ))? == EPERM
    );
    ensure!(errno(chown(&tool, Some(1234), None))? == EPERM);
    ensure!(fs::read(&tool)? == b"by root", "everybody may");
    let made = shared.join("made");
    fs::write(&made, "by nobody")?;
    let meta = fs::metadata(&made)?;
    ensure!((meta.uid(), meta.gid()) == (NOBODY, NOBODY), "{meta:?}");
    ensure!(errno(chown(&made, Some(0), Some(0)))? == EPERM);

    // A user is himself, and so is who got an open file from him.
    let own = shared.join("own");
    let mut handed = as_user(1234, || {
        fs::write(&own, "by a user")?;
        fs::set_permissions(&own, fs::Permissions::from_mode(0o600))?;
        File::options().append(true).open(&own)
    })?;
    handed.write_all(b" and root")?;
    ensure!(errno(fs::read(&own))? == EACCES);
    let found = as_user(1234, || fs::read(&own))?;
    ensure!(found == b"by a user and root");

    set(&lab, "root-squash", "off")?;
    until_done("root again", || fs::read(&secret))?;
    chown(&made, Some(0), Some(0))?;
    drop((open, handed));
    lab.finish()?;
    Ok(())
}
