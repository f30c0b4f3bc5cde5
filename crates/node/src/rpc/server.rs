//! Serves all gRPC faces of a node: connections of control on their own runtime, all others on the
//! node's.

use std::io;
use std::sync::Arc;

use meridian_consensus::RaftService;
use meridian_net::admission::{Limits, Members, admitted};
use meridian_net::control::{Connections, adopt, divide};
use meridian_net::{Listener, MAX_MESSAGE_BYTES, Mutual, capacity, grpc};
use meridian_proto::admin::admin_server::AdminServer;
use meridian_proto::directory::directory_server::DirectoryServer;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::rpc::admin::AdminService;
use crate::rpc::arriving::ArrivingRequests;
use crate::rpc::changes::ChangesService;
use crate::rpc::cluster_gate::{ClusterGate, end_refused};
use crate::rpc::directory::DirectoryService;
use crate::rpc::failover::FailoverService;
use crate::rpc::leaving::LeavingAnswers;
use crate::rpc::membership::MembershipService;
use crate::rpc::queue::QueueService;
use crate::rpc::replication::ShippingService;
use crate::rpc::shard::ShardService;

/// gRPC connections, as far as the process may open files. Another node opens a handful; in
/// `meridian dev` all come from one address.
const RPC_CONNECTIONS: usize = 1024;
/// Of each other node, whatever the rest is taken by: more than it opens, with gateways on its
/// machine.
const RPC_CONNECTIONS_OF_A_NODE: usize = 32;

/// How many connections may be open in a process that may open so many files.
pub(crate) fn limits(files: u64) -> Limits {
    let in_all = capacity::rpc_connections(RPC_CONNECTIONS, files);
    Limits { in_all, of_one_address: in_all.div_ceil(2), of_a_node: RPC_CONNECTIONS_OF_A_NODE }
}

/// The gRPC faces of a node.
#[derive(Clone)]
pub(crate) struct Services {
    pub(crate) gate: ClusterGate,
    pub(crate) arriving: ArrivingRequests,
    pub(crate) raft: RaftService,
    pub(crate) shard: ShardService,
    pub(crate) changes: ChangesService,
    pub(crate) shipping: ShippingService,
    pub(crate) admin: AdminService,
    pub(crate) directory: DirectoryService,
    pub(crate) failover: FailoverService,
    pub(crate) membership: MembershipService,
}

impl Services {
    /// Serves connections of control on their own runtime, and all others on this one.
    ///
    /// # Errors
    /// When a runtime cannot watch the listener.
    pub(crate) fn start(
        self,
        listener: Listener,
        (limits, members): (Limits, Members),
        mutual: Arc<Mutual>,
        control: &Handle,
        stop: &CancellationToken,
    ) -> io::Result<Vec<JoinHandle<()>>> {
        let directory = Arc::clone(&self.gate.directory);
        tokio::spawn(end_refused(directory, Arc::clone(&mutual), stop.clone()));
        let listener = listener.detach()?;
        let (of_control, others) = {
            let _there = control.enter();
            divide(admitted(listener.attach()?, limits, members), Arc::clone(&mutual))
        };
        Ok(vec![
            control.spawn(self.clone().serve(of_control, stop.clone())),
            tokio::spawn(self.serve(adopt(others, mutual), stop.clone())),
        ])
    }

    async fn serve(self, connections: Connections, stop: CancellationToken) {
        let server = grpc::server()
            .layer(self.gate)
            .layer(self.arriving)
            .layer(LeavingAnswers)
            .add_service(self.raft.into_server())
            .add_service(QueueService(self.shard.clone()).into_server())
            .add_service(self.shard.into_server())
            .add_service(self.changes.into_server())
            .add_service(self.shipping.into_server())
            .add_service(AdminServer::new(self.admin))
            .add_service(
                DirectoryServer::new(self.directory).max_decoding_message_size(MAX_MESSAGE_BYTES),
            )
            .add_service(self.membership.into_server())
            .add_service(self.failover.into_server());
        // Connections end with the process: streams of the log never end by themselves.
        tokio::select! {
            served = server.serve_with_incoming(connections) => if let Err(error) = served {
                tracing::error!(%error, "the gRPC server failed");
            },
            () = stop.cancelled() => {}
        }
    }
}
