//! `meridian operators` and `meridian login`: people and programs that command the cluster.

use std::io::Read as _;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use meridian_config::Context;
use meridian_directory::{Change, Operator};
use meridian_net::grpc::Access;
use meridian_pki::{JoinToken, Secret, pem_fingerprint};
use meridian_types::Level;
use serde::Serialize;

use super::invitation::authority;
use super::operator::format::now_ms;
use super::operator::{Connect, Directory, Table, contexts, format, print, print_json, seeds};

#[derive(Args)]
pub(crate) struct Operators {
    #[command(flatten)]
    connect: Connect,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lists the operators that come by a token.
    List,
    /// Adds an operator and prints the token for `meridian login`: one line, shown once.
    Add {
        /// Letters, digits and any of `-_.@`; it stands in the record of changes.
        name: String,
        /// `view`: look. `operate`: also move leaders and primaries, set voters, pause queues.
        /// `admin`: all.
        #[arg(long)]
        level: Level,
        /// Days until the token expires. Default: it does not.
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..=3650))]
        expires_in_days: Option<u64>,
    },
    /// Removes an operator: the token is refused from now on.
    Remove { name: String },
}

/// Keeps the token of an operator, which is read from the standard input, as a context of this user:
/// later commands use it.
#[derive(Args)]
pub(crate) struct Login {
    /// Name of the context.
    #[arg(long, default_value = "default")]
    name: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed<'a> {
    name: &'a str,
    level: Level,
    expires_at_ms: Option<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Added {
    name: String,
    login_token: String,
}

impl Operators {
    pub(crate) async fn run(self) -> Result<()> {
        let mut directory = Directory::new(&self.connect.target)?;
        let json = self.connect.json;
        match self.command {
            Command::List => {
                let cluster = directory.inspect(0).await?.cluster;
                let operators: Vec<_> = cluster.trust.operators.values().map(listed).collect();
                if json {
                    return print_json(&operators);
                }
                let mut table = Table::new(&["OPERATOR", "LEVEL", "EXPIRES"]);
                for operator in &operators {
                    let expires = operator.expires_at_ms.map_or("never".to_owned(), format::time);
                    table.row([operator.name.to_owned(), operator.level.to_string(), expires]);
                }
                print(&table.to_string())
            }
            Command::Add { name, level, expires_in_days } => {
                let view = directory.inspect_leader(0).await?;
                let (authority, secret) = (authority(&view.cluster)?, Secret::random());
                let created_at_ms = now_ms();
                let expires_at_ms =
                    expires_in_days.map(|days| created_at_ms + days * 24 * 3_600_000);
                let operator = Operator {
                    name: name.clone(),
                    sha256: Secret::digest(secret.expose()),
                    level,
                    expires_at_ms,
                    created_at_ms,
                };
                let cluster = directory.execute(&Change::AddOperator { operator }).await?;
                let token = JoinToken {
                    addresses: seeds(&cluster),
                    cluster: cluster.id.clone().context("the cluster has no id yet")?,
                    authority,
                    secret,
                    expires_at_ms: expires_at_ms.unwrap_or(u64::MAX),
                };
                let login_token = token.to_string();
                if json {
                    return print_json(&Added { name, login_token });
                }
                print(&format!("{login_token}\n"))
            }
            Command::Remove { name } => {
                directory.execute(&Change::RemoveOperator { name: name.clone() }).await?;
                print(&format!("operator {name} was removed\n"))
            }
        }
    }
}

fn listed(operator: &Operator) -> Listed<'_> {
    let Operator { name, level, expires_at_ms, .. } = operator;
    Listed { name, level: *level, expires_at_ms: *expires_at_ms }
}

impl Login {
    pub(crate) async fn run(self) -> Result<()> {
        const MAX_BYTES: u64 = 8192;
        let folder = contexts::folder().context("there is no home folder to keep a context in")?;
        let mut text = String::new();
        std::io::stdin().take(MAX_BYTES).read_to_string(&mut text)?;
        let token: JoinToken =
            text.trim().parse().context("the standard input has to be an operator's token")?;
        let pinned = Access::pinned(token.cluster.clone(), token.authority.clone())?
            .with_token(token.secret.expose())?;
        let mut directory = Directory::with(token.addresses.clone(), pinned);
        let cluster = directory.inspect(0).await?.cluster;
        let mut named = cluster.trust.authorities.iter();
        let pinned = Some(&token.authority);
        if !named.any(|known| pem_fingerprint(&known.certificate_pem).as_ref() == pinned) {
            bail!("the cluster does not name the authority that the token names");
        }
        let context = Context {
            cluster: token.cluster,
            nodes: token.addresses,
            authorities: cluster.trust.authorities_pem(),
            identity: None,
            token: Some(token.secret.expose().to_owned()),
        };
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let file = contexts::file(&self.name);
        context.save(&file)?;
        contexts::choose(&self.name)?;
        print(&format!("logged in to cluster {}; kept in {}\n", context.cluster, file.display()))
    }
}
