//! What is told to operators about roles and replicas, in plain sentences.

use std::time::Duration;

use protocol::report::SplitSideReport;
use protocol::units::{Sequence, Term};
use replication::decision::Rule;
use replication::machine::{DropReason, Refusal};
use replication::split::Open;
use replication::state::RoleReason;

/// Why a replica has its role, to be read after "it is primary" or "it is secondary".
pub(super) fn role_reason(reason: RoleReason) -> &'static str {
    match reason {
        RoleReason::Created => "the volume was made so",
        RoleReason::Resumed => "it was the last primary and came back",
        RoleReason::Promoted => "promoted by an operator or by the last primary's shutdown",
        RoleReason::HandedOver => "handed its role over",
        RoleReason::Followed => "met a primary of a later term",
        RoleReason::TookOver => "took over when the last primary was gone",
        RoleReason::Forced => "made primary by an operator, by force",
        RoleReason::Deposed => "the pool made another replica primary",
        RoleReason::Fenced => "took over after it had fenced the last primary",
        RoleReason::Kept => "its side of a split brain was kept by the volume's policy",
    }
}

/// A link was closed by this side. `left`: by that the replica leaves the in-sync set. `None`:
/// nothing is wrong, and the two meet again at once.
pub(super) fn dropped(
    node: &str,
    left: bool,
    reason: DropReason,
    deadline: Duration,
) -> Option<String> {
    let ms = deadline.as_millis();
    let why = match reason {
        DropReason::Slow => format!("no acknowledgement or no promise for {ms} ms"),
        DropReason::Silent => format!("nothing was heard for {ms} ms"),
        DropReason::StaleTerm => "it acknowledged what this primary never ordered".to_owned(),
        // Told with what waits for it: [`left_behind`].
        DropReason::Ahead => return None,
        DropReason::RoleMoved | DropReason::Leaving => return None,
    };
    Some(gone(node, left, &why))
}

/// The connection to a replica broke.
pub(super) fn lost(node: &str, left: bool) -> String {
    gone(node, left, "its node is down or cannot be reached")
}

fn gone(node: &str, left: bool, why: &str) -> String {
    if left {
        format!("{node} left the in-sync set: {why}")
    } else {
        format!("the connection to {node} was closed: {why}")
    }
}

/// A replica is not taken on.
pub(super) fn refused(node: &str, rule: Rule) -> String {
    let why = match rule {
        Rule::BothWentOn => "it and this replica both went on as primary, a split brain",
        Rule::LaterTerm => "it knows a primary of a later term",
        Rule::Unrelated => "its data has no record in common with this replica's",
        _ => "nothing can be done with what it holds",
    };
    format!("{node} is not taken on: {why} (rule {})", rule.name())
}

/// A brick knows of a later term than the pool gave, as far as this node knows.
pub(super) fn beyond_the_pool(node: &str, theirs: Term, given: Term, volume: &str) -> String {
    format!(
        "the brick of {node} is in term {theirs}, but the pool gave no term after {given} that this \
         node knows of: the pool's state is older than the brick, as after a restore, or the brick \
         is of another time. While nobody serves, `cairn volume stop {volume}`, `cairn volume set \
         {volume} quorum off` and `cairn volume start {volume}` have the bricks decide, of which the \
         last primary goes on; set `majority` again when all replicas are in sync"
    )
}

/// Where the bricks decide: another brick knows of a later primary than this one.
pub(super) fn later_primary(
    (node, theirs, last): (&str, Term, Sequence),
    (own, ours, own_last): (&str, Term, Sequence),
    volume: &str,
) -> String {
    format!(
        "{node} knows of a primary in term {theirs}, up to record {last}, of which {own}, in term \
         {ours} up to record {own_last}, knows nothing: the last primary is another node, or the \
         brick of {own} is an older copy, as after a restore. Start the node that was primary last; \
         if it is gone, `cairn volume promote {volume} {node} --force` has {node} go on"
    )
}

/// The command against a node begins.
pub(super) fn fencing_begins(own: &str, node: &str, serving: bool) -> String {
    if serving {
        format!("{own}, the primary, fences {node}, which is gone, before it goes on without it")
    } else {
        format!("{own} fences {node}, the primary, which is gone, before it takes over")
    }
}

/// It succeeded.
pub(super) fn fenced(node: &str) -> String {
    format!("{node} was fenced: its fence command ended with success")
}

/// It failed.
pub(super) fn not_fenced(node: &str, reason: &str) -> String {
    format!("{node} was not fenced: the fence command failed, {reason}; it is tried again")
}

/// What one side of a split brain has.
pub(crate) fn split_side_text(side: &SplitSideReport) -> String {
    let since = match (&side.primary_since, side.primary_term) {
        (Some(since), Some(term)) => format!(" (primary since {since}, term {term})"),
        (None, Some(term)) => format!(" (primary since term {term})"),
        _ => String::new(),
    };
    format!("{}{since} made {} changes", side.node, side.changes)
}

