//! What a toy node does with outputs of its machine and with messages.

use super::*;

impl Volume {
    // A table: one row an output.
    pub(super) fn one_output(&mut self, me: usize, output: Output) {
        let now = self.clock(me);
        match output {
            Output::Decide(state) => {
                self.nodes[me].live.state = (*state).clone();
                // A decision is durable with everything that it rests on.
                self.flush(me);
                self.nodes[me]
                    .machine
                    .as_mut()
                    .unwrap()
                    .decided(now, *state);
            }
            Output::Confirmed(upto) => {
                let node = &mut self.nodes[me];
                node.confirmable = upto;
                if node.machine.as_ref().unwrap().rule() == Protocol::A {
                    node.loosely = upto;
                }
                self.release(me);
            }
            Output::MarkDirtySince { replica, since } => {
                let live = &mut self.nodes[me].live;
                let keys: Vec<_> = live
                    .log
                    .iter()
                    .filter(|r| r.sequence > since)
                    .map(|r| r.key)
                    .collect();
                live.dirty[replica].extend(keys);
            }
            Output::ClearDirty { replica } => self.nodes[me].live.dirty[replica].clear(),
            Output::Assess { replica, common } => {
                let full = std::mem::take(&mut self.nodes[me].full[replica]);
                let live = &self.nodes[me].live;
                let behind = live
                    .log
                    .iter()
                    .filter(|r| Some(r.sequence) > common)
                    .count();
                // What a resync skipped no journal has.
                let skipped = live.log.first().filter(|r| r.key == 255);
                let from = skipped.map_or(Sequence::ZERO, |r| r.sequence);
                let means = Means {
                    map_since: None,
                    journal_bytes: common.filter(|at| *at >= from).map(|_| behind as u64),
                    overwritten: false,
                    dirty_bytes: live.dirty[replica].len() as u64,
                    resync_was_mine: false,
                    marked_apart: false,
                    pool_decides: false,
                    waited_for_me: false,
                };
                self.nodes[me]
                    .machine
                    .as_mut()
                    .unwrap()
                    .judge(replica, means, full);
            }
            Output::AskDoubts {
                replica,
                common,
                revision,
            } => {
                let term = self.nodes[me].machine.as_ref().unwrap().report().term;
                self.send(me, replica, Wire::Ask(common, term, revision));
            }
            Output::Source {
                replica,
                decision,
                welcome,
            } => {
                self.send(me, replica, Wire::Welcome(welcome));
                self.source(me, replica, decision);
            }
            Output::Joined {
                replica,
                membership,
            } => {
                self.check_equal(me, replica);
                self.send(me, replica, Wire::Joined(membership));
            }
            Output::Membership {
                replica,
                membership,
            } => {
                self.send(me, replica, Wire::Membership(membership));
            }
            Output::Pull { from, after } => self.send(me, from, Wire::Pull(after)),
            Output::Disconnect { replica, .. } => self.cut(me, replica),
            Output::HandOver { to, term, agreed } => {
                self.send(me, to, Wire::HandOver(term, agreed));
            }
            Output::Propose(next) => {
                let life = self.nodes[me].starts;
                let pool = self.pool.as_mut().expect("asked without a pool");
                pool.asked.push_back((me, life, next));
            }
            Output::HandedOver { done } => self.handed_over += u32::from(done),
            Output::StoppedServing { .. } => {
                let count = self.nodes.len();
                self.nodes[me].confirmable = Sequence::ZERO;
                self.nodes[me].loosely = Sequence::ZERO;
                self.nodes[me].syncs.clear();
                self.nodes[me].feed = vec![false; count];
            }
            Output::BeginResync { at } => {
                // The toy log holds only what can be handed out again.
                let live = &mut self.nodes[me].live;
                live.log.clear();
                live.log.push(ToyRecord {
                    sequence: at,
                    term: Term(0),
                    key: 255,
                    value: 0,
                });
                self.flush(me);
            }
            Output::Flushed(id) => {
                let machine = self.nodes[me].machine.as_ref().unwrap();
                let answered = machine.rule() != Protocol::A || machine.may_answer(now);
                if let Some(records) = self.nodes[me].syncs.remove(&id)
                    && answered
                {
                    self.synced.extend(records);
                }
            }
            Output::Serving { .. } => self.began_serving(me),
            Output::Refused { .. } => {}
            Output::Fence { replica } => self.shots.push((me, replica)),
            Output::Split { split, .. } => self.splits.push((me, *split)),
        }
    }

