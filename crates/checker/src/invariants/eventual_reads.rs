//! An eventual read shows the state after a prefix of the commits, all of it at one point and none
//! of it from the future; and through one gateway, a read that completed earlier is never newer
//! than a read that was invoked later.
//!
//! Source: `docs/consistency.md`, "Eventual reads": of two reads through one gateway the later one
//! shows no older state, and all ranges of a read come from one state. Strong reads and
//! acknowledged writes through the same gateway do not bound its eventual reads.

use std::collections::BTreeMap;

use meridian_types::Consistency;

use super::strict_serializability::reads;
use crate::evidence::Evidence;
use crate::history::Operation;
use crate::placement::{Freshness, Query, find_points};
use crate::report::{Findings, Invariant};

pub(super) fn check(evidence: &Evidence<'_>, findings: &mut Findings<'_>) {
    let mut by_gateway: BTreeMap<&str, Vec<Query<'_>>> = BTreeMap::new();
    for query in reads(evidence, Consistency::Eventual) {
        if let Some(Operation::Read(read)) =
            evidence.history.records.get(query.record).map(|r| &r.operation)
        {
            by_gateway.entry(&read.gateway).or_default().push(query);
        }
    }
    for (gateway, queries) in by_gateway {
        for unplaceable in
            find_points(queries, Freshness::Any, &evidence.commits, &evidence.timeline)
        {
            findings.add(Invariant::EventualReads, unplaceable.records(), || {
                format!(
                    "through {gateway}: {}",
                    unplaceable.reason(&evidence.commits, &evidence.timeline)
                )
            });
        }
    }
}
