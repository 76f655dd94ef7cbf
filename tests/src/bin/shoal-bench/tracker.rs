//! A BitTorrent tracker that knows the whole fleet from the start: it answers every announce with all addresses
//! (BEP 3, BEP 23), so that what is measured is the swarm and not how its peers found each other.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};

use anyhow::Result;

/// Seconds after which a peer announces again.
const INTERVAL_SECS: u32 = 5;
/// Longest request.
const REQUEST_BYTES_MAX: usize = 8 * 1024;

/// Answers on `listener` until the process ends.
pub(crate) fn serve(listener: &TcpListener, peers: &[Ipv4Addr], port: u16) {
    let body = answer(peers, port);
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        // A client that goes away without its answer asks again.
        let _ = one(&mut stream, &body);
    }
}

fn one(stream: &mut std::net::TcpStream, body: &[u8]) -> Result<()> {
    let mut request = [0; REQUEST_BYTES_MAX];
    let mut filled = 0;
    while !request[..filled].windows(4).any(|window| window == b"\r\n\r\n") && filled < REQUEST_BYTES_MAX {
        match stream.read(&mut request[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(head.as_bytes())?;
    Ok(stream.write_all(body)?)
}

fn answer(peers: &[Ipv4Addr], port: u16) -> Vec<u8> {
    let compact: Vec<u8> =
        peers.iter().flat_map(|peer| peer.octets().into_iter().chain(port.to_be_bytes())).collect();
    let mut body = format!("d8:intervali{INTERVAL_SECS}e5:peers{}:", compact.len()).into_bytes();
    body.extend(compact);
    body.push(b'e');
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_bencoded() {
        let body = answer(&[Ipv4Addr::new(10, 77, 0, 1)], 0x1ae1);
        assert_eq!(body, b"d8:intervali5e5:peers6:\x0a\x4d\x00\x01\x1a\xe1e");
    }
}
