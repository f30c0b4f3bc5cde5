//! The dependencies between the crates are the architecture: section 10 of the design, as a test.
//!
//! It also holds the few rules about source files that no lint of the compiler knows.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// What each crate of the workspace may use of the others.
const MAY_USE: &[(&str, Allowed)] = &[
    ("meridian-types", Allowed::Only(&[])),
    ("meridian-memory", Allowed::Only(&[])),
    ("meridian-proto", Allowed::Only(&["meridian-types"])),
    ("meridian-txn", Allowed::Only(&["meridian-types"])),
    ("meridian-shipping", Allowed::Only(&["meridian-types"])),
    ("meridian-failover", Allowed::Only(&["meridian-types"])),
    ("meridian-storage", Allowed::Only(&["meridian-types", "meridian-proto", "meridian-txn"])),
    (
        "meridian-consensus",
        Allowed::Only(&["meridian-types", "meridian-proto", "meridian-storage"]),
    ),
    ("meridian-gateway", Allowed::Only(&["meridian-types", "meridian-proto"])),
    (
        "meridian-node",
        Allowed::Only(&[
            "meridian-types",
            "meridian-memory",
            "meridian-proto",
            "meridian-txn",
            "meridian-shipping",
            "meridian-failover",
            "meridian-storage",
            "meridian-consensus",
            "meridian-gateway",
        ]),
    ),
    ("meridian-bench", Allowed::Only(&["meridian-types", "meridian-proto"])),
    ("meridian-checker", Allowed::Only(&["meridian-types"])),
    ("meridian-sim", Allowed::Anything),
    ("meridian-drills", Allowed::Anything),
    (
        "meridian",
        Allowed::Only(&[
            "meridian-types",
            "meridian-failover",
            "meridian-node",
            "meridian-proto",
            "meridian-bench",
            "meridian-drills",
        ]),
    ),
    ("meridian-tests", Allowed::Anything),
    // In the place of a library's dependency.
    ("base2histogram", Allowed::Only(&[])),
];

/// Libraries that one crate keeps to itself, so that no other knows of them.
const OWNED: &[(&str, &str)] =
    &[("openraft", "meridian-consensus"), ("rocksdb", "meridian-storage")];

/// Crates that are state machines: time, disk and network are arguments there.
const PURE: &[&str] = &[
    "meridian-types",
    "meridian-txn",
    "meridian-shipping",
    "meridian-failover",
    "meridian-checker",
    "meridian-sim",
];

/// What a pure crate has no business with.
const IMPURE: &[&str] = &["tokio", "tonic", "rocksdb"];

/// The longest source file; long before it there is a seam to be found.
const MAX_LINES: usize = 900;

/// Names of modules that say nothing of what is in them.
const EMPTY_NAMES: &[&str] = &["util", "utils", "common", "misc"];

#[derive(Clone, Copy)]
enum Allowed {
    Only(&'static [&'static str]),
    Anything,
}

struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

struct Dependency {
    name: String,
    /// For tests, examples and benches only.
    dev: bool,
}

/// What is wrong with the dependencies, one sentence each. Dev-dependencies may point anywhere in
/// the workspace, but an owned library stays out of the tests of others too.
fn dependency_violations(packages: &[Package]) -> Vec<String> {
    let members: BTreeSet<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    let mut violations = Vec::new();
    for package in packages {
        let name = package.name.as_str();
        let allowed = match MAY_USE.iter().find(|(known, _)| *known == name) {
            Some((_, Allowed::Only(allowed))) => *allowed,
            Some((_, Allowed::Anything)) => continue,
            None => {
                violations.push(format!(
                    "{name} is not in the table: say in layering.rs what it may use"
                ));
                continue;
            }
        };
        for dependency in &package.dependencies {
            let used = dependency.name.as_str();
            if !dependency.dev && members.contains(used) && !allowed.contains(&used) {
                violations.push(format!("{name} may not use {used}"));
            }
            if let Some((_, owner)) =
                OWNED.iter().find(|(owned, owner)| *owned == used && *owner != name)
            {
                violations.push(format!("{name} may not use {used}: only {owner} does"));
            }
            if !dependency.dev && PURE.contains(&name) && IMPURE.contains(&used) {
                violations.push(format!("{name} is pure and may not use {used}"));
            }
        }
    }
    violations
}

/// What is wrong with one source file.
fn source_violations(path: &Path, text: &str) -> Vec<String> {
    let mut violations = Vec::new();
    let lines = text.lines().count();
    if lines > MAX_LINES {
        violations
            .push(format!("{} has {lines} lines, {MAX_LINES} at most are allowed", path.display()));
    }
    for module in text.lines().filter_map(declared_module) {
        if EMPTY_NAMES.contains(&module) {
            violations.push(format!(
                "{} has a module called {module}: name it for what it holds",
                path.display()
            ));
        }
    }
    violations
}