    /// RS-5: a replica that is declared in sync has, with what is on the way to it, everything.
    pub(super) fn check_equal(&self, me: usize, replica: usize) {
        let mut keys = self.nodes[replica].live.keys.clone();
        let Some(wires) = self.wires.get(&(me, replica)) else {
            return; // its end is gone, and what was on the way with it
        };
        let held = self.nodes[replica].held.iter();
        let held = held.filter(|held| held.from == me).map(|held| &held.wire);
        for wire in held.chain(wires) {
            if let Wire::Record(record) = wire {
                keys.insert(record.key, record.value);
            }
        }
        assert_eq!(
            self.nodes[me].live.keys, keys,
            "declared in sync, but differs"
        );
    }

    pub(super) fn source(&mut self, me: usize, replica: usize, decision: Decision) {
        match decision {
            Decision::Join => {
                self.nodes[me].feed[replica] = true;
                self.nodes[me]
                    .machine
                    .as_mut()
                    .unwrap()
                    .source_done(replica);
            }
            Decision::Journal { after } => {
                self.send_tail(me, replica, after);
                self.nodes[me].feed[replica] = true;
                self.nodes[me]
                    .machine
                    .as_mut()
                    .unwrap()
                    .source_done(replica);
            }
            Decision::Dirty | Decision::GiveUpTail { .. } => {
                self.nodes[me].feed[replica] = true;
                let live = &self.nodes[me].live;
                let items: Vec<_> = live.dirty[replica]
                    .iter()
                    .map(|k| (*k, live.keys.get(k).copied()))
                    .collect();
                self.send(me, replica, Wire::Items(items));
            }
            Decision::Full => {
                self.nodes[me].feed[replica] = true;
                let keys = self.nodes[me].live.keys.clone();
                self.send(me, replica, Wire::Exact(keys));
            }
            Decision::Refuse => {}
        }
    }

    pub(super) fn send_tail(&mut self, me: usize, to: usize, after: Sequence) {
        let tail: Vec<_> = self.nodes[me]
            .live
            .log
            .iter()
            .filter(|r| r.sequence > after)
            .cloned()
            .collect();
        for record in tail {
            self.send(me, to, Wire::Record(record));
        }
    }

    /// Delivers one frame; false: there was none.
    pub(super) fn deliver(&mut self, from: usize, to: usize) -> bool {
        if self.mute.contains(&(from, to)) {
            return false;
        }
        let Some(wire) = self
            .wires
            .get_mut(&(from, to))
            .and_then(VecDeque::pop_front)
        else {
            return false;
        };
        if self.nodes[to].machine.is_none() {
            return false;
        }
        self.take(from, to, wire);
        true
    }

    /// A frame is there: it is handled, or kept behind what is kept already.
    fn take(&mut self, from: usize, to: usize, wire: Wire) {
        let node = &mut self.nodes[to];
        let machine = node.machine.as_mut().unwrap();
        let queued = node.held.iter().any(|held| held.from == from);
        let promise = matches!(
            wire,
            Wire::AskPromise(..) | Wire::Promise(..) | Wire::Stable(..) | Wire::Heartbeat
        );
        let record = match &wire {
            Wire::Record(record) if node.holds || queued => Some((record.sequence, record.term)),
            _ => None,
        };
        let ok = if let Some((sequence, term)) = record {
            let counted = node
                .held
                .iter()
                .all(|held| held.counted && held.from == from);
            let ok = !counted || machine.received(from, sequence, term).is_ok();
            node.held.push_back(Held {
                from,
                wire,
                counted: counted && ok,
            });
            self.acknowledge(to);
            ok
        } else if queued && !promise {
            node.held.push_back(Held {
                from,
                wire,
                counted: false,
            });
            true
        } else {
            self.arrived(from, to, wire)
        };
        self.carry_out(to);
        if !ok {
            self.cut(from, to);
        }
    }

    /// Handles what was kept, at most so many frames.
    pub(super) fn apply_held(&mut self, me: usize, most: usize) -> bool {
        let mut moved = false;
        for _ in 0..most {
            let Some(held) = self.nodes[me].held.pop_front() else {
                break;
            };
            moved = true;
            let ok = match held.wire {
                Wire::Record(record) if held.counted => {
                    self.apply(me, &record);
                    true
                }
                wire => self.arrived(held.from, me, wire),
            };
            self.carry_out(me);
            if !ok {
                self.cut(held.from, me);
            }
        }
        moved
    }

