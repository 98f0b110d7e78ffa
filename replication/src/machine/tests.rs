//! Small volumes in one thread: machines with a toy brick each (a log, a map of keys, dirty keys),
//! joined by in-order channels that a seeded schedule delays, cuts and mixes with crashes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use protocol::ids::GenerationId;
use protocol::units::{Sequence, Term};
use protocol::volume::Protocol;

use super::bugs::Bug;
use super::*;
use crate::decision::{Decision, Means, Rule};
use crate::line::Line;
use crate::split::{Policy, Split, Verdict};
use crate::state::Welcome;

mod fencing;
mod hunt;
mod leases;
mod messages;
mod places;
mod policies;
mod pool;
mod reports;
mod scenarios;
mod schedules;
mod splits;

type Key = u8;

#[derive(Debug, Clone, PartialEq)]
struct ToyRecord {
    sequence: Sequence,
    term: Term,
    key: Key,
    value: u64,
}

#[derive(Debug, Clone)]
enum Wire {
    /// What the sender tells of itself, and what it was told.
    Hello(Box<(Report, Report)>),
    Welcome(Box<Welcome>),
    Ask(Sequence, Term, u64),
    /// `None`: the log does not reach back so far.
    Doubts(Option<Vec<Key>>),
    Record(ToyRecord),
    Ack(Position),
    Items(Vec<(Key, Option<u64>)>),
    ItemsDone(Vec<Key>),
    Exact(BTreeMap<Key, u64>),
    Joined(Box<Membership>),
    Membership(Box<Membership>),
    HandOver(Term, Option<Agreed>),
    Pull(Sequence),
    Pulled,
    Leaving,
    Flush(u64),
    Flushed(u64),
    /// The term, the asker's clock, for how long.
    AskPromise(Term, Duration, Duration),
    Promise(Duration, Duration),
    Stable(Term, u64, super::Stable),
    Heartbeat,
}

/// The pool's agreement: one register that is compared and set, whose users may be cut off.
struct ToyPool {
    agreed: Agreed,
    /// Who asks, in which of its lives, for what.
    asked: VecDeque<(usize, u8, Agreed)>,
    cut_off: Vec<bool>,
}

impl ToyPool {
    fn decide(&mut self, next: Agreed) -> bool {
        let ok = next.version == self.agreed.version + 1;
        if ok {
            let was = std::mem::replace(&mut self.agreed, next);
            assert!(next.in_sync.has(next.primary));
            assert!(
                was.primary == next.primary
                    || (was.in_sync.has(next.primary) && next.term > was.term),
                "no succession: {was:?} {next:?}"
            );
        }
        ok
    }
}

/// What survives a crash: everything up to the last flush, and what was decided.
#[derive(Debug, Clone)]
struct Stable {
    state: DurableState,
    log: Vec<ToyRecord>,
    keys: BTreeMap<Key, u64>,
    dirty: Vec<BTreeSet<Key>>,
}

struct Node {
    machine: Option<Machine>,
    live: Stable,
    stable: Stable,
    feed: Vec<bool>,
    /// Whom nothing less than everything helps.
    full: Vec<bool>,
    starts: u8,
    /// The policy that it knows to be configured.
    protocol: Protocol,
    /// Records are kept in memory until they are told to be applied.
    holds: bool,
    /// For how long it asks for promises.
    lease: Duration,
    /// What was received and not handled, in order.
    held: VecDeque<Held>,
    /// Everything up to here may be answered once the lease allows.
    confirmable: Sequence,
    /// Of that, everything up to here by A.
    loosely: Sequence,
    /// What clients asked to be made stable, and what was confirmed before.
    syncs: BTreeMap<FlushId, Vec<ToyRecord>>,
}

/// A frame that waits to be handled.
struct Held {
    from: usize,
    wire: Wire,
    /// A record that only records are before: it was acknowledged as received.
    counted: bool,
}