/// Two sides that both went on since the last common record, and how that ends.
pub(super) fn split_brain(sides: &[SplitSideReport; 2], common: Sequence, end: &str) -> String {
    format!(
        "split brain: after record {common}, the last that both have, {} and {}; {end}",
        split_side_text(&sides[0]),
        split_side_text(&sides[1])
    )
}

/// A policy keeps one side.
pub(super) fn split_settled(kept: &str, given_up: &str, policy: &str) -> String {
    format!(
        "by split-brain-policy {policy} the side of {kept} stays, and {given_up} gives up what it \
         holds alone, and keeps it to be read"
    )
}

/// No policy keeps a side.
pub(super) fn split_undecided(why: Open, policy: &str, volume: &str) -> String {
    format!(
        "by split-brain-policy {policy} an operator decides: {}; `cairn volume split-brain {volume} \
         list`, then `cairn volume split-brain {volume} resolve --keep NODE`",
        split_open(why)
    )
}

/// Why nobody is kept.
pub(super) fn split_open(why: Open) -> &'static str {
    match why {
        Open::Manual => "it keeps nobody by itself",
        Open::PoliciesDiffer => "the two do not know of the same policy yet",
        Open::EqualChanges => "both made as many changes",
        Open::UnknownPrimary => "it is not known of both in which term they became primary",
        Open::EqualPrimary => "both became primary in the same term",
        Open::PreferredElsewhere => "the preferred node is neither of the two",
    }
}

/// Under A more waits for a replica than its queue may hold.
pub(super) fn left_behind(node: &str, bytes: u64, bytes_max: u64) -> String {
    format!(
        "{node} is left behind and catches up later: {bytes} bytes wait for it, and \
         async-queue-max is {bytes_max}"
    )
}

/// A replica that was left behind is in sync.
pub(super) fn caught_up(node: &str) -> String {
    format!("{node} was left behind, has caught up and is in sync again")
}

/// The machine did not do what it was asked for: a line for the log.
pub(super) fn not_done(refusal: &Refusal) {
    tracing::debug!(refusal = refusal.name(), "the machine refused");
}

/// What a replica has after `after` is given up by rule; `worth` says what that may have been.
pub(super) fn tail_given_up(node: &str, count: u64, after: Sequence, worth: &str) -> String {
    format!(
        "{node} gives up {count} operations after record {after}, which this history does not \
         have; {worth}"
    )
}

/// A take-over lost what a client knows to be confirmed.
pub(super) fn operations_lost(lost: u64, term: Term, client: &str, seen: Sequence) -> String {
    format!(
        "{lost} operations that the primary of term {term} had confirmed were lost in the \
         take-over: {client} had seen record {seen}"
    )
}

/// What a replica held alone is kept as a point.
pub(super) fn given_up_kept(node: &str, first: Sequence, last: Sequence, volume: &str) -> String {
    format!(
        "{node} keeps operations {first} to {last}, which the volume gave up; see \
         `cairn volume split-brain {volume} list`"
    )
}

/// An operator had what a replica kept of given-up sides dropped.
pub(super) fn given_up_dropped(node: &str, sides: usize) -> String {
    format!("{node} dropped what it kept of given-up sides, {sides} in number")
}

/// The state before a resync could not be kept to its end.
pub(super) fn point_lost(node: &str, point: u64) -> String {
    format!(
        "{node} can no longer go back to its state before the resync: there is no room to keep it \
         (point {point})"
    )
}

/// A resync does not begin, as `what` cannot be kept.
pub(super) fn needs_room(node: &str, what: &str, why: &str) -> String {
    format!("the resync of {node} waits: {what} cannot be kept, {why}")
}

/// A resync begins although nothing can be kept.
pub(super) fn without_point(node: &str, why: &str) -> String {
    format!("{node} is resynced with no way back, by an operator's word: {why}")
}

/// A replica went back to its state before a resync whose source is gone.
pub(super) fn went_back(node: &str, as_of: &str, lost_min: u64) -> String {
    format!(
        "{node} serves its state as of {as_of}; {lost_min} later operations that the resync was to \
         bring, and whatever its source took besides, are not there"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_goes_is_named_with_the_reason_and_the_time() {
        let deadline = Duration::from_millis(800);
        let dropped = |left, reason| dropped("node2", left, reason, deadline);
        assert_eq!(
            dropped(true, DropReason::Slow).as_deref(),
            Some("node2 left the in-sync set: no acknowledgement or no promise for 800 ms")
        );
        assert_eq!(
            dropped(false, DropReason::Silent).as_deref(),
            Some("the connection to node2 was closed: nothing was heard for 800 ms")
        );
        assert_eq!(dropped(true, DropReason::RoleMoved), None);
        assert_eq!(
            lost("node2", true),
            "node2 left the in-sync set: its node is down or cannot be reached"
        );
    }

    #[test]
    fn a_refusal_says_what_stands_against_it_and_names_its_rule() {
        for rule in [Rule::BothWentOn, Rule::LaterTerm, Rule::Unrelated] {
            let text = refused("node2", rule);
            assert!(text.starts_with("node2 is not taken on: "), "{text}");
            assert!(text.ends_with(&format!("(rule {})", rule.name())), "{text}");
            assert!(!text.contains("nothing can be done"), "{text}");
        }
    }
}
