//! `meridian operators` and `meridian login`: people and programs that command the cluster.

mod recovery;

use std::io::Read as _;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Args, Subcommand};
use meridian_config::Context;
use meridian_directory::{Change, Cluster, Operator};
use meridian_net::grpc::Access;
use meridian_pki::{JoinToken, Secret, pem_fingerprint};
use meridian_types::Level;
use serde::Serialize;

use super::invitation::authority;
use super::operator::format::now_ms;
use super::operator::{Connect, Directory, Table, contexts, format, print, print_json, seeds};

const DAY_MS: u64 = 24 * 3_600_000;

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
        /// `view`: look. `operate`: also move leaders and primaries, fail over, set voters, set
        /// databases with their quotas, pause queues. `admin`: all.
        #[arg(long)]
        level: Level,
        /// Days until the token expires. Default: it does not.
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..=3650))]
        expires_in_days: Option<u64>,
    },
    /// Prints another token for `meridian login` of an operator that is there: one line, shown once.
    ///
    /// The operator's present token is refused from now on. A token that was lost is replaced by it,
    /// and one from before `meridian cluster rotate-authority`, with which nothing logs in any more.
    LoginToken {
        /// Name of the operator.
        name: String,
        /// Days until the token expires. Default: with the present token.
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..=3650))]
        expires_in_days: Option<u64>,
    },
    /// Adds an operator of level `admin` where none is left, and prints the token for `meridian login`.
    ///
    /// With the certificate of the node whose configuration `--config` names: to be run on the machine
    /// of a node that votes in the directory, by the node's user, while the node is up.
    Recover {
        /// Name of the new operator.
        name: String,
    },
    /// Removes an operator: the token is refused from now on. Another admin has to do it.
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

/// A token, shown once.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    name: String,
    login_token: String,
}

impl Operators {
    pub(crate) async fn run(self) -> Result<()> {
        let json = self.connect.json;
        if let Command::Recover { name } = self.command {
            let secret = Secret::random();
            let config = &self.connect.target.config;
            let sha256 = Secret::digest(secret.expose());
            let (cluster, added) = recovery::add_admin(config, &name, sha256).await?;
            let token = login_token(&cluster, secret, None)?;
            if let Err(error) = added {
                eprintln!("meridian: if the operator was added nevertheless, the token is {token}");
                return Err(error);
            }
            return show(name, &token, json);
        }
        let mut directory = Directory::new(&self.connect.target)?;
        match self.command {
            Command::Recover { .. } => Ok(()),
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
                let cluster = directory.inspect_leader(0).await?.cluster;
                let secret = Secret::random();
                let created_at_ms = now_ms();
                let operator = Operator {
                    name: name.clone(),
                    sha256: Secret::digest(secret.expose()),
                    level,
                    expires_at_ms: expires_in_days.map(|days| created_at_ms + days * DAY_MS),
                    created_at_ms,
                };
                let token = login_token(&cluster, secret, operator.expires_at_ms)?;
                directory.execute(&Change::AddOperator { operator }).await?;
                show(name, &token, json)
            }
            Command::LoginToken { name, expires_in_days } => {
                let token = replace_token(&mut directory, &name, expires_in_days).await?;
                show(name, &token, json)
            }
            Command::Remove { name } => {
                directory.execute(&Change::RemoveOperator { name: name.clone() }).await?;
                print(&format!("operator {name} was removed\n"))
            }
        }
    }
}

/// A token for `meridian login`.
fn login_token(cluster: &Cluster, secret: Secret, expires_at_ms: Option<u64>) -> Result<JoinToken> {
    Ok(JoinToken {
        cluster: cluster.id.clone().context("the cluster has no id yet")?,
        authority: authority(cluster)?,
        addresses: seeds(cluster),
        secret,
        expires_at_ms: expires_at_ms.unwrap_or(u64::MAX),
    })
}

fn show(name: String, token: &JoinToken, json: bool) -> Result<()> {
    let login_token = token.to_string();
    if json { print_json(&Shown { name, login_token }) } else { print(&format!("{login_token}\n")) }
}

/// Puts another token in the place of an operator's.
async fn replace_token(
    directory: &mut Directory,
    name: &str,
    expires_in_days: Option<u64>,
) -> Result<JoinToken> {
    let cluster = directory.inspect_leader(0).await?.cluster;
    let mut operators = cluster.trust.operators.values();
    let known = operators.find(|operator| operator.name == name);
    let known = known.with_context(|| format!("there is no operator {name}"))?;
    let expires_at_ms = next_expiry(known, expires_in_days, now_ms())?;
    let secret = Secret::random();
    let sha256 = Secret::digest(secret.expose());
    let change = Change::SetOperatorToken { name: name.to_owned(), sha256, expires_at_ms };
    cluster.after(&change).map_err(|refused| anyhow!("refused: {refused}"))?;
    let token = login_token(&cluster, secret, expires_at_ms)?;
    if let Err(error) = directory.execute(&change).await {
        // The token of this command itself may be void by now.
        eprintln!("meridian: if the change was made nevertheless, the token is {token}");
        return Err(error);
    }
    Ok(token)
}

/// The expiry of the next token of an operator: that of the present one, unless days are said.
fn next_expiry(known: &Operator, days: Option<u64>, now_ms: u64) -> Result<Option<u64>> {
    match (days, known.expires_at_ms) {
        (Some(days), _) => Ok(Some(now_ms + days * DAY_MS)),
        (None, Some(at_ms)) if at_ms <= now_ms => bail!(
            "the token of {} has expired: say how long the next one is to hold (--expires-in-days)",
            known.name
        ),
        (None, present) => Ok(present),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::operator::samples;

    const NOW_MS: u64 = samples::LEADER_TIME_MS;

    #[test]
    fn next_token_expires_with_the_present_one_unless_days_are_said() {
        let known = |expires_at_ms| Operator {
            name: "ana".to_owned(),
            sha256: String::new(),
            level: Level::View,
            expires_at_ms,
            created_at_ms: 1,
        };
        let next = |expires_at_ms, days| next_expiry(&known(expires_at_ms), days, NOW_MS);
        assert_eq!(next(None, None).unwrap(), None);
        assert_eq!(next(Some(NOW_MS + 1), None).unwrap(), Some(NOW_MS + 1));
        for present in [None, Some(NOW_MS), Some(NOW_MS + 1)] {
            assert_eq!(next(present, Some(2)).unwrap(), Some(NOW_MS + 2 * DAY_MS));
        }
        let expired = next(Some(NOW_MS), None).unwrap_err().to_string();
        assert!(expired.contains("ana has expired") && expired.contains("--expires-in-days"));
    }
}