struct Volume {
    nodes: Vec<Node>,
    /// Frames on the way from one node to another; `None`: not connected.
    wires: BTreeMap<(usize, usize), VecDeque<Wire>>,
    now: Duration,
    next_value: u64,
    /// Every confirmed write, in order: key and value.
    confirmed: Vec<ToyRecord>,
    ordered: Vec<Vec<ToyRecord>>,
    handed_over: u32,
    pool: Option<ToyPool>,
    /// Connections on which nothing arrives although nobody noticed.
    mute: BTreeSet<(usize, usize)>,
    /// Who still believes to be connected to whom, although the other end is gone.
    half: BTreeSet<(usize, usize)>,
    /// The mistake that every machine makes.
    bug: Option<Bug>,
    /// Power may be lost: what was confirmed may be gone.
    power: bool,
    /// Values that were confirmed by A, and by nothing stricter since.
    loose: BTreeSet<u64>,
    /// What fsync confirmed.
    synced: Vec<ToyRecord>,
    /// Confirmed operations that take-overs gave up.
    given_up: usize,
    /// The primary has no clients: it asks for no promises.
    quiet: bool,
    /// Followers say that they are there, also where they have nothing to say.
    lively: bool,
    /// What happens to a split brain.
    split_policy: Policy,
    /// Two sides have confirmed what the other lacks.
    parted: bool,
    /// How replicas are fenced.
    fencing: Option<Fencing>,
    /// Who shoots whom, and has not hit yet.
    shots: Vec<(usize, usize)>,
    /// Split brains that were told.
    splits: Vec<(usize, Split)>,
}

const LEASE_MS: u32 = 60;
const LEASE: Duration = Duration::from_millis(LEASE_MS as u64);
const WAIT: Duration = Duration::from_millis(100);
/// Bound of the queue of A; a record has one byte.
const QUEUE_MAX: u64 = 4;

impl Volume {
    fn new(count: usize) -> Self {
        Self::made(count, None, None)
    }

    /// With `quorum=majority`.
    fn with_pool(count: usize) -> Self {
        Self::made(count, Some(Self::toy_pool(count)), None)
    }

    fn toy_pool(count: usize) -> ToyPool {
        let agreed = Agreed {
            version: 1,
            term: Term(1),
            primary: 0,
            in_sync: Mask::first(count),
        };
        ToyPool {
            agreed,
            asked: VecDeque::new(),
            cut_off: vec![false; count],
        }
    }

    fn made(count: usize, pool: Option<ToyPool>, bug: Option<Bug>) -> Self {
        let line = Line::new(GenerationId([1; 16]));
        let nodes = (0..count)
            .map(|me| {
                let state = DurableState {
                    longest_promise_ms: LEASE_MS,
                    ..DurableState::created(me, count, line.clone())
                };
                let stable = Stable {
                    state,
                    log: Vec::new(),
                    keys: BTreeMap::new(),
                    dirty: vec![BTreeSet::new(); count],
                };
                Node {
                    machine: None,
                    live: stable.clone(),
                    stable,
                    feed: vec![false; count],
                    full: vec![false; count],
                    starts: 0,
                    protocol: Protocol::C,
                    holds: false,
                    lease: LEASE,
                    held: VecDeque::new(),
                    confirmable: Sequence::ZERO,
                    loosely: Sequence::ZERO,
                    syncs: BTreeMap::new(),
                }
            })
            .collect();
        let mut volume = Self {
            nodes,
            wires: BTreeMap::new(),
            now: Duration::ZERO,
            next_value: 0,
            confirmed: Vec::new(),
            ordered: vec![Vec::new(); count],
            handed_over: 0,
            pool,
            mute: BTreeSet::new(),
            half: BTreeSet::new(),
            bug,
            power: false,
            loose: BTreeSet::new(),
            synced: Vec::new(),
            given_up: 0,
            quiet: false,
            lively: false,
            split_policy: Policy::Manual,
            parted: false,
            fencing: None,
            shots: Vec::new(),
            splits: Vec::new(),
        };
        for node in 0..count {
            volume.boot(node);
        }
        volume
    }

    fn last(stable: &Stable) -> Sequence {
        stable
            .log
            .last()
            .map_or(Sequence::ZERO, |record| record.sequence)
    }

    /// The node's clock: no two run at the same rate.
    fn clock(&self, node: usize) -> Duration {
        self.now * (1000 + u32::try_from(node).unwrap() * 5) / 1000
    }

