//! A collector of OpenTelemetry's protocol: takes traces over HTTP, decodes them, and keeps them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// The content type of OTLP in binary.
const PROTOBUF: &str = "application/x-protobuf";

/// A span as it came.
#[derive(Clone, Debug)]
pub struct Span {
    /// `service.instance.id` of the process it is from.
    pub instance: String,
    /// Its trace, in hexadecimal.
    pub trace: String,
    /// Its own id, in hexadecimal.
    pub id: String,
    /// The id of the span above it, in hexadecimal; empty when there is none.
    pub parent: String,
    /// Its name.
    pub name: String,
    /// When it began and ended, in nanoseconds since 1970.
    pub time: (u64, u64),
    /// Its attributes as text.
    pub attributes: Vec<(String, String)>,
}

impl Span {
    /// An attribute, empty when it is not there.
    pub fn attribute(&self, name: &str) -> &str {
        self.attributes.iter().find(|(own, _)| own == name).map_or("", |(_, value)| value)
    }
}

/// A running collector; it ends when it is dropped.
pub struct Collector {
    /// Where it listens.
    pub addr: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
    task: JoinHandle<()>,
}

impl Collector {
    /// Starts one on loopback that wants `token` in the header `x-token`.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start(token: &'static str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let spans: Arc<Mutex<Vec<Span>>> = Arc::default();
        let taken = Arc::clone(&spans);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let taken = Arc::clone(&taken);
                let service = service_fn(move |request| {
                    let taken = Arc::clone(&taken);
                    async move { Ok::<_, Infallible>(take(&taken, token, request).await) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection);
            }
        });
        Ok(Self { addr, spans, task })
    }

    /// What has come.
    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn take(taken: &Mutex<Vec<Span>>, token: &str, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let status = |status| {
        let mut response = Response::new(Full::default());
        *response.status_mut() = status;
        response
    };
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    if request.method() != Method::POST || request.uri().path() != "/v1/traces" {
        return status(StatusCode::NOT_FOUND);
    }
    if header("x-token") != Some(token) {
        return status(StatusCode::UNAUTHORIZED);
    }
    if header(CONTENT_TYPE.as_str()) != Some(PROTOBUF) {
        return status(StatusCode::UNSUPPORTED_MEDIA_TYPE);
    }
    let Ok(body) = request.into_body().collect().await else { return status(StatusCode::BAD_REQUEST) };
    let Ok(message) = ExportTraceServiceRequest::decode(body.to_bytes()) else {
        return status(StatusCode::BAD_REQUEST);
    };
    let mut all = taken.lock().unwrap_or_else(PoisonError::into_inner);
    for group in message.resource_spans {
        let resource = group.resource.unwrap_or_default();
        let named = texts(&resource.attributes);
        let instance = named.into_iter().find(|(name, _)| name == "service.instance.id");
        let instance = instance.map(|(_, value)| value).unwrap_or_default();
        for span in group.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
            all.push(Span {
                instance: instance.clone(),
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                name: span.name,
                time: (span.start_time_unix_nano, span.end_time_unix_nano),
                attributes: texts(&span.attributes),
            });
        }
    }
    status(StatusCode::OK)
}

fn texts(attributes: &[KeyValue]) -> Vec<(String, String)> {
    let text = |value: &any_value::Value| match value {
        any_value::Value::StringValue(text) => text.clone(),
        any_value::Value::IntValue(number) => number.to_string(),
        any_value::Value::DoubleValue(number) => number.to_string(),
        any_value::Value::BoolValue(truth) => truth.to_string(),
        other => format!("{other:?}"),
    };
    let value = |own: &KeyValue| own.value.as_ref().and_then(|value| value.value.as_ref()).map(text);
    attributes.iter().map(|own| (own.key.clone(), value(own).unwrap_or_default())).collect()
}
