//! The metadata exchange, as clients see it.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::support::{MAIN_TEXT, NEW, OTHERS, READER, Server, WRITER, all, until};
use chrono::{DateTime, Utc};
use meridian_gateway::{Options, TrustedProxies};
use prost::Message;
use serde_json::{Value, json};

const OTHER_TEXT: &str = "cdcdcdcd-cdcd-cdcd-cdcd-cdcdcdcdcdcd";
const ALL_VERSIONS: &str = r#"{"supportedVersions":[1,2,3]}"#;

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// Asserts what the schema asks of an answer: these fields, of these forms, and no more.
fn assert_schema(metadata: &Value, version: u8) {
    let object = metadata.as_object().unwrap();
    let mut fields = object.keys().map(String::as_str).collect::<Vec<_>>();
    fields.sort_unstable();
    assert_eq!(fields, ["databaseId", "endpoints", "expiresAt", "token", "version"]);
    assert_eq!(metadata["version"], version);
    let id = metadata["databaseId"].as_str().unwrap();
    assert!(id.split('-').map(str::len).eq([8, 4, 4, 4, 12]));
    assert!(id.bytes().all(|byte| matches!(byte, b'-' | b'0'..=b'9' | b'a'..=b'f')));
    for endpoint in metadata["endpoints"].as_array().unwrap() {
        assert_eq!(endpoint.as_object().unwrap().len(), 2);
        assert!(!endpoint["url"].as_str().unwrap().ends_with('/'));
        assert!(matches!(endpoint["consistency"].as_str().unwrap(), "strong" | "eventual"));
    }
    let expires_at = metadata["expiresAt"].as_str().unwrap();
    assert!(expires_at.ends_with('Z'));
    let left = DateTime::parse_from_rfc3339(expires_at).unwrap().signed_duration_since(Utc::now());
    assert!((59..=60).contains(&left.num_minutes()), "{left}");
}

fn endpoints(base: &str, strong: &str) -> Value {
    json!([
        {"url": format!("{base}{strong}"), "consistency": "strong"},
        {"url": format!("{base}/kv/eventual"), "consistency": "eventual"},
    ])
}

#[tokio::test]
async fn absence_is_not_reported_before_the_cluster_is_known() {
    let hearing_timeout = Duration::from_millis(30);
    let server = Server::knowing(Options { hearing_timeout, ..Options::default() }, false).await;
    let mut client = server.http2().await;
    let exchange = r#"{"supportedVersions":[1,2,3]}"#;
    for (path, token, status) in [
        ("/db/main", WRITER, 200),
        ("/db/other", OTHERS, 200),
        ("/", "a-token-made-by-the-command-line", 503),
        ("/db/made-later", WRITER, 503),
        ("/databases/00112233-4455-6677-8899-aabbccddeeff/connect", WRITER, 503),
        ("/db/made-later", OTHERS, 503),
        ("/nowhere", WRITER, 404),
    ] {
        let authorization = format!("Bearer {token}");
        let reply = client
            .post(path, &[("authorization", authorization.as_str())], exchange)
            .await
            .unwrap();
        assert_eq!(reply.status, status, "{path} {}", reply.text());
    }
    let authorization = format!("Bearer {WRITER}");
    let mut headers = vec![
        ("authorization", authorization.as_str()),
        ("x-denokv-version", "3"),
        ("x-denokv-database-id", "00112233-4455-6677-8899-aabbccddeeff"),
    ];
    let body = all().encode_to_vec();
    let path = "/kv/strong/snapshot_read";
    client
        .post(path, &headers, body.clone())
        .await
        .unwrap()
        .refuses(503, "has not heard from its cluster");
    headers[2].1 = "no id";
    client.post(path, &headers, body).await.unwrap().refuses(400, "Invalid database id.");
    client.post("/", &[], exchange).await.unwrap().refuses(401, "Malformed");
}

