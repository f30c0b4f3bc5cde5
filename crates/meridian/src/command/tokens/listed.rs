//! Tokens as people and programs are shown them, without their secrets.

use std::fmt::Write as _;

use meridian_directory::{Cluster, Token, TokenScope};
use meridian_proto::directory::TokenLastUse;
use meridian_types::{KeyPrefix, Permissions, Quotas};
use meridian_values::Key;
use serde::Serialize;

use crate::command::operator::{Table, format};
use crate::command::quotas;

/// The public part of a token.
#[derive(Serialize)]
pub(super) struct Listed<'a> {
    pub(super) id: u64,
    pub(super) label: &'a str,
    /// `None`: all databases.
    databases: Option<Vec<String>>,
    /// The permissions in a word, where they have one.
    pub(super) access: String,
    permissions: Permissions,
    /// Empty: all keys.
    prefixes: Vec<String>,
    quotas: Quotas,
    created_at_ms: u64,
    expires_at_ms: Option<u64>,
    /// The end of the secret before the present one.
    previous_secret_until_ms: Option<u64>,
    /// To ten minutes; `None`: never, or not known.
    last_used_ms: Option<u64>,
    /// Gateways that were shown it of late.
    gateways: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) secret: Option<&'a str>,
}

impl<'a> Listed<'a> {
    pub(super) fn of(cluster: &Cluster, id: u64, token: &'a Token) -> Self {
        let name = |id| {
            let known = cluster.databases.get(id);
            known.map_or_else(|| format!("{id}"), |known| known.name.clone())
        };
        let databases = match &token.scope {
            TokenScope::All => None,
            TokenScope::Databases(ids) => Some(ids.iter().map(name).collect()),
        };
        Self {
            id,
            label: &token.label,
            databases,
            access: access(token.permissions),
            permissions: token.permissions,
            prefixes: token.prefixes.iter().map(prefix).collect(),
            quotas: token.quotas,
            created_at_ms: token.created_at_ms,
            expires_at_ms: token.expires_at_ms,
            previous_secret_until_ms: token.previous.as_ref().map(|secret| secret.until_ms),
            last_used_ms: None,
            gateways: None,
            secret: None,
        }
    }

    pub(super) fn used(mut self, last: Option<&TokenLastUse>) -> Self {
        self.last_used_ms = last.map(|last| last.time_ms);
        self.gateways = last.map(|last| last.gateways);
        self
    }

    fn last_used(&self, now_ms: u64) -> String {
        let Some(at) = self.last_used_ms else { return "-".to_owned() };
        let ago = format::duration(now_ms.saturating_sub(at));
        let gateways = format::count(self.gateways.unwrap_or(0).into(), "gateway");
        format!("{} ({ago} ago, {gateways})", format::time(at))
    }

    /// `orders, keys of ["users"]`.
    pub(super) fn opens(&self) -> String {
        let databases = self.opened_databases();
        if self.prefixes.is_empty() {
            return databases;
        }
        format!("{databases}, keys of {}", self.prefixes.join(" "))
    }

    fn opened_databases(&self) -> String {
        self.databases.as_ref().map_or_else(|| "all databases".to_owned(), |names| names.join(", "))
    }

    pub(super) fn ends(&self, now_ms: u64) -> String {
        match self.expires_at_ms {
            None => "never".to_owned(),
            Some(at) if at <= now_ms => format!("expired {}", format::time(at)),
            Some(at) => format!("{} (in {})", format::time(at), format::duration(at - now_ms)),
        }
    }
}

/// The word of a configuration file, or the permissions.
pub(crate) fn access(permissions: Permissions) -> String {
    match permissions {
        Permissions::ALL => "read-write".to_owned(),
        Permissions::READ_ONLY => "read".to_owned(),
        others => others.to_string(),
    }
}

/// A prefix of no key that people write is shown in hex.
fn prefix(prefix: &KeyPrefix) -> String {
    let hex = || prefix.key().iter().map(|byte| format!("{byte:02x}")).collect();
    Key::decode(prefix.key()).map_or_else(|_| hex(), |key| key.to_string())
}

