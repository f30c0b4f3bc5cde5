//! Access tokens and the rights that they grant.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use meridian_types::{DatabaseId, KeyPrefix, Permission, Permissions, Quotas};
use sha2::{Digest, Sha256};

use crate::usage::Account;

/// The databases that a token opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Databases {
    All,
    Only(Vec<DatabaseId>),
}

/// An access token as an operator configures it.
#[derive(Clone)]
pub struct AccessToken {
    /// The text that clients send after `Bearer`: visible ASCII.
    pub secret: String,
    pub grant: Grant,
}

impl fmt::Debug for AccessToken {
    /// Leaves out the secret, so that a configuration may be logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessToken").field("grant", &self.grant).finish_non_exhaustive()
    }
}

/// The rights of a token's bearer. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Sorted. `None`: every database.
    databases: Option<Arc<[DatabaseId]>>,
    permissions: Permissions,
    /// `None`: every key.
    prefixes: Option<Arc<[KeyPrefix]>>,
    /// Where uses of the token are counted.
    pub(crate) account: Account,
    pub(crate) quotas: Quotas,
}

impl Grant {
    /// For all keys.
    pub fn new(databases: Databases, permissions: Permissions) -> Self {
        let databases = match databases {
            Databases::All => None,
            Databases::Only(mut ids) => {
                ids.sort_unstable();
                Some(ids.into())
            }
        };
        let (account, quotas) = (Account::ConfiguredTokens, Quotas::default());
        Self { databases, permissions, prefixes: None, account, quotas }
    }

    /// The same for these keys alone; without any prefix for all keys.
    #[must_use]
    pub fn within(self, prefixes: impl IntoIterator<Item = KeyPrefix>) -> Self {
        let prefixes: Arc<[KeyPrefix]> = prefixes.into_iter().collect();
        Self { prefixes: (!prefixes.is_empty()).then_some(prefixes), ..self }
    }

    /// The same of a token of the cluster, by its id, with the quotas on it.
    #[must_use]
    pub fn of_token(self, id: u64, quotas: Quotas) -> Self {
        Self { account: Account::Token(id), quotas, ..self }
    }

    pub fn allows(&self, database: DatabaseId) -> bool {
        self.databases.as_ref().is_none_or(|ids| ids.binary_search(&database).is_ok())
    }

    pub fn allows_all(&self) -> bool {
        self.databases.is_none()
    }

    pub fn may(&self, permission: Permission) -> bool {
        self.permissions.contains(permission)
    }

    /// Whether it is for some keys alone.
    pub fn is_within_prefixes(&self) -> bool {
        self.prefixes.is_some()
    }

    pub fn opens_key(&self, key: &[u8]) -> bool {
        let Some(prefixes) = &self.prefixes else { return true };
        prefixes.iter().any(|prefix| prefix.contains(key))
    }

    /// Whether all keys of the range, from `start` on before `end`, are of one prefix.
    pub fn opens_range(&self, start: &[u8], end: &[u8]) -> bool {
        let Some(prefixes) = &self.prefixes else { return true };
        prefixes.iter().any(|prefix| prefix.contains_range(start, end))
    }

    /// Whether it is for the keys that `other` is for.
    pub(crate) fn has_keys_of(&self, other: &Self) -> bool {
        self.prefixes.is_none() || self.prefixes == other.prefixes
    }
}

/// Why a token opens nothing, for operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    Unknown,
    Expired,
    /// It was known to this process before.
    Revoked,
}

/// A token that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAccess {
    #[error("the secret of access token {index} is not one or more visible ASCII characters")]
    Secret { index: usize },
    #[error("the secret of access token {index} was given before")]
    Duplicate { index: usize },
}

/// Tokens and their rights. Holds only the SHA-256 of each secret and looks tokens up by it, so
/// that the time of a lookup says nothing about a secret.
#[derive(Debug, Clone, Default)]
pub struct Access {
    grants: HashMap<[u8; 32], Expiring>,
}

/// A grant, and when it ends: wall clock, milliseconds since the Unix epoch; `None`: never.
#[derive(Debug, Clone)]
pub struct Expiring {
    pub grant: Grant,
    pub expires_at_ms: Option<u64>,
    /// The place where uses of the token are noted.
    pub used: Option<Arc<LastUsed>>,
    /// Of a token that has one.
    pub name: Option<Arc<TokenName>>,
}

