//! What clients kept is put back (DUR-5): whether this primary may lack anything, what it takes
//! from whom, and what cannot be put back any more.

use bytes::{Bytes, BytesMut};
use namespace::leases::touched;
use namespace::{Executed, KeptReply};
use protocol::frame::{RawFrame, take_frame};
use protocol::fs::{Hello, Operation, Outcome, Place, Present, Replay, Request, SLOTS_MAX, kind};
use protocol::ids::SessionId;

use protocol::units::{ObjectId, Sequence, Timestamp};
use protocol::volume::Protocol;
use replication::state::RoleReason;
use storage::Medium;

use super::clients::{EIO, EROFS, Refusal};
use super::doubts::{Data, Doubts};
use super::driver::{Driver, OrderError, Token};
use super::gathering::{Authors, Changers, Gathering, Turn};
use super::held::{Held, PendingReply};
use super::keys::Keys;
use super::leases::Leased;
use super::sessions::Done;

/// What this primary knows of what its clients kept.
#[derive(Default)]
pub(super) struct Replays {
    /// While it lasts, nothing new is taken.
    pub(super) gathering: Option<Gathering>,
    /// This process has everything that was confirmed, as it was part of the set or serves.
    pub(super) has_everything: bool,
    pub(super) authors: Authors,
    pub(super) changers: Changers,
    /// Operations that were put back since this primary serves.
    replayed: u64,
    /// Operations that could not be.
    refused: u64,
    /// What clients had seen, to be looked at when everything was put back.
    seen: Vec<(String, Place)>,
    /// The time that an operation gets which was answered with none.
    time: Timestamp,
    pub(super) doubts: Doubts,
}

/// How far a client's presentation is.
pub(super) enum Presented {
    /// Its requests may be taken.
    Requests,
    /// More bytes are needed.
    Bytes,
    /// Something must change first.
    Later,
}

/// What became of an operation.
pub(super) enum Put {
    Taken,
    /// It must be tried again when something changed.
    Later,
}

impl Replays {
    /// This replica is primary no more.
    pub(super) fn stop(&mut self) {
        self.gathering = None;
        self.seen.clear();
    }

    /// Whether requests wait.
    pub(super) fn hold_up(&self) -> bool {
        self.gathering.is_some()
    }
}

impl<M: Medium> Driver<M> {
    /// A primary takes up the volume: it may lack what was confirmed.
    pub(super) fn begin_gathering(&mut self, reason: RoleReason) {
        let had = std::mem::replace(&mut self.replays.has_everything, true);
        self.replays.authors.clear();
        self.replays.changers.clear();
        self.replays.seen.clear();
        (self.replays.replayed, self.replays.refused) = (0, 0);
        self.replays.time = Timestamp(0);
        self.replays.gathering = None;
        let may_lack = match reason {
            RoleReason::Created | RoleReason::HandedOver | RoleReason::Promoted => false,
            RoleReason::Forced => true,
            _ if had => self.settings.protocol == Protocol::A,
            // What a process that was killed had written is still in its kernel; whether it was
            // the process or the machine, nobody can tell.
            _ => !self.recovery.was_clean,
        };
        if may_lack {
            self.gather();
        }
        self.tend_gathering();
    }

    fn gather(&mut self) {
        // Who is here and has said what he has is not awaited.
        let awaited = self.sessions.by_id.iter();
        let awaited = awaited.filter(|(_, s)| s.presents || s.connection.is_none());
        let awaited: Vec<_> = awaited.map(|(id, _)| *id).collect();
        if awaited.is_empty() {
            return;
        }
        tracing::info!(
            volume = %self.spec.name, clients = awaited.len(),
            "waiting for what clients kept of operations that may be lost"
        );
        let recovery = &self.recovery;
        tracing::debug!(
            suspect = ?recovery.suspect, written = ?recovery.last_writes,
            "what a crash left in doubt"
        );
        let now = self.now();
        self.replays.gathering = Some(Gathering::begin(
            awaited,
            now,
            self.settings.link.clients_awaited,
        ));
    }

