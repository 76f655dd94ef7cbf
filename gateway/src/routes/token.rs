//! Tokens of this gateway's own (distribution, "Token Authentication Specification": the GET form).

use http::header::{AUTHORIZATION, CACHE_CONTROL};
use http::{HeaderValue, Method, StatusCode};
use serde_json::json;

use super::{Answer, lists};
use crate::access::Connection;
use crate::error::{ApiError, Code};
use crate::service::Call;

/// GET. The scope asked for is not looked at: a token says who its bearer is, and the rules say what that one may do.
pub(crate) async fn get(call: &Call, connection: &Connection) -> Answer {
    if call.method != Method::GET {
        // containerd posts a form first, and gets when it may not.
        return Err(ApiError::method_not_allowed("GET"));
    }
    let issued = call.gateway.access.issue_token(connection, call.head.headers.get(AUTHORIZATION)).await?;
    let Some(issued) = issued else {
        return Err(ApiError::new(
            StatusCode::NOT_FOUND,
            Code::Unsupported,
            "this gateway gives out no tokens",
        ));
    };
    let body = json!({
        "token": issued.token,
        "access_token": issued.token,
        "expires_in": issued.lifetime.as_secs(),
    });
    let mut response = lists::json(StatusCode::OK, &body);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}