/// The name in `mod name;`, `pub(in path) mod name {` and the like.
fn declared_module(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let line = match line.strip_prefix("pub(") {
        Some(scoped) => scoped.split_once(')')?.1,
        None => line.strip_prefix("pub ").unwrap_or(line),
    };
    let name = line.trim_start().strip_prefix("mod ")?;
    name.split(|c: char| !(c.is_alphanumeric() || c == '_')).next()
}

fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The crates of this workspace, as cargo sees them. `--no-deps` needs neither a registry nor a
/// lock file.
fn workspace_packages() -> Option<Vec<Package>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(workspace_root())
        .output()
        .ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).ok()?;
    metadata.get("packages")?.as_array()?.iter().map(read_package).collect()
}

fn read_package(package: &Value) -> Option<Package> {
    let dependencies = package.get("dependencies")?.as_array()?.iter().map(|dependency| {
        // The package's own name: a rename changes only what the code calls it.
        let name = dependency.get("name")?.as_str()?.to_owned();
        Some(Dependency { name, dev: dependency.get("kind")?.as_str() == Some("dev") })
    });
    Some(Package {
        name: package.get("name")?.as_str()?.to_owned(),
        dependencies: dependencies.collect::<Option<_>>()?,
    })
}

/// Every Rust file under a folder.
fn rust_files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                if !path.ends_with("node_modules") && !path.ends_with("target") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    Ok(files)
}

#[test]
fn crates_depend_only_on_those_above_them() {
    let packages = workspace_packages().expect("cargo metadata");
    assert!(packages.len() >= 11, "cargo knows only {} crates", packages.len());
    let violations = dependency_violations(&packages);
    assert!(violations.is_empty(), "{violations:#?}");
}

#[test]
fn files_are_short_and_named_for_what_they_hold() {
    let root = workspace_root();
    let mut files = rust_files(&root.join("crates")).unwrap();
    assert!(files.len() > 50, "only {} files were found", files.len());
    if root.join("tests").is_dir() {
        files.extend(rust_files(&root.join("tests")).unwrap());
    }
    let violations: Vec<String> = files
        .iter()
        .flat_map(|path| source_violations(path, &std::fs::read_to_string(path).unwrap()))
        .collect();
    assert!(violations.is_empty(), "{violations:#?}");
}

#[test]
fn forbidden_dependencies_are_seen() {
    let package = |name: &str, dependencies: &[(&str, bool)]| Package {
        name: name.to_owned(),
        dependencies: dependencies
            .iter()
            .map(|&(name, dev)| Dependency { name: name.to_owned(), dev })
            .collect(),
    };
    let packages = [
        package("meridian-types", &[("serde", false), ("meridian-proto", true)]),
        package("meridian-proto", &[("meridian-node", false)]),
        package("meridian-node", &[("meridian-types", false), ("openraft", false)]),
        package("meridian-gateway", &[("rocksdb", true)]),
        package("meridian-txn", &[("tokio", false)]),
        package("meridian-shipping", &[("tokio", true)]),
        package("meridian-storage", &[("rocksdb", false)]),
        package("meridian-tests", &[("meridian-node", false), ("openraft", false)]),
        package("meridian-newcomer", &[]),
    ];
    assert_eq!(
        dependency_violations(&packages),
        [
            "meridian-proto may not use meridian-node",
            "meridian-node may not use openraft: only meridian-consensus does",
            "meridian-gateway may not use rocksdb: only meridian-storage does",
            "meridian-txn is pure and may not use tokio",
            "meridian-newcomer is not in the table: say in layering.rs what it may use",
        ]
    );
}

#[test]
fn long_files_and_empty_names_are_seen() {
    let path = Path::new("lib.rs");
    assert_eq!(source_violations(path, &"\n".repeat(MAX_LINES)), Vec::<String>::new());
    assert_eq!(source_violations(path, &"\n".repeat(MAX_LINES + 1)).len(), 1);
    for bad in
        ["mod util;", "pub(crate) mod common {", "  pub mod misc;", "pub(in crate::a) mod utils;"]
    {
        assert_eq!(source_violations(path, bad).len(), 1, "{bad}");
    }
    for good in [
        "mod commonly;",
        "use tokio_util::sync;",
        "// mod util;",
        "let common = 1;",
        "pub mod utility;",
    ] {
        assert_eq!(source_violations(path, good), Vec::<String>::new(), "{good}");
    }
}
