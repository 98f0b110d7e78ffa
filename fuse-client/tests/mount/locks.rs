//! What comes of a file whose lock is lost while its mount has no primary.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;

use rustix::fs::{FallocateFlags, FlockOperation};

use crate::Bench;
use crate::server::Mischief;

const EIO: i32 = 5;

fn open(path: &Path) -> Arc<File> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    Arc::new(file.expect("opened"))
}

/// A thread that writes, once it waits for the primary.
fn waiting_writer(bench: &Bench, file: &Arc<File>) -> JoinHandle<io::Result<usize>> {
    let file = Arc::clone(file);
    let (sender, receiver) = channel();
    let thread = std::thread::spawn(move || {
        let thread = rustix::thread::gettid().as_raw_nonzero();
        sender.send(thread).expect("the test goes on");
        file.write_at(b"stale", 0)
    });
    let thread_id = receiver.recv().expect("the thread goes on");
    let place = format!("/proc/self/task/{thread_id}/wchan");
    bench.server.wait_until(|_| {
        fs::read_to_string(&place).is_ok_and(|at| at.contains("request_wait_answer"))
    });
    thread
}

fn is_eio<T>(result: io::Result<T>) -> bool {
    result.is_err_and(|error| error.raw_os_error() == Some(EIO))
}

/// A file is locked, its mount cut off, something asked, and the lock lost.
fn lose_a_lock(lose: impl Fn(&mut Mischief)) {
    let Some((bench, dir)) = Bench::mounted() else {
        return;
    };
    let path = dir.join("f");
    fs::write(&path, b"content").expect("written");
    let (file, other) = (open(&path), open(&path));
    rustix::fs::flock(&*file, FlockOperation::NonBlockingLockExclusive).expect("free");
    let before = bench.server.received("write");
    bench.server.misbehave(|m| m.closed = true);
    bench.server.cut();
    // From now on nothing is sent.
    bench.server.wait_until(|server| server.turned_away() > 0);
    let writer = waiting_writer(&bench, &file);
    bench.server.misbehave(|m| {
        lose(m);
        m.closed = false;
    });
    assert!(is_eio(writer.join().expect("it ends")));
    assert!(is_eio(file.read_at(&mut [0; 4], 0)));
    assert!(is_eio(file.write_at(b"x", 0)));
    assert!(is_eio(file.set_len(0)));
    assert!(is_eio(file.sync_all()));
    let longer = rustix::fs::fallocate(&*file, FallocateFlags::empty(), 0, 1 << 20);
    assert_eq!(longer, Err(rustix::io::Errno::IO));
    let again = rustix::fs::flock(&*file, FlockOperation::NonBlockingLockExclusive);
    assert_eq!(again, Err(rustix::io::Errno::IO));
    assert_eq!(bench.server.received("write"), before, "nothing is done");
    assert_eq!(fs::read(&path).expect("another open file"), b"content");
    other.write_at(b"C", 0).expect("it held no lock");
    drop(file);
    let file = open(&path);
    file.write_at(b"x", 0).expect("anew");
    assert_eq!(fs::read(&path).expect("read"), b"xontent");
}

#[test]
fn fo_6_what_waits_for_a_primary_is_not_done_under_a_lock_of_a_session_that_ended() {
    lose_a_lock(|m| m.forget_sessions = true);
}

/// A power cut took the lock, and others may have taken it since.
#[test]
fn fo_6_nothing_is_done_under_a_lock_before_it_is_known_to_be_held_again() {
    lose_a_lock(|m| m.lose_locks = true);
}
