//! A certificate authority of a cluster.

use std::fmt;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::holder::{Holder, Subject};

/// Of an authority. It is replaced by a rotation long before.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Clocks may differ so much from the issuer's.
const BACKDATED: Duration = Duration::from_secs(24 * 3600);
/// A request that is longer holds more than a key.
const MAX_REQUEST_BYTES: usize = 4096;

/// Of the certificates of nodes and gateways, which ask for the next one when a third of it is left.
pub const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// SHA-256, in hex.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of a certificate, in hex.
#[must_use]
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    sha256_hex(certificate)
}

/// The same of the first certificate of a PEM text. `None`: it has none.
#[must_use]
pub fn pem_fingerprint(pem: &str) -> Option<String> {
    CertificateDer::from_pem_slice(pem.as_bytes()).ok().as_ref().map(fingerprint)
}

/// Why an authority cannot be used, or issues nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    #[error("the authority cannot be read: {0}")]
    Unreadable(String),
    #[error("the request for a certificate cannot be read: {0}")]
    Request(String),
    #[error("no certificate was made: {0}")]
    NotIssued(String),
}

/// An authority with its key.
#[derive(Clone)]
pub struct Authority {
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    key_pem: String,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({})", fingerprint(&self.certificate))
    }
}

/// A certificate with those up to its authority's, as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    pub chain_pem: String,
}

impl Authority {
    /// A new authority of a cluster, with a key of its own (ECDSA on P-256). `now` is since the
    /// Unix epoch.
    ///
    /// # Errors
    /// [`AuthorityError::NotIssued`], when the system has no randomness.
    pub fn new(cluster: &str, now: Duration) -> Result<Self, AuthorityError> {
        let failed = |error: rcgen::Error| AuthorityError::NotIssued(error.to_string());
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, "Meridian");
        params.distinguished_name.push(DnType::CommonName, format!("authority of {cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = lifetime(now, AUTHORITY_LIFETIME)?;
        let certificate = params.self_signed(&key).map_err(failed)?;
        Ok(Self {
            certificate: certificate.der().clone(),
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// # Errors
    /// [`AuthorityError::Unreadable`], without the key.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, AuthorityError> {
        let unreadable = |error: &dyn fmt::Display| AuthorityError::Unreadable(error.to_string());
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|error| unreadable(&error))?;
        let this = Self {
            certificate,
            certificate_pem: certificate_pem.to_owned(),
            key_pem: key_pem.to_owned(),
        };
        this.issuer()?;
        Ok(this)
    }

    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The key, for where it is kept.
    #[must_use]
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, AuthorityError> {
        // The parser's own words may quote what it was given.
        let key = KeyPair::from_pem(&self.key_pem)
            .map_err(|_| AuthorityError::Unreadable("its key is none".to_owned()))?;
        Issuer::from_ca_cert_der(&self.certificate, key)
            .map_err(|error| AuthorityError::Unreadable(error.to_string()))
    }

    /// As [`Self::issue_after`], of a holder of which no certificate was revoked.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn issue(
        &self,
        request: &[u8],
        subject: &Subject,
        now: Duration,
        valid_for: Duration,
    ) -> Result<Issued, AuthorityError> {
        self.issue_after(Duration::ZERO, request, subject, now, valid_for)
    }

    /// A certificate for the key of a request (DER), which has proved to have it. All else that
    /// the request says is left out. It holds from a little before now on, since clocks differ, but
    /// from no earlier time than `revoked`, before which no certificate of the holder is believed.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn issue_after(
        &self,
        revoked: Duration,
        request: &[u8],
        subject: &Subject,
        now: Duration,
        valid_for: Duration,
    ) -> Result<Issued, AuthorityError> {
        if request.len() > MAX_REQUEST_BYTES {
            let text = format!("it has {} bytes, at most {MAX_REQUEST_BYTES}", request.len());
            return Err(AuthorityError::Request(text));
        }
        let request = CertificateSigningRequestDer::from(request);
        let mut signed = CertificateSigningRequestParams::from_der(&request)
            .map_err(|error| AuthorityError::Request(error.to_string()))?;
        signed.params = params(subject, now, valid_for)?;
        // Certificates have whole seconds.
        let whole = Duration::from_secs(revoked.as_secs() + u64::from(revoked.subsec_nanos() > 0));
        signed.params.not_before = signed.params.not_before.max(at(whole)?);
        let issued = signed.signed_by(&self.issuer()?);
        let issued = issued.map_err(|error| AuthorityError::NotIssued(error.to_string()))?;
        Ok(Issued { chain_pem: format!("{}{}", issued.pem(), self.certificate_pem) })
    }
}