/// The name of a token, by which operators know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenName {
    pub id: u64,
    pub label: String,
}

impl From<Grant> for Expiring {
    fn from(grant: Grant) -> Self {
        Self { grant, expires_at_ms: None, used: None, name: None }
    }
}

/// When a token was last shown, to a minute: wall clock, milliseconds since the Unix epoch; 0: never.
#[derive(Debug, Default)]
pub struct LastUsed(AtomicU64);

impl LastUsed {
    const GRAIN_MS: u64 = 60_000;

    /// A flood of uses writes once in a minute.
    pub fn note(&self, now_ms: u64) {
        if now_ms >= self.ms().saturating_add(Self::GRAIN_MS) {
            self.0.store(now_ms, Ordering::Relaxed);
        }
    }

    pub fn ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Access {
    pub fn new(tokens: impl IntoIterator<Item = AccessToken>) -> Result<Self, InvalidAccess> {
        let mut grants = HashMap::new();
        for (index, token) in tokens.into_iter().enumerate() {
            if token.secret.is_empty() || !token.secret.bytes().all(|byte| byte.is_ascii_graphic())
            {
                return Err(InvalidAccess::Secret { index });
            }
            if grants.insert(digest(&token.secret), token.grant.into()).is_some() {
                return Err(InvalidAccess::Duplicate { index });
            }
        }
        Ok(Self { grants })
    }

    /// Like [`Access::new`], for secrets known only by their SHA-256.
    ///
    /// # Errors
    /// [`InvalidAccess::Duplicate`].
    pub fn from_digests(
        tokens: impl IntoIterator<Item = ([u8; 32], Grant)>,
    ) -> Result<Self, InvalidAccess> {
        let mut grants = HashMap::new();
        for (index, (digest, grant)) in tokens.into_iter().enumerate() {
            if grants.insert(digest, grant.into()).is_some() {
                return Err(InvalidAccess::Duplicate { index });
            }
        }
        Ok(Self { grants })
    }

    /// Like [`Access::from_digests`], for tokens that expire. Of two tokens with the same secret, the
    /// later one counts.
    pub fn from_expiring(tokens: impl IntoIterator<Item = ([u8; 32], Expiring)>) -> Self {
        Self { grants: tokens.into_iter().collect() }
    }

    /// Why the token, which was not authorized, opens nothing.
    pub fn denial(&self, bearer: &str) -> Denial {
        match self.grants.get(&digest(bearer)) {
            Some(_) => Denial::Expired,
            None => Denial::Unknown,
        }
    }

    /// The name of the token with this digest, also of an expired one.
    pub fn name(&self, sha256: &[u8; 32]) -> Option<Arc<TokenName>> {
        self.grants.get(sha256)?.name.clone()
    }

    /// `None`: the token is not known, or has expired by `now_ms`.
    pub fn authorize(&self, bearer: &str, now_ms: u64) -> Option<Grant> {
        let found = self.grants.get(&digest(bearer))?;
        if found.expires_at_ms.is_some_and(|end| now_ms >= end) {
            return None;
        }
        if let Some(used) = &found.used {
            used.note(now_ms);
        }
        Some(found.grant.clone())
    }
}

/// The SHA-256 by which a secret is known.
pub fn digest(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(secret: &str, databases: Databases, permissions: Permissions) -> AccessToken {
        AccessToken { secret: secret.to_owned(), grant: Grant::new(databases, permissions) }
    }

    #[test]
    fn a_grant_allows_what_it_lists() {
        let (a, b) = (DatabaseId([1; 16]), DatabaseId([2; 16]));
        let access = Access::new([
            token("everything", Databases::All, Permissions::ALL),
            token("only-b", Databases::Only(vec![b]), Permissions::READ_ONLY),
            token("nothing", Databases::Only(vec![]), Permissions::ALL),
        ])
        .unwrap();
        let everything = access.authorize("everything", 0).unwrap();
        assert!(everything.allows(a) && everything.allows(b) && everything.may(Permission::Write));
        let only_b = access.authorize("only-b", 0).unwrap();
        assert!(!only_b.allows(a) && only_b.allows(b) && !only_b.may(Permission::Write));
        assert!(!access.authorize("nothing", 0).unwrap().allows(a));
        assert_eq!(access.authorize("Everything", 0), None);
        assert_eq!(access.authorize("", 0), None);
    }

    #[test]
    fn grant_within_prefixes_opens_keys_of_each_and_ranges_within_one() {
        let all = Grant::new(Databases::All, Permissions::ALL);
        assert_eq!(all.clone().within([]), all);
        assert!(all.opens_key(b"") && all.opens_range(b"", b"\xff") && !all.is_within_prefixes());
        let [a, b] = [b"\x02a\x00", b"\x02b\x00"].map(|key| KeyPrefix::new(&key[..]).unwrap());
        let both = all.within([a, b]);
        assert!(both.is_within_prefixes());
        assert!(both.opens_key(b"\x02a\x00") && both.opens_key(b"\x02b\x00\x27"));
        assert!(!both.opens_key(b"\x02c\x00") && !both.opens_key(b"\x02ab\x00"));
        assert!(both.opens_range(b"\x02b\x00\x00", b"\x02b\x00\xff"));
        assert!(!both.opens_range(b"\x02a\x00", b"\x02b\x00"), "nothing is clipped");
    }

    #[test]
    fn a_token_ends_when_it_expires_and_its_uses_are_noted_until_then() {
        let (grant, used) = (Grant::new(Databases::All, Permissions::ALL), Arc::default());
        let (expires_at_ms, noted) = (Some(100_000), Some(Arc::clone(&used)));
        let name = Some(Arc::new(TokenName { id: 7, label: "ci".to_owned() }));
        let soon = Expiring { grant, expires_at_ms, used: noted, name: name.clone() };
        let access = Access::from_expiring([(digest("soon"), soon)]);
        assert_eq!(LastUsed::ms(&used), 0);
        for (now_ms, noted_ms) in [(60_000, 60_000), (99_999, 60_000)] {
            assert!(access.authorize("soon", now_ms).is_some());
            assert_eq!(used.ms(), noted_ms);
        }
        assert_eq!(access.authorize("soon", 100_000), None);
        assert_eq!(access.authorize("soon", 200_000), None);
        assert_eq!(used.ms(), 60_000, "a refused token is not used");
        assert_eq!(access.denial("soon"), Denial::Expired);
        assert_eq!((access.name(&digest("soon")), access.name(&digest("sooner"))), (name, None));
        assert_eq!(access.denial("sooner"), Denial::Unknown);
    }

    #[test]
    fn tokens_known_by_digest_get_their_own_grants() {
        let grant = |write| {
            let permissions = if write { Permissions::ALL } else { Permissions::READ_ONLY };
            Grant::new(Databases::Only(vec![DatabaseId([1; 16])]), permissions)
        };
        let access =
            Access::from_digests([(digest("one"), grant(true)), (digest("two"), grant(false))])
                .unwrap();
        assert_eq!(access.authorize("one", u64::MAX), Some(grant(true)));
        assert_eq!(access.authorize("two", u64::MAX), Some(grant(false)));
        assert_eq!(access.authorize("three", 0), None);
        let twice = Access::from_digests([false, true].map(|write| (digest("same"), grant(write))));
        assert_eq!(twice.unwrap_err(), InvalidAccess::Duplicate { index: 1 });
    }

    #[test]
    fn unusable_tokens_are_refused() {
        for secret in ["", "with space", "line\n", "ü"] {
            let refused =
                Access::new([token(secret, Databases::All, Permissions::ALL)]).unwrap_err();
            assert_eq!(refused, InvalidAccess::Secret { index: 0 });
        }
        let twice = Access::new([
            token("same", Databases::All, Permissions::ALL),
            token("same", Databases::All, Permissions::READ_ONLY),
        ]);
        assert_eq!(twice.unwrap_err(), InvalidAccess::Duplicate { index: 1 });
    }

    #[test]
    fn secrets_are_not_shown() {
        let shown = token("very-secret", Databases::All, Permissions::ALL);
        assert!(!format!("{shown:?}").contains("very-secret"));
        assert!(!format!("{:?}", Access::new([shown]).unwrap()).contains("very-secret"));
    }
}
