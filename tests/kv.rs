//! `meridian kv` against a real cluster, beside Deno.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::process::Stdio;

use meridian_proto::kv_connect as pb;
use meridian_tests::cluster::binary;
use meridian_tests::kv_connect::{DEFAULT_DATABASE, mutation};
use meridian_tests::{Cluster, ClusterOptions, READ_ONLY_TOKEN, TOKEN, clients};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

const ONE_REGION: ClusterOptions =
    ClusterOptions { topology: &[3], log_retention_mb: None, max_memory_mb: None };

/// A program that runs `meridian kv` on one database.
struct Kv {
    url: String,
}

struct Ran {
    succeeded: bool,
    out: String,
    error: String,
}

impl Kv {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.arg("kv").args(arguments).env("DENO_KV_DEFAULT_PATH", &self.url);
        command.env("DENO_KV_ACCESS_TOKEN", TOKEN).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    async fn run_with(mut command: Command, input: &[u8]) -> Ran {
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A command that does not read its input may be over by now.
        drop(stdin.write_all(input).await);
        drop(stdin);
        let output = child.wait_with_output().await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran {
            succeeded: output.status.success(),
            out: text(output.stdout),
            error: text(output.stderr),
        }
    }

    /// The output of a command that must succeed.
    async fn ok(&self, arguments: &[&str]) -> String {
        let ran = Self::run_with(self.command(arguments), b"").await;
        assert!(ran.succeeded && ran.error.is_empty(), "{arguments:?}: {}", ran.error);
        ran.out
    }

    /// As for a person at a terminal.
    async fn shown(&self, arguments: &[&str]) -> String {
        self.ok(&[arguments, &["--output", "inspect"]].concat()).await
    }

