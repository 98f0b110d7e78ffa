//! Programs that handle signals while they call: profilers, progress timers, garbage collectors.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::place::{Place, ended, load, said, unbounded};

/// Somebody who was killed waits no longer than this for a primary that is not there.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// Changes a file in every way, by the C library's calls, as Python's own repeat what a signal
/// interrupted. A timer's signal comes every few milliseconds and is handled. Says what failed, and
/// how often the signal came.
const PROGRAM: &str = r#"
import ctypes, errno, os, signal, sys, time
libc = ctypes.CDLL(None, use_errno=True)
ticks = 0
def tick(*_):
    global ticks
    ticks += 1
signal.signal(signal.SIGALRM, tick)
signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
file = os.open("file", os.O_CREAT | os.O_RDWR)
buffer = ctypes.create_string_buffer(4096)
calls = (
    ("link", b"file", b"other"), ("pwrite", file, b"x" * 4096, ctypes.c_size_t(4096), ctypes.c_long(0)),
    ("pread", file, buffer, ctypes.c_size_t(4096), ctypes.c_long(0)), ("fsync", file),
    ("rename", b"other", b"third"), ("mkdir", b"dir", 0o755), ("rmdir", b"dir"), ("unlink", b"third"),
    ("lockf", file, 2, ctypes.c_long(0)), ("lockf", file, 0, ctypes.c_long(0)))
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    for name, *words in calls:
        if getattr(libc, name)(*words) < 0:
            sys.exit(f"{name}: {errno.errorcode[ctypes.get_errno()]} after {ticks} signals")
signal.setitimer(signal.ITIMER_REAL, 0)
print(ticks)
"#;

fn program(place: &Place, lasts: Duration) -> Command {
    let mut python = unbounded("python3");
    // It finds nothing to import in the directory that it works in.
    python.args(["-I", "-c", PROGRAM, &lasts.as_secs().to_string()]);
    python.current_dir(place.mount());
    python
}

#[test]
fn a_program_that_handles_a_timer_sees_no_error_while_the_primary_dies() -> Result<()> {
    let Some(mut place) = Place::new(&["python3"])? else {
        return Ok(());
    };
    let mut program = program(&place, load());
    let output = place.while_primaries_die("a timer", || Ok(program.output()?))?;
    ensure!(output.status.success(), "{}", said(&output));
    println!("a timer: {} signals were handled", said(&output).trim());
    place.finish()
}

/// What the kernel says that the process waits for.
fn waits_for_an_answer(process: &Child) -> Result<bool> {
    let at = fs::read_to_string(format!("/proc/{}/wchan", process.id()))?;
    Ok(at.contains("request_wait_answer"))
}

#[test]
fn a_program_that_handles_a_timer_is_killed_at_once_while_nobody_serves() -> Result<()> {
    let Some(mut place) = Place::new(&["python3"])? else {
        return Ok(());
    };
    let mut program = program(&place, Duration::from_secs(1000));
    program.stdout(Stdio::null()).stderr(Stdio::null());
    let mut process = program.spawn()?;
    let waited = place.while_nobody_serves(|| {
        let began = Instant::now();
        while !waits_for_an_answer(&process)? {
            ensure!(began.elapsed() < GONE_WITHIN, "it does not wait");
            std::thread::yield_now();
        }
        // By now its timer's signal has come as well.
        std::thread::sleep(Duration::from_millis(100));
        ensure!(process.try_wait()?.is_none(), "it ended by itself");
        let began = Instant::now();
        process.kill()?;
        let status = ended(&mut process, GONE_WITHIN)?;
        let killed = status.is_some_and(|status| status.signal() == Some(9));
        ensure!(killed, "{status:?}");
        Ok(began.elapsed())
    });
    if waited.is_err() {
        process.kill()?;
    }
    println!("killed while nobody served: gone after {:?}", waited?);
    place.finish()
}
