//! The results of a run.

use anyhow::Result;
use meridian_bench::tally::Tally;
use serde::Serialize;

#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    pub(super) database_id: String,
    /// The region in which strong operations are decided, if a configuration named it.
    pub(super) primary_region: Option<String>,
    pub(super) preferred_leader: Option<String>,
    /// Requests in every cell.
    pub(super) requests: u32,
    pub(super) value_bytes: usize,
    pub(super) regions: Vec<RegionReport>,
    /// `None`: not measured.
    pub(super) replication: Option<Replication>,
}

/// The results at the gateway of one region.
#[derive(Debug, Clone, Serialize)]
pub(super) struct RegionReport {
    pub(super) region: String,
    pub(super) url: String,
    /// WAN round trips of a strong read or a write. `None`: unknown.
    pub(super) wan_round_trips: Option<u8>,
    /// The client's own round trip to the gateway. It is part of every other number.
    pub(super) round_trip: Quantiles,
    pub(super) eventual_read: Quantiles,
    pub(super) strong_read: Quantiles,
    pub(super) write: Quantiles,
}

/// The delay from a write's acknowledgement until eventual reads show it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Replication {
    /// The region in which the writes were made.
    pub(super) from_region: String,
    pub(super) writes: u32,
    pub(super) regions: Vec<RegionDelay>,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct RegionDelay {
    pub(super) region: String,
    pub(super) delay: Quantiles,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Quantiles {
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) max_ms: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    RoundTrip,
    EventualRead,
    StrongRead,
    Write,
}

impl Operation {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::RoundTrip => "own round trip",
            Self::EventualRead => "eventual read",
            Self::StrongRead => "strong read",
            Self::Write => "write",
        }
    }
}

impl From<&Tally> for Quantiles {
    fn from(tally: &Tally) -> Self {
        Self {
            p50_ms: tally.quantile_ms(0.5),
            p99_ms: tally.quantile_ms(0.99),
            max_ms: tally.max_ms(),
        }
    }
}

impl Report {
    pub(super) fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn example() -> Report {
        let quantiles =
            |p50_ms: f64| Quantiles { p50_ms, p99_ms: p50_ms * 2.0, max_ms: p50_ms * 3.0 };
        let region = |name: &str, wan: u8, strong: f64| RegionReport {
            region: name.to_owned(),
            url: format!("http://{name}/db/default"),
            wan_round_trips: Some(wan),
            round_trip: quantiles(0.125),
            eventual_read: quantiles(0.25),
            strong_read: quantiles(strong),
            write: quantiles(strong + 1.0),
        };
        let delay =
            |name: &str, p50: f64| RegionDelay { region: name.to_owned(), delay: quantiles(p50) };
        Report {
            database_id: "00000000-0000-4000-8000-000000000001".to_owned(),
            primary_region: Some("region-1".to_owned()),
            preferred_leader: Some("region-1-a".to_owned()),
            requests: 200,
            value_bytes: 128,
            regions: vec![region("region-1", 0, 0.375), region("region-2", 1, 90.5)],
            replication: Some(Replication {
                from_region: "region-1".to_owned(),
                writes: 50,
                regions: vec![delay("region-1", 0.25), delay("region-2", 46.0)],
            }),
        }
    }

    #[test]
    fn json_has_every_number_with_its_unit() {
        let json: serde_json::Value = serde_json::from_str(&example().to_json().unwrap()).unwrap();
        assert_eq!(json["primary_region"], "region-1");
        assert_eq!(
            json["regions"][1]["strong_read"],
            serde_json::json!({"p50_ms": 90.5, "p99_ms": 181.0, "max_ms": 271.5})
        );
        assert_eq!(json["regions"][1]["wan_round_trips"], 1);
        assert_eq!(json["replication"]["regions"][1]["delay"]["p50_ms"], 46.0);
    }
}
