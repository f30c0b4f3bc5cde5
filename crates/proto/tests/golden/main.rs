//! The bytes of every message that is sent, and of those stored ones that `src/batch.rs` and the
//! consensus crate's `wire.rs` do not pin. Nodes of different versions talk to each other and read
//! each other's disks: where a test here fails, the format has changed, so change the format back
//! and not the test.
//!
//! One module a file of `/proto`. The expected bytes are put together from (field number, wire
//! type, value) without prost, to be read beside it. Structs are written out in full, so that a new
//! field does not compile until it is pinned.

#![allow(clippy::unwrap_used, reason = "tests may; the helpers here are no test functions")]

mod admin;
mod changes;
mod directory;
mod fields;
mod kv_connect;
mod log;
mod queue;
mod raft;
mod shard;
mod shipping;

/// Reads only the names: that each message named in a file of `/proto` is built somewhere in its
/// module.
#[test]
fn no_message_is_forgotten() {
    macro_rules! files {
        ($($name:literal),*) => {
            [$((
                $name,
                include_str!(concat!("../../../../proto/", $name, ".proto")),
                include_str!(concat!($name, ".rs")),
            )),*]
        };
    }
    let files = files![
        "raft",
        "shard",
        "shipping",
        "admin",
        "changes",
        "kv_connect",
        "log",
        "directory",
        "queue"
    ];
    // Pinned in `src/batch.rs`, and among the entries of `raft.rs`.
    let elsewhere = ["log::RequestRow {", "log::Entry {"];
    let all: Vec<_> =
        std::fs::read_dir("../../proto").unwrap().map(|file| file.unwrap().file_name()).collect();
    for file in all {
        let file = file.into_string().unwrap();
        assert!(
            files.iter().any(|(name, ..)| file == format!("{name}.proto")),
            "no module here pins {file}"
        );
    }
    for (module, proto, tests) in files {
        let names = proto
            .lines()
            .filter_map(|line| line.strip_prefix("message ")?.split_whitespace().next());
        let built: Vec<_> = names.map(|name| format!("{module}::{name} {{")).collect();
        assert!(!built.is_empty(), "no messages found in {module}.proto");
        for message in built {
            assert!(
                tests.contains(&message) || elsewhere.contains(&message.as_str()),
                "`{message}` is not pinned"
            );
        }
    }
}
