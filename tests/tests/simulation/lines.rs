//! Replicas on long lines, where the pool decides about roles: what the option `link-profile` is for.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use protocol::fs::{Operation, Outcome};
use protocol::ids::SessionId;
use protocol::units::{ObjectId, Term};
use protocol::volume::Quorum;
use replication::machine::Agreed;
use replication::state::Mask;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::client::Client;
use super::cluster::{CLIENTS_FROM, Cluster, Journal};
use super::faults::{Nodes, serving, wait_until_in_sync};
use super::network::{Network, Place};
use super::pool::Pool;
use super::random::Random;
use super::repair::{run, spec};

/// Longer than any wait that ends well.
const LONG: Duration = Duration::from_secs(60);

/// Two nodes, a third one that votes, and a mount, each so far from the others.
struct Stage {
    nodes: Nodes,
    mount: Client,
    network: Network,
    made: u32,
}

impl Stage {
    fn new(round_trip_ms: u64, profile: &str) -> Self {
        let random = Random::new(11);
        let mut spec = spec();
        spec.quorum = Quorum::Majority;
        spec.options
            .insert("link-profile".to_owned(), profile.to_owned());
        let volume = spec.id;
        let network = Network::new(random.fork(), round_trip_ms / 2, 0);
        let agreed = Agreed {
            version: 1,
            term: Term(0),
            primary: 0,
            in_sync: Mask::first(2),
        };
        let (pool, proposals) = Pool::new(spec, Some(agreed), network.clone(), random.fork());
        tokio::task::spawn_local(pool.clone().run(proposals));
        let journal = Journal::new(false);
        let mut cluster = Cluster::new(network.clone(), pool, journal, random.fork(), 1);
        cluster.start(0);
        cluster.start(1);
        let (at, directory) = (CLIENTS_FROM, cluster.directory.clone());
        let session = SessionId(random.bytes());
        let mount = Client::new(at, session, volume, false, network.clone(), directory);
        tokio::task::spawn_local(mount.clone().run());
        Self {
            nodes: Rc::new(Mutex::new(cluster)),
            mount,
            network,
            made: 0,
        }
    }

    /// Makes a file and says how long that took; `None`: longer than a minute.
    async fn make(&mut self) -> Option<Duration> {
        self.made += 1;
        let create = Operation::Create {
            parent: ObjectId::ROOT,
            name: Bytes::from(format!("file{}", self.made)),
            mode: 0o644,
            exclusive: true,
        };
        let began = Instant::now();
        let made = tokio::time::timeout(LONG, self.mount.call(1, create, Bytes::new())).await;
        match made {
            Ok(Outcome::Entry(_)) => Some(began.elapsed()),
            Ok(other) => panic!("it is not made: {other:?}"),
            Err(_) => None,
        }
    }

    /// Starts both nodes, which do not run.
    async fn restart(&self) {
        let mut cluster = self.nodes.lock().await;
        (0..2).for_each(|place| cluster.start(place));
    }

    /// The primary, once both replicas are in sync and both know it.
    async fn settled(&self) -> Place {
        assert!(wait_until_in_sync(&self.nodes).await);
        tokio::time::sleep(Duration::from_secs(1)).await;
        serving(&self.nodes).await.expect("one serves").replica
    }
}

/// With promises as long as a round trip nobody may ever answer.
#[test]
fn over_a_long_line_the_short_times_answer_nobody() {
    run(async {
        let mut stage = Stage::new(200, "lan");
        assert_eq!(stage.make().await, None);
    });
}

#[test]
fn over_a_long_line_the_long_times_serve_and_another_takes_over_when_the_primary_dies() {
    for round_trip_ms in [100, 200, 300] {
        run(async {
            let mut stage = Stage::new(round_trip_ms, "wan");
            let primary = stage.settled().await;
            assert!(stage.make().await.is_some());
            // There and back, for the mount and between the replicas, and no wait for anything else.
            for _ in 0..20 {
                let took = stage.make().await.expect("it is served");
                let most = Duration::from_millis(3 * round_trip_ms + 100);
                assert!(took <= most, "{took:?} over {round_trip_ms} ms");
            }
            stage.nodes.lock().await.kill(primary).await;
            let took = stage.make().await.expect("another takes over");
            assert!(took <= Duration::from_secs(6), "{took:?}");
            let heir = serving(&stage.nodes).await.expect("one serves").replica;
            assert_ne!(heir, primary);
            stage.nodes.lock().await.start(primary);
            stage.settled().await;
        });
    }
}