    /// Why a command fails that does.
    async fn error(&self, arguments: &[&str]) -> String {
        let ran = Self::run_with(self.command(arguments), b"").await;
        assert!(!ran.succeeded && ran.out.is_empty(), "{arguments:?}: {}", ran.out);
        ran.error
    }
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[tokio::test]
async fn values_are_set_shown_and_deleted_under_checks() {
    let cluster = Cluster::start(ONE_REGION).await;
    let kv = Kv { url: cluster.url(1) };

    let set = json(&kv.ok(&["set", "users", "42n", "{ name: 'Ada', tags: new Set([1n]) }"]).await);
    let versionstamp = set["versionstamp"].as_str().unwrap();
    assert_eq!(set["ok"], true);
    let shown = kv.shown(&["get", "[\"users\", 42n]"]).await;
    assert_eq!(
        shown,
        format!("{{ name: \"Ada\", tags: Set(1) {{ 1n }} }}\nversionstamp {versionstamp}\n")
    );
    let got = json(&kv.ok(&["get", "users", "42n", "--eventual"]).await);
    assert_eq!(got["key"][1], serde_json::json!({"type": "bigint", "value": "42"}));
    assert_eq!(got["value"]["value"]["name"]["value"], "Ada");
    assert_eq!(got["versionstamp"], versionstamp);

    // A word that looks like a number is one, quotes make it a string.
    assert_eq!(kv.shown(&["get", "users", "42"]).await, "null\n");
    let absent = json(&kv.ok(&["get", "users", "\"42n\""]).await);
    assert_eq!((&absent["value"], &absent["versionstamp"]), (&json("null"), &json("null")));

    for (arguments, value) in [
        (&["set", "u64", "7", "--u64"][..], "[Deno.KvU64: 7n]"),
        (&["set", "u64", "new Deno.KvU64(9n)"], "[Deno.KvU64: 9n]"),
        (&["set", "bytes", "ä", "--bytes"], "Uint8Array(2) [ 195, 164 ]"),
        (&["set", "json", "{\"a\": [1, null]}", "--json"], "{ a: [ 1, null ] }"),
        (&["set", "date", "new Date('2024-05-01')"], "2024-05-01T00:00:00.000Z"),
    ] {
        kv.ok(arguments).await;
        let shown = kv.shown(&["get", arguments[1]]).await;
        assert_eq!(shown.lines().next(), Some(value));
    }
    let from_stdin = kv.command(&["set", "file", "--value-file", "-"]);
    assert!(Kv::run_with(from_stdin, b"[\n  1,\n  2, // two\n]\n").await.succeeded);
    assert!(kv.shown(&["get", "file"]).await.starts_with("[ 1, 2 ]\n"));

    let stale = kv.error(&["set", "users", "42n", "1", "--if-versionstamp", "none"]).await;
    assert!(stale.contains("nothing was changed: the key has another versionstamp"), "{stale}");
    kv.ok(&["set", "users", "42n", "1", "--if-versionstamp", versionstamp]).await;
    kv.error(&["delete", "users", "42n", "--if-versionstamp", versionstamp]).await;
    kv.ok(&["delete", "users", "42n"]).await;
    assert_eq!(kv.shown(&["get", "users", "42n"]).await, "null\n");

    kv.ok(&["set", "soon", "1", "--expire-in", "1ms"]).await;
    meridian_tests::poll::until("it expires", std::time::Duration::from_secs(30), async || {
        let shown = kv.shown(&["get", "soon"]).await;
        if shown == "null\n" { Ok(()) } else { Err(shown) }
    })
    .await;
}

#[tokio::test]
async fn ranges_are_listed_counted_added_up_and_deleted() {
    let cluster = Cluster::start(ONE_REGION).await;
    let kv = Kv { url: cluster.url(1) };
    let client = cluster.client(2, DEFAULT_DATABASE);
    // ["item", n] for 2,500 numbers, each a u64, and one beside them.
    for chunk in (0..2500u64).collect::<Vec<_>>().chunks(500) {
        let sets = chunk.iter().map(|n| {
            let number =
                (n.to_string().parse::<f64>().unwrap().to_bits() ^ (1 << 63)).to_be_bytes();
            let key = [b"\x02item\0\x21", &number[..]].concat();
            let (set, le64) = (pb::MutationType::MSet, pb::ValueEncoding::VeLe64);
            mutation(set, &key, le64, &n.to_le_bytes())
        });
        let write = pb::AtomicWrite { mutations: sets.collect(), ..Default::default() };
        client.write(write).await.unwrap();
    }
    kv.ok(&["set", "jtem", "'beside'"]).await;

    let all = kv.ok(&["list"]).await;
    let keys: Vec<_> = all.lines().map(|line| json(line)["key"].clone()).collect();
    assert_eq!(keys.len(), 2501);
    assert!((0..2500).all(|at| keys[at][1]["value"] == at), "in order, each once");
    let backwards = kv.ok(&["list", "item", "--reverse"]).await;
    let backwards: Vec<_> = backwards.lines().map(|line| json(line)["key"].clone()).collect();
    assert!(backwards.iter().rev().eq(&keys[..2500]));

    let some =
        ["list", "item", "--start", "[\"item\", 3]", "--end", "[\"item\", 9]", "--limit", "2"];
    assert_eq!(
        kv.shown(&some).await,
        "[ \"item\", 3 ] => [Deno.KvU64: 3n]\n[ \"item\", 4 ] => [Deno.KvU64: 4n]\n"
    );
    assert_eq!(kv.shown(&["count", "item"]).await, "2500\n");
    assert_eq!(kv.ok(&["count"]).await, "{\"keys\":2501}\n");
    assert_eq!(kv.shown(&["sum", "item"]).await, "3123750n\n");
    assert_eq!(kv.shown(&["sum"]).await, "3123750n\nleft out: 1 other value\n");
    let used = kv.shown(&["du"]).await;
    let lines: Vec<Vec<&str>> =
        used.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[1], ["2500", "36.6", "KiB", "19.5", "KiB", "[", "\"item\"", "]"]);
    assert_eq!((lines[2][0], lines[3][0], lines.len()), ("1", "2501", 4), "{used}");

    // A reader that leaves ends the command, and is no failure.
    let mut listing = kv.command(&["list"]).spawn().unwrap();
    drop(listing.stdout.take());
    assert!(listing.wait().await.unwrap().success());

    let unconfirmed = kv.error(&["delete", "--prefix", "item"]).await;
    assert!(unconfirmed.contains("2500 keys that begin with"), "{unconfirmed}");
    let part = ["delete", "--prefix", "item", "--start", "[\"item\", 2000]", "--yes"];
    assert_eq!(kv.ok(&part).await, "{\"deleted\":500}\n");
    assert_eq!(kv.shown(&["delete", "--prefix", "item", "--yes"]).await, "2000 keys deleted\n");
    assert_eq!(kv.shown(&["delete", "--prefix", "item"]).await, "0 keys deleted\n");
    assert_eq!(kv.shown(&["list"]).await, "[ \"jtem\" ] => \"beside\"\n");
}

