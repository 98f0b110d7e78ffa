//! What this replica says about itself.

use std::time::{Duration, SystemTime};

use protocol::fs::FileSystemStatistics;
use protocol::report::{
    ClientReport, ConnectionState, DiskState, LastResyncReport, LinkReport, PeerReport,
    ReplicaReport, ReplicaRole, ResyncKind, ResyncReport, ResyncRole,
};
use replication::machine::{Phase, Standing};
use replication::state::{Disk, Role};
use storage::Medium;
use time::OffsetDateTime;

use super::driver::Driver;
use super::source::{Last, Running};
use super::words;
use crate::events::time_text;

pub(super) fn text(at: SystemTime) -> String {
    time_text(OffsetDateTime::from(at))
}

impl<M: Medium> Driver<M> {
    /// The report.
    pub(super) fn report(&self) -> ReplicaReport {
        let state = self.machine.durable();
        let space = self.brick.space().ok();
        let serving = self.machine.serves();
        let (point, kept) = self.point_reports();
        ReplicaReport {
            volume: self.spec.id,
            node: self.spec.replicas[self.me].node,
            replica: self.me,
            role: match state.role {
                Role::Primary => ReplicaRole::Primary,
                Role::Secondary => ReplicaRole::Secondary,
            },
            role_reason: Some(words::role_reason(state.role_reason).to_owned()),
            disk: self.disk_state(),
            reason: self
                .failed
                .clone()
                .or_else(|| self.a_later_history())
                .or_else(|| self.waiting_reason()),
            serving: serving && self.failed.is_none() && self.machine.suspended().is_none(),
            term: state.term.0,
            generation: Some(state.line.current()),
            in_sync: state.in_sync.has(self.me),
            peers: self
                .spec
                .members()
                .filter(|(r, _)| *r != self.me)
                .map(|(r, _)| self.peer_report(r))
                .collect(),
            resync: self.resyncs[self.me]
                .running
                .as_ref()
                .map(|r| resync_report(r, ResyncRole::Target, self.now())),
            last_resync: None,
            size_bytes: self.spec.size_bytes,
            used_bytes: Some(self.brick.used_bytes()),
            free_bytes: space.map(|s| s.free_bytes),
            clients: self.client_reports(),
            split_brain: self.split_brain(),
            protocol_in_force: serving.then(|| self.machine.protocol_in_force()),
            lost_operations: self.lost_operations,
            damaged_blocks: self.repairs.damaged.get(),
            repaired_blocks: self.repairs.repaired.get(),
            point,
            kept,
        }
    }

    fn disk_state(&self) -> DiskState {
        if self.failed.is_some() {
            return DiskState::Failed;
        }
        let following =
            (0..self.links.len()).any(|r| self.machine.standing(r) == Some(Standing::MyPrimary));
        match self.machine.durable().disk {
            Disk::UpToDate if self.machine.serves() || following => DiskState::UpToDate,
            // Without a primary nobody can say that nothing newer exists.
            Disk::UpToDate | Disk::Consistent => DiskState::Consistent,
            Disk::Inconsistent | Disk::Empty => DiskState::Inconsistent,
        }
    }

    fn waiting_reason(&self) -> Option<String> {
        if let Some(reason) = self.fencing_reason() {
            return Some(reason);
        }
        match self.machine.phase() {
            Phase::Waiting { .. } if self.machine.waits_for_every_report() => Some(format!(
                "waits for every other replica of its last in-sync set: under protocol {} they may \
                 have confirmed what is not here (`cairn volume promote {} {} --force` gives that up)",
                self.machine.protocol_in_force().name(),
                self.spec.name,
                self.spec.replicas[self.me].node_name,
            )),
            Phase::Waiting { .. } => {
                Some("waits for the other replicas of its last in-sync set".to_owned())
            }
            Phase::Pulling { from } => Some(format!(
                "fetches the newest records from {}",
                self.spec.replicas[from].node_name
            )),
            Phase::Claiming { .. } => Some("asks the pool for the role of primary".to_owned()),
            Phase::Activating => Some("is becoming primary".to_owned()),
            Phase::HandingOver { to } => Some(format!(
                "hands its role to {}",
                self.spec.replicas[to].node_name
            )),
            Phase::Serving if self.machine.lacks_replicas() => Some(format!(
                "writes wait: fewer than {} replicas are in sync (min-in-sync)",
                self.settings.min_in_sync
            )),
            Phase::Serving if self.machine.may_answer(self.now()) || self.would_answer() => None,
            Phase::Serving => Some(
                "answers nothing until every in-sync replica confirms that it is still primary"
                    .to_owned(),
            ),
            Phase::Following => {
                if self.needs_room.is_some() {
                    return self.needs_room.clone();
                }
                let primary = self.primary_node().is_some();
                (!primary).then(|| "no primary is known".to_owned())
            }
        }
    }

