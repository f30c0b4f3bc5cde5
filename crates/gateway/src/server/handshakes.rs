//! TLS of new connections.
//!
//! A handshake costs a signature before anything is known of the client. So an origin begins a number
//! of them at once, and then so many a second; a handshake whose connection carries a valid token is
//! not counted. Others of the origin wait, and are closed where they would wait for too long. A
//! connection in its handshake is one without a token for the server, and makes room as such.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meridian_net::{Origin, Stream, tls};
use metrics::{Counter, counter, describe_counter};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::debug;

use crate::options::HandshakeLimits;

const FAILED: &str = "meridian_gateway_failed_handshakes_total";
/// Origins with handshakes that still count, at most. Beyond, the origin that is done first is
/// forgotten.
const MAX_ORIGINS: usize = 4096;
/// Of a request in the clear, which is read so that its client reads the answer.
const MAX_PLAIN_BYTES: usize = 64 << 10;
const ANSWER_TO_PLAIN: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\
    content-type: text/plain; charset=utf-8\r\n\
    content-length: 48\r\n\
    connection: close\r\n\r\n\
    Client sent an HTTP request to an HTTPS server.\n";

pub(super) struct Handshakes {
    server: tls::Server,
    limits: HandshakeLimits,
    /// For each origin, the moment at which none of its handshakes counts any more.
    counted_until: Mutex<HashMap<Origin, Instant>>,
    room: Semaphore,
    plain: Counter,
    crowded: Counter,
    late: Counter,
    broken: Counter,
}

impl Handshakes {
    pub(super) fn new(server: tls::Server, limits: HandshakeLimits) -> Self {
        describe_counter!(FAILED, "Connections that were closed before they had TLS, by why.");
        let failed = |why: &'static str| counter!(FAILED, "why" => why);
        Self {
            server,
            limits,
            counted_until: Mutex::default(),
            room: Semaphore::new(limits.in_all),
            plain: failed("plain"),
            crowded: failed("crowded"),
            late: failed("late"),
            broken: failed("broken"),
        }
    }

    /// Adds TLS to an accepted connection. `origin`: whose handshakes are counted. `None`: the
    /// connection is over.
    pub(super) async fn secure(&self, stream: Stream, origin: Option<Origin>) -> Option<Stream> {
        let deadline = Instant::now() + self.limits.within;
        match timeout_at(deadline, stream.first_byte()).await {
            Ok(Ok(Some(first))) if Stream::is_tls(first) => {}
            Ok(Ok(Some(first))) if first.is_ascii_uppercase() => {
                self.plain.increment(1);
                // The answer is a courtesy.
                drop(timeout_at(deadline, explain(stream)).await);
                return None;
            }
            Ok(Ok(Some(_))) => {
                self.broken.increment(1);
                return None;
            }
            // A probe of a load balancer, or a client that broke off.
            Ok(Ok(None) | Err(_)) => return None,
            Err(_) => {
                self.late.increment(1);
                return None;
            }
        }
        let Some(_room) = self.turn(origin, deadline).await else {
            self.crowded.increment(1);
            return None;
        };
        let left = deadline.saturating_duration_since(Instant::now());
        match self.server.accept(stream, left).await {
            Ok(stream) => Some(stream),
            Err(error) => {
                let is_late = error.kind() == io::ErrorKind::TimedOut;
                (if is_late { &self.late } else { &self.broken }).increment(1);
                debug!(%error, "a handshake failed");
                None
            }
        }
    }

