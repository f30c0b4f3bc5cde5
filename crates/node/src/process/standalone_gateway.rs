//! A gateway without data of its own, beside an application.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::changes::ChangeLogs;
use crate::cluster_view::certificates::OwnCertificate;
use crate::cluster_view::client::{Follower, TokenUseTelling};
use crate::cluster_view::view::Directory;
use crate::host::clock::BootClock;
use crate::network::peers::{Dial, PeerChannels};
use crate::process::credentials;
use crate::process::settings::{
    client_security, configured_access, first_cluster, gateway_options, listen, local_address,
    max_memory_bytes, peer_channels,
};
use crate::process::start_error::StartError;
use crate::read::execution::Reads;
use crate::routing::cluster_nodes::ClusterNodes;
use crate::routing::router::Router;
use crate::routing::write_calls::WriteCalls;
use crate::rpc::cluster_gate::end_refused;
use crate::watches::Watches;
use meridian_config::{GatewayConfig, IdentityFolder, ListenPurpose};
use meridian_gateway::Options;
use meridian_memory::{ByteBudget, Shares};
use meridian_net::{Listener, Mutual, capacity};
use meridian_pki::Holder;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How long a gateway stays closed while it has not heard from its cluster.
const HEARING: Duration = Duration::from_secs(3);

