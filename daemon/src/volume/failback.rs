//! The role goes back to the node that the volume prefers, where an option asks (FO-4).

use replication::machine::{Phase, Standing};
use storage::Medium;

use super::driver::Driver;

impl<M: Medium> Driver<M> {
    /// Called once a second. As primary: hands the role to the preferred replica when that has been
    /// in sync without a break for as long as the option says. An attempt that fails is made again
    /// after as long.
    pub(super) fn fail_back(&mut self) {
        let wanted = self.settings.preferred.filter(|place| {
            self.settings.failback
                && *place != self.me
                && self.machine.phase() == Phase::Serving
                && self.machine.standing(*place) == Some(Standing::InSync)
                && self.machine.suspended().is_none()
                && !self.spec.is_leaving(*place)
        });
        let Some(place) = wanted else {
            self.preferred_since = None;
            return;
        };
        let now = self.now();
        let since = *self.preferred_since.get_or_insert(now);
        if now.saturating_sub(since) < self.settings.failback_delay {
            return;
        }
        self.preferred_since = None;
        let node = &self.spec.replicas[place].node_name;
        let text = format!("the role goes back to {node}, which the volume prefers");
        self.host.event("failback", &self.spec.name, &text);
        // How it ends is told by events of both nodes.
        if let Err(error) = self.promote(place) {
            tracing::info!(volume = %self.spec.name, %error, "the role stays here for now");
        }
    }
}
