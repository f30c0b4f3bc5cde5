//! `meridian tokens`: lists, creates and revokes access tokens. The directory keeps only their
//! hashes.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use meridian_directory::{Change, Cluster, Token, TokenScope};
use rand::TryRngCore;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::operator::{Connect, Directory, Table, format, print, print_json, resolve};

#[derive(Args)]
pub(crate) struct Tokens {
    #[command(flatten)]
    connect: Connect,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lists all tokens, without their secrets, which are stored nowhere. Tokens of configuration
    /// files are not listed.
    List,
    /// Creates a token, and prints its secret on the standard output, only this time.
    Create {
        /// Purpose of the token, for people.
        label: String,
        /// Name or id of a database that the token opens; may be repeated. Default: all databases,
        /// later ones too.
        #[arg(long = "database", value_name = "DATABASE")]
        databases: Vec<String>,
        /// The token opens databases for reading only.
        #[arg(long)]
        read_only: bool,
        /// Lifetime, such as 12h or 30d. Default: no end.
        #[arg(long, value_name = "DURATION", value_parser = format::parse_duration)]
        expires_in: Option<Duration>,
    },
    /// Revokes a token. Nodes and gateways refuse it as soon as they receive the change.
    Revoke {
        /// Id, as shown by `meridian tokens list`.
        id: u64,
    },
}

/// The public part of a token, without its secret.
#[derive(Serialize)]
struct Listed<'a> {
    id: u64,
    label: &'a str,
    /// `None`: all databases.
    databases: Option<Vec<String>>,
    access: &'static str,
    created_at_ms: u64,
    expires_at_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<&'a str>,
}

impl<'a> Listed<'a> {
    fn of(cluster: &Cluster, id: u64, token: &'a Token) -> Self {
        let databases = match &token.scope {
            TokenScope::All => None,
            TokenScope::Databases(ids) => Some(
                ids.iter()
                    .map(|id| {
                        cluster
                            .databases
                            .get(id)
                            .map_or_else(|| id.to_string(), |known| known.name.clone())
                    })
                    .collect(),
            ),
        };
        Self {
            id,
            label: &token.label,
            databases,
            access: if token.write { "read-write" } else { "read" },
            created_at_ms: token.created_at_ms,
            expires_at_ms: token.expires_at_ms,
            secret: None,
        }
    }

    fn opens(&self) -> String {
        self.databases.as_ref().map_or_else(|| "all databases".to_owned(), |names| names.join(", "))
    }

    fn ends(&self, now_ms: u64) -> String {
        match self.expires_at_ms {
            None => "never".to_owned(),
            Some(at) if at <= now_ms => format!("expired {}", format::time(at)),
            Some(at) => format!("{} (in {})", format::time(at), format::duration(at - now_ms)),
        }
    }
}

impl Tokens {
    pub(crate) async fn run(self) -> Result<()> {
        let mut directory = Directory::new(&self.connect)?;
        let json = self.connect.json;
        match self.command {
            Command::List => {
                let view = directory.inspect(0).await?;
                let tokens = view.cluster.tokens.iter();
                let listed: Vec<Listed<'_>> =
                    tokens.map(|(id, token)| Listed::of(&view.cluster, *id, token)).collect();
                if json {
                    print_json(&listed)
                } else {
                    print(&table(&listed, format::now_ms()).to_string())
                }
            }
            Command::Create { label, databases, read_only, expires_in } => {
                let scope = scope(&mut directory, &databases).await?;
                create(&mut directory, label, scope, !read_only, expires_in, json).await
            }
            Command::Revoke { id } => {
                let view = directory.inspect_leader(0).await?;
                let Some(token) = view.cluster.tokens.get(&id) else {
                    bail!("there is no token {id}")
                };
                directory.execute(&Change::RevokeToken { id }).await?;
                let revoked = Listed::of(&view.cluster, id, token);
                if json {
                    print_json(&revoked)
                } else {
                    print(&format!("token {id} ({}) was revoked\n", token.label))
                }
            }
        }
    }
}

