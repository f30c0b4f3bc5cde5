//! HTTPS: certificates, versions of HTTP, handshakes that do not end, and plain requests.

use std::io;
use std::time::{Duration, Instant};

use meridian_gateway::{HandshakeLimits, Options};
use meridian_net::{Stream, tls};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Client, Server, WRITER, all, set};

const LONG: Duration = Duration::from_secs(20);

/// The beginning of a handshake.
const HALF_A_HANDSHAKE: &[u8] = &[0x16, 3, 1, 0, 200, 1];

/// A gateway of `kv.test`, and its certificate.
struct Secure {
    server: Server,
    tls: tls::Server,
    certificate: tls::PemFile,
}

fn certificate() -> (tls::PemFile, tls::Identity) {
    let made = rcgen::generate_simple_self_signed(vec!["kv.test".to_owned()]).unwrap();
    let [certificate, key] = [made.cert.pem(), made.signing_key.serialize_pem()]
        .map(|text| tls::PemFile::new("a test".into(), text.into_bytes()));
    let identity = tls::Identity::from_pem(&certificate, &key).unwrap();
    (certificate, identity)
}

fn config(identity: tls::Identity) -> tls::ServerConfig {
    let alpn: [&[u8]; 2] = [b"h2", b"http/1.1"];
    tls::public_server(vec![identity], tls::Versions::Tls12AndLater, &alpn).unwrap()
}

impl Secure {
    async fn with(options: Options) -> Self {
        let (certificate, identity) = certificate();
        let tls = tls::Server::new(config(identity)).unwrap();
        let server = Server::with(Options { tls: Some(tls.clone()), ..options }).await;
        Self { server, tls, certificate }
    }

    fn client(&self, alpn: &[&[u8]]) -> tls::Client {
        let versions = tls::Versions::Tls12AndLater;
        tls::Client::new(tls::public_client(Some(&self.certificate), versions, alpn).unwrap())
    }

    async fn connect(&self, alpn: &[&[u8]]) -> io::Result<Stream> {
        let stream = Stream::dial("127.0.0.1", self.server.address.port(), LONG).await?;
        let name = "kv.test".to_owned().try_into().unwrap();
        self.client(alpn).connect(stream, name, LONG).await
    }

    async fn http1(&self) -> Client {
        Server::http1_over(self.connect(&[b"http/1.1"]).await.unwrap()).await
    }
}

#[tokio::test]
async fn client_and_gateway_agree_on_a_version_of_http_by_alpn() {
    let secure = Secure::with(Options::default()).await;
    let stream = secure.connect(&[b"h2", b"http/1.1"]).await.unwrap();
    assert_eq!(stream.alpn(), Some(&b"h2"[..]));
    let mut http2 = Server::http2_over(stream).await;
    let stream = secure.connect(&[b"http/1.1"]).await.unwrap();
    assert_eq!(stream.alpn(), Some(&b"http/1.1"[..]));
    let mut http1 = Server::http1_over(stream).await;
    // A client without ALPN is known by its first bytes.
    let mut silent = Server::http1_over(secure.connect(&[]).await.unwrap()).await;
    assert_eq!(http2.write(&set("key", "value")).await.unwrap().status, 200);
    for client in [&mut http1, &mut http2, &mut silent] {
        assert_eq!(client.read(&all()).await.unwrap().status, 200);
    }
    let other = secure.connect(&[b"h3"]).await;
    assert!(other.is_err(), "a client that speaks neither is told so");
}

#[tokio::test]
async fn clients_of_version_1_are_sent_to_the_scheme_that_they_came_by() {
    let secure = Secure::with(Options::default()).await;
    let authorization = format!("Bearer {WRITER}");
    for alpn in [&b"h2"[..], b"http/1.1"] {
        let stream = secure.connect(&[alpn]).await.unwrap();
        let mut client = match alpn {
            b"h2" => Server::http2_over(stream).await,
            _ => Server::http1_over(stream).await,
        };
        // It is no trusted proxy, and says what it likes.
        let headers = [("authorization", &*authorization), ("x-forwarded-proto", "http")];
        let metadata = client.post("/", &headers, "").await.unwrap().json();
        assert_eq!(metadata["endpoints"][0]["url"], "https://kv.test:4512/kv/strong");
    }
}

