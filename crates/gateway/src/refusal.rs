//! All refusals: their texts and their HTTP status.

use std::fmt;
use std::time::Duration;

use hyper::StatusCode;
use meridian_types::Quota;

use crate::database::NoChanges;
use crate::forbidden::Forbidden;
use crate::queue_json::InvalidQueueRequest;
use crate::usage::{Account, Exceeded};
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
    /// Told apart from an unknown token by operators alone.
    #[error("Invalid access token.")]
    OtherDatabase,
    #[error(transparent)]
    Forbidden(#[from] Forbidden),

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
    #[error(transparent)]
    InvalidQueueRequest(#[from] InvalidQueueRequest),
    /// A mutation that cannot be applied to the stored value. The text is the database's.
    #[error("{0}")]
    Rejected(String),

    #[error(
        "The query parameters of a change feed are `prefix` (bytes in base64url), `after` (a \
         versionstamp of 20 hex digits, as is the header `last-event-id`) and `follow` (`true` or \
         `false`), each once at most."
    )]
    ChangesQuery,
    #[error(transparent)]
    NoChanges(NoChanges),

    /// The body came too slowly. Nothing was done: the client may send the request again.
    #[error("The request body did not come within {} s.", timeout.as_secs())]
    BodyTimeout { timeout: Duration },
    #[error(
        "Too many {what} are in progress: this gateway takes {limit} at a time, of which no access token gets all."
    )]
    Overloaded { what: Overload, limit: u64 },
    #[error("{0}")]
    OverQuota(#[from] OverQuota),
    #[error("This gateway is stopping.")]
    Stopping,
    #[error("This gateway writes an audit log, and cannot write the line of this request now.")]
    Unaudited,
    /// The text is the database's.
    #[error("{0}")]
    Unavailable(String),
    /// It is not known yet whether the token or the database exists.
    #[error("This server has not heard from its cluster yet.")]
    NotCurrent,
}

/// A quota that is used up, and the operators that can change it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OverQuota {
    pub(crate) exceeded: Exceeded,
    /// Of the database, if it is known.
    pub(crate) database: Option<String>,
}

impl fmt::Display for OverQuota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { exceeded: Exceeded { quota, value, of, .. }, database } = self;
        let (owner, command) = match (of, database) {
            (Account::Database(id), None) => (format!("The database {id}"), "databases"),
            (Account::Database(_), Some(name)) => (format!("The database {name}"), "databases"),
            (Account::Token(_) | Account::ConfiguredTokens, _) => {
                ("This access token".to_owned(), "tokens")
            }
        };
        write!(
            f,
            "{owner} has used up its quota {quota} of {value} at this gateway. {}",
            Quota::remedy(command)
        )
    }
}

impl std::error::Error for OverQuota {}

/// The resource that a gateway has run out of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overload {
    Requests,
    Metadata,
    Bodies,
    Answers,
    Watches,
    Listeners,
    ChangeFeeds,
}

impl Overload {
    /// The name in metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Metadata => "metadata_requests",
            Self::Bodies => "body_bytes",
            Self::Answers => "answer_bytes",
            Self::Watches => "watches",
            Self::Listeners => "listeners",
            Self::ChangeFeeds => "change_feeds",
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
            Self::Watches => "watches",
            Self::Listeners => "listeners",
            Self::ChangeFeeds => "change feeds",
        })
    }
}

impl Refusal {
    /// Whether the refused request had no token that is known to be valid.
    pub(crate) fn is_to_a_stranger(&self) -> bool {
        matches!(self.status(), StatusCode::UNAUTHORIZED | StatusCode::NOT_FOUND)
            || matches!(self, Self::NotCurrent)
    }

