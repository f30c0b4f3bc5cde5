//! Where the operations of a run go.

use std::path::Path;

use meridian_kv_client::Endpoint;
use meridian_kv_client::{Headers, Metadata};

use crate::error::BenchError;
use crate::etcd;
use crate::options::{HttpVersion, Operation, Options, Protocol};

/// Where a cell's requests go.
#[derive(Debug, Clone)]
pub struct Destination {
    pub endpoint: Endpoint,
    pub headers: Headers,
    /// Of more databases, over which requests are spread.
    pub more: Vec<Headers>,
}

/// The endpoints and the database that the metadata exchanges led to.
#[derive(Debug)]
pub struct Session {
    pub database_id: String,
    pub version: u64,
    pub strong: Option<Destination>,
    pub eventual: Option<Destination>,
}

impl Session {
    pub async fn open(options: &Options, http: HttpVersion) -> Result<Self, BenchError> {
        if options.protocol == Protocol::Etcd {
            let member = Destination {
                endpoint: Endpoint::parse(&options.url)?,
                headers: etcd::headers(),
                more: Vec::new(),
            };
            let (strong, eventual) = (Some(member.clone()), Some(member));
            return Ok(Self { database_id: "etcd".into(), version: 3, strong, eventual });
        }
        let main =
            Metadata::exchange(&options.url, &options.access_token, http, options.timeout).await?;
        let more = match &options.more_urls {
            Some(file) => more_databases(file, &main, options, http).await?,
            None => Vec::new(),
        };
        let destination = |endpoint: Option<_>, metadata: &Metadata| {
            endpoint.map(|endpoint| Destination {
                endpoint,
                headers: metadata.headers.clone(),
                more: more.clone(),
            })
        };
        let mut eventual = destination(main.eventual.clone(), &main);
        if let Some(url) = &options.eventual_url {
            let other =
                Metadata::exchange(url, &options.access_token, http, options.timeout).await?;
            if other.database_id != main.database_id {
                return Err(BenchError::DifferentDatabases(main.database_id, other.database_id));
            }
            // A URL with `?consistency=eventual` offers eventual reads at an endpoint marked
            // strong.
            eventual = destination(other.eventual.clone().or_else(|| other.first.clone()), &other);
        }
        let strong = destination(main.strong.clone(), &main);
        Ok(Self { database_id: main.database_id, version: main.version, strong, eventual })
    }

    pub fn destination(
        &self,
        operation: Operation,
        options: &Options,
    ) -> Result<&Destination, BenchError> {
        if operation == Operation::EventualRead {
            return self.eventual.as_ref().ok_or_else(|| {
                BenchError::NoEventualEndpoint(
                    options.eventual_url.as_ref().unwrap_or(&options.url).clone(),
                )
            });
        }
        self.strong.as_ref().ok_or_else(|| BenchError::NoStrongEndpoint(options.url.clone()))
    }
}

/// The headers that the data path wants for each database whose connect URL is in the file.
async fn more_databases(
    file: &Path,
    main: &Metadata,
    options: &Options,
    http: HttpVersion,
) -> Result<Vec<Headers>, BenchError> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| BenchError::Option(format!("--more-urls {}: {error}", file.display())))?;
    let urls: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let metadata =
        Metadata::exchange_all(&urls, &options.access_token, http, options.timeout).await?;
    for (url, other) in urls.iter().zip(&metadata) {
        if (&other.strong, &other.eventual) != (&main.strong, &main.eventual) {
            return Err(BenchError::Option(format!("{url} leads to other endpoints than --url")));
        }
    }
    Ok(metadata.into_iter().map(|metadata| metadata.headers).collect())
}
