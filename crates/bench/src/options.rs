//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Parser, ValueEnum};
pub use meridian_kv_client::HttpVersion;
use meridian_types::limits;
use serde::Serialize;

use crate::error::BenchError;
use crate::value::{MIN_JSON_BYTES, ValueKind};

const MAX_DURATION: Duration = Duration::from_secs(60 * 60);
const MAX_KEY_PREFIX_BYTES: usize = 256;
/// Keys in one read of a range.
pub const RANGE_KEYS: u32 = 100;

/// Measure a KV Connect server, or etcd. Each connection has one request in flight: the next one
/// follows its answer (a closed loop), or is due at a fixed rate (--rate, an open loop).
///
/// Operations: write sets one random key to a new value; strong-read and eventual-read read one
/// random key as native Deno does; range is a strong read of 100 keys in a row; sum adds 1 to one
/// number, the same for all; contended reads one of a few hot keys and sets it if it is still the
/// same, and does both anew if it is not. etcd has no sums: there a sum is read, and set if it is
/// still the same.
///
/// One cell is measured for every combination of --http, --operations and --connections. Ctrl-C
/// ends the run and prints the results so far. The exit code is 0 if every cell had at least
/// one success.
#[derive(Debug, Clone, Parser)]
#[command(name = "meridian-bench", version, args_override_self = true)]
pub struct Options {
    /// The connect URL, as given to Deno.openKv, or the URL of a member of etcd
    #[arg(long)]
    pub url: String,
    /// A file with the authorities of certificates that are believed, for https:// URLs. Default: those of
    /// this machine
    #[arg(long, env = "MERIDIAN_CACERT", value_name = "FILE")]
    pub cacert: Option<PathBuf>,
    /// Protocol of the server
    #[arg(long, value_enum, default_value = "kv-connect")]
    pub protocol: Protocol,
    /// The access token of the database; etcd has none
    #[arg(long, env = "DENO_KV_ACCESS_TOKEN", hide_env_values = true, default_value = "")]
    pub access_token: String,
    /// A second connect URL, for eventual reads, say of a node in another region; by default the
    /// eventual endpoint that --url names. Its eventual endpoint is used, or its first if it has
    /// none
    #[arg(long)]
    pub eventual_url: Option<String>,
    /// A file of more connect URLs, one a line, that lead to the same endpoints: operations are
    /// spread over all these databases at random, and each has a key space of its own
    #[arg(long, value_name = "FILE")]
    pub more_urls: Option<PathBuf>,
    /// Operations to measure
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "write,strong-read,eventual-read"
    )]
    pub operations: Vec<Operation>,
    /// Requests in flight, one number for each cell
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256",
          value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub connections: Vec<u16>,
    /// Instead of closed loops, so many operations a second over all connections of a cell, evenly.
    /// Latencies count from when an operation was due, and not from when a connection was free for
    /// it
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate: Option<u32>,
    /// HTTP versions; h2 is with prior knowledge. The first one also carries the metadata exchange
    /// [default: h1,h2, and with etcd h2]
    #[arg(long, value_delimiter = ',', value_parser = http_versions())]
    pub http: Vec<HttpVersion>,
    /// With h2, the streams of a cell share at most this many TCP connections. Servers limit the
    /// streams of one connection (often to 100 or 200); beyond that requests wait in the client
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub h2_connections: u16,
    /// Bytes in each value
    #[arg(long, default_value_t = 128)]
    pub value_bytes: usize,
    /// The content of values, drawn from the seed
    #[arg(long, value_enum, default_value = "random")]
    pub value_kind: ValueKind,
    /// The measured time of each cell: 500ms, 5s, 2m
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    pub duration: Duration,
    /// Time before it that is not measured
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    pub warmup: Duration,
    /// A request without an answer for this long is an error
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Keys in the key space
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    pub keys: u32,
    /// The first part of every key; the second is a number
    #[arg(long, default_value = "meridian-bench")]
    pub key_prefix: String,
    /// Keys that contended operations choose from
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub hot_keys: u32,
    /// Do not write the key space before reads (it is there from an earlier run)
    #[arg(long)]
    pub skip_load: bool,
    /// Write the key space, and measure nothing
    #[arg(long, conflicts_with = "skip_load")]
    pub load_only: bool,
    /// Writes of the key space in flight
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub load_connections: u16,
    /// Ids of the server's processes, on this machine: each cell says how much CPU an operation
    /// took of them
    #[arg(long, value_delimiter = ',', value_name = "PID")]
    pub cpu_of: Vec<u32>,
    /// Threads of the load generator
    #[arg(long, default_value_t = 1, value_parser = parse_workers)]
    pub workers: usize,
    /// Seed of the random keys and values
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Format of the output: a Markdown table, JSON, or both
    #[arg(long, value_enum, default_value = "table")]
    pub output: Output,
    /// Write the JSON to this file, and not to stdout
    #[arg(long)]
    pub json_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    Write,
    StrongRead,
    EventualRead,
    Range,
    Sum,
    Contended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    KvConnect,
    Etcd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    Json,
    Both,
}

