//! The invariants of a history, one file for each.

use crate::evidence::Evidence;
use crate::report::Findings;

mod acknowledged_writes;
mod eventual_reads;
mod exactly_once;
mod outcomes;
mod strict_serializability;
mod versionstamps;
mod well_formed;

type Check = fn(&Evidence<'_>, &mut Findings<'_>);

pub(crate) const ALL: [Check; 7] = [
    well_formed::check,
    versionstamps::check,
    strict_serializability::check,
    outcomes::check,
    acknowledged_writes::check,
    exactly_once::check,
    eventual_reads::check,
];