fn params(
    subject: &Subject,
    now: Duration,
    valid_for: Duration,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Meridian");
    params.distinguished_name.push(DnType::CommonName, subject.holder.to_string());
    let uri = subject.to_string().try_into();
    let uri = uri.map_err(|error: rcgen::Error| AuthorityError::NotIssued(error.to_string()))?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if matches!(subject.holder, Holder::Node(_)) {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) = lifetime(now, valid_for)?;
    Ok(params)
}

fn at(since_epoch: Duration) -> Result<OffsetDateTime, AuthorityError> {
    let seconds = i64::try_from(since_epoch.as_secs()).ok();
    let time = seconds.and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
    time.ok_or_else(|| AuthorityError::NotIssued("the clock is beyond all dates".to_owned()))
}

fn lifetime(
    now: Duration,
    valid_for: Duration,
) -> Result<(OffsetDateTime, OffsetDateTime), AuthorityError> {
    Ok((at(now.saturating_sub(BACKDATED))?, at(now.saturating_add(valid_for))?))
}

#[cfg(test)]
mod tests {
    use meridian_types::{Level, NodeId};

    use super::*;
    use crate::{Claims, KeyAndRequest, NoClaims};

    const CLUSTER: &str = "00ff00ff00ff00ff";
    const NOW: Duration = Duration::from_secs(1_800_000_000);
    const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);

    fn authority() -> Authority {
        Authority::new(CLUSTER, NOW).unwrap()
    }

    fn leaf(issued: &Issued) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(issued.chain_pem.as_bytes()).unwrap()
    }

    #[test]
    fn certificate_says_its_holder_and_when_it_holds_and_brings_its_authority() {
        let (authority, asked) = (authority(), KeyAndRequest::new().unwrap());
        for holder in [
            Holder::Node(NodeId(3)),
            Holder::Gateway("edge".to_owned()),
            Holder::Operator { level: Level::Admin, name: "ana".to_owned() },
        ] {
            let subject = Subject { cluster: CLUSTER.to_owned(), holder };
            let issued = authority.issue(&asked.request, &subject, NOW, MONTH).unwrap();
            let claims = Claims::read(&leaf(&issued)).unwrap();
            assert_eq!(claims.subject, subject);
            assert_eq!((claims.not_before, claims.not_after), (NOW - BACKDATED, NOW + MONTH));
            let chain: Vec<_> = CertificateDer::pem_slice_iter(issued.chain_pem.as_bytes())
                .map(Result::unwrap)
                .collect();
            assert_eq!(chain.get(1), Some(authority.certificate()));
        }
    }

    #[test]
    fn certificate_behind_a_revocation_holds_from_no_earlier_time() {
        let (authority, asked) = (authority(), KeyAndRequest::new().unwrap());
        let subject = Subject { cluster: CLUSTER.to_owned(), holder: Holder::Node(NodeId(3)) };
        let revoked = NOW - Duration::from_millis(1500);
        let issued = authority.issue_after(revoked, &asked.request, &subject, NOW, MONTH).unwrap();
        let claims = Claims::read(&leaf(&issued)).unwrap();
        assert_eq!(claims.not_before, NOW - Duration::from_secs(1));
        assert!(claims.not_before >= revoked);
    }

    #[test]
    fn authority_that_was_written_down_issues_the_same() {
        let before = authority();
        let after = Authority::from_pem(before.certificate_pem(), before.key_pem()).unwrap();
        assert_eq!(fingerprint(before.certificate()), fingerprint(after.certificate()));
        let asked = KeyAndRequest::new().unwrap();
        let subject = Subject { cluster: CLUSTER.to_owned(), holder: Holder::Node(NodeId(1)) };
        assert!(after.issue(&asked.request, &subject, NOW, MONTH).is_ok());
        let text = format!("{after:?}");
        assert!(text.len() < 90 && text.contains("Authority("), "{text}");
        let error = Authority::from_pem(before.certificate_pem(), "hush").unwrap_err();
        assert!(!error.to_string().contains("hush"), "{error}");
    }

    #[test]
    fn request_gets_a_key_certified_and_nothing_else_that_it_asks_for() {
        let key = KeyPair::generate().unwrap();
        let mut greedy = CertificateParams::default();
        greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let wanted = format!("meridian://{CLUSTER}/operator/admin/eve");
        greedy.subject_alt_names = vec![SanType::URI(wanted.try_into().unwrap())];
        greedy.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let request = greedy.serialize_request(&key).unwrap();
        let subject =
            Subject { cluster: CLUSTER.to_owned(), holder: Holder::Gateway("edge".to_owned()) };
        let issued = authority().issue(request.der(), &subject, NOW, MONTH).unwrap();
        let leaf = leaf(&issued);
        assert_eq!(Claims::read(&leaf).unwrap().subject, subject);
        let (_, parsed) = x509_parser::parse_x509_certificate(&leaf).unwrap();
        assert!(!parsed.is_ca());
        assert!(!parsed.key_usage().unwrap().unwrap().value.key_cert_sign());
        // A gateway's certificate serves no node's calls.
        assert!(!parsed.extended_key_usage().unwrap().unwrap().value.server_auth);
    }

    #[test]
    fn request_that_is_none_that_is_too_long_or_whose_key_is_not_had_is_refused() {
        let (authority, asked) = (authority(), KeyAndRequest::new().unwrap());
        let subject = Subject { cluster: CLUSTER.to_owned(), holder: Holder::Node(NodeId(1)) };
        let mut damaged = asked.request.clone();
        *damaged.last_mut().unwrap() ^= 1;
        for request in [Vec::new(), b"request".to_vec(), vec![0x30; 5000], damaged] {
            let refused = authority.issue(&request, &subject, NOW, MONTH);
            assert!(matches!(refused, Err(AuthorityError::Request(_))), "{refused:?}");
        }
    }

    #[test]
    fn certificate_of_no_holder_or_of_two_has_no_claims() {
        let read = |names: Vec<SanType>| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.subject_alt_names = names;
            Claims::read(params.self_signed(&key).unwrap().der())
        };
        let uri = |text: &str| SanType::URI(text.to_owned().try_into().unwrap());
        assert_eq!(read(Vec::new()), Err(NoClaims::Nameless));
        let dns = SanType::DnsName("meridian.example.com".to_owned().try_into().unwrap());
        assert_eq!(read(vec![dns.clone()]), Err(NoClaims::Nameless));
        let one = format!("meridian://{CLUSTER}/node/1");
        let other = format!("meridian://{CLUSTER}/node/2");
        assert_eq!(read(vec![uri(&one), uri(&other)]), Err(NoClaims::Several));
        assert!(read(vec![dns, uri("https://example.com/"), uri(&one)]).is_ok());
        assert!(matches!(read(vec![uri("meridian://x/node/1")]), Err(NoClaims::Subject(_))));
        let authority = authority();
        assert_eq!(Claims::read(authority.certificate()), Err(NoClaims::Nameless));
        let longer = [authority.certificate().as_ref(), b"x"].concat();
        assert_eq!(Claims::read(&CertificateDer::from(longer)), Err(NoClaims::Malformed));
        assert_eq!(Claims::read(&CertificateDer::from(vec![0x30, 0x80])), Err(NoClaims::Malformed));
    }
}