    /// A client says hello: of the terms that it names, which ended before what it may have been
    /// confirmed, and where.
    pub(super) fn ends_of(&mut self, hello: &Hello) -> Vec<Place> {
        let line = &self.machine.durable().line;
        let terms = hello.kept_terms.iter();
        let mut ends: Vec<Place> = terms
            .filter_map(|term| line.end_of(*term).map(|end| (*term, end)))
            .collect();
        let (term, seen) = hello.confirmed;
        let end = line.end_of(term);
        // Also what it has stable, and keeps nothing of: what it knows may not be so here. Of a side
        // that was given up nothing is.
        let foreign = !line.stretches().iter().any(|stretch| stretch.term == term);
        if let Some(end) = end
            && seen > Sequence::ZERO
        {
            ends.push((term, if foreign { Sequence::ZERO } else { end }));
        }
        let lost = end.is_some_and(|end| seen > end);
        let unchanged = !self.replays.changers.any_other(hello.session);
        if lost && unchanged && self.replays.gathering.is_none() {
            // Others may have more: nothing new before that.
            self.gather();
        }
        if self.replays.seen.len() < self.sessions.by_id.len() + 1 {
            let seen = (hello.client_name.clone(), hello.confirmed);
            self.replays.seen.push(seen);
        }
        ends
    }

    /// Takes what a client presents, up to its end.
    pub(super) fn take_presented(
        &mut self,
        session: SessionId,
        buffer: &mut BytesMut,
        next: &mut Option<Box<Replay>>,
    ) -> Result<Presented, String> {
        loop {
            let presenting = self
                .sessions
                .by_id
                .get(&session)
                .is_some_and(|s| s.presents);
            if !presenting {
                return Ok(match self.replays.hold_up() {
                    true => Presented::Later,
                    false => Presented::Requests,
                });
            }
            if let Some(replay) = next.take() {
                if let Put::Later = self.take_replay(session, &replay)? {
                    *next = Some(replay);
                    return Ok(Presented::Later);
                }
                continue;
            }
            let Some(frame) = take_frame(buffer).map_err(|e| e.to_string())? else {
                return Ok(Presented::Bytes);
            };
            self.take_part(session, frame, next)?;
        }
    }

    fn take_part(
        &mut self,
        session: SessionId,
        frame: RawFrame,
        next: &mut Option<Box<Replay>>,
    ) -> Result<(), String> {
        let now = self.now();
        match frame.kind {
            kind::PRESENT => {
                let present = Present::decode(&frame).map_err(|e| e.to_string())?;
                let state = self.sessions.by_id.get_mut(&session);
                if state.is_some_and(|state| std::mem::replace(&mut state.has_presented, true)) {
                    return Err("it presents what it holds twice".to_owned());
                }
                self.leases_presented(session, &present);
                if let Some(gathering) = &mut self.replays.gathering {
                    gathering.presented(present);
                    gathering.brings(session, now);
                }
            }
            kind::REPLAY => {
                let replay = Replay::decode(&frame).map_err(|e| e.to_string())?;
                let request = &replay.request;
                if !request.operation.changes() || request.slot >= SLOTS_MAX {
                    return Err("what it replays is no change".to_owned());
                }
                if self.may_only_read(session) {
                    return Err("it may change nothing, so there is nothing to replay".to_owned());
                }
                *next = Some(Box::new(replay));
            }
            kind::PRESENTED => {
                if let Some(state) = self.sessions.by_id.get_mut(&session) {
                    state.presents = false;
                }
                self.leasing.table.presented(session);
                self.try_aside();
                match &mut self.replays.gathering {
                    Some(gathering) => gathering.done(session),
                    None => self.tell_losses(),
                }
                self.tend_gathering();
            }
            kind::PING | kind::PONG => self.answer_ping(session, frame),
            kind::GOODBYE => {
                self.end_session(session, true);
                return Err("the client said goodbye".to_owned());
            }
            other => return Err(format!("frame kind {other} comes too early")),
        }
        Ok(())
    }

    fn take_replay(&mut self, session: SessionId, replay: &Replay) -> Result<Put, String> {
        let now = self.now();
        let Some(place) = replay.order else {
            // Where nothing is gathered it comes again as a request, and that is soon enough.
            let order = self.place_here(session, &replay.request)?;
            if let Some(gathering) = &mut self.replays.gathering {
                let replay = Replay {
                    order,
                    ..replay.clone()
                };
                gathering.hold(session, Box::new(replay));
            }
            return Ok(Put::Taken);
        };
        if self.is_full() {
            return Ok(Put::Later);
        }
        while let Some(gathering) = &mut self.replays.gathering {
            match gathering.turn(session, place, now) {
                Turn::Mine => break,
                Turn::Later => return Ok(Put::Later),
                Turn::Held(held) => {
                    if let Put::Later = self.put_held(held)? {
                        return Ok(Put::Later);
                    }
                }
            }
        }
        let put = self.put_back(session, replay)?;
        if let (Put::Taken, Some(gathering)) = (&put, &mut self.replays.gathering) {
            gathering.brings(session, now);
            self.changed.notify_waiters();
        }
        Ok(put)
    }

