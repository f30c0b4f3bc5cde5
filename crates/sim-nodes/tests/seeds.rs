//! A few seeds of whole nodes, and the planted bugs. `scripts/sim --nodes` runs many more.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::process::Command;

/// The output of a run, and whether nothing was wrong.
fn run(seed: u64, arguments: &[&str]) -> (String, bool) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meridian-sim-nodes"));
    let output = command.arg(format!("--seed={seed}")).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    (String::from_utf8(output.stdout).unwrap() + &error, output.status.success())
}

/// The history that a run records, as bytes, and all that it prints.
fn recorded(seed: u64, arguments: &[&str]) -> (Vec<u8>, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("history.jsonl");
    let history = format!("--history={}", file.display());
    let (said, is_well) = run(seed, &[arguments, &[&history]].concat());
    assert!(is_well, "{said}");
    (std::fs::read(file).unwrap(), said)
}

#[test]
fn nodes_of_one_region_serve_correctly_and_do_the_same_again_for_a_seed() {
    let arguments = ["--seconds=4"];
    let (first, second) = (recorded(1, &arguments), recorded(1, &arguments));
    assert!(first == second, "{}\n{}", first.1, second.1);
    recorded(2, &arguments);
}

#[test]
fn a_region_is_failed_over_correctly_and_in_the_same_way_again_for_a_seed() {
    let arguments = ["--world=three-regions", "--seconds=8"];
    let (first, second) = (recorded(1, &arguments), recorded(1, &arguments));
    assert!(first == second, "{}\n{}", first.1, second.1);
}

/// Whether one of the seeds finds the bug, by a violation of this invariant.
fn is_found(bug: &str, arguments: &[&str], seeds: std::ops::Range<u64>, invariant: &str) {
    let bug = format!("--bug={bug}");
    let mut said = String::new();
    for seed in seeds {
        let (says, is_well) = run(seed, &[arguments, &[&bug]].concat());
        if !is_well && says.contains(invariant) {
            return;
        }
        said = says;
    }
    panic!("the bug was not found: {said}");
}

#[test]
fn acknowledgement_before_the_fsync_is_found() {
    let arguments = ["--seconds=4"];
    is_found("acknowledge-before-fsync", &arguments, 1..6, "VIOLATED  acknowledged writes");
}

#[test]
fn answer_without_a_lease_is_found() {
    let arguments = ["--world=three-regions", "--seconds=8"];
    is_found("answer-without-lease", &arguments, 1..6, "VIOLATED  strict serializability");
}
