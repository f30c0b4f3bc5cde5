//! Access tokens: hashes of their secrets, and what they open.

use std::collections::BTreeSet;

use meridian_types::{DatabaseId, KeyPrefix, Permission, Permissions, Quotas};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StoredToken", into = "StoredToken")]
pub struct Token {
    pub label: String,
    /// SHA-256 of the secret, in hex.
    pub sha256: String,
    pub scope: TokenScope,
    pub permissions: Permissions,
    /// The keys that the token opens; empty: all.
    pub prefixes: BTreeSet<KeyPrefix>,
    /// Wall clock, milliseconds since the Unix epoch. `None`: never.
    pub expires_at_ms: Option<u64>,
    pub created_at_ms: u64,
    /// The secret before the present one, as long as it is valid, too.
    pub previous: Option<PreviousSecret>,
    pub quotas: Quotas,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenScope {
    All,
    Databases(BTreeSet<DatabaseId>),
}

/// A secret that a rotation has replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviousSecret {
    /// As of the present one.
    pub sha256: String,
    /// Wall clock, milliseconds since the Unix epoch.
    pub until_ms: u64,
}

impl Token {
    /// A token for all keys of these databases, which does not end.
    pub fn new(label: String, sha256: String, scope: TokenScope, permissions: Permissions) -> Self {
        Self {
            label,
            sha256,
            scope,
            permissions,
            prefixes: BTreeSet::new(),
            expires_at_ms: None,
            created_at_ms: 0,
            previous: None,
            quotas: Quotas::default(),
        }
    }

    /// About how many bytes it takes beyond its fixed fields, where it is written down.
    pub(crate) fn size(&self) -> usize {
        const UUID: usize = 40;
        let databases = match &self.scope {
            TokenScope::All => 0,
            TokenScope::Databases(databases) => databases.len(),
        };
        let prefixes: usize = self.prefixes.iter().map(|prefix| 2 * prefix.key().len() + 3).sum();
        self.label.len() + UUID * databases + prefixes
    }

    /// Of all its secrets.
    pub fn hashes(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.sha256.as_str())
            .chain(self.previous.iter().map(|secret| secret.sha256.as_str()))
    }

    /// Leaves out the hashes, but for `known`.
    pub(crate) fn hide_hashes(&mut self, known: Option<&str>) {
        let hashes = std::iter::once(&mut self.sha256)
            .chain(self.previous.iter_mut().map(|secret| &mut secret.sha256));
        hashes.filter(|hash| Some(hash.as_str()) != known).for_each(String::clear);
    }
}

/// The stored form. Tokens said once whether they may write, and no more: such a token has all
/// permissions, or those for reading, and is stored as it was.
#[derive(Serialize, Deserialize)]
struct StoredToken {
    label: String,
    sha256: String,
    scope: TokenScope,
    #[serde(default)]
    write: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    permissions: Option<Permissions>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    prefixes: BTreeSet<KeyPrefix>,
    expires_at_ms: Option<u64>,
    created_at_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    previous: Option<PreviousSecret>,
    #[serde(default, skip_serializing_if = "Quotas::is_empty")]
    quotas: Quotas,
}

impl From<StoredToken> for Token {
    fn from(stored: StoredToken) -> Self {
        let by_word = if stored.write { Permissions::ALL } else { Permissions::READ_ONLY };
        Self {
            label: stored.label,
            sha256: stored.sha256,
            scope: stored.scope,
            permissions: stored.permissions.unwrap_or(by_word),
            prefixes: stored.prefixes,
            expires_at_ms: stored.expires_at_ms,
            created_at_ms: stored.created_at_ms,
            previous: stored.previous,
            quotas: stored.quotas,
        }
    }
}

impl From<Token> for StoredToken {
    fn from(token: Token) -> Self {
        let is_by_word = [Permissions::ALL, Permissions::READ_ONLY].contains(&token.permissions);
        Self {
            label: token.label,
            sha256: token.sha256,
            scope: token.scope,
            write: token.permissions.contains(Permission::Write),
            permissions: (!is_by_word).then_some(token.permissions),
            prefixes: token.prefixes,
            expires_at_ms: token.expires_at_ms,
            created_at_ms: token.created_at_ms,
            previous: token.previous,
            quotas: token.quotas,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = r#"{"label":"ci","sha256":"ab","scope":"All","write":true,"expires_at_ms":null,"created_at_ms":8}"#;

    #[test]
    fn token_that_was_stored_with_a_word_alone_means_the_same_and_is_stored_as_it_was() {
        for (word, permissions) in [("true", Permissions::ALL), ("false", Permissions::READ_ONLY)] {
            let stored = OLD.replace("true", word);
            let token: Token = serde_json::from_str(&stored).unwrap();
            assert_eq!((token.permissions, token.prefixes.len()), (permissions, 0));
            assert_eq!(serde_json::to_string(&token).unwrap(), stored);
        }
    }

    #[test]
    fn scope_and_former_secret_are_golden() {
        let permissions = [Permission::Write, Permission::Listen].into_iter().collect();
        let mut token = Token::new("ci".into(), "ab".into(), TokenScope::All, permissions);
        token.prefixes.insert(KeyPrefix::new(&b"\x02a\x00"[..]).unwrap());
        token.previous = Some(PreviousSecret { sha256: "cd".into(), until_ms: 9 });
        let text = serde_json::to_string(&token).unwrap();
        assert_eq!(
            text,
            r#"{"label":"ci","sha256":"ab","scope":"All","write":true,"permissions":["write","listen"],"prefixes":["026100"],"expires_at_ms":null,"created_at_ms":0,"previous":{"sha256":"cd","until_ms":9}}"#
        );
        assert_eq!(serde_json::from_str::<Token>(&text).unwrap(), token);
        let wrong = text.replace("\"listen\"", "\"everything\"");
        assert!(serde_json::from_str::<Token>(&wrong).is_err(), "an unknown right is no right");
        assert!(serde_json::from_str::<Token>(&text.replace("026100", "02610")).is_err());
    }
}
