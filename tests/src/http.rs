//! A small HTTP/1.1 client: one connection a request, like docker's.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use futures::Stream;
use futures::StreamExt as _;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// A request's body.
pub type Body = BoxBody<Bytes, Infallible>;

/// How long a server may take until its answer begins. Long, for a gateway holds answers while it searches.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a body may pause between two of its parts.
const PART_TIMEOUT: Duration = Duration::from_secs(120);

/// The largest body that is read whole, in bytes.
const WHOLE_BODY_BYTES_MAX: usize = 64 << 20;

/// A body known in advance, sent with its length.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed()
}

/// A body of unknown length, sent with chunked coding.
pub fn streamed(parts: impl Stream<Item = Bytes> + Send + Sync + 'static) -> Body {
    BoxBody::new(StreamBody::new(parts.map(|part| Ok(Frame::data(part)))))
}

/// Sends one request on a connection of its own.
///
/// # Errors
/// When the connection fails or no answer begins in time. Any status is an answer.
pub async fn send(addr: SocketAddr, mut request: Request<Body>) -> Result<Answer> {
    let what = format!("{} http://{addr}{}", request.method(), request.uri());
    let exchange = async {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // It ends with the exchange: when the answer's body is read to the end or dropped.
        tokio::spawn(connection);
        request.headers_mut().insert(http::header::HOST, addr.to_string().parse()?);
        anyhow::Ok(sender.send_request(request).await?)
    };
    let response = tokio::time::timeout(ANSWER_TIMEOUT, exchange)
        .await
        .with_context(|| format!("{what}: no answer within {ANSWER_TIMEOUT:?}"))?
        .with_context(|| what.clone())?;
    Ok(Answer::new(what, response))
}

/// Sends a request without a body.
///
/// # Errors
/// As [`send`].
pub async fn call(addr: SocketAddr, method: Method, path: &str) -> Result<Answer> {
    send(addr, Request::builder().method(method).uri(path).body(full(Bytes::new()))?).await
}

/// GETs a path.
///
/// # Errors
/// As [`send`].
pub async fn get(addr: SocketAddr, path: &str) -> Result<Answer> {
    call(addr, Method::GET, path).await
}

/// An answer whose head is here and whose body is read as wanted.
#[derive(Debug)]
pub struct Answer {
    what: String,
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    body: Incoming,
}

impl Answer {
    fn new(what: String, response: Response<Incoming>) -> Self {
        let (head, body) = response.into_parts();
        Self { what, status: head.status, headers: head.headers, body }
    }

    /// A header's text, empty when it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The next part of the body; `None` after the last.
    ///
    /// # Errors
    /// When the body breaks off or pauses too long.
    pub async fn part(&mut self) -> Result<Option<Bytes>> {
        loop {
            let frame = tokio::time::timeout(PART_TIMEOUT, self.body.frame())
                .await
                .with_context(|| format!("{}: the body paused for {PART_TIMEOUT:?}", self.what))?;
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.with_context(|| format!("{}: the body broke off", self.what))?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }

    /// The whole body.
    ///
    /// # Errors
    /// When it breaks off or is too long to be held.
    pub async fn bytes(mut self) -> Result<Bytes> {
        let mut all = BytesMut::new();
        while let Some(part) = self.part().await? {
            all.extend_from_slice(&part);
            if all.len() > WHOLE_BODY_BYTES_MAX {
                bail!("{}: the body is longer than {WHOLE_BODY_BYTES_MAX} bytes", self.what);
            }
        }
        Ok(all.freeze())
    }

    /// The whole body as text.
    ///
    /// # Errors
    /// As [`Answer::bytes`], and when it is not UTF-8.
    pub async fn text(self) -> Result<String> {
        Ok(String::from_utf8(self.bytes().await?.to_vec())?)
    }

    /// The whole body as JSON.
    ///
    /// # Errors
    /// As [`Answer::bytes`], and when it is not JSON.
    pub async fn json(self) -> Result<serde_json::Value> {
        let what = self.what.clone();
        let bytes = self.bytes().await?;
        serde_json::from_slice(&bytes)
            .with_context(|| format!("{what}: not JSON: {}", String::from_utf8_lossy(&bytes)))
    }

    /// The answer itself when it has the status wanted.
    ///
    /// # Errors
    /// With the body's text, when the status is another.
    pub async fn expect(self, status: StatusCode) -> Result<Self> {
        if self.status == status {
            return Ok(self);
        }
        let (what, got) = (self.what.clone(), self.status);
        let text = self.text().await.unwrap_or_default();
        bail!("{what}: {got} instead of {status}: {text}")
    }
}
