//! The dependencies between the crates are the architecture.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::sources::PURE;

/// The crates of the workspace that a crate may use.
#[derive(Debug, Clone, Copy)]
pub enum Allowed {
    Only(&'static [&'static str]),
    Anything,
}

/// A crate of the workspace, as cargo sees it.
#[derive(Debug)]
pub struct Package {
    pub name: String,
    pub dependencies: Vec<Dependency>,
}

#[derive(Debug)]
pub struct Dependency {
    pub name: String,
    /// For tests, examples and benches only.
    pub dev: bool,
}

/// Libraries that no pure crate may use.
const IMPURE: &[&str] = &["tokio", "tonic", "rocksdb"];

/// The forbidden dependencies, one sentence each, by the ladder of crates and the owners of
/// libraries. Dev-dependencies may point anywhere in the workspace, but an owned library stays out
/// of the tests of others too.
pub fn violations(
    packages: &[Package],
    ladder: &[(&str, Allowed)],
    owned: &[(&str, &[&str])],
) -> Vec<String> {
    let members: BTreeSet<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    let mut violations = Vec::new();
    for package in packages {
        let name = package.name.as_str();
        let allowed = match ladder.iter().find(|(known, _)| *known == name) {
            Some((_, Allowed::Only(allowed))) => *allowed,
            Some((_, Allowed::Anything)) => continue,
            None => {
                violations.push(format!("{name} is not in the ladder: say what it may use"));
                continue;
            }
        };
        let is_pure = name.strip_prefix("meridian-").is_some_and(|name| PURE.contains(&name));
        for Dependency { name: used, dev } in &package.dependencies {
            let used = used.as_str();
            if !dev && members.contains(used) && !allowed.contains(&used) {
                violations.push(format!("{name} may not use {used}"));
            }
            if let Some((_, owners)) = owned.iter().find(|(of, _)| *of == used)
                && !owners.contains(&name)
            {
                let owners = owners.join(" and ");
                violations.push(format!("{name} may not use {used}: only {owners} does"));
            }
            if !dev && is_pure && IMPURE.contains(&used) {
                violations.push(format!("{name} is pure and may not use {used}"));
            }
        }
    }
    violations
}

/// The crates of the workspace in this folder. It needs neither a registry nor a lock file.
///
/// # Errors
/// The output of cargo, or why it cannot be read.
pub fn of_workspace(root: &Path) -> Result<Vec<Package>, String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root)
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let metadata: Value =
        serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
    let packages = metadata.get("packages").and_then(Value::as_array);
    let packages = packages.and_then(|packages| packages.iter().map(read).collect());
    packages.ok_or_else(|| "cargo describes its packages in another way".to_owned())
}

fn read(package: &Value) -> Option<Package> {
    let dependencies = package.get("dependencies")?.as_array()?.iter().map(|dependency| {
        // The package's own name: a rename changes only what the code calls it.
        let name = dependency.get("name")?.as_str()?.to_owned();
        Some(Dependency { name, dev: dependency.get("kind")?.as_str() == Some("dev") })
    });
    let dependencies = dependencies.collect::<Option<_>>()?;
    Some(Package { name: package.get("name")?.as_str()?.to_owned(), dependencies })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forbidden_dependencies_are_found() {
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
        let ladder: &[(&str, Allowed)] = &[
            ("meridian-types", Allowed::Only(&[])),
            ("meridian-proto", Allowed::Only(&["meridian-types"])),
            ("meridian-txn", Allowed::Only(&["meridian-types"])),
            ("meridian-shipping", Allowed::Only(&["meridian-types"])),
            ("meridian-storage", Allowed::Only(&["meridian-types"])),
            ("meridian-gateway", Allowed::Only(&["meridian-types"])),
            ("meridian-node", Allowed::Only(&["meridian-types"])),
            ("meridian-tests", Allowed::Anything),
        ];
        let owned: [(&str, &[&str]); 2] =
            [("openraft", &["meridian-consensus"]), ("rocksdb", &["meridian-storage", "meridian"])];
        assert_eq!(
            violations(&packages, ladder, &owned),
            [
                "meridian-proto may not use meridian-node",
                "meridian-node may not use openraft: only meridian-consensus does",
                "meridian-gateway may not use rocksdb: only meridian-storage and meridian does",
                "meridian-txn is pure and may not use tokio",
                "meridian-newcomer is not in the ladder: say what it may use",
            ]
        );
    }
}
