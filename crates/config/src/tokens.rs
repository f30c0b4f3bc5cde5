//! Access tokens as files name them: a secret, or its digest.

use std::collections::HashMap;
use std::fmt;

use meridian_directory::Cluster;
use meridian_gateway::Databases;
use sha2::{Digest, Sha256};

use crate::InvalidConfig;
use crate::file::{AccessWord, TokenTable};

/// The secret that clients must show, or only its digest.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenSecret {
    Plain(String),
    Sha256([u8; 32]),
}

impl TokenSecret {
    /// The placeholder for a secret in the sample files: it is public.
    pub const PLACEHOLDER: &str = "replace-this-before-you-serve";
    /// Shorter secrets are refused.
    pub const MIN_CHARACTERS: usize = 16;

    /// Of the secret, in either form.
    pub fn sha256(&self) -> [u8; 32] {
        match self {
            Self::Plain(secret) => Sha256::digest(secret.as_bytes()).into(),
            Self::Sha256(digest) => *digest,
        }
    }

    pub(crate) fn plain(secret: String) -> Result<Self, InvalidToken> {
        let characters = secret.chars().count();
        if characters < Self::MIN_CHARACTERS {
            return Err(InvalidToken::ShortSecret { characters });
        }
        if secret == Self::PLACEHOLDER {
            return Err(InvalidToken::Placeholder);
        }
        if !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(InvalidToken::SecretCharacters);
        }
        Ok(Self::Plain(secret))
    }

    /// The SHA-256 of a secret, as 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`InvalidToken::Digest`], for any other text.
    pub fn digest(hex: &str) -> Result<Self, InvalidToken> {
        let digits: Option<Vec<u8>> = hex
            .chars()
            .map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
            .collect();
        let bytes: Vec<u8> = digits
            .filter(|digits| digits.len() == 64)
            .ok_or(InvalidToken::Digest)?
            .chunks(2)
            .map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit))
            .collect();
        bytes.try_into().map(Self::Sha256).map_err(|_| InvalidToken::Digest)
    }
}

impl fmt::Debug for TokenSecret {
    /// Says only which of the two it is, so that a configuration may be logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Plain(..)",
            Self::Sha256(_) => "Sha256(..)",
        })
    }
}

/// An access token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenConfig {
    pub secret: TokenSecret,
    pub databases: Databases,
    /// `false`: reads only.
    pub write: bool,
}

/// A token that cannot be used. Never holds a secret, nor a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    #[error("neither `secret` nor `secret_sha256` is set")]
    NoSecret,
    #[error("both `secret` and `secret_sha256` are set")]
    TwoSecrets,
    #[error("its `secret` has {characters} characters, fewer than {}", TokenSecret::MIN_CHARACTERS)]
    ShortSecret { characters: usize },
    #[error(
        "its `secret` is still that of the sample, which is public: make one with `openssl rand -hex 32`"
    )]
    Placeholder,
    #[error("its `secret` is not made of visible ASCII characters")]
    SecretCharacters,
    #[error("its `secret_sha256` is not 64 hexadecimal digits")]
    Digest,
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
) -> Result<Vec<TokenConfig>, InvalidConfig> {
    let mut tokens = Vec::new();
    let mut digests = HashMap::new();
    for (number, table) in (1..).zip(tables) {
        let invalid = |cause| InvalidConfig::Token { number, cause };
        let token = check_one(table, cluster).map_err(invalid)?;
        if let Some(first) = digests.insert(token.secret.sha256(), number) {
            return Err(invalid(InvalidToken::SameSecret(first)));
        }
        tokens.push(token);
    }
    if tokens.is_empty() { Err(InvalidConfig::NoTokens) } else { Ok(tokens) }
}

fn check_one(table: TokenTable, cluster: &Cluster) -> Result<TokenConfig, InvalidToken> {
    let secret = match (table.secret, table.secret_sha256) {
        (None, None) => return Err(InvalidToken::NoSecret),
        (Some(_), Some(_)) => return Err(InvalidToken::TwoSecrets),
        (Some(secret), None) => TokenSecret::plain(secret)?,
        (None, Some(hex)) => TokenSecret::digest(&hex)?,
    };
    let databases = check_databases(table.databases, cluster)?;
    Ok(TokenConfig { secret, databases, write: table.access == AccessWord::ReadWrite })
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
