//! Connections that break, primaries that do not answer, signals meanwhile (FO-1, FO-2, FO-6).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};

use super::Bench;

const EINTR: i32 = 4;
const EIO: i32 = 5;

#[test]
fn fo_2_an_operation_whose_answer_was_lost_takes_effect_once() {
    let Some((bench, dir)) = Bench::mounted() else {
        return;
    };
    let lose = || bench.server.misbehave(|m| m.drop_next_answer = true);
    lose();
    let path = dir.join("f");
    let create = OpenOptions::new().append(true).create_new(true).open(&path);
    let mut file = create.expect("the repeated create says what the first one did");
    assert_eq!(bench.server.received("create"), 2);
    lose();
    file.write_all(b"once").expect("appended");
    assert_eq!(bench.server.received("write"), 2);
    assert_eq!(fs::read(&path).expect("read"), b"once");
    lose();
    fs::rename(&path, dir.join("g")).expect("renamed");
    assert_eq!(bench.server.received("rename"), 2);
    lose();
    fs::create_dir(dir.join("d")).expect("made");
    assert_eq!(bench.server.received("mkdir"), 2);
    lose();
    fs::remove_file(dir.join("g")).expect("removed");
    assert_eq!(bench.server.received("unlink"), 2);
    // The file is unlinked and open, through all that.
    file.write_all(b", twice").expect("appended");
    drop(file);
    bench.server.wait_until(|s| s.held() == (0, 0));
}

#[test]
fn fo_1_operations_wait_for_a_primary_and_go_on() {
    let Some((bench, dir)) = Bench::mounted() else {
        return;
    };
    let file = File::create(dir.join("f")).expect("made");
    file.write_all_at(b"before", 0).expect("written");
    bench.server.misbehave(|m| m.closed = true);
    bench.server.cut();
    let writers: Vec<_> = (0..20)
        .map(|n| {
            let path = dir.join(format!("w{n}"));
            std::thread::spawn(move || fs::write(path, vec![n; 100_000]))
        })
        .collect();
    bench.server.misbehave(|m| m.closed = false);
    for writer in writers {
        writer.join().expect("ran").expect("written");
    }
    file.write_all_at(b"after!", 0).expect("written");
    assert_eq!(fs::read(dir.join("f")).expect("read"), b"after!");
    for n in 0..20 {
        let back = fs::read(dir.join(format!("w{n}"))).expect("read");
        assert!(back == vec![n; 100_000]);
    }
    assert_eq!(bench.server.hellos(), 2);
}

#[test]
fn an_unlinked_open_file_survives_a_reconnect() {
    let Some((bench, dir)) = Bench::mounted() else {
        return;
    };
    let path = dir.join("f");
    fs::write(&path, b"kept").expect("written");
    let file = File::open(&path).expect("opened");
    let second = File::open(&path).expect("opened");
    bench.server.cut();
    fs::remove_file(&path).expect("removed");
    let mut text = [0; 4];
    file.read_exact_at(&mut text, 0).expect("read");
    assert_eq!(&text, b"kept");
    drop(file);
    second.read_exact_at(&mut text, 0).expect("read");
    drop(second);
    bench.server.wait_until(|s| s.held() == (0, 0));
}

/// A process that reads a file of the mount.
fn reader(path: &std::path::Path) -> Child {
    Command::new("cat")
        .arg(path)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("cat runs")
}

/// Waits until the process sits in the kernel and waits for the mount's answer.
fn wait_until_it_waits(bench: &Bench, child: &Child) {
    let place = format!("/proc/{}/wchan", child.id());
    bench.server.wait_until(|_| {
        fs::read_to_string(&place).is_ok_and(|at| at.contains("request_wait_answer"))
    });
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = i32::try_from(child.id()).ok();
    let pid = pid
        .and_then(rustix::process::Pid::from_raw)
        .expect("a process");
    rustix::process::kill_process(pid, signal).expect("it lives");
}

