//! The volume's thread and its tasks.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc as blocking;
use std::time::Duration;

use protocol::ids::PoolId;
use protocol::node_rpc::VolumeCommand;
use protocol::preamble::Purpose;
use protocol::replica::Message;
use protocol::volume::VolumeSpec;
use replication::machine::{Refusal, Standing};
use replication::state::{DurableState, Mask, Places, RoleReason};
use storage::{Brick, DirMedium, Medium, RecoveryReport};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use super::driver::{Driver, Shared};
use super::links::{keep_dialling, serve_link};
use super::points::{self, NotForced, WentBack};
use super::{
    CommandError, Host, Said, StartError, bricks, clients, differences, kept, verify, words,
};

/// How often deadlines are looked at.
pub(super) const TICK: Duration = Duration::from_millis(50);
/// How often the positions of the in-sync set are made durable.
const NOTE_POSITIONS: Duration = Duration::from_secs(5);
/// How long the last word to a replica may take.
const GOODBYE_WITHIN: Duration = Duration::from_millis(500);
/// How long a hand-over at the end may take.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(3);
/// How long the pool may take to agree to a take-over by force.
const FORCE_WITHIN: Duration = Duration::from_secs(3);

/// What a brick's opening gave.
type Opened<M> = (Brick<M>, RecoveryReport, DurableState);

/// Starts the thread and waits until the brick is open or refused.
pub(super) fn start(
    spec: VolumeSpec,
    me: usize,
    pool_id: PoolId,
    host: Arc<dyn Host>,
    messages: mpsc::Receiver<Said>,
) -> Result<(), StartError> {
    let (ready, opened) = blocking::sync_channel(1);
    let name = format!("vol-{}", spec.name);
    std::thread::Builder::new()
        .name(name.chars().take(15).collect())
        .spawn(move || match open(&spec, me, pool_id) {
            Ok((brick, recovery, state)) => {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                let runtime = match runtime {
                    Ok(runtime) => runtime,
                    Err(error) => {
                        let _ = ready.send(Err(StartError::Thread(error)));
                        return;
                    }
                };
                let _ = ready.send(Ok(()));
                let local = tokio::task::LocalSet::new();
                let opened = (brick, recovery, state);
                let stopped = local.block_on(&runtime, run(spec, me, host, opened, messages));
                // The brick is closed, and may be opened again, once its tasks are gone.
                drop(local);
                if let Some(stopped) = stopped {
                    let _ = stopped.send(());
                }
            }
            Err(error) => {
                let _ = ready.send(Err(error));
            }
        })
        .map_err(StartError::Thread)?;
    opened.recv().map_err(|_| StartError::Ended)?
}

fn open(spec: &VolumeSpec, me: usize, pool_id: PoolId) -> Result<Opened<DirMedium>, StartError> {
    let path = PathBuf::from(&spec.replicas[me].path);
    let (brick, recovery) =
        bricks::open(spec, me, pool_id, &path).map_err(|source| StartError::Open {
            path: path.clone(),
            source: Box::new(source),
        })?;
    let state = bricks::state_of(&brick).map_err(|reason| StartError::State {
        path: path.clone(),
        reason,
    })?;
    if !recovery.was_clean {
        tracing::info!(
            volume = %spec.name, replayed = recovery.replayed_records,
            doubtful_extents = recovery.suspect.len(), "the brick recovered from a crash"
        );
    }
    Ok((brick, recovery, state))
}

