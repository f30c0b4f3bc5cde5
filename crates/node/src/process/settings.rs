//! Conversion of a configuration to listeners, memory, channels to peers, tokens, and the options
//! of a gateway.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meridian_config::{ConfigError, GatewaySettings, ListenPurpose, TokenConfig};
use meridian_directory::{Cluster, Transport};
use meridian_gateway::{Access, Options};
use meridian_memory::{Shares, default_max_bytes};
use meridian_net::{Listener, Mutual, capacity};
use meridian_types::NodeId;
use tokio::runtime::Handle;

use crate::network::clients::ClientSecurity;
use crate::network::peers::{Dial, PeerChannels};
use crate::process::start_error::StartError;

/// The memory that a process may take: as configured, or by what the machine has.
pub(crate) fn max_memory_bytes(max_memory_mb: Option<u64>) -> usize {
    let told = max_memory_mb.map(|mb| usize::try_from(mb << 20).unwrap_or(usize::MAX));
    told.unwrap_or_else(default_max_bytes)
}

pub(crate) async fn listen(address: &str, purpose: ListenPurpose) -> Result<Listener, StartError> {
    Listener::bind(address)
        .await
        .map_err(|cause| ConfigError::Listen { address: address.to_owned(), purpose, cause }.into())
}

pub(crate) fn local_address(listener: &Listener) -> Result<SocketAddr, StartError> {
    listener.local_address().map_err(|error| StartError::Invalid(error.to_string()))
}

/// Reads the certificates that clients are shown, and opens the audit log. `address`: where clients
/// are listened for. `name`: of the gateway.
pub(crate) fn client_security(
    settings: &GatewaySettings,
    address: SocketAddr,
    name: &str,
) -> Result<Arc<ClientSecurity>, StartError> {
    ClientSecurity::new(settings, address, name).map(Arc::new).map_err(StartError::Invalid)
}

/// `dial` goes before what the configuration says.
pub(crate) fn peer_channels(
    cluster: &Cluster,
    dial: Option<Dial>,
    configured: &BTreeMap<NodeId, String>,
    control: Option<Handle>,
    mutual: Arc<Mutual>,
) -> Result<Arc<PeerChannels>, StartError> {
    let configured = configured.clone();
    let dial: Dial = match dial {
        Some(dial) => Arc::new(move |node| dial(node).or_else(|| configured.get(&node).cloned())),
        None => Arc::new(move |node| configured.get(&node).cloned()),
    };
    let invalid =
        |node| StartError::Invalid(format!("the address of node {node} cannot be dialled"));
    let peers = PeerChannels::with_control(cluster, dial, control, mutual);
    Ok(Arc::new(peers.map_err(invalid)?))
}

/// The cluster that a process begins with: as its configuration describes it, or, with a
/// certificate, as the certificate names it, and closed.
pub(crate) fn first_cluster(mut described: Cluster, mutual: &Mutual) -> Cluster {
    // A process that has a certificate got it where nodes have some, and goes nowhere without.
    if let Some(own) = mutual.own() {
        described.id = Some(own.subject.cluster.clone());
        described.trust.transport = Transport::Require;
    }
    described
}

/// The access that the tokens of a configuration give.
pub(crate) fn configured_access(tokens: &[TokenConfig]) -> Result<Access, StartError> {
    let grants = tokens.iter().map(|token| (token.secret.sha256(), token.grant()));
    Access::from_digests(grants).map_err(|error| StartError::Invalid(error.to_string()))
}

/// Deno waits for 30 s for an answer to its first metadata request, and a gateway that has just
/// started opens late.
const MAX_HEARING: Duration = Duration::from_secs(20);

pub(crate) fn gateway_options(
    settings: &GatewaySettings,
    region: &str,
    files: u64,
    shares: &Shares,
    clients: &ClientSecurity,
) -> Options {
    Options {
        public_url: settings.public_url.clone(),
        tls: clients.server(),
        trusted_proxies: settings.trusted_proxies.clone(),
        audit: clients.audit(),
        usage: clients.usage(),
        region: region.to_owned(),
        max_connections: capacity::client_connections(
            capacity::connections_within_memory(
                settings.max_connections,
                shares.headroom(),
                clients.connection_bytes(),
            ),
            files,
        ),
        max_watches: settings.max_watches,
        max_change_feeds: settings.max_change_feeds,
        max_bodies_bytes: shares.bodies as u64,
        max_answers_bytes: shares.answers as u64,
        hearing_timeout: Duration::from_millis(settings.request_deadline_ms).min(MAX_HEARING),
        ..Options::default()
    }
}