    /// When the same request may be taken, where that is known.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::OverQuota(over) => over.exceeded.room_in,
            _ => None,
        }
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
            | Self::OtherDatabase
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

    /// The reason in an audit log, which says nothing that the client sent.
    pub(crate) fn class(&self) -> &'static str {
        match self {
            Self::MalformedAuthorization | Self::UnknownToken | Self::OtherDatabase => "token",
            Self::Forbidden(_) => "forbidden",
            Self::UnknownPath => "path",
            Self::NoDefaultDatabase
            | Self::NoSuchDatabase
            | Self::DatabaseId
            | Self::UnknownDatabase => "database",
            Self::MetadataBody
            | Self::NoCommonVersion
            | Self::ConsistencyParameter
            | Self::UnknownHost
            | Self::ProtocolVersion
            | Self::BodyUnreadable
            | Self::Invalid(_)
            | Self::InvalidQueueRequest(_)
            | Self::ChangesQuery
            | Self::NoChanges(NoChanges::Ahead { .. }) => "invalid",
            Self::BodyTooLarge { .. } => "too_large",
            Self::BodyTimeout { .. } => "late",
            Self::Rejected(_) => "rejected",
            Self::NoChanges(NoChanges::Gone { .. } | NoChanges::NotOfHistory) => "gone",
            Self::Overloaded { .. } => "overloaded",
            Self::OverQuota(_) => "quota",
            Self::Stopping => "stopping",
            Self::Unaudited => "audit",
            Self::Unavailable(_) | Self::NoChanges(NoChanges::Unavailable(_)) => "unavailable",
            Self::NotCurrent => "not_current",
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::MalformedAuthorization | Self::UnknownToken | Self::OtherDatabase => {
                StatusCode::UNAUTHORIZED
            }
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
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
            | Self::InvalidQueueRequest(_)
            | Self::Rejected(_)
            | Self::ChangesQuery
            | Self::NoChanges(NoChanges::Ahead { .. }) => StatusCode::BAD_REQUEST,
            Self::NoChanges(NoChanges::Gone { .. } | NoChanges::NotOfHistory) => StatusCode::GONE,
            Self::BodyTimeout { .. }
            | Self::Overloaded { .. }
            | Self::OverQuota(_)
            | Self::Stopping
            | Self::Unaudited
            | Self::Unavailable(_)
            | Self::NoChanges(NoChanges::Unavailable(_))
            | Self::NotCurrent => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use meridian_types::{
        DatabaseId, Epoch, InvalidQueueName, Permission, Position, Quota, Versionstamp,
    };

    use super::*;
    use crate::validation::{decode_read, decode_write};

    const DOCUMENT: &str = include_str!("../../../docs/kv-connect.md");
    const OF_FEEDS: &str = include_str!("../../../docs/changes.md");

    const OVERLOADS: [(Overload, u64); 7] = [
        (Overload::Requests, 8192),
        (Overload::Metadata, 512),
        (Overload::Bodies, 268_435_456),
        (Overload::Answers, 16_777_216),
        (Overload::Watches, 20_000),
        (Overload::Listeners, 10_000),
        (Overload::ChangeFeeds, 1000),
    ];

    /// A refusal of every kind, with the figures of the documentation's examples. A new kind does
    /// not compile before it is listed here.
    fn of_every_kind() -> Vec<Refusal> {
        let listed = |refusal: Refusal| match refusal {
            Refusal::MalformedAuthorization
            | Refusal::UnknownToken
            | Refusal::OtherDatabase
            | Refusal::Forbidden(_)
            | Refusal::UnknownPath
            | Refusal::NoDefaultDatabase
            | Refusal::NoSuchDatabase
            | Refusal::MetadataBody
            | Refusal::NoCommonVersion
            | Refusal::ConsistencyParameter
            | Refusal::UnknownHost
            | Refusal::ProtocolVersion
            | Refusal::DatabaseId
            | Refusal::UnknownDatabase
            | Refusal::BodyTooLarge { .. }
            | Refusal::BodyUnreadable
            | Refusal::Invalid(_)
            | Refusal::InvalidQueueRequest(_)
            | Refusal::Rejected(_)
            | Refusal::BodyTimeout { .. }
            | Refusal::Overloaded { .. }
            | Refusal::OverQuota(_)
            | Refusal::Stopping
            | Refusal::Unaudited
            | Refusal::Unavailable(_)
            | Refusal::ChangesQuery
            | Refusal::NoChanges(_)
            | Refusal::NotCurrent => refusal,
        };
        let stamp = |sequence| Versionstamp::behind(Position::new(Epoch(1), sequence));
        let mut all: Vec<Refusal> = [
            Refusal::MalformedAuthorization,
            Refusal::UnknownToken,
            Refusal::OtherDatabase,
            Refusal::UnknownPath,
            Refusal::NoDefaultDatabase,
            Refusal::NoSuchDatabase,
            Refusal::MetadataBody,
            Refusal::NoCommonVersion,
            Refusal::ConsistencyParameter,
            Refusal::UnknownHost,
            Refusal::ProtocolVersion,
            Refusal::DatabaseId,
            Refusal::UnknownDatabase,
            Refusal::BodyTooLarge { max_bytes: 1_048_576 },
            Refusal::BodyUnreadable,
            Refusal::BodyTimeout { timeout: Duration::from_secs(30) },
            over_quota(Quota::RequestsPerSecond, 100, Account::Database(DatabaseId([1; 16]))),
            over_quota(Quota::Watches, 20, Account::Token(7)),
            Refusal::Stopping,
            Refusal::Unaudited,
            Refusal::NotCurrent,
            Refusal::ChangesQuery,
            Refusal::NoChanges(NoChanges::Gone { floor: stamp(0x2a) }),
            Refusal::NoChanges(NoChanges::NotOfHistory),
            Refusal::NoChanges(NoChanges::Ahead { newest: stamp(0x2a) }),
        ]
        .map(listed)
        .into();
        all.extend(OVERLOADS.map(|(what, limit)| Refusal::Overloaded { what, limit }));
        all.extend(forbidden_of_every_kind().map(Refusal::Forbidden));
        all.extend(invalid_of_every_kind().into_iter().map(Refusal::Invalid));
        all.extend(invalid_about_queues().into_iter().map(Refusal::InvalidQueueRequest));
        all
    }

    fn over_quota(quota: Quota, value: u64, of: Account) -> Refusal {
        let exceeded = Exceeded { quota, value, of, room_in: None };
        let database = Some("main".to_owned());
        Refusal::OverQuota(OverQuota { exceeded, database })
    }

    fn forbidden_of_every_kind() -> [Forbidden; 3] {
        let listed = |forbidden: Forbidden| match forbidden {
            Forbidden::Permission { .. } | Forbidden::Key { .. } | Forbidden::WholeQueue { .. } => {
                forbidden
            }
        };
        [
            Forbidden::Permission { permission: Permission::Write, by: "an atomic write" },
            Forbidden::Key { of: "a range of the read" },
            Forbidden::WholeQueue { by: "a list of a queue" },
        ]
        .map(listed)
    }

    fn invalid_about_queues() -> Vec<InvalidQueueRequest> {
        let listed = |invalid: InvalidQueueRequest| match invalid {
            InvalidQueueRequest::Json { .. }
            | InvalidQueueRequest::NotV8
            | InvalidQueueRequest::Field(_)
            | InvalidQueueRequest::Limit { .. }
            | InvalidQueueRequest::QueueName(_) => invalid,
        };
        [
            InvalidQueueRequest::Json {
                line: 1,
                column: 2,
                wants: ": missing field `listener`".to_owned(),
            },
            InvalidQueueRequest::NotV8,
            InvalidQueueRequest::Field("credits"),
            InvalidQueueRequest::Limit { field: "credits", limit: 1000 },
            InvalidQueueRequest::QueueName(InvalidQueueName::TooLong),
            InvalidQueueRequest::QueueName(InvalidQueueName::ControlCharacter),
        ]
        .map(listed)
        .into()
    }

    fn invalid_of_every_kind() -> Vec<Invalid> {
        let listed = |invalid: Invalid| match invalid {
            Invalid::Protobuf(_)
            | Invalid::Limit { .. }
            | Invalid::RangeLimit { .. }
            | Invalid::Versionstamp { .. }
            | Invalid::MutationKind { .. }
            | Invalid::MissingValue { .. }
            | Invalid::ExpireAt { .. }
            | Invalid::Encoding { .. }
            | Invalid::U64Length { .. }
            | Invalid::ReservedKey { .. }
            | Invalid::ReservedKeyIfUndelivered
            | Invalid::QueueName(_) => invalid,
        };
        let malformed = || Bytes::from_static(b"\xff");
        [
            decode_read(malformed()).unwrap_err(),
            decode_write(malformed()).unwrap_err(),
            Invalid::RangeLimit { index: 0, limit: 0 },
            Invalid::ReservedKey { index: 0 },
            Invalid::Versionstamp { index: 0, length: 9 },
            Invalid::MutationKind { index: 0, number: 7 },
            Invalid::MissingValue { index: 0 },
            Invalid::ExpireAt { index: 0, expire_at_ms: -2 },
            Invalid::Encoding { index: 0, number: 4 },
            Invalid::U64Length { index: 0, length: 7 },
            Invalid::ReservedKeyIfUndelivered,
            Invalid::QueueName(InvalidQueueName::TooLong),
        ]
        .map(listed)
        .into()
    }

    /// The texts of the [`Database`](crate::Database) are its own. The limits of messages are
    /// compared with the documentation where they are exceeded, over HTTP.
    #[test]
    fn every_refusal_stands_in_the_documentation_with_its_status() {
        for refusal in of_every_kind() {
            let status = refusal.status().as_u16();
            let text = match &refusal {
                Refusal::Invalid(Invalid::Protobuf(_)) => "Request protobuf is invalid: …".into(),
                Refusal::BodyTimeout { .. } => "The request body did not come within … s.".into(),
                refusal => refusal.to_string(),
            };
            let fence = if text.contains('`') { ["`` ", " ``"] } else { ["`", "`"] };
            let row = format!("| {status} | {}{text}{} |", fence[0], fence[1]);
            let is_of_a_feed = matches!(
                refusal,
                Refusal::ChangesQuery
                    | Refusal::NoChanges(_)
                    | Refusal::Overloaded { what: Overload::ChangeFeeds, .. }
            );
            let document = if is_of_a_feed { OF_FEEDS } else { DOCUMENT };
            assert!(document.contains(&row), "the documentation has no row with {row}");
        }
    }

    /// Native clients take such a 400 for a stale token, and send the request again: a write too.
    /// The texts that follow a write which was handed to the database are those of `meridian-txn`,
    /// which has the same test.
    #[test]
    fn no_bad_request_speaks_of_authorization() {
        for refusal in of_every_kind() {
            let speaks = refusal.to_string().to_lowercase().contains("authorization");
            assert!(!speaks || refusal.status() != StatusCode::BAD_REQUEST, "{refusal}");
        }
    }

    /// Native clients fail for good on statuses that they do not know, 429 among them.
    #[test]
    fn statuses_are_those_that_clients_know() {
        for refusal in of_every_kind() {
            let status = refusal.status().as_u16();
            // Such clients see no answer of a change feed.
            let is_of_a_feed = matches!(refusal, Refusal::NoChanges(_)) && status == 410;
            let is_known = [400, 401, 403, 404, 503].contains(&status);
            assert!(is_known || is_of_a_feed, "{status}: {refusal}");
        }
        for text in [Refusal::Rejected, Refusal::Unavailable].map(|of| of("text".to_owned())) {
            assert_eq!(text.to_string(), "text");
        }
        assert_eq!(Refusal::Rejected(String::new()).status(), StatusCode::BAD_REQUEST);
        assert_eq!(Refusal::Unavailable(String::new()).status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}
