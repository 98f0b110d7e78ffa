//! Finding the primary, at first and again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use protocol::fs::{Elsewhere, FS_VERSION, Hello, Outcome};
use protocol::ids::NodeId;

use super::dial::{self, DialError, Welcomed};
use super::link::Link;
use super::{EIO, Shared, StartError};
use crate::connection::Target;

/// Pause between rounds of looking for the primary: grows from the first to the second while a
/// failover may be under way, then to the third.
const RETRY_MIN: Duration = Duration::from_millis(10);
const RETRY_SOON: Duration = Duration::from_millis(25);
pub(super) const RETRY_MAX: Duration = Duration::from_millis(500);
/// So long a failover may take.
const SOON: Duration = Duration::from_secs(3);
/// Pause after a refusal that only an operator can change.
const REFUSED_PAUSE: Duration = Duration::from_secs(2);
/// Objects that a hello can name: its frame's meta has 2 MiB.
const OPENS_MAX: usize = 250_000;

impl Shared {
    /// The first connection.
    pub(super) fn begin(&self) -> Result<Welcomed, StartError> {
        let deadline = Instant::now() + self.config.mount_timeout;
        let mut pause = RETRY_MIN;
        loop {
            let error = match self.round() {
                Ok(Some(welcomed)) => return Ok(welcomed),
                Ok(None) => return Err(StartError::NoHosts),
                Err(error) => error,
            };
            let lasting = matches!(error, DialError::Refused { lasting: true, .. });
            if lasting || Instant::now() + pause >= deadline {
                return Err(error.into());
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Every later one: never gives up. `None`: the session ended.
    pub(super) fn reconnect(&self) -> Option<Welcomed> {
        let mut pause = RETRY_MIN;
        let began = Instant::now();
        loop {
            if self.state.lock().ended {
                return None;
            }
            match self.round() {
                Ok(Some(welcomed)) => return Some(welcomed),
                Ok(None) => {}
                Err(DialError::Refused {
                    lasting: true,
                    message,
                    ..
                }) => {
                    tracing::error!(%message, "the pool refuses this client");
                    pause = REFUSED_PAUSE;
                    self.refuse();
                }
                Err(error) => tracing::debug!(%error, "no primary yet"),
            }
            let mut state = self.state.lock();
            if !state.ended {
                self.changed.wait_for(&mut state, pause);
            }
            drop(state);
            let most = if began.elapsed() < SOON {
                RETRY_SOON
            } else {
                RETRY_MAX
            };
            pause = (pause * 2).min(most);
        }
    }

    /// The primary is silent although something waits: asks the other nodes, all at once, and
    /// leaves the connection as soon as one of them names another primary. A primary that is
    /// only slow stays.
    pub(super) fn doubt(self: &Arc<Self>, link: &Arc<Link>) {
        let (targets, current) = {
            let mut state = self.state.lock();
            if state.doubting {
                return;
            }
            state.doubting = true;
            (state.places.others(), state.places.primary())
        };
        let asking: Vec<_> = targets
            .into_iter()
            .map(|target| {
                let (shared, link) = (Arc::clone(self), Arc::clone(link));
                std::thread::spawn(move || shared.ask_other(&target, current, &link))
            })
            .collect();
        let shared = Arc::clone(self);
        std::thread::spawn(move || {
            for thread in asking {
                // One that panicked has told nothing.
                let _ = thread.join();
            }
            shared.state.lock().doubting = false;
        });
    }

    fn ask_other(&self, target: &Target, current: Option<NodeId>, link: &Link) {
        let Ok(located) = dial::locate(&*self.connector, target, &self.config.volume) else {
            return;
        };
        let named = located.nodes.iter().find(|node| node.primary);
        let named = named.map(|node| node.id);
        if named.is_none() || named == current {
            return;
        }
        tracing::info!("another node is primary now");
        self.state.lock().places.located(located.nodes);
        link.close();
    }

    fn refuse(&self) {
        let mut state = self.state.lock();
        state.refused = true;
        // What it knew it may not tell either.
        self.cache.lock().clear();
        let waiters = state.table.older_than(Instant::now());
        state.refill();
        drop(state);
        for waiter in waiters {
            self.answer(Some(waiter), Outcome::Error(EIO));
        }
    }

    /// Looks for the primary once. `None`: there is nobody to ask.
    fn round(&self) -> Result<Option<Welcomed>, DialError> {
        let mut last = None;
        for attempt in 0..2 {
            if attempt > 0 || self.state.lock().places.to_try().is_empty() {
                match self.locate() {
                    Ok(true) => {}
                    Ok(false) => return Ok(None),
                    Err(error) => return Err(last.unwrap_or(error)),
                }
            }
            let before = self.state.lock().places.primary();
            match self.dial_all() {
                Ok(welcomed) => return Ok(Some(welcomed)),
                Err(error @ DialError::Refused { lasting: true, .. }) => return Err(error),
                Err(error) => last = Some(error),
            }
            // Somebody named another primary: that is worth another look at once.
            if attempt == 1 && self.state.lock().places.primary() == before {
                break;
            }
        }
        last.map_or(Ok(None), Err)
    }

    /// Asks one node after the other where the volume is. False: nobody to ask.
    fn locate(&self) -> Result<bool, DialError> {
        let targets = self.state.lock().places.to_ask();
        let mut last = None;
        for target in targets {
            match dial::locate(&*self.connector, &target, &self.config.volume) {
                Ok(located) => {
                    let mut state = self.state.lock();
                    state.volume = located.volume;
                    state.places.located(located.nodes);
                    return Ok(true);
                }
                Err(error) => last = Some(error),
            }
        }
        last.map_or(Ok(false), Err)
    }

    /// Says hello to every node at once, so that a dead one costs no time, and takes the first
    /// that welcomes. Only the primary does.
    fn dial_all(&self) -> Result<Welcomed, DialError> {
        let (nodes, volume, hello, mark) = {
            let state = self.state.lock();
            let hello = Hello {
                volume: state.volume,
                version: FS_VERSION,
                session: self.id,
                client_name: self.config.client_name.clone(),
                mounted_at_ms: self.mounted_at_ms,
                read_only: self.read_only.load(Ordering::Relaxed),
                opens: state.opens.list(OPENS_MAX),
                confirmed: state.seen,
                kept_terms: state.keep.terms(),
                leases: match self.config.cache_bytes {
                    0 => 0,
                    _ => u32::try_from(self.cache.lock().leases_max()).expect("65,536 at most"),
                },
                early: self.config.early && !self.config.read_only,
            };
            (
                state.places.to_try(),
                state.volume,
                hello,
                state.table.mark(),
            )
        };
        let (sender, receiver) = std::sync::mpsc::channel();
        let over: Arc<AtomicBool> = Arc::default();
        let mut silent = nodes.len();
        for (node, targets) in nodes {
            let (sender, hello, over) = (sender.clone(), hello.clone(), Arc::clone(&over));
            let connector = Arc::clone(&self.connector);
            std::thread::spawn(move || {
                // A node that is about to be primary is asked again while another says nothing:
                // a frozen one must not hold up the way to its successor.
                while !over.load(Ordering::Relaxed) {
                    for (left, target) in (0..targets.len()).rev().zip(&targets) {
                        let result = dial::hello(&*connector, target, volume, &hello, mark);
                        let welcomed = result.is_ok();
                        // Nobody listens once another node welcomed.
                        if sender.send((node, left == 0, result)).is_err() || welcomed {
                            return;
                        }
                    }
                    std::thread::sleep(RETRY_SOON);
                }
            });
        }
        drop(sender);
        let mut last = None;
        let mut heard = BTreeSet::new();
        for (node, is_all, result) in receiver {
            if is_all && heard.insert(node) {
                silent -= 1;
            }
            match result {
                Ok(welcomed) => {
                    over.store(true, Ordering::Relaxed);
                    self.state.lock().places.set_primary(Some(node));
                    return Ok(welcomed);
                }
                Err(error) => {
                    if let DialError::Elsewhere { elsewhere, .. } = &error {
                        self.state.lock().places.set_primary(elsewhere.primary);
                    }
                    // What a node refused says more than that another one is not there.
                    let weighs_less = matches!(last, Some(DialError::Refused { .. }));
                    if !weighs_less {
                        last = Some(error);
                    }
                }
            }
            if silent == 0 {
                break;
            }
        }
        over.store(true, Ordering::Relaxed);
        Err(last.unwrap_or_else(|| DialError::Elsewhere {
            target: self.config.volume.clone(),
            elsewhere: Elsewhere::default(),
        }))
    }
}
