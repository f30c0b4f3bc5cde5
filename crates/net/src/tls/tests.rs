//! Both sides over real sockets, with certificates that are made for each test.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::SingleCertAndKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::listener::Listener;
use crate::stream::Transport;

const LONG: Duration = Duration::from_secs(20);

/// An authority, and the identities that it vouches for.
struct Authority {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    fn file(&self) -> PemFile {
        pem("ca.crt", &self.certificate.pem())
    }

    fn files(&self, name: &str) -> (PemFile, PemFile) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (pem("tls.crt", &certificate.pem()), pem("tls.key", &key.serialize_pem()))
    }

    fn identity(&self, name: &str) -> Identity {
        let (certificate, key) = self.files(name);
        Identity::from_pem(&certificate, &key).unwrap()
    }

    fn roots(&self) -> Arc<RootCertStore> {
        Arc::new(authorities(&self.file()).unwrap())
    }

    fn client(&self, alpn: &[&[u8]]) -> Client {
        Client::new(public_client(Some(&self.file()), Versions::Tls12AndLater, alpn).unwrap())
    }
}

fn pem(path: &str, text: &str) -> PemFile {
    PemFile::new(PathBuf::from(path), text.as_bytes().to_vec())
}

fn public(identities: Vec<Identity>) -> ServerConfig {
    public_server(identities, Versions::Tls13, &[b"h2", b"http/1.1"]).unwrap()
}

/// A server, and the port that it accepts at.
struct Served {
    server: Server,
    listener: Listener,
}

impl Served {
    async fn new(config: ServerConfig) -> Self {
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        Self { server: Server::new(config).unwrap(), listener }
    }

    async fn dial(&mut self) -> (Stream, Stream) {
        let port = self.listener.local_address().unwrap().port();
        let (dialled, (accepted, _)) =
            tokio::join!(Stream::dial("127.0.0.1", port, LONG), self.listener.accept());
        (dialled.unwrap(), accepted)
    }

    /// Both sides of a connection.
    async fn connect(&mut self, client: &Client, name: &str) -> [io::Result<Stream>; 2] {
        let (dialled, accepted) = self.dial().await;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let (dialled, accepted) =
            tokio::join!(client.connect(dialled, name, LONG), self.server.accept(accepted, LONG));
        [dialled, accepted]
    }

    async fn connected(&mut self, client: &Client, name: &str) -> [Stream; 2] {
        self.connect(client, name).await.map(Result::unwrap)
    }
}

async fn carries(from: &mut Stream, to: &mut Stream) {
    let sent: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let mut received = vec![0; sent.len()];
    let sending = async {
        from.write_all(&sent).await.unwrap();
        from.flush().await.unwrap();
    };
    let ((), read) = tokio::join!(sending, to.read_exact(&mut received));
    assert_eq!(read.unwrap(), sent.len());
    assert_eq!(received, sent);
}

#[tokio::test]
async fn connection_carries_bytes_both_ways_and_tells_its_protocol_and_its_peer() {
    let authority = Authority::new();
    let identity = authority.identity("kv.test");
    let certificate = identity.certified().cert[0].clone();
    let mut served = Served::new(public(vec![identity])).await;
    let [mut client, mut server] =
        served.connected(&authority.client(&[b"http/1.1"]), "kv.test").await;
    carries(&mut client, &mut server).await;
    carries(&mut server, &mut client).await;
    assert!(client.has_tls() && server.has_tls());
    assert_eq!((client.alpn(), server.alpn()), (Some(&b"http/1.1"[..]), Some(&b"http/1.1"[..])));
    assert_eq!(client.peer_certificates()[0], certificate);
    assert!(server.peer_certificates().is_empty());
    assert_eq!(server.peer_address().unwrap().ip().to_string(), "127.0.0.1");
    // A goodbye is heard as the end.
    client.shutdown().await.unwrap();
    assert_eq!(server.read(&mut [0; 8]).await.unwrap(), 0);
    assert!(server.detach().is_err(), "what TLS knows stays with its runtime");
}

#[tokio::test]
async fn plain_connection_tells_of_no_tls() {
    let mut served = Served::new(public(vec![Authority::new().identity("kv.test")])).await;
    let (mut client, mut server) = served.dial().await;
    carries(&mut client, &mut server).await;
    assert!(!server.has_tls() && server.alpn().is_none() && server.peer_certificates().is_empty());
    client.write_all(b"GET /").await.unwrap();
    let first = server.first_byte().await.unwrap().unwrap();
    assert!(first == b'G' && !Stream::is_tls(first));
    let refused = served.server.accept(server, LONG).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::InvalidData, "{refused}");
}