    /// The place of a request that is here.
    fn place_here(&self, session: SessionId, request: &Request) -> Result<Option<Place>, String> {
        let kept = self.kept_of(session, request)?;
        let Some(sequence) = kept.and_then(|kept| kept.sequence) else {
            return Ok(None);
        };
        Ok(Some((
            self.machine.durable().line.term_at(sequence),
            sequence,
        )))
    }

    /// The reply to this very request, if it is the last of its slot and is here.
    pub(super) fn kept_of(
        &self,
        session: SessionId,
        request: &Request,
    ) -> Result<Option<KeptReply>, String> {
        let kept = namespace::kept_reply(&Keys(&self.brick), session, request.slot);
        let kept = kept.map_err(|e| e.to_string())?;
        Ok(kept.filter(|kept| kept.number == request.number))
    }

    fn put_held(&mut self, place: Place) -> Result<Put, String> {
        let taken = self
            .replays
            .gathering
            .as_mut()
            .and_then(|g| g.take_held(place));
        let Some((session, replay)) = taken else {
            return Ok(Put::Taken);
        };
        let put = self.put_back(session, &replay);
        if let (Ok(Put::Later), Some(gathering)) = (&put, &mut self.replays.gathering) {
            gathering.hold(session, replay);
        }
        put
    }

    /// Ends the wait when everything was brought, or nobody brings anything any more. Called
    /// whenever that may be, and with each tick.
    pub(super) fn tend_gathering(&mut self) {
        let now = self.now();
        let Some(gathering) = &mut self.replays.gathering else {
            return;
        };
        if !gathering.is_over(now) {
            // Who waits shall not take this node for dead.
            for session in self.sessions.by_id.values() {
                if let Some((_, outbox)) = &session.connection {
                    outbox.send(RawFrame {
                        kind: kind::PING,
                        meta: Bytes::new(),
                        payload: Bytes::new(),
                    });
                }
            }
            return;
        }
        while let Some(place) = self
            .replays
            .gathering
            .as_ref()
            .and_then(Gathering::first_held)
        {
            match self.put_held(place) {
                Ok(Put::Taken) => {}
                Ok(Put::Later) => return,
                Err(reason) => {
                    tracing::warn!(%reason, "an operation was not put back");
                    break;
                }
            }
        }
        if !self.put_doubtful() {
            return;
        }
        // Others take from here what a crash left in doubt; from now on what is here counts.
        if let Err(error) = self.brick.clear_suspects() {
            self.fail(&error);
            return;
        }
        let missing = self.replays.gathering.take().map_or(0, |g| g.missing());
        tracing::info!(
            volume = %self.spec.name, replayed = self.replays.replayed,
            refused = self.replays.refused, missing,
            "what clients kept was put back"
        );
        self.tell_losses();
        self.changed.notify_waiters();
    }

    /// What was never answered, and went in part where a crash left data in doubt, without its
    /// record: it takes effect before anybody sees the part. False: it must be tried again.
    fn put_doubtful(&mut self) -> bool {
        while let Some((session, replay)) = self.take_part_here() {
            match self.put_back(session, &replay) {
                Ok(Put::Taken) => {}
                Ok(Put::Later) => {
                    if let Some(gathering) = &mut self.replays.gathering {
                        gathering.hold(session, replay);
                    }
                    return false;
                }
                Err(reason) => tracing::warn!(%reason, "an operation was not put back"),
            }
        }
        true
    }

    /// A session ended: it brings nothing.
    pub(super) fn not_awaited(&mut self, session: SessionId) {
        if let Some(gathering) = &mut self.replays.gathering {
            gathering.gone(session);
        }
    }

    /// What clients had seen and what was not put back is told (DUR-2).
    fn tell_losses(&mut self) {
        for (client, (term, sequence)) in std::mem::take(&mut self.replays.seen) {
            self.look_for_losses(&client, (term, sequence), self.replays.replayed);
        }
    }

    // ---- one operation -------------------------------------------------------------------------

