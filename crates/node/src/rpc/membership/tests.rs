use std::collections::BTreeSet;
use std::time::Duration;

use meridian_config::{DEV_DEFAULT_DATABASE, DevLayout};
use meridian_consensus::Peers;
use meridian_directory::{Authority, AuthorityKey, Invitation};
use meridian_failover::ControllerConfig;
use meridian_pki::{Claims, KeyAndRequest, Subject};
use meridian_storage::{Engine, MemoryEngine};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::cluster_view::directory_shard::DIRECTORY_GROUP;
use crate::directory_group::leader::LeaderParts;
use crate::testing::{CLUSTER, OnlyVoter, WEBHOOK_KEY, authority, until, webhook};

type Answer = certify_response::Result;

/// The cluster with an authority of its own.
fn issuing(cluster: Cluster) -> Cluster {
    let (id, authority) = (Some(CLUSTER.to_owned()), authority());
    let mut cluster = Cluster { id, ..cluster };
    cluster.trust.authorities = vec![Authority {
        certificate_pem: authority.certificate_pem().to_owned(),
        key: Some(AuthorityKey::new(authority.key_pem().to_owned())),
        issues: true,
    }];
    cluster
}

/// At the directory's leader. `trust`: of the cluster that is committed there.
async fn leading(trust: impl FnOnce(&mut meridian_directory::Trust)) -> MembershipService {
    let engine: Arc<dyn Engine> = Arc::<MemoryEngine>::default();
    let OnlyVoter { directory, peers, voter } = OnlyVoter::start(&engine, DIRECTORY_GROUP).await;
    let voters = BTreeSet::from([NodeId(1)]);
    let mut first = issuing(directory.known().cluster.clone());
    first.directory_voters = voters.clone();
    trust(&mut first.trust);
    let to_others: Arc<dyn Peers> = peers.clone();
    voter.group.take_part(&voters, &to_others, false).await.unwrap();
    let config = ControllerConfig::default();
    let parts = LeaderParts { voter, directory: Arc::clone(&directory), peers, first, config };
    let leader = DirectoryVoter::start(parts, &CancellationToken::new());
    until("the cluster is committed", async || leader.committed().is_some()).await;
    MembershipService::new(directory, Arc::new(RwLock::new(Some(leader))))
}

fn request() -> Vec<u8> {
    KeyAndRequest::new().unwrap().request
}

fn told(answer: Result<Response<wire::CertifyResponse>, Status>) -> Answer {
    answer.unwrap().into_inner().result.unwrap()
}

#[tokio::test]
async fn join_token_that_has_expired_gets_no_certificate() {
    const HOUR_MS: u64 = 3_600_000;
    let service = leading(|trust| {
        let now_ms = wall_ms();
        for (id, secret, expires_at_ms) in
            [(1, "late", now_ms - HOUR_MS), (2, "in time", now_ms + HOUR_MS)]
        {
            let (member, sha256) = (Member::Node(NodeId(2)), Secret::digest(secret));
            let invitation = Invitation { member, sha256, expires_at_ms, used_by: None };
            trust.invitations.insert(id, invitation);
        }
    });
    let service = service.await;
    let joins = async |secret: &str| {
        let (secret, request) = (secret.to_owned(), request().into());
        let request = Request::new(wire::JoinRequest { secret, request });
        told(membership_server::Membership::join(&service, request).await)
    };
    let refused = Answer::Refused("the join token has expired".to_owned());
    assert_eq!(joins("late").await, refused);
    assert!(matches!(joins("in time").await, Answer::Certified(_)));
}

/// The call was let through by the cluster as the node knew it.
#[tokio::test]
async fn certificate_is_renewed_by_the_cluster_that_is_committed_and_not_once_it_is_revoked() {
    let revoked_ms = wall_ms();
    let service = leading(|trust| {
        trust.revoked_before_ms.insert(NodeId(2), revoked_ms);
    });
    let service = service.await;
    let renews = async |issued_ms| {
        let holder = Holder::Node(NodeId(2));
        let claims = Claims {
            subject: Subject { cluster: CLUSTER.to_owned(), holder: holder.clone() },
            not_before: Duration::from_millis(issued_ms),
            not_after: Duration::MAX,
            fingerprint: String::new(),
        };
        let message = wire::CertifyRequest { request: request().into(), ..Default::default() };
        let mut request = Request::new(message);
        request.extensions_mut().insert(Principal::for_test(holder, Some(claims)));
        told(membership_server::Membership::certify(&service, request).await)
    };
    let refused = Answer::Refused("the certificate of node/2 was revoked".to_owned());
    assert_eq!(renews(revoked_ms - 1).await, refused);
    assert!(matches!(renews(revoked_ms).await, Answer::Certified(_)));
}

#[test]
fn process_that_joins_is_told_no_key_of_the_authority_and_a_gateway_none_of_a_webhook() {
    let founded = DevLayout::new(&[3]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
    let mut cluster = issuing(founded);
    cluster.databases.get_mut(&DEV_DEFAULT_DATABASE).unwrap().webhooks.push(webhook());
    for (holder, has_key) in
        [(Holder::Gateway("edge".to_owned()), false), (Holder::Node(NodeId(2)), true)]
    {
        let Ok(certified) = certified(&cluster, holder, &request()) else { panic!("refused") };
        let told = String::from_utf8(certified.cluster.unwrap().json.to_vec()).unwrap();
        assert_eq!(told.contains(WEBHOOK_KEY), has_key, "{}", certified.subject);
        assert!(told.contains("CERTIFICATE") && !told.contains("PRIVATE"), "{}", certified.subject);
    }
}
