//! The options of a volume that its driver goes by.

use std::time::Duration;

use protocol::allow::AllowList;
use protocol::link::LinkTimes;
use protocol::options::Options;
use protocol::packed::ZSTD;
use protocol::volume::{Protocol, VolumeSpec};
use replication::machine::Fencing;
use replication::split::Policy;

/// Pause after a fence command that failed.
const FENCE_AGAIN: Duration = Duration::from_secs(5);

/// Options with their values in force.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// A replica that says or acknowledges nothing for so long leaves the set.
    pub(super) replica_deadline: Duration,
    /// What the links between the replicas are like.
    pub(super) link: LinkTimes,
    /// With fewer replicas in sync writes wait.
    pub(super) min_in_sync: u32,
    /// On what evidence an operation is confirmed.
    pub(super) protocol: Protocol,
    /// Under A: bytes that a replica may lack before it is left behind.
    pub(super) queue_bytes_max: u64,
    /// A client that says nothing for so long has ended.
    pub(super) session_timeout: Duration,
    /// Upper bound of a resync; `None`: none.
    pub(super) resync_bytes_per_second_max: Option<u64>,
    /// What happens to a split brain.
    pub(super) split_policy: Policy,
    /// Where a replica that is gone is fenced, and in what time.
    pub(super) fencing: Option<Fencing>,
    /// The command for that.
    pub(super) fence_command: String,
    /// How long it may take.
    pub(super) fence_timeout: Duration,
    /// The replica that shall be primary where there is a choice.
    pub(super) preferred: Option<usize>,
    /// The role goes back to it.
    pub(super) failback: bool,
    /// When it has been in sync for so long.
    pub(super) failback_delay: Duration,
    /// Nobody writes.
    pub(super) read_only: bool,
    /// Who mounts.
    pub(super) allow: AllowList,
    /// Root of mounts is nobody, and permissions are checked here.
    pub(super) root_squash: bool,
    /// What goes to other replicas is compressed.
    pub(super) compression: bool,
}

impl Settings {
    /// How often a sign of life is sent. Whoever hears nothing for the replica deadline closes the
    /// connection, also where there is nothing else to say.
    pub(super) fn heartbeat(&self) -> Duration {
        heartbeat(self.replica_deadline, self.link.heartbeat_max)
    }

    /// Of a volume's configuration; values were checked when they were set.
    pub(super) fn of(spec: &VolumeSpec) -> Self {
        let options = Options::new(&spec.options);
        let rate = options.bytes("resync-max-rate");
        let replica_deadline = options.duration("replica-deadline");
        let fence_command = options.text("fence-command");
        Self {
            link: options.link().times(),
            replica_deadline,
            fencing: (!fence_command.is_empty()).then_some(Fencing {
                grace: replica_deadline,
                delay: options.duration("fence-delay"),
                again: FENCE_AGAIN,
            }),
            fence_command,
            fence_timeout: options.duration("fence-timeout"),
            min_in_sync: u32::try_from(options.count("min-in-sync")).unwrap_or(1),
            protocol: spec.protocol,
            queue_bytes_max: options.bytes("async-queue-max"),
            session_timeout: options.duration("session-timeout"),
            resync_bytes_per_second_max: (rate > 0).then_some(rate),
            split_policy: split_policy(spec, &options.text("split-brain-policy")),
            preferred: place_of(spec, &options.text("preferred-primary")),
            failback: options.on("failback"),
            failback_delay: options.duration("failback-delay"),
            read_only: options.on("read-only"),
            allow: options.allowed(),
            root_squash: options.on("root-squash"),
            compression: options.text("compression") == ZSTD,
        }
    }
}

/// At most so often, where the deadline leaves so much time.
fn heartbeat(replica_deadline: Duration, most: Duration) -> Duration {
    // Within the deadline one may be late and another one be on its way.
    (replica_deadline * 3 / 8).min(most)
}

/// The place of a node's replica; `None`: it holds none.
fn place_of(spec: &VolumeSpec, node: &str) -> Option<usize> {
    let mut members = spec.members();
    let found = members.find(|(_, replica)| replica.node_name == node);
    found.map(|(place, _)| place)
}

/// A preferred node that holds no replica any more leaves nobody preferred.
fn split_policy(spec: &VolumeSpec, text: &str) -> Policy {
    match text {
        "discard-fewer-changes" => Policy::DiscardFewerChanges,
        "discard-older-primary" => Policy::DiscardOlderPrimary,
        "discard-younger-primary" => Policy::DiscardYoungerPrimary,
        _ => {
            let name = text.strip_prefix("prefer=").unwrap_or_default();
            place_of(spec, name).map_or(Policy::Manual, Policy::Prefer)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::thread::TICK;
    use super::*;
    use protocol::link::LinkProfile;
    use protocol::options::{OptionKind, rule};

    /// The simulation found it: with the shortest deadline that can be set, signs of life came less
    /// often than that. Idle replicas left each other again and again, and no resync that took
    /// longer than the deadline ever ended.
    #[test]
    fn signs_of_life_come_often_enough_for_every_deadline_that_can_be_set() {
        let OptionKind::Duration { ms_min, ms_max } = rule("replica-deadline").unwrap().kind else {
            panic!("a deadline is a duration");
        };
        for deadline in [ms_min, 300, 500, 800, 5000, ms_max].map(Duration::from_millis) {
            for (name, profile) in LinkProfile::ALL {
                let every = heartbeat(deadline, profile.times().heartbeat_max);
                assert!(every >= TICK, "no more often than anybody looks");
                assert!(
                    every * 2 + TICK <= deadline,
                    "one may be late: {name} {deadline:?}"
                );
            }
        }
    }
}
