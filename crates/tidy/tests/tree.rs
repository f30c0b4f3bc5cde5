//! Checks of this tree's sources and documents.

#![allow(clippy::unwrap_used, reason = "a test")]

use meridian_tidy::packages::Allowed;
use meridian_tidy::tree::{self, File};
use meridian_tidy::{documents, modules, packages, sources, stored_keys, words};

/// The crates of the workspace that each crate may use.
const LADDER: &[(&str, Allowed)] = &[
    ("meridian-types", Allowed::Only(&[])),
    ("meridian-values", Allowed::Only(&[])),
    ("meridian-memory", Allowed::Only(&[])),
    ("meridian-proto", Allowed::Only(&["meridian-types"])),
    ("meridian-txn", Allowed::Only(&["meridian-types", "meridian-values"])),
    ("meridian-shipping", Allowed::Only(&["meridian-types"])),
    ("meridian-directory", Allowed::Only(&["meridian-types"])),
    ("meridian-failover", Allowed::Only(&["meridian-types", "meridian-directory"])),
    ("meridian-placement", Allowed::Only(&["meridian-types", "meridian-directory"])),
    ("meridian-queue", Allowed::Only(&["meridian-types"])),
    ("meridian-pki", Allowed::Only(&["meridian-types"])),
    ("meridian-vault", Allowed::Only(&[])),
    ("meridian-rocks-env", Allowed::Only(&["meridian-vault"])),
    (
        "meridian-storage",
        Allowed::Only(&[
            "meridian-types",
            "meridian-proto",
            "meridian-txn",
            "meridian-vault",
            "meridian-rocks-env",
        ]),
    ),
    (
        "meridian-consensus",
        Allowed::Only(&["meridian-types", "meridian-proto", "meridian-storage"]),
    ),
    ("meridian-wan", Allowed::Only(&[])),
    ("meridian-net", Allowed::Only(&["meridian-types", "meridian-pki"])),
    (
        "meridian-gateway",
        Allowed::Only(&[
            "meridian-types",
            "meridian-values",
            "meridian-proto",
            "meridian-net",
            "meridian-queue",
        ]),
    ),
    (
        "meridian-config",
        Allowed::Only(&[
            "meridian-types",
            "meridian-values",
            "meridian-pki",
            "meridian-net",
            "meridian-memory",
            "meridian-directory",
            "meridian-gateway",
            "meridian-vault",
        ]),
    ),
    (
        "meridian-node",
        Allowed::Only(&[
            "meridian-types",
            "meridian-pki",
            "meridian-memory",
            "meridian-proto",
            "meridian-txn",
            "meridian-shipping",
            "meridian-directory",
            "meridian-failover",
            "meridian-placement",
            "meridian-queue",
            "meridian-vault",
            "meridian-storage",
            "meridian-consensus",
            "meridian-values",
            "meridian-wan",
            "meridian-net",
            "meridian-gateway",
            "meridian-config",
        ]),
    ),
    ("meridian-kv-client", Allowed::Only(&["meridian-types", "meridian-proto", "meridian-net"])),
    (
        "meridian-cron",
        Allowed::Only(&["meridian-types", "meridian-proto", "meridian-net", "meridian-kv-client"]),
    ),
    ("meridian-bench", Allowed::Only(&["meridian-types", "meridian-proto", "meridian-kv-client"])),
    ("meridian-checker", Allowed::Only(&["meridian-types"])),
    ("meridian-sim", Allowed::Anything),
    ("meridian-sim-kernel", Allowed::Only(&[])),
    (
        "meridian-conformance",
        Allowed::Only(&[
            "meridian-types",
            "meridian-queue",
            "meridian-proto",
            "meridian-txn",
            "meridian-storage",
            "meridian-net",
            "meridian-gateway",
            "meridian-kv-client",
        ]),
    ),
    ("meridian-sim-nodes", Allowed::Anything),
    (
        "meridian-drills",
        Allowed::Only(&[
            "meridian-types",
            "meridian-pki",
            "meridian-config",
            "meridian-proto",
            "meridian-directory",
            "meridian-wan",
            "meridian-net",
            "meridian-kv-client",
            "meridian-checker",
        ]),
    ),
    (
        "meridian",
        Allowed::Only(&[
            "meridian-types",
            "meridian-pki",
            "meridian-values",
            "meridian-directory",
            "meridian-failover",
            "meridian-config",
            "meridian-node",
            "meridian-proto",
            "meridian-wan",
            "meridian-net",
            "meridian-kv-client",
            "meridian-cron",
            "meridian-bench",
            "meridian-drills",
        ]),
    ),
    ("meridian-tests", Allowed::Anything),
    ("meridian-tidy", Allowed::Only(&[])),
    // In the place of a library's dependency.
    ("base2histogram", Allowed::Only(&[])),
];