    /// Puts an operation back, unless it is here; answers what was confirmed before.
    fn put_back(&mut self, session: SessionId, replay: &Replay) -> Result<Put, String> {
        let request = &replay.request;
        tracing::debug!(session = %session.short(), order = ?replay.order, at = ?replay.at, operation = ?request.operation, "an operation comes back");
        if self.is_here(session, replay)? {
            match self.put_data_back(session, replay)? {
                Data::Here => {}
                Data::Later => return Ok(Put::Later),
                Data::Lost => return Ok(self.refuse_replay(session, replay)),
            }
            if was_answered(replay) {
                self.answer_replay(session, request, replay.at.1, Outcome::Done);
            } else {
                self.note_found(session, request)?;
            }
            return Ok(Put::Taken);
        }
        let known = self
            .sessions
            .by_id
            .get(&session)
            .is_some_and(|s| !s.was_unknown);
        let late = self.replays.gathering.is_none() && self.replays.changers.any_other(session);
        if !may_come_back(&request.operation, known, late) {
            tracing::info!(%known, %late, "an operation cannot be put back");
            return Ok(self.refuse_replay(session, replay));
        }
        // What has no place comes here only where a part of it is stored: it is not refused for want
        // of room.
        let refused = if was_answered(replay) {
            // What was confirmed before the volume became read-only is put back.
            self.refuse_for_room(request, 0)
        } else {
            self.refuse_change(session, request)
        };
        let is_for_room = |refusal: Refusal| refusal != Refusal::Errno(EROFS);
        if refused.is_some_and(|refusal| !is_for_room(refusal) || replay.order.is_some()) {
            return Ok(self.refuse_replay(session, replay));
        }
        if !self.is_prepared(&request.operation, request.payload.len() as u64) {
            return Ok(Put::Later);
        }
        self.execute_again(session, replay)
    }

    /// Whether the blocks at a write's edges are there, so that nobody waits for the medium.
    pub(super) fn is_prepared(&mut self, operation: &Operation, len: u64) -> bool {
        let Operation::Write {
            object,
            offset,
            append: false,
            ..
        } = *operation
        else {
            return true;
        };
        let token = self.token(Token::Prepared);
        let prepared = self.brick.prepare(object, offset, len, token);
        if !matches!(prepared, Ok(false)) {
            self.tokens.remove(&token);
        }
        // The write itself decides what a damaged neighbour means.
        if let Err(error) = &prepared {
            tracing::warn!(%error, "a block that a write builds on cannot be read");
        }
        !matches!(prepared, Ok(false))
    }

    /// A slot carries its requests in order, so a later one shows that this one is here.
    fn is_here(&self, session: SessionId, replay: &Replay) -> Result<bool, String> {
        let (slot, number) = (replay.request.slot, replay.request.number);
        let state = self.sessions.by_id.get(&session);
        let known = state.and_then(|s| s.slots.get(&slot)).map(|s| s.number);
        if known.is_some_and(|last| last >= number) {
            return Ok(true);
        }
        let kept = namespace::kept_reply(&Keys(&self.brick), session, slot);
        let kept = kept.map_err(|e| e.to_string())?;
        if kept.is_some_and(|kept| kept.number >= number) {
            return Ok(true);
        }
        let (term, sequence) = replay.at;
        Ok(was_answered(replay) && self.machine.lost_since(term, sequence) == 0)
    }

    fn execute_again(&mut self, session: SessionId, replay: &Replay) -> Result<Put, String> {
        let request = &replay.request;
        let place = replay.order.unwrap_or_default();
        let next = self.machine.last().next();
        let term = self.machine.durable().term;
        // Applications know the object by the id that it had. If it is taken, the operation finds
        // out by itself that it cannot take effect as it did.
        let own = ObjectId::allocate(place.0, place.1);
        let taken = match own {
            Some(own) => namespace::exists(&Keys(&self.brick), own).map_err(|e| e.to_string())?,
            None => true,
        };
        let fresh = ObjectId::allocate(term, next).ok_or("the volume is out of object ids")?;
        let now = self.replay_time(replay.time);
        let new_object = own.filter(|_| !taken).unwrap_or(fresh);
        let executed = self.decide_on(session, request, now, new_object);
        let set = match executed {
            Ok(Executed::Change(set)) => set,
            Ok(Executed::Answer(outcome)) if !matches!(outcome, Outcome::Error(_)) => {
                self.note_put_back(session, replay, next, &outcome);
                self.answer_replay(session, request, self.machine.last(), outcome);
                return Ok(Put::Taken);
            }
            Ok(other) => {
                tracing::info!(result = ?other, "an operation cannot be put back");
                return Ok(self.refuse_replay(session, replay));
            }
            Err(error) => {
                tracing::error!(%error, "an operation cannot be put back");
                return Ok(self.refuse_replay(session, replay));
            }
        };
        let makes = matches!(&set.outcome, Outcome::Entry(a) if a.object == fresh);
        if makes && taken {
            return Ok(self.refuse_replay(session, replay));
        }
        let objects = touched(&set.changes);
        if self.may_change(session, &objects).is_none() {
            return Ok(Put::Later);
        }
        let outcome = set.outcome;
        match self.order(set.changes, set.payload) {
            Ok(sequence) => {
                self.replays.replayed += 1;
                self.note_put_back(session, replay, sequence, &outcome);
                self.note_own_again(session, &objects);
                self.after_locking(session, &request.operation);
                self.answer_replay(session, request, sequence, outcome);
                Ok(Put::Taken)
            }
            Err(OrderError::Brick(error)) => {
                self.fail(&error);
                Err("the brick failed".to_owned())
            }
            Err(OrderError::Refused(refusal)) => Err(refusal.to_string()),
        }
    }

