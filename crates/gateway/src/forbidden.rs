//! The refusal of a request for want of a right.

use meridian_types::Permission;

/// A right that a token does not have. The text is for the client, and names no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Forbidden {
    #[error("This access token does not have the permission `{permission}`, which {by} needs.")]
    Permission { permission: Permission, by: &'static str },
    #[error("This access token is for some keys alone, and {of} lies outside of its prefixes.")]
    Key { of: &'static str },
    #[error("This access token is for some keys alone, and {by} is about a whole queue.")]
    WholeQueue { by: &'static str },
}