/// Runs the replica until it is stopped, or nobody can say anything to it any more. Returns whom
/// to tell once its tasks are gone.
pub(super) async fn run<M: Medium>(
    spec: VolumeSpec,
    me: usize,
    host: Arc<dyn Host>,
    (brick, recovery, state): Opened<M>,
    mut messages: mpsc::Receiver<Said>,
) -> Option<oneshot::Sender<()>> {
    let dialled: Vec<usize> = spec
        .members()
        .map(|(replica, _)| replica)
        .filter(|replica| *replica > me)
        .collect();
    let wake = brick.wake_fd().and_then(|fd| fd.try_clone_to_owned().ok());
    let driver = Driver::new(spec, me, host, brick, recovery, state);
    let shared: Shared<M> = Rc::new(RefCell::new(driver));
    shared.borrow_mut().set_self(&shared);
    match wake {
        Some(fd) => tokio::task::spawn_local(watch_brick(shared.clone(), fd)),
        None => tokio::task::spawn_local(poll_brick(shared.clone())),
    };
    tokio::task::spawn_local(ticker(shared.clone()));
    tokio::task::spawn_local(watch_agreement(shared.clone()));
    for replica in dialled {
        tokio::task::spawn_local(keep_dialling(shared.clone(), replica));
    }
    {
        let mut d = shared.borrow_mut();
        if let Err(error) = d.drop_resync_points() {
            d.fail(&error);
        }
        let now = d.now();
        let places = Places::of(&d.spec);
        d.machine.replace_places(now, places);
        d.machine.start(now);
        d.finish_turn();
        // While it was away the configuration may have changed.
        let spec = d.spec.clone();
        if d.failed.is_none() && d.brick.identity().spec.version != spec.version {
            d.keep_spec(&spec);
        }
    }
    while let Some(said) = messages.recv().await {
        match said {
            Said::Accept(accepted, purpose) => {
                tokio::task::spawn_local(serve(shared.clone(), accepted, purpose));
            }
            Said::Spec(spec) => shared.borrow_mut().new_spec(*spec),
            Said::Status(answer) => {
                let _ = answer.send(shared.borrow().report());
            }
            Said::Command(command, answer) => {
                let shared = shared.clone();
                tokio::task::spawn_local(async move {
                    let _ = answer.send(execute(&shared, command).await);
                });
            }
            Said::Stop(answer) => {
                stop(&shared).await;
                return Some(answer);
            }
        }
    }
    stop(&shared).await;
    None
}

async fn serve<M: Medium>(shared: Shared<M>, accepted: super::AcceptedStream, purpose: Purpose) {
    let accepting = shared.borrow().host.accept(accepted);
    match tokio::time::timeout(Duration::from_secs(5), accepting).await {
        Ok(Ok(stream)) => match purpose {
            Purpose::Client(id) if id != shared.borrow().spec.id => {
                kept::serve(shared, stream, id).await;
            }
            Purpose::Client(_) => clients::serve_client(shared, stream).await,
            Purpose::Replica(_) => {
                // It logs its own end.
                let _ = serve_link(shared, stream, None).await;
            }
            Purpose::Rpc | Purpose::Join => {}
        },
        Ok(Err(error)) => tracing::info!(%error, "a connection did not get through TLS"),
        Err(_) => tracing::info!("a connection did not get through TLS in time"),
    }
}

async fn watch_brick<M: Medium>(shared: Shared<M>, fd: OwnedFd) {
    #[allow(
        deprecated,
        reason = "an OwnedFd keeps its descriptor open, which the replacement wants promised by \
                  unsafe code; this crate has none"
    )]
    let fd = match AsyncFd::with_interest(fd, Interest::READABLE) {
        Ok(fd) => fd,
        Err(error) => {
            tracing::error!(%error, "the brick's completions cannot be watched");
            return;
        }
    };
    loop {
        let Ok(mut guard) = fd.readable().await else {
            return;
        };
        guard.clear_ready();
        let mut d = shared.borrow_mut();
        if d.stopping {
            return;
        }
        d.brick_events();
        d.finish_turn();
    }
}

