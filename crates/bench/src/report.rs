//! The results of a run, as they are written in JSON.

use serde::Serialize;

use crate::options::{HttpVersion, Operation, Options, Protocol};
use crate::value::ValueKind;

#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub started_at_unix_ms: u64,
    /// Interrupted by Ctrl-C: cells are missing, and the last one may be shorter than asked for.
    pub interrupted: bool,
    pub settings: Settings,
    pub server: Server,
    pub cells: Vec<CellReport>,
}

/// The options that shape the numbers; never the token.
#[derive(Debug, Clone, Serialize)]
pub struct Settings {
    pub url: String,
    pub eventual_url: Option<String>,
    pub protocol: Protocol,
    pub operations: Vec<Operation>,
    pub connections: Vec<u16>,
    pub http: Vec<HttpVersion>,
    pub h2_connections: u16,
    pub value_bytes: usize,
    pub value_kind: ValueKind,
    pub keys: u32,
    pub key_prefix: String,
    pub hot_keys: u32,
    pub skip_load: bool,
    /// Operations a second of an open loop.
    pub rate: Option<u32>,
    pub duration_s: f64,
    pub warmup_s: f64,
    pub timeout_s: f64,
    pub workers: usize,
    pub seed: u64,
}

/// The result of the metadata exchange. For etcd, which has none: its name and the version of its
/// interface.
#[derive(Debug, Clone, Serialize)]
pub struct Server {
    pub database_id: String,
    pub protocol_version: u64,
    pub strong_endpoint: Option<String>,
    pub eventual_endpoint: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct CellReport {
    pub operation: Operation,
    pub http: HttpVersion,
    /// Requests in flight.
    pub connections: u16,
    pub tcp_connections: u16,
    pub measured_s: f64,
    pub operations: u64,
    pub throughput_ops_per_s: f64,
    pub errors: u64,
    pub first_error: Option<String>,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
    pub conflicts: u64,
    pub unsent: u64,
    /// CPU time of the named processes while the cell was measured.
    pub cpu_us_per_operation: Option<f64>,
}

impl Settings {
    pub fn new(options: &Options) -> Self {
        Self {
            url: options.url.clone(),
            eventual_url: options.eventual_url.clone(),
            protocol: options.protocol,
            operations: options.operations.clone(),
            connections: options.connections.clone(),
            http: options.http_versions(),
            h2_connections: options.h2_connections,
            value_bytes: options.value_bytes,
            value_kind: options.value_kind,
            keys: options.keys,
            key_prefix: options.key_prefix.clone(),
            hot_keys: options.hot_keys,
            skip_load: options.skip_load,
            rate: options.rate,
            duration_s: options.duration.as_secs_f64(),
            warmup_s: options.warmup.as_secs_f64(),
            timeout_s: options.timeout.as_secs_f64(),
            workers: options.workers,
            seed: options.seed,
        }
    }
}

impl Report {
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        let mut json = serde_json::to_string_pretty(self)?;
        json.push('\n');
        Ok(json)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use clap::Parser;

    pub(crate) fn example() -> Report {
        let options =
            Options::parse_from(["meridian-bench", "--url=http://h:1", "--access-token=secret"]);
        let cell = CellReport {
            operation: Operation::Write,
            http: HttpVersion::H1,
            connections: 16,
            tcp_connections: 16,
            measured_s: 5.0,
            operations: 61_172,
            throughput_ops_per_s: 12_234.4,
            errors: 0,
            first_error: None,
            p50_ms: 1.247,
            p99_ms: 3.5,
            max_ms: 20.031,
            conflicts: 0,
            unsent: 0,
            cpu_us_per_operation: None,
        };
        let failing = CellReport {
            operation: Operation::StrongRead,
            http: HttpVersion::H2,
            tcp_connections: 4,
            errors: 3,
            conflicts: 5,
            unsent: 7,
            first_error: Some("status 503: no\nleader | yet".into()),
            ..cell.clone()
        };
        Report {
            started_at_unix_ms: 1_700_000_000_000,
            interrupted: true,
            settings: Settings::new(&options),
            server: Server {
                database_id: "d".into(),
                protocol_version: 3,
                strong_endpoint: Some("http://h:1/s".into()),
                eventual_endpoint: None,
            },
            cells: vec![cell, failing],
        }
    }

    #[test]
    fn json_holds_settings_and_cells_but_no_token() {
        let text = example().to_json().unwrap();
        assert!(!text.contains("secret"));
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["settings"]["connections"], serde_json::json!([1, 16, 64, 256]));
        assert_eq!(json["settings"]["duration_s"], 5.0);
        assert_eq!(json["server"]["database_id"], "d");
        assert_eq!(json["interrupted"], true);
        assert_eq!(
            json["cells"][0],
            serde_json::json!({
                "operation": "write", "http": "h1", "connections": 16, "tcp_connections": 16, "measured_s": 5.0,
                "operations": 61172, "throughput_ops_per_s": 12234.4, "errors": 0, "first_error": null,
                "p50_ms": 1.247, "p99_ms": 3.5, "max_ms": 20.031, "conflicts": 0, "unsent": 0,
                "cpu_us_per_operation": null,
            })
        );
        assert_eq!(json["cells"][1]["operation"], "strong-read");
    }
}