    fn boot(&mut self, me: usize) {
        let count = self.nodes.len();
        let now = self.clock(me);
        let agreed = self.pool.as_ref().map(|pool| pool.agreed);
        let node = &mut self.nodes[me];
        node.live = node.stable.clone();
        node.starts += 1;
        node.feed = vec![false; count];
        let mut entropy = [0; 16];
        entropy[0] = u8::try_from(me).unwrap() + 1;
        entropy[1] = node.starts;
        let config = Config {
            me,
            count,
            activation_wait: WAIT,
            replica_deadline: if agreed.is_some() {
                Duration::from_millis(300)
            } else {
                Duration::from_secs(10)
            },
            agreed,
            claim_after: Duration::from_millis(100),
            min_in_sync: 1,
            protocol: node.protocol,
            queue_bytes_max: QUEUE_MAX,
            split_policy: self.split_policy,
            fencing: self.fencing,
            entropy,
        };
        let mut machine = Machine::new(config, node.live.state.clone(), Self::last(&node.live), 0);
        machine.bug = self.bug;
        machine.start(now);
        node.machine = Some(machine);
        self.carry_out(me);
    }

    /// The process ends; with `power`, what was not flushed is gone too.
    fn crash(&mut self, me: usize, power: bool) {
        if !power {
            self.nodes[me].stable = self.nodes[me].live.clone();
        }
        self.nodes[me].machine = None;
        self.shots.retain(|(from, _)| *from != me);
        self.nodes[me].held.clear();
        self.nodes[me].syncs.clear();
        self.nodes[me].confirmable = Sequence::ZERO;
        self.nodes[me].loosely = Sequence::ZERO;
        for other in 0..self.nodes.len() {
            self.cut(me, other);
        }
    }

    /// One end sees the connection break, the other does not.
    fn cut_one_end(&mut self, a: usize, b: usize) {
        if self.wires.remove(&(a, b)).is_none() {
            return;
        }
        self.wires.remove(&(b, a));
        self.half.insert((b, a));
        self.tell_lost(a, b);
    }

    fn tell_lost(&mut self, node: usize, other: usize) {
        let now = self.clock(node);
        self.nodes[node].feed[other] = false;
        self.keep_received(node, other);
        if let Some(machine) = self.nodes[node].machine.as_mut() {
            machine.lost(now, other);
            self.carry_out(node);
        }
    }

    fn cut(&mut self, a: usize, b: usize) {
        for (node, other) in [(a, b), (b, a)] {
            if self.half.remove(&(node, other)) {
                self.tell_lost(node, other);
            }
        }
        self.mute.remove(&(a, b));
        self.mute.remove(&(b, a));
        let was = self.wires.remove(&(a, b)).is_some();
        self.wires.remove(&(b, a));
        if was {
            for (node, other) in [(a, b), (b, a)] {
                self.tell_lost(node, other);
            }
        }
    }

    fn connect(&mut self, a: usize, b: usize) {
        // Who still has something to apply does not tell where it stands.
        let up = |node: usize| {
            let machine = self.nodes[node].machine.as_ref();
            machine.is_some_and(|machine| !machine.has_received())
        };
        if a == b || self.wires.contains_key(&(a, b)) || !up(a) || !up(b) {
            return;
        }
        let layout = |node: usize| self.nodes[node].machine.as_ref().map(|m| m.report().layout);
        if layout(a) != layout(b) {
            return; // a hello in another layout is refused
        }
        for (node, other) in [(a, b), (b, a)] {
            // A new connection takes the place of the old one.
            if self.half.remove(&(node, other)) {
                self.tell_lost(node, other);
            }
        }
        for (from, to) in [(a, b), (b, a)] {
            let told = |node: usize| self.nodes[node].machine.as_ref().unwrap().report();
            let hello = Wire::Hello(Box::new((told(from), told(to))));
            self.wires.insert((from, to), VecDeque::from([hello]));
        }
    }

    fn send(&mut self, from: usize, to: usize, wire: Wire) {
        if let Some(queue) = self.wires.get_mut(&(from, to)) {
            queue.push_back(wire);
        }
    }

