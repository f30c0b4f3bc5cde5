//! The gateway and database that a command asks, and the token that it shows.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use meridian_types::Consistency;

use crate::command::access_token;
use crate::command::gateway_url::with_database;

use super::session::Session;

#[derive(Args)]
pub(in crate::command) struct Connection {
    /// URL of a gateway, or of a database as clients open it.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "DENO_KV_DEFAULT_PATH",
        default_value = "http://127.0.0.1:4512"
    )]
    url: String,
    /// Name of the database. Default: the database that the URL opens.
    #[arg(long, global = true, value_name = "NAME")]
    database: Option<String>,
    /// File that holds the access token, in the place of DENO_KV_ACCESS_TOKEN. `-` for the standard
    /// input.
    #[arg(long, global = true, value_name = "FILE", visible_alias = "access-token-file")]
    token_file: Option<PathBuf>,
}

impl Connection {
    pub(in crate::command) async fn open(&self, consistency: Consistency) -> Result<Session> {
        let token = match &self.token_file {
            Some(path) => access_token::read_file(path)?,
            None => std::env::var("DENO_KV_ACCESS_TOKEN").context(
                "there is no access token: set DENO_KV_ACCESS_TOKEN, or give --token-file",
            )?,
        };
        Session::open(self.url()?, token, consistency).await
    }

    /// Of the database, as clients open it.
    pub(in crate::command) fn url(&self) -> Result<String> {
        with_database(self.url.clone(), self.database.as_deref())
    }
}
