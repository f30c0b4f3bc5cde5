use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use futures::{FutureExt, StreamExt};
use meridian_pki::{Authority, KeyAndRequest, Subject};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::*;
use crate::admission::{Limits, admitted};
use crate::control::{MARK, divide};
use crate::listener::Listener;

const CLUSTER: &str = "00ff00ff00ff00ff";
const HOUR: Duration = Duration::from_secs(3600);

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

fn file(text: &str) -> PemFile {
    PemFile::new(PathBuf::from("test.pem"), text.as_bytes().to_vec())
}

fn node(id: u64) -> Holder {
    Holder::Node(NodeId(id))
}

/// Certificate and key in one.
fn issued_at(authority: &Authority, holder: Holder, at: Duration) -> PemFile {
    let asked = KeyAndRequest::new().unwrap();
    let subject = Subject { cluster: CLUSTER.to_owned(), holder };
    let issued = authority.issue(&asked.request, &subject, at, HOUR).unwrap();
    file(&(issued.chain_pem + &asked.key_pem))
}

fn issued(authority: &Authority, holder: Holder) -> PemFile {
    issued_at(authority, holder, now())
}

fn authority() -> Authority {
    Authority::new(CLUSTER, now() - 48 * HOUR).unwrap()
}

fn mutual(identity: &PemFile, believed: &Authority) -> Mutual {
    let authorities = file(believed.certificate_pem());
    let credentials =
        Credentials { certificate: identity, key: identity, authorities: &authorities };
    Mutual::new(credentials).unwrap()
}

fn of_node(authority: &Authority, id: u64) -> Mutual {
    mutual(&issued(authority, node(id)), authority)
}

fn expected(id: u64) -> Expected {
    Expected { cluster: Some(CLUSTER.to_owned()), node: Some(NodeId(id)) }
}

/// Accepts one connection, answers its first byte, and tells its caller.
async fn accept(mutual: Arc<Mutual>) -> (u16, JoinHandle<io::Result<Caller>>) {
    let mut listener = Listener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_address().unwrap().port();
    let accepted = tokio::spawn(async move {
        let (stream, _) = listener.accept().await;
        let mut stream = mutual.accept(stream).await?;
        let caller = Caller::of(&stream, Arc::default());
        let byte = stream.read_u8().await?;
        stream.write_u8(byte).await?;
        stream.flush().await?;
        Ok(caller)
    });
    (port, accepted)
}

async fn dial(dialler: &Dialler, port: u16, expected: &Expected) -> io::Result<()> {
    let stream = Stream::dial("127.0.0.1", port, Duration::from_secs(5)).await?;
    let stream = dialler.handshake(stream, expected).await?;
    let mut stream = dialler.check(stream, expected)?;
    stream.write_u8(7).await?;
    stream.flush().await?;
    // With TLS 1.3 the other side's refusal comes behind the handshake.
    stream.read_u8().await.map(drop)
}

async fn meet(dialler: &Dialler, server: Mutual, expected: &Expected) -> (String, String) {
    let (port, accepted) = accept(Arc::new(server)).await;
    let dialled = dial(dialler, port, expected).await;
    let text = |result: io::Result<String>| result.unwrap_or_else(|error| format!("{error}"));
    let accepted = accepted.await.unwrap().map(|caller| match caller.claims {
        None => "no certificate".to_owned(),
        Some(claims) => claims.unwrap().subject.holder.to_string(),
    });
    (text(dialled.map(|()| "connected".to_owned())), text(accepted))
}

#[tokio::test]
async fn nodes_of_one_authority_meet_and_each_knows_the_other() {
    let authority = authority();
    let (one, two) = (of_node(&authority, 1), of_node(&authority, 2));
    assert_eq!(one.own().unwrap().subject.holder, node(1));
    let met = meet(&one.dialler().unwrap(), two, &expected(2)).await;
    assert_eq!(met, ("connected".to_owned(), "node/1".to_owned()));
    // An operator with a token, and a process that joins, show no certificate.
    let believed =
        Believed::Authorities(tls::authorities(&file(authority.certificate_pem())).unwrap());
    let operator = Dialler::new(None, believed).unwrap();
    let any = Expected { cluster: Some(CLUSTER.to_owned()), node: None };
    let met = meet(&operator, of_node(&authority, 2), &any).await;
    assert_eq!(met, ("connected".to_owned(), "no certificate".to_owned()));
}

