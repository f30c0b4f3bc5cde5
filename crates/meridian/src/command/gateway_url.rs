//! The URL that a client would connect to.

use anyhow::{Result, bail};
use meridian_kv_client::Endpoint;

/// The URL of a database, by its name, at a gateway.
pub(crate) fn with_database(url: String, database: Option<&str>) -> Result<String> {
    let Some(database) = database else { return Ok(url) };
    if Endpoint::parse(&url)?.path_and_query() != "/" {
        bail!("{url} names a database by its path already; leave --database or the path out");
    }
    Ok(format!("{}/db/{database}", url.trim_end_matches('/')))
}
