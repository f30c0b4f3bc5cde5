//! Messages of the shards that this node leads, sent to the webhooks of their queues.
//!
//! A webhook is served by a listener like any other, in the process of the node that leads the
//! shard. Leases, retries, dead letters and the way from one leader to the next are those of queues:
//! two nodes that both take themselves for the leader are two listeners, and a message is one's at a
//! time.
//!
//! `senders` starts and stops a sender for each webhook, as leaderships and settings change. A
//! `sender` attends the queue, and begins as many requests as `pace`, which is pure, allows: it
//! slows down for an endpoint that is in trouble. `delivery` carries one message there: `request`
//! writes it, `signature` signs it, `verdict` judges the answer. `standing` keeps in mind what fails.

mod delivery;
mod pace;
mod request;
mod sender;
mod senders;
mod signature;
mod standing;
#[cfg(test)]
mod tests;
mod verdict;

pub(crate) use senders::{SenderParts, Senders};
pub(crate) use standing::Standings;
