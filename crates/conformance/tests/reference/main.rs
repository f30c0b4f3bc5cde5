//! Random programs of a client, against Meridian and against the reference implementation: every
//! answer is the same.
//!
//! Compared are outcomes, failed checks, the texts of rejections, keys, values, encodings, order,
//! cursors, expiries, the messages of queues and the first message of watches; versionstamps by their
//! order, since each side chooses its own.
//!
//! Exempted is what is broken in `denokv_sqlite` 0.14, or chosen otherwise here:
//!
//! | what | how |
//! |---|---|
//! | a write that fails keeps its earlier mutations | undone after each such write, in [`denokv`] |
//! | more than 10 checks are refused by its server | given to its database in tens, in [`denokv`] |
//! | a message may be due at any time ahead, and not 30 days ago or before 1970 | messages are due within 30 days |
//! | a watched key may have 2,048 bytes, where clients read 2,049 | programs watch no such key |
//! | a key with a versionstamp behind it is measured without | programs have short ones |
//! | a u64 that is not of 8 bytes is a panic of its server | programs have none |
//! | bounds of sums count neither as values nor in the total | programs have short ones |
//! | V8 values of format 16 stay so | read as format 15, in [`denokv`] |
//! | versionstamped keys notify the prefix, dead letters no watch | of a watch only the first message is compared |
//! | the lease of a message counts from its due time; expiry is late | nothing is delivered or expires meanwhile |
//!
//! `MERIDIAN_CONFORMANCE_PROGRAMS` says how many programs run, `MERIDIAN_SEED` which. A failure prints
//! the seed, and the shortest program that shows it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod compare;
mod denokv;
mod exemptions;
mod meridian;
mod messages;
mod planted;
mod program;
mod store;
mod values;

use compare::{Compared, Drawn};
use denokv::Denokv;
use meridian::Ours;
use meridian_conformance::{Catalogue, Meridian};
use meridian_gateway::Options;
use planted::{Bug, Planted};
use proptest::test_runner::TestError;

/// The texts of a database that programs must have met, or they do not compare much.
const REJECTIONS: [&str; 15] = [
    "Cannot sum BigInt with Number",
    "Cannot sum KvU64 with BigInt",
    "Cannot sum KvU64 with Number",
    "Cannot sum Number with BigInt",
    "Failed to perform 'max' mutation on a non-U64 operand",
    "Failed to perform 'max' mutation on a non-U64 value in the database",
    "Failed to perform 'min' mutation on a non-U64 operand",
    "Failed to perform 'min' mutation on a non-U64 value in the database",
    "Failed to perform 'sum' mutation on a non-U64 value in the database",
    "Min/max parameters have different types than the operand",
    "Some of the parameters are not valid V8 values",
    "The result of a Sum operation would exceed its range limit",
    "invalid v8 value",
    "operand cannot be empty",
    "unsupported value type",
];

fn programs() -> u32 {
    let programs = std::env::var("MERIDIAN_CONFORMANCE_PROGRAMS");
    programs.map_or(1000, |number| number.parse().expect("a number of programs"))
}

fn seed() -> u64 {
    let seed = std::env::var("MERIDIAN_SEED");
    let seed = seed.map_or_else(|_| rand_08::random(), |seed| seed.parse().expect("a seed"));
    println!("MERIDIAN_SEED={seed}");
    seed
}

fn meridian() -> Meridian {
    Meridian::new(Options::default(), Catalogue::default()).unwrap()
}

#[test]
fn random_programs_are_answered_as_by_the_reference() {
    let drawn = Drawn { programs: programs(), seed: seed(), shrinks: true };
    let (meridian, denokv) = (meridian(), Denokv::open());
    let Compared { met, result, .. } =
        drawn.compare(&denokv, |program| Ours::new(&meridian, program));
    if let Err(failure) = result {
        panic!("MERIDIAN_SEED={}: {failure}", drawn.seed);
    }
    println!("{met:#?}");
    let missing = REJECTIONS.iter().filter(|text| !met.contains_key(**text));
    let missing: Vec<_> = missing.collect();
    assert!(missing.is_empty() || drawn.programs < 1000, "{missing:?}");
    let often = ["committed", "check failed", "entries found", "nothing found", "watched"];
    let often = often.map(|what| met.get(what).copied().unwrap_or_default());
    assert!(often.iter().all(|count| *count >= u64::from(drawn.programs) / 10), "{often:?}");
}

/// Each bug is between the programs and a store that has none.
#[test]
fn planted_bugs_are_found_by_random_programs() {
    let (meridian, denokv) = (meridian(), Denokv::open());
    let seed = seed();
    for (number, bug) in (1..).zip(Bug::ALL) {
        let drawn = Drawn { programs: 1000, seed, shrinks: false };
        // Every bug has databases of its own.
        let database = |program| (number << 64) + program;
        let begin = |program| Planted::new(Ours::new(&meridian, database(program)), bug);
        let found = drawn.compare(&denokv, begin);
        println!("{bug:?} is found by program {}", found.programs);
        match found.result {
            // A panic would be a fault of the test.
            Err(TestError::Fail(why, _)) if why.message().starts_with("assertion failed") => {}
            other => panic!("MERIDIAN_SEED={seed}: {bug:?} is not found: {other:?}"),
        }
    }
}
