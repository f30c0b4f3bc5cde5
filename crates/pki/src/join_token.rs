//! One line that is all that a new process needs to become a part of a cluster, once.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::RngCore as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::authority::sha256_hex;

/// Names the form, so that a later one is told from it.
const PREFIX: &str = "meridian-join-1.";
/// Of the whole line.
const MAX_BYTES: usize = 4096;
/// Of the digest at the end, which finds what was lost in copying.
const CHECKSUM_BYTES: usize = 4;
const SECRET_BYTES: usize = 32;
const MAX_ADDRESSES: usize = 16;

/// Proof that a process was meant: 32 random bytes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    #[must_use]
    pub fn random() -> Self {
        let mut bytes = [0; SECRET_BYTES];
        rand::rng().fill_bytes(&mut bytes);
        Self(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// The text, for the wire.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// SHA-256 of a secret's text in hex, by which it is known elsewhere.
    #[must_use]
    pub fn digest(text: &str) -> String {
        sha256_hex(text.as_bytes())
    }
}

/// A join token. Its text is one line, without spaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinToken {
    /// The id of the cluster.
    #[serde(rename = "c")]
    pub cluster: String,
    /// SHA-256 of the certificate of the cluster's authority, in hex: the new process believes no
    /// other.
    #[serde(rename = "a")]
    pub authority: String,
    /// `host:port` of nodes to ask, at most 16.
    #[serde(rename = "n")]
    pub addresses: Vec<String>,
    #[serde(rename = "s")]
    pub secret: Secret,
    /// Milliseconds since the Unix epoch.
    #[serde(rename = "e")]
    pub expires_at_ms: u64,
}

/// Text that is no join token, and why. The text is not quoted: it may hold a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is no join token: {0}")]
pub struct NotAJoinToken(&'static str);

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_vec(self).map_err(|_| fmt::Error)?;
        let checked = [checksum(&json).as_slice(), &json].concat();
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(checked))
    }
}

fn checksum(json: &[u8]) -> Vec<u8> {
    Sha256::digest(json).iter().copied().take(CHECKSUM_BYTES).collect()
}

impl FromStr for JoinToken {
    type Err = NotAJoinToken;

    fn from_str(text: &str) -> Result<Self, NotAJoinToken> {
        let text = text.trim();
        if text.len() > MAX_BYTES {
            return Err(NotAJoinToken("it is too long"));
        }
        let coded = text
            .strip_prefix(PREFIX)
            .ok_or(NotAJoinToken("it does not begin with `meridian-join-1.`"))?;
        let cut = NotAJoinToken("a part of it is missing or was changed");
        let checked = URL_SAFE_NO_PAD.decode(coded).map_err(|_| cut.clone())?;
        let (sum, json) = checked.split_at_checked(CHECKSUM_BYTES).ok_or_else(|| cut.clone())?;
        if checksum(json) != sum {
            return Err(cut);
        }
        let token: Self =
            serde_json::from_slice(json).map_err(|_| NotAJoinToken("it is of another version"))?;
        let is_hash = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_hash(&token.authority) {
            return Err(NotAJoinToken("it names no authority"));
        }
        if token.addresses.is_empty() || token.addresses.len() > MAX_ADDRESSES {
            return Err(NotAJoinToken("it names no node to ask, or too many"));
        }
        Ok(token)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            cluster: "00ff00ff00ff00ff".to_owned(),
            authority: "ab".repeat(32),
            addresses: vec!["10.0.0.1:4601".to_owned(), "[::1]:4601".to_owned()],
            secret: Secret::random(),
            expires_at_ms: 1_800_000_000_000,
        }
    }

    #[test]
    fn token_is_one_line_and_read_as_it_was_written() {
        let token = token();
        let text = token.to_string();
        assert!(text.len() < 500 && !text.contains(char::is_whitespace), "{text}");
        assert_eq!(format!(" {text}\n").parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains(token.secret.expose()));
        assert_ne!(Secret::random(), Secret::random());
    }

    #[test]
    fn token_that_was_cut_or_changed_is_refused_without_being_quoted() {
        let text = token().to_string();
        for end in 0..text.len() {
            let error = text[..end].parse::<JoinToken>().unwrap_err().to_string();
            assert!(end < 20 || !error.contains(&text[16..end]), "{error}");
        }
        let mut changed = text.clone().into_bytes();
        let last = changed.last_mut().unwrap();
        *last = if *last == b'A' { b'B' } else { b'A' };
        assert!(String::from_utf8(changed).unwrap().parse::<JoinToken>().is_err());
        let none = JoinToken { addresses: Vec::new(), ..token() }.to_string();
        assert!(none.parse::<JoinToken>().is_err());
        let nameless = JoinToken { authority: "ab".to_owned(), ..token() }.to_string();
        assert!(nameless.parse::<JoinToken>().is_err());
        assert!("x".repeat(5000).parse::<JoinToken>().is_err());
    }

    proptest! {
        #[test]
        fn no_text_is_more_than_refused(text in "meridian-join-1\\.[A-Za-z0-9_-]{0,200}") {
            prop_assert!(text.parse::<JoinToken>().is_err());
        }
    }
}