/// As [`watch_brick`], for a medium whose work ends only when somebody looks.
async fn poll_brick<M: Medium>(shared: Shared<M>) {
    let work = shared.borrow().disk_work.clone();
    loop {
        while !shared.borrow().brick.is_busy() {
            work.notified().await;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        let mut d = shared.borrow_mut();
        if d.stopping {
            return;
        }
        d.brick_events();
        d.finish_turn();
    }
}

/// Tells the machine what the pool agrees on, as soon as this node knows.
async fn watch_agreement<M: Medium>(shared: Shared<M>) {
    let mut changes = shared.borrow().host.changes();
    while changes.changed().await.is_ok() {
        let mut d = shared.borrow_mut();
        if d.stopping || d.failed.is_some() {
            return;
        }
        d.learn_agreement();
        d.end_revoked();
        d.finish_turn();
    }
}

async fn ticker<M: Medium>(shared: Shared<M>) {
    let (mut last, mut ended) = (tokio::time::Instant::now(), 0);
    loop {
        let (hurry, beat, pause, deadline) = {
            let d = shared.borrow();
            let left = d.machine.deadline().map(|at| at.saturating_sub(d.now()));
            // What was due already and did not help is looked at with the rest.
            let left = left.filter(|left| !left.is_zero());
            let beat = d.settings.heartbeat();
            let pause = if d.is_quiet() { beat } else { TICK };
            (d.hurry.clone(), beat, pause, left.unwrap_or(pause))
        };
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(last + pause) => {}
            () = hurry.notified() => continue,
            () = tokio::time::sleep(deadline) => {
                let mut d = shared.borrow_mut();
                if d.stopping || d.failed.is_some() {
                    return;
                }
                let now = d.now();
                d.machine.tick(now);
                d.finish_turn();
                continue;
            }
        }
        last = tokio::time::Instant::now();
        let mut d = shared.borrow_mut();
        if d.stopping || d.failed.is_some() {
            return;
        }
        d.brick_events();
        d.tick();
        // In ticks, although a pause may be as long as several.
        let ticks = ended + u64::try_from(pause.as_millis() / TICK.as_millis()).unwrap_or(1);
        let due = |period: Duration| {
            let every = u64::try_from(period.as_millis() / TICK.as_millis())
                .unwrap_or(1)
                .max(1);
            ticks / every > ended / every
        };
        if due(beat) {
            d.heartbeats();
        }
        if due(Duration::from_secs(1)) {
            d.every_second();
        }
        if due(NOTE_POSITIONS) {
            d.note_positions();
        }
        ended = ticks;
    }
}

async fn execute<M: Medium>(
    shared: &Shared<M>,
    command: VolumeCommand,
) -> Result<serde_json::Value, CommandError> {
    if let Some(reason) = &shared.borrow().failed {
        return Err(CommandError::refused(
            "brick_failed",
            format!("the primary's brick has failed: {reason}"),
            "mend the file system below the brick, then run `cairn volume start` again; with \
             `quorum majority` another replica takes over by itself",
        ));
    }
    let (forced, kept) = {
        let d = shared.borrow();
        let by_force = d.machine.durable().role_reason == RoleReason::Forced;
        let goes_on = d.machine.serves() && d.machine.suspended().is_none();
        let split = d.split_brain().is_some();
        (
            goes_on && by_force,
            goes_on && !split && d.machine.is_this_side_kept(),
        )
    };
    let unchanged = serde_json::json!({ "promoted": true, "changed": false });
    match command {
        VolumeCommand::Promote { to, force: true } if to == shared.borrow().me => {
            if forced {
                return Ok(unchanged);
            }
            return force_role(shared, points::take_by_force).await;
        }
        VolumeCommand::KeepSide {} => {
            // Who was made primary by force before the two met still has to give up the other.
            if kept {
                return Ok(unchanged);
            }
            return force_role(shared, |d| {
                d.machine.keep_this_side()?;
                Ok(None)
            })
            .await;
        }
        VolumeCommand::DropKept {} => return shared.borrow_mut().drop_kept(),
        VolumeCommand::Differences { with, max } => {
            return differences::open(shared, with, max).await;
        }
        VolumeCommand::KeptDifferences { point, max } => {
            return differences::kept(shared, point, max).await;
        }
        VolumeCommand::Names { objects } => return differences::names(shared, objects).await,
        VolumeCommand::ResyncWithoutPoint {} => {
            shared.borrow_mut().without_point = true;
            return Ok(serde_json::json!({ "allowed": true }));
        }
        _ => {}
    }
    let may = shared.borrow().machine.may_order();
    may.map_err(|refusal| not_commanded(&refusal))?;
    match command {
        VolumeCommand::Promote { to, .. } => promote(shared, to).await,
        VolumeCommand::KeepSide {}
        | VolumeCommand::DropKept {}
        | VolumeCommand::Differences { .. }
        | VolumeCommand::KeptDifferences { .. }
        | VolumeCommand::Names { .. }
        | VolumeCommand::ResyncWithoutPoint {} => Ok(serde_json::Value::Null),
        VolumeCommand::Resync { replica, full } => {
            shared.borrow_mut().resync(replica, full);
            Ok(serde_json::json!({ "started": true }))
        }
        VolumeCommand::FitsDisk { bytes } => shared.borrow().fits_disk(bytes),
        VolumeCommand::LetGo {} => Ok(shared.borrow_mut().let_go()),
        VolumeCommand::PauseResync => {
            shared.borrow_mut().pause(true);
            Ok(serde_json::json!({ "paused": true }))
        }
        VolumeCommand::ResumeResync => {
            shared.borrow_mut().pause(false);
            Ok(serde_json::json!({ "paused": false }))
        }
        VolumeCommand::Verify { repair } => {
            let verdict = verify::verify(shared, repair).await;
            Ok(serde_json::to_value(verdict).unwrap_or_default())
        }
    }
}

