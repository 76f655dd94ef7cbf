//! What the tests assume about the program: arguments, the ready line, the ops API's JSON and metric names.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Metric names.
pub mod metric {
    /// Living origins that a process knows.
    pub const ORIGINS: &str = "shoal_origins";
    /// Payload bytes sent to peers.
    pub const SENT_BYTES: &str = "shoal_served_bytes_total";
    /// Verified payload bytes; label [`FROM_BACKEND`] or another source.
    pub const RECEIVED_BYTES: &str = "shoal_received_bytes_total";
    /// The label of [`RECEIVED_BYTES`] and its value for the process's own backend.
    pub const FROM_BACKEND: (&str, &str) = ("source", "backend");
    /// Manifests that were answered with the newest known; the answers have the header [`STALE`].
    pub const STALE_ANSWERS: &str = "shoal_gateway_stale_total";
    /// What marks such an answer, with the value `true`.
    pub const STALE: &str = "shoal-stale";
    /// What waits to be written to an origin's backends.
    pub const QUEUE: &str = "shoal_backend_queue";
    /// Bytes read from an origin's backends.
    pub const BACKEND_READ: &str = "shoal_backend_read_bytes_total";
    /// Peers dropped; label [`DROPPED_WHY`].
    pub const PEERS_DROPPED: &str = "shoal_peers_dropped_total";
    /// The label of [`PEERS_DROPPED`] and its value for a corrupt piece.
    pub const DROPPED_WHY: (&str, &str) = ("reason", "corrupt_piece");
    /// Pieces that did not have their hash.
    pub const PIECES_CORRUPT: &str = "shoal_pieces_corrupt_total";
    /// Handshakes refused and members disconnected; label [`REJECTION`] tells why.
    pub const REJECTED: &str = "shoal_handshakes_rejected_total";
    /// The label of [`REJECTED`].
    pub const REJECTION: &str = "rejection";
    /// The counts of strangers and garbage of the control and the data plane.
    pub const STRANGERS: [(&str, &str); 2] =
        [("control", "shoal_control_inbound_failed_total"), ("data", "shoal_data_handshakes_failed_total")];
    /// Whether an origin holds all records it should.
    pub const SETTLED: &str = "shoal_records_settled";
    /// The ports of the ready line, in this order: `listen`, `data`, `gateway`, `ops`.
    pub const PORTS: [&str; 4] = ["control", "data", "gateway", "ops"];
}

/// Arguments of `shoal mesh init`.
pub fn mesh_init(dir: &str) -> Vec<String> {
    words(&["mesh", "init", "--dir", dir])
}

/// Arguments of `shoal credential issue`.
pub fn credential_issue(mesh_key: &str, roles: &str, zone: &str, out: &str) -> Vec<String> {
    words(&["credential", "issue", "--mesh-key", mesh_key, "--roles", roles, "--zone", zone, "--out", out])
}

/// Arguments of `shoal dev`.
pub fn dev(gateways: usize, data_dir: &str, port: u16) -> Vec<String> {
    let (gateways, port) = (gateways.to_string(), port.to_string());
    words(&["dev", "--gateways", &gateways, "--data-dir", data_dir, "--port", &port, "--ops-port", "0"])
}

/// Arguments of `shoal put`, which pushes a file through a daemon and prints its digest.
pub fn put(file: &str, ops: SocketAddr) -> Vec<String> {
    words(&["put", file, "--ops", &ops.to_string()])
}

/// Arguments of `shoal why`.
pub fn why(what: &str, ops: SocketAddr, json: bool) -> Vec<String> {
    let mut args = words(&["why", what, "--ops", &ops.to_string()]);
    args.extend(json.then(|| "--json".to_owned()));
    args
}

