//! TLS: identities of processes, and the two sides of a connection.
//!
//! | module | what it holds |
//! |---|---|
//! | `identity` | [`Identity`]: certificates with their key |
//! | `files` | [`PemFile`], and [`Files`]: files that are read again when they change; keys that others can read |
//!
//! The settings of a [`Server`] and of a [`Client`] may change at any time. They are those of a
//! connection when it begins, and a live connection keeps its own.

mod files;
mod identity;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_rustls::ConfigBuilderExt;
use parking_lot::RwLock;
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::{ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ConfigBuilder, RootCertStore, SupportedProtocolVersion, WantsVerifier};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Of rustls: the settings of a side that are more than the functions here make, and the name by which a
/// server is known.
pub use rustls::pki_types::ServerName;
pub use rustls::{ClientConfig, ServerConfig};

pub use self::files::{Cause, Files, PemFile, Unusable, exposed_key, follow};
pub use self::identity::Identity;
use crate::stream::Stream;

/// The bytes of answers that a connection holds because its peer does not take them. Two records.
const UNSENT_BYTES: usize = 32 << 10;
/// The memory that TLS takes of a connection: what waits to be sent, a record that is not whole yet,
/// and its keys.
pub const CONNECTION_BYTES: usize = UNSENT_BYTES + (24 << 10);

/// The versions of TLS that a side speaks. None renegotiates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Versions {
    Tls13,
    /// For programs of others: HTTP clients, and servers that receive messages.
    Tls12AndLater,
}

impl Versions {
    fn list(self) -> &'static [&'static SupportedProtocolVersion] {
        static ALL: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
        match self {
            Self::Tls13 => ALL.get(..1).unwrap_or_default(),
            Self::Tls12AndLater => &ALL,
        }
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Settings of a server, which are to say next which clients it believes.
///
/// # Errors
/// Never, as far as is known.
pub fn server_config(versions: Versions) -> io::Result<ConfigBuilder<ServerConfig, WantsVerifier>> {
    let builder = ServerConfig::builder_with_provider(provider());
    builder.with_protocol_versions(versions.list()).map_err(io::Error::other)
}

/// Settings of a client, which are to say next which servers it believes.
///
/// # Errors
/// Never, as far as is known.
pub fn client_config(versions: Versions) -> io::Result<ConfigBuilder<ClientConfig, WantsVerifier>> {
    let builder = ClientConfig::builder_with_provider(provider());
    builder.with_protocol_versions(versions.list()).map_err(io::Error::other)
}

/// Settings of a server for clients without certificates. It shows the first of the identities that
/// has the name that the client asks for, and the very first where none has.
///
/// # Errors
/// There is no identity.
pub fn public_server(
    identities: Vec<Identity>,
    versions: Versions,
    alpn: &[&[u8]],
) -> io::Result<ServerConfig> {
    if identities.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a server needs a certificate"));
    }
    let resolver = Arc::new(ByName(identities));
    let mut config = server_config(versions)?.with_no_client_auth().with_cert_resolver(resolver);
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

/// Settings of a client without a certificate, which believes the servers that an authority of
/// `authorities` vouches for. Without `authorities` they are those of this machine, or of the files
/// that `SSL_CERT_FILE` and `SSL_CERT_DIR` name. Reads files.
///
/// # Errors
/// The file has no certificate, or the machine has none.
pub fn public_client(
    authorities: Option<&PemFile>,
    versions: Versions,
    alpn: &[&[u8]],
) -> io::Result<ClientConfig> {
    let builder = client_config(versions)?;
    let builder = match authorities {
        Some(file) => builder.with_root_certificates(identity::authorities(file)?),
        None => builder.with_native_roots()?,
    };
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

/// The authorities of a file.
///
/// # Errors
/// It has none, or a broken one.
pub fn authorities(file: &PemFile) -> Result<RootCertStore, Unusable> {
    identity::authorities(file)
}

#[derive(Debug)]
struct ByName(Vec<Identity>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let fits = |identity: &&Identity| {
            identity.certified().key.choose_scheme(hello.signature_schemes()).is_some()
        };
        let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let named = name.and_then(|name| self.0.iter().filter(fits).find(|of| of.has_name(&name)));
        let chosen = named.or_else(|| self.0.iter().find(fits)).or_else(|| self.0.first());
        chosen.map(Identity::certified).cloned()
    }
}

impl Identity {
    fn has_name(&self, name: &ServerName<'_>) -> bool {
        let parsed = self.certified().end_entity_cert().and_then(ParsedCertificate::try_from);
        parsed.is_ok_and(|certificate| verify_server_name(&certificate, name).is_ok())
    }
}

/// The accepting side.
///
/// A client resumes a session by a ticket, whose keys change every six hours, and the certificate
/// that it showed for the session is not verified again. The keys are those of the settings, so that
/// a ticket from before a change of settings is worth nothing, and the client is verified by the new
/// ones. No request is taken before the handshake is over (0-RTT): it could be sent twice.
#[derive(Clone)]
pub struct Server {
    config: Arc<RwLock<Arc<ServerConfig>>>,
}

impl Server {
    /// # Errors
    /// When the system gives no random bytes for the keys of tickets.
    pub fn new(config: ServerConfig) -> io::Result<Self> {
        let config = Arc::new(RwLock::new(Arc::new(with_tickets(config)?)));
        Ok(Self { config })
    }

    /// Takes these settings for all later connections.
    ///
    /// # Errors
    /// When the system gives no random bytes for the keys of tickets. The settings stay as they are.
    pub fn replace(&self, config: ServerConfig) -> io::Result<()> {
        let config = with_tickets(config)?;
        *self.config.write() = Arc::new(config);
        Ok(())
    }

    /// Adds TLS to a connection that was accepted.
    ///
    /// # Errors
    /// When the handshake fails, or is not over in time.
    pub async fn accept(&self, stream: Stream, timeout: Duration) -> io::Result<Stream> {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.config.read()));
        let tcp = stream.into_plain()?;
        let bounded = |tls: &mut rustls::ServerConnection| {
            tls.set_buffer_limit(Some(UNSENT_BYTES));
        };
        within(timeout, acceptor.accept_with(tcp, bounded)).await.map(Stream::accepted)
    }
}

