//! The gateways to measure.

use std::collections::BTreeSet;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use meridian_config::{NodeConfig, TokenConfig, TokenSecret};
use meridian_directory::{self as directory, Database};
use meridian_kv_client::{ClientError, Endpoint};
use meridian_types::{DatabaseId, Permission};

use crate::command::gateway_url::with_database;

/// A region's gateway, from the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RegionUrl {
    region: String,
    url: String,
}

impl FromStr for RegionUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (region, url) = text.split_once('=').ok_or("expected REGION=URL")?;
        if region.is_empty() || region.contains("://") {
            return Err("expected REGION=URL, with the name of the region first".to_owned());
        }
        Endpoint::parse(url).map_err(|error| error.to_string())?;
        Ok(Self { region: region.to_owned(), url: url.to_owned() })
    }
}

/// The gateway of one region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Site {
    pub(super) region: String,
    /// The URL that a client would connect to.
    pub(super) url: String,
    /// WAN round trips between this region and the region that decides strong operations. `None`:
    /// unknown.
    pub(super) wan_round_trips: Option<u8>,
    /// The gateway is taken to have HTTPS if that of the configuration has it.
    pub(super) is_guessed: bool,
}

impl Site {
    /// A way on where the URL may be the cause of an error; else empty.
    pub(super) fn advice(&self, error: &ClientError) -> &'static str {
        let cause = match error {
            ClientError::Metadata { source, .. } => source.as_ref(),
            other => other,
        };
        match cause {
            ClientError::Transport(_) | ClientError::Tls { .. } if self.is_guessed => {
                "; whether a gateway has HTTPS was told by that of the configuration: --url REGION=https://HOST:PORT or \
                 REGION=http://HOST:PORT names each"
            }
            _ => "",
        }
    }
}

/// The gateways to measure, and how to open the database there.
#[derive(Debug)]
pub(super) struct Cluster {
    /// At least one. The primary region's, where known, comes first.
    pub(super) sites: Vec<Site>,
    pub(super) access_token: String,
    /// The primary region of the database's shard, where known.
    pub(super) primary_region: Option<String>,
    /// The name of the node that leads the shard normally, where known.
    pub(super) preferred_leader: Option<String>,
}

impl Cluster {
    /// From a node's configuration, which holds the whole cluster. Regions without a known gateway
    /// are left out, and reported on the standard error.
    pub(super) fn of_config(
        path: &Path,
        database: Option<&str>,
        access_token: Option<String>,
    ) -> Result<Self> {
        let config = NodeConfig::load(path)?;
        let database = find_database(&config.cluster, database)?;
        let access_token = match access_token {
            Some(token) => token,
            None => known_token(&config.tokens).with_context(|| {
                let path = path.display();
                format!(
                    "{path} has no token of a known secret that may read and write; give --access-token-file"
                )
            })?,
        };
        let scheme = if config.gateway.certificates.is_empty() { "http" } else { "https" };
        let cluster = Self::from_directory(&config.cluster, database, access_token, scheme);
        for region in &config.cluster.regions {
            if !cluster.sites.iter().any(|site| site.region == *region) {
                eprintln!(
                    "{region}: left out, as none of its nodes has a kv_address; --url takes any gateway"
                );
            }
        }
        if cluster.sites.is_empty() {
            bail!("no node in {} has a kv_address", path.display());
        }
        Ok(cluster)
    }

    fn from_directory(
        cluster: &directory::Cluster,
        (id, database): (DatabaseId, &Database),
        access_token: String,
        scheme: &str,
    ) -> Self {
        let shard = cluster.shard_of(id).map(|(_, shard)| shard);
        let primary = shard.map(|shard| shard.primary_region.as_str());
        let leader = shard.and_then(|shard| cluster.nodes.get(&shard.preferred_leader?));
        let mut sites: Vec<Site> = Vec::new();
        for region in &cluster.regions {
            if let Some(address) =
                cluster.nodes_of(region).find_map(|(_, node)| node.kv_address.as_ref())
            {
                sites.push(Site {
                    region: region.clone(),
                    url: format!("{scheme}://{address}/db/{}", database.name),
                    wan_round_trips: primary.map(|primary| u8::from(primary != region)),
                    is_guessed: true,
                });
            }
        }
        sites.sort_by_key(|site| Some(site.region.as_str()) != primary);
        Self {
            sites,
            access_token,
            primary_region: primary.map(str::to_owned),
            preferred_leader: leader.map(|leader| leader.name.clone()),
        }
    }

