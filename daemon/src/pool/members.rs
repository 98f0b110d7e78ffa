//! Members: detach, leave, votes, and a new epoch where the majority is lost for good.

use std::collections::BTreeMap;

use protocol::ids::{NodeId, PoolId};
use protocol::node_rpc::{Member, NodeReply, NodeRequest, Refusal};
use protocol::options::nearest;

use super::Node;
use super::client::check_leaving;
use super::join::{ask_member, group_failed};
use super::refusal::{refuse, refuse_loss};
use crate::events::Severity;
use crate::raft::{MemberState, PoolState};
use crate::rpc::{CALL_WITHIN, STATUS_WITHIN};

/// The member of this name, or a refusal that names the nearest.
pub(crate) fn member_of(state: &PoolState, name: &str) -> Result<(NodeId, MemberState), Refusal> {
    if let Some((id, member)) = state.member_named(name) {
        return Ok((id, member.clone()));
    }
    let names = state.members.values().map(|member| member.name.as_str());
    let hint = match nearest(name, names) {
        Some(near) => format!("Did you mean `{near}`?"),
        None => "See `cairn peer status`.".to_owned(),
    };
    Err(refuse(
        "no_node",
        format!("there is no node `{name}` in the pool"),
        &hint,
    ))
}

impl Node {
    /// Takes a node out of the pool.
    pub(crate) async fn detach(&self, name: &str, force: bool) -> Result<String, Refusal> {
        let state = self.pool.state();
        let (id, member) = member_of(&state, name)?;
        if id == self.id {
            return Err(refuse(
                "detach_self",
                format!("{name} is this node itself"),
                "Run `cairn peer leave` here, or detach it from another node.",
            ));
        }
        check_leaving(&state, id, force)?;
        let request = NodeRequest::Expel { node: id, force };
        match self.pool.change_members(&request).await {
            Ok(()) => {}
            // A change that found no majority before stays under way until it finds one.
            Err(refusal) if undecided(&refusal) => {
                return self.detach_without_majority(id, &member, force).await;
            }
            Err(refusal) => return Err(refusal),
        }
        let expelled = NodeRequest::Expelled {
            pool: state.pool,
            epoch: state.epoch,
        };
        let told = ask_member(self, id, &member.address, &expelled, STATUS_WITHIN).await;
        self.clients.forget(id);
        self.events.record(
            Severity::Info,
            "node_detached",
            None,
            &format!("{name} was taken out of the pool"),
        );
        Ok(match told {
            Some(NodeReply::Done { .. }) => format!("{name} is out of the pool"),
            _ => format!(
                "{name} is out of the pool; it did not answer: run `cairn peer leave --force` there"
            ),
        })
    }

    async fn detach_without_majority(
        &self,
        lost: NodeId,
        member: &MemberState,
        force: bool,
    ) -> Result<String, Refusal> {
        let answers = self.answering().await;
        let state = self.pool.state();
        let votes = |id: &NodeId| state.members.get(id).is_some_and(|m| m.voter);
        let present = answers
            .keys()
            .chain([&self.id])
            .filter(|id| votes(id))
            .count();
        if answers.contains_key(&lost) || present * 2 > state.voters() {
            return Err(refuse(
                "no_majority",
                "the pool's voters did not agree in time, although enough of them answer",
                "Try again in a few seconds; look at `cairn peer status`.",
            ));
        }
        if !force {
            return Err(refuse_loss(
                "no_majority",
                format!(
                    "the pool has lost its majority; going on without {} starts a new epoch, and \
                     changes that only lost nodes know of are gone",
                    member.name
                ),
                "If that node never comes back with the pool's present configuration, say --force.",
            ));
        }
        self.new_epoch(lost, answers).await
    }

    /// Other members that answer now.
    async fn answering(&self) -> BTreeMap<NodeId, MemberState> {
        let mut asked = tokio::task::JoinSet::new();
        for (id, member) in self.pool.others() {
            let clients = std::sync::Arc::clone(&self.clients);
            asked.spawn(async move {
                let request = NodeRequest::Ping { start: 0 };
                let reply = clients
                    .call(id, &member.address, &request, STATUS_WITHIN)
                    .await;
                matches!(reply, Ok(NodeReply::Pong { .. })).then_some((id, member))
            });
        }
        let mut answers = BTreeMap::new();
        while let Some(done) = asked.join_next().await {
            if let Ok(Some((id, member))) = done {
                answers.insert(id, member);
            }
        }
        answers
    }

