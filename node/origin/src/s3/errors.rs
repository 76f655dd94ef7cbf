//! What the server's answers mean.

use std::error::Error;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use crate::backend::BackendError;
use crate::text::{Told, told, told_text};

/// Why a request did not do what it asked for.
#[derive(Debug)]
pub(super) enum Refusal {
    /// There is no such object.
    Absent,
    /// The range begins beyond the object's end.
    Beyond,
    /// The condition of a write is not true.
    Condition,
    /// Credentials or permissions.
    Denied(Told),
    /// Trying again does not help.
    Invalid(Told),
    /// Trying again may help.
    Unavailable(Told),
}

impl Refusal {
    pub(super) fn into_error(self, what: String) -> BackendError {
        match self {
            Self::Denied(why) => BackendError::denied(what, why),
            Self::Invalid(why) => BackendError::invalid(what, why),
            Self::Unavailable(why) => BackendError::unavailable(what, why),
            Self::Absent => BackendError::NotFound { what },
            Self::Beyond => BackendError::invalid(what, "the range is beyond the object's end"),
            Self::Condition => {
                BackendError::unavailable(what, told_text("somebody else writes it this moment"))
            }
        }
    }
}

/// Reads an error.
pub(super) fn refusal<E>(what: &str, error: SdkError<E, HttpResponse>) -> Refusal
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let SdkError::ServiceError(answer) = &error else {
        let why = told(&error);
        tracing::debug!(what, %why, "no answer");
        // Without credentials no request is built; that is not the server's fault.
        let denied =
            matches!(error, SdkError::ConstructionFailure(_)) || why.to_string().contains("credentials");
        return if denied { Refusal::Denied(why) } else { Refusal::Unavailable(why) };
    };
    let status = answer.raw().status().as_u16();
    let (code, message) =
        (answer.err().code().unwrap_or_default(), answer.err().message().unwrap_or_default());
    let why = told_text(format!("{status} {code} {message}").trim());
    match (status, code) {
        (_, "NoSuchBucket") => Refusal::Invalid(told_text("there is no such bucket: make it first")),
        (_, "NoSuchKey" | "NotFound") | (404, _) => Refusal::Absent,
        (_, "InvalidRange") | (416, _) => Refusal::Beyond,
        (_, "PreconditionFailed" | "ConditionalRequestConflict") | (412, _) => Refusal::Condition,
        (_, "RequestTimeTooSkewed" | "SlowDown" | "RequestTimeout") | (408 | 429, _) => {
            Refusal::Unavailable(why)
        }
        (401 | 403, _) => Refusal::Denied(why),
        (400..=499, _) => Refusal::Invalid(why),
        _ => Refusal::Unavailable(why),
    }
}