pub(super) fn table(tokens: &[Listed<'_>], now_ms: u64) -> Table {
    let mut table =
        Table::new(&[">ID", "LABEL", "OPENS", "ACCESS", "CREATED", "EXPIRES", "LAST USED"]);
    for token in tokens {
        table.row([
            token.id.to_string(),
            token.label.to_owned(),
            token.opens(),
            token.access.clone(),
            format::time(token.created_at_ms),
            token.ends(now_ms),
            token.last_used(now_ms),
        ]);
    }
    table
}

/// A line for each property.
pub(super) fn details(token: &Listed<'_>, now_ms: u64) -> String {
    let keys = match token.prefixes.as_slice() {
        [] => "all".to_owned(),
        prefixes => format!("those of {}", prefixes.join(" ")),
    };
    let previous = match token.previous_secret_until_ms {
        Some(until) if until > now_ms => {
            format!(
                "works until {} (for {})",
                format::time(until),
                format::duration(until - now_ms)
            )
        }
        _ => "none".to_owned(),
    };
    let mut text = String::new();
    for (name, value) in [
        ("token", format!("{} ({})", token.id, token.label)),
        ("databases", token.opened_databases()),
        ("keys", keys),
        ("quotas", quotas::text(&token.quotas)),
        ("permissions", token.permissions.to_string()),
        ("created", format::time(token.created_at_ms)),
        ("expires", token.ends(now_ms)),
        ("former secret", previous),
        ("last used", token.last_used(now_ms)),
    ] {
        // A string takes all that is written to it.
        writeln!(text, "{name:14} {value}").ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use meridian_directory::PreviousSecret;
    use meridian_types::Permission;

    use super::*;
    use crate::command::operator::samples::cluster;

    #[test]
    fn tokens_are_listed_without_secrets() {
        let cluster = cluster();
        let scope = TokenScope::Databases(cluster.databases.keys().copied().collect());
        let mut token = Token {
            expires_at_ms: Some(90_000),
            ..Token::new("ci".to_owned(), "ab".repeat(32), scope, Permissions::READ_ONLY)
        };
        let listed = [Listed::of(&cluster, 7, &token)];
        let text = table(&listed, 0).to_string();
        let expected = " 7  ci     default, second  read    1970-01-01T00:00:00.000Z  1970-01-01T00:01:30.000Z (in 1 min 30 s)  -";
        assert_eq!(text.lines().nth(1), Some(expected));
        assert!(listed[0].ends(100_000).starts_with("expired "));
        token.scope = TokenScope::All;
        assert_eq!(Listed::of(&cluster, 7, &token).opens(), "all databases");
        token.permissions = [Permission::Write, Permission::Watch].into_iter().collect();
        let key = b"\x02users\0\x15\x07";
        token.prefixes =
            [&key[..], b"\x02a\0", b"\x02a"].map(|key| KeyPrefix::new(key).unwrap()).into();
        token.previous = Some(PreviousSecret { sha256: "cd".repeat(32), until_ms: 60_000 });
        let used = TokenLastUse { token_id: 7, time_ms: 30_000, gateways: 2 };
        let listed = Listed::of(&cluster, 7, &token).used(Some(&used));
        assert_eq!(listed.last_used(50_000), "1970-01-01T00:00:30.000Z (20.0 s ago, 2 gateways)");
        assert_eq!(listed.opens(), "all databases, keys of 0261 [ \"a\" ] [ \"users\", 7n ]");
        assert_eq!(listed.access, "write, watch");
        let text = details(&listed, 0);
        assert!(text.contains("former secret  works until 1970-01-01T00:01:00.000Z"), "{text}");
        assert!(details(&listed, 60_000).contains("former secret  none"));
        let json = serde_json::to_string(&listed).unwrap();
        assert!(json.contains(r#""permissions":["write","watch"]"#), "{json}");
        for shown in [text, json] {
            assert!(!shown.contains("abab") && !shown.contains("cdcd"), "{shown}");
        }
    }
}