fn with_tickets(mut config: ServerConfig) -> io::Result<ServerConfig> {
    config.ticketer = ring::Ticketer::new().map_err(io::Error::other)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(config)
}

/// The dialling side. A session is resumed with the settings that it began with, and not after a
/// change of them.
#[derive(Clone)]
pub struct Client {
    config: Arc<RwLock<Arc<ClientConfig>>>,
}

impl Client {
    #[must_use]
    pub fn new(config: ClientConfig) -> Self {
        Self { config: Arc::new(RwLock::new(Arc::new(without_early_data(config)))) }
    }

    /// Takes these settings for all later connections. Their sessions are their own if they were
    /// made anew, and not cloned from others.
    pub fn replace(&self, config: ClientConfig) {
        *self.config.write() = Arc::new(without_early_data(config));
    }

    /// Adds TLS to a connection that was dialled, to the server of this name.
    ///
    /// # Errors
    /// When the handshake fails, or is not over in time.
    pub async fn connect(
        &self,
        stream: Stream,
        server: ServerName<'static>,
        timeout: Duration,
    ) -> io::Result<Stream> {
        let connector = TlsConnector::from(Arc::clone(&self.config.read()));
        let tcp = stream.into_plain()?;
        let bounded = |tls: &mut rustls::ClientConnection| {
            tls.set_buffer_limit(Some(UNSENT_BYTES));
        };
        within(timeout, connector.connect_with(server, tcp, bounded)).await.map(Stream::dialled)
    }
}

fn without_early_data(mut config: ClientConfig) -> ClientConfig {
    config.enable_early_data = false;
    config
}

async fn within<T>(
    timeout: Duration,
    handshake: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    let late = || {
        let text = format!("no TLS within {} s", timeout.as_secs_f64());
        io::Error::new(io::ErrorKind::TimedOut, text)
    };
    tokio::time::timeout(timeout, handshake).await.unwrap_or_else(|_| Err(late()))
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a server of TLS")
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a client of TLS")
    }
}

#[cfg(test)]
mod tests;