    async fn new_epoch(
        &self,
        lost: NodeId,
        answers: BTreeMap<NodeId, MemberState>,
    ) -> Result<String, Refusal> {
        let _one = self.moving.lock().await;
        let others = self.pool.others();
        let pool = self.pool.state().pool;
        let epoch = self
            .pool
            .group()
            .new_epoch()
            .await
            .map_err(|error| group_failed(&error))?;
        let mut members = self.pool.group().members();
        for (id, member) in &answers {
            members.insert(*id, plain(member));
        }
        let mut left_out: Vec<String> = others
            .iter()
            .filter(|(id, _)| **id != lost && !answers.contains_key(id))
            .map(|(_, member)| member.name.clone())
            .collect();
        for (id, member) in answers {
            let adopt = NodeRequest::AdoptEpoch {
                pool,
                epoch,
                members: members.clone(),
            };
            let adopted = ask_member(self, id, &member.address, &adopt, CALL_WITHIN).await;
            let admit = NodeRequest::Admit {
                node: id,
                member: plain(&member),
                voter: member.voter,
            };
            let taken = matches!(adopted, Some(NodeReply::Done { .. }))
                && self.pool.change_members(&admit).await.is_ok();
            if !taken {
                left_out.push(member.name);
            }
        }
        let mut text = format!("the pool goes on under epoch {epoch}");
        if !left_out.is_empty() {
            text = format!(
                "{text}, also without {}: run `cairn peer leave --force` there, then probe again",
                left_out.join(", ")
            );
        }
        self.events
            .record(Severity::Warning, "new_epoch", None, &text);
        Ok(text)
    }

    /// Another member says that an operator started a new epoch.
    pub(crate) async fn adopt_epoch(
        &self,
        pool: PoolId,
        epoch: u64,
        members: BTreeMap<NodeId, Member>,
    ) -> Result<NodeReply, Refusal> {
        let state = self.pool.state();
        if state.pool != pool || epoch <= state.epoch || !members.contains_key(&self.id) {
            return Err(refuse(
                "other_pool",
                format!(
                    "epoch {epoch} of pool {} does not follow epoch {} of pool {}",
                    pool.short(),
                    state.epoch,
                    state.pool.short()
                ),
                "Look at `cairn peer status` on both nodes.",
            ));
        }
        let _one = self.moving.lock().await;
        let text = format!("the pool goes on under epoch {epoch}");
        self.enter(pool, epoch, members, Severity::Warning, "new_epoch", &text)
            .await?;
        Ok(NodeReply::Done { index: 0 })
    }

    /// Another member says that this node was taken out.
    pub(crate) async fn expelled(&self, pool: PoolId, epoch: u64) -> Result<NodeReply, Refusal> {
        let state = self.pool.state();
        if (state.pool, state.epoch) != (pool, epoch) {
            return Err(refuse(
                "other_pool",
                "that is another pool or epoch",
                "Look at `cairn peer status` on both nodes.",
            ));
        }
        let _one = self.moving.lock().await;
        self.become_fresh("it was detached").await;
        Ok(NodeReply::Done { index: 0 })
    }

    /// Ends this node's own membership.
    pub(crate) async fn leave(&self, force: bool) -> Result<String, Refusal> {
        let state = self.pool.state();
        if !state.entering && self.pool.others().is_empty() {
            return Err(refuse(
                "alone",
                "this node is in no pool of others",
                "Nothing is to be done.",
            ));
        }
        let _one = self.moving.lock().await;
        if !state.entering {
            check_leaving(&state, self.id, force)?;
            let request = NodeRequest::Expel {
                node: self.id,
                force,
            };
            match self.pool.change_members(&request).await {
                Ok(()) => {}
                Err(refusal) if force => {
                    tracing::warn!(%refusal, "leaving without the pool's consent");
                }
                Err(refusal) if undecided(&refusal) => {
                    return Err(refuse_loss(
                        "no_majority",
                        "the pool cannot be asked, so it would go on counting this node",
                        "Say --force, and detach this node from the others: \
                         `cairn peer detach NODE --force`.",
                    ));
                }
                Err(refusal) => return Err(refusal),
            }
        }
        self.become_fresh("it left").await;
        Ok("this node is in no pool of others any more".to_owned())
    }

    /// Lets a member vote or not.
    pub(crate) async fn set_voter(&self, name: &str, voter: bool) -> Result<String, Refusal> {
        let state = self.pool.state();
        let (node, member) = member_of(&state, name)?;
        let says = if voter { "votes" } else { "does not vote" };
        if member.voter == voter {
            return Ok(format!("{name} {says} already"));
        }
        let request = NodeRequest::SetVoter { node, voter };
        self.pool.change_members(&request).await?;
        Ok(format!("{name} {says}"))
    }
}

/// Whether the pool could not decide, as opposed to deciding against it.
fn undecided(refusal: &Refusal) -> bool {
    matches!(refusal.code.as_str(), "no_majority" | "change_in_progress")
}

fn plain(member: &MemberState) -> Member {
    Member {
        name: member.name.clone(),
        address: member.address.clone(),
    }
}
