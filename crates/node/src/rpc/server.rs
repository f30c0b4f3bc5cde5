//! Serves all gRPC faces of a node: connections of control on their own runtime, all others on the
//! node's.

use std::io;
use std::time::Duration;

use meridian_consensus::RaftService;
use meridian_proto::admin::admin_server::AdminServer;
use meridian_proto::directory::directory_server::DirectoryServer;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::host::open_files;
use crate::network::control::{Connections, adopt, divide};
use crate::network::incoming::{Members, Room, incoming};
use crate::network::peers::MAX_MESSAGE_BYTES;
use crate::rpc::admin::AdminService;
use crate::rpc::cluster_gate::ClusterGate;
use crate::rpc::directory::DirectoryService;
use crate::rpc::failover::FailoverService;
use crate::rpc::replication::ShippingService;
use crate::rpc::shard::ShardService;

/// gRPC connections, as far as the process may open files. Another node opens a handful; in
/// `meridian dev` all come from one address.
const RPC_CONNECTIONS: usize = 1024;
/// Of each other node, whoever has taken the rest: more than it opens, with gateways on its
/// machine.
const RPC_CONNECTIONS_OF_A_NODE: usize = 32;

/// How many connections may be open in a process that may open so many files.
pub(crate) fn room(files: u64) -> Room {
    let in_all = open_files::rpc_connections(RPC_CONNECTIONS, files);
    Room { in_all, of_one_address: in_all.div_ceil(2), of_a_node: RPC_CONNECTIONS_OF_A_NODE }
}

/// The gRPC faces of a node.
#[derive(Clone)]
pub(crate) struct Services {
    pub(crate) gate: ClusterGate,
    pub(crate) raft: RaftService,
    pub(crate) shard: ShardService,
    pub(crate) shipping: ShippingService,
    pub(crate) admin: AdminService,
    pub(crate) directory: DirectoryService,
    pub(crate) failover: FailoverService,
}

impl Services {
    /// Serves connections of control on their own runtime, and all others on this one.
    ///
    /// # Errors
    /// When a runtime cannot watch the listener.
    pub(crate) fn start(
        self,
        listener: TcpListener,
        (room, members): (Room, Members),
        control: &Handle,
        stop: &CancellationToken,
    ) -> io::Result<Vec<JoinHandle<()>>> {
        let listener = listener.into_std()?;
        let (of_control, others) = {
            let _there = control.enter();
            divide(incoming(TcpListener::from_std(listener)?, room, members))
        };
        Ok(vec![
            control.spawn(self.clone().serve(of_control, stop.clone())),
            tokio::spawn(self.serve(adopt(others), stop.clone())),
        ])
    }

    async fn serve(self, connections: Connections, stop: CancellationToken) {
        let server = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(2)))
            .http2_keepalive_timeout(Some(Duration::from_secs(5)))
            .initial_stream_window_size(8 << 20)
            .initial_connection_window_size(16 << 20)
            .max_concurrent_streams(8192)
            // Callers give up calls as a matter of course: a hedge that lost, a client that left.
            .http2_max_pending_accept_reset_streams(Some(8192))
            .layer(self.gate)
            .add_service(self.raft.into_server())
            .add_service(self.shard.into_server())
            .add_service(self.shipping.into_server())
            .add_service(AdminServer::new(self.admin))
            .add_service(
                DirectoryServer::new(self.directory).max_decoding_message_size(MAX_MESSAGE_BYTES),
            )
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
