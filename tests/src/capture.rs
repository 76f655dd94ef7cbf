//! A packet capture of our own: what goes over the machine's interfaces from and to given TCP ports. Needs root.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

/// Every protocol, as Linux numbers them (`linux/if_ether.h`, `ETH_P_ALL`).
const ETH_P_ALL: u16 = 0x0003;
const ETHERNET_HEAD_BYTES: usize = 14;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const PROTOCOL_TCP: u8 = 6;
/// The largest packet of the loopback interface, and its head.
const PACKET_BYTES_MAX: usize = 128 << 10;
/// Packets that wait for this process at most. Those beyond are lost to the capture, which tests allow for.
const KERNEL_BUFFER_BYTES: usize = 64 << 20;
/// Payload kept of a port at most.
const PORT_BYTES_MAX: usize = 128 << 20;
/// Between two looks at whether the capture is over.
const PATIENCE: Duration = Duration::from_millis(100);

/// A capture under way.
#[derive(Debug)]
pub struct Capture {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Result<BTreeMap<u16, Vec<u8>>>>,
}

impl Capture {
    /// Begins to keep the payload of every TCP segment from or to one of `ports`, of all interfaces.
    ///
    /// # Errors
    /// When the system does not let this process see packets: it needs root.
    pub fn start(ports: &[u16]) -> Result<Self> {
        let protocol = Protocol::from(i32::from(ETH_P_ALL.to_be()));
        let socket =
            Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).context("a packet capture needs root")?;
        // Fewer is what an unprivileged process gets.
        let _ = socket.set_recv_buffer_size(KERNEL_BUFFER_BYTES);
        socket.set_read_timeout(Some(PATIENCE))?;
        let over = Arc::new(AtomicBool::new(false));
        let (stop, ports) = (Arc::clone(&over), ports.to_vec());
        Ok(Self { over, thread: std::thread::spawn(move || listen(&socket, &ports, &stop)) })
    }

    /// Ends it; gives by port the payload that went through it in either direction, segment after segment.
    ///
    /// # Errors
    /// When the capture failed on the way.
    pub fn finish(self) -> Result<BTreeMap<u16, Vec<u8>>> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().ok().context("the capture panicked")?
    }
}

fn listen(socket: &Socket, ports: &[u16], over: &AtomicBool) -> Result<BTreeMap<u16, Vec<u8>>> {
    let mut seen = BTreeMap::new();
    let mut packet = vec![0; PACKET_BYTES_MAX];
    let mut socket = socket;
    loop {
        match socket.read(&mut packet) {
            Ok(len) => {
                let Some((of, payload)) = segment(&packet[..len]) else { continue };
                for port in ports.iter().filter(|port| of.contains(port)) {
                    let kept: &mut Vec<u8> = seen.entry(*port).or_default();
                    if kept.len() < PORT_BYTES_MAX {
                        kept.extend_from_slice(payload);
                    }
                }
            }
            // What is in the kernel's buffer is still read.
            Err(error)
                if error.kind() == std::io::ErrorKind::WouldBlock
                    || error.kind() == std::io::ErrorKind::TimedOut =>
            {
                if over.load(Ordering::Relaxed) {
                    return Ok(seen);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Ports and payload of a frame that carries TCP over IPv4.
fn segment(frame: &[u8]) -> Option<([u16; 2], &[u8])> {
    if frame.get(12..14)? != ETHERTYPE_IPV4 {
        return None;
    }
    let packet = frame.get(ETHERNET_HEAD_BYTES..)?;
    let head = usize::from(packet.first()? & 0xf) * 4;
    if *packet.get(9)? != PROTOCOL_TCP {
        return None;
    }
    let total = usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?));
    // A frame that the kernel has yet to cut has a length of zero here.
    let packet = if total == 0 { packet } else { packet.get(..total)? };
    let tcp = packet.get(head..)?;
    let port = |at: usize| Some(u16::from_be_bytes(tcp.get(at..at + 2)?.try_into().ok()?));
    let offset = usize::from(tcp.get(12)? >> 4) * 4;
    Some(([port(0)?, port(2)?], tcp.get(offset..)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn sees_what_is_said_in_the_clear() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let capture = Capture::start(&[port]).unwrap();
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"attack at dawn").unwrap();
        let mut heard = [0; 14];
        server.read_exact(&mut heard).unwrap();
        let seen = capture.finish().unwrap();
        assert!(seen[&port].windows(heard.len()).any(|part| part == heard));
    }
}
