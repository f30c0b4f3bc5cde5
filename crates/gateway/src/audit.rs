//! The audit log: which token read or wrote what kind of thing when, a line of JSON for each request
//! of a client. `docs/audit.md` has the fields.
//!
//! | module | contents |
//! |---|---|
//! | `entry` | what is known of one request; its end writes the line |
//! | `noted` | what the steps of a request add to its entry |
//! | `stream` | an answer that streams: the line of its end |
//! | `line`, `parts` | a line as JSON, keys and values as text |
//! | `queue` | lines on their way to the file, within a bound |
//! | `writer`, `log_file` | the thread that writes them, and the file |
//!
//! Invariants:
//! - No request waits for the file. What waits for it is bounded in bytes, and what has no room there is
//!   counted, also in the file itself.
//! - Where operators want no operation without its line ([`WhenFull::Refuse`]), a request has room for
//!   its line before it asks the database for anything.
//! - A line is JSON that serde reads, whatever clients send; keys and values are in it only where
//!   operators ask for them, and secrets of tokens never.
//! - An entry holds keys and values as the text that its line has, and room for as much.
//! - Room is divided among tokens, and requests without a token that opens their database take no more
//!   than half of it. A request that waits for long has none meanwhile.

mod entry;
mod line;
mod log_file;
mod noted;
mod parts;
mod queue;
mod stream;
mod writer;

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metrics::{Counter, counter, describe_counter};
use tracing::warn;

use self::line::Line;
use self::log_file::LogFile;
use self::queue::{LINE_BYTES, Place, Queue, Whose};
use self::writer::Writer;

pub(crate) use self::entry::{Asked, Audited};
pub(crate) use self::noted::{Noted, of, over, written};

/// How long a server that stops waits for lines to be on the disk.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

const LINES: &str = "meridian_gateway_audit_lines_total";
const DROPPED: &str = "meridian_gateway_audit_dropped_lines_total";
const FAILURES: &str = "meridian_gateway_audit_failures_total";
const REFUSED: &str = "meridian_gateway_audit_refused_requests_total";

/// The part of requests that has lines, in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample(u32);

impl Sample {
    pub const ALL: Self = Self(1_000_000);

    /// `None`: the part is not between 0 and 1.
    #[must_use]
    pub fn new(part: f64) -> Option<Self> {
        let millionths = (0.0..=1.0).contains(&part).then(|| (part * 1e6).round())?;
        // A float becomes an integer by `as` alone; this one is between 0 and a million.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Some(Self(millionths as u32))
    }

    #[must_use]
    pub fn part(self) -> f64 {
        f64::from(self.0) / 1e6
    }

    /// `number`: evenly distributed.
    fn has(self, number: u64) -> bool {
        number % 1_000_000 < self.0.into()
    }
}

/// The fate of requests while there is no room for their lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// They are served, and their lines left out and counted.
    #[default]
    Drop,
    /// They are refused, before anything of them is done.
    Refuse,
}

/// The settings of an audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditSettings {
    pub file: PathBuf,
    /// Refused requests have lines in any case.
    pub sample: Sample,
    /// Lines have the keys that were asked for.
    pub keys: bool,
    /// Lines have the values that were written.
    pub values: bool,
    pub when_full: WhenFull,
}

/// The file of an audit log cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the audit log {} cannot be written: {cause}", .file.display())]
pub struct UnusableAuditLog {
    pub file: PathBuf,
    pub cause: std::io::Error,
}

/// The audit log of a gateway. Cheap to clone; its thread ends with the last clone.
#[derive(Clone)]
pub struct Audit(Arc<Log>);

struct Log {
    settings: AuditSettings,
    gateway: String,
    queue: Arc<Queue>,
    counters: Counters,
    requests: AtomicU64,
    /// With a key of chance, so that no client knows which of its requests have lines.
    choice: RandomState,
}

impl Drop for Log {
    fn drop(&mut self) {
        self.queue.end();
    }
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Audit").field(&self.0.settings).finish()
    }
}

/// The handles of the metrics of an audit log.
#[derive(Clone)]
pub(crate) struct Counters {
    lines: Counter,
    dropped: Counter,
    failures: Counter,
    refused: Counter,
}

impl Counters {
    /// Registers them with the recorder that is installed at the time of the call.
    pub(crate) fn new() -> Self {
        describe_counter!(LINES, "Lines that were written to the audit log.");
        describe_counter!(DROPPED, "Lines for which the audit log had no room.");
        describe_counter!(FAILURES, "Tries to write the audit log that failed.");
        describe_counter!(REFUSED, "Requests refused because the audit log had no room.");
        Self {
            lines: counter!(LINES),
            dropped: counter!(DROPPED),
            failures: counter!(FAILURES),
            refused: counter!(REFUSED),
        }
    }
}

