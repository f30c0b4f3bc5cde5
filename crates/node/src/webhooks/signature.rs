//! Signatures of requests, as [Standard Webhooks](https://www.standardwebhooks.com) has them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// The keys that requests are signed with: the current one, and the next one if there is one. A
/// receiver believes a request if it knows either.
#[derive(Clone)]
pub(super) struct Keys(Vec<Hmac<Sha256>>);

impl Keys {
    pub(super) fn new<'a>(keys: impl IntoIterator<Item = &'a [u8]>) -> Self {
        // A key of any length will do.
        Self(keys.into_iter().filter_map(|key| Hmac::new_from_slice(key).ok()).collect())
    }

    /// One signature for each key, with spaces between them.
    pub(super) fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> String {
        let signatures = self.0.iter().map(|key| {
            let mut mac = key.clone();
            mac.update(format!("{id}.{timestamp}.").as_bytes());
            mac.update(body);
            format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
        });
        signatures.collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    #[test]
    fn signature_is_that_of_the_published_vector() {
        let key = STANDARD.decode(KEY).unwrap();
        let sign = |keys: &Keys| {
            let body = b"{\"test\": 2432232314}";
            keys.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body)
        };
        assert_eq!(sign(&Keys::new([&key[..]])), SIGNATURE);
        let two = sign(&Keys::new([&[7; 32], &key[..]]));
        let [other, same] = two.split(' ').collect::<Vec<_>>()[..] else { panic!("{two}") };
        assert!(other.starts_with("v1,") && other != SIGNATURE && same == SIGNATURE, "{two}");
    }
}
