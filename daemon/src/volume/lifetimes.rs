//! How long sessions live, and what they hold open.

use std::net::SocketAddr;
use std::rc::Rc;

use bytes::Bytes;
use namespace::Owner;
use protocol::fs::{FS_VERSION, Hello, HelloReply, refusal};
use protocol::ids::{NodeId, SessionId};
use protocol::mistakes::{Mistake, made};
use protocol::record::Change;
use protocol::units::{ObjectId, Sequence};
use protocol::volume::VolumeKind;
use storage::Medium;
use tokio::sync::oneshot;

use super::clients::Asks;
use super::driver::Driver;
use super::held::{FlushWaiter, Held};
use super::keys::Keys;
use super::outbox::Outbox;
use super::sessions::Session;
use super::{CommandError, Right};

/// Mounts of one volume.
const SESSIONS_MAX: usize = 4096;

impl<M: Medium> Driver<M> {
    /// A primary takes up the volume: makes the root where there is none, and gives the sessions
    /// of before time to come back.
    pub(super) fn take_up_namespace(&mut self) {
        let now = self.now();
        if self.lacks_tree() {
            let now = self.timestamp();
            let changes = match (self.spec.kind, self.spec.size_bytes) {
                (VolumeKind::Block, size) => {
                    namespace::mkdisk(size.unwrap_or(0), self.spec.version, now)
                }
                (VolumeKind::Fs, _) => namespace::mkfs(now),
            };
            if let Err(error) = self.order(changes, Bytes::new()) {
                tracing::error!(%error, "the root directory cannot be made");
                return;
            }
        }
        self.sessions.grace_until = None;
        match namespace::sessions(&Keys(&self.brick)) {
            Ok(known) => {
                for (id, session) in known {
                    self.sessions.by_id.entry(id).or_insert_with(|| Session {
                        client_name: session.client_name,
                        mounted_at_ms: session.mounted_at_ms,
                        read_only: session.read_only,
                        began: session.began,
                        peer: match session.owner {
                            Owner::Key(key) => Some(key),
                            Owner::Local | Owner::Unknown => None,
                        },
                        owner_known: session.owner != Owner::Unknown,
                        heard: now,
                        ..Session::default()
                    });
                }
                self.release_stray_locks();
            }
            Err(error) => tracing::error!(%error, "the sessions cannot be read"),
        }
        let known = self.sessions.by_id.keys().copied();
        self.leasing.table.take_over(known, now);
        if !self.sessions.by_id.is_empty() {
            self.sessions.grace_until = Some(now + self.settings.session_timeout);
        }
        self.look_for_orphans();
        self.fit_disk();
    }

    /// Whether nothing was made yet. A block volume of earlier software may have had sessions.
    fn lacks_tree(&self) -> bool {
        let disk = || namespace::exists(&Keys(&self.brick), ObjectId::DISK);
        let block = self.spec.kind == VolumeKind::Block;
        self.machine.last().0 == 0 || (block && matches!(disk(), Ok(false)))
    }

    /// A block volume's disk gets the size that the configuration says, as soon as nobody answers
    /// from what he knows of it: until then this is tried again with time.
    pub(super) fn fit_disk(&mut self) {
        let Some(size) = self.spec.size_bytes else {
            return;
        };
        let serves = self.failed.is_none() && self.machine.serves();
        if !serves || self.fitted == Some(self.spec.version) || self.replays.hold_up() {
            return;
        }
        let (now, version) = (self.timestamp(), self.spec.version);
        let changes = match namespace::resize_disk(&Keys(&self.brick), size, version, now) {
            Ok(changes) => changes,
            Err(error) => return tracing::error!(%error, "the disk's size cannot be read"),
        };
        let touched = namespace::leases::touched(&changes);
        if self.may_change(SessionId::NONE, &touched).is_none() {
            return;
        }
        if !changes.is_empty()
            && let Err(error) = self.order(changes, Bytes::new())
        {
            return tracing::warn!(%error, "the disk gets its new size later");
        }
        self.fitted = Some(version);
    }

    /// Whether the bricks' file systems can hold a disk of this size.
    pub(super) fn fits_disk(&self, bytes: u64) -> Result<serde_json::Value, CommandError> {
        let most = self.object_bytes_max;
        if bytes <= most {
            return Ok(serde_json::json!({ "fits": true }));
        }
        Err(CommandError::refused(
            "size",
            format!(
                "a disk of {bytes} bytes is longer than the file system of a brick can hold a file: \
                 {most} bytes"
            ),
            "take a smaller size, or bricks on a file system without that limit, such as XFS",
        ))
    }

