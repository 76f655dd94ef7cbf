//! Where a data plane listens, as others dial it.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use crate::cbor::text_forms;

/// An address to dial: an IP address or DNS name, and a TCP port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    host: Host,
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Host {
    Ip(IpAddr),
    Dns(String),
}

/// The text is not `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not an endpoint: {0:?} must be host:port, with an IPv6 address in brackets and a port from 1 to 65535"
)]
pub struct EndpointParseError(String);

impl Endpoint {
    /// The endpoint at an IP address.
    pub fn from_ip(ip: IpAddr, port: u16) -> Self {
        Self { host: Host::Ip(ip), port }
    }

    /// The IP address, unless the host is a DNS name.
    pub fn ip(&self) -> Option<IpAddr> {
        match &self.host {
            Host::Ip(ip) => Some(*ip),
            Host::Dns(_) => None,
        }
    }

    /// The DNS name, unless the host is an IP address.
    pub fn dns(&self) -> Option<&str> {
        match &self.host {
            Host::Ip(_) => None,
            Host::Dns(name) => Some(name),
        }
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            Host::Ip(IpAddr::V4(ip)) => write!(f, "{ip}:{}", self.port),
            Host::Dns(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointParseError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || EndpointParseError(text.chars().take(80).collect());
        let (host, port) = text.rsplit_once(':').ok_or_else(refuse)?;
        let port: u16 = port.parse().map_err(|_| refuse())?;
        if port == 0 {
            return Err(refuse());
        }
        let host = if let Some(inner) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Host::Ip(inner.parse::<Ipv6Addr>().map_err(|_| refuse())?.into())
        } else if let Ok(ip) = host.parse::<std::net::Ipv4Addr>() {
            Host::Ip(ip.into())
        } else if is_dns_name(host) {
            Host::Dns(host.to_ascii_lowercase())
        } else {
            return Err(refuse());
        };
        Ok(Self { host, port })
    }
}

/// RFC 1123 host names: labels of 1 to 63 letters, digits and inner hyphens, 253 characters at most.
fn is_dns_name(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

text_forms!(Endpoint);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_round_trip() {
        for good in ["127.0.0.1:4002", "[::1]:4002", "origin-1.example.com:1"] {
            assert_eq!(good.parse::<Endpoint>().unwrap().to_string(), good);
        }
        for bad in ["", "a", ":1", "a:", "a:0", "a:65536", "::1:4", "[x]:1", "a b:1", "-a:1"] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad:?}");
        }
    }
}
