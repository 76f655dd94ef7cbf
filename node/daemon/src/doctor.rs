//! `shoal doctor`, as far as a running daemon can tell: each check says what it found and, where that is not well, what to
//! do.

mod mesh;
mod storage;

pub(crate) use mesh::{examine_for, tell_time};
pub use storage::disk;

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shoal_types::{Credential, Role, WallTime};
use tokio::net::TcpStream;

use crate::node::Node;

/// How long one connection may take: two TCP retransmissions and a slow resolver.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The share of a credential's lifetime that should be left: origins renew at a third.
const LIFETIME_LEFT_MIN: u32 = 6;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Nothing to check here.
    Skip,
    /// As it should be.
    Ok,
    /// It works, and somebody should look at it.
    Warn,
    /// It does not work.
    Fail,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The check, such as `clock`.
    pub check: String,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found, with figures.
    pub detail: String,
    /// What to do; there for `Warn` and `Fail`.
    pub remedy: Option<String>,
}

impl Finding {
    /// Nothing to check.
    pub fn skip(check: &str, detail: impl Into<String>) -> Self {
        Self { check: check.to_owned(), verdict: Verdict::Skip, detail: detail.into(), remedy: None }
    }

    /// All is well.
    pub fn ok(check: &str, detail: impl Into<String>) -> Self {
        Self { check: check.to_owned(), verdict: Verdict::Ok, detail: detail.into(), remedy: None }
    }

    /// It works, but.
    pub fn warn(check: &str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (detail, remedy) = (detail.into(), Some(remedy.into()));
        Self { check: check.to_owned(), verdict: Verdict::Warn, detail, remedy }
    }

    /// It does not work.
    pub fn fail(check: &str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (detail, remedy) = (detail.into(), Some(remedy.into()));
        Self { check: check.to_owned(), verdict: Verdict::Fail, detail, remedy }
    }
}

/// Examines a running node: takes up to half a minute, writes and deletes some megabytes in its data directory, and a
/// small blob in each of its backends.
pub async fn examine(node: &Node) -> Vec<Finding> {
    let (bootstrap, mesh, gateway, storage) =
        tokio::join!(bootstrap(node), mesh::examine(node), gateway(node), storage::examine(node));
    let mut findings = vec![credential(node.identity().credential.value(), node.clock().wall())];
    findings.extend(bootstrap);
    findings.extend(mesh);
    findings.extend(gateway);
    findings.extend(storage);
    findings
}

fn credential(credential: &Credential, now: WallTime) -> Finding {
    const CHECK: &str = "credential";
    let left = credential.not_after.saturating_since(now);
    let life = credential.not_after.saturating_since(credential.not_before);
    let what = format!(
        "{} in zone {}, good for {} more days",
        credential.roles,
        credential.zone,
        left.as_secs() / 86_400
    );
    let renew = "issue another one (shoal credential issue) into its directory, or let origins renew it: a renewal-key at \
                 an origin";
    if left.is_zero() {
        return Finding::fail(CHECK, "it has expired: other members refuse this process", renew);
    }
    if left < life / LIFETIME_LEFT_MIN {
        return Finding::warn(CHECK, format!("{what}, and nobody has renewed it"), renew);
    }
    Finding::ok(CHECK, what)
}

/// Whether the doors into the mesh open.
async fn bootstrap(node: &Node) -> Vec<Finding> {
    const CHECK: &str = "bootstrap";
    let connected = node.control().status().await.map_or(0, |status| status.peers.len());
    let doors = &node.config().bootstrap;
    if doors.is_empty() {
        let detail = format!("no bootstrap peers are set; {connected} members are connected");
        return vec![Finding::skip(CHECK, detail)];
    }
    let mut findings = Vec::new();
    for door in doors {
        let Some((host, port)) = host_and_port(door) else {
            findings.push(Finding::skip(CHECK, format!("{door} is resolved by the control plane only")));
            continue;
        };
        findings.push(match connect(&host, port).await {
            Ok(()) => Finding::ok(CHECK, format!("{door} takes connections")),
            Err(why) => Finding::warn(
                CHECK,
                format!("{door} cannot be reached: {why}"),
                format!("see that it runs, that its address is right, and that no firewall keeps tcp/{port} from it"),
            ),
        });
    }
    findings.push(match connected {
        0 => Finding::fail(
            CHECK,
            "no member of the mesh is connected",
            "see that a bootstrap peer can be reached and that both have credentials of the same mesh (shoal credential \
             show; its log says whom it refuses)",
        ),
        _ => Finding::ok(CHECK, format!("{connected} members are connected")),
    });
    findings
}