impl Audit {
    /// Opens the file, or makes it, for its owner alone. `gateway`: the name in each line.
    ///
    /// # Errors
    /// [`UnusableAuditLog`].
    pub fn open(settings: AuditSettings, gateway: &str) -> Result<Self, UnusableAuditLog> {
        let unusable = |cause| UnusableAuditLog { file: settings.file.clone(), cause };
        let file = LogFile::open(&settings.file).map_err(unusable)?;
        let (queue, counters) = (Arc::new(Queue::new()), Counters::new());
        let writer = Writer::new(file, Arc::clone(&queue), counters.clone(), gateway.to_owned());
        let thread = std::thread::Builder::new().name("audit".to_owned());
        thread.spawn(move || writer.run()).map_err(unusable)?;
        let audit = Self(Arc::new(Log {
            gateway: gateway.to_owned(),
            queue,
            counters,
            requests: AtomicU64::new(0),
            choice: RandomState::new(),
            settings,
        }));
        audit.says_how_it_was_opened();
        Ok(audit)
    }

    /// A line behind which a reader knows which requests have lines, and what is in them.
    fn says_how_it_was_opened(&self) {
        let AuditSettings { sample, keys, values, when_full, .. } = self.0.settings;
        let mut line = Line::begun(&self.0.gateway);
        line.set("audit", "opened");
        line.set("version", env!("CARGO_PKG_VERSION"));
        line.set("sample", sample.part());
        line.set("keys", keys);
        line.set("values", values);
        line.set("when_full", if when_full == WhenFull::Drop { "drop" } else { "refuse" });
        self.push(&line, None, Whose::Log);
    }

    fn settings(&self) -> &AuditSettings {
        &self.0.settings
    }

