//! An eventual read shows the state after some first commits, all of it at one point and none of it
//! from the future; and through one gateway, what completed earlier is never newer than what was
//! invoked later.
//!
//! Source: `docs/consistency.md`, "Eventual reads": of two reads through one gateway the later one
//! shows no older state, and all ranges of a read come from one state. Strong reads and
//! acknowledged writes through the same gateway do not bound its eventual reads.

use std::collections::BTreeMap;

use meridian_types::Consistency;

use super::strict_serializability::reads;
use crate::checker::Evidence;
use crate::history::Operation;
use crate::placement::{Freshness, Observation, place};
use crate::report::{Findings, Invariant};

pub(super) fn check(evidence: &Evidence<'_>, findings: &mut Findings<'_>) {
    let mut by_gateway: BTreeMap<&str, Vec<Observation<'_>>> = BTreeMap::new();
    for observation in reads(evidence, Consistency::Eventual) {
        if let Some(Operation::Read(read)) =
            evidence.history.records.get(observation.record).map(|r| &r.operation)
        {
            by_gateway.entry(&read.gateway).or_default().push(observation);
        }
    }
    for (gateway, observations) in by_gateway {
        for misfit in place(observations, Freshness::Any, &evidence.commits, &evidence.timeline) {
            findings.add(Invariant::EventualReads, misfit.records(), || {
                format!(
                    "through {gateway}: {}",
                    misfit.reason(&evidence.commits, &evidence.timeline)
                )
            });
        }
    }
}