/// Makes this replica primary by an operator's word. Where the pool decides, waits for its answer.
async fn force_role<M: Medium>(
    shared: &Shared<M>,
    act: fn(&mut Driver<M>) -> Result<Option<WentBack>, NotForced>,
) -> Result<serde_json::Value, CommandError> {
    let (changed, went_back) = {
        let mut d = shared.borrow_mut();
        let went_back = match act(&mut d) {
            Ok(went_back) => went_back,
            Err(NotForced::Command(error)) => return Err(error),
            Err(NotForced::Refused(refusal)) => return Err(not_forced(&refusal)),
        };
        tracing::warn!(volume = %d.spec.name, "made primary by an operator, by force");
        d.finish_turn();
        (d.changed.clone(), went_back)
    };
    let serves = || {
        let d = shared.borrow();
        d.machine.agreed().is_none() || d.machine.serves()
    };
    let agreed = async {
        while !serves() {
            let _ = tokio::time::timeout(TICK, changed.notified()).await;
        }
    };
    if tokio::time::timeout(FORCE_WITHIN, agreed).await.is_err() {
        shared.borrow_mut().machine.force_no_more();
        return Err(CommandError::refused(
            "pool_undecided",
            "this replica is not made primary: the pool has not agreed to it",
            "a majority of the voters must be connected, look at `cairn peer status`; then try again",
        ));
    }
    let mut answer = serde_json::json!({ "promoted": true, "changed": true });
    if let Some(went) = went_back {
        answer["as_of"] = went.as_of.clone().into();
        answer["operations_lost_min"] = went.operations_lost_min.into();
        answer["message"] = went.text().into();
    }
    Ok(answer)
}

fn not_commanded(refusal: &Refusal) -> CommandError {
    words::not_done(refusal);
    let (code, hint) = match refusal {
        Refusal::HandingOver => (
            "handing_over",
            "wait for a moment, then look at `cairn volume status`: another node is primary then",
        ),
        _ => (
            "not_primary",
            "look at `cairn volume status`: the primary may have moved, or none may serve",
        ),
    };
    CommandError::refused(code, refusal.to_string(), hint)
}

fn not_forced(refusal: &Refusal) -> CommandError {
    words::not_done(refusal);
    let hint = match refusal {
        Refusal::PoolDecides => {
            "with `quorum majority` an in-sync replica takes over by itself once a majority of \
             the voters is connected; look at `cairn peer status`"
        }
        Refusal::PrimaryServes | Refusal::AlreadyPrimary => {
            "leave --force out: the role is handed over without loss"
        }
        _ => "look at `cairn volume status` for the replica's state",
    };
    CommandError::refused(
        "not_forced",
        format!("this replica is not made primary: {refusal}"),
        hint,
    )
}

