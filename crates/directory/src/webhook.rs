//! Webhooks: where the messages of a queue are sent to, and the keys that their requests are signed
//! with.

use std::fmt;
use std::ops::RangeInclusive;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use url::Url;

use crate::refused::{Refused, ensure};

/// How many requests are open at a time at most.
pub const WEBHOOK_CONCURRENCY: RangeInclusive<u32> = 1..=1000;
/// How long the answer to a request may take.
pub const WEBHOOK_TIMEOUT_MS: RangeInclusive<u64> = 1000..=600_000;
/// The bytes of a key, as Standard Webhooks has it.
pub const WEBHOOK_KEY_BYTES: RangeInclusive<usize> = 24..=64;
const DEFAULT_CONCURRENCY: u32 = 10;
const DEFAULT_TIMEOUT_MS: u64 = 30_000;
const MAX_URL_BYTES: usize = 2000;
/// Of a key's SHA-256, in hex: enough to tell keys from each other.
const FINGERPRINT_BYTES: usize = 4;
/// Before the base64 of a key in text.
const TEXT_PREFIX: &str = "whsec_";

/// Where the messages of a queue go by themselves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Webhook {
    /// The queue's name; the queue that every database has is without one.
    #[serde(default)]
    pub queue: String,
    pub url: String,
    pub concurrency: u32,
    pub timeout_ms: u64,
    pub key: WebhookKey,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_key: Option<WebhookKey>,
}

/// The settings of a webhook that are to be from now on; the rest stays, or is as by default in a
/// new one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookSettings {
    #[serde(default)]
    pub url: Option<String>,
    #[serde(default)]
    pub concurrency: Option<u32>,
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// A next key that is not named with it goes.
    #[serde(default)]
    pub key: Option<WebhookKey>,
    #[serde(default)]
    pub next_key: Option<WebhookKey>,
}

/// A key that requests are signed with. People see its fingerprint alone, also in its `Debug` form.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookKey {
    fingerprint: String,
    /// Empty where it is shown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    base64: String,
}

impl WebhookKey {
    /// # Errors
    /// [`Refused`]: the key is too short or too long.
    pub fn new(bytes: &[u8]) -> Result<Self, Refused> {
        ensure(WEBHOOK_KEY_BYTES.contains(&bytes.len()), || {
            let (least, most) = WEBHOOK_KEY_BYTES.into_inner();
            format!("a key has {least} to {most} bytes, this one has {}", bytes.len())
        })?;
        Ok(Self { fingerprint: fingerprint(bytes), base64: STANDARD.encode(bytes) })
    }

    /// From the contents of a file: `whsec_` and base64, as Standard Webhooks writes keys, or the
    /// bytes themselves. White space around a text is no part of it.
    ///
    /// # Errors
    /// [`Refused`]: the key is too short or too long, or what follows `whsec_` is no base64.
    pub fn from_file(contents: &[u8]) -> Result<Self, Refused> {
        let bytes = std::str::from_utf8(contents).map_or(contents, |text| text.trim().as_bytes());
        match bytes.strip_prefix(TEXT_PREFIX.as_bytes()) {
            None => Self::new(bytes),
            Some(text) => {
                let bytes = STANDARD.decode(text).map_err(|_| {
                    Refused(format!("the key begins with {TEXT_PREFIX}, and no base64 follows"))
                })?;
                Self::new(&bytes)
            }
        }
    }

    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// `None` where it is only shown.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        STANDARD.decode(&self.base64).ok().filter(|bytes| !bytes.is_empty())
    }

    /// Leaves the fingerprint.
    pub(crate) fn hide(&mut self) {
        self.base64.clear();
    }

    fn check(&self) -> Result<(), Refused> {
        let bytes = self.bytes().ok_or_else(|| Refused("the key is missing".to_owned()))?;
        let is_whole = Self::new(&bytes)? == *self;
        ensure(is_whole, || "the key is not that of its fingerprint".to_owned())
    }
}

impl fmt::Debug for WebhookKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "key {}", self.fingerprint)
    }
}

fn fingerprint(bytes: &[u8]) -> String {
    let digest: [u8; 32] = Sha256::digest(bytes).into();
    digest.iter().take(FINGERPRINT_BYTES).map(|byte| format!("{byte:02x}")).collect()
}

impl Webhook {
    /// A new one, or `present` with other settings.
    pub(crate) fn with(
        present: Option<&Self>,
        queue: &str,
        settings: &WebhookSettings,
    ) -> Result<Self, Refused> {
        let missing = |what: &str| Refused(format!("a new webhook needs {what}"));
        let WebhookSettings { url, concurrency, timeout_ms, key, next_key } = settings.clone();
        let kept_next = || present.and_then(|webhook| webhook.next_key.clone());
        let next_key = if key.is_some() { next_key } else { next_key.or_else(kept_next) };
        let webhook = Self {
            queue: queue.to_owned(),
            url: match url {
                Some(url) => checked_url(&url)?,
                None => {
                    present.map(|webhook| webhook.url.clone()).ok_or_else(|| missing("a URL"))?
                }
            },
            concurrency: concurrency
                .or(present.map(|webhook| webhook.concurrency))
                .unwrap_or(DEFAULT_CONCURRENCY),
            timeout_ms: timeout_ms
                .or(present.map(|webhook| webhook.timeout_ms))
                .unwrap_or(DEFAULT_TIMEOUT_MS),
            key: key
                .or_else(|| present.map(|webhook| webhook.key.clone()))
                .ok_or_else(|| missing("a key"))?,
            next_key,
        };
        webhook.check()?;
        Ok(webhook)
    }

