//! The files of this tree.

use std::path::{Path, PathBuf};

/// Folders that hold nothing of the tree's own.
const FOREIGN: &[&str] = &["node_modules", "target", ".git"];

/// A text file of the tree, by its path from the root.
#[derive(Debug, Clone)]
pub struct File {
    pub path: String,
    pub text: String,
}

/// The folder of the workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// All files with this extension in these folders or at these paths, in the order of their paths.
///
/// # Errors
/// When a folder or a file cannot be read, or a file is not UTF-8.
pub fn files(places: &[&str], extension: &str) -> std::io::Result<Vec<File>> {
    let root = root();
    let mut pending: Vec<PathBuf> = places.iter().map(|place| root.join(place)).collect();
    let mut files = Vec::new();
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                let entry = entry?.path();
                if !FOREIGN.iter().any(|foreign| entry.ends_with(foreign)) {
                    pending.push(entry);
                }
            }
        } else if path.extension().is_some_and(|found| found == extension) {
            let text = std::fs::read_to_string(&path)?;
            let path = path.strip_prefix(&root).unwrap_or(&path);
            files.push(File { path: path.to_string_lossy().into_owned(), text });
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// Whether a source file holds tests, or what only tests use.
pub fn is_test(path: &str) -> bool {
    let mut parts = path.split('/').map(|part| part.strip_suffix(".rs").unwrap_or(part));
    parts.any(|part| {
        part == "tests" || part == "testing" || part.ends_with("_tests") || part == "benches"
    })
}