async fn promote<M: Medium>(
    shared: &Shared<M>,
    to: usize,
) -> Result<serde_json::Value, CommandError> {
    let (me, is_member) = {
        let d = shared.borrow();
        (d.me, d.spec.is_member(to))
    };
    if !is_member {
        return Err(CommandError::refused(
            "no_such_replica",
            "the volume has no such replica",
            "look at `cairn volume info`",
        ));
    }
    if to == me {
        return Ok(serde_json::json!({ "promoted": true, "changed": false }));
    }
    let wait = shared.borrow_mut().promote(to)?;
    match wait.await {
        Ok(true) => Ok(serde_json::json!({ "promoted": true, "changed": true })),
        _ => Err(CommandError::refused(
            "hand_over_failed",
            "the replica went away before the role was handed over; this node goes on as primary",
            "look at `cairn volume status` and try again",
        )),
    }
}

impl<M: Medium> Driver<M> {
    fn new_spec(&mut self, spec: VolumeSpec) {
        self.settings = super::settings::Settings::of(&spec);
        self.machine
            .set_replica_deadline(self.settings.replica_deadline);
        self.machine.set_patience(
            self.settings.link.claim_after,
            self.settings.link.activation_wait,
        );
        self.machine.set_min_in_sync(self.settings.min_in_sync);
        self.machine.set_split_policy(self.settings.split_policy);
        self.machine.set_fencing(self.settings.fencing);
        self.machine
            .set_policy(self.settings.protocol, self.settings.queue_bytes_max);
        (0..self.links.len()).for_each(|replica| self.pack_frames(replica));
        self.look_after_early_changes();
        let (now, agreed) = (self.now(), self.host.agreed(spec.id));
        let before = std::mem::replace(&mut self.spec, spec.clone());
        // What was said of the brick that had a place before does not mean the next one.
        for place in (0..self.links.len()).filter(|place| !same_brick(&before, &spec, *place)) {
            self.ahead_of = self.ahead_of.without(place);
            self.full_wanted = self.full_wanted.without(place);
            self.overwritten = self.overwritten.without(place);
        }
        // What the replicas mean is durable before the configuration that says so.
        self.machine.replace_places(now, Places::of(&spec));
        self.finish_turn_if_up();
        self.dial_new(&before);
        self.machine.set_agreement(now, agreed);
        self.learn_agreement();
        self.keep_spec(&spec);
        if self.failed.is_none() && !self.stopping {
            self.end_revoked();
            self.fit_disk();
        }
        self.finish_turn_if_up();
    }

    /// Hands the role to another replica; the receiver learns how it ended.
    pub(super) fn promote(&mut self, to: usize) -> Result<oneshot::Receiver<bool>, CommandError> {
        self.machine.hand_over(to).map_err(|refusal| {
            super::words::not_done(&refusal);
            CommandError::refused(
                "hand_over_refused",
                format!("the role cannot be handed over: {refusal}"),
                "look at `cairn volume status` for the replica's state",
            )
        })?;
        let (done, wait) = oneshot::channel();
        self.handover_waiters.push(done);
        self.finish_turn();
        Ok(wait)
    }

    fn finish_turn_if_up(&mut self) {
        if self.failed.is_none() && !self.stopping {
            self.finish_turn();
        }
    }

    /// Keeps a copy of the configuration in the brick, for whoever finds it without a pool.
    fn keep_spec(&mut self, spec: &VolumeSpec) {
        if self.failed.is_some() {
            return;
        }
        if let Err(error) = self.brick.set_spec(spec.clone()) {
            self.fail(&error);
        }
    }

    /// Dials bricks that were added, where that is this replica's part.
    fn dial_new(&self, before: &VolumeSpec) {
        let Some(shared) = self.shared() else { return };
        for (replica, _) in self.spec.members().filter(|(r, _)| *r > self.me) {
            if !same_brick(before, &self.spec, replica) {
                tokio::task::spawn_local(keep_dialling(shared.clone(), replica));
            }
        }
    }

