//! Errors, with texts for the person at the command line.

use std::time::Duration;

use hyper::StatusCode;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{url}: {reason}")]
    Url { url: String, reason: String },
    #[error("the access token cannot be sent as a header")]
    Token,
    #[error("cannot connect to {address}: {source} (is the server running there?)")]
    Connect { address: String, source: std::io::Error },
    #[error(
        "no TLS with {address}: {source} (MERIDIAN_CACERT names a file with the authority of its certificate, if this \
         machine does not know it)"
    )]
    Tls { address: String, source: std::io::Error },
    #[error("{0}")]
    Transport(String),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("status {status}: {text}")]
    Status { status: StatusCode, text: String },
    #[error("gRPC status {status}: {text}")]
    Grpc { status: String, text: String },
    #[error("the answer has more than {0} bytes")]
    AnswerTooLarge(usize),
    #[error("the answer is not the message: {0}")]
    Decode(#[from] prost::DecodeError),
    /// The server answered, but not with the result that the operation needs.
    #[error("{0}")]
    Unsuccessful(String),
    #[error("the metadata exchange with {url} failed: {source}")]
    Metadata { url: String, source: Box<ClientError> },
}

impl ClientError {
    /// Includes the causes that hyper keeps behind its own short text.
    pub(crate) fn transport(error: &dyn std::error::Error) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            text = format!("{text}: {inner}");
            cause = inner.source();
        }
        Self::Transport(text)
    }

    /// Whether the connection is unusable afterwards.
    pub fn spoils_link(&self) -> bool {
        matches!(
            self,
            Self::Connect { .. }
                | Self::Tls { .. }
                | Self::Transport(_)
                | Self::Timeout(_)
                | Self::AnswerTooLarge(_)
        )
    }
}
