//! `meridian latency`: what eventual reads, strong reads and writes take from the gateway of each
//! region, and how soon a write shows there. The README has figures of it.
//!
//! | module | contents |
//! |---|---|
//! | `site` | the gateways: from a node's configuration, or from the command line |
//! | `probe` | warm connections to one gateway, and the requests that go over them |
//! | `keys` | the keys of a run: written first, removed last |
//! | `measurement` | the stages of a run |
//! | `report`, `table` | the results, as JSON and as text |
//!
//! Requests go one at a time, so nothing here waits for another request of this program. A run
//! fails as a whole, naming the region, when any request fails: a table with holes would be read as
//! a whole one.

mod keys;
mod measurement;
mod probe;
mod report;
mod site;
mod table;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use tokio_util::sync::CancellationToken;

use self::measurement::Measurement;
use self::site::{Cluster, RegionUrl};
use super::access_token::AccessToken;
use super::{Hangup, asked_to_stop};

#[derive(Args)]
pub(crate) struct Latency {
    /// Configuration file of a node: the first node of each region is measured, with the token
    /// found there, and over HTTPS if the node's gateway has certificates.
    #[arg(long, default_value = "meridian-data/region-1-a/node.toml", conflicts_with = "urls")]
    config: PathBuf,
    /// Gateway of a region, instead of a configuration file. May be repeated; replication is
    /// measured from the first.
    #[arg(long = "url", value_name = "REGION=URL")]
    urls: Vec<RegionUrl>,
    // Default: the token of the configuration, if it stands there in plain text.
    #[command(flatten)]
    access_token: AccessToken,
    /// Name of the database. Default: the database opened at `/`.
    #[arg(long, value_name = "NAME")]
    database: Option<String>,
    /// Requests for each region and operation, one at a time. Of 200, the p99 is the second or
    /// third longest.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=2000))]
    requests: u32,
    /// Number of writes for which the delay until every region shows them is measured; 0: none.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(..=2000))]
    replication_writes: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Latency {
    pub(crate) async fn run(self) -> Result<()> {
        let database = self.database.as_deref();
        let token = self.access_token.read()?;
        let cluster = if self.urls.is_empty() {
            Cluster::of_config(&self.config, database, token)?
        } else {
            let token = token.context("give --access-token-file, or set DENO_KV_ACCESS_TOKEN")?;
            Cluster::of_urls(self.urls, database, token)?
        };
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        tokio::spawn(async move {
            asked_to_stop(Hangup::Stop).await;
            stopping.cancel();
        });
        let measurement = Measurement {
            cluster,
            requests: self.requests,
            replication_writes: self.replication_writes,
            stop,
        };
        let report = measurement.run().await?;
        if self.json {
            println!("{}", report.to_json()?);
        } else {
            print!("{}", table::render(&report));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        latency: Latency,
    }

    fn parse(arguments: &[&str]) -> Result<Latency, String> {
        let all = ["latency"].iter().chain(arguments);
        Cli::try_parse_from(all).map(|cli| cli.latency).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults() {
        let latency = parse(&[]).unwrap();
        assert_eq!(latency.config, PathBuf::from("meridian-data/region-1-a/node.toml"));
        assert_eq!((latency.requests, latency.replication_writes, latency.json), (200, 50, false));
        assert!(latency.urls.is_empty() && latency.database.is_none());
    }

    #[test]
    fn urls_take_the_place_of_a_configuration() {
        let latency =
            parse(&["--url", "a=http://h:1", "--url=b=http://h:2/db/x", "--access-token=t"])
                .unwrap();
        assert_eq!(latency.urls.len(), 2);
        assert_eq!(latency.access_token.read().unwrap().as_deref(), Some("t"));
        assert!(parse(&["--url=a=http://h:1", "--config=node.toml"]).is_err());
    }

    #[test]
    fn contradictory_arguments_are_refused() {
        for arguments in [
            ["--requests=0"],
            ["--requests=2001"],
            ["--replication-writes=-1"],
            ["--url=http://h:1"],
            ["--url=a="],
        ] {
            assert!(parse(&arguments).is_err(), "{arguments:?}");
        }
    }
}