#[tokio::test]
async fn client_with_a_certificate_is_known_by_it_also_when_it_resumes() {
    let authority = Authority::new();
    let (own, roots) = (authority.identity("node-1"), authority.roots());
    let own_certificate: CertificateDer<'_> = own.certified().cert[0].clone();
    let verified = |roots: Arc<RootCertStore>| {
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
        let config = server_config(Versions::Tls13).unwrap();
        config
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_cert_resolver(Arc::new(ByName(vec![authority.identity("node-2")])))
    };
    let config = client_config(Versions::Tls13).unwrap().with_root_certificates(roots);
    let resolver = SingleCertAndKey::from(Arc::clone(own.certified()));
    let client = Client::new(config.with_client_cert_resolver(Arc::new(resolver)));
    let mut served = Served::new(verified(authority.roots())).await;
    let mut handshakes = Vec::new();
    for _ in 0..2 {
        let [mut dialled, mut accepted] = served.connected(&client, "node-2").await;
        // Tickets come with the first bytes.
        carries(&mut accepted, &mut dialled).await;
        assert_eq!(accepted.peer_certificates().first(), Some(&own_certificate));
        handshakes.push(dialled.handshake());
    }
    use rustls::HandshakeKind::{Full, Resumed};
    assert_eq!(handshakes, [Some(Full), Some(Resumed)]);
    // Another authority: a ticket from before is worth nothing.
    served.server.replace(verified(Authority::new().roots())).unwrap();
    let [dialled, accepted] = served.connect(&client, "node-2").await;
    let refused = accepted.unwrap_err().to_string();
    assert!(refused.contains("certificate"), "{refused}");
    drop(dialled);
}

#[tokio::test]
async fn name_that_a_client_asks_for_decides_which_certificate_it_is_shown() {
    let authority = Authority::new();
    let identities = ["a.test", "*.b.test"].map(|name| authority.identity(name));
    let shown = identities.each_ref().map(|identity| identity.certified().cert[0].clone());
    let mut served = Served::new(public(identities.to_vec())).await;
    let client = authority.client(&[]);
    for (name, expected) in [("a.test", &shown[0]), ("x.b.test", &shown[1])] {
        let [dialled, _] = served.connected(&client, name).await;
        assert_eq!(&dialled.peer_certificates()[0], expected, "{name}");
    }
    // The first is shown to others, and they decide.
    let [dialled, _] = served.connect(&client, "c.test").await;
    let refused = dialled.unwrap_err().to_string();
    assert!(refused.contains("a.test"), "{refused}");
}

#[tokio::test]
async fn changed_settings_are_those_of_later_connections_and_leave_live_ones_alone() {
    let [former, later] = [Authority::new(), Authority::new()];
    let mut served = Served::new(public(vec![former.identity("kv.test")])).await;
    let client = former.client(&[]);
    let [mut dialled, mut accepted] = served.connected(&client, "kv.test").await;
    served.server.replace(public(vec![later.identity("kv.test")])).unwrap();
    carries(&mut dialled, &mut accepted).await;
    assert!(served.connect(&client, "kv.test").await[0].is_err());
    let config = public_client(Some(&later.file()), Versions::Tls13, &[]).unwrap();
    client.replace(config);
    served.connected(&client, "kv.test").await;
    carries(&mut accepted, &mut dialled).await;
}

#[tokio::test]
async fn versions_that_are_too_old_are_refused() {
    let authority = Authority::new();
    let client = || public_client(Some(&authority.file()), Versions::Tls12AndLater, &[]).unwrap();
    let only_12 = || {
        let builder = ClientConfig::builder_with_provider(provider());
        let builder = builder.with_protocol_versions(&[&TLS12]).unwrap();
        Client::new(builder.with_root_certificates(authority.roots()).with_no_client_auth())
    };
    let identities = || vec![authority.identity("kv.test")];
    let mut served = Served::new(public(identities())).await;
    served.connected(&Client::new(client()), "kv.test").await;
    assert!(served.connect(&only_12(), "kv.test").await.iter().all(Result::is_err));
    let config = public_server(identities(), Versions::Tls12AndLater, &[]).unwrap();
    let mut served = Served::new(config).await;
    served.connected(&only_12(), "kv.test").await;
    // A client that knows nothing later than TLS 1.1.
    let (mut dialled, accepted) = served.dial().await;
    dialled.write_all(&client_hello_of_tls_1_1()).await.unwrap();
    let refused = served.server.accept(accepted, LONG).await.unwrap_err().to_string();
    assert!(refused.contains("Tls12NotOffered"), "{refused}");
}

fn client_hello_of_tls_1_1() -> Vec<u8> {
    let mut hello = vec![3, 2];
    hello.extend([7; 32]);
    // No session, two cipher suites, no compression.
    hello.extend([0, 0, 4, 0xc0, 0x13, 0x00, 0x2f, 1, 0]);
    // Extensions: groups and signatures of today.
    hello.extend([0, 16, 0, 10, 0, 4, 0, 2, 0, 0x1d, 0, 13, 0, 4, 0, 2, 4, 3]);
    let mut message = vec![1, 0, 0, u8::try_from(hello.len()).unwrap()];
    message.extend(hello);
    let mut record = vec![0x16, 3, 1, 0, u8::try_from(message.len()).unwrap()];
    record.extend(message);
    record
}

