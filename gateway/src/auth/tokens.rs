//! Bearer tokens: JWTs of issuers the operator trusts.
//!
//! Two kinds. A *registry token* comes from a token server of the distribution project's protocol and says itself, in
//! its `access` claim, what it allows. A *workload token* (OpenID Connect: a Kubernetes service account, a CI job)
//! says who its bearer is, and the rules say what that one may do.

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Validation, dangerous, decode, decode_header};
use serde::Deserialize;

use super::keys::{KeyError, KeySource};
use super::rules::{Caller, Grant};

/// Longest token in bytes.
const TOKEN_BYTES_MAX: usize = 16 << 10;
/// How far clocks may differ.
const LEEWAY_SECONDS: u64 = 30;
/// Signatures taken: none in which the checker could also sign (HMAC), and not `none`.
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// Who decides what the bearer of a token may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Grants {
    /// The rules, by the token's subject.
    #[default]
    Rules,
    /// The token's `access` claim.
    Token,
}

/// An issuer the operator trusts.
pub(crate) struct Issuer {
    /// What rules call it.
    pub(crate) name: String,
    /// Its `iss` claim.
    pub(crate) issuer: String,
    /// The `aud` claims for which a token is meant for this registry.
    pub(crate) audience: Vec<String>,
    pub(crate) grants: Grants,
    /// Where clients get its tokens, and what they ask for: URL and service.
    pub(crate) realm: Option<(String, String)>,
    pub(crate) keys: KeySource,
}

/// Why a token is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("not a token: {0}")]
    Malformed(String),
    #[error("tokens signed with {0:?} are not taken")]
    Algorithm(Algorithm),
    #[error("no token of {0:?} is taken here")]
    UnknownIssuer(String),
    #[error("the token is signed by no key of its issuer")]
    Signature,
    #[error("the token has expired: log in again")]
    Expired,
    #[error("the token is not valid: {0}")]
    Claims(String),
    /// Not the client's fault.
    #[error(transparent)]
    Keys(#[from] KeyError),
}

#[derive(Deserialize)]
struct Peek {
    iss: Option<String>,
}

#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    sub: String,
    /// `null` in tokens that allow nothing.
    access: Option<Vec<Grant>>,
}

/// Whether a password is a token in disguise: some clients can send nothing but user and password.
pub(crate) fn looks_like_token(text: &str) -> bool {
    text.split('.').count() == 3 && text.starts_with("ey")
}

/// Checks a token: signature, issuer, audience, times.
pub(crate) async fn verify(issuers: &[Issuer], token: &str) -> Result<Caller, TokenError> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(TokenError::Malformed(format!("over {TOKEN_BYTES_MAX} bytes")));
    }
    let malformed = |error: jsonwebtoken::errors::Error| TokenError::Malformed(error.to_string());
    let header = decode_header(token).map_err(malformed)?;
    if !ALGORITHMS.contains(&header.alg) {
        return Err(TokenError::Algorithm(header.alg));
    }
    // Only to choose whose keys to check with; nothing else is read before the signature is found right.
    let stated: Peek = dangerous::insecure_decode_claims(token).map_err(malformed)?;
    let stated = stated.iss.unwrap_or_default();
    let issuer = issuers.iter().find(|issuer| issuer.issuer == stated);
    let issuer = issuer.ok_or_else(|| TokenError::UnknownIssuer(stated.chars().take(80).collect()))?;
    let (keys, candidates) = issuer.keys.find(header.kid.as_deref(), header.alg).await?;
    let mut validation = Validation::new(header.alg);
    validation.leeway = LEEWAY_SECONDS;
    validation.validate_nbf = true;
    validation.set_issuer(&[&issuer.issuer]);
    validation.set_audience(&issuer.audience);
    validation.set_required_spec_claims(&["exp", "iss", "aud"]);
    let mut refusal = TokenError::Signature;
    for key in candidates.into_iter().filter_map(|at| keys.get(at)) {
        match decode::<Claims>(token, &key.key, &validation) {
            Ok(data) => return Ok(caller(issuer, data.claims)),
            Err(error) => match error.kind() {
                // Another of the candidates may have signed it.
                ErrorKind::InvalidSignature => {}
                ErrorKind::ExpiredSignature => refusal = TokenError::Expired,
                _ => refusal = TokenError::Claims(error.to_string()),
            },
        }
    }
    Err(refusal)
}

fn caller(issuer: &Issuer, claims: Claims) -> Caller {
    match issuer.grants {
        Grants::Rules => Caller::Token { issuer: issuer.name.clone(), subject: claims.sub },
        Grants::Token => Caller::Granted { subject: claims.sub, grants: claims.access.unwrap_or_default() },
    }
}