#[tokio::test]
async fn dialling_side_takes_no_other_node_than_the_expected_one() {
    let authority = authority();
    let one = of_node(&authority, 1);
    let met = |server: Mutual, expected: Expected| {
        let one = one.dialler().unwrap();
        async move { meet(&one, server, &expected).await.0 }
    };
    assert_eq!(
        met(of_node(&authority, 3), expected(2)).await,
        "node 2 was expected, and node 3 was met"
    );
    let foreign = Expected { cluster: Some("11".repeat(8)), node: Some(NodeId(2)) };
    let text = met(of_node(&authority, 2), foreign).await;
    assert!(text.contains(&format!("node 2 of cluster {CLUSTER} was met")), "{text}");
    // Its certificate is good for clients alone.
    let edge = mutual(&issued(&authority, Holder::Gateway("edge".to_owned())), &authority);
    let text = met(edge, expected(2)).await;
    assert!(text.contains("certificate") && text != "connected", "{text}");
    // Of another authority, with the same names.
    let other = authority_of_the_same_name();
    let text = met(of_node(&other, 2), expected(2)).await;
    assert!(text.contains("UnknownIssuer") || text.contains("BadSignature"), "{text}");
    let yesterday = issued_at(&authority, node(2), now() - 24 * HOUR);
    let text = met(mutual(&yesterday, &authority), expected(2)).await;
    assert!(text.contains("expired"), "{text}");
}

fn authority_of_the_same_name() -> Authority {
    authority()
}

#[tokio::test]
async fn accepting_side_refuses_what_no_authority_vouches_for_and_what_has_expired() {
    let authority = authority();
    for (identity, what) in [
        (issued(&authority_of_the_same_name(), node(1)), "another authority"),
        (issued_at(&authority, node(1), now() - 24 * HOUR), "expired"),
        (issued_at(&authority, node(1), now() + 72 * HOUR), "not yet"),
    ] {
        // It believes the right one.
        let one = mutual(&identity, &authority);
        let (dialled, accepted) =
            meet(&one.dialler().unwrap(), of_node(&authority, 2), &expected(2)).await;
        assert!(dialled.contains("fatal alert") || dialled.contains("reset"), "{what}: {dialled}");
        assert!(accepted.contains("certificate"), "{what}: {accepted}");
    }
}

#[tokio::test]
async fn process_that_joins_believes_the_authority_that_its_token_names_alone() {
    let authority = authority();
    let pinned = |authority: &Authority| {
        Dialler::new(None, Believed::Pinned(fingerprint(authority.certificate()))).unwrap()
    };
    let any = Expected { cluster: Some(CLUSTER.to_owned()), node: None };
    let met = meet(&pinned(&authority), of_node(&authority, 2), &any).await;
    assert_eq!(met.0, "connected");
    let other = authority_of_the_same_name();
    let met = meet(&pinned(&other), of_node(&authority, 2), &any).await;
    assert!(met.0.contains("UnknownIssuer"), "{met:?}");
    // An authority that is shown, and has not issued the certificate.
    let identity = issued(&authority, node(2));
    let both = [identity.bytes(), other.certificate_pem().as_bytes()].concat();
    let impostor = mutual(&PemFile::new(PathBuf::from("both.pem"), both), &authority);
    let met = meet(&pinned(&other), impostor, &any).await;
    assert!(met.0 != "connected", "{met:?}");
}

