//! Admission of a node by one-time code, both sides.
//!
//! ```text
//! member (prober)                         stranger (probed)
//!   TLS, no key expected   ───────────►     TLS
//!   Prove(HMAC of the exporter) ──────►     is it my code?
//!   is it my operator's node?  ◄──────    Proven(HMAC of the other role), name, address
//!   Enter(pool, epoch, members) ──────►     code is used; own pool of one is given up
//!   leader: learner, then voter             fed by the leader
//!   Admitted, or Abandon  ────────────►     stays, or is a pool of one again
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::identity::peer_id;
use protocol::ids::{NodeId, PoolId};
use protocol::node_rpc::{
    self, JoinReply, JoinRequest, Member, NodeReply, NodeRequest, Refusal, kind,
};
use protocol::preamble::Purpose;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream as ClientStream;
use tokio_rustls::server::TlsStream as ServerStream;

use super::Node;
use super::client::name_taken;
use super::code::{self, EXPORTER_BYTES, EXPORTER_LABEL, Ends, ProofRole};
use super::refusal::{refuse, refuse_usage};
use super::serve::ServeError;
use crate::config::with_port;
use crate::events::Severity;
use crate::raft::GroupError;
use crate::rpc::{self, CALL_WITHIN, CallError, FrameStream};

/// A prober has to say its next word within this.
const NEXT_WORD_WITHIN: Duration = Duration::from_secs(30);

/// The pool's configuration arrives with the next heartbeats.
const APPLIED_WITHIN: Duration = Duration::from_secs(3);

/// What a probe did.
#[derive(Debug)]
pub(crate) struct Probed {
    pub(crate) id: NodeId,
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) was_member: bool,
}

/// Where the probed side stands in the conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Unproven,
    Proven,
    Entered,
    Admitted,
}

impl Node {
    /// Admits the node at `address`.
    pub(crate) async fn probe(
        &self,
        address: &str,
        code: Option<&str>,
        voter: bool,
    ) -> Result<Probed, Refusal> {
        let address = with_port(address)
            .map_err(|error| refuse_usage("address", error, "For example: `node2`."))?;
        let connecting = rpc::connect(&self.identity, &address, None, Purpose::Join);
        let stream = match tokio::time::timeout(CALL_WITHIN, connecting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(unreachable(&error)),
            Err(_) => {
                return Err(unreachable(&format!("{address} does not answer")));
            }
        };
        let id = peer_id(stream.get_ref().1.peer_certificates())
            .map_err(|error| refuse("probe", error, "Is that a cairn daemon?"))?;
        if id == self.id {
            return Err(refuse(
                "probe_self",
                format!("{address} is this node itself"),
                "Probe the other node from here, or this one from there.",
            ));
        }
        if let Some(member) = self.pool.member(id) {
            return Ok(Probed {
                id,
                name: member.name,
                address: member.address,
                was_member: true,
            });
        }
        let key = code.and_then(code::key_of).ok_or_else(|| match code {
            None => refuse(
                "code_missing",
                format!(
                    "the node at {address} is not a member, and its one-time code was not given"
                ),
                "Run `cairn peer code` there, then probe again with `--code CODE`.",
            ),
            Some(_) => wrong_code(),
        })?;
        let probe = Probe {
            node: self,
            address,
            id,
            key,
            voter,
        };
        probe.run(stream).await
    }

    /// Makes the others' way to this node certain, before the first of them has to find it.
    async fn settle_address(&self, observed: &str) {
        let provisional = self.own_member().address;
        let alone = self.pool.others().is_empty();
        let current = self.pool.member(self.id).map(|member| member.address);
        if self.advertise().is_some() || !alone || current.as_deref() != Some(&provisional) {
            return;
        }
        let Ok(ip) = observed.parse::<IpAddr>() else {
            return;
        };
        let request = NodeRequest::SetAddress {
            node: self.id,
            address: std::net::SocketAddr::new(ip, self.listen.port()).to_string(),
        };
        if let Err(refusal) = self.pool.change_members(&request).await {
            tracing::warn!(%refusal, "this node's address is not settled");
        }
    }

