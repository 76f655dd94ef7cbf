//! Spellings: our peer ids, endpoints and bootstrap peers as libp2p's peer ids and multiaddrs.

use std::fmt;
use std::str::FromStr;

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use shoal_types::{Endpoint, PeerId, Zone};

/// The libp2p spelling of a peer id.
pub(crate) fn to_libp2p(peer: PeerId) -> libp2p::PeerId {
    #[expect(
        clippy::expect_used,
        reason = "a 36-byte identity multihash is a libp2p peer id by specification"
    )]
    libp2p::PeerId::from_bytes(&peer.to_libp2p_bytes()).expect("an Ed25519 key makes a peer id")
}

/// Our spelling of a libp2p peer id; `None` unless it is of an Ed25519 key.
pub(crate) fn from_libp2p(peer: &libp2p::PeerId) -> Option<PeerId> {
    PeerId::from_libp2p_bytes(&peer.to_bytes())
}

/// A data-plane endpoint as an address: `/ip4/…/tcp/…/tls/sni/<zone>`. libp2p's TCP dialer passes over anything
/// behind `/tcp`, so such an address can stand among those of the control plane. The zone rides along so that who
/// looks up providers knows which are near before it dials them.
pub(crate) fn data_address(endpoint: &Endpoint, zone: &Zone) -> Multiaddr {
    let host = match (endpoint.ip(), endpoint.dns()) {
        (Some(ip), _) => Multiaddr::from(ip),
        (None, name) => Multiaddr::empty().with(Protocol::Dns(name.unwrap_or_default().to_owned().into())),
    };
    host.with(Protocol::Tcp(endpoint.port()))
        .with(Protocol::Tls)
        .with(Protocol::Sni(zone.as_str().to_owned().into()))
}

/// Reads [`data_address`] back, with or without the zone and a trailing `/p2p`; `None` for any other address.
pub(crate) fn parse_data_address(address: &Multiaddr) -> Option<(Endpoint, Option<Zone>)> {
    let mut parts = address.iter();
    let host = parts.next()?;
    let Protocol::Tcp(port) = parts.next()? else { return None };
    let Protocol::Tls = parts.next()? else { return None };
    let zone = match parts.next() {
        Some(Protocol::Sni(zone)) => zone.parse().ok(),
        Some(Protocol::P2p(_)) | None => None,
        Some(_) => return None,
    };
    let endpoint = match host {
        Protocol::Ip4(ip) if port != 0 => Endpoint::from_ip(ip.into(), port),
        Protocol::Ip6(ip) if port != 0 => Endpoint::from_ip(ip.into(), port),
        Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) => {
            format!("{name}:{port}").parse().ok()?
        }
        _ => return None,
    };
    Some((endpoint, zone))
}

/// Whether libp2p can dial `address` on the control plane: an IP address or name, a TCP port, and nothing behind
/// it but a peer id.
pub(crate) fn is_control_address(address: &Multiaddr) -> bool {
    let mut parts = address.iter();
    let host = matches!(
        parts.next(),
        Some(Protocol::Ip4(_) | Protocol::Ip6(_) | Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_))
    );
    let port = matches!(parts.next(), Some(Protocol::Tcp(port)) if port != 0);
    host && port && parts.all(|part| matches!(part, Protocol::P2p(_)))
}

/// A door into the mesh: where to dial, and perhaps who must answer. Text forms: a multiaddr with or without
/// `/p2p/<peer>`, `dnsaddr:<name>` (TXT records of `_dnsaddr.<name>`, libp2p's "dnsaddr" specification), or
/// `host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootstrapPeer {
    address: Multiaddr,
}

/// The text names no bootstrap peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a bootstrap peer: {0:?} must be a multiaddr such as /ip4/10.0.0.1/tcp/4001 (a /p2p/… may follow), dnsaddr:<name>, or host:port"
)]
pub struct BootstrapPeerParseError(String);

impl BootstrapPeer {
    /// The address to dial.
    pub fn address(&self) -> &Multiaddr {
        &self.address
    }

