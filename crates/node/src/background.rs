//! What a node does periodically, beside all requests.

pub(crate) mod announcements;
pub(crate) mod counters;
pub(crate) mod maintenance;