async fn scope(directory: &mut Directory, databases: &[String]) -> Result<TokenScope> {
    if databases.is_empty() {
        return Ok(TokenScope::All);
    }
    let view = directory.inspect_leader(0).await?;
    let ids = databases.iter().map(|database| resolve::database(&view.cluster, database));
    Ok(TokenScope::Databases(ids.collect::<Result<BTreeSet<_>>>()?))
}

async fn create(
    directory: &mut Directory,
    label: String,
    scope: TokenScope,
    write: bool,
    expires_in: Option<Duration>,
    json: bool,
) -> Result<()> {
    let secret = new_secret()?;
    let now_ms = format::now_ms();
    let lifetime_ms =
        expires_in.map(|lifetime| u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX));
    let expires_at_ms = lifetime_ms.map(|lifetime| now_ms.saturating_add(lifetime));
    let token = Token {
        label,
        sha256: sha256_hex(&secret),
        scope,
        write,
        expires_at_ms,
        created_at_ms: now_ms,
    };
    let cluster = directory.execute(&Change::CreateToken { token: token.clone() }).await?;
    let made = cluster.tokens.iter().find(|(_, known)| known.sha256 == token.sha256);
    let Some((id, token)) = made else { bail!("the token was revoked meanwhile") };
    let mut listed = Listed::of(&cluster, *id, token);
    if json {
        listed.secret = Some(&secret);
        return print_json(&listed);
    }
    // On the standard error, so that a program can take the secret from the standard output.
    eprintln!(
        "token {id} ({}) opens {} for {}, expires: {}. Its secret is shown only now:",
        listed.label,
        listed.opens(),
        listed.access,
        listed.ends(now_ms)
    );
    print(&format!("{secret}\n"))
}

/// 256 bits from the operating system, in hex.
fn new_secret() -> Result<String> {
    let mut bytes = [0; 32];
    rand::rngs::OsRng
        .try_fill_bytes(&mut bytes)
        .context("the operating system gives no random numbers")?;
    Ok(hex(&bytes))
}

fn sha256_hex(secret: &str) -> String {
    hex(&Sha256::digest(secret.as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn table(tokens: &[Listed<'_>], now_ms: u64) -> Table {
    let mut table = Table::new(&[">ID", "LABEL", "OPENS", "ACCESS", "CREATED", "EXPIRES"]);
    for token in tokens {
        table.row([
            token.id.to_string(),
            token.label.to_owned(),
            token.opens(),
            token.access.to_owned(),
            format::time(token.created_at_ms),
            token.ends(now_ms),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::operator::samples::cluster;

    #[test]
    fn secrets_differ_and_only_their_hash_is_sent() {
        let (one, two) = (new_secret().unwrap(), new_secret().unwrap());
        assert_ne!(one, two);
        assert_eq!(one.len(), 64);
        assert_eq!(
            sha256_hex("abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn tokens_are_listed_without_secrets() {
        let cluster = cluster();
        let mut token = Token {
            label: "ci".to_owned(),
            sha256: "ab".repeat(32),
            scope: TokenScope::Databases(cluster.databases.keys().copied().collect()),
            write: false,
            expires_at_ms: Some(90_000),
            created_at_ms: 0,
        };
        let listed = [Listed::of(&cluster, 7, &token)];
        let text = table(&listed, 0).to_string();
        let expected = " 7  ci     default, second  read    1970-01-01T00:00:00.000Z  1970-01-01T00:01:30.000Z (in 1 min 30 s)";
        assert_eq!(text.lines().nth(1), Some(expected));
        assert!(!serde_json::to_string(&listed).unwrap().contains("abab"));
        assert!(listed[0].ends(100_000).starts_with("expired "));
        token.scope = TokenScope::All;
        assert_eq!(Listed::of(&cluster, 7, &token).opens(), "all databases");
    }
}