#[tokio::test]
async fn watch_shows_each_state_once_also_behind_the_restart_of_its_gateway() {
    let mut cluster = Cluster::start(ONE_REGION).await;
    let kv = Kv { url: cluster.url(2) };
    kv.ok(&["set", "a", "1"]).await;
    let mut watch = kv.command(&["watch", "['a']", "['b']", "-o", "inspect"]).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut shown = async || {
        let line = tokio::time::timeout(std::time::Duration::from_secs(60), lines.next_line());
        line.await.expect("a line in time").unwrap().expect("the watch goes on")
    };
    assert_eq!(
        (shown().await, shown().await),
        ("[ \"a\" ] => 1".into(), "[ \"b\" ] => null".into())
    );
    kv.ok(&["set", "b", "[2n]"]).await;
    assert_eq!(shown().await, "[ \"b\" ] => [ 2n ]");
    cluster.kill(2);
    cluster.restart(2);
    cluster.node_ready(2).await;
    let other = Kv { url: cluster.url(1) };
    other.ok(&["delete", "a"]).await;
    assert_eq!(shown().await, "[ \"a\" ] => null");
    let too_many: Vec<String> = (0..11).map(|at| format!("[{at}]")).collect();
    let too_many =
        [&["watch"], &too_many.iter().map(String::as_str).collect::<Vec<_>>()[..]].concat();
    let error = kv.error(&too_many).await;
    assert!(error.contains("The number of keys of one watch"), "{error}");
}

#[tokio::test]
async fn largest_values_are_listed_and_counted() {
    let cluster = Cluster::start(ONE_REGION).await;
    let kv = Kv { url: cluster.url(1) };
    let client = cluster.client(1, DEFAULT_DATABASE);
    // Small ones first, so that batches have grown when the large ones come.
    for at in 0..1500u64 {
        let key = [b"\x01", format!("{at:04}").as_bytes(), b"\0"].concat();
        let value = if at < 1300 { vec![1; 8] } else { vec![1; 65_536] };
        client.set(&key, &value).await.unwrap();
    }
    assert_eq!(kv.shown(&["count"]).await, "1500\n");
    let listed = kv.ok(&["list"]).await;
    assert_eq!(listed.lines().count(), 1500);
}

#[tokio::test]
async fn what_deno_writes_is_shown_as_deno_shows_it_and_the_other_way_round() {
    let cluster = Cluster::start(ONE_REGION).await;
    let url = cluster.url(1);
    let kv = Kv { url: url.clone() };
    let deno = async |verb: &str| {
        let mut command = clients::deno();
        command.arg(clients::program("formats.ts")).args([&url, verb]);
        clients::run(command).await
    };
    let written = deno("write").await;
    assert_eq!(kv.shown(&["list", "formats"]).await, written);
    for line in written.lines() {
        let (key, value) = line.split_once(" => ").unwrap();
        // Collections and dates do not print as they are written in a program.
        if value.contains("Z") || kv.shown(&["get", key]).await.contains("(2)") {
            continue;
        }
        kv.ok(&["set", key, value]).await;
    }
    assert_eq!(deno("read").await, written);
}

#[tokio::test]
async fn errors_say_what_was_wrong_and_where() {
    let cluster = Cluster::start(ONE_REGION).await;
    let kv = Kv { url: cluster.url(1) };
    for (arguments, expected) in [
        (&["get", "[\"a\", {}]"][..], "part 2 of the key is none"),
        (
            &["set", "a", "{ b: }"],
            "this is not a value: expected a value, found `}`, at character 6",
        ),
        (&["set", "a", "{a: 1}", "--json"], "the value is not JSON: key must be a string"),
        (&["set", "a", "-1", "--u64"], "`-1` is not a whole number from 0 to"),
        (&["set", "a"], "a key and a value are needed"),
        (&["list", "a", "--start", "b"], "--start [ \"b\" ] does not begin with the prefix"),
        (&["get", "a", "--url", "http://127.0.0.1:1"], "cannot connect to 127.0.0.1:1"),
        (&["get", "a", "--database", "nowhere"], "status 404"),
        (&["get", "a", "--token-file", "/nowhere"], "the file /nowhere cannot be read"),
        (
            &["set", &"k".repeat(3000), "1"],
            "The size of a key to write exceeds the limit of 2048 bytes",
        ),
    ] {
        let error = kv.error(arguments).await;
        assert!(error.contains(expected), "{arguments:?}: {error}");
    }
    let large = format!("'{}'", "x".repeat(70_000));
    let large =
        Kv::run_with(kv.command(&["set", "a", "--value-file", "-"]), large.as_bytes()).await;
    assert!(
        large.error.contains("the value has 70006 bytes; 65536 are allowed"),
        "{}",
        large.error
    );

    let mut without_token = kv.command(&["get", "a"]);
    without_token.env_remove("DENO_KV_ACCESS_TOKEN");
    let ran = Kv::run_with(without_token, b"").await;
    assert!(ran.error.contains("there is no access token"), "{}", ran.error);
    let from_stdin = kv.command(&["set", "a", "1", "--token-file", "-"]);
    let ran = Kv::run_with(from_stdin, format!("{READ_ONLY_TOKEN}\n").as_bytes()).await;
    assert!(ran.error.contains("status 403"), "{}", ran.error);
    let ran =
        Kv::run_with(kv.command(&["get", "a", "--token-file", "-"]), b"not-a-known-token").await;
    assert!(ran.error.contains("Invalid access token."), "{}", ran.error);
}
