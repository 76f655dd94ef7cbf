//! A listener with so many connections at most; the oldest gives way to a new one. It has no time-outs: an operator may
//! follow events for days.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::serve::Listener;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Connections at once: operators, probes and a few scrapers, who use one each.
const CONNECTIONS_MAX: usize = 256;

type Open = Arc<Mutex<VecDeque<(u64, CancellationToken)>>>;

/// The listener.
pub(super) struct Limited {
    listener: TcpListener,
    max: usize,
    next: u64,
    open: Open,
}

impl Limited {
    pub(super) fn new(listener: TcpListener) -> Self {
        Self { listener, max: CONNECTIONS_MAX, next: 0, open: Open::default() }
    }
}

impl Listener for Limited {
    type Io = Held;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Held, SocketAddr) {
        let (stream, address) = Listener::accept(&mut self.listener).await;
        let token = CancellationToken::new();
        let number = self.next;
        self.next += 1;
        let mut open = self.open.lock();
        if open.len() >= self.max
            && let Some((_, oldest)) = open.pop_front()
        {
            oldest.cancel();
        }
        open.push_back((number, token.clone()));
        let over = Box::pin(token.cancelled_owned());
        (Held { stream, over, number, open: Arc::clone(&self.open) }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection, until it has to give way.
pub(super) struct Held {
    stream: TcpStream,
    over: Pin<Box<WaitForCancellationFutureOwned>>,
    number: u64,
    open: Open,
}

impl Held {
    /// The stream, unless it is over; then whoever reads or writes is woken and told.
    fn stream(&mut self, cx: &mut Context<'_>) -> io::Result<Pin<&mut TcpStream>> {
        match self.over.as_mut().poll(cx) {
            Poll::Ready(()) => {
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, "gave way to a newer one"))
            }
            Poll::Pending => Ok(Pin::new(&mut self.stream)),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut open = self.open.lock();
        let at = open.iter().position(|(number, _)| *number == self.number);
        if let Some(at) = at {
            open.remove(at);
        }
    }
}

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream(cx)?.poll_read(cx, buffer)
    }
}

impl AsyncWrite for Held {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.stream(cx)?.poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream(cx)?.poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream(cx)?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream(cx)?.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn the_oldest_gives_way() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let mut limited = Limited { max: 2, ..Limited::new(listener) };
        let mut clients = Vec::new();
        let mut held = Vec::new();
        for _ in 0..2 {
            clients.push(TcpStream::connect(to).await.unwrap());
            held.push(limited.accept().await.0);
        }
        let mut reading = tokio::spawn(async move {
            let mut oldest = held.remove(0);
            (oldest.read_u8().await, held)
        });
        assert!(futures::poll!(&mut reading).is_pending());
        clients.push(TcpStream::connect(to).await.unwrap());
        let mut newest = limited.accept().await.0;
        let (read, mut held) = reading.await.unwrap();
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        for (client, held) in clients[1..].iter_mut().zip([&mut held[0], &mut newest]) {
            client.write_u8(7).await.unwrap();
            assert_eq!(held.read_u8().await.unwrap(), 7);
        }
        drop((held, newest));
        assert!(limited.open.lock().is_empty());
    }
}
