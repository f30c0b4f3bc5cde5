//! Brings this node to the part in each shard that the directory wants it to have, and reports how it
//! stands.

pub(crate) mod leadership;
pub(crate) mod member;
pub(crate) mod parts;
pub(crate) mod reconciler;
pub(crate) mod report;
pub(crate) mod seals;
pub(crate) mod voters;
