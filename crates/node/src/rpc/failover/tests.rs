use meridian_config::DevLayout;
use meridian_gateway::Access;
use meridian_proto::directory::failover_server::Failover as _;
use meridian_storage::MemoryEngine;
use tonic::Code;

use super::*;
use crate::network::peers::PeerChannels;
use crate::testing::from_node;

/// Of a node without shards, in a cluster of nodes 1 to 7, of which 1, 4 and 6 vote in the directory.
fn service() -> FailoverService {
    let cluster =
        DevLayout::new(&[3, 2, 2]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
    let peers = Arc::new(PeerChannels::new(&cluster, Arc::new(|_| None)).unwrap());
    let engine: Arc<dyn Engine> = Arc::<MemoryEngine>::default();
    let shards = Arc::new(ShardTable::default());
    FailoverService {
        directory: Arc::new(Directory::new(cluster, Access::default(), None)),
        shards: Arc::clone(&shards),
        syncer: Arc::new(Syncer::start(Arc::clone(&engine)).unwrap()),
        engine,
        exchange: Arc::new(StateExchange::new(shards, peers)),
        log_reads: LogReads::default(),
    }
}

#[tokio::test]
async fn node_that_does_not_vote_in_the_directory_ends_no_epoch() {
    let service = service();
    for (node, is_voter) in [(1, true), (2, false), (4, true), (7, false)] {
        let seal = wire::SealRequest { shard: 1, epoch: 1, planned: false };
        let sealed = service.seal(from_node(node, seal)).await.map(drop);
        let drain = wire::DrainRequest { shard: 1, epoch: 1, ..Default::default() };
        let drained = service.drain(from_node(node, drain)).await.map(drop);
        for refused in [sealed, drained].map(Result::unwrap_err) {
            // The shard is not here: an order that is let through fails of that.
            let code = if is_voter { Code::NotFound } else { Code::PermissionDenied };
            assert_eq!(refused.code(), code, "node {node}: {refused}");
            let text = format!("node {node} does not vote in the directory, and ends no epoch");
            assert_eq!(refused.message() == text, !is_voter, "{refused}");
        }
    }
}
