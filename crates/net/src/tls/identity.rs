//! Certificates with their key, as files have them.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error as TlsError, InconsistentKeys, RootCertStore};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::files::{Cause, PemFile, Unusable};

/// A chain of certificates, beginning with that of this process, and the key of that one.
#[derive(Clone)]
pub struct Identity {
    certified: Arc<CertifiedKey>,
    valid_from: SystemTime,
    valid_until: SystemTime,
}

impl Identity {
    /// Both may be in one file, which is given twice then.
    ///
    /// # Errors
    /// The file of which this is not true, and why.
    pub fn from_pem(certificates: &PemFile, key: &PemFile) -> Result<Self, Unusable> {
        let chain = read_certificates(certificates)?;
        let unusable = |cause| Unusable::new(key.path(), cause);
        let private = PrivateKeyDer::from_pem_slice(key.bytes()).map_err(|error| {
            unusable(match error {
                pem::Error::NoItemsFound => Cause::NoKey,
                error => Cause::Pem(said(&error)),
            })
        })?;
        let [valid_from, valid_until] = validity(certificates, chain.first())?;
        let certified = CertifiedKey::from_der(chain, private, &ring::default_provider());
        let certified = certified.map_err(|error| {
            unusable(match error {
                TlsError::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                    Cause::OtherKey(certificates.path().to_owned())
                }
                error => Cause::Key(error),
            })
        })?;
        Ok(Self { certified: Arc::new(certified), valid_from, valid_until })
    }

    #[must_use]
    pub fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    /// The first moment at which the first certificate is valid.
    #[must_use]
    pub fn valid_from(&self) -> SystemTime {
        self.valid_from
    }

    /// The last moment at which the first certificate is valid.
    #[must_use]
    pub fn valid_until(&self) -> SystemTime {
        self.valid_until
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an identity of {} certificates", self.certified.cert.len())
    }
}

fn read_certificates(file: &PemFile) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let unusable = |cause| Unusable::new(file.path(), cause);
    let certificates = CertificateDer::pem_slice_iter(file.bytes());
    let certificates: Vec<_> = certificates
        .collect::<Result<_, _>>()
        .map_err(|error| unusable(Cause::Pem(said(&error))))?;
    if certificates.is_empty() { Err(unusable(Cause::NoCertificate)) } else { Ok(certificates) }
}

/// The library prints the bytes of a line as numbers.
fn said(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a section has no end".to_owned(),
        pem::Error::IllegalSectionStart { .. } => "a section begins with a broken line".to_owned(),
        error => error.to_string(),
    }
}

fn validity(
    file: &PemFile,
    certificate: Option<&CertificateDer<'static>>,
) -> Result<[SystemTime; 2], Unusable> {
    let unusable = |cause| Unusable::new(file.path(), cause);
    let der = certificate.ok_or_else(|| unusable(Cause::NoCertificate))?;
    let (_, parsed) = X509Certificate::from_der(der)
        .map_err(|error| unusable(Cause::Certificate(error.to_string())))?;
    let validity = parsed.validity();
    let moment = |seconds: i64| {
        // A year before 1970 is as good as that one.
        let seconds = u64::try_from(seconds).unwrap_or_default();
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    };
    let far = || unusable(Cause::Certificate("its dates are out of range".to_owned()));
    let [from, until] = [validity.not_before, validity.not_after].map(|at| moment(at.timestamp()));
    Ok([from.ok_or_else(far)?, until.ok_or_else(far)?])
}

/// The authorities of a file.
pub(super) fn authorities(file: &PemFile) -> Result<RootCertStore, Unusable> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(file)? {
        roots
            .add(certificate)
            .map_err(|error| Unusable::new(file.path(), Cause::Certificate(error.to_string())))?;
    }
    Ok(roots)
}
