//! Where contexts are kept: a folder of the user's, with a file for each cluster.

use std::path::{Path, PathBuf};

/// The file of this folder that names the context of the latest login.
const LATEST: &str = "latest";

/// The folder of contexts: `$XDG_CONFIG_HOME/meridian` or `~/.config/meridian`. `None`: the user has
/// no home.
pub(crate) fn folder() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let base = variable("XDG_CONFIG_HOME").map(PathBuf::from);
    let base = base.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".config")));
    Some(base?.join("meridian"))
}

/// The file of a context: the file itself, or that of the name.
pub(crate) fn file(named: &str) -> PathBuf {
    let path = Path::new(named);
    let is_name = path.components().count() == 1 && path.extension().is_none();
    match folder().filter(|_| is_name) {
        Some(folder) => folder.join(format!("{named}.toml")),
        None => path.to_owned(),
    }
}

/// The context of the latest login.
pub(crate) fn latest() -> Option<PathBuf> {
    let name = std::fs::read_to_string(folder()?.join(LATEST)).ok()?;
    let file = file(name.trim());
    file.exists().then_some(file)
}

/// Makes this the context of the latest login.
///
/// # Errors
/// When the folder cannot be written.
pub(crate) fn choose(name: &str) -> std::io::Result<()> {
    match folder() {
        Some(folder) => std::fs::write(folder.join(LATEST), name),
        None => Ok(()),
    }
}