/// Libraries that a few crates keep to themselves, so that no other knows of them.
const OWNED: &[(&str, &[&str])] = &[
    ("openraft", &["meridian-consensus"]),
    ("rocksdb", &["meridian-storage", "meridian-rocks-env"]),
    ("librocksdb-sys", &["meridian-rocks-env"]),
    ("aes", &["meridian-vault"]),
    ("ctr", &["meridian-vault"]),
];

/// The rooms of node, from the lowest floor. The code of one uses those below it.
const NODE_STAIR: &[&str] = &[
    "time_budget",
    "host",
    "network",
    "replication",
    "cluster_view",
    "divergence",
    "read",
    "write",
    "queues",
    "shard",
    "watches",
    "changes",
    "routing",
    "webhooks",
    "placement",
    "directory_group",
    "background",
    "rpc",
    "process",
];

/// Names of code of others in documents.
const FOREIGN: &[&str] = &[
    // openraft
    "ReadPolicy",
    "Trigger",
    "drain_acked",
    "drain_satisfied",
    "get_log_id_range",
    "handle_append_entries",
    "handle_get_linearizer",
    "handle_vote_req",
    "last_quorum_acked_time",
    "notify_heartbeat_progress",
    "transfer_leader",
    "transfer_to",
    "trigger_transfer_leader",
    "update_conflicting",
    // RocksDB
    "EncryptedEnv",
    "FileSystem",
    "manual_wal_flush",
    "memtable_insert_with_hint_prefix_extractor",
    // Node
    "NODE_EXTRA_CA_CERTS",
    // Linux, HTTP, tokio
    "CAP_SYS_NICE",
    "RLIMIT_NICE",
    "Forwarded",
    "current_thread",
];

/// The Rust sources of the tree.
fn rust() -> Vec<File> {
    let files = tree::files(&["crates", "tests", "scripts/lib/mutants", "fuzz"], "rs").unwrap();
    assert!(files.len() > 300, "only {} files were found", files.len());
    files
}

fn documents() -> Vec<File> {
    let files =
        tree::files(&["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs", "deploy"], "md");
    let files = files.unwrap();
    assert!(files.len() > 15, "only {} documents were found", files.len());
    files
}

fn assert_none(violations: Vec<String>) {
    let (found, listed) = (violations.len(), violations.join("\n"));
    assert!(violations.is_empty(), "{found} violations:\n{listed}");
}

#[test]
fn crates_depend_only_on_those_below_them() {
    let packages = packages::of_workspace(&tree::root()).unwrap();
    assert!(packages.len() >= 11, "cargo knows only {} crates", packages.len());
    assert_none(packages::violations(&packages, LADDER, OWNED));
}

/// An alpha promises nothing to its own parts.
#[test]
fn all_parts_of_openraft_are_of_the_version_that_is_named() {
    let text = |name: &str| std::fs::read_to_string(tree::root().join(name)).unwrap();
    let (manifest, lock) = (text("Cargo.toml"), text("Cargo.lock"));
    let named = manifest.split_once("openraft = { version = \"=").unwrap().1;
    let named = named.split_once('"').unwrap().0;
    let parts = lock.split("[[package]]").filter(|part| part.contains("name = \"openraft"));
    let others: Vec<String> = parts
        .clone()
        .filter(|part| !part.contains(&format!("version = \"{named}\"")))
        .map(str::to_owned)
        .collect();
    assert!(parts.count() >= 4);
    assert_none(others);
}