    /// What is unlinked and nobody is known to hold open is to be released.
    fn look_for_orphans(&mut self) {
        match namespace::orphans(&Keys(&self.brick)) {
            Ok(orphans) => self.sessions.to_release.extend(orphans),
            Err(error) => tracing::error!(%error, "the unlinked objects cannot be read"),
        }
    }

    /// A client said hello: a session begins or goes on. Returns the number of its connection;
    /// `None`: the client is refused, or comes again.
    pub(super) fn open_session(
        &mut self,
        hello: &Hello,
        asks: Asks,
        right: Right,
        outbox: &Rc<Outbox>,
    ) -> Option<u64> {
        let now = self.now();
        let id = hello.session;
        if !self.sessions.by_id.contains_key(&id) {
            self.begin_session(hello, asks.peer, &right, outbox)?;
        }
        let known = self.sessions.is_known(id, hello.confirmed);
        self.forget_waits(id);
        let leases = usize::try_from(hello.leases).unwrap_or(usize::MAX);
        self.leasing.table.let_in(
            id,
            leases,
            hello.early && !(hello.read_only || right.read_only),
        );
        let ends = self.ends_of(hello);
        let connection = self.sessions.next_id();
        let mut settled = false;
        if let Some(state) = self.sessions.by_id.get_mut(&id) {
            if let Some((_, old)) = state.connection.replace((connection, outbox.clone())) {
                old.close();
            }
            state.client_name = right.name_or(&hello.client_name);
            state.mounted_at_ms = hello.mounted_at_ms;
            state.read_only = hello.read_only || right.read_only;
            state.address = asks.address;
            state.peer = asks.peer;
            state.owner_known = true;
            state.only_reads = right.read_only;
            state.heard = now;
            state.presents = true;
            state.has_presented = false;
            state.was_unknown = !known && !hello.kept_terms.is_empty();
            state.told = Sequence::ZERO;
            settled = state.is_settled();
        }
        self.sessions.present(id, &hello.opens);
        let timeout = self.settings.session_timeout.as_millis();
        let welcome = HelloReply::Welcome {
            version: FS_VERSION,
            term: self.machine.durable().term,
            known,
            session_timeout_ms: u32::try_from(timeout).unwrap_or(u32::MAX),
            block: self.spec.kind == VolumeKind::Block,
            ends,
            gathers: self.replays.hold_up(),
            in_doubt: self.wants_data(),
            object_bytes_max: self.object_bytes_max,
        };
        let (outbox, frame) = (outbox.clone(), welcome.encode());
        if settled || made(Mistake::WelcomesEarly) {
            // What clients bring is waited for while they are gathered: not the other way round,
            // where something that was ordered since may not be confirmed for long.
            let until = if settled && !self.replays.hold_up() {
                self.machine.last()
            } else {
                Sequence::ZERO
            };
            let what = Held::Welcome(outbox, frame);
            self.waiting.push(until, what);
        } else {
            self.sync_waiters.push(FlushWaiter::Welcome(outbox, frame));
        }
        self.finish_turn();
        Some(connection)
    }

    /// Makes a session known. What one of before under the same id had is given back first.
    fn begin_session(
        &mut self,
        hello: &Hello,
        peer: Option<NodeId>,
        right: &Right,
        outbox: &Rc<Outbox>,
    ) -> Option<()> {
        if self.sessions.by_id.len() >= SESSIONS_MAX {
            outbox.send(
                HelloReply::Refused {
                    code: refusal::FORBIDDEN,
                    message: format!("the volume has {SESSIONS_MAX} mounts, which is the most"),
                }
                .encode(),
            );
            return None;
        }
        let id = hello.session;
        if !self.release_locks_of(id) {
            return None;
        }
        let began = (self.machine.durable().term, self.machine.last().next());
        let change = namespace::open_session(
            id,
            &namespace::Session {
                client_name: right.name_or(&hello.client_name),
                mounted_at_ms: hello.mounted_at_ms,
                read_only: hello.read_only || right.read_only,
                began,
                owner: peer.map_or(Owner::Local, Owner::Key),
            },
        );
        match self.order(vec![change], Bytes::new()) {
            Ok(sequence) => assert_eq!(sequence, began.1, "it is the next record"),
            Err(error) => {
                tracing::warn!(%error, "a session cannot be opened");
                return None;
            }
        }
        let (settled, settling) = oneshot::channel();
        self.sync_waiters.push(FlushWaiter::Task(settled));
        let session = Session {
            began,
            settling: Some(settling),
            ..Session::default()
        };
        self.sessions.by_id.insert(id, session);
        self.ask_promises();
        self.hurry.notify_one();
        Some(())
    }

