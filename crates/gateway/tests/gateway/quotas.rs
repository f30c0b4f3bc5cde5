//! Quotas of databases and tokens, as clients see them.

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::{Response, StatusCode};
use meridian_gateway::{AccessToken, Account, Databases, Grant, Options, Usage, Used};
use meridian_proto::kv_connect as pb;
use meridian_types::{Permissions, Quota, Quotas};
use prost::Message;

use crate::support::{Client, MAIN, MAIN_TEXT, OTHER, Server, WRITER, all, set, until};

const READ: &str = "/kv/strong/snapshot_read";
const BOUNDED: &str = "a-token-with-quotas";

fn quotas(of: &[(Quota, u64)]) -> Quotas {
    of.iter().map(|(quota, value)| (*quota, (*value).try_into().unwrap())).collect()
}

/// With quotas on a token.
async fn bounded(of: &[(Quota, u64)]) -> (Server, Usage) {
    let grant = Grant::new(Databases::All, Permissions::ALL).of_token(7, quotas(of));
    let token = AccessToken { secret: BOUNDED.to_owned(), grant };
    let usage = Usage::default();
    let options = Options { usage: usage.clone(), ..Options::default() };
    (Server::with_tokens(options, true, vec![token]).await, usage)
}

fn used(usage: &Usage, account: Account) -> Used {
    let used = usage.used();
    used.into_iter().find(|(of, _)| *of == account).map(|(_, used)| used).unwrap_or_default()
}

async fn watch(client: &mut Client, token: &str) -> Response<Incoming> {
    let authorization = format!("Bearer {token}");
    let headers = [
        ("authorization", authorization.as_str()),
        ("x-denokv-version", "3"),
        ("x-denokv-database-id", MAIN_TEXT),
    ];
    let keys = vec![pb::WatchKey { key: Bytes::from_static(b"a") }];
    let body = pb::Watch { keys }.encode_to_vec();
    let request = client.request("/kv/strong/watch", &headers, body.into());
    client.begin(request).await.unwrap()
}

#[tokio::test]
async fn requests_beyond_a_quota_wait_or_are_refused_and_the_neighbour_is_served() {
    let (server, usage) = bounded(&[]).await;
    *server.quotas.lock().unwrap() = quotas(&[(Quota::RequestsPerSecond, 5)]);
    let client = server.http2().await;
    let reads = (0..100).map(|_| {
        let mut client = client.again();
        async move { client.read(&all()).await.unwrap() }
    });
    let replies = futures::future::join_all(reads).await;
    let served = replies.iter().filter(|reply| reply.status == StatusCode::OK).count();
    assert!((5..60).contains(&served), "{served} of 100 were served");
    let refused = replies.iter().find(|reply| reply.status != StatusCode::OK).unwrap();
    refused
        .refuses(503, "The database main has used up its quota requests-per-second of 5 at this");
    refused.refuses(503, "meridian databases set-quotas");
    let Used { requests, slowed, refused, .. } = used(&usage, Account::Database(MAIN));
    assert_eq!((requests, refused), (served as u64, 100 - served as u64));
    assert!(slowed > 0);
    assert!(used(&usage, Account::ConfiguredTokens).requests >= served as u64);
    // When to come again stands in the head.
    let mut flood = client.again();
    let answer = loop {
        let authorization = format!("Bearer {WRITER}");
        let headers = [
            ("authorization", authorization.as_str()),
            ("x-denokv-version", "3"),
            ("x-denokv-database-id", MAIN_TEXT),
        ];
        let requests: Vec<_> =
            (0..20).map(|_| flood.request(READ, &headers, all().encode_to_vec().into())).collect();
        let answers = requests.into_iter().map(|request| {
            let mut client = client.again();
            async move { client.begin(request).await.unwrap() }
        });
        let answers = futures::future::join_all(answers).await;
        if let Some(answer) = answers.into_iter().find(|answer| answer.status() == 503) {
            break answer;
        }
    };
    let after: u64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=3).contains(&after), "{after}");
    // The neighbour, with the same token.
    let other = OTHER.to_string();
    let authorization = format!("Bearer {WRITER}");
    let headers = [
        ("authorization", authorization.as_str()),
        ("x-denokv-version", "3"),
        ("x-denokv-database-id", other.as_str()),
    ];
    for _ in 0..100 {
        let reply = flood.post(READ, &headers, all().encode_to_vec()).await.unwrap();
        assert_eq!(reply.status, StatusCode::OK);
    }
    // A quota that is removed holds no more.
    *server.quotas.lock().unwrap() = Quotas::default();
    for _ in 0..100 {
        assert_eq!(flood.read(&all()).await.unwrap().status, StatusCode::OK);
    }
}