#[test]
fn files_are_short_and_modules_have_names_that_say_something() {
    assert_none(rust().iter().flat_map(sources::violations).collect());
}

#[test]
fn every_file_says_what_it_is_for() {
    assert_none(rust().iter().filter_map(sources::has_no_head).collect());
}

#[test]
fn pure_crates_take_time_and_chance_as_arguments_and_open_nothing() {
    assert_none(rust().iter().flat_map(sources::impurities).collect());
}

#[test]
fn stored_keys_are_in_the_registry_alone() {
    assert_none(rust().iter().flat_map(stored_keys::unregistered).collect());
}

#[test]
fn only_the_crate_for_it_listens_and_dials() {
    // Drills reserve ports for the nodes that they start.
    assert_none(rust().iter().flat_map(sources::sockets).collect());
}

#[test]
fn no_modules_of_a_folder_import_each_other_in_a_circle() {
    let rust = rust();
    let crates = rust.iter().filter_map(|file| file.path.strip_suffix("/src/lib.rs"));
    let circles = crates.flat_map(|folder| {
        modules::circles(folder, &modules::arrows(&format!("{folder}/src"), &rust))
    });
    assert_none(circles.collect());
}

#[test]
fn no_room_of_the_node_imports_one_above_it() {
    let arrows = modules::arrows("crates/node/src", &rust());
    assert_none(modules::upward("node", NODE_STAIR, &arrows));
}

#[test]
fn the_list_of_modules_at_the_head_of_a_crate_is_complete() {
    let libs = rust().into_iter().filter(|file| file.path.ends_with("/src/lib.rs"));
    assert_none(libs.flat_map(|lib| modules::unlisted(&lib)).collect());
}

#[test]
fn prose_and_names_have_nouns_and_not_pronouns() {
    let (rust, documents) = (rust(), documents());
    assert_none(rust.iter().chain(&documents).flat_map(words::violations).collect());
}

#[test]
fn comments_begin_with_the_noun_that_they_describe() {
    let (rust, proto) = (rust(), tree::files(&["proto"], "proto").unwrap());
    assert_none(rust.iter().chain(&proto).flat_map(words::headless).collect());
}

#[test]
fn names_can_be_read_at_once() {
    assert_none(rust().iter().flat_map(words::long_names).collect());
}

#[test]
fn links_in_documents_lead_somewhere() {
    let root = tree::root();
    assert_none(
        documents().iter().flat_map(|document| documents::broken_links(document, &root)).collect(),
    );
}

#[test]
fn names_of_code_in_documents_are_those_of_the_code() {
    let mut sources = rust();
    for (places, extension) in [
        (&["proto"][..], "proto"),
        (&["crates", "tests", "Cargo.toml"][..], "toml"),
        (&["deploy"][..], "toml"),
        (&["scripts"][..], "sh"),
        (&["tests"][..], "ts"),
    ] {
        sources.extend(tree::files(places, extension).unwrap());
    }
    let mut words = documents::words(sources.iter());
    words.extend(FOREIGN);
    assert_none(
        documents()
            .iter()
            .flat_map(|document| documents::dangling_names(document, &words))
            .collect(),
    );
}

#[test]
fn durations_in_documents_are_those_of_the_code() {
    let rust = rust();
    assert_none(
        documents()
            .iter()
            .flat_map(|document| documents::wrong_durations(document, &rust))
            .collect(),
    );
}

/// Each case that the table of Deno's own tests names, behind the program that has it.
#[test]
fn cases_of_deno_have_cases_here() {
    let table = tree::files(&["tests/clients/kv_test.md"], "md").unwrap();
    let programs = tree::files(&["tests/clients"], "ts").unwrap();
    assert_none(documents::missing_cases(&table[0], &programs));
}
