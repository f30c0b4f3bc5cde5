//! All refusals: their texts and their HTTP status.

use std::fmt;
use std::time::Duration;

use hyper::StatusCode;

use crate::validation::Invalid;

/// Every answer that is not a result. Displayed as the plain-text body.
///
/// The texts are part of the protocol: native clients take a 400 whose body speaks of the
/// "authorization" header for a stale token and send the request again, so no 400 here may use that
/// word.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("Malformed authorization header.")]
    MalformedAuthorization,
    #[error("Invalid access token.")]
    UnknownToken,
    #[error("This access token may only read, and this is a write.")]
    ReadOnlyToken,

    #[error("Nothing is served here.")]
    UnknownPath,
    #[error(
        "This server has no default database. Connect to /db/<name> or to /databases/<id>/connect."
    )]
    NoDefaultDatabase,
    #[error("This server has no such database.")]
    NoSuchDatabase,

    #[error(
        "The body of a metadata request is a JSON object with an array `supportedVersions`. \
         This server serves the protocol versions 1, 2 and 3."
    )]
    MetadataBody,
    #[error("No common protocol version. This server serves the versions 1, 2 and 3.")]
    NoCommonVersion,
    #[error("The query parameter `consistency` is either `strong` or `eventual`.")]
    ConsistencyParameter,
    #[error("A metadata request of protocol version 1 needs a valid Host header.")]
    UnknownHost,

    #[error("Expected protocol version 1, 2 or 3.")]
    ProtocolVersion,
    #[error("Invalid database id.")]
    DatabaseId,
    #[error("Invalid database id.")]
    UnknownDatabase,
    #[error("The request body exceeds the limit of {max_bytes} bytes.")]
    BodyTooLarge { max_bytes: usize },
    #[error("The request body cannot be read.")]
    BodyUnreadable,
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// A mutation that cannot be applied to the stored value. The text is the database's.
    #[error("{0}")]
    Rejected(String),

    /// The body came too slowly. Nothing was done: the client may send the request again.
    #[error("The request body did not come within {} s.", timeout.as_secs())]
    BodyTimeout { timeout: Duration },
    #[error("Too many {0} are in progress on this server.")]
    Overloaded(Overload),
    /// The text is the database's.
    #[error("{0}")]
    Unavailable(String),
    /// It is not known yet whether the token or the database exists.
    #[error("This server has not heard from its cluster yet.")]
    NotCurrent,
}

/// The resource that a gateway has run out of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overload {
    Requests,
    Metadata,
    Bodies,
    Answers,
}

impl Overload {
    /// The name in metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Metadata => "metadata_requests",
            Self::Bodies => "body_bytes",
            Self::Answers => "answer_bytes",
        }
    }
}

impl fmt::Display for Overload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Requests => "requests",
            Self::Metadata => "metadata requests",
            Self::Bodies => "bytes of requests",
            Self::Answers => "bytes of answers",
        })
    }
}

impl Refusal {
    /// Whether the refused request had no token that is known to be valid.
    pub(crate) fn is_to_a_stranger(&self) -> bool {
        matches!(self.status(), StatusCode::UNAUTHORIZED | StatusCode::NOT_FOUND)
            || matches!(self, Self::NotCurrent)
    }

    /// Whether the rest of the request's body is read before the refusal is sent. A body that
    /// caused the refusal was read already, or is given up; a stranger's body is not read.
    pub(crate) fn hears_out(&self) -> bool {
        !self.is_to_a_stranger()
            && !matches!(self, Self::BodyTimeout { .. } | Self::BodyTooLarge { .. })
    }

    /// This refusal while the catalogue is not current: unknown tokens and databases may exist.
    pub(crate) fn unless_current(self, is_current: bool) -> Self {
        match self {
            Self::UnknownToken
            | Self::NoDefaultDatabase
            | Self::NoSuchDatabase
            | Self::UnknownDatabase
                if !is_current =>
            {
                Self::NotCurrent
            }
            other => other,
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::MalformedAuthorization | Self::UnknownToken => StatusCode::UNAUTHORIZED,
            Self::ReadOnlyToken => StatusCode::FORBIDDEN,
            Self::UnknownPath | Self::NoDefaultDatabase | Self::NoSuchDatabase => {
                StatusCode::NOT_FOUND
            }
            Self::MetadataBody
            | Self::NoCommonVersion
            | Self::ConsistencyParameter
            | Self::UnknownHost
            | Self::ProtocolVersion
            | Self::DatabaseId
            | Self::UnknownDatabase
            | Self::BodyTooLarge { .. }
            | Self::BodyUnreadable
            | Self::Invalid(_)
            | Self::Rejected(_) => StatusCode::BAD_REQUEST,
            Self::BodyTimeout { .. }
            | Self::Overloaded(_)
            | Self::Unavailable(_)
            | Self::NotCurrent => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bad_request_speaks_of_authorization() {
        for refusal in [
            Refusal::MetadataBody,
            Refusal::NoCommonVersion,
            Refusal::ConsistencyParameter,
            Refusal::UnknownHost,
            Refusal::ProtocolVersion,
            Refusal::DatabaseId,
            Refusal::BodyTooLarge { max_bytes: 1 },
            Refusal::BodyUnreadable,
        ] {
            assert_eq!(refusal.status(), StatusCode::BAD_REQUEST);
            assert!(!refusal.to_string().to_lowercase().contains("authorization"), "{refusal}");
        }
    }
}
