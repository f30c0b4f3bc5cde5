//! A few hundred seeds at each build, and the bugs that they have to catch. Many more:
//! `scripts/sim`.

#![allow(clippy::unwrap_used, reason = "test code outside of #[test] functions")]

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use meridian_sim::{Bug, Counts, run};

/// Runs the seeds on all processors, until one fails.
fn first_failure(seeds: Range<u64>, bug: Option<Bug>) -> (Counts, Option<(u64, String)>) {
    let next = AtomicU64::new(seeds.start);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        let mut total = Counts::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return (total, None);
            }
            match run(seed, bug, false) {
                Ok(counts) => total += counts,
                Err(violation) => {
                    next.store(seeds.end, Ordering::Relaxed);
                    return (total, Some((seed, violation)));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut all = (Counts::default(), None);
        for worker in workers {
            let (counts, failure) = worker.join().unwrap();
            all.0 += counts;
            all.1 = all.1.or(failure);
        }
        all
    })
}

#[test]
fn every_run_keeps_the_invariants_and_heals() {
    // These, since a switchover that is undone behind its seal is rare: one in seventy.
    let (counts, failure) = first_failure(400..650, None);
    assert_eq!(failure, None);
    println!("{counts:?}");
    let Counts { acked, reads, failovers, switchovers, went_home, lost, snapshots, .. } = counts;
    let Counts { orphans, drains, exact_reports, voter_changes, .. } = counts;
    let Counts { enqueued, handed, done, dead, duplicates, .. } = counts;
    let all = [
        acked,
        reads,
        failovers,
        switchovers,
        went_home,
        lost,
        snapshots,
        orphans,
        drains,
        exact_reports,
    ];
    let of_queues = [enqueued, handed, done, dead, duplicates];
    assert!(
        all.into_iter().chain([voter_changes]).chain(of_queues).all(|count| count > 0),
        "the simulation became too gentle: {counts:?}"
    );
}

#[test]
fn the_same_seed_does_the_same() {
    // The second with a queue.
    for seed in [7, 62] {
        let (first, second) = (run(seed, None, false), run(seed, None, false));
        assert_eq!(format!("{first:?}"), format!("{second:?}"));
        assert_eq!(seed == 62, first.is_ok_and(|counts| counts.handed > 0));
    }
}

fn is_caught(bug: Bug, mut seeds: Range<u64>, by: &str) -> bool {
    seeds.any(|seed| run(seed, Some(bug), false).is_err_and(|violation| violation.contains(by)))
}

#[test]
fn a_node_that_answers_without_asking_for_its_lease_is_caught() {
    assert!(is_caught(Bug::SkipTheFence, 0..20, "no_ack_under_stale_lease"));
}

#[test]
fn a_node_that_forgets_its_seal_is_caught() {
    assert!(is_caught(Bug::ForgetTheSeal, 0..20, "committed_and_shipped_is_never_lost"));
}

#[test]
fn a_grantor_that_does_not_wait_is_caught() {
    assert!(is_caught(Bug::SkipTheWait, 0..60, "no_ack_under_stale_lease"));
}

/// This bug is rare: among these seeds is one known to show it.
#[test]
fn a_lease_that_is_counted_from_its_receipt_is_caught() {
    assert!(is_caught(Bug::CountLeaseFromReceipt, 130..134, "no_ack_under_stale_lease"));
}

/// Rare: five in a thousand runs.
#[test]
fn a_seal_that_a_restart_undoes_is_caught() {
    assert!(is_caught(Bug::LoseTheSealInACrash, 825..829, "committed_and_shipped_is_never_lost"));
}

/// Rare: among these seeds are some that are known to show it. A group that is still changing is
/// taken for a changed one, and never changes; or, rarer still, its loss is taken for bounded.
#[test]
fn a_directory_that_forgets_the_former_voters_is_caught() {
    assert!(is_caught(Bug::ForgetTheFormerVoters, 2038..2042, "loss_reported"));
    assert!(is_caught(Bug::ForgetTheFormerVoters, 1219..1223, "no node leads a group of just"));
}

#[test]
fn a_controller_that_judges_right_after_it_stood_still_is_caught() {
    assert!(is_caught(Bug::JudgeWhileStarved, 269..273, "starvation_is_not_loss"));
}

#[test]
fn a_controller_that_takes_a_starved_region_for_a_lost_one_is_caught() {
    assert!(is_caught(Bug::TakeStarvationForLoss, 0..60, "starvation_is_not_loss"));
}

#[test]
fn a_leader_that_hands_messages_out_without_asking_for_its_lease_is_caught() {
    let (one_listener, acknowledged) = ("one listener at a time", "acknowledged messages");
    assert!(is_caught(Bug::HandOutWithoutTheLease, 60..63, one_listener));
    assert!(is_caught(Bug::HandOutWithoutTheLease, 449..452, acknowledged));
}

#[test]
fn a_new_leader_that_waits_for_no_gateway_before_it_hands_messages_out_is_caught() {
    assert!(is_caught(Bug::HandOutAtOnce, 0..40, "one listener at a time"));
}