#[tokio::test]
async fn metadata_request_is_held_until_the_cluster_is_known() {
    let server = Server::knowing(Options::default(), false).await;
    let mut known = server.http2().await;
    let headers = [("authorization", &*bearer(WRITER))];
    assert_eq!(known.post("/", &headers, ALL_VERSIONS).await.unwrap().status, 200);
    let asked = server.hearing.asked.load(Ordering::SeqCst);
    let mut waiting = Vec::new();
    for (path, token, status) in [("/", NEW, 200), ("/", "unknown", 401), ("/db/none", WRITER, 404)]
    {
        let mut client = server.http1().await;
        waiting.push(tokio::spawn(async move {
            let headers = [("authorization", &*bearer(token))];
            let reply = client.post(path, &headers, ALL_VERSIONS).await.unwrap();
            assert_eq!(reply.status, status, "{path} {token}: {}", reply.text());
        }));
    }
    // Each was looked up, in vain.
    until(|| server.hearing.asked.load(Ordering::SeqCst) >= asked + 12).await;
    assert!(waiting.iter().all(|request| !request.is_finished()));
    server.hearing.current.store(true, Ordering::SeqCst);
    for request in waiting {
        request.await.unwrap();
    }
}

#[tokio::test]
async fn strangers_do_not_make_a_gateway_hold_more_than_some_requests() {
    let hearing_timeout = Duration::from_secs(600);
    let options = Options { hearing_timeout, ..Options::default() };
    let server = Server::knowing(options, false).await;
    let mut strangers = Vec::new();
    for connection in 0..6 {
        let client = server.http2().await;
        for request in 0..100 {
            let mut client = client.again();
            strangers.push(tokio::spawn(async move {
                let headers = [("authorization", &*bearer(&format!("{connection}-{request}")))];
                client.post("/", &headers, ALL_VERSIONS).await.unwrap().status
            }));
        }
    }
    let refused = || strangers.iter().filter(|request| request.is_finished()).count();
    until(|| refused() >= 600 - 512).await;
    server.hearing.current.store(true, Ordering::SeqCst);
    let mut statuses = BTreeMap::new();
    for stranger in strangers {
        *statuses.entry(stranger.await.unwrap().as_u16()).or_insert(0) += 1;
    }
    assert!(statuses.keys().eq(&[401, 503]), "{statuses:?}");
    assert!(statuses[&503] >= 600 - 512, "{statuses:?}");
}

