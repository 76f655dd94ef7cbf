//! Amazon ECR: a password for its registries from the credentials of AWS (`GetAuthorizationToken`, Amazon ECR API
//! Reference 2015-09-21). One signed request, so that no SDK of a whole service is needed for it.

use std::time::SystemTime;

use aws_config::{BehaviorVersion, Region};
use aws_credential_types::provider::ProvideCredentials as _;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use data_encoding::BASE64;
use serde::Deserialize;

use super::credentials::Credentials;
use crate::backend::BackendError;
use crate::text::{told, told_text};
use crate::web;

/// What is asked for.
const TARGET: &str = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken";
/// Largest answer: a token has about 3 KiB.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// The region of `ACCOUNT.dkr.ecr.REGION.amazonaws.com`; `None` for other hosts.
pub(super) fn region_of(host: &str) -> Option<&str> {
    let (account, rest) = host.split_once(".dkr.ecr.")?;
    let (region, domain) = rest.split_once('.')?;
    let known = matches!(domain, "amazonaws.com" | "amazonaws.com.cn");
    (known && !account.is_empty() && account.bytes().all(|byte| byte.is_ascii_digit())).then_some(region)
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "authorizationData")]
    data: Vec<Datum>,
}

#[derive(Deserialize)]
struct Datum {
    #[serde(rename = "authorizationToken")]
    token: String,
}

/// A password for `host`, good for hours.
///
/// # Errors
/// [`BackendError`].
pub(super) async fn credentials(host: &str, region: &str) -> Result<Credentials, BackendError> {
    let domain = if host.ends_with(".cn") { "amazonaws.com.cn" } else { "amazonaws.com" };
    ask(host, region, &format!("https://api.ecr.{region}.{domain}/")).await
}

async fn ask(host: &str, region: &str, url: &str) -> Result<Credentials, BackendError> {
    let what = format!("get a password for {host}");
    let denied = |why: &str| BackendError::denied(&what, told_text(why));
    let shared =
        aws_config::defaults(BehaviorVersion::latest()).region(Region::new(region.to_owned())).load().await;
    let provider = shared.credentials_provider().ok_or_else(|| denied("there are no credentials of AWS"))?;
    let credentials = provider.provide_credentials().await;
    let identity = credentials.map_err(|error| BackendError::denied(&what, told(&error)))?.into();
    let body = b"{}";
    let headers = [("content-type", "application/x-amz-json-1.1"), ("x-amz-target", TARGET)];
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("ecr")
        .time(SystemTime::now())
        .settings(SigningSettings::default())
        .build()
        .map_err(|error| denied(&error.to_string()))?;
    let request = SignableRequest::new("POST", url, headers.into_iter(), SignableBody::Bytes(body));
    let request = request.map_err(|error| denied(&error.to_string()))?;
    let signed = sign(request, &parameters.into()).map_err(|error| denied(&error.to_string()))?;
    let (instructions, _) = signed.into_parts();
    let client = reqwest::Client::builder().build().map_err(|error| denied(&told(&error).to_string()))?;
    let mut request = client.post(url).body(body.as_slice());
    for (name, value) in headers.into_iter().chain(instructions.headers()) {
        request = request.header(name, value);
    }
    let answer = web::send(&what, request).await?;
    if !answer.status().is_success() {
        return Err(web::refused(&what, answer.status()));
    }
    let body = web::ranged_body(&what, answer, &(0..ANSWER_BYTES_MAX)).await?;
    let answer: Answer = serde_json::from_slice(&body).map_err(|_| denied("its answer is not understood"))?;
    let pair = answer.data.first().and_then(|datum| BASE64.decode(datum.token.as_bytes()).ok());
    let pair = pair.and_then(|pair| String::from_utf8(pair).ok());
    match pair.as_ref().and_then(|pair| pair.split_once(':')) {
        Some((user, password)) => {
            Ok(Credentials::Password { user: user.to_owned(), password: password.to_owned() })
        }
        None => Err(denied("its answer has no token")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_ecr() {
        assert_eq!(region_of("123456789012.dkr.ecr.eu-west-1.amazonaws.com"), Some("eu-west-1"));
        assert_eq!(region_of("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn"), Some("cn-north-1"));
        for other in
            ["docker.io", "x.dkr.ecr.eu.amazonaws.com", "1.dkr.ecr.eu.evil.com", "1.dkr.ecr.amazonaws.com"]
        {
            assert_eq!(region_of(other), None, "{other}");
        }
    }
}
