//! The members connected, and where this process is reached.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use shoal_types::gossip::ENDPOINTS_MAX;
use shoal_types::{Endpoint, PeerId, Roles, SignedCredential, Zone};

/// A connected member.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) zone: Zone,
    pub(crate) roles: Roles,
    /// What it showed; `None` when the handshake's was lost.
    pub(crate) credential: Option<SignedCredential>,
    /// Where its data plane is dialled; `None` until it has said so.
    pub(crate) endpoints: Option<Vec<Endpoint>>,
    /// The other end of its first connection.
    pub(crate) address: Multiaddr,
    pub(crate) since: Instant,
    /// It is one of the configured doors.
    pub(crate) bootstrap: bool,
    /// When it last told of origins.
    pub(crate) introduced: Option<Instant>,
}

/// Members by peer id. Bounded by the connection limits.
#[derive(Debug, Default)]
pub(crate) struct Members(BTreeMap<PeerId, Member>);

impl Members {
    /// A connection with `peer` is open. Returns whether it is the first.
    pub(crate) fn connected(
        &mut self,
        peer: PeerId,
        credential: Option<&SignedCredential>,
        address: Multiaddr,
        bootstrap: bool,
        now: Instant,
    ) -> bool {
        let fresh = !self.0.contains_key(&peer);
        let member = self.0.entry(peer).or_insert_with(|| Member {
            zone: Zone::default(),
            roles: Roles::NONE,
            credential: None,
            endpoints: None,
            address,
            since: now,
            bootstrap,
            introduced: None,
        });
        member.bootstrap |= bootstrap;
        if let Some(credential) = credential {
            member.zone = credential.value().zone.clone();
            member.roles = credential.value().roles;
            member.credential = Some(credential.clone());
        }
        fresh
    }

    pub(crate) fn gone(&mut self, peer: &PeerId) -> bool {
        self.0.remove(peer).is_some()
    }

    pub(crate) fn get(&self, peer: &PeerId) -> Option<&Member> {
        self.0.get(peer)
    }

    pub(crate) fn get_mut(&mut self, peer: &PeerId) -> Option<&mut Member> {
        self.0.get_mut(peer)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&PeerId, &Member)> {
        self.0.iter()
    }
}

/// By which of its IP addresses this process is reached, for announcing the data plane when nobody configured how.
///
/// All addresses listened on would do harm: machines share bridge addresses such as `172.17.0.1`. So as soon as a
/// peer is seen to use some of them, only those are announced.
#[derive(Debug, Default)]
pub(crate) struct Reachable {
    listening: BTreeSet<IpAddr>,
    used: BTreeSet<IpAddr>,
}

impl Reachable {
    pub(crate) fn listens(&mut self, address: &Multiaddr) {
        self.listening.extend(ip_of(address));
    }

    pub(crate) fn listens_no_more(&mut self, address: &Multiaddr) {
        if let Some(ip) = ip_of(address) {
            self.listening.remove(&ip);
            self.used.remove(&ip);
        }
    }

    /// A peer reaches this process, or sees it, at `address`. Only own addresses count: others are NAT's.
    pub(crate) fn is_used(&mut self, address: &Multiaddr) {
        self.used.extend(ip_of(address).filter(|ip| self.listening.contains(ip)));
    }

    /// Endpoints to announce for a data plane on `port`.
    pub(crate) fn endpoints(&self, port: u16) -> Vec<Endpoint> {
        let outside = |ip: &&IpAddr| !ip.is_loopback();
        let candidates: Vec<&IpAddr> = [
            self.used.iter().filter(outside).collect::<Vec<_>>(),
            self.listening.iter().filter(outside).collect(),
            self.listening.iter().collect(),
        ]
        .into_iter()
        .find(|candidates| !candidates.is_empty())
        .unwrap_or_default();
        candidates.into_iter().take(ENDPOINTS_MAX).map(|ip| Endpoint::from_ip(*ip, port)).collect()
    }
}

pub(crate) fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announces_the_addresses_peers_use() {
        let at = |ip: &str| format!("/ip4/{ip}/tcp/4001").parse::<Multiaddr>().unwrap();
        let texts = |own: &Reachable| own.endpoints(7).iter().map(Endpoint::to_string).collect::<Vec<_>>();
        let mut own = Reachable::default();
        assert!(texts(&own).is_empty());
        own.listens(&at("127.0.0.1"));
        assert_eq!(texts(&own), ["127.0.0.1:7"], "a mesh on one machine");
        own.listens(&at("172.17.0.1"));
        own.listens(&at("10.0.0.5"));
        assert_eq!(texts(&own), ["10.0.0.5:7", "172.17.0.1:7"]);
        own.is_used(&at("127.0.0.1"));
        own.is_used(&at("203.0.113.9"));
        assert_eq!(texts(&own).len(), 2, "neither loopback nor a NAT's address proves anything");
        own.is_used(&at("10.0.0.5"));
        assert_eq!(texts(&own), ["10.0.0.5:7"]);
        own.listens_no_more(&at("10.0.0.5"));
        assert_eq!(texts(&own), ["172.17.0.1:7"]);
    }
}
