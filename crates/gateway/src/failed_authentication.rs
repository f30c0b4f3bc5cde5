//! Requests that showed no token which opens their database: why, for metrics and logs.

use std::fmt;

/// The reason that an operator is told. Clients are told the same of an unknown token and of a token
/// for other databases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    Missing,
    Malformed,
    Unknown,
    Expired,
    Revoked,
    /// The token opens others.
    Database,
}

impl Reason {
    pub(crate) const EVERY: [Self; 6] = [
        Self::Missing,
        Self::Malformed,
        Self::Unknown,
        Self::Expired,
        Self::Revoked,
        Self::Database,
    ];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::Unknown => "unknown",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Database => "database",
        }
    }
}

/// The beginning of a secret's hash: it tells operators' tokens apart, and says nothing of a secret
/// that is not known already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint([u8; 4]);

impl Fingerprint {
    pub(crate) fn of(sha256: [u8; 32]) -> Self {
        let [a, b, c, d, ..] = sha256;
        Self([a, b, c, d])
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Goes with the answer to the connection, which knows the client's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FailedAuthentication {
    pub(crate) reason: Reason,
    /// Of the token that was shown.
    pub(crate) fingerprint: Option<Fingerprint>,
}
