//! What happens to a connection before and below HTTP.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

/// First byte of a TLS record that carries a handshake (RFC 8446, 5.1).
const TLS_HANDSHAKE: u8 = 0x16;
/// What a connection begins with that the port does not speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Greeting {
    /// A TLS hello on a plain port. It is answered in plain HTTP and not with an alert: Go's TLS library recognises that
    /// ("server gave HTTP response to HTTPS client"), and `docker manifest --insecure` tries plain HTTP after that error
    /// only.
    Tls,
    /// A plain request on a TLS port, answered as Go's own server does.
    Plain,
}

impl Greeting {
    fn answer(self) -> &'static [u8] {
        match self {
            Self::Tls => {
                b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n\
                This port speaks plain HTTP.\n"
            }
            Self::Plain => {
                b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n\
                This port speaks HTTPS.\n"
            }
        }
    }
}

/// How long such a client may take to hang up after the answer.
const TLS_LINGER: Duration = Duration::from_secs(1);
/// Most bytes of such a client that are read and thrown away, so that the close does not reset the answer away.
const TLS_DRAIN_BYTES_MAX: usize = 64 << 10;

/// Whether a new connection begins with a TLS handshake. Looks without taking. An error: the client closed or said
/// nothing for `patience`.
pub(crate) async fn speaks_tls(stream: &TcpStream, patience: Duration) -> io::Result<bool> {
    let mut first = [0];
    match tokio::time::timeout(patience, stream.peek(&mut first)).await {
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
        Ok(Ok(0)) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(Ok(_)) => Ok(first == [TLS_HANDSHAKE]),
        Ok(Err(error)) => Err(error),
    }
}

/// Answers a client of the other protocol at once, so that it tries the right one at once: dockerd waits 10 s for an
/// answer to its TLS hello otherwise, on each pull.
pub(crate) async fn refuse(mut stream: TcpStream, greeting: Greeting) {
    let refuse = async {
        stream.write_all(greeting.answer()).await?;
        stream.shutdown().await?;
        let mut scrap = [0; 4096];
        let mut seen = 0;
        while seen < TLS_DRAIN_BYTES_MAX {
            match stream.read(&mut scrap).await? {
                0 => break,
                read => seen += read,
            }
        }
        io::Result::Ok(())
    };
    // Whatever becomes of it, the connection ends here.
    let _ = tokio::time::timeout(TLS_LINGER, refuse).await;
}

/// A stream that fails when its peer takes nothing for too long.
pub(crate) struct PatientStream<S> {
    inner: S,
    patience: Duration,
    /// Runs while a write waits.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<S> PatientStream<S> {
    pub(crate) fn new(inner: S, patience: Duration) -> Self {
        Self { inner, patience, deadline: None }
    }

    /// Turns a write that waits into an error once its time is over.
    fn watch<T>(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.deadline = None;
            return poll;
        }
        let patience = self.patience;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(patience)));
        match deadline.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => {
                deadline.as_mut().reset(Instant::now() + patience);
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for PatientStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PatientStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.inner).poll_write(cx, data);
        self.watch(cx, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.inner).poll_write_vectored(cx, data);
        self.watch(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.inner).poll_flush(cx);
        self.watch(cx, poll)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.watch(cx, poll)
    }
}