#[test]
fn fo_6_a_process_that_waits_for_the_primary_can_be_interrupted_and_killed() {
    let Some((bench, dir)) = Bench::mounted() else {
        return;
    };
    fs::write(dir.join("f"), b"content").expect("written");
    for disconnected in [false, true] {
        bench.server.misbehave(|m| {
            m.paused = true;
            m.closed = disconnected;
        });
        if disconnected {
            bench.server.cut();
        }
        for kill in [
            rustix::process::Signal::INT,
            rustix::process::Signal::KILL,
            rustix::process::Signal::TERM,
        ] {
            let mut child = reader(&dir.join("f"));
            wait_until_it_waits(&bench, &child);
            signal(&child, kill);
            let status = child.wait().expect("it ends");
            assert_eq!(status.signal(), Some(kill.as_raw()));
        }
        // A change that may have reached the primary: its process ends as well.
        let mut child = Command::new("mkdir")
            .arg(dir.join("d"))
            .spawn()
            .expect("runs");
        wait_until_it_waits(&bench, &child);
        signal(&child, rustix::process::Signal::KILL);
        assert!(child.wait().expect("it ends").signal().is_some());
        bench.server.misbehave(|m| {
            m.paused = false;
            m.closed = false;
        });
        assert_eq!(fs::read(dir.join("f")).expect("read"), b"content");
        // The slot of what was given up is used in order.
        for n in 0..300 {
            fs::write(dir.join(format!("n{n}")), b"x").expect("written");
        }
    }
    bench.server.wait_until(|s| s.held() == (0, 0));
}

#[test]
fn no_primary_eio_fails_what_waits_and_recovers_with_the_primary() {
    let Some(mut bench) = Bench::new() else {
        return;
    };
    let dir = bench.mount("node1:/v1", "no_primary=eio:1");
    fs::write(dir.join("f"), b"content").expect("written");
    bench.server.misbehave(|m| m.closed = true);
    bench.server.cut();
    let error = fs::read(dir.join("f")).expect_err("no primary");
    assert_eq!(error.raw_os_error(), Some(EIO));
    let error = fs::write(dir.join("g"), b"x").expect_err("no primary");
    assert_eq!(error.raw_os_error(), Some(EIO));
    bench.server.misbehave(|m| m.closed = false);
    bench.server.wait_until(|s| s.hellos() == 2);
    bench.server.wait_until(|_| fs::read(dir.join("f")).is_ok());
    fs::write(dir.join("g"), b"x").expect("written");
}

#[test]
fn fo_6_a_forgotten_session_fails_what_may_have_happened_and_goes_on() {
    let Some((bench, dir)) = Bench::mounted() else {
        return;
    };
    fs::write(dir.join("f"), b"content").expect("written");
    bench.server.misbehave(|m| {
        m.drop_next_answer = true;
        m.forget_sessions = true;
    });
    let error = fs::create_dir(dir.join("d")).expect_err("nobody can know");
    assert_eq!(error.raw_os_error(), Some(EIO));
    assert_eq!(fs::read(dir.join("f")).expect("read"), b"content");
    fs::create_dir(dir.join("e")).expect("made");
}

#[test]
fn a_signal_does_not_fail_an_operation_that_a_healthy_primary_answers() {
    let Some((_bench, dir)) = Bench::mounted() else {
        return;
    };
    // A shell whose child ends while it writes gets SIGCHLD in the middle of its calls.
    let script = format!(
        "trap : CHLD USR1; for i in $(seq 200); do (kill -USR1 $$) & echo $i >> {0}; done; wait; wc -l < {0}",
        dir.join("log").display()
    );
    let output = Command::new("bash")
        .arg("-c")
        .arg(script)
        .output()
        .expect("runs");
    let told = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        told.trim(),
        "200",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let interrupted = io::Error::from_raw_os_error(EINTR).to_string();
    assert!(!String::from_utf8_lossy(&output.stderr).contains(&interrupted));
}