    /// Whether this node may be admitted to another pool, or why not.
    pub(crate) fn check_fresh(&self) -> Result<(), Refusal> {
        let state = self.pool.state();
        if state.entering || (state.members.len() <= 1 && state.volumes.is_empty()) {
            return Ok(());
        }
        let message = if state.members.len() > 1 {
            "it belongs to a pool of several nodes already"
        } else {
            "it is a pool of its own with volumes"
        };
        Err(refuse(
            "other_pool",
            message,
            "End its membership there first: `cairn peer leave`.",
        ))
    }

    /// The probed side of a connection.
    pub(crate) async fn serve_join(
        self: &Arc<Self>,
        stream: ServerStream<TcpStream>,
        prober: NodeId,
        observed: IpAddr,
    ) -> Result<(), ServeError> {
        let Ok(_one) = self.moving.try_lock() else {
            let refusal = refuse(
                "busy",
                "it is being admitted or is leaving just now",
                "Try again in a few seconds.",
            );
            let mut stream = FrameStream::new(stream);
            stream.read().await?;
            let frame = node_rpc::encode(kind::REPLY, &JoinReply::Error(refusal))?;
            return Ok(stream.write(&frame).await?);
        };
        let mut exporter = [0; EXPORTER_BYTES];
        if stream
            .get_ref()
            .1
            .export_keying_material(&mut exporter, EXPORTER_LABEL, None)
            .is_err()
        {
            return Err(std::io::Error::other("TLS has no exporter").into());
        }
        let mut stream = FrameStream::new(stream);
        let mut stage = Stage::Unproven;
        loop {
            let Ok(read) = tokio::time::timeout(NEXT_WORD_WITHIN, stream.read()).await else {
                break;
            };
            let Ok(Some(frame)) = read else {
                break;
            };
            let request: JoinRequest = node_rpc::decode(kind::REQUEST, &frame)?;
            let (next, reply) = self
                .join_step(stage, request, prober, &exporter, observed)
                .await;
            stage = next;
            let failed = matches!(reply, JoinReply::Error(_));
            let frame = node_rpc::encode(kind::REPLY, &reply)?;
            stream.write(&frame).await?;
            if failed {
                break;
            }
        }
        // The prober vanished in the middle: without the first entry of the pool nobody feeds
        // this node, and it would be lost to both.
        if stage == Stage::Entered && self.pool.state().entering {
            self.become_fresh("the admission was not completed").await;
        }
        Ok(())
    }

    async fn join_step(
        &self,
        stage: Stage,
        request: JoinRequest,
        prober: NodeId,
        exporter: &[u8],
        observed: IpAddr,
    ) -> (Stage, JoinReply) {
        let done = match (stage, request) {
            (Stage::Unproven, JoinRequest::Prove { proof }) => self
                .check_proof(prober, exporter, &proof, observed)
                .map(|reply| (Stage::Proven, reply)),
            (
                Stage::Proven,
                JoinRequest::Enter {
                    pool,
                    epoch,
                    members,
                    far,
                },
            ) => self
                .enter_pool(prober, pool, epoch, members, far)
                .await
                .map(|()| (Stage::Entered, JoinReply::Ok {})),
            (Stage::Entered, JoinRequest::Abandon {}) => {
                self.become_fresh("the admission failed").await;
                Ok((Stage::Unproven, JoinReply::Ok {}))
            }
            (Stage::Entered, JoinRequest::Admitted {}) => {
                self.wait_entered().await;
                Ok((Stage::Admitted, JoinReply::Ok {}))
            }
            _ => Err(refuse(
                "out_of_order",
                "the prober's words are out of order",
                "Run the same version of cairn on both nodes.",
            )),
        };
        done.unwrap_or_else(|refusal| (stage, JoinReply::Error(refusal)))
    }

