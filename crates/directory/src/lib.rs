//! The state of the cluster and its changes: pure.
//!
//! - `cluster`: [`Cluster`], which the directory group replicates, with its parts:
//! - `shard`, `database`, `webhook`, `token`, `report`: a shard with its phase and epochs; databases,
//!   RPO and failover modes; where messages are sent to, with the keys for it; access tokens; the
//!   account of a failover.
//! - `trust`: how processes of the cluster talk to each other; authorities, operators, invitations.
//! - `voters`, `quorum`: which nodes would vote in a shard, and how many of them decide.
//! - `founding`: the first cluster, of a configuration.
//! - `change`, `refused`: [`Change`], the one way from a `Cluster` to the next, and why it is closed.
//! - `testing`: a cluster for the tests of this crate and of those above it.
//!
//! Invariants:
//! - An epoch begins with one `Change::Promote`, which names its region, voters and base for ever.
//! - A change is made whole or refused; a refused change leaves the cluster as it was.
//! - The voters of a shard lie in its primary region, each in a data center of its own.
//! - No id of a node, shard or token is given twice.
//! - A stored cluster can be read by later versions: fields are only ever added.
//!
//! Absent on purpose: tokio, storage, clocks, randomness, addresses being dialled, and *when* a
//! shard fails over, which `meridian-failover` decides.

mod change;
mod cluster;
mod database;
mod founding;
mod quorum;
mod refused;
mod report;
mod shard;
pub mod testing;
mod token;
mod trust;
mod voters;
mod webhook;

pub use change::{Change, QuotaOwner};
pub use cluster::{Cluster, Node};
pub use database::{Database, Deletion, FailoverMode, Rpo, RpoMode};
pub use founding::Founding;
pub use quorum::majority;
pub use refused::Refused;
pub use report::{FailoverReport, Loss};
pub use shard::{Phase, Plan, Shard, VoterChange};
pub use token::{PreviousSecret, Token, TokenScope};
pub use trust::{Authority, AuthorityKey, Invitation, Member, Operator, Transport, Trust};
pub use webhook::{
    WEBHOOK_CONCURRENCY, WEBHOOK_KEY_BYTES, WEBHOOK_TIMEOUT_MS, Webhook, WebhookKey,
    WebhookSettings,
};
