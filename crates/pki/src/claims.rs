//! The claims of a certificate about its holder. Nothing here says that it is true: the chain up to an
//! authority is verified with the handshake.

use std::time::Duration;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

use crate::authority::fingerprint;
use crate::holder::{NotASubject, Subject, is_meant};

/// A certificate's holder, and when it holds. Times are since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    pub subject: Subject,
    pub not_before: Duration,
    pub not_after: Duration,
    /// SHA-256 of the certificate, in hex.
    pub fingerprint: String,
}

/// A certificate that names no holder, or not one alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoClaims {
    #[error("the certificate cannot be read")]
    Malformed,
    #[error(
        "the certificate names no holder of a cluster (a URI meridian://… among its alternative names)"
    )]
    Nameless,
    #[error("the certificate names more than one holder of a cluster")]
    Several,
    #[error(transparent)]
    Subject(#[from] NotASubject),
}

impl Claims {
    /// Of the first certificate of a PEM text.
    ///
    /// # Errors
    /// [`NoClaims`].
    pub fn read_pem(pem: &str) -> Result<Self, NoClaims> {
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes());
        Self::read(&certificate.map_err(|_| NoClaims::Malformed)?)
    }

    /// # Errors
    /// [`NoClaims`].
    pub fn read(certificate: &CertificateDer<'_>) -> Result<Self, NoClaims> {
        let (rest, parsed) =
            parse_x509_certificate(certificate).map_err(|_| NoClaims::Malformed)?;
        if !rest.is_empty() {
            return Err(NoClaims::Malformed);
        }
        let names = parsed.subject_alternative_name().map_err(|_| NoClaims::Malformed)?;
        let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
        let mut uris = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) if is_meant(uri) => Some(*uri),
            _ => None,
        });
        let uri = uris.next().ok_or(NoClaims::Nameless)?;
        if uris.next().is_some() {
            return Err(NoClaims::Several);
        }
        let since_epoch = |time: x509_parser::time::ASN1Time| {
            Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
        };
        let validity = parsed.validity();
        Ok(Self {
            subject: uri.parse()?,
            not_before: since_epoch(validity.not_before),
            not_after: since_epoch(validity.not_after),
            fingerprint: fingerprint(certificate),
        })
    }
}
