//! The connection: credentials of the default chain, TLS by rustls with aws-lc-rs, patience.

use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_credential_types::Credentials;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{Builder, RequestChecksumCalculation, ResponseChecksumValidation};
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode};

use crate::backend::BackendError;
use crate::url::BackendUrl;

/// How long a connection may take: within a region it takes milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the server may be silent. Large bodies are watched by the client's protection against stalled streams.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Tries of one request; the write-back queue and the swarm have patience of their own.
const ATTEMPTS: u32 = 3;

/// The client of `url`, with `credentials` or else those of the default chain.
pub(super) async fn open(url: &BackendUrl, credentials: Option<Credentials>) -> Result<Client, BackendError> {
    let timeouts =
        TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(READ_TIMEOUT).build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .timeout_config(timeouts)
        .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS));
    if let Some(file) = url.option("ca") {
        loader = loader.http_client(trusting(url, file).await?);
    }
    if let Some(credentials) = credentials {
        loader = loader.credentials_provider(credentials);
    }
    if let Some(profile) = url.option("profile") {
        loader = loader.profile_name(profile);
    }
    if let Some(region) = url.option("region") {
        loader = loader.region(Region::new(region.to_owned()));
    }
    let shared = loader.load().await;
    let mut config = Builder::from(&shared);
    if shared.region().is_none() {
        // Servers that are not Amazon's take any.
        let Some(_) = url.option("endpoint") else {
            let why = "no region is known: add ?region=…, or set AWS_REGION";
            return Err(BackendError::invalid(url, why));
        };
        config = config.region(Region::new("us-east-1"));
    }
    if let Some(endpoint) = url.option("endpoint") {
        config = config.endpoint_url(endpoint);
    }
    if let Ok(Some(path_style)) = url.switch("path-style") {
        config = config.force_path_style(path_style);
    }
    if url.switch("checksums").ok().flatten() == Some(false) {
        config = config
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    }
    Ok(Client::from_conf(config.build()))
}

/// A client that trusts the certificates in `file` and no others.
async fn trusting(
    url: &BackendUrl,
    file: &str,
) -> Result<aws_sdk_s3::config::SharedHttpClient, BackendError> {
    let pem = crate::web::read_pem(url, "ca", file).await?;
    let store = TrustStore::empty().with_pem_certificate(pem);
    let context = TlsContext::builder().with_trust_store(store).build();
    let context = context.map_err(|error| BackendError::invalid(url, crate::text::told(&error)))?;
    let builder = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::AwsLc));
    Ok(builder.tls_context(context).build_https())
}
