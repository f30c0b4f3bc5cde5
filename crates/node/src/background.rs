//! The periodic duties of a node, beside all requests.

pub(crate) mod announcements;
mod change_retention;
pub(crate) mod counters;
pub(crate) mod disk_watch;
pub(crate) mod encryption;
pub(crate) mod gauges;
pub(crate) mod maintenance;
pub(crate) mod marks;
pub(crate) mod measuring;
mod pace;
pub(crate) mod parts;
pub(crate) mod purge;
pub(crate) mod queue_gauges;
pub(crate) mod reclaim;
pub(crate) mod request_ids;
pub(crate) mod status;
