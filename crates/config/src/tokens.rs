//! Access tokens as files name them: a secret, and what it opens.

use std::collections::HashMap;
use std::path::Path;

use meridian_directory::Cluster;
use meridian_gateway::{Databases, Grant};
use meridian_types::{InvalidKeyPrefix, KeyPrefix, Permission, Permissions};
use meridian_values::literal;

use crate::InvalidConfig;
use crate::file::{AccessWord, TokenTable};
use crate::secrets::{InvalidSecret, SecretSource, TokenSecret};

/// An access token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenConfig {
    pub secret: TokenSecret,
    pub databases: Databases,
    pub permissions: Permissions,
    /// The keys that it opens; empty: all.
    pub prefixes: Vec<KeyPrefix>,
}

impl TokenConfig {
    /// A token for all keys.
    pub fn new(secret: TokenSecret, databases: Databases, permissions: Permissions) -> Self {
        Self { secret, databases, permissions, prefixes: Vec::new() }
    }

    pub fn grant(&self) -> Grant {
        Grant::new(self.databases.clone(), self.permissions).within(self.prefixes.iter().cloned())
    }
}

/// A token that cannot be used. Never holds a secret, nor a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    #[error(
        "none of `secret`, `secret_sha256`, `secret_file`, `secret_env` and `secret_credential` is set"
    )]
    NoSecret,
    #[error(
        "more than one of `secret`, `secret_sha256`, `secret_file`, `secret_env` and `secret_credential` is set"
    )]
    TwoSecrets,
    #[error(transparent)]
    Secret(#[from] InvalidSecret),
    #[error("exactly one of `access` and `permissions` is wanted")]
    NotOneAccess,
    #[error("its `permissions` are some of {}", Permissions::ALL)]
    Permissions,
    #[error("number {number} of its `prefixes` is no key, such as [\"users\", 42]")]
    PrefixKey { number: usize },
    #[error("number {number} of its `prefixes` cannot be used: {cause}")]
    Prefix { number: usize, cause: InvalidKeyPrefix },
    #[error(
        "queues are of a whole database: with `prefixes` it cannot have the permission `manage`"
    )]
    ManagesWithPrefixes,
    #[error("it has the same secret as token number {0}")]
    SameSecret(usize),
    #[error("its `databases` are none: list names, or \"*\" for all")]
    NoDatabases,
    #[error("its `databases` have \"*\" beside names")]
    StarAndNames,
    #[error("its `databases` have `{0}`, which is not the name of a database")]
    UnknownDatabase(String),
}

pub(crate) fn check(
    tables: Vec<TokenTable>,
    cluster: &Cluster,
    folder: &Path,
    may_be_none: bool,
) -> Result<Vec<TokenConfig>, InvalidConfig> {
    let mut tokens = Vec::new();
    let mut digests = HashMap::new();
    for (number, table) in (1..).zip(tables) {
        let invalid = |cause| InvalidConfig::Token { number, cause };
        let token = check_one(table, cluster, folder).map_err(invalid)?;
        if let Some(first) = digests.insert(token.secret.sha256(), number) {
            return Err(invalid(InvalidToken::SameSecret(first)));
        }
        tokens.push(token);
    }
    if tokens.is_empty() && !may_be_none { Err(InvalidConfig::NoTokens) } else { Ok(tokens) }
}

fn check_one(
    table: TokenTable,
    cluster: &Cluster,
    folder: &Path,
) -> Result<TokenConfig, InvalidToken> {
    let TokenTable { secret, secret_sha256, secret_file, secret_env, secret_credential, .. } =
        table;
    let file = secret_file.map(|path| SecretSource::File(folder.join(path)));
    let environment = secret_env.map(SecretSource::Environment);
    let credential = secret_credential.map(SecretSource::Credential);
    let mut sources = [file, environment, credential].into_iter().flatten();
    let secret = match (secret, secret_sha256, sources.next(), sources.next()) {
        (None, None, None, None) => return Err(InvalidToken::NoSecret),
        (Some(secret), None, None, None) => TokenSecret::plain(secret)?,
        (None, Some(hex), None, None) => TokenSecret::digest(&hex)?,
        (None, None, Some(source), None) => TokenSecret::read(source)?,
        _ => return Err(InvalidToken::TwoSecrets),
    };
    let databases = check_databases(table.databases, cluster)?;
    let prefixes = (1..).zip(&table.prefixes).map(|(number, text)| check_prefix(number, text));
    let prefixes = prefixes.collect::<Result<Vec<_>, _>>()?;
    let permissions = match (table.access, table.permissions) {
        (Some(AccessWord::Read), None) => Permissions::READ_ONLY,
        (Some(AccessWord::ReadWrite), None) if prefixes.is_empty() => Permissions::ALL,
        (Some(AccessWord::ReadWrite), None) => Permissions::ALL.without(Permission::Manage),
        (None, Some(names)) => {
            let parsed = names.iter().map(|name| name.parse()).collect::<Result<_, _>>();
            parsed.map_err(|_| InvalidToken::Permissions)?
        }
        _ => return Err(InvalidToken::NotOneAccess),
    };
    if permissions.is_empty() {
        return Err(InvalidToken::Permissions);
    }
    if permissions.contains(Permission::Manage) && !prefixes.is_empty() {
        return Err(InvalidToken::ManagesWithPrefixes);
    }
    Ok(TokenConfig { secret, databases, permissions, prefixes })
}

fn check_prefix(number: usize, text: &str) -> Result<KeyPrefix, InvalidToken> {
    let key = literal::parse_key(text).ok().and_then(|key| key.encode().ok());
    let key = key.ok_or(InvalidToken::PrefixKey { number })?;
    KeyPrefix::new(key).map_err(|cause| InvalidToken::Prefix { number, cause })
}

fn check_databases(names: Vec<String>, cluster: &Cluster) -> Result<Databases, InvalidToken> {
    if names.is_empty() {
        return Err(InvalidToken::NoDatabases);
    }
    if names.iter().any(|name| name == "*") {
        return if names.len() == 1 { Ok(Databases::All) } else { Err(InvalidToken::StarAndNames) };
    }
    let mut ids = Vec::new();
    for name in names {
        match cluster.databases.iter().find(|(_, database)| database.name == name) {
            Some(database) => ids.push(*database.0),
            None => return Err(InvalidToken::UnknownDatabase(name)),
        }
    }
    Ok(Databases::Only(ids))
}
