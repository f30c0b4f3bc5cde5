//! The programs of the real clients, and their runtimes.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::TOKEN;

/// A program that hangs is ended, with its output so far.
pub const DEADLINE: Duration = Duration::from_secs(150);

/// Deno itself, with its native client.
pub fn deno() -> Command {
    deno_by("run")
}

fn deno_by(subcommand: &str) -> Command {
    let mut command = Command::new(place("MERIDIAN_DENO"));
    command
        .env("DENO_NO_UPDATE_CHECK", "1")
        .env("DENO_KV_ACCESS_TOKEN", TOKEN)
        .env("NO_COLOR", "1");
    command.args([
        subcommand,
        "--quiet",
        "--no-config",
        "--no-lock",
        "--unstable-kv",
        "--allow-net",
        "--allow-env",
    ]);
    command.arg("--allow-read");
    command
}

/// Deno with the module that a gateway serves.
pub fn deno_with_module(url: &str) -> Command {
    deno_with_module_by("run", url)
}

/// As [`deno_with_module`], by another subcommand of Deno.
pub fn deno_with_module_by(subcommand: &str, url: &str) -> Command {
    let mut command = deno_by(subcommand);
    command.arg(format!("--allow-import={}", host_of(url)));
    command.arg("--reload").arg("--preload").arg(format!("{url}/.meridian/v1/deno.js"));
    command
}

fn host_of(url: &str) -> &str {
    url.split_once("://").map_or(url, |(_, host)| host)
}

/// Node, which finds `@deno/kv` through `MERIDIAN_NODE_MODULES`.
pub fn node() -> Command {
    with_modules("node".into())
}

/// Bun, likewise.
pub fn bun() -> Command {
    with_modules(Path::new(&place("MERIDIAN_NODE_MODULES")).join(".bin/bun"))
}

fn with_modules(runtime: PathBuf) -> Command {
    let mut command = Command::new(runtime);
    let modules = place("MERIDIAN_NODE_MODULES");
    command.env("MERIDIAN_NODE_MODULES", modules).env("DENO_KV_ACCESS_TOKEN", TOKEN);
    command
}

/// A Python that has `denokv`.
pub fn python() -> Command {
    let mut command = Command::new(place("MERIDIAN_PYTHON"));
    command.env("DENO_KV_ACCESS_TOKEN", TOKEN);
    command
}

/// A program of the folder `clients`.
pub fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name)
}

/// Runs a program to its end, and returns its output.
///
/// # Panics
/// When the program fails: it found an error.
pub async fn run(mut command: Command) -> String {
    let shown = format!("{:?}", command.as_std());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let ended =
        command.spawn().unwrap_or_else(|error| panic!("{shown}: {error}")).wait_with_output();
    let output = match tokio::time::timeout(DEADLINE, ended).await {
        Ok(output) => output.expect("the output of a program"),
        Err(_) => panic!("{shown} did not end within {} s", DEADLINE.as_secs()),
    };
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{shown}: {}\n{stdout}\n{stderr}", output.status);
    stdout.into_owned()
}

fn place(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!("{variable} is not set: run the tests with scripts/test, which installs the clients")
    })
}