    fn check(&self) -> Result<(), Refused> {
        let Self { concurrency, timeout_ms, key, next_key, .. } = self;
        ensure(WEBHOOK_CONCURRENCY.contains(concurrency), || {
            let (least, most) = WEBHOOK_CONCURRENCY.into_inner();
            format!("{least} to {most} requests are open at a time, and not {concurrency}")
        })?;
        ensure(WEBHOOK_TIMEOUT_MS.contains(timeout_ms), || {
            let (least, most) = WEBHOOK_TIMEOUT_MS.into_inner();
            format!("a request may take {least} to {most} ms, and not {timeout_ms}")
        })?;
        key.check()?;
        if let Some(next) = next_key {
            next.check()?;
            ensure(next != key, || "the next key is the current one".to_owned())?;
        }
        Ok(())
    }

    /// The next key in the place of the current one.
    pub(crate) fn rotate(&mut self) -> Result<(), Refused> {
        let next = self.next_key.take();
        self.key = next.ok_or_else(|| Refused("the webhook has no next key".to_owned()))?;
        Ok(())
    }

    pub(crate) fn hide_keys(&mut self) {
        self.key.hide();
        self.next_key.iter_mut().for_each(WebhookKey::hide);
    }
}

impl WebhookSettings {
    pub(crate) fn hide_keys(&mut self) {
        self.key.iter_mut().chain(&mut self.next_key).for_each(WebhookKey::hide);
    }
}

/// The URL in its normal form, if messages can be sent to it.
fn checked_url(text: &str) -> Result<String, Refused> {
    ensure(text.len() <= MAX_URL_BYTES, || {
        format!("a URL has at most {MAX_URL_BYTES} bytes, this one has {}", text.len())
    })?;
    let url = Url::parse(text).map_err(|error| Refused(format!("`{text}` is no URL: {error}")))?;
    ensure(matches!(url.scheme(), "http" | "https"), || {
        format!("messages are sent to URLs of http and https, and not of {}", url.scheme())
    })?;
    ensure(url.host_str().is_some_and(|host| !host.is_empty()), || {
        format!("`{text}` names no host")
    })?;
    ensure(url.username().is_empty() && url.password().is_none(), || {
        "the URL must name no user and no password: it is shown and logged".to_owned()
    })?;
    ensure(url.fragment().is_none(), || "the URL must have no fragment (#…)".to_owned())?;
    ensure(url.port() != Some(0), || "no program listens at port 0".to_owned())?;
    ensure(url.as_str().len() <= MAX_URL_BYTES, || {
        format!("a URL has at most {MAX_URL_BYTES} bytes, with its escapes")
    })?;
    Ok(url.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_that_messages_cannot_be_sent_to_is_refused_with_a_reason() {
        let refused = |text: &str| checked_url(text).unwrap_err().0;
        for (text, said) in [
            ("example.com/hook", "is no URL"),
            ("ftp://example.com/", "and not of ftp"),
            ("https://user@example.com/", "no user and no password"),
            ("https://:secret@example.com/", "no user and no password"),
            ("https://example.com/#part", "no fragment"),
            ("http://example.com:0/", "port 0"),
            ("https://", "is no URL"),
            (&format!("https://example.com/{}", "x".repeat(2000)), "at most 2000 bytes"),
            (&format!("https://example.com/{}", "ü".repeat(900)), "with its escapes"),
        ] {
            assert!(refused(text).contains(said), "{text}: {}", refused(text));
        }
        for (text, normal) in [
            ("HTTPS://Example.com", "https://example.com/"),
            ("http://127.0.0.1:8080/a?b=c", "http://127.0.0.1:8080/a?b=c"),
            ("http://[::1]:9/", "http://[::1]:9/"),
            ("https://bücher.example/ü", "https://xn--bcher-kva.example/%C3%BC"),
        ] {
            assert_eq!(checked_url(text).unwrap(), normal);
        }
    }

    #[test]
    fn key_is_read_from_a_file_and_shown_by_its_fingerprint_alone() {
        let bytes = [7; 32];
        let key = WebhookKey::new(&bytes).unwrap();
        let text = format!("whsec_{}\n", STANDARD.encode(bytes));
        assert_eq!(WebhookKey::from_file(text.as_bytes()).unwrap(), key);
        assert_eq!(WebhookKey::from_file(&bytes).unwrap(), key);
        assert_eq!(key.bytes().unwrap(), bytes);
        assert_eq!(format!("{key:?}"), "key 4bb06f8e");
        let hex = b" 5f0c9b6d3ad04df1b31a5b50d22a64f2 \n";
        assert_eq!(WebhookKey::from_file(hex).unwrap(), WebhookKey::new(hex.trim_ascii()).unwrap());
        for short in [&b"whsec_AAAA"[..], b"whsec_?", b"short", &[9; 65]] {
            let refused = WebhookKey::from_file(short).unwrap_err().0;
            assert!(refused.starts_with("a key has") || refused.contains("no base64"), "{refused}");
        }
        let mut shown = key;
        shown.hide();
        assert_eq!((shown.bytes(), shown.fingerprint()), (None, "4bb06f8e"));
        assert!(shown.check().is_err(), "what is shown is no key to be set");
    }
}