    fn write(&mut self, me: usize, key: Key) {
        let now = self.clock(me);
        let Some(machine) = self.nodes[me].machine.as_mut() else {
            return;
        };
        let Ok((sequence, term, _)) = machine.order(now, 1) else {
            return;
        };
        let mask = machine.dirty_mask();
        self.next_value += 1;
        let record = ToyRecord {
            sequence,
            term,
            key,
            value: self.next_value,
        };
        self.append(me, &record, mask);
        for other in 0..self.nodes.len() {
            if self.nodes[me].feed[other] {
                self.send(me, other, Wire::Record(record.clone()));
            }
        }
        self.ordered[me].push(record);
        self.nodes[me]
            .machine
            .as_mut()
            .unwrap()
            .local_applied(sequence);
        self.carry_out(me);
    }

    fn append(&mut self, me: usize, record: &ToyRecord, mask: Mask) {
        let live = &mut self.nodes[me].live;
        live.keys.insert(record.key, record.value);
        live.log.push(record.clone());
        for replica in mask.iter() {
            live.dirty[replica].insert(record.key);
        }
    }

    fn flush(&mut self, me: usize) {
        self.nodes[me].stable = self.nodes[me].live.clone();
        let last = Self::last(&self.nodes[me].live);
        if let Some(machine) = self.nodes[me].machine.as_mut() {
            machine.local_stable(last);
        }
        self.acknowledge(me);
    }

    fn acknowledge(&mut self, me: usize) {
        let Some(machine) = self.nodes[me].machine.as_ref() else {
            return;
        };
        let stable = Self::last(&self.nodes[me].stable).min(machine.last());
        let position = Position {
            stable,
            ..machine.position_here()
        };
        for other in 0..self.nodes.len() {
            let machine = self.nodes[me].machine.as_ref().unwrap();
            if machine.standing(other) == Some(Standing::MyPrimary) {
                self.send(me, other, Wire::Ack(position));
            }
        }
    }

    fn carry_out(&mut self, me: usize) {
        loop {
            let Some(machine) = self.nodes[me].machine.as_mut() else {
                return;
            };
            if let Some(flush) = machine.own_flush() {
                self.volume_flush(me, flush);
                continue;
            }
            let machine = self.nodes[me].machine.as_mut().unwrap();
            machine.check_invariants();
            let Some(output) = machine.poll() else { break };
            self.one_output(me, output);
        }
        self.release(me);
    }

    /// Tells clients what is confirmed: under A only while the lease holds.
    fn release(&mut self, me: usize) {
        let now = self.clock(me);
        let Some(machine) = self.nodes[me].machine.as_ref() else {
            return;
        };
        if machine.serves() && machine.protocol_in_force() != Protocol::A {
            self.loose.clear();
        }
        let from = self.confirmed.last().map_or(Sequence::ZERO, |r| r.sequence);
        let loosely = self.nodes[me].loosely;
        if from < loosely && !machine.may_answer(now) {
            return;
        }
        let upto = self.nodes[me].confirmable;
        let log = &self.nodes[me].live.log;
        let fresh: Vec<_> = log
            .iter()
            .filter(|r| r.sequence > from && r.sequence <= upto && r.key != 255)
            .cloned()
            .collect();
        let loose = fresh.iter().filter(|r| r.sequence <= loosely);
        self.loose.extend(loose.map(|record| record.value));
        self.confirmed.extend(fresh);
    }

    /// Another policy is configured, as far as this node knows.
    fn set_policy(&mut self, node: usize, protocol: Protocol) {
        self.nodes[node].protocol = protocol;
        if let Some(machine) = self.nodes[node].machine.as_mut() {
            machine.set_policy(protocol, QUEUE_MAX);
            self.carry_out(node);
        }
    }

    /// A client asks for stability.
    fn sync(&mut self, me: usize) {
        let Some(machine) = self.nodes[me].machine.as_mut() else {
            return;
        };
        let confirmed = machine.confirmed();
        let Ok(flush) = machine.begin_flush() else {
            return;
        };
        let before = self.confirmed.iter().filter(|r| r.sequence <= confirmed);
        let before = before.cloned().collect();
        self.nodes[me].syncs.insert(flush, before);
        self.volume_flush(me, flush);
        self.carry_out(me);
    }