    /// The peer that must answer, when the address says so.
    pub fn peer(&self) -> Option<PeerId> {
        self.address.iter().find_map(|part| match part {
            Protocol::P2p(peer) => from_libp2p(&peer),
            _ => None,
        })
    }
}

impl FromStr for BootstrapPeer {
    type Err = BootstrapPeerParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || BootstrapPeerParseError(text.chars().take(120).collect());
        if let Some(name) = text.strip_prefix("dnsaddr:") {
            // An endpoint's grammar is that of host names; the port only completes it.
            let named: Endpoint = format!("{name}:1").parse().map_err(|_| refuse())?;
            let name = named.dns().ok_or_else(refuse)?.to_owned();
            return Ok(Self { address: Multiaddr::empty().with(Protocol::Dnsaddr(name.into())) });
        }
        if let Ok(endpoint) = text.parse::<Endpoint>() {
            let mut address = data_address(&endpoint, &Zone::default());
            address.pop();
            address.pop();
            return Ok(Self { address });
        }
        let address: Multiaddr = text.parse().map_err(|_| refuse())?;
        let dialable =
            is_control_address(&address) || matches!(address.iter().next(), Some(Protocol::Dnsaddr(_)));
        if dialable { Ok(Self { address }) } else { Err(refuse()) }
    }
}

impl fmt::Display for BootstrapPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.address, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_types::Keypair;

    #[test]
    fn data_addresses_round_trip_and_are_not_dialled_by_libp2p() {
        let zone: Zone = "aws-eu_1.a".parse().unwrap();
        for text in ["10.0.0.1:4002", "[2001:db8::1]:4002", "node-1.example.com:7"] {
            let endpoint: Endpoint = text.parse().unwrap();
            let address = data_address(&endpoint, &zone);
            assert_eq!(parse_data_address(&address), Some((endpoint.clone(), Some(zone.clone()))));
            assert!(!is_control_address(&address));
            let peer = to_libp2p(Keypair::from_secret(&[1; 32]).peer_id());
            // As it comes out of a provider record, whose reader appends the peer.
            let wired = Multiaddr::try_from(address.with(Protocol::P2p(peer)).to_vec()).unwrap();
            assert_eq!(parse_data_address(&wired), Some((endpoint, Some(zone.clone()))));
        }
        let bare: Multiaddr = "/ip4/10.0.0.1/tcp/4002/tls".parse().unwrap();
        assert_eq!(parse_data_address(&bare).unwrap().1, None);
        for other in ["/ip4/10.0.0.1/tcp/4001", "/ip4/10.0.0.1/udp/1/quic-v1", "/ip4/1.2.3.4/tcp/1/tls/ws"] {
            assert_eq!(parse_data_address(&other.parse().unwrap()), None);
        }
    }

    #[test]
    fn bootstrap_peers_have_three_spellings() {
        let peer = Keypair::from_secret(&[1; 32]).peer_id();
        let with = format!("/ip4/10.0.0.1/tcp/4001/p2p/{peer}").parse::<BootstrapPeer>().unwrap();
        assert_eq!(with.peer(), Some(peer));
        let plain: BootstrapPeer = "10.0.0.1:4001".parse().unwrap();
        assert_eq!(plain.to_string(), "/ip4/10.0.0.1/tcp/4001");
        assert_eq!(plain.peer(), None);
        let dns: BootstrapPeer = "dnsaddr:mesh.example.com".parse().unwrap();
        assert_eq!(dns.to_string(), "/dnsaddr/mesh.example.com");
        assert!("/dns/boot.example.com/tcp/4001".parse::<BootstrapPeer>().is_ok());
        for bad in
            ["", "dnsaddr:", "dnsaddr:a b", "/ip4/1.2.3.4", "/ip4/1.2.3.4/udp/1", "/ip4/1.2.3.4/tcp/1/tls"]
        {
            assert!(bad.parse::<BootstrapPeer>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn peer_ids_convert_both_ways() {
        let peer = Keypair::from_secret(&[1; 32]).peer_id();
        assert_eq!(from_libp2p(&to_libp2p(peer)), Some(peer));
        assert_eq!(to_libp2p(peer).to_string(), peer.to_string());
    }
}
