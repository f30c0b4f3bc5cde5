//! The copy of the tree that is built: all files that git does not ignore, as they are, and the
//! switch crate.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::mutant::Mutant;

const SWITCH_CRATE: &str = "mutant_switch";
const SWITCH_MANIFEST: &str = "[package]\nname = \"mutant_switch\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[lib]\npath = \"lib.rs\"\n";
const SWITCH_SOURCE: &str = include_str!("../switch/lib.rs");

/// Lints against code that is certain to fail: a mutant may have it.
const ALLOWED_LINTS: &str = "arithmetic_overflow = \"allow\"\nunconditional_panic = \"allow\"\n";

/// The copy.
#[derive(Debug)]
pub struct Tree {
    pub root: PathBuf,
    /// Changes with whatever is built of it.
    pub hash: u64,
    /// The files with mutants as they are without.
    pub sources: BTreeMap<String, String>,
}

impl Tree {
    /// Copies the tree at `from` to `root`. What is there already and the same is not touched, so
    /// that cargo does not build it again; the files with mutants are left to [`Tree::write`].
    pub fn copy(from: &Path, root: PathBuf, mutants: &[Mutant]) -> Result<Self> {
        let mutated: BTreeSet<&str> = mutants.iter().map(|mutant| mutant.file.as_str()).collect();
        let manifests = manifests(from, &mutated)?;
        let mut hasher = DefaultHasher::new();
        let mut sources = BTreeMap::new();
        let mut kept = BTreeSet::new();
        for path in files(from)? {
            let original = from.join(&path);
            let content = match fs::read(&original) {
                Ok(content) => content,
                // Deleted, but not for git yet.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => {
                    return Err(error).with_context(|| format!("reading {}", original.display()));
                }
            };
            if is_built(&path) {
                (&path, &content).hash(&mut hasher);
            }
            kept.insert(path.clone());
            if mutated.contains(path.as_str()) {
                sources.insert(
                    path,
                    String::from_utf8(content).context("a source that is not UTF-8")?,
                );
                continue;
            }
            let content = if path == "Cargo.toml" {
                root_manifest(&String::from_utf8(content)?)?.into_bytes()
            } else if manifests.contains(&path) {
                manifest(&path, &String::from_utf8(content)?).into_bytes()
            } else {
                content
            };
            write(&root.join(&path), &content)?;
            fs::set_permissions(root.join(&path), fs::metadata(&original)?.permissions())?;
        }
        for (name, content) in [("Cargo.toml", SWITCH_MANIFEST), ("lib.rs", SWITCH_SOURCE)] {
            let path = format!("{SWITCH_CRATE}/{name}");
            write(&root.join(&path), content.as_bytes())?;
            kept.insert(path);
        }
        SWITCH_SOURCE.hash(&mut hasher);
        remove_others(&root, &root, &kept)?;
        if let Some(missing) = mutated.iter().find(|path| !sources.contains_key(**path)) {
            bail!("{missing} has mutants, and is not among the files that git knows");
        }
        Ok(Self { root, hash: hasher.finish(), sources })
    }

    /// Writes a file with switches, if it is not like this already.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        write(&self.root.join(path), text.as_bytes())
    }
}

/// The files of the tree, relative to it.
fn files(tree: &Path) -> Result<Vec<String>> {
    let listed = Command::new("git")
        .current_dir(tree)
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output()
        .context("git does not run")?;
    ensure!(
        listed.status.success(),
        "git ls-files failed: {}",
        String::from_utf8_lossy(&listed.stderr)
    );
    let listed = String::from_utf8(listed.stdout).context("the name of a file is not UTF-8")?;
    Ok(listed.split_terminator('\0').map(str::to_owned).collect())
}

/// Whether a file is part of what is built or tested.
fn is_built(path: &str) -> bool {
    const NOT: [&str; 4] = ["docs/", "scripts/", ".ci/", ".cargo/mutants.toml"];
    !(NOT.iter().any(|start| path.starts_with(start)) || path.ends_with(".md"))
}

/// The manifests of the packages that have mutants.
fn manifests(tree: &Path, mutated: &BTreeSet<&str>) -> Result<BTreeSet<String>> {
    let manifest_of = |file: &&str| {
        let mut folders =
            Path::new(file).ancestors().skip(1).map(|folder| folder.join("Cargo.toml"));
        let manifest = folders.find(|manifest| tree.join(manifest).is_file());
        let manifest = manifest.with_context(|| format!("no package has {file}"))?;
        Ok(manifest.to_string_lossy().into_owned())
    };
    mutated.iter().map(manifest_of).collect()
}

/// The workspace with the switch crate, and without lints that refuse mutants.
fn root_manifest(text: &str) -> Result<String> {
    let with_member =
        text.replacen("members = [", &format!("members = [\n    \"{SWITCH_CRATE}\","), 1);
    let lints = "[workspace.lints.rust]\n";
    let changed = with_member.replacen(lints, &format!("{lints}{ALLOWED_LINTS}"), 1);
    ensure!(
        with_member != text && changed != with_member,
        "Cargo.toml has no list of members, or no lints"
    );
    Ok(changed)
}

/// A package that depends on the switch crate.
fn manifest(path: &str, text: &str) -> String {
    let up = "../".repeat(Path::new(path).components().count() - 1);
    let dependency =
        format!("[dependencies]\n{SWITCH_CRATE} = {{ path = \"{up}{SWITCH_CRATE}\" }}\n");
    if text.contains("[dependencies]\n") {
        text.replacen("[dependencies]\n", &dependency, 1)
    } else {
        format!("{text}\n{dependency}")
    }
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|there| there == content) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, content).with_context(|| format!("writing {}", path.display()))
}

/// Removes what an earlier tree had, and what tests left.
fn remove_others(root: &Path, folder: &Path, kept: &BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        let relative = path.strip_prefix(root)?.to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() {
            remove_others(root, &path, kept)?;
            if fs::read_dir(&path)?.next().is_none() {
                fs::remove_dir(&path)?;
            }
        } else if !kept.contains(&relative) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}