/// Reads the name of a version.
fn http_versions() -> impl TypedValueParser<Value = HttpVersion> {
    let versions = [HttpVersion::H1, HttpVersion::H2];
    PossibleValuesParser::new(versions.map(HttpVersion::name)).map(move |name| {
        versions.into_iter().find(|version| version.name() == name).unwrap_or(HttpVersion::H1)
    })
}

impl Options {
    /// Checks the options beyond the parser.
    pub fn validate(&self) -> Result<(), BenchError> {
        if self.value_bytes == 0 || self.value_bytes > limits::MAX_VALUE_BYTES {
            return Err(BenchError::Option(format!(
                "--value-bytes must be 1 to {}",
                limits::MAX_VALUE_BYTES
            )));
        }
        if self.value_kind == ValueKind::Json && self.value_bytes < MIN_JSON_BYTES {
            let needed =
                format!("--value-kind json needs --value-bytes of {MIN_JSON_BYTES} or more");
            return Err(BenchError::Option(needed));
        }
        if self.key_prefix.is_empty()
            || self.key_prefix.len() > MAX_KEY_PREFIX_BYTES
            || self.key_prefix.contains('\0')
        {
            return Err(BenchError::Option(format!(
                "--key-prefix must have 1 to {MAX_KEY_PREFIX_BYTES} bytes, none of them 0"
            )));
        }
        if self.duration.is_zero() || self.timeout.is_zero() {
            return Err(BenchError::Option("--duration and --timeout must be above 0".into()));
        }
        if self.operations.contains(&Operation::Range) && self.keys < RANGE_KEYS {
            return Err(BenchError::Option(format!(
                "range reads {RANGE_KEYS} keys: --keys must be {RANGE_KEYS} or more"
            )));
        }
        if self.more_urls.is_some() && self.operations.contains(&Operation::Contended) {
            return Err(BenchError::Option(
                "contended operations are not spread over --more-urls".into(),
            ));
        }
        match self.protocol {
            Protocol::Etcd if self.more_urls.is_some() || self.load_only => {
                Err(BenchError::Option(
                    "--more-urls and --load-only are not for --protocol etcd".into(),
                ))
            }
            Protocol::KvConnect if self.access_token.is_empty() => Err(BenchError::Option(
                "--access-token is missing, and DENO_KV_ACCESS_TOKEN is not set".into(),
            )),
            Protocol::Etcd if self.http.contains(&HttpVersion::H1) => Err(BenchError::Option(
                "--http h1 is not for --protocol etcd, which is gRPC over HTTP/2".into(),
            )),
            Protocol::Etcd if self.eventual_url.is_some() => Err(BenchError::Option(
                "--eventual-url is not for --protocol etcd: --url serves both reads".into(),
            )),
            _ => Ok(()),
        }
    }

    pub fn http_versions(&self) -> Vec<HttpVersion> {
        match self.protocol {
            _ if !self.http.is_empty() => self.http.clone(),
            Protocol::KvConnect => vec![HttpVersion::H1, HttpVersion::H2],
            Protocol::Etcd => vec![HttpVersion::H2],
        }
    }

    /// Whether an operation needs the key space to be there.
    pub fn reads(&self) -> bool {
        let reads = |operation: &Operation| {
            matches!(operation, Operation::StrongRead | Operation::EventualRead | Operation::Range)
        };
        self.operations.iter().any(reads)
    }
}

impl Operation {
    pub fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::StrongRead => "strong-read",
            Self::EventualRead => "eventual-read",
            Self::Range => "range",
            Self::Sum => "sum",
            Self::Contended => "contended",
        }
    }
}

impl Output {
    pub fn has_table(self) -> bool {
        self != Self::Json
    }

    pub fn has_json(self) -> bool {
        self != Self::Table
    }
}