#[tokio::test]
async fn certificate_is_replaced_while_connections_live_and_for_the_same_holder_alone() {
    let (before, after) = (authority(), authority());
    let server = Arc::new(of_node(&before, 2));
    let one = of_node(&before, 1);
    let mut changes = server.watch();
    let (port, accepted) = accept(Arc::clone(&server)).await;
    let stream = Stream::dial("127.0.0.1", port, Duration::from_secs(5)).await.unwrap();
    let mut live = one.dialler().unwrap().handshake(stream, &expected(2)).await.unwrap();
    let both = file(&[before.certificate_pem(), after.certificate_pem()].concat());
    let replace = |identity: &PemFile| {
        let credentials = Credentials { certificate: identity, key: identity, authorities: &both };
        server.replace(credentials)
    };
    let error = replace(&issued(&after, node(3))).unwrap_err().to_string();
    assert!(error.contains("node/3") && error.contains("node/2"), "{error}");
    assert!(changes.changed().now_or_never().is_none());
    replace(&issued(&after, node(2))).unwrap();
    changes.changed().await;
    // The connection from before goes on.
    live.write_u8(9).await.unwrap();
    live.flush().await.unwrap();
    assert_eq!(live.read_u8().await.unwrap(), 9);
    assert!(accepted.await.unwrap().is_ok());
    // Later ones see the new certificate, and the old authority's clients are believed still.
    let (port, accepted) = accept(Arc::clone(&server)).await;
    let text = dial(&one.dialler().unwrap(), port, &expected(2)).await.unwrap_err().to_string();
    assert!(text.contains("UnknownIssuer") || text.contains("BadSignature"), "{text}");
    assert!(accepted.await.unwrap().is_err());
    let (port, accepted) = accept(Arc::clone(&server)).await;
    let newer = mutual(&issued(&before, node(1)), &after);
    dial(&newer.dialler().unwrap(), port, &expected(2)).await.unwrap();
    assert!(accepted.await.unwrap().is_ok());
}

#[tokio::test]
async fn connection_ends_when_no_authority_that_is_believed_vouches_for_it_any_more() {
    use crate::admission::{Limits, admitted};
    use crate::control::{adopt, divide};
    use futures::StreamExt;

    let (before, after) = (authority(), authority());
    let server = Arc::new(of_node(&before, 2));
    let listener = Listener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_address().unwrap().port();
    let limits = Limits { in_all: 9, of_one_address: 9, of_a_node: 0 };
    let no_members = watch::Sender::default().subscribe();
    let accepted = admitted(listener, limits, no_members);
    let (_control, others) = divide(accepted, Arc::clone(&server));
    let mut accepted = adopt(others, Arc::clone(&server));
    let both = file(&[before.certificate_pem(), after.certificate_pem()].concat());
    let mut connections = Vec::new();
    for authority in [&before, &after] {
        let identity = issued(authority, node(1));
        let credentials =
            Credentials { certificate: &identity, key: &identity, authorities: &both };
        let one = Mutual::new(credentials).unwrap();
        let identity = issued(&before, node(2));
        let generation = server.generation();
        let credentials =
            Credentials { certificate: &identity, key: &identity, authorities: &both };
        server.replace(credentials).unwrap();
        assert!(server.generation() > generation, "channels are dialled anew");
        let stream = Stream::dial("127.0.0.1", port, Duration::from_secs(5)).await.unwrap();
        let dialled = one.dialler().unwrap().handshake(stream, &expected(2)).await.unwrap();
        connections.push((dialled, accepted.next().await.unwrap().unwrap()));
    }
    let identity = issued(&after, node(2));
    let authorities = file(after.certificate_pem());
    server
        .replace(Credentials { certificate: &identity, key: &identity, authorities: &authorities })
        .unwrap();
    let (_new, mut of_new) = connections.pop().unwrap();
    let (_old, mut of_old) = connections.pop().unwrap();
    let ended = of_old.read_u8().await.unwrap_err();
    assert_eq!(ended.kind(), io::ErrorKind::ConnectionAborted);
    let waits = tokio::time::timeout(Duration::from_millis(50), of_new.read_u8()).await;
    assert!(waits.is_err(), "the other goes on: {waits:?}");
}

