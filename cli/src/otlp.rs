//! Sending traces to a collector, by OTLP over HTTP.

use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use opentelemetry::KeyValue;
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use shoal_daemon::config::Config;
use shoal_net::identity::Identity;

/// Where collectors take traces, below the URL of one.
const TRACES_PATH: &str = "/v1/traces";
/// How long the collector may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long the last spans may take when the process stops.
const FAREWELL: Duration = Duration::from_secs(5);
/// A collector's answer is shorter.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Traces on their way to a collector, if one is configured.
pub(crate) struct Exporting(Option<SdkTracerProvider>);

impl Exporting {
    /// Has requests sampled from now on. To be called within the runtime that sends.
    pub(crate) fn start(config: &Config, identity: &Identity) -> anyhow::Result<Self> {
        let Some(url) = &config.otlp else { return Ok(Self(None)) };
        let client = reqwest::Client::builder()
            .timeout(TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .context("otlp: no HTTP client")?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(OnRuntime { client, runtime: tokio::runtime::Handle::current() })
            .with_endpoint(endpoint(url))
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(TIMEOUT)
            .build()
            .context("otlp")?;
        let credential = identity.credential.value();
        let resource = Resource::builder()
            .with_service_name("shoal")
            .with_attributes([
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", identity.peer_id().to_string()),
                KeyValue::new("shoal.zone", credential.zone.to_string()),
                KeyValue::new("shoal.roles", credential.roles.to_string()),
            ])
            .build();
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.trace_sample)));
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(sampler)
            .with_resource(resource)
            .build();
        opentelemetry::global::set_tracer_provider(provider.clone());
        opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
        shoal_daemon::traces::enable();
        tracing::info!(collector = url, sample = config.trace_sample, "pulls are traced");
        Ok(Self(Some(provider)))
    }

    /// Sends what is left.
    pub(crate) async fn stop(self) {
        let Some(provider) = self.0 else { return };
        // It waits for a thread that waits for this runtime.
        let stopped = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FAREWELL)).await;
        if let Ok(Err(error)) = stopped {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}

/// Where to send to: a path in the URL is taken as it is.
fn endpoint(url: &str) -> String {
    let bare = url.trim_end_matches('/');
    let has_path = bare.split_once("://").is_some_and(|(_, rest)| rest.contains('/'));
    if has_path { bare.to_owned() } else { format!("{bare}{TRACES_PATH}") }
}

/// Sends on a runtime, whatever thread asks: batches are sent by one of OpenTelemetry's own.
#[derive(Debug)]
struct OnRuntime {
    client: reqwest::Client,
    runtime: tokio::runtime::Handle,
}

#[async_trait::async_trait]
impl HttpClient for OnRuntime {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let request = reqwest::Request::try_from(request)?;
        let client = self.client.clone();
        self.runtime.spawn(async move { send(client, request).await }).await?
    }
}

async fn send(client: reqwest::Client, request: reqwest::Request) -> Result<Response<Bytes>, HttpError> {
    let mut answer = client.execute(request).await?;
    let mut body = Vec::new();
    while let Some(part) = answer.chunk().await? {
        if body.len() + part.len() > ANSWER_BYTES_MAX {
            return Err("the collector's answer is too long".into());
        }
        body.extend_from_slice(&part);
    }
    let mut response = Response::builder().status(answer.status()).body(Bytes::from(body))?;
    *response.headers_mut() = std::mem::take(answer.headers_mut());
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collectors_url_gets_the_path_of_traces_unless_it_has_one() {
        assert_eq!(endpoint("http://collector:4318"), "http://collector:4318/v1/traces");
        assert_eq!(endpoint("https://collector/"), "https://collector/v1/traces");
        assert_eq!(endpoint("https://collector/tenant/v1/traces"), "https://collector/tenant/v1/traces");
    }
}