/// Whether the registry API answers at its own address.
async fn gateway(node: &Node) -> Option<Finding> {
    const CHECK: &str = "gateway";
    if !node.identity().credential.value().roles.contains(Role::Gateway) {
        return None;
    }
    let address: SocketAddr = node.config().gateway;
    if address.port() == 0 {
        return Some(Finding::skip(CHECK, "it listens on any free port"));
    }
    // A gateway's credential does not make a gateway: a node may have it and not serve.
    Some(match connect(&address.ip().to_string(), address.port()).await {
        Ok(()) => Finding::ok(CHECK, format!("{address} takes connections")),
        Err(why) => Finding::warn(
            CHECK,
            format!("nothing answers at {address}: {why}"),
            "run it as `shoal gateway`, or see what else its log says",
        ),
    })
}

/// Connects over TCP and closes again.
///
/// # Errors
/// Why not, for people.
async fn connect(host: &str, port: u16) -> Result<(), String> {
    match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect((host, port))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer in {} s", CONNECT_TIMEOUT.as_secs())),
    }
}

/// The host and port of a bootstrap peer or listener, of a multiaddr over TCP or `host:port`; `None` for another one.
pub fn host_and_port(multiaddr: &str) -> Option<(String, u16)> {
    if !multiaddr.starts_with('/') && !multiaddr.starts_with("dnsaddr:") {
        let (host, port) = multiaddr.rsplit_once(':')?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        return Some((host.to_owned(), port.parse().ok()?));
    }
    let mut parts = multiaddr.split('/');
    let (Some(""), Some("ip4" | "ip6" | "dns" | "dns4" | "dns6"), Some(host), Some("tcp"), Some(port)) =
        (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    Some((host.to_owned(), port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_that_end_soon() {
        let start = WallTime::default();
        let at = |secs| start.saturating_add(Duration::from_secs(secs));
        let value = Credential {
            peer: shoal_types::PeerId::from_public_key([1; 32]),
            roles: shoal_types::Roles::NONE.with(Role::Node),
            zone: shoal_types::Zone::default(),
            namespaces: vec![],
            not_before: start,
            not_after: at(600),
            issuer: None,
        };
        let verdict = |secs| credential(&value, at(secs)).verdict;
        assert_eq!([0, 499, 501, 600].map(verdict), [Verdict::Ok, Verdict::Ok, Verdict::Warn, Verdict::Fail]);
    }

    #[test]
    fn addresses_that_can_be_tried() {
        assert_eq!(host_and_port("/ip4/10.0.0.1/tcp/4001/p2p/12D3"), Some(("10.0.0.1".into(), 4001)));
        assert_eq!(host_and_port("/dns/door.example/tcp/1"), Some(("door.example".into(), 1)));
        assert_eq!(host_and_port("/ip6/::1/tcp/4001"), Some(("::1".into(), 4001)));
        assert_eq!(host_and_port("door.example:4001"), Some(("door.example".into(), 4001)));
        assert_eq!(host_and_port("[::1]:4001"), Some(("::1".into(), 4001)));
        for other in ["dnsaddr:door.example", "/ip4/10.0.0.1/udp/1/quic-v1", "/ip4/10.0.0.1/tcp/x", ""] {
            assert_eq!(host_and_port(other), None, "{other}");
        }
    }
}
