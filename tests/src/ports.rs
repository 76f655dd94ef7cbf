//! Ports for processes that must come back on the same address.
//!
//! Port 0 gives a port of the kernel's ephemeral range, and while such a process is down any outgoing connection may
//! take its port. These come from below that range, so only another listener can.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Result, bail};

const FIRST: u16 = 12_000;
const COUNT: u16 = 18_000;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// A loopback address nobody listens on, never given out before by this process.
///
/// # Errors
/// When no port of the range is free.
pub fn reserve() -> Result<SocketAddr> {
    // Two test processes at once should not march through the same ports in step.
    let start = u16::try_from(std::process::id().wrapping_mul(97) % u32::from(COUNT))?;
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        let port = FIRST + (start + step) % COUNT;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(addr).is_ok() {
            return Ok(addr);
        }
    }
    bail!("no free port between {FIRST} and {}", FIRST + COUNT)
}
