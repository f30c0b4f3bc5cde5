//! Changes of access tokens.

use meridian_types::Permission;

use crate::change::quotas::check_of_token;
use crate::cluster::Cluster;
use crate::refused::{Refused, ensure};
use crate::token::{PreviousSecret, Token, TokenScope};

const MAX_LABEL_BYTES: usize = 200;
/// Of one token: each gateway has them all in memory.
const MAX_PREFIXES: usize = 16;

impl Cluster {
    pub(super) fn create_token(&mut self, token: &Token) -> Result<(), Refused> {
        ensure(token.label.len() <= MAX_LABEL_BYTES, || {
            format!("a label has at most {MAX_LABEL_BYTES} bytes")
        })?;
        self.check_new_hash(&token.sha256)?;
        check_of_token(&token.quotas)?;
        ensure(token.previous.is_none(), || "a new token has one secret".to_owned())?;
        ensure(!token.permissions.is_empty(), || {
            "a token without permissions is of no use".to_owned()
        })?;
        ensure(token.prefixes.len() <= MAX_PREFIXES, || {
            format!("a token has at most {MAX_PREFIXES} prefixes")
        })?;
        let manages = token.permissions.contains(Permission::Manage);
        ensure(token.prefixes.is_empty() || !manages, || {
            "queues are of a whole database: a token with prefixes does not have the permission `manage`"
                .to_owned()
        })?;
        if let TokenScope::Databases(databases) = &token.scope {
            ensure(!databases.is_empty(), || "a token for no database is of no use".to_owned())?;
            let unknown = databases.iter().find(|id| !self.databases.contains_key(id));
            ensure(unknown.is_none(), || {
                unknown.map(|id| format!("there is no database {id}")).unwrap_or_default()
            })?;
        }
        let id = self
            .last_token_id
            .checked_add(1)
            .ok_or_else(|| Refused("all token ids were used".to_owned()))?;
        self.last_token_id = id;
        self.tokens.insert(id, token.clone());
        Ok(())
    }

    /// The secret before the present one ends, if it had not yet.
    pub(super) fn rotate_token(
        &mut self,
        id: u64,
        sha256: &str,
        previous_until_ms: Option<u64>,
    ) -> Result<(), Refused> {
        self.check_new_hash(sha256)?;
        let Some(token) = self.tokens.get_mut(&id) else {
            return Err(Refused(format!("there is no token {id}")));
        };
        let replaced = std::mem::replace(&mut token.sha256, sha256.to_owned());
        token.previous =
            previous_until_ms.map(|until_ms| PreviousSecret { sha256: replaced, until_ms });
        Ok(())
    }

    pub(super) fn revoke_token(&mut self, id: u64) -> Result<(), Refused> {
        ensure(self.tokens.remove(&id).is_some(), || format!("there is no token {id}"))
    }

    fn check_new_hash(&self, sha256: &str) -> Result<(), Refused> {
        let is_hash = sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
        ensure(is_hash, || "a token is kept as its SHA-256, 64 hex digits".to_owned())?;
        let mut known = self.tokens.values().flat_map(Token::hashes);
        ensure(known.all(|other| !other.eq_ignore_ascii_case(sha256)), || {
            "this token exists already: bring another secret, or have one made".to_owned()
        })
    }
}