/// Arguments of `shoal get`.
pub fn get(what: &str, file: &str, ops: SocketAddr) -> Vec<String> {
    words(&["get", what, "-o", file, "--ops", &ops.to_string()])
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// What a daemon says when it is ready.
#[derive(Clone, Debug)]
pub struct Ready {
    /// Its peer id.
    pub peer: String,
    /// Its control-plane address, with its peer id at the end: what others bootstrap from.
    pub listen: String,
    /// Its data-plane address.
    pub data: SocketAddr,
    /// The OCI API.
    pub gateway: Option<SocketAddr>,
    /// The ops API.
    pub ops: Option<SocketAddr>,
}

impl Ready {
    /// Parses the ready line; `None` for any other line.
    ///
    /// # Errors
    /// When it is a ready line and a field is missing or malformed.
    pub fn parse(line: &str) -> Result<Option<Self>> {
        let Some(rest) = line.strip_prefix("ready ") else { return Ok(None) };
        let fields: BTreeMap<_, _> =
            rest.split_whitespace().filter_map(|word| word.split_once('=')).collect();
        let field = |name: &str| fields.get(name).copied().with_context(|| format!("no {name} in: {line}"));
        let optional = |name: &str| -> Result<Option<SocketAddr>> {
            match field(name)? {
                "-" => Ok(None),
                text => Ok(Some(text.parse().with_context(|| format!("{name}={text} is no address"))?)),
            }
        };
        let peer = field("peer")?.to_owned();
        let mut listen = field("listen")?.to_owned();
        if !listen.contains("/p2p/") {
            listen += &format!("/p2p/{peer}");
        }
        let data = field("data")?;
        let data = if data == "-" { SocketAddr::from(([127, 0, 0, 1], 0)) } else { data.parse()? };
        Ok(Some(Self { peer, listen, data, gateway: optional("gateway")?, ops: optional("ops")? }))
    }

    /// Every port that it listens on, in the order of [`metric::PORTS`].
    ///
    /// # Errors
    /// When `listen` is not `/ip4/…/tcp/…`.
    pub fn ports(&self) -> Result<Vec<(&'static str, SocketAddr)>> {
        let parts: Vec<_> = self.listen.split('/').collect();
        let ["", "ip4", ip, "tcp", port, ..] = parts.as_slice() else {
            bail!("listen={} is not /ip4/…/tcp/…", self.listen)
        };
        let [control, data, gateway, ops] = metric::PORTS;
        let mut all = vec![(control, format!("{ip}:{port}").parse()?)];
        all.extend((self.data.port() != 0).then_some((data, self.data)));
        all.extend(self.gateway.map(|addr| (gateway, addr)));
        all.extend(self.ops.map(|addr| (ops, addr)));
        Ok(all)
    }
}

/// A row of `/api/v1/swarms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwarmRow {
    /// Verified pieces here.
    pub pieces_have: u64,
    /// Pieces of the blob.
    pub pieces_total: u64,
}

/// The row of a blob in the answer of `/api/v1/swarms`: a list, or an object with the list under `swarms`.
pub fn swarm_of(answer: &Value, digest: &str) -> Option<SwarmRow> {
    let row = row_of(answer, "swarms", digest)?;
    Some(SwarmRow { pieces_have: row["pieces_have"].as_u64()?, pieces_total: row["pieces_total"].as_u64()? })
}

/// Where a blob's bytes came from, out of `/api/v1/pulls`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// By the sender's peer id.
    pub peers: BTreeMap<String, u64>,
    /// From this process's own backend.
    pub backend: u64,
    /// Read by clients here when all was here already.
    pub local: u64,
}

/// The row of a blob in the answer of `/api/v1/pulls`: `{digest, peers: {id: {zone, bytes, pieces}}, backend_bytes,
/// local_bytes, …}`, in a list, or in an object with the list under `pulls`.
pub fn sources_of(answer: &Value, digest: &str) -> Option<Sources> {
    let row = row_of(answer, "pulls", digest)?;
    let peers = row["peers"].as_object().into_iter().flatten();
    Some(Sources {
        peers: peers.filter_map(|(id, share)| Some((id.clone(), share["bytes"].as_u64()?))).collect(),
        backend: row["backend_bytes"].as_u64().unwrap_or_default(),
        local: row["local_bytes"].as_u64().unwrap_or_default(),
    })
}

fn row_of<'a>(answer: &'a Value, under: &str, digest: &str) -> Option<&'a Value> {
    let rows = answer.as_array().or_else(|| answer[under].as_array())?;
    // The newest row of a blob that was pulled twice comes first.
    rows.iter().find(|row| row["digest"] == digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_lines() {
        let line = "ready peer=12D3KooW listen=/ip4/127.0.0.1/tcp/4001 data=127.0.0.1:4002 gateway=- ops=127.0.0.1:7070";
        let ready = Ready::parse(line).unwrap().unwrap();
        assert_eq!(ready.listen, "/ip4/127.0.0.1/tcp/4001/p2p/12D3KooW");
        assert_eq!(ready.gateway, None);
        assert_eq!(ready.ports().unwrap().len(), 3);
        assert!(Ready::parse("hello").unwrap().is_none());
        assert!(Ready::parse("ready peer=x").is_err());
    }
}
