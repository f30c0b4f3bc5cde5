//! Which nodes the router asks, when, and how often: over a clock that stands still, and voters
//! that are not there.

mod changes;
mod health;
mod listeners;
mod local;
mod outcomes;
mod reads;
mod retries;
mod time;
mod watches;
mod world;

use std::collections::BTreeSet;

use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use meridian_config::DEV_DEFAULT_DATABASE;
use meridian_gateway::new_request_id;
use meridian_types::{Consistency, ReadRange, Transaction};

use super::*;
use crate::routing::nodes::BrokenOff;
use world::{DEADLINE, Link, World, run, run_beside};

fn write() -> Write {
    Write {
        database: DEV_DEFAULT_DATABASE,
        request_id: new_request_id(),
        may_come_again: false,
        transaction: Transaction::default(),
    }
}

fn read() -> Read {
    let ranges = vec![ReadRange { start: "a".into(), end: "b".into(), limit: 1, reverse: false }];
    Read { database: DEV_DEFAULT_DATABASE, consistency: Consistency::Strong, ranges }
}

fn eventual() -> Read {
    Read { consistency: Consistency::Eventual, ..read() }
}

impl World {
    async fn commits(&self) -> bool {
        matches!(self.router.write(write()).await, Ok(WriteOutcome::Committed(_)))
    }

    /// So many writes at once commit, all of them.
    async fn all_commit(&self, count: usize) -> bool {
        let writes: FuturesUnordered<_> =
            (0..count).map(|_| self.spawn(self.clone().owned_commit())).collect();
        writes.all(|committed| async move { committed }).await
    }

    async fn owned_commit(self) -> bool {
        self.commits().await
    }

    fn writing(&self) -> futures::future::RemoteHandle<Result<WriteOutcome, WriteFailure>> {
        let router = Arc::clone(&self.router);
        self.spawn(async move { router.write(write()).await })
    }

    async fn first_call(&self) {
        while self.voters.calls() == 0 {
            self.time.sleep(Duration::from_micros(100)).await;
        }
    }
}

const AT_ONCE: Duration = Duration::ZERO;

impl World {
    /// Another version of the cluster is known, in which `change` was made.
    fn learns(&self, change: impl FnOnce(&mut meridian_directory::Cluster)) {
        let mut cluster = self.router.directory.known().cluster.clone();
        change(&mut cluster);
        cluster.version += 1;
        self.router.directory.learn(cluster).unwrap();
    }
}

/// The router of a gateway on this node, which does not vote.
fn beside(world: &World, node: u64) -> Arc<Router<Arc<world::Voters>, world::Time>> {
    let World { voters, time, router, .. } = world;
    let directory = Arc::clone(&router.directory);
    Arc::new(Router::new(
        Arc::clone(voters),
        time.clone(),
        Some(NodeId(node)),
        "region-1".to_owned(),
        directory,
        DEADLINE,
    ))
}
