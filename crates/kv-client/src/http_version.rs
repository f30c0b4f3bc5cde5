//! The versions of HTTP that a link speaks.

use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HttpVersion {
    H1,
    /// With prior knowledge, or over TLS.
    H2,
}

impl HttpVersion {
    pub fn name(self) -> &'static str {
        match self {
            Self::H1 => "h1",
            Self::H2 => "h2",
        }
    }
}
