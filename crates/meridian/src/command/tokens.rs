//! `meridian tokens`: lists, creates, rotates and revokes access tokens. The directory keeps only
//! hashes of their secrets.

mod listed;
mod secret;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use meridian_directory::{Change, Cluster, QuotaOwner, Token, TokenScope};
use meridian_types::{KeyPrefix, Permission, Permissions};

pub(crate) use self::listed::access;
use self::listed::{Listed, details, table};
use self::secret::Secret;
use super::kv::key_of_text;
use super::operator::{Connect, Directory, format, print, print_json, resolve};
use super::quotas::SetQuotas;

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
    /// Shows all that is known of one token.
    Show {
        /// Id or label.
        token: String,
    },
    /// Creates a token, and prints its secret on the standard output, only this time.
    Create(Create),
    /// Gives a token another secret, and prints that on the standard output, only this time. The
    /// secret before it goes on to work for the overlap, so that clients can be changed one after the
    /// other; a secret from before that ends at once, and so do the streams that use it.
    Rotate(Rotate),
    /// Sets quotas of a token, or removes them; those that are not named stay.
    SetQuotas {
        /// Id or label.
        token: String,
        #[command(flatten)]
        quotas: SetQuotas,
    },
    /// Revokes a token with all its secrets. Nodes and gateways refuse it as soon as they receive the
    /// change, and end its watches, listeners and change feeds.
    Revoke {
        /// Id or label.
        token: String,
    },
}

#[derive(Args)]
struct Create {
    /// Purpose of the token, for people.
    label: String,
    /// Name or id of a database that the token opens; may be repeated. Default: all databases,
    /// later ones too.
    #[arg(long = "database", value_name = "DATABASE")]
    databases: Vec<String>,
    /// Key whose parts the keys begin with that the token opens, such as '["users", 42]'; may be
    /// repeated. Default: all keys. ["a"] opens ["a"] and ["a", "b"], and not ["ab"].
    #[arg(long = "prefix", value_name = "KEY")]
    prefixes: Vec<String>,
    /// Some of read, write, watch, enqueue, listen and manage (orders on queues), with commas.
    /// Default: all; with --prefix all but manage, since queues are of a whole database.
    #[arg(long, value_name = "PERMISSIONS", value_delimiter = ',')]
    allow: Vec<Permission>,
    /// The same as --allow read,watch.
    #[arg(long, conflicts_with = "allow")]
    read_only: bool,
    /// Lifetime, such as 12h or 30d. Default: no end.
    #[arg(long, value_name = "DURATION", value_parser = format::parse_duration)]
    expires_in: Option<Duration>,
    /// File with the secret, at least 16 characters, `-` for the standard input. Default: one is made
    /// and printed.
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
}

#[derive(Args)]
struct Rotate {
    /// Id or label.
    token: String,
    /// How long the secret that the token has now goes on to work, such as 12h or 7d.
    #[arg(long, value_name = "DURATION", value_parser = format::parse_duration, default_value = "24h")]
    overlap: Duration,
    /// The secret that the token has now ends at once: it is known to others.
    #[arg(long, conflicts_with = "overlap")]
    no_overlap: bool,
    /// File with the new secret, at least 16 characters, `-` for the standard input. Default: one is
    /// made and printed.
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
}