#[tokio::test]
async fn handshake_that_stops_half_way_ends_in_time_on_both_sides() {
    let authority = Authority::new();
    let mut served = Served::new(public(vec![authority.identity("kv.test")])).await;
    let short = Duration::from_millis(50);
    let (mut silent, accepted) = served.dial().await;
    silent.write_all(&[0x16, 3, 1]).await.unwrap();
    let late = served.server.accept(accepted, short).await.unwrap_err();
    assert_eq!(late.kind(), io::ErrorKind::TimedOut);
    let (dialled, _silent) = served.dial().await;
    let name = ServerName::try_from("kv.test").unwrap();
    let late = authority.client(&[]).connect(dialled, name, short).await.unwrap_err();
    assert_eq!(
        (late.kind(), &*late.to_string()),
        (io::ErrorKind::TimedOut, "no TLS within 0.05 s")
    );
}

/// A client that reads nothing.
#[tokio::test]
async fn bytes_that_a_peer_does_not_take_are_bounded() {
    let authority = Authority::new();
    let mut served = Served::new(public(vec![authority.identity("kv.test")])).await;
    let [dialled, mut accepted] = served.connected(&authority.client(&[]), "kv.test").await;
    let part = [0; 16 << 10];
    while tokio::time::timeout(Duration::from_millis(200), accepted.write_all(&part)).await.is_ok()
    {
    }
    let Transport::Accepted(tls) = accepted.into_transport() else { panic!("no TLS") };
    let (_tcp, mut session) = tls.into_inner();
    let mut unsent = Vec::new();
    while session.wants_write() {
        session.write_tls(&mut unsent).unwrap();
    }
    assert!((1..=UNSENT_BYTES + (4 << 10)).contains(&unsent.len()), "{}", unsent.len());
    drop(dialled);
}

#[test]
fn files_of_no_use_are_named_with_what_is_wrong() {
    let authority = Authority::new();
    let (certificate, key) = authority.files("kv.test");
    let both = [certificate.bytes(), key.bytes()].concat();
    let both = PemFile::new(PathBuf::from("both.pem"), both);
    assert!(Identity::from_pem(&both, &both).is_ok());
    let refused = |certificate: &PemFile, key: &PemFile| {
        Identity::from_pem(certificate, key).unwrap_err().to_string()
    };
    let text = refused(&key, &key);
    assert!(text.starts_with("tls.key: it has no certificate"), "{text}");
    let text = refused(&certificate, &certificate);
    assert!(text.starts_with("tls.crt: it has no private key"), "{text}");
    let text = refused(&certificate, &authority.files("kv.test").1);
    assert_eq!(text, "tls.key: its private key is not that of the first certificate in tls.crt");
    let half = |file: &PemFile, name| {
        let text = String::from_utf8(file.bytes().to_vec()).unwrap();
        pem(name, &text[..text.len() / 2])
    };
    assert_eq!(
        refused(&half(&certificate, "half.crt"), &key),
        "half.crt: it is no whole PEM: a section has no end"
    );
    assert_eq!(
        refused(&certificate, &half(&key, "half.key")),
        "half.key: it is no whole PEM: a section has no end"
    );
    let broken = pem("a.crt", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let text = refused(&broken, &key);
    assert!(text.starts_with("a.crt: its certificate is broken"), "{text}");
    assert!(authorities(&broken).is_err() && authorities(&key).is_err());
}

#[test]
fn file_that_is_not_there_or_too_large_is_named_and_no_key_is_printed() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("tls.key");
    let text = PemFile::read(&path, 9).unwrap_err().to_string();
    assert!(text.starts_with(&format!("{}: it cannot be read", path.display())), "{text}");
    std::fs::write(&path, "ten bytes!").unwrap();
    let text = PemFile::read(&path, 9).unwrap_err().to_string();
    assert_eq!(text, format!("{}: it has more than 9 bytes", path.display()));
    let file = PemFile::read(&path, 10).unwrap();
    assert_eq!(format!("{file:?}"), format!("{} with 10 bytes", path.display()));
    let identity = Authority::new().identity("kv.test");
    assert_eq!(format!("{identity:?}"), "an identity of 1 certificates");
}

#[test]
fn beginning_and_end_of_a_certificate_are_told() {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["kv.test".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let certificate = pem("a", &params.self_signed(&key).unwrap().pem());
    let identity = Identity::from_pem(&certificate, &pem("b", &key.serialize_pem())).unwrap();
    let [from, until] = [identity.valid_from(), identity.valid_until()]
        .map(|moment| moment.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs());
    assert_eq!((from, until), (1_577_836_800, 1_609_459_200));
}

#[tokio::test]
async fn garbage_is_refused_at_once() {
    let mut served = Served::new(public(vec![Authority::new().identity("kv.test")])).await;
    let port = served.listener.local_address().unwrap().port();
    let mut garbage = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (accepted, _) = served.listener.accept().await;
    garbage.write_all(&[0x16; 4096]).await.unwrap();
    assert!(served.server.accept(accepted, LONG).await.is_err());
}