    /// The connection to `other` is gone: of what came from it the records are kept that were
    /// acknowledged, if it was the primary and they can stand alone.
    pub(super) fn keep_received(&mut self, me: usize, other: usize) {
        let node = &mut self.nodes[me];
        let Some(machine) = node.machine.as_mut() else {
            return;
        };
        let followed = machine.standing(other) == Some(Standing::MyPrimary)
            && machine.phase() == Phase::Following
            && machine.durable().disk != Disk::Inconsistent;
        node.held
            .retain(|held| held.from != other || (followed && held.counted));
        if node.held.iter().all(|held| !held.counted) {
            machine.forget_received();
        }
    }

    fn apply(&mut self, me: usize, record: &ToyRecord) {
        let mask = self.nodes[me].machine.as_ref().unwrap().dirty_mask();
        self.append(me, record, mask);
        let machine = self.nodes[me].machine.as_mut().unwrap();
        machine.followed(record.sequence);
        machine.local_applied(record.sequence);
        self.acknowledge(me);
    }

    // A table: one row a message.
    pub(super) fn arrived(&mut self, from: usize, to: usize, wire: Wire) -> bool {
        let now = self.clock(to);
        let machine = self.nodes[to].machine.as_mut().unwrap();
        match wire {
            Wire::Hello(hello) => {
                let (report, told) = *hello;
                machine.met(now, from, &told, report);
            }
            Wire::Ask(common, term, revision) => {
                if machine.asked(term, revision).is_err() {
                    return false;
                }
                self.nodes[to].held.retain(|held| held.from == from);
                let log = &self.nodes[to].live.log;
                let skipped = log.first().filter(|r| r.key == 255);
                let reaches = skipped.is_none_or(|r| r.sequence <= common);
                let doubts = log.iter().filter(|r| r.sequence > common).map(|r| r.key);
                let doubts = reaches.then(|| doubts.collect());
                self.send(to, from, Wire::Doubts(doubts));
            }
            Wire::Welcome(welcome) => {
                if machine.welcomed(now, from, &welcome).is_err() {
                    return false;
                }
                self.nodes[to].held.retain(|held| held.from == from);
                self.carry_out(to);
                self.acknowledge(to);
            }
            Wire::Doubts(None) => {
                self.nodes[to].full[from] = true;
                return false;
            }
            Wire::Doubts(Some(keys)) => {
                self.nodes[to].live.dirty[from].extend(keys);
                self.nodes[to].machine.as_mut().unwrap().doubts_known(from);
            }
            Wire::Items(items) => {
                for (key, value) in &items {
                    match value {
                        Some(value) => self.nodes[to].live.keys.insert(*key, *value),
                        None => self.nodes[to].live.keys.remove(key),
                    };
                }
                self.flush(to);
                let keys = items.into_iter().map(|(key, _)| key).collect();
                self.send(to, from, Wire::ItemsDone(keys));
            }
            Wire::Exact(keys) => {
                self.nodes[to].live.keys = keys;
                self.flush(to);
                self.send(to, from, Wire::ItemsDone(Vec::new()));
            }
            Wire::ItemsDone(keys) => {
                for key in keys {
                    self.nodes[to].live.dirty[from].remove(&key);
                }
                self.nodes[to].machine.as_mut().unwrap().source_done(from);
            }
            Wire::Record(record) => {
                if machine
                    .received(from, record.sequence, record.term)
                    .is_err()
                {
                    return false;
                }
                self.apply(to, &record);
            }
            Wire::Ack(position) => machine.acknowledged(now, from, position),
            Wire::Joined(m) | Wire::Membership(m)
                if machine.standing(from) != Some(Standing::MyPrimary) =>
            {
                drop(m);
            }
            Wire::Joined(m) => return machine.membership_changed(from, &m, true).is_ok(),
            Wire::Membership(m) => return machine.membership_changed(from, &m, false).is_ok(),
            Wire::HandOver(term, agreed) => {
                return machine.handed_over(now, from, term, agreed).is_ok();
            }
            Wire::AskPromise(term, sent, lease) => {
                if let Some(given) = machine.promise(now, from, term, lease) {
                    self.send(to, from, Wire::Promise(sent, given));
                }
            }
            Wire::Promise(sent, given) => {
                machine.heard(now, from);
                machine.promised(from, sent, given);
            }
            Wire::Stable(term, layout, at) => machine.told_stable(from, term, layout, &at),
            Wire::Heartbeat => machine.heard(now, from),
            Wire::Pull(after) => {
                self.send_tail(to, from, after);
                self.send(to, from, Wire::Pulled);
            }
            Wire::Pulled => machine.pulled(now, from),
            Wire::Leaving => machine.parting(from),
            Wire::Flush(id) => {
                self.flush(to);
                self.send(to, from, Wire::Flushed(id));
            }
            Wire::Flushed(id) => machine.flushed(now, from, FlushId(id)),
        }
        true
    }
}