    /// Why the file cannot be written at present, for operators.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let file = self.0.settings.file.display();
        let refuses = self.0.settings.when_full == WhenFull::Refuse;
        let effect = if refuses { "requests are refused" } else { "its lines are being lost" };
        let cause = self.0.queue.failure()?;
        Some(format!("the audit log {file} cannot be written, and {effect}: {cause}"))
    }

    /// Waits until all lines so far are on the disk, for two seconds at most.
    pub(crate) async fn flush(&self) {
        let queue = Arc::clone(&self.0.queue);
        let flushed = tokio::task::spawn_blocking(move || queue.flush(FLUSH_LIMIT)).await;
        if let Ok(left @ 1..) = flushed {
            warn!(left, "the process stops with lines of the audit log that were not written");
        }
    }

    fn next_number(&self) -> u64 {
        self.0.requests.fetch_add(1, Ordering::Relaxed)
    }

    fn has_line(&self, number: u64) -> bool {
        let sample = self.0.settings.sample;
        sample == Sample::ALL || sample.has(self.0.choice.hash_one(number))
    }

    fn place(&self, whose: Whose, bytes: usize) -> Option<Place> {
        Queue::take(&self.0.queue, whose, bytes)
    }

    /// Whether a request has to be refused that has this room for its line, or none.
    fn refuses(&self, place: Option<&Place>) -> bool {
        let refuses = self.0.settings.when_full == WhenFull::Refuse
            && (place.is_none() || self.0.queue.failure().is_some());
        if refuses {
            self.0.counters.refused.increment(1);
        }
        refuses
    }

    /// Has a line written, if there is room for it. `place`: taken before.
    fn push(&self, line: &Line, place: Option<Place>, whose: Whose) {
        let place = place.or_else(|| self.place(whose, LINE_BYTES));
        if !place.is_some_and(|place| place.fill(line.encode())) {
            self.0.queue.dropped();
            self.0.counters.dropped.increment(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use meridian_types::{Consistency, DatabaseId, ShardId, V8Format};

    use super::*;
    use crate::route::Route;
    use crate::{Catalogue, Grant, TokenName};

    #[test]
    fn sample_holds_its_rate_whatever_the_order_of_requests() {
        let choice = RandomState::new();
        for (part, expected) in [(0.0, 0), (0.1, 10_000), (0.5, 50_000), (1.0, 100_000)] {
            let sample = Sample::new(part).unwrap();
            // Of every second request, as where reads and writes alternate.
            let numbers = (0..200_000u64).step_by(2);
            let taken = numbers.filter(|number| sample.has(choice.hash_one(number))).count();
            // Eight standard deviations.
            assert!(taken.abs_diff(expected) < 1300, "{part}: {taken}");
            assert!((sample.part() - part).abs() < 1e-9);
        }
        assert_eq!(Sample::new(1.0), Some(Sample::ALL));
        assert!([1.1, -0.1, f64::NAN].iter().all(|part| Sample::new(*part).is_none()));
    }
    /// The disk is full, until the name leads to another file.
    #[test]
    fn lines_without_room_are_counted_in_the_file_too_and_none_that_had_room_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let (file, other) = (folder.path().join("audit"), folder.path().join("other"));
        std::os::unix::fs::symlink("/dev/full", &file).unwrap();
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let settings = AuditSettings {
            file: file.clone(),
            sample: Sample::ALL,
            keys: true,
            values: true,
            when_full: WhenFull::Drop,
        };
        let open = || Audit::open(settings, "a").unwrap();
        let audit = metrics::with_local_recorder(&recorder, open);
        let count = |name: &str| {
            let text = recorder.handle().render();
            let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
            line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
        };
        let mut sent = 0u64;
        while count(DROPPED) < 3 {
            let mut line = Line::begun("a");
            line.set("number", sent);
            line.set("parts", "x".repeat(200 << 10));
            audit.push(&line, audit.place(Whose::Token(7), LINE_BYTES), Whose::Token(7));
            sent += 1;
            assert!(sent < 1000, "lines are never dropped");
        }
        while count(FAILURES) == 0 {
            std::thread::yield_now();
        }
        assert!(audit.warning().unwrap().contains("No space left on device"));
        std::fs::write(&other, "").unwrap();
        std::fs::rename(&other, &file).unwrap();
        while count(LINES) + 3 < sent + 1 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert_eq!(audit.0.queue.flush(std::time::Duration::from_secs(60)), 0);
        assert_eq!(audit.warning(), None);
        let text = std::fs::read_to_string(&file).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let numbers: Vec<u64> = lines.iter().filter_map(|line| line["number"].as_u64()).collect();
        assert_eq!(numbers, (0..sent - 3).collect::<Vec<_>>());
        let dropped: u64 = lines.iter().filter_map(|line| line["dropped"].as_u64()).sum();
        assert_eq!((dropped, count(DROPPED), count(LINES)), (3, 3, sent - 3 + 1));
    }

    #[test]
    fn longest_line_without_keys_fits_into_its_place() {
        use hyper::HeaderMap;
        struct Long;
        impl Catalogue for Long {
            fn default_database(&self) -> Option<DatabaseId> {
                None
            }
            fn by_name(&self, _: &str) -> Option<DatabaseId> {
                None
            }
            fn name(&self, _: DatabaseId) -> Option<String> {
                Some("x".repeat(100))
            }
            fn token_name(&self, _: &[u8; 32]) -> Option<Arc<TokenName>> {
                Some(Arc::new(TokenName { id: u64::MAX, label: "\u{7}".repeat(200) }))
            }
            fn shard(&self, _: DatabaseId) -> Option<ShardId> {
                None
            }
            fn v8_format(&self, _: DatabaseId) -> V8Format {
                V8Format::default()
            }
            fn authorize(&self, _: &str) -> Option<Grant> {
                None
            }
            fn is_current(&self) -> bool {
                true
            }
        }
        let mut headers = HeaderMap::new();
        headers.insert("authorization", "Bearer a".parse().unwrap());
        headers.insert("x-transaction-domain-id", DatabaseId([1; 16]).to_string().parse().unwrap());
        headers.insert("user-agent", "\"".repeat(1000).parse().unwrap());
        let (route, began) = (Some(Route::Watch(Consistency::Eventual)), Instant::now());
        let address = Some("2001:db8:1111:2222:3333:4444:5555:6666".parse().unwrap());
        let asked = Asked { route, headers: &headers, address, began };
        let mut line = entry::begun(&"x".repeat(255), asked, &Long);
        for name in ["bytes_in", "bytes_out", "checks", "mutations", "enqueues", "settlements"] {
            line.set(name, u64::MAX);
        }
        for name in ["ranges", "keys", "messages", "stream", "status", "failed_checks"] {
            line.set(name, u64::MAX);
        }
        line.set("versionstamp", "x".repeat(20));
        line.set("reason", "malformed_authorization");
        line.set("duration_us", u64::MAX);
        line.set("parts_left_out", u64::MAX);
        assert!(line.encode().len() <= LINE_BYTES, "{}", line.encode().len());
    }
}
