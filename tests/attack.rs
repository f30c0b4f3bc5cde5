//! No client can take the cluster from the others: each attack that once did, for some seconds
//! each. `scripts/soak attack` takes a minute for each, and measures.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::path::PathBuf;
use std::time::Duration;

use meridian_tests::attack::{Attacker, Siege, name_of};

const EACH: Duration = Duration::from_secs(8);
const DELETED_ROWS: usize = 50_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bystander_is_served_and_nodes_stay_within_their_memory_under_attack() {
    let mut siege =
        Siege::start(PathBuf::from(env!("CARGO_BIN_EXE_meridian-attack")), DELETED_ROWS).await;
    for attacker in Attacker::ALL {
        let row = siege.row(&name_of(*attacker), attacker.inputs(), EACH).await;
        println!("{row:?}");
        assert!(row.faults.is_empty(), "{attacker:?}: {:?}", row.faults);
        assert!(row.seen.failures.is_empty(), "{attacker:?}: {:?}", row.seen.failures);
        assert!(row.seen.reads.count() > 0 && row.seen.writes.count() > 0, "{attacker:?}");
        assert!(
            row.memory.is_none_or(|(mb, _)| mb <= row.max_memory_mb),
            "{attacker:?}: {:?} MiB",
            row.memory
        );
    }
}
