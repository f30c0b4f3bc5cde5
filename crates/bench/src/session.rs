//! Where the operations of a run go.

use hyper::header::{HeaderName, HeaderValue};

use crate::endpoint::Endpoint;
use crate::error::BenchError;
use crate::etcd;
use crate::metadata::Metadata;
use crate::options::{HttpVersion, Operation, Options, Protocol};

/// Where a cell's requests go.
#[derive(Debug, Clone)]
pub struct Destination {
    pub endpoint: Endpoint,
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// What the metadata exchanges lead to.
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
            let member = Destination { endpoint: Endpoint::parse(&options.url)?, headers: etcd::headers() };
            let (strong, eventual) = (Some(member.clone()), Some(member));
            return Ok(Self { database_id: "etcd".into(), version: 3, strong, eventual });
        }
        let main = Metadata::exchange(&options.url, &options.access_token, http, options.timeout).await?;
        let destination = |endpoint: Option<_>, metadata: &Metadata| {
            endpoint.map(|endpoint| Destination { endpoint, headers: metadata.headers.clone() })
        };
        let mut eventual = destination(main.eventual.clone(), &main);
        if let Some(url) = &options.eventual_url {
            let other = Metadata::exchange(url, &options.access_token, http, options.timeout).await?;
            if other.database_id != main.database_id {
                return Err(BenchError::DifferentDatabases(main.database_id, other.database_id));
            }
            // A URL with `?consistency=eventual` offers eventual reads at an endpoint marked strong.
            eventual = destination(other.eventual.clone().or_else(|| other.first.clone()), &other);
        }
        let strong = destination(main.strong.clone(), &main);
        Ok(Self { database_id: main.database_id, version: main.version, strong, eventual })
    }

    pub fn destination(&self, operation: Operation, options: &Options) -> Result<&Destination, BenchError> {
        if operation == Operation::EventualRead {
            return self.eventual.as_ref().ok_or_else(|| {
                BenchError::NoEventualEndpoint(options.eventual_url.as_ref().unwrap_or(&options.url).clone())
            });
        }
        self.strong.as_ref().ok_or_else(|| BenchError::NoStrongEndpoint(options.url.clone()))
    }
}