    fn peer_report(&self, replica: usize) -> PeerReport {
        let standing = self.machine.standing(replica);
        let serving = self.machine.serves();
        let in_sync = serving && standing == Some(Standing::InSync);
        let dirty = self.brick.dirty_summary(super::driver::index(replica));
        let lag = self.machine.lag(replica);
        let now = self.now();
        PeerReport {
            replica,
            connection: match standing {
                None => ConnectionState::Connecting,
                Some(Standing::Refused(_)) => ConnectionState::Standalone,
                Some(_) => ConnectionState::Connected,
            },
            in_sync,
            out_of_sync_bytes: if !serving {
                None
            } else if in_sync {
                Some(0)
            } else {
                Some(dirty.bytes + dirty.keys * 64)
            },
            lag_bytes: lag.map(|lag| lag.bytes),
            lag_seconds: lag.map(|lag| {
                let age = lag.since.map(|since| now.saturating_sub(since));
                age.unwrap_or_default().as_secs_f64()
            }),
            resync: self.resyncs[replica]
                .running
                .as_ref()
                .filter(|_| serving)
                .map(|r| resync_report(r, ResyncRole::Target, self.now())),
            last_resync: self.resyncs[replica]
                .last
                .as_ref()
                .filter(|_| serving)
                .map(last_report),
            refusal: {
                let stopped = self.resyncs[replica].stopped.as_ref();
                self.seen[replica].refusal().or(stopped).cloned()
            },
            link: self.links[replica].as_ref().map(|link| LinkReport {
                compressed: self.settings.compression && link.unpacks,
                plain_bytes: link.outbox.plain_bytes(),
                sent_bytes: link.outbox.written_bytes(),
            }),
        }
    }

    /// What statfs tells: of the smallest and fullest replica.
    pub(super) fn statistics(&self, objects: u64) -> FileSystemStatistics {
        let (mut total, mut free) = self
            .brick
            .space()
            .map_or((0, 0), |space| (space.total_bytes, space.free_bytes));
        for link in self.links.iter().flatten().filter(|link| link.feed_live) {
            total = total.min(link.room.map_or(total, |said| said.total_bytes));
            free = free.min(link.room.map_or(free, |said| said.free_bytes));
        }
        FileSystemStatistics {
            bytes_total: total,
            bytes_free: free,
            objects,
            // Objects cost space only: as many as the smallest ones that fit.
            objects_free: free / 1024,
        }
    }

    fn client_reports(&self) -> Vec<ClientReport> {
        let mut clients: Vec<_> = self
            .sessions
            .by_id
            .iter()
            .filter(|(_, session)| session.connection.is_some())
            .map(|(id, session)| {
                let since = Duration::from_millis(session.mounted_at_ms.max(0).unsigned_abs());
                ClientReport {
                    id: *id,
                    name: session.client_name.clone(),
                    address: session.address.clone(),
                    mounted_at: text(SystemTime::UNIX_EPOCH + since),
                    read_only: session.read_only,
                }
            })
            .collect();
        clients.sort_by(|a, b| a.mounted_at.cmp(&b.mounted_at));
        clients
    }
}

fn kind(full: bool) -> ResyncKind {
    if full {
        ResyncKind::Full
    } else {
        ResyncKind::Partial
    }
}

fn resync_report(running: &Running, role: ResyncRole, now: Duration) -> ResyncReport {
    let progress = running.progress.as_ref();
    ResyncReport {
        kind: kind(running.full),
        rule: running.rule.name().to_owned(),
        role,
        done_bytes: progress.map_or(0, |p| p.done_bytes()),
        total_bytes: progress.map_or(0, |p| p.total_bytes()),
        sent_bytes: progress.map_or(0, |p| p.sent_bytes()),
        rate_bytes_per_second: progress.and_then(|p| p.rate()).map(|rate| rate as u64),
        eta_seconds: progress
            .and_then(|p| p.time_left(now))
            .map(|left| left.as_secs()),
        started_at: text(running.began),
    }
}

fn last_report(last: &Last) -> LastResyncReport {
    LastResyncReport {
        kind: kind(last.full),
        rule: last.rule.name().to_owned(),
        total_bytes: last.total_bytes,
        sent_bytes: last.sent_bytes,
        duration_seconds: last.lasted.as_secs_f64(),
        finished_at: text(last.finished),
    }
}
