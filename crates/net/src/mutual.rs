//! Mutual TLS between the processes of a cluster, and from operators to nodes. Certificates are
//! believed by their authority, and say their holder themselves: host names mean nothing here.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use meridian_pki::{Claims, Holder, NoClaims, fingerprint};
use meridian_types::NodeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use tokio::sync::watch;

use crate::live::Live;
use crate::standing::Standing;
use crate::stream::Stream;
use crate::tls::{self, Identity, PemFile, Versions, client_config, server_config};

/// gRPC is spoken, and nothing else.
const PROTOCOL: &[u8] = b"h2";
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// The authorities that a side believes.
#[derive(Debug, Clone)]
pub enum Believed {
    Authorities(RootCertStore),
    /// Of a process that joins: the authority whose certificate has this SHA-256, in hex. The other
    /// side shows it.
    Pinned(String),
}

/// The node that a connection is to lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// The id of the cluster. `None`: whichever the authority vouches for.
    pub cluster: Option<String>,
    /// `None`: any node of it.
    pub node: Option<NodeId>,
}

impl Expected {
    /// # Errors
    /// The other side is another, with what was met and what was expected.
    fn check(&self, met: &Claims) -> Result<(), String> {
        let Holder::Node(node) = met.subject.holder else {
            return Err(format!("a node was expected, and {} was met", met.subject.holder));
        };
        if let Some(cluster) = self.cluster.as_ref().filter(|own| **own != met.subject.cluster) {
            let other = &met.subject.cluster;
            return Err(format!(
                "a node of cluster {cluster} was expected, and node {node} of cluster {other} was met"
            ));
        }
        match self.node.filter(|expected| *expected != node) {
            Some(expected) => Err(format!("node {expected} was expected, and node {node} was met")),
            None => Ok(()),
        }
    }
}

/// The other side of an accepted connection; each call of gRPC has it among its extensions.
#[derive(Debug, Clone)]
pub struct Caller {
    pub address: Option<SocketAddr>,
    pub has_tls: bool,
    /// The claims of the certificate that an authority vouches for. `None`: it showed none.
    pub claims: Option<Result<Arc<Claims>, NoClaims>>,
    /// To be told of each call of the connection.
    pub standing: Arc<Standing>,
}

impl Caller {
    pub(crate) fn of(stream: &Stream, standing: Arc<Standing>) -> Self {
        Self {
            address: stream.peer_address().ok(),
            has_tls: stream.has_tls(),
            claims: claims_of(stream).map(|claims| claims.map(Arc::new)),
            standing,
        }
    }
}

pub(crate) fn claims_of(stream: &Stream) -> Option<Result<Claims, NoClaims>> {
    stream.peer_certificates().first().map(Claims::read)
}

/// The dialling side.
#[derive(Debug, Clone)]
pub struct Dialler {
    tls: tls::Client,
    live: Arc<Live>,
}

impl Dialler {
    /// `identity`: the certificate to show. `None` for an operator with a token, and for a process
    /// that joins.
    ///
    /// # Errors
    /// The certificate and its key cannot be used.
    pub fn new(identity: Option<&Identity>, believed: Believed) -> io::Result<Self> {
        Self::among(Arc::default(), identity, believed)
    }

    fn among(live: Arc<Live>, identity: Option<&Identity>, believed: Believed) -> io::Result<Self> {
        Ok(Self { tls: tls::Client::new(dialling(identity, believed)?), live })
    }

    /// Adds TLS to a connection to a node.
    ///
    /// # Errors
    /// The other side does not speak TLS, or shows nothing that is believed.
    pub(crate) async fn handshake(
        &self,
        stream: Stream,
        expected: &Expected,
    ) -> io::Result<Stream> {
        let name = match expected.node {
            // Sessions are resumed by this name; a certificate has none.
            Some(node) => format!("node-{node}.meridian"),
            None => "node.meridian".to_owned(),
        };
        let name = ServerName::try_from(name).map_err(io::Error::other)?;
        self.tls.connect(stream, name, HANDSHAKE_TIMEOUT).await
    }

    /// Lets a connection through to the node that is expected, until its certificate is believed no
    /// more.
    ///
    /// # Errors
    /// It is another, or its certificate is believed no more.
    pub(crate) fn check(&self, stream: Stream, expected: &Expected) -> io::Result<Stream> {
        let met = claims_of(&stream).ok_or_else(|| io::Error::other("it shows no certificate"))?;
        let met = met.map_err(io::Error::other)?;
        expected.check(&met).map_err(io::Error::other)?;
        // Where the certificate expires or its authority goes, the other side has another one by then,
        // and calls may be under way.
        let claims = Arc::new(Claims { not_after: Duration::MAX, ..met.clone() });
        let end = self.live.add(Some(claims), Vec::new());
        if !self.live.believes(&met) {
            let text = format!("the certificate of {} is believed no more", met.subject.holder);
            return Err(io::Error::other(text));
        }
        Ok(stream.until(Some(end)))
    }
}