/// A whole number and `ms`, `s` or `m`; at most an hour.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let number: u64 = digits
        .parse()
        .map_err(|_| "expected a whole number and a unit: 500ms, 5s, 2m".to_owned())?;
    let unit_ms = match text.strip_prefix(digits) {
        Some("ms") => 1,
        Some("s") => 1000,
        Some("m") => 60_000,
        _ => return Err("expected the unit ms, s or m".into()),
    };
    let duration = Duration::from_millis(number.saturating_mul(unit_ms));
    if duration > MAX_DURATION {
        return Err("at most 60m".into());
    }
    Ok(duration)
}

fn parse_workers(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(workers @ 1..=16) => Ok(workers),
        _ => Err("expected 1 to 16".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brief_command_line_parses() {
        let options = Options::try_parse_from([
            "meridian-bench",
            "--url=http://127.0.0.1:4512",
            "--access-token=t",
            "--operations=write,eventual-read",
            "--connections=1,16",
            "--http=h2",
            "--duration=500ms",
            "--warmup=0s",
            "--output=both",
        ])
        .unwrap();
        options.validate().unwrap();
        assert_eq!(options.operations, [Operation::Write, Operation::EventualRead]);
        assert_eq!(options.connections, [1, 16]);
        assert_eq!(options.http, [HttpVersion::H2]);
        assert_eq!(options.duration, Duration::from_millis(500));
        assert!(options.warmup.is_zero() && options.reads());
        assert_eq!((options.keys, options.value_bytes, options.h2_connections), (10_000, 128, 4));
    }

    #[test]
    fn defaults_hold_every_operation() {
        let options =
            Options::try_parse_from(["meridian-bench", "--url=http://x", "--access-token=t"])
                .unwrap();
        assert_eq!(options.operations.len(), 3);
        assert_eq!(options.connections, [1, 16, 64, 256]);
        assert_eq!(options.http_versions(), [HttpVersion::H1, HttpVersion::H2]);
        assert_eq!(
            (options.protocol, options.rate, options.hot_keys),
            (Protocol::KvConnect, None, 16)
        );
    }

    fn refusal(more: &[&str]) -> String {
        let arguments = ["meridian-bench", "--url=http://x"].iter().chain(more);
        Options::try_parse_from(arguments).unwrap().validate().unwrap_err().to_string()
    }

    #[test]
    fn conflicting_options_are_refused_by_name() {
        assert!(refusal(&["--access-token="]).contains("--access-token is missing"));
        let etcd = ["--protocol=etcd"];
        assert!(
            refusal(&[etcd[0], "--http=h2,h1"]).contains("--http h1 is not for --protocol etcd")
        );
        assert!(
            refusal(&[etcd[0], "--eventual-url=http://y"])
                .contains("--eventual-url is not for --protocol etcd")
        );
        assert!(refusal(&[etcd[0], "--load-only"]).contains("not for --protocol etcd"));
        let contended = ["--access-token=t", "--operations=sum,contended", "--more-urls=f"];
        assert!(refusal(&contended).contains("contended operations are not spread"));
        let range = ["--access-token=t", "--operations=range,sum", "--keys=99"];
        assert_eq!(refusal(&range), "range reads 100 keys: --keys must be 100 or more");
        for bad in ["--rate=0", "--rate=1000001", "--hot-keys=0", "--protocol=redis"] {
            assert!(
                Options::try_parse_from(["meridian-bench", "--url=http://x", bad]).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn etcd_needs_no_token_and_has_http_2_only() {
        let arguments = [
            "meridian-bench",
            "--url=http://x",
            "--protocol=etcd",
            "--access-token=",
            "--rate=500",
        ];
        let options = Options::try_parse_from(arguments).unwrap();
        options.validate().unwrap();
        assert_eq!((options.http_versions(), options.rate), (vec![HttpVersion::H2], Some(500)));
    }

    #[test]
    fn only_reads_of_the_key_space_need_it_loaded() {
        for (operations, reads) in
            [("write,sum,contended", false), ("sum,range", true), ("strong-read", true)]
        {
            let operations = format!("--operations={operations}");
            let options =
                Options::try_parse_from(["meridian-bench", "--url=http://x", &operations]).unwrap();
            assert_eq!(options.reads(), reads, "{operations}");
        }
    }

    #[test]
    fn durations_are_bounded_and_have_units() {
        assert_eq!(parse_duration("2m").unwrap(), Duration::from_secs(120));
        for bad in ["", "5", "s", "61m", "1.5s", "5h", "-1s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
