//! The metadata exchange of KV Connect: from a connect URL and a token to the endpoints.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use serde::Deserialize;

use crate::endpoint::Endpoint;
use crate::error::ClientError;
use crate::http_version::HttpVersion;
use crate::link::Link;
use crate::target::Target;

const REQUEST: &[u8] = br#"{"supportedVersions":[1,2,3]}"#;

/// A server's metadata of a database.
#[derive(Debug, Clone)]
pub struct Metadata {
    pub version: u64,
    pub database_id: String,
    pub strong: Option<Endpoint>,
    pub eventual: Option<Endpoint>,
    /// The first endpoint of all.
    pub first: Option<Endpoint>,
    /// The headers that the data path wants with every request.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    version: u64,
    database_id: String,
    endpoints: Vec<AnsweredEndpoint>,
    token: String,
}

#[derive(Debug, Deserialize)]
struct AnsweredEndpoint {
    url: String,
    consistency: String,
}

impl Metadata {
    pub async fn exchange(
        connect_url: &str,
        access_token: &str,
        http: HttpVersion,
        timeout: Duration,
    ) -> Result<Self, ClientError> {
        let mut kept = None;
        Self::exchange_over(&mut kept, connect_url, access_token, http, timeout).await
    }

    /// Of each URL, in order. Those that have the same authority as the one before are asked over
    /// one connection.
    pub async fn exchange_all(
        connect_urls: &[&str],
        access_token: &str,
        http: HttpVersion,
        timeout: Duration,
    ) -> Result<Vec<Self>, ClientError> {
        let mut all = Vec::with_capacity(connect_urls.len());
        let mut kept = None;
        for url in connect_urls {
            all.push(Self::exchange_over(&mut kept, url, access_token, http, timeout).await?);
        }
        Ok(all)
    }

    /// Over the connection that is kept, if it leads to the same authority.
    async fn exchange_over(
        kept: &mut Option<(String, Link)>,
        connect_url: &str,
        access_token: &str,
        http: HttpVersion,
        timeout: Duration,
    ) -> Result<Self, ClientError> {
        let headers = [
            (AUTHORIZATION, bearer(access_token)?),
            (CONTENT_TYPE, HeaderValue::from_static("application/json")),
        ];
        let url = Endpoint::parse(connect_url)?;
        let exchange = async {
            let target = Target::new(&url, http, &headers)?;
            let link = match kept {
                Some((authority, link)) if authority == url.authority() => link,
                other => {
                    let link = Link::open(&Arc::new(url.clone()), http, timeout).await?;
                    &mut other.insert((url.authority().to_owned(), link)).1
                }
            };
            let body = link.call(target.request(Bytes::from_static(REQUEST))).await?;
            Self::parse(&url, &body)
        };
        let metadata = exchange.await;
        metadata.map_err(|source| ClientError::Metadata {
            url: url.to_string(),
            source: Box::new(source),
        })
    }

    /// The metadata in the answer to an exchange with this URL.
    pub fn parse(url: &Endpoint, body: &[u8]) -> Result<Self, ClientError> {
        let answer: Answer = serde_json::from_slice(body).map_err(|error| {
            ClientError::Unsuccessful(format!("the answer is not KV Connect metadata: {error}"))
        })?;
        let mut endpoints = Vec::with_capacity(answer.endpoints.len());
        for endpoint in &answer.endpoints {
            endpoints.push((endpoint.consistency.as_str(), url.resolve(&endpoint.url)?));
        }
        let find = |wanted: &str| {
            endpoints
                .iter()
                .find(|(consistency, _)| *consistency == wanted)
                .map(|(_, endpoint)| endpoint.clone())
        };
        let database_id = HeaderValue::from_str(&answer.database_id).map_err(|_| {
            ClientError::Unsuccessful("the database id cannot be sent as a header".into())
        })?;
        let mut headers = vec![(AUTHORIZATION, bearer(&answer.token)?)];
        match answer.version {
            1 => headers.push((HeaderName::from_static("x-transaction-domain-id"), database_id)),
            2 | 3 => {
                headers.push((HeaderName::from_static("x-denokv-database-id"), database_id));
                let version = if answer.version == 2 { "2" } else { "3" };
                headers.push((
                    HeaderName::from_static("x-denokv-version"),
                    HeaderValue::from_static(version),
                ));
            }
            other => {
                return Err(ClientError::Unsuccessful(format!(
                    "the server chose the unknown version {other}"
                )));
            }
        }
        Ok(Self {
            version: answer.version,
            strong: find("strong"),
            eventual: find("eventual"),
            first: endpoints.first().map(|(_, endpoint)| endpoint.clone()),
            database_id: answer.database_id,
            headers,
        })
    }
}

fn bearer(token: &str) -> Result<HeaderValue, ClientError> {
    let mut value =
        HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| ClientError::Token)?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Result<Metadata, ClientError> {
        Metadata::parse(&Endpoint::parse("http://h:1/connect").unwrap(), body.as_bytes())
    }

    #[test]
    fn the_first_endpoint_of_each_consistency_is_taken() {
        let metadata = parse(
            r#"{"version":3,"databaseId":"d","token":"t","expiresAt":"2030-01-01T00:00:00Z","endpoints":[
                {"url":"/a","consistency":"eventual"},{"url":"http://o:2/b","consistency":"strong"},
                {"url":"/c","consistency":"strong"}]}"#,
        )
        .unwrap();
        assert_eq!(metadata.strong.unwrap().to_string(), "http://o:2/b");
        assert_eq!(metadata.eventual.unwrap().to_string(), "http://h:1/a");
        assert_eq!(metadata.first.unwrap().to_string(), "http://h:1/a");
        let names: Vec<_> = metadata.headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["authorization", "x-denokv-database-id", "x-denokv-version"]);
    }

    #[test]
    fn other_bodies_are_refused() {
        assert!(parse("<html>").unwrap_err().to_string().contains("not KV Connect metadata"));
        let unknown = r#"{"version":4,"databaseId":"d","token":"t","endpoints":[]}"#;
        assert!(parse(unknown).unwrap_err().to_string().contains("unknown version 4"));
    }
}