/// A certificate with its key, and the authorities to believe: the contents of three files, of which
/// the first two may be the same.
#[derive(Debug, Clone, Copy)]
pub struct Credentials<'a> {
    pub certificate: &'a PemFile,
    pub key: &'a PemFile,
    pub authorities: &'a PemFile,
}

impl Credentials<'_> {
    fn read(self) -> io::Result<(Identity, RootCertStore, Arc<Claims>)> {
        let identity = Identity::from_pem(self.certificate, self.key).map_err(io::Error::other)?;
        let authorities = tls::authorities(self.authorities).map_err(io::Error::other)?;
        let leaf = identity.certified().end_entity_cert().map_err(io::Error::other)?;
        let claims = Claims::read(leaf).map_err(|error| {
            io::Error::other(format!("{}: {error}", self.certificate.path().display()))
        })?;
        Ok((identity, authorities, Arc::new(claims)))
    }
}

/// A certificate in use.
#[derive(Debug)]
struct InUse {
    claims: Arc<Claims>,
    /// SHA-256 of the certificate behind the own one.
    issuer: Option<String>,
    dialler: Dialler,
    server: tls::Server,
    /// Grows with each set of credentials. It changes with them and not behind: a task that hears of
    /// new ones looks at it.
    generation: u64,
}

/// Both sides, with one certificate, or with none yet. It may be replaced at any time; live
/// connections keep theirs.
#[derive(Debug)]
pub struct Mutual {
    in_use: watch::Sender<Option<Arc<InUse>>>,
    live: Arc<Live>,
}

impl Mutual {
    /// Without a certificate: TLS is neither accepted nor dialled.
    #[must_use]
    pub fn empty() -> Self {
        Self { in_use: watch::Sender::new(None), live: Arc::default() }
    }

    /// # Errors
    /// A file cannot be used, or the certificate names no holder of a cluster.
    pub fn new(credentials: Credentials<'_>) -> io::Result<Self> {
        let this = Self::empty();
        this.replace(credentials)?;
        Ok(this)
    }

    /// Whether credentials could take the place of the present ones now.
    ///
    /// # Errors
    /// As [`Self::replace`], and when the certificate does not hold yet, or no longer.
    pub fn check(&self, credentials: Credentials<'_>) -> io::Result<()> {
        let claims = Self::new(credentials)?.own();
        let now = since_epoch();
        match claims.filter(|claims| claims.not_before <= now && now < claims.not_after) {
            Some(claims) => self.is_own(&claims),
            None => {
                Err(io::Error::other("the certificate does not hold now, by this machine's clock"))
            }
        }
    }

    fn is_own(&self, claims: &Claims) -> io::Result<()> {
        match self.own().filter(|own| own.subject != claims.subject) {
            Some(own) => {
                let text = format!("it is of {}, and this is {}", claims.subject, own.subject);
                Err(io::Error::other(text))
            }
            None => Ok(()),
        }
    }

    /// Takes another certificate, and other authorities, for all later connections.
    ///
    /// # Errors
    /// As [`Self::new`], and when the certificate is of another holder. All stays as it was.
    pub fn replace(&self, credentials: Credentials<'_>) -> io::Result<()> {
        let (identity, authorities, claims) = credentials.read()?;
        self.is_own(&claims)?;
        let clients = clients(&authorities)?;
        let server = tls::Server::new(accepting(&identity, Arc::clone(&clients))?)?;
        let believed = Believed::Authorities(authorities);
        let dialler = Dialler::among(Arc::clone(&self.live), Some(&identity), believed)?;
        let issuer = identity.certified().cert.get(1).map(fingerprint);
        self.in_use.send_modify(|in_use| {
            let generation = generation(in_use) + 1;
            *in_use = Some(Arc::new(InUse { claims, issuer, dialler, server, generation }));
        });
        // Connections that an authority vouched for which is believed no more.
        self.live.end_unvouched(|chain| is_vouched_for(&*clients, chain));
        Ok(())
    }

    /// The claims of the certificate about this process. `None`: it has none yet.
    #[must_use]
    pub fn own(&self) -> Option<Arc<Claims>> {
        self.in_use.borrow().as_ref().map(|in_use| Arc::clone(&in_use.claims))
    }

    /// Grows with each certificate, and with each other set of authorities: connections that were
    /// dialled before know less.
    #[must_use]
    pub fn generation(&self) -> u64 {
        generation(&self.in_use.borrow())
    }

    /// The SHA-256, in hex, of the certificate that issued this process's, if the process shows it.
    #[must_use]
    pub fn issuer(&self) -> Option<String> {
        self.in_use.borrow().as_ref().and_then(|in_use| in_use.issuer.clone())
    }