    pub(super) fn of_urls(
        urls: Vec<RegionUrl>,
        database: Option<&str>,
        access_token: String,
    ) -> Result<Self> {
        let mut regions = BTreeSet::new();
        let mut sites = Vec::new();
        for RegionUrl { region, url } in urls {
            if !regions.insert(region.clone()) {
                bail!("{region} has two --url");
            }
            let url = with_database(url, database).with_context(|| region.clone())?;
            sites.push(Site { region, url, wan_round_trips: None, is_guessed: false });
        }
        Ok(Self { sites, access_token, primary_region: None, preferred_leader: None })
    }
}

fn find_database<'a>(
    cluster: &'a directory::Cluster,
    name: Option<&str>,
) -> Result<(DatabaseId, &'a Database)> {
    let names = || {
        cluster.databases.values().map(|found| found.name.as_str()).collect::<Vec<_>>().join(", ")
    };
    let found = match name {
        Some(name) => cluster
            .databases
            .iter()
            .find(|(_, database)| database.name == name)
            .with_context(|| format!("there is no database `{name}`; there are: {}", names()))?,
        None => cluster
            .default_database
            .and_then(|id| cluster.databases.get_key_value(&id))
            .with_context(|| {
                format!("there is no default database; give --database, one of: {}", names())
            })?,
    };
    Ok((*found.0, found.1))
}

