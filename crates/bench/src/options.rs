//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use meridian_types::limits;
use serde::Serialize;

use crate::error::BenchError;
use crate::value::{MIN_JSON_BYTES, ValueKind};

const MAX_DURATION: Duration = Duration::from_secs(60 * 60);
const MAX_KEY_PREFIX_BYTES: usize = 256;

/// Measure a KV Connect server with closed loops: each connection has one request in flight.
///
/// Writes are atomic writes with one set of a new value on a random key, reads read one random key
/// as native Deno does. One cell is measured for every combination of --http, --operations and
/// --connections. Ctrl-C ends the run and prints what was measured so far. The exit code is 0 if
/// every cell had at least one success.
#[derive(Debug, Clone, Parser)]
#[command(name = "meridian-bench", version, args_override_self = true)]
pub struct Options {
    /// The connect URL, as given to Deno.openKv (http:// only)
    #[arg(long)]
    pub url: String,
    /// The access token of the database
    #[arg(long, env = "DENO_KV_ACCESS_TOKEN", hide_env_values = true)]
    pub access_token: String,
    /// A second connect URL, for eventual reads, say of a node in another region; by default the
    /// eventual endpoint that --url names. Its eventual endpoint is used, or its first if it has none
    #[arg(long)]
    pub eventual_url: Option<String>,
    /// What to measure
    #[arg(long, value_enum, value_delimiter = ',', default_value = "write,strong-read,eventual-read")]
    pub operations: Vec<Operation>,
    /// Requests in flight, one number for each cell
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256",
          value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub connections: Vec<u16>,
    /// HTTP versions; h2 is with prior knowledge. The first one also carries the metadata exchange
    #[arg(long, value_enum, value_delimiter = ',', default_value = "h1,h2")]
    pub http: Vec<HttpVersion>,
    /// With h2, the streams of a cell share at most this many TCP connections. Servers limit the
    /// streams of one connection (often to 100 or 200); beyond that requests wait in the client
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub h2_connections: u16,
    /// Bytes of each value
    #[arg(long, default_value_t = 128)]
    pub value_bytes: usize,
    /// What values hold, from the seed
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
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub keys: u32,
    /// The first part of every key; the second is a number
    #[arg(long, default_value = "meridian-bench")]
    pub key_prefix: String,
    /// Do not write the key space before reads (it is there from an earlier run)
    #[arg(long)]
    pub skip_load: bool,
    /// Threads of the load generator
    #[arg(long, default_value_t = 1, value_parser = parse_workers)]
    pub workers: usize,
    /// Seed of the random keys and values
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// What to print: a Markdown table, JSON, or both
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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HttpVersion {
    H1,
    H2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    Json,
    Both,
}

impl Options {
    /// What the parser cannot check by itself.
    pub fn validate(&self) -> Result<(), BenchError> {
        if self.value_bytes == 0 || self.value_bytes > limits::MAX_VALUE_BYTES {
            return Err(BenchError::Option(format!("--value-bytes must be 1 to {}", limits::MAX_VALUE_BYTES)));
        }
        if self.value_kind == ValueKind::Json && self.value_bytes < MIN_JSON_BYTES {
            let needed = format!("--value-kind json needs --value-bytes of {MIN_JSON_BYTES} or more");
            return Err(BenchError::Option(needed));
        }
        if self.key_prefix.is_empty() || self.key_prefix.len() > MAX_KEY_PREFIX_BYTES || self.key_prefix.contains('\0')
        {
            return Err(BenchError::Option(format!(
                "--key-prefix must have 1 to {MAX_KEY_PREFIX_BYTES} bytes, none of them 0"
            )));
        }
        if self.duration.is_zero() || self.timeout.is_zero() {
            return Err(BenchError::Option("--duration and --timeout must be above 0".into()));
        }
        Ok(())
    }

    pub fn reads(&self) -> bool {
        self.operations.iter().any(|operation| *operation != Operation::Write)
    }
}

impl Operation {
    pub fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::StrongRead => "strong-read",
            Self::EventualRead => "eventual-read",
        }
    }
}

impl HttpVersion {
    pub fn name(self) -> &'static str {
        match self {
            Self::H1 => "h1",
            Self::H2 => "h2",
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
    let number: u64 = digits.parse().map_err(|_| "expected a whole number and a unit: 500ms, 5s, 2m".to_owned())?;
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
        let options = Options::try_parse_from(["meridian-bench", "--url=http://x", "--access-token=t"]).unwrap();
        assert_eq!(options.operations.len(), 3);
        assert_eq!(options.connections, [1, 16, 64, 256]);
        assert_eq!(options.http.len(), 2);
    }

    #[test]
    fn durations_are_bounded_and_have_units() {
        assert_eq!(parse_duration("2m").unwrap(), Duration::from_secs(120));
        for bad in ["", "5", "s", "61m", "1.5s", "5h", "-1s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