#[tokio::test]
async fn bytes_of_answers_hold_up_the_next_request_of_their_token() {
    let (server, usage) = bounded(&[(Quota::BytesPerSecond, 1000)]).await;
    let mut client = server.http1().await;
    assert_eq!(client.write(&set("a", vec![1; 50_000])).await.unwrap().status, StatusCode::OK);
    let first = client.data(READ, BOUNDED, &all()).await.unwrap();
    assert_eq!(first.status, StatusCode::OK);
    let second = client.data(READ, BOUNDED, &all()).await.unwrap();
    second.refuses(503, "This access token has used up its quota bytes-per-second of 1000");
    second.refuses(503, "meridian tokens set-quotas");
    // Other tokens are served.
    assert_eq!(client.read(&all()).await.unwrap().status, StatusCode::OK);
    let Used { bytes_in, bytes_out, .. } = used(&usage, Account::Token(7));
    assert_eq!(bytes_out, first.body.len() as u64);
    // That of the refused one was heard out.
    assert_eq!(bytes_in, 2 * all().encode_to_vec().len() as u64);
    let Used { bytes_in, .. } = used(&usage, Account::Database(MAIN));
    assert!(bytes_in > 50_000);
}

#[tokio::test]
async fn refused_bodies_of_one_token_use_up_no_quota_of_the_database_for_others() {
    let (server, usage) = bounded(&[(Quota::RequestsPerSecond, 1)]).await;
    *server.quotas.lock().unwrap() = quotas(&[(Quota::BytesPerSecond, 100_000)]);
    let write = set("a", vec![1; 50_000]);
    let writes = (0..10).map(|_| async {
        let mut client = server.http1().await;
        client.data("/kv/strong/atomic_write", BOUNDED, &write).await.unwrap().status
    });
    let statuses = futures::future::join_all(writes).await;
    let refused = statuses.iter().filter(|status| **status == StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.count() >= 3, "{statuses:?}");
    let mut client = server.http1().await;
    assert_eq!(client.read(&all()).await.unwrap().status, StatusCode::OK);
    // They are heard out, and counted.
    assert!(used(&usage, Account::Database(MAIN)).bytes_in > 500_000);
}

#[tokio::test]
async fn open_watches_and_connections_count_until_they_are_closed() {
    let (server, usage) = bounded(&[(Quota::Watches, 1), (Quota::Connections, 2)]).await;
    let [mut first, mut second, mut third] =
        [server.http2().await, server.http1().await, server.http1().await];
    let open = watch(&mut first, BOUNDED).await;
    assert_eq!(open.status(), StatusCode::OK);
    assert_eq!(watch(&mut first, BOUNDED).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(watch(&mut first, WRITER).await.status(), StatusCode::OK, "of another token");
    let of_token = || used(&usage, Account::Token(7));
    assert_eq!(
        (of_token().watches, of_token().connections),
        (1, 0),
        "it carried another token last"
    );
    for client in [&mut first, &mut second] {
        assert_eq!(client.data(READ, BOUNDED, &all()).await.unwrap().status, StatusCode::OK);
    }
    let refused = third.data(READ, BOUNDED, &all()).await.unwrap();
    refused
        .refuses(503, "This access token has used up its quota connections of 2 at this gateway");
    assert_eq!(third.read(&all()).await.unwrap().status, StatusCode::OK, "of another token");
    drop(open);
    until(|| of_token().watches == 0).await;
    second.driver.abort();
    drop(second);
    until(|| of_token().connections == 1).await;
    assert_eq!(third.data(READ, BOUNDED, &all()).await.unwrap().status, StatusCode::OK);
    assert_eq!(watch(&mut third, BOUNDED).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn report_on_a_message_has_its_turn_whatever_the_quotas_say() {
    let (server, usage) = bounded(&[(Quota::BytesPerSecond, 1000)]).await;
    let mut client = server.http1().await;
    assert_eq!(client.write(&set("a", vec![1; 50_000])).await.unwrap().status, StatusCode::OK);
    assert_eq!(client.data(READ, BOUNDED, &all()).await.unwrap().status, StatusCode::OK);
    client.data(READ, BOUNDED, &all()).await.unwrap().refuses(503, "bytes-per-second");
    let requests = used(&usage, Account::Token(7)).requests;
    // It is looked at, and found to be none.
    let report = client.data("/kv/queue/report", BOUNDED, &all()).await.unwrap();
    assert_eq!(report.status, StatusCode::BAD_REQUEST, "{}", report.text());
    assert_eq!(used(&usage, Account::Token(7)).requests, requests + 1);
}

#[tokio::test]
async fn report_comes_through_on_a_connection_beyond_the_quota() {
    let (server, usage) = bounded(&[(Quota::Connections, 1)]).await;
    let [mut first, mut second] = [server.http1().await, server.http1().await];
    assert_eq!(first.data(READ, BOUNDED, &all()).await.unwrap().status, StatusCode::OK);
    second.data(READ, BOUNDED, &all()).await.unwrap().refuses(503, "quota connections of 1");
    let report = second.data("/kv/queue/report", BOUNDED, &all()).await.unwrap();
    assert_eq!(report.status, StatusCode::BAD_REQUEST, "{}", report.text());
    assert_eq!(used(&usage, Account::Token(7)).connections, 1);
}
