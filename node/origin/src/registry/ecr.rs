//! Amazon ECR: a password for its registries from the credentials of AWS (`GetAuthorizationToken`, Amazon ECR API
//! Reference 2015-09-21). One signed request, so that no SDK of a whole service is needed for it.

use std::time::SystemTime;

use aws_config::{BehaviorVersion, Region};
use aws_credential_types::provider::{ProvideCredentials as _, SharedCredentialsProvider};
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

/// A password for `host`, good for hours. Asked of the region's endpoint, or of the one that AWS's own variables name:
/// `AWS_ENDPOINT_URL_ECR`, `AWS_ENDPOINT_URL` (AWS SDKs and Tools Reference Guide, "Service-specific endpoints"), as for
/// an interface endpoint of a private network.
///
/// # Errors
/// [`BackendError`].
pub(super) async fn credentials(host: &str, region: &str) -> Result<Credentials, BackendError> {
    let domain = if host.ends_with(".cn") { "amazonaws.com.cn" } else { "amazonaws.com" };
    let named = ["AWS_ENDPOINT_URL_ECR", "AWS_ENDPOINT_URL"].iter().find_map(|name| std::env::var(name).ok());
    let url = named.unwrap_or_else(|| format!("https://api.ecr.{region}.{domain}/"));
    let shared =
        aws_config::defaults(BehaviorVersion::latest()).region(Region::new(region.to_owned())).load().await;
    ask(host, region, &url, shared.credentials_provider()).await
}

async fn ask(
    host: &str,
    region: &str,
    url: &str,
    provider: Option<SharedCredentialsProvider>,
) -> Result<Credentials, BackendError> {
    let what = format!("get a password for {host}");
    let denied = |why: &str| BackendError::denied(&what, told_text(why));
    let provider = provider.ok_or_else(|| denied("there are no credentials of AWS"))?;
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
    use crate::conformance::servers::Server;

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

    /// A user that may ask for tokens, with its key and secret.
    async fn user(moto: &Server, name: &str) -> [String; 2] {
        const POLICY: &str = r#"{"Version": "2012-10-17", "Statement": [{"Effect": "Allow",
            "Action": "ecr:GetAuthorizationToken", "Resource": "*"}]}"#;
        let ask = async |action: &str, more: &[(&str, &str)]| {
            let fixed = [("Action", action), ("Version", "2010-05-08"), ("UserName", name)];
            let escaped = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
            let form: Vec<_> =
                fixed.iter().chain(more).map(|(name, value)| format!("{name}={}", escaped(value))).collect();
            let request = reqwest::Client::new()
                .post(moto.url())
                .header("content-type", "application/x-www-form-urlencoded")
                .header(
                    "authorization",
                    "AWS4-HMAC-SHA256 Credential=x/20260101/eu-west-1/iam/aws4_request, SignedHeaders=host, \
                     Signature=0",
                );
            let answer = request.body(form.join("&")).send().await.unwrap();
            assert!(answer.status().is_success(), "{action}: {}", answer.text().await.unwrap());
            answer.text().await.unwrap()
        };
        ask("CreateUser", &[]).await;
        ask("PutUserPolicy", &[("PolicyName", "p"), ("PolicyDocument", POLICY)]).await;
        let made = ask("CreateAccessKey", &[]).await;
        let element = |name: &str| {
            let after = made.split_once(&format!("<{name}>")).unwrap().1;
            after.split_once('<').unwrap().0.to_owned()
        };
        [element("AccessKeyId"), element("SecretAccessKey")]
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_signed_request_gets_a_password() {
        const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
        // It checks signatures and policies after the requests that make the user.
        let moto = Server::moto(3).await;
        let [key, secret] = user(&moto, "puller").await;
        let ask = async |secret: &str| {
            let credentials = aws_credential_types::Credentials::new(&key, secret, None, None, "test");
            let provider = SharedCredentialsProvider::new(credentials);
            ask(HOST, "eu-west-1", &moto.url(), Some(provider)).await
        };
        match ask(&secret).await.unwrap() {
            Credentials::Password { user, password } => {
                assert_eq!(user, "AWS");
                assert!(password.contains("123456789012"), "a token of another registry");
            }
            other => panic!("{other:?}"),
        }
        let error = ask("wrong").await.unwrap_err();
        assert!(matches!(error, BackendError::Denied { .. }), "{error:?}");
        let none = super::ask(HOST, "eu-west-1", &moto.url(), None).await.unwrap_err();
        assert!(none.to_string().contains("no credentials of AWS"), "{none}");
    }
}
