//! The identities of a cluster's processes and people. Certificates name their holder, an authority
//! issues them, and a join token lets a new process ask for its first. Pure, but for the system's
//! chance in keys, secrets and signatures.
//!
//! | module | what it holds |
//! |---|---|
//! | `holder` | [`Subject`]: the cluster and the holder that a certificate names, as a URI |
//! | `claims` | [`Claims`]: what a certificate says, read from its bytes |
//! | `authority` | [`Authority`]: a certificate authority with its key, and what it issues |
//! | `request` | [`KeyAndRequest`]: a new key, and the request for a certificate of it |
//! | `join_token` | [`JoinToken`]: one line that is all that a new process needs |
//!
//! Invariants:
//! - A certificate that names no holder of a cluster, or more than one, has no [`Claims`].
//! - An authority takes the public key of a request and nothing else of it.
//! - No key and no secret is in `Debug` output.
//!
//! Absent on purpose: connections, files, clocks (times are arguments), and whether a holder may do
//! something.

mod authority;
mod claims;
mod holder;
mod join_token;
mod request;

pub use authority::{
    Authority, AuthorityError, CERTIFICATE_LIFETIME, Issued, fingerprint, pem_fingerprint,
    sha256_hex,
};
pub use claims::{Claims, NoClaims};
pub use holder::{Holder, NotASubject, Subject};
pub use join_token::{JoinToken, NotAJoinToken, Secret};
pub use request::KeyAndRequest;
