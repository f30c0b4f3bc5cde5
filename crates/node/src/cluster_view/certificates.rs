//! A process's own certificate, where the cluster issues it: renewed long before it expires, and
//! when another authority issues; and the authorities that are believed, as the cluster names them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use meridian_config::IdentityFolder;
use meridian_directory::{Cluster, Transport};
use meridian_net::tls::PemFile;
use meridian_net::{Credentials, Mutual};
use meridian_pki::KeyAndRequest;
use meridian_proto::directory::{
    self as wire, certify_response, membership_client::MembershipClient,
};
use meridian_types::NodeId;
use tokio_util::sync::CancellationToken;

use crate::cluster_view::view::Directory;
use crate::host::clock::wall_ms;
use crate::network::peers::PeerChannels;

/// Between two looks whether a certificate is due.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Behind a failure.
const PAUSE: Duration = Duration::from_secs(2);
const CALL: Duration = Duration::from_secs(10);

/// Keeps the certificate of this process.
pub(crate) struct OwnCertificate {
    pub(crate) folder: IdentityFolder,
    pub(crate) mutual: Arc<Mutual>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) peers: Arc<PeerChannels>,
    /// This node, and by what the cluster knows its folder: where the transport asks for no proof,
    /// that is how the first certificate is got. `None`: a gateway.
    pub(crate) node: Option<(NodeId, Bytes)>,
}

/// Whether a certificate is to be replaced: a third of its life is left, or another authority
/// issues. `chain`: the certificate, and its authority's.
fn is_due(
    chain: &str,
    issuing: &str,
    (not_before, not_after): (Duration, Duration),
    now: Duration,
) -> bool {
    let third = not_after.saturating_sub(not_before) / 3;
    now >= not_after.saturating_sub(third) || !chain.contains(issuing.trim())
}

impl OwnCertificate {
    /// Until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut known = self.directory.watch();
        loop {
            let cluster = Arc::clone(&known.borrow_and_update());
            let pause = match self.look(&cluster.cluster).await {
                Ok(()) => LOOK_EVERY,
                Err(why) => {
                    tracing::warn!(
                        why,
                        "this process's certificate cannot be kept; it is tried again"
                    );
                    metrics::counter!("meridian_failed_certificate_renewals_total").increment(1);
                    PAUSE
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                changed = known.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn look(&self, cluster: &Cluster) -> Result<(), String> {
        let Some(issuing) = cluster.trust.issuer() else { return Ok(()) };
        // An open cluster has not asked its processes to have certificates yet.
        if cluster.trust.transport == Transport::Off && self.mutual.own().is_none() {
            return Ok(());
        }
        let believed = cluster.trust.authorities_pem();
        let files = self.folder.files();
        let identity = tokio::fs::read_to_string(files.certificate).await.ok();
        let own = self.mutual.own();
        let is_due = match (&own, &identity) {
            (Some(own), Some(identity)) => {
                let now = Duration::from_millis(wall_ms());
                let life = (own.not_before, own.not_after);
                is_due(identity, &issuing.certificate_pem, life, now)
            }
            _ => true,
        };
        let (identity, is_new) = match identity {
            Some(identity) if !is_due => (identity, false),
            _ => (self.certify(cluster).await?, true),
        };
        let kept = tokio::fs::read_to_string(files.authorities).await.ok();
        if !is_new && kept.as_deref() == Some(&believed) {
            return Ok(());
        }
        self.take(identity, believed).await
    }

    /// Uses them from now on, and after a restart.
    async fn take(&self, identity: String, believed: String) -> Result<(), String> {
        let (folder, mutual) = (self.folder.clone(), Arc::clone(&self.mutual));
        let taken = tokio::task::spawn_blocking(move || {
            let file =
                |text: &str| PemFile::new(PathBuf::from("the cluster"), text.as_bytes().to_vec());
            let (identity_file, authorities) = (file(&identity), file(&believed));
            let credentials = Credentials {
                certificate: &identity_file,
                key: &identity_file,
                authorities: &authorities,
            };
            mutual.check(credentials)?;
            // Where they cannot be written, those of before stay in use.
            folder.keep(&identity, &believed)?;
            mutual.replace(credentials)
        });
        let taken = taken.await.map_err(|error| error.to_string())?;
        taken.map_err(|error: std::io::Error| error.to_string())?;
        let until = self.mutual.own().map(|own| own.not_after.as_secs());
        tracing::info!(
            until,
            "this process has another certificate, or believes other authorities"
        );
        Ok(())
    }

    /// A certificate with its key, from the directory's leader.
    async fn certify(&self, cluster: &Cluster) -> Result<String, String> {
        let asked = KeyAndRequest::new().map_err(|error| error.to_string())?;
        let (id, incarnation) = match &self.node {
            Some((node, incarnation)) => (node.0, incarnation.clone()),
            None => (0, Bytes::new()),
        };
        let request =
            wire::CertifyRequest { request: asked.request.into(), node_id: id, incarnation };
        let mut why = "the directory has no voters".to_owned();
        for voter in &cluster.directory_voters {
            let Some(channel) = self.peers.requests(*voter) else { continue };
            let mut client = MembershipClient::new(channel);
            let call = tokio::time::timeout(CALL, client.certify(request.clone())).await;
            why = match call {
                Err(_) => format!("node {voter} does not answer"),
                Ok(Err(status)) => format!("node {voter}: {}", status.message()),
                Ok(Ok(answer)) => match answer.into_inner().result {
                    Some(certify_response::Result::Certified(certified)) => {
                        return Ok(certified.chain_pem + &asked.key_pem);
                    }
                    Some(certify_response::Result::Refused(reason)) => {
                        format!("node {voter} refuses: {reason}")
                    }
                    _ => continue,
                },
            };
        }
        Err(why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificate_is_due_when_a_third_of_its_life_is_left_or_another_authority_issues() {
        let days = |days: u64| Duration::from_secs(days * 24 * 3600);
        let (life, chain) = ((days(100), days(130)), "leaf\nauthority\n");
        assert!(!is_due(chain, "authority\n", life, days(119)));
        assert!(is_due(chain, "authority\n", life, days(120)));
        assert!(is_due(chain, "authority\n", life, days(200)));
        assert!(is_due(chain, "another\n", life, days(101)));
    }
}