/// A running gateway without data of its own, to be put beside an application.
pub struct StandaloneGateway {
    kv_address: SocketAddr,
    router: Arc<Router>,
    directory: Arc<Directory>,
    options: Options,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl StandaloneGateway {
    /// # Errors
    /// [`StartError`], naming the port that cannot be used.
    pub async fn start(config: GatewayConfig, dial: Option<Dial>) -> Result<Self, StartError> {
        let kv = listen(&config.listen.kv, ListenPurpose::KvConnect).await?;
        let shares = Shares::of_gateway(max_memory_bytes(config.max_memory_mb));
        tracing::info!(?shares, "memory is divided, in bytes");
        let kv_address = local_address(&kv)?;
        let stop = CancellationToken::new();
        let follow_until = (!config.own_identity).then_some(&stop);
        let mutual = credentials::read(config.identity.as_ref(), follow_until)?;
        let name = name(&mutual, kv_address);
        let clients = client_security(&config.gateway, kv_address, &name)?;
        let cluster = first_cluster(config.cluster, &mutual);
        let peers = peer_channels(&cluster, dial, &config.dial, None, Arc::clone(&mutual))?;
        let directory = Arc::new(Directory::new(cluster, configured_access(&config.tokens)?, None));
        let reads = Reads::new(ByteBudget::new("reads", shares.reads));
        let nodes = ClusterNodes {
            local: Arc::default(),
            local_node: None,
            peers: Arc::clone(&peers),
            writes: Arc::new(WriteCalls::new(Arc::clone(&peers))),
            changes: Arc::new(ChangeLogs::new(Arc::clone(&directory))),
            watches: Arc::new(Watches::new(Arc::clone(&directory), reads.clone())),
            reads,
        };
        let router = Arc::new(Router::new(
            nodes,
            BootClock,
            None,
            config.region.clone(),
            Arc::clone(&directory),
            Duration::from_millis(config.gateway.request_deadline_ms),
        ));
        let follower = Follower {
            directory: Arc::clone(&directory),
            peers: Arc::clone(&peers),
            region: config.region.clone(),
            node: None,
        };
        tokio::spawn(follower.run(stop.clone()));
        tokio::spawn(end_refused(Arc::clone(&directory), Arc::clone(&mutual), stop.clone()));
        let telling = TokenUseTelling {
            directory: Arc::clone(&directory),
            peers: Arc::clone(&peers),
            region: config.region.clone(),
        };
        tokio::spawn(telling.run(stop.clone()));
        if let (true, Some(state_dir)) = (config.own_identity, &config.state_dir) {
            let certificate = OwnCertificate {
                folder: IdentityFolder::of(state_dir),
                mutual,
                directory: Arc::clone(&directory),
                peers: Arc::clone(&peers),
                node: None,
                with_keys: Box::new(|| None),
            };
            tokio::spawn(certificate.run(stop.clone()));
        }
        tokio::spawn(dial_cluster(Arc::clone(&directory), peers, stop.clone()));
        let stopped = stop.clone();
        let files = capacity::raise_open_files();
        let options = gateway_options(&config.gateway, &config.region, files, &shares, &clients);
        let (following, until) = (clients.follow_files(), stop.clone());
        tokio::spawn(async move { until.run_until_cancelled(following).await });
        let serving = serve(kv, &router, &directory, options.clone(), &stop);
        let known = Arc::clone(&directory);
        let task = tokio::spawn(async move {
            // Clients wait rather than hear that their token or their database is not there.
            // A gateway that reaches no node serves what its configuration has.
            drop(timeout(HEARING, stopped.run_until_cancelled(known.current())).await);
            serving.await;
        });
        Ok(Self { kv_address, router, directory, options, stop, task })
    }

    pub fn kv_address(&self) -> SocketAddr {
        self.kv_address
    }

    /// Where a client within this process reaches the gateway without TLS: a client would have to
    /// know by which name the certificate is. Where there is TLS, it is another port, on loopback,
    /// which is served from then on.
    ///
    /// # Errors
    /// No port is free.
    pub async fn address_for_this_process(&self) -> Result<SocketAddr, StartError> {
        if self.options.tls.is_none() {
            return Ok(self.kv_address);
        }
        let listener = listen("127.0.0.1:0", ListenPurpose::KvConnect).await?;
        let address = local_address(&listener)?;
        let options = Options { tls: None, ..self.options.clone() };
        tokio::spawn(serve(listener, &self.router, &self.directory, options, &self.stop));
        Ok(address)
    }

    /// Finishes the requests in progress.
    pub async fn stop(self) {
        self.stop.cancel();
        // A task that failed has said so.
        drop(self.task.await);
    }
}

/// In the audit log: as its certificate names it, or else where it listens.
fn name(mutual: &Mutual, kv_address: SocketAddr) -> String {
    match mutual.own().map(|own| own.subject.holder.clone()) {
        Some(Holder::Gateway(name)) => name,
        _ => kv_address.to_string(),
    }
}

fn serve(
    listener: Listener,
    router: &Arc<Router>,
    directory: &Arc<Directory>,
    options: Options,
    stop: &CancellationToken,
) -> impl Future<Output = ()> + use<> {
    let (router, directory, stop) = (Arc::clone(router), Arc::clone(directory), stop.clone());
    meridian_gateway::serve(listener, router, directory, options, async move {
        stop.cancelled().await;
    })
}

/// Dials the nodes that there are.
async fn dial_cluster(
    directory: Arc<Directory>,
    peers: Arc<PeerChannels>,
    stop: CancellationToken,
) {
    let mut known = directory.watch();
    let mut certificate = peers.watch_certificate();
    loop {
        for node in peers.update(&known.borrow_and_update().cluster) {
            tracing::error!(%node, "a node's address cannot be dialled");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = known.changed() => if changed.is_err() { return },
            () = certificate.changed() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Instant;

    use meridian_config::{DevLayout, GatewayListen, GatewaySettings, TokenConfig, TokenSecret};
    use meridian_directory::{Cluster, Transport};
    use meridian_failover::Lease;
    use meridian_gateway::{Access, Databases};
    use meridian_net::admission::{Limits, admitted};
    use meridian_net::control::{adopt, divide};
    use meridian_proto::directory::directory_server::DirectoryServer;
    use meridian_types::{NodeId, Permissions};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::watch;

    use super::*;
    use crate::rpc::directory::DirectoryService;
    use crate::testing::{CLUSTER, authority, identity, mutual, until};

    const TOKEN: &str = "a-token-of-the-configuration";

    async fn metadata(gateway: &StandaloneGateway, token: &str) -> String {
        let mut stream = TcpStream::connect(gateway.kv_address()).await.unwrap();
        let request = format!(
            "POST / HTTP/1.1\r\nhost: kv\r\nauthorization: Bearer {token}\r\n\
             content-length: 0\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Without an identity, in a cluster of which nothing listens.
    fn config() -> GatewayConfig {
        let founded =
            DevLayout::new(&[3]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
        let secret = TokenSecret::Plain(TOKEN.to_owned());
        GatewayConfig {
            region: "region-1".to_owned(),
            max_memory_mb: None,
            listen: GatewayListen { kv: "127.0.0.1:0".to_owned(), metrics: None },
            gateway: GatewaySettings { request_deadline_ms: 200, ..GatewaySettings::default() },
            cluster: founded,
            tokens: vec![TokenConfig::new(secret, Databases::All, Permissions::ALL)],
            dial: BTreeMap::new(),
            identity: None,
            own_identity: false,
            state_dir: None,
            insecure: true,
        }
    }

    #[tokio::test]
    async fn gateway_without_nodes_opens_late_gives_metadata_and_calls_no_token_unknown() {
        let started = Instant::now();
        let gateway = StandaloneGateway::start(config(), None).await.unwrap();
        let answer = metadata(&gateway, "a-token-of-the-directory").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(started.elapsed() >= HEARING, "{:?}", started.elapsed());
        // A program opens its database, though no leader of anything is known.
        let answer = metadata(&gateway, TOKEN).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("endpoints"), "{answer}");
        gateway.stop().await;
    }

    /// Where a node serves its directory, over mutual TLS.
    async fn serve(directory: &Arc<Directory>, mutual: Arc<Mutual>) -> String {
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_address().unwrap().to_string();
        let limits = Limits { in_all: 9, of_one_address: 9, of_a_node: 0 };
        let accepted = admitted(listener, limits, watch::Sender::default().subscribe());
        let (of_control, others) = divide(accepted, Arc::clone(&mutual));
        let service = DirectoryService { directory: Arc::clone(directory), voter: Arc::default() };
        let server = meridian_net::grpc::server().add_service(DirectoryServer::new(service));
        tokio::spawn(async move {
            // While it is open connections are accepted.
            let _of_control = of_control;
            server.serve_with_incoming(adopt(others, mutual)).await
        });
        address
    }

    #[tokio::test]
    async fn gateway_leaves_a_node_whose_certificate_is_revoked() {
        let authority = authority();
        let folder = tempfile::tempdir().unwrap();
        let kept = IdentityFolder::of(folder.path());
        let of_gateway = identity(&authority, Holder::Gateway("edge".to_owned()));
        kept.keep(&of_gateway, authority.certificate_pem()).unwrap();
        let config = GatewayConfig { identity: Some(kept.files()), insecure: false, ..config() };
        let (version, id) = (1, Some(CLUSTER.to_owned()));
        let mut cluster = Cluster { version, id, ..config.cluster.clone() };
        cluster.trust.transport = Transport::Require;
        let node = Arc::new(Directory::new(cluster.clone(), Access::default(), None));
        let address = serve(&node, mutual(&authority, Holder::Node(NodeId(1)))).await;
        let dial: Dial = Arc::new(move |id: NodeId| (id == NodeId(1)).then(|| address.clone()));
        let gateway = StandaloneGateway::start(config, Some(dial)).await.unwrap();
        // A node in touch with the directory's leader is followed for as long as it may be.
        let lease = Lease { ttl: Duration::from_secs(60), shards: Vec::new() };
        let streams = || {
            node.renewed(node.now(), &lease);
            node.watchers()
        };
        until("the gateway follows the node", async || streams() == 1).await;
        cluster.version += 1;
        cluster.trust.revoked_before_ms.insert(NodeId(1), u64::MAX);
        node.learn(cluster).unwrap();
        until("the gateway has left the node", async || streams() == 0).await;
        gateway.stop().await;
    }
}
