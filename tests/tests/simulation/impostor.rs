//! Somebody speaks for a replica that is away, with its node's key and its brick's identity, and
//! says what no replica would: it is refused, and nothing else changes (BAD-1, BAD-4).

use daemon::volume::{AcceptedStream, Stream, VolumeHandle};
use protocol::ids::GenerationId;
use protocol::preamble::Purpose;
use protocol::replica::{Message, REPLICA_VERSION};
use protocol::units::Sequence;
use protocol::volume::VolumeSpec;
use replication::line::Line;
use replication::split::Policy;
use replication::state::{DurableState, Report, Role};

use super::cluster::node_id;
use super::faults::{Faults, millis, serving};
use super::network::Place;
use super::strangers::Played;

impl Faults {
    /// A replica dies; another process says that it is it; then it is back.
    pub(super) async fn impostor(&self) {
        let Some(primary) = serving(&self.nodes).await.map(|report| report.replica) else {
            return;
        };
        let members = self.nodes.lock().await.members();
        let others: Vec<Place> = members.into_iter().filter(|it| *it != primary).collect();
        let place = others[self.random.index(others.len())];
        let mut cluster = self.nodes.lock().await;
        if !cluster.is_running(place) {
            return;
        }
        cluster.kill(place).await;
        let (spec, handle) = (cluster.pool.known_spec(primary), cluster.handle(primary));
        let brick = cluster.brick(place);
        let state = serde_json::from_slice(brick.state()).expect("a brick remembers its role");
        let report = told_by(state, brick.applied());
        drop(cluster);
        // It is missed before somebody else is there.
        tokio::time::sleep(millis(self.random.within(20..1500))).await;
        if let Some(handle) = handle {
            self.lie(&handle, (&spec, place), report).await;
        }
        self.start_after(place, millis(self.random.within(10..1500)));
    }

    async fn lie(
        &self,
        handle: &VolumeHandle,
        (spec, place): (&VolumeSpec, Place),
        report: Report,
    ) {
        let mut report = report;
        let foreign = self.random.one_in(2);
        if foreign {
            self.journal
                .note(format!("somebody tells of other data as replica {place}"));
            report.line = Line::new(GenerationId(self.random.bytes()));
        } else {
            self.journal.note(format!(
                "somebody has more than there is, as replica {place}"
            ));
        }
        let hello = Message::Hello {
            version: REPLICA_VERSION,
            volume: spec.id,
            replica: u8::try_from(place).expect("few places"),
            brick: spec.replicas[place].brick,
            incarnation: self.random.next(),
            report: serde_json::to_vec(&report).expect("JSON").into(),
        };
        let (mine, theirs) = tokio::io::duplex(1 << 20);
        let (reader, writer) = tokio::io::split(theirs);
        let stream = Stream::new(reader, writer, Some(node_id(place)), None);
        handle.accept(AcceptedStream::Ready(stream), Purpose::Replica(spec.id));
        let mut played = Played::over(mine);
        played.say(&hello.encode()).await;
        let beyond = Sequence(1 << 50);
        let lie = Message::Ack {
            received: beyond,
            applied: beyond,
            stable: beyond,
            policy: 0,
        };
        let listens = async {
            while let Some(message) = played.hear().await {
                if matches!(message, Message::Welcome(_)) {
                    played.say(&lie.encode()).await;
                }
            }
        };
        let _ = tokio::time::timeout(millis(self.random.within(200..1200)), listens).await;
    }
}

/// What the replica that is away would tell.
fn told_by(state: DurableState, last: Sequence) -> Report {
    Report {
        term: state.term,
        role: Role::Secondary,
        serving: false,
        disk: state.disk,
        line: state.line,
        last,
        stable: last,
        in_sync: state.in_sync,
        journal_from: last.next(),
        handed_to: None,
        suspects: 0,
        layout: state.places.version,
        revision: 0,
        policy: state.policy,
        split_policy: Policy::default(),
        role_term: state.role_term,
        primary_since: state.primary_since,
        taken_from: None,
    }
}