    /// The entry that admits this node is agreed on; it becomes known here with the next
    /// heartbeat. Waiting for it makes commands on this node work when the probe has returned.
    async fn wait_entered(&self) {
        let mut state = self.pool.subscribe();
        let entered = state.wait_for(|state| !state.entering);
        if tokio::time::timeout(APPLIED_WITHIN, entered).await.is_err() {
            tracing::warn!("the pool's configuration is slow to arrive");
        }
    }

    fn check_proof(
        &self,
        prober: NodeId,
        exporter: &[u8],
        proof: &str,
        observed: IpAddr,
    ) -> Result<JoinReply, Refusal> {
        self.check_fresh()?;
        let ends = Ends {
            prober,
            probed: self.id,
        };
        let mut code = self.code.lock();
        let current = code
            .as_mut()
            .filter(|code| code.valid(Instant::now()))
            .ok_or_else(wrong_code)?;
        if !current.check(exporter, ends, proof) {
            tracing::warn!(%prober, "a probe with a wrong code was refused");
            return Err(wrong_code());
        }
        Ok(JoinReply::Proven {
            proof: current.prove(exporter, ends),
            name: self.name.clone(),
            address: self.advertise(),
            observed: observed.to_string(),
        })
    }

    async fn enter_pool(
        &self,
        prober: NodeId,
        pool: PoolId,
        epoch: u64,
        members: BTreeMap<NodeId, Member>,
        far: bool,
    ) -> Result<(), Refusal> {
        // Used from here on, whatever comes next.
        if self.code.lock().take().is_none() {
            return Err(wrong_code());
        }
        if !members.contains_key(&prober) || pool.is_none() {
            return Err(refuse(
                "not_member",
                "the prober is not a member of the pool that it names",
                "Run the same version of cairn on both nodes.",
            ));
        }
        if far {
            self.pool.group().expect_long_links();
        }
        let text = format!("this node is being admitted to pool {}", pool.short());
        self.enter(pool, epoch, members, Severity::Info, "entering_pool", &text)
            .await
    }

    /// Takes the group's place from `members`, durably, and records why.
    pub(super) async fn enter(
        &self,
        pool: PoolId,
        epoch: u64,
        members: BTreeMap<NodeId, Member>,
        severity: Severity,
        kind: &str,
        text: &str,
    ) -> Result<(), Refusal> {
        self.pool
            .group()
            .enter(pool, epoch, members)
            .await
            .map_err(|error| group_failed(&error))?;
        self.events.record(severity, kind, None, text);
        Ok(())
    }

    /// Ends membership on this node's side: a pool of one, without volumes.
    pub(crate) async fn become_fresh(&self, why: &str) {
        match self.pool.group().found(&self.own_member()).await {
            Ok(()) => self.events.record(
                Severity::Warning,
                "left_pool",
                None,
                &format!("this node is in no pool of others any more: {why}"),
            ),
            Err(error) => self.events.record(
                Severity::Error,
                "left_pool",
                None,
                &format!("this node cannot become fresh: {error}"),
            ),
        }
    }
}

/// The prober's side after the handshake.
struct Probe<'n> {
    node: &'n Node,
    address: String,
    id: NodeId,
    key: code::CodeKey,
    voter: bool,
}

