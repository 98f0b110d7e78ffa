//! How long sessions live, and what they hold open.

use bytes::Bytes;
use protocol::ids::SessionId;
use protocol::record::Change;
use protocol::volume::VolumeKind;
use storage::Medium;

use super::driver::Driver;
use super::keys::Keys;
use super::sessions::Session;

impl<M: Medium> Driver<M> {
    /// A primary takes up the volume: makes the root where there is none, and gives the sessions
    /// of before time to come back.
    pub(super) fn take_up_namespace(&mut self) {
        let now = self.now();
        if self.machine.last().0 == 0 && self.spec.kind == VolumeKind::Fs {
            let changes = namespace::mkfs(self.timestamp());
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
                        heard: now,
                        ..Session::default()
                    });
                }
                self.release_stray_locks();
            }
            Err(error) => tracing::error!(%error, "the sessions cannot be read"),
        }
        self.sessions.inherit_promise(now);
        self.sessions.count_again(self.machine.last());
        if !self.sessions.by_id.is_empty() {
            self.sessions.grace_until = Some(now + self.settings.session_timeout);
        }
        self.look_for_orphans();
    }

    /// What is unlinked and nobody is known to hold open is to be released.
    fn look_for_orphans(&mut self) {
        match namespace::orphans(&Keys(&self.brick)) {
            Ok(orphans) => self.sessions.to_release.extend(orphans),
            Err(error) => tracing::error!(%error, "the unlinked objects cannot be read"),
        }
    }

    /// Ends sessions of which nothing was heard, and releases what they held.
    pub(super) fn expire_sessions(&mut self) {
        if !self.machine.serves() {
            return;
        }
        self.release_left_over_locks();
        let now = self.now();
        let timeout = self.settings.session_timeout;
        let expired: Vec<_> = self
            .sessions
            .by_id
            .iter()
            .filter(|(_, s)| now.saturating_sub(s.heard) > timeout)
            .map(|(id, _)| *id)
            .collect();
        for session in expired {
            tracing::info!(volume = %self.spec.name, session = %session.short(), "a session ended");
            self.end_session(session);
        }
        if self.sessions.grace_until.is_some_and(|until| now >= until) {
            self.sessions.grace_until = None;
            // What was unlinked meanwhile counted as held.
            self.look_for_orphans();
        }
        self.release_orphans();
    }

    pub(super) fn end_session(&mut self, session: SessionId) {
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
        self.sessions.count_again(self.machine.last());
        self.release_orphans();
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