    /// Waits until a handshake of the origin may begin. `None`: not by the deadline.
    async fn turn(&self, origin: Option<Origin>, deadline: Instant) -> Option<SemaphorePermit<'_>> {
        if let Some(origin) = origin {
            sleep_until(self.begin_at(origin, Instant::now(), deadline)?).await;
        }
        timeout_at(deadline, self.room.acquire()).await.ok()?.ok()
    }

    /// When a handshake of the origin may begin, which counts from now on. `None`: not by the
    /// deadline.
    fn begin_at(&self, origin: Origin, now: Instant, deadline: Instant) -> Option<Instant> {
        let mut counted = self.counted();
        let until = counted.get(&origin).copied().unwrap_or(now).max(now);
        let at = until.checked_sub(self.each() * self.limits.at_once.saturating_sub(1));
        let at = at.map_or(now, |at| at.max(now));
        if at >= deadline {
            return None;
        }
        if counted.len() >= MAX_ORIGINS && !counted.contains_key(&origin) {
            counted.retain(|_, until| *until > now);
            let first = counted.iter().min_by_key(|(_, until)| **until).map(|(origin, _)| *origin);
            first.filter(|_| counted.len() >= MAX_ORIGINS).and_then(|first| counted.remove(&first));
        }
        counted.insert(origin, until + self.each());
        Some(at)
    }

    /// A connection of the origin has carried a valid token: its handshake does not count.
    pub(super) fn was_worth_it(&self, origin: Origin) {
        if let Some(until) = self.counted().get_mut(&origin) {
            *until -= self.each();
        }
    }

    fn each(&self) -> Duration {
        Duration::from_secs(1) / self.limits.per_second.max(1)
    }

    fn counted(&self) -> MutexGuard<'_, HashMap<Origin, Instant>> {
        self.counted_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers a request in the clear, and reads some of the rest: a socket that is closed with unread
/// bytes is reset, and its client may not see the answer.
async fn explain(mut stream: Stream) -> io::Result<()> {
    stream.write_all(ANSWER_TO_PLAIN).await?;
    stream.shutdown().await?;
    let mut part = [0; 4096];
    let mut bytes = 0;
    while bytes < MAX_PLAIN_BYTES {
        match stream.read(&mut part).await? {
            0 => break,
            count => bytes += count,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HandshakeLimits =
        HandshakeLimits { in_all: 100, at_once: 4, per_second: 2, within: Duration::from_secs(5) };

    fn handshakes() -> Handshakes {
        let key = rcgen::generate_simple_self_signed(vec!["kv.test".to_owned()]).unwrap();
        let [certificate, key] = [key.cert.pem(), key.signing_key.serialize_pem()]
            .map(|text| tls::PemFile::new("test".into(), text.into_bytes()));
        let identity = tls::Identity::from_pem(&certificate, &key).unwrap();
        let config = tls::public_server(vec![identity], tls::Versions::Tls13, &[]).unwrap();
        Handshakes::new(tls::Server::new(config).unwrap(), LIMITS)
    }

    fn origin(last: u8) -> Origin {
        Origin::of([10, 0, 0, last].into())
    }

    #[test]
    fn origin_begins_some_handshakes_at_once_and_then_so_many_a_second() {
        let (handshakes, now) = (handshakes(), Instant::now());
        let begins = |last, now: Instant| {
            let at = handshakes.begin_at(origin(last), now, now + LIMITS.within);
            at.map(|at| (at - now).as_millis())
        };
        let first: Vec<_> = (0..20).map_while(|_| begins(1, now)).collect();
        assert_eq!(first, [0, 0, 0, 0, 500, 1000, 1500, 2000, 2500, 3000, 3500, 4000, 4500]);
        assert_eq!(begins(2, now), Some(0), "others wait for none of it");
        // Those that wait have begun by then.
        let later = now + LIMITS.within;
        assert_eq!([begins(1, later), begins(1, later)], [Some(0), Some(500)]);
    }

    #[test]
    fn handshakes_of_connections_with_a_token_do_not_count() {
        let (handshakes, now) = (handshakes(), Instant::now());
        for _ in 0..100 {
            assert_eq!(handshakes.begin_at(origin(1), now, now + LIMITS.within), Some(now));
            handshakes.was_worth_it(origin(1));
        }
    }

    #[test]
    fn number_of_origins_is_bounded() {
        let (handshakes, now) = (handshakes(), Instant::now());
        for number in 0..u16::MAX {
            let [high, low] = number.to_be_bytes();
            let origin = Origin::of([10, 0, high, low].into());
            handshakes.begin_at(origin, now, now + LIMITS.within).unwrap();
        }
        assert_eq!(handshakes.counted().len(), MAX_ORIGINS);
    }

    #[test]
    fn one_origin_leaves_most_handshakes_to_others() {
        let limits = HandshakeLimits::default();
        let of_one =
            u64::from(limits.at_once) + u64::from(limits.per_second) * limits.within.as_secs();
        assert!(2 * of_one <= limits.in_all as u64, "{limits:?}");
    }

    #[test]
    fn answer_to_a_plain_request_is_as_long_as_it_says() {
        let text = std::str::from_utf8(ANSWER_TO_PLAIN).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
    }
}