#[tokio::test]
async fn every_version_over_both_protocols() {
    let server = Server::start().await;
    for mut client in [server.http1().await, server.http2().await] {
        for (body, version) in [
            ("", 1),
            (r#"{"supportedVersions":[1]}"#, 1),
            (r#"{"supportedVersions":[1,2]}"#, 2),
            (ALL_VERSIONS, 3),
            (r#"{"supportedVersions":[3,4]}"#, 3),
        ] {
            let reply =
                client.post("/", &[("authorization", &bearer(WRITER))], body).await.unwrap();
            let metadata = reply.json();
            assert_schema(&metadata, version);
            assert_eq!(metadata["databaseId"], MAIN_TEXT);
            assert_eq!(metadata["token"], WRITER);
            // Only version 1 knows no relative URLs.
            let base = if version == 1 { "http://kv.test:4512" } else { "." };
            assert_eq!(metadata["endpoints"], endpoints(base, "/kv/strong"));
        }
    }
}

#[tokio::test]
async fn every_connect_url() {
    let server = Server::start().await;
    let mut client = server.http1().await;
    let by_id = format!("/databases/{}/connect", OTHER_TEXT.to_uppercase());
    for (path, token, id, base) in [
        ("/", READER, MAIN_TEXT, "."),
        ("/db/main", WRITER, MAIN_TEXT, ".."),
        ("/db/other", WRITER, OTHER_TEXT, ".."),
        ("/db/other", OTHERS, OTHER_TEXT, ".."),
        (&by_id, OTHERS, OTHER_TEXT, "../.."),
    ] {
        let headers = [("authorization", &*bearer(token))];
        let strong = client.post(path, &headers, ALL_VERSIONS).await.unwrap().json();
        assert_eq!(strong["databaseId"], id, "{path}");
        assert_eq!(strong["endpoints"], endpoints(base, "/kv/strong"));
        let path = format!("{path}?consistency=eventual");
        let eventual = client.post(&path, &headers, ALL_VERSIONS).await.unwrap().json();
        assert_schema(&eventual, 3);
        assert_eq!(eventual["databaseId"], id, "{path}");
        assert_eq!(eventual["endpoints"], endpoints(base, "/kv/eventual"));
    }
}

#[tokio::test]
async fn the_base_of_endpoints() {
    let server = Server::start().await;
    let mut client = server.http1().await;
    // Relative URLs lead back through the proxies, whatever the forwarding headers say.
    for forwarded in [
        ("x-forwarded-proto", "https"),
        ("x-forwarded-proto", "https,http"),
        ("x-forwarded-host", "x"),
    ] {
        let headers = [("authorization", &*bearer(WRITER)), forwarded];
        let metadata = client.post("/", &headers, ALL_VERSIONS).await.unwrap().json();
        assert_eq!(metadata["endpoints"], endpoints(".", "/kv/strong"));
    }
    // A version without relative URLs is sent to the host that the client named, and to the scheme that
    // a trusted proxy tells of.
    let proxies = ["127.0.0.1".to_owned(), "10.0.0.0/8".to_owned()];
    let trusted_proxies = TrustedProxies::parse(&proxies).unwrap();
    let behind = Server::with(Options { trusted_proxies, ..Options::default() }).await;
    let mut proxy = behind.http1().await;
    for (name, value) in [
        ("x-forwarded-proto", "https"),
        ("x-forwarded-proto", "https,http"),
        ("x-forwarded-proto", "https, http"),
        ("forwarded", "for=192.0.2.1;proto=https;host=\"kv.test:4512\", for=10.0.0.1"),
    ] {
        let headers = [("authorization", &*bearer(WRITER)), (name, value)];
        for (client, base) in
            [(&mut client, "http://kv.test:4512"), (&mut proxy, "https://kv.test:4512")]
        {
            let metadata = client.post("/", &headers, "").await.unwrap().json();
            assert_eq!(metadata["endpoints"], endpoints(base, "/kv/strong"), "{name}: {value}");
        }
    }
    let headers = [("authorization", &*bearer(WRITER))];

    let public_url = Some("https://kv.example.com/meridian/".parse().unwrap());
    let server = Server::with(Options { public_url, ..Options::default() }).await;
    let mut client = server.http1().await;
    for body in ["", ALL_VERSIONS] {
        let metadata = client.post("/", &headers, body).await.unwrap().json();
        assert_eq!(
            metadata["endpoints"],
            endpoints("https://kv.example.com/meridian", "/kv/strong")
        );
    }
}

#[tokio::test]
async fn refusals() {
    let server = Server::start().await;
    let mut client = server.http1().await;
    let writer = bearer(WRITER);
    let versions = "1, 2 and 3";
    for (path, authorization, body, status, part) in [
        ("/", None, ALL_VERSIONS, 401, "Malformed authorization header."),
        ("/", Some(WRITER), ALL_VERSIONS, 401, "Malformed authorization header."),
        ("/", Some("Basic eDp5"), ALL_VERSIONS, 401, "Malformed authorization header."),
        ("/", Some("Bearer unknown-token"), ALL_VERSIONS, 401, "Invalid access token."),
        ("/", Some(&bearer(OTHERS)), ALL_VERSIONS, 401, "Invalid access token."),
        ("/db/main", Some(&bearer(OTHERS)), ALL_VERSIONS, 401, "Invalid access token."),
        ("/", Some(&writer), "{", 400, versions),
        ("/", Some(&writer), "{}", 400, versions),
        ("/", Some(&writer), r#"{"supportedVersions":"3"}"#, 400, versions),
        ("/", Some(&writer), r#"{"supportedVersions":[4]}"#, 400, versions),
        ("/", Some(&writer), r#"{"supportedVersions":[]}"#, 400, versions),
        ("/?consistency=weak", Some(&writer), ALL_VERSIONS, 400, "consistency"),
        ("/db/none", Some(&writer), ALL_VERSIONS, 404, "no such database"),
        // A token for one database does not learn of others, not even that they do not exist.
        ("/db/none", Some(&bearer(OTHERS)), ALL_VERSIONS, 401, "Invalid access token."),
        (
            "/databases/00000000-0000-0000-0000-000000000000/connect",
            Some(&writer),
            ALL_VERSIONS,
            404,
            "no such",
        ),
        ("/databases/zero/connect", Some(&writer), ALL_VERSIONS, 404, "Nothing is served here."),
        ("/other", Some(&writer), ALL_VERSIONS, 404, "Nothing is served here."),
    ] {
        let headers = authorization.map(|value| ("authorization", value));
        let reply = client.post(path, headers.as_slice(), body).await.unwrap();
        println!("{path} {body} -> {}", reply.text());
        reply.refuses(status, part);
    }
}
