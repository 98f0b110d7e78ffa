//! FO-3, COH-1, FO-6 between real mounts: flock(2) and fcntl(2)'s locks exclude processes on
//! different mounts, wait in order, and live as long as their owners, over failover.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cairn_lab::{Lab, is_in_sync, signal};
use cairn_tests::locker::Locker;
use cairn_tests::{Mounted, mount_pid, skip, wait_until_stopped};

const VOLUME: &str = "v1";
const IN_SYNC_WITHIN: Duration = Duration::from_secs(60);
/// The node without a brick: it mounts, and is asked.
const WITNESS: usize = 2;

/// A volume with two mounts.
struct Bench {
    lab: Lab,
    a: PathBuf,
    b: PathBuf,
    _dir: tempfile::TempDir,
}

fn bench(nodes: usize) -> Result<Option<Bench>> {
    if !Locker::is_possible() {
        skip("there is no python3 that knows open file description locks");
        return Ok(None);
    }
    let Some(Mounted {
        dir,
        mut lab,
        mount: a,
    }) = Mounted::new(VOLUME, nodes)?
    else {
        return Ok(None);
    };
    let b = dir.path().join("mnt2");
    lab.mount(nodes - 1, VOLUME, &b)?;
    std::fs::write(a.join("file"), b"")?;
    Ok(Some(Bench {
        lab,
        a,
        b,
        _dir: dir,
    }))
}

impl Bench {
    /// A process with the file open on one of the mounts.
    fn locker(&self, mount: &Path) -> Result<Locker> {
        Locker::start(&mount.join("file"))
    }

    fn two(&self) -> Result<(Locker, Locker)> {
        Ok((self.locker(&self.a)?, self.locker(&self.b)?))
    }

    /// A session that is not heard of lives for 3 s from now on instead of half a minute.
    fn shorten_sessions(&self) -> Result<()> {
        let set = ["volume", "set", VOLUME, "session-timeout", "3s"];
        self.lab.cairn(0, &set)?;
        Ok(())
    }

