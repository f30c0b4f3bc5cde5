//! Source files: how long they are, what their modules are called, and what pure crates keep out.

use std::sync::LazyLock;

use regex::Regex;

use crate::tree::{File, is_test};

/// The longest source file; long before it there is a seam to be found.
pub const MAX_LINES: usize = 500;

/// Names of modules that say nothing of what is in them.
const EMPTY_NAMES: &[&str] = &["util", "utils", "common", "misc", "helpers"];

/// Crates that are state machines: time, chance, disk and network are arguments there.
pub const PURE: &[&str] =
    &["types", "values", "txn", "shipping", "directory", "failover", "placement", "checker", "sim"];

/// Calls of the clock, of chance and of the system, whose results a pure crate takes as arguments.
static IMPURE: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let std = r"std::(?:fs|net|thread|process|env)\b|Instant::now|SystemTime|OpenOptions";
    let others = r"getrandom|now_v7|new_v4|thread_rng|rand::rng\b|std::time::\{?[^;]*Instant";
    Regex::new(&format!("{std}|{others}")).ok()
});

/// Sources that listen and dial: the crate `net` for all others, `wan`, which is a network, and the
/// search of drills for ports that no other program has.
const WITH_SOCKETS: &[&str] =
    &["crates/net/src/", "crates/wan/src/", "crates/drills/src/cluster/ports.rs"];

/// Names of types that listen or dial.
static SOCKETS: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"Tcp(?:Listener|Stream|Socket)|Http(?:Connector)|(?:Endpoint)::from_|(?:Server)::builder",
    )
    .ok()
});

/// Files that are too long, and modules whose name says nothing.
pub fn violations(file: &File) -> Vec<String> {
    let mut violations = Vec::new();
    let lines = file.text.lines().count();
    if lines > MAX_LINES {
        violations.push(format!("{} has {lines} lines, of {MAX_LINES} at most", file.path));
    }
    for module in file.text.lines().filter_map(declared_module) {
        if EMPTY_NAMES.contains(&module) {
            violations.push(format!("{}: name the module {module} for what it holds", file.path));
        }
    }
    violations
}

/// Whether a file begins with a sentence on what it is for. Tests say so by their names.
pub fn has_no_head(file: &File) -> Option<String> {
    let begins = file.text.starts_with("//!") || file.text.starts_with("#!");
    (!is_test(&file.path) && !begins).then(|| format!("{} does not say what it is for", file.path))
}

/// Clocks, chance, files and sockets in the sources of a pure crate, but for its tests and its own
/// program.
pub fn impurities(file: &File) -> Vec<String> {
    let is_pure = PURE.iter().any(|name| file.path.starts_with(&format!("crates/{name}/src/")));
    if !is_pure || is_test(&file.path) || file.path.ends_with("/main.rs") {
        return Vec::new();
    }
    let code = file.text.split("#[cfg(test)]").next().unwrap_or_default();
    let lines = code.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
    let found = lines.filter_map(|(index, line)| Some((index + 1, IMPURE.as_ref()?.find(line)?)));
    let said = found.map(|(line, found)| {
        format!("{}:{line}: {} is an argument in a pure crate", file.path, found.as_str())
    });
    said.collect()
}

/// Listeners, connections and dials in the sources of a crate that has others make them.
pub fn sockets(file: &File) -> Vec<String> {
    let is_source = file.path.starts_with("crates/") && !is_test(&file.path);
    if !is_source || WITH_SOCKETS.iter().any(|place| file.path.starts_with(place)) {
        return Vec::new();
    }
    let code = file.text.split("#[cfg(test)]").next().unwrap_or_default();
    let lines = code.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
    let found = lines.filter_map(|(index, line)| Some((index + 1, SOCKETS.as_ref()?.find(line)?)));
    let said = found.map(|(line, found)| {
        format!("{}:{line}: {} is for the crate net", file.path, found.as_str())
    });
    said.collect()
}

/// The name in `mod name;`, `pub(in path) mod name {` and the like.
pub fn declared_module(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let line = match line.strip_prefix("pub(") {
        Some(scoped) => scoped.split_once(')')?.1,
        None => line.strip_prefix("pub ").unwrap_or(line),
    };
    let name = line.trim_start().strip_prefix("mod ")?;
    name.split(|c: char| !(c.is_alphanumeric() || c == '_')).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn long_files_and_empty_names_are_found() {
        let of = |text: &str| violations(&file("lib.rs", text)).len();
        assert_eq!(of(&"\n".repeat(MAX_LINES)), 0);
        assert_eq!(of(&"\n".repeat(MAX_LINES + 1)), 1);
        for bad in [
            "mod util;",
            "pub(crate) mod common {",
            "  pub mod misc;",
            "pub(in crate::a) mod utils;",
        ] {
            assert_eq!(of(bad), 1, "{bad}");
        }
        for good in [
            "mod commonly;",
            "use tokio_util::sync;",
            "// mod util;",
            "let common = 1;",
            "pub mod utility;",
        ] {
            assert_eq!(of(good), 0, "{good}");
        }
    }

    #[test]
    fn a_file_without_a_head_is_found() {
        assert!(has_no_head(&file("crates/a/src/b.rs", "use std;")).is_some());
        assert!(has_no_head(&file("crates/a/src/b.rs", "//! What b is.\n")).is_none());
        assert!(has_no_head(&file("crates/a/src/b/tests.rs", "use std;")).is_none());
    }

    #[test]
    fn clocks_and_files_are_found_in_pure_crates_alone() {
        let now = "let now = std::time::Instant::now();";
        assert_eq!(impurities(&file("crates/txn/src/lib.rs", now)).len(), 1);
        assert_eq!(impurities(&file("crates/types/src/lib.rs", "use std::fs;")).len(), 1);
        assert_eq!(impurities(&file("crates/types/src/lib.rs", "Uuid::now_v7()")).len(), 1);
        assert_eq!(impurities(&file("crates/node/src/lib.rs", now)).len(), 0);
        assert_eq!(impurities(&file("crates/txn/src/tests.rs", now)).len(), 0);
        let tested = format!("#[cfg(test)]\nmod tests {{ {now} }}");
        assert_eq!(impurities(&file("crates/txn/src/lib.rs", &tested)).len(), 0);
    }
    #[test]
    fn sockets_are_found_outside_of_the_crates_that_have_them() {
        let dial = "TcpStream::connect(address)";
        assert_eq!(sockets(&file("crates/node/src/lib.rs", dial)).len(), 1);
        assert_eq!(sockets(&file("crates/net/src/stream.rs", dial)).len(), 0);
        assert_eq!(sockets(&file("crates/node/src/peers/tests.rs", dial)).len(), 0);
        let tested = format!("#[cfg(test)]\nmod tests {{ {dial} }}");
        assert_eq!(sockets(&file("crates/node/src/lib.rs", &tested)).len(), 0);
    }
}
