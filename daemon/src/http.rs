//! HTTP for machines that watch: health, metrics, status. Read-only and without identity, so on
//! loopback it serves everything, elsewhere only whether the node and its volumes serve.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use protocol::report::{DiskState, Health, NodeState, PoolStatus, ReplicaRole};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::pool::Node;

/// Connections at once; at the limit the next waits in the kernel.
const CONNECTIONS_MAX: usize = 64;
/// Headers have to be there within this.
const HEADERS_WITHIN: Duration = Duration::from_secs(5);
/// A connection lives no longer.
const CONNECTION_MAX: Duration = Duration::from_secs(60);

type Answer = Response<Full<Bytes>>;

/// Serves until the task is ended. `full`: also what names nodes and volumes.
pub(crate) async fn serve(node: Arc<Node>, listener: TcpListener, full: bool) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let node = Arc::clone(&node);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let node = Arc::clone(&node);
                async move { Ok::<_, Infallible>(answer(&node, &request, full).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADERS_WITHIN)
                .max_buf_size(16 << 10)
                .serve_connection(TokioIo::new(stream), service);
            // What a stranger did wrong is its own affair.
            let _ = tokio::time::timeout(CONNECTION_MAX, connection).await;
            drop(place);
        });
    }
}

/// Whether everything may be served at this address.
pub(crate) fn is_full(address: SocketAddr, asked: bool) -> bool {
    asked || address.ip().is_loopback()
}

fn text(status: StatusCode, body: impl Into<String>) -> Answer {
    typed(status, "text/plain; charset=utf-8", body.into())
}

