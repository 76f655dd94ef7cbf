//! Asking a daemon's ops listener.

use std::net::SocketAddr;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;

/// A body of any kind.
pub(crate) type Body = BoxBody<Bytes, std::io::Error>;

/// One request over a connection of its own.
pub(crate) async fn request(
    ops: SocketAddr,
    method: Method,
    path: &str,
    length: Option<u64>,
    body: Body,
) -> anyhow::Result<Response<Incoming>> {
    request_of(ops, method, path, length, None, body).await
}

/// [`request`] with a body of this media type.
pub(crate) async fn request_of(
    ops: SocketAddr,
    method: Method,
    path: &str,
    length: Option<u64>,
    media_type: Option<&str>,
    body: Body,
) -> anyhow::Result<Response<Incoming>> {
    let mut builder = Request::builder().method(method).uri(path);
    if let Some(length) = length {
        builder = builder.header("content-length", length);
    }
    if let Some(media_type) = media_type {
        builder = builder.header("content-type", media_type);
    }
    send(ops, builder, body).await
}

async fn send(
    ops: SocketAddr,
    builder: hyper::http::request::Builder,
    body: Body,
) -> anyhow::Result<Response<Incoming>> {
    let stream = tokio::net::TcpStream::connect(ops).await.with_context(|| {
        format!("no daemon answers at {ops}: start one, or name its address (--help says by which flag)")
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let response = sender.send_request(builder.header("host", ops.to_string()).body(body)?).await?;
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status();
    let text = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let stated = serde_json::from_slice::<serde_json::Value>(&text).ok().and_then(|value| {
        // The ops listener's own, or the registry API's.
        let error = value.get("error").or_else(|| value.pointer("/errors/0/message"));
        error.and_then(|error| error.as_str()).map(str::to_owned)
    });
    bail!("{}", stated.unwrap_or_else(|| format!("the daemon answered {status}")));
}

/// A GET whose answer streams.
pub(crate) async fn get(ops: SocketAddr, path: &str) -> anyhow::Result<Response<Incoming>> {
    request(ops, Method::GET, path, None, empty()).await
}

/// A GET whose answer is JSON.
pub(crate) async fn get_json<T: DeserializeOwned>(ops: SocketAddr, path: &str) -> anyhow::Result<T> {
    let body = get(ops, path).await?.into_body().collect().await?.to_bytes();
    serde_json::from_slice(&body).context("the daemon's answer is not understood: is it of another version?")
}

/// A POST of JSON.
pub(crate) async fn post(
    ops: SocketAddr,
    path: &str,
    question: &impl serde::Serialize,
) -> anyhow::Result<Response<Incoming>> {
    let body = Full::new(Bytes::from(serde_json::to_vec(question)?)).map_err(|never| match never {}).boxed();
    let builder =
        Request::builder().method(Method::POST).uri(path).header("content-type", "application/json");
    send(ops, builder, body).await
}

/// A POST of JSON whose answer is JSON.
pub(crate) async fn post_json<T: DeserializeOwned>(
    ops: SocketAddr,
    path: &str,
    question: &impl serde::Serialize,
) -> anyhow::Result<T> {
    let body = post(ops, path, question).await?.into_body().collect().await?.to_bytes();
    serde_json::from_slice(&body).context("the daemon's answer is not understood: is it of another version?")
}

/// No body.
pub(crate) fn empty() -> Body {
    Full::new(Bytes::new()).map_err(|never| match never {}).boxed()
}