    /// DUR-1, DUR-2: a primary begins. What is not part of its past is lost. That may be what A
    /// confirmed, where a member that never stopped took over: at most the queue, and as many
    /// operations as the machine says. Otherwise it is nothing, unless power was lost, and then
    /// nothing that fsync confirmed.
    fn began_serving(&mut self, me: usize) {
        self.nodes[me].held.clear();
        let machine = self.nodes[me].machine.as_ref().unwrap();
        let is_lost = |r: &ToyRecord| machine.lost_since(r.term, r.sequence) > 0;
        let lost: Vec<_> = self.confirmed.iter().filter(|r| is_lost(r)).collect();
        let reason = machine.durable().role_reason;
        let forced = reason == RoleReason::Forced || self.parted;
        let may_lose = |r: &ToyRecord| {
            forced || (reason == RoleReason::TookOver && self.loose.contains(&r.value))
        };
        if !self.power {
            let wrong = lost.iter().find(|r| !may_lose(r));
            assert!(wrong.is_none(), "lost as {reason:?}: {wrong:?}");
            let fits = forced || lost.len() as u64 <= QUEUE_MAX;
            assert!(fits, "more than the queue: {lost:?}");
            if let Some(highest) = lost.last() {
                let told = machine.lost_since(highest.term, highest.sequence);
                assert!(told >= lost.len() as u64, "lost {lost:?}, told {told}");
            }
        }
        let keys = &self.nodes[me].live.keys;
        let is_there = |r: &ToyRecord| keys.get(&r.key).copied() >= Some(r.value);
        let wrong = self.synced.iter().find(|r| !is_there(r) && !may_lose(r));
        assert!(wrong.is_none(), "lost what fsync confirmed: {wrong:?}");
        self.given_up += lost.len();
        self.synced.retain(is_there);
        self.confirmed
            .retain(|r| machine.lost_since(r.term, r.sequence) == 0);
    }

    fn volume_flush(&mut self, me: usize, flush: FlushId) {
        self.flush(me);
        for other in 0..self.nodes.len() {
            let machine = self.nodes[me].machine.as_ref().unwrap();
            if other != me && machine.flush_waits_for(flush).has(other) {
                self.send(me, other, Wire::Flush(flush.0));
            }
        }
        let now = self.clock(me);
        self.nodes[me]
            .machine
            .as_mut()
            .unwrap()
            .flushed(now, me, flush);
    }

    // ---- the pool --------------------------------------------------------------------------

    /// The pool comes to the oldest question. `reaches`: the question arrives; `answers`: its
    /// answer does.
    fn pool_turn(&mut self, reaches: bool, answers: bool) -> bool {
        let Some(pool) = self.pool.as_mut() else {
            return false;
        };
        let Some((node, life, next)) = pool.asked.pop_front() else {
            return false;
        };
        let connected = !pool.cut_off[node];
        let decided = (reaches && connected).then(|| pool.decide(next));
        let agreed = pool.agreed;
        let now = self.clock(node);
        if self.nodes[node].starts != life {
            return true;
        }
        let Some(machine) = self.nodes[node].machine.as_mut() else {
            return true;
        };
        let outcome = match decided {
            Some(true) if answers => Proposed::Agreed,
            Some(false) if answers => Proposed::Refused,
            _ => Proposed::Undecided,
        };
        if outcome == Proposed::Agreed {
            machine.agreement(now, agreed);
        }
        machine.proposed(now, next, outcome);
        self.carry_out(node);
        true
    }

    /// The node learns what the pool agreed.
    fn learn(&mut self, node: usize) {
        let now = self.clock(node);
        let Some(pool) = self.pool.as_ref().filter(|pool| !pool.cut_off[node]) else {
            return;
        };
        let agreed = pool.agreed;
        if let Some(machine) = self.nodes[node].machine.as_mut() {
            machine.agreement(now, agreed);
            self.carry_out(node);
        }
    }

