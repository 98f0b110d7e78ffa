//! Fencing as the machine orders it (ONE-2): the volume's command is run, with a time limit, and
//! told about in events and status.

use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use replication::machine::Phase;
use rustix::process::{Pid, Signal, kill_process_group};
use storage::Medium;

use super::driver::Driver;
use super::words;

/// How often it is looked whether the command has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Most of what the command says that is kept.
const SAID_BYTES_MAX: u64 = 2048;
/// How long its last words are waited for.
const LAST_WORDS_WITHIN: Duration = Duration::from_millis(200);

/// A command that makes sure that a node cannot serve a volume.
#[derive(Debug, Clone)]
pub struct FenceOrder {
    /// For `/bin/sh -c`.
    pub command: String,
    /// It is ended, and counts as failed, after this.
    pub within: Duration,
    /// Variables of its environment, besides those of the daemon.
    pub environment: Vec<(&'static str, String)>,
}

impl FenceOrder {
    /// Runs it to its end or the time limit; blocks. `Err` says why the node does not count as
    /// fenced.
    pub fn run(&self) -> Result<(), String> {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(&self.command);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::piped()).process_group(0);
        command.envs(self.environment.iter().map(|(key, value)| (*key, value)));
        let mut child = command
            .spawn()
            .map_err(|error| format!("it cannot be started: {error}"))?;
        let said = last_words(&mut child);
        let ended = wait(&mut child, self.within);
        let said = said.recv_timeout(LAST_WORDS_WITHIN).unwrap_or_default();
        let said = said.trim();
        let besides = if said.is_empty() {
            String::new()
        } else {
            format!(": {said}")
        };
        match ended {
            Ok(Some(status)) if status.success() => Ok(()),
            Ok(Some(status)) => Err(format!("it ended with {status}{besides}")),
            Ok(None) => Err(format!(
                "it did not end within {} s{besides}",
                self.within.as_secs()
            )),
            Err(error) => Err(format!("it cannot be waited for: {error}")),
        }
    }
}

/// What the command says, read beside, so that it never waits to say it.
fn last_words(child: &mut Child) -> mpsc::Receiver<String> {
    let (tell, told) = mpsc::channel();
    if let Some(mut pipe) = child.stderr.take() {
        std::thread::spawn(move || {
            let mut said = Vec::new();
            // What cannot be read was not said.
            let _ = pipe.by_ref().take(SAID_BYTES_MAX).read_to_end(&mut said);
            let _ = tell.send(String::from_utf8_lossy(&said).into_owned());
            let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        });
    }
    told
}

/// `None`: it did not end in time, and was killed with all that it started.
fn wait(child: &mut Child, within: Duration) -> std::io::Result<Option<ExitStatus>> {
    let end = Instant::now() + within;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            break;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(group) = group {
        // It may have ended just now.
        let _ = kill_process_group(group, Signal::KILL);
    }
    child.wait()?;
    Ok(None)
}

impl<M: Medium> Driver<M> {
    /// The machine wants a replica's node fenced.
    pub(super) fn fence(&mut self, replica: usize) {
        let Some(shared) = self.shared() else { return };
        let serving = self.machine.serves();
        let reason = if serving {
            "secondary-lost"
        } else {
            "primary-lost"
        };
        let target = &self.spec.replicas[replica];
        let node = target.node_name.clone();
        let order = FenceOrder {
            command: self.settings.fence_command.clone(),
            within: self.settings.fence_timeout,
            environment: vec![
                ("CAIRN_VOLUME", self.spec.name.clone()),
                ("CAIRN_NODE", node.clone()),
                ("CAIRN_NODE_ID", target.node.to_string()),
                ("CAIRN_ADDRESS", self.host.address(target.node)),
                ("CAIRN_REASON", reason.to_owned()),
                ("CAIRN_SELF", self.spec.replicas[self.me].node_name.clone()),
                ("CAIRN_TERM", self.machine.durable().term.0.to_string()),
            ],
        };
        let text = words::fencing_begins(&self.spec.replicas[self.me].node_name, &node, serving);
        self.host.event("fencing", &self.spec.name, &text);
        let answer = self.host.fence(order);
        tokio::task::spawn_local(async move {
            let outcome = answer.await;
            let outcome = outcome.unwrap_or_else(|_| Err("it was abandoned".to_owned()));
            let mut d = shared.borrow_mut();
            if d.stopping || d.failed.is_some() {
                return;
            }
            let (kind, text) = match &outcome {
                Ok(()) => ("fenced", words::fenced(&node)),
                Err(reason) => ("fencing_failed", words::not_fenced(&node, reason)),
            };
            d.host.event(kind, &d.spec.name, &text);
            d.fencing_failed = outcome.clone().err();
            let now = d.now();
            d.machine.fenced(now, replica, outcome.is_ok());
            d.finish_turn();
            d.hurry.notify_one();
        });
    }

    /// What stands in the way while a replica has to be fenced.
    pub(super) fn fencing_reason(&self) -> Option<String> {
        let volume = &self.spec.name;
        let own = &self.spec.replicas[self.me].node_name;
        if self.machine.waits_for_the_others() {
            return Some(format!(
                "waits for the other replicas of its last in-sync set: one of them may have fenced \
                 this node and be primary (`cairn volume promote {volume} {own} --force` if none is)"
            ));
        }
        let suspended = self.machine.suspended()?;
        let other = &self.spec.replicas[suspended.replica].node_name;
        let serves = matches!(
            self.machine.phase(),
            Phase::Serving | Phase::HandingOver { .. }
        );
        let what = match (serves, suspended.runs, &self.fencing_failed) {
            (_, true, _) => "it is being fenced".to_owned(),
            (_, _, Some(reason)) => format!("fencing it failed, and is tried again: {reason}"),
            (true, ..) => "it is fenced unless it is back soon".to_owned(),
            (false, ..) => {
                "it is fenced unless it is back soon, then this replica takes over".to_owned()
            }
        };
        let besides = if self.fencing_failed.is_some() {
            format!(" (`cairn volume promote {volume} {own} --force` if {other} is down for sure)")
        } else {
            String::new()
        };
        Some(if serves {
            format!("I/O waits, as {other} is gone and might take over: {what}{besides}")
        } else {
            format!("{other}, the primary, is gone: {what}{besides}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(command: &str, within_ms: u64) -> FenceOrder {
        FenceOrder {
            command: command.to_owned(),
            within: Duration::from_millis(within_ms),
            environment: vec![("CAIRN_NODE", "node2".to_owned())],
        }
    }

    #[test]
    fn a_command_counts_by_its_exit_status_and_its_words_are_told() {
        assert_eq!(order("test \"$CAIRN_NODE\" = node2", 60_000).run(), Ok(()));
        let failed = order("echo no power strip >&2; exit 3", 60_000).run();
        let failed = failed.expect_err("it failed");
        assert!(
            failed.contains('3') && failed.ends_with("no power strip"),
            "{failed}"
        );
    }

    #[test]
    fn a_command_that_does_not_end_is_killed_with_what_it_started() {
        let dir = tempfile::tempdir().expect("a directory");
        let lock = dir.path().join("lock");
        std::fs::write(&lock, b"").expect("a file");
        // Whoever still runs holds the lock.
        let command = format!("exec 9>{0}; flock 9; sleep 600 & wait", lock.display());
        let failed = order(&command, 300).run().expect_err("it hangs");
        assert!(failed.contains("did not end"), "{failed}");
        let file = std::fs::File::open(&lock).expect("open");
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).expect("it is free");
    }
}