    /// Its slot is past it from now on. The session said already what it holds open; what was never
    /// answered opens now.
    fn note_put_back(
        &mut self,
        session: SessionId,
        replay: &Replay,
        sequence: Sequence,
        outcome: &Outcome,
    ) {
        let request = &replay.request;
        self.sessions
            .take_slot(session, request.slot, request.number);
        if was_answered(replay) {
            // Nobody asks for it again, and the slot's next request may follow.
            self.sessions.answered(
                session,
                request.slot,
                Done {
                    sequence,
                    changed: true,
                    outcome: outcome.clone(),
                },
            );
        } else if let Some(object) = namespace::opened(&request.operation, outcome) {
            self.sessions.open_by_slot(session, request.slot, object);
        }
        self.note_author(session, request, sequence);
    }

    /// What was never answered is here, data and all: it gets its answer when it is asked again.
    fn note_found(&mut self, session: SessionId, request: &Request) -> Result<(), String> {
        let Some(kept) = self.kept_of(session, request)? else {
            return Ok(());
        };
        self.sessions
            .take_slot(session, request.slot, request.number);
        if let Some(object) = namespace::opened(&request.operation, &kept.outcome) {
            self.sessions.open_by_slot(session, request.slot, object);
        }
        let done = Done {
            sequence: kept.sequence.unwrap_or_else(|| self.machine.last()),
            changed: true,
            outcome: kept.outcome,
        };
        self.sessions.answered(session, request.slot, done);
        Ok(())
    }

    /// The time that was answered, or that of the operation before: times must not change by this.
    fn replay_time(&mut self, answered: Timestamp) -> Timestamp {
        if answered.0 == 0 && self.replays.time.0 == 0 {
            return self.timestamp();
        }
        self.replays.time = self.replays.time.max(answered);
        self.replays.time
    }

    fn answer_replay(
        &mut self,
        session: SessionId,
        request: &Request,
        sequence: Sequence,
        outcome: Outcome,
    ) {
        let reply = PendingReply {
            session,
            slot: request.slot,
            number: request.number,
            sequence,
            changed: true,
            since: None,
            leased: Leased::default(),
            outcome,
        };
        self.waiting.push(self.machine.last(), Held::Reply(reply));
    }

    fn refuse_replay(&mut self, session: SessionId, replay: &Replay) -> Put {
        // What was never answered comes again as a request.
        if was_answered(replay) {
            self.replays.refused += 1;
            self.answer_replay(
                session,
                &replay.request,
                Sequence::ZERO,
                Outcome::Error(EIO),
            );
        }
        Put::Taken
    }
}

/// Whether an operation may take effect now: not where its session had ended, nor after others
/// went on. What gives a lock back takes nothing from anybody, and nobody would do it later.
fn may_come_back(operation: &Operation, known: bool, late: bool) -> bool {
    matches!(operation, Operation::Unlock { .. }) || (known && !late)
}

/// Whether the client read an answer, so that the operation was confirmed.
pub(super) fn was_answered(replay: &Replay) -> bool {
    replay.at.1 > Sequence::ZERO
}

#[cfg(test)]
mod tests {
    use protocol::fs::{LOCK_END_MAX, Lock, LockClass, LockKind, LockOwner};

    use super::*;

    #[test]
    fn a_lock_is_given_back_although_others_went_on_and_not_taken() {
        let object = ObjectId(5);
        let owner = LockOwner {
            class: LockClass::Whole,
            id: 1,
        };
        let (start, end) = (0, LOCK_END_MAX);
        let unlock = Operation::Unlock {
            object,
            owner,
            start,
            end,
        };
        let lock = Operation::Lock {
            object,
            lock: Lock {
                owner,
                kind: LockKind::Shared,
                start,
                end,
                pid: 1,
            },
            ticket: 0,
            waits: false,
        };
        for (known, late) in [(true, false), (true, true), (false, false), (false, true)] {
            assert!(may_come_back(&unlock, known, late));
            assert_eq!(may_come_back(&lock, known, late), known && !late);
        }
    }
}