    /// Waits until a mount gives its silent primary up, which takes longer than
    /// [`Bench::shorten_sessions`].
    fn wait_until_left(&self) -> Result<()> {
        let log = self.lab.dir().join("mount.log");
        while !std::fs::read_to_string(&log)?.contains("no sign of life") {
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Kills the process that serves the second mount, then who has a file open there.
    fn kill_mount(&mut self, mut sits_there: Locker) -> Result<()> {
        signal(mount_pid(&self.b)?, "KILL")?;
        sits_there.kill();
        self.lab.umount(&self.b)?;
        Ok(())
    }

    /// Kills the primary and waits until the other replica serves; which one it was.
    fn kill_primary(&mut self) -> Result<usize> {
        let status = self.lab.volume(WITNESS, VOLUME)?;
        let primary = usize::from(status["primary"] == self.lab.name(1).as_str());
        let other = self.lab.name(1 - primary);
        self.lab.kill(primary);
        let serves = |volume: &serde_json::Value| volume["primary"] == other.as_str();
        self.lab
            .wait_volume(WITNESS, VOLUME, "another primary", IN_SYNC_WITHIN, serves)?;
        Ok(primary)
    }
}

/// Waits until one of two answers; it, and the other one.
fn first_answer<'a>(
    one: &'a mut Locker,
    two: &'a mut Locker,
) -> Result<(String, &'a mut Locker, &'a mut Locker)> {
    loop {
        if let Some(answer) = one.answer()? {
            return Ok((answer, one, two));
        }
        if let Some(answer) = two.answer()? {
            return Ok((answer, two, one));
        }
        std::thread::yield_now();
    }
}

#[test]
fn coh_1_each_kind_of_lock_excludes_processes_on_two_mounts() -> Result<()> {
    let Some(bench) = bench(2)? else {
        return Ok(());
    };
    let (mut one, mut two) = bench.two()?;
    // flock(2): shared, exclusive, from one to the other.
    one.expect("flock f sh nb", "ok")?;
    two.expect("flock f sh nb", "ok")?;
    one.expect("flock f ex nb", "EAGAIN")?;
    two.expect("flock f un", "ok")?;
    one.expect("flock f ex nb", "ok")?;
    two.expect("flock f sh nb", "EAGAIN")?;
    // The classes do not know of each other.
    two.expect("posix f w 0 0 nb", "ok")?;
    two.expect("posix f un 0 0 nb", "ok")?;
    one.expect("flock f un", "ok")?;
    // fcntl(2): ranges split and join, and tell who is in the way.
    one.expect("posix f w 0 100 nb", "ok")?;
    one.expect("posix f r 40 20 nb", "ok")?;
    two.expect("posix f r 40 20 nb", "ok")?;
    two.expect("posix f w 40 20 nb", "EAGAIN")?;
    two.expect("test f r 0 0", "w 0 40 0")?;
    one.expect("posix f un 0 40 nb", "ok")?;
    two.expect("test f w 0 0", "r 40 20 0")?;
    two.expect("posix f un 40 20 nb", "ok")?;
    two.expect("posix f w 0 40 nb", "ok")?;
    let mut third = bench.locker(&bench.a)?;
    let pid = one.pid();
    third.expect("test f w 60 1", &format!("w 60 40 {pid}"))?;
    one.expect("posix f un 0 0 nb", "ok")?;
    two.expect("posix f w 0 0 nb", "ok")?;
    // A process's locks go with its first close, an open file's with its last.
    two.expect(&format!("open g {}", bench.b.join("file").display()), "ok")?;
    two.expect("close g", "ok")?;
    one.expect("posix f w 0 0 nb", "ok")?;
    one.expect("posix f un 0 0 nb", "ok")?;
    two.expect(&format!("open g {}", bench.b.join("file").display()), "ok")?;
    two.expect("ofd f w 0 10 nb", "ok")?;
    two.expect("ofd g w 0 10 nb", "EAGAIN")?;
    two.expect("close g", "ok")?;
    one.expect("ofd f w 9 1 nb", "EAGAIN")?;
    one.expect("posix f w 10 1 nb", "ok")?;
    // A close gives the rest back in the background: wait for it.
    two.expect("close f", "ok")?;
    one.expect("ofd f w 0 9", "ok")?;
    // What a process had that was killed goes at once, of all kinds.
    one.expect("flock f ex nb", "ok")?;
    third.expect_wait("flock f ex")?;
    one.kill();
    ensure!(third.wait()? == "ok");
    third.expect("posix f w 0 0", "ok")?;
    drop(third);
    bench.lab.finish()?;
    Ok(())
}

#[test]
fn coh_1_who_waits_for_a_lock_gets_it_in_order_or_is_told_or_interrupted() -> Result<()> {
    let Some(bench) = bench(2)? else {
        return Ok(());
    };
    let (mut one, mut two) = bench.two()?;
    // In the order of arrival, on different mounts.
    one.expect("flock f ex nb", "ok")?;
    two.expect_wait("flock f ex")?;
    one.expect("write f before", "ok")?;
    ensure!(two.answer()?.is_none(), "it got what another one has");
    one.expect("flock f un", "ok")?;
    ensure!(two.wait()? == "ok");
    two.expect("read f", "before")?;
    one.expect("flock f sh nb", "EAGAIN")?;
    // Two that change a shared lock into an exclusive one do not wait for each other.
    two.expect("flock f sh", "ok")?;
    one.expect("flock f sh", "ok")?;
    one.begin("flock f ex")?;
    two.begin("flock f ex")?;
    let (answer, first, second) = first_answer(&mut one, &mut two)?;
    ensure!(answer == "ok" && second.answer()?.is_none(), "{answer}");
    first.expect("flock f un", "ok")?;
    ensure!(second.wait()? == "ok");
    second.expect("flock f un", "ok")?;
    // A ring across mounts is told to who closes it.
    one.expect("posix f w 0 1", "ok")?;
    two.expect("posix f w 1 1", "ok")?;
    one.begin("posix f w 1 1")?;
    two.begin("posix f w 0 1")?;
    let (answer, first, second) = first_answer(&mut one, &mut two)?;
    ensure!(
        answer == "EDEADLK" && second.answer()?.is_none(),
        "{answer}"
    );
    first.expect("posix f un 0 2", "ok")?;
    ensure!(second.wait()? == "ok");
    second.expect("posix f un 0 2", "ok")?;
    one.expect("posix f w 0 2", "ok")?;
    // A signal ends a wait, and leaves nothing behind.
    two.expect_wait("posix f w 0 2")?;
    signal(two.pid(), "USR1")?;
    ensure!(two.wait()? == "EINTR");
    let mut third = bench.locker(&bench.a)?;
    third.expect_wait("posix f w 0 2")?;
    two.expect_wait("posix f w 0 1")?;
    third.kill();
    one.expect("posix f un 0 0", "ok")?;
    ensure!(two.wait()? == "ok", "who was killed is not waited for");
    one.expect("posix f w 1 1 nb", "ok")?;
    drop((one, two));
    bench.lab.finish()?;
    Ok(())
}

#[test]
fn fo_3_locks_and_who_waits_for_them_outlive_the_primary() -> Result<()> {
    let Some(mut bench) = bench(3)? else {
        return Ok(());
    };
    let (mut one, mut two) = bench.two()?;
    one.expect("flock f ex nb", "ok")?;
    one.expect("posix f w 10 5 nb", "ok")?;
    one.expect("ofd f r 20 5 nb", "ok")?;
    two.expect_wait("flock f ex")?;
    for round in 0..3 {
        let killed = bench.kill_primary()?;
        let mut third = bench.locker(&bench.b)?;
        third.expect("flock f sh nb", "EAGAIN")?;
        third.expect("test f w 10 1", "w 10 5 0")?;
        third.expect("test f w 20 1", "r 20 5 0")?;
        third.expect("ofd f w 24 1 nb", "EAGAIN")?;
        ensure!(
            two.answer()?.is_none(),
            "round {round}: it got it too early"
        );
        bench.lab.start(killed)?;
        bench
            .lab
            .wait_volume(WITNESS, VOLUME, "in sync", IN_SYNC_WITHIN, is_in_sync)?;
    }
    one.expect("flock f un", "ok")?;
    ensure!(two.wait()? == "ok", "who waited goes on");
    one.expect("flock f sh nb", "EAGAIN")?;
    // One that waits at a primary that is gone can be interrupted, and killed.
    one.expect_wait("flock f ex")?;
    let killed = bench.kill_primary()?;
    signal(one.pid(), "USR1")?;
    ensure!(one.wait()? == "EINTR");
    one.kill();
    two.expect("posix f w 0 0", "ok")?;
    bench.lab.start(killed)?;
    drop(two);
    bench.lab.finish()?;
    Ok(())
}

#[test]
fn fo_3_locks_of_a_mount_that_died_go_with_its_session_and_not_before() -> Result<()> {
    let Some(mut bench) = bench(2)? else {
        return Ok(());
    };
    let (mut one, mut two) = bench.two()?;
    two.expect("flock f ex nb", "ok")?;
    two.expect("posix f w 0 0 nb", "ok")?;
    bench.kill_mount(two)?;
    // A session that is not heard of lives for half a minute.
    one.expect("flock f ex nb", "EAGAIN")?;
    one.expect_wait("flock f ex")?;
    bench.shorten_sessions()?;
    ensure!(one.wait()? == "ok", "the session ended");
    one.expect("posix f w 0 0 nb", "ok")?;
    drop(one);
    bench.lab.finish()?;
    Ok(())
}

/// Whoever was given the lock of a mount that stood still must not find anything that the other one
/// did under it afterwards.
#[test]
fn fo_6_a_mount_that_stood_still_does_nothing_under_the_locks_that_it_lost() -> Result<()> {
    let Some(bench) = bench(2)? else {
        return Ok(());
    };
    let (mut one, mut two) = bench.two()?;
    let asks = [
        "write f stale",
        "truncate f 0",
        "allocate f 100000",
        "sync f",
        "read f",
        "flock f ex nb",
        "posix f w 0 0 nb",
    ];
    let locks = [
        ("flock f ex", "flock f un"),
        ("posix f w 0 0", "posix f un 0 0"),
        ("ofd f w 5 1", "ofd f un 5 1"),
    ];
    for ((lock, unlock), asked) in locks.into_iter().zip(asks) {
        let reset = ["volume", "reset", VOLUME, "session-timeout"];
        bench.lab.cairn(0, &reset)?;
        two.expect(lock, "ok")?;
        two.expect("write f before", "ok")?;
        let process = mount_pid(&bench.b)?;
        signal(process, "STOP")?;
        wait_until_stopped(process)?;
        two.expect_wait(asked)?;
        one.expect_wait(lock)?;
        bench.shorten_sessions()?;
        ensure!(one.wait()? == "ok", "the session ended: {lock}");
        one.expect("write f theirs", "ok")?;
        signal(process, "CONT")?;
        let answer = two.wait()?;
        ensure!(answer == "EIO", "`{asked}` under {lock}: {answer}");
        for ask in asks {
            two.expect(ask, "EIO")?;
        }
        one.expect("read f", "theirs")?;
        two.expect("close f", "EIO")?;
        let again = format!("open f {}", bench.b.join("file").display());
        two.expect(&again, "ok")?;
        two.expect("read f", "theirs")?;
        one.expect(unlock, "ok")?;
    }
    drop((one, two));
    bench.lab.finish()?;
    Ok(())
}

/// Time in which the daemons stood still is not held against mounts that could not be heard.
#[test]
fn fo_3_locks_are_still_there_when_every_daemon_stood_still_for_longer_than_a_session() -> Result<()>
{
    let Some(bench) = bench(2)? else {
        return Ok(());
    };
    let (mut one, mut two) = bench.two()?;
    bench.shorten_sessions()?;
    two.expect("flock f ex nb", "ok")?;
    two.expect("posix f w 3 4 nb", "ok")?;
    for node in 0..2 {
        signal(bench.lab.pid(node).context("it runs")?, "STOP")?;
    }
    two.expect_wait("write f waits")?;
    bench.wait_until_left()?;
    for node in 0..2 {
        signal(bench.lab.pid(node).context("it runs")?, "CONT")?;
    }
    ensure!(two.wait()? == "ok");
    one.expect("flock f sh nb", "EAGAIN")?;
    one.expect("test f w 0 0", "w 3 4 0")?;
    one.expect("read f", "waits")?;
    two.expect("flock f un", "ok")?;
    one.expect("flock f ex", "ok")?;
    drop((one, two));
    bench.lab.finish()?;
    Ok(())
}