fn typed(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

fn json(value: &impl serde::Serialize) -> Answer {
    match serde_json::to_string(value) {
        Ok(body) => typed(StatusCode::OK, "application/json", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

async fn answer(node: &Arc<Node>, request: &Request<Incoming>, full: bool) -> Answer {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "read-only\n");
        answer
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return answer;
    }
    match request.uri().path() {
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" => ready(node).await,
        path if path.starts_with("/healthz/") => volume_health(node, &path[9..]).await,
        _ if !full => text(StatusCode::NOT_FOUND, "not found\n"),
        "/metrics" => typed(
            StatusCode::OK,
            "text/plain; version=0.0.4; charset=utf-8",
            metrics(&node.name, &node.pool_status().await),
        ),
        "/api/v1/status" => json(&node.pool_status().await),
        "/api/v1/events" => json(&serde_json::json!({ "events": node.events.follow().0 })),
        "/" => typed(StatusCode::OK, "text/html; charset=utf-8", page(node).await),
        _ => text(StatusCode::NOT_FOUND, "not found\n"),
    }
}

/// Ready: member of a pool, and each replica that shall run here runs.
async fn ready(node: &Arc<Node>) -> Answer {
    if node.pool.state().entering {
        return text(StatusCode::SERVICE_UNAVAILABLE, "entering a pool\n");
    }
    let failed = node
        .volumes
        .reports(None)
        .await
        .into_iter()
        .any(|report| report.disk == DiskState::Failed);
    if failed {
        return text(StatusCode::SERVICE_UNAVAILABLE, "a replica failed\n");
    }
    text(StatusCode::OK, "ok\n")
}

/// 200 while the volume serves, degraded or not.
async fn volume_health(node: &Arc<Node>, name: &str) -> Answer {
    match node.volumes_status(Some(name)).await.first() {
        None => text(StatusCode::NOT_FOUND, "no such volume\n"),
        Some(volume) => match volume.health {
            Health::Healthy => text(StatusCode::OK, "healthy\n"),
            Health::Degraded => text(StatusCode::OK, "degraded\n"),
            Health::Unavailable => text(StatusCode::SERVICE_UNAVAILABLE, "unavailable\n"),
        },
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// The console page: what `cairn status` says, without scripts.
async fn page(node: &Arc<Node>) -> String {
    let status = node.pool_status().await;
    let mut rows = String::new();
    for volume in &status.volumes {
        let _ = writeln!(
            rows,
            "<tr><td>{}<td>{:?}<td>{}<td>{}",
            escaped(&volume.name),
            volume.health,
            escaped(volume.primary.as_deref().unwrap_or("none")),
            escaped(volume.reason.as_deref().unwrap_or(""))
        );
    }
    let mut nodes = String::new();
    for peer in &status.nodes {
        let _ = writeln!(
            nodes,
            "<tr><td>{}<td>{}<td>{:?}<td>{}",
            escaped(&peer.name),
            escaped(&peer.address),
            peer.state,
            if peer.voter { "votes" } else { "" }
        );
    }
    format!(
        "<!doctype html><meta charset=utf-8><meta http-equiv=refresh content=5><title>Cairn</title>\
         <style>body{{font-family:sans-serif;margin:2em}}td,th{{padding:.2em 1em;text-align:left}}</style>\
         <h1>Cairn on {}</h1><p>The pool is {:?}.\
         <h2>Volumes</h2><table><tr><th>volume<th>health<th>primary<th>reason{rows}</table>\
         <h2>Nodes</h2><table><tr><th>node<th>address<th>state<th>{nodes}</table>",
        escaped(&node.name),
        status.health
    )
}

fn label(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// One family of metrics in Prometheus' text form.
fn family(out: &mut String, name: &str, help: &str, samples: &[(String, f64)]) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge");
    for (labels, value) in samples {
        let _ = writeln!(out, "{name}{{{labels}}} {value}");
    }
}

fn flag(set: bool) -> f64 {
    if set { 1.0 } else { 0.0 }
}

// Counts of bytes beyond 2^53 lose their last digits, which no graph shows.
#[allow(clippy::cast_precision_loss, reason = "Prometheus values are doubles")]
fn number(value: u64) -> f64 {
    value as f64
}

fn metrics(node: &str, status: &PoolStatus) -> String {
    let mut out = String::new();
    let me = format!("node=\"{}\"", label(node));
    let up: Vec<_> = status
        .nodes
        .iter()
        .map(|peer| {
            let labels = format!("peer=\"{}\"", label(&peer.name));
            (labels, flag(peer.state == NodeState::Connected))
        })
        .collect();
    family(&mut out, "cairn_peer_up", "Whether the node answers.", &up);
    let quorum = [(me, flag(status.quorum))];
    let help = "Whether a majority of the voters is connected.";
    family(&mut out, "cairn_pool_quorum", help, &quorum);
    let mut health = Vec::new();
    let mut used = Vec::new();
    let mut clients = Vec::new();
    let mut up_to_date = Vec::new();
    let mut primary = Vec::new();
    let mut out_of_sync = Vec::new();
    let mut lag = Vec::new();
    for volume in &status.volumes {
        let of = format!("volume=\"{}\"", label(&volume.name));
        health.push((of.clone(), flag(volume.health != Health::Unavailable)));
        clients.push((of.clone(), number(volume.clients.len() as u64)));
        if let Some(bytes) = volume.used_bytes {
            used.push((of.clone(), number(bytes)));
        }
        for replica in &volume.replicas {
            let labels = format!("{of},replica=\"{}\"", label(&replica.node));
            let current = replica.disk == DiskState::UpToDate;
            up_to_date.push((labels.clone(), flag(current)));
            let leads = replica.role == Some(ReplicaRole::Primary);
            primary.push((labels.clone(), flag(leads)));
            if let Some(bytes) = replica.out_of_sync_bytes {
                out_of_sync.push((labels.clone(), number(bytes)));
            }
            if let Some(bytes) = replica.lag_bytes {
                lag.push((labels, number(bytes)));
            }
        }
    }
    for (name, help, samples) in [
        ("cairn_volume_serving", "Whether the volume serves.", health),
        (
            "cairn_volume_used_bytes",
            "Bytes in use at the primary.",
            used,
        ),
        ("cairn_volume_clients", "Mounted clients.", clients),
        (
            "cairn_replica_up_to_date",
            "Whether the replica's data is current.",
            up_to_date,
        ),
        (
            "cairn_replica_primary",
            "Whether the replica is primary.",
            primary,
        ),
        (
            "cairn_replica_out_of_sync_bytes",
            "Bytes that differ or may differ.",
            out_of_sync,
        ),
        (
            "cairn_replica_lag_bytes",
            "Bytes of the confirmed order that it lacks.",
            lag,
        ),
    ] {
        family(&mut out, name, help, &samples);
    }
    out
}
