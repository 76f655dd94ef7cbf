//! A client that reads a blob over HTTP/1.1 and throws it away, as cheaply as can be: what it costs is not the
//! server's.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// Bytes read at a time.
const READ_BYTES: usize = 256 * 1024;
/// How long a server may be silent.
const SILENCE_MAX: Duration = Duration::from_secs(300);
/// Longest head of an answer.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// How a read went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Read {
    /// From before the connection was opened to the body's first byte.
    pub(crate) first_byte: Duration,
    /// To its last.
    pub(crate) whole: Duration,
    /// Processor time of this client.
    pub(crate) cpu: Duration,
}

/// Reads `path` from `server` to the end and checks the length; the content is the server's to check.
pub(crate) fn read(server: SocketAddr, path: &str, size: u64) -> Result<Read> {
    let (start, cpu) = (Instant::now(), thread_cpu());
    let mut stream = TcpStream::connect(server).with_context(|| format!("{server}"))?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n")?;
    let mut buffer = vec![0; READ_BYTES];
    let mut filled = 0;
    let body = loop {
        ensure!(filled < HEAD_BYTES_MAX, "{path}: an endless head");
        let read = stream.read(&mut buffer[filled..]).with_context(|| path.to_owned())?;
        ensure!(read > 0, "{path}: no answer");
        filled += read;
        if let Some(end) = buffer[..filled].windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let head = String::from_utf8_lossy(&buffer[..body]).into_owned();
    if !head.starts_with("HTTP/1.1 200 ") {
        bail!("{path}: {head}{}", String::from_utf8_lossy(&buffer[body..filled]));
    }
    let mut got = (filled - body) as u64;
    let mut first_byte = (got > 0).then(|| start.elapsed());
    loop {
        let read = stream.read(&mut buffer).with_context(|| path.to_owned())?;
        if read == 0 {
            break;
        }
        first_byte.get_or_insert_with(|| start.elapsed());
        got += read as u64;
        // Not at the connection's end: closing is not part of the pull.
        if got >= size {
            break;
        }
    }
    ensure!(got == size, "{path}: {got} of {size} bytes came");
    let whole = start.elapsed();
    Ok(Read { first_byte: first_byte.unwrap_or(whole), whole, cpu: thread_cpu() - cpu })
}

fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.try_into().unwrap_or(0))
}