#[test]
fn over_a_long_line_a_silent_replica_or_primary_is_gone_on_without() {
    run(async {
        let mut stage = Stage::new(300, "wan");
        let primary = stage.settled().await;
        assert!(stage.make().await.is_some());
        let cut = |stage: &Stage, place: Place, others: &[Place]| {
            for other in others {
                stage.network.block(place, *other);
                stage.network.block(*other, place);
            }
        };
        // The secondary: after the deadline that long lines have, three seconds, it leaves the set.
        let secondary = 1 - primary;
        cut(&stage, secondary, &[primary, 2, CLIENTS_FROM]);
        let took = stage.make().await.expect("it goes on alone");
        assert!(took <= Duration::from_secs(6), "{took:?}");
        stage.network.heal();
        let primary = stage.settled().await;
        // The primary.
        cut(&stage, primary, &[1 - primary, 2, CLIENTS_FROM]);
        let took = stage.make().await.expect("another takes over");
        assert!(took <= Duration::from_secs(8), "{took:?}");
        stage.network.heal();
        assert_ne!(stage.settled().await, primary);
    });
}

/// A history from the future: the pool's state was restored from a backup, which knows neither of the
/// take-over since nor of what only the new primary confirmed. Whom that state takes for primary
/// does not serve without that; the status says why, and what is advised brings everything back.
#[test]
fn a_pool_that_was_set_back_lets_nobody_go_on_without_what_came_after() {
    run(async {
        let mut stage = Stage::new(4, "lan");
        let primary = stage.settled().await;
        assert!(stage.make().await.is_some());
        let pool = stage.nodes.lock().await.pool.clone();
        let (older, mut spec) = (pool.agreed(), pool.spec());
        stage.nodes.lock().await.kill(primary).await;
        assert!(stage.make().await.is_some(), "the heir alone has it");
        let heir = 1 - primary;
        stage.nodes.lock().await.kill(heir).await;
        let newer = pool.agreed().expect("roles are the pool's").term;
        let given = older.expect("roles are the pool's").term;
        assert!(newer > given);
        pool.set_back(older, spec.clone());
        stage.restart().await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(
            serving(&stage.nodes).await.is_none(),
            "nobody has the right"
        );
        for place in [0, 1] {
            let handle = stage.nodes.lock().await.handle(place).expect("it runs");
            let report = handle.status().await;
            let reason = report.reason.unwrap_or_default();
            let told = [
                format!("node{} is in term {newer}", heir + 1),
                format!("no term after {given}"),
                "quorum off".to_owned(),
            ];
            for words in told {
                assert!(reason.contains(&words), "{words} is missing in: {reason}");
            }
        }
        // As is advised.
        for place in [0, 1] {
            stage.nodes.lock().await.stop(place).await;
        }
        spec.quorum = Quorum::Off;
        spec.version += 1;
        pool.set_back(None, spec);
        stage.restart().await;
        assert_eq!(stage.settled().await, heir);
        let lookup = Operation::Lookup {
            parent: ObjectId::ROOT,
            name: Bytes::from("file2"),
        };
        let found = stage.mount.call(2, lookup, Bytes::new()).await;
        assert!(matches!(found, Outcome::Entry(_)), "{found:?}");
    });
}

/// The option changes while the volume is in use: no answer waits for that.
#[test]
fn the_profile_changes_under_way_and_nobody_notices() {
    run(async {
        let mut stage = Stage::new(4, "lan");
        let primary = stage.settled().await;
        assert!(stage.make().await.is_some());
        for profile in ["wan", "lan", "wan"] {
            let pool = stage.nodes.lock().await.pool.clone();
            let mut spec = pool.spec();
            spec.options
                .insert("link-profile".to_owned(), profile.to_owned());
            assert!(pool.propose_spec(primary, spec));
            let until = Instant::now() + Duration::from_secs(4);
            while Instant::now() < until {
                let took = stage.make().await.expect("it is served");
                assert!(took <= Duration::from_millis(120), "{profile}: {took:?}");
                tokio::time::sleep(Duration::from_millis(37)).await;
            }
        }
        assert_eq!(
            serving(&stage.nodes).await.map(|r| r.replica),
            Some(primary)
        );
    });
}