impl Probe<'_> {
    async fn say(
        &self,
        stream: &mut FrameStream<ClientStream<TcpStream>>,
        request: &JoinRequest,
    ) -> Result<JoinReply, Refusal> {
        let work = rpc::exchange(stream, &self.address, request);
        match tokio::time::timeout(CALL_WITHIN, work).await {
            Ok(Ok(JoinReply::Error(refusal))) => Err(Refusal {
                message: format!("{} refuses: {}", self.address, refusal.message),
                ..refusal
            }),
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(error)) => Err(unreachable(&error)),
            Err(_) => Err(unreachable(&format!("{} went silent", self.address))),
        }
    }

    async fn run(&self, stream: ClientStream<TcpStream>) -> Result<Probed, Refusal> {
        let mut exporter = [0; EXPORTER_BYTES];
        stream
            .get_ref()
            .1
            .export_keying_material(&mut exporter, EXPORTER_LABEL, None)
            .map_err(|error| unreachable(&error))?;
        let ends = Ends {
            prober: self.node.id,
            probed: self.id,
        };
        let mut stream = FrameStream::new(stream);
        let prove = JoinRequest::Prove {
            proof: code::prove(&self.key, ProofRole::Prober, &exporter, ends),
        };
        let asked = Instant::now();
        let JoinReply::Proven {
            proof,
            name,
            address,
            observed,
        } = self.say(&mut stream, &prove).await?
        else {
            return Err(wrong_code());
        };
        let trip = asked.elapsed();
        if !code::verify(&self.key, ProofRole::Probed, &exporter, ends, &proof) {
            return Err(refuse(
                "impostor",
                format!("whoever answers at {} does not know the code", self.address),
                "Check the address: somebody may stand between the nodes.",
            ));
        }
        let member = Member {
            name,
            address: address.unwrap_or_else(|| self.address.clone()),
        };
        if self.node.pool.state().member_named(&member.name).is_some() {
            return Err(name_taken(&member.name));
        }
        self.node.settle_address(&observed).await;
        self.admit(&mut stream, member, trip).await
    }

    async fn admit(
        &self,
        stream: &mut FrameStream<ClientStream<TcpStream>>,
        member: Member,
        trip: Duration,
    ) -> Result<Probed, Refusal> {
        let state = self.node.pool.state();
        let mut members = self.node.pool.group().members();
        members.insert(self.id, member.clone());
        let enter = JoinRequest::Enter {
            pool: state.pool,
            epoch: state.epoch,
            members,
            far: self.node.pool.group().looks_far(trip),
        };
        self.say(stream, &enter).await?;
        let request = NodeRequest::Admit {
            node: self.id,
            member: member.clone(),
            voter: self.voter,
        };
        if let Err(refusal) = self.node.pool.change_members(&request).await {
            self.undo(stream).await;
            return Err(refusal);
        }
        // The node is in; that it hears so last is a courtesy.
        let _ = self.say(stream, &JoinRequest::Admitted {}).await;
        self.node.events.record(
            Severity::Info,
            "node_admitted",
            None,
            &format!("{} at {} is in the pool", member.name, member.address),
        );
        Ok(Probed {
            id: self.id,
            name: member.name,
            address: member.address,
            was_member: false,
        })
    }

    /// Best effort: what cannot be undone here is seen in `peer status` and ended by
    /// `peer detach`.
    async fn undo(&self, stream: &mut FrameStream<ClientStream<TcpStream>>) {
        let expel = NodeRequest::Expel {
            node: self.id,
            force: false,
        };
        if self.node.pool.member(self.id).is_some()
            && let Err(refusal) = self.node.pool.change_members(&expel).await
        {
            tracing::warn!(%refusal, "a failed admission is not undone in the pool");
        }
        if let Err(refusal) = self.say(stream, &JoinRequest::Abandon {}).await {
            tracing::warn!(%refusal, "a failed admission is not undone on the probed node");
        }
    }
}

fn wrong_code() -> Refusal {
    refuse(
        "wrong_code",
        "the one-time code is wrong, used or expired",
        "Run `cairn peer code` on the node that shall be admitted, and use its last word.",
    )
}

fn unreachable(error: &impl std::fmt::Display) -> Refusal {
    refuse(
        "unreachable",
        error,
        "Is the daemon running there, and is its port open?",
    )
}

pub(crate) fn group_failed(error: &GroupError) -> Refusal {
    refuse("pool", error, "Look at the daemon's log.")
}

/// Asks a member something that may be asked twice; `None` when it does not answer.
pub(crate) async fn ask_member(
    node: &Node,
    id: NodeId,
    address: &str,
    request: &NodeRequest,
    within: Duration,
) -> Option<NodeReply> {
    match node.clients.call(id, address, request, within).await {
        Ok(reply) => Some(reply),
        Err(CallError::Timeout { .. } | CallError::Connect { .. }) => None,
        Err(error) => {
            tracing::debug!(%id, %error, "a member did not answer");
            None
        }
    }
}