    /// Time passes at every node, and primaries ask for promises.
    fn time(&mut self, by: Duration) {
        self.now += by;
        for node in 0..self.nodes.len() {
            let now = self.clock(node);
            let Some(machine) = self.nodes[node].machine.as_mut() else {
                continue;
            };
            machine.tick(now);
            self.carry_out(node);
            let machine = self.nodes[node].machine.as_mut().unwrap();
            let term = machine.durable().term;
            let known = machine.stable_at();
            let asks = machine.serves() && self.pool.is_some();
            if asks && !self.quiet {
                machine.asks_promises(now);
            }
            for other in 0..self.nodes.len() {
                if self.quiet {
                    self.send(node, other, Wire::Heartbeat);
                } else if asks {
                    let lease = self.nodes[node].lease;
                    self.send(node, other, Wire::AskPromise(term, now, lease));
                } else if self.lively {
                    self.send(node, other, Wire::Heartbeat);
                }
                if let Some((term, layout, at)) = known {
                    self.send(node, other, Wire::Stable(term, layout, at));
                }
            }
        }
    }

    /// ONE-1, COH-1: nobody else may answer while one may, and what it reads is not old.
    fn check_answers(&self) {
        let answering: Vec<_> = (0..self.nodes.len())
            .filter(|node| {
                let machine = self.nodes[*node].machine.as_ref();
                machine.is_some_and(|machine| machine.may_answer(self.clock(*node)))
            })
            .collect();
        assert!(answering.len() <= 1, "{answering:?} answer at once");
        let Some(node) = answering.first() else {
            return;
        };
        let mut newest: BTreeMap<Key, u64> = BTreeMap::new();
        for record in &self.confirmed {
            newest.insert(record.key, record.value);
        }
        for (key, value) in newest {
            let read = self.nodes[*node].live.keys.get(&key).copied();
            assert!(
                read >= Some(value),
                "{node} reads {read:?} of {key}, not {value}"
            );
        }
    }

    /// Lets everything happen that is on its way, with everyone up and connected.
    fn settle(&mut self) {
        let count = self.nodes.len();
        for _ in 0..2000 {
            for node in 0..count {
                if self.nodes[node].machine.is_none() {
                    self.boot(node);
                }
            }
            for a in 0..count {
                for b in 0..a {
                    self.connect(a, b);
                }
            }
            let mut moved = false;
            self.mute.clear();
            for node in 0..count {
                self.nodes[node].holds = false;
                moved |= self.apply_held(node, usize::MAX);
            }
            if let Some(pool) = self.pool.as_mut() {
                pool.cut_off.fill(false);
            }
            let mut turns = 0;
            while self.pool_turn(true, true) {
                moved = true;
                turns += 1;
                assert!(turns < 1000, "the pool is asked without end");
            }
            for node in 0..count {
                self.learn(node);
            }
            for from in 0..count {
                for to in 0..count {
                    while self.deliver(from, to) {
                        moved = true;
                    }
                }
            }
            if !moved {
                if self.is_whole() {
                    return;
                }
                self.time(WAIT / 5);
            }
        }
        panic!(
            "the volume does not come to rest: {:?}, agreed {:?}",
            self.standings(),
            self.pool.as_ref().map(|pool| pool.agreed)
        );
    }

    fn standings(&self) -> Vec<(Phase, Vec<Option<Standing>>)> {
        let machines = self.nodes.iter().filter_map(|n| n.machine.as_ref());
        machines
            .map(|m| {
                (
                    m.phase(),
                    (0..self.nodes.len()).map(|r| m.standing(r)).collect(),
                )
            })
            .collect()
    }

    fn primary(&self) -> Option<usize> {
        (0..self.nodes.len()).find(|n| self.nodes[*n].machine.as_ref().is_some_and(Machine::serves))
    }

    fn is_whole(&self) -> bool {
        self.primary().is_some_and(|primary| {
            let machine = self.nodes[primary].machine.as_ref().unwrap();
            (0..self.nodes.len())
                .filter(|r| *r != primary)
                .all(|r| machine.standing(r) == Some(Standing::InSync))
        })
    }

    fn check_whole(&self) {
        let primary = self.primary().expect("somebody serves");
        for node in &self.nodes {
            assert_eq!(
                node.live.keys, self.nodes[primary].live.keys,
                "replicas differ"
            );
            assert_eq!(
                node.machine.as_ref().unwrap().durable().disk,
                Disk::UpToDate
            );
        }
    }
}