#[tokio::test]
async fn plain_request_to_a_gateway_with_tls_is_told_so_and_its_connection_closes() {
    let secure = Secure::with(Options::default()).await;
    for request in [
        "GET / HTTP/1.1\r\nhost: kv\r\n\r\n".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        format!(
            "POST / HTTP/1.1\r\nhost: kv\r\ncontent-length: 20000\r\n\r\n{}",
            "x".repeat(20_000)
        ),
    ] {
        let mut stream = secure.server.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.shutdown().await.unwrap();
        tokio::time::timeout(LONG, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"));
    }
    // Neither: it is closed without a word.
    let mut stream = secure.server.connect().await;
    stream.write_all(b"\0\0\0\0").await.unwrap();
    assert!(stream.read_u8().await.is_err());
}

#[tokio::test]
async fn changed_certificate_is_shown_to_new_connections_and_old_ones_go_on() {
    let mut secure = Secure::with(Options::default()).await;
    let mut client = secure.http1().await;
    assert_eq!(client.read(&all()).await.unwrap().status, 200);
    let (certificate, identity) = certificate();
    secure.tls.replace(config(identity)).unwrap();
    assert!(secure.connect(&[]).await.is_err(), "the client knows the former one");
    secure.certificate = certificate;
    assert_eq!(secure.http1().await.read(&all()).await.unwrap().status, 200);
    assert_eq!(client.read(&all()).await.unwrap().status, 200);
}

async fn half_handshake_from(secure: &Secure, last: u8) -> TcpStream {
    let mut stream = secure.server.connect_from(last).await;
    stream.write_all(HALF_A_HANDSHAKE).await.unwrap();
    stream
}

#[tokio::test]
async fn handshake_that_does_not_end_is_cut_in_time() {
    let within = Duration::from_millis(300);
    let handshakes = HandshakeLimits { within, ..HandshakeLimits::default() };
    let secure = Secure::with(Options { handshakes, ..Options::default() }).await;
    let started = Instant::now();
    let mut half = half_handshake_from(&secure, 1).await;
    let mut silent = secure.server.connect().await;
    for stream in [&mut half, &mut silent] {
        assert!(tokio::time::timeout(LONG, stream.read_u8()).await.unwrap().is_err());
    }
    // Each read has waited for less than LONG.
    assert!(started.elapsed() >= within, "{:?}", started.elapsed());
}

/// Connections in their handshakes are those of strangers.
#[tokio::test]
async fn flood_of_half_handshakes_makes_room_for_a_newcomer_and_costs_no_client_its_connection() {
    let handshakes = HandshakeLimits { within: LONG, ..HandshakeLimits::default() };
    let options = Options {
        max_connections: 8,
        first_request_timeout: LONG,
        handshakes,
        ..Options::default()
    };
    let secure = Secure::with(options).await;
    let mut before = secure.http1().await;
    assert_eq!(before.read(&all()).await.unwrap().status, 200);
    let mut halves = Vec::new();
    for last in [2, 3] {
        for _ in 0..24 {
            halves.push(half_handshake_from(&secure, last).await);
        }
    }
    let started = Instant::now();
    let mut newcomer = secure.http1().await;
    assert_eq!(newcomer.read(&all()).await.unwrap().status, 200);
    // The half ones have their time still.
    assert!(started.elapsed() < LONG / 2, "{:?}", started.elapsed());
    assert_eq!(before.read(&all()).await.unwrap().status, 200);
}

#[tokio::test]
async fn address_that_begins_many_handshakes_leaves_those_of_others_their_turn() {
    let handshakes = HandshakeLimits { in_all: 6, at_once: 2, per_second: 1, within: LONG };
    let secure = Secure::with(Options { handshakes, ..Options::default() }).await;
    let mut halves = Vec::new();
    for _ in 0..40 {
        halves.push(half_handshake_from(&secure, 2).await);
    }
    let started = Instant::now();
    // One after the other: of connections with a token any number begins.
    for _ in 0..24 {
        assert_eq!(secure.http1().await.read(&all()).await.unwrap().status, 200);
    }
    // Else there would be one in each second.
    assert!(started.elapsed() < LONG / 2, "{:?}", started.elapsed());
}

/// The attacker ends its handshakes, and says nothing.
#[tokio::test]
async fn flood_of_whole_handshakes_from_one_address_is_slowed() {
    let handshakes =
        HandshakeLimits { in_all: 64, at_once: 4, per_second: 2, within: Duration::from_secs(5) };
    let secure = Secure::with(Options { handshakes, ..Options::default() }).await;
    let started = Instant::now();
    let whole = (0..60).map(|_| async {
        let connected = secure.connect(&[]).await;
        // TLS 1.3: a client is through before the server has looked at it.
        match connected {
            Ok(mut stream) => {
                stream.write_all(b"GET / HTTP/1.1\r\nhost: kv\r\n\r\n").await.is_ok()
                    && stream.read_u8().await.is_ok()
            }
            Err(_) => false,
        }
    });
    let through = futures::future::join_all(whole).await;
    let through = through.into_iter().filter(|is_through| *is_through).count() as u64;
    // Two more in each second, which are five on a machine that keeps up.
    let at_most = 5 + 2 * started.elapsed().as_secs();
    assert!((4..=at_most).contains(&through), "{through} of 60 were served, at most {at_most}");
    assert!(through < 60, "none was slowed");
}

#[tokio::test]
async fn client_behind_a_trusted_proxy_is_told_apart_from_others_behind_it() {
    let trusted_proxies = meridian_gateway::TrustedProxies::parse(&["127.0.0.1".to_owned()]);
    let trusted_proxies = trusted_proxies.unwrap();
    let server = Server::with(Options { trusted_proxies, ..Options::default() }).await;
    let mut proxy = server.http1().await;
    // The eleventh guess within a minute is answered slowly, and those before are not: how many
    // are slow of so many.
    let slow = async |proxy: &mut Client, client: &str, guesses: u32| {
        let headers = [("authorization", "Bearer no-such-token"), ("x-forwarded-for", client)];
        let mut slow = 0;
        for _ in 0..guesses {
            let started = Instant::now();
            assert_eq!(proxy.post("/", &headers, "").await.unwrap().status, 401);
            slow += u32::from(started.elapsed() >= Duration::from_millis(450));
        }
        slow
    };
    // The machine may stand still for once.
    assert!(slow(&mut proxy, "192.0.2.1", 10).await <= 1);
    assert_eq!(slow(&mut proxy, "192.0.2.1", 1).await, 1);
    let of_another = slow(&mut proxy, "192.0.2.2", 10).await;
    assert!(of_another <= 1, "another client has guessed nothing yet");
    let forged = slow(&mut proxy, "192.0.2.9, 192.0.2.1", 2).await;
    assert_eq!(forged, 2, "a client writes the first one itself");
    // From elsewhere the header is a client's.
    let mut stranger = Server::http1_over(server.connect_from(2).await).await;
    assert!(slow(&mut stranger, "192.0.2.1", 3).await <= 1);
}