    #[must_use]
    pub fn dialler(&self) -> Option<Dialler> {
        self.in_use.borrow().as_ref().map(|in_use| in_use.dialler.clone())
    }

    #[must_use]
    pub fn watch(&self) -> CertificateChanges {
        CertificateChanges(self.in_use.subscribe())
    }

    /// Adds TLS to a connection that was accepted. The other side may show no certificate.
    pub(crate) async fn accept(&self, stream: Stream) -> io::Result<Stream> {
        let in_use = self.in_use.borrow().clone();
        let in_use = in_use.ok_or_else(|| io::Error::other("this process has no certificate"))?;
        in_use.server.accept(stream, HANDSHAKE_TIMEOUT).await
    }

    /// An accepted connection, until it is refused by [`Self::end_unless`].
    pub(crate) fn until_refused(&self, stream: Stream) -> Stream {
        let end = match claims_of(&stream) {
            Some(Ok(claims)) => {
                Some(self.live.add(Some(Arc::new(claims)), stream.peer_certificates().to_vec()))
            }
            // Each of its calls is refused.
            Some(Err(_)) => None,
            None if stream.has_tls() => None,
            None => Some(self.live.add(None, Vec::new())),
        };
        stream.until(end)
    }

    /// Ends the connections that are believed no more, accepted and dialled, by the claims of their
    /// certificates, or `None` in the clear; how many. No later one is dialled with such a
    /// certificate; of an accepted one each call is judged.
    pub fn end_unless(
        &self,
        is_believed: impl Fn(Option<&Claims>) -> bool + Send + Sync + 'static,
    ) -> usize {
        self.live.end_unless(Box::new(is_believed))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.in_use.borrow().is_none()
    }
}

/// News of a process's own certificate.
#[derive(Debug)]
pub struct CertificateChanges(watch::Receiver<Option<Arc<InUse>>>);

impl CertificateChanges {
    /// Waits for another certificate; without end once nothing can come.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

fn generation(in_use: &Option<Arc<InUse>>) -> u64 {
    in_use.as_ref().map_or(0, |in_use| in_use.generation)
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The clients that authorities vouch for, and those that show no certificate: an operator with a
/// token, and a process that joins.
fn clients(authorities: &RootCertStore) -> io::Result<Arc<dyn ClientCertVerifier>> {
    let provider = Arc::new(ring::default_provider());
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(authorities.clone()), provider);
    clients.allow_unauthenticated().build().map_err(io::Error::other)
}

fn is_vouched_for(clients: &dyn ClientCertVerifier, chain: &[CertificateDer<'_>]) -> bool {
    let Some((leaf, others)) = chain.split_first() else { return false };
    clients.verify_client_cert(leaf, others, UnixTime::now()).is_ok()
}

fn accepting(
    identity: &Identity,
    clients: Arc<dyn ClientCertVerifier>,
) -> io::Result<rustls::ServerConfig> {
    let resolver = Arc::new(rustls::sign::SingleCertAndKey::from(Arc::clone(identity.certified())));
    let config = server_config(Versions::Tls13)?;
    let mut config = config.with_client_cert_verifier(clients).with_cert_resolver(resolver);
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(config)
}

fn dialling(identity: Option<&Identity>, believed: Believed) -> io::Result<ClientConfig> {
    let algorithms = ring::default_provider().signature_verification_algorithms;
    let verifier = Arc::new(ByAuthority { believed, algorithms });
    let config = client_config(Versions::Tls13)?;
    let config = config.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(identity) => config.with_client_cert_resolver(Arc::new(
            rustls::sign::SingleCertAndKey::from(Arc::clone(identity.certified())),
        )),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(config)
}

/// Believes a node whose certificate an authority vouches for. Which node it is, the caller looks
/// at.
#[derive(Debug)]
struct ByAuthority {
    believed: Believed,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ByAuthority {
    /// The pinned authority, if the other side shows it.
    fn pinned(pin: &str, shown: &[CertificateDer<'_>]) -> Result<RootCertStore, Error> {
        let authority = shown.iter().find(|certificate| fingerprint(certificate) == pin);
        let mut store = RootCertStore::empty();
        store.add(authority.ok_or(CertificateError::UnknownIssuer)?.clone().into_owned())?;
        Ok(store)
    }
}

impl ServerCertVerifier for ByAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let leaf = ParsedCertificate::try_from(end_entity)?;
        let pinned;
        let authorities = match &self.believed {
            Believed::Authorities(authorities) => authorities,
            Believed::Pinned(pin) => {
                pinned = Self::pinned(pin, intermediates)?;
                &pinned
            }
        };
        verify_server_cert_signed_by_trust_anchor(
            &leaf,
            authorities,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // TLS 1.2 is never offered.
        Err(rustls::PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