#[tokio::test]
async fn dialled_connection_ends_and_none_follows_once_the_other_certificate_is_not_believed() {
    let authority = authority();
    let (one, two) = (of_node(&authority, 1), of_node(&authority, 2));
    let (port, _accepted) = accept(Arc::new(two)).await;
    let (dialler, expected) = (one.dialler().unwrap(), expected(2));
    let stream = Stream::dial("127.0.0.1", port, Duration::from_secs(5)).await.unwrap();
    let stream = dialler.handshake(stream, &expected).await.unwrap();
    let mut live = dialler.check(stream, &expected).unwrap();
    let is_two = |claims: Option<&Claims>| claims.is_some_and(|met| met.subject.holder == node(2));
    assert_eq!(one.end_unless(is_two), 0);
    let reading = tokio::spawn(async move { live.read_u8().await });
    assert_eq!(one.end_unless(move |claims| !is_two(claims)), 1);
    assert_eq!(reading.await.unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    let text = meet(&dialler, of_node(&authority, 2), &expected).await.0;
    assert_eq!(text, "the certificate of node/2 is believed no more");
    // Other nodes are believed still.
    assert_eq!(meet(&dialler, of_node(&authority, 3), &self::expected(3)).await.0, "connected");
}

#[test]
fn certificate_that_does_not_hold_now_takes_no_place() {
    let authority = authority();
    let one = of_node(&authority, 1);
    let check = |identity: &PemFile| {
        let authorities = file(authority.certificate_pem());
        one.check(Credentials { certificate: identity, key: identity, authorities: &authorities })
    };
    check(&issued(&authority, node(1))).unwrap();
    for wrong in [
        issued_at(&authority, node(1), now() + 72 * HOUR),
        issued_at(&authority, node(1), now() - 24 * HOUR),
        issued(&authority, node(2)),
    ] {
        assert!(check(&wrong).is_err());
    }
}

#[test]
fn credentials_that_cannot_be_used_are_named() {
    let authority = authority();
    let identity = issued(&authority, node(1));
    let authorities = file(authority.certificate_pem());
    let refused = |certificate: &PemFile, authorities: &PemFile| {
        let credentials = Credentials { certificate, key: certificate, authorities };
        Mutual::new(credentials).map(drop).unwrap_err().to_string()
    };
    assert!(refused(&file("hush"), &authorities).contains("test.pem"));
    assert!(refused(&identity, &file("hush")).contains("test.pem"));
    assert!(!refused(&file("hush"), &authorities).contains("hush"));
    let authority_itself = file(&[authority.certificate_pem(), authority.key_pem()].concat());
    assert!(refused(&authority_itself, &authorities).contains("names no holder"));
}

/// It is served on the threads that keep leases.
#[tokio::test]
async fn connection_of_control_is_taken_from_a_node_alone() {
    let authority = authority();
    let server = Arc::new(of_node(&authority, 2));
    let believed =
        Believed::Authorities(tls::authorities(&file(authority.certificate_pem())).unwrap());
    let stranger = Dialler::new(None, believed).unwrap();
    let gateway = mutual(&issued(&authority, Holder::Gateway("edge".to_owned())), &authority);
    let other_node = of_node(&authority, 1).dialler().unwrap();
    for (dialler, is_taken) in
        [(stranger, false), (gateway.dialler().unwrap(), false), (other_node, true)]
    {
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_address().unwrap().port();
        let limits = Limits { in_all: 9, of_one_address: 9, of_a_node: 0 };
        let accepted = admitted(listener, limits, watch::Sender::default().subscribe());
        let (mut of_control, _others) = divide(accepted, Arc::clone(&server));
        let dialled = async {
            let mut tcp = TcpStream::connect(("127.0.0.1", port)).await?;
            tcp.write_all(&MARK).await?;
            dialler.handshake(Stream::new(tcp)?, &expected(2)).await?.read_u8().await
        };
        let ended = tokio::time::timeout(Duration::from_secs(20), async {
            tokio::select! {
                ended = dialled => ended.is_err(),
                taken = of_control.next() => taken.unwrap().is_err(),
            }
        });
        assert_eq!(ended.await.unwrap(), !is_taken);
    }
}