/// The first token whose secret is known that may read and write all keys. The gateway checks whether
/// it opens the database.
fn known_token(tokens: &[TokenConfig]) -> Option<String> {
    let may = |token: &&TokenConfig| {
        let needed = [Permission::Read, Permission::Write];
        token.prefixes.is_empty() && needed.iter().all(|of| token.permissions.contains(*of))
    };
    tokens.iter().filter(may).find_map(|token| match &token.secret {
        TokenSecret::Plain(secret) => Some(secret.clone()),
        TokenSecret::Read { source, .. } => source.read().ok(),
        TokenSecret::Sha256(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use meridian_config::{
        CertificateFiles, DEV_DEFAULT_DATABASE, DEV_SECOND_DATABASE, DevLayout, dev_cluster,
    };
    use meridian_types::{KeyPrefix, NodeId, Permissions};

    use super::*;

    fn dev() -> directory::Cluster {
        let layout = DevLayout::new(&[3, 2, 1]);
        layout
            .found(|node| format!("127.0.0.1:{}", 4600 + node.0), |node| Some(format!("h:{node}")))
            .unwrap()
    }

    fn urls(texts: &[&str]) -> Vec<RegionUrl> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_first_node_of_each_region_that_has_a_gateway() {
        let mut dev = dev();
        dev.nodes.get_mut(&NodeId(4)).unwrap().kv_address = None;
        let found = find_database(&dev, None).unwrap();
        let cluster = Cluster::from_directory(&dev, found, "t".to_owned(), "http");
        let site = |region: &str, url: &str, wan| Site {
            region: region.to_owned(),
            url: url.to_owned(),
            wan_round_trips: Some(wan),
            is_guessed: true,
        };
        let expected = [
            site("region-1", "http://h:1/db/default", 0),
            site("region-2", "http://h:5/db/default", 1),
            site("region-3", "http://h:6/db/default", 1),
        ];
        assert_eq!(cluster.sites, expected);
        assert_eq!(cluster.primary_region.as_deref(), Some("region-1"));
        assert_eq!(cluster.preferred_leader.as_deref(), Some("region-1-a"));
    }

    #[test]
    fn gateways_have_https_if_that_of_the_configuration_has_it_and_an_error_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let files = dev_cluster(&[3, 2, 1], folder.path(), 4612, 4512, "a-token-of-the-cluster");
        let path = folder.path().join("node.toml");
        let mut config = NodeConfig::parse(&files.unwrap()[0].1, &path).unwrap();
        let schemes = |config: &NodeConfig| {
            std::fs::write(&path, config.to_toml()).unwrap();
            let sites = Cluster::of_config(&path, None, None).unwrap().sites;
            let schemes = sites.iter().map(|site| site.url.split_once(':').unwrap().0.to_owned());
            (schemes.collect::<Vec<_>>(), sites)
        };
        assert_eq!(schemes(&config).0, ["http"; 3]);
        let (certificate, key) = ("https.crt".into(), "https.key".into());
        config.gateway.certificates.push(CertificateFiles { certificate, key });
        let (with, sites) = schemes(&config);
        assert_eq!(with, ["https"; 3]);
        let broken = || ClientError::Transport("connection error".to_owned());
        let url = sites[0].url.clone();
        for error in [broken(), ClientError::Metadata { url, source: Box::new(broken()) }] {
            assert!(sites[0].advice(&error).contains("--url REGION=https://"), "{error}");
            let named = Site { is_guessed: false, ..sites[0].clone() };
            assert_eq!(named.advice(&error), "");
        }
        assert_eq!(sites[0].advice(&ClientError::Timeout(Duration::from_secs(1))), "");
    }

    #[test]
    fn the_primary_region_comes_first() {
        let mut dev = dev();
        dev.regions.reverse();
        let found = find_database(&dev, None).unwrap();
        let cluster = Cluster::from_directory(&dev, found, "t".to_owned(), "http");
        let regions: Vec<_> = cluster.sites.iter().map(|site| site.region.as_str()).collect();
        assert_eq!(regions, ["region-1", "region-3", "region-2"]);
    }

    #[test]
    fn databases_are_found_by_name() {
        let dev = dev();
        assert_eq!(find_database(&dev, None).unwrap().0, DEV_DEFAULT_DATABASE);
        assert_eq!(find_database(&dev, Some("second")).unwrap().0, DEV_SECOND_DATABASE);
        let error = find_database(&dev, Some("third")).unwrap_err().to_string();
        assert_eq!(error, "there is no database `third`; there are: default, second");
    }

    #[test]
    fn the_token_is_known_reads_and_writes_all() {
        let sample = include_str!("../../../../../deploy/node.toml");
        let sample = sample.replace("replace-this-before-you-serve", "a-secret-of-ones-own");
        let path = Path::new("deploy/node.toml");
        let mut tokens = NodeConfig::parse(&sample, path).unwrap().tokens;
        tokens.truncate(1);
        let mut token = tokens.remove(0);
        token.permissions = Permissions::ALL;
        token.secret = TokenSecret::Sha256([0; 32]);
        tokens.push(token.clone());
        token.secret = TokenSecret::Plain("reads".to_owned());
        tokens.push(TokenConfig { permissions: Permissions::READ_ONLY, ..token.clone() });
        let prefixes = vec![KeyPrefix::new(&b"\x02a\x00"[..]).unwrap()];
        tokens.push(TokenConfig { prefixes, ..token.clone() });
        assert_eq!(known_token(&tokens), None);
        token.secret = TokenSecret::Plain("writes".to_owned());
        tokens.push(token);
        assert_eq!(known_token(&tokens).as_deref(), Some("writes"));
    }

    #[test]
    fn urls_name_their_region() {
        let cluster = Cluster::of_urls(
            urls(&["x=http://h:1", "y=http://h:2/"]),
            Some("second"),
            "t".to_owned(),
        )
        .unwrap();
        let found: Vec<_> =
            cluster.sites.iter().map(|site| (site.region.as_str(), site.url.as_str())).collect();
        assert_eq!(found, [("x", "http://h:1/db/second"), ("y", "http://h:2/db/second")]);
        assert_eq!(cluster.sites[0].wan_round_trips, None);
    }

    #[test]
    fn urls_that_contradict_are_refused() {
        let error = |texts: &[&str], database| {
            format!("{:#}", Cluster::of_urls(urls(texts), database, "t".to_owned()).unwrap_err())
        };
        assert_eq!(error(&["x=http://h:1", "x=http://h:2"], None), "x has two --url");
        assert!(
            error(&["x=http://h:1/db/a"], Some("b"))
                .starts_with("x: http://h:1/db/a names a database")
        );
        for bad in ["x", "=http://h:1", "http://h:1/?a=b", "x=ftp://h:1", "x=h:1"] {
            assert!(bad.parse::<RegionUrl>().is_err(), "{bad}");
        }
    }
}
