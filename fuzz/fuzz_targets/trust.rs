//! Join tokens, requests for certificates and certificates, as strangers make them.
#![no_main]

use std::sync::OnceLock;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use meridian_fuzz::{times, within};
use meridian_pki::{Authority, Claims, Holder, JoinToken, Subject};
use meridian_types::NodeId;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use sha2::{Digest, Sha256};

const CLUSTER: &str = "00ff00ff00ff00ff";
/// Since the Unix epoch.
const NOW: Duration = Duration::from_secs(1_800_000_000);
const LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
const MAX_BYTES: usize = 256 << 10;

fn authority() -> &'static Authority {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    AUTHORITY.get_or_init(|| Authority::new(CLUSTER, NOW).expect("an authority is made"))
}

fn join_token(text: &str) {
    let Ok(token) = within(times(64, text.len()), || text.parse::<JoinToken>()) else { return };
    assert_eq!(token.to_string().parse(), Ok(token.clone()), "{text}");
}

fn certificate(der: &[u8]) {
    let claims =
        within(times(64, der.len()) + MAX_BYTES, || Claims::read(&CertificateDer::from(der)));
    let Ok(claims) = claims else { return };
    assert_eq!(claims.subject.to_string().parse(), Ok(claims.subject));
    assert_eq!(claims.fingerprint.len(), 64);
}

/// Whatever the request says, the certificate is of the holder that is meant.
fn request(der: &[u8]) {
    let subject = Subject { cluster: CLUSTER.to_owned(), holder: Holder::Node(NodeId(7)) };
    let authority = authority();
    let issued =
        within(times(64, der.len()) + MAX_BYTES, || authority.issue(der, &subject, NOW, LIFE));
    let Ok(issued) = issued else { return };
    let leaf = CertificateDer::from_pem_slice(issued.chain_pem.as_bytes());
    let claims = Claims::read(&leaf.expect("what was issued is a certificate"));
    assert_eq!(claims.expect("it names its holder").subject, subject);
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, bytes)) = input.split_first() else { return };
    let text = || std::str::from_utf8(bytes).ok();
    match kind % 5 {
        0 => drop(text().map(join_token)),
        1 => {
            // Behind the checksum.
            let sum = &Sha256::digest(bytes)[..4];
            let coded = URL_SAFE_NO_PAD.encode([sum, bytes].concat());
            join_token(&format!("meridian-join-1.{coded}"));
        }
        2 => certificate(bytes),
        3 => request(bytes),
        _ => {
            let Some(subject) = text().and_then(|text| text.parse::<Subject>().ok()) else {
                return;
            };
            assert_eq!(subject.to_string().parse(), Ok(subject));
        }
    }
});