    /// Ends sessions of which nothing was heard, and releases what they held.
    pub(super) fn expire_sessions(&mut self) {
        let now = self.now();
        let timeout = self.settings.session_timeout;
        let serves = self.machine.serves();
        let unheard = self.sessions.unheard(now, serves, timeout);
        if !serves {
            return;
        }
        self.release_left_over_locks();
        for session in unheard {
            tracing::info!(volume = %self.spec.name, session = %session.short(), "a session ended");
            self.end_session(session, false);
        }
        if self.sessions.grace_until.is_some_and(|until| now >= until) {
            self.sessions.grace_until = None;
            // What was unlinked meanwhile counted as held.
            self.look_for_orphans();
        }
        self.release_orphans();
        self.fit_disk();
    }

    /// What the other end of a connection may do with the volume.
    pub(super) fn right_of(&self, peer: Option<NodeId>) -> Option<Right> {
        match peer {
            Some(node) => self.host.right(node, self.spec.id),
            None => Some(Right::default()),
        }
    }

    /// The right of who comes with this identity from this address (HOST:PORT, or none: from this
    /// machine); or why he is not let in.
    pub(super) fn admits(
        &self,
        peer: Option<NodeId>,
        address: Option<&str>,
    ) -> Result<Right, String> {
        let Some(right) = self.right_of(peer) else {
            return Err("this identity has no right to the volume".to_owned());
        };
        let (name, mut addresses) = match &right.client {
            Some(name) => (name.clone(), Vec::new()),
            None => self.host.known_as(peer),
        };
        let from = address.and_then(|text| text.parse::<SocketAddr>().ok());
        addresses.extend(from.map(|from| from.ip()));
        if self.settings.allow.admits(&addresses, &name) {
            return Ok(right);
        }
        let whence = from.map_or_else(String::new, |from| format!(" at {}", from.ip()));
        Err(format!(
            "option `auth.allow` of volume `{}` does not let `{name}`{whence} in",
            self.spec.name
        ))
    }

    /// Whether the session's identity has the right to read only.
    pub(super) fn may_only_read(&self, session: SessionId) -> bool {
        let peer = self.sessions.by_id.get(&session).map(|known| known.peer);
        peer.is_some_and(|peer| self.right_of(peer).is_none_or(|right| right.read_only))
    }

    /// The pool's clients, or whom the volume lets in, may have changed: who lost the right to the
    /// volume is cut off, and its session ends, with its locks and what it held open.
    pub(super) fn end_revoked(&mut self) {
        let sessions = self.sessions.by_id.iter();
        // From where somebody comes who is not here is seen when he does.
        let revoked = |s: &Session| match s.connection {
            Some(_) => self.admits(s.peer, s.address.as_deref()).is_err(),
            None => self.right_of(s.peer).is_none(),
        };
        let gone = sessions.filter(|(_, session)| revoked(session));
        let gone: Vec<SessionId> = gone.map(|(id, _)| *id).collect();
        for session in gone {
            let name = self.sessions.cut_off(session);
            tracing::info!(
                volume = %self.spec.name, client = %name, session = %session.short(),
                "a mount is cut off: its right to the volume has ended"
            );
            if self.machine.serves() {
                self.end_session(session, true);
            }
        }
    }

    /// A session is over. `at_once`: so are its leases, as its mount ended it, or nobody waits for
    /// who has no right to the volume.
    pub(super) fn end_session(&mut self, session: SessionId, at_once: bool) {
        let now = self.now();
        self.leasing.end(session, at_once, now);
        self.end_what_ran_out(now);
        self.not_awaited(session);
        self.sessions.remove(session);
        match namespace::end_session(&Keys(&self.brick), session) {
            Ok(changes) => {
                if let Err(error) = self.order(changes, Bytes::new()) {
                    tracing::warn!(%error, "a session's end could not be ordered");
                }
            }
            Err(error) => tracing::error!(%error, "a session's replies cannot be read"),
        }
        self.release_locks_of(session);
        self.release_orphans();
        self.try_aside();
    }

    pub(super) fn release_orphans(&mut self) {
        if self.sessions.grace_until.is_some() || self.sessions.to_release.is_empty() {
            return;
        }
        for object in std::mem::take(&mut self.sessions.to_release) {
            if self.sessions.holds(object) {
                continue;
            }
            let changes: Vec<Change> = match namespace::release_orphan(&Keys(&self.brick), object) {
                Ok(changes) => changes,
                Err(error) => {
                    tracing::error!(%error, "an unlinked object cannot be released");
                    continue;
                }
            };
            if !changes.is_empty()
                && let Err(error) = self.order(changes, Bytes::new())
            {
                tracing::warn!(%error, "an unlinked object is released later");
                self.sessions.to_release.insert(object);
                return;
            }
        }
    }
}