    /// Whether the bricks on their way out may be removed. A primary that itself is on its way
    /// out begins to hand its role over.
    fn let_go(&mut self) -> serde_json::Value {
        if self.spec.is_leaving(self.me)
            && !self.is_handing_over()
            && let Some(heir) = self.machine.heir()
            && let Err(error) = self.promote(heir)
        {
            tracing::info!(volume = %self.spec.name, %error, "the role stays here for now");
        }
        serde_json::json!({
            "let_go": self.machine.has_let_go(),
            "version": self.spec.version,
        })
    }

    /// Brings replicas up to date again: their links are closed, and the next meeting decides.
    fn resync(&mut self, replica: Option<usize>, full: bool) {
        for index in (0..self.links.len()).filter(|r| replica.is_none_or(|only| only == *r)) {
            if self.links[index].is_none() {
                continue;
            }
            let in_sync = self.machine.standing(index) == Some(Standing::InSync);
            if full {
                self.full_wanted = self.full_wanted.with(index);
            } else if in_sync {
                continue; // nothing is missing there
            }
            self.link_lost(index, None);
        }
    }

    fn pause(&mut self, paused: bool) {
        self.paused = paused;
        for index in 0..self.links.len() {
            let running = self.resyncs[index].running.is_some();
            let waiting = self.machine.standing(index) == Some(Standing::Met);
            if (paused && running) || (!paused && waiting) {
                self.link_lost(index, None);
            }
        }
    }
}

/// Whether a brick has the place in both, and it is the same one.
fn same_brick(before: &VolumeSpec, after: &VolumeSpec, place: usize) -> bool {
    let brick = |spec: &VolumeSpec| {
        let replica = spec.replicas.get(place).filter(|_| spec.is_member(place));
        replica.map(|replica| replica.brick)
    };
    brick(before).is_some() && brick(before) == brick(after)
}

/// The others learn that this replica goes, and is not to be fenced for it.
async fn say_goodbye<M: Medium>(shared: &Shared<M>) {
    let outboxes: Vec<_> = {
        let d = shared.borrow();
        if d.failed.is_some() {
            return;
        }
        let connected = (0..d.links.len()).filter(|replica| d.links[*replica].is_some());
        connected
            .filter_map(|replica| {
                d.send(replica, &Message::Leaving);
                d.links[replica].as_ref().map(|link| link.outbox.clone())
            })
            .collect()
    };
    for outbox in outboxes {
        // Whoever does not take it in time sees a connection that breaks.
        let _ = tokio::time::timeout(GOODBYE_WITHIN, outbox.below(1)).await;
    }
}

/// Ends the volume's work on this node: hands the role to a replica that can take it, then
/// checkpoints and closes the brick.
async fn stop<M: Medium>(shared: &Shared<M>) {
    let heir = {
        let d = shared.borrow();
        // A brick that failed can confirm nothing, and so give nothing away.
        let others = d.settings.preferred.into_iter().chain(0..d.links.len());
        let mut others = others.filter(|replica| *replica != d.me);
        others.find(|r| d.failed.is_none() && d.machine.standing(*r) == Some(Standing::InSync))
    };
    if let Some(heir) = heir
        && shared.borrow().machine.serves()
    {
        let wait = shared.borrow_mut().promote(heir);
        if let Ok(wait) = wait {
            let _ = tokio::time::timeout(HAND_OVER_WITHIN, wait).await;
            // The word to the heir must leave before the link closes.
            let outbox = shared.borrow().links[heir]
                .as_ref()
                .map(|l| l.outbox.clone());
            if let Some(outbox) = outbox {
                let _ = tokio::time::timeout(HAND_OVER_WITHIN, outbox.below(1)).await;
            }
        }
    }
    say_goodbye(shared).await;
    shared.borrow_mut().stopping = true;
    kept::end_reading(shared).await;
    let mut d = shared.borrow_mut();
    d.apply_what_was_received();
    d.sessions.close_connections();
    for link in d.links.iter().flatten() {
        link.outbox.close();
    }
    d.full_wanted = Mask::default();
    if let Err(error) = d.brick.shut_down() {
        tracing::error!(volume = %d.spec.name, %error, "the brick was not closed cleanly");
    }
    d.changed.notify_waiters();
}