impl Tokens {
    pub(crate) async fn run(self) -> Result<()> {
        let mut directory = Directory::new(&self.connect.target)?;
        let json = self.connect.json;
        match self.command {
            Command::List => {
                let view = directory.inspect(0).await?;
                let tokens = view.cluster.tokens.iter();
                let listed = tokens.map(|(id, token)| {
                    Listed::of(&view.cluster, *id, token).used(view.token_uses.get(id))
                });
                let listed: Vec<Listed<'_>> = listed.collect();
                if json {
                    print_json(&listed)
                } else {
                    print(&table(&listed, format::now_ms()).to_string())
                }
            }
            Command::Show { token } => {
                let view = directory.inspect(0).await?;
                let (id, token) = find(&view.cluster, &token)?;
                let listed = Listed::of(&view.cluster, id, token).used(view.token_uses.get(&id));
                if json { print_json(&listed) } else { print(&details(&listed, format::now_ms())) }
            }
            Command::Create(create) => create.run(&mut directory, json).await,
            Command::Rotate(rotate) => rotate.run(&mut directory, json).await,
            Command::SetQuotas { token, quotas } => {
                let view = directory.inspect_leader(0).await?;
                let of = QuotaOwner::Token(find(&view.cluster, &token)?.0);
                quotas.run(&mut directory, of, None, json).await
            }
            Command::Revoke { token } => {
                let view = directory.inspect_leader(0).await?;
                let (id, token) = find(&view.cluster, &token)?;
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

/// By its id, or by a label that no other token has.
fn find<'a>(cluster: &'a Cluster, text: &str) -> Result<(u64, &'a Token)> {
    if let Some((id, token)) =
        text.parse().ok().and_then(|id: u64| cluster.tokens.get_key_value(&id))
    {
        return Ok((*id, token));
    }
    let labelled: Vec<_> = cluster.tokens.iter().filter(|(_, token)| token.label == text).collect();
    match labelled.as_slice() {
        [(id, token)] => Ok((**id, token)),
        [] => bail!("there is no token `{text}`; `meridian tokens list` shows all"),
        several => {
            let ids: Vec<String> = several.iter().map(|(id, _)| id.to_string()).collect();
            bail!("`{text}` is the label of the tokens {}: name one by its id", ids.join(", "))
        }
    }
}

impl Create {
    async fn run(self, directory: &mut Directory, json: bool) -> Result<()> {
        let permissions = self.permissions();
        let prefixes = prefixes(&self.prefixes)?;
        let scope = scope(directory, &self.databases).await?;
        let secret = Secret::new(self.secret_file.as_deref())?;
        let now_ms = format::now_ms();
        let expires_at_ms = self.expires_in.map(|lifetime| after(now_ms, lifetime));
        let token = Token {
            prefixes,
            expires_at_ms,
            created_at_ms: now_ms,
            ..Token::new(self.label, secret.sha256_hex(), scope, permissions)
        };
        let cluster = directory.execute(&Change::CreateToken { token: token.clone() }).await?;
        // A view of the cluster that was asked for after a lost answer has no hash.
        let is_it = |known: &Token| {
            known.sha256 == token.sha256
                || known.sha256.is_empty()
                    && (&known.label, known.created_at_ms) == (&token.label, now_ms)
        };
        let made = cluster.tokens.iter().find(|(_, known)| is_it(known));
        let Some((id, token)) = made else { bail!("the token was revoked meanwhile") };
        let mut listed = Listed::of(&cluster, *id, token);
        let (label, opens) = (listed.label, listed.opens());
        let (access, ends) = (listed.access.clone(), listed.ends(now_ms));
        let said = format!("token {id} ({label}) opens {opens} for {access}, expires: {ends}.");
        secret.print(&mut listed, &said, json)
    }

    fn permissions(&self) -> Permissions {
        if self.read_only {
            return Permissions::READ_ONLY;
        }
        match (self.allow.is_empty(), self.prefixes.is_empty()) {
            (false, _) => self.allow.iter().copied().collect(),
            (true, true) => Permissions::ALL,
            (true, false) => Permissions::ALL.without(Permission::Manage),
        }
    }
}

impl Rotate {
    async fn run(self, directory: &mut Directory, json: bool) -> Result<()> {
        let view = directory.inspect_leader(0).await?;
        let (id, _) = find(&view.cluster, &self.token)?;
        let secret = Secret::new(self.secret_file.as_deref())?;
        let now_ms = format::now_ms();
        let previous_until_ms = (!self.no_overlap).then(|| after(now_ms, self.overlap));
        let change = Change::RotateToken { id, sha256: secret.sha256_hex(), previous_until_ms };
        let cluster = directory.execute(&change).await?;
        let Some(token) = cluster.tokens.get(&id) else {
            bail!("token {id} was revoked meanwhile")
        };
        let mut listed = Listed::of(&cluster, id, token);
        let previous = previous_until_ms
            .map_or_else(|| "ended".to_owned(), |at| format!("works until {}", format::time(at)));
        let said =
            format!("token {id} ({}) has a new secret; the one before {previous}.", token.label);
        secret.print(&mut listed, &said, json)
    }
}

fn after(now_ms: u64, duration: Duration) -> u64 {
    now_ms.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

async fn scope(directory: &mut Directory, databases: &[String]) -> Result<TokenScope> {
    if databases.is_empty() {
        return Ok(TokenScope::All);
    }
    let view = directory.inspect_leader(0).await?;
    let ids = databases.iter().map(|database| resolve::database(&view.cluster, database));
    Ok(TokenScope::Databases(ids.collect::<Result<BTreeSet<_>>>()?))
}

fn prefixes(texts: &[String]) -> Result<BTreeSet<KeyPrefix>> {
    let prefix = |text: &String| {
        let key = key_of_text("--prefix", text)?;
        KeyPrefix::new(key.encode()?)
            .map_err(|invalid| anyhow::anyhow!("--prefix {key}: {invalid}"))
    };
    texts.iter().map(prefix).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::command::operator::samples::cluster;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        create: Create,
    }

    fn create(arguments: &[&str]) -> Result<Create, clap::Error> {
        let arguments = ["meridian", "ci"].iter().chain(arguments);
        Line::try_parse_from(arguments).map(|line| line.create)
    }

    #[test]
    fn permissions_are_all_unless_some_are_said() {
        let permissions = |arguments: &[&str]| create(arguments).unwrap().permissions().to_string();
        assert_eq!(permissions(&[]), Permissions::ALL.to_string());
        assert_eq!(permissions(&["--read-only"]), "read, watch");
        assert_eq!(permissions(&["--prefix", "a"]), "read, write, watch, enqueue, listen");
        assert_eq!(permissions(&["--allow", "write,enqueue"]), "write, enqueue");
        assert_eq!(permissions(&["--allow=write", "--allow=read"]), "read, write");
        assert!(create(&["--allow", "admin"]).is_err());
        assert!(create(&["--allow", "write", "--read-only"]).is_err());
    }

    #[test]
    fn prefixes_are_read_as_keys_are() {
        let texts = |texts: &[&str]| {
            prefixes(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
        };
        let [one, two] = ["[\"users\", 42]", "users"];
        let read = texts(&[one, two, two]).unwrap();
        let keys: Vec<_> = read.iter().map(|prefix| prefix.key().to_vec()).collect();
        assert_eq!(keys[0], b"\x02users\0");
        assert_eq!((keys.len(), &keys[1][..8]), (2, &b"\x02users\0\x21"[..]));
        assert!(texts(&["[{}]"]).is_err());
        let empty = texts(&["[]"]).unwrap_err().to_string();
        assert_eq!(empty, "--prefix []: an empty prefix is no limit: leave it out");
    }

    #[test]
    fn token_is_found_by_id_or_by_a_label_of_its_own() {
        let mut cluster = cluster();
        for (id, label) in [(1, "web"), (2, "ci"), (3, "ci"), (4, "1")] {
            let token =
                Token::new(label.to_owned(), String::new(), TokenScope::All, Permissions::ALL);
            cluster.tokens.insert(id, token);
        }
        let found = |text| find(&cluster, text).map(|(id, _)| id).map_err(|why| why.to_string());
        assert_eq!((found("web"), found("1"), found("4")), (Ok(1), Ok(1), Ok(4)));
        assert!(found("ci").unwrap_err().contains("the tokens 2, 3: name one by its id"));
        assert!(found("none").unwrap_err().starts_with("there is no token `none`"));
    }
}
