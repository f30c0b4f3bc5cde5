use std::sync::Arc;

use meridian_config::DevLayout;
use meridian_directory::{Authority, Operator};
use meridian_pki::{NoClaims, Subject};
use meridian_types::NodeId;
use tonic::Code;

use super::*;

const CLUSTER: &str = "00ff00ff00ff00ff";
const TOKEN: &str = "an-operators-token-of-32-letters";
const NOW: Duration = Duration::from_secs(1_800_000_000);
const HOUR: Duration = Duration::from_secs(3600);

fn cluster(transport: Transport) -> Cluster {
    let mut cluster =
        DevLayout::new(&[3]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
    cluster.trust.transport = transport;
    let operator = Operator {
        name: "ana".to_owned(),
        sha256: Secret::digest(TOKEN),
        level: Level::Operate,
        expires_at_ms: Some(u64::try_from((NOW + HOUR).as_millis()).unwrap()),
        created_at_ms: 1,
    };
    cluster.trust.operators.insert(1, operator);
    cluster
}

/// The cluster's own.
fn authority() -> Authority {
    Authority { certificate_pem: String::new(), key: None, issues: true }
}

fn node(id: u64) -> Holder {
    Holder::Node(NodeId(id))
}

fn claims(holder: Holder) -> Claims {
    Claims {
        subject: Subject { cluster: CLUSTER.to_owned(), holder },
        not_before: NOW - HOUR,
        not_after: NOW + HOUR,
        fingerprint: "ab".to_owned(),
    }
}

fn over_tls(claims: Option<Claims>) -> Caller {
    let address = Some("10.0.0.9:1234".parse().unwrap());
    let claims = claims.map(|claims| Ok(Arc::new(claims)));
    Caller { address, has_tls: true, claims, standing: Arc::default() }
}

fn judged(
    cluster: &Cluster,
    now: Duration,
    caller: &Caller,
    token: Option<&str>,
    need: Need,
) -> Result<Principal, Status> {
    let mut headers = HeaderMap::new();
    if let Some(token) = token {
        headers.insert(AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
    }
    Judge { cluster, own: Some(CLUSTER), now }.let_through(Some(caller), &headers, need)
}

#[track_caller]
fn refused(result: Result<Principal, Status>, code: Code, text: &str) {
    let status = result.unwrap_err();
    assert!(status.code() == code && status.message().contains(text), "{status}");
}

#[test]
fn caller_without_proof_does_nothing_but_where_the_transport_asks_for_none() {
    let plain = Caller { has_tls: false, ..over_tls(None) };
    for need in [Need::Peer, Need::Gateway, Need::Observer, Need::Operator(Level::View)] {
        for transport in [Transport::Off, Transport::Allow, Transport::Prefer] {
            for caller in [&plain, &over_tls(None)] {
                let principal = judged(&cluster(transport), NOW, caller, None, need).unwrap();
                assert!(principal.holder.is_none() && principal.may(Level::Admin).is_ok());
            }
        }
        let require = cluster(Transport::Require);
        let code = Code::Unauthenticated;
        refused(judged(&require, NOW, &plain, None, need), code, "in the clear");
        refused(judged(&require, NOW, &over_tls(None), None, need), code, "shows none");
        // A token that was sent in the clear proves nothing.
        refused(judged(&require, NOW, &plain, Some(TOKEN), need), code, "in the clear");
    }
    assert!(judged(&cluster(Transport::Require), NOW, &plain, None, Need::Nothing).is_ok());
}

#[test]
fn certificate_is_refused_by_what_is_wrong_with_it_whatever_the_transport() {
    let code = Code::Unauthenticated;
    for transport in [Transport::Allow, Transport::Require] {
        let mut cluster = cluster(transport);
        let judge = |cluster: &Cluster, now, claims: Claims| {
            judged(cluster, now, &over_tls(Some(claims)), None, Need::Peer)
        };
        assert!(judge(&cluster, NOW, claims(node(1))).is_ok());
        let mut foreign = claims(node(1));
        foreign.subject.cluster = "11".repeat(8);
        let text = format!("of cluster {CLUSTER}, and the certificate is of cluster 11");
        refused(judge(&cluster, NOW, foreign), code, &text);
        refused(judge(&cluster, NOW + 2 * HOUR, claims(node(1))), code, "node/1 has expired");
        refused(judge(&cluster, NOW, claims(node(99))), code, "no node 99");
        let gateway = Holder::Gateway("edge".to_owned());
        refused(
            judge(&cluster, NOW, claims(gateway)),
            Code::PermissionDenied,
            "gateway/edge may not do this: it takes a node's certificate",
        );
        let revoked = u64::try_from(NOW.as_millis()).unwrap();
        cluster.trust.revoked_before_ms.insert(NodeId(1), revoked);
        refused(judge(&cluster, NOW, claims(node(1))), code, "node/1 was revoked");
        assert!(judge(&cluster, NOW, claims(node(2))).is_ok());
        let renewed = Claims { not_before: NOW, ..claims(node(1)) };
        assert!(judge(&cluster, NOW, renewed).is_ok());
        cluster.nodes.get_mut(&NodeId(2)).unwrap().removed = true;
        refused(judge(&cluster, NOW, claims(node(2))), code, "removed");
        let nameless = Caller { claims: Some(Err(NoClaims::Nameless)), ..over_tls(None) };
        refused(judged(&cluster, NOW, &nameless, None, Need::Peer), code, "names no holder");
    }
}

#[test]
fn gateway_has_to_be_listed_where_the_cluster_issues_certificates_itself() {
    let mut cluster = cluster(Transport::Require);
    let edge = || claims(Holder::Gateway("edge".to_owned()));
    let judge =
        |cluster: &Cluster| judged(cluster, NOW, &over_tls(Some(edge())), None, Need::Gateway);
    assert!(judge(&cluster).is_ok());
    cluster.trust.authorities.push(authority());
    refused(judge(&cluster), Code::Unauthenticated, "no gateway edge");
    cluster.trust.gateways.insert("edge".to_owned(), 0);
    assert!(judge(&cluster).is_ok());
    cluster.trust.gateways.insert("edge".to_owned(), u64::MAX);
    refused(judge(&cluster), Code::Unauthenticated, "revoked");
}

#[test]
fn people_and_monitors_come_by_no_certificate_where_the_cluster_issues_certificates_itself() {
    let mut cluster = cluster(Transport::Require);
    let judge = |cluster: &Cluster, holder: &Holder| {
        let caller = over_tls(Some(claims(holder.clone())));
        judged(cluster, NOW, &caller, None, Need::Observer)
    };
    let operator = Holder::Operator { level: Level::Admin, name: "bo".to_owned() };
    let holders = [operator, Holder::Observer("prometheus".to_owned())];
    assert!(holders.iter().all(|holder| judge(&cluster, holder).is_ok()));
    cluster.trust.authorities.push(authority());
    for holder in &holders {
        refused(judge(&cluster, holder), Code::Unauthenticated, "comes by a token");
    }
}

#[test]
fn operator_comes_by_a_token_over_tls_or_by_a_certificate_and_does_what_the_level_allows() {
    let cluster = cluster(Transport::Require);
    let tls = over_tls(None);
    let operate = Need::Operator(Level::Operate);
    let principal = judged(&cluster, NOW, &tls, Some(TOKEN), operate).unwrap();
    assert_eq!(principal.to_string(), "operator/operate/ana from 10.0.0.9");
    assert!(principal.may(Level::Operate).is_ok());
    let status = principal.may(Level::Admin).unwrap_err();
    assert!(status.message().contains("takes an operator of level `admin`"), "{status}");
    let admin = Need::Operator(Level::Admin);
    refused(judged(&cluster, NOW, &tls, Some(TOKEN), admin), Code::PermissionDenied, "admin");
    refused(judged(&cluster, NOW, &tls, Some(TOKEN), Need::Peer), Code::PermissionDenied, "node's");
    let code = Code::Unauthenticated;
    refused(judged(&cluster, NOW + 2 * HOUR, &tls, Some(TOKEN), operate), code, "expired");
    refused(judged(&cluster, NOW, &tls, Some("another"), operate), code, "not known");
    let holder = Holder::Operator { level: Level::Admin, name: "bo".to_owned() };
    let by_certificate = over_tls(Some(claims(holder)));
    assert!(judged(&cluster, NOW, &by_certificate, None, admin).unwrap().may(Level::Admin).is_ok());
}

#[test]
fn connection_in_the_clear_stays_until_the_transport_asks_for_tls() {
    for (transport, stays) in
        [(Transport::Off, true), (Transport::Prefer, true), (Transport::Require, false)]
    {
        let cluster = cluster(transport);
        let judge = Judge { cluster: &cluster, own: Some(CLUSTER), now: NOW };
        assert_eq!(judge.may_stay(None), stays, "{transport}");
        assert!(judge.may_stay(Some(&claims(node(1)))));
        assert!(!judge.may_stay(Some(&claims(node(99)))));
    }
}
