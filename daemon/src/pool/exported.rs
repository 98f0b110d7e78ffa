//! Commands about disks that are served by NBD: sent to the node that serves them.

use std::sync::Arc;

use protocol::ids::{NodeId, VolumeId};
use protocol::node_rpc::{NodeReply, NodeRequest, Refusal};
use protocol::volume::VolumeSpec;

use super::Node;
use super::members::member_of;
use super::refusal::refuse;
use super::volumes::volume_of;
use crate::rpc::CALL_WITHIN;

impl Node {
    /// The volume, and the node that is meant: the one of that name, or this one.
    fn meant(&self, name: &str, node: Option<&str>) -> Result<(VolumeSpec, NodeId), Refusal> {
        let state = self.pool.state();
        let spec = volume_of(&state, name)?;
        let node = match node {
            Some(node) => member_of(&state, node)?.0,
            None => self.id,
        };
        Ok((spec, node))
    }

    /// Serves a volume's disk at an address of a node; the facts about it.
    pub(crate) async fn export_volume(
        self: &Arc<Self>,
        name: &str,
        nbd: String,
        node: Option<&str>,
        insecure: bool,
    ) -> Result<serde_json::Value, Refusal> {
        let (spec, node) = self.meant(name, node)?;
        let request = NodeRequest::Export {
            volume: spec.id,
            nbd,
            insecure,
        };
        self.outcome_at(node, &request).await
    }

    /// Serves it no more; a sentence.
    pub(crate) async fn unexport_volume(
        self: &Arc<Self>,
        name: &str,
        nbd: Option<String>,
        node: Option<&str>,
    ) -> Result<String, Refusal> {
        let (spec, at) = self.meant(name, node)?;
        let request = NodeRequest::Unexport {
            volume: spec.id,
            nbd,
        };
        let value = self.outcome_at(at, &request).await?;
        let node = value["node"].as_str().unwrap_or_default();
        match value["unexported"].as_u64() {
            Some(0) | None => Err(refuse(
                "not_exported",
                format!("{node} does not serve volume `{name}` there"),
                "Name the node that does with `--node`, and the address as it was given.",
            )),
            Some(_) => Ok(format!("{node} serves volume `{name}` no more")),
        }
    }

    async fn outcome_at(
        self: &Arc<Self>,
        node: NodeId,
        request: &NodeRequest,
    ) -> Result<serde_json::Value, Refusal> {
        match self.ask_node(node, request, CALL_WITHIN).await? {
            NodeReply::Outcome { value } => Ok(value),
            _ => Err(refuse(
                "version",
                "the node's answer is not understood",
                "Run the same version of cairn on all nodes.",
            )),
        }
    }

    /// Serves a disk here.
    pub(super) async fn export(
        &self,
        volume: VolumeId,
        nbd: &str,
        insecure: bool,
    ) -> Result<NodeReply, Refusal> {
        let state = self.pool.state();
        let Some(spec) = state.volumes.get(&volume) else {
            return Err(refuse(
                "behind",
                "this node does not know the volume yet",
                "Try again; look at `cairn peer status`.",
            ));
        };
        let value = self.exports.add(spec, nbd, insecure).await?;
        Ok(NodeReply::Outcome { value })
    }

    /// Serves it here no more.
    pub(super) async fn unexport(
        &self,
        volume: VolumeId,
        nbd: Option<&str>,
    ) -> Result<NodeReply, Refusal> {
        let gone = self.exports.remove(volume, nbd).await?;
        Ok(NodeReply::Outcome {
            value: serde_json::json!({ "node": self.name, "unexported": gone }),
        })
    }
}
