//! What a signal means for a thread that waits in the kernel. FUSE tells that one came, not which:
//! `/proc` says whether it ends the thread, or is handled and leaves it at its call.

use std::fs;

/// Signals that neither end a process nor interrupt what it does, unless it asked for that:
/// CHLD, CONT, STOP, TSTP, TTIN, TTOU, URG and WINCH.
const HARMLESS: u64 = bit(17) | bit(18) | bit(19) | bit(20) | bit(21) | bit(22) | bit(23) | bit(28);

const fn bit(signal: u32) -> u64 {
    1 << (signal - 1)
}

/// Whether the thread ends as soon as its call returns. Of one that cannot be looked at nobody
/// knows, and it is not to hang.
pub(super) fn end(thread: u32) -> bool {
    // Its name may be any bytes.
    let status = fs::read(format!("/proc/{thread}/status"));
    status.map_or(true, |status| {
        says_that_it_ends(&String::from_utf8_lossy(&status))
    })
}

/// proc_pid_status(5): masks of signals that are pending, for the thread and for its process, and
/// of those that are blocked, ignored and caught.
fn says_that_it_ends(status: &str) -> bool {
    let mask = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name));
        value.and_then(|value| u64::from_str_radix(value.trim(), 16).ok())
    };
    let masks = ["SigPnd:", "ShdPnd:", "SigBlk:", "SigIgn:", "SigCgt:"].map(mask);
    let [
        Some(own),
        Some(shared),
        Some(blocked),
        Some(ignored),
        Some(caught),
    ] = masks
    else {
        return true;
    };
    (own | shared) & !(blocked | ignored | caught | HARMLESS) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pending: u64, shared: u64, blocked: u64, caught: u64) -> String {
        format!(
            "Name:\tsomebody\nPid:\t7\nSigQ:\t1/95\nSigPnd:\t{pending:016x}\nShdPnd:\t{shared:016x}\n\
             SigBlk:\t{blocked:016x}\nSigIgn:\t0000000000001000\nSigCgt:\t{caught:016x}\nCapInh:\t0\n"
        )
    }

    #[test]
    fn only_a_signal_that_is_not_handled_ends_a_thread() {
        let (kill, alarm, quit, pipe) = (bit(9), bit(14), bit(3), bit(13));
        // What the kernel gives each thread of a process that is to end.
        assert!(says_that_it_ends(&status(kill, 0, 0, alarm)));
        assert!(says_that_it_ends(&status(0, quit, 0, alarm)));
        assert!(!says_that_it_ends(&status(0, alarm, 0, alarm)));
        assert!(!says_that_it_ends(&status(alarm, 0, alarm, 0)), "blocked");
        assert!(!says_that_it_ends(&status(pipe, 0, 0, 0)), "ignored");
        assert!(!says_that_it_ends(&status(HARMLESS, HARMLESS, 0, 0)));
        assert!(!says_that_it_ends(&status(0, 0, 0, 0)));
    }

    #[test]
    fn who_cannot_be_looked_at_is_not_kept() {
        assert!(says_that_it_ends("Name:\tsomebody\n"));
        assert!(end(0));
        assert!(!end(std::process::id()));
    }
}
