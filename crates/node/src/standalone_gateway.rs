use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::{GatewayConfig, ListenPurpose};
use crate::directory::Directory;
use crate::node::{Dial, StartError, gateway_options, listen, peer_channels, static_directory};
use crate::router::Router;

/// A running gateway without data of its own, to be put beside an application.
pub struct StandaloneGateway {
    kv_address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl StandaloneGateway {
    /// # Errors
    /// [`StartError`], naming the port that cannot be used.
    pub async fn start(config: GatewayConfig, dial: Option<Dial>) -> Result<Self, StartError> {
        let kv = listen(&config.listen.kv, ListenPurpose::KvConnect).await?;
        let kv_address = kv.local_addr().map_err(|error| StartError::Invalid(error.to_string()))?;
        let directory = static_directory(&config.topology, &config.tokens)?;
        let peers = peer_channels(&config.topology, dial)?;
        let router = Arc::new(Router::new(
            Arc::default(),
            None,
            config.region.clone(),
            Arc::clone(&directory) as Arc<dyn Directory>,
            peers,
            Duration::from_millis(config.gateway.request_deadline_ms),
        ));
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let options = gateway_options(&config.gateway, &config.region);
        let task = tokio::spawn(meridian_gateway::serve(kv, router, directory, options, async move {
            stopped.cancelled().await;
        }));
        Ok(Self { kv_address, stop, task })
    }

    pub fn kv_address(&self) -> SocketAddr {
        self.kv_address
    }

    /// Finishes the requests in progress.
    pub async fn stop(self) {
        self.stop.cancel();
        // A task that failed has said so.
        drop(self.task.await);
    }
}
