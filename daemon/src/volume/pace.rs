//! How fast a resync goes: room towards the target, `resync-max-rate`, and what applications wait
//! (RS-3).

use std::time::Duration;

use storage::Medium;

use super::driver::Driver;
use super::source::{Run, Stopped};

/// Bytes of resync data that may be under way to the target: enough to keep a fast link busy,
/// little enough that live records do not wait long behind them.
const WINDOW_BYTES_MAX: usize = 4 << 20;
/// How often a resync that pauses looks whether it may go on.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

impl<M: Medium> Driver<M> {
    /// Tells the throttle whether a resync goes out from here, and that time has passed.
    pub(super) fn look_after_throttle(&mut self, now: Duration) {
        let under_way = self.links.iter().flatten().any(|l| l.source.is_some());
        self.throttle.resyncs(now, under_way);
        self.throttle.turn(now);
    }
}

impl<M: Medium> Run<M> {
    /// Waits until the link and the target have room, and lets live traffic pass.
    pub(super) async fn room(&self) -> Result<(), Stopped> {
        let outbox = self.with(|d| d.links[self.replica].as_ref().map(|l| l.outbox.clone()))?;
        if let Some(outbox) = outbox {
            outbox.below(WINDOW_BYTES_MAX).await;
        }
        self.source.open_below(WINDOW_BYTES_MAX).await?;
        tokio::task::yield_now().await;
        self.with(|_| ())
    }

    /// Waits after `bytes` were sent until more may be.
    pub(super) async fn pace(&self, bytes: usize) -> Result<(), Stopped> {
        let wait = self.with(|d| {
            let (now, most) = (d.now(), d.settings.resync_bytes_per_second_max);
            d.throttle.sent(now, bytes, most).saturating_sub(now)
        })?;
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        loop {
            let pauses = self.with(|d| {
                let now = d.now();
                d.throttle.turn(now);
                d.throttle.pauses()
            })?;
            if !pauses {
                return Ok(());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// The same for the journal's tail, which only `resync-max-rate` holds: who follows a journal
    /// must be faster than those who write to it, or it never arrives.
    pub(super) async fn pace_tail(&self, bytes: usize) -> Result<(), Stopped> {
        let rate = self.with(|d| d.settings.resync_bytes_per_second_max)?;
        if let Some(rate) = rate {
            tokio::time::sleep(Duration::from_secs_f64(bytes as f64 / rate as f64)).await;
        }
        Ok(())
    }
}
