//! A new key, and the request for a certificate of it.

use std::fmt;

use rcgen::{CertificateParams, DistinguishedName, KeyPair};

use crate::authority::AuthorityError;

/// A key that never leaves its process but into its own file, and the request that goes to the
/// authority.
pub struct KeyAndRequest {
    pub key_pem: String,
    /// PKCS#10, DER: the public key, signed by the key. It asks for no name.
    pub request: Vec<u8>,
}

impl fmt::Debug for KeyAndRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyAndRequest")
    }
}

impl KeyAndRequest {
    /// ECDSA on P-256.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new() -> Result<Self, AuthorityError> {
        let failed = |error: rcgen::Error| AuthorityError::NotIssued(error.to_string());
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key).map_err(failed)?;
        Ok(Self { key_pem: key.serialize_pem(), request: request.der().to_vec() })
    }
}
