//! A process's own certificate, where the cluster issues it: renewed long before it expires, and
//! when another authority issues; and the authorities that are believed, as the cluster names them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use meridian_config::IdentityFolder;
use meridian_directory::{Cluster, Member, Transport};
use meridian_net::tls::PemFile;
use meridian_net::{Credentials, Mutual};
use meridian_pki::{Authority, CERTIFICATE_LIFETIME, Holder, KeyAndRequest, Subject};
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
    /// The cluster with the keys of its authorities, while this node votes in the directory.
    pub(crate) with_keys: WithKeys,
}

pub(crate) type WithKeys = Box<dyn Fn() -> Option<Cluster> + Send + Sync>;

/// Whether a certificate is to be replaced: a third of its life is left, it does not hold yet, or
/// another authority issues. `chain`: the certificate, and its authority's.
fn is_due(
    chain: &str,
    issuing: &str,
    (not_before, not_after): (Duration, Duration),
    now: Duration,
) -> bool {
    let third = not_after.saturating_sub(not_before) / 3;
    // A certificate of the future was issued while the clock was wrong.
    now < not_before || now >= not_after.saturating_sub(third) || !chain.contains(issuing.trim())
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
            _ => (self.certify(cluster).await.or_else(|not| self.issue_own(cluster, not))?, true),
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

    /// A certificate with its key, where this node has the authority's key, and its own certificate
    /// has expired: a cluster that was off for so long has no other node that would believe it.
    /// `why`: the directory's leader gives none.
    ///
    /// # Errors
    /// `why`, or the reason for which the authority cannot be used.
    fn issue_own(&self, known: &Cluster, not: NotCertified) -> Result<String, String> {
        let why = match not {
            NotCertified::Refused(why) => return Err(why),
            NotCertified::NotReached(why) => why,
        };
        let now = Duration::from_millis(wall_ms());
        let own = self.mutual.own().filter(|own| own.not_after < now || now < own.not_before);
        let (Some(own), Some((node, _)), Some(cluster)) = (own, &self.node, (self.with_keys)())
        else {
            return Err(why);
        };
        // Not by a node whose vote was taken away, or whose certificates were revoked.
        let may_issue = |cluster: &Cluster| {
            let revoked_ms = cluster.trust.revoked_before_ms(&Member::Node(*node));
            cluster.directory_voters.contains(node)
                && cluster.present_node(*node).is_some()
                && own.not_before >= Duration::from_millis(revoked_ms)
        };
        if !may_issue(known) || !may_issue(&cluster) {
            return Err(why);
        }
        tracing::warn!(why, "this node's certificate has expired; it issues one for itself");
        let asked = KeyAndRequest::new().map_err(|error| error.to_string())?;
        let (_, chain) = issue(&cluster, Holder::Node(*node), &asked.request)?;
        Ok(chain + &asked.key_pem)
    }

    /// A certificate with its key, from the directory's leader.
    async fn certify(&self, cluster: &Cluster) -> Result<String, NotCertified> {
        let asked = KeyAndRequest::new();
        let asked = asked.map_err(|error| NotCertified::Refused(error.to_string()))?;
        let (id, incarnation) = match &self.node {
            Some((node, incarnation)) => (node.0, incarnation.clone()),
            None => (0, Bytes::new()),
        };
        let request =
            wire::CertifyRequest { request: asked.request.into(), node_id: id, incarnation };
        let mut why = "the directory has no voters".to_owned();
        for voter in &cluster.directory_voters {
            let Some(channel) = self.peers.requests(*voter) else { continue };
            // A leader of an earlier version tells the whole cluster.
            let mut client = MembershipClient::new(channel)
                .max_decoding_message_size(meridian_net::MAX_MESSAGE_BYTES);
            let call = tokio::time::timeout(CALL, client.certify(request.clone())).await;
            why = match call {
                Err(_) => format!("node {voter} does not answer"),
                Ok(Err(status)) => format!("node {voter}: {}", status.message()),
                Ok(Ok(answer)) => match answer.into_inner().result {
                    Some(certify_response::Result::Certified(certified)) => {
                        return Ok(certified.chain_pem + &asked.key_pem);
                    }
                    Some(certify_response::Result::Refused(reason)) => {
                        let why = format!("node {voter} refuses: {reason}");
                        return Err(NotCertified::Refused(why));
                    }
                    _ => format!("node {voter} does not lead the directory"),
                },
            };
        }
        Err(NotCertified::NotReached(why))
    }
}

/// Why the directory's leader gave no certificate, for people.
enum NotCertified {
    Refused(String),
    /// It was not found.
    NotReached(String),
}

/// A certificate of the cluster's own authority for a node or a gateway: the subject, and the
/// certificate with the authority's.
///
/// # Errors
/// For people: there is no key of an authority here, or it cannot be used.
pub(crate) fn issue(
    cluster: &Cluster,
    holder: Holder,
    request: &[u8],
) -> Result<(Subject, String), String> {
    let issuing = cluster.trust.issuing();
    let (authority, key) = issuing.ok_or("the cluster has no authority of its own")?;
    let authority = Authority::from_pem(&authority.certificate_pem, key.expose());
    let authority = authority.map_err(|error| error.to_string())?;
    let member = match &holder {
        Holder::Node(node) => Member::Node(*node),
        Holder::Gateway(name) => Member::Gateway(name.clone()),
        other => return Err(format!("{other} gets no certificate from the cluster")),
    };
    let revoked = Duration::from_millis(cluster.trust.revoked_before_ms(&member));
    let id = cluster.id.clone().ok_or("the cluster has no id yet")?;
    let subject = Subject { cluster: id, holder };
    let now = Duration::from_millis(wall_ms());
    let issued = authority.issue_after(revoked, request, &subject, now, CERTIFICATE_LIFETIME);
    Ok((subject, issued.map_err(|error| error.to_string())?.chain_pem))
}

#[cfg(test)]
mod tests {
    use meridian_config::DevLayout;
    use meridian_directory as directory;
    use meridian_gateway::Access;

    use super::*;

    const CLUSTER: &str = "00ff00ff00ff00ff";
    const DAY: Duration = Duration::from_secs(24 * 3600);

    /// Node 1, with a certificate that is so old, in a cluster of which nothing answers. `has_key`:
    /// it votes in the directory.
    fn alone(age: Duration, has_key: bool) -> (OwnCertificate, Cluster, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let now = Duration::from_millis(wall_ms());
        let authority = Authority::new(CLUSTER, now.saturating_sub(age)).unwrap();
        let mut cluster =
            DevLayout::new(&[3]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
        cluster.id = Some(CLUSTER.to_owned());
        cluster.trust.transport = Transport::Require;
        cluster.trust.authorities = vec![directory::Authority {
            certificate_pem: authority.certificate_pem().to_owned(),
            key: Some(directory::AuthorityKey::new(authority.key_pem().to_owned())),
            issues: true,
        }];
        let with_keys = cluster.clone();
        let asked = KeyAndRequest::new().unwrap();
        let subject = Subject { cluster: CLUSTER.to_owned(), holder: Holder::Node(NodeId(1)) };
        let (issued_at, life) = (now.saturating_sub(age), CERTIFICATE_LIFETIME);
        let issued = authority.issue(&asked.request, &subject, issued_at, life).unwrap();
        let identity = issued.chain_pem + &asked.key_pem;
        let kept = IdentityFolder::of(folder.path());
        kept.keep(&identity, &cluster.trust.authorities_pem()).unwrap();
        let file = |text: &str| PemFile::new(PathBuf::new(), text.as_bytes().to_vec());
        let (identity, authorities) = (file(&identity), file(&cluster.trust.authorities_pem()));
        let credentials =
            Credentials { certificate: &identity, key: &identity, authorities: &authorities };
        let mutual = Mutual::new(credentials).unwrap();
        let nowhere = Arc::new(|_| None);
        let own = OwnCertificate {
            folder: kept,
            mutual: Arc::new(mutual),
            directory: Arc::new(Directory::new(cluster.clone(), Access::default(), None)),
            peers: Arc::new(PeerChannels::new(&cluster, nowhere).unwrap()),
            node: Some((NodeId(1), Bytes::new())),
            with_keys: Box::new(move || has_key.then(|| with_keys.clone())),
        };
        (own, cluster, folder)
    }

    fn days_left(own: &OwnCertificate) -> u64 {
        let until = own.mutual.own().unwrap().not_after;
        until.saturating_sub(Duration::from_millis(wall_ms())).as_secs().div_ceil(DAY.as_secs())
    }

    #[tokio::test]
    async fn voter_of_a_directory_that_was_off_for_longer_than_certificates_hold_issues_its_own() {
        let (own, cluster, _folder) = alone(40 * DAY, true);
        assert_eq!(days_left(&own), 0);
        own.look(&cluster).await.unwrap();
        assert_eq!(days_left(&own), 30);
        let kept = std::fs::read(own.folder.files().certificate).unwrap();
        assert!(String::from_utf8(kept).unwrap().contains("BEGIN CERTIFICATE"));
    }

    #[tokio::test]
    async fn no_node_issues_while_its_certificate_holds_or_without_the_key() {
        for (age, has_key, left) in [(25 * DAY, true, 5), (40 * DAY, false, 0)] {
            let (own, cluster, _folder) = alone(age, has_key);
            assert!(own.look(&cluster).await.is_err(), "no other node answers");
            assert_eq!(days_left(&own), left);
        }
    }

    #[tokio::test]
    async fn node_whose_vote_was_taken_away_or_whose_certificate_was_revoked_issues_none() {
        let without_vote = |cluster: &mut Cluster| {
            cluster.directory_voters = [2, 3].map(NodeId).into();
        };
        let revoked = |cluster: &mut Cluster| {
            cluster.trust.revoked_before_ms.insert(NodeId(1), wall_ms());
        };
        for change in [without_vote as fn(&mut Cluster), revoked] {
            let (own, mut known, _folder) = alone(40 * DAY, true);
            change(&mut known);
            assert!(own.look(&known).await.is_err());
            assert_eq!(days_left(&own), 0);
        }
    }

    #[test]
    fn certificate_is_due_when_a_third_of_its_life_is_left_or_another_authority_issues() {
        let days = |days: u64| Duration::from_secs(days * 24 * 3600);
        let (life, chain) = ((days(100), days(130)), "leaf\nauthority\n");
        assert!(!is_due(chain, "authority\n", life, days(119)));
        assert!(is_due(chain, "authority\n", life, days(120)));
        assert!(is_due(chain, "authority\n", life, days(200)));
        assert!(is_due(chain, "another\n", life, days(101)));
        assert!(is_due(chain, "authority\n", life, days(99)), "the clock was wrong");
    }
}
